/**
 * The store's contract: what a push's key is remembered for.
 */
import { describe, expect, test } from "bun:test";
import { KEY_MEMORY_MS } from "../../engine/model.ts";
import type { Idempotency } from "../../engine/store.ts";
import { codeOf, dataOf, draft, EVERYTHING, reads, SECOND, T, trimAll } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function idempotencyKeyContract(ground: Ground): void {
  const { heard, append, enrol } = ground;

  describe("an idempotency key", () => {
    const key = (name: string, digest = "digest") => ({ key: name, digest });
    const keep = (data: string, given: Idempotency) => ground.store.append("orders", [draft(data)], T, given);

    test("stores once, and answers the first call's events again", async () => {
      await enrol("till");
      const first = await ground.store.append("orders", [draft(1, { type: "t" }), draft(2)], T, key("k"));
      expect(first).toMatchObject({ first: 1, count: 2, at: T, addressed: 1, type: "t", replayed: false });
      await enrol("kiosk");
      await append("other");
      const again = await ground.store.append("orders", [draft(1, { type: "t" }), draft(2)], T + SECOND, key("k"));
      expect(again).toMatchObject({ ...first, replayed: true });
      expect((await ground.store.heads("orders"))!.events.head).toBe(3);
    });

    test("repeated in the same turn stores once", async () => {
      const answers = await Promise.all([1, 2, 3].map(() => ground.store.append("orders", [draft(1)], T, key("k"))));
      expect(answers.map(({ first }) => first)).toEqual([1, 1, 1]);
      expect(answers.map(({ replayed }) => replayed)).toEqual([false, true, true]);
      await heard();
      expect(ground.wakes.length).toBe(1);
    });

    test("stored by an earlier version, with a digest of the body only, is still known", async () => {
      const now = (digest: string, subject = "") => ({ key: `${subject}k`, earlier: "k", digest });
      const first = await keep("a", { key: "k", digest: "one:body" });
      for (const given of [now("one:body?options"), now("one:body?others", "till/")])
        expect(await keep("b", given)).toMatchObject({ first: first.first, replayed: true });
      expect(await codeOf(keep("b", now("one:else?options")))).toBe("refused");
      expect(await codeOf(keep("b", now("one:else?options", "till/")))).toBe("refused");
    });

    test("stored by this version without a subject belongs to no subject", async () => {
      const first = await keep("a", { key: "k", digest: "one:body?" });
      const other = await keep("b", { key: "till/k", earlier: "k", digest: "one:body?" });
      expect(other).toMatchObject({ first: first.first + 1, replayed: false });
      expect(await keep("c", { key: "till/k", earlier: "k", digest: "one:body?" })).toMatchObject({
        first: other.first,
        replayed: true,
      });
      expect(await codeOf(keep("d", { key: "k", digest: "one:body?x" }))).toBe("refused");
    });

    test("with another digest is refused, and nothing of that call is stored or announced", async () => {
      await ground.store.append("orders", [draft(1)], T, key("k"));
      const refused = ground.store.append("orders", [draft(2), draft(3)], T, key("k", "another"));
      const neighbour = append("neighbour");
      expect(await codeOf(refused)).toBe("refused");
      expect((await neighbour).first).toBe(2);
      expect(dataOf(await reads.events(ground.store, "orders", 0, 10))).toEqual(["1", '"neighbour"']);
      await heard();
      expect(ground.wakes.flatMap(({ entries }) => entries.map(({ seq }) => seq))).toEqual([1, 2]);
      expect(await ground.store.append("orders", [draft(1)], T, key("k"))).toMatchObject({ first: 1, replayed: true });
    });

    test("belongs to its channel", async () => {
      await ground.store.append("orders", [draft(1)], T, key("k"));
      expect((await ground.store.append("others", [draft(2)], T, key("k", "another"))).replayed).toBe(false);
    });

    test("is forgotten after a day by the given time, trimmed or not", async () => {
      await ground.store.append("orders", [draft(1)], T, key("k"));
      const before = await ground.store.append("orders", [draft(1)], T + KEY_MEMORY_MS - 1, key("k"));
      expect(before.replayed).toBe(true);
      const after = await ground.store.append("orders", [draft(2)], T + KEY_MEMORY_MS + 1, key("k", "another"));
      expect(after).toMatchObject({ first: 2, replayed: false });
      // The new use counts a day of its own.
      await trimAll(ground.store, null, EVERYTHING, T + KEY_MEMORY_MS + 2);
      const again = await ground.store.append("orders", [draft(2)], T + KEY_MEMORY_MS + 3, key("k", "another"));
      expect(again).toMatchObject({ first: 2, replayed: true });
      await trimAll(ground.store, null, EVERYTHING, T + 3 * KEY_MEMORY_MS);
      expect((await ground.store.append("orders", [draft(3)], T + 3 * KEY_MEMORY_MS, key("k"))).replayed).toBe(false);
    });

    test("can be looked up without a push", async () => {
      const look = (given: Idempotency, now = T, channel = "orders") => ground.store.replayed(channel, given, now);
      expect(await look(key("k"))).toBeNull();
      await enrol("till");
      const first = await ground.store.append("orders", [draft(1, { type: "t" }), draft(2)], T, key("k", "one:body"));
      expect(await look(key("k", "one:body"), T + SECOND)).toEqual({ ...first, replayed: true });
      expect(await look({ key: "till/k", earlier: "k", digest: "one:body?options" })).toMatchObject({ first: 1 });
      expect(await codeOf(look(key("k", "one:else")))).toBe("refused");
      expect(await look(key("other"))).toBeNull();
      expect(await look(key("k"), T, "others")).toBeNull();
      expect(await look(key("k"), T + KEY_MEMORY_MS + 1)).toBeNull();
      const plain = await ground.store.append("orders", [draft(1)], T, key("l"));
      expect(await look(key("l"))).toEqual({ ...plain, type: null, replayed: true });
      expect((await ground.store.heads("orders"))!.events.head).toBe(3);
    });

    test("outlives its events", async () => {
      await ground.store.append("orders", [draft(1)], T, key("k"));
      await append(2);
      await trimAll(ground.store, "orders", { count: 1, before: 0 }, T);
      expect(await ground.store.append("orders", [draft(1)], T, key("k"))).toMatchObject({ first: 1, replayed: true });
    });
  });
}
