/**
 * What the service did since it started: plain numbers, for `/metrics` and for whoever watches.
 *
 * A number is moved once an event, a batch of receipts or a write, never once a device; nothing is looked up for it unless the
 * operator named channels to be told apart. Reading is free: whoever asks reads the fields as they are, and nobody is told of a change.
 * All of it is this instance's own, and is lost with it, as counters are.
 */
import type { Status } from "./model.ts";

/** Upper bounds in seconds of what a person or a machine takes to answer: from a millisecond to a day. */
export const LATENCY_SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200, 21_600, 86_400,
] as const;
/** Upper bounds in seconds of what a store takes: from a fast disk's sync to the time that a call to Redis has. */
export const STORE_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
] as const;
/** Upper bounds of changes in one commit. */
export const BATCH_CHANGES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096] as const;

/** How many values fell where: a histogram with fixed buckets. */
export class Distribution {
  readonly bounds: readonly number[];
  /** How many were at most as large as the bound at this place, and larger than the one before; in the last place those beyond all bounds. */
  readonly counts: number[];
  sum = 0;
  count = 0;

  /** @param bounds ascending */
  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Array<number>(bounds.length + 1).fill(0);
  }

  note(value: number): void {
    let place = 0;
    while (place < this.bounds.length && value > this.bounds[place]!) place++;
    this.counts[place]!++;
    this.sum += value;
    this.count++;
  }

  /** Adds what another one of the same bounds has. */
  add({ counts, sum, count }: Distribution): void {
    for (const [place, more] of counts.entries()) this.counts[place]! += more;
    this.sum += sum;
    this.count += count;
  }
}

/** What was done for some channels. */
export class ChannelCounters {
  /** Events that were stored, each line of a batch counted. */
  pushes = 0;
  /** Pushes that a known `Idempotency-Key` answered with the events of before. */
  replays = 0;
  /** Events written to followers, as often as there were followers. */
  deliveries = 0;
  /** Receipts that moved a device forward, by what they say. */
  readonly receipts: Record<Status, number> = { received: 0, working: 0, done: 0, failed: 0 };
  /** Receipts that said nothing new, and those that were refused. */
  duplicates = 0;
  rejections = 0;
  /** Pushes, and requests with receipts, that the store did not take. */
  pushFailures = 0;
  receiptFailures = 0;
  /** Seconds from a push to a device's `received`, and to its final word, where the push is remembered. */
  readonly received = new Distribution(LATENCY_SECONDS);
  readonly final = new Distribution(LATENCY_SECONDS);

  add(other: ChannelCounters): void {
    this.pushes += other.pushes;
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

/** What became of a call to a hook: 2xx, another status, none at all, 410. */
export type HookResult = "delivered" | "refused" | "unreachable" | "gone";

/** Events whose time is remembered: the last half minute of a busy instance, in 1.5 MB. A power of two. */
const TIMES = 65_536;

/**
 * When recent events were pushed. A table of fixed size without chains: an event takes the place of whichever was there before. So a latency may go
 * uncounted, and is never a wrong one.
 */
class PushTimes {
  readonly #epochs = new Array<string>(TIMES).fill("");
  readonly #seqs = new Float64Array(TIMES);
  readonly #times = new Float64Array(TIMES);

  /** The place of the event after an epoch's first: an epoch's events stand side by side. */
  #place(epoch: string, seq: number): number {
    return (Bun.hash.xxHash32(epoch) + seq) % TIMES;
  }

  keep(epoch: string, first: number, count: number, at: number): void {
    let place = this.#place(epoch, first);
    for (let seq = first; seq < first + count; seq++, place = (place + 1) % TIMES) {
      this.#epochs[place] = epoch;
      this.#seqs[place] = seq;
      this.#times[place] = at;
    }
  }

  /** Milliseconds since 1970, or null where that is not remembered. */
  find(epoch: string, seq: number): number | null {
    const place = this.#place(epoch, seq);
    return this.#epochs[place] === epoch && this.#seqs[place] === seq ? this.#times[place]! : null;
  }
}

export class Counters {
  /** Channels that are told apart, and all others together. */
  readonly named: ReadonlyMap<string, ChannelCounters>;
  readonly rest = new ChannelCounters();
  /** Feeds that ended, by the word that they were told; those whose reader left are not among them. */
  readonly byes = { drain: 0, renew: 0, expired: 0, busy: 0 };
  /** Calls to hooks, each try for itself, by what became of it. */
  readonly hookTries: Record<HookResult, number> = { delivered: 0, refused: 0, unreachable: 0, gone: 0 };
  /** Calls that were given up after the last try. */
  hookGivenUp = 0;
  /** Seconds that the store took for a push and for a request's receipts: what their sender waits for. */
  readonly pushStored = new Distribution(STORE_SECONDS);
  readonly receiptsStored = new Distribution(STORE_SECONDS);
  /** Seconds that a commit of the SQLite file took, and how many changes were in it. */
  readonly commits = new Distribution(STORE_SECONDS);
  readonly batches = new Distribution(BATCH_CHANGES);
  /** Length of the SQLite file's write-ahead log when it was last looked at; null: there is none. */
  logBytes: number | null = null;
  readonly #times = new PushTimes();

  /** @param channels those that are told apart */
  constructor(channels: readonly string[] = []) {
    this.named = new Map(channels.map((channel) => [channel, new ChannelCounters()]));
  }

  /** Where the work on a channel is counted. */
  of(channel: string): ChannelCounters {
    return this.named.size === 0 ? this.rest : (this.named.get(channel) ?? this.rest);
  }

  /** The work on all channels, added up at this moment. */
  total(): ChannelCounters {
    const total = new ChannelCounters();
    for (const work of [this.rest, ...this.named.values()]) total.add(work);
    return total;
  }

  /** Events were pushed, here or elsewhere: from now on their receipts' latency is known. @param at milliseconds since 1970 */
  pushed(epoch: string, first: number, count: number, at: number): void {
    this.#times.keep(epoch, first, count, at);
  }

  /** A receipt moved its device forward. @param now milliseconds since 1970 */
  recorded(work: ChannelCounters, status: Status, { epoch, seq }: { epoch: string; seq: number }, now: number): void {
    work.receipts[status]++;
    const spread = status === "received" ? work.received : status === "working" ? null : work.final;
    const at = spread && this.#times.find(epoch, seq);
    // Clocks of two instances may differ; nothing is answered before it was pushed.
    if (spread && at !== null) spread.note(Math.max(0, now - at) / 1000);
  }
}
