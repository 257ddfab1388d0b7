/**
 * README and docs/ as programs: their code blocks, the commands in these, and whether what a command printed is what the document shows.
 *
 * A command runs in a shell, in a folder of its own that has links to the program's folders. Addresses are replaced by the service's. Event ids differ from run
 * to run: the first time that a document shows an id, the real one that stands in its place is remembered, and later commands get that.
 */
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Glob } from "bun";
import { temporary, until } from "./harness.ts";

export const ROOT = join(import.meta.dir, "..", "..");

/** README and all of docs/, by path from the project's folder. */
export const DOCUMENTS: readonly string[] = [
  ...["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"],
  ...[...new Glob("docs/**/*.md").scanSync(ROOT)].sort(),
];

export const textOf = (document: string): Promise<string> => Bun.file(join(ROOT, document)).text();

/** A fenced block. `line` is that of its first line, from 1. */
export interface Block {
  readonly language: string;
  readonly text: string;
  readonly line: number;
}

export function blocksOf(text: string): Block[] {
  const blocks: Block[] = [];
  for (const match of text.matchAll(/^```(\w*)\n(.*?)^```$/gms))
    blocks.push({
      language: match[1]!,
      text: match[2]!,
      line: text.slice(0, match.index).split("\n").length + 1,
    });
  return blocks;
}

/** A command, and the lines that the document shows as its output. */
export interface Step {
  readonly command: string;
  readonly shown: readonly string[];
}

/** The steps of a `console` block: `$ command`, continued behind a backslash, then what it prints. */
export function stepsOf(block: Block): Step[] {
  const steps: { command: string; shown: string[] }[] = [];
  let isContinued = false;
  for (const line of block.text.trimEnd().split("\n")) {
    if (isContinued) steps.at(-1)!.command += `\n${line}`;
    else if (line.startsWith("$ ")) steps.push({ command: line.slice(2), shown: [] });
    else if (line !== "") steps.at(-1)!.shown.push(line);
    isContinued = line.endsWith("\\");
  }
  return steps;
}

/** The commands of an `sh` block, without comments. */
export const commandsOf = (block: Block): string[] =>
  block.text
    .replaceAll("\\\n", " ")
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");

const ID = /\b[a-z0-9]{8}-\d+\b/;
const TIME = /"?\d{4}-\d{2}-\d{2}T[\d:.]+Z/;
/** What differs from run to run, or is left out, in a line that a document shows. */
const LOOSE = new RegExp(`(${ID.source})|(${TIME.source})|(^retry: \\d+$)|(,…)|(…)`, "g");

/** Ids as the document shows them, with the real ones. */
export type Ids = Map<string, string>;

/** Whether a line is what the document shows; ids that are shown for the first time are remembered then. */
export function isAsShown(line: string, shown: string, ids: Ids): boolean {
  const found: string[] = [];
  let pattern = "";
  let last = 0;
  for (const match of shown.matchAll(LOOSE)) {
    const [text, shownId, time, retry, more] = match;
    pattern += RegExp.escape(shown.slice(last, match.index));
    last = match.index + text.length;
    if (shownId) {
      const real = ids.get(shownId);
      if (real === undefined) found.push(shownId);
      pattern += real ?? `(${ID.source})`;
    } else if (time) pattern += TIME.source.replace('"?', time.startsWith('"') ? '"' : "");
    else if (retry) pattern += "retry: \\d+";
    else pattern += more ? "(?:,.*)?" : ".*";
  }
  const match = new RegExp(`^${pattern}${RegExp.escape(shown.slice(last))}$`).exec(line);
  if (!match) return false;
  found.forEach((shownId, index) => ids.set(shownId, match[index + 1]!));
  return true;
}

/** A text with real ids in place of the shown ones. */
export const withIds = (text: string, ids: Ids): string =>
  text.replaceAll(new RegExp(ID, "g"), (shown) => ids.get(shown) ?? shown);

/** A command that runs. What it printed grows. */
export interface Running {
  readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly output: { text: string };
  /** Waits for its end. */
  ended(): Promise<number>;
}

/** Where commands of documents run: a folder that has links to what the project's folder has. */
export function workplace(): string {
  const folder = temporary();
  for (const name of ["clients", "engine", "index.ts", "web", "tests", "package.json", "tsconfig.json", "node_modules"])
    symlinkSync(join(ROOT, name), join(folder, name));
  // Where its output is no terminal curl tells of its progress.
  writeFileSync(join(folder, ".curlrc"), "silent\nshow-error\n");
  return folder;
}

/** Runs a command in a shell that is replaced by it, where it is one program. */
export function run(command: string, folder: string, env: Record<string, string> = {}): Running {
  const isOne = !/[|;&\n]/.test(command.replaceAll(/'[^']*'|\\\n/g, ""));
  const [, assigned = "", words = ""] = /^((?:\w+=(?:'[^']*'|\S+) )*)(.*)$/s.exec(command)!;
  const child = Bun.spawn(["bash", "-c", isOne ? `${assigned ? `export ${assigned}\n` : ""}exec ${words}` : command], {
    cwd: folder,
    env: { PATH: process.env.PATH, HOME: folder, TMPDIR: process.env.TMPDIR, ...env },
    ...({ stdin: "ignore", stdout: "pipe", stderr: "pipe" } as const),
  });
  const output = { text: "" };
  const read = async (stream: ReadableStream<Uint8Array>): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) output.text += decoder.decode(chunk, { stream: true });
  };
  const both = Promise.all([read(child.stdout), read(child.stderr)]);
  return {
    child,
    output,
    async ended() {
      await both;
      return child.exited;
    },
  };
}

/** Waits until all of these lines have come, in order, others between them. @returns how many lines were read for that */
export async function follow(running: Running, from: number, shown: readonly string[], ids: Ids): Promise<number> {
  let at = from;
  let next = 0;
  const look = (): boolean => {
    const lines = running.output.text.split("\n").slice(0, -1);
    for (; at < lines.length && next < shown.length; at++) if (isAsShown(lines[at]!, shown[next]!, ids)) next++;
    return next === shown.length;
  };
  await until(look, () => `\n${shown[next]}\nin\n${running.output.text}`);
  return at;
}

/** Headings of a document as their links name them. */
export const anchorsOf = (text: string): Set<string> =>
  new Set(
    [...text.replaceAll(/^```.*?^```$/gms, "").matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
      title!
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
