/**
 * A device with very many events is retired in slices, and nobody sees that: from the first slice on it is in no audience that it gave no final word
 * to, tallies and rows say the same of every event, and what a dead process or instance left is taken up by whoever comes next.
 *
 * Each store is left in the middle: the process ends with the first slice, or the instance never asks for the second one.
 */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import { join } from "node:path";
import { STATES } from "../engine/model.ts";
import { keysWith } from "../engine/redis/keys.ts";
import { SCRIPTS } from "../engine/redis/scripts.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import {
  reads,
  countRows,
  draft,
  EVERYTHING,
  CLAIM_MS,
  missAll,
  noteOf,
  results,
  rowsOf,
  SECOND,
  T,
  trimAll,
  word,
} from "./contract/calls.ts";
import { temporary } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

/** More than one slice of either store. */
const EVENTS = 5_000;
/** Events that tests look at closely; those that name the device are in it, and what it said of them. */
const NAMED = new Set([4_001, 4_002, 4_003, 4_004]);
const SAID = {
  10: "received",
  20: "done",
  4_000: "working",
  4_002: "done",
  4_003: "received",
  4_500: "failed",
} as const;
const LOOKED_AT = [1, 10, 20, 500, 501, 2_000, 3_999, 4_000, 4_001, 4_002, 4_003, 4_004, 4_500, 4_999, 5_000];
const FINALLY = new Set([20, 4_002, 4_500]);
/** It has a deadline. */
const DUE = 4_004;

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
let redis: RedisServer | undefined;
afterAll(() => redis?.end());
let prefixes = 0;

/** Whether a device is still leaving, in what is kept. */
interface Left {
  readonly store: Store;
  isLeaving(): Promise<boolean>;
}

/** A channel of two devices, and one of them in the middle of leaving. */
async function prepare(store: Store): Promise<string> {
  for (const device of ["a", "b"]) await store.enrol("orders", device, T);
  for (let seq = 1; seq <= EVENTS;) {
    if (NAMED.has(seq)) {
      await store.append("orders", [draft(seq, { to: ["a", "b"], deadline: seq === DUE ? 10 : null })], T);
      seq++;
      continue;
    }
    const count = Math.min(1_000, (seq < 4_001 ? 4_001 : EVENTS + 1) - seq);
    await store.append("orders", Array(count).fill(draft(seq)), T);
    seq += count;
  }
  const { epoch } = (await store.heads("orders"))!;
  const said = Object.entries(SAID).map(([seq, status]) => word(epoch, Number(seq), "a", status));
  await store.record("orders", said, T);
  // Of these it is the last one that owes a word.
  await store.record(
    "orders",
    [1, 4_000, 4_999].map((seq) => word(epoch, seq, "b", "done")),
    T,
  );
  return epoch;
}

async function leftInFile(): Promise<Left> {
  const path = join(temporary(), "pere.db");
  const store = new SqliteStore({ path });
  await prepare(store);
  store.watch((wake) => void (wake.kind === "retired" && store.close()));
  expect(await store.retire("orders", "a", T + SECOND)).toBe(true);
  const again = new SqliteStore({ path });
  closing.push(() => again.close());
  const isLeaving = async (): Promise<boolean> => {
    const db = new Database(path, { readonly: true });
    const found = db.query("SELECT * FROM leaving").all().length > 0;
    db.close();
    return found;
  };
  return { store: again, isLeaving };
}

async function leftInRedis(): Promise<Left> {
  redis ??= await startRedis();
  const prefix = `leaving-${++prefixes}:`;
  const store = await RedisStore.open({ urls: [redis.url], prefix, claimMs: CLAIM_MS });
  closing.push(() => store.close());
  await prepare(store);
  const { withAttention: all, counters } = keysWith(prefix)("orders");
  await redis.ask("EVAL", SCRIPTS.retire.text, String(all.length), ...all, "a", String(T + SECOND));
  const isLeaving = async (): Promise<boolean> => (await redis!.ask("HEXISTS", counters, "leaving")) === ":1";
  return { store, isLeaving };
}

const STORES = [
  ["SQLite", leftInFile, null],
  ["Redis", leftInRedis, noRedis],
] as const;

/** All that is told of some events: their tallies, which must be what their rows say. */
async function told(store: Store): Promise<Record<number, string[]>> {
  const found: Record<number, string[]> = {};
  for (const event of LOOKED_AT) {
    const tally = (await reads.tallies(store, "orders", event - 1, event + 1)).get(event)!;
    const rows = await rowsOf(store, "orders", event);
    const counts = countRows(rows);
    const { addressed, isOver: _, ...rest } = tally;
    expect([event, addressed, { ...rest, pending: addressed - Object.values(rest).reduce((a, b) => a + b) }]).toEqual([
      event,
      rows.length,
      counts,
    ]);
    for (const status of STATES) expect((await rowsOf(store, "orders", event, status)).length).toBe(counts[status]);
    found[event] = rows.map(({ device, status }) => `${device} ${status}`);
  }
  return found;
}

describe.each(STORES)("on %s, a device that is leaving", (_, left, missing) => {
  const it = test.skipIf(missing !== null);

  it("is in no audience except of events with its final receipt, as after its retirement", async () => {
    const { store, isLeaving } = await left();
    expect(await isLeaving()).toBe(true);
    const before = await told(store);
    for (const event of LOOKED_AT)
      expect([event, before[event]!.some((row) => row.startsWith("a "))]).toEqual([event, FINALLY.has(event)]);
    expect((await store.devices("orders", "", 10, T)).items.map(({ device }) => device)).toEqual(["b"]);
    await trimAll(store, "orders", EVERYTHING, T + 2 * SECOND);
    expect(await isLeaving()).toBe(false);
    expect(await told(store)).toEqual(before);
  });

  it("completes events for which it was the last that owed a receipt, whichever call finishes the retirement", async () => {
    const { store } = await left();
    await trimAll(store, "orders", EVERYTHING, T + 2 * SECOND);
    const ends = (await reads.receipts(store, "orders", 0, 100)).filter(({ note }) => note !== null);
    expect(ends.map((entry) => [entry.event, entry.device, entry.status, noteOf(entry)])).toEqual([
      [1, "a", "pending", { done: 1, failed: 0 }],
      [4_000, "a", "pending", { done: 1, failed: 0 }],
      [4_999, "a", "pending", { done: 1, failed: 0 }],
    ]);
  });

  it("can't send receipts any more, except a repeated final one", async () => {
    const { store } = await left();
    const { epoch } = (await store.heads("orders"))!;
    const say = (seq: number) => store.record("orders", [word(epoch, seq, "a", "done")], T + SECOND).then(results);
    expect(await say(4_999)).toEqual(["unaddressed"]);
    expect(await say(4_003)).toEqual(["unaddressed"]);
    expect(await say(4_002)).toEqual(["duplicate"]);
  });

  it("is not recorded as missing at a deadline that passes then", async () => {
    const { store } = await left();
    await missAll(store, T + 20 * SECOND);
    expect((await rowsOf(store, "orders", DUE)).map(({ device, status }) => `${device} ${status}`)).toEqual([
      "b missing",
    ]);
    expect((await reads.receipts(store, "orders", 0, 100)).filter(({ status }) => status === "missing")).toHaveLength(
      1,
    );
    await told(store);
  });

  it("may return meanwhile, owes only later events, and gets none from before", async () => {
    const { store, isLeaving } = await left();
    expect(await store.join("orders", "a", T + SECOND)).toMatchObject({
      enrolled: false,
      joined: EVENTS,
      settled: EVENTS,
      lostSeq: 0,
    });
    const { first, addressed, epoch } = await store.append("orders", [draft("new")], T + SECOND);
    expect([first, addressed]).toEqual([EVENTS + 1, 2]);
    const pending = async () => (await store.devices("orders", "", 1, T)).items[0];
    expect(await pending()).toMatchObject({ device: "a", pending: 1 });
    await told(store);
    const settled = await reads.settled(store, "orders", "a", 4_000, 4_004);
    for (const { seq, to } of await reads.events(store, "orders", 4_000, 4))
      expect([seq, settled.has(seq) || !to!.includes("a")]).toEqual([seq, true]);
    expect(await isLeaving()).toBe(true);
    await trimAll(store, "orders", EVERYTHING, T + SECOND);
    expect(await pending()).toMatchObject({ device: "a", pending: 1 });
    expect(results(await store.record("orders", [word(epoch, first, "a", "done")], T + SECOND))).toEqual(["recorded"]);
    expect(await store.join("orders", "a", T + SECOND)).toMatchObject({
      enrolled: true,
      joined: EVENTS,
      settled: first,
    });
    await told(store);
  });

  it("is finished when the next one is retired, which is finished too", async () => {
    const { store, isLeaving } = await left();
    expect(await store.retire("orders", "a", T + SECOND)).toBe(false);
    expect(await store.retire("orders", "b", T + SECOND)).toBe(true);
    expect(await isLeaving()).toBe(false);
    const after = await told(store);
    expect(after[1]).toEqual(["b done"]);
    expect(after[2_000]).toEqual([]);
    expect((await store.append("orders", [draft("nobody")], T)).addressed).toBe(0);
  });

  it("is finished also for events that retention drops meanwhile", async () => {
    const { store } = await left();
    await trimAll(store, "orders", { count: 100, before: 0 }, T + SECOND);
    const { events } = (await store.heads("orders"))!;
    expect(events).toEqual({ head: EVENTS, floor: EVENTS - 100, controls: 0 });
    expect((await rowsOf(store, "orders", EVENTS)).map(({ device }) => device)).toEqual(["b"]);
  });
});
