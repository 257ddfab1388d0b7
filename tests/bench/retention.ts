/**
 * What it costs to drop old events while many devices are silent, in CPU of the service and of Redis; with `--idle`, what many channels cost in which
 * nothing is due, with a round of retention each second.
 *
 *     bun tests/bench/retention.ts [--devices N] [--events N] [--redis]
 *     bun tests/bench/retention.ts --idle CHANNELS [--redis]
 */
import { parseArgs } from "node:util";
import { rmSync } from "node:fs";
import { Engine } from "../../engine/engine.ts";
import type { EventDraft } from "../../engine/model.ts";
import { RedisStore } from "../../engine/redis/store.ts";
import { SqliteStore } from "../../engine/sqlite/store.ts";
import { temporary } from "../support/harness.ts";
import { type RedisServer, startRedis } from "../support/redis-server.ts";

/** Pushes and enrolments in one commit. */
const AT_ONCE = 1_000;
/** How long idle channels are measured. */
const IDLE_MS = 10_000;
const draft: EventDraft = {
  type: null,
  data: '"x"',
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
};

const { values } = parseArgs({
  options: {
    devices: { type: "string" },
    events: { type: "string" },
    redis: { type: "boolean" },
    idle: { type: "string" },
  },
});
const devices = Number(values.devices ?? 100_000);
const events = Number(values.events ?? 10_000);
const folder = temporary();
const redis: RedisServer | null = values.redis ? await startRedis() : null;
const store = redis
  ? await RedisStore.open({ urls: [redis.url] })
  : new SqliteStore({ path: `${folder}/pere.db`, warn: () => {} });

/** CPU seconds used by this process and by Redis. */
async function cpuSeconds(): Promise<number> {
  const { user, system } = process.cpuUsage();
  const info = redis ? String(await redis.ask("INFO", "cpu")) : "";
  const ofRedis = [...info.matchAll(/^used_cpu_(?:sys|user):([\d.]+)/gm)].reduce((sum, [, s]) => sum + Number(s), 0);
  return (user + system) / 1e6 + ofRedis;
}

const now = Date.now();
const name = redis ? "Redis" : "SQLite";

async function dropEvents(): Promise<void> {
  for (let n = 0; n < devices; n += AT_ONCE)
    await Promise.all(
      Array.from({ length: Math.min(AT_ONCE, devices - n) }, (_, m) => store.enrol("orders", `device-${n + m}`, now)),
    );
  for (let n = 0; n < events; n += AT_ONCE)
    await store.append("orders", Array(Math.min(AT_ONCE, events - n)).fill(draft), now);

  const before = await cpuSeconds();
  const startedAt = performance.now();
  let [slices, slowest] = [0, 0];
  for (let isMore = true; isMore; slices++) {
    const sliceAt = performance.now();
    isMore = await store.trim("orders", { count: 0, before: 0 }, now);
    slowest = Math.max(slowest, performance.now() - sliceAt);
  }
  const seconds = (await cpuSeconds()) - before;
  const { lostSeq } = await store.join("orders", "device-0", now);
  if (lostSeq !== events) throw new Error(`device-0 lost ${lostSeq}, not ${events}`);
  console.log(
    `${name}: ${events} events, ${devices} silent devices: ${seconds.toFixed(2)} s of CPU, ` +
      `${((performance.now() - startedAt) / 1000).toFixed(2)} s in ${slices} slices, the slowest ${slowest.toFixed(0)} ms`,
  );
}

async function idle(channels: number): Promise<void> {
  for (let n = 0; n < channels; n += AT_ONCE)
    await Promise.all(
      Array.from({ length: Math.min(AT_ONCE, channels - n) }, (_, m) => store.append(`channel-${n + m}`, [draft], now)),
    );
  const engine = new Engine(store, { limits: { trimMs: 1_000 } });
  for (const which of ["first", "second", "third"]) {
    const before = await cpuSeconds();
    await Bun.sleep(IDLE_MS);
    const seconds = (await cpuSeconds()) - before;
    console.log(`${name}: ${channels} idle channels, ${which} ${IDLE_MS / 1000} s: ${seconds.toFixed(2)} s of CPU`);
  }
  await engine.drain();
}

if (values.idle === undefined) await dropEvents();
else await idle(Number(values.idle));
await store.close();
await redis?.end();
rmSync(folder, { recursive: true, force: true });
