/**
 * `listen`: a device. It runs `onEvent` once per event and round, and sends receipts until the service has answered each of them.
 *
 * A named device that starts sends no position: the service sends every event that the device has not finished. The device remembers only which events
 * it has finished, until the service has those receipts too.
 */
import { DeviceState } from "./device-state.ts";
import { messageWithCauses } from "./errors.ts";
import { type Context, EventWork } from "./event-work.ts";
import { Feed } from "./feed.ts";
import type { Gap, LateReason, PushedEvent, Receipt, Withdrawal } from "./model.ts";
import { Outbox } from "./outbox.ts";
import { claimsOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { type Observable, type Status, StatusSignal } from "./status.ts";
import type { DeviceStorage } from "./storage.ts";
import { openTabs, tabLocks, type Tabs } from "./tabs.ts";
import { aborted, call, resolvable, jitterMs, Sleep } from "./timing.ts";

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
   * error's message is the detail). Throw a `Deferred` if the event is to come again later, and a `Failed` for a detail of your own. It may take any
   * time, such as until somebody presses a button.
   */
  readonly onEvent: (event: PushedEvent<Data>, context: Context) => unknown;
  /** How many events may be open at once. The default is 1: one after the other, in the order of their channel. */
  readonly concurrency?: number | undefined;
  /**
   * Where a device that is not yet enrolled starts. The service's default is `now`. With `latest`, any device starts with the newest event of each key,
   * also if it has finished that event before: `onEvent` runs for it again.
   */
  readonly since?: "now" | "earliest" | "latest" | (string & {}) | undefined;
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
  /** Called when the service has accepted a final receipt that came late: after the deadline, or after the event was withdrawn. */
  readonly onLate?: ((receipt: Receipt, reason: LateReason) => void) | undefined;
  /** Called when an event was withdrawn that this device may have got. An event that waits is not begun; the `signal` of one that is open is aborted. */
  readonly onWithdrawn?: ((withdrawal: Withdrawal) => void) | undefined;
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
  readonly #work: EventWork;
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
      entry: (value) => this.#work.receive(value as unknown as PushedEvent),
      control: (name, body) => this.#control(name, body),
      room: () => this.#work.queue.room(),
      changed: () => this.#changed(),
    });
    this.#state = new DeviceState(options.storage, {
      receipts: () => this.#outbox.receipts,
      position: () => (this.#isAnonymous && this.#work.queue.isEmpty ? this.#feed.last : null),
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
        settle: ({ event, round }) => this.#state.settle(event, round),
        error: (why) => void (this.#error = why),
        changed: () => this.#changed(),
        idle: () => this.#wakeIdle(),
        accepted: (receipt) => call(() => options.onReceipt?.(receipt)),
        late: (receipt, reason) => call(() => options.onLate?.(receipt, reason)),
        rejected: (receipt, reason) => {
          this.#work.rejected(receipt);
          call(() => options.onRejected?.(receipt, reason));
        },
      },
      {
        closing: this.#ending.signal,
        closed: this.#ended.signal,
        isIdentified: device === undefined || token !== undefined,
      },
    );
    this.#work = new EventWork(options, this.#state, this.#outbox, {
      connection: () => this.#connection,
      isAnonymous: () => this.#isAnonymous,
      save: () => this.#save(),
      now: this.#service.now,
      arrived: (event) => this.#tabs?.sendEvent(event),
      changed: () => this.#changed(),
      handled: () => this.#wakeIdle(),
    });
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
      showWithdrawal: (withdrawal) => call(() => this.#options.onWithdrawn?.(withdrawal)),
    });
  }

  /** Follows the feed until the signal is aborted: at the end, or when another tab takes the connection. */
  async #lead(signal: AbortSignal): Promise<void> {
    this.#connection = signal;
    this.#isElsewhere = false;
    for (const receipt of await this.#state.load(this.#options.since === "latest")) this.#outbox.add(receipt);
    if (this.#outbox.receipts.length > 0) this.#outbox.send();
    this.#feed.last = this.#state.last;
    this.#showStatus();
    try {
      await this.#feed.run(signal);
    } catch (error) {
      // Receipts that were not sent stay in the storage.
      this.#ending.abort();
      this.#work.dropWaiting();
      await this.#save();
      throw error;
    }
    if (this.#ending.signal.aborted) return this.#flush();
    // This tab still sends the receipts of finished events. The others come again, in the other tab.
    this.#isElsewhere = true;
    this.#work.dropWaiting();
  }

  /** Starts no new event. Open events and unsent receipts have `flushMs` to finish. */
  async #flush(): Promise<void> {
    this.#work.dropWaiting();
    const stop = this.#service.setTimer(() => this.#ended.abort(), this.#service.timing.flushMs);
    this.#outbox.flush();
    const ended = aborted(this.#ended.signal);
    while (!this.#ended.signal.aborted && (this.#work.queue.open > 0 || this.#outbox.receipts.length > 0)) {
      const idle = resolvable();
      this.#idle.push(idle.resolve);
      await Promise.race([idle.promise, ended]);
    }
    stop();
    this.#ended.abort();
    await this.#save();
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
      waiting: this.#work.queue.waiting,
      open: this.#work.queue.open,
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
    if (name === "withdrawn") this.#withdrawn(body as unknown as Withdrawal);
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

  #withdrawn(withdrawal: Withdrawal): void {
    if (this.#connection.aborted) return;
    this.#work.withdraw(withdrawal);
    this.#tabs?.sendWithdrawal(withdrawal);
    call(() => this.#options.onWithdrawn?.(withdrawal));
  }

  #wakeIdle(): void {
    for (const resolve of this.#idle.splice(0)) resolve();
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
