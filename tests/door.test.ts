/**
 * The door, from outside: every route with every kind of token, whom a device can be, and where a token stands. One test an attack or a promise,
 * over real connections.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { EventSource } from "eventsource";
import { SignJWT } from "jose";
import { readRanges } from "../engine/addresses.ts";
import { issueToken } from "../engine/auth/issue.ts";
import {
  bearer,
  closeAll,
  closing,
  GOOD,
  handshake,
  JSON_ONLY,
  run,
  start,
  statusFor,
  token,
} from "./support/callers.ts";
import { type Answer, ask, connect, listen, SECRET, temporary, until } from "./support/harness.ts";

afterEach(closeAll);

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
  ["POST", "/events/orders/ID/again", "push", 422],
  ["DELETE", "/events/orders/ID", "push", 200],
  ["GET", "/devices/orders", "push", 200],
  ["PUT", "/devices/orders/d", "push", 201],
  ["GET", "/devices/orders/d", "push", 200],
  ["GET", "/devices/orders/d/receipts", "push", 200],
  ["PATCH", "/devices/orders/d", "push", 200, { body: '{"tags":{}}', headers: { "Content-Type": "application/json" } }],
  ["DELETE", "/devices/orders/d", "push", 204],
  ["DELETE", "/channels/orders", "push", 409],
  ["GET", "/scheduled/orders", "push", 200],
  ["GET", "/scheduled/orders/ID", "push", 404],
  ["DELETE", "/scheduled/orders/ID", "push", 404],
  ["GET", "/hooks/orders", "push", 200],
  [
    "PUT",
    "/hooks/orders/h",
    "push",
    201,
    { body: '{"url":"http://127.0.0.1:9/"}', headers: { "Content-Type": "application/json" } },
  ],
  ["POST", "/hooks/orders/h/retry", "push", 200],
  ["POST", "/hooks/orders/h/test", "push", 200],
  ["DELETE", "/hooks/orders/h", "push", 204],
];

describe("a right", () => {
  test("is required on every route; the other right, another channel's or another key's is not enough", async () => {
    const pere = await start({ hooksAllowed: readRanges("127.0.0.0/8") });
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

  test("is required by every described operation, except the two probes and the three for all channels", async () => {
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
    expect(left.toSorted()).toEqual(["get /attention", "get /channels", "get /health", "get /metrics", "get /ready"]);
  });

  test("is not needed for pages and probes", async () => {
    const pere = await start();
    const pages = ["/", "/weblistener.html", "/weblistener-worker.js", "/swagger"];
    for (const path of [...pages, "/swagger/json", "/asyncapi.json", "/health", "/ready"])
      expect(`${path} ${(await ask(pere.url + path)).status}`).toBe(`${path} 200`);
  });

  test("is needed on each channel of a feed", async () => {
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

  test("push decides which channels are listed, and no page contains another one", async () => {
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

describe("a device is its token's sub", () => {
  test("whatever the query and the header say, on all three transports", async () => {
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

  test("and receipts that name another device are rejected: in JSON, in an array, in the old form, on a socket", async () => {
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
    const reason =
      "device: the receipt names till-8, but the request is from till-7; a device sends only its own receipts";
    expect([old.status, old.body.rejected[0].reason]).toEqual([422, reason]);
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

describe("a publisher's sub may be any text", () => {
  const SUB = "auth0|5f7c 8ä\n";

  test("with which everything works that push allows, and nothing as a device", async () => {
    const pere = await start({ hooksAllowed: readRanges("127.0.0.0/8") });
    const text = await issueToken({ secret: SECRET }, { sub: SUB, push: ["orders"], feed: [], days: 1 });
    const boss = bearer(await token({ push: ["*"], feed: ["*"] }));
    const { id } = (await ask(`${pere.url}/push/orders`, { body: 0, headers: boss })).body;
    for (const [method, path, right, status, init = {}] of ROUTES) {
      const { headers = {}, ...rest } = init as { headers?: Record<string, string> };
      const carried = { ...headers, ...bearer(text), "Idempotency-Key": "1" };
      const where = path.replace("ID", id);
      const found =
        method === "WS"
          ? await handshake(pere.url, where, carried)
          : await statusFor(pere.url, method, where, { ...rest, headers: carried });
      expect(`${method} ${path} ${found}`).toBe(`${method} ${path} ${right === "push" ? status : 403}`);
    }
    for (const path of ["/channels", "/metrics"])
      expect((await ask(pere.url + path, { headers: bearer(text) })).status).toBe(path === "/metrics" ? 403 : 200);
  });

  test("that is not a device's name: with feed it opens no feed and sends no receipt", async () => {
    const pere = await start();
    const text = await new SignJWT({ pere: { push: ["orders"], feed: ["orders"] } })
      .setProtectedHeader({ alg: "HS256" })
      .setSubject(SUB)
      .setExpirationTime("1h")
      .sign(new TextEncoder().encode(SECRET));
    const headers = bearer(text);
    const { status, body } = await ask(`${pere.url}/feed/orders?device=d`, { headers });
    expect([status, body.detail]).toEqual([
      401,
      "token: its sub must be a device's name here, 1 to 128 of A-Z a-z 0-9 . _ : ~ -",
    ]);
    expect(await handshake(pere.url, "/feed/orders", headers)).toBe(401);
    expect((await ask(`${pere.url}/feedback/orders`, { body: [], headers })).status).toBe(401);
    expect((await ask(`${pere.url}/push/orders`, { body: 1, headers })).status).toBe(201);
    expect((await ask(`${pere.url}/feedback/orders?wait=0`, { headers: { ...headers, ...JSON_ONLY } })).status).toBe(
      200,
    );
    expect((await ask(`${pere.url}/devices/orders`, { headers })).body.devices).toEqual([]);
  });
});

describe("a token", () => {
  test("in the query opens a feed for EventSource, for which 401 and 403 are final", async () => {
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

  test("in a cookie opens feeds and sends receipts; an explicit one takes precedence", async () => {
    const pere = await start();
    const Cookie = `a=b; pere_token=${GOOD}`;
    expect(await statusFor(pere.url, "GET", "/feed/orders", { headers: { Cookie } })).toBe(200);
    expect(await handshake(pere.url, "/feed/orders", { Cookie })).toBe(101);
    expect((await ask(`${pere.url}/feedback/orders`, { body: [], headers: { Cookie } })).status).toBe(200);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie: "pere_token=x" } })).status).toBe(401);
    expect((await ask(`${pere.url}/channels`, { headers: { Cookie, ...bearer("x") } })).status).toBe(401);
  });

  test("in a subprotocol is beside pere.v1, which is selected", async () => {
    const pere = await start();
    const { socket, messages } = await connect(`${pere.url}/feed/orders`, ["pere.v1", `pere.token.${GOOD}`]);
    expect([socket.protocol, messages[0]!.device]).toEqual(["pere.v1", "till-7"]);
    socket.close();
    expect(await handshake(pere.url, "/feed/orders", { "Sec-WebSocket-Protocol": `pere.token.${GOOD}` })).toBe(400);
    expect(await handshake(pere.url, "/feed/orders", { "Sec-WebSocket-Protocol": "pere.v1, pere.token.x" })).toBe(401);
  });

  test("must be unique: two different ones are a malformed request", async () => {
    const pere = await start();
    const other = await token({ sub: "till-8", feed: ["orders"] });
    const answer = await ask(`${pere.url}/feed/orders?token=${other}`, { headers: bearer(GOOD) });
    expect([answer.status, answer.body.detail]).toEqual([400, "token: a request may carry one token, in one place"]);
    expect(answer.headers.get("www-authenticate")).toContain('error="invalid_request"');
    expect((await ask(`${pere.url}/feed/orders?token=${GOOD}&token=${other}`)).status).toBe(400);
    const protocols = { "Sec-WebSocket-Protocol": `pere.v1, pere.token.${GOOD}, pere.token.${other}` };
    expect(await handshake(pere.url, "/feed/orders", protocols)).toBe(400);
  });

  test("that is missing, invalid or insufficient is answered with the reason, also in WWW-Authenticate", async () => {
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
      [await token({ secret: SECRET.toUpperCase() }), "its signature is wrong"],
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

  test("is in no line of the log, wherever it was sent and whatever the answer was", async () => {
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
  });
});
