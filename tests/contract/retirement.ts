/**
 * The store's contract: what is left of a device that is retired.
 */
import { describe, expect, test } from "bun:test";
import { freshTally, isComplete } from "../../engine/model.ts";
import { until } from "../support/harness.ts";
import { expectTalliesToEqualRows, missAll, noteOf, reads, rowsOf, SECOND, T, tallyOf } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function retiringContract(ground: Ground): void {
  const { heard, append, enrol, give, log, devicesOf, pendingOf } = ground;

  describe("retiring a device", () => {
    test("releases what it owes and keeps its final receipts", async () => {
      await enrol("till", "kiosk");
      for (const data of ["done", "working", "pending"]) await append(data);
      await append("named", { to: ["till"] });
      await give(1, "till", "done");
      await give(2, "till", "working");
      expect(await ground.store.retire("orders", "till", T)).toBe(true);
      expect(await ground.store.retire("orders", "till", T)).toBe(false);

      const tallies = await reads.tallies(ground.store, "orders", 1, 4);
      expect([1, 2, 3, 4].map((event) => tallies.get(event)!.addressed)).toEqual([2, 1, 1, 0]);
      expect(tallies.get(2)!.working).toBe(0);
      expect((await rowsOf(ground.store, "orders", 1)).map(({ device, status }) => [device, status])).toEqual([
        ["kiosk", "pending"],
        ["till", "done"],
      ]);
      expect(await give(1, "till", "failed")).toBe("duplicate");
      for (const event of [2, 3, 4]) expect(await give(event, "till", "done")).toBe("unaddressed");
      expect((await append("after")).addressed).toBe(1);
      expect((await devicesOf("orders")).map(({ device }) => device)).toEqual(["kiosk"]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("does not restore what was released if it enrols again", async () => {
      await enrol("till");
      await append("first life, done");
      await append("first life, owed");
      await give(1, "till", "done");
      await give(2, "till", "received");
      await ground.store.retire("orders", "till", T);
      await append("between");
      expect(await ground.store.join("orders", "till", T)).toMatchObject({ enrolled: false, joined: 3, settled: 3 });
      await append("second life");
      expect(await pendingOf("till")).toBe(1);
      for (const [event, verdict] of [
        [1, "duplicate"],
        [2, "unaddressed"],
        [3, "unaddressed"],
        [4, "recorded"],
      ] as const)
        expect(await give(event, "till", "done")).toBe(verdict);
      expect((await rowsOf(ground.store, "orders", 1)).map(({ status }) => status)).toEqual(["done"]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("that completes events adds an entry for each to the log, with the device's name and without a receipt", async () => {
      await enrol("till", "kiosk");
      for (const data of ["kiosk is done", "till is done", "both owe", "till alone"])
        await append(data, data === "till alone" ? { to: ["till"], deadline: 1 } : {});
      await give(1, "kiosk", "done");
      await give(1, "till", "working");
      await give(2, "till", "failed");
      await missAll(ground.store, T + SECOND);
      expect((await ground.store.heads("orders"))!.receipts.head).toBe(5);
      await ground.store.retire("orders", "till", T + 2 * SECOND);
      const entries = (await reads.receipts(ground.store, "orders", 5, 10)).sort((a, b) => a.event - b.event);
      const entry = {
        device: "till",
        status: "pending",
        detail: null,
        at: T + 2 * SECOND,
        deviceAt: null,
        late: false,
        round: 1,
        attempt: 0,
      };
      expect(entries.map(({ seq: _, ...rest }) => rest) as unknown[]).toEqual([
        { ...entry, event: 1, note: { kind: "complete", tally: { ...freshTally(1), done: 1 } } },
        { ...entry, event: 4, note: { kind: "complete", tally: freshTally(0) } },
      ]);
      const tallies = await reads.tallies(ground.store, "orders", 1, 4);
      expect([1, 2, 3, 4].map((event) => isComplete(tallies.get(event)!))).toEqual([true, false, false, true]);
      await expectTalliesToEqualRows(ground.store, "orders");
      await heard();
      expect(ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : [])).slice(5)).toEqual(
        await reads.receipts(ground.store, "orders", 5, 10),
      );

      // Of what it left behind nothing is told again.
      expect(await give(2, "kiosk", "done")).toBe("recorded");
      expect((await reads.receipts(ground.store, "orders", 7, 10)).map(noteOf)).toEqual([null, { done: 1, failed: 1 }]);
      await ground.store.retire("orders", "kiosk", T);
      expect((await log(9)) as unknown[]).toEqual([[3, "kiosk", "pending"]]);
    });

    test("and enrolling it again before another push changes nothing for others", async () => {
      await enrol("till", "kiosk");
      await append("a");
      await ground.store.retire("orders", "till", T);
      await enrol("till");
      await ground.store.retire("orders", "till", T);
      await enrol("till");
      expect((await append("b")).addressed).toBe(2);
      expect((await tallyOf(ground.store, "orders", 1))!.addressed).toBe(1);
      await expectTalliesToEqualRows(ground.store, "orders");
    });
  });
}

export function retirementContract(ground: Ground): void {
  const { append, enrol, devicesOf } = ground;

  describe("a retirement", () => {
    test("is announced to followers of the channel's events once it is stored, and only if the device was enrolled", async () => {
      const told: (readonly [string, string] | number)[] = [];
      ground.store.watch((wake) => {
        if (wake.kind === "retired") told.push([wake.channel, wake.device]);
        if (wake.kind === "events") told.push(...wake.entries.map(({ seq }) => seq));
      });
      await enrol("till", "kiosk");
      await ground.store.enrol("others", "till", T);
      await append("before");
      await ground.store.retire("orders", "till", T);
      await Promise.all([ground.store.retire("orders", "till", T), ground.store.retire("orders", "nobody", T)]);
      await Promise.all([ground.store.retire("orders", "kiosk", T), append("after")]);
      await ground.store.retire("others", "till", T);
      await until(() => told.length >= 5, "two events and three retirements");
      expect(told).toEqual([1, ["orders", "till"], ["orders", "kiosk"], 2, ["others", "till"]]);
    });

    test("can be read when it is announced", async () => {
      const readings: Promise<number>[] = [];
      ground.store.watch(({ kind }) => {
        if (kind === "retired") readings.push(devicesOf("orders").then(({ length }) => length));
      });
      await enrol("till", "kiosk");
      await ground.store.retire("orders", "till", T);
      await until(() => readings.length === 1, "the retirement");
      expect(await readings[0]!).toBe(1);
    });
  });
}
