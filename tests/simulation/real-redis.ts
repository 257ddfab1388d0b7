/**
 * The one connection to the real Redis of a simulation: batches of commands go out, and their answers come back with what was published meanwhile.
 */
import type { Socket } from "bun";

export type Value = string | number | null | Value[] | { [name: string]: Value } | Error;

/** Reads RESP3. Whatever is not whole yet is left for later. */
class Reader {
  #bytes: Buffer = Buffer.alloc(0);
  #at = 0;

  add(bytes: Buffer): void {
    this.#bytes = this.#at === this.#bytes.length ? bytes : Buffer.concat([this.#bytes.subarray(this.#at), bytes]);
    this.#at = 0;
  }

  /** The next value; undefined: it is not there yet. A push comes as `{ push }`. */
  next(): { value: Value; isPush: boolean } | undefined {
    const start = this.#at;
    const isPush = this.#bytes[start] === 0x3e;
    const value = this.#value();
    if (value === undefined) {
      this.#at = start;
      return undefined;
    }
    return { value, isPush };
  }

  #line(): string | undefined {
    const end = this.#bytes.indexOf("\r\n", this.#at);
    if (end === -1) return undefined;
    const line = this.#bytes.toString("utf8", this.#at, end);
    this.#at = end + 2;
    return line;
  }

  #value(): Value | undefined {
    const line = this.#line();
    if (line === undefined) return undefined;
    const rest = line.slice(1);
    switch (line[0]) {
      case "+":
        return rest;
      case "-":
        return new Error(rest);
      case ":":
      case ",":
        return Number(rest);
      case "_":
        return null;
      case "#":
        return rest === "t" ? 1 : 0;
      case "$":
      case "=": {
        const length = Number(rest);
        if (length === -1) return null;
        if (this.#bytes.length < this.#at + length + 2) return undefined;
        const text = this.#bytes.toString(this.isBinary ? "latin1" : "utf8", this.#at, this.#at + length);
        this.#at += length + 2;
        return text;
      }
      case "%": {
        const found: Record<string, Value> = {};
        for (let n = 0; n < Number(rest); n++) {
          const name = this.#value();
          const value = this.#value();
          if (name === undefined || value === undefined) return undefined;
          found[String(name)] = value;
        }
        return found;
      }
      default: {
        if (rest === "-1") return null;
        const found: Value[] = [];
        for (let n = 0; n < Number(rest); n++) {
          const value = this.#value();
          if (value === undefined) return undefined;
          found.push(value);
        }
        return found;
      }
    }
  }
  /** Dumps are bytes, everything else is text. */
  isBinary = false;
}

export interface Message {
  readonly channel: string;
  readonly text: string;
}

/** What a batch of commands came to: an answer to each, and what was published meanwhile. */
export type Done = (answers: readonly Value[], messages: readonly Message[]) => void;

interface Batch {
  left: number;
  readonly answers: Value[];
  readonly messages: Message[];
  readonly done: Done;
}

/** The one real connection. It hears all that is published, in its place between the answers. */
export class RealRedis {
  readonly #socket: Socket;
  readonly #reader: Reader;
  readonly #batches: Batch[];
  /** What the socket has not taken yet. */
  #unsent: Buffer = Buffer.alloc(0);

  private constructor(socket: Socket, reader: Reader, batches: Batch[]) {
    this.#socket = socket;
    this.#reader = reader;
    this.#batches = batches;
  }

  static async connect(path: string): Promise<RealRedis> {
    const reader = new Reader();
    const batches: Batch[] = [];
    let redis: RealRedis | undefined;
    const socket = await Bun.connect({
      unix: path,
      socket: {
        drain() {
          if (redis) redis.#write();
        },
        data(_, bytes) {
          reader.add(bytes);
          for (let found = reader.next(); found; found = reader.next()) {
            const batch = batches[0]!;
            if (found.isPush) {
              const [kind, , channel, text] = found.value as string[];
              if (kind === "pmessage") batch.messages.push({ channel: channel!, text: text! });
              else if (--batch.left === 0) batches.shift()!.done(batch.answers, batch.messages);
              continue;
            }
            batch.answers.push(found.value);
            if (--batch.left > 0) continue;
            batches.shift();
            batch.answers.pop(); // Of the PING behind the batch: all that it published was heard before.
            batch.done(batch.answers, batch.messages);
          }
        },
      },
    });
    redis = new RealRedis(socket, reader, batches);
    await redis.ask(["HELLO", "3"]);
    await new Promise<void>((resolve) => {
      batches.push({ left: 1, answers: [], messages: [], done: () => resolve() });
      socket.write("*2\r\n$10\r\nPSUBSCRIBE\r\n$1\r\n*\r\n");
    });
    return redis;
  }

  batch(commands: readonly (readonly string[])[], done: Done): void {
    this.#batches.push({ left: commands.length + 1, answers: [], messages: [], done });
    const encoding = this.#reader.isBinary ? "latin1" : "utf8";
    const texts = [...commands, ["PING"]].map((command) => {
      const parts = command.map((part) => `$${Buffer.byteLength(part, encoding)}\r\n${part}\r\n`);
      return `*${command.length}\r\n${parts.join("")}`;
    });
    this.#unsent = Buffer.concat([this.#unsent, Buffer.from(texts.join(""), encoding)]);
    this.#write();
  }

  /** Writes as much as the socket takes; it says when it takes more. The timers of the process are those of the simulation. */
  #write(): void {
    if (this.#unsent.length > 0) this.#unsent = this.#unsent.subarray(Math.max(0, this.#socket.write(this.#unsent)));
  }

  /** In the real event loop, outside of the simulated time. */
  async ask(...commands: (readonly string[])[]): Promise<readonly Value[]> {
    return new Promise((resolve) => this.batch(commands, (answers) => resolve(answers)));
  }

  end(): void {
    this.#socket.end();
  }

  /** All that is kept, as it can be put back. */
  dump(then: (kept: readonly (readonly [string, string])[]) => void): void {
    this.batch([["KEYS", "*"]], ([keys]) => {
      const names = (keys as string[]).sort();
      this.#reader.isBinary = true;
      this.batch(
        names.map((name) => ["DUMP", name]),
        (dumps) => {
          this.#reader.isBinary = false;
          then(names.map((name, n) => [name, dumps[n] as string]));
        },
      );
    });
  }

  restore(kept: readonly (readonly [string, string])[], then: () => void): void {
    this.#reader.isBinary = true;
    this.batch([["FLUSHALL"], ...kept.map(([name, dump]) => ["RESTORE", name, "0", dump])], () => then());
    this.#reader.isBinary = false;
  }
}
