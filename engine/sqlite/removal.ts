/**
 * Deletes a channel that nobody needs any more: no devices, no hooks, no scheduled pushes to come, and no events that have not expired.
 *
 * A channel may keep very many events, all of them expired, so this is done in slices, each in a transaction. First the events are looked at, and only
 * if all of them have expired retention drops them as it does with others. At each slice the channel may have come into use again. Then it stays,
 * perhaps without what had expired. Its own row is deleted last.
 */
import type { SqliteFile } from "./file.ts";
import type { ChannelRetention } from "./retention.ts";
import type { Channel } from "./schema.ts";
import type { Remains } from "../store.ts";

/** Rows that are read or deleted in one slice. */
const SLICE_ROWS = 1_000;

/** Up to which event all kept ones of an epoch have expired. */
export interface Expired {
  readonly epoch: string;
  readonly upTo: number;
}

/** Whether the channel is deleted, or what it still has; "more": call again with `expired`. */
export interface RemovalStep {
  readonly result: "removed" | "more" | Remains;
  readonly expired: Expired;
}

/** One slice. @param has how many of these the channel has. @param now milliseconds since 1970 */
export function removeSome(
  file: SqliteFile,
  retention: ChannelRetention,
  channel: Channel,
  has: Pick<Remains, "hooks" | "schedules">,
  known: Expired,
  now: number,
): RemovalStep {
  const { id, epoch, head, floor, audience } = channel;
  const checked = Math.max(floor, known.epoch === epoch ? known.upTo : 0);
  const { looked, upTo, isExpired } = look(file, id, checked, now);
  const expired = { epoch, upTo: looked === 0 ? head : upTo };
  if (!isExpired || audience > 0 || has.hooks > 0 || has.schedules > 0)
    return { result: { events: !isExpired, devices: audience, ...has }, expired };
  if (expired.upTo < head) return { result: "more", expired };
  const isEmpty = floor === head && channel.deletedUpTo === floor && channel.receiptsFloor === channel.receiptsHead;
  if (retention.trim(channel, { count: 0, before: Number.POSITIVE_INFINITY }, now) || !isEmpty)
    return { result: "more", expired };
  for (const [table, key] of [
    ["keys", "key"],
    ["devices", "device"],
    ["audiences", "event"],
    ["schedules", "id"],
  ])
    if (
      file.run(
        `DELETE FROM ${table} WHERE channel = ?1 AND ${key} IN (SELECT ${key} FROM ${table} WHERE channel = ?1 LIMIT ${SLICE_ROWS})`,
        id,
      ) > 0
    )
      return { result: "more", expired };
  file.run("DELETE FROM channels WHERE id = ?1", id);
  return { result: "removed", expired };
}

/** Looks at the next events after `after`. */
function look(file: SqliteFile, id: number, after: number, now: number) {
  const { looked, upTo, alive } = file.get<{ looked: number; upTo: number | null; alive: number | null }>(
    `SELECT count(*) AS looked, max(seq) AS upTo, max(expires IS NULL OR expires > ?3) AS alive FROM
     (SELECT seq, expires FROM events WHERE channel = ?1 AND seq > ?2 ORDER BY seq LIMIT ${SLICE_ROWS})`,
    id,
    after,
    now,
  )!;
  return { looked, upTo: upTo ?? after, isExpired: alive !== 1 };
}
