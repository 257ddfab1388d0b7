/**
 * Watchers: consoles and other dashboards.
 *
 * A watcher is a cursor on a channel's two logs that reads at its own pace: four times a second it checks how far they have come and sends what is
 * new in one frame. So a thousand receipts per second cost it four reads, devices cost nothing, and without watchers there is no work. If more
 * arrived than a person can follow, it sends only tallies and says that there is more. That something else needs attention is said at most once a
 * second, with the totals; what it is can be read.
 *
 * Never sends an event's data or a receipt's detail, and never queues frames for a slow reader. There are no positions: a watcher that reconnects
 * gets the current state.
 */
import { yieldToEventLoop } from "../yield.ts";
import type { Counters, Distribution } from "../counters.ts";
import { attempt, onConsole, type Report, unexpected } from "../faults.ts";
import { markOf, readTroubled, type Troubled } from "./attention.ts";
import type { Bye } from "./feed.ts";
import {
  type Event,
  id,
  isComplete,
  isControl,
  iso,
  type LogEntry,
  outstandingOf,
  PAGE_MAX,
  PereError,
  type Receipt,
  type Tally,
  tallyCounts,
} from "../model.ts";
import type { Presence } from "./presence.ts";
import type { ChannelEntry, ChannelScope, Store } from "../store.ts";
import { type Totals, TotalsCounter } from "./totals.ts";

/** Interval of updates: looks immediate. */
const TURN_MS = 250;
/** The overview is updated every this many turns. */
const OVERVIEW_TURNS = 4;
/** Watchers share what is read of devices in trouble for this long. */
const TROUBLES_MS = 500;
/** A quiet watcher gets a keep-alive after this many turns, every 2 s: pages say so when they hear nothing for 5 s. */
const BEAT_TURNS = 8;
/** Events sent when a watcher connects, and maximum per frame. */
const EVENTS = 200;
/** Maximum number of single receipts per frame; beyond that only tallies are sent. */
const RECEIPTS = 300;
/** Channels in the overview; `GET /channels` has the rest. */
const CHANNELS = 200;
/** Channels searched for the overview: many may be unused. */
const CHANNELS_LOOKED_AT = 4 * PAGE_MAX;
/** Channels whose open receipts are counted per turn; the other counts stay as they were. */
const SUMS = 20;
/** Number of overviews that the latency covers: about ten seconds. */
const WINDOW = 10;
/** A watcher that is behind for this long is disconnected to make room. */
const BEHIND_MS = 60_000;
/** Watchers per instance: each costs a few reads per second. */
export const WATCHERS_MAX = 64;

/** What is watched. */
export interface WatchRequest {
  /** Null: the overview only. */
  readonly channel: string | null;
  /** The channels that the watcher may see; null: all. */
  readonly scope: ChannelScope | null;
  /** When the right to it ends, milliseconds since 1970. */
  readonly expires: number;
  /** Why it is refused for now; null: it is allowed. */
  readonly refused: PereError | null;
}

type FrameName = "overview" | "trouble" | "changes" | "away";

/** The watcher's connection. A promise: the reader is behind until it resolves. */
export interface Screen {
  show(name: FrameName, body: object): Promise<unknown> | undefined;
  beat(): void;
  /** Sends the reason and closes. */
  bye(reason: Bye): void;
}

/** The part of presence that watchers need. */
type Connected = Pick<Presence<unknown>, "connected">;

export class Watch {
  readonly #store: Store;
  readonly #presence: Connected;
  readonly #counts: Counters;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #totals: TotalsCounter;
  readonly #watchers = new Set<Watcher>();
  /** Who is in trouble, read once for all watchers, and when. */
  #troubled: { readonly at: number; readonly read: Promise<Troubled> } | null = null;
  #stopped = false;

  constructor(store: Store, presence: Connected, counts: Counters, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#report = report;
    this.#presence = presence;
    this.#counts = counts;
    this.#now = now;
    this.#totals = new TotalsCounter(store, presence, now);
  }

  /** The number of watchers. */
  get size(): number {
    return this.#watchers.size;
  }

  /** Sends the current state and then the changes. @returns a function that ends it when the connection is closed */
  watch(request: WatchRequest, screen: Screen): () => void {
    const isFull = this.#watchers.size >= WATCHERS_MAX;
    if (this.#stopped || isFull || request.refused !== null) {
      screen.bye(this.#stopped ? "drain" : "busy");
      return () => {};
    }
    const readTroubles = () => this.#readTroubles();
    const watcher = new Watcher(this.#store, this.#presence, this.#counts, this.#totals, readTroubles, request, screen);
    this.#watchers.add(watcher);
    this.#run(watcher, request.expires).catch((error: unknown) => {
      unexpected(this.#report, error);
      this.#end(watcher, "busy");
    });
    return () => void this.#end(watcher);
  }

  #readTroubles(): Promise<Troubled> {
    const at = performance.now();
    if (this.#troubled === null || at - this.#troubled.at >= TROUBLES_MS)
      this.#troubled = { at, read: readTroubled(this.#store) };
    return this.#troubled.read;
  }

  /** One turn after the other; a reader that is behind skips turns. */
  async #run(watcher: Watcher, expires: number): Promise<void> {
    let keptUpAt = this.#now();
    for (let turn = 0; this.#watchers.has(watcher); turn++) {
      const now = this.#now();
      if (expires <= now) return this.#end(watcher, "expired");
      if (!watcher.isBehind) {
        keptUpAt = now;
        await watcher.turn(turn);
      } else if (now - keptUpAt >= BEHIND_MS) return this.#end(watcher, "busy");
      await Bun.sleep(TURN_MS);
    }
  }

  #end(watcher: Watcher, reason?: Bye): void {
    if (!this.#watchers.delete(watcher)) return;
    watcher.open = false;
    if (reason !== undefined) attempt(this.#report, () => watcher.screen.bye(reason));
  }

  /** Tells every watcher and accepts no new ones. */
  stop(): void {
    this.#stopped = true;
    for (const watcher of [...this.#watchers]) this.#end(watcher, "drain");
  }
}

/** How many receipts of a channel's newest events are open and missing, and the extent of the logs at that count. */
interface Sums {
  readonly mark: string;
  readonly open: number;
  readonly missing: number;
}

class Watcher {
  readonly screen: Screen;
  /** The connection is open. */
  open = true;
  /** The reader has not read the last frame yet. */
  isBehind = false;
  readonly #store: Store;
  readonly #presence: Connected;
  readonly #counts: Counters;
  readonly #totals: TotalsCounter;
  readonly #readTroubles: () => Promise<Troubled>;
  readonly #request: WatchRequest;
  readonly #sums = new Map<string, Sums>();
  /** The latency buckets of final receipts at the last overviews. */
  readonly #past: number[][] = [];
  #overview = "";
  /** What needed attention at the last frame about that. */
  #trouble = "";
  #shownAt = 0;
  #isAway = false;
  /** How far the channel's logs were sent; null: not at all yet. */
  #shown: { readonly epoch: string; readonly events: number; readonly receipts: number } | null = null;

  constructor(
    store: Store,
    presence: Connected,
    counts: Counters,
    totals: TotalsCounter,
    readTroubles: () => Promise<Troubled>,
    request: WatchRequest,
    screen: Screen,
  ) {
    this.#store = store;
    this.#presence = presence;
    this.#counts = counts;
    this.#totals = totals;
    this.#readTroubles = readTroubles;
    this.#request = request;
    this.screen = screen;
  }

  /** Checks, and sends what is new. Says once if the store is away. */
  async turn(turn: number): Promise<void> {
    const { channel } = this.#request;
    try {
      if (turn % OVERVIEW_TURNS === 0) {
        const overview = await this.#look();
        const text = JSON.stringify(overview);
        if (text !== this.#overview || this.#isAway) this.#show(turn, "overview", overview);
        this.#overview = text;
        this.#isAway = false;
        if (!this.isBehind) this.#showTrouble(turn, await this.#readTroubles());
      }
      const changes = channel === null || this.isBehind ? null : await this.#changes(channel);
      if (changes) this.#show(turn, "changes", { channel, ...changes });
    } catch (error) {
      if (!(error instanceof PereError)) throw error;
      if (!this.#isAway) this.#show(turn, "away", { detail: error.message });
      this.#isAway = true;
    }
    if (turn - this.#shownAt < BEAT_TURNS || !this.open) return;
    this.#shownAt = turn;
    this.screen.beat();
  }

  #show(turn: number, name: FrameName, body: object): void {
    this.#shownAt = turn;
    const drained = this.open ? this.screen.show(name, body) : undefined;
    if (!drained) return;
    this.isBehind = true;
    const read = (): void => void (this.isBehind = false);
    drained.then(read, read);
  }

  /** Says that something else needs attention now; what it is can be read. */
  #showTrouble(turn: number, troubled: Troubled): void {
    const { totals, mark } = markOf(troubled, this.#request.scope);
    if (mark === this.#trouble) return;
    this.#trouble = mark;
    this.#show(turn, "trouble", { totals });
  }

  // ----------------------------------------------------------------------------------------------------------- the overview

  async #look() {
    const { found, more } = await this.#channels();
    let counted = 0;
    const channels = [];
    for (const item of found) {
      const { channel, epoch, events, devices } = item;
      const mark = `${epoch} ${events.head} ${events.floor} ${item.receipts.head}`;
      let sums = this.#sums.get(channel);
      if (sums?.mark !== mark && counted < SUMS) {
        counted++;
        await yieldToEventLoop("watch", EVENTS);
        const sum = await this.#sum(channel, epoch, events.head);
        sums = sum ? { mark, ...sum } : undefined;
      }
      if (!sums?.mark.startsWith(`${epoch} `)) sums = undefined; // From another epoch of the channel.
      if (sums) this.#sums.set(channel, sums);
      const elsewhere = await this.#store.remotePresence(channel);
      channels.push({
        channel,
        events: events.head - events.floor - events.controls,
        devices,
        connected: this.#presence.connected(channel, null, elsewhere),
        last: events.head === 0 ? null : id(epoch, events.head),
        open: sums?.open ?? null,
        missing: sums?.missing ?? null,
      });
    }
    const { pushes, deliveries, receipts, final } = this.#counts.total();
    return {
      channels,
      more,
      totals: this.#totalsOf(channels, more),
      counts: { pushes, deliveries, receipts: { ...receipts }, latency: this.#latency(final) },
    };
  }

  /** Of all channels: those that are shown, counted now, or a count of some seconds ago; null: not counted yet. */
  #totalsOf(shown: readonly Omit<Totals, "channels">[], more: boolean) {
    if (!more)
      return {
        channels: shown.length,
        devices: shown.reduce((sum, { devices }) => sum + devices, 0),
        connected: shown.reduce((sum, { connected }) => sum + connected, 0),
        at: null,
      };
    const counted = this.#totals.of(this.#request.scope);
    return counted && { ...counted, at: iso(counted.at) };
  }

  /** The channels in the overview, by name. */
  async #channels() {
    const found: ChannelEntry[] = [];
    let after: string | null = "";
    for (let looked = 0; after !== null && looked < CHANNELS_LOOKED_AT && found.length <= CHANNELS;) {
      await yieldToEventLoop("watch", CHANNELS);
      const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(
        after,
        CHANNELS + 1,
        this.#request.scope,
      );
      for (const entry of page.items) if (!entry.isUnused || (await this.#isAttended(entry.channel))) found.push(entry);
      looked += page.items.length;
      after = page.next;
    }
    return { found: found.slice(0, CHANNELS), more: after !== null || found.length > CHANNELS };
  }

  async #isAttended(channel: string): Promise<boolean> {
    return this.#presence.connected(channel, null, await this.#store.remotePresence(channel)) > 0;
  }

  /** Null: the log has a new epoch. */
  async #sum(channel: string, epoch: string, head: number): Promise<{ open: number; missing: number } | null> {
    let [open, missing] = [0, 0];
    const tallies = await this.#store.tallies(channel, epoch, Math.max(1, head - EVENTS + 1), head);
    if (tallies === null) return null;
    for (const tally of tallies.values()) {
      if (!tally.isOver) open += outstandingOf(tally) - tally.missing;
      missing += tally.missing;
    }
    return { open, missing };
  }

  /** Recent latency of final receipts, in seconds; null: there were none. */
  #latency({ bounds, counts }: Distribution): { p50: number; p99: number } | null {
    this.#past.push([...counts]);
    if (this.#past.length > WINDOW) this.#past.shift();
    const lately = counts.map((count, index) => count - this.#past[0]![index]!);
    const total = lately.reduce((sum, count) => sum + count, 0);
    return total === 0
      ? null
      : { p50: quantile(lately, bounds, total / 2), p99: quantile(lately, bounds, total * 0.99) };
  }

  // ------------------------------------------------------------------------------------------------------------ one channel

  /** The channel's changes since the last turn; null: none. */
  async #changes(channel: string) {
    const heads = await this.#store.heads(channel);
    // A channel that was never used has an empty board.
    const epoch = heads?.epoch ?? "";
    const [events, receipts] = [heads?.events ?? NONE, heads?.receipts ?? NONE];
    const isNew = this.#shown?.epoch !== epoch;
    const from = isNew || !this.#shown ? { events: events.floor, receipts: receipts.head } : this.#shown;
    if (!isNew && from.events === events.head && from.receipts === receipts.head) return null;

    const oldest = Math.max(events.floor, events.head - EVENTS);
    await yieldToEventLoop("watch", EVENTS + RECEIPTS);
    const fresh = await this.#events(channel, epoch, Math.max(from.events, oldest), events.head);
    const isMuch = receipts.head - from.receipts > RECEIPTS || receipts.floor > from.receipts;
    const newReceipts =
      isMuch || receipts.head === from.receipts
        ? []
        : await this.#store.receipts(channel, epoch, from.receipts, RECEIPTS);
    if (fresh === null || newReceipts === null) return null;
    const touched = isMuch ? null : new Set(newReceipts.map(({ event }) => event));
    const tallies = await this.#tallies(channel, epoch, fresh, touched, oldest, events.head);
    if (tallies === null) return null; // The log has a new epoch; the next turn reads that.
    this.#shown = { epoch, events: events.head, receipts: newReceipts.at(-1)?.seq ?? receipts.head };
    const known = new Set(fresh.map(({ seq }) => seq));
    return {
      reset: isNew,
      more: !isNew && (isMuch || oldest > from.events),
      events: fresh.flatMap((entry) => (isControl(entry) ? [] : eventBody(epoch, entry, tallies.get(entry.seq)))),
      withdrawn: fresh.flatMap((entry) => (isControl(entry) ? [id(epoch, entry.withdraws)] : [])),
      tallies: [...tallies]
        .filter(([seq]) => !known.has(seq) && (touched === null || touched.has(seq)))
        .map(([seq, tally]) => ({ id: id(epoch, seq), receipts: tallyCounts(tally) })),
      receipts: newReceipts.filter(({ status }) => status !== "pending").map((receipt) => receiptBody(epoch, receipt)),
    };
  }

  /** Events after one `seq` up to another; each read is limited by its data. */
  async #events(channel: string, epoch: string, after: number, upTo: number): Promise<LogEntry[] | null> {
    const found: LogEntry[] = [];
    for (let index = after; index < upTo; index = found.at(-1)!.seq) {
      const read = await this.#store.events(channel, epoch, index, upTo - index);
      if (read === null) return null;
      if (read.length === 0) break; // Retention deleted them between the two reads.
      found.push(...read);
    }
    return found;
  }

  /** The tallies of new events and of those with new receipts; if these are unknown, all that are shown. */
  async #tallies(
    channel: string,
    epoch: string,
    fresh: readonly LogEntry[],
    touched: ReadonlySet<number> | null,
    oldest: number,
    head: number,
  ) {
    const seqs = [...fresh.map(({ seq }) => seq), ...(touched ?? [oldest + 1, head])].filter((seq) => seq > oldest);
    if (seqs.length === 0) return new Map<number, Tally>();
    return this.#store.tallies(channel, epoch, Math.min(...seqs), Math.max(...seqs));
  }
}

const NONE = { head: 0, floor: 0, controls: 0 };

/** A quantile from bucket counts; values within a bucket count as evenly distributed. */
function quantile(counts: readonly number[], bounds: readonly number[], rank: number): number {
  let below = 0;
  for (const [index, count] of counts.entries()) {
    if (below + count >= rank && count > 0) {
      const [low, high] = [bounds[index - 1] ?? 0, bounds[index] ?? bounds.at(-1)!];
      return low + ((high - low) * (rank - below)) / count;
    }
    below += count;
  }
  return bounds.at(-1)!;
}

/** An event without its data; empty if retention deleted it between two reads. */
const eventBody = (epoch: string, { seq, at, type, deadline, key, withdrawn }: Event, tally: Tally | undefined) =>
  tally
    ? [
        {
          id: id(epoch, seq),
          seq,
          at: iso(at),
          type,
          deadline: deadline === null ? null : iso(deadline),
          key,
          withdrawn: withdrawn && withdrawn.reason,
          addressed: tally.addressed,
          receipts: tallyCounts(tally),
          complete: isComplete(tally),
        },
      ]
    : [];

const receiptBody = (epoch: string, { event, device, status, at, late, round }: Receipt) => ({
  event: id(epoch, event),
  device,
  status,
  at: iso(at),
  late,
  round,
});
