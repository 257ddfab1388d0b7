/**
 * A Redis whose data is replaced under one store's feet: what is told of it, and that nothing old is told as new.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { EventDraft } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import type { Extent } from "../engine/store.ts";
import { dataOf, draft, T } from "./contract/calls.ts";
import { until } from "./support/harness.ts";
import { closeAll, openRedis, openStore, TEST_MS, why } from "./support/redis-pair.ts";
import { noRedis, type RedisServer } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

describe.skipIf(noRedis !== null)(`a real Redis in trouble${why}`, () => {
  describe("restored to an older state under a running store", () => {
    /** What the store is told of `orders`: each event as `epoch-seq data`, and each extent. */
    async function hearing(store: RedisStore): Promise<{ events: string[]; extents: Extent[] }> {
      const heard = { events: [] as string[], extents: [] as Extent[] };
      store.watch(
        (wake) => {
          if (wake.kind === "events")
            heard.events.push(...wake.entries.map((entry) => `${wake.epoch}-${entry.seq} ${dataOf([entry])[0]}`));
        },
        (extent) => heard.extents.push(extent),
      );
      await store.follow("events", "orders");
      return heard;
    }
    const drafts = (...data: readonly string[]): EventDraft[] => data.map((text) => draft(text));
    /** A store that has stored three events and heard of them. */
    async function three() {
      const server = await openRedis();
      const store = await openStore(server);
      const heard = await hearing(store);
      const { epoch } = await store.append("orders", drafts("a", "b", "c"), T);
      await until(() => heard.events.length === 3, "three events");
      return { server, store, ...heard, epoch };
    }
    /** In one step the log has only these events, as if an older state had been put back and had grown again. */
    const replace = (server: RedisServer, ...data: readonly string[]): Promise<string> =>
      server.ask(
        "EVAL",
        `redis.call('DEL', KEYS[1])
         for seq, data in ipairs(ARGV) do redis.call('XADD', KEYS[1], seq .. '-0', 'v', '${T}    "' .. data .. '"') end
         return redis.call('HSET', KEYS[2], 'head', #ARGV)`,
        "2",
        "pere:{orders}:events",
        "pere:{orders}:counters",
        ...data,
      );
    /** The connections of a store, one or both. */
    const LOST = ["normal", "pubsub", "normal and pubsub"];
    const cut = async (server: RedisServer, types: string): Promise<void> => {
      // One that was cut before may be on its way back.
      for (const type of types.split(" and "))
        await until(async () => (await server.ask("CLIENT", "KILL", "TYPE", type)) === ":1", `a ${type} connection`);
    };

    test(
      "to fewer events, with no connection lost: a new epoch",
      async () => {
        const { server, store, extents, epoch } = await three();
        await replace(server, "a");
        await until(() => extents.length > 0, "the extent");
        expect(extents[0]).toMatchObject({ head: 1 });
        expect(extents[0]!.epoch).not.toBe(epoch);
        expect((await store.heads("orders"))!.epoch).toBe(extents[0]!.epoch);
      },
      TEST_MS,
    );

    test(
      "to an event with its Idempotency-Key: the key returns it under its new id, and stores nothing again",
      async () => {
        const server = await openRedis();
        const store = await openStore(server);
        const { extents } = await hearing(store);
        const key = { key: "1", digest: "one:a" };
        const { epoch } = await store.append("orders", drafts("a"), T, key);
        await store.append("orders", drafts("b", "c"), T);
        await replace(server, "a");
        await until(() => extents.some((extent) => extent.epoch !== epoch), "another epoch");
        const again = await store.append("orders", drafts("a"), T, key);
        expect(again).toMatchObject({ epoch: extents.at(-1)!.epoch, first: 1, replayed: true });
        // A key of an event that is gone, and one that came since.
        const other = { key: "2", digest: "one:d" };
        expect(await store.append("orders", drafts("d"), T, other)).toMatchObject({ first: 2, replayed: false });
        expect(await store.append("orders", drafts("d"), T, other)).toMatchObject({ first: 2, replayed: true });
      },
      TEST_MS,
    );

    test.each(LOST)(
      "to more and other events, while %s connections are lost: a new epoch, and none of its events is mistaken for an old one",
      async (types) => {
        const { server, store, events, extents, epoch } = await three();
        await replace(server, "a", "x", "y", "z");
        await cut(server, types);
        // Messages come as soon as it is subscribed again, before it has looked.
        await until(async () => {
          if (types !== "normal") await server.ask("PUBLISH", "pere:{orders}:events", `${epoch} 5 5\x1e${T}    "w"`);
          return extents.length > 0;
        }, "the extent");
        expect(events).toEqual(["a", "b", "c"].map((data, n) => `${epoch}-${n + 1} "${data}"`));
        expect(extents[0]).toMatchObject({ head: 4 });
        expect(extents[0]!.epoch).not.toBe(epoch);
        // It goes on with the new life.
        await store.append("orders", drafts("d"), T);
        const next = { ...extents[0]!, head: 5 };
        await until(() => events.length === 4 || extents.length > 1, "the next event");
        expect([...events.slice(3), ...extents.slice(1)]).toContainEqual(events[3] ? `${next.epoch}-5 "d"` : next);
      },
      TEST_MS,
    );

    test.each(LOST)(
      "not at all, while %s connections are lost: it is the same epoch, trimmed meanwhile or not",
      async (types) => {
        const { server, store, events, extents, epoch } = await three();
        for (const [count, head] of [
          [0, 4],
          [2, 5],
        ] as const) {
          await store.trim("orders", { count, before: 0 }, T);
          await cut(server, types);
          const more = () => store.append("orders", drafts("more"), T);
          await until(() => more().catch(() => null), "another event");
          const heard = () =>
            events.includes(`${epoch}-${head} "more"`) || extents.some((extent) => extent.head === head);
          await until(heard, `event ${head}`);
        }
        expect((await store.heads("orders"))!.epoch).toBe(epoch);
        expect(extents.filter((extent) => extent.epoch !== epoch)).toEqual([]);
      },
      TEST_MS,
    );

    test(
      "to others, while both connections are lost: a new follower reads only the new epoch",
      async () => {
        const { server, store, epoch } = await three();
        await replace(server, "a", "x", "y", "z");
        await cut(server, "normal and pubsub");
        const follow = () =>
          store.follow("events", "orders").then(
            () => store.heads("orders"),
            () => null,
          );
        const heads = await until(() => follow().catch(() => null), "the log");
        expect(heads.events.head).toBe(4);
        expect(heads.epoch).not.toBe(epoch);
      },
      TEST_MS,
    );

    test(
      "to others, if the last one was found by a check and not by a message: its mark was read from the log",
      async () => {
        const server = await openRedis();
        const first = await openStore(server);
        const { epoch } = await first.append("orders", drafts("a", "b", "c"), T);
        const store = await openStore(server);
        const { extents } = await hearing(store);
        await until(() => extents.length === 1, "the extent");
        const calls = async (command: string) =>
          Number(
            new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await server.ask("INFO", "commandstats"))?.[1] ?? 0,
          );
        const reads = () => calls("xrange");
        await until(async () => (await reads()) > 0, "the look that reads it");
        await replace(server, "a", "x", "y", "z");
        for (const type of ["normal", "pubsub"]) await server.ask("CLIENT", "KILL", "TYPE", type); // Of two stores.
        await until(() => extents.length === 2, "another life");
        expect(extents[0]).toMatchObject({ epoch, head: 3 });
        expect(extents[1]!.epoch).not.toBe(epoch);
        // At rest a look asks for extents, and reads no entry.
        await until(async () => {
          const [read, asked] = [await reads(), await calls("hmget")];
          await until(async () => (await calls("hmget")) >= asked + 2, "another two looks");
          return (await reads()) === read;
        }, "looks that read no entry");
      },
      TEST_MS,
    );
  });
});
