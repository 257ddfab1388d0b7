/**
 * Presence across instances that share one Redis.
 *
 * Each instance sends a heartbeat every second and writes which devices connect to it and leave it. A device counts as connected elsewhere if another
 * live instance has it. So when an instance dies, all of its devices disappear a few seconds later without any cleanup. Entries of a dead instance
 * are deleted by the instance that finds them much later.
 *
 * Each instance keeps its own presence in memory. If Redis has lost it, the next heartbeat shows that this instance is unknown, and everything is
 * written again. A new connection may lead to an older state, a snapshot or a lagging replica, whose entries for this instance may be wrong: so the
 * instance continues under a new id, and the entries of the old id belong to a dead instance.
 *
 * An instance also writes the addresses of its devices and checks whether other live instances have the same device with another address. If so, it
 * notifies all instances through the channel's messages.
 */
import { isShared } from "../addresses.ts";
import type { Keys } from "./keys.ts";
import type { Redis, Reply } from "./connection.ts";
import { SCRIPTS, SHARED } from "./scripts.ts";

const BEAT_MS = 1_000;
/** An instance without a heartbeat for this long is dead. */
const LIFE_MS = 4_000;
/** How long a dead instance is remembered before its entries are deleted. */
const MEMORY_MS = 60_000;
/** How long leftover entries of an instance are remembered: deleting them may take many reads. */
const UNKNOWN_INSTANCE_MS = 10 * MEMORY_MS;
/** How long presence at other instances is cached. */
const FRESH_MS = 1_000;
/** Devices per command. */
const DEVICES_AT_ONCE = 500;

const NOWHERE: ReadonlyMap<string, readonly string[]> = new Map();

/** A device connected here: the `seq` after which it joined the channel, and its addresses. */
interface LocalDevice {
  readonly joined: number;
  readonly addresses: readonly string[];
}

/** Devices, each with the `seq` after which it joined the channel. */
type Devices = ReadonlyMap<string, number>;

const NOBODY: Devices = new Map();

interface RemoteDevices {
  readonly at: number;
  readonly devices: Promise<Devices>;
}

export class RedisPresence {
  #instance = crypto.randomUUID();
  #isUnverified = false;
  readonly #link: Redis;
  readonly #instances: string;
  readonly #keys: (channel: string) => Keys;
  readonly #local = new Map<string, Map<string, LocalDevice>>();
  /** Not yet written. */
  readonly #changed = new Map<string, Set<string>>();
  readonly #remote = new Map<string, RemoteDevices>();
  #living: ReadonlySet<string> = new Set();
  /** Unknown instances with leftover entries, and since when. */
  readonly #unknownInstances = new Map<string, number>();
  readonly #timer: Timer;
  #writing: Promise<void> | undefined;

  constructor(link: Redis, instances: string, keys: (channel: string) => Keys) {
    this.#link = link;
    this.#instances = instances;
    this.#keys = keys;
    this.#timer = setInterval(() => void this.beat(), BEAT_MS);
    this.#timer.unref();
  }

  /** There is a new connection to Redis. */
  markUnverified(): void {
    this.#isUnverified = true;
  }

  /** Sends a heartbeat and reads which other instances live. */
  async beat(): Promise<void> {
    try {
      if (this.#isUnverified) await this.#rename();
      const values = [this.#instance, LIFE_MS, MEMORY_MS];
      const [isNew, ...living] = (await this.#link.run(SCRIPTS.beat, [this.#instances], values)) as readonly Reply[];
      this.#living = new Set(living as readonly string[]);
      if (isNew === 1)
        for (const [channel, devices] of this.#local)
          for (const device of devices.keys()) this.#change(channel, device);
      if (this.#changed.size > 0) await this.#write();
      for (const [channel, { at }] of this.#remote) if (performance.now() - at > FRESH_MS) this.#remote.delete(channel);
      for (const [instance, since] of this.#unknownInstances)
        if (performance.now() - since > UNKNOWN_INSTANCE_MS) this.#unknownInstances.delete(instance);
    } catch {
      // Redis is away; the timer tries again.
    }
  }

  async #rename(): Promise<void> {
    const before = this.#instance;
    this.#isUnverified = false;
    this.#instance = crypto.randomUUID();
    await this.#link.send("ZREM", this.#instances, before);
  }

  /** A device is connected here from now on, from these addresses; null: it is no longer connected. */
  setPresence(channel: string, device: string, joined: number | null, addresses: readonly string[]): void {
    let devices = this.#local.get(channel);
    if (joined !== null) {
      const known = devices?.get(device);
      if (known?.joined === joined && known.addresses.join() === addresses.join()) return;
      if (!devices) this.#local.set(channel, (devices = new Map()));
      devices.set(device, { joined, addresses });
    } else if (devices?.delete(device) && devices.size === 0) this.#local.delete(channel);
    if (this.#changed.size === 0) setImmediate(() => this.#write().catch(() => {}));
    this.#change(channel, device);
  }

  #change(channel: string, device: string): void {
    const devices = this.#changed.get(channel);
    if (devices) devices.add(device);
    else this.#changed.set(channel, new Set([device]));
  }

  /** One write at a time, so that the last state wins. What can't be written now is kept for the next heartbeat. */
  #write(): Promise<void> {
    this.#writing ??= (async () => {
      try {
        while (this.#changed.size > 0) {
          const [channel, devices] = this.#changed.entries().next().value!;
          this.#changed.delete(channel);
          const some = [...devices].slice(0, DEVICES_AT_ONCE);
          for (const device of [...devices].slice(DEVICES_AT_ONCE)) this.#change(channel, device);
          try {
            await this.#writeSome(channel, some);
          } catch (error) {
            for (const device of some) this.#change(channel, device);
            throw error;
          }
        }
      } finally {
        this.#writing = undefined;
      }
    })();
    return this.#writing;
  }

  async #writeSome(channel: string, devices: readonly string[]): Promise<void> {
    const here = this.#local.get(channel);
    const name = (device: string): string => `${this.#instance}/${device}`;
    const came = devices.flatMap((device) => {
      const known = here?.get(device);
      return known ? [{ device, ...known }] : [];
    });
    const left = devices.filter((device) => !here?.has(device)).map(name);
    const { present, presentAddresses } = this.#keys(channel);
    const set = (key: string, value: (one: (typeof came)[number]) => string) =>
      this.#link.send("HSET", key, ...came.flatMap((one) => [name(one.device), value(one)]));
    await Promise.all([
      came.length > 0 ? set(present, ({ joined }) => String(joined)) : null,
      came.length > 0 ? set(presentAddresses, ({ addresses }) => addresses.join(",")) : null,
      left.length > 0 ? this.#link.send("HDEL", present, ...left) : null,
      left.length > 0 ? this.#link.send("HDEL", presentAddresses, ...left) : null,
    ]);
    // The next write need not wait for it.
    this.#compare(channel, came).catch(() => {});
  }

  /** Notifies all instances of devices that are also open at another instance, with another address. */
  async #compare(channel: string, came: readonly { device: string; addresses: readonly string[] }[]): Promise<void> {
    const there = await this.addresses(
      channel,
      came.map(({ device }) => device),
    );
    for (const { device, addresses } of came) {
      const all = [...new Set([...addresses, ...(there.get(device) ?? [])])].sort();
      if (there.has(device) && isShared(all))
        await this.#link.send("PUBLISH", this.#keys(channel).topic("events"), `- ${SHARED} ${device} ${all.join(",")}`);
    }
  }

  /** Addresses of devices at other instances, as far as known; none if Redis is away. */
  async addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>> {
    const others = [...this.#living].filter((instance) => instance !== this.#instance);
    if (others.length === 0 || devices.length === 0) return NOWHERE;
    const found = new Map<string, readonly string[]>();
    const { presentAddresses } = this.#keys(channel);
    try {
      const parts = Array.from({ length: Math.ceil(devices.length / DEVICES_AT_ONCE) }, (_, n) =>
        devices.slice(n * DEVICES_AT_ONCE, (n + 1) * DEVICES_AT_ONCE),
      );
      const read = async (instance: string, some: readonly string[]): Promise<void> => {
        const texts = await this.#link.send(
          "HMGET",
          presentAddresses,
          ...some.map((device) => `${instance}/${device}`),
        );
        for (const [n, text] of (texts as readonly (string | null)[]).entries())
          if (text) found.set(some[n]!, [...(found.get(some[n]!) ?? []), ...text.split(",")]);
      };
      await Promise.all(others.flatMap((instance) => parts.map((some) => read(instance, some))));
    } catch {
      return NOWHERE; // Redis is away; presence is checked again with the next write.
    }
    return found;
  }

  /** Devices connected at other instances, up to about a second old; none if Redis is away. */
  remotePresence(channel: string): Promise<Devices> {
    if (this.#living.size <= 1) return Promise.resolve(NOBODY);
    const known = this.#remote.get(channel);
    if (known && performance.now() - known.at < FRESH_MS) return known.devices;
    const devices = this.#read(channel).catch(() => NOBODY);
    this.#remote.set(channel, { at: performance.now(), devices });
    return devices;
  }

  async #read(channel: string): Promise<Devices> {
    const { present: key, presentAddresses } = this.#keys(channel);
    const left: string[] = [];
    const devices = new Map<string, number>();
    const present = (await this.#link.send("HGETALL", key)) as unknown as Readonly<Record<string, string>>;
    for (const [member, joined] of Object.entries(present)) {
      const at = member.indexOf("/");
      const instance = member.slice(0, at);
      if (instance === this.#instance) continue;
      if (this.#living.has(instance)) {
        devices.set(member.slice(at + 1), Number(joined));
        this.#unknownInstances.delete(instance);
      } else if (!this.#unknownInstances.has(instance)) this.#unknownInstances.set(instance, performance.now());
      else if (performance.now() - this.#unknownInstances.get(instance)! > 2 * MEMORY_MS) left.push(member);
    }
    if (left.length > 0)
      for (const hash of [key, presentAddresses])
        this.#link.send("HDEL", hash, ...left.slice(0, DEVICES_AT_ONCE)).catch(() => {});
    return devices;
  }

  /** Removes this instance, so that the others need not wait for it to expire. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    try {
      await this.#link.send("ZREM", this.#instances, this.#instance);
    } catch {
      // Then its heartbeat expires.
    }
  }
}
