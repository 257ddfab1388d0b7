/**
 * Devices of the soak: each listens by one of the three transports, answers each event, is cut off now and then without a word, and comes back where it
 * was. It counts what it was not given and what it was given twice.
 *
 * What one writes as a client of PERE is here in its smallest form: a position, and a box of receipts that are not known to be taken.
 */
import { now } from "./feeds.ts";

export const TRANSPORTS = ["sse", "websocket", "longpoll"] as const;
export type Transport = (typeof TRANSPORTS)[number];

/** A device stays connected for so long, at random between the two. */
const CONNECTED_MS: readonly [number, number] = [5_000, 60_000];
/** And is away for up to this long. */
const AWAY_MS = 2_000;
/** Receipts are sent together after this. */
const RECEIPTS_MS = 50;
/** What one long-poll waits. */
const POLL_SECONDS = 20;
const ANSWER_MS = 10_000;

/** What all devices saw; latencies of what was pushed while they were connected, since these were last taken away. */
export interface Seen {
  deliveries: number;
  receipts: number;
  reconnects: number;
  losses: number;
  repeats: number;
  open: number;
  latenciesMs: number[];
  /** What else went wrong. */
  readonly faults: string[];
}

const between = ([least, most]: readonly [number, number]): number => least + Math.random() * (most - least);

interface Event {
  readonly id: string;
  readonly seq: number;
  readonly data: { readonly sent: number };
}

export class SoakDevice {
  readonly name: string;
  readonly channel: string;
  readonly transport: Transport;
  /** The last event that came, and its number. */
  position = "";
  seq = -1;
  /** Events whose receipt is not known to be taken. */
  readonly owed = new Set<string>();
  readonly #url: string;
  readonly #seen: Seen;
  #socket: WebSocket | undefined;
  #sending: Timer | undefined;
  #abort = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #stopping = false;
  /** When this connection was ready; what was pushed before is caught up with, which says nothing of lag. */
  #openedAt = 0;
  #ready = Promise.withResolvers<void>();

  constructor(url: string, name: string, channel: string, transport: Transport, seen: Seen) {
    this.#url = url;
    this.name = name;
    this.channel = channel;
    this.transport = transport;
    this.#seen = seen;
  }

  /** Listens until it is stopped. Resolves when it is enrolled and nothing pushed from now on passes it by. */
  start(): Promise<void> {
    this.#running = this.#live();
    return this.#ready.promise;
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#abort.abort();
    await this.#running;
  }

  async #live(): Promise<void> {
    while (!this.#stopping) {
      this.#abort = new AbortController();
      const { signal } = this.#abort;
      // Cut off without a word, as by a tunnel or a dead battery.
      const cut = setTimeout(() => this.#abort.abort(), between(CONNECTED_MS));
      try {
        this.#seen.open++;
        if (this.transport === "websocket") await this.#followSocket(signal);
        else await (this.transport === "sse" ? this.#followStream(signal) : this.#poll(signal));
      } catch (error) {
        if (!signal.aborted) this.#seen.faults.push(`${this.name} (${this.transport}): ${(error as Error).message}`);
      }
      this.#seen.open--;
      clearTimeout(cut);
      if (this.#stopping) return;
      this.#seen.reconnects++;
      await Bun.sleep(Math.random() * AWAY_MS);
    }
  }

  #path(): string {
    const after = this.position === "" ? "" : `&last-event-id=${this.position}`;
    return `/feed/${this.channel}?device=${this.name}${after}`;
  }

  /** From the server's word on where the feed starts; only the first one is news. */
  #opened(position: string): void {
    this.#openedAt = now();
    if (this.seq === -1) {
      this.position = position;
      this.seq = Number(position.split("-")[1]);
    }
    this.#ready.resolve();
    if (this.owed.size > 0) this.#answer();
  }

  #came({ id, seq, data }: Event): void {
    this.#seen.deliveries++;
    if (data.sent > this.#openedAt) this.#seen.latenciesMs.push(now() - data.sent);
    if (seq <= this.seq) {
      this.#seen.repeats++;
      return;
    }
    this.#seen.losses += seq - this.seq - 1;
    this.seq = seq;
    this.position = id;
    this.owed.add(id);
    this.#sending ??= setTimeout(() => this.#answer(), RECEIPTS_MS);
  }

  #message(text: string): void {
    const message = JSON.parse(text) as Event & { pere?: string; channels?: Record<string, string>; recorded?: number };
    if (message.pere === undefined) this.#came(message);
    else if (message.pere === "ready") this.#opened(message.channels![this.channel]!);
    else if (message.pere === "gap") this.#seen.faults.push(`${this.name} was told of a gap`);
  }

  async #followStream(signal: AbortSignal): Promise<void> {
    const response = await fetch(this.#url + this.#path(), { headers: { Accept: "text/event-stream" }, signal });
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of response.body!) {
      const frames = (rest + decoder.decode(chunk, { stream: true })).split("\n\n");
      rest = frames.pop()!;
      for (const frame of frames) {
        const data = /^data: (.*)$/m.exec(frame)?.[1];
        const own = /^event: pere\.(\w+)$/m.exec(frame)?.[1];
        if (data) this.#message(own ? `{"pere":"${own}",${data.slice(1)}` : data);
      }
    }
  }

  async #followSocket(signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const socket = new WebSocket(this.#url.replace(/^http/, "ws") + this.#path());
    this.#socket = socket;
    socket.onmessage = ({ data }) => {
      const text = String(data);
      if (text.startsWith('{"pere":"receipts"')) this.#taken(JSON.parse(text) as Taken);
      else this.#message(text);
    };
    socket.onclose = () => resolve();
    signal.addEventListener("abort", () => (socket as WebSocket & { terminate(): void }).terminate());
    await promise;
    this.#socket = undefined;
    this.#unanswered.length = 0;
  }

  async #poll(signal: AbortSignal): Promise<void> {
    if (this.seq !== -1) this.#opened(this.position);
    while (!signal.aborted) {
      const response = await fetch(`${this.#url}${this.#path()}&wait=${this.seq === -1 ? 0 : POLL_SECONDS}`, {
        headers: { Accept: "application/json" },
        signal,
      });
      const { events, last } = (await response.json()) as { events: Event[]; last: string };
      if (this.seq === -1) this.#opened(last);
      for (const event of events) this.#came(event);
    }
  }

  // ------------------------------------------------------------------------------------------------------------- receipts

  /** What went over the socket and is not answered yet, in the order in which it went. */
  readonly #unanswered: string[][] = [];

  /** Sends what is owed, by the socket where there is one. */
  #answer(): void {
    this.#sending = undefined;
    const events = [...this.owed];
    if (events.length === 0) return;
    const receipts = events.map((event) => ({ event, device: this.name, status: "done" }));
    if (this.transport === "websocket") {
      if (this.#socket?.readyState !== WebSocket.OPEN) return; // It comes back, and sends them then.
      this.#unanswered.push(events);
      this.#socket.send(JSON.stringify(receipts));
      return;
    }
    fetch(`${this.#url}/feedback/${this.channel}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(receipts),
      signal: AbortSignal.timeout(ANSWER_MS),
    })
      .then(async (response) => this.#taken((await response.json()) as Taken, events))
      .catch((error: Error) => {
        this.#seen.faults.push(`${this.name}'s receipts: ${error.message}`);
        this.#sending ??= setTimeout(() => this.#answer(), 1_000);
      });
  }

  #taken({ recorded, duplicate, rejected }: Taken, events: readonly string[] = this.#unanswered.shift() ?? []): void {
    this.#seen.receipts += recorded;
    if (rejected.length > 0 || recorded + duplicate !== events.length)
      this.#seen.faults.push(`${this.name}'s receipts were not all taken: ${JSON.stringify(rejected[0])}`);
    for (const event of events) this.owed.delete(event);
  }
}

interface Taken {
  readonly recorded: number;
  readonly duplicate: number;
  readonly rejected: readonly unknown[];
}
