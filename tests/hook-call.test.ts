/**
 * One call of a webhook, against receivers that behave and that don't. They listen on loopback, which only the tests' own
 * PERE_HOOKS_ALLOW lets through; names are resolved by the tests.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { type Server, type Socket, createServer } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { Webhook } from "standardwebhooks";
import { type HookAnswer, callHook, checkHookUrl, makeSecret, readHookUrl, readSecret } from "../engine/hooks/call.ts";
import { readRanges } from "../engine/addresses.ts";
import { PereError } from "../engine/model.ts";
import { temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

const LOOPBACK = readRanges("127.0.0.0/8, ::1/128");
const NONE = readRanges("");
const PUBLIC = "93.184.216.34";
const SECRET = makeSecret();
const BODY = '{"type":"pere.receipt","data":"Grüße 🎉"}';

const servers: Server[] = [];
const sockets = new Set<Socket>();
afterAll(() => {
  for (const server of servers) server.close();
  for (const socket of sockets) socket.destroy();
});

/** A receiver that says `answer` to a whole request, or does with the connection what it likes. */
interface Receiver {
  readonly port: number;
  /** How many connections it took. */
  connections: number;
  /** How many of them ended. */
  ended: number;
  /** What was sent to it. */
  heard: string;
}

type Behaviour = string | ((socket: Socket) => void);

async function listen(server: Server, event: string, behaviour: Behaviour, host: string, port = 0): Promise<Receiver> {
  const receiver = { port: 0, connections: 0, ended: 0, heard: "" };
  server.on(event, (socket: Socket) => {
    receiver.connections++;
    sockets.add(socket);
    let answered = false;
    socket.on("error", () => {}).on("close", () => receiver.ended++);
    socket.on("data", (bytes) => {
      receiver.heard += bytes.toString();
      if (answered || !receiver.heard.includes(BODY)) return;
      answered = true;
      if (typeof behaviour === "string") socket.write(behaviour);
      else behaviour(socket);
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(port, host, resolve));
  const address = server.address();
  if (typeof address === "object" && address) receiver.port = address.port;
  return receiver;
}

const receive = (behaviour: Behaviour, host = "127.0.0.1", port = 0): Promise<Receiver> =>
  listen(createServer(), "connection", behaviour, host, port);

/** Signed by itself, for hook.example, until 2125. */
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZSWdBuyJHhgAJdXR
NivzYuEBZm3bgTp1j+pa2UgVjuChRANCAAQZbjgh3t4lOYpWv5t9GBJQeNtrUD3e
dc6s3pDYFGoivQ+MpLWPDFUfZaIk8qmPkACoTkwAn8f56J6CPqNUPUQh
-----END PRIVATE KEY-----`;
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBnjCCAUSgAwIBAgIUbihmP0ldI/pXwzG09/5OV+efu+swCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMaG9vay5leGFtcGxlMCAXDTI2MTEyMjA1NTQ1MFoYDzIxMjYx
MDI5MDU1NDUwWjAXMRUwEwYDVQQDDAxob29rLmV4YW1wbGUwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAAQZbjgh3t4lOYpWv5t9GBJQeNtrUD3edc6s3pDYFGoivQ+M
pLWPDFUfZaIk8qmPkACoTkwAn8f56J6CPqNUPUQho2wwajAdBgNVHQ4EFgQUBZAg
1s8OOSB7al68bCXSD6MquHUwHwYDVR0jBBgwFoAUBZAg1s8OOSB7al68bCXSD6Mq
uHUwDwYDVR0TAQH/BAUwAwEB/zAXBgNVHREEEDAOggxob29rLmV4YW1wbGUwCgYI
KoZIzj0EAwIDSAAwRQIhAI/e9sSnYguLBydQxrm4J833ff/yizyFztfyGcxK/8pv
AiB6pR6/cTybOBYLiJWad13qcWK8C86Hx1EL/YjIRxr7qA==
-----END CERTIFICATE-----`;

/** A call of `host` at the receiver's port; the name, where it is one, leads to `addresses`. */
const call = (
  { port }: { readonly port: number },
  { host = "127.0.0.1", addresses = ["127.0.0.1"], allowed = LOOPBACK, timeoutMs = 5_000, protocol = "http" } = {},
): Promise<HookAnswer> =>
  callHook(
    { id: "msg_1", url: `${protocol}://${host}:${port}/hook?for=me`, secret: SECRET, body: BODY, at: Date.now() },
    allowed,
    { timeoutMs, resolve: async () => addresses },
  );

const OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/** What `read` refused, as the machine and the person see it. */
function refusal(read: () => unknown): string {
  try {
    read();
  } catch (error) {
    if (error instanceof PereError) return `${error.code} ${error.faults[0]?.path}: ${error.faults[0]?.message}`;
    throw error;
  }
  return "taken";
}

describe("a call", () => {
  test("is a signed POST that the reference verifier takes", async () => {
    const receiver = await receive(OK);
    const at = Date.now();
    const url = `http://hook.example:${receiver.port}/hook?for=me`;
    const answer = await callHook({ id: "msg_1", url, secret: SECRET, body: BODY, at }, LOOPBACK, {
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

  test.each([200, 204, 301, 307, 410, 429, 500, 503])("gives the status %d as it came", async (status) => {
    const elsewhere = await receive(OK);
    const receiver = await receive(
      `HTTP/1.1 ${status} So\r\nLocation: http://127.0.0.1:${elsewhere.port}/\r\nContent-Length: 0\r\n\r\n`,
    );
    expect(await call(receiver)).toEqual({ status, error: null });
    expect(elsewhere.connections).toBe(0);
  });

  test("uses a connection once, and ends it although the receiver would keep it", async () => {
    const receiver = await receive(OK);
    for (const count of [1, 2, 3]) {
      expect((await call(receiver)).status).toBe(200);
      await until(() => receiver.ended === count, "the connection's end");
    }
    expect(receiver.connections).toBe(3);
  });

  test("tries the next address where one takes no connection", async () => {
    const receiver = await receive(OK, "127.0.0.1", lastingPort());
    const addresses = ["127.0.0.2", "::1", "127.0.0.1"];
    expect(await call(receiver, { host: "hook.example", addresses })).toEqual({ status: 200, error: null });
  });

  test("asks no proxy that the environment names", async () => {
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

  test("with a name that can't be resolved, or a secret or URL that is none, ends in a sentence", async () => {
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
      expect(await callHook({ ...good, ...broken }, LOOPBACK, options)).toEqual({ status: null, error });
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
  test.each<[string, Behaviour, HookAnswer]>([
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

  test.each<[string, Behaviour, HookAnswer]>([
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
    expect(await call(receiver, { timeoutMs: 120_000 })).toEqual(answer);
    await until(() => receiver.ended === 1, "the connection's end");
  });

  test("takes no connection is said to refuse it", async () => {
    const receiver = await receive(OK, "127.0.0.2", lastingPort());
    const error = "the connection was refused";
    expect(await call(receiver)).toEqual({ status: null, error });
    expect(await call(receiver, { host: "hook.example", addresses: ["127.0.0.1", "::1"] })).toEqual({
      status: null,
      error,
    });
  });

  test("has a name that nobody answers for keeps nobody beyond the limit", async () => {
    const never = { timeoutMs: 50, resolve: () => new Promise<string[]>(() => {}) };
    const url = "http://hook.example/";
    expect(await callHook({ id: "1", url, secret: SECRET, body: BODY, at: Date.now() }, NONE, never)).toEqual({
      status: null,
      error: "there was no answer within 0.05 seconds",
    });
    await expect(checkHookUrl(new URL(url), NONE, never)).rejects.toThrow(
      "url: its host could not be looked up in time",
    );
  });
});

describe("TLS", () => {
  const listenTls = (): Promise<Receiver> =>
    listen(createTlsServer({ key: KEY, cert: CERTIFICATE }), "secureConnection", OK, "127.0.0.1");
  const unverified = { status: null, error: "its certificate can't be verified" };

  test("with a certificate of its own making fails, and hears nothing", async () => {
    const receiver = await listenTls();
    expect(await call(receiver, { host: "hook.example", protocol: "https" })).toEqual(unverified);
    expect(receiver.heard).toBe("");
  });

  test("on a port that is silent, or speaks HTTP without it, fails", async () => {
    const silent = await receive(OK);
    const error = "there was no answer within 0.2 seconds";
    expect(await call(silent, { protocol: "https", timeoutMs: 200 })).toEqual({ status: null, error });
    const plain = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("ok") });
    const answer = await call({ port: plain.port! }, { protocol: "https" });
    expect(answer).toEqual({ status: null, error: "TLS could not be agreed on" });
    await plain.stop(true);
  });

  test("checks the certificate against the name, not the address", async () => {
    const receiver = await listenTls();
    const folder = temporary();
    await Bun.write(`${folder}/certificate.pem`, CERTIFICATE);
    const script = `
      import { callHook } from ${JSON.stringify(new URL("../engine/hooks/call.ts", import.meta.url).pathname)};
      import { readRanges } from ${JSON.stringify(new URL("../engine/addresses.ts", import.meta.url).pathname)};
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
      .map((line) => JSON.parse(line) as unknown);
    const ok = { status: 200, error: null };
    expect(answers).toEqual([ok, ok, unverified, unverified]);
  });
});

/** Forms of loopback that somebody might hope to get past a check. */
const LOOPBACK_HOSTS = [
  ...[
    "127.0.0.1",
    "127.0.0.1.",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "%31%32%37.0.0.1",
    "１２７。0.0.1",
  ],
  ...["[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"],
  ...["localhost", "localhost.", "LOCALHOST", "ⓛocalhost", "app.localhost", "a.b.localhost."],
];

/** Addresses that are not public, by what hides in them or where they lead. */
const PRIVATE_HOSTS = [
  ...["0.0.0.0", "0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254"],
  ...[
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
  ],
  ...[
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
  ],
  // DNS64 of addresses that are not public, and what else carries such a one.
  ...["[64:ff9b::7f00:1]", "[64:ff9b::a00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::]", "[64:ff9b:1:fffe::c0a8:101]"],
  // Where these carry an IPv4 address, and which, depends on the network.
  ...["[64:ff9b:1::808:808]", "[64:ff9b:1:7f00:0:100:808:808]", "[2002:808:808::1]", "[2001:0:808:808::f7f7:f7f7]"],
  ...["[2002:a00:1::8.8.8.8]", "[2001:0:808:808::f5ff:fffe]", "[2001:0:a00:1::f7f7:f7f7]", "[::ffff:0:8.8.8.8]"],
  ...["[2002:7f00:1::]", "[2001:0:7f00:1::1]", "[fe80::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]"],
  ...["[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[4000::1]", "[::2]"],
];

const PUBLIC_HOSTS = [
  PUBLIC,
  "1.1.1.1",
  "172.32.0.1",
  "[2606:4700::1111]",
  "[::ffff:1.1.1.1]",
  // The same host, as DNS64 of a network without IPv4 names it.
  "[64:ff9b::101:101]",
  "[64:ff9b::8.8.8.8]",
  "hook.example",
  "10.example",
];

const NOT_PUBLIC =
  "leads to an address that is not public; hooks may call such a one only where PERE_HOOKS_ALLOW says so";

describe("a host", () => {
  test.each([...LOOPBACK_HOSTS, ...PRIVATE_HOSTS])("%s is refused as it is written", (host) => {
    for (const protocol of ["http", "https"])
      expect(refusal(() => readHookUrl(`${protocol}://${host}:8080/hook`, NONE))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test.each(PUBLIC_HOSTS)("%s is taken", (host) => {
    expect(readHookUrl(`https://${host}/hook`, NONE).pathname).toBe("/hook");
  });

  test.each(LOOPBACK_HOSTS)("%s sees no connection, and is called where it is allowed", async (host) => {
    const address = host.startsWith("[") && !host.includes("f") ? "::1" : "127.0.0.1";
    const receiver = await receive(OK, address);
    const lies = [PUBLIC];
    expect(await call(receiver, { host, addresses: lies, allowed: NONE })).toEqual({
      status: null,
      error: `url: ${NOT_PUBLIC}`,
    });
    expect(receiver.connections).toBe(0);
    expect(await call(receiver, { host, addresses: lies })).toEqual({ status: 200, error: null });
    expect(receiver.connections).toBe(1);
  });
});

describe("a name", () => {
  const url = new URL("http://hook.example/");
  const leadsTo = (...addresses: string[]): { resolve(): Promise<string[]> } => ({ resolve: async () => addresses });

  test("is taken when all of its addresses are public, and refused for one that is not", async () => {
    await checkHookUrl(url, NONE, leadsTo(PUBLIC, "2606:4700::1111"));
    for (const address of [
      "127.0.0.1",
      "::1",
      "::ffff:10.0.0.1",
      "fe80::1%eth0",
      "64:ff9b::a00:1",
      "::7f00:1",
      "nonsense",
      "",
    ])
      for (const addresses of [[address], [PUBLIC, address], [address, PUBLIC]])
        await expect(checkHookUrl(url, NONE, leadsTo(...addresses))).rejects.toThrow(`url: ${NOT_PUBLIC}`);
    await expect(checkHookUrl(url, NONE, leadsTo())).rejects.toThrow("url: its host has no address");
  });

  test("that is in no resolver is refused", async () => {
    await expect(checkHookUrl(new URL("http://pere.invalid/"), NONE)).rejects.toThrow(/^url: its host /);
  });

  test("that moves to a private address after its check is not called", async () => {
    const receiver = await receive(OK);
    const answers = [[PUBLIC], ["127.0.0.1"]];
    let questions = 0;
    const options = { resolve: async () => answers[questions++]! };
    const moved = new URL(`http://hook.example:${receiver.port}/`);
    await checkHookUrl(moved, NONE, options);
    const hook = { id: "1", url: moved.href, secret: SECRET, body: BODY, at: Date.now() };
    expect(await callHook(hook, NONE, options)).toEqual({ status: null, error: `url: ${NOT_PUBLIC}` });
    expect({ questions, connections: receiver.connections }).toEqual({ questions: 2, connections: 0 });
  });

  test("is asked for once a call, and only what was answered is called", async () => {
    const port = lastingPort();
    const right = await receive(OK, "127.0.0.3", port);
    const wrong = await receive(OK, "127.0.0.1", port);
    let questions = 0;
    const resolve = async (): Promise<string[]> => (questions++ === 0 ? ["127.0.0.3"] : ["127.0.0.1"]);
    const hook = {
      id: "1",
      url: `http://localhost.example:${right.port}/`,
      secret: SECRET,
      body: BODY,
      at: Date.now(),
    };
    expect(await callHook(hook, readRanges("127.0.0.3/32"), { resolve })).toEqual({ status: 200, error: null });
    expect({ questions, right: right.connections, wrong: wrong.connections }).toEqual({
      questions: 1,
      right: 1,
      wrong: 0,
    });
  });

  test("with one private address among public ones sees no connection", async () => {
    const receiver = await receive(OK);
    for (const addresses of [
      ["127.0.0.1", PUBLIC],
      [PUBLIC, "127.0.0.1"],
    ])
      expect(await call(receiver, { host: "hook.example", addresses, allowed: NONE })).toEqual({
        status: null,
        error: `url: ${NOT_PUBLIC}`,
      });
    expect(receiver.connections).toBe(0);
  });
});

describe("PERE_HOOKS_ALLOW", () => {
  test("lets its ranges through and nothing beside them", () => {
    const allowed = readRanges(" 10.1.0.0/16,fd00:1::/32 , 192.168.7.7/32");
    for (const host of ["10.1.255.255", "[::ffff:10.1.2.3]", "[fd00:1:ffff::1]", "192.168.7.7"])
      expect(refusal(() => readHookUrl(`http://${host}/`, allowed))).toBe("taken");
    for (const host of ["10.2.0.0", "10.0.255.255", "[fd00:2::1]", "192.168.7.6", "127.0.0.1", "[::a01:203]"])
      expect(refusal(() => readHookUrl(`http://${host}/`, allowed))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test("counts for what an IPv6 address carries: allowing NAT64's ranges lets no IPv4 address in that is not allowed", () => {
    const ranges = readRanges("64:ff9b::/96,64:ff9b:1::/48,2002::/16,2001::/32");
    for (const host of ["[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]", "[2001:0:808:808::f5ff:fffe]"])
      expect(refusal(() => readHookUrl(`http://${host}/`, ranges))).toBe(`refused url: ${NOT_PUBLIC}`);
    const office = readRanges("10.1.0.0/16");
    expect(refusal(() => readHookUrl("http://[64:ff9b::a01:203]/", office))).toBe("taken");
    expect(refusal(() => readHookUrl("http://[64:ff9b::a02:203]/", office))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test.each([
    "10.0.0.0",
    "10.0.0.0/33",
    "10/8",
    "0x0a.0.0.0/8",
    "10.0.0.0/8;fd00::/8",
    "fd00::/129",
    "::ffff:10.0.0.0/104",
    "lan",
    "10.0.0.0/-1",
  ])("%s is not understood, in a line that names the setting", (text) => {
    expect(() => readRanges(`127.0.0.0/8,${text}`)).toThrow(
      `PERE_HOOKS_ALLOW must be ranges like 10.0.0.0/8 or fd00::/8, comma separated, not "${text}"`,
    );
  });
});

test.each([
  ["", "malformed url: must be a URL that begins with http:// or https://"],
  ["hook.example/x", "malformed url: must be a URL that begins with http:// or https://"],
  ["file:///etc/passwd", "malformed url: must be a URL that begins with http:// or https://"],
  ["unix:/run/x.sock", "malformed url: must be a URL that begins with http:// or https://"],
  ["http://256.1.1.1/", "malformed url: must be a URL that begins with http:// or https://"],
  ["http://user@hook.example/", "refused url: must not hold a user or a password"],
  ["http://:secret@hook.example/", "refused url: must not hold a user or a password"],
  [`http://hook.example/${"a".repeat(2_029)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${"ü".repeat(400)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${" ".repeat(2_100)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${"a".repeat(2_028)}`, "taken"],
])("a URL is read or refused, %#", (text, answer) => {
  expect(refusal(() => readHookUrl(text, NONE))).toBe(answer);
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
