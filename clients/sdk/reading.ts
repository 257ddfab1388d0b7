/**
 * What a publisher reads and does beside pushing: channels, devices, what each of them was sent and said; withdrawing an event, scheduled pushes, a test
 * of a hook.
 *
 * A list is read page by page as the loop that reads it goes on. A request that only reads is repeated until it is answered.
 */
import { notFromPere, objectOf } from "./errors.ts";
import { tallyOf } from "./messages.ts";
import { PereError, type Tally, type WithdrawalReason, type Word } from "./model.ts";
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
export type State = "pending" | Word | "missing" | "withdrawn";

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
  readonly tags: Readonly<Record<string, string>>;
}

/** What a device said of an event; while it is pending, only the status. Times in ISO 8601. */
interface Said {
  readonly status: State;
  readonly detail: unknown;
  readonly at: string | null;
  readonly deviceAt: string | null;
  readonly late: boolean;
  /** How often the event was sent to the device, from 1. */
  readonly round: number;
  /** The device's failures so far. */
  readonly attempt: number;
  /** When a deferred event is sent again; absent once its next round has begun. */
  readonly due?: string;
}

/** What a row of an earlier version of the service lacks. */
const BEFORE_ROUNDS = { round: 1, attempt: 0 };

/** An event as its publisher sees it. Times in ISO 8601. */
export interface EventState {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
  readonly at: string;
  readonly type?: string;
  readonly deadline?: string;
  readonly key?: string;
  readonly scheduled?: string;
  readonly expiresAt?: string;
  readonly remind?: number;
  readonly attempts?: number;
  readonly to?: readonly string[];
  /** How it was withdrawn, if it was. */
  readonly withdrawn?: {
    readonly at: string;
    readonly reason: WithdrawalReason;
    readonly by?: string;
    readonly note?: string;
  };
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts: Tally;
  readonly complete: boolean;
  /** It is complete, or its deadline has passed. */
  readonly settled: boolean;
  readonly data: unknown;
}

/** A push for later. Times in ISO 8601. */
export interface ScheduledPush {
  readonly id: string;
  /** When it is due; null: it is done. */
  readonly next: string | null;
  /** The cron expression; null: it is pushed once. */
  readonly every: string | null;
  readonly tz: string | null;
  /** The id of the event that was pushed last. */
  readonly last: string | null;
  /** Why the last push failed, if it did. */
  readonly error?: string;
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
  /** The tags that the device has now. */
  readonly tags: Readonly<Record<string, string>>;
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
  /** Only those that a push with this `where` would address. */
  readonly where?: string | undefined;
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

export interface CancelOptions extends ChannelOptions {
  /** The id of the scheduled push. */
  readonly id: string;
}

export interface WithdrawOptions extends Omit<ReadOptions, "url"> {
  /** What to tell the people at the devices; at most 256 characters. */
  readonly note?: string | undefined;
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
  const { channel, search, connected, where, sort } = options;
  return pages(options, ["devices", channel], { search, connected, where, sort }, "devices", "device");
}

/** One enrolled device. @throws PereError with status 404 when it is not enrolled; Error when there was no answer */
export async function readDevice(options: DeviceOptions): Promise<DeviceState> {
  const answer = await get(options, ["devices", options.channel, options.device], {});
  if (answer.device !== options.device || !isCount(answer.pending)) throw notFromPere();
  return answer as unknown as DeviceState;
}

/** What a device was sent and what it said, newest first. @throws as `readChannels` */
export function readHistory(options: DeviceOptions): AsyncGenerator<HistoryRow> {
  return pages(
    options,
    ["devices", options.channel, options.device, "receipts"],
    {},
    "receipts",
    "event",
    BEFORE_ROUNDS,
  );
}

/** The devices that an event is addressed to, by name. @throws as `readChannels` */
export function readRows(options: RowsOptions): AsyncGenerator<ReceiptRow> {
  const { channel, event, status } = options;
  const query = { status: status?.join() };
  return pages(options, ["events", channel, event, "receipts"], query, "receipts", "device", BEFORE_ROUNDS);
}

/** The pushes for later of a channel, in the order of their ids. @throws as `readChannels` */
export function readScheduled(options: ChannelOptions): AsyncGenerator<ScheduledPush> {
  return pages(options, ["scheduled", options.channel], {}, "scheduled", "id");
}

/**
 * Withdraws an event: from then on nobody is sent it, and the devices that may have it are told. An event that is complete stays as it is. The request is
 * repeated until it is answered. @returns the event's state
 * @throws PereError: 404 when it is no longer kept; Error when there was no answer: it may be withdrawn
 */
export async function withdraw(
  url: string,
  channel: string,
  id: string,
  options: WithdrawOptions = {},
): Promise<EventState> {
  const { note, ...rest } = options;
  const answer = await request({ ...rest, url }, "DELETE", ["events", channel, id], { note });
  if (answer.id !== id || answer.channel !== channel || typeof answer.complete !== "boolean") throw notFromPere();
  return { ...answer, receipts: tallyOf(answer.receipts) } as unknown as EventState;
}

/**
 * Cancels a push for later. What it has pushed stays. The request is repeated until it is answered.
 * @throws PereError: 404 when there is none; Error when there was no answer: it may be cancelled
 */
export async function cancelScheduled(options: CancelOptions): Promise<void> {
  const service = new ServiceClient(options);
  const { signal = null, giveUpMs = GIVE_UP_MS } = options;
  const url = urlOf(service, ["scheduled", options.channel, options.id]);
  let tries = 0;
  const cancel = async (): Promise<void> => {
    tries++;
    try {
      await service.ask(url, { method: "DELETE" }, signal, service.timing.requestMs);
    } catch (error) {
      // An earlier try cancelled it, and its answer was lost.
      if (tries === 1 || !(error instanceof PereError) || error.status !== 404) throw error;
    }
  };
  await repeat(service, cancel, giveUpMs, signal);
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
const get = (options: ReadOptions, parts: readonly string[], query: Query): Promise<Record<string, unknown>> =>
  request(options, "GET", parts, query);

/** A request that can be repeated, again until it is answered with an object. */
function request(
  options: ReadOptions,
  method: "GET" | "DELETE",
  parts: readonly string[],
  query: Query,
): Promise<Record<string, unknown>> {
  const service = new ServiceClient(options);
  const { signal = null, giveUpMs = GIVE_UP_MS } = options;
  const url = urlOf(service, parts, query);
  const { requestMs } = service.timing;
  return repeat(service, async () => objectOf(await service.ask(url, { method }, signal, requestMs)), giveUpMs, signal);
}

/**
 * Reads a list, page by page. @param list its name in the answer @param key a text that every item has
 * @param counts numbers that an item has, and what they are where it has none
 */
async function* pages<Item>(
  options: ReadOptions,
  parts: readonly string[],
  query: Query,
  list: string,
  key: string,
  counts: Readonly<Record<string, number>> = {},
): AsyncGenerator<Item> {
  for (let after: string | undefined | null; after !== null;) {
    const answer = await get(options, parts, { ...query, limit: PAGE_MAX, after });
    const { [list]: items, next } = answer;
    const isItem = (item: unknown): boolean =>
      isObject(item) &&
      isText(item[key]) &&
      Object.keys(counts).every((name) => item[name] === undefined || isCount(item[name]));
    if (!Array.isArray(items) || !items.every(isItem)) throw notFromPere();
    if (next !== null && !isText(next)) throw notFromPere();
    yield* items.map((item) => ({ ...counts, ...item }) as Item);
    after = next;
  }
}
