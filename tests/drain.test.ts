/**
 * Stopping and restarting: what is told to whom in which order, with thousands of feeds open, and two instances that are restarted one after the
 * other under load while nothing is lost and nobody waits for long.
 */
import { expect, test } from "bun:test";
import { connect as dial, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { EventSource } from "eventsource";
import { ask, give, type Process, push, spawn, temporary, until } from "./support/harness.ts";
import { ownMs } from "./support/own-time.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

/** So long nobody waits for a feed when an instance is restarted. */
const WAIT_MS_MAX = 5_000;

/** A feed by the byte: thousands of them are cheap to hold. */
interface Line {
  text: string;
  /** When it was told that it ends; 0: it was not. */
  toldAt: number;
}

/** Opens so many feeds of devices, some at a time. */
async function openFeeds(url: string, channel: string, count: number): Promise<Line[]> {
  const { port } = new URL(url);
  const lines: Line[] = [];
  while (lines.length < count) {
    const some = await Promise.all(
      Array.from({ length: Math.min(250, count - lines.length) }, async (_, n): Promise<Line> => {
        const line: Line = { text: "", toldAt: 0 };
        const socket = await Bun.connect({
          hostname: "127.0.0.1",
          port: Number(port),
          socket: {
            data(_, bytes) {
              line.text += bytes.toString("latin1");
              if (line.toldAt === 0 && line.text.includes("pere.bye")) line.toldAt = performance.now();
            },
          },
        });
        socket.write(`GET /feed/${channel}?device=d${lines.length + n} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n\r\n`);
        return line;
      }),
    );
    await until(() => some.every(({ text }) => text.includes("pere.ready")), "a feed that is ready");
    lines.push(...some);
  }
  return lines;
}

test("with 5,000 feeds open: not ready at once, no pushes, receipts until the end, each feed told with its own retry time; exit 0", async () => {
  const db = join(temporary(), "pere.db");
  const service = await spawn({ PERE_DB: db });
  const { url } = service;
  const lines = await openFeeds(url, "orders", 5_000);
  const event = await push(url, "orders", 1);
  await until(() => lines.every(({ text }) => text.includes(event)), "the event at every device");

  const startedAt = performance.now();
  service.child.kill("SIGTERM");
  const ready = await until(async () => {
    const answer = await ask(`${url}/ready`);
    return answer.status === 503 && answer;
  }, "503 from /ready");
  expect(ready.headers.get("retry-after")).toBe("2");
  const pushed = await ask(`${url}/push/orders`, { body: 2 });
  expect([pushed.status, pushed.headers.get("retry-after")]).toEqual([503, "2"]);
  expect((await ask(`${url}/health`)).status).toBe(200);
  const recorded = await give(url, "orders", event, "d4999", "done");
  expect([recorded.status, recorded.body.recorded]).toEqual([200, 1]);
  expect(lines.filter(({ toldAt }) => toldAt === 0)).not.toBeEmpty();

  expect(await service.child.exited).toBe(0);
  const tookMs = performance.now() - startedAt;
  console.log(`5,000 feeds drained, and the process ended, in ${Math.round(tookMs)} ms`);
  const retries = new Set<number>();
  for (const { text } of lines) {
    const told = /retry: (\d+)\n(?:id: [^\n]*\n)?event: pere\.bye\ndata: \{"reason":"drain"\}\n\n/.exec(text);
    expect(told, text.slice(-300)).not.toBeNull();
    retries.add(Number(told![1]));
  }
  expect(retries.size).toBeGreaterThan(500);
  // Half of them should take half of the three seconds, less what we were late ourselves; in one go they take some milliseconds.
  const told = lines.map(({ toldAt }) => toldAt).sort((a, b) => a - b);
  expect(told[3_750]! - told[1_250]!).toBeGreaterThan(300);

  const again = await spawn({ PERE_DB: db });
  expect((await ask(`${again.url}/events/orders/${event}`)).body.receipts.done).toBe(1);
  expect(await again.end("SIGTERM")).toBe(0);
}, 60_000);

test("a second signal ends it at once", async () => {
  const service = await spawn({ PERE_DB: ":memory:" });
  const lines = await openFeeds(service.url, "orders", 1_500);
  service.child.kill("SIGTERM");
  await until(() => lines.some(({ toldAt }) => toldAt > 0), "the first feed to be told");
  service.child.kill("SIGTERM");
  expect(await service.child.exited).toBe(1);
  expect(lines.some(({ toldAt }) => toldAt === 0)).toBeTrue();
}, 60_000);

/** A balancer as small as one can be: asks each instance whether it is ready, and leads new connections to those that are. */
class Balancer {
  readonly url: string;
  readonly #server: ReturnType<typeof createServer>;
  readonly #ports: readonly number[];
  readonly #ready = new Set<number>();
  readonly #sockets = new Set<Socket>();
  readonly #timer: Timer;
  #next = 0;

  private constructor(server: ReturnType<typeof createServer>, ports: readonly number[]) {
    this.#server = server;
    this.#ports = ports;
    this.url = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
    server.on("connection", (near) => this.#lead(near));
    this.#timer = setInterval(() => void this.look(), 200);
  }

  static async before(ports: readonly number[]): Promise<Balancer> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const balancer = new Balancer(server, ports);
    await balancer.look();
    return balancer;
  }

  async look(): Promise<void> {
    for (const port of this.#ports) {
      const isReady = await fetch(`http://127.0.0.1:${port}/ready`, { keepalive: false }).then(
        ({ ok }) => ok,
        () => false,
      );
      if (isReady) this.#ready.add(port);
      else this.#ready.delete(port);
    }
  }

  #lead(near: Socket): void {
    const ports = [...this.#ready];
    near.on("error", () => {});
    if (ports.length === 0) return void near.destroy();
    const far = dial(ports[this.#next++ % ports.length]!, "127.0.0.1");
    far.on("error", () => near.destroy());
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(one);
      one.on("close", () => {
        this.#sockets.delete(one);
        other.end();
      });
    }
    near.pipe(far).pipe(near);
  }

  close(): void {
    clearInterval(this.#timer);
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

/** A device that follows by somebody else's EventSource, answers what it gets, and knows how long it was without a feed. */
class Device {
  readonly seen = new Set<string>();
  readonly gaps: string[] = [];
  longestMs = 0;
  /** When its feed broke; 0: it has one. */
  #lostAt = ownMs();
  readonly #name: string;
  readonly #url: string;
  readonly #source: EventSource;
  readonly #answers: string[] = [];
  #work = Promise.resolve();

  constructor(url: string, name: string) {
    this.#url = url;
    this.#name = name;
    this.#source = new EventSource(`${url}/feed/fleet?device=${name}`);
    this.#source.addEventListener("pere.ready", () => {
      if (this.#lostAt > 0) this.longestMs = Math.max(this.longestMs, ownMs() - this.#lostAt);
      this.#lostAt = 0;
    });
    this.#source.addEventListener("pere.gap", ({ data }) => this.gaps.push(data as string));
    this.#source.onerror = () => (this.#lostAt ||= ownMs());
    this.#source.onmessage = ({ lastEventId }) => {
      this.seen.add(lastEventId);
      if (this.#answers.push(lastEventId) === 1) this.#work = this.#work.then(() => this.#answer());
    };
  }

  get isConnected(): boolean {
    return this.#lostAt === 0;
  }

  /** Says `done` to what came meanwhile, again and again until it is taken. */
  async #answer(): Promise<void> {
    await Bun.sleep(50);
    const events = this.#answers.splice(0);
    const body = events.map((event) => ({ event, device: this.#name, status: "done" }));
    for (;;) {
      const answer = await ask(`${this.#url}/feedback/fleet`, { body }).catch(() => null);
      if (answer?.status === 200) return;
      await Bun.sleep(50);
    }
  }

  async close(): Promise<void> {
    this.#source.close();
    await this.#work;
  }
}

const skipped = noRedis ? `: ${noRedis}` : "";
test.skipIf(noRedis !== null)(
  `two instances restarted one after the other under load lose nothing, and no device waits longer than 5 s${skipped}`,
  async () => {
    const redis = await startRedis({ appendonly: "yes", appendfsync: "always" });
    const run = (port: number): Promise<Process> => spawn({ REDIS_URL: redis.url, PORT: String(port) });
    const ports = [lastingPort(), lastingPort()];
    const fleet = await Promise.all(ports.map(run));
    const balancer = await Balancer.before(ports);
    const devices = Array.from({ length: 40 }, (_, n) => new Device(balancer.url, `d${n}`));
    const allConnected = () => until(() => devices.every(({ isConnected }) => isConnected), "all devices");
    await allConnected();

    const acknowledged = new Map<string, number>();
    let isOver = false;
    const publish = async (publisher: number): Promise<void> => {
      for (let n = 0; !isOver; n++) {
        const headers = { "Idempotency-Key": `${publisher}/${n}`, "Content-Type": "application/json" };
        for (;;) {
          const request = { method: "POST", body: String(n), headers, keepalive: false };
          const response = await fetch(`${balancer.url}/push/fleet`, request).catch(() => null);
          const body = (await response?.json().catch(() => null)) as { id: string } | null;
          if (response?.ok && body) {
            acknowledged.set(body.id, n);
            break;
          }
          await Bun.sleep(50);
        }
        await Bun.sleep(40);
      }
    };
    const publishers = [publish(0), publish(1)];
    for (const [n, port] of ports.entries()) {
      const before = acknowledged.size;
      await until(() => acknowledged.size > before + 20, "twenty pushes");
      expect(await fleet[n]!.end("SIGTERM")).toBe(0);
      fleet[n] = await run(port);
      await balancer.look();
      await allConnected();
    }
    const before = acknowledged.size;
    await until(() => acknowledged.size > before + 20, "twenty pushes more");
    isOver = true;
    await Promise.all(publishers);

    await until(
      () => devices.every(({ seen }) => [...acknowledged.keys()].every((id) => seen.has(id))),
      () => `every event at every device; missing: ${devices.map(({ seen }) => acknowledged.size - seen.size)}`,
    );
    await Promise.all(devices.map((device) => device.close()));
    const kept = (await ask(`${balancer.url}/events/fleet?limit=1000`)).body.events as {
      id: string;
      receipts: { done: number };
    }[];
    // Each push once: none was lost, and none was stored twice.
    expect(kept.map(({ id }) => id).toSorted()).toEqual([...acknowledged.keys()].toSorted());
    expect(kept.every(({ receipts }) => receipts.done === devices.length)).toBeTrue();
    expect(devices.flatMap(({ gaps }) => gaps)).toEqual([]);
    const longestMs = Math.max(...devices.map((device) => device.longestMs));
    console.log(
      `${kept.length} pushes to ${devices.length} devices; the longest without a feed: ${Math.round(longestMs)} ms`,
    );
    expect(longestMs).toBeLessThan(WAIT_MS_MAX);
    balancer.close();
    for (const { child } of fleet) child.kill("SIGKILL");
    await redis.end();
  },
  180_000,
);
