/**
 * A write-ahead log that grew long, because somebody read the file for long or a kill came: it is moved into the file beside the work, its file
 * is cut when that is done, and the operator is told while it grows.
 */
import { Database } from "bun:sqlite";
import { afterEach, expect, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { ask, logOf, type Process, push, spawn as spawnProcess, temporary, until } from "./support/harness.ts";
import { canTrace, noStrace } from "./support/strace.ts";

const started: Process[] = [];
const spawn: typeof spawnProcess = async (env, before) => {
  const running = await spawnProcess(env, before);
  started.push(running);
  return running;
};
/** The service itself, where strace started it. */
const serviceOf = ({ child }: Process): number =>
  Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ")[0]);
afterEach(async () => {
  for (const { child } of started.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** In CI its absence is a failure, elsewhere a reason to skip. */
const traced = canTrace ? test : test.skip;
const why = canTrace ? "" : ` (skipped: ${noStrace})`;

const MEGABYTE = 1e6;
const logBytes = (db: string): number => statSync(`${db}-wal`).size;

/** Somebody who reads one moment of the file until it is closed. */
function reader(db: string): Database {
  const reading = new Database(db, { readonly: true });
  reading.run("BEGIN");
  reading.query("SELECT count(*) FROM events").get();
  return reading;
}

/** Pushes until the log's file has so many bytes; gives how many events that took. */
async function grow(url: string, db: string, bytes: number): Promise<number> {
  const line = JSON.stringify("x".repeat(9_000));
  let count = 0;
  while (logBytes(db) < bytes) {
    const lines = Array.from({ length: 100 }, () => line).join("\n");
    expect((await ask(`${url}/push/orders`, { body: lines, type: "application/x-ndjson" })).status).toBe(201);
    count += 100;
  }
  return count;
}

const lastSeq = async (url: string): Promise<string> =>
  (await ask(`${url}/channels`)).body.channels[0].last.split("-")[1];
const adviceOf = async (url: string): Promise<string[]> => (await ask(`${url}/ready`)).body.advice;

test("a log that grows because another program reads the file is reported, and shrinks afterwards", async () => {
  const db = join(temporary(), "pere.db");
  const service = await spawn({ PERE_DB: db });
  const { url } = service;
  const log = logOf(service);
  await push(url, "orders", 0);
  expect(await adviceOf(url)).toEqual([]);
  const reading = reader(db);
  const count = await grow(url, db, 80 * MEGABYTE);
  expect((await adviceOf(url)).join()).toMatch(/pere\.db-wal has grown to \d+ MB.*another program keeps reading/);
  await until(async () => {
    const metrics = (await ask(`${url}/metrics`)).text;
    return Number(/^pere_store_log_bytes (\S+)$/m.exec(metrics)?.[1]) >= 80 * MEGABYTE;
  }, "the log's length among the metrics");
  // What the reader sees stays as it was, and everybody else sees all of it.
  expect(reading.query("SELECT count(*) AS n FROM events").get()).toEqual({ n: 1 });
  expect(await lastSeq(url)).toBe(String(count + 1));

  reading.close();
  await until(
    () => logBytes(db) <= 33 * MEGABYTE,
    () => `a log that shrinks; it has ${logBytes(db)} bytes`,
  );
  expect(await adviceOf(url)).toEqual([]);
  await push(url, "orders", 1);
  const told = (): string[] => log.lines.filter((line) => line.includes("has grown to"));
  await until(() => told().length > 0, "a line in the log");
  await service.end("SIGKILL");
  expect(told()).toHaveLength(1);
  const again = await spawn({ PERE_DB: db });
  expect(await lastSeq(again.url)).toBe(String(count + 2));
});

test("a long log left by a kill is moved in the background: nothing of it is lost, and its file shrinks", async () => {
  const db = join(temporary(), "pere.db");
  const first = await spawn({ PERE_DB: db });
  await push(first.url, "orders", 0);
  const reading = reader(db);
  let count = 1 + (await grow(first.url, db, 80 * MEGABYTE));
  await first.end("SIGKILL");
  reading.close();

  const service = await spawn({ PERE_DB: db });
  await until(
    async () => {
      await push(service.url, "orders", count++);
      return logBytes(db) <= 33 * MEGABYTE;
    },
    () => `a log that shrinks; it has ${logBytes(db)} bytes`,
  );
  await service.end("SIGKILL");
  const again = await spawn({ PERE_DB: db });
  expect(await lastSeq(again.url)).toBe(String(count));
  expect(await again.end("SIGTERM")).toBe(0);
  const file = new Database(db, { readonly: true });
  expect(file.query("PRAGMA integrity_check").get()).toEqual({ integrity_check: "ok" });
  expect(file.query("SELECT count(*) AS n FROM events").get()).toEqual({ n: count });
  file.close();
});

traced(
  `a log is cut only after the file was synced and the log began from its start; when that sync fails nothing more is acknowledged${why}`,
  async () => {
    const folder = temporary();
    const [db, trace] = [join(folder, "pere.db"), join(folder, "trace")];
    const first = await spawn({ PERE_DB: db });
    await push(first.url, "orders", 0);
    const reading = reader(db);
    await grow(first.url, db, 40 * MEGABYTE);
    await first.end("SIGKILL");
    reading.close();
    const before = Bun.file(db).size;

    // Only syncs of the database itself fail: the long log's pages are there, but nobody knows whether they are on the disk.
    const fail = ["-P", db, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1+"];
    const failing = await spawn({ PERE_DB: db }, ["strace", "-f", "-y", ...fail, "-o", trace]);
    await until(async () => (await ask(`${failing.url}/ready`)).status === 503, "a service that is not ready");
    expect((await ask(`${failing.url}/push/orders`, { body: "1" })).status).toBe(503);
    expect(logBytes(db)).toBeGreaterThan(40 * MEGABYTE);
    process.kill(serviceOf(failing), "SIGKILL");
    await failing.child.exited;
    expect(Bun.file(db).size).toBeGreaterThanOrEqual(before);

    const calls = "trace=pwrite64,fsync,fdatasync,ftruncate";
    const service = await spawn({ PERE_DB: db }, ["strace", "-f", "-y", "-s", "16", "-e", calls, "-o", trace]);
    await until(() => logBytes(db) < 33 * MEGABYTE, "a log that shrinks");
    process.kill(serviceOf(service), "SIGKILL");
    await service.child.exited;
    const lines = readFileSync(trace, "latin1").split("\n");
    const cut = lines.findIndex((line) => /ftruncate\(\d+<[^>]*pere\.db-wal>/.test(line));
    const last = (words: RegExp): number => lines.findLastIndex((line, at) => at < cut && words.test(line));
    const moved = last(/pwrite64\(\d+<[^>]*pere\.db>/);
    const synced = last(/sync\(\d+<[^>]*pere\.db>/);
    const begun = last(/pwrite64\(\d+<[^>]*pere\.db-wal>.*, 32, 0\)?/);
    expect(moved).toBeGreaterThan(-1);
    expect(synced).toBeGreaterThan(moved);
    expect(begun).toBeGreaterThan(synced);
    expect(last(/sync\(\d+<[^>]*pere\.db-wal>/)).toBeGreaterThan(begun);
  },
);
