/**
 * Commands beside serving, run as people run them: in a process of their own, with an environment of their own.
 */
import { join } from "node:path";

const INDEX = join(import.meta.dir, "..", "..", "index.ts");

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `bun run index.ts …` to its end. @param before words before the command, such as `strace` and its flags */
export async function command(
  args: readonly string[],
  env: Record<string, string> = {},
  before: readonly string[] = [],
): Promise<Ran> {
  const child = Bun.spawn([...before, process.execPath, "run", INDEX, ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, stdout, stderr };
}
