/**
 * What was acknowledged is there: the promise behind every 2xx, tried on real processes that are killed, and on one that is told to end.
 *
 * `kill -9` shows that nothing that was answered lived in memory only, and that what was not answered can be asked for again. It
 * proves nothing about the disk, because the kernel keeps the pages of a killed process: see `durability-sync.test.ts`.
 *
 * Moments are chosen by counting answers, not by time: chance comes from a seed that is in the test's name (`chance.ts`).
 */
import { afterEach, expect, test } from "bun:test";
import { join } from "node:path";
import type { State } from "../engine/model.ts";
import { chance, seed } from "./support/chance.ts";
import { type Answer, ask, give, listen, type Process, spawn as spawnProcess, temporary } from "./support/harness.ts";
import { type EventState, standings } from "./support/kept.ts";
import { progress } from "./support/progress.ts";

/** Every process of the running test. */
const started: Process[] = [];
const spawn: typeof spawnProcess = async (env) => {
  const running = await spawnProcess(env);
  started.push(running);
  return running;
};

// What a failed test left running is ended.
afterEach(async () => {
  for (const { child } of started.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

/** The receipts log has no holes either. */
async function expectWholeReceipts(url: string, channel: string): Promise<void> {
  const seqs: number[] = [];
  for (let last: string | undefined; ;) {
    const from = last === undefined ? "since=earliest" : `last-event-id=${last}`;
    const { body } = await ask(`${url}/feedback/${channel}?${from}`, { headers: { Accept: "application/json" } });
    // An event that became complete has an entry of its own.
    const entries = [...body.events, ...(body.complete ?? [])] as { id: string }[];
    if (entries.length === 0) break;
    seqs.push(...entries.map(({ id }) => Number(id.split("-")[1])).sort((a, b) => a - b));
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

test(`kill -9 during pushes and receipts loses nothing acknowledged (SEED=${seed})`, async () => {
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
    answeredWords.set(name, { status: progress(status) > progress(before.status) ? status : before.status, final });
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
        expect(progress(rows.get(name)!)).toBeGreaterThanOrEqual(progress(status));
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

test("SIGTERM during pushes: every feed is told, everything acknowledged is stored, the exit code is 0", async () => {
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
