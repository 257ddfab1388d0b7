/**
 * Resolves the path of a file that is written under a temporary name and then renamed: renaming over a symbolic link would replace the link.
 */
import { lstatSync, readlinkSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";

/** Maximum number of links to follow; more than that is a loop. */
const LINKS_MAX = 20;

/** Follows symbolic links; the target need not exist. @throws Error: the target is a folder, a device or the like */
export function destination(path: string): string {
  let target = path;
  for (let count = 0; lstatSync(target, { throwIfNoEntry: false })?.isSymbolicLink(); count++) {
    if (count === LINKS_MAX) throw new Error("its symbolic links form a loop");
    target = resolve(dirname(target), readlinkSync(target));
  }
  const found = statSync(target, { throwIfNoEntry: false });
  if (found && !found.isFile()) throw new Error(`${target} is not a regular file`);
  return target;
}
