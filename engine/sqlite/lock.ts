/**
 * One process per file, whatever the file is called.
 *
 * Two services on one file could not know of each other's followers, and a file that has two names has two write-ahead logs, which destroy it.
 * So there are two locks, and both go with their holder, also by kill -9:
 *
 * - On the file itself (`flock`, by device and inode): the same through hard links, symbolic links, bind mounts, and after it was renamed. It does
 *   not meet SQLite's own locks, so a backup, or any SQLite tool that reads, may read while the service works.
 * - On the name, before there is a file: `pere.db.lock` beside `pere.db`, an empty SQLite database with a transaction that is never ended.
 *   The empty file stays.
 *
 * The first is Linux' alone. On macOS `flock` and SQLite's locks are of one kind and would shut each other out, and network file systems (NFS, SMB)
 * do the same on Linux. There the name is what is locked: whoever removes `pere.db.lock` under a running service lets a second one in, until the
 * first notices that its lock is gone (`file-location.ts`) and takes no more changes.
 *
 * A file with several names (hard links) is refused everywhere.
 */
import { Database, SQLiteError } from "bun:sqlite";
import {
  type BigIntStats,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  openSync,
  readlinkSync,
  realpathSync,
  statfsSync,
  statSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { libc } from "./libc.ts";
import { PereError } from "../model.ts";
import { unwritable } from "./writable.ts";

/** `flock(2)`: shared or exclusive, and no waiting. */
const LOCK_SHARED = 1;
const LOCK_EXCLUSIVE = 2;
const LOCK_NO_WAIT = 4;
/** What `flock` says where it does not exist: EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP. Anything else counts as refused. */
const UNSUPPORTED: readonly number[] = [22, 37, 38, 95];
/** File systems whose `flock` is of one kind with SQLite's locks (statfs(2)): NFS, and SMB by three names. */
const SHARED_KINDS: readonly number[] = [0x6969, 0x517b, 0xff534d42, 0xfe534d42];
/** What is locked, by device and inode. */
type Identity = `${bigint}:${bigint}`;
const identityOf = ({ dev, ino }: BigIntStats): Identity => `${dev}:${ino}`;

/**
 * Files that this process holds. They are not opened again: a process that closes any descriptor of a file loses SQLite's locks on it
 * (POSIX, fcntl).
 */
const held = new Set<Identity>();

/** Locks an open file: true; false: another process has it; null: files can't be locked here. */
function flockFile(file: number, path: string, how: number): boolean | null {
  const calls = libc();
  if (calls === null || SHARED_KINDS.includes(statfsSync(path).type)) return null;
  if (calls.flock(file, how | LOCK_NO_WAIT) === 0) return true;
  return UNSUPPORTED.includes(calls.errno()) ? null : false;
}

/** The file itself, also where links lead to it: whoever comes another way finds the same. There need be no file yet. */
function real(path: string): string {
  if (existsSync(path)) return realpathSync(path);
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink())
    return real(resolve(dirname(path), readlinkSync(path)));
  return join(realpathSync(dirname(path)), basename(path));
}

/** Why a file can't be opened, in one line. */
export function unopened(path: string, error: unknown): PereError {
  const why = unwritable(path, [".lock", "-wal", "-shm"]) ?? (error as Error).message;
  return new PereError("away", `${path} can't be opened: ${why}`, [], error);
}

const inUse = (path: string, cause?: unknown): PereError =>
  new PereError("conflict", `${path} is in use by another process; one PERE a file`, [], cause);

/** @throws PereError conflict: the file has several names */
function checkNames(path: string, stats: BigIntStats): void {
  if (stats.isFile() && stats.nlink > 1n)
    throw new PereError(
      "conflict",
      `${path} is one of ${stats.nlink} names (hard links) of the same file, and each would have its own write-ahead log, which destroys the file; ` +
        `remove the other names (find -samefile ${path} lists them)`,
    );
}

/** A file that this process has locked. */
export interface FileLock {
  /** Where the file is, links followed. */
  readonly real: string;
  /** The name's lock, where removing it would let another process in; null: the file itself is locked. */
  readonly weak: string | null;
  release(): void;
}

/**
 * Holds `path` for this process until it is released or the process ends. Release it after SQLite has closed the file.
 * @param make makes an empty file where there is none, so that the file itself can be held
 * @throws PereError conflict: another process holds it, or it has several names; away: there can be no lock
 */
export function lockFile(path: string, make = false): FileLock {
  if (path === ":memory:") return { real: path, weak: null, release() {} };
  const names: Database[] = [];
  let file: number | null = null;
  let identity: Identity | null = null;
  const release = (): void => {
    if (file !== null) closeSync(file);
    if (identity !== null) held.delete(identity);
    for (const name of names) name.close();
  };
  try {
    const found = real(path);
    const stats = statSync(found, { bigint: true, throwIfNoEntry: false });
    if (stats) checkNames(path, stats);
    const name = `${found}.lock`;
    names.push(new Database(name, { create: true, readwrite: true }));
    names[0]!.run("PRAGMA journal_mode = MEMORY"); // Nothing is ever written, so there is nothing to keep for a rollback.
    names[0]!.run("BEGIN EXCLUSIVE");
    if (!stats && !make) return { real: found, weak: name, release };
    if (stats && held.has(identityOf(stats))) throw inUse(path);
    file = openSync(found, constants.O_RDWR | (make ? constants.O_CREAT : 0), 0o644);
    const opened = fstatSync(file, { bigint: true });
    checkNames(path, opened);
    const isLocked = flockFile(file, found, LOCK_EXCLUSIVE);
    if (isLocked === false) throw inUse(path);
    held.add((identity = identityOf(opened)));
    return { real: found, weak: isLocked ? null : name, release };
  } catch (error) {
    release();
    if (error instanceof PereError) throw error;
    if (error instanceof SQLiteError && error.code === "SQLITE_BUSY") throw inUse(path, error);
    throw unopened(path, error);
  }
}

/**
 * Before a file is read beside the service that may work with it: its write-ahead log must be the one that is found beside this name.
 * @throws PereError conflict: it has several names, or is in use under another one
 */
export function checkReadable(path: string): void {
  const found = real(path);
  const stats = statSync(found, { bigint: true });
  checkNames(path, stats);
  if (existsSync(`${found}-shm`) || held.has(identityOf(stats))) return;
  const file = openSync(found, "r");
  try {
    if (flockFile(file, found, LOCK_SHARED) === false)
      throw new PereError(
        "conflict",
        `${path} is in use, and its write-ahead log can't be read from here: it is in use under another name, which PERE_DB must name, or the service was started on a full disk and must be started again`,
      );
  } finally {
    closeSync(file);
  }
}
