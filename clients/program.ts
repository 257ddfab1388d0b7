/**
 * What the programs beside the SDK have in common: options that are right or refused, lines that are known to be printed, an end that loses nothing, and a
 * device's own name, made once and kept.
 */
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, hostname } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs, type ParseArgsConfig } from "node:util";

/** Options that can't be right. The program ends with status 2. */
export class UsageError extends Error {}

/** Ends the program with a sentence: with status 2 where its options are wrong, else with 1. */
export function fail(program: string, error: unknown): never {
  const { message } = error instanceof Error ? error : new Error(String(error));
  console.error(`${program}: ${message.split("\n", 1)[0]}`);
  process.exit(error instanceof UsageError ? 2 : 1);
}

/** Reads the arguments. @param usage what `--help` prints @throws UsageError: an option that there is not, or one with a wrong form; too many arguments */
export function readArgs<Options extends NonNullable<ParseArgsConfig["options"]>>(
  options: Options,
  positionalsMax: number,
  usage: string,
) {
  const parse = () => {
    try {
      return parseArgs({ options: { ...options, help: { type: "boolean" as const } }, allowPositionals: true });
    } catch (error) {
      // What follows the first sentence is for those who wrote the program.
      throw new UsageError((error as Error).message.split(/\. |\n/, 1)[0]);
    }
  };
  const { values, positionals } = parse();
  if ("help" in values && values.help === true) {
    console.log(usage);
    process.exit(0);
  }
  if (positionals.length > positionalsMax)
    throw new UsageError(`"${positionals[positionalsMax]}" is one argument too many; --help says what it takes`);
  return { values: values as ReturnType<typeof parseArgs<{ options: Options }>>["values"], positionals };
}

/** @returns undefined where it was not given @throws UsageError when it is empty or has characters that none has */
export function nameOf(what: "channel" | "device", text: string | undefined): string | undefined {
  if (text === undefined || (text.trim() !== "" && !/[\0-\x1f]/.test(text))) return text;
  throw new UsageError(`the ${what} must have a name, not ${JSON.stringify(text)}`);
}

/** @throws UsageError when it is no whole number within these */
export function wholeOf(name: string, text: string, from: number, to: number): number {
  if (/^[0-9]{1,9}$/.test(text) && Number(text) >= from && Number(text) <= to) return Number(text);
  throw new UsageError(`--${name} must be a whole number from ${from} to ${to}, not "${text}"`);
}

/** @throws UsageError when it is no number of seconds */
export function secondsOf(name: string, text: string | undefined): number | undefined {
  if (text === undefined || /^[0-9]{1,9}(\.[0-9]{1,6})?$/.test(text)) return text === undefined ? text : Number(text);
  throw new UsageError(`--${name} must be a number of seconds, not "${text}"`);
}

/** A JSON text on one line: nothing but blanks and line breaks between its parts are left out. */
export const onOneLine = (json: string): string => json.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1");

/** A JSON object with one more member, which is a JSON text already and stays what it is. */
export const withText = (value: object, member: string, json: string): string =>
  JSON.stringify({ ...value, [member]: 0 }).replace(/0\}$/, () => `${onOneLine(json)}}`);

/** Standard output. A line counts as printed when the system has taken it; one that it does not take is the last. */
export class Printer {
  readonly #broken: (why: string) => void;
  #isBroken = false;

  /** @param broken told once why nothing can be printed any more */
  constructor(broken: (why: string) => void) {
    this.#broken = broken;
    process.stdout.on("error", (error) => this.#end(error)); // Told here; the line's own promise rejects.
  }

  #end(error: Error): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#broken(`nothing more can be printed (${(error as { code?: string }).code ?? error.message})`);
  }

  /** @throws Error when it could not be printed */
  print(text: string): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    process.stdout.write(text, (error) => {
      if (!error) return resolve();
      this.#end(error);
      reject(error);
    });
    promise.catch(() => {}); // Whoever does not wait for it is told by `broken`.
    return promise;
  }
}

/** Calls `end` at the first of the signals that mean an end; the second one ends the program at once. */
export function onEnd(end: () => void): void {
  let isEnding = false;
  for (const [signal, number] of [
    ["SIGINT", 2],
    ["SIGTERM", 15],
    ["SIGHUP", 1],
  ] as const)
    process.on(signal, () => {
      if (isEnding) process.exit(128 + number);
      isEnding = true;
      end();
    });
}

/** The proxy that the environment names for an address, as Bun's `fetch` takes it; its WebSocket takes none by itself. Null: there is none. */
export function proxyOf(url: string): string | null {
  const { protocol, hostname: host, port } = new URL(url);
  const { env } = process;
  const proxy =
    (protocol === "https:" ? env.HTTPS_PROXY || env.https_proxy : env.HTTP_PROXY || env.http_proxy) ||
    env.ALL_PROXY ||
    env.all_proxy;
  if (!proxy) return null;
  const direct = (env.NO_PROXY ?? env.no_proxy ?? "").split(",").map((name) => name.trim().replace(/^\./, ""));
  const isDirect = direct.some(
    (name) =>
      name === "*" || (name !== "" && (host === name || host.endsWith(`.${name}`) || `${host}:${port}` === name)),
  );
  return isDirect ? null : proxy;
}

const NAME = /^[A-Za-z0-9._:~-]{1,128}$/;

/**
 * What a device on this machine is called where nobody says: its host's name and something that no other machine has, made once and kept in the user's
 * state folder (XDG Base Directory).
 * @throws UsageError when it can't be kept: it would be another device each time
 */
export function ownName(): string {
  const folder = process.env.XDG_STATE_HOME || join(homedir(), ".local", "state");
  const path = join(folder, "pere", "device");
  const read = (): string | null => {
    try {
      return readFileSync(path, "utf8").trim();
    } catch (error) {
      if ((error as { code?: string }).code === "ENOENT") return null;
      throw error;
    }
  };
  try {
    const kept = read();
    if (kept !== null && NAME.test(kept)) return kept;
    if (kept !== null) throw new Error("it holds no device's name");
    const host = hostname()
      .replace(/[^A-Za-z0-9._:~-]/g, "-")
      .slice(0, 100);
    const fresh = `${path}.${process.pid}`;
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(fresh, `${host || "host"}-${crypto.randomUUID().slice(0, 8)}\n`);
    try {
      linkSync(fresh, path); // Whole, and the first one's where two begin at once.
    } catch (error) {
      if ((error as { code?: string }).code !== "EEXIST") throw error;
    } finally {
      rmSync(fresh, { force: true });
    }
    return read()!;
  } catch (error) {
    throw new UsageError(
      `give the device a name: one of its own can't be kept in ${path} (${(error as Error).message})`,
    );
  }
}
