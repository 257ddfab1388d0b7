/**
 * Followers of a log: how the entries of a commit reach all followers, and how a follower that fell behind catches up.
 *
 * A follower is a cursor. The same rule serves history and live entries: send what is after the cursor; if there is nothing, wait until the log
 * grows. There is no per-follower queue. Followers that keep up are in the `live` set, which a synchronous loop serves: entries since the last turn
 * are cut from the ring once, encoded once (by the sink, into the shared batch) and written once to each follower. A follower that pushes back is
 * removed from the set. It waits for its drain, reads on from the ring or the store, and joins again. Nothing is awaited between the last look at the
 * head and joining, so no entry can be missed there.
 *
 * Never keeps a promise or a copy per follower and entry, never writes to a sink that pushes back, and never skips missing entries silently.
 */
import { inLaterTurn, WRITE_ROWS, yieldToEventLoop } from "../yield.ts";
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

/** Ring size in entries: what devices on bad connections miss in a moment. */
export const RING_ENTRIES_MAX = 1_024;
/** Ring size in characters of text. */
export const RING_CHARACTERS_MAX = 1024 * 1024;
/** Followers served per turn of the event loop, so that requests do not wait for a whole fan-out. */
export const SLICE_FOLLOWERS = 128;
/** Approximate characters per write: the cost of a reader that stops reading. */
export const WRITE_CHARACTERS = 256 * 1024;
/** Delay before a read is retried when the store is away, ± 50 %. */
export const RETRY_MS = 500;
/** Entries per catch-up read. */
export const CATCH_UP_ENTRIES = 256;
/** Pages that are kept for other followers who come to the same place while any follower catches up. */
const PAGES_MAX = 4;
/** How far ahead of a follower its device's final receipts are remembered; no page is longer. Beyond that, the store is asked. */
export const SKIP_ENTRIES_MAX = 4 * RING_ENTRIES_MAX;

/**
 * A log entry as followers see it. `to` and `expires` (milliseconds since 1970) are usually null. `complete` says that an event is complete; the text
 * is then empty, except in logs of earlier versions, where it follows the text.
 */
export interface Entry {
  readonly seq: number;
  readonly id: string;
  readonly text: string;
  readonly complete: string | null;
  /** The receipt, in a receipts log; null in an event log. */
  readonly receipt: Receipt | null;
  readonly type: string | null;
  readonly to: readonly string[] | null;
  readonly expires: number | null;
}

/** An event as followers get it. If an earlier version accepted a type that EventSource reserves, the frame has no type. */
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

/** Entries to be sent. Followers at the same cursor share one batch; `encoded` is a cache for the sinks. */
export class Batch {
  readonly entries: readonly Entry[];
  encoded: unknown;
  constructor(entries: readonly Entry[]) {
    this.entries = entries;
  }
}

/** Receives a follower's entries. One sink may serve several followers (a feed of several channels). */
export interface Sink {
  /** Takes the batch. A promise: the batch was taken, and the reader is behind; do not write until it resolves. */
  write(log: Log, batch: Batch): Promise<unknown> | undefined;
  /** Entries after `after` and before `from` are no longer kept, or were in another epoch of the log. */
  gap(log: Log, after: Position, from: Position): void;
  /** A follower has everything and waits. */
  rest(): void;
  /** The log can't be read now. The sink must end. */
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

/** Reads a log's older entries. */
export interface LogSource {
  /** Reads entries of one epoch. @throws PereError away: temporarily unreadable; or the epoch has ended, and the log was told */
  read(after: number, limit: number, epoch: string): Promise<readonly Entry[]>;
  /** Events with `after` < seq ≤ `upTo` that the device sent a final receipt for; they are not sent to it again. @throws PereError as `read` */
  finalized?(device: string, after: number, upTo: number, epoch: string): Promise<ReadonlySet<number>>;
  now(): number;
  /** Receives unexpected errors. */
  readonly report?: Report;
}

export interface Follower {
  readonly sink: Sink;
  /** A device's name: it also gets what is addressed to it. Null: only what is addressed to all. */
  readonly device: string | null;
  /** Everything up to here was sent, or was not for it. */
  cursor: number;
  /** Events for all devices are sent only after this one. */
  floor: number;
  /** Its position in an epoch that ended, until the gap is sent. */
  gapAfter: Position | null;
  stopped: boolean;
  /** Among the next `SKIP_ENTRIES_MAX` entries: those that its device has sent a final receipt for meanwhile. */
  skip?: Set<number> | undefined;
  /** The last of them. */
  skipTo?: number;
  /** The last finally answered entry beyond those: up to here the store is asked for each page. */
  askTo?: number;
}

/**
 * Entries after `from` up to `to`, for all followers at `from`. `full`: one write carries no more. Up to `toAllUntil`, every entry is for every
 * follower.
 */
interface Cut {
  readonly from: number;
  readonly first: number;
  readonly to: number;
  readonly full: boolean;
  readonly toAllUntil: number;
  readonly batch: Batch;
}

/** Older entries, read once for all followers that need them. `head`: the log's head before the read. */
interface Page {
  readonly head: number;
  readonly batch: Promise<Batch>;
}

export class Log {
  readonly kind: Kind;
  readonly channel: string;
  /** Set by `reach`. */
  epoch = "";
  head = 0;
  /** Feeds and requests that use the log; at 0 its owner drops it. */
  users = 0;
  readonly #source: LogSource;
  /** Counts deliveries. */
  readonly #counters: { deliveries: number };
  readonly #live = new Set<Follower>();
  /** Those that are not live. A quiet log has none, and needs no set for them. */
  #behind: Set<Follower> | undefined;
  #ring: Entry[] = [];
  #ringCharacters = 0;
  #filling: Promise<void> | undefined;
  /** The ring was extended back to here; only a follower further back triggers another try. */
  #filledFrom = Number.POSITIVE_INFINITY;
  /** The head at the last call of `age`. */
  #agedHead = 0;
  #pass: Iterator<Follower> | undefined;
  #passHead = 0;
  /** Whether the running pass left a follower with more to send. */
  #unfinished = false;
  #shared: Cut | undefined;
  /** The last pages that were read from the source, by the cursor before them. */
  #pages: Map<number, Page> | undefined;
  /** `#turn`. A log that is quiet needs neither. */
  #step: (() => number) | undefined;

  constructor(kind: Kind, channel: string, source: LogSource, counters = { deliveries: 0 }) {
    this.kind = kind;
    this.channel = channel;
    this.#source = source;
    this.#counters = counters;
  }

  /** Followers, for metrics. */
  get followers(): number {
    return this.#live.size + (this.#behind?.size ?? 0);
  }

  /** Those in the live set, for tests and metrics. */
  get live(): number {
    return this.#live.size;
  }

  /** Updates the log's extent from the store; it may have grown since. With another epoch, the old log is lost and its followers get a gap. */
  reach(epoch: string, head: number): void {
    if (this.epoch !== "" && epoch !== this.epoch) this.#renew(epoch);
    this.epoch = epoch;
    if (head <= this.head) return;
    this.#forget();
    this.#grow(head);
  }

  /** Announces entries that became durable, in order. */
  announce(entries: readonly Entry[]): void {
    const first = entries[0];
    const last = entries.at(-1);
    if (!first || !last || last.seq <= this.head) return;
    if (first.seq !== this.head + 1) this.#forget();
    for (const entry of entries) if (entry.seq > this.head) this.#keep(entry);
    this.#grow(last.seq);
  }

  /** The log has a new epoch: all followers restart at its beginning, after a gap from their old position. */
  #renew(epoch: string): void {
    const before = this.epoch;
    this.epoch = epoch;
    this.#forget();
    this.head = this.#agedHead = this.#passHead = 0;
    for (const follower of [...(this.#behind ?? []), ...this.#live]) {
      follower.gapAfter ??= { epoch: before, seq: follower.cursor };
      follower.cursor = follower.floor = 0;
      follower.skip = undefined;
      follower.askTo = 0;
      if (this.#fallBehind(follower)) void this.#catchUp(follower);
    }
  }

  follow(follower: Follower): void {
    (this.#behind ??= new Set()).add(follower);
    void this.#catchUp(follower);
  }

  /** A follower's device sent a final receipt: if the entry was not sent yet, it never will be, even if it has not been announced here. */
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
    this.#live.delete(follower);
    this.#forgetBehind(follower);
    this.#dropPages();
  }

  /** Pages are kept only while a follower catches up. */
  #dropPages(): void {
    if (!this.#behind) this.#pages?.clear();
  }

  #forgetBehind(follower: Follower): void {
    if (this.#behind?.delete(follower) && this.#behind.size === 0) this.#behind = undefined;
  }

  /** Takes a follower out of the live set. @returns whether it was there */
  #fallBehind(follower: Follower): boolean {
    if (!this.#live.delete(follower)) return false;
    if (!follower.stopped) (this.#behind ??= new Set()).add(follower);
    return true;
  }

  // -------------------------------------------------------------------------------------------------------------- the ring

  #keep(entry: Entry): void {
    this.#ring.push(entry);
    this.#ringCharacters += entry.text.length;
    // Cut in chunks: each single shift would cost the ring's length.
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
   * Called periodically: drops entries that were already there at the last call. The ring serves followers that are a moment behind; without aging,
   * ten thousand channels would each keep a megabyte for no one.
   */
  age(): void {
    this.#pages = undefined;
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
    this.#pages = undefined;
  }

  /** Entries after `cursor` for one write, or null if the ring does not reach back that far. */
  #cut(cursor: number): Entry[] | null {
    const first = this.#ring[0];
    if (!first || cursor < first.seq - 1) return null;
    const from = cursor - first.seq + 1;
    let to = from;
    for (let characters = 0; to < this.#ring.length && characters < WRITE_CHARACTERS; to++)
      characters += this.#ring[to]!.text.length;
    return this.#ring.slice(from, to);
  }

  /** Extends the ring back to `cursor` from the store, once for all followers that are behind: ten thousand reconnecting followers cost one read. */
  #fill(cursor: number): Promise<void> {
    this.#filling ??= (async () => {
      const { epoch } = this;
      try {
        let older: Entry[] = [];
        for (let after = cursor; after < this.#start() - 1;) {
          await yieldToEventLoop("catch-up", CATCH_UP_ENTRIES);
          const read = (await this.#source.read(after, CATCH_UP_ENTRIES, epoch)).filter(
            ({ seq }) => seq < this.#start(),
          );
          if (read.length === 0) break;
          older.push(...read);
          after = read.at(-1)!.seq;
        }
        if (epoch !== this.epoch) return;
        this.#filledFrom = cursor; // Set only now: other followers at this cursor wait for this read.
        if (older.at(-1)?.seq !== this.#start() - 1) return;
        let keep = older.length;
        let characters = this.#ringCharacters;
        while (keep > 0 && characters + older[keep - 1]!.text.length <= RING_CHARACTERS_MAX)
          characters += older[--keep]!.text.length;
        if (keep > 0) this.#filledFrom = 0; // The ring is full: each follower reads older entries for itself.
        older = older.slice(keep);
        this.#ring = [...older, ...this.#ring];
        this.#ringCharacters = characters;
      } finally {
        this.#filling = undefined;
      }
    })();
    return this.#filling;
  }

  /** The `seq` of the ring's oldest entry, or of the next one to come. */
  #start(): number {
    return this.#ring[0]?.seq ?? this.head + 1;
  }

  // ------------------------------------------------------------------------------------------------------------------ live

  #grow(head: number): void {
    this.head = head;
    if (this.#pass || this.#live.size === 0) return;
    this.#begin();
    this.#step ??= () => this.#turn();
    inLaterTurn("deliver", this.#step);
  }

  #begin(): void {
    this.#pass = this.#live.values();
    this.#passHead = this.head;
    this.#unfinished = false;
  }

  /** Serves a slice of the live followers; continues in later turns until all have everything. @returns the rows that this took */
  #turn(): number {
    let served = 0;
    while (this.#pass && served < SLICE_FOLLOWERS) {
      const next = this.#pass.next();
      if (!next.done) {
        if (this.#tryServe(next.value)) served++;
      } else if (this.head > this.#passHead || this.#unfinished) this.#begin();
      else this.#pass = undefined;
    }
    if (this.#pass) inLaterTurn("deliver", this.#step!);
    return served * WRITE_ROWS;
  }

  /** An error at one follower ends only that follower. */
  #tryServe(follower: Follower): boolean {
    try {
      return this.#serve(follower);
    } catch (error) {
      this.#fallBehind(follower);
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

  /** False: there was nothing to send. */
  #serve(follower: Follower): boolean {
    if (follower.cursor >= this.head) return false;
    const mustAsk = (follower.askTo ?? 0) > follower.cursor;
    const cut = follower.sink.blocked || mustAsk ? null : this.#share(follower.cursor);
    if (!cut) {
      this.#fallBehind(follower);
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
      this.#fallBehind(follower);
      void this.#catchUp(follower);
    }
    return true;
  }

  /** What followers at this cursor get next, cut once for all; null: the ring does not reach back that far. */
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

  /** True: the sink pushes back. */
  #give({ sink }: Follower, batch: Batch): boolean {
    const drained = sink.write(this, batch);
    this.#counters.deliveries += batch.entries.length;
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
      // The store will come back, and the reader continues from its position. The delay is random, so that thousands of followers do not retry at
      // once.
      await Bun.sleep(RETRY_MS * (0.5 + Math.random()));
    }
  }

  /** Sends a follower everything it lacks, until it joins the live set or is stopped. */
  async #advance(follower: Follower): Promise<void> {
    const { sink, device } = follower;
    while (!follower.stopped) {
      if (sink.blocked) {
        await sink.blocked.catch(() => {});
        continue;
      }
      if (follower.gapAfter) {
        sink.gap(this, follower.gapAfter, { epoch: this.epoch, seq: 1 });
        follower.gapAfter = null;
      }
      if (follower.cursor >= this.head) {
        this.#live.add(follower);
        this.#forgetBehind(follower);
        this.#dropPages();
        return sink.rest();
      }
      await yieldToEventLoop("catch-up", WRITE_ROWS);
      const { epoch, head: headBefore } = this;
      const { cursor } = follower;
      if (follower.stopped || sink.blocked || follower.gapAfter || cursor >= headBefore) continue;
      const page = await this.#page(cursor);
      // What is stored while the page is read may overtake it: what is missing then lies below this head.
      const head = Math.min(headBefore, page.head);
      const batch = await page.batch;
      const { entries } = batch;
      const first = entries[0]?.seq ?? head + 1;
      const last = entries.at(-1)?.seq ?? head;
      if (follower.stopped) return;
      if (first > cursor + 1) {
        if (sink.blocked || epoch !== this.epoch) continue;
        sink.gap(this, { epoch, seq: cursor }, { epoch, seq: first });
        follower.cursor = first - 1;
        continue; // Final receipts are remembered from here on.
      }
      const given =
        device !== null && this.#source.finalized ? await this.#source.finalized(device, cursor, last, epoch) : null;
      // Reads wait for a running sync, and many end with it. What they found is written in turns.
      await yieldToEventLoop("catch-up", entries.length);
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

  /** The next entries after `cursor`, in a batch shared with other followers there; empty: nothing is kept. */
  async #page(cursor: number): Promise<Page> {
    const near = cursor >= this.head - RING_ENTRIES_MAX;
    while (near && cursor < this.#filledFrom && !this.#share(cursor)) await this.#fill(cursor);
    const shared = this.#share(cursor);
    if (shared) return { head: this.head, batch: Promise.resolve(shared.batch) };
    const pages = (this.#pages ??= new Map());
    const known = pages.get(cursor);
    if (known) return known;
    const page = { head: this.head, batch: this.#read(cursor) };
    pages.set(cursor, page);
    if (pages.size > PAGES_MAX) pages.delete(pages.keys().next().value!);
    page.batch.catch(() => pages.get(cursor) === page && pages.delete(cursor)); // The next one tries again.
    return page;
  }

  async #read(cursor: number): Promise<Batch> {
    const { epoch } = this;
    await yieldToEventLoop("catch-up", CATCH_UP_ENTRIES);
    return new Batch(await this.#source.read(cursor, CATCH_UP_ENTRIES, epoch));
  }
}

/** Whether an entry is for a follower: addressed to it or to all, after its floor, and not expired. */
const isFor = ({ to, expires, seq }: Entry, { device, floor }: Follower, now: number): boolean =>
  (expires === null || expires > now) && (to === null ? seq > floor : device !== null && to.includes(device));
