/**
 * GET /feed: where a feed starts, what it carries, and several channels on one feed.
 */
import { describe, expect, spyOn, test } from "bun:test";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { feed, feedService, fresh, pere, poll } from "./support/feed-service.ts";
import { ask, connect, give, listen, push, start, until } from "./support/harness.ts";

feedService();

describe("where a feed starts", () => {
  test("an anonymous feed starts now", async () => {
    const channel = fresh();
    await push(pere.url, channel, 1);
    const stream = await listen(feed(channel));
    const id = await push(pere.url, channel, 2);
    expect((await stream.have(1))[0]!.id).toBe(id);
    stream.close();
  });

  test("since=earliest starts with all kept events, since=<id> after that event", async () => {
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

  test("an enrolled device starts with what it owes, oldest first, whatever since says", async () => {
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

  test("a device's first feed enrols it, and earlier events are not for it, even with since=earliest", async () => {
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

  test("a device that was named in `to` before its enrolment gets that event, and no other earlier one", async () => {
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

  test("the device is named by the header if the query has none", async () => {
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

  test("an id of another epoch is reported as a gap, followed by all kept events", async () => {
    const channel = fresh();
    const ids = [await push(pere.url, channel, 1), await push(pere.url, channel, 2)];
    const stream = await listen(feed(channel), { "Last-Event-ID": "oldlife1-7" });
    expect(await stream.own("gap")).toEqual({ channel, after: "oldlife1-7", from: ids[0] });
    await stream.have(2);
    expect(stream.ids).toEqual(ids);
    stream.close();
  });

  test("an id beyond the end of the log, as after a restored backup, is reported as a gap too", async () => {
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
  test("the first bytes arrive at once: a retry with jitter, then pere.ready with a position to resume from", async () => {
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

  test("a feed that breaks before its first event resumes without a loss from the position of pere.ready", async () => {
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
  ])("the publisher's bytes arrive unchanged: %j", async (text) => {
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

  test("carriage returns between tokens reach an event stream as line feeds and the other transports unchanged", async () => {
    const channel = fresh();
    const stream = await listen(feed(channel));
    const text = '{"a":\r\n1,\r"b":2}';
    await ask(`${pere.url}/push/${channel}`, { body: text });
    expect((await stream.have(1))[0]!.data).toEndWith('"data":{"a":\n1,\n"b":2}}');
    expect((await poll(channel, "?since=earliest")).text).toContain(text);
    stream.close();
  });

  test("an event to named devices is sent only to them, and to no anonymous feed", async () => {
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

  test("an event past its ttl is not sent, and not owed", async () => {
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

  test("a quiet feed gets periodic comments, with its position if it has passed events that are not for it", async () => {
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
  test("carry the events of each in order, and resume all of them from one id", async () => {
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

  test("a channel that is new on the feed starts as if alone; one with a new epoch is reported as a gap", async () => {
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

  test("are all read by a poll whose time is up, however slow the store is", async () => {
    const [one, two] = [fresh(), fresh()];
    for (const channel of [one, two]) await push(pere.url, channel, 1);
    const events = SqliteStore.prototype.events;
    const slow = spyOn(SqliteStore.prototype, "events").mockImplementation(async function (
      this: SqliteStore,
      ...asked
    ) {
      if (asked[0] === two) await Bun.sleep(100);
      return events.apply(this, asked);
    });
    try {
      expect((await poll(`${one},${two}`, "?since=earliest")).body.events).toHaveLength(2);
    } finally {
      slow.mockRestore();
    }
  });

  test("more than sixteen are refused", async () => {
    const names = Array.from({ length: 17 }, () => fresh()).join(",");
    expect((await ask(feed(names))).status).toBe(422);
  });
});
