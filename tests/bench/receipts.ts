/**
 * The rows about receipts: given one by one, in arrays, over WebSockets; the whole loop; and how soon the publisher knows.
 */
import { eventData, Feeds, now } from "./feeds.ts";
import { Requests } from "./requests.ts";
import {
  closedLoop,
  EVENT_BYTES,
  type Figures,
  latency,
  meter,
  orThrow,
  paced,
  RECEIPT_CONNECTIONS,
  WARM_MS,
} from "./measure.ts";
import type { Service } from "./service.ts";

export const RECEIPTS_AN_ARRAY = 100;
export const ARRAY_CONNECTIONS = 16;
/** Receipts a second of which it is measured how soon the publisher has them. */
export const TOLD_A_SECOND = 200;
export const BUSY_EVENTS_A_SECOND = 10;
export const BUSY_RECEIPTS_A_SECOND = 100;
/** Events that receipts are given on; within what a channel keeps. */
const RECEIPT_EVENTS = 10_000;
/** What did not come by then is lost. */
const LATE_MS = 10_000;

interface Options {
  readonly devices: number;
  readonly seconds: number;
  readonly events: number | null;
}

/** Enrols devices on channel `c` and pushes events to all of them; gives the events' ids. */
async function owe(service: Service, devices: number, events: number): Promise<string[]> {
  const requests = await Requests.open(service.port, RECEIPT_CONNECTIONS);
  await Promise.all(Array.from({ length: devices }, (_, index) => requests.ask("PUT", `/devices/c/device-${index}`)));
  const ids: string[] = [];
  while (ids.length < events) {
    const lines = `${eventData(now(), 0)}\n`.repeat(Math.min(1_000, events - ids.length));
    const answer = JSON.parse(await requests.ask("POST", "/push/c", lines, "application/x-ndjson")) as {
      events: { id: string }[];
    };
    ids.push(...answer.events.map(({ id }) => id));
  }
  requests.close();
  return ids;
}

const receipt = (event: string, device: number, status: "done" | "received" = "done"): string =>
  `{"event":"${event}","device":"device-${device}","status":"${status}"}`;

/**
 * Gives receipts over HTTP, `size` in a request, one event after the other with all its devices. Each is a new one: a repeated
 * receipt would cost the service less.
 */
export async function receipts(
  service: Service,
  { devices, seconds }: Options,
  size: number,
  atOnce: number,
): Promise<Figures> {
  const ids = await owe(service, devices, RECEIPT_EVENTS);
  const requests = await Requests.open(service.port, atOnce);
  const total = devices * ids.length;
  let next = 0;
  let recorded = 0;
  const give = async (): Promise<boolean> => {
    const from = next;
    const upTo = (next = Math.min(total, from + size));
    if (upTo === from) return false;
    const texts: string[] = [];
    for (let index = from; index < upTo; index++)
      texts.push(receipt(ids[Math.floor(index / devices)]!, index % devices));
    const answer = await requests.ask("POST", "/feedback/c", size === 1 ? texts[0] : `[${texts.join(",")}]`);
    if (!answer.startsWith(`{"recorded":${upTo - from},`)) throw new Error(`receipts were answered ${answer}`);
    recorded += upTo - from;
    return true;
  };
  const timesMs: number[] = [];
  const during = async (ms: number): Promise<void> => {
    const until = now() + ms;
    await closedLoop(atOnce, async () => {
      const asked = now();
      if (asked >= until || !(await give())) return false;
      timesMs.push(now() - asked);
      return true;
    });
  };
  await during(WARM_MS);
  recorded = timesMs.length = 0;
  const measured = meter(service);
  await during(seconds * 1000);
  const { perSecond, ...used } = measured(recorded);
  requests.close();
  return { figure: perSecond, unit: "receipts/s", ...latency(timesMs), ...used };
}

/** The same over WebSockets: each device gives its own receipts, on many events in a message. */
export async function socketReceipts(service: Service, { seconds }: Options): Promise<Figures> {
  const ids = await owe(service, RECEIPT_CONNECTIONS, RECEIPT_EVENTS);
  const messages: string[] = [];
  for (let from = 0; from < ids.length; from += RECEIPTS_AN_ARRAY)
    messages.push(
      `[${ids
        .slice(from, from + RECEIPTS_AN_ARRAY)
        .map((event) => `{"event":"${event}","status":"done"}`)
        .join(",")}]`,
    );
  const sockets = await Promise.all(
    Array.from({ length: RECEIPT_CONNECTIONS }, async (_, index) => {
      const url = `ws://127.0.0.1:${service.port}/feed/c?device=device-${index}&last-event-id=${ids.at(-1)}`;
      const socket = new WebSocket(url);
      await new Promise<void>((resolve, reject) => {
        socket.onmessage = () => resolve();
        socket.onclose = ({ code }) => reject(new Error(`a WebSocket was closed with ${code}`));
      });
      return socket;
    }),
  );
  const next = sockets.map(() => 0);
  let recorded = 0;
  const timesMs: number[] = [];
  const during = async (ms: number): Promise<void> => {
    const until = now() + ms;
    await Promise.all(
      sockets.map(async (socket, index) => {
        for (let asked = now(); asked < until && next[index]! < messages.length; asked = now()) {
          const answer = await new Promise<string>((resolve, reject) => {
            socket.onmessage = ({ data }) => resolve(String(data));
            socket.onclose = ({ code }) => reject(new Error(`a WebSocket was closed with ${code}`));
            socket.send(messages[next[index]!++]!);
          });
          if (!answer.startsWith(`{"pere":"receipts","recorded":${RECEIPTS_AN_ARRAY},`))
            throw new Error(`receipts were answered ${answer}`);
          recorded += RECEIPTS_AN_ARRAY;
          timesMs.push(now() - asked);
        }
      }),
    );
  };
  await during(WARM_MS / 4);
  recorded = timesMs.length = 0;
  const measured = meter(service);
  await during(seconds * 1000);
  const { perSecond, ...used } = measured(recorded);
  for (const socket of sockets) {
    socket.onclose = null;
    socket.close();
  }
  return { figure: perSecond, unit: "receipts/s", ...latency(timesMs), ...used };
}

/**
 * Push, delivery to every device, a durable receipt from each; then the next push.
 * @param connections that receipts are given on, one at a time on each; a device in the field has its own
 * @param waits the push itself is answered only when the receipts are in
 */
export async function loop(
  service: Service,
  { devices, seconds, events }: Options,
  connections: number,
  waits: boolean,
): Promise<Figures> {
  const requests = await Requests.open(service.port, connections);
  const given: Promise<unknown>[] = [];
  const feeds = await Feeds.open({
    at: service,
    count: devices,
    path: (index) => `/feed/c?device=device-${index}`,
    fullEvery: 1,
    onEvent: (index, id) =>
      given.push(
        requests.ask("POST", "/feedback/c", receipt(id, index)).then((answer) => {
          if (!answer.startsWith('{"recorded":1,')) feeds.faults.push(`a receipt was answered ${answer}`);
        }),
      ),
  });
  let pushed = 0;
  const timesMs: number[] = [];
  const once = async (): Promise<void> => {
    const started = now();
    const headers = waits ? "Prefer: wait=60\r\n" : "";
    const answer = requests.ask("POST", "/push/c", eventData(started, EVENT_BYTES), "application/json", headers);
    if (!waits) await answer;
    await feeds.until(++pushed * devices);
    orThrow(feeds.faults);
    if (waits && !(await answer).includes(`"done":${devices},"failed":0,"missing":0},"complete":true`))
      throw new Error(`a push was answered ${await answer}`);
    await Promise.all(given.splice(0));
    timesMs.push(now() - started);
  };
  for (const until = now() + WARM_MS; now() < until;) await once();
  const before = pushed;
  timesMs.length = 0;
  const measured = meter(service);
  for (const until = now() + seconds * 1000; events === null ? now() < until : pushed < before + events;) await once();
  const count = (pushed - before) * (waits ? 1 : devices);
  const { perSecond, ...used } = measured(count);
  feeds.check(() => pushed);
  orThrow(feeds.faults);
  await feeds.close();
  requests.close();
  return { figure: perSecond, unit: waits ? "pushes/s" : "loops/s", ...latency(timesMs), ...used };
}

/** The time from a device's receipt, as it is sent, to the publisher's event stream, as it comes. */
export async function told(service: Service, { devices, seconds }: Options): Promise<Figures> {
  const count = seconds * TOLD_A_SECOND;
  const ids = await owe(service, devices, Math.ceil(count / devices) + 1);
  const timesMs: number[] = [];
  let rest = "";
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const ready = Promise.withResolvers<void>();
  const publisher = await Bun.connect({
    hostname: "127.0.0.1",
    port: service.port,
    socket: {
      data(_, bytes) {
        const at = now();
        rest += bytes.toString("latin1");
        if (rest.includes("pere.ready")) ready.resolve();
        let end = 0;
        for (const found of rest.matchAll(/"detail":\{"sent":([\d.]+)\}/g)) {
          timesMs.push(at - Number(found[1]));
          end = found.index + found[0].length;
        }
        rest = rest.slice(end);
        if (timesMs.length >= count) resolve();
      },
      close: () => reject(new Error("the publisher's stream was closed")),
    },
  });
  publisher.write("GET /feedback/c HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n");
  await ready.promise;
  const requests = await Requests.open(service.port, RECEIPT_CONNECTIONS);
  let next = 0;
  const measured = meter(service);
  await paced(TOLD_A_SECOND, count, (dueMs) => {
    const text = receipt(ids[Math.floor(next / devices)]!, next++ % devices);
    return requests.ask("POST", "/feedback/c", `${text.slice(0, -1)},"detail":{"sent":${dueMs.toFixed(3)}}}`);
  });
  await Promise.race([promise, Bun.sleep(LATE_MS).then(() => reject(new Error(`${timesMs.length} of ${count} came`)))]);
  await promise;
  const { perSecond, ...used } = measured(count);
  publisher.terminate();
  requests.close();
  return { figure: perSecond, unit: "receipts/s", ...latency(timesMs), ...used };
}

/** Receipts over HTTP while a crowd is given events: the time that a receipt takes, from when it is due. */
export async function busy(service: Service, { seconds, crowd }: { seconds: number; crowd: number }): Promise<Figures> {
  const feeds = await Feeds.open({
    at: service,
    count: crowd,
    path: (index) => `/feed/c?device=device-${index}`,
    fullEvery: crowd / 10,
  });
  // Pushes and receipts do not wait for each other's connections.
  const pushes = await Requests.open(service.port, 4);
  const requests = await Requests.open(service.port, RECEIPT_CONNECTIONS);
  let latest = "";
  let pushed = 0;
  let given = 0;
  const push = async (dueMs: number): Promise<void> => {
    pushed++;
    const answer = await pushes.ask("POST", "/push/c", eventData(dueMs, EVENT_BYTES));
    latest = (JSON.parse(answer) as { id: string }).id;
  };
  const timesMs: number[] = [];
  const give = async (dueMs: number): Promise<void> => {
    // Not a final word: who gave that before its turn in the fan-out would rightly not be sent the event.
    const answer = await requests.ask("POST", "/feedback/c", receipt(latest, given++ % crowd, "received"));
    timesMs.push(now() - dueMs);
    if (!answer.startsWith('{"recorded":1,')) feeds.faults.push(`a receipt was answered ${answer}`);
  };
  const during = async (ms: number): Promise<void> => {
    await Promise.all([
      paced(BUSY_EVENTS_A_SECOND, Math.ceil((ms / 1000) * BUSY_EVENTS_A_SECOND), push),
      paced(BUSY_RECEIPTS_A_SECOND, Math.ceil((ms / 1000) * BUSY_RECEIPTS_A_SECOND), give),
    ]);
    await feeds.until(pushed * crowd);
  };
  await push(now());
  await during(WARM_MS);
  timesMs.length = 0;
  const measured = meter(service);
  await during(seconds * 1000);
  // What CPU there is goes into the deliveries: for each receipt it says nothing.
  const { perSecond, serviceUs: _, ...used } = measured(timesMs.length);
  feeds.check(() => pushed);
  orThrow(feeds.faults);
  await feeds.close();
  pushes.close();
  requests.close();
  return { figure: perSecond, unit: "receipts/s", ...latency(timesMs), ...used };
}
