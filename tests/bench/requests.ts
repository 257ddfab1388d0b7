/**
 * The load generator's keep-alive connections that ask, as thin as its feeds: one write a request, and of an answer no more is read than
 * where it ends and whether it is good.
 */
import { HOST } from "./service.ts";

interface Exchange {
  readonly text: string;
  readonly resolve: (response: string) => void;
  readonly reject: (error: Error) => void;
}

class Line {
  /** What is being asked on it now. */
  asked: Exchange | undefined;
  answer = "";
  /** What the kernel has not taken yet. */
  unsent = "";
}

/** Keep-alive connections with one request at a time on each; what finds none free waits for its turn. */
export class Requests {
  readonly #port: number;
  readonly #free: Bun.Socket<Line>[] = [];
  readonly #waiting: Exchange[] = [];
  readonly #all: Bun.Socket<Line>[] = [];
  #first = 0;
  #failure: Error | undefined;

  private constructor(port: number) {
    this.#port = port;
  }

  static async open(port: number, connections: number): Promise<Requests> {
    const requests = new Requests(port);
    for (let index = 0; index < connections; index++) {
      const socket = await Bun.connect<Line>({
        hostname: HOST,
        port,
        data: new Line(),
        socket: {
          data: (line, bytes) => requests.#data(line, bytes),
          drain: (line) => requests.#send(line, line.data.unsent),
          close: () => requests.#fail(),
        },
      });
      requests.#all.push(socket);
      requests.#free.push(socket);
    }
    return requests;
  }

  /** Asks, and gives the body of the answer. @throws Error unless the status is 2xx */
  ask(
    method: "GET" | "POST" | "PUT",
    path: string,
    body = "",
    type = "application/json",
    /** Each with its line break. */
    headers = "",
  ): Promise<string> {
    const head = `${method} ${path} HTTP/1.1\r\nHost: ${HOST}:${this.#port}\r\n${headers}Content-Type: ${type}\r\nContent-Length: ${body.length}\r\n\r\n`;
    return new Promise((resolve, reject) => {
      if (this.#failure) return reject(this.#failure);
      const exchange = { text: head + body, resolve, reject };
      // In turn, so that none is quiet for so long that the service closes it.
      const socket = this.#free.shift();
      if (socket) this.#put(socket, exchange);
      else this.#waiting.push(exchange);
    });
  }

  #put(socket: Bun.Socket<Line>, exchange: Exchange): void {
    socket.data.asked = exchange;
    this.#send(socket, exchange.text);
  }

  /** Texts are ASCII: a character is a byte. */
  #send(socket: Bun.Socket<Line>, text: string): void {
    const sent = text === "" ? 0 : Math.max(0, socket.write(text));
    socket.data.unsent = text.slice(sent);
  }

  #data(socket: Bun.Socket<Line>, bytes: Buffer): void {
    const line = socket.data;
    const text = (line.answer += bytes.toString("latin1"));
    const head = text.indexOf("\r\n\r\n");
    const length = head === -1 ? null : /\r\ncontent-length: (\d+)/i.exec(text);
    if (!length || text.length < head + 4 + Number(length[1])) return;
    const { resolve, reject } = line.asked!;
    line.answer = "";
    // The place is given on before the answer is looked at: the service is never left waiting for us.
    const next = this.#waiting[this.#first];
    if (next) {
      if (++this.#first === 1024) (this.#waiting.splice(0, this.#first), (this.#first = 0));
      this.#put(socket, next);
    } else {
      line.asked = undefined;
      this.#free.push(socket);
    }
    if (text.startsWith("HTTP/1.1 2")) resolve(text.slice(head + 4));
    else reject(new Error(`the service answered ${text.slice(9, 12)} ${text.slice(head + 4, head + 300)}`));
  }

  #fail(): void {
    this.#failure ??= new Error("the service closed a connection");
    for (const { data } of this.#all) data.asked?.reject(this.#failure);
    for (const { reject } of this.#waiting.splice(this.#first)) reject(this.#failure);
  }

  close(): void {
    for (const socket of this.#all) socket.terminate();
  }
}
