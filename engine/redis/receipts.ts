/**
 * Receipts that come together are recorded together.
 *
 * One event to N devices brings N receipts at once. A script for each would keep Redis busy for seconds, each with its own message to every instance,
 * and the last calls would run out of time although Redis works. So few scripts of a channel are in flight at a time, and what comes meanwhile
 * goes into the next one: a single receipt is sent at once, a crowd shares scripts, syncs and messages.
 *
 * What waits is limited in number and in time. Receipts of a channel are recorded in the order in which they came, and requests are never split.
 */
import { PereError, type ReceiptDraft } from "../model.ts";
import type { Verdict } from "../store.ts";

/** Receipts per script, unless one request has more: some milliseconds of Redis' time. */
export const RECEIPTS_AT_ONCE = 250;
/** Scripts of a channel in flight: the second runs while the first one's answer is synced and under way. */
const IN_FLIGHT = 2;
/** Receipts that wait at an instance: several seconds' worth of Redis. */
export const WAITING_MAX = 100_000;
/** How long a receipt waits to be sent while Redis answers others. If it answers nothing, the calls in flight fail, and the next ones are refused. */
export const WAIT_MS = 10_000;

/** A receipt and when it came, in milliseconds since 1970. `random`: for the time until another attempt. */
export interface DatedReceipt {
  readonly draft: ReceiptDraft;
  readonly now: number;
  readonly random: () => number;
}

/** The receipts of one request. */
interface Waiting {
  readonly drafts: readonly ReceiptDraft[];
  readonly now: number;
  readonly random: () => number;
  readonly until: number;
  readonly resolve: (verdicts: Verdict[]) => void;
  readonly reject: (error: unknown) => void;
}

/** What waits for one channel. */
interface Line {
  waiting: Waiting[];
  inFlight: number;
}

export class RedisReceipts {
  readonly #run: (channel: string, receipts: readonly DatedReceipt[]) => Promise<Verdict[]>;
  readonly #clock: () => number;
  readonly #lines = new Map<string, Line>();
  #waiting = 0;
  #idle: PromiseWithResolvers<void> | null = null;

  /**
   * @param run records receipts in one script; a verdict for each
   * @param clock milliseconds
   */
  constructor(
    run: (channel: string, receipts: readonly DatedReceipt[]) => Promise<Verdict[]>,
    clock = (): number => performance.now(),
  ) {
    this.#run = run;
    this.#clock = clock;
  }

  /** Records the receipts of one request. @throws PereError away: not recorded, or it is unknown whether they were */
  record(
    channel: string,
    drafts: readonly ReceiptDraft[],
    now: number,
    random: () => number = Math.random,
  ): Promise<Verdict[]> {
    if (this.#waiting + drafts.length > WAITING_MAX)
      return Promise.reject(
        new PereError("away", `Redis does not keep up: ${this.#waiting} receipts wait; nothing was stored`),
      );
    let line = this.#lines.get(channel);
    if (!line) this.#lines.set(channel, (line = { waiting: [], inFlight: 0 }));
    const { promise, resolve, reject } = Promise.withResolvers<Verdict[]>();
    line.waiting.push({ drafts, now, random, until: this.#clock() + WAIT_MS, resolve, reject });
    this.#waiting += drafts.length;
    this.#send(channel, line);
    return promise;
  }

  #send(channel: string, line: Line): void {
    while (line.waiting.length > 0 && line.inFlight < IN_FLIGHT) void this.#sendOne(channel, line);
    if (line.waiting.length > 0 || line.inFlight > 0) return;
    this.#lines.delete(channel);
    if (this.#lines.size > 0) return;
    this.#idle?.resolve();
    this.#idle = null;
  }

  /** Sends the next requests in one script, and what came meanwhile after its answer. */
  async #sendOne(channel: string, line: Line): Promise<void> {
    const requests = this.#take(line);
    if (requests.length === 0) return;
    const receipts = requests.flatMap(({ drafts, now, random }) => drafts.map((draft) => ({ draft, now, random })));
    line.inFlight++;
    try {
      const verdicts = await this.#run(channel, receipts);
      let from = 0;
      for (const { drafts, resolve } of requests) resolve(verdicts.slice(from, (from += drafts.length)));
    } catch (error) {
      for (const { reject } of requests) reject(error);
    }
    line.inFlight--;
    this.#send(channel, line);
  }

  /** Requests for one script; those that have waited too long are refused. */
  #take({ waiting }: Line): Waiting[] {
    const now = this.#clock();
    const requests: Waiting[] = [];
    let receipts = 0;
    let taken = 0;
    for (const request of waiting) {
      const { drafts, until, reject } = request;
      if (receipts > 0 && receipts + drafts.length > RECEIPTS_AT_ONCE) break;
      taken++;
      if (until < now)
        reject(new PereError("away", `Redis does not keep up: waited ${WAIT_MS / 1000} s; nothing was stored`));
      else {
        requests.push(request);
        receipts += drafts.length;
      }
      this.#waiting -= drafts.length;
    }
    waiting.splice(0, taken);
    return requests;
  }

  /** Resolves when nothing waits and nothing is in flight. */
  async idle(): Promise<void> {
    if (this.#lines.size === 0) return;
    this.#idle ??= Promise.withResolvers();
    await this.#idle.promise;
  }
}
