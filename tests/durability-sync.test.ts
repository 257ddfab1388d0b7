/**
 * What was acknowledged is on the disk: what `durability.test.ts` can't see, because the kernel keeps the pages of a killed process. So the order of the
 * system calls is looked at with strace: the bytes are written, then synced, then the answer leaves. And strace makes `fsync` fail, once in the
 * commit and once in a checkpoint, because after a failed sync nobody knows what the disk has, and only a service that stops acknowledging
 * tells the truth.
 */
import { afterEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ask, give, listen, type Process, push, spawn as spawnProcess, temporary, until } from "./support/harness.ts";
import { eventsOf, standings } from "./support/kept.ts";
import { canTrace, noStrace } from "./support/strace.ts";

/** Every process of the running test, and whether strace runs it. */
const started: { readonly running: Process; readonly traced: boolean }[] = [];
const spawn: typeof spawnProcess = async (env, before = []) => {
  const running = await spawnProcess(env, before);
  started.push({ running, traced: before.length > 0 });
  return running;
};

/** The service itself, where strace started it. */
const serviceOf = ({ child }: Process): number =>
  Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ")[0]);

// What a failed test left running is ended: strace alone would let go of its service, which would live on.
afterEach(async () => {
  for (const { running, traced } of started.splice(0)) {
    if (running.child.exitCode !== null || running.child.signalCode !== null) continue;
    if (traced) process.kill(serviceOf(running), "SIGKILL");
    else running.child.kill("SIGKILL");
    await running.child.exited;
  }
});

/** In CI its absence is a failure, elsewhere a reason to skip. */
const traced = canTrace ? test : test.skip;
const why = canTrace ? "" : ` (skipped: ${noStrace})`;

/** Ends a service that runs under strace, and strace with it. */
async function endTraced(traced: Process, signal: NodeJS.Signals): Promise<void> {
  process.kill(serviceOf(traced), signal);
  await traced.child.exited;
}

interface Call {
  readonly name: string;
  readonly text: string;
  /** Lines of the trace where it began and where it had returned. */
  readonly begun: number;
  readonly returned: number;
  readonly result: number;
}

/** The system calls of a trace; one that another thread interrupted is on two lines. */
function readTrace(path: string): Call[] {
  const calls: Call[] = [];
  const open = new Map<string, { text: string; begun: number }>();
  readFileSync(path, "latin1")
    .split("\n")
    .forEach((line, at) => {
      const match = /^(\d+)\s+(.*)$/.exec(line);
      if (!match) return;
      const [, thread, rest] = match as unknown as [string, string, string];
      let text = rest;
      let begun = at;
      if (text.endsWith("<unfinished ...>")) return void open.set(thread, { text, begun });
      if (text.startsWith("<... ")) {
        const first = open.get(thread);
        if (!first) return;
        open.delete(thread);
        text = first.text.replace(/ <unfinished \.\.\.>$/, "") + text.replace(/^<\.\.\. \w+ resumed>/, "");
        begun = first.begun;
      }
      const name = /^(\w+)\(/.exec(text)?.[1];
      const result = /= (-?\d+)[^=]*$/.exec(text)?.[1];
      if (name && result !== undefined) calls.push({ name, text, begun, returned: at, result: Number(result) });
    });
  return calls;
}

traced(
  `what is answered was written and synced before the answer left, each push and each receipt${why}`,
  async () => {
    const folder = temporary();
    const trace = join(folder, "trace");
    const db = join(folder, "pere.db");
    const calls = "trace=fsync,fdatasync,write,writev,sendto,sendmsg,pwrite64";
    const pere = await spawn({ PERE_DB: db }, ["strace", "-f", "-y", "-s", "8192", "-e", calls, "-o", trace]);
    await ask(`${pere.url}/devices/orders/till`, { method: "PUT" });
    const marks: string[] = [];
    for (let n = 1; n <= 8; n++) {
      const event = await push(pere.url, "orders", `mark-push-${n}-end`);
      marks.push(`mark-push-${n}-end`);
      const answer = await give(pere.url, "orders", event, "till", "done", { detail: `mark-receipt-${n}-end` });
      expect(answer.body.recorded).toBe(1);
      marks.push(`mark-receipt-${n}-end`);
    }
    await endTraced(pere, "SIGTERM");

    const seen = readTrace(trace);
    const log = `<${db}-wal>`;
    const written = (mark: string) =>
      seen.findLast(
        ({ name, text, begun }) =>
          name === "pwrite64" && text.includes(log) && text.includes(mark) && begun < answerTo(mark).begun,
      );
    // One at a time, so the n-th answer belongs to the n-th request; the first is the enrolment's.
    const answers = seen.filter(
      ({ name, text }) => ["write", "writev", "sendto", "sendmsg"].includes(name) && /"HTTP\/1\.1 20[01] /.test(text),
    );
    expect(answers.length).toBe(marks.length + 1);
    const answerTo = (mark: string): Call => answers[marks.indexOf(mark) + 1]!;

    for (const mark of marks) {
      const write = written(mark);
      expect([mark, write !== undefined]).toEqual([mark, true]);
      const sync = seen.find(
        ({ name, text, begun }) =>
          (name === "fsync" || name === "fdatasync") && text.includes(log) && begun > write!.returned,
      );
      expect([mark, sync?.result]).toEqual([mark, 0]);
      expect(sync!.returned).toBeLessThan(answerTo(mark).begun);
    }
  },
  180_000,
);

/** Pushes until one is refused. Gives what was acknowledged, and the refusal. */
async function pushUntilRefused(url: string, body: string, type?: string) {
  const acknowledged: string[] = [];
  for (let n = 1; n <= 50; n++) {
    const answer = await ask(`${url}/push/orders`, {
      body,
      headers: { "Idempotency-Key": `key-${n}` },
      ...(type === undefined ? {} : { type }),
    });
    if (answer.status !== 201) return { acknowledged, refusal: answer, key: `key-${n}` };
    acknowledged.push(...((answer.body.events ?? [answer.body]) as { id: string }[]).map(({ id }) => id));
  }
  throw new Error("nothing was refused, although every sync fails");
}

/** From a failed sync on: nothing is acknowledged, and what can be read is read. */
async function expectReadOnly(url: string, acknowledged: readonly string[]): Promise<void> {
  for (let n = 0; n < 3; n++) {
    for (const answer of [
      await ask(`${url}/push/orders`, { body: "1" }),
      await ask(`${url}/push/fresh`, { body: "1" }),
      await give(url, "orders", acknowledged[0]!, "till", "done"),
      await ask(`${url}/devices/orders/late`, { method: "PUT" }),
    ]) {
      expect(answer.status).toBe(503);
      expect(answer.headers.get("content-type")).toStartWith("application/problem+json");
      expect(answer.headers.get("retry-after")).toMatch(/^\d+$/);
      expect(answer.body).toMatchObject({ status: 503 });
    }
  }
  expect((await ask(`${url}/ready`)).status).toBe(503);
  expect((await ask(`${url}/health`)).status).toBe(200);
  expect((await eventsOf(url, "orders")).map(({ id }) => id)).toEqual([...acknowledged]);
  expect((await ask(`${url}/events/orders/${acknowledged[0]!}/receipts`)).body.receipts).toMatchObject([
    { device: "till", status: "pending" },
  ]);
}

traced(
  `a sync that fails ends all acknowledging until a restart; what was acknowledged stays readable${why}`,
  async () => {
    const folder = temporary();
    const env = { PERE_DB: join(folder, "pere.db") };
    const first = await spawn(env);
    await ask(`${first.url}/devices/orders/till`, { method: "PUT" });
    const before = await push(first.url, "orders", 0);
    expect(await first.end("SIGTERM")).toBe(0);

    // The first commits of a new process sync the log's header and its folder as well; the fifth sync is in a later one.
    const fail = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=5+"];
    const pere = await spawn(env, ["strace", "-f", "-y", ...fail, "-o", join(folder, "trace")]);
    const anonymous = await listen(`${pere.url}/feed/orders`);
    const receipts = await listen(`${pere.url}/feedback/orders`);
    const { acknowledged, refusal, key } = await pushUntilRefused(pere.url, "1");
    expect(acknowledged.length).toBeGreaterThan(0);
    expect(refusal.status).toBe(503);
    expect(refusal.headers.get("content-type")).toStartWith("application/problem+json");

    const known = [before, ...acknowledged];
    await expectReadOnly(pere.url, known);
    // Feeds that were open go on, and were given what was acknowledged and nothing else; new ones begin.
    await anonymous.have(acknowledged.length);
    expect(anonymous.ids).toEqual(acknowledged);
    expect([anonymous.ended, receipts.ended]).toEqual([false, false]);
    const late = await listen(`${pere.url}/feed/orders?since=earliest`);
    await late.have(known.length);
    expect(late.ids).toEqual(known);
    await endTraced(pere, "SIGKILL");

    const again = await spawn(env);
    const ids = (await standings(again.url, "orders")).events.map(({ id }) => id);
    expect(ids.slice(0, known.length)).toEqual(known);
    // The push that failed can be repeated: it is there once, whether or not its bytes had reached the disk.
    const repeated = await ask(`${again.url}/push/orders`, { body: "1", headers: { "Idempotency-Key": key } });
    expect([200, 201]).toContain(repeated.status);
    expect((await eventsOf(again.url, "orders")).length).toBe(known.length + 1);
    // So the refusal could not know that nothing was stored, and must not have said so.
    expect(refusal.body.detail).not.toContain("nothing was stored");
    expect(await again.end("SIGTERM")).toBe(0);
  },
  180_000,
);

traced(
  `a checkpoint whose sync fails ends all acknowledging, too: the next one could "succeed" without the pages${why}`,
  async () => {
    const folder = temporary();
    const db = join(folder, "pere.db");
    const first = await spawn({ PERE_DB: db });
    await ask(`${first.url}/devices/orders/till`, { method: "PUT" });
    const before = await push(first.url, "orders", 0);
    expect(await first.end("SIGTERM")).toBe(0);

    // Only syncs of the database itself fail, not those of its log: they belong to checkpoints alone.
    const fail = ["-P", db, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1+"];
    const trace = join(folder, "trace");
    const pere = await spawn({ PERE_DB: db }, ["strace", "-f", "-y", ...fail, "-o", trace]);
    const lines = Array.from({ length: 250 }, () => JSON.stringify("x".repeat(2_000))).join("\n");
    const failed = () => /EIO.*INJECTED/.test(readFileSync(trace, "utf8"));
    const acknowledged: string[] = [];
    // 15 MB, far more than the log holds before a checkpoint, which another thread does.
    for (let n = 0; n < 30 && !failed(); n++) {
      const answer = await ask(`${pere.url}/push/orders`, { body: lines, type: "application/x-ndjson" });
      // The commit itself was synced: it may be acknowledged, or not.
      if (answer.status === 201) acknowledged.push(...(answer.body.events as { id: string }[]).map(({ id }) => id));
      else expect(answer.status).toBe(503);
    }
    await until(failed, "a checkpoint");
    await until(async () => {
      const { status, body } = await ask(`${pere.url}/push/orders`, { body: "1" });
      if (status === 201) acknowledged.push(body.id as string);
      return status === 503;
    }, "a refusal");
    expect((await give(pere.url, "orders", before, "till", "done")).status).toBe(503);
    expect((await ask(`${pere.url}/events/orders/${before}`)).status).toBe(200);
    await endTraced(pere, "SIGKILL");

    const again = await spawn({ PERE_DB: db });
    const ids = new Set((await eventsOf(again.url, "orders")).map(({ id }) => id));
    expect([before, ...acknowledged].filter((id) => !ids.has(id))).toEqual([]);
    expect(await again.end("SIGTERM")).toBe(0);
  },
  180_000,
);
