/**
 * A device that is open at two places: two machines with one name, as a rule. Both are told, on each transport and at whichever instance they are,
 * and so is who reads `/devices`. Many tabs of one browser, which have one address, are nothing to tell.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { isShared, readRanges } from "../engine/addresses.ts";
import type { Service } from "../index.ts";
import { ask, give, listen, push, startWith, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

/** What the test's own proxy, which is on this machine, says of who asked it. */
const from = (address: string): Record<string, string> => ({ "X-Forwarded-For": address });
const [HERE, THERE] = ["192.0.2.1", "192.0.2.2"] as const;
const BOTH = [HERE, THERE];

test.each([
  [[], false],
  [[HERE], false],
  [BOTH, true],
  [[HERE, "2001:db8::/64"], false],
  [["2001:db8:0:1::/64", "2001:db8::/64"], true],
  [[HERE, "2001:db8:0:1::/64", "2001:db8::/64"], true],
])("%p is several places: %p", (addresses, answer) => {
  expect(isShared(addresses)).toBe(answer);
});

let redis: RedisServer;
beforeAll(async () => {
  if (noRedis === null) redis = await startRedis();
});
afterAll(() => redis?.end());

let channels = 0;
for (const [store, count] of [
  ["SQLite", 1],
  ["Redis", 2],
] as const)
  describe.skipIf(store === "Redis" && noRedis !== null)(`on ${store}, with ${count} instances,`, () => {
    const instances: Service[] = [];
    /** Where one machine is connected, and the other. */
    let [one, other] = ["", ""];
    beforeAll(async () => {
      const settings = { access: "open", origins: "*", proxies: readRanges("127.0.0.1/32") } as const;
      for (let n = 0; n < count; n++)
        instances.push(
          await startWith({ ...settings, host: "127.0.0.1", ...(store === "Redis" ? { redis: [redis.url] } : {}) }),
        );
      [one, other] = [instances[0]!.url, instances.at(-1)!.url];
      // Instances know of each other within a second or so.
      const twin = await listen(`${one}/feed/first?device=d`, from(HERE));
      await until(async () => (await devices("first", other))[0]?.connected === true, "the instances to meet");
      twin.close();
    });
    afterAll(() => Promise.all(instances.map((instance) => instance.stop())));

    const fresh = (): string => `shared-${store}-${++channels}`;
    const devices = async (channel: string, url = one): Promise<any[]> =>
      (await ask(`${url}/devices/${channel}`)).body.devices ?? [];
    const shared = { device: "pi", addresses: BOTH };

    test("both are told, once each, and /devices shows the addresses", async () => {
      const channel = fresh();
      const first = await listen(`${one}/feed/${channel}?device=pi`, from(HERE));
      expect((await devices(channel))[0].addresses).toEqual([HERE]);
      const second = await listen(`${other}/feed/${channel}?device=pi`, from(THERE));
      expect(await first.own("shared")).toEqual(shared);
      expect(await second.own("shared")).toEqual(shared);
      for (const url of [one, other])
        await until(async () => (await devices(channel, url))[0].addresses.length === 2, "both addresses");
      expect((await devices(channel))[0]).toMatchObject({ connected: true, addresses: BOTH });
      // It has no position, and what is delivered goes on.
      expect(second.messages.find(({ event }) => event === "pere.shared")!.id).toBeUndefined();
      const event = await push(one, channel, 1);
      await Promise.all([first.have(1), second.have(1)]);
      expect((await give(one, channel, event, "pi", "done")).body.recorded).toBe(1);
      for (const { messages } of [first, second])
        expect(messages.map(({ event: name }) => name).filter((name) => name === "pere.shared")).toHaveLength(1);

      second.close();
      await until(async () => (await devices(channel))[0].addresses.length === 1, "one address");
      first.close();
      await until(async () => (await devices(channel))[0].connected === false, "nobody");
      expect((await devices(channel))[0].addresses).toEqual([]);
    });

    test("many tabs behind one address, and an IPv6 address beside an IPv4 one, are not reported", async () => {
      const channel = fresh();
      const tabs = [
        await listen(`${one}/feed/${channel}?device=pi`, from(HERE)),
        await listen(`${other}/feed/${channel}?device=pi`, from(HERE)),
        await listen(`${one}/feed/${channel}?device=pi`, from("2001:db8::1")),
        await listen(`${one}/feed/${channel}?device=another`, from(THERE)),
        await listen(`${one}/feed/${channel}`, from(THERE)),
      ];
      // A third place is told of at last, and what was to be told before would have come before.
      const third = await listen(`${other}/feed/${channel}?device=pi`, from(THERE));
      const all = { device: "pi", addresses: [HERE, THERE, "2001:db8::/64"] };
      for (const tab of tabs.slice(0, 3)) expect(await tab.own("shared")).toMatchObject({ device: "pi" });
      await until(
        async () => JSON.stringify((await devices(channel)).at(-1).addresses) === JSON.stringify(all.addresses),
        "all addresses",
      );
      for (const tab of tabs.slice(3)) expect(tab.messages.map(({ event }) => event)).toEqual(["pere.ready"]);
      for (const tab of [...tabs, third]) tab.close();
    });

    test("a WebSocket and a long-poll are told too, and a feed of many channels once", async () => {
      const channel = fresh();
      const names = [channel, fresh(), fresh()].join(",");
      const polled = ask(`${one}/feed/${channel}?device=pi&wait=60`, {
        headers: { ...from(HERE), Accept: "application/json" },
      });
      await until(async () => (await devices(channel))[0]?.connected, "the poll");
      const messages: Record<string, unknown>[] = [];
      const socket = new WebSocket(`${other.replace("http", "ws")}/feed/${names}?device=pi`, {
        headers: from(THERE),
      } as unknown as string[]);
      socket.onmessage = ({ data }) => messages.push(JSON.parse(String(data)) as Record<string, unknown>);
      await until(() => messages.some(({ pere }) => pere === "shared"), "the socket to be told");
      expect(messages).toEqual([expect.objectContaining({ pere: "ready" }), { pere: "shared", ...shared }]);
      if (store === "Redis") await until(async () => (await devices(channel))[0].addresses.length === 2, "both");
      await push(one, channel, 1);
      const { body } = await polled;
      expect(body).toEqual({ events: [expect.anything()], last: body.last, shared });
      // Whoever polls next hears of it again, for as long as it is so.
      const again = await ask(`${other}/feed/${channel}?device=pi&wait=0`, {
        headers: { ...from(HERE), Accept: "application/json" },
      });
      expect(again.body.shared).toEqual(shared);
      socket.close();
    });
  });
