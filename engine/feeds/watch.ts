/**
 * Who watches: a console, or whatever draws what goes on.
 *
 * A watcher is a cursor on a channel's two logs that reads at its own pace: four times a second it asks how far they have come, and is shown
 * what is new, in one frame. So a thousand receipts a second cost it as much as four reads, no device costs anything, and where nobody watches nothing is done.
 * Where more came than anybody can look at, it is shown the tallies instead, and told that this is not all.
 *
 * What it never does: show an event's data or a receipt's detail, which are read where they are looked at; wait in front of a reader who is
 * behind. It has no positions: who comes back is shown how things stand now.
 */
import { Turn } from "../yield.ts";
import type { Counters, Distribution } from "../counters.ts";
import { attempt, onConsole, type Report, unexpected } from "../faults.ts";
import type { Bye } from "./feed.ts";
import {
  type Event,
  id,
  isComplete,
  iso,
  PAGE_MAX,
  PereError,
  type Receipt,
  type Tally,
  tallyCounts,
} from "../model.ts";
import type { Presence } from "./presence.ts";
import type { ChannelEntry, Store } from "../store.ts";

/** What is new is shown at this interval: an eye takes it for at once. */
const TURN_MS = 250;
/** The overview is looked at each so many turns. */
const OVERVIEW_TURNS = 4;
/** A quiet watcher gets a sign of life after so many turns, as quiet feeds do. */
const BEAT_TURNS = 60;
/** Events shown when a watcher comes, and at most at once. */
const EVENTS = 200;
/** Receipts shown one by one; of more only the tallies are. */
const RECEIPTS = 300;
/** Channels in the overview: nobody reads more at a glance, and `GET /channels` has the rest. */
const CHANNELS = 200;
/** Channels looked at to find them, for a watcher who may see few of many. */
const CHANNELS_LOOKED_AT = 4 * PAGE_MAX;
/** Channels whose open receipts are counted in one turn; the others' are as they were. */
const SUMS = 20;
/** Overviews that the latency is taken over: some ten seconds. */
const WINDOW = 10;
/** A watcher who was behind for so many milliseconds makes room for another. */
const BEHIND_MS = 60_000;
/** Watchers an instance: each costs a handful of reads a second. */
export const WATCHERS_MAX = 64;

/** What is watched, by whom. */
export interface WatchRequest {
  /** Null: the overview alone. */
  readonly channel: string | null;
  /** Whether the watcher may know of a channel. */
  readonly may: (channel: string) => boolean;
  /** When the right to it ends, milliseconds since 1970. */
  readonly expires: number;
  /** Why it may not be had now; null: it may. */
  readonly refused: PereError | null;
}

/** Where it is shown. A promise: the reader is behind until it resolves. */
export interface Screen {
  show(name: "overview" | "changes" | "away", body: object): Promise<unknown> | undefined;
  beat(): void;
  /** Tells why and closes. */
  bye(reason: Bye): void;
}

/** What watchers need to know of who is connected. */
type Connected = Pick<Presence<unknown>, "connected">;

export class Watch {
  readonly #store: Store;
  readonly #presence: Connected;
  readonly #counts: Counters;
  readonly #now: () => number;
  readonly #report: Report;
  readonly #watchers = new Set<Watcher>();
  #stopped = false;

  constructor(store: Store, presence: Connected, counts: Counters, now: () => number, report: Report = onConsole) {
    this.#store = store;
    this.#report = report;
    this.#presence = presence;
    this.#counts = counts;
    this.#now = now;
  }

  /** How many watch. */
  get size(): number {
    return this.#watchers.size;
  }

  /** Shows how things stand, and from then on what changes. @returns what ends it when its connection is gone */
  watch(request: WatchRequest, screen: Screen): () => void {
    const isFull = this.#watchers.size >= WATCHERS_MAX;
    if (this.#stopped || isFull || request.refused !== null) {
      screen.bye(this.#stopped ? "drain" : "busy");
      return () => {};
    }
    const watcher = new Watcher(this.#store, this.#presence, this.#counts, request, screen);
    this.#watchers.add(watcher);
    this.#run(watcher, request.expires).catch((error: unknown) => {
      unexpected(this.#report, error);
      this.#end(watcher, "busy");
    });
    return () => void this.#end(watcher);
  }

  /** Turn by turn; a reader who is behind is let read first. */
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

  /** Tells every watcher and takes no new ones. */
  stop(): void {
    this.#stopped = true;
    for (const watcher of [...this.#watchers]) this.#end(watcher, "drain");
  }
}

/** How many receipts are open and how many are missing, of a channel's newest events, and what that was counted at. */
interface Sums {
  readonly mark: string;
  readonly open: number;
  readonly missing: number;
}

class Watcher {
  readonly screen: Screen;
  /** Its reader is there. */
  open = true;
  /** Its reader has not read the last frame yet. */
  isBehind = false;
  readonly #store: Store;
  readonly #presence: Connected;
  readonly #counts: Counters;
  readonly #request: WatchRequest;
  readonly #sums = new Map<string, Sums>();
  /** The buckets of final receipts' latency at the last overviews. */
  readonly #past: number[][] = [];
  #overview = "";
  #shownAt = 0;
  #isAway = false;
  /** How far the logs of the channel were shown; null: not at all yet. */
  #shown: { readonly epoch: string; readonly events: number; readonly receipts: number } | null = null;

  constructor(store: Store, presence: Connected, counts: Counters, request: WatchRequest, screen: Screen) {
    this.#store = store;
    this.#presence = presence;
    this.#counts = counts;
    this.#request = request;
    this.screen = screen;
  }

  /** Looks, and shows what is new. Where the store is away that is shown, once. */
  async turn(turn: number): Promise<void> {
    const { channel } = this.#request;
    try {
      if (turn % OVERVIEW_TURNS === 0) {
        const overview = await this.#look();
        const text = JSON.stringify(overview);
        if (text !== this.#overview || this.#isAway) this.#show(turn, "overview", overview);
        this.#overview = text;
        this.#isAway = false;
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

  #show(turn: number, name: "overview" | "changes" | "away", body: object): void {
    this.#shownAt = turn;
    const drained = this.open ? this.screen.show(name, body) : undefined;
    if (!drained) return;
    this.isBehind = true;
    const read = (): void => void (this.isBehind = false);
    drained.then(read, read);
  }

  // ----------------------------------------------------------------------------------------------------------- the overview

  async #look() {
    const { found, more } = await this.#channels();
    let counted = 0;
    const channels = [];
    const breath = new Turn();
    for (const item of found) {
      await breath.yieldToEventLoop();
      const { channel, epoch, events, devices } = item;
      const mark = `${epoch} ${events.head} ${events.floor} ${item.receipts.head}`;
      let sums = this.#sums.get(channel);
      if (sums?.mark !== mark && counted < SUMS) {
        counted++;
        const sum = await this.#sum(channel, epoch, events.head);
        sums = sum ? { mark, ...sum } : undefined;
      }
      if (!sums?.mark.startsWith(`${epoch} `)) sums = undefined; // Of another life of the channel.
      if (sums) this.#sums.set(channel, sums);
      const elsewhere = await this.#store.remotePresence(channel);
      channels.push({
        channel,
        events: events.head - events.floor,
        devices,
        connected: this.#presence.connected(channel, null, elsewhere),
        last: events.head === 0 ? null : id(epoch, events.head),
        open: sums?.open ?? null,
        missing: sums?.missing ?? null,
      });
    }
    const { pushes, deliveries, receipts, final } = this.#counts.total();
    return { channels, more, counts: { pushes, deliveries, receipts: { ...receipts }, latency: this.#latency(final) } };
  }

  /** The channels that are shown, by name. */
  async #channels() {
    const found: ChannelEntry[] = [];
    let after: string | null = "";
    const breath = new Turn();
    for (let looked = 0; after !== null && looked < CHANNELS_LOOKED_AT && found.length <= CHANNELS;) {
      const page: Awaited<ReturnType<Store["channels"]>> = await this.#store.channels(after, CHANNELS + 1);
      for (const entry of page.items)
        if (this.#request.may(entry.channel) && (!entry.isUnused || (await this.#isAttended(entry.channel))))
          found.push(entry);
      looked += page.items.length;
      after = page.next;
      await breath.yieldToEventLoop();
    }
    return { found: found.slice(0, CHANNELS), more: after !== null || found.length > CHANNELS };
  }

  async #isAttended(channel: string): Promise<boolean> {
    return this.#presence.connected(channel, null, await this.#store.remotePresence(channel)) > 0;
  }

  /** Null: the log begins anew. */
  async #sum(channel: string, epoch: string, head: number): Promise<{ open: number; missing: number } | null> {
    let [open, missing] = [0, 0];
    const tallies = await this.#store.tallies(channel, epoch, Math.max(1, head - EVENTS + 1), head);
    if (tallies === null) return null;
    for (const tally of tallies.values()) {
      open += tally.addressed - tally.done - tally.failed - tally.missing;
      missing += tally.missing;
    }
    return { open, missing };
  }

  /** How long final receipts took lately, in seconds; null: there were none. */
  #latency({ bounds, counts }: Distribution): { p50: number; p99: number } | null {
    this.#past.push([...counts]);
    if (this.#past.length > WINDOW) this.#past.shift();
    const lately = counts.map((count, place) => count - this.#past[0]![place]!);
    const total = lately.reduce((sum, count) => sum + count, 0);
    return total === 0
      ? null
      : { p50: quantile(lately, bounds, total / 2), p99: quantile(lately, bounds, total * 0.99) };
  }

  // ------------------------------------------------------------------------------------------------------------ one channel

  /** What came in the channel since the last look; null: nothing. */
  async #changes(channel: string) {
    const heads = await this.#store.heads(channel);
    // A channel that was never used has an empty board.
    const epoch = heads?.epoch ?? "";
    const [events, receipts] = [heads?.events ?? NONE, heads?.receipts ?? NONE];
    const isNew = this.#shown?.epoch !== epoch;
    const from = isNew || !this.#shown ? { events: events.floor, receipts: receipts.head } : this.#shown;
    if (!isNew && from.events === events.head && from.receipts === receipts.head) return null;

    const oldest = Math.max(events.floor, events.head - EVENTS);
    const fresh = await this.#events(channel, epoch, Math.max(from.events, oldest), events.head);
    const isMuch = receipts.head - from.receipts > RECEIPTS || receipts.floor > from.receipts;
    const words =
      isMuch || receipts.head === from.receipts
        ? []
        : await this.#store.receipts(channel, epoch, from.receipts, RECEIPTS);
    if (fresh === null || words === null) return null;
    const touched = isMuch ? null : new Set(words.map(({ event }) => event));
    const tallies = await this.#tallies(channel, epoch, fresh, touched, oldest, events.head);
    if (tallies === null) return null; // The log begins anew; the next look finds what it has then.
    this.#shown = { epoch, events: events.head, receipts: words.at(-1)?.seq ?? receipts.head };
    const known = new Set(fresh.map(({ seq }) => seq));
    return {
      reset: isNew,
      more: !isNew && (isMuch || oldest > from.events),
      events: fresh.flatMap((event) => eventBody(epoch, event, tallies.get(event.seq))),
      tallies: [...tallies]
        .filter(([seq]) => !known.has(seq) && (touched === null || touched.has(seq)))
        .map(([seq, tally]) => ({ id: id(epoch, seq), receipts: tallyCounts(tally) })),
      receipts: words.filter(({ status }) => status !== "pending").map((word) => receiptBody(epoch, word)),
    };
  }

  /** Events after a place up to another; a read brings as many as their data allows. */
  async #events(channel: string, epoch: string, after: number, upTo: number): Promise<Event[] | null> {
    const found: Event[] = [];
    for (let place = after; place < upTo; place = found.at(-1)!.seq) {
      const read = await this.#store.events(channel, epoch, place, upTo - place);
      if (read === null) return null;
      if (read.length === 0) break; // Retention took them between the two reads.
      found.push(...read);
    }
    return found;
  }

  /** The tallies of what is new and of what was touched; of all that is shown where that is not known. */
  async #tallies(
    channel: string,
    epoch: string,
    fresh: readonly Event[],
    touched: ReadonlySet<number> | null,
    oldest: number,
    head: number,
  ) {
    const seqs = [...fresh.map(({ seq }) => seq), ...(touched ?? [oldest + 1, head])].filter((seq) => seq > oldest);
    if (seqs.length === 0) return new Map<number, Tally>();
    return this.#store.tallies(channel, epoch, Math.min(...seqs), Math.max(...seqs));
  }
}

const NONE = { head: 0, floor: 0 };

/** A value below which so many are, by their buckets; between two bounds they count as evenly spread. */
function quantile(counts: readonly number[], bounds: readonly number[], rank: number): number {
  let below = 0;
  for (const [place, count] of counts.entries()) {
    if (below + count >= rank && count > 0) {
      const [low, high] = [bounds[place - 1] ?? 0, bounds[place] ?? bounds.at(-1)!];
      return low + ((high - low) * (rank - below)) / count;
    }
    below += count;
  }
  return bounds.at(-1)!;
}

/** An event without its data; none where retention took it between two reads. */
const eventBody = (epoch: string, { seq, at, type, deadline }: Event, tally: Tally | undefined) =>
  tally
    ? [
        {
          id: id(epoch, seq),
          seq,
          at: iso(at),
          type,
          deadline: deadline === null ? null : iso(deadline),
          addressed: tally.addressed,
          receipts: tallyCounts(tally),
          complete: isComplete(tally),
        },
      ]
    : [];

const receiptBody = (epoch: string, { event, device, status, at, late }: Receipt) => ({
  event: id(epoch, event),
  device,
  status,
  at: iso(at),
  late,
});
