/**
 * The log's own promises, on a `Sink` and a `Source` of the test's own: who follows sees every entry once and in order, whatever
 * happens between two turns of the event loop.
 *
 * What the other tests see through a whole service, they see of one quick reader at a time. Here there are more followers than one turn serves,
 * readers that push back at a moment of the test's choice, a source whose answer is held, and a clock that stands still. "Nothing
 * more comes" is said after more turns of the event loop than the log could need, never after a while.
 */
import { describe, expect, test } from "bun:test";
import type { Position } from "../engine/model.ts";
import {
  type Batch,
  type Entry,
  type Follower,
  Log,
  RING_ENTRIES_MAX,
  type Sink,
  SLICE_FOLLOWERS,
  type LogSource,
  WRITE_CHARACTERS,
} from "../engine/feeds/log.ts";
import { until } from "./support/harness.ts";

const EPOCH = "epoch";
/** More than two slices. */
const MANY = 2 * SLICE_FOLLOWERS + 90;
const numbers = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, n) => from + n);
const entry = (seq: number, more: Partial<Entry> = {}): Entry => ({
  seq,
  id: `${EPOCH}-${seq}`,
  text: `{"seq":${seq}}`,
  complete: null,
  receipt: null,
  type: null,
  to: null,
  expires: null,
  ...more,
});
const entries = (from: number, to: number, more: Partial<Entry> = {}): Entry[] =>
  numbers(from, to).map((seq) => entry(seq, more));

/** Lets everything happen that can happen by itself. */
async function quiet(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** A place that a test opens when it wants to. */
interface Gate {
  readonly passed: Promise<void>;
  open(): void;
}
function gate(): Gate {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { passed: promise, open: resolve };
}

/** A log's past in memory. Like a store it gives about as much as one write may carry; it keeps a list of what was asked of it. */
class Past implements LogSource {
  kept: Entry[];
  time = 0;
  readonly asked: number[] = [];
  /** Held: reads are answered when it opens. */
  gate: Gate | undefined;
  /** Thrown by the next read. */
  error: Error | undefined;
  readonly now = (): number => this.time;
  readonly report = (): void => {};

  constructor(kept: Entry[] = []) {
    this.kept = kept;
  }

  async read(after: number, limit: number): Promise<readonly Entry[]> {
    this.asked.push(after);
    await this.gate?.passed;
    const { error } = this;
    this.error = undefined;
    if (error) throw error;
    const found: Entry[] = [];
    let characters = 0;
    for (const entry of this.kept) {
      if (entry.seq <= after) continue;
      found.push(entry);
      characters += entry.text.length;
      if (found.length === limit || characters >= WRITE_CHARACTERS) break;
    }
    return found;
  }
}

/** Keeps what it is given. `slow`: each write pushes back until the test says `drain`. */
class Reader implements Sink {
  blocked: Promise<unknown> | undefined;
  slow = false;
  readonly batches: Batch[] = [];
  /** Entries by `seq` and gaps, in the order in which they came. */
  readonly told: (number | string)[] = [];
  readonly errors: unknown[] = [];
  rests = 0;
  /** Called within each write. */
  onWrite = (): void => {};
  #gate: Gate | undefined;

  write(_log: Log, batch: Batch): Promise<unknown> | undefined {
    if (this.#gate) throw new Error("written to although it pushed back");
    this.batches.push(batch);
    this.told.push(...batch.entries.map(({ seq }) => seq));
    this.onWrite();
    if (!this.slow) return undefined;
    this.#gate = gate();
    return this.#gate.passed;
  }
  gap(_log: Log, after: Position, from: Position): void {
    this.told.push(`gap ${after.seq} ${from.seq}`);
  }
  rest(): void {
    this.rests++;
  }
  fail(error: unknown): void {
    this.errors.push(error);
  }

  /** The peer has read everything. */
  drain(): void {
    const held = this.#gate;
    this.#gate = undefined;
    held?.open();
  }
}

const logOf = (source: LogSource, head = 0): Log => {
  const log = new Log("events", "c", source);
  log.reach(EPOCH, head);
  return log;
};

function follow(log: Log, sink: Sink, cursor = 0, floor = cursor): Follower {
  const follower: Follower = { sink, device: null, cursor, floor, lost: null, stopped: false };
  log.follow(follower);
  return follower;
}

/** Readers that all follow from one place. */
const readers = (log: Log, count: number, cursor = 0): Reader[] =>
  Array.from({ length: count }, () => {
    const reader = new Reader();
    follow(log, reader, cursor);
    return reader;
  });

const sizes = ({ batches }: Reader): number[] =>
  batches.map((batch) => batch.entries.reduce((sum, { text }) => sum + text.length, 0));

describe("live", () => {
  test("entries that come in the middle of a pass reach everybody once and in order, in as few writes as can be", async () => {
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

  test("entries that come between two slices reach everybody once and in order", async () => {
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

  test("more than one write may carry comes in several, without another wake-up", async () => {
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

  test("an event whose time to live ends in the middle of a pass is given to nobody from then on", async () => {
    const source = new Past();
    const log = logOf(source);
    const all = readers(log, MANY);
    all[SLICE_FOLLOWERS - 1]!.onWrite = () => (source.time = 1_000);
    log.announce([entry(1, { expires: 1_000 }), entry(2)]);
    await quiet();
    for (const [index, { told }] of all.entries()) expect(told).toEqual(index < SLICE_FOLLOWERS ? [1, 2] : [2]);
  });

  test("an event whose time to live ends before the pass begins is given to nobody, and nobody comes back for it", async () => {
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

describe("a final word on what is still on its way", () => {
  test("keeps that entry from its device alone, also when it is more than one write ahead", async () => {
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
  test("gets no write until it has read, live, and then the rest in order; others are not kept", async () => {
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

  test("gets one page a drain in catch-up, and what came meanwhile", async () => {
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

  test("whose connection breaks instead is gone on with: its sink will say so", async () => {
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

  test("holds back every log that it follows: one that grows", async () => {
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

  test("holds back every log that it follows: one whose source answers meanwhile", async () => {
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

describe("what the ring does not have", () => {
  test("entries announced with a hole are read from the source, and those announced twice are given once", async () => {
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

  test("a moment behind costs no read; what was there two ages ago is let go of", async () => {
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

  test("many who come back together at one place cost one read, and share their batch", async () => {
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

  test("many who come back together to a source that has just failed cost one read as well", async () => {
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

  test("a long catch-up of large entries comes in pages that one write may carry", async () => {
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
  ])("a gap %s behind is told once, before the first entry after it", async (_, head) => {
    const log = logOf(new Past(entries(5, head)), head);
    const [reader] = readers(log, 1);
    await until(() => reader!.rests > 0);
    expect(reader!.told).toEqual(["gap 0 5", ...numbers(5, head)]);
    log.announce([entry(head + 1)]);
    await quiet();
    expect(reader!.told.slice(-2)).toEqual([head, head + 1]);
  });

  test("an entry that overtakes a read which finds nothing lies behind the gap, and is given", async () => {
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

  test("where nothing is kept the gap ends with what comes next", async () => {
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
  ])("a source that fails %s behind ends the sink, once, and nobody else", async (_, head) => {
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

  test("a follower that was stopped while its source answered hears nothing, whatever the answer", async () => {
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
