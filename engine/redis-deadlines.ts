/**
 * Which channels have a deadline ahead, told among the instances that share one Redis.
 *
 * One list beside the channels says when each is due. An instance that takes a channel up moves it beyond all times, deals with what is due in one
 * script, and puts it back to where its next deadline is, unless a push has put it before that meanwhile. When an instance dies between the two, the
 * channel comes back with the next round of trimming.
 */
import type { Keys } from "./redis-keys.ts";
import type { Redis, Reply } from "./redis-link.ts";
import { SCRIPTS } from "./redis-scripts.ts";

/** Channels that are dealt with at once, and devices that one script looks at for them. */
const DUE_AT_ONCE = "16";
const MISS_DEVICES = 500;
/** Later than any deadline: the channel is being dealt with. */
const CLAIMED = 1e15;

export class RedisDeadlines {
  readonly #link: Redis;
  readonly #due: string;
  readonly #keys: (channel: string) => Keys;

  /** @param due where the list is kept */
  constructor(link: Redis, due: string, keys: (channel: string) => Keys) {
    this.#link = link;
    this.#due = due;
    this.#keys = keys;
  }

  /** A channel has a deadline then, if not before. */
  ahead(channel: string, at: number | string): Promise<unknown> {
    return this.#link.send("ZADD", this.#due, "LT", String(at), channel);
  }

  /** As `Store.miss`. */
  async miss(now: number): Promise<number | null> {
    const due = await this.#link.send("ZRANGEBYSCORE", this.#due, "-inf", String(now), "LIMIT", "0", DUE_AT_ONCE);
    await Promise.all((due as readonly string[]).map((channel) => this.#missIn(channel, now)));
    // Its member and its score.
    const first = ((await this.#link.send("ZRANGE", this.#due, "0", "0", "WITHSCORES")) as readonly Reply[]).flat();
    return first.length === 2 && Number(first[1]) < CLAIMED ? Number(first[1]) : null;
  }

  async #missIn(channel: string, now: number): Promise<void> {
    // A push that comes meanwhile with a deadline puts the channel back to where it must be.
    await this.#link.send("ZADD", this.#due, "XX", String(CLAIMED), channel);
    const next = await this.#link.run(SCRIPTS.miss, this.#keys(channel).all, [now, MISS_DEVICES]);
    await this.#link.run(SCRIPTS.unclaim, [this.#due], [channel, CLAIMED, String(next)]);
  }
}
