/**
 * Retention: deletes old entries in slices that do not delay a push.
 *
 * Events are deleted in runs. First the channel's `floor` passes all events of a run at once: readers no longer get them, and what each device lost
 * follows from the rows that are still there. Then the devices whose loss would not follow from the channel's row alone have it noted in their own:
 * those that answered the newest event to all of the run, and those that an event of the run named. Then the rows are deleted. So retention touches
 * the rows that it deletes and the devices that these rows name, however many other devices are enrolled. `enrolments.ts` says what a device lost.
 *
 * All functions run in a transaction, return whether there is more to do, and update the counters of the given channel.
 */
import type { Attention } from "./attention.ts";
import type { SqliteFile } from "./file.ts";
import type { Controls } from "./controls.ts";
import type { Enrolments } from "./enrolments.ts";
import { type Channel, FINAL } from "./schema.ts";
import { type Retention, UNUSED_MAX, UNUSED_MS_MIN } from "../store.ts";
import type { Receipts } from "./receipts.ts";
import type { RecentEvents } from "./recent-events.ts";

/** Approximate limit of one slice, in rows read or changed, or kibibytes freed. */
const SLICE_ROWS = 1_000;
/** Unused channels per slice. */
const UNUSED_AT_ONCE = 200;
/** Events per run. Also limits how many rows are read to find what one device lost. */
const RUN_EVENTS = 500;
/** Overhead of deleting an event, in rows: a few statements that take as long as this many rows. */
const EVENT_ROWS = 5;
/** The detail of `missing` where an event expires before its deadline. */
const EXPIRED = '{"reason":"expired"}';

/** What is left of a slice, in rows. */
interface Slice {
  left: number;
}

/** Events that the floor has passed and that are not all deleted yet. In memory only; found again if lost. */
interface Run {
  /** The newest event to all devices that some device still owed; 0: none. */
  readonly newestToAll: number;
  /** Events that name devices, some of which still owed a receipt. */
  readonly targeted: readonly number[];
  /** How many of these events, `newestToAll` first, are done: all devices concerned have their loss noted. */
  done: number;
  /** The last such device of the next event. */
  after: string;
}

interface EventRow {
  readonly seq: number;
  readonly at: number;
  readonly targeted: number;
  readonly expires: number | null;
  readonly deadline: number | null;
}

/** A control entry: it is not counted, and nobody owes it. */
interface ControlRow {
  readonly seq: number;
  readonly at: number;
}

export class ChannelRetention {
  readonly #file: SqliteFile;
  readonly #recent: RecentEvents;
  readonly #receipts: Receipts;
  readonly #enrolments: Enrolments;
  readonly #attention: Attention;
  readonly #controls: Controls;
  /** By the channel's id. */
  readonly #runs = new Map<number, Run>();

  constructor(
    file: SqliteFile,
    recent: RecentEvents,
    receipts: Receipts,
    enrolments: Enrolments,
    attention: Attention,
    controls: Controls,
  ) {
    this.#file = file;
    this.#recent = recent;
    this.#receipts = receipts;
    this.#enrolments = enrolments;
    this.#attention = attention;
    this.#controls = controls;
  }

  /** A transaction was rolled back: what is in memory was ahead of the file. */
  clear(): void {
    this.#runs.clear();
  }

  /** Runs one slice of a channel's retention. @param now milliseconds since 1970 */
  trim(channel: Channel, retention: Retention, now: number): boolean {
    const slice = { left: SLICE_ROWS };
    while (slice.left > 0) {
      if (channel.deletedUpTo === channel.floor) this.#raiseFloor(channel, retention, now, slice);
      if (channel.deletedUpTo === channel.floor) break;
      this.#receipts.write(); // The `missing` receipts from above.
      if (this.#noteLosses(channel, now, slice) && this.#attention.dropped(channel, slice)) this.#sweep(channel, slice);
    }
    return slice.left <= 0 || sweepAudiences(this.#file, channel) || trimReceipts(this.#file, channel);
  }

  /** Decides what to delete: lets the floor pass the next events that are no longer kept, after their devices are recorded as missing. */
  #raiseFloor(channel: Channel, { count, before }: Retention, now: number, slice: Slice): void {
    const events = this.#file.each<EventRow>(
      "SELECT seq, at, targeted, expires, deadline FROM events WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
      channel.id,
      channel.floor,
      RUN_EVENTS,
    );
    const controls = this.#controls.times(channel, channel.floor, RUN_EVENTS);
    const passed: EventRow[] = [];
    let kept = channel.head - channel.floor - channel.controls;
    const isPast = (entry: EventRow | ControlRow): boolean => {
      if (kept <= count && entry.at >= before) return false;
      if ("targeted" in entry) kept--;
      return true;
    };
    let floor = channel.floor;
    for (const entry of [...takeWhile(inOrder(events, controls), isPast)]) {
      slice.left--;
      if ("targeted" in entry) {
        if (entry.deadline !== null && !this.#missAll(channel, entry.seq, entry.deadline, now, slice)) break;
        passed.push(entry);
      } else channel.controls--;
      floor = entry.seq;
      if (slice.left <= 0) break;
    }
    if (floor === channel.floor) return;
    channel.floor = floor;
    slice.left -= this.#recent.settle(channel);
    this.#runs.set(channel.id, this.#findRun(channel, passed, now));
  }

  /** Records as missing all devices that owe an event a receipt. False: there are more. */
  #missAll(channel: Channel, event: number, deadline: number, now: number, slice: Slice): boolean {
    do {
      const looked = this.#receipts.missSome(channel, event, deadline, deadline > now ? EXPIRED : null, now);
      if (looked === 0) return true;
      slice.left -= looked;
    } while (slice.left > 0);
    return false;
  }

  #findRun(channel: Channel, events: readonly EventRow[], now: number): Run {
    const isOwed = ({ seq, expires }: EventRow): boolean =>
      (expires === null || expires > now) && this.#receipts.outstanding(channel, seq) > 0;
    const newestToAll = events.findLast((event) => event.targeted === 0 && isOwed(event))?.seq ?? 0;
    const targeted = events.filter((event) => event.targeted !== 0 && isOwed(event)).map(({ seq }) => seq);
    return { newestToAll, targeted, done: newestToAll === 0 ? 1 : 0, after: "" };
  }

  /** An earlier process, or a transaction that was rolled back, has lost the run. Whose loss is noted already is not noted again. */
  #findRunAgain(channel: Channel, now: number): Run {
    const events = this.#file.all<EventRow>(
      "SELECT seq, at, targeted, expires, deadline FROM events WHERE channel = +?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
      channel.id,
      channel.deletedUpTo,
      channel.floor,
    );
    const run = this.#findRun(channel, events, now);
    this.#runs.set(channel.id, run);
    return run;
  }

  /** Notes what the devices have lost of which the rows to be deleted show more than the channel's row says. True: all is noted. */
  #noteLosses(channel: Channel, now: number, slice: Slice): boolean {
    const run = this.#runs.get(channel.id) ?? this.#findRunAgain(channel, now);
    for (; run.done <= run.targeted.length; run.done++, run.after = "") {
      // Those that owed the newest event to all lost nothing newer, except events that name them.
      const [table, event] = run.done === 0 ? ["latest", run.newestToAll] : ["targets", run.targeted[run.done - 1]!];
      const isConcerned = run.done === 0 ? `status IN (${FINAL})` : "1";
      for (;;) {
        if (slice.left <= 0) return false;
        const devices = this.#file.all<{ device: string; isConcerned: number }>(
          `SELECT device, ${isConcerned} AS isConcerned FROM ${table}
           WHERE channel = +?1 AND event = +?2 AND device > ?3 ORDER BY device LIMIT ?4`,
          channel.id,
          event,
          run.after,
          slice.left,
        );
        slice.left--;
        if (devices.length === 0) break;
        for (const { device, isConcerned } of devices) {
          slice.left -= isConcerned ? this.#enrolments.noteLost(channel, device, now) : 1;
          run.after = device;
          if (slice.left <= 0) break;
        }
      }
    }
    channel.lostByAll = Math.max(channel.lostByAll, run.newestToAll);
    return true;
  }

  /** Deletes the rows of events that are no longer kept. */
  #sweep(channel: Channel, slice: Slice): void {
    while (channel.deletedUpTo < channel.floor) {
      if (slice.left <= 0) return;
      const event = channel.deletedUpTo + 1;
      slice.left -= EVENT_ROWS + Math.ceil(this.#deleteEvent(channel, event) / 1024);
      for (const table of ["latest", "targets", "rounds"])
        slice.left -= this.#file.run(
          `DELETE FROM ${table} WHERE channel = ?1 AND event = ?2 AND device IN
           (SELECT device FROM ${table} WHERE channel = ?1 AND event = ?2 LIMIT ?3)`,
          channel.id,
          event,
          Math.max(0, slice.left),
        );
      if (slice.left <= 0) return; // There may be more.
      for (const table of ["tallies", "options"])
        this.#file.run(`DELETE FROM ${table} WHERE channel = ?1 AND event = ?2`, channel.id, event);
      this.#file.run("DELETE FROM controls WHERE channel = ?1 AND seq = ?2", channel.id, event);
      this.#receipts.forget(channel, event);
      channel.deletedUpTo = event;
    }
    this.#runs.delete(channel.id);
  }

  /** Deletes an event's own row, before those that show who answered it: without this row they mean nothing. @returns its bytes of data */
  #deleteEvent(channel: Channel, event: number): number {
    const data = this.#file.get<{ bytes: number }>(
      "SELECT octet_length(data) AS bytes FROM events WHERE channel = ?1 AND seq = ?2",
      channel.id,
      event,
    );
    this.#file.run("DELETE FROM main.events WHERE channel = ?1 AND seq = ?2", channel.id, event);
    return data?.bytes ?? 0;
  }
}

/** Two lists of entries as one, by number. */
function* inOrder<One extends { readonly seq: number }, Other extends { readonly seq: number }>(
  ones: Iterable<One>,
  others: readonly Other[],
): Generator<One | Other> {
  let next = 0;
  for (const one of ones) {
    while (next < others.length && others[next]!.seq < one.seq) yield others[next++]!;
    yield one;
  }
  yield* others.slice(next);
}

/** The first items for which `test` is true. */
function* takeWhile<Item>(items: Iterable<Item>, test: (item: Item) => boolean): Generator<Item> {
  for (const item of items) {
    if (!test(item)) return;
    yield item;
  }
}

/** Deletes the rows of devices that left before all kept events, and the sizes of audiences of deleted events. */
function sweepAudiences(file: SqliteFile, channel: Channel): boolean {
  const left = file.run(
    `DELETE FROM devices WHERE channel = ?1 AND (device, joined) IN
     (SELECT device, joined FROM devices WHERE channel = ?1 AND "left" <= ?2 AND "left" IS NOT NULL LIMIT ${SLICE_ROWS})`,
    channel.id,
    channel.floor,
  );
  if (left === SLICE_ROWS) return true;
  const runs = file.run(
    `DELETE FROM audiences WHERE channel = ?1 AND event IN (SELECT event FROM audiences WHERE channel = ?1 AND
     event < (SELECT max(event) FROM audiences WHERE channel = ?1 AND event <= ?2) ORDER BY event LIMIT ${SLICE_ROWS})`,
    channel.id,
    channel.floor + 1,
  );
  return runs === SLICE_ROWS;
}

/** Deletes one slice of expired idempotency keys. @param now milliseconds since 1970 */
export const trimKeys = (file: SqliteFile, now: number): boolean =>
  file.run(
    "DELETE FROM keys WHERE (channel, key) IN (SELECT channel, key FROM keys WHERE expires <= ?1 LIMIT ?2)",
    now,
    SLICE_ROWS,
  ) === SLICE_ROWS;

/**
 * Deletes one slice of unused channels: those with no sign of life of a device for as long as events are kept, or sooner if there are very many
 * unused channels. @returns the deleted channels
 */
export function trimUnused(
  file: SqliteFile,
  { before }: Retention,
  now: number,
): { dropped: Pick<Channel, "id" | "name" | "epoch">[]; isMore: boolean } {
  const beyond = file.get<{ touched: number }>(
    "SELECT touched FROM channels WHERE touched IS NOT NULL ORDER BY touched DESC LIMIT 1 OFFSET ?1",
    UNUSED_MAX,
  );
  const upTo = Math.min(Math.max(before, beyond?.touched ?? 0), now - UNUSED_MS_MIN);
  const due = file.all<Pick<Channel, "id" | "name" | "epoch">>(
    "SELECT id, name, epoch FROM channels WHERE touched <= ?1 ORDER BY touched LIMIT ?2",
    upTo,
    UNUSED_AT_ONCE,
  );
  let left = SLICE_ROWS;
  for (const [index, { id }] of due.entries()) {
    left -= file.run(
      `DELETE FROM devices WHERE channel = ?1 AND (device, joined) IN (SELECT device, joined FROM devices WHERE channel = ?1 LIMIT ?2)`,
      id,
      left,
    );
    if (left <= 0) return { dropped: due.slice(0, index), isMore: true }; // This one may have more.
    left -= file.run("DELETE FROM tags WHERE channel = ?1", id);
    file.run("DELETE FROM leaving WHERE channel = ?1", id);
    file.run("DELETE FROM channels WHERE id = ?1", id);
  }
  return { dropped: due, isMore: due.length === UNUSED_AT_ONCE };
}

/** Deletes the oldest receipts whose events are no longer kept. */
function trimReceipts(file: SqliteFile, channel: Channel): boolean {
  const oldest = file.each<{ seq: number; event: number }>(
    "SELECT seq, event FROM receipts WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    channel.id,
    channel.receiptsFloor,
    SLICE_ROWS,
  );
  const dropped = [...takeWhile(oldest, ({ event }) => event <= channel.floor)];
  if (dropped.length === 0) return false;
  channel.receiptsFloor = dropped.at(-1)!.seq;
  file.run("DELETE FROM receipts WHERE channel = ?1 AND seq <= ?2", channel.id, channel.receiptsFloor);
  return dropped.length === SLICE_ROWS;
}
