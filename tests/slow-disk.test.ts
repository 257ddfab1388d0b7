/**
 * A disk that takes its time: while a sync runs, the event loop goes on, changes gather for the next one, and nothing is answered, told or shown
 * before it is durable.
 */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { SYNCS_MAX } from "../engine/sqlite/write-ahead-log.ts";
import { dataOf, draft, hear, reads, T, word } from "./contract/calls.ts";
import { temporary, until } from "./support/harness.ts";

/** A store whose syncs end when the test says so. */
function held() {
  const syncs: PromiseWithResolvers<void>[] = [];
  const state = { isHeld: false };
  const sync = (): Promise<void> => {
    if (!state.isHeld) return Promise.resolve();
    const one = Promise.withResolvers<void>();
    syncs.push(one);
    return one.promise;
  };
  const path = join(temporary(), "pere.db");
  return { path, store: new SqliteStore({ path, sync }), syncs, hold: () => void (state.isHeld = true) };
}

/** Lets everything happen that waits for nothing but the event loop. */
async function turns(): Promise<void> {
  for (let n = 0; n < 20; n++) await new Promise((resolve) => setImmediate(resolve));
}

describe.skipIf(process.platform !== "linux")("while a sync runs", () => {
  test("nothing of it is answered, told or read, and later changes share a sync beside it", async () => {
    const { store, syncs, hold } = held();
    await store.enrol("orders", "till", T);
    const { epoch } = await store.append("orders", [draft("first")], T);
    hold();
    const seen: string[] = [];
    hear(store, ({ kind, entries }) => seen.push(`told ${kind} ${entries.map(({ seq }) => seq)}`));
    const noted = <Value>(what: string, promise: Promise<Value>): Promise<Value> =>
      promise.finally(() => seen.push(what));
    const second = noted("second", store.append("orders", [draft("second")], T));
    await until(() => syncs.length === 1, "a sync");
    const heads = noted("heads", store.heads("orders"));
    // On a slow disk another sync begins beside the first. What changes nothing waits as well.
    const third = noted("third", store.append("orders", [draft("third")], T));
    const receipt = noted("receipt", store.record("orders", [word(epoch, 2, "till", "done")], T));
    await until(() => syncs.length === 2, "a second sync");
    const again = noted("again", store.enrol("orders", "till", T));
    await turns();
    expect(seen).toEqual([]);

    // The second covers the first, but only when both have ended it is known that neither failed.
    syncs[1]!.resolve();
    await turns();
    expect(seen).toEqual([]);
    syncs[0]!.resolve();
    await Promise.all([second, heads, third, receipt, again]);
    const heard = seen.filter((what) => what !== "heads");
    expect(heard.slice(0, 4)).toEqual(["told events 2", "second", "told events 3", "told receipts 1,2"]);
    // Answers of one round have no order.
    expect(heard.slice(4).toSorted()).toEqual(["again", "receipt", "third"]);
    expect((await heads)!.events.head).toBe(2);
    expect(syncs).toHaveLength(2);

    const more: Promise<unknown>[] = [];
    for (let n = 1; n <= SYNCS_MAX; n++) {
      more.push(store.append("orders", [draft(n)], T));
      await until(() => syncs.length === 2 + n, "a sync beside the others");
    }
    more.push(store.append("orders", [draft("last")], T), store.enrol("orders", "kiosk", T));
    await turns();
    expect(syncs).toHaveLength(2 + SYNCS_MAX);
    syncs[2]!.resolve();
    await until(() => syncs.length === 3 + SYNCS_MAX, "the next sync");
    for (const sync of syncs) sync.resolve();
    await Promise.all(more);
    expect(syncs).toHaveLength(3 + SYNCS_MAX);
    await store.close();
  });

  test("and fails, what was acknowledged before is read, and nothing else ever", async () => {
    const { store, syncs, hold } = held();
    await store.enrol("orders", "till", T);
    const { epoch } = await store.append("orders", [draft("first")], T);
    hold();
    const told: number[] = [];
    hear(store, ({ entries }) => told.push(...entries.map(({ seq }) => seq)));
    const calls = Promise.allSettled([
      store.append("orders", [draft("second")], T),
      store.record("orders", [word(epoch, 1, "till", "done")], T),
      store.append("others", [draft("new")], T),
    ]);
    await until(() => syncs.length === 1, "a sync");
    const waiting = store.append("orders", [draft("third")], T).catch((error: unknown) => error);
    const read = reads.events(store, "orders", 0, 10);
    syncs[0]!.reject(new Error("EIO"));
    const codes = (await calls).map((call) => (call as { reason?: PereError }).reason?.code);
    expect([...codes, ((await waiting) as PereError).code]).toEqual(["away", "away", "away", "away"]);
    // It was read while the sync ran, and is read again as of the sync before.
    expect(dataOf(await read)).toEqual(['"first"']);
    expect((await reads.tallies(store, "orders", 1, 10)).get(1)).toMatchObject({ addressed: 1, done: 0 });
    expect(await store.heads("others")).toBeNull();
    expect((await store.heads("orders"))!.events.head).toBe(1);
    expect(store.append("orders", [draft("fourth")], T)).rejects.toBeInstanceOf(PereError);
    expect(store.ready()).rejects.toBeInstanceOf(PereError);
    await turns();
    expect([told, syncs.length]).toEqual([[], 1]);
    await store.close();
  });

  test("a call that changes nothing waits for no sync of its own", async () => {
    const { store, syncs, hold } = held();
    await store.enrol("orders", "till", T);
    hold();
    expect(await store.enrol("orders", "till", T)).toBeFalse();
    expect(syncs).toHaveLength(0);
    await store.close();
  });
});
