/**
 * Totals of channels, devices and connected devices, of more channels than are looked at each second.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { issueToken } from "../engine/auth/issue.ts";
import { Presence } from "../engine/feeds/presence.ts";
import { TotalsCounter } from "../engine/feeds/totals.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import type { Service } from "../index.ts";
import { draft, T } from "./contract/calls.ts";
import {
  ask,
  listen,
  openStream,
  push,
  SECRET,
  start,
  startOn,
  startWith,
  type Stream,
  until,
} from "./support/harness.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

let redis: RedisServer | undefined;
afterAll(() => redis?.end());

interface Totals {
  readonly channels: number;
  readonly devices: number;
  readonly connected: number;
  readonly at: string | null;
}

/** The totals of the newest overview. */
const totalsOf = (stream: Stream): Totals | null | undefined =>
  stream.messages
    .filter(({ event }) => event === "pere.overview")
    .map(({ data }) => (JSON.parse(data) as { totals: Totals | null }).totals)
    .at(-1);

const CHANNELS = 230;
const nameOf = (n: number): string => `c.${String(n).padStart(3, "0")}`;

describe.each([
  ["SQLite", async () => start(), null],
  ["Redis", async () => startOn((redis ??= await startRedis()).url), noRedis],
] as const)("on %s", (store, open, missing) => {
  test.skipIf(missing !== null)(
    "are true beyond the channels that are listed",
    async () => {
      const services: Service[] = [await open()];
      if (store === "Redis") services.push(await open());
      const [pere, other = pere] = services as [Service, Service?];
      await Promise.all(Array.from({ length: CHANNELS }, (_, n) => push(pere.url, nameOf(n), n)));
      for (const n of [0, 229])
        for (const device of ["a", "b"]) await ask(`${pere.url}/devices/${nameOf(n)}/${device}`, { method: "PUT" });
      const devices = [
        await listen(`${pere.url}/feed/${nameOf(229)}?device=a`),
        await listen(`${other.url}/feed/${nameOf(228)}?device=z`),
        await listen(`${other.url}/feed/nobody?device=only-here`),
      ];
      const stream = await openStream(`${pere.url}/watch`);
      await until(() => totalsOf(stream) !== undefined, "the first frame");
      const counted = await until(
        () => {
          const totals = totalsOf(stream);
          return totals?.connected === 3 && totals;
        },
        () => `all connected; came ${JSON.stringify(totalsOf(stream))}`,
      );
      expect(counted).toEqual({ channels: CHANNELS + 1, devices: 6, connected: 3, at: expect.any(String) });
      devices[1]!.close();
      await until(() => totalsOf(stream)?.connected === 2, "one of them gone");
      for (const one of [...devices, stream]) one.close();
      for (const service of services) await service.stop();
    },
    60_000,
  );
});

test("are of now where all channels are listed, and of no channel that the token may not see", async () => {
  const pere = await startWith();
  const tokenOf = (list: string[]): Promise<string> =>
    issueToken({ secret: SECRET, now: Date.now }, { sub: "x", push: list, feed: [], days: 1 });
  const bearer = async (list: string[]) => ({ Authorization: `Bearer ${await tokenOf(list)}` });
  const all = await bearer(["*"]);
  for (const [channel, device] of [
    ["shop.a", "x"],
    ["shop.b", "y"],
    ["stock", "z"],
  ])
    await ask(`${pere.url}/devices/${channel}/${device}`, { method: "PUT", headers: all });
  const seen = async (list: string[]): Promise<unknown> => {
    const stream = await openStream(`${pere.url}/watch`, await bearer(list));
    const totals = await until(() => totalsOf(stream), "the first frame");
    stream.close();
    return totals;
  };
  expect(await seen(["*"])).toEqual({ channels: 3, devices: 3, connected: 0, at: null });
  expect(await seen(["shop.*"])).toEqual({ channels: 2, devices: 2, connected: 0, at: null });
  expect(await seen(["stock"])).toEqual({ channels: 1, devices: 1, connected: 0, at: null });
  await pere.stop();
});

test("are counted rarely, once for all that see the same channels, and only while somebody asks", async () => {
  const store = new SqliteStore({ path: ":memory:" });
  await Promise.all(Array.from({ length: 450 }, (_, n) => store.append(`c${n}`, [draft(n)], T)));
  await store.enrol("c7", "till", T);
  let pages = 0;
  const { channels } = store;
  store.channels = (...asked) => {
    pages++;
    return channels.apply(store, asked);
  };
  let steady = 1_000;
  const presence = new Presence<unknown>(
    store,
    () => T,
    () => {},
  );
  const totals = new TotalsCounter(
    store,
    presence,
    () => T,
    () => steady,
  );
  expect(totals.of(null)).toBeNull();
  for (let n = 0; n < 10; n++) expect(totals.of(null)).toBeNull();
  const first = await until(() => totals.of(null));
  expect(first).toEqual({ channels: 450, devices: 1, connected: 0, at: T });
  expect(pages).toBe(5);
  await store.enrol("c8", "till", T);
  for (steady += 4_900; steady < 5_990; steady += 10) expect(totals.of(null)).toEqual(first);
  expect(pages).toBe(5);
  steady += 100;
  totals.of(null);
  expect((await until(() => totals.of(null)!.devices === 2 && totals.of(null)))!.devices).toBe(2);
  expect(pages).toBe(10);
  // A part of the channels is a count of its own, and looks at no others.
  const scope = { names: ["c7"], prefixes: ["c44"] };
  expect(await until(() => totals.of(scope))).toEqual({ channels: 12, devices: 1, connected: 0, at: T });
  expect(pages).toBe(11);
  await store.close();
});
