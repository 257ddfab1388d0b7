/**
 * One SQLite file, held by one process (`lock.ts`) and written by group commit, for as long as it is where it was opened (`file-location.ts`). Others may
 * read it meanwhile.
 *
 * WAL mode with `synchronous=FULL`: a commit has reached the disk when it returns. A commit costs one sync however much is in it, so
 * changes are gathered: each is a small function in a queue, and one transaction runs them all, or as many as there is time for, as soon as a
 * turn of the event loop has brought no more of them. What arrives while that transaction is on its way to the disk goes into the next. One
 * change alone waits a sync; a thousand share one.
 *
 * What it never does: resolve before the commit, or go on after a sync failed. (When `fsync` fails, the kernel may have thrown the
 * pages away and a second try would "succeed"; only a restart reads what is really there.) That goes for checkpoints too, whose
 * errors SQLite keeps to itself when it starts them by itself; so they are started here.
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

/** Pages that the log may hold before they are moved into the file: 8 MiB, moved in some 20 ms, and a page that is written often is moved once. */
const CHECKPOINT_PAGES = 2_000;
/** From so many on they are moved in a thread beside the work (`checkpointer.ts`): 16 MiB would hold up everything for some 40 ms. */
const FAR_PAGES = 2 * CHECKPOINT_PAGES;
/** A log file that was longer once is cut to this when all of it was moved: it usually holds half of it. */
const CUT_BYTES = 16 * 1024 * 1024;
/** So much of it at once, every `LOOK_MS`: cutting off half a gigabyte takes a third of a second. */
const CUT_STEP_BYTES = 32 * 1024 * 1024;
/** A log of this length is told to the operator: something keeps it from being moved. */
export const LONG_LOG_BYTES = 64 * 1024 * 1024;
/** Memory for pages that were read or are about to be written: the working set of thousands of devices. */
const CACHE_KIBIBYTES = 32 * 1024;

/** Turns of the event loop in which a commit waits for more, as long as each brings some. */
const GATHER_TURNS = 8;
/** The same in milliseconds, for turns that have much to do, as those of a fan-out: waiting longer than a sync spares nothing. */
const GATHER_MS = 1;

/** The log's length is looked at after so many milliseconds at the earliest: looking costs as much as a small change. */
const CHECKPOINT_MS = 20;

/** After this a commit takes no further changes: a second of large batches must not hold up everything else for that second. */
const COMMIT_MS = 30;

/** So often it is looked whether the file is where it was opened and whether a full disk has room again, also while nothing is stored. */
const LOOK_MS = 500;
/** A full disk is written to again, to see whether it takes anything, when so much of it is free: what the largest event takes. */
const ROOM_BYTES = 1024 * 1024;

/** Who reads beside us, a backup or another tool, may hold us up for as long as it takes to find its way into the log. */
const BUSY_MS = 1_000;

/** What the system calls a want of room (errno): EFBIG, a limit on files' size; ENOSPC; EDQUOT, a quota. SQLite knows the second. */
const NO_ROOM: readonly number[] = [27, 28, 122];

/** What a file holds: its mark in the header, and for each version the statements that make it out of the one before. */
export interface Schema {
  readonly applicationId: number;
  /** The mark of a copy: it was read out of a file that went on, and is another life when it is worked with. */
  readonly copyId: number;
  readonly steps: readonly string[];
}

/** What the owner of a file does around its transactions. */
export interface Transactions {
  /** In the transaction, after its changes: writes down what was gathered in memory. */
  finish(): void;
  /** The transaction is durable; nobody was told yet. */
  committed(): void;
  /** The transaction was undone: what was gathered in memory is void. */
  undone(): void;
  /** In the transaction that opens a copy for work: what was given out after it was made must not be given out again. */
  reborn(file: SqliteFile): void;
}

/** Takes what the operator is to know, in a sentence, and why. */
export type Tell = (sentence: string, cause?: unknown) => void;

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
  readonly #tell: Tell;
  /** Null: it is kept in memory. */
  #place: FileLocation | null = null;
  /** Where the file is not, as it was last told. */
  #misplaced: string | null = null;
  #looking: Timer | undefined;
  /** The log's length when it was last looked at. */
  #toldOfLog = 0;
  #damage: string | null = null;
  #unwritten: string | null = null;
  readonly #owner: Transactions;
  readonly #counts: Counters;
  readonly #mover: Checkpointer;
  readonly #statements = new Map<string, Statement>();
  #queue: Change[] = [];
  /** How many changes the queue held when the last turn ended, how many turns it has waited, and until when it may. */
  #gathered = 0;
  #turns = 0;
  #gatherUntil = 0;
  #checkedAt = 0;
  #broken: unknown;
  #closed = false;

  /** @throws PereError conflict: the file is another's, newer, or in use by another process; away: it can't be opened */
  constructor(path: string, schema: Schema, owner: Transactions, counts: Counters, tell: Tell = () => {}) {
    this.path = path;
    this.#owner = owner;
    this.#lock = lockFile(path, true);
    this.#counts = counts;
    this.#tell = tell;
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

  /** Makes the file ready; on a disk without room for the log's index that others share, with an index in memory. */
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

  /** What callers are told of the path: they need not know the folder. */
  get name(): string {
    return basename(this.path);
  }

  /** No other program can read the file: at the start the disk had no room for what is shared with them. */
  get alone(): boolean {
    return this.#alone;
  }

  #prepare({ applicationId, copyId, steps }: Schema): void {
    const tables = this.get<{ n: number }>("SELECT count(*) AS n FROM sqlite_schema")!.n;
    const found = this.#pragma("user_version");
    const mark = this.#pragma("application_id");
    if (tables > 0 && mark !== applicationId && mark !== copyId)
      throw new PereError("conflict", `${this.path} is a database of another program`);
    if (found > steps.length)
      throw new PereError(
        "conflict",
        `${this.path} was written by a newer PERE (schema ${found}; this one knows ${steps.length})`,
      );
    this.#db.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
    this.#db.run("PRAGMA journal_mode = WAL");
    this.#db.run("PRAGMA synchronous = FULL");
    this.#db.run("PRAGMA fullfsync = ON"); // Where a plain fsync stops at the drive's cache (macOS).
    this.#db.run("PRAGMA checkpoint_fullfsync = ON");
    this.#db.run("PRAGMA wal_autocheckpoint = 0");
    this.#db.run(`PRAGMA cache_size = -${CACHE_KIBIBYTES}`);
    this.#db.run("PRAGMA temp_store = MEMORY");
    // A start that has nothing to change writes nothing, so that it needs no room on the disk.
    if (found === steps.length && mark === applicationId) return;
    this.#db.run("BEGIN EXCLUSIVE");
    for (const step of steps.slice(found)) this.#db.run(step);
    if (mark === copyId) this.#owner.reborn(this);
    this.#db.run(`PRAGMA application_id = ${applicationId}`);
    this.#db.run(`PRAGMA user_version = ${steps.length}`);
    this.#db.run("COMMIT");
  }

  /** Everything is open: remembers where. */
  #settle(): void {
    if (this.path === ":memory:") return;
    const { real, weak } = this.#lock;
    this.#place = new FileLocation([this.path, `${real}-wal`, ...(weak === null ? [] : [weak])]);
    if (this.#free() === 0) this.#touch().catch(() => {}); // What the log has room for is taken all the same; so it is tried.
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

  /** @throws PereError away, once a sync failed or the file was closed, and while it is not where it was opened */
  check(): void {
    this.#look();
    this.#check();
  }

  /** The same by what was seen last: each transaction looks again. */
  #check(): void {
    if (this.#closed || this.#broken !== undefined)
      throw new PereError("away", "the store takes no changes until PERE is started again", [], this.#broken);
    const trouble = this.#misplaced;
    if (trouble !== null)
      throw new PereError("away", `the store takes no changes: ${trouble}; put it back, or start PERE again`);
  }

  /** What is wrong with the place of the file; null: nothing. Tells it when it changes. */
  #look(): string | null {
    const trouble = this.#place?.trouble() ?? null;
    if (trouble === this.#misplaced) return trouble;
    this.#misplaced = trouble;
    if (trouble === null) this.#tell("the file is where it was opened again: changes are taken");
    else {
      this.#tell(`${trouble} (${this.path}): no changes are taken until it is back or PERE is started again`);
      this.#moveLog(); // Where the log alone is gone, the file has all that was acknowledged from now on.
    }
    return trouble;
  }

  /** Why the last change could not be written, the disk being full for one; null: it was. Learns by itself when that has passed. */
  get unwritten(): string | null {
    return this.#unwritten;
  }

  /** Bytes of the disk that are free. */
  #free(): number {
    try {
      const { bfree, bsize } = statfsSync(dirname(this.#lock.real));
      return bfree * bsize;
    } catch {
      return Number.POSITIVE_INFINITY; // Nothing is known of it; so it is tried.
    }
  }

  /** After a change could not be written: stores what is stored already, to see whether that can be done. */
  #lookForRoom(): void {
    if (this.#unwritten === null || this.#queue.length > 0 || this.#free() < ROOM_BYTES) return;
    this.#touch().catch(() => {});
  }

  /** A commit that changes nothing. */
  #touch(): Promise<unknown> {
    return this.change(() => this.run(`PRAGMA user_version = ${this.#pragma("user_version")}`));
  }

  /** Queues a change for the next commit, and resolves after it. A change that throws a `PereError` has written nothing. */
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
    // When one of them can't be stored, each stands for itself, so that it fails alone.
    if (stored === 0) for (const change of changes) this.#transact([change]);
    if (performance.now() >= this.#checkedAt + CHECKPOINT_MS) setImmediate(this.#checkpoint); // Answers leave before it.
    if (stored === 0 || stored === changes.length) return;
    const isGathering = this.#queue.length > 0;
    this.#queue = changes.slice(stored).concat(this.#queue);
    if (!isGathering) this.#gather();
  }

  /**
   * Runs the first of these changes, as many as there is time for, in one transaction.
   * @returns how many have their answer; 0: it was undone, and each is to be tried alone
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
      const isFull = isWithoutRoom(error); // Before the system is asked for anything else.
      this.#undo(error);
      // Another program that writes was waited for: each alone would wait as long again, and everything else with it.
      if (changes.length > 1 && !isBusy(error)) return 0;
      const refusal = this.#refusal(error, isFull);
      for (const { reject } of changes) reject(refusal);
      return changes.length;
    }
    this.#unwritten = null;
    this.#counts.commits.note((performance.now() - startedAt) / 1000);
    this.#counts.batches.note(results.length);
    // It was there when this transaction began. What became of it since decides whether anybody may be told that it is kept.
    const trouble = this.#look();
    const lost = trouble === null ? null : new PereError("away", `whether it was stored is not known: ${trouble}`);
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

  /** What the sender of a change is told that could not be stored. */
  #refusal(error: unknown, isFull: boolean): PereError {
    if (error instanceof PereError) return error;
    if (isDamage(error)) return this.#unreadable(error);
    if (isUnwritten(error)) this.#unwritten = isFull ? "the disk is full" : "the disk refuses what is written";
    if (isFull) return new PereError("full", "the disk is full; nothing was stored", [], error);
    const what =
      this.#broken === undefined
        ? "the store could not take it; nothing was stored"
        : "the disk failed; whether it was stored is known after PERE was started again";
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

  /** Moves the log into the file when it has grown long. What is acknowledged is in the log until this has succeeded. */
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
      if (!isUnwritten(error)) this.#broken = error; // Where the disk is full the log stays as it is, and is tried again.
      return { busy: 1 };
    }
  }

  /** Also while nothing is stored: moves a long log, cuts its file when nobody reads there any more, and tells of one that only grows. */
  #tidy(): void {
    this.#checkpoint();
    if (this.#broken !== undefined || this.#closed || this.#misplaced !== null) return;
    const bytes = this.logBytes;
    if (bytes >= LONG_LOG_BYTES && this.#toldOfLog < LONG_LOG_BYTES) this.#tell(longLog(this.name, bytes));
    this.#toldOfLog = this.#counts.logBytes = bytes;
    if (bytes > 2 * CUT_BYTES && !this.#mover.busy && this.#left() < CHECKPOINT_PAGES) this.#cut(bytes);
  }

  /** Cuts a piece off a log's file that is longer than what is in it. SQLite does that at the first commit after the log began from its start. */
  #cut(bytes: number): void {
    this.#db.run("PRAGMA busy_timeout = 0"); // Whoever reads is not waited for: it is tried again.
    const { busy } = this.#moveLog("RESTART");
    this.#db.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
    if (busy !== 0) return;
    this.#db.run(`PRAGMA journal_size_limit = ${Math.max(CUT_BYTES, bytes - CUT_STEP_BYTES)}`);
    const uncut = (): void => {
      if (!this.#closed) this.#db.run("PRAGMA journal_size_limit = -1");
    };
    this.#touch().then(uncut, uncut);
  }

  /** Length of the log's file; 0: there is none. */
  get logBytes(): number {
    if (this.path === ":memory:") return 0;
    return statSync(`${this.#lock.real}-wal`, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** Commits what is queued and lets go of the file. */
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
   * Reads between commits; they see what is durable.
   * @throws PereError away: the file was closed, or others are in the way; inside: it can't be read, however often that is tried
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

  /** What can't be read now can't be read later. */
  #unreadable(error: unknown): PereError {
    if (isDamage(error)) this.#damage = `${this.name} is damaged: ${(error as Error).message}`;
    return new PereError("inside", `${this.path} can't be read`, [], error);
  }

  /** Why a part of the file can't be read; null: all that was asked for could be. */
  get damage(): string | null {
    return this.#damage;
  }

  /** Rows changed. */
  run(sql: string, ...values: SQLQueryBindings[]): number {
    return this.#statement(sql).run(...values).changes;
  }
  get<Shape>(sql: string, ...values: SQLQueryBindings[]): Shape | null {
    return this.#statement(sql).get(...values) as Shape | null;
  }
  all<Shape>(sql: string, ...values: SQLQueryBindings[]): Shape[] {
    return this.#statement(sql).all(...values) as Shape[];
  }
  /** Rows one by one, for who may stop early. */
  each<Shape>(sql: string, ...values: SQLQueryBindings[]): IterableIterator<Shape> {
    return this.#statement(sql).iterate(...values) as IterableIterator<Shape>;
  }

  /**
   * Prepared once, by its text. Where it has an ORDER BY, a value that a column must be equal to is best written `+?1`: SQLite 3.54 otherwise
   * plans the statement anew each time that the value is set, which costs ten times as much as running it.
   */
  #statement(sql: string): Statement {
    let statement = this.#statements.get(sql);
    if (!statement) this.#statements.set(sql, (statement = this.#db.prepare(sql)));
    return statement;
  }
}

const open = (path: string): Database => new Database(path, { create: true, readwrite: true });

/** What the operator of a file with a long log is to know. */
export const longLog = (name: string, bytes: number): string =>
  `${name}-wal has grown to ${Math.round(bytes / 1e6)} MB. Where it goes on growing, another program reads ${name} and does not stop: end that program.`;

/** The disk has no room for it: nothing else is wrong, and it may have some later. */
const isWithoutRoom = (error: unknown): boolean =>
  error instanceof SQLiteError &&
  (error.code === "SQLITE_FULL" || (error.code === "SQLITE_IOERR_WRITE" && NO_ROOM.includes(libc()?.errno() ?? 0)));

/** Nothing was written, and nothing of it was to be synced yet: it can be tried again. */
const isUnwritten = (error: unknown): boolean =>
  error instanceof SQLiteError && (error.code === "SQLITE_FULL" || error.code === "SQLITE_IOERR_WRITE");

/** A page is not what was written there. */
const isDamage = (error: unknown): boolean =>
  error instanceof SQLiteError && /^SQLITE_(CORRUPT|NOTADB)/.test(error.code ?? "");

/** What is in the way of a read and may be gone at the next: other programs, and want of memory, descriptors or room. */
const isPassing = (error: unknown): boolean =>
  error instanceof SQLiteError &&
  /^SQLITE_(BUSY|LOCKED|PROTOCOL|CANTOPEN|NOMEM|IOERR_NOMEM|FULL)/.test(error.code ?? "");

/** Another program has the file for itself, for longer than it is waited for. */
const isBusy = (error: unknown): boolean =>
  error instanceof SQLiteError && error.code?.startsWith("SQLITE_BUSY") === true;

/** Why a file can't be used, in one line. */
function explain(path: string, error: unknown): PereError {
  if (error instanceof PereError) return error;
  if (isBusy(error))
    return new PereError("conflict", `${path} is in use by another process; one PERE a file`, [], error);
  if (error instanceof SQLiteError && error.code === "SQLITE_NOTADB")
    return new PereError("conflict", `${path} is not a database`, [], error);
  if (error instanceof SQLiteError && /^SQLITE_(CANTOPEN|READONLY|PERM)/.test(error.code ?? ""))
    return unopened(path, error);
  return new PereError("away", `${path} can't be used: ${(error as Error).message}`, [], error);
}
