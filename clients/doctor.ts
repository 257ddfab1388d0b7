#!/usr/bin/env bun
/**
 * The doctor: looks at a service from where you are, through everything that is before it, and says what is wrong and what to do.
 *
 *   PERE_TOKEN=… bun run index.ts doctor https://push.example.com [--seconds 20] [--channel NAME]
 *   PERE_TOKEN=… bun clients/doctor.ts https://push.example.com
 *
 * Most trouble with pushed events is between the service and the device: a proxy that collects an answer before it passes it on, packs it,
 * cuts it off when it is quiet, or does not know WebSockets. So the doctor is both, a publisher and a device, and sees what becomes of its own events:
 * on a channel of its own, where each is gone after a minute, as a device that is retired at the end.
 *
 * It knows PERE's public contract alone. It changes no setting, and repeats no token.
 */
import { lookup } from "node:dns/promises";
import { connect as connectHttp2 } from "node:http2";
import { networkInterfaces } from "node:os";
import { parseArgs } from "node:util";
import { fail, proxyOf, UsageError } from "./program.ts";

const USAGE = "usage: bun run index.ts doctor URL [--seconds N] [--channel NAME]";

/** Where events are pushed that nobody else waits for. */
const CHANNEL = "pere-doctor";
/** How long a quiet connection is watched, unless told otherwise. The service's own sign of life comes every 15 s. */
const SECONDS = 20;
const SECONDS_MAX = 600;
/** The longest that a long-poll may ask for. */
const POLL_SECONDS_MAX = 60;
/** An event that has not come after this is held back, not slow. */
const PATIENCE_MS = 3_000;
/** It says that it waits for an answer after this. */
const TRYING_MS = 1_500;
/** Events whose way is measured. */
const EVENTS = 10;
/** Clocks that differ by more make tokens that are not good yet, or no longer. */
const SKEW_MS = 2_000;
/** A token that ends sooner is worth a word. */
const TOKEN_LEFT_MS = 24 * 3600 * 1000;

/** How a finding is meant: all is well, worth a look, or something does not work. */
type Weight = "ok" | "look" | "bad";
/** Told of each finding as it is found. */
type Tell = (weight: Weight, what: string, advice?: string) => void;

/** What is looked at, and as whom. */
interface Patient {
  readonly url: string;
  readonly channel: string;
  readonly token: string | undefined;
  /** The device that listens by each means; with a token it is the token's. */
  readonly devices: { readonly stream: string; readonly socket: string; readonly poll: string };
  /** What was pushed and has no receipt yet. */
  readonly pushed: string[];
}

const headersOf = ({ token }: Pick<Patient, "token">): Record<string, string> =>
  token ? { Authorization: `Bearer ${token}` } : {};

/** The middle one. */
const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
const ms = (value: number): string => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(0)} s`;
const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Whether it came true in time. */
const within = (ended: Promise<unknown>, timeMs: number): Promise<boolean> =>
  Promise.race([ended.then(() => true), Bun.sleep(timeMs).then(() => false)]);

// ------------------------------------------------------------------------------------------------------------------- ears

/** A feed that is listened to, whatever it is carried by: all that has come, as text. */
class Ear {
  text = "";
  /** How it ended; null while it is open. */
  ended: string | null = null;
  /** Headers of an event stream's answer. */
  headers: Headers | null = null;
  readonly #waiting = new Set<() => void>();
  close: () => void = () => {};

  hear(text: string): void {
    this.text += text;
    for (const look of this.#waiting) look();
  }
  end(how: string): void {
    this.ended ??= how;
    for (const look of this.#waiting) look();
  }

  /** Resolves when these words have come, or the feed has ended. */
  has(words: string): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (this.ended === null && !this.text.includes(words)) return;
        this.#waiting.delete(look);
        resolve();
      };
      this.#waiting.add(look);
      look();
    });
  }
  /** Resolves when the feed has ended. */
  gone = (): Promise<void> => this.has("\0");
}

const feedPath = ({ url, channel, devices }: Patient, means: keyof Patient["devices"]): string =>
  `${url}/feed/${channel}?device=${devices[means]}`;

/** @param encoding what the client says that it takes, as `Accept-Encoding` */
function eventStream(patient: Patient, encoding: string): Ear {
  const ear = new Ear();
  const abort = new AbortController();
  ear.close = () => abort.abort();
  const read = async (): Promise<string> => {
    const response = await fetch(feedPath(patient, "stream"), {
      headers: { ...headersOf(patient), Accept: "text/event-stream", "Accept-Encoding": encoding },
      signal: abort.signal,
    });
    ear.headers = response.headers;
    if (!response.ok) return `status ${response.status}`;
    const decoder = new TextDecoder();
    for await (const chunk of response.body!) ear.hear(decoder.decode(chunk, { stream: true }));
    return "it was closed";
  };
  read().then(
    (how) => ear.end(how),
    (error: unknown) => ear.end(reasonOf(error)),
  );
  return ear;
}

function webSocket(patient: Patient): Ear {
  const ear = new Ear();
  const proxy = proxyOf(patient.url);
  const socket = new WebSocket(feedPath(patient, "socket").replace(/^http/, "ws"), {
    protocols: patient.token ? ["pere.v1", `pere.token.${patient.token}`] : [],
    ...(proxy === null ? {} : { proxy }), // Bun takes none for sockets by itself.
  } as unknown as string[]); // The browser's types know no such options.
  ear.close = () => socket.close();
  socket.onmessage = ({ data }) => ear.hear(String(data));
  socket.onclose = ({ code }) => ear.end(`closed with ${code}`);
  return ear;
}

// ----------------------------------------------------------------------------------------------------------------- looking

/** Reaches it, and asks what its store promises. @returns whether it is there */
async function reach({ url }: Patient, tell: Tell): Promise<boolean> {
  const times: number[] = [];
  const trying = setTimeout(() => tell("look", `no answer from ${url} yet`), TRYING_MS);
  for (let n = 0; n < 5; n++) {
    const began = performance.now();
    try {
      const response = await fetch(`${url}/health`, { signal: AbortSignal.timeout(2 * PATIENCE_MS) });
      const body = await response.text();
      if (!response.ok || !body.includes('"ok"')) throw new Error(`/health says ${response.status}`);
      times.push(performance.now() - began);
      clearTimeout(trying);
    } catch (error) {
      clearTimeout(trying);
      tell(
        "bad",
        `no PERE answers at ${url}: ${reasonOf(error)}`,
        "look at the address, the service's log and the proxy's",
      );
      return false;
    }
  }
  tell("ok", `it answers; there and back takes ${ms(median(times.slice(1)))}`);
  const ready = await fetch(`${url}/ready`, { signal: AbortSignal.timeout(2 * PATIENCE_MS) });
  const {
    version,
    durability,
    advice = [],
    detail,
  } = (await ready.json()) as Record<string, string> & { advice?: string[] };
  if (!ready.ok)
    tell("bad", `it is not ready: ${detail}`, "look at its log; pushes and receipts are refused until then");
  else tell(durability === "fsync" ? "ok" : "look", `it keeps its logs in ${version}, durability: ${durability}`);
  for (const sentence of advice) tell("look", "the store could promise more", sentence);
  return ready.ok;
}

/** This machine, as an address. */
const LOOPBACK = /^(?:127\.|0\.0\.0\.0$|::1?$|::ffff:127\.)/;

/** Beyond this machine nobody should get in without a token: also where the service itself listens on loopback, and a proxy hides whose requests it passes on. */
async function lookAtDoor({ url }: Patient, tell: Tell): Promise<void> {
  const { hostname } = new URL(url);
  const addresses = await lookup(hostname.replace(/^\[|\]$/g, ""), { all: true }).catch(() => []);
  if (hostname === "localhost" || (addresses.length > 0 && addresses.every(({ address }) => LOOPBACK.test(address))))
    return;
  const { status } = await fetch(`${url}/channels?limit=1`, { signal: AbortSignal.timeout(2 * PATIENCE_MS) });
  if (status === 401) tell("ok", "it asks for a token");
  else if (status === 200)
    tell(
      "bad",
      `it answers without a token at ${hostname}: anyone who reaches that address may do everything`,
      "set PERE_JWT_SECRET or PERE_JWKS at the service, and let the proxy send Host and X-Forwarded-For",
    );
}

/** Says how many feeds one HTTP/2 connection carries, where that is spoken: one more than that waits, and so does every request behind it. */
async function lookAtHttp2({ url }: Patient, tell: Tell): Promise<void> {
  if (!url.startsWith("https:")) return;
  const many = await new Promise<number | undefined>((resolve) => {
    const session = connectHttp2(new URL(url).origin);
    const end = (count?: number): void => {
      clearTimeout(timer);
      session.destroy();
      resolve(count);
    };
    const timer = setTimeout(end, PATIENCE_MS);
    session.on("error", () => end());
    session.on("remoteSettings", ({ maxConcurrentStreams }) => end(maxConcurrentStreams));
  });
  if (many === undefined) return;
  tell(
    "ok",
    `it speaks HTTP/2; one connection carries ${many} feeds and requests at once, and what is beyond waits`,
    "a program with more feeds than that puts several channels on one feed, or opens more connections",
  );
}

/** What stands in a token, which can be seen without its key. @throws when it is none */
const claimsOf = (token: string): { exp: number; sub: string } =>
  JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString()) as { exp: number; sub: string };

function lookAtToken({ token }: Patient, tell: Tell): void {
  if (!token) return;
  const { exp, sub } = claimsOf(token);
  const leftMs = exp * 1000 - Date.now();
  const days = (Math.abs(leftMs) / 86_400_000).toFixed(1);
  if (leftMs < 0) tell("bad", `the token ended ${days} days ago, by this machine's clock`, "make another");
  else tell(leftMs < TOKEN_LEFT_MS ? "look" : "ok", `the token is ${sub}'s and good for ${days} days`);
}

/** Pushes an event that ends soon, to the doctor's devices alone. @throws Error that says why it can't be */
async function push(patient: Patient, words: string): Promise<{ at: number; sentAt: number; tookMs: number }> {
  const to = new Set([patient.devices.stream, patient.devices.socket]);
  const [sentAt, began] = [Date.now(), performance.now()];
  const response = await fetch(`${patient.url}/push/${patient.channel}?ttl=60&to=${[...to].join(",")}`, {
    method: "POST",
    headers: { ...headersOf(patient), "Content-Type": "application/json" },
    body: JSON.stringify(words),
    signal: AbortSignal.timeout(2 * PATIENCE_MS),
  });
  const body = (await response.json()) as { id: string; at: string; detail?: string };
  if (response.status !== 201) throw new Error(`${response.status}: ${body.detail}`);
  patient.pushed.push(body.id);
  return { at: Date.parse(body.at), sentAt, tookMs: performance.now() - began };
}

/** Listens by event stream as a browser does, and by WebSocket, and pushes to both. @returns the feeds that work */
async function deliveries(patient: Patient, tell: Tell): Promise<void> {
  const stream = eventStream(patient, "gzip, deflate, br, zstd");
  const socket = webSocket(patient);
  try {
    const opened = await within(stream.has("pere.ready"), PATIENCE_MS);
    const connected = (await within(socket.has('"ready"'), PATIENCE_MS)) && socket.ended === null;
    if (connected) tell("ok", "a WebSocket opens");
    else
      tell(
        "bad",
        `no WebSocket opens: ${socket.ended ?? "nothing came of it"}`,
        "the proxy must pass Upgrade and Connection on (nginx: proxy_http_version 1.1 and both headers); event streams need neither",
      );
    if (stream.ended !== null && !stream.text.includes("pere.ready"))
      return tell(
        "bad",
        `no event stream opens: ${stream.ended}`,
        "the token needs feed on the channel, or look at the proxy's log",
      );
    await wayOfEvents(patient, stream, connected ? socket : null, opened, tell);
  } finally {
    stream.close();
    socket.close();
  }
}

/** Measures event by event, each given its time before the next is pushed; a stream that holds the first one back holds all. */
async function wayOfEvents(
  patient: Patient,
  stream: Ear,
  socket: Ear | null,
  opened: boolean,
  tell: Tell,
): Promise<void> {
  const [bySocket, byStream]: [number[], number[]] = [[], []];
  const skews: number[] = [];
  let held = !opened;
  const arrival = async (ear: Ear, words: string, times: number[]): Promise<void> => {
    const began = performance.now();
    if (await within(ear.has(words), PATIENCE_MS)) times.push(performance.now() - began);
  };
  for (let n = 0; n < EVENTS && !held; n++) {
    const words = `${patient.devices.stream}/${n}`;
    const waiting = [arrival(stream, words, byStream), ...(socket ? [arrival(socket, words, bySocket)] : [])];
    const { at, sentAt, tookMs } = await push(patient, words);
    // By the middle of the exchange; what is left of it either way is no skew.
    skews.push(Math.max(0, Math.abs(at - sentAt - tookMs / 2) - tookMs / 2));
    await Promise.all(waiting);
    held = byStream.length <= n;
  }
  if (skews.length > 0)
    if (Math.min(...skews) > SKEW_MS)
      tell(
        "bad",
        `the service's clock and this machine's differ by ${ms(Math.min(...skews))}`,
        "set both by NTP: tokens begin and end, and devices' times are compared, by them",
      );
    else tell("ok", "its clock and this machine's agree");
  const packed = stream.headers?.get("content-encoding");
  if (held) await whyHeld(patient, packed ?? null, tell);
  else if (packed)
    tell(
      "look",
      `event streams are packed (${packed}) on the way; events come through, and cost more`,
      "nginx: gzip off",
    );
  if (byStream.length === EVENTS) tell("ok", `an event is there after ${ms(median(byStream))}, by event stream`);
  if (bySocket.length > 0) tell("ok", `and after ${ms(median(bySocket))}, by WebSocket`);
}

/** An event stream that is held back: by who packs it, or by who collects it? Only a client that takes nothing packed can tell. */
async function whyHeld(patient: Patient, packed: string | null, tell: Tell): Promise<void> {
  const plain = eventStream(patient, "identity");
  try {
    const words = `${patient.devices.stream}/plain`;
    const opened = (await within(plain.has("pere.ready"), PATIENCE_MS)) && plain.ended === null;
    if (opened) await push(patient, words);
    const passes = opened && (await within(plain.has(words), PATIENCE_MS)) && plain.ended === null;
    if (passes)
      tell(
        "bad",
        `event streams are packed${packed ? ` (${packed})` : ""} and held back on the way: browsers get nothing until they end`,
        "switch compression off for /feed/ and /feedback/ (nginx: gzip off)",
      );
    else
      tell(
        "bad",
        `event streams are held back on the way: nothing came in ${PATIENCE_MS / 1000} s`,
        "switch buffering off for /feed/ and /feedback/ (nginx: proxy_buffering off, and let X-Accel-Buffering pass)",
      );
  } finally {
    plain.close();
  }
}

/** Leaves connections quiet for a while, each kind at the same time, and sees which are cut off. */
async function quiet(patient: Patient, forSeconds: number, tell: Tell): Promise<void> {
  const limitMs = 1000 * forSeconds;
  const advice =
    "the proxy's limit for a quiet answer must be longer than anything in PERE is silent: 150 s (nginx: proxy_read_timeout 150s)";
  const feed = async (what: string, ear: Ear): Promise<void> => {
    const began = performance.now();
    const cut = await within(ear.gone(), limitMs);
    // What the service ends by itself it announces.
    if (cut && !/pere\.bye|"bye"/.test(ear.text))
      tell("bad", `a quiet ${what} is cut off after ${seconds(began)}`, advice);
    else tell("ok", `a quiet ${what} stays open for ${seconds(began)}`);
    ear.close();
  };
  const poll = async (): Promise<void> => {
    const wait = Math.min(POLL_SECONDS_MAX, forSeconds);
    const began = performance.now();
    const how = await fetch(`${feedPath(patient, "poll")}&wait=${wait}`, {
      headers: { ...headersOf(patient), Accept: "application/json" },
      signal: AbortSignal.timeout(1000 * wait + 2 * PATIENCE_MS),
    }).then(
      ({ status }) => (status === 200 ? null : `status ${status}`),
      (error: unknown) => reasonOf(error),
    );
    if (how === null) tell("ok", `an answer may take ${wait} s`);
    else tell("bad", `an answer that takes ${wait} s is cut off after ${seconds(began)} (${how})`, advice);
  };
  await Promise.all([
    feed("event stream", eventStream(patient, "identity")),
    feed("WebSocket", webSocket(patient)),
    poll(),
  ]);
}

/** Answers what was pushed, as its devices: so that nothing is owed, and a quiet feed is quiet. */
async function answer({ url, channel, devices, pushed, ...patient }: Patient, tell: Tell): Promise<void> {
  const names = [...new Set([devices.stream, devices.socket])];
  const receipts = names.flatMap((device) => pushed.map((event) => ({ event, device, status: "done" })));
  const response = await fetch(`${url}/feedback/${channel}`, {
    method: "POST",
    headers: { ...headersOf(patient), "Content-Type": "application/json" },
    body: JSON.stringify(receipts),
  });
  const { recorded, detail } = (await response.json()) as { recorded?: number; detail?: string };
  if (response.ok && recorded === receipts.length) tell("ok", `${recorded} receipts were taken`);
  else tell("bad", `not all receipts were taken: ${detail ?? `${recorded} of ${receipts.length}`}`);
}

/** Leaves nothing behind but an empty channel. A device that it borrowed from a token is not its own to retire where others push. */
async function leave(patient: Patient): Promise<void> {
  if (patient.token && patient.channel !== CHANNEL) return;
  for (const device of new Set(Object.values(patient.devices)))
    await fetch(`${patient.url}/devices/${patient.channel}/${device}`, {
      method: "DELETE",
      headers: headersOf(patient),
    }).catch(() => {}); // What was wrong was told before.
}

/** Looks at a service. @returns whether nothing is bad */
async function examine(patient: Patient, forSeconds: number, tell: Tell): Promise<boolean> {
  let well = true;
  const told: Tell = (weight, what, advice) => {
    if (weight === "bad") well = false;
    tell(weight, what, advice);
  };
  if (!(await reach(patient, told))) return false;
  lookAtToken(patient, told);
  await lookAtDoor(patient, told);
  await lookAtHttp2(patient, told);
  try {
    await push(patient, "first");
  } catch (error) {
    const isProxied = !patient.token && reasonOf(error).startsWith("403");
    const advice = isProxied
      ? "the service has no tokens and is for its own machine: give it tokens before it is put behind a proxy"
      : `PERE_TOKEN must hold a token with push and feed on ${patient.channel}; --channel names another`;
    told("bad", `nothing can be pushed: ${reasonOf(error)}`, advice);
    return false;
  }
  try {
    await deliveries(patient, told);
    await answer(patient, told);
    if (forSeconds > 0) await quiet(patient, forSeconds, told);
  } finally {
    await leave(patient);
  }
  return well;
}

// ---------------------------------------------------------------------------------------------------------------- commands

/** An address of this machine's is reached directly: no proxy is on the way to it, whatever is set for the way out. */
async function goDirectly(url: string): Promise<void> {
  const addresses = await lookup(new URL(url).hostname.replace(/^\[|\]$/g, ""), { all: true }).catch(() => []);
  const own = new Set(Object.values(networkInterfaces()).flatMap((all) => all?.map(({ address }) => address) ?? []));
  if (addresses.length > 0 && addresses.every(({ address }) => LOOPBACK.test(address) || own.has(address)))
    process.env.NO_PROXY = process.env.no_proxy = "*";
}

/** A device's name, as it may stand in a URL. */
const DEVICE = /^[A-Za-z0-9._:~-]{1,128}$/;

/** With a token there is one device, which the token names; `*` is whichever its bearer says. @throws UsageError */
function borrowed(token: string, own: Patient["devices"]): Patient["devices"] {
  let sub: unknown;
  try {
    if (!/^[A-Za-z0-9._-]+$/.test(token)) throw new Error("it has other characters");
    ({ sub } = claimsOf(token));
  } catch {
    throw new UsageError("PERE_TOKEN holds no token: that is three parts with dots between them");
  }
  if (sub === "*") return own;
  if (typeof sub !== "string" || !DEVICE.test(sub))
    throw new UsageError(
      "PERE_TOKEN can't follow a feed, because its sub is not a device's name; use a token with one",
    );
  return { stream: sub, socket: sub, poll: sub };
}

/** What is asked for. @throws UsageError */
function readAsked(args: readonly string[]): { url: string; channel: string; forSeconds: number } {
  const parse = () => {
    try {
      const options = { seconds: { type: "string" }, channel: { type: "string" } } as const;
      return parseArgs({ args: [...args], allowPositionals: true, options });
    } catch (error) {
      throw new UsageError((error as Error).message.split(/\. |\n/, 1)[0]);
    }
  };
  const { values, positionals } = parse();
  const url = positionals[0] ?? "";
  if (positionals.length !== 1 || !/^https?:\/\/[^?#@]+$/.test(url) || !URL.canParse(url)) throw new UsageError(USAGE);
  const { seconds = String(SECONDS), channel = CHANNEL } = values;
  if (!/^[0-9]{1,9}(\.[0-9]+)?$/.test(seconds) || Number(seconds) > SECONDS_MAX)
    throw new UsageError(`--seconds is a number up to ${SECONDS_MAX}`);
  if (!/^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/.test(channel)) throw new UsageError(`--channel: "${channel}" is no name`);
  return { url, channel, forSeconds: Number(seconds) };
}

/** `doctor URL`. @returns 0, or 1 where something is bad @throws Error with the one line to print */
export async function doctor(args: readonly string[]): Promise<number> {
  const { url, channel, forSeconds } = readAsked(args);
  const token = process.env.PERE_TOKEN?.trim() || undefined;
  await goDirectly(url);
  const own = `doctor-${crypto.randomUUID()}`;
  const devices = { stream: own, socket: `${own}-socket`, poll: `${own}-poll` };
  const patient: Patient = {
    url: url.replace(/\/+$/, ""),
    channel,
    token,
    devices: token ? borrowed(token, devices) : devices,
    pushed: [],
  };
  const well = await examine(patient, forSeconds, (weight, what, advice) => {
    console.log(`${weight.padEnd(5)} ${what}`);
    if (advice) console.log(`      → ${advice}`);
  });
  console.log(well ? "Nothing is wrong between here and there." : "Something is wrong; see what is marked bad.");
  return well ? 0 : 1;
}

if (import.meta.main && !Bun.isStandaloneExecutable)
  process.exit(await doctor(process.argv.slice(2)).catch((error: unknown) => fail("doctor", error)));
