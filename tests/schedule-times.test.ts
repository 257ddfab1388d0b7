/**
 * When a scheduled push is due: cron expressions on the wall clocks of real time zones, where they jump and where they come back.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { PereError } from "../engine/model.ts";
import { nextTime, readAt, readEvery, readZone } from "../engine/schedule/times.ts";
import { seed } from "./support/chance.ts";

/** The next times, as `MM-DD HH:MM` in UTC. */
function times(every: string, zone: string, after: string, count: number): string[] {
  const found: string[] = [];
  for (let at = Date.parse(after); found.length < count;) {
    at = nextTime(every, zone, at)!;
    found.push(new Date(at).toISOString().slice(5, 16).replace("T", " "));
  }
  return found;
}

const refusal = (read: () => unknown): string => {
  try {
    read();
    return "accepted";
  } catch (error) {
    if (!(error instanceof PereError)) throw error;
    return `${error.code} ${error.message}`;
  }
};

describe("the next time", () => {
  test("of an expression follows the wall clock of its zone, in winter and in summer", () => {
    expect(times("0 9 * * 1-5", "UTC", "2027-01-01T08:00:00Z", 3)).toEqual([
      "01-01 09:00",
      "01-04 09:00",
      "01-05 09:00",
    ]);
    expect(times("0 9 * 1,7 *", "Europe/Rome", "2027-01-30T00:00:00Z", 3)).toEqual([
      "01-30 08:00",
      "01-31 08:00",
      "07-01 07:00",
    ]);
    expect(times("30 8 1 * *", "Asia/Kolkata", "2027-01-01T03:00:00Z", 1)).toEqual(["02-01 03:00"]);
  });

  test("is after the given one, never at it", () => {
    const at = Date.parse("2027-01-01T09:00:00Z");
    expect(nextTime("0 9 * * *", "UTC", at - 1)).toBe(at);
    expect(nextTime("0 9 * * *", "UTC", at)).toBe(at + 86_400_000);
  });

  test("that does not exist on the wall clock is at the jump, once", () => {
    // Rome jumps from 2:00 to 3:00 at 1:00 UTC on 28 March 2027.
    const day = "2027-03-27T03:00:00Z";
    expect(times("30 2 * * *", "Europe/Rome", day, 2)).toEqual(["03-28 01:00", "03-29 00:30"]);
    expect(times("*/20 2 * * *", "Europe/Rome", day, 2)).toEqual(["03-28 01:00", "03-29 00:00"]);
    expect(times("0 3 * * *", "Europe/Rome", day, 2)).toEqual(["03-28 01:00", "03-29 01:00"]);
    // Half an hour on Lord Howe Island, at midnight in Santiago, and a whole day that Samoa left out.
    expect(times("15 2 * * *", "Australia/Lord_Howe", "2027-10-02T00:00:00Z", 2)).toEqual([
      "10-02 15:30",
      "10-03 15:15",
    ]);
    expect(times("0 0 * * *", "America/Santiago", "2027-09-04T05:00:00Z", 2)).toEqual(["09-05 04:00", "09-06 03:00"]);
    expect(times("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 2)).toEqual(["12-30 10:00", "12-29 22:00"]);
  });

  test("that comes twice on the wall clock is the first, once", () => {
    // Rome goes back from 3:00 to 2:00 at 1:00 UTC on 31 October 2027.
    const day = "2027-10-30T22:00:00Z";
    expect(times("30 2 * * *", "Europe/Rome", day, 2)).toEqual(["10-31 00:30", "11-01 01:30"]);
    expect(times("*/20 2 * * *", "Europe/Rome", day, 4)).toEqual([
      "10-31 00:00",
      "10-31 00:20",
      "10-31 00:40",
      "11-01 01:00",
    ]);
    // Also for one who asks within the second hour.
    expect(times("*/20 2 * * *", "Europe/Rome", "2027-10-31T01:10:00Z", 1)).toEqual(["11-01 01:00"]);
    expect(times("45 1 * * *", "Australia/Lord_Howe", "2027-04-03T00:00:00Z", 2)).toEqual([
      "04-03 14:45",
      "04-04 15:15",
    ]);
  });

  test("of an expression for every hour counts elapsed time", () => {
    expect(times("*/30 * * * *", "Europe/Rome", "2027-10-30T23:40:00Z", 5)).toEqual([
      "10-31 00:00",
      "10-31 00:30",
      "10-31 01:00",
      "10-31 01:30",
      "10-31 02:00",
    ]);
    expect(times("0 * * * *", "Europe/Rome", "2027-03-27T23:30:00Z", 3)).toEqual([
      "03-28 00:00",
      "03-28 01:00",
      "03-28 02:00",
    ]);
  });

  test("never repeats and never goes back, whatever the zone, the hour and the moment", () => {
    const zones = ["Europe/Rome", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia", "UTC"];
    const run = (zone: string, minute: number, hour: number, after: number): void => {
      const every = `${minute} ${hour} * * *`;
      const wall = (at: number): string =>
        Temporal.Instant.fromEpochMilliseconds(at).toZonedDateTimeISO(zone).toPlainDate().toString();
      const days: string[] = [];
      for (let at = after, n = 0; n < 3; n++) {
        const next = nextTime(every, zone, at)!;
        expect(next).toBeGreaterThan(at);
        days.push(wall(next));
        at = next;
      }
      expect(new Set(days).size, `${every} ${zone} ${after} ${days}`).toBe(3);
    };
    const from = Date.parse("2026-01-01T00:00:00Z");
    fc.assert(
      fc.property(
        fc.constantFrom(...zones),
        fc.integer({ min: 0, max: 59 }),
        fc.integer({ min: 0, max: 23 }),
        fc.integer({ min: from, max: from + 3 * 366 * 86_400_000 }),
        run,
      ),
      { seed, numRuns: 300 },
    );
  });
});

describe("bad input", () => {
  test("of a time: no zone, no such day, no time at all", () => {
    expect(readAt("2027-03-01T09:00:00+01:00")).toBe(Date.parse("2027-03-01T08:00:00Z"));
    expect(readAt("2027-03-01T09:00Z")).toBe(Date.parse("2027-03-01T09:00:00Z"));
    for (const text of ["2027-03-01T09:00:00", "2027-02-30T09:00:00Z", "2027-03-01", "tomorrow", "", "1700000000"])
      expect(refusal(() => readAt(text))).toBe(
        `malformed at: "${text}" is not an ISO 8601 time with a zone, for example 2027-03-01T09:00:00Z`,
      );
  });

  test("of an expression: too few fields or too many, a value out of range, a day that no month has", () => {
    for (const text of ["0 9 * *", "0 0 9 * * *", "@daily", "", "* * * * * * *", "0 9 * * 1 $(x)"])
      expect(refusal(() => readEvery(text, 0))).toStartWith(`malformed every: "${text}" is not a cron expression`);
    expect(refusal(() => readEvery("61 * * * *", 0))).toStartWith(
      'malformed every: "61 * * * *" is not a cron expression',
    );
    for (const text of ["0 0 30 2 *", "0 0 31 4,6 *"])
      expect(refusal(() => readEvery(text, 0))).toBe(`refused every: "${text}" is never due; no month has such a day`);
    expect(readEvery("0 9 29 2 *", 0)).toBe("0 9 29 2 *");
  });

  test("of a zone: one that does not exist, an offset", () => {
    expect(readZone("europe/rome")).toBe("Europe/Rome");
    expect(refusal(() => readZone("Mars/Base"))).toBe(
      'refused tz: there is no time zone "Mars/Base"; give a name such as Europe/Rome',
    );
    for (const text of ["+02:00", "", "Europe/Rome "])
      expect(refusal(() => readZone(text))).toStartWith(`malformed tz: "${text}" is not the name of a time zone`);
  });
});
