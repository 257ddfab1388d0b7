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
  /** What the event is about: a newer event with the same key supersedes it. */
  readonly key?: string;
  /** The scheduled push that it was pushed for. */
  readonly scheduled?: string;
  /** How often it was sent to this device, from 2, if the device deferred it or failed and is to try again. */
  readonly round?: number;
  readonly data: Data;
  /** `data` as its publisher wrote it, with numbers that JavaScript would round and with duplicate keys. */
  readonly text: string;
}

/** The round that an event came with: 1 if it has none. */
export const roundOf = ({ round = 1 }: Pick<PushedEvent, "round">): number => round;

/**
 * The status of an event on a device. It only moves forward; `done` and `failed` are final. `deferred`: not now, it is sent again later. A `failed` with
 * attempts left is shown as `deferred`.
 */
export type Word = "received" | "working" | "deferred" | "done" | "failed";

/** A status that ends the work on an event, for good or for this round. */
export type Outcome = "deferred" | "done" | "failed";

export const isOutcome = (value: unknown): value is Outcome =>
  value === "deferred" || value === "done" || value === "failed";

export const isWord = (value: unknown): value is Word =>
  value === "received" || value === "working" || isOutcome(value);

/** A receipt for an event, as a device sends it. */
export interface Receipt {
  readonly event: string;
  readonly channel: string;
  readonly status: Word;
  /** Any JSON, at most 4 KiB. */
  readonly detail?: unknown;
  /** Time by the device's own clock, ISO 8601. */
  readonly at: string;
  /** The round that it answers. Without one it answers the current round. */
  readonly round?: number;
  /** Seconds until the event is sent again, with `deferred`, or with a `failed` that has attempts left. */
  readonly after?: number;
  /** False: this `failed` is final, even if the event has attempts left. */
  readonly retry?: false;
}

/** Events between `after` and `from` are missing: they are no longer kept, or belong to a log that was lost. */
export interface Gap {
  readonly channel: string;
  readonly after: string;
  readonly from: string;
}

/** Why an event was withdrawn: its publisher took it back, or pushed a newer one with the same key. A newer service may have further reasons. */
export type WithdrawalReason = "withdrawn" | "superseded" | (string & {});

/** An event was withdrawn: nobody needs to work on it any more. */
export interface Withdrawal {
  /** The id of this notice, which is an entry of the log of events. */
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  /** ISO 8601. */
  readonly at: string;
  /** The id of the event. */
  readonly withdrawn: string;
  readonly reason: WithdrawalReason;
  /** The event that superseded it. */
  readonly by?: string;
  /** What its publisher says about it, for people. */
  readonly note?: string;
}

/** Why a final receipt is late: the deadline had passed (`missing`), or the event had been withdrawn, and why. */
export type LateReason = "missing" | WithdrawalReason;

/** The number of devices per status. They add up to the number of devices that the event was addressed to. */
export type Tally = Readonly<Record<"pending" | Word | "missing" | "withdrawn", number>>;

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

/** The shortest and the longest time that an event can be deferred, in seconds: the service's limits. */
const AFTER_SECONDS_MIN = 1;
const AFTER_SECONDS_MAX = 86_400;

/** A time within the limits. @returns undefined: the service's default */
const afterOf = (seconds: number | undefined): number | undefined =>
  typeof seconds !== "number" || Number.isNaN(seconds)
    ? undefined
    : Math.min(AFTER_SECONDS_MAX, Math.max(AFTER_SECONDS_MIN, seconds));

/** For `onEvent` to throw: not now. The service sends the event again after some time, and `onEvent` runs again. */
export class Deferred extends Error {
  override readonly name = "Deferred";
  /** Seconds; undefined: the service's default, 60. */
  readonly after: number | undefined;
  readonly detail: unknown;

  /** @param after seconds, 1 to 86,400; cut to these limits @param detail of the receipt: any JSON, at most 4 KiB */
  constructor(after?: number, detail?: unknown) {
    super(typeof detail === "string" ? detail : "the event was deferred");
    this.after = afterOf(after);
    this.detail = detail;
  }
}

export interface FailedOptions {
  /** False: the failure is final, even if the event has attempts left. */
  readonly retry?: boolean | undefined;
  /** Seconds until the next attempt, 1 to 86,400; cut to these limits. The default is the service's: 30, doubled each time. */
  readonly after?: number | undefined;
}

/** For `onEvent` to throw: it failed, with a detail of any JSON; and whether, and when, the device may try again. Other errors are `failed` too. */
export class Failed extends Error {
  override readonly name = "Failed";
  readonly detail: unknown;
  readonly after: number | undefined;
  readonly retry: boolean;

  /** @param detail of the receipt: any JSON, at most 4 KiB */
  constructor(detail?: unknown, options?: FailedOptions) {
    super(typeof detail === "string" ? detail : "the event failed");
    this.detail = detail;
    this.retry = options?.retry ?? true;
    this.after = afterOf(options?.after);
  }
}
