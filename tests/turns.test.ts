/**
 * Long work leaves the event loop to others: what is done in one turn is counted, whatever the machine's speed.
 */
import { describe, expect, test } from "bun:test";
import { Engine } from "../engine/engine.ts";
import { CATCH_UP_ENTRIES, RING_ENTRIES_MAX, SLICE_FOLLOWERS } from "../engine/feeds/log.ts";
import type { Wire } from "../engine/feeds/feed.ts";
import type { EventDraft, ReceiptDraft } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { inLaterTurn, OPEN_ROWS, TURN_ROWS, WRITE_ROWS, yieldToEventLoop } from "../engine/yield.ts";
import { until } from "./support/harness.ts";
import { entries, entry, follow, gate, logOf, numbers, Past, Reader, readers } from "./support/log-readers.ts";

const aTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** The most that `count` grew in one turn of the event loop, until `isOver`. */
async function mostPerTurn(count: () => number, isOver: () => boolean): Promise<number> {
  let [most, before] = [0, count()];
  while (!isOver()) {
    await aTurn();
    most = Math.max(most, count() - before);
    before = count();
  }
  return most;
}

const event: EventDraft = {
  type: null,
  data: "{}",
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
};
const LONG = 40 * CATCH_UP_ENTRIES;

describe("catch-up", () => {
  test("one reader of a long log gets no more than a turn's share in each turn", async () => {
    const log = logOf(new Past(entries(1, LONG)), LONG);
    const reader = new Reader();
    follow(log, reader);
    const most = await mostPerTurn(
      () => reader.told.length,
      () => reader.rests > 0,
    );
    expect(reader.told).toEqual(numbers(1, LONG));
    expect(most).toBeLessThanOrEqual(TURN_ROWS);
  });

  test("readers whose reads end at the same moment are not all written to in that turn", async () => {
    const source = new Past(entries(1, LONG));
    source.gate = gate();
    const log = logOf(source, LONG);
    const all = numbers(1, 100).map((n) => {
      const reader = new Reader();
      follow(log, reader, n * 64);
      return reader;
    });
    await until(() => source.asked.length === all.length);
    const written = (): number => all.reduce((sum, { told }) => sum + told.length, 0);
    const counting = mostPerTurn(written, () => all.every(({ rests }) => rests > 0));
    source.gate.open();
    expect(await counting).toBeLessThanOrEqual(TURN_ROWS + RING_ENTRIES_MAX);
    for (const [index, { told }] of all.entries()) expect(told).toEqual(numbers((index + 1) * 64 + 1, LONG));
  });

  test("many readers that return at one position far behind cost one read per page, and share it", async () => {
    const source = new Past(entries(1, LONG));
    const log = logOf(source, LONG);
    const all = readers(log, 200);
    await until(() => all.every(({ rests }) => rests > 0));
    for (const { told } of all) expect(told).toEqual(numbers(1, LONG));
    expect(source.asked.length).toBeLessThanOrEqual(LONG / CATCH_UP_ENTRIES);
    const far = (LONG - RING_ENTRIES_MAX) / CATCH_UP_ENTRIES;
    for (let page = 0; page < far; page++) expect(new Set(all.map(({ batches }) => batches[page])).size).toBe(1);
  });

  test("entries that are stored after a page was read from the end of the log are no gap for the next reader there", async () => {
    const source = new Past(entries(RING_ENTRIES_MAX + 600, RING_ENTRIES_MAX + 600));
    const log = logOf(source, RING_ENTRIES_MAX + 600);
    const [first, second] = [new Reader(), new Reader()];
    source.kept = [];
    source.gate = gate();
    follow(log, first);
    await until(() => source.asked.length === 1);
    log.announce([entry(RING_ENTRIES_MAX + 601)]);
    follow(log, second);
    source.gate.open();
    await until(() => first.rests > 0 && second.rests > 0);
    for (const { told } of [first, second])
      expect(told).toEqual([`gap 0 ${RING_ENTRIES_MAX + 601}`, RING_ENTRIES_MAX + 601]);
  });
});

test("many logs that grow together share a turn's writes", async () => {
  const logs = numbers(1, 100).map(() => logOf(new Past()));
  const all = logs.flatMap((log) => readers(log, 10));
  await until(() => all.every(({ rests }) => rests > 0));
  const written = (): number => all.reduce((sum, { told }) => sum + told.length, 0);
  for (const log of logs) log.announce([entry(1)]);
  const most = await mostPerTurn(written, () => written() === all.length);
  expect(most).toBeLessThanOrEqual(SLICE_FOLLOWERS + 10);
});

describe("kinds of work", () => {
  test("take turns, so that a short one does not wait for a long one", async () => {
    let steps = 0;
    const long = async (): Promise<void> => {
      for (let step = 0; step < 50; step++) {
        await yieldToEventLoop("catch-up", TURN_ROWS);
        steps++;
      }
    };
    const all = Promise.all(numbers(1, 20).map(long));
    await aTurn();
    const before = steps;
    await yieldToEventLoop("read", 1);
    expect(steps - before).toBeLessThanOrEqual(2);
    let isDelivered = false;
    inLaterTurn("deliver", () => {
      isDelivered = true;
      return 1;
    });
    await until(() => isDelivered);
    expect(steps - before).toBeLessThan(20 * 50);
    await all;
  });

  test("serve those who wait in the order in which they came", async () => {
    const order: number[] = [];
    await Promise.all(
      numbers(1, 20).map(async (reader) => {
        for (let step = 0; step < 3; step++) {
          await yieldToEventLoop("catch-up", TURN_ROWS);
          order.push(reader);
        }
      }),
    );
    expect(order.slice(0, 20)).toEqual(numbers(1, 20));
    for (const reader of numbers(1, 20)) expect(order.filter((one) => one === reader)).toHaveLength(3);
    expect(new Set(order.slice(-20)).size).toBe(20);
  });
});

/** A feed that counts. */
class Counting implements Wire {
  static opened = 0;
  static beats = 0;
  ready(): void {
    Counting.opened++;
  }
  beat(): void {
    Counting.beats++;
  }
  write(): undefined {}
  gap(): void {}
  rest(): void {}
  remind(): undefined {}
  bye(): void {}
}

test("feeds that open at once, and that are quiet equally long, are served in slices", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const engine = new Engine(store, { limits: { beatMs: 1_500 } });
  await store.append("c", [event], Date.now());
  const devices = 600;
  Counting.opened = Counting.beats = 0;
  for (let device = 0; device < devices; device++)
    engine.follow(
      {
        ...{ kind: "events", channels: ["c"], device: `d${device}`, last: null, since: "now" },
        ...{ caller: "c", refused: null, expires: Infinity, renew: false },
      },
      new Counting(),
    );
  const opened = await mostPerTurn(
    () => Counting.opened,
    () => Counting.opened === devices,
  );
  expect(opened).toBeLessThanOrEqual(2 * (TURN_ROWS / OPEN_ROWS));
  const beaten = await mostPerTurn(
    () => Counting.beats,
    () => Counting.beats >= devices,
  );
  expect(beaten).toBeLessThanOrEqual(2 * (TURN_ROWS / WRITE_ROWS));
  await engine.drain();
  await engine.close();
});

test("arrays of receipts that come together are written a few at a time", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const [arrays, size] = [8, 1_000];
  for (let device = 0; device < size; device++) await store.enrol("c", `d${device}`, 0);
  const { epoch } = await store.append(
    "c",
    numbers(1, arrays).map(() => event),
    0,
  );
  const done = (seq: number): ReceiptDraft[] =>
    numbers(0, size - 1).map((n) => ({
      ...{
        event: { epoch, seq },
        device: `d${n}`,
        status: "done",
        detail: null,
        deviceAt: null,
        after: null,
        round: null,
        retry: true,
      },
    }));
  let turns = 0;
  const count = (): void => void (turns++, turns > 0 && setImmediate(count));
  count();
  const verdicts = await Promise.all(numbers(1, arrays).map((seq) => store.record("c", done(seq), 0)));
  const taken = turns;
  turns = Number.NEGATIVE_INFINITY;
  expect(verdicts.flat().every(({ result }) => result === "recorded")).toBe(true);
  expect(taken).toBeGreaterThanOrEqual(arrays / 2);
  const { done: all } = (await store.tallies("c", epoch, 1, 1))!.get(1)!;
  expect(all).toBe(size);
  await store.close();
});

test("hooks whose receiver is down call it a few at a time", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const hooks = 200;
  let calls = 0;
  const send = async (): Promise<never> => {
    calls++;
    throw new Error("refused");
  };
  for (let n = 0; n < hooks; n++) {
    await store.enrol(`c${n}`, "d", 0);
    const on = ["receipt"] as const;
    await store.putHook(
      `c${n}`,
      { name: "h", url: "https://hooks.example/", secret: null, on },
      `whsec_${"A".repeat(43)}=`,
      0,
    );
  }
  const resolve = async (): Promise<string[]> => ["93.184.216.34"];
  const engine = new Engine(store, { hookCall: { send, resolve }, report: () => {} });
  await until(() => engine.readers.followers === hooks);
  const pushed = await Promise.all(numbers(0, hooks - 1).map((n) => store.append(`c${n}`, [event], Date.now())));
  for (const [n, { epoch, first: seq }] of pushed.entries()) {
    const receipt = {
      event: { epoch, seq },
      device: "d",
      detail: null,
      deviceAt: null,
      after: null,
      round: null,
      retry: true,
    } as const;
    void store.record(`c${n}`, [{ ...receipt, status: "received" }], Date.now());
  }
  const most = await mostPerTurn(
    () => calls,
    () => calls >= hooks,
  );
  expect(most).toBeLessThanOrEqual(16);
  await engine.drain();
  await engine.close();
});

test("a reader of one channel among thousands causes one look at it, not at all of them", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const drafts = numbers(1_000, 3_000).map((n) => store.append(`c.${n}`, [event], 0));
  await Promise.all(drafts);
  let looked = 0;
  const { channels } = store;
  store.channels = async (...args) => {
    const page = await channels.apply(store, args);
    looked += page.items.length;
    return page;
  };
  const engine = new Engine(store);
  const one = await engine.directory.channels("", 10, { names: ["c.2999"], prefixes: [] });
  const [listed] = JSON.parse(`[${Buffer.concat(one.parts).toString()}]`) as { channel: string }[];
  expect(listed!.channel).toBe("c.2999");
  expect(looked).toBe(1);
  await engine.drain();
  await engine.close();
});
