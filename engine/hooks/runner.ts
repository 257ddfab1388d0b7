/**
 * One hook at work: a cursor on its channel's receipts log, and a feed like any other.
 *
 * What comes is gathered into calls, each is tried at once, and then, in one change, the cursor moves on and the calls that failed are kept as
 * deliveries. So a crash between commit and call loses nothing: the entries are read again. A delivery is tried again by the schedule
 * below, beside what is new; a receiver that is down holds up only itself, and its hook stops reading when too much waits for it.
 *
 * A runner begins no call after its lease, and keeps nothing once it was overtaken: its fence goes with all that it writes.
 */
import { createHash } from "node:crypto";
import { type Report, unexpected } from "../faults.ts";
import { type Bye, type Feed, type FeedRequest, OWN, type Wire } from "../feeds/feed.ts";
import type { Counters, HookResult } from "../counters.ts";
import type { AddressRange } from "../addresses.ts";
import { type CallOptions, callHook } from "./call.ts";
import { completeText, id, iso, PereError, type Position } from "../model.ts";
import type { Delivery, Hook, HookKind, Progress, Store } from "../store.ts";
import type { Batch, Entry } from "../feeds/log.ts";

/** Milliseconds before each try: Standard Webhooks' schedule. */
const SCHEDULE_MS = [0, 5_000, 5 * 60_000, 30 * 60_000, 2 * 3600_000, 5 * 3600_000, 10 * 3600_000] as const;
/** A time of the schedule, give or take: what failed together need not come back together. */
const JITTER = 0.1;
/** Receipts in one call: contract. */
const RECEIPTS_A_CALL = 100;
/** The same in characters: details may be long, and what waits for another try is held in memory. */
const CHARACTERS_A_CALL = 64 * 1024;
/** Deliveries that wait for another try; with so many a hook reads no further. */
const WAITING_MAX = 100;
/** Deliveries that were given up. Who lets so many of them go by has gone himself. */
const GIVEN_UP_MAX = 1_000;
/** So long after a change of its secret all that a hook sends is signed with both, so that the receiver may change when it likes. */
const HANDOVER_MS = 24 * 3600_000;
/** After this, what did not go is tried again: a feed is opened, something is kept. */
const AGAIN_MS = 1_000;

/** What hooks need of the engine. */
export interface HookOptions {
  /** Where tries are counted. */
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
  /** Told of what should never happen. */
  readonly report: Report;
}

/** A call that is to be made. */
interface Message {
  readonly kind: HookKind | "gap";
  /** Where its entries are in the receipts log. */
  readonly first: Position;
  readonly last: number;
  readonly body: string;
}

/** One hook at work. */
export class Runner implements Wire {
  readonly hook: Hook;
  readonly fence: number;
  /** Until when the lease holds, by the monotonic clock. */
  until: number;
  stopped = false;
  /** It was stopped, and keeps nothing any more: what became of its calls is kept, or is of no interest. */
  ended = false;
  readonly #store: Store;
  readonly #options: HookOptions;
  #abandoned = false;
  #feed: Feed | undefined;
  #cursor: Position;
  /** What waits for another try, in the order of its first one. */
  readonly #waiting = new Map<string, Delivery>();
  #given = 0;
  /** What is new is worked off one after the other, so that the cursor only moves on. Never rejects. */
  #work: Promise<void>;
  #retrying: Promise<void> | undefined;
  #room = Promise.withResolvers<void>();
  /** Until when the receiver asked to be left alone, milliseconds since 1970; a hook that is stored anew or retried does not wait for that. */
  #quietUntil = 0;

  constructor(store: Store, options: HookOptions, hook: Hook, fence: number, until: number) {
    this.#store = store;
    this.#options = options;
    this.hook = hook;
    this.fence = fence;
    this.until = until;
    this.#cursor = hook.cursor;
    // Where the store is away, whoever looks next begins anew.
    this.#work = this.#start().catch((error: unknown) => {
      unexpected(options.report, error);
      void this.stop();
    });
  }

  async #start(): Promise<void> {
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

  /** Begins no call any more. @returns when those in flight have ended, and their outcome is kept */
  async stop(): Promise<void> {
    this.stopped = true;
    this.#room.resolve();
    this.#feed?.stop();
    await Promise.all([this.#work, this.#retrying]);
    this.ended = true;
  }

  /** The hook is gone: of what becomes of its calls nothing is kept. Its name may belong to another by then. */
  abandon(): void {
    this.#abandoned = this.ended = true;
    void this.stop();
  }

  // ----------------------------------------------------------------------------------------------------------------- what is new

  write(_channel: string, { entries }: Batch): Promise<unknown> {
    const feed = this.#feed!;
    const { epoch } = feed.logs[0]!; // Of these entries; by the time that they are sent the log may begin anew.
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

  /** Work that came from a feed; left out once that feed is closed, for the next one brings it again. */
  #then(feed: Feed, work: () => Promise<void>): Promise<unknown> {
    this.#work = this.#work
      .then(() => (feed.open ? work() : undefined))
      .catch((error: unknown) => {
        unexpected(this.#options.report, error);
        this.#again();
      });
    return this.#work;
  }

  /** Once more from where the cursor is, a little later. */
  #again(): void {
    this.#feed?.stop();
    setTimeout(() => (this.#work = this.#work.then(() => this.#open()).catch(this.#options.report)), AGAIN_MS).unref();
  }

  /** What is to be said of some entries. */
  async #messages(epoch: string, entries: readonly Entry[]): Promise<Message[]> {
    const { channel, on } = this.hook;
    const messages: Message[] = [];
    const isMissing = ({ receipt }: Entry): boolean => receipt!.status === "missing";
    for (const kind of ["receipt", "missing"] as const) {
      const said = entries.filter((entry) => entry.text !== "" && isMissing(entry) === (kind === "missing"));
      if (said.length === 0 || !on.includes(kind)) continue;
      const [first, last] = [said[0]!, said.at(-1)!];
      const data = `{"channel":"${channel}","receipts":[${said.map(({ text }) => text).join(",")}]}`;
      const body = bodyOf(kind, last.receipt!.at, data);
      messages.push({ kind, first: { epoch, seq: first.seq }, last: last.seq, body });
    }
    for (const { seq, receipt, complete } of on.includes("complete") ? entries : [])
      if (complete !== null) {
        const state = await this.#options.state(channel, id(epoch, receipt!.event)).catch((error: unknown) => {
          if (error instanceof PereError && error.code === "unknown") return completeText(channel, epoch, receipt!); // It is no longer kept.
          throw error;
        });
        messages.push({
          kind: "complete",
          first: { epoch, seq },
          last: seq,
          body: bodyOf("complete", receipt!.at, state),
        });
      }
    return messages;
  }

  /** Makes the calls, and then, in one change, moves the cursor and keeps what failed. @throws PereError away: the cursor is where it was */
  async #send(messages: readonly Message[], cursor: Position): Promise<void> {
    while (this.#waiting.size >= WAITING_MAX && !this.stopped) await this.#room.promise;
    if (!this.#mayCall()) throw new PereError("away", "the lease has run out");
    const keep: Delivery[] = [];
    for (const { kind, first, last, body } of messages) {
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
      };
      // Who is stopped between two calls leaves the second to whoever comes next; and a receiver that asked to be left alone is.
      const left = this.#mayCall() && now >= this.#quietUntil ? await this.#try(fresh) : fresh;
      if (left === "gone") return; // The cursor stays; who enables the hook again misses nothing.
      if (left) keep.push(left);
    }
    if (!(await this.#progress({ cursor, keep }))) return;
    this.#cursor = cursor;
    for (const delivery of keep) this.#waiting.set(delivery.id, delivery);
  }

  // ------------------------------------------------------------------------------------------------------------- what failed before

  /** Called from time to time: tries again what is due, one after the other. */
  tick(): void {
    if (this.#retrying || !this.#mayCall()) return;
    const now = this.#options.now();
    if (now < this.#quietUntil) return;
    const due = [...this.#waiting.values()].find(({ nextAt }) => nextAt! <= now);
    if (!due) return;
    this.#retrying = this.#retry(due).then(
      () => {
        this.#retrying = undefined;
        this.tick();
      },
      (error: unknown) => {
        // Where the store was away until the runner was stopped, whoever comes next tries it again.
        this.#retrying = undefined;
        unexpected(this.#options.report, error);
      },
    );
  }

  async #retry(delivery: Delivery): Promise<void> {
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

  // ---------------------------------------------------------------------------------------------------------------------- the call

  #mayCall(): boolean {
    return !this.stopped && performance.now() < this.until;
  }

  /** One try. @returns null: it is done; the delivery to keep; gone: the receiver wants no more of them */
  async #try(delivery: Delivery): Promise<Delivery | null | "gone"> {
    const { url, secret } = this.hook;
    const { allowed, call, now, stamp, random, counts } = this.#options;
    const formerSecrets = this.#formerSecrets(delivery, now());
    const hookCall = { ...delivery, url, secret, formerSecrets, at: stamp() };
    const { status, error, quietMs = 0 } = await callHook(hookCall, allowed, call);
    const result = resultOf(status);
    counts.hookTries[result]++;
    if (result === "delivered") return null;
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
    return { ...delivery, attempts, nextAt, status, error: error ?? `HTTP ${status}` };
  }

  /**
   * The secrets that a delivery is signed with beside the hook's. One from before a change is signed with what held then for as long as it is tried
   * again; any other for a while.
   */
  #formerSecrets({ createdAt }: Delivery, now: number): string[] {
    const { secret, former } = this.hook;
    const both = former.filter(({ until }) => createdAt <= until || now < until + HANDOVER_MS);
    return [...new Set(both.map((one) => one.secret))].filter((one) => one !== secret);
  }

  /** Whether the hook is as it was when the runner began: what an old place answers says nothing of a new one. */
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
   * Keeps what was done. While the store is away it is asked again and again: the calls were made, and must not be made anew for that.
   * @returns false: another runs the hook, or it is gone; @throws PereError away, when the runner was stopped meanwhile
   */
  async #progress(progress: Progress): Promise<boolean> {
    const { channel, name } = this.hook;
    for (;;) {
      try {
        const isKept =
          !this.#abandoned &&
          (await this.#store.progress(channel, name, this.fence, { of: this.hook.createdAt, ...progress }));
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

/** Where the call ends that begins with this entry: it takes so many receipts, and so many characters. */
function endOfCall(entries: readonly Entry[], from: number): number {
  let upTo = from;
  for (let characters = 0; upTo < entries.length && upTo - from < RECEIPTS_A_CALL; upTo++) {
    characters += entries[upTo]!.text.length;
    if (characters > CHARACTERS_A_CALL && upTo > from) break;
  }
  return upTo;
}

/** A hook among all of them. */
const resultOf = (status: number | null): HookResult => {
  if (status === null) return "unreachable";
  return status >= 200 && status < 300 ? "delivered" : status === 410 ? "gone" : "refused";
};

export const nameOf = ({ channel, name }: Hook): string => `${channel}/${name}`;

const bodyOf = (kind: Message["kind"], at: number, data: string): string =>
  `{"type":"pere.${kind}","timestamp":"${iso(at)}","data":${data}}`;
