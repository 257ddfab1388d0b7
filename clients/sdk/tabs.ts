/**
 * Tabs of one device share one connection. They agree by a Web Lock which tab has it: that tab leads. It shows the others its status and its events over
 * a BroadcastChannel. When it is closed or frozen, or does not answer for `leaderMs`, another tab leads.
 */
import type { PushedEvent, Withdrawal } from "./model.ts";
import type { ServiceClient } from "./service-client.ts";
import type { Status } from "./status.ts";
import { type Resolvable, resolvable } from "./timing.ts";
import { jsonOf } from "./values.ts";

/** After this, and then this often, a tab that waits looks whether another one leads, and shows it. A lock that is free is mostly given sooner. */
const LOOK_MS = 250;

/** A tab that waits asks the leading tab for its status this often. */
const QUESTION_MS = 2_000;

/** Questions without an answer before another tab leads. Browsers slow the timers of a hidden tab, so time alone does not count. */
const QUESTIONS_MAX = 2;

/** What tabs of one device send each other. */
interface TabMessage {
  /** The status of the leading tab. */
  readonly status?: Status;
  /** An event that the leading tab handles. */
  readonly event?: PushedEvent;
  /** The same as JSON text, for data that can't be cloned. */
  readonly text?: string;
  /** An event was withdrawn. */
  readonly withdrawal?: Withdrawal;
  /** The leading tab is to send its status. */
  readonly question?: true;
}

/** The device in this tab. */
export interface TabOwner {
  /** Whether this tab waits for the connection, or has lost it. */
  isElsewhere(): boolean;
  /** From now on this tab waits for the connection. */
  wait(): void;
  /** Follows the feed until the signal is aborted. This tab has the connection until the promise resolves. */
  lead(signal: AbortSignal): Promise<void>;
  /** Sends the status to the other tabs. */
  sendStatus(): void;
  /** Shows the status of the leading tab; null: it is not known. */
  showStatus(status: Status | null): void;
  /** Shows an event that the leading tab handles. */
  showEvent(event: PushedEvent): void;
  /** Shows that an event was withdrawn. */
  showWithdrawal(withdrawal: Withdrawal): void;
}

/** The locks that tabs of one device agree by. @returns null where there are none: not in a page, or not in this browser */
export function tabLocks(): LockManager | null {
  if (typeof document === "undefined") return null;
  try {
    return navigator.locks ?? null;
  } catch {
    return null;
  }
}

/** @param name of the lock and the channel @returns null when this browser has no BroadcastChannel, or does not allow it */
export function openTabs(name: string, locks: LockManager, service: ServiceClient, owner: TabOwner): Tabs | null {
  try {
    return new Tabs(name, locks, new BroadcastChannel(name), service, owner);
  } catch {
    return null;
  }
}

export class Tabs {
  readonly #name: string;
  readonly #locks: LockManager;
  readonly #channel: BroadcastChannel;
  readonly #service: ServiceClient;
  readonly #owner: TabOwner;
  /** Aborted when this tab is to stop leading, or to stop waiting for it. */
  #turn = new AbortController();
  /** Questions that the leading tab has not answered, and when it was last heard, on the monotonic clock. */
  #questions = 0;
  #leaderHeardAt = 0;
  /** Ends the wait by taking the lock. */
  #takeOver: (() => void) | null = null;
  /** Set while the page is frozen. */
  #frozen: Resolvable<void> | null = null;

  constructor(name: string, locks: LockManager, channel: BroadcastChannel, service: ServiceClient, owner: TabOwner) {
    this.#name = name;
    this.#locks = locks;
    this.#channel = channel;
    this.#service = service;
    this.#owner = owner;
    channel.onmessage = ({ data }: MessageEvent<TabMessage>) => this.#receive(data);
  }

  close(): void {
    this.#channel.close();
  }

  /** Takes the connection over from the tab that leads. */
  takeOver(): void {
    this.#takeOver?.();
  }

  /** Waits and leads in turns until the signal is aborted. @throws the error of `lead` */
  async run(signal: AbortSignal): Promise<void> {
    const freeze = (): void => {
      this.#frozen ??= resolvable();
      this.#turn.abort();
    };
    const resume = (): void => {
      this.#frozen?.resolve();
      this.#frozen = null;
    };
    const end = (): void => {
      this.#turn.abort();
      resume();
    };
    document.addEventListener("freeze", freeze);
    document.addEventListener("resume", resume);
    signal.addEventListener("abort", end);
    try {
      let isTakingOver = false;
      while (!signal.aborted) {
        await this.#frozen?.promise;
        this.#turn = new AbortController();
        if (signal.aborted) this.#turn.abort();
        isTakingOver = await this.#takeTurn(isTakingOver);
      }
    } finally {
      document.removeEventListener("freeze", freeze);
      document.removeEventListener("resume", resume);
      signal.removeEventListener("abort", end);
    }
  }

  /**
   * Waits for the lock and leads until the turn ends; or waits until this tab is to take over.
   * @param isTakingOver the lock is taken from the tab that has it @returns whether to take over in the next turn
   */
  async #takeTurn(isTakingOver: boolean): Promise<boolean> {
    const waiting = new AbortController();
    const stopWaiting = (): void => waiting.abort();
    const { signal } = this.#turn;
    let leading: Promise<{ readonly error: unknown } | null> | null = null;
    let willTakeOver = false;
    const lead = (): Promise<unknown> => {
      stopAsking();
      leading = this.#owner.lead(signal).then(
        () => null,
        (error: unknown) => ({ error }),
      );
      return leading;
    };
    const stopAsking = this.#askLeader(() => {
      willTakeOver = true;
      stopWaiting();
    });
    signal.addEventListener("abort", stopWaiting);
    if (signal.aborted) stopWaiting();
    try {
      await this.#locks.request(this.#name, isTakingOver ? { steal: true } : { signal: waiting.signal }, lead);
    } catch {
      // Another tab took the lock, or this one stopped waiting; or the browser gives no locks, and each tab leads.
      if (leading === null && !waiting.signal.aborted) void lead();
      else this.#turn.abort();
    } finally {
      stopAsking();
    }
    const failure = (await leading) as { readonly error: unknown } | null;
    if (failure) throw failure.error;
    return willTakeOver;
  }

  /** Asks the leading tab for its status now and then. @param takeOver called when it does not answer, or when the application asks for it @returns ends it */
  #askLeader(takeOver: () => void): () => void {
    const { setTimer, timing, monotonic } = this.#service;
    this.#questions = 0;
    this.#leaderHeardAt = monotonic();
    this.#takeOver = takeOver;
    this.#owner.wait();
    const ask = (): void => {
      if (this.#questions > QUESTIONS_MAX && monotonic() - this.#leaderHeardAt > timing.leaderMs) return takeOver();
      this.#questions++;
      this.#send({ question: true });
      stopAsking = setTimer(ask, Math.min(QUESTION_MS, timing.leaderMs / 4));
    };
    let stopAsking = setTimer(ask, 0);
    let isWaiting = true;
    const look = async (): Promise<void> => {
      const isTaken = await this.#isTaken();
      if (!isWaiting) return;
      if (!isTaken) stopLooking = setTimer(() => void look(), LOOK_MS);
      else if (this.#questions > 0) this.#owner.showStatus(null);
    };
    let stopLooking = setTimer(() => void look(), LOOK_MS);
    return () => {
      isWaiting = false;
      this.#takeOver = null;
      stopAsking();
      stopLooking();
    };
  }

  /** Whether a tab waits for the lock, so that another one has it. Time does not tell: a slow computer takes long to give a lock that is free. */
  async #isTaken(): Promise<boolean> {
    try {
      const { pending } = await this.#locks.query();
      return pending?.some(({ name }) => name === this.#name) ?? true;
    } catch {
      return true;
    }
  }

  #receive({ status, event, text, withdrawal, question }: TabMessage): void {
    if (!this.#owner.isElsewhere()) {
      if (question) this.#owner.sendStatus();
      return;
    }
    if (status && status.state !== "closed") {
      this.#questions = 0;
      this.#leaderHeardAt = this.#service.monotonic();
      this.#owner.showStatus(status);
    }
    const shown = event ?? (text === undefined ? undefined : jsonOf(text, this.#service.parse));
    if (shown) this.#owner.showEvent(shown as PushedEvent);
    if (withdrawal) this.#owner.showWithdrawal(withdrawal);
  }

  /** @returns false when the message can't be sent, such as data that can't be cloned */
  #send(message: TabMessage): boolean {
    try {
      this.#channel.postMessage(message);
      return true;
    } catch {
      return false;
    }
  }

  /** Sends this tab's status to the other tabs. */
  sendStatus(status: Status): void {
    this.#send({ status });
  }

  /** Tells the other tabs that an event was withdrawn. */
  sendWithdrawal(withdrawal: Withdrawal): void {
    this.#send({ withdrawal });
  }

  /** Sends an event that this tab handles to the other tabs. What the application's `parse` makes may not be cloneable; its text is. */
  sendEvent(event: PushedEvent): void {
    if (this.#send({ event })) return;
    const { data: _, ...rest } = event;
    this.#send({ text: `${JSON.stringify(rest).slice(0, -1)},"data":${event.text}}` });
  }
}
