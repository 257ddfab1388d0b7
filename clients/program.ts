/**
 * What the programs on the SDK share: checked arguments, output whose errors are noticed, an orderly end on signals, and a name for a device that has none.
 */
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, hostname } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs, type ParseArgsConfig } from "node:util";

/** An invalid argument or option. The program ends with status 2. */
export class UsageError extends Error {}

/** Prints the error in one line and ends the program: with status 2 for a `UsageError`, else with 1. */
export function fail(program: string, error: unknown): never {
  const { message } = error instanceof Error ? error : new Error(String(error));
  console.error(`${program}: ${message.split("\n", 1)[0]}`);
  process.exit(error instanceof UsageError ? 2 : 1);
}

/** Reads the arguments. @param usage what `--help` prints @throws UsageError for an unknown option, an invalid one, or too many arguments */
export function readArgs<Options extends NonNullable<ParseArgsConfig["options"]>>(
  options: Options,
  positionalsMax: number,
  usage: string,
) {
  const parse = () => {
    try {
      return parseArgs({ options: { ...options, help: { type: "boolean" as const } }, allowPositionals: true });
    } catch (error) {
      // The sentences after the first are for programmers.
      throw new UsageError((error as Error).message.split(/\. |\n/, 1)[0]);
    }
  };
  const { values, positionals } = parse();
  if ("help" in values && values.help === true) {
    console.log(usage);
    process.exit(0);
  }
  if (positionals.length > positionalsMax)
    throw new UsageError(`too many arguments: remove "${positionals[positionalsMax]}", or see --help`);
  return { values: values as ReturnType<typeof parseArgs<{ options: Options }>>["values"], positionals };
}

/** A channel's or a device's name. @returns undefined when there is none @throws UsageError when it is empty or has control characters */
export function nameOf(what: "channel" | "device", text: string | undefined): string | undefined {
  if (text === undefined || (text.trim() !== "" && !/[\0-\x1f]/.test(text))) return text;
  throw new UsageError(
    `the ${what}'s name must not be empty or contain control characters, not ${JSON.stringify(text)}`,
  );
}

/** A whole number. @throws UsageError when it is not one from `from` to `to` */
export function wholeOf(name: string, text: string, from: number, to: number): number {
  if (/^[0-9]{1,9}$/.test(text) && Number(text) >= from && Number(text) <= to) return Number(text);
  throw new UsageError(`--${name} must be a whole number from ${from} to ${to}, not "${text}"`);
}

/** A number of seconds. @returns undefined when there is none @throws UsageError */
export function secondsOf(name: string, text: string | undefined): number | undefined {
  if (text === undefined || /^[0-9]{1,9}(\.[0-9]{1,6})?$/.test(text)) return text === undefined ? text : Number(text);
  throw new UsageError(`--${name} must be a number of seconds, not "${text}"`);
}

/** A JSON text without the whitespace between its tokens. */
export const onOneLine = (json: string): string => json.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1");

/** An object as JSON on one line, with one more member whose value is a JSON text. */
export const withText = (value: object, member: string, json: string): string =>
  JSON.stringify({ ...value, [member]: 0 }).replace(/0\}$/, () => `${onOneLine(json)}}`);

/** Standard output. A line counts as printed when the system has accepted it. After an error nothing more is printed. */
export class Printer {
  readonly #broken: (why: string) => void;
  #isBroken = false;

  /** @param broken called once, with the reason, when nothing more can be printed */
  constructor(broken: (why: string) => void) {
    this.#broken = broken;
    process.stdout.on("error", (error) => this.#end(error)); // Reported here; the promise of the line rejects.
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
    promise.catch(() => {}); // A caller that does not wait for it gets `broken`.
    return promise;
  }
}

/** Calls `end` at the first INT, TERM or HUP. The second one ends the program at once. */
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

/** The proxy for a URL, from the environment, as Bun's `fetch` reads it. Bun's WebSocket needs it as an option. @returns null: none */
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
 * The name of a device that was given none: the host's name and a random part, created once and stored in the user's state folder (XDG Base Directory).
 * @throws UsageError when it can't be stored: it would be another device each time
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
    const stored = read();
    if (stored !== null && NAME.test(stored)) return stored;
    if (stored !== null) throw new Error("it does not contain a device's name");
    const host = hostname()
      .replace(/[^A-Za-z0-9._:~-]/g, "-")
      .slice(0, 100);
    const fresh = `${path}.${process.pid}`;
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(fresh, `${host || "host"}-${crypto.randomUUID().slice(0, 8)}\n`);
    try {
      linkSync(fresh, path); // Atomic: if two programs start at once, both use the first name.
    } catch (error) {
      if ((error as { code?: string }).code !== "EEXIST") throw error;
    } finally {
      rmSync(fresh, { force: true });
    }
    return read()!;
  } catch (error) {
    throw new UsageError(
      `give the device a name: a generated one can't be stored in ${path} (${(error as Error).message})`,
    );
  }
}
