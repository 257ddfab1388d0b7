/**
 * The load generator's feeds, which count what they are given.
 *
 * A generator that costs more than the service measures itself. So there is no HTTP client, no event-stream parser and no `JSON.parse` a delivery
 * here, only TCP and bytes. Every event that the benchmark pushes ends in one byte that nothing else on the wire contains (`MARK`), neither the
 * frames around it nor the sizes of chunked transfer encoding. To count deliveries is to count that byte, and as it is a
 * single byte, no border between two reads can hide it.
 *
 * Cheap is not blind. Each feed has a count of its own, so a loss here can't be made up for by a repeat there; and some of the feeds (all of
 * them where receipts are to be given) read their frames in full: the time of the push for latency, and `seq`, which must grow by one each.
 */
import { HOST, type Service } from "./service.ts";

/** Ends every pushed event. Not in hexadecimal sizes, ids, names, times, or in what the server says of its own. */
const MARK = "!";
const MARK_BYTE = MARK.charCodeAt(0);
/** No two marks are nearer than this: a frame's fields and our own stamp lie between them. */
const STRIDE_MIN = 64;
/** Feeds being opened at a time: less than the server's backlog of connections. */
const OPENING_MAX = 128;
/** Nothing came for so long: it is lost, not late. */
const PATIENCE_MS = 10_000;

/** Milliseconds on the one clock of the generator, with microseconds behind the point. */
export const now = (): number => performance.now();

/** One event's data, of about `bytes` bytes, that tells when it was sent. */
export function eventData(sentMs: number, bytes: number): string {
  const start = `{"sent":${sentMs.toFixed(3)},"pad":"`;
  return `${start}${"x".repeat(Math.max(0, bytes - start.length - 3))}${MARK}"}`;
}

/** What a server's feeds look like on the wire. */
export interface Dialect {
  /** Has come when a feed is open. */
  readonly ready: RegExp;
  /** An event up to its mark, with the groups `sent` and, where the server tells them, `id` and `seq`, which then must grow by one. Global. */
  readonly frame: RegExp;
}

const PERE: Dialect = {
  ready: /event: pere\.ready[^]*?\n\n/,
  frame: new RegExp(
    `"id":"(?<id>[^"]+)","channel":"[^"]+","seq":(?<seq>\\d+),[^${MARK}]*"sent":(?<sent>[\\d.]+)[^${MARK}]*${MARK}`,
    "g",
  ),
};
/** Where chunked transfer encoding cuts in; line breaks of its kind are nowhere else in a frame. */
const CHUNK_BORDER = /\r\n[0-9a-f]+\r\n/g;

// ------------------------------------------------------------------------------------------------------------------ feeds

/** One device's open event stream. */
class Device {
  readonly index: number;
  /** Reads frames in full. */
  readonly full: boolean;
  /** Events that came. */
  count = 0;
  ready = false;
  /** What came of a frame, or of the response's beginning, that is not whole yet. */
  rest = "";
  seq = 0;
  constructor(index: number, full: boolean) {
    this.index = index;
    this.full = full;
  }
}

export interface FeedsOptions {
  readonly at: Pick<Service, "port" | "dialect">;
  readonly count: number;
  /** Path and query of a feed. */
  readonly path: (index: number) => string;
  /** One in so many feeds reads its frames in full. */
  readonly fullEvery: number;
  /** Called for each event that a feed reads in full. */
  readonly onEvent?: (index: number, id: string) => void;
}

export class Feeds {
  /** Events that came, on all feeds. */
  received = 0;
  /** Milliseconds from push to device, as the feeds that read in full saw it. */
  latenciesMs: number[] = [];
  /** What went wrong, each in one sentence. */
  readonly faults: string[] = [];
  readonly #devices: Device[] = [];
  readonly #sockets: Bun.Socket<Device>[] = [];
  readonly #options: FeedsOptions;
  readonly #dialect: Dialect;
  /** From one mark to the next, as last seen. Marks are never skipped by it: see `STRIDE_MIN` and `#data`. */
  #stride = STRIDE_MIN;
  #target = Number.POSITIVE_INFINITY;
  #reached: () => void = () => {};
  #ready = new Map<Device, () => void>();
  #closing = false;

  private constructor(options: FeedsOptions) {
    this.#options = options;
    this.#dialect = options.at.dialect ?? PERE;
  }

  /** Opens them all and waits until each was told `pere.ready`. @throws Error when one can't be opened */
  static async open(options: FeedsOptions): Promise<Feeds> {
    const feeds = new Feeds(options);
    let next = 0;
    const opener = async (): Promise<void> => {
      while (next < options.count) await feeds.#openOne(next++);
    };
    await Promise.all(Array.from({ length: OPENING_MAX }, opener));
    return feeds;
  }

  async #openOne(index: number): Promise<void> {
    const {
      at: { port },
      path,
      fullEvery,
    } = this.#options;
    const device = new Device(index, index % fullEvery === 0);
    this.#devices.push(device);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#ready.set(device, resolve);
    const late = setTimeout(
      () => reject(new Error(`feed ${index} was not ready: ${device.rest.slice(0, 200)}`)),
      PATIENCE_MS,
    );
    const socket = await Bun.connect<Device>({
      hostname: HOST,
      port,
      data: device,
      socket: {
        data: this.#data,
        close: () => {
          if (!this.#closing) this.faults.push(`feed ${index} was closed by the service`);
        },
      },
    });
    this.#sockets.push(socket);
    socket.write(`GET ${path(index)} HTTP/1.1\r\nHost: ${HOST}:${port}\r\nAccept: text/event-stream\r\n\r\n`);
    await promise;
    clearTimeout(late);
  }

  readonly #data = (socket: Bun.Socket<Device>, bytes: Buffer): void => {
    const device = socket.data;
    if (!device.ready) return this.#opening(device, bytes);
    let came = 0;
    let at = bytes.indexOf(MARK_BYTE);
    while (at !== -1) {
      came++;
      // Frames are about as long as the one before: looking there first costs a tenth of a search.
      if (bytes[at + this.#stride] === MARK_BYTE) at += this.#stride;
      else if (at + STRIDE_MIN > bytes.length) break;
      else {
        const next = bytes.indexOf(MARK_BYTE, at + STRIDE_MIN);
        if (next !== -1) this.#stride = next - at;
        at = next;
      }
    }
    device.count += came;
    if (device.full) this.#read(device, bytes);
    this.received += came;
    if (this.received >= this.#target) this.#reached();
  };

  #opening(device: Device, bytes: Buffer): void {
    device.rest += bytes.toString("latin1");
    if (!this.#dialect.ready.test(device.rest)) return;
    device.rest = "";
    device.ready = true;
    this.#ready.get(device)!();
    this.#ready.delete(device);
  }

  #read(device: Device, bytes: Buffer): void {
    const at = now();
    const text = (device.rest + bytes.toString("latin1")).replace(CHUNK_BORDER, "");
    let end = 0;
    for (const found of text.matchAll(this.#dialect.frame)) {
      const { sent, id = "", seq: told } = found.groups!;
      end = found.index + found[0].length;
      if (told !== undefined) {
        if (device.seq !== 0 && Number(told) !== device.seq + 1)
          this.faults.push(`feed ${device.index} was given ${id} after seq ${device.seq}`);
        device.seq = Number(told);
      }
      this.latenciesMs.push(at - Number(sent));
      this.#options.onEvent?.(device.index, id);
    }
    device.rest = text.slice(end);
  }

  /** Waits until `total` events have come, or none for a long while. */
  async until(total: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#target = total;
    this.#reached = resolve;
    if (this.received >= total) resolve();
    let before = -1;
    const watch = setInterval(() => {
      if (this.received === before) resolve();
      before = this.received;
    }, PATIENCE_MS);
    await promise;
    clearInterval(watch);
    this.#target = Number.POSITIVE_INFINITY;
  }

  /** Compares what each feed was given with what it is owed; what differs becomes a fault. */
  check(owed: (index: number) => number): void {
    const wrong = this.#devices.filter(({ index, count }) => count !== owed(index));
    const [first] = wrong;
    if (first)
      this.faults.push(
        `${wrong.length} feeds differ: feed ${first.index} was given ${first.count} events of ${owed(first.index)}`,
      );
  }

  close(): void {
    this.#closing = true;
    for (const socket of this.#sockets) socket.terminate();
  }
}
