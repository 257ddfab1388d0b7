/**
 * The store's contract: which events are sent again, and to whom.
 */
import { describe, expect, test } from "bun:test";
import { bySeq, draft, missAll, reads, T, trimAll } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function remindersContract(ground: Ground): void {
  const { append, enrol, give, namesOf } = ground;

  describe("reminders", () => {
    const remindersOf = async (now: number) => [...(await ground.store.reminders("orders", now))].sort(bySeq);

    test("are listed until their event expires, its deadline passes or it is no longer kept", async () => {
      await enrol("till");
      await append("without", { deadline: 5 });
      await append("for ever", { remind: 60 });
      await append("to its deadline", { remind: 1.5, deadline: 5, ttl: 8 });
      await append("to its expiry", { remind: 2, deadline: 8, ttl: 5, to: ["kiosk"] }, T + 1);
      await ground.store.append("others", [draft("elsewhere", { remind: 1 })], T);
      const { epoch } = (await ground.store.heads("orders"))!;
      const forEver = { epoch, seq: 2, at: T, every: 60_000, until: null };
      const both = [
        { epoch, seq: 3, at: T, every: 1_500, until: T + 5_000 },
        { epoch, seq: 4, at: T + 1, every: 2_000, until: T + 5_001 },
      ];
      expect(await remindersOf(T)).toEqual([forEver, ...both]);
      expect(await remindersOf(T + 4_999)).toEqual([forEver, ...both]);
      expect(await remindersOf(T + 5_000)).toEqual([forEver, both[1]!]);
      expect(await remindersOf(T + 5_001)).toEqual([forEver]);
      await missAll(ground.store, T + 5_001);
      expect(await remindersOf(T + 5_001)).toEqual([forEver]);
      await trimAll(ground.store, "orders", { count: 2, before: 0 }, T);
      expect(await remindersOf(T)).toEqual(both);
    });

    test("are for addressed devices that sent no receipt", async () => {
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
        [...(await reads.silent(ground.store, "orders", event, devices))].sort();
      expect(await silent(1, ["a", "b", "c", "d", "e"])).toEqual(["e"]);
      expect(await silent(1, ["a"])).toEqual([]);
      expect(await silent(1, [])).toEqual([]);
      expect(await silent(2, ["e", "a", "b"])).toEqual(["a", "b", "e"]);
      const names = namesOf(500);
      await Promise.all(names.slice(250).map((device) => ground.store.enrol("orders", device, T)));
      await append("c", { remind: 1 });
      expect(await silent(2, [...names, "a"])).toEqual(["a"]);
      expect(await silent(3, [...names, "a"])).toEqual(["a", ...names.slice(250)]);
      expect(await silent(4, ["a"])).toEqual([]);
    });

    test("are not for a device that was retired and enrolled again, even if the event names it and it had sent a receipt", async () => {
      await enrol("a", "b");
      await append("to all", { remind: 1 });
      await append("to some", { remind: 1, to: ["a", "b"] });
      await append("to some", { remind: 1, to: ["a", "b"] });
      await give(1, "a", "received");
      await give(2, "a", "working");
      for (const device of ["a", "b"]) await ground.store.retire("orders", device, T);
      await enrol("a", "b");
      for (const event of [1, 2, 3]) expect(await reads.silent(ground.store, "orders", event, ["a", "b"])).toEqual([]);
    });
  });
}
