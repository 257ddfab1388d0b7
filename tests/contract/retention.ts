/**
 * The store's contract: what is kept, and what goes.
 */
import { describe, expect, test } from "bun:test";
import { draft, expectTalliesToEqualRows, reads, rowsOf, SECOND, T, trimAll, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function retentionContract(ground: Ground): void {
  const { append, enrol, give } = ground;

  describe("retention", () => {
    test("by count keeps the newest", async () => {
      for (let n = 1; n <= 5; n++) await append(n);
      await trimAll(ground.store, "orders", { count: 2, before: 0 }, T);
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 5, floor: 3, controls: 0 });
      expect((await reads.events(ground.store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([4, 5]);
      expect([...(await reads.tallies(ground.store, "orders", 1, 5)).keys()]).toEqual([4, 5]);
      expect((await append(6)).first).toBe(6);
    });

    test("by age keeps what was pushed at that moment or later", async () => {
      for (let n = 1; n <= 4; n++) await append(n, {}, T + n);
      await trimAll(ground.store, "orders", { count: 100, before: T + 3 }, T + 4);
      expect((await reads.events(ground.store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([3, 4]);
    });

    test("may drop everything; positions continue", async () => {
      for (let n = 1; n <= 3; n++) await append(n);
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 3, floor: 3, controls: 0 });
      expect((await append(4)).first).toBe(4);
      expect((await reads.events(ground.store, "orders", 0, 10)).map(({ seq }) => seq)).toEqual([4]);
    });

    test("drops nothing twice, and nothing of another channel", async () => {
      await append(1);
      await ground.store.append("others", [draft(1), draft(2)], T);
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      expect(await ground.store.trim("orders", { count: 0, before: 0 }, T)).toBe(false);
      expect((await ground.store.heads("others"))!.events.floor).toBe(0);
    });

    test("drops an event with its rows and its receipts", async () => {
      await enrol("till");
      for (let n = 1; n <= 3; n++) await append(n);
      await give(1, "till", "received");
      await give(2, "till", "done");
      await give(1, "till", "done");
      await give(3, "till", "done");
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect((await ground.store.heads("orders"))!.receipts).toEqual({ head: 7, floor: 5 });
      expect((await reads.receipts(ground.store, "orders", 0, 10)).map(({ seq, event }) => [seq, event])).toEqual([
        [6, 3],
        [7, 3],
      ]);
      for (const event of [1, 2]) {
        expect(await rowsOf(ground.store, "orders", event)).toEqual([]);
        expect(await give(event, "till", "done")).toBe("unknown");
      }
      expect((await rowsOf(ground.store, "orders", 3)).map(({ status }) => status)).toEqual(["done"]);
    });

    test("keeps the receipts of kept events, whatever was dropped before them in the log", async () => {
      await enrol("till");
      await append(1);
      await append(2);
      await give(2, "till", "done");
      await give(1, "till", "done");
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect((await reads.receipts(ground.store, "orders", 0, 10))[0]).toMatchObject({ seq: 1, event: 2 });
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      expect((await ground.store.heads("orders"))!.receipts).toEqual({ head: 4, floor: 4 });
      expect(await reads.receipts(ground.store, "orders", 0, 10)).toEqual([]);
    });

    test("runs in slices, with pushes in between", async () => {
      await enrol("till", "kiosk");
      for (let batch = 0; batch < 5; batch++) {
        const { epoch, first } = await ground.store.append(
          "orders",
          Array.from({ length: 1_000 }, (_, n) => draft(n)),
          T,
        );
        await ground.store.record(
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
          ground.store.trim("orders", { count: 10, before: 0 }, T),
        ]);
        more = trimmed;
        calls++;
        const { events } = (await ground.store.heads("orders"))!;
        expect(answer.first).toBe(5_000 + calls);
        // What can be read follows on from the floor, however far the slices are.
        expect((await reads.events(ground.store, "orders", 0, 1))[0]!.seq).toBe(events.floor + 1);
        if (calls === 1_000) throw new Error("trim never ends");
      }
      expect(calls).toBeGreaterThan(1);
      expect((await ground.store.heads("orders"))!.events).toEqual({
        head: 5_000 + calls,
        floor: 4_990 + calls,
        controls: 0,
      });
      await expectTalliesToEqualRows(ground.store, "orders");
      expect(
        (await reads.receipts(ground.store, "orders", 0, 10_000)).every(({ event }) => event > 4_990 + calls),
      ).toBe(true);
    });

    test("remembers for each device the newest event that it lost unanswered, until a receipt follows a join", async () => {
      await enrol("owes", "answered", "gone");
      for (let n = 1; n <= 3; n++) await append(n);
      for (const event of [1, 2]) await give(event, "answered", "done");
      await give(2, "owes", "working");
      await ground.store.retire("orders", "gone", T);
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      const lost = async (device: string): Promise<number> => (await ground.store.join("orders", device, T)).lostSeq;

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
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect(await give(5, "owes", "received")).toBe("recorded");
      expect(await lost("owes")).toBe(4);
    });

    test("does not count expired events, or events for other devices, as lost", async () => {
      await enrol("till");
      await append("short", { ttl: 1 });
      await append("other's", { to: ["kiosk"] });
      await append("kept");
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T + 2 * SECOND);
      expect((await ground.store.join("orders", "till", T + 2 * SECOND)).lostSeq).toBe(0);
    });

    test("counts events that name the device as lost", async () => {
      await enrol("till", "kiosk");
      await append("its own", { to: ["till"] });
      await append("kept");
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect((await ground.store.join("orders", "till", T)).lostSeq).toBe(1);
      expect((await ground.store.join("orders", "kiosk", T)).lostSeq).toBe(0);
    });

    test("does not count an event as lost that the device answers at the same moment", async () => {
      await enrol("kiosk", "till");
      const { epoch } = await append("answered");
      await append("kept");
      await Promise.all([
        ground.store.record("orders", [word(epoch, 1, "till", "done")], T),
        ground.store.trim("orders", { count: 1, before: 0 }, T),
      ]);
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect((await ground.store.join("orders", "till", T)).lostSeq).toBe(0);
      expect((await ground.store.join("orders", "kiosk", T)).lostSeq).toBe(1);
    });
  });

  describe("the channels that retention has something to do in", () => {
    const KEPT_MS = 60 * SECOND;
    /** Where the list is unknown, a second look finds it. */
    const due = async (now: number, limit = 100): Promise<readonly string[]> =>
      (await ground.store.trimmable(now, limit)) ?? (await ground.store.trimmable(now, limit))!;
    const trim = (channel: string, now: number) =>
      trimAll(ground.store, channel, { count: 1_000, before: now - KEPT_MS }, now);

    test("are those that were pushed to first, and then those whose oldest event has reached its age", async () => {
      expect(await due(T)).toEqual([]);
      await append(1);
      await ground.store.append("others", [draft(1)], T + 1);
      await enrol("till");
      expect(await due(T + 1)).toEqual(["orders", "others"]);
      expect(await due(T + 1, 1)).toEqual(["orders"]);
      for (const channel of ["orders", "others"]) await trim(channel, T + 1);
      await append(2, {}, T + SECOND);
      expect(await due(T + KEPT_MS)).toEqual([]);
      expect(await due(T + KEPT_MS + 1)).toEqual(["orders"]);
      expect(await due(T + KEPT_MS + 2)).toEqual(["orders", "others"]);

      await trim("orders", T + KEPT_MS + 2);
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 2, floor: 1, controls: 0 });
      expect(await due(T + KEPT_MS + SECOND)).toEqual(["others"]);
      expect(await due(T + KEPT_MS + SECOND + 1)).toEqual(["others", "orders"]);
    });

    test("are not those that keep nothing, until another push", async () => {
      await append(1);
      await trim("orders", T);
      const later = T + 2 * KEPT_MS;
      expect(await due(later)).toEqual(["orders"]);
      await trim("orders", later);
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 1, floor: 1, controls: 0 });
      expect(await due(later + 10 * KEPT_MS)).toEqual([]);
      await append(2, {}, later);
      expect(await due(later)).toEqual(["orders"]);
    });

    test("are those that were not trimmed to the end", async () => {
      await ground.store.append("orders", Array(3_000).fill(draft("x")), T);
      await trim("orders", T);
      const later = T + 2 * KEPT_MS;
      expect(await ground.store.trim("orders", { count: 10, before: later - KEPT_MS }, later)).toBe(true);
      expect(await due(later)).toEqual(["orders"]);
      await trim("orders", later);
      expect(await due(later)).toEqual([]);
    });

    test("include one that is pushed to while its last event is dropped", async () => {
      await append(1);
      await trim("orders", T);
      const later = T + 2 * KEPT_MS;
      expect(await due(later)).toEqual(["orders"]);
      await Promise.all([trim("orders", later), append(2, {}, later + 1)]);
      expect(await due(later + 1 + KEPT_MS + 1)).toEqual(["orders"]);
      await trim("orders", later + 1);
      await Promise.all([append(3, {}, later + 2), trim("orders", later + 2)]);
      expect(await due(later + 1 + KEPT_MS + 1)).toEqual(["orders"]);
    });

    const reopened = ground.keepsNothing ? test.skip : test;
    reopened("are known when the store is opened again", async () => {
      await append(1);
      await ground.store.append("others", [draft(1)], T);
      await trim("orders", T);
      if (ground.opened.reopen) ground.store = await ground.opened.reopen();
      expect(await due(T)).toEqual(["others"]);
      expect(await due(T + KEPT_MS + 1)).toEqual(["others", "orders"]);
    });
  });
}
