/**
 * Two instances that share one Redis, followers at both, and a book of all pushes that were tried: whoever makes trouble for them asks in the end
 * whether all promises were kept.
 *
 * Everywhere the same is promised. While trouble lasts, pushes and receipts are answered 503 within 3 s and nothing waits to be stored behind the
 * caller's back; feeds stay open. When it is over, every follower has every event that was acknowledged, in the log's order, none
 * twice, without anybody doing anything; and what was refused can be repeated with its key.
 */
import { expect } from "bun:test";
import { RedisStore } from "../../engine/redis/store.ts";
import { type Answer, ask, connect, give, listen, startOn, type Stream, until } from "./harness.ts";
import { Proxy } from "./proxy.ts";
import { noRedis, type RedisServer, startRedis } from "./redis-server.ts";
import { ANSWER_MS, AT_ONCE_MS, ownMs } from "./own-time.ts";

/** The longest that one of these tests takes on a slow machine. */
export const TEST_MS = 180_000;

/** So long a publisher waits before it repeats a push. */
const PAUSE_MS = 25;

/** What an answer says when the push may have been stored all the same. */
export const UNKNOWN = /is unknown whether/;

/** What the running test opened. What lies beneath goes first, so that nothing that stands on it waits for it. */
export const closing: (() => Promise<unknown>)[] = [];

/** Ends what the running test opened. */
export async function closeAll(): Promise<void> {
  for (const close of closing.splice(0)) await close();
}

export const openRedis = async (settings: Record<string, string> = {}): Promise<RedisServer> => {
  const server = await startRedis(settings);
  closing.push(() => server.end());
  return server;
};

export const openProxy = async (server: RedisServer): Promise<Proxy> => {
  const proxy = await Proxy.to(server.port);
  closing.push(() => proxy.stop());
  return proxy;
};

export const urlOf = ({ port }: { readonly port: number }): string => `redis://127.0.0.1:${port}`;

export const openService = async (redis: string): Promise<string> => {
  const service = await startOn(redis);
  closing.push(() => service.stop());
  return service.url;
};

export const openStore = async (server: RedisServer): Promise<RedisStore> => {
  const store = await RedisStore.open({ urls: [server.url] });
  closing.unshift(() => store.close());
  return store;
};

export const openStream = async (url: string): Promise<Stream> => {
  const stream = await listen(url);
  closing.push(async () => stream.close());
  return stream;
};

/** Kills it and leaves it dead; `server.restart()` brings it back. */
export async function kill(server: RedisServer): Promise<void> {
  const pid = /process_id:(\d+)/.exec(await server.ask("INFO", "server"))![1]!;
  process.kill(Number(pid), "SIGKILL");
  const isGone = (): Promise<boolean> =>
    server.ask("PING").then(
      () => false,
      () => true,
    );
  await until(isGone, "the death of Redis");
}

export const times = <Value>(count: number, make: (n: number) => Value): Value[] =>
  Array.from({ length: count }, (_, n) => make(n));

export const epochOf = (id: string): string => id.slice(0, id.lastIndexOf("-"));

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

export async function byStream(who: string, url: string): Promise<Follower> {
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
export class Pair {
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
    const from = ownMs();
    const headers = { "Idempotency-Key": `key-${n}` };
    const answer = await ask(`${at}/push/orders`, { body: { n, more }, headers });
    const tried = { n, at, answer, ms: ownMs() - from };
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
    const from = ownMs();
    const pushes = times(20, () => this.try(at));
    const receipt = await give(at, "orders", this.first, "till", "received");
    expect(ownMs() - from).toBeLessThan(ANSWER_MS);
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
    const from = ownMs();
    const [feed, poll] = await Promise.all([
      fetch(`${at}/feed/orders?device=newcomer`, { headers: { Accept: "text/event-stream" } }),
      ask(`${at}/feed/orders?device=newcomer&wait=1`, { headers: { Accept: "application/json" } }),
    ]);
    expect(feed.status).toBe(200);
    const said = await feed.text();
    expect(said).toContain("event: pere.bye");
    expect(said).toMatch(/retry: \d+/);
    expect(poll.status).toBe(503);
    expect(ownMs() - from).toBeLessThan(ANSWER_MS);
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

export const connected = async (url: string): Promise<number> =>
  (await ask(`${url}/channels`)).body.channels[0].connected as number;

export const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;
