/**
 * The SDK as one file: `clients/sdk/` bundled into a readable ES module, and its types. The service serves both at `/pere.js` and
 * `/pere.d.ts`, and `pack.ts` puts them into the npm package.
 *
 * Types are taken from the text of the sources, because a service runs without the TypeScript compiler. That is enough for what the SDK exports:
 * interfaces, types, functions and classes whose signatures are written out, and constants with a type. `tests/sdk-pack.test.ts` has `tsc` check it.
 */
import { join } from "node:path";

const SDK = join(import.meta.dir, "sdk");

/** The SDK as an ES module without imports. @throws AggregateError when it can't be bundled */
export async function sdkModule(): Promise<string> {
  const { outputs } = await Bun.build({ entrypoints: [join(SDK, "index.ts")], target: "browser", format: "esm" });
  return `// PERE's SDK, bundled. Its types and their documentation are in pere.d.ts. MIT licence.\n${await outputs[0]!.text()}`;
}

/** A top-level declaration: its kind, and its text with the comment before it. */
interface Declaration {
  readonly kind: string;
  readonly text: string;
}

const DECLARED = /^(?:export )?(?:async )?(interface|type|class|function|const) (\w+)/;

/** The top-level declarations of a formatted source file, in which the lines inside a declaration are indented. */
function declarationsOf(source: string): Map<string, Declaration> {
  const found = new Map<string, Declaration>();
  for (const text of source.split(
    /^(?=\/\*\*)|(?<!\*\/\n)^(?=(?:export |async |interface |type |class |function |const ))/m,
  )) {
    const [, kind, name] = DECLARED.exec(text.replace(/^\/\*\*[^]*?\*\/\n/, "")) ?? [];
    if (kind !== undefined && name !== undefined) found.set(name, { kind, text: text.trim() });
  }
  return found;
}

/** The declaration as types only. */
function typesOf({ kind, text }: Declaration): string {
  const [comment = ""] = /^\/\*\*[^]*?\*\/\n/.exec(text) ?? [];
  const code = text.slice(comment.length).replace(/^export /, "");
  if (kind === "interface" || kind === "type") return comment + code;
  if (kind === "const") return `${comment}declare ${code.replace(/ = [^]*$/, ";")}`;
  if (kind === "class") {
    const members = code.replace(/^( {2}\S[^\n]*\)(?:: [^\n]*)?) \{\n[^]*?^ {2}\}$/gm, "$1;");
    return `${comment}declare ${members.replace(/^ {2}override /gm, "  ")}`;
  }
  const signature = code.replace(/ \{\n[^]*$/, ";").replace(/^async /, "");
  return `${comment}declare ${signature.replace(/(\w+): ([\w<>]+) = [^,)\n]+/g, "$1?: $2")}`;
}

/** The types of what the SDK exports, and the types that these mention. */
export async function sdkTypes(): Promise<string> {
  const declared = new Map<string, Declaration>();
  for (const file of new Bun.Glob("*.ts").scanSync(SDK))
    for (const [name, declaration] of declarationsOf(await Bun.file(join(SDK, file)).text()))
      declared.set(name, declaration);
  const index = await Bun.file(join(SDK, "index.ts")).text();
  const exported = [...index.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(([, names]) =>
    [...names!.matchAll(/(\w+),? *(?=\s|$)/g)].map(([, name]) => name!).filter((name) => name !== "type"),
  );
  const wanted = new Set(exported);
  const texts: string[] = [];
  for (const name of wanted) {
    const text = typesOf(declared.get(name)!);
    texts.push(text);
    for (const [word] of text.replace(/\/\*\*[^]*?\*\//g, "").matchAll(/\w+/g))
      if (/^(interface|type|class)$/.test(declared.get(word)?.kind ?? "")) wanted.add(word);
  }
  const names = exported.map((name) => (/^(interface|type)$/.test(declared.get(name)!.kind) ? `type ${name}` : name));
  return `${texts.join("\n\n")}\n\nexport {\n  ${names.join(",\n  ")},\n};\n`;
}
