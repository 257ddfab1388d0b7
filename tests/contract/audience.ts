/**
 * The store's contract: whom an event is for, how a device joins, and which devices there are.
 */
import { describe, expect, test } from "bun:test";
import { isComplete } from "../../engine/model.ts";
import { all, draft, expectTalliesToEqualRows, reads, rowsOf, sorted, T, tallyOf } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function audienceContract(ground: Ground): void {
  const { append, enrol, give, devicesOf, pendingOf } = ground;

  describe("the audience", () => {
    test("is the devices enrolled at the push", async () => {
      await enrol("till", "kiosk");
      expect((await append("a")).addressed).toBe(2);
      await enrol("late");
      expect((await rowsOf(ground.store, "orders", 1)).map(({ device }) => device)).toEqual(["kiosk", "till"]);
      expect(await give(1, "late", "done")).toBe("unaddressed");
      expect((await append("b")).addressed).toBe(3);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("of an event pushed before any enrolment is empty", async () => {
      expect((await append("a")).addressed).toBe(0);
      await enrol("till");
      expect(await rowsOf(ground.store, "orders", 1)).toEqual([]);
      expect(isComplete((await tallyOf(ground.store, "orders", 1))!)).toBe(true);
      expect(await pendingOf("till")).toBe(0);
    });

    test("is the devices named in `to`, enrolled or not, and no others", async () => {
      await enrol("till", "kiosk");
      expect((await append("a", { to: ["till", "stranger"] })).addressed).toBe(2);
      expect((await reads.events(ground.store, "orders", 0, 1)).map((event) => sorted(event).to)).toEqual([
        ["stranger", "till"],
      ]);
      expect((await rowsOf(ground.store, "orders", 1)).map(({ device }) => device)).toEqual(["stranger", "till"]);
      expect(await give(1, "kiosk", "done")).toBe("unaddressed");
      expect(await give(1, "stranger", "done")).toBe("recorded");
      expect(await give(1, "till", "received")).toBe("recorded");
      expect(await devicesOf("orders")).toMatchObject([
        { device: "kiosk", pending: 0 },
        { device: "till", pending: 1 },
      ]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("a device named before its enrolment owes that event", async () => {
      await append("for all");
      await append("for it", { to: ["truck"] });
      const joined = await ground.store.join("orders", "truck", T);
      expect(joined).toMatchObject({ enrolled: false, joined: 2, settled: 1, lostSeq: 0 });
      expect(await pendingOf("truck")).toBe(1);
    });

    test("counts a device once, however often it enrols", async () => {
      expect(await ground.store.enrol("orders", "till", T)).toBe(true);
      expect(await ground.store.enrol("orders", "till", T + 1)).toBe(false);
      expect(await Promise.all(["kiosk", "kiosk"].map((device) => ground.store.enrol("orders", device, T)))).toEqual([
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
      const batch = await ground.store.append("orders", [draft(1), draft(2)], T);
      expect(batch.addressed).toBe(2);
      for (const event of [1, 2]) expect((await tallyOf(ground.store, "orders", event))!.addressed).toBe(2);
    });

    test("follows the order of calls made in one turn", async () => {
      const calls = [
        append("nobody"),
        ground.store.enrol("orders", "till", T),
        append("till"),
        ground.store.join("orders", "kiosk", T),
        append("both"),
        ground.store.retire("orders", "till", T),
        append("kiosk"),
      ] as const;
      const answers = await Promise.all(calls);
      expect([answers[0], answers[2], answers[4], answers[6]].map(({ addressed }) => addressed)).toEqual([0, 1, 2, 1]);
      expect(answers[3]).toMatchObject({ enrolled: false, joined: 2, events: { head: 2 } });
      await expectTalliesToEqualRows(ground.store, "orders");
    });
  });
}

export function joinContract(ground: Ground): void {
  const { append, enrol, give } = ground;

  describe("join", () => {
    test("enrols an unknown device, after what was pushed", async () => {
      await append("before");
      expect(await ground.store.join("orders", "till", T)).toEqual({
        ...(await ground.store.heads("orders"))!,
        enrolled: false,
        hasDeferred: false,
        joined: 1,
        settled: 1,
        lostSeq: 0,
      });
      expect(await ground.store.join("orders", "till", T)).toMatchObject({ enrolled: true, joined: 1 });
    });

    test("returns up to where nothing is owed, also if receipts arrived out of order", async () => {
      await enrol("till");
      for (const data of ["a", "b", "c", "d"]) await append(data);
      const settled = async (): Promise<number> => (await ground.store.join("orders", "till", T)).settled;
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

    test("is not needed for the device's final receipts: settled() has them", async () => {
      await enrol("till", "kiosk");
      for (const data of ["a", "b", "c", "d"]) await append(data);
      await give(1, "till", "done");
      await give(2, "till", "working");
      await give(3, "till", "failed");
      await give(4, "kiosk", "done");
      expect([...(await reads.settled(ground.store, "orders", "till", 0, 4))].sort()).toEqual([1, 3]);
      expect([...(await reads.settled(ground.store, "orders", "till", 1, 3))]).toEqual([3]);
      expect([...(await reads.settled(ground.store, "orders", "till", 0, 2))]).toEqual([1]);
      expect((await reads.settled(ground.store, "orders", "stranger", 0, 4)).size).toBe(0);
    });
  });
}

export function devicesContract(ground: Ground): void {
  const { append, enrol, give, devicesOf, pendingOf } = ground;

  describe("devices", () => {
    test("are listed by name, page by page, each with what it owes", async () => {
      await enrol("b", "a", "c", "A");
      await append("a");
      await enrol("d");
      await append("b");
      await append("only a", { to: ["a"] });
      await give(1, "b", "done");
      await give(2, "b", "received");
      const read = async (limit: number) =>
        (await all((after) => ground.store.devices("orders", after, limit, T))).map(({ device, pending }) => [
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

    test("owe the same whether or not they have joined since then", async () => {
      await enrol("till");
      for (const data of ["a", "b", "c"]) await append(data);
      await append("d", { to: ["till"] });
      await give(1, "till", "done");
      await give(3, "till", "done");
      expect(await pendingOf("till")).toBe(2);
      await ground.store.join("orders", "till", T);
      expect(await pendingOf("till")).toBe(2);
      await give(2, "till", "done");
      await ground.store.join("orders", "till", T);
      expect(await pendingOf("till")).toBe(1);
      await give(4, "till", "done");
      expect(await pendingOf("till")).toBe(0);
    });

    test("are told apart from those that are not enrolled, in the given order", async () => {
      expect(await ground.store.enrolled("orders", ["till"])).toEqual([]);
      await enrol("till", "kiosk", "gone");
      await ground.store.join("orders", "truck", T);
      await ground.store.retire("orders", "gone", T);
      await append("a", { to: ["stranger"] });
      const asked = ["truck", "stranger", "till", "gone", "Till", "kiosk"];
      expect(await ground.store.enrolled("orders", asked)).toEqual(["truck", "till", "kiosk"]);
      expect(await ground.store.enrolled("orders", [])).toEqual([]);
      expect(await ground.store.enrolled("others", asked)).toEqual([]);
      await ground.store.enrol("orders", "gone", T);
      expect(await ground.store.enrolled("orders", ["gone"])).toEqual(["gone"]);
      const many = Array.from({ length: 1_000 }, (_, n) => `d${n}`);
      await enrol("d7", "d999");
      expect(await ground.store.enrolled("orders", many)).toEqual(["d7", "d999"]);
    });

    test("show when they were enrolled and last seen; a sign of life of an unknown device is ignored", async () => {
      await ground.store.enrol("orders", "till", T);
      await ground.store.join("orders", "kiosk", T + 1);
      await ground.store.seen(
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
      await ground.store.seen("orders", new Map([["till", T + 9]]));
      expect((await devicesOf("orders"))[1]!.seenAt).toBe(T + 9);
    });
  });
}
