/**
 * Trouble between PERE and its Redis: stalled, gone, restarted, flushed, cut off as a slow subscriber, or behind a network that breaks.
 *
 * Everywhere the same is promised. While it lasts, pushes and receipts are answered 503 within 3 s and nothing waits to be stored behind the
 * caller's back; feeds stay open. When it is over, every follower has every event that was acknowledged, in the log's order, none
 * twice, without anybody doing anything; and what was refused can be repeated with its key. So each test is a `Pair` of instances with
 * followers at both and a book of all pushes that were tried, the trouble, and `pair.isWhole()`.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { type EventDraft, PereError } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import type { Extent } from "../engine/store.ts";
import { draft, T } from "./contract/calls.ts";
import {
  type Answer,
  ask,
  connect,
  give,
  listen,
  push,
  spawn,
  startOn,
  type Stream,
  until,
} from "./support/harness.ts";
import { Proxy } from "./support/proxy.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

/** The promise is 3 s; the rest is for a machine that does other things as well. Who waits twice is found out all the same. */
const ANSWER_MS = 5_500;
/** The longest that one of these tests takes on a slow machine. */
const TEST_MS = 40_000;
/** Kept when it is killed. */
const DURABLE = { appendonly: "yes", appendfsync: "always" };
/** What is refused without a try is refused within this: less than a try takes. */
const AT_ONCE_MS = 2_500;
/** So long a publisher waits before it repeats a push. */
const PAUSE_MS = 25;
/** What an answer says when the push may have been stored all the same. */
const UNKNOWN = /is unknown whether/;

/** What the running test opened. What lies beneath goes first, so that nothing that stands on it waits for it. */
const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
}, TEST_MS);

const openRedis = async (settings: Record<string, string> = {}): Promise<RedisServer> => {
  const server = await startRedis(settings);
  closing.push(() => server.end());
  return server;
};
const openProxy = async (server: RedisServer): Promise<Proxy> => {
  const proxy = await Proxy.to(server.port);
  closing.push(() => proxy.stop());
  return proxy;
};
const urlOf = ({ port }: { readonly port: number }): string => `redis://127.0.0.1:${port}`;
const openService = async (redis: string): Promise<string> => {
  const service = await startOn(redis);
  closing.push(() => service.stop());
  return service.url;
};
const openStore = async (server: RedisServer): Promise<RedisStore> => {
  const store = await RedisStore.open({ urls: [server.url] });
  closing.unshift(() => store.close());
  return store;
};
const openStream = async (url: string): Promise<Stream> => {
  const stream = await listen(url);
  closing.push(async () => stream.close());
  return stream;
};

/** Kills it and leaves it dead; `server.restart()` brings it back. */
async function kill(server: RedisServer): Promise<void> {
  const pid = /process_id:(\d+)/.exec(await server.ask("INFO", "server"))![1]!;
  process.kill(Number(pid), "SIGKILL");
  const isGone = (): Promise<boolean> =>
    server.ask("PING").then(
      () => false,
      () => true,
    );
  await until(isGone, "the death of Redis");
}

/** The connections that are subscribed. */
const subscribers = async (server: RedisServer): Promise<string[]> =>
  (await server.ask("CLIENT", "LIST", "TYPE", "pubsub")).match(/\bid=\d+/g) ?? [];

/** Waits until both instances are subscribed, and ends that. */
async function killSubscribers(server: RedisServer): Promise<void> {
  await until(async () => (await subscribers(server)).length === 2, "two subscribers");
  expect(await server.ask("CLIENT", "KILL", "TYPE", "pubsub")).toBe(":2");
}

const times = <Value>(count: number, make: (n: number) => Value): Value[] =>
  Array.from({ length: count }, (_, n) => make(n));
const epochOf = (id: string): string => id.slice(0, id.lastIndexOf("-"));
const seqOf = (id: string): number => Number(id.slice(id.lastIndexOf("-") + 1));

interface Gap {
  readonly channel: string;
  readonly after: string;
  readonly from: string;
}

/** Somebody who follows, on whatever wire. */
interface Follower {
  readonly who: string;
  /** The ids of the events that came, as they came. */
  ids(): string[];
  gaps(): Gap[];
  isOpen(): boolean;
}

async function byStream(who: string, url: string): Promise<Follower> {
  const stream = await openStream(url);
  return {
    who,
    ids: () => stream.events.map(({ data }) => (JSON.parse(data) as { id: string }).id),
    gaps: () => stream.messages.filter(({ event }) => event === "pere.gap").map(({ data }) => JSON.parse(data) as Gap),
    isOpen: () => !stream.ended && !stream.messages.some(({ event }) => event === "pere.bye"),
  };
}

async function bySocket(who: string, url: string): Promise<Follower> {
  const { socket, messages } = await connect(url);
  closing.push(async () => socket.close());
  return {
    who,
    ids: () => messages.filter(({ pere }) => pere === undefined).map(({ id }) => id as string),
    gaps: () => messages.filter(({ pere }) => pere === "gap") as unknown as Gap[],
    isOpen: () => socket.readyState === WebSocket.OPEN,
  };
}

/** One push that was tried, and what came of it. */
interface Tried {
  readonly n: number;
  readonly at: string;
  readonly answer: Answer;
  readonly ms: number;
}

/** One event of the log. */
interface Logged {
  readonly id: string;
  readonly n: number;
}

/** Two instances that share one Redis, who follows `orders` there, and the book of all pushes. */
class Pair {
  readonly a: string;
  readonly b: string;
  readonly followers: Follower[] = [];
  readonly book: Tried[] = [];
  /** An event that everybody has, for receipts. */
  first = "";
  #pushes = 0;

  private constructor(a: string, b: string) {
    this.a = a;
    this.b = b;
  }

  /** @param urls of their Redis, as each of them sees it */
  static async open(urlA: string, urlB: string): Promise<Pair> {
    const pair = new Pair(await openService(urlA), await openService(urlB));
    const { a, b } = pair;
    pair.followers.push(
      await byStream("till at a", `${a}/feed/orders?device=till`),
      await byStream("kiosk at b", `${b}/feed/orders?device=kiosk`),
      await byStream("somebody at a", `${a}/feed/orders`),
      await bySocket("screen at b", `${b}/feed/orders?device=screen`),
    );
    pair.first = (await pair.try(a)).answer.body.id as string;
    await until(() => pair.followers.every(({ ids }) => ids().length === 1), "the first event everywhere");
    return pair;
  }

  /** One push to one of them, with its key. */
  async try(at: string, n = ++this.#pushes, more = ""): Promise<Tried> {
    const from = performance.now();
    const headers = { "Idempotency-Key": `key-${n}` };
    const answer = await ask(`${at}/push/orders`, { body: { n, more }, headers });
    const tried = { n, at, answer, ms: performance.now() - from };
    this.book.push(tried);
    return tried;
  }

  /** The same until it is stored, as a publisher does who wants it to be. */
  async insist(at: string, more = ""): Promise<Tried> {
    const n = ++this.#pushes;
    return until(async () => {
      const tried = await this.try(at, n, more);
      expect([200, 201, 503]).toContain(tried.answer.status);
      if (tried.answer.status !== 503) return tried;
      return void (await Bun.sleep(PAUSE_MS));
    }, `push ${n} to be stored`);
  }

  /** Pushes and receipts are refused in time, many at once and one after the other; and feeds stay open. */
  async isRefused(at: string): Promise<void> {
    const from = performance.now();
    const pushes = times(20, () => this.try(at));
    const receipt = await give(at, "orders", this.first, "till", "received");
    expect(performance.now() - from).toBeLessThan(ANSWER_MS);
    expect(receipt.status).toBe(503);
    expect(receipt.headers.get("retry-after")).toMatch(/^\d+$/);
    for (const { answer, ms } of await Promise.all(pushes)) {
      expect(answer.status).toBe(503);
      expect(answer.headers.get("retry-after")).toMatch(/^\d+$/);
      expect(answer.headers.get("content-type")).toContain("application/problem+json");
      expect(ms).toBeLessThan(ANSWER_MS);
    }
    expect((await ask(`${at}/ready`)).status).toBe(503);
  }

  /** Now that it is known that Redis is away, what comes is refused at once: returns what must never be stored. */
  async isRefusedAtOnce(at: string): Promise<number[]> {
    const pushes = await Promise.all(times(100, () => this.try(at)));
    for (const { answer, ms } of pushes) {
      expect(answer.status).toBe(503);
      expect(ms).toBeLessThan(AT_ONCE_MS);
    }
    return pushes.map(({ n }) => n);
  }

  /** Trouble that passes is told to who comes now in the way that brings it back: contract, "GET /feed". */
  async turnsAway(at: string): Promise<void> {
    const from = performance.now();
    const [feed, poll] = await Promise.all([
      fetch(`${at}/feed/orders?device=newcomer`, { headers: { Accept: "text/event-stream" } }),
      ask(`${at}/feed/orders?device=newcomer&wait=1`, { headers: { Accept: "application/json" } }),
    ]);
    expect(feed.status).toBe(200);
    const said = await feed.text();
    expect(said).toContain("event: pere.bye");
    expect(said).toMatch(/retry: \d+/);
    expect(poll.status).toBe(503);
    expect(performance.now() - from).toBeLessThan(ANSWER_MS);
  }

  async log(): Promise<Logged[]> {
    const found: Logged[] = [];
    for (let next: string | null = ""; next !== null;) {
      const { body, status }: Answer = await ask(`${this.a}/events/orders?limit=1000${next && `&after=${next}`}`);
      if (status !== 200) throw new Error(`the log: ${status}`);
      for (const { id, data } of body.events) found.push({ id, n: data.n });
      next = body.next as string | null;
    }
    return found;
  }

  async isReady(): Promise<void> {
    for (const at of [this.a, this.b])
      await until(async () => (await ask(`${at}/ready`)).status === 200, `${at} to be ready`);
  }

  /** Waits until everybody who follows has the log to its end, and gives the log. Nothing is pushed to wake them. */
  async caughtUp(): Promise<Logged[]> {
    let log: Logged[] = [];
    await until(
      async () => {
        log = await this.log();
        const last = log.at(-1)?.id;
        return this.followers.every(({ ids }) => ids().at(-1) === last);
      },
      () =>
        `the end of the log, ${log.at(-1)?.id}: ${this.followers.map(({ who, ids }) => `${who} has ${ids().at(-1)}`)}`,
    );
    return log;
  }

  /** Call it when the trouble ends: what was promised was kept. `never`: pushes that can't have been stored. */
  async isWhole(never: readonly number[] = []): Promise<void> {
    await this.isReady();
    const log = await this.caughtUp();
    this.#isAsAnswered(log, never);
    this.#isEverywhere(log);

    // What was refused is repeated with its key; it is stored once, whatever became of it the first time.
    const stored = new Map(log.map(({ id, n }) => [n, id]));
    const acknowledged = new Set(this.book.filter(({ answer }) => answer.status < 300).map(({ n }) => n));
    const refused = new Map(this.book.filter(({ n }) => !acknowledged.has(n)).map((tried) => [tried.n, tried.at]));
    for (const { n, answer } of await Promise.all([...refused].map(([n, at]) => this.try(at, n)))) {
      expect(answer.status).toBe(stored.has(n) ? 200 : 201);
      if (stored.has(n)) expect(answer.body.id).toBe(stored.get(n));
    }
    for (const status of ["working", "done"])
      for (const [at, device] of [
        [this.a, "till"],
        [this.b, "kiosk"],
      ] as const)
        expect((await give(at, "orders", this.first, device, status)).body).toMatchObject({ rejected: [] });
    const receipts = (await ask(`${this.a}/events/orders/${this.first}`)).body.receipts;
    expect(receipts).toMatchObject({ pending: 1, done: 2, working: 0, received: 0 });

    const last = await this.caughtUp();
    expect(last.map(({ n }) => n).sort((x, y) => x - y)).toEqual(times(this.#pushes, (n) => n + 1));
    this.#isEverywhere(last);
  }

  /** The log is what the answers said. */
  #isAsAnswered(log: readonly Logged[], never: readonly number[]): void {
    const numbers = log.map(({ n }) => n);
    expect(new Set(numbers).size).toBe(numbers.length);
    const stored = new Map(log.map(({ id, n }) => [n, id]));
    expect(never.filter((n) => stored.has(n))).toEqual([]);
    const mayBe = new Set<number>();
    for (const { n, answer } of this.book) {
      if (answer.status < 300) expect(stored.get(n)).toBe(answer.body.id as string);
      if (answer.status < 300 || UNKNOWN.test(answer.text)) mayBe.add(n);
    }
    expect(numbers.filter((n) => !mayBe.has(n))).toEqual([]);
  }

  /** Every follower has all of it, in its order, none twice, on the connection that it had; and no gap was told, for there was none. */
  #isEverywhere(log: readonly Logged[]): void {
    const ids = log.map(({ id }) => id);
    expect(ids).toEqual(times(ids.length, (n) => `${epochOf(this.first)}-${n + 1}`));
    for (const follower of this.followers) {
      expect([follower.who, ...follower.ids()]).toEqual([follower.who, ...ids]);
      expect([follower.who, follower.isOpen(), follower.gaps()]).toEqual([follower.who, true, []]);
    }
  }
}

const connected = async (url: string): Promise<number> =>
  (await ask(`${url}/channels`)).body.channels[0].connected as number;

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`a real Redis in trouble${why}`, () => {
  test(
    "stalled: refused in time, nothing is kept for later, and everybody catches up",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      server.pause();
      const never: number[] = [];
      try {
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        never.push(...(await pair.isRefusedAtOnce(pair.a)), ...(await pair.isRefusedAtOnce(pair.b)));
        await pair.turnsAway(pair.b);
      } finally {
        server.resume();
      }
      await pair.isWhole(never);
    },
    TEST_MS,
  );

  test(
    "stalled for a moment, again and again: a push is stored once however often it is repeated",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      for (let turn = 0; turn < 5; turn++) {
        server.pause();
        const pushes = times(20, (n) => pair.insist(n % 2 ? pair.a : pair.b));
        await Bun.sleep(50 * turn); // So long it is away; calls wait for it.
        server.resume();
        await Promise.all(pushes);
      }
      await pair.isWhole();
    },
    TEST_MS,
  );

  test(
    "killed in the midst of pushes, gone, and started again: all that was acknowledged is there, in the same life",
    async () => {
      const server = await openRedis(DURABLE);
      const pair = await Pair.open(server.url, server.url);
      const pushes = times(400, async (n) => {
        if (n === 100) await kill(server);
        else await pair.try(n % 2 ? pair.a : pair.b);
      });
      await Promise.all(pushes);
      await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
      const never = [...(await pair.isRefusedAtOnce(pair.a)), ...(await pair.isRefusedAtOnce(pair.b))];
      await pair.turnsAway(pair.a);
      await server.restart();
      await pair.isWhole(never);
    },
    TEST_MS,
  );

  test(
    "killed and started again at once, three times",
    async () => {
      const server = await openRedis(DURABLE);
      const pair = await Pair.open(server.url, server.url);
      for (let turn = 0; turn < 3; turn++) {
        const pushes = times(60, (n) => pair.insist(n % 2 ? pair.a : pair.b));
        await server.restart();
        await Promise.all(pushes);
      }
      await pair.isWhole();
    },
    TEST_MS,
  );

  test(
    "its subscribers killed: nobody notices, neither during many events nor before the last one",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      const receipts = await openStream(`${pair.b}/feedback/orders`);
      for (let turn = 0; turn < 10; turn++) {
        const pushes = times(30, (n) => pair.try(n % 2 ? pair.a : pair.b));
        await killSubscribers(server);
        for (const { answer } of await Promise.all(pushes)) expect(answer.status).toBe(201);
      }
      await pair.caughtUp();
      // The last word of all comes while nobody is subscribed, and nothing follows it.
      await killSubscribers(server);
      const [last] = await Promise.all([pair.try(pair.a), give(pair.a, "orders", pair.first, "till", "received")]);
      expect(last.answer.status).toBe(201);
      await receipts.have(1);
      await pair.isWhole();
      expect(receipts.ended).toBe(false);
      await receipts.have(5);
      expect(receipts.events.map(({ id }) => seqOf(id!))).toEqual([1, 2, 3, 4, 5]);
    },
    TEST_MS,
  );

  test(
    "cut off as slow subscribers, event after event: what the messages don't bring is read from the log",
    async () => {
      const server = await openRedis();
      const pair = await Pair.open(server.url, server.url);
      const limit = (value: string): Promise<string> =>
        server.ask("CONFIG", "SET", "client-output-buffer-limit", value);
      expect(await limit("pubsub 32kb 16kb 1")).toBe("+OK");
      const before = await subscribers(server);
      expect(before).toHaveLength(2);
      const more = "x".repeat(60_000);
      for (let turn = 0; turn < 10; turn++) {
        const tried = await Promise.all(times(6, (n) => pair.try(n % 2 ? pair.a : pair.b, undefined, more)));
        for (const { answer } of tried) expect(answer.status).toBe(201);
        await pair.caughtUp();
      }
      expect((await subscribers(server)).filter((id) => before.includes(id))).toEqual([]);
      expect(await limit("pubsub 32mb 8mb 60")).toBe("+OK");
      await pair.isWhole();
    },
    TEST_MS,
  );

  describe("flushed", () => {
    /** Everybody was told of the new life once, and has all of its log. */
    async function isTold(pair: Pair): Promise<void> {
      const old = epochOf(pair.first);
      for (const { who, gaps } of pair.followers) await until(() => gaps().length > 0, `the gap, told to ${who}`);
      await pair.isReady();
      const later = [await pair.insist(pair.a), await pair.insist(pair.b)].map(
        ({ answer }) => answer.body.id as string,
      );
      const log = (await pair.caughtUp()).map(({ id }) => id);
      expect(log.slice(-2)).toEqual(later);
      const epoch = epochOf(later[0]!);
      expect(epoch).not.toBe(old);
      expect(log).toEqual(times(log.length, (n) => `${epoch}-${n + 1}`));
      for (const { who, ids, gaps, isOpen } of pair.followers) {
        const before = ids().filter((id) => epochOf(id) === old);
        const after = ids().filter((id) => epochOf(id) !== old);
        expect([who, ...ids()]).toEqual([who, ...before, ...after]);
        expect([who, ...before]).toEqual([who, ...times(before.length, (n) => `${old}-${n + 1}`)]);
        expect([who, ...after]).toEqual([who, ...log]);
        expect([who, gaps().length, isOpen()]).toEqual([who, 1, true]);
        const [gap] = gaps();
        expect(gap!.channel).toBe("orders");
        expect(epochOf(gap!.after)).toBe(old);
        expect(gap!.from).toBe(`${epoch}-1`);
      }
    }

    test(
      "while all is quiet: every follower of either log is told as a gap; later events and receipts arrive",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        const receipts = await openStream(`${pair.b}/feedback/orders`);
        const both = await openStream(`${pair.b}/feed/orders,others?device=both`);
        const other = await push(pair.a, "others", 1);
        await both.have(1);
        await give(pair.a, "orders", pair.first, "till", "done");
        await receipts.have(1);
        expect(await server.ask("FLUSHALL")).toBe("+OK");
        await isTold(pair);
        expect(epochOf((await receipts.own("gap")).from as string)).not.toBe(epochOf(pair.first));
        const gaps = () =>
          both.messages.filter(({ event }) => event === "pere.gap").map(({ data }) => JSON.parse(data));
        await until(() => gaps().length === 2, "a gap in each of two channels");
        expect(gaps().map(({ channel }) => channel as string)).toContainAllValues(["orders", "others"]);
        const [otherAgain, event] = [await push(pair.a, "others", 2), await push(pair.b, "orders", 2)];
        expect(epochOf(otherAgain)).not.toBe(epochOf(other));
        await until(() => {
          const ids = both.events.map(({ data }) => (JSON.parse(data) as { id: string }).id);
          return ids.includes(otherAgain) && ids.includes(event);
        }, "events of both channels on one feed");
        // Who was there all the time is enrolled again, and may give receipts.
        const till = () => give(pair.a, "orders", event, "till", "done");
        await until(async () => (await ask(`${pair.a}/devices/orders`)).body.devices?.length === 4, "the devices");
        const addressed = await push(pair.a, "orders", 3);
        expect((await give(pair.b, "orders", addressed, "till", "done")).body).toMatchObject({ recorded: 1 });
        await receipts.have(2);
        expect([200, 422]).toContain((await till()).status);
        // An id of the life that was is not taken for one of this.
        expect((await give(pair.b, "orders", pair.first, "till", "done")).status).toBe(422);
        expect((await ask(`${pair.a}/channels`)).body.channels).toHaveLength(2);
        await until(async () => (await connected(pair.b)) === 4, "everybody to be connected again");
        expect(both.ended || receipts.ended).toBe(false);
      },
      TEST_MS,
    );

    test(
      "in the midst of pushes: the log of the new life is given from its first event on",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await Promise.all(
          times(200, async (n) => {
            if (n === 100) expect(await server.ask("FLUSHALL")).toBe("+OK");
            else expect((await pair.try(n % 2 ? pair.a : pair.b)).answer.status).toBe(201);
          }),
        );
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "while an instance is cut off, and longer than before when it comes back: it is not taken for the same",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.swallow();
        await pair.isRefused(pair.a);
        expect(await server.ask("FLUSHALL")).toBe("+OK");
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        proxy.pass();
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "by a restart, because it keeps nothing",
      async () => {
        const server = await openRedis({ appendonly: "no" });
        const pair = await Pair.open(server.url, server.url);
        await kill(server);
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        await server.restart();
        await isTold(pair);
      },
      TEST_MS,
    );

    /** Redis has eleven events, and comes back with the first alone, as it was written to its snapshot. */
    async function putBack(server: RedisServer, pair: Pair): Promise<void> {
      expect(await server.ask("SAVE")).toBe("+OK");
      for (const { answer } of await Promise.all(times(10, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
      await pair.caughtUp();
      await server.restart();
    }

    test(
      "in part, by a restart that puts an older state back",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await putBack(server, pair);
        await isTold(pair);
      },
      TEST_MS,
    );

    test(
      "in part, and at once as long as before: no new event passes for one that was lost",
      async () => {
        const server = await openRedis();
        const pair = await Pair.open(server.url, server.url);
        await putBack(server, pair);
        const pushes = await Promise.all(times(30, (n) => pair.insist(n % 2 ? pair.a : pair.b)));
        await isTold(pair);
        const stored = new Set((await pair.log()).map(({ n }) => n));
        expect(pushes.filter(({ n }) => !stored.has(n))).toEqual([]);
      },
      TEST_MS,
    );

    test(
      "in part, and longer than before when those who knew the old state come back: nothing is passed over in silence",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), urlOf(proxy));
        await server.ask("SAVE");
        for (const { answer } of await Promise.all(times(10, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
        await pair.caughtUp();
        await proxy.stop();
        await server.restart();
        // Another instance, which knows nothing, is the first to push.
        const other = await openService(server.url);
        for (const { answer } of await Promise.all(times(20, () => pair.try(other)))) expect(answer.status).toBe(201);
        await proxy.start();
        await isTold(pair);
      },
      TEST_MS,
    );
  });

  describe("put back under one store's feet", () => {
    /** What the store is told of `orders`: each event as `epoch-seq data`, and each extent. */
    async function hearing(store: RedisStore): Promise<{ events: string[]; extents: Extent[] }> {
      const heard = { events: [] as string[], extents: [] as Extent[] };
      store.watch(
        (wake) => {
          if (wake.kind === "events")
            heard.events.push(...wake.entries.map(({ seq, data }) => `${wake.epoch}-${seq} ${data}`));
        },
        (extent) => heard.extents.push(extent),
      );
      await store.follow("events", "orders");
      return heard;
    }
    const drafts = (...data: readonly string[]): EventDraft[] => data.map((text) => draft(text));
    /** A store that has stored three events and heard of them. */
    async function three() {
      const server = await openRedis();
      const store = await openStore(server);
      const heard = await hearing(store);
      const { epoch } = await store.append("orders", drafts("a", "b", "c"), T);
      await until(() => heard.events.length === 3, "three events");
      return { server, store, ...heard, epoch };
    }
    /** In one step the log has only these events, as if an older state had been put back and had grown again. */
    const replace = (server: RedisServer, ...data: readonly string[]): Promise<string> =>
      server.ask(
        "EVAL",
        `redis.call('DEL', KEYS[1])
         for seq, data in ipairs(ARGV) do redis.call('XADD', KEYS[1], seq .. '-0', 'v', '${T}    "' .. data .. '"') end
         return redis.call('HSET', KEYS[2], 'head', #ARGV)`,
        "2",
        "pere:{orders}:events",
        "pere:{orders}:counters",
        ...data,
      );
    /** The connections of a store, one or both. */
    const LOST = ["normal", "pubsub", "normal and pubsub"];
    const cut = async (server: RedisServer, types: string): Promise<void> => {
      // One that was cut before may be on its way back.
      for (const type of types.split(" and "))
        await until(async () => (await server.ask("CLIENT", "KILL", "TYPE", type)) === ":1", `a ${type} connection`);
    };

    test(
      "to fewer events, with no connection lost: another life",
      async () => {
        const { server, store, extents, epoch } = await three();
        await replace(server, "a");
        await until(() => extents.length > 0, "the extent");
        expect(extents[0]).toMatchObject({ head: 1 });
        expect(extents[0]!.epoch).not.toBe(epoch);
        expect((await store.heads("orders"))!.epoch).toBe(extents[0]!.epoch);
      },
      TEST_MS,
    );

    test(
      "to an event with its Idempotency-Key: the key answers it under its new id, and stores nothing again",
      async () => {
        const server = await openRedis();
        const store = await openStore(server);
        const { extents } = await hearing(store);
        const key = { key: "1", digest: "one:a" };
        const { epoch } = await store.append("orders", drafts("a"), T, key);
        await store.append("orders", drafts("b", "c"), T);
        await replace(server, "a");
        await until(() => extents.some((extent) => extent.epoch !== epoch), "another epoch");
        const again = await store.append("orders", drafts("a"), T, key);
        expect(again).toMatchObject({ epoch: extents.at(-1)!.epoch, first: 1, replayed: true });
        // A key of an event that is gone, and one that came since.
        const other = { key: "2", digest: "one:d" };
        expect(await store.append("orders", drafts("d"), T, other)).toMatchObject({ first: 2, replayed: false });
        expect(await store.append("orders", drafts("d"), T, other)).toMatchObject({ first: 2, replayed: true });
      },
      TEST_MS,
    );

    test.each(LOST)(
      "to others that are more, while %s connections are lost: another life, and nothing of it passes for what was",
      async (types) => {
        const { server, store, events, extents, epoch } = await three();
        await replace(server, "a", "x", "y", "z");
        await cut(server, types);
        // Messages come as soon as it is subscribed again, before it has looked.
        await until(async () => {
          if (types !== "normal") await server.ask("PUBLISH", "pere:{orders}:events", `${epoch} 5 5\x1e${T}    "w"`);
          return extents.length > 0;
        }, "the extent");
        expect(events).toEqual(["a", "b", "c"].map((data, n) => `${epoch}-${n + 1} "${data}"`));
        expect(extents[0]).toMatchObject({ head: 4 });
        expect(extents[0]!.epoch).not.toBe(epoch);
        // It goes on with the new life.
        await store.append("orders", drafts("d"), T);
        const next = { ...extents[0]!, head: 5 };
        await until(() => events.length === 4 || extents.length > 1, "the next event");
        expect([...events.slice(3), ...extents.slice(1)]).toContainEqual(events[3] ? `${next.epoch}-5 "d"` : next);
      },
      TEST_MS,
    );

    test.each(LOST)(
      "not at all, while %s connections are lost: it is the same life, trimmed meanwhile or not",
      async (types) => {
        const { server, store, events, extents, epoch } = await three();
        for (const [count, head] of [
          [0, 4],
          [2, 5],
        ] as const) {
          await store.trim("orders", { count, before: 0 }, T);
          await cut(server, types);
          const more = () => store.append("orders", drafts("more"), T);
          await until(() => more().catch(() => null), "another event");
          const heard = () =>
            events.includes(`${epoch}-${head} "more"`) || extents.some((extent) => extent.head === head);
          await until(heard, `event ${head}`);
        }
        expect((await store.heads("orders"))!.epoch).toBe(epoch);
        expect(extents.filter((extent) => extent.epoch !== epoch)).toEqual([]);
      },
      TEST_MS,
    );

    test(
      "to others, while both connections are lost: who follows now reads of the new life alone",
      async () => {
        const { server, store, epoch } = await three();
        await replace(server, "a", "x", "y", "z");
        await cut(server, "normal and pubsub");
        const follow = () =>
          store.follow("events", "orders").then(
            () => store.heads("orders"),
            () => null,
          );
        const heads = await until(() => follow().catch(() => null), "the log");
        expect(heads.events.head).toBe(4);
        expect(heads.epoch).not.toBe(epoch);
      },
      TEST_MS,
    );

    test(
      "to others, where the last one was found by looking and not heard: its mark was read from the log",
      async () => {
        const server = await openRedis();
        const first = await openStore(server);
        const { epoch } = await first.append("orders", drafts("a", "b", "c"), T);
        const store = await openStore(server);
        const { extents } = await hearing(store);
        await until(() => extents.length === 1, "the extent");
        const calls = async (command: string) =>
          Number(
            new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await server.ask("INFO", "commandstats"))?.[1] ?? 0,
          );
        const reads = () => calls("xrange");
        await until(async () => (await reads()) > 0, "the look that reads it");
        await replace(server, "a", "x", "y", "z");
        for (const type of ["normal", "pubsub"]) await server.ask("CLIENT", "KILL", "TYPE", type); // Of two stores.
        await until(() => extents.length === 2, "another life");
        expect(extents[0]).toMatchObject({ epoch, head: 3 });
        expect(extents[1]!.epoch).not.toBe(epoch);
        // At rest a look asks for extents, and reads no entry.
        await until(async () => {
          const [read, asked] = [await reads(), await calls("hmget")];
          await until(async () => (await calls("hmget")) >= asked + 2, "another two looks");
          return (await reads()) === read;
        }, "looks that read no entry");
      },
      TEST_MS,
    );
  });

  test("no room: refused in a sentence, and nothing of it is stored", async () => {
    const server = await openRedis();
    const store = await openStore(server);
    await store.append("orders", [draft(1)], T);
    await server.ask("CONFIG", "SET", "maxmemory", "1");
    const error = await store.append("orders", [draft(2)], T).catch((caught: unknown) => caught as PereError);
    expect(error).toBeInstanceOf(PereError);
    expect((error as PereError).code).toBe("away");
    await server.ask("CONFIG", "SET", "maxmemory", "0");
    expect((await store.append("orders", [draft(3)], T)).first).toBe(2);
  });

  test("scripts forgotten: they are sent again", async () => {
    const server = await openRedis();
    const store = await openStore(server);
    await server.ask("SCRIPT", "FLUSH");
    expect((await store.append("orders", [draft(1)], T)).first).toBe(1);
  });

  describe("behind a network", () => {
    test(
      "that swallows everything of one instance: the other goes on, and the one is refused, waits and catches up",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        await until(async () => (await connected(pair.b)) === 3, "three devices to be connected");
        proxy.swallow();
        for (const { answer } of await Promise.all(times(50, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        await pair.isRefused(pair.a);
        await pair.isRefusedAtOnce(pair.a);
        await pair.turnsAway(pair.a);
        // Nothing of it reached Redis.
        const never = pair.book.filter(({ at, answer }) => at === pair.a && answer.status === 503).map(({ n }) => n);
        await until(async () => (await connected(pair.b)) === 2, "the till to be gone, as far as b can know");
        expect((await pair.try(pair.b)).answer.body.audience.connected).toBe(2);
        proxy.pass();
        await pair.isWhole(never);
        await until(async () => (await connected(pair.b)) === 3, "the till to be back");
      },
      TEST_MS,
    );

    test(
      "that swallows everything of both",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), urlOf(proxy));
        proxy.swallow();
        await Promise.all([pair.isRefused(pair.a), pair.isRefused(pair.b)]);
        await Promise.all([pair.isRefusedAtOnce(pair.a), pair.isRefusedAtOnce(pair.b)]);
        const never = pair.book.filter(({ answer }) => answer.status === 503).map(({ n }) => n);
        proxy.pass();
        await pair.isWhole(never);
      },
      TEST_MS,
    );

    test(
      "that swallows the answers: what was stored is said to be unknown, and repeating it finds it",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.swallow("answers");
        const tried = await Promise.all(times(10, () => pair.try(pair.a)));
        for (const { answer, ms } of tried) {
          expect(answer.status).toBe(503);
          expect(answer.text).toMatch(UNKNOWN);
          expect(ms).toBeLessThan(ANSWER_MS);
        }
        // The others have them already.
        await until(() => pair.followers[1]!.ids().length === 11, "the events at b");
        proxy.pass();
        await pair.isWhole();
      },
      TEST_MS,
    );

    test(
      "that cuts every connection in the midst of pushes: what is repeated with its key is stored once",
      async () => {
        const server = await openRedis();
        const proxies = [await openProxy(server), await openProxy(server)] as const;
        const pair = await Pair.open(urlOf(proxies[0]), urlOf(proxies[1]));
        let stored = 0;
        const wasRefused = (): boolean => pair.book.some(({ answer }) => answer.status === 503);
        await Promise.all(
          times(8, async (writer) => {
            for (let n = 0; n < 40 || !wasRefused(); n++) {
              await pair.insist(writer % 2 ? pair.a : pair.b);
              if (++stored % 40 === 0) proxies[(stored / 40) % 2]!.cut();
            }
          }),
        );
        await pair.isWhole();
      },
      TEST_MS,
    );

    test(
      "that refuses connections, and then takes them again",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        await proxy.stop();
        await pair.isRefused(pair.a);
        const never = await pair.isRefusedAtOnce(pair.a);
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.b)))) expect(answer.status).toBe(201);
        await proxy.start();
        await pair.isWhole(never);
      },
      TEST_MS,
    );

    test(
      "that is slow: pushes take their time; one that is slower than patience is away, and comes back",
      async () => {
        const server = await openRedis();
        const proxy = await openProxy(server);
        const pair = await Pair.open(urlOf(proxy), server.url);
        proxy.delay(200);
        for (const { answer } of await Promise.all(times(20, () => pair.try(pair.a)))) expect(answer.status).toBe(201);
        proxy.delay(5_000);
        await pair.isRefused(pair.a);
        proxy.pass();
        await pair.isWhole();
      },
      TEST_MS,
    );
  });

  test(
    "presence: an older state that is put back says nothing of who is connected now",
    async () => {
      const server = await openRedis();
      const [a, b] = [await openService(server.url), await openService(server.url)];
      await ask(`${a}/devices/orders/kiosk`, { method: "PUT" });
      const till = await openStream(`${b}/feed/orders?device=till`);
      await until(async () => (await connected(a)) === 1, "the till to be connected");
      expect(await server.ask("SAVE")).toBe("+OK");
      // The one comes and the other leaves, and neither is in the state that comes back.
      await openStream(`${b}/feed/orders?device=kiosk`);
      till.close();
      const isConnected = async (): Promise<string> =>
        ((await ask(`${a}/devices/orders`)).body.devices ?? [])
          .filter((device: { connected: boolean }) => device.connected)
          .map(({ device }: { device: string }) => device)
          .join();
      await until(async () => (await isConnected()) === "kiosk", "the kiosk alone to be connected");
      await server.restart();
      await until(async () => (await ask(`${b}/ready`)).status === 200, "Redis");
      await Bun.sleep(1_000); // So long at least does what is known last.
      await until(
        async () => (await isConnected().catch(() => "")) === "kiosk",
        "the kiosk alone to be connected again",
      );
      await Bun.sleep(2_000);
      expect(await isConnected()).toBe("kiosk");
    },
    TEST_MS,
  );

  test(
    "presence: the devices of an instance that is killed are gone within seconds, also from the counts of a push",
    async () => {
      const server = await openRedis();
      const here = await openService(server.url);
      const there = await spawn({ REDIS_URL: server.url });
      closing.push(() => there.end("SIGKILL"));
      await byStream("kiosk here", `${here}/feed/orders?device=kiosk`);
      const lost = [
        await openStream(`${there.url}/feed/orders?device=till`),
        await openStream(`${there.url}/feed/orders?device=screen`),
      ];
      await until(async () => (await connected(here)) === 3, "all three to be connected");
      await there.end("SIGKILL");
      await until(() => lost.every(({ ended }) => ended), "the feeds to break");
      // One of them comes here at once, and counts at once and once.
      await byStream("till here", `${here}/feed/orders?device=till`);
      await until(async () => (await connected(here)) === 2, "the screen to be gone");
      const { audience } = (await ask(`${here}/push/orders`, { body: 1 })).body;
      expect(audience).toEqual({ addressed: 3, connected: 2 });
      expect((await ask(`${here}/devices/orders`)).body.devices).toMatchObject([
        { device: "kiosk", connected: true },
        { device: "screen", connected: false },
        { device: "till", connected: true },
      ]);
      const again = await spawn({ REDIS_URL: server.url });
      closing.push(() => again.end("SIGKILL"));
      await openStream(`${again.url}/feed/orders?device=screen`);
      await until(async () => (await connected(here)) === 3, "the screen to be back");
    },
    TEST_MS,
  );
});
