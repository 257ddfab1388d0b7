/**
 * Middleboxes on a bad day: a proxy on 127.0.0.1 that looks at each request and then does to it what some proxy, balancer or radio link has
 * done to somebody. It cuts at a byte, holds a stream back until its end, answers instead of the service, is late, or swallows.
 *
 * It speaks just enough HTTP for that: a request is read whole, and is asked to be the last of its connection, so that a line is one request and
 * what comes back is passed on as bytes. What happens to a request is decided when it is whole, by `weather`; what was decided stays.
 */
import { connect, createServer, type Server, type Socket } from "node:net";

/** What a request is for. */
export type Errand = "sse" | "socket" | "poll" | "receipts" | "other";

/** One request, as the proxy saw it. */
export interface Seen {
  readonly errand: Errand;
  readonly target: string;
  readonly head: string;
  readonly body: string;
  /**
   * When it was whole, and when its answer ended or, before that, its line; milliseconds of this process. Its sender can't have known of that end before:
   * where the sender closed the line, it ended with the last bytes that were passed on.
   */
  readonly at: number;
  endedAt: number | null;
  /** What was passed on of its answer, as Latin-1. */
  answer: string;
}

/**
 * What becomes of a request.
 * - `pass`: it is carried, both ways
 * - `hold`: it is taken and goes no further; its sender waits
 * - `buffer`: its answer is held back until it is complete, as nginx does with `proxy_buffering`
 * - `cut`: the line ends after so many bytes of the answer; `cutRequest`: of the request
 * - `status`: it is answered here, and the service never hears of it; `retryAfter` in seconds
 * - `bytes`: these come back, and the service never hears of it; `stays`: the line stays open behind them (`bad-answers.ts`)
 * - `delayMs`: its answer comes late
 */
export type Fate =
  | "pass"
  | "hold"
  | "buffer"
  | { readonly cut: number }
  | { readonly cutRequest: number }
  | { readonly status: number; readonly retryAfter?: number }
  | { readonly bytes: string; readonly stays: boolean }
  | { readonly delayMs: number };

interface Line {
  readonly near: Socket;
  far: Socket | null;
  isSilent: boolean;
  request: Seen | null;
  /** When bytes were passed on last. */
  givenAt: number | null;
}

export class BadProxy {
  readonly url: string;
  /** Decides on each request. */
  weather: (request: Seen) => Fate = () => "pass";
  /** The service's port; another one takes the address over. */
  target: number;
  /** All requests so far. */
  readonly seen: Seen[] = [];
  readonly #server: Server;
  readonly #lines = new Set<Line>();

  private constructor(server: Server, port: number, target: number) {
    this.#server = server;
    this.url = `http://127.0.0.1:${port}`;
    this.target = target;
    server.on("connection", (near) => this.#take(near));
  }

  /** A proxy on a free port before the service at `url`. */
  static async to(url: string): Promise<BadProxy> {
    const server = createServer();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
    await promise;
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("the proxy has no port");
    return new BadProxy(server, address.port, Number(new URL(url).port));
  }

  /** Ends all lines. */
  cut(): void {
    for (const line of this.#lines) this.#end(line);
  }

  /** Carries nothing more on the lines that there are; they stay open, and neither end learns of it. New ones are carried. */
  silence(): void {
    for (const line of this.#lines) line.isSilent = true;
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.cut();
    await closed;
  }

  #end(line: Line): void {
    if (line.request) line.request.endedAt ??= performance.now();
    this.#lines.delete(line);
    line.near.destroy();
    line.far?.destroy();
  }

  #take(near: Socket): void {
    const line: Line = { near, far: null, isSilent: false, request: null, givenAt: null };
    this.#lines.add(line);
    let bytes = Buffer.alloc(0);
    let isWhole = false;
    near.setNoDelay(true);
    near.on("error", () => {});
    near.on("data", (chunk: Buffer) => {
      if (isWhole) return void (line.isSilent || line.far?.write(chunk));
      bytes = Buffer.concat([bytes, chunk]);
      const request = requestIn(bytes);
      if (!request) return;
      isWhole = true;
      this.seen.push(request);
      line.request = request;
      near.on("close", () => {
        request.endedAt ??= line.givenAt;
        this.#end(line);
      });
      this.#carry(line, request, bytes, this.weather(request));
    });
  }

  /** An answer with the addresses that it speaks of. Nobody listens on port 9. */
  #filled(bytes: string, target: string): string {
    const at = bytes.indexOf("\r\n\r\n");
    if (at === -1) return bytes;
    const head = bytes.slice(0, at).replaceAll("{origin}", this.url).replaceAll("{target}", target);
    return head.replaceAll("{other}", "http://127.0.0.1:9") + bytes.slice(at);
  }

  #carry(line: Line, request: Seen, bytes: Buffer, fate: Fate): void {
    const { near } = line;
    if (fate === "hold") return;
    if (typeof fate === "object" && "status" in fate) return void near.end((request.answer = answerOf(fate)));
    if (typeof fate === "object" && "bytes" in fate) {
      const text = this.#filled(fate.bytes, request.target);
      request.answer = text.slice(0, 2_000);
      line.givenAt = performance.now();
      near.write(text, "latin1");
      return void (fate.stays || near.end());
    }
    if (typeof fate === "object" && "cutRequest" in fate && fate.cutRequest === 0) return this.#end(line);
    const far = (line.far = connect(this.target, "127.0.0.1"));
    far.setNoDelay(true);
    far.on("error", () => {});
    const give = (chunk: Buffer): void => {
      if (line.isSilent || !near.writable) return;
      request.answer += chunk.toString("latin1");
      line.givenAt = performance.now();
      // The last chunk: the service may leave the line open for a while.
      if (request.answer.endsWith("\r\n0\r\n\r\n")) request.endedAt ??= line.givenAt;
      near.write(chunk);
    };
    const kept: Buffer[] = [];
    let came = 0;
    let late = Promise.resolve();
    /** Browsers take a while to close a line that has ended. */
    const end = (then?: () => void): void => {
      request.endedAt ??= performance.now();
      near.end(then);
    };
    const finish = (): void => {
      if (line.isSilent) return; // Nobody learns that it ended.
      if (fate === "buffer") give(Buffer.concat(kept));
      end();
    };
    far.on("data", (chunk: Buffer) => {
      if (fate === "buffer") return void kept.push(chunk);
      if (typeof fate === "object" && "delayMs" in fate) {
        const due = performance.now() + fate.delayMs;
        late = late.then(async () => (await Bun.sleep(due - performance.now()), give(chunk)));
        return;
      }
      if (typeof fate !== "object" || !("cut" in fate)) return give(chunk);
      give(chunk.subarray(0, fate.cut - came));
      came += chunk.length;
      // What was given is sent before the line is gone.
      if (came >= fate.cut) end(() => this.#end(line));
    });
    far.on("close", () => void late.then(finish));
    const whole = request.errand === "socket" ? bytes : asLast(bytes);
    if (typeof fate === "object" && "cutRequest" in fate)
      far.write(whole.subarray(0, fate.cutRequest), () => this.#end(line));
    else far.write(whole);
  }
}

/** The first request in these bytes, when it is whole. */
function requestIn(bytes: Buffer): Seen | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end === -1) return null;
  const head = bytes.toString("latin1", 0, end);
  const length = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0);
  if (bytes.length < end + 4 + length) return null;
  const [method = "", target = ""] = head.split(" ", 2);
  const body = bytes.toString("utf8", end + 4);
  return {
    errand: errandOf(method, target, head),
    target,
    head,
    body,
    at: performance.now(),
    endedAt: null,
    answer: "",
  };
}

function errandOf(method: string, target: string, head: string): Errand {
  if (/^\/feedback\//.test(target) && method === "POST") return "receipts";
  if (!/^\/feed\//.test(target)) return "other";
  if (/^upgrade: *websocket/im.test(head)) return "socket";
  return /^accept:.*application\/json/im.test(head) && !/^accept:.*event-stream/im.test(head) ? "poll" : "sse";
}

/** The request with the wish that its connection ends with it. */
function asLast(bytes: Buffer): Buffer {
  const end = bytes.indexOf("\r\n\r\n");
  const head = bytes.toString("latin1", 0, end).replace(/\r\n(connection|keep-alive):[^\r]*/gi, "");
  return Buffer.concat([Buffer.from(`${head}\r\nConnection: close`, "latin1"), bytes.subarray(end)]);
}

/** What a proxy says for itself. */
function answerOf({ status, retryAfter }: { status: number; retryAfter?: number }): string {
  const body = `<html>${status}</html>`;
  const later = retryAfter === undefined ? "" : `Retry-After: ${retryAfter}\r\n`;
  const about = `Content-Type: text/html\r\nContent-Length: ${body.length}\r\nConnection: close\r\n`;
  return `HTTP/1.1 ${status} Not Now\r\n${later}${about}\r\n${body}`;
}
