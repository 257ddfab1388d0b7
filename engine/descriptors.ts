/**
 * How many files and connections the process may open, and whether the limit is close.
 *
 * A process without free descriptors can accept no connection, read no file and look up no name, and the pending connections keep it busy. So feeds,
 * which are long-lived, are refused well before the limit; the rest is for short requests.
 */
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";

/** Descriptors reserved for other uses than feeds: an eighth of the limit, within these bounds. */
const KEPT_MIN = 16;
const KEPT_MAX = 1_024;
/** The process's own descriptors, if they can't be counted. */
const OWN = 32;

/** Errors that mean that no descriptor is left: in this process, in the system. */
const CODES: readonly unknown[] = ["EMFILE", "ENFILE"];

/** Whether an error or one of its causes is a lack of descriptors. */
export const isOutOfDescriptors = (error: unknown): boolean =>
  error instanceof Error && (CODES.includes((error as NodeJS.ErrnoException).code) || isOutOfDescriptors(error.cause));

/** How many descriptors this process may open. */
function limitOfProcess(): number {
  try {
    const text =
      process.platform === "linux"
        ? /^Max open files\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]
        : Bun.spawnSync(["/bin/sh", "-c", "ulimit -n"]).stdout.toString().trim();
    return text !== undefined && /^\d+$/.test(text) ? Number(text) : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

/** How many are open now. */
function open(): number {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return OWN;
  }
}

export class Descriptors {
  readonly limit: number;
  /** The lowest descriptor that is reserved for other uses than feeds. */
  readonly #kept: number;
  /** Maximum number of feeds. */
  readonly feeds: number;

  /** @param limit the system's, except in tests */
  constructor(limit = limitOfProcess()) {
    this.limit = limit;
    this.#kept = limit - Math.min(KEPT_MAX, Math.max(KEPT_MIN, Math.floor(limit / 8)));
    this.feeds = Math.max(1, this.#kept - open());
  }

  /** Whether only reserved descriptors are left. The system assigns the lowest free one, so opening a file shows it. */
  get short(): boolean {
    if (!Number.isFinite(this.limit)) return false;
    try {
      const lowest = openSync("/dev/null", "r");
      closeSync(lowest);
      return lowest >= this.#kept;
    } catch (error) {
      return isOutOfDescriptors(error);
    }
  }
}

let own: Descriptors | undefined;
/** Those of this process. Created at startup, while the limit can be read. */
export const descriptors = (): Descriptors => (own ??= new Descriptors());
