/**
 * A long-poll ends when its time is up, whatever becomes of the store meanwhile: with what there is, or with the news that nothing is known.
 */
import { afterEach, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Service } from "../index.ts";
import { ask, push, start, startOn, until } from "./support/harness.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

setDefaultTimeout(60_000);
const services: Service[] = [];
afterEach(async () => {
  for (const service of services.splice(0)) await service.stop();
});
const poll = (url: string, path: string) => ask(`${url}${path}`, { headers: { Accept: "application/json" } });
const never = (): Promise<never> => new Promise(() => {});

describe("while SQLite does not answer", () => {
  test("a poll that was passing events for others returns its position, and the next continues there", async () => {
    const pere = await start();
    services.push(pere);
    await ask(`${pere.url}/devices/c/a`, { method: "PUT" });
    const to = { body: "1\n".repeat(1_000), type: "application/x-ndjson" };
    for (let batch = 0; batch < 3; batch++) await ask(`${pere.url}/push/c?to=b`, to);
    const [{ id }] = (await ask(`${pere.url}/events/c?limit=1`)).body.events;
    const { events } = SqliteStore.prototype;
    let reads = 0;
    const spy = spyOn(SqliteStore.prototype, "events").mockImplementation(function (this: SqliteStore, ...asked) {
      return reads++ === 0 ? events.apply(this, asked) : never();
    });
    try {
      const { status, body } = await poll(pere.url, `/feed/c?device=a&last-event-id=${id}`);
      expect([status, body.events]).toEqual([200, []]);
      expect(Number(body.last.split("-")[1])).toBeGreaterThan(1);
      expect((await poll(pere.url, `/feed/c?device=a&last-event-id=${body.last}`)).status).toBe(503);
    } finally {
      spy.mockRestore();
    }
  });

  test.each([
    ["join", "/feed/c?device=a"],
    ["open", "/feed/c"],
    ["open", "/feedback/c"],
    ["events", "/feed/c?since=earliest"],
    ["receipts", "/feedback/c?since=earliest"],
    ["deviceStates", "/feed/c?device=a"],
  ] as const)("%s: a poll of %s fails with 503", async (verb, path) => {
    const pere = await start();
    services.push(pere);
    await ask(`${pere.url}/devices/c/a`, { method: "PUT" });
    const event = await push(pere.url, "c", 1);
    if (verb === "receipts") await ask(`${pere.url}/feedback/c`, { body: { event, device: "a", status: "working" } });
    const spy = spyOn(SqliteStore.prototype, verb).mockImplementation(never);
    try {
      const paths = [path, `${path}${path.includes("?") ? "&" : "?"}wait=2`];
      for (const { status, headers, body } of await Promise.all(paths.map((path) => poll(pere.url, path))))
        expect([status, Number(headers.get("retry-after")) > 0, body.status]).toEqual([503, true, 503]);
    } finally {
      spy.mockRestore();
    }
    await until(() => pere.engine.held.feeds === 0, "the feeds to be gone");
    expect((await poll(pere.url, path)).status).toBe(200);
  });

  test("after its first page: a poll is answered with that page, and the next one continues from it", async () => {
    const pere = await start();
    services.push(pere);
    const lines = "1\n".repeat(1_000);
    for (let n = 0; n < 2; n++) await ask(`${pere.url}/push/c`, { body: lines, type: "application/x-ndjson" });
    const { events } = SqliteStore.prototype;
    let reads = 0;
    const spy = spyOn(SqliteStore.prototype, "events").mockImplementation(function (this: SqliteStore, ...asked) {
      if (reads++ > 0) throw new PereError("away", "the store is away");
      return events.apply(this, asked);
    });
    const seqs = ({ body }: Awaited<ReturnType<typeof poll>>) => body.events.map(({ seq }: { seq: number }) => seq);
    const first = await poll(pere.url, "/feed/c?since=earliest");
    spy.mockRestore();
    expect(first.status).toBe(200);
    const told = seqs(first);
    expect(told.length).toBeGreaterThan(0);
    expect(told.length).toBeLessThan(2_000);
    for (let { last } = first.body; told.length < 2_000;) {
      const next = await poll(pere.url, `/feed/c?last-event-id=${last}`);
      told.push(...seqs(next));
      last = next.body.last;
    }
    expect(told).toEqual(Array.from({ length: 2_000 }, (_, n) => n + 1));
  });
});

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;
test.skipIf(noRedis !== null)(
  `while Redis stalls every poll is answered in time, however many there are${why}`,
  async () => {
    const redis = await startRedis();
    const pere = await startOn(redis.url);
    await push(pere.url, "c", 1);
    redis.pause();
    const paths = ["/feed/c?device=a&wait=1", "/feed/c?wait=1", "/feedback/c?wait=1", "/feed/new?device=b&wait=1"];
    const polls = paths.flatMap((path) => Array.from({ length: 20 }, () => poll(pere.url, path)));
    const statuses = (await Promise.all(polls)).map(({ status }) => status);
    redis.resume();
    expect(new Set(statuses)).toEqual(new Set([503]));
    await until(async () => (await poll(pere.url, "/feed/c?since=earliest")).body.events?.length === 1, "the event");
    await pere.stop();
    await redis.end();
  },
);
