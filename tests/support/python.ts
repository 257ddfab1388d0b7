/**
 * What the tests of `clients/python/pere.py` share: a Python that runs, and a service behind a proxy.
 */
import { afterEach, test } from "bun:test";
import { join } from "node:path";
import { BadProxy } from "./bad-proxy.ts";
import { ask, start, until } from "./harness.ts";

const CLIENTS = join(import.meta.dir, "..", "..", "clients", "python");
const python = Bun.which("python3");
const isSkipped = python === null && process.env.CI !== "true";

export const cleanup: (() => unknown)[] = [];
afterEach(async () => {
  for (const undo of cleanup.splice(0).reverse()) await undo();
});

/** A test that needs python3. */
export const pythonTest = (name: string, run: () => Promise<void>): void =>
  test.skipIf(isSkipped)(isSkipped ? `${name} (skipped: no python3 is installed)` : name, run, 180_000);

/** A Python that runs, and what it has said so far. */
export class Python {
  readonly child: Bun.Subprocess<"ignore" | Blob, "pipe", "pipe">;
  said = "";
  complained = "";
  readonly #read: Promise<unknown>;

  /**
   * It has a group of processes of its own.
   * @param args the program's arguments, or `-c`, a script and its own
   * @param by a shell's command that runs it, as `"$@"`
   */
  constructor(args: readonly string[], env: Record<string, string> = {}, input?: string, by?: string) {
    const isScript = args[0] === "-c";
    const words = [python ?? "python3", "-B", ...(isScript ? [] : [join(CLIENTS, "pere.py")]), ...args];
    this.child = Bun.spawn(by === undefined ? words : ["sh", "-c", by, "sh", ...words], {
      detached: true,
      env: { PATH: process.env.PATH, PYTHONPATH: CLIENTS, PYTHONUNBUFFERED: "1", ...env },
      stdin: input === undefined ? "ignore" : new Blob([input]),
      stdout: "pipe",
      stderr: "pipe",
    });
    const read = async (stream: ReadableStream<Uint8Array>, take: (text: string) => void): Promise<void> => {
      const decoder = new TextDecoder();
      for await (const chunk of stream) take(decoder.decode(chunk, { stream: true }));
    };
    this.#read = Promise.all([
      read(this.child.stdout, (text) => (this.said += text)),
      read(this.child.stderr, (text) => (this.complained += text)),
    ]);
    cleanup.push(async () => {
      // A python3 that is a script of pyenv's starts the one that works.
      try {
        process.kill(-this.child.pid, "SIGKILL");
      } catch {
        // All of them have ended.
      }
      await this.child.exited;
    });
  }

  says = (pattern: RegExp): Promise<true> =>
    until(
      () => pattern.test(this.said),
      () => `${pattern}; said: ${this.said}\n${this.complained}`,
      180_000,
    );

  /** Waits for its end, and gives its status. */
  async ended(): Promise<number> {
    const status = await this.child.exited;
    await this.#read;
    return status;
  }
}

/** A service and a proxy before it, which end with the test. */
export async function service(): Promise<{ url: string; proxy: BadProxy }> {
  const pere = await start({ random: () => 0 });
  cleanup.push(() => pere.stop());
  const proxy = await BadProxy.to(pere.url);
  cleanup.push(() => proxy.stop());
  return { url: pere.url, proxy };
}

export const enrol = (url: string, device: string) => ask(`${url}/devices/orders/${device}`, { method: "PUT" });
export const rowsOf = async (url: string, id: string): Promise<{ device: string; status: string; detail: unknown }[]> =>
  (await ask(`${url}/events/orders/${id}/receipts`)).body.receipts;
/** The receipt of the only device of an event. */
export const rowOf = async (url: string, id: string) => (await rowsOf(url, id))[0]!;
export const comesTo = (url: string, id: string, status: string): Promise<unknown> =>
  until(async () => (await rowOf(url, id)).status === status, status);

/** The program as the device `till-7`, with a command for each event. */
export const listen = (url: string, command: string, ...more: string[]): Python =>
  new Python(["listen", url, "orders", "--device", "till-7", "--exec", command, ...more]);
