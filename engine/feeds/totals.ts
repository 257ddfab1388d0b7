/**
 * How many channels, devices and connected devices there are, of channels too many to look at all of them each second.
 *
 * No counters exist for this: they would have to change with each enrolment, for each set of channels that a token may see. Instead all channels are
 * looked at from time to time while somebody asks, in slices, and so rarely that it stays a small part of the work. Readers that see the same channels
 * share a count.
 */
import { PAGE_DEFAULT } from "../model.ts";
import type { ChannelScope, Page, ChannelEntry, Store } from "../store.ts";
import { yieldToEventLoop } from "../yield.ts";
import type { Presence } from "./presence.ts";

/** Minimum interval between two counts, also as a multiple of the last count's duration. */
const REST_MS = 5_000;
const REST_TIMES = 20;
/** Counts of so many sets of channels are kept. */
const SCOPES_MAX = 64;

/** Sums over channels: a device in two channels counts twice. */
export interface Totals {
  readonly channels: number;
  readonly devices: number;
  readonly connected: number;
}

/** A count, and when it ended, milliseconds since 1970. */
export interface CountedTotals extends Totals {
  readonly at: number;
}

interface Count {
  last: CountedTotals | null;
  isRunning: boolean;
  /** By the monotonic clock. */
  nextAt: number;
}

export class TotalsCounter {
  readonly #store: Store;
  readonly #presence: Pick<Presence<unknown>, "connected">;
  readonly #now: () => number;
  readonly #steady: () => number;
  /** By the channels that are counted, those that were asked for longest ago first. */
  readonly #counts = new Map<string, Count>();

  /** @param steady a monotonic clock, in milliseconds */
  constructor(
    store: Store,
    presence: Pick<Presence<unknown>, "connected">,
    now: () => number,
    steady: () => number = () => performance.now(),
  ) {
    this.#store = store;
    this.#presence = presence;
    this.#now = now;
    this.#steady = steady;
  }

  /** The last count; null: there is none yet. If it is old, starts another one. @param scope the channels to count; null: all */
  of(scope: ChannelScope | null): CountedTotals | null {
    const name = JSON.stringify(scope);
    const count = this.#counts.get(name) ?? { last: null, isRunning: false, nextAt: 0 };
    this.#counts.delete(name); // Moves it to the end.
    this.#counts.set(name, count);
    if (this.#counts.size > SCOPES_MAX) this.#counts.delete(this.#counts.keys().next().value!);
    const startedAt = this.#steady();
    if (!count.isRunning && startedAt >= count.nextAt) {
      count.isRunning = true;
      void this.#count(scope)
        .then((totals) => (count.last = { ...totals, at: this.#now() }))
        .catch(() => {}) // The store is away; the last result stays.
        .finally(() => {
          const endedAt = this.#steady();
          count.nextAt = endedAt + Math.max(REST_MS, REST_TIMES * (endedAt - startedAt));
          count.isRunning = false;
        });
    }
    return count.last;
  }

  async #count(scope: ChannelScope | null): Promise<Totals> {
    const totals = { channels: 0, devices: 0, connected: 0 };
    for (let after: string | null = ""; after !== null;) {
      await yieldToEventLoop("count", PAGE_DEFAULT);
      const page: Page<ChannelEntry, string> = await this.#store.channels(after, PAGE_DEFAULT, scope);
      const elsewhere = await Promise.all(page.items.map(({ channel }) => this.#store.remotePresence(channel)));
      for (const [index, { channel, devices, isUnused }] of page.items.entries()) {
        const connected = this.#presence.connected(channel, null, elsewhere[index]!);
        if (isUnused && connected === 0) continue;
        totals.channels++;
        totals.devices += devices;
        totals.connected += connected;
      }
      after = page.next;
    }
    return totals;
  }
}
