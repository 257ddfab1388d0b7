/**
 * Where a file is really put that is written beside itself and renamed: a rename to a link would put the file in the link's place.
 */
import { lstatSync, readlinkSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";

/** Links in a row that lead to a file; more than that go round in a circle. */
const LINKS_MAX = 20;

/** The path that a path leads to, by links too, whether a file is there or not. @throws Error: what is there is a folder, a device or the like */
export function destination(path: string): string {
  let place = path;
  for (let count = 0; lstatSync(place, { throwIfNoEntry: false })?.isSymbolicLink(); count++) {
    if (count === LINKS_MAX) throw new Error("its links go round in a circle");
    place = resolve(dirname(place), readlinkSync(place));
  }
  const found = statSync(place, { throwIfNoEntry: false });
  if (found && !found.isFile()) throw new Error(`${place} is no file`);
  return place;
}
