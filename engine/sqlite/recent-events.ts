/**
 * Events of many channels on their way into `events`.
 *
 * `events` is clustered by channel, so that a channel is read from few pages. But if each push is to another channel, each writes pages of its own, into
 * the log and then into the file: 15 kB for an event of 250 bytes. So these events first go into `journal`, in the order of their arrival, as many as
 * fit into one page. Some ten thousand of them are then merged into `events` together, so that those of one channel share pages.
 *
 * Meanwhile the temporary table `recent`, in memory, has their rows. A temporary view with the name `events` shows both, and hides the table of that
 * name, which is `main.events`: so whoever reads events need not know. When the file is opened, `recent` is filled from the journal.
 *
 * The journal is a ring of rows of one length, each on a page of its own, that are overwritten in place: a commit writes one page and frees none. So
 * its entries are never deleted. One counts if the table does not have it and the floor of its channel has not passed it. Therefore retention moves
 * events to their place when the floor passes them, before it deletes anything (`settle`).
 *
 * Events for named devices, and those with a deadline or a reminder, never come here. Nor do those of the few channels that were pushed to last: they
 * share pages anyway.
 *
 * All functions except `open` and `written` run in a transaction.
 */
import type { SqliteFile } from "./file.ts";
import type { Channel } from "./schema.ts";

/** Events per slice of a merge: about 1 ms. */
const MERGE_EVENTS = 200;

export interface RecentEventsLimits {
  /** Bytes of text per row of the journal. An event of more than half of that goes to its place: it would leave much of a row unused. */
  readonly rowBytes: number;
  /** Rows of the journal. While they are all in use, events go to their place. */
  readonly rows: number;
  /** After so many rows, at least two, their events are merged. If they are more, more of them share a page, but `recent` needs more memory. */
  readonly mergeRows: number;
  /** Of so many channels that were pushed to last, events go to their place. */
  readonly nearChannels: number;
}

/** A page of 4 KiB has room for one row. The journal needs up to 24 MiB of the file, `recent` about as much memory. */
export const RECENT_LIMITS: RecentEventsLimits = { rowBytes: 4_000, rows: 6_144, mergeRows: 4_096, nearChannels: 4 };

/** An entry of the journal. */
type Entry = readonly [
  channel: number,
  seq: number,
  at: number,
  expires: number | null,
  type: string | null,
  data: string,
];

const COLUMNS = "(channel, seq, at, expires, targeted, type, data)";
const VALUES = "VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)";
const INSERT_EVENT = `INSERT INTO main.events ${COLUMNS} ${VALUES}`;
const INSERT_RECENT = `INSERT INTO recent ${COLUMNS} ${VALUES}`;

/** The end of the journal. */
interface End {
  /** Of the newest row, counted from the first one that was ever written. */
  readonly number: number;
  /** Its entries, comma separated, and their bytes with brackets. */
  readonly text: string;
  readonly bytes: number;
  /** The events of rows up to this number are merged. */
  readonly merged: number;
}

/** A running merge. */
interface Merge {
  /** Afterwards the events of rows up to this number are merged. */
  readonly upTo: number;
  /** The last event that was moved. */
  readonly channel: number;
  readonly seq: number;
}

/** Reads rows. */
type All = <Shape>(sql: string, ...values: number[]) => Shape[];

/** The entries of the journal that a merge has not moved yet, or not all of them, by channel. */
function entriesOf(all: All): Map<number, Entry[]> {
  const entries = new Map<number, Entry[]>();
  for (const { events } of all<{ events: string }>("SELECT events FROM journal WHERE number > ?1", newest(all).merged))
    for (const entry of JSON.parse(events) as Entry[]) {
      const same = entries.get(entry[0]);
      if (same) same.push(entry);
      else entries.set(entry[0], [entry]);
    }
  return entries;
}

/** Those that count. Also used on a file that no store has open. */
export function* unmerged(all: All, entries = entriesOf(all)): Generator<Entry> {
  for (const [channel, ofChannel] of entries) {
    const kept = all<{ floor: number }>("SELECT floor FROM channels WHERE id = ?1", channel)[0];
    if (kept === undefined) continue; // The channel was deleted.
    const first = ofChannel.reduce((least, [, seq]) => Math.min(least, seq), Number.POSITIVE_INFINITY);
    const inPlace = all<{ seq: number }>(
      "SELECT seq FROM main.events WHERE channel = ?1 AND seq >= ?2",
      channel,
      first,
    );
    const found = new Set(inPlace.map(({ seq }) => seq));
    for (const entry of ofChannel) if (entry[1] > kept.floor && !found.has(entry[1])) yield entry;
  }
}

/** The number of the newest row, and what it says is merged. */
const newest = (all: All): Pick<End, "number" | "merged"> =>
  all<Pick<End, "number" | "merged">>("SELECT number, merged FROM journal ORDER BY number DESC LIMIT 1")[0] ?? {
    number: 0,
    merged: 0,
  };

export class RecentEvents {
  #file!: SqliteFile;
  readonly #limits: RecentEventsLimits;
  /** The channels that were pushed to last, oldest first. */
  readonly #near = new Set<number>();
  /** What the running transaction has yet to write into the journal. */
  #entries: string[] = [];
  #end: End;
  #merge: Merge | null = null;
  #newestChannel = 0;
  /** Both as of the last commit. */
  #committed: { readonly end: End; readonly merge: Merge | null };

  constructor(limits: RecentEventsLimits = RECENT_LIMITS) {
    this.#limits = limits;
    this.#end = { number: 0, text: "", bytes: limits.rowBytes, merged: 0 };
    this.#committed = { end: this.#end, merge: null };
  }

  /** A connection was opened: fills its `recent`. @throws SQLiteError the journal can't be read */
  open(file: SqliteFile): void {
    this.#file = file;
    file.run("PRAGMA temp_store = MEMORY");
    // The columns of `events`, all of them: with constants for some, SQLite would sort what it reads from the view instead of merging two ordered reads.
    const columns = file.all<{ name: string; type: string }>("SELECT name, type FROM pragma_table_info('events')");
    const definitions = columns.map(({ name, type }) => `${name} ${type}`).join();
    file.run(`CREATE TEMP TABLE recent (${definitions}, PRIMARY KEY (channel, seq)) STRICT, WITHOUT ROWID`);
    const all: All = (sql, ...values) => file.all(sql, ...values);
    this.#end = { ...newest(all), text: "", bytes: this.#limits.rowBytes }; // Begins a row.
    this.#merge = null;
    this.written();
    const entries = entriesOf(all);
    for (const channel of entries.keys()) this.#newestChannel = Math.max(this.#newestChannel, channel);
    for (const entry of unmerged(all, entries)) file.run(INSERT_RECENT, ...entry);
    file.run("CREATE TEMP VIEW events AS SELECT * FROM main.events UNION ALL SELECT * FROM recent");
  }

  /** The greatest id of a channel that the journal names, when it was opened. No channel may be created with one of these ids. */
  get newestChannel(): number {
    return this.#newestChannel;
  }

  /** Stores an event to all devices, with neither deadline nor reminder. */
  add(channel: number, seq: number, at: number, expires: number | null, type: string | null, data: string): void {
    const row: Entry = [channel, seq, at, expires, type, data];
    const isNear = this.#isNear(channel);
    const entry = isNear || data.length > this.#entryBytesMax || this.#isFull ? null : JSON.stringify(row);
    if (entry === null || Buffer.byteLength(entry) > this.#entryBytesMax)
      return void this.#file.run(INSERT_EVENT, ...row);
    this.#file.run(INSERT_RECENT, ...row);
    this.#entries.push(entry);
  }

  #isNear(channel: number): boolean {
    const isNear = this.#near.delete(channel);
    this.#near.add(channel);
    if (isNear || this.#near.size <= this.#limits.nearChannels) return true;
    this.#near.delete(this.#near.values().next().value!);
    return false;
  }

  get #entryBytesMax(): number {
    return this.#limits.rowBytes / 2;
  }

  /** Each entry of the running transaction needs a row at most. */
  get #isFull(): boolean {
    return this.#end.number - this.#end.merged + this.#entries.length >= this.#limits.rows;
  }

  /** After the changes of a transaction: writes the journal. */
  finish(): void {
    if (this.#entries.length === 0) return;
    const { rowBytes } = this.#limits;
    const all = this.#entries.join();
    const allBytes = Buffer.byteLength(all);
    // One page per commit, even if a part of the row before stays unused.
    if (this.#fits(allBytes)) this.#append(all, allBytes);
    else if (this.#end.bytes >= rowBytes / 2 && allBytes + 2 <= rowBytes) this.#begin(all, allBytes);
    else
      for (const entry of this.#entries) {
        const bytes = Buffer.byteLength(entry);
        if (this.#fits(bytes)) {
          this.#append(entry, bytes);
          continue;
        }
        if (this.#end !== this.#committed.end) this.#write();
        this.#begin(entry, bytes);
      }
    this.#write();
    this.#entries = [];
  }

  #fits(bytes: number): boolean {
    return this.#end.bytes + 1 + bytes <= this.#limits.rowBytes;
  }

  #append(text: string, bytes: number): void {
    this.#end = { ...this.#end, text: `${this.#end.text},${text}`, bytes: this.#end.bytes + 1 + bytes };
  }

  #begin(text: string, bytes: number): void {
    this.#end = { ...this.#end, number: this.#end.number + 1, text, bytes: bytes + 2 };
  }

  #write(): void {
    const { number, text, bytes, merged } = this.#end;
    this.#file.run(
      "INSERT INTO journal VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET number = ?2, merged = ?3, events = ?4",
      number % this.#limits.rows,
      number,
      merged,
      `[${text}]${" ".repeat(this.#limits.rowBytes - bytes)}`,
    );
  }

  /** The transaction was committed. */
  written(): void {
    this.#committed = { end: this.#end, merge: this.#merge };
  }

  /** The transaction was rolled back, and with it what it wrote into `recent`. */
  undone(): void {
    this.#end = this.#committed.end;
    this.#merge = this.#committed.merge;
    this.#entries = [];
  }

  /** Whether `merge` has something to do. */
  get isDue(): boolean {
    return this.#merge !== null || this.#end.number - this.#end.merged >= this.#limits.mergeRows;
  }

  /** Moves the next events to their place. */
  merge(): void {
    const { channel, seq, upTo } = this.#merge ?? { upTo: this.#end.number, channel: 0, seq: 0 };
    const last = this.#file.get<{ channel: number; seq: number }>(
      "SELECT channel, seq FROM recent WHERE (channel, seq) > (?1, ?2) ORDER BY channel, seq LIMIT 1 OFFSET ?3",
      channel,
      seq,
      MERGE_EVENTS - 1,
    );
    if (last) {
      this.#move("(channel, seq) > (?1, ?2) AND (channel, seq) <= (?3, ?4)", channel, seq, last.channel, last.seq);
      this.#merge = { upTo, ...last };
      return;
    }
    this.#move("(channel, seq) > (?1, ?2)", channel, seq);
    this.#merge = null;
    // Entries of the newest row may have come while the merge ran.
    this.#end = { ...this.#end, merged: Math.max(this.#end.merged, upTo - 1) };
  }

  /** Retention has raised the channel's floor. @returns how many events had to be moved */
  settle({ id, floor }: Channel): number {
    return this.#move("channel = ?1 AND seq <= ?2", id, floor);
  }

  #move(where: string, ...values: number[]): number {
    const moved = this.#file.run(
      `INSERT INTO main.events SELECT * FROM recent WHERE ${where} ORDER BY channel, seq`,
      ...values,
    );
    if (moved > 0) this.#file.run(`DELETE FROM recent WHERE ${where}`, ...values);
    return moved;
  }
}
