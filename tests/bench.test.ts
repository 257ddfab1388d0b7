/**
 * The benchmark's own promises: it runs, beside its peers where they are installed, and its cheap way of counting is not blind.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { type CertifiedRow, Generator, pushOnce } from "./bench/certified.ts";
import { eventData, Feeds } from "./bench/feeds.ts";
import type { Compared } from "./bench/peers.ts";
import { Requests } from "./bench/requests.ts";
import { push, start, until } from "./support/harness.ts";
import { noRedis } from "./support/redis-server.ts";

const BENCH = join(import.meta.dir, "bench", "bench.ts");
const DEVICES = 20;

/** Some feeds that read and more that count, on a service in this process. */
async function opened() {
  const pere = await start();
  const feeds = await Feeds.open({
    at: { port: Number(new URL(pere.url).port) },
    count: DEVICES,
    path: (index) => `/feed/c?device=device-${index}`,
    fullEvery: 10,
  });
  return { pere, feeds };
}

test("rows run beside the peers that are installed, and add up", async () => {
  const servers = "nchan,C,floor,PERE on Redis";
  const flags = ["--peers", "--servers", servers, "--rounds", "1", "--only", "fan-out,channels", "--json"];
  const small = ["--devices", String(DEVICES), "--channels", String(DEVICES), "--events", "40"];
  const bench = Bun.spawn([process.execPath, BENCH, ...flags, ...small], {
    env: process.env,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [said, complained] = await Promise.all([new Response(bench.stdout).text(), new Response(bench.stderr).text()]);
  expect(complained).toBe("");
  expect(await bench.exited).toBe(0);
  const { rows, settings } = JSON.parse(said) as Compared;
  expect(rows.map(({ row, errors }) => ({ row, errors }))).toEqual([
    { row: "fan-out", errors: {} },
    { row: "channels", errors: {} },
  ]);
  for (const { measures } of rows) {
    expect(Object.keys(measures[0]!.servers)).toEqual(Object.keys(settings));
    expect(measures[0]!.servers.PERE!.middle).toBeGreaterThan(0);
    expect(measures[0]!.servers.floor!.pereTo!.middle).toBeGreaterThan(0);
  }
}, 90_000);

test("each feed is counted separately: an event that one feed lacks is a failure", async () => {
  const { pere, feeds } = await opened();
  for (let event = 0; event < 3; event++) await push(pere.url, "c", JSON.parse(eventData(event, 200)));
  await feeds.until(3 * DEVICES);
  expect(feeds.latenciesMs).toHaveLength(3 * 2);
  feeds.check(() => 3);
  expect(feeds.faults).toEqual([]);
  feeds.check((index) => (index === 7 ? 4 : 3));
  feeds.check((index) => (index === 10 ? 2 : 3));
  expect(feeds.faults).toEqual([
    "1 feeds differ: feed 7 was given 3 events of 4",
    "1 feeds differ: feed 10 was given 3 events of 2",
  ]);
  await feeds.close();
  await pere.stop();
});

test("a feed that the service closes is a failure", async () => {
  const { pere, feeds } = await opened();
  await pere.stop();
  await until(() => feeds.faults.length >= DEVICES);
  expect(feeds.faults.toSorted()).toEqual(
    Array.from({ length: DEVICES }, (_, index) => `feed ${index} was closed by the service`).toSorted(),
  );
  await feeds.close();
});

const ON_REDIS = ["stall-log", "stall-channels", "stall-arrays", "stall-rows"];

test.each([
  [
    "fill their files by the current schema",
    ["stall-log", "stall-crowd-10", "stall-channels", "stall-channels-one", "stall-rows"],
    [],
  ],
  ["fill a Redis", noRedis === null ? ON_REDIS : [], ["--redis"]],
])(
  "rows about long work %s, do their work and show the longest turn",
  async (_, names, how) => {
    if (names.length === 0) return;
    const flags = [...how, "--only", names.join(), "--divide", "1000", "--seconds", "1", "--json"];
    const bench = Bun.spawn([process.execPath, BENCH, ...flags], {
      env: process.env,
      stdout: "pipe",
      stderr: "inherit",
    });
    const { rows } = JSON.parse(await new Response(bench.stdout).text()) as {
      rows: { name: string; error?: string; figure: number }[];
    };
    expect(rows.filter(({ error }) => error !== undefined)).toEqual([]);
    expect(rows.map(({ name }) => name)).toEqual(names);
    for (const { figure } of rows) expect(figure).toBeGreaterThan(0);
    expect(await bench.exited).toBe(0);
  },
  60_000,
);

/** Runs the row of certified pushes; each line of its table without its figures. */
async function certified(...flags: string[]): Promise<object[]> {
  const small = ["--devices", String(DEVICES + 1), "--events", "2", "--json"];
  const bench = Bun.spawn([process.execPath, BENCH, "certified", ...small, ...flags], {
    env: process.env,
    stdout: "pipe",
    stderr: "inherit",
  });
  const { rows } = JSON.parse(await new Response(bench.stdout).text()) as { rows: CertifiedRow[] };
  expect(await bench.exited).toBe(0);
  return rows.map(
    ({ devices, transport, instances, pushes, lastDeliveryMs, lastReceiptMs, receiptsPerSecond, error }) => {
      expect(error).toBeUndefined();
      expect(lastDeliveryMs).toBeGreaterThan(0);
      expect(lastReceiptMs).toBeGreaterThan(0);
      expect(receiptsPerSecond).toBeCloseTo((devices * 1000) / lastReceiptMs!);
      return { devices, transport, instances, pushes };
    },
  );
}

test("pushes are certified by a receipt from every device, over both transports", async () => {
  expect(await certified()).toEqual([
    { devices: DEVICES + 1, transport: "sse", instances: 1, pushes: 2 },
    { devices: DEVICES + 1, transport: "websocket", instances: 1, pushes: 2 },
  ]);
}, 60_000);

test.skipIf(noRedis !== null)(
  "the same with devices at several instances on Redis",
  async () => {
    expect(await certified("--instances", "2")).toEqual([
      { devices: DEVICES + 1, transport: "sse", instances: 2, pushes: 2 },
      { devices: DEVICES + 1, transport: "websocket", instances: 2, pushes: 2 },
    ]);
  },
  60_000,
);

test.each(["sse", "websocket"] as const)(
  "a push is not certified while another device owes a receipt, and a device that lacks an event is a failure: %s",
  async (transport) => {
    const pere = await start();
    const port = Number(new URL(pere.url).port);
    const generator = new Generator({ port, transport, first: 0, count: 3, receiptConnections: 2 }, null);
    const requests = await Requests.open(port, 1);
    try {
      await generator.open();
      const { lastReceiptMs } = await pushOnce(requests, [generator], 3);
      expect(lastReceiptMs).toBeGreaterThan(0);

      await requests.ask("PUT", "/devices/c/another");
      await expect(pushOnce(requests, [generator], 3)).rejects.toThrow('"addressed":4');
      await expect(generator.check(3)).rejects.toThrow("was given 2 events of 3");
    } finally {
      await generator.end();
      requests.close();
      await pere.stop();
    }
  },
);
