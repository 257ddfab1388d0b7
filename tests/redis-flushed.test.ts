/**
 * A Redis that is flushed, or whose data is put back from an older copy: a new epoch, of which everybody is told.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { ask, give, push, until } from "./support/harness.ts";
import {
  closeAll,
  connected,
  epochOf,
  kill,
  openProxy,
  openRedis,
  openService,
  openStream,
  Pair,
  TEST_MS,
  times,
  urlOf,
  why,
} from "./support/redis-pair.ts";
import { noRedis, type RedisServer } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

describe.skipIf(noRedis !== null)(`a real Redis in trouble${why}`, () => {
  describe("flushed", () => {
    /** Everybody was told of the new life once, and has all of its log. */
    async function isTold(pair: Pair): Promise<void> {
      const old = epochOf(pair.first);
      for (const { who, gaps } of pair.followers) await until(() => gaps().length > 0, `the gap, told to ${who}`);
      await pair.isReady();
      const later = [await pair.insist(pair.a), await pair.insist(pair.b)].map(
        ({ answer }) => answer.body.id as string,
      );
      const log = (await pair.caughtUp()).map(({ id }) => id);
      expect(log.slice(-2)).toEqual(later);
      const epoch = epochOf(later[0]!);
      expect(epoch).not.toBe(old);
      expect(log).toEqual(times(log.length, (n) => `${epoch}-${n + 1}`));
      for (const { who, ids, gaps, isOpen } of pair.followers) {
        const before = ids().filter((id) => epochOf(id) === old);
        const after = ids().filter((id) => epochOf(id) !== old);
        expect([who, ...ids()]).toEqual([who, ...before, ...after]);
        expect([who, ...before]).toEqual([who, ...times(before.length, (n) => `${old}-${n + 1}`)]);
        expect([who, ...after]).toEqual([who, ...log]);
        expect([who, gaps().length, isOpen()]).toEqual([who, 1, true]);
        const [gap] = gaps();
        expect(gap!.channel).toBe("orders");
        expect(epochOf(gap!.after)).toBe(old);
        expect(gap!.from).toBe(`${epoch}-1`);
      }
    }

    test(
      "while idle: every follower of either log is told of a gap; later events and receipts arrive",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        const receipts = await openStream(`${pair.b}/feedback/orders`);
        const both = await openStream(`${pair.b}/feed/orders,others?device=both`);
        const other = await push(pair.a, "others", 1);
        await both.have(1);
        await give(pair.a, "orders", pair.first, "till", "done");
        await receipts.have(1);
        expect(await server.ask("FLUSHALL")).toBe("+OK");
        await isTold(pair);
        expect(epochOf((await receipts.own("gap")).from as string)).not.toBe(epochOf(pair.first));
        const gaps = () =>
          both.messages.filter(({ event }) => event === "pere.gap").map(({ data }) => JSON.parse(data));
        await until(() => gaps().length === 2, "a gap in each of two channels");
        expect(gaps().map(({ channel }) => channel as string)).toContainAllValues(["orders", "others"]);
        const [otherAgain, event] = [await push(pair.a, "others", 2), await push(pair.b, "orders", 2)];
        expect(epochOf(otherAgain)).not.toBe(epochOf(other));
        await until(() => {
          const ids = both.events.map(({ data }) => (JSON.parse(data) as { id: string }).id);
          return ids.includes(otherAgain) && ids.includes(event);
        }, "events of both channels on one feed");
        // Who was there all the time is enrolled again, and may give receipts.
        const till = () => give(pair.a, "orders", event, "till", "done");
        await until(async () => (await ask(`${pair.a}/devices/orders`)).body.devices?.length === 4, "the devices");
        const addressed = await push(pair.a, "orders", 3);
        expect((await give(pair.b, "orders", addressed, "till", "done")).body).toMatchObject({ recorded: 1 });
        await receipts.have(2);
        expect([200, 422]).toContain((await till()).status);
        // An id of the life that was is not taken for one of this.
        expect((await give(pair.b, "orders", pair.first, "till", "done")).status).toBe(422);
        expect((await ask(`${pair.a}/channels`)).body.channels).toHaveLength(2);
        await until(async () => (await connected(pair.b)) === 4, "everybody to be connected again");
        expect(both.ended || receipts.ended).toBe(false);
      },
      TEST_MS,
    );

    test(
      "during pushes: the log of the new epoch is delivered from its first event on",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await Promise.all(
          times(200, async (n) => {
            if (n === 100) expect(await server.ask("FLUSHALL")).toBe("+OK");
            else expect((await pair.try(n % 2 ? pair.a : pair.b)).answer.status).toBe(201);
          }),
        );
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "while an instance is cut off, and longer than before when it reconnects: it is not mistaken for the old log",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.swallow();
        await pair.isRefused(pair.a);
        expect(await server.ask("FLUSHALL")).toBe("+OK");
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        proxy.pass();
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "by a restart without persistence",
      async () => {
        const server = await openRedis({ appendonly: "no" });
        const pair = await Pair.open(server.url, server.url);
        await kill(server);
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        await server.restart();
        await isTold(pair);
      },
      TEST_MS,
    );

    /** Redis has eleven events, and comes back with the first alone, as it was written to its snapshot. */
    async function putBack(server: RedisServer, pair: Pair): Promise<void> {
      expect(await server.ask("SAVE")).toBe("+OK");
      for (const { answer } of await Promise.all(times(10, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
      await pair.caughtUp();
      await server.restart();
    }

    test(
      "in part, by a restart that restores an older state",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await putBack(server, pair);
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "in part, and at once as long as before: no new event is mistaken for a lost one",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await putBack(server, pair);
        const pushes = await Promise.all(times(30, (n) => pair.insist(n % 2 ? pair.a : pair.b)));
        await isTold(pair);
        const stored = new Set((await pair.log()).map(({ n }) => n));
        expect(pushes.filter(({ n }) => !stored.has(n))).toEqual([]);
      },
      TEST_MS,
    );

    test(
      "in part, and longer than before when followers of the old state reconnect: nothing is skipped silently",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), urlOf(proxy));
        await server.ask("SAVE");
        for (const { answer } of await Promise.all(times(10, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
        await pair.caughtUp();
        await proxy.stop();
        await server.restart();
        // Another instance, which knows nothing, is the first to push.
        const other = await openService(server.url);
        for (const { answer } of await Promise.all(times(20, () => pair.try(other)))) expect(answer.status).toBe(201);
        await proxy.start();
        await isTold(pair);
      },
      TEST_MS,
    );
  });
});
