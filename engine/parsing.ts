/**
 * The parsing of untrusted input: names, numbers, positions, JSON.
 *
 * All input passes one of these functions exactly once; code behind them can trust the result. They reject input with a `PereError`, except
 * `readReceipt`, because a request may hold good receipts beside a bad one.
 */
import {
  AFTER_SECONDS_MAX,
  AFTER_SECONDS_MIN,
  ATTEMPTS_MAX,
  ATTEMPTS_MIN,
  CHANNEL,
  CHANNELS_MAX,
  type Code,
  DEADLINE_SECONDS_MAX,
  DEADLINE_SECONDS_MIN,
  DETAIL_BYTES_MAX,
  DEVICE,
  EVENT_BYTES_MAX,
  EVENT_KEY,
  EVENT_SOURCE_TYPES,
  type EventDraft,
  type Fault,
  JSON_DEPTH_MAX,
  KEY_CHARACTERS_MAX,
  LINES_MAX,
  NOTE_CHARACTERS_MAX,
  PAGE_MAX,
  parsePosition,
  PereError,
  type Position,
  type ReceiptDraft,
  REMIND_SECONDS_MAX,
  REMIND_SECONDS_MIN,
  type Status,
  STATUSES,
  TO_MAX,
  TTL_SECONDS_MAX,
  TTL_SECONDS_MIN,
} from "./model.ts";
import { readWhere } from "./tags.ts";

const malformed = (path: string, message: string): PereError =>
  new PereError("malformed", `${path}: ${message}`, [{ path, message }]);
const refused = (path: string, message: string): PereError =>
  new PereError("refused", `${path}: ${message}`, [{ path, message }]);

const TYPE = /^[A-Za-z0-9._-]{1,64}$/;
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

/** The query parameters of a push that are options of its events. */
export const EVENT_OPTIONS = ["type", "to", "ttl", "deadline", "remind", "key", "attempts", "where"] as const;

/** What the query says of all events of a push. @throws PereError malformed, refused */
export function readEventOptions(query: ReadonlyMap<string, string>): Omit<EventDraft, "data"> {
  const [type, to, ttl, deadline, remind, key, attempts, where] = EVENT_OPTIONS.map((name) => query.get(name));
  const seconds = (text: string | undefined, name: string, min: number, max: number): number | null =>
    text === undefined ? null : readSeconds(text, name, min, max);
  if (where !== undefined) {
    readWhere(where);
    if (to !== undefined) throw refused("where", `"${where}" can't be given together with to; leave one of them out`);
  }
  return {
    type: type === undefined ? null : readType(type),
    to: to === undefined ? null : readTo(to),
    ttl: seconds(ttl, "ttl", TTL_SECONDS_MIN, TTL_SECONDS_MAX),
    deadline: seconds(deadline, "deadline", DEADLINE_SECONDS_MIN, DEADLINE_SECONDS_MAX),
    remind: seconds(remind, "remind", REMIND_SECONDS_MIN, REMIND_SECONDS_MAX),
    key: key === undefined ? null : readEventKey(key),
    attempts: attempts === undefined ? null : readAttempts(attempts),
    where: where ?? null,
  };
}

/** A page's length, 1 to `PAGE_MAX`. @throws PereError malformed or refused */
export function readLimit(text: string): number {
  if (!/^-?[0-9]{1,12}$/.test(text)) throw malformed("limit", "must be a whole number");
  const limit = Number(text);
  if (limit < 1 || limit > PAGE_MAX) throw refused("limit", `must be from 1 to ${PAGE_MAX}`);
  return limit;
}

/** An event's key. @throws PereError malformed */
export function readEventKey(text: string): string {
  if (EVENT_KEY.test(text)) return text;
  throw malformed("key", "a key is 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
}

/** How often a device may try an event. @throws PereError malformed or refused */
export function readAttempts(text: string): number {
  if (!/^-?[0-9]{1,12}$/.test(text)) throw malformed("attempts", "must be a whole number");
  const attempts = Number(text);
  if (attempts < ATTEMPTS_MIN || attempts > ATTEMPTS_MAX)
    throw refused("attempts", `must be from ${ATTEMPTS_MIN} to ${ATTEMPTS_MAX}`);
  return attempts;
}

/** The note of a withdrawal; without characters there is none. @throws PereError refused */
export function readNote(text: string): string | null {
  if ([...text].length > NOTE_CHARACTERS_MAX) throw refused("note", `at most ${NOTE_CHARACTERS_MAX} characters`);
  return text === "" ? null : text;
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

/** @throws PereError malformed */
export function readKey(text: string): string {
  if (KEY.test(text)) return text;
  throw malformed("Idempotency-Key", `must be 1 to ${KEY_CHARACTERS_MAX} printable ASCII characters`);
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
const { rawJSON, isRawJSON } = JSON as unknown as {
  rawJSON(text: string): unknown;
  isRawJSON(value: unknown): value is { readonly rawJSON: string };
};
const exactNumber: Reviver = (_key, value, { source }) =>
  typeof value === "number" && source !== undefined && String(value) !== source ? rawJSON(source) : value;

/** A number whose source text was kept, such as `600.0`, as a number. Any other value is returned as it is. */
const plainNumber = (value: unknown): unknown => (isRawJSON(value) ? Number(value.rawJSON) : value);

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

const isStatus = (status: unknown): status is Status => STATUSES.includes(status as Status);

/** Why a receipt in the name of another device is rejected. */
export const otherDevice = (named: string, device: string): string =>
  `device: the receipt names ${named}, but the request is from ${device}; a device sends only its own receipts`;

/**
 * Parses one JSON receipt. `device` is the default device.
 * @returns the draft, or a message that says why it is rejected
 */
export function readReceipt(value: unknown, device: string | null): ReceiptDraft | string {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "a receipt is a JSON object";
  const {
    event,
    device: named = device,
    status,
    detail = null,
    at = null,
    after = null,
    round = null,
    retry = true,
  } = value as Record<string, unknown>;
  const position = typeof event === "string" ? parsePosition(event) : null;
  if (!position) return "event: must be an event's id, as PERE gave it";
  if (typeof named !== "string" || !DEVICE.test(named))
    return "device: must be a device's name, 1 to 128 of A-Z a-z 0-9 . _ : ~ -";
  if (device !== null && named !== device) return otherDevice(named, device);
  if (!isStatus(status)) return "status: must be received, working, deferred, done or failed";
  const text = detail === null ? null : JSON.stringify(detail);
  if (text !== null && Buffer.byteLength(text) > DETAIL_BYTES_MAX) return `detail: at most ${DETAIL_BYTES_MAX} bytes`;
  const deviceAt = typeof at === "string" && TIME.test(at) ? Date.parse(at) : null;
  if (at !== null && !Number.isFinite(deviceAt)) return "at: must be an ISO 8601 time with its offset, or left out";
  const more = readRound(status, plainNumber(after), plainNumber(round), retry);
  return typeof more === "string" ? more : { event: position, device: named, status, detail: text, deviceAt, ...more };
}

/** What a receipt says about sending the event again, or a message that says why it is rejected. */
function readRound(
  status: Status,
  after: unknown,
  round: unknown,
  retry: unknown,
): Pick<ReceiptDraft, "after" | "round" | "retry"> | string {
  if (after !== null) {
    if (status !== "deferred" && status !== "failed")
      return "after: only a receipt that is deferred or failed can have it";
    if (typeof after !== "number" || !(after >= AFTER_SECONDS_MIN && after <= AFTER_SECONDS_MAX))
      return `after: must be a number of seconds from ${AFTER_SECONDS_MIN} to ${AFTER_SECONDS_MAX}`;
  }
  if (round !== null && !(Number.isSafeInteger(round) && (round as number) >= 1))
    return "round: must be a whole number from 1, as the event has it; an event without round is in round 1";
  if (typeof retry !== "boolean") return "retry: must be true or false";
  if (!retry && status !== "failed") return "retry: only a receipt that is failed can have false";
  return { after, round: round as number | null, retry };
}

/**
 * The status from the form of older clients: the five statuses unchanged, `ok` and `rx ok` as `done`, anything else as `received` with the original
 * text in `detail`.
 */
export function readOldStatus(text: string): { status: Status; detail: string | null } {
  const word = text.trim().toLowerCase();
  if (isStatus(word)) return { status: word, detail: null };
  // A control character takes six bytes in JSON.
  const kept = text.slice(0, 680);
  return {
    status: word === "ok" || word === "rx ok" ? "done" : "received",
    detail: word === "" ? null : JSON.stringify(kept),
  };
}
