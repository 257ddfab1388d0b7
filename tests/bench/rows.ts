/**
 * The rows of `bun run bench`: what each is called, what it does, and the one that looks at memory.
 */
import { type FanOut, fanOut, type Figures, orThrow, RECEIPT_CONNECTIONS, SETTLE_MS } from "./measure.ts";
import { Feeds, now } from "./feeds.ts";
import { MISSED, stalled, storm } from "./behind.ts";
import {
  ARRAY_CONNECTIONS,
  busy,
  BUSY_EVENTS_A_SECOND,
  loop,
  receipts,
  RECEIPTS_AN_ARRAY,
  socketReceipts,
  told,
  TOLD_A_SECOND,
} from "./receipts.ts";
import { residentKb, type Service, type ServiceStart, withHelpers } from "./service.ts";
import { changeRows } from "./changes.ts";
import { size, SIZES } from "./sizes.ts";
import { slowDiskRows } from "./slow-disk.ts";
import { stallRows } from "./stalls.ts";
import { whole } from "./table.ts";

export const PACED_EVENTS_A_SECOND = 20;
const BUSY_DEVICES = 5_000;

export interface RowOptions {
  readonly devices: number;
  readonly channels: number;
  readonly events: number | null;
  readonly quiet: number;
  readonly crowd: number;
  readonly seconds: number;
  /** The sizes of the rows "stalls" are divided by this. */
  readonly divide: number;
}

export interface Row {
  readonly name: string;
  /** Names it together with others. */
  readonly group?: string;
  readonly what: string;
  /** That it has open at a time, about. */
  readonly connections: number;
  /** How its service is started; absent: as people start it. */
  readonly start?: ServiceStart;
  readonly run: (service: Service) => Promise<Figures>;
}

/** Opens many feeds and looks at the service's memory before and after. */
export async function quiet(service: Service, { quiet: count }: Pick<RowOptions, "quiet">): Promise<Figures> {
  const open = (name: string, feeds: number): Promise<Feeds> =>
    Feeds.open({
      at: service,
      count: feeds,
      path: (index) => `/feed/c0?device=${name}-${index}`,
      fullEvery: Number.POSITIVE_INFINITY,
    });
  const first = await open("first", 200);
  await Bun.sleep(SETTLE_MS);
  const beforeKb = withHelpers(service, residentKb);
  const started = now();
  const more = await open("more", count);
  const openedMs = now() - started;
  await Bun.sleep(SETTLE_MS);
  const afterKb = withHelpers(service, residentKb);
  orThrow([...first.faults, ...more.faults]);
  await first.close();
  await more.close();
  if (beforeKb === null || afterKb === null) throw new Error("this system does not tell how much memory a process has");
  return {
    figure: (afterKb - beforeKb) / count,
    unit: "kB/feed",
    notes: [`${whole((count * 1000) / openedMs)} feeds opened a second; ${whole(afterKb / 1024)} MB in all`],
  };
}

/** All of them, in the order that they are measured in. */
export const rowsOf = (options: RowOptions): Row[] => {
  const { devices, channels } = options;
  const one = (name: string, what: string, run: FanOut, unit = "deliveries/s"): Row => ({
    name,
    what,
    connections: run.devices,
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
      connections: RECEIPT_CONNECTIONS,
      run: (service) => receipts(service, options, 1, RECEIPT_CONNECTIONS),
    },
    {
      name: "receipts-array",
      what: `the same in arrays of ${RECEIPTS_AN_ARRAY}, ${ARRAY_CONNECTIONS} connections`,
      connections: ARRAY_CONNECTIONS,
      run: (service) => receipts(service, options, RECEIPTS_AN_ARRAY, ARRAY_CONNECTIONS),
    },
    {
      name: "receipts-socket",
      what: `the same over ${RECEIPT_CONNECTIONS} WebSockets, ${RECEIPTS_AN_ARRAY} a message`,
      connections: RECEIPT_CONNECTIONS,
      run: (service) => socketReceipts(service, options),
    },
    {
      name: "loop",
      what: `push, ${devices} deliveries, a receipt from each one by one, ${RECEIPT_CONNECTIONS} connections`,
      connections: devices + RECEIPT_CONNECTIONS,
      run: (service) => loop(service, options, RECEIPT_CONNECTIONS, false),
    },
    {
      name: "loop-own",
      what: "the same, each device on a connection of its own",
      connections: 2 * devices,
      run: (service) => loop(service, options, devices, false),
    },
    {
      name: "wait",
      what: "the same, the push answered when all of them are in (Prefer: wait)",
      connections: 2 * devices,
      run: (service) => loop(service, options, devices, true),
    },
    {
      name: "told",
      what: `a device's receipt to the publisher's event stream, ${TOLD_A_SECOND} receipts/s: see p50 and p99`,
      connections: RECEIPT_CONNECTIONS,
      run: (service) => told(service, options),
    },
    {
      name: "quiet",
      what: `${options.quiet} quiet feeds with a device's name`,
      connections: options.quiet,
      run: (service) => quiet(service, options),
    },
    {
      name: "busy",
      what: `a receipt's time while ${BUSY_DEVICES} devices get ${BUSY_EVENTS_A_SECOND} events/s: see p50 and p99`,
      connections: BUSY_DEVICES + RECEIPT_CONNECTIONS,
      run: (service) => busy(service, { ...options, crowd: BUSY_DEVICES }),
    },
    {
      name: "storm",
      what: `${options.crowd} devices come back at once, ${MISSED} events missed by each: until all have them`,
      connections: options.crowd,
      run: (service) => storm(service, options),
    },
    {
      name: "stalled",
      what: `memory for one reader of ${devices} that stops, 200 MB pushed; the others' p50 and p99`,
      connections: devices,
      run: (service) => stalled(service, options),
    },
    ...SIZES.map((count) => ({
      name: `size-${count}`,
      group: "sizes",
      what: `CPU a delivery to ${count} devices, without the push itself`,
      connections: count,
      run: (service: Service) => size(service, count, options),
    })),
    ...stallRows(options).map((row) => ({ ...row, group: "stalls" })),
    ...changeRows(options).map((row) => ({ ...row, group: "changes" })),
    ...slowDiskRows(options).map((row) => ({ ...row, group: "slow-disk" })),
  ];
};
