/**
 * When a push is due: now, once at a time, or repeatedly. Times of day become a cron expression, and a local time becomes one in UTC, because the service
 * knows nothing of the browser's zone.
 */
import type { Fault } from "./api.ts";

export type WhenKind = "now" | "at" | "daily" | "weekdays" | "cron";

/** What was chosen and typed. What belongs to another choice is kept too. */
export interface When {
  readonly kind: WhenKind;
  /** Local date and time, as a field has it: 2026-12-01T09:00; "": none. */
  readonly at: string;
  /** Time of day, 09:00. */
  readonly time: string;
  readonly cron: string;
  readonly zone: string;
}

/** The browser's time zone. */
export const HERE_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

export const NOW: When = { kind: "now", at: "", time: "09:00", cron: "0 9 * * 1-5", zone: HERE_ZONE };

/** Names of time zones, where the browser lists them (Safari 15.4, Chrome 99, Firefox 93). */
export function zones(): readonly string[] {
  const { supportedValuesOf } = Intl as { supportedValuesOf?: (key: string) => string[] };
  return ["UTC", ...(supportedValuesOf?.("timeZone").filter((zone) => zone !== "UTC") ?? [HERE_ZONE])];
}

/** Whether an id is that of a scheduled push, and not that of an event. */
export const isScheduledId = (id: string): boolean => id.startsWith("s-");

/** A time of day as hours and minutes; null: it is none. */
function clockOf(time: string): readonly [hours: number, minutes: number] | null {
  const [, hours, minutes] = /^(\d\d):(\d\d)/.exec(time) ?? [];
  return hours === undefined ? null : [Number(hours), Number(minutes)];
}

/** The cron expression of what was chosen; "": it has none. */
export function cronOf({ kind, time, cron }: When): string {
  if (kind === "cron") return cron.trim();
  const clock = clockOf(time);
  if (clock === null || (kind !== "daily" && kind !== "weekdays")) return "";
  return `${clock[1]} ${clock[0]} * * ${kind === "daily" ? "*" : "1-5"}`;
}

/** The moment of a local time; null: it is none. A time that the zone leaves out is the one behind the jump. */
export function momentOf(at: string): Date | null {
  // Not every browser refuses a text that is no time.
  const date = /^\d{4,6}-\d\d-\d\dT\d\d:\d\d/.test(at) ? new Date(at) : new Date(Number.NaN);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** The options of a push; none: it is pushed now. */
export function timingOf(when: When): [name: string, value: string][] {
  if (when.kind === "now") return [];
  if (when.kind === "at") return [["at", momentOf(when.at)?.toISOString() ?? when.at]];
  return [
    ["every", cronOf(when)],
    ["tz", when.zone.trim()],
  ];
}

/** What keeps the choice from being sent; null: nothing that is known here. @param wait seconds to wait for receipts; "": not at all */
export function whenFault(when: When, wait: string): Fault | null {
  const { kind } = when;
  if (kind !== "now" && wait !== "")
    return { path: "Prefer: wait", message: "Only a push that is made now can wait for receipts." };
  if (kind === "at" && momentOf(when.at) === null) return { path: "at", message: "Choose a day and a time." };
  if (kind !== "now" && kind !== "at" && cronOf(when) === "")
    return {
      path: "every",
      message: kind === "cron" ? "Type a cron expression, such as 0 9 * * 1-5." : "Choose a time of day.",
    };
  return null;
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/** "every weekday at 09:00"; an expression that is not one of the usual ones stays as it is. */
export function everyText(every: string): string {
  const [minute = "", hour = "", day, month, weekday = ""] = every.trim().split(/\s+/);
  if (month === "*" && day === "*" && /^\d+$/.test(minute) && /^\d+$/.test(hour)) {
    const time = `${hour.padStart(2, "0")}:${minute.padStart(2, "0")}`;
    if (weekday === "*") return `every day at ${time}`;
    if (weekday === "1-5") return `every weekday at ${time}`;
    if (/^[0-7]$/.test(weekday)) return `every ${DAYS[Number(weekday)]} at ${time}`;
  }
  return every;
}

/** A time in a zone, "Tue 1 Dec 09:00"; in UTC if the browser does not know the zone. The zone's name is added unless it is the browser's. */
export function inZone(time: string, zone: string): string {
  const format = (timeZone: string): string =>
    new Intl.DateTimeFormat("en-GB", {
      ...{ weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
      timeZone,
    })
      .format(new Date(time))
      .replaceAll(",", "");
  const named = (text: string, name: string): string => (name === HERE_ZONE ? text : `${text} ${name}`);
  try {
    return named(format(zone), zone);
  } catch {
    return named(format("UTC"), "UTC");
  }
}
