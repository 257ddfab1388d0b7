/**
 * The words of a PERE file: what devices said of events, and what the server had to say for those who kept silent.
 *
 * A word moves three things at once: the receipts log gets an entry, `latest` says where the device stands now, and the event's tally moves
 * with it. So a tally is never counted, and always right. The entry with which an event became complete says so.
 * All functions run within a transaction, and move the counters of the channel they are given.
 */
import type { SqliteFile } from "./commit.ts";
import type { Enrolments, Stint } from "./enrolments.ts";
import { FINAL, type Outcome, type Receipt, type ReceiptDraft, rank, type State, STATES } from "./model.ts";
import type { Channel } from "./schema.ts";
import type { Verdict } from "./store.ts";

/** Devices that one statement looks at. */
const MISS_DEVICES = 500;
/** Rows that one slice of deadlines touches, about. */
const MISS_ROWS = 2_000;
const MISSING = rank("missing");

/** How many devices an event is waiting for, and what the others said. */
interface Standing extends Outcome {
  readonly owed: number;
}

export class Words {
  readonly #file: SqliteFile;
  readonly #enrolments: Enrolments;
  /** Told of each entry of a receipts log. */
  readonly #told: (channel: Channel, receipt: Receipt) => void;

  constructor(file: SqliteFile, enrolments: Enrolments, told: (channel: Channel, receipt: Receipt) => void) {
    this.#file = file;
    this.#enrolments = enrolments;
    this.#told = told;
  }

  // ---------------------------------------------------------------------------------------------------------- what they said

  /** A device's word, counted when it moves the device forward. @param now the server's time, milliseconds since 1970 */
  record(channel: Channel, draft: ReceiptDraft, now: number): Verdict {
    const { device, status, detail, deviceAt } = draft;
    const event = draft.event.seq;
    if (draft.event.epoch !== channel.epoch || event <= channel.floor || event > channel.head) return "unknown";
    const before =
      this.#file.get<{ status: number }>(
        "SELECT status FROM latest WHERE channel = ?1 AND event = ?2 AND device = ?3",
        channel.id,
        event,
        device,
      )?.status ?? 0;
    if (before >= FINAL) return "duplicate";
    const stint = this.#enrolments.stint(channel, device);
    if (!this.#isAddressed(channel, event, device, stint)) return "unaddressed";
    if (rank(status) <= before) return "duplicate";
    const { owed, ...outcome } = this.#move(channel, event, status, before);
    const completes = rank(status) >= FINAL && owed === 0 ? outcome : null;
    const late = before === MISSING;
    this.#keep(channel, { event, device, status, detail, at: now, deviceAt, late, completes });
    if (stint !== null && stint.lost > 0 && stint.told === stint.lost)
      this.#file.run(
        `UPDATE devices SET lost = 0 WHERE channel = ?1 AND device = ?2 AND "left" IS NULL`,
        channel.id,
        device,
      );
    return "recorded";
  }

  /** One device's step in the tally. */
  #move(channel: Channel, event: number, status: State, before: number): Standing {
    const leaves = before === 0 ? "" : `, ${STATES[before]} = ${STATES[before]} - 1`;
    return this.#file.get<Standing>(
      `UPDATE tallies SET ${status} = ${status} + 1${leaves} WHERE channel = ?1 AND event = ?2
       RETURNING addressed - done - failed AS owed, done, failed`,
      channel.id,
      event,
    )!;
  }

  /** An entry of the receipts log; and where its device stands from now on, unless it only tells that the event is complete. */
  #keep(channel: Channel, word: Omit<Receipt, "seq">): void {
    const { event, device, status, detail, at, deviceAt, late, completes } = word;
    const seq = ++channel.receiptsHead;
    this.#file.run(
      "INSERT INTO receipts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
      channel.id,
      seq,
      event,
      device,
      rank(status),
      at,
      deviceAt,
      late ? 1 : 0,
      detail,
      completes?.done ?? null,
      completes?.failed ?? null,
    );
    if (status !== "pending")
      this.#file.run(
        "INSERT OR REPLACE INTO latest VALUES (?1, ?2, ?3, ?4, ?5)",
        channel.id,
        event,
        device,
        rank(status),
        seq,
      );
    this.#told(channel, { seq, ...word });
  }

  isTargeted(channel: Channel, event: number): boolean {
    return (
      this.#file.get<{ targeted: number }>(
        "SELECT targeted FROM events WHERE channel = ?1 AND seq = ?2",
        channel.id,
        event,
      )!.targeted === 1
    );
  }

  #isAddressed(channel: Channel, event: number, device: string, stint: Stint | null): boolean {
    if (!this.isTargeted(channel, event)) return stint !== null && stint.joined < event;
    return (
      this.#file.get(
        "SELECT 1 FROM targets WHERE channel = ?1 AND event = ?2 AND device = ?3",
        channel.id,
        event,
        device,
      ) !== null
    );
  }

  // -------------------------------------------------------------------------------------------------------- who left, who is missing

  /** A device owes no word on an event any more, for it left. Where that completes the event, the log says so. */
  release(channel: Channel, event: number, device: string, before: number, now: number): void {
    const leaves = before === 0 ? "" : `, ${STATES[before]} = ${STATES[before]} - 1`;
    const { owed, ...completes } = this.#file.get<Standing>(
      `UPDATE tallies SET addressed = addressed - 1${leaves} WHERE channel = ?1 AND event = ?2
       RETURNING addressed - done - failed AS owed, done, failed`,
      channel.id,
      event,
    )!;
    if (owed > 0) return;
    const nothing = { status: "pending", detail: null, deviceAt: null, late: false } as const;
    this.#keep(channel, { event, device, ...nothing, at: now, completes });
  }

  /** A slice of the deadlines that have passed. @param find the channel of this id; @returns when to go on, or null: no deadline is ahead */
  miss(find: (id: number) => Channel, now: number): number | null {
    for (let work = 0; ;) {
      const due = this.#file.get<{ at: number; channel: number; event: number }>(
        "SELECT at, channel, event FROM deadlines ORDER BY at LIMIT 1",
      );
      if (!due || due.at > now || work >= MISS_ROWS) return due?.at ?? null;
      work += 1 + this.missSome(find(due.channel), due.event, due.at, null, now);
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
    for (const { device, status } of owing) {
      this.#move(channel, event, "missing", status);
      this.#keep(channel, {
        event,
        device,
        status: "missing",
        detail,
        at: now,
        deviceAt: null,
        late: false,
        completes: null,
      });
    }
    const place = "at = ?1 AND channel = ?2 AND event = ?3";
    if (looked < MISS_DEVICES) this.#file.run(`DELETE FROM deadlines WHERE ${place}`, deadline, channel.id, event);
    else this.#file.run(`UPDATE deadlines SET after = ?4 WHERE ${place}`, deadline, channel.id, event, last);
    return looked + 1;
  }

  /** Of the next devices of an event's audience, by name: those that owe a final word and are not missing yet. */
  #owing(channel: Channel, event: number, from: string) {
    const nobody = { looked: 0, last: from, owing: [] };
    const standing = this.#file.get<{ owed: number }>(
      "SELECT addressed - done - failed - missing AS owed FROM tallies WHERE channel = ?1 AND event = ?2",
      channel.id,
      event,
    );
    if (event <= channel.floor || !standing || standing.owed === 0) return nobody;
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
