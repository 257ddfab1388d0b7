/**
 * What it costs to know who needs attention is counted, on both stores: little to read, nothing for a receipt that changes no trouble, and for an event
 * that becomes overdue no more with many silent devices than with few.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { OVERDUE_MS } from "../engine/attention.ts";
import { Presence } from "../engine/feeds/presence.ts";
import { readAttention } from "../engine/feeds/attention.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { ageAll } from "./contract/attention-model.ts";
import { CLAIM_MS, draft, missAll, T, trimAll, word } from "./contract/calls.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { countRows, rowsOfAll } from "./support/row-meter.ts";

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
let redis: RedisServer | undefined;
afterAll(() => redis?.end());
let prefixes = 0;
let stopCounting = (): void => {};
beforeAll(() => void (stopCounting = countRows()));
afterAll(() => stopCounting());

/** A store, and a function that counts what something costs there: rows of a file, commands of Redis. */
interface Opened {
  readonly store: Store;
  cost(run: () => Promise<unknown>): Promise<number>;
}

function openFile(): Opened {
  const store = new SqliteStore({ path: ":memory:" });
  closing.push(() => store.close());
  return { store, cost: rowsOfAll };
}

/** Commands that change with time alone, and the one that counts. */
const OWN = new Set(["info", "ping", "publish"]);
/** A heartbeat is a script of four commands; nothing else here reads the time of Redis. */
const HEARTBEAT_COMMANDS = 5;

async function openRedis(): Promise<Opened> {
  redis ??= await startRedis();
  const store = await RedisStore.open({
    urls: [redis.url],
    prefix: `attention-${++prefixes}:`,
    callMs: 30_000,
    claimMs: CLAIM_MS,
  });
  closing.push(() => store.close());
  const commands = async (): Promise<number> => {
    const found = (await redis!.ask("INFO", "commandstats")).matchAll(/cmdstat_([^:]+):calls=(\d+)/g);
    let sum = 0;
    for (const [, name, calls] of found)
      if (!OWN.has(name!)) sum += Number(calls) * (name === "time" ? 1 - HEARTBEAT_COMMANDS : 1);
    return sum;
  };
  return {
    store,
    async cost(run) {
      const before = await commands();
      await run();
      return (await commands()) - before;
    },
  };
}

const STORES = [
  ["SQLite", openFile, null],
  ["Redis", openRedis, noRedis],
] as const;

/** Runs something for each of many items, a thousand at a time. */
async function forEach<Item>(items: readonly Item[], run: (item: Item) => Promise<unknown>): Promise<void> {
  for (let at = 0; at < items.length; at += 1_000) await Promise.all(items.slice(at, at + 1_000).map(run));
}

const namesOf = (count: number, name = "d"): string[] => Array.from({ length: count }, (_, n) => `${name}-${n}`);
const enrolAll = (store: Store, channel: string, names: readonly string[]) =>
  forEach(names, (name) => store.enrol(channel, name, T));

/**
 * Channels with ten devices each and an event. In the tenth part of them a device is in trouble: it failed, is missing, or its receipt is overdue.
 * Each event was pushed a millisecond after the one before.
 */
async function fill(store: Store, count: number): Promise<void> {
  const devices = namesOf(10);
  await forEach(namesOf(count, "c"), async (channel) => {
    const nth = Number(channel.slice(2));
    await enrolAll(store, channel, devices);
    const { epoch } = await store.append(channel, [draft("x", { deadline: nth % 30 === 10 ? 1 : null })], T + nth);
    const words = devices.map((device, n) => word(epoch, 1, device, n === 0 && nth % 30 === 0 ? "failed" : "done"));
    await store.record(channel, nth % 30 === 10 || nth % 30 === 20 ? words.slice(1) : words, T + nth);
  });
  await ageAll(store, T + 2 * OVERDUE_MS);
  await missAll(store, T + 2 * OVERDUE_MS);
}

describe.each(STORES)("on %s, attention", (name, open, missing) => {
  const it = test.skipIf(missing !== null);

  it("is read from the worst of the channels in trouble, with 10,000 channels, 100,000 devices, and 1,000 of them in trouble", async () => {
    const { store, cost } = await open();
    await fill(store, 10_000);
    const presence = new Presence<never>(
      store,
      () => T,
      () => {},
    );
    const read = () => readAttention(store, presence, null, 100);
    let found = await read();
    expect(found.totals).toEqual({ devices: 1_000, failed: 334, missing: 333, overdue: 333 });
    expect([found.devices.length, found.events.length, found.channels.length]).toEqual([100, 100, 100]);
    const oldest = Array.from({ length: 100 }, (_, n) => `c-${10 * n}`);
    for (const list of [found.devices, found.events, found.channels])
      expect(list.map(({ channel }) => channel)).toEqual(oldest);
    const counted = await cost(async () => void (found = await read()));
    const [startedAt, cpu] = [performance.now(), process.cpuUsage()];
    await read();
    const [ms, { user, system }] = [performance.now() - startedAt, process.cpuUsage(cpu)];
    const what = name === "Redis" ? "commands" : "rows";
    console.log(
      `${name}: ${counted} ${what}, ${ms.toFixed(0)} ms, ${((user + system) / 1000).toFixed(0)} ms of CPU time here`,
    );
    // In a file, a few rows for each channel in trouble; of the worst ones, on both stores, about twenty.
    expect(counted).toBeLessThan(name === "Redis" ? 4_000 : 9_000);
  }, 120_000);

  it("costs a receipt nothing that changes no trouble, where others are in trouble and where its own device is", async () => {
    const { store, cost } = await open();
    const late = T + 2 * OVERDUE_MS;
    const costs: [number, number][] = [];
    for (const [channel, failing] of [
      ["calm", null],
      ["troubled", "d-1"],
      ["own", "d-0"],
    ] as const) {
      await enrolAll(store, channel, namesOf(3));
      const { epoch } = await store.append(channel, Array(3).fill(draft("x", { deadline: 90_000 })), T);
      const give = (seq: number, device: string, status: "done" | "failed") =>
        store.record(channel, [word(epoch, seq, device, status)], late);
      if (failing) await give(1, failing, "failed");
      await ageAll(store, late);
      const { first } = await store.append(channel, [draft("x")], late);
      // The first receipt of an event, and of a device, costs more. One event is older than an hour, the other one is new.
      for (const seq of [2, first]) await give(seq, "d-2", "done");
      await give(3, "d-0", "done");
      costs.push([await cost(() => give(2, "d-0", "done")), await cost(() => give(first, "d-0", "done"))]);
    }
    expect(costs).toEqual([costs[0]!, costs[0]!, costs[0]!]);
    // Log, status and tally; on Redis also what they are found by.
    expect(costs[0]).toEqual(name === "Redis" ? [11, 11] : [3, 3]);
  });

  it("costs an event that becomes overdue as much with many silent devices as with few", async () => {
    const costs: number[] = [];
    for (const count of [3, 3_000]) {
      const { store, cost } = await open();
      await enrolAll(store, "orders", namesOf(count));
      await store.append("orders", [draft("x")], T);
      await ageAll(store, T + OVERDUE_MS);
      await store.append("orders", Array(200).fill(draft("x")), T + 1);
      costs.push(await cost(() => ageAll(store, T + 1 + OVERDUE_MS)));
      const [channel] = await store.troubledChannels();
      expect([channel!.devices, channel!.overdue]).toEqual([count, 201 * count]);
      const { devices } = await store.troubles("orders", 3);
      expect(devices.map(({ device, overdue }) => [device, overdue])).toEqual(
        namesOf(count)
          .toSorted()
          .slice(0, 3)
          .map((device) => [device, 201]),
      );
      // And retention writes nothing for them, once they owe all that is kept.
      await trimAll(store, "orders", { count: 100, before: 0 }, T);
      costs.push(await cost(() => trimAll(store, "orders", { count: 10, before: 0 }, T)));
      expect((await store.troubledChannels())[0]!.overdue).toBe(10 * count);
    }
    expect(costs.slice(2)).toEqual(costs.slice(0, 2));
  });
});
