/**
 * Reminders: an event is given again to devices that are connected here and have said nothing of it.
 *
 * Each instance reminds the devices of its own feeds. What it knows of reminders is only a copy: it hears of new ones as they are pushed, and
 * reads those there are when the first device of a channel comes, or when something may have passed unheard. When one is due follows
 * from the time of its event, so it is the same at every instance, before and after a restart.
 */
import type { Feeds } from "./feeds.ts";
import { remindedUntil } from "./model.ts";
import type { Reminder, Store, Wake } from "./store.ts";

/** How exactly a reminder keeps its time. */
const TICK_MS = 250;
/** Devices that the store is asked about at once. */
const DEVICES_AT_ONCE = 500;

/** When a reminder is due next after a time. */
const dueAfter = ({ at, every }: Reminder, time: number): number =>
  at + Math.max(1, Math.floor((time - at) / every) + 1) * every;

export class Reminders {
  readonly #store: Store;
  readonly #feeds: Feeds;
  readonly #now: () => number;
  /** Those of channels that a device follows here, by the event's `seq`, with when they are due. */
  readonly #channels = new Map<string, Map<number, { readonly reminder: Reminder; due: number }>>();
  readonly #timer: Timer;
  #earliest = Number.POSITIVE_INFINITY;
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(store: Store, feeds: Feeds, now: () => number) {
    this.#store = store;
    this.#feeds = feeds;
    this.#now = now;
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#timer.unref();
  }

  /** A device follows this channel here, or none does any more. */
  attended(channel: string, isAttended: boolean): void {
    if (!isAttended) return void this.#channels.delete(channel);
    this.#channels.set(channel, new Map());
    this.read(channel);
  }

  /** Reads a channel's reminders, where a device follows it. */
  read(channel: string): void {
    const known = this.#channels.get(channel);
    if (!known) return;
    this.#store.reminders(channel, this.#now()).then(
      (found) => found.forEach((reminder) => this.#add(known, reminder)),
      () => void setTimeout(() => this.read(channel), TICK_MS * (4 + 4 * Math.random())).unref(),
    );
  }

  /** Entries were stored. */
  woken({ kind, channel, ...wake }: Wake): void {
    const known = kind === "events" ? this.#channels.get(channel) : undefined;
    if (!known) return;
    for (const event of (wake as Extract<Wake, { kind: "events" }>).entries)
      if (event.remind !== null)
        this.#add(known, { seq: event.seq, at: event.at, every: event.remind, until: remindedUntil(event) });
  }

  #add(known: Map<number, { readonly reminder: Reminder; due: number }>, reminder: Reminder): void {
    if (known.has(reminder.seq)) return;
    const due = dueAfter(reminder, this.#now());
    known.set(reminder.seq, { reminder, due });
    this.#earliest = Math.min(this.#earliest, due);
  }

  #tick(): void {
    const now = this.#now();
    const wentBack = now < this.#lookedAt;
    this.#lookedAt = now;
    if (now < this.#earliest && !wentBack) return;
    this.#earliest = Number.POSITIVE_INFINITY;
    for (const [channel, known] of this.#channels)
      for (const [seq, entry] of known) {
        const { until } = entry.reminder;
        if (until !== null && until <= now) {
          known.delete(seq);
          continue;
        }
        if (wentBack) entry.due = Math.min(entry.due, dueAfter(entry.reminder, now));
        if (entry.due <= now) {
          entry.due = dueAfter(entry.reminder, now);
          this.#remind(channel, seq).then(
            (isOver) => isOver && known.delete(seq),
            () => {}, // The store is away; there is another reminder.
          );
        }
        this.#earliest = Math.min(this.#earliest, entry.due);
      }
  }

  /** True: there is nobody left to remind, nowhere. */
  async #remind(channel: string, seq: number): Promise<boolean> {
    const tally = (await this.#store.tallies(channel, seq, seq)).get(seq);
    if (!tally) return true;
    const { addressed, received, working, missing, done, failed } = tally;
    if (addressed === received + working + missing + done + failed) return true;
    const [event] = await this.#store.events(channel, seq - 1, 1);
    if (event?.seq !== seq) return true;
    const addressees = this.#feeds.addressed(channel, event);
    for (let at = 0; at < addressees.length; at += DEVICES_AT_ONCE)
      this.#feeds.remind(
        channel,
        event,
        await this.#store.silent(channel, seq, addressees.slice(at, at + DEVICES_AT_ONCE)),
      );
    return false;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
