/**
 * Reads how far many logs reach, with as few calls as possible: one on a single server; in a Cluster one per channel, because a call may only use keys
 * of one slot. It only reads.
 */
import { type Kind, PereError } from "../model.ts";
import type { Heads } from "../store.ts";

/** What the script returns for each log. */
const VALUES = 7;

/**
 * For each log the keys of its channel's counters and of its entries, and the entry to read (0: none) → for each its extent (nil: there is no such
 * channel) and its entry as stored ('': it was not asked for, or there is none)
 */
export const EXTENTS = `
    local found = {}
    for n, seq in ipairs(ARGV) do
      local extent = redis.call('HMGET', KEYS[2 * n - 1], 'epoch', 'head', 'floor', 'receiptsHead', 'receiptsFloor', 'controls')
      for _, value in ipairs(extent) do found[#found + 1] = value end
      local kept = seq ~= '0' and redis.call('XRANGE', KEYS[2 * n], seq .. '-0', seq .. '-0')[1]
      found[#found + 1] = kept and kept[2][2] or ''
    end
    return found`;

/** A log to read. */
export interface LogName {
  readonly kind: Kind;
  readonly channel: string;
}

/** What was read of a log: the extent of its channel, null if there is none; and an entry as stored, null: it was not asked for, or there is none. */
export interface ReadLog {
  readonly heads: Heads | null;
  readonly entry: string | null;
}

/** Parses an extent in a script's reply, from index `at` on. */
export const headsOf = (reply: readonly unknown[], at: number): Heads => ({
  epoch: reply[at] as string,
  events: { head: Number(reply[at + 1]), floor: Number(reply[at + 2]), controls: Number(reply[at + 5]) },
  receipts: { head: Number(reply[at + 3]), floor: Number(reply[at + 4]) },
});

/** Runs the script for groups of keys, as `Redis.readGroups` does. */
type ReadGroups = (keys: readonly string[], values: readonly number[], width: number) => Promise<readonly unknown[]>;

/**
 * @param prefix of all keys
 * @param entries the entry to read of each log; 0: none
 * @returns for each log what was read, or why it could not be
 * @throws PereError away
 */
export async function readExtents(
  read: ReadGroups,
  prefix: string,
  logs: readonly LogName[],
  entries: readonly number[],
): Promise<readonly (ReadLog | PereError)[]> {
  const keys: string[] = [];
  for (const { kind, channel } of logs) keys.push(`${prefix}{${channel}}:counters`, `${prefix}{${channel}}:${kind}`);
  const found = await read(keys, entries, VALUES);
  return logs.map((_, index) => {
    const at = index * VALUES;
    const first = found[at];
    if (first instanceof PereError) return first;
    const entry = found[at + VALUES - 1] as string;
    return { heads: first === null ? null : headsOf(found, at), entry: entry === "" ? null : entry };
  });
}
