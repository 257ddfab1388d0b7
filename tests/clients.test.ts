/**
 * The two example programs as people run them: processes of their own, against a service, through a restart of it.
 */
import { afterEach, expect, test } from "bun:test";
import { Terminal } from "@xterm/headless";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { ask, give, push, SECRET, spawn, start, startWith, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

const CLIENTS = join(import.meta.dir, "..", "clients");
/** A test here waits for several things, each with the harness's patience. */
const LIMIT_MS = 60_000;

/** A client that runs, and what it has said so far. */
class Client {
  readonly child: Bun.Subprocess<"ignore" | Blob, "pipe", "pipe">;
  said = "";

  /** @param input what is piped into it; without, its input is `/dev/null`, as under a supervisor */
  constructor(name: string, args: readonly string[], input?: string, token?: string) {
    this.child = Bun.spawn([process.execPath, join(CLIENTS, `${name}.ts`), ...args], {
      env: { PATH: process.env.PATH, ...(token === undefined ? {} : { PERE_TOKEN: token }) },
      stdin: input === undefined ? "ignore" : new Blob([input]),
      stdout: "pipe",
      stderr: "pipe",
    });
    for (const stream of [this.child.stdout, this.child.stderr]) void this.#read(stream);
    running.push(this);
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.said += decoder.decode(chunk, { stream: true });
  }

  /** Waits until it has said something. */
  says = (pattern: RegExp): Promise<true> =>
    until(
      () => pattern.test(this.said),
      () => `${pattern}; said: ${this.said}`,
    );

  /** How often it said something. */
  times = (pattern: RegExp): number => this.said.match(pattern)?.length ?? 0;
}

const running: Client[] = [];
afterEach(async () => {
  for (const { child } of running) child.kill("SIGKILL");
  await Promise.all(running.splice(0).map(({ child }) => child.exited));
});

/** What the service knows of every event, oldest first. */
async function tallies(url: string): Promise<{ id: string; receipts: Record<string, number>; complete: boolean }[]> {
  return (await ask(`${url}/events/orders`)).body.events;
}

test(
  "the publisher's lines reach two host listeners; what became of each is in the service and on his screen",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const listeners = ["till-1", "till-2"].map((device) => new Client("hostlistener", [pere.url, "orders", device]));
    for (const listener of listeners) await listener.says(/connected by sse/);

    // No line break after the last line: it counts all the same.
    const publisher = new Client("publisher", [pere.url, "orders"], '{"table": 7, "fail":true}\n\ntwo "coffees"');
    await publisher.says(/2 pushed, 2 complete/);
    expect(await publisher.child.exited).toBe(0);

    const events = await tallies(pere.url);
    expect(events.map(({ receipts, complete }) => [receipts.failed, receipts.done, complete])).toEqual([
      [2, 0, true],
      [0, 2, true],
    ]);
    const [first, second] = events.map(({ id }) => id);
    expect(publisher.said).toContain(`${first}: 2 of 2 answered: 2 failed, complete\n`);
    expect(publisher.said).toContain(`${second}: 2 of 2 answered: 2 done, complete\n`);
    const rows = await ask(`${pere.url}/events/orders/${first}/receipts`);
    expect(rows.body.receipts).toMatchObject(
      ["till-1", "till-2"].map((device) => ({ device, status: "failed", detail: "the event asked for a failure" })),
    );
    // What went out is the line itself where that was JSON, else the line as a JSON string.
    for (const { said } of listeners) {
      expect(said).toContain(`v ${first} {"table":7,"fail":true}\n`);
      expect(said).toContain(`v ${second} "two \\"coffees\\""\n`);
      expect(said).toContain(`^ ${first} received\n`);
    }
  },
  LIMIT_MS,
);

test(
  "the publisher alone pushes an event a second, and ends cleanly when it is interrupted",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const publisher = new Client("publisher", [pere.url, "orders"]);
    await publisher.says(/(addressed to nobody[^]*){3}/);
    // What the service warns of, once.
    expect(publisher.said.match(/^publisher: .*$/gm)).toEqual([
      "publisher: No device is enrolled in channel orders, so the event went to nobody. The channel had no events before: check its name.",
      "publisher: No device is enrolled in channel orders, so the event went to nobody.",
    ]);
    publisher.child.kill("SIGINT");
    expect(await publisher.child.exited).toBe(0);
    expect(publisher.said).toMatch(/\n(\d+) pushed, \1 complete\n$/);
  },
  LIMIT_MS,
);

test(
  "the publisher gives each event the deadline and the reminders that he was told, and waits for one before he pushes the next",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
    const options = ["--wait=60", "--deadline", "600", "--remind=60"];
    const publisher = new Client("publisher", [...options, pere.url, "orders"], "1\n2\n");
    for (const count of [1, 2]) {
      await until(async () => (await tallies(pere.url)).length === count, `event ${count}`);
      // He follows the receipts, and his push waits for them.
      await until(() => pere.engine.held.live === 2, "a push that waits");
      const events = await tallies(pere.url);
      expect(events).toHaveLength(count);
      const { id, at, deadline } = events.at(-1) as (typeof events)[number] & { at: string; deadline: string };
      expect(events.at(-1)).toMatchObject({ remind: 60, complete: false });
      expect(Date.parse(deadline) - Date.parse(at)).toBe(600_000);
      await give(pere.url, "orders", id, "till-1", "done");
      await publisher.says(new RegExp(`^${id}: 1 of 1 answered: 1 done, complete$`, "m"));
    }
    await publisher.says(/2 pushed, 2 complete/);
    expect(await publisher.child.exited).toBe(0);

    const wrong = new Client("publisher", ["--wait=soon", pere.url, "orders"], "1\n");
    expect(await wrong.child.exited).toBe(2);
    await wrong.says(/--wait must be a number of seconds, not "soon"/);
  },
  LIMIT_MS,
);

test(
  "on a terminal the publisher keeps a table of the last ten events, each with a bar; older ones scroll away as they were",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const device of ["till-1", "till-2"]) await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
    // A real terminal's program draws what came.
    const screen = new Terminal({ cols: 124, rows: 40, allowProposedApi: true });
    const program = `seq 12 | '${process.execPath}' '${join(CLIENTS, "publisher.ts")}' ${pere.url} orders`;
    const child = Bun.spawn(["sh", "-c", program], {
      env: { PATH: process.env.PATH, TERM: "xterm-256color" },
      terminal: { cols: 124, rows: 40, data: (_, bytes) => screen.write(bytes) },
    });
    cleanup.defer(() => child.terminal?.close());
    const lines = (): string[] =>
      Array.from({ length: 40 }, (_, row) => screen.buffer.active.getLine(row)?.translateToString(true) ?? "");
    const shows = (pattern: RegExp): Promise<true> =>
      until(
        () => pattern.test(lines().join("\n")),
        () => `${pattern}; the screen shows:\n${lines().join("\n")}`,
      );
    await until(async () => (await tallies(pere.url)).length === 12, "twelve events");
    const ids = (await tallies(pere.url)).map(({ id }) => id);
    await shows(
      new RegExp(`^${ids[0]} .*\n${ids[1]} .*\nevent .*\n${ids[2]} [^]*\n${ids[11]} +░{24} +0/2(?: +0){7} *\n+$`),
    );
    await give(pere.url, "orders", ids[11]!, "till-1", "done");
    await give(pere.url, "orders", ids[11]!, "till-2", "working");
    await shows(new RegExp(`^${ids[11]} +█{24} +2/2 +0 +1 +0 +1 +0 +0 +0 *$`, "m"));
    await give(pere.url, "orders", ids[10]!, "till-1", "failed");
    await shows(new RegExp(`^${ids[10]} +█{12}░{12} +1/2 +0 +0 +0 +0 +1 +0 +0 *$`, "m"));
    for (const id of ids) for (const device of ["till-1", "till-2"]) await give(pere.url, "orders", id, device, "done");
    await shows(new RegExp(`^${ids[11]} +█{24} +2/2 +0 +0 +0 +2 +0 +0 +0 ✓\n12 pushed, 12 complete$`, "m"));
    expect(await child.exited).toBe(0);
    expect(lines().filter((line) => line.startsWith("event"))).toHaveLength(1);
  },
  LIMIT_MS,
);

test(
  "with --json both print an object a line",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const listener = new Client("hostlistener", ["--json", pere.url, "orders", "till-1"]);
    await listener.says(/"state":"connected"/);
    const publisher = new Client("publisher", ["--json", pere.url, "orders"], '{"fail": true}');
    expect(await publisher.child.exited).toBe(0);
    await until(() => listener.times(/^{"receipt"/gm) === 2);
    listener.child.kill("SIGINT");
    expect(await listener.child.exited).toBe(0);
    const objects = ({ said }: Client) =>
      said
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Record<string, any>);
    const kinds = (client: Client) => objects(client).map((object) => Object.keys(object)[0]);
    // A receipt can be quicker than the answer to the push.
    expect(kinds(publisher).sort()).toEqual(["complete", "end", "pushed", "receipt", "receipt"]);
    expect(objects(publisher).at(-1)).toEqual({ end: { pushed: 1, complete: 1 } });
    expect(kinds(listener).filter((kind) => kind !== "status")).toEqual(["event", "receipt", "receipt", "end"]);
    const failed = objects(publisher).find(({ receipt }) => receipt?.status === "failed");
    expect(failed?.receipt).toMatchObject({ device: "till-1", detail: "the event asked for a failure" });
  },
  LIMIT_MS,
);

test(
  "a listener with --state that is killed gives its receipt when it is started again, and works on nothing twice",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    let pere = cleanup.adopt(await start(), (service) => service.stop());
    const state = join(temporary(), "till.json");
    const first = new Client("hostlistener", [`--state=${state}`, pere.url, "orders", "till-1"]);
    await first.says(/connected by sse/);
    const id = await push(pere.url, "orders", 1);
    await until(async () => (await Bun.file(state).exists()) && (await Bun.file(state).text()).includes(id));
    await first.says(new RegExp(`^\\^ ${id} done$`, "m"));
    first.child.kill("SIGKILL");
    await first.child.exited;
    const again = new Client("hostlistener", [`--state=${state}`, pere.url, "orders", "till-1"]);
    await again.says(/connected by sse/);
    const next = await push(pere.url, "orders", 2);
    await again.says(new RegExp(`^\\^ ${next} done$`, "m"));
    expect(again.said).not.toContain(`v ${id}`);
  },
  LIMIT_MS,
);

test(
  "a client that is refused for good says why and ends",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    for (const name of ["hostlistener", "publisher"]) {
      const client = new Client(name, [pere.url, "no channel"]);
      expect(await client.child.exited).toBe(1);
      await client.says(/status 400/);
    }
  },
  LIMIT_MS,
);

test(
  "with PERE_TOKEN they work where a token is asked for, the listener as the token's device; without it, or with a weak one, they end",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const token = (sub: string, rights: object): Promise<string> =>
      issueToken({ secret: SECRET }, { sub, push: [], feed: [], days: 1, ...rights });
    const [till, office] = [await token("till-7", { feed: ["orders"] }), await token("office", { push: ["orders"] })];
    const listener = new Client("hostlistener", [pere.url, "orders", "somebody"], undefined, till);
    await listener.says(/connected by sse as till-7/);
    const publisher = new Client("publisher", [pere.url, "orders"], "1\n", office);
    await publisher.says(/1 of 1 answered: 1 done, complete\n1 pushed, 1 complete/);
    expect(await publisher.child.exited).toBe(0);
    expect(listener.said).not.toContain("rejected");

    for (const name of ["hostlistener", "publisher"])
      for (const [without, status] of [
        [undefined, 401],
        ["x", 401],
        [name === "publisher" ? till : office, 403],
      ] as const) {
        const client = new Client(name, [pere.url, "orders"], "1\n", without);
        expect(await client.child.exited).toBe(1);
        await client.says(new RegExp(`status ${status}`));
        if (without) expect(client.said).not.toContain(without.slice(-20) + "\n");
      }
  },
  LIMIT_MS,
);

for (const signal of ["SIGKILL", "SIGTERM"] as const)
  test(
    `a service that ends by ${signal} and starts again is resumed: no event lost, none done twice, all answered`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const env = { PERE_DB: join(temporary(), "pere.db"), PORT: String(lastingPort()) };
      let pere = await spawn(env);
      cleanup.defer(async () => void (await pere.end("SIGKILL")));
      const listener = new Client("hostlistener", [pere.url, "orders", "till-1"]);
      await listener.says(/connected by sse/);
      const publisher = new Client("publisher", [pere.url, "orders"]);

      // It goes away while the listener has the publisher's first event and five more in hand.
      const own = await until(() => /^(\S+): \d of 1 /m.exec(publisher.said)?.[1], "the publisher's first event");
      const batch = await ask(`${pere.url}/push/orders`, { body: "1\n2\n3\n4\n5\n", type: "application/x-ndjson" });
      expect(batch.status).toBe(201);
      await until(() => listener.times(/^v /gm) >= 6, "six events in hand");
      await pere.end(signal);
      await listener.says(/^! (?!\d)/m);

      pere = await spawn(env);
      await push(pere.url, "orders", "after the restart");
      await until(() => listener.times(/connected by sse/g) === 2, "the listener's return");
      // The publisher followed through the restart too: the receipts that came before he was back are on his screen.
      await publisher.says(/feedback: .*reconnecting/);
      await publisher.says(new RegExp(`^${own}: 1 of 1 answered: 1 done, complete$`, "m"));
      publisher.child.kill("SIGINT");
      expect(await publisher.child.exited).toBe(0);
      await until(
        async () => (await tallies(pere.url)).every(({ complete }) => complete),
        () => `every event to be complete; the listener said: ${listener.said}`,
      );

      const events = await tallies(pere.url);
      expect(events.length).toBeGreaterThan(6);
      // A receipt counts before its answer has come to the device.
      await until(() => events.every(({ id }) => listener.said.includes(`^ ${id} done\n`)), "all to be answered");
      for (const { id, receipts } of events) {
        expect(receipts).toMatchObject({ done: 1, pending: 0 });
        expect(listener.said.split(`v ${id} `).length - 1).toBe(1);
        expect(listener.said.split(`^ ${id} done\n`).length - 1).toBe(1);
      }
    },
    LIMIT_MS,
  );

test(
  "what is no address ends both at once; a publisher says that it tries, and ends where no service is there in ten seconds",
  async () => {
    for (const name of ["hostlistener", "publisher"]) {
      const client = new Client(name, ["localhost:4567"]);
      expect(await client.child.exited).toBe(2);
      await client.says(/^\w+: url must begin with http:\/\/ or https:\/\/, not "localhost:4567"\n$/);
    }
    const publisher = new Client("publisher", ["http://127.0.0.1:1"], "1");
    expect(await publisher.child.exited).toBe(1);
    await publisher.says(
      /^publisher: connecting to http:\/\/127\.0\.0\.1:1: ECONNREFUSED[^\n]*; trying again\npublisher: http:\/\/127\.0\.0\.1:1 can't be reached: ECONNREFUSED[^\n]*\n$/,
    );
  },
  LIMIT_MS,
);
