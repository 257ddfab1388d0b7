/**
 * The keys of a channel in Redis. All of one channel's keys share a hash tag, so they are in one slot and one script may use all of them.
 * `scripts.ts` describes their content.
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
  /**
   * The names under which each log's messages are published. All databases of a server share these names, so every database except the first is part
   * of the name.
   */
  readonly topics: { readonly events: string; readonly receipts: string };
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
  /** Their addresses. */
  readonly presentAddresses: string;
  /** Written to check which replicas are up to date. */
  readonly replicaProbe: string;
  readonly idempotency: (key: string) => string;
  /** Scheduled pushes: their states, their ids, their times. */
  readonly schedules: readonly [string, string, string];
}

/** Suffix of a key that makes it a message name. */
export const topicSuffix = (database: number): string => (database === 0 ? "" : `@${database}`);

function keysOf(prefix: string, database: number, channel: string): Keys {
  const key = (part: string): string => `${prefix}{${channel}}:${part}`;
  return {
    all: PARTS.map(key),
    counters: key("counters"),
    topics: { events: key("events") + topicSuffix(database), receipts: key("receipts") + topicSuffix(database) },
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
    presentAddresses: key("places"),
    replicaProbe: key("spread"),
    idempotency: (name) => key(`key:${name}`),
    schedules: [key("schedules"), key("schedule-ids"), key("schedule-times")],
  };
}

/** Cache limit: building a dozen names costs as much as sending them. */
const REMEMBERED_MAX = 5_000;

/** Returns a function that gives a channel's keys, all with this prefix. */
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
