/**
 * A feed, followed until it is ended: Server-Sent Events first, then a WebSocket, then long-polls. After each break it continues from the last position.
 */
import { RequestQueue, type SendReceipts, Watch } from "./connection.ts";
import { entryOf, isAhead } from "./entries.ts";
import { EventStreamReader } from "./event-stream.ts";
import { PereError, type Transport } from "./model.ts";
import { addressOf, type ServiceClient, type SocketLike } from "./service-client.ts";
import { jitterMs, promised, Sleep } from "./timing.ts";
import { ASKED_MS_MAX, Blocked, foreign, objectOf, refusalOf, sentenceOf, Trouble } from "./trouble.ts";
import { isObject, isText, partsOf } from "./values.ts";

/** Channels of one feed: the service's limit. */
const CHANNELS_MAX = 16;

/** Events that may wait for `onEvent`; beyond that the feed is left unread until half of them are gone. */
export const WAITING_MAX = 1_000;

/** Seconds for which a long-poll may wait: proxies cut after 30. */
const POLL_SECONDS = 25;

const RETRY_MS_MIN = 50;

/** Who follows a feed. */
interface FeedHandler {
  /** Something that was pushed: an event, or a receipt. */
  take(value: Record<string, unknown>): void;
  /** The service's own: `ready`, `gap`, `bye`, `complete`. */
  own(name: string, body: Record<string, unknown>): void;
  /** A promise: it has more than it can take; it goes on when the promise resolves. */
  room(): Promise<void> | null;
  /** Something of the feed's state is new. */
  changed(): void;
}

/** Pauses after `pere.bye` on a socket, which has no `retry:`; from and to, as the service spreads them on SSE. */
const BYE_MS = new Map<unknown, readonly [number, number]>([
  ["renew", [50, 500]],
  ["drain", [500, 3_000]],
  ["busy", [5_000, 20_000]],
]);

const RETRY_MS = [1_000, 4_000] as const;

const LADDER: readonly Transport[] = ["sse", "websocket", "longpoll"];

/** A log that is followed for as long as it is wanted, by whatever gets through, from where it broke off. */
export class Feed {
  readonly #line: ServiceClient;
  readonly #path: "feed" | "feedback";
  readonly #channels: readonly string[];
  readonly #query: Record<string, string>;
  readonly #taker: FeedHandler;
  readonly #nap: Sleep;
  /** Where it goes on; opaque. */
  last: string;
  state: "connecting" | "connected" | "behind" | "offline" = "connecting";
  transport: Transport | null = null;
  heardAt: number | null = null;
  error: string | null = null;
  retryAt: number | null = null;
  /** Whether the connection got through, and whether it told when to come back. */
  #isReady = false;
  #isTold = false;
  #retryMs: number;
  #rung = 0;
  #againAt = 0;
  #againTimes = 0;
  #ask: SendReceipts | null = null;
  /** The connection that is open. */
  #watch: Watch | null = null;
  /** Where each channel stands, on a socket, which has no `id:` line. */
  #positions: Record<string, string> = {};

  constructor(
    line: ServiceClient,
    path: "feed" | "feedback",
    channels: readonly string[],
    query: Record<string, string>,
    last: string,
    taker: FeedHandler,
  ) {
    if (channels.length === 0 || channels.length > CHANNELS_MAX)
      throw new RangeError(`channels: 1 to ${CHANNELS_MAX} on a feed`);
    this.#line = line;
    this.#nap = new Sleep(line.setTimer);
    this.#path = path;
    this.#channels = channels;
    this.#query = query;
    this.#taker = taker;
    this.last = last;
    this.#retryMs = this.#between(RETRY_MS);
  }

  #between([from, to]: readonly [number, number]): number {
    return Math.min(this.#line.timing.pauseMsMax, from + (to - from) * this.#line.random());
  }

  /** Gives receipts over the socket and waits for the answer; null: there is no socket. */
  get ask(): SendReceipts | null {
    return this.#ask;
  }

  /** There may be a network again: what pauses tries at once, and SSE first. */
  hurry(): void {
    this.#againAt = 0;
    this.#nap.wake();
  }

  /** The network may have gone, and a connection with it that does not know yet: it is opened anew. */
  doubt(): void {
    this.#watch?.end("the network may have gone");
  }

  /** Follows until the signal ends it. @throws PereError when the service says no for good */
  async run(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted;) {
      const room = this.#taker.room();
      if (room) {
        this.#show("behind");
        await room;
        continue; // It may have ended meanwhile.
      }
      if (this.#rung > 0 && this.#line.monotonic() >= this.#againAt) this.#rung = 0;
      this.#isReady = this.#isTold = false;
      if (this.state !== "offline") this.#show("connecting");
      const error = await this.#follow(signal);
      if (signal.aborted) return;
      if (error instanceof PereError) throw error;
      if (this.#isReady) failures = 0;
      else if (!(error instanceof Blocked)) failures++;
      const pauseMs = this.#next(error, failures);
      if (pauseMs === null) continue;
      this.error = error?.message ?? this.error;
      if (error) this.#line.trouble(error.message);
      this.retryAt = this.#line.now() + pauseMs;
      this.#show(this.#isReady ? "connecting" : "offline");
      await this.#nap.sleep(pauseMs, signal);
      this.retryAt = null;
    }
  }

  /** One connection, to its end. @returns why it ended; null: it is to be opened anew at once */
  async #follow(signal: AbortSignal): Promise<PereError | Trouble | null> {
    const transport = LADDER[this.#rung]!;
    let token: string | null;
    try {
      token = await this.#line.token();
    } catch (error) {
      return new Trouble(sentenceOf(error));
    }
    const watch = new Watch(signal, this.#line, this.#line.timing.firstByteMs);
    this.#watch = watch;
    try {
      if (transport === "longpoll") return await this.#polls(watch);
      return await (transport === "sse" ? this.#sse(watch, token) : this.#socket(watch, token));
    } catch (error) {
      if (error instanceof PereError && error.status === 401 && this.#line.isUnwelcome)
        return new Trouble(error.message);
      if (error instanceof PereError || error instanceof Trouble) return error;
      if (watch.why instanceof Blocked) return watch.why;
      return watch.why === null ? new Trouble(sentenceOf(error)) : null;
    } finally {
      watch.end("it is over");
      this.#watch = null;
      this.transport = null;
    }
  }

  /** Goes down or up the ladder. @returns the pause before the next attempt; null: none */
  #next(error: Trouble | null, failures: number): number | null {
    const { monotonic, random, timing } = this.#line;
    if (error === null) return null;
    if (error instanceof Blocked && this.#rung < LADDER.length - 1) {
      if (this.#rung === 0) this.#againAt = monotonic() + timing.againMs * 2 ** Math.min(4, this.#againTimes++);
      this.#rung++;
      this.error = error.message;
      return null;
    }
    // Where nothing comes through at all, it is not the transport.
    if (this.#rung === LADDER.length - 1 && (failures > 1 || error instanceof Blocked)) this.#rung = 0;
    const ownMs = jitterMs(random, failures, 500, timing.pauseMsMax);
    if (error.pauseMs !== null) return Math.max(error.pauseMs * (1 + random() / 5), ownMs, RETRY_MS_MIN);
    // Never sooner than the service told last, also where it could not be heard this time.
    if (this.#isReady) return Math.max(this.#retryMs, RETRY_MS_MIN);
    return this.#isTold ? Math.max(this.#retryMs, ownMs, RETRY_MS_MIN) : this.#retryMs + ownMs;
  }

  #show(state: Feed["state"]): void {
    this.state = state;
    this.#taker.changed();
  }

  /** Bytes of the service have come. Until it has said that it is ready they may be anybody's, who may go on for ever. */
  #heard(watch: Watch): void {
    if (!this.#isReady) return;
    watch.heard();
    this.heardAt = this.#line.now();
  }

  #connected(): void {
    this.#isReady = true;
    this.error = null;
    this.transport = LADDER[this.#rung]!;
    this.#line.accepted();
    this.#show("connected");
  }

  /** The service's own word. @throws Blocked: it can be none */
  #own(name: string, body: Record<string, unknown>): void {
    if (name === "gap" && ![body.channel, body.after, body.from].every(isText)) throw foreign();
    if (name === "complete" && ![body.event, body.channel, body.at].every(isText)) throw foreign();
    if (name === "ready") {
      const { channels } = body;
      if (!isObject(channels) || !this.#channels.every((channel) => typeof channels[channel] === "string"))
        throw foreign();
      this.#connected();
    }
    this.#taker.own(name, body);
  }

  /** What was pushed, or a receipt. @throws Blocked: it can be none */
  #entry(text: string, value: unknown): Record<string, unknown> {
    return entryOf(this.#path, text, value, this.#channels);
  }

  #address(query: Record<string, string> = {}): string {
    const last: Record<string, string> = this.last === "" ? {} : { "last-event-id": this.last };
    return addressOf(this.#line.base, this.#path, this.#channels, { ...this.#query, ...last, ...query });
  }

  // ------------------------------------------------------------------------------------------------- Server-Sent Events

  async #sse(watch: Watch, token: string | null): Promise<Trouble | null> {
    const response = await this.#line.request(this.#address(), {
      headers: { Accept: "text/event-stream", ...(token === null ? {} : { Authorization: `Bearer ${token}` }) },
      cache: "no-store",
      signal: watch.signal,
    });
    if (!response.ok) {
      const refusal = await refusalOf(response, this.#line.now());
      return refusal instanceof PereError ? this.#refused(refusal, token) : refusal;
    }
    const type = response.headers.get("content-type") ?? "";
    if (response.status !== 200 || !/^text\/event-stream *(;|$)/i.test(type) || !response.body)
      throw new Blocked("the answer is not an event stream");
    await this.#readStream(response.body, watch);
    return new Trouble("the stream ended");
  }

  async #readStream(body: ReadableStream<Uint8Array>, watch: Watch): Promise<void> {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    const stream = new EventStreamReader(
      (event, data, id) => this.#message(event, data, id),
      (ms) => {
        if (ms > ASKED_MS_MAX) return;
        this.#retryMs = ms;
        this.#isTold = true;
      },
    );
    const openedAt = this.#line.monotonic();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        watch.allow(this.#line.timing.silentMs);
        // A stream that brought something late is one that will do.
        if (this.#line.monotonic() - openedAt > this.#line.timing.silentMs / 4) this.#againTimes = 0;
        stream.feed(decoder.decode(value, { stream: true }));
        this.#heard(watch);
        this.#taker.changed();
        const room = this.#taker.room();
        if (room) await this.#rest(watch, room);
      }
    } finally {
      // One that was cut has nothing to say of it.
      reader.cancel().catch(() => {});
    }
  }

  /** Reads nothing until there is room: what is not read stays at the service. */
  async #rest(watch: Watch, room: Promise<void>): Promise<void> {
    this.#show("behind");
    watch.allow(Number.POSITIVE_INFINITY);
    const ended = promised();
    watch.signal.addEventListener("abort", () => ended.resolve());
    await Promise.race([room, ended.promise]);
    watch.allow(this.#line.timing.silentMs);
    this.#show("connected");
  }

  /** @throws Blocked: it is not the service's; the position stays where it is */
  #message(event: string, data: string | null, id: string): void {
    if (data !== null) {
      const value = objectOf(data, this.#line.parse);
      if (event.startsWith("pere.")) this.#own(event.slice(5), value);
      else if (this.#isReady) this.#taker.take(this.#entry(data, value));
      else throw foreign();
    }
    // A position counts when what stands before it has been taken, and the stream is the service's.
    if (id !== "" && this.#isReady) this.last = id;
  }

  /**
   * Who gives tokens may give a better one, at once or later: a device that is left alone for years does not give up.
   * @returns null: it is asked at once. @throws the refusal, where there is no other token
   */
  #refused(refusal: PereError, token: string | null): Trouble | null {
    if (refusal.status !== 401 || !this.#line.refused(token)) throw refusal;
    return this.#line.isUnwelcome ? new Trouble(refusal.message) : null;
  }

  // ---------------------------------------------------------------------------------------------------------- WebSocket

  async #socket(watch: Watch, token: string | null): Promise<Trouble | null> {
    const { WebSocket, timing, parse, setTimer } = this.#line;
    if (WebSocket === null) throw new Blocked("there is no WebSocket here");
    const url = this.#address().replace(/^http/, "ws");
    let socket: SocketLike;
    try {
      socket = new WebSocket(url, token === null ? [] : ["pere.v1", `pere.token.${token}`]);
    } catch (error) {
      throw new Blocked(sentenceOf(error)); // As on a page with TLS that would open a socket without.
    }
    const closed = promised<number>();
    const asked = new RequestQueue(
      (text) => socket.send(text),
      timing.requestMs,
      setTimer,
      () => watch.end("receipts were not answered"),
    );
    let isHeard = false;
    const hear = (text: string): void => {
      const value = objectOf(text, parse);
      const { pere, ...body } = value;
      if (pere === "receipts" || pere === "error") asked.answer(pere, body);
      else if (typeof pere === "string") {
        this.#own(pere, body);
        if (pere === "ready") this.#openSocket(body, asked);
        if (pere === "bye") this.#byeFromSocket(body.reason);
        this.#moveOnSocket(body);
      } else if (this.#isReady) this.#takeFromSocket(this.#entry(text, value));
      else throw foreign();
    };
    socket.onerror = () => {};
    socket.onclose = ({ code }: { code: number }) => closed.resolve(code);
    socket.onmessage = ({ data }: { data: unknown }) => {
      if (watch.why !== null) return;
      isHeard = true;
      watch.allow(timing.silentMs);
      try {
        hear(String(data));
      } catch (error) {
        return watch.end(error instanceof Blocked ? error : new Blocked(sentenceOf(error)));
      }
      this.#heard(watch);
      this.#taker.changed();
      // A socket can't be left unread: it is closed, and opened again when there is room.
      if (this.#taker.room()) watch.end("there is no room");
    };
    watch.signal.addEventListener("abort", () => closed.resolve(0));
    // The browser keeps pings to itself; receipts that are none are answered like any.
    const beatMs = timing.silentMs * 0.375;
    const beat = (): void => {
      // A feed of receipts takes none and says so, which is a sign of life as well; only on a device's feed is that an answer to be waited for.
      if (this.#path === "feedback") isHeard && socket.send("[]");
      else if (this.#ask && !asked.isBusy) void asked.ask("[]", []).catch(() => {});
      stopBeat = setTimer(beat, beatMs);
    };
    let stopBeat = setTimer(beat, beatMs);
    const stopRenewal = this.#renewal(socket);
    const stopReturn = setTimer(() => watch.end("back to SSE"), this.#againAt - this.#line.monotonic());
    try {
      const code = await closed.promise;
      if (watch.why instanceof Blocked) throw watch.why;
      if (watch.why !== null) return null;
      if (!isHeard) throw new Blocked("no WebSocket could be opened");
      return new Trouble(`the socket was closed with ${code}`);
    } finally {
      this.#ask = null;
      stopBeat();
      stopReturn();
      stopRenewal();
      asked.fail("the socket is gone");
      socket.onmessage = null;
      try {
        socket.close(1000);
      } catch {
        // It was never open.
      }
    }
  }

  /** Before a socket's token ends, a fresh one is sent by it. An event stream can't be told: it ends, and is opened anew. @returns ends the waiting */
  #renewal(socket: SocketLike): () => void {
    const { dueMs } = this.#line;
    if (!Number.isFinite(dueMs)) return () => {};
    const renew = async (): Promise<void> => {
      try {
        socket.send(JSON.stringify({ pere: "token", token: await this.#line.token() }));
        stop = this.#renewal(socket);
      } catch {
        // It is asked for again when the feed has ended.
      }
    };
    let stop = this.#line.setTimer(() => void renew(), dueMs);
    return () => stop();
  }

  #openSocket({ channels }: Record<string, unknown>, asked: RequestQueue): void {
    this.#positions = { ...(channels as Record<string, string>) };
    this.last = Object.values(this.#positions).join(".");
    this.#ask = (text, events) => asked.ask(text, events);
  }

  #takeFromSocket(value: Record<string, unknown>): void {
    this.#taker.take(value);
    this.#moveOnSocket(value);
  }

  #moveOnSocket({ channel, id }: Record<string, unknown>): void {
    // A reminder is an event of before: it moves no position back.
    if (typeof channel !== "string" || typeof id !== "string" || !isAhead(id, this.#positions[channel])) return;
    this.#positions[channel] = id;
    this.last = Object.values(this.#positions).join(".");
  }

  #byeFromSocket(reason: unknown): void {
    this.#isTold = true;
    this.#retryMs = this.#between(BYE_MS.get(reason) ?? RETRY_MS);
  }

  // ---------------------------------------------------------------------------------------------------------- long-poll

  async #polls(watch: Watch): Promise<Trouble | null> {
    const { timing, monotonic } = this.#line;
    // Each poll has its own limit.
    watch.allow(Number.POSITIVE_INFINITY);
    for (let wait = 0; ; wait = Math.min(POLL_SECONDS, Math.max(1, Math.ceil((this.#againAt - monotonic()) / 1000)))) {
      if (this.#taker.room() || (this.#isReady && monotonic() >= this.#againAt)) return null;
      const text = await this.#line.ask(
        this.#address({ wait: String(wait) }),
        { headers: { Accept: "application/json" }, cache: "no-store" },
        watch.signal,
        wait * 1000 + timing.requestMs,
      );
      const { entries, gaps, complete, last } = this.#pollOf(text);
      if (!this.#isReady) {
        this.#connected();
        this.#taker.own("ready", {});
      }
      this.#heard(watch);
      for (const gap of gaps) this.#own("gap", gap);
      for (const entry of entries) this.#taker.take(entry);
      for (const event of complete) this.#own("complete", event);
      this.last = last;
      this.#taker.changed();
    }
  }

  /** What a long-poll brought; all of it is looked at before any is taken. @throws Blocked: it is another one's answer */
  #pollOf(text: string) {
    const { events, last, gaps = [], complete = [] } = objectOf(text, this.#line.parse);
    const lists = [events, gaps, complete].every(Array.isArray);
    if (
      !lists ||
      typeof last !== "string" ||
      !/^[!-~]*$/.test(last) ||
      ![...(gaps as unknown[]), ...(complete as unknown[])].every(isObject)
    )
      throw foreign();
    const texts = partsOf(partsOf(text).get("events") ?? "[]");
    return {
      entries: (events as unknown[]).map((value, index) => this.#entry(texts.get(String(index)) ?? "", value)),
      gaps: gaps as Record<string, unknown>[],
      complete: complete as Record<string, unknown>[],
      last,
    };
  }
}
