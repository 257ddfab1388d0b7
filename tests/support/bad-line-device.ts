/**
 * A device on a bad line: it reads a raw socket, in gulps or not at all, and is cut at random bytes.
 */
import { connect as dial, type Socket } from "node:net";
import { createParser } from "eventsource-parser";

export class BadLineDevice {
  readonly name: string;
  /** All ids that it was given since it first listened, in the order in which they came. */
  readonly seen: string[] = [];
  readonly #random: () => number;
  readonly #channel: string;
  readonly #url: () => string;
  /** Where to resume: the last `id:` of a whole frame. */
  #position = "";
  #socket: Socket | undefined;
  ready = false;
  /** The events that it was told are withdrawn. */
  readonly told: string[] = [];
  /** The round that an event came with last. */
  readonly rounds = new Map<string, number>();
  /** Of each connection: the ids in the order in which they came. */
  readonly connections: string[][] = [];

  /** @param url of the service that it goes to next */
  constructor(url: () => string, name: string, channel: string, random: () => number) {
    this.#url = url;
    this.name = name;
    this.#channel = channel;
    this.#random = random;
  }

  /** Listens, resuming where it was, or, when it forgot, by its name. */
  connect(forget: boolean): void {
    this.cut();
    this.ready = false;
    const { hostname, port } = new URL(this.#url());
    const socket = dial(Number(port), hostname);
    const ids: string[] = [];
    this.connections.push(ids);
    const parser = createParser({
      onEvent: ({ id, event, data }) => {
        if (event === "pere.ready") this.ready = true;
        if (event === "pere.gap") throw new Error(`a gap, but nothing was lost: ${data}`);
        if (id) this.#position = id;
        if (event === "pere.withdrawn") this.told.push((JSON.parse(data) as { withdrawn: string }).withdrawn);
        if (event?.startsWith("pere.")) return;
        const own = JSON.parse(data) as { id: string; round?: number };
        if (own.round === undefined) ids.push(own.id);
        this.seen.push(own.id);
        this.rounds.set(own.id, own.round ?? 1);
      },
    });
    let text = "";
    const decoder = new TextDecoder();
    socket.on("data", (bytes: Buffer) => {
      text += decoder.decode(bytes, { stream: true });
      // The head, then chunks: "<hex>\r\n<bytes>\r\n". Text is ASCII here, so characters are bytes.
      for (;;) {
        if (!text.startsWith("HTTP")) {
          const length = /^([0-9a-f]+)\r\n/.exec(text);
          if (!length) return;
          const [from, size] = [length[0].length, Number.parseInt(length[1]!, 16)];
          if (text.length < from + size + 2) return;
          parser.feed(text.slice(from, from + size));
          text = text.slice(from + size + 2);
          if (size === 0) return void socket.destroy();
        } else {
          const end = text.indexOf("\r\n\r\n");
          if (end === -1) return;
          text = text.slice(end + 4);
        }
      }
    });
    socket.on("close", () => {
      if (this.#socket === socket) this.connect(false);
    });
    socket.on("error", () => {});
    const last = this.#position !== "" && !forget ? `Last-Event-ID: ${this.#position}\r\n` : "";
    socket.write(`GET /feed/${this.#channel}?device=${this.name} HTTP/1.1\r\nHost: localhost\r\n${last}\r\n`);
    this.#socket = socket;
  }

  /** Does something that happens to devices. */
  suffer(): void {
    const dice = this.#random();
    if (dice < 0.3) this.connect(dice < 0.1);
    else if (dice < 0.5) this.#socket?.pause();
    else this.#socket?.resume();
  }

  cut(): void {
    const socket = this.#socket;
    this.#socket = undefined;
    if (this.#random() < 0.5) socket?.resetAndDestroy();
    else socket?.destroy();
  }
  resume(): void {
    this.#socket?.resume();
  }
}
