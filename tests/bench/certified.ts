/**
 * `bun run bench certified`: one push to N devices and a final receipt from each of them, over SSE with POST and over WebSocket. The time ends when the last
 * receipt is answered, and it is answered when it is on disk.
 *
 * Devices are processes of their own (`certified-devices.ts`). Where a service may not open enough files for all of them, several instances on one Redis
 * share them, each with a process of devices; the Redis is started here with `appendfsync always`. Services have core 0, the others core 1.
 *
 * Pushes follow each other, the next one when the last receipt of the one before is answered. After each the service must say that the event is complete,
 * with `done` from every device; at the end every device must have had every event once.
 */
import { join } from "node:path";
import { type DevicesMessage, type DevicesTask, wallMs } from "./certified-devices.ts";
import { eventData, now } from "./feeds.ts";
import { EVENT_BYTES, GENERATOR_SHARE_MAX, percent, quantile, WARM_MS } from "./measure.ts";
import { startRedis } from "./redis.ts";
import { Requests } from "./requests.ts";
import { cpuMs, onCore, residentKb, type Service, startService } from "./service.ts";
import { columns, progress, short, whole } from "./table.ts";

/** When the command line names none. */
export const CERTIFIED_DEVICES: readonly number[] = [1_000, 10_000];
const TRANSPORTS = ["sse", "websocket"] as const;
const WAYS = { sse: "SSE + POST", websocket: "WebSocket" };
/** A device in the field has its own connection for receipts; beyond this they take turns. */
const RECEIPT_CONNECTIONS_MAX = 1_000;
/** Files that a process has open beside connections, and those that a service keeps free for other uses than feeds (`engine/descriptors.ts`). */
const OTHER_FILES = 300 + 1_024;
const PUSHES_MIN = 3;
/** Connections of all devices are open, or a push is certified, by then; beyond it something is lost. */
const PATIENCE_MS = 180_000;

const DEVICES = join(import.meta.dir, "certified-devices.ts");

interface Stage {
  /** On a disk; removed at the end. */
  readonly folder: string;
  readonly pinned: boolean;
  readonly openFilesMax: number;
}

export interface CertifiedOptions {
  readonly certified: readonly number[];
  /** Instances on one Redis; null: as few as the limit of open files allows, and one without Redis. */
  readonly instances: number | null;
  readonly events: number | null;
  readonly seconds: number;
}

/** A line of the table. Times and rates are those of the middle push by its last receipt. */
export interface CertifiedRow {
  readonly name: string;
  readonly devices: number;
  readonly transport: (typeof TRANSPORTS)[number];
  readonly instances: number;
  readonly pushes?: number;
  readonly lastDeliveryMs?: number;
  /** From the push, as it is sent, to the answer that the last receipt is durable. */
  readonly lastReceiptMs?: number;
  readonly lastReceiptMostMs?: number;
  readonly receiptsPerSecond?: number;
  /** From the push to the durable receipt of half of the devices. */
  readonly p50Ms?: number;
  /** Of all instances, after the pushes. Null where the system does not tell. */
  readonly residentMb?: number | null;
  readonly serviceUs?: number | null;
  readonly generatorCore?: number | null;
  readonly notes?: readonly string[];
  readonly error?: string;
}

type Told = Extract<DevicesMessage, { word: "certified" }>;

/** One process of devices. */
export class Generator {
  readonly pid: number;
  readonly #child: Bun.Subprocess;
  readonly #words: DevicesMessage[] = [];
  #came: () => void = () => {};

  constructor(task: DevicesTask, core: number | null) {
    this.#child = Bun.spawn(onCore(core, [process.execPath, DEVICES, JSON.stringify(task)]), {
      ipc: (message: DevicesMessage) => {
        this.#words.push(message);
        this.#came();
      },
      stdin: "ignore",
      stdout: "inherit",
      stderr: "inherit",
    });
    this.pid = this.#child.pid;
    process.once("exit", this.#kill);
  }

  readonly #kill = (): void => this.#child.kill("SIGKILL");

  /** @throws Error when it says that something is wrong, ends or says nothing for too long */
  async #wait(): Promise<DevicesMessage> {
    const late = Bun.sleep(PATIENCE_MS).then(() => "late");
    while (this.#words.length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#came = resolve;
      const end = await Promise.race([promise, late, this.#child.exited]);
      if (end !== undefined && this.#words.length === 0)
        throw new Error(end === "late" ? `no news for ${PATIENCE_MS / 1000} s` : "a process of devices ended");
    }
    const message = this.#words.shift()!;
    if (message.word === "checked" && message.faults.length > 0) throw new Error(message.faults.join("; "));
    return message;
  }

  async open(): Promise<void> {
    await this.#wait();
  }

  async certified(): Promise<Told> {
    return (await this.#wait()) as Told;
  }

  /** Every device had so many events, each once. @throws Error when one did not */
  async check(pushed: number): Promise<void> {
    this.#child.send(pushed);
    await this.#wait();
  }

  async end(): Promise<void> {
    this.#kill();
    await this.#child.exited;
    process.off("exit", this.#kill);
  }
}

const sum = (values: readonly (number | null)[]): number | null =>
  values.reduce<number | null>((all, one) => (all === null || one === null ? null : all + one), 0);
const cpuOf = (processes: readonly { readonly pid: number }[]): number | null =>
  sum(processes.map(({ pid }) => cpuMs(pid)));

/** One push and all that it leads to. */
interface Certified {
  readonly lastDeliveryMs: number;
  readonly lastReceiptMs: number;
  readonly p50Ms: number;
}

/** Pushes at the first service. @throws Error when the service does not say that the event is complete */
export async function pushOnce(
  requests: Requests,
  generators: readonly Generator[],
  devices: number,
): Promise<Certified> {
  const started = wallMs();
  const answer = await requests.ask("POST", "/push/c", eventData(now(), EVENT_BYTES));
  const { id } = JSON.parse(answer) as { id: string };
  const told = await Promise.all(generators.map((generator) => generator.certified()));
  const state = await requests.ask("GET", `/events/c/${id}`);
  const { audience, receipts, complete } = JSON.parse(state) as {
    audience: { addressed: number };
    receipts: { done: number };
    complete: boolean;
  };
  if (!complete || receipts.done !== devices || audience.addressed !== devices)
    throw new Error(`after ${devices} receipts the event's state is ${state.slice(0, 500)}`);
  const receiptsMs = told.flatMap((one) => one.receiptsMs);
  return {
    lastDeliveryMs: Math.max(...told.map((one) => one.lastDeliveryMs)) - started,
    lastReceiptMs: receiptsMs.reduce((last, one) => Math.max(last, one), 0) - started,
    p50Ms: quantile(receiptsMs, 0.5) - started,
  };
}

type Measured = Omit<CertifiedRow, "name" | "devices" | "transport" | "instances" | "error">;

async function measure(
  services: readonly Service[],
  generators: readonly Generator[],
  devices: number,
  { seconds, events }: CertifiedOptions,
): Promise<Measured> {
  const requests = await Requests.open(services[0]!.port, 1);
  const pushing = async (least: number, ms: number): Promise<Certified[]> => {
    const pushes: Certified[] = [];
    for (const until = now() + ms; pushes.length < least || now() < until;)
      pushes.push(await pushOnce(requests, generators, devices));
    return pushes;
  };
  const warm = await pushing(1, events === null ? WARM_MS : 0);
  const started = now();
  const [served, generated] = [cpuOf(services), cpuOf(generators)];
  const pushes = await pushing(events ?? PUSHES_MIN, events === null ? seconds * 1000 : 0);
  const elapsedMs = now() - started;
  const used = (before: number | null, after: number | null): number | null =>
    before === null || after === null ? null : after - before;
  const serviceMs = used(served, cpuOf(services));
  const generatorMs = used(generated, cpuOf(generators));
  const residentMb = sum(services.map(({ pid }) => residentKb(pid)));
  await Promise.all(generators.map((generator) => generator.check(warm.length + pushes.length)));
  requests.close();

  const sorted = pushes.toSorted((a, b) => a.lastReceiptMs - b.lastReceiptMs);
  const middle = sorted[Math.floor(sorted.length / 2)]!;
  const generatorCore = generatorMs === null ? null : generatorMs / elapsedMs;
  return {
    pushes: pushes.length,
    ...middle,
    lastReceiptMostMs: sorted.at(-1)!.lastReceiptMs,
    receiptsPerSecond: (devices * 1000) / middle.lastReceiptMs,
    residentMb: residentMb === null ? null : residentMb / 1024,
    serviceUs: serviceMs === null ? null : (serviceMs * 1000) / (pushes.length * devices),
    generatorCore,
    notes: [
      `the first push, while Bun compiles and devices open connections for receipts: last receipt after ${whole(warm[0]!.lastReceiptMs)} ms`,
      ...(generatorCore !== null && generatorCore > GENERATOR_SHARE_MAX
        ? [`the devices used ${percent(generatorCore)} of their core: the service may do more`]
        : []),
    ],
  };
}

/** All rows. One that fails is an error in its place. */
export async function certified(stage: Stage, options: CertifiedOptions): Promise<CertifiedRow[]> {
  const perInstance = stage.openFilesMax - OTHER_FILES - RECEIPT_CONNECTIONS_MAX;
  const work = options.certified.flatMap((devices) => TRANSPORTS.map((transport) => ({ devices, transport })));
  const core = (wanted: number): number | null => (stage.pinned ? wanted : null);
  const rows: CertifiedRow[] = [];
  for (const [index, { devices, transport }] of work.entries()) {
    const instances = options.instances ?? Math.max(1, Math.ceil(devices / perInstance));
    const name = `certified-${transport}-${devices}`;
    const finished = progress(name, index, work.length);
    const services: Service[] = [];
    const generators: Generator[] = [];
    const redis = instances > 1 ? await startRedis(stage.folder, core(1)) : null;
    try {
      const start = redis === null ? {} : { env: { REDIS_URL: redis.url } };
      for (let instance = 0, first = 0; instance < instances; instance++) {
        const service = await startService(stage.folder, core(0), start);
        services.push(service);
        const count = Math.ceil((devices - first) / (instances - instance));
        const receiptConnections = Math.min(count, RECEIPT_CONNECTIONS_MAX);
        generators.push(new Generator({ port: service.port, transport, first, count, receiptConnections }, core(1)));
        first += count;
      }
      await Promise.all(generators.map((generator) => generator.open()));
      rows.push({ name, devices, transport, instances, ...(await measure(services, generators, devices, options)) });
    } catch (error) {
      rows.push({ name, devices, transport, instances, error: (error as Error).message });
    } finally {
      await Promise.all(generators.map((generator) => generator.end()));
      await Promise.all(services.map((service) => service.stop()));
      await redis?.end();
      finished();
    }
  }
  return rows;
}

/** The rows below their heads, and below them what is to be said of each. */
export function certifiedTable(rows: readonly CertifiedRow[]): string {
  const heads = [
    "devices",
    "over",
    "store",
    "last delivery ms",
    "last receipt ms",
    "slowest push ms",
    "receipts/s",
    "half of the receipts ms",
    "memory MB",
    "service µs each",
    "devices' core",
    "pushes",
  ];
  const cells = rows.map((row) => [
    whole(row.devices),
    WAYS[row.transport],
    row.instances > 1 ? `${row.instances} instances on Redis` : "SQLite",
    row.error === undefined ? short(row.lastDeliveryMs) : "ERROR",
    short(row.lastReceiptMs),
    short(row.lastReceiptMostMs),
    short(row.receiptsPerSecond),
    short(row.p50Ms),
    short(row.residentMb),
    short(row.serviceUs),
    row.generatorCore === null || row.generatorCore === undefined ? "" : percent(row.generatorCore),
    row.pushes === undefined ? "" : whole(row.pushes),
  ]);
  const remarks = rows.flatMap(({ name, error, notes = [] }) =>
    [...(error === undefined ? [] : [`ERROR: ${error}`]), ...notes].map((text) => `${name}: ${text}`),
  );
  return [columns(heads, cells, ["over", "store"]), "", ...remarks].join("\n");
}
