/**
 * Does it stay as it was? `bun run soak --minutes N`: pushes, feeds of all transports, receipts, drops and reconnects at a steady rate, and how memory,
 * descriptors and lag go on meanwhile.
 *
 * The service is a process of its own on a fresh file on a real disk, with a retention that is reached early, so that all that it does later it did before.
 * Everything is counted: an event that a device was not given, one that it was given twice, and a receipt that is not in the tally at the
 * end each fail the run. Memory and lag decide nothing; they are shown, for people to judge.
 */
import { readdirSync, rmSync } from "node:fs";
import { parseArgs } from "node:util";
import { now } from "./feeds.ts";
import { quantile } from "./measure.ts";
import { cpuMs, diskFolder, residentKb, type Service, startService } from "./service.ts";
import { type Seen, SoakDevice, TRANSPORTS } from "./soak-devices.ts";

const HELP = `bun run soak [flags]

  --minutes N      how long (10)
  --devices N      devices, a third by each transport (150)
  --channels N     channels they are spread over (10)
  --pushes N       events pushed a second (20)
  --help
`;

/** Lines of the table. */
const ROWS = 20;
/** Events kept a channel: reached within minutes. */
const KEPT_EVENTS = 300;
/** The end: what is under way must be over by then. */
const PATIENCE_MS = 30_000;
/** Below this a device's socket pool is the limit: Bun makes at most 256 requests at once. */
const DEVICES_MAX = 240;

const OPTIONS = {
  options: {
    minutes: { type: "string", default: "10" },
    devices: { type: "string", default: "150" },
    channels: { type: "string", default: "10" },
    pushes: { type: "string", default: "20" },
    help: { type: "boolean" },
  },
} as const;

/** What was asked for; what can't be, ends it with a sentence. */
function read() {
  try {
    const { values } = parseArgs(OPTIONS);
    if (Object.values(values).every((value) => value === true || /^[0-9]+(\.[0-9]+)?$/.test(String(value))))
      return values;
  } catch (error) {
    console.error(`soak: ${(error as Error).message.split(/\. |\n/, 1)[0]}`);
    process.exit(2);
  }
  return { minutes: "", devices: "", channels: "", pushes: "" };
}

const values: { minutes: string; devices: string; channels: string; pushes: string; help?: boolean } = read();
if (values.help) {
  console.log(HELP);
  process.exit(0);
}
const [minutes, devices, channels, pushes] = [values.minutes, values.devices, values.channels, values.pushes].map(
  Number,
) as [number, number, number, number];
if (![minutes, devices, channels, pushes].every((value) => value > 0) || devices > DEVICES_MAX) {
  console.error(`each is a number above 0, and there are at most ${DEVICES_MAX} devices; see --help`);
  process.exit(2);
}

/** What the service is at one moment, and what was done since the moment before. */
interface Sample {
  readonly minute: number;
  readonly memoryMb: number;
  readonly descriptors: number;
  readonly cpu: number;
  readonly open: number;
  readonly deliveries: number;
  readonly receipts: number;
  readonly reconnects: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly losses: number;
  readonly repeats: number;
}

const descriptorsOf = (pid: number): number => {
  try {
    return readdirSync(`/proc/${pid}/fd`).length;
  } catch {
    return Number.NaN;
  }
};

/** Looks at the service and takes what devices saw since the last look. */
function sampler(service: Service, seen: Seen): () => Sample {
  const began = now();
  let [at, cpu, deliveries, receipts, reconnects] = [began, cpuMs(service.pid) ?? 0, 0, 0, 0];
  return () => {
    const [time, cpuNow] = [now(), cpuMs(service.pid) ?? 0];
    const seconds = (time - at) / 1000;
    const sample: Sample = {
      minute: (time - began) / 60_000,
      memoryMb: (residentKb(service.pid) ?? Number.NaN) / 1024,
      descriptors: descriptorsOf(service.pid),
      cpu: (cpuNow - cpu) / (time - at),
      open: seen.open,
      deliveries: (seen.deliveries - deliveries) / seconds,
      receipts: (seen.receipts - receipts) / seconds,
      reconnects: (seen.reconnects - reconnects) / seconds,
      p50Ms: quantile(seen.latenciesMs, 0.5),
      p99Ms: quantile(seen.latenciesMs, 0.99),
      losses: seen.losses,
      repeats: seen.repeats,
    };
    [at, cpu, deliveries, receipts, reconnects] = [time, cpuNow, seen.deliveries, seen.receipts, seen.reconnects];
    seen.latenciesMs = [];
    return sample;
  };
}

const COLUMNS: readonly (readonly [string, (sample: Sample) => string])[] = [
  ["minute", ({ minute }) => minute.toFixed(1)],
  ["memory", ({ memoryMb }) => `${memoryMb.toFixed(0)} MB`],
  ["files", ({ descriptors }) => String(descriptors)],
  ["CPU", ({ cpu }) => `${(100 * cpu).toFixed(0)} %`],
  ["feeds", ({ open }) => String(open)],
  ["deliveries/s", ({ deliveries }) => deliveries.toFixed(0)],
  ["receipts/s", ({ receipts }) => receipts.toFixed(0)],
  ["returns/s", ({ reconnects }) => reconnects.toFixed(1)],
  ["lag p50", ({ p50Ms }) => `${p50Ms.toFixed(1)} ms`],
  ["p99", ({ p99Ms }) => `${p99Ms.toFixed(0)} ms`],
  ["lost", ({ losses }) => String(losses)],
  ["twice", ({ repeats }) => String(repeats)],
];
const line = (cells: readonly string[]): string =>
  cells.map((cell, n) => cell.padStart(Math.max(COLUMNS[n]![0].length, 7))).join("  ");

const BARS = "▁▂▃▄▅▆▇█";
/** A line of bars from 0 up to the largest value. */
function plot(name: string, unit: string, figures: readonly number[]): string {
  const most = Math.max(...figures);
  const bars = figures.map((value) => BARS[Math.min(BARS.length - 1, Math.floor((value / most) * BARS.length))] ?? " ");
  return `${name.padEnd(12)} ${bars.join("")}  up to ${most.toFixed(0)} ${unit}`;
}

/** Pushes at fixed times until told to stop; each is repeated under its key until it is answered. @returns how many a channel has */
async function publish(url: string, until: number, faults: string[]): Promise<number[]> {
  const pushed = new Array<number>(channels).fill(0);
  const began = now();
  const pending = new Set<Promise<void>>();
  for (let n = 0; ; n++) {
    const due = began + (n * 1000) / pushes;
    if (due >= until) break;
    if (due > now()) await Bun.sleep(due - now());
    const channel = n % channels;
    const one = fetch(`${url}/push/c${channel}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": `soak-${n}` },
      body: JSON.stringify({ sent: now(), pad: "x".repeat(160) }),
    }).then(
      ({ status }) => void (status === 201 ? pushed[channel]!++ : faults.push(`a push was answered ${status}`)),
      (error: Error) => void faults.push(`a push: ${error.message}`),
    );
    pending.add(one);
    void one.finally(() => pending.delete(one));
  }
  await Promise.all(pending);
  return pushed;
}

/** Waits until it is so, or for as long as there is patience. */
async function settle(isSo: () => boolean): Promise<boolean> {
  for (const end = now() + PATIENCE_MS; !isSo(); await Bun.sleep(20)) if (now() > end) return false;
  return true;
}

/** Receipts that the books lack: every kept event must be complete. */
async function unbooked(url: string): Promise<number> {
  let missing = 0;
  for (let channel = 0; channel < channels; channel++) {
    const response = await fetch(`${url}/events/c${channel}?limit=1000`);
    const { events } = (await response.json()) as {
      events: { audience: { addressed: number }; receipts: { done: number } }[];
    };
    for (const { audience, receipts } of events) missing += audience.addressed - receipts.done;
  }
  return missing;
}

const { path: folder, isDisk } = diskFolder();
const service = await startService(folder, null, { env: { PERE_KEEP_EVENTS: String(KEPT_EVENTS) } });
const url = `http://127.0.0.1:${service.port}`;
const seen: Seen = {
  deliveries: 0,
  receipts: 0,
  reconnects: 0,
  losses: 0,
  repeats: 0,
  open: 0,
  latenciesMs: [],
  faults: [],
};
const all = Array.from(
  { length: devices },
  (_, n) => new SoakDevice(url, `device-${n}`, `c${Math.floor(n / 3) % channels}`, TRANSPORTS[n % 3]!, seen),
);
await Promise.all(all.map((device) => device.start()));
console.log(
  `${devices} devices on ${channels} channels, ${pushes} events a second, for ${minutes} minutes${isDisk ? "" : "; no disk was found, so syncs cost nothing"}`,
);
console.log(line(COLUMNS.map(([name]) => name)));

const until = now() + minutes * 60_000;
const look = sampler(service, seen);
const samples: Sample[] = [];
const show = (): void => {
  const sample = look();
  samples.push(sample);
  console.log(line(COLUMNS.map(([, cell]) => cell(sample))));
};
const looking = setInterval(show, (minutes * 60_000) / ROWS);
const pushed = await publish(url, until, seen.faults);
clearInterval(looking);
if (samples.length < ROWS) show();

/** Who has everything is where its channel is. */
const has = (device: SoakDevice): boolean => device.seq === pushed[Number(device.channel.slice(1))];
await settle(() => all.every((device) => has(device) && device.owed.size === 0));
for (const device of all) seen.losses += pushed[Number(device.channel.slice(1))]! - device.seq;
const missing = (await unbooked(url)) + all.reduce((sum, { owed }) => sum + owed.size, 0);
await Promise.all(all.map((device) => device.stop()));
await service.stop();
rmSync(folder, { recursive: true, force: true });

console.log();
console.log(
  plot(
    "memory",
    "MB",
    samples.map(({ memoryMb }) => memoryMb),
  ),
);
console.log(
  plot(
    "descriptors",
    "",
    samples.map(({ descriptors }) => descriptors),
  ),
);
console.log(
  plot(
    "lag p99",
    "ms",
    samples.map(({ p99Ms }) => p99Ms),
  ),
);
console.log();
console.log(
  `${pushed.reduce((sum, count) => sum + count, 0)} events, ${seen.deliveries} deliveries, ${seen.receipts} receipts, ${seen.reconnects} returns: ` +
    `${seen.losses} lost, ${seen.repeats} given twice, ${missing} receipts missing, ${seen.faults.length} faults`,
);
for (const fault of new Set(seen.faults.slice(0, 10))) console.log(fault);
process.exit(seen.losses + seen.repeats + missing + seen.faults.length === 0 ? 0 : 1);
