/**
 * `PERE_REDIS_REPLICAS`: a push and a receipt are answered only when so many replicas have them. A real Redis with a real replica, which is stalled.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { ask, give, push, startOn, until } from "./support/harness.ts";
import { startCluster } from "./support/redis-cluster-server.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { ANSWER_MS, ownMs } from "./support/own-time.ts";

const TEST_MS = 180_000;

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
}, TEST_MS);

/** A Redis and its replica, which has all that is stored so far. */
async function openPair(): Promise<{ master: RedisServer; replica: RedisServer }> {
  const [master, replica] = await Promise.all([startRedis({ "repl-diskless-sync-delay": "0" }), startRedis()]);
  closing.push(
    () => master.end(),
    () => replica.end(),
  );
  await replica.ask("REPLICAOF", "127.0.0.1", String(master.port));
  const isUp = async () => {
    await master.ask("SET", "first", ""); // Only something written makes an offset.
    return /state=online,offset=[1-9]/.test(await master.ask("INFO", "replication"));
  };
  await until(isUp, "the replica");
  return { master, replica };
}

const openService = async (redis: string, replicas: number): Promise<string> => {
  const service = await startOn(redis, {}, replicas);
  closing.push(() => service.stop());
  return service.url;
};

/** How far a log has come at a server. */
const headAt = async (server: RedisServer, field: "head" | "receiptsHead"): Promise<number> => {
  const said = await server.ask("HGET", "pere:{orders}:counters", field);
  return Number(said.split("\r\n")[1] ?? 0);
};

/** Calls of a command so far. */
const callsOf = async (server: RedisServer, command: string): Promise<number> =>
  Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await server.ask("INFO", "commandstats"))?.[1] ?? 0);

const pushWith = (url: string, key: string, body: unknown) =>
  ask(`${url}/push/orders`, { body, headers: { "Idempotency-Key": key } });

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`with a replica that must have all that is acknowledged${why}`, () => {
  test(
    "what is answered 2xx is at the replica",
    async () => {
      const { master, replica } = await openPair();
      const url = await openService(master.url, 1);
      await ask(`${url}/devices/orders/till`, { method: "PUT" });
      for (let n = 1; n <= 20; n++) {
        const event = await push(url, "orders", n);
        expect(await headAt(replica, "head")).toBe(n);
        expect((await give(url, "orders", event, "till", "done")).status).toBe(200);
        // The receipt, and that the event is complete.
        expect(await headAt(replica, "receiptsHead")).toBe(2 * n);
      }
      // After the scripts were forgotten, they go another way.
      await master.ask("SCRIPT", "FLUSH");
      await push(url, "orders", 21);
      expect(await headAt(replica, "head")).toBe(21);
    },
    TEST_MS,
  );

  test(
    "a replica that stalls: 503 in time, also for repeats, until the replica has it; reads continue",
    async () => {
      const { master, replica } = await openPair();
      const url = await openService(master.url, 1);
      await ask(`${url}/devices/orders/till`, { method: "PUT" });
      const event = await push(url, "orders", 1);
      const answers: { status: number; text: string; ms: number }[] = [];
      const timed = async (call: Promise<{ status: number; text: string }>): Promise<void> => {
        const from = ownMs();
        const { status, text } = await call;
        answers.push({ status, text, ms: ownMs() - from });
      };
      replica.pause();
      try {
        await timed(pushWith(url, "two", 2));
        await timed(give(url, "orders", event, "till", "done"));
        // Repeated they write nothing, and wait all the same.
        await timed(pushWith(url, "two", 2));
        await timed(give(url, "orders", event, "till", "done"));
        // Many that come while the connection waits: nobody is late, and nothing is taken for a Redis that hangs.
        const reads: Promise<number>[] = [];
        const calls: Promise<void>[] = [];
        for (let n = 0; n < 60; n++) {
          calls.push(timed(pushWith(url, `many-${n}`, n)));
          if (n % 10 === 0) reads.push(ask(`${url}/events/orders`).then(({ status }) => status));
          await Bun.sleep(20);
        }
        await Promise.all(calls);
        expect(await Promise.all(reads)).toEqual(reads.map(() => 200));
        expect((await ask(`${url}/ready`)).status).toBe(200);
      } finally {
        replica.resume();
      }
      expect(answers).toHaveLength(64);
      for (const { status, text, ms } of answers) {
        expect(status).toBe(503);
        expect(text).toContain("only 0 of 1 replicas");
        expect(ms).toBeLessThan(ANSWER_MS);
      }
      const answer = await until(async () => {
        const repeated = await pushWith(url, "two", 2);
        return repeated.status !== 503 && repeated;
      }, "the replica");
      expect(await headAt(replica, "head")).toBeGreaterThanOrEqual(2);
      expect(answer.status).toBe(200);
      expect(answer.headers.get("idempotent-replayed")).toBe("true");
      expect(answer.body).toMatchObject({ seq: 2 });
      expect((await give(url, "orders", event, "till", "done")).body).toMatchObject({ recorded: 0, duplicate: 1 });
      expect(await headAt(replica, "receiptsHead")).toBe(2);
      expect((await ask(`${url}/events/orders`)).body.events).toHaveLength(62);
    },
    TEST_MS,
  );

  test(
    "a request stored by one instance and repeated at another waits for the replica too",
    async () => {
      const { master, replica } = await openPair();
      const [a, b] = [await openService(master.url, 1), await openService(master.url, 1)];
      await push(a, "orders", 1);
      await push(b, "orders", 2);
      for (const device of ["till", "kiosk"]) await ask(`${a}/devices/orders/${device}`, { method: "PUT" });
      const named = await push(a, "orders", 3);
      replica.pause();
      try {
        // What is repeated writes nothing, and the other instance has written nothing since that a replica lacks.
        for (let n = 4; n < 8; n++) {
          const first = pushWith(a, `key-${n}`, n);
          await until(async () => (await headAt(master, "head")) === n, "the push");
          expect((await pushWith(b, `key-${n}`, n)).status).toBe(503);
          expect((await first).status).toBe(503);
        }
        for (const [n, device] of ["till", "kiosk"].entries()) {
          const first = give(a, "orders", named, device, "done");
          await until(async () => (await headAt(master, "receiptsHead")) >= n + 1, "the receipt");
          expect((await give(b, "orders", named, device, "done")).status).toBe(503);
          expect((await first).status).toBe(503);
        }
      } finally {
        replica.resume();
      }
    },
    TEST_MS,
  );

  test(
    "fewer replicas than required: 503, and /ready says why",
    async () => {
      const { master } = await openPair();
      const url = await openService(master.url, 2);
      const from = ownMs();
      const answer = await ask(`${url}/push/orders`, { body: 1 });
      expect(ownMs() - from).toBeLessThan(ANSWER_MS);
      expect(answer.status).toBe(503);
      expect(answer.text).toContain("only 1 of 2 replicas");
      expect((await ask(`${url}/ready`)).body.advice.join()).toContain("PERE_REDIS_REPLICAS");
    },
    TEST_MS,
  );

  test(
    "one wait serves many calls",
    async () => {
      const { master, replica } = await openPair();
      const url = await openService(master.url, 1);
      const before = await callsOf(master, "wait");
      replica.pause();
      // All but the first come while somebody waits. On a slow machine some are refused: they have waited as well.
      const pushes = Array.from({ length: 100 }, () => ask(`${url}/push/orders`, { body: 1 }));
      await ask(`${url}/health`).finally(() => replica.resume());
      await Promise.all(pushes);
      const waits = (await callsOf(master, "wait")) - before;
      expect(waits).toBeWithin(1, 50);
    },
    TEST_MS,
  );

  test(
    "in a Cluster each node's own replica must have it",
    async () => {
      const cluster = await startCluster(3, true);
      closing.push(() => cluster.end());
      const url = await openService(cluster.url, 1);
      const owner = await cluster.ownerOf("pere:{orders}:counters");
      const replica = cluster.replicas[cluster.masters.indexOf(owner)]!;
      const other = (await channelsOf(cluster.masters.find((node) => node !== owner)!.id))!;
      for (const channel of ["orders", other]) await push(url, channel, 1);
      replica.pause();
      try {
        const [here, there] = await Promise.all([
          ask(`${url}/push/orders`, { body: 2 }),
          ask(`${url}/push/${other}`, { body: 2 }),
        ]);
        expect(here.status).toBe(503);
        expect(there.status).toBe(201);
      } finally {
        replica.resume();
      }
      await until(async () => (await ask(`${url}/push/orders`, { body: 3 })).status === 201, "the replica");

      /** A channel that a node has. */
      async function channelsOf(id: string): Promise<string | undefined> {
        for (let n = 0; n < 100; n++)
          if ((await cluster.ownerOf(`pere:{shop-${n}}:counters`)).id === id) return `shop-${n}`;
        return undefined;
      }
    },
    TEST_MS,
  );
});
