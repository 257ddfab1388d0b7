/**
 * `bun run index.ts demo`, as somebody who tries PERE runs it: in a process of its own, with no settings.
 */
import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { BROKEN, FLEET, ORDERS, SILENT } from "../clients/demo.ts";
import { command } from "./support/commands.ts";
import { ask, temporary, until } from "./support/harness.ts";

const INDEX = join(import.meta.dir, "..", "index.ts");
const LIMIT_MS = 120_000;

interface Demo extends AsyncDisposable {
  readonly url: string;
  /** All that it has printed on standard output. */
  said(): string;
  /** Ends it. @returns the exit code, and what it printed as an error */
  end(signal: "SIGINT" | "SIGTERM"): Promise<readonly [code: number, errors: string]>;
}

async function demo(args: readonly string[], cwd = temporary(), env: Record<string, string> = {}): Promise<Demo> {
  const child = Bun.spawn([process.execPath, "run", INDEX, "demo", ...args], {
    cwd,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  let said = "";
  void child.stdout.pipeTo(new WritableStream({ write: (chunk) => void (said += new TextDecoder().decode(chunk)) }));
  const errors = new Response(child.stderr).text();
  const isStarted = (): string | undefined => /^PERE listening on (\S+)\n/.exec(said)?.[1];
  return {
    url: await until(isStarted, () => `the demo to start; it said ${said}`),
    said: () => said,
    async end(signal) {
      child.kill(signal);
      return [await child.exited, await errors];
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

type Events = readonly { id: string; data: unknown; to?: string[]; receipts: Record<string, number> }[];
const eventsOf = async (url: string, headers = {}): Promise<Events> =>
  ((await ask(`${url}/events/${ORDERS}`, { headers })).body.events ?? []) as Events;
/** Waits until so many orders were pushed. */
const orders = (url: string, count: number, headers = {}): Promise<Events> =>
  until(async () => {
    const events = await eventsOf(url, headers);
    return events.length >= count && events;
  }, `${count} orders`);

test(
  "the demo fills the board, two tills of 42 devices are in trouble, and Ctrl-C ends it without a trace",
  async () => {
    const folder = temporary();
    // What is set for a real service is not used.
    const env = {
      PERE_DB: "real.db",
      PERE_JWT_SECRET: "short",
      PERE_LOG: "wrong",
      HOST: "192.0.2.1",
      HTTP_PROXY: "http://127.0.0.1:1",
    };
    await using shown = await demo(["--port", "0"], folder, env);
    const { url } = shown;
    expect(url).toStartWith("http://127.0.0.1:");
    await orders(url, 10);
    const enrolled = (await ask(`${url}/devices/${ORDERS}`)).body.devices as { device: string; connected: boolean }[];
    expect(enrolled.map(({ device }) => device).toSorted()).toEqual([...FLEET].toSorted());
    expect(FLEET).toHaveLength(42);
    expect(enrolled.find(({ device }) => device === SILENT)!.connected).toBe(false);
    const [first] = (await eventsOf(url)) as [Events[number]];
    const rows = async (status: string): Promise<Record<string, unknown>[]> =>
      (await ask(`${url}/events/${ORDERS}/${first.id}/receipts?status=${status}`)).body.receipts as [];
    await until(async () => (await rows("missing")).some(({ device }) => device === SILENT), "the silent till to miss");
    await until(async () => (await rows("done")).length >= 38, "the others to be done");
    const failures = await until(async () => {
      for (const { id, receipts } of await eventsOf(url))
        if (receipts.failed! > 0) return (await ask(`${url}/events/${ORDERS}/${id}/receipts?status=failed`)).body;
      return null;
    }, "a failure");
    expect(failures.receipts).toMatchObject([{ device: BROKEN, detail: expect.stringMatching(/paper|cover|printer/) }]);
    // Nobody else needs attention, except the truck when it is late.
    const { devices } = (await ask(`${url}/attention`)).body as { devices: { device: string }[] };
    const inTrouble = new Set(devices.map(({ device }) => device).filter((device) => !device.startsWith("truck")));
    expect([...inTrouble].toSorted()).toEqual([SILENT, BROKEN]);
    expect(shown.said()).toContain(`  The console, ${url}/ : ${BROKEN} fails, ${SILENT} never answers.`);
    expect(shown.said()).toContain(`${url}/weblistener.html?channel=${ORDERS}&device=${SILENT}`);
    expect(await shown.end("SIGINT")).toEqual([0, ""]);
    expect(readdirSync(folder)).toEqual([]);
  },
  LIMIT_MS,
);

test(
  "it takes a free port if the default one is taken, and the same seed pushes the same orders",
  async () => {
    await using first = await demo(["--seed", "7"]);
    await using second = await demo(["--seed", "7"]);
    await using third = await demo(["--seed", "8"]);
    expect(new Set([first.url, second.url, third.url]).size).toBe(3);
    const [one, two, other] = await Promise.all(
      [first, second, third].map(async ({ url }) =>
        (await orders(url, 5)).slice(0, 5).map(({ data, to }) => JSON.stringify([data, to])),
      ),
    );
    expect(two).toEqual(one!);
    expect(other).not.toEqual(one!);
    for (const { end } of [first, second, third]) expect(await end("SIGTERM")).toEqual([0, ""]);
  },
  LIMIT_MS,
);

test(
  "on all addresses it demands tokens, gives its devices one, and prints a link with one",
  async () => {
    await using shown = await demo(["--host", "0.0.0.0", "--port", "0"]);
    const local = shown.url.replace("0.0.0.0", "127.0.0.1");
    expect((await ask(`${local}/channels`)).status).toBe(401);
    const token = await until(() => /The console, \S+\?token=(\S+)/.exec(shown.said())?.[1], "the link");
    const headers = { Authorization: `Bearer ${token}` };
    const events = await orders(local, 1, headers);
    await until(async () => (await eventsOf(local, headers))[0]!.receipts.done! > 30, "receipts");
    expect(events[0]!.receipts).toBeDefined();
    expect(await shown.end("SIGTERM")).toEqual([0, ""]);
  },
  LIMIT_MS,
);

test("wrong arguments are named in one line", async () => {
  const usage = "usage: bun run index.ts demo [--host ADDRESS] [--port PORT] [--seed N]";
  for (const [args, why] of [
    [["--what"], usage],
    [["orders"], usage],
    [["--seed", "x"], '--seed must be a whole number from 0 to 999999999, not "x"'],
    [["--port", "x"], 'PORT must be a whole number from 0 to 65535, not "x"'],
  ] as const)
    expect(await command(["demo", ...args])).toEqual({
      code: 1,
      stdout: "",
      stderr: `PERE can't start the demo: ${why}\n`,
    });
  await using taken = await demo(["--port", "0"]);
  const { port } = new URL(taken.url);
  expect((await command(["demo", "--port", port])).stderr).toBe(
    `PERE can't start the demo: 127.0.0.1, port ${port}: another program listens there; choose another port with --port\n`,
  );
});
