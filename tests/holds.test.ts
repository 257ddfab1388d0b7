/**
 * Nothing that a store is asked holds everybody else up, however much it keeps: at a hundred thousand events and ten thousand devices, each verb does
 * a bounded piece of work in one turn of the event loop, or in one script of Redis, and then lets others have theirs.
 *
 * Work is counted, not timed. In a file it is rows: each table is read through a view that counts what a statement looks at, and changed rows count as
 * well. In Redis it is words: what `MONITOR` tells of the commands that a script ran. A row or a word is about a microsecond at most.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Engine } from "../engine/engine.ts";
import { OWN, type Wire } from "../engine/feeds/feed.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { CLAIM_MS, draft, reads, SECOND, T, word } from "./contract/calls.ts";
import { historyOf } from "./contract/history.ts";
import { until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { countRows, type Meter, rowMeter } from "./support/row-meter.ts";

setDefaultTimeout(300_000);

const EVENTS = 100_000;
const DEVICES = 10_000;
/** Rows that a turn may look at and change, and words that a script may say; a pass over what one device may owe takes several times as much. */
const ROWS_A_TURN = 60_000;
const WORDS_A_SCRIPT = 60_000;
/** Of a feed that catches up: so many turns share the work at least. */
const ROWS_A_TURN_OF_A_FEED = 80_000;
/** An event that is due at another time than the others. */
const DUE = 50_000;

const nameOf = (n: number): string => `device-${String(n).padStart(5, "0")}`;
/** Answered all but the first event, all of them, none of them. */
const [NEARLY, WHOLLY, SILENT] = [nameOf(0), nameOf(1), nameOf(2)];
const LATER = T + 60 * SECOND;

async function fill(store: Store): Promise<void> {
  for (let n = 0; n < DEVICES; n += 500)
    await Promise.all(Array.from({ length: 500 }, (_, i) => store.enrol("orders", nameOf(n + i), T)));
  for (let seq = 1; seq <= EVENTS; seq += 1_000) {
    const drafts = Array.from({ length: 1_000 }, (_, i) =>
      draft(seq + i, {
        ttl: 864_000,
        remind: 3_600,
        deadline: seq + i === DUE ? 30 : null,
        to: (seq + i) % 100 === 0 && seq + i !== DUE ? [NEARLY, WHOLLY] : null,
      }),
    );
    await store.append("orders", drafts, T);
  }
  const { epoch } = (await store.heads("orders"))!;
  for (let seq = 1; seq <= EVENTS; seq += 500) {
    const words = Array.from({ length: 500 }, (_, i) => seq + i).flatMap((one) => [
      ...(one === 1 ? [] : [word(epoch, one, NEARLY, "done")]),
      word(epoch, one, WHOLLY, "done"),
    ]);
    await store.record("orders", words, T);
  }
}

const VERBS: [string, (store: Store) => Promise<unknown>][] = [
  ["join by a new device", (store) => store.join("orders", "new", T)],
  ["join by who owes the first event alone", (store) => store.join("orders", NEARLY, T)],
  ["join by who owes nothing", (store) => store.join("orders", WHOLLY, T)],
  [
    "seen",
    async (store) => {
      await store.enrol("orders", "another", T);
      await store.seen("orders", new Map(Array.from({ length: 200 }, (_, n) => [nameOf(n), T])));
    },
  ],
  ["devices", (store) => store.devices("orders", "", 4, T)],
  ["enrolments", (store) => store.enrolments("orders", "", 1_000)],
  [
    "owing",
    (store) =>
      store.owing(
        "orders",
        Array.from({ length: 4 }, (_, n) => nameOf(n)),
        T,
      ),
  ],
  ["the history of a device that everything was sent to", (store) => historyOf(store, "orders", WHOLLY, 1_000)],
  ["the history of a device that nothing was sent to", (store) => historyOf(store, "orders", "stranger", 10)],
  ["heads", (store) => store.heads("orders")],
  ["channels", (store) => store.channels("", 1_000)],
  ["events", (store) => reads.events(store, "orders", 40_000, 1_000)],
  ["receipts", (store) => reads.receipts(store, "orders", 40_000, 1_000)],
  ["tallies", (store) => reads.tallies(store, "orders", 40_000, 40_999)],
  ["settled", (store) => reads.settled(store, "orders", NEARLY, 40_000, 44_000)],
  ["rows of all states", (store) => reads.rows(store, "orders", DUE, null, "", 1_000)],
  ["rows of a state that nobody is in", (store) => reads.rows(store, "orders", DUE, "failed", "", 1_000)],
  [
    "silent",
    (store) =>
      reads.silent(
        store,
        "orders",
        DUE,
        Array.from({ length: 500 }, (_, n) => nameOf(n)),
      ),
  ],
  ["reminders", (store) => store.reminders("orders", T)],
  [
    "miss",
    async (store) => {
      for (let next: number | null = 0; next !== null && next <= LATER;) next = await store.recordMissing(LATER);
    },
  ],
  [
    "record by a thousand devices",
    async (store) => {
      const { epoch } = (await store.heads("orders"))!;
      const words = Array.from({ length: 1_000 }, (_, n) => word(epoch, EVENTS - 1, nameOf(n + 10), "done"));
      await store.record("orders", words, T);
    },
  ],
  ["retire of who owes nothing", (store) => store.retire("orders", WHOLLY, T)],
  ["retire of who owes all", (store) => store.retire("orders", SILENT, T)],
  [
    "trim",
    async (store) => {
      while (await store.trim("orders", { count: EVENTS - 3, before: 0 }, T));
    },
  ],
];

/** Hears of every command that Redis runs. */
async function monitor(redis: RedisServer): Promise<{ meter: Meter; end(): void }> {
  let [most, script, rest, marks] = [0, 0, "", 0];
  const decoder = new TextDecoder("latin1");
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: redis.port,
    socket: {
      data(_, bytes) {
        const lines = (rest + decoder.decode(bytes)).split("\n");
        rest = lines.pop()!;
        for (const line of lines) {
          if (line.includes('"mark"')) marks++;
          if (line.includes(" lua] ")) script += line.split('" "').length;
          else script = 0;
          if (script > most) most = script;
        }
      },
    },
  });
  socket.write("MONITOR\r\n");
  const mark = async (): Promise<void> => {
    const before = marks;
    await redis.ask("ECHO", "mark");
    await until(() => marks > before, "the monitor to come to the mark", 60_000);
  };
  await until(async () => (await redis.ask("CLIENT", "LIST")).includes("cmd=monitor"), "the monitor");
  return {
    meter: async (run) => {
      await mark();
      most = script = 0;
      await run();
      await mark();
      return most;
    },
    end: () => void socket.end(),
  };
}

describe("in a file, in one turn of the event loop,", () => {
  let store: SqliteStore;
  let stopCounting: () => void;
  beforeAll(async () => {
    stopCounting = countRows();
    store = new SqliteStore({ path: ":memory:" });
    await fill(store);
  });
  afterAll(async () => {
    await store.close();
    stopCounting();
  });

  test("a feed that catches up past answered events does not block other work", async () => {
    const engine = new Engine(store);
    const wire: Wire = {
      ready() {},
      write: () => undefined,
      gap() {},
      rest() {},
      beat() {},
      remind: () => undefined,
      bye() {},
    };
    const most = await rowMeter(async () => {
      const feed = engine.follow(
        { ...OWN, caller: "c", kind: "events", channels: ["orders"], device: NEARLY, last: null, since: "now" },
        wire,
      );
      await until(() => engine.held.live === 1, "the feed to rest", 120_000);
      feed.stop();
    });
    expect(most).toBeGreaterThan(100);
    expect(most).toBeLessThan(ROWS_A_TURN_OF_A_FEED);
    await engine.drain();
  });

  test.each(VERBS)("%s does a bounded piece of work", async (_, run) => {
    expect(await rowMeter(() => run(store))).toBeLessThan(ROWS_A_TURN);
  });
});

describe.skipIf(noRedis !== null)("in one script of Redis", () => {
  let redis: RedisServer;
  let store: RedisStore;
  let ear: Awaited<ReturnType<typeof monitor>>;
  beforeAll(async () => {
    redis = await startRedis();
    // What is counted is work. How long it takes is this machine's business.
    store = await RedisStore.open({ urls: [redis.url], callMs: 60_000, claimMs: CLAIM_MS });
    await fill(store);
    ear = await monitor(redis);
  });
  afterAll(async () => {
    ear?.end();
    await store?.close();
    await redis?.end();
  });

  test.each(VERBS)("%s does a bounded piece of work", async (_, run) => {
    expect(await ear.meter(() => run(store))).toBeLessThan(WORDS_A_SCRIPT);
  });
});
