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
/**
 * Names in `to` times lines of the batch, and devices that an event is pushed to again: each is a row in one commit or one script, which other requests
 * wait for.
 */
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
/** Seconds after which a deferred event comes again; and where the device does not say. */
export const AFTER_SECONDS_MIN = 1;
export const AFTER_SECONDS_MAX = 86_400;
export const AFTER_SECONDS_DEFAULT = 60;
/** How often a device may try an event. With fewer than two attempts nothing would be tried again. */
export const ATTEMPTS_MIN = 2;
export const ATTEMPTS_MAX = 20;
/** Characters of the note of a withdrawal: a sentence for the person at the device. */
export const NOTE_CHARACTERS_MAX = 256;
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

/** The key of an event, which a later event with the same key supersedes. */
export const EVENT_KEY = /^[A-Za-z0-9._:~-]{1,128}$/;

/**
 * A push request. `data` is the publisher's own JSON text, never re-encoded. `ttl`, `deadline` and `remind` are in seconds. `attempts`: how often a
 * device may try before its `failed` is final; null: once.
 */
export interface EventDraft {
  readonly type: string | null;
  readonly data: string;
  readonly to: readonly string[] | null;
  readonly ttl: number | null;
  readonly deadline: number | null;
  readonly remind: number | null;
  readonly key: string | null;
  readonly attempts: number | null;
  /** The event that it repeats, by its `seq`; absent: none. */
  readonly again?: number;
  /** Which enrolled devices it is for, as `tags.ts` reads it; null: all, or those in `to`. */
  readonly where: string | null;
}

/** Why an event ended before all of its devices had a final word: its publisher took it back, or pushed a newer one with the same key. */
export const END_REASONS = ["withdrawn", "superseded", "met", "unmet"] as const;
export type EndReason = (typeof END_REASONS)[number];

/** Why a final word is late. The order is that of the codes under which reasons are stored, from 1 on; a code never changes. */
export const LATE_REASONS = ["missing", ...END_REASONS] as const;
export type LateReason = (typeof LATE_REASONS)[number];

/** How an event was withdrawn. `seq` is that of the control entry, `by` that of the event that superseded it. */
export interface Withdrawal {
  readonly seq: number;
  /** Milliseconds since 1970. */
  readonly at: number;
  readonly reason: EndReason;
  readonly by: number | null;
  readonly note: string | null;
}

/** A stored event. Times are milliseconds since 1970, `remind` is milliseconds. `to` lists the audience, in no order; null: all enrolled devices, or those that `where` fitted when it was pushed. */
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
  /** The `seq` of the event that it repeats; absent: none. */
  readonly again?: number;
  readonly key: string | null;
  readonly attempts: number | null;
  readonly where: string | null;
  /** Null: it was not withdrawn. */
  readonly withdrawn: Withdrawal | null;
}

/**
 * An entry of the events log that is no event: it tells that an earlier one, `withdraws`, was withdrawn. Nobody owes a receipt for it. `to` and
 * `expires` are those of that event; once it is no longer kept, `to` may lack names.
 */
export interface ControlEntry extends Withdrawal {
  readonly withdraws: number;
  readonly to: readonly string[] | null;
  readonly expires: number | null;
  /** Its event has a `where`. */
  readonly hasWhere: boolean;
  /** Some device had given a word on the event by then. */
  readonly isAnswered: boolean;
}

/** An entry of the events log. */
export type LogEntry = Event | ControlEntry;

export const isControl = (entry: LogEntry): entry is ControlEntry => "withdraws" in entry;

/** Until when an event is sent again, milliseconds since 1970; null: as long as it is kept. */
export const remindedUntil = ({ deadline, expires }: Pick<Event, "deadline" | "expires">): number | null =>
  deadline === null || expires === null ? (deadline ?? expires) : Math.min(deadline, expires);

/**
 * The states of a device on an event, in the order of the codes under which stores keep them: a code never changes. `pending`: no receipt. `deferred`:
 * not now, send it again later. `missing` and `withdrawn` are the server's words. `done` and `failed` are final, and the first one stands.
 * `receipt-rules.ts` says which word advances which state.
 */
export const STATES = ["pending", "received", "working", "missing", "done", "failed", "deferred", "withdrawn"] as const;
export type State = (typeof STATES)[number];
/** What a device can say. */
export const STATUSES = ["received", "working", "deferred", "done", "failed"] as const;
export type Status = (typeof STATUSES)[number];

/** The code under which a state is stored: its index in `STATES`. Codes have no order. */
export const stateCode = (state: State): number => STATES.indexOf(state);
export const isFinal = (state: State): state is "done" | "failed" => state === "done" || state === "failed";

/**
 * A receipt as sent by a device. `detail` is a JSON text; `deviceAt` is the device's own clock in milliseconds. `after`: when to send the event again,
 * in seconds; null: the default. `round`: which sending it answers; null: the current one. `retry`: a `failed` may be tried again, if the event has
 * attempts left.
 */
export interface ReceiptDraft {
  readonly event: Position;
  readonly device: string;
  readonly status: Status;
  readonly detail: string | null;
  readonly deviceAt: number | null;
  readonly after: number | null;
  readonly round: number | null;
  readonly retry: boolean;
}

/** A rejected receipt, with its index in the request. */
export interface Rejection {
  readonly index: number;
  readonly event: string | null;
  readonly reason: string;
}

/** A final word that came late, with its index in the request: recorded, or a repetition of one that was. */
export interface LateReceipt {
  readonly index: number;
  readonly event: string;
  readonly reason: LateReason;
}

/** How many devices an event was addressed to, and how many are in each state; `pending` is the rest. */
export interface Tally {
  readonly addressed: number;
  readonly received: number;
  readonly working: number;
  readonly deferred: number;
  readonly missing: number;
  readonly done: number;
  readonly failed: number;
  readonly withdrawn: number;
  /** The event was withdrawn, so it is complete, whatever the counts. */
  readonly isOver: boolean;
}

/** The tally of an event that was just pushed. */
export const freshTally = (addressed: number): Tally => ({
  addressed,
  received: 0,
  working: 0,
  deferred: 0,
  missing: 0,
  done: 0,
  failed: 0,
  withdrawn: 0,
  isOver: false,
});

/** What an entry of the receipts log says of an event as a whole, with its tally at that moment. */
export type EventNote =
  | { readonly kind: "complete" | "settled"; readonly tally: Tally }
  | { readonly kind: "withdrawn"; readonly tally: Tally; readonly withdrawal: Withdrawal };

/**
 * An entry of the receipts log: a recorded receipt; or, with the state `pending`, a note on the event as a whole. `complete`: every addressed device
 * has a final word, or the event was withdrawn. `settled`, for events with a deadline: it is complete, or the deadline has passed. Each note comes
 * once per event. The note `complete` follows the last receipt, the retirement of the last device that owed one, or the note `withdrawn`; `settled`
 * follows `complete`, or the last `missing`. `device` is the one whose receipt or retirement completed the event; "" where none did. `event` is the
 * event's `seq`. In logs of earlier versions, the note `complete` is part of the receipt itself.
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
  /** The sending that it answers, from 1; a note has 1. */
  readonly round: number;
  /** The device's failures so far, this one included; a note has 0. */
  readonly attempt: number;
  readonly note: EventNote | null;
}

/** The parts of a note that say nothing of a device. */
export const NOTE = {
  status: "pending",
  detail: null,
  deviceAt: null,
  late: false,
  round: 1,
  attempt: 0,
} as const satisfies Partial<Receipt>;

/**
 * A device's state on an event. `at` is when it got there; `detail` and `deviceAt` come with the device's own words only. All three are null while it
 * is `pending`. `deferred` has the new `round` as soon as that has begun.
 */
export interface Row {
  readonly device: string;
  readonly status: State;
  readonly detail: string | null;
  readonly at: number | null;
  readonly deviceAt: number | null;
  readonly late: boolean;
  readonly round: number;
  readonly attempt: number;
  /** While it is deferred, until its next round begins: when that will be, milliseconds since 1970. */
  readonly due?: number;
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
  (event.scheduled === undefined ? "" : `,"scheduled":"${event.scheduled}"`) +
  (event.again === undefined ? "" : `,"again":"${epoch}-${event.again}"`) +
  (event.key === null ? "" : `,"key":"${event.key}"`);

/**
 * The event as devices get it: one JSON object with the publisher's unchanged bytes, without its audience.
 * @param round how often it was sent to this device, where it is sent again after a deferral
 */
export const eventText = (channel: string, epoch: string, event: Event, round = 1): string =>
  `${head(channel, epoch, event)}${round === 1 ? "" : `,"round":${round}`},"data":${event.data}}`;

/** How a withdrawal is told, wherever it is. */
const withdrawalBody = (epoch: string, { reason, by, note }: Withdrawal) => ({
  reason,
  ...(by === null ? {} : { by: id(epoch, by) }),
  ...(note === null ? {} : { note }),
});

/** A control entry as devices get it. */
export const controlText = (channel: string, epoch: string, control: ControlEntry): string =>
  JSON.stringify({
    id: id(epoch, control.seq),
    channel,
    seq: control.seq,
    at: iso(control.at),
    withdrawn: id(epoch, control.withdraws),
    ...withdrawalBody(epoch, control),
  });

/** The tally as in the API, all eight states; they add up to `addressed`. */
export function tallyCounts(tally: Tally): Record<State, number> {
  const { addressed, received, working, deferred, missing, done, failed, withdrawn } = tally;
  const pending = addressed - received - working - deferred - missing - done - failed - withdrawn;
  return { pending, received, working, deferred, done, failed, missing, withdrawn };
}

/** Whether every addressed device has a final word, or the event was withdrawn. */
export const isComplete = (tally: Tally): boolean => tally.isOver || tally.done + tally.failed === tally.addressed;

/** How many devices still owe a final word. */
export const outstandingOf = (tally: Tally): number =>
  isComplete(tally) ? 0 : tally.addressed - tally.done - tally.failed;

/**
 * The event as its publisher gets it: with audience, tally and expiry. It has no more names than a push may give: rows list them all.
 * @param connected how many of the addressed devices are connected now
 * @param now milliseconds since 1970
 */
export function eventStateText(
  channel: string,
  epoch: string,
  event: Event,
  tally: Tally,
  connected: number,
  now: number,
): string {
  const { withdrawn } = event;
  const complete = isComplete(tally);
  const about = {
    ...(event.expires === null ? {} : { expiresAt: iso(event.expires) }),
    ...(event.remind === null ? {} : { remind: event.remind / 1000 }),
    ...(event.attempts === null ? {} : { attempts: event.attempts }),
    ...(event.to === null || event.to.length > TO_MAX ? {} : { to: event.to }),
    ...(event.where === null ? {} : { where: event.where }),
    ...(withdrawn === null ? {} : { withdrawn: { at: iso(withdrawn.at), ...withdrawalBody(epoch, withdrawn) } }),
    audience: { addressed: tally.addressed, connected },
    receipts: tallyCounts(tally),
    complete,
    settled: complete || (event.deadline !== null && event.deadline <= now),
  };
  return `${head(channel, epoch, event)},${JSON.stringify(about).slice(1, -1)},"data":${event.data}}`;
}

/** A note on an event, as publishers get it, without its own id. */
export function noteText(channel: string, epoch: string, { event, at, note }: Receipt): string {
  const { tally } = note!;
  const about = { event: id(epoch, event), channel, at: iso(at) };
  const receipts = tallyCounts(tally);
  if (note!.kind === "withdrawn")
    return JSON.stringify({ ...about, ...withdrawalBody(epoch, note!.withdrawal), receipts });
  return JSON.stringify({ ...about, receipts, complete: isComplete(tally) });
}

/** A receipt as publishers get it. */
export const receiptText = (channel: string, epoch: string, receipt: Receipt): string =>
  `{"id":"${epoch}-${receipt.seq}","event":"${epoch}-${receipt.event}","channel":"${channel}",` +
  `"device":"${receipt.device}","status":"${receipt.status}","detail":${receipt.detail ?? "null"},"at":"${iso(receipt.at)}",` +
  `"deviceAt":${receipt.deviceAt === null ? "null" : `"${iso(receipt.deviceAt)}"`},"late":${receipt.late},` +
  `"round":${receipt.round},"attempt":${receipt.attempt}}`;
