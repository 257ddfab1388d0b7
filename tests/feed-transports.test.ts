/**
 * GET /feed by long-poll and by WebSocket, and what a request for a feed may say.
 */
import { describe, expect, test } from "bun:test";
import { connect as dial } from "node:net";
import { WebSocket as NodeWebSocket } from "ws";
import { RING_ENTRIES_MAX } from "../engine/feeds/log.ts";
import { feed, feedService, fresh, pere, poll } from "./support/feed-service.ts";
import { ask, connect, listen, push, until } from "./support/harness.ts";

feedService();

const seqs = (ids: readonly (string | undefined)[]): number[] => ids.map((id) => Number(id!.split("-")[1]));

describe("long-poll", () => {
  test("answers at once with the available events and the position to continue from", async () => {
    const channel = fresh();
    const empty = await poll(channel);
    expect(empty.body.events).toEqual([]);
    const id = await push(pere.url, channel, 1);
    const more = await poll(channel, `?last-event-id=${empty.body.last}`);
    expect(more.body).toMatchObject({ events: [{ id }], last: id });
  });

  test("waits until there is something", async () => {
    const channel = fresh();
    const waiting = poll(channel, "?wait=60&device=a");
    await until(() => pere.engine.held.present > 0);
    const id = await push(pere.url, channel, 1);
    expect((await waiting).body).toMatchObject({ events: [{ id }], last: id });
  });

  test("answers without events when the time is up", async () => {
    const answer = await poll(fresh(), "?wait=0.05");
    expect(answer.body.events).toEqual([]);
  });

  test("a long history takes several answers, without a loss", async () => {
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

  test("a client that disconnects leaves nothing behind", async () => {
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
  test("carries ready, events and receipts, and selects pere.v1 if it is offered", async () => {
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

  test("accepts receipts of several channels on one socket", async () => {
    const [one, two] = [fresh(), fresh()];
    const { socket, messages } = await connect(feed(`${one},${two}`, "?device=a"));
    const ids = [await push(pere.url, one, 1), await push(pere.url, two, 2)];
    socket.send(JSON.stringify(ids.map((event) => ({ event, status: "done" }))));
    await until(() => messages.find(({ pere }) => pere === "receipts"));
    expect(messages.find(({ pere }) => pere === "receipts")).toMatchObject({ recorded: 2, rejected: [] });
    socket.close();
  });

  test("accepts receipts before it has sent ready", async () => {
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
    "%s is answered, and the socket stays open",
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

  test("an anonymous feed can't send receipts, and a device can't act as another one", async () => {
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

describe("options and headers of a request", () => {
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

  test("an empty name or position counts as missing", async () => {
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

  test("an unknown subprotocol is not selected", async () => {
    const socket = new WebSocket(feed(fresh()).replace("http", "ws"), ["pere.token.x"]);
    const closed = await new Promise<CloseEvent>((resolve) => (socket.onclose = resolve));
    expect(closed.code).not.toBe(1000);
    expect(socket.protocol).toBe("");
  });
});
