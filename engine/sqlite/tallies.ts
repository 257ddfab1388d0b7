/**
 * Cache of the events that devices are answering: each event's tally, whether it is targeted, and the statuses of its devices.
 *
 * Everything here is also in the file. Without the cache, each receipt would cost four look-ups and a tally write. A cached tally changes with each
 * receipt and is written once per commit. It reflects the file as it will be after the running transaction, so it is discarded if that transaction
 * fails, and may be discarded between any two.
 */
import type { SqliteFile } from "./file.ts";
import { type State, STATES, type Tally } from "../model.ts";
import type { Channel } from "./schema.ts";

/** Cache limits: events, answered or not, and statuses of devices on them, about 100 bytes each. */
export interface TallyCacheLimits {
  readonly tallies: number;
  readonly receipts: number;
}

type MutableTally = { -readonly [Name in keyof Tally]: number };

/** One event. */
export interface CachedTally {
  readonly channel: number;
  readonly event: number;
  readonly targeted: boolean;
  /** Milliseconds since 1970; null: no deadline. */
  readonly deadline: number | null;
  readonly tally: MutableTally;
  /** Ranks of the devices' latest statuses, as far as they were read or recorded. */
  ranks: Map<string, number> | null;
  /** Every device that is not in `ranks` is pending. */
  readonly isWhole: boolean;
}

/** Tallies by `seq`, from `first` to `last`, all of which must be in the file. An event with no receipts has no row in `tallies`; see `schema.ts`. */
export function talliesOf(file: SqliteFile, channel: number, first: number, last: number): Map<number, Tally> {
  const found = new Map<number, Tally>();
  const answered = file.all<Tally & { event: number }>(
    `SELECT event, addressed, received, working, missing, done, failed FROM tallies
     WHERE channel = ?1 AND event BETWEEN ?2 AND ?3`,
    channel,
    first,
    last,
  );
  const runs =
    answered.length > last - first
      ? []
      : file.all<{ event: number; addressed: number }>(
          `SELECT event, addressed FROM audiences WHERE channel = +?1 AND event <= ?3 AND event >=
           coalesce((SELECT max(event) FROM audiences WHERE channel = ?1 AND event <= ?2), 0) ORDER BY event`,
          channel,
          first,
          last,
        );
  let [next, run] = [0, -1];
  for (let event = first; event <= last; event++) {
    while (run + 1 < runs.length && runs[run + 1]!.event <= event) run++;
    if (answered[next]?.event === event) {
      const { event: _, ...tally } = answered[next++]!;
      found.set(event, tally);
    } else
      found.set(event, { addressed: runs[run]!.addressed, received: 0, working: 0, missing: 0, done: 0, failed: 0 });
  }
  return found;
}

export class TallyCache {
  readonly #file: SqliteFile;
  readonly #most: TallyCacheLimits;
  readonly #known = new Map<string, CachedTally>();
  /** Tallies that the running transaction changed. */
  readonly #moved = new Set<CachedTally>();
  #ranksHeld = 0;

  constructor(file: SqliteFile, most: TallyCacheLimits) {
    this.#file = file;
    this.#most = most;
  }

  /** Adds an event that was just stored, for all enrolled devices or for this many named ones. */
  add(channel: Channel, event: number, named: number | null, deadline: number | null): void {
    const addressed = named ?? channel.audience;
    const tally = { addressed, received: 0, working: 0, missing: 0, done: 0, failed: 0 };
    const cached = this.#cache({
      channel: channel.id,
      event,
      targeted: named !== null,
      deadline,
      tally,
      ranks: null,
      isWhole: true,
    });
    if (named !== null) this.#moved.add(cached);
    else if (channel.addressed !== addressed) {
      this.#file.run("INSERT INTO audiences VALUES (?1, ?2, ?3)", channel.id, event, addressed);
      channel.addressed = addressed;
    }
  }

  /** @param event in the channel, and not yet deleted by retention */
  of(channel: Channel, event: number): CachedTally {
    const known = this.#known.get(`${channel.id} ${event}`);
    if (known) return known;
    const { targeted, deadline } = this.#file.get<{ targeted: number; deadline: number | null }>(
      "SELECT targeted, deadline FROM events WHERE channel = ?1 AND seq = ?2",
      channel.id,
      event,
    )!;
    const tally: MutableTally = talliesOf(this.#file, channel.id, event, event).get(event)!;
    const isWhole = tally.received + tally.working + tally.missing + tally.done + tally.failed === 0;
    return this.#cache({ channel: channel.id, event, targeted: targeted === 1, deadline, tally, ranks: null, isWhole });
  }

  get #isFull(): boolean {
    return this.#known.size >= this.#most.tallies || this.#ranksHeld >= this.#most.receipts;
  }

  #cache(cached: CachedTally): CachedTally {
    if (this.#isFull && this.#moved.size === 0) this.clear();
    this.#known.set(`${cached.channel} ${cached.event}`, cached);
    return cached;
  }

  /** The rank of a device's latest status; 0 if it is pending. */
  rank(cached: CachedTally, device: string): number {
    const { channel, event, ranks, isWhole } = cached;
    const known = ranks?.get(device);
    if (known !== undefined || isWhole) return known ?? 0;
    const found = this.#file.get<{ status: number }>(
      "SELECT status FROM latest WHERE channel = ?1 AND event = ?2 AND device = ?3",
      channel,
      event,
      device,
    );
    this.#remember(cached, device, found?.status ?? 0);
    return found?.status ?? 0;
  }

  #remember(cached: CachedTally, device: string, rank: number): void {
    (cached.ranks ??= new Map()).set(device, rank);
    this.#ranksHeld++;
  }

  /** Moves a device in the tally from the rank `before` to `rank`. */
  step(cached: CachedTally, device: string, before: number, rank: number): void {
    this.#count(cached, before, -1);
    this.#count(cached, rank, 1);
    this.#remember(cached, device, rank);
    this.#moved.add(cached);
  }

  /** Removes a device of rank `before` from the event's audience. */
  release(cached: CachedTally, before: number): void {
    this.#count(cached, before, -1);
    cached.tally.addressed--;
    this.#moved.add(cached);
  }

  /** `pending` is derived from `addressed` and has no counter. */
  #count({ tally }: CachedTally, rank: number, by: number): void {
    const state = STATES[rank] as State;
    if (state !== "pending") tally[state] += by;
  }

  /** In a transaction: the event is deleted, so its tally must not be written any more. */
  forget(channel: Channel, event: number): void {
    const name = `${channel.id} ${event}`;
    const cached = this.#known.get(name);
    if (!cached) return;
    this.#known.delete(name);
    this.#moved.delete(cached);
    this.#ranksHeld -= cached.ranks?.size ?? 0;
  }

  /** Writes the changed tallies. If the cache is over its limits, empties it. */
  save(): void {
    for (const { channel, event, tally } of this.#moved)
      this.#file.run(
        "INSERT OR REPLACE INTO tallies VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        channel,
        event,
        tally.addressed,
        tally.received,
        tally.working,
        tally.missing,
        tally.done,
        tally.failed,
      );
    this.#moved.clear();
    if (this.#isFull) this.clear();
  }

  /** Empties the cache. */
  clear(): void {
    this.#known.clear();
    this.#moved.clear();
    this.#ranksHeld = 0;
  }
}
