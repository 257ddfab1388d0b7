/**
 * What a publisher reads and does beside pushing: channels, devices, what each of them was sent and said, a test of a hook.
 *
 * A list is read page by page as the loop that reads it goes on. A request that only reads is repeated until it is answered.
 */
import { notFromPere, objectOf } from "./errors.ts";
import type { Word } from "./model.ts";
import { GIVE_UP_MS, repeat } from "./retry.ts";
import { type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { isCount, isObject, isText } from "./values.ts";

/** Items per page: the service's limit. */
const PAGE_MAX = 1_000;

export interface ReadOptions extends Omit<ConnectionOptions, "WebSocket"> {
  /** Milliseconds after which a request is no longer repeated. The default is one minute. */
  readonly giveUpMs?: number | undefined;
}

/** A device's status on an event, as the service shows it. */
export type State = "pending" | Word | "missing";

export interface ChannelState {
  readonly channel: string;
  /** Kept events. */
  readonly events: number;
  readonly devices: number;
  readonly connected: number;
  /** The newest event's id. */
  readonly last: string | null;
}

/** An enrolled device. Times in ISO 8601. */
export interface DeviceState {
  readonly device: string;
  readonly enrolledAt: string;
  readonly connected: boolean;
  /** The addresses of its open feeds. */
  readonly addresses: readonly string[];
  /** Its last sign of life. */
  readonly seenAt: string | null;
  /** How many receipts it owes. */
  readonly pending: number;
}

/** What a device said of an event; while it is pending, only the status. Times in ISO 8601. */
interface Said {
  readonly status: State;
  readonly detail: unknown;
  readonly at: string | null;
  readonly deviceAt: string | null;
  readonly late: boolean;
}

/** An event that a device was sent, and what it said. */
export interface HistoryRow extends Said {
  readonly event: string;
  readonly type: string | null;
  readonly pushedAt: string;
  readonly deadline: string | null;
}

/** A device that an event is addressed to, and what it said. */
export interface ReceiptRow extends Said {
  readonly device: string;
}

/** What came back from a hook's URL. */
export interface HookTested {
  /** Null: there was no answer. */
  readonly status: number | null;
  /** How many milliseconds the call took. */
  readonly ms: number;
  /** The beginning of the answer's body. */
  readonly body: string | null;
  /** Why there was no answer. */
  readonly error: string | null;
}

export interface ChannelsOptions extends ReadOptions {
  /** Part of the names, in capitals or not. */
  readonly search?: string | undefined;
}

export interface ChannelOptions extends ReadOptions {
  readonly channel: string;
}

export interface DevicesOptions extends ChannelOptions {
  /** Part of the names, in capitals or not. */
  readonly search?: string | undefined;
  /** Only those that are connected, or that are not. */
  readonly connected?: boolean | undefined;
  /** `name` (the default), `pending` (what they owe, most first) or `seen` (the last sign of life, the oldest first). */
  readonly sort?: "name" | "pending" | "seen" | undefined;
}

export interface DeviceOptions extends ChannelOptions {
  readonly device: string;
}

export interface RowsOptions extends ChannelOptions {
  /** An event's id. */
  readonly event: string;
  /** Only devices with one of these statuses. */
  readonly status?: readonly State[] | undefined;
}

export interface HookOptions extends ChannelOptions {
  /** The hook's name. */
  readonly name: string;
}

/** Channels by name. @throws PereError, in the loop, when the service refuses; Error when there was no answer */
export function readChannels(options: ChannelsOptions): AsyncGenerator<ChannelState> {
  return pages(options, ["channels"], { search: options.search }, "channels", "channel");
}

/** The enrolled devices of a channel. @throws as `readChannels` */
export function readDevices(options: DevicesOptions): AsyncGenerator<DeviceState> {
  const { channel, search, connected, sort } = options;
  return pages(options, ["devices", channel], { search, connected, sort }, "devices", "device");
}

/** One enrolled device. @throws PereError with status 404 when it is not enrolled; Error when there was no answer */
export async function readDevice(options: DeviceOptions): Promise<DeviceState> {
  const answer = await get(options, ["devices", options.channel, options.device], {});
  if (answer.device !== options.device || !isCount(answer.pending)) throw notFromPere();
  return answer as unknown as DeviceState;
}

/** What a device was sent and what it said, newest first. @throws as `readChannels` */
export function readHistory(options: DeviceOptions): AsyncGenerator<HistoryRow> {
  return pages(options, ["devices", options.channel, options.device, "receipts"], {}, "receipts", "event");
}

/** The devices that an event is addressed to, by name. @throws as `readChannels` */
export function readRows(options: RowsOptions): AsyncGenerator<ReceiptRow> {
  const { channel, event, status } = options;
  return pages(options, ["events", channel, event, "receipts"], { status: status?.join() }, "receipts", "device");
}

/**
 * Deletes a channel without devices, hooks, scheduled pushes and unexpired events.
 * @throws PereError: 404, 409 when it still has something; Error when there was no answer: it may be deleted
 */
export async function deleteChannel(options: ChannelOptions): Promise<void> {
  const service = new ServiceClient(options);
  const url = urlOf(service, ["channels", options.channel]);
  await service.ask(url, { method: "DELETE" }, options.signal ?? null, service.timing.requestMs);
}

/** How long the service waits for a hook's answer, in milliseconds. */
const HOOK_MS = 15_000;

/** Has the service call a hook's URL once, now. The request is not repeated. @throws PereError; Error when the service did not answer */
export async function testHook(options: HookOptions): Promise<HookTested> {
  const service = new ServiceClient(options);
  const url = urlOf(service, ["hooks", options.channel, options.name, "test"]);
  const limitMs = service.timing.requestMs + HOOK_MS;
  const answer = objectOf(await service.ask(url, { method: "POST" }, options.signal ?? null, limitMs));
  if (!isCount(answer.ms) || !("status" in answer) || !("error" in answer)) throw notFromPere();
  return answer as unknown as HookTested;
}

type Query = Readonly<Record<string, string | number | boolean | undefined>>;

function urlOf({ base }: ServiceClient, parts: readonly string[], query: Query = {}): string {
  const given = Object.entries(query).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${encodeURIComponent(String(value))}`],
  );
  return `${base}/${parts.map(encodeURIComponent).join("/")}${given.length === 0 ? "" : `?${given.join("&")}`}`;
}

/** Reads an object, again until it is answered. */
function get(options: ReadOptions, parts: readonly string[], query: Query): Promise<Record<string, unknown>> {
  const service = new ServiceClient(options);
  const { signal = null, giveUpMs = GIVE_UP_MS } = options;
  const url = urlOf(service, parts, query);
  const { requestMs } = service.timing;
  return repeat(service, async () => objectOf(await service.ask(url, {}, signal, requestMs)), giveUpMs, signal);
}

/** Reads a list, page by page. @param list its name in the answer @param key a text that every item has */
async function* pages<Item>(
  options: ReadOptions,
  parts: readonly string[],
  query: Query,
  list: string,
  key: string,
): AsyncGenerator<Item> {
  for (let after: string | undefined | null; after !== null;) {
    const answer = await get(options, parts, { ...query, limit: PAGE_MAX, after });
    const { [list]: items, next } = answer;
    if (!Array.isArray(items) || !items.every((item) => isObject(item) && isText(item[key]))) throw notFromPere();
    if (next !== null && !isText(next)) throw notFromPere();
    yield* items as Item[];
    after = next;
  }
}
