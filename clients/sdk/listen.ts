/**
 * `listen`: a device. It runs `onEvent` once per event and sends receipts until the service has answered each of them.
 *
 * A named device that starts sends no position: the service sends every event that the device has not finished. The device remembers only which events
 * it has finished, until the service has those receipts too.
 */
import { Feed, WAITING_MAX } from "./feed.ts";
import { type Kept, keptOf } from "./kept.ts";
import type { Gap, PushedEvent, Receipt, Word } from "./model.ts";
import { detailOf, Outbox } from "./outbox.ts";
import { claimsOf, type ConnectionOptions, ServiceClient } from "./service-client.ts";
import { type Observable, type Status, StatusSignal } from "./status.ts";
import type { DeviceStorage } from "./storage.ts";
import { call, jitterMs, type Promised, promised, Sleep } from "./timing.ts";
import { messageOf, sentenceOf } from "./trouble.ts";
import { jsonOf } from "./values.ts";

/** Finished events that are remembered after the service has their receipts. It gives those to nobody again, so the last ones are enough. */
const SETTLED_MAX = 2_000;

/** A tab that waits for its turn is shown to be elsewhere after this, and asks the leading tab for a sign of life as often. */
const ELSEWHERE_MS = 250;

const QUESTION_MS = 2_000;

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
   * error's message is the detail). It may take as long as it likes, such as until somebody presses a button.
   */
  readonly onEvent: (event: PushedEvent<Data>, context: Context) => unknown;
  /** How many events may be open at once. The default is 1: one after the other, in their channel's order. */
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
  /** Resolves when it has ended. @throws PereError when the service said no for good */
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

/** What tabs of one device say to each other. */
interface TabMessage {
  readonly status?: Status;
  readonly event?: PushedEvent;
  /** An event, as JSON. */
  readonly text?: string;
  /** Who leads is to say how it is. */
  readonly question?: true;
}

/** What is known of an event that has come: it waits or is open, or this was its final word. */
type Known = "open" | Pick<Receipt, "status" | "detail">;

class Device implements Listener {
  readonly closed: Promise<void>;
  readonly #options: ListenOptions;
  readonly #line: ServiceClient;
  readonly #feed: Feed;
  readonly #outbox: Outbox;
  readonly #channels: readonly string[];
  readonly #status: StatusSignal;
  readonly #concurrency: number;
  /** Aborted when it is to end; `#over` when it has. */
  readonly #ending = new AbortController();
  readonly #over = new AbortController();
  /** Aborted when the connection is not here: at the end, and when another tab has it. */
  #term = new AbortController();
  readonly #known = new Map<string, Known>();
  readonly #settled: string[] = [];
  readonly #nap: Sleep;
  #name = "";
  #device: string | null;
  #isAnonymous: boolean;
  #waiting: PushedEvent[] = [];
  #open = 0;
  #room: Promised<void> | null = null;
  #idle: (() => void)[] = [];
  #saving: Promise<void> | null = null;
  #isDirty = false;
  #trouble: string | null = null;
  #isElsewhere = false;
  #isClosed = false;
  #last = "";
  #isTelling = false;
  #tabs: BroadcastChannel | null = null;
  /** By what tabs agree on who has the connection; null: they don't. */
  #locks: LockManager | null = null;
  /** What the leading tab was asked since it gave a sign of life, and when that was. */
  #questions = 0;
  #leaderHeardAt = 0;
  /** Ends the waiting for the turn, to take it. */
  #toTake: (() => void) | null = null;
  /** There while the page is frozen. */
  #frozen: Promised<void> | null = null;

  constructor(options: ListenOptions) {
    checkOptions(options);
    this.#options = options;
    this.#line = new ServiceClient(options);
    this.#nap = new Sleep(this.#line.setTimer);
    this.#channels = typeof options.channels === "string" ? options.channels.split(",") : options.channels;
    this.#concurrency = Math.max(1, options.concurrency ?? 1);
    this.#device = options.device ?? null;
    this.#isAnonymous = options.device === undefined && options.token === undefined;
    this.#feed = new Feed(
      this.#line,
      "feed",
      this.#channels,
      {
        ...(options.device === undefined ? {} : { device: options.device }),
        ...(options.since === undefined ? {} : { since: options.since }),
      },
      "",
      {
        take: (value) => this.#take(value as unknown as PushedEvent),
        own: (name, body) => this.#own(name, body),
        room: () => this.#hasRoom(),
        changed: () => this.#changed(),
      },
    );
    this.#outbox = new Outbox(
      this.#line,
      this.#feed,
      {
        device: options.device,
        save: () => this.#save(),
        settle: (event) => this.#settle(event),
        trouble: (why) => void (this.#trouble = why),
        changed: () => this.#changed(),
        idle: () => this.#isIdle(),
        accepted: (receipt) => call(() => options.onReceipt?.(receipt)),
        rejected: (receipt, reason) => call(() => options.onRejected?.(receipt, reason)),
      },
      {
        ending: this.#ending.signal,
        over: this.#over.signal,
        isKnown: options.device === undefined || options.token !== undefined,
      },
    );
    this.#status = new StatusSignal(this.#snapshot());
    const end = (): void => void this.close();
    if (options.signal?.aborted) end();
    options.signal?.addEventListener("abort", end);
    this.closed = this.#run().finally(() => options.signal?.removeEventListener("abort", end));
    // Whoever does not ask how it ended is not told by a crash.
    this.closed.catch(() => {});
  }

  status(): Observable<Status> {
    return this.#status;
  }

  close(): Promise<void> {
    this.#ending.abort();
    return this.closed;
  }

  // -------------------------------------------------------------------------------------------------------- from start to end

  take(): void {
    this.#toTake?.();
  }

  async #run(): Promise<void> {
    const online = (): void => {
      this.#feed.hurry();
      this.#nap.wake();
      this.#outbox.hurry();
    };
    const offline = (): void => this.#feed.doubt();
    const end = (): void => this.#term.abort();
    globalThis.addEventListener?.("online", online);
    globalThis.addEventListener?.("offline", offline);
    this.#ending.signal.addEventListener("abort", end);
    if (this.#ending.signal.aborted) end();
    this.#locks = this.#tabLocks();
    try {
      await this.#named();
      await (this.#locks && this.#openTabs() ? this.#share(this.#locks) : this.#lead());
    } catch (error) {
      this.#trouble = sentenceOf(error);
      throw error;
    } finally {
      globalThis.removeEventListener?.("online", online);
      globalThis.removeEventListener?.("offline", offline);
      this.#over.abort();
      this.#ending.abort();
      this.#isClosed = true;
      this.#tell();
      this.#tabs?.close();
    }
  }

  /** Finds what it is called in storage and among tabs; where its token names it, that must be had first. */
  async #named(): Promise<void> {
    const { device, token, storage, url } = this.#options;
    let name = device ?? "";
    const isTokens = device === undefined && token !== undefined && (storage !== undefined || this.#locks !== null);
    for (let failures = 1; isTokens && !this.#ending.signal.aborted; failures++)
      try {
        const { sub } = claimsOf(await this.#line.token());
        if (typeof sub === "string") this.#device = name = sub;
        break;
      } catch (error) {
        this.#trouble = sentenceOf(error);
        this.#changed();
        await this.#nap.sleep(this.#pauseMs(failures), this.#ending.signal);
      }
    this.#trouble = null;
    this.#name = `pere ${url.replace(/\/+$/, "")} ${[...this.#channels].sort().join(",")} ${name}`;
  }

  /** The connection is here, until the end or until another tab has it. */
  async #lead(): Promise<void> {
    this.#isElsewhere = false;
    await this.#recall();
    if (this.#outbox.receipts.length > 0) this.#outbox.send();
    this.#feed.last = this.#last;
    this.#tell();
    try {
      await this.#feed.run(this.#term.signal);
    } catch (error) {
      // What it can't be told now is kept.
      this.#ending.abort();
      this.#giveUp();
      await this.#save();
      throw error;
    }
    if (this.#ending.signal.aborted) return this.#finish();
    // What was finished goes on being told; what was not comes again, in the other tab.
    this.#isElsewhere = true;
    this.#giveUp();
  }

  /** No new event is begun; what is open and what is unsent has `flushMs`. */
  async #finish(): Promise<void> {
    this.#giveUp();
    const stop = this.#line.setTimer(() => this.#over.abort(), this.#line.timing.flushMs);
    this.#outbox.finish();
    const over = promised();
    this.#over.signal.addEventListener("abort", () => over.resolve());
    while (!this.#over.signal.aborted && (this.#open > 0 || this.#outbox.receipts.length > 0)) {
      const idle = promised();
      this.#idle.push(idle.resolve);
      await Promise.race([idle.promise, over.promise]);
    }
    stop();
    this.#over.abort();
    await this.#save();
  }

  /** What was not begun comes again, next time. */
  #giveUp(): void {
    for (const { id } of this.#waiting) this.#known.delete(id);
    this.#waiting = [];
    this.#makeRoom();
  }

  #pauseMs(failures: number): number {
    return jitterMs(this.#line.random, failures, 500, this.#line.timing.pauseMsMax);
  }

  // -------------------------------------------------------------------------------------------------------------------- tabs

  /** What tabs would agree by; null: they need not, or this browser can't. */
  #tabLocks(): LockManager | null {
    const { share = true } = this.#options;
    if (!share || this.#isAnonymous || typeof document === "undefined") return null;
    try {
      return navigator.locks ?? null;
    } catch {
      return null;
    }
  }

  /** Tabs hear each other from now on. @returns false: this browser does not let them */
  #openTabs(): boolean {
    try {
      this.#tabs = new BroadcastChannel(this.#name);
    } catch {
      return false;
    }
    this.#tabs.onmessage = ({ data }: MessageEvent<TabMessage>) => {
      if (!this.#isElsewhere) return void (data.question && this.#tell());
      if (data.status && data.status.state !== "closed") {
        this.#questions = 0;
        this.#leaderHeardAt = this.#line.monotonic();
        this.#status.set({ ...data.status, isElsewhere: true });
      }
      const event = data.event ?? (data.text === undefined ? undefined : jsonOf(data.text, this.#line.parse));
      if (event) call(() => this.#options.onElsewhere?.(event as PushedEvent));
    };
    return true;
  }

  /** Says something to the other tabs. @returns whether it could be */
  #say(message: TabMessage): boolean {
    try {
      this.#tabs?.postMessage(message);
      return true;
    } catch {
      return false;
    }
  }

  /** One tab leads; the others hear of it what it sees, and one of them follows when it ends, is frozen, or shows no sign of life. */
  async #share(locks: LockManager): Promise<void> {
    const freeze = (): void => {
      this.#frozen ??= promised();
      this.#term.abort();
    };
    const resume = (): void => {
      this.#frozen?.resolve();
      this.#frozen = null;
    };
    document.addEventListener("freeze", freeze);
    document.addEventListener("resume", resume);
    this.#ending.signal.addEventListener("abort", resume);
    try {
      let isTaking = false;
      while (!this.#ending.signal.aborted) {
        await this.#frozen?.promise;
        this.#term = new AbortController();
        isTaking = await this.#turn(locks, isTaking);
      }
      await this.#finish();
    } finally {
      document.removeEventListener("freeze", freeze);
      document.removeEventListener("resume", resume);
    }
  }

  /**
   * Waits for the turn and leads, until the end or until another tab has taken it; or waits until the turn is to be taken.
   * @param isTaking it is taken from whoever has it @returns whether it is to be taken next
   */
  async #turn(locks: LockManager, isTaking: boolean): Promise<boolean> {
    const waiting = new AbortController();
    const stop = (): void => waiting.abort();
    let leading: Promise<unknown> | null = null;
    let isToTake = false;
    const lead = (): Promise<unknown> => {
      stopWaiting();
      leading = this.#lead().then(
        () => null,
        (error: unknown) => ({ error }),
      );
      return leading;
    };
    const stopWaiting = this.#waitElsewhere(() => {
      isToTake = true;
      stop();
    });
    this.#term.signal.addEventListener("abort", stop);
    if (this.#ending.signal.aborted) this.#term.abort();
    try {
      await locks.request(this.#name, isTaking ? { steal: true } : { signal: waiting.signal }, lead);
    } catch {
      // Another tab has taken the turn, this one is to take it or to end; or the browser gives no locks, and nobody shares.
      if (leading === null && !waiting.signal.aborted) void lead();
      else this.#term.abort();
    } finally {
      stopWaiting();
    }
    const failure = (await leading) as { error: unknown } | null;
    if (failure) throw failure.error;
    return isToTake;
  }

  /** Asks the leading tab for a sign of life, now and then. @param take called when there is none, or when this tab is told to @returns ends it */
  #waitElsewhere(take: () => void): () => void {
    const { setTimer, timing, monotonic } = this.#line;
    this.#questions = 0;
    this.#leaderHeardAt = monotonic();
    this.#isElsewhere = true;
    this.#toTake = take;
    const ask = (): void => {
      // A tab that nobody sees is seldom given time: what counts is that several questions had none.
      if (this.#questions > 2 && monotonic() - this.#leaderHeardAt > timing.leaderMs) return take();
      this.#questions++;
      this.#say({ question: true });
      stopAsking = setTimer(ask, Math.min(QUESTION_MS, timing.leaderMs / 4));
    };
    let stopAsking = setTimer(ask, 0);
    const stopShowing = setTimer(
      () => this.#questions > 0 && this.#status.set({ ...this.#snapshot(), isElsewhere: true }),
      ELSEWHERE_MS,
    );
    return () => {
      this.#toTake = null;
      stopAsking();
      stopShowing();
    };
  }

  /** The other tabs see an event that is worked on here. What `parse` made may be nothing that can be handed over; its text can. */
  #showTabs(event: PushedEvent): void {
    if (this.#tabs === null || this.#say({ event })) return;
    const { data: _, ...rest } = event;
    this.#say({ text: `${JSON.stringify(rest).slice(0, -1)},"data":${event.text}}` });
  }

  // ------------------------------------------------------------------------------------------------------------------ status

  #snapshot(): Status {
    const { state, transport, heardAt, retryAt, error } = this.#feed;
    return {
      state: this.#isClosed ? "closed" : state,
      transport,
      device: this.#device,
      isElsewhere: this.#isElsewhere,
      waiting: this.#waiting.length,
      open: this.#open,
      unsent: this.#outbox.receipts.length,
      rejected: this.#outbox.rejected,
      heardAt,
      retryAt,
      error: this.#trouble ?? error,
    };
  }

  /** Something changed; it is told once for all that changes in this turn. */
  #changed(): void {
    if (this.#isTelling || this.#isClosed) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      this.#isTelling = false;
      this.#tell();
    });
  }

  #tell(): void {
    if (this.#isElsewhere && !this.#isClosed) return;
    const status = this.#snapshot();
    this.#status.set(status);
    if (!this.#isElsewhere) this.#say({ status });
  }

  // ------------------------------------------------------------------------------------------------------------------ events

  #own(name: string, body: Record<string, unknown>): void {
    if (name === "ready") this.#outbox.hurry();
    if (name === "ready" && "device" in body) {
      // A token says who its bearer is.
      this.#device = typeof body.device === "string" ? body.device : null;
      this.#isAnonymous = this.#device === null;
    }
    if (name === "ready") this.#meet(body);
    if (name === "gap") call(() => this.#options.onGap?.(body as unknown as Gap));
  }

  /** The service said whom it takes this for; before that, and to another one, no receipt is given. A long-poll does not say. */
  #meet({ device }: Record<string, unknown>): void {
    const wanted = this.#options.device;
    if (this.#options.token === undefined && wanted !== undefined) {
      this.#outbox.isKnown = device === undefined || device === wanted;
      if (!this.#outbox.isKnown) this.#trouble = `receipts wait: the service takes this device for ${String(device)}`;
    }
    if (this.#outbox.receipts.length > 0) this.#outbox.send();
  }

  #take(event: PushedEvent): void {
    if (this.#term.signal.aborted) return;
    const known = this.#known.get(event.id);
    if (known === "open") return;
    if (known) {
      // It comes again although it was finished: the service has not its final word, which may be on its way.
      if (!this.#outbox.receipts.some((receipt) => receipt.event === event.id && receipt.status === known.status))
        this.#give(event, known.status, known.detail);
      return;
    }
    this.#known.set(event.id, "open");
    this.#waiting.push(event);
    this.#give(event, "received");
    this.#showTabs(event);
    this.#begin();
  }

  #begin(): void {
    while (this.#open < this.#concurrency && this.#waiting.length > 0 && !this.#term.signal.aborted) {
      this.#open++;
      void this.#work(this.#waiting.shift()!);
    }
    if (this.#waiting.length <= WAITING_MAX / 2) this.#makeRoom();
    this.#changed();
  }

  async #work(event: PushedEvent): Promise<void> {
    const { signal } = this.#term;
    const context: Context = {
      signal,
      working: (detail) => void (this.#known.get(event.id) === "open" && this.#give(event, "working", detail)),
    };
    let [word, detail]: [Word | null, unknown] = ["done", undefined];
    try {
      detail = await this.#options.onEvent(event, context);
    } catch (error) {
      // What is broken off by the end is not failed: it comes again.
      [word, detail] = [signal.aborted ? null : "failed", messageOf(error) || undefined];
    }
    if (word === null) this.#known.delete(event.id);
    else this.#give(event, word, detail);
    // The next one is not begun before this one's end is written down: after a kill no more than `concurrency` come again.
    await this.#save();
    this.#open--;
    this.#begin();
    this.#isIdle();
  }

  #isIdle(): void {
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  #hasRoom(): Promise<void> | null {
    if (this.#waiting.length < WAITING_MAX || this.#term.signal.aborted) return null;
    this.#room ??= promised();
    return this.#room.promise;
  }

  #makeRoom(): void {
    this.#room?.resolve();
    this.#room = null;
  }

  // ---------------------------------------------------------------------------------------------------------------- receipts

  #give({ id, channel }: PushedEvent, status: Word, result?: unknown): void {
    const detail = detailOf(result);
    const isFinal = status === "done" || status === "failed";
    if (isFinal) this.#known.set(id, { status, detail });
    if (this.#isAnonymous) {
      if (isFinal) this.#settle(id);
    } else {
      const at = new Date(this.#line.now()).toISOString();
      this.#outbox.add({ event: id, channel, status, ...(detail === undefined ? {} : { detail }), at });
      this.#outbox.send();
    }
    void this.#save();
    this.#changed();
  }

  /** The service has the event's final receipt: it need not be remembered for ever. */
  #settle(id: string): void {
    this.#settled.push(id);
    if (this.#settled.length > SETTLED_MAX) this.#known.delete(this.#settled.shift()!);
  }

  // ----------------------------------------------------------------------------------------------------------------- storage

  async #recall(): Promise<void> {
    const { storage } = this.#options;
    if (!storage) return;
    let kept: unknown;
    try {
      kept = jsonOf((await storage.get(this.#name)) ?? "null");
    } catch (error) {
      // Nothing may be put in the place of what can't be read now.
      throw new Error(`what was kept can't be read: ${sentenceOf(error)}`, { cause: error });
    }
    const { settled, outbox, last } = keptOf(kept);
    for (const [id, status] of settled) {
      if (this.#known.has(id)) continue;
      this.#known.set(id, { status });
      this.#settle(id);
    }
    const isThere = new Set(this.#outbox.receipts.map(({ event, status }) => `${event} ${status}`));
    for (const receipt of outbox) {
      const { event, status, detail } = receipt;
      if (isThere.has(`${event} ${status}`)) continue;
      if (status === "done" || status === "failed") this.#known.set(event, { status, detail });
      this.#outbox.add(receipt); // One by one: there may be more than one call takes.
    }
    this.#last = last;
  }

  /** Keeps what must survive. Resolves when all that was there at the call is kept, or could not be. */
  async #save(): Promise<void> {
    // What another tab keeps is not written over.
    const isLost = this.#isElsewhere || (this.#term.signal.aborted && !this.#ending.signal.aborted);
    if (!this.#options.storage || (this.#tabs && isLost)) return;
    this.#isDirty = true;
    this.#saving ??= this.#saveAll();
    await this.#saving;
  }

  async #saveAll(): Promise<void> {
    // All that is given in this turn is written at once.
    await null;
    while (this.#isDirty) {
      this.#isDirty = false;
      // Where nothing waits and nothing is open, all before the feed's position is done.
      if (this.#isAnonymous && this.#waiting.length === 0 && this.#open === 0) this.#last = this.#feed.last;
      const settled = this.#settled.flatMap((id) => {
        const known = this.#known.get(id);
        return known && known !== "open" ? [[id, known.status] as const] : [];
      });
      const kept: Kept = { version: 1, settled, outbox: this.#outbox.receipts, last: this.#last };
      try {
        await this.#options.storage!.set(this.#name, JSON.stringify(kept));
      } catch (error) {
        this.#trouble = `nothing can be kept: ${sentenceOf(error)}`;
        this.#line.trouble(this.#trouble);
        this.#changed();
      }
    }
    this.#saving = null;
  }
}

/** @throws TypeError for an option that would fail every event, work on none, or follow as nobody */
function checkOptions({ onEvent, device, concurrency = 1 }: ListenOptions): void {
  if (typeof onEvent !== "function") throw new TypeError(`onEvent must be a function, not ${String(onEvent)}`);
  if (typeof concurrency !== "number" || Number.isNaN(concurrency))
    throw new TypeError(`concurrency must be a number, not ${String(concurrency)}`);
  if (device !== undefined && !/^[A-Za-z0-9._:~-]{1,128}$/.test(device))
    throw new TypeError(`device must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -, not ${JSON.stringify(device)}`);
}
