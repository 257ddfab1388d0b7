/**
 * How an instance is notified of entries stored at any instance: one connection, subscribed to the logs that are followed here.
 *
 * A message carries the position and the entries, so as long as an instance keeps up, it reads nothing back. But messages may get lost: connections
 * break, Redis disconnects slow subscribers, and delivery on a healthy connection can stall. So the extent of every followed log is read after each
 * reconnect and on a slow timer: many logs with one call, and the calls spread over the interval, so that ten thousand quiet logs cost little and never
 * come all at once. Entries without a message are reported as an extent, and followers read them from the log. The extent also shows a new epoch: a log
 * whose epoch changed, that does not exist any more, or that became shorter was lost or restored.
 *
 * A Redis that was restored to an older state may have grown again before its extent is read. Then no log is shorter, but other entries stand where
 * followers have already read. So for each log the last received entry is remembered by a mark. After every new connection, nothing of a log is
 * reported until that entry was found in its place. If it is not there, the log gets a new epoch.
 *
 * Never reports entries out of order, and never trusts a message over the log.
 */
import { type Kind, PereError } from "../model.ts";
import { Acknowledgements } from "./acknowledgements.ts";
import { logEntryOf, receiptOf } from "./entries.ts";
import type { LogName } from "./extents.ts";
import { RedisLink } from "./connection.ts";
import { RETIRED, SEPARATOR, SHARED } from "./scripts.ts";
import type { Extent, Heads, Wake } from "../store.ts";

/** Interval of reading the extents of followed logs, in milliseconds. */
const LOOK_MS = 2_000;
/** The part of it that the calls are spread over: the rest is for the calls themselves. */
const SPREAD_MS = 0.9 * LOOK_MS;
/** Logs per call: about a millisecond of Redis' time. */
const LOOKS_AT_ONCE = 250;
/** The same where entries are read too, which may be large. */
const READS_AT_ONCE = 32;

/** What was read of a log: the extent of its channel, and one entry as stored; null: it was not asked for, or there is none. */
export interface Looked {
  readonly heads: Heads;
  readonly entry: string | null;
}

/** What the subscriber needs from the store. */
export interface SubscriberSource {
  /** The name of the channel in Redis on which a log's messages are published. */
  name(kind: Kind, channel: string): string;
  heads(channel: string): Promise<Heads | null>;
  /** Entries of a log were received up to here. */
  heard(kind: Kind, channel: string, epoch: string, seq: number): void;
  /**
   * Reads some logs with as few calls as possible. A channel that does not exist begins.
   * @param entries the entry to read of each; 0: none
   * @returns for each what was read, or why it could not be
   */
  look(logs: readonly LogName[], entries: readonly number[]): Promise<readonly (Looked | PereError)[]>;
  /** Publishes a text. */
  tell(topic: string, text: string): Promise<unknown>;
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
  /** Subscribes and unsubscribes one after the other, null while nothing is under way; `next` is shared by all that ask before it begins. */
  tail: Promise<void> | null;
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
  /** Callers that wait until an entry was reported. */
  waiting: { readonly seq: number; readonly resolve: () => void }[];
}

/** The entry at the last received position, if it is worth reading, to verify the log; 0: it is not. */
const entryOf = ({ heard, mark, isSure }: Followed): number => (heard <= 0 || (isSure && mark !== null) ? 0 : heard);

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
  /** Ends the pause of a running check. */
  #hasten: () => void = () => {};
  /** Number of connections so far: a reply requested before the last one is outdated. */
  #connections = 0;

  /** Tells when other instances have processed a message. */
  readonly acknowledgements: Acknowledgements;

  /** @param urls servers that share messages; it subscribes at one of them @param prefix of topics */
  constructor(urls: readonly string[], prefix: string, source: SubscriberSource) {
    this.#source = source;
    this.acknowledgements = new Acknowledgements(prefix);
    this.#link = new RedisLink(urls, (client) => {
      this.markUnverified();
      const keys = [...this.#followed.values()].filter(({ subscribed }) => subscribed).map(({ key }) => key);
      const { topic, heard } = this.acknowledgements;
      client.subscribe(topic, heard).catch(() => {});
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
      followed = {
        kind,
        channel,
        key,
        wanted: true,
        subscribed: false,
        tail: null,
        next: null,
        epoch: null,
        heard: -1,
        mark: null,
        heardBefore: -1,
        learning: null,
        asked: null,
        isAskedAgain: false,
        isSure: true,
        waiting: [],
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
    if (followed.next) return followed.next;
    const next = (followed.tail ?? Promise.resolve()).then(async () => {
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
    followed.next = next;
    const tail = next
      .catch(() => {})
      .then(() => {
        if (followed.tail === tail) followed.tail = null; // A quiet log keeps no promise.
      });
    followed.tail = tail;
    return next;
  }

  /**
   * A message: `epoch first last`, perhaps where to say that it was processed, and the entries if they are small; or `epoch retired device`, `- shared
   * device addresses`.
   */
  readonly #message = (message: string, key: string): void => {
    const followed = this.#followed.get(key);
    if (!followed?.wanted) return;
    const { kind, channel } = followed;
    const [about, ...texts] = message.split(SEPARATOR) as [string, ...string[]];
    const [epoch, firstText, lastText, more = ""] = about.split(" ") as [string, string, string, string?];
    if (firstText === SHARED) return this.#shared(channel, lastText, more.split(","));
    // A message counts only if its epoch is the log's. Any other or malformed message only triggers a check.
    if (followed.epoch === null && followed.isSure)
      return void this.#learn(followed).then((isKnown) => {
        if (isKnown) this.#message(message, key);
        else void this.#lookOnce(followed).then(() => this.#acknowledge(more));
      });
    if (firstText === RETIRED)
      return void this.#inEpoch(followed, epoch, () => this.#listener({ kind: "retired", channel, device: lastText }));
    const [first, last] = [Number(firstText), Number(lastText)];
    const isWhole = Number.isSafeInteger(first) && Number.isSafeInteger(last);
    if (!isWhole || !followed.isSure || epoch !== followed.epoch)
      return void this.#lookOnce(followed).then(() => this.#acknowledge(more));
    if (more !== "") queueMicrotask(() => this.#acknowledge(more)); // When it was reported.
    if (last <= followed.heard) return;
    followed.heard = last;
    this.#source.heard(kind, channel, epoch, last);
    followed.mark = texts.length === 0 ? null : Bun.hash(texts.at(-1)!);
    if (texts.length === 0) return this.#report(followed, () => this.#reached({ kind, channel, epoch, head: last }));
    this.#report(followed, () =>
      this.#listener(
        kind === "events"
          ? { kind, channel, epoch, entries: texts.map((text, n) => logEntryOf(first + n, text)) }
          : { kind, channel, epoch, entries: texts.map((text, n) => receiptOf(first + n, text)) },
      ),
    );
  };

  /** Says that a message was processed. @param where topic and number; '': nowhere */
  #acknowledge(where: string): void {
    const [topic, number] = where.split(",") as [string, string?];
    if (number !== undefined) this.#source.tell(topic, number).catch(() => {});
  }

  /** Reports entries, and then tells those that wait for them. */
  #report(followed: Followed, report: () => void): void {
    try {
      report();
    } finally {
      if (followed.waiting.length > 0)
        followed.waiting = followed.waiting.filter(({ seq, resolve }) => {
          if (seq > followed.heard) return true;
          resolve();
          return false;
        });
    }
  }

  /** Resolves when an entry of a log was reported here, or at once if the log has no follower here; in any case after a while. */
  async reported(kind: Kind, channel: string, seq: number): Promise<void> {
    const followed = this.#followed.get(this.#source.name(kind, channel));
    if (!followed?.subscribed || followed.heard >= seq) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    followed.waiting.push({ seq, resolve });
    const timer = setTimeout(resolve, LOOK_MS);
    await promise;
    clearTimeout(timer);
  }

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

  /**
   * Reads the extents of all followed logs, some at a time: one call after the other, spread over the interval unless it is in a hurry. One check at a
   * time, so that results come in order.
   */
  async #look(hurry: boolean): Promise<void> {
    if (hurry) this.#hurry = true;
    if (this.#looking) {
      this.#again ||= hurry;
      if (hurry) this.#hasten();
      return;
    }
    this.#looking = true;
    this.#again = false;
    const atOnce = this.#hurry;
    this.#hurry = false;
    const startedAt = performance.now();
    const calls = Math.ceil(this.#followed.size / LOOKS_AT_ONCE);
    let called = 0;
    for (const some of this.#inParts(atOnce)) {
      // In a hurry again: what is left of this check is part of the next one.
      if (this.#again) break;
      // Redis is away; the timer tries again.
      await this.#lookAt(some, atOnce).catch(() => (this.#hurry ||= atOnce));
      const restMs = startedAt + (++called * SPREAD_MS) / calls - performance.now();
      if (!atOnce && called < calls && restMs > 0 && !this.#again) await this.#pause(restMs);
    }
    this.#looking = false;
    if (this.#again) void this.#look(true);
  }

  /** The logs to check, as many at a time as one call reads. Each is chosen when its turn comes. */
  *#inParts(atOnce: boolean): Generator<Followed[]> {
    let some: Followed[] = [];
    let passed = 0;
    let reads = 0;
    for (const followed of this.#followed.values()) {
      const { wanted, subscribed, isSure, heard, heardBefore } = followed;
      followed.heardBefore = heard;
      // Messages arrive: a busy log needs no check until it is quiet for a full interval.
      if (wanted && subscribed && (atOnce || !isSure || heard === heardBefore)) {
        some.push(followed);
        if (entryOf(followed) > 0) reads++;
      }
      if (++passed % LOOKS_AT_ONCE !== 0 && reads < READS_AT_ONCE) continue;
      yield some;
      some = [];
      reads = 0;
    }
    if (some.length > 0) yield some;
  }

  /** Waits for a time, or until a check is in a hurry. */
  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    timer.unref();
    this.#hasten = resolve;
    await promise;
    clearTimeout(timer);
    this.#hasten = () => {};
  }

  /** Reads the extents of some logs, and verifies those that are in doubt. @throws PereError away */
  async #lookAt(some: readonly Followed[], atOnce: boolean): Promise<void> {
    if (some.length === 0) return;
    const connections = this.#connections;
    const epochs = some.map(({ epoch }) => epoch);
    const heard = some.map((followed) => followed.heard);
    const found = await this.#source.look(some, some.map(entryOf));
    if (connections !== this.#connections) return; // Another check is due already.
    const lost: (readonly [Followed, string])[] = [];
    let trouble: PereError | undefined;
    for (let index = 0; index < some.length; index++) {
      const answer = found[index]!;
      // If one node of a Cluster is away, the other logs are still checked.
      if (answer instanceof PereError) {
        trouble = answer;
        continue;
      }
      const { heads, entry } = answer;
      const asked = { epoch: epochs[index] ?? null, heard: heard[index]! };
      const mark = entry === null ? null : Bun.hash(entry);
      if (!this.#compare(some[index]!, heads, asked, mark, atOnce)) lost.push([some[index]!, heads.epoch]);
    }
    if (lost.length > 0) await this.#renew(lost);
    if (trouble) throw trouble;
  }

  /**
   * Applies what was read of a log and reports its extent.
   * @param asked the epoch and the newest reported entry before the read
   * @param mark of the entry there now; null: there is none, or it was not read
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
    this.#report(followed, () => this.#reached({ kind, channel, epoch, head }));
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
    this.#hasten();
    return this.#link.close();
  }
}
