/**
 * The rows that say who is in trouble in a SQLite file: those of channels, events and devices, and what each device owes because it is silent. What they
 * mean is described in `attention.ts`.
 *
 * Rows of channels and events change many times in a transaction, so they are gathered: call `save` before other statements read them.
 */
import type { Troubles } from "../attention.ts";
import type { Channel } from "./schema.ts";
import type { SqliteFile } from "./file.ts";

/** In a row of `troubles`. */
export type TroubleKind = keyof Troubles;

/** In place of a number: the device is silent for all events that are kept. */
export const WHOLE = -1;
/** What one device counts in a slice of work: a few statements. */
export const VISIT_ROWS = 8;

/** The row of a channel, without `aged`. */
export interface Counts {
  /** The scan of the event at `aged`: its phase and the last device that was looked at; null: it is done. */
  scan: string | null;
  /** The last number, and the last one that retention dropped. */
  numbers: number;
  dropped: number;
  /** Rows of `troubledDevices`; among them silent ones, and silent ones that are only in trouble while there are numbers. */
  devices: number;
  silent: number;
  idle: number;
  failed: number;
  missing: number;
  overdue: number;
  /** Grows with each change. */
  revision: number;
}

export interface EventCounts {
  readonly at: number;
  failed: number;
  missing: number;
  overdue: number;
  /** Null: it names devices, or is not overdue. */
  number: number | null;
}

/** The row of a device. `overdue` is without what it owes because it is silent. */
export interface DeviceCounts {
  failed: number;
  missing: number;
  overdue: number;
  /** Silent after this number; `WHOLE`; null: not silent. */
  silent: number | null;
  /** The oldest of its events; if it is `WHOLE`, of the others. Null: there is none. */
  oldest: number | null;
  /** When that was pushed; 0: there is none. */
  since: number;
}

const COUNTS = "scan, numbers, dropped, devices, silent, idle, failed, missing, overdue, revision";
const sumOf = ({ failed, missing, overdue }: Pick<DeviceCounts, "failed" | "missing" | "overdue">): number =>
  failed + missing + overdue;
/** Devices of one part are in the order of their weight, whatever numbers come or go. */
const partOf = ({ silent }: DeviceCounts): number => (silent === null ? 0 : silent === WHOLE ? 2 : 1);
const weightOf = (row: DeviceCounts): number => sumOf(row) - Math.max(row.silent ?? 0, 0);

export class TroubleRows {
  readonly #file: SqliteFile;
  /** Rows that the running transaction has read; they are written at its end. */
  readonly #counts = new Map<number, { readonly counts: Counts; readonly channel: Channel; isChanged: boolean }>();
  readonly #events = new Map<string, EventCounts>();

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  countsOf(channel: Channel): Counts {
    let known = this.#counts.get(channel.id);
    if (!known) {
      const found = this.#file.get<Counts>(`SELECT ${COUNTS} FROM attention WHERE channel = ?1`, channel.id);
      const nothing = { numbers: 0, dropped: 0, devices: 0, silent: 0, idle: 0, failed: 0, missing: 0, overdue: 0 };
      const counts = found ?? { scan: null, ...nothing, revision: 0 };
      this.#counts.set(channel.id, (known = { counts, channel, isChanged: false }));
    }
    return known.counts;
  }

  /** The same to be changed: they are written at the end of the transaction. */
  changing(channel: Channel): Counts {
    const counts = this.countsOf(channel);
    this.#counts.get(channel.id)!.isChanged = true;
    return counts;
  }

  eventOf(channel: Channel, event: number): EventCounts {
    const name = `${channel.id} ${event}`;
    let known = this.#events.get(name);
    if (!known) {
      const found =
        this.#file.get<EventCounts>(
          "SELECT at, failed, missing, overdue, number FROM troubledEvents WHERE channel = ?1 AND event = ?2",
          channel.id,
          event,
        ) ??
        this.#file.get<EventCounts>(
          "SELECT at, 0 AS failed, 0 AS missing, 0 AS overdue, NULL AS number FROM events WHERE channel = ?1 AND seq = ?2",
          channel.id,
          event,
        );
      this.#events.set(name, (known = found!));
    }
    return known;
  }

  /** Changes the counts of an event and its channel. */
  count(channel: Channel, event: number, kind: TroubleKind, by: number): void {
    this.eventOf(channel, event)[kind] += by;
    const counts = this.changing(channel);
    counts[kind] += by;
    counts.revision++;
  }

  deviceOf(channel: Channel, device: string): DeviceCounts | null {
    return this.#file.get<DeviceCounts>(
      "SELECT failed, missing, overdue, silent, oldest, since FROM troubledDevices WHERE channel = ?1 AND device = ?2",
      channel.id,
      device,
    );
  }

  /** Writes a device's row, or removes it if the device is not in trouble. @param before as it was read; null: there was none */
  putDevice(channel: Channel, device: string, before: Readonly<DeviceCounts> | null, row: DeviceCounts | null): void {
    const counts = this.changing(channel);
    const after = row && sumOf(row) === 0 && row.silent === null ? null : row;
    for (const [one, by] of [
      [before, -1],
      [after, 1],
    ] as const) {
      if (!one) continue;
      counts.devices += by;
      if (one.silent !== null) counts.silent += by;
      if (one.silent === WHOLE && sumOf(one) === 0) counts.idle += by;
    }
    counts.revision++;
    if (after)
      this.#file.run(
        "INSERT OR REPLACE INTO troubledDevices VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        channel.id,
        device,
        after.failed,
        after.missing,
        after.overdue,
        after.silent,
        partOf(after),
        weightOf(after),
        after.oldest,
        after.since,
      );
    else if (before)
      this.#file.run("DELETE FROM troubledDevices WHERE channel = ?1 AND device = ?2", channel.id, device);
  }

  /** Reads a device's row, has it changed, and writes it. @param change returns whether it changed it, and may read what it wrote before */
  change(channel: Channel, device: string, change: (row: DeviceCounts) => boolean): void {
    const before = this.deviceOf(channel, device);
    const row = before
      ? { ...before }
      : { failed: 0, missing: 0, overdue: 0, silent: null, oldest: null as number | null, since: 0 };
    if (change(row)) this.putDevice(channel, device, before, row);
  }

  /** An event of the device has come to its row. */
  older(row: DeviceCounts, event: number, at: number): void {
    if (row.oldest !== null && row.oldest <= event) return;
    row.oldest = event;
    row.since = at;
  }

  /** An event has left the device's row: finds the oldest of the others. */
  findOldest(channel: Channel, device: string, row: DeviceCounts): void {
    const { dropped } = this.countsOf(channel);
    const left = channel.leaving?.device === device ? channel.leaving.upTo : 0;
    const trouble = this.#file.get<{ event: number | null }>(
      "SELECT min(event) AS event FROM troubles WHERE channel = ?1 AND device = ?2 AND event > ?3",
      channel.id,
      device,
      left,
    )?.event;
    const silence = this.#file.get<{ after: number }>(
      "SELECT after FROM silences WHERE channel = +?1 AND device = +?2 ORDER BY after LIMIT 1",
      channel.id,
      device,
    )?.after;
    const silent = row.silent === null || row.silent === WHOLE ? null : row.silent;
    const number = silence === undefined ? silent : Math.min(silence, silent ?? Number.POSITIVE_INFINITY);
    // A silence that begins with what retention dropped is found by it soon.
    const first = number === null ? null : number < dropped ? 0 : this.#numbered(channel, number + 1);
    const found = [trouble ?? null, first].filter((event) => event !== null);
    row.oldest = found.length === 0 ? null : Math.min(...found);
    if (row.oldest === null) row.since = 0;
    else if (row.oldest > channel.floor) row.since = this.eventOf(channel, row.oldest).at;
  }

  #numbered(channel: Channel, number: number): number {
    return (
      this.#file.get<{ event: number }>(
        "SELECT event FROM troubledEvents WHERE channel = +?1 AND number >= ?2 ORDER BY number LIMIT 1",
        channel.id,
        number,
      )?.event ?? 0
    );
  }

  /** Before the end of the transaction, and before reading by other statements than those above: writes what was gathered. */
  save(): void {
    for (const [name, { at, failed, missing, overdue, number }] of this.#events) {
      const [channel, event] = name.split(" ").map(Number) as [number, number];
      if (failed + missing + overdue > 0)
        this.#file.run(
          "INSERT OR REPLACE INTO troubledEvents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
          channel,
          event,
          at,
          failed,
          missing,
          overdue,
          number,
        );
      else this.#file.run("DELETE FROM troubledEvents WHERE channel = ?1 AND event = ?2", channel, event);
    }
    for (const { counts, channel, isChanged } of this.#counts.values()) {
      if (!isChanged) continue;
      this.#file.run(
        `INSERT OR REPLACE INTO attention (channel, aged, ${COUNTS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)`,
        channel.id,
        channel.aged,
        counts.scan,
        counts.numbers,
        counts.dropped,
        counts.devices,
        counts.silent,
        counts.idle,
        counts.failed,
        counts.missing,
        counts.overdue,
        counts.revision,
      );
      this.#file.run("UPDATE ages SET stored = ?2 WHERE channel = ?1", channel.id, channel.aged);
    }
    this.undo();
  }

  /** Discards what was gathered. */
  undo(): void {
    this.#counts.clear();
    this.#events.clear();
  }

  /** Takes an overdue event that names a device from what that owes. False: it was not there, because the scan has not come to it. */
  payNamed(channel: Channel, event: number, device: string, row: DeviceCounts): boolean {
    const gone = this.#file.run(
      "DELETE FROM troubles WHERE channel = ?1 AND device = ?2 AND event = ?3 AND kind = 'overdue'",
      channel.id,
      device,
      event,
    );
    row.overdue -= gone;
    return gone > 0;
  }

  /** The same for an event to all, by its number. */
  paySilence(channel: Channel, number: number, device: string, row: DeviceCounts): boolean {
    const counts = this.countsOf(channel);
    const keep = (after: number, upTo: number): void => {
      if (after < upTo) this.#file.run("INSERT INTO silences VALUES (?1, ?2, ?3, ?4)", channel.id, device, after, upTo);
    };
    const silent = row.silent === null ? null : Math.max(row.silent, counts.dropped);
    if (silent !== null && number > silent) {
      keep(silent, number - 1);
      row.overdue += number - 1 - silent;
      row.silent = number === counts.numbers ? null : number;
      return true;
    }
    const silence = this.#file.get<{ after: number; upTo: number }>(
      "SELECT after, upTo FROM silences WHERE channel = +?1 AND device = +?2 AND after < ?3 ORDER BY after DESC LIMIT 1",
      channel.id,
      device,
      number,
    );
    if (!silence || silence.upTo < number) return false;
    this.deleteSilence(channel, device, silence.after);
    keep(silence.after, number - 1);
    keep(number, silence.upTo);
    row.overdue--;
    return true;
  }

  deleteSilence(channel: Channel, device: string, after: number): void {
    this.#file.run("DELETE FROM silences WHERE channel = ?1 AND device = ?2 AND after = ?3", channel.id, device, after);
  }

  /** The channel is deleted, after all that it kept. */
  removed({ id }: Pick<Channel, "id">): void {
    this.#counts.delete(id);
    for (const table of ["attention", "ages", "voided"]) this.#file.run(`DELETE FROM ${table} WHERE channel = ?1`, id);
  }
}
