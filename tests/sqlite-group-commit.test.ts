/**
 * What comes in one turn of the event loop is stored in one commit, and what is long gives others their turn.
 *
 * Commits are counted where SQLite writes them: each one ends with a frame in the write-ahead log that carries the database's size
 * (https://www.sqlite.org/fileformat2.html#wal_file_format), so the count needs no tracing and no trust in the code under test.
 */
import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { copyFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Counters } from "../engine/counters.ts";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { dataOf, draft, hear, missAll, reads, results, rowsOf, SECOND, T, word } from "./contract/calls.ts";
import { temporary, until } from "./support/harness.ts";

test("a search for rows of one status among very many devices does not block other work", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const names = Array.from({ length: 20_000 }, (_, n) => `d${String(n).padStart(5, "0")}`);
  await Promise.all(names.map((name) => store.enrol("orders", name, T)));
  const { epoch } = await store.append("orders", [draft(1)], T);
  // One device that left and came back, whose rows lie on both sides of a window's end.
  for (let n = 0; n < 3; n++) {
    await store.retire("orders", names[999]!, T);
    await store.append("orders", [draft(1)], T);
    await store.enrol("orders", names[999]!, T);
  }
  await store.record("orders", [word(epoch, 1, names[1_000]!, "done"), word(epoch, 1, names[19_999]!, "done")], T);
  let turns = 0;
  const count = (): void => void (turns++, turns > 0 && setImmediate(count));
  count();
  const found = await reads.rows(store, "orders", 1, "done", "", 10);
  expect(turns).toBeGreaterThan(1);
  turns = Number.NEGATIVE_INFINITY;
  expect(found).toMatchObject({ items: [{ device: names[1_000]! }, { device: names[19_999]! }], next: null });
  expect((await rowsOf(store, "orders", 1)).map(({ device }) => device)).toEqual(names.toSpliced(999, 1));
  expect((await rowsOf(store, "orders", 4)).map(({ device }) => device)).toEqual(names.toSpliced(999, 1));
  await store.close();
});

describe("the group commit", () => {
  /** Commits in the write-ahead log: valid frames whose "size after commit" is not 0. */
  function commits(path: string): number {
    const log = readFileSync(`${path}-wal`);
    const pageBytes = log.readUInt32BE(8);
    const salts = log.subarray(16, 24);
    let count = 0;
    for (let at = 32; at + 24 + pageBytes <= log.length; at += 24 + pageBytes) {
      if (!log.subarray(at + 8, at + 16).equals(salts)) break;
      if (log.readUInt32BE(at + 4) !== 0) count++;
    }
    return count;
  }

  test("runs 200 calls of one turn in one transaction, and calls that wait for one another in one each", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    const { epoch } = await store.open("orders");
    const start = commits(path);
    for (let n = 0; n < 3; n++) await store.append("orders", [draft(n)], T);
    expect(commits(path) - start).toBe(3);

    await Promise.all(
      Array.from({ length: 200 }, (_, n) =>
        n % 4 === 0
          ? store.enrol("orders", `device-${n}`, T)
          : n % 4 === 1
            ? store.join("orders", `device-${n - 1}`, T)
            : n % 4 === 2
              ? store.append(n % 3 === 0 ? "others" : "orders", [draft(n)], T)
              : store.record(
                  "orders",
                  [
                    {
                      event: { epoch, seq: 4 },
                      device: "device-0",
                      status: "done",
                      detail: null,
                      deviceAt: null,
                      after: null,
                      round: null,
                      retry: true,
                    },
                  ],
                  T,
                ),
      ),
    );
    expect(commits(path) - start).toBe(4);
    await store.close();
  });

  test("waits for calls of the next turns, and not for long turns", async () => {
    const counts = new Counters();
    const store = new SqliteStore({ path: ":memory:", counts });
    await store.open("orders");
    /** Each of 20 turns of at least so many milliseconds brings a change, before the commit looks. @returns how many commits there were */
    const busy = async (turnMs: number): Promise<number> => {
      const before = counts.batches.count;
      const appended: Promise<unknown>[] = [];
      const { promise, resolve } = Promise.withResolvers<void>();
      const turn = (): void => {
        if (appended.length === 20) return resolve();
        setImmediate(turn);
        for (const end = performance.now() + turnMs; performance.now() < end;);
        appended.push(store.append("orders", [draft(1)], T));
      };
      turn();
      await promise;
      await Promise.all(appended);
      return counts.batches.count - before;
    };
    expect(await busy(0)).toBeLessThan(20);
    expect(await busy(10)).toBeGreaterThanOrEqual(10);
    await store.close();
  });

  test("leaves calls beyond its row limit to the next transaction, in order", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    await store.open("orders");
    const batch = Array.from({ length: 1_000 }, () => draft(1));
    let turn = 0;
    const count = (): void => void (turn++, turn > 0 && setImmediate(count));
    count();
    const turns = new Set<number>();
    const appended = await Promise.all(
      Array.from({ length: 200 }, () =>
        store.append("orders", batch, T).then(({ first }) => {
          turns.add(turn);
          return first;
        }),
      ),
    );
    const unfinished = Array.from({ length: 200 }, () => store.append("orders", batch, T));
    await store.close();
    turn = Number.NEGATIVE_INFINITY;
    expect(appended).toEqual(Array.from({ length: 200 }, (_, n) => n * 1_000 + 1));
    expect(turns.size).toBeGreaterThan(1);
    expect((await Promise.all(unfinished)).at(-1)!.first).toBe(399_001);
  });

  test("runs calls that arrive meanwhile in the next transaction", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    await store.open("orders");
    const start = commits(path);
    const following: Promise<unknown>[] = [];
    let before = 0;
    hear(store, ({ entries }) => {
      before ||= commits(path);
      if (entries[0]!.seq <= 3) following.push(store.append("orders", [draft("next")], T));
    });
    await Promise.all([1, 2, 3].map((n) => store.append("orders", [draft(n)], T)));
    await Promise.all(following);
    expect(before).toBeGreaterThan(start);
    expect(commits(path)).toBeGreaterThan(before);
    expect((await store.heads("orders"))!.events.head).toBe(6);
    await store.close();
  });

  test("does not let one failing call fail the others", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    const told: number[] = [];
    hear(store, ({ entries }) => told.push(...entries.map(({ seq }) => seq)));
    await store.enrol("orders", "till", T);
    const settled = await Promise.allSettled([
      store.append("orders", [draft("before")], T),
      // The same name twice breaks a constraint, after the first event of the batch was written.
      store.append("orders", [draft("bad"), draft("bad", { to: ["twice", "twice"] })], T, { key: "k", digest: "d" }),
      store.append("new", [draft("bad", { to: ["twice", "twice"] })], T),
      store.append("orders", [draft("after")], T),
      store.enrol("orders", "kiosk", T),
    ]);
    expect(settled.map(({ status }) => status)).toEqual([
      "fulfilled",
      "rejected",
      "rejected",
      "fulfilled",
      "fulfilled",
    ]);
    for (const outcome of settled) if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(PereError);
    expect((await reads.events(store, "orders", 0, 10)).map((entry) => [entry.seq, dataOf([entry])[0]])).toEqual([
      [1, '"before"'],
      [2, '"after"'],
    ]);
    expect(told).toEqual([1, 2]);
    expect(await store.heads("new")).toBeNull();
    expect([...(await reads.tallies(store, "orders", 1, 10)).values()].map(({ addressed }) => addressed)).toEqual([
      1, 1,
    ]);
    // Its key was not kept either.
    const again = await store.append("orders", [draft("good")], T, { key: "k", digest: "d" });
    expect(again).toMatchObject({ first: 3, addressed: 2, replayed: false });
    await store.close();
    const reopened = new SqliteStore({ path });
    expect((await reopened.heads("orders"))!.events.head).toBe(3);
    await reopened.close();
  });

  test("waits once for another program that writes, however many calls there are, and continues when it is done", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    const { epoch } = await store.open("orders");
    const other = new Database(path);
    other.run("BEGIN IMMEDIATE");
    const refused = await Promise.allSettled([
      store.append("orders", [draft(1)], T),
      store.enrol("orders", "till", T),
      store.record("orders", [word(epoch, 1, "till", "done")], T),
    ]);
    const reasons = refused.map((outcome) => (outcome as PromiseRejectedResult).reason as PereError);
    expect(reasons.map(({ code }) => code)).toEqual(["away", "away", "away"]);
    // One cause: it was tried once. Each wait holds up everything else.
    expect(new Set(reasons.map(({ cause }) => cause)).size).toBe(1);
    other.run("ROLLBACK");
    other.close();
    expect(await store.append("orders", [draft(1)], T)).toMatchObject({ first: 1, addressed: 0 });
    await store.close();
  });

  test("caches no more statuses than its limit, also if no further event is pushed", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path, cacheLimits: { channels: 10, tallies: 10, receipts: 2, enrolments: 10 } });
    const { epoch } = await store.append("orders", [draft(1, { to: ["a", "b", "c"] })], T);
    for (const device of ["a", "b"]) await store.record("orders", [word(epoch, 1, device, "done")], T);
    // What it has to look up it finds changed in the file: nobody but this test does that.
    const other = new Database(path);
    other.run("DELETE FROM latest");
    other.close();
    expect(results(await store.record("orders", [word(epoch, 1, "a", "done")], T))).toEqual(["recorded"]);
    await store.close();
  });

  test("has committed before anyone is notified or answered: a copy of the files at that moment has the entry", async () => {
    const folder = temporary();
    const path = join(folder, "pere.db");
    const store = new SqliteStore({ path });
    let copies = 0;
    /** Opens a copy of what the files hold now. */
    const head = async (): Promise<number> => {
      const copy = join(folder, `copy-${++copies}.db`);
      copyFileSync(path, copy);
      copyFileSync(`${path}-wal`, `${copy}-wal`);
      const opened = new SqliteStore({ path: copy });
      const found = await opened.heads("orders");
      await opened.close();
      return found?.events.head ?? 0;
    };
    const woken: Promise<[number, number]>[] = [];
    hear(store, ({ entries }) => {
      const { seq } = entries.at(-1)!;
      woken.push(head().then((copied) => [seq, copied]));
    });
    for (const n of [1, 2, 3]) {
      const { first } = await store.append("orders", [draft(n)], T);
      expect(await head()).toBe(first);
    }
    expect(await Promise.all(woken)).toEqual([
      [1, 1],
      [2, 2],
      [3, 3],
    ]);
    await store.close();
  });

  test("can checkpoint its log after a read that stopped early", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    const salts = (): string => readFileSync(`${path}-wal`).subarray(16, 24).toString("hex");
    await store.append("orders", [draft("first")], T);
    const before = salts();
    // The log began again: all of it is in the file.
    await until(async () => {
      await store.append(
        "orders",
        Array.from({ length: 10 }, () => draft("x".repeat(20_000))),
        T,
      );
      await reads.events(store, "orders", 0, 100, 1);
      return salts() !== before;
    }, "a log that begins again");
    await store.close();
  });
});

/** Whether an entry of the receipts log is a receipt, and not a note on the event as a whole. */
const isReceipt = (entry: object): boolean => "note" in entry && entry.note === null;

describe("a deadline", () => {
  /** So many rows hold up a push by a few milliseconds. */
  const ROWS_A_CALL = 3_000;

  test("of 100,000 devices is processed in slices that let pushes through", async () => {
    const store = new SqliteStore({ path: ":memory:" });
    const count = 100_000;
    await Promise.all(Array.from({ length: count }, (_, n) => store.enrol("orders", `device-${n}`, T)));
    const { epoch } = await store.append("orders", [draft("a", { deadline: 1 })], T);
    const answered = [7, 50_000, 99_999].map((n) => word(epoch, 1, `device-${n}`, "done"));
    await store.record("orders", answered, T);
    let told = 0;
    let largest = 0;
    let pushed = 1;
    hear(store, ({ kind, entries }) => {
      if (kind === "events") return;
      told += entries.filter(isReceipt).length;
      largest = Math.max(largest, entries.length);
    });
    const next = await missAll(store, T + SECOND, async () => {
      expect((await store.append("orders", [draft("between")], T)).first).toBe(++pushed);
    });
    expect(next).toBeNull();
    expect(told).toBe(count - 3);
    expect(largest).toBeLessThanOrEqual(ROWS_A_CALL);
    expect(pushed).toBeGreaterThan(count / ROWS_A_CALL);
    expect((await reads.tallies(store, "orders", 1, 1)).get(1)).toMatchObject({
      addressed: count,
      missing: count - 3,
      done: 3,
    });
    const missing = await rowsOf(store, "orders", 1, "missing");
    expect(new Set(missing.map(({ device }) => device)).size).toBe(count - 3);
    await store.close();
  });

  test("of 100,000 devices of which all but one have answered is processed in slices too", async () => {
    const store = new SqliteStore({ path: ":memory:" });
    const devices = Array.from({ length: 100_000 }, (_, n) => `device-${String(n).padStart(6, "0")}`);
    await Promise.all(devices.map((device) => store.enrol("orders", device, T)));
    const { epoch } = await store.append("orders", [draft("a", { deadline: 1 }), draft("b", { deadline: 1 })], T);
    for (let at = 0; at < devices.length; at += 10_000) {
      const some = devices.slice(at, at + 10_000);
      await store.record(
        "orders",
        some.map((device) => word(epoch, 1, device, "done")),
        T,
      );
      await store.record(
        "orders",
        some.filter((device) => device !== devices.at(-1)).map((device) => word(epoch, 2, device, "done")),
        T,
      );
    }
    let calls = 0;
    expect(await missAll(store, T + SECOND, (call) => void (calls = call))).toBeNull();
    expect(calls).toBeGreaterThan(devices.length / ROWS_A_CALL);
    // Where nobody owes anything, nobody is looked at.
    expect(calls).toBeLessThan((1.5 * devices.length) / 1_500);
    // The first event has two notes.
    const log = await reads.receipts(store, "orders", 2 * devices.length + 1, 10);
    expect(log.filter(isReceipt).map(({ event, device, status }) => [event, device, status])).toEqual([
      [2, devices.at(-1)!, "missing"],
    ]);
    await store.close();
  });

  test("of thousands of events at the same time is processed in slices", async () => {
    const store = new SqliteStore({ path: ":memory:" });
    await store.enrol("orders", "till", T);
    for (let batch = 0; batch < 10; batch++)
      await store.append(
        "orders",
        Array.from({ length: 1_000 }, (_, n) => draft(n, { deadline: 1 })),
        T,
      );
    let largest = 0;
    hear(store, ({ entries }) => void (largest = Math.max(largest, entries.length)));
    expect(await missAll(store, T + SECOND)).toBeNull();
    expect(largest).toBeLessThanOrEqual(ROWS_A_CALL);
    const log = await reads.receipts(store, "orders", 0, 40_000);
    expect(log.filter(isReceipt).map(({ event }) => event)).toEqual(Array.from({ length: 10_000 }, (_, n) => n + 1));
    await store.close();
  });
});
