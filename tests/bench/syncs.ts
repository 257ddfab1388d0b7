/**
 * Whether a server syncs before it answers: `bun tests/bench/syncs.ts`.
 *
 * Starts PERE and each installed peer that stores events, attaches strace(1), which makes each fsync(2) and fdatasync(2) take `DELAY_MS` longer, and
 * pushes one event after the other. A server that waits for its sync can't answer faster than that, and has at least one sync per push. It also shows
 * whether a device got the event before it was on disk, and whether pushes that are in flight together share a sync.
 */
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { eventData, Feeds, now } from "./feeds.ts";
import { closedLoop, EVENT_BYTES, orThrow } from "./measure.ts";
import type { Peer } from "./peer-servers.ts";
import { allServers } from "./peers.ts";
import { Requests } from "./requests.ts";
import { diskFolder, type Service } from "./service.ts";
import { columns, short } from "./table.ts";

const PUSHES = 20;
const IN_FLIGHT = 16;
const PUSHES_TOGETHER = 4 * IN_FLIGHT;
export const DELAY_MS = 50;

export interface Syncs {
  readonly perPush: number;
  /** The same with `IN_FLIGHT` pushes at a time. */
  readonly perPushTogether: number;
  /** The fastest answer to a push. */
  readonly answerMs: number;
  /** The fastest way from a push to a device. */
  readonly deliveryMs: number;
}

/** Attaches strace to a service and its helpers. */
async function slowed({ pid, helpers = [] }: Service, file: string) {
  const pids = [pid, ...helpers];
  const strace = Bun.spawn(
    [
      ...["strace", "-f", "-o", file, "-e", "trace=fsync,fdatasync"],
      ...["-e", `inject=fsync,fdatasync:delay_exit=${DELAY_MS * 1000}`],
      ...pids.flatMap((one) => ["-p", String(one)]),
    ],
    { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  );
  const kill = (): void => strace.kill("SIGKILL");
  process.once("exit", kill);
  const reader = strace.stderr.getReader();
  let said = "";
  for (const one of pids) {
    while (!said.includes(`Process ${one} attached`)) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`strace did not attach: ${said}`);
      said += Buffer.from(value).toString();
    }
  }
  return {
    /** Syncs so far. A call that another thread's line interrupts is on two lines, the second with "resumed". */
    count: (): number => readFileSync(file, "latin1").match(/ f(?:data)?sync\(/g)?.length ?? 0,
    async detach() {
      strace.kill("SIGINT");
      await strace.exited;
      process.off("exit", kill);
    },
  };
}

/** Pushes one event after the other to a server whose syncs are slow. */
export async function syncsOf({ start }: Peer, folder: string): Promise<Syncs> {
  const service = await start!(folder, null);
  try {
    const feeds = await Feeds.open({ at: service, count: 1, path: () => "/feed/c0?device=device-0", fullEvery: 1 });
    const requests = await Requests.open(service.port, IN_FLIGHT, service.protocol);
    const push = (): Promise<string> => requests.ask("POST", "/push/c0", eventData(now(), EVENT_BYTES));
    // The first event of a channel may cost more.
    await push();
    await feeds.until(1);
    feeds.latenciesMs = [];
    const strace = await slowed(service, join(folder, `strace-${service.pid}`));
    const answersMs: number[] = [];
    for (let index = 0; index < PUSHES; index++) {
      const before = now();
      await push();
      answersMs.push(now() - before);
    }
    await feeds.until(1 + PUSHES);
    const alone = strace.count();
    const deliveryMs = Math.min(...feeds.latenciesMs);
    let pushed = 0;
    await closedLoop(IN_FLIGHT, async () => {
      if (pushed === PUSHES_TOGETHER) return false;
      pushed++;
      await push();
      return true;
    });
    await feeds.until(1 + PUSHES + PUSHES_TOGETHER);
    await strace.detach();
    feeds.check(() => 1 + PUSHES + PUSHES_TOGETHER);
    orThrow(feeds.faults);
    await feeds.close();
    requests.close();
    return {
      perPush: alone / PUSHES,
      perPushTogether: (strace.count() - alone) / PUSHES_TOGETHER,
      answerMs: Math.min(...answersMs),
      deliveryMs,
    };
  } finally {
    await service.stop();
  }
}

if (import.meta.main) {
  const { path: folder } = diskFolder();
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
  const lines: string[][] = [];
  for (const peer of allServers(folder)) {
    if (!peer.start) continue;
    const { perPush, perPushTogether, answerMs, deliveryMs } = await syncsOf(peer, folder);
    lines.push([peer.name, ...[perPush, perPushTogether, answerMs, deliveryMs].map(short)]);
  }
  const heads = ["server", "syncs per push", `${IN_FLIGHT} in flight`, "fastest answer ms", "fastest delivery ms"];
  console.log(`${PUSHES} pushes, one after the other; each sync takes ${DELAY_MS} ms longer\n`);
  console.log(columns(heads, lines, ["server"]));
  process.exit(0);
}
