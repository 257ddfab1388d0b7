/**
 * Pushes for later, as a publisher and a device see them: on one service, and on two instances with one Redis, killed in between.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Service } from "../index.ts";
import { ask, listen, type Process, push, spawn, start, startOn, temporary, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

setDefaultTimeout(60_000);
const JSON_BODY = { "Content-Type": "application/json" };
const later = (url: string, channel: string, query: string, data = "1", headers: Record<string, string> = {}) =>
  ask(`${url}/push/${channel}?${query}`, { method: "POST", headers: { ...JSON_BODY, ...headers }, body: data });
const soon = (ms: number, now = Date.now()): string => encodeURIComponent(new Date(now + ms).toISOString());
const eventsOf = async (url: string, channel: string): Promise<{ id: string; data: unknown; scheduled?: string }[]> => {
  const answer = await ask(`${url}/events/${channel}?limit=1000`);
  return answer.status === 404 ? [] : answer.body.events;
};

describe("a push for later", () => {
  let wall = Date.parse("2027-03-27T12:00:00Z");
  let pere: Service;
  let count = 0;
  const fresh = (): string => `later-${++count}`;
  beforeAll(async () => void (pere = await start({ now: () => wall })));
  afterAll(() => pere.stop());

  test("is answered with its id and when it is due, and is an event for the devices enrolled at that time", async () => {
    const channel = fresh();
    const at = wall + 3_600_000;
    const answer = await later(pere.url, channel, `at=${soon(3_600_000, wall)}&type=order&deadline=60`, '{"n":1e400}');
    expect(answer.status).toBe(202);
    const { id } = answer.body;
    expect(answer.body).toEqual({ id, channel, next: new Date(at).toISOString() });
    expect(answer.headers.get("location")).toBe(`/scheduled/${channel}/${id}`);
    const read = await ask(`${pere.url}${answer.headers.get("location")}`);
    expect(read.body).toMatchObject({ id, next: new Date(at).toISOString(), every: null, tz: null, last: null });
    expect(read.body.options).toEqual({ type: "order", deadline: "60" });
    expect(read.text).toEndWith('"data":{"n":1e400}}');
    expect(await eventsOf(pere.url, channel)).toEqual([]);

    const feed = await listen(`${pere.url}/feed/${channel}?device=till`);
    wall = at - 1;
    await Bun.sleep(0);
    expect(feed.events).toEqual([]);
    wall = at;
    const event = await until(() => feed.events[0]);
    expect(event.data).toContain('"data":{"n":1e400}');
    expect(JSON.parse(event.data)).toMatchObject({ type: "order", scheduled: id, seq: 1 });
    const [state] = await eventsOf(pere.url, channel);
    expect(state).toMatchObject({ scheduled: id, audience: { addressed: 1, connected: 1 } });
    const done = await ask(`${pere.url}/scheduled/${channel}/${id}`);
    expect(done.body).toMatchObject({ next: null, last: state!.id });
    feed.close();
  });

  test("at a time that has passed is due at once", async () => {
    const channel = fresh();
    expect((await later(pere.url, channel, "at=2001-01-01T00:00:00Z")).status).toBe(202);
    await until(async () => (await eventsOf(pere.url, channel)).length === 1);
  });

  test("by an expression is pushed at each of its times; those that passed together are one push", async () => {
    const channel = fresh();
    wall = Date.parse("2027-03-27T00:00:00Z");
    const answer = await later(pere.url, channel, "every=30+2+*+*+*&tz=Europe/Rome");
    expect(answer.body.next).toBe("2027-03-27T01:30:00.000Z");
    const next = async (): Promise<string> => (await ask(`${pere.url}/scheduled/${channel}`)).body.scheduled[0].next;
    wall = Date.parse("2027-03-27T01:30:00Z");
    await until(async () => (await eventsOf(pere.url, channel)).length === 1);
    // On the next night 2:30 does not exist in Rome.
    expect(await next()).toBe("2027-03-28T01:00:00.000Z");
    wall = Date.parse("2027-04-02T12:00:00Z");
    await until(async () => (await eventsOf(pere.url, channel)).length === 2);
    expect(await next()).toBe("2027-04-03T00:30:00.000Z");
    expect((await eventsOf(pere.url, channel)).length).toBe(2);
  });

  test("is listed in pages, and cancelled", async () => {
    const channel = fresh();
    const ids: string[] = [];
    for (let n = 0; n < 3; n++) ids.push((await later(pere.url, channel, `at=${soon(60_000, wall)}`)).body.id);
    const first = (await ask(`${pere.url}/scheduled/${channel}?limit=2`)).body;
    const second = (await ask(`${pere.url}/scheduled/${channel}?limit=2&after=${first.next}`)).body;
    const listed = [...first.scheduled, ...second.scheduled].map(({ id }: { id: string }) => id);
    expect(listed.toSorted()).toEqual(ids.toSorted());
    expect(second.next).toBeNull();
    const one = `${pere.url}/scheduled/${channel}/${ids[0]}`;
    expect((await ask(one, { method: "DELETE" })).status).toBe(204);
    expect((await ask(one, { method: "DELETE" })).status).toBe(404);
    expect((await ask(one)).body).toMatchObject({
      status: 404,
      detail: `channel ${channel} has no scheduled push ${ids[0]}`,
    });
    wall += 60_000;
    await until(async () => (await eventsOf(pere.url, channel)).length === 2);
    const pushed = (await eventsOf(pere.url, channel)).map(({ scheduled }) => scheduled!);
    expect(pushed.toSorted()).toEqual(ids.slice(1).toSorted());
  });

  test("with the same Idempotency-Key is the same one; another time under the key is refused", async () => {
    const channel = fresh();
    const key = { "Idempotency-Key": "k" };
    const at = soon(60_000, wall);
    const first = await later(pere.url, channel, `at=${at}`, "1", key);
    const again = await later(pere.url, channel, `at=${at}`, "1", key);
    expect([first.status, again.status]).toEqual([202, 200]);
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    for (const query of [`at=${soon(90_000, wall)}`, `every=0+9+*+*+*`, "type=x", ""])
      expect((await later(pere.url, channel, query, "1", key)).status).toBe(422);
    await ask(`${pere.url}/scheduled/${channel}/${first.body.id}`, { method: "DELETE" });
    expect((await later(pere.url, channel, `at=${at}`, "1", key)).body).toMatchObject({
      status: 409,
      detail: "the push that was scheduled with this Idempotency-Key was cancelled; use a new key",
    });
    expect((await ask(`${pere.url}/scheduled/${channel}`)).body.scheduled).toEqual([]);
  });

  test("that is malformed or contradicts itself is refused with a sentence, and nothing is stored", async () => {
    const channel = fresh();
    const at = soon(60_000, wall);
    const cases: readonly [query: string, status: number, detail: string, headers?: Record<string, string>][] = [
      ["at=tomorrow", 400, 'at: "tomorrow" is not an ISO 8601 time with a zone, for example 2027-03-01T09:00:00Z'],
      ["at=2027-01-01T00:00:00", 400, "at:"],
      ["at=", 400, "at:"],
      ["every=0+9+*+*", 400, "every:"],
      ["every=99+9+*+*+*", 400, "every:"],
      ["every=0+0+30+2+*", 422, 'every: "0 0 30 2 *" is never due; no month has such a day'],
      ["every=0+9+*+*+*&tz=Mars/Base", 422, 'tz: there is no time zone "Mars/Base"; give a name such as Europe/Rome'],
      ["every=0+9+*+*+*&tz=", 400, "tz:"],
      ["tz=Europe/Rome", 422, "tz: a time zone needs every; the time in at has its own"],
      [`at=${at}&tz=UTC`, 422, "tz:"],
      [`at=${at}&every=0+9+*+*+*`, 422, "every: give at or every, not both"],
      [`at=${at}&deadline=0`, 422, "deadline:"],
      [`at=${at}`, 422, "Prefer: wait is for what is pushed now", { Prefer: "wait=5" }],
      [`at=${at}`, 422, "only one event can be scheduled at a time", { "Content-Type": "application/x-ndjson" }],
    ];
    for (const [query, status, detail, headers] of cases) {
      const answer = await later(pere.url, channel, query, "1", headers);
      expect([query, answer.status]).toEqual([query, status]);
      expect(answer.headers.get("content-type")).toBe("application/problem+json");
      expect(answer.body.detail).toStartWith(detail);
    }
    expect((await later(pere.url, channel, `at=${at}`, "{")).status).toBe(400);
    expect((await ask(`${pere.url}/channels?limit=1000`)).text).not.toContain(channel);
  });

  test("does not survive its cancellation in the moment when it is due", async () => {
    // Whoever was first: either there is an event and a cancelled rest, or there is none, but never one after the answer.
    for (let round = 0; round < 20; round++) {
      const channel = fresh();
      const { id } = (await later(pere.url, channel, `at=${soon(10, wall)}`)).body;
      wall += 10;
      await ask(`${pere.url}/scheduled/${channel}/${id}`, { method: "DELETE" });
      const { length } = await eventsOf(pere.url, channel);
      await push(pere.url, channel, "after");
      await Bun.sleep(1);
      expect((await eventsOf(pere.url, channel)).length).toBe(length + 1);
    }
  });
});

describe("a scheduled push is made exactly once", () => {
  const processes: Process[] = [];
  afterEach(async () => {
    await Promise.all(processes.splice(0).map((one) => one.end("SIGKILL")));
  });
  const run = async (env: Record<string, string>): Promise<Process> => {
    const one = await spawn(env);
    processes.push(one);
    return one;
  };
  /** Every id must have one event, however often a service was killed. */
  const onceEach = async (url: string, channels: readonly string[], ids: ReadonlySet<string>): Promise<void> => {
    const seen: string[] = [];
    await until(async () => {
      seen.length = 0;
      for (const channel of channels) seen.push(...(await eventsOf(url, channel)).map(({ scheduled }) => scheduled!));
      return new Set(seen).size >= ids.size;
    }, "every push");
    expect(seen.toSorted()).toEqual([...ids].toSorted());
  };

  test("by a service that is killed while it pushes, and was down over due times", async () => {
    const db = `${temporary()}/pere.db`;
    let pere = await run({ PERE_DB: db });
    const channels = ["a", "b", "c"];
    const ids = new Set<string>();
    for (let n = 0; n < 150; n++) {
      const answer = await later(pere.url, channels[n % 3]!, `at=${soon(50 + n * 10)}`, String(n));
      ids.add(answer.body.id);
    }
    for (let kill = 0; kill < 4; kill++) {
      const before = (await eventsOf(pere.url, "a")).length;
      await until(async () => (await eventsOf(pere.url, "a")).length > before || before >= 50);
      await pere.end("SIGKILL");
      pere = await run({ PERE_DB: db });
    }
    await onceEach(pere.url, channels, ids);
  });

  const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;
  describe.skipIf(noRedis !== null)(`on a real Redis${why}`, () => {
    let redis: RedisServer;
    beforeAll(async () => {
      redis = await startRedis();
    });
    afterAll(() => redis.end());

    test("by two instances that look at the same time", async () => {
      await redis.ask("FLUSHALL");
      const services = await Promise.all([startOn(redis.url), startOn(redis.url)]);
      const ids = new Set<string>();
      await Promise.all(
        Array.from({ length: 200 }, async (_, n) => {
          const { url } = services[n % 2]!;
          ids.add((await later(url, `c${n % 7}`, `at=${soon(300)}`)).body.id);
        }),
      );
      expect(ids.size).toBe(200);
      await onceEach(services[0].url, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"], ids);
      await Promise.all(services.map((service) => service.stop()));
    });

    test("by an instance that takes over from one that was killed", async () => {
      await redis.ask("FLUSHALL");
      const env = { REDIS_URL: redis.url };
      const [first, second] = [await run(env), await run(env)] as const;
      const ids = new Set<string>();
      for (let n = 0; n < 60; n++)
        ids.add((await later(first.url, `c${n % 3}`, `at=${soon(100 + n * 10)}`, String(n))).body.id);
      await until(async () => (await eventsOf(second.url, "c0")).length > 0);
      await first.end("SIGKILL");
      await onceEach(second.url, ["c0", "c1", "c2"], ids);
    });
  });
});
