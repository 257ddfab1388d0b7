/**
 * Events without a deadline become overdue after an hour: a cursor per channel passes each of them, and finds the devices that owe it a final receipt.
 *
 * At that moment the event counts as overdue; then its devices are looked at in slices: those that are silent but answered it, and those that did not
 * answer it and were not silent. `attention.ts` describes what that means. The work grows with these devices and with those that answered, not with
 * those that stay silent.
 *
 * Where no device is in trouble nothing of this is written: where the cursors are, and when they move on, is in the temporary table `ages`. When a file
 * is opened, they all begin where they were stored last.
 *
 * All functions except `next` run in a transaction.
 */
import { OVERDUE_MS } from "../attention.ts";
import { type Channel, FINAL, isLeaving } from "./schema.ts";
import type { SqliteFile } from "./file.ts";
import { type Counts, type TroubleRows, VISIT_ROWS } from "./trouble-rows.ts";

/**
 * A cursor that passed so many events is stored. It is not stored before, unless something changed: of events that everybody answered it finds out
 * again.
 */
const STORED_EVENTS = 100;
/** Devices per window of a scan. */
const SCAN_DEVICES = 500;
/** Events that the cursor passes at once; so many of them at most if they may be owed. */
const PASS_EVENTS = 1_000;
const OWED_EVENTS = 100;
/** Approximate row limit of one slice of `age`, and what a window, an event and a channel count. */
const AGE_ROWS = 2_000;
const CHANNEL_ROWS = 10;

/** How many devices owe an event a final receipt, and how many sent one. */
export interface EventStanding {
  readonly owed: number;
  readonly answered: number;
}

/** A connection was opened: all cursors have something to do, as far as is known. */
export function openAges(file: SqliteFile): void {
  file.run(
    "CREATE TEMP TABLE ages (channel INTEGER PRIMARY KEY, stored INTEGER NOT NULL, aged INTEGER NOT NULL, agesAt INTEGER) STRICT",
  );
  file.run("CREATE INDEX temp.agesByTime ON ages (agesAt) WHERE agesAt IS NOT NULL");
  file.run(
    "INSERT INTO ages SELECT id, coalesce(aged, 0), coalesce(aged, 0), 0 FROM channels LEFT JOIN attention ON channel = id",
  );
}

export class OverdueEvents {
  readonly #file: SqliteFile;
  readonly #rows: TroubleRows;
  readonly #standing: (channel: Channel, event: number) => EventStanding;

  constructor(file: SqliteFile, rows: TroubleRows, standing: (channel: Channel, event: number) => EventStanding) {
    this.#file = file;
    this.#rows = rows;
    this.#standing = standing;
  }

  /** An event without a deadline was stored: if no other one is to become overdue, the cursor waits for it. */
  pushed(channel: Channel, event: number, at: number): void {
    if (channel.agesAt !== null) return;
    const { aged } = channel;
    channel.aged = event - 1;
    channel.agesAt = at + OVERDUE_MS;
    this.#file.run(
      "INSERT INTO ages VALUES (?1, ?2, ?2, ?4) ON CONFLICT DO UPDATE SET aged = ?3, agesAt = ?4",
      channel.id,
      aged,
      channel.aged,
      channel.agesAt,
    );
  }

  /** When the next event becomes overdue, milliseconds since 1970, or 0 if devices are still counted that owed a withdrawn one; null: none is to. */
  next(): number | null {
    return this.#voided() ? 0 : (this.#next()?.agesAt ?? null);
  }

  /** A withdrawn event that was overdue for devices whose rows still say so, and the last of them that was looked at. */
  #voided() {
    return this.#file.get<{ channel: number; event: number; number: number | null; after: string }>(
      "SELECT channel, event, number, after FROM voided ORDER BY channel, event LIMIT 1",
    );
  }

  /** Takes a withdrawn event from what the next devices owe. @returns about how many rows were read and written */
  #pay(channel: Channel, { event, number, after }: { event: number; number: number | null; after: string }): number {
    const devices = this.#file.all<{ device: string }>(
      "SELECT device FROM troubledDevices WHERE channel = +?1 AND device > ?2 ORDER BY device LIMIT ?3",
      channel.id,
      after,
      SCAN_DEVICES,
    );
    let paid = 0;
    for (const { device } of devices)
      this.#rows.change(channel, device, (row) => {
        const isPaid =
          number === null
            ? this.#rows.payNamed(channel, event, device, row)
            : this.#rows.paySilence(channel, number, device, row);
        if (!isPaid) return false;
        paid++;
        this.#rows.findOldest(channel, device, row);
        return true;
      });
    const isDone = devices.length < SCAN_DEVICES;
    this.#file.run(
      isDone
        ? "DELETE FROM voided WHERE channel = ?1 AND event = ?2"
        : "UPDATE voided SET after = ?3 WHERE channel = ?1 AND event = ?2",
      channel.id,
      event,
      ...(isDone ? [] : [devices.at(-1)!.device]),
    );
    return devices.length + VISIT_ROWS * paid;
  }

  #next() {
    return this.#file.get<{ channel: number; agesAt: number; stored: number }>(
      "SELECT channel, agesAt, stored FROM ages WHERE agesAt IS NOT NULL ORDER BY agesAt LIMIT 1",
    );
  }

  /**
   * Lets events become overdue, within the limit of a slice.
   * @param find returns the channel with this id
   * @returns when to continue, or null: no event is to become overdue
   */
  age(find: (id: number) => Channel, now: number): number | null {
    for (let left = AGE_ROWS; ;) {
      this.#rows.save();
      const voided = this.#voided();
      if (voided) {
        if (left <= 0) return 0;
        left -= this.#pay(find(voided.channel), voided);
        continue;
      }
      const due = this.#next();
      if (!due || due.agesAt > now || left <= 0) return due?.agesAt ?? null;
      const channel = find(due.channel);
      const { scan } = this.#rows.countsOf(channel);
      left -= CHANNEL_ROWS + (scan === null ? this.#pass(channel, now) : this.#scan(channel));
      this.#file.run(
        "UPDATE ages SET aged = ?2, agesAt = ?3 WHERE channel = ?1",
        channel.id,
        channel.aged,
        channel.agesAt,
      );
      if (channel.aged - due.stored >= STORED_EVENTS) this.#rows.changing(channel);
    }
  }

  /** Moves the cursor on, up to the first event that devices owe. @returns about how many rows were read */
  #pass(channel: Channel, now: number): number {
    const after = Math.max(channel.aged, channel.floor);
    const upTo = Math.min(channel.head, after + PASS_EVENTS);
    const before = now - OVERDUE_MS;
    // Of events that everybody answered the statement itself finds out, which is much faster.
    const events = this.#file.all<{ seq: number; at: number; targeted: number }>(
      `SELECT seq, at, targeted FROM events e WHERE channel = +?1 AND seq > ?2 AND seq <= ?3 AND (at > ?4 OR (deadline IS NULL AND NOT EXISTS
       (SELECT 1 FROM tallies t WHERE t.channel = ?1 AND t.event = e.seq AND t.done + t.failed >= t.addressed))) ORDER BY seq LIMIT ?5`,
      channel.id,
      after,
      upTo,
      before,
      OWED_EVENTS,
    );
    for (const [index, { seq, at, targeted }] of events.entries()) {
      channel.aged = at > before ? seq - 1 : seq;
      if (at > before) {
        channel.agesAt = at + OVERDUE_MS;
        return index + 1;
      }
      const { owed } = this.#standing(channel, seq);
      if (owed === 0) continue;
      const counts = this.#rows.changing(channel);
      const number = targeted !== 0 ? null : ++counts.numbers;
      this.#rows.eventOf(channel, seq).number = number;
      this.#rows.count(channel, seq, "overdue", owed);
      counts.scan = targeted !== 0 ? "n" : "a";
      return index + 1;
    }
    if (events.length < OWED_EVENTS) channel.aged = Math.max(channel.aged, upTo);
    if (channel.aged >= channel.head) channel.agesAt = null;
    return events.length + (upTo - after) / 4;
  }

  /** Looks at the next devices of the event that became overdue last. @returns about how many rows were read and written */
  #scan(channel: Channel): number {
    const event = channel.aged;
    const counts = this.#rows.changing(channel);
    const [phase, after] = [counts.scan![0]!, counts.scan!.slice(1)];
    counts.scan = null;
    if (event <= channel.floor) return 0;
    if (phase === "n") return this.#scanNamed(channel, counts, event, after);
    const { owed, answered } = this.#standing(channel, event);
    if (phase === "a" && counts.silent > 0 && answered > 0) {
      const isFew = counts.silent <= SCAN_DEVICES;
      const cost = isFew ? this.#scanSilent(channel, event) : this.#scanAnswers(channel, counts, event, after);
      counts.scan ??= "s";
      return cost;
    }
    // Each silent device owes it. If these are all, nobody else needs to be looked for.
    if (owed <= counts.silent) return 0;
    return this.#scanAudience(channel, counts, event, phase === "a" ? "" : after);
  }

  /** The next window of a scan: how many rows it has, and the last device; `from` has `?1` channel, `?2` event, `?3` after. */
  #window(channel: Channel, event: number, after: string, from: string): { looked: number; last: string } | null {
    const { looked, last } = this.#file.get<{ looked: number; last: string | null }>(
      `SELECT count(*) AS looked, max(device) AS last FROM
       (SELECT device FROM ${from} AND device > ?3 ORDER BY device LIMIT ${SCAN_DEVICES})`,
      channel.id,
      event,
      after,
    )!;
    return last === null ? null : { looked, last };
  }

  /** Devices that are silent, but answered the event: looked for among the silent ones, which are few. */
  #scanSilent(channel: Channel, event: number): number {
    const silent = this.#file.all<{ device: string; isAnswered: number }>(
      `SELECT t.device, coalesce(l.status, 0) IN (${FINAL}) AS isAnswered FROM troubledDevices t
       LEFT JOIN latest l ON l.channel = t.channel AND l.event = ?2 AND l.device = t.device
       WHERE t.channel = ?1 AND t.part > 0`,
      channel.id,
      event,
    );
    const answered = silent.filter(({ isAnswered }) => isAnswered === 1);
    for (const { device } of answered) this.#speaks(channel, event, device);
    return silent.length + VISIT_ROWS * answered.length;
  }

  /** The same among those that answered it, which may be fewer. */
  #scanAnswers(channel: Channel, counts: Counts, event: number, after: string): number {
    const from = `latest WHERE channel = +?1 AND event = +?2 AND status IN (${FINAL})`;
    const window = this.#window(channel, event, after, from);
    if (!window) return 1;
    const answered = this.#file.all<{ device: string }>(
      `SELECT l.device FROM (SELECT device FROM ${from} AND device > ?3 AND device <= ?4) l
       JOIN troubledDevices t ON t.channel = ?1 AND t.device = l.device WHERE t.silent IS NOT NULL`,
      channel.id,
      event,
      after,
      window.last,
    );
    for (const { device } of answered) this.#speaks(channel, event, device);
    if (window.looked === SCAN_DEVICES) counts.scan = `a${window.last}`;
    return window.looked + VISIT_ROWS * answered.length;
  }

  /** A silent device answered the event that has just become overdue. */
  #speaks(channel: Channel, event: number, device: string): void {
    const { number } = this.#rows.eventOf(channel, event);
    this.#rows.change(channel, device, (row) => {
      if (!this.#rows.paySilence(channel, number!, device, row)) return false;
      this.#rows.findOldest(channel, device, row);
      return true;
    });
  }

  /** Devices that did not answer it and were not silent. */
  #scanAudience(channel: Channel, counts: Counts, event: number, after: string): number {
    const from = `devices INDEXED BY enrolled WHERE channel = +?1 AND "left" IS NULL`;
    const window = this.#window(channel, event, after, from);
    if (!window) return 1;
    const owing = this.#file.all<{ device: string }>(
      `SELECT a.device FROM (SELECT device FROM ${from} AND joined < ?2 AND device > ?3 AND device <= ?4) a
       LEFT JOIN latest l ON l.channel = ?1 AND l.event = ?2 AND l.device = a.device WHERE coalesce(l.status, 0) NOT IN (${FINAL})`,
      channel.id,
      event,
      after,
      window.last,
    );
    const { at, number } = this.#rows.eventOf(channel, event);
    for (const { device } of owing)
      this.#rows.change(channel, device, (row) => {
        if (row.silent !== null) return false;
        row.silent = number! - 1;
        this.#rows.older(row, event, at);
        return true;
      });
    if (window.looked === SCAN_DEVICES) counts.scan = `s${window.last}`;
    return window.looked + VISIT_ROWS * owing.length;
  }

  /** Named devices that did not answer it. */
  #scanNamed(channel: Channel, counts: Counts, event: number, after: string): number {
    const from = "targets WHERE channel = +?1 AND event = +?2";
    const window = this.#window(channel, event, after, from);
    if (!window) return 1;
    const owing = this.#file.all<{ device: string }>(
      `SELECT a.device FROM (SELECT device FROM ${from} AND device > ?3 AND device <= ?4) a
       LEFT JOIN latest l ON l.channel = ?1 AND l.event = ?2 AND l.device = a.device WHERE coalesce(l.status, 0) NOT IN (${FINAL})`,
      channel.id,
      event,
      after,
      window.last,
    );
    const { at } = this.#rows.eventOf(channel, event);
    for (const { device } of owing) {
      if (isLeaving(channel, event) && channel.leaving!.device === device) continue;
      this.#rows.change(channel, device, (row) => {
        this.#file.run("INSERT INTO troubles VALUES (?1, ?2, ?3, 'overdue')", channel.id, device, event);
        row.overdue++;
        this.#rows.older(row, event, at);
        return true;
      });
    }
    if (window.looked === SCAN_DEVICES) counts.scan = `n${window.last}`;
    return window.looked + VISIT_ROWS * owing.length;
  }
}
