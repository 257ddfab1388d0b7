/**
 * A user without rights, for tests of what such a one may not do: root becomes it.
 */
import { join } from "node:path";

export const NOBODY = 65_534;

/** Words before a command that run it as that user. */
export const asNobody: readonly string[] = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];

/** Why tests that need it are skipped, or null where they run. A checkout in /root, say, is closed to everybody else. */
export const noNobody: string | null = ((): string | null => {
  if (process.getuid?.() !== 0 || !Bun.which("setpriv")) return "only root can become another user, by setpriv";
  const read = [process.execPath, "-e", `await Bun.file(${JSON.stringify(join(import.meta.dir, "nobody.ts"))}).text()`];
  const { success } = Bun.spawnSync([...asNobody, ...read], { cwd: "/", stderr: "ignore" });
  return success ? null : "other users can't read this folder, or run this Bun";
})();
