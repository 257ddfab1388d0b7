/**
 * The data types of PERE, their limits, and the parsing of untrusted input.
 *
 * A channel is two logs. `Event`s go to devices, `Receipt`s come back to publishers. Both are numbered by `seq`, from 1, without gaps, and identified
 * outside as `<epoch>-<seq>`. All input passes one of the `read…` functions below exactly once; code behind them can trust the result. They reject
 * input with a `PereError`, the only error type.
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

const malformed = (path: string, message: string): PereError =>
  new PereError("malformed", `${path}: ${message}`, [{ path, message }]);
const refused = (path: string, message: string): PereError =>
  new PereError("refused", `${path}: ${message}`, [{ path, message }]);

// ------------------------------------------------------------------------------------------------------------ data types

/** One of a channel's two logs. */
export type Kind = "events" | "receipts";

/** A position in a log: after entry `seq`. Each epoch of a channel is unique, so a position from another epoch never matches. */
export interface Position {
  readonly epoch: string;
  readonly seq: number;
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

/** An enrolled device. `pending`: how many kept, unexpired events it owes a final receipt for. */
export interface EnrolledDevice {
  readonly device: string;
  readonly enrolledAt: number;
  readonly seenAt: number | null;
  readonly pending: number;
}

/**
 * Whether a device's addresses belong to several machines, usually two devices configured with the same name. Tabs of a browser share one address. A
 * machine may have one IPv4 and one IPv6 address, so these are not compared. Behind one NAT, or a proxy that is not in PERE_PROXIES, all devices have
 * the same address. A device that changed networks counts at both until its old connection is closed.
 */
export function isShared(addresses: readonly string[]): boolean {
  const ipv6 = addresses.filter((address) => address.includes(":")).length;
  return ipv6 > 1 || addresses.length - ipv6 > 1;
}

// ----------------------------------------------------------------------------------------------------------------- output

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

const head = (channel: string, epoch: string, event: Event): string =>
  `{"id":"${epoch}-${event.seq}","channel":"${channel}","seq":${event.seq},"at":"${iso(event.at)}"` +
  (event.type === null ? "" : `,"type":"${event.type}"`) +
  (event.deadline === null ? "" : `,"deadline":"${iso(event.deadline)}"`);

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

// ------------------------------------------------------------------------------------------------------------------- input

export const CHANNEL = /^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/;
export const DEVICE = /^[A-Za-z0-9._:~-]{1,128}$/;
const TYPE = /^[A-Za-z0-9._-]{1,64}$/;
/**
 * Event names that EventSource fires itself (WHATWG HTML, 9.2): an event of type `error` would look like a broken connection, one of type `message`
 * like an event without a type.
 */
export const EVENT_SOURCE_TYPES: readonly string[] = ["open", "message", "error"];
export const POSITION = /^([0-9a-z]{1,16})-(0|[1-9][0-9]{0,14})$/;
const KEY = /^[\x20-\x7e]{1,255}$/;
const NUMBER = /^[0-9]{1,12}(\.[0-9]{1,6})?$/;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)$/;

/** @throws PereError malformed */
export function readChannel(text: string): string {
  if (CHANNEL.test(text)) return text;
  throw malformed("channel", "a channel's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ - and begins with a letter or digit");
}

/** Channel names, separated by commas, at most `CHANNELS_MAX`; duplicates are removed. @throws PereError */
export function readChannels(text: string): string[] {
  const names = [...new Set(text.split(","))];
  if (names.length > CHANNELS_MAX) throw refused("channel", `a feed takes at most ${CHANNELS_MAX} channels`);
  return names.map(readChannel);
}

/** @throws PereError malformed */
export function readDevice(text: string, path = "device"): string {
  if (DEVICE.test(text)) return text;
  throw malformed(path, "a device's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
}

/** Device names, separated by commas; duplicates are removed. @throws PereError */
export function readTo(text: string): string[] {
  const names = [...new Set(text.split(","))];
  if (names.length > TO_MAX)
    throw refused("to", `at most ${TO_MAX} devices can be named; use a separate channel for more`);
  return names.map((name) => readDevice(name, "to"));
}

/** @throws PereError malformed; refused for the reserved prefix `pere.` and for EventSource's own names */
export function readType(text: string): string {
  if (!TYPE.test(text)) throw malformed("type", "a type is 1 to 64 of A-Z a-z 0-9 . _ -");
  if (text.startsWith("pere.")) throw refused("type", "types that begin with pere. are reserved");
  if (EVENT_SOURCE_TYPES.includes(text))
    throw refused(
      "type",
      `"${text}" is a reserved name of EventSource; choose another type, for example order.${text}`,
    );
  return text;
}

/** A number of seconds, decimals allowed, within bounds. @throws PereError malformed or refused */
export function readSeconds(text: string, path: string, min: number, max: number): number {
  if (!/^-?[0-9]/.test(text) || !Number.isFinite(Number(text))) throw malformed(path, "must be a number of seconds");
  const seconds = Number(text);
  if (!NUMBER.test(text) || seconds < min || seconds > max)
    throw refused(path, `must be from ${min} to ${max} seconds, with at most 6 decimals`);
  return seconds;
}

/** A page's length, 1 to `PAGE_MAX`. @throws PereError malformed or refused */
export function readLimit(text: string): number {
  if (!/^-?[0-9]{1,12}$/.test(text)) throw malformed("limit", "must be a whole number");
  const limit = Number(text);
  if (limit < 1 || limit > PAGE_MAX) throw refused("limit", `must be from 1 to ${PAGE_MAX}`);
  return limit;
}

/** Parses an event's id; null if it is malformed. */
export function parsePosition(text: string): Position | null {
  const match = POSITION.exec(text);
  return match ? { epoch: match[1]!, seq: Number(match[2]) } : null;
}

/** @throws PereError malformed */
export function readPosition(text: string, path: string): Position {
  const position = parsePosition(text);
  if (position) return position;
  throw malformed(path, "an id has the form <epoch>-<seq>, as PERE gave it");
}

/**
 * The positions of a feed: ids joined by `.`, in any order. An epoch belongs to one channel only, so each channel finds its own position in the list.
 * @throws PereError malformed
 */
export function readPositions(text: string, path: string): Position[] {
  const parts = text.split(".");
  if (parts.length > CHANNELS_MAX) throw malformed(path, `holds more than ${CHANNELS_MAX} positions`);
  return parts.map((part) => readPosition(part, path));
}

/** Positions as one opaque text, safe in an SSE `id:` line and in a `Last-Event-ID` header. */
export const positionsText = (positions: readonly Position[]): string =>
  positions.map(({ epoch, seq }) => id(epoch, seq)).join(".");

/** @throws PereError malformed */
export function readKey(text: string): string {
  if (KEY.test(text)) return text;
  throw malformed("Idempotency-Key", `must be 1 to ${KEY_CHARACTERS_MAX} printable ASCII characters`);
}

/**
 * An idempotency key as stored, so that keys of two publishers never collide. A key can't contain the separator. @param subject of the token; null:
 * no token
 */
export const keyOf = (subject: string | null, key: string): string => (subject === null ? key : `${subject}\x1f${key}`);

/** The options of a push in canonical form; absent options are left out. */
export function optionsText({ to, ...options }: Omit<EventDraft, "data">): string {
  const given = Object.entries({ ...options, to: to && [...to].sort() }).filter(([, value]) => value !== null);
  return JSON.stringify(Object.fromEntries(given.sort(([a], [b]) => (a < b ? -1 : 1))));
}

/** The nesting depth of a JSON text, ignoring strings; the text need not be valid. */
function jsonDepth(text: string): number {
  let depth = 0;
  let deepest = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const unit = text.charCodeAt(index);
    if (inString) {
      if (unit === 0x5c) index++;
      else if (unit === 0x22) inString = false;
    } else if (unit === 0x22) inString = true;
    else if (unit === 0x7b || unit === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (unit === 0x7d || unit === 0x5d) depth--;
  }
  return deepest;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Decodes UTF-8. @throws PereError malformed: not UTF-8 */
export function readText(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw malformed("body", "must be UTF-8");
  }
}

/** The reviver, JSON.parse's second argument. */
type Reviver = (key: string, value: unknown, context: { source?: string }) => unknown;

/** Parses one JSON value. The depth is checked before parsing. @throws PereError malformed or refused */
function readJson(text: string, path: string, reviver?: Reviver): unknown {
  if (jsonDepth(text) > JSON_DEPTH_MAX) throw refused(path, `nests deeper than ${JSON_DEPTH_MAX} levels`);
  try {
    return JSON.parse(text, reviver as (key: string, value: unknown) => unknown) as unknown;
  } catch (error) {
    const why = text.trim() === "" ? "it is empty" : error instanceof Error ? error.message : "it does not parse";
    throw malformed(path, `must be one JSON value: ${why}`);
  }
}

/** JavaScript's way to keep a number's source text (ECMAScript, JSON.rawJSON). */
const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown };
const exactNumber: Reviver = (_key, value, { source }) =>
  typeof value === "number" && source !== undefined && String(value) !== source ? rawJSON(source) : value;

/**
 * Parses a request's receipts. Numbers in a `detail` keep their source text, so that `JSON.stringify` returns them unchanged: 12345678901234567890,
 * 1e400, -0. @throws PereError malformed or refused
 */
export const readReceiptsJson = (text: string, path = "body"): unknown =>
  readJson(text, path, text.includes('"detail"') ? exactNumber : undefined);

/** One event's data: a valid JSON text, returned unchanged. @throws PereError */
export function readData(text: string, path = "body"): string {
  // A text has at most as many UTF-16 units as UTF-8 bytes, so only texts near the limit are measured.
  if (text.length > EVENT_BYTES_MAX || (text.length * 3 > EVENT_BYTES_MAX && Buffer.byteLength(text) > EVENT_BYTES_MAX))
    throw new PereError("tooLarge", `${path}: an event's data is at most ${EVENT_BYTES_MAX} bytes`);
  readJson(text, path);
  return text;
}

/** The data of many events, one JSON value per line; empty lines are ignored. @throws PereError listing the bad lines */
export function readLines(text: string): string[] {
  const data: string[] = [];
  const faults: Fault[] = [];
  let code: Code = "malformed";
  let number = 0;
  for (const line of text.split("\n")) {
    number++;
    const value = line.replace(/^[ \t\r]+|[ \t\r]+$/g, "");
    if (value === "") continue;
    if (data.length === LINES_MAX) throw new PereError("tooLarge", `body: at most ${LINES_MAX} lines`);
    try {
      data.push(readData(value, `line ${number}`));
    } catch (error) {
      if (!(error instanceof PereError)) throw error;
      if (faults.length === 0) code = error.code;
      faults.push({ path: `line ${number}`, message: error.message.replace(/^line \d+: /, "") });
    }
  }
  if (faults.length > 0)
    throw new PereError(code, `nothing was stored: ${faults.length} bad lines`, faults.slice(0, 20));
  if (data.length === 0) throw malformed("body", "must hold at least one line of JSON");
  return data;
}

/** A rejected receipt, with its index in the request. */
export interface Rejection {
  readonly index: number;
  readonly event: string | null;
  readonly reason: string;
}

/**
 * Parses one JSON receipt. `device` is the default device.
 * @returns the draft, or a message that says why it is rejected
 */
export function readReceipt(value: unknown, device: string | null): ReceiptDraft | string {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "a receipt is a JSON object";
  const { event, device: named = device, status, detail = null, at = null } = value as Record<string, unknown>;
  const position = typeof event === "string" ? parsePosition(event) : null;
  if (!position) return "event: must be an event's id, as PERE gave it";
  if (typeof named !== "string" || !DEVICE.test(named))
    return "device: must be a device's name, 1 to 128 of A-Z a-z 0-9 . _ : ~ -";
  if (device !== null && named !== device) return "device: this connection belongs to another device";
  if (status !== "received" && status !== "working" && status !== "done" && status !== "failed")
    return "status: must be received, working, done or failed";
  const text = detail === null ? null : JSON.stringify(detail);
  if (text !== null && Buffer.byteLength(text) > DETAIL_BYTES_MAX) return `detail: at most ${DETAIL_BYTES_MAX} bytes`;
  const deviceAt = typeof at === "string" && TIME.test(at) ? Date.parse(at) : null;
  if (at !== null && !Number.isFinite(deviceAt)) return "at: must be an ISO 8601 time with its offset, or left out";
  return { event: position, device: named, status, detail: text, deviceAt };
}

/**
 * The status from the form of older clients: the four statuses unchanged, `ok` and `rx ok` as `done`, anything else as `received` with the original
 * text in `detail`.
 */
export function readOldStatus(text: string): { status: Status; detail: string | null } {
  const word = text.trim().toLowerCase();
  if (word === "received" || word === "working" || word === "done" || word === "failed")
    return { status: word, detail: null };
  // A control character takes six bytes in JSON.
  const kept = text.slice(0, 680);
  return {
    status: word === "ok" || word === "rx ok" ? "done" : "received",
    detail: word === "" ? null : JSON.stringify(kept),
  };
}
