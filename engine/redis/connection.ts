/**
 * Connections to Redis that never hang, never give up, and never queue without bound.
 *
 * A Redis that stalls keeps its connections open and says nothing, so every call has its time; when it is up, the caller is told that the
 * store is away, and the connection is thrown away with all that waits on it: whatever comes back later comes back on a new one.
 * Calls made while there is no connection are refused at once, not kept for later: their callers were told that they failed. Reconnecting goes on
 * for ever, with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 *
 * All calls made in one turn of the event loop leave together and are carried out in the order in which they were made.
 *
 * A client of the library is one connection here, from its making to its end: so what was sent on the same client went to the same server, and only
 * there does `WAIT` say which replicas have it.
 */
import { tracingChannel } from "node:diagnostics_channel";
import { createClient } from "redis";
import { PereError } from "../model.ts";
import type { Script } from "./scripts.ts";

/** A call that takes longer has failed: the contract's answer of 503 comes within 3 s. */
export const CALL_MS = 2_500;
/** Silence after which a connection is dead. Longer than the interval of pings, shorter than patience. */
const SILENCE_MS = 2_000;
const PING_MS = 700;
/** The longest wait between two tries to connect. */
const RETRY_MS_MAX = 1_000;
/** Calls in flight: several seconds' worth of a busy instance. */
const CALLS_MAX = 50_000;
/**
 * So long replicas have for what was stored. Meanwhile the connection does nothing else, and a call may have to be there for three waits: the one
 * that it comes behind, the one that began before it was stored, and its own. All three are over before its time is.
 */
const REPLICAS_MS = 700;

/** What Redis answers, as far as PERE asks. */
export type Reply = string | number | null | readonly Reply[];

/** Errors of Redis that pass: it has no room, starts, changes its master, moves its slots, waits for its disk or its replicas. */
const PASSES =
  /^(OOM|BUSY|LOADING|READONLY|MISCONF|MASTERDOWN|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|NOREPLICAS|NOAUTH|NOPERM)\b/;

/** What Redis before 7.0 puts before the error of a command that a script gave. */
const IN_SCRIPT = /^ERR Error running script \(call to \w+\): (@user_script: ?\d+: )+-/;

/** What Redis said was wrong, beginning with its word for it; other errors as they are. */
const messageOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).replace(IN_SCRIPT, "");

/** How many replicas must have what was stored, and a key in the same slot that can be written to find out. */
export interface ReplicaQuorum {
  readonly replicas: number;
  readonly key: string;
}

/** How calls reach Redis, one server or many. @throws PereError, and `away` in time when it can't be reached */
export interface Redis {
  /** Resolves once it can be reached. */
  start(): Promise<void>;
  /** One command; its first argument is its key. */
  send(...command: readonly string[]): Promise<Reply>;
  /** One script, by its name; where Redis has forgotten it, by its text. It resolves when so many replicas have what it did, and what it repeats. */
  run(
    script: Script,
    keys: readonly string[],
    values: readonly (string | number)[],
    spread?: ReplicaQuorum,
  ): Promise<Reply>;
  /** The servers that take writes. */
  masters(): readonly RedisLink[];
  /** Waits for what was asked before, as long as a call may take, and closes. */
  close(): Promise<void>;
}

/** What a call does once there is a connection. */
export type RedisCall = (send: (command: readonly string[]) => Promise<Reply>) => Promise<Reply>;

export const scripted =
  ({ sha, text }: Script, keys: readonly string[], values: readonly (string | number)[]): RedisCall =>
  (send) => {
    const rest = [String(keys.length), ...keys, ...values.map(String)];
    return send(["EVALSHA", sha, ...rest]).catch((error: unknown) => {
      if (!(error instanceof Error) || !error.message.startsWith("NOSCRIPT")) throw error;
      return send(["EVAL", text, ...rest]);
    });
  };

export interface RedisCallOptions {
  readonly spread?: ReplicaQuorum | undefined;
  /** Each command follows an `ASKING`: this server is about to take the slot over. */
  readonly asking?: boolean;
  readonly timeoutMs?: number;
}

export type Client = ReturnType<typeof connect>;

// Node's `TracingChannel.hasSubscribers`, which Bun 1.4.5 lacks: without it the library takes it that somebody traces each command, and copies
// its arguments for him.
const tracing: object = Object.getPrototypeOf(tracingChannel("pere"));
if (!("hasSubscribers" in tracing))
  Object.defineProperty(tracing, "hasSubscribers", {
    get(this: Readonly<Record<string, { readonly hasSubscribers: boolean }>>) {
      return ["start", "end", "asyncStart", "asyncEnd", "error"].some((name) => this[name]!.hasSubscribers);
    },
  });

const connect = (url: string) =>
  createClient({
    url,
    disableOfflineQueue: true,
    commandsQueueMaxLength: CALLS_MAX,
    // A call has its time here; the library's own would be one more timer a call, which stays until it is over.
    commandOptions: { timeout: 0 },
    pingInterval: PING_MS,
    maintNotifications: "disabled",
    socket: { connectTimeout: SILENCE_MS, socketTimeout: SILENCE_MS, reconnectStrategy: false },
  });

const away = (what: string, cause?: unknown): PereError => new PereError("away", what, [], cause);

/** Why a certificate is not trusted, as OpenSSL has it: whoever signed it is not known here. */
const UNTRUSTED = /SELF_SIGNED|UNABLE_TO_(?:GET_ISSUER|VERIFY_LEAF)|self[- ]signed|unable to (?:get|verify)/i;

/** What to do about a certificate that a CA of one's own signed; empty for any other trouble. */
function trustAdvice(trouble: unknown): string {
  const { code = "", message = "" } = (trouble ?? {}) as { code?: unknown; message?: unknown };
  if (!UNTRUSTED.test(`${String(code)} ${String(message)}`)) return "";
  return "; set NODE_EXTRA_CA_CERTS to a PEM file with the certificate of the CA that signed it";
}

/** How exactly a time is kept. */
const SWEEP_MS = 50;

/** Calls and how long each may take. One timer looks after all of them: a timer a call costs more than what it guards. */
class CallTimeouts {
  readonly #waiting = new Set<{ readonly until: number; readonly late: () => void }>();
  #timer: Timer | undefined;

  /** Becomes what the work becomes, or is rejected with what `late` says where that takes longer. */
  within<Value>(timeoutMs: number, work: Promise<Value>, late: () => PereError): Promise<Value> {
    this.#timer ??= setInterval(() => this.#sweep(), SWEEP_MS);
    return new Promise((resolve, reject) => {
      const waiting = { until: performance.now() + timeoutMs, late: () => reject(late()) };
      this.#waiting.add(waiting);
      const over = (): unknown => this.#waiting.delete(waiting);
      work.finally(over).then(resolve, reject);
    });
  }

  #sweep(): void {
    const now = performance.now();
    for (const waiting of this.#waiting) {
      if (waiting.until > now) continue;
      this.#waiting.delete(waiting);
      waiting.late();
    }
    if (this.#waiting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

/** One connection to one of some addresses; replaced when it is dead, by one to the next of them. */
export class RedisLink implements Redis {
  readonly #urls: readonly string[];
  readonly #ready: (client: Client) => void;
  readonly #patience = new CallTimeouts();
  #client: Client;
  /** Where it leads. */
  #url = "";
  /** Counts on from a random one, so that many instances spread over the addresses. */
  #connections: number;
  /** Tries to connect since there was a connection. */
  #tries = 0;
  #readyAt = 0;
  #closed = false;
  #closing: Promise<void> | undefined;
  /** Why there is no connection, as far as is known. */
  #trouble: unknown;
  /** The wait for replicas that is under way, and the one after it, for all that is stored until it begins. */
  #waiting: Promise<unknown> = Promise.resolve();
  #next: Promise<void> | undefined;

  /** @param ready called each time that there is a connection, before anything else is sent on it */
  constructor(urls: readonly string[], ready: (client: Client) => void = () => {}) {
    this.#urls = urls;
    this.#connections = Math.floor(Math.random() * urls.length);
    this.#ready = ready;
    this.#client = this.#connect();
  }

  /** The address of the server that it leads to. */
  get url(): string {
    return this.#url;
  }

  /** Its host and port, which may be told. */
  get address(): string {
    return new URL(this.#url).host;
  }

  /** Why there is no connection, with the address that there is none to: in a Cluster a node announces it, and nobody set it. */
  #why(): Error {
    const trouble = this.#trouble;
    const why = trouble instanceof Error && trouble.message !== "" ? trouble.message : "no answer";
    return new Error(`${this.address}: ${why}${trustAdvice(trouble)}`, { cause: trouble });
  }

  #connect(): Client {
    this.#url = this.#urls[this.#connections++ % this.#urls.length]!;
    const client = connect(this.#url);
    client.on("error", (error: unknown) => {
      if (client === this.#client) this.#trouble = error;
    });
    client.on("ready", () => {
      // One that was thrown away while it was being connected is connected all the same.
      if (client !== this.#client || this.#closed) return client.destroy();
      this.#trouble = undefined;
      this.#tries = 0;
      this.#readyAt = performance.now();
      this.#ready(client);
    });
    client.on("terminated", () => {
      const waitMs = Math.random() * Math.min(RETRY_MS_MAX, 25 * 2 ** Math.min(this.#tries++, 10));
      setTimeout(() => this.#replace(client), waitMs);
    });
    this.#client = client;
    this.#waiting = Promise.resolve();
    this.#next = undefined;
    client.connect().catch(() => {}); // The reason came as an error, and the next try is on its way.
    return client;
  }

  /** Resolves once there is a connection. @throws PereError away, when there is none in time */
  async start(timeoutMs = CALL_MS): Promise<void> {
    for (const end = performance.now() + timeoutMs; !this.#client.isReady;) {
      if (performance.now() > end || this.#closed) {
        const why = this.#why();
        throw away(`Redis can't be reached: ${why.message}`, why);
      }
      await Bun.sleep(5);
    }
  }

  /** One call, in its time. @throws PereError away: it was not sent, or it can't be known what became of it */
  async call<Value>(run: (client: Client) => Promise<Value>, timeoutMs = CALL_MS): Promise<Value> {
    if (this.#closed) throw away("the store was closed; nothing was stored");
    const client = this.#client;
    if (!client.isReady) throw away("Redis can't be reached; nothing was stored", this.#why());
    try {
      return await this.#patience.within(timeoutMs, run(client), () => {
        // A call that was tried elsewhere before has little time: that is not the connection's fault.
        if (timeoutMs > SILENCE_MS) this.#replace(client);
        return away(
          "Redis does not answer; whether it was stored can't be known",
          new Error(`${this.address}: no answer`),
        );
      });
    } catch (error) {
      const isOld = performance.now() - this.#readyAt > RETRY_MS_MAX;
      // It was made a replica. The connection would stay; a new one may find the master, where the address has moved with it.
      if (messageOf(error).startsWith("READONLY") && isOld) this.renew(client);
      throw explain(error, this.address);
    }
  }

  send(...command: readonly string[]): Promise<Reply> {
    return this.work((send) => send(command));
  }

  run(
    script: Script,
    keys: readonly string[],
    values: readonly (string | number)[],
    spread?: ReplicaQuorum,
  ): Promise<Reply> {
    return this.work(scripted(script, keys, values), { spread });
  }

  async work(work: RedisCall, { spread, asking = false, timeoutMs = CALL_MS }: RedisCallOptions = {}): Promise<Reply> {
    const end = performance.now() + timeoutMs;
    const client = this.#client;
    const send = (command: readonly string[]): Promise<Reply> => {
      if (asking) client.sendCommand(["ASKING"]).catch(() => {});
      return client.sendCommand(command) as unknown as Promise<Reply>;
    };
    const reply = await this.call(() => work(send), timeoutMs);
    if (spread)
      await this.#patience.within(end - performance.now(), this.#have(client, spread), () =>
        away("stored, but its replicas were not heard of in time; repeating is safe"),
      );
    return reply;
  }

  masters(): readonly RedisLink[] {
    return [this];
  }

  /** Resolves when so many replicas have all that was sent on this connection until now. One wait at a time, for all that came meanwhile. */
  #have(client: Client, { replicas, key }: ReplicaQuorum): Promise<void> {
    if (client !== this.#client)
      return Promise.reject(
        away("stored, but the connection broke before its replicas were heard of; repeating is safe"),
      );
    this.#next ??= this.#waiting.then(async () => {
      await new Promise(setImmediate); // The turn is over.
      this.#next = undefined;
      // WAIT is promised for what its own connection wrote (7.0 happens to wait for all). A call that repeats another wrote nothing; what is
      // written here comes after what it repeats.
      const wait = Promise.all([
        client.sendCommand(["SET", key, ""]),
        client.sendCommand(["WAIT", String(replicas), String(REPLICAS_MS)]),
      ]);
      this.#waiting = wait.catch(() => {});
      const [, have] = await wait.catch((error: unknown) => {
        // Whatever the cause, it is not that the call was turned away.
        throw away(
          "stored, but whether its replicas have it can't be known; repeating is safe",
          explain(error, this.address),
        );
      });
      if (Number(have) < replicas)
        throw away(`stored, but only ${have} of ${replicas} replicas have it; repeating is safe`);
    });
    return this.#next;
  }

  /** Throws a dead connection away. What waits on it is told so. */
  #replace(client: Client): void {
    if (this.#closed || client !== this.#client) return;
    this.#connect();
    client.destroy();
  }

  /** Takes a new connection; what waits on the one before is still answered. */
  renew(client = this.#client): void {
    if (this.#closed || client !== this.#client) return;
    this.#connect();
    void end(client);
  }

  close(): Promise<void> {
    this.#closed = true;
    return (this.#closing ??= end(this.#client));
  }
}

/**
 * Waits for what was asked on a connection, as long as a call may take and the connection lives, and ends it. Answers come in order, so the last one
 * comes after all; the library's own `close` does not notice when the connection dies first.
 */
async function end(client: Client): Promise<void> {
  if (client.isReady) await Promise.race([client.sendCommand(["PING"]).catch(() => {}), Bun.sleep(CALL_MS)]);
  client.destroy();
}

/** An error of Redis or of the way to it, as the house says it. @param address of the server that was asked */
function explain(error: unknown, address: string): PereError {
  if (error instanceof PereError) return error;
  const message = messageOf(error);
  const answered = /^[A-Z]+ /.test(message);
  if (answered && !PASSES.test(message))
    return new PereError("inside", `Redis refused a command: ${message}`, [], error);
  if (answered) return away(`Redis can't take it now: ${message}`, error);
  return away(
    "Redis is away; whether it was stored can't be known",
    new Error(`${address}: ${message}`, { cause: error }),
  );
}
