/**
 * `listen`: a device. It runs `onEvent` once per event and sends receipts until the service has answered each of them.
 *
 * A named device that starts sends no position: the service sends every event that the device has not finished. The device remembers only which events
 * it has finished, until the service has those receipts too.
 */
import { DeviceState } from "./device-state.ts";
import { messageOf, messageWithCauses } from "./errors.ts";
import { EventQueue } from "./event-queue.ts";
import { Feed } from "./feed.ts";
import type { Gap, PushedEvent, Receipt, Word } from "./model.ts";
import { detailOf, Outbox } from "./outbox.ts";
import { claimsOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { type Observable, type Status, StatusSignal } from "./status.ts";
import type { DeviceStorage } from "./storage.ts";
import { openTabs, tabLocks, type Tabs } from "./tabs.ts";
import { aborted, call, deferred, jitterMs, Sleep } from "./timing.ts";

/** What `onEvent` can use besides returning or throwing. */
export interface Context {
  /** Sends the receipt `working`. */
  working(detail?: unknown): void;
  /** Aborted when the listener ends. If `onEvent` then throws, no receipt is sent, and the event comes again next time. */
  readonly signal: AbortSignal;
}

export interface ListenOptions<Data = unknown> extends ConnectionOptions {
  /** One, or up to 16. */
  readonly channels: string | readonly string[];
  /**
   * The device's name. A token names the device, so it can be left out with one. Without a name and a token the feed is anonymous and sends no
   * receipts. If the token is a cookie, which scripts can't read, give the name.
   */
  readonly device?: string | undefined;
  /**
   * Handles an event. `received` is sent before the call, `done` when it returns (the returned value is the detail), `failed` when it throws (the
   * error's message is the detail). It may take any time, such as until somebody presses a button.
   */
  readonly onEvent: (event: PushedEvent<Data>, context: Context) => unknown;
  /** How many events may be open at once. The default is 1: one after the other, in the order of their channel. */
  readonly concurrency?: number | undefined;
  /** Where a device that is not yet enrolled starts. The service's default is `now`. */
  readonly since?: "now" | "earliest" | (string & {}) | undefined;
  /** Where the outbox and the finished events are stored. The default is memory, which ends with the program. */
  readonly storage?: DeviceStorage | undefined;
  /**
   * Whether tabs of one device share one connection, if the browser supports it (Web Locks, BroadcastChannel). The default is true. If the tab with
   * the connection is frozen, or does not answer for `leaderMs`, another takes over.
   */
  readonly share?: boolean | undefined;
  /** Called with an event that another tab of this device handles. */
  readonly onElsewhere?: ((event: PushedEvent<Data>) => void) | undefined;
  /** Called when the service has accepted a receipt. */
  readonly onReceipt?: ((receipt: Receipt) => void) | undefined;
  /** Called when the service refused a receipt for good, such as for an event that is no longer kept. It is not sent again. */
  readonly onRejected?: ((receipt: Receipt, reason: string) => void) | undefined;
  readonly onGap?: ((gap: Gap) => void) | undefined;
}

export interface Listener {
  status(): Observable<Status>;
  /** Resolves when the listener has ended. @throws PereError when the service refused for good */
  readonly closed: Promise<void>;
  /** Ends the listener, as the signal does. No new event starts; open events and unsent receipts have `flushMs` to finish. */
  close(): Promise<void>;
  /** Takes the connection over from another tab of this device. Events that are open there come again here. */
  take(): void;
}

/**
 * Follows channels as a device until it is ended. It reconnects after every failure, with growing pauses.
 * @throws RangeError when there are no channels, or too many; TypeError when another option is invalid
 */
export function listen<Data = unknown>(options: ListenOptions<Data>): Listener {
  return new Device(options as ListenOptions);
}

class Device implements Listener {
  readonly closed: Promise<void>;
  readonly #options: ListenOptions;
  readonly #service: ServiceClient;
  readonly #feed: Feed;
  readonly #outbox: Outbox;
  readonly #state: DeviceState;
  readonly #channels: readonly string[];
  readonly #status: StatusSignal;
  readonly #queue: EventQueue;
  /** Aborted when the listener is to end; `#ended` when it has. */
  readonly #ending = new AbortController();
  readonly #ended = new AbortController();
  /** Aborted when this listener is not to use the connection any more: it ends, or another tab has the connection. */
  #connection: AbortSignal = this.#ending.signal;
  readonly #sleep: Sleep;
  #device: string | null;
  #isAnonymous: boolean;
  #idle: (() => void)[] = [];
  #error: string | null = null;
  #isElsewhere = false;
  #isClosed = false;
  #willShowStatus = false;
  /** Null: the connection is not shared. */
  #tabs: Tabs | null = null;

  constructor(options: ListenOptions) {
    checkOptions(options);
    const { device, since, token, signal } = options;
    this.#options = options;
    this.#service = new ServiceClient(options);
    this.#sleep = new Sleep(this.#service.setTimer);
    this.#channels = typeof options.channels === "string" ? options.channels.split(",") : options.channels;
    this.#device = device ?? null;
    this.#isAnonymous = device === undefined && token === undefined;
    const query = { ...(device === undefined ? {} : { device }), ...(since === undefined ? {} : { since }) };
    this.#feed = new Feed(this.#service, "feed", this.#channels, query, "", {
      entry: (value) => this.#receive(value as unknown as PushedEvent),
      control: (name, body) => this.#control(name, body),
      room: () => this.#queue.room(),
      changed: () => this.#changed(),
    });
    this.#queue = new EventQueue(Math.max(1, options.concurrency ?? 1), {
      canStart: () => !this.#connection.aborted,
      handle: (event) => this.#handle(event),
      changed: () => this.#changed(),
      handled: () => this.#wakeIdle(),
    });
    this.#state = new DeviceState(options.storage, {
      receipts: () => this.#outbox.receipts,
      position: () => (this.#isAnonymous && this.#queue.waiting + this.#queue.open === 0 ? this.#feed.last : null),
      failed: (why) => {
        this.#error = why;
        this.#service.report(why);
        this.#changed();
      },
    });
    this.#outbox = new Outbox(
      this.#service,
      this.#feed,
      {
        device,
        save: () => this.#save(),
        settle: (event) => this.#state.settle(event),
        error: (why) => void (this.#error = why),
        changed: () => this.#changed(),
        idle: () => this.#wakeIdle(),
        accepted: (receipt) => call(() => options.onReceipt?.(receipt)),
        rejected: (receipt, reason) => call(() => options.onRejected?.(receipt, reason)),
      },
      {
        closing: this.#ending.signal,
        closed: this.#ended.signal,
        isIdentified: device === undefined || token !== undefined,
      },
    );
    this.#status = new StatusSignal(this.#snapshot());
    const end = (): void => void this.close();
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end);
    this.closed = this.#run().finally(() => signal?.removeEventListener("abort", end));
    this.closed.catch(() => {}); // An application that does not wait for it is not ended by its rejection.
  }

  status(): Observable<Status> {
    return this.#status;
  }

  close(): Promise<void> {
    this.#ending.abort();
    return this.closed;
  }

  take(): void {
    this.#tabs?.takeOver();
  }

  // -------------------------------------------------------------------------------------------------------- from start to end

  async #run(): Promise<void> {
    const online = (): void => {
      this.#feed.retryNow();
      this.#sleep.wake();
      this.#outbox.retryNow();
    };
    const offline = (): void => this.#feed.reopen();
    globalThis.addEventListener?.("online", online);
    globalThis.addEventListener?.("offline", offline);
    const { share = true } = this.#options;
    const locks = share && !this.#isAnonymous ? tabLocks() : null;
    try {
      const name = await this.#nameOf(locks !== null);
      this.#state.name = name;
      this.#tabs = locks && this.#openTabs(name, locks);
      if (this.#tabs) {
        await this.#tabs.run(this.#ending.signal);
        await this.#flush();
      } else await this.#lead(this.#ending.signal);
    } catch (error) {
      this.#error = messageWithCauses(error);
      throw error;
    } finally {
      globalThis.removeEventListener?.("online", online);
      globalThis.removeEventListener?.("offline", offline);
      this.#ended.abort();
      this.#ending.abort();
      this.#isClosed = true;
      this.#showStatus();
      this.#tabs?.close();
    }
  }

  /** The listener's name in the storage and among tabs. If its token names the device, the token is needed first. */
  async #nameOf(isShared: boolean): Promise<string> {
    const { device, token, storage, url } = this.#options;
    let name = device ?? "";
    const isInToken = device === undefined && token !== undefined && (storage !== undefined || isShared);
    for (let failures = 1; isInToken && !this.#ending.signal.aborted; failures++)
      try {
        const { sub } = claimsOf(await this.#service.token());
        if (typeof sub === "string") this.#device = name = sub;
        break;
      } catch (error) {
        this.#error = messageWithCauses(error);
        this.#changed();
        const pauseMs = jitterMs(this.#service.random, failures, 500, this.#service.timing.pauseMsMax);
        await this.#sleep.sleep(pauseMs, this.#ending.signal);
      }
    this.#error = null;
    return `pere ${url.replace(/\/+$/, "")} ${[...this.#channels].sort().join(",")} ${name}`;
  }

  #openTabs(name: string, locks: LockManager): Tabs | null {
    return openTabs(name, locks, this.#service, {
      isElsewhere: () => this.#isElsewhere,
      wait: () => void (this.#isElsewhere = true),
      lead: (signal) => this.#lead(signal),
      sendStatus: () => this.#showStatus(),
      showStatus: (status) => void this.#status.set({ ...(status ?? this.#snapshot()), isElsewhere: true }),
      showEvent: (event) => call(() => this.#options.onElsewhere?.(event)),
    });
  }

  /** Follows the feed until the signal is aborted: at the end, or when another tab takes the connection. */
  async #lead(signal: AbortSignal): Promise<void> {
    this.#connection = signal;
    this.#isElsewhere = false;
    for (const receipt of await this.#state.load()) this.#outbox.add(receipt);
    if (this.#outbox.receipts.length > 0) this.#outbox.send();
    this.#feed.last = this.#state.last;
    this.#showStatus();
    try {
      await this.#feed.run(signal);
    } catch (error) {
      // Receipts that were not sent stay in the storage.
      this.#ending.abort();
      this.#dropWaiting();
      await this.#save();
      throw error;
    }
    if (this.#ending.signal.aborted) return this.#flush();
    // This tab still sends the receipts of finished events. The others come again, in the other tab.
    this.#isElsewhere = true;
    this.#dropWaiting();
  }

  /** Starts no new event. Open events and unsent receipts have `flushMs` to finish. */
  async #flush(): Promise<void> {
    this.#dropWaiting();
    const stop = this.#service.setTimer(() => this.#ended.abort(), this.#service.timing.flushMs);
    this.#outbox.flush();
    const ended = aborted(this.#ended.signal);
    while (!this.#ended.signal.aborted && (this.#queue.open > 0 || this.#outbox.receipts.length > 0)) {
      const idle = deferred();
      this.#idle.push(idle.resolve);
      await Promise.race([idle.promise, ended]);
    }
    stop();
    this.#ended.abort();
    await this.#save();
  }

  /** Forgets the events that were not started: the service sends them again next time. */
  #dropWaiting(): void {
    for (const { id } of this.#queue.clear()) this.#state.forget(id);
  }

  #save(): Promise<void> {
    // The tab that has the connection now stores the state; this one must not overwrite it.
    const isLost = this.#isElsewhere || (this.#connection.aborted && !this.#ending.signal.aborted);
    return this.#tabs && isLost ? Promise.resolve() : this.#state.save();
  }

  // ------------------------------------------------------------------------------------------------------------------ status

  #snapshot(): Status {
    const { state, transport, heardAt, retryAt, error } = this.#feed;
    return {
      state: this.#isClosed ? "closed" : state,
      transport,
      device: this.#device,
      isElsewhere: this.#isElsewhere,
      waiting: this.#queue.waiting,
      open: this.#queue.open,
      unsent: this.#outbox.receipts.length,
      rejected: this.#outbox.rejected,
      heardAt,
      retryAt,
      error: this.#error ?? error,
    };
  }

  /** Shows the status once for all changes in this turn of the event loop. */
  #changed(): void {
    if (this.#willShowStatus || this.#isClosed) return;
    this.#willShowStatus = true;
    queueMicrotask(() => {
      this.#willShowStatus = false;
      this.#showStatus();
    });
  }

  #showStatus(): void {
    if (this.#isElsewhere && !this.#isClosed) return;
    const status = this.#snapshot();
    this.#status.set(status);
    if (!this.#isElsewhere) this.#tabs?.sendStatus(status);
  }

  // ------------------------------------------------------------------------------------------------------------------ events

  #control(name: string, body: Record<string, unknown>): void {
    if (name === "ready") this.#ready(body);
    if (name === "gap") call(() => this.#options.onGap?.(body as unknown as Gap));
  }

  /** The service is connected, and says as which device; over long-polling it does not say. */
  #ready(body: Record<string, unknown>): void {
    this.#outbox.retryNow();
    const { device } = body;
    if ("device" in body) {
      this.#device = typeof device === "string" ? device : null;
      this.#isAnonymous = this.#device === null;
    }
    const { device: name, token } = this.#options;
    if (token === undefined && name !== undefined) {
      const isIdentified = device === undefined || device === name;
      this.#outbox.isIdentified = isIdentified;
      if (!isIdentified)
        this.#error = `receipts are not sent: the service takes this device for ${String(device)}, not ${name}; log in as ${name}`;
    }
    if (this.#outbox.receipts.length > 0) this.#outbox.send();
  }

  #receive(event: PushedEvent): void {
    if (this.#connection.aborted) return;
    const state = this.#state.get(event.id);
    if (state === "open") return;
    if (state) {
      // It was finished and comes again: the service does not have its final receipt, unless that is on its way.
      if (!this.#outbox.receipts.some((receipt) => receipt.event === event.id && receipt.status === state.status))
        this.#addReceipt(event, state.status, state.detail);
      return;
    }
    this.#state.set(event.id, "open");
    this.#queue.add(event);
    this.#addReceipt(event, "received");
    this.#tabs?.sendEvent(event);
    this.#queue.start();
  }

  async #handle(event: PushedEvent): Promise<void> {
    const signal = this.#connection;
    const context: Context = {
      signal,
      working: (detail) => void (this.#state.get(event.id) === "open" && this.#addReceipt(event, "working", detail)),
    };
    let [status, detail]: [Word | null, unknown] = ["done", undefined];
    try {
      detail = await this.#options.onEvent(event, context);
    } catch (error) {
      // An event that was interrupted by the end has not failed: it comes again.
      [status, detail] = [signal.aborted ? null : "failed", messageOf(error) || undefined];
    }
    if (status === null) this.#state.forget(event.id);
    else this.#addReceipt(event, status, detail);
    // The outcome is stored before the next event starts, so that after a crash no more than `concurrency` events come again.
    await this.#save();
  }

  #wakeIdle(): void {
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  #addReceipt({ id, channel }: PushedEvent, status: Word, result?: unknown): void {
    const detail = detailOf(result);
    const isFinal = status === "done" || status === "failed";
    if (isFinal) this.#state.set(id, { status, detail });
    if (this.#isAnonymous) {
      if (isFinal) this.#state.settle(id);
    } else {
      const at = new Date(this.#service.now()).toISOString();
      this.#outbox.add({ event: id, channel, status, ...(detail === undefined ? {} : { detail }), at });
      this.#outbox.send();
    }
    void this.#save();
    this.#changed();
  }
}

/** @throws TypeError for an option with which no event could be handled, or no device followed */
function checkOptions({ onEvent, device, concurrency = 1 }: ListenOptions): void {
  if (typeof onEvent !== "function") throw new TypeError(`onEvent must be a function, not ${String(onEvent)}`);
  if (typeof concurrency !== "number" || Number.isNaN(concurrency))
    throw new TypeError(`concurrency must be a number, not ${String(concurrency)}`);
  if (device !== undefined && !/^[A-Za-z0-9._:~-]{1,128}$/.test(device))
    throw new TypeError(`device must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -, not ${JSON.stringify(device)}`);
}
