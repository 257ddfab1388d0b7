/**
 * Who is in trouble is also known of what earlier versions stored, which did not count it.
 */
import { afterAll, expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { OVERDUE_MS } from "../engine/attention.ts";
import { keysWith } from "../engine/redis/keys.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SCHEMA } from "../engine/sqlite/schema.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { ageAll } from "./contract/attention-model.ts";
import { CLAIM_MS, draft, EVERYTHING, missAll, T, trimAll, word } from "./contract/calls.ts";
import { temporary } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());

const HOUR = T + OVERDUE_MS;
const troubles = async (store: Store) => {
  const { devices, events } = await store.troubles("orders", 10);
  const [channel] = await store.troubledChannels();
  return {
    channel: channel && [channel.devices, channel.failed, channel.missing, channel.overdue],
    devices: devices.map((one) => [one.device, one.failed, one.missing, one.overdue]),
    events: events.map((one) => [one.seq, one.failed, one.missing, one.overdue]),
  };
};

test("in a file of the first version that keeps receipts, without those of devices that were retired", async () => {
  const path = join(temporary(), "pere.db");
  const first = new Database(path);
  first.run(readFileSync(join(import.meta.dir, "support", "schema-1.sql"), "utf8"));
  first.run(`PRAGMA application_id = ${SCHEMA.applicationId}`);
  first.run("PRAGMA user_version = 1");
  first.run("INSERT INTO channels VALUES (1, 'orders', 'epoch', 4, 1, 1, 5, 0, 2)");
  for (const [seq, targeted] of [
    [2, 0],
    [3, 1],
    [4, 0],
  ] as const)
    first.run(`INSERT INTO events VALUES (1, ${seq}, ${T + seq}, NULL, ${targeted}, NULL, '1')`);
  first.run(
    "INSERT INTO tallies (channel, event, addressed, missing, done, failed) VALUES (1, 2, 3, 0, 0, 2), (1, 3, 2, 0, 0, 1), (1, 4, 2, 0, 1, 0)",
  );
  first.run("INSERT INTO targets VALUES (1, 3, 'kiosk'), (1, 3, 'stranger')");
  first.run(
    `INSERT INTO devices VALUES (1, 'kiosk', 0, NULL, ${T}, NULL, 0, 0, 0), (1, 'till', 0, NULL, ${T}, NULL, 0, 0, 0), (1, 'old', 0, 3, ${T}, NULL, 0, 0, 0)`,
  );
  for (const [n, event, device, status] of [
    [1, 2, "kiosk", 5],
    [2, 2, "old", 5],
    [3, 3, "stranger", 5],
    [4, 4, "kiosk", 4],
  ] as const) {
    first.run(`INSERT INTO receipts VALUES (1, ${n}, ${event}, '${device}', ${status}, ${T + 9}, NULL, 0, NULL)`);
    first.run(`INSERT INTO latest VALUES (1, ${event}, '${device}', ${status}, ${n})`);
  }
  first.close();

  let store = new SqliteStore({ path });
  expect(await troubles(store)).toEqual({
    channel: [2, 2, 0, 0],
    devices: [
      ["kiosk", 1, 0, 0],
      ["stranger", 1, 0, 0],
    ],
    events: [
      [2, 1, 0, 0],
      [3, 1, 0, 0],
    ],
  });
  await ageAll(store, HOUR + 9);
  const expected = {
    channel: [3, 2, 0, 3],
    devices: [
      ["kiosk", 1, 0, 1],
      ["till", 0, 0, 2],
      ["stranger", 1, 0, 0],
    ],
    events: [
      [2, 1, 0, 1],
      [3, 1, 0, 1],
      [4, 0, 0, 1],
    ],
  };
  expect(await troubles(store)).toEqual(expected);
  await store.close();
  store = new SqliteStore({ path });
  await ageAll(store, HOUR + 9);
  expect(await troubles(store)).toEqual(expected);
  await trimAll(store, "orders", { count: 0, before: 0 }, HOUR);
  expect(await troubles(store)).toEqual({ channel: undefined, devices: [], events: [] });
  await store.close();
});

test.skipIf(noRedis !== null)("in a Redis, counted in slices when retention has come by", async () => {
  redis = await startRedis();
  const open = () => RedisStore.open({ urls: [redis!.url], prefix: "old:", claimMs: CLAIM_MS });
  let store = await open();
  const names = Array.from({ length: 700 }, (_, n) => `d-${n}`);
  await Promise.all([...names, "old"].map((name) => store.enrol("orders", name, T)));
  const { epoch } = await store.append("orders", [draft(1, { deadline: 1 }), draft(2)], T);
  await store.record(
    "orders",
    names.slice(0, 300).map((name) => word(epoch, 2, name, "failed")),
    T,
  );
  await store.record("orders", [word(epoch, 2, "old", "failed")], T);
  await store.retire("orders", "old", T);
  await missAll(store, HOUR);
  // As earlier versions left it.
  const keys = keysWith("old:")("orders");
  await redis.ask("DEL", ...keys.attention, "old:troubled-channels", "old:aging");
  await redis.ask("HDEL", keys.counters, "aged");
  await redis.ask("HDEL", keys.all[3]!, "1:x", "2:x");
  await store.close();

  store = await open();
  expect((await troubles(store)).channel).toBeUndefined();
  // A receipt before that does not count twice.
  await store.record("orders", [word(epoch, 1, "d-0", "done"), word(epoch, 2, "d-300", "failed")], HOUR);
  await trimAll(store, "orders", EVERYTHING, HOUR);
  await ageAll(store, HOUR);
  expect(await troubles(store)).toMatchObject({
    channel: [700, 301, 699, 399],
    devices: expect.arrayContaining([["d-1", 1, 1, 0]]),
    events: [
      [2, 301, 0, 399],
      [1, 0, 699, 0],
    ],
  });
  await store.close();
});
