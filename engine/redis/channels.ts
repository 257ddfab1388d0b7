/**
 * The lists of channels in Redis: of all channels, by name, and of unused ones, by their last sign of life.
 *
 * In a Cluster the lists and most channels are on different nodes, so a list can't be changed in the same script as a channel. If a change of a list
 * fails, the channel's next change repeats it.
 */
import type { Redis, Reply } from "./connection.ts";
import { type ChannelScope, type NameRange, rangesOf, UNUSED_MAX, UNUSED_MS_MIN } from "../store.ts";

/** Unused channels per slice. */
const UNUSED_AT_ONCE = 200;
/** Maximum number of channels that are cached as listed. */
const LISTED_MAX = 100_000;

/** Names in a sorted set, after the name `after`, in a range; absent: all. */
export async function namesAfter(
  link: Redis,
  key: string,
  after: string,
  limit: number,
  range?: NameRange,
): Promise<readonly string[]> {
  const from = range && range.from > after ? `[${range.from}` : after === "" ? "-" : `(${after}`;
  const upTo = range ? `[${range.upTo}` : "+";
  return (await link.send("ZRANGEBYLEX", key, from, upTo, "LIMIT", "0", String(limit))) as readonly string[];
}

/** What the list needs from the store. */
interface ChannelOwner {
  /** Runs `discard` of the scripts on a channel. */
  discard(channel: string, upTo: number): Promise<Reply | undefined>;
  exists(channel: string): Promise<boolean>;
}

export class ChannelList {
  readonly #link: Redis;
  readonly #all: string;
  readonly #unused: string;
  readonly #owner: ChannelOwner;
  /** Channels that this instance has added to the list of all channels. */
  readonly #listed = new Set<string>();

  /** @param prefix of all keys */
  constructor(link: Redis, prefix: string, owner: ChannelOwner) {
    this.#link = link;
    this.#all = `${prefix}channels`;
    this.#unused = `${prefix}unused`;
    this.#owner = owner;
  }

  /** Channels by name, after the channel `after`. */
  async names(after: string, limit: number, scope: ChannelScope | null): Promise<readonly string[]> {
    const found = await Promise.all(
      rangesOf(scope, after).map((range) => namesAfter(this.#link, this.#all, after, limit, range)),
    );
    return found.flat().slice(0, limit);
  }

  /** Whether this instance has added the channel. */
  has(channel: string): boolean {
    return this.#listed.has(channel);
  }

  /** Adds a channel. The change itself is already stored; if this fails, the next change tries again. */
  async add(channel: string): Promise<void> {
    const isDone = await this.#link.send("ZADD", this.#all, "0", channel).catch(() => null);
    if (isDone === null) return;
    if (this.#listed.size >= LISTED_MAX) this.#listed.clear();
    this.#listed.add(channel);
  }

  /** The server may be in another state: each channel is added again with its next change. */
  markUnverified(): void {
    this.#listed.clear();
  }

  /** Adds a channel to the list of unused channels, by its last sign of life. If this fails, the next feed tries again. */
  async addUnused(channel: string, at: number): Promise<void> {
    await this.#link.send("ZADD", this.#unused, String(at), channel).catch(() => {});
  }

  /** Deletes one slice of unused channels; if there are very many, before their time is over. True: call again. */
  async trimUnused(before: number, now: number): Promise<boolean> {
    const beyond = Number(await this.#link.send("ZCARD", this.#unused)) - UNUSED_MAX;
    let upTo = before;
    if (beyond > 0) {
      const last = String(beyond - 1);
      const [newest] = (await this.#link.send("ZRANGE", this.#unused, last, last)) as readonly string[];
      if (newest !== undefined) upTo = Math.max(before, Number(await this.#link.send("ZSCORE", this.#unused, newest)));
    }
    upTo = Math.min(upTo, now - UNUSED_MS_MIN);
    const due = (await this.#link.send(
      "ZRANGEBYSCORE",
      this.#unused,
      "-inf",
      String(upTo),
      "LIMIT",
      "0",
      String(UNUSED_AT_ONCE),
    )) as readonly string[];
    await Promise.all(due.map((channel) => this.#discard(channel, upTo)));
    return due.length === UNUSED_AT_ONCE;
  }

  async #discard(channel: string, upTo: number): Promise<void> {
    const at = await this.#owner.discard(channel, upTo);
    if (typeof at === "string") return this.addUnused(channel, Number(at));
    if (at === 1) return this.removed(channel);
    await this.#link.send("ZREM", this.#unused, channel);
  }

  /** A channel was deleted. */
  async removed(channel: string): Promise<void> {
    await this.#link.send("ZREM", this.#unused, channel);
    this.#listed.delete(channel);
    await this.#link.send("ZREM", this.#all, channel);
    if (await this.#owner.exists(channel)) await this.add(channel); // It was used again meanwhile.
  }
}
