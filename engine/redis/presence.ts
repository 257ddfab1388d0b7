/**
 * Which devices are connected where, told among the instances that share one Redis.
 *
 * Each instance gives a sign of life every second, and writes down which devices come to it and leave it. A device counts as connected
 * elsewhere when some other instance that lives has it; so when an instance dies, all of its devices are gone a few seconds later, and
 * nobody has to tidy up for that. What a dead one left is removed by whoever comes across it much later.
 *
 * What is true here is kept here: when Redis has lost it, the next sign of life shows that this instance is not known, and it is all written again.
 * A new connection may lead to an older state, a snapshot or a replica that lagged behind, and what that says of this instance is anybody's guess: so
 * it goes on under another name, and what stands under the old one is a dead instance's.
 *
 * From where its devices are connected an instance writes down as well, and looks whether living ones have the same device from elsewhere; then it tells
 * all of them, by the channel's messages.
 */
import { isShared } from "../model.ts";
import type { Keys } from "./keys.ts";
import type { Redis, Reply } from "./connection.ts";
import { SCRIPTS, SHARED } from "./scripts.ts";

const BEAT_MS = 1_000;
/** Without a sign of life for so long, an instance is dead. */
const LIFE_MS = 4_000;
/** For so long a dead one is remembered, before what it left is removed. */
const MEMORY_MS = 60_000;
/** For so long it is remembered that something is left of an instance: many reads may have to remove it. */
const STRANGER_MS = 10 * MEMORY_MS;
/** For so long it is good enough to know who was connected elsewhere. */
const FRESH_MS = 1_000;
/** Devices in one command. */
const DEVICES_AT_ONCE = 500;

const NOWHERE: ReadonlyMap<string, readonly string[]> = new Map();

/** A device that is connected here: the `seq` after which it joined the channel, and from where it is. */
interface Here {
  readonly joined: number;
  readonly addresses: readonly string[];
}

/** Devices, each with the `seq` after which it joined the channel. */
type Devices = ReadonlyMap<string, number>;

const NOBODY: Devices = new Map();

interface Known {
  readonly at: number;
  readonly devices: Promise<Devices>;
}

export class RedisPresence {
  #instance = crypto.randomUUID();
  #isDoubted = false;
  readonly #link: Redis;
  readonly #instances: string;
  readonly #keys: (channel: string) => Keys;
  readonly #here = new Map<string, Map<string, Here>>();
  /** What is not yet written down. */
  readonly #changed = new Map<string, Set<string>>();
  readonly #known = new Map<string, Known>();
  #living: ReadonlySet<string> = new Set();
  /** Instances of which something is left and nothing is known, and since when. */
  readonly #strangers = new Map<string, number>();
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
    this.#isDoubted = true;
  }

  /** A sign of life; and who else lives. */
  async beat(): Promise<void> {
    try {
      if (this.#isDoubted) await this.#rename();
      const values = [this.#instance, LIFE_MS, MEMORY_MS];
      const [isNew, ...living] = (await this.#link.run(SCRIPTS.beat, [this.#instances], values)) as readonly Reply[];
      this.#living = new Set(living as readonly string[]);
      if (isNew === 1)
        for (const [channel, devices] of this.#here) for (const device of devices.keys()) this.#change(channel, device);
      if (this.#changed.size > 0) await this.#write();
      for (const [channel, { at }] of this.#known) if (performance.now() - at > FRESH_MS) this.#known.delete(channel);
      for (const [stranger, since] of this.#strangers)
        if (performance.now() - since > STRANGER_MS) this.#strangers.delete(stranger);
    } catch {
      // Redis is away; the timer tries again.
    }
  }

  async #rename(): Promise<void> {
    const before = this.#instance;
    this.#isDoubted = false;
    this.#instance = crypto.randomUUID();
    await this.#link.send("ZREM", this.#instances, before);
  }

  /** A device is connected here from now on, from these addresses; null: it is no longer. */
  attend(channel: string, device: string, joined: number | null, addresses: readonly string[]): void {
    let devices = this.#here.get(channel);
    if (joined !== null) {
      const known = devices?.get(device);
      if (known?.joined === joined && known.addresses.join() === addresses.join()) return;
      if (!devices) this.#here.set(channel, (devices = new Map()));
      devices.set(device, { joined, addresses });
    } else if (devices?.delete(device) && devices.size === 0) this.#here.delete(channel);
    if (this.#changed.size === 0) setImmediate(() => this.#write().catch(() => {}));
    this.#change(channel, device);
  }

  #change(channel: string, device: string): void {
    const devices = this.#changed.get(channel);
    if (devices) devices.add(device);
    else this.#changed.set(channel, new Set([device]));
  }

  /** One write at a time, so that the last word stands. What can't be written now is kept for the next sign of life. */
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
    const here = this.#here.get(channel);
    const name = (device: string): string => `${this.#instance}/${device}`;
    const came = devices.flatMap((device) => {
      const known = here?.get(device);
      return known ? [{ device, ...known }] : [];
    });
    const left = devices.filter((device) => !here?.has(device)).map(name);
    const { present, places } = this.#keys(channel);
    const set = (key: string, value: (one: (typeof came)[number]) => string) =>
      this.#link.send("HSET", key, ...came.flatMap((one) => [name(one.device), value(one)]));
    await Promise.all([
      came.length > 0 ? set(present, ({ joined }) => String(joined)) : null,
      came.length > 0 ? set(places, ({ addresses }) => addresses.join(",")) : null,
      left.length > 0 ? this.#link.send("HDEL", present, ...left) : null,
      left.length > 0 ? this.#link.send("HDEL", places, ...left) : null,
    ]);
    // What is written next need not wait for it.
    this.#compare(channel, came).catch(() => {});
  }

  /** Tells all instances of devices that are open at another one as well, from another address. */
  async #compare(channel: string, came: readonly { device: string; addresses: readonly string[] }[]): Promise<void> {
    const there = await this.addresses(
      channel,
      came.map(({ device }) => device),
    );
    for (const { device, addresses } of came) {
      const all = [...new Set([...addresses, ...(there.get(device) ?? [])])].sort();
      if (there.has(device) && isShared(all))
        await this.#link.send("PUBLISH", this.#keys(channel).told.events, `- ${SHARED} ${device} ${all.join(",")}`);
    }
  }

  /** From where devices are connected at other instances, those of them that are known; nowhere, when that can't be known now. */
  async addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>> {
    const others = [...this.#living].filter((instance) => instance !== this.#instance);
    if (others.length === 0 || devices.length === 0) return NOWHERE;
    const found = new Map<string, readonly string[]>();
    const { places } = this.#keys(channel);
    try {
      const parts = Array.from({ length: Math.ceil(devices.length / DEVICES_AT_ONCE) }, (_, n) =>
        devices.slice(n * DEVICES_AT_ONCE, (n + 1) * DEVICES_AT_ONCE),
      );
      const read = async (instance: string, some: readonly string[]): Promise<void> => {
        const texts = await this.#link.send("HMGET", places, ...some.map((device) => `${instance}/${device}`));
        for (const [n, text] of (texts as readonly (string | null)[]).entries())
          if (text) found.set(some[n]!, [...(found.get(some[n]!) ?? []), ...text.split(",")]);
      };
      await Promise.all(others.flatMap((instance) => parts.map((some) => read(instance, some))));
    } catch {
      return NOWHERE; // Redis is away; who is connected counts for what is written.
    }
    return found;
  }

  /** Devices that are connected at other instances, as of a second ago or so; nobody, when that can't be known now. */
  elsewhere(channel: string): Promise<Devices> {
    if (this.#living.size <= 1) return Promise.resolve(NOBODY);
    const known = this.#known.get(channel);
    if (known && performance.now() - known.at < FRESH_MS) return known.devices;
    const devices = this.#read(channel).catch(() => NOBODY);
    this.#known.set(channel, { at: performance.now(), devices });
    return devices;
  }

  async #read(channel: string): Promise<Devices> {
    const { present: key, places } = this.#keys(channel);
    const left: string[] = [];
    const devices = new Map<string, number>();
    const present = (await this.#link.send("HGETALL", key)) as unknown as Readonly<Record<string, string>>;
    for (const [member, joined] of Object.entries(present)) {
      const at = member.indexOf("/");
      const instance = member.slice(0, at);
      if (instance === this.#instance) continue;
      if (this.#living.has(instance)) {
        devices.set(member.slice(at + 1), Number(joined));
        this.#strangers.delete(instance);
      } else if (!this.#strangers.has(instance)) this.#strangers.set(instance, performance.now());
      else if (performance.now() - this.#strangers.get(instance)! > 2 * MEMORY_MS) left.push(member);
    }
    if (left.length > 0)
      for (const hash of [key, places])
        this.#link.send("HDEL", hash, ...left.slice(0, DEVICES_AT_ONCE)).catch(() => {});
    return devices;
  }

  /** Says good-bye: the others need not wait until this instance is dead. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    try {
      await this.#link.send("ZREM", this.#instances, this.#instance);
    } catch {
      // Then it is gone when its life is over.
    }
  }
}
