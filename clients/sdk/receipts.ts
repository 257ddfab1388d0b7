/**
 * `receipts`: what devices answer, as it comes, for publishers.
 */
import { Feed, WAITING_MAX } from "./feed.ts";
import type { Gap, Tally, Word } from "./model.ts";
import { type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { type Promised, promised } from "./timing.ts";

/** A receipt as publishers receive it. The service itself sends `missing` when a deadline passes. */
export interface DeviceReceipt {
  readonly kind: "receipt";
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly device: string;
  readonly status: Word | "missing";
  readonly detail: unknown;
  /** `detail` as its device wrote it, with numbers that JavaScript would round. */
  readonly text: string;
  readonly at: string;
  readonly deviceAt: string | null;
  readonly late: boolean;
}

/** Every device that the event was addressed to has sent its final receipt. */
export interface Complete {
  readonly kind: "complete";
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly at: string;
  readonly receipts: Tally;
  readonly complete: true;
}

/** A receipt, the completion of an event, or a gap. */
export type ReceiptMessage = DeviceReceipt | Complete | (Gap & { readonly kind: "gap" });

export interface ReceiptsOptions extends ConnectionOptions {
  /** One, or up to 16. */
  readonly channel: string | readonly string[];
  /** Where it starts: `now` (the default), `earliest`, or the `position` of an earlier call. */
  readonly since?: "now" | "earliest" | (string & {}) | undefined;
}

/** Receipts as they arrive. */
export interface Receipts extends AsyncIterableIterator<ReceiptMessage> {
  /** Resolves when connected: no receipt after that is missed. @throws PereError when the service refuses for good */
  readonly ready: Promise<void>;
  /** The position behind the last receipt that was read, for the `since` of a later call. */
  readonly position: string;
  /** The last error; null once all is well again. */
  readonly error: string | null;
}

/**
 * Follows the receipts of channels, from now on or from a position, and reconnects when the connection breaks.
 * It ends with the signal, or with the loop that reads it. @throws PereError, in the loop, when the service refuses for good
 */
export function receipts(options: ReceiptsOptions): Receipts {
  return new Follower(options);
}

class Follower implements Receipts {
  readonly ready: Promise<void>;
  readonly #ending = new AbortController();
  readonly #feed: Feed;
  readonly #said: { readonly said: ReceiptMessage; readonly last: string }[] = [];
  readonly #signal: AbortSignal | undefined;
  readonly #end = (): void => {
    this.#ending.abort();
    this.#room?.resolve();
  };
  #position: string;
  #news: Promised<void> = promised();
  #room: Promised<void> | null = null;
  #failure: unknown = null;
  #isOver = false;

  constructor(options: ReceiptsOptions) {
    const { channel, since, signal } = options;
    const ready = promised();
    this.ready = ready.promise;
    this.ready.catch(() => {});
    const channels = typeof channel === "string" ? channel.split(",") : channel;
    // A position of before is where it goes on, so that a gap is told.
    const isPlace = since !== undefined && since !== "now" && since !== "earliest";
    this.#position = isPlace ? since : "";
    this.#feed = new Feed(
      new ServiceClient(options),
      "feedback",
      channels,
      since === "earliest" ? { since } : {},
      this.#position,
      {
        take: (value) => this.#add({ kind: "receipt", ...value } as DeviceReceipt),
        own: (name, body) => {
          if (name === "ready") ready.resolve();
          if (name === "complete") this.#add({ kind: "complete", ...body } as Complete);
          if (name === "gap") this.#add({ kind: "gap", ...body } as unknown as ReceiptMessage);
        },
        room: () => this.#hasRoom(),
        changed: () => {},
      },
    );
    this.#signal = signal;
    if (signal?.aborted) this.#end();
    signal?.addEventListener("abort", this.#end);
    void this.#feed
      .run(this.#ending.signal)
      .catch((error: unknown) => {
        this.#failure = error;
        ready.reject(error);
      })
      .finally(() => this.#over());
  }

  get position(): string {
    return this.#position;
  }

  get error(): string | null {
    return this.#feed.error;
  }

  #over(): void {
    this.#isOver = true;
    this.#signal?.removeEventListener("abort", this.#end);
    this.#news.resolve();
  }

  #add(said: ReceiptMessage): void {
    // The position behind it is known when the next one comes; until then it would come again.
    this.#said.push({ said, last: this.#feed.last });
    this.#news.resolve();
  }

  #hasRoom(): Promise<void> | null {
    if (this.#said.length < WAITING_MAX || this.#ending.signal.aborted) return null;
    this.#room ??= promised();
    return this.#room.promise;
  }

  async next(): Promise<IteratorResult<ReceiptMessage>> {
    for (;;) {
      const first = this.#said.shift();
      if (this.#said.length <= WAITING_MAX / 2) {
        this.#room?.resolve();
        this.#room = null;
      }
      if (first) {
        this.#position = this.#said.length === 0 ? this.#feed.last : this.#said[0]!.last;
        return { done: false, value: first.said };
      }
      if (this.#isOver) {
        if (this.#failure !== null) throw this.#failure;
        return { done: true, value: undefined };
      }
      this.#news = promised();
      await this.#news.promise;
    }
  }

  async return(): Promise<IteratorResult<ReceiptMessage>> {
    this.#end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
