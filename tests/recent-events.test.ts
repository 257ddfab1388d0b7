/**
 * Events that are pushed to many channels in turn: they go through the journal of a SQLite file, and a merge moves them to their place. What they cost
 * is counted in bytes. At no moment does a reader, or whoever opens the file after a crash, miss one or get one twice.
 */
import { Database } from "bun:sqlite";
import { expect, test } from "bun:test";
import { copyFileSync, existsSync, fdatasyncSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { PereError } from "../engine/model.ts";
import { backup } from "../engine/sqlite/backup.ts";
import { RECENT_LIMITS, type RecentEventsLimits } from "../engine/sqlite/recent-events.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { dataOf, draft, expectTalliesToEqualRows, reads, T, word } from "./contract/calls.ts";
import { temporary, until } from "./support/harness.ts";

/** All events go through the journal. */
const ALL: RecentEventsLimits = { ...RECENT_LIMITS, nearChannels: 0 };
const AT_ONCE = 16;

const newPath = (): string => join(temporary(), "pere.db");
const names = (count: number): string[] => Array.from({ length: count }, (_, n) => `c${n}`);

/** Pushes so many events to these channels in turn, so many at once. */
async function pushAll(store: SqliteStore, channels: readonly string[], count: number, pad = 1): Promise<void> {
  for (let pushed = 0; pushed < count; pushed += AT_ONCE)
    await Promise.all(
      Array.from({ length: Math.min(AT_ONCE, count - pushed) }, (_, n) => {
        const nth = pushed + n;
        const data = { n: Math.floor(nth / channels.length) + 1, pad: "x".repeat(pad) };
        return store.append(channels[nth % channels.length]!, [draft(data)], T + nth);
      }),
    );
}

/** Expects that each channel has its events in order, up to at least so many, each once. */
async function expectInOrder(
  store: SqliteStore,
  channels: readonly string[],
  atLeast: readonly number[],
): Promise<void> {
  for (const [index, channel] of channels.entries()) {
    const events = (await store.heads(channel)) === null ? [] : await reads.events(store, channel, 0, 100_000);
    expect(events.map(({ seq }) => seq)).toEqual(events.map((_, n) => n + 1));
    expect(dataOf(events).map((data) => JSON.parse(data).n)).toEqual(events.map((_, n) => n + 1));
    expect(events.length).toBeGreaterThanOrEqual(atLeast[index]!);
  }
}

/** What another program reads in the file. */
function count(path: string, table: string): number {
  const db = new Database(path, { readonly: true });
  try {
    return db.query<{ n: number }, []>(`SELECT count(*) AS n FROM ${table}`).get()!.n;
  } finally {
    db.close();
  }
}

const written = (): number => Number(/^wchar: (\d+)$/m.exec(readFileSync("/proc/self/io", "latin1"))![1]);

test.skipIf(!existsSync("/proc/self/io"))(
  "an event to one of many channels costs at most 2 kB of writes",
  async () => {
    // A fifth of the channels that a fifth of the merged rows stands for.
    const limits = { ...RECENT_LIMITS, mergeRows: RECENT_LIMITS.mergeRows / 5 };
    const store = new SqliteStore({ path: newPath(), recent: limits });
    const channels = names(200);
    await pushAll(store, channels, 4_000, 190);
    const before = written();
    const events = 32_000;
    await pushAll(store, channels, events, 190);
    await store.close();
    expect((written() - before) / events).toBeLessThan(2_000);
  },
  60_000,
);

test("whatever moment a crash leaves on the disk, no event is lost or there twice", async () => {
  const folder = temporary();
  const path = join(folder, "pere.db");
  const channels = names(30);
  /** Copies of the file, and how many events of each channel were acknowledged before. */
  const copies: { path: string; acknowledged: number[] }[] = [];
  const acknowledged = channels.map(() => 0);
  let syncs = 0;
  const store = new SqliteStore({
    path,
    // A merge takes several slices, during which the journal becomes full, and it begins again several times.
    recent: { rowBytes: 1_000, rows: 28, mergeRows: 25, nearChannels: 0 },
    sync: async (file) => {
      fdatasyncSync(file);
      if (++syncs % 7 !== 0) return;
      const copy = join(folder, `copy-${syncs}.db`);
      copyFileSync(path, copy);
      copyFileSync(`${path}-wal`, `${copy}-wal`);
      copies.push({ path: copy, acknowledged: [...acknowledged] });
    },
  });
  for (let round = 1; round <= 120; round++) {
    await Promise.all(
      channels.map(async (channel, n) => {
        await store.append(channel, [draft({ n: round })], T);
        acknowledged[n]!++;
      }),
    );
  }
  await expectInOrder(store, channels, acknowledged);
  expect(count(path, "journal")).toBe(28);
  await store.close();
  expect(copies.length).toBeGreaterThan(10);
  const merged = new Set<number>();
  for (const copy of copies) {
    const again = new SqliteStore({ path: copy.path, recent: ALL });
    await expectInOrder(again, channels, copy.acknowledged);
    await again.close();
    const inPlace = count(copy.path, "events");
    if (inPlace < copy.acknowledged.reduce((sum, one) => sum + one)) merged.add(inPlace);
  }
  expect(merged.size).toBeGreaterThan(5); // Different moments, at which the journal had events that count.
}, 60_000);

test("retention moves events that were not merged yet, and deletes them", async () => {
  const path = newPath();
  const store = new SqliteStore({ path, recent: { ...ALL, mergeRows: 3 } });
  await pushAll(store, names(10), 30);
  expect(count(path, "events")).toBe(0);
  while (await store.trim("c0", { count: 1, before: 0 }, T));
  // No merge brings them back.
  await pushAll(store, names(30).slice(10), 800, 100);
  await until(() => count(path, "events WHERE channel = 1") === 1, "a merge");
  expect(count(path, "events WHERE channel = 1 AND seq = 3")).toBe(1);
  await store.close();
});

test("changes that are rolled back and tried alone leave no trace in the journal", async () => {
  const path = newPath();
  const store = new SqliteStore({ path, recent: ALL });
  await store.enrol("c0", "till", T);
  await pushAll(store, names(3), 6);
  const { epoch } = (await store.heads("c0"))!;
  // The first fails as it is made, the second when all that was gathered is written.
  const failing = [
    () => store.seen("c0", new Map([["till", 0.5]])),
    () => store.record("c0", [{ ...word(epoch, 1, "till", "received"), deviceAt: 0.5 }], T),
  ];
  for (const [index, fail] of failing.entries()) {
    const n = 3 + index;
    const pushes = names(3).map((channel) => store.append(channel, [draft({ n })], T));
    const failed = fail().catch(({ code }: PereError) => code);
    expect(await Promise.all(pushes)).toMatchObject([{ first: n }, { first: n }, { first: n }]);
    expect(await failed).toBe("away");
  }
  await store.close();
  const again = new SqliteStore({ path, recent: ALL });
  await expectInOrder(again, names(3), [4, 4, 4]);
  await again.close();
});

test("a store that is opened goes on with what the journal has, and what retention took from it stays away", async () => {
  const path = newPath();
  const channels = names(12);
  const first = new SqliteStore({ path, recent: ALL });
  await first.enrol("c0", "till", T);
  await pushAll(first, channels, 120);
  const { epoch } = (await first.heads("c0"))!;
  await first.record("c0", [word(epoch, 2, "till", "done")], T);
  await first.close();
  expect(count(path, "events")).toBe(0);

  const second = new SqliteStore({ path, recent: ALL });
  await expectInOrder(
    second,
    channels,
    channels.map(() => 10),
  );
  expect(await second.join("c0", "till", T)).toMatchObject({ events: { head: 10 }, settled: 0 });
  expect((await second.devices("c0", "", 10, T)).items).toMatchObject([{ device: "till", pending: 9 }]);
  expect(await second.append("c0", [draft({ n: 11 })], T)).toMatchObject({ first: 11 });
  while (await second.trim("c0", { count: 4, before: 0 }, T));
  expect(await second.heads("c0")).toMatchObject({ events: { head: 11, floor: 7 } });
  await expectTalliesToEqualRows(second, "c0");
  await second.close();
  expect(count(path, "events")).toBe(0); // The seven were moved and deleted.

  // A merge brings none back, either.
  const third = new SqliteStore({ path, recent: { ...ALL, mergeRows: 2 } });
  await pushAll(third, names(32).slice(12), 400, 100);
  await until(() => count(path, "events WHERE channel = 1 AND seq > 7") === 4, "a merge");
  expect(count(path, "events WHERE channel = 1 AND seq <= 7")).toBe(0);
  expect((await reads.events(third, "c0", 0, 100)).map(({ seq }) => seq)).toEqual([8, 9, 10, 11]);
  expect((await third.join("c0", "till", T)).lostSeq).toBe(7);
  while (await third.trim("c0", { count: 0, before: 0 }, T));
  await third.close();
  const fourth = new SqliteStore({ path, recent: ALL });
  expect(await fourth.append("c0", [draft({ n: 12 })], T)).toMatchObject({ first: 12 });
  expect((await reads.events(fourth, "c0", 0, 100)).map(({ seq }) => seq)).toEqual([12]);
  await fourth.close();
});

test("a channel that was deleted leaves nothing to one that is created later", async () => {
  const path = newPath();
  const first = new SqliteStore({ path, recent: ALL });
  for (const channel of names(3)) await first.append(channel, [draft({ n: 1 }, { ttl: 1 })], T);
  expect(await first.removeChannel("c2", T + 2_000)).toBe("removed");
  await first.close();
  const second = new SqliteStore({ path, recent: ALL });
  await second.enrol("later", "till", T);
  await second.close();
  const third = new SqliteStore({ path, recent: ALL });
  expect(await third.heads("later")).toMatchObject({ events: { head: 0, floor: 0 } });
  expect(await third.append("later", [draft({ n: 1 })], T)).toMatchObject({ first: 1 });
  await third.close();
});

test("events of a few channels, large ones, and those with a deadline go to their place at once", async () => {
  const path = newPath();
  const store = new SqliteStore({ path });
  await pushAll(store, names(4), 100);
  expect([count(path, "events"), count(path, "journal")]).toEqual([100, 0]);
  const more = names(20).slice(4);
  for (const channel of more) await store.append(channel, [draft("x".repeat(3_000))], T);
  for (const channel of more) await store.append(channel, [draft(1, { deadline: 5 })], T);
  for (const channel of more) await store.append(channel, [draft("€".repeat(1_500))], T);
  expect([count(path, "events"), count(path, "journal")]).toEqual([148, 0]);
  for (const channel of more) await store.append(channel, [draft("é\u0000\u2028".repeat(100))], T);
  expect(count(path, "events")).toBe(148);
  expect(count(path, "journal")).toBeGreaterThan(0);
  await store.close();
  const again = new SqliteStore({ path });
  for (const channel of more)
    expect(dataOf(await reads.events(again, channel, 3, 10)).map((data) => JSON.parse(data))).toEqual([
      "é\u0000\u2028".repeat(100),
    ]);
  await again.close();
});

test("after a failed sync, the events before it are read, and none that it should have made durable", async () => {
  let isBroken = false;
  const store = new SqliteStore({
    path: newPath(),
    recent: ALL,
    sync: async (file) => {
      if (isBroken) throw new Error("the disk failed");
      fdatasyncSync(file);
    },
  });
  await pushAll(store, names(3), 9);
  isBroken = true;
  const outcome = await store.append("c0", [draft({ n: 4 })], T).catch(({ code }: PereError) => code);
  expect(outcome).toBe("away");
  for (const channel of names(3))
    expect((await reads.events(store, channel, 0, 10)).map(({ seq }) => seq)).toEqual([1, 2, 3]);
  await store.close();
});

test("a backup counts the events that are still in the journal", async () => {
  const path = newPath();
  const store = new SqliteStore({ path, recent: { ...ALL, mergeRows: 2 } });
  await pushAll(store, names(10), 200, 100);
  const copy = `${path}.backup`;
  expect(backup(path, copy)).toMatchObject({ channels: 10, events: 200 });
  await store.close();
  const restored = new SqliteStore({ path: copy });
  await expectInOrder(
    restored,
    names(10),
    names(10).map(() => 20),
  );
  await restored.close();
});
