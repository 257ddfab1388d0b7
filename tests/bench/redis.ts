/**
 * `bun run bench --redis`: instances that share a Redis beside the embedded default, in one run, because figures of runs at different times can't be
 * compared. The Redis is started here, on the same disk as the default's file, with `appendfsync always`: both answer when it is on disk.
 *
 * With four cores, both instances, the generator and Redis have one each. With two, the instances share one, and Redis has the other
 * together with the generator; the notes say how busy each of them was.
 */
import { startRedis as startServer } from "../support/redis-server.ts";
import { eventData, Feeds } from "./feeds.ts";
import { Requests } from "./requests.ts";
import {
  EVENT_BYTES,
  fanOut,
  type Figures,
  latency,
  orThrow,
  paced,
  quantile,
  type RowResult,
  SETTLE_MS,
} from "./measure.ts";
import { type AskRedis, type Service, type ServiceStart, startService } from "./service.ts";

/** Times that pushes are measured on either store, in turn. */
const ROUNDS = 3;
const AT_ONCE = 16;
const LATENCY_EVENTS_A_SECOND = 20;
/** So that the hundredth part of what is measured is more than one event. */
const LATENCY_SECONDS_FACTOR = 5;
/** Pushes before a latency counts. */
const WARM_EVENTS = 100;

interface Stage {
  /** On a disk; removed at the end. */
  readonly folder: string;
  readonly cores: number;
  readonly pinned: boolean;
  readonly say: (text: string) => void;
}

interface Options {
  readonly devices: number;
  readonly channels: number;
  readonly events: number | null;
  readonly seconds: number;
}

interface Redis {
  readonly url: string;
  readonly pid: number;
  readonly ask: AskRedis;
  /** Forgets everything. */
  empty(): Promise<unknown>;
  end(): Promise<void>;
}

/** @throws Error when there is no redis-server */
export async function startRedis(folder: string, core: number | null): Promise<Redis> {
  process.env.TMPDIR = folder;
  const server = await startServer({ appendonly: "yes", appendfsync: "always" });
  const pid = Number(/process_id:(\d+)/.exec(await server.ask("INFO", "server"))![1]);
  const kill = (): void => void process.kill(pid, "SIGKILL");
  process.once("exit", kill);
  if (core !== null) Bun.spawnSync(["taskset", "-acp", String(core), String(pid)]);
  return {
    url: server.url,
    pid,
    ask: server.ask,
    empty: () => server.ask("FLUSHALL"),
    async end() {
      process.off("exit", kill);
      await server.end();
    },
  };
}

/** A service on a Redis of its own, filled as its file would be. @throws Error when it needs a file */
export async function startOnRedis(folder: string, cores: number, pinned: boolean, start: ServiceStart = {}) {
  const { fill, fillRedis, env = {}, ...rest } = start;
  if (fill && !fillRedis) throw new Error("this row needs a file");
  const redis = await startRedis(folder, pinned ? (cores >= 4 ? 2 : 1) : null);
  try {
    await fillRedis?.(redis.ask);
    const service = await startService(folder, pinned ? 0 : null, { ...rest, env: { ...env, REDIS_URL: redis.url } });
    return { ...service, redis: redis.ask, stop: () => service.stop().finally(() => redis.end()) };
  } catch (error) {
    await redis.end();
    throw error;
  }
}

/** The middle one by its figure. */
const middle = <Run extends { readonly figure: number }>(runs: readonly Run[]): Run =>
  runs.toSorted((a, b) => a.figure - b.figure)[Math.floor(runs.length / 2)]!;

/** All rows. One that fails is an error in its place. @throws Error when nothing can be measured here */
export async function besideRedis(stage: Stage, options: Options): Promise<RowResult[]> {
  const core = (wanted: number): number | null => (stage.pinned ? wanted : null);
  const many = stage.cores >= 4;
  const redis = await startRedis(stage.folder, core(many ? 2 : 1));
  stage.say(
    many
      ? "second instance on core 3, redis-server on core 2 (appendonly yes, appendfsync always)"
      : "second instance on core 0 too, redis-server on core 1 too (appendonly yes, appendfsync always)",
  );
  const embedded = (): Promise<Service> => startService(stage.folder, core(0));
  const onRedis = (at = 0): Promise<Service> => startService(stage.folder, core(at), { env: { REDIS_URL: redis.url } });

  /** Services for one piece of work, on an empty Redis. */
  const using = async <Value>(
    starting: readonly (() => Promise<Service>)[],
    work: (first: Service, second: Service) => Promise<Value>,
  ): Promise<Value> => {
    const services: Service[] = [];
    try {
      await redis.empty();
      for (const start of starting) services.push(await start());
      return await work(services[0]!, services[1] ?? services[0]!);
    } finally {
      await Promise.all(services.map((service) => service.stop()));
    }
  };

  /** What a service says of its store. */
  const promise = async ({ port }: Service): Promise<string> => {
    const said = (await (await fetch(`http://127.0.0.1:${port}/ready`)).json()) as Record<string, string>;
    return `${said.store}, durability: ${said.durability}`;
  };

  const results: RowResult[] = [];
  const row = async (name: string, what: string, run: () => Promise<Figures>): Promise<void> => {
    try {
      results.push({ name, what, ...(await run()) });
    } catch (error) {
      results.push({ name, what, error: (error as Error).message });
    }
  };

  try {
    const stores = await using([embedded, onRedis], (a, b) => Promise.all([promise(a), promise(b)]));
    stage.say(`stores: ${stores.join("; ")}\n`);

    // Pushes: both stores in turn.
    const { channels } = options;
    const measurePushes = async (service: Service, others = {}): Promise<Figures> => {
      const run = { channels, devices: channels, atOnce: AT_ONCE, others };
      const { pushesPerSecond, deliveriesPerSecond: _, ...rest } = await fanOut(service, options, run);
      return { figure: pushesPerSecond, unit: "pushes/s", ...rest };
    };
    const pushes: { sqlite: Figures[]; redis: Figures[] } = { sqlite: [], redis: [] };
    let trouble: unknown;
    try {
      for (let round = 0; round < ROUNDS; round++) {
        pushes.sqlite.push(await using([embedded], (service) => measurePushes(service)));
        pushes.redis.push(await using([onRedis], (service) => measurePushes(service, { redis: redis.pid })));
      }
    } catch (error) {
      trouble = error;
    }
    const pushesOf = async (runs: readonly Figures[]): Promise<Figures> => {
      if (trouble !== undefined) throw trouble;
      return middle(runs);
    };
    const whatPushes = `${channels} channels, 1 device each, ${AT_ONCE} pushes in flight, the middle of ${ROUNDS} runs`;
    await row("pushes-sqlite", whatPushes, () => pushesOf(pushes.sqlite));
    await row("pushes-redis", "the same on Redis", async () => {
      const figures = await pushesOf(pushes.redis);
      const ratios = pushes.redis.map(({ figure }, round) => figure / pushes.sqlite[round]!.figure);
      const note = `${quantile(ratios, 0.5).toFixed(2)} × the embedded default (${ratios.map((ratio) => ratio.toFixed(2)).join(", ")})`;
      return { ...figures, notes: [note, ...(figures.notes ?? [])] };
    });

    // Fan-out: one instance on either store, and from one instance to another.
    const { devices } = options;
    const measureFanOut = async (service: Service, pushAt: Service, others = {}): Promise<Figures> => {
      const run = { channels: 1, devices, atOnce: AT_ONCE, pushAt, others };
      const { deliveriesPerSecond, pushesPerSecond: _, ...rest } = await fanOut(service, options, run);
      return { figure: deliveriesPerSecond, unit: "deliveries/s", ...rest };
    };
    const second = (): Promise<Service> => onRedis(many ? 3 : 0);
    await row("fan-out-sqlite", `1 channel, ${devices} devices, ${AT_ONCE} pushes in flight`, () =>
      using([embedded], (service) => measureFanOut(service, service)),
    );
    await row("fan-out-redis", "the same on Redis", () =>
      using([onRedis], (service) => measureFanOut(service, service, { redis: redis.pid })),
    );
    await row("fan-out-two", "the same, pushed to another instance than the devices are at", () =>
      using([onRedis, second], (a, b) =>
        measureFanOut(b, a, { redis: redis.pid, "the instance that is pushed to": a.pid }),
      ),
    );

    // Latency: a device at each instance, and each event's way to both.
    const measureLatency = async (pushAt: Service, at: readonly Service[]): Promise<number[][]> => {
      const feeds: Feeds[] = [];
      for (const [n, service] of at.entries())
        feeds.push(await Feeds.open({ at: service, count: 1, path: () => `/feed/c?device=device-${n}`, fullEvery: 1 }));
      const requests = await Requests.open(pushAt.port, AT_ONCE);
      const push = (dueMs: number): Promise<string> => requests.ask("POST", "/push/c", eventData(dueMs, EVENT_BYTES));
      const events = Math.ceil(options.seconds * LATENCY_SECONDS_FACTOR * LATENCY_EVENTS_A_SECOND);
      await paced(5 * LATENCY_EVENTS_A_SECOND, WARM_EVENTS, push);
      await Bun.sleep(SETTLE_MS / 4);
      await paced(LATENCY_EVENTS_A_SECOND, events, push);
      for (const one of feeds) {
        await one.until(WARM_EVENTS + events);
        one.check(() => WARM_EVENTS + events);
        orThrow(one.faults);
        await one.close();
      }
      requests.close();
      return feeds.map(({ latenciesMs }) => latenciesMs.slice(WARM_EVENTS));
    };
    const figures = (timesMs: readonly number[]): Figures => ({
      figure: timesMs.length,
      unit: "events",
      ...latency(timesMs),
    });
    const whatLatency = `push to device, ${LATENCY_EVENTS_A_SECOND} events/s, 1 device`;
    await row("latency-sqlite", whatLatency, () =>
      using([embedded], async (service) => figures((await measureLatency(service, [service]))[0]!)),
    );
    let there: number[] = [];
    let here: number[] = [];
    await row("latency-here", "the same on Redis, the device at the instance that is pushed to", () =>
      using([onRedis, second], async (a, b) => {
        [here, there] = (await measureLatency(a, [a, b])) as [number[], number[]];
        return figures(here);
      }),
    );
    await row("latency-there", "the same events, a device at the other instance", async () => {
      if (there.length === 0) throw new Error("nothing was measured");
      const added = latency(there.map((ms, index) => ms - here[index]!));
      const note = `the second instance adds p50 ${added.p50Ms.toFixed(2)} ms, p99 ${added.p99Ms.toFixed(2)} ms, event by event`;
      return { ...figures(there), notes: [note] };
    });
  } finally {
    await redis.end();
  }
  return results;
}
