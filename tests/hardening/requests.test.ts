/**
 * Requests by the byte that no client library would send: each is answered or closed, and stores nothing it should not.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { connect as dial, type Socket } from "node:net";
import { ask, push, until } from "../support/harness.ts";
import { say } from "../support/raw.ts";
import { CHUNKED, heap, JSON_TYPE, LINES, MEBIBYTE, pere, putUnderAttack, unharmed } from "./attack.ts";

putUnderAttack();

/** A push by the byte: headers of one's own, and what stands behind the head. */
const pushing = (channel: string, headers: string, behind: string, version = "HTTP/1.1"): string =>
  `POST /push/${channel} ${version}\r\nHost: localhost\r\nContent-Type: ${JSON_TYPE}\r\n${headers}\r\n${behind}`;

/** A second request, which nobody may answer when it is inside a first one that is ambiguous. */
const HIDDEN = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

describe("requests that no real client sends", () => {
  const stored = async (channel: string): Promise<number> =>
    (await ask(`${pere.url}/events/${channel}`)).body.events?.length ?? 0;

  test.each([
    ["a length and chunks", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["chunks and a length", `${CHUNKED}Content-Length: 6\r\n`, `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n", `1${HIDDEN}`],
    ["two lengths in a line", "Content-Length: 1, 2\r\n", `1${HIDDEN}`],
    ["the same length twice in a line", "Content-Length: 1, 1\r\n", `1${HIDDEN}`],
    ["a length with a sign", "Content-Length: +1\r\n", `1${HIDDEN}`],
    ["a length below nothing", "Content-Length: -1\r\n", `1${HIDDEN}`],
    ["a length in hexadecimal", "Content-Length: 0x1\r\n", `1${HIDDEN}`],
    ["a length with a space in it", "Content-Length: 1 1\r\n", `1${HIDDEN}`],
    ["a length of 20 digits", "Content-Length: 99999999999999999999\r\n", `1${HIDDEN}`],
    ["chunks twice", CHUNKED + CHUNKED, `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["chunks twice in a line", "Transfer-Encoding: chunked, chunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["no encoding by name", "Transfer-Encoding: identity\r\n", `1${HIDDEN}`],
    ["an encoding before chunks", "Transfer-Encoding: gzip, chunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["almost chunks", "Transfer-Encoding: xchunked\r\n", `1\r\n1\r\n0\r\n\r\n${HIDDEN}`],
    ["chunks behind a tabulator of another kind", "Transfer-Encoding: \x0bchunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["a space before the colon", "Content-Length : 1\r\n", `1${HIDDEN}`],
    ["chunks with a space before the colon", "Transfer-Encoding : chunked\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a folded header", "X-Any: a\r\n b\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["folded chunks", "Transfer-Encoding:\r\n chunked\r\n", `0\r\n\r\n${HIDDEN}`],
    ["a bare LF between headers", "X-Any: a\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a bare CR between headers", "X-Any: a\rContent-Length: 5\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a NUL in a header", "X-Any: a\0b\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a header with no name", ": a\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a header with no colon", "any\r\nContent-Length: 1\r\n", `1${HIDDEN}`],
    ["a chunk's size that is no number", CHUNKED, "z\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size that is too small", CHUNKED, "1\r\n12\r\n0\r\n\r\n"],
    ["a chunk's size that is too large", CHUNKED, "5\r\n12\r\n0\r\n\r\n1"],
    ["a chunk's size below nothing", CHUNKED, "-1\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size of 17 digits", CHUNKED, "FFFFFFFFFFFFFFFFF\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size with 0x", CHUNKED, "0x1\r\n1\r\n0\r\n\r\n"],
    ["a chunk's size with a space behind it", CHUNKED, "1 \r\n1\r\n0\r\n\r\n"],
    ["chunks that end in LF", CHUNKED, "1\n1\n0\n\n"],
  ])(
    "%s: 400, the connection is closed, nothing is stored, nothing after it is answered",
    async (what, headers, behind) => {
      const channel = `smuggled-${what.replaceAll(/\W/g, "-")}`;
      const heard = await say(pere.url, pushing(channel, headers, behind));
      expect([heard.status, heard.answers, heard.closed]).toEqual([400, 1, true]);
      expect(await stored(channel)).toBe(0);
    },
  );

  test.each([
    ["a bare LF behind every line", "POST /push/odd HTTP/1.1\nHost: localhost\nContent-Length: 1\n\n1", 505],
    ["HTTP/0.9", "GET /health\r\n\r\n", 505],
    ["HTTP/1.2", "GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n", 505],
    ["HTTP/2 without agreement", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400],
    ["a TLS handshake", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400],
    ["no Host", "GET /health HTTP/1.1\r\n\r\n", 400],
    ["a target without a slash", "GET health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["a NUL in the target", "GET /events/a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n", 505],
    ["a space in the target", "GET /events/a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 505],
    ["a target of 20,000 bytes", `GET /events/${"a".repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 431],
    ["a header of 20,000 bytes", `GET /health HTTP/1.1\r\nHost: localhost\r\nX: ${"a".repeat(20_000)}\r\n\r\n`, 431],
    ["250 headers", `GET /health HTTP/1.1\r\nHost: localhost\r\n${"a: b\r\n".repeat(250)}\r\n`, 431],
    ["a method that there is not", "BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 0],
    ["a method in small letters", "get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 0],
  ])("%s: refused by Bun, and the connection is closed", async (_what, bytes, status) => {
    const heard = await say(pere.url, bytes);
    expect([heard.status, heard.closed]).toEqual([status, true]);
  });

  test.each([
    ["the same length twice", pushing("fine", "Content-Length: 1\r\nContent-Length: 1\r\n", "1"), 201],
    ["a chunk with an extension", pushing("fine", CHUNKED, "1;a=b\r\n1\r\n0\r\n\r\n"), 201],
    ["an expectation of its own", pushing("fine", "Content-Length: 1\r\nExpect: wonders\r\n", "1"), 201],
    ["HTTP/1.0", pushing("fine", "Content-Length: 1\r\n", "1", "HTTP/1.0"), 201],
    ["an absolute target", "GET http://elsewhere/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200],
    ["CONNECT", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n", 403],
    ["TRACE", "TRACE /health HTTP/1.1\r\nHost: localhost\r\nX-Any: told\r\n\r\n", 405],
    ["a body where none is taken", "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 200],
    [
      "an upgrade to HTTP/2",
      "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
      200,
    ],
    ["%00", "GET /events/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["%0d%0a", "GET /events/a%0d%0aX-Any:b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["%2f", "GET /events/a%2fb HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["an encoding of an encoding", "GET /events/%252e%252e%252f HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["UTF-8 that is too long", "GET /events/%c0%ae%c0%ae HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["bytes beyond ASCII", "GET /events/\xc3\xa9\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["a target of 15,000 bytes", `GET /events/${"a".repeat(15_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, 400],
  ])("%s: answered as what it is", async (_what, bytes, status) => {
    const heard = await say(pere.url, bytes);
    expect([heard.status, heard.answers]).toEqual([status, 1]);
    expect(heard.text).not.toContain("told");
  });

  test("paths out of the pages' folder lead nowhere", async () => {
    for (const way of [
      "/../",
      "/..%2f",
      "/%2e%2e/",
      "/%2e%2e%2f",
      "/..\\",
      "/..%5c",
      "/%252e%252e%252f",
      "//../",
      "/./../",
      "/%c0%ae%c0%ae/",
    ])
      for (const file of ["package.json", "index.ts", "engine/model.ts", "../../../../../../etc/passwd"]) {
        const { text, status } = await say(
          pere.url,
          `GET ${way}${file} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
        );
        expect(status, way + file).toBeWithin(400, 500);
        expect(text, way + file).not.toMatch(/root:|"devDependencies"|import /);
      }
  });

  test("Expect: 100-continue is answered, and so is the request", async () => {
    const { hostname, port } = new URL(pere.url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.write(pushing("going-on", "Content-Length: 1\r\nExpect: 100-continue\r\n", ""));
    await until(() => said.startsWith("HTTP/1.1 100 Continue\r\n\r\n"));
    socket.write("1");
    await until(() => said.includes("HTTP/1.1 201"));
    socket.destroy();
  });

  test("pipelined requests are answered in order, or the connection is closed", async () => {
    const each = pushing("row", "Content-Length: 1\r\n", "1");
    const heard = await say(pere.url, [each.repeat(20)]);
    const seqs = [...heard.text.matchAll(/"seq":(\d+)/g)].map(([, seq]) => Number(seq));
    expect(seqs).toEqual(seqs.map((_, n) => n + 1));
    expect(heard.answers === 20 || heard.closed).toBeTrue();
    expect(heard.answers).toBe(seqs.length);
  });

  test("Bun answers trailers with 400, whatever happened to the body", async () => {
    for (const trailer of ["X-Any: y", `X-Any: ${"y".repeat(100_000)}`]) {
      const heard = await say(pere.url, pushing("trailing", CHUNKED, `1\r\n1\r\n0\r\n${trailer}\r\n\r\n`));
      expect([heard.status, heard.closed]).toEqual([400, true]);
    }
  });

  test("a chunk extension without end is cut off", async () => {
    const heard = await say(pere.url, [pushing("extended", CHUNKED, "1;"), "a".repeat(MEBIBYTE)]);
    expect([heard.status, heard.closed]).toEqual([413, true]);
    expect(await stored("extended")).toBe(0);
  });

  test("a body in one-byte chunks costs only its size", async () => {
    const { hostname, port } = new URL(pere.url);
    const socket = dial(Number(port), hostname);
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString()));
    socket.write(pushing("crumbs", CHUNKED, "").replace(JSON_TYPE, LINES));
    const before = await heap();
    await new Promise((resolve) => socket.write("1\r\n \r\n".repeat(200_000), resolve));
    await ask(`${pere.url}/health`);
    // As a list of chunks they took 14 MB and more.
    expect((await heap()) - before).toBeLessThan(4 * MEBIBYTE);
    socket.write("1\r\n1\r\n0\r\n\r\n");
    await until(() => said.includes("HTTP/1.1 201"));
    socket.destroy();
  });

  test("a body without end is refused when it is too large, and the rest is not stored", async () => {
    for (const headers of ["Content-Length: 200000000\r\n", CHUNKED]) {
      const before = await heap();
      const part = headers === CHUNKED ? `10000\r\n${"1".repeat(65_536)}\r\n` : "1".repeat(65_536);
      const heard = await say(pere.url, [pushing("endless", headers, ""), ...Array.from({ length: 300 }, () => part)]);
      expect(heard.status).toBe(413);
      expect((await heap()) - before).toBeLessThan(2 * MEBIBYTE);
    }
    expect(await stored("endless")).toBe(0);
  });

  test("a truncated body stores nothing", async () => {
    for (const headers of ["Content-Length: 5\r\n", CHUNKED])
      for (const behind of ["", headers === CHUNKED ? "1\r\n1\r\n" : "1"]) {
        const heard = await say(pere.url, pushing("half", headers, behind), { end: true });
        expect([0, 400]).toContain(heard.status);
        expect(heard.closed).toBeTrue();
      }
    expect(await stored("half")).toBe(0);
  });

  test("a client that half-closes after a complete request is answered or disconnected", async () => {
    const heard = await say(pere.url, pushing("half-closed", "Content-Length: 1\r\n", "1"), { end: true });
    expect(heard.closed).toBeTrue();
    expect([0, 201]).toContain(heard.status);
    const feed = await say(pere.url, "GET /feed/half-closed HTTP/1.1\r\nHost: localhost\r\n\r\n", { end: true });
    expect(feed.closed).toBeTrue();
  });

  test("10,000 silent connections keep no one out", async () => {
    const limit = /Max open files\s+(\d+)/.exec(readFileSync("/proc/self/limits", "utf8"));
    const count = Math.min(10_000, Number(limit?.[1] ?? 1_024) - 1_000);
    const { hostname, port } = new URL(pere.url);
    const sockets: Socket[] = [];
    while (sockets.length < count)
      await Promise.all(
        Array.from({ length: Math.min(500, count - sockets.length) }, () => {
          const socket = dial(Number(port), hostname);
          sockets.push(socket);
          return new Promise((resolve, reject) => socket.on("connect", resolve).on("error", reject));
        }),
      );
    await push(pere.url, "crowd", 1);
    for (const socket of sockets)
      socket
        .removeAllListeners("error")
        .on("error", () => {})
        .destroy();
  });

  test("leave nothing behind", unharmed, 20_000);
});
