/**
 * `GET /attention`: who did not do it, in all channels that the caller may push to, worst first. On both stores.
 */
import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { issueToken } from "../engine/auth/issue.ts";
import { readAttention } from "../clients/sdk/index.ts";
import { OVERDUE_MS } from "../engine/attention.ts";
import { ask, give, listen, openStream, push, SECRET, start, startOn, startWith, until } from "./support/harness.ts";
import { Python } from "./support/python.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());

const T = Date.UTC(2026, 0, 1);
const at = (ms: number): string => new Date(T + ms).toISOString();

const STORES = [
  ["SQLite", null],
  ["Redis", noRedis],
] as const;

describe.each(STORES)("on %s, attention", (store, missing) => {
  const it = test.skipIf(missing !== null);
  let pere: Service;
  let now = T;
  beforeEach(async () => {
    if (missing !== null) return;
    now = T;
    const options = { now: () => now };
    if (store === "SQLite") return void (pere = await start(options));
    redis ??= await startRedis();
    await redis.ask("FLUSHALL");
    pere = await startOn(redis.url, options);
  });
  afterEach(() => pere?.stop());

  const read = async (query = "") => (await ask(`${pere.url}/attention${query}`)).body;
  const enrol = async (channel: string, ...devices: string[]) => {
    for (const device of devices) await ask(`${pere.url}/devices/${channel}/${device}`, { method: "PUT" });
  };

  it("is empty where nothing is wrong, and says when that was", async () => {
    await enrol("orders", "a");
    await push(pere.url, "orders", 1, "?deadline=60");
    expect(await read()).toEqual({
      at: at(0),
      totals: { devices: 0, failed: 0, missing: 0, overdue: 0 },
      ...{ devices: [], events: [], hooks: [], channels: [] },
    });
  });

  it("lists devices, events and channels, worst first", async () => {
    await enrol("orders", "a", "b", "c");
    await enrol("alarms", "d");
    const [first, second] = [await push(pere.url, "orders", 1, "?type=order"), await push(pere.url, "alarms", 1)];
    now += 1_000;
    const third = await push(pere.url, "orders", 2, "?deadline=60");
    await give(pere.url, "orders", first, "a", "done");
    await give(pere.url, "orders", first, "b", "failed");
    await give(pere.url, "orders", third, "a", "done");
    now += OVERDUE_MS;
    const found = await until(async () => {
      const body = await read();
      return body.totals.missing === 2 && body.totals.overdue === 2 && body;
    }, "what is missing and overdue");
    const device = { failed: 0, missing: 0, overdue: 0, since: at(0), connected: false, seenAt: null };
    const nobody = { pending: 0, received: 0, working: 0, deferred: 0, done: 0, failed: 0, missing: 0, withdrawn: 0 };
    expect(found).toMatchObject({
      at: at(OVERDUE_MS + 1_000),
      totals: { devices: 3, failed: 1, missing: 2, overdue: 2 },
      devices: [
        { ...device, channel: "orders", device: "b", failed: 1, missing: 1, seenAt: expect.anything() },
        { ...device, channel: "orders", device: "c", missing: 1, overdue: 1 },
        { ...device, channel: "alarms", device: "d", overdue: 1 },
      ],
      events: [
        { id: first, channel: "orders", type: "order", deadline: null, receipts: { done: 1, failed: 1, pending: 1 } },
        { id: third, channel: "orders", deadline: at(61_000), receipts: { ...nobody, done: 1, missing: 2 } },
        { id: second, channel: "alarms", at: at(0), type: null, receipts: { ...nobody, pending: 1 } },
      ],
      channels: [
        { channel: "orders", devices: 2, failed: 1, missing: 2, overdue: 1, since: at(0) },
        { channel: "alarms", devices: 1, failed: 0, missing: 0, overdue: 1, since: at(0) },
      ],
      hooks: [],
    });
    const short = await read("?limit=1");
    expect(short).toEqual({
      ...found,
      ...{ devices: found.devices.slice(0, 1), events: found.events.slice(0, 1), channels: found.channels.slice(0, 1) },
    });
  });

  it("leaves out what was done late, and devices that were retired", async () => {
    await enrol("orders", "a", "b", "c");
    const [first, second] = [await push(pere.url, "orders", 1), await push(pere.url, "orders", 2, "?deadline=60")];
    now += OVERDUE_MS;
    await until(async () => (await read()).totals.missing === 3, "missing devices");
    for (const event of [first, second]) await give(pere.url, "orders", event, "a", "done");
    await ask(`${pere.url}/devices/orders/b`, { method: "DELETE" });
    const { totals, devices, channels } = await read();
    expect(totals).toEqual({ devices: 1, failed: 0, missing: 1, overdue: 1 });
    expect(devices).toMatchObject([{ device: "c", missing: 1, overdue: 1 }]);
    expect(channels).toEqual([{ channel: "orders", devices: 1, failed: 0, missing: 1, overdue: 1, since: at(0) }]);
  });

  it("is told live, also of what another instance stored", async () => {
    await enrol("orders", "a", "b");
    const [first, second] = [await push(pere.url, "orders", 1), await push(pere.url, "orders", 2)];
    const stream = await openStream(`${pere.url}/watch`);
    const told = () =>
      stream.messages
        .filter(({ event }) => event === "pere.trouble")
        .map(({ data }) => JSON.parse(data).totals as Record<string, number>);
    const nothing = { devices: 0, failed: 0, missing: 0, overdue: 0 };
    await until(() => told().length === 1, "the first frame");
    expect(told()).toEqual([nothing]);
    const other = store === "Redis" ? await startOn(redis!.url, { now: () => now }) : pere;
    await give(other.url, "orders", first, "a", "done");
    await give(other.url, "orders", first, "b", "failed");
    await until(() => told().length === 2, "a failed receipt");
    expect(told()[1]).toEqual({ ...nothing, devices: 1, failed: 1 });
    now += OVERDUE_MS;
    await until(() => told().at(-1)!.overdue === 2, "overdue receipts");
    expect(told().at(-1)).toEqual({ devices: 2, failed: 1, missing: 0, overdue: 2 });
    const frames = told().length;
    await give(other.url, "orders", second, "a", "done");
    await give(other.url, "orders", second, "b", "done");
    await until(() => told().at(-1)!.overdue === 0, "receipts that are no longer overdue");
    expect(told().length).toBeGreaterThan(frames);
    stream.close();
    if (other !== pere) await other.stop();
  });

  it("is read by the SDK and by the Python client, and counted in metrics", async () => {
    await enrol("orders", "a", "b");
    const id = await push(pere.url, "orders", 1);
    await give(pere.url, "orders", id, "a", "failed");
    now += OVERDUE_MS;
    const expected = await until(async () => {
      const body = await read("?limit=1");
      return body.totals.overdue === 1 && body;
    }, "what is overdue");
    expect(await readAttention({ url: pere.url, limit: 1 })).toEqual(expected);
    expect((await readAttention({ url: pere.url })).devices.map(({ device }) => device)).toEqual(["a", "b"]);
    const refused = await readAttention({ url: pere.url, limit: 0 }).catch((error: unknown) => error);
    expect(refused).toMatchObject({ name: "PereError", status: 422 });
    expect(await readAttention({ url: `${pere.url}/health/no`, giveUpMs: 0 }).catch(({ name }: Error) => name)).toBe(
      "PereError",
    );
    const metrics = (await ask(`${pere.url}/metrics`)).text;
    expect(metrics).toContain("pere_devices_in_trouble 2\n");
    for (const line of ['{kind="failed"} 1', '{kind="missing"} 0', '{kind="overdue"} 1'])
      expect(metrics).toContain(`pere_troubles${line}\n`);
    if (!Bun.which("python3")) return;
    const script = `import asyncio, json, pere, sys
print(json.dumps([pere.attention(sys.argv[1], limit=1), asyncio.run(pere.aattention(sys.argv[1], limit=1))]))`;
    const python = new Python(["-c", script, pere.url]);
    expect(await python.ended()).toBe(0);
    expect(JSON.parse(python.said)).toEqual([expected, expected]);
  });

  it("says who is connected", async () => {
    const feed = await listen(`${pere.url}/feed/orders?device=a`);
    await enrol("orders", "b");
    const id = await push(pere.url, "orders", 1);
    for (const device of ["a", "b"]) await give(pere.url, "orders", id, device, "failed");
    const connected = async () => (await read()).devices.map((one: { connected: boolean }) => one.connected);
    expect(await connected()).toEqual([true, false]);
    feed.close();
    await until(async () => !(await connected())[0], "a disconnected device");
  });
});

test("attention shows the channels that the token may push to, and needs such a right", async () => {
  const pere = await startWith();
  try {
    const tokenFor = async (push: string[], feed: string[] = []) => ({
      Authorization: `Bearer ${await issueToken({ secret: SECRET, now: Date.now }, { sub: "p", push, feed, days: 1 })}`,
    });
    const all = await tokenFor(["*"], ["*"]);
    for (const channel of ["shop.1", "shop.2", "others"]) {
      await ask(`${pere.url}/devices/${channel}/p`, { method: "PUT", headers: all });
      const { id } = (await ask(`${pere.url}/push/${channel}`, { body: 1, headers: all })).body;
      await ask(`${pere.url}/feedback/${channel}`, {
        body: { event: id, device: "p", status: "failed" },
        headers: all,
      });
    }
    const seen = async (headers: Record<string, string>) => {
      const { status, body } = await ask(`${pere.url}/attention`, { headers });
      return status === 200
        ? [body.totals.failed, ...body.channels.map((one: { channel: string }) => one.channel).toSorted()]
        : status;
    };
    expect(await seen(all)).toEqual([3, "others", "shop.1", "shop.2"]);
    expect(await seen(await tokenFor(["shop.*"]))).toEqual([2, "shop.1", "shop.2"]);
    expect(await seen(await tokenFor(["others", "shop.2"]))).toEqual([2, "others", "shop.2"]);
    expect(await seen(await tokenFor(["nothing"]))).toEqual([0]);
    const stream = await openStream(`${pere.url}/watch`, await tokenFor(["shop.*"]));
    const told = await until(() => stream.messages.find(({ event }) => event === "pere.trouble"), "the totals");
    expect(JSON.parse(told.data)).toEqual({ totals: { devices: 2, failed: 2, missing: 0, overdue: 0 } });
    stream.close();
    expect(await seen(await tokenFor([], ["*"]))).toBe(403);
    expect(await seen({})).toBe(401);
    const limits = ["0", "1001", "-1", "x", "1.5", "", "1&limit=2"];
    const answers = limits.map(
      async (limit) => (await ask(`${pere.url}/attention?limit=${limit}`, { headers: all })).status,
    );
    expect(await Promise.all(answers)).toEqual([422, 422, 422, 400, 400, 400, 400]);
  } finally {
    await pere.stop();
  }
});
