/**
 * What a push waits for on Redis: one script, and the few reads that are in flight, however many feeds catch up.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { PereError } from "../engine/model.ts";
import { draft, T } from "./contract/calls.ts";
import { until } from "./support/harness.ts";
import { closeAll, openRedis, openStore, times, why } from "./support/redis-pair.ts";
import { noRedis } from "./support/redis-server.ts";

/** Less than one timeout after another for all reads. */
const TEST_MS = 60_000;
afterEach(closeAll, TEST_MS);

const READS = 400;
/** As `connection.ts` has it. */
const READS_AT_ONCE = 8;

describe.skipIf(noRedis !== null)(`calls in flight on a real Redis${why}`, () => {
  async function opened() {
    const server = await openRedis();
    const store = await openStore(server);
    const { epoch } = await store.append("orders", times(200, draft), T);
    const states = () => store.deviceStates("orders", epoch, "till", 0, 200, T);
    await states();
    return { server, store, states };
  }

  test(
    "a push is one script, which also tells the followers; nothing else is asked while no other instance lives",
    async () => {
      const { server, store } = await opened();
      const told: number[] = [];
      store.watch((wake) => void (wake.kind === "events" && told.push(...wake.entries.map(({ seq }) => seq))));
      await store.follow("events", "orders");
      await server.ask("CONFIG", "RESETSTAT");
      for (let n = 1; n <= 10; n++) {
        await Promise.all([store.append("orders", [draft(n)], T), store.remotePresence("orders")]);
        await until(() => told.at(-1) === 200 + n, "the message");
      }
      const stats = await server.ask("INFO", "commandstats");
      const calls = (command: string): number =>
        Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(stats)?.[1] ?? 0);
      // An instance's sign of life is a script too, and so is a look at quiet logs.
      expect(calls("evalsha") - calls("zremrangebyscore") - (calls("hmget") - 10)).toBe(10);
      expect(["publish", "xadd", "hgetall", "xrange"].map(calls)).toEqual([10, 10, 0, 0]);
    },
    TEST_MS,
  );

  test(
    "a push behind 400 reads waits for a few of them, and all reads end",
    async () => {
      const { server, store, states } = await opened();
      let done = 0;
      server.pause();
      const reads = times(READS, () => states().then(() => done++));
      const pushed = store.append("orders", [draft("now")], T).then(() => done);
      server.resume();
      expect(await pushed).toBeLessThanOrEqual(2 * READS_AT_ONCE);
      await Promise.all(reads);
      expect(done).toBe(READS);
    },
    TEST_MS,
  );

  test(
    "if Redis does not answer, the reads that wait are refused with those in flight, and later ones are answered",
    async () => {
      const { server, states } = await opened();
      server.pause();
      const results = await Promise.allSettled(times(READS, states)).finally(() => server.resume());
      for (const result of results)
        expect([result.status, result.status === "rejected" && (result.reason as PereError).code]).toEqual([
          "rejected",
          "away",
        ]);
      for (let isBack = false; !isBack;) {
        isBack = await states().then(
          () => true,
          () => false,
        );
        if (!isBack) await Bun.sleep(10);
      }
      expect(await Promise.all(times(2 * READS_AT_ONCE, states))).toHaveLength(2 * READS_AT_ONCE);
    },
    TEST_MS,
  );
});
