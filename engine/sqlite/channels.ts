/**
 * Channels in a SQLite file: their rows, cached while in use, and the epochs of channels that do not exist yet. All functions that write run in a
 * transaction.
 */
import type { SqliteFile } from "./file.ts";
import type { HookRows } from "./hooks.ts";
import type { ScheduleRows } from "./schedules.ts";
import type { Channel, Leaving } from "./schema.ts";
import type { NameRange } from "../store.ts";

/** Resolution of `touched`, the time of the last sign of life in an unused channel. */
const TOUCH_MS = 60_000;
/** Epochs reserved for channels that do not exist yet. If one is evicted, followers of that channel get an unnecessary gap. */
const RESERVED_MAX = 100_000;

/** Reads channels; see `schema.ts`. */
const CHANNELS = `SELECT id, name, epoch, floor, swept AS deletedUpTo, receiptsFloor, audience, touched, lost AS lostByAll, trimAt,
  max(head, coalesce((SELECT max(seq) FROM main.events WHERE channel = id), 0),
    coalesce((SELECT max(seq) FROM recent WHERE channel = id), 0),
    coalesce((SELECT max(seq) FROM controls WHERE channel = id), 0)) AS head,
  coalesce((SELECT nth FROM controls WHERE channel = id ORDER BY seq DESC LIMIT 1), 0) AS lastControl,
  coalesce((SELECT nth FROM controls WHERE channel = id ORDER BY seq DESC LIMIT 1) -
    (SELECT nth FROM controls WHERE channel = id AND seq > floor ORDER BY seq LIMIT 1) + 1, 0) AS controls,
  max(receiptsHead, coalesce((SELECT max(seq) FROM receipts WHERE channel = id), 0)) AS receiptsHead,
  coalesce((SELECT aged FROM ages WHERE channel = id), 0) AS aged, (SELECT agesAt FROM ages WHERE channel = id) AS agesAt,
  (SELECT addressed FROM audiences WHERE channel = id ORDER BY event DESC LIMIT 1) AS addressed FROM channels`;

export class ChannelRows {
  readonly #file: SqliteFile;
  readonly #hooks: HookRows;
  readonly #schedules: ScheduleRows;
  readonly #epoch: () => string;
  readonly #cachedMax: number;
  readonly #cached = new Map<string, Channel>();
  /** Epochs announced for channels that do not exist yet, oldest first. The change that creates such a channel uses its epoch. */
  readonly #reserved = new Map<string, string>();
  /** Channels whose row the running transaction must write. */
  readonly #changed = new Set<Channel>();
  /** The running transaction appended to a log. */
  #hasGrown = false;
  /** The greatest id of a deleted row. Ids are not used again while this process runs: a slow reader may still have one. */
  #deletedId: number;

  /**
   * @param epoch creates epochs
   * @param cachedMax limit of the cache
   * @param deletedId ids up to this one may have belonged to channels that were deleted before, and are not used again
   */
  constructor(
    file: SqliteFile,
    hooks: HookRows,
    schedules: ScheduleRows,
    epoch: () => string,
    cachedMax: number,
    deletedId: number,
  ) {
    this.#file = file;
    this.#hooks = hooks;
    this.#schedules = schedules;
    this.#epoch = epoch;
    this.#cachedMax = cachedMax;
    this.#deletedId = deletedId;
  }

  /** A channel, or null if there is none. */
  find(name: string): Channel | null {
    const known = this.#cached.get(name);
    if (known) return known;
    const row = this.#file.get<Channel>(`${CHANNELS} WHERE name = ?1`, name);
    if (row) {
      const leaving = this.#file.get<Leaving>(
        "SELECT device, joined, upTo, released, at FROM leaving WHERE channel = ?1",
        row.id,
      );
      if (leaving) row.leaving = leaving;
      if (this.#cached.size >= this.#cachedMax && this.#changed.size === 0 && !this.#hasGrown) this.#cached.clear();
      this.#cached.set(name, row);
    }
    return row;
  }

  /** In a transaction: finds or creates the channel and marks it as in use. */
  use(name: string): Channel {
    const channel = this.findOrCreate(name, null);
    if (channel.touched !== null) {
      channel.touched = null;
      this.#changed.add(channel);
    }
    return channel;
  }

  /** In a transaction: finds the channel, or creates it as unused since `touched`. */
  findOrCreate(name: string, touched: number | null): Channel {
    const found = this.find(name);
    if (found) return found;
    const epoch = this.#reserved.get(name) ?? this.#epoch();
    this.#file.run(
      "INSERT INTO channels VALUES (max(?4, coalesce((SELECT max(id) FROM channels), 0)) + 1, ?1, ?2, 0, 0, 0, 0, 0, 0, ?3, 0, NULL)",
      name,
      epoch,
      touched,
      this.#deletedId,
    );
    return this.find(name)!;
  }

  /** In a transaction: marks the channel as unused if it has no events, devices, hooks or scheduled pushes. */
  idle(channel: Channel, now: number): void {
    const { name, head, audience, touched } = channel;
    if (
      touched !== null ||
      head > 0 ||
      audience > 0 ||
      this.#hooks.list(name).length > 0 ||
      this.#schedules.has(channel)
    )
      return;
    channel.touched = now;
    this.#changed.add(channel);
  }

  /** Notes a sign of life of one of the channel's devices. */
  touch(channel: Channel, now: number): void {
    if (channel.touched === null || Math.abs(now - channel.touched) < TOUCH_MS) return;
    channel.touched = now;
    this.#changed.add(channel);
  }

  /** In a transaction: retention may have something to do in the channel from now on. */
  trimSoon(channel: Channel, now: number): void {
    if (channel.trimAt !== null && channel.trimAt <= now) return;
    channel.trimAt = now;
    // Not the whole row: its heads only need to be written when retention has run.
    this.#file.run("UPDATE channels SET trimAt = ?2 WHERE id = ?1", channel.id, now);
  }

  /** In a transaction: retention has done all that there is to do in the channel. @param keptMs how long events are kept */
  trimmed(channel: Channel, keptMs: number): void {
    const entry = (table: string) =>
      this.#file.get<{ at: number }>(
        `SELECT at FROM ${table} WHERE channel = ?1 AND seq = ?2`,
        channel.id,
        channel.floor + 1,
      );
    const oldest = entry("events") ?? entry("controls");
    const trimAt = oldest ? oldest.at + keptMs + 1 : null;
    if (trimAt === channel.trimAt) return;
    channel.trimAt = trimAt;
    this.#changed.add(channel);
  }

  /** Channels in which retention may have something to do, those that wait longest first. */
  trimmable(now: number, limit: number): string[] {
    return this.#file
      .all<{ name: string }>("SELECT name FROM channels WHERE trimAt <= ?1 ORDER BY trimAt LIMIT ?2", now, limit)
      .map(({ name }) => name);
  }

  #write(channel: Channel): void {
    const { id, head, floor, deletedUpTo, receiptsHead, receiptsFloor, audience, touched, lostByAll, trimAt } = channel;
    this.#file.run(
      "UPDATE channels SET head = ?2, floor = ?3, swept = ?4, receiptsHead = ?5, receiptsFloor = ?6, audience = ?7, touched = ?8, lost = ?9, trimAt = ?10 WHERE id = ?1",
      id,
      head,
      floor,
      deletedUpTo,
      receiptsHead,
      receiptsFloor,
      audience,
      touched,
      lostByAll,
      trimAt,
    );
  }

  /** An existing channel by the id of its row. */
  byId(id: number): Channel {
    return this.find(this.#file.get<{ name: string }>("SELECT name FROM channels WHERE id = ?1", id)!.name)!;
  }

  /** Channels by name, after the channel `after`, in a range. */
  list(after: string, { from, upTo }: NameRange, limit: number): Channel[] {
    if (from === upTo) return this.#file.all<Channel>(`${CHANNELS} WHERE name = ?1 AND name > ?2`, from, after);
    const begin = from > after ? ">= ?1" : "> ?1";
    const sql = `${CHANNELS} WHERE name ${begin} AND name <= ?2 ORDER BY name LIMIT ?3`;
    return this.#file.all<Channel>(sql, from > after ? from : after, upTo, limit);
  }

  /** Their names alone. */
  names(after: string, { from, upTo }: NameRange, limit: number): string[] {
    const begin = from > after ? ">= ?1" : "> ?1";
    const sql = `SELECT name FROM channels WHERE name ${begin} AND name <= ?2 ORDER BY name LIMIT ?3`;
    return this.#file.all<{ name: string }>(sql, from > after ? from : after, upTo, limit).map(({ name }) => name);
  }

  /** The epoch that a channel without a row will have; it is kept until the channel is created. */
  reserve(name: string): string {
    const epoch = this.#reserved.get(name) ?? this.#epoch();
    this.#keepEpoch(name, epoch);
    return epoch;
  }

  #keepEpoch(name: string, epoch: string): void {
    this.#reserved.delete(name); // Moves it to the end.
    this.#reserved.set(name, epoch);
    if (this.#reserved.size > RESERVED_MAX) this.#reserved.delete(this.#reserved.keys().next().value!);
  }

  /**
   * The row of a channel was deleted. It may have followers. If no one has seen an entry of it, keeps its epoch. Otherwise it begins with a new one: an id
   * that someone has seen must never be another entry's.
   */
  removed({ id, name, epoch }: Pick<Channel, "id" | "name" | "epoch">, isUnborn: boolean): void {
    this.#cached.delete(name);
    this.#deletedId = Math.max(this.#deletedId, id);
    this.#keepEpoch(name, isUnborn ? epoch : this.#epoch());
  }

  /** In a transaction: the channel's row must be written. */
  changed(channel: Channel): void {
    this.#changed.add(channel);
  }

  /** In a transaction: an entry was appended to a log, so a cached head may be ahead of the file. */
  grown(): void {
    this.#hasGrown = true;
  }

  /** In a transaction, after its changes: writes the changed rows. */
  save(): void {
    for (const channel of this.#changed) this.#write(channel);
  }

  /** The transaction has ended. */
  written(): void {
    this.#changed.clear();
    this.#hasGrown = false;
  }

  /** The transaction was rolled back: the cache was ahead of the file. */
  clear(): void {
    this.written();
    this.#cached.clear();
  }
}
