/**
 * A SQLite file that one process owns (`lock.ts`) and writes by group commit. Other processes may read it. `file-location.ts` checks that the file
 * stays where it was opened.
 *
 * WAL mode with `synchronous=FULL`: a commit has reached the disk when it returns. A commit costs one sync however much it contains, so changes are
 * gathered. Each change is a small function in a queue. As soon as a turn of the event loop adds no more changes, one transaction runs all of them,
 * or as many as fit into its time limit. Changes that arrive while that transaction is being written go into the next one. A single change waits for
 * one sync; a thousand changes share one.
 *
 * Never resolves a change before its commit, and never continues after a failed sync. (When `fsync` fails, the kernel may have dropped the pages, and
 * a second try would "succeed"; only a restart reads what is really on disk.) The same holds for checkpoints. SQLite hides the errors of automatic
 * checkpoints, so this file starts them explicitly.
 */
import { Database, SQLiteError, type SQLQueryBindings, type Statement } from "bun:sqlite";
import { statfsSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Counters } from "../counters.ts";
import { libc } from "./libc.ts";
import { type FileLock, lockFile, unopened } from "./lock.ts";
import { PereError } from "../model.ts";
import { Checkpointer } from "./checkpointer.ts";
import { FileLocation } from "./file-location.ts";

/** Pages that the log may hold before a checkpoint: 8 MiB, which takes about 20 ms. A page that is written often is moved once. */
const CHECKPOINT_PAGES = 2_000;
/** From this many pages on, a thread does the checkpoint (`checkpointer.ts`): 16 MiB would block the event loop for about 40 ms. */
const FAR_PAGES = 2 * CHECKPOINT_PAGES;
/** A longer log file is cut to this size after a full checkpoint. It usually holds half of it. */
const CUT_BYTES = 16 * 1024 * 1024;
/** Bytes cut at once, every `LOOK_MS`: cutting half a gigabyte takes a third of a second. */
const CUT_STEP_BYTES = 32 * 1024 * 1024;
/** A log of this length is reported to the operator: something prevents its checkpoint. */
export const LONG_LOG_BYTES = 64 * 1024 * 1024;
/** Page cache: the working set of thousands of devices. */
const CACHE_KIBIBYTES = 32 * 1024;

/** Turns of the event loop that a commit waits for more changes, as long as each turn brings some. */
const GATHER_TURNS = 8;
/** The same limit in milliseconds, for long turns such as those of a fan-out: waiting longer than a sync saves nothing. */
const GATHER_MS = 1;

/** Minimum time between two checks of the log's length. A check costs as much as a small change. */
const CHECKPOINT_MS = 20;

/** After this time a commit takes no further changes, so that large batches do not block everything else. */
const COMMIT_MS = 30;

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
  /** In the transaction, after its changes: writes what was gathered in memory. */
  finish(): void;
  /** The transaction is durable. No caller has been answered yet. */
  committed(): void;
  /** The transaction was rolled back: discard what was gathered in memory. */
  undone(): void;
  /** In the transaction that first opens a backup for writing: positions handed out after the backup was made must not be handed out again. */
  onRestoredCopy(file: SqliteFile): void;
}

/** Receives a message for the operator, and its cause. */
export type Warn = (sentence: string, cause?: unknown) => void;

interface Change {
  readonly run: () => unknown;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
}

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
  #damage: string | null = null;
  #unwritten: string | null = null;
  readonly #owner: Transactions;
  readonly #counts: Counters;
  readonly #mover: Checkpointer;
  readonly #statements = new Map<string, Statement>();
  #queue: Change[] = [];
  /** Queue length at the end of the last turn, turns waited so far, and the time limit for waiting. */
  #gathered = 0;
  #turns = 0;
  #gatherUntil = 0;
  #checkedAt = 0;
  #broken: unknown;
  #closed = false;

  /**
   * @throws PereError conflict: the file belongs to another program, has a newer schema, or is in use by another process; away: it can't be opened
   */
  constructor(path: string, schema: Schema, owner: Transactions, counts: Counters, warn: Warn = () => {}) {
    this.path = path;
    this.#owner = owner;
    this.#lock = lockFile(path, true);
    this.#counts = counts;
    this.#warn = warn;
    this.#mover = new Checkpointer(path, CHECKPOINT_PAGES, (error) => (this.#broken = error));
    try {
      this.#db = open(path);
    } catch (error) {
      this.#lock.release();
      throw unopened(path, error);
    }
    try {
      this.#makeReady(schema);
      this.#settle();
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

  /** Everything is open: remember where. */
  #settle(): void {
    if (this.path === ":memory:") return;
    const { real, weak } = this.#lock;
    this.#location = new FileLocation([this.path, `${real}-wal`, ...(weak === null ? [] : [weak])]);
    if (this.#free() === 0) this.#touch().catch(() => {}); // The log may still have room, so try the write.
    this.#looking = setInterval(() => {
      this.#look();
      this.#lookForRoom();
      this.#tidy();
    }, LOOK_MS);
    this.#looking.unref();
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
    if (this.#unwritten === null || this.#queue.length > 0 || this.#free() < ROOM_BYTES) return;
    this.#touch().catch(() => {});
  }

  /** A commit that changes nothing. */
  #touch(): Promise<unknown> {
    return this.change(() => this.run(`PRAGMA user_version = ${this.#pragma("user_version")}`));
  }

  /** Queues a change for the next commit. Resolves after that commit. A change that throws a `PereError` must not have written anything. */
  async change<Result>(run: () => Result): Promise<Result> {
    this.#check();
    return new Promise<Result>((resolve, reject) => {
      if (this.#queue.push({ run, resolve: resolve as Change["resolve"], reject }) === 1) this.#gather();
    });
  }

  #gather(): void {
    this.#gathered = this.#queue.length;
    this.#turns = 0;
    this.#gatherUntil = performance.now() + GATHER_MS;
    setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    const { length } = this.#queue;
    const isLate = ++this.#turns === GATHER_TURNS || performance.now() >= this.#gatherUntil;
    if (isLate || length === this.#gathered) return this.#commit();
    this.#gathered = length;
    setImmediate(this.#turn);
  };

  #commit(): void {
    const changes = this.#queue;
    this.#queue = [];
    const stored = this.#transact(changes);
    // If one of them can't be stored, each runs in its own transaction, so that only that one fails.
    if (stored === 0) for (const change of changes) this.#transact([change]);
    if (performance.now() >= this.#checkedAt + CHECKPOINT_MS) setImmediate(this.#checkpoint); // Send the answers first.
    if (stored === 0 || stored === changes.length) return;
    const isGathering = this.#queue.length > 0;
    this.#queue = changes.slice(stored).concat(this.#queue);
    if (!isGathering) this.#gather();
  }

  /**
   * Runs the first of these changes, as many as fit into the time limit, in one transaction.
   * @returns how many changes are settled; 0: it was rolled back, and each must be tried alone
   */
  #transact(changes: readonly Change[]): number {
    if (changes.length === 0) return 0;
    const startedAt = performance.now();
    const results: { value?: unknown; error?: PereError }[] = [];
    try {
      this.check();
      this.run("BEGIN IMMEDIATE");
      for (const { run } of changes) {
        try {
          results.push({ value: run() });
        } catch (error) {
          if (!(error instanceof PereError)) throw error;
          results.push({ error });
        }
        if (performance.now() > startedAt + COMMIT_MS) break;
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
    this.#unwritten = null;
    this.#counts.commits.note((performance.now() - startedAt) / 1000);
    this.#counts.batches.note(results.length);
    // The file was in place when this transaction began. Check again before anyone is told that the data is stored.
    const trouble = this.#look();
    const lost = trouble === null ? null : new PereError("away", `it is unknown whether this was stored: ${trouble}`);
    try {
      this.#owner.committed();
    } finally {
      results.forEach(({ value, error }, index) => {
        if (lost ?? error) changes[index]!.reject(lost ?? error);
        else changes[index]!.resolve(value as never);
      });
    }
    return results.length;
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
    if (this.#broken !== undefined || this.#closed || this.#misplaced !== null) return;
    this.#checkedAt = performance.now();
    const left = this.#left();
    if (left >= FAR_PAGES && !this.#alone) this.#mover.start();
    else if (left >= CHECKPOINT_PAGES && !this.#mover.busy) this.#moveLog();
  };

  /** Pages in the log that are not in the file yet. */
  #left(): number {
    try {
      const { log, checkpointed } = this.get<{ log: number; checkpointed: number }>("PRAGMA wal_checkpoint(NOOP)")!;
      return log - checkpointed;
    } catch (error) {
      this.#broken = error;
      return 0;
    }
  }

  #moveLog(how: "PASSIVE" | "RESTART" = "PASSIVE"): { busy: number } {
    try {
      return this.get<{ busy: number }>(`PRAGMA wal_checkpoint(${how})`)!;
    } catch (error) {
      if (!isUnwritten(error)) this.#broken = error; // On a full disk the log stays as it is; try again later.
      return { busy: 1 };
    }
  }

  /** Runs even when idle: checkpoints a long log, cuts its file when no one reads it, and reports a log that only grows. */
  #tidy(): void {
    this.#checkpoint();
    if (this.#broken !== undefined || this.#closed || this.#misplaced !== null) return;
    const bytes = this.logBytes;
    if (bytes >= LONG_LOG_BYTES && this.#checkedLogBytes < LONG_LOG_BYTES) this.#warn(longLog(this.name, bytes));
    this.#checkedLogBytes = this.#counts.logBytes = bytes;
    if (bytes > 2 * CUT_BYTES && !this.#mover.busy && this.#left() < CHECKPOINT_PAGES) this.#cut(bytes);
  }

  /** Cuts a piece off a log file that is longer than its content. SQLite does so at the first commit after the log restarts. */
  #cut(bytes: number): void {
    this.#db.run("PRAGMA busy_timeout = 0"); // Do not wait for readers; try again later.
    const { busy } = this.#moveLog("RESTART");
    this.#db.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
    if (busy !== 0) return;
    this.#db.run(`PRAGMA journal_size_limit = ${Math.max(CUT_BYTES, bytes - CUT_STEP_BYTES)}`);
    const uncut = (): void => {
      if (!this.#closed) this.#db.run("PRAGMA journal_size_limit = -1");
    };
    this.#touch().then(uncut, uncut);
  }

  /** Length of the log file; 0: there is none. */
  get logBytes(): number {
    if (this.path === ":memory:") return 0;
    return statSync(`${this.#lock.real}-wal`, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** Commits the queue and closes the file. */
  close(): void {
    if (this.#closed) return;
    while (this.#queue.length > 0) this.#commit();
    this.#closed = true;
    clearInterval(this.#looking);
    this.#mover.stop();
    for (const statement of this.#statements.values()) statement.finalize();
    this.#db.close();
    this.#lock.release();
  }

  // ------------------------------------------------------------------------------------------------------------- statements

  /**
   * Reads between commits, so it sees only durable data.
   * @throws PereError away: the file was closed, or another program blocks it; inside: a permanent read error
   */
  async read<Result>(run: () => Result | Promise<Result>): Promise<Result> {
    try {
      if (this.#closed) throw new PereError("away", "the store was closed");
      return await run();
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
    return this.#statement(sql).run(...values).changes;
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
  if (error instanceof SQLiteError && /^SQLITE_(CANTOPEN|READONLY|PERM)/.test(error.code ?? ""))
    return unopened(path, error);
  return new PereError("away", `${path} can't be used: ${(error as Error).message}`, [], error);
}
