/**
 * A disk that is full: a real small one, mounted for the test, filled and emptied under a running service.
 */
import { expect, test } from "bun:test";
import { closeSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { command } from "./support/commands.ts";
import { type Answer, ask, give, listen, push, spawn, Stream, temporary, until } from "./support/harness.ts";
import { canTrace } from "./support/strace.ts";

/** Mounts a file system of 32 mebibytes there; false where that can't be done. */
const mount = (folder: string): boolean =>
  process.getuid?.() === 0 &&
  Bun.which("mount") !== null &&
  Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]).success;
const unmount = (folder: string): boolean => Bun.spawnSync(["umount", folder]).success;

const folder = temporary();
const isPossible = mount(folder) && unmount(folder);
const skipped = isPossible || process.env.CI === "true" ? "" : ": a small disk can't be mounted here";

test.skipIf(skipped !== "")(
  `a backup to a full disk says which disk is full, and leaves nothing behind${skipped}`,
  async () => {
    const db = join(temporary(), "pere.db");
    const service = await spawn({ PERE_DB: db });
    expect((await ask(`${service.url}/push/orders`, { body: "1" })).status).toBe(201);
    expect(await service.end("SIGTERM")).toBe(0);
    expect(mount(folder)).toBeTrue();
    try {
      expect(() => writeFileSync(join(folder, "ballast"), new Uint8Array(64 << 20))).toThrow("ENOSPC");
      const file = join(folder, "backup.db");
      expect(await command(["backup", file], { PERE_DB: db })).toMatchObject({
        code: 1,
        stderr: `PERE can't back up: ${file} can't be written: the disk is full\n`,
      });
      expect(readdirSync(folder)).toEqual(["ballast"]);
    } finally {
      await until(() => unmount(folder), "a disk that nobody uses");
    }
  },
);

test.skipIf(skipped !== "")(
  `on a full disk pushes and receipts get 507, feeds and reads continue, and with free space everything recovers without a restart${skipped}`,
  async () => {
    expect(mount(folder)).toBeTrue();
    const ballast = join(folder, "ballast");
    const env = { PERE_DB: join(folder, "pere.db") };
    const running = [await spawn(env)];
    try {
      const service = running[0]!;
      const { url } = service;
      const stays = await listen(`${url}/feed/orders?device=a`);
      const returns = await listen(`${url}/feed/orders?device=b`);
      const pushed: string[] = [];
      const tryPush = async (): Promise<number> => {
        const answer = await ask(`${url}/push/orders`, { body: JSON.stringify("x".repeat(20_000)) });
        if (answer.status === 201) pushed.push(answer.body.id as string);
        else expect(answer.body).toMatchObject({ status: 507, type: "urn:pere:full" });
        if (answer.status === 507) expect(answer.headers.get("retry-after")).toBe("30");
        return answer.status;
      };
      // So much that the log was moved into the file once, and has room of its own: then the file is what can't grow.
      for (let n = 0; n < 500; n++) expect(await tryPush()).toBe(201);
      await stays.have(500);
      returns.close();

      const file = openSync(ballast, "w");
      const fill = (bytes: number): void => {
        try {
          for (;;) writeSync(file, Buffer.alloc(bytes));
        } catch (error) {
          expect((error as { code: string }).code).toBe("ENOSPC");
        }
      };
      for (const bytes of [64 * 1024, 4096, 1]) fill(bytes);
      closeSync(file);
      // What the log still has room for is stored.
      await until(async () => (await tryPush()) === 507, "507");
      expect(await tryPush()).toBe(507);
      let given = 0;
      const tryReceipt = async (): Promise<number> => {
        const { status } = await give(url, "orders", pushed[given]!, "a", "done");
        if (status === 200) given++;
        return status;
      };
      await until(async () => (await tryReceipt()) === 507, "507 for a receipt");
      expect(await tryReceipt()).toBe(507);

      expect((await ask(`${url}/health`)).status).toBe(200);
      expect((await ask(`${url}/ready`)).body).toMatchObject({
        status: 503,
        detail: expect.stringContaining("disk is full"),
      });
      expect((await ask(`${url}/events/orders/${pushed.at(-1)}`)).body.audience.addressed).toBe(2);
      await stays.have(pushed.length);
      expect(stays.ended).toBeFalse();
      const back = await listen(`${url}/feed/orders?device=b`);
      await back.have(pushed.length);

      let strangers = 0;
      const isTurnedAway = async (): Promise<boolean> => {
        const abort = new AbortController();
        const response = await fetch(`${url}/feed/orders?device=new-${strangers++}`, { signal: abort.signal });
        const stranger = new Stream(response, abort);
        const first = await stranger.next();
        stranger.close();
        return first.event === "pere.bye" && first.data === '{"reason":"busy"}';
      };
      await until(isTurnedAway, "a new device that is told to come later");

      rmSync(ballast);
      // Whoever sends pushes only to a service that is ready need not be the first to try.
      await until(async () => (await ask(`${url}/ready`)).status === 200, "a service that is ready");
      expect(await tryPush()).toBe(201);
      expect(await tryReceipt()).toBe(200);
      for (const feed of [stays, back]) expect((await feed.have(pushed.length)).map(({ id }) => id)).toEqual(pushed);

      await service.end("SIGKILL");
      const again = await spawn(env);
      running.push(again);
      const kept: { id: string; receipts: { done: number } }[] = [];
      for (let after: string | null = ""; after !== null;) {
        const { body }: Answer = await ask(`${again.url}/events/orders?after=${after}`);
        kept.push(...body.events);
        after = body.next;
      }
      expect(kept.map(({ id }) => id)).toEqual(pushed);
      expect(kept.filter(({ receipts }) => receipts.done === 1)).toHaveLength(given);
      expect(await again.end("SIGTERM")).toBe(0);
    } finally {
      for (const { child } of running) {
        child.kill("SIGKILL");
        await child.exited;
      }
      await until(() => unmount(folder), "a disk that nobody uses");
    }
  },
);

test.skipIf(skipped !== "")(
  `a service that was killed on a full disk starts there: it serves what it has, and accepts changes when there is space again${skipped}`,
  async () => {
    expect(mount(folder)).toBeTrue();
    const env = { PERE_DB: join(folder, "pere.db") };
    const running = [await spawn(env)];
    try {
      const { url } = running[0]!;
      expect((await ask(`${url}/devices/orders/a`, { method: "PUT" })).status).toBe(201);
      const pushed: string[] = [];
      const body = JSON.stringify("x".repeat(20_000));
      const fill = (name: string): void =>
        expect(() => writeFileSync(join(folder, name), new Uint8Array(64 << 20))).toThrow("ENOSPC");
      for (let isFilled = false; ;) {
        const answer = await ask(`${url}/push/orders`, { body });
        if (answer.status === 507) break;
        pushed.push(answer.body.id as string);
        if (pushed.length === 1) await give(url, "orders", pushed[0]!, "a", "done");
        if (pushed.length >= 500 && !isFilled) {
          fill("ballast");
          isFilled = true;
        }
      }
      await running[0]!.end("SIGKILL");
      fill("more"); // Somebody else takes whatever was let go of.

      const service = await spawn(env);
      running.push(service);
      expect((await ask(`${service.url}/health`)).status).toBe(200);
      expect((await ask(`${service.url}/push/orders`, { body })).status).toBe(507);
      // What the log still has room for is stored.
      let given = 1;
      const tryReceipt = (): Promise<Answer> => give(service.url, "orders", pushed[given]!, "a", "done");
      for (let answer = await tryReceipt(); answer.status !== 507; answer = await tryReceipt()) {
        expect(answer.status).toBe(200);
        given++;
      }
      expect((await ask(`${service.url}/ready`)).status).toBe(503);
      expect((await ask(`${service.url}/events/orders/${pushed.at(-1)}`)).status).toBe(200);
      const feed = await listen(`${service.url}/feed/orders?device=a`);
      expect((await feed.have(pushed.length - given)).map(({ id }) => id)).toEqual(pushed.slice(given));

      rmSync(join(folder, "ballast"));
      await until(async () => (await ask(`${service.url}/ready`)).status === 200, "a service that is ready");
      expect((await ask(`${service.url}/push/orders`, { body })).status).toBe(201);
      expect(await service.end("SIGTERM")).toBe(0);
    } finally {
      for (const { child } of running) {
        child.kill("SIGKILL");
        await child.exited;
      }
      await until(() => unmount(folder), "a disk that nobody uses");
    }
  },
);

test.skipIf(skipped !== "")(
  `a service that was stopped starts on a full disk too, and says that no other program can read its file until the next start${skipped}`,
  async () => {
    expect(mount(folder)).toBeTrue();
    const db = join(folder, "pere.db");
    const running = [await spawn({ PERE_DB: db })];
    try {
      const event = await push(running[0]!.url, "orders", 1);
      expect(await running[0]!.end("SIGTERM")).toBe(0);
      expect(() => writeFileSync(join(folder, "ballast"), new Uint8Array(64 << 20))).toThrow("ENOSPC");

      const service = await spawn({ PERE_DB: db });
      running.push(service);
      expect((await ask(`${service.url}/ready`)).status).toBe(503);
      expect((await ask(`${service.url}/push/orders`, { body: "2" })).status).toBe(507);
      const feed = await listen(`${service.url}/feed/orders?since=earliest`);
      expect((await feed.have(1)).map(({ id }) => id)).toEqual([event]);

      rmSync(join(folder, "ballast"));
      await until(async () => (await ask(`${service.url}/ready`)).status === 200, "a service that is ready");
      expect((await ask(`${service.url}/ready`)).body.advice.join()).toContain("until the next start");
      expect((await command(["backup", join(folder, "backup.db")], { PERE_DB: db })).stderr).toContain("locked");
      await push(service.url, "orders", 3);
      await service.end("SIGKILL");
      const again = await spawn({ PERE_DB: db });
      running.push(again);
      expect((await ask(`${again.url}/ready`)).body.advice).toEqual([]);
      const { events } = (await ask(`${again.url}/events/orders`)).body as { events: { data: number }[] };
      expect(events.map(({ data }) => data)).toEqual([1, 3]);
    } finally {
      for (const { child } of running) {
        child.kill("SIGKILL");
        await child.exited;
      }
      await until(() => unmount(folder), "a disk that nobody uses");
    }
  },
);

test("a file size limit acts like a full disk: 507, feeds and reads continue, and nothing acknowledged is lost", async () => {
  const db = join(temporary(), "pere.db");
  const service = await spawn({ PERE_DB: db }, ["/bin/sh", "-c", 'ulimit -f 12000; exec "$@"', "sh"]);
  const { url } = service;
  const pushed: string[] = [];
  const body = JSON.stringify("x".repeat(20_000));
  let refused: Answer;
  for (;;) {
    refused = await ask(`${url}/push/orders`, { body });
    if (refused.status !== 201) break;
    pushed.push(refused.body.id as string);
  }
  expect([refused.status, refused.body.type]).toEqual([507, "urn:pere:full"]);
  // What the log still has room for is stored.
  await until(async () => {
    const { status, body: small } = await ask(`${url}/push/orders`, { body: "1" });
    if (status === 201) pushed.push(small.id as string);
    const ready = await ask(`${url}/ready`);
    return status === 507 && ready.status === 503 && (ready.body.detail as string).includes("disk is full");
  }, "a service that says that it is full");
  const feed = await listen(`${url}/feed/orders?since=earliest`);
  expect((await feed.have(pushed.length)).map(({ id }) => id)).toEqual(pushed);
  await service.end("SIGKILL");
  const again = await spawn({ PERE_DB: db });
  expect((await ask(`${again.url}/push/orders`, { body })).status).toBe(201);
  const late = await listen(`${again.url}/feed/orders?since=earliest`);
  expect((await late.have(pushed.length + 1)).map(({ id }) => id).slice(0, -1)).toEqual(pushed);
  expect(await again.end("SIGTERM")).toBe(0);
});

test.skipIf(!canTrace)(
  "a write that the disk refuses is 503 and stores nothing; the next is stored, and survives",
  async () => {
    const db = join(temporary(), "pere.db");
    const first = await spawn({ PERE_DB: db });
    const before = await push(first.url, "orders", 0);
    await first.end("SIGKILL");
    // Each push writes two frames or more of two parts each: some of these are in the middle of one.
    const fail = ["-P", `${db}-wal`, "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EIO:when=9+7"];
    const service = await spawn({ PERE_DB: db }, ["strace", "-f", ...fail, "-o", "/dev/null"]);
    const stored = [before];
    let refused = 0;
    try {
      for (let n = 1; stored.length < 20 || refused < 3; n++) {
        const answer = await ask(`${service.url}/push/orders`, { body: JSON.stringify(n) });
        if (answer.status === 201) stored.push(answer.body.id as string);
        else {
          expect(answer.status).toBe(503);
          expect(answer.body.detail).toBe("the store could not write it; nothing was stored");
          refused++;
        }
      }
    } finally {
      const { pid } = service.child;
      process.kill(Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim()), "SIGKILL");
      await service.child.exited;
    }
    const again = await spawn({ PERE_DB: db });
    const { events } = (await ask(`${again.url}/events/orders?limit=1000`)).body as { events: { id: string }[] };
    expect(events.map(({ id }) => id)).toEqual(stored);
    expect(await again.end("SIGTERM")).toBe(0);
  },
);
