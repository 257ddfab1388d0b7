/**
 * How many words devices still owe, on all kept events together.
 *
 * Nobody keeps that sum: it would be one more number to move with each receipt. The tallies are added up now and then while
 * somebody asks, a page at a time, and never more often than makes it a small part of the work; so what is told may be a minute old.
 */
import { Turn } from "../yield.ts";
import { PAGE_DEFAULT, PAGE_MAX } from "../model.ts";
import type { Store } from "../store.ts";

/** It is not looked again before this, nor before so many times what the last look took. */
const REST_MS = 15_000;
const REST_TIMES = 50;

/** What is owed, on one channel by name or on all others together. */
export interface OutstandingCount {
  readonly channel: { readonly channel?: string };
  open: number;
  missing: number;
}

export class OutstandingReceipts {
  /** What the last look found; nothing before there was one. */
  found: readonly OutstandingCount[] = [];
  readonly #store: Store;
  readonly #named: readonly string[];
  #nextAt = 0;
  #stopped = false;

  /** @param named channels that are told apart */
  constructor(store: Store, named: Iterable<string>) {
    this.#store = store;
    this.#named = [...named];
  }

  /** Looks anew, unless that was done just now; what it finds is there some time later. */
  look(): void {
    const startedAt = performance.now();
    if (this.#stopped || startedAt < this.#nextAt) return;
    this.#nextAt = Number.POSITIVE_INFINITY;
    void this.#sum()
      .then((found) => (this.found = found))
      .catch(() => {}) // The store is away; what was found before stands.
      .finally(() => {
        const now = performance.now();
        this.#nextAt = now + Math.max(REST_MS, REST_TIMES * (now - startedAt));
      });
  }

  async #sum(): Promise<OutstandingCount[]> {
    const turn = new Turn();
    const rest: OutstandingCount = { channel: {}, open: 0, missing: 0 };
    const named = new Map(this.#named.map((channel) => [channel, { channel: { channel }, open: 0, missing: 0 }]));
    for (let after: string | null = ""; after !== null && !this.#stopped;) {
      const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(after, PAGE_DEFAULT);
      for (const { channel, epoch, events } of page.items) {
        const debt = named.get(channel) ?? rest;
        for (let from = events.floor + 1; from <= events.head && !this.#stopped; from += PAGE_MAX) {
          await turn.yieldToEventLoop();
          const tallies = await this.#store.tallies(channel, epoch, from, Math.min(events.head, from + PAGE_MAX - 1));
          if (tallies === null) break; // The log begins anew; the next look finds what it has then.
          for (const { addressed, done, failed, missing } of tallies.values()) {
            debt.open += addressed - done - failed - missing;
            debt.missing += missing;
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
