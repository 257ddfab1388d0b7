/**
 * A real Redis Cluster of a test's own: masters that share the slots evenly, and a replica of each where that is asked for. It is formed by plain
 * commands, so it needs nothing but `redis-server`.
 */
import { until } from "./harness.ts";
import { lastingPort } from "./ports.ts";
import { type RedisServer, startRedis } from "./redis-server.ts";

const SLOTS = 16_384;
/** A node that says nothing for so long is taken for dead by the others: failing over takes two or three times that. */
const NODE_TIMEOUT_MS = 1_000;

export interface Node extends RedisServer {
  /** Its name in the cluster. */
  readonly id: string;
}

export interface Cluster {
  /** As in `REDIS_URL`: the masters' addresses. */
  readonly url: string;
  readonly masters: readonly Node[];
  /** The nth is the nth master's. */
  readonly replicas: readonly Node[];
  /** The node that is the master of a key's slot, as the first node that answers sees it. */
  ownerOf(key: string): Promise<Node>;
  end(): Promise<void>;
}

async function startNode(settings: Record<string, string>): Promise<Node> {
  const bus = String(lastingPort());
  const server = await startRedis({
    "cluster-enabled": "yes",
    "cluster-port": bus,
    "cluster-node-timeout": String(NODE_TIMEOUT_MS),
    "cluster-require-full-coverage": "no",
    "cluster-replica-validity-factor": "0",
    "repl-diskless-sync-delay": "0",
    ...settings,
  });
  const id = /[0-9a-f]{40}/.exec(await server.ask("CLUSTER", "MYID"))![0];
  return Object.assign(server, { id, bus });
}

/** @param count masters; @param replicas whether each has one; @param settings of every node */
export async function startCluster(
  count = 3,
  replicas = false,
  settings: Record<string, string> = {},
): Promise<Cluster> {
  const nodes = await Promise.all(Array.from({ length: replicas ? 2 * count : count }, () => startNode(settings)));
  const masters = nodes.slice(0, count);
  for (const [n, master] of masters.entries()) {
    const [from, to] = [Math.floor((n * SLOTS) / count), Math.floor(((n + 1) * SLOTS) / count) - 1];
    await master.ask("CLUSTER", "ADDSLOTSRANGE", String(from), String(to));
  }
  for (const node of nodes.slice(1)) {
    const { bus } = node as Node & { bus: string };
    await nodes[0]!.ask("CLUSTER", "MEET", "127.0.0.1", String(node.port), bus);
  }
  const all = async (isSo: (node: Node) => Promise<boolean>): Promise<boolean> =>
    (await Promise.all(nodes.map(isSo))).every(Boolean);
  const known = (node: Node) => node.ask("CLUSTER", "NODES").then((said) => nodes.every(({ id }) => said.includes(id)));
  await until(() => all(known), "the nodes to know each other");
  for (const [n, replica] of nodes.slice(count).entries())
    await until(async () => (await replica.ask("CLUSTER", "REPLICATE", masters[n]!.id)) === "+OK", "a replica");
  const isWhole = async (node: Node): Promise<boolean> => {
    const said = await node.ask("CLUSTER", "INFO");
    return said.includes("cluster_state:ok") && said.includes(`cluster_slots_ok:${SLOTS}`);
  };
  await until(() => all(isWhole), "the cluster to be whole");
  for (const replica of nodes.slice(count))
    await until(async () => (await replica.ask("INFO", "replication")).includes("master_link_status:up"), "its copy");
  return {
    url: masters.map(({ url }) => url).join(","),
    masters,
    replicas: nodes.slice(count),
    async ownerOf(key) {
      const slot = (await masters[0]!.ask("CLUSTER", "KEYSLOT", key)).slice(1);
      const said = await masters[0]!.ask("CLUSTER", "NODES");
      const owner = said.split("\n").find((line) =>
        line
          .split(" ")
          .slice(8)
          .some((range) => {
            const [from, to = from] = range.split("-").map(Number);
            return from! <= Number(slot) && Number(slot) <= to!;
          }),
      );
      return nodes.find(({ id }) => owner?.startsWith(id))!;
    },
    end: async () => void (await Promise.all(nodes.map((node) => node.end()))),
  };
}
