/**
 * Pushes that wait until every addressed device gave a final receipt.
 *
 * For each channel where somebody waits there is one cursor on the receipts log, whoever waits and for whatever: the entry with which an event became
 * complete says so, also when the receipt came in at another instance. A waiting push costs a place in a map and one timer.
 * What was complete before the cursor stood shows in the tally, which is read once the place is taken; so nothing falls between.
 * An event is known by its epoch as well: in another life of the log its number is another's, and who waits for it leaves.
 */
import { type Bye, type Feed, type FeedRequest, OWN, type Wire } from "./feed.ts";
import { isComplete, PereError, type Tally } from "../model.ts";
import type { Store } from "../store.ts";
import type { Batch } from "./log.ts";

/** A cursor that broke is set again after this. */
const AGAIN_MS = 500;

/** Events that are waited for at once, each push for its own: some hundred bytes each, and as many as there may be feeds, twice. */
const EVENTS_MAX = 200_000;

type Follow = (request: FeedRequest, wire: Wire) => Feed;

export class Completion {
  readonly #store: Store;
  readonly #follow: Follow;
  readonly #watchers = new Map<string, TallyFollower>();
  /** How many events are waited for. */
  #events = 0;

  constructor(store: Store, follow: Follow) {
    this.#store = store;
    this.#follow = follow;
  }

  /**
   * Waits until events are complete, at most for so long, or until `signal`.
   * @param events their `seq`s in the log of this epoch, ascending, without holes
   * @returns their tallies then; an event that is no longer kept has none; null: the log was lost or put back meanwhile
   * @throws PereError away: they can't be read, or so many wait that nobody else can
   */
  async until(
    channel: string,
    epoch: string,
    events: readonly number[],
    ms: number,
    signal: AbortSignal,
  ): Promise<ReadonlyMap<number, Tally> | null> {
    if (this.#events + events.length > EVENTS_MAX) throw new PereError("away", "too many pushes wait already");
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
    const place = watcher.enter(epoch, events);
    try {
      for (let isOver = false; ;) {
        const changed = place.changed(); // Taken before the look: what changes during it is looked at again.
        // Where all have completed by the log there is nothing to ask.
        const tallies = place.tallies() ?? (await this.#store.tallies(channel, epoch, first, last));
        if (tallies === null || isOver || place.saw(tallies)) return tallies;
        isOver = await Promise.race([changed, timeUp]);
      }
    } finally {
      clearTimeout(timer);
      this.#events -= events.length;
      watcher.leave(place);
    }
  }

  /** Everybody is answered with what is there. */
  stop(): void {
    for (const watcher of [...this.#watchers.values()]) watcher.stop();
  }
}

/** One push that waits. */
class WaitingPush {
  readonly epoch: string;
  readonly events: readonly number[];
  /** Events that are not known to be complete, or gone. */
  readonly #open: Set<number>;
  readonly #complete = new Map<number, Tally>();
  #change = Promise.withResolvers<boolean>();

  constructor(epoch: string, events: readonly number[]) {
    this.epoch = epoch;
    this.events = events;
    this.#open = new Set(events);
  }

  /** Resolves when the tally is worth a look; true: there is nothing to wait for any more. */
  changed(): Promise<boolean> {
    return this.#change.promise;
  }

  /** The tallies, once there is nothing more to learn. */
  tallies(): ReadonlyMap<number, Tally> | null {
    return this.#open.size === 0 ? this.#complete : null;
  }

  /** Tallies as they were read. True: there is nothing left to wait for. */
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

/** The cursor of all who wait at one channel. */
class TallyFollower implements Wire {
  readonly #channel: string;
  readonly #follow: Follow;
  readonly #end: () => void;
  readonly #places = new Map<number, Set<WaitingPush>>();
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
    const place = new WaitingPush(epoch, events);
    this.#waiting++;
    for (const event of events) {
      const places = this.#places.get(event);
      if (places) places.add(place);
      else this.#places.set(event, new Set([place]));
    }
    if (this.#stopped) place.look(true); // Who comes last is told as well.
    return place;
  }

  leave(place: WaitingPush): void {
    for (const event of place.events) {
      const places = this.#places.get(event);
      places?.delete(place);
      if (places?.size === 0) this.#places.delete(event);
    }
    if (--this.#waiting > 0) return;
    this.#stopped = true;
    this.#feed?.stop();
    this.#end();
  }

  /** All who wait look at the tally. */
  #look(isOver: boolean): void {
    for (const place of new Set([...this.#places.values()].flatMap((places) => [...places]))) place.look(isOver);
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
      if (!receipt?.completes) continue;
      const { done, failed } = receipt.completes;
      const tally = { addressed: done + failed, received: 0, working: 0, missing: 0, done, failed };
      for (const place of this.#places.get(receipt.event) ?? [])
        if (place.epoch === epoch) place.complete(receipt.event, tally);
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
