/**
 * What every store must do, written as promises: the sentences of `engine/store.ts`, each tried from outside, through the interface alone.
 *
 * Two kinds of tests hold a store. The first are sentences about one promise each, to be read. The second is one property: random
 * calls, several in a turn, are given to the store and to a model that is obviously right (plain arrays and maps, every audience a
 * list of names, every count counted anew), and after each turn everything that can be read from the store is compared with
 * the model. When it fails, fast-check prints the seed and the shortest calls that show it.
 *
 * Time goes in as a parameter everywhere, so the clock is held and nothing here waits.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Event,
  type EventDraft,
  FINAL,
  isComplete,
  KEY_MEMORY_MS,
  type Code,
  PereError,
  type Receipt,
  type ReceiptDraft,
  type Row,
  rank,
  STATES,
  type State,
  type Status,
  type Tally,
  tallyCounts,
} from "../engine/model.ts";
import type { Appended, Heads, Joined, Page, Store, Verdict, Wake } from "../engine/store.ts";

/** A store made for one test. */
export interface Opened {
  readonly store: Store;
  /** Lets go of the store and opens what it kept again. */
  readonly reopen?: () => Promise<Store>;
  /** Removes what the test left, after the store was closed. */
  readonly end?: () => Promise<void>;
}

export interface ContractOptions {
  /** Why nothing is kept when the store is closed; then reopening is skipped, with this reason. */
  readonly keepsNothing?: string;
  /** Random histories that are compared with the model. */
  readonly histories?: number;
}

/** When everything in these tests happens. */
const T = Date.UTC(2026, 0, 1);
const SECOND = 1000;
/** Retention that drops nothing. */
const EVERYTHING = { count: Number.MAX_SAFE_INTEGER, before: 0 };

const draft = (data: unknown, more: Partial<EventDraft> = {}): EventDraft => ({
  type: null,
  data: JSON.stringify(data),
  to: null,
  ttl: null,
  ...more,
});

const word = (
  epoch: string,
  seq: number,
  device: string,
  status: Status,
  more: Partial<ReceiptDraft> = {},
): ReceiptDraft => ({ event: { epoch, seq }, device, status, detail: null, deviceAt: null, ...more });

/** Reads all pages. */
async function all<Item>(read: (after: string) => Promise<Page<Item, string>>): Promise<Item[]> {
  const items: Item[] = [];
  for (let after: string | null = ""; after !== null;) {
    const page: Page<Item, string> = await read(after);
    items.push(...page.items);
    after = page.next;
  }
  return items;
}

const rowsOf = (store: Store, channel: string, event: number, status: State | null = null): Promise<Row[]> =>
  all((after) => store.rows(channel, event, status, after, 1_000));

const tallyOf = async (store: Store, channel: string, event: number): Promise<Tally | undefined> =>
  (await store.tallies(channel, event, event)).get(event);

const countRows = (rows: readonly Row[]): Record<State, number> => {
  const counts = { pending: 0, received: 0, working: 0, missing: 0, done: 0, failed: 0 };
  for (const { status } of rows) counts[status]++;
  return counts;
};

/** Every kept event's tally adds up, and says what the rows say. */
async function expectTalliesToEqualRows(store: Store, channel: string): Promise<void> {
  const { events } = (await store.heads(channel))!;
  const tallies = await store.tallies(channel, 1, events.head);
  expect([...tallies.keys()].sort((a, b) => a - b)).toEqual(
    Array.from({ length: events.head - events.floor }, (_, n) => events.floor + 1 + n),
  );
  for (const [event, tally] of tallies) {
    const rows = await rowsOf(store, channel, event);
    expect(tally.addressed).toBe(rows.length);
    expect(tallyCounts(tally)).toEqual(countRows(rows));
  }
}

/** Trims until there is no more to do, and counts the calls. */
async function trimAll(
  store: Store,
  channel: string | null,
  retention: { count: number; before: number },
  now: number,
): Promise<number> {
  for (let calls = 1; ; calls++) {
    if (!(await store.trim(channel, retention, now))) return calls;
    if (calls === 10_000) throw new Error("trim never ends");
  }
}

/** The code that a call was refused with. */
const codeOf = (call: Promise<unknown>): Promise<Code | "accepted" | "not a PereError"> =>
  call.then(
    () => "accepted",
    (error: unknown) => (error instanceof PereError ? error.code : "not a PereError"),
  );

/** `to` is a set of names: a store may give them back in any order. */
const sorted = (event: Event): Event => ({ ...event, to: event.to && [...event.to].sort() });

export function storeContract(
  name: string,
  open: () => Promise<Opened>,
  { keepsNothing, histories = 60 }: ContractOptions = {},
): void {
  describe(name, () => {
    let opened: Opened;
    let store: Store;
    let wakes: Wake[];

    beforeEach(async () => {
      opened = await open();
      store = opened.store;
      wakes = [];
      store.watch((wake) => wakes.push(wake));
    });
    afterEach(async () => {
      await store.close();
      await opened.end?.();
    });

    const append = (data: unknown, more: Partial<EventDraft> = {}, now = T): Promise<Appended> =>
      store.append("orders", [draft(data, more)], now);
    const enrol = async (...devices: string[]): Promise<void> => {
      for (const device of devices) await store.enrol("orders", device, T);
    };
    const give = async (seq: number, device: string, status: Status, now = T): Promise<Verdict> => {
      const { epoch } = (await store.heads("orders"))!;
      return (await store.record("orders", [word(epoch, seq, device, status)], now))[0]!;
    };
    const devicesOf = (channel: string, now = T) => all((after) => store.devices(channel, after, 1_000, now));
    const pendingOf = async (device: string, now = T): Promise<number | undefined> =>
      (await devicesOf("orders", now)).find((enrolment) => enrolment.device === device)?.pending;

    describe("positions", () => {
      test("begin at 1 and grow by 1, whether events come alone or in batches", async () => {
        const alone = await append("a");
        const batch = await store.append("orders", [draft("b"), draft("c"), draft("d")], T);
        const last = await append("e");
        expect([alone, batch, last].map(({ first, count }) => [first, count])).toEqual([
          [1, 1],
          [2, 3],
          [5, 1],
        ]);
        expect(await store.heads("orders")).toEqual({
          epoch: alone.epoch,
          events: { head: 5, floor: 0 },
          receipts: { head: 0, floor: 0 },
        });
        expect((await store.events("orders", 0, 10)).map(({ seq, data }) => [seq, data])).toEqual([
          [1, '"a"'],
          [2, '"b"'],
          [3, '"c"'],
          [4, '"d"'],
          [5, '"e"'],
        ]);
      });

      test("have an epoch, one a channel, that all answers agree on", async () => {
        const { epoch } = await append("a");
        const other = await store.append("others", [draft("a")], T);
        expect(epoch).toMatch(/^[0-9a-z]{1,16}$/);
        expect(other.epoch).not.toBe(epoch);
        expect((await append("b")).epoch).toBe(epoch);
        expect((await store.open("orders")).epoch).toBe(epoch);
        expect((await store.join("orders", "till", T)).epoch).toBe(epoch);
        expect(wakes.filter(({ channel }) => channel === "orders").map((wake) => wake.epoch)).toEqual([epoch, epoch]);
      });

      test("of one channel are no business of another's", async () => {
        await append("a");
        const other = await store.append("others", [draft("b")], T);
        expect(other.first).toBe(1);
        expect((await store.events("orders", 0, 10)).length).toBe(1);
      });

      test("have no holes when many calls are made in one turn, and come in the order of the calls", async () => {
        const answers = await Promise.all(Array.from({ length: 50 }, (_, n) => append(n)));
        expect(answers.map(({ first }) => first)).toEqual(Array.from({ length: 50 }, (_, n) => n + 1));
        expect((await store.events("orders", 0, 100)).map(({ data }) => data)).toEqual(
          Array.from({ length: 50 }, (_, n) => String(n)),
        );
      });
    });

    describe("a channel", () => {
      test("is made by its first use, and by no reading", async () => {
        expect(await store.heads("orders")).toBeNull();
        expect(await store.events("orders", 0, 10)).toEqual([]);
        expect(await store.receipts("orders", 0, 10)).toEqual([]);
        expect((await store.settled("orders", "till", 0, 10)).size).toBe(0);
        expect((await store.tallies("orders", 1, 10)).size).toBe(0);
        expect(await store.rows("orders", 1, null, "", 10)).toEqual({ items: [], next: null });
        expect(await store.devices("orders", "", 10, T)).toEqual({ items: [], next: null });
        expect(await store.retire("orders", "till", T)).toBe(false);
        expect(await store.record("orders", [word("none", 1, "till", "done")], T)).toEqual(["unknown"]);
        await store.seen("orders", new Map([["till", T]]));
        expect(await store.trim("orders", EVERYTHING, T)).toBe(false);
        expect(await store.heads("orders")).toBeNull();

        const heads = await store.open("orders");
        expect(heads).toEqual({
          epoch: heads.epoch,
          events: { head: 0, floor: 0 },
          receipts: { head: 0, floor: 0 },
        });
        expect(await store.heads("orders")).toEqual(heads);
      });

      test("opened by many at once is made once", async () => {
        const epochs = await Promise.all(Array.from({ length: 10 }, async () => (await store.open("orders")).epoch));
        expect(new Set(epochs).size).toBe(1);
      });

      test("is listed by name, a page at a time, with its extent and how many are enrolled", async () => {
        for (const channel of ["c", "a", "b", "A"]) await store.open(channel);
        await store.append("b", [draft(1), draft(2)], T);
        await store.enrol("b", "till", T);
        await store.enrol("b", "kiosk", T);
        await store.retire("b", "till", T);
        const listed: string[] = [];
        for (let after: string | null = ""; after !== null;) {
          const page: Awaited<ReturnType<Store["channels"]>> = await store.channels(after, 3);
          expect(page.items.length).toBeLessThanOrEqual(3);
          listed.push(...page.items.map(({ channel }) => channel));
          after = page.next;
        }
        expect(listed).toEqual(["A", "a", "b", "c"]);
        const b = (await store.channels("a", 1)).items[0]!;
        expect(b).toMatchObject({ channel: "b", devices: 1, events: { head: 2, floor: 0 } });
      });
    });

    describe("an event", () => {
      test("keeps the publisher's bytes, its type, its time and its expiry", async () => {
        const data = '{"b":1,"a":12345678901234567890,"a":-0,  "text":"ü\\u0000\\ud83d 😀 \'quoted\'"}';
        await store.append("orders", [{ type: "order.created", data, to: null, ttl: 1.5 }], T);
        expect(await store.events("orders", 0, 1)).toEqual([
          { seq: 1, at: T, type: "order.created", data, to: null, expires: T + 1500 },
        ]);
      });

      test("is read after a position, at most so many, at least one whatever its size", async () => {
        const big = "x".repeat(10_000);
        await store.append(
          "orders",
          Array.from({ length: 10 }, () => draft(big)),
          T,
        );
        const seqs = async (after: number, limit: number, bytesMax?: number): Promise<number[]> =>
          (await store.events("orders", after, limit, bytesMax)).map(({ seq }) => seq);
        expect(await seqs(0, 3)).toEqual([1, 2, 3]);
        expect(await seqs(8, 100)).toEqual([9, 10]);
        expect(await seqs(10, 100)).toEqual([]);
        expect(await seqs(0, 100, 1)).toEqual([1]);
        const some = await seqs(2, 100, 35_000);
        expect(some[0]).toBe(3);
        expect(some.length).toBeGreaterThanOrEqual(3);
        expect(some.length).toBeLessThanOrEqual(5);
        // A page that was cut short does not stand in the way of what follows.
        await append("more");
        expect(await seqs(10, 100)).toEqual([11]);
      });

      test("past its expiry is still kept, but owed by nobody", async () => {
        await enrol("till");
        await append("soon gone", { ttl: 1 });
        await append("stays");
        expect(await pendingOf("till", T + 999)).toBe(2);
        expect(await pendingOf("till", T + 1001)).toBe(1);
        expect((await store.join("orders", "till", T + 999)).settled).toBe(0);
        expect((await store.join("orders", "till", T + 1001)).settled).toBe(1);
        expect((await store.events("orders", 0, 10)).length).toBe(2);
        expect(await give(1, "till", "done", T + 2 * SECOND)).toBe("recorded");
      });
    });

    describe("the audience", () => {
      test("is whoever was enrolled at the push", async () => {
        await enrol("till", "kiosk");
        expect((await append("a")).addressed).toBe(2);
        await enrol("late");
        expect((await rowsOf(store, "orders", 1)).map(({ device }) => device)).toEqual(["kiosk", "till"]);
        expect(await give(1, "late", "done")).toBe("unaddressed");
        expect((await append("b")).addressed).toBe(3);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("of an event pushed before anybody came is nobody", async () => {
        expect((await append("a")).addressed).toBe(0);
        await enrol("till");
        expect(await rowsOf(store, "orders", 1)).toEqual([]);
        expect(isComplete((await tallyOf(store, "orders", 1))!)).toBe(true);
        expect(await pendingOf("till")).toBe(0);
      });

      test("is who was named in `to`, enrolled or not, and nobody else", async () => {
        await enrol("till", "kiosk");
        expect((await append("a", { to: ["till", "stranger"] })).addressed).toBe(2);
        expect((await store.events("orders", 0, 1)).map((event) => sorted(event).to)).toEqual([["stranger", "till"]]);
        expect((await rowsOf(store, "orders", 1)).map(({ device }) => device)).toEqual(["stranger", "till"]);
        expect(await give(1, "kiosk", "done")).toBe("unaddressed");
        expect(await give(1, "stranger", "done")).toBe("recorded");
        expect(await give(1, "till", "received")).toBe("recorded");
        expect(await devicesOf("orders")).toMatchObject([
          { device: "kiosk", pending: 0 },
          { device: "till", pending: 1 },
        ]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("named before it enrolled owes what was addressed to it", async () => {
        await append("for all");
        await append("for it", { to: ["truck"] });
        const joined = await store.join("orders", "truck", T);
        expect(joined).toMatchObject({ enrolled: false, joined: 2, settled: 1, lost: 0 });
        expect(await pendingOf("truck")).toBe(1);
      });

      test("counts a device once, however often it enrols", async () => {
        expect(await store.enrol("orders", "till", T)).toBe(true);
        expect(await store.enrol("orders", "till", T + 1)).toBe(false);
        expect(await Promise.all(["kiosk", "kiosk"].map((device) => store.enrol("orders", device, T)))).toEqual([
          true,
          false,
        ]);
        expect((await append("a")).addressed).toBe(2);
        expect((await devicesOf("orders")).map(({ device, enrolledAt }) => [device, enrolledAt])).toEqual([
          ["kiosk", T],
          ["till", T],
        ]);
      });

      test("is the same for the whole of a batch", async () => {
        await enrol("till", "kiosk");
        const batch = await store.append("orders", [draft(1), draft(2)], T);
        expect(batch.addressed).toBe(2);
        for (const event of [1, 2]) expect((await tallyOf(store, "orders", event))!.addressed).toBe(2);
      });

      test("follows from the order of the calls when they are made in one turn", async () => {
        const calls = [
          append("nobody"),
          store.enrol("orders", "till", T),
          append("till"),
          store.join("orders", "kiosk", T),
          append("both"),
          store.retire("orders", "till", T),
          append("kiosk"),
        ] as const;
        const answers = await Promise.all(calls);
        expect([answers[0], answers[2], answers[4], answers[6]].map(({ addressed }) => addressed)).toEqual([
          0, 1, 2, 1,
        ]);
        expect(answers[3]).toMatchObject({ enrolled: false, joined: 2, events: { head: 2 } });
        await expectTalliesToEqualRows(store, "orders");
      });
    });

    describe("retiring a device", () => {
      test("releases what it owes and keeps its final words", async () => {
        await enrol("till", "kiosk");
        for (const data of ["done", "working", "pending"]) await append(data);
        await append("named", { to: ["till"] });
        await give(1, "till", "done");
        await give(2, "till", "working");
        expect(await store.retire("orders", "till", T)).toBe(true);
        expect(await store.retire("orders", "till", T)).toBe(false);

        const tallies = await store.tallies("orders", 1, 4);
        expect([1, 2, 3, 4].map((event) => tallies.get(event)!.addressed)).toEqual([2, 1, 1, 0]);
        expect(tallies.get(2)!.working).toBe(0);
        expect((await rowsOf(store, "orders", 1)).map(({ device, status }) => [device, status])).toEqual([
          ["kiosk", "pending"],
          ["till", "done"],
        ]);
        expect(await give(1, "till", "failed")).toBe("duplicate");
        for (const event of [2, 3, 4]) expect(await give(event, "till", "done")).toBe("unaddressed");
        expect((await append("after")).addressed).toBe(1);
        expect((await devicesOf("orders")).map(({ device }) => device)).toEqual(["kiosk"]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("does not bring back what was released when it enrols again", async () => {
        await enrol("till");
        await append("first life, done");
        await append("first life, owed");
        await give(1, "till", "done");
        await give(2, "till", "received");
        await store.retire("orders", "till", T);
        await append("between");
        expect(await store.join("orders", "till", T)).toMatchObject({ enrolled: false, joined: 3, settled: 3 });
        await append("second life");
        expect(await pendingOf("till")).toBe(1);
        for (const [event, verdict] of [
          [1, "duplicate"],
          [2, "unaddressed"],
          [3, "unaddressed"],
          [4, "recorded"],
        ] as const)
          expect(await give(event, "till", "done")).toBe(verdict);
        expect((await rowsOf(store, "orders", 1)).map(({ status }) => status)).toEqual(["done"]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("and enrolling it again before another push changes nothing for others", async () => {
        await enrol("till", "kiosk");
        await append("a");
        await store.retire("orders", "till", T);
        await enrol("till");
        await store.retire("orders", "till", T);
        await enrol("till");
        expect((await append("b")).addressed).toBe(2);
        expect((await tallyOf(store, "orders", 1))!.addressed).toBe(1);
        await expectTalliesToEqualRows(store, "orders");
      });
    });

    describe("a receipt", () => {
      const STATUSES = ["received", "working", "done", "failed"] as const;

      test("counts only when it moves its device forward; done and failed are equal and final", async () => {
        await enrol("till");
        let event = 0;
        for (const first of STATUSES)
          for (const second of STATUSES) {
            await append([first, second]);
            event++;
            const forward = rank(first) < FINAL && rank(second) > rank(first);
            expect(await give(event, "till", first)).toBe("recorded");
            expect([first, second, await give(event, "till", second)]).toEqual([
              first,
              second,
              forward ? "recorded" : "duplicate",
            ]);
            const [row] = await rowsOf(store, "orders", event);
            expect(row!.status).toBe(forward ? second : first);
          }
        await expectTalliesToEqualRows(store, "orders");
      });

      test("is kept as it was given, in the row and in the log", async () => {
        await enrol("till");
        const { epoch } = await append("a");
        const detail = '{"printed":true,"text":"ü \'x\'"}';
        await store.record("orders", [word(epoch, 1, "till", "done", { detail, deviceAt: T - 5 })], T + 7);
        expect(await rowsOf(store, "orders", 1)).toEqual([
          { device: "till", status: "done", detail, at: T + 7, deviceAt: T - 5, late: false },
        ]);
        expect(await store.receipts("orders", 0, 10)).toEqual([
          { seq: 1, event: 1, device: "till", status: "done", detail, at: T + 7, deviceAt: T - 5, late: false },
        ]);
      });

      test("for an event that is not there is unknown: another epoch, ahead of the head, none at all", async () => {
        await enrol("till");
        const { epoch } = await append("a");
        const verdicts = await store.record(
          "orders",
          [
            word("another0", 1, "till", "done"),
            word(epoch, 2, "till", "done"),
            word(epoch, 0, "till", "done"),
            word(epoch, 999_999_999_999_999, "till", "done"),
          ],
          T,
        );
        expect(verdicts).toEqual(["unknown", "unknown", "unknown", "unknown"]);
        expect((await store.heads("orders"))!.receipts.head).toBe(0);
      });

      test("of many in one call each has its verdict, in order", async () => {
        await enrol("till", "kiosk");
        const { epoch } = await append("a");
        const verdicts = await store.record(
          "orders",
          [
            word(epoch, 1, "till", "received"),
            word(epoch, 1, "till", "received"),
            word(epoch, 1, "stranger", "done"),
            word(epoch, 1, "kiosk", "failed"),
            word(epoch, 7, "kiosk", "done"),
            word(epoch, 1, "till", "done"),
            word(epoch, 1, "till", "failed"),
          ],
          T,
        );
        expect(verdicts).toEqual([
          "recorded",
          "duplicate",
          "unaddressed",
          "recorded",
          "unknown",
          "recorded",
          "duplicate",
        ]);
        expect((await store.receipts("orders", 0, 10)).map(({ seq, device, status }) => [seq, device, status])).toEqual(
          [
            [1, "till", "received"],
            [2, "kiosk", "failed"],
            [3, "till", "done"],
          ],
        );
      });

      test("given twice in one turn counts once", async () => {
        await enrol("till");
        await append("a");
        const verdicts = await Promise.all([give(1, "till", "done"), give(1, "till", "failed")]);
        expect(verdicts.sort()).toEqual(["duplicate", "recorded"]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("log is read after a position, at most so many", async () => {
        await enrol("till");
        const { epoch } = await store.append(
          "orders",
          Array.from({ length: 5 }, (_, n) => draft(n)),
          T,
        );
        await store.record(
          "orders",
          [1, 2, 3, 4, 5].map((seq) => word(epoch, seq, "till", "done")),
          T,
        );
        const seqs = async (after: number, limit: number) =>
          (await store.receipts("orders", after, limit)).map(({ seq }) => seq);
        expect(await seqs(0, 2)).toEqual([1, 2]);
        expect(await seqs(2, 100)).toEqual([3, 4, 5]);
        expect(await seqs(5, 100)).toEqual([]);
      });
    });

    describe("rows", () => {
      test("come by device name, a page at a time, of one state or of all", async () => {
        const devices = ["b", "A", "a", "a:1", "a-1", "c", "~"];
        await enrol(...devices);
        const { epoch } = await append("a");
        await store.record(
          "orders",
          [
            word(epoch, 1, "a", "done"),
            word(epoch, 1, "~", "done"),
            word(epoch, 1, "b", "failed"),
            word(epoch, 1, "c", "working"),
          ],
          T,
        );
        const read = async (status: State | null, limit: number): Promise<string[]> =>
          (await all((after) => store.rows("orders", 1, status, after, limit))).map(({ device }) => device);
        const names = [...devices].sort();
        for (const limit of [1, 2, names.length, 100]) expect(await read(null, limit)).toEqual(names);
        for (const limit of [1, 100]) {
          expect(await read("done", limit)).toEqual(["a", "~"]);
          expect(await read("pending", limit)).toEqual(["A", "a-1", "a:1"]);
          expect(await read("missing", limit)).toEqual([]);
        }
        const first = await store.rows("orders", 1, null, "", 3);
        expect(first.items.length).toBe(3);
        expect(first.next).not.toBeNull();
      });

      test("of a device that said nothing are empty but for its name", async () => {
        await enrol("till");
        await append("a");
        expect(await rowsOf(store, "orders", 1)).toEqual([
          { device: "till", status: "pending", detail: null, at: null, deviceAt: null, late: false },
        ]);
      });

      test("of an event that is not there are none", async () => {
        await enrol("till");
        await append("a");
        for (const event of [0, 2]) expect(await rowsOf(store, "orders", event)).toEqual([]);
      });
    });

    describe("join", () => {
      test("enrols whom it does not know, after what was pushed", async () => {
        await append("before");
        expect(await store.join("orders", "till", T)).toEqual({
          ...(await store.heads("orders"))!,
          enrolled: false,
          joined: 1,
          settled: 1,
          lost: 0,
        });
        expect(await store.join("orders", "till", T)).toMatchObject({ enrolled: true, joined: 1 });
      });

      test("says up to where nothing is owed, also where answers came out of order", async () => {
        await enrol("till");
        for (const data of ["a", "b", "c", "d"]) await append(data);
        const settled = async (): Promise<number> => (await store.join("orders", "till", T)).settled;
        expect(await settled()).toBe(0);
        await give(2, "till", "done");
        await give(3, "till", "working");
        expect(await settled()).toBe(0);
        await give(1, "till", "failed");
        expect(await settled()).toBe(2);
        await give(4, "till", "done");
        expect(await settled()).toBe(2);
        await give(3, "till", "done");
        expect(await settled()).toBe(4);
        await append("not for it", { to: ["kiosk"] });
        expect(await settled()).toBe(5);
        await append("for it", { to: ["till"] });
        expect(await settled()).toBe(5);
      });

      test("is not needed to have the device's answers: settled() has the final ones", async () => {
        await enrol("till", "kiosk");
        for (const data of ["a", "b", "c", "d"]) await append(data);
        await give(1, "till", "done");
        await give(2, "till", "working");
        await give(3, "till", "failed");
        await give(4, "kiosk", "done");
        expect([...(await store.settled("orders", "till", 0, 4))].sort()).toEqual([1, 3]);
        expect([...(await store.settled("orders", "till", 1, 3))]).toEqual([3]);
        expect([...(await store.settled("orders", "till", 0, 2))]).toEqual([1]);
        expect((await store.settled("orders", "stranger", 0, 4)).size).toBe(0);
      });
    });

    describe("devices", () => {
      test("come by name, a page at a time, each with what it owes", async () => {
        await enrol("b", "a", "c", "A");
        await append("a");
        await enrol("d");
        await append("b");
        await append("only a", { to: ["a"] });
        await give(1, "b", "done");
        await give(2, "b", "received");
        const read = async (limit: number) =>
          (await all((after) => store.devices("orders", after, limit, T))).map(({ device, pending }) => [
            device,
            pending,
          ]);
        const expected = [
          ["A", 2],
          ["a", 3],
          ["b", 1],
          ["c", 2],
          ["d", 1],
        ];
        for (const limit of [1, 2, 5, 100]) expect(await read(limit)).toEqual(expected);
      });

      test("owe the same whether or not they have joined since", async () => {
        await enrol("till");
        for (const data of ["a", "b", "c"]) await append(data);
        await append("d", { to: ["till"] });
        await give(1, "till", "done");
        await give(3, "till", "done");
        expect(await pendingOf("till")).toBe(2);
        await store.join("orders", "till", T);
        expect(await pendingOf("till")).toBe(2);
        await give(2, "till", "done");
        await store.join("orders", "till", T);
        expect(await pendingOf("till")).toBe(1);
        await give(4, "till", "done");
        expect(await pendingOf("till")).toBe(0);
      });

      test("show when they were enrolled and last seen; a stranger's sign of life is nothing", async () => {
        await store.enrol("orders", "till", T);
        await store.join("orders", "kiosk", T + 1);
        await store.seen(
          "orders",
          new Map([
            ["till", T + 5],
            ["stranger", T + 6],
          ]),
        );
        expect(await devicesOf("orders")).toEqual([
          { device: "kiosk", enrolledAt: T + 1, seenAt: null, pending: 0 },
          { device: "till", enrolledAt: T, seenAt: T + 5, pending: 0 },
        ]);
        await store.seen("orders", new Map([["till", T + 9]]));
        expect((await devicesOf("orders"))[1]!.seenAt).toBe(T + 9);
      });
    });

    describe("an idempotency key", () => {
      const key = (name: string, digest = "digest") => ({ key: name, digest });

      test("stores once, and answers the first call's events again", async () => {
        await enrol("till");
        const first = await store.append("orders", [draft(1, { type: "t" }), draft(2)], T, key("k"));
        expect(first).toMatchObject({ first: 1, count: 2, at: T, addressed: 1, type: "t", replayed: false });
        await enrol("kiosk");
        await append("other");
        const again = await store.append("orders", [draft(1, { type: "t" }), draft(2)], T + SECOND, key("k"));
        expect(again).toMatchObject({ ...first, replayed: true });
        expect((await store.heads("orders"))!.events.head).toBe(3);
      });

      test("repeated in the same turn stores once", async () => {
        const answers = await Promise.all([1, 2, 3].map(() => store.append("orders", [draft(1)], T, key("k"))));
        expect(answers.map(({ first }) => first)).toEqual([1, 1, 1]);
        expect(answers.map(({ replayed }) => replayed)).toEqual([false, true, true]);
        expect(wakes.length).toBe(1);
      });

      test("with another digest is refused, and nothing of that call is stored or told", async () => {
        await store.append("orders", [draft(1)], T, key("k"));
        const refused = store.append("orders", [draft(2), draft(3)], T, key("k", "another"));
        const neighbour = append("neighbour");
        expect(await codeOf(refused)).toBe("refused");
        expect((await neighbour).first).toBe(2);
        expect((await store.events("orders", 0, 10)).map(({ data }) => data)).toEqual(["1", '"neighbour"']);
        expect(wakes.flatMap(({ entries }) => entries.map(({ seq }) => seq))).toEqual([1, 2]);
        expect(await store.append("orders", [draft(1)], T, key("k"))).toMatchObject({ first: 1, replayed: true });
      });

      test("belongs to its channel", async () => {
        await store.append("orders", [draft(1)], T, key("k"));
        expect((await store.append("others", [draft(2)], T, key("k", "another"))).replayed).toBe(false);
      });

      test("is forgotten after a day by the time passed in, trimmed or not", async () => {
        await store.append("orders", [draft(1)], T, key("k"));
        const before = await store.append("orders", [draft(1)], T + KEY_MEMORY_MS - 1, key("k"));
        expect(before.replayed).toBe(true);
        const after = await store.append("orders", [draft(2)], T + KEY_MEMORY_MS + 1, key("k", "another"));
        expect(after).toMatchObject({ first: 2, replayed: false });
        // The new use counts a day of its own.
        await trimAll(store, null, EVERYTHING, T + KEY_MEMORY_MS + 2);
        const again = await store.append("orders", [draft(2)], T + KEY_MEMORY_MS + 3, key("k", "another"));
        expect(again).toMatchObject({ first: 2, replayed: true });
        await trimAll(store, null, EVERYTHING, T + 3 * KEY_MEMORY_MS);
        expect((await store.append("orders", [draft(3)], T + 3 * KEY_MEMORY_MS, key("k"))).replayed).toBe(false);
      });

      test("outlives its events", async () => {
        await store.append("orders", [draft(1)], T, key("k"));
        await append(2);
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect(await store.append("orders", [draft(1)], T, key("k"))).toMatchObject({ first: 1, replayed: true });
      });
    });

    describe("retention", () => {
      test("by count keeps the newest", async () => {
        for (let n = 1; n <= 5; n++) await append(n);
        await trimAll(store, "orders", { count: 2, before: 0 }, T);
        expect((await store.heads("orders"))!.events).toEqual({ head: 5, floor: 3 });
        expect((await store.events("orders", 0, 10)).map(({ seq }) => seq)).toEqual([4, 5]);
        expect([...(await store.tallies("orders", 1, 5)).keys()]).toEqual([4, 5]);
        expect((await append(6)).first).toBe(6);
      });

      test("by age keeps what was pushed at that moment or after it", async () => {
        for (let n = 1; n <= 4; n++) await append(n, {}, T + n);
        await trimAll(store, "orders", { count: 100, before: T + 3 }, T + 4);
        expect((await store.events("orders", 0, 10)).map(({ seq }) => seq)).toEqual([3, 4]);
      });

      test("may drop everything; positions go on", async () => {
        for (let n = 1; n <= 3; n++) await append(n);
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect((await store.heads("orders"))!.events).toEqual({ head: 3, floor: 3 });
        expect((await append(4)).first).toBe(4);
        expect((await store.events("orders", 0, 10)).map(({ seq }) => seq)).toEqual([4]);
      });

      test("drops nothing twice, and nothing of another channel", async () => {
        await append(1);
        await store.append("others", [draft(1), draft(2)], T);
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect(await store.trim("orders", { count: 0, before: 0 }, T)).toBe(false);
        expect((await store.heads("others"))!.events.floor).toBe(0);
      });

      test("drops an event with its rows and its receipts", async () => {
        await enrol("till");
        for (let n = 1; n <= 3; n++) await append(n);
        await give(1, "till", "received");
        await give(2, "till", "done");
        await give(1, "till", "done");
        await give(3, "till", "done");
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 4, floor: 3 });
        expect((await store.receipts("orders", 0, 10)).map(({ seq, event }) => [seq, event])).toEqual([[4, 3]]);
        for (const event of [1, 2]) {
          expect(await rowsOf(store, "orders", event)).toEqual([]);
          expect(await give(event, "till", "done")).toBe("unknown");
        }
        expect((await rowsOf(store, "orders", 3)).map(({ status }) => status)).toEqual(["done"]);
      });

      test("keeps the receipts of kept events, whatever went before them in the log", async () => {
        await enrol("till");
        await append(1);
        await append(2);
        await give(2, "till", "done");
        await give(1, "till", "done");
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect((await store.receipts("orders", 0, 10))[0]).toMatchObject({ seq: 1, event: 2 });
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 2, floor: 2 });
        expect(await store.receipts("orders", 0, 10)).toEqual([]);
      });

      test("is done in slices, and pushes go between them", async () => {
        await enrol("till", "kiosk");
        for (let batch = 0; batch < 5; batch++) {
          const { epoch, first } = await store.append(
            "orders",
            Array.from({ length: 1_000 }, (_, n) => draft(n)),
            T,
          );
          await store.record(
            "orders",
            Array.from({ length: 1_000 }, (_, n) => word(epoch, first + n, "till", "done")),
            T,
          );
        }
        let calls = 0;
        let more = true;
        while (more) {
          const [answer, trimmed] = await Promise.all([
            append("between"),
            store.trim("orders", { count: 10, before: 0 }, T),
          ]);
          more = trimmed;
          calls++;
          const { events } = (await store.heads("orders"))!;
          expect(answer.first).toBe(5_000 + calls);
          // What can be read follows on from the floor, however far the slices are.
          expect((await store.events("orders", 0, 1))[0]!.seq).toBe(events.floor + 1);
          if (calls === 1_000) throw new Error("trim never ends");
        }
        expect(calls).toBeGreaterThan(1);
        expect((await store.heads("orders"))!.events).toEqual({ head: 5_000 + calls, floor: 4_990 + calls });
        await expectTalliesToEqualRows(store, "orders");
        expect((await store.receipts("orders", 0, 10_000)).every(({ event }) => event > 4_990 + calls)).toBe(true);
      });

      test("remembers for each device the newest it lost unanswered, until a receipt follows a join", async () => {
        await enrol("owes", "answered", "gone");
        for (let n = 1; n <= 3; n++) await append(n);
        for (const event of [1, 2]) await give(event, "answered", "done");
        await give(2, "owes", "working");
        await store.retire("orders", "gone", T);
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        const lost = async (device: string): Promise<number> => (await store.join("orders", device, T)).lost;

        // A receipt that no join preceded proves nothing: the device may not have been told.
        expect(await give(3, "owes", "received")).toBe("recorded");
        expect(await lost("owes")).toBe(2);
        expect(await lost("answered")).toBe(0);
        expect(await lost("gone")).toBe(0);
        expect(await lost("stranger")).toBe(0);
        // Told, but not yet heard of: told again.
        expect(await lost("owes")).toBe(2);
        expect(await give(3, "owes", "done")).toBe("recorded");
        expect(await lost("owes")).toBe(0);

        // What is lost after a join is told at the next.
        await append(4);
        await append(5);
        expect(await lost("owes")).toBe(0);
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect(await give(5, "owes", "received")).toBe("recorded");
        expect(await lost("owes")).toBe(4);
      });

      test("loses nothing that had expired, or that was not addressed to the device", async () => {
        await enrol("till");
        await append("short", { ttl: 1 });
        await append("other's", { to: ["kiosk"] });
        await append("kept");
        await trimAll(store, "orders", { count: 1, before: 0 }, T + 2 * SECOND);
        expect((await store.join("orders", "till", T + 2 * SECOND)).lost).toBe(0);
      });

      test("loses what was addressed to the device by name", async () => {
        await enrol("till", "kiosk");
        await append("its own", { to: ["till"] });
        await append("kept");
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect((await store.join("orders", "till", T)).lost).toBe(1);
        expect((await store.join("orders", "kiosk", T)).lost).toBe(0);
      });
    });

    describe("a wake", () => {
      const told = (kind: Wake["kind"], channel = "orders"): number[] =>
        wakes
          .filter((wake) => wake.kind === kind && wake.channel === channel)
          .flatMap(({ entries }) => entries.map(({ seq }) => seq));

      test("tells every entry once, in the order of its log, as it can be read", async () => {
        await enrol("till");
        await Promise.all([append(1), store.append("others", [draft(1)], T), append(2, { ttl: 5, to: ["till"] })]);
        const { epoch } = await store.append("orders", [draft(3, { type: "t" }), draft(4)], T);
        await Promise.all([
          store.record("orders", [word(epoch, 2, "till", "received"), word(epoch, 1, "till", "done")], T),
          store.record("orders", [word(epoch, 2, "till", "done", { detail: "1", deviceAt: T })], T),
        ]);
        expect(told("events")).toEqual([1, 2, 3, 4]);
        expect(told("events", "others")).toEqual([1]);
        expect(told("receipts")).toEqual([1, 2, 3]);
        const events = wakes.flatMap((wake) =>
          wake.kind === "events" && wake.channel === "orders" ? wake.entries : [],
        );
        expect(events).toEqual(await store.events("orders", 0, 10));
        const receipts = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
        expect(receipts).toEqual(await store.receipts("orders", 0, 10));
      });

      test("does not come for what stored nothing", async () => {
        await enrol("till");
        const { epoch } = await append(1);
        await give(1, "till", "done");
        wakes.length = 0;
        await give(1, "till", "done");
        await store.record("orders", [word(epoch, 1, "stranger", "done"), word(epoch, 5, "till", "done")], T);
        await enrol("kiosk");
        await store.retire("orders", "kiosk", T);
        await store.join("orders", "till", T);
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect(wakes).toEqual([]);
      });

      test("comes when what it tells is there to be read", async () => {
        const readings: Promise<boolean>[] = [];
        store.watch(({ kind, channel, entries }) => {
          const { seq } = entries.at(-1)!;
          const read = kind === "events" ? store.events(channel, seq - 1, 1) : store.receipts(channel, seq - 1, 1);
          readings.push(Promise.resolve(read).then(([entry]) => entry?.seq === seq));
        });
        await enrol("till");
        await Promise.all([append(1), append(2)]);
        await give(1, "till", "done");
        expect(readings.length).toBeGreaterThan(0);
        expect(await Promise.all(readings)).not.toContain(false);
      });
    });

    describe("its life", () => {
      test("says at any time what an operator can rely on", async () => {
        const ready = await store.ready();
        expect(ready.store.length).toBeGreaterThan(0);
        expect(["fsync", "memory"]).toContain(ready.durability);
      });

      test("ends once what was asked of it is stored; after that every call is told that it is away", async () => {
        const last = append("last");
        await Promise.all([store.close(), store.close()]);
        expect((await last).first).toBe(1);
        const calls: Record<string, () => Promise<unknown>> = {
          append: () => append("too late"),
          record: () => store.record("orders", [word("e", 1, "till", "done")], T),
          open: () => store.open("new"),
          join: () => store.join("orders", "till", T),
          enrol: () => store.enrol("orders", "till", T),
          retire: () => store.retire("orders", "till", T),
          seen: () => store.seen("orders", new Map([["till", T]])),
          heads: () => store.heads("unread"),
          events: () => store.events("orders", 0, 10),
          receipts: () => store.receipts("orders", 0, 10),
          settled: () => store.settled("orders", "till", 0, 10),
          tallies: () => store.tallies("orders", 1, 1),
          rows: () => store.rows("orders", 1, null, "", 10),
          devices: () => store.devices("orders", "", 10, T),
          channels: () => store.channels("", 10),
          trim: () => store.trim("orders", EVERYTHING, T),
          ready: () => store.ready(),
        };
        const codes: Record<string, string> = {};
        for (const [method, call] of Object.entries(calls))
          try {
            codes[method] = await codeOf(call());
          } catch {
            codes[method] = "thrown, not rejected";
          }
        expect(codes).toEqual(Object.fromEntries(Object.keys(calls).map((method) => [method, "away"])));
      });

      const kept = keepsNothing === undefined ? test : test.skip;
      const why = keepsNothing === undefined ? "" : ` (skipped: ${keepsNothing})`;
      kept(`goes on where it was when it is opened again${why}`, async () => {
        await enrol("till", "kiosk", "gone");
        await store.append("orders", [draft(1), draft(2), draft(3, { to: ["till", "truck"], ttl: 60 })], T, {
          key: "k",
          digest: "d",
        });
        await append(4);
        await give(1, "till", "done");
        await give(2, "till", "working");
        await give(3, "truck", "failed");
        await store.retire("orders", "gone", T);
        await store.seen("orders", new Map([["kiosk", T + 1]]));
        await trimAll(store, "orders", { count: 3, before: 0 }, T);
        const look = async () => ({
          heads: await store.heads("orders"),
          events: (await store.events("orders", 0, 100)).map(sorted),
          receipts: await store.receipts("orders", 0, 100),
          tallies: await store.tallies("orders", 1, 100),
          rows: await Promise.all([2, 3, 4].map((event) => rowsOf(store, "orders", event))),
          devices: await devicesOf("orders"),
          channels: await store.channels("", 10),
          settled: await store.settled("orders", "till", 1, 100),
        });
        const before = await look();
        store = await opened.reopen!();
        wakes.length = 0;
        store.watch((wake) => wakes.push(wake));
        expect(await look()).toEqual(before);
        expect(wakes).toEqual([]);

        const again = await store.append("orders", [draft(1)], T, { key: "k", digest: "d" });
        expect(again).toMatchObject({ first: 1, count: 3, replayed: true });
        const other = store.append("orders", [draft(1)], T, { key: "k", digest: "other" });
        expect(await codeOf(other)).toBe("refused");
        expect(await store.join("orders", "kiosk", T)).toMatchObject({ enrolled: true, lost: 1 });
        expect(await append(5)).toMatchObject({ epoch: before.heads!.epoch, first: 5, addressed: 2 });
        expect(await give(2, "till", "done")).toBe("recorded");
        expect(await give(2, "gone", "done")).toBe("unaddressed");
        await expectTalliesToEqualRows(store, "orders");
      });
    });

    test("does what an obviously right model does, whatever is asked of it", async () => {
      await fc.assert(
        fc.asyncProperty(HISTORY, async (history) => {
          const fresh = await open();
          try {
            await compare(fresh.store, history);
          } finally {
            await fresh.store.close();
            await fresh.end?.();
          }
        }),
        { numRuns: histories },
      );
    }, 60_000);
  });
}

// ------------------------------------------------------------------------------------------------------------- the model

const CHANNELS = ["a", "b"] as const;
const DEVICES = ["d1", "d2", "d3", "d4"] as const;

/** One call, as chance makes it. Events are named by how far they are behind the head, so that most names hit. */
type Step = { readonly channel: string } & (
  | {
      readonly do: "append";
      readonly drafts: readonly EventDraft[];
      readonly key: { readonly key: string; readonly digest: string } | null;
    }
  | {
      readonly do: "record";
      readonly words: readonly { back: number; device: string; status: Status; stranger: boolean }[];
    }
  | { readonly do: "enrol" | "retire" | "join" | "seen"; readonly device: string }
  | { readonly do: "trim"; readonly count: number; readonly age: number }
  | { readonly do: "wait"; readonly ms: number }
);

/** Most calls go to one channel; the other is there to be left alone. */
const CHANNEL = fc.constantFrom(CHANNELS[0], CHANNELS[0], CHANNELS[0], CHANNELS[1]);
const DEVICE = fc.constantFrom(...DEVICES);
const DRAFT: fc.Arbitrary<EventDraft> = fc.record({
  type: fc.constantFrom(null, "t"),
  data: fc.constantFrom("1", '"ü"', "{}"),
  to: fc.option(fc.uniqueArray(DEVICE, { minLength: 1, maxLength: 3 }), { freq: 3 }),
  ttl: fc.option(fc.constantFrom(0.7, 5), { freq: 3 }),
});
const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("append" as const),
      channel: CHANNEL,
      drafts: fc.array(DRAFT, { minLength: 1, maxLength: 3 }),
      key: fc.option(fc.record({ key: fc.constantFrom("k1", "k2"), digest: fc.constantFrom("x", "x", "y") }), {
        freq: 3,
      }),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant("record" as const),
      channel: CHANNEL,
      words: fc.array(
        fc.record({
          back: fc.integer({ min: -1, max: 6 }),
          device: DEVICE,
          status: fc.constantFrom<Status>("received", "working", "done", "failed"),
          stranger: fc.constantFrom(false, false, false, false, true),
        }),
        { minLength: 1, maxLength: 4 },
      ),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "enrol" as const,
        "enrol" as const,
        "retire" as const,
        "join" as const,
        "join" as const,
        "seen" as const,
      ),
      channel: CHANNEL,
      device: DEVICE,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("trim" as const),
      channel: CHANNEL,
      count: fc.integer({ min: 0, max: 8 }),
      age: fc.constantFrom(3 * SECOND, 10 * KEY_MEMORY_MS),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("wait" as const),
      channel: CHANNEL,
      ms: fc.constantFrom(1, 300, 2 * SECOND, KEY_MEMORY_MS + 1),
    }),
  },
);
/** Turns, each of calls that are made without waiting for one another. */
const HISTORY = fc.array(fc.array(STEP, { minLength: 1, maxLength: 4, size: "max" }), {
  minLength: 1,
  maxLength: 24,
  size: "max",
});

interface ModelEvent {
  readonly event: Event;
  /** Names; who is released leaves. */
  readonly audience: Set<string>;
  readonly words: Map<string, Receipt>;
}

interface ModelDevice {
  readonly joined: number;
  readonly enrolledAt: number;
  /** It left and came back with no push between: whether its past stays its own is the store's choice. */
  readonly returned: boolean;
  seenAt: number | null;
  lost: number;
  told: number;
}

class ModelChannel {
  readonly name: string;
  epoch = "";
  floor = 0;
  /** All that ever were; `floor` says which are kept. */
  readonly events: ModelEvent[] = [];
  readonly receipts: Receipt[] = [];
  readonly devices = new Map<string, ModelDevice>();
  /** The `joined` of those who left. */
  readonly left = new Map<string, number>();
  readonly keys = new Map<string, { digest: string; answer: Appended; expires: number }>();

  constructor(name: string) {
    this.name = name;
  }

  get heads(): Pick<Heads, "epoch" | "events"> {
    return { epoch: this.epoch, events: { head: this.events.length, floor: this.floor } };
  }
  get kept(): ModelEvent[] {
    return this.events.slice(this.floor);
  }

  isFinal({ words }: ModelEvent, device: string): boolean {
    return rank(words.get(device)?.status ?? "pending") >= FINAL;
  }

  /** The kept, unexpired events that a device owes a final word on. */
  owed(device: string, now: number): number[] {
    return this.kept
      .filter((entry) => entry.audience.has(device) && !this.isFinal(entry, device))
      .filter(({ event }) => event.expires === null || event.expires > now)
      .map(({ event }) => event.seq);
  }

  append(
    drafts: readonly EventDraft[],
    now: number,
    key: { key: string; digest: string } | null,
  ): Appended | "refused" {
    const known = key && this.keys.get(key.key);
    if (known && known.expires > now)
      return known.digest === key.digest ? { ...known.answer, replayed: true } : "refused";
    const first = this.events.length + 1;
    for (const { type, data, to, ttl } of drafts) {
      const expires = ttl === null ? null : now + ttl * 1000;
      const event = { seq: this.events.length + 1, at: now, type, data, to, expires };
      this.events.push({ event, audience: new Set(to ?? this.devices.keys()), words: new Map() });
    }
    const { event, audience } = this.events[first - 1]!;
    const answer: Appended = {
      epoch: this.epoch,
      first,
      count: drafts.length,
      at: now,
      addressed: audience.size,
      type: event.type,
      replayed: false,
    };
    if (key) this.keys.set(key.key, { digest: key.digest, answer, expires: now + KEY_MEMORY_MS });
    return answer;
  }

  record({ event: position, device, status, detail, deviceAt }: ReceiptDraft, now: number): Verdict {
    const entry = this.events[position.seq - 1];
    if (position.epoch !== this.epoch || !entry || position.seq <= this.floor) return "unknown";
    if (!entry.audience.has(device)) return "unaddressed";
    const before = entry.words.get(device)?.status ?? "pending";
    if (rank(before) >= FINAL || rank(status) <= rank(before)) return "duplicate";
    const receipt = {
      seq: this.receipts.length + 1,
      event: position.seq,
      device,
      status,
      detail,
      at: now,
      deviceAt,
      late: false,
    };
    this.receipts.push(receipt);
    entry.words.set(device, receipt);
    const known = this.devices.get(device);
    if (known && known.told === known.lost) known.lost = known.told = 0;
    return "recorded";
  }

  enrol(device: string, now: number): boolean {
    if (this.devices.has(device)) return false;
    const joined = this.events.length;
    const returned = this.left.get(device) === joined;
    this.devices.set(device, { joined, enrolledAt: now, returned, seenAt: null, lost: 0, told: 0 });
    return true;
  }

  retire(device: string): boolean {
    const known = this.devices.get(device);
    if (!known) return false;
    this.devices.delete(device);
    this.left.set(device, known.joined);
    for (const entry of this.kept) if (!this.isFinal(entry, device)) entry.audience.delete(device);
    return true;
  }

  join(device: string, now: number): Omit<Joined, "receipts"> {
    const enrolled = !this.enrol(device, now);
    const known = this.devices.get(device)!;
    known.told = known.lost;
    const settled = (this.owed(device, now)[0] ?? this.events.length + 1) - 1;
    return { ...this.heads, enrolled, joined: known.joined, settled, lost: known.lost };
  }

  trim(count: number, before: number, now: number): void {
    for (const entry of this.kept) {
      const { seq, at, expires } = entry.event;
      if (seq > this.events.length - count && at >= before) break;
      for (const [device, known] of this.devices)
        if (entry.audience.has(device) && !this.isFinal(entry, device) && (expires === null || expires > now))
          known.lost = seq;
      this.floor = seq;
    }
  }

  rows({ audience, words }: ModelEvent): Row[] {
    return [...audience].sort().map((device) => {
      const said = words.get(device);
      return {
        device,
        status: said?.status ?? "pending",
        detail: said?.detail ?? null,
        at: said?.at ?? null,
        deviceAt: said?.deviceAt ?? null,
        late: false,
      };
    });
  }
}

/** Gives a history to the store and to the model, and compares all that they say. */
async function compare(store: Store, history: readonly (readonly Step[])[]): Promise<void> {
  const models = new Map<string, ModelChannel>(CHANNELS.map((name) => [name, new ModelChannel(name)]));
  const wakes: Wake[] = [];
  store.watch((wake) => wakes.push(wake));
  let now = T;
  for (const model of models.values()) {
    model.epoch = (await store.open(model.name)).epoch;
    // Somebody is there from the start, or most events would be nobody's.
    model.enrol(DEVICES[0], now);
    await store.enrol(model.name, DEVICES[0], now);
  }
  for (const turn of history) {
    let answers: Promise<void>[] = [];
    /** Notes what the model says now, and compares when the store has answered. */
    const answer = <Value>(call: Promise<Value>, check: (value: Value) => void): void =>
      void answers.push(call.then(check));
    for (const step of turn) {
      const model = models.get(step.channel)!;
      const { name, epoch } = model;
      switch (step.do) {
        case "append": {
          const expected = model.append(step.drafts, now, step.key);
          const call = store.append(name, step.drafts, now, step.key ?? undefined);
          if (expected === "refused") answer(codeOf(call), (code) => expect(code).toBe("refused"));
          else answer(call, (appended) => expect(appended).toMatchObject({ ...expected }));
          break;
        }
        case "record": {
          const head = model.events.length;
          const words = step.words.map(({ back, device, status, stranger }, n) =>
            word(stranger ? "stranger" : epoch, head - back, device, status, {
              detail: n % 2 ? null : `${n}`,
              deviceAt: n % 2 ? now - n : null,
            }),
          );
          const expected = words.map((given) => model.record(given, now));
          answer(store.record(name, words, now), (verdicts) => expect(verdicts).toEqual(expected));
          break;
        }
        case "enrol": {
          const expected = model.enrol(step.device, now);
          answer(store.enrol(name, step.device, now), (enrolled) => expect(enrolled).toBe(expected));
          break;
        }
        case "retire": {
          const expected = model.retire(step.device);
          answer(store.retire(name, step.device, now), (retired) => expect(retired).toBe(expected));
          break;
        }
        case "join": {
          const { lost, ...expected } = model.join(step.device, now);
          const { returned } = model.devices.get(step.device)!;
          answer(store.join(name, step.device, now), (joined) => {
            expect(joined).toMatchObject(expected);
            if (!returned) expect(joined.lost).toBe(lost);
          });
          break;
        }
        case "seen": {
          const known = model.devices.get(step.device);
          if (known) known.seenAt = now;
          answer(store.seen(name, new Map([[step.device, now]])), () => {});
          break;
        }
        case "trim": {
          // Slice by slice: what else was asked for comes before.
          await Promise.all(answers);
          answers = [];
          const before = now - step.age;
          model.trim(step.count, before, now);
          await trimAll(store, name, { count: step.count, before }, now);
          await trimAll(store, null, { count: step.count, before }, now);
          const [oldest] = await store.receipts(name, 0, 1);
          if (oldest) expect(oldest.event).toBeGreaterThan(model.floor);
          break;
        }
        case "wait":
          now += step.ms;
      }
    }
    await Promise.all(answers);
    for (const model of models.values()) await compareAll(store, model, now);
  }
  for (const { name, events, receipts } of models.values()) {
    const told = wakes.filter(({ channel }) => channel === name);
    expect(told.flatMap((wake) => (wake.kind === "events" ? wake.entries : [])).map(sorted)).toEqual(
      events.map(({ event }) => sorted(event)),
    );
    expect(told.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []))).toEqual(receipts);
    expect(told.every(({ entries }) => entries.length > 0)).toBe(true);
  }
}

/** Everything that can be read of a channel. */
async function compareAll(store: Store, model: ModelChannel, now: number): Promise<void> {
  const { name, kept, floor, events, receipts } = model;
  const head = events.length;
  const heads = (await store.heads(name))!;
  expect(heads).toMatchObject(model.heads);
  // Whether `to` still has the names of those who were released is the store's choice.
  const stillNamed = (event: Event): Event => {
    const { audience } = events[event.seq - 1]!;
    return sorted({ ...event, to: event.to && event.to.filter((device) => audience.has(device)) });
  };
  expect((await store.events(name, 0, 1_000)).map(stillNamed)).toEqual(kept.map(({ event }) => stillNamed(event)));

  // The receipts log: without holes, with all that belongs to kept events.
  expect(heads.receipts.head).toBe(receipts.length);
  expect(await store.receipts(name, 0, 1_000)).toEqual(receipts.slice(heads.receipts.floor));
  expect(receipts.slice(0, heads.receipts.floor).every(({ event }) => event <= floor)).toBe(true);

  const tallies = await store.tallies(name, 1, head);
  expect(tallies.size).toBe(kept.length);
  for (const entry of kept) {
    const { seq } = entry.event;
    const rows = model.rows(entry);
    expect(await rowsOf(store, name, seq)).toEqual(rows);
    expect(tallies.get(seq)!.addressed).toBe(rows.length);
    expect(tallyCounts(tallies.get(seq)!)).toEqual(countRows(rows));
    const state = STATES[seq % STATES.length]!;
    expect(await rowsOf(store, name, seq, state)).toEqual(rows.filter(({ status }) => status === state));
  }

  const names = [...model.devices.keys()].sort();
  const enrolments = await all((after) => store.devices(name, after, 3, now));
  expect(enrolments.map(({ device }) => device)).toEqual(names);
  for (const { device, enrolledAt, seenAt, pending } of enrolments) {
    const known = model.devices.get(device)!;
    expect([device, enrolledAt, pending]).toEqual([device, known.enrolledAt, model.owed(device, now).length]);
    if (!known.returned) expect(seenAt).toBe(known.seenAt);
  }
  for (const device of DEVICES)
    expect([...(await store.settled(name, device, floor, head))].sort((a, b) => a - b)).toEqual(
      kept.filter((entry) => model.isFinal(entry, device)).map(({ event }) => event.seq),
    );
  const listed = (await store.channels("", 10)).items.find(({ channel }) => channel === name)!;
  expect(listed).toEqual({ ...heads, channel: name, devices: names.length });
}
