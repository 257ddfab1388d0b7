/**
 * Who comes to the door in tests: services that ask for tokens, the tokens, and requests down to their bytes.
 */
import { join } from "node:path";
import { issueToken } from "../../engine/auth/issue.ts";
import type { EngineOptions } from "../../engine/engine.ts";
import type { Settings } from "../../engine/ops/settings.ts";
import type { Service } from "../../index.ts";
import { SECRET, startWith, until } from "./harness.ts";

export const DAY_SECONDS = 24 * 3600;

export const closing: (() => unknown)[] = [];
/** After each test: what it started is ended, the last one first. */
export async function closeAll(): Promise<void> {
  for (const close of closing.splice(0).reverse()) await close();
}

/** A service with the secret, or as it is said; it is stopped with the test. */
export async function start(settings: Partial<Settings> = {}, options: EngineOptions = {}): Promise<Service> {
  const service = await startWith(settings, options);
  closing.push(() => service.stop());
  return service;
}

export interface Claims {
  readonly sub?: string;
  readonly push?: readonly string[];
  readonly feed?: readonly string[];
  readonly seconds?: number;
  readonly secret?: string;
  readonly now?: () => number;
}

export const token = ({
  sub = "till-7",
  push = [],
  feed = [],
  seconds = 3600,
  secret = SECRET,
  now = Date.now,
}: Claims) => issueToken({ secret, now }, { sub, push, feed, days: seconds / DAY_SECONDS });
export const bearer = (text: string): Record<string, string> => ({ Authorization: `Bearer ${text}` });
export const JSON_ONLY = { Accept: "application/json" };
export const GOOD = await token({ push: ["orders"], feed: ["orders"] });

/** What a server says to these bytes, until it closes or has said a head (and, with `until`, that). */
export async function raw(url: string, text: string, end = "\r\n\r\n"): Promise<string> {
  let said = "";
  const { promise, resolve } = Promise.withResolvers<void>();
  const { port, hostname } = new URL(url);
  const socket = await Bun.connect({
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port),
    socket: {
      data(_, bytes) {
        said += bytes.toString();
        if (said.includes(end)) resolve();
      },
      close: () => resolve(),
      end: () => resolve(),
    },
  });
  socket.write(text);
  await promise;
  socket.end();
  return said;
}
export const statusOf = (said: string): number => Number(/^HTTP\/1\.[01] (\d{3})/.exec(said)?.[1] ?? 0);

/** The status of a WebSocket's handshake. */
export async function handshake(url: string, path: string, headers: Record<string, string> = {}): Promise<number> {
  const lines = Object.entries({
    Host: new URL(url).host,
    Upgrade: "websocket",
    Connection: "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    ...headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  return statusOf(await raw(url, `GET ${path} HTTP/1.1\r\n${lines.join("")}\r\n`));
}

/** The status of a request of any kind; what goes on is cut. */
export async function statusFor(url: string, method: string, path: string, init: RequestInit): Promise<number> {
  const abort = new AbortController();
  const response = await fetch(url + path, { method, redirect: "manual", ...init, signal: abort.signal });
  if (response.headers.get("content-type") === "text/event-stream") abort.abort();
  else await response.arrayBuffer();
  return response.status;
}

/** A service in a process of its own, or a command that ends, and all that it says on both of its outputs. */
export async function run(env: Record<string, string>, args: readonly string[] = []) {
  const child = Bun.spawn([process.execPath, "run", join(import.meta.dir, "..", "..", "index.ts"), ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, PORT: "0", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  closing.push(() => child.kill("SIGKILL"));
  const texts = { stdout: "", stderr: "" };
  const read = async (name: keyof typeof texts): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of child[name]) texts[name] += decoder.decode(chunk, { stream: true });
  };
  const done = Promise.all([read("stdout"), read("stderr"), child.exited]);
  const isMint = args[0] === "token";
  if (isMint) await done;
  else
    await until(
      () => /PERE keeps its logs in|PERE can't/.test(texts.stdout + texts.stderr),
      () => JSON.stringify(texts),
    );
  return {
    url: /^PERE listening on (http:\S+)$/m.exec(texts.stdout)?.[1]?.replace("0.0.0.0", "127.0.0.1") ?? "",
    texts,
    code: () => child.exited,
    said: () => texts.stdout + texts.stderr,
    async end(signal: NodeJS.Signals) {
      child.kill(signal);
      return (await done)[2];
    },
  };
}
