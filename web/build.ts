/**
 * Builds the pages: Bun bundles their TypeScript with its imports, once, when the first page is requested.
 *
 * Nothing is built in advance and nothing is written to disk: a fresh clone and a read-only container bundle in memory, in a fifth of a second. An
 * executable has neither sources nor packages; it contains what `bun web/build.ts web/built` wrote before it was compiled (with `--asset web`).
 * The names of bundled files contain a hash of their content, so everything except the pages themselves may be cached indefinitely.
 *
 * Loads only files of this project and packages that package.json pins.
 */
import { join } from "node:path";
import { sdkModule, sdkTypes } from "../clients/bundle.ts";

/** The pages and the service worker: the path of each, and its source in `web/`. */
const PAGES: Readonly<Record<string, string>> = {
  "/": "console/console.html",
  "/weblistener.html": "device/device.html",
  "/weblistener-worker.js": "device/worker.ts",
};

/** The paths of the SDK, which pages of other sites can import, and of its types. */
export const SDK = "/pere.js";
export const SDK_TYPES = "/pere.d.ts";

/** The path prefix of the files that pages load. */
export const BUILT = "/pages/";

/** Media types of files for which Bun gives none. */
const TYPES: Readonly<Record<string, string>> = {
  [SDK]: "text/javascript;charset=utf-8",
  [SDK_TYPES]: "application/typescript;charset=utf-8",
};

/** A file as it is served. */
export interface PageFile {
  readonly type: string;
  readonly etag: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** An import of a package or of a file in one; not a path and not a `data:` URL. */
const PACKAGE = /^(@[a-z0-9-]+\/)?[a-z][a-z0-9-]*(\/.*)?$/;

/**
 * Resolves packages as the service itself does. Without a `node_modules` folder, Bun fetches packages when the service starts, but its bundler
 * would not find them by itself.
 */
const packages: Bun.BunPlugin = {
  name: "packages",
  setup: (build) =>
    void build.onResolve({ filter: PACKAGE }, ({ path, importer }) => ({ path: Bun.resolveSync(path, importer) })),
};

const typed = (type: string, bytes: Uint8Array<ArrayBuffer>): PageFile => ({
  type,
  etag: `"${Bun.hash(bytes).toString(36)}"`,
  bytes,
});

/** The file name of a built page: that of its source, without folders. */
const nameOf = (source: string): string => source.replace(/^.*\//, "").replace(/\.ts$/, ".js");

/** Bundles all pages and the SDK. @returns files by name: pages under the names of their sources, the files that they load under `pages/` */
async function bundle(web: string): Promise<Map<string, Blob>> {
  const built = await Bun.build({
    entrypoints: Object.values(PAGES).map((source) => join(web, source)),
    target: "browser",
    minify: true,
    publicPath: "./", // Relative, because a proxy may serve PERE under a path.
    naming: { entry: "[name].[ext]", chunk: "pages/[name]-[hash].[ext]", asset: "pages/[name]-[hash].[ext]" },
    define: { "process.env.NODE_ENV": '"production"' },
    jsx: { runtime: "automatic", importSource: "preact", development: false },
    plugins: [packages],
  });
  const files = new Map<string, Blob>(built.outputs.map((output) => [output.path.replace(/^\.?\//, ""), output]));
  files.set(SDK.slice(1), new Blob([await sdkModule()]));
  return files.set(SDK_TYPES.slice(1), new Blob([await sdkTypes()]));
}

/** Reads the files that `write` wrote. */
async function readBuilt(folder: string): Promise<Map<string, Blob>> {
  const names = [...new Bun.Glob("**").scanSync(folder)];
  return new Map(names.map((name) => [name, Bun.file(join(folder, name))]));
}

/** The pages and the files that they load, by path. @param web the folder of the pages' sources */
export async function buildPages(web: string): Promise<ReadonlyMap<string, PageFile>> {
  const files = Bun.isStandaloneExecutable ? await readBuilt(join(web, "built")) : await bundle(web);
  const pathOf = new Map(Object.entries(PAGES).map(([path, source]) => [nameOf(source), path]));
  const served = [...files].map(async ([name, blob]) => {
    const path = pathOf.get(name) ?? `/${name}`;
    return [path, typed(TYPES[path] ?? blob.type, new Uint8Array(await blob.arrayBuffer()))] as const;
  });
  return new Map(await Promise.all(served));
}

if (import.meta.main && !Bun.isStandaloneExecutable) {
  const [folder = "", ...more] = process.argv.slice(2);
  if (folder === "" || folder.startsWith("-") || more.length > 0) {
    console.error("usage: bun web/build.ts FOLDER");
    process.exit(2);
  }
  for (const [name, blob] of await bundle(import.meta.dir)) await Bun.write(join(folder, name), blob);
}
