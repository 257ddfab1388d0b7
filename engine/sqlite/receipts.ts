/**
 * Receipts in a SQLite file: those that devices send, the `missing` entries that PERE adds when a deadline passes, and the notes on an event as a
 * whole: that it is complete, settled, or withdrawn.
 *
 * A receipt updates three things in one transaction: it is appended to the receipts log, `latest` gets the device's new state, and the event's tally
 * changes. So tallies are always exact and never need a recount. A withdrawal changes the tally once, whatever the number of devices: what `latest`
 * has of them is read as `withdrawn` from then on, unless it is final or missing.
 *
 * A deadline takes effect when it passes, not when it is processed: if a device owes a receipt past the deadline, `missing` is recorded before
 * anything else about that device and event.
 *
 * All functions run in a transaction and update the counters of the given channel. Rows are buffered and inserted many per statement: call `write`
 * before reading `receipts` or `latest` in the same transaction.
 */
import type { Attention } from "./attention.ts";
import type { EventStanding } from "./overdue.ts";
import type { CachedTally, TallyCache } from "./tallies.ts";
import type { SqliteFile } from "./file.ts";
import type { Controls } from "./controls.ts";
import type { Enrolments, Enrolment } from "./enrolments.ts";
import { noteColumn } from "./notes.ts";
import type { Rounds } from "./rounds.ts";
import {
  type ControlEntry,
  type EndReason,
  type EventNote,
  isComplete,
  isFinal,
  LATE_REASONS,
  type LateReason,
  NOTE,
  outstandingOf,
  type Receipt,
  type ReceiptDraft,
  STATES,
  stateCode,
} from "../model.ts";
import { judge, lateReason, roundAt, type Standing } from "../receipt-rules.ts";
import { type Channel, FINAL, isLeaving, type Leaving } from "./schema.ts";
import type { Result, Verdict } from "../store.ts";

/** Devices per statement. */
const MISS_DEVICES = 500;
/** Approximate row limit for one slice of deadlines. */
const MISS_ROWS = 2_000;
/** Overhead of an event, in rows: a few statements that take as long as this many rows. */
const EVENT_ROWS = 20;
const MISSING = stateCode("missing");
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
const RECEIPT_COLUMNS = 12;
const INSERT_RECEIPTS = inserts(
  "INSERT INTO receipts (channel, seq, event, device, status, at, deviceAt, late, detail, round, attempt, note)",
  RECEIPT_COLUMNS,
);
const INSERT_LATEST = inserts("INSERT OR REPLACE INTO latest", 5);

/** A column value. */
type Value = string | number | null;

/** Nothing came of a receipt. */
const nothing = (result: Result, late: LateReason | null = null): Verdict => ({ result, state: null, late, due: null });

/** The numbers of a round that most receipts have. */
const usual = (status: Receipt["status"]) => ({ round: 1, attempt: status === "failed" ? 1 : 0 });

export class Receipts {
  readonly #file: SqliteFile;
  readonly #enrolments: Enrolments;
  readonly #tallies: TallyCache;
  readonly #attention: Attention;
  readonly #rounds: Rounds;
  readonly #controls: Controls;
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
    rounds: Rounds,
    controls: Controls,
    onReceipt: (channel: Channel, receipt: Receipt) => void,
  ) {
    this.#file = file;
    this.#rounds = rounds;
    this.#controls = controls;
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

  /**
   * Records a receipt if it advances the device's state.
   * @param now the server's time, milliseconds since 1970
   * @param random from 0 up to 1
   */
  record(channel: Channel, draft: ReceiptDraft, now: number, random: () => number): Verdict {
    const { device, detail, deviceAt } = draft;
    const event = draft.event.seq;
    if (draft.event.epoch !== channel.epoch || event <= channel.floor || event > channel.head)
      return nothing("unknown");
    const cached = this.#tallies.of(channel, event);
    if (!cached) return nothing("unknown");
    let before = this.#standing(cached, device);
    const enrolment = this.#enrolments.enrolment(channel, device);
    if (isFinal(before.state)) {
      const refused = judge(before, draft, cached.attempts, now, random);
      return nothing(refused === "early" ? "early" : "duplicate", this.#lateReason(cached, device));
    }
    if (!this.#isAddressed(channel, cached, device, enrolment)) return nothing("unaddressed");
    before = this.#applyDeadline(channel, cached, device, before, now);
    const next = judge(before, draft, cached.attempts, now, random);
    if (typeof next === "string") return nothing(next);
    const { state, round, attempt, due } = next;
    const late = lateReason(before.state, cached.withdrawn?.reason ?? null);
    this.#tallies.step(cached, device, before.state, state, stateCode(state));
    this.#attention.recorded(channel, cached, device, before.state, state);
    this.#putRound(cached, device, next);
    this.#keep(channel, { event, device, status: state, detail, at: now, deviceAt, late, round, attempt });
    if (isFinal(state)) this.#completeIfDone(channel, cached, device, now);
    if (enrolment !== null && enrolment.lostSeq > 0 && enrolment.lostNotifiedSeq === enrolment.lostSeq)
      this.#enrolments.answered(channel, device);
    return { result: "recorded", state, late, due };
  }

  /** Where a device stands on an event. A device without a final word that is not missing is withdrawn with its event. */
  #standing(cached: CachedTally, device: string): Standing {
    const { withdrawn, hasRounds, channel, event } = cached;
    const state = STATES[this.#tallies.code(cached, device)]!;
    const row = hasRounds ? this.#rounds.of(channel, event, device) : null;
    const said: Standing = { state, ...(row ?? { ...usual(state), due: null }) };
    if (withdrawn === null || isFinal(state) || state === "missing") return said;
    return { ...said, state: "withdrawn", round: roundAt(said, withdrawn.at), due: null };
  }

  /** Keeps a device's round, if it has one that must be remembered. */
  #putRound(cached: CachedTally, device: string, { state, round, attempt, due }: Standing): void {
    const { channel, event } = cached;
    if (state !== "deferred" && (!cached.hasRounds || this.#rounds.of(channel, event, device) === null)) return;
    cached.hasRounds = true;
    this.#rounds.put(channel, event, device, { round, attempt, due });
  }

  /** Why the final word of a device was late; null: it was not. */
  #lateReason({ deadline, withdrawn, channel, event }: CachedTally, device: string): LateReason | null {
    if (deadline === null && withdrawn === null) return null;
    this.write();
    const said = this.#file.get<{ late: number }>(
      `SELECT r.late FROM latest l JOIN receipts r ON r.channel = l.channel AND r.seq = l.receipt
       WHERE l.channel = ?1 AND l.event = ?2 AND l.device = ?3`,
      channel,
      event,
      device,
    );
    return said && said.late > 0 ? LATE_REASONS[said.late - 1]! : null;
  }

  /** Returns where a device stands, with the deadline applied: past it, a device that owes a final receipt is recorded as missing now. */
  #applyDeadline(channel: Channel, cached: CachedTally, device: string, before: Standing, now: number): Standing {
    const { deadline, withdrawn } = cached;
    if (deadline === null || deadline > now || withdrawn !== null) return before;
    if (before.state === "missing" || isFinal(before.state)) return before;
    return this.#appendMissing(channel, cached, device, null, now);
  }

  /** A device that deferred the event is missing in the round that had begun by the deadline. */
  #appendMissing(channel: Channel, cached: CachedTally, device: string, detail: string | null, now: number): Standing {
    const before = this.#standing(cached, device);
    const round = roundAt(before, Math.min(now, cached.deadline ?? now));
    const standing: Standing = { state: "missing", round, attempt: before.attempt, due: null };
    this.#tallies.step(cached, device, before.state, "missing", MISSING);
    this.#attention.recorded(channel, cached, device, before.state, "missing");
    this.#putRound(cached, device, standing);
    const { event } = cached;
    const { attempt } = standing;
    this.#keep(channel, {
      event,
      device,
      status: "missing",
      detail,
      at: now,
      deviceAt: null,
      late: null,
      round,
      attempt,
    });
    return standing;
  }

  /** If every device has a final word now, says so, with the device whose receipt or retirement completed the event. */
  #completeIfDone(channel: Channel, cached: CachedTally, device: string, now: number): void {
    if (cached.withdrawn !== null || !isComplete(cached.tally)) return;
    this.#note(channel, cached, { kind: "complete", tally: { ...cached.tally } }, device, now);
    this.#settle(channel, cached, device, now);
  }

  /** The deadline of an event has nothing more to do. The first time, says that the event is settled. */
  #settle(channel: Channel, cached: CachedTally, device: string, now: number): void {
    if (cached.deadline === null) return;
    const isFirst = this.#file.run(
      "DELETE FROM deadlines WHERE at = ?1 AND channel = ?2 AND event = ?3",
      cached.deadline,
      channel.id,
      cached.event,
    );
    if (isFirst > 0) this.#note(channel, cached, { kind: "settled", tally: { ...cached.tally } }, device, now);
  }

  /** Appends a note on an event as a whole. */
  #note(channel: Channel, { event }: CachedTally, note: EventNote, device: string, at: number): void {
    const seq = ++channel.receiptsHead;
    this.#receiptRows.push(channel.id, seq, event, device, 0, at, null, 0, null, null, null, noteColumn(note));
    this.#onReceipt(channel, { ...NOTE, seq, event, device, at, note });
  }

  /** Appends an entry to the receipts log and updates the device's state. */
  #keep(channel: Channel, receipt: Omit<Receipt, "seq" | "late" | "note"> & { late: LateReason | null }): void {
    const { event, device, status, detail, at, deviceAt, late, round, attempt } = receipt;
    const seq = ++channel.receiptsHead;
    const code = stateCode(status);
    const most = usual(status);
    this.#receiptRows.push(
      channel.id,
      seq,
      event,
      device,
      code,
      at,
      deviceAt,
      late === null ? 0 : LATE_REASONS.indexOf(late) + 1,
      detail,
      round === most.round ? null : round,
      attempt === most.attempt ? null : attempt,
      null,
    );
    this.#latestRows.push(channel.id, event, device, code, seq);
    this.#onReceipt(channel, { ...receipt, seq, late: late !== null, note: null });
  }

  /**
   * Withdraws an event that is not complete, and says so.
   * @param by the `seq` of the event that supersedes it; null: none
   */
  withdraw(
    channel: Channel,
    cached: CachedTally,
    {
      reason,
      by,
      note,
      to,
      hasWhere,
    }: {
      reason: EndReason;
      by: number | null;
      note: string | null;
      to: readonly string[] | null;
      hasWhere: boolean;
    },
    now: number,
  ): ControlEntry {
    const { event, tally, expires } = cached;
    const isAnswered = tally.received + tally.working + tally.deferred + tally.done + tally.failed > 0;
    const withdrawal = { seq: ++channel.head, at: now, reason, by, note };
    this.#attention.withdrawn(channel, cached);
    this.#tallies.end(cached, withdrawal);
    const control = this.#controls.add(channel, { seq: event, to, expires, hasWhere }, withdrawal, isAnswered);
    this.#note(channel, cached, { kind: "withdrawn", tally: { ...tally }, withdrawal }, "", now);
    this.#note(channel, cached, { kind: "complete", tally: { ...tally } }, "", now);
    this.#settle(channel, cached, "", now);
    return control;
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

  /** Whether an event is for named devices. @param event in the channel, and not yet deleted by retention */
  isTargeted(channel: Channel, event: number): boolean {
    return this.#tallies.of(channel, event)?.targeted ?? false;
  }

  /** How an event was withdrawn; null: it was not. `control`: it is a control entry. */
  withdrawal(channel: Channel, event: number) {
    const cached = this.#tallies.of(channel, event);
    return cached ? cached.withdrawn : "control";
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
  standing(channel: Channel, event: number): EventStanding {
    const { tally } = this.#tallies.of(channel, event)!;
    return { owed: outstandingOf(tally), answered: tally.done + tally.failed };
  }

  /** How many devices of an event owe a final receipt. */
  outstanding(channel: Channel, event: number): number {
    const cached = this.#tallies.of(channel, event);
    return cached ? outstandingOf(cached.tally) : 0;
  }

  // -------------------------------------------------------------------------------------------------------- retirement and deadlines

  /**
   * Removes a retired device from an event's audience. If the deadline had passed before it was retired, it is recorded as missing first. If the
   * removal completes the event, the log gets an entry that says so.
   */
  release(channel: Channel, event: number, { device, at }: Leaving, now: number): void {
    const cached = this.#tallies.of(channel, event)!;
    const { state } = this.#applyDeadline(channel, cached, device, this.#standing(cached, device), at);
    this.#tallies.release(cached, state);
    this.#attention.released(channel, cached);
    if (cached.hasRounds) this.#rounds.drop(channel.id, event, device);
    this.#completeIfDone(channel, cached, device, now);
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

  /** Before an event is withdrawn: its deadline, if it has passed, makes missing whom it can in one slice. True: there are more. */
  missBefore(channel: Channel, { event, deadline }: CachedTally, now: number): boolean {
    return deadline !== null && deadline <= now && this.missSome(channel, event, deadline, null, now) > MISS_DEVICES;
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
    const cached = event > channel.floor ? this.#tallies.of(channel, event) : null;
    for (const device of owing) this.#appendMissing(channel, cached!, device, detail, now);
    const where = "at = ?1 AND channel = ?2 AND event = ?3";
    if (looked === MISS_DEVICES)
      this.#file.run(`UPDATE deadlines SET after = ?4 WHERE ${where}`, deadline, channel.id, event, last);
    else if (cached && !isComplete(cached.tally)) this.#settle(channel, cached, "", now);
    else this.#file.run(`DELETE FROM deadlines WHERE ${where}`, deadline, channel.id, event);
    return looked + 1;
  }

  /** Among the next devices of an event's audience, by name: those that owe a final receipt and are not missing yet. */
  #owing(channel: Channel, event: number, from: string) {
    const nobody = { looked: 0, last: from, owing: [] };
    if (event <= channel.floor) return nobody;
    const { tally } = this.#tallies.of(channel, event)!;
    if (outstandingOf(tally) === tally.missing) return nobody;
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
    const owing = this.#file.all<{ device: string }>(
      `SELECT a.device FROM
       (SELECT device FROM ${devices} ${addressed} AND device > ?3 AND device <= ?4) a
       LEFT JOIN latest l ON l.channel = ?1 AND l.event = ?2 AND l.device = a.device
       WHERE coalesce(l.status, 0) NOT IN (${MISSING}, ${FINAL}) ORDER BY a.device`,
      channel.id,
      event,
      from,
      last,
    );
    return { looked, last, owing: owing.map(({ device }) => device) };
  }
}
