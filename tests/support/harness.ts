/**
 * What every test needs: a real service on a free port, in this process or in one of its own, and readers that wait for what they
 * expect. Nothing here sleeps for luck; what never comes ends a test by its own limit, with what came instead.
 */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type EventSourceMessage, createParser } from "eventsource-parser";
import type { EngineOptions } from "../../engine/engine.ts";
import type { Settings } from "../../engine/ops/settings.ts";
import { type Service, type ServiceOptions, serve } from "../../index.ts";
import { PATIENCE_MS } from "./limits.ts";

/** A folder of its own. `leftovers.ts` removes them all at the end. */
export const temporary = (): string => mkdtempSync(join(tmpdir(), "pere-"));

/** Waits until `condition` gives something true, and returns that. @param everyMs looks so often */
export async function until<Value>(
  condition: () => Value | Promise<Value>,
  what: string | (() => string) = "a condition",
  patienceMs = PATIENCE_MS,
  everyMs = 2,
): Promise<Exclude<Value, false | null | undefined | 0 | "">> {
  for (const end = Date.now() + patienceMs; ;) {
    const value = await condition();
    if (value) return value as Exclude<Value, false | null | undefined | 0 | "">;
    if (Date.now() > end) throw new Error(`waited in vain for ${typeof what === "string" ? what : what()}`);
    await Bun.sleep(everyMs);
  }
}

/** Who may come in, where a test does not say. */
const OPEN = {
  access: "open",
  tls: null,
  basePath: "",
  origins: [],
  rates: { push: 0, receipt: 0, feed: 0 },
  proxies: [],
  log: "info",
  metricsChannels: [],
  redisPrefix: "pere:",
  unknown: [],
} as const;

/** A secret for services that ask for tokens. */
export const SECRET = "a secret of thirty-two bytes, ok";

/** A service in this process with any settings, by default one that asks for tokens of `SECRET`. Stop it at the end. */
export const startWith = (settings: Partial<Settings> = {}, options: EngineOptions = {}): Promise<Service> =>
  serve(
    {
      host: "127.0.0.1",
      port: 0,
      db: ":memory:",
      redis: null,
      replicas: 0,
      hooksAllowed: [],
      limits: {},
      ...OPEN,
      access: { secret: SECRET },
      ...settings,
    },
    options,
  );

/** A service in this process, where its clock, its chance and its limits can be held. Stop it at the end. */
export const start = (options: ServiceOptions = {}, db = ":memory:"): Promise<Service> =>
  serve({ host: "127.0.0.1", port: 0, db, redis: null, replicas: 0, hooksAllowed: [], limits: {}, ...OPEN }, options);

/** The same on a Redis, or on a Cluster by its addresses, comma separated; other instances may share it. */
export const startOn = (redis: string, options: EngineOptions = {}, replicas = 0): Promise<Service> =>
  serve(
    {
      host: "127.0.0.1",
      port: 0,
      db: ":memory:",
      redis: redis.split(","),
      replicas,
      hooksAllowed: [],
      limits: {},
      ...OPEN,
    },
    options,
  );

/** A service in a process of its own, as people run it. */
export interface Process {
  readonly url: string;
  readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  /** Ends it and gives its exit code. */
  end(signal: NodeJS.Signals): Promise<number>;
}

const INDEX = join(import.meta.dir, "..", "..", "index.ts");

/**
 * @param before words before the command, such as `strace` and its flags
 * @param flags those of Bun itself
 * @throws Error with what it said when it does not start
 */
export async function spawn(
  env: Record<string, string>,
  before: readonly string[] = [],
  args: readonly string[] = [],
  flags: readonly string[] = [],
): Promise<Process> {
  const child = Bun.spawn([...before, process.execPath, "run", ...flags, INDEX, ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, PORT: "0", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  let said = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    said += decoder.decode(chunk, { stream: true });
    const url = /^PERE listening on (https?:\S+)\n/.exec(said)?.[1];
    if (url)
      return {
        url,
        child,
        async end(signal) {
          child.kill(signal);
          return child.exited;
        },
      };
  }
  throw new Error(`${said}${await new Response(child.stderr).text()}`.trim());
}

/** What a service in a process of its own says of itself, line by line as it comes: what is killed may not have written all of it. */
export function logOf({ child }: Process): { readonly lines: string[] } {
  const log = { lines: [] as string[] };
  void (async () => {
    let text = "";
    const decoder = new TextDecoder();
    for await (const chunk of child.stderr) {
      text += decoder.decode(chunk, { stream: true });
      log.lines = text.split("\n").slice(0, -1);
    }
  })();
  return log;
}

/** What a push or a receipt is answered with, parsed; `status` and `headers` beside it. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** Looked at field by field; a wrong one fails the test. */
  readonly body: any;
}

/** One request; a body that is not a string is sent as JSON. */
export async function ask(
  url: string,
  init: { method?: string; body?: unknown; type?: string; headers?: Record<string, string> } = {},
): Promise<Answer> {
  const { method = init.body === undefined ? "GET" : "POST", body, type = "application/json", headers = {} } = init;
  const response = await fetch(url, {
    method,
    headers: { ...(body === undefined ? {} : { "Content-Type": type }), ...headers },
    ...(body === undefined
      ? {}
      : { body: typeof body === "string" || body instanceof Uint8Array ? (body as BodyInit) : JSON.stringify(body) }),
    redirect: "manual",
  });
  const text = await response.text();
  const isJson =
    /json/.test(response.headers.get("content-type") ?? "") &&
    !/ndjson/.test(response.headers.get("content-type") ?? "");
  return {
    status: response.status,
    headers: response.headers,
    text,
    body: isJson && text !== "" ? JSON.parse(text) : text,
  };
}

/** Pushes one event and gives its id. */
export async function push(url: string, channel: string, data: unknown, query = ""): Promise<string> {
  const answer = await ask(`${url}/push/${channel}${query}`, { body: JSON.stringify(data) });
  if (answer.status !== 201) throw new Error(`push: ${answer.status} ${answer.text}`);
  return answer.body.id as string;
}

/** Gives one receipt and returns the answer. */
export const give = (
  url: string,
  channel: string,
  event: string,
  device: string,
  status: string,
  more: object = {},
): Promise<Answer> => ask(`${url}/feedback/${channel}`, { body: { event, device, status, ...more } });

/** An event stream being read by `eventsource-parser`. */
export class Stream {
  readonly response: Response;
  /** Everything that came, the server's own events included. */
  readonly messages: EventSourceMessage[] = [];
  readonly comments: string[] = [];
  retry: number | undefined;
  ended = false;
  raw = "";
  readonly #abort: AbortController;
  #taken = 0;

  constructor(response: Response, abort: AbortController) {
    this.response = response;
    this.#abort = abort;
    void this.#read();
  }

  async #read(): Promise<void> {
    const parser = createParser({
      onEvent: (message) => this.messages.push(message),
      onComment: (comment) => this.comments.push(comment),
      onRetry: (retry) => (this.retry = retry),
    });
    const decoder = new TextDecoder();
    try {
      for await (const chunk of this.response.body!) {
        const text = decoder.decode(chunk, { stream: true });
        this.raw += text;
        parser.feed(text);
      }
    } catch {
      // Cut by us or by the server; what came before counts.
    }
    this.ended = true;
  }

  /** Publishers' events so far: everything but the server's own. */
  get events(): EventSourceMessage[] {
    return this.messages.filter(({ event }) => !event?.startsWith("pere."));
  }

  /** Their ids. */
  get ids(): (string | undefined)[] {
    return this.events.map(({ id }) => id);
  }

  /** Waits for the next message that was not taken yet. */
  async next(): Promise<EventSourceMessage> {
    await until(
      () => this.messages.length > this.#taken,
      () => `message ${this.#taken + 1}; came: ${this.raw.slice(-2_000)}`,
    );
    return this.messages[this.#taken++]!;
  }

  /** Waits until `count` publishers' events have come. */
  async have(count: number): Promise<EventSourceMessage[]> {
    await until(
      () => this.events.length >= count,
      () => `${count} events; ${this.events.length} came: ${this.raw.slice(-2_000)}`,
    );
    return this.events;
  }

  /** Waits for a server's own event, `ready` for `pere.ready`, and gives its data. */
  async own(name: string): Promise<Record<string, unknown>> {
    const find = () => this.messages.find(({ event }) => event === `pere.${name}`);
    await until(find, () => `pere.${name}; came: ${this.raw.slice(-2_000)}`);
    return JSON.parse(find()!.data) as Record<string, unknown>;
  }

  close(): void {
    this.#abort.abort();
  }
}

/** Opens an event stream. */
export async function openStream(url: string, headers: Record<string, string> = {}): Promise<Stream> {
  const abort = new AbortController();
  const response = await fetch(url, { headers: { Accept: "text/event-stream", ...headers }, signal: abort.signal });
  return new Stream(response, abort);
}

/** Opens a feed as an event stream and waits until it is ready: from then on nothing that is pushed passes it by. */
export async function listen(url: string, headers: Record<string, string> = {}): Promise<Stream> {
  const stream = await openStream(url, headers);
  const { response } = stream;
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) await stream.own("ready");
  return stream;
}

/** A WebSocket feed, read into `messages`. */
export async function connect(
  url: string,
  protocols: string[] = [],
): Promise<{ socket: WebSocket; messages: Record<string, any>[]; closed: Promise<CloseEvent> }> {
  const socket = new WebSocket(url.replace(/^http/, "ws"), protocols);
  const messages: Record<string, unknown>[] = [];
  const closed = new Promise<CloseEvent>((resolve) => (socket.onclose = resolve));
  socket.onmessage = ({ data }) => messages.push(JSON.parse(String(data)) as Record<string, unknown>);
  await until(
    () => messages.some(({ pere }) => pere === "ready") || socket.readyState === WebSocket.CLOSED,
    "pere ready",
  );
  return { socket, messages, closed };
}
