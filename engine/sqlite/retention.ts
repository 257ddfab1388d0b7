/**
 * Retention: deletes old entries in slices that do not delay a push.
 *
 * An event is deleted in two steps. First the channel's `floor` passes it: readers no longer get it, and each device that owed a receipt for it has
 * it noted as lost, to be reported as a gap. Then its rows and its receipts are deleted.
 *
 * All functions run in a transaction, return whether there is more to do, and update the counters of the given channel.
 */
import type { SqliteFile } from "./group-commit.ts";
import type { Enrolments } from "./enrolments.ts";
import { FINAL } from "../model.ts";
import type { Channel } from "./schema.ts";
import { type Retention, UNUSED_MAX, UNUSED_MS_MIN } from "../store.ts";
import type { Receipts } from "./receipts.ts";

/** Approximate limit of one slice, in rows touched or kibibytes freed. */
const TRIM_ROWS = 2_000;
/** Unused channels per slice. */
const UNUSED_AT_ONCE = 200;
/** Overhead of an event, in rows: a few statements that take as long as this many rows. */
const EVENT_ROWS = 20;
/** The detail of `missing` where an event expires before its deadline. */
const EXPIRED = '{"reason":"expired"}';
/** Devices per statement. */
const MARK_DEVICES = 500;

/** Runs one slice of a channel's retention. @param now milliseconds since 1970 */
export function trimChannel(
  file: SqliteFile,
  receipts: Receipts,
  enrolments: Enrolments,
  channel: Channel,
  retention: Retention,
  now: number,
): boolean {
  if (raiseFloor(file, receipts, enrolments, channel, retention, now)) return true;
  receipts.write(); // Write the `missing` receipts from above.
  return sweep(file, channel) || trimReceipts(file, channel);
}

/** Deletes one slice of expired idempotency keys. @param now milliseconds since 1970 */
export const trimKeys = (file: SqliteFile, now: number): boolean =>
  file.run(
    "DELETE FROM keys WHERE (channel, key) IN (SELECT channel, key FROM keys WHERE expires <= ?1 LIMIT ?2)",
    now,
    TRIM_ROWS,
  ) === TRIM_ROWS;

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
  let left = TRIM_ROWS;
  for (const [index, { id }] of due.entries()) {
    left -= file.run(
      `DELETE FROM devices WHERE channel = ?1 AND (device, joined) IN (SELECT device, joined FROM devices WHERE channel = ?1 LIMIT ?2)`,
      id,
      left,
    );
    if (left <= 0) return { dropped: due.slice(0, index), isMore: true }; // This one may have more.
    file.run("DELETE FROM leaving WHERE channel = ?1", id);
    file.run("DELETE FROM channels WHERE id = ?1", id);
  }
  return { dropped: due, isMore: due.length === UNUSED_AT_ONCE };
}

/** Decides what to delete: after this, events up to `floor` can't be read, and each device knows the last one that it lost. */
function raiseFloor(
  file: SqliteFile,
  receipts: Receipts,
  enrolments: Enrolments,
  channel: Channel,
  { count, before }: Retention,
  now: number,
): boolean {
  for (let work = 0; channel.floor < channel.head;) {
    if (work >= TRIM_ROWS) return true;
    const seq = channel.floor + 1;
    const event = file.get<{
      at: number;
      targeted: number;
      expires: number | null;
      deadline: number | null;
    }>("SELECT at, targeted, expires, deadline FROM events WHERE channel = ?1 AND seq = ?2", channel.id, seq)!;
    if (seq > channel.head - count && event.at >= before) return false;
    work += EVENT_ROWS;
    if (event.deadline !== null) {
      const missed = receipts.missSome(channel, seq, event.deadline, event.deadline > now ? EXPIRED : null, now);
      work += missed;
      if (missed > 0) continue; // There may be more.
    }
    if (receipts.outstanding(channel, seq) > 0 && (event.expires === null || event.expires > now)) {
      const { devices, last } = markLost(file, channel, seq, event.targeted === 1);
      enrolments.clear();
      work += devices;
      if (devices === MARK_DEVICES) {
        channel.marked = last;
        continue; // There may be more.
      }
    }
    delete channel.marked;
    channel.floor = seq;
  }
  return false;
}

/** Notes an event as lost for at most `MARK_DEVICES` devices of its audience that owe a receipt, by name from `channel.marked` on. */
function markLost(
  file: SqliteFile,
  channel: Channel,
  event: number,
  targeted: boolean,
): { devices: number; last: string } {
  const from = channel.marked ?? "";
  const [audience, belongs] = targeted
    ? [
        "targets WHERE channel = ?1 AND event = ?2",
        "device IN (SELECT device FROM targets WHERE channel = ?1 AND event = ?2 AND device > ?3 AND device <= ?4)",
      ]
    : [`devices WHERE channel = ?1 AND "left" IS NULL AND joined < ?2`, "joined < ?2"];
  const { devices, last } = file.get<{ devices: number; last: string | null }>(
    `SELECT count(*) AS devices, max(device) AS last FROM
     (SELECT device FROM ${audience} AND device > ?3 ORDER BY device LIMIT ${MARK_DEVICES})`,
    channel.id,
    event,
    from,
  )!;
  if (last === null) return { devices, last: from };
  file.run(
    `UPDATE devices SET lost = ?2 WHERE channel = ?1 AND "left" IS NULL AND device > ?3 AND device <= ?4
     AND ${belongs} AND NOT EXISTS (SELECT 1 FROM latest l WHERE l.channel = ?1 AND l.event = ?2 AND l.device = devices.device AND l.status >= ${FINAL})`,
    channel.id,
    event,
    from,
    last,
  );
  return { devices, last };
}

/** Deletes the rows of events that are no longer kept. */
function sweep(file: SqliteFile, channel: Channel): boolean {
  for (let work = 0; channel.deletedUpTo < channel.floor;) {
    if (work >= TRIM_ROWS) return true;
    const event = channel.deletedUpTo + 1;
    let removed = 0;
    for (const table of ["latest", "targets"])
      removed += file.run(
        `DELETE FROM ${table} WHERE channel = ?1 AND event = ?2 AND device IN
         (SELECT device FROM ${table} WHERE channel = ?1 AND event = ?2 LIMIT ${TRIM_ROWS})`,
        channel.id,
        event,
      );
    work += removed + EVENT_ROWS;
    if (removed >= TRIM_ROWS) continue; // There may be more.
    const data = file.get<{ bytes: number }>(
      "SELECT octet_length(data) AS bytes FROM events WHERE channel = ?1 AND seq = ?2",
      channel.id,
      event,
    );
    work += Math.ceil((data?.bytes ?? 0) / 1024);
    file.run("DELETE FROM events WHERE channel = ?1 AND seq = ?2", channel.id, event);
    file.run("DELETE FROM tallies WHERE channel = ?1 AND event = ?2", channel.id, event);
    channel.deletedUpTo = event;
  }
  const left = file.run(
    `DELETE FROM devices WHERE channel = ?1 AND (device, joined) IN
     (SELECT device, joined FROM devices WHERE channel = ?1 AND "left" <= ?2 AND "left" IS NOT NULL LIMIT ${TRIM_ROWS})`,
    channel.id,
    channel.floor,
  );
  const runs = file.run(
    `DELETE FROM audiences WHERE channel = ?1 AND event IN (SELECT event FROM audiences WHERE channel = ?1 AND
     event < (SELECT max(event) FROM audiences WHERE channel = ?1 AND event <= ?2) ORDER BY event LIMIT ${TRIM_ROWS})`,
    channel.id,
    channel.floor + 1,
  );
  return left === TRIM_ROWS || runs === TRIM_ROWS;
}

/** Deletes the oldest receipts whose events are no longer kept. */
function trimReceipts(file: SqliteFile, channel: Channel): boolean {
  const oldest = file.all<{ seq: number; event: number }>(
    "SELECT seq, event FROM receipts WHERE channel = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    channel.id,
    channel.receiptsFloor,
    TRIM_ROWS,
  );
  const kept = oldest.findIndex(({ event }) => event > channel.floor);
  const last = (kept === -1 ? oldest : oldest.slice(0, kept)).at(-1);
  if (!last) return false;
  file.run("DELETE FROM receipts WHERE channel = ?1 AND seq <= ?2", channel.id, last.seq);
  channel.receiptsFloor = last.seq;
  return kept === -1 && oldest.length === TRIM_ROWS;
}
