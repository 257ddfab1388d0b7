/**
 * GET /feed: where a feed starts, what it carries, how it resumes, and how it ends; by each of its three transports.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { connect as dial } from "node:net";
import { EventSource } from "eventsource";
import { WebSocket as NodeWebSocket } from "ws";
import { RING_ENTRIES_MAX } from "../engine/feeds/log.ts";
import type { Service } from "../index.ts";
import { ask, connect, give, listen, push, start, until } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start()));
afterAll(() => pere.stop());

let count = 0;
/** A channel that no other test uses. */
const fresh = (): string => `feed-${++count}`;
const feed = (channel: string, query = ""): string => `${pere.url}/feed/${channel}${query}`;
const poll = (channel: string, query = "", headers = {}) =>
  ask(feed(channel, query), { headers: { Accept: "application/json", ...headers } });
const seqs = (ids: readonly (string | undefined)[]): number[] => ids.map((id) => Number(id!.split("-")[1]));

describe("where a feed starts", () => {
  test("an anonymous feed starts now", async () => {
    const channel = fresh();
    await push(pere.url, channel, 1);
    const stream = await listen(feed(channel));
    const id = await push(pere.url, channel, 2);
    expect((await stream.have(1))[0]!.id).toBe(id);
    stream.close();
  });

  test("since=earliest starts with everything that is kept, since=<id> after that event", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2), await push(pere.url, channel, 3)];
    const all = await listen(feed(channel, "?since=earliest"));
    const rest = await listen(feed(channel, `?since=${ids[0]}`));
    await all.have(3);
    await rest.have(2);
    expect(all.ids).toEqual(ids);
    expect(rest.ids).toEqual(ids.slice(1));
    all.close();
    rest.close();
  });

  test("Last-Event-ID wins over last-event-id in the query, and both over since", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2), await push(pere.url, channel, 3)];
    const byHeader = await poll(channel, `?last-event-id=${ids[0]}&since=earliest`, { "Last-Event-ID": ids[1]! });
    const byQuery = await poll(channel, `?last-event-id=${ids[0]}&since=now`);
    expect(byHeader.body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(2));
    expect(byQuery.body.events.map(({ id }: { id: string }) => id)).toEqual(ids.slice(1));
  });

  test("a device that is enrolled starts with what it owes, oldest first, whatever since says", async () => {
    const channel = fresh();
    await push(pere.url, channel, "before it joined");
    expect((await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" })).status).toBe(201);
    const ids = [];
    for (let n = 0; n < 4; n++) ids.push(await push(pere.url, channel, n));
    await give(pere.url, channel, ids[1]!, "a", "done");
    await give(pere.url, channel, ids[2]!, "a", "working");
    await give(pere.url, channel, ids[3]!, "a", "failed");
    const stream = await listen(feed(channel, "?device=a&since=earliest"));
    const next = await push(pere.url, channel, "live");
    await stream.have(3);
    expect(stream.ids).toEqual([ids[0], ids[2], next]);
    stream.close();
  });

  test("a device's first feed enrols it, and what was pushed before is not for it, also since=earliest", async () => {
    const channel = fresh();
    const first = await push(pere.url, channel, 1);
    const stream = await listen(feed(channel, "?device=new&since=earliest"));
    const answer = await give(pere.url, channel, first, "new", "done");
    expect(answer.status).toBe(422);
    expect(answer.body.rejected[0].reason).toContain("not addressed");
    const pushed = await ask(`${pere.url}/push/${channel}`, { body: "2" });
    expect(pushed.body.audience).toEqual({ addressed: 1, connected: 1 });
    await stream.have(1);
    expect(stream.ids).toEqual([pushed.body.id]);
    stream.close();
  });

  test("a device that was named in `to` before it ever came gets that event, and nothing else from before", async () => {
    const channel = fresh();
    await push(pere.url, channel, "to all");
    const mine = await push(pere.url, channel, "to it", "?to=late,other");
    await push(pere.url, channel, "to another", "?to=other");
    const stream = await listen(feed(channel, "?device=late"));
    const next = await push(pere.url, channel, "live");
    await stream.have(2);
    expect(stream.ids).toEqual([mine, next]);
    stream.close();
  });

  test("the device is named by the header where the query does not", async () => {
    const channel = fresh();
    const stream = await listen(feed(channel), { device: "by-header" });
    expect(await stream.own("ready")).toMatchObject({ device: "by-header" });
    const both = await listen(feed(channel, "?device=by-query"), { device: "by-header" });
    expect(await both.own("ready")).toMatchObject({ device: "by-query" });
    stream.close();
    both.close();
  });

  test("an event with a final receipt is not sent to that device again, also after Last-Event-ID", async () => {
    const channel = fresh();
    await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" });
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2), await push(pere.url, channel, 3)];
    await give(pere.url, channel, ids[1]!, "a", "done");
    const answer = await poll(channel, `?device=a&last-event-id=${ids[0]!.replace(/-\d+$/, "-0")}`);
    expect(answer.body.events.map(({ id }: { id: string }) => id)).toEqual([ids[0], ids[2]]);
    const anonymous = await poll(channel, "?since=earliest");
    expect(anonymous.body.events).toHaveLength(3);
  });

  test.each(["?since=yesterday", "?last-event-id=17", "?device=a%20b", "?device=a&device=b"])(
    "%s is refused as 400",
    async (query) => {
      const answer = await ask(feed(fresh(), query));
      expect(answer.status).toBe(400);
      expect(answer.headers.get("content-type")).toBe("application/problem+json");
    },
  );

  test("an id of another life of the channel is told as a gap, and everything that is kept follows", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2)];
    const stream = await listen(feed(channel), { "Last-Event-ID": "oldlife1-7" });
    expect(await stream.own("gap")).toEqual({ channel, after: "oldlife1-7", from: ids[0] });
    await stream.have(2);
    expect(stream.ids).toEqual(ids);
    stream.close();
  });

  test("an id beyond the end of the log, as after a restored backup, is told as a gap as well", async () => {
    const channel = fresh();
    const first = await push(pere.url, channel, 1);
    const ahead = first.replace(/-1$/, "-99");
    const answer = await poll(channel, `?last-event-id=${ahead}`);
    expect(answer.body).toMatchObject({
      gaps: [{ channel, after: ahead, from: first }],
      events: [{ id: first }],
      last: first,
    });
  });
});

describe("what a feed carries", () => {
  test("the first bytes come at once: a retry with jitter, then pere.ready with a position to resume from", async () => {
    const channel = fresh();
    const at = await push(pere.url, channel, 1);
    const stream = await listen(feed(channel, "?device=a"));
    expect(stream.raw).toMatch(/^retry: \d+\nid: \S+\nevent: pere.ready\ndata: \{/);
    expect(stream.messages[0]).toMatchObject({ event: "pere.ready", id: at });
    expect(await stream.own("ready")).toEqual({ device: "a", channels: { [channel]: at } });
    const other = await listen(feed(channel));
    for (const { retry } of [stream, other]) {
      expect(retry).toBeGreaterThanOrEqual(1_000);
      expect(retry).toBeLessThanOrEqual(4_000);
    }
    expect(
      Object.fromEntries(
        ["content-type", "cache-control", "x-accel-buffering"].map((name) => [name, stream.response.headers.get(name)]),
      ),
    ).toEqual({
      "content-type": "text/event-stream",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    });
    stream.close();
    other.close();
  });

  test("a feed that broke before its first event resumes without a loss from the position of pere.ready", async () => {
    const channel = fresh();
    const stream = await listen(feed(channel));
    const position = stream.messages[0]!.id!;
    stream.close();
    const missed = await push(pere.url, channel, "missed");
    const again = await listen(feed(channel), { "Last-Event-ID": position });
    expect((await again.have(1))[0]!.id).toBe(missed);
    again.close();
  });

  test.each([
    '{"n": 12345678901234567890, "n": 1e400, "z":-0, "a" : [ ] }',
    '"\\ud800 \\u0000 \u2028 é 🛒"',
    ' {"spaces":\t1}\t',
    '{"lines":\n[1,\n2]\n}\n',
    '{"event: x":"\\ndata: y\\n\\nid: z"}',
  ])("the publisher's bytes come unchanged: %j", async (text) => {
    const channel = fresh();
    const stream = await listen(feed(channel));
    const { socket, messages } = await connect(feed(channel));
    let frame = "";
    socket.addEventListener("message", ({ data }) => (frame = String(data)));
    const answer = await ask(`${pere.url}/push/${channel}`, { body: text });
    expect(answer.status).toBe(201);
    const [event] = await stream.have(1);
    await until(() => messages.length === 2);
    const envelope = `{"id":"${answer.body.id}","channel":"${channel}","seq":1,"at":"${answer.body.at}","data":${text}}`;
    expect(event!.data).toBe(envelope);
    expect(event!.id).toBe(answer.body.id);
    expect(event!.event).toBeUndefined();
    expect(frame).toBe(envelope);
    expect((await poll(channel, "?since=earliest")).text).toBe(`{"events":[${envelope}],"last":"${answer.body.id}"}`);
    expect((await ask(`${pere.url}/events/${channel}/${answer.body.id}`)).text).toEndWith(`"data":${text}}`);
    stream.close();
    socket.close();
  });

  test("carriage returns between tokens reach an event stream as line feeds and the other wires as they are", async () => {
    const channel = fresh();
    const stream = await listen(feed(channel));
    const text = '{"a":\r\n1,\r"b":2}';
    await ask(`${pere.url}/push/${channel}`, { body: text });
    expect((await stream.have(1))[0]!.data).toEndWith('"data":{"a":\n1,\n"b":2}}');
    expect((await poll(channel, "?since=earliest")).text).toContain(text);
    stream.close();
  });

  test("an event to named devices is given to them alone, and to no anonymous feed", async () => {
    const channel = fresh();
    const [a, b, anonymous] = [
      await listen(feed(channel, "?device=a")),
      await listen(feed(channel, "?device=b")),
      await listen(feed(channel)),
    ];
    const answer = await ask(`${pere.url}/push/${channel}?to=a,absent,a`, { body: "1" });
    expect(answer.body.audience).toEqual({ addressed: 2, connected: 1 });
    const last = await push(pere.url, channel, 2);
    expect((await a.have(2)).map(({ id }) => id)).toEqual([answer.body.id, last]);
    expect((await b.have(1)).map(({ id }) => id)).toEqual([last]);
    expect((await anonymous.have(1)).map(({ id }) => id)).toEqual([last]);
    expect(a.events[0]!.data).not.toContain("absent");
    expect((await poll(channel, "?since=earliest")).body.events).toHaveLength(1);
    for (const stream of [a, b, anonymous]) stream.close();
  });

  test("an event past its ttl is given to nobody, and not owed", async () => {
    let now = Date.now();
    const held = await start({ now: () => now });
    await ask(`${held.url}/devices/c/a`, { method: "PUT" });
    const short = await push(held.url, "c", 1, "?ttl=5");
    const long = await push(held.url, "c", 2, "?ttl=60");
    const read = async (query: string) =>
      (await ask(`${held.url}/feed/c${query}`, { headers: { Accept: "application/json" } })).body.events.map(
        ({ id }: { id: string }) => id,
      );
    expect(await read("?device=a")).toEqual([short, long]);
    now += 5_000;
    expect(await read("?device=a")).toEqual([long]);
    expect(await read("?since=earliest")).toEqual([long]);
    expect((await ask(`${held.url}/devices/c`)).body.devices[0].pending).toBe(1);
    // A word on it still counts: the device may have had it in time.
    expect((await give(held.url, "c", short, "a", "done")).body.recorded).toBe(1);
    await held.stop();
  });

  test("a quiet feed gets a comment each beat, with its position when it moved past what was not for it", async () => {
    const quick = await start({ limits: { beatMs: 60 } });
    const stream = await listen(`${quick.url}/feed/c?device=a`);
    await until(() => stream.comments.length >= 2);
    expect(stream.raw).toEndWith(":\n\n");
    const others = await push(quick.url, "c", 1, "?to=b");
    await until(() => stream.raw.includes(`:\nid: ${others}\n\n`));
    expect(stream.events).toEqual([]);
    stream.close();
    await quick.stop();
  });
});

describe("several channels on one feed", () => {
  test("carry one another's events in each one's order, and resume all of them from one id", async () => {
    const [one, two] = [fresh(), fresh()];
    const stream = await listen(feed(`${one},${two}`, "?device=a"));
    expect(Object.keys((await stream.own("ready")).channels as object)).toEqual([one, two]);
    const first = [await push(pere.url, one, 1), await push(pere.url, two, 2), await push(pere.url, one, 3)];
    await stream.have(3);
    const ids = () => stream.events.map(({ data }) => (JSON.parse(data) as { id: string }).id);
    expect([...ids()].sort()).toEqual([...first].sort());
    const position = stream.events.at(-1)!.id!;
    expect(position).toMatch(/^[A-Za-z0-9.-]+$/);
    stream.close();
    const missed = [await push(pere.url, one, 4), await push(pere.url, two, 5)];
    // The order of the names does not matter.
    const again = await listen(feed(`${two},${one}`, "?device=a"), { "Last-Event-ID": position });
    await again.have(2);
    expect(again.events.map(({ data }) => (JSON.parse(data) as { id: string }).id).sort()).toEqual(missed.sort());
    expect(again.messages.some(({ event }) => event === "pere.gap")).toBeFalse();
    again.close();
  });

  test("a channel that is new on the feed starts as if alone; one whose life ended is told as a gap", async () => {
    const [one, two] = [fresh(), fresh()];
    const at = await push(pere.url, one, 1);
    await push(pere.url, two, 1);
    const added = await poll(`${one},${two}`, `?last-event-id=${at}`);
    expect(added.body.events).toEqual([]);
    expect(added.body.gaps).toBeUndefined();
    const lost = await poll(`${one},${two}`, `?last-event-id=${at}.oldlife1-5`);
    expect(lost.body.gaps).toMatchObject([{ channel: two, after: "oldlife1-5" }]);
    expect(lost.body.events).toHaveLength(1);
  });

  test("more than sixteen are refused", async () => {
    const names = Array.from({ length: 17 }, () => fresh()).join(",");
    expect((await ask(feed(names))).status).toBe(422);
  });
});

describe("long-poll", () => {
  test("answers at once with what there is, and where to go on", async () => {
    const channel = fresh();
    const empty = await poll(channel);
    expect(empty.body.events).toEqual([]);
    const id = await push(pere.url, channel, 1);
    const more = await poll(channel, `?last-event-id=${empty.body.last}`);
    expect(more.body).toMatchObject({ events: [{ id }], last: id });
  });

  test("waits until there is something", async () => {
    const channel = fresh();
    const waiting = poll(channel, "?wait=30&device=a");
    await until(() => pere.engine.held.present > 0);
    const id = await push(pere.url, channel, 1);
    expect((await waiting).body).toMatchObject({ events: [{ id }], last: id });
  });

  test("answers empty when the time is up", async () => {
    const answer = await poll(fresh(), "?wait=0.05");
    expect(answer.body.events).toEqual([]);
  });

  test("a long history comes in several answers, without a loss", async () => {
    const channel = fresh();
    const lines = Array.from({ length: 1000 }, (_, n) => n).join("\n");
    for (let n = 0; n < 3; n++) await ask(`${pere.url}/push/${channel}`, { body: lines, type: "application/x-ndjson" });
    const got: string[] = [];
    let query = "?since=earliest";
    for (;;) {
      const { body } = await poll(channel, query);
      if (body.events.length === 0) break;
      // A thousand or so ends it, and the last step may bring all that is in memory.
      expect(body.events.length).toBeLessThan(1_000 + RING_ENTRIES_MAX);
      got.push(...body.events.map(({ id }: { id: string }) => id));
      query = `?last-event-id=${body.last}`;
    }
    expect(seqs(got)).toEqual(Array.from({ length: 3000 }, (_, n) => n + 1));
  });

  test("a poller that goes away leaves nothing behind", async () => {
    const before = pere.engine.held.feeds;
    const abort = new AbortController();
    const gone = fetch(feed(fresh(), "?wait=60"), { headers: { Accept: "application/json" }, signal: abort.signal });
    await until(() => pere.engine.held.feeds === before + 1);
    abort.abort();
    await gone.catch(() => {});
    await until(() => pere.engine.held.feeds === before);
  });

  test.each(["?wait=61", "?wait=-1", "?wait=soon"])("%s is refused", async (query) => {
    expect([400, 422]).toContain((await poll(fresh(), query)).status);
  });
});

describe("WebSocket", () => {
  test("carries ready, events and receipts, and speaks pere.v1 where it is offered", async () => {
    const channel = fresh();
    const { socket, messages } = await connect(feed(channel, "?device=a"), ["pere.v1", "pere.token.x"]);
    expect(socket.protocol).toBe("pere.v1");
    expect(messages[0]).toMatchObject({ pere: "ready", device: "a" });
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2, "?type=t")];
    await until(() => messages.length === 3);
    expect(messages.slice(1)).toMatchObject([{ id: ids[0] }, { id: ids[1], type: "t" }]);
    socket.send(
      JSON.stringify([
        { event: ids[0], status: "done" },
        { event: ids[1], status: "nonsense" },
        { event: ids[0], status: "done" },
      ]),
    );
    await until(() => messages.length === 4);
    expect(messages[3]).toMatchObject({
      pere: "receipts",
      recorded: 1,
      duplicate: 1,
      rejected: [{ index: 1, event: ids[1] }],
    });
    socket.close();
  });

  test("takes receipts of several channels on one socket", async () => {
    const [one, two] = [fresh(), fresh()];
    const { socket, messages } = await connect(feed(`${one},${two}`, "?device=a"));
    const ids = [await push(pere.url, one, 1), await push(pere.url, two, 2)];
    socket.send(JSON.stringify(ids.map((event) => ({ event, status: "done" }))));
    await until(() => messages.find(({ pere }) => pere === "receipts"));
    expect(messages.find(({ pere }) => pere === "receipts")).toMatchObject({ recorded: 2, rejected: [] });
    socket.close();
  });

  test("takes receipts that come before it said that it is ready", async () => {
    const [one, two] = [fresh(), fresh()];
    for (const channel of [one, two]) await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" });
    const ids = [await push(pere.url, one, 1), await push(pere.url, two, 2)];
    // Sent with the handshake, in one piece: a masked text frame with a mask of zeros (RFC 6455, section 5.2).
    const text = JSON.stringify(ids.map((event) => ({ event, status: "done" })));
    const frame = Buffer.from([0x81, 0xfe, text.length >> 8, text.length & 255, 0, 0, 0, 0, ...Buffer.from(text)]);
    const head =
      `GET /feed/${one},${two}?device=a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const socket = dial(Number(new URL(pere.url).port), "127.0.0.1");
    let said = "";
    socket.on("data", (bytes) => (said += bytes.toString("latin1")));
    socket.write(Buffer.concat([Buffer.from(head), frame]));
    await until(() => said.includes('"pere":"receipts"'));
    expect(said).toContain('{"pere":"receipts","recorded":2,"duplicate":0,"rejected":[]}');
    socket.destroy();
  });

  test.each(["7", "true", "null", "{", '"x"', "[[]]", "[1]"])(
    "%s is answered, and the socket goes on",
    async (text) => {
      const channel = fresh();
      const { socket, messages } = await connect(feed(channel, "?device=a"));
      socket.send(text);
      await until(() => messages.length === 2);
      expect(["error", "receipts"]).toContain(messages[1]!.pere);
      const id = await push(pere.url, channel, 1);
      await until(() => messages.length === 3);
      expect(messages[2]!.id).toBe(id);
      socket.close();
    },
  );

  test("an anonymous feed can't give receipts, nor speak as another device", async () => {
    const channel = fresh();
    const { socket, messages } = await connect(feed(channel));
    const named = await connect(feed(channel, "?device=a"));
    const event = await push(pere.url, channel, 1);
    socket.send(JSON.stringify({ event, status: "done", device: "a" }));
    await until(() => messages.find(({ pere }) => pere === "error"));
    named.socket.send(JSON.stringify({ event, status: "done", device: "b" }));
    await until(() => named.messages.find(({ pere }) => pere === "receipts"));
    expect(named.messages.at(-1)).toMatchObject({ recorded: 0, rejected: [{ index: 0 }] });
    expect((await ask(`${pere.url}/events/${channel}/${event}`)).body.receipts.pending).toBe(1);
    socket.close();
    named.socket.close();
  });

  test("npm ws reads it, resumes by query, and its pong is a sign of life", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2)];
    const socket = new NodeWebSocket(`${feed(channel, `?last-event-id=${ids[0]}`).replace("http", "ws")}`);
    const messages: { id?: string; pere?: string }[] = [];
    socket.on("message", (data) => messages.push(JSON.parse(String(data)) as { id?: string }));
    await until(() => messages.length === 2);
    expect(messages).toMatchObject([{ pere: "ready" }, { id: ids[1] }]);
    socket.terminate();
  });
});

describe("how a feed ends", () => {
  test("an event stream is renewed after its time, with pere.bye and a short retry, and nothing is lost between", async () => {
    const quick = await start({ limits: { beatMs: 75, renewMs: 150 } });
    const source = new EventSource(`${quick.url}/feed/c?device=a`);
    const got: number[] = [];
    const byes: unknown[] = [];
    source.addEventListener("message", ({ data }) => got.push((JSON.parse(data) as { data: number }).data));
    source.addEventListener("pere.bye", ({ data }) => byes.push(JSON.parse(data)));
    await until(() => quick.engine.held.feeds === 1);
    for (let n = 0; byes.length < 3; n++) {
      await push(quick.url, "c", n);
      await Bun.sleep(10);
    }
    const last = await push(quick.url, "c", -1);
    await until(() => got.at(-1) === -1);
    expect(got).toEqual([...Array.from({ length: Number(last.split("-")[1]) - 1 }, (_, n) => n), -1]);
    expect(byes[0]).toEqual({ reason: "renew" });
    source.close();
    await quick.stop();
  });

  test("too many feeds: an event stream and a socket are told to come back later, a poll gets 503", async () => {
    const small = await start({ limits: { feeds: 1 } });
    const first = await listen(`${small.url}/feed/c`);
    const abort = new AbortController();
    const second = await fetch(`${small.url}/feed/c`, { signal: abort.signal });
    expect(second.status).toBe(200);
    const text = await second.text();
    expect(text).toContain('event: pere.bye\ndata: {"reason":"busy"}\n\n');
    expect(Number(/retry: (\d+)\nevent: pere.bye/.exec(text)![1])).toBeGreaterThanOrEqual(5_000);
    const socket = await connect(`${small.url}/feed/c`);
    expect((await socket.closed).code).toBe(1013);
    const polled = await ask(`${small.url}/feed/c?wait=5`, { headers: { Accept: "application/json" } });
    expect(polled.status).toBe(503);
    expect(Number(polled.headers.get("retry-after"))).toBeGreaterThan(0);
    first.close();
    await until(() => small.engine.held.feeds === 0);
    (await listen(`${small.url}/feed/c`)).close();
    await small.stop();
  });

  test("a drain tells every feed, by each transport, and frees the port", async () => {
    const going = await start();
    const stream = await listen(`${going.url}/feed/c`);
    const socket = await connect(`${going.url}/feed/c`);
    const polled = ask(`${going.url}/feed/c?wait=30`, { headers: { Accept: "application/json" } });
    await until(() => going.engine.held.feeds === 3);
    await going.stop();
    expect(await stream.own("bye")).toEqual({ reason: "drain" });
    await until(() => stream.ended);
    expect((await socket.closed).code).toBe(1012);
    expect((await polled).status).toBe(503);
    expect(going.engine.held).toEqual({ feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 });
    await expect(fetch(`${going.url}/health`)).rejects.toThrow();
  });

  test("retiring a device ends its feeds", async () => {
    const channel = fresh();
    const stream = await listen(feed(channel, "?device=a"));
    const other = await listen(feed(channel, "?device=b"));
    expect((await ask(`${pere.url}/devices/${channel}/a`, { method: "DELETE" })).status).toBe(204);
    expect(await stream.own("bye")).toEqual({ reason: "expired" });
    const pushed = await ask(`${pere.url}/push/${channel}`, { body: "1" });
    expect(pushed.body.audience).toEqual({ addressed: 1, connected: 1 });
    await other.have(1);
    other.close();
  });

  test("retiring a device ends also its feeds that are only about to start", async () => {
    for (let n = 0; n < 50; n++) {
      const channel = fresh();
      await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" });
      const abort = new AbortController();
      const [stream] = await Promise.all([
        fetch(feed(`${channel},${fresh()}`, "?device=a"), { signal: abort.signal }),
        ask(`${pere.url}/devices/${channel}/a`, { method: "DELETE" }),
      ]);
      // Either the feed came first, and was ended; or it came after, and the device is enrolled anew.
      let isExpired = false;
      const read = stream.text().then(
        (text) => void (isExpired = text.includes('{"reason":"expired"}')),
        () => {}, // Ours is the one that ends it.
      );
      await until(async () => {
        const { devices } = (await ask(`${pere.url}/devices/${channel}`)).body;
        return devices.length === 0 ? isExpired : devices[0].device === "a" && devices[0].connected;
      });
      abort.abort();
      await read;
    }
  });

  test("a device that is retired while it comes anew is given what a new one is", async () => {
    for (let n = 0; n < 20; n++) {
      const channel = fresh();
      await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" });
      await push(pere.url, channel, 1);
      const [, stream] = await Promise.all([
        ask(`${pere.url}/devices/${channel}/a`, { method: "DELETE" }),
        listen(feed(channel, "?device=a&since=earliest")),
      ]);
      // Where it was retired behind its coming, its feed ends, and the next one starts alike.
      const again = stream.ended ? await listen(feed(channel, "?device=a&since=earliest")) : stream;
      const next = await push(pere.url, channel, 2);
      await again.have(1);
      expect(again.ids).toEqual([next]);
      again.close();
      stream.close();
    }
  });

  test("HEAD tells the headers and follows nothing", async () => {
    await until(() => pere.engine.held.feeds === 0);
    const answer = await ask(feed(fresh()), { method: "HEAD" });
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("text/event-stream");
    const channel = fresh();
    const polled = await ask(feed(channel, "?device=ghost&wait=30"), {
      method: "HEAD",
      headers: { Accept: "application/json" },
    });
    expect(polled.headers.get("content-type")).toBe("application/json");
    expect((await ask(`${pere.url}/devices/${channel}`)).status).toBe(404);
    expect(pere.engine.held.feeds).toBe(0);
  });
});

describe("what a request may say", () => {
  test.each([
    ["text/event-stream", "text/event-stream"],
    ["*/*", "text/event-stream"],
    ["", "text/event-stream"],
    ["application/jsonl", "text/event-stream"],
    ["application/json, text/event-stream", "text/event-stream"],
    ["APPLICATION/JSON; charset=utf-8", "application/json"],
    ["application/json;q=0.9, */*;q=0.1", "application/json"],
  ])("Accept: %s is answered with %s", async (accept, type) => {
    const abort = new AbortController();
    const response = await fetch(feed(fresh()), { headers: { Accept: accept }, signal: abort.signal });
    expect(response.headers.get("content-type")).toBe(type);
    abort.abort();
  });

  test("an empty name or position counts as none", async () => {
    const channel = fresh();
    await ask(`${pere.url}/devices/${channel}/a`, { method: "PUT" });
    const id = await push(pere.url, channel, 1);
    const stream = await listen(feed(channel, `?device=&last-event-id=${id.replace(/-1$/, "-0")}`), {
      device: "a",
      "Last-Event-ID": "",
    });
    expect((await stream.own("ready")).device).toBe("a");
    expect((await stream.have(1))[0]!.id).toBe(id);
    stream.close();
  });

  test("a subprotocol that PERE does not speak is not agreed to", async () => {
    const socket = new WebSocket(feed(fresh()).replace("http", "ws"), ["pere.token.x"]);
    const closed = await new Promise<CloseEvent>((resolve) => (socket.onclose = resolve));
    expect(closed.code).not.toBe(1000);
    expect(socket.protocol).toBe("");
  });
});
