/**
 * What travels between publishers, the service and devices, and the error that the service answers with.
 */

/** An event as a device gets it. `data` is what its publisher sent. */
export interface PushedEvent<Data = unknown> {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  /** ISO 8601, as `deadline`. */
  readonly at: string;
  readonly type?: string;
  /** By when a final receipt is owed. */
  readonly deadline?: string;
  readonly data: Data;
  /** `data` as its publisher wrote it: with the numbers that JavaScript would round, and with keys that stand there twice. */
  readonly text: string;
}

/** What a device says of an event, forwards only; `done` and `failed` are final. */
export type Word = "received" | "working" | "done" | "failed";

export const isWord = (value: unknown): value is Word =>
  value === "received" || value === "working" || value === "done" || value === "failed";

/** A device's word on an event, as it goes out. */
export interface Receipt {
  readonly event: string;
  readonly channel: string;
  readonly status: Word;
  /** Any JSON of at most 4 KiB. */
  readonly detail?: unknown;
  /** The device's own clock, ISO 8601. */
  readonly at: string;
}

/** Events between `after` and `from` are no longer kept, or belong to a log that was lost. */
export interface Gap {
  readonly channel: string;
  readonly after: string;
  readonly from: string;
}

/** How often each word was said on an event; they add up to the devices that it was addressed to. */
export type Tally = Readonly<Record<"pending" | Word | "missing", number>>;

export type Transport = "sse" | "websocket" | "longpoll";

/** The service said no, and will say it again. */
export class PereError extends Error {
  override readonly name = "PereError";
  /** The HTTP status. */
  readonly status: number;
  /** The problem document (RFC 9457), or what else came. */
  readonly problem: unknown;

  constructor(status: number, message: string, problem: unknown) {
    super(message);
    this.status = status;
    this.problem = problem;
  }
}
