/**
 * One connection of a feed: the watch that ends it when it falls silent, and the queue of requests on a WebSocket.
 */
import { answerOf, type ReceiptsAnswer } from "./entries.ts";
import type { ServiceClient } from "./service-client.ts";
import { type Promised, promised, type SetTimer } from "./timing.ts";
import { Blocked, sentenceOf, Trouble } from "./trouble.ts";
import { isText } from "./values.ts";

/** Ends a connection that is silent, or that its owner ends; knows why. */
export class Watch {
  readonly #stop = new AbortController();
  readonly #line: ServiceClient;
  readonly #outer: AbortSignal;
  readonly #abort = (): void => this.end("it was ended");
  #endTimer = (): void => {};
  #heardAt: number;
  #limitMs: number;
  /** Why it was ended; a silent one as an error. */
  why: string | Blocked | null = null;

  constructor(outer: AbortSignal, line: ServiceClient, limitMs: number) {
    this.#outer = outer;
    this.#line = line;
    this.#heardAt = line.monotonic();
    this.#limitMs = limitMs;
    outer.addEventListener("abort", this.#abort);
    if (outer.aborted) this.#abort();
    else this.#arm();
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  #arm(): void {
    this.#endTimer();
    if (!Number.isFinite(this.#limitMs) || this.why !== null) return;
    const leftMs = this.#heardAt + this.#limitMs - this.#line.monotonic();
    if (leftMs <= 0) this.end(new Blocked(`nothing was heard for ${this.#limitMs} ms`));
    else this.#endTimer = this.#line.setTimer(() => this.#arm(), leftMs);
  }

  /** A sign of life. */
  heard(): void {
    this.#heardAt = this.#line.monotonic();
  }

  /** From now on it may be silent for so long. */
  allow(limitMs: number): void {
    if (limitMs === this.#limitMs) return;
    this.#limitMs = limitMs;
    this.heard();
    this.#arm();
  }

  end(why: string | Blocked): void {
    this.why ??= why;
    this.#endTimer();
    this.#outer.removeEventListener("abort", this.#abort);
    this.#stop.abort();
  }
}

/** Gives receipts over a socket. @param events what they are about, in order @throws Trouble */
export type SendReceipts = (text: string, events: readonly string[]) => Promise<ReceiptsAnswer>;

/** Questions on a socket, one at a time: answers name no question. */
export class RequestQueue {
  readonly #send: (text: string) => void;
  readonly #limitMs: number;
  readonly #setTimer: SetTimer;
  readonly #broken: () => void;
  #turn: Promise<unknown> = Promise.resolve();
  #open: Promised<unknown> | null = null;
  #waiting = 0;

  /** @param broken called when a question failed: an answer that comes after all would be taken for the next one's, so nothing more may be asked */
  constructor(send: (text: string) => void, limitMs: number, setTimer: SetTimer, broken: () => void) {
    this.#broken = broken;
    this.#send = send;
    this.#limitMs = limitMs;
    this.#setTimer = setTimer;
  }

  get isBusy(): boolean {
    return this.#waiting > 0;
  }

  /** @throws Trouble */
  ask(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    this.#waiting++;
    const asked = this.#turn.then(() => this.#one(text, events)).finally(() => this.#waiting--);
    this.#turn = asked.catch(() => {});
    return asked;
  }

  async #one(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const open = promised<unknown>();
    this.#open = open;
    const stop = this.#setTimer(() => this.fail("there was no answer in time"), this.#limitMs);
    try {
      this.#send(text);
      return answerOf(await open.promise, events);
    } catch (error) {
      this.#broken();
      throw error instanceof Trouble ? error : new Trouble(sentenceOf(error));
    } finally {
      stop();
      this.#open = null;
    }
  }

  answer(kind: "receipts" | "error", body: Record<string, unknown>): void {
    if (kind === "receipts") this.#open?.resolve(body);
    else this.fail(isText(body.detail) ? body.detail : "an error was answered");
  }

  fail(why: string): void {
    this.#open?.reject(new Trouble(why));
  }
}
