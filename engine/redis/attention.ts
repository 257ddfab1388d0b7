/**
 * What needs attention, across the channels of one Redis.
 *
 * Each channel keeps its own counts: `attention-scripts.ts`. In a Cluster no script can use keys of two channels, so a list of the channels in trouble
 * is kept beside them: a hash with the counts of each. A script that changed counts returns them with a revision, and the instance that ran it writes
 * them to the list, unless a later revision is there. If the instance dies in between, the list is outdated until the channel's next change, until
 * somebody reads the channel, or until retention trims it.
 *
 * Another hash lists the hooks in trouble.
 */
import {
  type TroubledChannel,
  type TroubledDevice,
  type TroubledEvent,
  type TroubledHook,
  worstDevice,
} from "../attention.ts";
import type { Redis, Reply } from "./connection.ts";
import { eventHeadOf, tallyOf } from "./entries.ts";
import type { Keys } from "./keys.ts";
import type { SCRIPTS } from "./scripts.ts";
import type { Troubled } from "../store.ts";

/** Rows per slice of a script that lets events become overdue. */
const AGE_ROWS = 1_000;
/**
 * So many more devices are read that are silent for all that is kept, because the time since when such a device is in trouble is known only from all
 * of its rows. If more of them have the same number of troubles, which of them are listed may be decided by name.
 */
const TIES_MAX = 1_000;

/** Values per event, as the script returns them: six, and those of a tally. */
const EVENT_VALUES = 15;

/** A channel without trouble, as scripts return it. */
const WELL = /^\d+ \d+ 0 0 0 /;

/** Splits values into groups of `width`. */
function* inGroups(values: readonly Reply[], width: number): Generator<readonly Reply[]> {
  for (let at = 0; at < values.length; at += width) yield values.slice(at, at + width);
}

export class RedisAttention {
  readonly #link: Redis;
  readonly #channels: string;
  readonly #hooks: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;

  /** @param prefix of all keys */
  constructor(link: Redis, prefix: string, keys: (channel: string) => Keys, scripts: typeof SCRIPTS) {
    this.#link = link;
    this.#channels = `${prefix}troubled-channels`;
    this.#hooks = `${prefix}troubled-hooks`;
    this.#keys = keys;
    this.#scripts = scripts;
  }

  /** A script may have changed a channel's counts. If this fails, the list is outdated for a while. @param counts as the script returned them */
  async note(channel: string, counts: Reply | undefined): Promise<void> {
    if (typeof counts !== "string" || counts === "") return;
    await this.#link.run(this.#scripts.noteTrouble, [this.#channels], [channel, counts, ""]).catch(() => {});
  }

  /** A channel was deleted. */
  async forget(channel: string): Promise<void> {
    await this.#link.send("HDEL", this.#channels, channel);
  }

  /** Lets events of a channel become overdue, in a slice. @returns when the next one does; empty: none is to */
  async age(channel: string, now: number): Promise<string> {
    const reply = await this.#link.run(this.#scripts.age, this.#keys(channel).withAttention, [now, AGE_ROWS]);
    const [next, counts] = reply as readonly [Reply, Reply];
    await this.note(channel, counts);
    return String(next);
  }

  async channels(): Promise<(TroubledChannel & { readonly revision: number })[]> {
    const found = (await this.#link.send("HGETALL", this.#channels)) as unknown as Readonly<Record<string, string>>;
    return Object.entries(found).map(([channel, text]) => {
      const [revision, devices, failed, missing, overdue, since] = text.split(" ").map(Number) as SixNumbers;
      return { channel, revision, devices, failed, missing, overdue, since };
    });
  }

  async troubles(channel: string, limit: number): Promise<Troubled> {
    const keys = this.#keys(channel).withAttention;
    const [listed, reply] = await Promise.all([
      this.#link.send("HGET", this.#channels, channel),
      this.#link.run(this.#scripts.troubles, keys, [limit, TIES_MAX]),
    ]);
    const [epoch, counts, rows = [], found = []] = reply as readonly [
      string?,
      string?,
      (readonly Reply[])?,
      (readonly Reply[])?,
    ];
    await this.#repair(channel, listed as string | null, counts ?? "0 0 0 0 0 0");
    if (epoch === undefined) return { devices: [], events: [] };
    const devices = [...inGroups(rows, 6)].map(([device, failed, missing, overdue, since, seenAt]): TroubledDevice => ({
      channel,
      device: device as string,
      failed: Number(failed),
      missing: Number(missing),
      overdue: Number(overdue),
      since: Number(since),
      seenAt: seenAt === "" || Number(seenAt) === -1 ? null : Number(seenAt),
    }));
    const events = [...inGroups(found, EVENT_VALUES)].map(
      ([seq, at, failed, missing, overdue, head, ...tally]): TroubledEvent => {
        const { type, deadline } = eventHeadOf(Number(seq), head as string);
        return {
          ...{ channel, epoch, seq: Number(seq), at: Number(at), type, deadline },
          ...{ failed: Number(failed), missing: Number(missing), overdue: Number(overdue) },
          tally: tallyOf(tally.map(Number)),
        };
      },
    );
    return { devices: devices.sort(worstDevice).slice(0, limit), events };
  }

  /** Corrects the list, if it is not what the channel says and was not changed meanwhile. */
  async #repair(channel: string, listed: string | null, counts: string): Promise<void> {
    const isWell = WELL.test(counts);
    if (listed === counts || (listed === null && isWell)) return;
    await this.#link.run(this.#scripts.noteTrouble, [this.#channels], [channel, counts, listed ?? "-"]).catch(() => {});
  }

  // ----------------------------------------------------------------------------------------------------------------- hooks

  /** A hook was changed: lists it if it is in trouble. If this fails, it is listed with its next change. @param givenUp calls that it gave up */
  async noteHook(channel: string, name: string, givenUp: number, disabled: string | null): Promise<void> {
    const field = `${channel} ${name}`;
    const noted =
      givenUp === 0 && disabled === null
        ? this.#link.send("HDEL", this.#hooks, field)
        : this.#link.send("HSET", this.#hooks, field, JSON.stringify([givenUp, disabled]));
    await noted.catch(() => {});
  }

  async hooks(): Promise<TroubledHook[]> {
    const found = (await this.#link.send("HGETALL", this.#hooks)) as unknown as Readonly<Record<string, string>>;
    return Object.entries(found).map(([field, text]) => {
      const [channel, name] = field.split(" ") as [string, string];
      const [givenUp, disabled] = JSON.parse(text) as [number, string | null];
      return { channel, name, givenUp, disabled };
    });
  }
}

type SixNumbers = [number, number, number, number, number, number];
