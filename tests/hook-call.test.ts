/**
 * One call of a webhook, against receivers that behave and that don't. They listen on loopback, which only the tests' own PERE_HOOKS_ALLOW lets
 * through.
 */
import { afterAll, describe, expect, test } from "bun:test";
import type { Socket } from "node:net";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { Webhook } from "standardwebhooks";
import { checkHookUrl, makeSecret, readSecret } from "../engine/hooks/call.ts";
import { temporary, until } from "./support/harness.ts";
import {
  type Behaviour,
  BODY,
  call,
  closeReceivers,
  listen,
  LOOPBACK,
  NONE,
  OK,
  type Outcome,
  outcome,
  receive,
  type Receiver,
  refusal,
  SECRET,
} from "./support/hook-receivers.ts";
import { lastingPort } from "./support/ports.ts";

afterAll(closeReceivers);

/** Signed by itself, for hook.example, from 2000 until 2125. */
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZSWdBuyJHhgAJdXR
NivzYuEBZm3bgTp1j+pa2UgVjuChRANCAAQZbjgh3t4lOYpWv5t9GBJQeNtrUD3e
dc6s3pDYFGoivQ+MpLWPDFUfZaIk8qmPkACoTkwAn8f56J6CPqNUPUQh
-----END PRIVATE KEY-----`;

const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBfjCCASOgAwIBAgIUBJRfI6HnM7YjtESnq8xx71Bu0AYwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMaG9vay5leGFtcGxlMCAXDTAwMDEwMTAwMDAwMFoYDzIxMjUx
MjMxMDAwMDAwWjAXMRUwEwYDVQQDDAxob29rLmV4YW1wbGUwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAAQZbjgh3t4lOYpWv5t9GBJQeNtrUD3edc6s3pDYFGoivQ+M
pLWPDFUfZaIk8qmPkACoTkwAn8f56J6CPqNUPUQho0swSTAPBgNVHRMBAf8EBTAD
AQH/MBcGA1UdEQQQMA6CDGhvb2suZXhhbXBsZTAdBgNVHQ4EFgQUBZAg1s8OOSB7
al68bCXSD6MquHUwCgYIKoZIzj0EAwIDSQAwRgIhAP87p/ajdj0nKuHU/HTPWsom
iTCyv+YNMTIOrX2CVC9AAiEAt+pw36SLCznBV0J+Jee+OookK92c3WJTY4mIjDGX
8eM=
-----END CERTIFICATE-----`;

describe("a call", () => {
  test("is a signed POST that the reference verifier accepts", async () => {
    const receiver = await receive(OK);
    const at = Date.now();
    const url = `http://hook.example:${receiver.port}/hook?for=me`;
    const answer = await outcome({ id: "msg_1", url, secret: SECRET, body: BODY, at }, LOOPBACK, {
      resolve: async () => ["127.0.0.1"],
    });
    expect(answer).toEqual({ status: 200, error: null });
    const [head = "", body = ""] = receiver.heard.split("\r\n\r\n");
    const [first, ...lines] = head.split("\r\n");
    expect(first).toBe("POST /hook?for=me HTTP/1.1");
    const headers = Object.fromEntries(
      lines.map((line) => [line.split(": ")[0]!.toLowerCase(), line.replace(/^.*?: /, "")]),
    );
    expect(headers).toMatchObject({
      host: `hook.example:${receiver.port}`,
      "content-type": "application/json",
      "content-length": String(Buffer.byteLength(BODY)),
      "user-agent": "PERE",
      "webhook-id": "msg_1",
      "webhook-timestamp": String(Math.floor(at / 1000)),
    });
    expect(new Webhook(SECRET).verify(body, headers)).toEqual(JSON.parse(BODY));
    expect(() => new Webhook(SECRET).verify(body.replace("receipt", "complete"), headers)).toThrow();
    expect(() => new Webhook(makeSecret()).verify(body, headers)).toThrow();
  });

  test.each([200, 204, 301, 307, 410, 429, 500, 503])("returns the status %d unchanged", async (status) => {
    const elsewhere = await receive(OK);
    const receiver = await receive(
      `HTTP/1.1 ${status} So\r\nLocation: http://127.0.0.1:${elsewhere.port}/\r\nContent-Length: 0\r\n\r\n`,
    );
    expect(await call(receiver)).toEqual({ status, error: null });
    expect(elsewhere.connections).toBe(0);
  });

  test("uses a connection once, and closes it although the receiver would keep it", async () => {
    const receiver = await receive(OK);
    for (const count of [1, 2, 3]) {
      expect((await call(receiver)).status).toBe(200);
      await until(() => receiver.ended === count, "the connection's end");
    }
    expect(receiver.connections).toBe(3);
  });

  test("tries the next address if one accepts no connection", async () => {
    const receiver = await receive(OK, "127.0.0.1", lastingPort());
    const addresses = ["127.0.0.2", "::1", "127.0.0.1"];
    expect(await call(receiver, { host: "hook.example", addresses })).toEqual({ status: 200, error: null });
  });

  test("uses no proxy from the environment", async () => {
    const [proxy, receiver] = [await receive(OK), await receive("HTTP/1.1 204 No Content\r\n\r\n")];
    const names = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    for (const name of names) process.env[name] = `http://127.0.0.1:${proxy.port}`;
    try {
      expect(await call(receiver, { host: "hook.example" })).toEqual({ status: 204, error: null });
    } finally {
      for (const name of names) delete process.env[name];
    }
    expect(proxy.connections).toBe(0);
  });

  test("with an unresolvable name, an invalid secret or an invalid URL, ends with a sentence", async () => {
    const good = { id: "1", url: "http://hook.example/", secret: SECRET, body: BODY, at: Date.now() };
    const none = { resolve: () => Promise.reject(new Error("getaddrinfo EAI_AGAIN 10.1.2.3")) };
    const somewhere = { resolve: async () => ["127.0.0.1"] };
    for (const [broken, options, error] of [
      [{}, none, "url: its host has no address"],
      [{}, { resolve: async () => [] }, "url: its host has no address"],
      [{ url: "ftp://hook.example/" }, somewhere, "url: must be a URL that begins with http:// or https://"],
      [{ secret: "whsec_?" }, somewhere, "the call failed"],
      [{ id: "a\r\nb: c" }, somewhere, "the call failed"],
    ] as const)
      expect(await outcome({ ...good, ...broken }, LOOPBACK, options)).toEqual({ status: null, error });
  });
});

/** Writes for as long as somebody reads. */
function flood(socket: Socket, text: string): void {
  const write = (): void => {
    while (!socket.destroyed && socket.write(text));
  };
  socket.on("drain", write);
  write();
}

/** Writes a byte now and then, until nobody is there. */
function drip(socket: Socket): void {
  const timer = setInterval(() => socket.write("a"), 20);
  socket.on("close", () => clearInterval(timer));
}

const HEAD = "HTTP/1.1 200 OK\r\n";

const LATE = "there was no answer within 1 seconds";

const CLOSED = "the connection closed before the answer";

describe("a receiver that", () => {
  test.each<[string, Behaviour, Outcome]>([
    ["hangs before the head", () => {}, { status: null, error: LATE }],
    ["hangs within the head", `${HEAD}X-Long: `, { status: null, error: LATE }],
    ["drips its head", (socket) => void socket.write(`${HEAD}X: `, () => drip(socket)), { status: null, error: LATE }],
    ["hangs after the head", `${HEAD}Content-Length: 9\r\n\r\n`, { status: 200, error: null }],
    [
      "drips its body",
      (socket) => void socket.write(`${HEAD}Content-Length: 999999\r\n\r\n`, () => drip(socket)),
      { status: 200, error: null },
    ],
  ])("%s keeps nobody beyond the limit", async (_name, behaviour, answer) => {
    const receiver = await receive(behaviour);
    const begun = performance.now();
    expect(await call(receiver, { timeoutMs: 1_000 })).toEqual(answer);
    // None of them would ever come to an end by itself.
    expect(performance.now() - begun).toBeGreaterThan(900);
    await until(() => receiver.ended === 1, "the connection's end");
  });

  test.each<[string, Behaviour, Outcome]>([
    ["closes at once", (socket) => void socket.end(), { status: null, error: CLOSED }],
    ["resets", (socket) => void socket.resetAndDestroy(), { status: null, error: CLOSED }],
    ["closes within the head", (socket) => void socket.end(HEAD), { status: null, error: CLOSED }],
    [
      "closes within the body",
      (socket) => void socket.end(`${HEAD}Content-Length: 9\r\n\r\nabc`),
      { status: 200, error: null },
    ],
    ["breaks its body's form", `${HEAD}Transfer-Encoding: chunked\r\n\r\nzz`, { status: 200, error: null }],
    ["speaks another language", "SSH-2.0-OpenSSH_9.9\r\n", { status: null, error: "the answer is not HTTP" }],
    [
      "never ends its head",
      (socket) => flood(socket, `${HEAD}X: ${"a".repeat(65_536)}`),
      { status: null, error: "the answer is not HTTP" },
    ],
    [
      "never ends its body",
      (socket) => flood(socket, `${HEAD}\r\n${"a".repeat(65_536)}`),
      { status: 200, error: null },
    ],
    [
      "announces without end",
      (socket) => flood(socket, "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)),
      { status: null, error: "the call failed" },
    ],
    ["announces once", `HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${OK}`, { status: 200, error: null }],
    [
      "wants another protocol",
      "HTTP/1.1 101 So\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
      { status: 101, error: null },
    ],
  ])("%s is left at once", async (_name, behaviour, answer) => {
    const receiver = await receive(behaviour);
    // Longer than the test may take: who waits for the limit fails it.
    expect(await call(receiver, { timeoutMs: 600_000 })).toEqual(answer);
    await until(() => receiver.ended === 1, "the connection's end");
  });

  test("accepts no connection is reported as refusing it", async () => {
    const receiver = await receive(OK, "127.0.0.2", lastingPort());
    const error = "the connection was refused";
    expect(await call(receiver)).toEqual({ status: null, error });
    expect(await call(receiver, { host: "hook.example", addresses: ["127.0.0.1", "::1"] })).toEqual({
      status: null,
      error,
    });
  });

  test("has a name whose resolver does not answer delays no one beyond the limit", async () => {
    const never = { timeoutMs: 50, resolve: () => new Promise<string[]>(() => {}) };
    const url = "http://hook.example/";
    expect(await outcome({ id: "1", url, secret: SECRET, body: BODY, at: Date.now() }, NONE, never)).toEqual({
      status: null,
      error: "there was no answer within 0.05 seconds",
    });
    await expect(checkHookUrl(new URL(url), NONE, never)).rejects.toThrow(
      "url: its host could not be resolved in time",
    );
  });
});

describe("TLS", () => {
  const listenTls = (): Promise<Receiver> =>
    listen(createTlsServer({ key: KEY, cert: CERTIFICATE }), "secureConnection", OK, "127.0.0.1");
  const unverified = { status: null, error: "its certificate can't be verified" };

  test("with a self-signed certificate fails, and sends nothing", async () => {
    const receiver = await listenTls();
    expect(await call(receiver, { host: "hook.example", protocol: "https" })).toEqual(unverified);
    expect(receiver.heard).toBe("");
  });

  test("on a silent port, or one with plain HTTP, fails", async () => {
    const silent = await receive(OK);
    const error = "there was no answer within 0.2 seconds";
    expect(await call(silent, { protocol: "https", timeoutMs: 200 })).toEqual({ status: null, error });
    const plain = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("ok") });
    const answer = await call({ port: plain.port! }, { protocol: "https" });
    expect(answer).toEqual({ status: null, error: "the TLS handshake failed" });
    await plain.stop(true);
  });

  test("checks the certificate against the name, not the address", async () => {
    const receiver = await listenTls();
    const folder = temporary();
    await Bun.write(`${folder}/certificate.pem`, CERTIFICATE);
    const script = `
      import { callHook } from ${JSON.stringify(join(import.meta.dir, "../engine/hooks/call.ts"))};
      import { readRanges } from ${JSON.stringify(join(import.meta.dir, "../engine/addresses.ts"))};
      for (const host of ["hook.example", "hook.example.", "other.example", "127.0.0.1"]) {
        const url = "https://" + host + ":${receiver.port}/";
        const call = { id: "1", url, secret: ${JSON.stringify(SECRET)}, body: ${JSON.stringify(BODY)}, at: Date.now() };
        console.log(JSON.stringify(await callHook(call, readRanges("127.0.0.1/32"), { resolve: async () => ["127.0.0.1"] })));
      }`;
    const child = Bun.spawn([process.execPath, "-e", script], {
      env: { PATH: process.env.PATH, NODE_EXTRA_CA_CERTS: `${folder}/certificate.pem` },
    });
    const answers = (await new Response(child.stdout).text())
      .trim()
      .split("\n")
      .map((line) => {
        const { status, error } = JSON.parse(line) as Outcome;
        return { status, error };
      });
    const ok = { status: 200, error: null };
    expect(answers).toEqual([ok, ok, unverified, unverified]);
  });
});

test("a secret is whsec_ and the base64 of 24 to 64 bytes, and a new one is never the same", () => {
  const secret = (bytes: number): string => `whsec_${Buffer.alloc(bytes, 0xfb).toString("base64")}`;
  for (const text of [secret(24), secret(25), secret(26), secret(64), makeSecret()])
    expect(readSecret(text)).toBe(text);
  const wrong = [
    secret(23),
    secret(65),
    secret(32).slice(6),
    secret(32).replace("=", ""),
    `${secret(24)}=`,
    ` ${secret(24)}`,
  ];
  for (const text of [
    ...wrong,
    `${secret(24)}\n`,
    secret(24).replaceAll("+", "-"),
    secret(25).replace(/.==$/, "x=="),
    "",
    "whsec_",
  ])
    expect(refusal(() => readSecret(text))).toBe("malformed secret: must be whsec_ and the base64 of 24 to 64 bytes");
  expect(Buffer.from(makeSecret().slice(6), "base64")).toHaveLength(32);
  expect(makeSecret()).not.toBe(makeSecret());
});
