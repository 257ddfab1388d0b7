#!/usr/bin/env bun
/**
 * `bun run pack [folder]`: makes the SDK's npm package: `pere.ts` as an ES module with its types, its document, the licence, and a
 * package.json that says so. `publint` looks at it as those who install it will; what it finds fails the run. It publishes nothing: that is
 * `npm publish` with the file that it names.
 */
import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import packageJson from "../package.json";

const root = join(import.meta.dir, "..");
const folder = resolve(process.argv[2] ?? join(root, "dist"));

/** Runs a program to its end. @returns what it printed. @throws Error with what it said when it fails */
async function run(command: readonly string[], cwd: string): Promise<string> {
  const child = Bun.spawn([...command], { cwd, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [said, complained] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) throw new Error(`${command.join(" ")}: ${said}${complained}`);
  return said;
}

/** The SDK's document as the package's page. Links to other documents become text: they are not in the package. */
async function page(): Promise<string> {
  const text = await Bun.file(join(root, "docs", "sdk-javascript.md")).text();
  return text
    .replace(/^# .*/, `# pere-client\n\n${packageJson.description}.`)
    .replace(/\[([^\]]+)\]\(\w[\w-]*\.md[^)]*\)/g, "$1");
}

const args = process.argv.slice(2);
const made: unknown = await Bun.file(join(folder, "package.json"))
  .json()
  .catch(() => null);
const isOurs = typeof made === "object" && made !== null && "name" in made && made.name === "pere-client";
const isEmpty = await readdir(folder).then(
  (names) => names.length === 0,
  (error: { code?: string }) => error.code === "ENOENT",
);
if (args.length > 1 || args[0] === "" || args[0]?.startsWith("-") || !(isOurs || isEmpty)) {
  console.error(
    isOurs || isEmpty ? "usage: bun run pack [folder]" : `pack: ${folder} holds something else; name another folder`,
  );
  process.exit(2);
}
await rm(folder, { recursive: true, force: true });
await mkdir(folder, { recursive: true });
// What every supported runtime can do: Node 20 is the oldest.
const options = ["--target", "es2022", "--lib", "es2022,dom", "--module", "esnext", "--moduleResolution", "bundler"];
const tsc = [join(root, "node_modules", ".bin", "tsc"), join(root, "clients", "pere.ts"), "--ignoreConfig", "--strict"];
await run([process.execPath, ...tsc, ...options, "--types", "", "--declaration", "--outDir", folder], root);
await Bun.write(join(folder, "README.md"), await page());
await cp(join(root, "LICENSE"), join(folder, "LICENSE"));
const manifest = {
  name: "pere-client",
  version: packageJson.version,
  description: packageJson.description,
  license: packageJson.license,
  type: "module",
  exports: { ".": { types: "./pere.d.ts", default: "./pere.js" } },
  files: ["pere.js", "pere.d.ts"],
  sideEffects: false,
  engines: { node: ">=20" },
};
await Bun.write(join(folder, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);

const { messages } = await publint({ pkgDir: folder, strict: true, pack: "bun" });
for (const message of messages) console.error(formatMessage(message, manifest));
if (messages.length > 0) process.exit(1);
const packed = await run([process.execPath, "pm", "pack", "--quiet"], folder);
console.log(join(folder, packed.trim().split("/").at(-1)!));
