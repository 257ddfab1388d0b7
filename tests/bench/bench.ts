/**
 * What PERE does on this machine: `bun run bench`.
 *
 * Each row starts the service as people run it, a process of its own on a fresh SQLite file on a real disk, and measures over the public
 * contract only. The service has one core and this program, which is also the load generator, the other: a figure is that of one core. Every
 * row checks what it counted (each device was given each event once, each receipt was recorded); a row that does not add up is an
 * error and has no figure. A row also tells how busy both cores were, because a generator near its own limit measures itself.
 *
 * Figures of runs at different times differ by a fifth without a cause; the service's CPU time for each delivery or receipt is steadier.
 */
import { fdatasyncSync, openSync, rmSync, writeSync } from "node:fs";
import { availableParallelism, cpus, platform, release, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Feeds, now } from "./load.ts";
import {
  type FanOut,
  fanOut,
  type Figures,
  orThrow,
  percent,
  quantile,
  RECEIPT_CONNECTIONS,
  type RowResult,
  SETTLE_MS,
} from "./measure.ts";
import {
  ARRAY_CONNECTIONS,
  loop,
  receipts,
  RECEIPTS_AN_ARRAY,
  socketReceipts,
  told,
  TOLD_A_SECOND,
} from "./receipts.ts";
import { besideRedis } from "./redis.ts";
import { diskFolder, residentKb, type Service, startService } from "./service.ts";

const HELP = `bun run bench [flags]

  --only NAME      only these rows, comma separated
  --devices N      devices of the one channel (1000)
  --channels M     channels with one device each (1000)
  --events E       events a fan-out row, instead of as many as go into --seconds
  --quiet N        quiet feeds opened to see what one costs (5000)
  --seconds S      how long a row measures (4)
  --redis          instances on one Redis beside the default, instead of the other rows; starts redis-server itself
  --json           one JSON object on standard output, and nothing else
  --help
`;

const PACED_EVENTS_A_SECOND = 20;

interface Options {
  readonly only: readonly string[] | null;
  readonly devices: number;
  readonly channels: number;
  readonly events: number | null;
  readonly quiet: number;
  readonly seconds: number;
  readonly json: boolean;
  readonly redis: boolean;
}

interface Row {
  readonly name: string;
  readonly what: string;
  readonly run: (service: Service) => Promise<Figures>;
}

// --------------------------------------------------------------------------------------------------------------------- quiet

/** Opens many feeds and looks at the service's memory before and after. */
async function quiet(service: Service, { quiet: count }: Options): Promise<Figures> {
  const open = (name: string, feeds: number): Promise<Feeds> =>
    Feeds.open({
      port: service.port,
      count: feeds,
      path: (index) => `/feed/c?device=${name}-${index}`,
      fullEvery: Number.POSITIVE_INFINITY,
    });
  const first = await open("first", 200);
  await Bun.sleep(SETTLE_MS);
  const beforeKb = residentKb(service.pid);
  const started = now();
  const more = await open("more", count);
  const openedMs = now() - started;
  await Bun.sleep(SETTLE_MS);
  const afterKb = residentKb(service.pid);
  orThrow([...first.faults, ...more.faults]);
  first.close();
  more.close();
  if (beforeKb === null || afterKb === null) throw new Error("this system does not tell how much memory a process has");
  return {
    figure: (afterKb - beforeKb) / count,
    unit: "kB/feed",
    notes: [`${whole((count * 1000) / openedMs)} feeds opened a second; ${whole(afterKb / 1024)} MB in all`],
  };
}

// ---------------------------------------------------------------------------------------------------------------------- rows

const rowsOf = (options: Options): Row[] => {
  const { devices, channels } = options;
  const one = (name: string, what: string, run: FanOut, unit = "deliveries/s"): Row => ({
    name,
    what,
    run: async (service) => {
      const { deliveriesPerSecond, pushesPerSecond, ...rest } = await fanOut(service, options, run);
      return { figure: unit === "pushes/s" ? pushesPerSecond : deliveriesPerSecond, unit, ...rest };
    },
  });
  return [
    one("fan-out", `1 channel, ${devices} devices, 1 push in flight`, { channels: 1, devices, atOnce: 1 }),
    one("fan-out-16", `the same, 16 pushes in flight`, { channels: 1, devices, atOnce: 16 }),
    one("paced", `the same, ${PACED_EVENTS_A_SECOND} events/s: see p50 and p99`, {
      channels: 1,
      devices,
      atOnce: 1,
      perSecond: PACED_EVENTS_A_SECOND,
    }),
    one(
      "channels",
      `${channels} channels, 1 device each, 16 pushes in flight`,
      { channels, devices: channels, atOnce: 16 },
      "pushes/s",
    ),
    {
      name: "receipts",
      what: `durable receipts one by one, ${RECEIPT_CONNECTIONS} connections`,
      run: (service) => receipts(service, options, 1, RECEIPT_CONNECTIONS),
    },
    {
      name: "receipts-array",
      what: `the same in arrays of ${RECEIPTS_AN_ARRAY}, ${ARRAY_CONNECTIONS} connections`,
      run: (service) => receipts(service, options, RECEIPTS_AN_ARRAY, ARRAY_CONNECTIONS),
    },
    {
      name: "receipts-socket",
      what: `the same over ${RECEIPT_CONNECTIONS} WebSockets, ${RECEIPTS_AN_ARRAY} a message`,
      run: (service) => socketReceipts(service, options),
    },
    {
      name: "loop",
      what: `push, ${devices} deliveries, a receipt from each one by one`,
      run: (service) => loop(service, options, false),
    },
    {
      name: "wait",
      what: `the same, the push answered when all of them are in (Prefer: wait)`,
      run: (service) => loop(service, options, true),
    },
    {
      name: "told",
      what: `a device's receipt to the publisher's event stream, ${TOLD_A_SECOND} receipts/s: see p50 and p99`,
      run: (service) => told(service, options),
    },
    {
      name: "quiet",
      what: `${options.quiet} quiet feeds with a device's name`,
      run: (service) => quiet(service, options),
    },
  ];
};

// --------------------------------------------------------------------------------------------------------------------- output

const whole = (value: number): string => Math.round(value).toLocaleString("en");
const short = (value: number | null | undefined): string =>
  value === null || value === undefined ? "" : value >= 100 ? whole(value) : value.toFixed(value >= 10 ? 1 : 2);
const share = (value: number | null | undefined): string =>
  value === null || value === undefined ? "" : percent(value);

const COLUMNS = [
  "row",
  "figure",
  "unit",
  "p50 ms",
  "p99 ms",
  "service µs each",
  "service",
  "generator",
  "what",
] as const;
const LEFT: readonly string[] = ["row", "unit", "what"];

function table(results: readonly RowResult[]): string {
  const cells = results.map((row) => [
    row.name,
    row.error === undefined ? short(row.figure) : "ERROR",
    row.unit ?? "",
    short(row.p50Ms),
    short(row.p99Ms),
    short(row.serviceUs),
    share(row.serviceCore),
    share(row.generatorCore),
    row.what,
  ]);
  const widths = COLUMNS.map((name, column) => Math.max(name.length, ...cells.map((row) => row[column]!.length)));
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, column) =>
        LEFT.includes(COLUMNS[column]!) ? text.padEnd(widths[column]!) : text.padStart(widths[column]!),
      )
      .join("  ")
      .trimEnd();
  const remarks = results.flatMap(({ name, error, notes = [] }) =>
    [...(error === undefined ? [] : [`ERROR: ${error}`]), ...notes].map((text) => `${name}: ${text}`),
  );
  return [line(COLUMNS), line(widths.map((width) => "-".repeat(width))), ...cells.map(line), "", ...remarks].join("\n");
}

const BAR_CELLS = 24;

/** Draws how far it is, when somebody looks; gives what ends it. */
function progress(row: string, done: number, total: number): () => void {
  if (!process.stderr.isTTY) return () => {};
  const started = now();
  const draw = (): void => {
    const full = Math.round((done / total) * BAR_CELLS);
    const seconds = ((now() - started) / 1000).toFixed(0);
    process.stderr.write(
      `\r\x1b[K[${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}] ${done + 1}/${total} ${row} ${seconds} s`,
    );
  };
  draw();
  const timer = setInterval(draw, 500);
  return () => {
    clearInterval(timer);
    process.stderr.write("\r\x1b[K");
  };
}

/** How long the disk takes to make one small write durable: what a lone push or receipt waits at least. */
function syncMs(folder: string): number {
  const file = openSync(join(folder, "probe"), "w");
  const block = new Uint8Array(4096);
  const times = Array.from({ length: 50 }, () => {
    const started = now();
    writeSync(file, block);
    fdatasyncSync(file);
    return now() - started;
  });
  return quantile(times, 0.5);
}

// ----------------------------------------------------------------------------------------------------------------------- run

function readOptions(argv: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      only: { type: "string", multiple: true },
      devices: { type: "string", default: "1000" },
      channels: { type: "string", default: "1000" },
      events: { type: "string" },
      quiet: { type: "string", default: "5000" },
      seconds: { type: "string", default: "4" },
      json: { type: "boolean", default: false },
      redis: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  if (values.redis && values.only) throw new Error("--only chooses among the other rows; --redis has its own");
  const number = (name: string, text: string): number => {
    if (/^\d{1,7}$/.test(text) && Number(text) > 0) return Number(text);
    throw new Error(`--${name} must be a whole number above 0, not "${text}"`);
  };
  return {
    only: values.only?.flatMap((names) => names.split(",")) ?? null,
    devices: number("devices", values.devices),
    channels: number("channels", values.channels),
    events: values.events === undefined ? null : number("events", values.events),
    quiet: number("quiet", values.quiet),
    seconds: number("seconds", values.seconds),
    json: values.json,
    redis: values.redis,
  };
}

/** Binds this program, with all its threads, to the second core; the service is then started on the first. */
function pin(): boolean {
  if (availableParallelism() < 2 || !Bun.which("taskset")) return false;
  return Bun.spawnSync(["taskset", "-acp", "1", String(process.pid)]).success;
}

/** Runs the rows and gives the exit code. @throws Error when the flags are wrong or nothing can be measured here */
async function bench(options: Options): Promise<number> {
  const say = (text: string): void => {
    if (!options.json) console.log(text);
  };
  const all = options.redis ? [] : rowsOf(options);
  const unknown = options.only?.find((name) => !all.some((row) => row.name === name));
  if (unknown !== undefined)
    throw new Error(`there is no row "${unknown}"; there are ${all.map(({ name }) => name).join(", ")}`);
  const rows = options.only === null ? all : all.filter(({ name }) => options.only!.includes(name));

  const openFilesMax = Number(Bun.spawnSync(["sh", "-c", "ulimit -n"]).stdout.toString());
  const cores = availableParallelism();
  const { path: folder, isDisk } = diskFolder();
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const pinned = pin();
  const machine = {
    system: `${platform()} ${release()}`,
    processor: cpus()[0]?.model ?? "unknown",
    cores,
    memoryMb: Math.round(totalmem() / 1024 ** 2),
    bun: Bun.version,
    syncMs: Number(syncMs(folder).toFixed(3)),
    isDisk,
    pinned,
    openFilesMax,
    date: new Date().toISOString(),
  };
  say(`${machine.processor}, ${cores} cores, ${machine.memoryMb} MB, ${machine.system}, Bun ${machine.bun}`);
  say(
    pinned
      ? "service on core 0, generator on core 1"
      : "NOT pinned: service and generator share the cores (needs taskset and 2 cores)",
  );
  if (!isDisk) say("NO DISK: the database lies in memory, so syncs cost nothing and receipts look too fast");

  const results: RowResult[] = [];
  let store = "";
  for (const [index, row] of rows.entries()) {
    const { name, what } = row;
    const needed = 300 + Math.max(name === "quiet" ? options.quiet : 0, options.devices, options.channels);
    if (needed > openFilesMax) {
      results.push({
        name,
        what,
        error: `needs ${needed} open files, the limit is ${openFilesMax}: raise it with ulimit -n`,
      });
      continue;
    }
    const finished = progress(name, index, rows.length);
    const service = await startService(folder, pinned ? 0 : null);
    try {
      if (store === "") {
        const ready = (await (await fetch(`http://127.0.0.1:${service.port}/ready`)).json()) as Record<string, string>;
        store = `${ready.store}, durability: ${ready.durability}`;
        say(`store: ${store}; one 4 KiB write made durable takes this disk ${machine.syncMs} ms\n`);
      }
      results.push({ name, what, ...(await row.run(service)) });
    } catch (error) {
      results.push({ name, what, error: (error as Error).message });
    } finally {
      await service.stop();
      finished();
    }
  }
  if (options.redis) results.push(...(await besideRedis({ folder, cores, pinned, say }, options)));
  if (options.json) console.log(JSON.stringify({ machine: { ...machine, store }, rows: results }));
  else console.log(table(results));
  return results.some(({ error }) => error !== undefined) ? 1 : 0;
}

for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
try {
  process.exit(await bench(readOptions(process.argv.slice(2))));
} catch (error) {
  console.error(`bench: ${(error as Error).message}`);
  process.exit(2);
}
