/**
 * A feed over a WebSocket: its messages, the receipts that are sent over it, its keep-alive, and the renewal of its token.
 */
import { BlockedError, messageWithCauses, notFromPere, objectOf, RetryableError } from "./errors.ts";
import { answerOf, isAhead, type Log, type ReceiptsAnswer } from "./messages.ts";
import type { ServiceClient, SocketLike } from "./service-client.ts";
import { type Resolvable, resolvable, type SetTimer } from "./timing.ts";
import { isText } from "./values.ts";
import type { Watchdog } from "./watchdog.ts";

/** A ping is sent after this part of the time that a connection may be silent, so a lost one is noticed. */
const PING_SHARE = 0.375;

/** Sends receipts over a socket. @param text JSON array @param events the events of the receipts, in order @throws RetryableError */
export type SendReceipts = (text: string, events: readonly string[]) => Promise<ReceiptsAnswer>;

/** Requests on a socket, one at a time, because an answer does not say which request it is for. */
class RequestQueue {
  readonly #send: (text: string) => void;
  readonly #limitMs: number;
  readonly #setTimer: SetTimer;
  readonly #failed: () => void;
  #previous: Promise<unknown> = Promise.resolve();
  #pending: Resolvable<unknown> | null = null;
  #count = 0;

  /** @param failed called when a request failed: its late answer would be taken for that of the next one, so no more may be sent */
  constructor(send: (text: string) => void, limitMs: number, setTimer: SetTimer, failed: () => void) {
    this.#failed = failed;
    this.#send = send;
    this.#limitMs = limitMs;
    this.#setTimer = setTimer;
  }

  get isBusy(): boolean {
    return this.#count > 0;
  }

  /** @throws RetryableError */
  request(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    this.#count++;
    const answer = this.#previous.then(() => this.#sendOne(text, events)).finally(() => this.#count--);
    this.#previous = answer.catch(() => {});
    return answer;
  }

  async #sendOne(text: string, events: readonly string[]): Promise<ReceiptsAnswer> {
    const pending = resolvable<unknown>();
    this.#pending = pending;
    const stop = this.#setTimer(() => this.fail(`no answer to receipts within ${this.#limitMs} ms`), this.#limitMs);
    try {
      this.#send(text);
      return answerOf(await pending.promise, events);
    } catch (error) {
      this.#failed();
      throw error instanceof RetryableError ? error : new RetryableError(messageWithCauses(error));
    } finally {
      stop();
      this.#pending = null;
    }
  }

  answer(kind: "receipts" | "error", body: Record<string, unknown>): void {
    if (kind === "receipts") this.#pending?.resolve(body);
    else this.fail(isText(body.detail) ? body.detail : "the service answered receipts with an error");
  }

  fail(why: string): void {
    this.#pending?.reject(new RetryableError(why));
  }
}

/** The feed that a socket carries. */
export interface SocketHandler {
  /** Whether the service has sent `ready` on this connection. */
  isReady(): boolean;
  /** A control message. @throws BlockedError when PERE sends no such message */
  control(name: string, body: Record<string, unknown>): void;
  /** An event or a receipt. @returns the checked entry @throws BlockedError when PERE sends no such entry */
  entry(text: string, value: unknown): Record<string, unknown>;
  /** The position from which the feed continues. */
  moveTo(position: string): void;
  /** A message was handled. @returns whether more can be taken */
  handled(): boolean;
  /** How receipts can be sent from now on; null: not over a socket. */
  setSendReceipts(send: SendReceipts | null): void;
}

/** One WebSocket, from its opening to its end. */
export class FeedSocket {
  readonly #service: ServiceClient;
  readonly #watchdog: Watchdog;
  readonly #log: Log;
  readonly #handler: SocketHandler;
  readonly #socket: SocketLike;
  readonly #requests: RequestQueue;
  readonly #closed = resolvable<number>();
  /** The position in each channel: a socket has no `id:` lines. */
  #positions: Record<string, string> = {};
  #isHeard = false;
  #stopPing = (): void => {};
  #stopRenewal = (): void => {};

  /** Opens it. @param url `http:` or `https:` @throws BlockedError when no WebSocket can be opened */
  constructor(
    service: ServiceClient,
    watchdog: Watchdog,
    { log, url, token }: { log: Log; url: string; token: string | null },
    handler: SocketHandler,
  ) {
    this.#service = service;
    this.#watchdog = watchdog;
    this.#log = log;
    this.#handler = handler;
    const { WebSocket, timing } = service;
    if (WebSocket === null) throw new BlockedError("this runtime has no WebSocket; pass one as the option WebSocket");
    try {
      this.#socket = new WebSocket(
        url.replace(/^http/, "ws"),
        token === null ? [] : ["pere.v1", `pere.token.${token}`],
      );
    } catch (error) {
      throw new BlockedError(messageWithCauses(error)); // Such as on an https: page that opens a ws: address.
    }
    this.#requests = new RequestQueue(
      (text) => this.#socket.send(text),
      timing.requestMs,
      service.setTimer,
      () => watchdog.end("receipts were not answered"),
    );
  }

  /**
   * Follows until the socket closes.
   * @returns why it closed; null: the connection was ended here, and another is opened at once @throws BlockedError when it does not get through
   */
  async follow(): Promise<RetryableError | null> {
    const socket = this.#socket;
    const { signal } = this.#watchdog;
    socket.onerror = () => {};
    socket.onclose = ({ code }: { code: number }) => this.#closed.resolve(code);
    socket.onmessage = ({ data }: { data: unknown }) => this.#message(String(data));
    signal.addEventListener("abort", () => this.#closed.resolve(0));
    this.#ping(this.#service.timing.silentMs * PING_SHARE);
    this.#renewToken();
    try {
      const code = await this.#closed.promise;
      const { reason } = this.#watchdog;
      if (reason instanceof BlockedError) throw reason;
      if (reason !== null) return null;
      if (!this.#isHeard) throw new BlockedError("the WebSocket could not be opened");
      return new RetryableError(`the WebSocket closed with code ${code}`);
    } finally {
      this.#end();
    }
  }

  #end(): void {
    this.#handler.setSendReceipts(null);
    this.#stopPing();
    this.#stopRenewal();
    this.#requests.fail("the WebSocket closed before the answer to receipts");
    this.#socket.onmessage = null;
    try {
      this.#socket.close(1000);
    } catch {
      // It was never open.
    }
  }

  #message(text: string): void {
    if (this.#watchdog.reason !== null) return;
    this.#isHeard = true;
    this.#watchdog.setLimit(this.#service.timing.silentMs);
    try {
      this.#dispatch(text);
    } catch (error) {
      const reason = error instanceof BlockedError ? error : new BlockedError(messageWithCauses(error));
      return this.#watchdog.end(reason);
    }
    // A socket can't be left unread: it is closed, and opened again when there is room.
    if (!this.#handler.handled()) this.#watchdog.end("too many events wait");
  }

  /** @throws BlockedError when PERE sends no such message */
  #dispatch(text: string): void {
    const value = objectOf(text, this.#service.parse);
    const { pere, ...body } = value;
    if (pere === "receipts" || pere === "error") this.#requests.answer(pere, body);
    else if (typeof pere === "string") {
      this.#handler.control(pere, body);
      if (pere === "ready") this.#ready(body);
      this.#moveOn(body);
    } else if (this.#handler.isReady()) this.#moveOn(this.#handler.entry(text, value));
    else throw notFromPere();
  }

  #ready({ channels }: Record<string, unknown>): void {
    this.#positions = { ...(channels as Record<string, string>) };
    this.#handler.moveTo(Object.values(this.#positions).join("."));
    this.#handler.setSendReceipts((text, events) => this.#requests.request(text, events));
  }

  #moveOn({ channel, id, round }: Record<string, unknown>): void {
    // A later round may come before earlier events, and says nothing of the position. A reminder repeats an earlier event: it does not move it back.
    if (this.#log === "feed" && round !== undefined) return;
    if (typeof channel !== "string" || typeof id !== "string" || !isAhead(id, this.#positions[channel])) return;
    this.#positions[channel] = id;
    this.#handler.moveTo(Object.values(this.#positions).join("."));
  }

  /** Sends an empty list of receipts now and then, because browsers do not show the pings of a WebSocket. Its answer is a sign of life. */
  #ping(everyMs: number): void {
    this.#stopPing = this.#service.setTimer(() => {
      // A feed of receipts answers it with an error, which is a sign of life too, but no answer to wait for.
      if (this.#log === "feedback") this.#isHeard && this.#socket.send("[]");
      else if (this.#handler.isReady() && !this.#requests.isBusy) void this.#requests.request("[]", []).catch(() => {});
      this.#ping(everyMs);
    }, everyMs);
  }

  /** Sends a new token before the old one expires. An event stream can't be given one: the service ends it, and it is opened again. */
  #renewToken(): void {
    const { dueMs } = this.#service;
    if (!Number.isFinite(dueMs)) return;
    this.#stopRenewal = this.#service.setTimer(() => void this.#sendToken(), dueMs);
  }

  async #sendToken(): Promise<void> {
    try {
      const token = await this.#service.token();
      if (this.#watchdog.reason !== null) return;
      this.#socket.send(JSON.stringify({ pere: "token", token }));
      this.#renewToken();
    } catch {
      // It is asked for again when the feed has ended.
    }
  }
}
