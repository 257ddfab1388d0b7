/**
 * What the operator sets: flags and environment, read together once, before anything starts. A wrong setting stops the start with one
 * clear line; a `PERE_` name that means nothing is named, so that nobody believes in it. A secret may stand in a file instead, whose path is in the
 * variable of the same name with `_FILE` behind it.
 */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import type { AccessOptions } from "./access.ts";
import type { CertificateFiles } from "./certificate.ts";
import { type Origins, readOrigins } from "./door.ts";
import type { Limits } from "./engine.ts";
import { type Allowed, readAllowed } from "./hook-call.ts";
import type { Level } from "./log.ts";
import { CHANNEL } from "./model.ts";
import { type RateLimits, RATES } from "./rates.ts";
import { KEPT_EVENTS_MAX, KEPT_SECONDS_MAX, readKeep } from "./retention.ts";

/** What the operator set; see README, "Settings". */
export interface Settings {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** The files that TLS is spoken with; null: it is not. */
  readonly tls: CertificateFiles | null;
  /** Path of the SQLite file, or `:memory:`. */
  readonly db: string;
  /** Where Redis is, when many instances share one memory there; several addresses are a Cluster's. Null: everything is in `db`. */
  readonly redis: readonly string[] | null;
  /** How many replicas of Redis must have a push or a receipt before it is answered. */
  readonly replicas: number;
  /** Address ranges that hooks may call although they are private. */
  readonly hooksAllowed: readonly Allowed[];
  readonly limits: Partial<Limits>;
  /** Where the keys are that tokens are checked with; `own`: PERE makes a secret; `open`: there are no tokens. */
  readonly access: Pick<AccessOptions, "secret" | "jwks" | "audience" | "issuer"> | "own" | "open";
  readonly origins: Origins;
  /** How much one caller may do in a minute. */
  readonly rates: RateLimits;
  /** Proxies whose `X-Forwarded-For` is believed. */
  readonly proxies: readonly Allowed[];
  /** From what on the log is written. */
  readonly log: Level;
  /** Channels that `/metrics` tells apart. */
  readonly metricsChannels: readonly string[];
  /** Names that were set and mean nothing. */
  readonly unknown: readonly string[];
}

/** Open feeds of one caller beyond loopback: the devices of a large site behind one address. */
const FEEDS_A_CALLER = 10_000;

/** All that may be set, besides `HOST` and `PORT`. */
const NAMES: readonly string[] = [
  "PERE_DB",
  "PERE_FEEDS_A_CALLER",
  "PERE_HOOKS_ALLOW",
  "PERE_JWKS",
  "PERE_JWT_AUDIENCE",
  "PERE_JWT_ISSUER",
  "PERE_JWT_SECRET",
  "PERE_JWT_SECRET_FILE",
  "PERE_KEEP",
  "PERE_KEEP_EVENTS",
  "PERE_KEEP_SECONDS",
  "PERE_LOG",
  "PERE_METRICS_CHANNELS",
  "PERE_OPEN",
  "PERE_ORIGINS",
  "PERE_PROXIES",
  "PERE_RATE_FEEDS",
  "PERE_RATE_PUSHES",
  "PERE_RATE_RECEIPTS",
  "PERE_REDIS_REPLICAS",
  "PERE_TLS_CERT",
  "PERE_TLS_KEY",
];

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

/** @throws Error with the one line to print; the URLs may hold a password, so they are not repeated */
function redisUrls(text: string): string[] {
  const urls = text.split(",").map((part) => {
    const url = URL.canParse(part.trim()) ? new URL(part.trim()) : null;
    if (url && (url.protocol === "redis:" || url.protocol === "rediss:") && url.hostname !== "") return url;
    throw new Error(
      "REDIS_URL must be redis://host:port or rediss://host:port, with user:password@ before the host where there are any; " +
        "several, comma separated, are a Cluster",
    );
  });
  if (urls.length === 1) return [text.trim()];
  if (new Set(urls.map(({ protocol }) => protocol)).size > 1)
    throw new Error("REDIS_URL names a Cluster: all of its addresses must begin with redis://, or all with rediss://");
  if (urls.some(({ pathname }) => !/^\/?0?$/.test(pathname)))
    throw new Error("REDIS_URL names a Cluster: that has no databases with numbers");
  const named = urls.find(({ username, password }) => username || password);
  const who = named ? `${named.username}:${named.password}@` : "";
  return urls.map(({ protocol, host }) => `${protocol}//${who}${host}`);
}

type Environment = Record<string, string | undefined>;

/** A secret, or what is in the file that holds it. @throws Error with the one line to print */
function secretOf(env: Environment, name: string): string | undefined {
  const path = env[`${name}_FILE`];
  if (!path) return env[name] || undefined;
  if (env[name]) throw new Error(`${name} and ${name}_FILE are both set; one of them is enough`);
  let text: string;
  try {
    text = readFileSync(path, "utf8").replace(/\r?\n$/, "");
  } catch (error) {
    throw new Error(`${name}_FILE can't be read: ${(error as Error).message}`);
  }
  if (text === "") throw new Error(`${name}_FILE is an empty file`);
  return text;
}

/** Who may come in. @throws Error with the one line to print */
function accessOf(env: Environment, host: string): Settings["access"] {
  const open = env.PERE_OPEN || "0";
  if (open !== "0" && open !== "1") throw new Error(`PERE_OPEN must be 1 or 0, not "${open}"`);
  const secret = secretOf(env, "PERE_JWT_SECRET");
  const found = {
    ...(secret === undefined ? {} : { secret }),
    ...(env.PERE_JWKS ? { jwks: env.PERE_JWKS } : {}),
    ...(env.PERE_JWT_AUDIENCE ? { audience: env.PERE_JWT_AUDIENCE } : {}),
    ...(env.PERE_JWT_ISSUER ? { issuer: env.PERE_JWT_ISSUER } : {}),
  };
  const hasKeys = "secret" in found || "jwks" in found;
  if (open === "1" && hasKeys)
    throw new Error("PERE_OPEN=1 lets everybody in, so PERE_JWT_SECRET and PERE_JWKS must not be set");
  if (hasKeys) return found;
  for (const name of ["PERE_JWT_AUDIENCE", "PERE_JWT_ISSUER"])
    if (env[name])
      throw new Error(`${name} is set, but neither PERE_JWT_SECRET nor PERE_JWKS: there is no key for such tokens`);
  return open === "1" || isLoopback(host) ? "open" : "own";
}

/** Channels that get series of their own: each is some fifty, and a scraper keeps them all. */
const METRICS_CHANNELS_MAX = 100;

/** @throws Error with the one line to print */
function channelsOf(text: string): string[] {
  const names = text
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
  const wrong = names.find((name) => !CHANNEL.test(name));
  if (wrong !== undefined) throw new Error(`PERE_METRICS_CHANNELS: "${wrong}" is not a channel's name`);
  if (names.length > METRICS_CHANNELS_MAX)
    throw new Error(`PERE_METRICS_CHANNELS may name at most ${METRICS_CHANNELS_MAX} channels`);
  return [...new Set(names)];
}

/** @throws Error with the one line to print */
function levelOf(text: string): Level {
  if (text === "debug" || text === "info" || text === "warn" || text === "error") return text;
  throw new Error(`PERE_LOG must be debug, info, warn or error, not "${text}"`);
}

/** Reads flags and environment together. @throws Error with the one line to print */
export function readSettings(argv: readonly string[], env: Environment): Settings {
  const { values } = parseArgs({
    args: [...argv],
    options: { host: { type: "string", short: "o" }, port: { type: "string", short: "p" } },
  });
  const whole = (name: string, text: string, min: number, max: number): number => {
    if (/^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max) return Number(text);
    throw new Error(`${name} must be a whole number from ${min} to ${max}, not "${text}"`);
  };
  const host = values.host ?? (env.HOST || "127.0.0.1");
  const port = whole("PORT", values.port ?? (env.PORT || "4567"), 0, 65535);
  /** On a loopback address everybody is one caller. */
  const rate = (name: string, usual: number): number =>
    env[name] ? whole(name, env[name], 0, 1_000_000_000) : isLoopback(host) ? 0 : usual;
  const redis = secretOf(env, "REDIS_URL");
  if (env.PERE_REDIS_REPLICAS && !redis)
    throw new Error("PERE_REDIS_REPLICAS is set, but not REDIS_URL: there are no replicas without Redis");
  const { PERE_TLS_CERT: cert, PERE_TLS_KEY: key } = env;
  if (!cert !== !key) throw new Error("PERE_TLS_CERT and PERE_TLS_KEY are set together, or neither is");
  return {
    host,
    port,
    tls: cert && key ? { cert, key } : null,
    db: env.PERE_DB || "pere.db",
    redis: redis ? redisUrls(redis) : null,
    replicas: env.PERE_REDIS_REPLICAS ? whole("PERE_REDIS_REPLICAS", env.PERE_REDIS_REPLICAS, 0, 99) : 0,
    hooksAllowed: readAllowed(env.PERE_HOOKS_ALLOW ?? ""),
    access: accessOf(env, host),
    origins: readOrigins(env.PERE_ORIGINS ?? ""),
    rates: {
      push: rate("PERE_RATE_PUSHES", RATES.push),
      receipt: rate("PERE_RATE_RECEIPTS", RATES.receipt),
      feed: rate("PERE_RATE_FEEDS", RATES.feed),
    },
    proxies: readAllowed(env.PERE_PROXIES ?? "", "PERE_PROXIES"),
    log: levelOf(env.PERE_LOG || "info"),
    metricsChannels: channelsOf(env.PERE_METRICS_CHANNELS ?? ""),
    unknown: Object.keys(env).filter((name) => name.startsWith("PERE_") && !NAMES.includes(name)),
    limits: {
      feedsACaller: rate("PERE_FEEDS_A_CALLER", FEEDS_A_CALLER) || Number.POSITIVE_INFINITY,
      ...(env.PERE_KEEP ? { keep: readKeep(env.PERE_KEEP) } : {}),
      ...(env.PERE_KEEP_EVENTS
        ? { keptEvents: whole("PERE_KEEP_EVENTS", env.PERE_KEEP_EVENTS, 1, KEPT_EVENTS_MAX) }
        : {}),
      ...(env.PERE_KEEP_SECONDS
        ? { keptMs: 1000 * whole("PERE_KEEP_SECONDS", env.PERE_KEEP_SECONDS, 1, KEPT_SECONDS_MAX) }
        : {}),
    },
  };
}
