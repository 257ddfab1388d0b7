/**
 * The Redis store while all is well: the contract that every store keeps, and what only a memory has that many instances share: they hear
 * each other, and know who is connected where. What happens in trouble is in `redis-trouble.test.ts`.
 *
 * Every test talks to a real redis-server.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import type { EventDraft } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import type { Extent, Wake } from "../engine/store.ts";
import type { Service } from "../index.ts";
import { CLAIM_MS, reads } from "./contract/calls.ts";
import { storeContract } from "./contract/contract.ts";
import { ask, give, listen, push, spawn, startOn, type Stream, until } from "./support/harness.ts";
import { Proxy } from "./support/proxy.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

/** The longest that a test takes which starts processes, on a slow machine. */
const PROCESS_MS = 180_000;
const T = Date.UTC(2026, 0, 1);
const draft = (data: unknown): EventDraft => ({
  type: null,
  data: JSON.stringify(data),
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
});

/** Redis as most of these tests want it. */
let redis: RedisServer;
/** Stores that must not hear of each other have prefixes of their own. */
let prefixes = 0;
const prefix = (): string => `test-${++prefixes}:`;

/** What the running test opened; what a failed one left is closed. */
const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
const openStore = async (name: string, on = redis): Promise<RedisStore> => {
  const store = await RedisStore.open({ urls: [on.url], prefix: name, claimMs: CLAIM_MS });
  closing.push(() => store.close());
  return store;
};
const openService = async (on: RedisServer): Promise<Service> => {
  const service = await startOn(on.url);
  closing.push(() => service.stop());
  return service;
};
const openRedis = async (settings: Record<string, string> = {}): Promise<RedisServer> => {
  const server = await startRedis(settings);
  closing.push(() => server.end());
  return server;
};
const open = async (url: string): Promise<Stream> => {
  const stream = await listen(url);
  closing.push(async () => stream.close());
  return stream;
};

/** What a store is told of the events of `orders`. */
async function hearing(store: RedisStore): Promise<{ seqs: number[]; wakes: Wake[]; extents: Extent[] }> {
  const heard = { seqs: [] as number[], wakes: [] as Wake[], extents: [] as Extent[] };
  store.watch(
    (wake) => {
      heard.wakes.push(wake);
      if (wake.kind !== "retired") heard.seqs.push(...wake.entries.map(({ seq }) => seq));
    },
    (extent) => heard.extents.push(extent),
  );
  await store.follow("events", "orders");
  return heard;
}

const upTo = (count: number): number[] => Array.from({ length: count }, (_, n) => n + 1);
const seqsOf = (stream: Stream): number[] => stream.events.map(({ data }) => (JSON.parse(data) as { seq: number }).seq);

describe.skipIf(noRedis !== null)(`on a real Redis${noRedis === null ? "" : ` (skipped: ${noRedis})`}`, () => {
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(async () => {
    await redis.end();
  });

  storeContract(
    "RedisStore",
    async () => {
      const name = prefix();
      return {
        store: await RedisStore.open({ urls: [redis.url], prefix: name, claimMs: CLAIM_MS }),
        reopen: () => openStore(name),
      };
    },
    { histories: 40 },
  );

  test("a read during retention has no hole: it ends before the gap, and the next one begins after it", async () => {
    const store = await openStore(prefix());
    const { epoch } = await store.append("orders", upTo(300).map(draft), T);
    // The first step of the read is on its way when retention follows it.
    const [found] = await Promise.all([
      store.events("orders", epoch, 0, 300),
      store.trim("orders", { count: 50, before: 0 }, T),
    ]);
    const seqs = found!.map(({ seq }) => seq);
    expect(seqs).toEqual(upTo(seqs.length));
    const rest = await reads.events(store, "orders", seqs.length, 300);
    expect(rest.map(({ seq }) => seq)).toEqual(upTo(300).slice(250));
  });

  describe("two instances", () => {
    test("are notified of each other's entries and their own, in order, exactly once", async () => {
      const name = prefix();
      const [a, b] = [await openStore(name), await openStore(name)];
      const [atA, atB] = [await hearing(a), await hearing(b)];
      await Promise.all(upTo(100).map((n) => (n % 2 ? a : b).append("orders", [draft(n)], T)));
      for (const { seqs } of [atA, atB]) {
        await until(() => seqs.length >= 100, "100 entries");
        expect(seqs).toEqual(upTo(100));
      }
      expect(atA.wakes).toEqual(atB.wakes);
    });

    test("have all heard of a withdrawal, also of one by a newer event, when it is answered, but for one that is cut off", async () => {
      const name = prefix();
      const far = await Proxy.to(redis.port);
      closing.push(() => far.stop());
      const [a, b] = [
        await openStore(name),
        await RedisStore.open({ urls: [`redis://127.0.0.1:${far.port}`], prefix: name }),
      ];
      closing.push(() => b.close());
      const atB = await hearing(b);
      await a.enrol("orders", "till", T);
      const { epoch } = await a.append("orders", [{ ...draft(0), key: "k" }], T);
      far.delay(150);
      await a.append("orders", [{ ...draft(1), key: "k" }], T);
      expect(atB.seqs).toEqual([1, 2, 3]);
      expect(await a.withdraw("orders", { epoch, seq: 2 }, null, T)).toBe("withdrawn");
      expect(atB.seqs).toEqual([1, 2, 3, 4]);
      far.swallow();
      await a.append("orders", [draft(2)], T);
      expect(await a.withdraw("orders", { epoch, seq: 5 }, null, T)).toBe("withdrawn");
      expect(atB.seqs).toEqual([1, 2, 3, 4]);
    });

    test("are notified only of logs that they follow, and only as long as they follow them", async () => {
      const name = prefix();
      const store = await openStore(name);
      const { seqs } = await hearing(store);
      const subscribed = () => redis.ask("PUBSUB", "CHANNELS", `${name}{*`);
      expect(await subscribed()).toEndWith(`${name}{orders}:events`);
      await store.append("others", [draft(1)], T);
      await store.append("orders", [draft(1)], T);
      await until(() => seqs.length > 0, "an entry");
      expect(seqs).toEqual([1]);
      store.unfollow("events", "orders");
      await until(async () => (await subscribed()) === "*0", "no subscription");
      // Followed again at once, it is heard again.
      await store.follow("events", "orders");
      store.unfollow("events", "orders");
      await store.follow("events", "orders");
      await store.append("orders", [draft(2)], T);
      await until(() => seqs.length > 1, "another entry");
    });

    test("are notified of a batch that is too large for a message, and read it", async () => {
      const service = await openService(await openRedis());
      const feed = await open(`${service.url}/feed/orders`);
      const lines = upTo(20).map(() => JSON.stringify("x".repeat(30_000)));
      await ask(`${service.url}/push/orders`, { body: lines.join("\n"), type: "application/x-ndjson" });
      await feed.have(20);
      expect(seqsOf(feed)).toEqual(upTo(20));
    });

    test("find unannounced entries by checking", async () => {
      const name = prefix();
      const store = await openStore(name);
      const { seqs, extents } = await hearing(store);
      const { epoch } = await store.append("orders", [draft(1)], T);
      await until(() => seqs.length > 0, "an entry");
      await redis.ask("XADD", `${name}{orders}:events`, "2-0", "v", `${T}    2`);
      await redis.ask("HSET", `${name}{orders}:counters`, "head", "2");
      await until(() => extents.length > 0, "the extent");
      expect(extents).toEqual([{ kind: "events", channel: "orders", epoch, head: 2 }]);
    });

    test("serve one feed after the other: push to any, follow at any, send a receipt to any", async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server), await openService(server)];
      const feed = await open(`${b.url}/feed/orders?device=till`);
      const receipts = await open(`${a.url}/feedback/orders`);
      const event = await push(a.url, "orders", 1);
      expect((await feed.have(1))[0]!.id).toBe(event);
      expect((await give(b.url, "orders", event, "till", "done")).body).toMatchObject({ recorded: 1 });
      expect(JSON.parse((await receipts.have(1))[0]!.data)).toMatchObject({ event, device: "till", status: "done" });
      expect((await ask(`${a.url}/events/orders/${event}`)).body.complete).toBe(true);

      feed.close();
      await push(a.url, "orders", 2);
      const again = await open(`${a.url}/feed/orders?device=till`);
      await again.have(1);
      expect(seqsOf(again)).toEqual([2]);
    });
  });

  describe("retiring a device", () => {
    const retire = (url: string) => ask(`${url}/devices/orders/till`, { method: "DELETE" });

    test("ends its feeds at every instance, and no others", async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server), await openService(server)];
      const feeds = [
        await open(`${a.url}/feed/orders?device=till`),
        await open(`${b.url}/feed/orders?device=till`),
        await open(`${b.url}/feed/others,orders?device=till`),
      ];
      const stay = [
        await open(`${b.url}/feed/orders?device=kiosk`),
        await open(`${b.url}/feed/orders`),
        await open(`${b.url}/feed/others?device=till`),
        await open(`${b.url}/feedback/orders`),
      ];
      expect((await retire(a.url)).status).toBe(204);
      for (const feed of feeds) {
        expect(await feed.own("bye")).toEqual({ reason: "expired" });
        await until(() => feed.ended, "the feed to end");
      }
      expect((await retire(a.url)).status).toBe(404);
      expect(b.engine.held).toMatchObject({ feeds: 4, present: 2 });
      await push(a.url, "orders", 1);
      await Promise.all([stay[0]!.have(1), stay[1]!.have(1)]);
      expect(stay.some(({ ended }) => ended)).toBe(false);
    });

    test("works at an instance that does not follow the channel", async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server), await openService(server)];
      const feed = await open(`${b.url}/feed/orders?device=till`);
      expect((await retire(a.url)).status).toBe(204);
      expect(await feed.own("bye")).toEqual({ reason: "expired" });
      // Enrolled anew it is as any other.
      const again = await open(`${b.url}/feed/orders?device=till`);
      expect((await ask(`${a.url}/push/orders`, { body: 1 })).body.audience.addressed).toBe(1);
      await again.have(1);
    });
  });

  describe("presence", () => {
    const connected = async (url: string): Promise<number> =>
      (await ask(`${url}/channels`)).body.channels[0].connected as number;

    test("of a device is known at every instance; a device at two instances counts once", async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server), await openService(server)];
      const till = await open(`${b.url}/feed/orders?device=till`);
      await until(async () => (await connected(a.url)) === 1, "the till to be connected");
      const tillHere = await open(`${a.url}/feed/orders?device=till`);
      await open(`${a.url}/feed/orders?device=kiosk`);
      await until(async () => (await connected(b.url)) === 2, "both to be connected");
      const pushed = await ask(`${a.url}/push/orders`, { body: 1 });
      expect(pushed.body.audience).toEqual({ addressed: 2, connected: 2 });
      expect((await ask(`${b.url}/devices/orders`)).body.devices).toMatchObject([
        { device: "kiosk", connected: true },
        { device: "till", connected: true },
      ]);
      till.close();
      tillHere.close();
      await until(async () => (await connected(b.url)) === 1, "the till to be gone");
      expect((await ask(`${b.url}/push/orders?to=till,kiosk`, { body: 2 })).body.audience.connected).toBe(1);
    });

    test("is written again after Redis lost it", async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server), await openService(server)];
      await open(`${b.url}/feed/orders?device=till`);
      await until(async () => (await connected(a.url)) === 1, "the till to be connected");
      await server.ask("FLUSHALL");
      await until(async () => {
        const { channels } = (await ask(`${a.url}/channels`)).body;
        return channels.length === 1 && channels[0].devices === 1 && channels[0].connected === 1;
      }, "the till to be connected again");
    });

    test("a lease has one holder; its number grows when it changes hands", async () => {
      const name = prefix();
      const [a, b] = [await openStore(name), await openStore(name)];
      const number = (await a.lease("work", "a", 300))!;
      expect(await b.lease("work", "b", 300)).toBeNull();
      expect(await a.lease("work", "a", 300)).toBe(number);
      let taken: number | null = null;
      await until(async () => (taken = await b.lease("work", "b", 60_000)) !== null, "the lease to end");
      expect(taken!).toBe(number + 1);
      expect(await a.lease("work", "a", 300)).toBeNull();
    });
  });

  describe("its guarantee", () => {
    test.each([
      [{ appendonly: "no" }, "memory"],
      [{ appendonly: "yes", appendfsync: "everysec" }, "second"],
      [{ appendonly: "yes", appendfsync: "always" }, "fsync"],
      [{ appendonly: "yes", appendfsync: "no" }, "memory"],
    ] as const)("is read from the settings of Redis: with %j it is %s", async (settings, durability) => {
      const service = await openService(await openRedis(settings));
      expect((await ask(`${service.url}/ready`)).body).toMatchObject({ status: "ready", store: "redis", durability });
    });

    test(
      "holds for a process started with REDIS_URL; without a Redis there, it says so in one line",
      async () => {
        const pere = await spawn({ REDIS_URL: redis.url });
        closing.push(() => pere.end("SIGKILL"));
        expect((await ask(`${pere.url}/ready`)).body.store).toBe("redis");
        expect(await pere.end("SIGTERM")).toBe(0);
        const said = await spawn({ REDIS_URL: "redis://127.0.0.1:1" }).catch((error: Error) => error.message);
        expect(said).toMatch(/^PERE can't start: Redis can't be reached: [^\n]*$/);
      },
      PROCESS_MS,
    );
  });
});
