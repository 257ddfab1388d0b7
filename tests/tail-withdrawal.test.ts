/**
 * Withdrawn events in a followed log: who is sent what, whatever was read or cut before the withdrawal was announced.
 */
import { expect, test } from "bun:test";
import type { ControlEntry } from "../engine/model.ts";
import { type Batch, type Entry, type Follower, type Log, RING_ENTRIES_MAX } from "../engine/feeds/log.ts";
import type { DeviceState } from "../engine/store.ts";
import { entries, entry, gate, logOf, numbers, Past, quiet, Reader } from "./support/log-readers.ts";

/** The control entry of an event. */
function control(seq: number, withdraws: number, more: Partial<ControlEntry> = {}): Entry {
  const about = {
    seq,
    at: 0,
    reason: "withdrawn",
    by: null,
    note: null,
    withdraws,
    to: null,
    expires: null,
    hasWhere: false,
  } as const;
  return entry(seq, {
    text: "",
    note: { kind: "withdrawn", text: `{"withdrawn":${withdraws}}` },
    to: more.to ?? null,
    control: { ...about, isAnswered: false, ...more },
  });
}

/** What a store has of some entries: events whose control entry is among them are marked. */
function marked(log: readonly Entry[]): Entry[] {
  const by = new Map(log.flatMap(({ seq, control: one }) => (one ? [[one.withdraws, seq]] : [])) as [number, number][]);
  return log.map((one) => ({ ...one, withdrawnBy: by.get(one.seq) ?? 0 }));
}

/** A log whose answers take their time: they have what was there when they were asked for. */
class Stale extends Past {
  hold = gate();
  override async read(after: number, limit: number): Promise<readonly Entry[]> {
    const found = (await super.read(after, limit)).map((one) => ({ ...one }));
    await this.hold.passed;
    return found;
  }
}

function follow(log: Log, cursor = 0, more: Partial<Follower> = {}): Reader {
  const reader = new Reader();
  log.follow({
    ...{ sink: reader, device: null, cursor, floor: cursor, start: cursor, joined: 0, gapAfter: null, stopped: false },
    ...more,
  });
  return reader;
}

test("what was read before a withdrawal is not sent after it", async () => {
  const past = new Stale(entries(1, 3_000));
  const log = logOf(past, 3_000);
  const reader = follow(log);
  await quiet();
  log.announce([control(3_001, 7)]);
  past.kept = [...marked([...entries(1, 3_000), control(3_001, 7)])];
  past.hold.open();
  await quiet();
  expect(reader.told).toEqual(numbers(1, 3_000).filter((seq) => seq !== 7));
});

test("what was read before more withdrawals than are remembered is read again", async () => {
  const past = new Stale(entries(1, 5_000));
  const log = logOf(past, 5_000);
  const reader = follow(log);
  await quiet();
  const controls = numbers(1, 2 * RING_ENTRIES_MAX + 100).map((n) => control(5_000 + n, n));
  for (const one of controls) log.announce([one]);
  past.kept = marked([...entries(1, 5_000), ...controls]);
  past.hold.open();
  await quiet();
  expect(reader.told).toEqual(numbers(controls.length + 1, 5_000));
});

test("a follower that is sent neither an event nor its withdrawal goes on with the others' batch", async () => {
  const log = logOf(new Past());
  const readers = Array.from({ length: 50 }, () => follow(log));
  await quiet();
  log.announce([entry(1)]);
  log.announce([entry(2), control(3, 1)]);
  await quiet();
  log.announce([entry(4)]);
  await quiet();
  for (const reader of readers) expect(reader.told).toEqual([2, 4]);
  const batches = new Set<Batch>(readers.flatMap(({ batches: own }) => own));
  expect(batches.size).toBe(2);
});

test("an event is skipped from the withdrawal on, and its control entry goes to those who got it", async () => {
  const log = logOf(new Past());
  const [quick, slow] = [follow(log), follow(log)];
  await quiet();
  slow.slow = true;
  log.announce([entry(1)]);
  await quiet();
  log.announce([entry(2), entry(3)]);
  await quiet();
  log.announce([control(4, 2)]);
  slow.slow = false;
  slow.drain();
  await quiet();
  expect(quick.told).toEqual([1, 2, 3, 4]);
  expect(slow.told).toEqual([1, 3]);
  // It comes later, to a follower that has skipped the event long before.
  const late = follow(log);
  await quiet();
  log.announce([control(5, 1)]);
  await quiet();
  expect(quick.told.at(-1)).toBe(5);
  expect(slow.told.at(-1)).toBe(5);
  expect(late.told).toEqual([1, 3, 5]);
});

test("a follower that skipped an event remembers it until its control entry comes, also where that is far behind", async () => {
  const all = marked([...entries(1, 4_000), control(4_001, 5), ...entries(4_002, 4_100)]);
  const past = new Past(all);
  const reader = follow(logOf(past, 4_100));
  const behind = follow(logOf(new Past(all), 4_100), 5);
  await quiet();
  expect(reader.told).toEqual(numbers(1, 4_100).filter((seq) => seq !== 5 && seq !== 4_001));
  expect(behind.told).toEqual(numbers(6, 4_100));
});

test("a device that has given a word on an event that it skips is told; the store is asked only where some device has", async () => {
  const asked: number[][] = [];
  const past = new Past(
    marked([entry(1), entry(2), entry(3), control(4, 2, { isAnswered: true }), control(5, 3), entry(6)]),
  );
  const WORKING: DeviceState = { state: "withdrawn", round: 1, due: null };
  const source = Object.assign(past, {
    states: async (device: string, after: number, upTo: number) => {
      asked.push([after, upTo]);
      return new Map(device === "a" && after < 2 && upTo >= 2 ? [[2, WORKING]] : []);
    },
  });
  const log = logOf(source, 6);
  const a = follow(log, 0, { device: "a" });
  const b = follow(log, 0, { device: "b" });
  const anybody = follow(log);
  await quiet();
  expect(a.told).toEqual([1, 4, 6]);
  expect(b.told).toEqual([1, 6]);
  expect(anybody.told).toEqual([1, 6]);
  // A page each, and one event each.
  expect(asked).toEqual([
    [0, 6],
    [0, 6],
    [1, 2],
    [1, 2],
  ]);
  expect(asked.length).toBe(4);
});

test("a device is told only of what was addressed to it", async () => {
  const log = logOf(new Past());
  const reader = follow(log, 0, { device: "a", joined: 0 });
  const late = follow(log, 0, { device: "b", joined: 2, floor: 2 });
  await quiet();
  log.announce([entry(1, { to: ["a"] }), entry(2, { to: ["c"] }), entry(3)]);
  await quiet();
  log.announce([control(4, 1, { to: ["a"] }), control(5, 2, { to: ["c"] }), control(6, 3)]);
  await quiet();
  expect(reader.told).toEqual([1, 3, 4, 6]);
  expect(late.told).toEqual([3, 6]);
});
