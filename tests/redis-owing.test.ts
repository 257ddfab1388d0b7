/**
 * What it costs to count what many devices owe, counted on a real Redis: scripts, and reads within them; and that the counts are those of the other
 * store.
 */
import { afterEach, describe, expect, test } from "bun:test";
import type { EventDraft } from "../engine/model.ts";
import { keysWith } from "../engine/redis/keys.ts";
import { SCRIPTS } from "../engine/redis/scripts.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { draft, SECOND, T, word } from "./contract/calls.ts";
import { chance, seed } from "./support/chance.ts";
import { closeAll, closing, openRedis, openStore, TEST_MS, times, why } from "./support/redis-pair.ts";
import { noRedis, type RedisServer } from "./support/redis-server.ts";

afterEach(closeAll, TEST_MS);

const DEVICES = times(1_000, (n) => `d-${String(n).padStart(4, "0")}`);
/** As `owing.ts` and `scripts.ts` have them. */
const DEVICES_A_SCRIPT = 125;
const EVENTS_A_SCRIPT = 500;
const LOOKUPS_A_SCRIPT = 1_500;
const BATCHES = DEVICES.length / DEVICES_A_SCRIPT;

async function filled(events: number): Promise<{ server: RedisServer; store: Store; epoch: string }> {
  const server = await openRedis();
  const store = await openStore(server);
  await Promise.all(DEVICES.map((device) => store.enrol("orders", device, T)));
  for (let at = 1; at < events; at += 500) await store.append("orders", times(Math.min(500, events - at), draft), T);
  const { epoch } = await store.append("orders", [draft("last")], T);
  return { server, store, epoch };
}

/** What Redis ran while it counted: scripts, and HMGETs in them. */
async function counted(server: RedisServer, store: Store) {
  await server.ask("CONFIG", "RESETSTAT");
  const found = await store.owing("orders", DEVICES, T);
  const stats = await server.ask("INFO", "commandstats");
  const calls = (command: string): number =>
    Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0);
  // An instance's sign of life is a script too.
  return { found, scripts: calls("evalsha") - calls("zremrangebyscore"), reads: calls("hmget"), hgets: calls("hget") };
}

describe.skipIf(noRedis !== null)(`what devices owe, on a real Redis${why}`, () => {
  test(
    "of events that nobody answered, no device is looked up, and a longer log is more scripts, not longer ones",
    async () => {
      for (const events of [100, 1_300]) {
        const { server, store } = await filled(events);
        const { found, scripts, reads, hgets } = await counted(server, store);
        expect(found.map(({ device, pending }) => [device, pending])).toEqual(DEVICES.map((one) => [one, events]));
        expect(scripts).toBe(BATCHES * Math.ceil(events / EVENTS_A_SCRIPT));
        // The channel, the devices, and 50 tallies each.
        expect(reads).toBe(2 * scripts + BATCHES * Math.ceil(events / 50));
        expect(hgets).toBe(0);
      }
    },
    TEST_MS,
  );

  test(
    "of events that some answered, a script looks up 1,500 states, and of those that all answered none",
    async () => {
      const { server, store, epoch } = await filled(60);
      for (let seq = 1; seq <= 60; seq++)
        await store.record(
          "orders",
          DEVICES.slice(0, seq <= 20 ? 1_000 : 3).map((device) => word(epoch, seq, device, "done")),
          T,
        );
      const { found, scripts, reads } = await counted(server, store);
      expect(found.map(({ pending }) => pending)).toEqual(DEVICES.map((_, n) => (n < 3 ? 0 : 40)));
      const each = Math.floor(LOOKUPS_A_SCRIPT / DEVICES_A_SCRIPT);
      expect(scripts).toBe(BATCHES * Math.ceil(40 / each));
      // Of 40 events one each; beside them the channel, the devices, and tallies.
      expect(reads - 40 * BATCHES).toBeLessThanOrEqual(5 * scripts);
    },
    TEST_MS,
  );

  test(
    "a device that left and came back owes nothing from before, even where it is still named",
    async () => {
      const server = await openRedis();
      const store = await openStore(server);
      await Promise.all(["a", "b"].map((device) => store.enrol("orders", device, T)));
      await store.append("orders", [draft("to all")], T);
      const toIt = (count: number) =>
        store.append(
          "orders",
          times(count, (n) => draft(n, { to: ["a"] })),
          T,
        );
      const owed = async () => (await store.owing("orders", ["a", "b"], T)).map(({ pending }) => pending);
      await toIt(1_300);
      expect(await owed()).toEqual([1_301, 1]);
      // Only the first step of its retirement, as if the instance had ended then.
      const { withAttention: all, counters } = keysWith("pere:")("orders");
      await server.ask("EVAL", SCRIPTS.retire.text, String(all.length), ...all, "a", String(T));
      await store.enrol("orders", "a", T);
      await toIt(2);
      expect(await server.ask("HEXISTS", counters, "leaving")).toBe(":1");
      expect(await owed()).toEqual([2, 1]);
    },
    TEST_MS,
  );

  test(
    `the counts are those of SQLite, whoever was addressed, joined, left and answered (SEED=${seed})`,
    async () => {
      const random = chance(seed);
      const some = (share: number): string[] => DEVICES.slice(0, 300).filter(() => random() < share);
      const sqlite = new SqliteStore({ path: ":memory:" });
      closing.unshift(() => sqlite.close());
      const server = await openRedis();
      const stores: readonly Store[] = [await openStore(server), sqlite];
      const onBoth = <Answer>(run: (store: Store) => Promise<Answer>): Promise<Answer[]> =>
        Promise.all(stores.map(run));
      let head = 0;
      for (let round = 0; round < 12; round++) {
        const [joining, leaving, named] = [some(0.2), some(0.03), some(0.1)];
        await onBoth(async (store) => {
          for (const device of joining) await store.enrol("orders", device, T);
          for (const device of leaving) await store.retire("orders", device, T);
        });
        const drafts: EventDraft[] = times(60, (n) => {
          const isNamed = named.length > 0 && random() < 0.2;
          return draft(n, { to: isNamed ? named : null, ttl: random() < 0.1 ? 5 : null });
        });
        for (const one of drafts) await onBoth((store) => store.append("orders", [one], T));
        const epochs = await onBoth(async (store) => (await store.heads("orders"))!.epoch);
        for (let seq = head + 1; seq <= head + 60; seq++) {
          const share = [0, 0, 0.05, 1][Math.floor(random() * 4)]!;
          const answers = some(share).map((device) => [device, random() < 0.7 ? "done" : "received"] as const);
          await Promise.all(
            stores.map((store, n) =>
              store.record(
                "orders",
                answers.map(([device, status]) => word(epochs[n]!, seq, device, status)),
                T,
              ),
            ),
          );
        }
        head += 60;
        if (round % 4 === 3)
          await onBoth(async (store) => {
            while (await store.trim("orders", { count: head - 100, before: 0 }, T));
          });
        for (const now of [T, T + 10 * SECOND]) {
          const [one, other] = await onBoth((store) => store.owing("orders", DEVICES.slice(0, 320), now));
          expect(one).toEqual(other!);
          expect(one!.length).toBeGreaterThan(0);
        }
      }
    },
    TEST_MS,
  );
});
