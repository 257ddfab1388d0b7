/**
 * Warnings of a push, and events that are pushed again, on both stores: in a file, and where two instances share a Redis.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { Engine } from "../engine/engine.ts";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { draft } from "./contract/calls.ts";
import { Fleet } from "./contract/fleet.ts";
import { againCases } from "./contract/again-cases.ts";
import { start, startOn, temporary } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import { rmSync } from "node:fs";
import { join } from "node:path";

setDefaultTimeout(30_000);

const folder = temporary();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let files = 0;
againCases("SQLite", (options = {}) => {
  const db = join(folder, `${++files}.db`);
  return new Fleet((given) => start(given, db), 1, options).start();
});

describe.skipIf(noRedis !== null)("on a real Redis", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());

  againCases("Redis", async (options = {}) => {
    await redis.ask("FLUSHALL");
    return new Fleet((given) => startOn(redis.url, given), 2, options).start();
  });
});

test("a push is stored and answered also if it can't be said who is enrolled; one to all asks for nobody", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  const engine = new Engine(store);
  const asked = spyOn(store, "enrolled").mockImplementation(() => Promise.reject(new PereError("away", "cut off")));
  const { first, warnings } = await engine.push("c", [draft(1, { to: ["till"] })]);
  expect([first, warnings, asked.mock.calls]).toEqual([1, [], [["c", ["till"]]]]);
  await engine.push("c", [draft(1)]);
  expect(asked).toHaveBeenCalledTimes(1);
  await engine.drain();
  await engine.close();
});
