/**
 * What the log's ring does not have is read from its source, once for all who ask, and nothing is missed or told twice at the seam.
 */
import { describe, expect, test } from "bun:test";
import { RING_ENTRIES_MAX, WRITE_CHARACTERS } from "../engine/feeds/log.ts";
import { until } from "./support/harness.ts";
import {
  entries,
  entry,
  follow,
  gate,
  logOf,
  MANY,
  numbers,
  Past,
  quiet,
  Reader,
  readers,
  sizes,
} from "./support/log-readers.ts";

describe("entries that are not in the ring", () => {
  test("entries announced with a hole are read from the source, and those announced twice are sent once", async () => {
    const source = new Past(entries(1, 9));
    const log = logOf(source);
    const all = readers(log, MANY);
    log.announce([entry(1)]);
    await quiet();
    log.announce(entries(4, 5));
    await quiet();
    log.announce(entries(3, 6));
    log.announce(entries(2, 6));
    await quiet();
    // A hole in the middle of what everybody is being given.
    log.announce([entry(7)]);
    log.announce([entry(9)]);
    await quiet();
    for (const { told } of all) expect(told).toEqual(numbers(1, 9));
    // One read a hole, for all of them.
    expect([source.asked.length, source.asked[0], source.asked.at(-1)]).toEqual([2, 1, 6]);
  });

  test("a follower a moment behind costs no read; older entries are dropped", async () => {
    const source = new Past(entries(1, 12));
    const log = logOf(source);
    const from = async (cursor: number): Promise<(number | string)[]> => {
      const reader = new Reader();
      const follower = follow(log, reader, cursor);
      await until(() => reader.rests > 0);
      log.stop(follower);
      return reader.told;
    };
    log.announce(entries(1, 10));
    log.age();
    expect(await from(0)).toEqual(numbers(1, 10));
    log.announce([entry(11)]);
    log.age();
    expect(await from(10)).toEqual([11]);
    log.announce([entry(12)]);
    expect(await from(10)).toEqual([11, 12]);
    expect(source.asked).toEqual([]);
    // The first ten went with the second age.
    expect(await from(5)).toEqual(numbers(6, 12));
    expect(source.asked).toEqual([5]);
    // Without growth, two ages let go of everything.
    log.age();
    log.age();
    expect(await from(11)).toEqual([12]);
    expect(source.asked).toEqual([5, 11]);
  });

  test("many followers that return at one position cost one read, and share their batch", async () => {
    const source = new Past(entries(1, 300));
    const log = logOf(source, 300);
    const all = readers(log, MANY, 200);
    await quiet();
    for (const { told } of all) expect(told).toEqual(numbers(201, 300));
    expect([source.asked.length, source.asked[0]]).toEqual([1, 200]);
    expect(new Set(all.map(({ batches }) => batches[0])).size).toBe(1);
    // Who comes a little later, from there or from nearer, costs none.
    readers(log, 1, 200);
    readers(log, 1, 250);
    await quiet();
    expect(source.asked).toEqual([200]);
  });

  test("many followers that return after the source has failed cost one read too", async () => {
    const source = new Past(entries(1, 300));
    const log = logOf(source, 300);
    source.error = new Error("the disk is away");
    const [unlucky] = readers(log, 1, 200);
    await until(() => unlucky!.errors.length > 0);
    const all = readers(log, MANY, 200);
    await quiet();
    for (const { told } of all) expect(told).toEqual(numbers(201, 300));
    expect(source.asked.length).toBe(2);
  });

  test("a long catch-up of large entries is split into pages of at most one write", async () => {
    const text = "x".repeat(60_000);
    const source = new Past(entries(1, 40, { text }));
    const log = logOf(source, 40);
    const [reader] = readers(log, 1);
    await until(() => reader!.rests > 0);
    expect(reader!.told).toEqual(numbers(1, 40));
    expect(Math.max(...sizes(reader!))).toBeLessThan(WRITE_CHARACTERS + text.length);
  });

  test.each([
    ["near", 8],
    ["far", RING_ENTRIES_MAX + 600],
  ])("a gap %s behind is reported once, before the first entry after it", async (_, head) => {
    const log = logOf(new Past(entries(5, head)), head);
    const [reader] = readers(log, 1);
    await until(() => reader!.rests > 0);
    expect(reader!.told).toEqual(["gap 0 5", ...numbers(5, head)]);
    log.announce([entry(head + 1)]);
    await quiet();
    expect(reader!.told.slice(-2)).toEqual([head, head + 1]);
  });

  test("an entry that overtakes a read without result is after the gap, and is sent", async () => {
    const past = new Past();
    past.gate = gate();
    const log = logOf(past, 10);
    const reader = new Reader();
    follow(log, reader, 5);
    await until(() => past.asked.length > 0);
    log.announce([entry(11)]);
    past.gate.open();
    await until(() => reader.rests > 0);
    expect(reader.told).toEqual(["gap 5 11", 11]);
  });

  test("if nothing is kept the gap ends with the next entry", async () => {
    const log = logOf(new Past(), 8);
    const [reader] = readers(log, 1, 3);
    await until(() => reader!.rests > 0);
    log.announce([entry(9)]);
    await quiet();
    expect(reader!.told).toEqual(["gap 3 9", 9]);
  });

  test.each([
    ["near", 8],
    ["far", RING_ENTRIES_MAX + 600],
  ])("a source that fails %s behind ends that sink, once, and no other", async (_, head) => {
    const source = new Past(entries(1, head));
    const log = logOf(source, head);
    const [resting] = readers(log, 1, head);
    source.error = new Error("the disk is away");
    const [reader] = readers(log, 1);
    await until(() => reader!.errors.length > 0);
    log.announce([entry(head + 1)]);
    await quiet();
    expect(reader!.errors.map(String)).toEqual(["Error: the disk is away"]);
    expect([reader!.told, reader!.rests]).toEqual([[], 0]);
    expect(resting!.told).toEqual([head + 1]);
    const [again] = readers(log, 1);
    await until(() => again!.rests > 0);
    expect(again!.told).toEqual(numbers(1, head).concat(again!.told.length > head ? [head + 1] : []));
  });

  test("a follower that was stopped during a read gets nothing, whatever the result", async () => {
    for (const error of [undefined, new Error("the disk is away")]) {
      const source = new Past(entries(1, 8));
      source.gate = gate();
      const log = logOf(source, 8);
      const reader = new Reader();
      const follower = follow(log, reader);
      await quiet();
      log.stop(follower);
      source.error = error;
      source.gate.open();
      await quiet();
      expect([reader.told, reader.errors, reader.rests, log.live]).toEqual([[], [], 0, 0]);
    }
  });
});
