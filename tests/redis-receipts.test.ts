/**
 * Receipts on Redis: those that come together share scripts and messages, each request gets its own verdicts, and what waits is limited.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { EventDraft, Position, ReceiptDraft } from "../engine/model.ts";
import { type DatedReceipt, RECEIPTS_AT_ONCE, RedisReceipts, WAIT_MS, WAITING_MAX } from "../engine/redis/receipts.ts";
import { RedisStore } from "../engine/redis/store.ts";
import type { Verdict } from "../engine/store.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const NOW = 1_700_000_000_000;
const DEVICES = 2_000;

const receipt = (event: Position, device: string, status: "done" | "received" = "done"): ReceiptDraft => ({
  event,
  device,
  status,
  detail: null,
  deviceAt: null,
  after: null,
  round: null,
  retry: false,
});
const draft = (more: Partial<EventDraft> = {}): EventDraft => ({
  type: null,
  data: "{}",
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  where: null,
  key: null,
  attempts: null,
  ...more,
});

const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

async function opened(callMs?: number): Promise<{ redis: RedisServer; store: RedisStore }> {
  const redis = await startRedis();
  endings.push(() => redis.end());
  const store = await RedisStore.open({ urls: [redis.url], ...(callMs === undefined ? {} : { callMs }) });
  endings.push(() => store.close());
  return { redis, store };
}

const names = (count: number): string[] => Array.from({ length: count }, (_, index) => `device-${index}`);

/** Enrols devices and pushes an event to them. */
async function pushed(store: RedisStore, devices: readonly string[], event = draft()): Promise<Position> {
  for (let at = 0; at < devices.length; at += 500)
    await Promise.all(devices.slice(at, at + 500).map((device) => store.enrol("c", device, NOW)));
  const { epoch, first } = await store.append("c", [event], NOW);
  return { epoch, seq: first };
}

const calls = async (redis: RedisServer, command: string): Promise<number> =>
  Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await redis.ask("INFO", "commandstats"))?.[1] ?? 0);

describe.skipIf(noRedis !== null)("on a real Redis", () => {
  test("a crowd of receipts shares scripts and messages, and each gets its own verdict", async () => {
    const { redis, store } = await opened();
    const event = await pushed(store, names(DEVICES));
    const before = [await calls(redis, "evalsha"), await calls(redis, "publish")];
    const verdicts = await Promise.all([
      ...names(DEVICES).map((device) => store.record("c", [receipt(event, device)], NOW)),
      store.record("c", [receipt(event, "device-7"), receipt(event, "stranger")], NOW),
      store.record("c", [receipt({ ...event, seq: 99 }, "device-7")], NOW),
    ]);
    const results = verdicts.map((some) => some.map(({ result }) => result));
    expect(results.slice(0, DEVICES)).toEqual(names(DEVICES).map(() => ["recorded"]));
    expect(results.slice(DEVICES)).toEqual([["duplicate", "unaddressed"], ["unknown"]]);
    // The first two are sent at once, alone; others may have been sent in between for the store's own work.
    const scripts = 2 + Math.ceil((DEVICES + 1) / RECEIPTS_AT_ONCE);
    expect((await calls(redis, "evalsha")) - before[0]!).toBeLessThanOrEqual(scripts + 5);
    expect((await calls(redis, "publish")) - before[1]!).toBeLessThanOrEqual(scripts);
    const tally = (await store.tallies("c", event.epoch, event.seq, event.seq))!.get(event.seq)!;
    expect(tally.done).toBe(DEVICES);
  }, 60_000);

  test("each receipt in a script counts from when it came, before a deadline or after it", async () => {
    const { store } = await opened();
    const event = await pushed(store, names(4), draft({ deadline: 10 }));
    const at = (index: number, ms: number) => store.record("c", [receipt(event, `device-${index}`)], NOW + 10_000 + ms);
    // Two that are sent at once, and two that share the next script.
    await Promise.all([at(0, -2), at(1, -1), at(2, 0), at(3, -1)]);
    const receipts = (await store.receipts("c", event.epoch, 0, 100))!;
    expect(
      receipts
        .filter(({ note }) => note === null)
        .map(({ device, status, late, at }) => [device, status, late, at - NOW]),
    ).toEqual([
      ["device-0", "done", false, 9_998],
      ["device-1", "done", false, 9_999],
      ["device-2", "missing", false, 10_000],
      ["device-2", "done", true, 10_000],
      ["device-3", "done", false, 9_999],
    ]);
  });

  test("if Redis stalls, receipts that wait are refused with the ones in flight, and are never sent", async () => {
    const { redis, store } = await opened();
    const event = await pushed(store, names(100));
    redis.pause();
    const answers = await Promise.all(
      names(100).map((device) =>
        store.record("c", [receipt(event, device)], NOW).then(String, (error: Error) => error.message),
      ),
    );
    expect(answers.filter((answer) => answer.endsWith("it is unknown whether this was stored"))).toHaveLength(2);
    expect(answers.filter((answer) => answer.endsWith("nothing was stored"))).toHaveLength(98);
    redis.resume();
    const other = await RedisStore.open({ urls: [redis.url] });
    endings.push(() => other.close());
    const tally = (await other.tallies("c", event.epoch, event.seq, event.seq))!.get(event.seq)!;
    expect(tally.done).toBeLessThanOrEqual(2);
  }, 30_000);

  test("closing waits for receipts that wait", async () => {
    const { redis, store } = await opened();
    const event = await pushed(store, names(600));
    const recorded = Promise.all(names(600).map((device) => store.record("c", [receipt(event, device)], NOW)));
    await store.close();
    expect((await recorded).map(([verdict]) => verdict!.result)).toEqual(names(600).map(() => "recorded"));
    expect(await redis.ask("PING")).toBe("+PONG");
  }, 30_000);

  test("a reply that arrived while this process was held up is not late", async () => {
    const { store } = await opened(1_000);
    const event = await pushed(store, names(1));
    const answer = store.heads("c");
    // In the same turn, so the timeout is over before the reply can be read.
    await Promise.resolve();
    Bun.sleepSync(1_500);
    expect((await answer)?.epoch).toBe(event.epoch);
  });
});

describe("what waits", () => {
  const RECORDED: Verdict = { result: "recorded", state: "done", late: null, due: null };
  const EVENT: Position = { epoch: "e", seq: 1 };
  const some = (count: number): ReceiptDraft[] => names(count).map((device) => receipt(EVENT, device));

  /** Why something is refused now; null: it waits, or it succeeded. */
  const refusal = (answer: Promise<unknown>): Promise<string | null> =>
    Promise.race([
      answer.then(
        () => null,
        (error: Error) => error.message,
      ),
      new Promise<null>((resolve) => setImmediate(resolve, null)),
    ]);

  /** Scripts that end when a test says so. */
  function held() {
    const scripts: { receipts: readonly DatedReceipt[]; end: () => void }[] = [];
    let now = 0;
    const queue = new RedisReceipts(
      (_, receipts) =>
        new Promise<Verdict[]>((resolve) => {
          scripts.push({ receipts, end: () => resolve(receipts.map(() => RECORDED)) });
        }),
      () => now,
    );
    return { queue, scripts, pass: (ms: number) => (now += ms) };
  }

  test("requests are not split, and a script has as many as fit", async () => {
    const { queue, scripts } = held();
    const sizes = [1, 1, RECEIPTS_AT_ONCE - 1, 1, 1_000, 3];
    const answers = Promise.all(sizes.map((size) => queue.record("c", some(size), NOW)));
    for (let next = 0; next < scripts.length; next++) {
      scripts[next]!.end();
      await new Promise(setImmediate);
    }
    expect(scripts.map(({ receipts }) => receipts.length)).toEqual([1, 1, RECEIPTS_AT_ONCE, 1_000, 3]);
    expect((await answers).map(({ length }) => length)).toEqual(sizes);
    await queue.idle();
  });

  test("channels do not wait for each other", () => {
    const { queue, scripts } = held();
    for (const channel of ["a", "b", "c"])
      for (let count = 0; count < 9; count++) void queue.record(channel, some(1), NOW);
    expect(scripts).toHaveLength(3 * 2);
  });

  test("is limited in number", async () => {
    const { queue } = held();
    for (let count = 0; count < WAITING_MAX / 1_000; count++)
      queue.record("c", some(1_000), NOW).catch(() => expect.unreachable());
    // Two of them are in flight.
    const more = () => queue.record("c", some(1_000), NOW);
    void more();
    void more();
    expect(await refusal(more())).toBe(`Redis does not keep up: ${WAITING_MAX} receipts wait; nothing was stored`);
  });

  test("is limited in time, while Redis answers others", async () => {
    const { queue, scripts, pass } = held();
    const answers = Array.from({ length: 3 }, () => queue.record("c", some(1), NOW));
    pass(WAIT_MS + 1);
    const fresh = queue.record("c", some(2), NOW);
    scripts[0]!.end();
    expect(await refusal(answers[2]!)).toBe("Redis does not keep up: waited 10 s; nothing was stored");
    await new Promise(setImmediate);
    expect(scripts[2]!.receipts).toHaveLength(2);
    for (const { end } of scripts) end();
    expect(await fresh).toEqual([RECORDED, RECORDED]);
  });
});
