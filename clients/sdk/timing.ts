/**
 * Timeouts and their defaults, pauses between attempts, and tools for promises.
 */

/** The longest delay that `setTimeout` takes, in milliseconds. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** Times in milliseconds. The defaults suit the internet; tests use shorter ones. */
export interface Timing {
  /** Without a first byte, or a first message on a socket, for this long, the next transport is tried. */
  readonly firstByteMs: number;
  /** A feed that is silent for this long is dead: the service sends something every 15 s. */
  readonly silentMs: number;
  /** A client that fell back from SSE tries it again after this; the time doubles with each attempt, up to 16 times. */
  readonly againMs: number;
  /** The time limit of one request, in addition to what it asks the service to wait. */
  readonly requestMs: number;
  /** The longest pause between two attempts, unless the service asks for a longer one. */
  readonly pauseMsMax: number;
  /** Receipts are collected for this long, then sent together. */
  readonly gatherMs: number;
  /** When the listener ends, unsent receipts and open events have this long to finish. */
  readonly flushMs: number;
  /** If the tab that holds the connection does not answer for this long, another tab takes over. */
  readonly leaderMs: number;
}

export const TIMING: Timing = {
  firstByteMs: 5_000,
  silentMs: 40_000,
  againMs: 60_000,
  requestMs: 15_000,
  pauseMsMax: 30_000,
  gatherMs: 25,
  flushMs: 5_000,
  leaderMs: 15_000,
};

/** Calls `run` after `ms` milliseconds. @returns a function that cancels it */
export type SetTimer = (run: () => void, ms: number) => () => void;

export const setTimer: SetTimer = (run, ms) => {
  const timer = setTimeout(run, ms);
  return () => clearTimeout(timer);
};

/** A pause that can be cut short. */
export class Sleep {
  readonly #setTimer: SetTimer;
  #wake: (() => void) | undefined;

  constructor(setTimer: SetTimer) {
    this.#setTimer = setTimer;
  }

  sleep(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        stop();
        signal.removeEventListener("abort", done);
        this.#wake = undefined;
        resolve();
      };
      const stop = this.#setTimer(done, ms);
      signal.addEventListener("abort", done);
      this.#wake = done;
    });
  }

  /** Ends the pause now, if there is one. */
  wake(): void {
    this.#wake?.();
  }
}

/**
 * The pause after a number of failures in a row, in milliseconds: a random part of a time that doubles with each failure, up to `maxMs`.
 * (Full jitter: Brooker, "Exponential Backoff and Jitter", 2015.)
 */
export const jitterMs = (random: () => number, failures: number, fromMs: number, maxMs: number): number =>
  random() * Math.min(maxMs, fromMs * 2 ** Math.min(failures, 16));

/** A promise with its `resolve` and `reject`. */
export interface Resolvable<Value> {
  readonly promise: Promise<Value>;
  readonly resolve: (value: Value) => void;
  readonly reject: (error: unknown) => void;
}

export function resolvable<Value = void>(): Resolvable<Value> {
  let ends: Omit<Resolvable<Value>, "promise">;
  const promise = new Promise<Value>((resolve, reject) => (ends = { resolve, reject }));
  return { promise, ...ends! };
}

/** Resolves when the signal is aborted; at once, if it already is. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener("abort", () => resolve()));
}

/** Calls a function of the application. An error of it, now or later, is printed on the console and changes nothing here. */
export function call(run: () => unknown): void {
  const print = (error: unknown): void => console.error(error);
  try {
    void Promise.resolve(run()).catch(print);
  } catch (error) {
    print(error);
  }
}
