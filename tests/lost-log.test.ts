/**
 * A channel whose log is lost and begins anew, on a real Redis that is flushed: what waits for an event, or was read of the log that was, is never
 * answered with what another event has come to under the same number.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { ask, connect, give, listen, push, startOn, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`a log that is lost${why}`, () => {
  let redis: RedisServer;
  const services: Service[] = [];
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());
  beforeEach(() => redis.ask("FLUSHALL"));
  afterEach(async () => {
    for (const service of services.splice(0)) await service.stop();
  });
  const open = async (): Promise<Service> => {
    const service = await startOn(redis.url);
    services.push(service);
    return service;
  };
  const wait = (url: string, init: { body?: string; type?: string } = {}) =>
    ask(`${url}/push/c`, { body: "1", ...init, headers: { Prefer: "wait=60" } });
  const enrol = (url: string, device: string) => ask(`${url}/devices/c/${device}`, { method: "PUT" });

  test.each(["one event", "a batch"])(
    "while a push of %s waits: the push fails, and gets no tally of the next epoch's events",
    async (what) => {
      const [here, there] = [await open(), await open()];
      await enrol(here.url, "d1");
      const waiting =
        what === "one event" ? wait(here.url) : wait(here.url, { body: "1\n2\n", type: "application/x-ndjson" });
      await until(() => here.engine.held.live === 1);
      await redis.ask("FLUSHALL");
      await enrol(there.url, "dX");
      for (const data of [1, 2]) {
        const event = await push(there.url, "c", data);
        await give(there.url, "c", event, "dX", "failed");
      }
      const { status, body, headers } = await waiting;
      expect([status, Object.keys(body).includes("receipts"), Number(headers.get("retry-after")) > 0]).toEqual([
        503,
        false,
        true,
      ]);
      expect(body.detail).toContain("lost or restored from a backup");
      // Who waits for an event of the new life is answered by it.
      const again = wait(here.url);
      const { id } = await until(async () => (await ask(`${there.url}/events/c`)).body.events?.[2]);
      await give(there.url, "c", id, "dX", "done");
      expect((await again).body).toMatchObject({ id, complete: true, receipts: { done: 1 } });
    },
  );

  test("is reported to a waiting push even if nothing more is pushed", async () => {
    const pere = await open();
    await enrol(pere.url, "d1");
    const waiting = wait(pere.url);
    await until(() => pere.engine.held.live === 1);
    await redis.ask("FLUSHALL");
    expect((await waiting).status).toBe(503);
  });

  test("takes its receipts with it: a device that answered the first event gets the first event of the next epoch", async () => {
    const pere = await open();
    const [stream, socket] = [
      await listen(`${pere.url}/feed/c?device=a`),
      await connect(`${pere.url}/feed/c?device=b`),
    ];
    const first = await push(pere.url, "c", "first");
    for (const device of ["a", "b"]) await give(pere.url, "c", first, device, "done");
    await redis.ask("FLUSHALL");
    await until(() => socket.messages.some(({ pere: own }) => own === "gap"), "the gap");
    const next = await push(pere.url, "c", "next");
    expect(next.split("-")[1]).toBe("1");
    // A receipt that is late in coming names the event that was.
    expect((await give(pere.url, "c", first, "a", "done")).status).toBe(422);
    await until(() => stream.events.some(({ id }) => id === next) && socket.messages.some(({ id }) => id === next));
    expect((await ask(`${pere.url}/events/c/${first}`)).status).toBe(404);
    expect((await ask(`${pere.url}/events/c/${first}/receipts`)).status).toBe(404);
    stream.close();
    socket.socket.close();
  });
});
