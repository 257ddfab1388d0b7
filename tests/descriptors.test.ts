/**
 * A process that may have few files and connections open: feeds are refused before there are none left, and whoever comes for something else is
 * still answered.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { closeSync, openSync, readFileSync } from "node:fs";
import { connect as connectTo, type Socket } from "node:net";
import { join } from "node:path";
import { Descriptors, isOutOfDescriptors } from "../engine/descriptors.ts";
import { checkHookUrl } from "../engine/hooks/call.ts";
import {
  ask,
  connect,
  logOf,
  openStream,
  type Process,
  spawn as spawnProcess,
  temporary,
  until,
} from "./support/harness.ts";
import { NO_HOST } from "./support/ports.ts";

const LIMIT = 64;
const started: Process[] = [];
const connections: Socket[] = [];
afterEach(async () => {
  for (const socket of connections.splice(0)) socket.destroy();
  for (const { child } of started.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** A service with few descriptors. */
async function spawn(): Promise<Process> {
  const limited = ["/bin/sh", "-c", `ulimit -n ${LIMIT}; exec "$@"`, "sh"];
  const service = await spawnProcess(
    { PERE_DB: join(temporary(), "pere.db"), PERE_HOOKS_ALLOW: "127.0.0.0/8" },
    limited,
  );
  started.push(service);
  return service;
}

/** Somebody who opens a feed on a connection of his own, and reads what comes. */
function follow(url: string, device: string): { text: string; isClosed: boolean } {
  const { hostname, port, host } = new URL(url);
  const reader = { text: "", isClosed: false };
  const socket = connectTo(Number(port), hostname, () =>
    socket.write(`GET /feed/orders?device=${device} HTTP/1.1\r\nHost: ${host}\r\nAccept: text/event-stream\r\n\r\n`),
  );
  socket.on("data", (chunk) => (reader.text += String(chunk)));
  for (const end of ["close", "error"]) socket.on(end, () => (reader.isClosed = true));
  connections.push(socket);
  return reader;
}

/** Feeds until one is refused; gives those that are open. */
async function fill(url: string): Promise<number> {
  for (let count = 0; ; count++) {
    expect(count).toBeLessThan(LIMIT);
    const reader = follow(url, `device-${count}`);
    await until(() => /pere\.(ready|bye)/.test(reader.text), "a feed that is ready or refused");
    if (reader.text.includes("pere.bye")) return count;
  }
}

describe("in a process that may open few files and connections", () => {
  test("feeds are told to reconnect later on all transports, and their connections are closed; everything else is answered", async () => {
    const service = await spawn();
    const { url } = service;
    const log = logOf(service);
    const open = await fill(url);
    expect(open).toBeGreaterThan(8);

    const refused = follow(url, "one-more");
    await until(() => refused.isClosed, "a connection that is closed");
    expect(refused.text).toStartWith("HTTP/1.1 200 ");
    expect(refused.text).toMatch(/retry: \d{4,}\nevent: pere\.bye\ndata: \{"reason":"busy"\}/);
    const { closed } = await connect(`${url}/feed/orders?device=socket`);
    expect((await closed).code).toBe(1013);
    const poll = await ask(`${url}/feed/orders?device=poll`, { headers: { Accept: "application/json" } });
    expect([poll.status, poll.headers.get("retry-after")]).toEqual([503, "2"]);
    const watching = await openStream(`${url}/watch`);
    expect(await watching.own("bye")).toEqual({ reason: "busy" });

    for (const path of ["/health", "/ready", "/swagger", "/swagger/json", "/icon.svg", "/"])
      expect([path, (await ask(url + path)).status]).toEqual([path, 200]);
    expect((await ask(`${url}/push/orders`, { body: "1" })).status).toBe(201);

    // Whoever leaves makes room.
    for (const socket of connections.slice(0, 8)) socket.destroy();
    await until(async () => {
      const reader = follow(url, "again");
      await until(() => /pere\.(ready|bye)/.test(reader.text), "a feed that is ready or refused");
      return reader.text.includes("pere.ready");
    }, "a feed that is ready");
    const told = (): string[] => log.lines.filter((line) => line.includes(`nearly all ${LIMIT} file descriptors`));
    await until(() => told().length > 0, "a line in the log");
    expect(told()).toHaveLength(1);
  });

  test("after a hundred feeds at once it is idle and healthy", async () => {
    const service = await spawn();
    const readers = Array.from({ length: 100 }, (_, n) => follow(service.url, `device-${n}`));
    await until(
      () => readers.every(({ text }) => /pere\.(ready|bye)/.test(text)),
      () => `${readers.filter(({ text }) => text === "").length} that were not answered`,
    );
    expect((await ask(`${service.url}/health`)).status).toBe(200);
    const ticks = (): number => {
      const fields = readFileSync(`/proc/${service.child.pid}/stat`, "utf8").split(") ")[1]!.split(" ");
      return Number(fields[11]) + Number(fields[12]);
    };
    // A second of work would be a hundred ticks.
    await until(async () => {
      const before = ticks();
      await Bun.sleep(1_000);
      return ticks() - before < 20;
    }, "a process that rests");
  });

  test("a hook's host that can't be resolved for lack of a descriptor is not an unknown host", async () => {
    const script = `
      const { descriptors } = await import(${JSON.stringify(join(import.meta.dir, "../engine/descriptors.ts"))});
      const { checkHookUrl } = await import(${JSON.stringify(join(import.meta.dir, "../engine/hooks/call.ts"))});
      const { openSync } = await import("node:fs");
      descriptors();
      try { for (;;) openSync("/dev/null", "r"); } catch {}
      await checkHookUrl(new URL("http://${NO_HOST}/"), []).catch(({ code }) => console.log(code));`;
    const child = Bun.spawn(["/bin/sh", "-c", `ulimit -n ${LIMIT}; exec "$@"`, "sh", process.execPath, "-e", script], {
      stdout: "pipe",
      stderr: "inherit",
    });
    expect((await new Response(child.stdout).text()).trim()).toBe("away");
    await child.exited;
    const unknown = checkHookUrl(new URL(`http://${NO_HOST}/`), [], { resolve: async () => [] });
    await expect(unknown).rejects.toMatchObject({ code: "refused" });
  });
});

test("the limit is the system's, and the reserve is computed from it", () => {
  const lowest = openSync("/dev/null", "r");
  closeSync(lowest);
  expect(new Descriptors(lowest + 17).short).toBeFalse();
  expect(new Descriptors(lowest + 16).short).toBeTrue();
  expect(new Descriptors(Number.POSITIVE_INFINITY).short).toBeFalse();
  expect(new Descriptors(100_000).feeds).toBeLessThanOrEqual(100_000 - 1_024);
  expect(new Descriptors().limit).toBeGreaterThan(16);
  expect(isOutOfDescriptors(Object.assign(new Error("x"), { code: "EMFILE" }))).toBeTrue();
  expect(isOutOfDescriptors(new Error("x", { cause: Object.assign(new Error("y"), { code: "ENFILE" }) }))).toBeTrue();
  expect(isOutOfDescriptors(new Error("x"))).toBeFalse();
});
