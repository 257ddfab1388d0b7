/**
 * What the tests of `clients/pere.sh` share: the client as a device, by any shell, and a service behind a proxy.
 */
import { afterEach, test } from "bun:test";
import { join } from "node:path";
import { BadProxy } from "./bad-proxy.ts";
import { ask, start, temporary, until } from "./harness.ts";

export const CLIENT = join(import.meta.dir, "..", "..", "clients", "pere.sh");
export const isSkipped = Bun.which("curl") === null && process.env.CI !== "true";
/** The shells that are installed here. */
export const SHELLS = [["dash"], ["bash"], ["busybox", "sh"]].filter(([name]) => Bun.which(name!) !== null);

export const cleanup: (() => unknown)[] = [];
afterEach(async () => {
  for (const undo of cleanup.splice(0).reverse()) await undo();
});

/** A test that needs curl. */
export const shellTest = (name: string, run: () => Promise<void>): void =>
  test.skipIf(isSkipped)(isSkipped ? `${name} (skipped: no curl is installed)` : name, run, 180_000);

/** The client, and what it has said on its error output so far. */
export class Device {
  readonly child: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly state: string;
  complained = "";
  readonly #read: Promise<void>;

  /** It has a group of processes of its own. */
  constructor(args: readonly string[], env: Record<string, string> = {}, shell: readonly string[] = ["sh"]) {
    this.state = env.PERE_STATE ?? join(temporary(), "state");
    const child = (this.child = Bun.spawn([...shell, CLIENT, ...args], {
      env: { PATH: process.env.PATH, PERE_STATE: this.state, ...env },
      detached: true,
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    }));
    this.#read = (async () => {
      for await (const text of child.stderr.pipeThrough(new TextDecoderStream() as never)) this.complained += text;
    })();
    cleanup.push(async () => {
      this.child.kill("SIGTERM");
      await this.child.exited;
    });
  }

  complains = (pattern: RegExp): Promise<unknown> =>
    until(
      () => pattern.test(this.complained),
      () => `${pattern}: ${this.complained}`,
      180_000,
    );

  async ended(): Promise<number> {
    const status = await this.child.exited;
    await this.#read;
    return status;
  }
}

/** A service and a proxy before it, which end with the test. The device `till-7` is enrolled on `orders`. */
export async function service(): Promise<{ url: string; proxy: BadProxy }> {
  const pere = await start({ random: () => 0 });
  cleanup.push(() => pere.stop());
  const proxy = await BadProxy.to(pere.url);
  cleanup.push(() => proxy.stop());
  await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT" });
  return { url: pere.url, proxy };
}

/** The receipt of the only device of an event. */
export const rowOf = async (
  url: string,
  id: string,
  channel = "orders",
): Promise<{ status: string; detail: unknown }> =>
  (await ask(`${url}/events/${channel}/${id}/receipts`)).body.receipts[0];
export const isDone = (url: string, id: string): Promise<unknown> =>
  until(async () => (await rowOf(url, id)).status === "done", "done");
