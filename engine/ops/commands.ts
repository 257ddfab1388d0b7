/**
 * What PERE does when it is asked for something else than to serve: `bun run index.ts backup FILE` and its kin. Each is loaded only then, says
 * what it did in a line, and says in one line what is wrong with its arguments.
 */
import { backup, compact, restore } from "../sqlite/backup.ts";
import { issueToken, readTokenDraft } from "../auth/issue.ts";
import { foundSecret } from "../sqlite/secret-file.ts";
import { type Setting, SETTINGS, type Settings } from "./settings.ts";

/** One thing to do. @returns the code to exit with @throws Error with the one line to print */
export type Command = (args: readonly string[], settings: Settings) => number | Promise<number>;

/** How each is called, and what it does. */
export const USAGE: Readonly<Record<string, { readonly args: string; readonly what: string }>> = {
  token: {
    args: "--sub NAME [--push CHANNELS] [--feed CHANNELS] [--days N]",
    what: "prints a token, signed with PERE_JWT_SECRET or with the secret that PERE made",
  },
  backup: { args: "FILE", what: "copies PERE_DB as it is now, while the service works or not" },
  restore: { args: "FILE", what: "puts a backup where PERE_DB is to be; each channel gets a new epoch" },
  compact: { args: "", what: "gives the room of what was dropped back to the disk; not while the service works" },
  doctor: {
    args: "URL [--seconds N] [--channel NAME]",
    what: "looks at a service from here, through all that is before it; a token is taken from PERE_TOKEN",
  },
  health: { args: "", what: "asks the service on this machine whether it lives: for health checks" },
};

/** @throws Error with the one line to print: how the command is called */
function fail(name: string): never {
  throw new Error(`usage: bun run index.ts ${`${name} ${USAGE[name]!.args}`.trim()}`);
}

/** A command's arguments, which are names of files and nothing else. @throws Error with the one line to print */
function filesOf(name: string, args: readonly string[], count: number): string[] {
  if (args.length !== count || args.some((arg) => arg === "" || arg.startsWith("-"))) fail(name);
  return [...args];
}

/** The file that a command is about. @throws Error with the one line to print */
function fileOf({ redis, db }: Settings): string {
  if (redis !== null) throw new Error("REDIS_URL is set: what is in Redis is kept by Redis' own means");
  if (db === ":memory:") throw new Error("PERE_DB is :memory:, which ends with its service");
  return db;
}

const size = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

/** What tokens are signed with: the secret that was set, else the one that PERE made and keeps beside its file. */
function mintKeys({ access, db, redis }: Settings): Parameters<typeof issueToken>[0] {
  if (typeof access !== "string") return access;
  const secret = redis === null ? foundSecret(db) : null;
  return secret === null ? {} : { secret };
}

export const commands: Readonly<Record<"token" | "backup" | "restore" | "compact" | "help", Command>> = {
  async token(args, settings) {
    console.log(await issueToken(mintKeys(settings), readTokenDraft(args)));
    return 0;
  },

  backup(args, settings) {
    const [file] = filesOf("backup", args, 1) as [string];
    const { channels, events, bytes } = backup(fileOf(settings), file);
    console.log(`${file} holds ${channels} channels with ${events} events, in ${size(bytes)}`);
    return 0;
  },

  restore(args, settings) {
    const [file] = filesOf("restore", args, 1) as [string];
    const db = fileOf(settings);
    const { channels, events } = restore(file, db);
    console.log(`${db} holds ${channels} channels with ${events} events again; from its start on their ids are new`);
    return 0;
  },

  compact(args, settings) {
    filesOf("compact", args, 0);
    const db = fileOf(settings);
    const { before, after } = compact(db);
    console.log(`${db} took ${size(before)} and takes ${size(after)}`);
    return 0;
  },

  help() {
    console.log(helpText());
    return 0;
  },
};

/** Columns of a terminal that everybody has. */
const COLUMNS = 100;

/** Breaks a sentence into lines, each with so many spaces before it. */
function indented(text: string, spaces: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1)!.length + word.length + spaces >= COLUMNS) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trimStart());
  }
  return lines.map((line) => " ".repeat(spaces) + line).join("\n");
}

/** Everything that may be asked for and set. */
function helpText(): string {
  const called = Object.entries(USAGE).map(
    ([name, { args, what }]) => `  ${`${name} ${args}`.trim()}\n${indented(what, 6)}`,
  );
  const settings = Object.entries(SETTINGS).map(
    ([name, setting]) =>
      `  ${`${name}  ${usualOf(setting)}`.trim()}\n${indented(setting.meaning.replaceAll("`", ""), 6)}`,
  );
  return `bun run index.ts [--host ADDRESS] [--port PORT]    starts PERE; -o and -p for short

Instead of that it does one of these:

${called.join("\n")}

Settings, as environment variables:

${settings.join("\n")}`;
}

/** What holds where nothing is set, in words. */
export const usualOf = ({ usual, notLocal }: Setting): string =>
  notLocal ? `${usual}; on loopback without tokens 0` : usual;
