/**
 * Several services on one Redis, each in a database of its own or under a prefix of its own: none hears, ends or rates what is another's. And a message
 * is believed only when it is of the log's own epoch, for on Pub/Sub anybody may speak.
 *
 * That something is not heard is said after something behind it was.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { ask, give, listen, push, startWith, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

describe.skipIf(noRedis !== null)("on one Redis", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());
  beforeEach(() => redis.ask("FLUSHALL"));
  const closing: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const close of closing.splice(0).reverse()) await close();
  });

  const open = async (database: number, redisPrefix = "pere:", rates = { push: 0, receipt: 0, feed: 0 }) => {
    const service: Service = await startWith({
      access: "open",
      redis: [`${redis.url}/${database}`],
      redisPrefix,
      rates,
    });
    closing.push(() => service.stop());
    return service.url;
  };
  const follow = async (url: string) => {
    const stream = await listen(url);
    closing.push(async () => stream.close());
    return stream;
  };

  const NEIGHBOURS: [string, () => Promise<[string, string]>][] = [
    ["databases", async () => [await open(0), await open(1)]],
    ["other databases", async () => [await open(12), await open(1)]],
    ["prefixes", async () => [await open(0), await open(0, "shop:")]],
    ["prefixes in another database", async () => [await open(3, "a:"), await open(3, "b:")]],
  ];

  describe.each(NEIGHBOURS)("two services with their own %s", (_, both) => {
    test("have separate events, devices, receipts and feeds, whatever the other does", async () => {
      const [here, there] = await both();
      const streams = await Promise.all([here, there].map((url) => follow(`${url}/feed/orders?device=till`)));
      const told = await follow(`${there}/feedback/orders`);
      expect((await ask(`${here}/devices/orders/till`, { method: "DELETE" })).status).toBe(204);
      await until(() => streams[0]!.ended, "the retired device's feed to end");
      const mine = await push(here, "orders", "here");
      const theirs = await push(there, "orders", "there");
      await streams[1]!.have(1);
      expect(streams[1]!.ids).toEqual([theirs]);
      expect((await give(here, "orders", theirs, "till", "done")).status).toBe(422);
      expect((await give(there, "orders", theirs, "till", "done")).status).toBe(200);
      await told.have(1);
      expect(told.events.map(({ data }) => JSON.parse(data).event)).toEqual([theirs]);
      expect((await ask(`${here}/events/orders`)).body.events.map(({ id }: { id: string }) => id)).toEqual([mine]);
      expect(streams[1]!.ended).toBe(false);
    });
  });

  test("rates are counted under the prefix, separately for each service", async () => {
    const rates = { push: 2, receipt: 0, feed: 0 };
    const [here, there] = [await open(0, "a:", rates), await open(0, "b:", rates)];
    const status = async (url: string) => (await ask(`${url}/push/orders`, { body: "1" })).status;
    expect([await status(here), await status(here), await status(here)]).toEqual([201, 201, 429]);
    expect([await status(there), await status(there)]).toEqual([201, 201]);
    expect(await redis.ask("KEYS", "[^ab]*")).toBe("*0");
  });

  test("the default prefix gives the same keys as earlier versions", async () => {
    const url = await open(0);
    await push(url, "orders", 1);
    expect(await redis.ask("EXISTS", "pere:{orders}:counters", "pere:{orders}:events", "pere:channels")).toBe(":3");
    await follow(`${url}/feed/orders?device=till`);
    expect(await redis.ask("PUBSUB", "NUMSUB", "pere:{orders}:events")).toEndWith(":1");
  });

  test("a message with another epoch is not trusted, and causes a check of that log only", async () => {
    const store = await RedisStore.open({ urls: [redis.url] });
    closing.push(() => store.close());
    const url = await open(0);
    const streams = [await follow(`${url}/feed/orders?device=till`), await follow(`${url}/feed/others?device=till`)];
    const { epoch } = (await store.heads("orders"))!;
    const say = (...words: string[]) => redis.ask("PUBLISH", "pere:{orders}:events", words.join("\x1e"));
    await say("another retired till");
    await say("another 1 1", '0      "not an event of this log"');
    await say("another");
    await say("");
    await say(`${epoch} what 1`);
    await say(`${epoch} 1`);
    const id = await push(url, "orders", "true");
    await streams[0]!.have(1);
    const next = await push(url, "orders", "and the next");
    await streams[0]!.have(2);
    expect(streams[0]!.ids).toEqual([id, next]);
    expect(streams.map(({ ended }) => ended)).toEqual([false, false]);
    await say(`${epoch} retired till`);
    await until(() => streams[0]!.ended, "the feed of the device that its own log says was retired");
    expect(streams[1]!.ended).toBe(false);
  });

  test("a retirement is received even if nothing of the log was received before", async () => {
    const [one, other] = [await open(0), await open(0)];
    await push(one, "orders", 1);
    const stream = await follow(`${other}/feed/orders?device=till`);
    await ask(`${one}/devices/orders/till`, { method: "DELETE" });
    await until(() => stream.ended, "the feed at the other instance to end");
  });
});
