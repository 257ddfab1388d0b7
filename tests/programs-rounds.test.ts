/**
 * The programs where an event comes again, or is taken back: a listener that runs commands, and a publisher that withdraws, supersedes and schedules.
 */
import { afterEach, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ask, push, start, temporary, until } from "./support/harness.ts";
import { rowOf } from "./support/sdk-device.ts";

const CLIENTS = join(import.meta.dir, "..", "clients");
const LIMIT_MS = 60_000;
const running: Bun.Subprocess[] = [];

afterEach(async () => {
  for (const child of running) child.kill("SIGKILL");
  await Promise.all(running.splice(0).map(({ exited }) => exited));
});

/** A program that runs, and what it says. */
function run(name: string, args: readonly string[], input?: string) {
  const child = Bun.spawn([process.execPath, join(CLIENTS, `${name}.ts`), ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME },
    stdin: input === undefined ? "ignore" : new Blob([input]),
    stdout: "pipe",
    stderr: "pipe",
  });
  running.push(child);
  const said = { out: "", err: "" };
  const read = async (stream: ReadableStream<Uint8Array>, into: keyof typeof said): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) said[into] += decoder.decode(chunk, { stream: true });
  };
  const ends = [read(child.stderr, "err"), read(child.stdout, "out")];
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

const withdraw = (url: string, id: string, note: string) =>
  ask(`${url}/events/orders/${id}?note=${encodeURIComponent(note)}`, { method: "DELETE" });

const statusIs = (url: string, id: string, status: string): Promise<unknown> =>
  until(async () => (await rowOf(url, id)).status === status, status);

test(
  "a listener runs a command per event: status 0 is done, 75 deferred, others failed; TERM ends it if its event is withdrawn",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
    const folder = temporary();
    const work = `case $(cat) in
*well*) echo one; echo '{"printed":1e0}' ;;
*later*) [ "$PERE_ROUND" = 2 ] && { echo "$PERE_EVENT_TYPE $PERE_EVENT_CHANNEL $PERE_EVENT_ID"; exit; }; echo no paper; echo PERE_AFTER=1; exit 75 ;;
*never*) echo 'in vain' >&2; echo PERE_RETRY=no; exit 3 ;;
*soon*) echo PERE_AFTER=1; exit 3 ;;
*killed*) [ -e ${folder}/killed ] || { : >${folder}/killed; kill -TERM $$; } ;;
*lost*) exec ${folder}/no-such-command ;;
*dies*) : >${folder}/dies; while :; do sleep 0.05; done ;;
*saves*) trap 'echo saved; exit 0' TERM; : >${folder}/saves; while :; do sleep 0.05; done ;;
*long*) : >${folder}/long; while [ ! -e ${folder}/go ]; do sleep 0.05; done; echo at last; exit 0 ;;
esac`;
    const till = run("hostlistener", [url, "orders", "till-7", "--exec", work]);
    await till.says(/connected by sse/);
    const well = await push(url, "orders", "well");
    const later = await push(url, "orders", "later", "?type=order");
    await statusIs(url, well, "done");
    expect((await rowOf(url, well)).detail).toEqual({ printed: 1 });
    await statusIs(url, later, "deferred");
    expect((await rowOf(url, later)).detail).toBe("no paper");
    await statusIs(url, later, "done");
    expect(await rowOf(url, later)).toMatchObject({ detail: `order orders ${later}`, round: 2 });
    await till.says(new RegExp(`v ${later} \\(round 2\\) order "later"`));
    const [never, soon] = [
      await push(url, "orders", "never", "?attempts=3"),
      await push(url, "orders", "soon", "?attempts=2"),
    ];
    await statusIs(url, soon, "failed");
    expect(await rowOf(url, soon)).toMatchObject({ detail: "exit status 3", attempt: 2 });
    expect(await rowOf(url, never)).toMatchObject({ status: "failed", detail: "in vain", attempt: 1 });
    const killed = await push(url, "orders", "killed");
    await statusIs(url, killed, "done");
    expect(till.said.err).toContain(
      `${killed} stays open: the command was ended by signal 15; running it again in 1 s`,
    );
    for (const what of ["dies", "saves"]) {
      const id = await push(url, "orders", what);
      await until(() => existsSync(join(folder, what)), what);
      await withdraw(url, id, "printed\ntwice");
      await till.says(new RegExp(`x ${id} was withdrawn: withdrawn: printed twice\n`));
      await statusIs(url, await push(url, "orders", "well"), "done");
      if (what === "dies") expect(await rowOf(url, id)).toMatchObject({ status: "withdrawn" });
      else {
        await statusIs(url, id, "done");
        expect(await rowOf(url, id)).toMatchObject({ detail: "saved", late: true });
        await till.says(new RegExp(`! ${id} done was late: withdrawn`));
      }
    }
    const lost = await push(url, "orders", "lost");
    await till.says(new RegExp(`${lost} stays open: the command could not be run: .*no-such-command`));
    await withdraw(url, lost, "");
    // Told to end, it lets the command come to its end.
    const long = await push(url, "orders", "long");
    await until(
      () => existsSync(join(folder, "long")),
      () => till.said.err,
    );
    till.child.kill("SIGTERM");
    await push(url, "orders", "well");
    await Bun.write(join(folder, "go"), "");
    expect(await till.ended()).toBe(0);
    expect(await rowOf(url, long)).toMatchObject({ status: "done", detail: "at last" });
  },
  LIMIT_MS,
);

test(
  "a publisher shows what is deferred and withdrawn, supersedes, withdraws, schedules and cancels",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const { url } = cleanup.adopt(await start(), (service) => service.stop()) as { url: string };
    for (const device of ["till-1", "till-2"]) await ask(`${url}/devices/orders/${device}`, { method: "PUT" });
    const till = run("hostlistener", [url, "orders", "till-1", "--exec", "[ $(cat) -gt 1 ] || exit 75; cat"]);
    await till.says(/connected by sse/);
    const office = run("publisher", [url, "orders", "--key=config", "--attempts=2", "--wait=1"], "1\n2\n");
    const [first, second] = (await until(async () => {
      const { events } = (await ask(`${url}/events/orders`)).body as { events: Record<string, unknown>[] };
      return events.length === 2 && events;
    })) as Record<string, unknown>[];
    expect(second).toMatchObject({ key: "config", attempts: 2 });
    await office.says(new RegExp(`${first!.id}: 1 of 2 answered: 1 deferred\n`));
    await office.says(new RegExp(`${first!.id}: 0 of 2 answered: 2 withdrawn, complete\n`));
    await office.says(new RegExp(`${second!.id}: 1 of 2 answered: 1 done\n`));
    const taken = run("publisher", [url, "orders", `--withdraw=${second!.id}`, "--note=wrong"]);
    expect(await taken.ended()).toBe(0);
    expect(taken.said.out).toBe(`${second!.id} is withdrawn: 1 done, 1 withdrawn\n`);
    expect(await office.ended()).toBe(0);
    expect(office.said.out).toEndWith(
      `${second!.id}: 1 of 2 answered: 1 done, 1 withdrawn, complete\n2 pushed, 2 complete\n`,
    );
    // What was withdrawn may still be done.
    await ask(`${url}/feedback/orders`, { body: { event: second!.id, device: "till-2", status: "done" } });
    const again = run("publisher", [url, "orders", `--withdraw=${second!.id}`, "--json"]);
    await again.ended();
    expect(JSON.parse(again.said.out)).toMatchObject({ withdrawn: { receipts: { done: 2, withdrawn: 0 } } });

    const later = run("publisher", [url, "orders", "--every=0 3 * * *", "--tz=Europe/Rome", "--key=config"], "7\n8\n");
    expect(await later.ended()).toBe(0);
    const ids = [...later.said.out.matchAll(/^(s-\S+): next at 20\d\d-/gm)].map(([, id]) => id!);
    expect(ids).toHaveLength(2);
    const once = run("publisher", [url, "orders", "--at=2099-01-01T00:00:00Z", "--json"]);
    await once.ended();
    const made = (JSON.parse(once.said.out) as { scheduled: { id: string; next: string } }).scheduled;
    expect(made.next).toBe("2099-01-01T00:00:00.000Z");
    for (const id of [ids[0]!, made.id]) {
      const cancelled = run("publisher", [url, "orders", `--cancel=${id}`]);
      expect([await cancelled.ended(), cancelled.said.out]).toEqual([0, `${id} was cancelled\n`]);
    }
    const listed = run("publisher", [url, "orders", "--scheduled"]);
    await listed.ended();
    expect(listed.said.out).toMatch(new RegExp(`^${ids[1]}: 20\\S+, 0 3 \\* \\* \\* \\(Europe/Rome\\)\n$`));
  },
  LIMIT_MS,
);

test(
  "options that can't be meant are told in a sentence, with status 2",
  async () => {
    for (const [program, args, sentence] of [
      ["publisher", ["--at=x", "--every=y"], "give either --at or --every"],
      ["publisher", ["--tz=Europe/Rome"], "--tz needs --every"],
      ["publisher", ["--at=2099-01-01T00:00:00Z", "--wait=3"], "--wait is for what is pushed now"],
      ["publisher", ["--note=x"], "--note needs --withdraw"],
      ["publisher", ["--attempts=1"], "--attempts must be a whole number from 2 to 20"],
      ["hostlistener", ["--exec= "], "--exec must be a command"],
      ["hostlistener", ["--since=never"], "--since must be now, earliest or latest"],
    ] as const) {
      const wrong = run(program, args);
      expect([args, await wrong.ended(), wrong.said.err]).toEqual([args, 2, expect.stringContaining(sentence)]);
    }
  },
  LIMIT_MS,
);
