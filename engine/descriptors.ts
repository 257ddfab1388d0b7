/**
 * How many files and connections the process may have open, and whether that is nearly so many.
 *
 * A process without a free descriptor can take no connection, read no file and look up no name, and the connections that it can't take keep it
 * busy. So feeds, which stay, are refused well before that, and what is left is for whatever comes and goes.
 */
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";

/** Descriptors that feeds leave to others: an eighth of all, within these. */
const KEPT_MIN = 16;
const KEPT_MAX = 1_024;
/** What the process itself has open, where that can't be counted. */
const OWN = 32;

/** Errors that say that there is no descriptor left: of this process, of the machine. */
const CODES: readonly unknown[] = ["EMFILE", "ENFILE"];

/** Whether an error, or what caused it, is that no descriptor was left. */
export const isOutOfDescriptors = (error: unknown): boolean =>
  error instanceof Error && (CODES.includes((error as NodeJS.ErrnoException).code) || isOutOfDescriptors(error.cause));

/** How many descriptors this process may have. */
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

/** How many it has now. */
function open(): number {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return OWN;
  }
}

export class Descriptors {
  readonly limit: number;
  /** The lowest that is kept for others than feeds. */
  readonly #kept: number;
  /** Feeds that there may be at most. */
  readonly feeds: number;

  /** @param limit as the system says, unless a test says otherwise */
  constructor(limit = limitOfProcess()) {
    this.limit = limit;
    this.#kept = limit - Math.min(KEPT_MAX, Math.max(KEPT_MIN, Math.floor(limit / 8)));
    this.feeds = Math.max(1, this.#kept - open());
  }

  /** Whether only those are left that are kept. The system gives the lowest that is free, so one that is opened tells. */
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
/** Those of this process. Asked for at the start, while the limit can be read. */
export const descriptors = (): Descriptors => (own ??= new Descriptors());
