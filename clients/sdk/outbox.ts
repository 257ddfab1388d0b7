/**
 * The outbox: it keeps receipts, in order, until the service has answered each of them. They are sent together, over the feed's WebSocket or by POST.
 */
import { answerOf, type ReceiptsAnswer } from "./messages.ts";
import type { Feed } from "./feed.ts";
import { isOutcome, PereError, type Receipt } from "./model.ts";
import { addressOf, type ServiceClient } from "./service-client.ts";
import { jitterMs, Sleep } from "./timing.ts";
import { messageOf, objectOf, messageWithCauses, RetryableError } from "./errors.ts";
import { depthOf, isObject } from "./values.ts";

/** Receipts in one request: the service's limit. */
const RECEIPTS_MAX = 1_000;

/** The longest detail in bytes of UTF-8: the service's limit. */
const DETAIL_BYTES_MAX = 4_096;

/** The deepest nesting of a detail. The service's limit is 64. */
const DETAIL_DEPTH_MAX = 32;

/** The device that sends the receipts. */
export interface OutboxOwner {
  /** Its name, if the program set one. */
  readonly device: string | undefined;
  /** Resolves when the state is stored, or could not be. */
  save(): Promise<void>;
  /** The service has answered the receipt with which a round of an event ended. */
  settle(receipt: Receipt): void;
  /** Why receipts can't be sent; null: they were sent. */
  error(why: string | null): void;
  /** The outbox's state has changed. */
  changed(): void;
  /** Nothing is being sent any more. */
  idle(): void;
  accepted(receipt: Receipt): void;
  /** It was accepted although it came late. */
  late(receipt: Receipt, reason: string): void;
  rejected(receipt: Receipt, reason: string): void;
}

export class Outbox {
  readonly #service: ServiceClient;
  readonly #feed: Feed;
  readonly #owner: OutboxOwner;
  readonly #closing: AbortSignal;
  readonly #closed: AbortSignal;
  readonly #sleep: Sleep;
  /** Whether the service identifies this device by its name: a cookie, which scripts can't read, may be another device's. Until then, nothing is sent. */
  isIdentified: boolean;
  /** The number of receipts that the service refused for good. */
  rejected = 0;
  #receipts: Receipt[] = [];
  #sending: Promise<void> | null = null;
  #batchMax = RECEIPTS_MAX;
  /** Whether the pause before the next attempt may be cut short: the service did not ask for it. */
  #mayRetryNow = true;

  /** @param closing aborted when the device is closed @param closed aborted when nothing may be sent any more */
  constructor(
    line: ServiceClient,
    feed: Feed,
    owner: OutboxOwner,
    { closing, closed, isIdentified }: { closing: AbortSignal; closed: AbortSignal; isIdentified: boolean },
  ) {
    this.#service = line;
    this.#feed = feed;
    this.#owner = owner;
    this.#closing = closing;
    this.#closed = closed;
    this.#sleep = new Sleep(line.setTimer);
    this.isIdentified = isIdentified;
  }

  /** Receipts that the service has not answered, oldest first. */
  get receipts(): readonly Receipt[] {
    return this.#receipts;
  }

  /** Adds a receipt; `send` sends it. */
  add(receipt: Receipt): void {
    this.#receipts.push(receipt);
  }

  /** The network may be back: a pause ends now, unless the service asked for it. */
  retryNow(): void {
    if (this.#mayRetryNow) this.#sleep.wake();
  }

  /** The device is closed: a pause ends now. */
  flush(): void {
    this.#sleep.wake();
  }

  #pauseMs(failures: number): number {
    return jitterMs(this.#service.random, failures, 500, this.#service.timing.pauseMsMax);
  }

  /** Starts to send the receipts, if they are not being sent already. */
  send(): void {
    if (!this.isIdentified) return;
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = null;
      this.#owner.idle();
      if (this.#receipts.length > 0 && !this.#closed.aborted) this.send();
    });
  }

  /** Sends the receipts in order, until there are none left or nothing may be sent any more. */
  async #sendAll(): Promise<void> {
    const signal = this.#closed;
    if (!this.#closing.aborted && this.#receipts.length < RECEIPTS_MAX)
      await this.#sleep.sleep(this.#service.timing.gatherMs, signal);
    for (let failures = 0; this.isIdentified && this.#receipts.length > 0 && !signal.aborted;) {
      // A finished event is stored before the service is told.
      await this.#owner.save();
      const { channel } = this.#receipts[0]!;
      const overSocket = failures === 0 ? this.#feed.sendReceipts : null;
      const batch = this.#receipts
        .filter((receipt) => overSocket || receipt.channel === channel)
        .slice(0, this.#batchMax);
      try {
        const body = JSON.stringify(batch.map(({ channel: _, ...receipt }) => receipt));
        const events = batch.map(({ event }) => event);
        this.#answered(batch, await (overSocket ? overSocket(body, events) : this.#post(channel, body, events)));
        failures = 0;
        this.#owner.error(null);
        this.#batchMax = RECEIPTS_MAX;
      } catch (error) {
        if (error instanceof PereError && this.#refused(batch, error)) continue;
        failures++;
        const why = `receipts can't be sent yet: ${messageWithCauses(error)}`;
        this.#owner.error(why);
        this.#service.report(why);
        this.#owner.changed();
        const askedMs = error instanceof RetryableError ? error.pauseMs : null;
        const pauseMs = Math.max(this.#pauseMs(failures), (askedMs ?? 0) * (1 + this.#service.random() / 5));
        this.#mayRetryNow = askedMs === null;
        // After a failure on a socket, a POST is tried at once.
        if (!overSocket) await this.#sleep.sleep(pauseMs, signal);
      }
    }
  }

  async #post(channel: string, body: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const { device } = this.#owner;
    const url = addressOf(this.#service.base, "feedback", [channel], device === undefined ? {} : { device });
    const init = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    try {
      const text = await this.#service.ask(url, init, this.#closed, this.#service.timing.requestMs);
      return answerOf(objectOf(text), events);
    } catch (error) {
      if (error instanceof PereError && isObject(error.problem) && Array.isArray(error.problem.rejected))
        return answerOf(error.problem, events);
      throw error;
    }
  }

  /** The service has recorded these receipts, except those that it rejected. */
  #answered(batch: readonly Receipt[], { rejected, late }: ReceiptsAnswer): void {
    const [reasons, lateReasons] = [rejected, late].map(
      (list) => new Map(list.map(({ index, reason }) => [index, reason])),
    );
    const answered = new Set(batch);
    this.#receipts = this.#receipts.filter((receipt) => !answered.has(receipt));
    batch.forEach((receipt, index) => {
      if (isOutcome(receipt.status)) this.#owner.settle(receipt);
      const [reason, lateReason] = [reasons!.get(index), lateReasons!.get(index)];
      if (reason === undefined) {
        this.#owner.accepted(receipt);
        if (lateReason !== undefined) this.#owner.late(receipt, lateReason);
        return;
      }
      this.rejected++;
      this.#owner.rejected(receipt, reason);
    });
    void this.#owner.save();
    this.#owner.changed();
  }

  /**
   * The service refused a whole request. The request is halved until the receipt is found that it refuses; that one is sent again without its detail, and
   * if that is refused too, it is dropped and reported as rejected.
   * @returns false when the refusal is not about the receipts: they stay
   */
  #refused(batch: readonly Receipt[], { status, message }: PereError): boolean {
    if (status !== 400 && status !== 413 && status !== 422) return false;
    this.#batchMax = Math.max(1, Math.floor(batch.length / 2));
    const [receipt] = batch;
    if (batch.length > 1 || !receipt) return true;
    if (receipt.detail === undefined || (isObject(receipt.detail) && "refused" in receipt.detail))
      this.#answered(batch, {
        rejected: [{ index: 0, reason: message || `the service answered with status ${status}` }],
        late: [],
      });
    else {
      const reduced = { ...receipt, detail: { refused: message } };
      this.#receipts = this.#receipts.map((other) => (other === receipt ? reduced : other));
    }
    return true;
  }
}

/** The detail for a value: the value itself, or a description of it when it is too large or not JSON. @returns undefined when there is none */
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
