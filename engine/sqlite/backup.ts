/**
 * The commands `backup`, `restore` and `compact`, which run beside the service.
 *
 * SQLite itself reads the backup (`VACUUM INTO`) in one read transaction, in a separate process. The service keeps running and is not involved, and
 * the copy is what was durable at one moment. The copy has a mark in its header. A service that opens it gives every channel a new epoch: the
 * original service handed out positions afterwards, and they must not match positions that are handed out now. Because the mark is in the file, a
 * backup that is copied into place by hand is as safe as one that `restore` puts there.
 *
 * The `.secret` beside the file is copied too, if PERE made one: without it, tokens that are already issued would be rejected.
 *
 * Never overwrites a file, and never changes a file that a service uses.
 */
import { Database } from "bun:sqlite";
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { destination } from "./links.ts";
import { checkReadable, lockFile } from "./lock.ts";
import { PereError } from "../model.ts";
import { unmerged } from "./recent-events.ts";
import { SCHEMA } from "./schema.ts";
import { foundSecret, keptSecret } from "./secret-file.ts";
import { unwritable } from "./writable.ts";

/** Mode of the files that PERE creates: only the owner may read and write. */
const OWNER_ALONE = 0o600;

/** A file's content, for the command's output. */
interface Content {
  readonly channels: number;
  readonly events: number;
  readonly bytes: number;
}

/** Flushes a file, or a folder's directory entries, to the disk. */
function sync(path: string): void {
  const file = openSync(path, "r");
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

const number = (db: Database, sql: string): number =>
  db.query<Record<string, number>, []>(sql).values()[0]![0] as number;

/** How many events are not in `events` yet. Earlier versions had no journal. */
function journaledEvents(db: Database): number {
  if (number(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'journal'") === 0) return 0;
  let count = 0;
  for (const _ of unmerged((sql, ...values) => db.query(sql).all(...values) as never)) count++;
  return count;
}

/** @throws PereError conflict: not a PERE file */
function check(db: Database, path: string): void {
  const mark = number(db, "PRAGMA application_id");
  if (mark !== SCHEMA.applicationId && mark !== SCHEMA.copyId)
    throw new PereError("conflict", `${path} is not a file that PERE wrote`);
  const schema = number(db, "PRAGMA user_version");
  if (schema > SCHEMA.steps.length)
    throw new PereError(
      "conflict",
      `${path} was written by a newer PERE (schema ${schema}; this one knows ${SCHEMA.steps.length})`,
    );
}

/** Opens a file, uses it, closes it. @throws PereError away: it can't be opened or read */
function withDatabase<Result>(
  path: string,
  options: { readonly?: true; readwrite?: true },
  use: (db: Database) => Result,
): Result {
  let db: Database | undefined;
  try {
    if (!existsSync(path)) throw new Error("there is no such file");
    checkReadable(path);
    db = new Database(path, { ...options, create: false });
    return use(db);
  } catch (error) {
    throw error instanceof PereError
      ? error
      : new PereError("away", `${path} can't be used: ${(error as Error).message}`, [], error);
  } finally {
    db?.close();
  }
}

/** Copies a file, which may be in use, into a new file with the mark of a backup. @throws PereError conflict, away */
function copy(from: string, to: string): Content {
  if (existsSync(to))
    throw new PereError("conflict", `${to} already exists and is not overwritten; remove it or choose another path`);
  let fresh = "";
  try {
    const target = destination(to);
    fresh = `${target}.new`;
    rmSync(fresh, { force: true });
    closeSync(openSync(fresh, "wx", OWNER_ALONE));
    withDatabase(from, { readonly: true }, (db) => {
      check(db, from);
      try {
        db.run("VACUUM INTO ?1", [fresh]);
      } catch (error) {
        // One statement reads one file and writes the other. A full disk can only be the target's.
        if ((error as { code?: string }).code !== "SQLITE_FULL") throw error;
        throw new PereError("away", `${to} can't be written: the disk is full`, [], error);
      }
    });
    const content = withDatabase(fresh, { readwrite: true }, (db): Content => {
      const found = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check(1)").get()!.integrity_check;
      if (found !== "ok") throw new PereError("conflict", `${from} is damaged: ${found}`);
      db.run("PRAGMA synchronous = OFF"); // Everything is synced below.
      db.run(`PRAGMA application_id = ${SCHEMA.copyId}`);
      const [channels, events] = [
        number(db, "SELECT count(*) FROM channels"),
        number(db, "SELECT count(*) FROM events") + journaledEvents(db),
      ];
      return { channels, events, bytes: statSync(fresh).size };
    });
    // An existing secret stays: issued tokens were signed with it.
    const secret = foundSecret(from);
    if (secret !== null) keptSecret(to, secret);
    sync(fresh);
    renameSync(fresh, target);
    sync(dirname(target));
    return content;
  } catch (error) {
    if (fresh !== "" && existsSync(fresh)) rmSync(fresh, { force: true });
    throw error instanceof PereError
      ? error
      : new PereError("away", `${to} can't be written: ${unwritable(to) ?? (error as Error).message}`, [], error);
  }
}

/** Copies what is durable now, whether the service runs or not. @throws PereError conflict, away */
export const backup = (db: string, file: string): Content => copy(db, file);

/**
 * Puts a backup where a service will find it. When the service starts, each channel gets a new epoch.
 * @throws PereError conflict: the file exists, or a service uses it; away
 */
export function restore(file: string, db: string): Content {
  const lock = lockFile(db);
  try {
    // A leftover write-ahead log does not belong to the restored file.
    const log = `${lock.real}-wal`; // With links resolved, as SQLite does.
    if (existsSync(log))
      throw new PereError(
        "conflict",
        `${log} already exists and may hold data that ${db} lacks; it is not overwritten`,
      );
    return copy(file, db);
  } finally {
    lock.release();
  }
}

/**
 * Returns unused space to the disk. Needs as much free space again while it runs.
 * @returns bytes before and after
 * @throws PereError conflict: a service uses the file; away
 */
export function compact(db: string): { before: number; after: number } {
  const lock = lockFile(db);
  try {
    return withDatabase(db, { readwrite: true }, (file) => {
      check(file, db);
      const before = statSync(db).size;
      file.run("PRAGMA synchronous = FULL");
      file.run("PRAGMA fullfsync = ON");
      file.run("VACUUM");
      file.run("PRAGMA wal_checkpoint(TRUNCATE)");
      return { before, after: statSync(db).size };
    });
  } finally {
    lock.release();
  }
}
