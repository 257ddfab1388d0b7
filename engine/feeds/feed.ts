/**
 * One feed: the request and its start position, the interface that transports implement, and the connection itself. A feed has one follower per log,
 * and one wire that frames and writes.
 */
import type { Report } from "../faults.ts";
import type { Kind, PereError, Position } from "../model.ts";
import type { Heads, Joined } from "../store.ts";
import type { Tags } from "../tags.ts";
import { type Batch, blockUntilDrained, type Entry, type Follower, type Log, type Sink } from "./log.ts";

/** Why the server ends a feed: it is shutting down, the feed is due for renewal, the device's right has ended, or there is a temporary problem. */
export type Bye = "drain" | "renew" | "expired" | "busy";

/** How a reader is connected. */
export type Transport = "sse" | "websocket" | "poll";

/** A transport as the engine sees it: one connection that frames and writes. */
export interface Wire {
  /** Absent: an internal cursor, not a connection. */
  readonly transport?: Transport;
  /** The first frame of every feed: the device, and where each channel starts, in the order of the request. */
  ready(device: string | null, starts: readonly { channel: string; position: Position }[]): void;
  /** A promise: the reader is behind until it resolves. */
  write(channel: string, batch: Batch): Promise<unknown> | undefined;
  /** Entries after `after` and before `from` are no longer kept; the feed continues with `from`. */
  gap(channel: string, after: Position, from: Position): void;
  /** The reader has everything on all its channels. Called each time it has caught up. */
  rest(): void;
  /**
   * Nothing was written for `beatMs`: sends a keep-alive. `positions`: how far each channel was read, including entries that are not for this reader.
   */
  beat(positions: readonly Position[]): void;
  /** Sends an event again without moving the reader's position. Returns as `write` does. */
  remind(batch: Batch): Promise<unknown> | undefined;
  /** The device has feeds open from several addresses. Absent: the transport does not report it. */
  shared?(device: string, addresses: readonly string[]): void;
  /** Sends the reason and closes; the feed cleans up after itself. */
  bye(reason: Bye): void;
}

/** What a reader requests. */
export interface FeedRequest {
  readonly kind: Kind;
  readonly channels: readonly string[];
  readonly device: string | null;
  /** The device's tags from here on; null or absent: they stay as they are. */
  readonly tags?: Tags | null;
  /** The positions from `Last-Event-ID`; null: none were given. */
  readonly last: readonly Position[] | null;
  readonly since: "now" | "earliest" | "latest" | readonly Position[];
  /** The owner of the connection, a token's subject or an address; null: an internal cursor. */
  readonly caller: string | null;
  /** The address it was opened from; absent or empty: unknown. */
  readonly address?: string;
  /** Why the feed is refused for now, a temporary problem. */
  readonly refused: PereError | null;
  /** When the reader's right ends, milliseconds since 1970. */
  readonly expires: number;
  /** Whether the feed is renewed periodically, for transports where a dead connection looks like a quiet one. */
  readonly renew: boolean;
}

/** The request of an internal cursor: it is not a connection, so limits and expiry do not apply. */
export const OWN = {
  caller: null,
  refused: null,
  expires: Infinity,
  renew: false,
} as const satisfies Partial<FeedRequest>;

/** What a feed needs from its owner. */
interface FeedOwner {
  /** Ticks so far. */
  readonly tick: number;
  /** A feed's device gave a sign of life. */
  heard(channel: string, device: string): void;
  /** A reader was told why the feed ends. */
  closed(reason: Bye): void;
  /** A feed has ended. */
  release(feed: Feed): void;
  /** An unexpected error happened in a feed. */
  readonly report: Report;
}

/** One connection that follows one or more logs. */
export class Feed implements Sink {
  readonly device: string | null;
  readonly caller: string | null;
  readonly address: string;
  readonly tags: Tags | null;
  readonly logs: Log[];
  readonly followers: Follower[] = [];
  blocked: Promise<unknown> | undefined;
  open = true;
  /** A round has begun while the feed was starting. */
  hasRounds = false;
  /** Whether its device counts as connected. */
  entered = false;
  /** When it ends at the latest, milliseconds since 1970; may be extended. */
  expires: number;
  /** In ticks. */
  wroteAt = 0;
  renewAt = Number.POSITIVE_INFINITY;
  readonly wire: Wire;
  readonly #owner: FeedOwner;
  /** The addresses that its reader was told of. */
  #sharedBy = "";

  constructor(
    owner: FeedOwner,
    { device, caller, address = "", tags = null, expires }: FeedRequest,
    logs: Log[],
    wire: Wire,
  ) {
    this.#owner = owner;
    this.device = device;
    this.caller = caller;
    this.address = address;
    this.tags = tags;
    this.expires = expires;
    this.logs = logs;
    this.wire = wire;
  }

  write(log: Log, batch: Batch): Promise<unknown> | undefined {
    this.wroteAt = this.#owner.tick;
    try {
      return this.wire.write(log.channel, batch);
    } catch (fault) {
      // At once: the next frame of another channel would carry a position beyond what was not written.
      this.#owner.report(fault);
      this.end("busy");
      return undefined;
    }
  }

  again(_log: Log, batch: Batch): Promise<unknown> | undefined {
    this.wroteAt = this.#owner.tick;
    return this.wire.remind(batch);
  }

  /** Sends an entry again, if it was sent before and the reader keeps up. */
  remind(log: Log, batch: Batch): void {
    const follower = this.followers[this.logs.indexOf(log)];
    if (!this.open || this.blocked || !follower || follower.cursor < batch.entries[0]!.seq) return;
    const drained = this.again(log, batch);
    if (drained) blockUntilDrained(this, drained);
  }

  /**
   * Sends another round of an event; as soon as it can, if the reader is behind or the feed is starting.
   * @param head of the log before the entry was read
   * @param batch the entry of that round
   */
  round(log: Log, entry: Entry, round: number, head: number, batch: Batch): void {
    if (!this.open) return;
    const follower = this.followers[this.logs.indexOf(log)];
    if (!follower) this.hasRounds = true;
    else if (this.blocked || follower.cursor < entry.seq || !log.isSendable(entry.seq, head)) log.sendRounds(follower);
    else log.giveRound(follower, entry, round, head, batch);
  }

  /** If the event has not been sent yet, it will be skipped: for good, or until a deferral ends. */
  settle(channel: string, event: Position, isHeld: boolean): void {
    this.followers.forEach((follower, index) => {
      const log = this.logs[index]!;
      if (log.channel !== channel || log.epoch !== event.epoch) return;
      if (isHeld) log.hold(follower, event.seq);
      else log.settle(follower, event.seq);
    });
  }

  gap(log: Log, after: Position, from: Position): void {
    this.wroteAt = this.#owner.tick;
    this.wire.gap(log.channel, after, from);
  }

  rest(): void {
    if (this.open && this.followers.every(({ cursor }, index) => cursor >= this.logs[index]!.head)) this.wire.rest();
  }

  fail(): void {
    this.end("busy");
  }

  /** How far each channel was read. */
  positions(): Position[] {
    return this.followers.map(({ cursor }, index) => ({ epoch: this.logs[index]!.epoch, seq: cursor }));
  }

  /** Tells the reader once that its device is open at these addresses. A reader that is behind is told later. */
  shared(addresses: readonly string[]): void {
    const sharedBy = addresses.join(" ");
    if (!this.open || this.blocked || this.followers.length === 0 || sharedBy === this.#sharedBy) return;
    this.#sharedBy = sharedBy;
    this.wire.shared?.(this.device!, addresses);
  }

  /** The device gave a sign of life. */
  heard(): void {
    if (this.open && this.device !== null) for (const log of this.logs) this.#owner.heard(log.channel, this.device);
  }

  /** Tells the reader why and cleans up. */
  end(reason: Bye): void {
    if (!this.open) return;
    try {
      this.wire.bye(reason);
      if (this.caller !== null) this.#owner.closed(reason);
    } catch (fault) {
      this.#owner.report(fault); // It ends anyway.
    }
    this.stop();
  }

  /** The connection is closed: cleans up. */
  stop(): void {
    if (!this.open) return;
    this.open = false;
    this.#owner.release(this);
  }
}

/** Where one channel of a feed starts. A `gap` is sent before its first event. */
interface Start {
  readonly cursor: number;
  readonly floor: number;
  /** Up to here, only the newest event of each key is sent. */
  readonly latestTo?: number;
  readonly gap?: { readonly after: Position; readonly from: Position };
}

/**
 * Where a feed starts in one log: contract, "GET /feed".
 * @param unknown positions from the request whose epoch belongs to none of the feed's channels
 * @param latestFrom the position before the first event of `since=latest`; otherwise unused
 */
export function startOf(
  heads: Heads | Joined,
  { kind, last, since }: FeedRequest,
  unknown: readonly Position[],
  latestFrom: number,
): Start {
  const { epoch } = heads;
  const { head, floor: trimmed } = heads[kind];
  const at = (seq: number): Position => ({ epoch, seq });
  // Events from before the device was enrolled are for it only if they name it, whatever its position.
  const least = "joined" in heads ? heads.joined : 0;
  const from = (seq: number) => ({ cursor: seq, floor: Math.max(seq, least) });
  const resume = (positions: readonly Position[]): Start | null => {
    const own = positions.find((position) => position.epoch === epoch);
    if (own && own.seq <= head) return from(own.seq);
    // A position in another epoch of this channel, or beyond its end: the log was lost or restored. Send everything, after a gap.
    const after = own ?? unknown[0];
    // A reader that saw no event has missed none.
    if (heads.isUnborn && after && unknown.every(({ seq }) => seq === 0)) return from(0);
    return after ? { ...from(trimmed), gap: { after, from: at(trimmed + 1) } } : null;
  };
  const resumed = last && resume(last);
  if (resumed) return resumed;
  if (since === "latest")
    return { cursor: Math.max(trimmed, Math.min(head, latestFrom)), floor: Math.max(head, least), latestTo: head };
  if ("joined" in heads && (heads.enrolled || heads.settled < head)) {
    const { joined, settled, lostSeq } = heads;
    const start = { cursor: Math.max(settled, trimmed), floor: joined };
    return lostSeq === 0
      ? start
      : { ...start, gap: { after: at(Math.min(joined, lostSeq - 1)), from: at(trimmed + 1) } };
  }
  if (since === "earliest") return from(trimmed);
  return (since !== "now" && resume(since)) || from(head);
}
