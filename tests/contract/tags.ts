/**
 * The store's contract: the tags of devices, and events that are addressed by them.
 */
import { describe, expect, test } from "bun:test";
import { isControl } from "../../engine/model.ts";
import { fits, NO_TAGS, readWhere, TAGS_MAX, WHERE_DEVICES_MAX } from "../../engine/tags.ts";
import {
  codeOf,
  draft,
  EVERYTHING,
  expectTalliesToEqualRows,
  missAll,
  reads,
  rowsOf,
  T,
  tallyOf,
  trimAll,
} from "./calls.ts";
import type { Ground } from "./ground.ts";

const tagsOf = (given: Record<string, string>) => new Map(Object.entries(given));

export function tagsContract(ground: Ground): void {
  const { append, enrol, give, pendingOf, devicesOf, withdraw, log, namesOf, heard } = ground;
  /** Enrols devices with these tags. */
  const tag = async (given: Record<string, Record<string, string>>): Promise<void> => {
    for (const [device, tags] of Object.entries(given))
      await ground.store.tag("orders", device, { isAll: true, tags: tagsOf(tags) }, true, T);
  };
  const tags = async (...devices: string[]) => Object.fromEntries(await ground.store.tags("orders", devices));
  const namesIn = async (event: number): Promise<string[]> =>
    (await rowsOf(ground.store, "orders", event)).map(({ device }) => device);

  describe("the tags of a device", () => {
    test("are replaced, changed and removed, and say whether the device was enrolled by that", async () => {
      const { store } = ground;
      const set = (more: Record<string, string | null>, isAll: boolean, enrols = isAll) =>
        store.tag("orders", "till", { isAll, tags: new Map(Object.entries(more)) }, enrols, T);
      expect(await set({ site: "rome" }, false)).toBeNull();
      expect(await store.heads("orders")).toBeNull();
      expect(await set({ site: "rome", beta: "1" }, true)).toEqual({
        tags: tagsOf({ site: "rome", beta: "1" }),
        isNew: true,
      });
      expect(await set({ site: "milan", model: "x2" }, false)).toMatchObject({
        tags: tagsOf({ site: "milan", beta: "1", model: "x2" }),
        isNew: false,
      });
      expect((await set({ beta: null, none: null }, false))!.tags).toEqual(tagsOf({ site: "milan", model: "x2" }));
      expect(await tags("till", "stranger")).toEqual({ till: tagsOf({ site: "milan", model: "x2" }) });
      expect((await set({ model: "y" }, true))!.tags).toEqual(tagsOf({ model: "y" }));
      await store.enrol("orders", "till", T);
      expect(await tags("till")).toEqual({ till: tagsOf({ model: "y" }) });
      expect((await set({}, true))!.tags.size).toBe(0);
      expect(await tags("till")).toEqual({});
      expect((await devicesOf("orders")).length).toBe(1);
    });

    test("are at most so many, and a change to more changes nothing", async () => {
      const many = new Map(Array.from({ length: TAGS_MAX }, (_, n) => [`t${n}`, "1"] as const));
      await ground.store.tag("orders", "till", { isAll: true, tags: many }, true, T);
      const more = { isAll: false, tags: tagsOf({ t0: "2", more: "1" }) };
      expect(await codeOf(ground.store.tag("orders", "till", more, false, T))).toBe("refused");
      expect(await tags("till")).toEqual({ till: many });
      const instead = { isAll: false, tags: new Map([...more.tags, ["t1", null]]) };
      expect((await ground.store.tag("orders", "till", instead, false, T))!.tags.size).toBe(TAGS_MAX);
    });

    test("come with a feed in the same step, and stay if it brings none", async () => {
      await ground.store.join("orders", "till", T, tagsOf({ site: "rome" }));
      expect(await tags("till")).toEqual({ till: tagsOf({ site: "rome" }) });
      await ground.store.join("orders", "till", T, tagsOf({ beta: "1" }));
      await ground.store.join("orders", "till", T);
      expect(await tags("till")).toEqual({ till: tagsOf({ beta: "1" }) });
      await ground.store.join("orders", "till", T, NO_TAGS);
      expect(await tags("till")).toEqual({});
    });

    test("end when it is retired, also if it comes back before the next event", async () => {
      await tag({ till: { site: "rome" }, kiosk: { site: "rome" } });
      await ground.store.retire("orders", "till", T);
      await enrol("till");
      expect(await tags("till", "kiosk")).toEqual({ kiosk: tagsOf({ site: "rome" }) });
      expect((await append("a", { where: "site" })).addressed).toBe(1);
      expect((await append("b", { where: "!site" })).addressed).toBe(1);
    });

    test("belong to one channel", async () => {
      await tag({ till: { site: "rome" } });
      await ground.store.enrol("others", "till", T);
      expect((await ground.store.append("others", [draft(1, { where: "site:rome" })], T)).addressed).toBe(0);
    });
  });

  describe("an event with `where`", () => {
    const SITES = {
      a: { site: "rome" },
      b: { site: "milan", beta: "1" },
      c: { site: "rome", beta: "1" },
      d: { site: "rome2" },
      e: {},
    };

    test.each([
      ["site:rome", "a c"],
      ["site:rome|milan|rome", "a b c"],
      ["site", "a b c d"],
      ["!site", "e"],
      ["!site:rome", "b d e"],
      ["!beta,!site:rome2", "a e"],
      ["beta,site:rome", "c"],
      ["!beta,site:rome", "a"],
      ["site:rome,!beta:2", "a c"],
      ["site:rome,site:milan", ""],
      ["sit", ""],
      ["site:rom", ""],
    ])("%s is for %s", async (where, expected) => {
      await tag(SITES);
      const names = expected === "" ? [] : expected.split(" ");
      expect((await append("x", { where })).addressed).toBe(names.length);
      expect(await namesIn(1)).toEqual(names);
      const terms = readWhere(where);
      expect(Object.keys(SITES).filter((one) => fits(terms, tagsOf(SITES[one as "a"])))).toEqual(names);
      expect(
        (
          await ground.store.addressed("orders", (await ground.store.heads("orders"))!.epoch, 1, [
            ...Object.keys(SITES),
            "stranger",
          ])
        )?.sort(),
      ).toEqual(names);
      expect(await reads.events(ground.store, "orders", 0, 1)).toMatchObject([{ where, to: null }]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("is for those who fit at the push, whatever becomes of their tags", async () => {
      await tag(SITES);
      await append("x", { where: "site:rome" });
      await tag({ a: { site: "milan" }, b: { site: "rome" }, new: { site: "rome" } });
      expect(await namesIn(1)).toEqual(["a", "c"]);
      expect(await give(1, "b", "done")).toBe("unaddressed");
      expect(await give(1, "a", "done")).toBe("recorded");
      expect(await pendingOf("a")).toBe(0);
      expect(await pendingOf("b")).toBe(0);
      expect(await pendingOf("c")).toBe(1);
      expect((await ground.store.join("orders", "b", T)).settled).toBe(1);
      expect((await ground.store.join("orders", "c", T)).settled).toBe(0);
      const { items } = (await ground.store.history(
        "orders",
        (await ground.store.heads("orders"))!.epoch,
        "b",
        9,
        9,
        T,
      ))!;
      expect(items).toEqual([]);
    });

    test("that fits nobody is complete, also in a channel that is new", async () => {
      expect((await append("x", { where: "site" })).addressed).toBe(0);
      expect(await namesIn(1)).toEqual([]);
      await enrol("a");
      expect(await pendingOf("a")).toBe(0);
      expect(await tallyOf(ground.store, "orders", 1)).toMatchObject({ addressed: 0 });
    });

    test("has its audience told to watchers and in the log by `where` alone, its control entry too", async () => {
      await tag(SITES);
      await append("x", { where: "beta", key: "k", ttl: 5 });
      await withdraw(1, "no");
      await heard();
      const entries = ground.wakes.flatMap((wake) => (wake.kind === "events" ? wake.entries : []));
      expect(entries).toMatchObject([
        { seq: 1, where: "beta", to: null },
        { seq: 2, withdraws: 1, hasWhere: true, to: null },
      ]);
      expect((await reads.events(ground.store, "orders", 1, 9)).map((entry) => isControl(entry) && entry)).toEqual([
        entries[1]! as never,
      ]);
      expect(
        await ground.store.addressed("orders", (await ground.store.heads("orders"))!.epoch, 1, ["a", "b"]),
      ).toEqual(["b"]);
      expect((await rowsOf(ground.store, "orders", 1)).map(({ device, status }) => `${device} ${status}`)).toEqual([
        "b withdrawn",
        "c withdrawn",
      ]);
    });

    test("makes missing only those whom it is for, and completes when the last of them is retired", async () => {
      await tag(SITES);
      await append("x", { where: "beta", deadline: 1 });
      await append("y", { where: "beta" });
      await missAll(ground.store, T + 1_000);
      expect((await log()).filter(([, , status]) => status === "missing")).toEqual([
        [1, "b", "missing"],
        [1, "c", "missing"],
      ]);
      await give(2, "b", "done");
      await ground.store.retire("orders", "a", T);
      expect(await tallyOf(ground.store, "orders", 2)).toMatchObject({ addressed: 2, done: 1 });
      await ground.store.retire("orders", "c", T);
      expect(await tallyOf(ground.store, "orders", 2)).toMatchObject({ addressed: 1, done: 1 });
      expect((await log()).at(-1)).toEqual([2, "c", "pending"]);
      await enrol("c");
      expect(await namesIn(2)).toEqual(["b"]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("that goes unanswered is lost only to those whom it was for", async () => {
      await tag(SITES);
      await append("x", { where: "beta" });
      await give(1, "b", "done");
      await trimAll(ground.store, "orders", { ...EVERYTHING, count: 0 }, T);
      for (const [device, lostSeq] of [
        ["a", 0],
        ["b", 0],
        ["c", 1],
      ] as const)
        expect((await ground.store.join("orders", device, T)).lostSeq).toBe(lostSeq);
    });

    test("is the newest of its key for those whom it is for, and for nobody in particular not at all", async () => {
      await tag(SITES);
      await append("x", { key: "k" });
      await append("y", { key: "k", where: "beta" });
      const { epoch } = (await ground.store.heads("orders"))!;
      const latest = async (device: string | null) =>
        (await ground.store.latestOfKeys("orders", epoch, { device, joined: 0 }, 0, 3, 9, T))!.events.map(
          ({ seq }) => seq,
        );
      expect(await latest("a")).toEqual([]);
      expect(await latest("b")).toEqual([2]);
      expect(await latest(null)).toEqual([]);
    });

    test("many devices and many lines are too many together, and nothing is stored then", async () => {
      const devices = namesOf(500);
      await Promise.all(devices.map((device) => ground.store.join("orders", device, T, tagsOf({ site: "rome" }))));
      const lines = Array.from({ length: WHERE_DEVICES_MAX / devices.length + 1 }, (_, n) =>
        draft(n, { where: "site" }),
      );
      expect(await codeOf(ground.store.append("orders", lines, T))).toBe("refused");
      expect((await ground.store.heads("orders"))!.events.head).toBe(0);
      expect((await ground.store.append("orders", lines.slice(0, 3), T)).addressed).toBe(500);
      for (const event of [1, 2, 3]) expect((await namesIn(event)).length).toBe(500);
    });

    test("is replayed with its idempotency key, as it was", async () => {
      await tag(SITES);
      const push = () => ground.store.append("orders", [draft(1, { where: "beta" })], T, { key: "k", digest: "d" });
      const first = await push();
      await tag({ b: {} });
      expect(await push()).toMatchObject({ ...first, replayed: true });
    });
  });
}
