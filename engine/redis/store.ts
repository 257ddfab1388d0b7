/**
 * The store for many instances: a Redis or Valkey that they share.
 *
 * Each change is one script from `scripts.ts`, which appends, counts and publishes in one step. The calls of one turn of the event loop are sent
 * together. Redis notifies every instance of what was stored, including the one that wrote it, so there is a single delivery path. `subscriber.ts`
 * describes how an instance is notified, and how it recovers from missed notifications.
 *
 * Durability depends on Redis alone: `durability.ts` reads what its settings guarantee. With replicas, pushes and receipts are answered only when as
 * many replicas as configured have them.
 */
import {
  afterSeconds,
  type DeviceEnrolment,
  type EnrolledDevice,
  EVENT_BYTES_MAX,
  type Event,
  type EventDraft,
  type HistoryRow,
  KEY_MEMORY_MS,
  newEpoch,
  PereError,
  isControl,
  type Kind,
  LATE_REASONS,
  type LogEntry,
  type Position,
  type Receipt,
  type ReceiptDraft,
  type Row,
  remindedUntil,
  STATES,
  type State,
  stateCode,
  type Status,
  type Tally,
  type Withdrawal,
} from "../model.ts";
import { type Looked, RedisSubscriber } from "./subscriber.ts";
import { OVERDUE_MS, type TroubledChannel, type TroubledHook } from "../attention.ts";
import { RedisAttention } from "./attention.ts";
import { ChannelList, namesAfter } from "./channels.ts";
import { RedisCluster } from "./cluster.ts";
import { type Client, type Redis, RedisLink, type Reply, type ReplicaQuorum } from "./connection.ts";
import { eventOf, eventEntryText, logEntryOf, receiptOf, tallyOf, withdrawalOf } from "./entries.ts";
import { RedisDeadlines } from "./deadlines.ts";
import { HISTORY_ROWS, HISTORY_VALUES, historyRowOf } from "./device-history.ts";
import { headsOf, type LogName, readExtents } from "./extents.ts";
import { RedisHooks } from "./hooks.ts";
import { RedisRounds } from "./rounds.ts";
import { RedisSchedules } from "./schedules.ts";
import { OWING_DEVICES, readOwing } from "./owing.ts";
import { RedisPresence } from "./presence.ts";
import { type DatedReceipt, RedisReceipts } from "./receipts.ts";
import { TrimmableChannels } from "./retention.ts";
import { check, readDurability } from "./durability.ts";
import { type Keys, keysWith, topicSuffix } from "./keys.ts";
import { type Script, type SCRIPTS, scriptsFor } from "./scripts.ts";
import {
  type Appended,
  type BegunRound,
  type ChannelEntry,
  type ChannelScope,
  type Delivery,
  type DeviceState,
  type DueTime,
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
  type Remains,
  type Reminder,
  type Result,
  type Retention,
  type RoundPosition,
  type Schedule,
  type ScheduleDraft,
  type Store,
  type Troubled,
  usedDueTime,
  type Verdict,
  type Wake,
  type Withdrawn,
} from "../store.ts";
import { type TagChange, type Tags, tagsOf, tagsText, tooManyFit, tooManyTags } from "../tags.ts";

/** Approximate limit of data per read: catch-up goes in steps that a slow reader can take. */
const READ_BYTES = 4 * EVENT_BYTES_MAX;
/** Entries per command: 8 MiB of the largest. */
const READ_ENTRIES = 128;
/** Names per script for rows: about a millisecond of Redis' time. */
const NAMES_AT_ONCE = 250;
/** Devices per script that records missing ones. */
const MISS_DEVICES = 500;
/** Reminders per command. */
const READ_REMINDERS = 1_000;
/** Approximate number of rows that one slice of trimming touches. */
const TRIM_ROWS = 1_000;
/** Redis drops an idempotency key by its own clock, so later than PERE forgets it. */
const KEY_SLACK_MS = 3_600_000;
/** For this long after a sign of life, an unused channel is listed as used: the device may be at another instance. */
const LATELY_MS = 5_000;
/** Maximum number of channels whose extent is remembered. */
const REACHED_MAX = 100_000;

const RESULTS: readonly Result[] = ["recorded", "duplicate", "unknown", "unaddressed", "early"];
const WITHDRAWN: readonly Withdrawn[] = ["withdrawn", "complete", "control", "unknown"];

export interface RedisOptions {
  /** `redis://` or `rediss://`; several are nodes of one Cluster. */
  readonly urls: readonly string[];
  /** How many replicas must have a push or a receipt before it is answered. */
  readonly replicas?: number;
  /** Prefix of all keys, for several services on one Redis. */
  readonly prefix?: string;
  /** Creates epochs; 41 random bits by default. */
  readonly epoch?: () => string;
  /** How long a call may take, milliseconds; 2,500 by default. */
  readonly callMs?: number;
  /** How long an instance may take for what is due in a channel before another one does it, milliseconds; 500 by default. */
  readonly claimMs?: number;
}

/** Errors of one channel, which do not concern the others. */
function asPereError(error: unknown): PereError {
  if (error instanceof PereError) return error;
  throw error;
}

type SevenNumbers = [number, number, number, number, number, number, number];

/** Splits values into groups of `width`. */
function* inGroups(values: readonly Reply[], width: number): Generator<readonly Reply[]> {
  for (let at = 0; at < values.length; at += width) yield values.slice(at, at + width);
}

/** The database number in a server's URL. */
const databaseOf = (url: string): number => Number(new URL(url).pathname.slice(1)) || 0;

/** @throws PereError as `RedisLink` */
export class RedisStore implements Store {
  readonly #prefix: string;
  readonly #keys: (channel: string) => Keys;
  readonly #scripts: typeof SCRIPTS;
  readonly #epoch: () => string;
  readonly #replicas: number;
  readonly #link: Redis;
  readonly #subscriber: RedisSubscriber;
  readonly #presence: RedisPresence;
  readonly #receipts = new RedisReceipts((channel, receipts) => this.#record(channel, receipts));
  readonly #deadlines: RedisDeadlines;
  readonly #attention: RedisAttention;
  /** The channels in which an event is to become overdue. */
  readonly #ages: RedisDeadlines;
  readonly #hooks: RedisHooks;
  readonly #schedules: RedisSchedules;
  readonly #rounds: RedisRounds;
  readonly #list: ChannelList;
  readonly #trimmable: TrimmableChannels;
  /** How far each channel's logs are known to reach: detects that Redis was restored to an older state before a number is used twice. */
  readonly #lastKnown = new Map<
    string,
    { readonly epoch: string; readonly events: number; readonly receipts: number }
  >();
  #closing: Promise<void> | undefined;

  constructor({ urls, replicas = 0, prefix = "pere:", epoch = newEpoch, callMs, claimMs }: RedisOptions) {
    this.#prefix = prefix;
    const database = databaseOf(urls[0]!);
    this.#keys = keysWith(prefix, database);
    this.#scripts = scriptsFor(topicSuffix(database));
    this.#epoch = epoch;
    this.#replicas = replicas;
    const ready = (client: Client): void => {
      // First on every connection, so that the calls of one turn keep their order.
      for (const { text } of Object.values(this.#scripts)) client.sendCommand(["SCRIPT", "LOAD", text]).catch(() => {});
      // The new connection may lead to a server in another state.
      this.#list.markUnverified();
      this.#trimmable.markUnverified();
      this.#presence.markUnverified();
      this.#subscriber.markUnverified();
    };
    this.#link = urls.length === 1 ? new RedisLink(urls, ready, callMs) : new RedisCluster(urls, ready, callMs);
    this.#attention = new RedisAttention(this.#link, prefix, this.#keys, this.#scripts);
    const deadlines = (key: string, process: (channel: string, now: number) => Promise<string>): RedisDeadlines =>
      new RedisDeadlines(this.#link, prefix + key, this.#scripts, process, claimMs);
    this.#deadlines = deadlines("due", (channel, now) => this.#missIn(channel, now));
    this.#ages = deadlines("aging", (channel, now) => this.#attention.age(channel, now));
    this.#hooks = new RedisHooks(
      this.#link,
      `${prefix}hooked`,
      this.#keys,
      this.#attention,
      (script, channel, values, keys) => this.#make(script, channel, values, keys),
    );
    this.#rounds = new RedisRounds(this.#link, `${prefix}rounds`, this.#keys, this.#scripts);
    this.#schedules = new RedisSchedules(
      this.#link,
      `${prefix}scheduled`,
      this.#keys,
      this.#scripts,
      (script, channel, values, keys) => this.#make(script, channel, values, keys),
      (channel) => this.#guardOf(channel),
    );
    this.#list = new ChannelList(this.#link, prefix, {
      discard: async (channel, upTo) => (await this.#run(this.#scripts.discard, channel, [upTo]))[0],
      exists: async (channel) => (await this.heads(channel)) !== null,
    });
    this.#trimmable = new TrimmableChannels(this.#link, `${prefix}kept`, this.#scripts);
    this.#presence = new RedisPresence(this.#link, `${prefix}instances`, this.#keys);
    // In a Cluster, a message published at one node reaches all nodes.
    this.#subscriber = new RedisSubscriber(urls, prefix, {
      name: (kind, channel) => this.#keys(channel).topic(kind),
      heads: (channel) => this.heads(channel),
      heard: (kind, channel, epoch, seq) => this.#noteReached(channel, epoch, { [kind]: seq }),
      look: (logs, entries) => this.#look(logs, entries),
      tell: (topic, text) => this.#link.send("PUBLISH", topic, text),
      renew: (channel, lost) => this.#run(this.#scripts.renew, channel, [lost, this.#epoch()]),
    });
  }

  /** Connects. @throws PereError away */
  static async open(options: RedisOptions): Promise<RedisStore> {
    const store = new RedisStore(options);
    try {
      await Promise.all([store.#link.start(), store.#subscriber.start()]);
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
    quorum?: ReplicaQuorum,
  ): Promise<readonly Reply[]> {
    const reply = await this.#link.run(script, this.#keys(channel).all, values, quorum);
    return Array.isArray(reply) ? (reply as readonly Reply[]) : [reply];
  }

  /** Runs a script that may create its channel; its reply begins with whether it did. */
  async #make(
    script: Script,
    channel: string,
    values: readonly (string | number)[],
    keys: readonly string[] = [],
    quorum?: ReplicaQuorum,
  ): Promise<readonly Reply[]> {
    const made = this.#link.run(script, [...this.#keys(channel).all, ...keys], [this.#epoch(), ...values], quorum);
    if (!this.#list.has(channel)) return (await Promise.all([made, this.#list.add(channel)]))[0] as readonly Reply[];
    const reply = (await made) as readonly Reply[];
    if (reply[0] === 1) await this.#list.add(channel); // A new epoch; the list may be lost as well.
    return reply;
  }

  /** The replicas that the answer to a push or a receipt waits for. */
  #quorum(channel: string): ReplicaQuorum | undefined {
    return this.#replicas === 0 ? undefined : { replicas: this.#replicas, key: this.#keys(channel).replicaProbe };
  }

  /** Numbers of this log were used up to here. */
  #noteReached(
    channel: string,
    epoch: string,
    { events = 0, receipts = 0 }: { events?: number; receipts?: number },
  ): void {
    const before = this.#lastKnown.get(channel);
    if (!before && this.#lastKnown.size >= REACHED_MAX) this.#lastKnown.clear();
    const isSame = before?.epoch === epoch;
    if (isSame && before.events >= events && before.receipts >= receipts) return;
    this.#lastKnown.set(channel, {
      epoch,
      events: isSame ? Math.max(before.events, events) : events,
      receipts: isSame ? Math.max(before.receipts, receipts) : receipts,
    });
  }

  /** What is known of a channel, for `guard` in the scripts. */
  #guardOf(channel: string): string {
    const given = this.#lastKnown.get(channel);
    return given ? `${given.epoch} ${given.events} ${given.receipts} ${this.#epoch()}` : "";
  }

  // -------------------------------------------------------------------------------------------------------------- channels

  async open(channel: string): Promise<Heads> {
    return headsOf(await this.#run(this.#scripts.open, channel, [this.#epoch()]), 1);
  }

  async heads(channel: string): Promise<Heads | null> {
    return (await this.#counters(channel))?.heads ?? null;
  }

  async #counters(channel: string): Promise<{ heads: Heads; devices: number; isUnused: boolean } | null> {
    const fields = ["epoch", "head", "floor", "receiptsHead", "receiptsFloor", "controls", "audience", "unused"];
    const found = (await this.#link.send("HMGET", this.#keys(channel).counters, ...fields)) as readonly Reply[];
    if (found[0] !== null)
      this.#noteReached(channel, found[0] as string, { events: Number(found[1]), receipts: Number(found[3]) });
    // Presence at other instances is known with a short delay.
    const isLately = Math.abs(Date.now() - Number(found[7])) < LATELY_MS;
    const isUnused = found[7] !== null && !isLately;
    return found[0] === null ? null : { heads: headsOf(found, 0), devices: Number(found[6]), isUnused };
  }

  readonly #readExtents = (keys: readonly string[], values: readonly number[], width: number) =>
    this.#link.readGroups(this.#scripts.extents, keys, values, width);

  /** What the subscriber compares with what it received. A followed channel that was deleted gets a new epoch, so that its followers are told. */
  async #look(logs: readonly LogName[], entries: readonly number[]): Promise<readonly (Looked | PereError)[]> {
    const found = await readExtents(this.#readExtents, this.#prefix, logs, entries);
    const deleted = new Map<string, Promise<Heads | PereError>>();
    for (const [index, read] of found.entries()) {
      if (read instanceof PereError) continue;
      const { channel } = logs[index]!;
      if (read.heads)
        this.#noteReached(channel, read.heads.epoch, {
          events: read.heads.events.head,
          receipts: read.heads.receipts.head,
        });
      else if (!deleted.has(channel)) deleted.set(channel, this.open(channel).catch(asPereError));
    }
    if (deleted.size === 0) return found as readonly (Looked | PereError)[];
    return Promise.all(
      found.map(async (read, index) => {
        if (read instanceof PereError) return read;
        const heads = read.heads ?? (await deleted.get(logs[index]!.channel)!);
        return heads instanceof PereError ? heads : { heads, entry: read.entry };
      }),
    );
  }

  async channels(after: string, limit: number, scope: ChannelScope | null = null): Promise<Page<ChannelEntry, string>> {
    const names = await this.#list.names(after, limit + 1, scope);
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

  async channelNames(after: string, limit: number, scope: ChannelScope | null): Promise<Page<string, string>> {
    return page(await this.#list.names(after, limit + 1, scope), limit, (name) => name);
  }

  async removeChannel(channel: string, now: number): Promise<"removed" | "unknown" | Remains> {
    const keys = this.#keys(channel);
    for (let expired: readonly Reply[] = ["", 0]; ;) {
      const values = [this.#epoch(), now, ...(expired as readonly (string | number)[])];
      const reply = await this.#link.run(
        this.#scripts.remove,
        [...keys.all, ...keys.attention, ...keys.schedules, keys.hooks],
        values,
      );
      const [what, ...rest] = reply as readonly Reply[];
      const [events, devices, hooks, schedules] = rest.map(Number) as [number, number, number, number];
      if (what === 2) return { events: events === 1, devices, hooks, schedules };
      if (what === 3) {
        expired = rest;
        continue;
      }
      // Where it does not exist, an earlier call may not have come to this.
      await Promise.all([this.#list.removed(channel), this.#attention.forget(channel)]);
      return what === 1 ? "removed" : "unknown";
    }
  }

  // ---------------------------------------------------------------------------------------------------------------- events

  async append(
    channel: string,
    drafts: readonly EventDraft[],
    now: number,
    key?: Idempotency,
    scheduled?: DueTime,
  ): Promise<Appended> {
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
      const text = eventEntryText(draft, now, { expires, deadline, remind }, scheduled?.id);
      const until = remindedUntil({ expires, deadline });
      values.push(
        expires ?? 0,
        deadline ?? 0,
        remind ?? 0,
        until ?? 0,
        text,
        draft.attempts ?? "",
        draft.key ?? "",
        draft.where ?? "",
        draft.to?.length ?? 0,
        ...(draft.to ?? []),
      );
    }
    const heard = drafts[0]!.key === null ? null : this.#subscriber.acknowledgements.request();
    values.push(heard?.word ?? "", scheduled?.id ?? "", scheduled?.due ?? "", scheduled?.next ?? "");
    values.push(key?.now ?? now, this.#guardOf(channel));
    const { idempotency, schedules } = this.#keys(channel);
    const keys: string[] = scheduled ? [...schedules] : key ? [key.key, key.earlier ?? key.key].map(idempotency) : [];
    if (heard !== null) keys.push(...this.#keys(channel).attention);
    const deadlines = drafts.flatMap(({ deadline }) => afterSeconds(0, deadline) ?? []);
    const store = () => this.#make(this.#scripts.append, channel, values, keys, this.#quorum(channel));
    const reply =
      deadlines.length === 0
        ? await store()
        : await this.#deadlines.append(channel, now, Math.min(...deadlines), store);
    if (reply.length === 0) throw scheduled ? usedDueTime(scheduled.id) : otherRequest();
    if (reply[1] === "fits") throw tooManyFit(reply[3] as string, Number(reply[2]), drafts.length);
    // An event that it supersedes has very many devices with something to be done before.
    if (reply.length === 2) {
      await this.#attention.note(channel, reply[1]);
      return this.append(channel, drafts, now, key, scheduled);
    }
    const [, epoch, first, count, at, addressed, type, replayed, wasEmpty, headReply, receivers, ages, attention] =
      reply;
    const head = Number(headReply);
    if (wasEmpty === 1) await this.#trimmable.add(channel, now);
    // If this fails, it is found when all channels are trimmed.
    if (ages !== "") this.#ages.ahead(channel, Number(ages)).catch(() => {});
    if (replayed !== 1) this.#noteReached(channel, epoch as string, { events: head });
    // What it superseded is given to nobody any more.
    const isSuperseding = replayed !== 1 && head >= Number(first) + Number(count);
    if (isSuperseding) await this.#subscriber.reported("events", channel, head);
    await this.#attention.note(channel, attention);
    await heard?.heardBy(isSuperseding ? Number(receivers) : 0);
    // The first call may have failed before it registered the deadline.
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

  async replayed(channel: string, key: Idempotency, now: number): Promise<Appended | null> {
    const { all, idempotency } = this.#keys(channel);
    const keys = [...all, idempotency(key.key), idempotency(key.earlier ?? key.key)];
    const reply = (await this.#link.run(this.#scripts.replayed, keys, [
      key.digest,
      key.now ?? now,
    ])) as readonly Reply[];
    if (reply.length === 0) return null;
    if (reply.length === 1) throw otherRequest();
    const [first, count, at, addressed] = reply.slice(1, 5).map(Number) as [number, number, number, number];
    const type = reply[5] === "" ? null : (reply[5] as string);
    return { epoch: reply[0] as string, first, count, at, addressed, type, replayed: true };
  }

  /** Runs a script that reads one epoch of a channel; null if the channel has another epoch or does not exist. */
  async #readOf(
    script: Script,
    channel: string,
    epoch: string,
    values: readonly (string | number)[],
  ): Promise<readonly Reply[] | null> {
    return (await this.#link.read(script, this.#keys(channel).all, [epoch, ...values])) as readonly Reply[] | null;
  }

  async withdraw(channel: string, event: Position, note: string | null, now: number): Promise<Withdrawn> {
    for (;;) {
      const heard = this.#subscriber.acknowledgements.request();
      const values = [event.epoch, event.seq, note ?? "", now, heard.word, this.#guardOf(channel)];
      const keys = this.#keys(channel).withAttention;
      const reply = await this.#link.run(this.#scripts.withdraw, keys, values, this.#quorum(channel));
      const [what, head, receivers, isVoided, attention] = reply as readonly [number, Reply, Reply, Reply, Reply];
      await this.#attention.note(channel, attention);
      // If this fails, it is found when all channels are trimmed.
      if (Number(isVoided) === 1) this.#ages.ahead(channel, 0).catch(() => {});
      if (what === 0) {
        this.#noteReached(channel, event.epoch, { events: Number(head) });
        await this.#subscriber.reported("events", channel, Number(head));
      }
      await heard.heardBy(Number(receivers));
      if (what !== 4) return WITHDRAWN[what!]!;
    }
  }

  async events(
    channel: string,
    epoch: string,
    after: number,
    limit: number,
    bytesMax = READ_BYTES,
  ): Promise<LogEntry[] | null> {
    const found: LogEntry[] = [];
    let bytes = 0;
    for await (const entry of this.#entries("events", channel, epoch, after, limit)) {
      if (entry === null) return null;
      found.push(logEntryOf(...entry));
      bytes += entry[1].length;
      if (bytes >= bytesMax) break;
    }
    if (found.length === 0) return found;
    // Read last, so that they hold for all of the entries.
    const marks = await this.#readOf(this.#scripts.marks, channel, epoch, [found[0]!.seq, found.at(-1)!.seq]);
    if (marks === null) return null;
    if (marks.length === 0) return found;
    const withdrawn = new Map(
      [...inGroups(marks, 2)].map(([seq, text]) => [Number(seq), withdrawalOf(text as string)]),
    );
    const floor = found.some((entry) => isControl(entry) && entry.to !== null) ? await this.#floorOf(channel) : 0;
    return found.map((entry) => {
      if (isControl(entry)) return entry.to !== null && entry.withdraws <= floor ? { ...entry, to: [] } : entry;
      return { ...entry, withdrawn: withdrawn.get(entry.seq) ?? null };
    });
  }

  /** Up to which event nothing is kept. */
  async #floorOf(channel: string): Promise<number> {
    return Number(await this.#link.send("HGET", this.#keys(channel).counters, "floor"));
  }

  async receipts(channel: string, epoch: string, after: number, limit: number): Promise<Receipt[] | null> {
    const found: Receipt[] = [];
    for await (const entry of this.#entries("receipts", channel, epoch, after, limit)) {
      if (entry === null) return null;
      found.push(receiptOf(...entry));
    }
    return found;
  }

  /** A log's entries after `after`, in steps, without gaps; null: the log has another epoch. */
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
        // Retention ran between two steps. The next reader detects the gap.
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
    for (const group of inGroups(reply, 10)) {
      const [seq, ...counts] = group.map(Number) as [number, ...number[]];
      tallies.set(seq, tallyOf(counts));
    }
    return tallies;
  }

  // -------------------------------------------------------------------------------------------------------------- receipts

  record(channel: string, drafts: readonly ReceiptDraft[], now: number, random?: () => number): Promise<Verdict[]> {
    return this.#receipts.record(channel, drafts, now, random);
  }

  /** Records receipts of several requests in one script. */
  async #record(channel: string, receipts: readonly DatedReceipt[]): Promise<Verdict[]> {
    const values: (string | number)[] = [];
    for (const { draft, now, random } of receipts) {
      const { event, device, status, deviceAt, detail, after, round, retry } = draft;
      const isPlain = after === null && round === null && status !== "failed";
      const more = isPlain
        ? ""
        : `${after === null ? "" : Math.round(after * 1000)},${round ?? ""},${retry ? 1 : 0},${random()}`;
      values.push(now, event.epoch, event.seq, device, stateCode(status), deviceAt ?? "", detail ?? "", more);
    }
    values.push(this.#guardOf(channel));
    const keys = this.#keys(channel).withAttention;
    const reply = (await this.#link.run(this.#scripts.record, keys, values, this.#quorum(channel))) as readonly Reply[];
    const verdicts: Verdict[] = [];
    const rounds: number[] = [];
    for (const group of inGroups(reply.slice(0, 4 * receipts.length), 4)) {
      const [result, code, late, due] = group.map(Number) as [number, number, number, number];
      if (due > 0) rounds.push(due);
      const isRecorded = code >= 0;
      verdicts.push({
        result: RESULTS[result]!,
        state: isRecorded ? (STATES[code] as Status) : null,
        late: late === 0 ? null : LATE_REASONS[late - 1]!,
        due: isRecorded && due > 0 ? due : null,
      });
    }
    // A repeated receipt lists its round again: the first call may have failed before it did.
    if (rounds.length > 0) await this.#rounds.add(channel, rounds);
    if (reply.length > 4 * receipts.length) await this.#attention.note(channel, reply.at(-1));
    return verdicts;
  }

  async deviceStates(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    now: number,
  ): Promise<ReadonlyMap<number, DeviceState> | null> {
    const found = await this.#readOf(this.#scripts.states, channel, epoch, [device, after, upTo, now]);
    if (found === null) return null;
    const states = new Map<number, DeviceState>();
    for (const group of inGroups(found, 4)) {
      const [seq, code, round, due] = group.map(Number) as [number, number, number, number];
      states.set(seq, { state: STATES[code]!, round, due: due === 0 ? null : due });
    }
    return states;
  }

  async begunRounds(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    limit: number,
    now: number,
  ): Promise<BegunRound[] | null> {
    const found = await this.#readOf(this.#scripts.begunRounds, channel, epoch, [device, after, upTo, limit, now]);
    return found && [...inGroups(found, 2)].map(([event, round]) => ({ event: Number(event), round: Number(round) }));
  }

  roundsDue(after: RoundPosition, now: number, limit: number) {
    return this.#rounds.due(after, now, limit);
  }

  async latestOfKeys(
    channel: string,
    epoch: string,
    { device, joined }: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    now: number,
  ): Promise<{ events: Event[]; upTo: number } | null> {
    const values = [device ?? "", joined, after, head, limit, now];
    const reply = await this.#readOf(this.#scripts.latestOfKeys, channel, epoch, values);
    if (reply === null) return null;
    const [upTo, ...rest] = reply;
    const events = [...inGroups(rest, 2)].map(([seq, text]) => eventOf(Number(seq), text as string));
    return { events, upTo: Number(upTo) };
  }

  async rows(
    channel: string,
    epoch: string,
    event: number,
    statuses: readonly State[] | null,
    after: string,
    limit: number,
    now: number,
  ): Promise<Page<Row, string> | null> {
    const wanted = statuses === null ? "" : ` ${statuses.map(stateCode).join(" ")} `;
    const found: Row[] = [];
    for (let from: string | null = after; from !== null && found.length <= limit;) {
      const values = [event, wanted, from, NAMES_AT_ONCE, now];
      const answer = await this.#readOf(this.#scripts.rows, channel, epoch, values);
      if (answer === null) return null;
      const withdrawal = answer[0] === "" ? null : withdrawalOf(answer[0] as string);
      const reply = answer.slice(1) as unknown as readonly (readonly Reply[])[];
      // Two lists by name; if one was cut, only names up to the cut are known in both.
      const cuts: string[] = reply.map(([cut]) => cut as string).filter((cut) => cut !== "");
      const upTo: string | null = cuts.length === 0 ? null : cuts.reduce((a, b) => (a < b ? a : b));
      const rows = reply.flatMap((list) => [...inGroups(list.slice(1), 6)].map((row) => rowOf(row, withdrawal)));
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
    return (await this.#readOf(this.#scripts.addressed, channel, epoch, [event, 1, ...devices])) as string[] | null;
  }

  async addressed(channel: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null> {
    return (await this.#readOf(this.#scripts.addressed, channel, epoch, [event, 0, ...devices])) as string[] | null;
  }

  // -------------------------------------------------------------------------------------------------- deadlines and reminders

  async reminders(channel: string, now: number): Promise<Reminder[]> {
    let found: Reminder[] = [];
    let life: string | undefined;
    for (let after = "-inf"; ;) {
      const reply = await this.#run(this.#scripts.reminders, channel, [after, READ_REMINDERS]);
      const [epoch, members = []] = reply as readonly [string | undefined, (readonly string[])?];
      if (life !== undefined && epoch !== life) {
        [found, after, life] = [[], "-inf", undefined]; // The epoch changed between two pages.
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
    return this.#deadlines.record(now);
  }

  async #missIn(channel: string, now: number): Promise<string> {
    const values = [now, MISS_DEVICES, this.#guardOf(channel)];
    const [next, counts] = await this.#changeTroubles(this.#scripts.miss, channel, values);
    await this.#attention.note(channel, counts);
    return String(next);
  }

  // -------------------------------------------------------------------------------------------------------------- attention

  /** Runs a script that may change who is in trouble. */
  async #changeTroubles(script: Script, channel: string, values: readonly (string | number)[]) {
    return (await this.#link.run(script, this.#keys(channel).withAttention, values)) as readonly Reply[];
  }

  recordOverdue(now: number): Promise<number | null> {
    return this.#ages.record(now);
  }

  troubledChannels(): Promise<readonly (TroubledChannel & { readonly revision: number })[]> {
    return this.#attention.channels();
  }

  troubles(channel: string, limit: number): Promise<Troubled> {
    return this.#attention.troubles(channel, limit);
  }

  troubledHooks(): Promise<readonly TroubledHook[]> {
    return this.#attention.hooks();
  }

  // --------------------------------------------------------------------------------------------------------------- devices

  async join(channel: string, device: string, now: number, tags: Tags | null = null): Promise<Joined> {
    const given = tags === null ? "" : `=${tagsText(tags)}`;
    const reply = await this.#make(this.#scripts.join, channel, [device, now, given]);
    const [fresh, joined, first, lostSeq, more, unused, deferred] = reply.slice(7).map(Number) as SevenNumbers;
    if (unused === 1) await this.#list.addUnused(channel, now);
    const heads = headsOf(reply, 1);
    let settled = first;
    for (let isMore = more === 1; isMore;) {
      const next = await this.#run(this.#scripts.settle, channel, [device, now]);
      if (next[0] !== heads.epoch) break; // It was retired meanwhile, or the channel has a new epoch: read the current state.
      settled = Math.min(Number(next[1]), heads.events.head);
      isMore = next[2] === 1;
    }
    return { ...heads, enrolled: fresh === 0, joined, settled, lostSeq, hasDeferred: deferred === 1 };
  }

  async enrol(channel: string, device: string, now: number): Promise<boolean> {
    return (await this.#make(this.#scripts.enrol, channel, [device, now]))[1] === 1;
  }

  async tag(
    channel: string,
    device: string,
    change: TagChange,
    enrols: boolean,
    now: number,
  ): Promise<{ tags: Tags; isNew: boolean } | null> {
    const values = [device, now, enrols ? 1 : 0, change.isAll ? 1 : 0];
    const given = [...change.tags].flatMap(([name, value]) => [name, value ?? ""]);
    const [, result, found] = enrols
      ? await this.#make(this.#scripts.tag, channel, [...values, ...given])
      : await this.#run(this.#scripts.tag, channel, [this.#epoch(), ...values, ...given]);
    if (result === 3) return null;
    if (result === 0) throw tooManyTags(Number(found));
    return { tags: tagsOf(found as string), isNew: result === 2 };
  }

  async tags(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, Tags>> {
    const found = new Map<string, Tags>();
    for (let at = 0; at < devices.length; at += NAMES_AT_ONCE) {
      const some = devices.slice(at, at + NAMES_AT_ONCE);
      const texts = (await this.#link.send("HMGET", this.#keys(channel).tags, ...some)) as readonly (string | null)[];
      for (const [index, text] of texts.entries()) if (text !== null) found.set(some[index]!, tagsOf(text));
    }
    return found;
  }

  async retire(channel: string, device: string, now: number): Promise<boolean> {
    for (;;) {
      const [[what, counts]] = await Promise.all([
        this.#changeTroubles(this.#scripts.retire, channel, [device, now, this.#guardOf(channel)]),
        this.#trimmable.add(channel, now), // If this instance dies, retention finishes the release.
      ]);
      await this.#attention.note(channel, counts);
      if (what === -1) continue;
      // The retirement is decided. If Redis fails now, the next trim finishes the release.
      for (let isMore = what === 2; isMore;)
        isMore = await this.#changeTroubles(this.#scripts.release, channel, [now, this.#guardOf(channel)]).then(
          async ([left, moved]) => {
            await this.#attention.note(channel, moved);
            return left === 1;
          },
          () => false,
        );
      if (what !== 0) await this.#idle(channel, now);
      return what !== 0;
    }
  }

  /** Checks whether a channel is unused from now on. The change itself is already done; if Redis is away now, the channel stays. */
  async #idle(channel: string, now: number): Promise<void> {
    const keys = this.#keys(channel);
    const isIdle = await this.#link
      .run(this.#scripts.idle, [...keys.all, keys.hooks, keys.schedules[1]], [now])
      .catch(() => 0);
    if (isIdle === 1) await this.#list.addUnused(channel, now);
  }

  async seen(channel: string, times: ReadonlyMap<string, number>): Promise<void> {
    const [unused] = await this.#run(this.#scripts.seen, channel, [...times].flat());
    if (unused === 1) await this.#list.addUnused(channel, Math.max(...times.values()));
  }

  async devices(channel: string, after: string, limit: number, now: number): Promise<Page<EnrolledDevice, string>> {
    const names = await namesAfter(this.#link, this.#keys(channel).names, after, limit + 1);
    const { items, next } = page(names, limit, (name) => name);
    return { items: await this.owing(channel, items, now), next };
  }

  async enrolments(channel: string, after: string, limit: number): Promise<Page<DeviceEnrolment, string>> {
    const { names, devices } = this.#keys(channel);
    const { items, next } = page(await namesAfter(this.#link, names, after, limit + 1), limit, (name) => name);
    const stored = items.length === 0 ? [] : await this.#link.send("HMGET", devices, ...items);
    const found: DeviceEnrolment[] = [];
    for (const [index, text] of (stored as readonly (string | null)[]).entries())
      if (text !== null) found.push(enrolmentOf(items[index]!, text)); // Otherwise it was retired between the two reads.
    return { items: found, next };
  }

  async enrolled(channel: string, devices: readonly string[]): Promise<string[]> {
    if (devices.length === 0) return [];
    const found = (await this.#link.send("HMGET", this.#keys(channel).devices, ...devices)) as readonly Reply[];
    return devices.filter((_, n) => found[n] !== null);
  }

  async owing(channel: string, devices: readonly string[], now: number): Promise<EnrolledDevice[]> {
    const enrolments: EnrolledDevice[] = [];
    const run = (values: readonly (string | number)[]) =>
      this.#link.read(this.#scripts.owing, this.#keys(channel).all, values) as Promise<readonly unknown[] | null>;
    for (let at = 0; at < devices.length; at += OWING_DEVICES)
      enrolments.push(...(await readOwing(run, devices.slice(at, at + OWING_DEVICES), now)));
    return enrolments;
  }

  async history(
    channel: string,
    epoch: string,
    device: string,
    before: number,
    limit: number,
    now: number,
  ): Promise<Page<HistoryRow, number> | null> {
    const found: HistoryRow[] = [];
    for (let upTo = before; upTo > 0 && found.length <= limit;) {
      const values = [device, upTo, Math.min(HISTORY_ROWS, limit + 1 - found.length), now];
      const reply = await this.#readOf(this.#scripts.history, channel, epoch, values);
      if (reply === null) return null;
      upTo = Number(reply[0]);
      for (const group of inGroups(reply.slice(1), HISTORY_VALUES)) found.push(historyRowOf(group));
    }
    return page(found, limit, ({ seq }) => seq);
  }

  // ------------------------------------------------------------------------------------------------------------- retention

  /** Redis drops idempotency keys by itself. */
  async trim(channel: string | null, { count, before }: Retention, now: number): Promise<boolean> {
    if (channel === null) {
      await this.ready();
      return this.#list.trimUnused(before, now);
    }
    const { all, schedules, attention } = this.#keys(channel);
    const values = [count, before, now, TRIM_ROWS, this.#guardOf(channel)];
    const reply = await this.#link.run(this.#scripts.trim, [...all, schedules[2], ...attention], values);
    const [more, ...ended] = reply as readonly Reply[];
    await this.#attention.note(channel, ended.at(-1));
    if (more === 1) return true;
    const [deadline, oldest, due, ages] = ended;
    await Promise.all([
      deadline !== "" && this.#deadlines.ahead(channel, deadline as string),
      typeof due === "string" && due !== "" && this.#schedules.ahead(channel, due),
      ages !== "" && this.#ages.ahead(channel, Number(ages) + OVERDUE_MS),
      this.#trimmable.trimmed(channel, oldest === "" ? null : Number(oldest) + now - before + 1),
    ]);
    return false;
  }

  trimmable(now: number, limit: number): Promise<readonly string[] | null> {
    return this.#trimmable.find(now, limit);
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

  // ------------------------------------------------------------------------------------------------------ scheduled pushes

  schedule(channel: string, draft: ScheduleDraft, next: number, now: number, key?: Idempotency) {
    return this.#schedules.put(channel, draft, next, now, key);
  }

  schedules(channel: string, after: string, limit: number): Promise<Page<Schedule, string>> {
    return this.#schedules.list(channel, after, limit);
  }

  scheduled(channel: string, id: string): Promise<Schedule | null> {
    return this.#schedules.get(channel, id);
  }

  async unschedule(channel: string, id: string, now: number): Promise<boolean> {
    const isDropped = await this.#schedules.drop(channel, id);
    if (isDropped) await this.#idle(channel, now);
    return isDropped;
  }

  dueSchedules(now: number, limit: number) {
    return this.#schedules.due(now, limit);
  }

  skipSchedule(channel: string, time: DueTime, error: string, now: number): Promise<boolean> {
    return this.#schedules.skip(channel, time, error, now);
  }

  // ------------------------------------------------------------------------------------------------------------- life cycle

  watch(
    listener: (wake: Wake) => void,
    reached: (extent: Extent) => void = () => {},
    shared: (channel: string, device: string, addresses: readonly string[]) => void = () => {},
  ): void {
    this.#subscriber.watch(listener, reached, shared);
  }

  follow(kind: Kind, channel: string): Promise<void> {
    return this.#subscriber.follow(kind, channel);
  }

  unfollow(kind: Kind, channel: string): void {
    this.#subscriber.unfollow(kind, channel);
  }

  setPresence(channel: string, device: string, joined: number | null, addresses: readonly string[] = []): void {
    this.#presence.setPresence(channel, device, joined, addresses);
  }

  addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>> {
    return this.#presence.addresses(channel, devices);
  }

  remotePresence(channel: string): Promise<ReadonlyMap<string, number>> {
    return this.#presence.remotePresence(channel);
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
      // Sent before the connection closes.
      await this.#receipts.idle();
      const withdrawn = this.#presence.close();
      await Promise.all([this.#subscriber.close(), this.#link.close(), withdrawn]);
    })();
    await this.#closing;
  }
}

/** An enrolment from its entry in `devices`, which `scripts.ts` describes. */
function enrolmentOf(device: string, text: string): DeviceEnrolment {
  const [, enrolledAt, , , , seenAt] = text.split(" ").map(Number) as SevenNumbers;
  return { device, enrolledAt, seenAt: seenAt === -1 ? null : seenAt };
}

function rowOf([device, code, round, attempt, due, entry]: readonly Reply[], withdrawal: Withdrawal | null): Row {
  const status = STATES[Number(code)]!;
  const isWithdrawn = status === "withdrawn";
  const said = entry === "" || isWithdrawn ? null : receiptOf(0, entry as string);
  return {
    device: device as string,
    status,
    detail: said?.detail ?? null,
    at: isWithdrawn ? withdrawal!.at : (said?.at ?? null),
    deviceAt: said?.deviceAt ?? null,
    late: said?.late ?? false,
    round: Number(round),
    attempt: Number(attempt),
    ...(due === "" ? {} : { due: Number(due) }),
  };
}
