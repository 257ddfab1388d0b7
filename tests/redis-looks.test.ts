/**
 * What it costs to look at many followed logs that are quiet, counted on a real Redis: calls, logs per call, promises; and what the looks find all the
 * same.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { heapStats } from "bun:jsc";
import { RedisLink } from "../engine/redis/connection.ts";
import { readExtents } from "../engine/redis/extents.ts";
import { keysWith } from "../engine/redis/keys.ts";
import { SCRIPTS } from "../engine/redis/scripts.ts";
import type { RedisStore } from "../engine/redis/store.ts";
import { RedisSubscriber } from "../engine/redis/subscriber.ts";
import type { Extent } from "../engine/store.ts";
import { draft, T } from "./contract/calls.ts";
import { until } from "./support/harness.ts";
import { closeAll, closing, openRedis, openStore, TEST_MS, times, why } from "./support/redis-pair.ts";
import { noRedis, type RedisServer } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

const LOGS = 1_000;
/** As `subscriber.ts` has it. */
const LOGS_A_CALL = 250;
const CALLS = LOGS / LOGS_A_CALL;
const CHANNELS = times(LOGS, (n) => `c${n}`);

/** Appends an event to each channel as if its message was lost. */
const appendUnheard = (server: RedisServer, channels: readonly string[]): Promise<string> =>
  server.ask(
    "EVAL",
    `for n = 1, #KEYS, 2 do
       redis.call('XADD', KEYS[n], redis.call('HINCRBY', KEYS[n + 1], 'head', 1) .. '-0', 'v', '${T}      "lost"')
     end`,
    String(2 * channels.length),
    ...channels.flatMap((channel) => [`pere:{${channel}}:events`, `pere:{${channel}}:counters`]),
  );

const follow = (store: Pick<RedisStore, "follow">, channels: readonly string[]): Promise<unknown> =>
  Promise.all(channels.map((channel) => store.follow("events", channel)));

/** How often Redis ran a command since its counts were reset, alone or in scripts. */
async function calls(server: RedisServer, command: string): Promise<number> {
  const stats = await server.ask("INFO", "commandstats");
  return Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0);
}

interface Look {
  readonly logs: number;
  readonly entries: number;
  /** Turns of a short timer until it began. */
  readonly at: number;
}

/** A subscriber on a real Redis, and what it looked at. */
async function watched(server: RedisServer) {
  const link = new RedisLink([server.url]);
  await link.start();
  const looks: Look[] = [];
  const renewed: string[] = [];
  const extents: Extent[] = [];
  let ticks = 0;
  const timer = setInterval(() => ticks++, 10);
  const store = await openStore(server);
  const keys = keysWith("pere:");
  const subscriber = new RedisSubscriber([server.url], "pere:", {
    name: (kind, channel) => keys(channel).topic(kind),
    heads: (channel) => store.heads(channel),
    heard: () => {},
    async look(logs, entries) {
      looks.push({ logs: logs.length, entries: entries.filter((entry) => entry > 0).length, at: ticks });
      const read = (...groups: Parameters<Parameters<typeof readExtents>[0]>) =>
        link.readGroups(SCRIPTS.extents, groups[0], groups[1]);
      const found = await readExtents(read, "pere:", logs, entries);
      return found.map((read) => (read instanceof Error ? read : { heads: read.heads!, entry: read.entry }));
    },
    tell: async () => {},
    renew(channel: string, lost: string) {
      renewed.push(channel);
      return link.run(SCRIPTS.renew, keys(channel).all, [lost, `new${renewed.length}`]);
    },
  });
  closing.unshift(async () => {
    clearInterval(timer);
    await Promise.all([subscriber.close(), link.close()]);
  });
  await subscriber.start();
  subscriber.watch(
    () => {},
    (extent) => extents.push(extent),
    () => {},
  );
  return { store, subscriber, looks, renewed, extents };
}

describe.skipIf(noRedis !== null)(`looks at followed logs on a real Redis${why}`, () => {
  test(
    "one call reads 250 logs, the calls of one look are spread over its interval, and a quiet log keeps no promise",
    async () => {
      const server = await openRedis();
      const { store, subscriber, looks } = await watched(server);
      await Promise.all(CHANNELS.map((channel) => store.open(channel)));
      const promises = (): number => {
        Bun.gc(true);
        return heapStats().objectTypeCounts.Promise ?? 0;
      };
      const before = promises();
      await follow(subscriber, CHANNELS);
      await until(() => looks.length > 0, "a look");
      expect(promises() - before).toBeLessThan(LOGS / 10);
      // The rest of a look that began before all were followed.
      const first = looks.length;
      await until(() => looks.length >= first + 3 * CALLS, "three looks");
      const calls = looks.slice(first, first + 3 * CALLS);
      expect(calls.map(({ logs, entries }) => [logs, entries])).toEqual(times(3 * CALLS, () => [LOGS_A_CALL, 0]));
      for (const [index, { at }] of calls.entries()) if (index > 0) expect(at).toBeGreaterThan(calls[index - 1]!.at);
    },
    TEST_MS,
  );

  test(
    "Redis runs one script for 250 quiet logs, and reads no entry of any",
    async () => {
      const server = await openRedis();
      const store = await openStore(server);
      await Promise.all(CHANNELS.map((channel) => store.append(channel, [draft("first")], T)));
      await follow(store, CHANNELS);
      // Of an entry that was not received as a message, the first look reads what later ones compare.
      await until(async () => (await calls(server, "xrange")) >= LOGS, "the first entries");
      await server.ask("CONFIG", "RESETSTAT");
      await until(async () => (await calls(server, "hmget")) >= 2 * LOGS, "two looks");
      const [scripts, hmget, beats] = await Promise.all([
        calls(server, "evalsha"),
        calls(server, "hmget"),
        calls(server, "zremrangebyscore"),
      ]);
      expect(scripts - beats).toBeLessThanOrEqual(Math.ceil(hmget / LOGS_A_CALL) + 1);
      expect(await calls(server, "xrange")).toBe(0);
    },
    TEST_MS,
  );

  test(
    "lost messages of many logs are found within two looks",
    async () => {
      const server = await openRedis();
      const { store, subscriber, looks, extents } = await watched(server);
      await Promise.all(CHANNELS.map((channel) => store.open(channel)));
      await Promise.all(CHANNELS.map((channel) => store.append(channel, [draft("first")], T)));
      await follow(subscriber, CHANNELS);
      await until(() => extents.length >= LOGS, "the extents");
      extents.length = 0;
      for (let at = 0; at < LOGS; at += LOGS_A_CALL) await appendUnheard(server, CHANNELS.slice(at, at + LOGS_A_CALL));
      const before = looks.reduce((sum, { logs }) => sum + logs, 0);
      await until(() => extents.length >= LOGS, "the lost events");
      expect(looks.reduce((sum, { logs }) => sum + logs, 0) - before).toBeLessThanOrEqual(2 * LOGS);
      expect(new Set(extents.map(({ channel }) => channel)).size).toBe(LOGS);
      expect(extents.every(({ head }) => head === 2)).toBe(true);
    },
    TEST_MS,
  );

  test(
    "after a new connection the last entries are compared at once, some per call, and only logs with another one get a new epoch",
    async () => {
      const server = await openRedis();
      const { store, subscriber, looks, renewed, extents } = await watched(server);
      const some = CHANNELS.slice(0, 100);
      await Promise.all(some.map((channel) => store.open(channel)));
      await follow(subscriber, some);
      await Promise.all(some.map((channel) => store.append(channel, [draft("first")], T)));
      const isRead = (): boolean => looks.slice(-1)[0]?.entries === 0 && looks.slice(-1)[0]?.logs === some.length;
      await until(isRead, "a look at quiet logs");
      const other = ["c7", "c42"];
      for (const channel of other)
        await server.ask(
          "EVAL",
          `redis.call('DEL', KEYS[1]) return redis.call('XADD', KEYS[1], '1-0', 'v', '${T}      "other"')`,
          "1",
          `pere:{${channel}}:events`,
        );
      looks.length = 0;
      subscriber.markUnverified();
      await until(
        () => looks.reduce((sum, { entries }) => sum + entries, 0) >= some.length + other.length,
        "the check",
      );
      expect(renewed).toEqual(other);
      // Each of the others is read once more in its new epoch.
      expect(looks.filter(({ logs }) => logs > 1).map(({ logs, entries }) => [logs, entries])).toEqual([
        [32, 32],
        [32, 32],
        [32, 32],
        [4, 4],
      ]);
      const told = (): string[] => extents.flatMap(({ epoch, channel }) => (epoch.startsWith("new") ? [channel] : []));
      await until(() => told().length >= other.length, "the new epochs");
      expect(told()).toEqual(other);
    },
    TEST_MS,
  );
});
