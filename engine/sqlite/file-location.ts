/**
 * Checks that an open file is still at its path.
 *
 * A process can keep writing into a file that was removed or moved away: every write succeeds, and after a restart all of it is lost. So before a
 * change is acknowledged, the file at the path is compared with the open one. That costs one `stat` per name, a microsecond each.
 */
import { type BigIntStats, statSync } from "node:fs";
import { basename } from "node:path";

/** A path, and the file that was there when it was opened. */
interface Name {
  readonly path: string;
  readonly dev: bigint;
  readonly ino: bigint;
}

/** The file at a path; null: there is none, or it can't be examined. */
function look(path: string): BigIntStats | null {
  try {
    return statSync(path, { bigint: true, throwIfNoEntry: false }) ?? null;
  } catch {
    return null;
  }
}

export class FileLocation {
  readonly #names: readonly Name[];

  /** Remembers the files at these paths. */
  constructor(paths: readonly string[]) {
    this.#names = paths.map((path) => {
      const { dev, ino } = statSync(path, { bigint: true });
      return { path, dev, ino };
    });
  }

  /** Describes the first file that is no longer in place, without naming the folder; null: all are in place. */
  trouble(): string | null {
    for (const { path, dev, ino } of this.#names) {
      const found = look(path);
      if (!found) return `${basename(path)} was removed or moved away while PERE works with it`;
      if (found.ino !== ino || found.dev !== dev)
        return `${basename(path)} was replaced by another file while PERE works with it`;
    }
    return null;
  }
}
