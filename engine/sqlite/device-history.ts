/**
 * What one device was sent and what it said: a row per kept event that is addressed to it, newest first.
 *
 * A device belongs to an event here exactly where `receipt-rows.ts` has a row of it there. There is no index of receipts by device (`schema.ts`), so the
 * events are looked at one after the other, in windows, yielding to the event loop in between.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { SqliteFile } from "./file.ts";
import type { HistoryRow } from "../model.ts";
import type { Controls } from "./controls.ts";
import { type StoredWord, wordAt } from "./receipt-rows.ts";
import { type Channel, FINAL } from "./schema.ts";
import { type Page, page } from "../store.ts";

/** Events per statement. */
const WINDOW_EVENTS = 500;

type StoredRow = StoredWord & Pick<HistoryRow, "seq" | "type" | "pushedAt" | "deadline">;

/** The rows of the events before `before`. */
export async function deviceHistory(
  file: SqliteFile,
  controls: Controls,
  channel: Channel,
  device: string,
  before: number,
  limit: number,
  now: number,
): Promise<Page<HistoryRow, number>> {
  const found: HistoryRow[] = [];
  // Retention may run between two windows.
  for (let upTo = Math.min(before - 1, channel.head); upTo > channel.floor && found.length <= limit;) {
    const from = Math.max(channel.floor, upTo - WINDOW_EVENTS);
    await yieldToEventLoop("read", upTo - from);
    found.push(...windowOf(file, controls, channel, device, [from, upTo], limit + 1 - found.length, now));
    upTo = from;
  }
  return page(found, limit, ({ seq }) => seq);
}

/** The rows of the events after `from` up to `upTo`. */
function windowOf(
  file: SqliteFile,
  controls: Controls,
  channel: Channel,
  device: string,
  [from, upTo]: readonly [number, number],
  limit: number,
  now: number,
): HistoryRow[] {
  const { id, floor, leaving } = channel;
  const marks = controls.marks(channel, from + 1, upTo);
  const leaver = leaving?.device === device ? leaving : null;
  return file
    .all<StoredRow>(
      `SELECT e.seq, e.type, e.at AS pushedAt, e.deadline, coalesce(l.status, 0) AS status, r.detail, r.at, r.deviceAt, r.late, r.round, r.attempt, q.due
       FROM events e
       LEFT JOIN latest l ON l.channel = e.channel AND l.event = e.seq AND l.device = ?2
       LEFT JOIN receipts r ON r.channel = l.channel AND r.seq = l.receipt
       LEFT JOIN rounds q ON q.channel = e.channel AND q.event = e.seq AND q.device = ?2
       WHERE e.channel = +?1 AND e.seq > ?3 AND e.seq <= ?4 AND CASE e.targeted
         WHEN 0 THEN EXISTS (SELECT 1 FROM devices d WHERE d.channel = ?1 AND d.device = ?2 AND d.joined < e.seq
           AND (d."left" IS NULL OR (d."left" >= e.seq AND l.status IN (${FINAL}))))
         ELSE EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?2) END
       AND (e.seq <= ?6 OR e.seq > ?7 OR l.status IN (${FINAL}))
       ORDER BY e.seq DESC LIMIT ?5`,
      id,
      device,
      Math.max(from, floor),
      upTo,
      limit,
      leaver?.released ?? 0,
      leaver?.upTo ?? 0,
    )
    .map(({ seq, type, pushedAt, deadline, ...word }) => ({
      ...{ seq, type, pushedAt, deadline },
      ...wordAt(word, marks.get(seq) ?? null, now),
    }));
}
