/**
 * Who did not do it, in a SQLite file: counts that change together with what they count, so that nothing is counted to answer a request.
 *
 * `troubles` has a row for each event that a device failed, is missing on, or owes although it names the device and is overdue. Events to all devices
 * that become overdue get no rows: most of 100,000 devices may be silent for 10,000 events. Such events are numbered, and a device that answers none
 * of them is *silent* from a number on: it owes all later ones. It stays silent until it answers the newest one. If it answers an older one, the
 * numbers before that become a row of `silences`. So an event that becomes overdue costs a row only for devices that were not silent before, and what
 * a silent device owes is the difference of two numbers. A device that is silent for longer than events are kept owes all numbers that are kept: then
 * retention costs nothing for it either (`WHOLE`).
 *
 * `troubledDevices` has the counts of each device in trouble, ordered by `part`, `weight` and `since`; `troubledEvents` those of each event; `attention`
 * those of each channel. `trouble-rows.ts` writes these rows and `trouble-reader.ts` reads them; `overdue.ts` finds what becomes overdue. This file
 * changes them with receipts, retirement and retention.
 *
 * All functions run in a transaction.
 */
import { isFinal, type State } from "../model.ts";
import { type Channel, isLeaving } from "./schema.ts";
import type { SqliteFile } from "./file.ts";
import type { CachedTally } from "./tallies.ts";
import {
  type DeviceCounts,
  type EventCounts,
  type TroubleKind,
  type TroubleRows,
  VISIT_ROWS,
  WHOLE,
} from "./trouble-rows.ts";

/** A slice of retention. */
interface Slice {
  left: number;
}

export class Attention {
  readonly #file: SqliteFile;
  readonly #rows: TroubleRows;

  constructor(file: SqliteFile, rows: TroubleRows) {
    this.#file = file;
    this.#rows = rows;
  }

  // --------------------------------------------------------------------------------------------------------------- receipts

  /** A device's state on an event went from `before` to `after`. If that changes no trouble, nothing is read or written. */
  recorded(channel: Channel, cached: CachedTally, device: string, before: State, after: State): void {
    const { event } = cached;
    const isPaid = isFinal(after) && isOverdue(channel, cached);
    if (before !== "missing" && after !== "failed" && after !== "missing" && !isPaid) return;
    // What a leaving device is missing on is removed with it.
    if (isLeaving(channel, event) && channel.leaving!.device === device) return;
    if (before === "missing") this.#rows.count(channel, event, "missing", -1);
    if (isPaid) this.#rows.count(channel, event, "overdue", -1);
    const kind = after === "failed" || after === "missing" ? after : null;
    if (kind !== null) this.#rows.count(channel, event, kind, 1);
    this.#rows.change(channel, device, (row) => {
      if (before === "missing") row.missing--;
      let isGone = before === "missing";
      if (isPaid) isGone = this.#pay(channel, cached, device, row);
      if (kind !== null) {
        row[kind]++;
        this.#file.run("INSERT OR REPLACE INTO troubles VALUES (?1, ?2, ?3, ?4)", channel.id, device, event, kind);
        this.#rows.older(row, event, this.#rows.eventOf(channel, event).at);
      } else if (before === "missing") this.#deleteTrouble(channel, device, event);
      if (isGone) this.#rows.findOldest(channel, device, row);
      return isGone || kind !== null;
    });
  }

  #deleteTrouble(channel: Channel, device: string, event: number): number {
    return this.#file.run(
      "DELETE FROM troubles WHERE channel = ?1 AND device = ?2 AND event = ?3",
      channel.id,
      device,
      event,
    );
  }

  /** Takes an overdue event from what a device owes. False: it was not there, because the scan has not come to it. */
  #pay(channel: Channel, { event, targeted }: CachedTally, device: string, row: DeviceCounts): boolean {
    return targeted
      ? this.#rows.payNamed(channel, event, device, row)
      : this.#rows.paySilence(channel, this.#rows.eventOf(channel, event).number!, device, row);
  }

  /**
   * An event is being withdrawn, so nobody owes it. The counts of the event and its channel say so at once; the rows of its devices are corrected in
   * slices, as if each of them had answered it (`overdue.ts`).
   */
  withdrawn(channel: Channel, cached: CachedTally): void {
    if (!isOverdue(channel, cached)) return;
    const { event } = cached;
    const counts = this.#rows.changing(channel);
    if (channel.aged === event) counts.scan = null;
    const { overdue, number } = this.#rows.eventOf(channel, event);
    if (overdue === 0) return;
    this.#rows.count(channel, event, "overdue", -overdue);
    this.#file.run("INSERT INTO voided VALUES (?1, ?2, ?3, '')", channel.id, event, number);
  }

  // ------------------------------------------------------------------------------------------------------------- retirement

  /** A device's enrolment ended. */
  left(channel: Channel, device: string): void {
    const row = this.#rows.deviceOf(channel, device);
    if (!row) return;
    this.#rows.putDevice(channel, device, row, null);
    this.#file.run("DELETE FROM silences WHERE channel = ?1 AND device = ?2", channel.id, device);
  }

  /** The leaving device no longer owes an event a final receipt. */
  released(channel: Channel, cached: CachedTally): void {
    if (isOverdue(channel, cached)) this.#rows.count(channel, cached.event, "overdue", -1);
  }

  /** It is released from all events up to here, also from those that it failed. Those that are no longer kept do not count any more. */
  releasedUpTo(channel: Channel, device: string, upTo: number): void {
    const gone = this.#file.all<{ event: number; kind: TroubleKind }>(
      "DELETE FROM troubles WHERE channel = ?1 AND device = ?2 AND event <= ?3 RETURNING event, kind",
      channel.id,
      device,
      upTo,
    );
    for (const { event, kind } of gone)
      if (kind !== "overdue" && event > channel.floor) this.#rows.count(channel, event, kind, -1);
  }

  // -------------------------------------------------------------------------------------------------------------- retention

  /** Events up to the channel's floor are dropped. Called before anything that shows who answered them is deleted. True: all is done. */
  dropped(channel: Channel, slice: Slice): boolean {
    this.#rows.save();
    const { id, floor } = channel;
    const events = this.#file.all<EventCounts & { event: number }>(
      "SELECT event, failed, missing, overdue, number FROM troubledEvents WHERE channel = ?1 AND event <= ?2",
      id,
      floor,
    );
    if (events.length > 0) {
      const counts = this.#rows.changing(channel);
      for (const { failed, missing, overdue, number } of events) {
        counts.failed -= failed;
        counts.missing -= missing;
        counts.overdue -= overdue;
        counts.dropped = Math.max(counts.dropped, number ?? 0);
        slice.left--;
      }
      counts.revision++;
      this.#file.run("DELETE FROM troubledEvents WHERE channel = ?1 AND event <= ?2", id, floor);
    }
    while (slice.left > 0) {
      const most = Math.ceil(slice.left / VISIT_ROWS);
      const devices = this.#file.all<DeviceCounts & { device: string }>(
        `SELECT device, failed, missing, overdue, silent, oldest, since FROM troubledDevices
         WHERE channel = +?1 AND oldest <= ?2 ORDER BY oldest LIMIT ?3`,
        id,
        floor,
        most,
      );
      for (const { device, ...row } of devices) slice.left -= this.#visit(channel, device, row);
      if (devices.length < most) return true;
    }
    return false;
  }

  /** Takes what retention dropped from a device's row. @returns about how many rows were read and written */
  #visit(channel: Channel, device: string, before: DeviceCounts): number {
    const row = { ...before };
    const { dropped } = this.#rows.countsOf(channel);
    const gone = this.#file.all<{ kind: TroubleKind }>(
      "DELETE FROM troubles WHERE channel = ?1 AND device = ?2 AND event <= ?3 RETURNING kind",
      channel.id,
      device,
      channel.floor,
    );
    for (const { kind } of gone) row[kind]--;
    const silences = this.#file.all<{ after: number; upTo: number }>(
      "SELECT after, upTo FROM silences WHERE channel = ?1 AND device = ?2 AND after < ?3",
      channel.id,
      device,
      dropped,
    );
    for (const { after, upTo } of silences) {
      this.#rows.deleteSilence(channel, device, after);
      row.overdue -= Math.min(upTo, dropped) - after;
      if (upTo > dropped)
        this.#file.run("INSERT INTO silences VALUES (?1, ?2, ?3, ?4)", channel.id, device, dropped, upTo);
    }
    if (row.silent !== null && row.silent < dropped) row.silent = WHOLE;
    this.#rows.findOldest(channel, device, row);
    this.#rows.putDevice(channel, device, before, row);
    return VISIT_ROWS + gone.length + silences.length;
  }
}

/** Whether an event counts as overdue for the devices that owe it a final receipt. */
const isOverdue = (channel: Channel, { event, deadline, withdrawn }: CachedTally): boolean =>
  deadline === null && withdrawn === null && event <= channel.aged;
