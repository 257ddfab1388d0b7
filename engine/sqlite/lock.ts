/**
 * One process per file, under whatever name the file is opened.
 *
 * Two services on one file would not know of each other's followers, and a file with two names has two write-ahead logs, which destroy it. So there
 * are two locks. Both end with their holder, even after kill -9:
 *
 * - On the file itself (`flock`, by device and inode): it holds across hard links, symbolic links, bind mounts and renames. It does not conflict with
 *   SQLite's own locks, so a backup or another SQLite tool can read while the service runs.
 * - On the name, before the file exists: `pere.db.lock` beside `pere.db`, an empty SQLite database with a transaction that never ends. The empty file
 *   stays.
 *
 * The first lock exists on Linux only. On macOS, `flock` and SQLite's locks would block each other, and so they do on network file systems (NFS, SMB)
 * on Linux. There, only the name is locked. If `pere.db.lock` is removed under a running service, a second service can start; the first one accepts
 * no more changes as soon as it notices that its lock is gone (`file-location.ts`).
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

/** `flock(2)`: shared, exclusive, and without waiting. */
const LOCK_SHARED = 1;
const LOCK_EXCLUSIVE = 2;
const LOCK_NO_WAIT = 4;
/** What `flock` returns where it is not supported: EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP. Any other error means that the lock is held. */
const UNSUPPORTED: readonly number[] = [22, 37, 38, 95];
/** File systems where `flock` conflicts with SQLite's locks (statfs(2)): NFS, and SMB under three numbers. */
const SHARED_KINDS: readonly number[] = [0x6969, 0x517b, 0xff534d42, 0xfe534d42];
/** The locked file, by device and inode. */
type Identity = `${bigint}:${bigint}`;
const identityOf = ({ dev, ino }: BigIntStats): Identity => `${dev}:${ino}`;

/**
 * Files that this process holds. They must not be opened again: a process that closes any descriptor of a file loses SQLite's locks on it (POSIX,
 * fcntl).
 */
const held = new Set<Identity>();

/** Locks an open file. True: locked; false: another process holds it; null: locks are not supported here. */
function flockFile(file: number, path: string, how: number): boolean | null {
  const calls = libc();
  if (calls === null || SHARED_KINDS.includes(statfsSync(path).type)) return null;
  if (calls.flock(file, how | LOCK_NO_WAIT) === 0) return true;
  return UNSUPPORTED.includes(calls.errno()) ? null : false;
}

/** The real path, with links resolved. The file need not exist yet. */
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
  new PereError("conflict", `${path} is in use by another process; a file can be used by only one PERE`, [], cause);

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
  /** The file's path, with links resolved. */
  readonly real: string;
  /** The lock file, if removing it would let another process in; null: the file itself is locked. */
  readonly weak: string | null;
  release(): void;
}

/**
 * Locks `path` until it is released or the process ends. Release it after SQLite has closed the file.
 * @param make creates an empty file if there is none, so that the file itself can be locked
 * @throws PereError conflict: another process holds it, or it has several names; away: it can't be locked
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
    names[0]!.run("PRAGMA journal_mode = MEMORY"); // Nothing is ever written here, so no rollback journal is needed.
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
 * Call before reading a file that a service may be using: its write-ahead log must be the one beside this name.
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
        `${path} is in use, and its write-ahead log can't be read from here: either it is in use under another name (set PERE_DB to that name), or the service was started on a full disk (restart the service)`,
      );
  } finally {
    closeSync(file);
  }
}
