/**
 * Makes the commits of a SQLite file durable beside the event loop.
 *
 * With `synchronous=FULL` a commit returns after the disk has it: 0.3 ms on a fast disk, 5 ms and more on many cloud disks, in which the event loop
 * does nothing else. So the file's connection has `synchronous=OFF`: a commit only writes into the page cache. Then `fdatasync` runs in a thread of
 * the runtime, and whoever asked for the commit is answered after it. A thread that owns the whole store was measured, too: handing every call over
 * and its answer back costs about a third more CPU per push and receipt, so only the waiting is handed over.
 *
 * Two rules of `synchronous=FULL` must then be held here:
 *
 * - **What can be read is durable.** A second connection, the *snapshot*, reads the state of the last sync. Readers of the first connection wait for
 *   the running sync. If a sync fails, the file is read through the snapshot until PERE is restarted.
 * - **The log begins again only after a sync.** When every page of the log is in the database file, SQLite overwrites the log from its start. If the
 *   power then fails, the disk may have the old header, some old frames and some new ones. Old frames would be read over a newer file, and damage it.
 *   So the first commit after such a restart changes nothing, and nothing follows it until it is synced (https://sqlite.org/fileformat2.html#walreset). The
 *   snapshot's read lock prevents a restart at any other time, also after a checkpoint by another program.
 */
import { Database } from "bun:sqlite";
import { closeSync, fdatasync, fdatasyncSync, fsyncSync, ftruncate, openSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { Checkpointer } from "./checkpointer.ts";

/** Makes an open file durable. */
export type Sync = (file: number) => Promise<void>;

const syncData: Sync = promisify(fdatasync);
const truncate: (file: number, bytes: number) => Promise<void> = promisify(ftruncate);

/** A longer log file is cut to this size after it began again. It usually holds half of it. */
export const CUT_BYTES = 16 * 1024 * 1024;
/** Syncs that may run at a time. */
export const SYNCS_MAX = 4;
/** With fewer pages left, the rest is moved while commits wait. */
const FEW_PAGES = 200;
/** How often pages are moved beside commits before the rest is moved while they wait. */
const PASSES_MAX = 4;

/** Begins to read the state as of now. */
function hold(connection: Database): Database {
  connection.run("BEGIN");
  connection.run("SELECT 1 FROM sqlite_schema LIMIT 1");
  return connection;
}

export class WriteAheadLog {
  readonly #path: string;
  readonly #file: number;
  readonly #sync: Sync;
  readonly #checkpointer: Checkpointer;
  #snapshot: Database;
  /** Connections for the states of running syncs. */
  readonly #spare: Database[] = [];
  /** The last sync. */
  #last: Promise<void> = Promise.resolve();

  /**
   * Opens the log of a database that a connection of this process has open. What an earlier process wrote and did not sync is synced before it
   * returns.
   * @param path the database
   * @param real the same, with links resolved
   * @throws Error it can't be opened or synced
   */
  constructor(path: string, real: string, sync: Sync = syncData) {
    this.#path = `${real}-wal`;
    this.#sync = sync;
    this.#checkpointer = new Checkpointer(path);
    this.#file = openSync(this.#path, "r+");
    try {
      if (this.bytes > 0) fdatasyncSync(this.#file);
      this.#nameSync();
      for (let n = 0; n <= SYNCS_MAX; n++) this.#spare.push(new Database(path, { readwrite: true, create: false }));
      this.#snapshot = hold(this.#spare.pop()!);
    } catch (error) {
      for (const one of this.#spare) one.close();
      closeSync(this.#file);
      throw error;
    }
  }

  /** Length of the log's file. */
  get bytes(): number {
    return statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** A connection that reads the state of the last successful sync. */
  get snapshot(): Database {
    return this.#snapshot;
  }

  /** A new log must be found in its folder after a power cut. */
  #nameSync(): void {
    const folder = openSync(dirname(this.#path), "r");
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  }

  /**
   * Makes all commits so far durable. Call it right after a commit, at most `SYNCS_MAX` at a time. They resolve in the order of the calls.
   * @throws Error it is unknown what the disk has, as with all later calls
   */
  sync(): Promise<void> {
    const before = this.#last;
    const state = hold(this.#spare.pop()!);
    const synced = this.#sync(this.#file);
    return (this.#last = (async () => {
      // Of syncs that run together, the system reports a failure to one only.
      await Promise.all([before, synced]);
      this.#snapshot.run("COMMIT");
      this.#spare.push(this.#snapshot);
      this.#snapshot = state;
    })());
  }

  /**
   * Moves pages into the database file beside commits, until few are left.
   * @returns false: a reader of an earlier state holds them back, or the disk is full; try again later
   * @throws Error a page could not be moved or synced; whether the disk has it is unknown
   */
  async moveMost(): Promise<boolean> {
    let left = Number.POSITIVE_INFINITY;
    for (let pass = 0; pass < PASSES_MAX && left >= FEW_PAGES; pass++) {
      const now = await this.#checkpointer.move();
      if (now === null) return false;
      left = now;
    }
    return true;
  }

  /** Moves all pages. No commit may begin or be unsynced until it resolves. Results and errors as of `moveMost`. */
  async moveAll(): Promise<boolean> {
    return (await this.#checkpointer.move()) === 0;
  }

  /**
   * Lets the log begin again, if no other program reads it, with a commit that changes nothing, and cuts a long file. Call it after `moveAll`, with
   * no commit until it resolves.
   * @param touch commits without a change
   * @param frames counts the log's frames
   * @throws Error `touch` could not write, or it is unknown what the disk has
   */
  async restart(touch: () => void, frames: () => number): Promise<void> {
    this.#snapshot.run("COMMIT");
    try {
      touch();
    } finally {
      hold(this.#snapshot); // The state is the same before and after, and the log must not begin again meanwhile.
    }
    await this.#sync(this.#file);
    if (frames() === 1 && this.bytes > 2 * CUT_BYTES) await truncate(this.#file, CUT_BYTES);
  }

  /** Closes everything but the owner's connection. */
  async close(): Promise<void> {
    await this.#checkpointer.stop();
    this.#snapshot.run("COMMIT");
    for (const one of [this.#snapshot, ...this.#spare]) one.close();
    closeSync(this.#file);
  }
}
