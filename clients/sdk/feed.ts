/**
 * A feed that is followed until its signal ends it: over Server-Sent Events first, then a WebSocket, then long-polling. After each break it continues
 * from the last position.
 */
import { BlockedError, errorOf, messageWithCauses, notFromPere, objectOf } from "./errors.ts";
import { RETRY_AFTER_MS_MAX, RetryableError } from "./errors.ts";
import { EventStreamReader } from "./event-stream.ts";
import { controlOf, entryOf, type Log, pollOf } from "./messages.ts";
import { PereError, type Transport } from "./model.ts";
import { addressOf, type ServiceClient } from "./service-client.ts";
import { aborted, jitterMs, Sleep } from "./timing.ts";
import { Watchdog } from "./watchdog.ts";
import { FeedSocket, type SendReceipts } from "./websocket.ts";

/** Channels of one feed: the service's limit. */
const CHANNELS_MAX = 16;

/** Events that may wait for `onEvent`. With more, the feed is not read until half of them are handled. */
export const WAITING_MAX = 1_000;

/** The longest wait of a long-poll: many proxies cut a response after 30 s. */
const POLL_SECONDS = 25;

/** The shortest pause between two connections. */
const RETRY_MS_MIN = 50;

/** The pause after a connection ended, from and to, until the service has sent its own. */
const RETRY_MS = [1_000, 4_000] as const;

/** Pauses after `bye` on a socket, which has no `retry:`. They are those that the service sends in an event stream. */
const BYE_MS = new Map<unknown, readonly [number, number]>([
  ["renew", [50, 500]],
  ["drain", [500, 3_000]],
  ["busy", [5_000, 20_000]],
]);

/** In the order in which they are tried. */
const TRANSPORTS: readonly Transport[] = ["sse", "websocket", "longpoll"];

/** What follows a feed. */
export interface FeedHandler {
  /** An event, or a receipt. */
  entry(value: Record<string, unknown>): void;
  /** A control message, such as `ready`, `gap`, `bye`, `withdrawn` or `complete`. */
  control(name: string, body: Record<string, unknown>): void;
  /** Null: more can be taken. Otherwise nothing is read until the promise resolves. */
  room(): Promise<void> | null;
  /** The feed's state has changed. */
  changed(): void;
}

export class Feed {
  readonly #service: ServiceClient;
  readonly #log: Log;
  readonly #channels: readonly string[];
  readonly #query: Record<string, string>;
  readonly #handler: FeedHandler;
  readonly #sleep: Sleep;
  /** The position from which it continues. Opaque. */
  last: string;
  state: "connecting" | "connected" | "behind" | "offline" = "connecting";
  transport: Transport | null = null;
  heardAt: number | null = null;
  error: string | null = null;
  retryAt: number | null = null;
  /** Whether the service has sent `ready` on this connection, and whether it has said when to reconnect. */
  #isReady = false;
  #isRetryTold = false;
  #retryMs: number;
  /** The transport, as an index of `TRANSPORTS`. */
  #level = 0;
  /** When SSE is tried again after a fallback, on the monotonic clock; and how often it failed. */
  #sseRetryAt = 0;
  #sseFailures = 0;
  #sendReceipts: SendReceipts | null = null;
  /** That of the open connection. */
  #watchdog: Watchdog | null = null;

  /** @param last the position to continue from; empty: none @throws RangeError when there are no channels, or too many */
  constructor(
    service: ServiceClient,
    log: Log,
    channels: readonly string[],
    query: Record<string, string>,
    last: string,
    handler: FeedHandler,
  ) {
    if (channels.length === 0 || channels.length > CHANNELS_MAX)
      throw new RangeError(`a feed takes 1 to ${CHANNELS_MAX} channels, not ${channels.length}`);
    this.#service = service;
    this.#sleep = new Sleep(service.setTimer);
    this.#log = log;
    this.#channels = channels;
    this.#query = query;
    this.#handler = handler;
    this.last = last;
    this.#retryMs = this.#between(RETRY_MS);
  }

  #between([from, to]: readonly [number, number]): number {
    return Math.min(this.#service.timing.pauseMsMax, from + (to - from) * this.#service.random());
  }

  /** Sends receipts over the open WebSocket; null: there is none. */
  get sendReceipts(): SendReceipts | null {
    return this.#sendReceipts;
  }

  /** The network may be back: a pause ends now, and SSE is tried first. */
  retryNow(): void {
    this.#sseRetryAt = 0;
    this.#sleep.wake();
  }

  /** The network may be gone, and the connection with it although it has not noticed: opens it again. */
  reopen(): void {
    this.#watchdog?.end("the network may be gone");
  }

  /** Follows until the signal ends it. @throws PereError when the service refuses for good */
  async run(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted;) {
      const room = this.#handler.room();
      if (room) {
        this.#show("behind");
        await room;
        continue; // The signal may have ended it meanwhile.
      }
      if (this.#level > 0 && this.#service.monotonic() >= this.#sseRetryAt) this.#level = 0;
      this.#isReady = this.#isRetryTold = false;
      if (this.state !== "offline") this.#show("connecting");
      const error = await this.#connect(signal);
      if (signal.aborted) return;
      if (error instanceof PereError) throw error;
      if (this.#isReady) failures = 0;
      else if (!(error instanceof BlockedError)) failures++;
      const pauseMs = this.#pauseAfter(error, failures);
      if (pauseMs === null) continue;
      this.error = error?.message ?? this.error;
      if (error) this.#service.report(error.message);
      this.retryAt = this.#service.now() + pauseMs;
      this.#show(this.#isReady ? "connecting" : "offline");
      await this.#sleep.sleep(pauseMs, signal);
      this.retryAt = null;
    }
  }

  /** One connection, to its end. @returns why it ended; null: another is opened at once */
  async #connect(signal: AbortSignal): Promise<PereError | RetryableError | null> {
    let token: string | null;
    try {
      token = await this.#service.token();
    } catch (error) {
      return new RetryableError(messageWithCauses(error));
    }
    if (signal.aborted) return null;
    const watchdog = new Watchdog(signal, this.#service, this.#service.timing.firstByteMs);
    this.#watchdog = watchdog;
    try {
      const transport = TRANSPORTS[this.#level]!;
      if (transport === "longpoll") return await this.#followPolls(watchdog);
      return await (transport === "sse" ? this.#followStream(watchdog, token) : this.#followSocket(watchdog, token));
    } catch (error) {
      if (error instanceof PereError && error.status === 401 && this.#service.isRefusedAgain)
        return new RetryableError(error.message);
      if (error instanceof PereError || error instanceof RetryableError) return error;
      if (watchdog.reason instanceof BlockedError) return watchdog.reason;
      return watchdog.reason === null ? new RetryableError(messageWithCauses(error)) : null;
    } finally {
      watchdog.end("the connection ended");
      this.#watchdog = null;
      this.transport = null;
    }
  }

  /** Chooses the next transport. @returns the pause before the next connection, in milliseconds; null: none */
  #pauseAfter(error: RetryableError | null, failures: number): number | null {
    const { monotonic, random, timing } = this.#service;
    if (error === null) return null;
    if (error instanceof BlockedError && this.#level < TRANSPORTS.length - 1) {
      if (this.#level === 0) this.#sseRetryAt = monotonic() + timing.againMs * 2 ** Math.min(4, this.#sseFailures++);
      this.#level++;
      this.error = error.message;
      return null;
    }
    // If no transport gets through, the transport is not the cause: SSE is tried first again.
    if (this.#level === TRANSPORTS.length - 1 && (failures > 1 || error instanceof BlockedError)) this.#level = 0;
    const ownMs = jitterMs(random, failures, 500, timing.pauseMsMax);
    if (error.pauseMs !== null) return Math.max(error.pauseMs * (1 + random() / 5), ownMs, RETRY_MS_MIN);
    // Never sooner than the service said last, even if it could not be reached this time.
    if (this.#isReady) return Math.max(this.#retryMs, RETRY_MS_MIN);
    return this.#isRetryTold ? Math.max(this.#retryMs, ownMs, RETRY_MS_MIN) : this.#retryMs + ownMs;
  }

  #show(state: Feed["state"]): void {
    this.state = state;
    this.#handler.changed();
  }

  /** Bytes arrived. Before `ready` they may come from anything, which may send them without end, so they are no sign of life. */
  #heard(watchdog: Watchdog): void {
    if (!this.#isReady) return;
    watchdog.heard();
    this.heardAt = this.#service.now();
  }

  #ready(): void {
    this.#isReady = true;
    this.error = null;
    this.transport = TRANSPORTS[this.#level]!;
    this.#service.accepted();
    this.#show("connected");
  }

  /** @throws BlockedError when PERE sends no such message */
  #control(name: string, body: Record<string, unknown>): void {
    const checked = controlOf(this.#log, name, body, this.#channels);
    if (name === "ready") this.#ready();
    this.#handler.control(name, checked);
  }

  /** An event or a receipt. @throws BlockedError when PERE sends no such entry */
  #entry(text: string, value: unknown): Record<string, unknown> {
    const entry = entryOf(this.#log, text, value, this.#channels);
    this.#handler.entry(entry);
    return entry;
  }

  #address(query: Record<string, string> = {}): string {
    const last: Record<string, string> = this.last === "" ? {} : { "last-event-id": this.last };
    return addressOf(this.#service.base, this.#log, this.#channels, { ...this.#query, ...last, ...query });
  }

  // ------------------------------------------------------------------------------------------------- Server-Sent Events

  async #followStream(watchdog: Watchdog, token: string | null): Promise<RetryableError | null> {
    const response = await this.#service.request(this.#address(), {
      headers: { Accept: "text/event-stream", ...(token === null ? {} : { Authorization: `Bearer ${token}` }) },
      cache: "no-store",
      signal: watchdog.signal,
    });
    const { ok, status, headers, body } = response;
    if (!ok) {
      const error = await errorOf(response, this.#service.now());
      return error instanceof PereError ? this.#refused(error, token) : error;
    }
    const type = headers.get("content-type") ?? "";
    if (status !== 200 || !/^text\/event-stream *(;|$)/i.test(type) || !body)
      throw new BlockedError(
        `the response is not an event stream, but has status ${status} and content type "${type}"`,
      );
    await this.#readStream(body, watchdog);
    return new RetryableError("the event stream ended");
  }

  async #readStream(body: ReadableStream<Uint8Array>, watchdog: Watchdog): Promise<void> {
    const { monotonic, timing } = this.#service;
    const reader = body.getReader();
    const decoder = new TextDecoder();
    const stream = new EventStreamReader(
      (event, data, id) => this.#message(event, data, id),
      (ms) => this.#retryAfter(ms),
    );
    const openedAt = monotonic();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        watchdog.setLimit(timing.silentMs);
        // A stream that still brings something after a while is not held back.
        if (monotonic() - openedAt > timing.silentMs / 4) this.#sseFailures = 0;
        stream.feed(decoder.decode(value, { stream: true }));
        this.#heard(watchdog);
        this.#handler.changed();
        const room = this.#handler.room();
        if (room) await this.#pauseReading(watchdog, room);
      }
    } finally {
      reader.cancel().catch(() => {}); // A stream that was cut can't be cancelled.
    }
  }

  #retryAfter(ms: number): void {
    if (ms > RETRY_AFTER_MS_MAX) return;
    this.#retryMs = ms;
    this.#isRetryTold = true;
  }

  /** Reads nothing until there is room: what is not read stays at the service. */
  async #pauseReading(watchdog: Watchdog, room: Promise<void>): Promise<void> {
    this.#show("behind");
    watchdog.setLimit(Number.POSITIVE_INFINITY);
    await Promise.race([room, aborted(watchdog.signal)]);
    watchdog.setLimit(this.#service.timing.silentMs);
    this.#show("connected");
  }

  /** @throws BlockedError when PERE sends no such message; the position then stays */
  #message(event: string, data: string | null, id: string): void {
    if (data !== null) {
      const value = objectOf(data, this.#service.parse);
      if (event.startsWith("pere.")) this.#control(event.slice(5), value);
      else if (this.#isReady) this.#entry(data, value);
      else throw notFromPere();
    }
    // A position counts after what comes before it was handled, and only on a stream of the service.
    if (id !== "" && this.#isReady) this.last = id;
  }

  /**
   * With a token function, another token may be accepted, now or later. A device that nobody looks after for years must not give up.
   * @returns null: it is tried again at once @throws the error, if there is no other token
   */
  #refused(error: PereError, token: string | null): RetryableError | null {
    if (error.status !== 401 || !this.#service.refused(token)) throw error;
    return this.#service.isRefusedAgain ? new RetryableError(error.message) : null;
  }

  // ---------------------------------------------------------------------------------------------------------- WebSocket

  async #followSocket(watchdog: Watchdog, token: string | null): Promise<RetryableError | null> {
    const { monotonic, setTimer } = this.#service;
    const at = { log: this.#log, url: this.#address(), token };
    const socket = new FeedSocket(this.#service, watchdog, at, {
      isReady: () => this.#isReady,
      control: (name, body) => {
        this.#control(name, body);
        if (name === "bye") this.#retryAfter(this.#between(BYE_MS.get(body.reason) ?? RETRY_MS));
      },
      entry: (text, value) => this.#entry(text, value),
      moveTo: (position) => void (this.last = position),
      handled: () => {
        this.#heard(watchdog);
        this.#handler.changed();
        return this.#handler.room() === null;
      },
      setSendReceipts: (send) => void (this.#sendReceipts = send),
    });
    const stop = setTimer(() => watchdog.end("SSE is tried again"), this.#sseRetryAt - monotonic());
    try {
      return await socket.follow();
    } finally {
      stop();
    }
  }

  // ---------------------------------------------------------------------------------------------------------- long-poll

  async #followPolls(watchdog: Watchdog): Promise<null> {
    const { timing, monotonic, parse } = this.#service;
    // Each poll has its own time limit.
    watchdog.setLimit(Number.POSITIVE_INFINITY);
    for (
      let wait = 0;
      ;
      wait = Math.min(POLL_SECONDS, Math.max(1, Math.ceil((this.#sseRetryAt - monotonic()) / 1000)))
    ) {
      if (this.#handler.room() || (this.#isReady && monotonic() >= this.#sseRetryAt)) return null;
      const text = await this.#service.ask(
        this.#address({ wait: String(wait) }),
        { headers: { Accept: "application/json" }, cache: "no-store" },
        watchdog.signal,
        wait * 1000 + timing.requestMs,
      );
      const { entries, gaps, notices, last } = pollOf(this.#log, text, this.#channels, parse);
      if (!this.#isReady) {
        this.#ready();
        this.#handler.control("ready", {});
      }
      this.#heard(watchdog);
      for (const gap of gaps) this.#handler.control("gap", gap);
      for (const entry of entries) this.#handler.entry(entry);
      for (const { name, body } of notices) this.#handler.control(name, body);
      this.last = last;
      this.#handler.changed();
    }
  }
}
