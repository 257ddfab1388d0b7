/**
 * The checks of `doctor`: each looks at one thing between here and a service, and reports what it finds and what to do about it.
 *
 * Most trouble with pushed events is between the service and the device: a proxy that buffers or compresses a response, closes it when it is quiet, or
 * does not know WebSockets. So the checks are both a publisher and a device, and watch their own events: on a channel of their own, where each event
 * expires after a minute, as devices that are retired at the end.
 *
 * They use PERE's public contract only, change no setting, and never repeat a token.
 */
import { lookup } from "node:dns/promises";
import { connect as connectHttp2 } from "node:http2";
import { proxyOf } from "./program.ts";

/** The channel of the checks, which nobody else follows. */
export const CHANNEL = "pere-doctor";
/** The longest wait that a long-poll may ask for. */
const POLL_SECONDS_MAX = 60;
/** An event that has not arrived after this is held back, and not just slow. */
const LIMIT_MS = 3_000;
/** A service that has not answered after this is reported as slow. */
const SLOW_MS = 1_500;
/** Events whose time of delivery is measured. */
const EVENTS = 10;
/** A larger difference between two clocks makes tokens invalid that should be valid. */
const SKEW_MS_MAX = 2_000;
/** A token that expires sooner is worth a warning. */
const TOKEN_LEFT_MS = 24 * 3600 * 1000;

/** `ok`: it works. `warn`: it works, but could be better. `fail`: it does not work. */
export type Level = "ok" | "warn" | "fail";
/** Called with each finding, and with what to do about it. */
export type Report = (level: Level, finding: string, advice?: string) => void;

/** The service to check, and the devices to check it as. */
export interface Target {
  readonly url: string;
  readonly channel: string;
  readonly token: string | undefined;
  /** The device of each kind of feed. With a token it is the token's. */
  readonly devices: { readonly stream: string; readonly socket: string; readonly poll: string };
  /** Ids of the events that were pushed. */
  readonly pushed: string[];
}

const headersOf = ({ token }: Pick<Target, "token">): Record<string, string> =>
  token ? { Authorization: `Bearer ${token}` } : {};

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
const ms = (value: number): string => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
const secondsSince = (startedAt: number): string => `${((performance.now() - startedAt) / 1000).toFixed(0)} s`;
const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Whether a promise resolves in time. */
const within = (promise: Promise<unknown>, timeMs: number): Promise<boolean> =>
  Promise.race([promise.then(() => true), Bun.sleep(timeMs).then(() => false)]);

// ------------------------------------------------------------------------------------------------------------------- feeds

/** An open feed of any transport: everything that has arrived, as text. */
class OpenFeed {
  text = "";
  /** Why it ended; null while it is open. */
  ended: string | null = null;
  /** Headers of an event stream's response. */
  headers: Headers | null = null;
  readonly #waiting = new Set<() => void>();
  close: () => void = () => {};

  arrived(text: string): void {
    this.text += text;
    for (const check of this.#waiting) check();
  }

  end(why: string): void {
    this.ended ??= why;
    for (const check of this.#waiting) check();
  }

  /** Resolves when this text has arrived, or the feed has ended. */
  has(text: string): Promise<void> {
    return new Promise((resolve) => {
      const check = (): void => {
        if (this.ended === null && !this.text.includes(text)) return;
        this.#waiting.delete(check);
        resolve();
      };
      this.#waiting.add(check);
      check();
    });
  }

  /** Resolves when the feed has ended. */
  hasEnded = (): Promise<void> => this.has("\0");
}

const feedUrl = ({ url, channel, devices }: Target, kind: keyof Target["devices"]): string =>
  `${url}/feed/${channel}?device=${devices[kind]}`;

/** @param encoding the request's `Accept-Encoding` */
function openStream(target: Target, encoding: string): OpenFeed {
  const feed = new OpenFeed();
  const abort = new AbortController();
  feed.close = () => abort.abort();
  const read = async (): Promise<string> => {
    const response = await fetch(feedUrl(target, "stream"), {
      headers: { ...headersOf(target), Accept: "text/event-stream", "Accept-Encoding": encoding },
      signal: abort.signal,
    });
    feed.headers = response.headers;
    if (!response.ok) return `status ${response.status}`;
    const decoder = new TextDecoder();
    for await (const chunk of response.body!) feed.arrived(decoder.decode(chunk, { stream: true }));
    return "it was closed";
  };
  read().then(
    (why) => feed.end(why),
    (error: unknown) => feed.end(reasonOf(error)),
  );
  return feed;
}

function openSocket(target: Target): OpenFeed {
  const feed = new OpenFeed();
  const proxy = proxyOf(target.url);
  const socket = new WebSocket(feedUrl(target, "socket").replace(/^http/, "ws"), {
    protocols: target.token ? ["pere.v1", `pere.token.${target.token}`] : [],
    ...(proxy === null ? {} : { proxy }), // Bun's WebSocket does not use the proxy of the environment by itself.
  } as unknown as string[]); // The types of browsers do not have these options.
  feed.close = () => socket.close();
  socket.onmessage = ({ data }) => feed.arrived(String(data));
  socket.onclose = ({ code }) => feed.end(`it was closed with code ${code}`);
  return feed;
}

// ------------------------------------------------------------------------------------------------------------------ checks

/** Reaches the service, and reads how durable its store is. @returns whether it is ready */
export async function checkReachable({ url }: Target, report: Report): Promise<boolean> {
  const times: number[] = [];
  const slow = setTimeout(() => report("warn", `no answer from ${url} yet`), SLOW_MS);
  for (let n = 0; n < 5; n++) {
    const startedAt = performance.now();
    try {
      const response = await fetch(`${url}/health`, { signal: AbortSignal.timeout(2 * LIMIT_MS) });
      const body = await response.text();
      if (!response.ok || !body.includes('"ok"'))
        throw new Error(`GET /health answered with status ${response.status}`);
      times.push(performance.now() - startedAt);
    } catch (error) {
      const advice = "check the address, and the logs of the service and of the proxy";
      report("fail", `no PERE answers at ${url}: ${reasonOf(error)}`, advice);
      return false;
    } finally {
      clearTimeout(slow);
    }
  }
  report("ok", `the service answers; the round trip takes ${ms(median(times.slice(1)))}`);
  const response = await fetch(`${url}/ready`, { signal: AbortSignal.timeout(2 * LIMIT_MS) });
  const ready = (await response.json()) as Record<string, string> & { advice?: string[] };
  const { version, durability, advice = [], detail } = ready;
  if (!response.ok)
    report("fail", `the service is not ready: ${detail}`, "see its log; until then it refuses pushes and receipts");
  else report(durability === "fsync" ? "ok" : "warn", `its store is ${version}, durability: ${durability}`);
  for (const sentence of advice) report("warn", "its store could be more durable", sentence);
  return response.ok;
}

const LOOPBACK = /^(?:127\.|0\.0\.0\.0$|::1?$|::ffff:127\.)/;

/** Whether all addresses of a URL's host are on this machine: loopback, or one of these. False when it has none. */
export async function isLocal(url: string, own: ReadonlySet<string> = new Set()): Promise<boolean> {
  const { hostname } = new URL(url);
  const addresses = await lookup(hostname.replace(/^\[|\]$/g, ""), { all: true }).catch(() => []);
  return addresses.length > 0 && addresses.every(({ address }) => LOOPBACK.test(address) || own.has(address));
}

/** Beyond this machine a service must ask for a token, even if it listens on loopback and a proxy hides its callers. */
export async function checkAccess({ url }: Target, report: Report): Promise<void> {
  const { hostname } = new URL(url);
  if (hostname === "localhost" || (await isLocal(url))) return;
  const { status } = await fetch(`${url}/channels?limit=1`, { signal: AbortSignal.timeout(2 * LIMIT_MS) });
  if (status === 401) report("ok", "the service asks for a token");
  else if (status === 200)
    report(
      "fail",
      `the service answers without a token at ${hostname}: anyone who reaches that address may do everything`,
      "set PERE_JWT_SECRET or PERE_JWKS at the service, and have the proxy send Host and X-Forwarded-For",
    );
}

/** How many streams one HTTP/2 connection carries. A request beyond that waits for one of them to end. */
export async function checkHttp2({ url }: Target, report: Report): Promise<void> {
  if (!url.startsWith("https:")) return;
  const streams = await new Promise<number | undefined>((resolve) => {
    const session = connectHttp2(new URL(url).origin);
    const end = (count?: number): void => {
      clearTimeout(timer);
      session.destroy();
      resolve(count);
    };
    const timer = setTimeout(end, LIMIT_MS);
    session.on("error", () => end());
    session.on("remoteSettings", ({ maxConcurrentStreams }) => end(maxConcurrentStreams));
  });
  if (streams === undefined) return;
  report(
    "ok",
    `HTTP/2 works; one connection carries ${streams} feeds and requests at once, and further ones wait`,
    "a program with more feeds should put several channels on one feed, or open more connections",
  );
}

/** The claims of a token. They are not verified. @throws Error when it is not a token */
export const claimsOf = (token: string): { exp: number; sub: string } =>
  JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString()) as { exp: number; sub: string };

export function checkToken({ token }: Target, report: Report): void {
  if (!token) return;
  const { exp, sub } = claimsOf(token);
  const leftMs = exp * 1000 - Date.now();
  const days = (Math.abs(leftMs) / 86_400_000).toFixed(1);
  if (leftMs < 0) report("fail", `the token expired ${days} days ago, by this machine's clock`, "issue a new one");
  else report(leftMs < TOKEN_LEFT_MS ? "warn" : "ok", `the token is for ${sub} and expires in ${days} days`);
}

/** Pushes an event that expires soon, to the devices of the checks only. Times are by this machine's clock, except `at`. @throws Error with the status and the reason when it is refused */
async function push(target: Target, text: string): Promise<{ at: number; sentAt: number; tookMs: number }> {
  const to = new Set([target.devices.stream, target.devices.socket]);
  const [sentAt, startedAt] = [Date.now(), performance.now()];
  const response = await fetch(`${target.url}/push/${target.channel}?ttl=60&to=${[...to].join(",")}`, {
    method: "POST",
    headers: { ...headersOf(target), "Content-Type": "application/json" },
    body: JSON.stringify(text),
    signal: AbortSignal.timeout(2 * LIMIT_MS),
  });
  const body = (await response.json()) as { id: string; at: string; detail?: string };
  if (response.status !== 201) throw new Error(`${response.status}: ${body.detail}`);
  target.pushed.push(body.id);
  return { at: Date.parse(body.at), sentAt, tookMs: performance.now() - startedAt };
}

/** Pushes one event. @returns whether that works */
export async function checkPush(target: Target, report: Report): Promise<boolean> {
  try {
    await push(target, "first");
    return true;
  } catch (error) {
    const isProxied = !target.token && reasonOf(error).startsWith("403");
    const advice = isProxied
      ? "the service has no tokens, so it serves its own machine only: set up tokens before you put it behind a proxy"
      : `PERE_TOKEN must hold a token with push and feed on ${target.channel}; --channel names another channel`;
    report("fail", `a push is refused: ${reasonOf(error)}`, advice);
    return false;
  }
}

/** Follows by event stream, as a browser does, and by WebSocket, and pushes to both. */
export async function checkDelivery(target: Target, report: Report): Promise<void> {
  const stream = openStream(target, "gzip, deflate, br, zstd");
  const socket = openSocket(target);
  try {
    const isStreamReady = await within(stream.has("pere.ready"), LIMIT_MS);
    const isSocketReady = (await within(socket.has('"ready"'), LIMIT_MS)) && socket.ended === null;
    if (isSocketReady) report("ok", "a WebSocket opens");
    else
      report(
        "fail",
        `no WebSocket opens: ${socket.ended ?? `nothing arrived within ${LIMIT_MS / 1000} s`}`,
        "have the proxy pass Upgrade and Connection on (nginx: proxy_http_version 1.1 and both headers); event streams need neither",
      );
    if (stream.ended !== null && !stream.text.includes("pere.ready"))
      return report(
        "fail",
        `no event stream opens: ${stream.ended}`,
        "the token needs feed on the channel; otherwise see the proxy's log",
      );
    await measureDelivery(target, stream, isSocketReady ? socket : null, isStreamReady, report);
  } finally {
    stream.close();
    socket.close();
  }
}

/** Measures the time of delivery. Each event has time to arrive before the next one; if the stream holds back the first, it holds back all. */
async function measureDelivery(
  target: Target,
  stream: OpenFeed,
  socket: OpenFeed | null,
  isStreamReady: boolean,
  report: Report,
): Promise<void> {
  const [socketMs, streamMs]: [number[], number[]] = [[], []];
  const skewsMs: number[] = [];
  let isHeldBack = !isStreamReady;
  const arrival = async (feed: OpenFeed, text: string, times: number[]): Promise<void> => {
    const startedAt = performance.now();
    if (await within(feed.has(text), LIMIT_MS)) times.push(performance.now() - startedAt);
  };
  for (let n = 0; n < EVENTS && !isHeldBack; n++) {
    const text = `${target.devices.stream}/${n}`;
    const arrivals = [arrival(stream, text, streamMs), ...(socket ? [arrival(socket, text, socketMs)] : [])];
    const { at, sentAt, tookMs } = await push(target, text);
    // The service's time is compared with the middle of the exchange. A difference within the exchange is no skew.
    skewsMs.push(Math.max(0, Math.abs(at - sentAt - tookMs / 2) - tookMs / 2));
    await Promise.all(arrivals);
    isHeldBack = streamMs.length <= n;
  }
  if (skewsMs.length > 0) reportSkew(Math.min(...skewsMs), report);
  const encoding = stream.headers?.get("content-encoding") ?? null;
  if (isHeldBack) await reportHeldBack(target, encoding, report);
  else if (encoding)
    report(
      "warn",
      `event streams are compressed (${encoding}) on the way; events arrive, at a higher cost`,
      "switch compression off for /feed/ and /feedback/ (nginx: gzip off)",
    );
  if (streamMs.length === EVENTS) report("ok", `an event arrives after ${ms(median(streamMs))} by event stream`);
  if (socketMs.length > 0) report("ok", `an event arrives after ${ms(median(socketMs))} by WebSocket`);
}

function reportSkew(skewMs: number, report: Report): void {
  if (skewMs <= SKEW_MS_MAX) return report("ok", "the service's clock and this machine's agree");
  report(
    "fail",
    `the service's clock and this machine's differ by ${ms(skewMs)}`,
    "set both by NTP: the validity of tokens and the times of devices depend on them",
  );
}

/** Finds out whether a stream is held back by compression or by buffering: only a client that accepts no compression can tell. */
async function reportHeldBack(target: Target, encoding: string | null, report: Report): Promise<void> {
  const plain = openStream(target, "identity");
  try {
    const text = `${target.devices.stream}/plain`;
    const isReady = (await within(plain.has("pere.ready"), LIMIT_MS)) && plain.ended === null;
    if (isReady) await push(target, text);
    const isCompression = isReady && (await within(plain.has(text), LIMIT_MS)) && plain.ended === null;
    if (isCompression)
      report(
        "fail",
        `event streams are compressed${encoding ? ` (${encoding})` : ""} and held back on the way: browsers get nothing until they end`,
        "switch compression off for /feed/ and /feedback/ (nginx: gzip off)",
      );
    else
      report(
        "fail",
        `event streams are held back on the way: nothing arrived within ${LIMIT_MS / 1000} s`,
        "switch buffering off for /feed/ and /feedback/ (nginx: proxy_buffering off, and let X-Accel-Buffering pass)",
      );
  } finally {
    plain.close();
  }
}

/** Sends receipts for the events, so that no event is sent again and a quiet feed is quiet. */
export async function checkReceipts({ url, channel, devices, pushed, token }: Target, report: Report): Promise<void> {
  const names = [...new Set([devices.stream, devices.socket])];
  const receipts = names.flatMap((device) => pushed.map((event) => ({ event, device, status: "done" })));
  const response = await fetch(`${url}/feedback/${channel}`, {
    method: "POST",
    headers: { ...headersOf({ token }), "Content-Type": "application/json" },
    body: JSON.stringify(receipts),
  });
  const { recorded, detail } = (await response.json()) as { recorded?: number; detail?: string };
  if (response.ok && recorded === receipts.length) report("ok", `${recorded} receipts were recorded`);
  else report("fail", `not all receipts were recorded: ${detail ?? `${recorded} of ${receipts.length}`}`);
}

/** Leaves a connection of each kind quiet for a while, all at the same time, and sees which are closed. */
export async function checkQuiet(target: Target, seconds: number, report: Report): Promise<void> {
  const advice =
    "raise the proxy's limit for a quiet response to 150 s, longer than PERE is ever silent (nginx: proxy_read_timeout 150s)";
  const watch = async (what: string, feed: OpenFeed): Promise<void> => {
    const startedAt = performance.now();
    const isClosed = await within(feed.hasEnded(), 1000 * seconds);
    // The service announces when it closes a feed itself.
    if (isClosed && !/pere\.bye|"bye"/.test(feed.text))
      report("fail", `a quiet ${what} is closed after ${secondsSince(startedAt)}`, advice);
    else report("ok", `a quiet ${what} stays open for ${secondsSince(startedAt)}`);
    feed.close();
  };
  const poll = async (): Promise<void> => {
    const wait = Math.min(POLL_SECONDS_MAX, seconds);
    const startedAt = performance.now();
    const error = await fetch(`${feedUrl(target, "poll")}&wait=${wait}`, {
      headers: { ...headersOf(target), Accept: "application/json" },
      signal: AbortSignal.timeout(1000 * wait + 2 * LIMIT_MS),
    }).then(
      ({ status }) => (status === 200 ? null : `status ${status}`),
      (cause: unknown) => reasonOf(cause),
    );
    if (error === null) report("ok", `a response may take ${wait} s`);
    else
      report("fail", `a response that takes ${wait} s is cut off after ${secondsSince(startedAt)} (${error})`, advice);
  };
  await Promise.all([
    watch("event stream", openStream(target, "identity")),
    watch("WebSocket", openSocket(target)),
    poll(),
  ]);
}

/** Retires the devices of the checks. A token's own device on another channel is not theirs to retire. */
export async function cleanUp(target: Target): Promise<void> {
  if (target.token && target.channel !== CHANNEL) return;
  for (const device of new Set(Object.values(target.devices)))
    await fetch(`${target.url}/devices/${target.channel}/${device}`, {
      method: "DELETE",
      headers: headersOf(target),
    }).catch(() => {}); // What prevents it was reported before.
}
