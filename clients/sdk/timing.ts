/**
 * Timeouts and their defaults, pauses between attempts, and small tools for promises.
 */

/** The longest that a timer can be set for. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** Times in milliseconds; the defaults are right for the internet, tests want them shorter. */
export interface Timing {
  /** Without a first byte, or a socket's first word, for so long: it does not come through this way. */
  readonly firstByteMs: number;
  /** A feed this quiet is dead: the service says something every 15 s. */
  readonly silentMs: number;
  /** After this, SSE is tried again by who had to do without; twice as long each time, up to sixteenfold. */
  readonly againMs: number;
  /** What one request may take, beside what it waits for. */
  readonly requestMs: number;
  /** The longest pause between two attempts, where the service asks for no longer one. */
  readonly pauseMsMax: number;
  /** For so long receipts are gathered before they go out together. */
  readonly gatherMs: number;
  /** At the end, receipts that are unsent and events that are open have so long. */
  readonly flushMs: number;
  /** A tab that has the connection, is asked and gives no sign of life for so long is replaced by another tab. */
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

/** Sleeps, unless it is woken. */
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

/** A promise and its ends. */
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

/** Calls what the application gave. What it throws there, now or later, is shown and stops nothing. */
export function call(run: () => unknown): void {
  const tell = (error: unknown): void => console.error(error);
  try {
    void Promise.resolve(run()).catch(tell);
  } catch (error) {
    tell(error);
  }
}
