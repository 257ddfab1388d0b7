/**
 * Control entries of the events log, and the options that few events have: `controls` and `options` beside `events`.
 *
 * An event is read with a few statements per page, not per event: one for its own row, and one each for what the two other tables have in that range.
 */
import type { SqliteFile } from "./file.ts";
import type { ControlEntry, EndReason, Event, Withdrawal } from "../model.ts";
import { type Channel, NOT_WITHDRAWN } from "./schema.ts";

interface ControlRow {
  seq: number;
  event: number;
  at: number;
  reason: EndReason;
  by: number | null;
  note: string | null;
  targeted: number;
  expires: number | null;
  answered: number;
}

/** What few events have. */
type Options = Pick<Event, "key" | "attempts" | "where" | "again">;

/** Keyed events that one read looks at to find the newest of each key. */
const LOOKED_AT = 1_000;

const withdrawalOf = ({ seq, at, reason, by, note }: ControlRow): Withdrawal => ({ seq, at, reason, by, note });

export class Controls {
  readonly #file: SqliteFile;
  /** The names that an event is addressed to. */
  readonly #targets: (channel: Channel, event: number) => string[];

  constructor(file: SqliteFile, targets: (channel: Channel, event: number) => string[]) {
    this.#file = file;
    this.#targets = targets;
  }

  /** How an event was withdrawn; null: it was not. */
  withdrawal(channel: number, event: number): Withdrawal | null {
    const row = this.#file.get<ControlRow>("SELECT * FROM controls WHERE channel = ?1 AND event = ?2", channel, event);
    return row && withdrawalOf(row);
  }

  /** Appends the control entry of an event. */
  add(
    channel: Channel,
    event: Pick<Event, "seq" | "to" | "expires"> & { readonly hasWhere: boolean },
    { seq, at, reason, by, note }: Withdrawal,
    isAnswered: boolean,
  ): ControlEntry {
    channel.controls++;
    this.#file.run(
      "INSERT INTO controls VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
      channel.id,
      seq,
      event.seq,
      at,
      reason,
      by,
      note,
      event.hasWhere ? 2 : event.to === null ? 0 : 1,
      event.expires,
      isAnswered ? 1 : 0,
      ++channel.lastControl,
    );
    const { to, expires, hasWhere } = event;
    return { seq, at, reason, by, note, withdraws: event.seq, to, expires, hasWhere, isAnswered };
  }

  /** Control entries after `after`, oldest first. */
  after(channel: Channel, after: number, limit: number): ControlEntry[] {
    if (channel.controls === 0) return [];
    return this.#file
      .all<ControlRow>(
        "SELECT * FROM controls WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        channel.id,
        after,
        limit,
      )
      .map((row) => ({
        ...withdrawalOf(row),
        withdraws: row.event,
        to: row.targeted !== 1 ? null : row.event > channel.floor ? this.#targets(channel, row.event) : [],
        expires: row.expires,
        hasWhere: row.targeted === 2,
        isAnswered: row.answered === 1,
      }));
  }

  /** When control entries after `after` were stored, oldest first. */
  times(channel: Channel, after: number, limit: number): { readonly seq: number; readonly at: number }[] {
    if (channel.controls === 0) return [];
    return this.#file.all(
      "SELECT seq, at FROM controls WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
      channel.id,
      after,
      limit,
    );
  }

  /** The withdrawals of events from `first` to `last`, by the event's `seq`. */
  marks(channel: Channel, first: number, last: number): Map<number, Withdrawal> {
    if (channel.controls === 0) return new Map();
    const rows = this.#file.all<ControlRow>(
      "SELECT * FROM controls WHERE channel = ?1 AND event BETWEEN ?2 AND ?3",
      channel.id,
      first,
      last,
    );
    return new Map(rows.map((row) => [row.event, withdrawalOf(row)]));
  }

  // -------------------------------------------------------------------------------------------------------------- options

  addOptions(channel: Channel, event: number, { key, attempts, again, where }: Options): void {
    if (key === null && attempts === null && again === undefined && where === null) return;
    this.#file.run(
      `INSERT INTO options (channel, event, key, attempts, again, "where") VALUES (?1, ?2, ?3, ?4, ?5, ?6)`,
      channel.id,
      event,
      key,
      attempts,
      again ?? null,
      where,
    );
  }

  /** The options of events from `first` to `last` that have some, by the event's `seq`. */
  options(channel: number, first: number, last: number): Map<number, Options> {
    const rows = this.#file.all<{
      event: number;
      key: string | null;
      attempts: number | null;
      again: number | null;
      where: string | null;
    }>(
      `SELECT event, key, attempts, again, "where" FROM options WHERE channel = ?1 AND event BETWEEN ?2 AND ?3`,
      channel,
      first,
      last,
    );
    return new Map(
      rows.map(({ event, key, attempts, again, where }) => [
        event,
        { key, attempts, where, ...(again === null ? {} : { again }) },
      ]),
    );
  }

  /** The newest kept event with this key. All older ones are complete or withdrawn. */
  newestOf(channel: Channel, key: string): number | null {
    return (
      this.#file.get<{ event: number }>(
        "SELECT event FROM options WHERE channel = +?1 AND key = +?2 AND event > ?3 ORDER BY event DESC LIMIT 1",
        channel.id,
        key,
        channel.floor,
      )?.event ?? null
    );
  }

  /** The events of `Store.latestOfKeys`, by number. Events with a key are never among the recent ones. `upTo`: all up to there are among them. */
  latest(
    channel: Channel,
    { device, joined }: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    now: number,
  ): { seqs: number[]; upTo: number } {
    const from = Math.max(after, channel.floor);
    const looked = this.#file.get<{ event: number }>(
      `SELECT event FROM options WHERE channel = +?1 AND event > ?2 AND event <= ?3 ORDER BY event LIMIT 1 OFFSET ${LOOKED_AT - 1}`,
      channel.id,
      from,
      head,
    );
    const upTo = looked?.event ?? head;
    const left = device !== null && channel.leaving?.device === device ? channel.leaving.upTo : 0;
    const fits = `(e.expires IS NULL OR e.expires > ?6) AND CASE e.targeted WHEN 0 THEN e.seq > ?5 ELSE e.seq > ?8 AND EXISTS
      (SELECT 1 FROM targets t WHERE t.channel = e.channel AND t.event = e.seq AND t.device = ?4) END AND ${NOT_WITHDRAWN}`;
    const seqs = this.#file
      .all<{ event: number }>(
        `SELECT o.event FROM options o CROSS JOIN main.events e ON e.channel = o.channel AND e.seq = o.event
         WHERE o.channel = +?1 AND o.event > ?2 AND o.event <= ?3 AND o.key IS NOT NULL AND ${fits} AND NOT EXISTS
         (SELECT 1 FROM options n CROSS JOIN main.events e ON e.channel = n.channel AND e.seq = n.event
          WHERE n.channel = o.channel AND n.key = o.key AND n.event > o.event AND n.event <= ?7 AND ${fits})
         ORDER BY o.event LIMIT ?9`,
        channel.id,
        from,
        upTo,
        device,
        joined,
        now,
        head,
        left,
        limit,
      )
      .map(({ event }) => event);
    return { seqs, upTo: seqs.length === limit ? seqs.at(-1)! : upTo };
  }
}
