/**
 * Timeouts and their defaults, pauses between attempts, and small tools for promises.
 */

/** The longest delay that a timer takes. */
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

  wake(): void {
    this.#wake?.();
  }
}

/** Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): anything up to twice as long each time. */
export const jitterMs = (random: () => number, failures: number, fromMs: number, mostMs: number): number =>
  random() * Math.min(mostMs, fromMs * 2 ** Math.min(failures, 16));

/** A promise with its `resolve` and `reject`. */
export interface Promised<Value> {
  readonly promise: Promise<Value>;
  readonly resolve: (value: Value) => void;
  readonly reject: (error: unknown) => void;
}

export function promised<Value = void>(): Promised<Value> {
  let ends: Omit<Promised<Value>, "promise">;
  const promise = new Promise<Value>((resolve, reject) => (ends = { resolve, reject }));
  return { promise, ...ends! };
}

/** Calls the application's code. What it throws, now or later, goes to the console and stops nothing. */
export function call(run: () => unknown): void {
  const tell = (error: unknown): void => console.error(error);
  try {
    void Promise.resolve(run()).catch(tell);
  } catch (error) {
    tell(error);
  }
}
