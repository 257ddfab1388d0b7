/**
 * Builds the pages: Bun bundles their TypeScript with its imports, once, when the first page is requested.
 *
 * A fresh clone needs no build and writes nothing: it bundles in memory, in a fifth of a second. `bun web/build.ts FOLDER` does that in advance, and
 * compresses: an executable contains `web/built`, because it has neither sources nor packages, and the image has `web/served`, which is used in place of
 * the sources where it exists. The names of bundled files contain a hash of their content, so everything except the pages themselves may be cached
 * indefinitely.
 *
 * Loads only files of this project and packages that package.json pins.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { sdkModule, sdkTypes } from "../clients/bundle.ts";
import { compress, EncodedFile, type Encoding, ENCODINGS, isCompressible } from "./encoded.ts";

/** The pages and their service workers: the path of each, and its source in `web/`. */
const PAGES: Readonly<Record<string, string>> = {
  "/": "console/console.html",
  "/console-worker.js": "console/alert-worker.ts",
  "/weblistener.html": "device/device.html",
  "/weblistener-worker.js": "device/worker.ts",
  "/swagger": "api/api.html",
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

/** The file name of a built page: that of its source, without folders. */
const nameOf = (source: string): string => source.replace(/^.*\//, "").replace(/\.ts$/, ".js");

/** How a script names one that it imports: relative to the page, although both are in one folder. */
const IMPORTED = /(\b(?:from|import) ?\(?)"\.\/pages\/([\w.-]+)"/g;

/** The page that works without a network, so all of its files must be known to its worker. */
const OFFLINE = "device.html";

/** Names in a page the scripts that its own script loads later; the browser fetches them when it has nothing else to do. */
async function withLater(html: string, files: ReadonlyMap<string, Blob>): Promise<string> {
  const scripts = [...html.matchAll(/(?:src|href)="\.\/(pages\/[\w-]+\.js)"/g)].map(([, name]) => name!);
  const texts = await Promise.all(scripts.map((name) => files.get(name)!.text()));
  const later = texts.flatMap((text) => [...text.matchAll(IMPORTED)].filter(([, keyword]) => keyword!.endsWith("(")));
  const names = [...new Set(later.map(([, , name]) => name))].filter((name) => !scripts.includes(`pages/${name}`));
  return html.replace(
    "</head>",
    `${names.map((name) => `<link rel="prefetch" href="./pages/${name}">`).join("")}</head>`,
  );
}

/** A page and a script of its own that runs before everything else. It must not be bundled with the page's script. */
const EARLY = { page: "console.html", script: "console/early.ts" } as const;

/** Gives the early script a name with a hash, and puts it first into its page. */
async function addEarly(files: Map<string, Blob>): Promise<void> {
  const [built, page] = [nameOf(EARLY.script), files.get(EARLY.page)!];
  const script = files.get(built)!;
  const name = `pages/${built.replace(
    ".js",
    `-${Bun.hash(await script.text())
      .toString(36)
      .slice(0, 8)}.js`,
  )}`;
  files.delete(built);
  files.set(name, script);
  const html = (await page.text()).replace(/(?=<link )/, `<script async src="./${name}"></script>`);
  files.set(EARLY.page, new Blob([html], page));
}

/** Bundles all pages and the SDK. @returns files by name: pages under the names of their sources, the files that they load under `pages/` */
async function bundle(web: string): Promise<Map<string, Blob>> {
  const built = await Bun.build({
    entrypoints: [...Object.values(PAGES), EARLY.script].map((source) => join(web, source)),
    target: "browser",
    minify: true,
    splitting: true,
    publicPath: "./", // Relative, because a proxy may serve PERE under a path.
    naming: { entry: "[name].[ext]", chunk: "pages/[name]-[hash].[ext]", asset: "pages/[name]-[hash].[ext]" },
    define: { "process.env.NODE_ENV": '"production"' },
    jsx: { runtime: "automatic", importSource: "preact", development: false },
    plugins: [packages],
  });
  const files = new Map<string, Blob>(built.outputs.map((output) => [output.path.replace(/^\.?\//, ""), output]));
  await addEarly(files);
  const offline = files.get(OFFLINE)!;
  files.set(OFFLINE, new Blob([await withLater(await offline.text(), files)], offline));
  for (const [name, blob] of files)
    if (name.startsWith("pages/") && name.endsWith(".js"))
      files.set(name, new Blob([(await blob.text()).replace(IMPORTED, '$1"./$2"')], blob));
  files.set(SDK.slice(1), new Blob([await sdkModule()]));
  return files.set(SDK_TYPES.slice(1), new Blob([await sdkTypes()]));
}

const bytesOf = async (blob: Blob): Promise<Uint8Array<ArrayBuffer>> => new Uint8Array(await blob.arrayBuffer());

/** Reads the files that `write` wrote, by name. */
async function readBuilt(folder: string): Promise<Map<string, Blob>> {
  const names = [...new Bun.Glob("**").scanSync(folder)];
  return new Map(names.map((name) => [name, Bun.file(join(folder, name))]));
}

/** Writes the files for `readBuilt`, each with its compressed forms beside it. */
async function write(files: ReadonlyMap<string, Blob>, folder: string): Promise<void> {
  for (const [name, blob] of files) {
    const bytes = await bytesOf(blob);
    await Bun.write(join(folder, name), bytes);
    if (!isCompressible(typeOf(name, blob))) continue;
    for (const [encoding, suffix] of Object.entries(ENCODINGS)) {
      const packed = await compress(bytes, encoding as Encoding, "build");
      if (packed !== null) await Bun.write(join(folder, name + suffix), packed);
    }
  }
}

const typeOf = (name: string, { type }: Blob): string => TYPES[`/${name}`] ?? type;

/** The pages and the files that they load, by path. @param web the folder of the pages' sources */
export async function buildPages(web: string): Promise<ReadonlyMap<string, EncodedFile>> {
  const folder = join(web, Bun.isStandaloneExecutable ? "built" : "served");
  const files = Bun.isStandaloneExecutable || existsSync(folder) ? await readBuilt(folder) : await bundle(web);
  const pathOf = new Map(Object.entries(PAGES).map(([path, source]) => [nameOf(source), path]));
  const served = new Map<string, EncodedFile>();
  for (const [name, blob] of files) {
    if (Object.values(ENCODINGS).some((suffix) => name.endsWith(suffix))) continue;
    const packed: Partial<Record<Encoding, Uint8Array<ArrayBuffer>>> = {};
    for (const [encoding, suffix] of Object.entries(ENCODINGS) as [Encoding, string][]) {
      const found = files.get(name + suffix);
      if (found) packed[encoding] = await bytesOf(found);
    }
    served.set(pathOf.get(name) ?? `/${name}`, new EncodedFile(typeOf(name, blob), await bytesOf(blob), packed));
  }
  // Below `/swagger/` the relative addresses of the page lead one folder up.
  const { bytes, type } = served.get("/swagger")!;
  const below = new TextDecoder().decode(bytes).replace(/( (?:href|src)=")\.\//g, "$1../");
  return served.set("/swagger/", new EncodedFile(type, new TextEncoder().encode(below)));
}

if (import.meta.main && !Bun.isStandaloneExecutable) {
  const [folder = "", ...more] = process.argv.slice(2);
  if (folder === "" || folder.startsWith("-") || more.length > 0) {
    console.error("usage: bun web/build.ts FOLDER");
    process.exit(2);
  }
  await write(await bundle(import.meta.dir), folder);
}
