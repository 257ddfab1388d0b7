/**
 * One feed: what a reader asks for and where that starts, what a transport is to the engine, and the connection itself, which stands between the
 * two: followers on the logs that it asked for, and one wire that frames and writes.
 */
import type { Report } from "../faults.ts";
import type { Kind, PereError, Position } from "../model.ts";
import type { Heads, Joined } from "../store.ts";
import { type Batch, type Follower, blockUntilDrained, type Log, type Sink } from "./log.ts";

/** Why the server ends a feed: it is going away, the feed is due for renewal, the device may not go on, there is trouble that passes. */
export type Bye = "drain" | "renew" | "expired" | "busy";

/** How a reader is connected. */
export type Transport = "sse" | "websocket" | "poll";

/** What a transport is to the engine: one connection that frames and writes. */
export interface Wire {
  /** Absent: PERE's own cursor, no connection. */
  readonly transport?: Transport;
  /** First on every feed: who it is and where each channel starts, in the order of the request. */
  ready(device: string | null, starts: readonly { channel: string; position: Position }[]): void;
  /** A promise: the reader is behind until it resolves. */
  write(channel: string, batch: Batch): Promise<unknown> | undefined;
  /** Entries after `after` and before `from` are no longer kept; the feed goes on with `from`. */
  gap(channel: string, after: Position, from: Position): void;
  /** The reader has everything there is, on all its channels; said each time that it has caught up. */
  rest(): void;
  /** Nothing was written for `beatMs`: a sign of life. `positions`: how far each channel has come, given or not for this reader. */
  beat(positions: readonly Position[]): void;
  /** One entry once more; the reader's position stays where it is. Returns as `write` does. */
  remind(batch: Batch): Promise<unknown> | undefined;
  /** The device has feeds open from several addresses. Absent: nobody is to be told. */
  shared?(device: string, addresses: readonly string[]): void;
  /** Tells why and closes; the feed lets go of everything by itself. */
  bye(reason: Bye): void;
}

/** What a reader asks for. */
export interface FeedRequest {
  readonly kind: Kind;
  readonly channels: readonly string[];
  readonly device: string | null;
  /** Where it was, from `Last-Event-ID`; null: it did not say. */
  readonly last: readonly Position[] | null;
  readonly since: "now" | "earliest" | readonly Position[];
  /** Whose connection it is, a token's bearer or an address; null: PERE's own cursor. */
  readonly caller: string | null;
  /** From where it is opened; absent or empty: that is not known. */
  readonly address?: string;
  /** Why the reader may not have it now: trouble that passes. */
  readonly refused: PereError | null;
  /** When the reader's right to it ends, milliseconds since 1970. */
  readonly expires: number;
  /** Whether the feed is ended and begun anew from time to time: where a dead link can't be told from a quiet one. */
  readonly renew: boolean;
}

/** What a cursor of PERE's own asks for: it is no connection, so a full house does not turn it away, and nothing ends it. */
export const OWN = {
  caller: null,
  refused: null,
  expires: Infinity,
  renew: false,
} as const satisfies Partial<FeedRequest>;

/** What a feed needs of those who keep all of them. */
interface FeedOwner {
  /** Turns of the wheel so far. */
  readonly tick: number;
  /** The device of a feed was really heard from. */
  heard(channel: string, device: string): void;
  /** A reader was told why his feed ends. */
  told(reason: Bye): void;
  /** A feed has ended. */
  release(feed: Feed): void;
  /** What should not happen happened to a feed. */
  readonly report: Report;
}

/** One connection that follows one or more logs. */
export class Feed implements Sink {
  readonly device: string | null;
  readonly caller: string | null;
  readonly address: string;
  readonly logs: Log[];
  readonly followers: Follower[] = [];
  blocked: Promise<unknown> | undefined;
  open = true;
  /** Whether its device counts as connected. */
  entered = false;
  /** When it ends at the latest, milliseconds since 1970; somebody may put it off. */
  expires: number;
  /** Turns of the wheel. */
  wroteAt = 0;
  renewAt = Number.POSITIVE_INFINITY;
  readonly wire: Wire;
  readonly #house: FeedOwner;
  /** The addresses that its reader was told of. */
  #sharedBy = "";

  constructor(house: FeedOwner, { device, caller, address = "", expires }: FeedRequest, logs: Log[], wire: Wire) {
    this.#house = house;
    this.device = device;
    this.caller = caller;
    this.address = address;
    this.expires = expires;
    this.logs = logs;
    this.wire = wire;
  }

  write(log: Log, batch: Batch): Promise<unknown> | undefined {
    this.wroteAt = this.#house.tick;
    try {
      return this.wire.write(log.channel, batch);
    } catch (fault) {
      // At once: what another channel of the feed says next would carry a position behind what was not written.
      this.#house.report(fault);
      this.end("busy");
      return undefined;
    }
  }

  /** An entry once more, when it was given before and the reader keeps up. */
  remind(log: Log, batch: Batch): void {
    const follower = this.followers[this.logs.indexOf(log)];
    if (!this.open || this.blocked || !follower || follower.cursor < batch.entries[0]!.seq) return;
    this.wroteAt = this.#house.tick;
    const drained = this.wire.remind(batch);
    if (drained) blockUntilDrained(this, drained);
  }

  /** Where the event is still to come, it is passed over. */
  settle(channel: string, event: Position): void {
    this.followers.forEach((follower, index) => {
      const log = this.logs[index]!;
      if (log.channel === channel && log.epoch === event.epoch) log.settle(follower, event.seq);
    });
  }

  gap(log: Log, after: Position, from: Position): void {
    this.wroteAt = this.#house.tick;
    this.wire.gap(log.channel, after, from);
  }

  rest(): void {
    if (this.open && this.followers.every(({ cursor }, index) => cursor >= this.logs[index]!.head)) this.wire.rest();
  }

  fail(): void {
    this.end("busy");
  }

  /** How far each channel has come. */
  positions(): Position[] {
    return this.followers.map(({ cursor }, index) => ({ epoch: this.logs[index]!.epoch, seq: cursor }));
  }

  /** Tells the reader, once, that its device is open at these addresses. One that does not keep up is told another time. */
  shared(addresses: readonly string[]): void {
    const sharedBy = addresses.join(" ");
    if (!this.open || this.blocked || this.followers.length === 0 || sharedBy === this.#sharedBy) return;
    this.#sharedBy = sharedBy;
    this.wire.shared?.(this.device!, addresses);
  }

  /** The device gave a sign of life. */
  heard(): void {
    if (this.open && this.device !== null) for (const log of this.logs) this.#house.heard(log.channel, this.device);
  }

  /** Tells the reader why, and lets go of everything. */
  end(reason: Bye): void {
    if (!this.open) return;
    try {
      this.wire.bye(reason);
      if (this.caller !== null) this.#house.told(reason);
    } catch (fault) {
      this.#house.report(fault); // It is over all the same.
    }
    this.stop();
  }

  /** The connection is gone: lets go of everything. */
  stop(): void {
    if (!this.open) return;
    this.open = false;
    this.#house.release(this);
  }
}

/** Where one channel of a feed starts. A `gap` is told before its first event. */
interface Start {
  readonly cursor: number;
  readonly floor: number;
  readonly gap?: { readonly after: Position; readonly from: Position };
}

/**
 * Where a feed starts in one log: contract, "GET /feed".
 * @param strangers positions that the reader gave and that belong to no life of the feed's channels
 */
export function startOf(
  heads: Heads | Joined,
  { kind, last, since }: FeedRequest,
  strangers: readonly Position[],
): Start {
  const { epoch } = heads;
  const { head, floor: trimmed } = heads[kind];
  const at = (seq: number): Position => ({ epoch, seq });
  // Of what was pushed before a device was enrolled, only what names it is for it, whatever place it comes with.
  const least = "joined" in heads ? heads.joined : 0;
  const from = (seq: number) => ({ cursor: seq, floor: Math.max(seq, least) });
  const resume = (positions: readonly Position[]): Start | null => {
    const own = positions.find((position) => position.epoch === epoch);
    if (own && own.seq <= head) return from(own.seq);
    // A place in another life of this channel, or beyond its end: the log was lost or put back. All there is, and a gap.
    const after = own ?? strangers[0];
    // Who has seen nothing has missed nothing where nothing was.
    if (heads.isUnborn && after && strangers.every(({ seq }) => seq === 0)) return from(0);
    return after ? { ...from(trimmed), gap: { after, from: at(trimmed + 1) } } : null;
  };
  const resumed = last && resume(last);
  if (resumed) return resumed;
  if ("joined" in heads && (heads.enrolled || heads.settled < head)) {
    const { joined, settled, lost } = heads;
    const start = { cursor: Math.max(settled, trimmed), floor: joined };
    return lost === 0 ? start : { ...start, gap: { after: at(Math.min(joined, lost - 1)), from: at(trimmed + 1) } };
  }
  if (since === "earliest") return from(trimmed);
  return (since !== "now" && resume(since)) || from(head);
}
