/**
 * Random pushes with and without keys, withdrawals, deferrals and receipts, while devices on bad lines are behind, cut off and resuming: after the answer
 * to a withdrawal nobody is given the event any more, and until its time a device is not given what it deferred (judged on one instance).
 *
 * Each write of each feed is looked at as it is made, in this process: what was answered before must hold for it. So an event that was already on its
 * way does not count. The seed is printed; `SEED=n bun test tests/withdrawal-fuzz.test.ts` plays the same decisions again.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { Feed } from "../engine/feeds/feed.ts";
import type { Batch, Log } from "../engine/feeds/log.ts";
import type { EngineOptions } from "../engine/engine.ts";
import type { Service } from "../index.ts";
import { BadLineDevice } from "./support/bad-line-device.ts";
import { chance, seed } from "./support/chance.ts";
import { ask, give, start, startOn, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const SECOND = 1_000;
const CHANNEL = "fuzz";
/** For a machine that is busy with other tests. */
const PATIENCE_MS = 60_000;

/** What has been answered, and what was written in spite of it. */
class Referee {
  now = Date.UTC(2026, 10, 22, 10);
  readonly withdrawn = new Set<string>();
  /** By device and event: until when it is held. */
  readonly held = new Map<string, number>();
  readonly faults: string[] = [];
  writes = 0;
  /** An instance that has read what a device said, before it deferred an event at another instance, may still give it that event: docs/redis.md. */
  readonly judgesHeld: boolean;

  constructor(instances: number) {
    this.judgesHeld = instances === 1;
  }

  look(device: string | null, { entries }: Batch): void {
    this.writes++;
    for (const { id, event } of entries) {
      if (!event) continue;
      if (this.withdrawn.has(id)) this.faults.push(`${device} is given ${id} after it was withdrawn`);
      const until = this.held.get(`${device} ${id}`);
      if (this.judgesHeld && until !== undefined && until > this.now)
        this.faults.push(`${device} is given ${id} before its time`);
    }
  }
}

let referee: Referee;
const { write, again } = Feed.prototype;
beforeAll(() => {
  Feed.prototype.write = function (this: Feed, log: Log, batch: Batch) {
    if (log.kind === "events") referee.look(this.device, batch);
    return write.call(this, log, batch);
  };
  Feed.prototype.again = function (this: Feed, log: Log, batch: Batch) {
    referee.look(this.device, batch);
    return again.call(this, log, batch);
  };
});
afterAll(() => Object.assign(Feed.prototype, { write, again }));

async function play(services: readonly Service[]): Promise<void> {
  const random = chance(seed);
  const one = <Item>(items: readonly Item[]): Item => items[Math.floor(random() * items.length)]!;
  const url = (): string => one(services).url;
  const devices = Array.from({ length: 10 }, (_, n) => new BadLineDevice(url, `d${n}`, CHANNEL, random));
  for (const device of devices) device.connect(false);
  await until(() => devices.every(({ ready }) => ready), "all devices", PATIENCE_MS);
  const pushed: string[] = [];
  /** Ids by key: only the newest may be open. */
  const newest = new Map<string, string>();
  const forgetful = new Set<BadLineDevice>();

  for (let turn = 0; turn < 200; turn++) {
    referee.now += Math.floor(random() * SECOND);
    const key = random() < 0.4 ? `k${Math.floor(random() * 4)}` : null;
    const options = [...(key === null ? [] : [`key=${key}`]), ...(random() < 0.2 ? ["attempts=3"] : [])].join("&");
    const body = { pad: "x".repeat(Math.floor(random() ** 4 * 60_000)) };
    const { body: event } = await ask(`${url()}/push/${CHANNEL}?${options}`, { body });
    pushed.push(event.id);
    if (key !== null) {
      const older = newest.get(key);
      newest.set(key, event.id);
      // It may have been complete; then it may still be given.
      if (older !== undefined && (await ask(`${url()}/events/${CHANNEL}/${older}`)).body.withdrawn)
        referee.withdrawn.add(older);
    }
    if (random() < 0.3) {
      const id = one(pushed.slice(-6));
      const { status, body: state } = await ask(`${url()}/events/${CHANNEL}/${id}`, { method: "DELETE" });
      expect(status).toBe(200);
      if (state.withdrawn) referee.withdrawn.add(id);
      expect(Object.values(state.receipts as Record<string, number>).reduce((a, b) => a + b)).toBe(devices.length);
    }
    for (const device of devices) {
      const dice = random();
      if (dice < 0.1) {
        // A device that forgets its position is not told of what it does not owe.
        const count = device.connections.length;
        device.suffer();
        if (device.connections.length > count) forgetful.add(device);
      }
      const given = device.seen.at(-1 - Math.floor(random() * 3));
      if (given === undefined || random() < 0.7) continue;
      const status = one(["received", "deferred", "deferred", "failed", "done"]);
      const after = 1 + Math.floor(random() * 20);
      const more = status === "deferred" || status === "failed" ? { after } : {};
      const at = referee.now;
      const { body: verdict } = await give(url(), CHANNEL, given, device.name, status, more);
      expect(verdict.recorded + verdict.duplicate).toBe(1);
      if (verdict.recorded === 1 && status === "deferred")
        referee.held.set(`${device.name} ${given}`, at + after * SECOND);
      else if (verdict.recorded === 1) referee.held.delete(`${device.name} ${given}`);
    }
  }

  // All is well from here on: every device gets all that it owes, whatever was deferred.
  for (let round = 0; round < 3; round++) {
    referee.now += 3_600 * SECOND;
    await Bun.sleep(600);
    for (const device of devices) device.resume();
  }
  for (const device of devices) {
    /** What it has said nothing of: in a round that it answered, it may have spoken before the event came. */
    const rows = async (): Promise<string[]> =>
      (await ask(`${url()}/devices/${CHANNEL}/${device.name}/receipts?limit=1000`)).body.receipts.flatMap(
        (row: { event: string; status: string; round: number }) =>
          row.status === "deferred" || row.status === "pending" ? `${row.event} ${row.round}` : [],
      );
    const owed = await rows();
    await until(
      () => owed.every((row) => `${row.split(" ")[0]} ${device.rounds.get(row.split(" ")[0]!)}` === row),
      () =>
        `${device.name} to have ${owed.filter((row) => `${row.split(" ")[0]} ${device.rounds.get(row.split(" ")[0]!)}` !== row).slice(0, 3)}`,
      PATIENCE_MS,
    );
    // Whoever got an event that was withdrawn, and never forgot where it was, knows.
    if (!forgetful.has(device))
      await until(
        () => [...referee.withdrawn].every((id) => !device.seen.includes(id) || device.told.includes(id)),
        () => `${device.name} to be told of a withdrawal`,
        PATIENCE_MS,
      );
  }
  expect(referee.faults).toEqual([]);
  expect(referee.withdrawn.size).toBeGreaterThan(20);
  expect(referee.writes).toBeGreaterThan(200);
  for (const id of pushed) {
    const { body } = await ask(`${url()}/events/${CHANNEL}/${id}`);
    expect(Object.values(body.receipts as Record<string, number>).reduce((a, b) => a + b)).toBe(devices.length);
    if (referee.withdrawn.has(id)) expect(body.complete).toBe(true);
  }
  for (const device of devices) device.cut();
  await until(() => services.every(({ engine }) => engine.held.feeds === 0), "no feeds", PATIENCE_MS);
}

const options = (): EngineOptions => ({ now: () => referee.now, limits: { beatMs: 50, renewMs: 2_000 } });

test(`nobody is given what was withdrawn, or deferred, on SQLite (SEED=${seed})`, async () => {
  referee = new Referee(1);
  const service = await start(options());
  try {
    await play([service]);
  } finally {
    await service.stop();
  }
}, 240_000);

describe.skipIf(noRedis !== null)("on a real Redis", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());

  test(`nobody is given what was withdrawn by any of two instances (SEED=${seed})`, async () => {
    referee = new Referee(2);
    const services = await Promise.all([startOn(redis.url, options()), startOn(redis.url, options())]);
    try {
      await play(services);
    } finally {
      await Promise.all(services.map((service) => service.stop()));
    }
  }, 240_000);
});
