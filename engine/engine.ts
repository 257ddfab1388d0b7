/**
 * The operations of PERE: push, follow, feedback and queries, for both transports of a device (HTTP and WebSocket). This file knows no HTTP.
 *
 * The engine connects a store, which remembers, with feeds, which deliver. Its own state can be lost at any moment: connected devices, and signs of
 * life that are stored every few seconds.
 */
import { devicesLeft } from "./again.ts";
import { markOf, readAttention, readTroubled, type ShownAttention } from "./feeds/attention.ts";
import { yieldToEventLoop } from "./yield.ts";
import type { Clock } from "./clock.ts";
import { Counters } from "./counters.ts";
import { Directory } from "./directory.ts";
import { DueWork } from "./due.ts";
import { attempt, onConsole, type Report, unexpected } from "./faults.ts";
import type { Feed, FeedRequest, Wire } from "./feeds/feed.ts";
import { type FeedLimits, Feeds } from "./feeds/feeds.ts";
import {
  type Event,
  type EventDraft,
  eventStateText,
  id as idOf,
  isControl,
  isFinal,
  type LateReceipt,
  type LogEntry,
  PAGE_MAX,
  PereError,
  type Position,
  parsePosition,
  type ReceiptDraft,
  type Rejection,
  type Row,
  type State,
} from "./model.ts";
import type { AddressRange } from "./addresses.ts";
import type { CallOptions } from "./hooks/call.ts";
import { Hooks } from "./hooks/hooks.ts";
import { Reminders } from "./feeds/reminders.ts";
import { Rounds } from "./feeds/rounds.ts";
import { type RetentionLimits, RetentionSchedule } from "./retention-schedule.ts";
import { Completion } from "./feeds/completion.ts";
import { Schedules } from "./schedule/schedules.ts";
import type { Appended, ChannelScope, DueTime, Heads, Idempotency, Page, Readiness, Remains, Store } from "./store.ts";
import type { TagChange, Tags } from "./tags.ts";
import { type Screen, Watch, type WatchRequest } from "./feeds/watch.ts";
import { warningsOf } from "./warnings.ts";

/** Durations and limits. Times in milliseconds. */
export interface Limits extends FeedLimits, RetentionLimits {
  /** Signs of life are stored at this interval. */
  readonly seenMs: number;
}

export const LIMITS: Limits = {
  beatMs: 15_000,
  renewMs: 15 * 60_000,
  feeds: 100_000,
  feedsPerCaller: Number.POSITIVE_INFINITY,
  seenMs: 5_000,
  trimMs: 30_000,
  keptEvents: 10_000,
  keptMs: 7 * 24 * 3600 * 1000,
  keep: [],
};

export interface EngineOptions {
  readonly limits?: Partial<Limits>;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** From 0 up to 1. */
  readonly random?: () => number;
  /** Private addresses that hooks may call. */
  readonly hooksAllowed?: readonly AddressRange[];
  readonly hookCall?: CallOptions;
  /** The counters. */
  readonly counts?: Counters;
  /** Whether the wall clock leapt: `Clock`. */
  readonly clock?: Pick<Clock, "leapMs" | "advice" | "stamp">;
  /** Receives unexpected errors of background work. */
  readonly report?: Report;
}

export interface Audience {
  readonly addressed: number;
  readonly connected: number;
}

/** The result of a push: `count` events from `first` on. `warnings`: sentences for its publisher. */
export interface Pushed extends Appended {
  readonly audience: Audience;
  readonly warnings: readonly string[];
}

/** The result of a request with receipts. `late` is absent if none was. */
export interface Feedback {
  readonly recorded: number;
  readonly duplicate: number;
  readonly rejected: readonly Rejection[];
  readonly late?: readonly LateReceipt[];
}

/** What a publisher decides when an event is pushed again. */
export type AgainOptions = Omit<EventDraft, "data" | "type" | "to" | "again">;

/** Approximate characters per page of events: limits the memory of an answer. */
const PAGE_CHARACTERS_MAX = 4 * 1024 * 1024;

/** Events per read. */
const READ_ROWS = 250;
/** The same from the newest on, where a page ends behind a whole number of reads: 4 MiB of the largest. */
const NEWEST_ROWS = 64;

/** Devices per question whether an event is addressed to them. */
const DEVICES_AT_ONCE = 500;

const REASONS = {
  unknown: "there is no such event in this channel, or it is no longer kept",
  unaddressed: "the event was not addressed to this device",
  early: "round: the event was not sent to this device that often; give the round that the event came with",
} as const;

export class Engine {
  /** Calls hooks when there are receipts. */
  readonly hooks: Hooks;
  /** Which channels and devices there are. */
  readonly directory: Directory;
  /** Whether the wall clock leapt. */
  readonly clock: Pick<Clock, "leapMs" | "advice" | "stamp">;
  /** What was done since the start. */
  readonly counts: Counters;
  readonly #store: Store;
  readonly #now: () => number;
  readonly #feeds: Feeds;
  readonly #reminders: Reminders;
  readonly #deadlines: DueWork;
  /** Pushes what is scheduled. */
  readonly schedules: Schedules;
  /** The same for events without a deadline, after an hour. */
  readonly #overdue: DueWork;
  readonly #rounds: Rounds;
  readonly #random: () => number;
  readonly #report: Report;
  readonly #completion: Completion;
  readonly #watch: Watch;
  readonly #seenTimer: Timer;
  readonly #retention: RetentionSchedule;
  #draining = false;
  /** The running check of the store. */
  #readyCheck: Promise<Readiness> | undefined;

  constructor(store: Store, options: EngineOptions = {}) {
    const { now = Date.now, random = Math.random, hooksAllowed = [], hookCall = {} } = options;
    const limits = { ...LIMITS, ...options.limits };
    const { counts = new Counters(), report = onConsole } = options;
    this.counts = counts;
    this.clock = options.clock ?? { leapMs: 0, advice: [], stamp: now };
    this.#store = store;
    this.#now = now;
    const onPresenceChange = (channel: string, hasDevices: boolean): void =>
      this.#reminders.presenceChanged(channel, hasDevices);
    this.#feeds = new Feeds(store, limits, now, random, counts, onPresenceChange, report);
    this.directory = new Directory(store, this.#feeds.presence, now);
    this.#reminders = new Reminders(store, this.#feeds, now, report);
    this.#deadlines = new DueWork((at) => store.recordMissing(at), now, report);
    this.#overdue = new DueWork((at) => store.recordOverdue(at), now, report);
    this.schedules = new Schedules(
      store,
      now,
      (channel, draft, time) => this.#append(channel, [draft], undefined, time),
      report,
    );
    this.#rounds = new Rounds(store, this.#feeds, now, report);
    this.#random = random;
    this.#report = report;
    this.hooks = new Hooks(store, {
      follow: (request, wire) => this.#feeds.follow(request, wire),
      state: (channel, id) => this.event(channel, id),
      allowed: hooksAllowed,
      call: hookCall,
      counts,
      now,
      stamp: this.clock.stamp,
      random,
      report,
    });
    this.#completion = new Completion(store, (request, wire) => this.#feeds.follow(request, wire));
    this.#watch = new Watch(store, this.#feeds.presence, counts, now, report);
    store.watch(
      (wake) => {
        if (wake.kind === "events")
          for (const { seq, at } of wake.entries.filter((entry) => !isControl(entry)))
            counts.pushed(wake.epoch, seq, 1, at);
        // The data is stored: notify each of them, even if another one fails.
        attempt(report, () => this.#feeds.woken(wake));
        attempt(report, () => this.#reminders.woken(wake));
      },
      (extent) => {
        attempt(report, () => this.#feeds.reached(extent));
        if (extent.kind === "events") attempt(report, () => this.#reminders.read(extent.channel));
      },
      (channel, device, addresses) => attempt(report, () => this.#feeds.shared(channel, device, addresses)),
    );
    this.#seenTimer = setInterval(() => void this.#feeds.presence.writeHeard(), limits.seenMs);
    this.#seenTimer.unref();
    this.#retention = new RetentionSchedule(store, limits, now, report);
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** What this instance holds, for tests and metrics. */
  get held() {
    return this.#feeds.held;
  }

  /** How readers are connected, for metrics. */
  get readers() {
    return this.#feeds.readers;
  }

  /** The number of watchers. */
  get watchers(): number {
    return this.#watch.size;
  }

  // ------------------------------------------------------------------------------------------------------------------ push

  /**
   * Stores events, one or many in one commit, and wakes all followers. All drafts share one audience.
   * @throws PereError refused (the key was used with another body), away (nothing was stored, or the result is unknown)
   */
  async push(channel: string, drafts: readonly EventDraft[], key?: Idempotency): Promise<Pushed> {
    if (this.#draining) throw new PereError("away", "PERE is shutting down; push again in a moment");
    return this.#append(channel, drafts, key);
  }

  async #append(
    channel: string,
    drafts: readonly EventDraft[],
    key: Idempotency | undefined,
    scheduled?: DueTime,
  ): Promise<Pushed> {
    const work = this.counts.of(channel);
    const startedAt = performance.now();
    const { to } = drafts[0]!;
    const [appended, elsewhere, enrolled] = await Promise.all([
      this.#store.append(channel, drafts, this.clock.stamp(), key && { ...key, now: this.#now() }, scheduled),
      this.#store.remotePresence(channel),
      to === null || scheduled ? [] : this.#enrolled(channel, to),
    ]).catch((error: unknown) => {
      if (!(error instanceof PereError) || (error.code !== "refused" && error.code !== "conflict")) work.pushFailures++;
      throw error;
    });
    this.counts.pushStored.note((performance.now() - startedAt) / 1000);
    if (appended.replayed) work.replays++;
    else work.pushes += appended.count;
    // Its receipts may arrive here even if only other instances have followers.
    this.counts.pushed(appended.epoch, appended.first, appended.count, appended.at);
    if (!appended.replayed) this.#retention.pushed(channel, appended.first + appended.count - 1, appended.count);
    if (drafts[0]!.deadline !== null) this.#deadlines.ahead(appended.at + drafts[0]!.deadline * 1000);
    return this.#pushed(channel, appended, drafts[0]!, enrolled, elsewhere);
  }

  /** @param enrolled those of the named devices that are enrolled; null: unknown */
  async #pushed(
    channel: string,
    appended: Appended,
    { to, where }: Pick<Event, "to" | "where">,
    enrolled: readonly string[] | null,
    elsewhere: ReadonlyMap<string, number>,
  ): Promise<Pushed> {
    const known = new Set(enrolled);
    const strangers = enrolled === null ? [] : (to ?? []).filter((device) => !known.has(device));
    const { epoch, first, addressed } = appended;
    const connected = await this.#connected(channel, epoch, { seq: first, to, where }, elsewhere);
    const audience = { addressed, connected };
    return { ...appended, audience, warnings: warningsOf(channel, appended, strangers, where) };
  }

  /** Those of these devices that are enrolled; null: unknown, which is no reason to refuse a push. */
  async #enrolled(channel: string, devices: readonly string[]): Promise<string[] | null> {
    try {
      const found: string[] = [];
      for (let from = 0; from < devices.length; from += PAGE_MAX)
        found.push(...(await this.#store.enrolled(channel, devices.slice(from, from + PAGE_MAX))));
      return found;
    } catch (error) {
      unexpected(this.#report, error);
      return null;
    }
  }

  /**
   * Pushes an event again, with its data and type, to the devices that failed it, are missing on it or had it withdrawn.
   * @throws PereError as `push`; unknown; refused: there is no such device, or the id is that of a control entry
   */
  async again(channel: string, name: string, options: AgainOptions, key?: Idempotency): Promise<Pushed> {
    if (this.#draining) throw new PereError("away", "PERE is shutting down; push again in a moment");
    // What a key is known for is answered even if nobody is left by now.
    const known = key ? await this.#store.replayed(channel, key, this.#now()) : null;
    if (known) return this.#replayed(channel, known);
    const { epoch, seq } = await this.#kept(channel, name);
    const event = await this.#entryAt(channel, epoch, seq);
    if (!event) throw new PereError("unknown", `event ${name} is no longer kept`);
    if (isControl(event))
      throw new PereError(
        "refused",
        `${name} is not an event: it tells that event ${idOf(epoch, event.withdraws)} was withdrawn; push that one again`,
      );
    const to = await devicesLeft(this.#store, channel, epoch, event, this.#now());
    return this.#append(channel, [{ ...options, type: event.type, data: event.data, to, again: seq }], key);
  }

  async #replayed(channel: string, known: Appended): Promise<Pushed> {
    this.counts.of(channel).replays++;
    const event = await this.#entryAt(channel, known.epoch, known.first);
    const to = event && !isControl(event) ? (event.to ?? []) : [];
    const [enrolled, elsewhere] = await Promise.all([this.#enrolled(channel, to), this.#store.remotePresence(channel)]);
    return this.#pushed(channel, known, { to, where: null }, enrolled, elsewhere);
  }

  /** The kept entry with this number; undefined: it is not kept. */
  async #entryAt(channel: string, epoch: string, seq: number): Promise<LogEntry | undefined> {
    const [entry] = (await this.#store.events(channel, epoch, seq - 1, 1)) ?? [];
    return entry?.seq === seq ? entry : undefined;
  }

  /** How many of the devices that an event is addressed to are connected: those in `to`, or that its `where` fitted, or all. */
  async #connected(
    channel: string,
    epoch: string,
    { seq, to, where }: Pick<Event, "seq" | "to" | "where">,
    elsewhere: ReadonlyMap<string, number>,
  ): Promise<number> {
    const { presence } = this.#feeds;
    if (where === null) return presence.connected(channel, to, elsewhere);
    const names = presence.names(channel, elsewhere);
    let count = 0;
    for (let at = 0; at < names.length; at += DEVICES_AT_ONCE) {
      await yieldToEventLoop("read", DEVICES_AT_ONCE);
      const some = names.slice(at, at + DEVICES_AT_ONCE);
      // What is stored is acknowledged even if this can't be read now.
      const found = await this.#store.addressed(channel, epoch, seq, some).catch(() => null);
      if (found === null) return count;
      count += found.length;
    }
    return count;
  }

  /**
   * Waits until every addressed device has sent a final receipt, at any instance; until the time is over; or until `signal`.
   * @returns the events' tallies by `seq`; an event that is no longer kept has none; null: the channel's log was lost or restored meanwhile
   * @throws PereError away: they can't be read
   */
  outcome({ epoch, first, count }: Pushed, channel: string, waitMs: number, signal: AbortSignal) {
    const events = Array.from({ length: count }, (_, n) => first + n);
    return this.#completion.until(channel, epoch, events, waitMs, signal);
  }

  /** Opens a feed; see `Feeds.follow`. */
  follow(request: FeedRequest, wire: Wire): Feed {
    return this.#feeds.follow(request, wire);
  }

  /** Opens a watcher; see `Watch.watch`. */
  watch(request: WatchRequest, screen: Screen): () => void {
    return this.#watch.watch(request, screen);
  }

  // -------------------------------------------------------------------------------------------------------------- feedback

  /**
   * Records receipts. Each item is a draft with its channel, or the message that says why it is rejected.
   * @throws PereError away (nothing was recorded, or the result is unknown; it is safe to repeat the call)
   */
  async feedback(
    items: readonly ({ channel: string; draft: ReceiptDraft } | { event: string | null; reason: string })[],
  ): Promise<Feedback> {
    const rejected: Rejection[] = [];
    const late: LateReceipt[] = [];
    const byChannel = new Map<string, { index: number; draft: ReceiptDraft }[]>();
    items.forEach((item, index) => {
      if ("reason" in item) return void rejected.push({ index, ...item });
      const list = byChannel.get(item.channel);
      if (list) list.push({ index, draft: item.draft });
      else byChannel.set(item.channel, [{ index, draft: item.draft }]);
    });
    let recorded = 0;
    let duplicate = 0;
    const now = this.#now();
    await Promise.all(
      [...byChannel].map(async ([channel, list]) => {
        const work = this.counts.of(channel);
        const startedAt = performance.now();
        const drafts = list.map(({ draft }) => draft);
        const verdicts = await this.#store.record(channel, drafts, now, this.#random).catch((error: unknown) => {
          work.receiptFailures++;
          throw error;
        });
        this.counts.receiptsStored.note((performance.now() - startedAt) / 1000);
        verdicts.forEach(({ result, state, late: reason, due }, place) => {
          const { index, draft } = list[place]!;
          const event = idOf(draft.event.epoch, draft.event.seq);
          if (reason !== null) late.push({ index, event, reason });
          if (result !== "recorded" && result !== "duplicate") {
            rejected.push({ index, event, reason: REASONS[result] });
            work.rejections++;
            return;
          }
          this.#feeds.presence.heard(channel, draft.device);
          if (state === null) {
            duplicate++;
            work.duplicates++;
            return;
          }
          recorded++;
          this.counts.recorded(work, state, draft.event, now);
          if (isFinal(state) || due !== null) this.#feeds.settle(channel, draft.device, draft.event, due !== null);
          if (due !== null) this.#rounds.ahead(due);
        });
      }),
    );
    for (const list of [rejected, late]) list.sort((a, b) => a.index - b.index);
    return { recorded, duplicate, rejected, ...(late.length === 0 ? {} : { late }) };
  }

  // --------------------------------------------------------------------------------------------------------------- reading

  /** @throws PereError unknown */
  async #heads(channel: string): Promise<Heads> {
    const heads = await this.#store.heads(channel);
    if (heads) return heads;
    throw new PereError("unknown", `channel ${channel} has never been used`);
  }

  /**
   * Kept events after `after`, oldest first, each as its publisher's JSON text. `next` is the last one's id, or null at the end.
   * @throws PereError unknown
   */
  async events(
    channel: string,
    after: Position | null,
    limit: number,
  ): Promise<{ texts: string[]; next: string | null }> {
    const { epoch, events: extent } = await this.#heads(channel);
    if (after && after.epoch !== epoch)
      throw new PereError("unknown", `after: no event of channel ${channel} has this id`);
    const texts: string[] = [];
    let last = after?.seq ?? 0;
    // A single read may be short if events are large or name many devices; a page is not.
    for (let characters = 0; texts.length < limit && characters < PAGE_CHARACTERS_MAX;) {
      const size = Math.min(limit - texts.length, READ_ROWS);
      await yieldToEventLoop("read", size);
      const found = await this.#store.events(channel, epoch, last, size);
      const read = found && (await this.#stateTexts(channel, epoch, found));
      if (!read)
        throw new PereError("away", `the log of channel ${channel} was lost or restored just now; repeat the request`);
      for (const text of read) {
        texts.push(text);
        characters += text.length;
      }
      last = found.at(-1)?.seq ?? extent.head;
      if (last >= extent.head) return { texts, next: null };
    }
    return { texts, next: `${epoch}-${last}` };
  }

  /** The same before `before`, newest first. @throws PereError unknown */
  async newestEvents(
    channel: string,
    before: Position | null,
    limit: number,
  ): Promise<{ texts: string[]; next: string | null }> {
    const { epoch, events: extent } = await this.#heads(channel);
    if (before && before.epoch !== epoch)
      throw new PereError("unknown", `after: no event of channel ${channel} has this id`);
    const texts: string[] = [];
    let last = Math.min(before?.seq ?? extent.head + 1, extent.head + 1);
    for (let characters = 0; texts.length < limit && characters < PAGE_CHARACTERS_MAX && last > extent.floor + 1;) {
      const size = Math.min(limit - texts.length, NEWEST_ROWS, last - extent.floor - 1);
      const found: string[] = [];
      // From the oldest of them: a read may be short.
      for (let from = last - size - 1; from < last - 1;) {
        await yieldToEventLoop("read", size);
        const kept = await this.#store.events(channel, epoch, from, last - 1 - from);
        // Where retention has dropped some meanwhile, the read goes on behind them.
        const events = kept && kept.filter(({ seq }) => seq < last);
        const read = events && (await this.#stateTexts(channel, epoch, events));
        if (!read)
          throw new PereError(
            "away",
            `the log of channel ${channel} was lost or restored just now; repeat the request`,
          );
        found.push(...read);
        from = events!.at(-1)?.seq ?? last;
      }
      for (const text of found.reverse()) characters += text.length;
      texts.push(...found);
      last -= size;
    }
    return { texts, next: last > extent.floor + 1 ? `${epoch}-${last}` : null };
  }

  /** One kept event as its publisher's JSON text. @throws PereError unknown */
  async event(channel: string, id: string): Promise<string> {
    const { epoch, seq } = await this.#kept(channel, id);
    const found = await this.#entryAt(channel, epoch, seq);
    if (found && isControl(found)) throw this.#noEvent(channel, id);
    const [text] = (found && (await this.#stateTexts(channel, epoch, [found]))) ?? [];
    if (text !== undefined) return text;
    throw new PereError("unknown", `event ${id} is no longer kept`);
  }

  #noEvent(channel: string, id: string): PereError {
    return new PereError("unknown", `channel ${channel} has no event ${id}`);
  }

  /**
   * Withdraws an event, unless it is complete. From then on nobody is sent it, and the devices that have it are told.
   * @param note for people; null: none
   * @returns its state as its publisher's JSON text
   * @throws PereError unknown; refused: the id is that of a control entry
   */
  async withdraw(channel: string, id: string, note: string | null): Promise<string> {
    const position = await this.#kept(channel, id);
    const found = await this.#store.withdraw(channel, position, note, this.clock.stamp());
    if (found === "control")
      throw new PereError(
        "refused",
        `${id} is not an event: it tells that an event was withdrawn; withdraw that event's id`,
      );
    if (found === "unknown") throw new PereError("unknown", `event ${id} is no longer kept`);
    if (found === "withdrawn") this.counts.of(channel).withdrawals++;
    return this.event(channel, id);
  }

  /** The position of a kept event. @throws PereError unknown */
  async #kept(channel: string, id: string): Promise<Position> {
    const { epoch, events } = await this.#heads(channel);
    const position = parsePosition(id);
    if (position?.epoch === epoch && position.seq > events.floor && position.seq <= events.head) return position;
    const was = position?.epoch === epoch && position.seq > 0 && position.seq <= events.floor;
    throw was ? new PereError("unknown", `event ${id} is no longer kept`) : this.#noEvent(channel, id);
  }

  /** The states of the events among these entries. Null: the epoch has ended. */
  async #stateTexts(channel: string, epoch: string, entries: readonly LogEntry[]): Promise<string[] | null> {
    const events = entries.filter((entry): entry is Event => !isControl(entry));
    if (events.length === 0) return [];
    const tallies = await this.#store.tallies(channel, epoch, events[0]!.seq, events.at(-1)!.seq);
    if (tallies === null) return null;
    const elsewhere = await this.#store.remotePresence(channel);
    const joined = this.#feeds.presence.joined(channel, elsewhere);
    const texts: string[] = [];
    for (const event of events) {
      const tally = tallies.get(event.seq);
      if (!tally) continue; // Retention deleted it between the two reads.
      const { seq, to, where } = event;
      const isToAll = to === null && where === null;
      const connected = isToAll ? countBelow(joined, seq) : await this.#connected(channel, epoch, event, elsewhere);
      texts.push(eventStateText(channel, epoch, event, tally, connected, this.#now()));
    }
    return texts;
  }

  /** One row per addressed device. @throws PereError unknown */
  async rows(
    channel: string,
    id: string,
    statuses: readonly State[] | null,
    after: string,
    limit: number,
  ): Promise<Page<Row, string>> {
    const { epoch, seq } = await this.#kept(channel, id);
    await yieldToEventLoop("read", limit);
    const page = await this.#store.rows(channel, epoch, seq, statuses, after, limit, this.#now());
    await this.#kept(channel, id); // Otherwise rows may have been deleted during the read.
    if (page !== null) return page;
    throw new PereError("unknown", `event ${id} is no longer kept`);
  }

  /**
   * What needs attention, each list worst first.
   * @param scope the channels that the reader may see; null: all. @param limit of each list
   */
  async attention(scope: ChannelScope | null, limit: number): Promise<ShownAttention & { readonly at: number }> {
    const at = this.#now();
    return { at, ...(await readAttention(this.#store, this.#feeds.presence, scope, limit)) };
  }

  /** How many devices are in trouble, and how often, in all channels. */
  async troubles(): Promise<ShownAttention["totals"]> {
    return markOf(await readTroubled(this.#store), null).totals;
  }

  /** Enrols a device before its first feed; false: it was enrolled already. */
  enrol(channel: string, device: string): Promise<boolean> {
    return this.#store.enrol(channel, device, this.#now());
  }

  /**
   * Changes a device's tags.
   * @param enrols whether it is enrolled if needed
   * @throws PereError unknown: it is not enrolled; refused: it would have too many
   */
  async tag(
    channel: string,
    device: string,
    change: TagChange,
    enrols: boolean,
  ): Promise<{ tags: Tags; isNew: boolean }> {
    const tagged = await this.#store.tag(channel, device, change, enrols, this.#now());
    if (tagged) return tagged;
    throw new PereError("unknown", `device ${device} is not enrolled in channel ${channel}`);
  }

  /** The tags that devices have now: those that have some. */
  tags(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, Tags>> {
    return this.#store.tags(channel, devices);
  }

  /** Ends an enrolment and the device's feeds, at all instances. @throws PereError unknown */
  async retire(channel: string, device: string): Promise<void> {
    if (!(await this.#store.retire(channel, device, this.#now())))
      throw new PereError("unknown", `device ${device} is not enrolled in channel ${channel}`);
  }

  /**
   * Deletes a channel that has no devices, no hooks, no scheduled pushes to come and no unexpired events. Its followers are told of a gap, and its next event has an id of a new
   * epoch. @throws PereError unknown, conflict: it still has something
   */
  async removeChannel(channel: string): Promise<void> {
    const found = await this.#store.removeChannel(channel, this.#now());
    if (found === "unknown") throw new PereError("unknown", `channel ${channel} does not exist`);
    if (found !== "removed") throw stillUsed(channel, found);
    // Other instances find it themselves.
    const heads = await this.#store.open(channel);
    for (const kind of ["events", "receipts"] as const)
      this.#feeds.reached({ kind, channel, epoch: heads.epoch, head: heads[kind].head });
  }

  /** What the store guarantees. Concurrent callers share one check. @throws PereError away */
  ready(): Promise<Readiness> {
    return (this.#readyCheck ??= this.#store
      .ready()
      .then((ready) => ({ ...ready, advice: [...ready.advice, ...this.clock.advice] }))
      .finally(() => (this.#readyCheck = undefined)));
  }

  // ----------------------------------------------------------------------------------------------------------------- drain

  /** Accepts no more pushes and ends all feeds. Reading and receipts continue. */
  async drain(): Promise<void> {
    this.#draining = true;
    clearInterval(this.#seenTimer);
    this.#reminders.stop();
    this.#watch.stop();
    await Promise.all([
      this.#completion.stop(),
      this.#retention.stop(),
      this.#deadlines.stop(),
      this.schedules.stop(),
      this.#overdue.stop(),
      this.#rounds.stop(),
      this.hooks.stop(),
      this.#feeds.close(),
    ]);
  }

  /** Makes everything acknowledged durable and closes the store. */
  close(): Promise<void> {
    return this.#store.close();
  }
}

const some = (count: number, noun: string): string[] =>
  count === 0 ? [] : [`${count} ${noun}${count === 1 ? "" : "s"}`];

function stillUsed(channel: string, { events, devices, hooks, schedules }: Remains): PereError {
  const parts = [
    ...(events ? ["events that have not expired"] : []),
    ...some(devices, "device"),
    ...some(hooks, "hook"),
    ...(schedules === 0 ? [] : [`${schedules} scheduled push${schedules === 1 ? "" : "es"}`]),
  ];
  const list = new Intl.ListFormat("en").format(parts);
  return new PereError("conflict", `channel ${channel} can't be deleted: it still has ${list}`);
}

/** How many of these ascending numbers are below `bound`. */
function countBelow(ascending: Float64Array, bound: number): number {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle]! < bound) low = middle + 1;
    else high = middle;
  }
  return low;
}
