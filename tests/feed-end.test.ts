/**
 * GET /feed: how a feed ends, by each of its three transports.
 */
import { describe, expect, test } from "bun:test";
import { EventSource } from "eventsource";
import { feed, feedService, fresh, pere } from "./support/feed-service.ts";
import { ask, connect, listen, push, start, until } from "./support/harness.ts";

feedService();

describe("how a feed ends", () => {
  test("an event stream is renewed after its time, with pere.bye and a short retry, and nothing is lost in between", async () => {
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
    const polled = ask(`${going.url}/feed/c?wait=60`, { headers: { Accept: "application/json" } });
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

  test("retiring a device also ends its feeds that are starting", async () => {
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

  test("a device that is retired while it reconnects gets what a new device gets", async () => {
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

  test("HEAD returns the headers and follows nothing", async () => {
    await until(() => pere.engine.held.feeds === 0);
    const answer = await ask(feed(fresh()), { method: "HEAD" });
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("text/event-stream");
    const channel = fresh();
    const polled = await ask(feed(channel, "?device=ghost&wait=60"), {
      method: "HEAD",
      headers: { Accept: "application/json" },
    });
    expect(polled.headers.get("content-type")).toBe("application/json");
    expect((await ask(`${pere.url}/devices/${channel}`)).status).toBe(404);
    expect(pere.engine.held.feeds).toBe(0);
  });
});
