/**
 * How an instance hears what was stored, wherever it was stored: one connection that is subscribed to the logs that somebody here follows.
 *
 * A message carries the position and the entries, so in step nothing is read back. But a message is a hint: connections break, Redis
 * cuts off subscribers that read slowly, and a healthy one can starve. So the extent of every followed log is asked again after each
 * reconnect and on a slow timer; what has grown unheard is told as an extent, and followers read the hole from the log. The extent is also
 * where another life of a channel shows: a log whose epoch changed, that is gone, or that has become shorter was lost or put back.
 *
 * A Redis that is put back to an older state may have grown again before it is asked: then nothing is shorter, and other entries stand where
 * those were that followers have. So each log remembers a mark of the entry that was heard last, and after every new connection no log is
 * believed, and nothing of it is told, before that entry was found in its place. Where it is not, the log gets a new epoch.
 *
 * What it never does: tell entries out of order, or believe a message over the log.
 */
import { type Kind, PereError } from "../model.ts";
import { eventOf, receiptOf } from "./entries.ts";
import { RedisLink } from "./connection.ts";
import { RETIRED, SEPARATOR, SHARED } from "./scripts.ts";
import type { Extent, Heads, Wake } from "../store.ts";

/** How often the extents of followed logs are asked, in milliseconds. */
const LOOK_MS = 2_000;
/** Extents asked in one go. */
const LOOKS_AT_ONCE = 500;

/** What the ear needs of the store. */
export interface SubscriberSource {
  /** The name under which a log's messages are published. */
  name(kind: Kind, channel: string): string;
  heads(channel: string): Promise<Heads | null>;
  /** Entries of a log were heard up to here. */
  heard(kind: Kind, channel: string, epoch: string, seq: number): void;
  /** An entry as it is written in its log; null: there is none. */
  entry(kind: Kind, channel: string, seq: number): Promise<string | null>;
  open(channel: string): Promise<Heads>;
  /** Gives a channel that was put back a new epoch, unless somebody else did. */
  renew(channel: string, lost: string): Promise<unknown>;
}

/** What an entry is known by. "gone": retention has dropped it. */
type Mark = number | bigint | "gone";

interface Followed {
  readonly kind: Kind;
  readonly channel: string;
  readonly key: string;
  wanted: boolean;
  subscribed: boolean;
  /** Subscribing and unsubscribing, one after the other; and what is to be done next, for all who ask before it begins. */
  work: Promise<void>;
  next: Promise<void> | null;
  epoch: string | null;
  /** The newest entry that was told; -1: nothing is known yet. */
  heard: number;
  /** That entry's mark; null: it was not read yet. */
  mark: Mark | null;
  /** The newest that was told at the last look. */
  heardBefore: number;
  /** Its epoch is being asked for; it is being looked at alone. */
  learning: Promise<boolean> | null;
  asked: Promise<void> | null;
  isAskedAgain: boolean;
  /** The log was compared with what was heard since there is this connection. */
  isSure: boolean;
}

export class RedisSubscriber {
  readonly #source: SubscriberSource;
  readonly #link: RedisLink;
  readonly #followed = new Map<string, Followed>();
  readonly #timer: Timer;
  #tell: (wake: Wake) => void = () => {};
  #reached: (extent: Extent) => void = () => {};
  #shared: (channel: string, device: string, addresses: readonly string[]) => void = () => {};
  #looking = false;
  /** The next look tells at once what has grown, although messages may be under way. */
  #hurry = false;
  /** A look was asked for during a look. */
  #again = false;
  /** New connections so far: an answer that was asked for before the last one says nothing. */
  #connections = 0;

  /** @param urls of servers that hear each other; it listens at one of them */
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

  /** There is a new connection to Redis, this one's or the store's. What is behind it may be in another state than what was heard. */
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
    this.#tell = listener;
    this.#reached = reached;
    this.#shared = shared;
  }

  /** Resolves when what is stored from now on will be heard. @throws PereError away */
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
        work: Promise.resolve(),
        next: null,
        ...unheard,
      };
      this.#followed.set(key, followed);
    }
    followed.wanted = true;
    await this.#settle(followed);
    // What the caller reads next is to be of the log that was heard.
    if (!followed.isSure) await this.#lookAt([followed], true);
    if (!followed.isSure)
      throw new PereError("away", `Redis can't yet tell whether ${kind} of ${channel} are what they were`);
  }

  /** Nobody here follows the log any more; soon nothing of it is heard. */
  unfollow(kind: Kind, channel: string): void {
    const followed = this.#followed.get(this.#source.name(kind, channel));
    if (followed) followed.wanted = false;
  }

  /** Brings the subscription to where it is wanted, after what is under way. */
  #settle(followed: Followed): Promise<void> {
    const { key } = followed;
    followed.next ??= followed.work.then(async () => {
      followed.next = null;
      if (followed.wanted === followed.subscribed) return;
      if (followed.wanted) {
        await this.#link.call((client) => client.subscribe(key, this.#message));
        followed.subscribed = true;
        // Messages come while the extent is on its way: only what was told before the question says that a log became shorter.
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
    const work = followed.next;
    followed.work = work.catch(() => {});
    return work;
  }

  /** One message: `epoch first last`, and the entries when they are small; or `epoch retired device`, `- shared device addresses`. */
  readonly #message = (message: string, key: string): void => {
    const followed = this.#followed.get(key);
    if (!followed?.wanted) return;
    const { kind, channel } = followed;
    const [about, ...texts] = message.split(SEPARATOR) as [string, ...string[]];
    const [epoch, firstText, lastText, addresses = ""] = about.split(" ") as [string, string, string, string?];
    if (firstText === SHARED) return this.#shared(channel, lastText, addresses.split(","));
    // A message is of this log when it is of its epoch: another one's, or one that can't be read, is a reason to look at this log, and no more.
    if (followed.epoch === null && followed.isSure)
      return void this.#learn(followed).then((isKnown) => {
        if (isKnown) this.#message(message, key);
        else void this.#lookOnce(followed);
      });
    if (firstText === RETIRED)
      return void this.#inEpoch(followed, epoch, () => this.#tell({ kind: "retired", channel, device: lastText }));
    const [first, last] = [Number(firstText), Number(lastText)];
    const isWhole = Number.isSafeInteger(first) && Number.isSafeInteger(last);
    if (!isWhole || !followed.isSure || epoch !== followed.epoch) return void this.#lookOnce(followed);
    if (last <= followed.heard) return;
    followed.heard = last;
    this.#source.heard(kind, channel, epoch, last);
    followed.mark = texts.length === 0 ? null : Bun.hash(texts.at(-1)!);
    if (texts.length === 0) return this.#reached({ kind, channel, epoch, head: last });
    this.#tell(
      kind === "events"
        ? { kind, channel, epoch, entries: texts.map((text, n) => eventOf(first + n, text)) }
        : { kind, channel, epoch, entries: texts.map((text, n) => receiptOf(first + n, text)) },
    );
  };

  /** Does something when the log is of this epoch: at once, or when it was looked at. */
  #inEpoch(followed: Followed, epoch: string, run: () => void): unknown {
    if (followed.epoch === epoch) return run();
    return this.#lookOnce(followed).then(() => {
      if (followed.epoch === epoch && followed.wanted) run();
    });
  }

  /** Asks for the epoch of a log that was followed before there was the channel, and leaves it to the messages what is told. Never rejects. */
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

  /** Looks at one log, and once more for all that ask meanwhile. Never rejects: where Redis is away, the timer looks again. */
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

  /** Asks how far the followed logs have come. One look at a time, so that what they say comes in order. */
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
      // Messages come: a log that is busy needs no question, until it is quiet for a turn of the timer.
      return wanted && subscribed && (atOnce || !isSure || heard === heardBefore);
    });
    for (let at = 0; at < all.length; at += LOOKS_AT_ONCE)
      // Where Redis is away, the timer looks again.
      await this.#lookAt(all.slice(at, at + LOOKS_AT_ONCE), atOnce).catch(() => (this.#hurry ||= atOnce));
    this.#looking = false;
    if (this.#again) void this.#look(true);
  }

  /** Asks how far some logs have come, and where it is not sure, whether they are what they were. @throws PereError away */
  async #lookAt(some: readonly Followed[], atOnce: boolean): Promise<void> {
    const connections = this.#connections;
    const asked = some.map(({ epoch, heard }) => ({ epoch, heard }));
    // Each by itself: where one node of a Cluster is away, the others' logs are looked at all the same.
    const found = await Promise.allSettled(
      some.map(async (followed) => {
        // The entry first: one that retention drops meanwhile lies below the floor that is told after it.
        const mark = await this.#read(followed);
        const heads = await this.#source.heads(followed.channel);
        // A channel that somebody follows and that is gone begins anew: its followers are to know.
        return { mark, heads: heads ?? (await this.#source.open(followed.channel)) };
      }),
    );
    if (connections !== this.#connections) return; // Another look is due already.
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

  /** The mark of what stands where the last entry was heard, where that is worth a question; null: nothing stands there, or it was not asked. */
  async #read({ kind, channel, heard, mark, isSure }: Followed): Promise<Mark | null> {
    if (heard <= 0 || (isSure && mark !== null)) return null;
    const text = await this.#source.entry(kind, channel, heard);
    return text === null ? null : Bun.hash(text);
  }

  /**
   * Takes in what was found of a log, and tells how far it has come.
   * @param asked the epoch and the newest entry that were told before the log was asked
   * @param mark what stands there now, as `#read` gives it
   * @returns false: under its epoch it is not the log that was, and nothing was taken in
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
    // Another look has learned of an epoch meanwhile: what is found of an earlier one is old, and the next look finds a later one.
    if (isNew && asked.epoch !== followed.epoch) return true;
    // What was heard in another epoch says nothing of this one, also where another look has learned of this one meanwhile.
    if (!isNew && asked.epoch === followed.epoch) {
      const { heard } = asked;
      if (head < heard) return false;
      if (!followed.isSure && heard > floor && followed.mark !== null && followed.mark !== mark) return false;
      if (followed.heard === heard) followed.mark ??= heard > floor ? mark : "gone";
    }
    // Between two looks that saw the log ahead nothing was heard: messages are not under way, they are lost.
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

  /** Logs that were put back to an older state begin anew: their next entries must not pass for those that were. */
  async #renew(lost: readonly (readonly [Followed, epoch: string])[]): Promise<void> {
    for (const [followed] of lost) followed.isSure = false;
    const renewed: Followed[] = [];
    for (const [followed, epoch] of lost)
      // Where Redis doesn't take it now, nothing of the log is told, and the next look finds it again.
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
