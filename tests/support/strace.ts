/**
 * Tests that look at system calls need `strace`, and a system that lets a process be traced: some containers don't.
 */

/** Why they are skipped, or null where they run. */
export const noStrace: string | null = ((): string | null => {
  const program = Bun.which("strace");
  if (program === null) return "strace is not installed";
  const { success } = Bun.spawnSync([program, "-e", "trace=none", "true"], { stdout: "ignore", stderr: "ignore" });
  return success ? null : "this system lets no process be traced";
})();

/** With `CI=true` a missing strace is a failure, not a reason. */
export const canTrace = noStrace === null || process.env.CI === "true";
