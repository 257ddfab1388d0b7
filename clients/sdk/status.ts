/**
 * The status of a listener, which can be read, subscribed to, or followed with `for await`.
 */
import type { Transport } from "./model.ts";
import { call, promised } from "./timing.ts";

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
  /** Receipts that the service has not answered for. */
  readonly unsent: number;
  /** Receipts that the service refused for good. */
  readonly rejected: number;
  /** When the service was last heard from. */
  readonly heardAt: number | null;
  readonly retryAt: number | null;
  /** The last error; null once all is well again. */
  readonly error: string | null;
}

/** A value that changes: read it, subscribe to it, or follow it with `for await`. */
export interface Observable<Value> extends AsyncIterable<Value> {
  get(): Value;
  /** Calls `hear` with the value now and after each change. @returns a function that ends the subscription */
  subscribe(hear: (value: Value) => void): () => void;
}

export class StatusSignal implements Observable<Status> {
  #value: Status;
  readonly #hearers = new Set<(value: Status) => void>();

  constructor(value: Status) {
    this.#value = value;
  }

  get(): Status {
    return this.#value;
  }

  set(value: Status): boolean {
    const names = Object.keys(value) as (keyof Status)[];
    if (names.every((name) => value[name] === this.#value[name])) return false;
    this.#value = value;
    for (const hear of [...this.#hearers]) call(() => hear(value));
    return true;
  }

  subscribe(hear: (value: Status) => void): () => void {
    this.#hearers.add(hear);
    hear(this.#value);
    return () => void this.#hearers.delete(hear);
  }

  /** Each change, the ones between two looks left out, until it is closed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Status> {
    let changed = promised();
    const stop = this.subscribe(() => changed.resolve());
    try {
      for (;;) {
        await changed.promise;
        changed = promised();
        const value = this.#value;
        yield value;
        if (value.state === "closed") return;
      }
    } finally {
      stop();
    }
  }
}
