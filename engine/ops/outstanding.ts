/**
 * How many final receipts devices still owe, for all kept events together.
 *
 * No counter exists for this, because it would have to change with each receipt. Instead, the tallies are added up from time to time while metrics
 * are requested, a page at a time, and so rarely that it stays a small part of the work. The result may be a minute old.
 */
import { yieldToEventLoop } from "../yield.ts";
import { PAGE_DEFAULT, PAGE_MAX } from "../model.ts";
import type { Store } from "../store.ts";

/** Minimum interval between two counts, also as a multiple of the last count's duration. */
const REST_MS = 15_000;
const REST_TIMES = 50;

/** What is owed, per named channel and for all others together. */
export interface OutstandingCount {
  readonly channel: { readonly channel?: string };
  open: number;
  missing: number;
}

export class OutstandingReceipts {
  /** The last result; empty before the first count. */
  counts: readonly OutstandingCount[] = [];
  readonly #store: Store;
  readonly #named: readonly string[];
  #nextAt = 0;
  #stopped = false;

  /** @param named channels that are counted separately */
  constructor(store: Store, named: Iterable<string>) {
    this.#store = store;
    this.#named = [...named];
  }

  /** Starts a count, unless one ran recently; the result is available some time later. */
  refresh(): void {
    const startedAt = performance.now();
    if (this.#stopped || startedAt < this.#nextAt) return;
    this.#nextAt = Number.POSITIVE_INFINITY;
    void this.#sum()
      .then((found) => (this.counts = found))
      .catch(() => {}) // The store is away; the last result stays.
      .finally(() => {
        const now = performance.now();
        this.#nextAt = now + Math.max(REST_MS, REST_TIMES * (now - startedAt));
      });
  }

  async #sum(): Promise<OutstandingCount[]> {
    const rest: OutstandingCount = { channel: {}, open: 0, missing: 0 };
    const named = new Map(this.#named.map((channel) => [channel, { channel: { channel }, open: 0, missing: 0 }]));
    for (let after: string | null = ""; after !== null && !this.#stopped;) {
      await yieldToEventLoop("count", PAGE_DEFAULT);
      const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(after, PAGE_DEFAULT);
      for (const { channel, epoch, events } of page.items) {
        const count = named.get(channel) ?? rest;
        for (let from = events.floor + 1; from <= events.head && !this.#stopped; from += PAGE_MAX) {
          const upTo = Math.min(events.head, from + PAGE_MAX - 1);
          await yieldToEventLoop("count", upTo - from + 1);
          const tallies = await this.#store.tallies(channel, epoch, from, upTo);
          if (tallies === null) break; // The log has a new epoch; it is counted next time.
          for (const { addressed, done, failed, missing } of tallies.values()) {
            count.open += addressed - done - failed - missing;
            count.missing += missing;
          }
        }
      }
      after = page.next;
    }
    return [rest, ...named.values()];
  }

  stop(): void {
    this.#stopped = true;
  }
}
