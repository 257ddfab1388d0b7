/**
 * The outbox: receipts wait in it, in order, until the service has answered for each. They go out together, over the feed's WebSocket or by POST.
 */
import { answerOf, type ReceiptsAnswer } from "./entries.ts";
import type { Feed } from "./feed.ts";
import { PereError, type Receipt } from "./model.ts";
import { addressOf, type ServiceClient } from "./service-client.ts";
import { jitterMs, Sleep } from "./timing.ts";
import { messageOf, objectOf, sentenceOf, Trouble } from "./trouble.ts";
import { depthOf, isObject } from "./values.ts";

/** Receipts in one request: the service's limit. */
const RECEIPTS_MAX = 1_000;

/** A receipt's detail: the service's limit, in bytes of UTF-8; and how deep it may nest, well within the service's 64. */
const DETAIL_BYTES_MAX = 4_096;

const DETAIL_DEPTH_MAX = 32;

/** The device whose receipts these are. */
export interface OutboxOwner {
  /** Its name, where it was given by the program. */
  readonly device: string | undefined;
  /** Resolves when what must survive a restart is stored, or could not be. */
  save(): Promise<void>;
  /** The service has answered for an event's final receipt. */
  settle(event: string): void;
  /** Why receipts wait; null: they were answered. */
  trouble(why: string | null): void;
  /** Something of the outbox's state is new. */
  changed(): void;
  /** Nothing is being sent any more. */
  idle(): void;
  accepted(receipt: Receipt): void;
  rejected(receipt: Receipt, reason: string): void;
}

export class Outbox {
  readonly #line: ServiceClient;
  readonly #feed: Feed;
  readonly #owner: OutboxOwner;
  readonly #ending: AbortSignal;
  readonly #over: AbortSignal;
  readonly #sleep: Sleep;
  /** The service takes its receipts for this device's: a cookie that nobody here sees may be another one's. Until then none is sent. */
  isKnown: boolean;
  /** How many receipts the service refused for good. */
  rejected = 0;
  #receipts: Receipt[] = [];
  #sending: Promise<void> | null = null;
  #batchMax = RECEIPTS_MAX;
  /** The pause before receipts are sent again is our own, not one that was asked for. */
  #mayHurry = true;

  /** @param ending aborted when the device is to end @param over aborted when nothing may be sent any more */
  constructor(
    line: ServiceClient,
    feed: Feed,
    owner: OutboxOwner,
    { ending, over, isKnown }: { ending: AbortSignal; over: AbortSignal; isKnown: boolean },
  ) {
    this.#line = line;
    this.#feed = feed;
    this.#owner = owner;
    this.#ending = ending;
    this.#over = over;
    this.#sleep = new Sleep(line.setTimer);
    this.isKnown = isKnown;
  }

  /** Receipts that the service has not answered for, oldest first. */
  get receipts(): readonly Receipt[] {
    return this.#receipts;
  }

  /** Adds a receipt; `send` sends it. */
  add(receipt: Receipt): void {
    this.#receipts.push(receipt);
  }

  /** There may be a network again: what pauses tries at once, unless the service asked for the pause. */
  hurry(): void {
    if (this.#mayHurry) this.#sleep.wake();
  }

  /** The device ends: what pauses tries at once. */
  finish(): void {
    this.#sleep.wake();
  }

  #pauseMs(failures: number): number {
    return jitterMs(this.#line.random, failures, 500, this.#line.timing.pauseMsMax);
  }

  /** Sends what there is, until nothing is left or all is over. */
  send(): void {
    if (!this.isKnown) return;
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = null;
      this.#owner.idle();
      if (this.#receipts.length > 0 && !this.#over.aborted) this.send();
    });
  }

  /** Sends what is in the outbox, in order, until it is empty or all is over. */
  async #sendAll(): Promise<void> {
    const signal = this.#over;
    if (!this.#ending.aborted && this.#receipts.length < RECEIPTS_MAX)
      await this.#sleep.sleep(this.#line.timing.gatherMs, signal);
    for (let failures = 0; this.isKnown && this.#receipts.length > 0 && !signal.aborted;) {
      // What was finished is written down before anybody is told.
      await this.#owner.save();
      const { channel } = this.#receipts[0]!;
      const ask = failures === 0 ? this.#feed.ask : null;
      const batch = this.#receipts.filter((receipt) => ask || receipt.channel === channel).slice(0, this.#batchMax);
      try {
        const body = JSON.stringify(batch.map(({ channel: _, ...receipt }) => receipt));
        const events = batch.map(({ event }) => event);
        const { rejected } = await (ask ? ask(body, events) : this.#post(channel, body, events));
        this.#answered(batch, rejected);
        failures = 0;
        this.#owner.trouble(null);
        this.#batchMax = RECEIPTS_MAX;
      } catch (error) {
        if (error instanceof PereError && this.#refused(batch, error)) continue;
        failures++;
        const why = `receipts wait: ${sentenceOf(error)}`;
        this.#owner.trouble(why);
        this.#line.trouble(why);
        this.#owner.changed();
        const askedMs = error instanceof Trouble ? error.pauseMs : null;
        const pauseMs = Math.max(this.#pauseMs(failures), (askedMs ?? 0) * (1 + this.#line.random() / 5));
        this.#mayHurry = askedMs === null;
        // A socket that failed is followed by a request at once.
        if (!ask) await this.#sleep.sleep(pauseMs, signal);
      }
    }
  }

  async #post(channel: string, body: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const { device } = this.#owner;
    const url = addressOf(this.#line.base, "feedback", [channel], device === undefined ? {} : { device });
    const init = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    try {
      const text = await this.#line.ask(url, init, this.#over, this.#line.timing.requestMs);
      return answerOf(objectOf(text), events);
    } catch (error) {
      if (error instanceof PereError && isObject(error.problem) && Array.isArray(error.problem.rejected))
        return answerOf(error.problem, events);
      throw error;
    }
  }

  /** The service has these receipts, save those that it rejects. */
  #answered(batch: readonly Receipt[], rejected: ReceiptsAnswer["rejected"]): void {
    const reasons = new Map(rejected.map(({ index, reason }) => [index, reason]));
    const gone = new Set(batch);
    this.#receipts = this.#receipts.filter((receipt) => !gone.has(receipt));
    batch.forEach((receipt, index) => {
      if (receipt.status === "done" || receipt.status === "failed") this.#owner.settle(receipt.event);
      const reason = reasons.get(index);
      if (reason === undefined) return this.#owner.accepted(receipt);
      this.rejected++;
      this.#owner.rejected(receipt, reason);
    });
    void this.#owner.save();
    this.#owner.changed();
  }

  /**
   * The service refused a whole request: the receipt that it is about is found by halves, is given without its detail, and else let go of.
   * @returns false: it is not about a receipt; all of them wait
   */
  #refused(batch: readonly Receipt[], { status, message }: PereError): boolean {
    if (status !== 400 && status !== 413 && status !== 422) return false;
    this.#batchMax = Math.max(1, Math.floor(batch.length / 2));
    const [receipt] = batch;
    if (batch.length > 1 || !receipt) return true;
    if (receipt.detail === undefined || (isObject(receipt.detail) && "refused" in receipt.detail))
      this.#answered(batch, [{ index: 0, reason: message || "it was refused" }]);
    else {
      const spare = { ...receipt, detail: { refused: message } };
      this.#receipts = this.#receipts.map((other) => (other === receipt ? spare : other));
    }
    return true;
  }
}

/** What a receipt can carry of a value: itself, or, where it is too large or no JSON, what can be said of it. Undefined: there is none. */
export function detailOf(value: unknown): unknown {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    return { unwritable: messageOf(error).slice(0, 200) };
  }
  if (text === undefined) return undefined;
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > DETAIL_BYTES_MAX) return { trimmed: true, bytes, start: text.slice(0, 1_000) };
  return depthOf(text) > DETAIL_DEPTH_MAX ? { trimmed: true, bytes, start: text.slice(0, 1_000) } : JSON.parse(text);
}
