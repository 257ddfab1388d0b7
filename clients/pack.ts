#!/usr/bin/env bun
/**
 * `bun run pack [folder]`: makes the npm package of the SDK: one ES module, its types, a README, the licence and a package.json. `publint` and
 * `@arethetypeswrong/core` check it as the tools of its users will read it; any finding fails the run. It publishes nothing: to publish, run
 * `npm publish` with the file that it prints.
 */
import { checkPackage, createPackageFromTarballData, type Problem } from "@arethetypeswrong/core";
import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import packageJson from "../package.json";
import { sdkModule, sdkTypes } from "./bundle.ts";

const root = join(import.meta.dir, "..");
const folder = resolve(process.argv[2] ?? join(root, "dist"));

/** Runs a program to its end. @returns what it printed @throws Error with its output when it fails */
async function run(command: readonly string[], cwd: string): Promise<string> {
  const child = Bun.spawn([...command], { cwd, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) throw new Error(`${command.join(" ")}: ${output}${errors}`);
  return output;
}

const args = process.argv.slice(2);
const existing: unknown = await Bun.file(join(folder, "package.json"))
  .json()
  .catch(() => null);
const isOurs =
  typeof existing === "object" && existing !== null && "name" in existing && existing.name === "pere-client";
const isEmpty = await readdir(folder).then(
  (names) => names.length === 0,
  (error: { code?: string }) => error.code === "ENOENT",
);
if (args.length > 1 || args[0] === "" || args[0]?.startsWith("-") || !(isOurs || isEmpty)) {
  console.error(
    isOurs || isEmpty
      ? "usage: bun run pack [folder]"
      : `pack: ${folder} is not empty and is not a folder of this command; name another folder`,
  );
  process.exit(2);
}
await rm(folder, { recursive: true, force: true });
await mkdir(folder, { recursive: true });
await Bun.write(join(folder, "pere.js"), await sdkModule());
await Bun.write(join(folder, "pere.d.ts"), await sdkTypes());
await cp(join(root, "clients", "sdk", "README.md"), join(folder, "README.md"));
await cp(join(root, "LICENSE"), join(folder, "LICENSE"));
// Set once package.json has one; JSON leaves out undefined.
const repository: unknown = "repository" in packageJson ? packageJson.repository : undefined;
const manifest = {
  name: "pere-client",
  version: packageJson.version,
  description: "Listen to PERE's events and answer with receipts, or publish: for browsers, Node, Bun and Deno",
  keywords: [
    "pere",
    "push",
    "events",
    "receipts",
    "server-sent-events",
    "sse",
    "websocket",
    "realtime",
    "notifications",
  ],
  license: packageJson.license,
  repository,
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
const file = join(folder, packed.trim().split("/").at(-1)!);

/** Ways of resolution that the package does not support: it is an ES module with `exports`, which Node ≥ 12.7 and TypeScript ≥ 4.7 resolve. */
const UNSUPPORTED = ["node10", "node16-cjs"];
const isSupported = (problem: Problem): boolean =>
  !("resolutionKind" in problem && UNSUPPORTED.includes(problem.resolutionKind));
const analysis = await checkPackage(createPackageFromTarballData(await Bun.file(file).bytes()));
const problems = analysis.types === false ? [{ kind: "NoTypes" }] : analysis.problems.filter(isSupported);
for (const problem of problems) console.error(`types: ${JSON.stringify(problem)}`);
if (problems.length > 0) process.exit(1);
console.log(file);
