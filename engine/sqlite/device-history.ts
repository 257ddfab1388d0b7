/**
 * What one device was sent and what it said: a row per kept event that is addressed to it, newest first.
 *
 * A device belongs to an event here exactly where `receipt-rows.ts` has a row of it there. There is no index of receipts by device (`schema.ts`), so the
 * events are looked at one after the other, in windows, yielding to the event loop in between.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { SqliteFile } from "./file.ts";
import { FINAL, type HistoryRow, STATES } from "../model.ts";
import type { Channel } from "./schema.ts";
import { type Page, page } from "../store.ts";

/** Events per statement. */
const WINDOW_EVENTS = 500;

type StoredRow = Omit<HistoryRow, "status" | "late"> & { status: number; late: number | null };

/** The rows of the events before `before`. */
export async function deviceHistory(
  file: SqliteFile,
  channel: Channel,
  device: string,
  before: number,
  limit: number,
): Promise<Page<HistoryRow, number>> {
  const found: HistoryRow[] = [];
  // Retention may run between two windows.
  for (let upTo = Math.min(before - 1, channel.head); upTo > channel.floor && found.length <= limit;) {
    const from = Math.max(channel.floor, upTo - WINDOW_EVENTS);
    await yieldToEventLoop("read", upTo - from);
    found.push(...windowOf(file, channel, device, [from, upTo], limit + 1 - found.length));
    upTo = from;
  }
  return page(found, limit, ({ seq }) => seq);
}

/** The rows of the events after `from` up to `upTo`. */
function windowOf(
  file: SqliteFile,
  channel: Channel,
  device: string,
  [from, upTo]: readonly [number, number],
  limit: number,
): HistoryRow[] {
  const { id, floor, leaving } = channel;
  const leaver = leaving?.device === device ? leaving : null;
  return file
    .all<StoredRow>(
      `SELECT e.seq, e.type, e.at AS pushedAt, e.deadline, coalesce(l.status, 0) AS status, r.detail, r.at, r.deviceAt, r.late FROM events e
       LEFT JOIN latest l ON l.channel = e.channel AND l.event = e.seq AND l.device = ?2
       LEFT JOIN receipts r ON r.channel = l.channel AND r.seq = l.receipt
       WHERE e.channel = +?1 AND e.seq > ?3 AND e.seq <= ?4 AND CASE e.targeted
         WHEN 1 THEN EXISTS (SELECT 1 FROM targets t WHERE t.channel = ?1 AND t.event = e.seq AND t.device = ?2)
         ELSE EXISTS (SELECT 1 FROM devices d WHERE d.channel = ?1 AND d.device = ?2 AND d.joined < e.seq
           AND (d."left" IS NULL OR (d."left" >= e.seq AND l.status >= ${FINAL}))) END
       AND (e.seq <= ?6 OR e.seq > ?7 OR l.status >= ${FINAL})
       ORDER BY e.seq DESC LIMIT ?5`,
      id,
      device,
      Math.max(from, floor),
      upTo,
      limit,
      leaver?.released ?? 0,
      leaver?.upTo ?? 0,
    )
    .map((row) => ({ ...row, status: STATES[row.status]!, late: row.late === 1 }));
}
