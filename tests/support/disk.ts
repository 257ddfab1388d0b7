/** The library of `disk.c`, which stands between a process and its disk. */
import { join } from "node:path";

const compiler = Bun.which("cc");

/** Whether it can be made and loaded here. */
export const hasDisk = process.platform === "linux" && compiler !== null;

/** Compiles it into a folder. @returns its path, for `LD_PRELOAD` @throws Error when it can't be compiled */
export function diskLibrary(folder: string): string {
  const file = join(folder, "disk.so");
  const source = join(import.meta.dir, "disk.c");
  const { success, stderr } = Bun.spawnSync([
    compiler ?? "cc",
    ...["-O2", "-shared", "-fPIC", "-o", file, source, "-ldl", "-lpthread"],
  ]);
  if (!success) throw new Error(`disk.c can't be compiled: ${stderr.toString()}`);
  return file;
}
