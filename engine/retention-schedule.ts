/**
 * When channels are trimmed: at an interval all of them, and a channel that gets many events sooner.
 *
 * The store deletes in slices and can continue where an earlier call stopped, so nothing needs to be remembered here, and several instances may trim
 * the same channel.
 */
import { onConsole, type Report, unexpected } from "./faults.ts";
import { PAGE_DEFAULT } from "./model.ts";
import { fits, type KeepRule } from "./retention-rules.ts";
import type { Store } from "./store.ts";

/** How much is kept. Times in milliseconds. */
export interface RetentionLimits {
  /** Retention runs at this interval. */
  readonly trimMs: number;
  /** Kept events per channel, by number and by age. */
  readonly keptEvents: number;
  readonly keptMs: number;
  /** Channels with other limits; the first matching rule applies. */
  readonly keep: readonly KeepRule[];
}

export class RetentionSchedule {
  readonly #store: Store;
  readonly #limits: RetentionLimits;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #timer: Timer;
  readonly #trimming = new Set<string | null>();
  /** An earlier process, or a failure, may have stopped between dropping an event and deleting its rows. */
  #hasLeftovers = true;
  #stopped = false;

  constructor(store: Store, limits: RetentionLimits, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#limits = limits;
    this.#now = now;
    this.#report = report;
    this.#timer = setInterval(() => void this.#trimAll().catch(report), limits.trimMs);
    this.#timer.unref();
  }

  /** Events were pushed to a channel, the last of them with the `seq` `head`: trims it if it has become too long. */
  pushed(channel: string, head: number, count: number): void {
    const { events: kept } = this.#kept(channel);
    const slack = Math.floor(kept / 100);
    if (head > kept + slack && head % (slack + 1) < count) void this.#trim(channel);
  }

  /** How much of a channel is kept. */
  #kept(channel: string): { events: number; ms: number } {
    const { keptEvents, keptMs, keep } = this.#limits;
    const rule = keep.length === 0 ? undefined : keep.find(({ pattern }) => fits(pattern, channel));
    return { events: rule?.events ?? keptEvents, ms: rule?.ms ?? keptMs };
  }

  async #trimAll(): Promise<void> {
    // A failure from here on sets it again.
    const all = this.#hasLeftovers;
    this.#hasLeftovers = false;
    try {
      await this.#trim(null);
      let after: string | null = "";
      while (after !== null && !this.#stopped) {
        const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(after, PAGE_DEFAULT);
        for (const { channel, events } of page.items) if (events.head > events.floor || all) await this.#trim(channel);
        after = page.next;
      }
    } catch (error) {
      this.#hasLeftovers = true; // The store is away; the timer tries again.
      unexpected(this.#report, error);
    }
  }

  /** Trims one channel in slices; other work runs in between. Null: idempotency keys and unused channels. */
  async #trim(channel: string | null): Promise<void> {
    if (this.#trimming.has(channel)) return;
    this.#trimming.add(channel);
    try {
      const now = this.#now();
      const { events: count, ms } = this.#kept(channel ?? "");
      const retention = { count, before: now - ms };
      while (!this.#stopped && (await this.#store.trim(channel, retention, now)));
    } catch (error) {
      this.#hasLeftovers = true; // The store is away or full; the timer tries again.
      unexpected(this.#report, error);
    } finally {
      this.#trimming.delete(channel);
    }
  }

  /** Starts no more slices. */
  stop(): void {
    this.#stopped = true;
    clearInterval(this.#timer);
  }
}
