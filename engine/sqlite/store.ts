/**
 * The default store: one SQLite file.
 *
 * Every write is a change in the group commit of `group-commit.ts`. Reads are plain statements between transactions; a result is returned after the
 * sync of what it shows. `bun:sqlite` is synchronous, so no code sees a half-done transaction, and the process needs no lock.
 *
 * Notifications for watchers are collected in the transaction and sent after its sync.
 */
import { Attention } from "./attention.ts";
import { openAges, OverdueEvents } from "./overdue.ts";
import { TroubleReader } from "./trouble-reader.ts";
import { TroubleRows } from "./trouble-rows.ts";
import { type CachedTally, TallyCache, talliesOf } from "./tallies.ts";
import { LONG_LOG_BYTES, longLog, SqliteFile, type Warn } from "./file.ts";
import type { Sync } from "./write-ahead-log.ts";
import { yieldToEventLoop } from "../yield.ts";
import { Counters } from "../counters.ts";
import { ChannelRows } from "./channels.ts";
import { deviceHistory } from "./device-history.ts";
import { Controls } from "./controls.ts";
import { Enrolments, type Settled } from "./enrolments.ts";
import { readNote } from "./notes.ts";
import { Rounds } from "./rounds.ts";
import { TagRows } from "./tags.ts";
import { type Channel, isLeaving, NOT_WITHDRAWN, SCHEMA } from "./schema.ts";
import { HookRows } from "./hooks.ts";
import { keptSecret } from "./secret-file.ts";
import { ReceiptRows } from "./receipt-rows.ts";
import { type Expired, type RemovalStep, removeSome } from "./removal.ts";
import { ChannelRetention, trimKeys, trimUnused } from "./retention.ts";
import { Receipts } from "./receipts.ts";
import { RecentEvents, type RecentEventsLimits } from "./recent-events.ts";
import { ScheduleRows } from "./schedules.ts";
import {
  afterSeconds,
  type DeviceEnrolment,
  type ControlEntry,
  type EndReason,
  type EnrolledDevice,
  EVENT_BYTES_MAX,
  type Event,
  type EventDraft,
  type HistoryRow,
  isComplete,
  isControl,
  KEY_MEMORY_MS,
  type LogEntry,
  newEpoch,
  PereError,
  type Position,
  type Receipt,
  type ReceiptDraft,
  type Row,
  remindedUntil,
  STATES,
  type State,
  type Tally,
} from "../model.ts";
import type { TroubledChannel, TroubledHook } from "../attention.ts";
import {
  type Appended,
  type BegunRound,
  cancelledSchedule,
  type ChannelEntry,
  type ChannelScope,
  type Delivery,
  type DeviceState,
  type DueTime,
  earlierDigest,
  type Heads,
  type Hook,
  type HookDraft,
  type Idempotency,
  type Joined,
  otherRequest,
  type Page,
  page,
  type Progress,
  rangesOf,
  type Readiness,
  type Remains,
  type Reminder,
  type Retention,
  type Schedule,
  type ScheduleDraft,
  type RoundPosition,
  type Store,
  type Troubled,
  usedDueTime,
  type Verdict,
  type Wake,
  type Withdrawn,
} from "../store.ts";
import { changed, NO_TAGS, type TagChange, type Tags, tooManyFit, WHERE_DEVICES_MAX } from "../tags.ts";

/** Cache limits: channels, tallies, device states within tallies, enrolments. */
const CACHE_LIMITS = { channels: 10_000, tallies: 20_000, receipts: 200_000, enrolments: 50_000 };
/** Approximate limit of data per read: catch-up goes in steps that a slow reader can take. */
const READ_BYTES = 4 * EVENT_BYTES_MAX;

/** Reminders per statement. */
const READ_REMINDERS = 1_000;
/** What a name in `to` counts against `READ_BYTES`. */
const NAME_BYTES = 64;

const NO_EVENTS = { head: 0, floor: 0, controls: 0 };
const NO_RECEIPTS = { head: 0, floor: 0 };
const NOBODY: ReadonlyMap<string, number> = new Map();
const NOWHERE: ReadonlyMap<string, readonly string[]> = new Map();

interface EventRow {
  seq: number;
  at: number;
  type: string | null;
  data: string;
  targeted: number;
  expires: number | null;
  deadline: number | null;
  remind: number | null;
  scheduled: string | null;
}
/** The first result of a request with a key; of a scheduled push: no event, and its id as the type. */
type Kept = Pick<Appended, "first" | "count" | "at" | "addressed" | "type">;
interface ReceiptRow {
  seq: number;
  event: number;
  device: string;
  status: number;
  detail: string | null;
  at: number;
  deviceAt: number | null;
  late: number;
  done: number | null;
  failed: number | null;
  round: number | null;
  attempt: number | null;
  note: string | null;
}

export interface SqliteOptions {
  /** Path of the file; `:memory:` is not durable. */
  readonly path: string;
  /** Creates epochs; 41 random bits by default. */
  readonly epoch?: () => string;
  /** Cache limits. */
  readonly cacheLimits?: typeof CACHE_LIMITS;
  /** Counts commits and their duration. */
  readonly counts?: Counters;
  /** When events go through the journal. */
  readonly recent?: RecentEventsLimits;
  /** Receives messages for the operator. */
  readonly warn?: Warn;
  /** Makes the open log durable; `fdatasync` by default. */
  readonly sync?: Sync;
}

const heads = (channel: Channel): Heads => ({
  epoch: channel.epoch,
  events: { head: channel.head, floor: channel.floor, controls: channel.controls },
  receipts: { head: channel.receiptsHead, floor: channel.receiptsFloor },
});

/** Grows with each change that retention makes to a channel's row. */
const progressOf = ({ floor, deletedUpTo, receiptsFloor, lostByAll }: Channel): number =>
  floor + deletedUpTo + receiptsFloor + lostByAll;

/** A tally without one device, whose last word has this code and is not final. */
function without(tally: Tally, code: number): Tally {
  const said = STATES[code]!;
  const state = tally.isOver && said !== "missing" ? "withdrawn" : said;
  const rest = { ...tally, addressed: tally.addressed - 1 };
  if (state !== "pending") rest[state]--;
  return rest;
}

/** @throws PereError as `SqliteFile` */
export class SqliteStore implements Store {
  readonly #file: SqliteFile;
  readonly #recent: RecentEvents;
  readonly #channels: ChannelRows;
  readonly #tags: TagRows;
  readonly #enrolments: Enrolments;
  readonly #tallies: TallyCache;
  readonly #troubles: TroubleRows;
  readonly #attention: Attention;
  readonly #overdue: OverdueEvents;
  readonly #troubleReader: TroubleReader;
  readonly #receipts: Receipts;
  readonly #controls: Controls;
  readonly #rounds: Rounds;
  readonly #receiptRows: ReceiptRows;
  readonly #hooks: HookRows;
  readonly #schedules: ScheduleRows;
  readonly #retention: ChannelRetention;
  /** Of the running transaction. */
  #wakes: Wake[] = [];
  #listener: (wake: Wake) => void = () => {};
  #isMerging = false;

  constructor({
    path,
    epoch = newEpoch,
    cacheLimits = CACHE_LIMITS,
    counts = new Counters(),
    warn,
    sync,
    recent,
  }: SqliteOptions) {
    this.#recent = new RecentEvents(recent);
    this.#file = new SqliteFile(
      path,
      SCHEMA,
      {
        opened: (file) => {
          this.#recent.open(file);
          openAges(file);
        },
        finish: () => {
          this.#recent.finish();
          this.#receipts.write();
          this.#tallies.save();
          this.#troubles.save();
          this.#channels.save();
        },
        written: () => {
          this.#channels.written();
          this.#recent.written();
          const wakes = this.#wakes;
          this.#wakes = [];
          return () => {
            for (const wake of wakes) this.#listener(wake);
            if (this.#recent.isDue) void this.#mergeRecent();
          };
        },
        undone: () => {
          this.#wakes = [];
          // The caches were ahead of the file.
          this.#channels.clear();
          this.#enrolments.clear();
          this.#tallies.clear();
          this.#troubles.undo();
          this.#receipts.undo();
          this.#recent.undone();
          this.#retention.clear();
        },
        // Positions handed out after the backup was made have the old epochs, so they never match new ones.
        onRestoredCopy: (file) => {
          for (const { id } of file.all<Channel>("SELECT id FROM channels"))
            file.run("UPDATE channels SET epoch = ?2 WHERE id = ?1", id, epoch());
        },
      },
      counts,
      warn,
      sync,
    );
    this.#hooks = new HookRows(this.#file);
    this.#schedules = new ScheduleRows(this.#file);
    this.#channels = new ChannelRows(
      this.#file,
      this.#hooks,
      this.#schedules,
      epoch,
      cacheLimits.channels,
      this.#recent.newestChannel,
    );
    this.#tags = new TagRows(this.#file);
    this.#enrolments = new Enrolments(this.#file, this.#tags, cacheLimits.enrolments, (channel) =>
      this.#channels.changed(channel),
    );
    this.#controls = new Controls(this.#file, (channel, event) => this.#targets(channel, event));
    this.#rounds = new Rounds(this.#file);
    this.#tallies = new TallyCache(this.#file, this.#controls, this.#rounds, cacheLimits);
    this.#troubles = new TroubleRows(this.#file);
    this.#attention = new Attention(this.#file, this.#troubles);
    this.#overdue = new OverdueEvents(this.#file, this.#troubles, (channel, event) =>
      this.#receipts.standing(channel, event),
    );
    this.#troubleReader = new TroubleReader(this.#file);
    this.#receipts = new Receipts(
      this.#file,
      this.#enrolments,
      this.#tallies,
      this.#attention,
      this.#rounds,
      this.#controls,
      (channel, receipt) => this.#queueReceipt(channel, receipt),
    );
    this.#receiptRows = new ReceiptRows(this.#file, this.#receipts, this.#controls);
    this.#retention = new ChannelRetention(
      this.#file,
      this.#recent,
      this.#receipts,
      this.#enrolments,
      this.#attention,
      this.#controls,
    );
  }

  // -------------------------------------------------------------------------------------------------------------- channels

  async open(name: string): Promise<Heads> {
    const found = await this.heads(name);
    if (found) return found;
    return { epoch: this.#channels.reserve(name), events: NO_EVENTS, receipts: NO_RECEIPTS, isUnborn: true };
  }

  heads(name: string): Promise<Heads | null> {
    return this.#read(name, null, heads);
  }

  /** Reads from a channel, or returns `none` if there is no such channel. */
  #read<Result>(name: string, none: Result, run: (channel: Channel) => Result | Promise<Result>): Promise<Result> {
    return this.#file.read(() => {
      const channel = this.#channels.find(name);
      return channel ? run(channel) : none;
    });
  }

  /** Reads from one epoch of a channel; null if the channel has another epoch or does not exist. */
  #readOf<Result>(name: string, epoch: string, run: (channel: Channel) => Result | Promise<Result>) {
    return this.#read<Result | null>(name, null, (channel) => (channel.epoch === epoch ? run(channel) : null));
  }

  channels(after: string, limit: number, scope: ChannelScope | null = null): Promise<Page<ChannelEntry, string>> {
    return this.#file.read(() => {
      const rows: Channel[] = [];
      for (const range of rangesOf(scope, after))
        if (rows.length <= limit) rows.push(...this.#channels.list(after, range, limit + 1 - rows.length));
      const items = rows.map((row) => ({
        channel: row.name,
        devices: row.audience,
        isUnused: row.touched !== null,
        ...heads(row),
      }));
      return page(items, limit, ({ channel }) => channel);
    });
  }

  channelNames(after: string, limit: number, scope: ChannelScope | null): Promise<Page<string, string>> {
    return this.#file.read(() => {
      const names: string[] = [];
      for (const range of rangesOf(scope, after))
        if (names.length <= limit) names.push(...this.#channels.names(after, range, limit + 1 - names.length));
      return page(names, limit, (name) => name);
    });
  }

  async removeChannel(name: string, now: number): Promise<"removed" | "unknown" | Remains> {
    for (let expired: Expired = { epoch: "", upTo: 0 }; ;) {
      const known = expired;
      const step = await this.#file.change((): RemovalStep | null => {
        this.#receipts.write();
        const channel = this.#channels.find(name);
        if (!channel) return null;
        if (channel.leaving) {
          this.#release(channel, now);
          return { result: "more", expired: known };
        }
        const before = progressOf(channel);
        const has = { hooks: this.#hooks.list(name).length, schedules: this.#schedules.ahead(channel) };
        const taken = removeSome(this.#file, this.#retention, channel, has, known, now);
        if (taken.result === "removed") this.#troubles.removed(channel);
        if (taken.result === "removed") this.#channels.removed(channel, channel.head + channel.receiptsHead === 0);
        else if (progressOf(channel) > before) this.#channels.changed(channel);
        return taken;
      });
      if (step === null) return "unknown";
      if (step.result !== "more") return step.result;
      expired = step.expired;
    }
  }

  // ---------------------------------------------------------------------------------------------------------------- events

  async append(
    name: string,
    drafts: readonly EventDraft[],
    now: number,
    key?: Idempotency,
    scheduled?: DueTime,
  ): Promise<Appended> {
    for (;;) {
      const appended = await this.#tryAppend(name, drafts, now, key, scheduled);
      if (appended) return appended;
    }
  }

  /** Null: an event that it supersedes has very many devices with something to be done before; try again. */
  #tryAppend(
    name: string,
    drafts: readonly EventDraft[],
    now: number,
    key: Idempotency | undefined,
    scheduled: DueTime | undefined,
  ): Promise<Appended | null> {
    return this.#file.change(() => {
      const channel = this.#channels.use(name);
      if (key) {
        const known = this.#knownKey(channel, key, now);
        if (known) return { epoch: channel.epoch, ...known, replayed: true };
      }
      const fitted = this.#fitting(channel, drafts);
      const older = drafts[0]!.key === null ? null : this.#controls.newestOf(channel, drafts[0]!.key);
      const found = older === null ? "complete" : this.#prepare(channel, older, now);
      if (found === null) return null;
      if (scheduled && !this.#schedules.use(channel, scheduled, channel.head + drafts.length, null, now))
        throw usedDueTime(scheduled.id);
      const first = channel.head + 1;
      const entries: LogEntry[] = drafts.map((draft) =>
        this.#appendOne(channel, draft, fitted.get(draft.where) ?? null, now, scheduled?.id),
      );
      if (typeof found === "object")
        entries.push(this.#withdrawOne(channel, found, { reason: "superseded", by: first, note: null }, now));
      this.#wakes.push({ kind: "events", channel: name, epoch: channel.epoch, entries });
      const addressed = (drafts[0]!.to ?? fitted.get(drafts[0]!.where))?.length ?? channel.audience;
      const type = drafts[0]!.type;
      if (key) this.#keepKey(channel, key, { first, count: drafts.length, at: now, addressed, type }, now);
      return { epoch: channel.epoch, first, count: drafts.length, at: now, addressed, type, replayed: false };
    });
  }

  replayed(name: string, key: Idempotency, now: number): Promise<Appended | null> {
    return this.#read<Appended | null>(name, null, (channel) => {
      const known = this.#knownKey(channel, key, now);
      return known && { epoch: channel.epoch, ...known, replayed: true };
    });
  }

  /** The devices that each `where` of these drafts fits. @throws PereError refused: they are too many */
  #fitting(channel: Channel, drafts: readonly EventDraft[]): ReadonlyMap<string | null, readonly string[]> {
    const fitted = new Map<string | null, readonly string[]>();
    let names = 0;
    for (const { where } of drafts) {
      if (where === null) continue;
      if (!fitted.has(where)) fitted.set(where, this.#tags.fitting(channel, where));
      names += fitted.get(where)!.length;
      if (names > WHERE_DEVICES_MAX) throw tooManyFit(where, fitted.get(where)!.length, drafts.length);
    }
    return fitted;
  }

  /** The result that is kept under a key. @throws PereError refused: it is that of another request */
  #knownKey(channel: Channel, key: Idempotency, now: number): Kept | null {
    // Keys stored by earlier versions have a digest of the body alone; they are used only if this version stored none.
    const known = this.#file.get<Kept & { digest: string }>(
      `SELECT digest, first, count, at, addressed, type FROM keys
       WHERE channel = ?1 AND (key = ?2 OR (key = ?3 AND instr(digest, '?') = 0)) AND expires > ?4 ORDER BY key = ?2 DESC LIMIT 1`,
      channel.id,
      key.key,
      key.earlier ?? key.key,
      key.now ?? now,
    );
    if (!known) return null;
    const { digest, ...kept } = known;
    if (digest !== key.digest && digest !== earlierDigest(key.digest)) throw otherRequest();
    return kept;
  }

  #keepKey(channel: Channel, key: Idempotency, { first, count, at, addressed, type }: Kept, now: number): void {
    this.#file.run(
      "INSERT OR REPLACE INTO keys VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
      channel.id,
      key.key,
      key.digest,
      first,
      count,
      at,
      addressed,
      type,
      (key.now ?? now) + KEY_MEMORY_MS,
    );
  }

  /** Moves recent events to their place, in slices. Whatever it could not move is tried again after another commit. */
  async #mergeRecent(): Promise<void> {
    if (this.#isMerging) return;
    this.#isMerging = true;
    try {
      while (this.#recent.isDue) await this.#file.change(() => this.#recent.merge());
    } catch (error) {
      if (!(error instanceof PereError)) throw error;
    } finally {
      this.#isMerging = false;
    }
  }

  /** @param fitted the devices that its `where` fits; null: it has none */
  #appendOne(
    channel: Channel,
    draft: EventDraft,
    fitted: readonly string[] | null,
    at: number,
    scheduled?: string,
  ): Event {
    const { type, data, to, key, attempts, again, where } = draft;
    const named = to ?? fitted;
    const seq = ++channel.head;
    const expires = afterSeconds(at, draft.ttl);
    const deadline = afterSeconds(at, draft.deadline);
    const remind = afterSeconds(0, draft.remind);
    this.#channels.grown();
    if (channel.trimAt === null) this.#channels.trimSoon(channel, at);
    const isPlain = deadline === null && remind === null && key === null && attempts === null;
    if (isPlain && named === null && scheduled === undefined)
      this.#recent.add(channel.id, seq, at, expires, type, data);
    else
      this.#file.run(
        "INSERT INTO main.events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        channel.id,
        seq,
        at,
        expires,
        to ? 1 : fitted ? 2 : 0,
        type,
        data,
        deadline,
        remind,
        scheduled ?? null,
      );
    if (deadline !== null) this.#file.run("INSERT INTO deadlines VALUES (?1, ?2, ?3, '')", deadline, channel.id, seq);
    this.#controls.addOptions(channel, seq, draft);
    this.#tallies.add(channel, seq, { named: named && named.length, deadline, expires, attempts });
    if (deadline === null && (named?.length ?? channel.audience) > 0) this.#overdue.pushed(channel, seq, at);
    // All names in one statement: a batch may have twenty thousand.
    if (named)
      this.#file.run(
        "INSERT INTO targets SELECT ?1, ?2, value FROM json_each(?3)",
        channel.id,
        seq,
        JSON.stringify(named),
      );
    const more = { ...(scheduled === undefined ? {} : { scheduled }), ...(again === undefined ? {} : { again }) };
    return { seq, at, type, data, to, expires, deadline, remind, key, attempts, where, withdrawn: null, ...more };
  }

  async withdraw(name: string, { epoch, seq }: Position, note: string | null, now: number): Promise<Withdrawn> {
    for (;;) {
      const found = await this.#file.change((): Withdrawn | null => {
        const channel = this.#channels.find(name);
        if (channel?.epoch !== epoch || seq <= channel.floor || seq > channel.head) return "unknown";
        const event = this.#prepare(channel, seq, now);
        if (event === null || typeof event === "string") return event;
        if (channel.trimAt === null) this.#channels.trimSoon(channel, now);
        const control = this.#withdrawOne(channel, event, { reason: "withdrawn", by: null, note }, now);
        this.#wakes.push({ kind: "events", channel: name, epoch, entries: [control] });
        return "withdrawn";
      });
      if (found) return found;
    }
  }

  /**
   * In a transaction: does what comes before an event is withdrawn, one slice of it. Null: there is more.
   * @param seq of a kept entry
   */
  #prepare(channel: Channel, seq: number, now: number): CachedTally | "complete" | "control" | null {
    this.#receipts.write();
    if (isLeaving(channel, seq) && this.#release(channel, now)) return null;
    const event = this.#tallies.of(channel, seq);
    if (!event) return "control";
    if (isComplete(event.tally)) return "complete";
    return this.#receipts.missBefore(channel, event, now) ? null : event;
  }

  #withdrawOne(
    channel: Channel,
    event: CachedTally,
    why: { readonly reason: EndReason; readonly by: number | null; readonly note: string | null },
    now: number,
  ): ControlEntry {
    this.#channels.grown();
    const hasWhere = this.#controls.options(channel.id, event.event, event.event).get(event.event)?.where != null;
    const to = event.targeted && !hasWhere ? this.#targets(channel, event.event) : null;
    return this.#receipts.withdraw(channel, event, { ...why, to, hasWhere }, now);
  }

  events(name: string, epoch: string, after: number, limit: number, bytesMax = READ_BYTES): Promise<LogEntry[] | null> {
    return this.#readOf(name, epoch, (channel) => this.#entries(channel, after, limit, bytesMax));
  }

  #entries(channel: Channel, after: number, limit: number, bytesMax: number): LogEntry[] {
    const found: LogEntry[] = [];
    const from = Math.max(after, channel.floor);
    const controls = this.#controls.after(channel, from, limit);
    let next = 0;
    const upTo = (seq: number): void => {
      while (next < controls.length && controls[next]!.seq < seq && found.length < limit) found.push(controls[next++]!);
    };
    const rows = this.#file.each<EventRow>(
      "SELECT seq, at, type, data, targeted, expires, deadline, remind, scheduled FROM events WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
      channel.id,
      from,
      limit,
    );
    let bytes = 0;
    for (const { targeted, scheduled, ...event } of rows) {
      upTo(event.seq);
      if (found.length === limit) break;
      const to = targeted === 1 ? this.#targets(channel, event.seq) : null;
      const more = scheduled === null ? {} : { scheduled };
      found.push({ ...event, to, key: null, attempts: null, where: null, withdrawn: null, ...more });
      bytes += event.data.length + NAME_BYTES * (to?.length ?? 0);
      if (bytes >= bytesMax) break;
    }
    if (bytes < bytesMax) upTo(Number.POSITIVE_INFINITY);
    return this.#complete(channel, found);
  }

  /** Adds what other tables have on these events. */
  #complete(channel: Channel, entries: LogEntry[]): LogEntry[] {
    const [first, last] = [entries[0]?.seq ?? 0, entries.at(-1)?.seq ?? 0];
    const options = this.#controls.options(channel.id, first, last);
    const marks = this.#controls.marks(channel, first, last);
    if (options.size + marks.size === 0) return entries;
    return entries.map((entry) =>
      isControl(entry) ? entry : { ...entry, ...options.get(entry.seq), withdrawn: marks.get(entry.seq) ?? null },
    );
  }

  latestOfKeys(
    name: string,
    epoch: string,
    reader: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    now: number,
  ): Promise<{ readonly events: readonly Event[]; readonly upTo: number } | null> {
    return this.#readOf(name, epoch, (channel) => {
      const { seqs, upTo } = this.#controls.latest(channel, reader, after, head, limit, now);
      const events: Event[] = [];
      let bytes = 0;
      for (const seq of seqs) {
        const [event] = this.#entries(channel, seq - 1, 1, 1) as [Event];
        events.push(event);
        bytes += event.data.length;
        if (bytes >= READ_BYTES) return { events, upTo: seq };
      }
      return { events, upTo };
    });
  }

  #targets(channel: Channel, event: number): string[] {
    return this.#file
      .all<{ device: string }>("SELECT device FROM targets WHERE channel = ?1 AND event = ?2", channel.id, event)
      .map(({ device }) => device)
      .filter((device) => !isLeaving(channel, event) || device !== channel.leaving!.device);
  }

  tallies(name: string, epoch: string, from: number, upTo: number): Promise<ReadonlyMap<number, Tally> | null> {
    return this.#readOf(name, epoch, (channel) =>
      this.#talliesOf(channel, Math.max(from, channel.floor + 1), Math.min(upTo, channel.head)),
    );
  }

  #talliesOf(channel: Channel, first: number, last: number): ReadonlyMap<number, Tally> {
    const tallies = talliesOf(this.#file, channel.id, first, last);
    // A retired device is excluded even where its release is still in progress.
    for (const { seq, status } of this.#enrolments.unreleased(channel, first, last))
      tallies.set(seq, without(tallies.get(seq)!, status));
    return tallies;
  }

  // -------------------------------------------------------------------------------------------------------------- receipts

  /** In a transaction: queues a receipts-log entry for watchers. Entries of one transaction are sent together. */
  #queueReceipt(channel: Channel, receipt: Receipt): void {
    this.#channels.grown();
    const last = this.#wakes.at(-1);
    if (last?.kind === "receipts" && last.channel === channel.name) (last.entries as Receipt[]).push(receipt);
    else this.#wakes.push({ kind: "receipts", channel: channel.name, epoch: channel.epoch, entries: [receipt] });
  }

  record(
    name: string,
    drafts: readonly ReceiptDraft[],
    now: number,
    random: () => number = Math.random,
  ): Promise<Verdict[]> {
    return this.#file.change(() => {
      const channel = this.#channels.find(name);
      if (!channel) return drafts.map((): Verdict => ({ result: "unknown", state: null, late: null, due: null }));
      const verdicts = drafts.map((draft) => this.#receipts.record(channel, draft, now, random));
      this.#receipts.writeIfMany();
      return verdicts;
    });
  }

  receipts(name: string, epoch: string, after: number, limit: number): Promise<Receipt[] | null> {
    return this.#readOf(name, epoch, (channel) =>
      this.#file
        .all<ReceiptRow>(
          `SELECT seq, event, device, status, detail, at, deviceAt, late, done, failed, round, attempt, note FROM receipts
           WHERE channel = +?1 AND seq > ?2 ORDER BY seq LIMIT ?3`,
          channel.id,
          Math.max(after, channel.receiptsFloor),
          limit,
        )
        .map(({ done, failed, round, attempt, ...row }) => {
          const status = STATES[row.status]!;
          return {
            ...row,
            status,
            late: row.late > 0,
            round: round ?? 1,
            attempt: attempt ?? (status === "failed" ? 1 : 0),
            note: readNote(row.note, done, failed),
          };
        }),
    );
  }

  deviceStates(
    name: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    now: number,
  ): Promise<ReadonlyMap<number, DeviceState> | null> {
    return this.#readOf(name, epoch, (channel) => this.#receiptRows.states(channel, device, after, upTo, now));
  }

  begunRounds(
    name: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    limit: number,
    now: number,
  ): Promise<BegunRound[] | null> {
    return this.#readOf(name, epoch, (channel) => this.#rounds.begun(channel, device, after, upTo, limit, now));
  }

  roundsDue(after: RoundPosition, now: number, limit: number): ReturnType<Store["roundsDue"]> {
    return this.#file.read(() => this.#rounds.due(after, now, limit, (id) => this.#channels.byId(id)));
  }

  rows(
    name: string,
    epoch: string,
    event: number,
    statuses: readonly State[] | null,
    after: string,
    limit: number,
    now: number,
  ): Promise<Page<Row, string> | null> {
    return this.#readOf(name, epoch, (channel) => this.#receiptRows.rows(channel, event, statuses, after, limit, now));
  }

  addressed(name: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null> {
    return this.#readOf(name, epoch, (channel) => this.#receiptRows.addressed(channel, event, devices));
  }

  unanswered(name: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null> {
    return this.#readOf(name, epoch, (channel) => this.#receiptRows.unanswered(channel, event, devices));
  }

  // -------------------------------------------------------------------------------------------------- deadlines and reminders

  async recordMissing(now: number): Promise<number | null> {
    const next = await this.#file.read(() =>
      this.#file.get<{ at: number }>("SELECT at FROM deadlines ORDER BY at LIMIT 1"),
    );
    if (!next || next.at > now) return next?.at ?? null;
    return this.#file.change(() => {
      this.#receipts.write();
      return this.#receipts.recordMissing(
        (id) => this.#channels.byId(id),
        (channel) => this.#release(channel, now),
        now,
      );
    });
  }

  // ------------------------------------------------------------------------------------------------------------- attention

  async recordOverdue(now: number): Promise<number | null> {
    const next = await this.#file.read(() => this.#overdue.next());
    if (next === null || next > now) return next;
    return this.#file.change(() => {
      this.#receipts.write();
      return this.#overdue.age((id) => this.#channels.byId(id), now);
    });
  }

  troubledChannels(): Promise<(TroubledChannel & { readonly revision: number })[]> {
    return this.#file.read(() => this.#troubleReader.channels());
  }

  troubles(name: string, limit: number): Promise<Troubled> {
    return this.#read<Troubled>(name, { devices: [], events: [] }, (channel) => ({
      devices: this.#troubleReader.devices(channel, limit),
      events: this.#troubleReader.events(channel, limit).flatMap((event) => {
        const tally = this.#talliesOf(channel, event.seq, event.seq).get(event.seq);
        return tally ? [{ ...event, tally }] : [];
      }),
    }));
  }

  troubledHooks(): Promise<readonly TroubledHook[]> {
    return this.#file.read(() => this.#hooks.troubled());
  }

  reminders(name: string, now: number): Promise<Reminder[]> {
    return this.#read<Reminder[]>(name, [], async (channel) => {
      const found: Reminder[] = [];
      for (let after = channel.floor; ;) {
        const read = this.#file.all<Omit<Event, "remind"> & { remind: number }>(
          `SELECT seq, at, remind, deadline, expires FROM main.events e WHERE channel = +?1 AND seq > ?2 AND remind IS NOT NULL AND ${NOT_WITHDRAWN} ORDER BY seq LIMIT ?3`,
          channel.id,
          after,
          READ_REMINDERS,
        );
        for (const event of read) {
          const until = remindedUntil(event);
          if (until === null || until > now)
            found.push({ epoch: channel.epoch, seq: event.seq, at: event.at, every: event.remind, until });
        }
        if (read.length < READ_REMINDERS) return found;
        after = Math.max(read.at(-1)!.seq, channel.floor);
        await yieldToEventLoop("remind", READ_REMINDERS);
      }
    });
  }

  // --------------------------------------------------------------------------------------------------------------- devices

  async join(name: string, device: string, now: number, tags: Tags | null = null): Promise<Joined> {
    const joining = this.#file.change(() => {
      this.#receipts.write();
      const channel = this.#channels.findOrCreate(name, now);
      this.#channels.touch(channel, now);
      const enrolled = !this.#enrolments.enrol(channel, device, now);
      if (tags) this.#tags.set(channel, device, tags);
      const hasDeferred = this.#rounds.hasDeferred(channel, device);
      return { ...heads(channel), enrolled, hasDeferred, ...this.#enrolments.join(channel, device, now) };
    });
    const { more, ...joined } = await joining.catch(async (error: unknown) => {
      const known = error instanceof PereError && error.code === "full" ? await this.#joined(name, device, now) : null;
      if (known) return { ...known, more: false };
      throw error;
    });
    let found: Pick<Settled, "settled" | "more"> | null = { settled: joined.settled, more };
    while (found?.more) {
      found = await this.#file.change(() => {
        this.#receipts.write();
        return this.#enrolments.settle(this.#channels.find(name)!, device, now);
      });
      if (found) joined.settled = Math.min(found.settled, joined.events.head);
    }
    return joined;
  }

  /** The state of a device that is enrolled already, as it was stored: a full disk keeps nobody from reading. */
  #joined(name: string, device: string, now: number): Promise<Joined | null> {
    return this.#read(name, null, (channel) => {
      const enrolment = this.#enrolments.enrolment(channel, device);
      if (!enrolment) return null;
      const lostSeq = this.#enrolments.lostSeq(channel, device, enrolment, now);
      const { joined, settled } = enrolment;
      const hasDeferred = this.#rounds.hasDeferred(channel, device);
      return { ...heads(channel), enrolled: true, joined, settled, lostSeq, hasDeferred };
    });
  }

  enrol(name: string, device: string, now: number): Promise<boolean> {
    return this.#file.change(() => this.#enrolments.enrol(this.#channels.use(name), device, now));
  }

  tag(name: string, device: string, change: TagChange, enrols: boolean, now: number) {
    return this.#file.change(() => {
      const found = this.#channels.find(name);
      if (!enrols && (!found || !this.#enrolments.enrolment(found, device))) return null;
      const tags = changed((found && this.#tags.of(found, [device]).get(device)) ?? NO_TAGS, change);
      const channel = enrols ? this.#channels.use(name) : found!;
      const isNew = enrols && this.#enrolments.enrol(channel, device, now);
      this.#tags.set(channel, device, tags);
      return { tags, isNew };
    });
  }

  tags(name: string, devices: readonly string[]): Promise<ReadonlyMap<string, Tags>> {
    return this.#read<ReadonlyMap<string, Tags>>(name, new Map(), (channel) => this.#tags.of(channel, devices));
  }

  async retire(name: string, device: string, now: number): Promise<boolean> {
    for (;;) {
      const { isRetired, more } = await this.#file.change(() => {
        this.#receipts.write();
        const channel = this.#channels.find(name);
        // One at a time: finish the release of the device that was retired before.
        if (channel?.leaving) return { isRetired: null, more: this.#release(channel, now) };
        if (!channel || !this.#enrolments.leave(channel, device, now)) return { isRetired: false, more: false };
        this.#attention.left(channel, device);
        this.#wakes.push({ kind: "retired", channel: name, device });
        this.#channels.idle(channel, now);
        const more = this.#release(channel, now);
        if (more) this.#channels.trimSoon(channel, now); // If the store fails now, retention finishes the release.
        return { isRetired: true, more };
      });
      if (isRetired === null) continue;
      // The retirement is decided.
      for (let isLeft = more; isLeft;)
        isLeft = await this.#file
          .change(() => {
            this.#receipts.write();
            return this.#release(this.#channels.find(name)!, now);
          })
          .catch(() => false);
      return isRetired;
    }
  }

  /** In a transaction: releases the retiring device from some events. True: there are more. */
  #release(channel: Channel, now: number): boolean {
    const { leaving } = channel;
    const isMore = this.#enrolments.release(channel, (event, leaving) =>
      this.#receipts.release(channel, event, leaving, now),
    );
    if (leaving) this.#attention.releasedUpTo(channel, leaving.device, leaving.released);
    return isMore;
  }

  seen(name: string, times: ReadonlyMap<string, number>): Promise<void> {
    return this.#file.change(() => {
      this.#receipts.write();
      const channel = this.#channels.find(name);
      if (!channel) return;
      this.#enrolments.seen(channel, times);
      for (const at of times.values()) this.#channels.touch(channel, at);
    });
  }

  devices(name: string, after: string, limit: number, now: number): Promise<Page<EnrolledDevice, string>> {
    return this.#read<Page<EnrolledDevice, string>>(name, { items: [], next: null }, async (channel) => {
      const { items, next } = page(this.#enrolments.list(channel, after, limit + 1), limit, ({ device }) => device);
      const names = items.map(({ device }) => device);
      return { items: await this.#enrolments.owing(channel, names, now), next };
    });
  }

  enrolments(name: string, after: string, limit: number): Promise<Page<DeviceEnrolment, string>> {
    return this.#read<Page<DeviceEnrolment, string>>(name, { items: [], next: null }, (channel) =>
      page(this.#enrolments.list(channel, after, limit + 1), limit, ({ device }) => device),
    );
  }

  enrolled(name: string, devices: readonly string[]): Promise<string[]> {
    return this.#read<string[]>(name, [], (channel) => this.#enrolments.among(channel, devices));
  }

  owing(name: string, devices: readonly string[], now: number): Promise<EnrolledDevice[]> {
    return this.#read<EnrolledDevice[]>(name, [], (channel) => this.#enrolments.owing(channel, devices, now));
  }

  history(
    name: string,
    epoch: string,
    device: string,
    before: number,
    limit: number,
    now: number,
  ): Promise<Page<HistoryRow, number> | null> {
    return this.#readOf(name, epoch, (channel) =>
      deviceHistory(this.#file, this.#controls, channel, device, before, limit, now),
    );
  }

  // ------------------------------------------------------------------------------------------------------------- retention

  trim(name: string | null, retention: Retention, now: number): Promise<boolean> {
    return this.#file.change(() => {
      this.#receipts.write();
      if (name === null)
        return trimKeys(this.#file, now) || this.#trimSchedules(now) || this.#trimUnused(retention, now);
      const channel = this.#channels.find(name);
      if (!channel) return false;
      if (channel.leaving) {
        this.#release(channel, now);
        return true;
      }
      const before = progressOf(channel);
      const more = this.#retention.trim(channel, retention, now);
      if (progressOf(channel) > before) this.#channels.changed(channel);
      if (!more) this.#channels.trimmed(channel, now - retention.before);
      return more;
    });
  }

  trimmable(now: number, limit: number): Promise<readonly string[]> {
    return this.#file.read(() => this.#channels.trimmable(now, limit));
  }

  #trimSchedules(now: number): boolean {
    const { channels, isMore } = this.#schedules.deleteOld(now);
    for (const name of channels) this.#channels.idle(this.#channels.find(name)!, now);
    return isMore;
  }

  #trimUnused(retention: Retention, now: number): boolean {
    const { dropped, isMore } = trimUnused(this.#file, retention, now);
    if (dropped.length > 0) this.#enrolments.clear();
    for (const channel of dropped) {
      this.#troubles.removed(channel);
      this.#channels.removed(channel, true);
    }
    return isMore;
  }

  // ------------------------------------------------------------------------------------------------------------- life cycle

  watch(listener: (wake: Wake) => void): void {
    this.#listener = listener;
  }

  /** All writes go through this store, so every log is followed already. */
  follow(): Promise<void> {
    return this.#file.read(() => {});
  }
  unfollow(): void {}

  /** There is no other instance: all connections and leases are local. */
  setPresence(): void {}
  async remotePresence(): Promise<ReadonlyMap<string, number>> {
    return NOBODY;
  }
  async addresses(): Promise<ReadonlyMap<string, readonly string[]>> {
    return NOWHERE;
  }
  lease(): Promise<number | null> {
    return this.#file.read(() => 1);
  }

  // ----------------------------------------------------------------------------------------------------------------- hooks

  putHook(name: string, draft: HookDraft, fresh: string, now: number): Promise<{ hook: Hook; created: boolean }> {
    return this.#file.change(() => this.#hooks.put(this.#channels.use(name), draft, fresh, now));
  }
  dropHook(name: string, hook: string, now: number): Promise<boolean> {
    return this.#file.change(() => {
      const channel = this.#channels.find(name);
      const isDropped = this.#hooks.drop(channel, hook);
      if (channel && isDropped) this.#channels.idle(channel, now);
      return isDropped;
    });
  }
  hooks(name: string | null): Promise<Hook[]> {
    return this.#file.read(() => (name === null ? this.#hooks.all() : this.#hooks.list(name)));
  }
  deliveries(name: string, hook: string): Promise<Delivery[]> {
    return this.#read<Delivery[]>(name, [], (channel) => this.#hooks.deliveries(channel, hook));
  }
  progress(name: string, hook: string, fence: number | null, progress: Progress): Promise<boolean> {
    return this.#file.change(() => this.#hooks.progress(this.#channels.find(name), hook, fence, progress));
  }

  // ------------------------------------------------------------------------------------------------------ scheduled pushes

  schedule(name: string, draft: ScheduleDraft, next: number, now: number, key?: Idempotency) {
    return this.#file.change(() => {
      const channel = this.#channels.use(name);
      const known = key ? this.#knownKey(channel, key, now) : null;
      if (known) {
        const schedule = this.#schedules.get(channel, known.type!);
        if (!schedule) throw cancelledSchedule();
        return { schedule, replayed: true };
      }
      const schedule = this.#schedules.put(channel, draft, next);
      if (key) this.#keepKey(channel, key, { first: 0, count: 0, at: now, addressed: 0, type: draft.id }, now);
      return { schedule, replayed: false };
    });
  }
  schedules(name: string, after: string, limit: number): Promise<Page<Schedule, string>> {
    return this.#read<Page<Schedule, string>>(name, { items: [], next: null }, (channel) =>
      this.#schedules.list(channel, after, limit),
    );
  }
  scheduled(name: string, id: string): Promise<Schedule | null> {
    return this.#read<Schedule | null>(name, null, (channel) => this.#schedules.get(channel, id));
  }
  unschedule(name: string, id: string, now: number): Promise<boolean> {
    return this.#file.change(() => {
      const channel = this.#channels.find(name);
      if (!channel || !this.#schedules.drop(channel, id)) return false;
      this.#channels.idle(channel, now);
      return true;
    });
  }
  dueSchedules(now: number, limit: number) {
    return this.#file.read(() => this.#schedules.due(now, limit));
  }
  skipSchedule(name: string, time: DueTime, error: string, now: number): Promise<boolean> {
    return this.#file.change(() => {
      const channel = this.#channels.find(name);
      return channel !== null && this.#schedules.use(channel, time, null, error, now);
    });
  }

  /** Stored beside the database file, readable by its owner only. */
  async secret(fresh: string): Promise<string> {
    this.#file.check();
    const { path } = this.#file;
    if (path === ":memory:") return fresh;
    return keptSecret(path, fresh);
  }

  async ready(): Promise<Readiness> {
    this.#file.check();
    if (this.#file.unwritten !== null)
      throw new PereError("away", `${this.#file.unwritten}: pushes and receipts are refused until this is resolved`);
    const kept = { store: "sqlite", version: `SQLite ${process.versions.sqlite}` };
    const { path, name, logBytes, damage, alone } = this.#file;
    const advice = [
      ...(logBytes < LONG_LOG_BYTES ? [] : [longLog(name, logBytes)]),
      ...(alone
        ? [
            `The disk was full when PERE started, so other programs, including backup, can't read ${name} until the next start.`,
          ]
        : []),
      ...(damage === null
        ? []
        : [`${damage}. Stop PERE, move the file away, and restore a backup with the command restore.`]),
    ];
    if (path !== ":memory:") return { ...kept, durability: "fsync", advice };
    return {
      ...kept,
      durability: "memory",
      advice: ["Set PERE_DB to a file: with :memory: all data is lost when PERE stops."],
    };
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
