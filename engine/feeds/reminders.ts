/**
 * Reminders: an event is given again to devices that are connected here and have said nothing of it.
 *
 * Each instance reminds the devices of its own feeds. What it knows of reminders is only a copy: it hears of new ones as they are pushed, and
 * reads those there are when the first device of a channel comes, or when something may have passed unheard. When one is due follows
 * from the time of its event, so it is the same at every instance, before and after a restart.
 */
import { Turn } from "../yield.ts";
import { attempt, onConsole, type Report, unexpected } from "../faults.ts";
import type { Feeds } from "./feeds.ts";
import { remindedUntil } from "../model.ts";
import type { Reminder, Store, Wake } from "../store.ts";

/** How exactly a reminder keeps its time. */
const TICK_MS = 250;
/** Devices that the store is asked about at once. */
const DEVICES_AT_ONCE = 500;
/** Reminders that were read and are taken in between two looks at the clock. */
const ADDED_AT_ONCE = 1_000;
/** Events that are reminded of at once: more would only wait for each other in the store. */
const EVENTS_AT_ONCE = 16;
/** Reminders of a channel that may come before it is looked for those that retention took; twice as many as there are, and these. */
const SLACK = 1_000;

/** One reminder, and when it is due. */
interface DueReminder {
  readonly channel: string;
  readonly reminder: Reminder;
  due: number;
}

/** What is known of a channel that a device follows here: by the event's `seq`, at most so many. */
interface Known {
  readonly entries: Map<number, DueReminder>;
  most: number;
}

/** When a reminder is due next after a time. */
const dueAfter = ({ at, every }: Reminder, time: number): number =>
  at + Math.max(1, Math.floor((time - at) / every) + 1) * every;

export class Reminders {
  readonly #store: Store;
  readonly #feeds: Feeds;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #channels = new Map<string, Known>();
  /** Whose turn is to come. */
  readonly #queue = new Set<DueReminder>();
  #isWorking = false;
  readonly #timer: Timer;
  #earliest = Number.POSITIVE_INFINITY;
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(store: Store, feeds: Feeds, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#feeds = feeds;
    this.#now = now;
    this.#report = report;
    this.#timer = setInterval(() => attempt(report, () => this.#tick()), TICK_MS);
    this.#timer.unref();
  }

  /** A device follows this channel here, or none does any more. */
  attended(channel: string, isAttended: boolean): void {
    if (!isAttended) return void this.#channels.delete(channel);
    this.#channels.set(channel, { entries: new Map(), most: Number.POSITIVE_INFINITY });
    this.read(channel);
  }

  /** Reads a channel's reminders, where a device follows it, and forgets those that are no longer kept. */
  read(channel: string): void {
    const known = this.#channels.get(channel);
    if (!known) return;
    const { entries } = known;
    const newest = [...entries.keys()].at(-1) ?? 0;
    known.most = Number.POSITIVE_INFINITY; // Until it is known, it is not asked again.
    this.#store
      .reminders(channel, this.#now())
      .then(async (found) => {
        const oldest = found[0]?.seq ?? newest + 1;
        const epoch = found[0]?.epoch;
        for (const [seq, { reminder }] of entries)
          if (seq < oldest || (epoch !== undefined && reminder.epoch !== epoch)) entries.delete(seq);
        const breath = new Turn();
        for (let from = 0; from < found.length; from += ADDED_AT_ONCE) {
          for (const reminder of found.slice(from, from + ADDED_AT_ONCE)) this.#add(channel, entries, reminder);
          await breath.yieldToEventLoop();
        }
        known.most = 2 * entries.size + SLACK;
      })
      .catch((error: unknown) => {
        unexpected(this.#report, error);
        setTimeout(() => this.read(channel), TICK_MS * (4 + 4 * Math.random())).unref();
      });
  }

  /** Entries were stored. */
  woken(wake: Wake): void {
    if (wake.kind !== "events") return;
    const { channel, epoch, entries } = wake;
    const known = this.#channels.get(channel);
    if (!known) return;
    for (const event of entries)
      if (event.remind !== null)
        this.#add(channel, known.entries, {
          epoch,
          seq: event.seq,
          at: event.at,
          every: event.remind,
          until: remindedUntil(event),
        });
    if (known.entries.size > known.most) this.read(channel);
  }

  #add(channel: string, entries: Known["entries"], reminder: Reminder): void {
    // In a new life of the channel the number is another event's.
    if (entries.get(reminder.seq)?.reminder.epoch === reminder.epoch) return;
    const due = dueAfter(reminder, this.#now());
    entries.set(reminder.seq, { channel, reminder, due });
    this.#earliest = Math.min(this.#earliest, due);
  }

  #tick(): void {
    const now = this.#now();
    const wentBack = now < this.#lookedAt;
    this.#lookedAt = now;
    if (now < this.#earliest && !wentBack) return;
    this.#earliest = Number.POSITIVE_INFINITY;
    for (const { entries } of this.#channels.values())
      for (const [seq, entry] of entries) {
        const { until } = entry.reminder;
        if (until !== null && until <= now) {
          entries.delete(seq);
          continue;
        }
        if (wentBack) entry.due = Math.min(entry.due, dueAfter(entry.reminder, now));
        if (entry.due <= now) {
          entry.due = dueAfter(entry.reminder, now);
          this.#queue.add(entry);
        }
        this.#earliest = Math.min(this.#earliest, entry.due);
      }
    if (!this.#isWorking) void this.#work().catch(this.#report);
  }

  /** Reminds of what is due, some at a time; who is due again before his turn came has one turn. */
  async #work(): Promise<void> {
    this.#isWorking = true;
    const breath = new Turn();
    try {
      while (this.#queue.size > 0) {
        const some = [...this.#queue.values().take(EVENTS_AT_ONCE)];
        for (const entry of some) this.#queue.delete(entry);
        await Promise.all(some.map((entry) => this.#takeTurn(entry)));
        await breath.yieldToEventLoop();
      }
    } finally {
      this.#isWorking = false;
    }
  }

  async #takeTurn(entry: DueReminder): Promise<void> {
    const entries = this.#channels.get(entry.channel)?.entries;
    const { seq, until } = entry.reminder;
    if (entries?.get(seq) !== entry) return; // Nobody follows the channel any more.
    if (until !== null && until <= this.#now()) return;
    try {
      if ((await this.#remind(entry.channel, entry.reminder)) && entries.get(seq) === entry) entries.delete(seq);
    } catch (error) {
      unexpected(this.#report, error); // Where the store is away, there is another reminder.
    }
  }

  /** True: there is nobody left to remind, nowhere. */
  async #remind(channel: string, { epoch, seq, until }: Reminder): Promise<boolean> {
    const tally = (await this.#store.tallies(channel, epoch, seq, seq))?.get(seq);
    if (!tally) return true;
    const { addressed, received, working, missing, done, failed } = tally;
    if (addressed === received + working + missing + done + failed) return true;
    const [event] = (await this.#store.events(channel, epoch, seq - 1, 1)) ?? [];
    if (event?.seq !== seq) return true;
    const addressees = this.#feeds.presence.addressed(channel, event);
    const breath = new Turn();
    for (let at = 0; at < addressees.length; at += DEVICES_AT_ONCE) {
      // The store has the last word on whom it is addressed to: a device may have been retired, and be back, without having been heard of here.
      const silent = await this.#store.unanswered(channel, epoch, seq, addressees.slice(at, at + DEVICES_AT_ONCE));
      if (silent === null || (until !== null && until <= this.#now())) return true;
      this.#feeds.remind(channel, epoch, event, silent);
      await breath.yieldToEventLoop();
    }
    return false;
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#queue.clear();
  }
}
