/**
 * Scheduled pushes: stored with their options, and pushed when they are due.
 *
 * The store knows when each is due, and uses each due time once, in the same step as the event, however many instances try. So nothing is
 * remembered here: a process that starts after a due time finds it. Times of an `every` that have passed while nobody ran are made up for by one push.
 * Options are read again when the push is due: they may be refused then, for example because what they need has changed.
 */
import { DueWork } from "../due.ts";
import type { Report } from "../faults.ts";
import { type EventDraft, PereError } from "../model.ts";
import { EVENT_OPTIONS, readEventOptions } from "../parsing.ts";
import type { DueTime, Idempotency, Page, Schedule, Store } from "../store.ts";
import { nextTime, readAt, readEvery, readZone } from "./times.ts";

/** Pushes per step. They share commits. */
const DUE_AT_ONCE = 256;

/** The query parameters of a push that make it a scheduled one. */
export const SCHEDULE_OPTIONS = ["at", "every", "tz"] as const;

const SCHEDULE_ID = /^s-[0-9a-z]{9}[0-9a-z]{8}$/;

/** Sorts by creation: the time in milliseconds, then 41 random bits. */
function newScheduleId(now: number): string {
  const [a, b] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
  return `s-${now.toString(36).padStart(9, "0")}${((a & 0x1ff) * 2 ** 32 + b).toString(36).padStart(8, "0")}`;
}

/** When a push is due: once, or each time that an expression fires. */
export type Timing = { readonly at: number } | { readonly every: string; readonly tz: string };

/** What the query says of a push's time; null: it is pushed now. @throws PereError malformed, refused */
export function readTiming(query: ReadonlyMap<string, string>, now: number): Timing | null {
  const [at, every, tz] = SCHEDULE_OPTIONS.map((name) => query.get(name));
  const exclude = (path: string, message: string) =>
    new PereError("refused", `${path}: ${message}`, [{ path, message }]);
  if (at !== undefined && every !== undefined) throw exclude("every", "give at or every, not both");
  if (tz !== undefined && every === undefined)
    throw exclude("tz", "a time zone needs every; the time in at has its own");
  if (at !== undefined) return { at: readAt(at) };
  return every === undefined ? null : { every: readEvery(every, now), tz: tz === undefined ? "UTC" : readZone(tz) };
}

/** Stores the event of a scheduled push and uses its due time. @throws PereError conflict: the due time is used */
type PushScheduled = (channel: string, draft: EventDraft, time: DueTime) => Promise<unknown>;

export class Schedules {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #push: PushScheduled;
  readonly #due: DueWork;

  /** @param push stores an event; does what the engine does with every push */
  constructor(store: Store, now: () => number, push: PushScheduled, report?: Report) {
    this.#store = store;
    this.#now = now;
    this.#push = push;
    this.#due = new DueWork((at) => this.#pushDue(at), now, report);
  }

  // ------------------------------------------------------------------------------------------------------------------ requests

  /**
   * Stores a push for later.
   * @param options the query parameters of the push, by name
   * @throws PereError refused, conflict, away
   */
  async put(
    channel: string,
    timing: Timing,
    data: string,
    options: Readonly<Record<string, string>>,
    key?: Idempotency,
  ): Promise<{ schedule: Schedule; replayed: boolean }> {
    const now = this.#now();
    const isOnce = "at" in timing;
    const next = isOnce ? timing.at : nextTime(timing.every, timing.tz, now)!;
    const [every, tz] = isOnce ? [null, null] : [timing.every, timing.tz];
    const draft = { id: newScheduleId(now), options, data, every, tz };
    const stored = await this.#store.schedule(channel, draft, next, now, key && { ...key, now });
    if (stored.schedule.next !== null) this.#due.ahead(stored.schedule.next);
    return stored;
  }

  list(channel: string, after: string, limit: number): Promise<Page<Schedule, string>> {
    return this.#store.schedules(channel, after, limit);
  }

  /** @throws PereError unknown */
  async get(channel: string, id: string): Promise<Schedule> {
    const found = SCHEDULE_ID.test(id) ? await this.#store.scheduled(channel, id) : null;
    if (found) return found;
    throw unknown(channel, id);
  }

  /** Cancels a push, or deletes one that is done. After that nothing is pushed for it. @throws PereError unknown */
  async cancel(channel: string, id: string): Promise<void> {
    if (!SCHEDULE_ID.test(id) || !(await this.#store.unschedule(channel, id, this.#now()))) throw unknown(channel, id);
  }

  // ------------------------------------------------------------------------------------------------------------------ due times

  /** @returns when the next push is due, or null */
  async #pushDue(now: number): Promise<number | null> {
    const { due, next } = await this.#store.dueSchedules(now, DUE_AT_ONCE);
    const results = await Promise.allSettled(due.map((one) => this.#use(one.channel, one.schedule)));
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
    return next;
  }

  /** Pushes what is due, and says when it is due again. @throws PereError away, full: nothing was pushed, or the result is unknown */
  async #use(channel: string, { id, data, options, every, tz, next: due }: Schedule): Promise<void> {
    const now = this.#now();
    // Times that have passed are made up for by this push.
    const time = { id, due: due!, next: every === null ? null : nextTime(every, tz!, Math.max(due!, now)) };
    try {
      const draft = { ...readEventOptions(new Map(Object.entries(options))), data };
      await this.#push(channel, draft, time);
    } catch (error) {
      if (!(error instanceof PereError)) throw error;
      if (error.code === "conflict") return; // Another instance was faster, or it was cancelled.
      if (error.code !== "refused" && error.code !== "malformed") throw error;
      await this.#store.skipSchedule(channel, time, error.message, now);
    }
  }

  /** Stops. @returns when the running query has ended */
  stop(): Promise<void> {
    return this.#due.stop();
  }
}

const unknown = (channel: string, id: string): PereError =>
  new PereError("unknown", `channel ${channel} has no scheduled push ${id}`);

/** The options of the event among a push's query parameters. */
export const eventOptionsOf = (query: ReadonlyMap<string, string>): Record<string, string> =>
  Object.fromEntries([...query].filter(([name]) => EVENT_OPTIONS.some((option) => option === name)));
