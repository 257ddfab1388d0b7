/**
 * The store's contract: wakes, leases, and what is there when a store is opened again.
 */
import { describe, expect, test } from "bun:test";
import { until } from "../support/harness.ts";
import {
  codeOf,
  draft,
  EVERYTHING,
  expectTalliesToEqualRows,
  followAll,
  hear,
  missAll,
  noteOf,
  reads,
  rowsOf,
  sorted,
  T,
  tallyOf,
  type Told,
  trimAll,
  word,
} from "./calls.ts";
import { FOLLOWED, type Ground } from "./ground.ts";

export function wakeContract(ground: Ground): void {
  const { heard, append, enrol, give } = ground;

  describe("a notification", () => {
    const told = (kind: Told["kind"], channel = "orders"): number[] =>
      ground.wakes
        .filter((wake) => wake.kind === kind && wake.channel === channel)
        .flatMap(({ entries }) => entries.map(({ seq }) => seq));

    test("has every entry once, in log order, as it can be read", async () => {
      await enrol("till");
      await Promise.all([append(1), ground.store.append("others", [draft(1)], T), append(2, { ttl: 5, to: ["till"] })]);
      const { epoch } = await ground.store.append("orders", [draft(3, { type: "t" }), draft(4)], T);
      await Promise.all([
        ground.store.record("orders", [word(epoch, 2, "till", "received"), word(epoch, 1, "till", "done")], T),
        ground.store.record("orders", [word(epoch, 2, "till", "done", { detail: "1", deviceAt: T })], T),
      ]);
      await heard();
      expect(told("events")).toEqual([1, 2, 3, 4]);
      expect(told("events", "others")).toEqual([1]);
      expect(told("receipts")).toEqual([1, 2, 3, 4, 5]);
      const events = ground.wakes.flatMap((wake) =>
        wake.kind === "events" && wake.channel === "orders" ? wake.entries : [],
      );
      expect(events).toEqual(await reads.events(ground.store, "orders", 0, 10));
      const receipts = ground.wakes.flatMap((wake) => (wake.kind === "receipts" ? wake.entries : []));
      expect(receipts).toEqual(await reads.receipts(ground.store, "orders", 0, 10));
    });

    test("is not sent if nothing was stored", async () => {
      await enrol("till");
      const { epoch } = await append(1);
      await give(1, "till", "done");
      await heard();
      ground.wakes.length = 0;
      await give(1, "till", "done");
      await ground.store.record("orders", [word(epoch, 1, "stranger", "done"), word(epoch, 5, "till", "done")], T);
      await enrol("kiosk");
      await ground.store.retire("orders", "kiosk", T);
      await ground.store.join("orders", "till", T);
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      // Wakes come in order: what follows is the first to be told.
      await append("something");
      await until(() => ground.wakes.length > 0, "a notification");
      expect(ground.wakes.map(({ kind, entries }) => [kind, ...entries.map(({ seq }) => seq)])).toEqual([
        ["events", 2],
      ]);
    });

    test("is sent when its entries can be read", async () => {
      const readings: Promise<boolean>[] = [];
      hear(ground.store, ({ kind, channel, entries }) => {
        const { seq } = entries.at(-1)!;
        const read =
          kind === "events"
            ? reads.events(ground.store, channel, seq - 1, 1)
            : reads.receipts(ground.store, channel, seq - 1, 1);
        readings.push(Promise.resolve(read).then(([entry]) => entry?.seq === seq));
      });
      await enrol("till");
      await Promise.all([append(1), append(2)]);
      await give(1, "till", "done");
      await until(() => readings.length === 3, "three wakes");
      expect(await Promise.all(readings)).not.toContain(false);
    });
  });
}

export function lifeContract(ground: Ground): void {
  const { append, enrol, give, log, namesOf, devicesOf, keepsNothing } = ground;

  describe("its life cycle", () => {
    test("reports at any time what an operator can rely on", async () => {
      const ready = await ground.store.ready();
      expect(ready.store.length).toBeGreaterThan(0);
      expect(["fsync", "second", "memory"]).toContain(ready.durability);
    });

    test("grants a lease, and renews it for its holder", async () => {
      const number = await ground.store.lease("work", "me", 60_000);
      expect(number).toBeGreaterThan(0);
      expect(await ground.store.lease("work", "me", 60_000)).toBe(number);
    });

    test("closes once pending changes are stored; after that every call fails with away", async () => {
      const last = append("last");
      await Promise.all([ground.store.close(), ground.store.close()]);
      expect((await last).first).toBe(1);
      const calls: Record<string, () => Promise<unknown>> = {
        append: () => append("too late"),
        record: () => ground.store.record("orders", [word("e", 1, "till", "done")], T),
        open: () => ground.store.open("new"),
        join: () => ground.store.join("orders", "till", T),
        enrol: () => ground.store.enrol("orders", "till", T),
        retire: () => ground.store.retire("orders", "till", T),
        seen: () => ground.store.seen("orders", new Map([["till", T]])),
        heads: () => ground.store.heads("unread"),
        events: () => reads.events(ground.store, "orders", 0, 10),
        receipts: () => reads.receipts(ground.store, "orders", 0, 10),
        settled: () => reads.settled(ground.store, "orders", "till", 0, 10),
        tallies: () => reads.tallies(ground.store, "orders", 1, 1),
        rows: () => reads.rows(ground.store, "orders", 1, null, "", 10),
        devices: () => ground.store.devices("orders", "", 10, T),
        channels: () => ground.store.channels("", 10),
        silent: () => reads.silent(ground.store, "orders", 1, ["till"]),
        reminders: () => ground.store.reminders("orders", T),
        miss: () => ground.store.recordMissing(T),
        trim: () => ground.store.trim("orders", EVERYTHING, T),
        putHook: () =>
          ground.store.putHook("orders", { name: "a", url: "https://a", secret: null, on: ["receipt"] }, "s", T),
        dropHook: () => ground.store.dropHook("orders", "a", T),
        hooks: () => ground.store.hooks("orders"),
        "hooks of all": () => ground.store.hooks(null),
        deliveries: () => ground.store.deliveries("orders", "a"),
        progress: () => ground.store.progress("orders", "a", null, {}),
        follow: () => ground.store.follow("events", "elsewhere"),
        lease: () => ground.store.lease("work", "me", 1_000),
        ready: () => ground.store.ready(),
      };
      const codes: Record<string, string> = {};
      for (const [method, call] of Object.entries(calls))
        try {
          codes[method] = await codeOf(call());
        } catch {
          codes[method] = "thrown, not rejected";
        }
      expect(codes).toEqual(Object.fromEntries(Object.keys(calls).map((method) => [method, "away"])));
    });

    const kept = keepsNothing === undefined ? test : test.skip;
    const why = keepsNothing === undefined ? "" : ` (skipped: ${keepsNothing})`;
    /** Opens the store again. */
    const reopen = async (): Promise<void> => {
      await ground.store.close();
      ground.store = await ground.opened.reopen!();
      ground.wakes.length = 0;
      hear(ground.store, (told) => ground.wakes.push(told));
      await followAll(ground.store, FOLLOWED);
    };

    kept(`goes on where it was when it is opened again${why}`, async () => {
      await enrol("till", "kiosk", "gone");
      await ground.store.append("orders", [draft(1), draft(2), draft(3, { to: ["till", "truck"], ttl: 60 })], T, {
        key: "k",
        digest: "d",
      });
      await append(4);
      await give(1, "till", "done");
      await give(2, "till", "working");
      await give(3, "truck", "failed");
      await ground.store.retire("orders", "gone", T);
      await ground.store.seen("orders", new Map([["kiosk", T + 1]]));
      await trimAll(ground.store, "orders", { count: 3, before: 0 }, T);
      const look = async () => ({
        heads: await ground.store.heads("orders"),
        events: (await reads.events(ground.store, "orders", 0, 100)).map(sorted),
        receipts: await reads.receipts(ground.store, "orders", 0, 100),
        tallies: await reads.tallies(ground.store, "orders", 1, 100),
        rows: await Promise.all([2, 3, 4].map((event) => rowsOf(ground.store, "orders", event))),
        devices: await devicesOf("orders"),
        channels: await ground.store.channels("", 10),
        settled: await reads.settled(ground.store, "orders", "till", 1, 100),
      });
      const before = await look();
      await reopen();
      expect(await look()).toEqual(before);
      expect(ground.wakes).toEqual([]);

      const again = await ground.store.append("orders", [draft(1)], T, { key: "k", digest: "d" });
      expect(again).toMatchObject({ first: 1, count: 3, replayed: true });
      const other = ground.store.append("orders", [draft(1)], T, { key: "k", digest: "other" });
      expect(await codeOf(other)).toBe("refused");
      expect(await ground.store.join("orders", "kiosk", T)).toMatchObject({ enrolled: true, lostSeq: 1 });
      expect(await append(5)).toMatchObject({ epoch: before.heads!.epoch, first: 5, addressed: 2 });
      expect(await give(2, "till", "done")).toBe("recorded");
      expect(await give(2, "gone", "done")).toBe("unaddressed");
      await expectTalliesToEqualRows(ground.store, "orders");
    });

    kept(
      `has its deadlines and reminders when it is opened again, also one that was half dealt with${why}`,
      async () => {
        const names = namesOf(3_000);
        await Promise.all(names.map((device) => ground.store.enrol("orders", device, T)));
        await append("a", { deadline: 10, remind: 1 });
        await append("b", { deadline: 20, remind: 2, to: ["till"] });
        const reminders = await ground.store.reminders("orders", T);
        await reopen();
        expect(await ground.store.reminders("orders", T)).toEqual(reminders);
        expect(await ground.store.recordMissing(T)).toBe(T + 10_000);
        expect(await ground.store.recordMissing(T + 10_000)).toBeLessThanOrEqual(T + 10_000);
        await reopen();
        expect(await missAll(ground.store, T + 10_000)).toBe(T + 20_000);
        expect((await log()).flatMap(([, device]) => device || []).sort()).toEqual(names);
        expect((await tallyOf(ground.store, "orders", 1))!.missing).toBe(3_000);
        await reopen();
        expect(await missAll(ground.store, T + 60_000)).toBeNull();
        expect((await log(3_000)).filter(([, device]) => device !== "")).toEqual([[2, "till", "missing"]]);
        expect(await give(1, names[0]!, "done", T + 60_000)).toBe("recorded");
        expect(
          (await reads.receipts(ground.store, "orders", 3_001, 10)).find(({ status }) => status === "done")!.late,
        ).toBe(true);
      },
      180_000,
    );

    kept(`has its hooks when it is opened again, their fences, and what completed${why}`, async () => {
      await enrol("till");
      await append("a");
      await give(1, "till", "done");
      const { hook } = await ground.store.putHook(
        "orders",
        { name: "a", url: "https://example.com", secret: "secret", on: ["complete", "missing"] },
        "fresh",
        T,
      );
      const tries = [{ at: T, status: null, error: "no", ms: 3, body: null }];
      const delivery = {
        id: "d1",
        body: "{}",
        createdAt: T,
        attempts: 1,
        nextAt: null,
        status: 500,
        error: "no",
        tries,
      };
      const lastDelivered = { at: T, status: 200, ms: 1 };
      await ground.store.progress("orders", "a", 5, {
        cursor: { ...hook.cursor, seq: 2 },
        disabled: "no",
        lastDelivered,
        keep: [delivery],
      });
      const before = await ground.store.hooks(null);
      await reopen();
      expect(await ground.store.hooks(null)).toEqual(before);
      expect(await ground.store.hooks("orders")).toEqual([{ ...hook, disabled: "no", lastDelivered }]);
      expect(await ground.store.deliveries("orders", "a")).toEqual([delivery]);
      expect(await ground.store.progress("orders", "a", 4, { drop: ["d1"] })).toBe(false);
      expect(await ground.store.progress("orders", "a", 5, { drop: ["d1"] })).toBe(true);
      expect(noteOf((await reads.receipts(ground.store, "orders", 1, 10))[0]!)).toEqual({ done: 1, failed: 0 });
    });
  });
}
