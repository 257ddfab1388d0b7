/**
 * What needs attention, as every store keeps it: with many random calls, and case by case.
 */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { OVERDUE_MS } from "../../engine/attention.ts";
import type { Status } from "../../engine/model.ts";
import { ageAll } from "./attention-model.ts";
import { missAll, SECOND, T, trimAll, word } from "./calls.ts";
import { compare } from "./compare.ts";
import type { Ground } from "./ground.ts";
import { CHANNELS, DEVICES, type Step } from "./histories.ts";

const DEVICE = fc.constantFrom(...DEVICES);
const on = { channel: fc.constant(CHANNELS[0]) };

const DRAFT = fc
  .record({
    ...{ type: fc.constant(null), data: fc.constant("1"), ttl: fc.constant(null), remind: fc.constant(null) },
    ...{ key: fc.constant(null), attempts: fc.constant(null) },
    to: fc.option(fc.uniqueArray(DEVICE, { minLength: 1, maxLength: 3 }), { freq: 2 }),
    deadline: fc.option(fc.constantFrom(1, 5_000), { freq: 2 }),
    where: fc.constantFrom(null, null, "site", "!site"),
  })
  .map((draft) => (draft.to === null ? draft : { ...draft, where: null }));

/** Mostly what makes and mends trouble: events without a deadline, an hour that passes, receipts for old events, retention. */
const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("append" as const),
      drafts: fc.oneof(
        { weight: 3, arbitrary: fc.array(DRAFT, { minLength: 1, maxLength: 3 }) },
        { weight: 1, arbitrary: DRAFT.map((draft) => [{ ...draft, key: "x" }]) },
      ),
      key: fc.constant(null),
    }),
  },
  {
    weight: 7,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("record" as const),
      words: fc.array(
        fc.record({
          back: fc.integer({ min: 0, max: 8 }),
          device: DEVICE,
          status: fc.constantFrom<Status>("received", "done", "done", "failed", "deferred"),
          ...{ after: fc.constant(null), round: fc.constant(null), retry: fc.constant(true) },
          stranger: fc.constant(false),
        }),
        { minLength: 1, maxLength: 3 },
      ),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("withdraw" as const),
      back: fc.integer({ min: 0, max: 8 }),
      note: fc.constant(null),
    }),
  },
  { weight: 1, arbitrary: fc.record({ ...on, do: fc.constant("retire" as const), device: DEVICE }) },
  { weight: 2, arbitrary: fc.record({ ...on, do: fc.constant("enrol" as const), device: DEVICE }) },
  {
    weight: 2,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("tag" as const),
      device: DEVICE,
      tags: fc.constantFrom([["site", "1"] as const], [["site", null] as const]),
      ...{ isAll: fc.constant(false), enrols: fc.constant(true) },
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("trim" as const),
      count: fc.integer({ min: 0, max: 8 }),
      age: fc.constant(1_000 * OVERDUE_MS),
    }),
  },
  { weight: 5, arbitrary: fc.record({ ...on, do: fc.constantFrom("age" as const, "age" as const, "miss" as const) }) },
  {
    weight: 5,
    arbitrary: fc.record({
      ...on,
      do: fc.constant("wait" as const),
      ms: fc.constantFrom(OVERDUE_MS, SECOND, 5_000 * SECOND),
    }),
  },
);

export const ATTENTION_HISTORY = fc.array(fc.array(STEP, { minLength: 1, maxLength: 3, size: "max" }), {
  ...{ minLength: 1, maxLength: 40, size: "max" as const },
});

export function attentionContract(ground: Ground): void {
  const { histories, open } = ground;
  /** Of each device in trouble, worst first: failed, missing, overdue. */
  const troubled = async (limit = 1_000): Promise<[string, number, number, number][]> =>
    (await ground.store.troubles("orders", limit)).devices.map((one) => [
      one.device,
      one.failed,
      one.missing,
      one.overdue,
    ]);
  /** Of the channel: devices, failed, missing, overdue. */
  const sums = async (): Promise<number[] | null> => {
    const found = (await ground.store.troubledChannels()).find(({ channel }) => channel === "orders");
    return found ? [found.devices, found.failed, found.missing, found.overdue] : null;
  };
  const HOUR = T + OVERDUE_MS;

  test("begins an hour after an event without a deadline was pushed, and says when", async () => {
    expect(await ground.store.recordOverdue(T)).toBeNull();
    await ground.enrol("a");
    await ground.append(1, { deadline: 5_000 });
    await ground.append(2, {}, T + SECOND);
    expect(await ageAll(ground.store, HOUR)).toBeLessThanOrEqual(HOUR + SECOND);
    expect(await sums()).toBeNull();
    expect(await ageAll(ground.store, HOUR + SECOND - 1)).toBe(HOUR + SECOND);
    expect(await sums()).toBeNull();
    await ground.append(3, {}, HOUR);
    expect(await ageAll(ground.store, HOUR + SECOND)).toBe(HOUR + OVERDUE_MS);
    expect(await sums()).toEqual([1, 0, 0, 1]);
    expect(await ageAll(ground.store, HOUR + OVERDUE_MS)).toBeNull();
    expect(await troubled()).toEqual([["a", 0, 0, 2]]);
    await ground.give(3, "a", "working", HOUR + OVERDUE_MS);
    expect(await troubled()).toEqual([["a", 0, 0, 2]]);
    await ground.give(3, "a", "done", HOUR + OVERDUE_MS);
    expect(await troubled()).toEqual([["a", 0, 0, 1]]);
    await ground.give(2, "a", "failed", HOUR + OVERDUE_MS);
    expect(await troubled()).toEqual([["a", 1, 0, 0]]);
  });

  test("counts many devices that are silent for many events, those that answer some of them, and those that return", async () => {
    const names = ground.namesOf(1_300);
    await Promise.all(names.map((name) => ground.store.enrol("orders", name, T)));
    const { epoch } = await ground.append(1);
    const all = (seq: number, some: readonly string[]) => some.map((name) => word(epoch, seq, name, "done"));
    const answer = (seq: number, some: readonly string[], now = T) =>
      ground.store.record("orders", all(seq, some), now);
    for (const seq of [2, 3, 4]) await ground.append(seq);
    // The first 700 answer the third event; three answer all of them.
    await answer(3, names.slice(3, 703));
    for (const seq of [1, 2, 3, 4]) await answer(seq, names.slice(0, 3));
    await ageAll(ground.store, HOUR);
    expect(await sums()).toEqual([1_297, 0, 0, 4 * 1_297 - 700]);
    expect(await troubled(3)).toEqual(names.slice(703, 706).map((name) => [name, 0, 0, 4]));
    expect((await troubled(1_300)).slice(597, 599)).toEqual(names.slice(3, 5).map((name) => [name, 0, 0, 3]));
    // Some return, and answer from the oldest event on, or only the newest.
    await answer(1, names.slice(703, 1_003), HOUR);
    await answer(4, names.slice(1_003), HOUR);
    expect(await sums()).toEqual([1_297, 0, 0, 3 * 1_297]);
    await ground.append(5, {}, HOUR);
    await ageAll(ground.store, HOUR + OVERDUE_MS);
    expect(await sums()).toEqual([1_300, 0, 0, 3 * 1_297 + 1_300]);
    expect((await troubled())[0]![3]).toBe(4);
    expect((await ground.store.troubles("orders", 1)).events).toMatchObject([{ seq: 5, overdue: 1_300 }]);
    // Retention leaves what is kept of it.
    await trimAll(ground.store, "orders", { count: 2, before: 0 }, HOUR);
    expect(await sums()).toEqual([1_300, 0, 0, 1_300 + 1_000]);
    expect(await troubled(1)).toEqual([[names[3]!, 0, 0, 2]]);
    await ground.append(6, {}, HOUR + OVERDUE_MS);
    await ageAll(ground.store, HOUR + 2 * OVERDUE_MS);
    await trimAll(ground.store, "orders", { count: 1, before: 0 }, HOUR + 2 * OVERDUE_MS);
    expect(await sums()).toEqual([1_300, 0, 0, 1_300]);
    await trimAll(ground.store, "orders", { count: 0, before: 0 }, HOUR + 2 * OVERDUE_MS);
    expect(await sums()).toBeNull();
    expect(await troubled()).toEqual([]);
  }, 30_000);

  test("counts devices as they are at the end, if they answer while they are looked at", async () => {
    const names = ground.namesOf(1_300);
    await Promise.all(names.map((name) => ground.store.enrol("orders", name, T)));
    const { epoch } = await ground.append(1);
    const give = (some: readonly string[]) =>
      ground.store.record(
        "orders",
        some.map((name) => word(epoch, 1, name, "done")),
        HOUR,
      );
    await ground.store.recordOverdue(HOUR);
    expect((await sums())!.slice(1)).toEqual([0, 0, 1_300]);
    await give([names[0]!, names[1_299]!]);
    await ground.store.retire("orders", names[1]!, HOUR);
    await ground.store.retire("orders", names[1_298]!, HOUR);
    await ageAll(ground.store, HOUR);
    expect(await sums()).toEqual([1_296, 0, 0, 1_296]);
    expect((await troubled()).map(([name]) => name)).toEqual(names.slice(2, 1_002));
  });

  test("counts named devices, enrolled or not, until they are retired", async () => {
    const to = ["a", "b", ...ground.namesOf(700)];
    await ground.enrol("a");
    await ground.append(1, { to });
    await ground.append(2, { to: ["a", "b"], deadline: 1 });
    await ageAll(ground.store, HOUR);
    await missAll(ground.store, HOUR);
    expect(await sums()).toEqual([702, 0, 2, 702]);
    await ground.enrol("b");
    expect(await troubled(2)).toEqual([
      ["a", 0, 1, 1],
      ["b", 0, 1, 1],
    ]);
    await ground.give(1, "b", "failed", HOUR);
    await ground.store.retire("orders", "b", HOUR);
    expect(await sums()).toEqual([701, 0, 1, 701]);
    // The event still has its final receipt, and a device of that name begins anew.
    await ground.enrol("b");
    await ground.append(3, { to: ["b"] }, HOUR);
    await ground.give(3, "b", "failed", HOUR);
    expect((await troubled()).filter(([name]) => name < "c")).toEqual([
      ["a", 0, 1, 1],
      ["b", 1, 0, 0],
    ]);
    expect((await ground.store.troubles("orders", 3)).events.map(({ seq, failed }) => [seq, failed])).toEqual([
      [1, 0],
      [2, 0],
      [3, 1],
    ]);
  });

  test("nobody owes what was withdrawn: the sums say so at once, the devices when they were looked at", async () => {
    const names = ground.namesOf(1_300);
    await Promise.all(names.map((name) => ground.store.enrol("orders", name, T)));
    for (const seq of [1, 2, 3]) await ground.append(seq, seq === 3 ? { to: names.slice(0, 700) } : {});
    await ageAll(ground.store, HOUR);
    await ground.append(4, {}, HOUR);
    // Its devices are being looked at.
    await ground.store.recordOverdue(HOUR + OVERDUE_MS);
    const at = HOUR + OVERDUE_MS;
    await ground.withdraw(2, null, at);
    expect(await sums()).toEqual([1_300, 0, 0, 2 * 1_300 + 700]);
    expect(await ground.store.recordOverdue(at - OVERDUE_MS)).toBeLessThanOrEqual(at);
    // Words that come late change nothing, or count as failed.
    await ground.give(2, names[1_299]!, "done", at);
    await ground.give(2, names[1_298]!, "failed", at);
    for (const seq of [3, 4]) await ground.withdraw(seq, null, at);
    expect((await sums())!.slice(1)).toEqual([1, 0, 1_300]);
    await ageAll(ground.store, at);
    expect(await sums()).toEqual([1_300, 1, 0, 1_300]);
    expect((await troubled()).slice(0, 2)).toEqual([
      [names[1_298]!, 1, 0, 1],
      [names[0]!, 0, 0, 1],
    ]);
    await ground.withdraw(1, null, at);
    await ageAll(ground.store, at);
    expect(await sums()).toEqual([1, 1, 0, 0]);
    expect(await troubled()).toEqual([[names[1_298]!, 1, 0, 0]]);
  });

  test("forgets a channel that is deleted", async () => {
    await ground.append(1, { to: ["a"], ttl: 1 });
    await ageAll(ground.store, HOUR);
    expect(await sums()).toEqual([1, 0, 0, 1]);
    expect(await ground.store.removeChannel("orders", HOUR)).toBe("removed");
    expect(await sums()).toBeNull();
    expect(await troubled()).toEqual([]);
    await ground.enrol("a");
    await ground.append(1, {}, HOUR);
    await ageAll(ground.store, HOUR);
    expect(await sums()).toBeNull();
    await ageAll(ground.store, HOUR + OVERDUE_MS);
    expect(await sums()).toEqual([1, 0, 0, 1]);
  });

  test("shows when a device was last heard from", async () => {
    await ground.enrol("a", "b");
    await ground.store.seen("orders", new Map([["a", T + SECOND]]));
    await ground.append(1, { to: ["a", "b", "c"] });
    await ageAll(ground.store, HOUR);
    const { devices } = await ground.store.troubles("orders", 10);
    expect(devices.map(({ device, seenAt, since }) => [device, seenAt, since])).toEqual([
      ["a", T + SECOND, T],
      ["b", null, T],
      ["c", null, T],
    ]);
    expect(await ground.store.troubles("others", 10)).toEqual({ devices: [], events: [] });
  });

  test.skipIf(ground.keepsNothing !== undefined)(
    "is known when the store is opened again, also in the middle of an event",
    async () => {
      const names = ground.namesOf(1_300);
      await Promise.all(names.map((name) => ground.store.enrol("orders", name, T)));
      await ground.append(1);
      await ground.append(2, { deadline: 1 });
      await ground.give(2, names[0]!, "failed");
      await ground.store.recordOverdue(HOUR);
      await ground.store.close();
      ground.store = await ground.opened.reopen!();
      await ageAll(ground.store, HOUR);
      await missAll(ground.store, HOUR);
      expect(await sums()).toEqual([1_300, 1, 1_299, 1_300]);
      expect(await troubled(1)).toEqual([[names[0]!, 1, 0, 1]]);
    },
  );

  test("has the hooks that gave up calls or are disabled", async () => {
    const { store } = ground;
    const put = (name: string, now = T) =>
      store.putHook("orders", { name, url: "http://localhost/", secret: null, on: ["receipt"] }, "whsec_x", now);
    const call = {
      id: "d1",
      body: "{}",
      createdAt: T,
      attempts: 1,
      nextAt: T as number | null,
      status: 500,
      error: null,
      tries: [],
    };
    for (const name of ["a", "b", "c"]) await put(name);
    const hooks = async () =>
      [...(await store.troubledHooks())]
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .map((one) => [one.channel, one.name, one.givenUp, one.disabled]);
    await store.progress("orders", "a", 1, { keep: [call] });
    expect(await hooks()).toEqual([]);
    await store.progress("orders", "a", 1, {
      keep: [call, { ...call, id: "d2", nextAt: null }, { ...call, id: "d3", nextAt: null }],
    });
    await store.progress("orders", "b", 1, { disabled: "it answered 410" });
    expect(await hooks()).toEqual([
      ["orders", "a", 2, null],
      ["orders", "b", 0, "it answered 410"],
    ]);
    await store.progress("orders", "a", null, { keep: [{ ...call, id: "d2" }] });
    await put("b", T + 1);
    expect(await hooks()).toEqual([["orders", "a", 1, null]]);
    await store.progress("orders", "a", 1, { drop: ["d3"] });
    expect(await hooks()).toEqual([]);
    await store.progress("orders", "c", 1, { keep: [{ ...call, nextAt: null }] });
    expect(await hooks()).toEqual([["orders", "c", 1, null]]);
    await store.dropHook("orders", "c", T);
    expect(await hooks()).toEqual([]);
  });

  test("is right after each of many calls that make and mend trouble", async () => {
    await fc.assert(
      fc.asyncProperty(ATTENTION_HISTORY, async (history) => {
        const fresh = await open();
        try {
          await compare(fresh.store, history);
        } finally {
          await fresh.store.close();
          await fresh.end?.();
        }
      }),
      { numRuns: histories },
    );
  }, 60_000);
}
