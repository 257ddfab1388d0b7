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
  type EventDraft,
  FINAL,
  isComplete,
  KEY_MEMORY_MS,
  type Receipt,
  rank,
  type State,
  type Status,
  tallyCounts,
} from "../../engine/model.ts";
import {
  all,
  bySeq,
  codeOf,
  draft,
  EVERYTHING,
  expectTalliesToEqualRows,
  followAll,
  hear,
  heardAll,
  missAll,
  reads,
  rowsOf,
  SECOND,
  sorted,
  T,
  tallyOf,
  type Told,
  trimAll,
  word,
} from "./calls.ts";
import { compare, HISTORY } from "./model.ts";
import {
  type Appended,
  type Delivery,
  type Hook,
  type HookDraft,
  HOOKS_MAX,
  type Idempotency,
  type Store,
  type Verdict,
} from "../../engine/store.ts";
import { until } from "../support/harness.ts";

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
export function storeContract(
  name: string,
  open: () => Promise<Opened>,
  { keepsNothing, histories = 60 }: ContractOptions = {},
): void {
  describe(name, () => {
    let opened: Opened;
    let store: Store;
    let wakes: Told[];

    beforeEach(async () => {
      opened = await open();
      store = opened.store;
      wakes = [];
      hear(store, (told) => wakes.push(told));
      await followAll(store, FOLLOWED);
    });
    afterEach(async () => {
      await store.close();
      await opened.end?.();
    });

    const FOLLOWED = ["orders", "others"];
    const heard = (): Promise<void> => heardAll(store, FOLLOWED, wakes);
    const append = (data: unknown, more: Partial<EventDraft> = {}, now = T): Promise<Appended> =>
      store.append("orders", [draft(data, more)], now);
    const enrol = async (...devices: string[]): Promise<void> => {
      for (const device of devices) await store.enrol("orders", device, T);
    };
    const give = async (seq: number, device: string, status: Status, now = T): Promise<Verdict> => {
      const { epoch } = (await store.heads("orders"))!;
      return (await store.record("orders", [word(epoch, seq, device, status)], now))[0]!;
    };
    /** The receipts log, in short. */
    const log = async (after = 0): Promise<[number, string, State][]> =>
      (await reads.receipts(store, "orders", after, 10_000)).map(({ event, device, status }) => [
        event,
        device,
        status,
      ]);
    const namesOf = (count: number): string[] =>
      Array.from({ length: count }, (_, n) => `device-${String(n).padStart(6, "0")}`);
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
        expect((await reads.events(store, "orders", 0, 10)).map(({ seq, data }) => [seq, data])).toEqual([
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
        await heard();
        expect(wakes.filter(({ channel }) => channel === "orders").map((wake) => wake.epoch)).toEqual([epoch, epoch]);
      });

      test("of one channel are no business of another's", async () => {
        await append("a");
        const other = await store.append("others", [draft("b")], T);
        expect(other.first).toBe(1);
        expect((await reads.events(store, "orders", 0, 10)).length).toBe(1);
      });

      test("have no holes when many calls are made in one turn, and come in the order of the calls", async () => {
        const answers = await Promise.all(Array.from({ length: 50 }, (_, n) => append(n)));
        expect(answers.map(({ first }) => first)).toEqual(Array.from({ length: 50 }, (_, n) => n + 1));
        expect((await reads.events(store, "orders", 0, 100)).map(({ data }) => data)).toEqual(
          Array.from({ length: 50 }, (_, n) => String(n)),
        );
      });
    });

    describe("what is read by its number", () => {
      test("is read of the life of the log that is asked for, and of no other", async () => {
        await enrol("till");
        const { epoch } = await append("a", { remind: 1 });
        await give(1, "till", "done");
        const look = (life: string, channel = "orders") =>
          Promise.all([
            store.events(channel, life, 0, 10),
            store.receipts(channel, life, 0, 10),
            store.finalized(channel, life, "till", 0, 1),
            store.tallies(channel, life, 1, 1),
            store.rows(channel, life, 1, null, "", 10),
            store.unanswered(channel, life, 1, ["till"]),
          ]);
        expect((await look(epoch)).map((found) => found === null)).toEqual(Array(6).fill(false));
        for (const found of [await look("another0"), await look(epoch, "others"), await look(epoch, "unused")])
          expect(found.every((one) => one === null)).toBe(true);
        expect((await store.reminders("orders", T)).map((reminder) => reminder.epoch)).toEqual([epoch]);
      });
    });

    describe("a channel", () => {
      test("is made by its first use, and by no reading", async () => {
        expect(await store.heads("orders")).toBeNull();
        expect(await reads.events(store, "orders", 0, 10)).toEqual([]);
        expect(await reads.receipts(store, "orders", 0, 10)).toEqual([]);
        expect((await reads.settled(store, "orders", "till", 0, 10)).size).toBe(0);
        expect((await reads.tallies(store, "orders", 1, 10)).size).toBe(0);
        expect(await reads.rows(store, "orders", 1, null, "", 10)).toEqual({ items: [], next: null });
        expect(await store.devices("orders", "", 10, T)).toEqual({ items: [], next: null });
        expect(await store.reminders("orders", T)).toEqual([]);
        await reads.silent(store, "orders", 1, ["till"]);
        expect(await store.recordMissing(T)).toBeNull();
        for (const channel of ["orders", null]) expect(await store.hooks(channel)).toEqual([]);
        expect(await store.deliveries("orders", "till")).toEqual([]);
        expect(await store.progress("orders", "till", null, {})).toBe(false);
        expect(await store.dropHook("orders", "till", T)).toBe(false);
        expect(await store.retire("orders", "till", T)).toBe(false);
        expect(await store.record("orders", [word("none", 1, "till", "done")], T)).toEqual(["unknown"]);
        await store.seen("orders", new Map([["till", T]]));
        expect(await store.trim("orders", EVERYTHING, T)).toBe(false);
        expect(await store.heads("orders")).toBeNull();

        const heads = await store.open("orders");
        expect(heads).toMatchObject({
          epoch: expect.stringMatching(/^[0-9a-z]+$/),
          events: { head: 0, floor: 0 },
          receipts: { head: 0, floor: 0 },
        });
        expect(await store.heads("orders")).toBeNull();
        await store.enrol("orders", "till", T);
        const { isUnborn: _, ...extent } = heads;
        expect(await store.heads("orders")).toEqual(extent);
      });

      test("opened by many at once is made once", async () => {
        const epochs = await Promise.all(Array.from({ length: 10 }, async () => (await store.open("orders")).epoch));
        expect(new Set(epochs).size).toBe(1);
      });

      test("is listed by name, a page at a time, with its extent and how many are enrolled", async () => {
        for (const channel of ["c", "a", "A"]) await store.enrol(channel, "till", T);
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
      test("keeps the publisher's bytes, its type and all its times", async () => {
        const data = '{"b":1,"a":12345678901234567890,"a":-0,  "text":"ü\\u0000\\ud83d 😀 \'quoted\'"}';
        await store.append(
          "orders",
          [{ type: "order.created", data, to: null, ttl: 1.5, deadline: 60, remind: 2.5 }],
          T,
        );
        expect(await reads.events(store, "orders", 0, 1)).toEqual([
          {
            seq: 1,
            at: T,
            type: "order.created",
            data,
            to: null,
            expires: T + 1500,
            deadline: T + 60_000,
            remind: 2500,
          },
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
          (await reads.events(store, "orders", after, limit, bytesMax)).map(({ seq }) => seq);
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
        expect((await reads.events(store, "orders", 0, 10)).length).toBe(2);
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
        expect((await reads.events(store, "orders", 0, 1)).map((event) => sorted(event).to)).toEqual([
          ["stranger", "till"],
        ]);
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

        const tallies = await reads.tallies(store, "orders", 1, 4);
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

      test("that completes events has an entry for each in the log, with the device's name and no word of it", async () => {
        await enrol("till", "kiosk");
        for (const data of ["kiosk is done", "till is done", "both owe", "till alone"])
          await append(data, data === "till alone" ? { to: ["till"], deadline: 1 } : {});
        await give(1, "kiosk", "done");
        await give(1, "till", "working");
        await give(2, "till", "failed");
        await missAll(store, T + SECOND);
        expect((await store.heads("orders"))!.receipts.head).toBe(4);
        await store.retire("orders", "till", T + 2 * SECOND);
        const entries = (await reads.receipts(store, "orders", 4, 10)).sort((a, b) => a.event - b.event);
        const entry = {
          device: "till",
          status: "pending",
          detail: null,
          at: T + 2 * SECOND,
          deviceAt: null,
          late: false,
        };
        expect(entries.map(({ seq: _, ...rest }) => rest) as unknown[]).toEqual([
          { ...entry, event: 1, completes: { done: 1, failed: 0 } },
          { ...entry, event: 4, completes: { done: 0, failed: 0 } },
        ]);
        const tallies = await reads.tallies(store, "orders", 1, 4);
        expect([1, 2, 3, 4].map((event) => isComplete(tallies.get(event)!))).toEqual([true, false, false, true]);
        await expectTalliesToEqualRows(store, "orders");
        await heard();
        expect(wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : [])).slice(4)).toEqual(
          await reads.receipts(store, "orders", 4, 10),
        );

        // Of what it left behind nothing is told again.
        expect(await give(2, "kiosk", "done")).toBe("recorded");
        expect((await reads.receipts(store, "orders", 6, 10)).map(({ completes }) => completes)).toEqual([
          null,
          { done: 1, failed: 1 },
        ]);
        await store.retire("orders", "kiosk", T);
        expect((await log(8)) as unknown[]).toEqual([[3, "kiosk", "pending"]]);
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

    describe("a retirement", () => {
      test("is told to who follows the channel's events, once it is done, and only where there was one", async () => {
        const told: (readonly [string, string] | number)[] = [];
        store.watch((wake) => {
          if (wake.kind === "retired") told.push([wake.channel, wake.device]);
          if (wake.kind === "events") told.push(...wake.entries.map(({ seq }) => seq));
        });
        await enrol("till", "kiosk");
        await store.enrol("others", "till", T);
        await append("before");
        await store.retire("orders", "till", T);
        await Promise.all([store.retire("orders", "till", T), store.retire("orders", "nobody", T)]);
        await Promise.all([store.retire("orders", "kiosk", T), append("after")]);
        await store.retire("others", "till", T);
        await until(() => told.length >= 5, "two events and three retirements");
        expect(told).toEqual([1, ["orders", "till"], ["orders", "kiosk"], 2, ["others", "till"]]);
      });

      test("is there to be read when it is told", async () => {
        const readings: Promise<number>[] = [];
        store.watch(({ kind }) => {
          if (kind === "retired") readings.push(devicesOf("orders").then(({ length }) => length));
        });
        await enrol("till", "kiosk");
        await store.retire("orders", "till", T);
        await until(() => readings.length === 1, "the retirement");
        expect(await readings[0]!).toBe(1);
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
        expect(await reads.receipts(store, "orders", 0, 10)).toEqual([
          {
            seq: 1,
            event: 1,
            device: "till",
            status: "done",
            detail,
            at: T + 7,
            deviceAt: T - 5,
            late: false,
            completes: null,
          },
          {
            ...{ seq: 2, event: 1, device: "till", status: "pending", detail: null, at: T + 7, deviceAt: null },
            ...{ late: false, completes: { done: 1, failed: 0 } },
          },
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
        expect(
          (await reads.receipts(store, "orders", 0, 10)).map(({ seq, device, status }) => [seq, device, status]),
        ).toEqual([
          [1, "till", "received"],
          [2, "kiosk", "failed"],
          [3, "till", "done"],
          [4, "till", "pending"],
        ]);
      });

      test("given twice in one turn counts once", async () => {
        await enrol("till");
        await append("a");
        const verdicts = await Promise.all([give(1, "till", "done"), give(1, "till", "failed")]);
        expect(verdicts.sort()).toEqual(["duplicate", "recorded"]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("with which every addressed device gave a final word is followed by an entry that says so, with the outcome; no other is", async () => {
        await enrol("a", "b", "c");
        const { epoch } = await append("a");
        await append("to one", { to: ["stranger"] });
        await store.record(
          "orders",
          [
            word(epoch, 1, "a", "done"),
            word(epoch, 1, "b", "received"),
            word(epoch, 1, "c", "failed"),
            word(epoch, 1, "c", "done"),
            word(epoch, 2, "stranger", "working"),
            word(epoch, 1, "b", "working"),
            word(epoch, 1, "b", "done"),
            word(epoch, 1, "b", "done"),
            word(epoch, 2, "stranger", "failed"),
          ],
          T,
        );
        expect(
          (await reads.receipts(store, "orders", 0, 10)).map(({ event, device, completes }) => [
            event,
            device,
            completes,
          ]),
        ).toEqual([
          [1, "a", null],
          [1, "b", null],
          [1, "c", null],
          [2, "stranger", null],
          [1, "b", null],
          [1, "b", null],
          [1, "b", { done: 2, failed: 1 }],
          [2, "stranger", null],
          [2, "stranger", { done: 0, failed: 1 }],
        ]);
        await heard();
        expect(wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []))).toEqual(
          await reads.receipts(store, "orders", 0, 10),
        );
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
          [1, 2, 3, 4, 5].map((seq) => word(epoch, seq, "till", "working")),
          T,
        );
        const seqs = async (after: number, limit: number) =>
          (await reads.receipts(store, "orders", after, limit)).map(({ seq }) => seq);
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
          (await all((after) => reads.rows(store, "orders", 1, status, after, limit))).map(({ device }) => device);
        const names = [...devices].sort();
        for (const limit of [1, 2, names.length, 100]) expect(await read(null, limit)).toEqual(names);
        for (const limit of [1, 100]) {
          expect(await read("done", limit)).toEqual(["a", "~"]);
          expect(await read("pending", limit)).toEqual(["A", "a-1", "a:1"]);
          expect(await read("missing", limit)).toEqual([]);
        }
        const first = await reads.rows(store, "orders", 1, null, "", 3);
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
        expect([...(await reads.settled(store, "orders", "till", 0, 4))].sort()).toEqual([1, 3]);
        expect([...(await reads.settled(store, "orders", "till", 1, 3))]).toEqual([3]);
        expect([...(await reads.settled(store, "orders", "till", 0, 2))]).toEqual([1]);
        expect((await reads.settled(store, "orders", "stranger", 0, 4)).size).toBe(0);
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
      const keep = (data: string, given: Idempotency) => store.append("orders", [draft(data)], T, given);

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
        await heard();
        expect(wakes.length).toBe(1);
      });

      test("that an earlier version kept, with a digest of the body alone, is still known", async () => {
        const now = (digest: string, subject = "") => ({ key: `${subject}k`, earlier: "k", digest });
        const first = await keep("a", { key: "k", digest: "one:body" });
        for (const given of [now("one:body?options"), now("one:body?others", "till/")])
          expect(await keep("b", given)).toMatchObject({ first: first.first, replayed: true });
        expect(await codeOf(keep("b", now("one:else?options")))).toBe("refused");
        expect(await codeOf(keep("b", now("one:else?options", "till/")))).toBe("refused");
      });

      test("that this version kept for nobody in particular is no subject's", async () => {
        const first = await keep("a", { key: "k", digest: "one:body?" });
        const other = await keep("b", { key: "till/k", earlier: "k", digest: "one:body?" });
        expect(other).toMatchObject({ first: first.first + 1, replayed: false });
        expect(await keep("c", { key: "till/k", earlier: "k", digest: "one:body?" })).toMatchObject({
          first: other.first,
          replayed: true,
        });
        expect(await codeOf(keep("d", { key: "k", digest: "one:body?x" }))).toBe("refused");
      });

      test("with another digest is refused, and nothing of that call is stored or told", async () => {
        await store.append("orders", [draft(1)], T, key("k"));
        const refused = store.append("orders", [draft(2), draft(3)], T, key("k", "another"));
        const neighbour = append("neighbour");
        expect(await codeOf(refused)).toBe("refused");
        expect((await neighbour).first).toBe(2);
        expect((await reads.events(store, "orders", 0, 10)).map(({ data }) => data)).toEqual(["1", '"neighbour"']);
        await heard();
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
        expect((await reads.events(store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([4, 5]);
        expect([...(await reads.tallies(store, "orders", 1, 5)).keys()]).toEqual([4, 5]);
        expect((await append(6)).first).toBe(6);
      });

      test("by age keeps what was pushed at that moment or after it", async () => {
        for (let n = 1; n <= 4; n++) await append(n, {}, T + n);
        await trimAll(store, "orders", { count: 100, before: T + 3 }, T + 4);
        expect((await reads.events(store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([3, 4]);
      });

      test("may drop everything; positions go on", async () => {
        for (let n = 1; n <= 3; n++) await append(n);
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect((await store.heads("orders"))!.events).toEqual({ head: 3, floor: 3 });
        expect((await append(4)).first).toBe(4);
        expect((await reads.events(store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([4]);
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
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 7, floor: 5 });
        expect((await reads.receipts(store, "orders", 0, 10)).map(({ seq, event }) => [seq, event])).toEqual([
          [6, 3],
          [7, 3],
        ]);
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
        expect((await reads.receipts(store, "orders", 0, 10))[0]).toMatchObject({ seq: 1, event: 2 });
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 4, floor: 4 });
        expect(await reads.receipts(store, "orders", 0, 10)).toEqual([]);
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
          expect((await reads.events(store, "orders", 0, 1))[0]!.seq).toBe(events.floor + 1);
          if (calls === 1_000) throw new Error("trim never ends");
        }
        expect(calls).toBeGreaterThan(1);
        expect((await store.heads("orders"))!.events).toEqual({ head: 5_000 + calls, floor: 4_990 + calls });
        await expectTalliesToEqualRows(store, "orders");
        expect((await reads.receipts(store, "orders", 0, 10_000)).every(({ event }) => event > 4_990 + calls)).toBe(
          true,
        );
      }, 30_000);

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

      test("loses nothing that the device answers in the same moment", async () => {
        await enrol("kiosk", "till");
        const { epoch } = await append("answered");
        await append("kept");
        await Promise.all([
          store.record("orders", [word(epoch, 1, "till", "done")], T),
          store.trim("orders", { count: 1, before: 0 }, T),
        ]);
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect((await store.join("orders", "till", T)).lost).toBe(0);
        expect((await store.join("orders", "kiosk", T)).lost).toBe(1);
      });
    });

    describe("a deadline", () => {
      /** Who is missing as the log has it, in the order of their names. */
      const missing = async (after = 0): Promise<Omit<Receipt, "seq">[]> =>
        (await reads.receipts(store, "orders", after, 10_000))
          .filter(({ status }) => status === "missing")
          .map(({ seq: _, ...entry }) => entry)
          .sort((a, b) => a.event - b.event || (a.device < b.device ? -1 : 1));
      const entryOf = (event: number, device: string, at: number, detail: string | null = null) =>
        ({ event, device, status: "missing", detail, at, deviceAt: null, late: false, completes: null }) as const;
      const EXPIRED = '{"reason":"expired"}';

      test("that passes makes missing who owes a final word, once: in the log, in the rows and in the tally", async () => {
        await enrol("silent", "working", "done", "failed");
        const { epoch } = await append("a", { deadline: 10 });
        await store.record(
          "orders",
          [word(epoch, 1, "working", "working"), word(epoch, 1, "done", "done"), word(epoch, 1, "failed", "failed")],
          T,
        );
        const at = T + 10 * SECOND;
        expect(await store.recordMissing(at - 1)).toBe(at);
        expect(await missing()).toEqual([]);
        for (let n = 0; n < 3; n++) expect(await missAll(store, at + n)).toBeNull();
        expect(await missing()).toEqual([entryOf(1, "silent", at), entryOf(1, "working", at)]);
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 5, floor: 0 });
        expect(tallyCounts((await tallyOf(store, "orders", 1))!)).toEqual({
          pending: 0,
          received: 0,
          working: 0,
          missing: 2,
          done: 1,
          failed: 1,
        });
        expect(isComplete((await tallyOf(store, "orders", 1))!)).toBe(false);
        expect(await rowsOf(store, "orders", 1, "missing")).toEqual(
          ["silent", "working"].map((device) => ({
            device,
            status: "missing",
            detail: null,
            at,
            deviceAt: null,
            late: false,
          })),
        );
        await expectTalliesToEqualRows(store, "orders");
        await heard();
        const told = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
        expect(told).toEqual(await reads.receipts(store, "orders", 0, 10));
      });

      test("asks for a word of whom the event was addressed to: not who came later, not who left, but a stranger in `to`", async () => {
        await enrol("till", "gone");
        await append("for all", { deadline: 1 });
        await append("for some", { deadline: 1, to: ["stranger", "gone"] });
        await enrol("late");
        await store.retire("orders", "gone", T);
        await missAll(store, T + SECOND);
        expect(await missing()).toEqual([entryOf(1, "till", T + SECOND), entryOf(2, "stranger", T + SECOND)]);
        await expectTalliesToEqualRows(store, "orders");
        // Nor does who leaves after it stay missing.
        await store.retire("orders", "till", T + SECOND);
        expect((await tallyOf(store, "orders", 1))!).toMatchObject({ addressed: 0, missing: 0 });
        await expectTalliesToEqualRows(store, "orders");
      });

      test("holds for an event that has expired meanwhile", async () => {
        await enrol("till");
        await append("a", { ttl: 1, deadline: 5 });
        await give(1, "till", "working");
        await missAll(store, T + 5 * SECOND);
        expect(await missing()).toEqual([entryOf(1, "till", T + 5 * SECOND)]);
      });

      test("that has passed leaves room for a final word, which is late; anything less says nothing new", async () => {
        await enrol("till", "kiosk", "truck");
        const { epoch } = await append("a", { deadline: 1 });
        await give(1, "kiosk", "working");
        await give(1, "truck", "done");
        await missAll(store, T + SECOND);
        const at = T + 2 * SECOND;
        for (const status of ["received", "working"] as const)
          expect(await give(1, "till", status, at)).toBe("duplicate");
        const late = [word(epoch, 1, "kiosk", "done"), word(epoch, 1, "till", "failed", { detail: '"no paper"' })];
        expect(await store.record("orders", late, at)).toEqual(["recorded", "recorded"]);
        expect(await give(1, "till", "done", at)).toBe("duplicate");
        const entries = (await reads.receipts(store, "orders", 4, 10)).map(
          ({ device, status, late: isLate, completes }) => [device, status, isLate, completes],
        );
        expect(entries).toEqual([
          ["kiosk", "done", true, null],
          ["till", "failed", true, null],
          ["till", "pending", false, { done: 2, failed: 1 }],
        ]);
        const rows = await rowsOf(store, "orders", 1);
        expect(rows.map(({ device, status, late: isLate }) => [device, status, isLate])).toEqual([
          ["kiosk", "done", true],
          ["till", "failed", true],
          ["truck", "done", false],
        ]);
        expect(tallyCounts((await tallyOf(store, "orders", 1))!)).toMatchObject({ missing: 0, done: 2, failed: 1 });
        await missAll(store, at);
        expect(await missing(4)).toEqual([]);
      });

      test("that has passed does not settle what is owed, nor does it count as a sign that a device was told of a loss", async () => {
        await enrol("till");
        await append("lost");
        await append("a", { deadline: 1 });
        await trimAll(store, "orders", { count: 1, before: 0 }, T);
        expect(await store.join("orders", "till", T)).toMatchObject({ lost: 1, settled: 1 });
        await missAll(store, T + SECOND);
        expect(await pendingOf("till", T + SECOND)).toBe(1);
        expect((await reads.settled(store, "orders", "till", 0, 2)).size).toBe(0);
        expect(await store.join("orders", "till", T + SECOND)).toMatchObject({ lost: 1, settled: 1 });
        await trimAll(store, "orders", { count: 0, before: 0 }, T + SECOND);
        expect(await store.join("orders", "till", T + SECOND)).toMatchObject({ lost: 2 });
      });

      test("is told before it passes, the next one of all channels; none, when none is ahead", async () => {
        await enrol("till");
        await store.enrol("others", "till", T);
        expect(await store.recordMissing(T)).toBeNull();
        await append("without");
        expect(await store.recordMissing(T)).toBeNull();
        await append("last", { deadline: 30 });
        await store.append("others", [draft("first", { deadline: 10 }), draft("second", { deadline: 20.5 })], T);
        expect(await store.recordMissing(T)).toBe(T + 10_000);
        expect(await missAll(store, T + 10_000)).toBe(T + 20_500);
        await append("earlier", { deadline: 1 }, T + 11_000);
        expect(await missAll(store, T + 11_000)).toBe(T + 12_000);
        expect(await missAll(store, T + 20_499)).toBe(T + 20_500);
        expect(await missAll(store, T + 60_000)).toBeNull();
        expect((await reads.receipts(store, "others", 0, 10)).map(({ event, at }) => [event, at])).toEqual([
          [1, T + 10_000],
          [2, T + 60_000],
        ]);
        expect(await log()).toEqual([
          [3, "till", "missing"],
          [2, "till", "missing"],
        ]);
      });

      test("of 3,000 devices is dealt with in slices, each device once, while words and pushes come between", async () => {
        const names = namesOf(3_000);
        await Promise.all(names.map((device) => store.enrol("orders", device, T)));
        await append("a", { deadline: 1 });
        let calls = 0;
        await give(1, names.at(-1)!, "done");
        await missAll(store, T + SECOND, async (call) => {
          calls = call;
          const device = names.at(-1 - call)!;
          await Promise.all([give(1, device, "failed", T + SECOND), append("between")]);
          await expectTalliesToEqualRows(store, "orders");
        });
        expect(calls).toBeGreaterThan(0);
        const found = (await missing()).map(({ device }) => device);
        expect(found).toEqual(names.slice(0, -1));
        expect((await tallyOf(store, "orders", 1))!.missing).toBe((await rowsOf(store, "orders", 1, "missing")).length);
        await heard();
        const told = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
        expect(told.map(({ seq }) => seq)).toEqual(Array.from({ length: told.length }, (_, n) => n + 1));
      }, 30_000);

      test("is not waited for when retention drops the event: who owes it is missing before, with the reason", async () => {
        await enrol("till", "kiosk");
        await append("goes early", { deadline: 10 });
        await append("passed unnoticed", { deadline: 1, to: ["till"] });
        await append("without");
        await append("stays", { deadline: 20 });
        await give(1, "kiosk", "done");
        const at = T + 5 * SECOND;
        await trimAll(store, "orders", { count: 1, before: 0 }, at);
        await heard();
        const told = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : [])).sort(bySeq);
        expect(told.slice(1).map(({ seq: _, ...entry }) => entry)).toEqual([
          entryOf(1, "till", at, EXPIRED),
          entryOf(2, "till", at),
        ]);
        expect(await missAll(store, at)).toBe(T + 20_000);
        expect((await store.heads("orders"))!.receipts.head).toBe(3);
        expect((await store.join("orders", "till", at)).lost).toBe(3);
        await missAll(store, T + 20 * SECOND);
        expect((await missing()).map(({ event }) => event)).toEqual([4, 4]);
      });

      test("holds from the moment it passes, looked at or not: a word after it finds its device missing, once, and is late", async () => {
        await enrol("kiosk", "till", "truck");
        const { epoch } = await append("a", { deadline: 1 });
        await append("without");
        await give(1, "truck", "working");
        expect(await give(1, "kiosk", "done", T + SECOND - 1)).toBe("recorded");
        const at = T + SECOND;
        const words = [
          word(epoch, 1, "till", "received"),
          word(epoch, 1, "truck", "failed"),
          word(epoch, 2, "till", "done"),
          word(epoch, 1, "stranger", "done"),
          word(epoch, 1, "till", "done"),
        ];
        expect(await store.record("orders", words, at)).toEqual([
          "duplicate",
          "recorded",
          "recorded",
          "unaddressed",
          "recorded",
        ]);
        const entries = await reads.receipts(store, "orders", 2, 10);
        expect(entries.map((entry) => [entry.event, entry.device, entry.status, entry.late])).toEqual([
          [1, "till", "missing", false],
          [1, "truck", "missing", false],
          [1, "truck", "failed", true],
          [2, "till", "done", false],
          [1, "till", "done", true],
          [1, "till", "pending", false],
        ]);
        expect(await missing(2)).toEqual([entryOf(1, "till", at), entryOf(1, "truck", at)]);
        expect(tallyCounts((await tallyOf(store, "orders", 1))!)).toMatchObject({ missing: 0, done: 2, failed: 1 });
        await expectTalliesToEqualRows(store, "orders");
        await missAll(store, at);
        expect((await store.heads("orders"))!.receipts.head).toBe(8);
        expect((await rowsOf(store, "orders", 1)).map(({ device, late }) => [device, late])).toEqual([
          ["kiosk", false],
          ["till", true],
          ["truck", true],
        ]);
      });

      test("that has passed unnoticed makes a device that leaves missing before it leaves", async () => {
        await enrol("kiosk", "till");
        await append("for all", { deadline: 1 });
        await append("for one", { deadline: 5, to: ["till"] });
        await give(1, "kiosk", "done");
        await give(1, "till", "working");
        await store.retire("orders", "till", T + 2 * SECOND);
        const entries = await reads.receipts(store, "orders", 2, 10);
        expect(entries.map(({ event, device, status, completes }) => [event, device, status, completes])).toEqual([
          [1, "till", "missing", null],
          [1, "till", "pending", { done: 1, failed: 0 }],
          [2, "till", "pending", { done: 0, failed: 0 }],
        ]);
        expect(await missAll(store, T + 10 * SECOND)).toBeNull();
        expect((await store.heads("orders"))!.receipts.head).toBe(5);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("of 1,200 devices is told once of each, where words come before, between and after its slices", async () => {
        const names = namesOf(1_200);
        await Promise.all(names.map((device) => store.enrol("orders", device, T)));
        const { epoch } = await append("a", { deadline: 1 });
        const after = (some: readonly string[]) =>
          store.record(
            "orders",
            some.map((device) => word(epoch, 1, device, "done")),
            T + 2 * SECOND,
          );
        await after(names.slice(0, 300));
        await missAll(store, T + 2 * SECOND, () => after(names.slice(700, 900)));
        await after(names);
        expect((await missing()).map(({ device }) => device)).toEqual(names);
        expect(await tallyOf(store, "orders", 1)).toMatchObject({ done: 1_200, missing: 0 });
        const entries = await reads.receipts(store, "orders", 0, 10_000);
        expect(entries.filter(({ status, late }) => status === "done" && late).length).toBe(1_200);
        expect(entries.at(-1)).toMatchObject({ status: "pending", completes: { done: 1_200, failed: 0 } });
      });

      test("finds nobody missing who answers in the same moment", async () => {
        await enrol("kiosk", "till");
        const { epoch } = await append("answered", { deadline: 1 });
        await Promise.all([
          store.record("orders", [word(epoch, 1, "till", "done")], T),
          store.recordMissing(T + SECOND),
        ]);
        await missAll(store, T + SECOND);
        expect(await log()).toEqual([
          [1, "till", "done"],
          [1, "kiosk", "missing"],
        ]);
        await expectTalliesToEqualRows(store, "orders");
      });

      test("and retention that drops events of 3,000 devices take turns, and each device is missing once", async () => {
        const names = namesOf(3_000);
        await Promise.all(names.map((device) => store.enrol("orders", device, T)));
        await append("owed", { deadline: 1 });
        await append("expired", { deadline: 10, ttl: 0.5 });
        await append("stays");
        await store.recordMissing(T + SECOND);
        let more = true;
        while (more) {
          [more] = await Promise.all([
            store.trim("orders", { count: 1, before: 0 }, T + SECOND),
            store.recordMissing(T + SECOND),
          ]);
        }
        await missAll(store, T + SECOND);
        expect((await store.heads("orders"))!.receipts).toEqual({ head: 6_000, floor: 6_000 });
        expect((await store.heads("orders"))!.events.floor).toBe(2);
        await heard();
        const told = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
        for (const seq of [1, 2])
          expect(
            told
              .filter(({ event }) => event === seq)
              .map(({ device }) => device)
              .sort(),
          ).toEqual(names);
        for (const device of [names[0]!, names.at(-1)!])
          expect((await store.join("orders", device, T + SECOND)).lost).toBe(1);
      }, 30_000);
    });

    describe("reminders", () => {
      const remindersOf = async (now: number) => [...(await store.reminders("orders", now))].sort(bySeq);

      test("are what is to be sent again, until it expires, its deadline passes or it is no longer kept", async () => {
        await enrol("till");
        await append("without", { deadline: 5 });
        await append("for ever", { remind: 60 });
        await append("to its deadline", { remind: 1.5, deadline: 5, ttl: 8 });
        await append("to its expiry", { remind: 2, deadline: 8, ttl: 5, to: ["kiosk"] }, T + 1);
        await store.append("others", [draft("elsewhere", { remind: 1 })], T);
        const { epoch } = (await store.heads("orders"))!;
        const forEver = { epoch, seq: 2, at: T, every: 60_000, until: null };
        const both = [
          { epoch, seq: 3, at: T, every: 1_500, until: T + 5_000 },
          { epoch, seq: 4, at: T + 1, every: 2_000, until: T + 5_001 },
        ];
        expect(await remindersOf(T)).toEqual([forEver, ...both]);
        expect(await remindersOf(T + 4_999)).toEqual([forEver, ...both]);
        expect(await remindersOf(T + 5_000)).toEqual([forEver, both[1]!]);
        expect(await remindersOf(T + 5_001)).toEqual([forEver]);
        await missAll(store, T + 5_001);
        expect(await remindersOf(T + 5_001)).toEqual([forEver]);
        await trimAll(store, "orders", { count: 2, before: 0 }, T);
        expect(await remindersOf(T)).toEqual(both);
      });

      test("are for who is silent: of these devices those that an event is addressed to and that gave no word at all", async () => {
        await enrol("a", "b", "c", "d", "e");
        await append("a", { remind: 1 });
        await append("b", { remind: 1 });
        for (const [device, status] of [
          ["a", "received"],
          ["b", "working"],
          ["c", "done"],
          ["d", "failed"],
        ] as const)
          await give(1, device, status);
        const silent = async (event: number, devices: string[]) =>
          [...(await reads.silent(store, "orders", event, devices))].sort();
        expect(await silent(1, ["a", "b", "c", "d", "e"])).toEqual(["e"]);
        expect(await silent(1, ["a"])).toEqual([]);
        expect(await silent(1, [])).toEqual([]);
        expect(await silent(2, ["e", "a", "b"])).toEqual(["a", "b", "e"]);
        const names = namesOf(500);
        await Promise.all(names.slice(250).map((device) => store.enrol("orders", device, T)));
        await append("c", { remind: 1 });
        expect(await silent(2, [...names, "a"])).toEqual(["a"]);
        expect(await silent(3, [...names, "a"])).toEqual(["a", ...names.slice(250)]);
        expect(await silent(4, ["a"])).toEqual([]);
      });

      test("are not for a device that was retired and is back, also where the event names it and it said something then", async () => {
        await enrol("a", "b");
        await append("to all", { remind: 1 });
        await append("to some", { remind: 1, to: ["a", "b"] });
        await append("to some", { remind: 1, to: ["a", "b"] });
        await give(1, "a", "received");
        await give(2, "a", "working");
        for (const device of ["a", "b"]) await store.retire("orders", device, T);
        await enrol("a", "b");
        for (const event of [1, 2, 3]) expect(await reads.silent(store, "orders", event, ["a", "b"])).toEqual([]);
      });
    });

    describe("a hook", () => {
      const hook = (name: string, more: Partial<HookDraft> = {}): HookDraft => ({
        name,
        url: `https://example.com/${name}`,
        secret: null,
        on: ["receipt"],
        ...more,
      });
      const put = (draft: HookDraft, channel = "orders", now = T) => store.putHook(channel, draft, "fresh", now);
      const hookOf = async (name: string): Promise<Hook> =>
        (await store.hooks("orders")).find((found) => found.name === name)!;
      const delivery = (id: string, more: Partial<Delivery> = {}): Delivery => ({
        id,
        body: `{"id":"${id}","text":"ü"}`,
        createdAt: T,
        attempts: 1,
        nextAt: T + SECOND,
        status: 500,
        error: null,
        ...more,
      });

      test("starts at the end of the receipts log, with the secret that it came with or a fresh one", async () => {
        await enrol("till");
        await append("a");
        await give(1, "till", "received");
        await give(1, "till", "done");
        const { epoch } = (await store.heads("orders"))!;
        const { hook: made, created } = await put(hook("a", { on: ["missing", "complete", "receipt"] }));
        expect(created).toBe(true);
        expect({ ...made, on: [...made.on].sort() }).toEqual({
          ...hook("a"),
          channel: "orders",
          secret: "fresh",
          former: [],
          on: ["complete", "missing", "receipt"],
          createdAt: T,
          cursor: { epoch, seq: 3 },
          disabled: null,
          revision: made.revision,
        });
        expect((await put(hook("b", { secret: "its own" }))).hook.secret).toBe("its own");
        expect(await store.hooks("orders")).toEqual([made, await hookOf("b")]);
        // A channel that was never used begins with it.
        const { hook: first } = await put(hook("a"), "new");
        expect(first.cursor).toEqual({ epoch: (await store.heads("new"))!.epoch, seq: 0 });
      });

      test("put again goes on where it is, keeps its secret unless another comes, and is disabled no more", async () => {
        await enrol("till");
        const { hook: made } = await put(hook("a", { secret: "one" }));
        await append("a");
        await give(1, "till", "done");
        const cursor = { ...made.cursor, seq: 1 };
        await store.progress("orders", "a", 1, { cursor, disabled: "it is gone", keep: [delivery("d1")] });
        expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it is gone" });
        await append("b");
        await give(2, "till", "done");

        const more = { url: "http://example.com/other", on: ["complete"] } as const;
        const again = await store.putHook("orders", hook("a", more), "fresh", T + SECOND);
        expect(again.created).toBe(false);
        expect(again.hook).toEqual({ ...made, ...more, cursor, revision: again.hook.revision });
        expect(again.hook.revision).toBeGreaterThan(made.revision);
        expect(await store.deliveries("orders", "a")).toEqual([delivery("d1")]);
        const changed = await put(hook("a", { secret: "two" }));
        expect(changed.hook).toMatchObject({ secret: "two", createdAt: T, cursor });
        expect(changed.hook.revision).toBeGreaterThan(again.hook.revision);
        expect(await store.hooks("orders")).toEqual([changed.hook]);
      });

      test("keeps the secrets that it had before, newest first and a few of them, until when each was its own", async () => {
        await put(hook("a", { secret: "one" }));
        for (const [index, secret] of ["one", null, "two", "two", "three", "four", "five", "six"].entries())
          await put(hook("a", { secret }), "orders", T + index);
        expect(await hookOf("a")).toMatchObject({
          secret: "six",
          former: [
            { secret: "five", until: T + 7 },
            { secret: "four", until: T + 6 },
            { secret: "three", until: T + 5 },
            { secret: "two", until: T + 4 },
          ],
        });
        await store.dropHook("orders", "a", T);
        expect((await put(hook("a", { secret: "one" }))).hook.former).toEqual([]);
      });

      test(`is one of ${HOOKS_MAX} that a channel may have; one more is refused`, async () => {
        const names = Array.from({ length: HOOKS_MAX }, (_, n) => `hook-${n}`);
        for (const name of names) await put(hook(name));
        expect(await codeOf(put(hook("more")))).toBe("refused");
        expect((await put(hook("hook-0"))).created).toBe(false);
        expect((await put(hook("more"), "others")).created).toBe(true);
        expect((await store.hooks("orders")).map(({ name }) => name)).toEqual([...names].sort());
        await store.dropHook("orders", "hook-3", T);
        expect((await put(hook("more"))).created).toBe(true);
        // Also when they come at once.
        const codes = await Promise.all(
          Array.from({ length: HOOKS_MAX + 2 }, (_, n) => codeOf(put(hook(`hook-${n}`), "new"))),
        );
        expect(codes.filter((code) => code === "accepted")).toHaveLength(HOOKS_MAX);
        expect(await store.hooks("new")).toHaveLength(HOOKS_MAX);
      });

      test("is listed by name, with those of its channel or of all", async () => {
        for (const name of ["b", "A", "a"]) await put(hook(name));
        await put(hook("z"), "an-other");
        const names = async (channel: string | null) =>
          (await store.hooks(channel)).map((found) => `${found.channel} ${found.name}`);
        expect(await names("orders")).toEqual(["orders A", "orders a", "orders b"]);
        expect(await names("others")).toEqual([]);
        expect((await names(null)).sort()).toEqual(["an-other z", "orders A", "orders a", "orders b"]);
      });

      test("is removed with its deliveries; another of that name is another", async () => {
        const { hook: made } = await put(hook("a"));
        await put(hook("b"));
        for (const name of ["a", "b"]) await store.progress("orders", name, 7, { keep: [delivery("d1")] });
        expect(await store.dropHook("orders", "a", T)).toBe(true);
        expect(await store.dropHook("orders", "a", T)).toBe(false);
        expect(await store.dropHook("others", "b", T)).toBe(false);
        expect((await store.hooks("orders")).map(({ name }) => name)).toEqual(["b"]);
        expect(await store.deliveries("orders", "a")).toEqual([]);
        expect(await store.deliveries("orders", "b")).toEqual([delivery("d1")]);
        expect(await store.progress("orders", "a", 8, { keep: [delivery("d2")] })).toBe(false);

        await enrol("till");
        await append("a");
        await give(1, "till", "done");
        const again = await store.putHook("orders", hook("a"), "fresher", T + SECOND);
        expect(again).toMatchObject({
          created: true,
          hook: { secret: "fresher", createdAt: T + SECOND, cursor: { ...made.cursor, seq: 2 }, disabled: null },
        });
        expect(await store.deliveries("orders", "a")).toEqual([]);
        // What is still said of the one before is not said of this one.
        expect(await store.progress("orders", "a", 9, { of: T, keep: [delivery("d3")] })).toBe(false);
        expect(await store.progress("orders", "a", 9, { of: T + SECOND, keep: [delivery("d3")] })).toBe(true);
        expect(await store.deliveries("orders", "a")).toEqual([delivery("d3")]);
      });

      test("keeps its deliveries as they are, oldest first, until they are done", async () => {
        await put(hook("a"));
        await put(hook("b"));
        const kept = [
          delivery("d3", { createdAt: T + 1, status: null, error: "connection refused" }),
          delivery("d1", { createdAt: T + 2, attempts: 9, nextAt: null, status: 410 }),
          delivery("d2", { createdAt: T + 3 }),
        ];
        expect(await store.progress("orders", "a", 1, { keep: [kept[2]!, kept[0]!] })).toBe(true);
        expect(await store.progress("orders", "a", 1, { keep: [kept[1]!] })).toBe(true);
        expect(await store.deliveries("orders", "a")).toEqual(kept);
        expect(await store.deliveries("orders", "b")).toEqual([]);
        const tried = { ...kept[0]!, attempts: 2, nextAt: T + 9, status: 503, error: null };
        expect(await store.progress("orders", "a", 1, { keep: [tried], drop: ["d1", "none"] })).toBe(true);
        expect(await store.deliveries("orders", "a")).toEqual([tried, kept[2]!]);
        expect(await store.progress("orders", "a", 1, { drop: ["d2", "d3"] })).toBe(true);
        expect(await store.deliveries("orders", "a")).toEqual([]);
      });

      test("moves by what its runner has done, and only by that of which it speaks", async () => {
        const { hook: made } = await put(hook("a"));
        const cursor = { ...made.cursor, seq: 5 };
        expect(await store.progress("orders", "a", 1, { cursor })).toBe(true);
        expect(await hookOf("a")).toEqual({ ...made, cursor });
        expect(await store.progress("orders", "a", 1, { disabled: "it answered 410" })).toBe(true);
        expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it answered 410" });
        expect(await store.progress("orders", "a", 1, { keep: [delivery("d1")] })).toBe(true);
        expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it answered 410" });
        expect(await store.progress("orders", "a", 1, { disabled: null })).toBe(true);
        expect(await hookOf("a")).toEqual({ ...made, cursor });
        for (const [channel, name] of [
          ["orders", "none"],
          ["others", "a"],
        ] as const)
          for (const fence of [1, null])
            expect(await store.progress(channel, name, fence, { cursor, keep: [delivery("d2")] })).toBe(false);
        expect(await store.deliveries("orders", "none")).toEqual([]);
      });

      test("is not moved by a runner that another has followed; whoever is no runner has it look again", async () => {
        const { hook: made } = await put(hook("a"));
        const at = (seq: number) => ({ ...made.cursor, seq });
        expect(await store.progress("orders", "a", 3, { cursor: at(1), keep: [delivery("d1")] })).toBe(true);
        const old = { cursor: at(9), disabled: "by an old one", keep: [delivery("d2")], drop: ["d1"] };
        expect(await store.progress("orders", "a", 2, old)).toBe(false);
        expect(await hookOf("a")).toEqual({ ...made, cursor: at(1) });
        expect(await store.deliveries("orders", "a")).toEqual([delivery("d1")]);

        // Sent again by a person: kept, seen by the runner, and in nobody's way.
        const again = delivery("d1", { attempts: 0, nextAt: T });
        expect(await store.progress("orders", "a", null, { keep: [again] })).toBe(true);
        const looked = await hookOf("a");
        expect(looked.revision).toBeGreaterThan(made.revision);
        expect(await store.deliveries("orders", "a")).toEqual([again]);
        expect(await store.progress("orders", "a", 2, old)).toBe(false);
        expect(await store.progress("orders", "a", 3, { cursor: at(2) })).toBe(true);
        expect(await store.progress("orders", "a", 5, { cursor: at(3) })).toBe(true);
        expect(await store.progress("orders", "a", 4, { cursor: at(4) })).toBe(false);
        expect(await hookOf("a")).toEqual({ ...looked, cursor: at(3) });
        // Nor does a change of the hook let it back in.
        await put(hook("a"));
        expect(await store.progress("orders", "a", 4, { cursor: at(4) })).toBe(false);
        expect((await hookOf("a")).cursor).toEqual(at(3));
      });
    });

    describe("a wake", () => {
      const told = (kind: Told["kind"], channel = "orders"): number[] =>
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
        await heard();
        expect(told("events")).toEqual([1, 2, 3, 4]);
        expect(told("events", "others")).toEqual([1]);
        expect(told("receipts")).toEqual([1, 2, 3, 4, 5]);
        const events = wakes.flatMap((wake) =>
          wake.kind === "events" && wake.channel === "orders" ? wake.entries : [],
        );
        expect(events).toEqual(await reads.events(store, "orders", 0, 10));
        const receipts = wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
        expect(receipts).toEqual(await reads.receipts(store, "orders", 0, 10));
      });

      test("does not come for what stored nothing", async () => {
        await enrol("till");
        const { epoch } = await append(1);
        await give(1, "till", "done");
        await heard();
        wakes.length = 0;
        await give(1, "till", "done");
        await store.record("orders", [word(epoch, 1, "stranger", "done"), word(epoch, 5, "till", "done")], T);
        await enrol("kiosk");
        await store.retire("orders", "kiosk", T);
        await store.join("orders", "till", T);
        await trimAll(store, "orders", { count: 0, before: 0 }, T);
        // Wakes come in order: what follows is the first to be told.
        await append("something");
        await until(() => wakes.length > 0, "a wake");
        expect(wakes.map(({ kind, entries }) => [kind, ...entries.map(({ seq }) => seq)])).toEqual([["events", 2]]);
      });

      test("comes when what it tells is there to be read", async () => {
        const readings: Promise<boolean>[] = [];
        hear(store, ({ kind, channel, entries }) => {
          const { seq } = entries.at(-1)!;
          const read =
            kind === "events" ? reads.events(store, channel, seq - 1, 1) : reads.receipts(store, channel, seq - 1, 1);
          readings.push(Promise.resolve(read).then(([entry]) => entry?.seq === seq));
        });
        await enrol("till");
        await Promise.all([append(1), append(2)]);
        await give(1, "till", "done");
        await until(() => readings.length === 3, "three wakes");
        expect(await Promise.all(readings)).not.toContain(false);
      });
    });

    describe("its life", () => {
      test("says at any time what an operator can rely on", async () => {
        const ready = await store.ready();
        expect(ready.store.length).toBeGreaterThan(0);
        expect(["fsync", "second", "memory"]).toContain(ready.durability);
      });

      test("gives a lease to who asks, and again to who holds it", async () => {
        const number = await store.lease("work", "me", 60_000);
        expect(number).toBeGreaterThan(0);
        expect(await store.lease("work", "me", 60_000)).toBe(number);
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
          events: () => reads.events(store, "orders", 0, 10),
          receipts: () => reads.receipts(store, "orders", 0, 10),
          settled: () => reads.settled(store, "orders", "till", 0, 10),
          tallies: () => reads.tallies(store, "orders", 1, 1),
          rows: () => reads.rows(store, "orders", 1, null, "", 10),
          devices: () => store.devices("orders", "", 10, T),
          channels: () => store.channels("", 10),
          silent: () => reads.silent(store, "orders", 1, ["till"]),
          reminders: () => store.reminders("orders", T),
          miss: () => store.recordMissing(T),
          trim: () => store.trim("orders", EVERYTHING, T),
          putHook: () =>
            store.putHook("orders", { name: "a", url: "https://a", secret: null, on: ["receipt"] }, "s", T),
          dropHook: () => store.dropHook("orders", "a", T),
          hooks: () => store.hooks("orders"),
          "hooks of all": () => store.hooks(null),
          deliveries: () => store.deliveries("orders", "a"),
          progress: () => store.progress("orders", "a", null, {}),
          follow: () => store.follow("events", "elsewhere"),
          lease: () => store.lease("work", "me", 1_000),
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
      /** Opens the store again. */
      const reopen = async (): Promise<void> => {
        await store.close();
        store = await opened.reopen!();
        wakes.length = 0;
        hear(store, (told) => wakes.push(told));
        await followAll(store, FOLLOWED);
      };

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
          events: (await reads.events(store, "orders", 0, 100)).map(sorted),
          receipts: await reads.receipts(store, "orders", 0, 100),
          tallies: await reads.tallies(store, "orders", 1, 100),
          rows: await Promise.all([2, 3, 4].map((event) => rowsOf(store, "orders", event))),
          devices: await devicesOf("orders"),
          channels: await store.channels("", 10),
          settled: await reads.settled(store, "orders", "till", 1, 100),
        });
        const before = await look();
        await reopen();
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

      kept(
        `has its deadlines and reminders when it is opened again, also one that was half dealt with${why}`,
        async () => {
          const names = namesOf(3_000);
          await Promise.all(names.map((device) => store.enrol("orders", device, T)));
          await append("a", { deadline: 10, remind: 1 });
          await append("b", { deadline: 20, remind: 2, to: ["till"] });
          const reminders = await store.reminders("orders", T);
          await reopen();
          expect(await store.reminders("orders", T)).toEqual(reminders);
          expect(await store.recordMissing(T)).toBe(T + 10_000);
          expect(await store.recordMissing(T + 10_000)).toBeLessThanOrEqual(T + 10_000);
          await reopen();
          expect(await missAll(store, T + 10_000)).toBe(T + 20_000);
          expect((await log()).map(([, device]) => device).sort()).toEqual(names);
          expect((await tallyOf(store, "orders", 1))!.missing).toBe(3_000);
          await reopen();
          expect(await missAll(store, T + 60_000)).toBeNull();
          expect(await log(3_000)).toEqual([[2, "till", "missing"]]);
          expect(await give(1, names[0]!, "done", T + 60_000)).toBe("recorded");
          expect((await reads.receipts(store, "orders", 3_001, 10))[0]!.late).toBe(true);
        },
        30_000,
      );

      kept(`has its hooks when it is opened again, their fences, and what completed${why}`, async () => {
        await enrol("till");
        await append("a");
        await give(1, "till", "done");
        const { hook } = await store.putHook(
          "orders",
          { name: "a", url: "https://example.com", secret: "secret", on: ["complete", "missing"] },
          "fresh",
          T,
        );
        const delivery = { id: "d1", body: "{}", createdAt: T, attempts: 1, nextAt: null, status: 500, error: "no" };
        await store.progress("orders", "a", 5, {
          cursor: { ...hook.cursor, seq: 2 },
          disabled: "no",
          keep: [delivery],
        });
        const before = await store.hooks(null);
        await reopen();
        expect(await store.hooks(null)).toEqual(before);
        expect(await store.hooks("orders")).toEqual([{ ...hook, disabled: "no" }]);
        expect(await store.deliveries("orders", "a")).toEqual([delivery]);
        expect(await store.progress("orders", "a", 4, { drop: ["d1"] })).toBe(false);
        expect(await store.progress("orders", "a", 5, { drop: ["d1"] })).toBe(true);
        expect((await reads.receipts(store, "orders", 1, 10))[0]!.completes).toEqual({ done: 1, failed: 0 });
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
