/**
 * The directory over HTTP, on both stores: one device and its history, devices searched, filtered and in other orders.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import type { Service } from "../index.ts";
import { type Answer, ask, give, listen, push, SECRET, start, startOn, startWith, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());

const T = Date.UTC(2026, 10, 22, 10);
const STORES = [
  ["SQLite", (options: object): Promise<Service> => start(options), null],
  ["Redis", async (options: object): Promise<Service> => startOn((redis ??= await startRedis()).url, options), noRedis],
] as const;

describe.each(STORES)("on %s", (_, open, missing) => {
  let pere: Service;
  let now = T;
  beforeAll(async () => {
    if (missing === null) pere = await open({ now: () => now, limits: { seenMs: 10 } });
  });
  afterAll(() => pere?.stop());
  const it = test.skipIf(missing !== null);

  const get = (path: string): Promise<Answer> => ask(`${pere.url}${path}`);
  const enrol = async (channel: string, ...devices: string[]): Promise<void> => {
    await Promise.all(devices.map((device) => ask(`${pere.url}/devices/${channel}/${device}`, { method: "PUT" })));
  };
  const names = async (path: string): Promise<string[]> =>
    (await get(path)).body.devices.map(({ device }: { device: string }) => device);
  /** The names of all pages. */
  const allNames = async (path: string): Promise<string[]> => {
    const found: string[] = [];
    for (let after = ""; ;) {
      const { body } = await get(`${path}${after === "" ? "" : `&after=${encodeURIComponent(after)}`}`);
      found.push(...body.devices.map(({ device }: { device: string }) => device));
      if (body.next === null) return found;
      after = body.next;
    }
  };

  it("a device is read as the list has it", async () => {
    await enrol("one", "till-7", "till-8");
    await push(pere.url, "one", 1);
    const stream = await listen(`${pere.url}/feed/one?device=till-7`);
    const device = await get("/devices/one/till-7");
    expect(device.body).toEqual((await get("/devices/one")).body.devices[0]);
    expect(device.body).toMatchObject({ device: "till-7", connected: true, pending: 1, addresses: ["127.0.0.1"] });
    expect((await get("/devices/one/till-8")).body).toMatchObject({ connected: false, pending: 1 });
    stream.close();
    for (const path of ["/devices/one/till-9", "/devices/nowhere/till-7"])
      expect([path, (await get(path)).status]).toEqual([path, 404]);
    expect((await get("/devices/one/till-9")).body.detail).toBe("device till-9 is not enrolled in channel one");
    for (const path of ["/devices/one/a%20b", "/devices/-/a", "/devices/one/till-7?limit=1"])
      expect([path, (await get(path)).status]).toEqual([path, 400]);
  });

  it("a device's history has what it was sent and what it said, newest first", async () => {
    await enrol("said", "till-7");
    const ids = [
      await push(pere.url, "said", 1, "?type=order&deadline=60"),
      await push(pere.url, "said", 2, "?to=kiosk-1"),
      await push(pere.url, "said", 3),
    ];
    await give(pere.url, "said", ids[0]!, "till-7", "failed", { detail: 12, at: "2026-11-22T09:59:58.500Z" });
    const at = new Date(now).toISOString();
    const history = await get("/devices/said/till-7/receipts");
    expect(history.body).toEqual({
      receipts: [
        {
          ...{ event: ids[2], type: null, pushedAt: at, deadline: null },
          ...{ status: "pending", detail: null, at: null, deviceAt: null, late: false, round: 1, attempt: 0 },
        },
        {
          ...{ event: ids[0], type: "order", pushedAt: at, deadline: new Date(now + 60_000).toISOString() },
          ...{ status: "failed", detail: 12, at, deviceAt: "2026-11-22T09:59:58.500Z", late: false },
          ...{ round: 1, attempt: 1 },
        },
      ],
      next: null,
    });
    const first = await get("/devices/said/till-7/receipts?limit=1");
    expect([first.body.receipts.length, first.body.next]).toEqual([1, ids[2]]);
    const second = await get(`/devices/said/till-7/receipts?limit=1&after=${first.body.next}`);
    expect([second.body.receipts[0].event, second.body.next]).toEqual([ids[0], null]);
    // It is not enrolled, but an event names it.
    expect((await get("/devices/said/kiosk-1/receipts")).body.receipts).toMatchObject([{ event: ids[1] }]);
    await enrol("said", "new");
    expect((await get("/devices/said/new/receipts")).body).toEqual({ receipts: [], next: null });
  });

  it("a detail keeps the text of its numbers", async () => {
    await enrol("exact", "till");
    const id = await push(pere.url, "exact", 1);
    await ask(`${pere.url}/feedback/exact`, {
      body: `{"event":"${id}","device":"till","status":"done","detail":{"n":12345678901234567890}}`,
    });
    expect((await get("/devices/exact/till/receipts")).text).toContain('"detail":{"n":12345678901234567890}');
  });

  it.each([
    ["/devices/bad/till/receipts?limit=0", 422],
    ["/devices/bad/till/receipts?limit=1001", 422],
    ["/devices/bad/till/receipts?limit=x", 400],
    ["/devices/bad/till/receipts?after=x", 400],
    ["/devices/bad/till/receipts?after=0-1", 404],
    ["/devices/bad/till/receipts?status=done", 400],
    ["/devices/bad/nobody/receipts", 404],
    ["/devices/nowhere/till/receipts", 404],
    ["/devices/bad?connected=yes", 400],
    ["/devices/bad?connected=", 400],
    ["/devices/bad?connected=TRUE", 400],
    ["/devices/bad?sort=age", 400],
    ["/devices/bad?sort=", 400],
    ["/devices/bad?sort=name,seen", 400],
    ["/devices/bad?sort=seen&sort=name", 400],
    [`/devices/bad?search=${"x".repeat(129)}`, 422],
    ["/devices/bad?sort=seen&after=till", 400],
    ["/devices/bad?sort=seen&after=p0.till", 400],
    ["/devices/bad?sort=pending&after=s0.till", 400],
    ["/devices/bad?sort=pending&after=p0.", 400],
    ["/devices/bad?sort=pending&after=p1e3.till", 400],
    ["/devices/bad?search=a&limit=0", 422],
    ["/devices/bad?find=a", 400],
  ])("%s is refused with %i", async (path, status) => {
    await enrol("bad", "till");
    expect((await get(path)).status).toBe(status);
  });

  it("devices are searched by part of the name, in capitals or not, in pages by name", async () => {
    const towns = ["graz", "wien", "Linz"].flatMap((town) => [1, 2, 3].map((n) => `${town}-till-${n}`));
    await enrol("towns", ...towns, "truck");
    const sorted = towns.toSorted();
    expect(await names("/devices/towns?search=TILL")).toEqual(sorted);
    expect(await names("/devices/towns?search=linz")).toEqual(["Linz-till-1", "Linz-till-2", "Linz-till-3"]);
    expect(await names("/devices/towns?search=l-2")).toEqual(sorted.filter((name) => name.endsWith("l-2")));
    expect(await names("/devices/towns?search=.*")).toEqual([]);
    expect(await names("/devices/towns?search=%25")).toEqual([]);
    expect(await names("/devices/towns?search=")).toHaveLength(10);
    for (const limit of [1, 2, 4, 9])
      expect(await allNames(`/devices/towns?search=till&limit=${limit}`)).toEqual(sorted);
    expect((await get("/devices/towns?search=till&limit=9")).body.next).toBeNull();
  });

  it("devices are filtered by whether they are connected", async () => {
    await enrol("here", "a", "b", "c", "d");
    const streams = await Promise.all(["b", "d"].map((name) => listen(`${pere.url}/feed/here?device=${name}`)));
    expect(await names("/devices/here?connected=true")).toEqual(["b", "d"]);
    expect(await names("/devices/here?connected=false")).toEqual(["a", "c"]);
    expect(await allNames("/devices/here?connected=true&limit=1")).toEqual(["b", "d"]);
    expect(await names("/devices/here?connected=true&search=D&sort=seen")).toEqual(["d"]);
    for (const stream of streams) stream.close();
    await until(async () => (await names("/devices/here?connected=true")).length === 0);
  });

  it("devices are sorted by what they owe, most first, and by name where that is equal", async () => {
    await enrol("owed", "none", "one", "three", "two", "too");
    const ids = [1, 2, 3].map((n) => push(pere.url, "owed", n));
    const [first, second, third] = await Promise.all(ids);
    for (const id of [first!, second!, third!]) await give(pere.url, "owed", id, "none", "done");
    for (const id of [first!, second!]) await give(pere.url, "owed", id, "one", "failed");
    for (const device of ["two", "too"]) await give(pere.url, "owed", first!, device, "done");
    const expected = ["three", "too", "two", "one", "none"];
    const { body } = await get("/devices/owed?sort=pending");
    expect(body.devices.map(({ pending }: { pending: number }) => pending)).toEqual([3, 2, 2, 1, 0]);
    expect(await names("/devices/owed?sort=pending")).toEqual(expected);
    for (const limit of [1, 2, 3, 5])
      expect(await allNames(`/devices/owed?sort=pending&limit=${limit}`)).toEqual(expected);
    expect(await allNames("/devices/owed?sort=pending&search=T&limit=1")).toEqual(["three", "too", "two"]);
    expect(await names("/devices/owed?sort=name")).toEqual([...expected].sort());
  });

  it("devices are sorted by their last sign of life, those that never gave one first", async () => {
    await enrol("seen", "never-b", "never-a", "old", "young");
    for (const device of ["old", "middle", "young"]) {
      now += 1_000;
      (await listen(`${pere.url}/feed/seen?device=${device}`)).close();
    }
    const expected = ["never-a", "never-b", "old", "middle", "young"];
    expect(await names("/devices/seen?sort=seen")).toEqual(expected);
    await until(() => pere.engine.held.feeds === 0);
    for (const limit of [1, 2, 4, 5])
      expect(await allNames(`/devices/seen?sort=seen&limit=${limit}`)).toEqual(expected);
  });

  it("a page of a channel of many devices is complete in each order", async () => {
    const many = Array.from({ length: 1_200 }, (_, n) => `d${String(n).padStart(4, "0")}`);
    await enrol("many", ...many);
    for (const query of ["?sort=name", "?sort=pending", "?sort=seen", "?search=d", "?connected=false"])
      expect([query, await allNames(`/devices/many${query}&limit=500`)]).toEqual([query, many]);
  });
});

test("the directory needs the right to push", async () => {
  const guarded = await startWith();
  const tokenOf = (push: string[], feed: string[]): Promise<string> =>
    issueToken({ secret: SECRET, now: Date.now }, { sub: "till", push, feed, days: 1 });
  const status = async (path: string, token: string | null): Promise<number> =>
    (await ask(`${guarded.url}${path}`, { headers: token === null ? {} : { Authorization: `Bearer ${token}` } }))
      .status;
  const [publisher, device] = [await tokenOf(["orders"], []), await tokenOf(["other"], ["orders"])];
  await ask(`${guarded.url}/devices/orders/till`, { method: "PUT", headers: { Authorization: `Bearer ${publisher}` } });
  for (const path of ["/devices/orders/till", "/devices/orders/till/receipts", "/devices/orders?sort=seen"]) {
    expect([path, await status(path, null)]).toEqual([path, 401]);
    expect([path, await status(path, device)]).toEqual([path, 403]);
    expect([path, await status(path, publisher)]).toEqual([path, 200]);
  }
  await guarded.stop();
});
