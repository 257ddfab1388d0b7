/**
 * Cache of the events that devices are answering: each event's tally, whether it is targeted, and the statuses of its devices.
 *
 * Everything here is also in the file. Without the cache, each receipt would cost four look-ups and a tally write. A cached tally changes with each
 * receipt and is written once per commit. It reflects the file as it will be after the running transaction, so it is discarded if that transaction
 * fails, and may be discarded between any two.
 */
import type { SqliteFile } from "./file.ts";
import { freshTally, type State, type Tally, type Withdrawal } from "../model.ts";
import type { Controls } from "./controls.ts";
import type { Rounds } from "./rounds.ts";
import type { Channel } from "./schema.ts";

/** Cache limits: events, answered or not, and statuses of devices on them, about 100 bytes each. */
export interface TallyCacheLimits {
  readonly tallies: number;
  readonly receipts: number;
}

type MutableTally = { -readonly [Name in keyof Tally]: Tally[Name] };

/** What is known of an event when it is stored. */
export interface EventTerms {
  /** How many devices it names; null: it is for all. */
  readonly named: number | null;
  readonly deadline: number | null;
  readonly expires: number | null;
  readonly attempts: number | null;
}

/** One event. */
export interface CachedTally {
  readonly channel: number;
  readonly event: number;
  readonly targeted: boolean;
  /** Milliseconds since 1970; null: no deadline. */
  readonly deadline: number | null;
  readonly expires: number | null;
  /** How often a device may try it; null: once. */
  readonly attempts: number | null;
  readonly tally: MutableTally;
  /** Null: it was not withdrawn. */
  withdrawn: Withdrawal | null;
  /** Some device deferred it. */
  hasRounds: boolean;
  /** Codes of the devices' latest words, as far as they were read or recorded. */
  codes: Map<string, number> | null;
  /** Every device that is not in `codes` is pending. */
  readonly isWhole: boolean;
}

type TallyRow = { event: number; isOver: number } & { readonly [Name in Exclude<keyof Tally, "isOver">]: number };

/** Tallies of the events from `first` to `last`, by `seq`; all of these entries must be in the file. An event with no receipts has no row in `tallies`; see `schema.ts`. */
export function talliesOf(file: SqliteFile, channel: number, first: number, last: number): Map<number, Tally> {
  const found = new Map<number, Tally>();
  const answered = file.all<TallyRow>(
    `SELECT event, addressed, received, working, deferred, missing, done, failed, withdrawn, isOver FROM tallies
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
  const controls = new Set(
    file
      .all<{ seq: number }>(
        "SELECT seq FROM controls WHERE channel = ?1 AND seq BETWEEN ?2 AND ?3",
        channel,
        first,
        last,
      )
      .map(({ seq }) => seq),
  );
  let [next, run] = [0, -1];
  for (let event = first; event <= last; event++) {
    while (run + 1 < runs.length && runs[run + 1]!.event <= event) run++;
    if (answered[next]?.event === event) {
      const { event: _, isOver, ...tally } = answered[next++]!;
      found.set(event, { ...tally, isOver: isOver === 1 });
    } else if (!controls.has(event)) found.set(event, freshTally(runs[run]!.addressed));
  }
  return found;
}

export class TallyCache {
  readonly #file: SqliteFile;
  readonly #controls: Controls;
  readonly #rounds: Rounds;
  readonly #most: TallyCacheLimits;
  readonly #known = new Map<string, CachedTally>();
  /** Tallies that the running transaction changed. */
  readonly #moved = new Set<CachedTally>();
  #codesHeld = 0;

  constructor(file: SqliteFile, controls: Controls, rounds: Rounds, most: TallyCacheLimits) {
    this.#file = file;
    this.#controls = controls;
    this.#rounds = rounds;
    this.#most = most;
  }

  /** Adds an event that was just stored, for all enrolled devices or for this many named ones. */
  add(channel: Channel, event: number, { named, ...terms }: EventTerms): void {
    const addressed = named ?? channel.audience;
    const cached = this.#cache({
      ...{ channel: channel.id, event, targeted: named !== null, ...terms },
      ...{ tally: freshTally(addressed), withdrawn: null, hasRounds: false, codes: null, isWhole: true },
    });
    if (named !== null) this.#moved.add(cached);
    else if (channel.addressed !== addressed) {
      this.#file.run("INSERT INTO audiences VALUES (?1, ?2, ?3)", channel.id, event, addressed);
      channel.addressed = addressed;
    }
  }

  /** @param event in the channel, and not yet deleted by retention. @returns null: it is a control entry */
  of(channel: Channel, event: number): CachedTally | null {
    const known = this.#known.get(`${channel.id} ${event}`);
    if (known) return known;
    const found = this.#file.get<{ targeted: number; deadline: number | null; expires: number | null }>(
      "SELECT targeted, deadline, expires FROM events WHERE channel = ?1 AND seq = ?2",
      channel.id,
      event,
    );
    if (!found) return null;
    const { targeted, ...times } = found;
    const tally: MutableTally = talliesOf(this.#file, channel.id, event, event).get(event)!;
    const { addressed, isOver, ...counts } = tally;
    return this.#cache({
      ...{ channel: channel.id, event, targeted: targeted !== 0, ...times, tally, codes: null },
      attempts: this.#controls.options(channel.id, event, event).get(event)?.attempts ?? null,
      withdrawn: isOver ? this.#controls.withdrawal(channel.id, event) : null,
      hasRounds: this.#rounds.has(channel.id, event),
      isWhole: Object.values(counts).every((count) => count === 0),
    });
  }

  get #isFull(): boolean {
    return this.#known.size >= this.#most.tallies || this.#codesHeld >= this.#most.receipts;
  }

  #cache(cached: CachedTally): CachedTally {
    if (this.#isFull && this.#moved.size === 0) this.clear();
    this.#known.set(`${cached.channel} ${cached.event}`, cached);
    return cached;
  }

  /** The code of a device's latest word, or of `missing`; 0 if it is pending. */
  code(cached: CachedTally, device: string): number {
    const { channel, event, codes, isWhole } = cached;
    const known = codes?.get(device);
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

  #remember(cached: CachedTally, device: string, code: number): void {
    (cached.codes ??= new Map()).set(device, code);
    this.#codesHeld++;
  }

  /** Moves a device in the tally from one state to another, which has this code. */
  step(cached: CachedTally, device: string, before: State, state: State, code: number): void {
    this.#count(cached, before, -1);
    this.#count(cached, state, 1);
    this.#remember(cached, device, code);
    this.#moved.add(cached);
  }

  /** Removes a device in this state from the event's audience. */
  release(cached: CachedTally, state: State): void {
    this.#count(cached, state, -1);
    cached.tally.addressed--;
    this.#moved.add(cached);
  }

  /** The event was withdrawn: so is every device without a final word that is not missing. */
  end(cached: CachedTally, withdrawal: Withdrawal): void {
    const { tally } = cached;
    tally.withdrawn = tally.addressed - tally.missing - tally.done - tally.failed;
    tally.received = tally.working = tally.deferred = 0;
    tally.isOver = true;
    cached.withdrawn = withdrawal;
    this.#moved.add(cached);
  }

  /** `pending` is derived from `addressed` and has no counter. */
  #count({ tally }: CachedTally, state: State, by: number): void {
    if (state !== "pending") tally[state] += by;
  }

  /** In a transaction: the event is deleted, so its tally must not be written any more. */
  forget(channel: Channel, event: number): void {
    const name = `${channel.id} ${event}`;
    const cached = this.#known.get(name);
    if (!cached) return;
    this.#known.delete(name);
    this.#moved.delete(cached);
    this.#codesHeld -= cached.codes?.size ?? 0;
  }

  /** Writes the changed tallies. If the cache is over its limits, empties it. */
  save(): void {
    for (const { channel, event, tally } of this.#moved)
      this.#file.run(
        `INSERT OR REPLACE INTO tallies (channel, event, addressed, received, working, missing, done, failed, deferred, withdrawn, isOver)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)`,
        channel,
        event,
        tally.addressed,
        tally.received,
        tally.working,
        tally.missing,
        tally.done,
        tally.failed,
        tally.deferred,
        tally.withdrawn,
        tally.isOver ? 1 : 0,
      );
    this.#moved.clear();
    if (this.#isFull) this.clear();
  }

  /** Empties the cache. */
  clear(): void {
    this.#known.clear();
    this.#moved.clear();
    this.#codesHeld = 0;
  }
}
