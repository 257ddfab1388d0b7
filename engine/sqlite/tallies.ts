/**
 * What a PERE file knows of events that are being answered: each one's tally, whether it went to named devices, and who said what.
 *
 * The file has all of it; here it is held in memory while words come, because a word would otherwise cost four look-ups and a written tally.
 * An answer moves with each word and is written once a commit. It is a copy of the file as it will be after the running transaction, so it is
 * thrown away with one that fails, and may be thrown away between any two.
 */
import type { SqliteFile } from "./group-commit.ts";
import { type State, STATES, type Tally } from "../model.ts";
import type { Channel } from "./schema.ts";

/** How many are held at most: events, answered or not, and words on them, some 100 bytes each. */
export interface TallyCacheLimits {
  readonly answers: number;
  readonly words: number;
}

type MutableTally = { -readonly [Name in keyof Tally]: number };

/** One event. */
export interface CachedTally {
  readonly channel: number;
  readonly event: number;
  readonly targeted: boolean;
  /** Milliseconds since 1970; null: it has none. */
  readonly deadline: number | null;
  readonly tally: MutableTally;
  /** Ranks of the devices' latest words, as far as they were looked at or came since. */
  words: Map<string, number> | null;
  /** A device that is not among `words` said nothing. */
  readonly isWhole: boolean;
}

/** Tallies of the events from `first` to `last` by `seq`; they must all be in the file. One that nobody answered has no row of its own: see `schema.ts`. */
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
  let [place, run] = [0, -1];
  for (let event = first; event <= last; event++) {
    while (run + 1 < runs.length && runs[run + 1]!.event <= event) run++;
    if (answered[place]?.event === event) {
      const { event: _, ...tally } = answered[place++]!;
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
  /** Those that the running transaction moved. */
  readonly #moved = new Set<CachedTally>();
  #words = 0;

  constructor(file: SqliteFile, most: TallyCacheLimits) {
    this.#file = file;
    this.#most = most;
  }

  /** An event that was stored just now, to whoever is enrolled, or to so many that were named. */
  add(channel: Channel, event: number, named: number | null, deadline: number | null): void {
    const addressed = named ?? channel.audience;
    const tally = { addressed, received: 0, working: 0, missing: 0, done: 0, failed: 0 };
    const answer = this.#hold({
      channel: channel.id,
      event,
      targeted: named !== null,
      deadline,
      tally,
      words: null,
      isWhole: true,
    });
    if (named !== null) this.#moved.add(answer);
    else if (channel.addressed !== addressed) {
      this.#file.run("INSERT INTO audiences VALUES (?1, ?2, ?3)", channel.id, event, addressed);
      channel.addressed = addressed;
    }
  }

  /** @param event of the channel, and not yet swept by retention */
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
    return this.#hold({ channel: channel.id, event, targeted: targeted === 1, deadline, tally, words: null, isWhole });
  }

  get #isFull(): boolean {
    return this.#known.size >= this.#most.answers || this.#words >= this.#most.words;
  }

  #hold(answer: CachedTally): CachedTally {
    if (this.#isFull && this.#moved.size === 0) this.clear();
    this.#known.set(`${answer.channel} ${answer.event}`, answer);
    return answer;
  }

  /** The rank of a device's latest word, 0 when it said nothing. */
  rank(answer: CachedTally, device: string): number {
    const { channel, event, words, isWhole } = answer;
    const known = words?.get(device);
    if (known !== undefined || isWhole) return known ?? 0;
    const found = this.#file.get<{ status: number }>(
      "SELECT status FROM latest WHERE channel = ?1 AND event = ?2 AND device = ?3",
      channel,
      event,
      device,
    );
    this.#remember(answer, device, found?.status ?? 0);
    return found?.status ?? 0;
  }

  #remember(answer: CachedTally, device: string, rank: number): void {
    (answer.words ??= new Map()).set(device, rank);
    this.#words++;
  }

  /** A device's step in the tally, from the rank `before` to `rank`. */
  step(answer: CachedTally, device: string, before: number, rank: number): void {
    this.#count(answer, before, -1);
    this.#count(answer, rank, 1);
    this.#remember(answer, device, rank);
    this.#moved.add(answer);
  }

  /** A device that stood at `before` owes no word any more. */
  release(answer: CachedTally, before: number): void {
    this.#count(answer, before, -1);
    answer.tally.addressed--;
    this.#moved.add(answer);
  }

  /** `pending` is what is left of `addressed`, and has no count of its own. */
  #count({ tally }: CachedTally, rank: number, by: number): void {
    const state = STATES[rank] as State;
    if (state !== "pending") tally[state] += by;
  }

  /** Writes down what moved; nothing is held of more than may be beyond the transaction that brought it. */
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

  /** Forgets all of it: the file has it, or it never was. */
  clear(): void {
    this.#known.clear();
    this.#moved.clear();
    this.#words = 0;
  }
}
