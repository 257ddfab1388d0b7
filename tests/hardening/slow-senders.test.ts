/**
 * Bodies and heads that come slowly: taken while they keep up, refused when their time is up.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { connect as dial } from "node:net";
import { type Answer, ask, start, until } from "../support/harness.ts";
import { CHUNKED, JSON_TYPE, LINES, pere, putUnderAttack, unharmed } from "./attack.ts";

putUnderAttack();

/** 400 kB at 11 kB/s, which takes longer than Bun allows a request by itself. */
async function slowButSteady(): Promise<Answer> {
  const { hostname, port } = new URL(pere.url);
  const socket = dial(Number(port), hostname);
  let said = "";
  socket.on("data", (bytes) => (said += bytes.toString()));
  const line = `1${" ".repeat(9_998)}\n`;
  socket.write(
    `POST /push/steady HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${LINES}\r\nContent-Length: 400000\r\n\r\n`,
  );
  for (let n = 0; n < 40 && !socket.closed; n++) {
    socket.write(line);
    await Bun.sleep(890);
  }
  await until(() => socket.closed || said.includes("\r\n\r\n"), "an answer");
  socket.destroy();
  return { status: Number(said.slice(9, 12)), headers: new Headers(), text: said, body: null };
}

/** A head that comes a byte a second: whether the service had enough of it at some time. */
async function dripHead(): Promise<boolean> {
  const { hostname, port } = new URL(pere.url);
  const socket = dial(Number(port), hostname);
  const { promise, resolve } = Promise.withResolvers<boolean>();
  socket.on("error", () => {});
  socket.on("close", () => resolve(true));
  socket.write("GET /health HTTP/1.1\r\nHost: localhost\r\nX: ");
  const timer = setInterval(() => socket.write("a"), 1_000);
  const isCut = await Promise.race([promise, Bun.sleep(50_000).then(() => false)]);
  clearInterval(timer);
  socket.destroy();
  return isCut;
}

/** What takes half a minute runs beside everything else, and is looked at in the end. */
let steady: Promise<Answer>;

let drippedHead: Promise<boolean>;

describe("a body that arrives slowly", () => {
  beforeAll(() => {
    steady = slowButSteady();
    drippedHead = dripHead();
  });

  /** Drips a body a part at a time until there is an answer. */
  async function drip(url: string, head: string, part: string, count: number, everyMs: number) {
    const { hostname, port } = new URL(url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.on("error", () => {});
    socket.write(head);
    for (let n = 0; n < count && !said.includes("\r\n\r\n"); n++) {
      socket.write(part);
      await Bun.sleep(everyMs);
    }
    await until(
      () => said.includes("}"),
      () => `an answer: ${said}`,
    );
    const status = Number(said.slice(9, 12));
    if (status === 408) await until(() => socket.closed, "the end of the connection");
    socket.destroy();
    return { status, said };
  }

  test("is refused with 408 when its time is up, and the connection is closed", async () => {
    const hasty = await start({ bodyMs: 150 });
    for (const [way, type] of [
      ["POST /push/c", JSON_TYPE],
      ["POST /push/c", LINES],
      ["POST /feedback/c", JSON_TYPE],
      ["PUT /hooks/c/one", JSON_TYPE],
    ] as const)
      for (const [length, part] of [
        ["Content-Length: 60\r\n", " "],
        [CHUNKED, "1\r\n \r\n"],
        [CHUNKED, "a"],
        ["Content-Length: 9\r\n", ""],
      ] as const) {
        const head = `${way} HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${type}\r\n${length}\r\n${part === "a" ? "1;" : ""}`;
        const { status, said } = await drip(hasty.url, head, part, 50, 20);
        expect(status, head).toBe(408);
        expect(said).toContain("urn:pere:slow");
      }
    expect((await ask(`${hasty.url}/events/c`)).body.events ?? []).toEqual([]);
    await hasty.stop();
  });

  test("is accepted if it keeps up with 10 kB/s", async () => {
    const hasty = await start({ bodyMs: 8_000 });
    const part = `${"1".padEnd(9_999)}\n`;
    const head = (length: string) =>
      `POST /push/c HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${LINES}\r\n${length}\r\n`;
    // 10 s: longer than it is given at first, and so far ahead of what it must be that no busy machine makes it too slow.
    const whole = drip(hasty.url, head("Content-Length: 200000\r\n"), part, 20, 500);
    const chunked = drip(hasty.url, head(CHUNKED), `2710\r\n${part}\r\n`, 20, 500).catch(() => null);
    expect((await whole).status).toBe(201);
    // It has not said that it has ended, and in the end its time is up.
    expect((await chunked)!.status).toBe(408);
    await hasty.stop();
  });

  test("is accepted for longer than Bun's own limit", async () => {
    expect((await steady).text).toStartWith("HTTP/1.1 201");
  }, 60_000);

  test("is cut off by Bun if its head is slow", async () => {
    expect(await drippedHead).toBeTrue();
  }, 60_000);

  test("leaves nothing behind", unharmed, 20_000);
});
