/**
 * How an instance is notified of entries stored at any instance: one connection, subscribed to the logs that are followed here.
 *
 * A message carries the position and the entries, so as long as an instance keeps up, it reads nothing back. But messages may get lost: connections
 * break, Redis disconnects slow subscribers, and delivery on a healthy connection can stall. So the extent of every followed log is read after each
 * reconnect and on a slow timer. Entries without a message are reported as an extent, and followers read them from the log. The extent also shows a
 * new epoch: a log whose epoch changed, that does not exist any more, or that became shorter was lost or restored.
 *
 * A Redis that was restored to an older state may have grown again before its extent is read. Then no log is shorter, but other entries stand where
 * followers have already read. So for each log the last received entry is remembered by a mark. After every new connection, nothing of a log is
 * reported until that entry was found in its place. If it is not there, the log gets a new epoch.
 *
 * Never reports entries out of order, and never trusts a message over the log.
 */
import { type Kind, PereError } from "../model.ts";
import { eventOf, receiptOf } from "./entries.ts";
import { RedisLink } from "./connection.ts";
import { RETIRED, SEPARATOR, SHARED } from "./scripts.ts";
import type { Extent, Heads, Wake } from "../store.ts";

/** Interval of reading the extents of followed logs, in milliseconds. */
const LOOK_MS = 2_000;
/** Extents read at once. */
const LOOKS_AT_ONCE = 500;

/** What the subscriber needs from the store. */
export interface SubscriberSource {
  /** The name of the channel in Redis on which a log's messages are published. */
  name(kind: Kind, channel: string): string;
  heads(channel: string): Promise<Heads | null>;
  /** Entries of a log were received up to here. */
  heard(kind: Kind, channel: string, epoch: string, seq: number): void;
  /** An entry as stored; null: there is none. */
  entry(kind: Kind, channel: string, seq: number): Promise<string | null>;
  open(channel: string): Promise<Heads>;
  /** Gives a restored channel a new epoch, unless another instance did. */
  renew(channel: string, lost: string): Promise<unknown>;
}

/** Identifies an entry. "gone": retention has dropped it. */
type Mark = number | bigint | "gone";

interface Followed {
  readonly kind: Kind;
  readonly channel: string;
  readonly key: string;
  wanted: boolean;
  subscribed: boolean;
  /** Subscribes and unsubscribes one after the other; `next` is shared by all that ask before it begins. */
  tail: Promise<void>;
  next: Promise<void> | null;
  epoch: string | null;
  /** The newest reported entry; -1: nothing is known yet. */
  heard: number;
  /** That entry's mark; null: it was not read yet. */
  mark: Mark | null;
  /** The newest reported entry at the last check. */
  heardBefore: number;
  /** Its epoch is being read, or it is being checked alone. */
  learning: Promise<boolean> | null;
  asked: Promise<void> | null;
  isAskedAgain: boolean;
  /** The log was compared with what was received before this connection. */
  isSure: boolean;
}

export class RedisSubscriber {
  readonly #source: SubscriberSource;
  readonly #link: RedisLink;
  readonly #followed = new Map<string, Followed>();
  readonly #timer: Timer;
  #listener: (wake: Wake) => void = () => {};
  #reached: (extent: Extent) => void = () => {};
  #shared: (channel: string, device: string, addresses: readonly string[]) => void = () => {};
  #looking = false;
  /** The next check reports growth at once, although messages may be under way. */
  #hurry = false;
  /** A check was requested during a check. */
  #again = false;
  /** Number of connections so far: a reply requested before the last one is outdated. */
  #connections = 0;

  /** @param urls servers that share messages; it subscribes at one of them */
  constructor(urls: readonly string[], source: SubscriberSource) {
    this.#source = source;
    this.#link = new RedisLink(urls, (client) => {
      this.markUnverified();
      const keys = [...this.#followed.values()].filter(({ subscribed }) => subscribed).map(({ key }) => key);
      const back = keys.length === 0 ? Promise.resolve() : client.subscribe(keys, this.#message);
      back.then(
        () => void this.#look(true),
        () => (this.#hurry = true),
      );
    });
    this.#timer = setInterval(() => this.#tick(), LOOK_MS);
    this.#timer.unref();
  }

  start(): Promise<void> {
    return this.#link.start();
  }

  /** There is a new connection to Redis, this one or the store's. The server may be in another state than before. */
  markUnverified(): void {
    this.#connections++;
    for (const followed of this.#followed.values()) followed.isSure = false;
    void this.#look(true);
  }

  watch(
    listener: (wake: Wake) => void,
    reached: (extent: Extent) => void,
    shared: (channel: string, device: string, addresses: readonly string[]) => void,
  ): void {
    this.#listener = listener;
    this.#reached = reached;
    this.#shared = shared;
  }

  /** Resolves when everything stored from now on will be reported. @throws PereError away */
  async follow(kind: Kind, channel: string): Promise<void> {
    const key = this.#source.name(kind, channel);
    let followed = this.#followed.get(key);
    if (!followed) {
      const unheard = {
        epoch: null,
        heard: -1,
        mark: null,
        heardBefore: -1,
        learning: null,
        asked: null,
        isAskedAgain: false,
        isSure: true,
      };
      followed = {
        kind,
        channel,
        key,
        wanted: true,
        subscribed: false,
        tail: Promise.resolve(),
        next: null,
        ...unheard,
      };
      this.#followed.set(key, followed);
    }
    followed.wanted = true;
    await this.#settle(followed);
    // What the caller reads next must be of the verified log.
    if (!followed.isSure) await this.#lookAt([followed], true);
    if (!followed.isSure)
      throw new PereError(
        "away",
        `Redis has not confirmed yet that the ${kind} log of ${channel} is unchanged; try again`,
      );
  }

  /** The log has no follower here any more; unsubscribes soon. */
  unfollow(kind: Kind, channel: string): void {
    const followed = this.#followed.get(this.#source.name(kind, channel));
    if (followed) followed.wanted = false;
  }

  /** Brings the subscription to the wanted state, after the pending change. */
  #settle(followed: Followed): Promise<void> {
    const { key } = followed;
    followed.next ??= followed.tail.then(async () => {
      followed.next = null;
      if (followed.wanted === followed.subscribed) return;
      if (followed.wanted) {
        await this.#link.call((client) => client.subscribe(key, this.#message));
        followed.subscribed = true;
        // Messages arrive while the extent is being read: only entries reported before the request can show that a log became shorter.
        const { epoch, heard } = followed;
        const heads = await this.#source.heads(followed.channel);
        if (heads && followed.isSure && !this.#compare(followed, heads, { epoch, heard }, null, true))
          await this.#renew([[followed, heads.epoch]]);
      } else {
        followed.subscribed = false;
        try {
          await this.#link.call((client) => client.unsubscribe(key, this.#message));
        } finally {
          if (!followed.wanted) this.#followed.delete(key);
        }
      }
    });
    const tail = followed.next;
    followed.tail = tail.catch(() => {});
    return tail;
  }

  /** A message: `epoch first last`, and the entries if they are small; or `epoch retired device`, `- shared device addresses`. */
  readonly #message = (message: string, key: string): void => {
    const followed = this.#followed.get(key);
    if (!followed?.wanted) return;
    const { kind, channel } = followed;
    const [about, ...texts] = message.split(SEPARATOR) as [string, ...string[]];
    const [epoch, firstText, lastText, addresses = ""] = about.split(" ") as [string, string, string, string?];
    if (firstText === SHARED) return this.#shared(channel, lastText, addresses.split(","));
    // A message counts only if its epoch is the log's. Any other or malformed message only triggers a check.
    if (followed.epoch === null && followed.isSure)
      return void this.#learn(followed).then((isKnown) => {
        if (isKnown) this.#message(message, key);
        else void this.#lookOnce(followed);
      });
    if (firstText === RETIRED)
      return void this.#inEpoch(followed, epoch, () => this.#listener({ kind: "retired", channel, device: lastText }));
    const [first, last] = [Number(firstText), Number(lastText)];
    const isWhole = Number.isSafeInteger(first) && Number.isSafeInteger(last);
    if (!isWhole || !followed.isSure || epoch !== followed.epoch) return void this.#lookOnce(followed);
    if (last <= followed.heard) return;
    followed.heard = last;
    this.#source.heard(kind, channel, epoch, last);
    followed.mark = texts.length === 0 ? null : Bun.hash(texts.at(-1)!);
    if (texts.length === 0) return this.#reached({ kind, channel, epoch, head: last });
    this.#listener(
      kind === "events"
        ? { kind, channel, epoch, entries: texts.map((text, n) => eventOf(first + n, text)) }
        : { kind, channel, epoch, entries: texts.map((text, n) => receiptOf(first + n, text)) },
    );
  };

  /** Runs an action if the log has this epoch: at once, or after a check. */
  #inEpoch(followed: Followed, epoch: string, run: () => void): unknown {
    if (followed.epoch === epoch) return run();
    return this.#lookOnce(followed).then(() => {
      if (followed.epoch === epoch && followed.wanted) run();
    });
  }

  /** Reads the epoch of a log that was followed before its channel existed. Entries are still reported by messages. Never rejects. */
  #learn(followed: Followed): Promise<boolean> {
    followed.learning ??= this.#source
      .heads(followed.channel)
      .then(
        (heads) => {
          if (heads) followed.epoch ??= heads.epoch;
          return followed.epoch !== null;
        },
        () => false,
      )
      .finally(() => (followed.learning = null));
    return followed.learning;
  }

  /** Checks one log, and once more for all requests made meanwhile. Never rejects: if Redis is away, the timer tries again. */
  #lookOnce(followed: Followed): Promise<void> {
    followed.isAskedAgain = followed.asked !== null;
    followed.asked ??= (async () => {
      do {
        followed.isAskedAgain = false;
        await this.#lookAt([followed], true).catch(() => void (this.#hurry = true));
      } while (followed.isAskedAgain);
      followed.asked = null;
    })();
    return followed.asked;
  }

  #tick(): void {
    for (const followed of this.#followed.values())
      if (followed.wanted !== followed.subscribed) this.#settle(followed).catch(() => {});
    void this.#look(false);
  }

  /** Reads the extents of all followed logs. One check at a time, so that results come in order. */
  async #look(hurry: boolean): Promise<void> {
    if (hurry) this.#hurry = true;
    if (this.#looking) {
      this.#again ||= hurry;
      return;
    }
    this.#looking = true;
    this.#again = false;
    const atOnce = this.#hurry;
    this.#hurry = false;
    const all = [...this.#followed.values()].filter((followed) => {
      const { wanted, subscribed, isSure, heard, heardBefore } = followed;
      followed.heardBefore = heard;
      // Messages arrive: a busy log needs no check until it is quiet for a full interval.
      return wanted && subscribed && (atOnce || !isSure || heard === heardBefore);
    });
    for (let at = 0; at < all.length; at += LOOKS_AT_ONCE)
      // Redis is away; the timer tries again.
      await this.#lookAt(all.slice(at, at + LOOKS_AT_ONCE), atOnce).catch(() => (this.#hurry ||= atOnce));
    this.#looking = false;
    if (this.#again) void this.#look(true);
  }

  /** Reads the extents of some logs, and verifies those that are in doubt. @throws PereError away */
  async #lookAt(some: readonly Followed[], atOnce: boolean): Promise<void> {
    const connections = this.#connections;
    const asked = some.map(({ epoch, heard }) => ({ epoch, heard }));
    // Separately: if one node of a Cluster is away, the other logs are still checked.
    const found = await Promise.allSettled(
      some.map(async (followed) => {
        // Read the entry first: if retention drops it meanwhile, it is below the floor that is read after it.
        const mark = await this.#read(followed);
        const heads = await this.#source.heads(followed.channel);
        // A followed channel that was deleted gets a new epoch, so that its followers are told.
        return { mark, heads: heads ?? (await this.#source.open(followed.channel)) };
      }),
    );
    if (connections !== this.#connections) return; // Another check is due already.
    const lost: (readonly [Followed, string])[] = [];
    for (const [index, followed] of some.entries()) {
      const answer = found[index]!;
      if (answer.status === "rejected") continue;
      const { heads, mark } = answer.value;
      if (!this.#compare(followed, heads, asked[index]!, mark, atOnce)) lost.push([followed, heads.epoch]);
    }
    if (lost.length > 0) await this.#renew(lost);
    for (const answer of found) if (answer.status === "rejected") throw answer.reason;
  }

  /** The mark of the entry at the last received position, if it is worth reading; null: no entry, or not read. */
  async #read({ kind, channel, heard, mark, isSure }: Followed): Promise<Mark | null> {
    if (heard <= 0 || (isSure && mark !== null)) return null;
    const text = await this.#source.entry(kind, channel, heard);
    return text === null ? null : Bun.hash(text);
  }

  /**
   * Applies what was read of a log and reports its extent.
   * @param asked the epoch and the newest reported entry before the read
   * @param mark of the entry there now, as `#read` returns it
   * @returns false: the epoch is the same but the log is not; nothing was applied
   */
  #compare(
    followed: Followed,
    heads: Heads,
    asked: Pick<Followed, "epoch" | "heard">,
    mark: Mark | null,
    atOnce: boolean,
  ): boolean {
    const { kind, channel } = followed;
    const { head, floor } = heads[kind];
    const { epoch } = heads;
    const isNew = followed.epoch !== null && followed.epoch !== epoch;
    // Another check has seen a newer epoch meanwhile, so this result is outdated; the next check reads again.
    if (isNew && asked.epoch !== followed.epoch) return true;
    // Entries received in another epoch say nothing about this one, even if another check has seen this epoch meanwhile.
    if (!isNew && asked.epoch === followed.epoch) {
      const { heard } = asked;
      if (head < heard) return false;
      if (!followed.isSure && heard > floor && followed.mark !== null && followed.mark !== mark) return false;
      if (followed.heard === heard) followed.mark ??= heard > floor ? mark : "gone";
    }
    // Two checks in a row saw the log ahead without a message between them: the messages are lost.
    const isStill = atOnce || !followed.isSure || followed.heard === followed.heardBefore;
    followed.heardBefore = followed.heard;
    followed.epoch = epoch;
    followed.isSure = true;
    if (!isNew && (head <= followed.heard || !isStill)) return true;
    followed.heard = head;
    followed.mark = null;
    this.#reached({ kind, channel, epoch, head });
    return true;
  }

  /** Restored logs get a new epoch, so that new entries are not mistaken for old ones. */
  async #renew(lost: readonly (readonly [Followed, epoch: string])[]): Promise<void> {
    for (const [followed] of lost) followed.isSure = false;
    const renewed: Followed[] = [];
    for (const [followed, epoch] of lost)
      // If Redis does not accept this now, nothing of the log is reported, and the next check finds it again.
      await this.#source.renew(followed.channel, epoch).then(
        () => renewed.push(followed),
        () => {},
      );
    if (renewed.length > 0) await this.#lookAt(renewed, true);
  }

  close(): Promise<void> {
    clearInterval(this.#timer);
    this.#followed.clear();
    return this.#link.close();
  }
}
