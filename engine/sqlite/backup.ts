/**
 * Keeping what PERE knows: backup, restore and compact, as commands of their own beside the service.
 *
 * A backup is read by SQLite itself (`VACUUM INTO`) in one read transaction, in a process of its own: the service goes on and is not asked, and the
 * copy is what was durable at one moment. The copy has a mark in its header, and whoever opens it for work gives every channel a new epoch:
 * the service that it was read from gave out positions afterwards, and they must never be taken for those that are given out now. The mark is
 * in the file, so that a backup that is put in place by hand is as safe as one that `restore` puts there.
 *
 * Beside each file goes its `.secret`, where PERE made one: without it, tokens that are in the field would be strangers' tokens.
 *
 * What it never does: write over a file, or touch one that a service works with.
 */
import { Database } from "bun:sqlite";
import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { destination } from "./links.ts";
import { checkReadable, lockFile } from "./lock.ts";
import { PereError } from "../model.ts";
import { SCHEMA } from "./schema.ts";
import { foundSecret, keptSecret } from "./secret-file.ts";
import { unwritable } from "./writable.ts";

/** How a file that PERE is to keep, and to keep for itself, is made. */
const OWNER_ALONE = 0o600;

/** What a file holds, for people. */
interface Content {
  readonly channels: number;
  readonly events: number;
  readonly bytes: number;
}

/** Waits until it is on the disk: a file, or a folder's list of files. */
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

/** @throws PereError conflict: it is no file of PERE's */
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

/** Opens, works, closes. @throws PereError away: it can't be opened or read */
function within<Result>(
  path: string,
  options: { readonly?: true; readwrite?: true },
  work: (db: Database) => Result,
): Result {
  let db: Database | undefined;
  try {
    if (!existsSync(path)) throw new Error("there is no such file");
    checkReadable(path);
    db = new Database(path, { ...options, create: false });
    return work(db);
  } catch (error) {
    throw error instanceof PereError
      ? error
      : new PereError("away", `${path} can't be used: ${(error as Error).message}`, [], error);
  } finally {
    db?.close();
  }
}

/** Reads a file, also one that is being worked with, into a new one with the mark of a copy. @throws PereError conflict, away */
function copy(from: string, to: string): Content {
  if (existsSync(to)) throw new PereError("conflict", `${to} is there already; nothing is written over`);
  let fresh = "";
  try {
    const place = destination(to);
    fresh = `${place}.new`;
    rmSync(fresh, { force: true });
    closeSync(openSync(fresh, "wx", OWNER_ALONE));
    within(from, { readonly: true }, (db) => {
      check(db, from);
      try {
        db.run("VACUUM INTO ?1", [fresh]);
      } catch (error) {
        // One statement reads the one and writes the other; a full disk is that of the copy.
        if ((error as { code?: string }).code !== "SQLITE_FULL") throw error;
        throw new PereError("away", `${to} can't be written: its disk is full`, [], error);
      }
    });
    const content = within(fresh, { readwrite: true }, (db): Content => {
      const found = db.query<{ integrity_check: string }, []>("PRAGMA integrity_check(1)").get()!.integrity_check;
      if (found !== "ok") throw new PereError("conflict", `${from} is damaged: ${found}`);
      db.run("PRAGMA synchronous = OFF"); // All of it is synced below.
      db.run(`PRAGMA application_id = ${SCHEMA.copyId}`);
      const [channels, events] = [
        number(db, "SELECT count(*) FROM channels"),
        number(db, "SELECT count(*) FROM events"),
      ];
      return { channels, events, bytes: statSync(fresh).size };
    });
    // One that is there already stays: tokens in use were signed with it.
    const secret = foundSecret(from);
    if (secret !== null) keptSecret(to, secret);
    sync(fresh);
    renameSync(fresh, place);
    sync(dirname(place));
    return content;
  } catch (error) {
    if (fresh !== "" && existsSync(fresh)) rmSync(fresh, { force: true });
    throw error instanceof PereError
      ? error
      : new PereError("away", `${to} can't be written: ${unwritable(to) ?? (error as Error).message}`, [], error);
  }
}

/** A consistent copy of what is durable now, while the service works or not. @throws PereError conflict, away */
export const backup = (db: string, file: string): Content => copy(db, file);

/**
 * Puts a backup where a service will find it; each channel has a new epoch from its start on.
 * @throws PereError conflict: there is a file already, or a service works there; away
 */
export function restore(file: string, db: string): Content {
  const lock = lockFile(db);
  try {
    // A log that is left of a file that is gone is not this file's.
    const log = `${lock.real}-wal`; // Where links lead: SQLite looks for it there.
    if (existsSync(log))
      throw new PereError(
        "conflict",
        `${log} is there already, and may hold what ${db} lacks; nothing is written over`,
      );
    return copy(file, db);
  } finally {
    lock.release();
  }
}

/**
 * Gives the room of what was dropped back to the disk. Needs as much again while it works.
 * @returns bytes before and after
 * @throws PereError conflict: a service works with it; away
 */
export function compact(db: string): { before: number; after: number } {
  const lock = lockFile(db);
  try {
    return within(db, { readwrite: true }, (file) => {
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
