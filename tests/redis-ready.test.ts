/**
 * What PERE says of the Redis that it keeps its logs in, at its start and at `/ready`: read from real servers with different settings; and from a
 * pretended one where no real one of that age is at hand.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { RedisStore } from "../engine/redis/store.ts";
import { ask, spawn, startOn, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const openRedis = async (settings: Record<string, string> = {}): Promise<RedisServer> => {
  const server = await startRedis(settings);
  closing.push(() => server.end());
  return server;
};
const openService = async (redis: string): Promise<string> => {
  const service = await startOn(redis);
  closing.push(() => service.stop());
  return service.url;
};

const ALWAYS = { appendonly: "yes", appendfsync: "always" };

/** A server that answers nothing but who it is. */
function pretend(...told: readonly string[]): string {
  const info = told.join("\r\n");
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      data(socket, bytes) {
        for (const [, command] of bytes.toString().matchAll(/\*\d+\r\n\$\d+\r\n([A-Z]+)\r\n/g)) {
          if (command === "HELLO") socket.write("%0\r\n");
          else if (command === "INFO") socket.write(`$${info.length}\r\n${info}\r\n`);
          else if (command === "CONFIG") socket.write("-ERR unknown command 'CONFIG'\r\n");
          else socket.write("+OK\r\n");
        }
      },
    },
  });
  closing.push(async () => server.stop(true));
  return `redis://127.0.0.1:${server.port}`;
}

/** What a process says on its standard output until it is told to end. */
async function outputOf(env: Record<string, string>, lines: number): Promise<string[]> {
  const child = Bun.spawn([process.execPath, "run", join(import.meta.dir, "..", "index.ts")], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, PORT: "0", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
  });
  let said = "";
  for await (const chunk of child.stdout) {
    said += new TextDecoder().decode(chunk);
    if (said.split("\n").length > lines) child.kill("SIGTERM");
  }
  expect(await child.exited).toBe(0);
  return said.trimEnd().split("\n");
}

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`what Redis guarantees${why}`, () => {
  test.each([
    [{ appendonly: "no" }, "memory", ["appendonly yes"]],
    [{ appendonly: "yes", appendfsync: "everysec" }, "second", ["appendfsync always"]],
    [{ appendonly: "yes", appendfsync: "no" }, "memory", ["appendfsync always"]],
    [ALWAYS, "fsync", []],
    [{ ...ALWAYS, "maxmemory-policy": "allkeys-lru" }, "fsync", []],
    [{ ...ALWAYS, maxmemory: "100mb" }, "fsync", []],
    [{ ...ALWAYS, maxmemory: "100mb", "maxmemory-policy": "allkeys-lru" }, "memory", ["maxmemory-policy noeviction"]],
    [{ ...ALWAYS, maxmemory: "100mb", "maxmemory-policy": "volatile-ttl" }, "fsync", ["idempotency keys"]],
  ] as const)("with %j is %s, and there is advice on %j", async (settings, durability, advice) => {
    const url = await openService((await openRedis(settings)).url);
    const { body } = await ask(`${url}/ready`);
    expect(body).toMatchObject({ status: "ready", store: "redis", durability });
    expect(body.version).toMatch(/^(Redis|Valkey) \d+\.\d+/);
    expect(body.advice).toHaveLength(advice.length);
    for (const [n, words] of advice.entries()) expect(body.advice[n]).toContain(words);
  });

  test("is read again each time", async () => {
    const server = await openRedis(ALWAYS);
    const url = await openService(server.url);
    expect((await ask(`${url}/ready`)).body.durability).toBe("fsync");
    await server.ask("CONFIG", "SET", "appendfsync", "everysec");
    expect((await ask(`${url}/ready`)).body.durability).toBe("second");
  });

  test("is read once for concurrent requests", async () => {
    const server = await openRedis();
    const url = await openService(server.url);
    const looks = async (): Promise<number> =>
      Number(/cmdstat_config\|get:calls=(\d+)/.exec(await server.ask("INFO", "commandstats"))![1]);
    const before = await looks();
    await ask(`${url}/ready`);
    const aLook = (await looks()) - before;
    // Redis takes its time for the first of them, until the others have come as well.
    server.pause();
    const asked = Array.from({ length: 200 }, () => ask(`${url}/ready`));
    await ask(`${url}/health`).finally(() => server.resume());
    await Promise.all(asked);
    expect((await looks()) - before - aLook).toBeLessThan(100 * aLook);
  });

  test("is unknown if its settings may not be read, and advice says so", async () => {
    const server = await openRedis(ALWAYS);
    await server.ask("ACL", "SETUSER", "pere", "on", ">secret", "~*", "&*", "+@all", "-config");
    const url = await openService(`redis://pere:secret@127.0.0.1:${server.port}`);
    const { body } = await ask(`${url}/ready`);
    expect(body.durability).toBe("memory");
    expect(body.advice).toEqual([expect.stringContaining("config|get")]);
    await server.ask("ACL", "SETUSER", "pere", "+config|get");
    expect((await ask(`${url}/ready`)).body).toMatchObject({ durability: "fsync", advice: [] });
  });

  test("is weaker than possible if there is a replica that is not waited for", async () => {
    const [server, replica] = [await openRedis(ALWAYS), await openRedis()];
    const url = await openService(server.url);
    await replica.ask("REPLICAOF", "127.0.0.1", String(server.port));
    await until(async () => (await server.ask("INFO", "replication")).includes("connected_slaves:1"), "the replica");
    expect((await ask(`${url}/ready`)).body.advice).toEqual([expect.stringContaining("PERE_REDIS_REPLICAS=1")]);
  });

  test("is printed after the address, with a line for each advice", async () => {
    const server = await openRedis({ appendonly: "yes", appendfsync: "everysec" });
    const said = await outputOf({ REDIS_URL: server.url }, 3);
    expect(said[0]).toMatch(/^PERE listening on http:\S+$/);
    expect(said[1]).toMatch(/^PERE keeps its logs in (Redis|Valkey) \d\S+, durability: second$/);
    expect(said[2]).toStartWith("Set appendfsync always: ");
    expect(said).toHaveLength(3);
  });
});

test("SQLite's guarantee is printed too; in memory there is advice", async () => {
  const said = await outputOf({ PERE_DB: ":memory:" }, 3);
  expect(said[1]).toMatch(/^PERE keeps its logs in SQLite \d\S+, durability: memory$/);
  expect(said[2]).toStartWith("Set PERE_DB to a file");
});

test("a Redis that is too old stops the start with one line", async () => {
  for (const version of ["5.0.14", "6.0.16"]) {
    const url = pretend(`redis_version:${version}`, "redis_mode:standalone", "connected_slaves:0");
    const said = await spawn({ REDIS_URL: url }).catch((error: Error) => error.message);
    expect(said).toBe(`PERE can't start: Redis ${version} is too old: PERE needs Redis 6.2 or newer, or Valkey`);
  }
});

test("a Valkey is called by its name", async () => {
  const told = ["redis_version:7.2.4", "server_name:valkey", "valkey_version:8.1.0", "connected_slaves:0"];
  const store = await RedisStore.open({ urls: [pretend(...told)] });
  closing.push(() => store.close());
  expect(await store.ready()).toMatchObject({ version: "Valkey 8.1.0", durability: "memory" });
});

describe.skipIf(noRedis !== null)(`a Redis that refuses writes${why}`, () => {
  test("because it is full makes the service not ready, until there is memory again", async () => {
    const server = await openRedis({ "maxmemory-policy": "noeviction" });
    const url = await openService(server.url);
    expect((await ask(`${url}/push/orders`, { body: "1" })).status).toBe(201);
    await server.ask("CONFIG", "SET", "maxmemory", "1");
    expect((await ask(`${url}/push/orders`, { body: "2" })).status).toBe(503);
    const ready = await ask(`${url}/ready`);
    expect([ready.status, ready.body.detail]).toEqual([503, expect.stringContaining("OOM")]);
    // What it has can be read, and a service that starts there is there.
    expect((await ask(`${url}/events/orders`)).body.events).toHaveLength(1);
    const second = await openService(server.url);
    expect((await ask(`${second}/ready`)).status).toBe(503);
    await server.ask("CONFIG", "SET", "maxmemory", "0");
    await until(async () => (await ask(`${url}/ready`)).status === 200, "a service that is ready");
  });
});
