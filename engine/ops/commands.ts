/**
 * The commands besides serving: `bun run index.ts backup FILE` and so on. Each is loaded only when it is used, prints its result in one line, and
 * reports invalid arguments in one line.
 */
import { backup, compact, restore } from "../sqlite/backup.ts";
import { issueToken, readTokenDraft } from "../auth/issue.ts";
import { foundSecret } from "../sqlite/secret-file.ts";
import { type Setting, SETTINGS, type Settings } from "./settings.ts";

/** A command. @returns the exit code @throws Error with a one-line message */
export type Command = (args: readonly string[], settings: Settings) => number | Promise<number>;

/** Each command's arguments and purpose. */
export const USAGE: Readonly<Record<string, { readonly args: string; readonly what: string }>> = {
  token: {
    args: "--sub NAME [--push CHANNELS] [--feed CHANNELS] [--days N]",
    what: "prints a token, signed with PERE_JWT_SECRET or with the secret that PERE created",
  },
  backup: { args: "FILE", what: "copies PERE_DB as it is now, whether the service runs or not" },
  restore: { args: "FILE", what: "restores a backup to PERE_DB; each channel gets a new epoch" },
  compact: { args: "", what: "returns unused space in PERE_DB to the disk; stop the service first" },
  doctor: {
    args: "URL [--seconds N] [--channel NAME]",
    what: "checks a service from here, including proxies on the way; takes a token from PERE_TOKEN",
  },
  demo: {
    args: "[--host ADDRESS] [--port PORT] [--seed N]",
    what: "starts PERE in memory with a simulated fleet: 40 tills, a kiosk and a truck; reads no settings, keeps nothing",
  },
  health: { args: "", what: "checks that the service on this machine is alive: for health checks" },
};

/** @throws Error with a one-line message: the command's usage */
function fail(name: string): never {
  throw new Error(`usage: bun run index.ts ${`${name} ${USAGE[name]!.args}`.trim()}`);
}

/** A command's arguments, all of them file names. @throws Error with a one-line message */
function filesOf(name: string, args: readonly string[], count: number): string[] {
  if (args.length !== count || args.some((arg) => arg === "" || arg.startsWith("-"))) fail(name);
  return [...args];
}

/** The file that a command works on. @throws Error with a one-line message */
function fileOf({ redis, db }: Settings): string {
  if (redis !== null)
    throw new Error("REDIS_URL is set: this command works on SQLite files only; use Redis' own tools");
  if (db === ":memory:") throw new Error("PERE_DB is :memory:, which has no file; set it to a file");
  return db;
}

const size = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

/** The secret that signs tokens: the configured one, or the one that PERE created beside its file. */
function signingKeys({ access, db, redis }: Settings): Parameters<typeof issueToken>[0] {
  if (typeof access !== "string") return access;
  const secret = redis === null ? foundSecret(db) : null;
  return secret === null ? {} : { secret };
}

export const commands: Readonly<Record<"token" | "backup" | "restore" | "compact" | "help", Command>> = {
  async token(args, settings) {
    console.log(await issueToken(signingKeys(settings), readTokenDraft(args)));
    return 0;
  },

  backup(args, settings) {
    const [file] = filesOf("backup", args, 1) as [string];
    const { channels, events, bytes } = backup(fileOf(settings), file);
    console.log(`backed up to ${file} (channels: ${channels}, events: ${events}, ${size(bytes)})`);
    return 0;
  },

  restore(args, settings) {
    const [file] = filesOf("restore", args, 1) as [string];
    const db = fileOf(settings);
    const { channels, events } = restore(file, db);
    console.log(`restored to ${db} (channels: ${channels}, events: ${events}); when PERE starts, events get new ids`);
    return 0;
  },

  compact(args, settings) {
    filesOf("compact", args, 0);
    const db = fileOf(settings);
    const { before, after } = compact(db);
    console.log(`compacted ${db} from ${size(before)} to ${size(after)}`);
    return 0;
  },

  help() {
    console.log(helpText());
    return 0;
  },
};

/** Columns that every terminal has. */
const COLUMNS = 100;

/** Breaks a sentence into lines, each indented by this many spaces. */
function indented(text: string, spaces: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1)!.length + word.length + spaces >= COLUMNS) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trimStart());
  }
  return lines.map((line) => " ".repeat(spaces) + line).join("\n");
}

/** All commands, flags and settings. */
function helpText(): string {
  const called = Object.entries(USAGE).map(
    ([name, { args, what }]) => `  ${`${name} ${args}`.trim()}\n${indented(what, 6)}`,
  );
  const settings = Object.entries(SETTINGS).map(
    ([name, setting]) =>
      `  ${`${name}  ${usualOf(setting)}`.trim()}\n${indented(setting.meaning.replaceAll("`", ""), 6)}`,
  );
  return `bun run index.ts [--host ADDRESS] [--port PORT]    starts PERE; -o and -p for short

Commands, which run instead of the service:

${called.join("\n")}

Settings, as environment variables:

${settings.join("\n")}`;
}

/** A setting's default, in words. */
export const usualOf = ({ usual, notLocal }: Setting): string =>
  notLocal ? `${usual}; on loopback without tokens 0` : usual;
