/**
 * The words of a PERE file: what devices said of events, and what the server had to say for those who kept silent.
 *
 * A word moves three things at once: the receipts log gets an entry, `latest` says where the device stands now, and the event's tally moves
 * with it. So a tally is never counted, and always right. That an event is complete is an entry of its own, right behind the one that made it so.
 *
 * A deadline holds from the moment it passes, whoever has looked at it by then: where a device owes an event a word past its deadline, `missing` is
 * recorded before anything else is said of the two.
 * All functions run within a transaction, and move the counters of the channel they are given. Rows are gathered and written many to a
 * statement: who reads `receipts` or `latest` in the same transaction calls `write` before.
 */
import type { CachedTally, TallyCache } from "./tallies.ts";
import type { SqliteFile } from "./group-commit.ts";
import type { Enrolments, Enrolment } from "./enrolments.ts";
import { FINAL, type Outcome, type Receipt, type ReceiptDraft, rank } from "../model.ts";
import { type Channel, isLeaving, type Leaving } from "./schema.ts";
import type { Verdict } from "../store.ts";

/** Devices that one statement looks at. */
const MISS_DEVICES = 500;
/** Rows that one slice of deadlines touches, about. */
const MISS_ROWS = 2_000;
/** What an event costs beside its rows: some statements, as long as so many rows. */
const EVENT_ROWS = 20;
const MISSING = rank("missing");
/** Rows that one statement inserts: the most that there are rows for. A row among 32 costs half of one alone. */
const ROWS_A_STATEMENT = [32, 8, 1] as const;

/** The statements that insert rows of so many columns, the largest first. */
const inserts = (into: string, columns: number) =>
  ROWS_A_STATEMENT.map((rows) => {
    const row = `(${Array(columns).fill("?").join()})`;
    return { sql: `${into} VALUES ${Array(rows).fill(row).join()}`, values: rows * columns };
  });
const INSERT_RECEIPTS = inserts("INSERT INTO receipts", 11);
const INSERT_LATEST = inserts("INSERT OR REPLACE INTO latest", 5);

/** What a column holds. */
type Value = string | number | null;

const outcome = ({ tally: { done, failed } }: CachedTally): Outcome => ({ done, failed });
/** How many devices an event is waiting for. */
const owed = ({ tally: { addressed, done, failed } }: CachedTally): number => addressed - done - failed;

export class Receipts {
  readonly #file: SqliteFile;
  readonly #enrolments: Enrolments;
  readonly #answers: TallyCache;
  /** Rows of `receipts` and of `latest` to be written, value by value. */
  #receipts: Value[] = [];
  #latest: Value[] = [];
  /** Told of each entry of a receipts log. */
  readonly #told: (channel: Channel, receipt: Receipt) => void;

  constructor(
    file: SqliteFile,
    enrolments: Enrolments,
    answers: TallyCache,
    told: (channel: Channel, receipt: Receipt) => void,
  ) {
    this.#file = file;
    this.#enrolments = enrolments;
    this.#answers = answers;
    this.#told = told;
  }

  // ---------------------------------------------------------------------------------------------------------- what they said

  /** A device's word, counted when it moves the device forward. @param now the server's time, milliseconds since 1970 */
  record(channel: Channel, draft: ReceiptDraft, now: number): Verdict {
    const { device, status, detail, deviceAt } = draft;
    const event = draft.event.seq;
    if (draft.event.epoch !== channel.epoch || event <= channel.floor || event > channel.head) return "unknown";
    const answer = this.#answers.of(channel, event);
    const said = this.#answers.rank(answer, device);
    if (said >= FINAL) return "duplicate";
    const stint = this.#enrolments.enrolment(channel, device);
    if (!this.#isAddressed(channel, answer, device, stint)) return "unaddressed";
    const before = this.#judge(channel, answer, device, said, now);
    if (rank(status) <= before) return "duplicate";
    this.#answers.step(answer, device, before, rank(status));
    const late = before === MISSING;
    this.#keep(channel, { event, device, status, detail, at: now, deviceAt, late, completes: null });
    if (rank(status) >= FINAL && owed(answer) === 0) this.#complete(channel, answer, device, now);
    if (stint !== null && stint.lost > 0 && stint.told === stint.lost) this.#enrolments.answered(channel, device);
    return "recorded";
  }

  /** Where a device of an event's audience stands, by the deadline too: past it, who owes a final word is recorded as missing here and now. */
  #judge(channel: Channel, answer: CachedTally, device: string, before: number, now: number): number {
    if (answer.deadline === null || answer.deadline > now || before >= MISSING) return before;
    this.#miss(channel, answer, device, before, null, now);
    return MISSING;
  }

  #miss(
    channel: Channel,
    answer: CachedTally,
    device: string,
    before: number,
    detail: string | null,
    now: number,
  ): void {
    this.#answers.step(answer, device, before, MISSING);
    const said = { event: answer.event, device, status: "missing", detail } as const;
    this.#keep(channel, { ...said, at: now, deviceAt: null, late: false, completes: null });
  }

  /** The entry that says that an event is complete, with the device whose word or leaving made it so. */
  #complete(channel: Channel, answer: CachedTally, device: string, now: number): void {
    const nothing = { status: "pending", detail: null, deviceAt: null, late: false } as const;
    this.#keep(channel, { event: answer.event, device, ...nothing, at: now, completes: outcome(answer) });
  }

  /** An entry of the receipts log; and where its device stands from now on, unless it only tells that the event is complete. */
  #keep(channel: Channel, word: Omit<Receipt, "seq">): void {
    const { event, device, status, detail, at, deviceAt, late, completes } = word;
    const seq = ++channel.receiptsHead;
    const place = rank(status);
    const [done, failed] = completes ? [completes.done, completes.failed] : [null, null];
    this.#receipts.push(channel.id, seq, event, device, place, at, deviceAt, late ? 1 : 0, detail, done, failed);
    if (status !== "pending") this.#latest.push(channel.id, event, device, place, seq);
    this.#told(channel, { seq, event, device, status, detail, at, deviceAt, late, completes });
  }

  /** Writes the rows that were gathered. */
  write(): void {
    if (this.#receipts.length === 0) return;
    this.#insert(INSERT_RECEIPTS, this.#receipts);
    this.#insert(INSERT_LATEST, this.#latest);
    this.undo();
  }

  #insert(statements: ReturnType<typeof inserts>, gathered: readonly Value[]): void {
    let from = 0;
    for (const { sql, values } of statements)
      for (; from + values <= gathered.length; from += values)
        this.#file.run(sql, ...gathered.slice(from, from + values));
  }

  /** Forgets the rows that were gathered. */
  undo(): void {
    this.#receipts = [];
    this.#latest = [];
  }

  isTargeted(channel: Channel, event: number): boolean {
    return this.#answers.of(channel, event).targeted;
  }

  #isAddressed(channel: Channel, { event, targeted }: CachedTally, device: string, stint: Enrolment | null): boolean {
    if (!targeted) return stint !== null && stint.joined < event;
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

  /** How many of an event's devices owe a final word. */
  owed(channel: Channel, event: number): number {
    return owed(this.#answers.of(channel, event));
  }

  // -------------------------------------------------------------------------------------------------------- who left, who is missing

  /**
   * A device owes no word on an event any more, because it left. Where the deadline had passed by then, it is missing before. Where its leaving
   * completes the event, the log says so.
   */
  release(channel: Channel, event: number, { device, at }: Leaving, before: number, now: number): void {
    const answer = this.#answers.of(channel, event);
    this.#answers.release(answer, this.#judge(channel, answer, device, before, at));
    if (owed(answer) === 0) this.#complete(channel, answer, device, now);
  }

  /**
   * A slice of the deadlines that have passed.
   * @param find the channel of this id; @param release takes who leaves a channel out of some of its events
   * @returns when to go on, or null: no deadline is ahead
   */
  miss(find: (id: number) => Channel, release: (channel: Channel) => unknown, now: number): number | null {
    for (let work = 0; ;) {
      const due = this.#file.get<{ at: number; channel: number; event: number }>(
        "SELECT at, channel, event FROM deadlines ORDER BY at LIMIT 1",
      );
      if (!due || due.at > now || work >= MISS_ROWS) return due?.at ?? null;
      const channel = find(due.channel);
      if (isLeaving(channel, due.event)) {
        release(channel); // Who was retired before owes nothing.
        return due.at;
      }
      work += EVENT_ROWS + this.missSome(channel, due.event, due.at, null, now);
    }
  }

  /**
   * Some of an event's devices that owe a final word are recorded as missing; after the last ones its deadline is no more.
   * @param detail a JSON text, or null
   * @returns how many devices were looked at; 0: the event has no deadline, or none any more
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
    const answer = owing.length > 0 ? this.#answers.of(channel, event) : null;
    for (const { device, status } of owing) this.#miss(channel, answer!, device, status, detail, now);
    const place = "at = ?1 AND channel = ?2 AND event = ?3";
    if (looked < MISS_DEVICES) this.#file.run(`DELETE FROM deadlines WHERE ${place}`, deadline, channel.id, event);
    else this.#file.run(`UPDATE deadlines SET after = ?4 WHERE ${place}`, deadline, channel.id, event, last);
    return looked + 1;
  }

  /** Of the next devices of an event's audience, by name: those that owe a final word and are not missing yet. */
  #owing(channel: Channel, event: number, from: string) {
    const nobody = { looked: 0, last: from, owing: [] };
    if (event <= channel.floor) return nobody;
    const answer = this.#answers.of(channel, event);
    if (owed(answer) === answer.tally.missing) return nobody;
    this.write();
    const audience = this.isTargeted(channel, event)
      ? "targets WHERE channel = ?1 AND event = ?2"
      : `devices WHERE channel = ?1 AND "left" IS NULL AND joined < ?2`;
    const { looked, last } = this.#file.get<{ looked: number; last: string | null }>(
      `SELECT count(*) AS looked, max(device) AS last FROM
       (SELECT device FROM ${audience} AND device > ?3 ORDER BY device LIMIT ${MISS_DEVICES})`,
      channel.id,
      event,
      from,
    )!;
    if (last === null) return nobody;
    const owing = this.#file.all<{ device: string; status: number }>(
      `SELECT a.device, coalesce(l.status, 0) AS status FROM
       (SELECT device FROM ${audience} AND device > ?3 AND device <= ?4) a
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
