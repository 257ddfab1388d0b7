/**
 * The data types of PERE, their limits, and how they are written out.
 *
 * A channel is two logs. `Event`s go to devices, `Receipt`s come back to publishers. Both are numbered by `seq`, from 1, without gaps, and identified
 * outside as `<epoch>-<seq>`. Untrusted input becomes these types in `parsing.ts`. There is one error type, `PereError`.
 *
 * This file imports nothing and knows neither stores nor HTTP.
 */

// ---------------------------------------------------------------------------------------------------------------- limits

/** An event's JSON text. Push carries news, not files; over a bad connection 64 KiB still take about a second. */
export const EVENT_BYTES_MAX = 64 * 1024;
/** A receipt's detail: an outcome, an error message, a number; not a document. */
export const DETAIL_BYTES_MAX = 4 * 1024;
/** Receipts per request: a full outbox after an hour offline, and still one short commit. */
export const RECEIPTS_MAX = 1_000;
/** Lines per NDJSON push; they are stored in one commit. */
export const LINES_MAX = 1_000;
/** A request body: a batch of ordinary events. A batch of 64 KiB events needs several requests. */
export const BODY_BYTES_MAX = 8 * 1024 * 1024;
/** Names in `to`; long names reach the 16 KiB limit of request headers first. For more devices, use a separate channel. */
export const TO_MAX = 1_000;
/** Names in `to` times lines of the batch: each is a row in one commit, which other requests wait for. */
export const TARGETS_MAX = 20_000;
/** A hook's URL, secret and kinds. */
export const HOOK_BYTES_MAX = 8 * 1024;
/** Channels per feed: what a browser page watches over one connection. */
export const CHANNELS_MAX = 16;
/** Rows per page. */
export const PAGE_MAX = 1_000;
/** Default number of rows per page. */
export const PAGE_DEFAULT = 100;
/** Nesting of a JSON text: deeper texts overflow some parsers. */
export const JSON_DEPTH_MAX = 64;
/** A long-poll must end before proxies close the connection. */
export const POLL_SECONDS_MAX = 60;
/** Less than the clock's resolution is meaningless. */
export const TTL_SECONDS_MIN = 0.001;
/** A year; longer than any sensible time to live. */
export const TTL_SECONDS_MAX = 366 * 24 * 3600;
/** A deadline or a reminder interval: same limits as a time to live. */
export const DEADLINE_SECONDS_MIN = TTL_SECONDS_MIN;
export const DEADLINE_SECONDS_MAX = TTL_SECONDS_MAX;
/** Shorter reminder intervals would arrive before a device can answer. */
export const REMIND_SECONDS_MIN = 1;
export const REMIND_SECONDS_MAX = TTL_SECONDS_MAX;
/** A push that waits for receipts holds its connection; proxies must allow this long. */
export const WAIT_SECONDS_MAX = 120;
/** How long an idempotency key is remembered. */
export const KEY_MEMORY_MS = 24 * 3600 * 1000;
/** Characters of an idempotency key: contract. */
export const KEY_CHARACTERS_MAX = 255;

// ---------------------------------------------------------------------------------------------------------------- errors

/** Error codes. `http/problem.ts` maps them to HTTP statuses. */
export type Code =
  | "malformed"
  | "unauthorized"
  | "forbidden"
  | "unknown"
  | "wrongMethod"
  | "slow"
  | "conflict"
  | "tooLarge"
  | "wrongType"
  | "refused"
  | "tooMany"
  | "away"
  | "full"
  | "inside";

/** One invalid field: its path (a query parameter, a header, or a JSON pointer) and the reason. */
export interface Fault {
  readonly path: string;
  readonly message: string;
}

/** The only error type: a code for programs, a message for people. The underlying error is in `cause`, for the log. */
export class PereError extends Error {
  readonly code: Code;
  readonly faults: readonly Fault[];

  constructor(code: Code, message: string, faults: readonly Fault[] = [], cause?: unknown) {
    super(message, { cause });
    this.name = "PereError";
    this.code = code;
    this.faults = faults;
  }
}

// ------------------------------------------------------------------------------------------------------------ data types

/** Characters of a channel's or a device's name: contract. */
export const NAME_CHARACTERS_MAX = 128;
export const CHANNEL = /^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/;
export const DEVICE = /^[A-Za-z0-9._:~-]{1,128}$/;

/**
 * Event names that EventSource fires itself (WHATWG HTML, 9.2): an event of type `error` would look like a broken connection, one of type `message`
 * like an event without a type.
 */
export const EVENT_SOURCE_TYPES: readonly string[] = ["open", "message", "error"];

/** One of a channel's two logs. */
export type Kind = "events" | "receipts";

/** A position in a log: after entry `seq`. Each epoch of a channel is unique, so a position from another epoch never matches. */
export interface Position {
  readonly epoch: string;
  readonly seq: number;
}

export const POSITION = /^([0-9a-z]{1,16})-(0|[1-9][0-9]{0,14})$/;

/** Parses an event's id; null if it is malformed. */
export function parsePosition(text: string): Position | null {
  const match = POSITION.exec(text);
  return match ? { epoch: match[1]!, seq: Number(match[2]) } : null;
}

/** A push request. `data` is the publisher's own JSON text, never re-encoded. `ttl`, `deadline` and `remind` are in seconds. */
export interface EventDraft {
  readonly type: string | null;
  readonly data: string;
  readonly to: readonly string[] | null;
  readonly ttl: number | null;
  readonly deadline: number | null;
  readonly remind: number | null;
}

/** A stored event. Times are milliseconds since 1970, `remind` is milliseconds. `to` lists the audience, in no order; null: all enrolled devices. */
export interface Event {
  readonly seq: number;
  readonly at: number;
  readonly type: string | null;
  readonly data: string;
  readonly to: readonly string[] | null;
  readonly expires: number | null;
  readonly deadline: number | null;
  readonly remind: number | null;
  /** The id of the schedule that it was pushed for; absent: none. */
  readonly scheduled?: string;
}

/** Until when an event is sent again, milliseconds since 1970; null: as long as it is kept. */
export const remindedUntil = ({ deadline, expires }: Pick<Event, "deadline" | "expires">): number | null =>
  deadline === null || expires === null ? (deadline ?? expires) : Math.min(deadline, expires);

/**
 * The status of a device on an event, in the order in which it advances. `pending`: no receipt; `missing` is set by the server; `done` and `failed`
 * are equal and final.
 */
export const STATES = ["pending", "received", "working", "missing", "done", "failed"] as const;
export type State = (typeof STATES)[number];
/** A status that a device can send. */
export type Status = "received" | "working" | "done" | "failed";

/** The index of a state in `STATES`: how states are stored and compared. */
export const rank = (state: State): number => STATES.indexOf(state);
/** The lowest final rank. */
export const FINAL = rank("done");

/** A receipt as sent by a device. `detail` is a JSON text; `deviceAt` is the device's own clock in milliseconds. */
export interface ReceiptDraft {
  readonly event: Position;
  readonly device: string;
  readonly status: Status;
  readonly detail: string | null;
  readonly deviceAt: number | null;
}

/** A rejected receipt, with its index in the request. */
export interface Rejection {
  readonly index: number;
  readonly event: string | null;
  readonly reason: string;
}

/** How many devices sent each final status. */
export interface Outcome {
  readonly done: number;
  readonly failed: number;
}

/**
 * An entry of the receipts log: a recorded receipt; or, with the status `pending` and `completes`, a note that every addressed device has sent a
 * final receipt. The note follows the last receipt, or the retirement of the last device that owed one. `event` is the event's `seq`. In logs of
 * earlier versions, `completes` is part of the receipt itself.
 */
export interface Receipt {
  readonly seq: number;
  readonly event: number;
  readonly device: string;
  readonly status: State;
  readonly detail: string | null;
  readonly at: number;
  readonly deviceAt: number | null;
  readonly late: boolean;
  readonly completes: Outcome | null;
}

/** How many devices an event was addressed to, and how many have each status; `pending` is the rest. */
export interface Tally {
  readonly addressed: number;
  readonly received: number;
  readonly working: number;
  readonly missing: number;
  readonly done: number;
  readonly failed: number;
}

/** A device's status on an event. Fields other than `device` and `status` are null while it is `pending`. */
export interface Row {
  readonly device: string;
  readonly status: State;
  readonly detail: string | null;
  readonly at: number | null;
  readonly deviceAt: number | null;
  readonly late: boolean;
}

/** A device's status on one of the kept events that are addressed to it. `pushedAt` and `deadline` in milliseconds since 1970. */
export interface HistoryRow extends Omit<Row, "device"> {
  readonly seq: number;
  readonly type: string | null;
  readonly pushedAt: number;
  readonly deadline: number | null;
}

/** A device's enrolment in a channel: when it was enrolled and last gave a sign of life, milliseconds since 1970; null: never. */
export interface DeviceEnrolment {
  readonly device: string;
  readonly enrolledAt: number;
  readonly seenAt: number | null;
}

/** An enrolled device. `pending`: how many kept, unexpired events it owes a final receipt for. */
export interface EnrolledDevice extends DeviceEnrolment {
  readonly pending: number;
}

/** The orders of a list of devices: by name; by how many receipts they owe, most first; by their last sign of life, the oldest first. */
export const DEVICE_ORDERS = ["name", "pending", "seen"] as const;
export type DeviceOrder = (typeof DEVICE_ORDERS)[number];

// -------------------------------------------------------------------------------------------------------- times, ids, texts

/** A time this many seconds after another, in milliseconds. */
export const afterSeconds = (at: number, seconds: number | null): number | null =>
  seconds === null ? null : at + Math.round(seconds * 1000);

/** A new epoch: 41 random bits, unique among all channels. */
export function newEpoch(): string {
  const [a, b] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
  return ((a & 0x1ff) * 2 ** 32 + b).toString(36).padStart(8, "0");
}

/** The last formatted time: the same time is often formatted repeatedly. */
let written = { ms: 0, text: new Date(0).toISOString() };

/** ISO 8601, UTC, milliseconds. */
export function iso(ms: number): string {
  if (ms !== written.ms) written = { ms, text: new Date(ms).toISOString() };
  return written.text;
}

/** `<epoch>-<seq>`: the id of an event or receipt, or a position. */
export const id = (epoch: string, seq: number): string => `${epoch}-${seq}`;

/** Positions as one opaque text, safe in an SSE `id:` line and in a `Last-Event-ID` header. */
export const positionsText = (positions: readonly Position[]): string =>
  positions.map(({ epoch, seq }) => id(epoch, seq)).join(".");

const head = (channel: string, epoch: string, event: Event): string =>
  `{"id":"${epoch}-${event.seq}","channel":"${channel}","seq":${event.seq},"at":"${iso(event.at)}"` +
  (event.type === null ? "" : `,"type":"${event.type}"`) +
  (event.deadline === null ? "" : `,"deadline":"${iso(event.deadline)}"`) +
  (event.scheduled === undefined ? "" : `,"scheduled":"${event.scheduled}"`);

/** The event as devices get it: one JSON object with the publisher's unchanged bytes, without its audience. */
export const eventText = (channel: string, epoch: string, event: Event): string =>
  `${head(channel, epoch, event)},"data":${event.data}}`;

/** The tally as in the API, all six states; they add up to `addressed`. */
export function tallyCounts(tally: Tally): Record<State, number> {
  const { addressed, received, working, missing, done, failed } = tally;
  const pending = addressed - received - working - missing - done - failed;
  return { pending, received, working, done, failed, missing };
}

/** Whether every addressed device sent a final receipt. */
export const isComplete = (tally: Tally): boolean => tally.done + tally.failed === tally.addressed;

/** The event as its publisher gets it: with audience, tally and expiry. `connected`: how many of the addressed devices are connected now. */
export function eventStateText(channel: string, epoch: string, event: Event, tally: Tally, connected: number): string {
  const about = {
    ...(event.expires === null ? {} : { expiresAt: iso(event.expires) }),
    ...(event.remind === null ? {} : { remind: event.remind / 1000 }),
    ...(event.to === null ? {} : { to: event.to }),
    audience: { addressed: tally.addressed, connected },
    receipts: tallyCounts(tally),
    complete: isComplete(tally),
  };
  return `${head(channel, epoch, event)},${JSON.stringify(about).slice(1, -1)},"data":${event.data}}`;
}

/** The note that an event is complete, as publishers get it: with the tally, which has only final statuses. */
export function completeText(channel: string, epoch: string, { event, at, completes }: Receipt): string {
  const { done, failed } = completes!;
  const receipts = tallyCounts({ addressed: done + failed, received: 0, working: 0, missing: 0, done, failed });
  return JSON.stringify({ event: id(epoch, event), channel, at: iso(at), receipts, complete: true });
}

/** A receipt as publishers get it. */
export const receiptText = (channel: string, epoch: string, receipt: Receipt): string =>
  `{"id":"${epoch}-${receipt.seq}","event":"${epoch}-${receipt.event}","channel":"${channel}",` +
  `"device":"${receipt.device}","status":"${receipt.status}","detail":${receipt.detail ?? "null"},"at":"${iso(receipt.at)}",` +
  `"deviceAt":${receipt.deviceAt === null ? "null" : `"${iso(receipt.deviceAt)}"`},"late":${receipt.late}}`;
