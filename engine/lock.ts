/**
 * One process a file: the lock that says so, `pere.db.lock` beside `pere.db`.
 *
 * Two services on one file could not know of each other's followers, and a file must not be compacted or put in place under a service
 * that works. The lock stands beside the file and not in it, so that a backup, or any SQLite tool that reads, may read while the service works. It is an
 * empty SQLite database with a transaction that is never ended: SQLite's lock goes with its holder, also by kill -9, and needs no clean-up. The
 * empty file stays.
 */
import { Database, SQLiteError } from "bun:sqlite";
import { existsSync, lstatSync, readlinkSync, realpathSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { PereError } from "./model.ts";

/** The file itself, also where links lead to it: whoever comes another way finds the same lock. There need be no file yet. */
function real(path: string): string {
  if (existsSync(path)) return realpathSync(path);
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink())
    return real(resolve(dirname(path), readlinkSync(path)));
  return join(realpathSync(dirname(path)), basename(path));
}

/**
 * Holds `path` for this process until it is released or the process ends.
 * @throws PereError conflict: another process holds it; away: there can be no lock
 */
export function hold(path: string): { release(): void } {
  if (path === ":memory:") return { release() {} };
  let lock: Database | undefined;
  try {
    lock = new Database(`${real(path)}.lock`, { create: true, readwrite: true });
    lock.run("PRAGMA journal_mode = MEMORY"); // Nothing is ever written, so there is nothing to keep for a rollback.
    lock.run("BEGIN EXCLUSIVE");
  } catch (error) {
    lock?.close();
    if (error instanceof SQLiteError && error.code === "SQLITE_BUSY")
      throw new PereError("conflict", `${path} is in use by another process; one PERE a file`, [], error);
    throw new PereError("away", `${path} can't be opened: ${(error as Error).message}`, [], error);
  }
  return { release: () => lock.close() };
}
