/**
 * The TypeScript in the documents of the SDK compiles against the types of the package as people get it.
 */
import { expect, test } from "bun:test";
import { mkdirSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { sdkTypes } from "../clients/bundle.ts";
import { temporary } from "./support/harness.ts";
import { blocksOf, DOCUMENTS, ROOT, textOf } from "./support/documents.ts";

/** What a snippet takes from its surroundings. */
const SURROUNDINGS = `
declare const url: string;
declare const token: string;
declare function print(table: number): Promise<string>;
`;

/** The part of React Native's types that the snippet uses: the packages themselves are too large to install for it. */
const REACT_NATIVE = `
declare module "react-native" {
  export const AppState: {
    addEventListener(type: "change", listener: (state: "active" | "background" | "inactive" | "unknown" | "extension") => void): { remove(): void };
  };
}
declare module "@react-native-async-storage/async-storage" {
  const storage: { getItem(key: string): Promise<string | null>; setItem(key: string, value: string): Promise<void> };
  export default storage;
}
`;

/** Names of the SDK, of React, of Vue, of React Native and of browsers. */
const NAMES = [
  ...[
    "listen",
    "publish",
    "receipts",
    "PushedEvent",
    "Status",
    "onEvent",
    "channels",
    "storage",
    "concurrency",
    "subscribe",
  ],
  ...["fileStorage", "close", "useEffect", "useState", "shallowRef", "onScopeDispose", "AppState", "getItem"],
  ...["EventSource", "addEventListener"],
];

/** A project that has installed the package, React's types and Vue's. */
async function project(): Promise<string> {
  const folder = temporary();
  const modules = join(folder, "node_modules");
  const exports = { ".": { types: "./pere.d.ts", default: "./pere.js" } };
  await Bun.write(join(modules, "pere-client", "package.json"), JSON.stringify({ name: "pere-client", exports }));
  await Bun.write(join(modules, "pere-client", "pere.d.ts"), await sdkTypes());
  for (const [name, path] of [
    ["@types/react", "@types/react"],
    ["vue", "@vue/runtime-dom"], // The package vue adds the compiler to it.
  ] as const) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(ROOT, "node_modules", path), join(modules, name));
  }
  const options = {
    ...{ strict: true, noEmit: true, skipLibCheck: true, exactOptionalPropertyTypes: true, types: [] },
    ...{ target: "esnext", module: "esnext", moduleResolution: "bundler", moduleDetection: "force", jsx: "react-jsx" },
    lib: ["esnext", "dom", "dom.iterable"],
  };
  await Bun.write(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions: options }));
  await Bun.write(join(folder, "surroundings.d.ts"), SURROUNDINGS + REACT_NATIVE);
  return folder;
}

/** The compiler's errors, each with the document and the line where it stands there. */
async function errorsIn(
  snippets: readonly { readonly place: string; readonly extension: string; readonly text: string }[],
) {
  const folder = await project();
  const names: string[] = [];
  for (const [index, { extension, text }] of snippets.entries()) {
    names.push(`snippet${index}.${extension}`);
    await Bun.write(join(folder, names.at(-1)!), text);
  }
  const tsc = join(ROOT, "node_modules", ".bin", "tsc");
  const child = Bun.spawn([process.execPath, tsc, "--pretty", "false"], {
    cwd: folder,
    stdin: "ignore",
    stdout: "pipe",
  });
  const said = await new Response(child.stdout).text();
  const errors = said.split("\n").filter((line) => line !== "");
  expect((await child.exited) === 0, said).toBe(errors.length === 0);
  return errors.map((line) =>
    line.replace(
      /^(snippet(\d+)\.\w+)\((\d+),\d+\)/,
      (_, _name, index, row) => `${snippets[index]!.place}, line ${row}`,
    ),
  );
}

async function snippetsOf(document: string) {
  return blocksOf(await textOf(document))
    .filter(({ language }) => /^tsx?$/.test(language))
    .map(({ language, text, line }) => ({ place: `${document}:${line}`, extension: language, text }));
}

test("the documents' TypeScript compiles against the package's types, and a wrong name in it would not", async () => {
  const snippets = (await Promise.all([...DOCUMENTS, "clients/sdk/README.md"].map(snippetsOf))).flat();
  const texts = snippets.map(({ text }) => text).join("\n");
  for (const what of ['"react"', '"vue"', '"react-native"', "new EventSource(", "publish(", "listen<"])
    expect(texts).toContain(what);
  expect(await errorsIn(snippets)).toEqual([]);

  // A wrong name in a snippet is an error, so no name is of a type that knows nothing.
  const wrong = snippets.flatMap(({ place, extension, text }) =>
    NAMES.filter((name) => new RegExp(`\\b${name}\\b`).test(text)).map((name) => ({
      ...{ place: `${place} with another name than ${name}`, extension },
      text: text.replaceAll(new RegExp(`\\b${name}\\b`, "g"), `${name}X`),
    })),
  );
  expect(wrong.length).toBeGreaterThan(20);
  const errors = await errorsIn(wrong);
  const isFound = ({ place }: { place: string }): boolean => errors.some((error) => error.startsWith(`${place}, `));
  expect(wrong.filter((snippet) => !isFound(snippet)).map(({ place }) => place)).toEqual([]);
}, 120_000);
