/**
 * Why a file can't be written, in words for whoever set its path: "permission denied" leaves open who was denied what. The usual case is a
 * folder that was made by root and mounted into a container that runs as another user.
 */
import { accessSync, constants, existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";

/** A user as an operator knows it. */
function user(uid: number): string {
  try {
    const name = new RegExp(`^([^:]+):[^:]*:${uid}:`, "m").exec(readFileSync("/etc/passwd", "utf8"))?.[1];
    if (name !== undefined) return `${name} (uid ${uid})`;
  } catch {
    // Not every system, nor every image, has the list.
  }
  return `uid ${uid}`;
}

/** Whose a file is; null: that can't be seen. */
function ownerOf(path: string): number | null {
  try {
    return statSync(path).uid;
  } catch {
    return null; // A folder above it can't be entered.
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
 * Why a file, or one that belongs to it, can't be written; null: that is not for want of rights.
 * @param ends what stands behind the path's name in the names of those that belong to it
 */
export function unwritable(path: string, ends: readonly string[] = []): string | null {
  const full = existsSync(path) ? realpathSync(path) : resolve(path);
  const inFolder = refusal(dirname(full), "folder");
  if (inFolder !== null) return inFolder;
  for (const end of ["", ...ends]) {
    const why = refusal(`${full}${end}`, "file");
    if (why !== null) return why;
  }
  return null;
}
