/**
 * What the operator sets: flags and environment, read together once, before anything starts. A wrong setting stops the start with one
 * clear line; a setting that this version does not know yet stops it too, so that nobody believes in it.
 */
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import type { Limits } from "./engine.ts";
import { type Allowed, readAllowed } from "./hook-call.ts";

/** What the operator set; see README, "Settings". */
export interface Settings {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** Path of the SQLite file, or `:memory:`. */
  readonly db: string;
  /** Where Redis is, when many instances share one memory there; several addresses are a Cluster's. Null: everything is in `db`. */
  readonly redis: readonly string[] | null;
  /** How many replicas of Redis must have a push or a receipt before it is answered. */
  readonly replicas: number;
  /** Address ranges that hooks may call although they are private. */
  readonly hooksAllowed: readonly Allowed[];
  readonly limits: Partial<Limits>;
}

/** Names of the contract that this version does not know yet: an operator who sets one must not believe that it works. */
const NOT_YET = ["PERE_JWT_SECRET", "PERE_JWKS", "PERE_ORIGINS"] as const;

const isLoopback = (host: string): boolean =>
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

/** Reads flags and environment together. @throws Error with the one line to print */
export function readSettings(argv: readonly string[], env: Record<string, string | undefined>): Settings {
  const { values } = parseArgs({
    args: [...argv],
    options: { host: { type: "string", short: "o" }, port: { type: "string", short: "p" } },
  });
  const whole = (name: string, text: string, min: number, max: number): number => {
    if (/^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max) return Number(text);
    throw new Error(`${name} must be a whole number from ${min} to ${max}, not "${text}"`);
  };
  for (const name of NOT_YET)
    if (env[name]) throw new Error(`${name} is set, but this version of PERE can't do that yet`);
  const host = values.host ?? (env.HOST || "127.0.0.1");
  const port = whole("PORT", values.port ?? (env.PORT || "4567"), 0, 65535);
  const open = env.PERE_OPEN || "0";
  if (open !== "0" && open !== "1") throw new Error(`PERE_OPEN must be 1 or 0, not "${open}"`);
  if (!isLoopback(host) && open !== "1")
    throw new Error(
      `HOST ${host} is beyond loopback and PERE has no tokens yet: set PERE_OPEN=1 to let everybody in who can reach it`,
    );
  if (env.PERE_REDIS_REPLICAS && !env.REDIS_URL)
    throw new Error("PERE_REDIS_REPLICAS is set, but not REDIS_URL: there are no replicas without Redis");
  return {
    host,
    port,
    db: env.PERE_DB || "pere.db",
    redis: env.REDIS_URL ? redisUrls(env.REDIS_URL) : null,
    replicas: env.PERE_REDIS_REPLICAS ? whole("PERE_REDIS_REPLICAS", env.PERE_REDIS_REPLICAS, 0, 99) : 0,
    hooksAllowed: readAllowed(env.PERE_HOOKS_ALLOW ?? ""),
    limits: {
      ...(env.PERE_KEEP_EVENTS ? { keptEvents: whole("PERE_KEEP_EVENTS", env.PERE_KEEP_EVENTS, 1, 100_000_000) } : {}),
      ...(env.PERE_KEEP_SECONDS
        ? { keptMs: 1000 * whole("PERE_KEEP_SECONDS", env.PERE_KEEP_SECONDS, 1, 999_999_999) }
        : {}),
    },
  };
}
