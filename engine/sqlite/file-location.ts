/**
 * Where an open file is to be found, and whether it is still there.
 *
 * A process goes on writing into a file that was removed or moved away, and every write succeeds; after a restart all of it is gone. So
 * whoever acknowledges compares what stands at the path with what it has open. That is one `stat` a name, a microsecond each.
 */
import { type BigIntStats, statSync } from "node:fs";
import { basename } from "node:path";

/** One name, and what stood there when the file was opened. */
interface Name {
  readonly path: string;
  readonly dev: bigint;
  readonly ino: bigint;
}

/** What stands at a path; null: nothing, or nothing that can be looked at. */
function look(path: string): BigIntStats | null {
  try {
    return statSync(path, { bigint: true, throwIfNoEntry: false }) ?? null;
  } catch {
    return null;
  }
}

export class FileLocation {
  readonly #names: readonly Name[];

  /** Remembers what stands at these paths now. */
  constructor(paths: readonly string[]) {
    this.#names = paths.map((path) => {
      const { dev, ino } = statSync(path, { bigint: true });
      return { path, dev, ino };
    });
  }

  /** What is wrong with the first that is not there any more, in a sentence that names no folder; null: all are where they were. */
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
