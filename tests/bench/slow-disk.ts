/**
 * The rows about a slow disk: each sync takes so many milliseconds longer, as on many cloud disks. Pushes should come in as fast as syncs that they
 * share allow, and everything that needs no sync should not notice.
 */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { diskLibrary, hasDisk } from "../support/disk.ts";
import { now } from "./feeds.ts";
import { type FanOut, fanOut, type Figures } from "./measure.ts";
import { Requests } from "./requests.ts";
import type { Service, ServiceStart } from "./service.ts";
import { whole } from "./table.ts";

const SYNCS_MS = [5, 50] as const;
const IN_FLIGHT = [16, 256] as const;
/** Pause between two looks at `/health`. */
const LOOK_MS = 5;

interface SlowDiskRow {
  readonly name: string;
  readonly what: string;
  readonly connections: number;
  readonly start: ServiceStart;
  readonly run: (service: Service) => Promise<Figures>;
}

/** Asks for `/health` all the time. @returns ends it and gives the slowest answer in milliseconds */
async function health(service: Service): Promise<() => Promise<number>> {
  const requests = await Requests.open(service.port, 1);
  let slowest = 0;
  let isOver = false;
  const asking = (async () => {
    while (!isOver) {
      const started = now();
      await requests.ask("GET", "/health");
      slowest = Math.max(slowest, now() - started);
      await Bun.sleep(LOOK_MS);
    }
  })();
  return async () => {
    isOver = true;
    await asking;
    requests.close();
    return slowest;
  };
}

/** @param options as of `rows.ts` */
export function slowDiskRows(options: Parameters<typeof fanOut>[1] & { readonly devices: number }): SlowDiskRow[] {
  if (!hasDisk) return [];
  const { devices } = options;
  let library: string | undefined;
  const row = (syncMs: number, name: string, what: string, load: FanOut, shares: number): SlowDiskRow => ({
    name: `slow-disk-${syncMs}-${name}`,
    what: `each sync ${syncMs} ms longer; ${what}`,
    connections: load.devices,
    start: {
      get env() {
        library ??= diskLibrary(mkdtempSync(join(tmpdir(), "pere-bench-disk-")));
        return { LD_PRELOAD: library, DISK_SYNC_US: String(syncMs * 1000) };
      },
    },
    run: async (service) => {
      const end = await health(service);
      const { deliveriesPerSecond: _, pushesPerSecond, notes = [], ...rest } = await fanOut(service, options, load);
      const most = (shares * 1000) / syncMs;
      return {
        figure: pushesPerSecond,
        unit: "pushes/s",
        ...rest,
        notes: [
          `slowest /health ${(await end()).toFixed(1)} ms`,
          ...(shares === 0
            ? []
            : [`${(pushesPerSecond / most).toFixed(2)} of what shared syncs allow (${whole(most)}/s)`]),
          ...notes,
        ],
      };
    },
  });
  return SYNCS_MS.flatMap((syncMs) => [
    ...IN_FLIGHT.map((atOnce) =>
      row(
        syncMs,
        String(atOnce),
        `${devices} channels, 1 device each, ${atOnce} pushes in flight`,
        {
          channels: devices,
          devices,
          atOnce,
        },
        atOnce,
      ),
    ),
    row(
      syncMs,
      "paced",
      `1 channel, ${devices} devices, 20 events/s: see p50 and p99`,
      {
        channels: 1,
        devices,
        atOnce: 1,
        perSecond: 20,
      },
      0,
    ),
  ]);
}
