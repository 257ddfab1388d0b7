/**
 * The service under measurement, as people run it: a process of its own, on a disk, bound to a core.
 */
import { mkdtempSync, readFileSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Dialect } from "./feeds.ts";
import type { Protocol } from "./requests.ts";
import type { LongestTurn } from "./turn-meter.ts";

/** The folder that holds databases: a disk, because memory that calls itself one makes every sync free. */
export function diskFolder(): { path: string; isDisk: boolean } {
  const isDisk = (path: string): boolean => {
    try {
      return ![0x01021994, 0x858458f6].includes(statfsSync(path).type); // tmpfs, ramfs: statfs(2)
    } catch {
      return false;
    }
  };
  const parent = [tmpdir(), "/var/tmp", process.cwd()].find(isDisk);
  return { path: mkdtempSync(join(parent ?? tmpdir(), "pere-bench-")), isDisk: parent !== undefined };
}

export const HOST = "127.0.0.1";

/** Sends one command. */
export type AskRedis = (...command: string[]) => Promise<string>;

export interface Service {
  readonly port: number;
  readonly pid: number;
  /** Other processes that it needs, such as its Redis: their CPU and memory count as its own. */
  readonly helpers?: readonly number[];
  /** The Redis that it stores in, if it does. */
  readonly redis?: AskRedis;
  /** How its feeds are opened and read, when it is not PERE. */
  readonly dialect?: Dialect;
  /** How a push is written and its answer read, when that differs from PERE. */
  readonly protocol?: Protocol;
  /** The longest turn of its event loop since the last call; absent unless it was started with `turns`. */
  readonly longestTurn?: () => Promise<LongestTurn>;
  stop(): Promise<void>;
}

const INDEX = join(import.meta.dir, "..", "..", "index.ts");
const TURN_METER = join(import.meta.dir, "turn-meter.ts");
/** How many were started; each has a file of its own. */
let started = 0;

/** A command bound to a core, or as it is. */
export const onCore = (core: number | null, command: readonly string[]): string[] => [
  ...(core === null ? [] : ["taskset", "-c", String(core)]),
  ...command,
];

/** How a service is started, beside the default. */
export interface ServiceStart {
  /** Settings beside those that give it a port and a file. */
  readonly env?: Record<string, string>;
  /** Fills its file before it starts. */
  readonly fill?: (file: string) => Promise<void>;
  /** Fills its Redis instead, where it is started on one: the same data. */
  readonly fillRedis?: (redis: AskRedis) => Promise<void>;
  /** Whether it measures the turns of its event loop. */
  readonly turns?: boolean;
}

/**
 * @param core what it is bound to, or null
 * @throws Error with what it said when it does not start
 */
export async function startService(
  folder: string,
  core: number | null,
  { env = {}, fill, turns = false }: ServiceStart = {},
): Promise<Service> {
  const file = join(folder, `${++started}.db`);
  await fill?.(file);
  let answer: (longest: LongestTurn) => void = () => {};
  const preload = turns ? ["--preload", TURN_METER] : [];
  const child = Bun.spawn(onCore(core, [process.execPath, ...preload, INDEX]), {
    ...(turns ? { ipc: (longest: LongestTurn) => answer(longest) } : {}),
    // Nothing else of our environment: what is measured is the default.
    env: { PATH: process.env.PATH, HOME: process.env.HOME, PORT: "0", PERE_DB: file, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  const kill = (): void => child.kill("SIGKILL");
  process.once("exit", kill);
  let said = "";
  for await (const chunk of child.stdout) {
    said += Buffer.from(chunk).toString();
    const port = /^PERE listening on http:\S+:(\d+)\n/.exec(said)?.[1];
    if (!port) continue;
    return {
      port: Number(port),
      pid: child.pid,
      ...(turns
        ? {
            longestTurn: () =>
              new Promise<LongestTurn>((resolve) => {
                answer = resolve;
                child.send("longest");
              }),
          }
        : {}),
      async stop() {
        child.kill("SIGTERM");
        const patience = setTimeout(kill, 5_000);
        await child.exited;
        clearTimeout(patience);
        process.off("exit", kill);
      },
    };
  }
  throw new Error(`the service did not start: ${said}`);
}

/** CPU time of a process so far, all its threads; null where the system has no /proc (proc(5): fields 14 and 15, in hundredths). */
export function cpuMs(pid: number): number | null {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]!.split(" ");
    return 10 * (Number(fields[11]) + Number(fields[12]));
  } catch {
    return null;
  }
}

/** What `of` tells of a service and its helpers together; null where it is not told. */
export function withHelpers({ pid, helpers = [] }: Service, of: (pid: number) => number | null): number | null {
  let sum = 0;
  for (const one of [pid, ...helpers]) {
    const value = of(one);
    if (value === null) return null;
    sum += value;
  }
  return sum;
}

/** Bytes that a process has written to files so far (proc(5): `wchar` of `io`); null where the system has no /proc. */
export function writtenBytes(pid: number): number | null {
  try {
    return Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, "latin1"))![1]);
  } catch {
    return null;
  }
}

/** Memory of a process that is in RAM, in kB; null where the system has no /proc. */
export function residentKb(pid: number): number | null {
  try {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "latin1"))![1]);
  } catch {
    return null;
  }
}
