/**
 * Trouble between PERE and its Redis: stalled, gone, restarted, full, or cut off as a slow subscriber. Each test is a `Pair`, the trouble, and
 * `pair.isWhole()`.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { PereError } from "../engine/model.ts";
import { draft, T } from "./contract/calls.ts";
import { type Answer, ask, give, push, spawn, until } from "./support/harness.ts";
import {
  byStream,
  closeAll,
  closing,
  connected,
  kill,
  openRedis,
  openService,
  openStore,
  openStream,
  Pair,
  TEST_MS,
  times,
  why,
} from "./support/redis-pair.ts";
import { noRedis, type RedisServer } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

/** Kept when it is killed. */
const DURABLE = { appendonly: "yes", appendfsync: "always" };

/** The connections that are subscribed. */
const subscribers = async (server: RedisServer): Promise<string[]> =>
  (await server.ask("CLIENT", "LIST", "TYPE", "pubsub")).match(/\bid=\d+/g) ?? [];

/** Waits until both instances are subscribed, and ends that. */
async function killSubscribers(server: RedisServer): Promise<void> {
  await until(async () => (await subscribers(server)).length === 2, "two subscribers");
  expect(await server.ask("CLIENT", "KILL", "TYPE", "pubsub")).toBe(":2");
}

const seqOf = (id: string): number => Number(id.slice(id.lastIndexOf("-") + 1));

describe.skipIf(noRedis !== null)(`a real Redis in trouble${why}`, () => {
  test(
    "stalled: requests are refused in time, nothing is queued, and all followers catch up",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      server.pause();
      const never: number[] = [];
      try {
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        never.push(...(await pair.isRefusedAtOnce(pair.a)), ...(await pair.isRefusedAtOnce(pair.b)));
        await pair.turnsAway(pair.b);
      } finally {
        server.resume();
      }
      await pair.isWhole(never);
    },
    TEST_MS,
  );

  test(
    "stalled for a moment, again and again: a push is stored once, however often it is repeated",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      for (let turn = 0; turn < 5; turn++) {
        server.pause();
        const pushes = times(20, (n) => pair.insist(n % 2 ? pair.a : pair.b));
        await Bun.sleep(50 * turn); // So long it is away; calls wait for it.
        server.resume();
        await Promise.all(pushes);
      }
      await pair.isWhole();
    },
    TEST_MS,
  );

  test(
    "killed during pushes, gone, and started again: everything acknowledged is there, in the same epoch",
    async () => {
      const server = await openRedis(DURABLE);
      const pair = await Pair.open(server.url, server.url);
      const pushes = times(400, async (n) => {
        if (n === 100) await kill(server);
        else await pair.try(n % 2 ? pair.a : pair.b);
      });
      await Promise.all(pushes);
      await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
      const never = [...(await pair.isRefusedAtOnce(pair.a)), ...(await pair.isRefusedAtOnce(pair.b))];
      await pair.turnsAway(pair.a);
      await server.restart();
      await pair.isWhole(never);
    },
    TEST_MS,
  );

  test(
    "killed and started again at once, three times",
    async () => {
      const server = await openRedis(DURABLE);
      const pair = await Pair.open(server.url, server.url);
      for (let turn = 0; turn < 3; turn++) {
        const pushes = times(60, (n) => pair.insist(n % 2 ? pair.a : pair.b));
        await server.restart();
        await Promise.all(pushes);
      }
      await pair.isWhole();
    },
    TEST_MS,
  );

  test(
    "its subscribers killed: no follower is affected, neither during many events nor before the last one",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      const receipts = await openStream(`${pair.b}/feedback/orders`);
      for (let turn = 0; turn < 10; turn++) {
        const pushes = times(30, (n) => pair.try(n % 2 ? pair.a : pair.b));
        await killSubscribers(server);
        for (const { answer } of await Promise.all(pushes)) expect(answer.status).toBe(201);
      }
      await pair.caughtUp();
      // The last word of all comes while nobody is subscribed, and nothing follows it.
      await killSubscribers(server);
      const [last] = await Promise.all([pair.try(pair.a), give(pair.a, "orders", pair.first, "till", "received")]);
      expect(last.answer.status).toBe(201);
      await receipts.have(1);
      await pair.isWhole();
      expect(receipts.ended).toBe(false);
      await receipts.have(5);
      expect(receipts.events.map(({ id }) => seqOf(id!))).toEqual([1, 2, 3, 4, 5]);
    },
    TEST_MS,
  );

  test(
    "disconnected as slow subscribers, event after event: missed messages are read from the log",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      const limit = (value: string): Promise<string> =>
        server.ask("CONFIG", "SET", "client-output-buffer-limit", value);
      expect(await limit("pubsub 32kb 16kb 1")).toBe("+OK");
      const before = await subscribers(server);
      expect(before).toHaveLength(2);
      const more = "x".repeat(60_000);
      for (let turn = 0; turn < 10; turn++) {
        const tried = await Promise.all(times(6, (n) => pair.try(n % 2 ? pair.a : pair.b, undefined, more)));
        for (const { answer } of tried) expect(answer.status).toBe(201);
        await pair.caughtUp();
      }
      expect((await subscribers(server)).filter((id) => before.includes(id))).toEqual([]);
      expect(await limit("pubsub 32mb 8mb 60")).toBe("+OK");
      await pair.isWhole();
    },
    TEST_MS,
  );

  test("out of memory: requests are refused in a sentence, and nothing of them is stored", async () => {
    const server = await openRedis();
    const store = await openStore(server);
    await store.append("orders", [draft(1)], T);
    await server.ask("CONFIG", "SET", "maxmemory", "1");
    const error = await store.append("orders", [draft(2)], T).catch((caught: unknown) => caught as PereError);
    expect(error).toBeInstanceOf(PereError);
    expect((error as PereError).code).toBe("away");
    await server.ask("CONFIG", "SET", "maxmemory", "0");
    expect((await store.append("orders", [draft(3)], T)).first).toBe(2);
  });

  test("out of memory: an enrolled device opens its feed and gets what it owes, and a new one is told to come back", async () => {
    const server = await openRedis();
    const url = await openService(server.url);
    for (const device of ["till", "kiosk"]) await ask(`${url}/devices/orders/${device}`, { method: "PUT" });
    const ids: string[] = [];
    for (const n of [1, 2, 3]) ids.push(await push(url, "orders", n));
    // Its feed would store that it owes nothing up to the second one.
    for (const id of ids.slice(0, 2)) expect((await give(url, "orders", id, "till", "done")).status).toBe(200);
    await server.ask("CONFIG", "SET", "maxmemory", "1");
    const till = await openStream(`${url}/feed/orders?device=till`);
    await till.have(1);
    expect(till.ids).toEqual(ids.slice(2));
    const poll = (device: string): Promise<Answer> =>
      ask(`${url}/feed/orders?device=${device}`, { headers: { Accept: "application/json" } });
    expect((await poll("kiosk")).body.events).toHaveLength(3);
    expect((await poll("stranger")).status).toBe(503);
    await server.ask("CONFIG", "SET", "maxmemory", "0");
    expect((await poll("stranger")).status).toBe(200);
    till.close();
  });

  test("scripts flushed: they are sent again", async () => {
    const server = await openRedis();
    const store = await openStore(server);
    await server.ask("SCRIPT", "FLUSH");
    expect((await store.append("orders", [draft(1)], T)).first).toBe(1);
  });

  test(
    "presence: a restored older state does not change which devices are connected now",
    async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server.url), await openService(server.url)];
      await ask(`${a}/devices/orders/kiosk`, { method: "PUT" });
      const till = await openStream(`${b}/feed/orders?device=till`);
      await until(async () => (await connected(a)) === 1, "the till to be connected");
      expect(await server.ask("SAVE")).toBe("+OK");
      // The one comes and the other leaves, and neither is in the state that comes back.
      await openStream(`${b}/feed/orders?device=kiosk`);
      till.close();
      const isConnected = async (): Promise<string> =>
        ((await ask(`${a}/devices/orders`)).body.devices ?? [])
          .filter((device: { connected: boolean }) => device.connected)
          .map(({ device }: { device: string }) => device)
          .join();
      await until(async () => (await isConnected()) === "kiosk", "the kiosk alone to be connected");
      await server.restart();
      await until(async () => (await ask(`${b}/ready`)).status === 200, "Redis");
      await Bun.sleep(1_000); // So long at least does what is known last.
      await until(
        async () => (await isConnected().catch(() => "")) === "kiosk",
        "the kiosk alone to be connected again",
      );
      await Bun.sleep(2_000);
      expect(await isConnected()).toBe("kiosk");
    },
    TEST_MS,
  );

  test(
    "presence: the devices of a killed instance are gone within seconds, also from the counts of a push",
    async () => {
      const server = await openRedis();
      const here = await openService(server.url);
      const there = await spawn({ REDIS_URL: server.url });
      closing.push(() => there.end("SIGKILL"));
      await byStream("kiosk here", `${here}/feed/orders?device=kiosk`);
      const lost = [
        await openStream(`${there.url}/feed/orders?device=till`),
        await openStream(`${there.url}/feed/orders?device=screen`),
      ];
      await until(async () => (await connected(here)) === 3, "all three to be connected");
      await there.end("SIGKILL");
      await until(() => lost.every(({ ended }) => ended), "the feeds to break");
      // One of them comes here at once, and counts at once and once.
      await byStream("till here", `${here}/feed/orders?device=till`);
      await until(async () => (await connected(here)) === 2, "the screen to be gone");
      const { audience } = (await ask(`${here}/push/orders`, { body: 1 })).body;
      expect(audience).toEqual({ addressed: 3, connected: 2 });
      expect((await ask(`${here}/devices/orders`)).body.devices).toMatchObject([
        { device: "kiosk", connected: true },
        { device: "screen", connected: false },
        { device: "till", connected: true },
      ]);
      const again = await spawn({ REDIS_URL: server.url });
      closing.push(() => again.end("SIGKILL"));
      await openStream(`${again.url}/feed/orders?device=screen`);
      await until(async () => (await connected(here)) === 3, "the screen to be back");
    },
    TEST_MS,
  );
});
