/**
 * `publish` and `publishMany`: push events. A push is repeated with the same key until the service answers, and is stored once.
 */
import type { Tally } from "./model.ts";
import { addressOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { jitterMs, Sleep } from "./timing.ts";
import { foreign, objectOf, Trouble } from "./trouble.ts";
import { isCount, isObject, isText } from "./values.ts";

/** Lines in one batch: the service's limit. */
const LINES_MAX = 1_000;

export interface PublishOptions extends Omit<ConnectionOptions, "url" | "WebSocket"> {
  /** The SSE event's name. `open`, `message`, `error` and names that begin with `pere.` are refused (422). */
  readonly type?: string | undefined;
  /** The devices that it is addressed to. The default is all enrolled devices. */
  readonly to?: readonly string[] | undefined;
  /** Seconds after which it is no longer delivered. */
  readonly ttl?: number | undefined;
  /** Seconds within which each device owes a final receipt. */
  readonly deadline?: number | undefined;
  /** Interval in seconds at which devices that have not answered are reminded. */
  readonly remind?: number | undefined;
  /** Seconds to wait for the final receipts of all devices before the service answers; at most 120. */
  readonly wait?: number | undefined;
  /** Idempotency key: the same key and data are stored once within 24 hours. The default is a random key. */
  readonly key?: string | undefined;
  /** The data is JSON text already, and is sent as it is. */
  readonly isJson?: boolean | undefined;
  /** Milliseconds after which it gives up. The default is one minute plus `wait`. */
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
}

/**
 * Pushes one event. The request is repeated with the same key until the service answers, so the event is stored once, however often the network fails.
 * @throws TypeError when an option is invalid; PereError when it is refused; Error when there was no answer within `giveUpMs`, or the signal ended it: it may have been stored
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
  if (data.length === 0 || data.length > LINES_MAX) throw new RangeError(`1 to ${LINES_MAX} events at once`);
  // Line breaks in a JSON text stand between its tokens, where a space is as good.
  const lines = data.map((value) => textOf(value, options).replaceAll(/[\r\n]/g, " "));
  return push(url, channel, lines.join("\n"), "application/x-ndjson", lines.length, options) as Promise<PushedMany>;
}

/** 128 bits of chance, also on a page without TLS, where `crypto.randomUUID` is not there. */
const newKey = (): string =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function textOf(data: unknown, { isJson = false }: PublishOptions): string {
  const text = isJson ? data : JSON.stringify(data);
  if (typeof text !== "string") throw new TypeError("what is pushed must be JSON");
  return text;
}

/** @throws TypeError for what can't be a header, or would be tried without an end */
function checkOptions({ key, wait = 0, giveUpMs = 0 }: PublishOptions): void {
  if (key !== undefined && !/^[ -~]{1,255}$/.test(key))
    throw new TypeError("key must be 1 to 255 printable ASCII characters");
  for (const [name, value] of Object.entries({ wait, giveUpMs }))
    if (typeof value !== "number" || !(value >= 0))
      throw new TypeError(`${name} must be a number from 0, not ${value}`);
}

async function push(
  base: string,
  channel: string,
  body: string,
  type: string,
  count: number | null,
  options: PublishOptions,
): Promise<unknown> {
  checkOptions(options);
  const line = new ServiceClient({ ...options, url: base });
  const {
    to,
    ttl,
    deadline,
    remind,
    wait,
    signal = null,
    key = newKey(),
    giveUpMs = 60_000 + (wait ?? 0) * 1000,
  } = options;
  const query: Record<string, string> = {};
  for (const [name, value] of Object.entries({ type: options.type, to: to?.join(","), ttl, deadline, remind }))
    if (value !== undefined) query[name] = String(value);
  const url = addressOf(line.base, "push", [channel], query);
  const startedAt = line.monotonic();
  const never = new AbortController().signal;
  const nap = new Sleep(line.setTimer);
  for (let failures = 1; ; failures++) {
    const leftMs = Math.max(0, (wait ?? 0) * 1000 - (line.monotonic() - startedAt));
    const prefer: Record<string, string> = wait === undefined ? {} : { Prefer: `wait=${Math.ceil(leftMs / 1000)}` };
    const headers = { "Content-Type": type, "Idempotency-Key": key, ...prefer };
    try {
      const text = await line.ask(url, { method: "POST", headers, body }, signal, line.timing.requestMs + leftMs);
      const answer = objectOf(text);
      if (!isPushed(answer, channel, count)) throw foreign();
      return answer;
    } catch (error) {
      const pastMs = line.monotonic() - startedAt;
      if (!(error instanceof Trouble) || signal?.aborted || pastMs >= giveUpMs) throw error;
      const pauseMs = Math.max(
        jitterMs(line.random, failures, 250, line.timing.pauseMsMax),
        (error.pauseMs ?? 0) * (1 + line.random() / 5),
      );
      line.trouble(error.message);
      await nap.sleep(Math.min(pauseMs, giveUpMs - pastMs), signal ?? never);
    }
  }
}

const isStored = (value: unknown): value is Record<string, unknown> =>
  isObject(value) && isText(value.id) && isCount(value.seq) && isText(value.at);

/** Whether this says that what was pushed is stored. @param count of events; null: one, that was pushed alone */
function isPushed(answer: Record<string, unknown>, channel: string, count: number | null): boolean {
  const { audience, events } = answer;
  if (!isObject(audience) || !isCount(audience.addressed) || !isCount(audience.connected)) return false;
  if (count === null) return isStored(answer) && answer.channel === channel;
  return Array.isArray(events) && events.length === count && events.every(isStored);
}
