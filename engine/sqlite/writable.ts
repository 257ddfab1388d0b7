/**
 * Explains why a file can't be written, for the person who set its path: "permission denied" does not say who was denied what. The usual case is a
 * folder that was created by root and mounted into a container that runs as another user.
 */
import { accessSync, constants, existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";

/** A user as an operator knows it. */
function user(uid: number): string {
  try {
    const name = new RegExp(`^([^:]+):[^:]*:${uid}:`, "m").exec(readFileSync("/etc/passwd", "utf8"))?.[1];
    if (name !== undefined) return `${name} (uid ${uid})`;
  } catch {
    // Not every system or image has the list of users.
  }
  return `uid ${uid}`;
}

/** A file's owner, or null if unknown. */
function ownerOf(path: string): number | null {
  try {
    return statSync(path).uid;
  } catch {
    return null; // A parent folder can't be entered.
  }
}

/** Why this process may not write there; null: it may, or there is no such file. */
function refusal(path: string, kind: "folder" | "file"): string | null {
  try {
    accessSync(path, constants.R_OK | constants.W_OK | (kind === "folder" ? constants.X_OK : 0));
    return null;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EROFS") return `${path} is on a read-only file system`;
    if (code === "ENOENT") return kind === "folder" ? `there is no folder ${path}` : null;
    if (code !== "EACCES" && code !== "EPERM") return null;
    const own = process.geteuid!();
    const owner = ownerOf(path);
    if (owner === null) return `the user ${user(own)} may not reach the ${kind} ${path}`;
    return owner === own
      ? `the user ${user(own)} may not write the ${kind} ${path}, although it is its owner: chmod u+w ${path}`
      : `the user ${user(own)} may not write the ${kind} ${path}, which belongs to ${user(owner)}: chown ${own} ${path}, or start PERE as its owner`;
  }
}

/**
 * Why a file, or one of its companion files, can't be written; null: permissions are not the reason.
 * @param ends suffixes of the companion files
 */
export function unwritable(path: string, ends: readonly string[] = []): string | null {
  const full = existsSync(path) ? realpathSync(path) : resolve(path);
  if (existsSync(full) && !statSync(full).isFile()) return null; // Nobody should get the right to write /dev for its sake.
  const inFolder = refusal(dirname(full), "folder");
  if (inFolder !== null) return inFolder;
  for (const end of ["", ...ends]) {
    const why = refusal(`${full}${end}`, "file");
    if (why !== null) return why;
  }
  return null;
}
