/**
 * What was acknowledged is there: the promise behind every 2xx, tried on real processes that end badly.
 *
 * `kill -9` shows that nothing that was answered lived in memory only, and that what was not answered can be asked for again. It
 * proves nothing about the disk, because the kernel keeps the pages of a killed process. So the order of the system calls is looked
 * at with strace: the bytes are written, then synced, then the answer leaves. And strace makes `fsync` fail, once in the commit and once in a
 * checkpoint, because after a failed sync nobody knows what the disk has, and only a service that stops acknowledging tells the truth.
 *
 * Moments are chosen by counting answers, not by time: chance comes from a seed that is in the test's name (`chance.ts`).
 */
import { afterEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { rank, type State } from "../engine/model.ts";
import { chance, seed } from "./support/chance.ts";
import {
  type Answer,
  ask,
  give,
  listen,
  type Process,
  push,
  spawn as spawnProcess,
  temporary,
} from "./support/harness.ts";

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

interface EventState {
  readonly id: string;
  readonly seq: number;
  readonly data: unknown;
  readonly audience: { readonly addressed: number };
  readonly receipts: Record<State, number>;
}

/** All kept events of a channel, as a publisher reads them. */
async function eventsOf(url: string, channel: string): Promise<EventState[]> {
  const events: EventState[] = [];
  for (let after: string | null = ""; after !== null;) {
    const page = await ask(`${url}/events/${channel}?limit=500${after && `&after=${after}`}`);
    expect(page.status).toBe(200);
    events.push(...(page.body.events as EventState[]));
    after = page.body.next as string | null;
  }
  return events;
}

/** The state of every addressed device, event by event; on the way, that positions have no holes and tallies equal rows. */
async function standings(url: string, channel: string): Promise<{ events: EventState[]; rows: Map<string, State> }> {
  const events = await eventsOf(url, channel);
  expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: events.length }, (_, n) => n + 1));
  const rows = new Map<string, State>();
  for (const { id, audience, receipts } of events) {
    const page = await ask(`${url}/events/${channel}/${id}/receipts?limit=1000`);
    const found = page.body.receipts as { device: string; status: State }[];
    const counts = { pending: 0, received: 0, working: 0, missing: 0, done: 0, failed: 0 };
    for (const { device, status } of found) {
      counts[status]++;
      rows.set(`${id} ${device}`, status);
    }
    expect([id, found.length, counts]).toEqual([id, audience.addressed, receipts]);
  }
  return { events, rows };
}

/** The receipts log has no holes either. */
async function expectWholeReceipts(url: string, channel: string): Promise<void> {
  const seqs: number[] = [];
  for (let last: string | undefined; ;) {
    const from = last === undefined ? "since=earliest" : `last-event-id=${last}`;
    const { body } = await ask(`${url}/feedback/${channel}?${from}`, { headers: { Accept: "application/json" } });
    const ids = (body.events as { id: string }[]).map(({ id }) => id);
    if (ids.length === 0) break;
    seqs.push(...ids.map((id) => Number(id.split("-")[1])));
    last = body.last as string;
  }
  expect(seqs).toEqual(Array.from({ length: seqs.length }, (_, n) => n + 1));
}

interface Pushed {
  readonly key: string;
  readonly numbers: readonly number[];
  readonly query: string;
}
interface Given {
  readonly event: string;
  readonly device: string;
  readonly status: "received" | "working" | "done" | "failed";
}

test(`kill -9 in the middle of pushes and receipts loses nothing that was answered (SEED=${seed})`, async () => {
  const random = chance(seed);
  const below = (limit: number): number => Math.floor(random() * limit);
  const env = { PERE_DB: join(temporary(), "pere.db") };
  const devices = ["till-1", "till-2", "kiosk", "truck"];
  /** What was sent and not answered, and what was answered: an event's numbers with its id, a device's furthest word. */
  let unansweredPushes: Pushed[] = [];
  let unansweredWords: Given[] = [];
  const answeredNumbers = new Map<number, string>();
  const answeredWords = new Map<string, { status: State; final: State | null }>();
  let numbers = 0;
  let keys = 0;
  let unanswered = 0;

  const pushOne = (url: string, { key, numbers: lines, query }: Pushed): Promise<Answer> =>
    ask(`${url}/push/orders${query}`, {
      body: lines.map((number) => JSON.stringify({ number })).join("\n"),
      type: lines.length > 1 ? "application/x-ndjson" : "application/json",
      headers: { "Idempotency-Key": key },
    });
  const notePush = ({ numbers: lines }: Pushed, { body }: Answer): void => {
    const ids = lines.length > 1 ? (body.events as { id: string }[]).map(({ id }) => id) : [body.id as string];
    lines.forEach((number, n) => answeredNumbers.set(number, ids[n]!));
  };
  const noteWord = ({ event, device, status }: Given, { body }: Answer): void => {
    expect([body.recorded + body.duplicate, body.rejected]).toEqual([1, []]);
    const name = `${event} ${device}`;
    const before = answeredWords.get(name) ?? { status: "pending", final: null };
    const final = body.recorded === 1 && (status === "done" || status === "failed") ? status : before.final;
    answeredWords.set(name, { status: rank(status) > rank(before.status) ? status : before.status, final });
  };

  let pere = await spawn(env);
  for (const device of devices) await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
  // Three rounds at least, and until a kill has met something on its way.
  for (let round = 1; round <= 3 || unanswered === 0; round++) {
    const url = pere.url;
    const child = pere.child;
    let answersLeft = 40 + below(120);
    let killed = false;
    /** One request: answered, or killed on its way. */
    const attempt = async (request: Promise<Answer>): Promise<Answer | null> => {
      try {
        const answer = await request;
        if (--answersLeft === 0) {
          child.kill("SIGKILL");
          killed = true;
        }
        return answer;
      } catch (error) {
        if (killed) return null;
        throw error;
      }
    };
    const publisher = async (): Promise<void> => {
      while (!killed) {
        const lines = Array.from({ length: random() < 0.2 ? 5 : 1 }, () => ++numbers);
        const query = random() < 0.2 ? `?to=${devices[below(4)]},stranger` : "";
        const pushed = { key: `key-${++keys}`, numbers: lines, query };
        const answer = await attempt(pushOne(url, pushed));
        if (!answer) return void unansweredPushes.push(pushed);
        expect(answer.status).toBe(201);
        notePush(pushed, answer);
      }
    };
    const device = async (): Promise<void> => {
      while (!killed) {
        const events = [...answeredNumbers.values()];
        if (events.length === 0) {
          await Bun.sleep(1);
          continue;
        }
        const given: Given = {
          event: events[events.length - 1 - below(Math.min(20, events.length))]!,
          device: devices[below(4)]!,
          status: (["received", "working", "done", "failed"] as const)[below(4)]!,
        };
        const answer = await attempt(give(url, "orders", given.event, given.device, given.status));
        if (!answer) return void unansweredWords.push(given);
        // An event pushed with `to` went to others.
        if (answer.status === 422) expect(answer.body.rejected[0].reason).toContain("not addressed");
        else noteWord(given, answer);
      }
    };
    await Promise.all([...Array.from({ length: 8 }, publisher), ...Array.from({ length: 6 }, device)]);
    await child.exited;

    pere = await spawn(env);
    const expectAllAnswered = async (): Promise<EventState[]> => {
      const { events, rows } = await standings(pere.url, "orders");
      const byId = new Map(events.map((event) => [event.id, event]));
      for (const [number, id] of answeredNumbers) expect(byId.get(id)?.data).toEqual({ number });
      for (const [name, { status, final }] of answeredWords) {
        // A word that was not answered may have gone further, but not past a final one.
        expect(rank(rows.get(name)!)).toBeGreaterThanOrEqual(Math.min(rank(status), rank("done")));
        if (final !== null) expect([name, rows.get(name)]).toEqual([name, final]);
      }
      return events;
    };
    await expectAllAnswered();

    // Whoever had no answer asks again; each event is there once, whichever way it went the first time.
    unanswered += unansweredPushes.length + unansweredWords.length;
    for (const pushed of unansweredPushes) {
      const answer = await pushOne(pere.url, pushed);
      expect([200, 201]).toContain(answer.status);
      expect(answer.headers.get("idempotent-replayed")).toBe(answer.status === 200 ? "true" : null);
      notePush(pushed, answer);
    }
    for (const given of unansweredWords) {
      const answer = await give(pere.url, "orders", given.event, given.device, given.status);
      if (answer.status === 200) noteWord(given, answer);
    }
    unansweredPushes = [];
    unansweredWords = [];
    const stored = (await expectAllAnswered()).map(({ data }) => (data as { number: number }).number);
    expect(stored.sort((a, b) => a - b)).toEqual([...answeredNumbers.keys()].sort((a, b) => a - b));
    expect(new Set(stored).size).toBe(stored.length);
    await expectWholeReceipts(pere.url, "orders");
  }
  expect(await pere.end("SIGTERM")).toBe(0);
});

test("SIGTERM while pushes run: every feed is told, everything answered is there, the exit code is 0", async () => {
  const env = { PERE_DB: join(temporary(), "pere.db") };
  const pere = await spawn(env);
  const feeds = await Promise.all([
    listen(`${pere.url}/feed/orders?device=till`),
    listen(`${pere.url}/feed/orders`),
    listen(`${pere.url}/feedback/orders`),
  ]);
  const answered: string[] = [];
  const refused: number[] = [];
  let ended: Promise<number> | undefined;
  const publisher = async (): Promise<void> => {
    for (;;) {
      const answer = await ask(`${pere.url}/push/orders`, { body: "1" }).catch(() => null);
      if (answer?.status !== 201) {
        // Refused, or cut, but only because it is going.
        expect(ended).toBeDefined();
        if (answer) refused.push(answer.status);
        return;
      }
      answered.push(answer.body.id as string);
      if (answered.length === 150) ended = pere.end("SIGTERM");
    }
  };
  const reader = async (): Promise<void> => {
    for (;;) {
      const answer = await ask(`${pere.url}/events/orders?limit=1`).catch(() => null);
      if (answer?.status !== 200 && answer?.status !== 404) {
        expect(ended).toBeDefined();
        if (answer) refused.push(answer.status);
        return;
      }
    }
  };
  await Promise.all([...Array.from({ length: 8 }, publisher), reader(), reader()]);
  expect(await ended!).toBe(0);
  // Going away is no internal error.
  expect([...new Set(refused)].filter((status) => status !== 503)).toEqual([]);
  for (const feed of feeds) expect(await feed.own("bye")).toEqual({ reason: "drain" });

  const again = await spawn(env);
  const { events } = await standings(again.url, "orders");
  const ids = new Set(events.map(({ id }) => id));
  expect(answered.filter((id) => !ids.has(id))).toEqual([]);
  expect(answered.length).toBeGreaterThanOrEqual(150);
  // What a feed was sent is there, too: nothing is told that is not kept.
  expect(feeds[1]!.ids.filter((id) => !ids.has(id!))).toEqual([]);
  expect(await again.end("SIGTERM")).toBe(0);
});

// ------------------------------------------------------------------------------------------------------ under strace

/** In CI its absence is a failure, elsewhere a reason to skip. */
const canTrace = Bun.which("strace") !== null || process.env.CI === "true";
const traced = canTrace ? test : test.skip;
const why = canTrace ? "" : " (skipped: strace is not installed)";

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
    for (let n = 0; !failed(); n++) {
      expect(n).toBeLessThan(40);
      const answer = await ask(`${pere.url}/push/orders`, { body: lines, type: "application/x-ndjson" });
      // The commit itself was synced: it may be acknowledged, or not.
      if (answer.status === 201) acknowledged.push(...(answer.body.events as { id: string }[]).map(({ id }) => id));
      else expect(answer.status).toBe(503);
    }
    expect((await ask(`${pere.url}/push/orders`, { body: "1" })).status).toBe(503);
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
