/**
 * When channels are trimmed: at an interval those in which there is something to do, and a channel that gets many events sooner.
 *
 * The store knows the channels in which something is to be done, so channels at rest cost nothing. All channels are trimmed in the first round, because
 * the settings may be others than before, and when something failed. Of several instances one does the rounds; each trims the channels that have
 * become too long by its own pushes. The store deletes in slices and can continue where an earlier call stopped, so it does no harm if two of them
 * trim the same channel.
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

/** The lease of the instance that does the rounds. It lasts for several intervals, and is renewed in a long round. */
const LEASE = "retention";
const LEASE_INTERVALS = 3;
const LEASE_MS_MIN = 2_000;
/** Channels trimmed at once: they share commits and round trips, and their slices together are still short. */
const AT_ONCE = 8;

export class RetentionSchedule {
  readonly #store: Store;
  readonly #limits: RetentionLimits;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #timer: Timer;
  readonly #holder = crypto.randomUUID();
  /** The number of the lease that this instance holds; null: it holds none. */
  #lease: number | null = null;
  readonly #trimming = new Set<string | null>();
  /** Channels for the next round: that may hold a few events more than they should, or that could not be trimmed. */
  readonly #grown = new Set<string>();
  /** What is to be done is not known: the settings may have changed, or something failed. */
  #isUnknown = true;
  #isRunning = false;
  #stopped = false;

  constructor(store: Store, limits: RetentionLimits, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#limits = limits;
    this.#now = now;
    this.#report = report;
    this.#timer = setInterval(() => void this.#runRound(), limits.trimMs);
    this.#timer.unref();
  }

  /** Events were pushed to a channel, the last of them with the `seq` `head`: trims it if it has become too long. */
  pushed(channel: string, head: number, count: number): void {
    const { events: kept } = this.#kept(channel);
    const slack = Math.floor(kept / 100);
    if (head <= kept) return;
    if (head > kept + slack && head % (slack + 1) < count) void this.#trim(channel);
    else this.#grown.add(channel);
  }

  /** How much of a channel is kept. */
  #kept(channel: string): { events: number; ms: number } {
    const { keptEvents, keptMs, keep } = this.#limits;
    const rule = keep.length === 0 ? undefined : keep.find(({ pattern }) => fits(pattern, channel));
    return { events: rule?.events ?? keptEvents, ms: rule?.ms ?? keptMs };
  }

  async #runRound(): Promise<void> {
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      await this.#trimGrown();
      if (await this.#renewLease()) await this.#trimDue();
    } catch (error) {
      this.#isUnknown = true; // The store is away; the timer tries again.
      unexpected(this.#report, error);
    } finally {
      this.#isRunning = false;
    }
  }

  async #trimGrown(): Promise<void> {
    const grown = [...this.#grown];
    this.#grown.clear();
    await this.#trimEach(grown);
  }

  /** Whether this instance does the rounds. */
  async #renewLease(): Promise<boolean> {
    if (this.#stopped) return false;
    const ms = Math.max(LEASE_MS_MIN, LEASE_INTERVALS * this.#limits.trimMs);
    const number = await this.#store.lease(LEASE, this.#holder, ms);
    if (number !== this.#lease) this.#isUnknown = true; // Another instance had it before.
    this.#lease = number;
    return number !== null;
  }

  async #trimDue(): Promise<void> {
    await this.#trim(null);
    // Channels that are still due: they failed, or are being trimmed already.
    const left = new Set<string>();
    while (left.size < PAGE_DEFAULT && (await this.#renewLease())) {
      const due = await this.#store.trimmable(this.#now(), PAGE_DEFAULT + left.size);
      if (due === null || this.#isUnknown) {
        await this.#trimAll();
        continue;
      }
      const next = due.filter((channel) => !left.has(channel));
      if (next.length === 0) return;
      await this.#trimEach(next, (channel) => left.add(channel));
    }
  }

  async #trimAll(): Promise<void> {
    this.#isUnknown = false; // A failure from here on sets it again.
    let after: string | null = "";
    while (after !== null && (await this.#renewLease())) {
      const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(after, PAGE_DEFAULT);
      await this.#trimEach(page.items.map(({ channel }) => channel));
      after = page.next;
    }
    if (after !== null) this.#isUnknown = true;
  }

  /** Trims channels, some at a time. @param failed called for those that `#trim` did not trim */
  async #trimEach(channels: readonly string[], failed: (channel: string) => void = () => {}): Promise<void> {
    for (let n = 0; n < channels.length; n += AT_ONCE)
      await Promise.all(
        channels.slice(n, n + AT_ONCE).map(async (channel) => {
          if (!(await this.#trim(channel))) failed(channel);
        }),
      );
  }

  /**
   * Trims one channel in slices; other work runs in between. Null: idempotency keys and unused channels.
   * @returns false: it failed, or is being trimmed already
   */
  async #trim(channel: string | null): Promise<boolean> {
    if (this.#trimming.has(channel)) {
      if (channel !== null) this.#grown.add(channel); // It may have grown since the last slice.
      return false;
    }
    this.#trimming.add(channel);
    try {
      const now = this.#now();
      const { events: count, ms } = this.#kept(channel ?? "");
      const retention = { count, before: now - ms };
      while (!this.#stopped && (await this.#store.trim(channel, retention, now)));
      return true;
    } catch (error) {
      if (channel !== null) this.#grown.add(channel); // The store is away or full; the timer tries again.
      unexpected(this.#report, error);
      return false;
    } finally {
      this.#trimming.delete(channel);
    }
  }

  /** Starts no more slices. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    if (this.#lease !== null) await this.#store.lease(LEASE, this.#holder, 0).catch(() => {});
  }
}
