/**
 * A network that can break: a TCP proxy on 127.0.0.1 that passes bytes on, passes them late, swallows them, or cuts its lines.
 *
 * Where it swallows, both ends believe that they are connected: lines are taken and stay open, and nobody learns that the other end has gone. A line
 * that lost a byte never carries one again, as TCP would have it: a stream has no holes. It stays open and silent, as behind a router that
 * has forgotten it; only new lines pass.
 */
import { createServer, connect, type Server, type Socket } from "node:net";
import { lastingPort } from "./ports.ts";

/** What is lost: nothing, what comes back (what was asked arrives, and nobody learns that it did), or everything. */
type Loss = "nothing" | "answers" | "everything";

/** A connection from the near end, and its continuation to the far end; null: it never got there. */
interface Line {
  readonly near: Socket;
  readonly far: Socket | null;
  hasLost: boolean;
}

export class Proxy {
  readonly port: number;
  readonly #target: number;
  readonly #lines = new Set<Line>();
  #server: Server;
  #loss: Loss = "nothing";
  #delayMs = 0;

  private constructor(server: Server, port: number, target: number) {
    this.#server = server;
    this.#target = target;
    this.port = port;
    server.on("connection", this.#take);
  }

  /** A proxy for what listens at `target`, on a port that it can come back to. */
  static async to(target: number): Promise<Proxy> {
    const port = lastingPort();
    return new Proxy(await listenAt(port), port, target);
  }

  /** Connections that are open. */
  get lines(): number {
    return this.#lines.size;
  }

  /** Carries everything from now on, on new lines and on those that have lost nothing. */
  pass(): void {
    this.#loss = "nothing";
    this.#delayMs = 0;
  }

  /** Loses bytes from now on. */
  swallow(loss: Exclude<Loss, "nothing"> = "everything"): void {
    this.#loss = loss;
  }

  /** Carries everything so many milliseconds late, in each direction. */
  delay(ms: number): void {
    this.#delayMs = ms;
  }

  /** Ends all lines, and says how many there were. New ones are taken. */
  cut(): number {
    const lines = [...this.#lines];
    this.#lines.clear();
    for (const { near, far } of lines) {
      near.destroy();
      far?.destroy();
    }
    return lines.length;
  }

  /** Ends all lines and takes no new ones: connections are refused. */
  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.cut();
    await closed;
  }

  /** Listens again, on the same port. */
  async start(): Promise<void> {
    this.#server = await listenAt(this.port);
    this.#server.on("connection", this.#take);
  }

  readonly #take = (near: Socket): void => {
    const isLost = this.#loss === "everything";
    const far = isLost ? null : connect(this.#target, "127.0.0.1");
    const line: Line = { near, far, hasLost: isLost };
    this.#lines.add(line);
    this.#carry(line, near, far, ["everything"]);
    if (far) this.#carry(line, far, near, ["everything", "answers"]);
  };

  /** @param losses where bytes of this direction are lost */
  #carry(line: Line, from: Socket, to: Socket | null, losses: readonly Loss[]): void {
    let carried = Promise.resolve();
    /** One after the other, also when the delay becomes shorter. */
    const later = (work: () => void): void => {
      const due = performance.now() + this.#delayMs;
      carried = carried.then(async () => {
        const left = due - performance.now();
        if (left > 0) await Bun.sleep(left);
        work();
      });
    };
    from.setNoDelay(true);
    from.on("error", () => {});
    from.on("data", (bytes: Buffer) => {
      const isLost = losses.includes(this.#loss);
      if (isLost) line.hasLost = true;
      else if (!line.hasLost || this.#loss === "answers") later(() => to?.writable && to.write(bytes));
    });
    from.on("close", () => {
      // Where bytes get lost, so does the news that it ended.
      if (line.hasLost || losses.includes(this.#loss)) return;
      later(() => {
        to?.destroy();
        this.#lines.delete(line);
      });
    });
  }
}

async function listenAt(port: number): Promise<Server> {
  const server = createServer();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(port, "127.0.0.1", resolve);
  await promise;
  return server;
}
