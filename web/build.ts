/**
 * How pages become files that a browser takes: TypeScript and what it imports are bundled by Bun, once, when the first page is asked for.
 *
 * Nothing is built ahead and nothing is written: a fresh clone and a read-only container bundle in memory, in a fifth of a second. An executable has
 * no sources to bundle and no packages; it carries what `bun web/build.ts web/built` wrote before it was compiled (with `--asset web/built`).
 * Page and files name each other by content, so all but the page itself may be kept for ever.
 *
 * It loads nothing from anywhere but this house and the packages that package.json pins.
 */
import { join } from "node:path";
import { sdkModule, sdkTypes } from "../clients/bundle.ts";

/** The pages, and the script that keeps one for when there is no network, each by its path and its source in `web/`. */
const PAGES: Readonly<Record<string, string>> = {
  "/": "console/console.html",
  "/weblistener.html": "device/device.html",
  "/weblistener-worker.js": "device/worker.ts",
};

/** The SDK, for pages of others to import, and its types. */
export const SDK = "/pere.js";
export const SDK_TYPES = "/pere.d.ts";

/** Under this path is what pages load. */
export const BUILT = "/pages/";

/** Media types of files that are not named by Bun. */
const TYPES: Readonly<Record<string, string>> = {
  [SDK]: "text/javascript;charset=utf-8",
  [SDK_TYPES]: "application/typescript;charset=utf-8",
};

/** One file as it is served. */
export interface PageFile {
  readonly type: string;
  readonly etag: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** The name of a package, and perhaps a file in it; not a path and not a `data:` address. */
const PACKAGE = /^(@[a-z0-9-]+\/)?[a-z][a-z0-9-]*(\/.*)?$/;

/**
 * Packages are found the way that the service itself finds them. Where there is no `node_modules`, Bun fetches them when the service starts, and
 * its bundler by itself would look no further.
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

/** The name of a built page's file: its source's, without folders. */
const nameOf = (source: string): string => source.replace(/^.*\//, "").replace(/\.ts$/, ".js");

/** Bundles all pages and the SDK. @returns files by name: pages as their sources are called, what they load under `pages/` */
async function bundle(web: string): Promise<Map<string, Blob>> {
  const built = await Bun.build({
    entrypoints: Object.values(PAGES).map((source) => join(web, source)),
    target: "browser",
    minify: true,
    publicPath: "./", // Pages are at the root, wherever a proxy puts that; what they load is under `pages/`.
    naming: { entry: "[name].[ext]", chunk: "pages/[name]-[hash].[ext]", asset: "pages/[name]-[hash].[ext]" },
    define: { "process.env.NODE_ENV": '"production"' },
    jsx: { runtime: "automatic", importSource: "preact", development: false },
    plugins: [packages],
  });
  const files = new Map<string, Blob>(built.outputs.map((output) => [output.path.replace(/^\.?\//, ""), output]));
  files.set(SDK.slice(1), new Blob([await sdkModule()]));
  return files.set(SDK_TYPES.slice(1), new Blob([await sdkTypes()]));
}

/** What `write` wrote. */
async function readBuilt(folder: string): Promise<Map<string, Blob>> {
  const names = [...new Bun.Glob("**").scanSync(folder)];
  return new Map(names.map((name) => [name, Bun.file(join(folder, name))]));
}

/** The pages and what they load, by the path that they are served at. @param web the folder of the pages' sources */
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
