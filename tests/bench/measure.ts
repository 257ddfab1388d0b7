/**
 * How a row measures: time, CPU, quantiles, and the fan-out that most rows are.
 */
import { eventData, Feeds, now } from "./feeds.ts";
import { Requests } from "./requests.ts";
import { cpuMs, type Service, withHelpers, writtenBytes } from "./service.ts";

export const EVENT_BYTES = 200;
/** Connections that receipts come over, one request at a time on each. */
export const RECEIPT_CONNECTIONS = 64;
/** Before a row measures, the code of both sides gets warm: Bun compiles what it sees often, which takes a tenth of a core for some seconds. */
export const WARM_MS = 3_000;
/**
 * Feeds that read in full where the generator has much to do. Where times are what is measured, all read: a server that gives some of them
 * their events first would be judged by those.
 */
const READING_FEEDS = 10;
/** Above this share of its core the generator may be what is measured. */
export const GENERATOR_SHARE_MAX = 0.7;
/** Memory is looked at when it has had time to settle. */
export const SETTLE_MS = 2_000;

/** What a row found. CPU times of the service are null where the system does not tell them. */
export interface Figures {
  readonly figure: number;
  readonly unit: string;
  readonly p50Ms?: number;
  readonly p99Ms?: number;
  /** CPU microseconds of the service for each of what was counted. */
  readonly serviceUs?: number | null;
  /** Shares of a core, from 0 up to 1. */
  readonly serviceCore?: number | null;
  readonly generatorCore?: number;
  readonly notes?: readonly string[];
}

/** A line of the table. */
export interface RowResult extends Partial<Figures> {
  readonly name: string;
  readonly what: string;
  readonly error?: string;
}

export const percent = (share: number): string => `${Math.round(share * 100)} %`;

/**
 * Time and CPU from now on. Call it at the end with how many things were done.
 *
 * @param others processes that work beside the service, by what they are; notes say how busy they were
 */
export function meter(
  service: Service,
  others: Readonly<Record<string, number>> = {},
): (done: number) => Required<Omit<Figures, "figure" | "unit" | "p50Ms" | "p99Ms">> & {
  perSecond: number;
} {
  const started = now();
  const generator = process.cpuUsage();
  const served = withHelpers(service, cpuMs);
  const beside = Object.entries(others).map(([what, pid]) => ({ what, pid, before: cpuMs(pid) }));
  return (done) => {
    const elapsedMs = now() - started;
    const { user, system } = process.cpuUsage(generator);
    const servedNow = withHelpers(service, cpuMs);
    const serviceMs = served === null || servedNow === null ? null : servedNow - served;
    const generatorCore = (user + system) / 1000 / elapsedMs;
    return {
      perSecond: (done * 1000) / elapsedMs,
      serviceUs: serviceMs === null ? null : (serviceMs * 1000) / done,
      serviceCore: serviceMs === null ? null : serviceMs / elapsedMs,
      generatorCore,
      notes: [
        ...(generatorCore > GENERATOR_SHARE_MAX
          ? [`the generator used ${percent(generatorCore)} of its core: the service may do more`]
          : []),
        ...beside.flatMap(({ what, pid, before }) => {
          const after = cpuMs(pid);
          if (before === null || after === null) return [];
          return [
            `${what}: ${percent((after - before) / elapsedMs)} of a core, ${(((after - before) * 1000) / done).toFixed(2)} µs each`,
          ];
        }),
      ],
    };
  };
}

/** The value below which `share` of the values are. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

export const latency = (valuesMs: readonly number[]): { p50Ms: number; p99Ms: number } => ({
  p50Ms: quantile(valuesMs, 0.5),
  p99Ms: quantile(valuesMs, 0.99),
});

/** Runs `work` over and over, `atOnce` at a time, until it says false. */
export async function closedLoop(atOnce: number, work: () => Promise<boolean>): Promise<void> {
  const one = async (): Promise<void> => {
    while (await work());
  };
  await Promise.all(Array.from({ length: atOnce }, one));
}

export const orThrow = (faults: readonly string[]): void => {
  if (faults.length > 0) throw new Error(faults.slice(0, 3).join("; "));
};

/** Pushes `count` events at fixed times, whether or not earlier ones are answered, and waits for all answers. */
export async function paced(
  perSecond: number,
  count: number,
  push: (dueMs: number) => Promise<unknown>,
): Promise<void> {
  const started = now();
  const answers: Promise<unknown>[] = [];
  for (let index = 0; index < count; index++) {
    const due = started + (index * 1000) / perSecond;
    // A timer may be a millisecond late, which would be counted as the service's: the last of the way is gone in small steps.
    if (due - now() > 2) await Bun.sleep(due - now() - 2);
    while (now() < due) await new Promise(setImmediate);
    answers.push(push(due));
  }
  await Promise.all(answers);
}

export interface FanOut {
  readonly channels: number;
  readonly devices: number;
  /** Pushes in flight; one that is answered is followed by the next. */
  readonly atOnce: number;
  /** Pushes at fixed times instead, whether or not earlier ones are answered. */
  readonly perSecond?: number;
  /** Where pushes go, when not to the service that the devices are at. */
  readonly pushAt?: Service;
  /** As in `meter`. */
  readonly others?: Readonly<Record<string, number>>;
}

/** Pushes until the time is up, and waits until every device has every event. */
export async function fanOut(
  service: Service,
  { seconds, events }: { readonly seconds: number; readonly events: number | null },
  { channels, devices, atOnce, perSecond, pushAt = service, others }: FanOut,
) {
  const feeds = await Feeds.open({
    at: service,
    count: devices,
    path: (index) => `/feed/c${index % channels}?device=device-${index}`,
    fullEvery: perSecond ? 1 : Math.ceil(devices / READING_FEEDS),
  });
  const requests = await Requests.open(pushAt.port, perSecond ? RECEIPT_CONNECTIONS : atOnce, pushAt.protocol);
  const each = devices / channels;
  let pushed = 0;
  const push = (dueMs = now()): Promise<string> =>
    requests.ask("POST", `/push/c${pushed++ % channels}`, eventData(dueMs, EVENT_BYTES));

  const warmUntil = now() + WARM_MS;
  await closedLoop(atOnce, async () => {
    if (now() >= warmUntil) return false;
    await push();
    return true;
  });
  await feeds.until(pushed * each);
  if (perSecond) await Bun.sleep(SETTLE_MS / 4);
  feeds.latenciesMs = [];

  const before = pushed;
  const writtenBefore = writtenBytes(pushAt.pid);
  const measured = meter(service, others);
  if (perSecond) {
    await paced(perSecond, events ?? Math.ceil(perSecond * seconds), push);
  } else {
    const until = now() + seconds * 1000;
    await closedLoop(atOnce, async () => {
      if (events === null ? now() >= until : pushed - before >= events) return false;
      await push();
      return true;
    });
  }
  await feeds.until(pushed * each);
  const delivered = (pushed - before) * each;
  const written = writtenBytes(pushAt.pid);
  const { perSecond: deliveriesPerSecond, notes, ...used } = measured(delivered);
  // What pushes to one device each cost the disk. Where Redis stores them, it is not this process that writes.
  const isStoredHere = each === 1 && others === undefined && written !== null && writtenBefore !== null;
  const writes = isStoredHere
    ? [`${((written - writtenBefore) / (pushed - before) / 1000).toFixed(1)} kB written per push`]
    : [];
  feeds.check((index) => Math.floor(pushed / channels) + (index % channels < pushed % channels ? 1 : 0));
  orThrow(feeds.faults);
  const times = latency(feeds.latenciesMs);
  await feeds.close();
  requests.close();
  return {
    ...used,
    notes: [...notes, ...writes],
    ...times,
    deliveriesPerSecond,
    pushesPerSecond: deliveriesPerSecond / each,
  };
}
