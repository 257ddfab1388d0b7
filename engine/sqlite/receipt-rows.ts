/**
 * Receipt rows: one row per device of an event's audience.
 *
 * The audience follows from enrolments or from stored names. Nothing is counted to answer a query. All functions are read-only; those that may have
 * to read very many devices do so in windows and yield to the event loop in between.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { SqliteFile } from "./file.ts";
import { FINAL, type Row, rank, type State, STATES } from "../model.ts";
import { type Channel, isLeaving } from "./schema.ts";
import { type Page, page } from "../store.ts";
import type { Receipts } from "./receipts.ts";

/** Devices per statement. */
const WINDOW_DEVICES = 500;

const NOTHING: Page<Row, string> = { items: [], next: null };

type StoredRow = Omit<Row, "status" | "late"> & { status: number; late: number | null };

export class ReceiptRows {
  readonly #file: SqliteFile;
  readonly #receipts: Receipts;

  constructor(file: SqliteFile, receipts: Receipts) {
    this.#file = file;
    this.#receipts = receipts;
  }

  /** Among the events with `after` < seq ≤ `upTo`: those that the device sent a final receipt for. */
  finalized(channel: Channel, device: string, after: number, upTo: number): ReadonlySet<number> {
    const rows = this.#file.all<{ event: number }>(
      `SELECT t.event FROM tallies t WHERE t.channel = ?1 AND t.event > ?2 AND t.event <= ?3 AND EXISTS
       (SELECT 1 FROM latest l WHERE l.channel = ?1 AND l.event = t.event AND l.device = ?4 AND l.status >= ${FINAL})`,
      channel.id,
      after,
      upTo,
      device,
    );
    return new Set(rows.map(({ event }) => event));
  }

  /** Among these devices: those that the event is addressed to and that sent no receipt for it. */
  unanswered(channel: Channel, event: number, devices: readonly string[]): string[] {
    if (event <= channel.floor || event > channel.head) return [];
    const isIts = this.#receipts.isTargeted(channel, event)
      ? "EXISTS (SELECT 1 FROM targets WHERE channel = ?1 AND event = ?2 AND device = value)"
      : `EXISTS (SELECT 1 FROM devices WHERE channel = ?1 AND device = value AND "left" IS NULL AND joined < ?2)`;
    const leaver = isLeaving(channel, event) ? channel.leaving!.device : null;
    return this.#file
      .all<{ device: string }>(
        `SELECT value AS device FROM json_each(?3) WHERE ${isIts} AND NOT EXISTS
         (SELECT 1 FROM latest WHERE channel = ?1 AND event = ?2 AND device = value)`,
        channel.id,
        event,
        JSON.stringify(devices),
      )
      .map(({ device }) => device)
      .filter((device) => device !== leaver);
  }

  /** One row per addressed device, by name, after the device `after`, of these statuses; null: of all. */
  async rows(
    channel: Channel,
    event: number,
    statuses: readonly State[] | null,
    after: string,
    limit: number,
  ): Promise<Page<Row, string>> {
    const found: Row[] = [];
    for (let from = after; found.length <= limit;) {
      if (event <= channel.floor || event > channel.head) return NOTHING; // Retention may have run since the last turn.
      const [audience, belongs] = this.#receipts.isTargeted(channel, event)
        ? ["targets", "event = ?2"]
        : ["devices", "joined < ?2"];
      // Names, not rows: a device that left and returned has several rows.
      const { looked, last } = this.#file.get<{ looked: number; last: string | null }>(
        `SELECT count(*) AS looked, max(device) AS last FROM
         (SELECT device FROM ${audience} WHERE channel = ?1 AND device > ?3 AND ${belongs} ORDER BY device LIMIT ${WINDOW_DEVICES})`,
        channel.id,
        event,
        from,
      )!;
      if (last === null) break;
      found.push(...this.#window(channel, event, statuses, [from, last], limit + 1 - found.length));
      if (looked < WINDOW_DEVICES) break;
      from = last;
      await yieldToEventLoop("read", WINDOW_DEVICES);
    }
    return page(found, limit, ({ device }) => device);
  }

  /** The rows of devices after `from` up to `last`. */
  #window(
    channel: Channel,
    event: number,
    statuses: readonly State[] | null,
    [from, last]: readonly [string, string],
    limit: number,
  ): Row[] {
    // Devices that are still enrolled, and those that left after a final receipt; see `retire`.
    const [audience, belongs] = this.#receipts.isTargeted(channel, event)
      ? ["targets", "a.event = ?2"]
      : ["devices", `a.joined < ?2 AND (a."left" IS NULL OR (a."left" >= ?2 AND l.status >= ${FINAL}))`];
    return this.#file
      .all<StoredRow>(
        `SELECT a.device, coalesce(l.status, 0) AS status, r.detail, r.at, r.deviceAt, r.late FROM ${audience} a
         LEFT JOIN latest l ON l.channel = a.channel AND l.event = ?2 AND l.device = a.device
         LEFT JOIN receipts r ON r.channel = l.channel AND r.seq = l.receipt
         WHERE a.channel = ?1 AND a.device > ?3 AND a.device <= ?4 AND (?5 IS NULL OR coalesce(l.status, 0) IN (SELECT value FROM json_each(?5))) AND ${belongs}
         AND (?7 IS NULL OR a.device <> ?7 OR l.status >= ${FINAL})
         ORDER BY a.device LIMIT ?6`,
        channel.id,
        event,
        from,
        last,
        statuses && JSON.stringify(statuses.map(rank)),
        limit,
        isLeaving(channel, event) ? channel.leaving!.device : null,
      )
      .map((row) => ({ ...row, status: STATES[row.status]!, late: row.late === 1 }));
  }
}
