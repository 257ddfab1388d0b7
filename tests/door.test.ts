/**
 * The door, from outside: every route with every kind of token, whom a device can be, when a feed ends, what pages of strangers get, which
 * names this service answers to, and the secret that it makes itself. One test an attack or a promise, over real connections.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { chmodSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { EventSource } from "eventsource";
import { mint } from "../engine/access.ts";
import type { EngineOptions } from "../engine/engine.ts";
import { readAllowed } from "../engine/hook-call.ts";
import { readSettings, type Settings } from "../engine/settings.ts";
import type { Service } from "../index.ts";
import { type Answer, ask, connect, listen, SECRET, startWith, temporary, until } from "./harness.ts";
import { noRedis, startRedis } from "./redis-server.ts";

const DAY_SECONDS = 24 * 3600;

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

/** A service with the secret, or as it is said; it is stopped with the test. */
async function start(settings: Partial<Settings> = {}, options: EngineOptions = {}): Promise<Service> {
  const service = await startWith(settings, options);
  closing.push(() => service.stop());
  return service;
}

interface Claims {
  readonly sub?: string;
  readonly push?: readonly string[];
  readonly feed?: readonly string[];
  readonly seconds?: number;
  readonly secret?: string;
  readonly now?: () => number;
}

const token = ({ sub = "till-7", push = [], feed = [], seconds = 3600, secret = SECRET, now = Date.now }: Claims) =>
  mint({ secret, now }, { sub, push, feed, days: seconds / DAY_SECONDS });
const bearer = (text: string): Record<string, string> => ({ Authorization: `Bearer ${text}` });
const JSON_ONLY = { Accept: "application/json" };
const GOOD = await token({ push: ["orders"], feed: ["orders"] });

/** What a server says to these bytes, until it closes or has said a head (and, with `until`, that). */
async function raw(url: string, text: string, end = "\r\n\r\n"): Promise<string> {
  let said = "";
  const { promise, resolve } = Promise.withResolvers<void>();
  const { port, hostname } = new URL(url);
  const socket = await Bun.connect({
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port),
    socket: {
      data(_, bytes) {
        said += bytes.toString();
        if (said.includes(end)) resolve();
      },
      close: () => resolve(),
      end: () => resolve(),
    },
  });
  socket.write(text);
  await promise;
  socket.end();
  return said;
}
const statusOf = (said: string): number => Number(/^HTTP\/1\.[01] (\d{3})/.exec(said)?.[1] ?? 0);

/** The status of a WebSocket's handshake. */
async function handshake(url: string, path: string, headers: Record<string, string> = {}): Promise<number> {
  const lines = Object.entries({
    Host: new URL(url).host,
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    ...headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  return statusOf(await raw(url, `GET ${path} HTTP/1.1\r\n${lines.join("")}\r\n`));
}

/** The status of a request of any kind; what goes on is cut. */
async function statusFor(url: string, method: string, path: string, init: RequestInit): Promise<number> {
  const abort = new AbortController();
  const response = await fetch(url + path, { method, redirect: "manual", ...init, signal: abort.signal });
  if (response.headers.get("content-type") === "text/event-stream") abort.abort();
  else await response.arrayBuffer();
  return response.status;
}

// ------------------------------------------------------------------------------------------------------------------ rights

/** Every route that asks for a right: what is sent, which right it asks for, and what it answers to whoever has it. */
const ROUTES: readonly (readonly [
  method: string,
  path: string,
  right: "push" | "feed",
  status: number,
  init?: object,
])[] = [
  ["POST", "/push/orders", "push", 201, { body: "1", headers: { "Content-Type": "application/json" } }],
  ["GET", "/feed/orders", "feed", 200],
  ["GET", "/feed/orders?wait=0", "feed", 200, { headers: JSON_ONLY }],
  ["WS", "/feed/orders", "feed", 101],
  ["HEAD", "/feed/orders", "feed", 200],
  ["POST", "/feedback/orders", "feed", 200, { body: "[]", headers: { "Content-Type": "application/json" } }],
  ["GET", "/feedback/orders", "push", 200],
  ["GET", "/feedback/orders?wait=0", "push", 200, { headers: JSON_ONLY }],
  ["WS", "/feedback/orders", "push", 101],
  ["GET", "/watch?channel=orders", "push", 200],
  ["HEAD", "/watch?channel=orders", "push", 200],
  ["GET", "/events/orders", "push", 200],
  ["GET", "/events/orders/ID", "push", 200],
  ["GET", "/events/orders/ID/receipts", "push", 200],
  ["GET", "/events/orders/ID/receipts", "push", 200, { headers: { Accept: "text/csv" } }],
  ["GET", "/devices/orders", "push", 200],
  ["PUT", "/devices/orders/d", "push", 201],
  ["DELETE", "/devices/orders/d", "push", 204],
  ["GET", "/hooks/orders", "push", 200],
  [
    "PUT",
    "/hooks/orders/h",
    "push",
    201,
    { body: '{"url":"http://127.0.0.1:9/"}', headers: { "Content-Type": "application/json" } },
  ],
  ["POST", "/hooks/orders/h/retry", "push", 200],
  ["DELETE", "/hooks/orders/h", "push", 204],
];

describe("a right", () => {
  test("is asked for on every route, and the other right, another channel's, or another key's does not do", async () => {
    const pere = await start({ hooksAllowed: readAllowed("127.0.0.0/8") });
    const all = await token({ sub: "boss", push: ["*"], feed: ["*"] });
    const id = (await ask(`${pere.url}/push/orders`, { body: 0, headers: bearer(all) })).body.id as string;
    const bearers = {
      "no token": null,
      "another key": await token({ push: ["*"], feed: ["*"], secret: SECRET.toUpperCase() }),
      "no right": await token({}),
      "the other channels": await token({
        push: ["order", "orders2", "orders.*"],
        feed: ["order", "orders2", "orders.*"],
      }),
      push: await token({ push: ["orders"] }),
      feed: await token({ feed: ["orders"] }),
    };
    const statuses: Record<string, number> = {
      "no token": 401,
      "another key": 401,
      "no right": 403,
      "the other channels": 403,
    };
    for (const [method, path, right, status, init = {}] of ROUTES)
      // Who has the right comes last.
      for (const who of Object.keys(bearers).toSorted(
        (one, other) => Number(one === right) - Number(other === right),
      )) {
        const text = bearers[who as keyof typeof bearers];
        const { headers = {}, ...rest } = init as { headers?: Record<string, string> };
        const carried = { ...headers, ...(text === null ? {} : bearer(text)) };
        const where = path.replace("ID", id);
        const found =
          method === "WS"
            ? await handshake(pere.url, where, carried)
            : await statusFor(pere.url, method, where, { ...rest, headers: carried });
        expect(`${method} ${path} with ${who}: ${found}`).toBe(
          `${method} ${path} with ${who}: ${who === right ? status : (statuses[who] ?? 403)}`,
        );
      }
    // And what was refused was not done.
    expect((await ask(`${pere.url}/events/orders`, { headers: bearer(all) })).body.events).toHaveLength(2);
  });

  test("is asked for by every operation that is described, save the two of the process", async () => {
    const pere = await start();
    const { paths } = (await ask(`${pere.url}/swagger/json`)).body as { paths: Record<string, Record<string, object>> };
    const described = Object.entries(paths).flatMap(([path, item]) =>
      Object.keys(item).map((method) => `${method} ${path}`),
    );
    const names = { "{channel}": "orders", "{id}": "ID", "{device}": "d", "{name}": "h" };
    const tried = new Set(ROUTES.map(([method, path]) => `${method.toLowerCase()} ${path.split("?")[0]}`));
    const left = described.filter((operation) => {
      const path = Object.entries(names).reduce((text, [name, value]) => text.replace(name, value), operation);
      return !tried.has(path);
    });
    expect(left.toSorted()).toEqual(["get /channels", "get /health", "get /ready"]);
  });

  test("is not needed for the pages and for looking at the process", async () => {
    const pere = await start();
    for (const path of ["/health", "/ready", "/", "/weblistener.html", "/weblistener.js", "/swagger", "/swagger/json"])
      expect(`${path} ${(await ask(pere.url + path)).status}`).toBe(`${path} 200`);
  });

  test("is needed on each of a feed's channels", async () => {
    const pere = await start();
    const some = bearer(await token({ push: ["a", "b"], feed: ["a", "b"] }));
    for (const log of ["feed", "feedback"])
      for (const [channels, status] of [
        ["a,b", 200],
        ["a,c", 403],
        ["c,a", 403],
      ] as const) {
        const path = `/${log}/${channels}`;
        expect(await statusFor(pere.url, "GET", path, { headers: some })).toBe(status);
        expect(await statusFor(pere.url, "GET", path, { headers: { ...some, ...JSON_ONLY } })).toBe(status);
        expect(await handshake(pere.url, path, some)).toBe(status === 200 ? 101 : status);
      }
  });

  test("to push decides which channels are listed, and no page names another one", async () => {
    const pere = await start();
    const all = bearer(await token({ push: ["*"] }));
    for (const channel of ["a", "shop.1", "shop.2", "shops", "shop.3", "z"])
      await ask(`${pere.url}/push/${channel}`, { body: 1, headers: all });
    const list = async (query: string, headers: Record<string, string>): Promise<[string[], string | null]> => {
      const { body } = await ask(`${pere.url}/channels${query}`, { headers });
      return [(body.channels as { channel: string }[]).map(({ channel }) => channel), body.next as string | null];
    };
    const some = bearer(await token({ push: ["shop.*"], feed: ["*"] }));
    expect(await list("", some)).toEqual([["shop.1", "shop.2", "shop.3"], null]);
    expect(await list("?limit=1", some)).toEqual([["shop.1"], "shop.1"]);
    expect(await list("?limit=1&after=shop.1", some)).toEqual([["shop.2"], "shop.2"]);
    expect(await list("?limit=1&after=shop.2", some)).toEqual([["shop.3"], null]);
    expect(await list("?limit=3", some)).toEqual([["shop.1", "shop.2", "shop.3"], null]);
    expect(await list("?limit=1", bearer(await token({ feed: ["*"] })))).toEqual([[], null]);
    expect((await list("?limit=5", all))[1]).toBe("shops");
    expect((await ask(`${pere.url}/channels`)).status).toBe(401);
  });
});

// ------------------------------------------------------------------------------------------------------------- who a device is

describe("a device is its token's sub", () => {
  test("whatever the query and the header say, on all three wires", async () => {
    const pere = await start();
    const headers = { ...bearer(GOOD), device: "other" };
    const path = "/feed/orders?device=other";
    const stream = await listen(pere.url + path, headers);
    expect((await stream.own("ready")).device).toBe("till-7");
    stream.close();
    const feed = await connect(`${pere.url}${path}&token=${GOOD}`);
    expect(feed.messages[0]!.device).toBe("till-7");
    feed.socket.close();
    expect((await ask(`${pere.url}${path}&wait=0`, { headers: { ...headers, ...JSON_ONLY } })).status).toBe(200);
    const { body } = await ask(`${pere.url}/devices/orders`, { headers });
    expect((body.devices as { device: string }[]).map(({ device }) => device)).toEqual(["till-7"]);
  });

  test("and receipts that name another one are rejected: in JSON, in an array, in the old form, on a socket", async () => {
    const pere = await start();
    const headers = bearer(GOOD);
    const { id } = (await ask(`${pere.url}/push/orders?to=till-7,till-8`, { body: 1, headers })).body;
    const give = (
      body: unknown,
      query = "",
      more: Record<string, string> = {},
      type = "application/json",
    ): Promise<Answer> => ask(`${pere.url}/feedback/orders${query}`, { body, type, headers: { ...headers, ...more } });
    const other = { event: id, device: "till-8", status: "done" };
    expect((await give(other)).status).toBe(422);
    expect((await give([other, { event: id, status: "received" }])).body).toMatchObject({
      recorded: 1,
      rejected: [{ index: 0, event: id }],
    });
    expect((await give(other, "?device=till-8", { device: "till-8" })).status).toBe(422);
    const form = "application/x-www-form-urlencoded";
    const old = await give(`id=${id}&device=till-8&status=ok`, "", {}, form);
    expect([old.status, old.body.rejected[0].reason]).toEqual([422, "device: this token speaks for another device"]);
    const feed = await connect(`${pere.url}/feed/orders?token=${GOOD}`);
    feed.socket.send(JSON.stringify(other));
    const said = await until(() => feed.messages.find(({ pere }) => pere === "receipts"));
    expect([said.recorded, said.rejected.length]).toEqual([0, 1]);
    feed.socket.close();
    // Named nowhere, or only beside the body, it is the token's own.
    expect((await give(`id=${id}&status=working`, "?device=till-8", {}, form)).body.recorded).toBe(1);
    const { receipts } = (await ask(`${pere.url}/events/orders/${id}/receipts`, { headers })).body;
    expect(
      (receipts as { device: string; status: string }[]).map(({ device, status }) => `${device} ${status}`),
    ).toEqual(["till-7 working", "till-8 pending"]);
  });
});

// ------------------------------------------------------------------------------------------------------------------ expiry

describe("a feed ends with its token", () => {
  /** The wheel turns every 10 ms. */
  const QUICK = { beatMs: 150 };

  test("on all three wires, not before, and does not open again", async () => {
    let time = Date.now();
    const now = (): number => time;
    const pere = await start({}, { now, limits: QUICK });
    const text = await token({ push: ["orders"], feed: ["orders"], seconds: 600, now });
    const ends = (Math.floor(time / 1000) + 600) * 1000;
    const headers = bearer(text);
    const streams = await Promise.all(["feed", "feedback"].map((log) => listen(`${pere.url}/${log}/orders`, headers)));
    const sockets = await Promise.all(
      ["feed", "feedback"].map((log) => connect(`${pere.url}/${log}/orders?token=${text}`)),
    );
    let polled = false;
    const poll = ask(`${pere.url}/feed/orders?wait=60`, { headers: { ...headers, ...JSON_ONLY } });
    void poll.finally(() => (polled = true));
    await until(() => pere.engine.held.feeds === 5, "five feeds");

    time = ends - 1;
    await Bun.sleep(100); // Ten turns of the wheel.
    expect([polled, ...streams.map(({ ended }) => ended)]).toEqual([false, false, false]);
    expect(pere.engine.held.feeds).toBe(5);

    time = ends;
    for (const stream of streams) {
      expect(await stream.own("bye")).toEqual({ reason: "expired" });
      await until(() => stream.ended, "the stream's end");
    }
    for (const { messages, closed } of sockets) {
      expect((await closed).code).toBe(1008);
      expect(messages.at(-1)).toEqual({ pere: "bye", reason: "expired" });
    }
    const { status, body } = await poll;
    expect([status, body.events]).toEqual([200, []]);
    expect(body.last).toMatch(/^\w+-0$/);
    expect(pere.engine.held).toMatchObject({ feeds: 0, logs: 0, spokes: 0 });

    expect(await statusFor(pere.url, "GET", "/feed/orders", { headers })).toBe(401);
    expect(await statusFor(pere.url, "GET", "/feed/orders", { headers: { ...headers, ...JSON_ONLY } })).toBe(401);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(401);
  });

  test("also while it has much to say", async () => {
    let time = Date.now();
    const now = (): number => time;
    const pere = await start({}, { now, limits: QUICK });
    const text = await token({ push: ["orders"], feed: ["orders"], seconds: 60, now });
    const stream = await listen(`${pere.url}/feed/orders`, bearer(text));
    const boss = bearer(await token({ push: ["orders"], seconds: 3600, now }));
    time += 61_000;
    while (!stream.ended) await ask(`${pere.url}/push/orders`, { body: 1, headers: boss });
    expect(stream.messages.at(-1)!.event).toBe("pere.bye");
  });

  test("within 5 s on a real clock", async () => {
    const pere = await start();
    const text = await token({ feed: ["orders"], seconds: 2 });
    const ends = Math.floor(Date.now() / 1000) * 1000 + 2000;
    const stream = await listen(`${pere.url}/feed/orders`, bearer(text));
    const { closed } = await connect(`${pere.url}/feed/orders?token=${text}`);
    const poll = ask(`${pere.url}/feed/orders?wait=60`, { headers: { ...bearer(text), ...JSON_ONLY } });
    await Promise.all([until(() => stream.ended, "the stream's end"), closed, poll]);
    expect(Date.now() - ends).toBeGreaterThanOrEqual(-1_000);
    expect(Date.now() - ends).toBeLessThan(5_000);
  }, 20_000);

  test("and not at once where that is in a month or in ten years: no timer is so long", async () => {
    const pere = await start({}, { limits: QUICK });
    for (const days of [25, 30, 3_600]) {
      const text = await token({ feed: ["orders"], seconds: days * DAY_SECONDS });
      const stream = await listen(`${pere.url}/feed/orders`, bearer(text));
      await Bun.sleep(100);
      expect([stream.ended, pere.engine.held.feeds]).toEqual([false, 1]);
      stream.close();
      await until(() => pere.engine.held.feeds === 0, "its end");
    }
  });

  test("and is not opened with one that has expired, though for a request it is taken 30 s longer", async () => {
    let time = Date.now();
    const now = (): number => time;
    const pere = await start({}, { now });
    const headers = bearer(await token({ push: ["orders"], feed: ["orders"], seconds: 60, now }));
    const push = async (): Promise<number> => (await ask(`${pere.url}/push/orders`, { body: 1, headers })).status;
    time += 62_000;
    const refused = await ask(`${pere.url}/feed/orders`, { headers });
    expect([refused.status, refused.body.detail]).toEqual([401, "token: it has expired"]);
    expect(await statusFor(pere.url, "GET", "/feed/orders", { headers: { ...headers, ...JSON_ONLY } })).toBe(401);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(401);
    expect(await push()).toBe(201);
    time += 30_000;
    expect(await push()).toBe(401);
  });
});

describe("a fresh token on a socket", () => {
  /** A socket whose token has ten minutes, and a clock. */
  async function open(path = "/feed/orders", claims: Claims = { feed: ["orders"] }) {
    const clock = { time: Math.ceil(Date.now() / 1000) * 1000 };
    const now = (): number => clock.time;
    const pere = await start({}, { now, limits: { beatMs: 150 } });
    const fresh = (more: Claims): Promise<string> => token({ ...claims, seconds: 600, now, ...more });
    const feed = await connect(`${pere.url}${path}?token=${await fresh({})}`);
    const begin = clock.time;
    /** Sends a token, and gives what is said to that. */
    const give = async (text: unknown): Promise<Record<string, unknown>> => {
      const before = feed.messages.length;
      feed.socket.send(JSON.stringify({ pere: "token", token: text }));
      await until(() => feed.messages.length > before, "an answer");
      return feed.messages.at(-1)!;
    };
    /** Whether it is open after so many seconds. */
    const isOpen = async (seconds: number): Promise<boolean> => {
      clock.time = begin + seconds * 1000;
      await Bun.sleep(60);
      return pere.engine.held.feeds === 1;
    };
    return { ...feed, clock, fresh, give, isOpen, begin };
  }

  test("puts its end off", async () => {
    const { give, fresh, isOpen, begin, closed, messages } = await open();
    expect(await give(await fresh({ seconds: 1200 }))).toEqual({
      pere: "token",
      expires: new Date(begin + 1_200_000).toISOString(),
    });
    expect(await isOpen(1199)).toBe(true);
    expect(await isOpen(1200)).toBe(false);
    expect((await closed).code).toBe(1008);
    expect(messages.at(-1)).toEqual({ pere: "bye", reason: "expired" });
  });

  test("that ends sooner is gone by", async () => {
    const { give, fresh, isOpen } = await open();
    expect((await give(await fresh({ seconds: 60 }))).pere).toBe("token");
    expect(await isOpen(59)).toBe(true);
    expect(await isOpen(60)).toBe(false);
  });

  test("of another device, with fewer rights, of another key, expired, or no token at all changes nothing", async () => {
    const { give, fresh, isOpen, begin } = await open();
    const past = begin - 610_000;
    for (const [text, words] of [
      [await fresh({ sub: "till-8", seconds: 1200 }), "another device"],
      [await fresh({ feed: ["orders2"], push: ["orders"], seconds: 1200 }), "no right to feed on orders"],
      [await fresh({ secret: SECRET.toUpperCase(), seconds: 1200 }), "signature"],
      [await fresh({ now: () => past }), "it has expired"],
      ["garbage", "not a signed JWT"],
      ["", "not a signed JWT"],
    ] as const)
      expect(await give(text)).toEqual({ pere: "error", detail: expect.stringContaining(words) });
    expect((await give(5)).pere).not.toBe("token");
    expect(await isOpen(599)).toBe(true);
    expect(await isOpen(600)).toBe(false);
  });

  test("is taken on a receipts feed from anybody who may push there", async () => {
    const { give, fresh, isOpen } = await open("/feedback/orders", { push: ["orders"] });
    expect((await give(await fresh({ push: [], feed: ["*"], seconds: 1200 }))).detail).toContain("no right to push");
    expect((await give(await fresh({ sub: "colleague", seconds: 1200 }))).pere).toBe("token");
    expect(await isOpen(900)).toBe(true);
    expect(await isOpen(1200)).toBe(false);
  });

  test("is needed on all of its channels", async () => {
    const { give, fresh } = await open("/feed/a,b", { feed: ["a", "b"] });
    expect((await give(await fresh({ feed: ["a"] }))).detail).toContain("no right to feed on b");
  });

  test("is answered where none is needed", async () => {
    const pere = await start({ access: "open" });
    const { socket, messages } = await connect(`${pere.url}/feed/orders?device=d`);
    socket.send(JSON.stringify({ pere: "token", token: GOOD }));
    await until(() => messages.length > 1, "an answer");
    expect(messages.at(-1)).toEqual({ pere: "token", expires: null });
    socket.close();
  });
});

// ---------------------------------------------------------------------------------------------------------- where tokens stand

describe("a token", () => {
  test("in the query opens a feed for EventSource, to which 401 and 403 are final", async () => {
    const pere = await start();
    const source = new EventSource(`${pere.url}/feed/orders?token=${GOOD}`);
    closing.push(() => source.close());
    const heard: string[] = [];
    source.onmessage = ({ data }) => heard.push(String(data));
    await new Promise((resolve) => source.addEventListener("pere.ready", resolve));
    await ask(`${pere.url}/push/orders`, { body: 7, headers: bearer(GOOD) });
    await until(() => heard.length === 1, "the event");
    for (const [query, code] of [
      ["", 401],
      [`?token=${await token({ feed: ["b"] })}`, 403],
    ] as const) {
      const other = new EventSource(`${pere.url}/feed/orders${query}`);
      const error = await new Promise<{ code?: number | undefined }>((resolve) => (other.onerror = resolve));
      expect([error.code, other.readyState]).toEqual([code, other.CLOSED]);
    }
  });

  test("in a cookie opens feeds and gives receipts; one that was sent on purpose goes before it", async () => {
    const pere = await start();
    const Cookie = `a=b; pere_token=${GOOD}`;
    expect(await statusFor(pere.url, "GET", "/feed/orders", { headers: { Cookie } })).toBe(200);
    expect(await handshake(pere.url, "/feed/orders", { Cookie })).toBe(101);
    expect((await ask(`${pere.url}/feedback/orders`, { body: [], headers: { Cookie } })).status).toBe(200);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie: "pere_token=x" } })).status).toBe(401);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie, ...bearer("x") } })).status).toBe(401);
  });

  test("in a subprotocol stands beside pere.v1, which is the one that is spoken", async () => {
    const pere = await start();
    const { socket, messages } = await connect(`${pere.url}/feed/orders`, ["pere.v1", `pere.token.${GOOD}`]);
    expect([socket.protocol, messages[0]!.device]).toEqual(["pere.v1", "till-7"]);
    socket.close();
    expect(await handshake(pere.url, "/feed/orders", { "Sec-WebSocket-Protocol": `pere.token.${GOOD}` })).toBe(400);
    expect(await handshake(pere.url, "/feed/orders", { "Sec-WebSocket-Protocol": "pere.v1, pere.token.x" })).toBe(401);
  });

  test("is given once: two that differ are a malformed request", async () => {
    const pere = await start();
    const other = await token({ sub: "till-8", feed: ["orders"] });
    const answer = await ask(`${pere.url}/feed/orders?token=${other}`, { headers: bearer(GOOD) });
    expect([answer.status, answer.body.detail]).toEqual([400, "token: a request has one token, in one place"]);
    expect(answer.headers.get("www-authenticate")).toContain('error="invalid_request"');
    expect((await ask(`${pere.url}/feed/orders?token=${GOOD}&token=${other}`)).status).toBe(400);
    const protocols = { "Sec-WebSocket-Protocol": `pere.v1, pere.token.${GOOD}, pere.token.${other}` };
    expect(await handshake(pere.url, "/feed/orders", protocols)).toBe(400);
  });

  test("that is missing, bad or too weak is answered with the reason, for machines too", async () => {
    const pere = await start();
    const none = await ask(`${pere.url}/push/orders`, { body: 1 });
    expect([none.status, none.headers.get("content-type"), none.body]).toEqual([
      401,
      "application/problem+json",
      { type: "urn:pere:unauthorized", title: "Unauthorized", status: 401, detail: "a token is needed here" },
    ]);
    expect(none.headers.get("www-authenticate")).toBe('Bearer realm="PERE"');
    for (const [text, reason] of [
      ["x", "it is not a signed JWT"],
      [await token({ secret: SECRET.toUpperCase() }), "its signature doesn't fit"],
      [await token({ now: () => Date.now() - 7_200_000 }), "it has expired"],
      [
        await token({ now: () => Date.now() + 7_200_000 }),
        "its iat must be a number of seconds, and not in the future",
      ],
    ] as const) {
      const { status, body, headers } = await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(text) });
      expect([status, body.detail, body.errors]).toEqual([
        401,
        `token: ${reason}`,
        [{ path: "token", message: reason }],
      ]);
      expect(headers.get("www-authenticate")).toBe(
        `Bearer realm="PERE", error="invalid_token", error_description="token: ${reason}"`,
      );
    }
    const weak = await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(await token({ feed: ["orders"] })) });
    expect([weak.status, weak.body.detail]).toEqual([403, "this token gives no right to push on orders"]);
    expect(weak.headers.get("www-authenticate")).toContain('error="insufficient_scope"');
  });

  test("is in no line that a service writes, wherever it stood and whatever came of it", async () => {
    const { url, end, said } = await run({ PERE_JWT_SECRET: SECRET, PERE_DB: `${temporary()}/pere.db` });
    const bad = `${GOOD.slice(0, -4)}AAAA`;
    const past = await token({ sub: "somebody-s-device", now: () => Date.now() - 7_200_000 });
    expect((await ask(`${url}/channels?token=${past}`)).body.detail).toBe("token: it has expired");
    const [fine, wrong] = [`token=${GOOD}`, `token=${bad}`];
    for (const path of [
      "/feed/orders?wait=0&",
      "/feed/-?",
      "/feed/other?",
      "/events/orders/x?",
      "/nothing?",
      "/?",
      "/channels?limit=x&",
    ])
      for (const query of [fine, wrong, `${fine}&${wrong}`])
        await ask(`${url}${path}${query}`, { headers: { ...JSON_ONLY, Referer: `${url}/?${query}` } });
    await ask(`${url}/push/orders?${wrong}`, { body: "{", headers: { Cookie: `pere_token=${bad}` } });
    await ask(`${url}/push/orders?${fine}`, { body: "{" });
    await ask(`${url}/nothing/${GOOD}`);
    expect(await handshake(url, `/feed/orders?${wrong}`)).toBe(401);
    const feed = await connect(`${url}/feed/orders?${fine}`);
    feed.socket.send(JSON.stringify({ pere: "token", token: bad }));
    feed.socket.send(`{"pere":"token","token":"${bad}"`);
    await until(() => feed.messages.length >= 3, "two answers");
    expect(await end("SIGTERM")).toBe(0);
    expect(said()).toContain("PERE listening on ");
    for (const part of GOOD.split(".").slice(1)) expect(said()).not.toContain(part.slice(0, -4));
    expect(said()).not.toContain(SECRET);
    // Nor what stands in it.
    expect(said()).not.toContain("somebody-s-device");
  }, 30_000);
});

/** A service in a process of its own, or a command that ends, and all that it says on both of its outputs. */
async function run(env: Record<string, string>, args: readonly string[] = []) {
  const child = Bun.spawn([process.execPath, "run", join(import.meta.dir, "..", "index.ts"), ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, PORT: "0", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  closing.push(() => child.kill("SIGKILL"));
  const texts = { stdout: "", stderr: "" };
  const read = async (name: keyof typeof texts): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of child[name]) texts[name] += decoder.decode(chunk, { stream: true });
  };
  const done = Promise.all([read("stdout"), read("stderr"), child.exited]);
  const isMint = args[0] === "token";
  if (isMint) await done;
  else
    await until(
      () => /PERE keeps its logs in|PERE can't/.test(texts.stdout + texts.stderr),
      () => JSON.stringify(texts),
    );
  return {
    url: /^PERE listening on (http:\S+)$/m.exec(texts.stdout)?.[1]?.replace("0.0.0.0", "127.0.0.1") ?? "",
    texts,
    code: () => child.exited,
    said: () => texts.stdout + texts.stderr,
    async end(signal: NodeJS.Signals) {
      child.kill(signal);
      return (await done)[2];
    },
  };
}

// ------------------------------------------------------------------------------------------------------------- pages of others

const SHOP = "https://shop.example";

describe("a page of an origin that was named", () => {
  const CREDENTIALS = "access-control-allow-credentials";

  test("may ask beforehand, without a token", async () => {
    const pere = await start({ origins: [SHOP] });
    for (const path of ["/push/orders", "/feed/orders", "/devices/orders/d"]) {
      const { status, headers, text } = await ask(pere.url + path, {
        method: "OPTIONS",
        headers: {
          Origin: SHOP,
          "Access-Control-Request-Method": "PUT",
          "Access-Control-Request-Headers": "authorization",
        },
      });
      expect([status, text, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([
        204,
        "",
        SHOP,
        "Origin",
      ]);
      expect(headers.get("access-control-allow-methods")).toBe("GET, POST, PUT, DELETE");
      const names = headers.get("access-control-allow-headers")!.split(", ");
      for (const name of ["authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "device"])
        expect(names).toContain(name);
      expect(headers.has(CREDENTIALS)).toBe(false);
    }
    // Other questions are not that one.
    expect((await ask(`${pere.url}/push/orders`, { method: "OPTIONS", headers: { Origin: SHOP } })).status).toBe(405);
  });

  test("may read every answer: good ones, errors of all kinds, pages, and streams", async () => {
    const pere = await start({ origins: ["http://127.0.0.1:1", SHOP] });
    const good = bearer(GOOD);
    for (const [path, status, init] of [
      ["/push/orders", 201, { body: 1, headers: good }],
      ["/push/orders", 400, { body: "{", headers: good }],
      ["/push/orders", 401, { body: 1 }],
      ["/push/b", 403, { body: 1, headers: good }],
      ["/events/orders/0-1", 404, { headers: good }],
      ["/nothing", 404, {}],
      ["/push/orders", 405, {}],
      ["/push/orders", 415, { body: "1", type: "text/plain", headers: good }],
      ["/feed/orders?wait=0", 200, { headers: { ...good, ...JSON_ONLY } }],
      ["/weblistener.js", 200, {}],
      ["/swagger/json", 200, {}],
    ] as const) {
      const answer = await ask(pere.url + path, {
        ...init,
        headers: { ...("headers" in init ? init.headers : {}), Origin: SHOP },
      });
      const { headers } = answer;
      expect([
        path,
        answer.status,
        headers.get("access-control-allow-origin"),
        headers.get("vary"),
        headers.has(CREDENTIALS),
      ]).toEqual([path, status, SHOP, "Origin", false]);
      expect(headers.get("access-control-expose-headers")).toContain("WWW-Authenticate");
    }
    const stream = await listen(`${pere.url}/feed/orders`, { ...good, Origin: SHOP });
    const { headers } = stream.response;
    expect([headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([SHOP, "Origin"]);
    stream.close();
    expect(await handshake(pere.url, "/feed/orders", { ...good, Origin: SHOP })).toBe(101);
  });

  test("is told apart by caches, also where no page asked", async () => {
    const pere = await start({ origins: [SHOP] });
    const { headers } = await ask(`${pere.url}/weblistener.html`);
    expect([headers.get("vary"), headers.has("access-control-allow-origin")]).toEqual(["Origin", false]);
  });

  test("is any page with *, which brings no cookies along", async () => {
    const pere = await start({ origins: "*" });
    const { status, headers } = await ask(`${pere.url}/channels`, {
      headers: { Origin: "https://any.example", ...bearer(GOOD) },
    });
    expect([status, headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([200, "*", null]);
    expect(headers.has(CREDENTIALS)).toBe(false);
    expect(await handshake(pere.url, "/feed/orders", { Origin: "https://any.example", ...bearer(GOOD) })).toBe(101);
  });
});

describe("a page of a stranger", () => {
  test("gets nothing and does nothing, by any method and on any wire, though it has a token", async () => {
    const pere = await start({ origins: [SHOP] });
    const good = bearer(GOOD);
    const evil = [
      "https://evil.example",
      "null",
      "http://shop.example",
      "https://shop.example:444",
      "https://shop.example.evil.example",
      "https://evilshop.example",
      "https://SHOP.example",
      "https://shop.example/",
      "https://shop.example, https://evil.example",
      `${pere.url}0`,
      "http://127.0.0.1",
    ];
    for (const Origin of evil) {
      const headers = { ...good, Origin };
      for (const [path, init] of [
        ["/feed/orders", {}],
        ["/channels", {}],
        ["/health", {}],
        ["/weblistener.js", {}],
        ["/swagger/json", {}],
        ["/nothing", {}],
        [`/?token=${GOOD}`, {}],
        ["/push/orders", { body: 1 }],
        ["/devices/orders/d", { method: "PUT" }],
        ["/devices/orders/d", { method: "DELETE" }],
        ["/push/orders", { method: "OPTIONS", headers: { "Access-Control-Request-Method": "POST" } }],
      ] as const) {
        const more = "headers" in init ? init.headers : {};
        const answer = await ask(pere.url + path, { ...init, headers: { ...headers, ...more } });
        expect(`${Origin} ${path} ${answer.status}`).toBe(`${Origin} ${path} 403`);
        expect([answer.headers.get("access-control-allow-origin"), answer.headers.get("set-cookie")]).toEqual([
          null,
          null,
        ]);
        expect(answer.text).not.toContain(Origin);
      }
      expect(await handshake(pere.url, "/feed/orders", headers)).toBe(403);
    }
    expect((await ask(`${pere.url}/channels`, { headers: good })).body.channels).toEqual([]);
  });

  test("is one without an origin, also where every page may", async () => {
    const pere = await start({ origins: "*" });
    const headers = { ...bearer(GOOD), Origin: "null" };
    const { status, headers: said } = await ask(`${pere.url}/channels`, { headers });
    expect([status, said.has("access-control-allow-origin")]).toEqual([403, false]);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(403);
  });

  test("makes no device on an open service with an image or a link", async () => {
    const pere = await start({ access: "open" });
    const path = "/feed/orders?device=evil&wait=0";
    for (const site of ["cross-site", "same-site"])
      for (const mode of ["no-cors", "navigate"]) {
        const headers = { ...JSON_ONLY, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode };
        expect(`${site} ${mode} ${(await ask(pere.url + path, { headers })).status}`).toBe(`${site} ${mode} 403`);
        expect((await ask(`${pere.url}/channels`, { headers })).status).toBe(403);
        // It may lead to the pages.
        expect((await ask(`${pere.url}/weblistener.html`, { headers })).status).toBe(200);
      }
    expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
    for (const site of ["none", "same-origin"]) {
      const headers = { ...JSON_ONLY, "Sec-Fetch-Site": site };
      expect((await ask(pere.url + path, { headers })).status).toBe(200);
    }
  });
});

test("its own pages may call it, also behind a proxy with TLS, where the scheme is another", async () => {
  const pere = await start();
  for (const [Host, Origin] of [
    [new URL(pere.url).host, pere.url],
    ["shop.example", SHOP],
    ["shop.example:8443", "https://shop.example:8443"],
  ] as const) {
    const headers = { Host, Origin, ...bearer(GOOD) };
    const answer = await ask(`${pere.url}/push/orders`, { body: 1, headers });
    expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([201, null]);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(101);
  }
  expect(await handshake(pere.url, "/feed/orders", { Host: "shop.example", Origin: "https://evil.example" })).toBe(403);
});

// ------------------------------------------------------------------------------------------------------------------ its names

describe("Host", () => {
  const get = (url: string, host: string | null, path = "/health", version = "1.1"): Promise<number> =>
    raw(url, `GET ${path} HTTP/${version}\r\n${host === null ? "" : `Host: ${host}\r\n`}\r\n`).then(statusOf);

  test("must be a name or an address, perhaps with a port, before anything else is looked at", async () => {
    const pere = await start({ origins: [SHOP] });
    for (const host of [
      "shop.example",
      "SHOP.example:80",
      "127.0.0.1:4567",
      "[::1]",
      "[::1]:4567",
      "a",
      "a_b",
      "xn--bcher-kva.example",
    ])
      expect(`${host} ${await get(pere.url, host)}`).toBe(`${host} 200`);
    for (const host of [
      "",
      "shop.example/",
      "a/b",
      "a b",
      "a,b",
      "user@a",
      "a:b",
      "a:",
      "a:123456",
      "[::1",
      "::1",
      "[x]",
      "a?b",
      "a#b",
      "-a",
      "a\\b",
      "ü",
      "é.example",
      "a".repeat(300),
    ])
      for (const path of ["/health", "/weblistener.js", "/swagger/json", "/", "/nothing"])
        expect(`${host} ${path} ${await get(pere.url, host, path)}`).toBe(`${host} ${path} 400`);
    expect(await get(pere.url, null)).toBe(400);
    expect(await get(pere.url, null, "/health", "1.0")).toBe(400);
    expect(await get(pere.url, "a\r\nHost: b")).toBe(400);
    // Not even a question beforehand.
    const preflight = `OPTIONS /push/a HTTP/1.1\r\nHost: a/b\r\nOrigin: ${SHOP}\r\nAccess-Control-Request-Method: POST\r\n\r\n`;
    expect(statusOf(await raw(pere.url, preflight))).toBe(400);
  });

  test("that is short moves no path: what is routed is what was asked for", async () => {
    const pere = await start({ access: "open" });
    const tokens = await start();
    for (const host of ["x", "ab", "a.b"]) {
      expect(await get(tokens.url, host, "/ab/channels")).toBe(404);
      expect(await get(tokens.url, host, "/ab/health")).toBe(404);
      expect(await get(tokens.url, host, "/ab/admin/z")).toBe(404);
      expect(await get(tokens.url, host, "/health")).toBe(200);
      expect(await get(tokens.url, host, "/channels")).toBe(401);
      expect(await get(pere.url, host, "/ab/health")).toBe(403);
      expect(await get(pere.url, host, "/health")).toBe(403);
    }
    expect(await get(tokens.url, "a", "//channels")).toBe(404);
    expect(await get(tokens.url, "a", "/%2fchannels")).toBe(404);
  });

  test("on an open service is its own machine's or that of an origin that was named: a name that a stranger points here is his", async () => {
    const pere = await start({ access: "open", origins: ["https://pere.example", "http://other.example:8080"] });
    for (const host of [
      "127.0.0.1",
      "127.1.2.3:80",
      "localhost:4567",
      "LOCALHOST",
      "localhost.",
      "pere.localhost",
      "[::1]:1",
      "pere.example",
      "PERE.example",
      "other.example:8080",
    ])
      expect(`${host} ${await get(pere.url, host)}`).toBe(`${host} 200`);
    for (const host of [
      "evil.example",
      "127.0.0.1.evil.example",
      "localhost.evil.example",
      "evillocalhost",
      "0.0.0.0",
      "10.0.0.1",
      "[::]",
      "[::ffff:127.0.0.1]",
      "other.example",
      "127.0.0.1.nip.io",
      "2130706433",
    ])
      for (const path of ["/health", "/weblistener.js", "/swagger/json", "/feed/orders"])
        expect(`${host} ${path} ${await get(pere.url, host, path)}`).toBe(`${host} ${path} 403`);
    // To itself it would be a page of its own.
    const rebound = { Host: "evil.example", Origin: "http://evil.example" };
    expect(await handshake(pere.url, "/feed/orders", rebound)).toBe(403);
    expect((await ask(`${pere.url}/push/orders`, { body: 1, headers: rebound })).status).toBe(403);
  });

  test("in a browser on ::1 is in brackets", async () => {
    const pere = await start({ host: "::1", access: "open" });
    expect(pere.url).toStartWith("http://[::1]:");
    expect((await ask(`${pere.url}/channels`)).status).toBe(200);
  });
});

// ---------------------------------------------------------------------------------------------------------- a secret of its own

const ALL = { push: ["*"], feed: ["*"] };

/** Comes in by a link as a browser does, and gives the cookie's name and value, and its attributes. */
async function enter(
  url: string,
  link: string,
  headers: Record<string, string> = {},
): Promise<{ cookie: string; attributes: string[] }> {
  const answer = await ask(url + link, { headers });
  expect([answer.status, answer.headers.get("location"), answer.headers.get("referrer-policy")]).toEqual([
    303,
    "/",
    "no-referrer",
  ]);
  expect(answer.headers.get("cache-control")).toBe("no-store");
  const [cookie, ...attributes] = answer.headers.get("set-cookie")!.split("; ");
  return { cookie: cookie!, attributes };
}

describe("a secret of its own", () => {
  const own = (settings: Partial<Settings> = {}, options: EngineOptions = {}): Promise<Service> =>
    start({ access: "own", ...settings }, options);

  test("is kept beside the data, for its owner alone, and is the same after a restart", async () => {
    const db = join(temporary(), "pere.db");
    const first = await own({ db });
    const link = (await first.link())!;
    const path = `${db}.secret`;
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const secret = await Bun.file(path).text();
    expect(secret).toMatch(/^[\w-]{43}\n$/);
    await first.stop();
    chmodSync(path, 0o644);
    const second = await own({ db });
    expect(await Bun.file(path).text()).toBe(secret);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const { cookie } = await enter(second.url, link);
    expect((await ask(`${second.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
  });

  test("that is no secret any more stops the start", async () => {
    const db = join(temporary(), "pere.db");
    for (const text of ["", "short\n"]) {
      writeFileSync(`${db}.secret`, text);
      const refused = own({ db }).catch((error: Error) => error.message);
      expect(await refused).toContain(`${db}.secret can't be used`);
    }
  });

  test("in memory lasts as long as the process", async () => {
    const [one, other] = [await own(), await own()];
    const { cookie } = await enter(one.url, (await one.link())!);
    expect((await ask(`${one.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
    expect((await ask(`${other.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(401);
    expect(await Bun.file(":memory:.secret").exists()).toBe(false);
  });

  test("makes a link that leaves a cookie which no script and no other site gets, and that opens everything", async () => {
    const time = Date.UTC(2040, 0, 1);
    const pere = await own({}, { now: () => time });
    const link = (await pere.link())!;
    const { cookie, attributes } = await enter(pere.url, link);
    expect(attributes).toEqual(["Path=/", "HttpOnly", "SameSite=Strict", `Max-Age=${30 * DAY_SECONDS}`]);
    expect((await enter(pere.url, link, { "X-Forwarded-Proto": "https" })).attributes).toContain("Secure");
    expect(link).toEndWith(cookie.slice("pere_token=".length));
    const headers = { Cookie: cookie };
    expect((await ask(`${pere.url}/push/anything`, { body: 1, headers })).status).toBe(201);
    const stream = await listen(`${pere.url}/feed/anything`, headers);
    expect((await stream.own("ready")).device).toBe("console");
    stream.close();
    expect(await handshake(pere.url, "/feed/anything", { ...headers, Origin: pere.url })).toBe(101);
    expect((await ask(`${pere.url}/channels`)).status).toBe(401);
  });

  test("takes no link that it did not make", async () => {
    const pere = await own();
    for (const text of ["", "x", GOOD, await token(ALL)]) {
      const { status, headers } = await ask(`${pere.url}/?token=${text}`);
      expect([status, headers.has("set-cookie")]).toEqual([401, false]);
    }
    // Without one there is nothing to take.
    const { status, headers } = await ask(pere.url);
    expect([status, headers.has("set-cookie")]).toEqual([200, false]);
  });

  test("is made beyond loopback by a process, which prints the link, and tokens can be made with it", async () => {
    const db = join(temporary(), "pere.db");
    const pere = await run({ PERE_DB: db }, ["-o", "0.0.0.0"]);
    const links = [...pere.texts.stdout.matchAll(/http:\/\/127\.0\.0\.1:\d+(\/\?token=\S+)/g)];
    expect(links).toHaveLength(1);
    expect(links[0]![0]).toStartWith(`${pere.url}/`);
    expect(pere.texts.stdout).toStartWith("PERE listening on http://0.0.0.0:");
    const { cookie } = await enter(pere.url, links[0]![1]!);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie: cookie } })).status).toBe(200);
    expect((await ask(`${pere.url}/channels`)).status).toBe(401);
    const minted = await run({ PERE_DB: db }, ["token", "--sub", "till-7", "--push", "orders"]);
    expect(
      (await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(minted.texts.stdout.trim()) })).status,
    ).toBe(201);
    expect(await pere.end("SIGTERM")).toBe(0);
  }, 30_000);

  test.skipIf(noRedis !== null)(
    `is one for all instances on a Redis${noRedis === null ? "" : ` (skipped: ${noRedis})`}`,
    async () => {
      const redis = await startRedis();
      closing.push(() => redis.end());
      const [one, other] = await Promise.all([own({ redis: [redis.url] }), own({ redis: [redis.url] })]);
      const { cookie } = await enter(one.url, (await one.link())!);
      const headers = { Cookie: cookie };
      expect((await ask(`${other.url}/push/orders`, { body: 1, headers })).status).toBe(201);
      expect(
        (
          await ask(`${one.url}/events/orders`, {
            headers: { Cookie: (await enter(other.url, (await other.link())!)).cookie },
          })
        ).body.events,
      ).toHaveLength(1);
      await one.stop();
      const later = await own({ redis: [redis.url] });
      expect((await ask(`${later.url}/channels`, { headers })).status).toBe(200);
    },
  );
});

test("PERE_OPEN=1 is open beyond loopback, under any name; there is no link", async () => {
  const { url, texts, end } = await run({ PERE_DB: ":memory:", PERE_OPEN: "1" }, ["-o", "0.0.0.0"]);
  expect((await ask(`${url}/push/orders`, { body: 1 })).status).toBe(201);
  expect((await ask(`${url}/channels`, { headers: { Host: "pere.example" } })).status).toBe(200);
  expect(texts.stdout).not.toContain("token");
  // Pages of strangers are none of everybody.
  expect((await ask(`${url}/channels`, { headers: { Origin: "https://evil.example" } })).status).toBe(403);
  expect(await end("SIGTERM")).toBe(0);
}, 30_000);

// ------------------------------------------------------------------------------------------------------------------- pages

test("pages load from here alone, run no script of their own, are framed by nobody, and are taken for nothing else", async () => {
  const pere = await start();
  for (const path of ["/weblistener.html", "/swagger", "/swagger/", "/"]) {
    const { headers, text } = await ask(pere.url + path);
    const policy = headers.get("content-security-policy")!;
    expect(policy).toContain("default-src 'none'; script-src 'self';");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    expect([headers.get("x-content-type-options"), headers.get("referrer-policy")]).toEqual(["nosniff", "no-referrer"]);
    for (const [tag] of text.matchAll(/<script[^>]*>[^<]*/g)) expect(tag).toMatch(/ src="[^"]+"[^>]*>\s*$/);
  }
  for (const path of [
    "/weblistener.js",
    "/weblistener.css",
    "/icon.svg",
    "/swagger.js",
    "/swagger/ui.js",
    "/health",
    "/nothing",
  ])
    expect((await ask(pere.url + path)).headers.get("x-content-type-options"), path).toBe("nosniff");
});

// ---------------------------------------------------------------------------------------------------------------- making tokens

describe("the token command", () => {
  const db = "/nowhere/pere.db";

  test("makes a token that the service with the same secret takes, to the letter of what was said", async () => {
    const path = join(temporary(), "secret");
    writeFileSync(path, `${SECRET}\n`);
    const environment = {
      PERE_JWT_SECRET_FILE: path,
      PERE_JWT_AUDIENCE: "shops",
      PERE_JWT_ISSUER: "head-office",
      PERE_DB: db,
    };
    const made = await run(environment, [
      "token",
      "--push",
      "orders,shop.*",
      "--feed",
      "orders",
      "--sub",
      "till-7",
      "--days",
      "30",
    ]);
    expect([await made.code(), made.texts.stderr]).toEqual([0, ""]);
    expect(made.texts.stdout).toMatch(/^[\w-]+\.[\w-]+\.[\w-]+\n$/);
    const text = made.texts.stdout.trim();
    const claims = JSON.parse(Buffer.from(text.split(".")[1]!, "base64url").toString()) as Record<string, number>;
    expect(claims).toMatchObject({
      sub: "till-7",
      aud: "shops",
      iss: "head-office",
      pere: { push: ["orders", "shop.*"], feed: ["orders"] },
    });
    expect(claims.exp! - claims.iat!).toBe(30 * DAY_SECONDS);

    const pere = await start({ access: readSettings([], environment).access });
    for (const [channel, status] of [
      ["orders", 201],
      ["shop.1", 201],
      ["shop", 403],
    ] as const)
      expect((await ask(`${pere.url}/push/${channel}`, { body: 1, headers: bearer(text) })).status).toBe(status);
    const stream = await listen(`${pere.url}/feed/orders`, bearer(text));
    expect((await stream.own("ready")).device).toBe("till-7");
    stream.close();
    // Without them it is a token of another house.
    expect((await ask(`${pere.url}/push/orders`, { body: 1, headers: bearer(GOOD) })).status).toBe(401);
  }, 30_000);

  test.each([
    [[], {}, "PERE_JWT_SECRET"],
    [[], { PERE_JWKS: "/nowhere" }, "PERE_JWT_SECRET"],
    [[], { PERE_JWT_SECRET: "short" }, "at least 32 bytes"],
    [["--sub", "a b"], { PERE_JWT_SECRET: SECRET }, "--sub"],
    [["--days", "0"], { PERE_JWT_SECRET: SECRET }, "--days"],
    [["--push", "or*ders"], { PERE_JWT_SECRET: SECRET }, "or*ders"],
    [["--until", "friday"], { PERE_JWT_SECRET: SECRET }, "--until"],
  ] as const)("says in one line why it makes none: %j %j", async (args, env, words) => {
    const usual = args[0] === "--sub" ? [] : ["--sub", "till-7"];
    const { texts, code } = await run({ PERE_DB: db, ...env }, ["token", "--feed", "orders", ...usual, ...args]);
    expect([await code(), texts.stdout]).toEqual([1, ""]);
    expect(texts.stderr).toMatch(/^PERE can't make a token: [^\n]+\n$/);
    expect(texts.stderr).toContain(words);
    expect(texts.stderr).not.toContain(SECRET);
  });
});

// ------------------------------------------------------------------------------------------------------------------ settings

describe("settings of the door are read together", () => {
  const whoMay = (env: Record<string, string>, argv: readonly string[] = []): Settings["access"] =>
    readSettings(argv, env).access;

  test("open on loopback, a secret of its own beyond, and keys wherever there are some", () => {
    for (const host of ["127.0.0.1", "127.9.9.9", "localhost", "::1"]) expect(whoMay({ HOST: host })).toBe("open");
    for (const host of ["0.0.0.0", "::", "10.0.0.1", "pere.example", "127.0.0.1.evil.example", "::ffff:127.0.0.1"]) {
      expect(whoMay({ HOST: host })).toBe("own");
      expect(whoMay({}, ["--host", host])).toBe("own");
      expect(whoMay({ HOST: host, PERE_OPEN: "1" })).toBe("open");
      expect(whoMay({ HOST: host, PERE_JWT_SECRET: SECRET })).toEqual({ secret: SECRET });
    }
    expect(whoMay({ PERE_JWT_SECRET: SECRET })).toEqual({ secret: SECRET });
    expect(whoMay({ PERE_JWKS: "keys.json", PERE_JWT_AUDIENCE: "a" })).toEqual({ jwks: "keys.json", audience: "a" });
  });

  test("a secret may stand in a file, with a line's end behind it", () => {
    const path = join(temporary(), "secret");
    for (const end of ["", "\n", "\r\n"]) {
      writeFileSync(path, SECRET + end);
      expect(whoMay({ PERE_JWT_SECRET_FILE: path })).toEqual({ secret: SECRET });
    }
    writeFileSync(path, "redis://:geheim@127.0.0.1\n");
    expect(readSettings([], { REDIS_URL_FILE: path }).redis).toEqual(["redis://:geheim@127.0.0.1"]);
  });

  test("what can't be meant stops the start", () => {
    const empty = join(temporary(), "empty");
    writeFileSync(empty, "\n");
    for (const [env, words] of [
      [{ PERE_JWT_SECRET_FILE: empty }, "PERE_JWT_SECRET_FILE is an empty file"],
      [{ REDIS_URL_FILE: empty }, "REDIS_URL_FILE is an empty file"],
      [{ PERE_JWT_SECRET_FILE: empty, PERE_JWT_SECRET: SECRET }, "both set"],
      [{ REDIS_URL_FILE: empty, REDIS_URL: "redis://a" }, "both set"],
      [{ PERE_JWT_AUDIENCE: "a" }, "PERE_JWT_AUDIENCE is set, but"],
      [{ PERE_JWT_ISSUER: "a", HOST: "0.0.0.0" }, "PERE_JWT_ISSUER is set, but"],
      [{ PERE_OPEN: "1", PERE_JWKS: "keys.json" }, "PERE_OPEN=1"],
      [{ PERE_ORIGINS: "*, https://a.example" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "https://user@a.example" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "https://a.example:443" }, "PERE_ORIGINS"],
      [{ PERE_ORIGINS: "file://" }, "PERE_ORIGINS"],
    ] as const)
      expect(() => readSettings([], env as Record<string, string>)).toThrow(words);
  });

  test("a key that is none stops the start before anything is opened", async () => {
    const db = join(temporary(), "pere.db");
    for (const access of [{ secret: "short" }, { jwks: "/nowhere/keys.json" }]) {
      const refused = await start({ db, access }).catch((error: Error) => error.message);
      expect(refused).toMatch(/^PERE_(JWT_SECRET|JWKS)/);
    }
    expect(await Bun.file(db).exists()).toBe(false);
  });

  test("a name that means nothing is named, and nothing else of it", async () => {
    expect(readSettings([], { PERE_JWT_SECERT: "x", PERE_OPEN: "0", PATH: "/" }).unknown).toEqual(["PERE_JWT_SECERT"]);
    const { texts, end } = await run({ PERE_DB: ":memory:", PERE_JWT_SECERT: SECRET });
    await until(() => texts.stderr.includes("PERE_JWT_SECERT"), "the name");
    expect(texts.stderr).not.toContain(SECRET);
    expect(await end("SIGTERM")).toBe(0);
  });
});

describe("a caller who does too much", () => {
  const rates = { push: 3, receipt: 3, feed: 2 };
  const at = (url: string, path: string, grant: string, init: Parameters<typeof ask>[1] = {}) =>
    ask(`${url}${path}`, { ...init, headers: { ...bearer(grant), ...init.headers } });

  test("pushes no more for a while, lines of batches counted each; others go on", async () => {
    const { url } = await start({ rates });
    const other = await token({ sub: "other", push: ["orders"] });
    const two = await at(url, "/push/orders", GOOD, { body: "1\n2\n", type: "application/x-ndjson" });
    expect(two.status).toBe(201);
    expect((await at(url, "/push/orders", GOOD, { body: 3 })).status).toBe(201);
    const refused = await at(url, "/push/orders", GOOD, { body: 4 });
    expect(refused.status).toBe(429);
    expect(refused.body).toMatchObject({ type: "urn:pere:tooMany", status: 429 });
    const seconds = Number(refused.headers.get("retry-after"));
    expect(seconds).toBeGreaterThan(0);
    expect(refused.headers.get("ratelimit")).toBe(`"push";r=0;t=${seconds}`);
    expect(refused.headers.get("ratelimit-policy")).toBe('"push";q=3;w=60');
    expect((await at(url, "/push/orders", other, { body: 5 })).status).toBe(201);
    expect((await at(url, "/events/orders", GOOD)).body.events).toHaveLength(4);
  });

  test("gives no more receipts, by HTTP and by WebSocket, and nothing of them is stored", async () => {
    const { url } = await start({ rates });
    const event = (await at(url, "/push/orders?to=till-7", GOOD, { body: 1 })).body.id as string;
    const words = ["received", "working", "received"].map((status) => ({ event, status }));
    expect((await at(url, "/feedback/orders", GOOD, { body: words })).status).toBe(200);
    const refused = await at(url, "/feedback/orders", GOOD, { body: { event, status: "done" } });
    expect(refused.status).toBe(429);
    expect(refused.headers.get("ratelimit-policy")).toBe('"receipt";q=3;w=60');
    const socket = await connect(`${url}/feed/orders?token=${GOOD}`);
    closing.push(() => socket.socket.close());
    socket.socket.send(JSON.stringify({ event, status: "done" }));
    const said = await until(() => socket.messages.find(({ pere }) => pere === "error"), "the refusal");
    expect(said.detail).toContain("more than 3 receipts");
    expect((await at(url, `/events/orders/${event}`, GOOD)).body.receipts).toMatchObject({ working: 1, done: 0 });
  });

  test("opens no more feeds: a stream and a socket are told to come back, a poll gets 429", async () => {
    const { url } = await start({ rates });
    for (let n = 0; n < 2; n++)
      expect((await at(url, "/feed/orders?wait=0", GOOD, { headers: JSON_ONLY })).status).toBe(200);
    expect((await at(url, "/feed/orders?wait=0", GOOD, { headers: JSON_ONLY })).status).toBe(429);
    const stream = await fetch(`${url}/feed/orders`, { headers: bearer(GOOD) });
    expect(stream.status).toBe(200);
    expect(await stream.text()).toContain('event: pere.bye\ndata: {"reason":"busy"}\n\n');
    const socket = await connect(`${url}/feed/orders?token=${GOOD}`);
    expect((await socket.closed).code).toBe(1013);
  });

  test("has only so many feeds open at once; who closes one may open another", async () => {
    const { url, engine } = await start({}, { limits: { feedsACaller: 1 } });
    const first = await listen(`${url}/feed/orders?token=${GOOD}`);
    const stream = await fetch(`${url}/feed/orders`, { headers: bearer(GOOD) });
    expect(await stream.text()).toContain('{"reason":"busy"}');
    const other = await listen(`${url}/feed/orders?token=${await token({ sub: "other", feed: ["orders"] })}`);
    closing.push(() => other.close());
    await until(() => engine.held.live === 2, "both to be there");
    first.close();
    await until(() => engine.held.live === 1, "its end");
    const again = await listen(`${url}/feed/orders?token=${GOOD}`);
    closing.push(() => again.close());
    await until(() => engine.held.live === 2, "it to be back");
  });

  test("is told apart by his address where there are no tokens, and a stranger's word on that is not believed", async () => {
    const { url } = await start({ access: "open", rates, proxies: readAllowed("10.0.0.0/8") });
    const from = (address: string) => ask(`${url}/push/orders`, { body: 1, headers: { "X-Forwarded-For": address } });
    for (const address of ["192.0.2.1", "192.0.2.2", "192.0.2.3"]) expect((await from(address)).status).toBe(201);
    expect((await from("192.0.2.4")).status).toBe(429);
    const behind = await start({ access: "open", rates, proxies: readAllowed("127.0.0.0/8") });
    const through = (address: string) =>
      ask(`${behind.url}/push/orders`, { body: 1, headers: { "X-Forwarded-For": address } });
    for (let n = 0; n < 3; n++) expect((await through("192.0.2.1")).status).toBe(201);
    expect((await through("192.0.2.1")).status).toBe(429);
    expect((await through("192.0.2.2")).status).toBe(201);
  });
});
