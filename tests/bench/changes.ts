/**
 * The rows about events that change: withdrawn, superseded by a newer one of their key, pushed when they are due.
 */
import { Feeds, eventData, now } from "./feeds.ts";
import { closedLoop, EVENT_BYTES, type Figures, latency, meter, orThrow, WARM_MS } from "./measure.ts";
import { Requests } from "./requests.ts";
import type { Service } from "./service.ts";
import { beside, fill, oneEvent, part, type StallRow } from "./stalls.ts";
import { whole } from "./table.ts";

/** Sizes of the rows, before they are divided. */
const DEVICES = 100_000;
const SUPERSEDED = 10_000;
const SCHEDULED = 10_000;
/** The service's limit. */
const SCHEDULED_PER_CHANNEL = 1_000;
const KEYS = 1_000;
const AT_ONCE = 16;
const WITHDRAWALS = 20;
/** How long the pushes are stored before they are due. */
const AHEAD_MS = 8_000;

/** Events to very many devices are pushed and withdrawn, one after the other. */
async function withdraw(service: Service): Promise<Figures> {
  const requests = await Requests.open(service.port, 1);
  const times: number[] = [];
  const figures = await beside(service, "withdrawals", async () => {
    for (let done = 0; done < WITHDRAWALS; done++) {
      const { id } = JSON.parse(await requests.ask("POST", "/push/c", eventData(now(), EVENT_BYTES))) as { id: string };
      const started = now();
      const state = JSON.parse(await requests.ask("DELETE", `/events/c/${id}`)) as { withdrawn?: unknown };
      if (!state.withdrawn) throw new Error("the event was not withdrawn");
      times.push(now() - started);
    }
    return WITHDRAWALS;
  });
  requests.close();
  return { ...figures, ...latency(times) };
}

/** Pushes with a key, each of which supersedes the one before. */
async function keys(service: Service, seconds: number): Promise<Figures> {
  const requests = await Requests.open(service.port, AT_ONCE);
  await requests.ask("PUT", "/devices/c/device");
  let pushed = 0;
  const push = () => requests.ask("POST", `/push/c?key=k${pushed++ % KEYS}`, eventData(now(), EVENT_BYTES));
  const until = async (end: number) =>
    closedLoop(AT_ONCE, async () => {
      if (now() >= end) return false;
      await push();
      return true;
    });
  await until(now() + WARM_MS);
  const before = pushed;
  const measured = meter(service);
  await until(now() + seconds * 1000);
  const { perSecond, ...used } = measured(pushed - before);
  requests.close();
  return { figure: perSecond, unit: "pushes/s", ...used };
}

/** Very many pushes that are due in one moment: how long until the last one was made. */
async function scheduled(service: Service, count: number): Promise<Figures> {
  const requests = await Requests.open(service.port, AT_ONCE);
  const channels = Math.ceil(count / SCHEDULED_PER_CHANNEL);
  const due = Date.now() + AHEAD_MS;
  const at = encodeURIComponent(new Date(due).toISOString());
  let stored = 0;
  await closedLoop(AT_ONCE, async () => {
    if (stored >= count) return false;
    await requests.ask("POST", `/push/c${stored++ % channels}?at=${at}`, eventData(now(), EVENT_BYTES));
    return true;
  });
  if (Date.now() >= due) throw new Error(`${whole(count)} pushes were not stored within ${AHEAD_MS} ms`);
  let lastMs = 0;
  const figures = await beside(service, "pushes", async () => {
    for (;;) {
      const { channels: listed } = JSON.parse(await requests.ask("GET", "/channels")) as {
        channels: { channel: string; events: number }[];
      };
      const made = listed.filter(({ channel }) => /^c\d+$/.test(channel)).reduce((sum, { events }) => sum + events, 0);
      if (made > count) throw new Error(`${made} pushes were made of ${count}`);
      lastMs = Date.now() - due;
      if (made === count) return count;
      await Bun.sleep(5);
    }
  });
  requests.close();
  return {
    ...figures,
    notes: [`the last push was made ${whole(lastMs)} ms after it was due`, ...(figures.notes ?? [])],
  };
}

/** A device comes back, and all events that it has missed are superseded but the last. */
async function superseded(service: Service, count: number): Promise<Figures> {
  const requests = await Requests.open(service.port, AT_ONCE);
  await requests.ask("PUT", "/devices/c/device");
  for (let pushed = 0; pushed < count; pushed++)
    await requests.ask("POST", "/push/c?key=k", eventData(now(), EVENT_BYTES));
  requests.close();
  const times: number[] = [];
  const figures = await beside(service, "feeds", async () => {
    for (let opened = 0; opened < WITHDRAWALS; opened++) {
      const started = now();
      const feeds = await Feeds.open({ at: service, count: 1, path: () => "/feed/c?device=device", fullEvery: 1 });
      await feeds.until(1);
      times.push(now() - started);
      feeds.check(() => 1);
      orThrow(feeds.faults);
      await feeds.close();
    }
    return WITHDRAWALS;
  });
  return { ...figures, ...latency(times) };
}

export function changeRows({ seconds, divide }: { readonly seconds: number; readonly divide: number }): StallRow[] {
  const devices = part(DEVICES, divide);
  const events = part(SUPERSEDED, divide);
  const pushes = part(SCHEDULED, divide);
  return [
    {
      name: "change-withdraw",
      what: `an event to ${whole(devices)} devices is withdrawn: p50 and p99 until it is answered`,
      connections: 2,
      start: { turns: true, fill: (file) => fill(file, (db) => oneEvent(db, devices)) },
      run: withdraw,
    },
    {
      name: "change-keys",
      what: `pushes that supersede the one before of their key, ${AT_ONCE} in flight`,
      connections: AT_ONCE,
      start: {},
      run: (service) => keys(service, seconds),
    },
    {
      name: "change-scheduled",
      what: `${whole(pushes)} scheduled pushes are due in one moment`,
      connections: AT_ONCE,
      start: { turns: true },
      run: (service) => scheduled(service, pushes),
    },
    {
      name: "change-superseded",
      what: `a device comes back past ${whole(events)} superseded events: p50 and p99 until it has the newest`,
      connections: 2,
      start: { turns: true },
      run: (service) => superseded(service, events),
    },
  ];
}
