/**
 * A wall clock that leaps drops nothing and expires nothing, on either store; it is told; and it is believed when it has stood for minutes.
 *
 * Both clocks are held by the test. That something did not happen is said after something else of the same round did: an event that retention drops
 * by number, a deadline that passes by the steady clock.
 */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Clock } from "../engine/clock.ts";
import type { Service } from "../index.ts";
import { ask, give, push, start, startOn, temporary, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const DAY = 24 * 60 * MINUTE;
const NOW = Date.UTC(2026, 10, 22, 10);

/** Two clocks that a test moves. */
function clocks(wall = NOW) {
  const hands = { wall, steady: 5_000 };
  return {
    hands,
    options: { now: () => hands.wall, steady: () => hands.steady },
    pass(ms: number): void {
      hands.wall += ms;
      hands.steady += ms;
    },
  };
}

describe("the clock", () => {
  const told: string[] = [];
  const open = (wall = NOW) => {
    told.length = 0;
    const { hands, pass } = clocks(wall);
    const clock = new Clock({ wall: () => hands.wall, steady: () => hands.steady, warn: (said) => told.push(said) });
    return { hands, pass, clock };
  };

  test("is the wall clock, also if that is corrected by seconds or slewed by any amount", () => {
    const { hands, pass, clock } = open();
    for (const step of [0, 4_000, -4_000, 4_000]) {
      hands.wall += step;
      expect(clock.now()).toBe(hands.wall);
      pass(SECOND);
    }
    for (let n = 0; n < 1_000; n++) {
      pass(SECOND);
      hands.wall += 10;
      expect(clock.now()).toBe(hands.wall);
    }
    expect([told, clock.leapMs, clock.advice]).toEqual([[], 0, []]);
  });

  test.each([
    ["ahead", 8 * DAY],
    ["back", -8 * DAY],
  ])("continues second by second while the wall clock has leapt %s, and reports it once", (way, ms) => {
    const { hands, pass, clock } = open();
    hands.wall += ms;
    expect(clock.now()).toBe(NOW);
    pass(1_500);
    expect(clock.now()).toBe(NOW + 1_500);
    expect(clock.leapMs).toBe(ms);
    expect(told).toEqual([...clock.advice]);
    expect(told[0]).toContain(`The clock leapt 691200.0 s ${way}`);
    hands.wall -= ms;
    expect(clock.now()).toBe(NOW + 1_500);
    expect([clock.leapMs, clock.advice, told.length]).toEqual([0, [], 2]);
  });

  test("counts the time that the machine slept, and treats a change on top of that as a leap", () => {
    const { hands, pass } = clocks();
    let slept = 0;
    const clock = new Clock({
      wall: () => hands.wall,
      steady: () => hands.steady,
      uptime: () => Math.floor((hands.steady + slept) / SECOND) * SECOND,
      warn: () => {},
    });
    for (const ms of [8 * 60 * MINUTE, 3 * DAY]) {
      slept += ms;
      hands.wall += ms;
      expect([clock.now(), clock.leapMs]).toEqual([hands.wall, 0]);
      pass(MINUTE);
    }
    const before = clock.now();
    slept += MINUTE;
    hands.wall += MINUTE + DAY;
    expect(Math.abs(clock.now() - before - MINUTE)).toBeLessThanOrEqual(SECOND);
    expect(Math.abs(clock.leapMs - DAY)).toBeLessThanOrEqual(SECOND);
  });

  test("accepts a leap after five minutes, not before; a further leap starts the five minutes again", () => {
    const { hands, pass, clock } = open();
    hands.wall += 2 * DAY;
    clock.now();
    pass(4 * MINUTE);
    hands.wall += DAY;
    expect(clock.now()).toBe(NOW + 4 * MINUTE);
    pass(5 * MINUTE - 1);
    expect(clock.now()).toBe(NOW + 9 * MINUTE - 1);
    pass(1);
    expect(clock.now()).toBe(hands.wall);
    expect(clock.leapMs).toBe(0);
    pass(DAY);
    expect(clock.now()).toBe(hands.wall);
  });

  test("that started in 1970 does not jump to the current time at once", () => {
    const { hands, pass, clock } = open(30 * SECOND);
    pass(MINUTE);
    hands.wall = NOW;
    expect(clock.now()).toBe(90 * SECOND);
    pass(5 * MINUTE);
    expect(clock.now()).toBe(NOW + 5 * MINUTE);
  });
});

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
let redis: RedisServer | undefined;
afterAll(() => redis?.end());

type Options = ReturnType<typeof clocks>["options"];
const LIMITS = { trimMs: 20, keep: [{ pattern: "control", events: 1, ms: null }] };

/** Opens a service, and one after it on what it kept. */
const STORES: [string, () => Promise<(options: Options) => Promise<Service>>, string | null][] = [
  [
    "SQLite",
    async () => {
      const path = join(temporary(), "pere.db");
      return (options) => start({ ...options, limits: LIMITS }, path);
    },
    null,
  ],
  [
    "Redis",
    async () => {
      redis ??= await startRedis();
      await redis.ask("FLUSHALL");
      return (options) => startOn(redis!.url, { ...options, limits: LIMITS });
    },
    noRedis,
  ],
];

describe.each(STORES)("on %s", (_, prepare, missing) => {
  const it = test.skipIf(missing !== null);
  const KEYED = { body: "1", headers: { "Idempotency-Key": "k" } };

  const opened = async (open: (options: Options) => Promise<Service>, options: Options) => {
    const service = await open(options);
    closing.push(() => service.stop());
    return service;
  };

  const kept = async (url: string, channel: string): Promise<number> =>
    (await ask(`${url}/events/${channel}`)).body.events.length;
  /** A round of trimming that began after the call has passed. */
  const aRound = async (url: string): Promise<void> => {
    for (let round = 0; round < 2; round++) {
      for (let n = 0; n < 3; n++) await push(url, "control", n);
      await until(async () => (await kept(url, "control")) === 1, "retention by number");
    }
  };
  const missingOf = async (url: string, id: string): Promise<number> =>
    (await ask(`${url}/events/orders/${id}`)).body.receipts.missing;

  /** An event of each kind that time ends: one that gets old, one with a deadline, one with a time to live; and a key. */
  const fill = async (url: string) => {
    await ask(`${url}/devices/orders/d`, { method: "PUT" });
    const { body } = await ask(`${url}/push/orders`, KEYED);
    const [owed, expiring] = [
      await push(url, "orders", "owed", "?deadline=3600"),
      await push(url, "orders", "expiring", "?ttl=3600"),
    ];
    return { old: body.id as string, owed, expiring };
  };

  const expectAllThere = async (url: string, { old, owed }: { old: string; owed: string }, place: string) => {
    await aRound(url);
    expect(await kept(url, "orders")).toBe(3);
    expect(await missingOf(url, owed)).toBe(0);
    expect((await ask(`${url}/push/orders`, KEYED)).body.id).toBe(old);
    const headers = { Accept: "application/json" };
    const polled = await ask(`${url}/feed/orders?device=d&last-event-id=${place}`, { headers });
    expect(polled.body.events).toHaveLength(3);
  };

  it("a clock that leaps eight days ahead and back expires nothing, and is reported meanwhile", async () => {
    const { hands, pass, options } = clocks();
    const { url } = await opened(await prepare(), options);
    const events = await fill(url);
    const place = events.old.replace(/\d+$/, "0");
    hands.wall += 8 * DAY;
    await expectAllThere(url, events, place);
    const advice = async () => (await ask(`${url}/ready`)).body.advice.filter((one: string) => one.includes("leapt"));
    expect(await advice()).toHaveLength(1);
    expect((await ask(`${url}/metrics`)).text).toContain("\npere_clock_leap_seconds 691200\n");
    // What is pushed meanwhile has its time by the wall clock, which may be right: nothing of it ends too early.
    const meanwhile = await push(url, "orders", "meanwhile", "?deadline=1");
    expect((await ask(`${url}/events/orders/${meanwhile}`)).body.at).toBe(new Date(hands.wall).toISOString());
    pass(1_500);
    hands.wall -= 8 * DAY;
    expect(await advice()).toHaveLength(0);
    expect((await give(url, "orders", events.owed, "d", "done")).status).toBe(200);
    await aRound(url);
    expect(await kept(url, "orders")).toBe(4);
  });

  it("events pushed after a wrong clock was corrected expire in time, also once the correction is accepted", async () => {
    const { hands, pass, options } = clocks(20 * SECOND);
    const { url } = await opened(await prepare(), options);
    await push(url, "orders", "before");
    hands.wall = NOW;
    await ask(`${url}/devices/orders/d`, { method: "PUT" });
    pass(4 * MINUTE);
    const owed = await push(url, "orders", "after", "?deadline=600");
    await push(url, "orders", "after", "?ttl=600");
    pass(2 * MINUTE);
    await aRound(url);
    expect(await missingOf(url, owed)).toBe(0);
    const polled = await ask(`${url}/feed/orders?device=d`, { headers: { Accept: "application/json" } });
    expect(polled.body.events).toHaveLength(2);
    pass(10 * MINUTE);
    await until(async () => (await missingOf(url, owed)) === 1, "the deadline");
  });

  it("a leap that lasts for minutes is accepted: what has expired by then is dropped", async () => {
    const { hands, pass, options } = clocks();
    const { url } = await opened(await prepare(), options);
    const events = await fill(url);
    hands.wall += 2 * DAY;
    await expectAllThere(url, events, events.old.replace(/\d+$/, "0"));
    pass(5 * MINUTE + SECOND);
    await until(async () => (await missingOf(url, events.owed)) === 1, "the deadline");
    hands.wall += 8 * DAY;
    await aRound(url);
    expect(await kept(url, "orders")).toBe(3);
    pass(5 * MINUTE + SECOND);
    await until(async () => (await kept(url, "orders")) === 0, "retention by age");
  });

  it("a start in 1970 drops nothing of what was stored before, nor does the leap to the current time", async () => {
    const open = await prepare();
    const first = await open(clocks().options);
    const events = await fill(first.url);
    await first.stop();
    const { hands, pass, options } = clocks(20 * SECOND);
    const { url } = await opened(open, options);
    const place = events.old.replace(/\d+$/, "0");
    await expectAllThere(url, events, place);
    pass(MINUTE);
    hands.wall = NOW + 2 * MINUTE;
    await expectAllThere(url, events, place);
    pass(5 * MINUTE + SECOND);
    await expectAllThere(url, events, place);
  });
});
