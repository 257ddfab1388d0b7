/**
 * Runs one hook: a cursor on its channel's receipts log, with a feed like any other follower.
 *
 * Entries are grouped into calls. Each call is tried at once; then, in one change, the cursor advances and the failed calls are stored as deliveries.
 * So a crash between a call and the commit loses nothing: the entries are read again. Deliveries are retried by the schedule below, independently of
 * new calls. A receiver that is down delays only its own hook, which stops reading when too many deliveries are pending.
 *
 * A runner begins no call after its lease, and stores nothing after another instance took over: its fence is part of every change.
 */
import { createHash } from "node:crypto";
import { type Report, unexpected } from "../faults.ts";
import { type Bye, type Feed, type FeedRequest, OWN, type Wire } from "../feeds/feed.ts";
import type { Counters, HookResult } from "../counters.ts";
import type { AddressRange } from "../addresses.ts";
import { type CallOptions, callHook } from "./call.ts";
import { id, iso, noteText, PereError, type Position, type State } from "../model.ts";
import {
  type Delivered,
  type Delivery,
  type Hook,
  type HookKind,
  type Progress,
  type Store,
  TRIES_MAX,
} from "../store.ts";
import type { Batch, Entry } from "../feeds/log.ts";
import { yieldToEventLoop } from "../yield.ts";

/** Milliseconds before each attempt: the schedule of Standard Webhooks. */
const SCHEDULE_MS = [0, 5_000, 5 * 60_000, 30 * 60_000, 2 * 3600_000, 5 * 3600_000, 10 * 3600_000] as const;
/** Random variation of the schedule, so that calls that failed together are not retried together. */
const JITTER = 0.1;
/** Receipts per call: contract. */
const RECEIPTS_A_CALL = 100;
/** The same limit in characters: details may be long, and pending deliveries are held in memory. */
const CHARACTERS_A_CALL = 64 * 1024;
/** Pending deliveries; at this number the hook stops reading. */
const WAITING_MAX = 100;
/** Characters of an answer's body that are kept with an attempt. */
const TRY_CHARACTERS = 256;
/** Given-up deliveries that are kept. */
const GIVEN_UP_MAX = 1_000;
/** For this long after a change of its secret, a hook signs with both secrets, so that the receiver can switch at any time. */
const HANDOVER_MS = 24 * 3600_000;
/** What a call counts, and the start of a hook, in rows: a call is signed and connects, a start reads deliveries and opens a feed. */
export const CALL_ROWS = 512;
const START_ROWS = 64;
/** Delay before a failed step is retried: opening a feed, storing a result. */
const AGAIN_MS = 1_000;

/** What hooks need from the engine. */
export interface HookOptions {
  /** Counts attempts. */
  readonly counts: Counters;
  readonly follow: (request: FeedRequest, wire: Wire) => Feed;
  /** An event's state as its publisher's JSON text. @throws PereError unknown */
  readonly state: (channel: string, id: string) => Promise<string>;
  readonly allowed: readonly AddressRange[];
  readonly call: CallOptions;
  readonly now: () => number;
  /** The time that a call says it was made at. */
  readonly stamp: () => number;
  readonly random: () => number;
  /** Receives unexpected errors. */
  readonly report: Report;
}

/** A call to be made. */
interface Message {
  readonly kind: HookKind | "gap";
  /** Its entries' positions in the receipts log. */
  readonly first: Position;
  readonly last: number;
  readonly body: string;
}

/** A running hook. */
export class Runner implements Wire {
  readonly hook: Hook;
  readonly fence: number;
  /** When the lease ends, by the monotonic clock. */
  until: number;
  stopped = false;
  /** It was stopped and stores nothing more: the results of its calls are stored or no longer needed. */
  ended = false;
  readonly #store: Store;
  readonly #options: HookOptions;
  #abandoned = false;
  #feed: Feed | undefined;
  #cursor: Position;
  /** Pending deliveries, in the order of their first attempt. */
  readonly #waiting = new Map<string, Delivery>();
  #given = 0;
  /** New entries are processed one after the other, so that the cursor only advances. Never rejects. */
  #work: Promise<void>;
  #retrying: Promise<void> | undefined;
  #room = Promise.withResolvers<void>();
  /** Until when the receiver asked not to be called, milliseconds since 1970; a hook that is changed or retried ignores it. */
  #quietUntil = 0;
  /** The last successful call that is not stored yet. */
  #lastDelivered: Delivered | undefined;

  constructor(store: Store, options: HookOptions, hook: Hook, fence: number, until: number) {
    this.#store = store;
    this.#options = options;
    this.hook = hook;
    this.fence = fence;
    this.until = until;
    this.#cursor = hook.cursor;
    // If the store is away, the next check starts again.
    this.#work = this.#start().catch((error: unknown) => {
      unexpected(options.report, error);
      void this.stop();
    });
  }

  async #start(): Promise<void> {
    await yieldToEventLoop("hooks", START_ROWS);
    for (const delivery of await this.#store.deliveries(this.hook.channel, this.hook.name))
      if (delivery.nextAt === null) this.#given++;
      else this.#waiting.set(delivery.id, delivery);
    this.#open();
  }

  #open(): void {
    if (this.stopped || this.#feed?.open) return;
    const { channel } = this.hook;
    this.#feed = this.#options.follow(
      { ...OWN, kind: "receipts", channels: [channel], device: null, last: [this.#cursor], since: "now" },
      this,
    );
  }

  /** Begins no more calls. @returns when those in flight have ended and their results are stored */
  async stop(): Promise<void> {
    this.stopped = true;
    this.#room.resolve();
    this.#feed?.stop();
    await Promise.all([this.#work, this.#retrying]);
    this.ended = true;
  }

  /** The hook was removed: nothing more is stored, because a new hook may have its name. */
  abandon(): void {
    this.#abandoned = this.ended = true;
    void this.stop();
  }

  // ----------------------------------------------------------------------------------------------------------------- new entries

  write(_channel: string, { entries }: Batch): Promise<unknown> {
    const feed = this.#feed!;
    const { epoch } = feed.logs[0]!; // From these entries; the log may have a new epoch by the time they are sent.
    return this.#then(feed, async () => {
      for (let from = 0; from < entries.length && feed.open;) {
        const upTo = endOfCall(entries, from);
        const some = entries.slice(from, upTo);
        await this.#send(await this.#messages(epoch, some), { epoch, seq: some.at(-1)!.seq });
        from = upTo;
      }
    });
  }

  gap(channel: string, after: Position, from: Position): void {
    const [first, last] = [from, from.seq - 1];
    const data = JSON.stringify({ channel, after: id(after.epoch, after.seq), from: id(from.epoch, from.seq) });
    const body = bodyOf("gap", this.#options.now(), data);
    void this.#then(this.#feed!, () =>
      this.#send([{ kind: "gap", first, last, body }], { epoch: from.epoch, seq: last }),
    );
  }

  bye(reason: Bye): void {
    if (reason === "busy") this.#again();
    else void this.stop();
  }

  ready(): void {}
  rest(): void {}
  beat(): void {}
  remind(): undefined {}

  /** Work from a feed; skipped once that feed is closed, because the next feed brings it again. */
  #then(feed: Feed, work: () => Promise<void>): Promise<unknown> {
    this.#work = this.#work
      .then(() => (feed.open ? work() : undefined))
      .catch((error: unknown) => {
        unexpected(this.#options.report, error);
        this.#again();
      });
    return this.#work;
  }

  /** Restarts from the cursor, after a delay. */
  #again(): void {
    this.#feed?.stop();
    setTimeout(() => (this.#work = this.#work.then(() => this.#open()).catch(this.#options.report)), AGAIN_MS).unref();
  }

  /** The calls for some entries. */
  async #messages(epoch: string, entries: readonly Entry[]): Promise<Message[]> {
    const { channel, on } = this.hook;
    const messages: Message[] = [];
    for (const kind of RECEIPT_KINDS) {
      if (!on.includes(kind)) continue;
      const said = entries.filter(({ text, receipt }) => text !== "" && isTold(kind, receipt!.status));
      if (said.length === 0) continue;
      const [first, last] = [said[0]!, said.at(-1)!];
      const data = `{"channel":"${channel}","receipts":[${said.map(({ text }) => text).join(",")}]}`;
      const body = bodyOf(kind, last.receipt!.at, data);
      messages.push({ kind, first: { epoch, seq: first.seq }, last: last.seq, body });
    }
    for (const { seq, receipt, note } of entries) {
      const kind = note?.kind;
      if ((kind === "complete" || kind === "settled") && on.includes(kind)) {
        const state = await this.#options.state(channel, id(epoch, receipt!.event)).catch((error: unknown) => {
          if (error instanceof PereError && error.code === "unknown") return noteText(channel, epoch, receipt!); // It is no longer kept.
          throw error;
        });
        messages.push({
          kind,
          first: { epoch, seq },
          last: seq,
          body: bodyOf(kind, receipt!.at, state),
        });
      }
    }
    return messages;
  }

  /** Makes the calls; then, in one change, advances the cursor and stores what failed. @throws PereError away: the cursor did not move */
  async #send(messages: readonly Message[], cursor: Position): Promise<void> {
    while (this.#waiting.size >= WAITING_MAX && !this.stopped) await this.#room.promise;
    if (!this.#mayCall()) throw new PereError("away", "the lease has expired");
    const keep: Delivery[] = [];
    for (const { kind, first, last, body } of messages) {
      await yieldToEventLoop("hooks", CALL_ROWS);
      const name = `${this.hook.createdAt}/${nameOf(this.hook)}/${kind}/${id(first.epoch, first.seq)}/${last}`;
      const now = this.#options.now();
      const fresh: Delivery = {
        id: `msg_${createHash("sha256").update(name).digest("base64url").slice(0, 27)}`,
        body,
        createdAt: now,
        attempts: 0,
        nextAt: Math.max(now, this.#quietUntil),
        status: null,
        error: null,
        tries: [],
      };
      // If it was stopped between two calls, the next runner makes the second one. A receiver that asked not to be called is not called.
      const left = this.#mayCall() && now >= this.#quietUntil ? await this.#try(fresh) : fresh;
      if (left === "gone") return; // The cursor stays, so enabling the hook again misses nothing.
      if (left) keep.push(left);
    }
    if (!(await this.#progress({ cursor, keep }))) return;
    this.#cursor = cursor;
    for (const delivery of keep) this.#waiting.set(delivery.id, delivery);
  }

  // ------------------------------------------------------------------------------------------------------------------------ retries

  /** Called periodically: retries what is due, one after the other. */
  tick(): void {
    if (this.#retrying || !this.#mayCall()) return;
    const now = this.#options.now();
    if (now < this.#quietUntil) return;
    const due = this.#due(now);
    if (!due) return;
    this.#retrying = this.#retry(due).then(
      () => {
        this.#retrying = undefined;
        this.tick();
      },
      (error: unknown) => {
        // If the store was away until the runner was stopped, the next runner retries it.
        this.#retrying = undefined;
        unexpected(this.#options.report, error);
      },
    );
  }

  /** The first pending delivery that is due. */
  #due(now: number): Delivery | undefined {
    for (const delivery of this.#waiting.values()) if (delivery.nextAt! <= now) return delivery;
    return undefined;
  }

  async #retry(delivery: Delivery): Promise<void> {
    await yieldToEventLoop("hooks", CALL_ROWS);
    // Meanwhile it may have been stopped, its lease may have expired, or the receiver may have asked not to be called.
    if (!this.#mayCall() || this.#options.now() < this.#quietUntil) return;
    const left = await this.#try(delivery);
    if (left === "gone") return;
    if (!(await this.#progress(left ? { keep: [left] } : { drop: [delivery.id] }))) return;
    if (left && left.nextAt !== null) return void this.#waiting.set(left.id, left);
    this.#waiting.delete(delivery.id);
    this.#room.resolve();
    this.#room = Promise.withResolvers<void>();
    if (left && ++this.#given >= GIVEN_UP_MAX)
      await this.#disable(`${GIVEN_UP_MAX} calls were given up; retry them, or remove the hook`);
  }

  // ------------------------------------------------------------------------------------------------------------------------ calls

  #mayCall(): boolean {
    return !this.stopped && performance.now() < this.until;
  }

  /** One attempt. @returns null: done; the delivery to store; gone: the receiver wants no more calls */
  async #try(delivery: Delivery): Promise<Delivery | null | "gone"> {
    const { url, secret } = this.hook;
    const { allowed, call, now, stamp, random, counts } = this.#options;
    const formerSecrets = formerSecretsOf(this.hook, delivery.createdAt, now());
    const { id, body } = delivery;
    const hookCall = { id, body, url, secret, formerSecrets, at: stamp() };
    const answer = await callHook(hookCall, allowed, call);
    const { status, ms, quietMs = 0 } = answer;
    const result = resultOf(status);
    counts.hookTries[result]++;
    if (result === "delivered") {
      this.#lastDelivered = { at: hookCall.at, status: status!, ms };
      return null;
    }
    if (result === "gone" && (await this.#isCurrent())) {
      await this.#disable("the receiver answered 410 Gone");
      return "gone";
    }
    const attempts = delivery.attempts + 1;
    const wait = SCHEDULE_MS[attempts];
    if (wait === undefined) counts.hookGivenUp++;
    this.#quietUntil = Math.max(this.#quietUntil, now() + quietMs);
    const nextAt =
      wait === undefined ? null : now() + Math.max(quietMs, Math.round(wait * (1 - JITTER + 2 * JITTER * random())));
    const error = answer.error ?? `HTTP ${status}`;
    const tried = { at: hookCall.at, status, error, ms, body: answer.body?.slice(0, TRY_CHARACTERS) ?? null };
    return { ...delivery, attempts, nextAt, status, error, tries: [...delivery.tries, tried].slice(-TRIES_MAX) };
  }

  /** Whether the hook is unchanged since the runner began: an answer from an old URL says nothing about a new one. */
  async #isCurrent(): Promise<boolean> {
    const { channel, name, revision } = this.hook;
    const hooks = await this.#store.hooks(channel).catch(() => []);
    return hooks.some((hook) => hook.name === name && hook.revision === revision);
  }

  async #disable(disabled: string): Promise<void> {
    await this.#progress({ disabled });
    void this.stop();
  }

  /**
   * Stores results. While the store is away, retries until it succeeds: the calls were made and must not be repeated.
   * @returns false: another instance runs the hook, or it was removed; @throws PereError away: the runner was stopped meanwhile
   */
  async #progress(progress: Progress): Promise<boolean> {
    const { channel, name, createdAt: of } = this.hook;
    const lastDelivered = this.#lastDelivered;
    const all = { of, ...progress, ...(lastDelivered ? { lastDelivered } : {}) };
    for (;;) {
      try {
        const isKept = !this.#abandoned && (await this.#store.progress(channel, name, this.fence, all));
        if (this.#lastDelivered === lastDelivered) this.#lastDelivered = undefined;
        if (!isKept) void this.stop();
        return isKept;
      } catch (error) {
        if (this.stopped) throw error;
        unexpected(this.#options.report, error);
        await Bun.sleep(AGAIN_MS);
      }
    }
  }
}

/**
 * The former secrets that a call is also signed with. One from before a change is signed with the old secret as long as it is retried; others for a
 * while.
 */
export function formerSecretsOf({ secret, former }: Hook, createdAt: number, now: number): string[] {
  const both = former.filter(({ until }) => createdAt <= until || now < until + HANDOVER_MS);
  return [...new Set(both.map((one) => one.secret))].filter((one) => one !== secret);
}

/** What a hook is called for with receipts. */
const RECEIPT_KINDS = ["receipt", "missing", "failed"] as const;

/** Whether a call of this kind has this receipt. A `failed` in the log is final: one with attempts left is `deferred` there. */
const isTold = (kind: (typeof RECEIPT_KINDS)[number], status: State): boolean =>
  kind === "receipt" ? status !== "missing" : status === kind;

/** Where the call that begins with this entry ends: it has a limit of receipts and of characters. */
function endOfCall(entries: readonly Entry[], from: number): number {
  let upTo = from;
  for (let characters = 0; upTo < entries.length && upTo - from < RECEIPTS_A_CALL; upTo++) {
    characters += entries[upTo]!.text.length;
    if (characters > CHARACTERS_A_CALL && upTo > from) break;
  }
  return upTo;
}

/** A hook's name among all hooks. */
const resultOf = (status: number | null): HookResult => {
  if (status === null) return "unreachable";
  return status >= 200 && status < 300 ? "delivered" : status === 410 ? "gone" : "refused";
};

export const nameOf = ({ channel, name }: Hook): string => `${channel}/${name}`;

export const bodyOf = (kind: Message["kind"] | "test", at: number, data: string): string =>
  `{"type":"pere.${kind}","timestamp":"${iso(at)}","data":${data}}`;
