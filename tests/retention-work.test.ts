/**
 * What retention does is counted: it grows with what is dropped, not with the devices that are enrolled, and each slice of it is bounded. On both
 * stores.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import { join } from "node:path";
import { keysWith } from "../engine/redis/keys.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { draft, T, trimAll, word } from "./contract/calls.ts";
import { temporary } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { countRows, rowsOfAll } from "./support/row-meter.ts";

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
let redis: RedisServer | undefined;
afterAll(() => redis?.end());
let prefixes = 0;

/** A store, and a text or a digest of what it keeps of each enrolment. */
interface Opened {
  readonly store: Store;
  enrolments(): Promise<string>;
}

async function openFile(): Promise<Opened> {
  const path = join(temporary(), "pere.db");
  const store = new SqliteStore({ path });
  closing.push(() => store.close());
  const enrolments = async (): Promise<string> => {
    const db = new Database(path, { readonly: true });
    const found = db.query("SELECT * FROM devices ORDER BY device, joined").all();
    db.close();
    return JSON.stringify(found);
  };
  return { store, enrolments };
}

async function openRedis(): Promise<Opened> {
  redis ??= await startRedis();
  const prefix = `retention-${++prefixes}:`;
  const store = await RedisStore.open({ urls: [redis.url], prefix });
  closing.push(() => store.close());
  const digest = "return redis.sha1hex(table.concat(redis.call('HGETALL', KEYS[1]), ' '))";
  return { store, enrolments: () => redis!.ask("EVAL", digest, "1", keysWith(prefix)("orders").devices) };
}

const STORES = [
  ["SQLite", openFile, null],
  ["Redis", openRedis, noRedis],
] as const;

const namesOf = (count: number): string[] => Array.from({ length: count }, (_, n) => `device-${n}`);
const enrolAll = (store: Store, names: readonly string[]) =>
  Promise.all(names.map((name) => store.enrol("orders", name, T)));
const push = (store: Store, count: number) => store.append("orders", Array(count).fill(draft("x")), T);

describe.each(STORES)("on %s, retention", (_, open, missing) => {
  const it = test.skipIf(missing !== null);

  it("writes nothing for devices that are silent, and takes as many slices for many of them as for few", async () => {
    const slices: number[] = [];
    for (const count of [3, 3_000]) {
      const { store, enrolments } = await open();
      await enrolAll(store, namesOf(count));
      await push(store, 600);
      const before = await enrolments();
      slices.push(await trimAll(store, "orders", { count: 10, before: 0 }, T));
      expect((await store.heads("orders"))!.events).toEqual({ head: 600, floor: 590, controls: 0 });
      expect(await enrolments()).toBe(before);
      for (const device of ["device-0", `device-${count - 1}`])
        expect((await store.join("orders", device, T)).lostSeq).toBe(590);
    }
    expect(slices[1]).toBe(slices[0]!);
  });

  it("writes nothing for devices that have answered everything and were seen since", async () => {
    const { store, enrolments } = await open();
    const names = namesOf(700);
    await enrolAll(store, [...names, "silent"]);
    const { epoch } = await push(store, 3);
    await store.record(
      "orders",
      [1, 2, 3].flatMap((seq) => names.map((name) => word(epoch, seq, name, "done"))),
      T,
    );
    await store.seen("orders", new Map(names.map((name) => [name, T])));
    const before = await enrolments();
    await trimAll(store, "orders", { count: 0, before: 0 }, T);
    expect(await enrolments()).toBe(before);
    expect((await store.join("orders", "silent", T)).lostSeq).toBe(3);
    expect((await store.join("orders", "device-0", T)).lostSeq).toBe(0);
  });

  it("is done in slices of about a thousand rows, also where all of them belong to one event", async () => {
    const { store } = await open();
    const names = namesOf(4_000);
    await enrolAll(store, names);
    const { epoch } = await push(store, 1);
    for (let n = 0; n < names.length; n += 1_000) {
      const words = names.slice(n, n + 1_000).map((name) => word(epoch, 1, name, "done"));
      await store.record("orders", words, T);
    }
    await push(store, 1);
    // Of each device a receipt and a status.
    const slices = await trimAll(store, "orders", { count: 1, before: 0 }, T);
    expect(slices).toBeGreaterThanOrEqual(7);
    expect((await store.heads("orders"))!.receipts).toEqual({ head: 4_001, floor: 4_001 });
  });
});

describe("in a file, the rows that retention looks at and changes", () => {
  let stopCounting: () => void;
  beforeAll(() => {
    stopCounting = countRows();
  });
  afterAll(() => stopCounting());

  const openInMemory = (): Store => {
    const store = new SqliteStore({ path: ":memory:" });
    closing.push(() => store.close());
    return store;
  };
  /** Trims to the end. @returns the rows of each slice */
  const trimCounted = async (store: Store, count: number): Promise<number[]> => {
    const slices: number[] = [];
    for (let isMore = true; isMore;)
      slices.push(
        await rowsOfAll(async () => {
          isMore = await store.trim("orders", { count, before: 0 }, T);
        }),
      );
    return slices;
  };
  const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

  test("are as many for many silent devices as for few", async () => {
    const totals: number[] = [];
    for (const count of [3, 3_000]) {
      const store = openInMemory();
      await enrolAll(store, namesOf(count));
      await push(store, 600);
      totals.push(sum(await trimCounted(store, 10)));
    }
    expect(totals[1]).toBe(totals[0]!);
  });

  test("are as many with many retired devices as without", async () => {
    const totals: number[] = [];
    for (const count of [1, 1_500]) {
      const store = openInMemory();
      const names = namesOf(count);
      await enrolAll(store, [...names, "silent"]);
      await push(store, 20);
      for (const name of names) await store.retire("orders", name, T);
      await push(store, 5);
      totals.push(sum(await trimCounted(store, 20)));
    }
    expect(totals[1]).toBe(totals[0]!);
  });

  test("grow with the receipts of the dropped events, in slices of about a thousand", async () => {
    const store = openInMemory();
    const names = namesOf(3_000);
    await enrolAll(store, names);
    const { epoch } = await push(store, 4);
    // None was seen since, so that it takes a search to find what each owed.
    for (let n = 0; n < names.length; n += 500) {
      const some = names.slice(n, n + 500);
      await store.record(
        "orders",
        [4, 3, 1].flatMap((seq) => some.map((name) => word(epoch, seq, name, "done"))),
        T,
      );
    }
    const slices = await trimCounted(store, 0);
    expect(Math.max(...slices)).toBeLessThan(2_500);
    // Of each device three receipts with a status, and what it lost.
    expect(sum(slices)).toBeLessThan(3_000 * (2 * 3 * 2 + 12));
    expect((await store.join("orders", "device-0", T)).lostSeq).toBe(2);
  });
});
