/**
 * A process of devices for `certified.ts`: each follows the channel `c` and answers every event with a final receipt. It has a limit of open files
 * of its own, so that several of these hold more devices than one process may have connections.
 *
 * The task is its argument, in JSON; it tells its parent when all devices are connected, and after each event when each device had it and when each
 * receipt was answered.
 */
import { Feeds, now } from "./feeds.ts";
import { Requests } from "./requests.ts";
import { HOST } from "./service.ts";

export interface DevicesTask {
  readonly port: number;
  readonly transport: "sse" | "websocket";
  /** Number of the first device; the others follow. */
  readonly first: number;
  readonly count: number;
  /** Connections that receipts are posted on, one request at a time on each. A WebSocket carries its own. */
  readonly receiptConnections: number;
}

export type DevicesMessage =
  | { readonly word: "open" }
  /** Every device had the event and had its receipt answered. In milliseconds since 1970, so that processes can compare them. */
  | { readonly word: "certified"; readonly lastDeliveryMs: number; readonly receiptsMs: readonly number[] }
  /** In answer to the number of events that were pushed: what each device was given was compared with it. Sooner when something is wrong. */
  | { readonly word: "checked"; readonly faults: readonly string[] };

/** Connections being opened at a time. */
const OPENING_MAX = 128;
/** What is given twice may come after what it repeats. */
const REPEATS_MS = 500;

const LOOK_MS = 1_000;

/** Milliseconds since 1970, with microseconds behind the point. */
export const wallMs = (): number => performance.timeOrigin + now();

/** How the devices of one process are connected. */
interface Devices {
  readonly faults: string[];
  /** Compares what each device was given; what differs becomes a fault. */
  check(owed: (index: number) => number): void;
}

type Delivered = (index: number, id: string) => void;
type Answered = (index: number, answer: string) => void;

async function openStreams(task: DevicesTask, delivered: Delivered, answered: Answered): Promise<Devices> {
  const { port, first, count, receiptConnections } = task;
  // Not before the first event: while many feeds are opened, the service would close connections that ask nothing.
  let requests: Promise<Requests> | undefined;
  return Feeds.open({
    at: { port },
    count,
    path: (index) => `/feed/c?device=device-${first + index}`,
    fullEvery: 1,
    onEvent(index, id) {
      delivered(index, id);
      const receipt = `{"event":"${id}","device":"device-${first + index}","status":"done"}`;
      requests ??= Requests.open(port, receiptConnections);
      requests
        .then((connections) => connections.ask("POST", "/feedback/c", receipt))
        .then(
          (answer) => answered(index, answer),
          (error: Error) => answered(index, error.message),
        );
    },
  });
}

const SOCKET_EVENT = /^\{"id":"([^"]+)","channel":"c","seq":(\d+),/;
const SOCKET_ANSWER = '{"pere":"receipts",';

/** The same over WebSockets: the receipt goes back on the socket that brought the event. */
async function openSockets(task: DevicesTask, delivered: Delivered, answered: Answered): Promise<Devices> {
  const { port, first, count } = task;
  const faults: string[] = [];
  const counts = new Int32Array(count);
  const seqs = new Int32Array(count);
  const openOne = async (index: number): Promise<void> => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const socket = new WebSocket(`ws://${HOST}:${port}/feed/c?device=device-${first + index}`);
    socket.onclose = ({ code }) => {
      faults.push(`WebSocket ${index} was closed with ${code}`);
      reject(new Error(`WebSocket ${index} was closed with ${code}`));
    };
    socket.onmessage = ({ data }) => {
      const text = String(data);
      if (text.startsWith(SOCKET_ANSWER)) return answered(index, text.replace('"pere":"receipts",', ""));
      if (text.startsWith('{"pere":"ready"')) return resolve();
      const [, id, told] = SOCKET_EVENT.exec(text) ?? [];
      if (id === undefined) return void faults.push(`WebSocket ${index} was told ${text.slice(0, 200)}`);
      const seq = Number(told);
      if (seqs[index] !== 0 && seq !== seqs[index]! + 1)
        faults.push(`WebSocket ${index} was given ${id} after seq ${seqs[index]}`);
      seqs[index] = seq;
      counts[index]!++;
      delivered(index, id);
      socket.send(`{"event":"${id}","status":"done"}`);
    };
    await promise;
  };
  let next = 0;
  const opener = async (): Promise<void> => {
    while (next < count) await openOne(next++);
  };
  await Promise.all(Array.from({ length: OPENING_MAX }, opener));
  return {
    faults,
    check(owed) {
      const wrong = [...counts.keys()].filter((index) => counts[index] !== owed(index));
      const [index] = wrong;
      if (index !== undefined)
        faults.push(`${wrong.length} WebSockets differ: ${index} was given ${counts[index]} events of ${owed(index)}`);
    },
  };
}

if (import.meta.main) {
  const task = JSON.parse(process.argv[2]!) as DevicesTask;
  process.once("disconnect", () => process.exit());
  const say = (message: DevicesMessage): unknown => process.send!(message);
  const faults: string[] = [];
  let lastDeliveryMs = 0;
  let receiptsMs: number[] = [];
  const delivered = (): void => void (lastDeliveryMs = wallMs());
  const answered = (index: number, answer: string): void => {
    if (!answer.startsWith('{"recorded":1,"duplicate":0,')) {
      faults.push(`the receipt of device ${task.first + index} was answered ${answer}`);
      return;
    }
    receiptsMs.push(wallMs());
    if (receiptsMs.length < task.count) return;
    say({ word: "certified", lastDeliveryMs, receiptsMs });
    receiptsMs = [];
  };
  const open = task.transport === "sse" ? openStreams : openSockets;
  try {
    const devices = await open(task, delivered, answered);
    const found = (): string[] => [...faults, ...devices.faults].slice(0, 3);
    // What goes wrong is told at once: the parent would wait for a receipt that never comes.
    setInterval(() => {
      if (found().length > 0) say({ word: "checked", faults: found() });
    }, LOOK_MS);
    process.on("message", async (pushed: number) => {
      await Bun.sleep(REPEATS_MS);
      devices.check(() => pushed);
      say({ word: "checked", faults: found() });
    });
    say({ word: "open" });
  } catch (error) {
    say({ word: "checked", faults: [(error as Error).message] });
  }
}
