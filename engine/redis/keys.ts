/**
 * The names under which a channel is kept in Redis. All of one channel's share a hash tag, so they live in one slot, where one script may touch them
 * all. What is in them: `scripts.ts`.
 */

/** The parts of a channel, in the order of `KEYS`. */
const PARTS = [
  "counters",
  "events",
  "receipts",
  "tallies",
  "latest",
  "devices",
  "names",
  "special",
  "targets",
  "gone",
  "deadlines",
  "reminded",
] as const;

/** The keys of one channel. */
export interface Keys {
  readonly all: readonly string[];
  readonly counters: string;
  /** The names under which what the two logs get is published: a server's databases share them, so all but the first are in the name. */
  readonly told: { readonly events: string; readonly receipts: string };
  readonly events: string;
  readonly receipts: string;
  readonly devices: string;
  readonly names: string;
  readonly latest: string;
  readonly reminded: string;
  readonly hooks: string;
  readonly hook: (name: string) => string;
  readonly deliveries: (name: string) => string;
  /** Connected devices, as `presence.ts` writes them. */
  readonly present: string;
  /** From where they are. */
  readonly places: string;
  /** Written to find out what replicas have. */
  readonly spread: string;
  readonly idempotency: (key: string) => string;
}

/** What follows a key where it is the name of messages. */
export const toldIn = (database: number): string => (database === 0 ? "" : `@${database}`);

function keysOf(prefix: string, database: number, channel: string): Keys {
  const key = (part: string): string => `${prefix}{${channel}}:${part}`;
  return {
    all: PARTS.map(key),
    counters: key("counters"),
    told: { events: key("events") + toldIn(database), receipts: key("receipts") + toldIn(database) },
    events: key("events"),
    receipts: key("receipts"),
    devices: key("devices"),
    names: key("names"),
    latest: key("latest"),
    reminded: key("reminded"),
    hooks: key("hooks"),
    hook: (name) => key(`hook:${name}`),
    deliveries: (name) => key(`deliveries:${name}`),
    present: key("present"),
    places: key("places"),
    spread: key("spread"),
    idempotency: (name) => key(`key:${name}`),
  };
}

/** Channels whose keys are remembered: making a dozen names anew costs as much as sending them. */
const REMEMBERED_MAX = 5_000;

/** Gives a channel's keys in a database, all of which begin with `prefix`. */
export function keysWith(prefix: string, database = 0): (channel: string) => Keys {
  const remembered = new Map<string, Keys>();
  return (channel) => {
    let keys = remembered.get(channel);
    if (!keys) {
      if (remembered.size >= REMEMBERED_MAX) remembered.clear();
      remembered.set(channel, (keys = keysOf(prefix, database, channel)));
    }
    return keys;
  };
}
