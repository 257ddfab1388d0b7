/**
 * What a body may be packed with and written in: nothing, and UTF-8. All else is 415 before any of it is read.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { gzipSync } from "node:zlib";
import { ask, start } from "./support/harness.ts";
import { say } from "./support/raw.ts";
import type { Service } from "../index.ts";

let pere: Service;
beforeAll(async () => {
  pere = await start();
});
afterAll(() => pere.stop());

/** Every route that takes a request with a body, its usual type, and a body. */
const ROUTES = [
  ["POST", "/push/orders", "application/json", "1", 201],
  ["POST", "/push/orders", "application/x-ndjson", "1\n2\n", 201],
  ["POST", "/feedback/orders", "application/json", "[]", 200],
  ["POST", "/feedback/orders", "application/x-www-form-urlencoded", "id=x-1&device=d&status=ok", 422],
  ["PUT", "/hooks/orders/h", "application/json", '{"url":"https://127.0.0.1/"}', 422],
] as const;
const BODILESS = [
  ["PUT", "/devices/orders/d", 201],
  ["POST", "/hooks/orders/none/retry", 404],
] as const;

const CODINGS = [
  "gzip",
  "br",
  "deflate",
  "zstd",
  "x-gzip",
  "GZIP",
  "compress",
  "identity, gzip",
  "aes128gcm",
  "made up",
];
const WRONG_CHARSETS = [
  "utf-16",
  "UTF-16LE",
  "iso-8859-1",
  "latin1",
  "us-ascii",
  '"utf-16"',
  "'utf-8'",
  "utf-8x",
  '""',
  "",
];
const RIGHT_CHARSETS = ["utf-8", "UTF-8", "Utf-8", '"utf-8"', '"UTF-8"', "utf8", '"\\utf-8"'];

describe.each(ROUTES)("%s %s with %s", (method, path, type, body, usual) => {
  test("accepts no content coding but identity, whatever the body is, and says so", async () => {
    for (const coding of CODINGS)
      for (const bytes of [body, gzipSync(body)]) {
        const headers = { "Content-Encoding": coding };
        const answer = await ask(pere.url + path, { method, type, body: bytes, headers });
        expect(`${coding} ${answer.status}`).toBe(`${coding} 415`);
        expect([answer.headers.get("accept-encoding"), answer.body.type]).toEqual(["identity", "urn:pere:wrongType"]);
        expect(answer.body.detail).toStartWith("Content-Encoding: ");
      }
    for (const coding of ["identity", "IDENTITY", "identity, identity"]) {
      const { status } = await ask(pere.url + path, { method, type, body, headers: { "Content-Encoding": coding } });
      expect(`${coding} ${status}`).toBe(`${coding} ${usual}`);
    }
  });

  test("accepts UTF-8 only, however that is written", async () => {
    for (const charset of WRONG_CHARSETS)
      for (const parameters of [
        `charset=${charset}`,
        `a="x;y"; CharSet=${charset}`,
        `charset=utf-8;charset=${charset}`,
      ]) {
        const answer = await ask(pere.url + path, { method, body, type: `${type}; ${parameters}` });
        expect(`${parameters} ${answer.status}`).toBe(`${parameters} 415`);
        expect([answer.headers.get("accept-encoding"), answer.body.type]).toEqual([null, "urn:pere:wrongType"]);
        expect(answer.body.detail).toContain("send UTF-8");
      }
    for (const charset of RIGHT_CHARSETS)
      for (const parameters of [`charset=${charset}`, `v="; charset=utf-16"; charset = ${charset}`, "v=1"]) {
        const { status } = await ask(pere.url + path, { method, body, type: `${type};${parameters}` });
        expect(`${parameters} ${status}`).toBe(`${parameters} ${usual}`);
      }
  });

  test("answers before it reads the body", async () => {
    for (const header of ["Content-Encoding: gzip", `Content-Type: ${type}; charset=utf-16`]) {
      const lines = header.startsWith("Content-Type") ? header : `Content-Type: ${type}\r\n${header}`;
      const head = `${method} ${path} HTTP/1.1\r\nHost: localhost\r\n${lines}\r\nContent-Length: 1000\r\n\r\n`;
      expect((await say(pere.url, head)).status).toBe(415);
    }
  });
});

test.each(BODILESS)("%s %s, which needs no body, refuses an encoded one too", async (method, path, usual) => {
  const packed = await ask(pere.url + path, { method, body: gzipSync("{}"), headers: { "Content-Encoding": "gzip" } });
  expect([packed.status, packed.headers.get("accept-encoding")]).toEqual([415, "identity"]);
  expect((await ask(pere.url + path, { method })).status).toBe(usual);
});
