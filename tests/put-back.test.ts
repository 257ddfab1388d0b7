/**
 * A Redis that comes back with an older state, under instances that know a newer one: no number that was given out before is given to another entry.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { PereError } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { CLAIM_MS, draft, hear, heardAll, missAll, results, SECOND, T, type Told, word } from "./contract/calls.ts";
import { until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`a Redis that is restored to an older state${why}`, () => {
  let redis: RedisServer;
  let stores: RedisStore[] = [];
  let wakes: Told[][] = [];
  beforeEach(async () => {
    redis = await startRedis();
    stores = await Promise.all([1, 2].map(() => RedisStore.open({ urls: [redis.url], claimMs: CLAIM_MS })));
    wakes = stores.map(() => []);
    for (const [n, store] of stores.entries()) {
      hear(store, (told) => wakes[n]!.push(told));
      await Promise.all([store.follow("events", "c"), store.follow("receipts", "c")]);
    }
    await stores[0]!.enrol("c", "till", T);
  });
  afterEach(async () => {
    await Promise.all(stores.map((store) => store.close()));
    await redis.end();
  });

  /** The first answer that is no excuse. */
  async function first<Answer>(call: () => Promise<Answer>): Promise<Answer> {
    for (;;) {
      try {
        return await call();
      } catch (error) {
        if (!(error instanceof PereError) || error.code !== "away") throw error;
        await Bun.sleep(1);
      }
    }
  }

  /** Takes a snapshot, goes on, and comes back with the snapshot once both have heard of what was meanwhile. */
  async function putBack(meanwhile: () => Promise<unknown>): Promise<void> {
    expect(await redis.ask("SAVE")).toBe("+OK");
    await meanwhile();
    await Promise.all(stores.map((store, n) => heardAll(store, ["c"], wakes[n]!)));
    await redis.restart();
  }

  test.each([0, 1])("the first push after it, by instance %i of two, gets a new id", async (which) => {
    const [a, b] = stores as [RedisStore, RedisStore];
    const { epoch } = await a.append("c", [draft(1), draft(2)], T);
    await putBack(() => Promise.all([a.append("c", [draft(3)], T), b.append("c", [draft(4)], T)]));
    const again = await first(() => stores[which]!.append("c", [draft("again")], T));
    expect(again.epoch).not.toBe(epoch);
    expect(again.first).toBe(3);
    await until(async () => (await first(() => a.heads("c")))!.epoch === again.epoch);
    // It is renewed once, and then goes on.
    const next = await first(() => stores[1 - which]!.append("c", [draft("next")], T));
    expect([next.epoch, next.first]).toEqual([again.epoch, 4]);
  });

  test("a push repeated after it with its key is stored once if the older state has it, and returns its new id", async () => {
    const [a, b] = stores as [RedisStore, RedisStore];
    const keys = [1, 2].map((n) => ({ key: `k${n}`, digest: "d" }));
    const { epoch } = await a.append("c", [draft("kept")], T, keys[0]);
    await putBack(() => a.append("c", [draft("lost")], T, keys[1]));
    const kept = await first(() => b.append("c", [draft("kept")], T, keys[0]));
    expect(kept).toMatchObject({ first: 1, replayed: true });
    expect(kept.epoch).not.toBe(epoch);
    expect(await first(() => b.append("c", [draft("lost")], T, keys[1]))).toMatchObject({
      ...{ epoch: kept.epoch, first: 2, replayed: false },
    });
    expect(await first(() => a.append("c", [draft("lost")], T, keys[1]))).toMatchObject({ first: 2, replayed: true });
    // In a log that was lost with its keys left behind, they are of another.
    expect(await redis.ask("DEL", "pere:{c}:counters")).toBe(":1");
    expect(await first(() => a.append("c", [draft("kept")], T, keys[0]))).toMatchObject({ first: 1, replayed: false });
  });

  test("the first receipt after it is for an unknown event, and no entry of the log is mistaken for another", async () => {
    const [a, b] = stores as [RedisStore, RedisStore];
    const { epoch } = await a.append("c", [draft(1), draft(2)], T);
    await putBack(() => a.record("c", [word(epoch, 1, "till", "done")], T));
    expect(results(await first(() => b.record("c", [word(epoch, 2, "till", "done")], T)))).toEqual(["unknown"]);
    expect((await first(() => b.heads("c")))!.epoch).not.toBe(epoch);
  });

  test.each([
    ["a deadline", (store: RedisStore) => missAll(store, T + 10 * SECOND)],
    ["a retirement", (store: RedisStore) => store.retire("c", "till", T)],
    ["retention", (store: RedisStore) => store.trim("c", { count: 0, before: 0 }, T)],
  ])("nor does what %s brings into the log of receipts", async (_, change) => {
    const [a, b] = stores as [RedisStore, RedisStore];
    const { epoch } = await a.append("c", [draft(1, { deadline: 10 }), draft(2)], T);
    await putBack(() => a.record("c", [word(epoch, 2, "till", "working")], T));
    await first<unknown>(() => change(b));
    const { epoch: now, receipts } = (await first(() => b.heads("c")))!;
    expect([now === epoch, receipts.head > 0]).toEqual([false, true]);
  });
});
