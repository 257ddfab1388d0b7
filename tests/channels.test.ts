/**
 * Channels over HTTP, on both stores: searched in all names, and deleted when nothing is left in them.
 */
import { Database } from "bun:sqlite";
import { afterAll, afterEach, describe, expect, spyOn, test } from "bun:test";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Service } from "../index.ts";
import {
  ask,
  give,
  listen,
  openStream,
  push,
  SECRET,
  start,
  startOn,
  startWith,
  temporary,
  until,
} from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());
const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
const opened = async (starting: Promise<Service>): Promise<Service> => {
  const service = await starting;
  closing.push(() => service.stop());
  return service;
};

const T = Date.UTC(2026, 10, 22, 10);
const bearer = (token: string) => ({ headers: { Authorization: `Bearer ${token}` } });
const remove = (url: string, channel: string) => ask(`${url}/channels/${channel}`, { method: "DELETE" });
const listed = async (url: string, query = "", init = {}): Promise<string[]> =>
  (await ask(`${url}/channels${query}`, init)).body.channels.map(({ channel }: { channel: string }) => channel);

const STORES = [
  ["SQLite", (options: object): Promise<Service> => opened(start(options)), null],
  [
    "Redis",
    async (options: object): Promise<Service> => {
      if (redis) await redis.ask("FLUSHALL");
      return opened(startOn((redis ??= await startRedis()).url, options));
    },
    noRedis,
  ],
] as const;

describe.each(STORES)("on %s", (store, open, missing) => {
  const it = test.skipIf(missing !== null);

  it("channels are searched by part of the name, in capitals or not, in pages", async () => {
    const pere = await open({});
    const names = ["Orders.Graz", "menu", "orders.linz", "orders.wien", "stock"];
    for (const name of names) await push(pere.url, name, 1);
    expect(await listed(pere.url, "?search=ORDERS")).toEqual(["Orders.Graz", "orders.linz", "orders.wien"]);
    expect(await listed(pere.url, "?search=.*")).toEqual([]);
    expect(await listed(pere.url, "?search=")).toEqual(names);
    const first = await ask(`${pere.url}/channels?search=orders&limit=2`);
    expect(first.body).toMatchObject({ channels: [{ channel: "Orders.Graz", events: 1 }, {}], next: "orders.linz" });
    const second = await ask(`${pere.url}/channels?search=orders&limit=2&after=${first.body.next}`);
    expect(second.body).toMatchObject({ channels: [{ channel: "orders.wien" }], next: null });
  });

  it("a search looks at every name, and reads only the channels that it finds", async () => {
    const pere = await open({});
    await Promise.all(Array.from({ length: 2_500 }, (_, n) => push(pere.url, `c${n}`, n)));
    await push(pere.url, "z-needle", 1);
    expect(await listed(pere.url, "?search=NEEDLE&limit=10")).toEqual(["z-needle"]);
    expect(await listed(pere.url, "?search=c24")).toHaveLength(111);
  });

  it("an empty channel is deleted, and what it still has is said", async () => {
    let now = T;
    const pere = await open({ now: () => now });
    await ask(`${pere.url}/devices/orders/till`, { method: "PUT" });
    await push(pere.url, "orders", 1, "?ttl=60");
    const refused = await remove(pere.url, "orders");
    expect([refused.status, refused.body.type, refused.body.detail]).toEqual([
      409,
      "urn:pere:conflict",
      "channel orders can't be deleted: it still has events that have not expired and 1 device",
    ]);
    await ask(`${pere.url}/devices/orders/till`, { method: "DELETE" });
    expect((await remove(pere.url, "orders")).status).toBe(409);
    now += 60_000;
    expect((await remove(pere.url, "orders")).status).toBe(204);
    expect(await listed(pere.url)).toEqual([]);
    const unknown = await remove(pere.url, "orders");
    expect([unknown.status, unknown.body.detail]).toEqual([404, "channel orders does not exist"]);
    expect((await ask(`${pere.url}/events/orders`)).status).toBe(404);
    for (const path of ["-", "a%20b", "orders?force=1"])
      expect([path, (await remove(pere.url, path)).status]).toEqual([path, 400]);
  });

  it("followers of a deleted channel get a gap, and an old position is never taken for a new one", async () => {
    let now = T;
    const pere = await open({ now: () => now });
    const other = redis && store === "Redis" ? await opened(startOn(redis.url, { now: () => now })) : pere;
    const [here, there] = [await listen(`${pere.url}/feed/orders`), await listen(`${other.url}/feed/orders`)];
    const receipts = await listen(`${other.url}/feedback/orders`);
    await ask(`${pere.url}/devices/orders/till`, { method: "PUT" });
    const old = await push(pere.url, "orders", "old", "?ttl=60");
    await give(pere.url, "orders", old, "till", "done");
    await ask(`${pere.url}/devices/orders/till`, { method: "DELETE" });
    await Promise.all([here.have(1), there.have(1), until(() => receipts.events.length > 0)]);
    now += 60_000;
    expect((await remove(pere.url, "orders")).status).toBe(204);
    const fresh = await push(other.url, "orders", "new");
    expect(fresh.split("-")[0]).not.toBe(old.split("-")[0]);
    for (const stream of [here, there]) {
      await stream.have(2);
      expect(await stream.own("gap")).toEqual({ channel: "orders", after: old, from: fresh });
      expect(stream.ids).toEqual([old, fresh]);
    }
    await receipts.own("gap");
    const resumed = await listen(`${other.url}/feed/orders`, { "Last-Event-ID": old });
    expect(await resumed.own("gap")).toEqual({ channel: "orders", after: old, from: fresh });
    await resumed.have(1);
    expect((await ask(`${pere.url}/events/orders/${old}`)).status).toBe(404);
    expect((await give(other.url, "orders", old, "till", "failed")).status).toBe(422);
    expect(await listed(pere.url)).toEqual(["orders"]);
    for (const stream of [here, there, receipts, resumed]) stream.close();
  });
});

test("a feed that is opened while its channel is deleted goes on in the next epoch", async () => {
  let now = T;
  const pere = await opened(start({ now: () => now }));
  const old = await push(pere.url, "orders", "old", "?ttl=60");
  now += 60_000;
  const held = Promise.withResolvers<void>();
  const { open } = SqliteStore.prototype;
  const opening = spyOn(SqliteStore.prototype, "open").mockImplementationOnce(async function (this: SqliteStore, name) {
    const heads = await open.call(this, name);
    await held.promise;
    return heads;
  });
  const stream = openStream(`${pere.url}/feed/orders?since=earliest`);
  try {
    await until(() => opening.mock.calls.length > 0);
    expect((await remove(pere.url, "orders")).status).toBe(204);
  } finally {
    opening.mockRestore();
    held.resolve();
  }
  const feed = await stream;
  const { after, from } = await feed.own("gap");
  expect(after).toBe(old.replace(/1$/, "0"));
  expect(await push(pere.url, "orders", "new")).toBe(from as string);
  await feed.have(1);
  feed.close();
});

test("a search and a deletion respect the rights of the token", async () => {
  const guarded = await opened(startWith());
  const tokenOf = (list: string[], feed: string[] = []): Promise<string> =>
    issueToken({ secret: SECRET, now: Date.now }, { sub: "x", push: list, feed, days: 1 });
  const all = await tokenOf(["*"]);
  for (const name of ["shop.a", "shop.b", "stock.a"])
    await ask(`${guarded.url}/devices/${name}/till`, { method: "PUT", ...bearer(all) });
  for (const name of ["shop.a", "stock.a"])
    await ask(`${guarded.url}/devices/${name}/till`, { method: "DELETE", ...bearer(all) });
  const [shop, device] = [await tokenOf(["shop.*"]), await tokenOf([], ["stock.a"])];
  expect(await listed(guarded.url, "?search=s", bearer(all))).toEqual(["shop.b"]);
  await ask(`${guarded.url}/push/stock.a`, { body: "1", ...bearer(all) });
  await ask(`${guarded.url}/push/shop.a`, { body: "1", ...bearer(all) });
  expect(await listed(guarded.url, "?search=A", bearer(shop))).toEqual(["shop.a"]);
  expect(await listed(guarded.url, "?search=stock", bearer(shop))).toEqual([]);
  expect(await listed(guarded.url, "?search=s", bearer(device))).toEqual([]);
  const status = async (token: string | null): Promise<number> =>
    (await ask(`${guarded.url}/channels/stock.a`, { method: "DELETE", ...(token === null ? {} : bearer(token)) }))
      .status;
  expect([await status(null), await status(shop), await status(device), await status(all)]).toEqual([
    401, 403, 403, 409,
  ]);
});

test.each([
  [`search=${"x".repeat(129)}`, 422],
  ["search=a&search=b", 400],
  ["search=a&limit=0", 422],
  ["search=a&limit=x", 400],
  ["find=a", 400],
])("/channels?%s is refused with %i", async (query, status) => {
  const pere = await opened(start());
  expect((await ask(`${pere.url}/channels?${query}`)).status).toBe(status);
});

test("no row of a deleted channel is left in the file, and a later channel does not get its number", async () => {
  let now = T;
  const path = join(temporary(), "pere.db");
  const pere = await start({ now: () => now }, path);
  for (const device of ["till", "kiosk"]) await ask(`${pere.url}/devices/orders/${device}`, { method: "PUT" });
  for (let n = 0; n < 3; n++)
    await push(pere.url, "orders", n, `?ttl=60&deadline=50${n === 1 ? "&to=till,stranger" : ""}`);
  await ask(`${pere.url}/push/orders?ttl=1`, { body: "1", headers: { "Idempotency-Key": "a" } });
  const old = await push(pere.url, "orders", 9, "?ttl=60&remind=5");
  for (const device of ["till", "kiosk"]) await give(pere.url, "orders", old, device, "done");
  for (const device of ["till", "kiosk"]) await ask(`${pere.url}/devices/orders/${device}`, { method: "DELETE" });
  now += 60_000;
  expect((await remove(pere.url, "orders")).status).toBe(204);
  await push(pere.url, "later", 1);
  await pere.stop();
  const db = new Database(path, { readonly: true });
  expect(db.query<{ id: number; name: string }, []>("SELECT id, name FROM channels").all()).toEqual([
    { id: 2, name: "later" },
  ]);
  const tables = db.query<{ name: string }, []>("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
  const withChannel = tables.filter(({ name }) =>
    db
      .query<{ name: string }, []>(`PRAGMA table_info(${name})`)
      .all()
      .some((column) => column.name === "channel"),
  );
  expect(withChannel.length).toBeGreaterThan(10);
  for (const { name } of withChannel)
    expect([name, db.query<{ n: number }, []>(`SELECT count(*) AS n FROM ${name} WHERE channel = 1`).get()!.n]).toEqual(
      [name, 0],
    );
  db.close();
});
