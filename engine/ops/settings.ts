/**
 * What the operator sets: flags and environment, read together once, before anything starts. A wrong setting stops the start with one
 * clear line; a `PERE_` name that means nothing is named, so that nobody believes in it. A secret may stand in a file instead, whose path is in the
 * variable of the same name with `_FILE` behind it.
 */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import type { AccessOptions } from "../auth/tokens.ts";
import type { CertificateFiles } from "../http/certificate.ts";
import { isDistant, type Origins, readOrigins } from "../http/admission.ts";
import { type Limits, LIMITS } from "../engine.ts";
import { type AddressRange, readRanges } from "../addresses.ts";
import type { Level } from "./logger.ts";
import { CHANNEL } from "../model.ts";
import { type RateLimits, RATES } from "../http/rate-limit.ts";
import { KEPT_EVENTS_MAX, KEPT_SECONDS_MAX, readKeep } from "../retention-rules.ts";

/** What the operator set; see docs/configuration.md. */
export interface Settings {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** The path under which proxies lead to the service, `/pere` or deeper, beside its own; empty: there is none. */
  readonly basePath: string;
  /** The files that TLS is spoken with; null: it is not. */
  readonly tls: CertificateFiles | null;
  /** Path of the SQLite file, or `:memory:`. */
  readonly db: string;
  /** Where Redis is, when many instances share one memory there; several addresses are a Cluster's. Null: everything is in `db`. */
  readonly redis: readonly string[] | null;
  /** What all of PERE's keys and messages in Redis begin with. */
  readonly redisPrefix: string;
  /** How many replicas of Redis must have a push or a receipt before it is answered. */
  readonly replicas: number;
  /** Address ranges that hooks may call although they are private. */
  readonly hooksAllowed: readonly AddressRange[];
  readonly limits: Partial<Limits>;
  /**
   * Where the keys are that tokens are checked with; `own`: PERE makes a secret; `local`: no tokens, for programs on this machine alone; `open`: no
   * tokens, for everybody, because the operator said so.
   */
  readonly access: Pick<AccessOptions, "secret" | "jwks" | "audience" | "issuer"> | "own" | "local" | "open";
  readonly origins: Origins;
  /** How much one caller may do in a minute. */
  readonly rates: RateLimits;
  /** Proxies whose `X-Forwarded-For` is believed. */
  readonly proxies: readonly AddressRange[];
  /** From what on the log is written. */
  readonly log: Level;
  /** Channels that `/metrics` tells apart. */
  readonly metricsChannels: readonly string[];
  /** Names that were set and mean nothing. */
  readonly unknown: readonly string[];
}

/** Open feeds of one caller: the devices of a large site behind one address. */
const FEEDS_A_CALLER = 10_000;

/** One setting, as it is read and as people read of it. */
export interface Setting {
  /** What holds where nothing is set; empty: nothing does. */
  readonly usual: string;
  /** Where there are no tokens on a loopback address nothing holds: there, everybody is one caller. */
  readonly notLocal?: true;
  /** In a sentence or two, in Markdown. */
  readonly meaning: string;
}

/** All that may be set, in the order in which it is shown: by docs/configuration.md, `--help` and `.env.example`. */
export const SETTINGS = {
  HOST: {
    usual: "127.0.0.1",
    meaning:
      "the address it listens at; `0.0.0.0` is all of IPv4 (the image sets it), `::` all, `localhost` this machine's own, of IPv4 and IPv6",
  },
  PORT: { usual: "4567", meaning: "the port; `0` takes a free one and says which" },
  PERE_BASE_PATH: {
    usual: "",
    meaning:
      "the path, such as `/pere`, under which a proxy leads to PERE, whether it takes it off or not; the paths without it work as well",
  },
  PERE_TLS_CERT: {
    usual: "",
    meaning: "PEM file with a certificate and its chain; PERE then speaks TLS itself",
  },
  PERE_TLS_KEY: { usual: "", meaning: "PEM file with its key" },
  PERE_DB: { usual: "pere.db", meaning: "the SQLite file, held by one process; `:memory:` keeps nothing" },
  REDIS_URL: {
    usual: "",
    meaning:
      "use Redis instead: `redis://` or `rediss://`, with `user:password@` where needed; several, comma separated, are a Cluster; for a CA of your own set `NODE_EXTRA_CA_CERTS`",
  },
  REDIS_URL_FILE: { usual: "", meaning: "the path of a file that holds `REDIS_URL`" },
  PERE_REDIS_PREFIX: {
    usual: "pere:",
    meaning: "what its keys and messages in Redis begin with; services that share a database have different ones",
  },
  PERE_REDIS_REPLICAS: {
    usual: "0",
    meaning: "how many replicas of Redis must have a push or a receipt before it is answered 2xx",
  },
  PERE_JWT_SECRET: { usual: "", meaning: "HS256 secret that tokens are signed with, at least 32 bytes" },
  PERE_JWT_SECRET_FILE: { usual: "", meaning: "the path of a file that holds it" },
  PERE_JWKS: {
    usual: "",
    meaning: "key set that tokens are checked with, as a file (read again on SIGHUP) or a URL: EdDSA, ES256, RS256",
  },
  PERE_JWT_AUDIENCE: { usual: "", meaning: "what a token's `aud` must hold" },
  PERE_JWT_ISSUER: { usual: "", meaning: "what a token's `iss` must be" },
  PERE_OPEN: {
    usual: "0",
    meaning:
      "`1`: no tokens at all, also beyond loopback and behind a proxy; anyone who reaches it may do everything. On a loopback address PERE needs no tokens by default, but refuses requests that came through a proxy",
  },
  PERE_ORIGINS: {
    usual: "",
    meaning:
      "origins that browsers may call from, comma separated, or `*`: `https://shop.example`, or an app's, such as `capacitor://localhost`, `file://` or `null`. Origins beyond loopback need tokens or `PERE_OPEN=1`",
  },
  PERE_RATE_PUSHES: {
    usual: String(RATES.push),
    notLocal: true,
    meaning:
      "events that one caller (a token's `sub`, else an address) may push in a minute, counted in Redis where there is one; `0`: as many as he likes. Beyond: 429 with `Retry-After`, `RateLimit` and `RateLimit-Policy`",
  },
  PERE_RATE_RECEIPTS: {
    usual: String(RATES.receipt),
    notLocal: true,
    meaning: "the same for receipts",
  },
  PERE_RATE_FEEDS: {
    usual: String(RATES.feed),
    notLocal: true,
    meaning:
      "the same for feeds that are opened, each of their channels counted; on an event stream, beyond is `pere.bye`",
  },
  PERE_FEEDS_A_CALLER: {
    usual: String(FEEDS_A_CALLER),
    notLocal: true,
    meaning: "feeds that one caller may have open on an instance; `0`: as many as he likes",
  },
  PERE_PROXIES: {
    usual: "",
    meaning: "address ranges of proxies whose `X-Forwarded-For` is believed; needs tokens or `PERE_OPEN=1`",
  },
  PERE_LOG: {
    usual: "info",
    meaning:
      "`debug`, `info`, `warn` or `error`: JSON lines on standard error; at `debug` one for each request. Tokens never",
  },
  PERE_KEEP_EVENTS: { usual: String(LIMITS.keptEvents), meaning: "events kept a channel" },
  PERE_KEEP_SECONDS: { usual: String(LIMITS.keptMs / 1000), meaning: "how long they are kept" },
  PERE_KEEP: {
    usual: "",
    meaning:
      "rules for some channels, the first that fits holds: `orders.*:events=1000,seconds=86400;audit:seconds=31536000`; what a rule leaves open, and all other channels, are as above. Instances on one Redis have the same",
  },
  PERE_METRICS_CHANNELS: {
    usual: "",
    meaning: "channels, comma separated, that `/metrics` tells apart; 100 at most",
  },
  PERE_HOOKS_ALLOW: {
    usual: "",
    meaning: "address ranges, `10.0.0.0/8,fd00::/8`, that hooks may call although they are private",
  },
} as const satisfies Record<string, Setting>;

type Name = keyof typeof SETTINGS;

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

/** What is set, else what is usual; empty is not set. */
type Environment = { readonly [name in Name]: string };

/** The settings among all variables, each as it is set or as it usually is. */
const environmentOf = (env: Readonly<Record<string, string | undefined>>): Environment =>
  Object.fromEntries(Object.entries(SETTINGS).map(([name, { usual }]) => [name, env[name] || usual])) as Environment;

/** A secret, or what is in the file that holds it. @throws Error with the one line to print */
function secretOf(env: Environment, name: "REDIS_URL" | "PERE_JWT_SECRET"): string {
  const path = env[`${name}_FILE`];
  if (path === "") return env[name];
  if (env[name] !== "") throw new Error(`${name} and ${name}_FILE are both set; one of them is enough`);
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
  const { PERE_OPEN: open, PERE_JWKS: jwks, PERE_JWT_AUDIENCE: audience, PERE_JWT_ISSUER: issuer } = env;
  if (open !== "0" && open !== "1") throw new Error(`PERE_OPEN must be 1 or 0, not "${open}"`);
  const secret = secretOf(env, "PERE_JWT_SECRET");
  const found = {
    ...(secret && { secret }),
    ...(jwks && { jwks }),
    ...(audience && { audience }),
    ...(issuer && { issuer }),
  };
  const hasKeys = "secret" in found || "jwks" in found;
  if (open === "1" && hasKeys)
    throw new Error("PERE_OPEN=1 lets everybody in, so PERE_JWT_SECRET and PERE_JWKS must not be set");
  if (hasKeys) return found;
  for (const name of ["PERE_JWT_AUDIENCE", "PERE_JWT_ISSUER"] as const)
    if (env[name])
      throw new Error(`${name} is set, but neither PERE_JWT_SECRET nor PERE_JWKS: there is no key for such tokens`);
  if (open === "1") return "open";
  return isLoopback(host) ? "local" : "own";
}

/**
 * A service without tokens is for its own machine; what is set for callers from elsewhere says that it is not meant so.
 * @throws Error with the one line to print
 */
function checkLocal(origins: Origins, proxies: readonly AddressRange[]): void {
  const advice =
    "but nothing asks for tokens: set PERE_JWT_SECRET or PERE_JWKS, or PERE_OPEN=1 to let everybody do everything";
  const distant = origins === "*" ? "*" : origins.find(isDistant);
  if (distant !== undefined)
    throw new Error(`PERE_ORIGINS allows ${distant === "*" ? "every page" : `pages of ${distant}`}, ${advice}`);
  if (proxies.length > 0) throw new Error(`PERE_PROXIES names proxies, ${advice}`);
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

/** Braces would put all channels into one slot of a Cluster. @throws Error with the one line to print */
function prefixOf(text: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/.test(text)) return text;
  throw new Error(
    `PERE_REDIS_PREFIX must be 1 to 64 of A-Z a-z 0-9 . _ : - that begin with a letter or digit, not "${text}"`,
  );
}

/** A path without a slash at its end; the root is empty. @throws Error with the one line to print */
function basePathOf(text: string): string {
  const path = text.replace(/\/$/, "");
  if (path === "" || /^(?:\/[A-Za-z0-9][A-Za-z0-9._~-]*)+$/.test(path)) return path;
  throw new Error(`PERE_BASE_PATH must be a path like /pere or /tools/pere, not "${text}"`);
}

/** Reads flags and environment together. @throws Error with the one line to print */
export function readSettings(
  argv: readonly string[],
  variables: Readonly<Record<string, string | undefined>>,
): Settings {
  const env = environmentOf(variables);
  const { values } = parseArgs({
    args: [...argv],
    options: { host: { type: "string", short: "o" }, port: { type: "string", short: "p" } },
  });
  const whole = (name: Name, min: number, max: number, text: string = env[name]): number => {
    if (/^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max) return Number(text);
    throw new Error(`${name} must be a whole number from ${min} to ${max}, not "${text}"`);
  };
  const host = values.host ?? env.HOST;
  const access = accessOf(env, host);
  const origins = readOrigins(env.PERE_ORIGINS);
  const proxies = readRanges(env.PERE_PROXIES, "PERE_PROXIES");
  if (access === "local") checkLocal(origins, proxies);
  const isOneCaller = typeof access === "string" && isLoopback(host) && proxies.length === 0;
  const rate = (name: Name): number => (!variables[name] && isOneCaller ? 0 : whole(name, 0, 1_000_000_000));
  const redis = secretOf(env, "REDIS_URL");
  if (variables.PERE_REDIS_REPLICAS && !redis)
    throw new Error("PERE_REDIS_REPLICAS is set, but not REDIS_URL: there are no replicas without Redis");
  if (variables.PERE_REDIS_PREFIX && !redis)
    throw new Error("PERE_REDIS_PREFIX is set, but not REDIS_URL: there are no keys without Redis");
  const { PERE_TLS_CERT: cert, PERE_TLS_KEY: key } = env;
  if (!cert !== !key) throw new Error("PERE_TLS_CERT and PERE_TLS_KEY are set together, or neither is");
  return {
    host,
    port: whole("PORT", 0, 65535, values.port),
    basePath: basePathOf(env.PERE_BASE_PATH),
    tls: cert && key ? { cert, key } : null,
    db: env.PERE_DB,
    redis: redis === "" ? null : redisUrls(redis),
    redisPrefix: prefixOf(env.PERE_REDIS_PREFIX),
    replicas: whole("PERE_REDIS_REPLICAS", 0, 99),
    hooksAllowed: readRanges(env.PERE_HOOKS_ALLOW),
    access,
    origins,
    rates: { push: rate("PERE_RATE_PUSHES"), receipt: rate("PERE_RATE_RECEIPTS"), feed: rate("PERE_RATE_FEEDS") },
    proxies,
    log: levelOf(env.PERE_LOG),
    metricsChannels: channelsOf(env.PERE_METRICS_CHANNELS),
    unknown: Object.keys(variables).filter((name) => name.startsWith("PERE_") && !(name in SETTINGS)),
    limits: {
      feedsACaller: rate("PERE_FEEDS_A_CALLER") || Number.POSITIVE_INFINITY,
      ...(env.PERE_KEEP && { keep: readKeep(env.PERE_KEEP) }),
      keptEvents: whole("PERE_KEEP_EVENTS", 1, KEPT_EVENTS_MAX),
      keptMs: 1000 * whole("PERE_KEEP_SECONDS", 1, KEPT_SECONDS_MAX),
    },
  };
}
