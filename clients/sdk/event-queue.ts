/**
 * The events of a device that wait for `onEvent` or are being handled: in order, at most so many at once, and with a limit on those that wait.
 */
import { WAITING_MAX } from "./feed.ts";
import type { PushedEvent } from "./model.ts";
import { type Resolvable, resolvable } from "./timing.ts";

/** The device whose events these are. */
export interface QueueOwner {
  /** Whether events may start: the device has the connection. */
  canStart(): boolean;
  /** Handles an event. Never rejects. */
  handle(event: PushedEvent): Promise<void>;
  /** The numbers of events have changed. */
  changed(): void;
  /** An event was handled. */
  handled(): void;
}

export class EventQueue {
  readonly #concurrency: number;
  readonly #owner: QueueOwner;
  #waiting: PushedEvent[] = [];
  #open = 0;
  #room: Resolvable<void> | null = null;

  /** @param concurrency how many events may be open at once */
  constructor(concurrency: number, owner: QueueOwner) {
    this.#concurrency = concurrency;
    this.#owner = owner;
  }

  /** How many events wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** How many events are being handled. */
  get open(): number {
    return this.#open;
  }

  /** No event waits or is being handled. */
  get isEmpty(): boolean {
    return this.#waiting.length + this.#open === 0;
  }

  /** Adds an event; `start` starts it. */
  add(event: PushedEvent): void {
    this.#waiting.push(event);
  }

  /** Replaces an event that waits, by its id. @returns false: it does not wait */
  replace(event: PushedEvent): boolean {
    const at = this.#waiting.findIndex(({ id }) => id === event.id);
    if (at !== -1) this.#waiting[at] = event;
    return at !== -1;
  }

  /** Removes an event that waits. @returns false: it does not wait */
  remove(event: string): boolean {
    const at = this.#waiting.findIndex(({ id }) => id === event);
    if (at === -1) return false;
    this.#waiting.splice(at, 1);
    this.start();
    return true;
  }

  /** Starts as many events as may be open at once. */
  start(): void {
    while (this.#open < this.#concurrency && this.#waiting.length > 0 && this.#owner.canStart()) {
      this.#open++;
      void this.#run(this.#waiting.shift()!);
    }
    if (this.#waiting.length <= WAITING_MAX / 2) this.#makeRoom();
    this.#owner.changed();
  }

  async #run(event: PushedEvent): Promise<void> {
    await this.#owner.handle(event);
    this.#open--;
    this.start();
    this.#owner.handled();
  }

  /** Null: more events may be added. Otherwise resolves when they may be. */
  room(): Promise<void> | null {
    if (this.#waiting.length < WAITING_MAX || !this.#owner.canStart()) return null;
    this.#room ??= resolvable();
    return this.#room.promise;
  }

  #makeRoom(): void {
    this.#room?.resolve();
    this.#room = null;
  }

  /** Removes the events that wait. @returns them */
  clear(): readonly PushedEvent[] {
    const events = this.#waiting;
    this.#waiting = [];
    this.#makeRoom();
    return events;
  }
}
