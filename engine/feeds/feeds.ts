/**
 * All open feeds: how they are opened, kept alive and ended.
 *
 * An idle feed costs only an entry in a timer wheel that all feeds share: no per-feed timer, promise or queue.
 */
import { StoredLog, type StoredLogContext } from "./stored-log.ts";
import type { Counters } from "../counters.ts";
import { attempt, type Report, unexpected } from "../faults.ts";
import { type Bye, Feed, type FeedRequest, startOf, type Transport, type Wire } from "./feed.ts";
import { type Event, type Kind, type Position } from "../model.ts";
import { isShared } from "../addresses.ts";
import { Presence } from "./presence.ts";
import type { Tags } from "../tags.ts";
import { type Extent, type Heads, type Joined, logName, type Store, type Wake } from "../store.ts";
import { Batch, type Entry, eventEntry, Log, logEntry, receiptEntry, SLICE_FOLLOWERS } from "./log.ts";
import { OPEN_ROWS, WRITE_ROWS, yieldToEventLoop } from "../yield.ts";

/** Times in milliseconds. */
export interface FeedLimits {
  /** A quiet feed gets a keep-alive at this interval. Proxies close a connection after 60 s, some after 30. */
  readonly beatMs: number;
  /** A renewed feed lives this long, ± 20 %; a dead connection counts as connected no longer than this. */
  readonly renewMs: number;
  /** Maximum number of feeds per instance, internal ones excluded. */
  readonly feeds: number;
  /** Maximum number of feeds per caller. */
  readonly feedsPerCaller: number;
}

/** Ticks per beat: the resolution of a beat. */
const BEAT_TICKS = 15;
/** Logs that are aged in one step. */
const AGE_LOGS = 1_000;

/** Over how long a drain tells feeds one after the other; fewer than two thousand take less. Checked at this interval. */
const DRAIN_MS_MAX = 3_000;
const DRAIN_MS_A_FEED = 1.5;
const DRAIN_STEP_MS = 10;

/** What a search for the newest event of each key counts. */
const LATEST_ROWS = 1_000;
/** Delay before enrolling a device again is retried, after its enrolment was lost with its log. */
const REJOIN_MS = 1_000;

/** A device that is being enrolled for a starting feed. */
interface Joining {
  readonly channels: readonly string[];
  readonly device: string;
  /** It was retired in one of the channels meanwhile, before or after it was enrolled. */
  isRetired: boolean;
}

export class Feeds {
  /** Which devices these feeds connect. */
  readonly presence: Presence<Feed>;
  readonly #store: Store;
  readonly #stored: StoredLogContext;
  readonly #limits: FeedLimits;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #counts: Counters;
  readonly #logs = new Map<string, Log>();
  readonly #open = new Set<Feed>();
  /** How many of them are connections, in total and per caller. */
  #connections = 0;
  readonly #callers = new Map<string, number>();
  /** Those that end at some time, even when busy. */
  readonly #expiring = new Set<Feed>();
  readonly #joining = new Set<Joining>();
  readonly report: Report;
  readonly #wheel: Set<Feed>[] = Array.from({ length: BEAT_TICKS + 1 }, () => new Set());
  readonly #timer: Timer;
  #closing = false;
  /** Ticks so far, `BEAT_TICKS` per `beatMs`. */
  tick = 0;

  /** @param onPresenceChange called when a channel gets its first device here and when it loses its last one */
  constructor(
    store: Store,
    limits: FeedLimits,
    now: () => number,
    random: () => number,
    counts: Counters,
    onPresenceChange: (channel: string, hasDevices: boolean) => void,
    report: Report,
  ) {
    this.#store = store;
    this.report = report;
    this.#stored = { store, now, report, reached: (extent) => this.reached(extent) };
    this.presence = new Presence(store, now, onPresenceChange, report, ({ address }) => address);
    this.#limits = limits;
    this.#now = now;
    this.#random = random;
    this.#counts = counts;
    this.#timer = setInterval(() => this.#turn(), limits.beatMs / BEAT_TICKS);
    this.#timer.unref();
  }

  /** What this instance holds, for tests and metrics. */
  get held(): { feeds: number; logs: number; live: number; present: number; spokes: number } {
    const sum = (sizes: Iterable<number>): number => [...sizes].reduce((total, size) => total + size, 0);
    return {
      feeds: this.#open.size,
      logs: this.#logs.size,
      live: sum([...this.#logs.values()].map(({ live }) => live)),
      present: this.presence.size,
      spokes: sum(this.#wheel.map(({ size }) => size)),
    };
  }

  /** Readers by transport, and the number of followers of logs, internal ones included; for metrics. */
  get readers(): { transports: Record<Transport, number>; followers: number } {
    const transports: Record<Transport, number> = { sse: 0, websocket: 0, poll: 0 };
    for (const { wire } of this.#open) if (wire.transport) transports[wire.transport]++;
    let followers = 0;
    for (const log of this.#logs.values()) followers += log.followers;
    return { transports, followers };
  }

  // --------------------------------------------------------------------------------------------------------------- opening

  /**
   * Opens a feed: enrols the device, finds the start position, sends it, and delivers from there until the feed ends. Returns the feed at once; it
   * may be stopped at any time. If something fails later (the store is away), it ends with `busy`.
   */
  follow(request: FeedRequest, wire: Wire): Feed {
    // Acquire the logs first: entries stored after the reads below are announced to them, so none is missed.
    const logs = request.channels.map((channel) => this.#acquireLog(request.kind, channel));
    const feed = new Feed(this, request, logs, wire);
    this.#open.add(feed);
    if (request.caller !== null) {
      this.#connections++;
      this.#callers.set(request.caller, this.#feedsOf(request.caller) + 1);
    }
    if (Number.isFinite(request.expires)) this.#expiring.add(feed);
    void this.#start(feed, request);
    return feed;
  }

  async #start(feed: Feed, request: FeedRequest): Promise<void> {
    await null; // The caller must have the feed before its wire is called.
    if (!feed.open) return;
    try {
      if (this.#closing) return feed.end("drain");
      const { kind, device, caller } = request;
      const isFull =
        caller !== null &&
        (this.#connections > this.#limits.feeds || this.#feedsOf(caller) > this.#limits.feedsPerCaller);
      if (request.refused !== null || isFull) return feed.end("busy");
      // Follow before reading, so that no entry is missed.
      await Promise.all(request.channels.map((channel) => this.#store.follow(kind, channel)));
      if (!feed.open) return;
      const found =
        kind === "events" && device !== null
          ? await this.#join(request.channels, device, request.tags ?? null)
          : await Promise.all(request.channels.map((channel) => this.#store.open(channel)));
      if (!feed.open) return;
      found.forEach((heads, index) =>
        this.reached({ kind, channel: request.channels[index]!, epoch: heads.epoch, head: heads[kind].head }),
      );
      const given = [...(request.last ?? []), ...(typeof request.since === "string" ? [] : request.since)];
      const unknown = given.filter(({ epoch }) => found.every((heads) => heads.epoch !== epoch));
      const firsts =
        request.since === "latest" && request.last === null
          ? await Promise.all(found.map((heads, index) => this.#latestFrom(request.channels[index]!, device, heads)))
          : [];
      if (!feed.open) return;
      const starts = found.map((heads, index) => startOf(heads, request, unknown, firsts[index] ?? heads[kind].head));
      if (kind === "events" && device !== null) {
        feed.entered = true;
        (found as Joined[]).forEach(({ joined }, index) =>
          this.presence.enter(request.channels[index]!, device, feed, joined),
        );
      }
      feed.wroteAt = this.tick;
      if (request.renew) feed.renewAt = this.tick + this.#ticks(this.#limits.renewMs * (0.8 + 0.4 * this.#random()));
      this.#spin(feed);
      feed.wire.ready(
        device,
        starts.map(({ cursor }, index) => ({
          channel: request.channels[index]!,
          position: { epoch: found[index]!.epoch, seq: cursor },
        })),
      );
      starts.forEach(({ cursor, floor, gap, latestTo = 0 }, index) => {
        if (gap) feed.wire.gap(request.channels[index]!, gap.after, gap.from);
        const heads = found[index] as Heads | Joined;
        const [joined, mayDefer] = "joined" in heads ? [heads.joined, heads.hasDeferred] : [0, false];
        const start = Math.max(cursor, latestTo);
        const follower = { sink: feed, device, cursor, floor, start, joined, latestTo, gapAfter: null, stopped: false };
        feed.followers.push({ ...follower, hasRounds: mayDefer || feed.hasRounds });
      });
      for (const { channel } of feed.entered ? feed.logs : [])
        this.shared(channel, device!, this.presence.addresses(channel, device!));
      feed.followers.forEach((follower, index) => feed.logs[index]!.follow(follower));
    } catch (error) {
      unexpected(this.report, error);
      feed.end("busy");
    }
  }

  /** The position before the first of the newest events of each key; the log's head if there is none. */
  async #latestFrom(channel: string, device: string | null, heads: Heads | Joined): Promise<number> {
    const { head, floor } = heads.events;
    const joined = "joined" in heads ? heads.joined : 0;
    for (let after = floor; after < head;) {
      await yieldToEventLoop("open", LATEST_ROWS);
      const reader = { device, joined };
      const found = await this.#store.latestOfKeys(channel, heads.epoch, reader, after, head, 1, this.#now());
      if (!found) break; // The log has a new epoch, which its followers will hear of.
      if (found.events.length > 0) return found.events[0]!.seq - 1;
      after = found.upTo;
    }
    return head;
  }

  /** Enrols a device for a starting feed. If it is retired meanwhile, the feed counts as opened after that. */
  async #join(channels: readonly string[], device: string, tags: Tags | null): Promise<Joined[]> {
    const joining: Joining = { channels, device, isRetired: false };
    this.#joining.add(joining);
    let found: Joined[];
    try {
      found = await Promise.all(channels.map((channel) => this.#store.join(channel, device, this.#now(), tags)));
      await yieldToEventLoop("open", OPEN_ROWS); // One commit enrols very many devices.
    } finally {
      this.#joining.delete(joining);
    }
    if (!joining.isRetired) return found;
    const again = await this.#join(channels, device, tags);
    return again.map((joined, index) => ({ ...joined, enrolled: joined.enrolled && found[index]!.enrolled }));
  }

  #feedsOf(caller: string): number {
    return this.#callers.get(caller) ?? 0;
  }

  /** Called by a feed whose device gave a sign of life. */
  heard(channel: string, device: string): void {
    this.presence.heard(channel, device);
  }

  /** Called by a feed whose reader was told why it ends. */
  closed(reason: Bye): void {
    this.#counts.byes[reason]++;
  }

  /** Called by a feed that ended. */
  release(feed: Feed): void {
    this.#open.delete(feed);
    this.#expiring.delete(feed);
    if (feed.caller !== null) {
      this.#connections--;
      const left = this.#feedsOf(feed.caller) - 1;
      if (left > 0) this.#callers.set(feed.caller, left);
      else this.#callers.delete(feed.caller);
    }
    for (const spokes of this.#wheel) if (spokes.delete(feed)) break;
    feed.followers.forEach((follower, index) => feed.logs[index]!.stop(follower));
    for (const log of feed.logs) {
      if (feed.entered) this.presence.leave(log.channel, feed.device!, feed);
      if (--log.users > 0) continue;
      this.#logs.delete(logName(log.kind, log.channel));
      this.#store.unfollow(log.kind, log.channel);
    }
  }

  #acquireLog(kind: Kind, channel: string): Log {
    const name = logName(kind, channel);
    let log = this.#logs.get(name);
    if (!log) {
      log = new Log(
        kind,
        channel,
        new StoredLog(this.#stored, kind, channel),
        kind === "events" ? this.#counts.of(channel) : undefined,
      );
      this.#logs.set(name, log);
    }
    log.users++;
    return log;
  }

  // --------------------------------------------------------------------------------------------------------- notifications

  /** Entries were stored, or a device was retired. */
  woken(wake: Wake): void {
    if (wake.kind === "retired") return this.#retired(wake.channel, wake.device);
    const log = this.#logs.get(logName(wake.kind, wake.channel));
    if (!log) return;
    const { kind, channel, epoch } = wake;
    if (epoch !== log.epoch) this.reached({ kind, channel, epoch, head: wake.entries[0]!.seq - 1 });
    const isTold = attempt(this.report, () =>
      log.announce(
        wake.kind === "events"
          ? wake.entries.map((entry) => logEntry(channel, epoch, entry))
          : wake.entries.map((receipt) => receiptEntry(channel, epoch, receipt)),
      ),
    );
    if (!isTold) log.reach(epoch, wake.entries.at(-1)!.seq); // Followers read it from the store.
  }

  /** A device was retired, at this or another instance: end its feeds. A feed that it opened meanwhile may end too; it reconnects. */
  #retired(channel: string, device: string): void {
    for (const joining of this.#joining)
      if (joining.device === device && joining.channels.includes(channel)) joining.isRetired = true;
    for (const feed of [...this.presence.feeds(channel, device)]) feed.end("expired");
  }

  /** A device is open at these addresses, at any instance. If there are several machines, its feeds are told. */
  shared(channel: string, device: string, addresses: readonly string[]): void {
    if (isShared(addresses)) for (const feed of this.presence.feeds(channel, device)) feed.shared(addresses);
  }

  /** A log has grown to here; notifications may have been missed. */
  reached({ kind, channel, epoch, head }: Extent): void {
    const log = this.#logs.get(logName(kind, channel));
    if (!log) return;
    const before = log.epoch;
    log.reach(epoch, head);
    if (before === "" || before === epoch || kind !== "events") return;
    for (const device of this.presence.devices(channel)) void this.#rejoin(log, device);
  }

  /** In a new epoch of its channel, a connected device is not enrolled: enrols it again. */
  async #rejoin({ channel, epoch }: Log, device: string): Promise<void> {
    for (;;) {
      if (this.#logs.get(logName("events", channel))?.epoch !== epoch) return;
      try {
        const tags = this.presence.feeds(channel, device)[0]?.tags ?? null;
        return await this.presence.rejoin(channel, device, tags);
      } catch (error) {
        unexpected(this.report, error);
        await Bun.sleep(REJOIN_MS);
      }
    }
  }

  // ---------------------------------------------------------------------------------------- receipts, reminders and rounds

  /**
   * A device sent a final receipt, or deferred the event: its feeds skip the event if they have not reached it yet.
   * @param isHeld it comes again later
   */
  settle(channel: string, device: string, event: Position, isHeld: boolean): void {
    for (const feed of this.presence.feeds(channel, device)) feed.settle(channel, event, isHeld);
  }

  /** How far a channel's events log has come here, before something of it is read that `remind` or `round` will send; 0: nobody follows it. */
  headOf(channel: string): number {
    return this.#logs.get(logName("events", channel))?.head ?? 0;
  }

  /**
   * Sends a round of an event to one of its devices, if that has a feed here.
   * @param head of `headOf`, before the event was read
   * @param batch the event with that round
   */
  round(channel: string, epoch: string, entry: Entry, device: string, round: number, head: number, batch: Batch): void {
    const log = this.#logs.get(logName("events", channel));
    if (log?.epoch !== epoch) return;
    const feeds = [...this.presence.feeds(channel, device)];
    for (const feed of feeds)
      if (!attempt(this.report, () => feed.round(log, entry, round, head, batch))) feed.end("busy");
  }

  /**
   * Sends an event again to those of these devices that have a feed here and were sent it before.
   * @param head of `headOf`, before the devices were read
   */
  remind(channel: string, epoch: string, event: Event, devices: readonly string[], head: number): void {
    const log = this.#logs.get(logName("events", channel));
    if (log?.epoch !== epoch || !log.isSendable(event.seq, head)) return;
    const batch = new Batch([eventEntry(channel, epoch, event)]);
    for (const device of devices) {
      const feeds = [...this.presence.feeds(channel, device)]; // A poll ends with its first event and leaves the list.
      for (const feed of feeds) if (!attempt(this.report, () => feed.remind(log, batch))) feed.end("busy");
    }
  }

  // ----------------------------------------------------------------------------------------------------------- timer wheel

  #ticks(ms: number): number {
    return Math.max(1, Math.round((ms * BEAT_TICKS) / this.#limits.beatMs));
  }

  /** Puts a feed where the wheel reaches it when its next beat is due. */
  #spin(feed: Feed): void {
    const due = Math.max(this.tick + 1, feed.wroteAt + BEAT_TICKS);
    this.#wheel[due % this.#wheel.length]!.add(feed);
  }

  #turn(): void {
    this.tick++;
    if (this.tick % BEAT_TICKS === 0) void this.#age().catch(this.report);
    const now = this.#now();
    const expired = [...this.#expiring].filter(({ expires }) => expires <= now);
    void this.#inSlices(expired, (feed) => feed.expires <= now && feed.end("expired")).catch(this.report);
    const spokes = this.#wheel[this.tick % this.#wheel.length]!;
    const due = [...spokes];
    spokes.clear();
    void this.#inSlices(due, (feed) => this.#tend(feed)).catch(this.report);
  }

  /** Does something with each feed that is still open by then, in slices of one turn each. */
  async #inSlices(feeds: readonly Feed[], work: (feed: Feed) => void): Promise<void> {
    for (const [index, feed] of feeds.entries()) {
      if (index > 0 && index % SLICE_FOLLOWERS === 0) await yieldToEventLoop("beat", SLICE_FOLLOWERS * WRITE_ROWS);
      if (feed.open) work(feed);
    }
  }

  async #age(): Promise<void> {
    let aged = 0;
    for (const log of this.#logs.values()) {
      if (++aged % AGE_LOGS === 0) await yieldToEventLoop("beat", AGE_LOGS);
      log.age();
    }
  }

  /** A feed's beat is due: renews it, keeps it alive, and puts it where its next beat is due. */
  #tend(feed: Feed): void {
    if (this.tick >= feed.renewAt) return feed.end("renew");
    if (this.tick - feed.wroteAt >= BEAT_TICKS) {
      feed.wroteAt = this.tick;
      if (!feed.blocked && !attempt(this.report, () => feed.wire.beat(feed.positions()))) return feed.end("busy");
    }
    this.#spin(feed);
  }

  /** Ends all feeds, spread over time so that readers do not all move to another instance at once. Accepts no new ones. */
  async close(): Promise<void> {
    this.#closing = true;
    const feeds = [...this.#open].filter(({ caller }) => caller !== null);
    const drainMs = Math.min(DRAIN_MS_MAX, feeds.length * DRAIN_MS_A_FEED);
    const startedAt = performance.now();
    for (let told = 0; told < feeds.length;) {
      const share = (performance.now() - startedAt) / drainMs;
      for (const upTo = Math.min(feeds.length, 1 + share * feeds.length); told < upTo; told++)
        feeds[told]!.end("drain");
      if (told < feeds.length) await Bun.sleep(DRAIN_STEP_MS);
    }
    for (const feed of [...this.#open]) feed.end("drain"); // Internal cursors.
    clearInterval(this.#timer);
    await this.presence.writeHeard();
  }
}
