/**
 * Which devices are enrolled in a channel, since when, and what each of them owes.
 *
 * An enrolment is a row of `devices`: events after `joined`, up to `left`, were addressed to the device. The device owes nothing up to `settled`,
 * which only grows. So what a device owes is found from there, without a scan of its whole history.
 *
 * The newest event that retention dropped while a device still owed it a receipt is the newest of three: what its row says; of the events that are
 * dropped but not yet deleted, the newest one that it owed; and `lostByAll` of its channel, if it joined before that event and owed something up to
 * it. So nothing is written for devices that answered nothing. The row must say it before the other two no longer do: before the device is settled
 * further, and, if it answered `lostByAll` itself, before the rows that show this are deleted.
 *
 * All functions except `list`, `enrolment`, `lostSeq` and `unreleased` run in a transaction. None looks at more than a few thousand events; callers repeat the
 * call until it is done.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { SqliteFile } from "./file.ts";
import type { DeviceEnrolment, EnrolledDevice } from "../model.ts";
import type { TagRows } from "./tags.ts";
import { type Channel, FINAL, type Leaving, NOT_WITHDRAWN } from "./schema.ts";
import type { Joined } from "../store.ts";

/** A device's current enrolment. */
export interface Enrolment {
  readonly joined: number;
  readonly settled: number;
  readonly lostSeq: number;
  readonly lostNotifiedSeq: number;
}

/** Up to which event a device owes nothing, whether the search must continue, and the newest event that it lost. */
export interface Settled {
  readonly settled: number;
  readonly more: boolean;
  readonly lostSeq: number;
}

/** Limits of events per call: searched for outstanding receipts, counted in one read, released in one change. Each takes a few milliseconds. */
const SETTLE_EVENTS = 4_000;
const PENDING_EVENTS = 4_000;
const RELEASE_EVENTS = 500;

/** Neither expired at time `?n` nor withdrawn, for an `events e`. */
const alive = (n: number): string => `(e.expires IS NULL OR e.expires > ?${n}) AND ${NOT_WITHDRAWN}`;
/** The device `?n` sent no final receipt for `e.seq`. */
const unsettled = (n: number): string =>
  `NOT EXISTS (SELECT 1 FROM latest l WHERE l.channel = e.channel AND l.event = e.seq AND l.device = ?${n} AND l.status IN (${FINAL}))`;

export class Enrolments {
  readonly #file: SqliteFile;
  readonly #tags: TagRows;
  /** Called when a counter of a channel changed. */
  readonly #changed: (channel: Channel) => void;
  readonly #limit: number;
  /** Current enrolments as they are in the file, or will be after the running transaction. */
  readonly #current = new Map<string, Enrolment>();

  /** @param limit how many current enrolments are cached */
  constructor(file: SqliteFile, tags: TagRows, limit: number, changed: (channel: Channel) => void) {
    this.#file = file;
    this.#tags = tags;
    this.#limit = limit;
    this.#changed = changed;
  }

  /** The device's current enrolment, or null. */
  enrolment(channel: Channel, device: string): Enrolment | null {
    const name = `${channel.id} ${device}`;
    const known = this.#current.get(name);
    if (known) return known;
    const found = this.#file.get<Enrolment>(
      `SELECT joined, settled, lost AS lostSeq, told AS lostNotifiedSeq FROM devices WHERE channel = ?1 AND device = ?2 AND "left" IS NULL`,
      channel.id,
      device,
    );
    if (this.#current.size >= this.#limit) this.#current.clear();
    if (found) this.#current.set(name, found);
    return found;
  }

  /** Those of these devices that are enrolled, in the same order. */
  among(channel: Channel, devices: readonly string[]): string[] {
    return this.#file
      .all<{ device: string }>(
        `SELECT value AS device FROM json_each(?2) WHERE EXISTS
         (SELECT 1 FROM devices WHERE channel = ?1 AND device = value AND "left" IS NULL) ORDER BY key`,
        channel.id,
        JSON.stringify(devices),
      )
      .map(({ device }) => device);
  }

  /** Empties the cache. */
  clear(): void {
    this.#current.clear();
  }

  /** Updates a device's current enrolment. @param change SQL assignments, with values from `?3` on */
  #set(channel: Channel, device: string, change: string, ...values: number[]): void {
    this.#current.delete(`${channel.id} ${device}`);
    this.#file.run(
      `UPDATE devices SET ${change} WHERE channel = ?1 AND device = ?2 AND "left" IS NULL`,
      channel.id,
      device,
      ...values,
    );
  }

  /** The device was told what it lost and has sent a receipt since: do not tell it again. */
  answered(channel: Channel, device: string): void {
    this.#set(channel, device, "lost = 0");
  }

  /** @returns false: it was enrolled already */
  enrol(channel: Channel, device: string, now: number): boolean {
    if (this.enrolment(channel, device)) return false;
    // A device that left and returns before the next event still has its row.
    this.#file.run(
      `INSERT INTO devices (channel, device, joined, enrolledAt, settled) VALUES (?1, ?2, ?3, ?4, ?5)
       ON CONFLICT DO UPDATE SET "left" = NULL, enrolledAt = ?4, seenAt = NULL, settled = max(settled, ?5), lost = 0, told = 0`,
      channel.id,
      device,
      channel.head,
      now,
      channel.floor,
    );
    channel.audience++;
    this.#changed(channel);
    return true;
  }

  /** The state of an enrolled device as it opens a feed. From now on it counts as told what it lost. */
  join(channel: Channel, device: string, now: number): Pick<Joined, "joined" | "settled" | "lostSeq"> & Settled {
    const enrolment = this.enrolment(channel, device)!;
    const { joined, lostNotifiedSeq } = enrolment;
    const { settled, more, lostSeq } = this.#settle(channel, device, enrolment, now, SETTLE_EVENTS);
    if (settled > enrolment.settled || lostNotifiedSeq !== lostSeq)
      this.#set(channel, device, "settled = ?3, lost = ?4, told = ?4", settled, lostSeq);
    return { joined, settled, lostSeq, more };
  }

  /** Continues the search for what an enrolled device owes. */
  settle(channel: Channel, device: string, now: number): Settled | null {
    const enrolment = this.enrolment(channel, device);
    if (!enrolment) return null;
    const found = this.#settle(channel, device, enrolment, now, SETTLE_EVENTS);
    if (found.settled > enrolment.settled)
      this.#set(channel, device, "settled = ?3, lost = ?4", found.settled, found.lostSeq);
    return found;
  }

  /** Stores signs of life, milliseconds since 1970, and updates `settled` within the limit of one change. */
  seen(channel: Channel, times: ReadonlyMap<string, number>): void {
    let left = SETTLE_EVENTS;
    for (const [device, at] of times) {
      const enrolment = this.enrolment(channel, device);
      if (!enrolment) continue;
      const { settled, lostSeq } = left > 0 ? this.#settle(channel, device, enrolment, at, left) : enrolment;
      left -= Math.max(0, settled - Math.max(enrolment.settled, enrolment.joined));
      this.#set(channel, device, "seenAt = ?3, settled = ?4, lost = ?5", at, settled, lostSeq);
    }
  }

  /**
   * Has a device's row say what the device lost, before rows that show what it answered are deleted.
   * @returns about how many rows were read and written
   */
  noteLost(channel: Channel, device: string, now: number): number {
    const enrolment = this.enrolment(channel, device);
    if (!enrolment || enrolment.settled >= channel.floor) return 1;
    const lostSeq = this.lostSeq(channel, device, enrolment, now);
    this.#set(channel, device, "settled = ?3, lost = ?4", channel.floor, lostSeq);
    return 2 + channel.floor - Math.max(enrolment.settled, lostSeq, channel.deletedUpTo);
  }

  /** The newest event that retention dropped while the device owed it a receipt, unless it was told of it and answered since; 0: none. */
  lostSeq({ id, floor, deletedUpTo, lostByAll }: Channel, device: string, enrolment: Enrolment, now: number): number {
    const { joined, settled, lostSeq } = enrolment;
    if (settled >= floor) return lostSeq;
    const byAll = lostByAll > Math.max(joined, settled) ? lostByAll : 0;
    const after = Math.max(settled, deletedUpTo);
    if (after >= floor) return Math.max(lostSeq, byAll);
    // Retention drops a limited number of events before it deletes them.
    const toAll = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM events e WHERE e.channel = +?1 AND e.seq > ?2 AND e.seq <= ?5 AND e.targeted = 0 AND ${alive(4)} AND ${unsettled(3)} ORDER BY e.seq DESC LIMIT 1`,
      id,
      Math.max(joined, after),
      device,
      now,
      floor,
    );
    const toIt = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM targets t JOIN main.events e ON e.channel = t.channel AND e.seq = t.event
       WHERE t.channel = +?1 AND t.event > ?2 AND t.event <= ?5 AND t.device = +?3 AND ${alive(4)} AND ${unsettled(3)} ORDER BY t.event DESC LIMIT 1`,
      id,
      after,
      device,
      now,
      floor,
    );
    return Math.max(lostSeq, byAll, toAll?.seq ?? 0, toIt?.seq ?? 0);
  }

  /** Finds how far the device owes nothing: up to the first event without its final receipt, or until about `most` events were searched. */
  #settle(channel: Channel, device: string, enrolment: Enrolment, now: number, most: number): Settled {
    const { joined } = enrolment;
    const lostSeq = this.lostSeq(channel, device, enrolment, now);
    const after = this.#after(channel, device, enrolment);
    // On a channel with targeted events, only this device's names are read.
    const end =
      this.#file.get<{ event: number }>(
        `SELECT event FROM targets WHERE channel = +?1 AND device = +?2 AND event > ?3 ORDER BY event LIMIT 1 OFFSET ?4`,
        channel.id,
        device,
        after,
        most,
      )?.event ?? channel.head;
    const toIt = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM targets t JOIN main.events e ON e.channel = t.channel AND e.seq = t.event
       WHERE t.channel = +?1 AND t.event > ?2 AND t.event <= ?5 AND t.device = +?3 AND ${alive(4)} AND ${unsettled(3)} ORDER BY t.event LIMIT 1`,
      channel.id,
      after,
      device,
      now,
      end,
    );
    // Only below that event: on a channel of targeted events the search above it would be wasted.
    const last = Math.min(toIt ? toIt.seq - 1 : end, Math.max(joined, after) + most);
    const toAll = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM events e WHERE e.channel = +?1 AND e.seq > ?2 AND e.seq <= ?5 AND e.targeted = 0 AND ${alive(4)} AND ${unsettled(3)} ORDER BY e.seq LIMIT 1`,
      channel.id,
      Math.max(joined, after),
      device,
      now,
      last,
    );
    if (toAll) return { settled: toAll.seq - 1, more: false, lostSeq };
    return { settled: last, more: last < (toIt ? toIt.seq - 1 : channel.head), lostSeq };
  }

  /** The device owes nothing up to here: it is settled, no longer kept, or from before it left and returned. */
  #after({ floor, leaving }: Channel, device: string, { settled }: Enrolment): number {
    return Math.max(settled, floor, leaving?.device === device ? leaving.upTo : 0);
  }

  // ---------------------------------------------------------------------------------------------------------------- retirement

  /**
   * Ends an enrolment. `release` then removes the device from events. Returns false if it was not enrolled. No other device of the channel may be
   * leaving.
   */
  leave(channel: Channel, device: string, at: number): boolean {
    const enrolment = this.enrolment(channel, device);
    if (!enrolment) return false;
    const { joined } = enrolment;
    const [upTo, released] = [channel.head, channel.floor];
    this.#set(channel, device, `"left" = ?3`, upTo);
    this.#tags.drop(channel, device);
    this.#file.run(
      "INSERT INTO leaving VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
      channel.id,
      device,
      joined,
      upTo,
      released,
      at,
    );
    channel.leaving = { device, joined, upTo, released, at };
    channel.audience--;
    this.#changed(channel);
    return true;
  }

  /**
   * Removes the leaving device from the next events that it sent no final receipt for.
   * @param release called for each such event, with the device and the time of its retirement
   * @returns whether there are more events
   */
  release(channel: Channel, release: (event: number, leaving: Leaving) => void): boolean {
    const { leaving } = channel;
    if (!leaving) return false;
    const { device, upTo } = leaving;
    const from = Math.max(leaving.released, channel.floor);
    const to = Math.min(upTo, from + RELEASE_EVENTS);
    for (const { seq, targeted } of this.unreleased(channel, from + 1, to)) {
      release(seq, leaving);
      if (targeted !== 0)
        this.#file.run(
          "DELETE FROM targets WHERE channel = ?1 AND event = ?2 AND device = ?3",
          channel.id,
          seq,
          device,
        );
    }
    leaving.released = to;
    if (to < upTo) this.#file.run("UPDATE leaving SET released = ?2 WHERE channel = ?1", channel.id, to);
    else {
      this.#file.run("DELETE FROM leaving WHERE channel = ?1", channel.id);
      delete channel.leaving;
    }
    return to < upTo;
  }

  /** Among the events from `first` to `last`: those that the leaving device is still to be removed from, with the code of its last word there. */
  unreleased(channel: Channel, first: number, last: number) {
    const { leaving } = channel;
    if (!leaving) return [];
    return this.#file.all<{ seq: number; targeted: number; status: number }>(
      `SELECT e.seq, e.targeted, coalesce(l.status, 0) AS status FROM events e
       LEFT JOIN latest l ON l.channel = e.channel AND l.event = e.seq AND l.device = ?3
       WHERE e.channel = ?1 AND e.seq BETWEEN ?4 AND ?5 AND coalesce(l.status, 0) NOT IN (${FINAL}) AND
       CASE e.targeted WHEN 0 THEN e.seq > ?2 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END
       ORDER BY e.seq`,
      channel.id,
      leaving.joined,
      leaving.device,
      Math.max(first, leaving.released + 1, channel.floor + 1),
      Math.min(last, leaving.upTo),
    );
  }

  /** Enrolled devices by name, after the device `after`, at most `limit`. */
  list(channel: Channel, after: string, limit: number): DeviceEnrolment[] {
    return this.#file.all<DeviceEnrolment>(
      `SELECT device, enrolledAt, seenAt FROM devices INDEXED BY enrolled
       WHERE channel = ?1 AND device > ?2 AND "left" IS NULL ORDER BY device LIMIT ?3`,
      channel.id,
      after,
      limit,
    );
  }

  /** Those of these devices that are enrolled, in the same order, with what they owe. */
  async owing(channel: Channel, devices: readonly string[], now: number): Promise<EnrolledDevice[]> {
    await yieldToEventLoop("read", devices.length);
    const rows = this.#file.all<DeviceEnrolment & Enrolment>(
      `SELECT device, enrolledAt, seenAt, joined, settled, lost AS lostSeq, told AS lostNotifiedSeq FROM devices INDEXED BY enrolled
       WHERE channel = ?1 AND "left" IS NULL AND device IN (SELECT value FROM json_each(?2))`,
      channel.id,
      JSON.stringify(devices),
    );
    const found = new Map(rows.map((row) => [row.device, row]));
    const items: EnrolledDevice[] = [];
    for (const device of devices) {
      const row = found.get(device);
      if (!row) continue;
      const { enrolledAt, seenAt, ...enrolment } = row;
      items.push({ device, enrolledAt, seenAt, pending: await this.#pending(channel, device, enrolment, now) });
    }
    return items;
  }

  /** Counts in slices: a device may owe very many receipts. */
  async #pending(channel: Channel, device: string, enrolment: Enrolment, now: number): Promise<number> {
    let pending = 0;
    for (let from = this.#after(channel, device, enrolment); from < channel.head; from += PENDING_EVENTS) {
      await yieldToEventLoop("read", Math.min(PENDING_EVENTS, channel.head - from));
      pending += this.#file.get<{ n: number }>(
        `SELECT count(*) AS n FROM events e WHERE e.channel = ?1 AND e.seq > ?2 AND e.seq <= ?6 AND ${alive(5)} AND ${unsettled(3)} AND
         CASE e.targeted WHEN 0 THEN e.seq > ?4 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END`,
        channel.id,
        from,
        device,
        enrolment.joined,
        now,
        from + PENDING_EVENTS,
      )!.n;
    }
    return pending;
  }
}
