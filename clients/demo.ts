/**
 * The fleet of `bun run index.ts demo`: 40 tills in four towns, a kiosk and a truck, which are real devices on the SDK over HTTP, and a publisher that
 * pushes orders and prices to them at a human pace.
 *
 * Two tills are in trouble, so that the console has something to say: one has no paper and fails, one never connects. The truck loses its network now and
 * then, and answers when it is back. The kiosk defers a new price while a guest uses it. Now and then an order is withdrawn, a newer price replaces the one
 * before, and two pushes are scheduled. All randomness comes from a seed: each device has a generator of its own, so that devices don't change each other's.
 */
import { parseArgs } from "node:util";
import { type Context, Deferred, listen, type Listener, publish, type PushedEvent } from "./sdk/index.ts";
import { schedule, withdraw } from "./sdk/index.ts";

export const ORDERS = "orders";
export const PRICES = "prices";
const TOWNS = ["graz", "linz", "salzburg", "wien"] as const;
const TILLS_PER_TOWN = 10;
export const SILENT = "graz-till-02";
export const BROKEN = "linz-till-07";
const KIOSK = "graz-kiosk";
const TRUCK = "truck-7";
const TILLS = TOWNS.flatMap((town) =>
  Array.from({ length: TILLS_PER_TOWN }, (_, n) => `${town}-till-${String(n + 1).padStart(2, "0")}`),
);
/** All devices. Those that show prices follow the second channel as well. */
export const FLEET: readonly string[] = [...TILLS, KIOSK, TRUCK];
const SHOWING_PRICES: readonly string[] = FLEET.filter((device) => device === KIOSK || device.startsWith("wien"));
const channelsOf = (device: string): string[] => (SHOWING_PRICES.includes(device) ? [ORDERS, PRICES] : [ORDERS]);

/** Pushes that follow quickly at first, so that the board fills; and the pauses between them in milliseconds, from and to. */
const FIRST = 14;
const FIRST_PAUSE_MS = [450, 650] as const;
const PAUSE_MS = [2_000, 5_000] as const;
/** How long the truck is connected, and how long it is away, in milliseconds, from and to. */
const TRUCK_THERE_MS = [15_000, 40_000] as const;
const TRUCK_AWAY_MS = [10_000, 25_000] as const;
/** Seconds within which an order must be printed; short, so that somebody who looks sees a missed one soon. */
const DEADLINE_SECONDS = 8;

/** One of so many orders is withdrawn, so many milliseconds after it was pushed. */
const WITHDRAWN_OF = 11;
const WITHDRAWN_MS = 400;

const REASONS = ["paper out", "paper out", "cover open", "no answer from the printer"];
const DISHES = ["espresso", "cappuccino", "apple cake", "lentil soup", "cheese toast", "lemonade", "pancakes", "tea"];

/** A generator of numbers from 0 up to 1, the same for the same seed and name (mulberry32). */
function randomOf(seed: number, name: string): () => number {
  let state = seed >>> 0;
  for (const character of name) state = Math.imul(state ^ character.codePointAt(0)!, 0x01000193) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const between = (random: () => number, [from, to]: readonly [number, number]): number => from + random() * (to - from);
const oneOf = <Value>(random: () => number, values: readonly Value[]): Value =>
  values[Math.floor(random() * values.length)]!;

/** Waits. @throws the signal's reason when it is aborted first */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop);
  });
}

/** What a device does with an event. */
type Work = (event: PushedEvent, context: Context, random: () => number) => unknown;

/** Prints within seconds. Most printers are quick, some are not. */
const print: Work = async (_event, { signal }, random) => {
  await pause(250 + 1_500 * random() ** 3, signal);
  return { printed: true };
};

/** Its paper is out most of the time. */
const printBadly: Work = async (event, context, random) => {
  await pause(between(random, [200, 800]), context.signal);
  if (random() < 0.75) throw new Error(oneOf(random, REASONS));
  return print(event, context, random);
};

/** Seconds for which the kiosk defers a price. */
const KIOSK_BUSY_SECONDS = 15;

/** A person confirms each event there. Its screen takes no new price while a guest uses it. */
const confirm: Work = async (event, context, random) => {
  if (event.channel === PRICES && event.round === undefined && random() < 0.5)
    throw new Deferred(KIOSK_BUSY_SECONDS, "a guest is using it");
  await pause(between(random, [200, 1_500]), context.signal);
  context.working();
  await pause(between(random, [500, 6_000]), context.signal);
};

const workOf = (device: string): Work => (device === BROKEN ? printBadly : device === KIOSK ? confirm : print);

/** How to reach the service, and the seed of all randomness. */
export interface FleetOptions {
  readonly url: string;
  /** A token that speaks for every device, where the service requires one. */
  readonly token?: string | undefined;
  readonly seed: number;
}

/** Starts the devices and the publisher. @returns ends them */
export function startFleet({ url, token, seed }: FleetOptions): () => Promise<void> {
  // A proxy of the environment is not for the service in this process.
  process.env.NO_PROXY = process.env.no_proxy = "*";
  const ending = new AbortController();
  const { signal } = ending;
  const start = (device: string): Listener => {
    const random = randomOf(seed, device);
    const work = workOf(device);
    const channels = channelsOf(device);
    return listen({
      url,
      token,
      channels,
      device,
      concurrency: 4,
      random,
      onEvent: (event, context) => work(event, context, random),
    });
  };
  const tillTheEnd = (run: () => Promise<void>): Promise<void> =>
    run().catch((error: unknown) => {
      if (!signal.aborted) console.error(`demo: ${(error as Error).message}`);
    });
  const listeners: Listener[] = [];
  const running = tillTheEnd(async () => {
    // Enrolled in the order of their names: the board shows all of them with the first event.
    for (const device of FLEET)
      for (const channel of channelsOf(device)) await enrol(url, channel, device, token, signal);
    for (const device of FLEET) if (device !== SILENT && device !== TRUCK) listeners.push(start(device));
    await scheduleAll(url, token, signal);
    await Promise.all([
      publishAll(url, token, randomOf(seed, "publisher"), signal),
      drive(start, randomOf(seed, TRUCK), signal),
    ]);
  });
  return async () => {
    ending.abort(new Error("the demo ends"));
    await running;
    await Promise.all(listeners.map((listener) => listener.close()));
  };
}

async function enrol(
  url: string,
  channel: string,
  device: string,
  token: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  const headers: Record<string, string> = token === undefined ? {} : { Authorization: `Bearer ${token}` };
  const { ok, status } = await fetch(`${url}/devices/${channel}/${device}`, { method: "PUT", headers, signal });
  if (!ok) throw new Error(`the service refused to enrol ${device} (status ${status})`);
}

/** The truck: on the road it has no network. */
async function drive(start: (device: string) => Listener, random: () => number, signal: AbortSignal): Promise<void> {
  for (;;) {
    const truck = start(TRUCK);
    try {
      await pause(between(random, TRUCK_THERE_MS), signal);
    } finally {
      await truck.close();
    }
    await pause(between(random, TRUCK_AWAY_MS), signal);
  }
}

/** What is pushed at its time: the menu on weekdays, and work for the kiosk every few minutes. */
async function scheduleAll(url: string, token: string | undefined, signal: AbortSignal): Promise<void> {
  const menu = { title: "Menu of the day", message: "Lentil soup, apple cake" };
  const options = { token, signal, tz: "Europe/Vienna" };
  await schedule(url, PRICES, menu, { ...options, every: "0 11 * * 1-5", type: "menu.show", eventKey: "menu" });
  const work = { title: "Clean the screen" };
  await schedule(url, PRICES, work, {
    ...options,
    every: "*/3 * * * *",
    type: "screen.clean",
    to: [KIOSK],
    deadline: 60,
  });
}

/** Pushes until the signal is aborted: quickly at first, then at a human pace. */
async function publishAll(
  url: string,
  token: string | undefined,
  random: () => number,
  signal: AbortSignal,
): Promise<void> {
  for (let n = 0; ; n++) {
    const options = { token, signal, random };
    let withdrawn: string | null = null;
    if (n % 7 === 5) {
      const price = priceOf(random);
      await publish(url, PRICES, price, {
        ...options,
        type: "price.changed",
        eventKey: `price.${price.article.replaceAll(" ", "-")}`,
        deadline: 6 * DEADLINE_SECONDS,
      });
    } else {
      const town = n % 7 === 3 ? oneOf(random, TOWNS) : null;
      const to = town === null ? undefined : FLEET.filter((device) => device.startsWith(town));
      const { id } = await publish(url, ORDERS, orderOf(n, random), {
        ...options,
        type: "order.created",
        deadline: DEADLINE_SECONDS,
        to,
      });
      if (n % WITHDRAWN_OF === WITHDRAWN_OF - 1) withdrawn = id;
    }
    const pauseMs = between(random, n < FIRST ? FIRST_PAUSE_MS : PAUSE_MS);
    if (withdrawn === null) await pause(pauseMs, signal);
    else {
      // Some have printed it by then.
      await pause(Math.min(WITHDRAWN_MS, pauseMs), signal);
      await withdraw(url, ORDERS, withdrawn, { token, signal, note: "the guest has left" });
      await pause(Math.max(0, pauseMs - WITHDRAWN_MS), signal);
    }
  }
}

function orderOf(n: number, random: () => number): object {
  const [table, first] = [1 + Math.floor(random() * 24), Math.floor(random() * DISHES.length)];
  const items = Array.from({ length: 1 + Math.floor(random() * 3) }, (_, item) => {
    const dish = DISHES[(first + 3 * item) % DISHES.length];
    return random() < 0.3 ? `2 × ${dish}` : dish;
  });
  const total = Math.round(between(random, [400, 4_000])) / 100;
  return { title: `Table ${table}`, message: items.join(", "), order: `A-${1001 + n}`, total };
}

function priceOf(random: () => number) {
  const [article, price] = [oneOf(random, DISHES), Math.round(between(random, [25, 90])) / 10];
  return { title: "New price", message: `${article}: ${price.toFixed(2)} €`, article, price };
}

const ARGS = "[--host ADDRESS] [--port PORT] [--seed N]";

/** Where the demo listens, and its seed. */
export interface DemoOptions {
  readonly host: string | undefined;
  readonly port: string | undefined;
  readonly seed: number;
}

/** Reads the arguments of the command. @throws Error with the one line to print */
export function readDemo(args: readonly string[]): DemoOptions {
  const text = { type: "string" } as const;
  let values: { host?: string; port?: string; seed?: string };
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: { host: { ...text, short: "o" }, port: { ...text, short: "p" }, seed: text },
    }));
  } catch {
    throw new Error(`usage: bun run index.ts demo ${ARGS}`);
  }
  const { host, port, seed = "1" } = values;
  if (!/^\d{1,9}$/.test(seed)) throw new Error(`--seed must be a whole number from 0 to 999999999, not "${seed}"`);
  return { host, port, seed: Number(seed) };
}

/** What to look at, in lines. @param link the address of the console */
export const guide = (url: string, link: string): string[] => [
  `Demo with ${FLEET.length} simulated devices; nothing is kept, and Ctrl-C ends it.`,
  `  The console, ${link} : ${BROKEN} fails, ${SILENT} never answers. See who needs attention, then the board of ${ORDERS}.`,
  `  A device, ${url}/weblistener.html?channel=${ORDERS}&device=${SILENT} : be the till that never answers.`,
];
