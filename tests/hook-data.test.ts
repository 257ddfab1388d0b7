/**
 * Hooks that an earlier version stored, without attempts and without a last success, are read as before.
 */
import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { keysWith } from "../engine/redis/keys.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SCHEMA } from "../engine/sqlite/schema.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Store } from "../engine/store.ts";
import { T } from "./contract/calls.ts";
import { temporary } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());

const earlier = { id: "msg_1", body: "{}", createdAt: T, attempts: 2, nextAt: T + 5, status: 500, error: "HTTP 500" };

async function expectReadable(store: Store): Promise<void> {
  expect(await store.deliveries("orders", "h")).toEqual([{ ...earlier, tries: [] }]);
  expect(await store.hooks("orders")).toMatchObject([{ name: "h", secret: "whsec_x", lastDelivered: null }]);
  const tries = [{ at: T, status: 500, error: "HTTP 500", ms: 1, body: "" }];
  const lastDelivered = { at: T, status: 200, ms: 2 };
  await store.progress("orders", "h", null, { keep: [{ ...earlier, tries }], lastDelivered });
  expect(await store.deliveries("orders", "h")).toEqual([{ ...earlier, tries }]);
  expect(await store.hooks("orders")).toMatchObject([{ lastDelivered }]);
}

test("in a file", async () => {
  const path = join(temporary(), "pere.db");
  const before = SCHEMA.steps.findIndex((step) => step.includes("lastDelivered"));
  const db = new Database(path, { create: true });
  db.run(`PRAGMA application_id = ${SCHEMA.applicationId}`);
  for (const step of SCHEMA.steps.slice(0, before)) db.run(step);
  db.run(`PRAGMA user_version = ${before}`);
  db.run("INSERT INTO channels VALUES (1, 'orders', 'k3x9', 0, 0, 0, 0, 0, 0, NULL, 0, NULL)");
  db.run(`INSERT INTO hooks VALUES (1, 'h', 'https://shop.example/', 'whsec_x', 'receipt', ${T}, 0, NULL, 1, 0, '')`);
  db.run(`INSERT INTO deliveries VALUES (1, 'h', 'msg_1', '{}', ${T}, 2, ${T + 5}, 500, 'HTTP 500')`);
  db.close();
  const store = new SqliteStore({ path });
  await expectReadable(store);
  await store.close();
});

test.skipIf(noRedis !== null)("in Redis", async () => {
  redis = await startRedis();
  const store = await RedisStore.open({ urls: [redis.url], prefix: "earlier:" });
  const draft = { name: "h", url: "https://shop.example/", secret: "whsec_x", on: ["receipt"] } as const;
  await store.putHook("orders", draft, "fresh", T);
  await redis.ask("HSET", keysWith("earlier:")("orders").deliveries("h"), "msg_1", JSON.stringify(earlier));
  await expectReadable(store);
  await store.close();
});
