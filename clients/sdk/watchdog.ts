/**
 * Ends a connection that is silent for too long.
 */
import { BlockedError } from "./errors.ts";
import type { ServiceClient } from "./service-client.ts";

/** Ends one connection of a feed when it is silent or when its owner ends it, and knows why it ended. */
export class Watchdog {
  readonly #controller = new AbortController();
  readonly #service: ServiceClient;
  readonly #outer: AbortSignal;
  readonly #abort = (): void => this.end("the feed ended");
  #stopTimer = (): void => {};
  #heardAt: number;
  #limitMs: number;
  /** Why the connection ended: an error when it was silent or its content wrong, a text when it is to be opened again; null while it is open. */
  reason: string | BlockedError | null = null;

  /** @param outer ends the connection too @param limitMs the connection may be silent for this long */
  constructor(outer: AbortSignal, service: ServiceClient, limitMs: number) {
    this.#outer = outer;
    this.#service = service;
    this.#heardAt = service.monotonic();
    this.#limitMs = limitMs;
    outer.addEventListener("abort", this.#abort);
    if (outer.aborted) this.#abort();
    else this.#arm();
  }

  /** Aborted when the connection is to end. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  #arm(): void {
    this.#stopTimer();
    if (!Number.isFinite(this.#limitMs) || this.reason !== null) return;
    const leftMs = this.#heardAt + this.#limitMs - this.#service.monotonic();
    if (leftMs <= 0) this.end(new BlockedError(`no data arrived for ${this.#limitMs} ms`));
    else this.#stopTimer = this.#service.setTimer(() => this.#arm(), leftMs);
  }

  /** Something arrived. */
  heard(): void {
    this.#heardAt = this.#service.monotonic();
  }

  /** From now on the connection may be silent for this long. */
  setLimit(limitMs: number): void {
    if (limitMs === this.#limitMs) return;
    this.#limitMs = limitMs;
    this.heard();
    this.#arm();
  }

  /** Ends the connection. The first reason stays. */
  end(reason: string | BlockedError): void {
    this.reason ??= reason;
    this.#stopTimer();
    this.#outer.removeEventListener("abort", this.#abort);
    this.#controller.abort();
  }
}
