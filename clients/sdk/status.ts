/**
 * The status of a listener, which can be read, subscribed to, or followed with `for await`.
 */
import type { Transport } from "./model.ts";
import { call, resolvable } from "./timing.ts";

/** The status of a listener. Counts are current; times are milliseconds since 1970. */
export interface Status {
  /**
   * `connected`: the feed is open. `behind`: reading is paused, because events arrive faster than `onEvent` handles them. `offline`: no connection;
   * the next attempt is at `retryAt`. `closed`: the listener has ended.
   */
  readonly state: "connecting" | "connected" | "behind" | "offline" | "closed";
  readonly transport: Transport | null;
  /** The device's name, as the service knows it. */
  readonly device: string | null;
  /** Another tab of this device holds the connection and runs its `onEvent`. */
  readonly isElsewhere: boolean;
  /** Events that wait for `onEvent`. */
  readonly waiting: number;
  /** Events that `onEvent` is handling. */
  readonly open: number;
  /** Receipts that the service has not answered. */
  readonly unsent: number;
  /** Receipts that the service refused for good. */
  readonly rejected: number;
  /** When the service was last heard from. */
  readonly heardAt: number | null;
  readonly retryAt: number | null;
  /** The last error; null when there is none any more. */
  readonly error: string | null;
}

/** A value that changes: read it, subscribe to it, or follow it with `for await`. */
export interface Observable<Value> extends AsyncIterable<Value> {
  get(): Value;
  /** Calls `listener` with the value now and after each change. @returns a function that ends the subscription */
  subscribe(listener: (value: Value) => void): () => void;
}

export class StatusSignal implements Observable<Status> {
  #value: Status;
  readonly #listeners = new Set<(value: Status) => void>();

  constructor(value: Status) {
    this.#value = value;
  }

  get(): Status {
    return this.#value;
  }

  /** Sets the value and calls the subscribers. @returns false when nothing has changed */
  set(value: Status): boolean {
    const names = Object.keys(value) as (keyof Status)[];
    if (names.every((name) => value[name] === this.#value[name])) return false;
    this.#value = value;
    for (const listener of [...this.#listeners]) call(() => listener(value));
    return true;
  }

  subscribe(listener: (value: Status) => void): () => void {
    this.#listeners.add(listener);
    listener(this.#value);
    return () => void this.#listeners.delete(listener);
  }

  /** The value now and after changes, until it is closed. A slow reader gets only the newest value. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Status> {
    let changed = resolvable();
    const stop = this.subscribe(() => changed.resolve());
    try {
      for (;;) {
        await changed.promise;
        changed = resolvable();
        const value = this.#value;
        yield value;
        if (value.state === "closed") return;
      }
    } finally {
      stop();
    }
  }
}
