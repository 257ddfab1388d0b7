/**
 * When a scheduled push is due: the parsing of `at`, `every` and `tz`, and the next time of a cron expression in a time zone.
 *
 * An expression with fixed hours is read on the wall clock of its zone. When the clock goes forward, a time that does not exist is due at the jump;
 * when it goes back, a time that comes twice is due at the first. An expression whose hours are `*` counts elapsed time, so that "every 20 minutes"
 * has neither a gap nor a heap there.
 */
import { Cron } from "croner";
import { PereError } from "../model.ts";

/** Names a field, says what is wrong with it and how it should be. */
const fault = (code: "malformed" | "refused", path: string, message: string): PereError =>
  new PereError(code, `${path}: ${message}`, [{ path, message }]);

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)$/;
const FIELDS = /^[0-9A-Za-z*,/?#-]+( +[0-9A-Za-z*,/?#-]+){4}$/;
const ZONE = /^[A-Za-z][A-Za-z0-9_+/-]{0,63}$/;
/** The second field of an expression that counts elapsed time. */
const ANY_HOUR = /^\S+ +\*/;

const cron = (every: string, timezone: string): Cron => new Cron(every, { timezone, mode: "5-part", paused: true });

/** A time with its zone, in milliseconds since 1970. @throws PereError malformed */
export function readAt(text: string): number {
  try {
    if (TIME.test(text)) return Temporal.Instant.from(text).epochMilliseconds;
  } catch {
    // The form is right, but there is no such day or hour.
  }
  throw fault("malformed", "at", `"${text}" is not an ISO 8601 time with a zone, for example 2027-03-01T09:00:00Z`);
}

/** The name of a time zone. @throws PereError malformed, or refused: there is no such zone */
export function readZone(text: string): string {
  if (!ZONE.test(text))
    throw fault("malformed", "tz", `"${text}" is not the name of a time zone, for example Europe/Rome`);
  try {
    return new Intl.DateTimeFormat("en", { timeZone: text }).resolvedOptions().timeZone;
  } catch {
    throw fault("refused", "tz", `there is no time zone "${text}"; give a name such as Europe/Rome`);
  }
}

/**
 * A cron expression of five fields: minute, hour, day of the month, month, day of the week.
 * @throws PereError malformed, or refused: it is never due
 */
export function readEvery(text: string, now: number): string {
  if (!FIELDS.test(text))
    throw fault("malformed", "every", `"${text}" is not a cron expression of five fields, for example 0 9 * * 1-5`);
  try {
    if (nextTime(text, "UTC", now) !== null) return text;
  } catch (error) {
    const why = (error as Error).message.replace(/^CronPattern: /, "");
    throw fault("malformed", "every", `"${text}" is not a cron expression: ${why}`);
  }
  throw fault("refused", "every", `"${text}" is never due; no month has such a day`);
}

/** The moment of a time on a zone's wall clock: the first of two, or the jump that leaves it out. Milliseconds since 1970. */
function momentOf(wall: Temporal.PlainDateTime, zone: string): number {
  const moment = wall.toZonedDateTime(zone, { disambiguation: "earlier" });
  if (moment.toPlainDateTime().equals(wall)) return moment.epochMilliseconds;
  return moment.getTimeZoneTransition("next")!.epochMilliseconds;
}

/** The first time after `after` at which an expression is due, milliseconds since 1970; null: never again. */
export function nextTime(every: string, zone: string, after: number): number | null {
  if (ANY_HOUR.test(every)) return cron(every, zone).nextRun(new Date(after))?.getTime() ?? null;
  // The wall clock as if it were in UTC, where it never jumps.
  const times = cron(every, "UTC");
  let wall = Temporal.Instant.fromEpochMilliseconds(after).toZonedDateTimeISO(zone).toPlainDateTime();
  for (;;) {
    const next = times.nextRun(new Date(wall.toZonedDateTime("UTC").epochMilliseconds));
    if (next === null) return null;
    wall = Temporal.Instant.fromEpochMilliseconds(next.getTime()).toZonedDateTimeISO("UTC").toPlainDateTime();
    const moment = momentOf(wall, zone);
    if (moment > after) return moment;
  }
}
