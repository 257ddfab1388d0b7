/**
 * Receipt rows: one row per device of an event's audience.
 *
 * The audience follows from enrolments or from stored names. Nothing is counted to answer a query. All functions are read-only; those that may have
 * to read very many devices do so in windows and yield to the event loop in between.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { SqliteFile } from "./file.ts";
import { isFinal, type Row, type State, stateCode, STATES, type Withdrawal } from "../model.ts";
import { roundAt } from "../receipt-rules.ts";
import { type Channel, FINAL, isLeaving } from "./schema.ts";
import { type DeviceState, type Page, page } from "../store.ts";
import type { Receipts } from "./receipts.ts";
import type { Controls } from "./controls.ts";

/** Devices per statement. */
const WINDOW_DEVICES = 500;

const NOTHING: Page<Row, string> = { items: [], next: null };

/** A device's last word on an event as stored; without one, `status` is that of `pending`. `due` is that of its round. */
export interface StoredWord {
  readonly status: number;
  readonly detail: string | null;
  readonly at: number | null;
  readonly deviceAt: number | null;
  readonly late: number | null;
  readonly round: number | null;
  readonly attempt: number | null;
  readonly due: number | null;
}

/** The codes of the states that a withdrawal ends. */
const ENDED = (["pending", "received", "working", "deferred"] as const).map(stateCode).join();
const WITHDRAWN = stateCode("withdrawn");

/** A device's last word. */
interface Said {
  readonly status: number;
  readonly round: number | null;
  readonly due: number | null;
}

/** A device's state with its round, as of a time; a withdrawal ends whatever is neither final nor missing. */
function stateAt({ status, round, due }: Said, withdrawal: Withdrawal | null, now: number) {
  const state = STATES[status]!;
  const standing = { state, round: round ?? 1, attempt: 0, due };
  if (withdrawal === null || isFinal(state) || state === "missing")
    return { ...standing, round: roundAt(standing, now) };
  return { state: "withdrawn" as const, round: roundAt(standing, withdrawal.at), due: null };
}

/** What a row has of a device's last word, as of a time. */
export function wordAt(word: StoredWord, withdrawal: Withdrawal | null, now: number): Omit<Row, "device"> {
  const { state: status, round, due } = stateAt(word, withdrawal, now);
  const { detail, at, deviceAt, late } = word;
  const attempt = word.attempt ?? (status === "failed" ? 1 : 0);
  if (status === "withdrawn")
    return { status, detail: null, at: withdrawal!.at, deviceAt: null, late: false, round, attempt };
  const row = { status, detail, at, deviceAt, late: late !== null && late > 0, round, attempt };
  return status === "deferred" && due !== null && due > now ? { ...row, due } : row;
}

export class ReceiptRows {
  readonly #file: SqliteFile;
  readonly #receipts: Receipts;
  readonly #controls: Controls;

  constructor(file: SqliteFile, receipts: Receipts, controls: Controls) {
    this.#file = file;
    this.#receipts = receipts;
    this.#controls = controls;
  }

  /** The device's states on the events with `after` < seq ≤ `upTo` that it gave a word on, or is missing on. */
  states(channel: Channel, device: string, after: number, upTo: number, now: number): Map<number, DeviceState> {
    const rows = this.#file.all<Said & { event: number }>(
      `SELECT t.event, l.status, q.round, q.due FROM tallies t
       CROSS JOIN latest l ON l.channel = t.channel AND l.event = t.event AND l.device = ?4
       LEFT JOIN rounds q ON q.channel = t.channel AND q.event = t.event AND q.device = ?4
       WHERE t.channel = ?1 AND t.event > ?2 AND t.event <= ?3`,
      channel.id,
      after,
      upTo,
      device,
    );
    const marks = this.#controls.marks(channel, after + 1, upTo);
    return new Map(
      rows.map(({ event, ...said }) => {
        const { state, round } = stateAt(said, marks.get(event) ?? null, now);
        const isHeld = state === "deferred" && said.due! > now;
        return [event, { state, round, due: isHeld ? said.due : null }];
      }),
    );
  }

  /** Among these devices: those that the event is addressed to. */
  addressed(channel: Channel, event: number, devices: readonly string[]): string[] {
    const isKept = event > channel.floor && event <= channel.head;
    return isKept && this.#receipts.withdrawal(channel, event) !== "control"
      ? this.#among(channel, event, devices)
      : [];
  }

  /** Among these devices: those that the event is addressed to and that sent no receipt for it. */
  unanswered(channel: Channel, event: number, devices: readonly string[]): string[] {
    if (event <= channel.floor || event > channel.head || this.#receipts.withdrawal(channel, event) !== null) return [];
    return this.#among(
      channel,
      event,
      devices,
      "AND NOT EXISTS (SELECT 1 FROM latest WHERE channel = ?1 AND event = ?2 AND device = value)",
    );
  }

  #among(channel: Channel, event: number, devices: readonly string[], and = ""): string[] {
    const isIts = this.#receipts.isTargeted(channel, event)
      ? "EXISTS (SELECT 1 FROM targets WHERE channel = ?1 AND event = ?2 AND device = value)"
      : `EXISTS (SELECT 1 FROM devices WHERE channel = ?1 AND device = value AND "left" IS NULL AND joined < ?2)`;
    const leaver = isLeaving(channel, event) ? channel.leaving!.device : null;
    return this.#file
      .all<{ device: string }>(
        `SELECT value AS device FROM json_each(?3) WHERE ${isIts} ${and}`,
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
    now: number,
  ): Promise<Page<Row, string>> {
    const found: Row[] = [];
    for (let from = after; found.length <= limit;) {
      if (event <= channel.floor || event > channel.head) return NOTHING; // Retention may have run since the last turn.
      const withdrawal = this.#receipts.withdrawal(channel, event);
      if (withdrawal === "control") return NOTHING;
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
      found.push(
        ...this.#window(channel, event, { statuses, withdrawal, now }, [from, last], limit + 1 - found.length),
      );
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
    { statuses, withdrawal, now }: { statuses: readonly State[] | null; withdrawal: Withdrawal | null; now: number },
    [from, last]: readonly [string, string],
    limit: number,
  ): Row[] {
    // Devices that are still enrolled, and those that left after a final receipt; see `retire`.
    const [audience, belongs] = this.#receipts.isTargeted(channel, event)
      ? ["targets", "a.event = ?2"]
      : ["devices", `a.joined < ?2 AND (a."left" IS NULL OR (a."left" >= ?2 AND l.status IN (${FINAL})))`];
    const state = withdrawal
      ? `CASE WHEN coalesce(l.status, 0) IN (${ENDED}) THEN ${WITHDRAWN} ELSE l.status END`
      : "coalesce(l.status, 0)";
    return this.#file
      .all<StoredWord & { device: string }>(
        `SELECT a.device, coalesce(l.status, 0) AS status, r.detail, r.at, r.deviceAt, r.late, r.round, r.attempt, q.due FROM ${audience} a
         LEFT JOIN latest l ON l.channel = a.channel AND l.event = ?2 AND l.device = a.device
         LEFT JOIN receipts r ON r.channel = l.channel AND r.seq = l.receipt
         LEFT JOIN rounds q ON q.channel = a.channel AND q.event = ?2 AND q.device = a.device
         WHERE a.channel = ?1 AND a.device > ?3 AND a.device <= ?4 AND (?5 IS NULL OR ${state} IN (SELECT value FROM json_each(?5))) AND ${belongs}
         AND (?7 IS NULL OR a.device <> ?7 OR l.status IN (${FINAL}))
         ORDER BY a.device LIMIT ?6`,
        channel.id,
        event,
        from,
        last,
        statuses && JSON.stringify(statuses.map(stateCode)),
        limit,
        isLeaving(channel, event) ? channel.leaving!.device : null,
      )
      .map(({ device, ...word }) => ({ device, ...wordAt(word, withdrawal, now) }));
  }
}
