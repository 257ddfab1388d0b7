/**
 * A network between PERE and its Redis that breaks, swallows and delays.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { until } from "./support/harness.ts";
import {
  closeAll,
  connected,
  openProxy,
  openRedis,
  Pair,
  TEST_MS,
  times,
  UNKNOWN,
  urlOf,
  why,
} from "./support/redis-pair.ts";
import { ANSWER_MS } from "./support/own-time.ts";
import { noRedis } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

describe.skipIf(noRedis !== null)(`a real Redis in trouble${why}`, () => {
  describe("behind a faulty network", () => {
    test(
      "that drops all traffic of one instance: the other continues, and the one gets errors, waits and catches up",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        await until(async () => (await connected(pair.b)) === 3, "three devices to be connected");
        proxy.swallow();
        for (const { answer } of await Promise.all(times(50, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        await pair.isRefused(pair.a);
        await pair.isRefusedAtOnce(pair.a);
        await pair.turnsAway(pair.a);
        // Nothing of it reached Redis.
        const never = pair.book.filter(({ at, answer }) => at === pair.a && answer.status === 503).map(({ n }) => n);
        await until(async () => (await connected(pair.b)) === 2, "the till to be gone, as far as b can know");
        expect((await pair.try(pair.b)).answer.body.audience.connected).toBe(2);
        proxy.pass();
        await pair.isWhole(never);
        await until(async () => (await connected(pair.b)) === 3, "the till to be back");
      },
      TEST_MS,
    );

    test(
      "that drops all traffic of both",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), urlOf(proxy));
        proxy.swallow();
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        await Promise.all([pair.isRefusedAtOnce(pair.a), pair.isRefusedAtOnce(pair.b)]);
        const never = pair.book.filter(({ answer }) => answer.status === 503).map(({ n }) => n);
        proxy.pass();
        await pair.isWhole(never);
      },
      TEST_MS,
    );

    test(
      "that drops the replies: the result is reported as unknown, and a repeat finds it",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.swallow("answers");
        const tried = await Promise.all(times(10, () => pair.try(pair.a)));
        for (const { answer, ms } of tried) {
          expect(answer.status).toBe(503);
          expect(answer.text).toMatch(UNKNOWN);
          expect(ms).toBeLessThan(ANSWER_MS);
        }
        // The others have them already.
        await until(() => pair.followers[1]!.ids().length === 11, "the events at b");
        proxy.pass();
        await pair.isWhole();
      },
      TEST_MS,
    );

    test(
      "that cuts every connection during pushes: a push repeated with its key is stored once",
      async () => {
        const server = await openRedis();
        const proxies = [await openProxy(server), await openProxy(server)] as const;
        const pair = await Pair.open(urlOf(proxies[0]), urlOf(proxies[1]));
        let stored = 0;
        const wasRefused = (): boolean => pair.book.some(({ answer }) => answer.status === 503);
        await Promise.all(
          times(8, async (writer) => {
            for (let n = 0; n < 40 || !wasRefused(); n++) {
              await pair.insist(writer % 2 ? pair.a : pair.b);
              if (++stored % 40 === 0) proxies[(stored / 40) % 2]!.cut();
            }
          }),
        );
        await pair.isWhole();
      },
      TEST_MS,
    );

    test(
      "that refuses connections, and then accepts them again",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        await proxy.stop();
        await pair.isRefused(pair.a);
        const never = await pair.isRefusedAtOnce(pair.a);
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        await proxy.start();
        await pair.isWhole(never);
      },
      TEST_MS,
    );

    test(
      "that is slow: pushes are slow too; beyond the timeout the store is away, and recovers",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.delay(200);
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
        proxy.delay(5_000);
        await pair.isRefused(pair.a);
        proxy.pass();
        await pair.isWhole();
      },
      TEST_MS,
    );
  });
});
