/**
 * One service per file, whatever the file is called, and only for as long as the file is where it was opened: otherwise two services
 * destroy it, or what was acknowledged is gone after a restart.
 */
import { afterEach, describe, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join, relative } from "node:path";
import { command } from "./support/commands.ts";
import {
  ask,
  give,
  listen,
  logOf,
  type Process,
  push,
  spawn as spawnProcess,
  temporary,
  until,
} from "./support/harness.ts";
import { canTrace, noStrace } from "./support/strace.ts";

const started: Process[] = [];
const spawn = async (db: string): Promise<Process> => {
  const running = await spawnProcess({ PERE_DB: db });
  started.push(running);
  return running;
};
afterEach(async () => {
  for (const { child } of started.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** What a service that can't start says. */
const refusal = (db: string): Promise<string> =>
  spawn(db).then(
    () => "it was taken",
    (error: unknown) => (error as Error).message,
  );

/** Bind mounts need rights that tests may not have. */
const canBind = process.platform === "linux" && process.getuid?.() === 0 && Bun.which("mount") !== null;
/** In CI its absence is a failure, elsewhere a reason to skip. */
const traced = canTrace ? test : test.skip;
const why = canTrace ? "" : ` (skipped: ${noStrace})`;
const linux = process.platform === "linux" ? test : test.skip;

describe("a file in use by a service", () => {
  test("is refused to a second service through hard links, symbolic links and other paths, and stays unharmed", async () => {
    const folder = temporary();
    const db = join(folder, "pere.db");
    const service = await spawn(db);
    const first = await push(service.url, "orders", 1);
    const names = {
      "in use": [db, relative(process.cwd(), db), join(folder, ".", "..", folder.split("/").at(-1)!, "pere.db")],
      "hard links": [join(folder, "hard.db"), join(temporary(), "elsewhere.db")],
    };
    const [link, linked] = [join(folder, "link.db"), join(temporary(), "linked")];
    symlinkSync(db, link);
    symlinkSync(folder, linked);
    names["in use"].push(link, join(linked, "pere.db"));
    for (const name of names["in use"])
      expect([name, await refusal(name)]).toEqual([name, expect.stringContaining("in use")]);
    for (const name of names["hard links"]) {
      linkSync(db, name);
      expect([name, await refusal(name)]).toEqual([name, expect.stringContaining("2 names")]);
      for (const args of [["compact"], ["backup", join(temporary(), "backup.db")]])
        expect((await command(args, { PERE_DB: name })).stderr).toContain("2 names");
      rmSync(name);
    }
    const second = await push(service.url, "orders", 2);
    expect(await service.end("SIGTERM")).toBe(0);
    const { url } = await spawn(db);
    expect((await ask(`${url}/events/orders`)).body.events.map(({ id }: { id: string }) => id)).toEqual([
      first,
      second,
    ]);
  });

  linux("is refused to a second one although its lock beside it was removed, or it was renamed", async () => {
    const folder = temporary();
    const db = join(folder, "pere.db");
    const service = await spawn(db);
    rmSync(`${db}.lock`);
    expect(await refusal(db)).toContain("in use");
    expect((await command(["compact"], { PERE_DB: db })).stderr).toContain("in use");
    await push(service.url, "orders", 1);
    renameSync(db, join(folder, "other.db"));
    expect(await refusal(join(folder, "other.db"))).toContain("in use");
    expect(
      (await command(["backup", join(folder, "copy.db")], { PERE_DB: join(folder, "other.db") })).stderr,
    ).toContain("in use under another name");
  });

  test.skipIf(!canBind)(
    "is refused to a second service through a bind mount, and so is a backup without its log",
    async () => {
      const db = join(temporary(), "pere.db");
      const service = await spawn(db);
      await push(service.url, "orders", 1);
      const bound = join(temporary(), "bound.db");
      writeFileSync(bound, "");
      expect(Bun.spawnSync(["mount", "--bind", db, bound]).success).toBeTrue();
      try {
        expect(await refusal(bound)).toContain("in use");
        expect((await command(["backup", join(temporary(), "copy.db")], { PERE_DB: bound })).stderr).toContain(
          "in use under another name",
        );
      } finally {
        Bun.spawnSync(["umount", bound]);
      }
    },
  );

  test("is free again after the service was killed", async () => {
    const db = join(temporary(), "pere.db");
    const first = await spawn(db);
    await first.end("SIGKILL");
    const { url } = await spawn(db);
    await push(url, "orders", 1);
  });
});

describe("a file that is no longer at its path", () => {
  /** What is done to the file in the folder, and what is done to put it back. */
  const moves: Record<string, readonly [away: (db: string) => void, back: ((db: string) => void) | null]> = {
    "was removed": [(db) => rmSync(db), null],
    "was removed with all that belongs to it": [
      (db) => {
        for (const end of ["", "-wal", "-shm", ".lock"]) rmSync(`${db}${end}`);
      },
      null,
    ],
    "lost its log": [(db) => rmSync(`${db}-wal`), null],
    "was moved away": [(db) => renameSync(db, `${db}.old`), (db) => renameSync(`${db}.old`, db)],
    "was replaced by a copy of itself": [
      (db) => {
        copyFileSync(db, `${db}.copy`);
        renameSync(db, `${db}.old`);
        renameSync(`${db}.copy`, db);
      },
      (db) => renameSync(`${db}.old`, db),
    ],
    "had its log replaced": [
      (db) => {
        renameSync(`${db}-wal`, `${db}-wal.old`);
        writeFileSync(`${db}-wal`, "");
      },
      (db) => renameSync(`${db}-wal.old`, `${db}-wal`),
    ],
    "has another folder now": [
      (db) => {
        renameSync(join(db, ".."), `${join(db, "..")}.old`);
        mkdirSync(join(db, ".."));
      },
      (db) => {
        rmSync(join(db, ".."), { recursive: true });
        renameSync(`${join(db, "..")}.old`, join(db, ".."));
      },
    ],
    "has no folder any more": [(db) => rmSync(join(db, ".."), { recursive: true }), null],
  };

  for (const [what, [away, back]] of Object.entries(moves))
    test(`because it ${what} stops acknowledgement, and is reported`, async () => {
      const folder = join(temporary(), "data");
      mkdirSync(folder);
      const db = join(folder, "pere.db");
      const service = await spawn(db);
      const { url } = service;
      const log = logOf(service);
      const feed = await listen(`${url}/feed/orders?device=till`);
      const event = await push(url, "orders", 1);
      await feed.have(1);

      away(db);
      // The first that comes after it is refused, not only one that comes when a clock has looked.
      const answers = [
        await ask(`${url}/push/orders`, { body: "2" }),
        await give(url, "orders", event, "till", "done"),
        await ask(`${url}/ready`),
      ];
      for (const { status, body } of answers) {
        expect([status, body.detail]).toEqual([503, expect.stringContaining("pere.db")]);
        expect(body.detail).toMatch(/was removed or moved away|was replaced/);
        expect(body.detail).not.toContain(folder); // Callers need not know it; the log has it.
      }
      expect((await ask(`${url}/health`)).status).toBe(200);
      expect((await ask(`${url}/events/orders/${event}`)).status).toBe(200);

      if (back) {
        back(db);
        await until(async () => (await ask(`${url}/ready`)).status === 200, "a service that is ready");
        expect((await give(url, "orders", event, "till", "done")).status).toBe(200);
        await push(url, "orders", 3);
        await feed.have(2);
        expect(feed.events.map(({ data }) => (JSON.parse(data) as { data: number }).data)).toEqual([1, 3]);
      }
      await until(() => log.lines.some((line) => /no changes are accepted until/.test(line)), "a line in the log");
      await service.end("SIGKILL");
      expect(log.lines.filter((line) => /no changes are accepted until/.test(line))).toHaveLength(1);
      if (!back && !existsSync(db)) return;
      const again = await spawn(db);
      const kept = (await ask(`${again.url}/events/orders`)).body.events.map(({ data }: { data: number }) => data);
      expect(kept).toEqual(back ? [1, 3] : [1]);
    });

  test("is noticed within a second while nothing is stored", async () => {
    const db = join(temporary(), "pere.db");
    const service = await spawn(db);
    const log = logOf(service);
    rmSync(db);
    await until(() => log.lines.some((line) => line.includes("pere.db was removed")), "a line in the log");
    expect(readdirSync(join(db, ".."))).not.toContain("pere.db");
  });

  traced(
    `is looked for between the sync and each answer, and a start that changes nothing writes nothing${why}`,
    async () => {
      const folder = temporary();
      const [db, trace] = [join(folder, "pere.db"), join(folder, "trace")];
      const first = await spawn(db);
      await push(first.url, "orders", 1);
      await first.end("SIGKILL");

      const calls = "trace=/^(p?write(v|64)?|f(data)?sync|ftruncate|unlink.*|rename.*|.*stat.*|send.*)$";
      const service = await spawnProcess({ PERE_DB: db }, [
        "strace",
        "-f",
        "-y",
        "-s",
        "8192",
        "-e",
        calls,
        "-o",
        trace,
      ]);
      started.push(service);
      const isListening = (line: string): boolean => line.includes("PERE listening on");
      const linesOf = (): string[] => readFileSync(trace, "latin1").split("\n");
      await until(() => linesOf().some(isListening), "a service that listens");
      for (let n = 0; n < 5; n++) await push(service.url, "orders", `mark-${n}-end`);
      const pid = Number(readFileSync(`/proc/${service.child.pid}/task/${service.child.pid}/children`, "utf8").trim());
      process.kill(pid, "SIGTERM");
      await service.child.exited;

      const lines = linesOf();
      // A sync of what a killed process left needs no space. What SQLite makes again at each start is its index of the log.
      const changes = /^\d+ +(p?write(v|64)?|ftruncate|unlink\w*|rename\w*)\(/;
      const written = lines
        .slice(0, lines.findIndex(isListening))
        .filter((line) => changes.test(line) && line.includes(folder) && !line.includes(`${db}-shm`));
      expect(written).toEqual([]);
      for (let n = 0; n < 5; n++) {
        const stored = lines.findIndex((line) => line.includes(`<${db}-wal>`) && line.includes(`mark-${n}-end`));
        const after = (words: RegExp, from: number): number =>
          lines.findIndex((line, at) => at > from && words.test(line));
        const synced = after(new RegExp(`sync\\(\\d+<${db}-wal>`), stored);
        const looked = after(new RegExp(`stat.*"${db}"`), synced);
        const lookedAtLog = after(new RegExp(`stat.*"${db}-wal"`), synced);
        const answered = after(/^\d+ +(send|write).*HTTP\/1.1 201/, stored);
        expect(stored).toBeGreaterThan(-1);
        expect(synced).toBeGreaterThan(stored);
        expect(looked).toBeGreaterThan(synced);
        expect(lookedAtLog).toBeGreaterThan(synced);
        expect(answered).toBeGreaterThan(Math.max(looked, lookedAtLog));
      }
    },
  );

  test("stops acknowledgement even during pushes", async () => {
    const db = join(temporary(), "pere.db");
    const service = await spawn(db);
    let isGone = false;
    const acknowledged: unknown[] = [];
    let refused = 0;
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let n = 0; refused < 20; n++) {
          const sentAfter = isGone;
          const { status } = await ask(`${service.url}/push/orders`, { body: "1" });
          if (status === 201) acknowledged.push(sentAfter);
          else refused++;
          if (acknowledged.length === 100 && !isGone) {
            for (const end of ["", "-wal", "-shm"]) rmSync(`${db}${end}`);
            isGone = true;
          }
        }
      }),
    );
    expect(acknowledged.filter((sentAfter) => sentAfter)).toEqual([]);
    expect(acknowledged.length).toBeGreaterThanOrEqual(100);
  });
});
