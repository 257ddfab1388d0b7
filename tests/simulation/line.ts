/**
 * The way between clients and instances: requests, streams and sockets that are late, that break at any byte, and that stall.
 *
 * What the service writes are its real bytes; what the SDK reads is what came through of them. A line that breaks is noticed by its reader at once
 * and by the service sooner or later; one that stalls pushes back when a little has gathered.
 */
import { type Clock, Machine, PlainResponse, PlainStream } from "./clock.ts";
import { type Heard, type Host, Pipe, type SocketHandlers } from "./pipe.ts";

const utf8 = new TextEncoder();

/** How bad it is. */
export interface Weather {
  /** Of each request: that it is lost on its way, or its answer. */
  lost: number;
  /** Of each piece that is written to an open line: that the line breaks within it. */
  cut: number;
  /** Of each delay: that it is a long one. */
  slow: number;
}

export class Network {
  readonly clock: Clock;
  readonly weather: Weather;
  readonly pipes = new Set<Pipe>();
  hosts: readonly Host[] = [];
  readonly pinned = new Map<string, Host>();
  /** The first frame of an event stream with this in it is lost. */
  loses: string | null = null;
  /** Told of all that a client was given. */
  heard: (client: string, heard: Heard) => void = () => {};
  readonly #chance: () => number;
  readonly #stalled = new Map<string, number>();

  constructor(clock: Clock, chance: () => number, weather: Weather) {
    this.clock = clock;
    this.#chance = chance;
    this.weather = weather;
  }

  delayMs(): number {
    const isSlow = this.#chance() < this.weather.slow;
    return isSlow ? 200 + 2_800 * this.#chance() : 1 + 30 * this.#chance();
  }

  goneMs(): number {
    return this.#chance() < 0.2 ? 5_000 + 40_000 * this.#chance() : 100 * this.#chance();
  }

  stalledUntil(client: string): number {
    return this.#stalled.get(client) ?? 0;
  }

  stall(client: string, ms: number): void {
    this.#stalled.set(client, this.clock.now + ms);
  }

  /** Where a line breaks that brings this; null: it does not. Between two frames as often as within one. */
  cutWithin(bytes: Uint8Array | string): number | null {
    if (this.#chance() >= this.weather.cut) return null;
    if (typeof bytes === "string") return 0;
    const ends: number[] = [];
    for (let at = 1; at < bytes.length - 1; at++) if (bytes[at] === 10 && bytes[at - 1] === 10) ends.push(at + 1);
    if (ends.length > 0 && this.#chance() < 0.7) return ends[Math.floor(this.#chance() * ends.length)]!;
    return Math.floor(this.#chance() * bytes.length);
  }

  /** All lines of a client break. */
  cut(client: string): void {
    for (const pipe of [...this.pipes]) if (pipe.client === client) pipe.cut();
  }

  /** A machine is gone, and all its lines with it. */
  crashed(host: Host): void {
    for (const pipe of [...this.pipes]) if (pipe.host === host) pipe.cut(0);
  }

  /** Any instance that is up, as a balancer gives it, or the one that the client goes to; null: none is. */
  #pick(client: string): Host | null {
    const pinned = this.pinned.get(client);
    const up = this.hosts.filter((host) => host.isUp && (pinned === undefined || pinned === host));
    return up[Math.floor(this.#chance() * up.length)] ?? null;
  }

  // --------------------------------------------------------------------------------------------------------------- requests

  /** `fetch`, as a client on this line has it. @param isAllowed whether something in between lets a request through */
  fetch(client: string, isAllowed: (headers: Headers) => boolean = () => true) {
    return (url: string, init: RequestInit): Promise<Response> =>
      this.#request(client, url, init, isAllowed) as Promise<unknown> as Promise<Response>;
  }

  #request(
    client: string,
    url: string,
    init: RequestInit,
    isAllowed: (headers: Headers) => boolean,
  ): Promise<PlainResponse & { body?: unknown }> {
    const { clock } = this;
    const fate = this.#chance();
    const { lost } = this.weather;
    const me = clock.here();
    // Whoever is dead and does not know yet reaches nobody.
    if (me?.isAlive === false) return new Promise(() => {});
    return new Promise((resolve, reject) => {
      const fail = (ms: number): void => void clock.set(() => reject(new TypeError("the line broke")), ms, me);
      const headers = new Headers(init.headers);
      if (typeof init.body === "string") headers.set("content-length", String(utf8.encode(init.body).length));
      const { signal } = init;
      const gone = new AbortController();
      let pipe: Pipe | undefined;
      let isOver = false;
      const abort = (): void => {
        reject(new DOMException("aborted", "AbortError"));
        isOver = true;
        clock.set(() => gone.abort(), this.delayMs(), undefined);
        pipe?.cut(this.delayMs());
      };
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort);
      if (!isAllowed(headers))
        return void clock.set(() => resolve(new PlainResponse("<html>no streams here</html>")), this.delayMs());
      if (fate < lost / 2) return fail(this.delayMs());
      const stalledMs = Math.max(0, this.stalledUntil(client) - clock.now);
      const arrive = async (): Promise<void> => {
        const host = this.#pick(client);
        if (!host) return fail(this.delayMs());
        const arrivedAt = clock.now;
        const request = new Request(url, { ...init, headers, signal: gone.signal } as RequestInit);
        // What waits for an answer is a line of its own: it breaks when the instance does.
        const waiting = new Pipe(clock, this, client, host);
        this.pipes.add(waiting);
        waiting.onCut = () => fail(this.delayMs());
        waiting.onGone = () => gone.abort();
        const response = await clock.as(host.machine, () => host.handle(request, () => {}));
        this.pipes.delete(waiting);
        if (!response || waiting.isCut) return;
        if (response.content instanceof PlainStream) {
          pipe = this.#stream(client, host, response, resolve, arrivedAt, me);
          if (isOver) pipe.cut(this.delayMs());
          return;
        }
        const wroteAt = clock.now;
        clock.set(
          () => {
            if (fate < lost) return fail(0);
            this.heard(client, { openedAt: arrivedAt, wroteAt, text: String(response.content ?? "") });
            resolve(response);
          },
          this.delayMs() + Math.max(0, this.stalledUntil(client) - clock.now),
          me,
        );
      };
      clock.set(() => void arrive(), stalledMs + this.delayMs(), undefined);
    });
  }

  /** An event stream: its head goes out at once, then what is written. */
  #stream(
    client: string,
    host: Host,
    response: PlainResponse,
    resolve: (response: PlainResponse & { body: unknown }) => void,
    openedAt: number,
    me: Machine | undefined,
  ): Pipe {
    const { clock } = this;
    const pipe = new Pipe(clock, this, client, host);
    clock.note(`${client} has a stream from ${host.machine.name}`);
    pipe.openedAt = openedAt;
    this.pipes.add(pipe);
    const source = (response.content as PlainStream).source as { pull(out: unknown): void; cancel(): void };
    const pieces: Uint8Array[] = [];
    let state: "open" | "ended" | "cut" = "open";
    let wake: (() => void) | null = null;
    const changed = (): void => {
      wake?.();
      wake = null;
    };
    pipe.onPiece = ({ bytes, wroteAt }) => {
      if (me?.isAlive === false) return;
      const whole = bytes as Uint8Array;
      this.heard(client, { openedAt, wroteAt, text: new TextDecoder().decode(whole) });
      pieces.push(whole);
      changed();
    };
    pipe.onEnd = () => {
      state = "ended";
      this.pipes.delete(pipe);
      changed();
      clock.as(host.machine, () => source.cancel());
    };
    pipe.onCut = () => {
      state = "cut";
      changed();
    };
    pipe.onGone = () => source.cancel();
    const out = {
      write: (chunk: string | Uint8Array): number | Promise<number> => {
        const bytes = this.#without(typeof chunk === "string" ? utf8.encode(chunk) : chunk);
        this.writing(host, bytes);
        if (!pipe.send(bytes)) return 0;
        if (!pipe.isBehind) return bytes.length;
        return new Promise((drained) => pipe.drained(() => drained(bytes.length)));
      },
      close: (error?: Error): void => (error ? pipe.cut(0) : pipe.end()),
    };
    const body = {
      getReader: () => ({
        read: async (): Promise<{ done: boolean; value?: Uint8Array }> => {
          for (;;) {
            const value = pieces.shift();
            if (value) return { done: false, value };
            if (state === "ended") return { done: true };
            if (state === "cut") throw new TypeError("the line broke");
            await new Promise<void>((go) => (wake = go));
          }
        },
        cancel: async (): Promise<void> => pipe.cut(this.delayMs()),
      }),
    };
    clock.as(host.machine, () => source.pull(out));
    clock.set(() => resolve(Object.assign(response, { body })), this.delayMs(), me);
    return pipe;
  }

  #without(bytes: Uint8Array): Uint8Array {
    if (this.loses === null) return bytes;
    const frames = new TextDecoder().decode(bytes).split("\n\n");
    const kept = frames.filter((frame) => !frame.includes(this.loses!));
    if (kept.length < frames.length) this.loses = null;
    return utf8.encode(kept.join("\n\n"));
  }

  /** Told before something is written to a stream or a socket; may throw in its place. */
  writing: (host: Host, bytes: Uint8Array | string) => void = () => {};

  // ---------------------------------------------------------------------------------------------------------------- sockets

  /** `WebSocket`, as a client on this line has it. */
  socket(client: string) {
    const network = this;
    return class PlainSocket {
      onmessage: ((event: never) => void) | null = null;
      onclose: ((event: never) => void) | null = null;
      onerror: ((event: never) => void) | null = null;
      #up: ((text: string) => void) | null = null;
      #pipe: Pipe | null = null;
      #isClosed = false;
      #me: Machine | undefined;

      constructor(url: string, _protocols: string[]) {
        const { clock } = network;
        this.#me = clock.here();
        clock.set(
          () => void this.#open(url),
          network.delayMs() + Math.max(0, network.stalledUntil(client) - clock.now),
        );
      }

      #closed(code: number): void {
        if (this.#isClosed) return;
        this.#isClosed = true;
        this.#up = null;
        const tell = this.onclose as ((event: { code: number }) => void) | null;
        if (tell && this.#me?.isAlive !== false) network.clock.as(this.#me, () => tell({ code }));
      }

      async #open(url: string): Promise<void> {
        const { clock } = network;
        const host = network.#pick(client);
        const fail = (): void => void clock.set(() => this.#closed(1006), network.delayMs());
        if (!host || network.#chance() < network.weather.lost) return fail();
        const openedAt = clock.now;
        const headers = { upgrade: "websocket", host: "pere.sim" };
        const request = new Request(url.replace(/^ws/, "http"), { headers });
        let data: SocketHandlers | null = null;
        const response = await clock.as(host.machine, () => host.handle(request, (handlers) => (data = handlers)));
        if (response || !data || !host.isUp) return fail();
        this.#begin(host, data, openedAt);
      }

      #begin(host: Host, data: SocketHandlers, openedAt: number): void {
        const { clock } = network;
        const pipe = new Pipe(clock, network, client, host);
        clock.note(`${client} has a socket to ${host.machine.name}`);
        this.#pipe = pipe;
        network.pipes.add(pipe);
        let code = 1006;
        let isOver = false;
        const over = (): void => {
          if (isOver || !host.isUp) return;
          isOver = true;
          data.close();
        };
        const server = {
          send: (text: string): number => {
            network.writing(host, text);
            if (!pipe.send(text)) return 0;
            if (!pipe.isBehind) return text.length;
            pipe.drained(() => data.drain());
            return -1;
          },
          cork: (run: () => void): void => run(),
          close: (why: number): void => {
            code = why;
            pipe.end();
          },
        };
        pipe.onPiece = ({ bytes, wroteAt }) => {
          if (this.#me?.isAlive === false || this.#isClosed) return;
          network.heard(client, { openedAt, wroteAt, text: bytes as string });
          const tell = this.onmessage as ((event: { data: string }) => void) | null;
          if (tell) clock.as(this.#me, () => tell({ data: bytes as string }));
        };
        pipe.onEnd = () => {
          network.pipes.delete(pipe);
          pipe.isCut = true;
          clock.as(host.machine, over);
          this.#closed(code);
        };
        pipe.onCut = () => this.#closed(1006);
        pipe.onGone = over;
        // What goes up arrives in order.
        let last = 0;
        this.#up = (text) => {
          last = Math.max(last, clock.now + network.delayMs());
          clock.set(
            () => {
              if (!pipe.isCut && host.isUp) clock.as(host.machine, () => data.message(server as never, text));
            },
            last - clock.now,
            undefined,
          );
        };
        clock.as(host.machine, () => data.open(server as never));
      }

      send(text: string): void {
        if (!this.#up) throw new Error("the socket is not open");
        this.#up(text);
      }

      close(): void {
        this.#isClosed = true;
        this.#up = null;
        this.#pipe?.cut(network.delayMs());
      }
    };
  }
}
