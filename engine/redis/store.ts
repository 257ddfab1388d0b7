/**
 * The promise kept for many instances: a memory that they share in one Redis or Valkey.
 *
 * Each change is one script of `scripts.ts`, which appends, counts and publishes in one step; the calls of one turn of the event
 * loop go out together. What is stored is told through Redis to every instance alike, the one that wrote it included: there is one way to
 * deliver. How an instance hears of it, and never misses it for long, is in `subscriber.ts`.
 *
 * How durable an answer is, Redis alone decides: `durability.ts` says what its settings promise. Where it has replicas, pushes and receipts are
 * answered only when as many as the operator wants have them.
 */
import {
  afterSeconds,
  type EnrolledDevice,
  EVENT_BYTES_MAX,
  type Event,
  type EventDraft,
  KEY_MEMORY_MS,
  newEpoch,
  type Receipt,
  type ReceiptDraft,
  type Kind,
  type Row,
  rank,
  remindedUntil,
  STATES,
  type State,
  type Tally,
} from "../model.ts";
import { RedisSubscriber } from "./subscriber.ts";
import { RedisCluster } from "./cluster.ts";
import { type Client, type Redis, RedisLink, type Reply, type ReplicaQuorum } from "./connection.ts";
import { eventOf, eventEntryText, receiptHead, receiptOf } from "./entries.ts";
import { RedisDeadlines } from "./deadlines.ts";
import { RedisHooks } from "./hooks.ts";
import { RedisPresence } from "./presence.ts";
import { check, readDurability } from "./durability.ts";
import { type Keys, keysWith, toldIn } from "./keys.ts";
import { type Script, type SCRIPTS, scriptsTelling } from "./scripts.ts";
import {
  type Appended,
  type ChannelEntry,
  type Delivery,
  type Extent,
  type Heads,
  type Hook,
  type HookDraft,
  type Idempotency,
  type Joined,
  otherRequest,
  type Page,
  page,
  type Progress,
  type Readiness,
  type Reminder,
  type Retention,
  type Store,
  UNUSED_MAX,
  UNUSED_MS_MIN,
  type Verdict,
  type Wake,
} from "../store.ts";

/** Data that one read gives at most, about: catch-up goes in steps that a slow reader can take. */
const READ_BYTES = 4 * EVENT_BYTES_MAX;
/** Entries that one command reads: 8 MiB of the largest. */
const READ_ENTRIES = 128;
/** Names that one script looks at for rows, and devices whose debts one script is asked for: a few milliseconds of Redis' time. */
const NAMES_AT_ONCE = 1_000;
const DEBTORS_AT_ONCE = 100;
/** Reminders that one command reads. */
const READ_REMINDERS = 1_000;
/** Rows that one slice of trimming touches, about. */
const TRIM_ROWS = 1_000;
/** Redis drops an idempotency key by its own clock, so somewhat later than it is forgotten. */
const KEY_SLACK_MS = 3_600_000;
/** For so long an unused channel whose device came, to another instance perhaps, is shown as one in use. */
const LATELY_MS = 5_000;
/** Unused channels that are looked at in one go. */
const UNUSED_AT_ONCE = 200;
/** Channels that are known to be in the list of channels. */
const LISTED_MAX = 100_000;

const VERDICTS: readonly Verdict[] = ["recorded", "duplicate", "unknown", "unaddressed"];

export interface RedisOptions {
  /** `redis://` or `rediss://`; several are nodes of one Cluster. */
  readonly urls: readonly string[];
  /** How many replicas must have a push or a receipt before it is answered. */
  readonly replicas?: number;
  /** What all keys begin with, for several services on one Redis. */
  readonly prefix?: string;
  /** Makes epochs; 41 random bits by default. */
  readonly epoch?: () => string;
}

/** The extent that scripts give, from place `at` on. */
const headsOf = (reply: readonly Reply[], at: number): Heads => ({
  epoch: reply[at] as string,
  events: { head: Number(reply[at + 1]), floor: Number(reply[at + 2]) },
  receipts: { head: Number(reply[at + 3]), floor: Number(reply[at + 4]) },
});

type Six = [number, number, number, number, number, number];
type Seven = [number, number, number, number, number, number, number];

/** One value after another, `width` to each. */
function* inGroups(values: readonly Reply[], width: number): Generator<readonly Reply[]> {
  for (let at = 0; at < values.length; at += width) yield values.slice(at, at + width);
}

/** The database that a server's address names. */
const databaseOf = (url: string): number => Number(new URL(url).pathname.slice(1)) || 0;

/** @throws PereError as `RedisLink` */
export class RedisStore implements Store {
  readonly #prefix: string;
  /** Where channels are listed that only feeds have made. */
  readonly #unused: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;
  readonly #epoch: () => string;
  readonly #replicas: number;
  readonly #link: Redis;
  readonly #ear: RedisSubscriber;
  readonly #presence: RedisPresence;
  readonly #deadlines: RedisDeadlines;
  readonly #hooks: RedisHooks;
  /** Channels that this instance has put into the list of channels. */
  readonly #listed = new Set<string>();
  /** How far the logs of a channel are known to have come: a Redis that is put back to an older state is found out before it gives a number twice. */
  readonly #given = new Map<string, { readonly epoch: string; readonly events: number; readonly receipts: number }>();
  #closing: Promise<void> | undefined;

  constructor({ urls, replicas = 0, prefix = "pere:", epoch = newEpoch }: RedisOptions) {
    this.#prefix = prefix;
    this.#unused = `${prefix}unused`;
    const database = databaseOf(urls[0]!);
    this.#keys = keysWith(prefix, database);
    this.#scripts = scriptsTelling(toldIn(database));
    this.#epoch = epoch;
    this.#replicas = replicas;
    const ready = (client: Client): void => {
      // First on every connection, so that the calls of one turn keep their order.
      for (const { text } of Object.values(this.#scripts)) client.sendCommand(["SCRIPT", "LOAD", text]).catch(() => {});
      // What is behind it may be in another state than what was behind the one before.
      this.#listed.clear();
      this.#presence.markUnverified();
      this.#ear.markUnverified();
    };
    this.#link = urls.length === 1 ? new RedisLink(urls, ready) : new RedisCluster(urls, ready);
    this.#deadlines = new RedisDeadlines(this.#link, `${prefix}due`, this.#keys, this.#scripts, (channel) =>
      this.#known(channel),
    );
    this.#hooks = new RedisHooks(this.#link, `${prefix}hooked`, this.#keys, (script, channel, values, keys) =>
      this.#make(script, channel, values, keys),
    );
    this.#presence = new RedisPresence(this.#link, `${prefix}instances`, this.#keys);
    // What is published at one node of a Cluster is heard at all of them.
    this.#ear = new RedisSubscriber(urls, {
      name: (kind, channel) => this.#keys(channel).told[kind],
      heads: (channel) => this.heads(channel),
      heard: (kind, channel, epoch, seq) => this.#know(channel, epoch, { [kind]: seq }),
      entry: (kind, channel, seq) => this.#entry(this.#keys(channel)[kind], seq),
      open: (channel) => this.open(channel),
      renew: (channel, lost) => this.#run(this.#scripts.renew, channel, [lost, this.#epoch()]),
    });
  }

  /** A store that is connected. @throws PereError away */
  static async open(options: RedisOptions): Promise<RedisStore> {
    const store = new RedisStore(options);
    try {
      await Promise.all([store.#link.start(), store.#ear.start()]);
      check((await readDurability(store.#link.masters(), store.#replicas)).facts, options.urls.length > 1);
      await store.#presence.beat();
      return store;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  async #run(
    script: Script,
    channel: string,
    values: readonly (string | number)[],
    spread?: ReplicaQuorum,
  ): Promise<readonly Reply[]> {
    const reply = await this.#link.run(script, this.#keys(channel).all, values, spread);
    return Array.isArray(reply) ? (reply as readonly Reply[]) : [reply];
  }

  /** A script that may make its channel; its reply begins with whether it did. */
  async #make(
    script: Script,
    channel: string,
    values: readonly (string | number)[],
    keys: readonly string[] = [],
    spread?: ReplicaQuorum,
  ): Promise<readonly Reply[]> {
    const made = this.#link.run(script, [...this.#keys(channel).all, ...keys], [this.#epoch(), ...values], spread);
    if (!this.#listed.has(channel)) return (await Promise.all([made, this.#list(channel)]))[0] as readonly Reply[];
    const reply = (await made) as readonly Reply[];
    if (reply[0] === 1) await this.#list(channel); // Another life of it; the list may be lost as well.
    return reply;
  }

  /** What the answer to a push or a receipt waits for. */
  #spread(channel: string): ReplicaQuorum | undefined {
    return this.#replicas === 0 ? undefined : { replicas: this.#replicas, key: this.#keys(channel).spread };
  }

  /** Numbers of this log were given out up to here. */
  #know(channel: string, epoch: string, { events = 0, receipts = 0 }: { events?: number; receipts?: number }): void {
    const before = this.#given.get(channel);
    if (!before && this.#given.size >= LISTED_MAX) this.#given.clear();
    const isSame = before?.epoch === epoch;
    this.#given.set(channel, {
      epoch,
      events: isSame ? Math.max(before.events, events) : events,
      receipts: isSame ? Math.max(before.receipts, receipts) : receipts,
    });
  }

  /** What is known of a channel, for the scripts' `guard`. */
  #known(channel: string): string {
    const given = this.#given.get(channel);
    return given ? `${given.epoch} ${given.events} ${given.receipts} ${this.#epoch()}` : "";
  }

  /** Puts a channel into the list of channels. What is stored is stored: where that can't be done now, the next change tries again. */
  async #list(channel: string): Promise<void> {
    const isDone = await this.#link.send("ZADD", `${this.#prefix}channels`, "0", channel).catch(() => null);
    if (isDone === null) return;
    if (this.#listed.size >= LISTED_MAX) this.#listed.clear();
    this.#listed.add(channel);
  }

  /** Puts a channel into the list of those that only feeds have made, by when it was heard from. Where that can't be done now, the next feed does. */
  async #note(channel: string, at: number): Promise<void> {
    await this.#link.send("ZADD", this.#unused, String(at), channel).catch(() => {});
  }

  // -------------------------------------------------------------------------------------------------------------- channels

  async open(channel: string): Promise<Heads> {
    return headsOf(await this.#run(this.#scripts.open, channel, [this.#epoch()]), 1);
  }

  async heads(channel: string): Promise<Heads | null> {
    return (await this.#counters(channel))?.heads ?? null;
  }

  async #counters(channel: string): Promise<{ heads: Heads; devices: number; isUnused: boolean } | null> {
    const fields = ["epoch", "head", "floor", "receiptsHead", "receiptsFloor", "audience", "unused"];
    const found = (await this.#link.send("HMGET", this.#keys(channel).counters, ...fields)) as readonly Reply[];
    if (found[0] !== null)
      this.#know(channel, found[0] as string, { events: Number(found[1]), receipts: Number(found[3]) });
    // That a device is connected elsewhere is known a little later than that it came.
    const isLately = Math.abs(Date.now() - Number(found[6])) < LATELY_MS;
    const isUnused = found[6] !== null && !isLately;
    return found[0] === null ? null : { heads: headsOf(found, 0), devices: Number(found[5]), isUnused };
  }

  async channels(after: string, limit: number): Promise<Page<ChannelEntry, string>> {
    const names = await this.#names(`${this.#prefix}channels`, after, limit + 1);
    const { items, next } = page(names, limit, (name) => name);
    const found = await Promise.all(items.map((channel) => this.#counters(channel)));
    return {
      items: items.flatMap((channel, index) => {
        const counters = found[index];
        if (!counters) return [];
        const { heads, devices, isUnused } = counters;
        return [{ channel, devices, isUnused, ...heads }];
      }),
      next,
    };
  }

  async #names(key: string, after: string, limit: number): Promise<readonly string[]> {
    const from = after === "" ? "-" : `(${after}`;
    return (await this.#link.send("ZRANGEBYLEX", key, from, "+", "LIMIT", "0", String(limit))) as readonly string[];
  }

  // ---------------------------------------------------------------------------------------------------------------- events

  async append(channel: string, drafts: readonly EventDraft[], now: number, key?: Idempotency): Promise<Appended> {
    const values: (string | number)[] = [
      now,
      key?.digest ?? "",
      (key?.now ?? now) + KEY_MEMORY_MS,
      KEY_MEMORY_MS + KEY_SLACK_MS,
      drafts[0]!.type ?? "",
      drafts.length,
    ];
    for (const draft of drafts) {
      const expires = afterSeconds(now, draft.ttl);
      const deadline = afterSeconds(now, draft.deadline);
      const remind = afterSeconds(0, draft.remind);
      const text = eventEntryText(draft, now, { expires, deadline, remind });
      const until = remindedUntil({ expires, deadline });
      values.push(
        expires ?? 0,
        deadline ?? 0,
        remind ?? 0,
        until ?? 0,
        text,
        draft.to?.length ?? 0,
        ...(draft.to ?? []),
      );
    }
    values.push(key?.now ?? now, this.#known(channel));
    const keys = key ? [key.key, key.earlier ?? key.key].map((name) => this.#keys(channel).idempotency(name)) : [];
    const deadlines = drafts.flatMap(({ deadline }) => afterSeconds(0, deadline) ?? []);
    const store = () => this.#make(this.#scripts.append, channel, values, keys, this.#spread(channel));
    const reply =
      deadlines.length === 0
        ? await store()
        : await this.#deadlines.append(channel, now, Math.min(...deadlines), store);
    if (reply.length === 0) throw otherRequest();
    const [, epoch, first, count, at, addressed, type, replayed] = reply;
    if (replayed !== 1) this.#know(channel, epoch as string, { events: Number(first) + Number(count) - 1 });
    // The first call may have ended before it told of the deadline.
    if (replayed === 1 && deadlines.length > 0)
      await this.#deadlines.ahead(channel, Number(at) + Math.min(...deadlines));
    return {
      epoch: epoch as string,
      first: Number(first),
      count: Number(count),
      at: Number(at),
      addressed: Number(addressed),
      type: type === "" ? null : (type as string),
      replayed: replayed === 1,
    };
  }

  /** A script that reads one life of a channel; null where it has another, or is gone. */
  async #readOf(
    script: Script,
    channel: string,
    epoch: string,
    values: readonly (string | number)[],
  ): Promise<readonly Reply[] | null> {
    return (await this.#link.run(script, this.#keys(channel).all, [epoch, ...values])) as readonly Reply[] | null;
  }

  async events(
    channel: string,
    epoch: string,
    after: number,
    limit: number,
    bytesMax = READ_BYTES,
  ): Promise<Event[] | null> {
    const found: Event[] = [];
    let bytes = 0;
    for await (const entry of this.#entries("events", channel, epoch, after, limit)) {
      if (entry === null) return null;
      found.push(eventOf(...entry));
      bytes += entry[1].length;
      if (bytes >= bytesMax) break;
    }
    return found;
  }

  async receipts(channel: string, epoch: string, after: number, limit: number): Promise<Receipt[] | null> {
    const found: Receipt[] = [];
    for await (const entry of this.#entries("receipts", channel, epoch, after, limit)) {
      if (entry === null) return null;
      found.push(receiptOf(...entry));
    }
    return found;
  }

  async #entry(key: string, seq: number): Promise<string | null> {
    const found = (await this.#link.send("XRANGE", key, `${seq}-0`, `${seq}-0`)) as readonly (readonly [
      string,
      readonly string[],
    ])[];
    return found[0]?.[1][1] ?? null;
  }

  /** A log's entries after `after`, some at a time, without a hole between them; null: the log is in another life. */
  async *#entries(
    kind: Kind,
    channel: string,
    epoch: string,
    after: number,
    limit: number,
  ): AsyncGenerator<readonly [number, string] | null> {
    for (let left = limit; left > 0;) {
      const count = Math.min(left, READ_ENTRIES);
      const read = await this.#readOf(this.#scripts.read, channel, epoch, [kind, `${after + 1}-0`, count]);
      if (read === null) return yield null;
      for (const [id, fields] of read as readonly (readonly [string, readonly string[]])[]) {
        const seq = Number.parseInt(id, 10);
        // Retention came between two steps. The hole is found by whoever reads on from here.
        if (left < limit && seq !== after + 1) return;
        after = seq;
        yield [after, fields[1]!];
      }
      left -= read.length;
      if (read.length < count) return;
    }
  }

  async tallies(
    channel: string,
    epoch: string,
    from: number,
    upTo: number,
  ): Promise<ReadonlyMap<number, Tally> | null> {
    const reply = await this.#readOf(this.#scripts.tallies, channel, epoch, [from, upTo]);
    if (reply === null) return null;
    const tallies = new Map<number, Tally>();
    for (const group of inGroups(reply, 7)) {
      const [seq, addressed, received, working, missing, done, failed] = group.map(Number) as Seven;
      tallies.set(seq, { addressed, received, working, missing, done, failed });
    }
    return tallies;
  }

  // -------------------------------------------------------------------------------------------------------------- receipts

  async record(channel: string, drafts: readonly ReceiptDraft[], now: number): Promise<Verdict[]> {
    const values: (string | number)[] = [now];
    for (const draft of drafts) {
      const { event, device, status, detail } = draft;
      values.push(event.epoch, event.seq, device, rank(status), receiptHead(draft, now), detail ?? "");
    }
    values.push(this.#known(channel));
    const verdicts = await this.#run(this.#scripts.record, channel, values, this.#spread(channel));
    return verdicts.map((verdict) => VERDICTS[Number(verdict)]!);
  }

  async finalized(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
  ): Promise<ReadonlySet<number> | null> {
    const found = await this.#readOf(this.#scripts.settled, channel, epoch, [device, after, upTo]);
    return found && new Set(found.map(Number));
  }

  async rows(
    channel: string,
    epoch: string,
    event: number,
    status: State | null,
    after: string,
    limit: number,
  ): Promise<Page<Row, string> | null> {
    const wanted = status === null ? "" : rank(status);
    const found: Row[] = [];
    for (let from: string | null = after; from !== null && found.length <= limit;) {
      const values = [event, wanted, from, NAMES_AT_ONCE];
      const reply = (await this.#readOf(this.#scripts.rows, channel, epoch, values)) as
        readonly (readonly Reply[])[] | null;
      if (reply === null) return null;
      // Two lists by name; where one of them was cut, only what comes up to there is known of both.
      const cuts: string[] = reply.map(([cut]) => cut as string).filter((cut) => cut !== "");
      const upTo: string | null = cuts.length === 0 ? null : cuts.reduce((a, b) => (a < b ? a : b));
      const rows = reply.flatMap((list) => [...inGroups(list.slice(1), 3)].map(rowOf));
      rows.sort((a, b) => (a.device < b.device ? -1 : 1));
      found.push(...rows.filter(({ device }) => upTo === null || device <= upTo));
      from = upTo;
    }
    return page(found, limit, ({ device }) => device);
  }

  async unanswered(
    channel: string,
    epoch: string,
    event: number,
    devices: readonly string[],
  ): Promise<string[] | null> {
    return (await this.#readOf(this.#scripts.silent, channel, epoch, [event, ...devices])) as string[] | null;
  }

  // -------------------------------------------------------------------------------------------------- deadlines and reminders

  async reminders(channel: string, now: number): Promise<Reminder[]> {
    let found: Reminder[] = [];
    let life: string | undefined;
    for (let after = "-inf"; ;) {
      const reply = await this.#run(this.#scripts.reminders, channel, [after, READ_REMINDERS]);
      const [epoch, members = []] = reply as readonly [string | undefined, (readonly string[])?];
      if (life !== undefined && epoch !== life) {
        [found, after, life] = [[], "-inf", undefined]; // Another life began between two pages.
        continue;
      }
      life = epoch;
      for (const member of members) {
        const [seq, at, every, until] = member.split(":").map(Number) as [number, number, number, number];
        if (until === 0 || until > now)
          found.push({ epoch: epoch!, seq, at, every, until: until === 0 ? null : until });
      }
      if (members.length < READ_REMINDERS) return found;
      after = `(${members.at(-1)!.split(":", 1)[0]!}`;
    }
  }

  recordMissing(now: number): Promise<number | null> {
    return this.#deadlines.miss(now);
  }

  // --------------------------------------------------------------------------------------------------------------- devices

  async join(channel: string, device: string, now: number): Promise<Joined> {
    const reply = await this.#make(this.#scripts.join, channel, [device, now]);
    const [fresh, joined, first, lost, more, unused] = reply.slice(6).map(Number) as Six;
    if (unused === 1) await this.#note(channel, now);
    const heads = headsOf(reply, 1);
    let settled = first;
    for (let isMore = more === 1; isMore;) {
      const next = await this.#run(this.#scripts.settle, channel, [device, now]);
      if (next[0] !== heads.epoch) break; // It was retired meanwhile, or the channel began anew: what is given is read from where it is.
      settled = Math.min(Number(next[1]), heads.events.head);
      isMore = next[2] === 1;
    }
    return { ...heads, enrolled: fresh === 0, joined, settled, lost };
  }

  async enrol(channel: string, device: string, now: number): Promise<boolean> {
    return (await this.#make(this.#scripts.enrol, channel, [device, now]))[1] === 1;
  }

  async retire(channel: string, device: string, now: number): Promise<boolean> {
    for (;;) {
      const [what] = await this.#run(this.#scripts.retire, channel, [device, now, this.#known(channel)]);
      if (what === -1) continue;
      // It is decided: what is left when Redis goes away now is done with the next round of trimming.
      for (let isMore = what === 2; isMore;)
        isMore = await this.#run(this.#scripts.release, channel, [now, this.#known(channel)]).then(
          ([left]) => left === 1,
          () => false,
        );
      if (what !== 0) await this.#idle(channel, now);
      return what !== 0;
    }
  }

  /** Looks whether a channel is unused from now on. What was done before is done: where Redis is away now, the channel stays. */
  async #idle(channel: string, now: number): Promise<void> {
    const keys = this.#keys(channel);
    const isIdle = await this.#link.run(this.#scripts.idle, [...keys.all, keys.hooks], [now]).catch(() => 0);
    if (isIdle === 1) await this.#note(channel, now);
  }

  async seen(channel: string, times: ReadonlyMap<string, number>): Promise<void> {
    const [unused] = await this.#run(this.#scripts.seen, channel, [...times].flat());
    if (unused === 1) await this.#note(channel, Math.max(...times.values()));
  }

  async devices(channel: string, after: string, limit: number, now: number): Promise<Page<EnrolledDevice, string>> {
    const names = await this.#names(this.#keys(channel).names, after, limit + 1);
    const { items, next } = page(names, limit, (name) => name);
    const enrolments: EnrolledDevice[] = [];
    // One script after another, each as far as it may look: what a thousand devices owe must not hold everybody up.
    for (let [at, from, owed]: [number, Reply, Reply] = [0, "", 0]; at < items.length;) {
      const some = items.slice(at, at + DEBTORS_AT_ONCE);
      const reply = await this.#run(this.#scripts.owing, channel, [now, from as string, owed as number, ...some]);
      const [found, finished] = reply as readonly [readonly Reply[], number];
      at += finished;
      [from, owed] = [reply[2]!, reply[3]!];
      for (const [device, enrolledAt, seenAt, pending] of inGroups(found, 4))
        enrolments.push({
          device: device as string,
          enrolledAt: Number(enrolledAt),
          seenAt: seenAt === -1 ? null : Number(seenAt),
          pending: Number(pending),
        });
    }
    return { items: enrolments, next };
  }

  // ------------------------------------------------------------------------------------------------------------- retention

  /** Idempotency keys are dropped by Redis itself. */
  async trim(channel: string | null, { count, before }: Retention, now: number): Promise<boolean> {
    if (channel === null) {
      await this.ready();
      return this.#trimUnused(before, now);
    }
    const [more, next] = await this.#run(this.#scripts.trim, channel, [
      ...[count, before, now, TRIM_ROWS, this.#known(channel)],
    ]);
    if (next !== "") await this.#deadlines.ahead(channel, next as string);
    return more === 1;
  }

  /** One slice of forgetting unused channels; where there are very many, sooner than their devices' time is over. */
  async #trimUnused(before: number, now: number): Promise<boolean> {
    const beyond = Number(await this.#link.send("ZCARD", this.#unused)) - UNUSED_MAX;
    let upTo = before;
    if (beyond > 0) {
      const last = String(beyond - 1);
      const [newest] = (await this.#link.send("ZRANGE", this.#unused, last, last)) as readonly string[];
      if (newest !== undefined) upTo = Math.max(before, Number(await this.#link.send("ZSCORE", this.#unused, newest)));
    }
    upTo = Math.min(upTo, now - UNUSED_MS_MIN);
    const due = (await this.#link.send(
      "ZRANGEBYSCORE",
      this.#unused,
      "-inf",
      String(upTo),
      "LIMIT",
      "0",
      String(UNUSED_AT_ONCE),
    )) as readonly string[];
    await Promise.all(due.map((channel) => this.#discard(channel, upTo)));
    return due.length === UNUSED_AT_ONCE;
  }

  async #discard(channel: string, upTo: number): Promise<void> {
    const [at] = await this.#run(this.#scripts.discard, channel, [upTo]);
    if (typeof at === "string") return this.#note(channel, Number(at));
    await this.#link.send("ZREM", this.#unused, channel);
    if (at !== 1) return;
    this.#listed.delete(channel);
    await this.#link.send("ZREM", `${this.#prefix}channels`, channel);
    if (await this.heads(channel)) await this.#list(channel); // It came back in between.
  }

  // ----------------------------------------------------------------------------------------------------------------- hooks

  putHook(channel: string, draft: HookDraft, fresh: string, now: number): Promise<{ hook: Hook; created: boolean }> {
    return this.#hooks.put(channel, draft, fresh, now);
  }

  async dropHook(channel: string, name: string, now: number): Promise<boolean> {
    const isDropped = await this.#hooks.drop(channel, name);
    if (isDropped) await this.#idle(channel, now);
    return isDropped;
  }

  hooks(channel: string | null): Promise<Hook[]> {
    return this.#hooks.list(channel);
  }

  deliveries(channel: string, name: string): Promise<Delivery[]> {
    return this.#hooks.deliveries(channel, name);
  }

  progress(channel: string, name: string, fence: number | null, progress: Progress): Promise<boolean> {
    return this.#hooks.progress(channel, name, fence, progress);
  }

  // ----------------------------------------------------------------------------------------------------------- its own life

  watch(
    listener: (wake: Wake) => void,
    reached: (extent: Extent) => void = () => {},
    shared: (channel: string, device: string, addresses: readonly string[]) => void = () => {},
  ): void {
    this.#ear.watch(listener, reached, shared);
  }

  follow(kind: Kind, channel: string): Promise<void> {
    return this.#ear.follow(kind, channel);
  }

  unfollow(kind: Kind, channel: string): void {
    this.#ear.unfollow(kind, channel);
  }

  setPresence(channel: string, device: string, joined: number | null, addresses: readonly string[] = []): void {
    this.#presence.attend(channel, device, joined, addresses);
  }

  addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>> {
    return this.#presence.addresses(channel, devices);
  }

  remotePresence(channel: string): Promise<ReadonlyMap<string, number>> {
    return this.#presence.elsewhere(channel);
  }

  async lease(name: string, holder: string, ms: number): Promise<number | null> {
    const number = await this.#link.run(this.#scripts.lease, [`${this.#prefix}lease:${name}`], [holder, ms]);
    return number === 0 ? null : Number(number);
  }

  async secret(fresh: string): Promise<string> {
    const key = `${this.#prefix}secret`;
    await this.#link.send("SET", key, fresh, "NX");
    return (await this.#link.send("GET", key)) as string;
  }

  async ready(): Promise<Readiness> {
    const { facts, ...readiness } = await readDurability(this.#link.masters(), this.#replicas);
    const refusals = facts.flatMap(({ refusal }) => refusal ?? []);
    if (refusals.length === facts.length) throw refusals[0]!;
    return readiness;
  }

  async close(): Promise<void> {
    this.#closing ??= (async () => {
      // The good-bye is on its way before the connection takes no more.
      const farewell = this.#presence.close();
      await Promise.all([this.#ear.close(), this.#link.close(), farewell]);
    })();
    await this.#closing;
  }
}

function rowOf([device, status, entry]: readonly Reply[]): Row {
  const said = entry === "" ? null : receiptOf(0, entry as string);
  return {
    device: device as string,
    status: STATES[Number(status)]!,
    detail: said?.detail ?? null,
    at: said?.at ?? null,
    deviceAt: said?.deviceAt ?? null,
    late: said?.late ?? false,
  };
}
