/**
 * The store's contract: an event's deadline.
 */
import { describe, expect, test } from "bun:test";
import { freshTally, isComplete, type Receipt, tallyCounts } from "../../engine/model.ts";
import {
  bySeq,
  draft,
  expectTalliesToEqualRows,
  noteOf,
  results,
  missAll,
  reads,
  rowsOf,
  SECOND,
  T,
  tallyOf,
  trimAll,
  word,
} from "./calls.ts";
import type { Ground } from "./ground.ts";

export function deadlineContract(ground: Ground): void {
  const { heard, append, enrol, give, log, namesOf, pendingOf } = ground;

  describe("a deadline", () => {
    /** Who is missing as the log has it, in the order of their names. */
    const missing = async (after = 0, channel = "orders"): Promise<Omit<Receipt, "seq">[]> =>
      (await reads.receipts(ground.store, channel, after, 10_000))
        .filter(({ status }) => status === "missing")
        .map(({ seq: _, ...entry }) => entry)
        .sort((a, b) => a.event - b.event || (a.device < b.device ? -1 : 1));
    const entryOf = (event: number, device: string, at: number, detail: string | null = null) =>
      ({
        event,
        device,
        status: "missing",
        detail,
        at,
        deviceAt: null,
        late: false,
        round: 1,
        attempt: 0,
        note: null,
      }) as const;
    const EXPIRED = '{"reason":"expired"}';

    test("that passes records devices that owe a final receipt as missing, once: in the log, the rows and the tally", async () => {
      await enrol("silent", "working", "done", "failed");
      const { epoch } = await append("a", { deadline: 10 });
      await ground.store.record(
        "orders",
        [word(epoch, 1, "working", "working"), word(epoch, 1, "done", "done"), word(epoch, 1, "failed", "failed")],
        T,
      );
      const at = T + 10 * SECOND;
      expect(await ground.store.recordMissing(at - 1)).toBe(at);
      expect(await missing()).toEqual([]);
      for (let n = 0; n < 3; n++) expect(await missAll(ground.store, at + n)).toBeNull();
      expect(await missing()).toEqual([entryOf(1, "silent", at), entryOf(1, "working", at)]);
      expect((await ground.store.heads("orders"))!.receipts).toEqual({ head: 6, floor: 0 });
      expect((await reads.receipts(ground.store, "orders", 5, 1)).map(noteOf)).toEqual(["settled"]);
      expect(await tallyOf(ground.store, "orders", 1)).toEqual({ ...freshTally(4), missing: 2, done: 1, failed: 1 });
      expect(isComplete((await tallyOf(ground.store, "orders", 1))!)).toBe(false);
      expect(await rowsOf(ground.store, "orders", 1, "missing")).toEqual(
        ["silent", "working"].map((device) => ({
          device,
          status: "missing",
          detail: null,
          at,
          deviceAt: null,
          late: false,
          round: 1,
          attempt: 0,
        })),
      );
      await expectTalliesToEqualRows(ground.store, "orders");
      await heard();
      const told = ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
      expect(told).toEqual(await reads.receipts(ground.store, "orders", 0, 10));
    });

    test("applies to the devices the event was addressed to: not later or retired ones, but also an unknown one in `to`", async () => {
      await enrol("till", "gone");
      await append("for all", { deadline: 1 });
      await append("for some", { deadline: 1, to: ["stranger", "gone"] });
      await enrol("late");
      await ground.store.retire("orders", "gone", T);
      await missAll(ground.store, T + SECOND);
      expect(await missing()).toEqual([entryOf(1, "till", T + SECOND), entryOf(2, "stranger", T + SECOND)]);
      await expectTalliesToEqualRows(ground.store, "orders");
      // Nor does who leaves after it stay missing.
      await ground.store.retire("orders", "till", T + SECOND);
      expect((await tallyOf(ground.store, "orders", 1))!).toMatchObject({ addressed: 0, missing: 0 });
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("holds for an event that has expired meanwhile", async () => {
      await enrol("till");
      await append("a", { ttl: 1, deadline: 5 });
      await give(1, "till", "working");
      await missAll(ground.store, T + 5 * SECOND);
      expect(await missing()).toEqual([entryOf(1, "till", T + 5 * SECOND)]);
    });

    test("that has passed still allows a late final receipt; any other receipt is a duplicate", async () => {
      await enrol("till", "kiosk", "truck");
      const { epoch } = await append("a", { deadline: 1 });
      await give(1, "kiosk", "working");
      await give(1, "truck", "done");
      await missAll(ground.store, T + SECOND);
      const at = T + 2 * SECOND;
      for (const status of ["received", "working"] as const)
        expect(await give(1, "till", status, at)).toBe("duplicate");
      const late = [word(epoch, 1, "kiosk", "done"), word(epoch, 1, "till", "failed", { detail: '"no paper"' })];
      expect(await ground.store.record("orders", late, at)).toMatchObject(
        late.map(() => ({ result: "recorded", late: "missing" })),
      );
      expect(await give(1, "till", "done", at)).toBe("duplicate");
      const entries = (await reads.receipts(ground.store, "orders", 5, 10)).map((entry) => [
        entry.device,
        entry.status,
        entry.late,
        noteOf(entry),
      ]);
      expect(entries).toEqual([
        ["kiosk", "done", true, null],
        ["till", "failed", true, null],
        ["till", "pending", false, { done: 2, failed: 1 }],
      ]);
      const rows = await rowsOf(ground.store, "orders", 1);
      expect(rows.map(({ device, status, late: isLate }) => [device, status, isLate])).toEqual([
        ["kiosk", "done", true],
        ["till", "failed", true],
        ["truck", "done", false],
      ]);
      expect(tallyCounts((await tallyOf(ground.store, "orders", 1))!)).toMatchObject({
        missing: 0,
        done: 2,
        failed: 1,
      });
      await missAll(ground.store, at);
      expect(await missing(4)).toEqual([]);
    });

    test("that has passed does not settle what is owed, and does not count as a receipt after a loss", async () => {
      await enrol("till");
      await append("lost");
      await append("a", { deadline: 1 });
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect(await ground.store.join("orders", "till", T)).toMatchObject({ lostSeq: 1, settled: 1 });
      await missAll(ground.store, T + SECOND);
      expect(await pendingOf("till", T + SECOND)).toBe(1);
      expect((await reads.settled(ground.store, "orders", "till", 0, 2)).size).toBe(0);
      expect(await ground.store.join("orders", "till", T + SECOND)).toMatchObject({ lostSeq: 1, settled: 1 });
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T + SECOND);
      expect(await ground.store.join("orders", "till", T + SECOND)).toMatchObject({ lostSeq: 2 });
    });

    test("returns the next deadline of all channels; null if none is ahead", async () => {
      await enrol("till");
      await ground.store.enrol("others", "till", T);
      expect(await ground.store.recordMissing(T)).toBeNull();
      await append("without");
      expect(await ground.store.recordMissing(T)).toBeNull();
      await append("last", { deadline: 30 });
      await ground.store.append("others", [draft("first", { deadline: 10 }), draft("second", { deadline: 20.5 })], T);
      expect(await ground.store.recordMissing(T)).toBe(T + 10_000);
      expect(await missAll(ground.store, T + 10_000)).toBe(T + 20_500);
      await append("earlier", { deadline: 1 }, T + 11_000);
      expect(await missAll(ground.store, T + 11_000)).toBe(T + 12_000);
      expect(await missAll(ground.store, T + 20_499)).toBe(T + 20_500);
      expect(await missAll(ground.store, T + 60_000)).toBeNull();
      expect((await missing(0, "others")).map(({ event, at }) => [event, at])).toEqual([
        [1, T + 10_000],
        [2, T + 60_000],
      ]);
      expect((await log()).filter(([, device]) => device !== "")).toEqual([
        [3, "till", "missing"],
        [2, "till", "missing"],
      ]);
    });

    test("of 3,000 devices is processed in slices, each device once, with receipts and pushes in between", async () => {
      const names = namesOf(3_000);
      await Promise.all(names.map((device) => ground.store.enrol("orders", device, T)));
      await append("a", { deadline: 1 });
      let calls = 0;
      await give(1, names.at(-1)!, "done");
      await missAll(ground.store, T + SECOND, async (call) => {
        calls = call;
        const device = names.at(-1 - call)!;
        await Promise.all([give(1, device, "failed", T + SECOND), append("between")]);
        await expectTalliesToEqualRows(ground.store, "orders");
      });
      expect(calls).toBeGreaterThan(0);
      const found = (await missing()).map(({ device }) => device);
      expect(found).toEqual(names.slice(0, -1));
      expect((await tallyOf(ground.store, "orders", 1))!.missing).toBe(
        (await rowsOf(ground.store, "orders", 1, "missing")).length,
      );
      await heard();
      const told = ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
      expect(told.map(({ seq }) => seq)).toEqual(Array.from({ length: told.length }, (_, n) => n + 1));
    });

    test("is not awaited if retention drops the event: devices that owe it are recorded as missing before, with the reason", async () => {
      await enrol("till", "kiosk");
      await append("goes early", { deadline: 10 });
      await append("passed unnoticed", { deadline: 1, to: ["till"] });
      await append("without");
      await append("stays", { deadline: 20 });
      await give(1, "kiosk", "done");
      const at = T + 5 * SECOND;
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, at);
      await heard();
      const told = ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : [])).sort(bySeq);
      expect(told.slice(1).flatMap(({ seq: _, ...entry }) => (entry.note === null ? entry : []))).toEqual([
        entryOf(1, "till", at, EXPIRED),
        entryOf(2, "till", at),
      ]);
      expect(told.slice(1).map(noteOf)).toEqual([null, "settled", null, "settled"]);
      expect(await missAll(ground.store, at)).toBe(T + 20_000);
      expect((await ground.store.heads("orders"))!.receipts.head).toBe(5);
      expect((await ground.store.join("orders", "till", at)).lostSeq).toBe(3);
      await missAll(ground.store, T + 20 * SECOND);
      expect((await missing()).map(({ event }) => event)).toEqual([4, 4]);
    });

    test("takes effect when it passes, processed or not: a receipt after it is late, and its device was missing once", async () => {
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
      expect(results(await ground.store.record("orders", words, at))).toEqual([
        "duplicate",
        "recorded",
        "recorded",
        "unaddressed",
        "recorded",
      ]);
      const entries = await reads.receipts(ground.store, "orders", 2, 10);
      expect(entries.map((entry) => [entry.event, entry.device, entry.status, entry.late])).toEqual([
        [1, "till", "missing", false],
        [1, "truck", "missing", false],
        [1, "truck", "failed", true],
        [2, "till", "done", false],
        [1, "till", "done", true],
        [1, "till", "pending", false],
        [1, "till", "pending", false],
      ]);
      expect(await missing(2)).toEqual([entryOf(1, "till", at), entryOf(1, "truck", at)]);
      expect(tallyCounts((await tallyOf(ground.store, "orders", 1))!)).toMatchObject({
        missing: 0,
        done: 2,
        failed: 1,
      });
      await expectTalliesToEqualRows(ground.store, "orders");
      await missAll(ground.store, at);
      expect((await ground.store.heads("orders"))!.receipts.head).toBe(9);
      expect((await rowsOf(ground.store, "orders", 1)).map(({ device, late }) => [device, late])).toEqual([
        ["kiosk", false],
        ["till", true],
        ["truck", true],
      ]);
    });

    test("that has passed but was not processed records a retired device as missing before its retirement", async () => {
      await enrol("kiosk", "till");
      await append("for all", { deadline: 1 });
      await append("for one", { deadline: 5, to: ["till"] });
      await give(1, "kiosk", "done");
      await give(1, "till", "working");
      await ground.store.retire("orders", "till", T + 2 * SECOND);
      const entries = await reads.receipts(ground.store, "orders", 2, 10);
      expect(entries.map((entry) => [entry.event, entry.device, entry.status, noteOf(entry)])).toEqual([
        [1, "till", "missing", null],
        [1, "till", "pending", { done: 1, failed: 0 }],
        [1, "till", "pending", "settled"],
        [2, "till", "pending", { done: 0, failed: 0 }],
        [2, "till", "pending", "settled"],
      ]);
      expect(await missAll(ground.store, T + 10 * SECOND)).toBeNull();
      expect((await ground.store.heads("orders"))!.receipts.head).toBe(7);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("of 1,200 devices is recorded once for each, with receipts before, between and after its slices", async () => {
      const names = namesOf(1_200);
      await Promise.all(names.map((device) => ground.store.enrol("orders", device, T)));
      const { epoch } = await append("a", { deadline: 1 });
      const after = (some: readonly string[]) =>
        ground.store.record(
          "orders",
          some.map((device) => word(epoch, 1, device, "done")),
          T + 2 * SECOND,
        );
      await after(names.slice(0, 300));
      await missAll(ground.store, T + 2 * SECOND, () => after(names.slice(700, 900)));
      await after(names);
      expect((await missing()).map(({ device }) => device)).toEqual(names);
      expect(await tallyOf(ground.store, "orders", 1)).toMatchObject({ done: 1_200, missing: 0 });
      const entries = await reads.receipts(ground.store, "orders", 0, 10_000);
      expect(entries.filter(({ status, late }) => status === "done" && late).length).toBe(1_200);
      expect(entries.map(noteOf).filter((note) => note !== null)).toEqual(["settled", { done: 1_200, failed: 0 }]);
    });

    test("records no device as missing that answers at the same moment", async () => {
      await enrol("kiosk", "till");
      const { epoch } = await append("answered", { deadline: 1 });
      await Promise.all([
        ground.store.record("orders", [word(epoch, 1, "till", "done")], T),
        ground.store.recordMissing(T + SECOND),
      ]);
      await missAll(ground.store, T + SECOND);
      expect(await log()).toEqual([
        [1, "till", "done"],
        [1, "kiosk", "missing"],
        [1, "", "pending"],
      ]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("and retention that drops events of 3,000 devices take turns, and each device is missing once", async () => {
      const names = namesOf(3_000);
      await Promise.all(names.map((device) => ground.store.enrol("orders", device, T)));
      await append("owed", { deadline: 1 });
      await append("expired", { deadline: 10, ttl: 0.5 });
      await append("stays");
      await ground.store.recordMissing(T + SECOND);
      let more = true;
      while (more) {
        [more] = await Promise.all([
          ground.store.trim("orders", { count: 1, before: 0 }, T + SECOND),
          ground.store.recordMissing(T + SECOND),
        ]);
      }
      await missAll(ground.store, T + SECOND);
      expect((await ground.store.heads("orders"))!.receipts).toEqual({ head: 6_002, floor: 6_002 });
      expect((await ground.store.heads("orders"))!.events.floor).toBe(2);
      await heard();
      const told = ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
      for (const seq of [1, 2])
        expect(
          told
            .filter(({ event, note }) => event === seq && note === null)
            .map(({ device }) => device)
            .sort(),
        ).toEqual(names);
      for (const device of [names[0]!, names.at(-1)!])
        expect((await ground.store.join("orders", device, T + SECOND)).lostSeq).toBe(1);
    });
  });
}
