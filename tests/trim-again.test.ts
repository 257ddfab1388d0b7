/**
 * What failed in trimming is tried again: a store that fails once, at the moment of the test's choice, leaves nothing behind.
 */
import { expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import { join } from "node:path";
import { Engine } from "../engine/engine.ts";
import { type EventDraft, PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { temporary, until } from "./support/harness.ts";

const KEPT_MS = 1_000;
const draft: EventDraft = {
  type: null,
  data: "1",
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
};

/** A file with a log that is dropped in several slices, and how many of its rows are left. */
async function longAgo() {
  const path = join(temporary(), "pere.db");
  const store = new SqliteStore({ path });
  await store.append("orders", Array(450).fill(draft), 0);
  const left = (): number => {
    const db = new Database(path, { readonly: true });
    try {
      return db.query<{ n: number }, []>("SELECT count(*) AS n FROM events").get()!.n;
    } finally {
      db.close();
    }
  };
  return { path, store, left };
}

/** A store that fails at one call of a method, the disk being full for once. */
const failingAt = (store: Store, name: "trim" | "channels", place: (call: number, ...values: unknown[]) => boolean) => {
  const state = { failed: false };
  let call = 0;
  const proxy = new Proxy(store, {
    get(target, asked: keyof Store) {
      const method = target[asked] as (...values: unknown[]) => unknown;
      return async (...values: unknown[]) => {
        if (asked === name && !state.failed && place(++call, ...values)) {
          state.failed = true;
          throw new PereError("full", "the disk is full; nothing was stored");
        }
        return method.apply(target, values);
      };
    },
  });
  return { store: proxy, state };
};

const trimmed = async (store: Store, state: { failed: boolean }, left: () => number): Promise<void> => {
  const engine = new Engine(store, { limits: { keptMs: KEPT_MS, trimMs: 20 } });
  await until(() => left() === 0, "nothing to be left");
  expect(state.failed).toBe(true);
  await engine.drain();
  await engine.close();
};

test("the rest of a dropped log is deleted in the next round if its deletion failed", async () => {
  const { store, left } = await longAgo();
  const { store: failing, state } = failingAt(store, "trim", (_, channel) => {
    // All of it was dropped, and not yet all of it removed.
    return channel === "orders" && left() > 0 && left() < 450;
  });
  await trimmed(failing, state, left);
});

test("leftovers of an earlier process are deleted in the next round if the channels could not be read in the first", async () => {
  const { path, store, left } = await longAgo();
  const retention = { count: 1, before: Date.now() - KEPT_MS };
  while (left() === 450) await store.trim("orders", retention, Date.now());
  const { events } = (await store.heads("orders"))!;
  expect(events.floor).toBe(events.head);
  await store.close();
  const { store: failing, state } = failingAt(new SqliteStore({ path }), "channels", (call) => call === 1);
  await trimmed(failing, state, left);
});

test("a channel after one that failed is trimmed in the same round", async () => {
  const { store, left } = await longAgo();
  await store.append("later", Array(10).fill(draft), 0);
  const { store: failing, state } = failingAt(store, "trim", (_, channel) => channel === "orders");
  await trimmed(failing, state, left);
});
