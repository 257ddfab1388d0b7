/**
 * The store's contract: what devices are told of events that retention drops many at a time, also in the middle of it.
 */
import { describe, expect, test } from "bun:test";
import { draft, missAll, reads, results, SECOND, T, trimAll, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

/** More devices, and more events, than any store deals with in one slice. */
const MANY = 1_300;
const NOTHING_KEPT = { count: 0, before: 0 };

export function retentionRunsContract(ground: Ground): void {
  const { append, enrol, give, log, namesOf } = ground;

  const enrolAll = (names: readonly string[]) =>
    Promise.all(names.map((name) => ground.store.enrol("orders", name, T)));
  const appendMany = (count: number, more = {}) =>
    ground.store.append("orders", Array(count).fill(draft("x", more)), T);
  const giveAll = async (seqs: readonly number[], devices: readonly string[], status: "done" | "working" = "done") => {
    const { epoch } = (await ground.store.heads("orders"))!;
    const words = seqs.flatMap((seq) => devices.map((device) => word(epoch, seq, device, status)));
    expect(new Set(results(await ground.store.record("orders", words, T)))).toEqual(new Set(["recorded"]));
  };
  const lost = async (device: string): Promise<number> => (await ground.store.join("orders", device, T)).lostSeq;
  const drop = () => trimAll(ground.store, "orders", NOTHING_KEPT, T);

  describe("retention of many events at once", () => {
    test("tells each device the newest event that it owed, however much of the rest it answered", async () => {
      await enrol("all", "none", "newest", "oldest", "middle", "working");
      await append("joined later");
      await enrol("late");
      await appendMany(3);
      await enrol("too late");
      await giveAll([1, 2, 3, 4], ["all"]);
      await giveAll([4], ["newest"]);
      await giveAll([1], ["oldest"]);
      await giveAll([3, 4], ["middle"]);
      await giveAll([1, 2, 3, 4], ["working"], "working");
      await giveAll([2, 3, 4], ["late"]);
      await drop();
      const expected = { all: 0, none: 4, newest: 3, oldest: 4, middle: 2, working: 4, late: 0, "too late": 0 };
      for (const [device, seq] of Object.entries(expected)) expect([device, await lost(device)]).toEqual([device, seq]);
    });

    test("goes by the last run in which a device lost something", async () => {
      await enrol("first", "second", "both", "neither");
      await appendMany(2);
      await giveAll([1, 2], ["second", "neither"]);
      await giveAll([2], ["both"]);
      await drop();
      await appendMany(2);
      await giveAll([3, 4], ["first", "neither"]);
      await giveAll([4], ["both"]);
      await drop();
      await append("kept");
      expect(await lost("first")).toBe(2);
      expect(await lost("second")).toBe(4);
      expect(await lost("both")).toBe(3);
      expect(await lost("neither")).toBe(0);
    });

    test("tells of each loss once", async () => {
      await enrol("silent", "answered", "away");
      await appendMany(MANY);
      await giveAll([MANY], ["answered"]);
      await drop();
      await append("kept");
      const devices = { silent: MANY, answered: MANY - 1 };
      for (const [device, seq] of Object.entries(devices)) {
        expect([device, await lost(device), await lost(device)]).toEqual([device, seq, seq]);
        expect(await give(MANY + 1, device, "received")).toBe("recorded");
        expect([device, await lost(device)]).toEqual([device, 0]);
      }
      await ground.store.seen("orders", new Map([["away", T]]));
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect([await lost("silent"), await lost("answered"), await lost("away")]).toEqual([0, 0, MANY]);
      await drop();
      for (const device of ["silent", "answered", "away"]) expect(await lost(device)).toBe(MANY + 1);
    });

    test("passes events that have expired, and those that all have answered", async () => {
      await enrol("till", "kiosk");
      await append("owed");
      await append("answered");
      await appendMany(2, { ttl: 1 });
      await giveAll([2], ["till", "kiosk"]);
      await giveAll([3], ["till"]);
      await trimAll(ground.store, "orders", NOTHING_KEPT, T + 2 * SECOND);
      expect([await lost("till"), await lost("kiosk")]).toEqual([1, 1]);
    });

    test("tells each device of events that named it alone", async () => {
      await enrol("a", "b", "c", "silent");
      await append("all");
      await append("a and b", { to: ["a", "b", "nobody"] });
      await append("b", { to: ["b"] });
      await append("all");
      await append("c", { to: ["c", "later"] });
      await enrol("later");
      await giveAll([4], ["a", "b", "c"]);
      await giveAll([3], ["b"]);
      await giveAll([1], ["a"]);
      await giveAll([5], ["c"]);
      await drop();
      await enrol("nobody");
      const expected = { a: 2, b: 2, c: 1, silent: 4, later: 5, nobody: 0 };
      for (const [device, seq] of Object.entries(expected)) expect([device, await lost(device)]).toEqual([device, seq]);
    });

    test("tells a device that returned nothing of its first time", async () => {
      await enrol("till", "kiosk");
      await appendMany(2);
      await append("named", { to: ["till"] });
      await giveAll([2], ["kiosk"]);
      await ground.store.retire("orders", "till", T);
      await append("between");
      await enrol("till");
      await drop();
      expect([await lost("till"), await lost("kiosk")]).toEqual([0, 4]);
      await ground.store.retire("orders", "till", T);
      await append("again");
      await ground.store.retire("orders", "kiosk", T);
      await enrol("kiosk", "till");
      await drop();
      expect([await lost("till"), await lost("kiosk")]).toEqual([0, 0]);
    });

    test("records as missing, before it drops them, those that owe events whose deadline is ahead", async () => {
      await enrol("till", "kiosk");
      await append("no deadline");
      await append("ahead", { deadline: 60 });
      await append("passed", { deadline: 1 });
      await append("ahead", { deadline: 60, to: ["kiosk"] });
      await append("no deadline");
      await missAll(ground.store, T + SECOND);
      await giveAll([2, 5], ["till"]);
      await trimAll(ground.store, "orders", NOTHING_KEPT, T + 2 * SECOND);
      await ground.heard();
      const missing = ground.wakes
        .flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []))
        .filter(({ status, detail }) => status === "missing" && detail !== null);
      expect(missing.map(({ event, device, detail }) => [event, device, detail])).toEqual([
        [2, "kiosk", '{"reason":"expired"}'],
        [4, "kiosk", '{"reason":"expired"}'],
      ]);
      expect([await lost("till"), await lost("kiosk")]).toEqual([3, 5]);
      expect(await missAll(ground.store, T + 100 * SECOND)).toBeNull();
      expect(await log()).toEqual([]);
    });

    test("tells the same in the middle of it, and everything once", async () => {
      const names = namesOf(MANY);
      await enrolAll(names);
      await appendMany(3);
      await append("named", { to: [names[0]!, names.at(-1)!] });
      // All have answered the newest, so that it takes more than one slice to tell them apart.
      await giveAll([3], names);
      const told = new Map<string, number>();
      const answer = async (device: string): Promise<void> => {
        told.set(device, await lost(device));
        const { epoch, first } = await ground.store.append("orders", [draft("kept", { to: [device] })], T);
        expect(results(await ground.store.record("orders", [word(epoch, first, device, "done")], T))).toEqual([
          "recorded",
        ]);
        expect(await lost(device)).toBe(0);
      };
      const middle = (n: number): string[] => [names[n]!, names[MANY - 1 - n]!];
      let slices = 0;
      for (let isMore = true; isMore; slices++) {
        const { head } = (await ground.store.heads("orders"))!.events;
        isMore = await ground.store.trim("orders", { count: head - 4, before: 0 }, T);
        if (slices >= 6) continue;
        await ground.store.seen("orders", new Map([[names[600 + slices]!, T]]));
        for (const device of middle(slices)) await answer(device);
        if (slices === 1 && ground.opened.reopen && !ground.keepsNothing) ground.store = await ground.opened.reopen();
      }
      expect(slices).toBeGreaterThan(1);
      for (const [device, seq] of told) {
        expect([device, seq]).toEqual([device, device === names[0] || device === names.at(-1) ? 4 : 2]);
        expect([device, await lost(device)]).toEqual([device, 0]);
      }
      for (const device of names.slice(590, 620)) expect([device, await lost(device)]).toEqual([device, 2]);
      expect((await reads.events(ground.store, "orders", 0, 1))[0]!.seq).toBeGreaterThan(4);
    });
  });
}
