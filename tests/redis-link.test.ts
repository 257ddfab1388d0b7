/**
 * One connection to Redis and its end: what is said when nothing was sent, how closing does not wait for the dead, and how a master that became a
 * replica is left.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { PereError } from "../engine/model.ts";
import { RedisLink } from "../engine/redis/connection.ts";
import { until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { AT_ONCE_MS, ownMs } from "./support/own-time.ts";

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

const openRedis = async (): Promise<RedisServer> => {
  const server = await startRedis();
  closing.push(() => server.end());
  return server;
};
const openLink = async (...urls: string[]): Promise<RedisLink> => {
  const link = new RedisLink(urls);
  closing.push(() => link.close());
  await link.start();
  return link;
};
const errorOf = (call: Promise<unknown>): Promise<PereError> =>
  call.then(
    () => {
      throw new Error("it was accepted");
    },
    (error: unknown) => error as PereError,
  );

/** An address that can lead elsewhere: connections that are there stay where they are. */
function openAddress(port: number): { readonly url: string; leadTo(port: number): void } {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on("data", (bytes) => to.write(bytes));
      from.on("close", () => to.destroy());
      from.on("error", () => {});
    }
  });
  server.listen(0, "127.0.0.1");
  closing.push(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`,
    leadTo: (other) => void (port = other),
  };
}

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`a connection to Redis${why}`, () => {
  test("that is gone refuses calls at once, and says that nothing was stored", async () => {
    const server = await openRedis();
    const link = await openLink(server.url);
    const sent = errorOf(link.send("BLPOP", "nothing", "0"));
    await until(async () => (await server.ask("INFO", "clients")).includes("blocked_clients:1"), "the call");
    await server.end();
    expect((await sent).message).toContain("unknown whether this was stored");
    const refused = await errorOf(link.send("SET", "key", "value"));
    expect(refused.code).toBe("away");
    expect(refused.message).toContain("nothing was stored");
    expect(refused.message).not.toContain("unknown whether");
    await server.restart();
    await until(() => link.send("SET", "key", "value").catch(() => null), "the connection");
  });

  test("closes at once if Redis dies meanwhile, else after its calls", async () => {
    const server = await openRedis();
    const link = await openLink(server.url);
    const slow = link.send("BLPOP", "list", "0");
    const closed = link.close();
    await server.ask("RPUSH", "list", "item");
    expect(await slow).toEqual(["list", "item"]);
    await closed;

    const other = await openLink(server.url);
    const lost = errorOf(other.send("BLPOP", "list", "0"));
    await until(async () => (await server.ask("INFO", "clients")).includes("blocked_clients:1"), "the call");
    const end = other.close();
    const from = ownMs();
    await server.end();
    await end;
    expect((await lost).code).toBe("away");
    expect(ownMs() - from).toBeLessThan(AT_ONCE_MS);
  });

  test("whose server became a replica is replaced by a new one to the same address", async () => {
    const [first, second] = [await openRedis(), await openRedis()];
    const address = openAddress(first.port);
    const link = await openLink(address.url);
    expect(await link.send("SET", "key", "1")).toBe("OK");
    await first.ask("REPLICAOF", "127.0.0.1", String(second.port));
    address.leadTo(second.port);
    await until(() => link.send("SET", "key", "2").catch(() => null), "the new master");
    expect(await second.ask("GET", "key")).toContain("2");
  });

  test("with several addresses changes to the next if one dies", async () => {
    const [first, second] = [await openRedis(), await openRedis()];
    const link = await openLink(first.url, second.url);
    const here = link.url === first.url ? first : second;
    await here.end();
    await until(() => link.send("PING").catch(() => null), "the other one");
    expect(link.url).not.toBe(here.url);
  });
});

/** A server that takes every connection, and every script for wrong. */
function pretend(error: string): string {
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      data(socket, bytes) {
        for (const [, command] of bytes.toString().matchAll(/\*\d+\r\n\$\d+\r\n([A-Z]+)\r\n/g))
          socket.write(command === "HELLO" ? "%0\r\n" : command === "EVALSHA" ? `-${error}\r\n` : "+OK\r\n");
      },
    },
  });
  closing.push(async () => server.stop(true));
  return `redis://127.0.0.1:${server.port}`;
}

// What Redis 6.2 says where 7 gives the command's own error.
test.each([
  ["-OOM command not allowed when used memory > 'maxmemory'.", "away"],
  ["-READONLY You can't write against a read only replica.", "away"],
  ["attempt to index a nil value", "inside"],
])("an error within a script, as reported by Redis before 7: %s is %s", async (said, code) => {
  const link = await openLink(
    pretend(`ERR Error running script (call to f_${"0f".repeat(20)}): @user_script:12: @user_script: 12: ${said}`),
  );
  const error = await errorOf(link.run({ text: "", sha: "0f".repeat(20) }, [], []));
  expect(error.code).toBe(code as PereError["code"]);
});
