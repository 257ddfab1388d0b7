/**
 * Options in the query: which there are on each route, that any other is refused with a sentence instead of being ignored, and what an
 * `Idempotency-Key` makes of them.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import type { Service } from "../index.ts";
import { ask, connect, listen, openStream, push, SECRET, start, startOn, startWith } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let pere: Service;
let event: string;
beforeAll(async () => {
  pere = await start();
  event = await push(pere.url, "orders", 1);
});
afterAll(() => pere.stop());

const POLL = { Accept: "application/json" };

describe("an unknown query option", () => {
  test.each([
    ["GET", "/feed/orders?devise=d1"],
    ["GET", "/feed/orders?Device=d1"],
    ["GET", "/feed/orders?type=a"],
    ["GET", "/feedback/orders?device=d1"],
    ["GET", "/feedback/orders?status=done"],
    ["POST", "/push/orders?tll=5"],
    ["POST", "/feedback/orders?id=1"],
    ["GET", "/watch?channels=orders"],
    ["GET", "/attention?after=o"],
    ["GET", "/channels?prefix=o"],
    ["GET", "/events/orders?complete=false"],
    ["GET", "/events/orders/:id?receipts=1"],
    ["GET", "/events/orders/:id/receipts?state=done"],
    ["GET", "/devices/orders?online=true"],
    ["GET", "/devices/orders/d1?limit=1"],
    ["GET", "/devices/orders/d1/receipts?status=done"],
    ["DELETE", "/channels/orders?force=1"],
    ["PUT", "/devices/orders/d1?tags=x"],
    ["DELETE", "/devices/orders/d1?force=1"],
    ["GET", "/hooks/orders?limit=1"],
    ["PUT", "/hooks/orders/h?url=x"],
    ["DELETE", "/hooks/orders/h?all=1"],
    ["POST", "/hooks/orders/h/retry?id=1"],
    ["POST", "/hooks/orders/h/test?on=receipt"],
    ["GET", "/metrics?channel=orders"],
    ["GET", "/feed/orders?"],
  ])("%s %s", async (method, path) => {
    const name = /\?(\w+)/.exec(path)?.[1];
    const isRead = method === "GET" || method === "DELETE";
    const url = `${pere.url}${path.replace(":id", event)}`;
    const answer = await ask(url, { method, headers: POLL, ...(isRead ? {} : { body: "1" }) });
    expect(answer.status).toBe(name === undefined ? 200 : 400);
    if (name === undefined) return;
    expect(answer.body.detail).toStartWith(`${name}: unknown option`);
    expect(answer.body.errors).toEqual([{ path: name, message: expect.any(String) }]);
  });

  test("is reported with the known ones, and truncated if it is long", async () => {
    const feed = await ask(`${pere.url}/feed/orders?devise=d1`, { headers: POLL });
    expect(feed.body.detail).toContain("device, since, last-event-id, lastEventId, wait");
    const long = await ask(`${pere.url}/channels?${"x".repeat(3_000)}=1`);
    expect(long.status).toBe(400);
    expect(long.text.length).toBeLessThan(500);
  });

  test("is refused on an event stream and in a WebSocket's handshake", async () => {
    const stream = await openStream(`${pere.url}/feed/orders?devise=d1`);
    expect(stream.response.status).toBe(400);
    stream.close();
    const { socket, messages } = await connect(`${pere.url}/feed/orders?devise=d1`);
    expect(messages).toEqual([]);
    expect(socket.readyState).toBe(WebSocket.CLOSED);
  });

  test("is ignored by probes, pages and documents, and a token is allowed everywhere", async () => {
    for (const path of ["/", "/health", "/ready", "/weblistener.html", "/swagger", "/swagger/json", "/asyncapi.json"])
      expect((await ask(`${pere.url}${path}?probe=1&v=2`)).status, path).toBe(200);
    for (const path of ["/attention", "/channels", "/events/orders", "/devices/orders", "/hooks/orders", "/metrics"])
      expect((await ask(`${pere.url}${path}?token=x`)).status, path).toBe(200);
  });
});

describe("lastEventId, as polyfills of EventSource send it,", () => {
  const second = () => push(pere.url, "resumed", 2);

  test("is accepted as last-event-id, on each transport and on both feeds", async () => {
    const first = await push(pere.url, "resumed", 1);
    const next = await second();
    const polled = await ask(`${pere.url}/feed/resumed?lastEventId=${first}`, { headers: POLL });
    expect(polled.body.events).toMatchObject([{ id: next }]);
    const stream = await listen(`${pere.url}/feed/resumed?lastEventId=${first}`);
    expect((await stream.have(1))[0]!.id).toBe(next);
    stream.close();
    const { socket, messages } = await connect(`${pere.url}/feed/resumed?lastEventId=${first}`);
    expect(messages[0]).toMatchObject({ pere: "ready", channels: { resumed: first } });
    socket.close();
    const receipts = await ask(`${pere.url}/feedback/resumed?lastEventId=${next}`, { headers: POLL });
    expect(receipts.body.gaps).toHaveLength(1);
  });

  test("wins over last-event-id, which the page started with, and the header wins over both", async () => {
    const first = await second();
    const both = await ask(`${pere.url}/feed/resumed?lastEventId=${first}&last-event-id=0-1`, { headers: POLL });
    expect(both.body).toEqual({ events: [], last: first });
    const headed = await ask(`${pere.url}/feed/resumed?lastEventId=0-1`, {
      headers: { ...POLL, "Last-Event-ID": first },
    });
    expect(headed.body).toEqual({ events: [], last: first });
  });
});

test("an event type that EventSource fires itself is refused; a similar one is not", async () => {
  for (const type of ["error", "open", "message"]) {
    for (const [body, as] of [
      ["1", "application/json"],
      ["1\n2", "application/x-ndjson"],
    ] as const) {
      const refused = await ask(`${pere.url}/push/typed?type=${type}`, { body, type: as });
      expect(`${type} ${refused.status}`).toBe(`${type} 422`);
      expect(refused.body.detail).toContain(`"${type}" is a reserved name of EventSource`);
    }
  }
  for (const type of ["Error", "order.error", "messages", "opened", "close"])
    expect((await ask(`${pere.url}/push/typed?type=${type}`, { body: "1" })).status).toBe(201);
});

// ------------------------------------------------------------------------------------------------------- an Idempotency-Key

let redis: RedisServer;
beforeAll(async () => {
  if (noRedis === null) redis = await startRedis();
});
afterAll(() => redis?.end());

for (const [store, open] of [
  ["SQLite", () => start()],
  ["Redis", () => startOn(redis.url)],
] as const)
  describe.skipIf(store === "Redis" && noRedis !== null)(`an Idempotency-Key, on ${store},`, () => {
    let kept: Service;
    beforeAll(async () => {
      kept = await open();
    });
    afterAll(() => kept.stop());
    const keyed = (channel: string, query = "", headers: Record<string, string> = {}) =>
      ask(`${kept.url}/push/${channel}${query}`, { body: "1", headers: { "Idempotency-Key": "k", ...headers } });

    test("covers every option: with another one the answer is 422, and nothing is stored", async () => {
      const options = ["?to=a", "?type=a", "?ttl=60", "?deadline=60", "?remind=60"];
      for (const [index, query] of ["", ...options].entries()) {
        const channel = `covers-${index}`;
        expect((await keyed(channel, query)).status).toBe(201);
        for (const other of ["", ...options, query.replace(/a$|60$/, "61")].filter((one) => one !== query)) {
          const answer = await keyed(channel, other);
          expect(`${query} then ${other}: ${answer.status}`).toBe(`${query} then ${other}: 422`);
          expect(answer.body.detail).toContain("another body or other options");
        }
        const again = await keyed(channel, query);
        expect(again.status).toBe(200);
        expect(again.headers.get("idempotent-replayed")).toBe("true");
        expect((await ask(`${kept.url}/events/${channel}`)).body.events).toHaveLength(1);
      }
    });

    test("treats options as equal in any order and any spelling", async () => {
      const first = await keyed("spelled", "?type=a.b&ttl=60&to=x,y");
      for (const query of [
        "?to=x,y&ttl=60&type=a.b",
        "?ttl=60.0&to=x%2Cy&type=%61.b",
        "?to=y,x,y&type=a.b&ttl=60",
        "?type=a.b&token=another&ttl=60&to=x,y",
        "?type=a.b&ttl=60&to=x,y&",
      ]) {
        const again = await keyed("spelled", query, { Prefer: "wait=0" });
        expect(`${query} ${again.status} ${again.body.id}`).toBe(`${query} 200 ${first.body.id}`);
      }
    });
  });

describe("an Idempotency-Key belongs to the token's subject", () => {
  test.each(noRedis === null ? ["SQLite", "Redis"] : ["SQLite"])("on %s", async (store) => {
    const guarded = await startWith(store === "Redis" ? { redis: [redis.url] } : {});
    const channel = `subject-${store}`;
    const send = async (sub: string) => {
      const token = await issueToken({ secret: SECRET, now: Date.now }, { sub, push: ["*"], feed: [], days: 1 });
      return ask(`${guarded.url}/push/${channel}`, {
        body: "1",
        headers: { "Idempotency-Key": "1", Authorization: `Bearer ${token}` },
      });
    };
    const [a, b] = [await send("a"), await send("b")];
    expect([a.status, b.status]).toEqual([201, 201]);
    expect(b.body.id).not.toBe(a.body.id);
    // Another token of the same subject, made anew, is the same publisher.
    expect((await send("a")).body.id).toBe(a.body.id);
    expect((await send("b")).body.id).toBe(b.body.id);
    await guarded.stop();
  });
});
