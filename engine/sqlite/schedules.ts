/**
 * Scheduled pushes in a SQLite file. All functions that write run in a transaction.
 */
import { id as idOf, parsePosition } from "../model.ts";
import {
  type DueTime,
  page,
  type Page,
  type Schedule,
  type ScheduleDraft,
  SCHEDULE_KEPT_MS,
  SCHEDULES_MAX,
  tooManySchedules,
} from "../store.ts";
import type { SqliteFile } from "./file.ts";
import type { Channel } from "./schema.ts";

interface ScheduleRow {
  id: string;
  options: string;
  data: string;
  every: string | null;
  tz: string | null;
  next: number | null;
  last: string | null;
  error: string | null;
}

const SCHEDULES = "SELECT id, options, data, every, tz, next, last, error FROM schedules";
/** Old schedules that one call deletes. */
const DELETED_MAX = 100;

const scheduleOf = ({ options, last, ...row }: ScheduleRow): Schedule => ({
  ...row,
  options: JSON.parse(options) as Record<string, string>,
  last: last === null ? null : parsePosition(last),
});

export class ScheduleRows {
  readonly #file: SqliteFile;

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  get(channel: Channel, id: string): Schedule | null {
    const row = this.#file.get<ScheduleRow>(`${SCHEDULES} WHERE channel = ?1 AND id = ?2`, channel.id, id);
    return row && scheduleOf(row);
  }

  list(channel: Channel, after: string, limit: number): Page<Schedule, string> {
    const sql = `${SCHEDULES} WHERE channel = ?1 AND id > ?2 ORDER BY id LIMIT ?3`;
    const rows = this.#file.all<ScheduleRow>(sql, channel.id, after, limit + 1);
    return page(rows.map(scheduleOf), limit, ({ id }) => id);
  }

  /** Whether the channel has any. */
  has(channel: Channel): boolean {
    return this.#file.get("SELECT 1 FROM schedules WHERE channel = ?1 LIMIT 1", channel.id) !== null;
  }

  /** How many of the channel's are to come. */
  ahead(channel: Channel): number {
    return this.#file.get<{ count: number }>(
      "SELECT count(*) AS count FROM schedules WHERE channel = ?1 AND next IS NOT NULL",
      channel.id,
    )!.count;
  }

  /** @throws PereError refused: the channel has the maximum number of pushes to come */
  put(channel: Channel, draft: ScheduleDraft, next: number): Schedule {
    const { id, options, data, every, tz } = draft;
    if (this.ahead(channel) >= SCHEDULES_MAX) throw tooManySchedules(channel.name);
    this.#file.run(
      "INSERT INTO schedules VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL, NULL, NULL)",
      channel.id,
      id,
      JSON.stringify(options),
      data,
      every,
      tz,
      next,
    );
    return { ...draft, next, last: null, error: null };
  }

  drop(channel: Channel, id: string): boolean {
    return this.#file.run("DELETE FROM schedules WHERE channel = ?1 AND id = ?2", channel.id, id) > 0;
  }

  /** Uses a due time, with the event that is pushed or the reason why there is none. False: it was used, or there is no such schedule. */
  use(channel: Channel, { id, due, next }: DueTime, event: number | null, error: string | null, now: number): boolean {
    const changes = this.#file.run(
      `UPDATE schedules SET next = ?4, last = coalesce(?5, last), error = ?6, doneAt = CASE WHEN ?4 IS NULL THEN ?7 END
       WHERE channel = ?1 AND id = ?2 AND next = ?3`,
      channel.id,
      id,
      due,
      next,
      event === null ? null : idOf(channel.epoch, event),
      error,
      now,
    );
    return changes > 0;
  }

  due(now: number, limit: number): { due: { channel: string; schedule: Schedule }[]; next: number | null } {
    const rows = this.#file.all<ScheduleRow & { channel: string }>(
      `SELECT c.name AS channel, s.id, s.options, s.data, s.every, s.tz, s.next, s.last, s.error FROM schedules s INDEXED BY dueSchedules
       JOIN channels c ON c.id = s.channel WHERE s.next <= ?1 ORDER BY s.next LIMIT ?2`,
      now,
      limit,
    );
    const next = this.#file.get<{ next: number | null }>(
      "SELECT min(next) AS next FROM schedules INDEXED BY dueSchedules WHERE next IS NOT NULL",
    )!;
    return { due: rows.map(({ channel, ...row }) => ({ channel, schedule: scheduleOf(row) })), ...next };
  }

  /** Deletes some of those that were done long ago. @returns the names of their channels, and whether there are more */
  deleteOld(now: number): { channels: string[]; isMore: boolean } {
    const old = this.#file.all<{ channel: number; name: string; id: string }>(
      `SELECT s.channel, c.name, s.id FROM schedules s JOIN channels c ON c.id = s.channel
       WHERE s.doneAt < ?1 ORDER BY s.doneAt LIMIT ${DELETED_MAX}`,
      now - SCHEDULE_KEPT_MS,
    );
    for (const { channel, id } of old)
      this.#file.run("DELETE FROM schedules WHERE channel = ?1 AND id = ?2", channel, id);
    return { channels: [...new Set(old.map(({ name }) => name))], isMore: old.length === DELETED_MAX };
  }
}
