/**
 * Settings: flags and environment variables, read once at startup. An invalid setting stops the start with a one-line message. Unknown `PERE_`
 * variables are reported, so that a typo does not go unnoticed. A secret may be in a file instead, whose path is in the variable of the same name
 * with the suffix `_FILE`.
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

/** All settings; see docs/configuration.md. */
export interface Settings {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  /** The path prefix that proxies use for the service, such as `/pere`; paths without it work too. Empty: none. */
  readonly basePath: string;
  /** Certificate and key for TLS; null: no TLS. */
  readonly tls: CertificateFiles | null;
  /** Path of the SQLite file, or `:memory:`. */
  readonly db: string;
  /** URLs of the Redis that instances share; several are nodes of a Cluster. Null: `db` is used. */
  readonly redis: readonly string[] | null;
  /** Prefix of all keys and messages in Redis. */
  readonly redisPrefix: string;
  /** How many replicas of Redis must have a push or a receipt before it is answered. */
  readonly replicas: number;
  /** Private address ranges that hooks may call. */
  readonly hooksAllowed: readonly AddressRange[];
  readonly limits: Partial<Limits>;
  /**
   * How tokens are verified. `own`: PERE creates a secret; `local`: no tokens, local programs only; `open`: no tokens, everyone has access, as
   * configured.
   */
  readonly access: Pick<AccessOptions, "secret" | "jwks" | "audience" | "issuer"> | "own" | "local" | "open";
  readonly origins: Origins;
  /** Limits per caller and minute. */
  readonly rates: RateLimits;
  /** Proxies whose `X-Forwarded-For` is trusted. */
  readonly proxies: readonly AddressRange[];
  /** The lowest level that is logged. */
  readonly log: Level;
  /** Channels that `/metrics` counts separately. */
  readonly metricsChannels: readonly string[];
  /** Unknown variables that were set. */
  readonly unknown: readonly string[];
}

/** Open feeds per caller: the devices of a large site behind one address. */
const FEEDS_A_CALLER = 10_000;

/** A setting, with its description. */
export interface Setting {
  /** The default; empty: none. */
  readonly usual: string;
  /** Has no effect without tokens on a loopback address: there, all callers are the same. */
  readonly notLocal?: true;
  /** The description, in a sentence or two of Markdown. */
  readonly meaning: string;
}

/** All settings in display order: for the documentation, `--help` and `.env.example`. */
export const SETTINGS = {
  HOST: {
    usual: "127.0.0.1",
    meaning:
      "the address to listen on; `0.0.0.0` is all IPv4 addresses (set in the image), `::` all addresses, `localhost` the loopback addresses of IPv4 and IPv6",
  },
  PORT: { usual: "4567", meaning: "the port; `0` picks a free one and prints it" },
  PERE_BASE_PATH: {
    usual: "",
    meaning:
      "the path prefix, such as `/pere`, under which a proxy forwards to PERE, whether the proxy removes it or not; paths without it work as well",
  },
  PERE_TLS_CERT: {
    usual: "",
    meaning: "PEM file with a certificate and its chain; PERE then speaks TLS itself",
  },
  PERE_TLS_KEY: { usual: "", meaning: "PEM file with its key" },
  PERE_DB: { usual: "pere.db", meaning: "the SQLite file, used by one process; `:memory:` stores nothing permanently" },
  REDIS_URL: {
    usual: "",
    meaning:
      "use Redis instead: `redis://` or `rediss://`, with `user:password@` where needed; several, separated by commas, are a Cluster; for a private CA set `NODE_EXTRA_CA_CERTS`",
  },
  REDIS_URL_FILE: { usual: "", meaning: "the path of a file that holds `REDIS_URL`" },
  PERE_REDIS_PREFIX: {
    usual: "pere:",
    meaning: "prefix of all keys and messages in Redis; services that share a database need different ones",
  },
  PERE_REDIS_REPLICAS: {
    usual: "0",
    meaning: "how many replicas of Redis must have a push or a receipt before it is answered 2xx",
  },
  PERE_JWT_SECRET: { usual: "", meaning: "HS256 secret that signs tokens, at least 32 bytes" },
  PERE_JWT_SECRET_FILE: { usual: "", meaning: "the path of a file that holds it" },
  PERE_JWKS: {
    usual: "",
    meaning: "key set that verifies tokens, as a file (read again on SIGHUP) or a URL: EdDSA, ES256, RS256",
  },
  PERE_JWT_AUDIENCE: { usual: "", meaning: "required value in a token's `aud`" },
  PERE_JWT_ISSUER: { usual: "", meaning: "required value of a token's `iss`" },
  PERE_OPEN: {
    usual: "0",
    meaning:
      "`1`: no tokens at all, even on public addresses and behind a proxy; anyone who can reach PERE has full access. On a loopback address PERE needs no tokens by default, but refuses requests that came through a proxy",
  },
  PERE_ORIGINS: {
    usual: "",
    meaning:
      "origins that browsers may call from, separated by commas, or `*`: `https://shop.example`, or an app's, such as `capacitor://localhost`, `file://` or `null`. Origins beyond loopback need tokens or `PERE_OPEN=1`",
  },
  PERE_RATE_PUSHES: {
    usual: String(RATES.push),
    notLocal: true,
    meaning:
      "events that one caller (a token's `sub`, else an address) may push per minute, counted in Redis if there is one; `0`: unlimited. Above the limit: 429 with `Retry-After`, `RateLimit` and `RateLimit-Policy`",
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
      "the same for opened feeds, each of their channels counted; above the limit, an event stream gets `pere.bye`",
  },
  PERE_FEEDS_A_CALLER: {
    usual: String(FEEDS_A_CALLER),
    notLocal: true,
    meaning: "feeds that one caller may have open per instance; `0`: unlimited",
  },
  PERE_PROXIES: {
    usual: "",
    meaning: "address ranges of proxies whose `X-Forwarded-For` is trusted; needs tokens or `PERE_OPEN=1`",
  },
  PERE_LOG: {
    usual: "info",
    meaning:
      "`debug`, `info`, `warn` or `error`: JSON lines on standard error; at `debug` one per request. Tokens are never logged",
  },
  PERE_KEEP_EVENTS: { usual: String(LIMITS.keptEvents), meaning: "events kept per channel" },
  PERE_KEEP_SECONDS: { usual: String(LIMITS.keptMs / 1000), meaning: "how long they are kept" },
  PERE_KEEP: {
    usual: "",
    meaning:
      "rules for some channels, the first match applies: `orders.*:events=1000,seconds=86400;audit:seconds=31536000`; values that a rule omits, and all other channels, use the two settings above. All instances on one Redis need the same rules",
  },
  PERE_METRICS_CHANNELS: {
    usual: "",
    meaning: "channels, separated by commas, that `/metrics` counts separately; at most 100",
  },
  PERE_HOOKS_ALLOW: {
    usual: "",
    meaning: "address ranges, `10.0.0.0/8,fd00::/8`, of private addresses that hooks may call",
  },
} as const satisfies Record<string, Setting>;

type Name = keyof typeof SETTINGS;

export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

/** @throws Error with a one-line message without the URLs, which may contain a password */
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
    throw new Error("REDIS_URL names a Cluster, which has no numbered databases: remove the path from each address");
  const named = urls.find(({ username, password }) => username || password);
  const who = named ? `${named.username}:${named.password}@` : "";
  return urls.map(({ protocol, host }) => `${protocol}//${who}${host}`);
}

/** The value, or the default; an empty value counts as unset. */
type Environment = { readonly [name in Name]: string };

/** All settings with their values or defaults. */
const environmentOf = (env: Readonly<Record<string, string | undefined>>): Environment =>
  Object.fromEntries(Object.entries(SETTINGS).map(([name, { usual }]) => [name, env[name] || usual])) as Environment;

/** A secret, or the content of the file that holds it. @throws Error with a one-line message */
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

/** How tokens are verified. @throws Error with a one-line message */
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
    throw new Error("PERE_OPEN=1 turns tokens off, so PERE_JWT_SECRET and PERE_JWKS must not be set");
  if (hasKeys) return found;
  for (const name of ["PERE_JWT_AUDIENCE", "PERE_JWT_ISSUER"] as const)
    if (env[name])
      throw new Error(
        `${name} is set, but neither PERE_JWT_SECRET nor PERE_JWKS: there is no key to verify tokens with`,
      );
  if (open === "1") return "open";
  return isLoopback(host) ? "local" : "own";
}

/**
 * A service without tokens is for its own machine only; settings for remote callers contradict that.
 * @throws Error with a one-line message
 */
function checkLocal(origins: Origins, proxies: readonly AddressRange[]): void {
  const advice =
    "but PERE requires no tokens: set PERE_JWT_SECRET or PERE_JWKS, or PERE_OPEN=1 to let everyone do everything";
  const distant = origins === "*" ? "*" : origins.find(isDistant);
  if (distant !== undefined)
    throw new Error(`PERE_ORIGINS allows ${distant === "*" ? "every page" : `pages of ${distant}`}, ${advice}`);
  if (proxies.length > 0) throw new Error(`PERE_PROXIES names proxies, ${advice}`);
}

/** Channels with their own series: each has about fifty, and a scraper keeps all of them. */
const METRICS_CHANNELS_MAX = 100;

/** @throws Error with a one-line message */
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

/** @throws Error with a one-line message */
function levelOf(text: string): Level {
  if (text === "debug" || text === "info" || text === "warn" || text === "error") return text;
  throw new Error(`PERE_LOG must be debug, info, warn or error, not "${text}"`);
}

/** Braces would put all channels into one slot of a Cluster. @throws Error with a one-line message */
function prefixOf(text: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/.test(text)) return text;
  throw new Error(
    `PERE_REDIS_PREFIX must be 1 to 64 of A-Z a-z 0-9 . _ : - that begin with a letter or digit, not "${text}"`,
  );
}

/** A path without a trailing slash; the root is empty. @throws Error with a one-line message */
function basePathOf(text: string): string {
  const path = text.replace(/\/$/, "");
  if (path === "" || /^(?:\/[A-Za-z0-9][A-Za-z0-9._~-]*)+$/.test(path)) return path;
  throw new Error(`PERE_BASE_PATH must be a path like /pere or /tools/pere, not "${text}"`);
}

/** Reads flags and environment variables. @throws Error with a one-line message */
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
  if (!cert !== !key) throw new Error("PERE_TLS_CERT and PERE_TLS_KEY must be set together");
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
      feedsPerCaller: rate("PERE_FEEDS_A_CALLER") || Number.POSITIVE_INFINITY,
      ...(env.PERE_KEEP && { keep: readKeep(env.PERE_KEEP) }),
      keptEvents: whole("PERE_KEEP_EVENTS", 1, KEPT_EVENTS_MAX),
      keptMs: 1000 * whole("PERE_KEEP_SECONDS", 1, KEPT_SECONDS_MAX),
    },
  };
}
