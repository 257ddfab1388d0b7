/**
 * A list of channels with a deadline ahead, shared by the instances on one Redis; another one is of channels in which an event is to become overdue.
 *
 * The list is sorted by when each channel is due. An instance that claims a channel replaces it by a mark, processes what is due in one script, puts
 * the channel back at its next deadline, and removes the mark. A push in between finds the channel missing and adds it again. The mark has a due time
 * itself: if the instance dies in between, the mark comes due shortly after and another instance claims the channel. Two instances that process the
 * same channel do no harm, because each device is recorded once.
 */
import { PereError } from "../model.ts";
import type { Redis } from "./connection.ts";
import type { SCRIPTS } from "./scripts.ts";

/** Channels processed at once. */
const DUE_AT_ONCE = 16;
/** How long an instance may take for a channel before it counts as dead; also limits how long one channel delays the others. */
const CLAIM_MS = 500;

/** Trouble that passes: what was not done now is due again soon. */
const isAway = (error: unknown): boolean => error instanceof PereError && error.code === "away";

export class RedisDeadlines {
  readonly #link: Redis;
  readonly #due: string;
  readonly #scripts: typeof SCRIPTS;
  readonly #process: (channel: string, now: number) => Promise<string>;
  readonly #claimMs: number;

  /**
   * @param due key of the list
   * @param process does what is due in a channel, in a slice; returns when something is due there next, milliseconds since 1970, or an empty text
   * @param claimMs how long an instance may take for a channel, milliseconds
   */
  constructor(
    link: Redis,
    due: string,
    scripts: typeof SCRIPTS,
    process: (channel: string, now: number) => Promise<string>,
    claimMs = CLAIM_MS,
  ) {
    this.#link = link;
    this.#due = due;
    this.#scripts = scripts;
    this.#process = process;
    this.#claimMs = claimMs;
  }

  /** Adds a deadline of a channel, unless it has an earlier one. */
  ahead(channel: string, at: number | string): Promise<unknown> {
    return this.#link.send("ZADD", this.#due, "LT", String(at), channel);
  }

  /**
   * Stores an event whose deadline is `ms` from now. The list is updated first, so that no stored event is without its place there. A deadline so
   * short that an instance may have checked in between is added again.
   */
  async append<Value>(channel: string, now: number, ms: number, store: () => Promise<Value>): Promise<Value> {
    const startedAt = performance.now();
    const [, stored] = await Promise.all([this.ahead(channel, now + ms), store()]);
    if (performance.now() - startedAt + 1_000 > ms) await this.ahead(channel, now + ms);
    return stored;
  }

  /** Implements `Store.recordMissing` and `Store.recordOverdue`. */
  async record(now: number): Promise<number | null> {
    const until = now + this.#claimMs;
    const values = [now, until, DUE_AT_ONCE];
    const [next, ...due] = (await this.#link.run(this.#scripts.claim, [this.#due], values)) as readonly string[];
    if (due.length === 0) return next === "" ? null : Number(next);
    const work = Promise.allSettled(due.map((channel) => this.#processIn(channel, now, until)));
    const ended = (await Promise.race([work, Bun.sleep(this.#claimMs)])) ?? [];
    for (const outcome of ended) if (outcome.status === "rejected" && !isAway(outcome.reason)) throw outcome.reason;
    return now; // There may be more.
  }

  async #processIn(channel: string, now: number, until: number): Promise<void> {
    const next = await this.#process(channel, now);
    await this.#link.run(this.#scripts.unclaim, [this.#due], [channel, until, next]);
  }
}
