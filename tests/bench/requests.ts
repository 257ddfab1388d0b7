/**
 * The load generator's keep-alive connections that ask, as thin as its feeds: one write a request, and of an answer no more is read than
 * where it ends and whether it is good. PERE and most peers are asked over HTTP; a peer with another protocol brings it along.
 */
import { HOST } from "./service.ts";

/** What is asked, as PERE would be. */
export interface Ask {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  readonly path: string;
  readonly body: string;
  readonly type: string;
  /** Each with its line break. */
  readonly headers: string;
}

/** How a server is asked on a connection that has one question at a time. All texts are ASCII. */
export interface Protocol {
  /** What is sent first, on the connection with this number. */
  readonly hello?: (connection: number) => string;
  readonly request: (ask: Ask, port: number, connection: number) => string;
  /** The answer in what came since the question; null while it is not whole. */
  readonly answer: (text: string) => Answer | null;
}

export interface Answer {
  readonly isGood: boolean;
  readonly text: string;
}

export const HTTP: Protocol = {
  request: ({ method, path, body, type, headers }, port) =>
    `${method} ${path} HTTP/1.1\r\nHost: ${HOST}:${port}\r\n${headers}Content-Type: ${type}\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
  answer(text) {
    const head = text.indexOf("\r\n\r\n");
    const length = head === -1 ? null : /\r\ncontent-length: (\d+)/i.exec(text);
    if (!length || text.length < head + 4 + Number(length[1])) return null;
    if (text.startsWith("HTTP/1.1 2")) return { isGood: true, text: text.slice(head + 4) };
    return { isGood: false, text: `${text.slice(9, 12)} ${text.slice(head + 4, head + 300)}` };
  },
};

interface Exchange {
  readonly ask: Ask;
  readonly resolve: (response: string) => void;
  readonly reject: (error: Error) => void;
}

class Line {
  readonly number: number;
  /** What is being asked on it now. */
  asked: Exchange | undefined;
  answer = "";
  /** What the kernel has not taken yet. */
  unsent = "";
  constructor(number: number) {
    this.number = number;
  }
}

/** Keep-alive connections with one request at a time on each; what finds none free waits for its turn. */
export class Requests {
  readonly #port: number;
  readonly #protocol: Protocol;
  readonly #free: Bun.Socket<Line>[] = [];
  readonly #waiting: Exchange[] = [];
  readonly #all: Bun.Socket<Line>[] = [];
  #first = 0;
  #failure: Error | undefined;

  private constructor(port: number, protocol: Protocol) {
    this.#port = port;
    this.#protocol = protocol;
  }

  static async open(port: number, connections: number, protocol: Protocol = HTTP): Promise<Requests> {
    const requests = new Requests(port, protocol);
    for (let index = 0; index < connections; index++) {
      const socket = await Bun.connect<Line>({
        hostname: HOST,
        port,
        data: new Line(index),
        socket: {
          data: (line, bytes) => requests.#data(line, bytes),
          drain: (line) => requests.#send(line, line.data.unsent),
          close: () => requests.#fail(),
        },
      });
      if (protocol.hello) requests.#send(socket, protocol.hello(index));
      requests.#all.push(socket);
      requests.#free.push(socket);
    }
    return requests;
  }

  /** Asks, and gives the body of the answer. @throws Error unless the answer is good; of HTTP: the status is 2xx */
  ask(
    method: Ask["method"],
    path: string,
    body = "",
    type = "application/json",
    /** Each with its line break. */
    headers = "",
  ): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.#failure) return reject(this.#failure);
      const exchange = { ask: { method, path, body, type, headers }, resolve, reject };
      // In turn, so that none is quiet for so long that the service closes it.
      const socket = this.#free.shift();
      if (socket) this.#put(socket, exchange);
      else this.#waiting.push(exchange);
    });
  }

  #put(socket: Bun.Socket<Line>, exchange: Exchange): void {
    socket.data.asked = exchange;
    // After the rest of a hello, if the kernel has not taken all of it.
    this.#send(socket, socket.data.unsent + this.#protocol.request(exchange.ask, this.#port, socket.data.number));
  }

  /** Texts are ASCII: a character is a byte. */
  #send(socket: Bun.Socket<Line>, text: string): void {
    const sent = text === "" ? 0 : Math.max(0, socket.write(text));
    socket.data.unsent = text.slice(sent);
  }

  #data(socket: Bun.Socket<Line>, bytes: Buffer): void {
    const line = socket.data;
    line.answer += bytes.toString("latin1");
    // What a server says before it is asked is no answer.
    const answer = line.asked && this.#protocol.answer(line.answer);
    if (!answer) return;
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
    if (answer.isGood) resolve(answer.text);
    else reject(new Error(`the service answered ${answer.text}`));
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
