/**
 * The store's contract: withdrawn and superseded events, keys, and rounds, where there are very many of them. What they mean for one device is
 * compared with the naive model.
 */
import { describe, expect, test } from "bun:test";
import { freshTally, isControl } from "../../engine/model.ts";
import type { DueRound, RoundPosition } from "../../engine/store.ts";
import {
  draft,
  expectTalliesToEqualRows,
  latestOf,
  missAll,
  noteOf,
  reads,
  rowsOf,
  SECOND,
  T,
  tallyOf,
  trimAll,
  word,
} from "./calls.ts";
import type { Ground } from "./ground.ts";

export function withdrawalContract(ground: Ground): void {
  const { heard, append, enrol, give, tell, withdraw, namesOf } = ground;
  const kinds = async (after: number): Promise<string[]> =>
    (await reads.receipts(ground.store, "orders", after, 10)).map(({ note, status }) => note?.kind ?? status);
  const MANY = 1_200;
  const enrolMany = async (): Promise<string[]> => {
    const names = namesOf(MANY);
    await Promise.all(names.map((device) => ground.store.enrol("orders", device, T)));
    return names;
  };

  describe("a withdrawal", () => {
    test("of an event of 1,200 devices writes one tally, two notes and one entry", async () => {
      const names = await enrolMany();
      await append("a");
      await give(1, names[0]!, "done");
      await give(1, names[1]!, "working");
      expect(await withdraw(1, "no")).toBe("withdrawn");
      expect(await tallyOf(ground.store, "orders", 1)).toEqual({
        ...freshTally(MANY),
        ...{ done: 1, withdrawn: MANY - 1, isOver: true },
      });
      expect(await kinds(2)).toEqual(["withdrawn", "complete"]);
      expect((await ground.store.heads("orders"))!).toMatchObject({
        events: { head: 2, floor: 0, controls: 1 },
        receipts: { head: 4 },
      });
      await expectTalliesToEqualRows(ground.store, "orders");
      await heard();
      const told = ground.wakes.flatMap((wake) => (wake.kind === "events" ? wake.entries : []));
      expect(told.at(-1)).toEqual({
        ...{ seq: 2, at: T, reason: "withdrawn", by: null, note: "no" },
        ...{ withdraws: 1, to: null, expires: null, hasWhere: false, isAnswered: true },
      });
    });

    test("of an event of 1,200 devices past its deadline comes after all of them are missing", async () => {
      const names = await enrolMany();
      await append("a", { deadline: 1 });
      await give(1, names[7]!, "done");
      expect(await withdraw(1, null, T + SECOND)).toBe("withdrawn");
      expect(await tallyOf(ground.store, "orders", 1)).toEqual({
        ...freshTally(MANY),
        ...{ done: 1, missing: MANY - 1, isOver: true },
      });
      expect(await kinds(MANY)).toEqual(["settled", "withdrawn", "complete"]);
      expect(await missAll(ground.store, T + SECOND)).toBeNull();
      expect(await tell(1, names[8]!, "done", T + SECOND)).toMatchObject({ result: "recorded", late: "missing" });
    });

    test("by a newer event with its key waits for 1,200 devices that are missing, too", async () => {
      await enrolMany();
      await append("a", { deadline: 1, key: "k" });
      expect(await append("b", { key: "k" }, T + SECOND)).toMatchObject({ first: 2, count: 1 });
      expect(await tallyOf(ground.store, "orders", 1)).toEqual({ ...freshTally(MANY), missing: MANY, isOver: true });
      expect((await reads.events(ground.store, "orders", 1, 10)).map((entry) => isControl(entry))).toEqual([
        false,
        true,
      ]);
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("and the retirement of a device take turns, and the device has no seat behind them", async () => {
      await enrol("a", "b");
      for (let seq = 1; seq <= 1_200; seq += 100)
        await ground.store.append(
          "orders",
          Array.from({ length: 100 }, () => draft(1)),
          T,
        );
      const { epoch } = (await ground.store.heads("orders"))!;
      await Promise.all([
        ground.store.retire("orders", "a", T),
        ...[1, 600, 1_200].map((seq) => ground.store.withdraw("orders", { epoch, seq }, null, T)),
      ]);
      for (const seq of [1, 600, 1_200])
        expect(await tallyOf(ground.store, "orders", seq)).toEqual({ ...freshTally(1), withdrawn: 1, isOver: true });
      const notes = await reads.receipts(ground.store, "orders", 0, 100);
      expect(notes.map(({ event }) => event).sort((a, b) => a - b)).toEqual([1, 1, 600, 600, 1_200, 1_200]);
      for (const { note } of notes) expect(note!.tally).toMatchObject({ addressed: 1, withdrawn: 1 });
    });

    test("of a nonexistent event, or one of another epoch, is unknown; of a control entry it says so", async () => {
      await enrol("a");
      const { epoch } = await append("a");
      const of = (seq: number, life = epoch, channel = "orders") =>
        ground.store.withdraw(channel, { epoch: life, seq }, null, T);
      expect(await of(2)).toBe("unknown");
      expect(await of(0)).toBe("unknown");
      expect(await of(1, "another0")).toBe("unknown");
      expect(await of(1, epoch, "others")).toBe("unknown");
      expect(await of(1)).toBe("withdrawn");
      expect(await of(1)).toBe("complete");
      expect(await of(2)).toBe("control");
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      expect(await of(1)).toBe("unknown");
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 2, floor: 1, controls: 1 });
      // What the entry has of its event outlives that, except for names.
      expect(await reads.events(ground.store, "orders", 0, 10)).toMatchObject([{ withdraws: 1, to: null }]);
      await trimAll(ground.store, "orders", { count: 0, before: T + 1 }, T);
      expect((await ground.store.heads("orders"))!.events).toEqual({ head: 2, floor: 2, controls: 0 });
    });

    test("keeps as many events as retention allows, however many control entries lie between them", async () => {
      await enrol("a");
      for (let n = 0; n < 1_000; n++) await append(n, { key: "k" });
      await trimAll(ground.store, "orders", { count: 10, before: 0 }, T);
      const entries = await reads.events(ground.store, "orders", 0, 1_000);
      expect(entries.filter((entry) => !isControl(entry)).length).toBe(10);
      // The oldest kept entry tells of an event that is gone.
      expect((await ground.store.heads("orders"))!.events).toMatchObject({ controls: 11 });
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    test("of an event that named devices tells their names while it is kept", async () => {
      await append("a", { to: ["x", "y"], ttl: 60 });
      await withdraw(1);
      await append("b");
      const [, control] = await reads.events(ground.store, "orders", 0, 10);
      expect([[...control!.to!].sort(), control!.expires]).toEqual([["x", "y"], T + 60 * SECOND]);
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      const [left] = await reads.events(ground.store, "orders", 0, 10);
      // The names may be gone with the event.
      expect(left).toMatchObject({ withdraws: 1, to: expect.any(Array), expires: T + 60 * SECOND });
    });
  });

  describe("the newest event of each key", () => {
    test("is found among very many, by number, in pages", async () => {
      await enrol("a");
      for (let n = 0; n < 2_500; n++) await append(n, { key: `k${n % 700}` });
      const found = await latestOf(ground.store, "orders", { device: "a", joined: 0 });
      expect(found.map(({ key }) => key)).toEqual(Array.from({ length: 700 }, (_, n) => `k${(2_500 - 700 + n) % 700}`));
    }, 60_000);

    test("is that of the time before a position, whatever came behind it", async () => {
      await enrol("a");
      for (const key of ["x", "y"]) await append(key, { key });
      await give(1, "a", "done");
      const { epoch, events } = (await ground.store.heads("orders"))!;
      await append("newer", { key: "x" });
      const reader = { device: "a", joined: 0 };
      const page = await ground.store.latestOfKeys("orders", epoch, reader, 0, events.head, 10, T);
      expect(page).toMatchObject({ upTo: events.head, events: [{ seq: 1 }, { seq: 2 }] });
    });
  });

  describe("rounds", () => {
    /** All that have begun after a position, in pages. */
    const all = async (from: RoundPosition, now: number, limit: number): Promise<DueRound[]> => {
      const found: DueRound[] = [];
      for (let after = from; ;) {
        const { rounds, last, next } = await ground.store.roundsDue(after, now, limit);
        found.push(...rounds);
        after = last;
        if (next === null || next > now) return found;
      }
    };

    test("of 1,200 devices are read once each, in the order in which they begin, in pages", async () => {
      const names = await enrolMany();
      const { epoch } = await append("a");
      for (let n = 0; n < MANY; n += 400)
        await ground.store.record(
          "orders",
          names.slice(n, n + 400).map((device, m) => word(epoch, 1, device, "deferred", { after: 1 + ((n + m) % 5) })),
          T,
        );
      const from = { at: T, place: "" };
      expect((await ground.store.roundsDue(from, T, 100)).next).toBeLessThanOrEqual(T + SECOND);
      expect(await all(from, T + SECOND - 1, 100)).toEqual([]);
      const found = await all(from, T + 3 * SECOND, 100);
      const timeOf = (device: string): number => 1 + (names.indexOf(device) % 5);
      expect(found.map(({ device }) => device).sort()).toEqual(names.filter((device) => timeOf(device) <= 3));
      expect(found.map(({ device }) => timeOf(device))).toEqual(found.map(({ device }) => timeOf(device)).sort());
      expect(found.every(({ channel, event, round }) => channel === "orders" && event === 1 && round === 2)).toBe(true);
      const more = await all({ at: T + 3 * SECOND, place: "\uffff" }, T + 9 * SECOND, 7);
      expect(more.map(({ device }) => timeOf(device)).every((time) => time > 3)).toBe(true);
      expect(more.length).toBe((MANY * 2) / 5);
      // They are as many as before: nothing was written when they began.
      expect(await tallyOf(ground.store, "orders", 1)).toEqual({ ...freshTally(MANY), deferred: MANY });
      expect(
        (await rowsOf(ground.store, "orders", 1, "deferred", T + 3 * SECOND)).filter(({ round }) => round === 2).length,
      ).toBe((MANY * 3) / 5);
    });

    test("of one device are read by number, in pages, and end with its words, its event and its seat", async () => {
      await enrol("a");
      const { epoch } = await ground.store.append(
        "orders",
        Array.from({ length: 6 }, (_, n) => draft(n)),
        T,
      );
      await ground.store.record(
        "orders",
        [1, 2, 3, 4, 5, 6].map((seq) => word(epoch, seq, "a", "deferred", { after: seq === 6 ? 60 : 1 })),
        T,
      );
      const now = T + SECOND;
      const begun = async (after: number, upTo: number, limit: number): Promise<number[]> =>
        (await reads.rounds(ground.store, "orders", "a", after, upTo, limit, now)).map(({ event }) => event);
      expect(await begun(0, 6, 10)).toEqual([1, 2, 3, 4, 5]);
      expect(await begun(1, 4, 2)).toEqual([2, 3]);
      await give(2, "a", "received", now);
      await withdraw(3, null, now);
      expect(await begun(0, 6, 10)).toEqual([1, 4, 5]);
      await trimAll(ground.store, "orders", { count: 3, before: 0 }, now);
      expect(await begun(0, 6, 10)).toEqual([4, 5]);
      expect((await ground.store.join("orders", "a", now)).hasDeferred).toBe(true);
      await ground.store.retire("orders", "a", now);
      await ground.store.enrol("orders", "a", now);
      expect(await begun(0, 6, 10)).toEqual([]);
      expect((await ground.store.join("orders", "a", now)).hasDeferred).toBe(false);
    });
  });

  test("notes keep their tally and their withdrawal", async () => {
    await enrol("a", "b");
    await append("a", { key: "k", deadline: 60 });
    await give(1, "a", "done");
    await append("b", { key: "k", to: ["b"] });
    await withdraw(2, 'a "note"\n');
    const notes = await reads.receipts(ground.store, "orders", 1, 10);
    expect(notes.map(noteOf)).toEqual([
      "withdrawn",
      { done: 1, failed: 0 },
      "settled",
      "withdrawn",
      { done: 0, failed: 0 },
    ]);
    expect(notes[0]!.note).toMatchObject({
      withdrawal: { seq: 3, at: T, reason: "superseded", by: 2, note: null },
      tally: { addressed: 2, done: 1, withdrawn: 1, isOver: true },
    });
    expect(notes[3]!.note).toMatchObject({
      withdrawal: { seq: 4, at: T, reason: "withdrawn", by: null, note: 'a "note"\n' },
    });
  });
}
