/**
 * Reads what needs attention from the rows that are kept of it: `attention.ts`.
 */
import { type TroubledChannel, type TroubledDevice, type TroubledEvent, worstDevice } from "../attention.ts";
import type { Channel } from "./schema.ts";
import type { SqliteFile } from "./file.ts";
import { type Counts, type DeviceCounts, WHOLE } from "./trouble-rows.ts";

/**
 * So many more devices are read that are silent for all that is kept, because the time since when such a device is in trouble is known only from all
 * of its rows. If more of them have the same number of troubles, which of them are listed may be decided by name.
 */
const TIES_MAX = 1_000;

export class TroubleReader {
  readonly #file: SqliteFile;

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  /** The channels with trouble. */
  channels(): (TroubledChannel & { readonly revision: number })[] {
    return this.#file.all(
      `SELECT c.name AS channel, a.failed, a.missing, a.overdue, a.revision,
       a.devices - iif(a.numbers = a.dropped, a.idle, 0) AS devices,
       coalesce((SELECT at FROM troubledEvents t WHERE t.channel = a.channel ORDER BY t.event LIMIT 1), 0) AS since
       FROM attention a INDEXED BY troubledChannels JOIN channels c ON c.id = a.channel WHERE a.failed + a.missing + a.overdue > 0`,
    );
  }

  /** A channel's devices in trouble, worst first. */
  devices({ id, name: channel }: Channel, limit: number): TroubledDevice[] {
    const counts = this.#file.get<Pick<Counts, "numbers" | "dropped">>(
      "SELECT numbers, dropped FROM attention WHERE channel = ?1",
      id,
    );
    if (!counts) return [];
    const { numbers, dropped } = counts;
    let whole: number | null = null;
    const wholeSince = (): number =>
      (whole ??=
        this.#file.get<{ at: number }>(
          "SELECT at FROM troubledEvents WHERE channel = +?1 AND number > ?2 ORDER BY number LIMIT 1",
          id,
          dropped,
        )?.at ?? 0);
    const read = (part: number, rows: number) =>
      this.#file.all<DeviceCounts & { device: string }>(
        `SELECT device, failed, missing, overdue, silent, since FROM troubledDevices
         WHERE channel = +?1 AND part = +?2 ORDER BY weight DESC, since, device LIMIT ?3`,
        id,
        part,
        rows,
      );
    return [...read(0, limit), ...read(1, limit), ...read(2, limit + TIES_MAX)]
      .flatMap(({ device, failed, missing, overdue, silent, since }) => {
        const owed = overdue + (silent === null ? 0 : numbers - Math.max(silent, dropped));
        if (failed + missing + owed === 0) return [];
        const oldest = silent !== WHOLE || numbers === dropped ? since : Math.min(since || wholeSince(), wholeSince());
        return [{ channel, device, failed, missing, overdue: owed, since: oldest, seenAt: null }];
      })
      .sort(worstDevice)
      .slice(0, limit)
      .map((device) => ({ ...device, seenAt: this.#seenAt(id, device.device) }));
  }

  #seenAt(id: number, device: string): number | null {
    const found = this.#file.get<{ seenAt: number | null }>(
      'SELECT seenAt FROM devices WHERE channel = ?1 AND device = ?2 AND "left" IS NULL',
      id,
      device,
    );
    return found?.seenAt ?? null;
  }

  /** A channel's events with trouble, worst first, without their tallies. */
  events({ id, name, epoch, floor }: Channel, limit: number): Omit<TroubledEvent, "tally">[] {
    return this.#file
      .all<Omit<TroubledEvent, "tally" | "channel" | "epoch">>(
        `SELECT t.event AS seq, t.at, t.failed, t.missing, t.overdue, e.type, e.deadline FROM troubledEvents t
         JOIN events e ON e.channel = t.channel AND e.seq = t.event
         WHERE t.channel = +?1 AND t.event > ?3 ORDER BY t.failed + t.missing + t.overdue DESC, t.event LIMIT ?2`,
        id,
        limit,
        floor,
      )
      .map((event) => ({ channel: name, epoch, ...event }));
  }
}
