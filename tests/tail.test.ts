/**
 * The log's own promises, on a `Sink` and a `Source` of the test's own: who follows sees every entry once and in order, whatever
 * happens between two turns of the event loop.
 *
 * What the other tests see through a whole service, they see of one quick reader at a time. Here there are more followers than one turn serves,
 * readers that push back at a moment of the test's choice, a source whose answer is held, and a clock that stands still. "Nothing
 * more comes" is said after more turns of the event loop than the log could need, never after a while.
 */
import { describe, expect, test } from "bun:test";
import { RING_ENTRIES_MAX, SLICE_FOLLOWERS, WRITE_CHARACTERS } from "../engine/feeds/log.ts";
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

describe("live", () => {
  test("entries that arrive during a pass reach every follower once and in order, in as few writes as possible", async () => {
    const log = logOf(new Past());
    const all = readers(log, MANY);
    // Within a slice, and in a later one.
    all[100]!.onWrite = () => all[100]!.batches.length === 1 && log.announce([entry(2)]);
    all[SLICE_FOLLOWERS + 40]!.onWrite = () =>
      all[SLICE_FOLLOWERS + 40]!.batches.length === 1 && log.announce(entries(3, 5));
    log.announce([entry(1)]);
    await quiet();
    for (const { told } of all) expect(told).toEqual(numbers(1, 5));
    // Who was served after it came has it in the same write.
    expect(all[101]!.batches[0]!.entries).toHaveLength(2);
    expect(all.at(-1)!.batches).toHaveLength(1);
    // Who is served alike shares one batch, so that it is encoded once.
    expect(all[0]!.batches[0]).toBe(all[99]!.batches[0]!);
    expect(all.at(-1)!.batches[0]).toBe(all.at(-2)!.batches[0]!);
    expect(log.live).toBe(MANY);
  });

  test("entries that arrive between two slices reach every follower once and in order", async () => {
    const log = logOf(new Past());
    const all = readers(log, MANY);
    log.announce([entry(1)]);
    for (let seq = 2; seq <= 9; seq++) {
      await new Promise((resolve) => setImmediate(resolve));
      log.announce([entry(seq)]);
    }
    await quiet();
    for (const { told } of all) expect(told).toEqual(numbers(1, 9));
  });

  test("entries beyond the limit of one write are sent in several, without another wake-up", async () => {
    const source = new Past();
    const log = logOf(source);
    const all = readers(log, MANY);
    const text = "x".repeat(100_000);
    log.announce(entries(1, 10, { text }));
    await quiet();
    for (const reader of all) {
      expect(reader.told).toEqual(numbers(1, 10));
      expect(Math.max(...sizes(reader))).toBeLessThan(WRITE_CHARACTERS + text.length);
    }
    expect(source.asked).toEqual([]);
  });

  test("an event that expires during a pass is sent to no further follower", async () => {
    const source = new Past();
    const log = logOf(source);
    const all = readers(log, MANY);
    all[SLICE_FOLLOWERS - 1]!.onWrite = () => (source.time = 1_000);
    log.announce([entry(1, { expires: 1_000 }), entry(2)]);
    await quiet();
    for (const [index, { told }] of all.entries()) expect(told).toEqual(index < SLICE_FOLLOWERS ? [1, 2] : [2]);
  });

  test("an event that expires before the pass is sent to no follower, and causes no further work", async () => {
    const source = new Past();
    const log = logOf(source);
    const [reader] = readers(log, 1);
    const other = new Reader();
    const follower = follow(log, other);
    log.announce([entry(1, { expires: 1_000 })]);
    source.time = 1_000;
    await quiet();
    expect(reader!.batches).toEqual([]);
    expect(follower.cursor).toBe(1);
    log.announce([entry(2)]);
    await quiet();
    expect([reader!.told, other.told]).toEqual([[2], [2]]);
    expect(source.asked).toEqual([]);
  });
});

describe("a final receipt for an entry that was not sent yet", () => {
  test("withholds that entry only from its device, also if it is more than one write ahead", async () => {
    const log = logOf(new Past());
    const [reader, other] = [new Reader(), new Reader()];
    const follower = follow(log, reader);
    follow(log, other);
    log.announce(entries(1, 10, { text: "x".repeat(100_000) }));
    for (const seq of [2, 9]) log.settle(follower, seq);
    await quiet();
    expect(other.told).toEqual(numbers(1, 10));
    expect(reader.told).toEqual([1, 3, 4, 5, 6, 7, 8, 10]);
  });
});

describe("a reader that pushes back", () => {
  test("gets no live write until it has drained, and then the rest in order; others are not delayed", async () => {
    const log = logOf(new Past());
    const [slow, quick] = readers(log, 2);
    slow!.slow = true;
    log.announce([entry(1)]);
    await quiet();
    expect(log.live).toBe(1);
    log.announce([entry(2)]);
    log.announce([entry(3)]);
    await quiet();
    expect(slow!.told).toEqual([1]);
    expect(quick!.told).toEqual([1, 2, 3]);
    expect(log.live).toBe(1);
    slow!.slow = false;
    slow!.drain();
    await until(() => slow!.told.length === 3);
    expect(slow!.told).toEqual([1, 2, 3]);
    expect(slow!.errors).toEqual([]);
    // It is among the live ones again.
    expect(log.live).toBe(2);
    log.announce([entry(4)]);
    await quiet();
    expect(slow!.told).toEqual([1, 2, 3, 4]);
  });

  test("gets one page per drain in catch-up, and newer entries afterwards", async () => {
    const behind = RING_ENTRIES_MAX + 1_000;
    const log = logOf(new Past(entries(1, behind + 2)), behind);
    const reader = new Reader();
    reader.slow = true;
    follow(log, reader);
    for (let page = 1; reader.told.length < behind + 2; page++) {
      await until(() => reader.batches.length === page);
      await quiet();
      expect(reader.batches).toHaveLength(page);
      if (page === 2) log.announce(entries(behind + 1, behind + 2));
      reader.drain();
    }
    await quiet();
    expect(reader.told).toEqual(numbers(1, behind + 2));
    expect(reader.errors).toEqual([]);
    expect(log.live).toBe(1);
  });

  test("whose connection breaks instead is not waited for: its sink ends", async () => {
    const log = logOf(new Past());
    const reader = new Reader();
    const broken = Promise.withResolvers<void>();
    const write = reader.write.bind(reader);
    reader.write = (of, batch) => (write(of, batch), reader.batches.length === 1 ? broken.promise : undefined);
    follow(log, reader);
    log.announce([entry(1)]);
    await quiet();
    log.announce([entry(2)]);
    await quiet();
    expect(reader.told).toEqual([1]);
    broken.reject(new Error("reset by peer"));
    await quiet();
    expect(reader.told).toEqual([1, 2]);
    expect(reader.errors).toEqual([]);
  });

  test("blocks every log that it follows: one that grows", async () => {
    const [one, two] = [logOf(new Past()), logOf(new Past())];
    const reader = new Reader();
    reader.slow = true;
    follow(one, reader);
    follow(two, reader);
    one.announce([entry(1)]);
    await quiet();
    two.announce([entry(1)]);
    two.announce([entry(2)]);
    await quiet();
    expect(reader.batches).toHaveLength(1);
    reader.slow = false;
    reader.drain();
    await quiet();
    expect(reader.told).toEqual([1, 1, 2]);
    expect(reader.errors).toEqual([]);
  });

  test("blocks every log that it follows: one whose source answers meanwhile", async () => {
    const past = new Past(entries(1, 3));
    past.gate = gate();
    const [one, two] = [logOf(new Past()), logOf(past, 3)];
    const reader = new Reader();
    reader.slow = true;
    follow(one, reader);
    follow(two, reader);
    await quiet();
    one.announce([entry(1)]);
    await quiet();
    expect(reader.told).toEqual([1]);
    past.gate.open();
    await quiet();
    expect(reader.batches).toHaveLength(1);
    reader.slow = false;
    reader.drain();
    await quiet();
    expect(reader.told).toEqual([1, 1, 2, 3]);
    expect(reader.errors).toEqual([]);
  });
});
