/**
 * The load generator's feeds. Most only count what they are given, on a thread of their own (`counter.ts`); some read it, here.
 *
 * A generator that costs more than the service measures itself. So there is no HTTP client, no event-stream parser and no `JSON.parse` a delivery
 * here, only TCP and bytes. Every event that the benchmark pushes ends in one byte that nothing else on the wire contains (`MARK`), neither the
 * frames around it nor the sizes of chunked transfer encoding. To count deliveries is to count that byte, and as it is a
 * single byte, no border between two reads can hide it.
 *
 * Cheap is not blind. Each feed has a count of its own, so a loss here can't be made up for by a repeat there; and some of the feeds (all of
 * them where receipts are to be given) read their frames in full: the time of the push for latency, and `seq`, which must grow by one each.
 */
import { COUNTS, type CounterTask, type CounterWord, OPENED, STOP, TOTAL, WANTED } from "./counter.ts";
import { HOST, type Service } from "./service.ts";

/** Ends every pushed event. Not in hexadecimal sizes, ids, names, times, or in what the server says of its own. */
const MARK = "!";
const MARK_BYTE = MARK.charCodeAt(0);
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
  /** What opens a feed, from the path that PERE would be asked for; absent: a GET of that path. */
  readonly request?: (path: string, port: number) => string;
  /** Has come when a feed is open. */
  readonly ready: RegExp;
  /** An event up to its mark, with the groups `sent` and, where the server tells them, `id` and `seq`, which then must grow by one. Global. */
  readonly frame: RegExp;
}

/** Asks for an event stream. */
export const eventStream = (path: string, port: number): string =>
  `GET ${path} HTTP/1.1\r\nHost: ${HOST}:${port}\r\nAccept: text/event-stream\r\n\r\n`;

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

/** One device's open event stream, read frame by frame. */
class Device {
  readonly index: number;
  /** Events that came. */
  count = 0;
  ready = false;
  /** What came of a frame, or of the response's beginning, that is not whole yet. */
  rest = "";
  seq = 0;
  readonly opened: () => void;
  constructor(index: number, opened: () => void) {
    this.index = index;
    this.opened = opened;
  }
}

export interface FeedsOptions {
  readonly at: Pick<Service, "port" | "dialect">;
  readonly count: number;
  /** Path and query of a feed. */
  readonly path: (index: number) => string;
  /** One in so many feeds reads its frames; the others count marks. Where there is no epoll(7), all read. */
  readonly fullEvery: number;
  /** Feeds being opened at a time. */
  readonly openingMax?: number;
  /** Called for each event that a feed reads in full. */
  readonly onEvent?: (index: number, id: string) => void;
}

export class Feeds {
  /** Milliseconds from push to device, as the feeds that read in full saw it. */
  latenciesMs: number[] = [];
  /** What went wrong, each in one sentence. */
  readonly faults: string[] = [];
  /** Those that read. */
  readonly #devices: Device[] = [];
  readonly #sockets: Bun.Socket<Device>[] = [];
  /** Indexes of those that only count, in the order of their counts. */
  readonly #counting: number[] = [];
  #counter: Worker | undefined;
  #counts = new Int32Array(new SharedArrayBuffer(4 * COUNTS));
  #countersOpen: PromiseWithResolvers<void> = Promise.withResolvers();
  #countersEnded: PromiseWithResolvers<void> = Promise.withResolvers();
  readonly #options: FeedsOptions;
  readonly #dialect: Dialect;
  /** Events that came on feeds that read. */
  #read = 0;
  #target = Number.POSITIVE_INFINITY;
  #reached: () => void = () => {};
  #closing = false;

  private constructor(options: FeedsOptions) {
    this.#options = options;
    this.#dialect = options.at.dialect ?? PERE;
  }

  /** Opens them all and waits until the server said to each that it is open. @throws Error when one can't be opened */
  static async open(options: FeedsOptions): Promise<Feeds> {
    const feeds = new Feeds(options);
    const { count, openingMax = OPENING_MAX } = options;
    const fullEvery = process.platform === "linux" ? options.fullEvery : 1;
    const reading: number[] = [];
    for (let index = 0; index < count; index++) (index % fullEvery === 0 ? reading : feeds.#counting).push(index);
    const opener = async (): Promise<void> => {
      for (let index = reading.shift(); index !== undefined; index = reading.shift()) await feeds.#openOne(index);
    };
    const all = [feeds.#openCounters(openingMax), ...Array.from({ length: openingMax }, opener)];
    const stuck = Promise.withResolvers<never>();
    let before = -1;
    const watch = setInterval(() => {
      const open = feeds.#open();
      if (open === before)
        stuck.reject(new Error(`${open} of ${count} feeds are open, and no more open${feeds.#stuck()}`));
      before = open;
    }, PATIENCE_MS);
    await Promise.race([Promise.all(all), stuck.promise]).finally(() => clearInterval(watch));
    return feeds;
  }

  #open(): number {
    return this.#devices.filter(({ ready }) => ready).length + Atomics.load(this.#counts, OPENED);
  }

  /** What the first feed that is not open was told last. */
  #stuck(): string {
    const device = this.#devices.find(({ ready }) => !ready);
    return device ? `; feed ${device.index} was told: ${device.rest.slice(-200)}` : "";
  }

  /** Events that came, on all feeds. */
  get received(): number {
    return this.#read + Atomics.load(this.#counts, TOTAL);
  }

  #request(index: number): string {
    const { at, path } = this.#options;
    return (this.#dialect.request ?? eventStream)(path(index), at.port);
  }

  async #openCounters(openingMax: number): Promise<void> {
    if (this.#counting.length === 0) return;
    this.#counts = new Int32Array(new SharedArrayBuffer(4 * (COUNTS + this.#counting.length)));
    this.#counter = new Worker(new URL("./counter.ts", import.meta.url).href);
    this.#counter.onmessage = ({ data }: MessageEvent<CounterWord>) => {
      if (data.word === "open") this.#countersOpen.resolve();
      else if (data.word === "ended") this.#countersEnded.resolve();
      else if (data.word === "closed") this.#closed(this.#counting[data.index]!);
      else this.#look();
    };
    this.#counter.onerror = ({ message }) => this.#countersOpen.reject(new Error(message));
    const task: CounterTask = {
      port: this.#options.at.port,
      requests: this.#counting.map((index) => this.#request(index)),
      ready: this.#dialect.ready,
      mark: MARK_BYTE,
      openingMax,
      counts: this.#counts,
    };
    this.#counter.postMessage(task);
    await this.#countersOpen.promise;
  }

  async #openOne(index: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const device = new Device(index, resolve);
    this.#devices.push(device);
    const socket = await Bun.connect<Device>({
      hostname: HOST,
      port: this.#options.at.port,
      data: device,
      socket: { data: this.#data, close: () => this.#closed(index) },
    });
    this.#sockets.push(socket);
    socket.write(this.#request(index));
    await promise;
  }

  #closed(index: number): void {
    if (!this.#closing) this.faults.push(`feed ${index} was closed by the service`);
  }

  readonly #data = ({ data: device }: Bun.Socket<Device>, bytes: Buffer): void => {
    const at = now();
    device.rest += bytes.toString("latin1");
    if (!device.ready) {
      const ready = this.#dialect.ready.exec(device.rest);
      if (!ready) return;
      device.rest = device.rest.slice(ready.index + ready[0].length);
      device.ready = true;
      device.opened();
    }
    this.#frames(device, at);
  };

  #frames(device: Device, at: number): void {
    const text = device.rest.replace(CHUNK_BORDER, "");
    let end = 0;
    for (const found of text.matchAll(this.#dialect.frame)) {
      const { sent, id = "", seq: told } = found.groups!;
      end = found.index + found[0].length;
      if (told !== undefined) {
        if (device.seq !== 0 && Number(told) !== device.seq + 1)
          this.faults.push(`feed ${device.index} was given ${id} after seq ${device.seq}`);
        device.seq = Number(told);
      }
      device.count++;
      this.#read++;
      this.latenciesMs.push(at - Number(sent));
      this.#options.onEvent?.(device.index, id);
    }
    device.rest = text.slice(end);
    this.#look();
  }

  /** Whether what somebody waits for has come. If not, the counters are told how much of it is theirs. */
  #look(): void {
    if (this.#target === Number.POSITIVE_INFINITY) return;
    Atomics.store(this.#counts, WANTED, Math.max(1, this.#target - this.#read));
    if (this.received >= this.#target) this.#reached();
  }

  /** Waits until `total` events have come, or none for a long while. */
  async until(total: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#target = total;
    this.#reached = resolve;
    this.#look();
    let before = -1;
    const watch = setInterval(() => {
      if (this.received === before) resolve();
      before = this.received;
    }, PATIENCE_MS);
    await promise;
    clearInterval(watch);
    this.#target = Number.POSITIVE_INFINITY;
    Atomics.store(this.#counts, WANTED, 0);
  }

  /** Compares what each feed was given with what it is owed; what differs becomes a fault. */
  check(owed: (index: number) => number): void {
    const counts = [
      ...this.#devices.map(({ index, count }) => ({ index, count })),
      ...this.#counting.map((index, place) => ({ index, count: this.#counts[COUNTS + place]! })),
    ];
    const wrong = counts.filter(({ index, count }) => count !== owed(index));
    const [first] = wrong;
    if (first)
      this.faults.push(
        `${wrong.length} feeds differ: feed ${first.index} was given ${first.count} events of ${owed(first.index)}`,
      );
  }

  async close(): Promise<void> {
    this.#closing = true;
    for (const socket of this.#sockets) socket.terminate();
    if (!this.#counter) return;
    Atomics.store(this.#counts, STOP, 1);
    await this.#countersEnded.promise;
    this.#counter.terminate();
  }
}
