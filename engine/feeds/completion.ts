/**
 * Pushes that wait until their event is complete: every addressed device has a final word, or it was withdrawn.
 *
 * Each channel with waiting pushes has one cursor on the receipts log, shared by all of them. The log says when an event becomes complete, also when
 * the receipt arrived at another instance. A waiting push costs one map entry and one timer. An event may have completed before the cursor was set;
 * the tally, read after the push is registered, shows that. So no completion is missed.
 *
 * An event is identified by epoch and number: in another epoch of the log the number belongs to another event, so pushes that wait for the old one
 * stop waiting.
 */
import { type Bye, type Feed, type FeedRequest, OWN, type Wire } from "./feed.ts";
import { isComplete, PereError, type Tally } from "../model.ts";
import type { Store } from "../store.ts";
import type { Batch } from "./log.ts";
import { yieldToEventLoop } from "../yield.ts";

/** Delay before a broken cursor is set again. */
const AGAIN_MS = 500;

/** Maximum number of waited-for events, counted per push: a few hundred bytes each; twice the maximum number of feeds. */
const EVENTS_MAX = 200_000;

/** What a read of tallies counts beside its events: a few statements. */
const READ_ROWS = 16;

type Follow = (request: FeedRequest, wire: Wire) => Feed;

export class Completion {
  readonly #store: Store;
  readonly #follow: Follow;
  readonly #watchers = new Map<string, TallyFollower>();
  /** How many events are waited for. */
  #events = 0;
  /** Each resolves when a push no longer waits. */
  readonly #waits = new Set<Promise<void>>();

  constructor(store: Store, follow: Follow) {
    this.#store = store;
    this.#follow = follow;
  }

  /**
   * Waits until events are complete, until the time is over, or until `signal`.
   * @param events their `seq`s in the log of this epoch, ascending, without gaps
   * @returns their tallies; an event that is no longer kept has none; null: the log was lost or restored meanwhile
   * @throws PereError away: the tallies can't be read, or too many pushes are waiting
   */
  async until(
    channel: string,
    epoch: string,
    events: readonly number[],
    ms: number,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<number, Tally> | null> {
    if (this.#events + events.length > EVENTS_MAX) throw new PereError("away", "too many pushes are waiting already");
    this.#events += events.length;
    const [first, last] = [events[0]!, events.at(-1)!];
    const { promise: timeUp, resolve } = Promise.withResolvers<true>();
    const timer = setTimeout(() => resolve(true), ms);
    signal.addEventListener("abort", () => resolve(true));
    if (signal.aborted) resolve(true);
    let watcher = this.#watchers.get(channel);
    if (!watcher) {
      watcher = new TallyFollower(channel, this.#follow, () => this.#watchers.delete(channel));
      this.#watchers.set(channel, watcher);
    }
    const waiting = watcher.enter(epoch, events);
    const ended = Promise.withResolvers<void>();
    this.#waits.add(ended.promise);
    try {
      for (let isOver = false; ;) {
        const changed = waiting.changed(); // Taken before the read, so that changes during the read cause another one.
        // If the log showed that all are complete, no read is needed.
        const tallies = waiting.tallies() ?? (await this.#read(channel, epoch, first, last));
        if (tallies === null || isOver || waiting.saw(tallies)) return tallies;
        isOver = await Promise.race([changed, timeUp]);
      }
    } finally {
      clearTimeout(timer);
      this.#events -= events.length;
      watcher.leave(waiting);
      this.#waits.delete(ended.promise);
      ended.resolve();
    }
  }

  async #read(channel: string, epoch: string, first: number, last: number): Promise<ReadonlyMap<number, Tally> | null> {
    await yieldToEventLoop("wait", last - first + READ_ROWS);
    return this.#store.tallies(channel, epoch, first, last);
  }

  /** Ends all waits with the current tallies. Resolves when these are read. */
  async stop(): Promise<void> {
    for (const watcher of [...this.#watchers.values()]) watcher.stop();
    await Promise.all(this.#waits);
  }
}

/** One waiting push. */
class WaitingPush {
  readonly epoch: string;
  readonly events: readonly number[];
  /** Events that are neither complete nor deleted, as far as known. */
  readonly #open: Set<number>;
  readonly #complete = new Map<number, Tally>();
  #change = Promise.withResolvers<boolean>();

  constructor(epoch: string, events: readonly number[]) {
    this.epoch = epoch;
    this.events = events;
    this.#open = new Set(events);
  }

  /** Resolves when the tally must be read; true: there is nothing left to wait for. */
  changed(): Promise<boolean> {
    return this.#change.promise;
  }

  /** The tallies, once they are final. */
  tallies(): ReadonlyMap<number, Tally> | null {
    return this.#open.size === 0 ? this.#complete : null;
  }

  /** Notes tallies that were read. True: there is nothing left to wait for. */
  saw(tallies: ReadonlyMap<number, Tally>): boolean {
    for (const event of this.#open) {
      const tally = tallies.get(event);
      if (tally && !isComplete(tally)) continue;
      this.#open.delete(event);
      if (tally) this.#complete.set(event, tally);
    }
    return this.#open.size === 0;
  }

  complete(event: number, tally: Tally): void {
    this.#complete.set(event, tally);
    this.#open.delete(event);
    if (this.#open.size === 0) this.look(true);
  }

  look(isOver: boolean): void {
    this.#change.resolve(isOver);
    this.#change = Promise.withResolvers<boolean>();
    if (isOver) this.#change.resolve(true);
  }
}

/** The cursor shared by all waiting pushes of a channel. */
class TallyFollower implements Wire {
  readonly #channel: string;
  readonly #follow: Follow;
  readonly #end: () => void;
  readonly #pushes = new Map<number, Set<WaitingPush>>();
  #feed: Feed | undefined;
  #waiting = 0;
  #stopped = false;

  constructor(channel: string, follow: Follow, end: () => void) {
    this.#channel = channel;
    this.#follow = follow;
    this.#end = end;
    this.#open();
  }

  #open(): void {
    if (this.#stopped) return;
    const request = { kind: "receipts", channels: [this.#channel], device: null, last: null, since: "now" } as const;
    this.#feed = this.#follow({ ...OWN, ...request }, this);
  }

  enter(epoch: string, events: readonly number[]): WaitingPush {
    const waiting = new WaitingPush(epoch, events);
    this.#waiting++;
    for (const event of events) {
      const sameEvent = this.#pushes.get(event);
      if (sameEvent) sameEvent.add(waiting);
      else this.#pushes.set(event, new Set([waiting]));
    }
    if (this.#stopped) waiting.look(true); // It may have stopped just before.
    return waiting;
  }

  leave(waiting: WaitingPush): void {
    for (const event of waiting.events) {
      const sameEvent = this.#pushes.get(event);
      sameEvent?.delete(waiting);
      if (sameEvent?.size === 0) this.#pushes.delete(event);
    }
    if (--this.#waiting > 0) return;
    this.#stopped = true;
    this.#feed?.stop();
    this.#end();
  }

  /** Makes all waiting pushes read the tally. */
  #look(isOver: boolean): void {
    for (const waiting of new Set([...this.#pushes.values()].flatMap((sameEvent) => [...sameEvent])))
      waiting.look(isOver);
  }

  stop(): void {
    this.#stopped = true;
    this.#look(true);
  }

  ready(): void {
    this.#look(false);
  }

  write(_channel: string, { entries }: Batch): undefined {
    const { epoch } = this.#feed!.logs[0]!;
    for (const { receipt } of entries) {
      if (receipt?.note?.kind !== "complete") continue;
      const { tally } = receipt.note;
      for (const waiting of this.#pushes.get(receipt.event) ?? [])
        if (waiting.epoch === epoch) waiting.complete(receipt.event, tally);
    }
  }

  gap(): void {
    this.#look(false);
  }

  rest(): void {}
  beat(): void {}
  remind(): undefined {}

  bye(reason: Bye): void {
    if (reason === "busy") setTimeout(() => this.#open(), AGAIN_MS).unref();
    else this.stop();
  }
}
