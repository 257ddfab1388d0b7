/**
 * `publish` and `publishMany`: push events. A push is repeated with the same key until the service answers, and is stored once.
 */
import type { Tally } from "./model.ts";
import { addressOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { notFromPere, objectOf } from "./errors.ts";
import { GIVE_UP_MS, repeat } from "./retry.ts";
import { isCount, isObject, isText } from "./values.ts";

/** Events in one request: the service's limit. */
const EVENTS_MAX = 1_000;

export interface PublishOptions extends Omit<ConnectionOptions, "url" | "WebSocket"> {
  /** The SSE event's name. `open`, `message`, `error` and names that begin with `pere.` are refused (422). */
  readonly type?: string | undefined;
  /** The devices that the event is addressed to. The default is all enrolled devices. */
  readonly to?: readonly string[] | undefined;
  /** Seconds after which the event is no longer delivered. */
  readonly ttl?: number | undefined;
  /** Seconds within which each device must send its final receipt. */
  readonly deadline?: number | undefined;
  /** Interval in seconds at which devices that have not answered are reminded. */
  readonly remind?: number | undefined;
  /** Seconds to wait for the final receipts of all devices before the service answers; at most 120. */
  readonly wait?: number | undefined;
  /** Idempotency key: the same key and data are stored once within 24 hours. The default is a random key. */
  readonly key?: string | undefined;
  /** The data is JSON text already and is sent unchanged. */
  readonly isJson?: boolean | undefined;
  /** Milliseconds after which the push is no longer repeated. The default is one minute plus `wait`. */
  readonly giveUpMs?: number | undefined;
}

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
  return push(url, channel, textOf(data, options), "application/json", null, options) as Promise<Pushed>;
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
  return push(url, channel, lines.join("\n"), "application/x-ndjson", lines.length, options) as Promise<PushedMany>;
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

/** @param body one event, or several, one per line @param count how many events; null: a single one */
async function push(
  baseUrl: string,
  channel: string,
  body: string,
  type: string,
  count: number | null,
  options: PublishOptions,
): Promise<unknown> {
  checkOptions(options);
  const service = new ServiceClient({ ...options, url: baseUrl });
  const {
    to,
    ttl,
    deadline,
    remind,
    wait,
    signal = null,
    key = newKey(),
    giveUpMs = GIVE_UP_MS + (wait ?? 0) * 1000,
  } = options;
  const query: Record<string, string> = {};
  for (const [name, value] of Object.entries({ type: options.type, to: to?.join(","), ttl, deadline, remind }))
    if (value !== undefined) query[name] = String(value);
  const url = addressOf(service.base, "push", [channel], query);
  return repeat(
    service,
    async (elapsedMs) => {
      const leftMs = Math.max(0, (wait ?? 0) * 1000 - elapsedMs);
      const prefer: Record<string, string> = wait === undefined ? {} : { Prefer: `wait=${Math.ceil(leftMs / 1000)}` };
      const headers = { "Content-Type": type, "Idempotency-Key": key, ...prefer };
      const text = await service.ask(url, { method: "POST", headers, body }, signal, service.timing.requestMs + leftMs);
      const answer = objectOf(text);
      if (!isPushed(answer, channel, count)) throw notFromPere();
      return answer;
    },
    giveUpMs,
    signal,
  );
}

const isStored = (value: unknown): value is Record<string, unknown> =>
  isObject(value) && isText(value.id) && isCount(value.seq) && isText(value.at);

/** Whether this is the answer of a service that has stored the events. @param count how many; null: a single one */
function isPushed(answer: Record<string, unknown>, channel: string, count: number | null): boolean {
  const { audience, events } = answer;
  if (!isObject(audience) || !isCount(audience.addressed) || !isCount(audience.connected)) return false;
  if (count === null) return isStored(answer) && answer.channel === channel;
  return Array.isArray(events) && events.length === count && events.every(isStored);
}
