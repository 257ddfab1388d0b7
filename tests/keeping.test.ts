/**
 * Keeping what PERE knows: backups of a service at work, what is put back and what its ids are worth then, room given back, and files that
 * older versions wrote.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import { cpSync, existsSync, readdirSync, readFileSync, readlinkSync, renameSync, rmSync, statSync } from "node:fs";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Tally } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { dataOf, reads } from "./contract/calls.ts";
import { command } from "./support/commands.ts";
import { ask, give, listen, type Process, push, spawn as spawnProcess, temporary, until } from "./support/harness.ts";
import { canTrace } from "./support/strace.ts";

const running: Process[] = [];
const spawn = async (env: Record<string, string>): Promise<Process> => {
  const service = await spawnProcess(env);
  running.push(service);
  return service;
};
afterEach(async () => {
  for (const { child } of running.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** A command that is refused: with 1, in one line, for a person. */
async function refused(args: readonly string[], env: Record<string, string>): Promise<string> {
  const { code, stdout, stderr } = await command(args, env);
  expect([code, stdout]).toEqual([1, ""]);
  expect(stderr).toMatch(/^PERE can't [^\n]+\n$/);
  return stderr.trim();
}

async function backUp(db: string, file: string): Promise<void> {
  expect(await command(["backup", file], { PERE_DB: db })).toMatchObject({ code: 0, stderr: "" });
}

const epochOf = (id: string): string => id.split("-")[0]!;
const counted = ({ received, working, done, failed }: Tally): number => received + working + done + failed;

describe("a link", () => {
  test("at the path of a secret or a backup stays a link, and its target is written", async () => {
    const folder = temporary();
    mkdirSync(join(folder, "far"));
    const db = join(folder, "pere.db");
    symlinkSync("far/secret", `${db}.secret`);
    symlinkSync("far/backup", join(folder, "backup.db"));
    const service = await spawn({ PERE_DB: db, HOST: "0.0.0.0" });
    await service.end("SIGTERM");
    await backUp(db, join(folder, "backup.db"));
    for (const [link, to] of [
      ["pere.db.secret", "far/secret"],
      ["backup.db", "far/backup"],
    ] as const) {
      expect(readlinkSync(join(folder, link))).toBe(to);
      expect(statSync(join(folder, to)).isFile()).toBe(true);
      expect(statSync(join(folder, to)).mode & 0o777).toBe(0o600);
    }
    // What is no file is left alone.
    const other = join(folder, "other.db");
    symlinkSync("/dev/null", `${other}.secret`);
    await expect(spawn({ PERE_DB: other, HOST: "0.0.0.0" })).rejects.toThrow("is not a regular file");
    expect(statSync("/dev/null").isCharacterDevice()).toBe(true);
    expect(readlinkSync(`${other}.secret`)).toBe("/dev/null");
  });
});

describe("a backup", () => {
  test("of a running service has everything acknowledged before it began, and nothing in part", async () => {
    const folder = temporary();
    const [db, file] = [join(folder, "pere.db"), join(folder, "backup.db")];
    const service = await spawn({ PERE_DB: db });
    for (const channel of ["a", "b"]) await ask(`${service.url}/devices/${channel}/till`, { method: "PUT" });
    /** What was acknowledged: ids of events, each with its receipt. */
    const acknowledged: string[] = [];
    let working = true;
    const publisher = async (channel: string): Promise<void> => {
      while (working) {
        const id = await push(service.url, channel, { pad: "x".repeat(2_000) });
        expect((await give(service.url, channel, id, "till", "done")).body.recorded).toBe(1);
        acknowledged.push(`${channel}/${id}`);
      }
    };
    const publishers = ["a", "a", "b", "b"].map(publisher);
    await until(() => acknowledged.length >= 200);
    const before = [...acknowledged];
    await backUp(db, file);
    // The service was neither asked nor held up: it goes on.
    const then = acknowledged.length;
    await until(() => acknowledged.length > then + 20);
    working = false;
    await Promise.all(publishers);

    expect(statSync(file).mode & 0o777).toBe(0o600);
    const copy = new SqliteStore({ path: file });
    for (const channel of ["a", "b"]) {
      const { events: log, receipts } = (await copy.heads(channel))!;
      const events = await reads.events(copy, channel, 0, 100_000, Number.POSITIVE_INFINITY);
      expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: log.head }, (_, n) => n + 1));
      const tallies = await reads.tallies(copy, channel, 1, log.head);
      const told = [...tallies.values()].reduce((sum, tally) => sum + counted(tally), 0);
      const words = await reads.receipts(copy, channel, 0, receipts.head);
      expect(words.length).toBe(receipts.head);
      expect(words.filter(({ status }) => status !== "pending").length).toBe(told);
      for (const name of before.filter((name) => name.startsWith(channel))) {
        const seq = Number(name.split("-")[1]);
        expect(`${name}: ${tallies.get(seq)?.done} done`).toBe(`${name}: 1 done`);
      }
    }
    await copy.close();
  });

  test("of a killed service's file has what it acknowledged, and leaves its files unchanged", async () => {
    const folder = temporary();
    const db = join(folder, "pere.db");
    const service = await spawn({ PERE_DB: db });
    for (let n = 0; n < 20; n++) await push(service.url, "orders", n);
    await service.end("SIGKILL");
    const [before, log] = [readFileSync(db), readFileSync(`${db}-wal`)];
    expect(log.length).toBeGreaterThan(0);
    await backUp(db, join(folder, "backup.db"));
    expect([readFileSync(db).equals(before), readFileSync(`${db}-wal`).equals(log)]).toEqual([true, true]);
    const copy = new SqliteStore({ path: join(folder, "backup.db") });
    expect(dataOf(await reads.events(copy, "orders", 0, 100))).toEqual(Array.from({ length: 20 }, (_, n) => String(n)));
    await copy.close();
  });

  test.skipIf(!canTrace)("is on the disk before it has its name", async () => {
    const folder = temporary();
    const [db, file, trace] = [join(folder, "pere.db"), join(folder, "backup.db"), join(folder, "trace")];
    await new SqliteStore({ path: db }).close();
    const calls = ["strace", "-f", "-y", "-o", trace, "-e", "trace=pwrite64,fsync,fdatasync,rename,renameat,renameat2"];
    expect(await command(["backup", file], { PERE_DB: db }, calls)).toMatchObject({ code: 0, stderr: "" });
    const lines = readFileSync(trace, "utf8").split("\n");
    const at = (words: RegExp): number => lines.findIndex((line) => words.test(line));
    const named = at(/rename.*backup\.db\.new.*backup\.db"/);
    const written = lines.findLastIndex((line) => /pwrite64\(\d+<[^>]*backup\.db\.new>/.test(line));
    const synced = lines.findLastIndex((line) => /sync\(\d+<[^>]*backup\.db\.new>/.test(line));
    const listed = lines.findLastIndex((line) => line.includes(`<${folder}>`));
    expect(written).toBeGreaterThan(-1);
    expect(written).toBeLessThan(synced);
    expect(synced).toBeLessThan(named);
    expect(named).toBeLessThan(listed);
  });

  test("is refused in one line if it can't be made, and leaves nothing behind", async () => {
    const folder = temporary();
    const db = join(folder, "pere.db");
    await new SqliteStore({ path: db }).close();
    const [there, other] = [join(folder, "there.db"), join(folder, "other.db")];
    writeFileSync(there, "a shopping list");
    new Database(other).run("CREATE TABLE channels (name TEXT)");
    const file = join(folder, "backup.db");
    for (const [args, env, words] of [
      [[there], { PERE_DB: db }, `${there} already exists`],
      [["/nowhere/backup.db"], { PERE_DB: db }, "/nowhere/backup.db can't be written"],
      [[file], { PERE_DB: join(folder, "none.db") }, "there is no such file"],
      [[file], { PERE_DB: other }, `${other} is not a file that PERE wrote`],
      [[file], { PERE_DB: there }, "not a database"],
      [[file], { PERE_DB: ":memory:" }, ":memory:"],
      [[file], { REDIS_URL: "redis://127.0.0.1" }, "Redis' own tools"],
      [[], { PERE_DB: db }, "usage: bun run index.ts backup FILE"],
      [[file, "b"], { PERE_DB: db }, "usage: bun run index.ts backup FILE"],
      [["--to"], { PERE_DB: db }, "usage: bun run index.ts backup FILE"],
    ] as const)
      expect(await refused(["backup", ...args], env)).toContain(words);
    expect(readFileSync(there, "utf8")).toBe("a shopping list");
    expect(readdirSync(folder).filter((name) => name.startsWith("backup") || name.endsWith(".new"))).toEqual([]);
  });
});

describe("a restored file", () => {
  test("has new epochs: ids assigned after the backup never match new ones", async () => {
    const folder = temporary();
    const [db, file] = [join(folder, "pere.db"), join(folder, "backup.db")];
    const first = await spawn({ PERE_DB: db });
    const device = await listen(`${first.url}/feed/orders?device=till`);
    const kept = await push(first.url, "orders", { n: 1 });
    await backUp(db, file);
    const lost = await push(first.url, "orders", { n: 2 });
    await device.have(2);
    device.close();
    await first.end("SIGTERM");
    // The disk is gone, and with it all that came after the backup.
    for (const name of readdirSync(folder).filter((name) => name.startsWith("pere.db"))) rmSync(join(folder, name));
    const { code, stdout } = await command(["restore", file], { PERE_DB: db });
    expect([code, stdout]).toEqual([
      0,
      `restored to ${db} (channels: 1, events: 1); when PERE starts, events get new ids\n`,
    ]);

    const second = await spawn({ PERE_DB: db });
    // The number of the event that was lost is given to another, the id is not.
    const fresh = await push(second.url, "orders", { n: 3 });
    expect(fresh.split("-")[1]).toBe(lost.split("-")[1]!);
    expect(epochOf(fresh)).not.toBe(epochOf(lost));
    // The device comes back where it was: it is told of the gap, and given all that it owes, the new event too.
    const again = await listen(`${second.url}/feed/orders?device=till`, { "Last-Event-ID": lost });
    expect(await again.own("gap")).toMatchObject({ channel: "orders", after: lost });
    expect((await again.have(2)).map(({ data }) => (JSON.parse(data) as { data: unknown }).data)).toEqual([
      { n: 1 },
      { n: 3 },
    ]);
    again.close();
    for (const old of [kept, lost])
      expect((await give(second.url, "orders", old, "till", "done")).body.rejected).toHaveLength(1);
    expect((await give(second.url, "orders", fresh, "till", "done")).body.recorded).toBe(1);
    // From then on it is a life like any other.
    await second.end("SIGTERM");
    const third = await spawn({ PERE_DB: db });
    expect(epochOf(await push(third.url, "orders", { n: 4 }))).toBe(epochOf(fresh));
  });

  test("has new epochs each time, also if a backup is copied into place by hand", async () => {
    const folder = temporary();
    const [db, file] = [join(folder, "pere.db"), join(folder, "backup.db")];
    const store = new SqliteStore({ path: db });
    await store.enrol("orders", "till", 0);
    const epochs = new Set([(await store.heads("orders"))!.epoch]);
    await store.close();
    await backUp(db, file);
    for (const name of ["one.db", "two.db"]) {
      cpSync(file, join(folder, name));
      const copy = new SqliteStore({ path: join(folder, name) });
      epochs.add((await copy.heads("orders"))!.epoch);
      await copy.close();
    }
    expect((await command(["restore", file], { PERE_DB: join(folder, "three.db") })).code).toBe(0);
    // Of a copy that was never worked with, too.
    await backUp(join(folder, "three.db"), join(folder, "again.db"));
    for (const name of ["three.db", "again.db"]) {
      const copy = new SqliteStore({ path: join(folder, name) });
      epochs.add((await copy.heads("orders"))!.epoch);
      await copy.close();
    }
    expect(epochs.size).toBe(5);
  });

  test("has the secret that issued tokens were signed with, readable only by its owner", async () => {
    const folder = temporary();
    const [db, file, other] = [join(folder, "pere.db"), join(folder, "backup.db"), join(folder, "other.db")];
    await spawn({ PERE_DB: db, HOST: "0.0.0.0" });
    const mint = ["token", "--sub", "till", "--feed", "orders"];
    const { stdout: token } = await command(mint, { PERE_DB: db, HOST: "0.0.0.0" });
    await backUp(db, file);
    expect((await command(["restore", file], { PERE_DB: other })).code).toBe(0);
    for (const path of [`${file}.secret`, `${other}.secret`]) expect(statSync(path).mode & 0o777).toBe(0o600);
    const second = await spawn({ PERE_DB: other, HOST: "0.0.0.0" });
    const url = second.url.replace("0.0.0.0", "127.0.0.1");
    const headers = { Authorization: `Bearer ${token.trim()}`, Accept: "application/json" };
    expect((await ask(`${url}/feed/orders?wait=0`, { headers })).status).toBe(200);
  });

  test("overwrites nothing: no file, no file of a running service, no log", async () => {
    const folder = temporary();
    const [db, file] = [join(folder, "pere.db"), join(folder, "backup.db")];
    const service = await spawn({ PERE_DB: db });
    await push(service.url, "orders", 1);
    await backUp(db, file);
    expect(await refused(["restore", file], { PERE_DB: db })).toContain("in use by another process");
    // Also where the file is gone from under it.
    renameSync(db, join(folder, "away"));
    expect(await refused(["restore", file], { PERE_DB: db })).toContain("in use by another process");
    renameSync(join(folder, "away"), db);
    await service.end("SIGKILL");
    expect(await refused(["restore", file], { PERE_DB: db })).toContain("already exists");
    rmSync(db);
    expect(await refused(["restore", file], { PERE_DB: db })).toContain(`${db}-wal already exists`);
    expect(existsSync(db)).toBe(false);
    // The log that SQLite would find is the one where links lead.
    const link = join(temporary(), "link.db");
    symlinkSync(db, link);
    expect(await refused(["restore", file], { PERE_DB: link })).toContain(`${db}-wal already exists`);
    expect(existsSync(db)).toBe(false);
    writeFileSync(join(folder, "list"), "a shopping list");
    const other = join(folder, "other.db");
    expect(await refused(["restore", join(folder, "list")], { PERE_DB: other })).toContain("not a database");
    expect(await refused(["restore", join(folder, "none")], { PERE_DB: other })).toContain("there is no such file");
    expect(await refused(["restore"], { PERE_DB: other })).toContain("usage: bun run index.ts restore FILE");
    expect(existsSync(other)).toBe(false);
  });

  test("is refused if it is damaged", async () => {
    const folder = temporary();
    const [db, file] = [join(folder, "pere.db"), join(folder, "backup.db")];
    const store = new SqliteStore({ path: db });
    for (let n = 0; n < 50; n++)
      await store.append(
        "orders",
        [
          {
            data: "1".repeat(2_000),
            type: null,
            to: null,
            ttl: null,
            deadline: null,
            remind: null,
            key: null,
            attempts: null,
            where: null,
          },
        ],
        0,
      );
    await store.close();
    await backUp(db, file);
    const bytes = readFileSync(file);
    bytes.fill(0xff, 8 * 4096, 20 * 4096);
    writeFileSync(file, bytes);
    expect(await refused(["restore", file], { PERE_DB: join(folder, "other.db") })).toContain("malformed");
    expect(readdirSync(folder).filter((name) => /^other\.db($|\.new)/.test(name))).toEqual([]);
  });
});

test("compact returns space, keeps everything else, and does not touch a file in use", async () => {
  const db = join(temporary(), "pere.db");
  const store = new SqliteStore({ path: db });
  const draft = {
    data: `"${"x".repeat(10_000)}"`,
    type: null,
    to: null,
    ttl: null,
    deadline: null,
    remind: null,
    key: null,
    attempts: null,
    where: null,
  };
  for (let n = 0; n < 20; n++)
    await store.append(
      "orders",
      Array.from({ length: 20 }, () => draft),
      0,
    );
  const { epoch } = (await store.heads("orders"))!;
  while (await store.trim("orders", { count: 10, before: -1 }, 1));
  expect(await refused(["compact"], { PERE_DB: db })).toContain("in use by another process");
  await store.close();
  const before = statSync(db).size;
  const { code, stdout } = await command(["compact"], { PERE_DB: db });
  expect(code).toBe(0);
  const after = statSync(db).size;
  expect(after).toBeLessThan(before / 5);
  expect(stdout).toBe(`compacted ${db} from ${(before / 1e6).toFixed(1)} MB to ${(after / 1e6).toFixed(1)} MB\n`);
  const again = new SqliteStore({ path: db });
  expect((await again.heads("orders"))!.epoch).toBe(epoch);
  expect((await reads.events(again, "orders", 0, 100)).map(({ seq }) => seq)).toEqual(
    Array.from({ length: 10 }, (_, n) => 391 + n),
  );
  await again.close();
  expect(await refused(["compact", "now"], { PERE_DB: db })).toContain("usage: bun run index.ts compact");
  expect(await refused(["compact"], { PERE_DB: `${db}.none` })).toContain("there is no such file");
});
