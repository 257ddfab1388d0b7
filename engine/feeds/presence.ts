/**
 * Presence: which devices have a feed of a channel open here, and when each last gave a sign of life.
 *
 * `connected` means an open feed, at this or another instance. A sign of life says more, because a dead connection looks open for minutes. All of
 * this may be lost at any moment: other instances are told of changes, and signs of life are stored every few seconds.
 *
 * Feeds are opaque here: they are only kept for lookup by device.
 */
import { type Report, onConsole } from "../faults.ts";
import type { Event } from "../model.ts";
import type { Store } from "../store.ts";
import type { Tags } from "../tags.ts";

/** Signs of life per commit, to leave room for other commits. */
const HEARD_AT_ONCE = 200;

/** A device with open feeds of a channel, and the `seq` after which it joined. */
interface Present<Feed> {
  /** An array: almost always with one element. */
  readonly feeds: Feed[];
  joined: number;
}

/** Devices with a feed of a channel open here. */
interface Here<Feed> {
  readonly devices: Map<string, Present<Feed>>;
  /** How many of them are connected at other instances too; cached until presence here or there changes. */
  both: { readonly elsewhere: ReadonlyMap<string, number>; readonly count: number } | null;
}

const NONE: readonly never[] = [];

export class Presence<Feed> {
  readonly #store: Store;
  readonly #now: () => number;
  readonly #addressOf: (feed: Feed) => string;
  readonly #onPresenceChange: (channel: string, hasDevices: boolean) => void;
  readonly #report: Report;
  readonly #channels = new Map<string, Here<Feed>>();
  /** Signs of life not yet stored, by channel. */
  readonly #heard = new Map<string, Map<string, number>>();
  /** The last write of them. Never rejects. */
  #written: Promise<void> = Promise.resolve();

  /**
   * @param onPresenceChange called when a channel gets its first device here and when it loses its last one
   * @param addressOf the address a feed was opened from; empty: unknown
   */
  constructor(
    store: Store,
    now: () => number,
    onPresenceChange: (channel: string, hasDevices: boolean) => void,
    report: Report = onConsole,
    addressOf: (feed: Feed) => string = () => "",
  ) {
    this.#store = store;
    this.#addressOf = addressOf;
    this.#report = report;
    this.#now = now;
    this.#onPresenceChange = onPresenceChange;
  }

  /** How many devices have a feed open here, summed over channels. */
  get size(): number {
    return [...this.#channels.values()].reduce((total, { devices }) => total + devices.size, 0);
  }

  // ------------------------------------------------------------------------------------------------------------- connections

  /** How many devices have a feed of the channel open at any instance; only those in `to`, if given. */
  connected(channel: string, to: readonly string[] | null, elsewhere: ReadonlyMap<string, number>): number {
    if (to !== null) return to.filter((device) => this.isConnected(channel, device, elsewhere)).length;
    const here = this.#channels.get(channel);
    if (!here) return elsewhere.size;
    if (here.both?.elsewhere !== elsewhere) {
      let count = 0;
      for (const device of elsewhere.keys()) if (here.devices.has(device)) count++;
      here.both = { elsewhere, count };
    }
    return here.devices.size + elsewhere.size - here.both.count;
  }

  /** The devices with a feed of the channel open at any instance. */
  names(channel: string, elsewhere: ReadonlyMap<string, number>): string[] {
    return [...new Set([...this.devices(channel), ...elsewhere.keys()])];
  }

  /** The `seq`s after which connected devices joined the channel, ascending. */
  joined(channel: string, elsewhere: ReadonlyMap<string, number>): Float64Array {
    const here = this.#channels.get(channel)?.devices;
    const joined = Array.from(here?.values() ?? [], (present) => present.joined);
    for (const [device, seq] of elsewhere) if (!here?.has(device)) joined.push(seq);
    return Float64Array.from(joined).sort();
  }

  /** A device that joined the channel after `joined` opens a feed. */
  enter(channel: string, device: string, feed: Feed, joined: number): void {
    let here = this.#channels.get(channel);
    if (!here) {
      this.#channels.set(channel, (here = { devices: new Map(), both: null }));
      this.#onPresenceChange(channel, true);
    }
    const present = here.devices.get(device);
    if (present) {
      present.feeds.push(feed);
      present.joined = joined;
    } else {
      here.devices.set(device, { feeds: [feed], joined });
      here.both = null;
    }
    this.#store.setPresence(channel, device, joined, this.addresses(channel, device));
    this.heard(channel, device);
  }

  /** An entered feed was closed. */
  leave(channel: string, device: string, feed: Feed): void {
    const here = this.#channels.get(channel)!;
    const { feeds } = here.devices.get(device)!;
    feeds.splice(feeds.indexOf(feed), 1);
    if (feeds.length > 0) {
      if (this.#addressOf(feed) !== this.#addressOf(feeds[0]!))
        this.#store.setPresence(channel, device, here.devices.get(device)!.joined, this.addresses(channel, device));
      return;
    }
    here.devices.delete(device);
    here.both = null;
    this.#store.setPresence(channel, device, null);
    if (here.devices.size > 0) return;
    this.#channels.delete(channel);
    this.#onPresenceChange(channel, false);
  }

  /** Enrols a connected device again, in a new epoch of its channel, with these tags. @throws PereError away */
  async rejoin(channel: string, device: string, tags: Tags | null): Promise<void> {
    const here = () => this.#channels.get(channel)?.devices.get(device);
    const present = here();
    if (!present) return;
    const { joined } = await this.#store.join(channel, device, this.#now(), tags);
    if (here() !== present) return; // It left meanwhile; if it returned, its new feed has set `joined`.
    present.joined = joined;
    this.#store.setPresence(channel, device, joined, this.addresses(channel, device));
  }

  /** The devices with a feed of the channel open here. */
  devices(channel: string): readonly string[] {
    return [...(this.#channels.get(channel)?.devices.keys() ?? [])];
  }

  /** The addresses of a device's feeds of the channel here, without duplicates, ascending. */
  addresses(channel: string, device: string): readonly string[] {
    const feeds = this.feeds(channel, device);
    return [...new Set(feeds.map(this.#addressOf))].filter((address) => address !== "").sort();
  }

  /** A device's feeds of the channel here. */
  feeds(channel: string, device: string): readonly Feed[] {
    return this.#channels.get(channel)?.devices.get(device)?.feeds ?? NONE;
  }

  /** Whether a device has a feed of the channel open at any instance. */
  isConnected(channel: string, device: string, elsewhere: ReadonlyMap<string, number>): boolean {
    return this.#channels.get(channel)?.devices.has(device) || elsewhere.has(device);
  }

  /** The devices with a feed of the channel open here that an event may be addressed to: if it has no `where`, it is. */
  addressed(channel: string, { seq, to }: Event): string[] {
    const here = this.#channels.get(channel)?.devices ?? new Map<string, Present<Feed>>();
    if (to !== null) return to.filter((device) => here.has(device));
    return [...here].filter(([, { joined }]) => joined < seq).map(([device]) => device);
  }

  // ----------------------------------------------------------------------------------------------------------- signs of life

  /** A device gave a sign of life: it opened a feed, sent a receipt, answered a ping, or polled. */
  heard(channel: string, device: string): void {
    let devices = this.#heard.get(channel);
    if (!devices) this.#heard.set(channel, (devices = new Map()));
    devices.set(device, this.#now());
  }

  /** The last sign of life that is not stored yet, milliseconds since 1970. */
  heardAt(channel: string, device: string): number | null {
    return this.#heard.get(channel)?.get(device) ?? null;
  }

  /** Stores signs of life, one write at a time: if the store is slow, writes do not pile up. */
  writeHeard(): Promise<void> {
    return (this.#written = this.#written.then(() => this.#write()).catch(this.#report));
  }

  /** In slices. A failed write is made up for by later ones. */
  async #write(): Promise<void> {
    const heard = [...this.#heard];
    this.#heard.clear();
    let writing: Promise<void>[] = [];
    let left = HEARD_AT_ONCE;
    for (const [channel, times] of heard) {
      const all = [...times];
      for (let from = 0; from < all.length;) {
        const some = new Map(all.slice(from, from + left));
        writing.push(this.#store.seen(channel, some).catch(() => {}));
        from += some.size;
        if ((left -= some.size) > 0) continue;
        await Promise.all(writing);
        writing = [];
        left = HEARD_AT_ONCE;
      }
    }
    await Promise.all(writing);
  }
}
