/**
 * A SQLite file that one process owns (`lock.ts`), writes in rounds (`group-commit.ts`) and syncs beside the event loop (`write-ahead-log.ts`). Other
 * processes may read it. `file-location.ts` checks that the file stays where it was opened.
 *
 * In memory, on other systems than Linux, and where a full disk has no space for an index of the log that several connections can share, SQLite itself
 * syncs in the commit, and the event loop waits for it.
 *
 * Never continues after a failed sync. (When `fsync` fails, the kernel may have dropped the pages, and a second try would "succeed"; only a restart
 * reads what is really on disk.) The same holds for checkpoints. SQLite hides the errors of automatic checkpoints, so this file starts them explicitly.
 */
import { Database, SQLiteError, type SQLQueryBindings, type Statement } from "bun:sqlite";
import { statfsSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Counters } from "../counters.ts";
import { libc } from "./libc.ts";
import { type FileLock, lockFile, unopened } from "./lock.ts";
import { PereError } from "../model.ts";
import { FileLocation } from "./file-location.ts";
import { type Change, GroupCommit, type Outcome, type Round } from "./group-commit.ts";
import { CUT_BYTES, type Sync, WriteAheadLog } from "./write-ahead-log.ts";

/**
 * Pages that the log may hold before a checkpoint: 8 MiB. A page that is written often is moved once. Commits wait for the checkpoint's last three
 * syncs, so on a slow disk the log may become longer: by as much for each millisecond of a sync.
 */
const CHECKPOINT_PAGES = 2_000;
const CHECKPOINT_PAGES_MAX = 8_000;
/** A log of this length is reported to the operator: something prevents its checkpoint. */
export const LONG_LOG_BYTES = 64 * 1024 * 1024;
/** Page cache: the working set of thousands of devices. */
const CACHE_KIBIBYTES = 32 * 1024;

/** Minimum time between two checks of the log's length. A check costs as much as a small change. */
const CHECKPOINT_MS = 20;

/** After so many changed rows a transaction takes no further changes, so that large batches do not block everything else: about 5 ms. */
const COMMIT_ROWS = 250;

/** How often to check, even when idle, that the file is still in place and that a full disk has free space again. */
const LOOK_MS = 500;
/** Free space needed before writing to a full disk is tried again: the largest event needs this much. */
const ROOM_BYTES = 1024 * 1024;

/** How long to wait for another reader, such as a backup, which holds the file while it opens the log. */
const BUSY_MS = 1_000;

/** System errors (errno) that mean "no space": EFBIG, a file size limit; ENOSPC; EDQUOT, a quota. SQLite only knows ENOSPC. */
const NO_ROOM: readonly number[] = [27, 28, 122];

/** The application id in the file's header, and the statements that migrate each schema version to the next. */
export interface Schema {
  readonly applicationId: number;
  /** The application id of a backup. A file with this mark gets new epochs when a service opens it. */
  readonly copyId: number;
  readonly steps: readonly string[];
}

/** What the owner of a file does around its transactions. */
export interface Transactions {
  /** A connection was opened, or another one is used from now on: prepares what only this connection has. */
  opened(file: SqliteFile): void;
  /** In the transaction, after its changes: writes what was gathered in memory. */
  finish(): void;
  /** The transaction is written. The next one can begin. @returns called when it is durable, before any caller is answered */
  written(): () => void;
  /** The transaction was rolled back: discard what was gathered in memory. */
  undone(): void;
  /** In the transaction that first opens a backup for writing: positions handed out after the backup was made must not be handed out again. */
  onRestoredCopy(file: SqliteFile): void;
}

/** Receives a message for the operator, and its cause. */
export type Warn = (sentence: string, cause?: unknown) => void;

export class SqliteFile {
  readonly path: string;
  #db: Database;
  #alone = false;
  readonly #lock: FileLock;
  readonly #warn: Warn;
  /** Null: the database is in memory. */
  #location: FileLocation | null = null;
  /** The last reported problem with the file's location. */
  #misplaced: string | null = null;
  #looking: Timer | undefined;
  /** The log's length at the last check. */
  #checkedLogBytes = 0;
  /** Null: SQLite syncs in the commit. */
  #log: WriteAheadLog | null = null;
  /** The running checkpoint. */
  #shortening: Promise<void> | null = null;
  #damage: string | null = null;
  #unwritten: string | null = null;
  readonly #owner: Transactions;
  readonly #counts: Counters;
  readonly #rounds: GroupCommit;
  readonly #statements = new Map<string, Statement>();
  /** When a checkpoint is tried again, by `performance.now()`. */
  #shortenAt = 0;
  #checkedAt = 0;
  #broken: unknown;
  /** Rows changed so far, also by transactions that were rolled back. */
  #rows = 0;
  #closed = false;
  #closing: Promise<void> | null = null;

  /**
   * @throws PereError conflict: the file belongs to another program, has a newer schema, or is in use by another process; away: it can't be opened
   */
  constructor(path: string, schema: Schema, owner: Transactions, counts: Counters, warn: Warn = () => {}, sync?: Sync) {
    this.path = path;
    this.#owner = owner;
    this.#lock = lockFile(path, true);
    this.#counts = counts;
    this.#rounds = new GroupCommit(this.#writer());
    this.#warn = warn;
    try {
      this.#db = open(path);
    } catch (error) {
      this.#lock.release();
      throw unopened(path, error);
    }
    try {
      this.#makeReady(schema);
      owner.opened(this);
      this.#settle(sync);
    } catch (error) {
      this.#db.close();
      this.#lock.release();
      throw explain(path, error);
    }
  }

  /** Prepares the file. On a disk with no space for the shared index of the log, the index stays in memory. */
  #makeReady(schema: Schema): void {
    try {
      return this.#prepare(schema);
    } catch (error) {
      if (!(error instanceof SQLiteError) || error.code !== "SQLITE_IOERR_SHMSIZE") throw error;
    }
    for (const statement of this.#statements.values()) statement.finalize();
    this.#statements.clear();
    this.#db.close();
    this.#db = open(this.path);
    this.#db.run("PRAGMA locking_mode = EXCLUSIVE");
    this.#alone = true;
    this.#prepare(schema);
  }

  /** Messages to callers do not reveal the folder. */
  get name(): string {
    return basename(this.path);
  }

  /** Other programs can't read the file: at startup the disk had no space for the index that is shared with them. */
  get alone(): boolean {
    return this.#alone;
  }

  #prepare({ applicationId, copyId, steps }: Schema): void {
    const tables = this.get<{ n: number }>("SELECT count(*) AS n FROM sqlite_schema")!.n;
    const found = this.#pragma("user_version");
    const mark = this.#pragma("application_id");
    if (tables > 0 && mark !== applicationId && mark !== copyId)
      throw new PereError("conflict", `${this.path} is a database of another program; set PERE_DB to another path`);
    if (found > steps.length)
      throw new PereError(
        "conflict",
        `${this.path} was written by a newer PERE (schema ${found}; this one knows ${steps.length})`,
      );
    this.#db.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
    this.#db.run("PRAGMA journal_mode = WAL");
    this.#db.run("PRAGMA synchronous = FULL");
    this.#db.run("PRAGMA fullfsync = ON"); // On macOS a plain fsync stops at the drive's cache.
    this.#db.run("PRAGMA checkpoint_fullfsync = ON");
    this.#db.run("PRAGMA wal_autocheckpoint = 0");
    this.#db.run(`PRAGMA cache_size = -${CACHE_KIBIBYTES}`);
    this.#db.run("PRAGMA temp_store = MEMORY");
    // A start with nothing to change writes nothing, so that it needs no disk space.
    if (found === steps.length && mark === applicationId) return;
    this.#db.run("BEGIN EXCLUSIVE");
    for (const step of steps.slice(found)) this.#db.run(step);
    if (mark === copyId) this.#owner.onRestoredCopy(this);
    this.#db.run(`PRAGMA application_id = ${applicationId}`);
    this.#db.run(`PRAGMA user_version = ${steps.length}`);
    this.#db.run("COMMIT");
  }

  /** Everything is open: remember where, and take over the syncs. */
  #settle(sync: Sync | undefined): void {
    if (this.path === ":memory:") return;
    const { real, weak } = this.#lock;
    if (process.platform === "linux" && !this.#alone && this.#beginsAgain()) {
      this.#log = new WriteAheadLog(this.path, real, sync);
      this.#db.run("PRAGMA synchronous = OFF");
    } else this.#db.run(`PRAGMA journal_size_limit = ${CUT_BYTES}`);
    this.#location = new FileLocation([this.path, `${real}-wal`, ...(weak === null ? [] : [weak])]);
    if (this.#free() === 0) this.#try(); // The log may still have room, so try the write.
    this.#looking = setInterval(() => {
      this.#look();
      this.#lookForRoom();
      this.#tidy();
    }, LOOK_MS);
    this.#looking.unref();
  }

  /**
   * Another program may have kept the index of a log that is in the file already. Then the next commit overwrites the log: SQLite syncs this one.
   * @returns false: it could not be written
   */
  #beginsAgain(): boolean {
    const { log, checkpointed } = this.#frames();
    if (log === 0 || log > checkpointed) return true;
    try {
      this.#write();
      return true;
    } catch (error) {
      if (!isUnwritten(error)) throw error;
      return false;
    }
  }

  /** Tests whether the disk takes writes: the only way to learn that it does again. */
  #try(): void {
    this.change(() => this.#write()).then(
      () => void (this.#unwritten = null),
      () => {},
    );
  }

  #pragma(name: string): number {
    return Object.values(this.get<Record<string, number>>(`PRAGMA ${name}`)!)[0]!;
  }

  // ---------------------------------------------------------------------------------------------------------------- changes

  /** @throws PereError away: a sync failed, the file was closed, or it is not where it was opened */
  check(): void {
    this.#look();
    this.#check();
  }

  /** The same, from the last check. Each transaction checks again. */
  #check(): void {
    if (this.#closed || this.#broken !== undefined)
      throw new PereError("away", "the store accepts no changes until PERE is restarted", [], this.#broken);
    const trouble = this.#misplaced;
    if (trouble !== null)
      throw new PereError("away", `the store accepts no changes: ${trouble}; put it back, or restart PERE`);
  }

  /** The problem with the file's location, or null. Reports each change to the operator. */
  #look(): string | null {
    const trouble = this.#location?.trouble() ?? null;
    if (trouble === this.#misplaced) return trouble;
    this.#misplaced = trouble;
    if (trouble === null) this.#warn("the file is back at its path: changes are accepted again");
    else {
      this.#warn(`${trouble} (${this.path}): no changes are accepted until it is back or PERE is restarted`);
      this.#moveLog(); // If only the log was deleted, everything acknowledged from now on is in the file.
    }
    return trouble;
  }

  /** Why the last change could not be written (for example, a full disk), or null. Detects by itself when writing is possible again. */
  get unwritten(): string | null {
    return this.#unwritten;
  }

  /** Free bytes on the disk. */
  #free(): number {
    try {
      const { bfree, bsize } = statfsSync(dirname(this.#lock.real));
      return bfree * bsize;
    } catch {
      return Number.POSITIVE_INFINITY; // Unknown, so try the write.
    }
  }

  /** After a failed write: writes data that is already stored, to test whether writing works again. */
  #lookForRoom(): void {
    if (this.#unwritten === null || this.#rounds.length > 0 || this.#free() < ROOM_BYTES) return;
    this.#try();
  }

  /** A commit that changes nothing but is written. */
  #write(): void {
    this.#db.run(`PRAGMA user_version = ${this.#pragma("user_version")}`);
  }

  /** Queues a change for the next round. Resolves after its sync. A change that throws a `PereError` must not have written anything. */
  async change<Result>(run: () => Result): Promise<Result> {
    this.#check();
    if (this.#closing !== null) throw new PereError("away", "the store was closed");
    return this.#rounds.change(run);
  }

  /** What the rounds need of the file. */
  #writer(): ConstructorParameters<typeof GroupCommit>[0] {
    return {
      transact: (changes, round) => this.#transact(changes, round),
      rows: () => this.get<{ n: number }>("SELECT total_changes() AS n")!.n,
      sync: () => this.#log?.sync() ?? null,
      durable: ({ outcomes }, ms) => {
        if (outcomes.length > 0) {
          this.#counts.commits.note(ms / 1000);
          this.#counts.batches.note(outcomes.length);
        }
        if (performance.now() >= this.#checkedAt + CHECKPOINT_MS) setImmediate(this.#checkpoint); // Send the answers first.
        // The file was in place when the transaction began. Check again before anyone is told that the data is stored.
        const trouble = this.#look();
        return trouble === null ? null : new PereError("away", `it is unknown whether this was stored: ${trouble}`);
      },
      lost: (error) => {
        this.#lose(error);
        return this.#refusal(error, false);
      },
    };
  }

  /** A sync failed. From now on the file is read as of the sync before it. */
  #lose(error: unknown): void {
    if (this.#broken !== undefined && this.#db === this.#log?.snapshot) return;
    this.#broken ??= error;
    this.#statements.clear();
    this.#owner.undone();
    if (this.#log !== null) this.#readSnapshot(this.#log);
    this.#rounds.refuse(this.#refusal(error, false));
  }

  #readSnapshot(log: WriteAheadLog): void {
    this.#db = log.snapshot;
    try {
      this.#owner.opened(this);
    } catch (error) {
      this.#warn("what is stored can't be read until PERE is restarted", error);
    }
  }

  /**
   * Runs the first of these changes, until they have changed enough rows, in one transaction.
   * @param round receives how each of them ended
   * @returns how many changes are settled; 0: it was rolled back, and each must be tried alone
   */
  #transact(changes: readonly Change[], { outcomes, tell }: Round): number {
    if (changes.length === 0) return 0;
    const before = this.#rows;
    const settled: Outcome[] = [];
    try {
      this.check();
      this.run("BEGIN IMMEDIATE");
      for (const change of changes) {
        try {
          settled.push({ change, value: change.run() });
        } catch (error) {
          if (!(error instanceof PereError)) throw error;
          settled.push({ change, error });
        }
        if (this.#rows - before > COMMIT_ROWS) break;
      }
      this.#owner.finish();
      this.run("COMMIT");
    } catch (error) {
      const isFull = isWithoutRoom(error); // Read the error before any other system call.
      this.#undo(error);
      // Another program holds the write lock. Each change alone would wait as long again and block everything else.
      if (changes.length > 1 && !isBusy(error)) return 0;
      const refusal = this.#refusal(error, isFull);
      for (const { reject } of changes) reject(refusal);
      return changes.length;
    }
    // What this changed may be in memory only, so it does not tell.
    if (this.#unwritten !== null) this.#try();
    tell.push(this.#owner.written());
    outcomes.push(...settled);
    return settled.length;
  }

  /** The error for the sender of a change that could not be stored. */
  #refusal(error: unknown, isFull: boolean): PereError {
    if (error instanceof PereError) return error;
    if (isDamage(error)) return this.#unreadable(error);
    if (isUnwritten(error)) this.#unwritten = isFull ? "the disk is full" : "the disk refuses writes";
    if (isFull) return new PereError("full", "the disk is full; nothing was stored", [], error);
    const what =
      this.#broken === undefined
        ? "the store could not write it; nothing was stored"
        : "the disk failed; it is unknown whether this was stored until PERE is restarted";
    return new PereError("away", what, [], error);
  }

  #undo(error: unknown): void {
    this.#owner.undone();
    if (error instanceof SQLiteError && error.code?.startsWith("SQLITE_IOERR") && !isUnwritten(error))
      this.#broken = error;
    try {
      if (this.#db.inTransaction) this.#db.run("ROLLBACK");
    } catch (rollbackError) {
      this.#broken = rollbackError;
    }
  }

  /** Checkpoints a long log. Acknowledged data stays in the log until this succeeds. */
  readonly #checkpoint = (): void => {
    if (this.#broken !== undefined || this.#closing !== null || this.#misplaced !== null || this.#shortening !== null)
      return;
    this.#checkedAt = performance.now();
    const { log, checkpointed } = this.#frames();
    if (this.#log === null) {
      if (log - checkpointed >= CHECKPOINT_PAGES) this.#moveLog();
    } else if (
      log >= Math.min(CHECKPOINT_PAGES * Math.max(1, this.#rounds.syncMs), CHECKPOINT_PAGES_MAX) &&
      this.#checkedAt >= this.#shortenAt
    )
      this.#shortening = this.#shorten(this.#log);
  };

  /** Pages in the log, and how many of them are in the file, too. */
  #frames(): { log: number; checkpointed: number } {
    try {
      return this.get<{ log: number; checkpointed: number }>("PRAGMA wal_checkpoint(NOOP)")!;
    } catch (error) {
      this.#broken = error;
      return { log: 0, checkpointed: 0 };
    }
  }

  /** Moves the log into the file, and lets it begin again. Commits wait for the last part only. */
  async #shorten(log: WriteAheadLog): Promise<void> {
    this.#shortenAt = performance.now() + LOOK_MS;
    try {
      if (!(await log.moveMost()) || !(await this.#rounds.pause()) || !(await log.moveAll())) return;
      await log.restart(
        () => this.#write(),
        () => this.#frames().log,
      );
      this.#db.run("PRAGMA synchronous = OFF");
      this.#shortenAt = 0;
    } catch (error) {
      if (!isUnwritten(error)) return this.#lose(error);
      // On a full disk the log stays as it is; try again later. If it begins again before that, SQLite has to sync its header.
      this.#db.run("PRAGMA synchronous = FULL");
    } finally {
      this.#shortening = null;
      this.#rounds.resume();
    }
  }

  /** SQLite syncs it. */
  #moveLog(): void {
    try {
      const before = this.#pragma("synchronous");
      this.#db.run("PRAGMA synchronous = FULL");
      this.get("PRAGMA wal_checkpoint(PASSIVE)");
      this.#db.run(`PRAGMA synchronous = ${before}`);
    } catch (error) {
      if (!isUnwritten(error)) this.#broken = error; // On a full disk the log stays as it is; try again later.
    }
  }

  /** Runs even when idle: checkpoints a long log, and reports one that only grows. */
  #tidy(): void {
    this.#checkpoint();
    if (this.#broken !== undefined || this.#closed || this.#misplaced !== null) return;
    const bytes = this.logBytes;
    if (bytes >= LONG_LOG_BYTES && this.#checkedLogBytes < LONG_LOG_BYTES) this.#warn(longLog(this.name, bytes));
    this.#checkedLogBytes = this.#counts.logBytes = bytes;
  }

  /** Length of the log file; 0: there is none. */
  get logBytes(): number {
    if (this.path === ":memory:") return 0;
    return statSync(`${this.#lock.real}-wal`, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** Commits the queue and closes the file. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    clearInterval(this.#looking);
    await this.#shortening;
    await this.#rounds.end();
    this.#closed = true;
    // Closing the last connection checkpoints the log, which must not happen after a failed sync.
    if (this.#broken === undefined) {
      await this.#log?.close();
      this.#db.run("PRAGMA synchronous = FULL");
      for (const statement of this.#statements.values()) statement.finalize();
      this.#db.close();
    }
    this.#lock.release();
  }

  // ------------------------------------------------------------------------------------------------------------- statements

  /**
   * Reads durable data only. May run twice.
   * @throws PereError away: the file was closed, or another program blocks it; inside: a permanent read error
   */
  async read<Result>(run: () => Result | Promise<Result>): Promise<Result> {
    try {
      for (;;) {
        if (this.#closed) throw new PereError("away", "the store was closed");
        const result = await run();
        // It may have seen changes whose sync is running. If that fails, it reads again as of the sync before.
        if (this.#rounds.durable === null || (await this.#rounds.durable)) return result;
      }
    } catch (error) {
      if (error instanceof PereError) throw error;
      throw isPassing(error)
        ? new PereError("away", "the store can't be read now", [], error)
        : this.#unreadable(error);
    }
  }

  /** Some read errors are permanent. */
  #unreadable(error: unknown): PereError {
    if (isDamage(error)) this.#damage = `${this.name} is damaged: ${(error as Error).message}`;
    return new PereError("inside", `${this.path} can't be read`, [], error);
  }

  /** Why a part of the file can't be read, or null if all reads succeeded. */
  get damage(): string | null {
    return this.#damage;
  }

  /** @returns the number of rows changed */
  run(sql: string, ...values: SQLQueryBindings[]): number {
    const { changes } = this.#statement(sql).run(...values);
    this.#rows += changes;
    return changes;
  }
  get<Shape>(sql: string, ...values: SQLQueryBindings[]): Shape | null {
    return this.#statement(sql).get(...values) as Shape | null;
  }
  all<Shape>(sql: string, ...values: SQLQueryBindings[]): Shape[] {
    return this.#statement(sql).all(...values) as Shape[];
  }
  /** Yields rows one by one, for callers that may stop early. */
  each<Shape>(sql: string, ...values: SQLQueryBindings[]): IterableIterator<Shape> {
    return this.#statement(sql).iterate(...values) as IterableIterator<Shape>;
  }

  /**
   * Prepares each statement once, by its text. With an ORDER BY, write an equality parameter as `+?1`: otherwise SQLite 3.54 plans the statement
   * again each time the value is bound, which costs ten times as much as running it.
   */
  #statement(sql: string): Statement {
    let statement = this.#statements.get(sql);
    if (!statement) this.#statements.set(sql, (statement = this.#db.prepare(sql)));
    return statement;
  }
}

const open = (path: string): Database => new Database(path, { create: true, readwrite: true });

/** The advice for an operator of a file with a long log. */
export const longLog = (name: string, bytes: number): string =>
  `${name}-wal has grown to ${Math.round(bytes / 1e6)} MB. If it keeps growing, another program keeps reading ${name}: stop that program.`;

/** The disk is full. Nothing else is wrong, and space may become free. */
const isWithoutRoom = (error: unknown): boolean =>
  error instanceof SQLiteError &&
  (error.code === "SQLITE_FULL" || (error.code === "SQLITE_IOERR_WRITE" && NO_ROOM.includes(libc()?.errno() ?? 0)));

/** Nothing was written or needed a sync yet, so the change can be retried. */
const isUnwritten = (error: unknown): boolean =>
  error instanceof SQLiteError && (error.code === "SQLITE_FULL" || error.code === "SQLITE_IOERR_WRITE");

/** A page's content is not what was written. */
const isDamage = (error: unknown): boolean =>
  error instanceof SQLiteError && /^SQLITE_(CORRUPT|NOTADB)/.test(error.code ?? "");

/** Temporary causes of a failed read: other programs, or a shortage of memory, descriptors or disk space. */
const isPassing = (error: unknown): boolean =>
  error instanceof SQLiteError &&
  /^SQLITE_(BUSY|LOCKED|PROTOCOL|CANTOPEN|NOMEM|IOERR_NOMEM|FULL)/.test(error.code ?? "");

/** Another program has locked the file for longer than the timeout. */
const isBusy = (error: unknown): boolean =>
  error instanceof SQLiteError && error.code?.startsWith("SQLITE_BUSY") === true;

/** Why a file can't be used, in one line. */
function explain(path: string, error: unknown): PereError {
  if (error instanceof PereError) return error;
  if (isBusy(error))
    return new PereError(
      "conflict",
      `${path} is in use by another process; a file can be used by only one PERE`,
      [],
      error,
    );
  if (error instanceof SQLiteError && error.code === "SQLITE_NOTADB")
    return new PereError("conflict", `${path} is not a database`, [], error);
  // What is read at startup can't be done without: a position must not be handed out twice.
  if (isDamage(error) || error instanceof SyntaxError)
    return new PereError(
      "away",
      `${path} is damaged: ${(error as Error).message}. Move it away, and restore a backup with the command restore`,
      [],
      error,
    );
  if (error instanceof SQLiteError && /^SQLITE_(CANTOPEN|READONLY|PERM)/.test(error.code ?? ""))
    return unopened(path, error);
  return new PereError("away", `${path} can't be used: ${(error as Error).message}`, [], error);
}
