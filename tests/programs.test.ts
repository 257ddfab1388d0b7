/**
 * The programs as systems treat them: told to end, with nobody left to read what they print, behind a proxy, on a machine without a name of its own, and
 * called with arguments that can't be right.
 */
import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ask, push, start, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

const CLIENTS = join(import.meta.dir, "..", "clients");
const LIMIT_MS = 60_000;
const running: Bun.Subprocess[] = [];

afterEach(async () => {
  for (const child of running) child.kill("SIGKILL");
  await Promise.all(running.splice(0).map(({ exited }) => exited));
});

interface How {
  readonly env?: Record<string, string>;
  readonly before?: readonly string[];
  readonly stdout?: number | "pipe";
  readonly input?: string;
}

/** A program that runs, and what it says. */
function run(name: string, args: readonly string[], { env = {}, before = [], stdout = "pipe", input }: How = {}) {
  const child = Bun.spawn([...before, process.execPath, join(CLIENTS, `${name}.ts`), ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
    stdin: input === undefined ? "ignore" : new Blob([input]),
    stdout,
    stderr: "pipe",
  });
  running.push(child);
  const said = { out: "", err: "" };
  const read = async (stream: ReadableStream<Uint8Array>, into: keyof typeof said): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) said[into] += decoder.decode(chunk, { stream: true });
  };
  const ends = [read(child.stderr, "err"), ...(stdout === "pipe" ? [read(child.stdout as ReadableStream, "out")] : [])];
  return {
    child,
    said,
    says: (pattern: RegExp): Promise<true> =>
      until(
        () => pattern.test(said.out + said.err),
        () => `${pattern}; it said ${said.out}${said.err}`,
      ),
    /** Its status, when all that it said is here. */
    ended: async (): Promise<number> => {
      const code = await child.exited;
      await Promise.all(ends);
      return code;
    },
  };
}

const tallies = async (url: string): Promise<{ id: string; receipts: Record<string, number> }[]> =>
  (await ask(`${url}/events/orders?limit=1000`)).body.events;

/** Whether a process may be number 1 of a world of its own here. */
const asFirst = ["unshare", "--fork", "--pid", "--kill-child", "--mount-proc"];
const canBeFirst = Bun.which("unshare") !== null && Bun.spawnSync([...asFirst, "true"]).success;

for (const [name, before] of [
  ["", []],
  [", also as process number 1", asFirst],
] as const)
  test.skipIf(before.length > 0 && !canBeFirst)(
    `told to end by TERM, a listener finishes what it has begun, gives its receipts and ends${name}`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await start(), (service) => service.stop());
      const till = run("hostlistener", [pere.url, "orders", "till-1"], { before });
      await till.says(/connected by sse/);
      const lines = Array.from({ length: 60 }, (_, n) => n).join("\n");
      await ask(`${pere.url}/push/orders`, { body: lines, type: "application/x-ndjson" });
      await until(() => (till.said.out.match(/^v /gm)?.length ?? 0) === 60);
      // The process itself, behind the one that made its world.
      const inside = readFileSync(`/proc/${till.child.pid}/task/${till.child.pid}/children`, "utf8").trim();
      process.kill(before.length > 0 ? Number(inside) : till.child.pid, "SIGTERM");
      expect(await till.ended()).toBe(0);
      expect(till.said.out).toMatch(/stopped; \d+ events were open\n$/);
      const events = await tallies(pere.url);
      expect(events.map(({ receipts }) => receipts.done)).toEqual(Array.from({ length: 60 }, () => 1));
    },
    LIMIT_MS,
  );

test(
  "told to end by TERM, a publisher waits for the answer to its push; a second signal ends either program at once",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    await ask(`${pere.url}/devices/orders/till-1`, { method: "PUT" });
    const office = run("publisher", ["--wait=100", pere.url, "orders"], { input: "1\n2\n3\n" });
    const [{ id }] = (await until(async () => {
      const events = await tallies(pere.url);
      return events.length > 0 && events;
    })) as unknown as [{ id: string }];
    await until(() => pere.engine.held.live === 2, "a push that waits");
    office.child.kill("SIGTERM");
    await Bun.sleep(300);
    await ask(`${pere.url}/feedback/orders`, { body: { event: id, device: "till-1", status: "done" } });
    expect(await office.ended()).toBe(0);
    expect(office.said.out).toContain(`${id}: 1 of 1 answered: 1 done, complete\n1 pushed, 1 complete\n`);
    expect((await tallies(pere.url)).length).toBe(1);

    const waits = run("publisher", ["--wait=100", pere.url, "orders"], { input: "1\n" });
    await until(() => pere.engine.held.live === 2, "a push that waits");
    const till = run("hostlistener", [pere.url, "orders", "till-9"], { before: [] });
    await till.says(/connected by sse/);
    for (const { child } of [waits, till]) child.kill("SIGTERM");
    await Bun.sleep(100);
    for (const { child } of [waits, till]) child.kill("SIGINT");
    expect([0, 130]).toContain(await till.ended());
    expect(await waits.ended()).toBe(130);
  },
  LIMIT_MS,
);

test(
  "a listener that can't print any more ends with a sentence, and what it had not printed stays open",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    // What `head -n 2` does to who writes to it.
    const cut = run("hostlistener", [], {
      before: ["sh", "-c", `"$0" "$1" ${pere.url} orders till-1 | head -n 2`],
    });
    await until(async () => (await ask(`${pere.url}/devices/orders`)).body.devices?.[0]?.connected);
    await cut.says(/connected by sse/);
    await until(async () => {
      await push(pere.url, "orders", 1);
      return cut.said.err.includes("nothing more can be printed");
    });
    const first = await until(() => /hostlistener: ([^\n]*)\n/.exec(cut.said.err)?.[1]);
    expect(first).toBe("nothing more can be printed (EPIPE); events that were not printed stay open");
    const events = await tallies(pere.url);
    expect(events.reduce((sum, { receipts }) => sum + receipts.failed!, 0)).toBe(0);
    // Its first line was taken; the last event can't have been printed.
    expect(events.at(-1)!.receipts).toMatchObject({ done: 0, failed: 0 });

    const full = run("hostlistener", [pere.url, "full", "till-2"], { stdout: openSync("/dev/full", "w") });
    expect(await full.ended()).toBe(1);
    expect(full.said.err).toContain("nothing more can be printed (ENOSPC)");
  },
  LIMIT_MS,
);

test(
  "a publisher that can't print any more pushes nothing more, and ends with a sentence",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const office = run("publisher", [], { before: ["sh", "-c", `"$0" "$1" ${pere.url} orders | head -n 1`] });
    await office.says(/publisher: nothing more can be printed \(EPIPE\); nothing more is pushed\n/);
    expect(await office.ended()).toBe(0); // That of head.
    const { length } = await tallies(pere.url);
    expect(length).toBeLessThan(4);
    await Bun.sleep(1_500);
    expect(await tallies(pere.url)).toHaveLength(length);
  },
  LIMIT_MS,
);

test("texts are printed as they came, on one line", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const text = '{"n":12345678901234567890,\n "x":1e400, "n":-0.0, "s":"a  b"}';
  const words = '{"n":12345678901234567890,"x":1e400,"n":-0.0,"s":"a  b"}';
  const plain = run("hostlistener", [pere.url, "orders", "till-1"]);
  const json = run("hostlistener", ["--json", pere.url, "orders", "till-2"]);
  const office = run("publisher", ["--json", pere.url, "orders"]);
  for (const { says } of [plain, json]) await says(/connected/);
  await office.says(/"pushed"/);
  const { id } = (await ask(`${pere.url}/push/orders`, { body: text })).body;
  await plain.says(new RegExp(`^v ${id} `, "m"));
  expect(plain.said.out).toContain(`v ${id} ${words}\n`);
  await until(() => json.said.out.includes(`"data":${words}}}\n`));
  await ask(`${pere.url}/devices/orders/desk`, { method: "PUT" });
  const other = await push(pere.url, "orders", 1);
  await ask(`${pere.url}/feedback/orders`, {
    body: `{"event":"${other}","device":"desk","status":"done","detail":[1e400,12345678901234567890]}`,
  });
  await until(() => office.said.out.includes('"detail":[1e400,12345678901234567890]}}\n'));
});

test("a device that can't keep its state says so", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const folder = join(temporary(), "folder");
  mkdirSync(folder);
  const till = run("hostlistener", [`--state=${join(folder, "state")}`, pere.url, "orders", "till-1"]);
  await till.says(/connected/);
  rmSync(folder, { recursive: true });
  writeFileSync(folder, "");
  await push(pere.url, "orders", 1);
  await till.says(/^! the state can't be stored: /m);
});

test("a device without a name has one that is made once and kept; where it can't be kept it must be given", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const home = temporary();
  const names = new Set<string>();
  for (let times = 0; times < 2; times++) {
    const till = run("hostlistener", [pere.url, "orders"], { env: { XDG_STATE_HOME: home } });
    await till.says(/connected by sse as /);
    names.add(/connected by sse as (\S+)/.exec(till.said.out)![1]!);
    till.child.kill("SIGTERM");
    expect(await till.ended()).toBe(0);
  }
  expect([...names]).toEqual([expect.stringMatching(/-[0-9a-f]{8}$/)]);
  const other = run("hostlistener", [pere.url, "orders"], { env: { XDG_STATE_HOME: temporary() } });
  await other.says(/connected by sse as /);
  expect(names.has(/connected by sse as (\S+)/.exec(other.said.out)![1]!)).toBe(false);

  const place = join(temporary(), "file");
  writeFileSync(place, "");
  const none = run("hostlistener", [pere.url, "orders"], { env: { XDG_STATE_HOME: place } });
  expect(await none.ended()).toBe(2);
  expect(none.said.err).toMatch(/^hostlistener: give the device a name: [^\n]+\n$/);
});

test(
  "arguments that can't be right are told in a sentence at once, with status 2",
  async () => {
    const long = "x".repeat(20);
    const wrong: Record<string, readonly (readonly string[])[]> = {
      hostlistener: [
        ["--bogus"],
        ["--concurrency=abc"],
        ["--concurrency=0"],
        ["--concurrency=-1"],
        ["--concurrency=1e9"],
        ["--concurrency="],
        ["--concurrency"],
        ["--state="],
        ["--state=/dev/null"],
        [`--state=${CLIENTS}`],
        [`--state=${join(CLIENTS, "program.ts")}`],
        ["--flaky=often"],
        ["not a url"],
        ["http://x/?a=b"],
        ["http://x/#a"],
        ["http://joe:secret@x"],
        [""],
        ["http://127.0.0.1:1", ""],
        ["http://127.0.0.1:1", "orders", ""],
        ["http://127.0.0.1:1", "orders", "a\nb"],
        ["http://127.0.0.1:1", "orders", "till", "more"],
        ["http://127.0.0.1:1", Array.from({ length: 17 }, () => "a").join(",")],
      ],
      publisher: [
        ["--bogus"],
        ["--wait=nan"],
        ["--wait=-1"],
        ["--wait="],
        ["--deadline=Infinity"],
        ["--remind=0x10"],
        ["--json=yes"],
        ["not a url"],
        ["http://x/?a=b"],
        ["http://joe:secret@x"],
        ["http://127.0.0.1:1", ""],
        ["http://127.0.0.1:1", "orders", "more"],
      ],
      doctor: [[], ["--bogus"], ["not a url"], ["http://x?a"], ["http://a", "http://b"], ["http://a", "--seconds="]],
      health: [["--bogus"], ["http://127.0.0.1:4567"]],
      pack: [["--bogus"], [""], [CLIENTS]],
    };
    const all = Object.entries(wrong).flatMap(([name, lines]) => lines.map((args) => [name, args] as const));
    for (const [name, args] of all) {
      const { ended, said } = run(name, args, { env: { XDG_STATE_HOME: temporary() } });
      expect([name, args, await ended()]).toEqual([name, args, 2]);
      expect(said.err).toMatch(/^[^\n]+\n$/);
      expect(said.out).toBe("");
      expect(said.err).not.toContain("secret");
    }
    expect(existsSync(join(CLIENTS, "program.ts"))).toBe(true);
    for (const token of ["a.b.c\nd.e.f", `${long}"`, "é"])
      for (const name of ["hostlistener", "publisher", "doctor"]) {
        const { ended, said } = run(name, ["http://127.0.0.1:1"], { env: { PERE_TOKEN: token } });
        expect([name, await ended()]).toEqual([name, 2]);
        expect(said.err).toMatch(/^[^\n]+\n$/);
        expect(said.err).not.toContain(token.slice(0, 8));
      }
  },
  LIMIT_MS,
);

/** A proxy that passes on what it is asked for by its whole address. */
function forward() {
  const asked: string[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 0,
    fetch: async (request) => {
      asked.push(request.url);
      return fetch(request, { proxy: "" });
    },
  });
  return { url: server.url.origin, asked, stop: () => server.stop(true) };
}

test(
  "listener and publisher go by the proxy that the environment names, as far as NO_PROXY lets them; doctor and health go to their own machine directly",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    const proxy = cleanup.adopt(forward(), ({ stop }) => stop());
    const PORT = new URL(pere.url).port;
    for (const name of ["HTTP_PROXY", "http_proxy"])
      for (const args of [["doctor", pere.url, "--seconds=0"], ["health"]] as const) {
        const [program, ...rest] = args;
        const { ended, said } = run(program, rest, { env: { [name]: proxy.url, PORT, HOST: "" } });
        expect([program, await ended(), said.err]).toEqual([program, 0, ""]);
      }
    expect(proxy.asked).toEqual([]);
    const dead = `http://127.0.0.1:${lastingPort()}`;
    for (const env of [
      { HTTP_PROXY: dead, NO_PROXY: "127.0.0.1" },
      { HTTPS_PROXY: dead },
      { http_proxy: dead, no_proxy: "*" },
    ]) {
      const till = run("hostlistener", [pere.url, "orders", "till-1"], { env });
      await till.says(/connected by sse/);
    }
    const away = run("hostlistener", [pere.url, "orders", "till-2"], { env: { HTTP_PROXY: dead } });
    await away.says(/^! (?!\d)/m);
    expect(away.said.out).not.toContain("connected by");
    const office = run("publisher", [pere.url, "orders"], { env: { HTTP_PROXY: dead } });
    await office.says(/publisher: connecting to \S+: [^\n]*; trying again/);
  },
  LIMIT_MS,
);
