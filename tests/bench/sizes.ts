/**
 * What a delivery costs when there are few devices and when there are many: one row a size, and a plot of them for the README.
 *
 * Each event has reached every device before the next is pushed, so that no two share a write. A push costs by itself, which few deliveries
 * share where there are few devices: what it costs on a channel that nobody follows is measured in turn and taken off. Where ten devices share
 * it, what is left is small beside it, and moves with every hiccup of the machine.
 */
import { eventData, Feeds, now } from "./feeds.ts";
import { EVENT_BYTES, type Figures, meter, orThrow, type RowResult, WARM_MS } from "./measure.ts";
import type { Point } from "./plot.ts";
import { Requests } from "./requests.ts";
import type { Service } from "./service.ts";

export const SIZES = [10, 100, 1_000, 5_000, 15_000];
/** Pushes to nobody and to all take turns so often. */
const SLICES = 4;

/** CPU microseconds of the service for a delivery to one of so many, without the push's own. */
export async function size(
  service: Service,
  devices: number,
  { seconds }: { readonly seconds: number },
): Promise<Figures> {
  const feeds = await Feeds.open({
    at: service,
    count: devices,
    path: (index) => `/feed/c?device=device-${index}`,
    fullEvery: Math.max(10, devices / 10),
  });
  const requests = await Requests.open(service.port, 1);
  const push = (channel: string): Promise<string> =>
    requests.ask("POST", `/push/${channel}`, eventData(now(), EVENT_BYTES));
  let pushed = 0;
  const toNobody = (): Promise<string> => push("nobody");
  const toAll = async (): Promise<void> => {
    await push("c");
    await feeds.until(++pushed * devices);
  };
  /** How often it was done, and what CPU the service used for it. */
  const during = async (ms: number, work: () => Promise<unknown>): Promise<{ done: number; us: number }> => {
    const measured = meter(service);
    let done = 0;
    for (const until = now() + ms; now() < until; done++) await work();
    const { serviceUs } = measured(1);
    if (serviceUs === null) throw new Error("this system does not tell how much CPU a process used");
    return { done, us: serviceUs };
  };
  await during(WARM_MS, toNobody);
  await during(WARM_MS, toAll);
  const alone = { done: 0, us: 0 };
  const all = { done: 0, us: 0 };
  const measured = meter(service);
  for (let slice = 0; slice < SLICES; slice++) {
    for (const [sum, ms, work] of [
      [alone, 250, toNobody],
      [all, 1_000, toAll],
    ] as const) {
      const { done, us } = await during((seconds * ms) / SLICES, work);
      sum.done += done;
      sum.us += us;
    }
  }
  const { perSecond: _, serviceUs: __, notes, ...used } = measured(1);
  feeds.check(() => pushed);
  orThrow(feeds.faults);
  await feeds.close();
  requests.close();
  const pushUs = alone.us / alone.done;
  const serviceUs = all.us / (all.done * devices);
  const told = `${all.done} events; a push that nobody hears costs ${pushUs.toFixed(0)} µs`;
  return { figure: serviceUs - pushUs / devices, unit: "µs/delivery", ...used, serviceUs, notes: [told, ...notes] };
}

/** What the rows of the sizes came to. @throws Error when there are fewer than two */
export function pointsOf(rows: readonly RowResult[]): Point[] {
  const points = SIZES.flatMap((devices) => {
    const row = rows.find(({ name }) => name === `size-${devices}`);
    return row?.figure === undefined ? [] : [{ devices, net: row.figure, all: row.serviceUs ?? row.figure }];
  });
  if (points.length < 2) throw new Error('a plot needs the rows "sizes"');
  return points;
}
