/**
 * What the directory costs, counted: a search and another order look at all devices or names, but a bounded part of them per turn of the event loop
 * and per call of the store, and they read in full only what they show. On both stores.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { type DeviceQuery, Directory } from "../engine/directory.ts";
import { Presence } from "../engine/feeds/presence.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { TURN_ROWS } from "../engine/yield.ts";
import { draft, T } from "./contract/calls.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { countRows, rowMeter } from "./support/row-meter.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());
let prefixes = 0;
const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

const opened = <Kind extends Store>(store: Kind): Kind => {
  closing.push(() => store.close());
  return store;
};
const openFile = async (): Promise<Store> => opened(new SqliteStore({ path: ":memory:" }));
const openRedis = async (): Promise<Store> => {
  redis ??= await startRedis();
  return opened(await RedisStore.open({ urls: [redis.url], prefix: `directory-${++prefixes}:` }));
};
const STORES = [
  ["SQLite", openFile, null],
  ["Redis", openRedis, noRedis],
] as const;

const directoryOf = (store: Store): Directory =>
  new Directory(
    store,
    new Presence<unknown>(
      store,
      () => T,
      () => {},
    ),
    () => T,
  );

/** The number of items that each call of a method gave. */
function countItems(store: Store, method: "enrolments" | "owing" | "channels" | "channelNames"): number[] {
  const counts: number[] = [];
  const original = store[method] as (...asked: unknown[]) => Promise<unknown>;
  (store as unknown as Record<string, unknown>)[method] = async (...asked: unknown[]) => {
    const found = await original.apply(store, asked);
    counts.push((Array.isArray(found) ? found : (found as { items: unknown[] }).items).length);
    return found;
  };
  return counts;
}

async function enrolAll(store: Store, count: number): Promise<void> {
  for (let n = 0; n < count; n += 500)
    await Promise.all(
      Array.from({ length: Math.min(500, count - n) }, (_, i) =>
        store.enrol("orders", `d-${String(n + i).padStart(5, "0")}`, T),
      ),
    );
}

const ASKED: DeviceQuery = { search: "", connected: null, where: null, sort: "name", after: "", limit: 10 };
const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);

describe.each(STORES)("on %s", (_, open, missing) => {
  const it = test.skipIf(missing !== null);

  it("a page by name looks at its own devices, a filtered one at all of them, and counts what is owed for those that it shows", async () => {
    const store = await open();
    await enrolAll(store, 2_000);
    const [looked, counted] = [countItems(store, "enrolments"), countItems(store, "owing")];
    const directory = directoryOf(store);
    await directory.devices("orders", ASKED);
    expect([looked, counted]).toEqual([[10], [10]]);
    looked.length = counted.length = 0;
    expect((await directory.devices("orders", { ...ASKED, search: "-0199" })).devices).toHaveLength(10);
    expect([sum(looked), Math.max(...looked), counted]).toEqual([2_000, 250, [10]]);
    looked.length = counted.length = 0;
    expect((await directory.devices("orders", { ...ASKED, connected: true })).devices).toHaveLength(0);
    expect([sum(looked), counted]).toEqual([2_000, [0]]);
    looked.length = counted.length = 0;
    await directory.devices("orders", { ...ASKED, sort: "seen" });
    expect([sum(looked), counted]).toEqual([2_000, [10]]);
    looked.length = counted.length = 0;
    await directory.devices("orders", { ...ASKED, sort: "pending", search: "-00" });
    expect([sum(looked), sum(counted), Math.max(...counted)]).toEqual([2_000, 1_000 + 10, 250]);
  });

  it("a search among channels looks at names, and reads only those that it shows", async () => {
    const store = await open();
    for (let n = 0; n < 3_000; n += 500)
      await Promise.all(Array.from({ length: 500 }, (_, i) => store.append(`c${n + i}`, [draft(1)], T)));
    const [names, read] = [countItems(store, "channelNames"), countItems(store, "channels")];
    const found = await directoryOf(store).channels("", 5, null, "C299");
    expect(JSON.parse(`[${Buffer.concat(found.parts).toString()}]`)).toHaveLength(5);
    expect([Math.max(...names), sum(read)]).toEqual([1_000, 11]);
    expect(found.next).toBe("c2993");
  });

  it("a history reads in windows, however many events are not for the device", async () => {
    const store = await open();
    await store.enrol("orders", "other", T);
    await store.append("orders", [draft("for it", { to: ["till"] })], T);
    for (let n = 0; n < 5; n++) await store.append("orders", Array(1_000).fill(draft(n, { to: ["other"] })), T);
    const { rows, next } = await directoryOf(store).history("orders", "till", null, 10);
    expect([rows.map(({ seq }) => seq), next]).toEqual([[1], null]);
  });
});

describe("in one turn of the event loop,", () => {
  let end: () => void;
  beforeAll(() => void (end = countRows()));
  afterAll(() => end());

  test.each<[string, Partial<DeviceQuery>]>([
    ["sort=pending", { sort: "pending" }],
    ["sort=seen", { sort: "seen" }],
    ["a search", { search: "99" }],
    ["a filter", { connected: true }],
  ])("%s looks at as many rows among many devices as among few", async (_, query) => {
    const most: number[] = [];
    for (const count of [1_000, 8_000]) {
      const store = await openFile();
      await enrolAll(store, count);
      await store.append("orders", Array(40).fill(draft(1)), T);
      most.push(await rowMeter(() => directoryOf(store).devices("orders", { ...ASKED, ...query })));
    }
    // A budget of rows, and the step that exceeds it.
    for (const rows of most) expect(rows).toBeLessThan(3 * TURN_ROWS);
  });
});
