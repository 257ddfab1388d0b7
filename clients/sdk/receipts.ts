/**
 * `receipts`: the receipts of devices as they arrive, for publishers.
 */
import { Feed, WAITING_MAX } from "./feed.ts";
import type { Gap, Tally, WithdrawalReason, Word } from "./model.ts";
import { type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { type Resolvable, resolvable } from "./timing.ts";

/**
 * A receipt as publishers receive it. The service itself sends `missing` when a deadline passes. `deferred` is also a `failed` that will be tried again.
 */
export interface DeviceReceipt {
  readonly kind: "receipt";
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly device: string;
  readonly status: Word | "missing";
  readonly detail: unknown;
  /** The JSON text of `detail` as its device wrote it, with numbers that JavaScript would round. */
  readonly text: string;
  readonly at: string;
  readonly deviceAt: string | null;
  readonly late: boolean;
  /** How often the event was sent to the device, from 1. */
  readonly round: number;
  /** The device's failures so far, with this one. */
  readonly attempt: number;
}

/** What is known of an event as a whole: an entry of the log of receipts, told once. */
interface EventNotice {
  /** The id of this entry. */
  readonly id: string;
  readonly event: string;
  readonly channel: string;
  readonly at: string;
  readonly receipts: Tally;
}

/** Every device that the event was addressed to has sent its final receipt, or the event was withdrawn. */
export interface Complete extends EventNotice {
  readonly kind: "complete";
  readonly complete: true;
}

/** An event with a deadline is complete, or its deadline has passed. */
export interface Settled extends EventNotice {
  readonly kind: "settled";
  readonly complete: boolean;
}

/** An event was withdrawn, and with it each device without a final receipt that is not missing. `complete` follows. */
export interface Withdrawn extends EventNotice {
  readonly kind: "withdrawn";
  readonly reason: WithdrawalReason;
  /** The event that superseded it. */
  readonly by?: string;
  readonly note?: string;
}

/** A receipt, what became of an event as a whole, or a gap. */
export type ReceiptMessage = DeviceReceipt | Complete | Settled | Withdrawn | (Gap & { readonly kind: "gap" });

/** What an entry of an earlier version of the service lacks. */
const BEFORE_ROUNDS = { round: 1, attempt: 0 };

/** Control messages that are told to the program. */
const TOLD: readonly string[] = ["complete", "settled", "withdrawn", "gap"] satisfies ReceiptMessage["kind"][];

export interface ReceiptsOptions extends ConnectionOptions {
  /** One, or up to 16. */
  readonly channel: string | readonly string[];
  /** Where it starts: `now` (the default), `earliest`, or the `position` of an earlier call. */
  readonly since?: "now" | "earliest" | (string & {}) | undefined;
}

/** Receipts as they arrive. */
export interface Receipts extends AsyncIterableIterator<ReceiptMessage> {
  /** Resolves when connected: no later receipt is missed. @throws PereError when the service refuses for good */
  readonly ready: Promise<void>;
  /** The position after the last receipt that was read, for the option `since` of a later call. */
  readonly position: string;
  /** The last error; null when there is none any more. */
  readonly error: string | null;
}

/**
 * Follows the receipts of channels, from now on or from a position, and reconnects when the connection breaks.
 * It ends with the signal, or when the loop that reads it ends. @throws PereError, in the loop, when the service refuses for good
 */
export function receipts(options: ReceiptsOptions): Receipts {
  return new ReceiptsFollower(options);
}

class ReceiptsFollower implements Receipts {
  readonly ready: Promise<void>;
  readonly #closing = new AbortController();
  readonly #feed: Feed;
  /** Messages that were not read yet, each with the position before it. */
  readonly #queue: { readonly message: ReceiptMessage; readonly last: string }[] = [];
  readonly #signal: AbortSignal | undefined;
  readonly #close = (): void => {
    this.#closing.abort();
    this.#room?.resolve();
  };
  #position: string;
  #arrival: Resolvable<void> = resolvable();
  #room: Resolvable<void> | null = null;
  #failure: unknown = null;
  #isEnded = false;

  constructor(options: ReceiptsOptions) {
    const { channel, since, signal } = options;
    const ready = resolvable();
    this.ready = ready.promise;
    this.ready.catch(() => {});
    const channels = typeof channel === "string" ? channel.split(",") : channel;
    // An earlier position is sent as the last event id, so that the service reports a gap.
    const isPosition = since !== undefined && since !== "now" && since !== "earliest";
    this.#position = isPosition ? since : "";
    this.#feed = new Feed(
      new ServiceClient(options),
      "feedback",
      channels,
      since === "earliest" ? { since } : {},
      this.#position,
      {
        entry: (value) => this.#add({ kind: "receipt", ...BEFORE_ROUNDS, ...value } as DeviceReceipt),
        control: (name, body) => {
          if (name === "ready") ready.resolve();
          if (TOLD.includes(name)) this.#add({ kind: name, ...body } as unknown as ReceiptMessage);
        },
        room: () => this.#hasRoom(),
        changed: () => {},
      },
    );
    this.#signal = signal;
    if (signal?.aborted) this.#close();
    signal?.addEventListener("abort", this.#close);
    void this.#feed
      .run(this.#closing.signal)
      .catch((error: unknown) => {
        this.#failure = error;
        ready.reject(error);
      })
      .finally(() => this.#ended());
  }

  get position(): string {
    return this.#position;
  }

  get error(): string | null {
    return this.#feed.error;
  }

  #ended(): void {
    this.#isEnded = true;
    this.#signal?.removeEventListener("abort", this.#close);
    this.#arrival.resolve();
  }

  #add(message: ReceiptMessage): void {
    // The position after this message is known when the next one arrives.
    this.#queue.push({ message, last: this.#feed.last });
    this.#arrival.resolve();
  }

  #hasRoom(): Promise<void> | null {
    if (this.#queue.length < WAITING_MAX || this.#closing.signal.aborted) return null;
    this.#room ??= resolvable();
    return this.#room.promise;
  }

  async next(): Promise<IteratorResult<ReceiptMessage>> {
    for (;;) {
      const first = this.#queue.shift();
      if (this.#queue.length <= WAITING_MAX / 2) {
        this.#room?.resolve();
        this.#room = null;
      }
      if (first) {
        this.#position = this.#queue.length === 0 ? this.#feed.last : this.#queue[0]!.last;
        return { done: false, value: first.message };
      }
      if (this.#isEnded) {
        if (this.#failure !== null) throw this.#failure;
        return { done: true, value: undefined };
      }
      this.#arrival = resolvable();
      await this.#arrival.promise;
    }
  }

  async return(): Promise<IteratorResult<ReceiptMessage>> {
    this.#close();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
