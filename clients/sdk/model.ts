/**
 * The data that publishers, the service and devices exchange, and the error for a refused request.
 */

/** An event as a device receives it. `data` is what its publisher sent. */
export interface PushedEvent<Data = unknown> {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  /** ISO 8601, as `deadline`. */
  readonly at: string;
  readonly type?: string;
  /** When the final receipt is due. */
  readonly deadline?: string;
  /** The event that was pushed again as this one. */
  readonly again?: string;
  readonly data: Data;
  /** `data` as its publisher wrote it, with numbers that JavaScript would round and with duplicate keys. */
  readonly text: string;
}

/** The status of an event on a device. It only moves forward; `done` and `failed` are final. */
export type Word = "received" | "working" | "done" | "failed";

export const isWord = (value: unknown): value is Word =>
  value === "received" || value === "working" || value === "done" || value === "failed";

/** A receipt for an event, as a device sends it. */
export interface Receipt {
  readonly event: string;
  readonly channel: string;
  readonly status: Word;
  /** Any JSON, at most 4 KiB. */
  readonly detail?: unknown;
  /** Time by the device's own clock, ISO 8601. */
  readonly at: string;
}

/** Events between `after` and `from` are missing: they are no longer kept, or belong to a log that was lost. */
export interface Gap {
  readonly channel: string;
  readonly after: string;
  readonly from: string;
}

/** The number of devices per status. They add up to the number of devices that the event was addressed to. */
export type Tally = Readonly<Record<"pending" | Word | "missing", number>>;

export type Transport = "sse" | "websocket" | "longpoll";

/** The service refused a request, and would refuse it again. */
export class PereError extends Error {
  override readonly name = "PereError";
  /** The HTTP status. */
  readonly status: number;
  /** The problem document (RFC 9457). */
  readonly problem: unknown;

  constructor(status: number, message: string, problem: unknown) {
    super(message);
    this.status = status;
    this.problem = problem;
  }
}
