/**
 * The store's contract: pushes for later.
 */
import { describe, expect, test } from "bun:test";
import { SCHEDULE_KEPT_MS, SCHEDULES_MAX, type Schedule, type ScheduleDraft } from "../../engine/store.ts";
import { codeOf, draft, EVERYTHING, reads, SECOND, T, trimAll } from "./calls.ts";
import type { Ground } from "./ground.ts";

let made = 0;
const planned = (more: Partial<ScheduleDraft> = {}): ScheduleDraft => ({
  id: `s-${String(made++).padStart(17, "0")}`,
  options: { type: "t" },
  data: "1",
  every: null,
  tz: null,
  ...more,
});

export function schedulesContract(ground: Ground): void {
  const { append, enrol, heard } = ground;
  const keep = (next: number, more: Partial<ScheduleDraft> = {}, channel = "orders") =>
    ground.store.schedule(channel, planned(more), next, T).then(({ schedule }) => schedule);

  /** What is due, as a single instance is given it: it asks again until there is nothing. */
  const dueAt = async (now: number): Promise<readonly { channel: string; schedule: Schedule }[]> => {
    for (let asked = 0; asked < 50; asked++) {
      const { due, next } = await ground.store.dueSchedules(now, 100);
      if (due.length > 0) return due;
      if (next === null || next > now) return [];
    }
    throw new Error("dueSchedules always says that there is more");
  };
  /** Another instance looks once the first may have died. */
  const LATER = 600;

  describe("a scheduled push", () => {
    test("is kept as it was given, and read by its id", async () => {
      const data = '{"n":12345678901234567890,"n":1e400}';
      const once = await keep(T + SECOND, { data, options: { to: "a,b", deadline: "60" } });
      expect(once).toMatchObject({ data, options: { to: "a,b", deadline: "60" }, every: null, tz: null });
      expect(once).toMatchObject({ next: T + SECOND, last: null, error: null });
      const often = await keep(T + 5, { every: "0 9 * * *", tz: "Europe/Rome" });
      expect(await ground.store.scheduled("orders", once.id)).toEqual(once);
      expect(await ground.store.scheduled("orders", often.id)).toEqual(often);
      expect(await ground.store.scheduled("others", once.id)).toBeNull();
      expect(await ground.store.scheduled("orders", "s-none")).toBeNull();
    });

    test("makes its channel, which stays in use as long as it is there", async () => {
      const { id } = await keep(T + 1);
      const { items } = await ground.store.channels("", 10);
      expect(items).toMatchObject([{ channel: "orders", isUnused: false, events: { head: 0 } }]);
      expect(await ground.store.unschedule("orders", id, T)).toBe(true);
      expect((await ground.store.channels("", 10)).items).toMatchObject([{ isUnused: true }]);
    });

    test("is listed with the others by id, in pages", async () => {
      const ids: string[] = [];
      for (let n = 0; n < 5; n++) ids.push((await keep(T + SECOND * (9 - n))).id);
      const first = await ground.store.schedules("orders", "", 2);
      expect(first.items.map(({ id }) => id)).toEqual(ids.slice(0, 2));
      const second = await ground.store.schedules("orders", first.next!, 3);
      expect(second.items.map(({ id }) => id)).toEqual(ids.slice(2));
      expect(second.next).toBeNull();
      expect(await ground.store.schedules("nowhere", "", 3)).toEqual({ items: [], next: null });
    });

    test("is due at its time and not before; the earliest time of all channels is known", async () => {
      const late = await keep(T + 9 * SECOND, {}, "others");
      const early = await keep(T + 5 * SECOND);
      expect(await ground.store.dueSchedules(T, 100)).toEqual({ due: [], next: T + 5 * SECOND });
      expect(await dueAt(T + 5 * SECOND - 1)).toEqual([]);
      expect(await dueAt(T + 5 * SECOND)).toEqual([{ channel: "orders", schedule: early }]);
      expect(await dueAt(T + 9 * SECOND)).toContainEqual({ channel: "others", schedule: late });
    });

    test("that is due is given again until its time is used, also to a store that was opened again", async () => {
      const { id } = await keep(T);
      expect(await dueAt(T)).toMatchObject([{ schedule: { id } }]);
      expect(await dueAt(T + LATER)).toMatchObject([{ schedule: { id } }]);
      if (!ground.opened.reopen) return;
      ground.store = await ground.opened.reopen();
      expect(await dueAt(T + 2 * LATER)).toMatchObject([{ schedule: { id, next: T, options: { type: "t" } } }]);
    });

    test("becomes an event that says so, addressed to the devices of that moment; its time is used once", async () => {
      const { id } = await keep(T);
      await enrol("till", "kiosk");
      const time = { id, due: T, next: null };
      const pushed = await ground.store.append("orders", [draft(1)], T + 1, undefined, time);
      expect(pushed).toMatchObject({ first: 1, addressed: 2, replayed: false });
      const again = ground.store.append("orders", [draft(1)], T + 2, undefined, time);
      expect(await codeOf(again)).toBe("conflict");
      expect(await reads.events(ground.store, "orders", 0, 10)).toMatchObject([{ seq: 1, scheduled: id, at: T + 1 }]);
      await heard();
      expect(ground.wakes).toMatchObject([{ kind: "events", entries: [{ seq: 1, scheduled: id }] }]);
      expect(await ground.store.scheduled("orders", id)).toMatchObject({
        next: null,
        last: { epoch: pushed.epoch, seq: 1 },
        error: null,
      });
      expect(await dueAt(T + LATER)).toEqual([]);
    });

    test("that two use in one turn becomes one event", async () => {
      const { id } = await keep(T, { every: "* * * * *", tz: "UTC" });
      const time = { id, due: T, next: T + 60 * SECOND };
      const codes = await Promise.all(
        [1, 2, 3].map((n) => codeOf(ground.store.append("orders", [draft(n)], T, undefined, time))),
      );
      expect(codes.filter((code) => code === "conflict").length).toBe(2);
      expect((await ground.store.heads("orders"))!.events.head).toBe(1);
    });

    test("that is due again is given again at its next time only", async () => {
      const { id } = await keep(T, { every: "* * * * *", tz: "UTC" });
      await ground.store.append("orders", [draft(1)], T, undefined, { id, due: T, next: T + 60 * SECOND });
      expect(await dueAt(T + 60 * SECOND - 1)).toEqual([]);
      expect(await dueAt(T + 60 * SECOND)).toMatchObject([{ schedule: { id, next: T + 60 * SECOND } }]);
      const old = ground.store.append("orders", [draft(2)], T, undefined, { id, due: T, next: T + 60 * SECOND });
      expect(await codeOf(old)).toBe("conflict");
    });

    test("whose event can't be pushed says why, and its time is used", async () => {
      const { id } = await keep(T, { every: "* * * * *", tz: "UTC" });
      const time = { id, due: T, next: T + 60 * SECOND };
      expect(await ground.store.skipSchedule("orders", time, "need: too many", T)).toBe(true);
      expect(await ground.store.skipSchedule("orders", time, "need: too many", T)).toBe(false);
      expect(await ground.store.scheduled("orders", id)).toMatchObject({
        next: T + 60 * SECOND,
        last: null,
        error: "need: too many",
      });
      await ground.store.append("orders", [draft(1)], T, undefined, { id, due: T + 60 * SECOND, next: null });
      expect(await ground.store.scheduled("orders", id)).toMatchObject({ next: null, last: { seq: 1 }, error: null });
    });

    test("that was cancelled is neither due nor pushed any more", async () => {
      const { id } = await keep(T);
      expect(await ground.store.unschedule("orders", id, T)).toBe(true);
      expect(await ground.store.unschedule("orders", id, T)).toBe(false);
      expect(await ground.store.unschedule("nowhere", id, T)).toBe(false);
      expect(await dueAt(T + LATER)).toEqual([]);
      const late = ground.store.append("orders", [draft(1)], T, undefined, { id, due: T, next: null });
      expect(await codeOf(late)).toBe("conflict");
      expect(await ground.store.skipSchedule("orders", { id, due: T, next: null }, "x", T)).toBe(false);
      expect((await ground.store.heads("orders"))?.events.head).toBe(0);
    });

    test("that is done is kept for a while, and deleted then", async () => {
      const { id } = await keep(T);
      await ground.store.append("orders", [draft(1)], T, undefined, { id, due: T, next: null });
      const gone = async (now: number): Promise<boolean> => {
        await trimAll(ground.store, null, EVERYTHING, now);
        expect(await dueAt(now)).toEqual([]);
        return (await ground.store.scheduled("orders", id)) === null;
      };
      expect(await gone(T + SCHEDULE_KEPT_MS - SECOND)).toBe(false);
      expect(await gone(T + SCHEDULE_KEPT_MS + 2 * SECOND)).toBe(true);
      expect((await ground.store.schedules("orders", "", 10)).items).toEqual([]);
    });

    test("beyond the most that a channel can have is refused; one that is done does not count", async () => {
      const all = await Promise.all(Array.from({ length: SCHEDULES_MAX }, () => keep(T + SECOND)));
      expect(await codeOf(keep(T))).toBe("refused");
      expect(await codeOf(keep(T, {}, "others"))).toBe("accepted");
      const time = { id: all[7]!.id, due: T + SECOND, next: null };
      await ground.store.append("orders", [draft(1)], T, undefined, time);
      expect(await codeOf(keep(T))).toBe("accepted");
      expect(await codeOf(keep(T))).toBe("refused");
      await ground.store.unschedule("orders", all[8]!.id, T);
      expect(await codeOf(keep(T))).toBe("accepted");
    });

    test("with a known key is the first one; another request with the key is refused, a cancelled one a conflict", async () => {
      const key = { key: "k", digest: "one:body?later" };
      const first = await ground.store.schedule("orders", planned(), T + SECOND, T, key);
      expect(first.replayed).toBe(false);
      const again = await ground.store.schedule("orders", planned(), T + 2 * SECOND, T + 5, key);
      expect(again).toEqual({ schedule: first.schedule, replayed: true });
      const other = { key: "k", digest: "one:body?other" };
      expect(await codeOf(ground.store.schedule("orders", planned(), T, T, other))).toBe("refused");
      expect(await codeOf(ground.store.append("orders", [draft(1)], T, { key: "k", digest: "one:body?" }))).toBe(
        "refused",
      );
      await ground.store.append("orders", [draft(1)], T, { key: "p", digest: "one:body?" });
      expect(await codeOf(ground.store.schedule("orders", planned(), T, T, { ...other, key: "p" }))).toBe("refused");
      await ground.store.unschedule("orders", first.schedule.id, T);
      expect(await codeOf(ground.store.schedule("orders", planned(), T, T, key))).toBe("conflict");
      expect((await ground.store.schedules("orders", "", 10)).items).toEqual([]);
    });

    test("does not move because of what else happens in its channel", async () => {
      const { id } = await keep(T + SECOND);
      await enrol("till");
      await append("a", { deadline: 1 });
      await ground.store.retire("orders", "till", T);
      await trimAll(ground.store, "orders", { count: 0, before: 0 }, T);
      expect(await dueAt(T + SECOND)).toMatchObject([{ schedule: { id, next: T + SECOND } }]);
    });
  });
}
