/**
 * The store's contract: deleting a channel that nobody needs any more.
 */
import { describe, expect, test } from "bun:test";
import { all, dataOf, draft, missAll, reads, results, SECOND, T, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

const LATER = T + 60 * SECOND;
const hook = { name: "h", url: "https://shop.example/", secret: null, on: ["receipt"] } as const;
const nothing = { events: false, devices: 0, hooks: 0, schedules: 0 };

export function removalContract(ground: Ground): void {
  const { append, enrol, give } = ground;
  const remove = (now = LATER) => ground.store.removeChannel("orders", now);
  const names = () => all((after) => ground.store.channelNames(after, 2, null));

  describe("deleting a channel", () => {
    test("is refused while it has something, and says what", async () => {
      expect(await remove()).toBe("unknown");
      await append("a");
      expect(await remove()).toEqual({ ...nothing, events: true });
      await enrol("till", "kiosk");
      await ground.store.putHook("orders", hook, "whsec_x", T);
      await ground.store.schedule(
        "orders",
        { id: "s-1", options: {}, data: "1", every: null, tz: null },
        T + SECOND,
        T,
      );
      expect(await remove()).toEqual({ events: true, devices: 2, hooks: 1, schedules: 1 });
      for (const device of ["till", "kiosk"]) await ground.store.retire("orders", device, T);
      await ground.store.dropHook("orders", "h", T);
      await ground.store.unschedule("orders", "s-1", T);
      expect(await remove()).toEqual({ ...nothing, events: true });
      expect(dataOf(await reads.events(ground.store, "orders", 0, 10))).toEqual(['"a"']);
    });

    test("counts an event until it expires", async () => {
      await append("a", { ttl: 30 });
      await append("b", { ttl: 60, to: ["till"] });
      expect(await remove(T + 30 * SECOND)).toEqual({ ...nothing, events: true });
      expect(await reads.events(ground.store, "orders", 0, 10)).toHaveLength(2);
      expect(await remove(T + 60 * SECOND)).toBe("removed");
      expect(await remove(T + 60 * SECOND)).toBe("unknown");
    });

    test("leaves nothing, and its ids never match later ones", async () => {
      await enrol("till", "kiosk");
      const key = { key: "k", digest: "d" };
      const { epoch } = await ground.store.append("orders", [draft("a", { ttl: 30, deadline: 50 })], T, key);
      await append("b", { ttl: 1, to: ["till", "stranger"], deadline: 3_600 });
      await give(1, "till", "done");
      await ground.store.schedule("orders", { id: "s-1", options: {}, data: "1", every: null, tz: null }, T, T);
      await ground.store.skipSchedule("orders", { id: "s-1", due: T, next: null }, "no", T);
      for (const device of ["till", "kiosk"]) await ground.store.retire("orders", device, T);
      await ground.store.append("others", [draft("x")], T);
      expect(await names()).toEqual(["orders", "others"]);
      expect(await remove()).toBe("removed");
      expect(await names()).toEqual(["others"]);
      expect((await ground.store.channels("", 10)).items.map(({ channel }) => channel)).toEqual(["others"]);
      expect(await ground.store.heads("orders")).toBeNull();
      expect(results(await ground.store.record("orders", [word(epoch, 1, "kiosk", "done")], LATER))).toEqual([
        "unknown",
      ]);
      expect(await missAll(ground.store, T + 9_999 * SECOND)).toBeNull();

      const reserved = await ground.store.open("orders");
      expect(reserved).toMatchObject({ events: { head: 0, floor: 0 }, receipts: { head: 0, floor: 0 } });
      expect(reserved.epoch).not.toBe(epoch);
      const again = await ground.store.append("orders", [draft("new")], LATER, key);
      expect(again).toMatchObject({ epoch: reserved.epoch, first: 1, addressed: 0, replayed: false });
      expect(await ground.store.events("orders", epoch, 0, 10)).toBeNull();
      expect(results(await ground.store.record("orders", [word(epoch, 1, "till", "done")], LATER))).toEqual([
        "unknown",
      ]);
      expect(dataOf(await reads.events(ground.store, "orders", 0, 10))).toEqual(['"new"']);
      expect(await reads.rows(ground.store, "orders", 1, null, "", 10)).toEqual({ items: [], next: null });
      expect(await reads.receipts(ground.store, "orders", 0, 10)).toEqual([]);
      expect((await ground.store.schedules("orders", "", 10)).items).toEqual([]);
      expect(await names()).toEqual(["orders", "others"]);
      await ground.heard();
    });

    test("in which nothing was ever stored keeps the epoch that its followers know", async () => {
      const { epoch } = await ground.store.open("orders");
      await enrol("till");
      await ground.store.retire("orders", "till", T);
      expect(await remove()).toBe("removed");
      expect((await append("a")).epoch).toBe(epoch);
    });

    test("of very many expired events is done in slices; one that comes into use meanwhile stays", async () => {
      for (let n = 0; n < 3; n++) await ground.store.append("orders", Array(1_000).fill(draft(n, { ttl: 1 })), T);
      const [removed, appended] = await Promise.all([remove(), append("meanwhile", {}, LATER)]);
      const kept = await reads.events(ground.store, "orders", 0, 5_000);
      expect(kept.at(-1)).toMatchObject({ data: '"meanwhile"', seq: appended.first });
      if (removed === "removed") expect(kept).toHaveLength(1);
      else expect(removed).toEqual({ ...nothing, events: true });
      await ground.store.append("others", Array(1_000).fill(draft("x", { ttl: 1 })), T);
      for (let n = 0; n < 2; n++) await ground.store.append("others", Array(1_000).fill(draft(n, { ttl: 1 })), T);
      expect(await ground.store.removeChannel("others", LATER)).toBe("removed");
    });

    test("that was just enrolled in, in the same turn, follows the order of the calls", async () => {
      await append("a", { ttl: 1 });
      const [first, second, third] = await Promise.all([
        ground.store.enrol("others", "till", T),
        ground.store.removeChannel("others", T),
        ground.store.retire("others", "till", T),
      ]);
      expect([first, second, third]).toEqual([true, { ...nothing, devices: 1 }, true]);
    });
  });

  describe("names of channels", () => {
    test("are read in pages, within a scope", async () => {
      for (const name of ["a", "b.1", "b.2", "c"]) await ground.store.append(name, [draft(1)], T);
      expect(await names()).toEqual(["a", "b.1", "b.2", "c"]);
      const scope = { names: ["c"], prefixes: ["b."] };
      expect(await ground.store.channelNames("", 2, scope)).toEqual({ items: ["b.1", "b.2"], next: "b.2" });
      expect(await ground.store.channelNames("b.2", 2, scope)).toEqual({ items: ["c"], next: null });
      expect(await ground.store.channelNames("c", 2, scope)).toEqual({ items: [], next: null });
    });
  });
}
