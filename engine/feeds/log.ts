/**
 * Followers of a log: how what one commit stored reaches everybody who listens, and how who fell behind catches up.
 *
 * A follower is a cursor. One rule serves catch-up and live: give it what is after its cursor; when there is nothing, let it rest until
 * the log grows. There is no queue a follower. Who keeps up is in the `live` set and is served by a plain synchronous loop: entries that came
 * since the last turn are cut from the ring once, encoded once (by the sink, into the batch that all share) and written once to each.
 * Who pushes back leaves the set, waits for its drain, reads on from the ring or the store, and joins again; between the last
 * look at the head and the joining nothing can happen, because nothing is awaited there. So there is no seam.
 *
 * What it never does: hold a promise or a copy a follower and entry, write to a sink that pushes back, pass over a hole in silence.
 */
import { SharedTurn } from "../yield.ts";
import { onConsole, type Report, unexpected } from "../faults.ts";
import {
  completeText,
  type Event,
  eventText,
  id,
  type Kind,
  PereError,
  type Position,
  type Receipt,
  receiptText,
  EVENT_SOURCE_TYPES,
} from "../model.ts";

/** Entries that a ring keeps: what devices on bad lines miss in a moment. */
export const RING_ENTRIES_MAX = 1_024;
/** The same in characters of text. */
export const RING_CHARACTERS_MAX = 1024 * 1024;
/** Followers served in one turn of the event loop: requests must not wait for a whole fan-out. */
export const SLICE_FOLLOWERS = 128;
/** Characters in one write, about: what a reader who stops costs. */
export const WRITE_CHARACTERS = 256 * 1024;
/** A read that failed because the store is away is tried again after this, give or take a half. */
export const RETRY_MS = 500;
/** Entries in one catch-up read. */
export const CATCH_UP_ENTRIES = 256;
/** How far ahead of a follower it is remembered what its device gave a final word on: no page is longer. Of what lies beyond, the store is asked. */
export const SKIP_ENTRIES_MAX = 4 * RING_ENTRIES_MAX;

/**
 * One entry of a log, as followers see it. `to` and `expires` (milliseconds since 1970) are null for most. `complete` says that an event is complete;
 * the text is empty then, but in logs of before, where it is said after the text.
 */
export interface Entry {
  readonly seq: number;
  readonly id: string;
  readonly text: string;
  readonly complete: string | null;
  /** What a receipts log's entry is made of; null in a log of events. */
  readonly receipt: Receipt | null;
  readonly type: string | null;
  readonly to: readonly string[] | null;
  readonly expires: number | null;
}

/** An event as followers get it. One that an earlier version took under a name of EventSource's own has no name on a stream. */
export const eventEntry = (channel: string, epoch: string, event: Event): Entry => ({
  seq: event.seq,
  id: id(epoch, event.seq),
  text: eventText(channel, epoch, event),
  complete: null,
  receipt: null,
  type: event.type !== null && EVENT_SOURCE_TYPES.includes(event.type) ? null : event.type,
  to: event.to,
  expires: event.expires,
});

/** An entry of a receipts log as publishers get it. */
export const receiptEntry = (channel: string, epoch: string, receipt: Receipt): Entry => ({
  seq: receipt.seq,
  id: id(epoch, receipt.seq),
  text: receipt.status === "pending" ? "" : receiptText(channel, epoch, receipt),
  complete: receipt.completes && `{"id":"${id(epoch, receipt.seq)}",${completeText(channel, epoch, receipt).slice(1)}`,
  receipt,
  type: null,
  to: null,
  expires: null,
});

/** Entries on their way to followers. Followers with one cursor share one batch; `encoded` is the sinks' own memo. */
export class Batch {
  readonly entries: readonly Entry[];
  encoded: unknown;
  constructor(entries: readonly Entry[]) {
    this.entries = entries;
  }
}

/** Where a follower's entries go. One sink may serve several followers (a feed of several channels). */
export interface Sink {
  /** Takes the batch. A promise: it was taken, and the reader is behind; nothing more is to be written until it resolves. */
  write(log: Log, batch: Batch): Promise<unknown> | undefined;
  /** Entries after `after` and before `from` are no longer kept, or they were in another life of the log. */
  gap(log: Log, after: Position, from: Position): void;
  /** A follower has everything there is and rests. */
  rest(): void;
  /** The log can't be read now. The sink ends. */
  fail(error: unknown): void;
  /** Set while the reader is behind. */
  blocked: Promise<unknown> | undefined;
}

/** Marks a sink as behind until its reader has drained. */
export function blockUntilDrained(sink: Sink, drained: Promise<unknown>): void {
  const release = (): void => {
    if (sink.blocked === drained) sink.blocked = undefined;
  };
  sink.blocked = drained;
  drained.then(release, release);
}

/** Ten thousand who come back together, each with pages of his own, leave room for everything else. */
const breath = new SharedTurn();

/** How a log's older entries are read. */
export interface LogSource {
  /** Entries of one life of the log. @throws PereError away: they can't be had now, but later; or that life is over, and the log knows */
  read(after: number, limit: number, epoch: string): Promise<readonly Entry[]>;
  /** Events with `after` < seq ≤ `upTo` that the device gave a final word on: they are never sent to it again. @throws PereError as `read` */
  finalized?(device: string, after: number, upTo: number, epoch: string): Promise<ReadonlySet<number>>;
  readonly now: () => number;
  /** Told of what should never happen. */
  readonly report?: Report;
}

export interface Follower {
  readonly sink: Sink;
  /** A device's name: it sees what is addressed to it. Null: only what is addressed to nobody in particular. */
  readonly device: string | null;
  /** Everything up to here was given, or was not for it. */
  cursor: number;
  /** Of events to everybody, only those after this one. */
  floor: number;
  /** Where it was in a life of the log that ended, until it is told. */
  lost: Position | null;
  stopped: boolean;
  /** Of the next `SKIP_ENTRIES_MAX` entries, those that its device gave a final word on meanwhile. */
  skip?: Set<number> | undefined;
  /** The last of them. */
  skipTo?: number;
  /** The last one beyond those that its device gave a final word on: up to there the store is asked for each page. */
  askTo?: number;
}

/**
 * Entries after `from` up to `to`, for all who stand at `from`. `full`: one write carries no more, whatever comes; until `toAllUntil` none of
 * the entries needs a look at who gets it.
 */
interface Cut {
  readonly from: number;
  readonly first: number;
  readonly to: number;
  readonly full: boolean;
  readonly toAllUntil: number;
  readonly batch: Batch;
}

export class Log {
  readonly kind: Kind;
  readonly channel: string;
  /** Set by `reach`. */
  epoch = "";
  head = 0;
  /** Feeds and requests that hold the log; at 0 its owner lets go of it. */
  users = 0;
  readonly #source: LogSource;
  /** Where it is counted how much was written. */
  readonly #work: { deliveries: number };
  readonly #followers = new Set<Follower>();
  readonly #live = new Set<Follower>();
  #ring: Entry[] = [];
  #ringCharacters = 0;
  #filling: Promise<void> | undefined;
  /** The ring was extended back to here; only who is further back makes it try again. */
  #filledFrom = Number.POSITIVE_INFINITY;
  /** The head when `age` was last called. */
  #agedHead = 0;
  #pass: Iterator<Follower> | undefined;
  #passHead = 0;
  /** Whether the running pass left somebody with more to come. */
  #unfinished = false;
  #shared: Cut | undefined;

  constructor(kind: Kind, channel: string, source: LogSource, work = { deliveries: 0 }) {
    this.kind = kind;
    this.channel = channel;
    this.#source = source;
    this.#work = work;
  }

  /** Followers, for metrics. */
  get followers(): number {
    return this.#followers.size;
  }

  /** Those of them at rest or being served, for tests and metrics. */
  get live(): number {
    return this.#live.size;
  }

  /** What the store says of the log's extent. It may have grown since. Another epoch: what there was is lost, and its followers are told. */
  reach(epoch: string, head: number): void {
    if (this.epoch !== "" && epoch !== this.epoch) this.#renew(epoch);
    this.epoch = epoch;
    if (head <= this.head) return;
    this.#forget();
    this.#grow(head);
  }

  /** Entries that became durable, in order. */
  announce(entries: readonly Entry[]): void {
    const first = entries[0];
    const last = entries.at(-1);
    if (!first || !last || last.seq <= this.head) return;
    if (first.seq !== this.head + 1) this.#forget();
    for (const entry of entries) if (entry.seq > this.head) this.#keep(entry);
    this.#grow(last.seq);
  }

  /** The log begins anew: everybody starts again at its beginning, with a gap from where they were. */
  #renew(epoch: string): void {
    const before = this.epoch;
    this.epoch = epoch;
    this.#forget();
    this.head = this.#agedHead = this.#passHead = 0;
    for (const follower of this.#followers) {
      follower.lost ??= { epoch: before, seq: follower.cursor };
      follower.cursor = follower.floor = 0;
      follower.skip = undefined;
      follower.askTo = 0;
      if (this.#live.delete(follower)) void this.#catchUp(follower);
    }
  }

  follow(follower: Follower): void {
    this.#followers.add(follower);
    void this.#catchUp(follower);
  }

  /** A follower's device gave a final word on an entry: if it was not given that entry yet, it won't be, also when the log has not come to it here. */
  settle(follower: Follower, seq: number): void {
    const { cursor } = follower;
    if (seq <= cursor) return;
    if (seq > cursor + SKIP_ENTRIES_MAX) {
      follower.askTo = Math.max(follower.askTo ?? 0, seq);
      return;
    }
    const skip = (follower.skip ??= new Set());
    if (skip.size >= SKIP_ENTRIES_MAX) for (const one of skip) if (one <= cursor) skip.delete(one);
    follower.skipTo = Math.max(skip.size === 0 ? 0 : follower.skipTo!, seq);
    skip.add(seq);
  }

  stop(follower: Follower): void {
    follower.stopped = true;
    this.#followers.delete(follower);
    this.#live.delete(follower);
  }

  // -------------------------------------------------------------------------------------------------------------- the ring

  #keep(entry: Entry): void {
    this.#ring.push(entry);
    this.#ringCharacters += entry.text.length;
    // Cut in chunks: shifting one by one costs the ring's length each time.
    if (this.#ring.length < 2 * RING_ENTRIES_MAX && this.#ringCharacters <= 2 * RING_CHARACTERS_MAX) return;
    let drop = Math.max(0, this.#ring.length - RING_ENTRIES_MAX);
    let characters = this.#ringCharacters;
    for (let index = 0; index < this.#ring.length - 1; index++) {
      if (index >= drop && characters <= RING_CHARACTERS_MAX) break;
      characters -= this.#ring[index]!.text.length;
      drop = Math.max(drop, index + 1);
    }
    this.#ring = this.#ring.slice(drop);
    this.#ringCharacters = characters;
  }

  /**
   * Called from time to time: lets go of what was there the last time already. The ring is for who is a moment behind; ten thousand channels
   * would otherwise hold a megabyte each for nobody.
   */
  age(): void {
    const drop = this.#ring.findIndex(({ seq }) => seq > this.#agedHead);
    this.#agedHead = this.head;
    if (drop === 0) return;
    const kept = drop === -1 ? [] : this.#ring.slice(drop);
    this.#forget();
    for (const entry of kept) this.#keep(entry);
  }

  #forget(): void {
    this.#ring = [];
    this.#ringCharacters = 0;
    this.#filledFrom = Number.POSITIVE_INFINITY;
    this.#shared = undefined;
  }

  /** Entries after `cursor`, as many as one write may carry, or null when the ring does not reach back so far. */
  #cut(cursor: number): Entry[] | null {
    const first = this.#ring[0];
    if (!first || cursor < first.seq - 1) return null;
    const from = cursor - first.seq + 1;
    let to = from;
    for (let characters = 0; to < this.#ring.length && characters < WRITE_CHARACTERS; to++)
      characters += this.#ring[to]!.text.length;
    return this.#ring.slice(from, to);
  }

  /** Extends the ring back to `cursor` from the store, once for all who are behind: ten thousand who come back together cost one read. */
  #fill(cursor: number): Promise<void> {
    this.#filling ??= (async () => {
      const { epoch } = this;
      try {
        let older: Entry[] = [];
        for (let after = cursor; after < this.#start() - 1;) {
          const read = (await this.#source.read(after, CATCH_UP_ENTRIES, epoch)).filter(
            ({ seq }) => seq < this.#start(),
          );
          if (read.length === 0) break;
          older.push(...read);
          after = read.at(-1)!.seq;
        }
        if (epoch !== this.epoch) return;
        this.#filledFrom = cursor; // Not before: who stands there as well waits for this read.
        if (older.at(-1)?.seq !== this.#start() - 1) return;
        let keep = older.length;
        let characters = this.#ringCharacters;
        while (keep > 0 && characters + older[keep - 1]!.text.length <= RING_CHARACTERS_MAX)
          characters += older[--keep]!.text.length;
        if (keep > 0) this.#filledFrom = 0; // It is as large as it may be: older ones are read by each for itself.
        older = older.slice(keep);
        this.#ring = [...older, ...this.#ring];
        this.#ringCharacters = characters;
      } finally {
        this.#filling = undefined;
      }
    })();
    return this.#filling;
  }

  /** The `seq` of the ring's oldest entry, or of the next to come. */
  #start(): number {
    return this.#ring[0]?.seq ?? this.head + 1;
  }

  // ------------------------------------------------------------------------------------------------------------------ live

  #grow(head: number): void {
    this.head = head;
    if (this.#pass || this.#live.size === 0) return;
    this.#begin();
    setImmediate(this.#turn);
  }

  #begin(): void {
    this.#pass = this.#live.values();
    this.#passHead = this.head;
    this.#unfinished = false;
  }

  /** Serves a slice of the live followers; goes on in the next turn until all of them have everything. */
  readonly #turn = (): void => {
    let served = 0;
    while (this.#pass) {
      const next = this.#pass.next();
      if (!next.done) {
        if (this.#tryServe(next.value) && ++served === SLICE_FOLLOWERS) return void setImmediate(this.#turn);
      } else if (this.head > this.#passHead || this.#unfinished) this.#begin();
      else this.#pass = undefined;
    }
  };

  /** What fails at one follower ends that one: the pass goes on. */
  #tryServe(follower: Follower): boolean {
    try {
      return this.#serve(follower);
    } catch (error) {
      this.#live.delete(follower);
      this.#fail(follower, error);
      return true;
    }
  }

  #fail(follower: Follower, error: unknown): void {
    const { report = onConsole } = this.#source;
    unexpected(report, error);
    try {
      follower.sink.fail(error);
    } catch (worse) {
      report(worse);
      this.stop(follower);
    }
  }

  /** False when there was nothing to do. */
  #serve(follower: Follower): boolean {
    if (follower.cursor >= this.head) return false;
    const mustAsk = (follower.askTo ?? 0) > follower.cursor;
    const cut = follower.sink.blocked || mustAsk ? null : this.#share(follower.cursor);
    if (!cut) {
      this.#live.delete(follower);
      void this.#catchUp(follower);
      return true;
    }
    follower.cursor = cut.to;
    if (cut.to < this.head) this.#unfinished = true;
    const batch =
      cut.toAllUntil > this.#source.now() && cut.first > follower.floor && !follower.skip
        ? cut.batch
        : this.#filter(cut.batch, follower);
    if (batch.entries.length > 0 && this.#give(follower, batch)) {
      this.#live.delete(follower);
      void this.#catchUp(follower);
    }
    return true;
  }

  /** What followers with this cursor get next, cut once for all of them; null when the ring does not have it. */
  #share(cursor: number): Cut | null {
    const shared = this.#shared;
    if (shared?.from === cursor && (shared.to === this.head || shared.full)) return shared;
    const entries = this.#cut(cursor);
    const last = entries?.at(-1);
    if (!entries || !last) return null;
    const toAllUntil = Math.min(
      ...entries.map(({ to, expires }) =>
        to === null ? (expires ?? Number.POSITIVE_INFINITY) : Number.NEGATIVE_INFINITY,
      ),
    );
    const [from, first, to] = [cursor, entries[0]!.seq, last.seq];
    this.#shared = { from, first, to, full: to < this.head, toAllUntil, batch: new Batch(entries) };
    return this.#shared;
  }

  #filter({ entries }: Batch, follower: Follower): Batch {
    const now = this.#source.now();
    const { skip } = follower;
    if (skip && follower.skipTo! <= follower.cursor) follower.skip = undefined;
    return new Batch(entries.filter((entry) => isFor(entry, follower, now) && !skip?.has(entry.seq)));
  }

  /** True when the sink pushes back. */
  #give({ sink }: Follower, batch: Batch): boolean {
    const drained = sink.write(this, batch);
    this.#work.deliveries += batch.entries.length;
    if (!drained) return false;
    blockUntilDrained(sink, drained);
    return true;
  }

  // -------------------------------------------------------------------------------------------------------------- catch-up

  async #catchUp(follower: Follower): Promise<void> {
    while (!follower.stopped) {
      try {
        return await this.#advance(follower);
      } catch (error) {
        if (follower.stopped) return;
        if (!(error instanceof PereError) || error.code !== "away") return this.#fail(follower, error);
        unexpected(this.#source.report ?? onConsole, error);
      }
      // What is away comes back, and the reader goes on from where it is; thousands of them not all in one moment.
      await Bun.sleep(RETRY_MS * (0.5 + Math.random()));
    }
  }

  /** Gives a follower all that it has not, until it rests among the live ones or is stopped. */
  async #advance(follower: Follower): Promise<void> {
    const { sink, device } = follower;
    while (!follower.stopped) {
      if (sink.blocked) {
        await sink.blocked.catch(() => {});
        continue;
      }
      if (follower.lost) {
        sink.gap(this, follower.lost, { epoch: this.epoch, seq: 1 });
        follower.lost = null;
      }
      if (follower.cursor >= this.head) {
        this.#live.add(follower);
        return sink.rest();
      }
      await breath.take();
      // What is stored while the page is read may overtake it: what is missing then lies below this head.
      const { epoch, head } = this;
      const { cursor } = follower;
      if (follower.stopped || sink.blocked || follower.lost || cursor >= head) continue;
      const batch = await this.#page(cursor);
      const { entries } = batch;
      const first = entries[0]?.seq ?? head + 1;
      const last = entries.at(-1)?.seq ?? head;
      if (follower.stopped) return;
      if (first > cursor + 1) {
        if (sink.blocked || epoch !== this.epoch) continue;
        sink.gap(this, { epoch, seq: cursor }, { epoch, seq: first });
        follower.cursor = first - 1;
        continue; // What is settled from here on is remembered from here on.
      }
      const given =
        device !== null && this.#source.finalized ? await this.#source.finalized(device, cursor, last, epoch) : null;
      if (follower.stopped) return;
      if (sink.blocked || epoch !== this.epoch) continue;
      const now = this.#source.now();
      follower.cursor = last;
      const wanted = entries.filter(
        (entry) => isFor(entry, follower, now) && !given?.has(entry.seq) && !follower.skip?.has(entry.seq),
      );
      if (wanted.length > 0) this.#give(follower, wanted.length === entries.length ? batch : new Batch(wanted));
    }
  }

  /** The next entries after `cursor`, in one batch with others who stand there where the ring has them; none: nothing is kept. */
  async #page(cursor: number): Promise<Batch> {
    const near = cursor >= this.head - RING_ENTRIES_MAX;
    while (near && cursor < this.#filledFrom && !this.#share(cursor)) await this.#fill(cursor);
    return this.#share(cursor)?.batch ?? new Batch(await this.#source.read(cursor, CATCH_UP_ENTRIES, this.epoch));
  }
}

/** Whether an entry is for a follower: addressed to it or to all, since it follows, and not expired. */
const isFor = ({ to, expires, seq }: Entry, { device, floor }: Follower, now: number): boolean =>
  (expires === null || expires > now) && (to === null ? seq > floor : device !== null && to.includes(device));
