/**
 * What is counted is what was done: pushes, deliveries, words and their latency, at a real service whose clock is held.
 */
import { expect, test } from "bun:test";
import { Counters, Distribution } from "../engine/counters.ts";
import { ask, give, listen, push, start, until } from "./support/harness.ts";

test("each push, delivery and receipt is counted once, with the receipt's latency", async () => {
  let now = Date.now();
  const service = await start({ now: () => now, counts: new Counters(["vip"]) });
  const { url, engine } = service;
  const feeds = await Promise.all(["a", "b"].map((device) => listen(`${url}/feed/orders?device=${device}`)));
  const publisher = await listen(`${url}/feedback/orders`);
  const id = await push(url, "orders", 1);
  await ask(`${url}/push/orders`, { body: "2\n3\n", type: "application/x-ndjson" });
  await push(url, "vip", 4);
  const key = { "Idempotency-Key": "k" };
  for (const _ of [1, 2]) await ask(`${url}/push/orders`, { body: 5, headers: key });
  for (const feed of feeds) await feed.have(4);

  now += 40;
  await give(url, "orders", id, "a", "received");
  now += 1_960;
  await give(url, "orders", id, "a", "working");
  await give(url, "orders", id, "a", "done");
  await give(url, "orders", id, "a", "failed");
  await give(url, "orders", id, "b", "failed");
  await give(url, "orders", id, "nobody", "done");
  await publisher.have(4);

  const { rest, named } = engine.counts;
  await until(() => rest.deliveries === 8, "two devices, four events each");
  expect(rest).toMatchObject({ pushes: 4, replays: 1, duplicates: 1, rejections: 1 });
  expect(rest.receipts).toEqual({ received: 1, working: 1, deferred: 0, done: 1, failed: 1 });
  expect(rest.received).toMatchObject({ count: 1, sum: 0.04 });
  expect(rest.final).toMatchObject({ count: 2, sum: 4 });
  expect(rest.final.counts[rest.final.bounds.indexOf(2.5)]).toBe(2);
  expect(named.get("vip")).toMatchObject({ pushes: 1, deliveries: 0 });
  expect(engine.counts.total().pushes).toBe(5);
  expect(engine.counts.pushStored.count).toBe(5);
  expect(engine.counts.batches.sum).toBeGreaterThanOrEqual(engine.counts.commits.count);

  await service.stop();
  expect(engine.counts.byes).toEqual({ drain: 3, renew: 0, expired: 0, busy: 0 });
});

test("a value at a bound belongs to its bucket, one beyond all bounds to the last", () => {
  const spread = new Distribution([1, 2, 4]);
  for (const value of [0, 1, 1.5, 4, 5]) spread.note(value);
  expect(spread.counts).toEqual([2, 1, 1, 1]);
  expect(spread).toMatchObject({ sum: 11.5, count: 5 });
});

test("a latency whose push was forgotten is not counted, and none is attributed to another event", () => {
  const counts = new Counters();
  counts.pushed("one", 1, 1, 1_000);
  counts.recorded(counts.rest, "done", { epoch: "other", seq: 1 }, 5_000);
  counts.recorded(counts.rest, "done", { epoch: "one", seq: 2 }, 5_000);
  expect(counts.rest.final.count).toBe(0);
  // An epoch that shares its place with the first one.
  let other = 0;
  while ((Bun.hash.xxHash32(`${other}`) - Bun.hash.xxHash32("one")) % 65_536 !== 0) other++;
  counts.recorded(counts.rest, "done", { epoch: `${other}`, seq: 1 }, 5_000);
  expect(counts.rest.final.count).toBe(0);
  counts.pushed("two", 1, 200_000, 2_000);
  counts.recorded(counts.rest, "done", { epoch: "one", seq: 1 }, 5_000);
  expect(counts.rest.final.count).toBe(0);
  counts.recorded(counts.rest, "done", { epoch: "two", seq: 200_000 }, 5_000);
  expect(counts.rest.final).toMatchObject({ count: 1, sum: 3 });
});
