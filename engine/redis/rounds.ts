/**
 * Which rounds of deferred events have begun, in Redis: those of a channel in its slot, and a list of the seconds in which some begin, each with its
 * channel.
 *
 * Every instance reads the list from a position of its own, because each sends the events to the devices that are connected to it. So nothing is taken
 * out of the list when a round begins; a second is deleted when every instance has read it long ago. A second is listed right after its deferral was
 * stored. If the instance dies in between, the device gets the event with its next feed.
 */
import type { DueRound, RoundPosition } from "../store.ts";
import type { Redis, Reply } from "./connection.ts";
import type { Keys } from "./keys.ts";
import type { SCRIPTS } from "./scripts.ts";

const SECOND = 1_000;
/** Seconds read at once, and scripts run at once. */
const LISTED_AT_ONCE = 200;
const CHANNELS_AT_ONCE = 16;
/** How long a second stays listed: an instance that was away for longer has lost all of its feeds. */
const KEPT_MS = 24 * 3600 * SECOND;

/** The clocks of two instances differ by less. */
const STILL_MS = 60 * SECOND;

/** A round as it is read: when it began, and its place among those of the same millisecond. */
interface Read extends DueRound {
  readonly at: number;
  readonly place: string;
}

const secondOf = (ms: number): number => Math.floor(ms / SECOND) * SECOND;

export class RedisRounds {
  readonly #link: Redis;
  readonly #list: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;
  #cleanedAt = 0;

  /** @param list key of the list of seconds */
  constructor(link: Redis, list: string, keys: (channel: string) => Keys, scripts: typeof SCRIPTS) {
    this.#link = link;
    this.#list = list;
    this.#keys = keys;
    this.#scripts = scripts;
  }

  /** Lists rounds of a channel that begin at these times, milliseconds since 1970. */
  async add(channel: string, times: readonly number[]): Promise<void> {
    const seconds = [...new Set(times.map(secondOf))];
    await this.#link.send("ZADD", this.#list, ...seconds.flatMap((second) => [String(second), `${second} ${channel}`]));
  }

  /** Implements `Store.roundsDue`. */
  async due(after: RoundPosition, now: number, limit: number) {
    if (now - this.#cleanedAt > KEPT_MS / 24) {
      this.#cleanedAt = now;
      await this.#link.send("ZREMRANGEBYSCORE", this.#list, "-inf", String(now - KEPT_MS));
    }
    const rounds: Read[] = [];
    let last = after;
    /** When the next round begins. */
    let ahead = Number.POSITIVE_INFINITY;
    for (let from = Math.max(secondOf(after.at), 0) || 0; ;) {
      const listed = (await this.#link.send(
        "ZRANGEBYSCORE",
        this.#list,
        String(from),
        String(now),
        "LIMIT",
        "0",
        String(LISTED_AT_ONCE),
      )) as readonly string[];
      const seconds = Map.groupBy(listed, (member) => Number(member.slice(0, member.indexOf(" "))));
      // The last second may have more channels than were read; unless it is the only one, it is read again.
      const isCut = listed.length === LISTED_AT_ONCE;
      if (isCut && seconds.size > 1) seconds.delete([...seconds.keys()].at(-1)!);
      for (const [second, members] of seconds) {
        const channels =
          isCut && seconds.size === 1
            ? await this.#channelsOf(second)
            : members.map((member) => member.slice(member.indexOf(" ") + 1));
        const found = await this.#inSecond(second, channels.sort(), last, now, limit - rounds.length);
        rounds.push(...found.rounds);
        last = found.last;
        ahead = Math.min(ahead, found.next);
        if (found.isMore) return { rounds, last, next: now };
        from = second + SECOND;
      }
      if (seconds.size === 0 || !isCut) break;
    }
    const [listed] = (await this.#link.send(
      "ZRANGEBYSCORE",
      this.#list,
      `(${now}`,
      "+inf",
      "LIMIT",
      "0",
      "1",
    )) as readonly string[];
    if (listed !== undefined) ahead = Math.min(ahead, Number(listed.slice(0, listed.indexOf(" "))));
    // Nothing else begins long ago, so what lies there is not read again.
    if (last.at < now - STILL_MS) last = { at: now - STILL_MS, place: "" };
    return { rounds, last, next: Number.isFinite(ahead) ? ahead : null };
  }

  async #channelsOf(second: number): Promise<string[]> {
    const members = (await this.#link.send(
      "ZRANGEBYSCORE",
      this.#list,
      String(second),
      String(second),
    )) as readonly string[];
    return members.map((member) => member.slice(member.indexOf(" ") + 1));
  }

  /** The rounds that begin in a second after a position, in order, at most `limit`. */
  async #inSecond(second: number, channels: readonly string[], after: RoundPosition, now: number, limit: number) {
    const until = Math.min(second + SECOND - 1, now);
    const from = Math.max(second, after.at);
    const [afterChannel, afterMember = ""] = after.at === from ? (after.place.split(" ") as [string, string?]) : [""];
    const found: Read[] = [];
    let isMore = false;
    let next = Number.POSITIVE_INFINITY;
    for (let at = 0; at < channels.length; at += CHANNELS_AT_ONCE)
      await Promise.all(
        channels.slice(at, at + CHANNELS_AT_ONCE).map(async (channel) => {
          // Of that millisecond, channels are read one after the other.
          const isBefore = after.at === from && channel < afterChannel!;
          const member = channel === afterChannel ? afterMember : "";
          const values = [isBefore ? from + 1 : from, isBefore ? "" : member, until, limit + 1];
          const reply = (await this.#link.run(
            this.#scripts.roundsDue,
            this.#keys(channel).all,
            values,
          )) as readonly Reply[];
          const [epoch, more, nextDue, ...rest] = reply as readonly [string?, number?, Reply?, ...Reply[]];
          if (epoch === undefined) return;
          if (more === 1) isMore = true;
          if (Number(nextDue) > now) next = Math.min(next, Number(nextDue));
          for (let n = 0; n < rest.length; n += 3) {
            const [due, place, round] = rest.slice(n, n + 3) as [string, string, number];
            const event = Number(place.slice(0, 15));
            found.push({
              at: Number(due),
              place: `${channel} ${place}`,
              channel,
              epoch,
              event,
              device: place.slice(16),
              round,
            });
          }
        }),
      );
    found.sort((a, b) => a.at - b.at || (a.place < b.place ? -1 : 1));
    const taken = found.slice(0, limit);
    const newest = taken.at(-1);
    const last = newest ? { at: newest.at, place: newest.place } : after;
    const rounds = taken.filter(({ round }) => round > 0);
    return { rounds, last, next, isMore: isMore || found.length > limit };
  }
}
