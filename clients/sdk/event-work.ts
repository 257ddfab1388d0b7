/**
 * What a device does with its events: each is handled once per round, and its receipts go to the outbox. An event that was deferred, or failed with
 * attempts left, comes again with the next round; one that is withdrawn is not begun, and its work is told to stop.
 */
import type { DeviceState, Ended, Open } from "./device-state.ts";
import { messageOf } from "./errors.ts";
import { EventQueue } from "./event-queue.ts";
import { Deferred, Failed, isOutcome, type PushedEvent, type Receipt, roundOf, type Withdrawal } from "./model.ts";
import { detailOf, type Outbox } from "./outbox.ts";

/** What `onEvent` can use besides returning or throwing. */
export interface Context {
  /** Sends the receipt `working`. */
  working(detail?: unknown): void;
  /**
   * Aborted when the listener ends, or the event is withdrawn. If `onEvent` then throws, no receipt is sent; without a withdrawal the event comes again
   * next time. If it returns, the event is `done`.
   */
  readonly signal: AbortSignal;
}

/** How events are handled. */
export interface WorkOptions {
  readonly onEvent: (event: PushedEvent, context: Context) => unknown;
  readonly concurrency?: number | undefined;
}

/** The device that works. */
export interface WorkOwner {
  /** Aborted when events are not to be handled here any more: the device ends, or another tab has the connection. */
  connection(): AbortSignal;
  /** Whether no receipts are sent. */
  isAnonymous(): boolean;
  /** Resolves when the state is stored, or could not be. */
  save(): Promise<void>;
  /** Milliseconds since 1970. */
  now(): number;
  /** An event has arrived that was not known. */
  arrived(event: PushedEvent): void;
  /** The numbers of events or receipts have changed. */
  changed(): void;
  /** An event was handled. */
  handled(): void;
}

export class EventWork {
  readonly #options: WorkOptions;
  readonly #state: DeviceState;
  readonly #outbox: Outbox;
  readonly #owner: WorkOwner;
  readonly queue: EventQueue;

  constructor(options: WorkOptions, state: DeviceState, outbox: Outbox, owner: WorkOwner) {
    this.#options = options;
    this.#state = state;
    this.#outbox = outbox;
    this.#owner = owner;
    this.queue = new EventQueue(Math.max(1, options.concurrency ?? 1), {
      canStart: () => !owner.connection().aborted,
      handle: (event) => this.#handle(event),
      changed: () => owner.changed(),
      handled: () => owner.handled(),
    });
  }

  /** An event arrived: handles it, or repeats its receipt if it was finished. */
  receive(event: PushedEvent): void {
    if (this.#owner.connection().aborted) return;
    const [state, round] = [this.#state.get(event.id), roundOf(event)];
    if (state?.status === "open") return this.#repeatOpen(event, state, round);
    if (state && !isAgain(state, round)) return this.#repeatEnded(event, state, round);
    this.#state.set(event.id, { status: "open", round, withdrawing: new AbortController() });
    this.queue.add(event);
    this.#addReceipt(event, { status: "received", round });
    this.#owner.arrived(event);
    this.queue.start();
  }

  /** A later round of an event that is open: another program with this device's name deferred it. The receipts answer that round from now on. */
  #repeatOpen(event: PushedEvent, open: Open, round: number): void {
    if (round <= open.round) return;
    open.round = round;
    this.queue.replace(event);
    this.#addReceipt(event, { status: "received", round });
  }

  /** It was finished and comes again: the service does not have its last receipt, unless that is on its way. */
  #repeatEnded(event: PushedEvent, ended: Ended, round: number): void {
    const isOnItsWay = this.#outbox.receipts.some(
      (receipt) => receipt.event === event.id && receipt.status === ended.status && (receipt.round ?? round) === round,
    );
    if (!isOnItsWay) this.#addReceipt(event, { ...ended, round });
  }

  /** An event was withdrawn: it is not begun, and its work is told to stop. */
  withdraw({ withdrawn, reason }: Withdrawal): void {
    const state = this.#state.get(withdrawn);
    if (state?.status === "open") {
      if (this.queue.remove(withdrawn)) this.#state.forget(withdrawn);
      else state.withdrawing.abort(new Error(`the event was withdrawn: ${reason}`));
    } else if (state?.status === "deferred") this.#state.forget(withdrawn);
    this.#owner.changed();
  }

  /** Forgets the events that were not started: the service sends them again next time. */
  dropWaiting(): void {
    for (const { id } of this.queue.clear()) this.#state.forget(id);
  }

  /** The service rejected a receipt for good. An event that could not be deferred is handled again when it comes again. */
  rejected({ event, status }: Receipt): void {
    if (status === "deferred" && this.#state.get(event)?.status === "deferred") this.#state.forget(event);
  }

  async #handle(event: PushedEvent): Promise<void> {
    const open = this.#state.get(event.id) as Open;
    const { signal: withdrawing } = open.withdrawing;
    const connection = this.#owner.connection();
    const stop = new AbortController();
    const end = (): void => stop.abort((withdrawing.aborted ? withdrawing : connection).reason);
    const signals = [connection, withdrawing];
    for (const signal of signals) signal.addEventListener("abort", end);
    if (signals.some(({ aborted }) => aborted)) end();
    const context: Context = {
      signal: stop.signal,
      working: (detail) => {
        if (this.#state.get(event.id) === open && !withdrawing.aborted)
          this.#addReceipt(event, { status: "working", round: open.round, detail });
      },
    };
    let outcome: Omit<Ended, "round"> | null;
    try {
      outcome = { status: "done", detail: await this.#options.onEvent(event, context) };
    } catch (error) {
      outcome = this.#outcomeOf(error, withdrawing, connection);
    }
    for (const signal of signals) signal.removeEventListener("abort", end);
    if (outcome === null) this.#state.forget(event.id);
    else this.#addReceipt(event, { ...outcome, round: open.round });
    // The outcome is stored before the next event starts, so that after a crash no more than `concurrency` events come again.
    await this.#owner.save();
  }

  /** What an error of `onEvent` means. @returns null: no receipt */
  #outcomeOf(error: unknown, withdrawing: AbortSignal, connection: AbortSignal): Omit<Ended, "round"> | null {
    // What was withdrawn meanwhile has not failed, and does not come again.
    if (withdrawing.aborted) return null;
    if (error instanceof Deferred) {
      const { after, detail } = error;
      return { status: "deferred", detail, ...(after === undefined ? {} : { after }) };
    }
    // An event that was interrupted by the end has not failed: it comes again.
    if (connection.aborted) return null;
    if (!(error instanceof Failed)) return { status: "failed", detail: messageOf(error) || undefined };
    const { after, detail, retry } = error;
    return { status: "failed", detail, ...(after === undefined ? {} : { after }), ...(retry ? {} : { retry }) };
  }

  #addReceipt({ id, channel }: PushedEvent, said: Omit<Ended, "status"> & Pick<Receipt, "status">): void {
    const { status, round, after, retry } = said;
    const detail = detailOf(said.detail);
    const isEnd = isOutcome(status);
    if (isEnd) this.#state.set(id, { status, detail, round, after, retry });
    if (this.#owner.isAnonymous()) {
      if (isEnd) this.#state.settle(id, round);
    } else {
      const more = Object.entries({ detail, after, retry }).filter(([, value]) => value !== undefined);
      const at = new Date(this.#owner.now()).toISOString();
      this.#outbox.add({ event: id, channel, status, ...Object.fromEntries(more), at, round });
      this.#outbox.send();
    }
    void this.#owner.save();
    this.#owner.changed();
  }
}

/** Whether an event that has ended is handled again in this round: it was deferred, or failed with attempts left. */
const isAgain = ({ status, round: ended, retry }: Ended, round: number): boolean =>
  round > ended && (status === "deferred" || (status === "failed" && retry !== false));
