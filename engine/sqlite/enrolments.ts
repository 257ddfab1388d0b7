/**
 * Who is enrolled in a channel of a PERE file, since when, and what each device owes.
 *
 * An enrolment is a row of `devices`: events after `joined`, up to `left`, were addressed to the device. `settled` is the place below which it
 * owes nothing; it only ever grows, so what a device owes is found from there and never by going through its whole past.
 * All functions but `list`, `stint` and `unreleased` run within a transaction. None looks at more than some thousand events: what goes on is called again.
 */
import { Turn } from "../yield.ts";
import type { SqliteFile } from "./group-commit.ts";
import { type EnrolledDevice, FINAL } from "../model.ts";
import type { Channel, Leaving } from "./schema.ts";
import type { Joined } from "../store.ts";

/** A device's current enrolment. */
export interface Enrolment {
  readonly joined: number;
  readonly settled: number;
  readonly lost: number;
  readonly told: number;
}

/** How far a device owes nothing, and whether more has to be looked at to know it. */
export interface Settled {
  readonly settled: number;
  readonly more: boolean;
}

/** Events that one change looks at to find what a device owes, that one read counts, that one change takes a device out of: some milliseconds each. */
const SETTLE_EVENTS = 4_000;
const PENDING_EVENTS = 4_000;
const RELEASE_EVENTS = 500;

/** Unexpired at time `?n`, for an `events e`. */
const alive = (n: number): string => `(e.expires IS NULL OR e.expires > ?${n})`;
/** The device `?n` gave no final word on `e.seq`. */
const unsettled = (n: number): string =>
  `NOT EXISTS (SELECT 1 FROM latest l WHERE l.channel = e.channel AND l.event = e.seq AND l.device = ?${n} AND l.status >= ${FINAL})`;

export class Enrolments {
  readonly #file: SqliteFile;
  /** Called when a counter of a channel moved. */
  readonly #changed: (channel: Channel) => void;
  readonly #stintsMost: number;
  /** Current enrolments as they are in the file, or will be after the running transaction. */
  readonly #stints = new Map<string, Enrolment>();

  /** @param stintsMost how many current enrolments are held in memory */
  constructor(file: SqliteFile, stintsMost: number, changed: (channel: Channel) => void) {
    this.#file = file;
    this.#stintsMost = stintsMost;
    this.#changed = changed;
  }

  /** The device's current enrolment. */
  enrolment(channel: Channel, device: string): Enrolment | null {
    const name = `${channel.id} ${device}`;
    const known = this.#stints.get(name);
    if (known) return known;
    const found = this.#file.get<Enrolment>(
      `SELECT joined, settled, lost, told FROM devices WHERE channel = ?1 AND device = ?2 AND "left" IS NULL`,
      channel.id,
      device,
    );
    if (this.#stints.size >= this.#stintsMost) this.#stints.clear();
    if (found) this.#stints.set(name, found);
    return found;
  }

  /** Forgets what is held in memory: the file has it, or has changed. */
  clear(): void {
    this.#stints.clear();
  }

  /** Changes a device's current enrolment. @param change what is set, in SQL, with values from `?3` on */
  #set(channel: Channel, device: string, change: string, ...values: number[]): void {
    this.#stints.delete(`${channel.id} ${device}`);
    this.#file.run(
      `UPDATE devices SET ${change} WHERE channel = ?1 AND device = ?2 AND "left" IS NULL`,
      channel.id,
      device,
      ...values,
    );
  }

  /** A device that was told what it lost goes on: it is not told again. */
  answered(channel: Channel, device: string): void {
    this.#set(channel, device, "lost = 0");
  }

  /** False when it was enrolled already. */
  enrol(channel: Channel, device: string, now: number): boolean {
    if (this.enrolment(channel, device)) return false;
    // Who left and comes back before another event was pushed has its row still.
    this.#file.run(
      `INSERT INTO devices (channel, device, joined, enrolledAt, settled) VALUES (?1, ?2, ?3, ?4, 0)
       ON CONFLICT DO UPDATE SET "left" = NULL, enrolledAt = ?4, seenAt = NULL, lost = 0, told = 0`,
      channel.id,
      device,
      channel.head,
      now,
    );
    channel.audience++;
    this.#changed(channel);
    return true;
  }

  /** Where an enrolled device stands as it opens a feed; from now on it counts as told what it lost. */
  join(channel: Channel, device: string, now: number): Pick<Joined, "joined" | "settled" | "lost"> & Settled {
    const stint = this.enrolment(channel, device)!;
    const { joined, lost, told } = stint;
    const { settled, more } = this.#settle(channel, device, stint, now, SETTLE_EVENTS);
    if (settled > stint.settled || told !== lost) this.#set(channel, device, "settled = ?3, told = lost", settled);
    return { joined, settled, lost, more };
  }

  /** Goes on to find how far an enrolled device owes nothing. */
  settle(channel: Channel, device: string, now: number): Settled | null {
    const stint = this.enrolment(channel, device);
    if (!stint) return null;
    const found = this.#settle(channel, device, stint, now, SETTLE_EVENTS);
    if (found.settled > stint.settled) this.#set(channel, device, "settled = ?3", found.settled);
    return found;
  }

  /** Signs of life, milliseconds since 1970; and what was settled meanwhile, as far as one change may look. */
  seen(channel: Channel, times: ReadonlyMap<string, number>): void {
    let left = SETTLE_EVENTS;
    for (const [device, at] of times) {
      const stint = this.enrolment(channel, device);
      if (!stint) continue;
      const { settled } = left > 0 ? this.#settle(channel, device, stint, at, left) : stint;
      left -= Math.max(0, settled - Math.max(stint.settled, stint.joined));
      this.#set(channel, device, "seenAt = ?3, settled = ?4", at, Math.max(settled, stint.settled));
    }
  }

  /** How far the device owes nothing: up to before the first event that it owes a final word on, or as far as about `most` events were looked at. */
  #settle(channel: Channel, device: string, stint: Enrolment, now: number, most: number): Settled {
    const { joined } = stint;
    const after = this.#after(channel, device, stint);
    // The names of a channel of commands to single devices are looked at by this device's alone.
    const end =
      this.#file.get<{ event: number }>(
        `SELECT event FROM targets WHERE channel = +?1 AND device = +?2 AND event > ?3 ORDER BY event LIMIT 1 OFFSET ?4`,
        channel.id,
        device,
        after,
        most,
      )?.event ?? channel.head;
    const toIt = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM targets t JOIN events e ON e.channel = t.channel AND e.seq = t.event
       WHERE t.channel = +?1 AND t.event > ?2 AND t.event <= ?5 AND t.device = +?3 AND ${alive(4)} AND ${unsettled(3)} ORDER BY t.event LIMIT 1`,
      channel.id,
      after,
      device,
      now,
      end,
    );
    // Only below that one: on a channel of commands to single devices, everything above would be looked at for nothing.
    const last = Math.min(toIt ? toIt.seq - 1 : end, Math.max(joined, after) + most);
    const toAll = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM events e WHERE e.channel = +?1 AND e.seq > ?2 AND e.seq <= ?5 AND e.targeted = 0 AND ${alive(4)} AND ${unsettled(3)} ORDER BY e.seq LIMIT 1`,
      channel.id,
      Math.max(joined, after),
      device,
      now,
      last,
    );
    if (toAll) return { settled: toAll.seq - 1, more: false };
    return { settled: last, more: last < (toIt ? toIt.seq - 1 : channel.head) };
  }

  /** Up to here a device owes nothing: it settled it, it is no longer kept, or it left and came back. */
  #after({ floor, leaving }: Channel, device: string, { settled }: Enrolment): number {
    return Math.max(settled, floor, leaving?.device === device ? leaving.upTo : 0);
  }

  // ---------------------------------------------------------------------------------------------------------------- who leaves

  /** Ends an enrolment: from now on the device has left, and `release` tidies up behind it. False when it was not enrolled. Nobody else may be leaving. */
  leave(channel: Channel, device: string, at: number): boolean {
    const stint = this.enrolment(channel, device);
    if (!stint) return false;
    const { joined } = stint;
    const [upTo, released] = [channel.head, channel.floor];
    this.#set(channel, device, `"left" = ?3`, upTo);
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
   * Takes who leaves out of the next events that it gave no final word on.
   * @param release told of each such event, of the device and when it was retired, and of its rank there; @returns whether there is more to do
   */
  release(channel: Channel, release: (event: number, leaving: Leaving, rank: number) => void): boolean {
    const { leaving } = channel;
    if (!leaving) return false;
    const { device, upTo } = leaving;
    const from = Math.max(leaving.released, channel.floor);
    const to = Math.min(upTo, from + RELEASE_EVENTS);
    for (const { seq, targeted, status } of this.unreleased(channel, from + 1, to)) {
      release(seq, leaving, status);
      if (targeted === 1)
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

  /** Of the events from `first` to `last`: those that who leaves is still to be taken out of, and its rank there. */
  unreleased(channel: Channel, first: number, last: number) {
    const { leaving } = channel;
    if (!leaving) return [];
    return this.#file.all<{ seq: number; targeted: number; status: number }>(
      `SELECT e.seq, e.targeted, coalesce(l.status, 0) AS status FROM events e
       LEFT JOIN latest l ON l.channel = e.channel AND l.event = e.seq AND l.device = ?3
       WHERE e.channel = ?1 AND e.seq BETWEEN ?4 AND ?5 AND coalesce(l.status, 0) < ${FINAL} AND
       CASE e.targeted WHEN 0 THEN e.seq > ?2 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END`,
      channel.id,
      leaving.joined,
      leaving.device,
      Math.max(first, leaving.released + 1, channel.floor + 1),
      Math.min(last, leaving.upTo),
    );
  }

  /** Enrolled devices by name, after the device `after`, at most `limit`. */
  async list(channel: Channel, after: string, limit: number, now: number): Promise<EnrolledDevice[]> {
    const rows = this.#file.all<Omit<EnrolledDevice, "pending"> & Enrolment>(
      `SELECT device, enrolledAt, seenAt, joined, settled, lost, told FROM devices
       WHERE channel = ?1 AND device > ?2 AND "left" IS NULL ORDER BY device LIMIT ?3`,
      channel.id,
      after,
      limit,
    );
    const items: EnrolledDevice[] = [];
    const breath = new Turn(); // A thousand devices may owe thousands each.
    for (const { device, enrolledAt, seenAt, ...stint } of rows) {
      items.push({ device, enrolledAt, seenAt, pending: await this.#pending(channel, device, stint, now, breath) });
    }
    return items;
  }

  /** Some events at a time: it may owe very many. */
  async #pending(channel: Channel, device: string, stint: Enrolment, now: number, breath: Turn): Promise<number> {
    let pending = 0;
    for (let from = this.#after(channel, device, stint); from < channel.head; from += PENDING_EVENTS) {
      await breath.yieldToEventLoop();
      pending += this.#file.get<{ n: number }>(
        `SELECT count(*) AS n FROM events e WHERE e.channel = ?1 AND e.seq > ?2 AND e.seq <= ?6 AND ${alive(5)} AND ${unsettled(3)} AND
         CASE e.targeted WHEN 0 THEN e.seq > ?4 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END`,
        channel.id,
        from,
        device,
        stint.joined,
        now,
        from + PENDING_EVENTS,
      )!.n;
    }
    return pending;
  }
}
