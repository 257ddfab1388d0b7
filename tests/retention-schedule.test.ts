/**
 * Retention asks no channel that is at rest: it is told by the store where something is to be done, after a restart too, and of several instances one
 * asks. On both stores.
 */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Engine } from "../engine/engine.ts";
import { RedisLink } from "../engine/redis/connection.ts";
import { TrimmableChannels } from "../engine/redis/retention.ts";
import { SCRIPTS } from "../engine/redis/scripts.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { draft, T } from "./contract/calls.ts";
import { temporary, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const KEPT_MS = 60_000;
const CHANNELS = 250;
const nameOf = (n: number): string => `channel-${String(n).padStart(3, "0")}`;

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
let redis: RedisServer | undefined;
afterAll(() => redis?.end());
let prefixes = 0;

/** Opens the same data each time. */
type Open = () => Promise<Store>;

function placeOfFile(): Open {
  const path = join(temporary(), "pere.db");
  return async () => new SqliteStore({ path });
}

function placeInRedis(): Open {
  const prefix = `schedule-${++prefixes}:`;
  return async () => {
    redis ??= await startRedis();
    return RedisStore.open({ urls: [redis.url], prefix });
  };
}

const STORES = [
  ["SQLite", placeOfFile, null],
  ["Redis", placeInRedis, noRedis],
] as const;

/** A service, the channels that its retention asked for, and how many of its rounds have ended. */
interface Running {
  readonly engine: Engine;
  readonly asked: string[];
  rounds(): number;
  /** How many events each channel keeps. */
  kept(): Promise<Map<string, number>>;
  end(): Promise<void>;
}

/**
 * @param clock the time that its retention goes by
 * @param held no channel's trimming ends before this
 */
async function run(open: Open, clock: { now: number }, limits = {}, held?: Promise<void>): Promise<Running> {
  const store = await open();
  const asked: string[] = [];
  let rounds = 0;
  const watched = new Proxy(store, {
    get(target, name: keyof Store) {
      const method = target[name] as (...values: unknown[]) => Promise<unknown>;
      return async (...values: unknown[]) => {
        if (name === "trim" && values[0] !== null) asked.push(values[0] as string);
        if (name === "channels") asked.push("all");
        const found = await method.apply(target, values);
        if (name === "trim" && values[0] !== null) await held;
        // A round ends when nothing is due, or another instance does it.
        if (name === "trimmable" && (found as string[] | null)?.length === 0) rounds++;
        if (name === "lease" && values[0] === "retention" && found === null) rounds++;
        return found;
      };
    },
  });
  const engine = new Engine(watched, {
    limits: { keptMs: KEPT_MS, keptEvents: 1_000, trimMs: 10, ...limits },
    now: () => clock.now,
  });
  let isEnded = false;
  const end = async (): Promise<void> => {
    if (isEnded) return;
    isEnded = true;
    await engine.drain();
    await engine.close();
  };
  closing.push(end);
  const kept = async (): Promise<Map<string, number>> => {
    const { items } = await store.channels("", 1_000);
    return new Map(items.map(({ channel, events }) => [channel, events.head - events.floor]));
  };
  return { engine, asked, rounds: () => rounds, kept, end };
}

/** Waits for so many rounds that began after this call. */
async function roundsOf({ rounds }: Running, count = 3): Promise<void> {
  const from = rounds();
  await until(() => rounds() > from + count, "rounds of retention");
}

const fill = async (open: Open): Promise<void> => {
  const store = await open();
  for (let n = 0; n < CHANNELS; n++) await store.append(nameOf(n), [draft(n)], n % 2 === 0 ? T : T + KEPT_MS / 2);
  await store.close();
};
/** Channels that keep nothing. */
const emptyOf = (kept: ReadonlyMap<string, number>): string[] =>
  [...kept].flatMap(([name, n]) => (n === 0 ? [name] : []));
const even = Array.from({ length: CHANNELS / 2 }, (_, n) => nameOf(2 * n));

describe.each(STORES)("on %s, retention", (_, place, missing) => {
  const it = test.skipIf(missing !== null);

  it("asks all channels in its first round, and then only those in which something is due", async () => {
    const open = place();
    await fill(open);
    const clock = { now: T + KEPT_MS / 2 };
    const running = await run(open, clock);
    await roundsOf(running);
    const { asked } = running;
    expect(new Set(asked)).toEqual(new Set(["all", ...Array.from({ length: CHANNELS }, (_, n) => nameOf(n))]));
    asked.length = 0;
    await roundsOf(running, 5);
    expect(asked).toEqual([]);

    clock.now = T + KEPT_MS + 1;
    await roundsOf(running);
    expect([...new Set(asked)].sort()).toEqual(even);
    expect(emptyOf(await running.kept())).toEqual(even);

    // What is pushed to a channel that kept nothing is dropped in its time.
    asked.length = 0;
    await running.engine.push(nameOf(0), [draft("new")]);
    await roundsOf(running);
    expect(new Set(asked)).toEqual(new Set([nameOf(0)]));
    asked.length = 0;
    await roundsOf(running);
    expect(asked).toEqual([]);
    clock.now += KEPT_MS + 1;
    await until(async () => emptyOf(await running.kept()).length === CHANNELS, "all events to be dropped");
  });

  it("goes by the settings of the last start", async () => {
    const open = place();
    await fill(open);
    const clock = { now: T + KEPT_MS / 2 };
    const first = await run(open, clock);
    await roundsOf(first);
    await first.end();
    const second = await run(open, clock, { keptMs: KEPT_MS / 4 });
    await roundsOf(second);
    expect(emptyOf(await second.kept())).toEqual(even);
  });

  it("drops what was pushed while the channel was being trimmed", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const running = await run(place(), { now: T }, { keptEvents: 1 }, promise);
    await roundsOf(running);
    await running.engine.push("orders", [draft(1), draft(2)]);
    await until(async () => (await running.kept()).get("orders") === 1, "the first event to be dropped");
    await running.engine.push("orders", [draft("meanwhile")]);
    resolve();
    await until(async () => (await running.kept()).get("orders") === 1, "the second event to be dropped");
  });

  it("drops in the next round what a channel has too much, without asking others", async () => {
    const clock = { now: T };
    const running = await run(place(), clock);
    for (const channel of ["others", "orders"]) await running.engine.push(channel, [draft(1)]);
    await roundsOf(running);
    running.asked.length = 0;
    await running.engine.push("orders", Array(1_000).fill(draft("x")));
    await roundsOf(running);
    expect(new Set(running.asked)).toEqual(new Set(["orders"]));
    expect(await running.kept()).toEqual(
      new Map([
        ["orders", 1_000],
        ["others", 1],
      ]),
    );
  });
});

test.skipIf(noRedis !== null)("of two instances on Redis one does the rounds, and the other when it ends", async () => {
  const open = placeInRedis();
  await fill(open);
  const clock = { now: T };
  const running = await Promise.all([run(open, clock), run(open, clock)]);
  await Promise.all(running.map((one) => roundsOf(one)));
  const [holder, other] = running[0].asked.length > 0 ? running : [running[1], running[0]];
  expect(other.asked).toEqual([]);
  expect(holder.asked).toContain("all");
  holder.asked.length = 0;
  await roundsOf(holder);
  expect(holder.asked).toEqual([]);
  await holder.end();
  await until(() => other.asked.includes(nameOf(CHANNELS - 1)), "the other to take over");
  clock.now = T + KEPT_MS + 1;
  await until(async () => emptyOf(await other.kept()).length === even.length, "the events to be dropped");
});

test.skipIf(noRedis !== null)(
  "a channel that another instance pushed to while its last event was dropped stays in the list of Redis",
  async () => {
    redis ??= await startRedis();
    const link = new RedisLink([redis.url], () => {});
    closing.push(() => link.close());
    await link.start();
    const [here, there] = ["here", "there"].map(() => new TrimmableChannels(link, "schedule:kept", SCRIPTS));
    await here!.add("orders", T);
    expect(await here!.find(T, 10)).toEqual(["orders"]);
    await there!.add("orders", T + 1);
    await here!.trimmed("orders", null);
    expect(await here!.find(T, 10)).toEqual([]);
    expect(await here!.find(T + 1, 10)).toEqual(["orders"]);
    await here!.trimmed("orders", null);
    expect(await here!.find(T + 1, 10)).toEqual([]);
  },
);

test.skipIf(noRedis !== null)("what Redis lost of its lists with a connection is restored", async () => {
  const open = placeInRedis();
  const key = (name: string): string => `schedule-${prefixes}:${name}`;
  const clock = { now: T };
  // So long that no round notices the loss of the connection itself.
  const running = await run(open, clock, { trimMs: 1_000 });
  await running.engine.push("orders", [draft(1, { deadline: 600 })]);
  await roundsOf(running, 1);
  running.asked.length = 0;
  await redis!.ask("DEL", key("kept"), key("due"));
  await redis!.ask("CLIENT", "KILL", "TYPE", "normal");
  await until(() => running.asked.includes("orders"), "all channels to be trimmed");
  await until(async () => (await redis!.ask("ZCARD", key("kept"))) === ":1", "the list of retention");
  expect(await redis!.ask("ZCARD", key("due"))).toBe(":1");
  clock.now = T + KEPT_MS + 1;
  await until(async () => (await running.kept()).get("orders") === 0, "the event to be dropped");
});
