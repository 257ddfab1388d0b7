/**
 * Who counts as connected, who was heard from, and what a feed leaves behind: a device's feeds come and go, the service drains, readers
 * leave in the middle of it, and retention takes what a device still owed.
 *
 * The service is real. Where a reader must stop reading, or leave at one certain moment, the test is the wire itself; where a file is to be
 * looked into between two commits, it holds engine and store without a server. Clocks are held; beats and writes are made quick and
 * waited for.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { WebSocket as NodeWebSocket } from "ws";
import { Engine } from "../engine/engine.ts";
import { type FeedRequest, OWN, type Wire } from "../engine/feeds/feed.ts";
import { type EventDraft, iso } from "../engine/model.ts";
import { Presence } from "../engine/feeds/presence.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import type { Batch } from "../engine/feeds/log.ts";
import type { Service } from "../index.ts";
import { hear } from "./contract/calls.ts";
import { ask, connect, give, listen, push, start, Stream, temporary, until } from "./support/harness.ts";

const EMPTY = { feeds: 0, logs: 0, live: 0, present: 0, spokes: 0 };
const T = Date.UTC(2026, 10, 22, 10);

let pere: Service;
let now = T;
beforeAll(async () => void (pere = await start({ now: () => now })));
afterAll(() => pere.stop());

const enrol = (channel: string, device: string, url = pere.url) =>
  ask(`${url}/devices/${channel}/${device}`, { method: "PUT" });
const poll = (path: string, url = pere.url) => ask(`${url}${path}`, { headers: { Accept: "application/json" } });
/** A channel's only device. */
const device = async (channel: string, url = pere.url): Promise<{ connected: boolean; seenAt: string | null }> =>
  (await ask(`${url}/devices/${channel}`)).body.devices[0];
const draft = (data: string): EventDraft => ({
  type: null,
  data,
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
});
const asked = (device: string | null, channels = ["c"]): FeedRequest => ({
  kind: "events",
  channels,
  device,
  last: null,
  since: "now",
  ...OWN,
  renew: true,
});

/** A wire that counts what it is told. `stuck`: its reader takes the first write and never reads again. */
class Counted implements Wire {
  readonly told: string[] = [];
  beats = 0;
  readonly #stuck: boolean;
  constructor(stuck = false) {
    this.#stuck = stuck;
  }
  ready(): void {
    this.told.push("ready");
  }
  write(_channel: string, _batch: Batch): Promise<unknown> | undefined {
    this.told.push("write");
    return this.#stuck ? new Promise(() => {}) : undefined;
  }
  gap(): void {
    this.told.push("gap");
  }
  rest(): void {}
  remind(): undefined {
    this.told.push("remind");
  }
  beat(): void {
    this.beats++;
  }
  bye(reason: string): void {
    this.told.push(`bye ${reason}`);
  }
}

describe("connected devices", () => {
  test("a device with two feeds counts once, until the last of them is closed", async () => {
    const [one, two] = [await listen(`${pere.url}/feed/two?device=a`), await listen(`${pere.url}/feed/two?device=a`)];
    const audience = async () => (await ask(`${pere.url}/push/two`, { body: "1" })).body.audience;
    expect(await audience()).toEqual({ addressed: 1, connected: 1 });
    one.close();
    await until(() => pere.engine.held.feeds === 1);
    expect((await device("two")).connected).toBeTrue();
    expect(await audience()).toEqual({ addressed: 1, connected: 1 });
    expect((await ask(`${pere.url}/channels?after=twn`)).body.channels[0]).toMatchObject({
      channel: "two",
      connected: 1,
    });
    await two.have(2);
    two.close();
    await until(() => pere.engine.held.feeds === 0);
    expect((await device("two")).connected).toBeFalse();
    expect(await audience()).toEqual({ addressed: 1, connected: 0 });
    expect(pere.engine.held).toEqual(EMPTY);
  });

  test("a feed of two channels connects its device in both, and disconnects it in both", async () => {
    const [both, one] = [
      await listen(`${pere.url}/feed/both-1,both-2?device=a`),
      await listen(`${pere.url}/feed/both-1?device=a`),
    ];
    expect(pere.engine.held.present).toBe(2);
    both.close();
    await until(() => pere.engine.held.feeds === 1);
    expect([(await device("both-1")).connected, (await device("both-2")).connected]).toEqual([true, false]);
    one.close();
    await until(() => pere.engine.held.feeds === 0);
  });

  test("a feed whose reader disconnects at any moment of its opening leaves nothing behind", async () => {
    const wires: Counted[] = [];
    // Some leave before they are told where they start, and in the end some after.
    let turns = 0;
    for (; turns < 12 || wires.every(({ told }) => told.length === 0); turns++)
      for (const between of [() => Promise.resolve(), () => new Promise<void>((resolve) => setImmediate(resolve))]) {
        const wire = new Counted();
        const feed = pere.engine.follow(asked(`leaves-${turns}`, ["leaves-1", "leaves-2"]), wire);
        for (let turn = 0; turn < turns; turn++) await between();
        feed.stop();
        const heard = wire.told.length;
        expect(pere.engine.held).toEqual(EMPTY);
        wires.push(wire);
        // What was on its way for it arrives, at nobody.
        await ask(`${pere.url}/push/leaves-1`, { body: "1" });
        expect(wire.told).toHaveLength(heard);
        expect(pere.engine.held).toEqual(EMPTY);
      }
    // Who left before anything was done for it was not even enrolled.
    const enrolled = (await ask(`${pere.url}/devices/leaves-1`)).body.devices as { device: string }[];
    expect(enrolled.map(({ device }) => device)).not.toContain("leaves-0");
    expect(enrolled.map(({ device }) => device)).toContain(`leaves-${turns - 1}`);
  });

  test("many feeds that open and close at once leave nothing behind", async () => {
    const opening = Array.from({ length: 120 }, async (_, n) => {
      const abort = new AbortController();
      const response = fetch(`${pere.url}/feed/crowd?device=d${n}`, { signal: abort.signal });
      for (let turn = 0; turn < n; turn++) await new Promise((resolve) => setImmediate(resolve));
      abort.abort();
      await response.catch(() => {});
    });
    await Promise.all(opening);
    // Asked after them all: whatever they set going has been begun.
    await push(pere.url, "crowd", 1);
    await until(
      () => Bun.deepEquals(pere.engine.held, EMPTY),
      () => `nothing to be held; held are ${JSON.stringify(pere.engine.held)}`,
    );
    expect((await ask(`${pere.url}/push/crowd`, { body: "2" })).body.audience.connected).toBe(0);
  });
});

describe("draining", () => {
  test("a feed that is opened after the drain began is told so and leaves nothing behind; pushes are refused, reads continue", async () => {
    const going = await start();
    await enrol("c", "a", going.url);
    const id = await push(going.url, "c", 1);
    await going.engine.drain();

    for (const query of ["", "?device=a", "?device=new"]) {
      const abort = new AbortController();
      const stream = new Stream(await fetch(`${going.url}/feed/c${query}`, { signal: abort.signal }), abort);
      expect(await stream.own("bye")).toEqual({ reason: "drain" });
      await until(() => stream.ended);
      expect(stream.messages).toHaveLength(1);
      expect(stream.retry).toBeGreaterThanOrEqual(250);
    }
    const socket = await connect(`${going.url}/feed/c?device=a`);
    expect((await socket.closed).code).toBe(1012);
    expect((await poll("/feed/c?device=a&wait=60", going.url)).status).toBe(503);
    expect(going.engine.held).toEqual(EMPTY);

    const refused = await ask(`${going.url}/push/c`, { body: "2" });
    expect(refused.status).toBe(503);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    const events = await ask(`${going.url}/events/c`);
    expect([events.status, events.body.events.map((event: { id: string }) => event.id)]).toEqual([200, [id]]);
    expect((await ask(`${going.url}/channels`)).body.channels).toMatchObject([{ events: 1, last: id, devices: 1 }]);
    expect((await give(going.url, "c", id, "a", "done")).body.recorded).toBe(1);
    expect((await ask(`${going.url}/events/c/${id}`)).body.complete).toBeTrue();
    await going.stop();
  });
});

describe("signs of life", () => {
  test("a receipt of a device without a feed is one, also a repeated one; a rejected one is not", async () => {
    await enrol("word", "a");
    const id = await push(pere.url, "word", 1);
    expect((await device("word")).seenAt).toBeNull();
    for (const expected of [{ recorded: 1 }, { duplicate: 1 }]) {
      now += 5_000;
      expect((await give(pere.url, "word", id, "a", "done")).body).toMatchObject(expected);
      expect(await device("word")).toMatchObject({ connected: false, seenAt: iso(now) });
    }
    const seen = now;
    now += 5_000;
    expect((await give(pere.url, "word", id.replace("-1", "-9"), "a", "done")).status).toBe(422);
    expect((await device("word")).seenAt).toBe(iso(seen));
  });

  test("a message on a socket is one, whatever it contains, on every channel of the feed", async () => {
    const { socket, messages } = await connect(`${pere.url}/feed/talk-1,talk-2?device=a`);
    const opened = now;
    expect((await device("talk-1")).seenAt).toBe(iso(opened));
    now += 5_000;
    expect((await device("talk-1")).seenAt).toBe(iso(opened));
    socket.send("{");
    await until(() => messages.length === 2);
    expect((await device("talk-1")).seenAt).toBe(iso(now));
    expect((await device("talk-2")).seenAt).toBe(iso(now));
    socket.close();
    await until(() => pere.engine.held.feeds === 0);
  });

  test("a pong is one", async () => {
    const socket = new NodeWebSocket(`${pere.url.replace("http", "ws")}/feed/pong?device=a`);
    await until(() => pere.engine.held.present === 1);
    const opened = now;
    now += 5_000;
    expect((await device("pong")).seenAt).toBe(iso(opened));
    socket.pong();
    await until(async () => (await device("pong")).seenAt === iso(now));
    socket.terminate();
    await until(() => pere.engine.held.feeds === 0);
  });

  test("are stored while the service runs, and the newest outlives it", async () => {
    const path = join(temporary(), "pere.db");
    let time = T;
    const store = new SqliteStore({ path });
    const engine = new Engine(store, { now: () => time, limits: { seenMs: 20 } });
    await engine.enrol("c", "a");
    const { epoch } = await engine.push("c", [draft("1")]);
    time += 5_000;
    const word = {
      event: { epoch, seq: 1 },
      device: "a",
      detail: null,
      deviceAt: null,
      after: null,
      round: null,
      retry: true,
    };
    await engine.feedback([{ channel: "c", draft: { ...word, status: "received" } }]);
    await until(async () => (await store.devices("c", "", 1, time)).items[0]!.seenAt === time);
    expect(await engine.directory.device("c", "a")).toMatchObject({ seenAt: time });
    // What is written is let go of: the store is asked from here on.
    await store.seen("c", new Map([["a", time + 1]]));
    expect(await engine.directory.device("c", "a")).toMatchObject({ seenAt: time + 1 });
    await engine.drain();
    await engine.close();

    const again = await start({ now: () => time, limits: { seenMs: 3_600_000 } }, path);
    expect((await device("c", again.url)).seenAt).toBe(iso(T + 5_001));
    time += 5_000;
    await give(again.url, "c", `${epoch}-1`, "a", "done");
    // Not yet due to be written: the drain does it.
    await again.stop();
    const last = await start({ now: () => time + 60_000 }, path);
    expect((await device("c", last.url)).seenAt).toBe(iso(T + 10_000));
    await last.stop();
  });
});

describe("quiet feeds", () => {
  test("the second beat after a skipped event is a bare comment", async () => {
    const quick = await start({ limits: { beatMs: 45 } });
    const stream = await listen(`${quick.url}/feed/c?device=a`);
    const others = await push(quick.url, "c", 1, "?to=b");
    const moved = `:\nid: ${others}\n\n`;
    await until(() => stream.raw.includes(moved));
    const comments = stream.comments.length;
    await until(() => stream.comments.length >= comments + 3);
    expect(stream.raw.split(moved)).toHaveLength(2);
    expect(stream.raw.split(moved)[1]).toMatch(/^(:\n\n){3,}$/);
    stream.close();
    await quick.stop();
  });

  test("a stalled reader gets no keep-alive", async () => {
    const quick = await start({ limits: { beatMs: 15 } });
    const [stuck, well] = [new Counted(true), new Counted()];
    const feeds = [quick.engine.follow(asked("a"), stuck), quick.engine.follow(asked("b"), well)];
    await until(() => stuck.told.length + well.told.length === 2);
    await push(quick.url, "c", 1);
    await until(() => stuck.told.length === 2);
    const [before, from] = [stuck.beats, well.beats];
    await push(quick.url, "c", 2);
    await until(() => well.beats >= from + 5);
    expect(stuck.beats).toBe(before);
    expect(stuck.told).toEqual(["ready", "write"]);
    for (const feed of feeds) feed.stop();
    await quick.stop();
  });
});

describe("what a device has lost", () => {
  test("is what was addressed to it: a device that joined just after a dropped event has no gap, one that joined just before has one", async () => {
    const small = await start({ limits: { keptEvents: 1 } });
    await enrol("c", "before", small.url);
    const dropped = await push(small.url, "c", 1);
    await enrol("c", "after", small.url);
    const kept = await push(small.url, "c", 2);
    await until(async () => (await ask(`${small.url}/events/c`)).body.events.length === 1);
    const after = await poll("/feed/c?device=after", small.url);
    expect(after.body).toMatchObject({ events: [{ id: kept }], last: kept });
    expect(after.body.gaps).toBeUndefined();
    const before = await poll("/feed/c?device=before", small.url);
    expect(before.body).toMatchObject({
      events: [{ id: kept }],
      gaps: [{ channel: "c", after: dropped.replace("-1", "-0"), from: kept }],
    });
    await small.stop();
  });

  test("is reported at once, also to a poll that would otherwise wait", async () => {
    let time = T;
    const old = await start({ now: () => time, limits: { keptMs: 60_000, trimMs: 10 } });
    await enrol("c", "owes", old.url);
    const first = await push(old.url, "c", 1);
    time += 60_001;
    await until(async () => (await ask(`${old.url}/events/c`)).body.events.length === 0);
    const [zero, next] = [first.replace("-1", "-0"), first.replace("-1", "-2")];
    for (const query of [`?last-event-id=${zero}`, `?since=${zero}`, "?device=owes"])
      expect((await poll(`/feed/c${query}&wait=60`, old.url)).body).toEqual({
        events: [],
        last: first,
        gaps: [{ channel: "c", after: zero, from: next }],
      });
    await old.stop();
  });
});

describe("many devices that reconnect at once", () => {
  /** Calls to a store, by what was asked. */
  const counting = (store: Store, calls: Map<string, number>): Store =>
    new Proxy(store, {
      get(target, name: string) {
        const value: unknown = Reflect.get(target, name);
        if (typeof value !== "function") return value;
        return (...given: unknown[]): unknown => {
          calls.set(name, (calls.get(name) ?? 0) + 1);
          return Reflect.apply(value, target, given);
        };
      },
    });

  /** So many devices missed a hundred events and come back in one turn; gives what the store was asked until all have them. */
  async function back(crowd: number): Promise<ReadonlyMap<string, number>> {
    const calls = new Map<string, number>();
    const store = new SqliteStore({ path: ":memory:" });
    const engine = new Engine(counting(store, calls));
    const names = Array.from({ length: crowd }, (_, n) => `device-${n}`);
    await Promise.all(names.map((name) => engine.enrol("c", name)));
    const { epoch } = await engine.push("c", [draft("0")]);
    await engine.push(
      "c",
      Array.from({ length: 100 }, () => draft("1")),
    );
    const seen = names.map(() => 0);
    calls.clear();
    names.forEach((name, index) => {
      const wire = new Counted();
      wire.write = (_, { entries }: Batch) => void (seen[index]! += entries.length);
      engine.follow({ ...asked(name), last: [{ epoch, seq: 1 }] }, wire);
    });
    await until(() => seen.every((count) => count >= 100));
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(new Set(seen)).toEqual(new Set([100]));
    const found = new Map(calls);
    await engine.drain();
    await engine.close();
    return found;
  }

  test("the log is read once for all of them, and each device is looked up once", async () => {
    const one = await back(1);
    const many = await back(2_000);
    expect(many.get("events")!).toBeLessThanOrEqual(2 * one.get("events")!);
    for (const name of ["join", "deviceStates"]) expect(many.get(name)!).toBeLessThanOrEqual(2_000 * one.get(name)!);
  });
});

test("a device that disconnects while it is enrolled again in a new epoch is not reported as connected", async () => {
  const told: (number | null)[] = [];
  class Told extends SqliteStore {
    override setPresence(_channel?: string, _device?: string, joined: number | null = null): void {
      told.push(joined);
    }
  }
  const store = new Told({ path: ":memory:" });
  const presence = new Presence<string>(
    store,
    () => T,
    () => {},
  );
  presence.enter("c", "a", "feed", 0);
  const again = presence.rejoin("c", "a", null);
  presence.leave("c", "a", "feed");
  await again;
  expect(told).toEqual([0, null]);
  await store.close();
});

test("signs of life are stored one after the other, the newest last, however slow the store is", async () => {
  const written: string[] = [];
  const { promise: slow, resolve: goOn } = Promise.withResolvers<void>();
  class Slow extends SqliteStore {
    override async seen(_channel: string, times: ReadonlyMap<string, number>): Promise<void> {
      const said = [...times].join();
      written.push(`${said} begins`);
      await slow;
      written.push(`${said} ends`);
    }
  }
  const store = new Slow({ path: ":memory:" });
  let at = 1;
  const presence = new Presence<string>(
    store,
    () => at++,
    () => {},
  );
  presence.heard("c", "a");
  void presence.writeHeard();
  await until(() => written.length > 0, "the first writing");
  presence.heard("c", "a");
  void presence.writeHeard();
  presence.heard("c", "a");
  const last = presence.writeHeard();
  goOn();
  await last;
  expect(written).toEqual(["a,1 begins", "a,1 ends", "a,3 begins", "a,3 ends"]);
  await store.close();
});

describe("more channels in one commit than are cached", () => {
  /** One more than the store keeps counters of. */
  const names = Array.from({ length: 10_001 }, (_, n) => `c${String(n).padStart(5, "0")}`);

  test("pushed to twice in one turn: each seq grows by exactly 1, and each event is announced once and in order", async () => {
    let epochs = 0;
    const store = new SqliteStore({ path: ":memory:", epoch: () => `epoch${epochs++}` });
    const told = new Map<string, number[]>();
    hear(store, ({ channel, entries }) =>
      told.set(channel, [...(told.get(channel) ?? []), ...entries.map(({ seq }) => seq)]),
    );
    const all = (data: string) => names.map((name) => store.append(name, [draft(data)], T));
    const twice = await Promise.all([...all("1"), ...all("2")]);
    const again = await Promise.all(all("3"));
    const seqs = [...twice, ...again].map(({ first }) => first);
    expect(seqs).toEqual([1, 2, 3].flatMap((seq) => names.map(() => seq)));
    expect([...told.keys()]).toEqual(names);
    for (const seen of told.values()) expect(seen).toEqual([1, 2, 3]);
    // Nothing was undone and done again.
    expect(epochs).toBe(names.length);
    await store.close();
  });

  test("enrolled in twice in one turn: each has two devices", async () => {
    const store = new SqliteStore({ path: ":memory:" });
    await Promise.all(["a", "b"].flatMap((device) => names.map((name) => store.enrol(name, device, T))));
    const { items } = await store.channels("", names.length);
    expect(items.filter(({ devices }) => devices !== 2)).toEqual([]);
    expect(items).toHaveLength(names.length);
    expect(await store.append(names[0]!, [draft("1")], T)).toMatchObject({ first: 1, addressed: 2 });
    await store.close();
  });
});
