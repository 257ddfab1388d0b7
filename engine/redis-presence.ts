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
 */
import type { Redis, Reply } from "./redis-link.ts";
import { SCRIPTS } from "./redis-scripts.ts";

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
  readonly #key: (channel: string) => string;
  readonly #here = new Map<string, Map<string, number>>();
  /** What is not yet written down. */
  readonly #changed = new Map<string, Set<string>>();
  readonly #known = new Map<string, Known>();
  #living: ReadonlySet<string> = new Set();
  /** Instances of which something is left and nothing is known, and since when. */
  readonly #strangers = new Map<string, number>();
  readonly #timer: Timer;
  #writing: Promise<void> | undefined;

  /** @param key where a channel's present devices are kept */
  constructor(link: Redis, instances: string, key: (channel: string) => string) {
    this.#link = link;
    this.#instances = instances;
    this.#key = key;
    this.#timer = setInterval(() => void this.beat(), BEAT_MS);
    this.#timer.unref();
  }

  /** There is a new connection to Redis. */
  doubt(): void {
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
      for (const [channel, { at }] of this.#known) if (Date.now() - at > FRESH_MS) this.#known.delete(channel);
      for (const [stranger, since] of this.#strangers)
        if (Date.now() - since > STRANGER_MS) this.#strangers.delete(stranger);
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

  /** A device is connected here from now on; null: it is no longer. */
  attend(channel: string, device: string, joined: number | null): void {
    let devices = this.#here.get(channel);
    if (joined !== null) {
      if (devices?.get(device) === joined) return;
      if (!devices) this.#here.set(channel, (devices = new Map()));
      devices.set(device, joined);
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
    const here = this.#here.get(channel) ?? NOBODY;
    const name = (device: string): string => `${this.#instance}/${device}`;
    const came = devices.flatMap((device) => (here.has(device) ? [name(device), String(here.get(device))] : []));
    const left = devices.filter((device) => !here.has(device)).map(name);
    await Promise.all([
      came.length > 0 ? this.#link.send("HSET", this.#key(channel), ...came) : null,
      left.length > 0 ? this.#link.send("HDEL", this.#key(channel), ...left) : null,
    ]);
  }

  /** Devices that are connected at other instances, as of a second ago or so; nobody, when that can't be known now. */
  elsewhere(channel: string): Promise<Devices> {
    if (this.#living.size <= 1) return Promise.resolve(NOBODY);
    const known = this.#known.get(channel);
    if (known && Date.now() - known.at < FRESH_MS) return known.devices;
    const devices = this.#read(channel).catch(() => NOBODY);
    this.#known.set(channel, { at: Date.now(), devices });
    return devices;
  }

  async #read(channel: string): Promise<Devices> {
    const key = this.#key(channel);
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
      } else if (!this.#strangers.has(instance)) this.#strangers.set(instance, Date.now());
      else if (Date.now() - this.#strangers.get(instance)! > 2 * MEMORY_MS) left.push(member);
    }
    if (left.length > 0) this.#link.send("HDEL", key, ...left.slice(0, DEVICES_AT_ONCE)).catch(() => {});
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
