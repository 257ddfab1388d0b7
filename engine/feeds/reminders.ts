/**
 * Reminders: an event is sent again to devices that are connected here and have not answered it at all.
 *
 * Each instance reminds the devices of its own feeds. It keeps only a copy of the reminders: it is notified of new ones as they are pushed, and reads
 * the existing ones when a channel gets its first device, or when notifications may have been missed. When a reminder is due follows from the event's
 * time, so it is the same at every instance, before and after a restart.
 */
import { WRITE_ROWS, yieldToEventLoop } from "../yield.ts";
import { attempt, onConsole, type Report, unexpected } from "../faults.ts";
import type { Feeds } from "./feeds.ts";
import { isControl, remindedUntil, tallyCounts } from "../model.ts";
import type { Reminder, Store, Wake } from "../store.ts";

/** Resolution of reminders. */
const TICK_MS = 250;
/** Devices per query of the store, and what each of them counts: it is looked up, and may be written to. */
const DEVICES_AT_ONCE = 250;
const DEVICE_ROWS = WRITE_ROWS / 2;
/** Reminders looked at in one step. */
const ENTRIES_AT_ONCE = 1_000;
/** Events reminded concurrently: more would only wait for each other in the store. */
const EVENTS_AT_ONCE = 16;
/** What an event counts: it is read, with its tally. */
const EVENT_ROWS = 16;
/** New reminders of a channel that trigger a search for deleted ones: as many as there are, plus this many. */
const SLACK = 1_000;

/** One reminder, and when it is due. */
interface DueReminder {
  readonly channel: string;
  readonly reminder: Reminder;
  due: number;
}

/** The reminders of a channel that a device follows here, by the event's `seq`. */
interface ChannelReminders {
  readonly entries: Map<number, DueReminder>;
  most: number;
}

/** When a reminder is next due after a time. */
const dueAfter = ({ at, every }: Reminder, time: number): number =>
  at + Math.max(1, Math.floor((time - at) / every) + 1) * every;

export class Reminders {
  readonly #store: Store;
  readonly #feeds: Feeds;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #channels = new Map<string, ChannelReminders>();
  /** Reminders waiting to be processed. */
  readonly #queue = new Set<DueReminder>();
  #isFinding = false;
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

  /** The channel got its first device here, or lost its last one. */
  presenceChanged(channel: string, hasDevices: boolean): void {
    if (!hasDevices) return void this.#channels.delete(channel);
    this.#channels.set(channel, { entries: new Map(), most: Number.POSITIVE_INFINITY });
    this.read(channel);
  }

  /** Reads a channel's reminders if a device follows it, and drops those that are no longer kept. */
  read(channel: string): void {
    const known = this.#channels.get(channel);
    if (!known) return;
    const { entries } = known;
    const newest = [...entries.keys()].at(-1) ?? 0;
    known.most = Number.POSITIVE_INFINITY; // Do not read again until this is known.
    this.#store
      .reminders(channel, this.#now())
      .then(async (found) => {
        const oldest = found[0]?.seq ?? newest + 1;
        const epoch = found[0]?.epoch;
        for (const [seq, { reminder }] of entries)
          if (seq < oldest || (epoch !== undefined && reminder.epoch !== epoch)) entries.delete(seq);
        for (let from = 0; from < found.length; from += ENTRIES_AT_ONCE) {
          const some = found.slice(from, from + ENTRIES_AT_ONCE);
          if (from > 0) await yieldToEventLoop("remind", some.length);
          for (const reminder of some) this.#add(channel, entries, reminder);
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
      if (isControl(event)) known.entries.delete(event.withdraws);
      else if (event.remind !== null)
        this.#add(channel, known.entries, {
          epoch,
          seq: event.seq,
          at: event.at,
          every: event.remind,
          until: remindedUntil(event),
        });
    if (known.entries.size > known.most) this.read(channel);
  }

  #add(channel: string, entries: ChannelReminders["entries"], reminder: Reminder): void {
    // In a new epoch, the number belongs to another event.
    if (entries.get(reminder.seq)?.reminder.epoch === reminder.epoch) return;
    const due = dueAfter(reminder, this.#now());
    entries.set(reminder.seq, { channel, reminder, due });
    this.#earliest = Math.min(this.#earliest, due);
  }

  #tick(): void {
    if (this.#isFinding) return;
    const now = this.#now();
    const wentBack = now < this.#lookedAt;
    this.#lookedAt = now;
    if (now < this.#earliest && !wentBack) return;
    void this.#find(now, wentBack).catch(this.#report);
  }

  /** Finds what is due. */
  async #find(now: number, wentBack: boolean): Promise<void> {
    this.#isFinding = true;
    this.#earliest = Number.POSITIVE_INFINITY;
    let looked = 0;
    for (const { entries } of this.#channels.values())
      for (const [seq, entry] of entries) {
        if (++looked % ENTRIES_AT_ONCE === 0) await yieldToEventLoop("remind", ENTRIES_AT_ONCE);
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
    this.#isFinding = false;
    if (!this.#isWorking) void this.#work().catch(this.#report);
  }

  /** Processes what is due, a few at a time. A reminder that is due again before it was processed is sent once. */
  async #work(): Promise<void> {
    this.#isWorking = true;
    try {
      while (this.#queue.size > 0) {
        await yieldToEventLoop("remind", EVENTS_AT_ONCE * EVENT_ROWS);
        const some = [...this.#queue.values().take(EVENTS_AT_ONCE)];
        for (const entry of some) this.#queue.delete(entry);
        await Promise.all(some.map((entry) => this.#takeTurn(entry)));
      }
    } finally {
      this.#isWorking = false;
    }
  }

  async #takeTurn(entry: DueReminder): Promise<void> {
    const entries = this.#channels.get(entry.channel)?.entries;
    const { seq, until } = entry.reminder;
    if (entries?.get(seq) !== entry) return; // No device follows the channel any more.
    if (until !== null && until <= this.#now()) return;
    try {
      if ((await this.#remind(entry.channel, entry.reminder)) && entries.get(seq) === entry) entries.delete(seq);
    } catch (error) {
      unexpected(this.#report, error); // If the store is away, the next reminder tries again.
    }
  }

  /** True: there is no device left to remind at any instance. */
  async #remind(channel: string, { epoch, seq, until }: Reminder): Promise<boolean> {
    const tally = (await this.#store.tallies(channel, epoch, seq, seq))?.get(seq);
    if (!tally || tallyCounts(tally).pending === 0) return true;
    const [event] = (await this.#store.events(channel, epoch, seq - 1, 1)) ?? [];
    if (event?.seq !== seq || isControl(event)) return true;
    const addressees = this.#feeds.presence.addressed(channel, event);
    for (let at = 0; at < addressees.length; at += DEVICES_AT_ONCE) {
      await yieldToEventLoop("remind", DEVICES_AT_ONCE * DEVICE_ROWS);
      // The store decides whom it is addressed to: a device may have been retired and enrolled again without notice here.
      const head = this.#feeds.headOf(channel);
      const silent = await this.#store.unanswered(channel, epoch, seq, addressees.slice(at, at + DEVICES_AT_ONCE));
      if (silent === null || (until !== null && until <= this.#now())) return true;
      this.#feeds.remind(channel, epoch, event, silent, head);
    }
    return false;
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#queue.clear();
  }
}
