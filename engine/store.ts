/**
 * The seam: what any memory of PERE promises, whether it is one SQLite file or a Redis that many instances share.
 *
 * A store keeps, for each channel, two logs (events and receipts) with positions from 1 without holes, who is enrolled, where each
 * device stands on each event, and a tally an event that moves in the same change as the receipt that moves it.
 *
 * The promises that hold for every method:
 *
 * - **Durable, then resolved.** A promise of a method that writes resolves after what it wrote survives a power cut. When it rejects, nothing of
 *   that call was written, except where the disk or the connection to the store failed in the middle: then it can't be known, and the error says so.
 * - **Durable, then told.** Watchers hear of an entry in a log that they follow after it is durable, in the order of its log, exactly once while all
 *   is well, also when another instance stored it. A wake-up is a hint all the same: who misses one finds the entry by reading.
 * - **Feeds make no channel.** A channel is made by an event, by a device that is enrolled, or by a hook. A device that opens a feed before that is
 *   enrolled all the same, and its channel is *unused* until then, as is one that nothing was pushed to when its last device and hook are gone: it goes when none of its devices was heard from for a while. A feed that names no
 *   device leaves nothing behind.
 * - **All or nothing** for each call, also when it names many events or receipts.
 * - Errors are `PereError`s: `away` when the store can't take it now and trying again makes sense; others as said at the method.
 *
 * `tests/contract/contract.ts` holds every store to this page.
 */
import {
  type EnrolledDevice,
  type Event,
  type EventDraft,
  type Kind,
  PereError,
  type Position,
  type Receipt,
  type ReceiptDraft,
  type Row,
  type State,
  type Tally,
} from "./model.ts";

/** The two logs' extent in a channel: the newest entry's `seq`, and the newest one that is no longer kept (0: none). */
export interface Heads {
  readonly epoch: string;
  /** Nothing was ever stored in it, as far as this memory goes back; absent where that can't be known. */
  readonly isUnborn?: true;
  readonly events: { readonly head: number; readonly floor: number };
  readonly receipts: { readonly head: number; readonly floor: number };
}

/** A channel in the list of all. */
export interface ChannelEntry extends Heads {
  readonly channel: string;
  readonly devices: number;
  /** Only feeds of devices have made it. */
  readonly isUnused: boolean;
}

/** How a device stands in a channel when it opens a feed. */
export interface Joined extends Heads {
  /** It was enrolled before this call. */
  readonly enrolled: boolean;
  /** Events pushed up to here were not addressed to it, save those that name it in `to`. */
  readonly joined: number;
  /** It owes nothing at or below this `seq`. */
  readonly settled: number;
  /** The newest event that retention dropped while the device still owed it and was not yet told; 0: none. */
  readonly lost: number;
}

/** What `append` did. `replayed`: the key was known, and these are the first call's events. */
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
 * An idempotency key, and a digest of what came with it. A digest of a body and its options holds a `?` between the two; up to there it is what
 * earlier versions kept, which looked at the body alone.
 */
export interface Idempotency {
  /** The key, and whose it is. */
  readonly key: string;
  readonly digest: string;
  /** The name that earlier versions kept the key under; absent: it is the same. */
  readonly earlier?: string;
  /** The time by which the key is remembered and forgotten, milliseconds since 1970; absent: the events' own. */
  readonly now?: number;
}

/** The part of a digest that earlier versions kept. */
export const earlierDigest = (digest: string): string => digest.split("?", 1)[0]!;

/** What a key that came with something else before is refused with, whatever the store. */
export const otherRequest = (): PereError => {
  const message = "it came with another body or other options before";
  return new PereError("refused", `Idempotency-Key: ${message}`, [{ path: "Idempotency-Key", message }]);
};

/** What became of one receipt: it moved the device forward, it said nothing new, there is no such event, it went to others. */
export type Verdict = "recorded" | "duplicate" | "unknown" | "unaddressed";

/** A page of something. `next` goes back in as `after`; null: there is no more. */
export interface Page<Item, Key> {
  readonly items: readonly Item[];
  readonly next: Key | null;
}

/** An unused channel stays for this long after a device of it was heard from, at least: longer than a feed of a device that lives is silent. */
export const UNUSED_MS_MIN = 3_600_000;
/** Unused channels beyond this number go when they may, those first whose devices were heard from longest ago. */
export const UNUSED_MAX = 100_000;

/** How much of a log is kept: at most `count` events, none pushed before `before` (milliseconds since 1970). */
export interface Retention {
  readonly count: number;
  readonly before: number;
}

/** What `watch` tells: entries of one log, in order, just made durable; or that a device was retired. */
export type Wake =
  | { readonly kind: "events"; readonly channel: string; readonly epoch: string; readonly entries: readonly Event[] }
  | {
      readonly kind: "receipts";
      readonly channel: string;
      readonly epoch: string;
      readonly entries: readonly Receipt[];
    }
  | { readonly kind: "retired"; readonly channel: string; readonly device: string };

/** How far a log has come, when that was found by asking. An `epoch` other than before: the log that was is lost. */
export interface Extent {
  readonly kind: Kind;
  readonly channel: string;
  readonly epoch: string;
  readonly head: number;
}

/**
 * What an operator can rely on. `fsync`: what was acknowledged survives a power cut. `second`: all but the last second or so. `memory`: it is lost when
 * the store's process ends.
 */
export interface Readiness {
  readonly store: string;
  /** What it is kept in, by name and version. */
  readonly version: string;
  readonly durability: "fsync" | "second" | "memory";
  /** Sentences for the operator: what to change, and what it costs not to. */
  readonly advice: readonly string[];
}

/** An event that is sent again, every so many milliseconds since `at`, until a time or until it is no longer kept (null). */
export interface Reminder {
  readonly epoch: string;
  readonly seq: number;
  readonly at: number;
  readonly every: number;
  readonly until: number | null;
}

/** Hooks a channel: each is a call for each batch of receipts. */
export const HOOKS_MAX = 16;

/** What a hook can be called for. */
export const HOOK_KINDS = ["receipt", "complete", "missing"] as const;
export type HookKind = (typeof HOOK_KINDS)[number];

/** What a publisher asks for: where he is called, and for what. Without a secret a known hook keeps its own. */
export interface HookDraft {
  readonly name: string;
  readonly url: string;
  readonly secret: string | null;
  readonly on: readonly HookKind[];
}

/** A secret that another took the place of, milliseconds since 1970. */
export interface FormerSecret {
  readonly secret: string;
  readonly until: number;
}

/** Former secrets that a hook keeps: whoever changes it more often while calls wait knows which of them it has in use. */
export const FORMER_SECRETS_MAX = 4;

/** Former secrets as a store writes them: `<secret>:<until>`, one after the other, newest first. */
export const readFormer = (text: string | null): FormerSecret[] =>
  (text ?? "").split(" ").flatMap((one) => {
    const at = one.lastIndexOf(":");
    return at === -1 ? [] : [{ secret: one.slice(0, at), until: Number(one.slice(at + 1)) }];
  });

/** A hook as kept. It is a cursor on its channel's receipts log: everything up to there was delivered, or is among its deliveries. */
export interface Hook extends HookDraft {
  readonly channel: string;
  readonly secret: string;
  /** The secrets before it, newest first, `FORMER_SECRETS_MAX` at most. */
  readonly former: readonly FormerSecret[];
  readonly createdAt: number;
  readonly cursor: Position;
  /** Why it is called no more, in a sentence. */
  readonly disabled: string | null;
  /** Grows with each change that its runner did not make. */
  readonly revision: number;
}

/** A call that did not succeed at once. Times in milliseconds since 1970. */
export interface Delivery {
  /** The `webhook-id`, the same on every try. */
  readonly id: string;
  readonly body: string;
  readonly createdAt: number;
  readonly attempts: number;
  /** When it is tried again; null: it was given up. */
  readonly nextAt: number | null;
  /** Of the last try: the HTTP status, or why there was none. */
  readonly status: number | null;
  readonly error: string | null;
}

/** What a hook's runner has done, in one change. */
export interface Progress {
  /** When the hook was created of which this is said: another of its name is another. */
  readonly of?: number;
  readonly cursor?: Position;
  readonly disabled?: string | null;
  /** Deliveries that are new or that were tried. */
  readonly keep?: readonly Delivery[];
  /** Deliveries that are done, by id. */
  readonly drop?: readonly string[];
}

export interface Store {
  /**
   * Appends events to a channel, creating it on first use. Their audience is whoever is enrolled at that moment, or the devices in `to`.
   * A known key with the same digest answers the first call's events and appends nothing.
   * @param now milliseconds since 1970
   * @throws PereError refused when the key came with another digest before
   */
  append(channel: string, drafts: readonly EventDraft[], now: number, key?: Idempotency): Promise<Appended>;

  /**
   * Records words of devices, each counted only when it moves its device forward on its event. One verdict a draft, in order. A word on an event whose
   * deadline has passed finds its device `missing`: where it owed a final word and that was not recorded yet, it is recorded here, before the word.
   * That every device has given its final word is an entry of its own, right behind the word that was the last.
   * @param now the server's time, milliseconds since 1970
   */
  record(channel: string, drafts: readonly ReceiptDraft[], now: number): Promise<Verdict[]>;

  /** The channel's extent. Of one that is not there it is what it would begin with, for a while: the epoch that the next change makes it with. */
  open(channel: string): Promise<Heads>;

  /** Enrols a device (when it is not enrolled) and tells where it stands. `lost` counts as told once a receipt of the device is recorded after this call. */
  join(channel: string, device: string, now: number): Promise<Joined>;

  /** Enrols a device; false when it was already. */
  enrol(channel: string, device: string, now: number): Promise<boolean>;

  /**
   * Ends an enrolment: later events are not addressed to the device, and those without its final word no longer are; where their deadline has passed,
   * it is recorded as missing before. Whoever follows the channel's events is told. That is decided at once and seen of all events together, also
   * where it is written down in slices. An event that is complete thereby has an entry in the receipts log that says so, by the end of the last slice,
   * with the device's name and no word of it (`pending`).
   * @returns false: it was not enrolled
   */
  retire(channel: string, device: string, now: number): Promise<boolean>;

  /** Keeps the last signs of life of a channel's devices, milliseconds since 1970. */
  seen(channel: string, times: ReadonlyMap<string, number>): Promise<void>;

  /** The channel's extent, or null when it was never used. */
  heads(channel: string): Promise<Heads | null>;

  /*
   * What is read by `seq` is read of one life of the log, by its epoch: a `seq` alone is another entry's in another life. Where the channel has another
   * epoch by now, or is gone, these give null and nothing of what stands there instead; a caller that waits for an event leaves.
   */

  /** Kept entries after `after`, oldest first and without a hole between them, at most `limit` and about `bytesMax` of data, at least one when there is one. */
  events(channel: string, epoch: string, after: number, limit: number, bytesMax?: number): Promise<Event[] | null>;
  receipts(channel: string, epoch: string, after: number, limit: number): Promise<Receipt[] | null>;

  /**
   * Of the events with `after` < seq ≤ `upTo`: those that the device gave a final word on. Events that name others may be among them; those that
   * named it until it was retired are, where `events` still gives its name.
   */
  finalized(
    channel: string,
    epoch: string,
    device: string,
    after: number,
    upTo: number,
  ): Promise<ReadonlySet<number> | null>;

  /** Tallies of kept events by `seq`, for `from` ≤ seq ≤ `upTo`. */
  tallies(channel: string, epoch: string, from: number, upTo: number): Promise<ReadonlyMap<number, Tally> | null>;

  /** Of these devices: those that the event is addressed to and that gave no word at all on it. */
  unanswered(channel: string, epoch: string, event: number, devices: readonly string[]): Promise<string[] | null>;

  /** Kept events that are sent again to who is silent, and that are neither expired nor past their deadline. */
  reminders(channel: string, now: number): Promise<Reminder[]>;

  /**
   * Records as `missing`, a bounded slice a call, the devices that owe a final word on an event whose deadline has passed; each once.
   * @returns when to ask again, milliseconds since 1970 (`now` or before: at once), too early perhaps but never too late; null: no deadline is ahead
   */
  recordMissing(now: number): Promise<number | null>;

  /** One row a device that the event was addressed to, by name, after the device `after`, of one state or of all. Null as with `events`. */
  rows(
    channel: string,
    epoch: string,
    event: number,
    status: State | null,
    after: string,
    limit: number,
  ): Promise<Page<Row, string> | null>;

  /** Enrolled devices by name, after the device `after`. */
  devices(channel: string, after: string, limit: number, now: number): Promise<Page<EnrolledDevice, string>>;

  /** All channels by name, after the channel `after`; with how many devices are enrolled. */
  channels(after: string, limit: number): Promise<Page<ChannelEntry, string>>;

  /**
   * Drops what retention no longer keeps, a bounded slice a call, and remembers for each device what it lost unanswered. Where an event goes
   * before its deadline, who owes it a final word is recorded as `missing` first, with the reason `expired`. True: call again.
   * @param channel one channel, or null for what belongs to none (idempotency keys) and for channels that are unused
   */
  trim(channel: string | null, retention: Retention, now: number): Promise<boolean>;

  /**
   * Hears of every entry that becomes durable in a log that is followed, whoever stored it, and of retired devices where events are followed.
   * One watcher a store.
   * @param reached told where entries may have passed unheard; what is missing is to be read
   * @param shared told where a device is connected at several instances, from which addresses in all
   */
  watch(
    listener: (wake: Wake) => void,
    reached?: (extent: Extent) => void,
    shared?: (channel: string, device: string, addresses: readonly string[]) => void,
  ): void;

  /** From when it resolves until `unfollow`, the watcher hears of this log. Asked twice it is the same. @throws PereError away */
  follow(kind: Kind, channel: string): Promise<void>;
  unfollow(kind: Kind, channel: string): void;

  /**
   * A device, which joined the channel after `joined`, is connected to this instance from now on, from these addresses; null: it is no longer. Other
   * instances know it soon.
   */
  setPresence(channel: string, device: string, joined: number | null, addresses?: readonly string[]): void;

  /** From where these devices are connected at other instances, those that are known; right within seconds. Never rejects. */
  addresses(channel: string, devices: readonly string[]): Promise<ReadonlyMap<string, readonly string[]>>;

  /** Devices that are connected at other instances, each with where it joined; right within seconds, nobody where it can't be known. Never rejects. */
  remotePresence(channel: string): Promise<ReadonlyMap<string, number>>;

  /**
   * Takes or renews a lease, for work that one instance must do; for 0 ms its holder gives it back.
   * @returns its number, which grows each time that it changes hands, so that a holder who woke up late is known by an old one; null: another holds it
   * @throws PereError away
   */
  lease(name: string, holder: string, ms: number): Promise<number | null>;

  /**
   * Stores a hook. A new one starts at the receipts log's end; a known one goes on from where it is, and is no longer disabled. A secret that
   * differs from the hook's takes its place; the hook's is a former one from `now` on.
   * @param fresh the secret of a new hook that came with none
   */
  putHook(channel: string, draft: HookDraft, fresh: string, now: number): Promise<{ hook: Hook; created: boolean }>;

  /** Removes a hook with its deliveries; false: there was none. */
  dropHook(channel: string, name: string, now: number): Promise<boolean>;

  /** The hooks of a channel, by name; of all channels, when it is null. */
  hooks(channel: string | null): Promise<Hook[]>;

  /** A hook's deliveries, oldest first. */
  deliveries(channel: string, name: string): Promise<Delivery[]>;

  /**
   * Keeps what a hook's runner has done.
   * @param fence the number of the runner's lease: one that is older than the last that was kept is refused; null: it is not the runner who asks,
   * and the runner is to look again
   * @returns false: nothing was kept, for the hook is gone, or another runs it
   */
  progress(channel: string, name: string, fence: number | null, progress: Progress): Promise<boolean>;

  /** A secret that all instances on this memory share: `fresh`, unless there is one. It is kept where nobody else reads it. @throws PereError away */
  secret(fresh: string): Promise<string>;

  /** What the operator can rely on, for `/ready`. @throws PereError away */
  ready(): Promise<Readiness>;

  /** Makes everything acknowledged durable and lets go of the store. */
  close(): Promise<void>;
}

/** A page of what was read one beyond its limit. */
export function page<Item, Key>(found: readonly Item[], limit: number, keyOf: (item: Item) => Key): Page<Item, Key> {
  if (found.length <= limit) return { items: found, next: null };
  const items = found.slice(0, limit);
  return { items, next: keyOf(items.at(-1)!) };
}

/** Which log a follower reads, for messages and keys. */
export const logName = (kind: Kind, channel: string): string => `${kind}/${channel}`;
