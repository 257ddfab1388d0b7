/**
 * The store's contract: what one device was sent and what it said.
 */
import { describe, expect, test } from "bun:test";
import type { HistoryRow } from "../../engine/model.ts";
import type { Page, Store } from "../../engine/store.ts";
import { draft, EVERYTHING, SECOND, T, trimAll, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

/** All rows of a device, read in pages of this length. */
export async function historyOf(
  store: Store,
  channel: string,
  device: string,
  limit: number,
  now = T,
): Promise<HistoryRow[]> {
  const heads = (await store.heads(channel))!;
  const rows: HistoryRow[] = [];
  for (let before: number | null = heads.events.head + 1; before !== null;) {
    const page: Page<HistoryRow, number> = (await store.history(channel, heads.epoch, device, before, limit, now))!;
    if (page.next !== null) expect(page.items).toHaveLength(limit);
    rows.push(...page.items);
    before = page.next;
  }
  return rows;
}

export function historyContract(ground: Ground): void {
  const { append, enrol, give } = ground;
  const seqsOf = async (device: string, limit = 100): Promise<number[]> =>
    (await historyOf(ground.store, "orders", device, limit)).map(({ seq }) => seq);

  describe("a device's history", () => {
    test("has what it was sent and what it said, newest first", async () => {
      await append("before it joined");
      await enrol("till", "kiosk");
      await append("a", { type: "order", deadline: 60 }, T + 1);
      await append("for another", { to: ["kiosk"] }, T + 2);
      await append("for it", { to: ["till", "kiosk"] }, T + 3);
      await append("c", {}, T + 4);
      await give(2, "till", "failed", T + SECOND);
      await give(4, "till", "working", T + 2 * SECOND);
      await give(5, "kiosk", "done");
      const silent = { status: "pending", detail: null, at: null, deviceAt: null, late: false, round: 1, attempt: 0 };
      expect(await historyOf(ground.store, "orders", "till", 100)).toEqual([
        { seq: 5, type: null, pushedAt: T + 4, deadline: null, ...silent, status: "pending" },
        { seq: 4, type: null, pushedAt: T + 3, deadline: null, ...silent, status: "working", at: T + 2 * SECOND },
        {
          ...{ seq: 2, type: "order", pushedAt: T + 1, deadline: T + 1 + 60 * SECOND },
          ...{ ...silent, status: "failed", at: T + SECOND, attempt: 1 },
        },
      ]);
    });

    test("is read in pages, across events that are not for the device", async () => {
      await enrol("till");
      for (let n = 1; n <= 9; n++) await append(n, n % 3 === 0 ? {} : { to: ["kiosk"] });
      for (const limit of [1, 2, 3, 9]) expect(await seqsOf("till", limit)).toEqual([9, 6, 3]);
      expect(await seqsOf("kiosk", 2)).toEqual([8, 7, 5, 4, 2, 1]);
      expect(await seqsOf("stranger")).toEqual([]);
    });

    test("of a device that left has its final receipts, and one that returned has nothing from between", async () => {
      await enrol("till");
      for (const data of ["a", "b"]) await append(data);
      await append("named", { to: ["till"] });
      await append("named and owed", { to: ["till"] });
      await give(1, "till", "done");
      await give(3, "till", "failed");
      await ground.store.retire("orders", "till", T);
      expect(await seqsOf("till")).toEqual([3, 1]);
      await append("while it was away");
      await enrol("till");
      await append("again");
      expect(await seqsOf("till")).toEqual([6, 3, 1]);
    });

    test("of a device that is being retired has its final receipts alone from the first moment", async () => {
      await enrol("till");
      const { epoch } = await ground.store.append("orders", Array(1_400).fill(draft("to all")), T);
      await append("named", { to: ["till", "kiosk"] });
      await append("named and answered", { to: ["till"] });
      const words = [3, 1_399, 1_402].map((seq) => word(epoch, seq, "till", "done"));
      await ground.store.record("orders", words, T);
      const retiring = ground.store.retire("orders", "till", T);
      while ((await ground.store.owing("orders", ["till"], T)).length > 0);
      // It is removed from the events in slices.
      expect(await seqsOf("till")).toEqual([1_402, 1_399, 3]);
      expect(await retiring).toBe(true);
      expect(await seqsOf("till", 1)).toEqual([1_402, 1_399, 3]);
    });

    test("ends at what retention keeps", async () => {
      await enrol("till");
      for (let n = 0; n < 5; n++) await append(n);
      await give(1, "till", "done");
      await trimAll(ground.store, "orders", { ...EVERYTHING, count: 2 }, T);
      expect(await seqsOf("till", 1)).toEqual([5, 4]);
    });

    test("of another epoch, or of a channel that does not exist, is not read", async () => {
      await append("a");
      expect(await ground.store.history("orders", "other", "till", 2, 10, T)).toBeNull();
      expect(await ground.store.history("nowhere", "other", "till", 2, 10, T)).toBeNull();
    });
  });

  describe("enrolments", () => {
    test("are the devices by name, and those that are asked for by name owe what the list says", async () => {
      await enrol("b", "a", "c");
      await append("a");
      await give(1, "b", "done");
      await ground.store.seen("orders", new Map([["c", T + 5]]));
      await ground.store.retire("orders", "a", T);
      const first = await ground.store.enrolments("orders", "", 1);
      expect(first).toEqual({ items: [{ device: "b", enrolledAt: T, seenAt: null }], next: "b" });
      expect(await ground.store.enrolments("orders", "b", 1)).toEqual({
        items: [{ device: "c", enrolledAt: T, seenAt: T + 5 }],
        next: null,
      });
      expect(await ground.store.enrolments("nowhere", "", 10)).toEqual({ items: [], next: null });
      expect(await ground.store.owing("orders", ["c", "a", "stranger", "b"], T)).toEqual([
        { device: "c", enrolledAt: T, seenAt: T + 5, pending: 1 },
        { device: "b", enrolledAt: T, seenAt: null, pending: 0 },
      ]);
      expect(await ground.store.owing("nowhere", ["b"], T)).toEqual([]);
      expect(await ground.store.owing("orders", [], T)).toEqual([]);
    });
  });
}
