/**
 * The store's contract: hooks, their deliveries and their progress.
 */
import { describe, expect, test } from "bun:test";
import { type Delivery, type Hook, type HookDraft, HOOKS_MAX } from "../../engine/store.ts";
import { codeOf, SECOND, T } from "./calls.ts";
import type { Ground } from "./ground.ts";

export function hookContract(ground: Ground): void {
  const { append, enrol, give } = ground;

  describe("a hook", () => {
    const hook = (name: string, more: Partial<HookDraft> = {}): HookDraft => ({
      name,
      url: `https://example.com/${name}`,
      secret: null,
      on: ["receipt"],
      ...more,
    });
    const put = (draft: HookDraft, channel = "orders", now = T) => ground.store.putHook(channel, draft, "fresh", now);
    const hookOf = async (name: string): Promise<Hook> =>
      (await ground.store.hooks("orders")).find((found) => found.name === name)!;
    const delivery = (id: string, more: Partial<Delivery> = {}): Delivery => ({
      id,
      body: `{"id":"${id}","text":"ü"}`,
      createdAt: T,
      attempts: 1,
      nextAt: T + SECOND,
      status: 500,
      error: null,
      tries: [{ at: T, status: 500, error: "HTTP 500", ms: 12, body: "ü" }],
      ...more,
    });

    test("starts at the end of the receipts log, with its own secret or a generated one", async () => {
      await enrol("till");
      await append("a");
      await give(1, "till", "received");
      await give(1, "till", "done");
      const { epoch } = (await ground.store.heads("orders"))!;
      const { hook: made, created } = await put(hook("a", { on: ["missing", "complete", "receipt"] }));
      expect(created).toBe(true);
      expect({ ...made, on: [...made.on].sort() }).toEqual({
        ...hook("a"),
        channel: "orders",
        secret: "fresh",
        former: [],
        on: ["complete", "missing", "receipt"],
        createdAt: T,
        cursor: { epoch, seq: 3 },
        disabled: null,
        lastDelivered: null,
        revision: made.revision,
      });
      expect((await put(hook("b", { secret: "its own" }))).hook.secret).toBe("its own");
      expect(await ground.store.hooks("orders")).toEqual([made, await hookOf("b")]);
      // A channel that was never used begins with it.
      const { hook: first } = await put(hook("a"), "new");
      expect(first.cursor).toEqual({ epoch: (await ground.store.heads("new"))!.epoch, seq: 0 });
    });

    test("stored again continues, keeps its secret unless a new one is given, and is enabled", async () => {
      await enrol("till");
      const { hook: made } = await put(hook("a", { secret: "one" }));
      await append("a");
      await give(1, "till", "done");
      const cursor = { ...made.cursor, seq: 1 };
      await ground.store.progress("orders", "a", 1, { cursor, disabled: "it is gone", keep: [delivery("d1")] });
      expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it is gone" });
      await append("b");
      await give(2, "till", "done");

      const more = { url: "http://example.com/other", on: ["complete"] } as const;
      const again = await ground.store.putHook("orders", hook("a", more), "fresh", T + SECOND);
      expect(again.created).toBe(false);
      expect(again.hook).toEqual({ ...made, ...more, cursor, revision: again.hook.revision });
      expect(again.hook.revision).toBeGreaterThan(made.revision);
      expect(await ground.store.deliveries("orders", "a")).toEqual([delivery("d1")]);
      const changed = await put(hook("a", { secret: "two" }));
      expect(changed.hook).toMatchObject({ secret: "two", createdAt: T, cursor });
      expect(changed.hook.revision).toBeGreaterThan(again.hook.revision);
      expect(await ground.store.hooks("orders")).toEqual([changed.hook]);
    });

    test("keeps a few former secrets, newest first, each with the time until which it was current", async () => {
      await put(hook("a", { secret: "one" }));
      for (const [index, secret] of ["one", null, "two", "two", "three", "four", "five", "six"].entries())
        await put(hook("a", { secret }), "orders", T + index);
      expect(await hookOf("a")).toMatchObject({
        secret: "six",
        former: [
          { secret: "five", until: T + 7 },
          { secret: "four", until: T + 6 },
          { secret: "three", until: T + 5 },
          { secret: "two", until: T + 4 },
        ],
      });
      await ground.store.dropHook("orders", "a", T);
      expect((await put(hook("a", { secret: "one" }))).hook.former).toEqual([]);
    });

    test(`is one of ${HOOKS_MAX} that a channel may have; one more is refused`, async () => {
      const names = Array.from({ length: HOOKS_MAX }, (_, n) => `hook-${n}`);
      for (const name of names) await put(hook(name));
      expect(await codeOf(put(hook("more")))).toBe("refused");
      expect((await put(hook("hook-0"))).created).toBe(false);
      expect((await put(hook("more"), "others")).created).toBe(true);
      expect((await ground.store.hooks("orders")).map(({ name }) => name)).toEqual([...names].sort());
      await ground.store.dropHook("orders", "hook-3", T);
      expect((await put(hook("more"))).created).toBe(true);
      // Also when they come at once.
      const codes = await Promise.all(
        Array.from({ length: HOOKS_MAX + 2 }, (_, n) => codeOf(put(hook(`hook-${n}`), "new"))),
      );
      expect(codes.filter((code) => code === "accepted")).toHaveLength(HOOKS_MAX);
      expect(await ground.store.hooks("new")).toHaveLength(HOOKS_MAX);
    });

    test("is listed by name, with those of its channel or of all", async () => {
      for (const name of ["b", "A", "a"]) await put(hook(name));
      await put(hook("z"), "an-other");
      const names = async (channel: string | null) =>
        (await ground.store.hooks(channel)).map((found) => `${found.channel} ${found.name}`);
      expect(await names("orders")).toEqual(["orders A", "orders a", "orders b"]);
      expect(await names("others")).toEqual([]);
      expect((await names(null)).sort()).toEqual(["an-other z", "orders A", "orders a", "orders b"]);
    });

    test("is removed with its deliveries; a later hook of that name is a different one", async () => {
      const { hook: made } = await put(hook("a"));
      await put(hook("b"));
      for (const name of ["a", "b"]) await ground.store.progress("orders", name, 7, { keep: [delivery("d1")] });
      expect(await ground.store.dropHook("orders", "a", T)).toBe(true);
      expect(await ground.store.dropHook("orders", "a", T)).toBe(false);
      expect(await ground.store.dropHook("others", "b", T)).toBe(false);
      expect((await ground.store.hooks("orders")).map(({ name }) => name)).toEqual(["b"]);
      expect(await ground.store.deliveries("orders", "a")).toEqual([]);
      expect(await ground.store.deliveries("orders", "b")).toEqual([delivery("d1")]);
      expect(await ground.store.progress("orders", "a", 8, { keep: [delivery("d2")] })).toBe(false);

      await enrol("till");
      await append("a");
      await give(1, "till", "done");
      const again = await ground.store.putHook("orders", hook("a"), "fresher", T + SECOND);
      expect(again).toMatchObject({
        created: true,
        hook: { secret: "fresher", createdAt: T + SECOND, cursor: { ...made.cursor, seq: 2 }, disabled: null },
      });
      expect(await ground.store.deliveries("orders", "a")).toEqual([]);
      // What is still said of the one before is not said of this one.
      expect(await ground.store.progress("orders", "a", 9, { of: T, keep: [delivery("d3")] })).toBe(false);
      expect(await ground.store.progress("orders", "a", 9, { of: T + SECOND, keep: [delivery("d3")] })).toBe(true);
      expect(await ground.store.deliveries("orders", "a")).toEqual([delivery("d3")]);
    });

    test("keeps its deliveries, oldest first, until they are finished", async () => {
      await put(hook("a"));
      await put(hook("b"));
      const kept = [
        delivery("d3", { createdAt: T + 1, status: null, error: "connection refused" }),
        delivery("d1", { createdAt: T + 2, attempts: 9, nextAt: null, status: 410 }),
        delivery("d2", { createdAt: T + 3 }),
      ];
      expect(await ground.store.progress("orders", "a", 1, { keep: [kept[2]!, kept[0]!] })).toBe(true);
      expect(await ground.store.progress("orders", "a", 1, { keep: [kept[1]!] })).toBe(true);
      expect(await ground.store.deliveries("orders", "a")).toEqual(kept);
      expect(await ground.store.deliveries("orders", "b")).toEqual([]);
      const tried = { ...kept[0]!, attempts: 2, nextAt: T + 9, status: 503, error: null };
      expect(await ground.store.progress("orders", "a", 1, { keep: [tried], drop: ["d1", "none"] })).toBe(true);
      expect(await ground.store.deliveries("orders", "a")).toEqual([tried, kept[2]!]);
      expect(await ground.store.progress("orders", "a", 1, { drop: ["d2", "d3"] })).toBe(true);
      expect(await ground.store.deliveries("orders", "a")).toEqual([]);
    });

    test("is changed by its runner's results, and only the parts that they name", async () => {
      const { hook: made } = await put(hook("a"));
      const cursor = { ...made.cursor, seq: 5 };
      expect(await ground.store.progress("orders", "a", 1, { cursor })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor });
      expect(await ground.store.progress("orders", "a", 1, { disabled: "it answered 410" })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it answered 410" });
      expect(await ground.store.progress("orders", "a", 1, { keep: [delivery("d1")] })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor, disabled: "it answered 410" });
      expect(await ground.store.progress("orders", "a", 1, { disabled: null })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor });
      const lastDelivered = { at: T + 7, status: 204, ms: 15 };
      expect(await ground.store.progress("orders", "a", 1, { lastDelivered })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor, lastDelivered });
      expect(await ground.store.progress("orders", "a", 1, { cursor })).toBe(true);
      expect(await hookOf("a")).toEqual({ ...made, cursor, lastDelivered });
      for (const [channel, name] of [
        ["orders", "none"],
        ["others", "a"],
      ] as const)
        for (const fence of [1, null])
          expect(await ground.store.progress(channel, name, fence, { cursor, keep: [delivery("d2")] })).toBe(false);
      expect(await ground.store.deliveries("orders", "none")).toEqual([]);
    });

    test("is not changed by a replaced runner; a change by someone else makes the runner reload", async () => {
      const { hook: made } = await put(hook("a"));
      const at = (seq: number) => ({ ...made.cursor, seq });
      expect(await ground.store.progress("orders", "a", 3, { cursor: at(1), keep: [delivery("d1")] })).toBe(true);
      const old = { cursor: at(9), disabled: "by an old one", keep: [delivery("d2")], drop: ["d1"] };
      expect(await ground.store.progress("orders", "a", 2, old)).toBe(false);
      expect(await hookOf("a")).toEqual({ ...made, cursor: at(1) });
      expect(await ground.store.deliveries("orders", "a")).toEqual([delivery("d1")]);

      // Sent again by a person: kept, seen by the runner, and in nobody's way.
      const again = delivery("d1", { attempts: 0, nextAt: T });
      expect(await ground.store.progress("orders", "a", null, { keep: [again] })).toBe(true);
      const looked = await hookOf("a");
      expect(looked.revision).toBeGreaterThan(made.revision);
      expect(await ground.store.deliveries("orders", "a")).toEqual([again]);
      expect(await ground.store.progress("orders", "a", 2, old)).toBe(false);
      expect(await ground.store.progress("orders", "a", 3, { cursor: at(2) })).toBe(true);
      expect(await ground.store.progress("orders", "a", 5, { cursor: at(3) })).toBe(true);
      expect(await ground.store.progress("orders", "a", 4, { cursor: at(4) })).toBe(false);
      expect(await hookOf("a")).toEqual({ ...looked, cursor: at(3) });
      // Nor does a change of the hook let it back in.
      await put(hook("a"));
      expect(await ground.store.progress("orders", "a", 4, { cursor: at(4) })).toBe(false);
      expect((await hookOf("a")).cursor).toEqual(at(3));
    });
  });
}
