/**
 * Followers of a log: how the entries of a commit reach all followers, and how a follower that fell behind catches up.
 *
 * A follower is a cursor. The same rule serves history and live entries: send what is after the cursor; if there is nothing, wait until the log
 * grows. There is no per-follower queue. Followers that keep up are in the `live` set, which a synchronous loop serves: entries since the last turn
 * are cut from the ring once, encoded once (by the sink, into the shared batch) and written once to each follower. A follower that pushes back is
 * removed from the set. It waits for its drain, reads on from the ring or the store, and joins again. Nothing is awaited between the last look at the
 * head and joining, so no entry can be missed there.
 *
 * An event that was withdrawn is skipped from then on. In the ring it is marked when its control entry is announced; the store marks what it reads. What
 * was read before that is checked against the control entries announced meanwhile. A control entry goes to followers that were given its event, or that
 * started behind it: a follower remembers ranges in which it skipped events, only where it did.
 *
 * Never keeps a promise or a copy per follower and entry, never writes to a sink that pushes back, and never skips missing entries silently.
 */
import { inLaterTurn, WRITE_ROWS, yieldToEventLoop } from "../yield.ts";
import { onConsole, type Report, unexpected } from "../faults.ts";
import {
  type ControlEntry,
  controlText,
  type Event,
  eventText,
  type EventNote,
  id,
  isControl,
  isFinal,
  type Kind,
  type LogEntry,
  noteText,
  PereError,
  type Position,
  type Receipt,
  receiptText,
  remindedUntil,
  EVENT_SOURCE_TYPES,
} from "../model.ts";
import type { BegunRound, DeviceState } from "../store.ts";
import { names } from "./names.ts";

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

/** Control entries that are remembered at least, to check what was read before them. */
const CONTROLS_MAX = RING_ENTRIES_MAX;
/** Rounds that are read in one step. */
const ROUNDS_AT_ONCE = 64;
/** Ranges with skipped events that a follower remembers. Of an older one it may get a control entry although it never got the event. */
const SKIPPED_RANGES_MAX = 64;

/** The server's own word on an event as a whole: the name of the frame without `pere.`, and its JSON text. */
export interface EntryNote {
  readonly kind: EventNote["kind"];
  readonly text: string;
}

/** Devices per question whether an event is addressed to them. */
const ASKED_AT_ONCE = 500;

/** The audience of an event with `where`. Only the store knows it. Followers that need it at about the same time ask together. */
interface Audience {
  readonly event: number;
  asking: { readonly devices: string[]; readonly found: Promise<ReadonlySet<string>> } | null;
}

const audienceOf = (event: number): Audience => ({ event, asking: null });

/**
 * A log entry as followers see it. `to` and `expires` (milliseconds since 1970) are usually null. Where there is a `note`, the text is empty, except in
 * logs of earlier versions, where the note follows it.
 */
export interface Entry {
  readonly seq: number;
  readonly id: string;
  readonly text: string;
  readonly note: EntryNote | null;
  /** The receipt, in a receipts log; null in an event log. */
  readonly receipt: Receipt | null;
  readonly type: string | null;
  readonly to: readonly string[] | null;
  /** Where its event has a `where`; else null. */
  readonly audience: Audience | null;
  readonly expires: number | null;
  /** The event itself, so that it can be sent again as another round; null: the entry is none. */
  readonly event: Event | null;
  /** The control entry; null: the entry is none. */
  readonly control: ControlEntry | null;
  /** The `seq` of its control entry if the event was withdrawn, else 0. */
  withdrawnBy: number;
}

const NO_EVENT = {
  ...{ receipt: null, type: null, to: null, audience: null, expires: null, event: null, control: null },
  withdrawnBy: 0,
};

/**
 * An event as followers get it. If an earlier version accepted a type that EventSource reserves, the frame has no type.
 * @param round how often its device was sent it; 1 for all who did not defer it
 */
export const eventEntry = (channel: string, epoch: string, event: Event, round = 1): Entry => ({
  ...NO_EVENT,
  seq: event.seq,
  id: id(epoch, event.seq),
  text: eventText(channel, epoch, event, round),
  note: null,
  type: event.type !== null && EVENT_SOURCE_TYPES.includes(event.type) ? null : event.type,
  to: event.to,
  audience: event.where === null ? null : audienceOf(event.seq),
  expires: event.expires,
  event,
  withdrawnBy: event.withdrawn?.seq ?? 0,
});

/** An entry of an event log as followers get it. */
export const logEntry = (channel: string, epoch: string, entry: LogEntry): Entry =>
  isControl(entry)
    ? {
        ...NO_EVENT,
        seq: entry.seq,
        id: id(epoch, entry.seq),
        text: "",
        note: { kind: "withdrawn", text: controlText(channel, epoch, entry) },
        to: entry.to,
        audience: entry.hasWhere ? audienceOf(entry.withdraws) : null,
        control: entry,
      }
    : eventEntry(channel, epoch, entry);

/** An entry of a receipts log as publishers get it. */
export const receiptEntry = (channel: string, epoch: string, receipt: Receipt): Entry => ({
  ...NO_EVENT,
  seq: receipt.seq,
  id: id(epoch, receipt.seq),
  text: receipt.status === "pending" ? "" : receiptText(channel, epoch, receipt),
  note: receipt.note && {
    kind: receipt.note.kind,
    text: `{"id":"${id(epoch, receipt.seq)}",${noteText(channel, epoch, receipt).slice(1)}`,
  },
  receipt,
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
  /** Takes one event that does not move the reader's position. Returns as `write` does. */
  again(log: Log, batch: Batch): Promise<unknown> | undefined;
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
  /** The device's states on events with `after` < seq ≤ `upTo` that it gave a word on. @throws PereError as `read` */
  states?(device: string, after: number, upTo: number, epoch: string): Promise<ReadonlyMap<number, DeviceState>>;
  /** Rounds that have begun for the device, of events with `after` < seq ≤ `upTo`; see `Store.begunRounds`. @throws PereError as `read` */
  rounds?(device: string, after: number, upTo: number, limit: number, epoch: string): Promise<readonly BegunRound[]>;
  /** Among these devices: those that the event is addressed to. @throws PereError as `read` */
  addressed?(event: number, devices: readonly string[], epoch: string): Promise<readonly string[]>;
  /** The newest event of each key; see `Store.latestOfKeys`. @throws PereError as `read` */
  latest?(
    reader: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    epoch: string,
  ): Promise<{ readonly entries: readonly Entry[]; readonly upTo: number }>;
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
  /** Where it started: what its reader got before is not known. */
  start: number;
  /** Events for all devices are addressed to its device only after this one. */
  joined: number;
  /** Its position in an epoch that ended, until the gap is sent. */
  gapAfter: Position | null;
  stopped: boolean;
  /** Among the next `SKIP_ENTRIES_MAX` entries: those that its device has sent a final receipt for meanwhile. */
  skip?: Set<number> | undefined;
  /** The last of them. */
  skipTo?: number;
  /** The last such entry beyond those, or one that was deferred: up to here the store is asked for each page. */
  askTo?: number;
  /** Up to here it gets only the newest event of each key. */
  latestTo?: number;
  /** Rounds may have begun of events that it has passed: they come before anything else. */
  hasRounds?: boolean;
  /** The rounds that it was sent, by event. */
  rounds?: Map<number, number>;
  /** Where it has skipped events, oldest first. */
  skipped?: SkippedRange[];
  /** Among the entries that it is given next: events with `where` that are addressed to its device. */
  addressed?: Set<number>;
  /** Control entries of skipped events that its device has given a word on. */
  told?: Set<number>;
}

/**
 * A range in which a follower skipped events: those whose control entry is not behind `by`, and those that had expired by `at` (milliseconds since 1970).
 * Nothing else needs to be remembered: what was read showed all withdrawals up to `by`.
 */
interface SkippedRange {
  readonly after: number;
  readonly upTo: number;
  readonly by: number;
  readonly at: number;
}

/**
 * Entries after `from` up to `to`, for all followers at `from`. `full`: one write carries no more. Up to `toAllUntil`, every entry is for every
 * follower. `controls` are the control entries of the batch.
 */
interface Cut extends Read {
  readonly from: number;
  readonly first: number;
  readonly to: number;
  readonly full: boolean;
  readonly toAllUntil: number;
  readonly controls: readonly ControlEntry[];
  /** It must be asked which devices some of its entries are for. */
  readonly hasAudience: boolean;
  /** It has a withdrawn event whose control entry comes later, or that some device has given a word on. */
  readonly skips: boolean;
}

/** Entries as they are in the log, and what followers with nothing special are sent of them. */
interface Read {
  readonly entries: readonly Entry[];
  /** Without withdrawn events, and without control entries of those: whoever reads this far has skipped them. */
  readonly batch: Batch;
}

/** @param after the position before the entries */
function readOf(entries: readonly Entry[], after: number): Read {
  const sent = entries.filter(
    ({ withdrawnBy, control }) => withdrawnBy === 0 && !(control && control.withdraws > after),
  );
  return { entries, batch: new Batch(sent.length === entries.length ? entries : sent) };
}

/** Older entries, read once for all followers that need them. `head`: the log's head before the read. */
interface Page {
  readonly head: number;
  readonly read: Promise<Read>;
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
  /** The last announced control entries, oldest first: all that came after `#controlsFrom`. */
  #controls: ControlEntry[] | undefined;
  #controlsFrom = 0;

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
    this.#controls = undefined;
    this.#controlsFrom = head;
    this.#grow(head);
  }

  /** Announces entries that became durable, in order. */
  announce(entries: readonly Entry[]): void {
    const first = entries[0];
    const last = entries.at(-1);
    if (!first || !last || last.seq <= this.head) return;
    if (first.seq !== this.head + 1) {
      this.#forget();
      this.#controls = undefined;
      this.#controlsFrom = first.seq - 1;
    }
    for (const entry of entries)
      if (entry.seq > this.head) {
        this.#keep(entry);
        if (entry.control) this.#withdraw(entry.control);
      }
    this.#grow(last.seq);
  }

  /** An event was withdrawn: it is sent to nobody from here on. */
  #withdraw(control: ControlEntry): void {
    const entry = this.#ring[control.withdraws - (this.#ring[0]?.seq ?? 0)];
    if (entry) entry.withdrawnBy = control.seq;
    this.#shared = undefined;
    this.#pages = undefined;
    (this.#controls ??= []).push(control);
    if (this.#controls.length < 2 * CONTROLS_MAX) return;
    this.#controls = this.#controls.slice(CONTROLS_MAX);
    this.#controlsFrom = this.#controls[0]!.seq - 1;
  }

  /**
   * Marks what was withdrawn since these entries were read, when the log's head was `head`.
   * @returns false: that is not known any more; read again
   */
  #mark(entries: readonly Entry[], head: number): boolean {
    const controls = this.#controls ?? [];
    const newest = controls.at(-1);
    if (head < this.#controlsFrom) return false;
    if (!newest || newest.seq <= head) return true;
    const first = entries[0]?.seq ?? 0;
    for (let index = controls.length - 1; index >= 0; index--) {
      const { seq, withdraws } = controls[index]!;
      if (seq <= head) break;
      const entry = entries[withdraws - first];
      if (entry?.seq === withdraws) entry.withdrawnBy = seq;
      else for (const one of entries) if (one.seq === withdraws) one.withdrawnBy = seq;
    }
    return true;
  }

  /** Whether an event that was read when the log's head was `head` may still be sent. */
  isSendable(seq: number, head: number): boolean {
    if (head < this.#controlsFrom) return false;
    const newest = this.#controls?.at(-1);
    return !newest || newest.seq <= head || !this.#controls!.some((one) => one.withdraws === seq && one.seq > head);
  }

  /** Rounds may have begun of events that this follower has passed. */
  sendRounds(follower: Follower): void {
    follower.hasRounds = true;
    if (this.#fallBehind(follower)) void this.#catchUp(follower);
  }

  /** The log has a new epoch: all followers restart at its beginning, after a gap from their old position. */
  #renew(epoch: string): void {
    const before = this.epoch;
    this.epoch = epoch;
    this.#forget();
    this.head = this.#agedHead = this.#passHead = 0;
    this.#controls = undefined;
    this.#controlsFrom = 0;
    for (const follower of [...(this.#behind ?? []), ...this.#live]) {
      follower.gapAfter ??= { epoch: before, seq: follower.cursor };
      follower.cursor = follower.floor = follower.start = follower.joined = 0;
      follower.skip = undefined;
      follower.askTo = follower.latestTo = 0;
      delete follower.rounds;
      delete follower.skipped;
      delete follower.told;
      if (this.#fallBehind(follower)) void this.#catchUp(follower);
    }
  }

  follow(follower: Follower): void {
    (this.#behind ??= new Set()).add(follower);
    void this.#catchUp(follower);
  }

  /** A follower's device deferred an event: the store says when it may be sent. */
  hold(follower: Follower, seq: number): void {
    if (seq > follower.cursor) follower.askTo = Math.max(follower.askTo ?? 0, seq);
  }

  /** A follower's device sent a final receipt: if the entry was not sent yet, it never will be, even if it has not been announced here. */
  settle(follower: Follower, seq: number): void {
    const { cursor } = follower;
    follower.rounds?.delete(seq);
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
        const { head } = this;
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
        if (older.at(-1)?.seq !== this.#start() - 1 || !this.#mark(older, head)) return;
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
    const isPlain =
      cut &&
      !cut.skips &&
      cut.first > follower.floor &&
      !follower.skip &&
      cut.controls.every((control) => control.withdraws > follower.joined && !hasSkipped(follower, control));
    if (
      !cut ||
      (cut.hasAudience && follower.device !== null) ||
      (!isPlain && unsure(cut.entries, follower).length > 0)
    ) {
      this.#fallBehind(follower);
      void this.#catchUp(follower);
      return true;
    }
    follower.cursor = cut.to;
    if (cut.to < this.head) this.#unfinished = true;
    const now = this.#source.now();
    const batch = isPlain && cut.toAllUntil > now ? cut.batch : this.#batch(cut, follower, cut.from, now, null);
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
    const [from, first, to] = [cursor, entries[0]!.seq, last.seq];
    const read = readOf(entries, from);
    const sent = read.batch.entries;
    const toAllUntil = Math.min(
      ...sent.map(({ to: names, audience, expires }) =>
        names === null && audience === null ? (expires ?? Number.POSITIVE_INFINITY) : Number.NEGATIVE_INFINITY,
      ),
    );
    const controls = sent.flatMap(({ control }) => control ?? []);
    const hasAudience = entries.some(({ audience }) => audience !== null);
    const skips =
      sent.length < entries.length &&
      entries.some(
        ({ withdrawnBy, control }) => withdrawnBy > to || (control && control.withdraws > from && control.isAnswered),
      );
    this.#shared = { ...read, from, first, to, full: to < this.head, toAllUntil, controls, hasAudience, skips };
    return this.#shared;
  }

  // -------------------------------------------------------------------------------------------------------- for whom it is

  /**
   * What a follower is sent of the entries after `after`. Remembers where it skipped some.
   * @param states of the follower's device; null: not asked for
   */
  #batch(
    { entries, batch }: Read,
    follower: Follower,
    after: number,
    now: number,
    states: ReadonlyMap<number, DeviceState> | null,
  ): Batch {
    const { skip } = follower;
    if (skip && follower.skipTo! <= after) follower.skip = undefined;
    const upTo = entries.at(-1)?.seq ?? after;
    let by = 0;
    let hasExpired = false;
    const wanted: Entry[] = [];
    for (const entry of entries) {
      if (entry.control) {
        if (isToldOf(entry, entry.control, follower, after)) wanted.push(entry);
      } else if (isAddressed(entry, follower)) {
        if (entry.withdrawnBy !== 0) by = Math.max(by, entry.withdrawnBy);
        else if (entry.expires !== null && entry.expires <= now) hasExpired = true;
        else if (!skip?.has(entry.seq)) this.#push(wanted, entry, follower, states?.get(entry.seq));
      }
    }
    if (follower.skipped || by > upTo || hasExpired) {
      const range = { after, upTo, by, at: hasExpired ? now : Number.NEGATIVE_INFINITY };
      const skipped = [...(follower.skipped ?? []), range].filter(
        ({ by: last, at }) => last > upTo || at > Number.NEGATIVE_INFINITY,
      );
      if (skipped.length === 0) delete follower.skipped;
      else follower.skipped = skipped.slice(-SKIPPED_RANGES_MAX);
    }
    const isShared = wanted.length === batch.entries.length && wanted.every((entry, n) => entry === batch.entries[n]);
    return isShared ? batch : new Batch(wanted);
  }

  /** Adds an event as its device gets it: not if it has a final word or is deferred, and with its round. */
  #push(wanted: Entry[], entry: Entry, follower: Follower, state: DeviceState | undefined): void {
    if (!state) return void wanted.push(entry);
    if (isFinal(state.state) || state.due !== null || state.state === "withdrawn") return;
    if (state.round === 1 || !entry.event) return void wanted.push(entry);
    (follower.rounds ??= new Map()).set(entry.seq, state.round);
    wanted.push(eventEntry(this.channel, this.epoch, entry.event, state.round));
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
      if (follower.hasRounds) {
        await this.#giveRounds(follower);
        continue;
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
      if ((follower.latestTo ?? 0) > cursor) {
        await this.#giveLatest(follower);
        continue;
      }
      const page = await this.#page(cursor);
      // What is stored while the page is read may overtake it: what is missing then lies below this head.
      const head = Math.min(headBefore, page.head);
      const read = await page.read;
      const { entries } = read;
      const first = entries[0]?.seq ?? head + 1;
      const last = entries.at(-1)?.seq ?? head;
      if (follower.stopped) return;
      if (first > cursor + 1) {
        if (sink.blocked || epoch !== this.epoch) continue;
        sink.gap(this, { epoch, seq: cursor }, { epoch, seq: first });
        follower.cursor = follower.start = first - 1;
        continue; // Final receipts are remembered from here on.
      }
      delete follower.addressed;
      if (device !== null)
        for (const { audience } of entries)
          if (audience && (await this.#ask(audience, device, epoch)).has(device))
            (follower.addressed ??= new Set()).add(audience.event);
      const states =
        device !== null && this.#source.states ? await this.#source.states(device, cursor, last, epoch) : null;
      for (const { seq, withdraws } of unsure(entries, follower)) {
        const said = await this.#source.states!(device!, withdraws - 1, withdraws, epoch);
        if (said.has(withdraws)) (follower.told ??= new Set()).add(seq);
      }
      // Reads wait for a running sync, and many end with it. What they found is written in turns.
      await yieldToEventLoop("catch-up", entries.length);
      if (follower.stopped) return;
      if (sink.blocked || epoch !== this.epoch) continue;
      if (!this.#mark(entries, page.head)) {
        this.#pages?.delete(cursor);
        continue;
      }
      follower.cursor = last;
      const batch = this.#batch(read, follower, cursor, this.#source.now(), states);
      delete follower.told;
      delete follower.addressed;
      if (batch.entries.length > 0) this.#give(follower, batch);
    }
  }

  /** Which devices an event is addressed to, among some of which this is one. */
  #ask(audience: Audience, device: string, epoch: string): Promise<ReadonlySet<string>> {
    if (!audience.asking || audience.asking.devices.length === ASKED_AT_ONCE) {
      const devices: string[] = [];
      audience.asking = { devices, found: this.#answer(audience, devices, epoch) };
    }
    audience.asking.devices.push(device);
    return audience.asking.found;
  }

  async #answer(audience: Audience, devices: readonly string[], epoch: string): Promise<ReadonlySet<string>> {
    await yieldToEventLoop("catch-up", ASKED_AT_ONCE);
    if (audience.asking?.devices === devices) audience.asking = null;
    return new Set(await this.#source.addressed!(audience.event, devices, epoch));
  }

  /** Sends a follower the rounds that have begun of events that it has passed. */
  async #giveRounds(follower: Follower): Promise<void> {
    const { sink, device } = follower;
    const { epoch } = this;
    follower.hasRounds = false;
    if (device === null || !this.#source.rounds) return;
    try {
      for (let after = 0; ;) {
        await yieldToEventLoop("remind", ROUNDS_AT_ONCE);
        const upTo = Math.max(follower.cursor, follower.latestTo ?? 0);
        const begun = await this.#source.rounds(device, after, upTo, ROUNDS_AT_ONCE, epoch);
        for (const { event, round } of begun) {
          after = event;
          if ((follower.rounds?.get(event) ?? 1) >= round) continue;
          const { head } = this;
          const [entry] = await this.#source.read(event - 1, 1, epoch);
          if (follower.stopped || epoch !== this.epoch) return;
          if (sink.blocked) return void (follower.hasRounds = true);
          if (entry?.seq === event) this.giveRound(follower, entry, round, head);
        }
        if (follower.stopped || begun.length < ROUNDS_AT_ONCE) return;
      }
    } catch (error) {
      follower.hasRounds = true;
      throw error;
    }
  }

  /** Sends a follower that keeps up another round of an event, once. @param head of the log before the entry was read */
  giveRound(follower: Follower, { event }: Entry, round: number, head: number, batch?: Batch): void {
    if (!event || event.withdrawn || !this.isSendable(event.seq, head)) return;
    const until = remindedUntil(event);
    if (until !== null && until <= this.#source.now()) return;
    const rounds = (follower.rounds ??= new Map<number, number>());
    if ((rounds.get(event.seq) ?? 1) >= round) return;
    rounds.set(event.seq, round);
    const drained = follower.sink.again(this, batch ?? new Batch([eventEntry(this.channel, this.epoch, event, round)]));
    this.#counters.deliveries++;
    if (drained) blockUntilDrained(follower.sink, drained);
  }

  /** Sends a follower the newest event of each key, up to where it goes on with all of them. */
  async #giveLatest(follower: Follower): Promise<void> {
    const { sink, device, joined, cursor } = follower;
    const source = this.#source;
    const { epoch, head } = this;
    const { entries, upTo } = await source.latest!(
      { device, joined },
      cursor,
      follower.latestTo!,
      CATCH_UP_ENTRIES,
      epoch,
    );
    const said =
      device !== null && source.states && entries.length > 0 ? await source.states(device, cursor, upTo, epoch) : null;
    await yieldToEventLoop("catch-up", entries.length);
    if (follower.stopped || sink.blocked || epoch !== this.epoch || !this.#mark(entries, head)) return;
    follower.cursor = upTo;
    const wanted: Entry[] = [];
    for (const entry of entries) {
      const state = said?.get(entry.seq);
      // Whether its device has answered it makes no difference here.
      if (entry.withdrawnBy !== 0 || (state && state.due !== null)) continue;
      const sent = follower.rounds?.get(entry.seq);
      if (state?.state === "deferred" && sent !== undefined && sent >= state.round) continue;
      if (state && isFinal(state.state)) wanted.push(entry);
      else this.#push(wanted, entry, follower, state);
    }
    if (wanted.length > 0) this.#give(follower, new Batch(wanted));
  }

  /** The next entries after `cursor`, shared with other followers there; none: nothing is kept. */
  async #page(cursor: number): Promise<Page> {
    const near = cursor >= this.head - RING_ENTRIES_MAX;
    while (near && cursor < this.#filledFrom && !this.#share(cursor)) await this.#fill(cursor);
    const shared = this.#share(cursor);
    if (shared) return { head: this.head, read: Promise.resolve(shared) };
    const pages = (this.#pages ??= new Map());
    const known = pages.get(cursor);
    if (known) return known;
    const page = { head: this.head, read: this.#read(cursor) };
    pages.set(cursor, page);
    if (pages.size > PAGES_MAX) pages.delete(pages.keys().next().value!);
    page.read.catch(() => pages.get(cursor) === page && pages.delete(cursor)); // The next one tries again.
    return page;
  }

  async #read(cursor: number): Promise<Read> {
    const { epoch } = this;
    await yieldToEventLoop("catch-up", CATCH_UP_ENTRIES);
    return readOf(await this.#source.read(cursor, CATCH_UP_ENTRIES, epoch), cursor);
  }
}

/** Whether an event is addressed to a follower, or to all after its floor. */
const isAddressed = ({ to, audience, seq }: Entry, { device, floor, addressed }: Follower): boolean => {
  if (audience) return addressed?.has(seq) ?? false;
  return to === null ? seq > floor : device !== null && names(to, device);
};

/** Whether the event that a control entry withdraws was addressed to a follower, wherever that started. */
const concerns = (entry: Entry, { withdraws }: ControlEntry, { device, joined, addressed }: Follower): boolean => {
  const { to, audience } = entry;
  if (audience) return addressed?.has(withdraws) ?? false;
  return to === null ? withdraws > joined : device !== null && names(to, device);
};

/** Whether a follower has passed a withdrawn event without being sent it. */
const hasSkipped = ({ skipped }: Follower, { seq, withdraws, expires }: ControlEntry): boolean =>
  skipped?.some(
    ({ after, upTo, by, at }) =>
      withdraws > after && withdraws <= upTo && (seq <= by || (expires !== null && expires <= at)),
  ) ?? false;

/**
 * Whether a follower is told that an event was withdrawn: it was sent the event, or started behind it, or its device has given a word on it.
 * @param after where the entries that are being sent began: a withdrawn event after it is not sent
 */
function isToldOf(entry: Entry, control: ControlEntry, follower: Follower, after: number): boolean {
  if (!concerns(entry, control, follower)) return false;
  if (control.withdraws <= follower.start || follower.told?.has(control.seq)) return true;
  return control.withdraws <= after && !hasSkipped(follower, control);
}

/** Control entries of events that a follower was not sent, and that its device may have given a word on. */
function unsure(entries: readonly Entry[], follower: Follower): ControlEntry[] {
  if (follower.device === null) return [];
  const first = entries[0]?.seq ?? 0;
  return entries.flatMap((entry) => {
    const { control } = entry;
    if (!control?.isAnswered || control.withdraws <= follower.start || !concerns(entry, control, follower)) return [];
    return control.withdraws >= first || hasSkipped(follower, control) ? control : [];
  });
}
