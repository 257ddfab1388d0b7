/**
 * Tags and events with `where`, where two instances share a Redis: the publisher is at one of them, the devices at the other.
 */
import { afterAll, beforeAll, describe, setDefaultTimeout } from "bun:test";
import { Fleet, type Open } from "./contract/fleet.ts";
import { whereCases } from "./contract/where-cases.ts";
import { startOn } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

setDefaultTimeout(30_000);

describe.skipIf(noRedis !== null)("on a real Redis", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());

  /** Each case has a database of its own. */
  const open: Open = async (options = {}) => {
    await redis.ask("FLUSHALL");
    return new Fleet((given) => startOn(redis.url, given), 2, options).start();
  };
  whereCases("Redis", open);
});
