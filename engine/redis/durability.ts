/**
 * What a Redis or Valkey guarantees, read from the server itself: how durable an answer is, and what its operator should change.
 *
 * Settings can change at run time, so they are read on each request. In a Cluster each master is asked, and the worst one counts.
 */
import { PereError } from "../model.ts";
import type { RedisLink } from "./connection.ts";
import type { Readiness } from "../store.ts";

/** The first version with everything that the scripts need: `XTRIM` with `MINID`. */
const VERSION_MIN = [6, 2] as const;

/** What one server reports about itself. */
interface Facts {
  /** Its name and version, as in "Redis 7.0.15". */
  readonly server: string;
  /** The version of Redis that it is or is compatible with. */
  readonly version: string;
  readonly isCluster: boolean;
  readonly replicas: number;
  /** Null: not permitted to read them. */
  readonly settings: ReadonlyMap<string, string> | null;
  /** Why it refuses writes now; null: it accepts them. */
  readonly refusal: PereError | null;
}

/** A script without effect that Redis 7.0 and later runs only if it would accept a write. */
const PROBE = "#!lua\nreturn 1";
/** Out of memory; a disk error; a read-only replica; too few replicas. */
const REFUSED = /\b(OOM|MISCONF|READONLY|NOREPLICAS)\b/;

/** Why a server refuses writes now; null: it accepts them, or is too old to say. */
const refusalOf = (link: RedisLink): Promise<PereError | null> =>
  link.send("EVAL", PROBE, "0").then(
    () => null,
    (error: unknown) => (error instanceof PereError && REFUSED.test(error.message) ? error : null),
  );

async function factsOf(link: RedisLink): Promise<Facts> {
  const [server, replication, settings, refusal] = await Promise.all([
    link.send("INFO", "server"),
    link.send("INFO", "replication"),
    settingsOf(link),
    refusalOf(link),
  ]);
  const info = `${server}\n${replication}`;
  const field = (name: string): string => new RegExp(`^${name}:(.*?)\r?$`, "m").exec(info)?.[1] ?? "";
  const version = field("redis_version");
  return {
    server: field("valkey_version") === "" ? `Redis ${version}` : `Valkey ${field("valkey_version")}`,
    version,
    isCluster: field("redis_mode") === "cluster",
    replicas: Number(field("connected_slaves")),
    settings,
    refusal,
  };
}

async function settingsOf(link: RedisLink): Promise<ReadonlyMap<string, string> | null> {
  try {
    const found = await link.call((client) =>
      Promise.all(["append*", "maxmemory*"].map((pattern) => client.configGet(pattern))),
    );
    return new Map(found.flatMap((settings) => Object.entries(settings)));
  } catch (error) {
    // A managed Redis may not allow reading its settings: forbidden, renamed, or omitted.
    if (error instanceof PereError && (error.code === "inside" || /NOPERM/.test(error.message))) return null;
    throw error;
  }
}

type Durability = Readiness["durability"];
/** From worst to best. */
const DURABILITIES: readonly Durability[] = ["memory", "second", "fsync"];

/** What one server guarantees, and why it is not more. */
function durabilityOf({ settings }: Facts): { readonly durability: Durability; readonly advice: readonly string[] } {
  if (!settings)
    return {
      durability: "memory",
      advice: [
        "Allow PERE's user to read the settings of Redis (ACL +config|get): without them PERE can't tell whether acknowledged data survives a restart.",
      ],
    };
  const advice: string[] = [];
  let durability: Durability = "memory";
  const appendfsync = settings.get("appendfsync");
  if (settings.get("appendonly") !== "yes")
    advice.push(
      "Set appendonly yes and appendfsync always: with the current settings all acknowledged data is lost when Redis restarts.",
    );
  else if (appendfsync === "always") durability = "fsync";
  else if (appendfsync === "everysec") {
    durability = "second";
    advice.push(
      "Set appendfsync always: with the current setting a power cut loses about the last second of acknowledged data.",
    );
  } else
    advice.push(
      "Set appendfsync always: with the current setting a power cut loses what the system has not written yet, often half a minute.",
    );
  const policy = settings.get("maxmemory-policy") ?? "noeviction";
  if (Number(settings.get("maxmemory")) > 0 && policy.startsWith("allkeys")) {
    durability = "memory";
    advice.push(
      `Set maxmemory-policy noeviction: with ${policy} a full Redis drops channels, including acknowledged events.`,
    );
  } else if (Number(settings.get("maxmemory")) > 0 && policy.startsWith("volatile"))
    advice.push(
      `Set maxmemory-policy noeviction: with ${policy} a full Redis drops idempotency keys, and a repeated push is stored twice.`,
    );
  return { durability, advice };
}

const reasonOf = (error: unknown): string => {
  const inner = error instanceof PereError && error.cause instanceof Error ? error.cause : error;
  return inner instanceof Error ? inner.message : String(inner);
};

/** What the servers guarantee together. @throws PereError away */
export async function readDurability(
  links: readonly RedisLink[],
  replicas: number,
): Promise<Readiness & { readonly facts: readonly Facts[] }> {
  const found = await Promise.allSettled(links.map(factsOf));
  const facts = found.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value] : []));
  const failed = found.find((answer) => answer.status === "rejected");
  if (facts.length === 0) {
    // The addresses are configured, or announced by the nodes of a Cluster.
    const reasons = new Set(found.map((answer) => (answer.status === "rejected" ? reasonOf(answer.reason) : "")));
    throw new PereError(
      "away",
      `Redis can't be reached: ${[...reasons].join("; ") || "no answer"}`,
      [],
      failed?.reason,
    );
  }
  const guarantees = facts.map(durabilityOf);
  const advice = new Set(guarantees.flatMap(({ advice: sentences }) => sentences));
  if (failed) {
    const away = links.filter((_, n) => found[n]!.status === "rejected").map(({ address }) => address);
    advice.add(
      `Restart the masters that do not answer, or have them announce addresses that PERE can reach (cluster-announce-ip, cluster-announce-port): ` +
        `${facts.length} of ${links.length} answer, ${away.join(" and ")} ${away.length === 1 ? "does" : "do"} not, and requests for their channels are refused.`,
    );
  }
  for (const { refusal } of facts) if (refusal) advice.add(`${refusal.message} Requests that write there are refused.`);
  const copies = Math.min(...facts.map((fact) => fact.replicas));
  if (replicas === 0 && copies > 0)
    advice.add(
      "Set PERE_REDIS_REPLICAS=1: with the current setting, acknowledged data that has not reached a replica is lost in a failover.",
    );
  if (replicas > copies)
    advice.add(
      `Connect more replicas or lower PERE_REDIS_REPLICAS: it asks for ${replicas}, Redis has ${copies}, and every push and receipt is answered 503.`,
    );
  const ranks = guarantees.map(({ durability }) => DURABILITIES.indexOf(durability));
  return {
    store: "redis",
    version: [...new Set(facts.map(({ server }) => server))].sort().join(" and "),
    durability: DURABILITIES[Math.min(...ranks)]!,
    advice: [...advice],
    facts,
  };
}

/** Checks whether PERE can work with these servers as configured. @throws Error with a one-line message */
export function check(facts: readonly Facts[], severalAddresses: boolean): void {
  for (const { server, version, isCluster } of facts) {
    const [major = 0, minor = 0] = version.split(".").map(Number);
    const [majorMin, minorMin] = VERSION_MIN;
    if (major < majorMin || (major === majorMin && minor < minorMin))
      throw new Error(`${server} is too old: PERE needs Redis ${VERSION_MIN.join(".")} or newer, or Valkey`);
    if (isCluster && !severalAddresses)
      throw new Error("this Redis is a Cluster: set REDIS_URL to several of its addresses, separated by commas");
  }
}
