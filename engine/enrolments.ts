/**
 * Who is enrolled in a channel of a PERE file, since when, and what each device owes.
 *
 * An enrolment is a row of `devices`: events after `joined`, up to `left`, were addressed to the device. `settled` is the place below which it
 * owes nothing; it only ever grows, so what a device owes is found from there and never by going through its whole past.
 * All functions but `list` and `stint` run within a transaction.
 */
import { Breath } from "./breath.ts";
import type { SqliteFile } from "./commit.ts";
import { type Enrolment, FINAL } from "./model.ts";
import type { Channel } from "./schema.ts";
import type { Joined } from "./store.ts";

/** A device's current enrolment. */
export interface Stint {
  readonly joined: number;
  readonly settled: number;
  readonly lost: number;
  readonly told: number;
}

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
  readonly #stints = new Map<string, Stint>();

  /** @param stintsMost how many current enrolments are held in memory */
  constructor(file: SqliteFile, stintsMost: number, changed: (channel: Channel) => void) {
    this.#file = file;
    this.#stintsMost = stintsMost;
    this.#changed = changed;
  }

  /** The device's current enrolment. */
  stint(channel: Channel, device: string): Stint | null {
    const name = `${channel.id} ${device}`;
    const known = this.#stints.get(name);
    if (known) return known;
    const found = this.#file.get<Stint>(
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
    if (this.stint(channel, device)) return false;
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
  join(channel: Channel, device: string, now: number): Pick<Joined, "joined" | "settled" | "lost"> {
    const stint = this.stint(channel, device)!;
    const { joined, lost, told } = stint;
    const settled = this.#settle(channel, device, stint, now);
    if (settled > stint.settled || told !== lost) this.#set(channel, device, "settled = ?3, told = lost", settled);
    return { joined, settled, lost };
  }

  /** A sign of life, milliseconds since 1970; and what it has settled meanwhile. */
  seen(channel: Channel, device: string, at: number): void {
    const stint = this.stint(channel, device);
    if (!stint) return;
    this.#set(channel, device, "seenAt = ?3, settled = ?4", at, this.#settle(channel, device, stint, at));
  }

  /** How far the device owes nothing: up to before the first event that it owes a final word on. */
  #settle(channel: Channel, device: string, { joined, settled }: Stint, now: number): number {
    return (this.#oldestOwed(channel, device, joined, settled, now) ?? channel.head + 1) - 1;
  }

  /** The first event that the device owes a final word on, above `settled`. */
  #oldestOwed(channel: Channel, device: string, joined: number, settled: number, now: number): number | null {
    const toIt = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM targets t JOIN events e ON e.channel = t.channel AND e.seq = t.event
       WHERE t.channel = +?1 AND t.event > ?2 AND t.device = +?3 AND ${alive(4)} AND ${unsettled(3)} ORDER BY t.event LIMIT 1`,
      channel.id,
      Math.max(settled, channel.floor),
      device,
      now,
    );
    // Only below that one: on a channel of commands to single devices, everything above would be looked at for nothing.
    const toAll = this.#file.get<{ seq: number }>(
      `SELECT e.seq FROM events e WHERE e.channel = +?1 AND e.seq > ?2 AND e.seq < ?5 AND e.targeted = 0 AND ${alive(4)} AND ${unsettled(3)} ORDER BY e.seq LIMIT 1`,
      channel.id,
      Math.max(joined, settled, channel.floor),
      device,
      now,
      toIt?.seq ?? channel.head + 1,
    );
    return (toAll ?? toIt)?.seq ?? null;
  }

  /**
   * Takes the device out of the audience of every event that it gave no final word on. False when it was not enrolled.
   * @param release told of each such event, and of the device's rank there
   */
  retire(channel: Channel, device: string, release: (event: number, rank: number) => void): boolean {
    const stint = this.stint(channel, device);
    if (!stint) return false;
    const released = this.#file.all<{ seq: number; targeted: number; status: number | null }>(
      `SELECT e.seq, e.targeted, l.status FROM events e LEFT JOIN latest l ON l.channel = e.channel AND l.event = e.seq AND l.device = ?3
       WHERE e.channel = ?1 AND e.seq > ?4 AND (l.status IS NULL OR l.status < ${FINAL}) AND
       CASE e.targeted WHEN 0 THEN e.seq > ?2 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END`,
      channel.id,
      stint.joined,
      device,
      channel.floor,
    );
    for (const { seq, targeted, status } of released) {
      release(seq, status ?? 0);
      if (targeted)
        this.#file.run(
          "DELETE FROM targets WHERE channel = ?1 AND event = ?2 AND device = ?3",
          channel.id,
          seq,
          device,
        );
    }
    this.#set(channel, device, `"left" = ?3`, channel.head);
    channel.audience--;
    this.#changed(channel);
    return true;
  }

  /** Enrolled devices by name, after the device `after`, at most `limit`. */
  async list(channel: Channel, after: string, limit: number, now: number): Promise<Enrolment[]> {
    const rows = this.#file.all<Omit<Enrolment, "pending"> & Stint>(
      `SELECT device, enrolledAt, seenAt, joined, settled, lost, told FROM devices
       WHERE channel = ?1 AND device > ?2 AND "left" IS NULL ORDER BY device LIMIT ?3`,
      channel.id,
      after,
      limit,
    );
    const items: Enrolment[] = [];
    const breath = new Breath(); // A thousand devices may owe thousands each.
    for (const { device, enrolledAt, seenAt, ...stint } of rows) {
      items.push({ device, enrolledAt, seenAt, pending: this.#pending(channel, device, stint, now) });
      await breath.take();
    }
    return items;
  }

  #pending(channel: Channel, device: string, { joined, settled }: Stint, now: number): number {
    return this.#file.get<{ n: number }>(
      `SELECT count(*) AS n FROM events e WHERE e.channel = ?1 AND e.seq > ?2 AND ${alive(5)} AND ${unsettled(3)} AND
       CASE e.targeted WHEN 0 THEN e.seq > ?4 ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?3) END`,
      channel.id,
      Math.max(settled, channel.floor),
      device,
      joined,
      now,
    )!.n;
  }
}
