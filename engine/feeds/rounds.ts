/**
 * Rounds: when the time of a deferral has come, the event is sent again to the device, if that is connected here.
 *
 * The store knows the times, and that a round has begun follows from the clock alone: nothing is written then. So each instance reads for itself what
 * has begun since its last look, with one timer for all, and sends it to the devices of its own feeds. A feed that opens later finds out by itself.
 *
 * The clock is checked at least twice a second, so it may jump: whatever has begun by then is sent then. What was sent already is not sent again on the
 * same feed.
 */
import { WRITE_ROWS, yieldToEventLoop } from "../yield.ts";
import { DueWork } from "../due.ts";
import type { Report } from "../faults.ts";
import { isControl } from "../model.ts";
import type { DueRound, RoundPosition, Store } from "../store.ts";
import type { Feeds } from "./feeds.ts";
import { Batch, type Entry, eventEntry } from "./log.ts";

/** Rounds per look, and devices that are written to in one step. */
const ROUNDS_AT_ONCE = 1_000;
const DEVICES_AT_ONCE = 64;
/** What reading an event counts. */
const EVENT_ROWS = 16;

/** An event that is being sent again. */
interface Again {
  readonly entry: Entry;
  /** Of the log, before the event was read. */
  readonly head: number;
  /** By round. */
  readonly batches: Map<number, Batch>;
}

export class Rounds {
  readonly #store: Store;
  readonly #feeds: Feeds;
  readonly #due: DueWork;
  /** Everything up to here was sent. */
  #after: RoundPosition;

  constructor(store: Store, feeds: Feeds, now: () => number, report?: Report) {
    this.#store = store;
    this.#feeds = feeds;
    this.#after = { at: now(), place: "" };
    this.#due = new DueWork((at) => this.#begin(at), now, report);
  }

  /** A round begins at this time, milliseconds since 1970. */
  ahead(due: number): void {
    this.#due.ahead(due);
  }

  /** @returns when the next rounds begin, or null */
  async #begin(now: number): Promise<number | null> {
    if (now < this.#after.at) this.#after = { at: now, place: "" }; // The clock went back.
    await yieldToEventLoop("remind", EVENT_ROWS);
    const found = await this.#store.roundsDue(this.#after, now, ROUNDS_AT_ONCE);
    await this.#send(found.rounds);
    this.#after = found.last;
    return found.next;
  }

  async #send(rounds: readonly DueRound[]): Promise<void> {
    const events = new Map<string, Again | null>();
    await yieldToEventLoop("remind", rounds.length);
    let sent = 0;
    for (const { channel, epoch, event, device, round } of rounds) {
      if (this.#feeds.presence.feeds(channel, device).length === 0) continue;
      if (sent++ % DEVICES_AT_ONCE === 0) await yieldToEventLoop("remind", DEVICES_AT_ONCE * WRITE_ROWS);
      const name = `${channel} ${event}`;
      let again = events.get(name);
      if (again === undefined) events.set(name, (again = await this.#read(channel, epoch, event)));
      if (again === null) continue;
      const { entry, head, batches } = again;
      let batch = batches.get(round);
      if (!batch) batches.set(round, (batch = new Batch([eventEntry(channel, epoch, entry.event!, round)])));
      this.#feeds.round(channel, epoch, entry, device, round, head, batch);
    }
  }

  /** Null: it is no longer kept. */
  async #read(channel: string, epoch: string, event: number): Promise<Again | null> {
    await yieldToEventLoop("remind", EVENT_ROWS);
    const head = this.#feeds.headOf(channel);
    const [found] = (await this.#store.events(channel, epoch, event - 1, 1)) ?? [];
    if (found?.seq !== event || isControl(found)) return null;
    return { entry: eventEntry(channel, epoch, found), head, batches: new Map() };
  }

  /** Stops. @returns when what is being sent has been sent */
  stop(): Promise<void> {
    return this.#due.stop();
  }
}
