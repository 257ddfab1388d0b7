/**
 * Channels that nobody pushed to: following one makes none, a device that opens a feed there is enrolled all the same, and what only feeds have
 * made is not listed and goes again. On both stores.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { EventDraft } from "../engine/model.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { type Store, UNUSED_MS_MIN } from "../engine/store.ts";
import type { Service } from "../index.ts";
import { ask, connect, listen, push, spawn, start, startOn, temporary, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const T = Date.UTC(2026, 0, 1);
const DAY = 24 * 3_600_000;
const EVENT: EventDraft = {
  type: null,
  data: "1",
  to: null,
  ttl: null,
  deadline: null,
  remind: null,
  key: null,
  attempts: null,
  where: null,
};
/** A week is kept. */
const week = (now: number) => ({ count: 10, before: now - 7 * DAY });

let redis: RedisServer;
const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
if (noRedis === null) {
  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.end());
}

let prefixes = 0;
const STORES: readonly (readonly [name: string, skip: string | null, open: () => Promise<Store>])[] = [
  ["SQLite", null, async () => new SqliteStore({ path: ":memory:" })],
  ["Redis", noRedis, () => RedisStore.open({ urls: [redis.url], prefix: `unused-${++prefixes}:` })],
];

describe.each(STORES)("in %s", (_, skip, openStore) => {
  const open = async (): Promise<Store> => {
    const store = await openStore();
    closing.push(() => store.close());
    return store;
  };
  const listed = async (store: Store): Promise<string[]> =>
    (await store.channels("", 10)).items.filter(({ isUnused }) => !isUnused).map(({ channel }) => channel);
  const storeTest = (what: string, run: () => Promise<void>) =>
    skip === null ? test(what, run) : test.skip(`${what} (skipped: ${skip})`, run);

  storeTest("following creates no channel, and the first stored entry has the announced epoch", async () => {
    const store = await open();
    const { epoch } = await store.open("orders");
    expect((await store.open("orders")).epoch).toBe(epoch);
    expect(await store.heads("orders")).toBeNull();
    expect(await listed(store)).toEqual([]);
    expect((await store.append("orders", [EVENT], T)).epoch).toBe(epoch);
    expect(await store.open("orders")).toMatchObject({ epoch, events: { head: 1, floor: 0 } });
    expect(await listed(store)).toEqual(["orders"]);
  });

  storeTest(
    "a device that joins is in the first event's audience, and its channel is listed from then on",
    async () => {
      const store = await open();
      const { epoch } = await store.open("orders");
      expect(await store.join("orders", "till", T)).toMatchObject({ epoch, enrolled: false, joined: 0 });
      expect(await store.join("orders", "till", T + 1)).toMatchObject({ epoch, enrolled: true });
      expect((await store.devices("orders", "", 10, T)).items.map(({ device }) => device)).toEqual(["till"]);
      expect(await listed(store)).toEqual([]);
      expect(await store.append("orders", [EVENT], T)).toMatchObject({ epoch, first: 1, addressed: 1 });
      expect(await listed(store)).toEqual(["orders"]);
    },
  );

  storeTest("a device that a publisher enrols, and a hook, bring a channel into use", async () => {
    const store = await open();
    for (const channel of ["a", "b", "c"]) await store.join(channel, "till", T);
    await store.enrol("a", "kiosk", T);
    await store.putHook("b", { name: "h", url: "https://a.example/", secret: null, on: ["receipt"] }, "whsec_x", T);
    expect(await listed(store)).toEqual(["a", "b"]);
    while (await store.trim(null, week(T + 30 * DAY), T + 30 * DAY));
    expect(await listed(store)).toEqual(["a", "b"]);
    expect((await store.devices("a", "", 10, T)).items).toHaveLength(2);
    expect(await store.heads("c")).toBeNull();
  });

  storeTest("a channel without events is unused when its last device and its last hook are gone", async () => {
    const store = await open();
    const hook = { name: "h", url: "https://a.example/", secret: null, on: ["receipt"] as const };
    await store.enrol("a", "till", T);
    await store.putHook("a", hook, "whsec_x", T);
    await store.putHook("b", hook, "whsec_x", T);
    await store.enrol("c", "till", T);
    await store.append("c", [EVENT], T);
    expect(await listed(store)).toEqual(["a", "b", "c"]);
    expect(await store.retire("a", "till", T)).toBe(true);
    expect(await store.retire("c", "till", T)).toBe(true);
    expect(await listed(store)).toEqual(["a", "b", "c"]);
    expect(await store.dropHook("a", "h", Date.now())).toBe(true);
    expect(await store.dropHook("b", "h", Date.now())).toBe(true);
    await until(async () => (await listed(store)).join() === "c", "the others to be unused");
    const later = Date.now() + 8 * DAY;
    while (await store.trim(null, week(later), later));
    expect([await store.heads("a"), await store.heads("b")]).toEqual([null, null]);
    expect(await store.heads("c")).not.toBeNull();
  });

  storeTest(
    "an unused channel is deleted when none of its devices was heard from for as long as events are kept",
    async () => {
      const store = await open();
      const trim = async (now: number): Promise<void> => {
        while (await store.trim(null, week(now), now));
      };
      const { epoch } = await store.join("old", "till", T);
      for (const channel of ["seen", "came", "used"]) await store.join(channel, "till", T);
      for (let n = 0; n < 450; n++) await store.join(`many-${n}`, "till", T);
      const later = T + 6 * DAY;
      await store.seen("seen", new Map([["till", later]]));
      await store.join("came", "till", later);
      await store.append("used", [EVENT], T);
      await trim(T + 7 * DAY - 1);
      expect(await store.heads("old")).not.toBeNull();
      await trim(T + 7 * DAY);
      for (const channel of ["old", "many-0", "many-449"]) expect(await store.heads(channel)).toBeNull();
      for (const channel of ["seen", "came", "used"]) expect(await store.heads(channel)).not.toBeNull();
      // Who follows it still does: it comes back as what it was.
      expect((await store.open("old")).epoch).toBe(epoch);
      expect((await store.devices("old", "", 10, T)).items).toEqual([]);
      expect(await store.append("old", [EVENT], T)).toMatchObject({ epoch, first: 1, addressed: 0 });
      await trim(later + 7 * DAY);
      expect(await store.heads("seen")).toBeNull();
      expect(await store.heads("came")).toBeNull();
      expect((await store.devices("used", "", 10, T)).items).toHaveLength(1);
    },
  );

  storeTest(
    "an unused channel stays at least as long as a live device's feed may be silent, however short the retention",
    async () => {
      const store = await open();
      await store.join("orders", "till", T);
      const trim = (now: number) => store.trim(null, { count: 1, before: now }, now);
      await trim(T + UNUSED_MS_MIN - 1);
      expect(await store.heads("orders")).not.toBeNull();
      await trim(T + UNUSED_MS_MIN);
      expect(await store.heads("orders")).toBeNull();
    },
  );
});

const SERVICES: readonly (readonly [name: string, skip: string | null, start: () => Promise<Service>])[] = [
  ["SQLite", null, () => start()],
  [
    "Redis",
    noRedis,
    async () => {
      const own = await startRedis();
      closing.push(() => own.end());
      return startOn(own.url);
    },
  ],
];

const JSON_ONLY = { Accept: "application/json" };

describe.each(SERVICES)("over HTTP, on %s", (_, skip, startService) => {
  const serviceTest = (what: string, run: (pere: Service) => Promise<void>) =>
    test.skipIf(skip !== null)(skip === null ? what : `${what} (skipped: ${skip})`, async () => {
      const pere = await startService();
      closing.push(() => pere.stop());
      await run(pere);
    });

  serviceTest("feeds of all kinds on names without events leave no channel in the list", async ({ url }) => {
    for (let n = 0; n < 40; n++) {
      const names = Array.from({ length: 16 }, (_, m) => `shop.${n}.${m}`).join();
      const query = n % 2 === 0 ? "?wait=0&device=till" : "?wait=0";
      expect((await ask(`${url}/feed/${names}${query}`, { headers: JSON_ONLY })).status).toBe(200);
    }
    expect((await ask(`${url}/feedback/shop.news?wait=0`, { headers: JSON_ONLY })).status).toBe(200);
    const [stream, socket] = [await listen(`${url}/feed/shop.sse`), await connect(`${url}/feed/shop.ws?device=d`)];
    const channels = async () => (await ask(`${url}/channels`)).body.channels;
    // As long as a device is connected it is to be seen; on Redis a little longer, because other instances learn of it a little later.
    await until(async () => (await channels()).length === 1, "the others to be gone");
    expect(await channels()).toMatchObject([{ channel: "shop.ws", events: 0, devices: 1, connected: 1, last: null }]);
    expect((await ask(`${url}/channels?limit=1`)).body.next).toBeNull();
    expect((await ask(`${url}/events/shop.sse`)).status).toBe(404);
    stream.close();
    socket.socket.close();
    await until(async () => (await channels()).length === 0, "the socket's end");
    await push(url, "shop.ws", 1);
    expect(await channels()).toMatchObject([{ channel: "shop.ws", events: 1, devices: 1, connected: 0 }]);
  });

  serviceTest("a device that joined before the first push is in its audience, connected or not", async ({ url }) => {
    const gone = await ask(`${url}/feed/orders?device=gone&wait=0`, { headers: JSON_ONLY });
    const here = await listen(`${url}/feed/orders?device=here`);
    const { body } = await ask(`${url}/push/orders`, { body: 1 });
    expect(body.audience).toEqual({ addressed: 2, connected: 1 });
    expect((await here.have(1))[0]!.id).toBe(body.id);
    const back = await ask(`${url}/feed/orders?device=gone&wait=0&last-event-id=${gone.body.last}`, {
      headers: JSON_ONLY,
    });
    expect(back.body.events).toHaveLength(1);
    expect(back.body.gaps).toBeUndefined();
    here.close();
  });

  serviceTest(
    "a reader that started before the first push gets everything, without a gap, on all transports",
    async ({ url }) => {
      const stream = await listen(`${url}/feed/orders`);
      const { socket, messages } = await connect(`${url}/feed/orders`);
      const said = await listen(`${url}/feedback/orders`);
      const { last } = (await ask(`${url}/feed/orders?wait=0`, { headers: JSON_ONLY })).body;
      const resumed = (await stream.next()).id!;
      const id = await push(url, "orders", 1);
      expect((await stream.have(1))[0]!.id).toBe(id);
      await until(() => messages.some((message) => message.id === id), "the event on the socket");
      const other = await push(url, "orders", 2, "?to=d");
      await ask(`${url}/feedback/orders`, { body: { event: other, device: "d", status: "done" } });
      await said.have(1);
      for (const position of [last, resumed]) {
        const { body } = await ask(`${url}/feed/orders?wait=0&last-event-id=${position}`, { headers: JSON_ONLY });
        expect(body.events.map((event: { id: string }) => event.id)).toEqual([id]);
        expect(body.gaps).toBeUndefined();
      }
      expect([stream, said].flatMap(({ messages }) => messages.map(({ event }) => event))).not.toContain("pere.gap");
      expect(messages.some(({ pere }) => pere === "gap")).toBe(false);
      socket.close();
      stream.close();
      said.close();
    },
  );
});

test.skipIf(noRedis !== null)(
  "a reader at one instance has no gap when the first push is sent to another",
  async () => {
    const own = await startRedis();
    closing.push(() => own.end());
    const [here, there] = [await startOn(own.url), await startOn(own.url)];
    closing.push(
      () => here.stop(),
      () => there.stop(),
    );
    const stream = await listen(`${here.url}/feed/orders`);
    const device = await listen(`${here.url}/feed/others?device=till`);
    const id = await push(there.url, "orders", 1);
    expect((await stream.have(1))[0]!.id).toBe(id);
    expect(stream.messages.map(({ event }) => event)).not.toContain("pere.gap");
    expect((await ask(`${there.url}/push/others`, { body: 1 })).body.audience.addressed).toBe(1);
    expect((await device.have(1)).length).toBe(1);
    for (const pere of [here, there])
      expect((await ask(`${pere.url}/channels`)).body.channels).toMatchObject([
        { channel: "orders" },
        { channel: "others" },
      ]);
  },
);

test("a reader of a channel without events has no gap after a restart, and a device is still enrolled", async () => {
  const db = join(temporary(), "pere.db");
  const first = await spawn({ PERE_DB: db });
  const { last } = (await ask(`${first.url}/feed/orders?wait=0`, { headers: JSON_ONLY })).body;
  await ask(`${first.url}/feed/others?wait=0&device=till`, { headers: JSON_ONLY });
  await first.end("SIGKILL");
  const second = await spawn({ PERE_DB: db });
  const again = await ask(`${second.url}/feed/orders?wait=0&last-event-id=${last}`, { headers: JSON_ONLY });
  expect(again.body).toMatchObject({ events: [] });
  expect(again.body.gaps).toBeUndefined();
  expect((await ask(`${second.url}/channels`)).body.channels).toEqual([]);
  expect((await ask(`${second.url}/push/others`, { body: 1 })).body.audience.addressed).toBe(1);
  await second.end("SIGTERM");
});
