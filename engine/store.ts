/**
 * The interface of a store, implemented by a SQLite file and by a Redis that many instances share.
 *
 * For each channel a store keeps two logs (events and receipts) with positions from 1 without gaps, the enrolled devices, each device's state on
 * each event, and a tally per event that changes in the same transaction as its receipts. The events log also has control entries, which tell that an
 * earlier event was withdrawn. They are no events: no device owes them, they have no tally and no rows, and a receipt for one is `unknown`.
 *
 * What a device owes are its kept, unexpired events without a final word from it, except withdrawn ones. `receipt-rules.ts` says which word counts.
 *
 * Guarantees of every method:
 *
 * - **Durable before resolved.** A method that writes resolves after its data would survive a power cut. If it rejects, nothing of that call was
 *   written, unless the disk or the connection to the store failed in the middle: then the result is unknown, and the error says so.
 * - **Durable before notified.** Watchers are notified of an entry in a log that they follow after it is durable, in log order, normally exactly
 *   once, also if another instance stored it. A missed notification loses nothing: the entry is found by reading the log.
 * - **Feeds do not create channels.** A channel is created by an event, by enrolling a device through the API, or by a hook. A device that opens a
 *   feed before that is enrolled, but its channel is *unused*. A channel without events whose last device and hook are gone is unused too. An unused
 *   channel is deleted when its devices have given no sign of life for a while. A feed without a device stores nothing.
 * - **All or nothing** for each call, including calls with many events or receipts.
 * - Errors are `PereError`s: `away` if the store can't do it now and a retry makes sense; others as documented at the method.
 *
 * `tests/contract/contract.ts` tests every store against this file.
 */
import type { TroubledChannel, TroubledDevice, TroubledEvent, TroubledHook } from "./attention.ts";
import {
  type DeviceEnrolment,
  type EnrolledDevice,
  type Event,
  type EventDraft,
  type HistoryRow,
  type Kind,
  type LateReason,
  type LogEntry,
  PereError,
  type Position,
  type Receipt,
  type ReceiptDraft,
  type Row,
  type State,
  type Status,
  type Tally,
} from "./model.ts";
import type { TagChange, Tags } from "./tags.ts";

/** The extent of a channel's two logs: `head` is the newest entry's `seq`, `floor` the newest one that is no longer kept (0: none). */
export interface Heads {
  readonly epoch: string;
  /** Nothing was ever stored in it, as far as is known; absent if unknown. */
  readonly isUnborn?: true;
  /** `controls`: how many of the kept entries are control entries. */
  readonly events: { readonly head: number; readonly floor: number; readonly controls: number };
  readonly receipts: { readonly head: number; readonly floor: number };
}

/** Some of the channels: those with these names, and those whose names begin with one of these prefixes. */
export interface ChannelScope {
  readonly names: readonly string[];
  readonly prefixes: readonly string[];
}

/** Names from `from` to `upTo`, both included. */
export interface NameRange {
  readonly from: string;
  readonly upTo: string;
}

/** Sorts behind every character that a channel's name may have. */
const BEHIND = "\x7f";

/** The names of a scope as ranges, ascending and without overlaps, as far as they lie after the name `after`. Null: all channels. */
export function rangesOf(scope: ChannelScope | null, after: string): NameRange[] {
  if (scope === null) return [{ from: "", upTo: BEHIND }];
  const ranges = [
    ...scope.names.map((name) => ({ from: name, upTo: name })),
    ...scope.prefixes.map((prefix) => ({ from: prefix, upTo: prefix + BEHIND })),
  ].sort((a, b) => (a.from === b.from ? (a.upTo > b.upTo ? -1 : 1) : a.from < b.from ? -1 : 1));
  const found: NameRange[] = [];
  // A prefix covers what begins with it, and two prefixes overlap only if one of them begins with the other.
  for (const range of ranges) if (range.upTo > after && !(range.upTo <= (found.at(-1)?.upTo ?? ""))) found.push(range);
  return found;
}

/** An entry of the list of channels. */
export interface ChannelEntry extends Heads {
  readonly channel: string;
  readonly devices: number;
  /** Only feeds of devices have created it. */
  readonly isUnused: boolean;
}

/** A device's state in a channel as it opens a feed. */
export interface Joined extends Heads {
  /** It was enrolled before this call. */
  readonly enrolled: boolean;
  /** Events up to here were not addressed to it, except those that name it in `to`. */
  readonly joined: number;
  /** It owes nothing up to this `seq`. */
  readonly settled: number;
  /** The newest event that retention dropped while the device still owed it a receipt, and that the device was not told of; 0: none. */
  readonly lostSeq: number;
  /** There may be an event that it has deferred. */
  readonly hasDeferred: boolean;
}

/** The result of `append`. `replayed`: the key was known, and these are the first call's events. */
export interface Appended {
  readonly epoch: string;
  readonly first: number;
  readonly count: number;
  readonly at: number;
  readonly addressed: number;
  readonly type: string | null;
  readonly replayed: boolean;
}

/**
 * An idempotency key, and a digest of its request. The digest of a body with options has a `?` between the two; the part before it is what earlier
 * versions stored, which ignored the options.
 */
export interface Idempotency {
  /** The key, with its owner. */
  readonly key: string;
  readonly digest: string;
  /** The name under which earlier versions stored the key; absent: the same. */
  readonly earlier?: string;
  /** The time by which the key is remembered and forgotten, milliseconds since 1970; absent: the events' own. */
  readonly now?: number;
}

/** The part of a digest that earlier versions stored. */
export const earlierDigest = (digest: string): string => digest.split("?", 1)[0]!;

/** The error for a key that was used with another request before. */
export const otherRequest = (): PereError => {
  const message = "it came with another body or other options before";
  return new PereError("refused", `Idempotency-Key: ${message}`, [{ path: "Idempotency-Key", message }]);
};

/**
 * The result of one receipt. `recorded`: it advanced the device. `duplicate`: it changed nothing. `unknown`: there is no such event. `unaddressed`: the
 * event is not addressed to the device. `early`: it answers a round that has not begun.
 */
export type Result = "recorded" | "duplicate" | "unknown" | "unaddressed" | "early";

export interface Verdict {
  readonly result: Result;
  /** The state that was recorded: a `failed` with attempts left is `deferred`. Null: none was. */
  readonly state: Status | null;
  /** Why the final word that stands is late, whether this call recorded it or an earlier one; null: it is not, or there is none. */
  readonly late: LateReason | null;
  /** When the next round begins, milliseconds since 1970, where `deferred` was recorded; else null. */
  readonly due: number | null;
}

/** What `withdraw` found: it withdrew the event; the event was complete already; the id is that of a control entry; there is no such event. */
export type Withdrawn = "withdrawn" | "complete" | "control" | "unknown";

/** A device's state on an event that it gave a word on. */
export interface DeviceState {
  readonly state: State;
  /** The round that has begun last. */
  readonly round: number;
  /** While it is `deferred` and the next round has not begun: when that begins, milliseconds since 1970. Else null. */
  readonly due: number | null;
}

/** A round of an event that has begun for a device, which has given no word on it. */
export interface BegunRound {
  readonly event: number;
  readonly round: number;
}

/** A position among rounds, in the order in which they begin: by time, then as the store pleases. */
export interface RoundPosition {
  /** Milliseconds since 1970. */
  readonly at: number;
  /** Where it stands among those of the same millisecond: "" is before all. */
  readonly place: string;
}

/** A round that has just begun. */
export interface DueRound extends BegunRound {
  readonly channel: string;
  readonly epoch: string;
  readonly device: string;
}

/** Why a channel can't be deleted: it has events that have not expired, or so many enrolled devices, hooks, or scheduled pushes to come. */
export interface Remains {
  readonly events: boolean;
  readonly devices: number;
  readonly hooks: number;
  readonly schedules: number;
}

/** A page. Pass `next` as `after` to continue; null: there is no more. */
export interface Page<Item, Key> {
  readonly items: readonly Item[];
  readonly next: Key | null;
}

/** Minimum time that an unused channel is kept after its last sign of life: longer than the feed of a live device is ever silent. */
export const UNUSED_MS_MIN = 3_600_000;
/** If there are more unused channels than this, those with the oldest sign of life are deleted early. */
export const UNUSED_MAX = 100_000;

/** How much of a log to keep: at most `count` events, and no entry stored before `before` (milliseconds since 1970). */
export interface Retention {
  readonly count: number;
  readonly before: number;
}

/** A notification from `watch`: entries of one log, in order, that just became durable; or a retired device. */
export type Wake =
  | { readonly kind: "events"; readonly channel: string; readonly epoch: string; readonly entries: readonly LogEntry[] }
  | {
      readonly kind: "receipts";
      readonly channel: string;
      readonly epoch: string;
      readonly entries: readonly Receipt[];
    }
  | { readonly kind: "retired"; readonly channel: string; readonly device: string };

/** A log's extent, as read from the store. If `epoch` has changed, the previous log is lost. */
export interface Extent {
  readonly kind: Kind;
  readonly channel: string;
  readonly epoch: string;
  readonly head: number;
}

/**
 * Durability guarantees. `fsync`: acknowledged data survives a power cut. `second`: all but about the last second. `memory`: it is lost when the
 * store's process ends.
 */
export interface Readiness {
  readonly store: string;
  /** Name and version of the database. */
  readonly version: string;
  readonly durability: "fsync" | "second" | "memory";
  /** Sentences for the operator: what to change, and what happens otherwise. */
  readonly advice: readonly string[];
}

/** An event that is sent again, every `every` milliseconds after `at`, until `until`, or as long as it is kept (null). */
export interface Reminder {
  readonly epoch: string;
  readonly seq: number;
  readonly at: number;
  readonly every: number;
  readonly until: number | null;
}

/** Hooks per channel: each batch of receipts is one call per hook. */
export const HOOKS_MAX = 16;

/** What a hook can be called for. */
export const HOOK_KINDS = ["receipt", "complete", "missing", "settled", "failed"] as const;
/** What a hook that does not say is called for: all that there was in the first version. */
export const DEFAULT_HOOK_KINDS: readonly HookKind[] = ["receipt", "complete", "missing"];
export type HookKind = (typeof HOOK_KINDS)[number];

/** A publisher's hook settings: URL and kinds. Without a secret an existing hook keeps its own. */
export interface HookDraft {
  readonly name: string;
  readonly url: string;
  readonly secret: string | null;
  readonly on: readonly HookKind[];
}

/** A replaced secret, and when it was replaced, milliseconds since 1970. */
export interface FormerSecret {
  readonly secret: string;
  readonly until: number;
}

/** How many former secrets a hook keeps. */
export const FORMER_SECRETS_MAX = 4;

/** Former secrets as stored: `<secret>:<until>`, separated by spaces, newest first. */
export const readFormer = (text: string | null): FormerSecret[] =>
  (text ?? "").split(" ").flatMap((one) => {
    const at = one.lastIndexOf(":");
    return at === -1 ? [] : [{ secret: one.slice(0, at), until: Number(one.slice(at + 1)) }];
  });

/** A stored hook. It is a cursor on its channel's receipts log: everything up to there was delivered or is among its deliveries. */
export interface Hook extends HookDraft {
  readonly channel: string;
  readonly secret: string;
  /** Its former secrets, newest first, at most `FORMER_SECRETS_MAX`. */
  readonly former: readonly FormerSecret[];
  readonly createdAt: number;
  readonly cursor: Position;
  /** Why it is disabled, in a sentence; null: it is enabled. */
  readonly disabled: string | null;
  /** Its last successful call; null: none yet. */
  readonly lastDelivered: Delivered | null;
  /** Grows with each change that its runner did not make. */
  readonly revision: number;
}

/** A successful call: when it was made, milliseconds since 1970, and how many milliseconds it took. */
export interface Delivered {
  readonly at: number;
  readonly status: number;
  readonly ms: number;
}

/** How many attempts of a delivery are kept. */
export const TRIES_MAX = 20;

/** A failed attempt. `body`: the beginning of the answer's body; null: there was no answer. */
export interface Try extends Omit<Delivered, "status"> {
  readonly status: number | null;
  /** Why it failed, in a sentence. */
  readonly error: string;
  readonly body: string | null;
}

/** A call that failed at first. Times in milliseconds since 1970. */
export interface Delivery {
  /** The `webhook-id`, the same for every attempt. */
  readonly id: string;
  readonly body: string;
  readonly createdAt: number;
  readonly attempts: number;
  /** The next attempt; null: given up. */
  readonly nextAt: number | null;
  /** Of the last attempt: the HTTP status, or why there was none. */
  readonly status: number | null;
  readonly error: string | null;
  /** The last attempts, newest last, at most `TRIES_MAX`. */
  readonly tries: readonly Try[];
}

/** What a hook's runner has done, stored in one change. */
export interface Progress {
  /** The creation time of the hook; a hook with the same name and another time is a different hook. */
  readonly of?: number;
  readonly cursor?: Position;
  readonly disabled?: string | null;
  readonly lastDelivered?: Delivered;
  /** Deliveries that are new or were tried. */
  readonly keep?: readonly Delivery[];
  /** Finished deliveries, by id. */
  readonly drop?: readonly string[];
}

/** Scheduled pushes per channel that are still to be done. */
export const SCHEDULES_MAX = 1_000;
/** How long a scheduled push that was done is kept. */
export const SCHEDULE_KEPT_MS = 7 * 24 * 3600 * 1000;

/** A push for later. */
export interface ScheduleDraft {
  /** Sorts by creation. */
  readonly id: string;
  /** The query parameters of the push, by name. */
  readonly options: Readonly<Record<string, string>>;
  /** The event's data, as the publisher wrote it. */
  readonly data: string;
  /** A cron expression; null: it is pushed once. */
  readonly every: string | null;
  /** The time zone of the expression. */
  readonly tz: string | null;
}

/** A stored scheduled push. Times in milliseconds since 1970. */
export interface Schedule extends ScheduleDraft {
  /** When it is due next; null: it is done. */
  readonly next: number | null;
  /** The event that was pushed last; null: none yet. */
  readonly last: Position | null;
  /** Why nothing was pushed when it was last due, in a sentence; null: it was pushed. */
  readonly error: string | null;
}

/** The error for a channel with too many scheduled pushes. */
export const tooManySchedules = (channel: string): PereError =>
  new PereError(
    "refused",
    `channel ${channel} has ${SCHEDULES_MAX} scheduled pushes, the most that it can have; cancel some or wait until they are done`,
  );

/** The error for a due time that is used. */
export const usedDueTime = (id: string): PereError =>
  new PereError("conflict", `scheduled push ${id} was cancelled, or another instance has pushed it`);

/** The error for a key whose schedule is gone. */
export const cancelledSchedule = (): PereError =>
  new PereError("conflict", "the push that was scheduled with this Idempotency-Key was cancelled; use a new key");

/** A scheduled push that is due, and when it is due again; null: never. */
export interface DueTime {
  readonly id: string;
  readonly due: number;
  readonly next: number | null;
}

/** What needs attention in a channel, each list worst first. */
export interface Troubled {
  readonly devices: readonly TroubledDevice[];
  readonly events: readonly TroubledEvent[];
}

export interface Store {
  /**
   * Appends events to a channel, which is created if needed. Their audience is all devices enrolled at that moment, those of them that `where` fits, or
   * the devices in `to`.
   * A known idempotency key with the same digest returns the first call's events and appends nothing.
   *
   * A draft with a `key` comes alone. In the same step, kept events of the channel with the same key that are not complete are withdrawn, as
   * `superseded` by the new one. Their control entries follow the new event, in the order of the events; `count` does not include them. What holds for
   * `withdraw` holds for each of them.
   *
   * With `scheduled`, the events carry its id, and the same step notes the event and when the push is due again. Each due time is used once.
   * @param now milliseconds since 1970
   * @throws PereError refused: the idempotency key was used with another digest, or `where` fits too many devices; conflict: the due time is used or the schedule was cancelled
   */
  append(
    channel: string,
    drafts: readonly EventDraft[],
    now: number,
    key?: Idempotency,
    scheduled?: DueTime,
  ): Promise<Appended>;

  /** What `append` would answer to a known key; null: the key is not known. @throws PereError refused, as `append` */
  replayed(channel: string, key: Idempotency, now: number): Promise<Appended | null>;

  /**
   * Withdraws an event that is not complete, in one step, however many devices it has. A control entry is appended to the events log. From then on,
   * each device without a final word that is not missing is `withdrawn`, nobody owes the event, its deadline and its rounds have ended, and every read
   * says that it is withdrawn. The receipts log gets three notes with the tally: `withdrawn`, `complete`, and, unless it was told before, `settled` if
   * the event has a deadline. Devices that owe a word past the deadline are recorded as missing before, by name, and a retirement is finished before:
   * in the same step if one slice of that work is enough, else in steps before it.
   *
   * The watcher is notified before this resolves.
   * @param now the server's time, milliseconds since 1970
   */
  withdraw(channel: string, event: Position, note: string | null, now: number): Promise<Withdrawn>;

  /**
   * Records receipts; each counts only if it advances its device's state on its event, by the rules of `receipt-rules.ts`. Returns one verdict per
   * draft, in order. If the event's deadline has passed, it was not withdrawn, and the device owes a final word, `missing` is recorded before the
   * receipt, unless it already was. When all devices have a final word, the note `complete` follows the last receipt, and, if the event has a deadline
   * and that was not told before, the note `settled`. A late word on a withdrawn event is followed by no note.
   * @param now the server's time, milliseconds since 1970
   * @param random from 0 up to 1, for the time until a failed attempt is repeated
   */
  record(channel: string, drafts: readonly ReceiptDraft[], now: number, random?: () => number): Promise<Verdict[]>;

  /** The channel's extent. For a channel that does not exist, the extent it would begin with; its epoch stays reserved for a while. */
  open(channel: string): Promise<Heads>;

  /** Enrols a device, if needed, and returns its state. Given tags replace all that it has, in the same step. `lostSeq` is not returned again once a receipt of the device was recorded after this call. */
  join(channel: string, device: string, now: number, tags?: Tags | null): Promise<Joined>;

  /** Enrols a device. @returns false: it was enrolled already */
  enrol(channel: string, device: string, now: number): Promise<boolean>;

  /**
   * Changes a device's tags, in one step. They end with its enrolment.
   * @param enrols whether the device is enrolled, if needed, in the same step
   * @returns its tags, and whether it was enrolled by this call; null: it is not enrolled
   * @throws PereError refused: it would have too many; then nothing is stored
   */
  tag(
    channel: string,
    device: string,
    change: TagChange,
    enrols: boolean,
    now: number,
  ): Promise<{ readonly tags: Tags; readonly isNew: boolean } | null>;

  /** The tags of those of these devices that have some. */
  tags(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, Tags>>;

  /**
   * Ends an enrolment: the device is no longer addressed by later events, nor by those without its final receipt, be it missing, deferred or
   * withdrawn there; where a deadline has passed, it is recorded as missing first. Followers of the channel's events are notified. This takes effect at
   * once for all events, although it is stored in slices. For events that become complete, the receipts log has the notes that say so by the end of the last slice, with the device's name.
   * @returns false: it was not enrolled
   */
  retire(channel: string, device: string, now: number): Promise<boolean>;

  /** Stores the last signs of life of a channel's devices, milliseconds since 1970. */
  seen(channel: string, times: ReadonlyMap<string, number>): Promise<void>;

  /** The channel's extent, or null if it was never used. */
  heads(channel: string): Promise<Heads | null>;

  /*
   * Reading by `seq` needs the epoch, because in another epoch the same `seq` is another entry. If the channel has another epoch by now, or does not
   * exist, these return null. A caller that waits for an event must then stop waiting.
   */

  /**
   * Kept entries after `after`, oldest first and without gaps, at most `limit` and about `bytesMax` of data; at least one if there is one. They are of
   * one moment: an event says that it is withdrawn if and only if its control entry is in the log by then.
   */
  events(channel: string, epoch: string, after: number, limit: number, bytesMax?: number): Promise<LogEntry[] | null>;
  receipts(channel: string, epoch: string, after: number, limit: number): Promise<Receipt[] | null>;

  /**
   * The newest kept, unexpired event of each key that was not withdrawn and is addressed to a reader, among those up to `head`: those after `after`, by
   * `seq`, at most `limit` and about the bytes of `events`.
   * @param reader its name, and the event after which those to all devices are addressed to it; without a name, only those to all are
   * @returns `upTo`: all up to there are among them; `head` at the end; null as above
   */
  latestOfKeys(
    channel: string,
    epoch: string,
    reader: { readonly device: string | null; readonly joined: number },
    after: number,
    head: number,
    limit: number,
    now: number,
  ): Promise<{ readonly events: readonly Event[]; readonly upTo: number } | null>;

  /**
   * The device's states on events with `after` < seq ≤ `upTo`: on all that it gave a word on, or is missing on. May include events that are not
   * addressed to it.
   */
  deviceStates(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    now: number,
  ): Promise<ReadonlyMap<number, DeviceState> | null>;

  /**
   * Rounds after the first that have begun for a device and have no word from it, of events with `after` < seq ≤ `upTo` that it owes and whose deadline
   * has not passed: by `seq`, at most `limit`.
   */
  begunRounds(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
    limit: number,
    now: number,
  ): Promise<BegunRound[] | null>;

  /** Tallies of kept events by `seq`, for `from` ≤ seq ≤ `upTo`. */
  tallies(channel: string, epoch: string, from: number, upTo: number): Promise<ReadonlyMap<number, Tally> | null>;

  /** Among these devices: those that the event is addressed to, withdrawn or not; none if it is not kept. Null as with `events`. */
  addressed(channel: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null>;

  /** Among these devices: those that the event is addressed to and that sent no receipt for it; none if it was withdrawn. */
  unanswered(channel: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null>;

  /** Kept events with reminders that have neither expired nor passed their deadline, and were not withdrawn. */
  reminders(channel: string, now: number): Promise<Reminder[]>;

  /**
   * Records as `missing`, in a bounded slice per call, the devices that owe a final receipt past a deadline; each once. A device that deferred the event
   * is missing in the round that had begun by the deadline. Behind the last one of an event
   * that is not complete, the note `settled` follows; but not if the event was addressed to nobody.
   * @returns when to call again, milliseconds since 1970 (`now` or earlier: at once); may be too early, never too late; null: no deadline is ahead
   */
  recordMissing(now: number): Promise<number | null>;

  /**
   * Lets events without a deadline that are older than `OVERDUE_MS` become overdue, in a bounded slice per call, for the devices that owe them a final
   * receipt. The channels' counts are right at once, those of their devices when it returns a time after `now`, or null.
   * @returns when to call again, milliseconds since 1970 (`now` or earlier: at once); may be too early, never too late; null: no event is to become
   * overdue
   */
  recordOverdue(now: number): Promise<number | null>;

  /** The channels in which devices are in trouble, in no order. `revision` grows with each change in a channel. Nothing is counted for this. */
  troubledChannels(): Promise<readonly (TroubledChannel & { readonly revision: number })[]>;

  /** At most `limit` devices and `limit` events of a channel. */
  troubles(channel: string, limit: number): Promise<Troubled>;

  /** The hooks that gave up calls or are disabled, in no order. */
  troubledHooks(): Promise<readonly TroubledHook[]>;

  /**
   * Rounds that have begun after a position, up to `now`, of events that are not withdrawn: in the order in which they began, at most `limit`. A round
   * that its device has given a word on may be among them, also one of an event that is past its deadline or expired.
   * @returns `last`: where to continue; `next`: when to call again, milliseconds since 1970 (`now` or earlier: at once); may be too early, never too
   * late; null: none is ahead
   */
  roundsDue(
    after: RoundPosition,
    now: number,
    limit: number,
  ): Promise<{ readonly rounds: readonly DueRound[]; readonly last: RoundPosition; readonly next: number | null }>;

  /** One row per addressed device, by name, after the device `after`, of these statuses; null: of all. Null as with `events`. */
  rows(
    channel: string,
    epoch: string,
    event: number,
    statuses: readonly State[] | null,
    after: string,
    limit: number,
    now: number,
  ): Promise<Page<Row, string> | null>;

  /** Enrolled devices by name, after the device `after`. */
  devices(channel: string, after: string, limit: number, now: number): Promise<Page<EnrolledDevice, string>>;

  /** The same without what they owe, so that the cost of a page is its length. */
  enrolments(channel: string, after: string, limit: number): Promise<Page<DeviceEnrolment, string>>;

  /** Those of these devices that are enrolled, in the same order; at most `PAGE_MAX` are given. */
  enrolled(channel: string, devices: readonly string[]): Promise<string[]>;

  /** The same with what they owe. */
  owing(channel: string, devices: readonly string[], now: number): Promise<EnrolledDevice[]>;

  /**
   * A row per kept event that is addressed to a device, as `rows` has them, newest first, before the event `before`. The device need not be enrolled:
   * it may have been named, or have left after a final receipt. Null as with `events`.
   */
  history(
    channel: string,
    epoch: string,
    device: string,
    before: number,
    limit: number,
    now: number,
  ): Promise<Page<HistoryRow, number> | null>;

  /**
   * Channels by name, after the channel `after`, with the number of enrolled devices. With a scope, no others are looked at.
   * @param scope null: all channels
   */
  channels(after: string, limit: number, scope?: ChannelScope | null): Promise<Page<ChannelEntry, string>>;

  /** Names of channels, after the channel `after`, unused ones included. With a scope, no others are looked at. @param scope null: all channels */
  channelNames(after: string, limit: number, scope: ChannelScope | null): Promise<Page<string, string>>;

  /**
   * Deletes a channel that has no enrolled devices, no hooks, no scheduled pushes to come and no unexpired events, with all that is left of it. It begins
   * with a new epoch when it is used again, unless nothing was ever stored in it. If it comes into use meanwhile, it stays; what had expired may be gone.
   */
  removeChannel(channel: string, now: number): Promise<"removed" | "unknown" | Remains>;

  /**
   * Deletes what retention no longer keeps, in a bounded slice per call, and notes for each device what it lost unanswered. From the oldest entry on,
   * an entry is no longer kept if it is too old, or if there are more than `count` events from it on; control entries are not counted. If an event is deleted
   * before its deadline, devices that owe it a final receipt are recorded as `missing` first, with the reason `expired`. True: call again.
   * @param channel one channel, or null for idempotency keys and unused channels
   */
  trim(channel: string | null, retention: Retention, now: number): Promise<boolean>;

  /**
   * Channels in which `trim` may have something to do, those that wait longest first: where its last call did not end its work, where it kept nothing
   * and an event was pushed since, where the oldest event has reached the age that its last call was given, and where a device was retired.
   * @returns null: unknown, because the list may be incomplete; call `trim` for all channels
   */
  trimmable(now: number, limit: number): Promise<readonly string[] | null>;

  /**
   * Sets the watcher, which is notified of every entry that becomes durable in a followed log, by any instance, and of retired devices in followed
   * event logs. One watcher per store.
   * @param reached called when notifications may have been missed; read what is missing
   * @param shared called when a device is connected at several instances, with all of its addresses
   */
  watch(
    listener: (wake: Wake) => void,
    reached?: (extent: Extent) => void,
    shared?: (channel: string, device: string, addresses: readonly string[]) => void,
  ): void;

  /** After it resolves, and until `unfollow`, the watcher is notified of this log. Repeated calls have no effect. @throws PereError away */
  follow(kind: Kind, channel: string): Promise<void>;
  unfollow(kind: Kind, channel: string): void;

  /**
   * A device that joined the channel after `joined` is connected to this instance from these addresses; null: no longer. Other instances know it
   * soon.
   */
  setPresence(channel: string, device: string, joined: number | null, addresses?: readonly string[]): void;

  /** Addresses of these devices at other instances, as far as known; up to date within seconds. Never rejects. */
  addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>>;

  /** Devices connected at other instances, each with its `joined`; up to date within seconds, empty if unknown. Never rejects. */
  remotePresence(channel: string): Promise<ReadonlyMap<string, number>>;

  /**
   * Takes or renews a lease, for work that only one instance may do. With 0 ms the holder releases it.
   * @returns its number, which grows with each change of holder, so that an outdated holder is recognised; null: another instance holds it
   * @throws PereError away
   */
  lease(name: string, holder: string, ms: number): Promise<number | null>;

  /**
   * Stores a hook. A new hook starts at the end of the receipts log. An existing one continues from its cursor and is enabled. A new secret replaces
   * the hook's, which becomes a former secret at `now`.
   * @param fresh the secret of a new hook if the draft has none
   */
  putHook(channel: string, draft: HookDraft, fresh: string, now: number): Promise<{ hook: Hook; created: boolean }>;

  /** Removes a hook with its deliveries; false: there was none. */
  dropHook(channel: string, name: string, now: number): Promise<boolean>;

  /** The hooks of a channel, by name; of all channels, in no order, if it is null. */
  hooks(channel: string | null): Promise<Hook[]>;

  /** A hook's deliveries, oldest first. */
  deliveries(channel: string, name: string): Promise<Delivery[]>;

  /**
   * Stores what a hook's runner has done.
   * @param fence the number of the runner's lease; refused if it is older than the last stored one; null: the change is not by the runner, which must
   * reload the hook
   * @returns false: nothing was stored, because the hook was removed or another instance runs it
   */
  progress(channel: string, name: string, fence: number | null, progress: Progress): Promise<boolean>;

  /**
   * A secret shared by all instances of this store: `fresh`, unless there is one already. Stored where only PERE can read it. @throws PereError away
   */
  secret(fresh: string): Promise<string>;

  /**
   * Stores a push that is first due at `next`. Creates the channel if needed. A known key with the same digest returns the first call's schedule.
   * @throws PereError refused: there are too many, or the key was used with another digest; conflict: the key's schedule was cancelled
   */
  schedule(
    channel: string,
    draft: ScheduleDraft,
    next: number,
    now: number,
    key?: Idempotency,
  ): Promise<{ readonly schedule: Schedule; readonly replayed: boolean }>;

  /** The scheduled pushes of a channel by id, after the one with the id `after`. */
  schedules(channel: string, after: string, limit: number): Promise<Page<Schedule, string>>;

  /** Null: there is none with this id. */
  scheduled(channel: string, id: string): Promise<Schedule | null>;

  /** Cancels a scheduled push, or deletes one that is done. After that nothing more is pushed for it. False: there was none. */
  unschedule(channel: string, id: string, now: number): Promise<boolean>;

  /**
   * Scheduled pushes that are due, about `limit` of them, and when to ask again: milliseconds since 1970, may be too early, never too late; null:
   * nothing is scheduled. Another instance is not given the same ones for some 100 ms. Those that are done are deleted after `SCHEDULE_KEPT_MS`.
   */
  dueSchedules(
    now: number,
    limit: number,
  ): Promise<{ readonly due: readonly { channel: string; schedule: Schedule }[]; readonly next: number | null }>;

  /** Uses a due time without a push, because of an error. False: it was used already, or the schedule was cancelled. */
  skipSchedule(channel: string, time: DueTime, error: string, now: number): Promise<boolean>;

  /** What the operator can rely on, for `/ready`. @throws PereError away */
  ready(): Promise<Readiness>;

  /** Makes everything acknowledged durable and closes the store. */
  close(): Promise<void>;
}

/** Makes a page from rows that were read with one row more than the limit. */
export function page<Item, Key>(found: readonly Item[], limit: number, keyOf: (item: Item) => Key): Page<Item, Key> {
  if (found.length <= limit) return { items: found, next: null };
  const items = found.slice(0, limit);
  return { items, next: keyOf(items.at(-1)!) };
}

/** A log's name, for messages and keys. */
export const logName = (kind: Kind, channel: string): string => `${kind}/${channel}`;
