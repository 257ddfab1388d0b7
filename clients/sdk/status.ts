/**
 * The status of a listener, which can be read, subscribed to, or followed with `for await`.
 */
import type { Transport } from "./model.ts";
import { call, promised } from "./timing.ts";

/** How a listener is. Counts are of this moment; times are milliseconds since 1970. */
export interface Status {
  /**
   * `connected`: the feed is open. `behind`: it is left unread, because more has come than `onEvent` gets done. `offline`: it could not be had, and
   * is tried again at `retryAt`. `closed`: it has ended.
   */
  readonly state: "connecting" | "connected" | "behind" | "offline" | "closed";
  readonly transport: Transport | null;
  /** The device's name, as the service knows it. */
  readonly device: string | null;
  /** Another tab of this device has the connection, and runs its `onEvent`. */
  readonly isElsewhere: boolean;
  /** Events that have come and were not begun. */
  readonly waiting: number;
  /** Events that are being worked on. */
  readonly open: number;
  /** Receipts that the service has not answered for. */
  readonly unsent: number;
  /** Receipts that it refused for good. */
  readonly rejected: number;
  /** The last sign of life of the service. */
  readonly heardAt: number | null;
  readonly retryAt: number | null;
  /** What went wrong last; null since it went well. */
  readonly error: string | null;
}

/** Something that changes, to look at, to be told of, or to follow with `for await`. */
export interface Observable<Value> extends AsyncIterable<Value> {
  get(): Value;
  /** `hear` is called with the value now and after each change. @returns ends that */
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
