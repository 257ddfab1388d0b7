/**
 * Receipts in a SQLite file: those that devices send, and the `missing` entries that PERE adds when a deadline passes.
 *
 * A receipt updates three things in one transaction: it is appended to the receipts log, `latest` gets the device's new status, and the event's tally
 * changes. So tallies are always exact and never need a recount. A separate entry says that an event is complete; it follows the receipt that
 * completed the event.
 *
 * A deadline takes effect when it passes, not when it is processed: if a device owes a receipt past the deadline, `missing` is recorded before
 * anything else about that device and event.
 *
 * All functions run in a transaction and update the counters of the given channel. Rows are buffered and inserted many per statement: call `write`
 * before reading `receipts` or `latest` in the same transaction.
 */
import type { Attention } from "./attention.ts";
import type { Standing } from "./overdue.ts";
import type { CachedTally, TallyCache } from "./tallies.ts";
import type { SqliteFile } from "./file.ts";
import type { Enrolments, Enrolment } from "./enrolments.ts";
import { FINAL, type Outcome, type Receipt, type ReceiptDraft, rank } from "../model.ts";
import { type Channel, isLeaving, type Leaving } from "./schema.ts";
import type { Verdict } from "../store.ts";

/** Devices per statement. */
const MISS_DEVICES = 500;
/** Approximate row limit for one slice of deadlines. */
const MISS_ROWS = 2_000;
/** Overhead of an event, in rows: a few statements that take as long as this many rows. */
const EVENT_ROWS = 20;
const MISSING = rank("missing");
/**
 * As many receipts are buffered at most: then they are written, so that the group commit sees what they cost. As many as a large fleet sends at once
 * still fit into one commit.
 */
const BUFFERED_RECEIPTS_MAX = 1_000;
/** Rows per insert statement; the largest that fits is used. In a statement of 32, a row costs half as much as alone. */
const ROWS_A_STATEMENT = [32, 8, 1] as const;

/** Insert statements for rows with this many columns, the largest first. */
const inserts = (into: string, columns: number) =>
  ROWS_A_STATEMENT.map((rows) => {
    const row = `(${Array(columns).fill("?").join()})`;
    return { sql: `${into} VALUES ${Array(rows).fill(row).join()}`, values: rows * columns };
  });
const RECEIPT_COLUMNS = 11;
const INSERT_RECEIPTS = inserts("INSERT INTO receipts", RECEIPT_COLUMNS);
const INSERT_LATEST = inserts("INSERT OR REPLACE INTO latest", 5);

/** A column value. */
type Value = string | number | null;

const outcome = ({ tally: { done, failed } }: CachedTally): Outcome => ({ done, failed });
/** How many devices still owe a final receipt. */
const outstanding = ({ tally: { addressed, done, failed } }: CachedTally): number => addressed - done - failed;

export class Receipts {
  readonly #file: SqliteFile;
  readonly #enrolments: Enrolments;
  readonly #tallies: TallyCache;
  readonly #attention: Attention;
  /** Buffered rows of `receipts` and of `latest`, value by value. */
  #receiptRows: Value[] = [];
  #latestRows: Value[] = [];
  /** Called for each entry of a receipts log. */
  readonly #onReceipt: (channel: Channel, receipt: Receipt) => void;

  constructor(
    file: SqliteFile,
    enrolments: Enrolments,
    tallies: TallyCache,
    attention: Attention,
    onReceipt: (channel: Channel, receipt: Receipt) => void,
  ) {
    this.#file = file;
    this.#enrolments = enrolments;
    this.#tallies = tallies;
    this.#attention = attention;
    this.#onReceipt = onReceipt;
  }

  // ---------------------------------------------------------------------------------------------------------------- receipts

  /** Between two changes of a transaction: writes the buffered rows if they are many. */
  writeIfMany(): void {
    if (this.#receiptRows.length >= BUFFERED_RECEIPTS_MAX * RECEIPT_COLUMNS) this.write();
  }

  /** Records a receipt if it advances the device's status. @param now the server's time, milliseconds since 1970 */
  record(channel: Channel, draft: ReceiptDraft, now: number): Verdict {
    const { device, status, detail, deviceAt } = draft;
    const event = draft.event.seq;
    if (draft.event.epoch !== channel.epoch || event <= channel.floor || event > channel.head) return "unknown";
    const cached = this.#tallies.of(channel, event);
    const known = this.#tallies.rank(cached, device);
    if (known >= FINAL) return "duplicate";
    const enrolment = this.#enrolments.enrolment(channel, device);
    if (!this.#isAddressed(channel, cached, device, enrolment)) return "unaddressed";
    const before = this.#applyDeadline(channel, cached, device, known, now);
    if (rank(status) <= before) return "duplicate";
    this.#tallies.step(cached, device, before, rank(status));
    this.#attention.recorded(channel, cached, device, before, rank(status));
    const late = before === MISSING;
    this.#keep(channel, { event, device, status, detail, at: now, deviceAt, late, completes: null });
    if (rank(status) >= FINAL && outstanding(cached) === 0) this.#complete(channel, cached, device, now);
    if (enrolment !== null && enrolment.lostSeq > 0 && enrolment.lostNotifiedSeq === enrolment.lostSeq)
      this.#enrolments.answered(channel, device);
    return "recorded";
  }

  /** Returns a device's status, with the deadline applied: past it, a device that owes a final receipt is recorded as missing now. */
  #applyDeadline(channel: Channel, cached: CachedTally, device: string, before: number, now: number): number {
    if (cached.deadline === null || cached.deadline > now || before >= MISSING) return before;
    this.#appendMissing(channel, cached, device, before, null, now);
    return MISSING;
  }

  #appendMissing(
    channel: Channel,
    cached: CachedTally,
    device: string,
    before: number,
    detail: string | null,
    now: number,
  ): void {
    this.#tallies.step(cached, device, before, MISSING);
    this.#attention.recorded(channel, cached, device, before, MISSING);
    const missing = { event: cached.event, device, status: "missing", detail } as const;
    this.#keep(channel, { ...missing, at: now, deviceAt: null, late: false, completes: null });
  }

  /** Appends the entry that says the event is complete, with the device whose receipt or retirement completed it. */
  #complete(channel: Channel, cached: CachedTally, device: string, now: number): void {
    const nothing = { status: "pending", detail: null, deviceAt: null, late: false } as const;
    this.#keep(channel, { event: cached.event, device, ...nothing, at: now, completes: outcome(cached) });
  }

  /** Appends an entry to the receipts log and updates the device's status, unless the entry only says that the event is complete. */
  #keep(channel: Channel, receipt: Omit<Receipt, "seq">): void {
    const { event, device, status, detail, at, deviceAt, late, completes } = receipt;
    const seq = ++channel.receiptsHead;
    const statusRank = rank(status);
    const [done, failed] = completes ? [completes.done, completes.failed] : [null, null];
    this.#receiptRows.push(
      channel.id,
      seq,
      event,
      device,
      statusRank,
      at,
      deviceAt,
      late ? 1 : 0,
      detail,
      done,
      failed,
    );
    if (status !== "pending") this.#latestRows.push(channel.id, event, device, statusRank, seq);
    this.#onReceipt(channel, { seq, event, device, status, detail, at, deviceAt, late, completes });
  }

  /** Writes the buffered rows. */
  write(): void {
    if (this.#receiptRows.length === 0) return;
    this.#insert(INSERT_RECEIPTS, this.#receiptRows);
    this.#insert(INSERT_LATEST, this.#latestRows);
    this.undo();
  }

  #insert(statements: ReturnType<typeof inserts>, gathered: readonly Value[]): void {
    let from = 0;
    for (const { sql, values } of statements)
      for (; from + values <= gathered.length; from += values)
        this.#file.run(sql, ...gathered.slice(from, from + values));
  }

  /** Discards the buffered rows. */
  undo(): void {
    this.#receiptRows = [];
    this.#latestRows = [];
  }

  isTargeted(channel: Channel, event: number): boolean {
    return this.#tallies.of(channel, event).targeted;
  }

  #isAddressed(
    channel: Channel,
    { event, targeted }: CachedTally,
    device: string,
    enrolment: Enrolment | null,
  ): boolean {
    if (!targeted) return enrolment !== null && enrolment.joined < event;
    if (isLeaving(channel, event) && channel.leaving!.device === device) return false;
    return (
      this.#file.get(
        "SELECT 1 FROM targets WHERE channel = ?1 AND event = ?2 AND device = ?3",
        channel.id,
        event,
        device,
      ) !== null
    );
  }

  /** In a transaction: the event is deleted. */
  forget(channel: Channel, event: number): void {
    this.#tallies.forget(channel, event);
  }

  /** How many devices of an event owe a final receipt, and how many sent one. */
  standing(channel: Channel, event: number): Standing {
    const cached = this.#tallies.of(channel, event);
    return { owed: outstanding(cached), answered: cached.tally.done + cached.tally.failed };
  }

  /** How many devices of an event owe a final receipt. */
  outstanding(channel: Channel, event: number): number {
    return outstanding(this.#tallies.of(channel, event));
  }

  // -------------------------------------------------------------------------------------------------------- retirement and deadlines

  /**
   * Removes a retired device from an event's audience. If the deadline had passed before it was retired, it is recorded as missing first. If the
   * removal completes the event, the log gets an entry that says so.
   */
  release(channel: Channel, event: number, { device, at }: Leaving, before: number, now: number): void {
    const cached = this.#tallies.of(channel, event);
    this.#tallies.release(cached, this.#applyDeadline(channel, cached, device, before, at));
    this.#attention.released(channel, cached);
    if (outstanding(cached) === 0) this.#complete(channel, cached, device, now);
  }

  /**
   * Processes a slice of the deadlines that have passed.
   * @param find returns the channel with this id
   * @param release releases the channel's retiring device from some of its events
   * @returns when to continue, or null: there are no more deadlines
   */
  recordMissing(find: (id: number) => Channel, release: (channel: Channel) => unknown, now: number): number | null {
    for (let cost = 0; ;) {
      const due = this.#file.get<{ at: number; channel: number; event: number }>(
        "SELECT at, channel, event FROM deadlines ORDER BY at LIMIT 1",
      );
      if (!due || due.at > now || cost >= MISS_ROWS) return due?.at ?? null;
      const channel = find(due.channel);
      if (isLeaving(channel, due.event)) {
        release(channel); // A device that was retired before the deadline owes nothing.
        return due.at;
      }
      cost += EVENT_ROWS + this.missSome(channel, due.event, due.at, null, now);
    }
  }

  /**
   * Records as missing some of an event's devices that owe a final receipt. After the last ones, deletes the deadline.
   * @param detail a JSON text, or null
   * @returns how many devices were checked; 0: the event has no deadline any more
   */
  missSome(channel: Channel, event: number, deadline: number, detail: string | null, now: number): number {
    const from = this.#file.get<{ after: string }>(
      "SELECT after FROM deadlines WHERE at = ?1 AND channel = ?2 AND event = ?3",
      deadline,
      channel.id,
      event,
    )?.after;
    if (from === undefined) return 0;
    const { looked, last, owing } = this.#owing(channel, event, from);
    const cached = owing.length > 0 ? this.#tallies.of(channel, event) : null;
    for (const { device, status } of owing) this.#appendMissing(channel, cached!, device, status, detail, now);
    const where = "at = ?1 AND channel = ?2 AND event = ?3";
    if (looked < MISS_DEVICES) this.#file.run(`DELETE FROM deadlines WHERE ${where}`, deadline, channel.id, event);
    else this.#file.run(`UPDATE deadlines SET after = ?4 WHERE ${where}`, deadline, channel.id, event, last);
    return looked + 1;
  }

  /** Among the next devices of an event's audience, by name: those that owe a final receipt and are not missing yet. */
  #owing(channel: Channel, event: number, from: string) {
    const nobody = { looked: 0, last: from, owing: [] };
    if (event <= channel.floor) return nobody;
    const cached = this.#tallies.of(channel, event);
    if (outstanding(cached) === cached.tally.missing) return nobody;
    this.write();
    const [devices, addressed] = this.isTargeted(channel, event)
      ? ["targets WHERE channel = ?1 AND event = ?2", ""]
      : [`devices INDEXED BY enrolled WHERE channel = ?1 AND "left" IS NULL`, "AND joined < ?2"];
    const { looked, last } = this.#file.get<{ looked: number; last: string | null }>(
      `SELECT count(*) AS looked, max(device) AS last FROM
       (SELECT device FROM ${devices} AND device > ?3 ORDER BY device LIMIT ${MISS_DEVICES})`,
      channel.id,
      event,
      from,
    )!;
    if (last === null) return nobody;
    const owing = this.#file.all<{ device: string; status: number }>(
      `SELECT a.device, coalesce(l.status, 0) AS status FROM
       (SELECT device FROM ${devices} ${addressed} AND device > ?3 AND device <= ?4) a
       LEFT JOIN latest l ON l.channel = ?1 AND l.event = ?2 AND l.device = a.device
       WHERE coalesce(l.status, 0) < ${MISSING} ORDER BY a.device`,
      channel.id,
      event,
      from,
      last,
    );
    return { looked, last, owing };
  }
}
