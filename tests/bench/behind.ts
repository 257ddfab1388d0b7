/**
 * The rows about devices that are behind: ten thousand that come back in one moment, and one that stops reading.
 */
import { eventData, Feeds, now } from "./feeds.ts";
import { EVENT_BYTES, type Figures, latency, meter, orThrow, paced, SETTLE_MS } from "./measure.ts";
import { Requests } from "./requests.ts";
import { HOST, residentKb, type Service } from "./service.ts";

/** Events that each device missed. */
export const MISSED = 100;

/** Pushes events in one request; gives their ids. */
async function pushMany({ port }: Service, count: number): Promise<string[]> {
  const requests = await Requests.open(port, 1);
  const lines = `${eventData(now(), EVENT_BYTES)}\n`.repeat(count);
  const answer = await requests.ask("POST", "/push/c", lines, "application/x-ndjson");
  requests.close();
  return (JSON.parse(answer) as { events: { id: string }[] }).events.map(({ id }) => id);
}

/**
 * All devices lose their lines, events are pushed, and all come back with the id that they saw last. The time from the first connection
 * attempt until the last device has its last event, which includes what the kernel makes those wait who find the backlog full.
 */
export async function storm(service: Service, { crowd }: { readonly crowd: number }): Promise<Figures> {
  const [seen] = await pushMany(service, 1);
  const devices = { at: service, count: crowd, fullEvery: Number.POSITIVE_INFINITY };
  const before = await Feeds.open({ ...devices, path: (index) => `/feed/c?device=device-${index}` });
  orThrow(before.faults);
  await before.close();
  await pushMany(service, MISSED);

  const measured = meter(service);
  const started = now();
  const after = await Feeds.open({
    ...devices,
    path: (index) => `/feed/c?device=device-${index}&last-event-id=${seen}`,
    openingMax: crowd,
  });
  const openMs = now() - started;
  await after.until(crowd * MISSED);
  const seconds = (now() - started) / 1000;
  const { perSecond: _, serviceUs, ...used } = measured(crowd);
  after.check(() => MISSED);
  orThrow(after.faults);
  await after.close();
  const notes = [
    `all open after ${(openMs / 1000).toFixed(1)} s; CPU is a device, ${MISSED} events with it`,
    ...used.notes,
  ];
  return { figure: seconds, unit: "s", serviceUs, ...used, notes };
}

// ------------------------------------------------------------------------------------------------------------------- stalled

/** What is pushed past the reader that stopped. */
const PUSHED_BYTES = 200e6;
/** Within what one event may be. */
const LARGE_BYTES = 64_000;
/** About 20 MB/s: what a disk keeps up with. */
const LARGE_A_SECOND = 300;
/** Who follows the channel of large events, the one that stops among them: all of the devices would be 200 GB. */
const LARGE_DEVICES = 10;
const SMALL_A_SECOND = 20;

/** A reader that can stop: nothing is taken out of its socket while it is paused. */
class Reader {
  count = 0;
  readonly socket: Bun.Socket;
  private constructor(socket: Bun.Socket) {
    this.socket = socket;
  }

  static async open(port: number, path: string): Promise<Reader> {
    const ready = Promise.withResolvers<void>();
    let reader: Reader | undefined;
    const socket = await Bun.connect({
      hostname: HOST,
      port,
      socket: {
        data(_, bytes) {
          if (bytes.includes("pere.ready")) ready.resolve();
          for (let at = bytes.indexOf("!"); at !== -1; at = bytes.indexOf("!", at + 1)) reader!.count++;
        },
        close: () => ready.reject(new Error("the reader was closed by the service")),
      },
    });
    reader = new Reader(socket);
    socket.write(`GET ${path} HTTP/1.1\r\nHost: ${HOST}\r\nAccept: text/event-stream\r\n\r\n`);
    await ready.promise;
    return reader;
  }
}

/** The least memory that the service is seen with while it has nothing to do: garbage comes and goes. */
async function leastKb({ pid }: Service): Promise<number> {
  const seen: number[] = [];
  for (const until = now() + 2 * SETTLE_MS; now() < until; await Bun.sleep(50)) {
    const kb = residentKb(pid);
    if (kb === null) throw new Error("this system does not tell how much memory a process has");
    seen.push(kb);
  }
  return Math.min(...seen);
}

/**
 * Large events to a few devices and small ones to the others, twice on one service: once while all read, and once while one of the few has
 * stopped. The figure is how much more memory the service has after the second time; its heap moves by some megabytes without that. Then the reader goes on, and must be given everything.
 */
export async function stalled(service: Service, { devices }: { readonly devices: number }): Promise<Figures> {
  const small = await Feeds.open({
    at: service,
    count: Math.max(1, devices - LARGE_DEVICES),
    path: (index) => `/feed/small?device=small-${index}`,
    fullEvery: 10,
  });
  const large = await Feeds.open({
    at: service,
    count: LARGE_DEVICES - 1,
    path: (index) => `/feed/large?device=large-${index}`,
    fullEvery: Number.POSITIVE_INFINITY,
  });
  const reader = await Reader.open(service.port, "/feed/large?device=reader");
  const requests = await Requests.open(service.port, 16);
  const events = Math.ceil(PUSHED_BYTES / LARGE_BYTES);
  let rounds = 0;

  const round = async (): Promise<{ residentKb: number; p50Ms: number; p99Ms: number }> => {
    rounds++;
    small.latenciesMs = [];
    const smallEvents = Math.ceil((events / LARGE_A_SECOND) * SMALL_A_SECOND);
    const push = (channel: string, bytes: number) => (dueMs: number) =>
      requests.ask("POST", `/push/${channel}`, eventData(dueMs, bytes));
    await Promise.all([
      paced(LARGE_A_SECOND, events, push("large", LARGE_BYTES)),
      paced(SMALL_A_SECOND, smallEvents, push("small", EVENT_BYTES)),
    ]);
    await large.until(rounds * events * (LARGE_DEVICES - 1));
    return { residentKb: await leastKb(service), ...latency(small.latenciesMs) };
  };
  await round(); // The heap grows to what this work needs.
  const reading = await round();
  reader.socket.pause();
  const measured = meter(service);
  const stuck = await round();
  const { perSecond: _, ...used } = measured(events);
  reader.socket.resume();
  for (let last = -1; reader.count < rounds * events && reader.count > last; await Bun.sleep(SETTLE_MS))
    last = reader.count;
  if (reader.count !== rounds * events)
    throw new Error(`the reader went on and was given ${reader.count} events of ${rounds * events}`);
  orThrow([...small.faults, ...large.faults]);
  await Promise.all([small.close(), large.close()]);
  reader.socket.terminate();
  requests.close();
  const notes = [
    `the others' p99 is ${(stuck.p99Ms / reading.p99Ms).toFixed(2)} × what it was while all read (${reading.p99Ms.toFixed(1)} ms)`,
    `memory in all ${Math.round(reading.residentKb / 1024)} MB before, ${Math.round(stuck.residentKb / 1024)} MB after`,
    ...used.notes,
  ];
  return {
    figure: stuck.residentKb - reading.residentKb,
    unit: "kB",
    p50Ms: stuck.p50Ms,
    p99Ms: stuck.p99Ms,
    ...used,
    notes,
  };
}
