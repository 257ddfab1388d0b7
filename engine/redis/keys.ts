/**
 * The keys of a channel in Redis. All of one channel's keys share a hash tag, so they are in one slot and one script may use all of them.
 * `scripts.ts` describes their content.
 */

import { ATTENTION_PARTS } from "./attention-scripts.ts";
import type { Kind } from "../model.ts";

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
  "rounds",
  "deferrals",
  "keyed",
  "by-key",
  "tags",
  "tagged",
] as const;

/** Suffix of a key that makes it a message name. */
export const topicSuffix = (database: number): string => (database === 0 ? "" : `@${database}`);

/** The keys of one channel. Only those of every script are kept: a quiet channel then costs a third. */
export class Keys {
  readonly #tag: string;
  readonly #database: number;
  /** Those of every script, in order. */
  readonly all: readonly string[];

  constructor(prefix: string, database: number, channel: string) {
    this.#tag = `${prefix}{${channel}}:`;
    this.#database = database;
    this.all = PARTS.map((part) => this.#tag + part);
  }

  /** Those of `attention-scripts.ts`, which come last among the keys of a script. */
  get attention(): readonly string[] {
    return ATTENTION_PARTS.map((part) => this.#tag + part);
  }

  /** All of both. */
  get withAttention(): readonly string[] {
    return [...this.all, ...this.attention];
  }

  #part(part: (typeof PARTS)[number]): string {
    return this.all[PARTS.indexOf(part)]!;
  }

  get counters(): string {
    return this.#part("counters");
  }

  get devices(): string {
    return this.#part("devices");
  }

  get names(): string {
    return this.#part("names");
  }

  get tags(): string {
    return this.#part("tags");
  }

  /**
   * The name under which a log's messages are published. All databases of a server share these names, so every database except the first is part of
   * the name.
   */
  topic(kind: Kind): string {
    return this.#part(kind) + topicSuffix(this.#database);
  }

  get hooks(): string {
    return `${this.#tag}hooks`;
  }

  get hook(): (name: string) => string {
    return (name) => `${this.#tag}hook:${name}`;
  }

  get deliveries(): (name: string) => string {
    return (name) => `${this.#tag}deliveries:${name}`;
  }

  /** Connected devices, as `presence.ts` writes them. */
  get present(): string {
    return `${this.#tag}present`;
  }

  /** Their addresses. */
  get presentAddresses(): string {
    return `${this.#tag}places`;
  }

  /** Written to check which replicas are up to date. */
  get replicaProbe(): string {
    return `${this.#tag}spread`;
  }

  get idempotency(): (key: string) => string {
    return (key) => `${this.#tag}key:${key}`;
  }

  /** Scheduled pushes: their states, their ids, their times. */
  get schedules(): readonly [string, string, string] {
    return [`${this.#tag}schedules`, `${this.#tag}schedule-ids`, `${this.#tag}schedule-times`];
  }
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
      remembered.set(channel, (keys = new Keys(prefix, database, channel)));
    }
    return keys;
  };
}
