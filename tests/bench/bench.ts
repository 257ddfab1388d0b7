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
import { fdatasyncSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { availableParallelism, cpus, platform, release, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { now } from "./feeds.ts";
import { quantile, type RowResult } from "./measure.ts";
import { CERTIFIED_DEVICES, certified, type CertifiedOptions, certifiedTable } from "./certified.ts";
import { besidePeers, peerRows } from "./peers.ts";
import { besideRedis, startOnRedis } from "./redis.ts";
import { plot } from "./plot.ts";
import { type RowOptions, rowsOf } from "./rows.ts";
import { pointsOf } from "./sizes.ts";
import { diskFolder, type Service, startService } from "./service.ts";
import { progress, table } from "./table.ts";

const HELP = `bun run bench [NAME] [flags]

  NAME             the same as --only NAME
  certified        one push to N devices and a durable final receipt from each, instead of the other rows; its flags are
                   --devices (1,000, then 10,000), --instances, --seconds, --events, --json

  --only NAME      only these rows, comma separated
  --devices N      devices of the one channel (1000)
  --instances K    certified: instances on one Redis (as few as the limit of open files allows; one needs no Redis)
  --channels M     channels with one device each (1000)
  --events E       events a fan-out row, instead of as many as go into --seconds
  --quiet N        quiet feeds opened to see what one costs (10000)
  --crowd N        devices that come back at once (10000)
  --divide N       the rows "stalls" with a part of their sizes (1)
  --plot FILE      an SVG of what a delivery costs by the number of devices; needs the rows "sizes"
  --seconds S      how long a row measures (4)
  --peers          beside other servers, in turn, instead of the other rows: nginx with nchan, a minimal C program, and Centrifugo,
                   NATS and Mercure if they are on the PATH
  --servers NAMES  only these beside PERE, comma separated
  --rounds N       how often each is measured beside its peers (3)
  --redis          instances on one Redis beside the default, instead of the other rows; with --only, those rows on a Redis instead
                   of a file; starts redis-server itself
  --json           one JSON object on standard output, and nothing else
  --help
`;
/** Files that the benchmark and a service have open beside connections. */
const OTHER_FILES = 300;

/** The row, named alone, that has a table of its own. */
const CERTIFIED = "certified";

/** Before this program binds itself to one. */
const CORES = availableParallelism();

interface Options extends RowOptions, CertifiedOptions {
  readonly only: readonly string[] | null;
  readonly servers: readonly string[] | null;
  readonly rounds: number;
  /** Where the plot of the sizes goes. */
  readonly plot: string | null;
  readonly json: boolean;
  readonly redis: boolean;
  readonly peers: boolean;
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
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      only: { type: "string", multiple: true },
      devices: { type: "string" },
      instances: { type: "string" },
      channels: { type: "string", default: "1000" },
      events: { type: "string" },
      quiet: { type: "string", default: "10000" },
      seconds: { type: "string", default: "4" },
      crowd: { type: "string", default: "10000" },
      servers: { type: "string" },
      rounds: { type: "string", default: "3" },
      divide: { type: "string", default: "1" },
      plot: { type: "string" },
      peers: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      redis: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  if (values.servers !== undefined && !values.peers) throw new Error("--servers needs --peers");
  if (values.redis && values.peers) throw new Error("--redis and --peers are two runs");
  const named = [...positionals, ...(values.only ?? [])].flatMap((names) => names.split(","));
  const only = named.length === 0 ? null : named;
  const number = (name: string, text: string): number => {
    if (/^\d{1,7}$/.test(text) && Number(text) > 0) return Number(text);
    throw new Error(`--${name} must be a whole number above 0, not "${text}"`);
  };
  if (only?.includes(CERTIFIED) && (only.length > 1 || values.peers))
    throw new Error(`"${CERTIFIED}" has a table of its own: run it without other rows`);
  return {
    only,
    devices: number("devices", values.devices ?? "1000"),
    certified: values.devices === undefined ? CERTIFIED_DEVICES : [number("devices", values.devices)],
    instances: values.instances === undefined ? null : number("instances", values.instances),
    channels: number("channels", values.channels),
    events: values.events === undefined ? null : number("events", values.events),
    quiet: number("quiet", values.quiet),
    seconds: number("seconds", values.seconds),
    crowd: number("crowd", values.crowd),
    servers: values.servers?.split(",") ?? null,
    rounds: number("rounds", values.rounds),
    divide: number("divide", values.divide),
    plot: values.plot ?? null,
    peers: values.peers,
    json: values.json,
    redis: values.redis,
  };
}

/** Binds this program, with all its threads, to the second core; the service is then started on the first. */
function pin(): boolean {
  if (CORES < 2 || !Bun.which("taskset")) return false;
  return Bun.spawnSync(["taskset", "-acp", "1", String(process.pid)]).success;
}

type Say = (text: string) => void;

/** Each row on a service of its own. */
async function measureRows(
  options: Options,
  stage: { folder: string; pinned: boolean; openFilesMax: number; say: Say },
): Promise<RowResult[]> {
  const rows = rowsOf(options).filter(
    ({ name, group }) => options.only === null || [name, group].some((one) => one && options.only?.includes(one)),
  );
  const results: RowResult[] = [];
  for (const [index, { name, what, connections, start, run }] of rows.entries()) {
    const files = OTHER_FILES + connections;
    if (files > stage.openFilesMax) {
      const error = `needs ${files} open files, the limit is ${stage.openFilesMax}: raise it with ulimit -n`;
      results.push({ name, what, error });
      continue;
    }
    const finished = progress(name, index, rows.length);
    let service: Service | undefined;
    try {
      service = options.redis
        ? await startOnRedis(stage.folder, CORES, stage.pinned, start)
        : await startService(stage.folder, stage.pinned ? 0 : null, start);
      results.push({ name, what, ...(await run(service)) });
    } catch (error) {
      results.push({ name, what, error: (error as Error).message });
    } finally {
      await service?.stop();
      finished();
    }
  }
  return results;
}

/** What PERE says of its own store. */
async function storeOf(folder: string): Promise<string> {
  const service = await startService(folder, null);
  try {
    const ready = (await (await fetch(`http://127.0.0.1:${service.port}/ready`)).json()) as Record<string, string>;
    return `${ready.store}, durability: ${ready.durability}`;
  } finally {
    await service.stop();
  }
}

/** Runs the rows and gives the exit code. @throws Error when the flags are wrong or nothing can be measured here */
async function bench(options: Options): Promise<number> {
  const say: Say = (text) => {
    if (!options.json) console.log(text);
  };
  const names = options.peers
    ? peerRows(options).map(({ name }) => name)
    : [
        CERTIFIED,
        ...new Set(rowsOf(options).flatMap(({ name, group }) => (group === undefined ? [name] : [name, group]))),
      ];
  const unknown = options.only?.find((name) => !names.includes(name));
  if (unknown !== undefined) throw new Error(`there is no row "${unknown}"; there are ${names.join(", ")}`);

  const { path: folder, isDisk } = diskFolder();
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const store = await storeOf(folder);
  const pinned = pin();
  const machine = {
    system: `${platform()} ${release()}`,
    processor: cpus()[0]?.model ?? "unknown",
    cores: CORES,
    memoryMb: Math.round(totalmem() / 1024 ** 2),
    bun: Bun.version,
    store,
    syncMs: Number(syncMs(folder).toFixed(3)),
    isDisk,
    pinned,
    // Bun raises its own limit as far as it may, and what it starts inherits it.
    openFilesMax: Number(Bun.spawnSync(["sh", "-c", "ulimit -n"]).stdout.toString()) || Number.POSITIVE_INFINITY,
    date: new Date().toISOString(),
  };
  say(`${machine.processor}, ${CORES} cores, ${machine.memoryMb} MB, ${machine.system}, Bun ${machine.bun}`);
  say(
    pinned
      ? "service on core 0, generator on core 1"
      : "NOT pinned: service and generator share the cores (needs taskset and 2 cores)",
  );
  if (!isDisk) say("NO DISK: the database lies in memory, so syncs cost nothing and receipts look too fast");
  say(`store: ${store}; one 4 KiB write made durable takes this disk ${machine.syncMs} ms\n`);

  const stage = { folder, cores: CORES, pinned, openFilesMax: machine.openFilesMax, say };
  if (options.peers) {
    const compared = await besidePeers(stage, options);
    if (options.json) console.log(JSON.stringify({ machine, ...compared }));
    return compared.rows.some(({ errors }) => Object.keys(errors).length > 0) ? 1 : 0;
  }
  if (options.only?.includes(CERTIFIED)) {
    const rows = await certified(stage, options);
    console.log(options.json ? JSON.stringify({ machine, rows }) : certifiedTable(rows));
    return rows.some(({ error }) => error !== undefined) ? 1 : 0;
  }
  const rows = await (options.redis && options.only === null
    ? besideRedis(stage, options)
    : measureRows(options, stage));
  console.log(options.json ? JSON.stringify({ machine, rows }) : table(rows));
  if (options.plot !== null) writeFileSync(options.plot, plot(pointsOf(rows)));
  return rows.some(({ error }) => error !== undefined) ? 1 : 0;
}

for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
try {
  process.exit(await bench(readOptions(process.argv.slice(2))));
} catch (error) {
  console.error(`bench: ${(error as Error).message}`);
  process.exit(2);
}
