/**
 * PERE on a real Redis Cluster: the contract that every store keeps, channels on all nodes, and what only a Cluster does: one node stalls while the
 * others go on, a replica takes over, a slot moves.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { slotOf } from "../engine/redis/cluster.ts";
import { RedisStore } from "../engine/redis/store.ts";
import { CLAIM_MS } from "./contract/calls.ts";
import { storeContract } from "./contract/contract.ts";
import { type Answer, ask, give, listen, push, spawn, startOn, type Stream, until } from "./support/harness.ts";
import { type Cluster, type Node, startCluster } from "./support/redis-cluster-server.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";
import { ANSWER_MS, AT_ONCE_MS, ownMs } from "./support/own-time.ts";

/** Forming a cluster, and failing over, on a slow machine. */
const TEST_MS = 180_000;
/** Enough that every node has some. */
const CHANNELS = Array.from({ length: 24 }, (_, n) => `shop-${n}`);

let cluster: Cluster;
let prefixes = 0;

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
}, TEST_MS);

const openCluster = async (replicas = false, settings: Record<string, string> = {}): Promise<Cluster> => {
  const opened = await startCluster(3, replicas, settings);
  closing.push(() => opened.end());
  return opened;
};
const openService = async (url: string): Promise<string> => {
  const service = await startOn(url);
  closing.push(() => service.stop());
  return service.url;
};
const openStream = async (url: string): Promise<Stream> => {
  const stream = await listen(url);
  closing.push(async () => stream.close());
  return stream;
};

const keyOf = (channel: string): string => `pere:{${channel}}:counters`;
const idOf = ({ data }: { readonly data: string }): string => (JSON.parse(data) as { id: string }).id;
const upTo = (count: number): number[] => Array.from({ length: count }, (_, n) => n + 1);
const seqsOf = (stream: Stream): number[] => stream.events.map(({ data }) => (JSON.parse(data) as { seq: number }).seq);

/** One push, repeated with its key until it is stored. */
async function insist(url: string, channel: string, data: number): Promise<string> {
  const headers = { "Idempotency-Key": `${channel}/${data}` };
  let refused: Answer | undefined;
  return until(
    async () => {
      const answer = await ask(`${url}/push/${channel}`, { body: data, headers });
      expect([200, 201, 503]).toContain(answer.status);
      if (answer.status !== 503) return answer.body.id as string;
      refused = answer;
      return void (await Bun.sleep(20));
    },
    () => `push ${data} on ${channel}: ${refused?.text}`,
  );
}

/** The channels by the node that has them. */
async function byNode(on: Cluster): Promise<Map<Node, string[]>> {
  const found = new Map<Node, string[]>();
  for (const channel of CHANNELS) {
    const node = await on.ownerOf(keyOf(channel));
    found.set(node, [...(found.get(node) ?? []), channel]);
  }
  expect(found.size).toBe(3);
  return found;
}

/** A feed of each channel at each service. */
async function followAll(services: readonly string[]): Promise<Map<string, Stream[]>> {
  const feeds = new Map<string, Stream[]>();
  for (const channel of CHANNELS)
    feeds.set(channel, await Promise.all(services.map((url) => openStream(`${url}/feed/${channel}`))));
  return feeds;
}

const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`on a real Redis Cluster${why}`, () => {
  beforeAll(async () => {
    cluster = await startCluster();
  }, TEST_MS);
  afterAll(async () => {
    await cluster.end();
  });

  storeContract(
    "RedisStore on a Cluster",
    async () => {
      const options = { urls: cluster.url.split(","), prefix: `test-${++prefixes}:`, claimMs: CLAIM_MS };
      const reopen = async () => {
        const store = await RedisStore.open(options);
        closing.push(() => store.close());
        return store;
      };
      return { store: await RedisStore.open(options), reopen };
    },
    { histories: 10 },
  );

  test("a key's slot is the same as Redis computes", async () => {
    const keys = ["", "a", "{}", "{}x", "{a}b", "x{a}{b}", "{{a}}", "a}{b", "{a", "pere:{ä€😀}:events", ...CHANNELS];
    for (const key of keys) expect(await cluster.masters[0]!.ask("CLUSTER", "KEYSLOT", key)).toBe(`:${slotOf(key)}`);
  });

  test(
    "two instances, channels on all nodes: every reader gets everything in order, receipts, tallies and presence are correct",
    async () => {
      const [a, b] = [await openService(cluster.url), await openService(cluster.url)] as const;
      await byNode(cluster);
      const feeds = await followAll([`${a}`, `${b}`]);
      const tills = await Promise.all(CHANNELS.map((channel) => openStream(`${b}/feed/${channel}?device=till`)));
      for (const n of upTo(10))
        await Promise.all(CHANNELS.map((channel, at) => push((n + at) % 2 ? a : b, channel, n)));
      for (const [channel, both] of feeds)
        for (const feed of both) {
          await feed.have(10);
          expect([channel, ...seqsOf(feed)]).toEqual([channel, ...upTo(10)]);
        }
      for (const [n, till] of tills.entries()) {
        const events = await till.have(10);
        for (const event of events) await give(a, CHANNELS[n]!, idOf(event), "till", "done");
        const { body } = await ask(`${b}/events/${CHANNELS[n]}/${idOf(events[9]!)}`);
        expect(body).toMatchObject({ complete: true, receipts: { done: 1, pending: 0 } });
      }
      const { body } = await ask(`${a}/channels?limit=1000`);
      expect(body.channels.map(({ channel }: { channel: string }) => channel)).toEqual([...CHANNELS].sort());
      await until(async () => {
        const { channels } = (await ask(`${a}/channels?limit=1000`)).body;
        return channels.every(
          ({ devices, connected }: { devices: number; connected: number }) => devices === 1 && connected === 1,
        );
      }, "every till to be seen from the other instance");
    },
    TEST_MS,
  );

  test(
    "one node stalls: its channels are refused in time, the others continue, and it recovers by itself",
    async () => {
      const on = await openCluster();
      const [a, b] = [await openService(on.url), await openService(on.url)] as const;
      const nodes = await byNode(on);
      const feeds = await followAll([a, b]);
      for (const channel of CHANNELS) await insist(a, channel, 1);
      for (const channel of CHANNELS) await insist(b, channel, 2);
      // The node at which an instance listens, so that this is lost as well.
      const listening = async (node: Node) => (await node.ask("CLIENT", "LIST", "TYPE", "pubsub")).includes("id=");
      const found = await Promise.all(on.masters.map(listening));
      const stalled = on.masters[found.indexOf(true)]!;
      const here = nodes.get(stalled)!;
      const others = CHANNELS.filter((channel) => !here.includes(channel));
      stalled.pause();
      try {
        const from = ownMs();
        const tries = here.flatMap((channel) => [
          ask(`${a}/push/${channel}`, { body: 0 }),
          ask(`${b}/push/${channel}`, { body: 0 }),
        ]);
        const goOn = others.map(async (channel) =>
          expect((await ask(`${a}/push/${channel}`, { body: 3 })).status).toBe(201),
        );
        await Promise.all(goOn);
        expect(ownMs() - from).toBeLessThan(AT_ONCE_MS);
        for (const answer of await Promise.all(tries)) expect(answer.status).toBe(503);
        expect(ownMs() - from).toBeLessThan(ANSWER_MS);
        for (const channel of others) for (const feed of feeds.get(channel)!) await feed.have(3);
        // By now it is known: what comes is refused at once.
        const again = ownMs();
        expect((await ask(`${a}/push/${here[0]}`, { body: 0 })).status).toBe(503);
        expect(ownMs() - again).toBeLessThan(AT_ONCE_MS);
      } finally {
        stalled.resume();
      }
      for (const channel of here) await insist(b, channel, 3);
      for (const channel of CHANNELS)
        for (const feed of feeds.get(channel)!) {
          const last = await insist(a, channel, 4);
          await until(() => feed.ids.includes(last), `the last event of ${channel}`);
          expect(seqsOf(feed)).toEqual(upTo(seqsOf(feed).length));
          expect(feed.ended).toBe(false);
          expect(feed.messages.some(({ event }) => event === "pere.gap")).toBe(false);
        }
    },
    TEST_MS,
  );

  test(
    "a master dies and its replica takes over: PERE continues within seconds, also an instance that starts meanwhile",
    async () => {
      const on = await openCluster(true);
      const a = await openService(on.url);
      const nodes = await byNode(on);
      const feeds = await followAll([a]);
      for (const channel of CHANNELS) await insist(a, channel, 1);
      const master = on.masters[1]!;
      // What its replica does not have yet would be lost with it: that is another test's subject.
      await until(async () => (await on.replicas[1]!.ask("DBSIZE")) === (await master.ask("DBSIZE")), "the copy");
      await master.end();
      const late = await openService(on.url);
      for (const channel of nodes.get(master)!) await insist(a, channel, 2);
      for (const channel of nodes.get(master)!) await insist(late, channel, 3);
      for (const channel of nodes.get(master)!) {
        const [feed] = feeds.get(channel)!;
        await feed!.have(3);
        expect(seqsOf(feed!)).toEqual([1, 2, 3]);
      }
    },
    TEST_MS,
  );

  test(
    "a slot that moves during pushes loses nothing, and its keys move with it",
    async () => {
      const on = await openCluster();
      const [a, b] = [await openService(on.url), await openService(on.url)] as const;
      const channel = "orders";
      const feeds = [await openStream(`${a}/feed/${channel}?device=till`), await openStream(`${b}/feed/${channel}`)];
      const ids: string[] = [];
      for (const n of upTo(20)) ids.push(await insist(a, channel, n));
      const from = await on.ownerOf(keyOf(channel));
      const to = on.masters.find((node) => node !== from)!;
      let stop = false;
      const pushing = (async () => {
        for (let n = 21; !stop; n++) ids.push(await push(n % 2 ? a : b, channel, n));
      })();
      // Nobody is refused: what is turned away finds its way, also between two looks at who has which slot.
      await moveSlot(slotOf(keyOf(channel)), from, to, on.masters, async () => {
        for (const url of [a, b]) {
          const { status, body } = await ask(`${url}/channels`);
          expect([status, body.channels?.length]).toEqual([200, 1]);
        }
      });
      const moved = ids.length;
      await until(() => ids.length > moved + 20, "pushes after the move");
      stop = true;
      await pushing;
      expect(await on.ownerOf(keyOf(channel))).toBe(to);
      expect(new Set(ids).size).toBe(ids.length);
      for (const feed of feeds) {
        await feed.have(ids.length);
        expect(feed.events.map(idOf)).toEqual(ids);
        expect(feed.messages.some(({ event }) => event === "pere.gap")).toBe(false);
      }
      for (const id of ids) expect((await give(b, channel, id, "till", "done")).body).toMatchObject({ recorded: 1 });
    },
    TEST_MS,
  );

  test(
    "a single address of a Cluster, and several of no Cluster, are each reported in one line",
    async () => {
      const url = cluster.masters[0]!.url;
      const said = await spawn({ REDIS_URL: url }).catch((error: Error) => error.message);
      expect(said).toMatch(
        /^PERE can't start: this Redis is a Cluster: set REDIS_URL to several of its addresses, [^\n]*$/,
      );
      const single = await startRedis();
      closing.push(() => single.end());
      const none = await spawn({ REDIS_URL: `${single.url},${single.url}` }).catch((error: Error) => error.message);
      expect(none).toMatch(/^PERE can't start: [^\n]*cluster support disabled[^\n]*$/);
    },
    TEST_MS,
  );
});

/** Moves a slot as `redis-cli --cluster reshard` does, a key at a time. */
async function moveSlot(
  slot: number,
  from: Node,
  to: Node,
  masters: readonly Node[],
  meanwhile: () => Promise<void>,
): Promise<void> {
  const is = async (answer: Promise<string>) => expect(await answer).toBe("+OK");
  await is(to.ask("CLUSTER", "SETSLOT", String(slot), "IMPORTING", from.id));
  await is(from.ask("CLUSTER", "SETSLOT", String(slot), "MIGRATING", to.id));
  for (;;) {
    const keys = (await from.ask("CLUSTER", "GETKEYSINSLOT", String(slot), "1")).split("\r\n");
    if (keys[0] === "*0") break;
    await is(from.ask("MIGRATE", "127.0.0.1", String(to.port), keys[2]!, "0", "5000"));
    await meanwhile();
  }
  for (const node of [to, from, ...masters.filter((other) => other !== to && other !== from)])
    await is(node.ask("CLUSTER", "SETSLOT", String(slot), "NODE", to.id));
}
