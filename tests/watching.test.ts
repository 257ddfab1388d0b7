/**
 * Watching: how things stand, what changes, and what it costs where nobody does.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { Counters } from "../engine/counters.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { Presence } from "../engine/feeds/presence.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { type Screen, WATCHERS_MAX, Watch } from "../engine/feeds/watch.ts";
import type { Service } from "../index.ts";
import {
  ask,
  give,
  listen,
  openStream,
  push,
  SECRET,
  start,
  startOn,
  startWith,
  type Stream,
  until,
} from "./support/harness.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

interface Changes {
  readonly channel: string;
  readonly reset: boolean;
  readonly more: boolean;
  readonly events: readonly { id: string; seq: number; receipts: Record<string, number>; complete: boolean }[];
  readonly tallies: readonly { id: string; receipts: Record<string, number> }[];
  readonly receipts: readonly { event: string; device: string; status: string; late: boolean }[];
}
interface Overview {
  readonly channels: readonly Record<string, unknown>[];
  readonly counts: Record<string, unknown>;
}

/** What a watcher was shown, in order. */
function shown<Body>(stream: Stream, name: string): Body[] {
  return stream.messages.filter(({ event }) => event === `pere.${name}`).map(({ data }) => JSON.parse(data) as Body);
}
const changes = (stream: Stream): Changes[] => shown<Changes>(stream, "changes");
const overviews = (stream: Stream): Overview[] => shown<Overview>(stream, "overview");

/** Watches, and waits for how things stand. */
async function watch(url: string, query = "", headers: Record<string, string> = {}): Promise<Stream> {
  const stream = await openStream(`${url}/watch${query}`, headers);
  const first = query.includes("channel") ? changes : overviews;
  await until(
    () => first(stream).length > 0,
    () => `the first frame; came ${stream.raw}`,
  );
  return stream;
}

describe("watching", () => {
  let pere: Service;
  beforeAll(async () => void (pere = await start()));
  afterAll(() => pere.stop());

  test("a channel: its state, then events, receipts and changed tallies", async () => {
    const { url } = pere;
    for (const device of ["a", "b"]) await ask(`${url}/devices/one/${device}`, { method: "PUT" });
    const before = await push(url, "one", 1);
    await give(url, "one", before, "a", "done");
    const stream = await watch(url, "?channel=one");
    const [first] = changes(stream);
    expect(first).toMatchObject({ channel: "one", reset: true, more: false, tallies: [], receipts: [] });
    expect(first!.events.map(({ id, receipts }) => [id, receipts.done, receipts.pending])).toEqual([[before, 1, 1]]);
    expect(stream.raw).not.toContain('"data":1');

    const next = await push(url, "one", { secret: "this is the data" }, "?type=order");
    await until(() => changes(stream).some(({ events }) => events.some(({ id }) => id === next)), "the event");
    await give(url, "one", next, "b", "failed", { detail: "this is the detail" });
    await give(url, "one", before, "b", "working");
    const words = () => changes(stream).flatMap(({ receipts }) => receipts);
    await until(() => words().length === 2, "two receipts");
    expect(words().map(({ event, device, status }) => `${event} ${device} ${status}`)).toEqual([
      `${next} b failed`,
      `${before} b working`,
    ]);
    const tallies = new Map(
      changes(stream).flatMap(({ tallies }) => tallies.map(({ id, receipts }) => [id, receipts])),
    );
    expect(tallies.get(next)).toMatchObject({ pending: 1, failed: 1 });
    expect(tallies.get(before)).toMatchObject({ done: 1, working: 1 });
    expect(
      changes(stream)
        .slice(1)
        .some(({ reset, more }) => reset || more),
    ).toBe(false);
    expect(stream.raw).not.toContain("this is the");
    stream.close();
  });

  test("the overview: channels, connected devices, open receipts, counters", async () => {
    const { url } = pere;
    await ask(`${url}/devices/two/a`, { method: "PUT" });
    const device = await listen(`${url}/feed/two?device=b`);
    const id = await push(url, "two", 1);
    const stream = await watch(url);
    const two = () =>
      overviews(stream)
        .at(-1)!
        .channels.find(({ channel }) => channel === "two");
    expect(two()).toEqual({ channel: "two", events: 1, devices: 2, connected: 1, last: id, open: 2, missing: 0 });
    await give(url, "two", id, "b", "done");
    await until(() => two()?.open === 1, "one of them done");
    device.close();
    await until(() => two()?.connected === 0, "nobody connected");
    const counts = overviews(stream).at(-1)!.counts as { receipts: { done: number }; latency: { p50: number } | null };
    expect(counts.receipts.done).toBeGreaterThan(0);
    expect(counts.latency!.p50).toBeGreaterThan(0);
    expect(changes(stream)).toEqual([]);
    stream.close();
  });

  test("many receipts at once are sent as tallies, with `more`", async () => {
    const { url } = pere;
    const devices = Array.from({ length: 700 }, (_, n) => `d-${n}`);
    const id = await push(url, "three", 1, `?to=${devices.join(",")}`);
    const stream = await watch(url, "?channel=three");
    await ask(`${url}/feedback/three`, { body: devices.map((device) => ({ event: id, device, status: "done" })) });
    await until(() => changes(stream).length > 1, "changes");
    const last = changes(stream).at(-1)!;
    expect([last.more, last.receipts.length]).toEqual([true, 0]);
    expect(last.tallies).toMatchObject([{ id, receipts: { done: 700, pending: 0 } }]);
    expect(changes(stream)).toHaveLength(2);
    stream.close();
  });

  test("of many events the newest are sent; older ones can be read", async () => {
    const { url } = pere;
    const lines = (count: number) =>
      ask(`${url}/push/four`, { type: "application/x-ndjson", body: "1\n".repeat(count) });
    await lines(300);
    const stream = await watch(url, "?channel=four");
    expect(changes(stream)[0]!.events.map(({ seq }) => seq)).toEqual(Array.from({ length: 200 }, (_, n) => n + 101));
    await lines(300);
    await until(() => changes(stream).length > 1, "changes");
    expect([
      changes(stream)[1]!.more,
      changes(stream)[1]!.events.at(0)?.seq,
      changes(stream)[1]!.events.at(-1)?.seq,
    ]).toEqual([true, 401, 600]);
    stream.close();
  });

  test("a channel that was never used is empty, and is not created", async () => {
    const stream = await watch(pere.url, "?channel=never");
    expect(changes(stream)).toMatchObject([{ reset: true, events: [] }]);
    expect((await ask(`${pere.url}/events/never`)).status).toBe(404);
    const id = await push(pere.url, "never", 1);
    await until(() => changes(stream).length > 1, "changes");
    expect(changes(stream)[1]).toMatchObject({ reset: true, events: [{ id }] });
    stream.close();
  });

  test("without watchers nothing is read", async () => {
    const own = await start();
    const streams = await Promise.all([watch(own.url), watch(own.url, "?channel=x")]);
    expect(own.engine.watchers).toBe(2);
    for (const stream of streams) stream.close();
    await until(() => own.engine.watchers === 0, "nobody");
    await own.stop();
  });

  test("a quiet stream gives a sign of life every few seconds", async () => {
    const own = await start();
    const stream = await watch(own.url);
    const before = stream.raw.length;
    await until(() => (stream.raw.slice(before).match(/^:$/gm) ?? []).length >= 3, "three signs", 12_000);
    expect(overviews(stream)).toHaveLength(1);
    stream.close();
    await own.stop();
  });

  test("too many watchers are refused for a while, and all are told when the service stops", async () => {
    const own = await start();
    const streams = await Promise.all(Array.from({ length: WATCHERS_MAX }, () => watch(own.url)));
    const late = await openStream(`${own.url}/watch`);
    expect(await late.own("bye")).toEqual({ reason: "busy" });
    await own.stop();
    for (const stream of streams) expect(await stream.own("bye")).toEqual({ reason: "drain" });
  });
});

test("a watcher that does not read is told when its right ends, or after a while, and gets nothing meanwhile", async () => {
  let now = Date.now();
  const store = new SqliteStore({ path: ":memory:" });
  const presence = new Presence<never>(
    store,
    () => now,
    () => {},
  );
  const watching = new Watch(store, presence, new Counters(), () => now);
  const told: string[] = [];
  /** A reader that takes the first frame, and reads on when it is let to. */
  const stuck = (name: string) => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const expires = name === "expires" ? now + 1_000 : Infinity;
    const screen: Screen = {
      show: (frame) => (told.push(`${name} ${frame}`), promise),
      beat() {},
      bye: (reason) => void told.push(`${name} ${reason}`),
    };
    watching.watch({ channel: "c", scope: null, expires, refused: null }, screen);
    return resolve;
  };
  for (const name of ["expires", "stays"]) stuck(name);
  const readsOn = stuck("reads on");
  await until(() => told.length === 3, "three frames");
  now += 1_000;
  await until(() => told.length > 3, "the end of the first one's right");
  readsOn();
  await until(() => told.includes("reads on changes"), "the next frame");
  now += 60_000;
  await until(() => watching.size === 1, "the one who reads alone");
  watching.stop();
  // Who is shown the first frame first is left to chance.
  expect(told.splice(0, 3).toSorted()).toEqual(["expires overview", "reads on overview", "stays overview"]);
  expect(told).toEqual(["expires expired", "reads on changes", "stays busy", "reads on drain"]);
  await store.close();
});

test("a watcher sees only the channels of its token, until the token expires", async () => {
  let now = Date.now();
  const pere = await startWith({}, { now: () => now });
  const token = async (push: string[], feed: string[] = []) => ({
    Authorization: `Bearer ${await issueToken({ secret: SECRET, now: () => now }, { sub: "x", push, feed, days: 1 })}`,
  });
  for (const channel of ["a", "shop.1", "shop.2"])
    await ask(`${pere.url}/push/${channel}`, { body: "1", headers: await token(["*"]) });
  const stream = await watch(pere.url, "", await token(["shop.*"]));
  expect(overviews(stream)[0]!.channels.map(({ channel }) => channel)).toEqual(["shop.1", "shop.2"]);
  expect((await ask(`${pere.url}/watch?channel=a`, { headers: await token(["shop.*"]) })).status).toBe(403);
  expect((await ask(`${pere.url}/watch`)).status).toBe(401);
  // A device's token: of what others do not even the counts are its business.
  const refused = await ask(`${pere.url}/watch`, { headers: await token([], ["*"]) });
  expect([refused.status, refused.body.detail]).toEqual([403, "this token gives no right to push on any channel"]);
  now += 2 * 86_400_000;
  expect(await stream.own("bye")).toEqual({ reason: "expired" });
  await pere.stop();
});

test.skipIf(noRedis !== null)(
  "a store that goes away is reported, and so is its return",
  async () => {
    const redis = await startRedis();
    const pere = await startOn(redis.url);
    const other = await startOn(redis.url);
    const id = await push(pere.url, "orders", 1, "?to=a");
    const stream = await watch(other.url, "?channel=orders");
    expect(changes(stream)[0]!.events).toMatchObject([{ id }]);
    // What comes in at another instance is seen here.
    await give(pere.url, "orders", id, "a", "done");
    await until(() => changes(stream).flatMap(({ receipts }) => receipts).length === 1, "the receipt");

    redis.pause();
    expect(await stream.own("away")).toHaveProperty("detail");
    redis.resume();
    const count = overviews(stream).length;
    await until(() => overviews(stream).length > count, "an overview");
    expect(shown(stream, "away")).toHaveLength(1);
    stream.close();
    await Promise.all([pere.stop(), other.stop()]);
    await redis.end();
  },
  180_000,
);
