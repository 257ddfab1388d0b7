/**
 * What becomes of an event, how its publisher knows, and his hooks, where two instances share one Redis: the cases that hold on any memory, and
 * the races that only several instances can run.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { RedisStore } from "../engine/redis/store.ts";
import { CLAIM_MS, reads, draft, missAll, results, SECOND, T, word } from "./contract/calls.ts";
import { ask, give, push, spawn, startOn, until } from "./support/harness.ts";
import { hookCases } from "./contract/hook-cases.ts";
import { hook, listed, LOOPBACK, Receiver, receive, services, tidyUp } from "./contract/hook-world.ts";
import { outcomes } from "./contract/outcome-cases.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

setDefaultTimeout(60_000);
const DEVICES = Array.from({ length: 700 }, (_, n) => `device-${n}`).sort();

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`on a real Redis${why}`, () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());
  beforeEach(() => redis.ask("FLUSHALL"));
  afterEach(tidyUp);

  outcomes("two instances", 2, async () => (options) => startOn(redis.url, options));

  hookCases("Redis", () => ({ start: (options) => startOn(redis.url, options), env: { REDIS_URL: redis.url } }));

  describe("a race", () => {
    test("of three instances for one deadline: each device is missing once, and each instance is notified", async () => {
      const prefix = "deadline-race:";
      const stores = await Promise.all(
        [1, 2, 3].map(() => RedisStore.open({ urls: [redis.url], prefix, claimMs: CLAIM_MS })),
      );
      const [store] = stores as [RedisStore];
      const told = await Promise.all(
        stores.map(async (one) => {
          const heard: string[] = [];
          one.watch((wake) => {
            if (wake.kind === "receipts") heard.push(...wake.entries.flatMap(({ device }) => device || []));
          });
          await one.follow("receipts", "orders");
          return heard;
        }),
      );
      await Promise.all(DEVICES.map((device) => store.enrol("orders", device, T)));
      await store.append("orders", [draft(1, { deadline: 1 }), draft(2, { deadline: 1 })], T);
      await Promise.all([...stores, ...stores].map((one) => missAll(one, T + SECOND)));
      await until(async () => (await store.heads("orders"))!.receipts.head >= 2 * DEVICES.length, "all to be missing");
      for (const heard of told) {
        await until(() => heard.length >= 2 * DEVICES.length, "every word");
        expect(heard.toSorted()).toEqual([...DEVICES, ...DEVICES].sort());
      }
      expect((await reads.tallies(store, "orders", 1, 2)).get(2)).toMatchObject({
        addressed: DEVICES.length,
        missing: 700,
      });
      await Promise.all(stores.map((one) => one.close()));
    });

    test("of two instances for one hook: each receipt is sent once, and a killed instance is replaced within seconds", async () => {
      const receiver = new Receiver();
      const env = { REDIS_URL: redis.url, PERE_HOOKS_ALLOW: "127.0.0.0/8" };
      const first = await spawn(env);
      services.push({ stop: () => first.end("SIGKILL") });
      await hook(first.url, receiver);
      await receive(first.url, ["a"], "done");
      await receiver.hear(["a done"]);
      const second = await startOn(redis.url, { hooksAllowed: LOOPBACK });
      services.push(second);
      await receive(second.url, ["b"], "done");
      await receiver.hear(["b done"]);
      await until(async () => (await listed(second.url)).position.endsWith("-4"), "the call to be kept");
      expect(receiver.receipts).toEqual(["a done", "b done"]);
      // The first one has the hooks; what comes in after its end is told by the second.
      await first.end("SIGKILL");
      await receive(second.url, ["c"], "done");
      await receiver.hear(["c done"]);
      expect(receiver.receipts).toEqual(["a done", "b done", "c done"]);
    });

    test("for a deadline whose instance died while processing it: the others take over at once", async () => {
      let now = Date.now();
      const pere = await startOn(redis.url, { now: () => now });
      services.push(pere);
      await ask(`${pere.url}/devices/c/till`, { method: "PUT" });
      const event = await push(pere.url, "c", 1, "?deadline=60");
      // As it is when a process dies between taking the channel up and being done with it.
      now += 61_000;
      await redis.ask("ZREM", "pere:due", "c");
      await redis.ask("ZADD", "pere:due", String(now + 500), "!c");
      const state = async () => (await ask(`${pere.url}/events/c/${event}`)).body.receipts;
      expect(await state()).toMatchObject({ missing: 0 });
      now += 500;
      await until(async () => (await state()).missing === 1, "the till to be missing");
      expect((await give(pere.url, "c", event, "till", "done")).body.recorded).toBe(1);
      expect(await state()).toMatchObject({ missing: 0, done: 1 });
      await until(async () => (await redis.ask("ZCARD", "pere:due")) === ":0", "nothing to be due");
    });

    test("for a deadline that is not processed: a receipt past it is late, and its device was missing before", async () => {
      const stores = await Promise.all([1, 2].map(() => RedisStore.open({ urls: [redis.url], claimMs: CLAIM_MS })));
      const [one, other] = stores as [RedisStore, RedisStore];
      await one.enrol("c", "till", T);
      const { epoch } = await one.append("c", [draft(1, { deadline: 1 })], T);
      // Both record it in one moment, and one looks: it is missing once.
      const words = [word(epoch, 1, "till", "done")];
      const verdicts = await Promise.all([
        one.record("c", words, T + SECOND).then(results),
        other.record("c", words, T + SECOND).then(results),
        missAll(one, T + SECOND),
      ]);
      expect(verdicts.slice(0, 2).flat().toSorted()).toEqual(["duplicate", "recorded"]);
      const entries = await reads.receipts(other, "c", 0, 10);
      expect(entries.map(({ status, late }) => [status, late])).toEqual([
        ["missing", false],
        ["done", true],
        ["pending", false],
        ["pending", false],
      ]);
      await Promise.all(stores.map((store) => store.close()));
    });

    test("for a deadline, when the channel was taken from the list between the two halves of its push", async () => {
      const store = await RedisStore.open({ urls: [redis.url], claimMs: CLAIM_MS });
      await store.enrol("c", "till", T);
      // So short that others may have looked already.
      const pushing = store.append("c", [draft(1, { deadline: 0.001 })], T);
      await missAll(store, T + SECOND);
      await pushing;
      expect(await missAll(store, T + SECOND)).toBeNull();
      expect((await reads.tallies(store, "c", 1, 1)).get(1)).toMatchObject({ missing: 1 });
      await store.close();
    });
  });
});
