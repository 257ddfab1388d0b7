/**
 * `publish`, `publishMany` and `schedule`: push events, now or later. A push is repeated with the same key until the service answers, and is stored once.
 */
import type { Tally } from "./model.ts";
import { addressOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { notFromPere, objectOf } from "./errors.ts";
import { GIVE_UP_MS, repeat } from "./retry.ts";
import { tallyOf } from "./messages.ts";
import { isCount, isObject, isText } from "./values.ts";

/** Events in one request: the service's limit. */
const EVENTS_MAX = 1_000;

/** Options of an event, which are the same for a push now and later. */
interface EventOptions extends Omit<ConnectionOptions, "url" | "WebSocket"> {
  /** The SSE event's name. `open`, `message`, `error` and names that begin with `pere.` are refused (422). */
  readonly type?: string | undefined;
  /** The devices that the event is addressed to. The default is all enrolled devices. */
  readonly to?: readonly string[] | undefined;
  /** Only enrolled devices whose tags fit now, for example `site:rome|milan,!beta`. Not together with `to`. */
  readonly where?: string | undefined;
  /** Seconds after which the event is no longer delivered. */
  readonly ttl?: number | undefined;
  /** Seconds within which each device must send its final receipt. */
  readonly deadline?: number | undefined;
  /** Interval in seconds at which devices that have not answered are reminded. */
  readonly remind?: number | undefined;
  /**
   * What the event is about, such as `config`: older events of the channel with the same key that are not complete are withdrawn in the same step. Not
   * with `publishMany`.
   */
  readonly eventKey?: string | undefined;
  /** How often a device may try, 2 to 20: a `failed` before the last attempt is recorded as `deferred`, and the event is sent to the device again. */
  readonly attempts?: number | undefined;
  /** Idempotency key: the same key and data are stored once within 24 hours. The default is a random key. */
  readonly key?: string | undefined;
  /** The data is JSON text already and is sent unchanged. */
  readonly isJson?: boolean | undefined;
  /** Milliseconds after which the request is no longer repeated. The default is one minute, plus `wait`. */
  readonly giveUpMs?: number | undefined;
}

export interface PublishOptions extends EventOptions {
  /** Seconds to wait for the final receipts of all devices before the service answers; at most 120. */
  readonly wait?: number | undefined;
}

/** When a scheduled push is due: once, or at each time of a cron expression. */
export type ScheduleOptions = EventOptions &
  (
    | {
        /** A `Date`, or an ISO 8601 time with its offset. A time that is past is due at once. */
        readonly at: Date | string;
        readonly every?: undefined;
        readonly tz?: undefined;
      }
    | {
        readonly at?: undefined;
        /** A cron expression with five fields. */
        readonly every: string;
        /** The IANA time zone of `every`, such as `Europe/Rome`. The default is UTC. */
        readonly tz?: string | undefined;
      }
  );

/** The answer to a push. With `wait`, it has `receipts` and `complete`. */
export interface Pushed {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  readonly at: string;
  readonly type?: string;
  readonly deadline?: string;
  readonly audience: { readonly addressed: number; readonly connected: number };
  /** What may be wrong, in sentences: named devices that are not enrolled, or that nobody was addressed. */
  readonly warnings?: readonly string[];
  readonly receipts?: Tally;
  readonly complete?: boolean;
}

/** The answer to a push for later. */
export interface Scheduled {
  /** The id of the scheduled push. */
  readonly id: string;
  readonly channel: string;
  /** When it is due, ISO 8601; null: it is done. */
  readonly next: string | null;
}

/** The answer to a push of several events. */
export interface PushedMany {
  readonly events: readonly {
    readonly id: string;
    readonly seq: number;
    readonly at: string;
    readonly receipts?: Tally;
    readonly complete?: boolean;
  }[];
  readonly audience: { readonly addressed: number; readonly connected: number };
  /** As in `Pushed`, for all of them. */
  readonly warnings?: readonly string[];
}

/**
 * Pushes one event. The request is repeated with the same key until the service answers, so the event is stored once, however often the network fails.
 * @throws TypeError when an option is invalid; PereError when the service refuses it; Error when there was no answer within `giveUpMs`, or the signal was
 * aborted: the event may then have been stored
 */
export function publish(url: string, channel: string, data: unknown, options: PublishOptions = {}): Promise<Pushed> {
  return push(url, channel, { body: textOf(data, options), isPushed: isOneOf(channel) }, options) as Promise<Pushed>;
}

/**
 * Pushes one event later: at a time, or at each time of a cron expression, each exactly once. Its audience are the devices that are enrolled then. The
 * request is repeated with the same key until the service answers, so the push is scheduled once. @throws as `publish`
 */
export function schedule(url: string, channel: string, data: unknown, options: ScheduleOptions): Promise<Scheduled> {
  const { at, every, tz } = options;
  const time = at instanceof Date ? at.toISOString() : at;
  const times = { at: time, every, tz };
  const content = { body: textOf(data, options), isPushed: isScheduled(channel), times, statuses: [200, 202] };
  return push(url, channel, content, options) as Promise<Scheduled>;
}

/** Pushes up to 1,000 events; either all are stored or none. @throws as `publish`, and RangeError for a wrong number of events */
export async function publishMany(
  url: string,
  channel: string,
  data: readonly unknown[],
  options: PublishOptions = {},
): Promise<PushedMany> {
  if (data.length === 0 || data.length > EVENTS_MAX)
    throw new RangeError(`publishMany takes 1 to ${EVENTS_MAX} events, not ${data.length}`);
  // Line breaks in a JSON text are between its tokens, where a space means the same.
  const lines = data.map((value) => textOf(value, options).replaceAll(/[\r\n]/g, " "));
  const content = { type: "application/x-ndjson", body: lines.join("\n"), isPushed: isMany(lines.length) };
  return push(url, channel, content, options) as Promise<PushedMany>;
}

/** 128 random bits. `crypto.randomUUID` is missing in pages without TLS. */
const newKey = (): string =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function textOf(data: unknown, { isJson = false }: PublishOptions): string {
  const text = isJson ? data : JSON.stringify(data);
  if (typeof text === "string") return text;
  throw new TypeError(
    `data must be ${isJson ? "a string of JSON text" : "a value with a JSON form"}, not ${typeof data}`,
  );
}

/** @throws TypeError for a key that can't be a header, and for times that are not numbers */
function checkOptions({ key, wait = 0, giveUpMs = 0 }: PublishOptions): void {
  if (key !== undefined && !/^[ -~]{1,255}$/.test(key))
    throw new TypeError("key must be 1 to 255 printable ASCII characters");
  for (const [name, value] of Object.entries({ wait, giveUpMs }))
    if (typeof value !== "number" || !(value >= 0))
      throw new TypeError(`${name} must be a number, 0 or more, not ${value}`);
}

/** What is pushed. */
interface Content {
  readonly type?: string;
  readonly body: string;
  /** When it is to be pushed, and the statuses of an answer then; absent: now. */
  readonly statuses?: readonly number[];
  readonly times?: Readonly<Record<string, string | undefined>>;
  /** Whether this is the answer of a service that has stored it. @throws BlockedError */
  readonly isPushed: (answer: Record<string, unknown>) => boolean;
}

async function push(baseUrl: string, channel: string, content: Content, options: PublishOptions): Promise<unknown> {
  checkOptions(options);
  const service = new ServiceClient({ ...options, url: baseUrl });
  const { type, to, where, ttl, deadline, remind, eventKey, attempts } = options;
  const { wait, signal = null, key = newKey(), giveUpMs = GIVE_UP_MS + (wait ?? 0) * 1000 } = options;
  const { body, times, statuses, isPushed } = content;
  const query: Record<string, string> = {};
  const said = { type, to: to?.join(","), where, ttl, deadline, remind, key: eventKey, attempts, ...times };
  for (const [name, value] of Object.entries(said)) if (value !== undefined) query[name] = String(value);
  const url = addressOf(service.base, "push", [channel], query);
  return repeat(
    service,
    async (elapsedMs) => {
      const leftMs = Math.max(0, (wait ?? 0) * 1000 - elapsedMs);
      const prefer: Record<string, string> = wait === undefined ? {} : { Prefer: `wait=${Math.ceil(leftMs / 1000)}` };
      const headers = { "Content-Type": content.type ?? "application/json", "Idempotency-Key": key, ...prefer };
      const limitMs = service.timing.requestMs + leftMs;
      const text = await service.ask(url, { method: "POST", headers, body }, signal, limitMs, statuses);
      const answer = objectOf(text);
      if (!isPushed(answer)) throw notFromPere();
      return withTallies(answer);
    },
    giveUpMs,
    signal,
  );
}

const isStored = (value: unknown): value is Record<string, unknown> =>
  isObject(value) && isText(value.id) && isCount(value.seq) && isText(value.at);

const hasAudience = ({ audience }: Record<string, unknown>): boolean =>
  isObject(audience) && isCount(audience.addressed) && isCount(audience.connected);

const isOneOf =
  (channel: string): Content["isPushed"] =>
  (answer) =>
    hasAudience(answer) && isStored(answer) && answer.channel === channel;

const isMany =
  (count: number): Content["isPushed"] =>
  (answer) =>
    hasAudience(answer) &&
    Array.isArray(answer.events) &&
    answer.events.length === count &&
    answer.events.every(isStored);

const isScheduled =
  (channel: string): Content["isPushed"] =>
  ({ id, channel: named, next }) =>
    isText(id) && named === channel && (next === null || isText(next));

/** An answer with all counts of its tallies. @throws BlockedError when PERE sends no such tally */
function withTallies(answer: Record<string, unknown>): Record<string, unknown> {
  const filled = (value: Record<string, unknown>): Record<string, unknown> =>
    value.receipts === undefined ? value : { ...value, receipts: tallyOf(value.receipts) };
  return Array.isArray(answer.events) ? { ...answer, events: answer.events.map(filled) } : filled(answer);
}
