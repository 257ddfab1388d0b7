/**
 * Scheduled pushes in Redis: those of a channel in its slot, and a list of the channels that have some, sorted by when each of them is due.
 *
 * An instance that finds a channel due replaces it in the list by a mark, and pushes. The mark comes due shortly after: then whoever looks next finds
 * what is left, and puts the channel back at its next time. So nothing is lost if the instance dies, and two instances that push at once do no harm,
 * because each due time is used once, in the same step as the event.
 */
import { KEY_MEMORY_MS, parsePosition } from "../model.ts";
import {
  cancelledSchedule,
  type DueTime,
  type Idempotency,
  otherRequest,
  type Page,
  page,
  type Schedule,
  type ScheduleDraft,
  SCHEDULES_MAX,
  tooManySchedules,
} from "../store.ts";
import type { Redis, Reply } from "./connection.ts";
import type { Keys } from "./keys.ts";
import type { Script, SCRIPTS } from "./scripts.ts";

/** Channels looked at together. */
const DUE_AT_ONCE = 16;
/** How long an instance may take for what is due before another one looks. */
const CLAIM_MS = 500;
/** Redis drops an idempotency key by its own clock, so later than PERE forgets it. */
const KEY_SLACK_MS = 3_600_000;

/** What never changes, as stored. */
type Fixed = Omit<ScheduleDraft, "id">;

function scheduleOf(reply: Reply): Schedule {
  const [id, fixed, next, last, error] = reply as readonly [string, string, string?, string?, string?];
  return {
    id,
    ...(JSON.parse(fixed) as Fixed),
    next: next == null ? null : Number(next),
    last: last == null ? null : parsePosition(last),
    error: error ?? null,
  };
}

/** Runs a script that may create its channel, with keys in addition to the channel's. */
type Make = (
  script: Script,
  channel: string,
  values: readonly (string | number)[],
  keys: readonly string[],
) => Promise<readonly Reply[]>;

export class RedisSchedules {
  readonly #link: Redis;
  readonly #list: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;
  readonly #make: Make;
  readonly #guardOf: (channel: string) => string;

  /**
   * @param list key of the list of channels
   * @param guardOf what is known of a channel, for `guard` in the scripts
   */
  constructor(
    link: Redis,
    list: string,
    keys: (channel: string) => Keys,
    scripts: typeof SCRIPTS,
    make: Make,
    guardOf: (channel: string) => string,
  ) {
    this.#link = link;
    this.#list = list;
    this.#keys = keys;
    this.#scripts = scripts;
    this.#make = make;
    this.#guardOf = guardOf;
  }

  async #run(script: Script, channel: string, values: readonly (string | number)[]): Promise<Reply> {
    const { all, schedules } = this.#keys(channel);
    return this.#link.run(script, [...all, ...schedules], values);
  }

  /** Adds a channel to the list, unless it is due earlier. */
  ahead(channel: string, at: number | string): Promise<unknown> {
    return this.#link.send("ZADD", this.#list, "LT", String(at), channel);
  }

  /** Implements `Store.schedule`. */
  async put(channel: string, draft: ScheduleDraft, next: number, now: number, key?: Idempotency) {
    const { id, ...fixed } = draft;
    const keys = [...this.#keys(channel).schedules, ...(key ? [this.#keys(channel).idempotency(key.key)] : [])];
    const keyNow = key?.now ?? now;
    const values = [id, JSON.stringify(fixed), next, now, key?.digest ?? "", keyNow + KEY_MEMORY_MS];
    // Listed first, so that none is stored that is not. An instance may look in between if it is due at once, so it is listed again.
    await this.ahead(channel, next);
    const [, kind, state] = await this.#make(
      this.#scripts.schedule,
      channel,
      [...values, KEY_MEMORY_MS + KEY_SLACK_MS, keyNow, SCHEDULES_MAX, this.#guardOf(channel)],
      keys,
    );
    if (kind === -1) throw otherRequest();
    if (kind === -2) throw cancelledSchedule();
    if (kind === -3) throw tooManySchedules(channel);
    const schedule = scheduleOf(state!);
    if (schedule.next !== null) await this.ahead(channel, schedule.next);
    return { schedule, replayed: kind === 1 };
  }

  /** Implements `Store.schedules`. */
  async list(channel: string, after: string, limit: number): Promise<Page<Schedule, string>> {
    const found = (await this.#run(this.#scripts.schedules, channel, [
      after === "" ? "-" : `(${after}`,
      limit + 1,
    ])) as readonly Reply[];
    return page(found.map(scheduleOf), limit, ({ id }) => id);
  }

  /** Implements `Store.scheduled`. */
  async get(channel: string, id: string): Promise<Schedule | null> {
    const [found] = (await this.#run(this.#scripts.schedules, channel, ["", id])) as readonly Reply[];
    return found === undefined || found === null ? null : scheduleOf(found);
  }

  /** Implements `Store.unschedule`. */
  async drop(channel: string, id: string): Promise<boolean> {
    return (await this.#run(this.#scripts.unschedule, channel, [id])) === 1;
  }

  /** Implements `Store.skipSchedule`. */
  async skip(channel: string, { id, due, next }: DueTime, error: string, now: number): Promise<boolean> {
    return (await this.#run(this.#scripts.skipSchedule, channel, [id, due, next ?? "", error, now])) === 1;
  }

  /** Implements `Store.dueSchedules`. */
  async due(now: number, limit: number) {
    const until = now + CLAIM_MS;
    const values = [now, until, DUE_AT_ONCE];
    const [next, ...channels] = (await this.#link.run(this.#scripts.claim, [this.#list], values)) as readonly string[];
    const each = Math.max(1, Math.floor(limit / DUE_AT_ONCE));
    const found = await Promise.all(channels.map((channel) => this.#dueIn(channel, now, until, each)));
    const due = found.flat();
    // Channels that are put back may be due before those of the list.
    return { due, next: channels.length > 0 ? now : next === "" ? null : Number(next) };
  }

  /** What is due in a channel; if nothing is, puts it back in the list. */
  async #dueIn(channel: string, now: number, until: number, limit: number) {
    const reply = (await this.#run(this.#scripts.dueSchedules, channel, [now, limit])) as readonly [string, Reply[]];
    const [next, due] = reply;
    if (due.length === 0) await this.#link.run(this.#scripts.unclaim, [this.#list], [channel, until, next]);
    return due.map((state) => ({ channel, schedule: scheduleOf(state) }));
  }
}
