/**
 * The directory: which channels and devices there are, and what one device was sent and said. It only reads.
 *
 * Lists are read by name, page by page. What is not in that order is found by looking at all: a search and a filter look at every name, another order
 * at every device. That is done in slices that leave turns to others, and keeps no more than a page in memory.
 */
import {
  type DeviceEnrolment,
  type DeviceOrder,
  type EnrolledDevice,
  type HistoryRow,
  id,
  PereError,
  type Position,
} from "./model.ts";
import type { Presence } from "./feeds/presence.ts";
import { type ChannelEntry, type ChannelScope, type Heads, type Page, page, type Store } from "./store.ts";
import { fits as fitsWhere, NO_TAGS, type Tags, type Term } from "./tags.ts";
import { First } from "./first.ts";
import { yieldToEventLoop } from "./yield.ts";

/** Devices or channels per read. */
const READ_ROWS = 250;
/** Names of channels per read. */
const NAMES = 1_000;

const utf8 = new TextEncoder();

/** Which devices, in which order. */
export interface DeviceQuery {
  /** Part of the name, in capitals or not; empty: all. */
  readonly search: string;
  /** Only those that are connected, or that are not; null: both. */
  readonly connected: boolean | null;
  /** Only those that a `where` fits; null: all. */
  readonly where: readonly Term[] | null;
  readonly sort: DeviceOrder;
  /** `next` of the page before; empty: the first page. */
  readonly after: string;
  readonly limit: number;
}

/** A device as the API shows it. */
export interface ListedDevice extends EnrolledDevice {
  readonly connected: boolean;
  readonly tags: Tags;
  readonly addresses: readonly string[];
}

/** A device's place in an order other than by name: its key there, then its name. */
interface Place {
  readonly key: number;
  readonly device: string;
}

const inOrder = (a: Place, b: Place): number =>
  a.key - b.key || (a.device === b.device ? 0 : a.device < b.device ? -1 : 1);

/** `next` of a page in another order: the last device's place. The first letter is the order's. */
const CURSOR = /^([ps])(0|-?[1-9]\d{0,14})\.([A-Za-z0-9._:~-]{1,128})$/;
const cursorText = (sort: DeviceOrder, { key, device }: Place): string => `${sort[0]}${key}.${device}`;

/** @throws PereError malformed */
function readCursor(sort: DeviceOrder, text: string): Place | null {
  if (text === "") return null;
  const [, order, key, device] = CURSOR.exec(text) ?? [];
  if (order === sort[0]) return { key: Number(key), device: device! };
  const message = `must be \`next\` of a page with sort=${sort}`;
  throw new PereError("malformed", `after: ${message}`, [{ path: "after", message }]);
}

/** Whether a name contains a text, in capitals or not. Names are ASCII. */
const contains = (text: string): ((name: string) => boolean) => {
  const lower = text.toLowerCase();
  return lower === "" ? () => true : (name) => name.toLowerCase().includes(lower);
};

/** The part of presence that the directory needs. */
type Connected = Pick<Presence<unknown>, "connected" | "isConnected" | "addresses" | "heardAt">;

export class Directory {
  readonly #store: Store;
  readonly #presence: Connected;
  readonly #now: () => number;

  constructor(store: Store, presence: Connected, now: () => number) {
    this.#store = store;
    this.#presence = presence;
    this.#now = now;
  }

  /** @throws PereError unknown */
  async #heads(channel: string): Promise<Heads> {
    const heads = await this.#store.heads(channel);
    if (heads) return heads;
    throw new PereError("unknown", `channel ${channel} has never been used`);
  }

  // -------------------------------------------------------------------------------------------------------------- channels

  /**
   * Channels by name, with the number of connected devices: a page, or all of them if `limit` is null. Unused channels are included only while a
   * device is connected. `parts` are their JSON texts as UTF-8, comma separated, several in each: one text of very many would be made in one go.
   * `next` is the last one's name, or null at the end.
   * @param scope the channels that the reader may see; null: all. @param search part of the names, in capitals or not; empty: all
   */
  async channels(
    after: string,
    limit: number | null,
    scope: ChannelScope | null,
    search = "",
  ): Promise<{ parts: Uint8Array[]; next: string | null }> {
    const parts: Uint8Array[] = [];
    let count = 0;
    let last = "";
    let isMore = false;
    const pages = search === "" ? this.#pages(after, limit, scope) : this.#found(after, search, scope);
    for await (const items of pages) {
      const texts: string[] = [];
      const elsewhere = await Promise.all(items.map(({ channel }) => this.#store.remotePresence(channel)));
      for (const [index, { channel, epoch, events, devices, isUnused }] of items.entries()) {
        const connected = this.#presence.connected(channel, null, elsewhere[index]!);
        if (isUnused && connected === 0) continue;
        if (count === limit) {
          isMore = true;
          break;
        }
        count++;
        last = channel;
        const newest = events.head === 0 ? "null" : `"${epoch}-${events.head}"`;
        texts.push(
          `{"channel":"${channel}","events":${events.head - events.floor - events.controls},"devices":${devices},"connected":${connected},"last":${newest}}`,
        );
      }
      if (texts.length > 0) parts.push(utf8.encode((parts.length > 0 ? "," : "") + texts.join()));
      if (isMore) break;
    }
    return { parts, next: isMore ? last : null };
  }

  /** Channels by name, some at a time. */
  async *#pages(
    after: string,
    limit: number | null,
    scope: ChannelScope | null,
  ): AsyncGenerator<readonly ChannelEntry[]> {
    // One extra row shows whether there are more.
    let size = Math.min(READ_ROWS, (limit ?? READ_ROWS) + 1);
    for (let from: string | null = after; from !== null; size = READ_ROWS) {
      await yieldToEventLoop("read", size);
      const read: Page<ChannelEntry, string> = await this.#store.channels(from, size, scope);
      yield read.items;
      from = read.next;
    }
  }

  /** Those whose names contain a text: looks at every name, and reads only what it finds. */
  async *#found(after: string, search: string, scope: ChannelScope | null): AsyncGenerator<readonly ChannelEntry[]> {
    const isNamed = contains(search);
    for (let from: string | null = after; from !== null;) {
      await yieldToEventLoop("read", NAMES);
      const read: Page<string, string> = await this.#store.channelNames(from, NAMES, scope);
      const names = read.items.filter(isNamed);
      for (let at = 0; at < names.length; at += READ_ROWS) {
        await yieldToEventLoop("read", READ_ROWS);
        const some = { names: names.slice(at, at + READ_ROWS), prefixes: [] };
        yield (await this.#store.channels("", READ_ROWS, some)).items;
      }
      from = read.next;
    }
  }

  // --------------------------------------------------------------------------------------------------------------- devices

  /** Enrolled devices. @throws PereError unknown, malformed */
  async devices(channel: string, query: DeviceQuery): Promise<{ devices: ListedDevice[]; next: string | null }> {
    await this.#heads(channel);
    const elsewhere = await this.#store.remotePresence(channel);
    const isNamed = contains(query.search);
    const fits = ({ device }: DeviceEnrolment): boolean =>
      isNamed(device) &&
      (query.connected === null || query.connected === this.#presence.isConnected(channel, device, elsewhere));
    const isAll = query.search === "" && query.connected === null && query.where === null;
    const { where } = query;
    const those = async (some: readonly DeviceEnrolment[]): Promise<DeviceEnrolment[]> => {
      const named = some.filter(fits);
      if (where === null || named.length === 0) return named;
      const names = named.map(({ device }) => device);
      const tags = await this.#store.tags(channel, names);
      return named.filter(({ device }) => fitsWhere(where, tags.get(device) ?? NO_TAGS));
    };
    const { items, next } =
      query.sort === "name"
        ? await this.#byName(channel, query, isAll ? null : those)
        : await this.#byKey(channel, query, those);
    const devices = await this.#store.owing(channel, items, this.#now());
    return { devices: await this.#listed(channel, devices, elsewhere), next };
  }

  /** One enrolled device. @throws PereError unknown */
  async device(channel: string, device: string): Promise<ListedDevice> {
    await this.#heads(channel);
    const found = await this.#store.owing(channel, [device], this.#now());
    const [listed] = await this.#listed(channel, found, await this.#store.remotePresence(channel));
    if (listed) return listed;
    throw new PereError("unknown", `device ${device} is not enrolled in channel ${channel}`);
  }

  /** The names of a page by name. @param those the ones to list among some; null: all */
  async #byName(
    channel: string,
    { after, limit }: DeviceQuery,
    those: ((some: readonly DeviceEnrolment[]) => Promise<DeviceEnrolment[]>) | null,
  ): Promise<Page<string, string>> {
    const found: string[] = [];
    const size = those ? READ_ROWS : limit;
    for (let from: string | null = after; from !== null && found.length <= limit;) {
      await yieldToEventLoop("read", size);
      const read: Page<DeviceEnrolment, string> = await this.#store.enrolments(channel, from, size);
      if (!those) return { items: read.items.map(({ device }) => device), next: read.next };
      for (const { device } of await those(read.items)) found.push(device);
      from = read.next;
    }
    return page(found, limit, (device) => device);
  }

  /** The names of a page in another order: the first after the cursor among all. */
  async #byKey(
    channel: string,
    { sort, after, limit }: DeviceQuery,
    those: (some: readonly DeviceEnrolment[]) => Promise<DeviceEnrolment[]>,
  ): Promise<Page<string, string>> {
    const cursor = readCursor(sort, after);
    const first = new First<Place>(limit + 1, inOrder);
    for (let from: string | null = ""; from !== null;) {
      await yieldToEventLoop("read", READ_ROWS);
      const read: Page<DeviceEnrolment, string> = await this.#store.enrolments(channel, from, READ_ROWS);
      const some = await those(read.items);
      const places =
        sort === "seen"
          ? some.map(({ device, seenAt }) => ({
              key: this.#presence.heardAt(channel, device) ?? seenAt ?? 0,
              device,
            }))
          : (
              await this.#store.owing(
                channel,
                some.map(({ device }) => device),
                this.#now(),
              )
            ).map(({ device, pending }) => ({ key: -pending, device }));
      for (const place of places) if (cursor === null || inOrder(place, cursor) > 0) first.add(place);
      from = read.next;
    }
    const { items, next } = page(first.items(), limit, (place) => cursorText(sort, place));
    return { items: items.map(({ device }) => device), next };
  }

  async #listed(
    channel: string,
    devices: readonly EnrolledDevice[],
    elsewhere: ReadonlyMap<string, number>,
  ): Promise<ListedDevice[]> {
    const away = devices.map(({ device }) => device).filter((device) => elsewhere.has(device));
    const there = await this.#store.addresses(channel, away);
    const tags = await this.#store.tags(
      channel,
      devices.map(({ device }) => device),
    );
    return devices.map(({ device, enrolledAt, seenAt, pending }) => ({
      device,
      enrolledAt,
      connected: this.#presence.isConnected(channel, device, elsewhere),
      addresses: [...new Set([...this.#presence.addresses(channel, device), ...(there.get(device) ?? [])])].sort(),
      seenAt: this.#presence.heardAt(channel, device) ?? seenAt,
      pending,
      tags: tags.get(device) ?? NO_TAGS,
    }));
  }

  /**
   * The kept events that are addressed to a device, newest first, before the event `after`, each with the device's status on it. `next` is the last
   * one's id, or null at the end.
   * @throws PereError unknown: the channel, the position, or a device that is neither enrolled nor addressed by a kept event; away
   */
  async history(
    channel: string,
    device: string,
    after: Position | null,
    limit: number,
  ): Promise<{ epoch: string; rows: readonly HistoryRow[]; next: string | null }> {
    const { epoch, events } = await this.#heads(channel);
    if (after && after.epoch !== epoch)
      throw new PereError("unknown", `after: no event of channel ${channel} has this id`);
    const found = await this.#store.history(channel, epoch, device, after?.seq ?? events.head + 1, limit, this.#now());
    if (found === null)
      throw new PereError("away", `the log of channel ${channel} was lost or restored just now; repeat the request`);
    const { items: rows, next } = found;
    if (rows.length === 0 && after === null) await this.device(channel, device);
    return { epoch, rows, next: next === null ? null : id(epoch, next) };
  }
}
