/**
 * The rows about long work: what many readers, long logs and long lists do to everybody else. Each row does one kind of work on a service that
 * measures the turns of its event loop, and pushes to a channel of its own beside it. The figure is the longest turn: no request waits less.
 */
import { Database } from "bun:sqlite";
import { closeSync, fsyncSync, openSync } from "node:fs";
import { SignJWT } from "jose";
import { SqliteStore } from "../../engine/sqlite/store.ts";
import { eventData, Feeds, now } from "./feeds.ts";
import { closedLoop, EVENT_BYTES, type Figures, latency, meter, orThrow } from "./measure.ts";
import { Requests } from "./requests.ts";
import { HOST, type Service, type ServiceStart } from "./service.ts";
import { redisChannels, redisEvent, redisReceipts } from "./stalls-redis.ts";
import { whole } from "./table.ts";

/** Sizes of the rows, before they are divided. */
const LOG_RECEIPTS = 10_000_000;
const OWED_EVENTS = 10_000;
const CROWDS = [1, 10, 100, 400] as const;
const CHANNELS = 100_000;
const WATCHERS = 32;
const ARRAY_DEVICES = 1_000;
const HOOKS = 5_000;
const EXPORT_DEVICES = 100_000;
/** Readers of the rows that list, at a time. */
const LISTERS = 4;
/** Pushes to a channel of their own, one at a time, with this pause between them. */
const BESIDE_MS = 5;
/** Names in the order of their numbers. */
const nameOf = (kind: string, index: number): string => `${kind}-${String(index).padStart(7, "0")}`;

/** The secret of services that ask for tokens. */
const SECRET = "a secret of thirty-two bytes, ok";
const tokenFor = (push: string): Promise<string> =>
  new SignJWT({ pere: { push: [push] } })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject("bench")
    .setExpirationTime("1h")
    .sign(new TextEncoder().encode(SECRET));

/** A row of this file; see `rows.ts`. */
export interface StallRow {
  readonly name: string;
  readonly what: string;
  readonly connections: number;
  readonly start: ServiceStart;
  readonly run: (service: Service) => Promise<Figures>;
}

export const part = (whole: number, divisor: number): number => Math.max(1, Math.ceil(whole / divisor));

/**
 * Does some work, with pushes beside it.
 * @param work returns how much was done
 */
export async function beside(
  service: Service,
  what: string,
  work: () => Promise<number>,
  hasTokens = false,
): Promise<Figures> {
  const requests = await Requests.open(service.port, 1);
  const headers = hasTokens ? `Authorization: Bearer ${await tokenFor("*")}\r\n` : "";
  const times: number[] = [];
  let isOver = false;
  const push = async (): Promise<void> => {
    const started = now();
    await requests.ask("POST", "/push/beside", eventData(started, EVENT_BYTES), "application/json", headers);
    times.push(now() - started);
  };
  for (let warm = 0; warm < 100; warm++) await push();
  times.length = 0;
  await service.longestTurn!();
  await service.redis?.("CONFIG", "SET", "latency-monitor-threshold", "1");
  await service.redis?.("LATENCY", "RESET");
  const measured = meter(service);
  const startedAt = now();
  const pushing = (async () => {
    while (!isOver) {
      await push();
      await Bun.sleep(BESIDE_MS);
    }
  })();
  const done = await work().finally(() => (isOver = true));
  const seconds = (now() - startedAt) / 1000;
  await pushing;
  const { ms: figure, cpuMs } = await service.longestTurn!();
  const { perSecond: _, notes, ...used } = measured(done);
  // What all calls of all instances wait for; https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency-monitor/
  const events = (await service.redis?.("LATENCY", "LATEST")) ?? "";
  const ofRedis = (event: string): string =>
    new RegExp(`\\b${event}(?:\\r\\n:\\d+){2}\\r\\n:(\\d+)`).exec(events)?.[1] ?? "below 1";
  requests.close();
  const slowest = times.reduce((most, ms) => Math.max(most, ms), 0);
  return {
    figure,
    unit: "ms/turn",
    ...latency(times),
    ...used,
    notes: [
      `at most ${cpuMs.toFixed(1)} ms CPU a turn; slowest push beside it ${slowest.toFixed(1)} ms of ${whole(times.length)}`,
      `${whole(done)} ${what} in ${seconds.toFixed(1)} s`,
      ...(service.redis
        ? [`longest script of Redis ${ofRedis("command")} ms, longest sync ${ofRedis("aof-fsync-always")} ms`]
        : []),
      ...notes,
    ],
  };
}

/** Fills a file by SQL, with the tables that a store makes. */
export async function fill(file: string, run: (db: Database) => void): Promise<void> {
  await new SqliteStore({ path: file }).close();
  const db = new Database(file);
  db.run("PRAGMA synchronous = OFF");
  db.run("BEGIN");
  run(db);
  db.run("COMMIT");
  db.close();
  // Otherwise the disk writes it while the row measures, and every sync waits for that.
  const descriptor = openSync(file, "r");
  fsyncSync(descriptor);
  closeSync(descriptor);
}

const NUMBERS = (upTo: number): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${upTo})`;
const CHANNEL_COLUMNS = "id, name, epoch, head, floor, swept, receiptsHead, receiptsFloor, audience";
const PADDED = "printf('%07d', i)";

/** A channel with id 1, its devices, and one event that all of them were sent. */
export function oneEvent(db: Database, devices: number): void {
  const at = Date.now();
  db.run(`INSERT INTO channels (${CHANNEL_COLUMNS}) VALUES (1, 'c', 'epochepoch', 1, 0, 0, 0, 0, ${devices})`);
  db.run(`INSERT INTO events (channel, seq, at, targeted, data) VALUES (1, 1, ${at}, 0, '{"n":1}')`);
  db.run(`INSERT INTO audiences (channel, event, addressed) VALUES (1, 1, ${devices})`);
  db.run(
    `INSERT INTO devices (channel, device, joined, enrolledAt, settled) ${NUMBERS(devices)}
     SELECT 1, 'device-' || ${PADDED}, 0, ${at}, 0 FROM n`,
  );
}

/** A receipts log, all on one event, with the mark that the generator counts. */
const receiptsLog = (receipts: number) => (db: Database) => {
  oneEvent(db, 1);
  db.run(
    `INSERT INTO receipts (channel, seq, event, device, status, at, late, detail) ${NUMBERS(receipts)}
     SELECT 1, i, 1, 'device-0000001', 1, ${Date.now()}, 0, '"!"' FROM n`,
  );
  db.run(`UPDATE channels SET receiptsHead = ${receipts}`);
};

const manyChannels = (channels: number) => (db: Database) =>
  void db.run(
    `INSERT INTO channels (${CHANNEL_COLUMNS}) ${NUMBERS(channels)}
     SELECT NULL, 'c-' || ${PADDED}, 'epoch' || ${PADDED}, 0, 0, 0, 0, 0, 1 FROM n`,
  );

// ------------------------------------------------------------------------------------------------------------------ rows

/** Feeds that only count, opened all at once, until each has so many entries. */
async function follow(service: Service, count: number, path: (index: number) => string, each: number): Promise<number> {
  const feeds = await Feeds.open({ at: service, count, path, fullEvery: 0, openingMax: count });
  await feeds.until(count * each);
  feeds.check(() => each);
  orThrow(feeds.faults);
  await feeds.close();
  return count * each;
}

/** Devices are enrolled, events are pushed, and all devices come back at once. */
async function crowd(service: Service, devices: number, events: number): Promise<Figures> {
  const requests = await Requests.open(service.port, 16);
  await Promise.all(Array.from({ length: devices }, (_, index) => requests.ask("PUT", `/devices/c/device-${index}`)));
  for (let pushed = 0; pushed < events; pushed += 500) {
    const lines = `${eventData(now(), EVENT_BYTES)}\n`.repeat(Math.min(500, events - pushed));
    await requests.ask("POST", "/push/c", lines, "application/x-ndjson");
  }
  requests.close();
  return beside(service, "deliveries", () =>
    follow(service, devices, (index) => `/feed/c?device=device-${index}`, events),
  );
}

/** Reads an address over and over, some at a time and with these headers in turn, for a while. */
const readAgain = (service: Service, seconds: number, path: string, headers: Record<string, string>[]) => async () => {
  const until = now() + seconds * 1000;
  let done = 0;
  await closedLoop(LISTERS, async () => {
    const response = await fetch(`http://${HOST}:${service.port}${path}`, {
      headers: headers[done++ % headers.length]!,
    });
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
    await response.arrayBuffer();
    return now() < until;
  });
  return done;
};

/** Watchers of one channel each. */
async function watch(service: Service, watchers: number, channels: number, seconds: number): Promise<number> {
  const ending = new AbortController();
  const readers = Array.from({ length: watchers }, async (_, index) => {
    const channel = nameOf("c", channels - index);
    const response = await fetch(`http://${HOST}:${service.port}/watch?channel=${channel}`, {
      headers: { Authorization: `Bearer ${await tokenFor(channel)}` },
      signal: ending.signal,
    });
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
    for await (const _chunk of response.body!);
  });
  const end = Promise.allSettled(readers);
  await Bun.sleep(seconds * 1000);
  ending.abort();
  await end;
  return watchers;
}

/** Receipts in arrays: each device gives `received` and then `done` on each event. */
async function arrays(service: Service, devices: number, seconds: number): Promise<number> {
  const requests = await Requests.open(service.port, 4);
  const until = now() + seconds * 1000;
  let done = 0;
  await closedLoop(4, async () => {
    const pushed = await requests.ask("POST", "/push/c", eventData(now(), EVENT_BYTES));
    const { id } = JSON.parse(pushed) as { id: string };
    for (const status of ["received", "done"]) {
      const body = Array.from({ length: devices }, (_, index) => ({
        event: id,
        device: nameOf("device", index + 1),
        status,
      }));
      const answer = await requests.ask("POST", "/feedback/c", JSON.stringify(body));
      if ((JSON.parse(answer) as { recorded: number }).recorded !== devices) throw new Error(`recorded: ${answer}`);
      done += devices;
    }
    return now() < until;
  });
  requests.close();
  return done;
}

/** Hooks, one a channel, whose receiver refuses connections: each is called once, and again after some seconds. */
async function hooks(service: Service, count: number, seconds: number): Promise<Figures> {
  const requests = await Requests.open(service.port, 16);
  const each = (run: (channel: string) => Promise<unknown>): Promise<unknown> =>
    Promise.all(Array.from({ length: count }, (_, index) => run(nameOf("h", index))));
  const events = new Map<string, string>();
  await each((channel) => requests.ask("PUT", `/devices/${channel}/device`));
  await each((channel) => requests.ask("PUT", `/hooks/${channel}/hook`, `{"url":"http://${HOST}:1/"}`));
  await each(async (channel) => {
    const { id } = JSON.parse(await requests.ask("POST", `/push/${channel}`, "{}")) as { id: string };
    events.set(channel, id);
  });
  await Bun.sleep(2_000); // All of them run.
  const figures = await beside(service, "receipts, each with a call", async () => {
    const body = (channel: string): string =>
      `{"event":"${events.get(channel)}","device":"device","status":"received"}`;
    await each((channel) => requests.ask("POST", `/feedback/${channel}`, body(channel)));
    await Bun.sleep(seconds * 1000 + 6_000);
    return count;
  });
  requests.close();
  return figures;
}

export function stallRows({ seconds, divide }: { readonly seconds: number; readonly divide: number }): StallRow[] {
  const receipts = part(LOG_RECEIPTS, divide);
  const events = part(OWED_EVENTS, divide);
  const channels = part(CHANNELS, divide) + WATCHERS;
  const rows = part(EXPORT_DEVICES, divide);
  const count = part(HOOKS, divide);
  const filledWithChannels = {
    fill: (file: string) => fill(file, manyChannels(channels)),
    fillRedis: redisChannels(channels),
  };
  const filledWithEvent = (devices: number) => ({
    fill: (file: string) => fill(file, (db) => oneEvent(db, devices)),
    fillRedis: redisEvent(devices),
  });
  const withTokens = {
    turns: true,
    env: { PERE_JWT_SECRET: SECRET },
    ...filledWithChannels,
  };
  return [
    {
      name: "stall-log",
      what: `1 client follows ${whole(receipts)} receipts from the beginning`,
      connections: 1,
      start: { turns: true, fill: (file) => fill(file, receiptsLog(receipts)), fillRedis: redisReceipts(receipts) },
      run: (service) =>
        beside(service, "receipts", () => follow(service, 1, () => "/feedback/c?since=earliest", receipts)),
    },
    ...CROWDS.map((devices) => ({
      name: `stall-crowd-${devices}`,
      what: `${devices} devices come back at once, owing ${whole(events)} events each`,
      connections: devices,
      start: { turns: true },
      run: (service: Service) => crowd(service, devices, events),
    })),
    {
      name: "stall-channels",
      what: `GET /channels of ${whole(channels)} channels, ${LISTERS} at a time`,
      connections: LISTERS,
      start: { turns: true, ...filledWithChannels },
      run: (service) => beside(service, "lists", readAgain(service, seconds, "/channels", [{}])),
    },
    {
      name: "stall-channels-one",
      what: "GET /channels?limit=10 with a token for one of them",
      connections: LISTERS,
      start: withTokens,
      run: async (service) => {
        const headers = { Authorization: `Bearer ${await tokenFor(nameOf("c", channels - 1))}` };
        return beside(service, "lists", readAgain(service, seconds, "/channels?limit=10", [headers]), true);
      },
    },
    {
      name: "stall-watch",
      what: `${WATCHERS} watchers with a token for one of them each`,
      connections: WATCHERS,
      start: withTokens,
      run: (service) => beside(service, "watchers", () => watch(service, WATCHERS, channels, seconds), true),
    },
    {
      name: "stall-arrays",
      what: `arrays of ${whole(ARRAY_DEVICES)} receipts, 4 at a time`,
      connections: 4,
      start: { turns: true, ...filledWithEvent(ARRAY_DEVICES) },
      run: (service) => beside(service, "receipts", () => arrays(service, ARRAY_DEVICES, seconds)),
    },
    {
      name: "stall-hooks",
      what: `${whole(count)} hooks whose receiver is down`,
      connections: 16,
      start: { turns: true, env: { PERE_HOOKS_ALLOW: `${HOST}/32` } },
      run: (service) => hooks(service, count, seconds),
    },
    {
      name: "stall-rows",
      what: `exports of ${whole(rows)} receipt rows, ${LISTERS} at a time`,
      connections: LISTERS,
      start: { turns: true, ...filledWithEvent(rows) },
      run: (service) => {
        const types = ["text/csv", "application/x-ndjson"].map((type) => ({ Accept: type }));
        return beside(service, "exports", readAgain(service, seconds, "/events/c/epochepoch-1/receipts", types));
      },
    },
    {
      name: "stall-metrics",
      what: `GET /metrics beside ${whole(channels)} channels`,
      connections: LISTERS,
      start: { turns: true, ...filledWithChannels },
      run: async (service) => {
        await fetch(`http://${HOST}:${service.port}/metrics`); // The first one loads code.
        return beside(service, "scrapes", readAgain(service, seconds, "/metrics", [{}]));
      },
    },
  ];
}
