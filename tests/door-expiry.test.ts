/**
 * A feed ends with its token, on every transport, and a socket goes on with a fresh one.
 */
import { afterEach, describe, expect, test } from "bun:test";
import {
  bearer,
  type Claims,
  closeAll,
  DAY_SECONDS,
  GOOD,
  handshake,
  JSON_ONLY,
  start,
  statusFor,
  token,
} from "./support/callers.ts";
import { ask, connect, listen, SECRET, until } from "./support/harness.ts";
import { ownMs } from "./support/own-time.ts";

afterEach(closeAll);

describe("a feed ends with its token", () => {
  /** The wheel turns every 10 ms. */
  const QUICK = { beatMs: 150 };

  test("on all three transports, not before, and does not reopen", async () => {
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

  test("also while events are being sent", async () => {
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
    const over = Promise.all([until(() => stream.ended, "the stream's end"), closed, poll]).then(() => Date.now());
    await until(() => Date.now() >= ends, "the token's end");
    const from = ownMs();
    expect((await over) - ends).toBeGreaterThanOrEqual(-1_000);
    expect(ownMs() - from).toBeLessThan(5_000);
  });

  test("and not at once if exp is in a month or in ten years, beyond the longest timer", async () => {
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

  test("and is not opened with an expired token, although requests accept it for 30 s longer", async () => {
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

describe("a new token on a socket", () => {
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
    /** After so many seconds it is open. */
    const isOpenAt = async (seconds: number): Promise<void> => {
      clock.time = begin + seconds * 1000;
      await Bun.sleep(60); // Six turns of the wheel.
      expect(pere.engine.held.feeds).toBe(1);
    };
    /** After so many seconds it ends. */
    const endsAt = async (seconds: number): Promise<void> => {
      clock.time = begin + seconds * 1000;
      await until(() => pere.engine.held.feeds === 0, "its end");
    };
    return { ...feed, clock, fresh, give, isOpenAt, endsAt, begin };
  }

  test("extends it", async () => {
    const { give, fresh, isOpenAt, endsAt, begin, closed, messages } = await open();
    expect(await give(await fresh({ seconds: 1200 }))).toEqual({
      pere: "token",
      expires: new Date(begin + 1_200_000).toISOString(),
    });
    await isOpenAt(1199);
    await endsAt(1200);
    expect((await closed).code).toBe(1008);
    expect(messages.at(-1)).toEqual({ pere: "bye", reason: "expired" });
  });

  test("with an earlier exp shortens it", async () => {
    const { give, fresh, isOpenAt, endsAt } = await open();
    expect((await give(await fresh({ seconds: 60 }))).pere).toBe("token");
    await isOpenAt(59);
    await endsAt(60);
  });

  test("for another device, with fewer rights, with another key, expired, or invalid changes nothing", async () => {
    const { give, fresh, isOpenAt, endsAt, begin } = await open();
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
    await isOpenAt(599);
    await endsAt(600);
  });

  test("is accepted on a receipts feed from any bearer with the right push", async () => {
    const { give, fresh, isOpenAt, endsAt } = await open("/feedback/orders", { push: ["orders"] });
    expect((await give(await fresh({ push: [], feed: ["*"], seconds: 1200 }))).detail).toContain("no right to push");
    expect((await give(await fresh({ sub: "colleague", seconds: 1200 }))).pere).toBe("token");
    await isOpenAt(900);
    await endsAt(1200);
  });

  test("needs the right on all of the feed's channels", async () => {
    const { give, fresh } = await open("/feed/a,b", { feed: ["a", "b"] });
    expect((await give(await fresh({ feed: ["a"] }))).detail).toContain("no right to feed on b");
  });

  test("is answered even if none is required", async () => {
    const pere = await start({ access: "open" });
    const { socket, messages } = await connect(`${pere.url}/feed/orders?device=d`);
    socket.send(JSON.stringify({ pere: "token", token: GOOD }));
    await until(() => messages.length > 1, "an answer");
    expect(messages.at(-1)).toEqual({ pere: "token", expires: null });
    socket.close();
  });
});
