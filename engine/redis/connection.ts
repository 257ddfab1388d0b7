/**
 * Connections to Redis that never hang, never give up, and never queue without a limit.
 *
 * A stalled Redis keeps its connections open and sends nothing, so every call has a timeout. After it, the caller is told that the store is away, and
 * the connection is discarded with everything that waits on it; late replies are lost with it. Calls without a connection are refused at once and not
 * queued: their callers were told that they failed. Reconnecting never stops and uses full jitter
 * (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 *
 * All calls made in one turn of the event loop are sent together and executed in order.
 *
 * Here, one client of the library is one connection for its whole life. So everything sent on a client went to the same server, and only there does
 * `WAIT` say which replicas have it.
 */
import { tracingChannel } from "node:diagnostics_channel";
import { createClient } from "redis";
import { PereError } from "../model.ts";
import type { Script } from "./scripts.ts";

/** Timeout of a call: the contract requires a 503 within 3 s. */
export const CALL_MS = 2_500;
/** Silence after which a connection is dead. Longer than the ping interval, shorter than a call's timeout. */
const SILENCE_MS = 2_000;
const PING_MS = 700;
/** The longest delay between two attempts to connect. */
const RETRY_MS_MAX = 1_000;
/** Calls in flight: several seconds' worth of a busy instance. */
const CALLS_MAX = 50_000;
/**
 * How long replicas may take. Meanwhile the connection does nothing else, and a call may have to wait for three of these: the one queued before it,
 * the one that began before it was stored, and its own. All three must fit into its timeout.
 */
const REPLICAS_MS = 700;

/** Replies of Redis, as far as PERE uses them. */
export type Reply = string | number | null | readonly Reply[];

/** Temporary errors of Redis: out of memory, loading, failover, moving slots, waiting for its disk or its replicas. */
const PASSES =
  /^(OOM|BUSY|LOADING|READONLY|MISCONF|MASTERDOWN|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|NOREPLICAS|NOAUTH|NOPERM)\b/;

/** Redis before 7.0 puts this before the error of a command in a script. */
const IN_SCRIPT = /^ERR Error running script \(call to \w+\): (@user_script: ?\d+: )+-/;

/** The error text from Redis, beginning with its code; other errors unchanged. */
const messageOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).replace(IN_SCRIPT, "");

/** Reads in flight: as many as keep Redis busy. What is sent behind them waits for no more, some milliseconds. */
const READS_AT_ONCE = 8;

/** How many replicas must have the data, and a key in the same slot that can be written to check. */
export interface ReplicaQuorum {
  readonly replicas: number;
  readonly key: string;
}

/** How calls reach Redis, one server or many. @throws PereError `away`, within the timeout, if it can't be reached */
export interface Redis {
  /** Resolves once Redis can be reached. */
  start(): Promise<void>;
  /** One command; its first argument is its key. */
  send(...command: readonly string[]): Promise<Reply>;
  /**
   * Runs a script by its hash, or by its text if Redis does not have it. Resolves when the required replicas have its changes, and those that it
   * repeats.
   */
  run(
    script: Script,
    keys: readonly string[],
    values: readonly (string | number)[],
    quorum?: ReplicaQuorum,
  ): Promise<Reply>;
  /** The same for a script that only reads. Few of them are in flight, so that a push does not wait for a thousand feeds that catch up. */
  read(script: Script, keys: readonly string[], values: readonly (string | number)[]): Promise<Reply>;
  /**
   * Runs a script that only reads, for many groups of keys, with one value for each group; the keys of a group are in one slot.
   * @param width how many values the script returns for each group
   * @returns the values of all groups; of a group that could not be read, the first one is the error
   */
  readGroups(
    script: Script,
    keys: readonly string[],
    values: readonly number[],
    width: number,
  ): Promise<readonly (Reply | PereError)[]>;
  /** The servers that accept writes. */
  masters(): readonly RedisLink[];
  /** Waits for pending calls, within their timeout, and closes. */
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
  readonly quorum?: ReplicaQuorum | undefined;
  /** It only reads: waits until few other reads are in flight. */
  readonly isRead?: boolean;
  /** Sends `ASKING` before each command: this server is about to take over the slot. */
  readonly asking?: boolean;
  readonly timeoutMs?: number;
}

export type Client = ReturnType<typeof connect>;

// Node's `TracingChannel.hasSubscribers` is missing in Bun 1.4.5. Without it the library assumes that every command is traced, and copies its
// arguments.
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
    // Calls have a timeout here. The library's own would cost a timer per call, which stays until it fires.
    commandOptions: { timeout: 0 },
    pingInterval: PING_MS,
    maintNotifications: "disabled",
    socket: { connectTimeout: SILENCE_MS, socketTimeout: SILENCE_MS, reconnectStrategy: false },
  });

const away = (what: string, cause?: unknown): PereError => new PereError("away", what, [], cause);

/** OpenSSL's codes for a certificate with an unknown issuer. */
const UNTRUSTED = /SELF_SIGNED|UNABLE_TO_(?:GET_ISSUER|VERIFY_LEAF)|self[- ]signed|unable to (?:get|verify)/i;

/** What to do about a certificate from a private CA; empty for other errors. */
function trustAdvice(trouble: unknown): string {
  const { code = "", message = "" } = (trouble ?? {}) as { code?: unknown; message?: unknown };
  if (!UNTRUSTED.test(`${String(code)} ${String(message)}`)) return "";
  return "; set NODE_EXTRA_CA_CERTS to a PEM file with the certificate of the CA that signed it";
}

/** Resolution of timeouts. */
const SWEEP_MS = 50;

/**
 * Timeouts of calls. One timer serves all of them: a timer per call would cost more than the call.
 *
 * If this process was held up, replies may have arrived that it has not read yet, and the timer comes first. So a call is late only if the next sweep
 * still finds it.
 */
class CallTimeouts {
  readonly #waiting = new Set<{ readonly until: number; readonly late: () => void; isOverdue: boolean }>();
  #timer: Timer | undefined;

  /** Settles as the promise does, or rejects with the error from `late` when the time is over. */
  limit<Value>(timeoutMs: number, promise: Promise<Value>, late: () => PereError): Promise<Value> {
    this.#timer ??= setInterval(() => this.#sweep(), SWEEP_MS);
    return new Promise((resolve, reject) => {
      const waiting = { until: performance.now() + timeoutMs, late: () => reject(late()), isOverdue: false };
      this.#waiting.add(waiting);
      const over = (): unknown => this.#waiting.delete(waiting);
      promise.finally(over).then(resolve, reject);
    });
  }

  #sweep(): void {
    const now = performance.now();
    for (const waiting of this.#waiting) {
      if (waiting.until > now) continue;
      if (!waiting.isOverdue) {
        waiting.isOverdue = true;
        continue;
      }
      this.#waiting.delete(waiting);
      waiting.late();
    }
    if (this.#waiting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

/** One connection to one of several addresses. A dead one is replaced by a connection to the next address. */
export class RedisLink implements Redis {
  readonly #urls: readonly string[];
  readonly #ready: (client: Client) => void;
  readonly #callMs: number;
  readonly #timeouts = new CallTimeouts();
  #client: Client;
  /** Index of the current address. */
  #url = "";
  /** Counts on from a random start, so that many instances spread over the addresses. */
  #connections: number;
  /** Attempts since the last connection. */
  #tries = 0;
  #readyAt = 0;
  #closed = false;
  #closing: Promise<void> | undefined;
  /** Why there is no connection, as far as known. */
  #trouble: unknown;
  /** Reads in flight, and those that wait for one of them to end. */
  #reads = 0;
  readonly #readers: (() => void)[] = [];
  /** The running wait for replicas, and the next one, for everything stored until it begins. */
  #waiting: Promise<unknown> = Promise.resolve();
  #next: Promise<void> | undefined;

  /**
   * @param ready called for each new connection, before anything else is sent on it
   * @param callMs how long a call may take, milliseconds
   */
  constructor(urls: readonly string[], ready: (client: Client) => void = () => {}, callMs = CALL_MS) {
    this.#urls = urls;
    this.#callMs = callMs;
    this.#connections = Math.floor(Math.random() * urls.length);
    this.#ready = ready;
    this.#client = this.#connect();
  }

  /** The address of the server it leads to. */
  get url(): string {
    return this.#url;
  }

  /** Its host and port, without secrets. */
  get address(): string {
    return new URL(this.#url).host;
  }

  /** Why there is no connection, with the address: in a Cluster, nodes announce addresses that the operator did not set. */
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
      // A client that was discarded while connecting still connects.
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
    client.connect().catch(() => {}); // The reason was reported as an error event, and the next attempt is scheduled.
    return client;
  }

  /** Resolves once there is a connection. @throws PereError away: there was none within the timeout */
  async start(timeoutMs = this.#callMs): Promise<void> {
    for (const end = performance.now() + timeoutMs; !this.#client.isReady;) {
      if (performance.now() > end || this.#closed) {
        const why = this.#why();
        throw away(`Redis can't be reached: ${why.message}`, why);
      }
      await Bun.sleep(5);
    }
  }

  /** One call with its timeout. @throws PereError away: it was not sent, or its result is unknown */
  async call<Value>(run: (client: Client) => Promise<Value>, timeoutMs = this.#callMs): Promise<Value> {
    if (this.#closed) throw away("the store was closed; nothing was stored");
    const client = this.#client;
    if (!client.isReady) throw away("Redis can't be reached; nothing was stored", this.#why());
    try {
      return await this.#timeouts.limit(timeoutMs, run(client), () => {
        // A call that was tried elsewhere before has little time left: that is not this connection's fault.
        if (timeoutMs > SILENCE_MS) this.#replace(client);
        return away(
          "Redis does not answer; it is unknown whether this was stored",
          new Error(`${this.address}: no answer`),
        );
      });
    } catch (error) {
      const isOld = performance.now() - this.#readyAt > RETRY_MS_MAX;
      // The server became a replica and would keep this connection. A new one may find the master, if the address moved with it.
      if (messageOf(error).startsWith("READONLY") && isOld) this.renew(client);
      throw explain(error, this.address);
    }
  }

  send(...command: readonly string[]): Promise<Reply> {
    return this.runCall((send) => send(command));
  }

  run(
    script: Script,
    keys: readonly string[],
    values: readonly (string | number)[],
    quorum?: ReplicaQuorum,
  ): Promise<Reply> {
    return this.runCall(scripted(script, keys, values), { quorum });
  }

  read(script: Script, keys: readonly string[], values: readonly (string | number)[]): Promise<Reply> {
    return this.runCall(scripted(script, keys, values), { isRead: true });
  }

  async readGroups(script: Script, keys: readonly string[], values: readonly number[]): Promise<readonly Reply[]> {
    return (await this.read(script, keys, values)) as readonly Reply[];
  }

  async runCall(call: RedisCall, options: RedisCallOptions = {}): Promise<Reply> {
    if (!options.isRead) return this.#send(call, options);
    if (this.#reads < READS_AT_ONCE) this.#reads++;
    else await new Promise<void>((resolve) => this.#readers.push(resolve));
    try {
      return await this.#send(call, options);
    } finally {
      const next = this.#readers.shift();
      if (next) next();
      else this.#reads--;
    }
  }

  async #send(call: RedisCall, { quorum, asking = false, timeoutMs = this.#callMs }: RedisCallOptions): Promise<Reply> {
    const end = performance.now() + timeoutMs;
    const client = this.#client;
    const send = (command: readonly string[]): Promise<Reply> => {
      if (asking) client.sendCommand(["ASKING"]).catch(() => {});
      return client.sendCommand(command) as unknown as Promise<Reply>;
    };
    const reply = await this.call(() => call(send), timeoutMs);
    if (quorum)
      await this.#timeouts.limit(end - performance.now(), this.#have(client, quorum), () =>
        away("stored, but the replicas did not confirm in time; it is safe to repeat the request"),
      );
    return reply;
  }

  masters(): readonly RedisLink[] {
    return [this];
  }

  /** Resolves when enough replicas have everything sent on this connection so far. One wait at a time serves all calls made meanwhile. */
  #have(client: Client, { replicas, key }: ReplicaQuorum): Promise<void> {
    if (client !== this.#client)
      return Promise.reject(
        away("stored, but the connection broke before the replicas confirmed; it is safe to repeat the request"),
      );
    this.#next ??= this.#waiting.then(async () => {
      await new Promise(setImmediate); // The turn is over.
      this.#next = undefined;
      // WAIT is only guaranteed to cover writes of its own connection (7.0 happens to cover all). A repeated call wrote nothing, so a write here
      // follows what it repeats.
      const wait = Promise.all([
        client.sendCommand(["SET", key, ""]),
        client.sendCommand(["WAIT", String(replicas), String(REPLICAS_MS)]),
      ]);
      this.#waiting = wait.catch(() => {});
      const [, have] = await wait.catch((error: unknown) => {
        // Whatever the cause, the call itself was executed.
        throw away(
          "stored, but it is unknown whether the replicas have it; it is safe to repeat the request",
          explain(error, this.address),
        );
      });
      if (Number(have) < replicas)
        throw away(`stored, but only ${have} of ${replicas} replicas have it; it is safe to repeat the request`);
    });
    return this.#next;
  }

  /** Discards a dead connection. Pending calls fail. */
  #replace(client: Client): void {
    if (this.#closed || client !== this.#client) return;
    this.#connect();
    client.destroy();
  }

  /** Switches to a new connection; calls on the old one are still answered. */
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
 * Waits for the pending calls of a connection, within their timeout and the connection's life, and closes it. Replies come in order, so the last one
 * comes after all others. The library's own `close` does not notice if the connection dies first.
 */
async function end(client: Client): Promise<void> {
  if (client.isReady) await Promise.race([client.sendCommand(["PING"]).catch(() => {}), Bun.sleep(CALL_MS)]);
  client.destroy();
}

/** Turns an error of Redis or the network into a PereError. @param address of the server that was called */
function explain(error: unknown, address: string): PereError {
  if (error instanceof PereError) return error;
  const message = messageOf(error);
  const answered = /^[A-Z]+ /.test(message);
  if (answered && !PASSES.test(message))
    return new PereError("inside", `Redis refused a command: ${message}`, [], error);
  if (answered) return away(`Redis can't store this now: ${message}`, error);
  return away(
    "Redis is away; it is unknown whether this was stored",
    new Error(`${address}: ${message}`, { cause: error }),
  );
}
