/**
 * Feeds at rest cost little and can't hurt: who reads slowly falls behind instead of growing the service, and who leaves leaves
 * nothing behind. Memory is looked at from outside, in a process of its own.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { heapStats } from "bun:jsc";
import { readFileSync } from "node:fs";
import { connect as dial, type Socket } from "node:net";
import { ask, type Process, push, spawn, start, temporary, until } from "./support/harness.ts";

const FEEDS = 5_000;
const MEBIBYTE = 1024 * 1024;

let pere: Process;
beforeAll(async () => void (pere = await spawn({ PERE_DB: `${temporary()}/pere.db` })));
afterAll(() => pere.end("SIGTERM"));

/** Resident memory of the service in bytes (proc(5)), or null where the system does not tell. */
function resident(): number | null {
  try {
    return 1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pere.child.pid}/status`, "utf8"))![1]);
  } catch {
    return null;
  }
}

/** Opens feeds over raw sockets, and resolves when each is ready. */
async function open(url: string, count: number, path: (n: number) => string, paused = false): Promise<Socket[]> {
  const { hostname, port } = new URL(url);
  const sockets: Socket[] = [];
  for (let from = 0; from < count; from += 250) {
    await Promise.all(
      Array.from({ length: Math.min(250, count - from) }, (_, n) => {
        const { promise, resolve, reject } = Promise.withResolvers<void>();
        const socket = dial(Number(port), hostname);
        let said = "";
        socket.on("error", reject);
        socket.on("data", (bytes) => {
          if (said.includes("pere.ready")) return;
          if (!(said += bytes.toString()).includes("pere.ready")) return;
          if (paused) socket.pause();
          resolve();
        });
        socket.write(`GET ${path(from + n)} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
        sockets.push(socket);
        return promise;
      }),
    );
  }
  return sockets;
}

/** Half of them say goodbye (FIN), half vanish (RST). */
const drop = (sockets: readonly Socket[]): void =>
  sockets.forEach((socket, n) => void (n % 2 ? socket.destroy() : socket.resetAndDestroy()));

test(`${FEEDS} feeds that were opened and dropped leave no subscription and no object behind`, async () => {
  const here = await start();
  const round = async (): Promise<number> => {
    drop(await open(here.url, FEEDS, (n) => `/feed/c${n % 100},common?device=d${n}`));
    await until(() => here.engine.held.feeds === 0);
    expect(here.engine.held).toEqual({ feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 });
    Bun.gc(true);
    await Bun.sleep(0); // What is closed in this turn is let go of in the next.
    Bun.gc(true);
    return heapStats().heapSize;
  };
  await round();
  const before = await round();
  await round();
  await round();
  // 15,000 more feeds: two hundred bytes each would show as three megabytes, and as more after each further round. Clients are in this heap as well.
  let after = 0;
  await until(
    async () => (after = await round()) - before < 2 * MEBIBYTE,
    () => `a heap of about ${before} bytes; it has ${after}`,
  );
  await here.stop();
}, 60_000);

test(`${FEEDS} feeds that were opened and dropped leave no memory behind, seen from outside`, async () => {
  const connected = async (): Promise<number> =>
    (await ask(`${pere.url}/channels?after=b`)).body.channels[0]?.connected ?? 0;
  const round = async (): Promise<number | null> => {
    const sockets = await open(pere.url, FEEDS, (n) => `/feed/c?device=d${n}`);
    expect(await connected()).toBe(FEEDS);
    drop(sockets);
    await until(async () => (await connected()) === 0);
    return resident();
  };
  // Collection comes when it comes, so the least of some rounds is compared with the least of later ones.
  const least = async (rounds: number): Promise<number> => {
    let seen = Number.POSITIVE_INFINITY;
    for (let n = 0; n < rounds; n++) seen = Math.min(seen, (await round()) ?? 0);
    return seen;
  };
  await round();
  const before = await least(3);
  // 15,000 to 30,000 more feeds of some 8 kB each: what an open one holds would show as 120 MiB and more.
  expect((await least(3)) - before).toBeLessThan(60 * MEBIBYTE);
}, 120_000);

test("devices that stop reading cost a bounded buffer, delay no others, and continue from the log", async () => {
  const stuck = await open(pere.url, 50, (n) => `/feed/slow?device=s${n}`, true);
  const [well] = await open(pere.url, 1, () => "/feed/slow?device=well");
  let read = 0;
  well!.on("data", (bytes) => (read += bytes.length));
  const before = resident();
  const lines = Array.from({ length: 100 }, (_, n) => `"${n}${"x".repeat(20_000)}"`).join("\n");
  const rounds = 10;
  for (let n = 0; n < rounds; n++) await ask(`${pere.url}/push/slow`, { body: lines, type: "application/x-ndjson" });
  await until(() => read > rounds * 100 * 20_000);
  const after = resident();
  // 50 stuck readers × 20 MB were pushed at them: a gigabyte, were it kept.
  if (before !== null && after !== null) expect(after - before).toBeLessThan(400 * MEBIBYTE);

  // One of them reads again: everything comes, in order.
  const seen: number[] = [];
  let text = "";
  stuck[0]!.on("data", (bytes) => {
    text += bytes.toString("latin1");
    for (const match of text.matchAll(/\nid: [0-9a-z]+-(\d+)\n(?!event)/g)) seen.push(Number(match[1]));
    text = text.slice(Math.max(0, text.lastIndexOf("\nid: ")));
    if (/\nid: [0-9a-z]+-\d+\n(?!event)/.test(text)) text = "";
  });
  stuck[0]!.resume();
  await until(
    () => seen.at(-1) === rounds * 100,
    () => `the end; at ${seen.at(-1)}`,
  );
  expect(seen).toEqual(Array.from({ length: seen.length }, (_, n) => seen[0]! + n));
  drop([...stuck, well!]);
}, 60_000);

test("a WebSocket that stops reading costs a bounded buffer too", async () => {
  const { hostname, port } = new URL(pere.url);
  const before = resident();
  const sockets: Socket[] = [];
  for (let n = 0; n < 20; n++) {
    const socket = dial(Number(port), hostname);
    socket.write(
      `GET /feed/frames?device=w${n} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n`,
    );
    await new Promise<void>((resolve) =>
      socket.on("data", (bytes) => bytes.includes('"ready"') && (socket.pause(), resolve())),
    );
    sockets.push(socket);
  }
  const lines = Array.from({ length: 100 }, (_, n) => `"${n}${"x".repeat(20_000)}"`).join("\n");
  for (let n = 0; n < 10; n++) await ask(`${pere.url}/push/frames`, { body: lines, type: "application/x-ndjson" });
  const after = resident();
  if (before !== null && after !== null) expect(after - before).toBeLessThan(300 * MEBIBYTE);
  const last = await push(pere.url, "frames", "the last");

  // One of them reads again: it was only behind, and everything comes, in order.
  const seen: number[] = [];
  let bytes = Buffer.alloc(0);
  let said = "";
  sockets[0]!.removeAllListeners("data").on("data", (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    // Frames from a server are not masked: a byte, a length of one, three or nine bytes, the payload (RFC 6455, section 5.2).
    for (;;) {
      const short = (bytes[1] ?? 0) & 127;
      const head = short === 126 ? 4 : short === 127 ? 10 : 2;
      if (bytes.length < head) return;
      const length = short === 126 ? bytes.readUInt16BE(2) : short === 127 ? Number(bytes.readBigUInt64BE(2)) : short;
      if (bytes.length < head + length) return;
      if (bytes[0] === 0x81) {
        said = bytes.toString("utf8", head, head + length);
        seen.push((JSON.parse(said) as { seq: number }).seq);
      }
      bytes = bytes.subarray(head + length);
    }
  });
  sockets[0]!.resume();
  await until(
    () => said.includes(last),
    () => `the last event; at ${seen.at(-1)}`,
  );
  expect(seen).toEqual(Array.from({ length: 1_001 }, (_, n) => n + 1));
  drop(sockets);
}, 60_000);
