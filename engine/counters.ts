/**
 * What the service did since it started: plain numbers for `/metrics` and `/watch`.
 *
 * A counter changes once per event, batch of receipts or write, never once per device. Channels are only looked up if the operator named channels to
 * count separately. Reading is free: readers use the fields directly, and there are no change notifications. All counters are this instance's own and
 * are lost when it stops.
 */
import { isFinal, type Status } from "./model.ts";

/** Upper bounds in seconds of the time a person or a machine takes to answer: from a millisecond to a day. */
export const LATENCY_SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200, 21_600, 86_400,
] as const;
/** Upper bounds in seconds of a store's latency: from a fast disk's sync to the timeout of a Redis call. */
export const STORE_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
] as const;
/** Upper bounds of changes per commit. */
export const BATCH_CHANGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096] as const;

/** A histogram with fixed buckets. */
export class Distribution {
  readonly bounds: readonly number[];
  /** Values at most as large as the bound at this index and larger than the one before; the last bucket is for values beyond all bounds. */
  readonly counts: number[];
  sum = 0;
  count = 0;

  /** @param bounds ascending */
  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Array<number>(bounds.length + 1).fill(0);
  }

  note(value: number): void {
    let slot = 0;
    while (slot < this.bounds.length && value > this.bounds[slot]!) slot++;
    this.counts[slot]!++;
    this.sum += value;
    this.count++;
  }

  /** Adds another distribution with the same bounds. */
  add({ counts, sum, count }: Distribution): void {
    for (const [slot, more] of counts.entries()) this.counts[slot]! += more;
    this.sum += sum;
    this.count += count;
  }
}

/** Counters of one channel, or of several together. */
export class ChannelCounters {
  /** Stored events; each line of a batch counts. */
  pushes = 0;
  /** Events withdrawn by request; not those that a newer one with the same key superseded. */
  withdrawals = 0;
  /** Pushes answered with the earlier events of a known `Idempotency-Key`. */
  replays = 0;
  /** Events written to followers, once per follower. */
  deliveries = 0;
  /** Receipts that advanced a device, by status. */
  readonly receipts: Record<Status, number> = { received: 0, working: 0, deferred: 0, done: 0, failed: 0 };
  /** Receipts that changed nothing, and receipts that were refused. */
  duplicates = 0;
  rejections = 0;
  /** Pushes, and requests with receipts, that the store did not accept. */
  pushFailures = 0;
  receiptFailures = 0;
  /** Seconds from a push to a device's `received` and to its final receipt, if the push time is still remembered. */
  readonly received = new Distribution(LATENCY_SECONDS);
  readonly final = new Distribution(LATENCY_SECONDS);

  add(other: ChannelCounters): void {
    this.pushes += other.pushes;
    this.withdrawals += other.withdrawals;
    this.replays += other.replays;
    this.deliveries += other.deliveries;
    for (const status of Object.keys(other.receipts) as Status[]) this.receipts[status] += other.receipts[status];
    this.duplicates += other.duplicates;
    this.rejections += other.rejections;
    this.pushFailures += other.pushFailures;
    this.receiptFailures += other.receiptFailures;
    this.received.add(other.received);
    this.final.add(other.final);
  }
}

/** The result of a call to a hook: 2xx, another status, no answer, 410. */
export type HookResult = "delivered" | "refused" | "unreachable" | "gone";

/** Events whose push time is remembered: the last half minute of a busy instance, in 1.5 MB. A power of two. */
const TIMES = 65_536;

/**
 * When recent events were pushed. A fixed-size table without chains: an event replaces whatever was in its slot. So a latency may be missing, but
 * never wrong.
 */
class PushTimes {
  readonly #epochs = new Array<string>(TIMES).fill("");
  readonly #seqs = new Float64Array(TIMES);
  readonly #times = new Float64Array(TIMES);

  /** Consecutive events of an epoch have adjacent slots. */
  #slot(epoch: string, seq: number): number {
    return (Bun.hash.xxHash32(epoch) + seq) % TIMES;
  }

  keep(epoch: string, first: number, count: number, at: number): void {
    let slot = this.#slot(epoch, first);
    for (let seq = first; seq < first + count; seq++, slot = (slot + 1) % TIMES) {
      this.#epochs[slot] = epoch;
      this.#seqs[slot] = seq;
      this.#times[slot] = at;
    }
  }

  /** Milliseconds since 1970, or null if unknown. */
  find(epoch: string, seq: number): number | null {
    const slot = this.#slot(epoch, seq);
    return this.#epochs[slot] === epoch && this.#seqs[slot] === seq ? this.#times[slot]! : null;
  }
}

export class Counters {
  /** Channels that are counted separately, and all others together. */
  readonly named: ReadonlyMap<string, ChannelCounters>;
  readonly rest = new ChannelCounters();
  /** Feeds that ended, by reason; feeds that the reader closed are not included. */
  readonly byes = { drain: 0, renew: 0, expired: 0, busy: 0 };
  /** Calls to hooks, each attempt counted, by result. */
  readonly hookTries: Record<HookResult, number> = { delivered: 0, refused: 0, unreachable: 0, gone: 0 };
  /** Calls given up after the last attempt. */
  hookGivenUp = 0;
  /** Seconds that the store took for a push, and for a request's receipts: what the sender waits for. */
  readonly pushStored = new Distribution(STORE_SECONDS);
  readonly receiptsStored = new Distribution(STORE_SECONDS);
  /** Seconds per commit of the SQLite file, and changes per commit. */
  readonly commits = new Distribution(STORE_SECONDS);
  readonly batches = new Distribution(BATCH_CHANGES);
  /** Length of the SQLite file's write-ahead log at the last check; null: there is none. */
  logBytes: number | null = null;
  readonly #times = new PushTimes();

  /** @param channels counted separately */
  constructor(channels: readonly string[] = []) {
    this.named = new Map(channels.map((channel) => [channel, new ChannelCounters()]));
  }

  /** The counters for a channel. */
  of(channel: string): ChannelCounters {
    return this.named.size === 0 ? this.rest : (this.named.get(channel) ?? this.rest);
  }

  /** The sum over all channels, computed now. */
  total(): ChannelCounters {
    const total = new ChannelCounters();
    for (const counters of [this.rest, ...this.named.values()]) total.add(counters);
    return total;
  }

  /** Remembers the time of a push, at any instance, to measure the latency of its receipts. @param at milliseconds since 1970 */
  pushed(epoch: string, first: number, count: number, at: number): void {
    this.#times.keep(epoch, first, count, at);
  }

  /** Counts a receipt that advanced its device. @param now milliseconds since 1970 */
  recorded(
    counters: ChannelCounters,
    status: Status,
    { epoch, seq }: { epoch: string; seq: number },
    now: number,
  ): void {
    counters.receipts[status]++;
    const distribution = status === "received" ? counters.received : isFinal(status) ? counters.final : null;
    const at = distribution && this.#times.find(epoch, seq);
    // Clocks of two instances may differ; a latency is never negative.
    if (distribution && at !== null) distribution.note(Math.max(0, now - at) / 1000);
  }
}
