/**
 * Which channels have a deadline ahead, told among the instances that share one Redis.
 *
 * One list beside the channels says when each is due. An instance that takes a channel up puts a mark in its place, deals with what is due in one
 * script, puts the channel back to where its next deadline is, and removes the mark. A push that comes meanwhile finds the channel gone and puts it
 * back itself. The mark has a time of its own: when the instance dies between the two, the mark is due shortly after, and another takes the
 * channel up. Two that work on one channel do no harm, for each device is recorded once.
 */
import { PereError } from "../model.ts";
import type { Keys } from "./keys.ts";
import type { Redis } from "./connection.ts";
import type { SCRIPTS } from "./scripts.ts";

/** Channels that are dealt with at once, and devices that one script looks at for them. */
const DUE_AT_ONCE = 16;
const MISS_DEVICES = 500;
/** So long an instance has for a channel before it is taken for dead, and others are not kept waiting by one channel. */
const CLAIM_MS = 500;

/** Trouble that passes: what was not done now is due again soon. */
const isAway = (error: unknown): boolean => error instanceof PereError && error.code === "away";

export class RedisDeadlines {
  readonly #link: Redis;
  readonly #due: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;
  readonly #known: (channel: string) => string;

  /** @param due where the list is kept; @param known what is known of a channel, for the scripts' `guard` */
  constructor(
    link: Redis,
    due: string,
    keys: (channel: string) => Keys,
    scripts: typeof SCRIPTS,
    known: (channel: string) => string,
  ) {
    this.#link = link;
    this.#due = due;
    this.#keys = keys;
    this.#scripts = scripts;
    this.#known = known;
  }

  /** A channel has a deadline then, if not before. */
  ahead(channel: string, at: number | string): Promise<unknown> {
    return this.#link.send("ZADD", this.#due, "LT", String(at), channel);
  }

  /**
   * Stores an event whose deadline is `ms` from now. The list is told first: what is stored is never without its place there. A deadline so short that
   * somebody may have looked between the two is told again.
   */
  async append<Value>(channel: string, now: number, ms: number, store: () => Promise<Value>): Promise<Value> {
    const startedAt = performance.now();
    const [, stored] = await Promise.all([this.ahead(channel, now + ms), store()]);
    if (performance.now() - startedAt + 1_000 > ms) await this.ahead(channel, now + ms);
    return stored;
  }

  /** As `Store.miss`. */
  async miss(now: number): Promise<number | null> {
    const until = now + CLAIM_MS;
    const values = [now, until, DUE_AT_ONCE];
    const [next, ...due] = (await this.#link.run(this.#scripts.claim, [this.#due], values)) as readonly string[];
    if (due.length === 0) return next === "" ? null : Number(next);
    const work = Promise.allSettled(due.map((channel) => this.#missIn(channel, now, until)));
    const ended = (await Promise.race([work, Bun.sleep(CLAIM_MS)])) ?? [];
    for (const outcome of ended) if (outcome.status === "rejected" && !isAway(outcome.reason)) throw outcome.reason;
    return now; // There may be more.
  }

  async #missIn(channel: string, now: number, until: number): Promise<void> {
    const values = [now, MISS_DEVICES, this.#known(channel)];
    const next = await this.#link.run(this.#scripts.miss, this.#keys(channel).all, values);
    await this.#link.run(this.#scripts.unclaim, [this.#due], [channel, until, String(next)]);
  }
}
