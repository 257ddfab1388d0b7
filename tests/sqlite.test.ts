/**
 * The SQLite store: the contract that every store keeps, and what only a file has. A file outlives its process, belongs to one process at a time,
 * and may turn out to be something else.
 */
import { Database } from "bun:sqlite";
import { afterEach, describe, expect, test } from "bun:test";
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { type Code, PereError } from "../engine/model.ts";
import { SCHEMA } from "../engine/sqlite/schema.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { draft, expectTalliesToEqualRows, missAll, noteOf, reads, results, SECOND, T, word } from "./contract/calls.ts";
import { storeContract } from "./contract/contract.ts";
import { ask, type Process, push, spawn as spawnProcess, temporary } from "./support/harness.ts";

/** Every process of the running test; what a failed one left is ended. */
const started: Process[] = [];

const spawn = async (env: Record<string, string>): Promise<Process> => {
  const running = await spawnProcess(env);
  started.push(running);
  return running;
};

afterEach(async () => {
  await Promise.all(started.splice(0).map((running) => running.end("SIGKILL")));
});

storeContract("SqliteStore in memory", async () => ({ store: new SqliteStore({ path: ":memory:" }) }), {
  keepsNothing: "a database in memory ends with its store",
});

// It holds next to nothing in memory: what it does must not depend on what it remembers.
storeContract(
  "SqliteStore in a file",
  async () => {
    const options = {
      path: join(temporary(), "pere.db"),
      cacheLimits: { channels: 1, tallies: 1, receipts: 1, enrolments: 1 },
    };
    const store = new SqliteStore(options);
    return {
      store,
      async reopen() {
        await store.close();
        return new SqliteStore(options);
      },
    };
  },
  { histories: 20 },
);

// All events that can go through the journal do, and they are merged all the time.
storeContract(
  "SqliteStore with a journal",
  async () => {
    const options = {
      path: join(temporary(), "pere.db"),
      recent: { rowBytes: 300, rows: 7, mergeRows: 3, nearChannels: 0 },
    };
    const store = new SqliteStore(options);
    return {
      store,
      async reopen() {
        await store.close();
        return new SqliteStore(options);
      },
    };
  },
  { histories: 20 },
);

/** What another program reads in a file that is worked with. */
function rows(path: string, sql: string): unknown[] {
  const db = new Database(path, { readonly: true });
  try {
    return db.query(sql).all();
  } finally {
    db.close();
  }
}

describe("a file", () => {
  const refusal = (path: string): { code: Code; message: string } => {
    try {
      void new SqliteStore({ path }).close();
    } catch (error) {
      if (error instanceof PereError) return { code: error.code, message: error.message };
      throw error;
    }
    throw new Error(`${path} was taken`);
  };

  /** What a service that can't start says, all of it. */
  const said = (path: string): Promise<string> =>
    spawn({ PERE_DB: path }).then(
      async (process) => {
        await process.end("SIGKILL");
        throw new Error(`${path} was taken`);
      },
      (error: unknown) => (error as Error).message,
    );

  /** One line, for a person, without a stack. */
  const expectOneLine = (line: string, path: string): void => {
    expect(line).toStartWith("PERE can't start: ");
    expect(line).toContain(path);
    expect(line).not.toContain("\n");
    expect(line).not.toContain("    at ");
  };

  test("belongs to one store at a time, within a process and between two, until that store is gone", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    await store.append("orders", [draft(1)], T);
    expect(refusal(path)).toMatchObject({
      code: "conflict",
      message: `${path} is in use by another process; a file can be used by only one PERE`,
    });
    expectOneLine(await said(path), path);
    // Whoever was refused has harmed nothing.
    expect((await store.append("orders", [draft(2)], T)).first).toBe(2);
    await store.close();

    const process = await spawn({ PERE_DB: path });
    expect(refusal(path).code).toBe("conflict");
    expectOneLine(await said(path), path);
    expect(await push(process.url, "orders", 3)).toEndWith("-3");
    expect(await process.end("SIGKILL")).not.toBe(0);
    const again = new SqliteStore({ path });
    expect((await reads.events(again, "orders", 0, 10)).length).toBe(3);
    await again.close();
  });

  test("belongs to one store under any name, and other programs may read it meanwhile", async () => {
    const folder = temporary();
    const [path, link] = [join(folder, "pere.db"), join(folder, "link.db")];
    symlinkSync(path, link); // Also before there is a file.
    const store = new SqliteStore({ path: link });
    for (const name of [link, path]) expect(refusal(name).code).toBe("conflict");
    await store.append("orders", [draft(1)], T);
    const reader = new Database(link, { readonly: true });
    reader.run("BEGIN");
    const count = () => reader.query<{ n: number }, []>("SELECT count(*) AS n FROM events").get()!.n;
    expect(count()).toBe(1);
    // A reader who stays holds nothing up, and sees one moment.
    for (let n = 0; n < 100; n++) await store.append("orders", [draft(n)], T);
    expect(count()).toBe(1);
    reader.close();
    await store.close();
    const again = new SqliteStore({ path: link });
    expect((await again.heads("orders"))!.events.head).toBe(101);
    await again.close();
  });

  test("that is a text file, short or long, is refused and left unchanged", async () => {
    // SQLite itself takes a file of a single byte for an empty one.
    for (const text of ["ab", "a shopping list\n", "a shopping list\n".repeat(1_000)]) {
      const path = join(temporary(), "list.txt");
      writeFileSync(path, text);
      expect(refusal(path)).toEqual({ code: "conflict", message: `${path} is not a database` });
      expect(readFileSync(path, "utf8")).toBe(text);
    }
    const path = join(temporary(), "list.txt");
    writeFileSync(path, "a shopping list\n");
    expectOneLine(await said(path), path);
  });

  test("that is another program's database is refused and left unchanged", async () => {
    const path = join(temporary(), "other.db");
    const other = new Database(path);
    other.run("CREATE TABLE channels (name TEXT)");
    other.run("PRAGMA user_version = 1");
    other.close();
    const before = readFileSync(path);
    expect(refusal(path)).toEqual({
      code: "conflict",
      message: `${path} is a database of another program; set PERE_DB to another path`,
    });
    expectOneLine(await said(path), path);
    expect(readFileSync(path)).toEqual(before);
  });

  test("of a newer PERE is refused and left unchanged", async () => {
    const path = join(temporary(), "pere.db");
    await new SqliteStore({ path }).close();
    const newer = new Database(path);
    const { user_version } = newer.query("PRAGMA user_version").get() as { user_version: number };
    newer.run(`PRAGMA user_version = ${user_version + 1}`);
    newer.close();
    const before = readFileSync(path);
    const { code, message } = refusal(path);
    expect(code).toBe("conflict");
    expect(message).toContain("newer PERE");
    expectOneLine(await said(path), path);
    expect(readFileSync(path)).toEqual(before);
  });

  test("that can't be opened or created is refused: no such folder, a folder in its place, a read-only folder", async () => {
    const folder = temporary();
    mkdirSync(join(folder, "pere.db"));
    // Nobody can make a file in /proc, not even root.
    for (const path of [join(folder, "none", "pere.db"), join(folder, "pere.db"), "/proc/pere.db"]) {
      const { code, message } = refusal(path);
      expect([path, code]).toEqual([path, "away"]);
      expect(message).toContain(path);
      expect(message).not.toContain("\n");
    }
    expectOneLine(await said("/proc/pere.db"), "/proc/pere.db");
  });

  test("stores calls of one turn beside a failing one as if each had come alone", async () => {
    const store = new SqliteStore({ path: join(temporary(), "pere.db") });
    const { epoch } = await store.append("orders", [draft(1)], T);
    await store.enrol("orders", "till", T);
    await store.append("orders", [draft(2)], T);
    const together = [
      store.enrol("orders", "kiosk", T),
      store.record("orders", [word(epoch, 2, "till", "done")], T),
      store.append("orders", [draft(3)], T),
      store.enrol("orders", "truck", T),
      store.record("orders", [word(epoch, 2, "truck", "done")], T),
    ];
    const notATime = store.seen("orders", new Map([["till", 0.5]])).catch(({ code }: PereError) => code);
    const neither = { ...word(epoch, 3, "kiosk", "received"), deviceAt: 0.5 };
    const notRecorded = store.record("orders", [neither], T).catch(({ code }: PereError) => code);
    expect(await Promise.all(together)).toMatchObject([
      true,
      [{ result: "recorded" }],
      { first: 3, addressed: 2 },
      true,
      [{ result: "unaddressed" }],
    ]);
    expect([await notATime, await notRecorded]).toEqual(["away", "away"]);
    expect(results(await store.record("orders", [word(epoch, 3, "kiosk", "done")], T))).toEqual(["recorded"]);
    expect(await reads.receipts(store, "orders", 0, 10)).toMatchObject([
      { seq: 1, event: 2, device: "till" },
      { seq: 2, event: 2, status: "pending" },
      { seq: 3, event: 3, device: "kiosk" },
    ]);
    await expectTalliesToEqualRows(store, "orders");
    await store.close();
  });

  test("of the first version is migrated with all of its data, and has deadlines from then on", async () => {
    const path = join(temporary(), "pere.db");
    const first = new Database(path);
    first.run(readFileSync(join(import.meta.dir, "support", "schema-1.sql"), "utf8"));
    first.run(`PRAGMA application_id = ${SCHEMA.applicationId}`);
    first.run("PRAGMA user_version = 1");
    first.run("INSERT INTO channels VALUES (1, 'orders', 'epoch', 3, 1, 1, 2, 0, 2)");
    first.run(
      `INSERT INTO events VALUES (1, 2, ${T}, ${T + SECOND}, 1, 't', '"to till"'), (1, 3, ${T}, NULL, 0, NULL, '"to all"')`,
    );
    first.run("INSERT INTO tallies (channel, event, addressed, working, done) VALUES (1, 2, 1, 0, 1), (1, 3, 2, 1, 0)");
    first.run("INSERT INTO targets VALUES (1, 2, 'till')");
    first.run(
      `INSERT INTO devices VALUES (1, 'kiosk', 2, NULL, ${T}, NULL, 0, 0, 0), (1, 'till', 0, NULL, ${T}, ${T + 1}, 0, 1, 0)`,
    );
    first.run(
      `INSERT INTO receipts VALUES (1, 1, 2, 'till', 4, ${T}, NULL, 0, '"x"'), (1, 2, 3, 'kiosk', 2, ${T}, ${T}, 0, NULL)`,
    );
    first.run("INSERT INTO latest VALUES (1, 2, 'till', 4, 1), (1, 3, 'kiosk', 2, 2)");
    first.run(`INSERT INTO keys VALUES (1, 'k', 'd', 3, 1, ${T}, 2, NULL, ${T + 60 * SECOND})`);
    first.close();

    for (let opening = 1; opening <= 2; opening++) {
      const store = new SqliteStore({ path });
      expect(await store.heads("orders")).toEqual({
        epoch: "epoch",
        events: { head: 3, floor: 1, controls: 0 },
        receipts: { head: 2, floor: 0 },
      });
      const none = { deadline: null, remind: null, key: null, attempts: null, where: null, withdrawn: null };
      expect(await reads.events(store, "orders", 0, 10)).toEqual([
        { seq: 2, at: T, type: "t", data: '"to till"', to: ["till"], expires: T + SECOND, ...none },
        { seq: 3, at: T, type: null, data: '"to all"', to: null, expires: null, ...none },
      ]);
      expect(await reads.receipts(store, "orders", 0, 10)).toMatchObject([
        { event: 2, device: "till", status: "done", detail: '"x"', round: 1, attempt: 0, note: null },
        { event: 3, device: "kiosk", status: "working", deviceAt: T, note: null },
      ]);
      await expectTalliesToEqualRows(store, "orders");
      expect(await store.recordMissing(T)).toBeNull();
      expect(await store.reminders("orders", T)).toEqual([]);
      expect(await store.hooks(null)).toEqual([]);
      await store.close();
    }

    const store = new SqliteStore({ path });
    expect(await store.append("orders", [draft(1)], T, { key: "k", digest: "d" })).toMatchObject({ replayed: true });
    const late = await store.append("orders", [draft(4, { deadline: 1, remind: 1 })], T);
    expect(late).toMatchObject({ epoch: "epoch", first: 4, addressed: 2 });
    expect(
      results(await store.record("orders", [word("epoch", 3, "kiosk", "done"), word("epoch", 3, "till", "done")], T)),
    ).toEqual(["recorded", "recorded"]);
    expect((await store.reminders("orders", T)).map(({ seq }) => seq)).toEqual([4]);
    expect(await missAll(store, T + SECOND)).toBeNull();
    expect(
      (await reads.receipts(store, "orders", 2, 10)).map((entry) => [entry.event, entry.status, noteOf(entry)]),
    ).toEqual([
      [3, "done", null],
      [3, "done", null],
      [3, "pending", { done: 2, failed: 0 }],
      [4, "missing", null],
      [4, "missing", null],
      [4, "pending", "settled"],
    ]);
    expect(await store.join("orders", "till", T)).toMatchObject({ enrolled: true, joined: 0, settled: 3, lostSeq: 1 });
    await expectTalliesToEqualRows(store, "orders");
    await store.close();
  });

  test("needs one row for a push to all devices, until it is answered", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    const { epoch } = await store.open("orders");
    const channel = (): unknown => rows(path, "SELECT head, receiptsHead FROM channels");
    for (const device of ["kiosk", "till"]) await store.enrol("orders", device, T);
    const before = channel();
    for (let n = 1; n <= 5; n++) await store.append("orders", [draft(n), draft(n)], T);
    expect(channel()).toEqual(before);
    expect(rows(path, "SELECT event, addressed FROM audiences")).toEqual([{ event: 1, addressed: 2 }]);
    expect(rows(path, "SELECT event FROM tallies")).toEqual([]);
    await store.record("orders", [word(epoch, 3, "till", "done"), word(epoch, 7, "kiosk", "working")], T);
    await store.append("orders", [draft(11, { to: ["till"] })], T);
    await store.retire("orders", "till", T);
    await store.append("orders", [draft(12)], T);
    await store.append("orders", [draft(13)], T);
    expect(rows(path, "SELECT event, addressed FROM audiences")).toEqual([
      { event: 1, addressed: 2 },
      { event: 12, addressed: 1 },
    ]);
    await expectTalliesToEqualRows(store, "orders");
    await store.close();

    // What its row does not say, the logs do; and of the runs, what retention took is gone.
    const again = new SqliteStore({ path });
    expect(await again.heads("orders")).toMatchObject({ events: { head: 13 } });
    const { items } = await again.channels("", 10);
    expect(items).toMatchObject([{ channel: "orders", devices: 1, events: { head: 13 } }]);
    await expectTalliesToEqualRows(again, "orders");
    while (await again.trim("orders", { count: 2, before: 0 }, T));
    expect(rows(path, "SELECT event FROM audiences")).toEqual([{ event: 12 }]);
    await expectTalliesToEqualRows(again, "orders");
    while (await again.trim("orders", { count: 0, before: 0 }, T));
    await again.append("orders", [draft(14)], T);
    expect(rows(path, "SELECT event FROM audiences")).toEqual([{ event: 12 }]);
    await expectTalliesToEqualRows(again, "orders");
    await again.close();
  });

  test("that is empty is accepted, and so is one left by kill -9", async () => {
    const path = join(temporary(), "pere.db");
    writeFileSync(path, "");
    const process = await spawn({ PERE_DB: path });
    await push(process.url, "orders", 1);
    await process.end("SIGKILL");
    const again = await spawn({ PERE_DB: path });
    expect((await ask(`${again.url}/events/orders`)).body.events.length).toBe(1);
    expect(await again.end("SIGTERM")).toBe(0);
  });

  test("that is damaged while in use is reported as damaged, by writes and by reads", async () => {
    const path = join(temporary(), "pere.db");
    const before = new SqliteStore({ path });
    const big = Array.from({ length: 100 }, () => draft("x".repeat(20_000)));
    await before.append("orders", big, T);
    await before.close();
    const store = new SqliteStore({ path });
    await store.open("orders");
    const size = statSync(path).size;
    const file = openSync(path, "r+");
    for (let at = 4096; at < size; at += 4096) writeSync(file, Buffer.alloc(4096, 0xee), 0, 4096, at);
    closeSync(file);
    for (const call of [
      () => reads.events(store, "orders", 0, 1_000),
      () => reads.tallies(store, "orders", 1, 100),
      () => reads.rows(store, "orders", 1, null, "", 10),
      () => store.append("orders", [draft(1)], T),
    ]) {
      const outcome = await call().then(
        () => "no error",
        (error: unknown) => error,
      );
      expect(outcome).toBeInstanceOf(PereError);
    }
    await store.close();
  });

  test("leaves no log beside it when it is closed", async () => {
    const path = join(temporary(), "pere.db");
    const store = new SqliteStore({ path });
    await store.append("orders", [draft(1)], T);
    await store.close();
    expect(() => statSync(`${path}-wal`)).toThrow();
    const moved = join(temporary(), "moved.db");
    copyFileSync(path, moved);
    const copy = new SqliteStore({ path: moved });
    expect((await reads.events(copy, "orders", 0, 10)).length).toBe(1);
    await copy.close();
  });
});
