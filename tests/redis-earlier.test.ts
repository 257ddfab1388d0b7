/**
 * Data that the version before deferrals and withdrawals stored in Redis is read on, and goes on from there.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { tallyCounts } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { draft, EVERYTHING, reads, rowsOf, SECOND, T, trimAll, word } from "./contract/calls.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

setDefaultTimeout(60_000);
const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`data of the version before, on a real Redis${why}`, () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());

  /** Three events to three devices, as that version stored them: one complete, one with a deadline ahead, one past its deadline. */
  async function store(): Promise<RedisStore> {
    await redis.ask("FLUSHALL");
    const key = (part: string): string => `pere:{orders}:${part}`;
    const devices = ["a", "b", "c"];
    const ask = (...parts: (string | number)[]) => redis.ask(...(parts.map(String) as [string, ...string[]]));
    await ask("ZADD", "pere:channels", 0, "orders");
    await ask(
      "HSET",
      key("counters"),
      "epoch",
      "old",
      "head",
      3,
      "floor",
      0,
      "receiptsHead",
      8,
      "receiptsFloor",
      0,
      "audience",
      3,
    );
    for (const device of devices) {
      await ask("HSET", key("devices"), device, `0 ${T} 0 0 0 -1`);
      await ask("ZADD", key("names"), 0, device);
    }
    const [ahead, past] = [T + 60 * SECOND, T + SECOND];
    for (const [seq, entry] of [
      [1, `${T}    t  {"n":1}`],
      [2, `${T}  ${ahead}    2`],
      [3, `${T}  ${past}    3`],
    ] as const) {
      await ask("XADD", key("events"), `${seq}-0`, "v", entry);
      await ask("HSET", key("tallies"), `${seq}:n`, 3, `${seq}:at`, T);
    }
    await ask("ZADD", key("deadlines"), ahead, 2, past, 3);
    const receipts: readonly (readonly [event: number, device: string, entry: string])[] = [
      [1, "a", `1 a 4 ${T} ${T - 5} 0  {"printed":true}`],
      [1, "b", `1 b 5 ${T}  0  "paper out"`],
      [1, "c", `1 c 4 ${T}  0  `],
      [1, "c", `1 c 0 ${T}  0 2/1 `],
      [2, "a", `2 a 1 ${T}  0  `],
      [2, "b", `2 b 2 ${T}  0  `],
      [3, "a", `3 a 3 ${T}  0  `],
      [3, "a", `3 a 4 ${T}  1  `],
    ];
    for (const [index, [event, device, entry]] of receipts.entries()) {
      await ask("XADD", key("receipts"), `${index + 1}-0`, "v", entry, "k", `${event}:${device}`);
      const code = entry.split(" ")[2]!;
      if (code !== "0") await ask("HSET", key("latest"), `${event}:${device}`, `${code} ${index + 1}`);
    }
    await ask("HSET", key("tallies"), "1:4", 2, "1:5", 1, "2:1", 1, "2:2", 1, "3:3", 0, "3:4", 1);
    return RedisStore.open({ urls: [redis.url] });
  }

  test("is read: events, tallies, rows, the receipts log and what each device owes", async () => {
    await using stack = new AsyncDisposableStack();
    const old = stack.adopt(await store(), (one) => one.close());
    const heads = (await old.heads("orders"))!;
    expect(heads).toMatchObject({ epoch: "old", events: { head: 3, floor: 0, controls: 0 } });
    const events = await reads.events(old, "orders", 0, 10);
    expect(events).toMatchObject([
      { seq: 1, type: "t", data: '{"n":1}', key: null, attempts: null, withdrawn: null },
      { seq: 2, deadline: T + 60 * SECOND },
      { seq: 3, deadline: T + SECOND },
    ]);
    const tallies = await reads.tallies(old, "orders", 1, 3);
    expect([...tallies.values()].map(tallyCounts)).toEqual([
      { pending: 0, received: 0, working: 0, deferred: 0, done: 2, failed: 1, missing: 0, withdrawn: 0 },
      { pending: 1, received: 1, working: 1, deferred: 0, done: 0, failed: 0, missing: 0, withdrawn: 0 },
      { pending: 2, received: 0, working: 0, deferred: 0, done: 1, failed: 0, missing: 0, withdrawn: 0 },
    ]);
    expect(await rowsOf(old, "orders", 1, null, T)).toMatchObject([
      { device: "a", status: "done", detail: '{"printed":true}', deviceAt: T - 5, round: 1, attempt: 0 },
      { device: "b", status: "failed", detail: '"paper out"', round: 1, attempt: 1 },
      { device: "c", status: "done", late: false },
    ]);
    const receipts = await reads.receipts(old, "orders", 0, 10);
    expect(receipts[3]!.note).toMatchObject({ kind: "complete", tally: { addressed: 3, done: 2, failed: 1 } });
    expect(receipts[7]).toMatchObject({ device: "a", status: "done", late: true, note: null });
    const page = await old.devices("orders", "", 10, T);
    expect(page.items.map(({ device, pending }) => `${device} ${pending}`)).toEqual(["a 1", "b 2", "c 2"]);
  });

  test("goes on: a deadline, a late word told again, a deferral, a withdrawal, retention", async () => {
    await using stack = new AsyncDisposableStack();
    const old = stack.adopt(await store(), (one) => one.close());
    const say = async (seq: number, device: string, status: "done" | "deferred", now: number) =>
      (await old.record("orders", [word("old", seq, device, status)], now))[0]!;
    expect(await say(3, "a", "done", T + 2 * SECOND)).toMatchObject({ result: "duplicate", late: "missing" });
    expect(await say(3, "b", "done", T + 2 * SECOND)).toMatchObject({ result: "recorded", late: "missing" });
    expect(await say(2, "a", "deferred", T + 2 * SECOND)).toMatchObject({ result: "recorded", due: T + 62 * SECOND });
    expect(await old.withdraw("orders", { epoch: "old", seq: 2 }, "printed twice", T + 3 * SECOND)).toBe("withdrawn");
    expect(await old.withdraw("orders", { epoch: "old", seq: 1 }, null, T + 3 * SECOND)).toBe("complete");
    const tallies = await reads.tallies(old, "orders", 1, 4);
    expect(tallies.get(2)).toMatchObject({ addressed: 3, deferred: 0, withdrawn: 3, isOver: true });
    expect(await say(2, "b", "done", T + 4 * SECOND)).toMatchObject({ result: "recorded", late: "withdrawn" });
    expect((await reads.events(old, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([1, 2, 3, 4]);
    await old.append("orders", [draft("new")], T + 5 * SECOND);
    await trimAll(old, "orders", { ...EVERYTHING, count: 1 }, T + 6 * SECOND);
    expect((await reads.events(old, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([4, 5]);
    expect((await old.heads("orders"))!.events).toEqual({ head: 5, floor: 3, controls: 1 });
  });
});
