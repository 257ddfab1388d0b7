/**
 * Access to a Redis Cluster: each call goes to the node that has its key's slot, over one connection per node.
 *
 * Once a second, a reachable node that sees a majority is asked which node has which slot. A node that no longer has a slot says so itself (`MOVED`,
 * `ASK`), and the call is redirected. So moving slots and failovers need no action by an operator. While a node is away, only calls to its slots are
 * refused.
 *
 * The library has a Cluster client. Measured with 6.3.1, it does not meet the guarantees of `connection.ts`: connecting while one node is away never
 * ends, a call to such a node waits and is sent later, and a node that was never reached is not replaced by its replica.
 */
import { PereError } from "../model.ts";
import {
  CALL_MS,
  type Client,
  type Redis,
  RedisLink,
  type Reply,
  scripted,
  type ReplicaQuorum,
  type RedisCall,
  type RedisCallOptions,
} from "./connection.ts";
import type { Script } from "./scripts.ts";

/** Slots of a Cluster; https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/, "Key distribution model". */
const SLOTS = 16_384;
/** How often the slot map is read. */
const LOOK_MS = 1_000;
/** Delay before a redirected call is tried again. */
const PAUSE_MS = 20;

/** CRC-16/XMODEM of each byte, as in the Redis Cluster specification. */
const CRC16 = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 8;
  for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1;
  return crc;
});

/** A key's slot: from the text between its first `{` and the next `}`, if not empty. */
export function slotOf(key: string): number {
  const from = key.indexOf("{");
  const to = key.indexOf("}", from + 1);
  const tag = from >= 0 && to > from + 1 ? key.slice(from + 1, to) : key;
  let crc = 0;
  for (const byte of Buffer.from(tag)) crc = ((crc << 8) & 0xffff) ^ CRC16[(crc >> 8) ^ byte]!;
  return crc % SLOTS;
}

const away = (what: string, cause?: unknown): PereError => new PereError("away", what, [], cause);

/** The error text from Redis itself, if an error comes from there. */
const answerOf = (error: unknown): string =>
  error instanceof PereError && error.cause instanceof Error ? error.cause.message : "";

export class RedisCluster implements Redis {
  readonly #ready: (client: Client) => void;
  readonly #callMs: number;
  /** A connection to one of the configured nodes, used to read the slot map. */
  readonly #guide: RedisLink;
  readonly #nodes = new Map<string, RedisLink>();
  #owners: (RedisLink | undefined)[] = [];
  readonly #timer: Timer;
  #looking: Promise<void> | undefined;
  #closed = false;

  /**
   * @param urls addresses of some nodes; user name and password are taken from the first
   * @param ready called for each new connection to a node, before anything else is sent on it
   * @param callMs how long a call may take, milliseconds
   */
  constructor(urls: readonly string[], ready: (client: Client) => void, callMs = CALL_MS) {
    this.#ready = ready;
    this.#callMs = callMs;
    this.#guide = new RedisLink(urls, undefined, callMs);
    this.#timer = setInterval(() => void this.#look().catch(() => {}), LOOK_MS);
    this.#timer.unref();
  }

  /** Resolves once the slot map is known. @throws PereError away: not within the timeout */
  async start(): Promise<void> {
    const end = performance.now() + this.#callMs;
    await this.#guide.start();
    for (;;) {
      try {
        return await this.#look();
      } catch (error) {
        if (performance.now() + PAUSE_MS > end || /^ERR/.test(answerOf(error))) throw error;
        await Bun.sleep(PAUSE_MS);
      }
    }
  }

  /** One read at a time. */
  #look(): Promise<void> {
    this.#looking ??= this.#ask().finally(() => (this.#looking = undefined));
    return this.#looking;
  }

  async #ask(): Promise<void> {
    const [state, ranges] = await Promise.all([
      this.#guide.send("CLUSTER", "INFO"),
      this.#guide.send("CLUSTER", "SLOTS"),
    ]);
    if (!String(state).includes("cluster_state:ok")) {
      // A node that is cut off from the others has an old slot map: ask another node next.
      this.#guide.renew();
      throw away("the Redis Cluster has slots that no node serves");
    }
    const known = new Set(this.#nodes.values());
    const owners = new Array<RedisLink | undefined>(SLOTS);
    for (const [from, to, [host, port]] of ranges as readonly [number, number, readonly [string | null, number]][])
      owners.fill(this.#node(host ?? "", port), from, to + 1);
    const used = new Set(owners);
    await Promise.all([...used].map((link) => link && !known.has(link) && link.start().catch(() => {})));
    if (this.#closed) return;
    this.#owners = owners;
    for (const [address, link] of this.#nodes)
      if (!used.has(link)) {
        this.#nodes.delete(address);
        void link.close();
      }
  }

  /** The connection to a node. A node that does not know its own name gets the guide's. */
  #node(host: string, port: number): RedisLink {
    if (this.#closed) throw away("the store was closed; nothing was stored");
    const guide = new URL(this.#guide.url);
    const name = host === "" || host === "?" ? guide.hostname : host.includes(":") ? `[${host}]` : host;
    const address = `${name}:${port}`;
    let link = this.#nodes.get(address);
    if (!link) {
      const { protocol, username, password } = guide;
      const who = username || password ? `${username}:${password}@` : "";
      link = new RedisLink([`${protocol}//${who}${address}`], this.#ready, this.#callMs);
      this.#nodes.set(address, link);
    }
    return link;
  }

  send(...command: readonly string[]): Promise<Reply> {
    return this.#route(command[1]!, (send) => send(command));
  }

  run(
    script: Script,
    keys: readonly string[],
    values: readonly (string | number)[],
    quorum?: ReplicaQuorum,
  ): Promise<Reply> {
    return this.#route(keys[0]!, scripted(script, keys, values), { quorum });
  }

  read(script: Script, keys: readonly string[], values: readonly (string | number)[]): Promise<Reply> {
    return this.#route(keys[0]!, scripted(script, keys, values), { isRead: true });
  }

  /** One call per group: their slots differ. If a node is away, the other groups are still read. */
  async readGroups(
    script: Script,
    keys: readonly string[],
    values: readonly number[],
    width: number,
  ): Promise<readonly (Reply | PereError)[]> {
    const each = keys.length / values.length;
    const found = await Promise.all(
      values.map((value, group) =>
        this.read(script, keys.slice(group * each, (group + 1) * each), [value]).catch((error: unknown) => {
          if (!(error instanceof PereError)) throw error;
          return [error, ...new Array<null>(width - 1).fill(null)];
        }),
      ),
    );
    return found.flat() as readonly (Reply | PereError)[];
  }

  /** Follows redirects. Only calls that were not executed are tried again, so nothing is done twice. */
  async #route(key: string, call: RedisCall, options: RedisCallOptions = {}): Promise<Reply> {
    const end = performance.now() + this.#callMs;
    const slot = slotOf(key);
    let link = this.#owners[slot];
    for (let asking = false, turns = 0; ; turns++) {
      if (!link) throw away("no node of the Redis Cluster serves this channel's slot; nothing was stored");
      try {
        return await link.runCall(call, { ...options, asking, timeoutMs: end - performance.now() });
      } catch (error) {
        const [, word, host, port] = /^(TRYAGAIN|MOVED|ASK)(?: \d+ (\S*):(\d+)$)?/.exec(answerOf(error)) ?? [];
        if (!word || performance.now() + PAUSE_MS > end) throw error;
        // While a slot moves, a channel's keys are split between two nodes for a moment.
        if (word === "TRYAGAIN" || turns > 0) await Bun.sleep(PAUSE_MS);
        link = word === "TRYAGAIN" ? this.#owners[slot] : this.#node(host!, Number(port));
        asking = word === "ASK";
        // Addresses announced by nodes go to the log, not to publishers.
        await link?.start(end - performance.now()).catch((error: PereError) => {
          throw away("Redis can't be reached; nothing was stored", error.cause);
        });
        if (word === "MOVED") this.#owners[slot] = link;
      }
    }
  }

  masters(): readonly RedisLink[] {
    return [...new Set(this.#owners)].filter((link) => link !== undefined);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await Promise.all([this.#guide, ...this.#nodes.values()].map((link) => link.close()));
  }
}
