/**
 * Rounds: which devices deferred an event, and when it comes again. A row begins with a device's first deferral of an event, and ends with the event or
 * the device's seat. While the device is deferred, `due` is when its next round begins; the row says nothing when that happens, because it follows
 * from the time. Rows of a withdrawn event stay as they are, and count for nothing.
 */
import type { SqliteFile } from "./file.ts";
import { type Channel, NOT_WITHDRAWN } from "./schema.ts";
import type { BegunRound, DueRound, RoundPosition } from "../store.ts";

/** A row of `rounds`. */
export interface RoundRow {
  readonly round: number;
  readonly attempt: number;
  readonly due: number | null;
}

export class Rounds {
  readonly #file: SqliteFile;

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  /** Whether any device deferred this event. */
  has(channel: number, event: number): boolean {
    return this.#file.get("SELECT 1 FROM rounds WHERE channel = ?1 AND event = ?2 LIMIT 1", channel, event) !== null;
  }

  of(channel: number, event: number, device: string): RoundRow | null {
    return this.#file.get<RoundRow>(
      "SELECT round, attempt, due FROM rounds WHERE channel = ?1 AND event = ?2 AND device = ?3",
      channel,
      event,
      device,
    );
  }

  put(channel: number, event: number, device: string, { round, attempt, due }: RoundRow): void {
    this.#file.run(
      "INSERT OR REPLACE INTO rounds VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
      channel,
      event,
      device,
      round,
      attempt,
      due,
    );
  }

  drop(channel: number, event: number, device: string): void {
    this.#file.run("DELETE FROM rounds WHERE channel = ?1 AND event = ?2 AND device = ?3", channel, event, device);
  }

  /** Whether a device has deferred an event of the channel. */
  hasDeferred(channel: Channel, device: string): boolean {
    return (
      this.#file.get(
        "SELECT 1 FROM rounds WHERE channel = ?1 AND device = ?2 AND due IS NOT NULL LIMIT 1",
        channel.id,
        device,
      ) !== null
    );
  }

  /** See `Store.begunRounds`. */
  begun(channel: Channel, device: string, after: number, upTo: number, limit: number, now: number): BegunRound[] {
    const found: BegunRound[] = [];
    for (let from = Math.max(after, channel.floor); found.length < limit;) {
      const rows = this.#file.all<BegunRound & { due: number }>(
        `SELECT event, round + 1 AS round, due FROM rounds
         WHERE channel = +?1 AND device = +?2 AND due IS NOT NULL AND event > ?3 AND event <= ?4 ORDER BY event LIMIT ?5`,
        channel.id,
        device,
        from,
        upTo,
        limit,
      );
      for (const { event, round, due } of rows)
        if (due <= now && found.length < limit && this.#isOpen(channel, event, now)) found.push({ event, round });
      if (rows.length < limit) break;
      from = rows.at(-1)!.event;
    }
    return found;
  }

  /** The event has neither expired nor been withdrawn, and its deadline has not passed. */
  #isOpen(channel: Channel, event: number, now: number): boolean {
    return (
      this.#file.get(
        `SELECT 1 FROM events e WHERE channel = ?1 AND seq = ?2 AND (expires IS NULL OR expires > ?3)
         AND (deadline IS NULL OR deadline > ?3) AND ${NOT_WITHDRAWN}`,
        channel.id,
        event,
        now,
      ) !== null
    );
  }

  /** See `Store.roundsDue`. @param channelOf finds a channel by the id of its row */
  due(after: RoundPosition, now: number, limit: number, channelOf: (id: number) => Channel) {
    const [channel = "0", event = "0", device = ""] = after.place.split(" ");
    const rows = this.#file.all<{
      at: number;
      channel: number;
      event: number;
      device: string;
      round: number;
      isWithdrawn: number;
    }>(
      `SELECT due AS at, channel, event, device, round + 1 AS round,
       EXISTS (SELECT 1 FROM controls w WHERE w.channel = rounds.channel AND w.event = rounds.event) AS isWithdrawn FROM rounds
       WHERE due IS NOT NULL AND (due, channel, event, device) > (?1, ?2, ?3, ?4) AND due <= ?5
       ORDER BY due, channel, event, device LIMIT ?6`,
      after.at,
      Number(channel),
      Number(event),
      device,
      now,
      limit,
    );
    const newest = rows.at(-1);
    const last = newest ? { at: newest.at, place: `${newest.channel} ${newest.event} ${newest.device}` } : after;
    const rounds: DueRound[] = [];
    for (const { channel: id, event, device, round, isWithdrawn } of rows) {
      const { name, epoch, floor } = channelOf(id);
      if (isWithdrawn === 0 && event > floor) rounds.push({ channel: name, epoch, event, device, round });
    }
    return { rounds, last, next: rows.length === limit ? now : this.#next(now) };
  }

  /** When the next round begins, after this time. */
  #next(now: number): number | null {
    return (
      this.#file.get<{ due: number }>(
        "SELECT due FROM rounds WHERE due IS NOT NULL AND due > ?1 ORDER BY due LIMIT 1",
        now,
      )?.due ?? null
    );
  }
}
