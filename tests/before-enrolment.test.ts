/**
 * What was pushed before a device was enrolled is not for it, whatever place it comes with: an id that it had in an enrolment that ended, an id of
 * somebody else's, `since`. Only what names it is. So whatever a feed gives to a device, its receipt is taken.
 *
 * On either store, by each of the three transports.
 */
import { afterAll, describe, expect, test } from "bun:test";
import type { Service } from "../index.ts";
import { ask, connect, give, listen, push, start, startOn, until } from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

interface Given {
  readonly id: string;
}

/** The ids that a feed gives until it gives this one. */
type Read = (url: string, last: string) => Promise<string[]>;

const TRANSPORTS: [string, Read][] = [
  [
    "an event stream",
    async (url, last) => {
      const stream = await listen(url);
      await until(() => stream.ids.includes(last), last);
      stream.close();
      return stream.ids as string[];
    },
  ],
  [
    "a WebSocket",
    async (url, last) => {
      const { socket, messages } = await connect(url);
      const ids = (): string[] => messages.filter(({ pere }) => pere === undefined).map(({ id }) => id as string);
      await until(() => ids().includes(last), last);
      socket.close();
      return ids();
    },
  ],
  [
    "a long-poll",
    async (url, last) => {
      const ids: string[] = [];
      for (let from = url; !ids.includes(last);) {
        const { body } = await ask(`${from}&wait=5`, { headers: { Accept: "application/json" } });
        ids.push(...(body.events as Given[]).map(({ id }) => id));
        from = `${url.replace(/&(last-event-id|since)=[^&]*/g, "")}&last-event-id=${body.last}`;
      }
      return ids;
    },
  ],
];

let redis: RedisServer | undefined;
const services: Service[] = [];
afterAll(async () => {
  for (const service of services) await service.stop();
  await redis?.end();
});
const STORES: [string, () => Promise<Service>, string | null][] = [
  ["SQLite", () => start(), null],
  ["Redis", async () => startOn((redis = await startRedis()).url), noRedis],
];

describe.each(STORES)("on %s", (_, open, missing) => {
  const it = test.skipIf(missing !== null);
  let channels = 0;
  let opening: Promise<Service> | undefined;
  const prepare = async () => {
    const pere = await (opening ??= open().then((service) => (services.push(service), service)));
    const channel = `c${++channels}`;
    const device = (name: string, method: string) => ask(`${pere.url}/devices/${channel}/${name}`, { method });
    return { url: pere.url, channel, device, feed: `${pere.url}/feed/${channel}` };
  };

  describe.each(TRANSPORTS)("by %s", (_, read) => {
    it("a retired device that returns with its last position gets nothing from the time between", async () => {
      const { url, channel, device, feed } = await prepare();
      await device("d", "PUT");
      await device("e", "PUT");
      const first = await push(url, channel, 1);
      const named = await push(url, channel, "named before it left", "?to=d");
      await device("d", "DELETE");
      await push(url, channel, 2);
      const toIt = await push(url, channel, "named while it was away", "?to=d,e");
      await device("d", "PUT");
      const last = await push(url, channel, 3);
      const ids = await read(`${feed}?device=d&last-event-id=${first}`, last);
      expect(ids).toEqual([toIt, last]);
      for (const id of ids) expect((await give(url, channel, id, "d", "done")).status).toBe(200);
      expect((await give(url, channel, named, "d", "done")).status).toBe(422);
    });

    it("a new device with another's position, or with since, gets only events pushed after its enrolment", async () => {
      const { url, channel, device, feed } = await prepare();
      await device("old", "PUT");
      const first = await push(url, channel, 1);
      await push(url, channel, 2);
      for (const [n, place] of [`last-event-id=${first}`, `since=${first}`, "since=earliest"].entries()) {
        await device(`new-${n}`, "PUT");
        const last = await push(url, channel, "from then on");
        const ids = await read(`${feed}?device=new-${n}&${place}`, last);
        expect(ids).toEqual([last]);
        expect((await give(url, channel, last, `new-${n}`, "done")).status).toBe(200);
      }
    });

    it("an enrolled device continues from its position, and does not get what it answered", async () => {
      const { url, channel, device, feed } = await prepare();
      await device("d", "PUT");
      const first = await push(url, channel, 1);
      const second = await push(url, channel, 2);
      const last = await push(url, channel, 3);
      await give(url, channel, second, "d", "done");
      expect(await read(`${feed}?device=d&last-event-id=${first}`, last)).toEqual([last]);
    });
  });
});
