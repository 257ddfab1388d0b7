/**
 * The store's contract: positions, channels and events.
 */
import { describe, expect, test } from "bun:test";
import type { Event } from "../../engine/model.ts";
import type { Store } from "../../engine/store.ts";
import { dataOf, draft, EVERYTHING, reads, rowsOf, SECOND, T, word } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function positionsContract(ground: Ground): void {
  const { heard, append } = ground;

  describe("positions", () => {
    test("begin at 1 and grow by 1, whether events come alone or in batches", async () => {
      const alone = await append("a");
      const batch = await ground.store.append("orders", [draft("b"), draft("c"), draft("d")], T);
      const last = await append("e");
      expect([alone, batch, last].map(({ first, count }) => [first, count])).toEqual([
        [1, 1],
        [2, 3],
        [5, 1],
      ]);
      expect(await ground.store.heads("orders")).toEqual({
        epoch: alone.epoch,
        events: { head: 5, floor: 0, controls: 0 },
        receipts: { head: 0, floor: 0 },
      });
      expect(
        (await reads.events(ground.store, "orders", 0, 10)).map((entry) => [entry.seq, dataOf([entry])[0]]),
      ).toEqual([
        [1, '"a"'],
        [2, '"b"'],
        [3, '"c"'],
        [4, '"d"'],
        [5, '"e"'],
      ]);
    });

    test("have one epoch per channel, the same in all answers", async () => {
      const { epoch } = await append("a");
      const other = await ground.store.append("others", [draft("a")], T);
      expect(epoch).toMatch(/^[0-9a-z]{1,16}$/);
      expect(other.epoch).not.toBe(epoch);
      expect((await append("b")).epoch).toBe(epoch);
      expect((await ground.store.open("orders")).epoch).toBe(epoch);
      expect((await ground.store.join("orders", "till", T)).epoch).toBe(epoch);
      await heard();
      expect(ground.wakes.filter(({ channel }) => channel === "orders").map((wake) => wake.epoch)).toEqual([
        epoch,
        epoch,
      ]);
    });

    test("of one channel are independent of another's", async () => {
      await append("a");
      const other = await ground.store.append("others", [draft("b")], T);
      expect(other.first).toBe(1);
      expect((await reads.events(ground.store, "orders", 0, 10)).length).toBe(1);
    });

    test("have no gaps when many calls are made in one turn, and follow the order of the calls", async () => {
      const answers = await Promise.all(Array.from({ length: 50 }, (_, n) => append(n)));
      expect(answers.map(({ first }) => first)).toEqual(Array.from({ length: 50 }, (_, n) => n + 1));
      expect(dataOf(await reads.events(ground.store, "orders", 0, 100))).toEqual(
        Array.from({ length: 50 }, (_, n) => String(n)),
      );
    });
  });
}

export function numberedReadsContract(ground: Ground): void {
  const { append, enrol, give } = ground;

  describe("reading by number", () => {
    test("returns entries of the requested epoch only", async () => {
      await enrol("till");
      const { epoch } = await append("a", { remind: 1, key: "k" });
      await give(1, "till", "done");
      const look = (life: string, channel = "orders") =>
        Promise.all([
          ground.store.events(channel, life, 0, 10),
          ground.store.receipts(channel, life, 0, 10),
          ground.store.deviceStates(channel, life, "till", 0, 1, T),
          ground.store.begunRounds(channel, life, "till", 0, 1, 10, T),
          ground.store.latestOfKeys(channel, life, { device: null, joined: 0 }, 0, 1, 10, T),
          ground.store.tallies(channel, life, 1, 1),
          ground.store.rows(channel, life, 1, null, "", 10, T),
          ground.store.unanswered(channel, life, 1, ["till"]),
        ]);
      expect((await look(epoch)).map((found) => found === null)).toEqual(Array(8).fill(false));
      for (const found of [await look("another0"), await look(epoch, "others"), await look(epoch, "unused")])
        expect(found.every((one) => one === null)).toBe(true);
      expect((await ground.store.reminders("orders", T)).map((reminder) => reminder.epoch)).toEqual([epoch]);
    });
  });
}

export function channelContract(ground: Ground): void {
  describe("a channel", () => {
    test("is created by its first use, and by no read", async () => {
      expect(await ground.store.heads("orders")).toBeNull();
      expect(await reads.events(ground.store, "orders", 0, 10)).toEqual([]);
      expect(await reads.receipts(ground.store, "orders", 0, 10)).toEqual([]);
      expect((await reads.settled(ground.store, "orders", "till", 0, 10)).size).toBe(0);
      expect((await reads.tallies(ground.store, "orders", 1, 10)).size).toBe(0);
      expect(await reads.rows(ground.store, "orders", 1, null, "", 10)).toEqual({ items: [], next: null });
      expect(await ground.store.devices("orders", "", 10, T)).toEqual({ items: [], next: null });
      expect(await ground.store.reminders("orders", T)).toEqual([]);
      await reads.silent(ground.store, "orders", 1, ["till"]);
      expect(await ground.store.recordMissing(T)).toBeNull();
      for (const channel of ["orders", null]) expect(await ground.store.hooks(channel)).toEqual([]);
      expect(await ground.store.deliveries("orders", "till")).toEqual([]);
      expect(await ground.store.progress("orders", "till", null, {})).toBe(false);
      expect(await ground.store.dropHook("orders", "till", T)).toBe(false);
      expect(await ground.store.retire("orders", "till", T)).toBe(false);
      expect(await ground.store.record("orders", [word("none", 1, "till", "done")], T)).toMatchObject([
        { result: "unknown" },
      ]);
      expect(await ground.store.withdraw("orders", { epoch: "none", seq: 1 }, null, T)).toBe("unknown");
      expect(await ground.store.roundsDue({ at: 0, place: "" }, T, 10)).toMatchObject({ rounds: [], next: null });
      await ground.store.seen("orders", new Map([["till", T]]));
      expect(await ground.store.trim("orders", EVERYTHING, T)).toBe(false);
      expect(await ground.store.heads("orders")).toBeNull();

      const heads = await ground.store.open("orders");
      expect(heads).toMatchObject({
        epoch: expect.stringMatching(/^[0-9a-z]+$/),
        events: { head: 0, floor: 0, controls: 0 },
        receipts: { head: 0, floor: 0 },
      });
      expect(await ground.store.heads("orders")).toBeNull();
      await ground.store.enrol("orders", "till", T);
      const { isUnborn: _, ...extent } = heads;
      expect(await ground.store.heads("orders")).toEqual(extent);
    });

    test("used by many at once is created once", async () => {
      const epochs = await Promise.all(
        Array.from({ length: 10 }, async () => (await ground.store.open("orders")).epoch),
      );
      expect(new Set(epochs).size).toBe(1);
    });

    test("is listed by name, a page at a time, with its extent and how many are enrolled", async () => {
      for (const channel of ["c", "a", "A"]) await ground.store.enrol(channel, "till", T);
      await ground.store.append("b", [draft(1), draft(2)], T);
      await ground.store.enrol("b", "till", T);
      await ground.store.enrol("b", "kiosk", T);
      await ground.store.retire("b", "till", T);
      const listed: string[] = [];
      for (let after: string | null = ""; after !== null;) {
        const page: Awaited<ReturnType<Store["channels"]>> = await ground.store.channels(after, 3);
        expect(page.items.length).toBeLessThanOrEqual(3);
        listed.push(...page.items.map(({ channel }) => channel));
        after = page.next;
      }
      expect(listed).toEqual(["A", "a", "b", "c"]);
      const b = (await ground.store.channels("a", 1)).items[0]!;
      expect(b).toMatchObject({ channel: "b", devices: 1, events: { head: 2, floor: 0 } });
    });

    test("is listed within a scope of names and prefixes, which may overlap, and no other is", async () => {
      for (const channel of ["a", "a.1", "a.2", "a.2.x", "ab", "b", "b.1", "c", "c~", "d"])
        await ground.store.enrol(channel, "till", T);
      const within = async (names: string[], prefixes: string[], after = "", limit = 2): Promise<string[]> => {
        const listed: string[] = [];
        for (let from: string | null = after; from !== null;) {
          const page: Awaited<ReturnType<Store["channels"]>> = await ground.store.channels(from, limit, {
            names,
            prefixes,
          });
          expect(page.items.length).toBeLessThanOrEqual(limit);
          listed.push(...page.items.map(({ channel }) => channel));
          from = page.next;
        }
        return listed;
      };
      expect(await within(["c", "a", "none"], [])).toEqual(["a", "c"]);
      expect(await within([], ["a."])).toEqual(["a.1", "a.2", "a.2.x"]);
      expect(await within(["a.2", "b", "b"], ["a.", "a.2.", "c"])).toEqual(["a.1", "a.2", "a.2.x", "b", "c", "c~"]);
      expect(await within(["a.2", "b"], ["a.", "c"], "a.2")).toEqual(["a.2.x", "b", "c", "c~"]);
      expect(await within(["d"], ["a."], "d")).toEqual([]);
      expect(await within([], [])).toEqual([]);
    });
  });
}

export function eventContract(ground: Ground): void {
  const { append, enrol, give, pendingOf } = ground;

  describe("an event", () => {
    test("keeps the publisher's bytes, its type and its times", async () => {
      const data = '{"b":1,"a":12345678901234567890,"a":-0,  "text":"ü\\u0000\\ud83d 😀 \'quoted\'"}';
      await ground.store.append(
        "orders",
        [
          {
            type: "order.created",
            data,
            to: null,
            ttl: 1.5,
            deadline: 60,
            remind: 2.5,
            key: "k",
            attempts: 3,
            where: null,
          },
        ],
        T,
      );
      expect(await reads.events(ground.store, "orders", 0, 1)).toEqual([
        {
          seq: 1,
          at: T,
          type: "order.created",
          data,
          to: null,
          expires: T + 1500,
          deadline: T + 60_000,
          remind: 2500,
          key: "k",
          attempts: 3,
          where: null,
          withdrawn: null,
        },
      ]);
    });

    test("says which event it repeats, as it is stored, read and told, with twenty thousand names", async () => {
      await append("first");
      await ground.store.follow("events", "orders");
      const to = Array.from({ length: 20_000 }, (_, n) => `d${String(n).padStart(5, "0")}`);
      const { first, addressed } = await ground.store.append("orders", [draft("again", { to, again: 1 })], T);
      expect([first, addressed]).toEqual([2, 20_000]);
      await append("after", { again: 2, key: "k" });
      await ground.heard();
      const told = ground.wakes
        .flatMap(({ entries }) => entries as readonly unknown[] as readonly Event[])
        .filter(({ seq }) => seq > 1);
      const read: Event[] = [];
      for (const after of [0, 1, 2]) read.push(...((await reads.events(ground.store, "orders", after, 1)) as Event[]));
      expect("again" in read[0]!).toBe(false);
      expect(read.map(({ again }) => again)).toEqual([undefined, 1, 2]);
      expect(read[1]!.to!.toSorted()).toEqual(to);
      // A store may tell of a large entry by its position only.
      for (const entry of told) if (entry.seq === 3) expect(entry).toMatchObject({ again: 2, key: "k" });
      expect((await rowsOf(ground.store, "orders", 2)).length).toBe(20_000);
      expect(await give(2, "d19999", "done")).toBe("recorded");
      expect(await give(2, "d20000", "done")).toBe("unaddressed");
    });

    test("is read after a position, up to a limit, at least one whatever its size", async () => {
      const big = "x".repeat(10_000);
      await ground.store.append(
        "orders",
        Array.from({ length: 10 }, () => draft(big)),
        T,
      );
      const seqs = async (after: number, limit: number, bytesMax?: number): Promise<number[]> =>
        (await reads.events(ground.store, "orders", after, limit, bytesMax)).map(({ seq }) => seq);
      expect(await seqs(0, 3)).toEqual([1, 2, 3]);
      expect(await seqs(8, 100)).toEqual([9, 10]);
      expect(await seqs(10, 100)).toEqual([]);
      expect(await seqs(0, 100, 1)).toEqual([1]);
      const some = await seqs(2, 100, 35_000);
      expect(some[0]).toBe(3);
      expect(some.length).toBeGreaterThanOrEqual(3);
      expect(some.length).toBeLessThanOrEqual(5);
      // A page that was cut short does not stand in the way of what follows.
      await append("more");
      expect(await seqs(10, 100)).toEqual([11]);
    });

    test("past its expiry is still kept, but no device owes it", async () => {
      await enrol("till");
      await append("soon gone", { ttl: 1 });
      await append("stays");
      expect(await pendingOf("till", T + 999)).toBe(2);
      expect(await pendingOf("till", T + 1001)).toBe(1);
      expect((await ground.store.join("orders", "till", T + 999)).settled).toBe(0);
      expect((await ground.store.join("orders", "till", T + 1001)).settled).toBe(1);
      expect((await reads.events(ground.store, "orders", 0, 10)).length).toBe(2);
      expect(await give(1, "till", "done", T + 2 * SECOND)).toBe("recorded");
    });
  });
}
