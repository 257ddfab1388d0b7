/**
 * Checkpoints a long write-ahead log in a separate thread with its own connection.
 *
 * SQLite moves as much as it can in one call. This takes seconds when the log has grown to hundreds of megabytes, after a long read or a kill. Pushes
 * and feeds can't wait that long. SQLite allows one connection to checkpoint while others read and write, so this thread does most of the work; the
 * file's owner moves the small rest between two commits.
 */

/**
 * The thread's code: checkpoints, waits while a reader or a full disk blocks it, and ends when fewer than `pages` are left or when it is told to. It
 * is a string, so that the executable needs no second file.
 */
const THREAD = `
const { Database } = require("bun:sqlite");
let db, timer, pages, ended = false;
const end = (error) => {
  if (ended) return;
  ended = true;
  clearTimeout(timer);
  db?.close();
  postMessage(error?.code && { code: error.code, message: error.message });
};
const step = () => {
  try {
    const { log, checkpointed } = db.query("PRAGMA wal_checkpoint(PASSIVE)").get();
    if (log - checkpointed < pages) return end();
  } catch (error) {
    if (!/^SQLITE_(FULL|IOERR_WRITE|BUSY)/.test(error.code)) return end(error);
  }
  timer = setTimeout(step, 250);
};
self.onmessage = ({ data }) => {
  if (data === "end") return end();
  pages = data.pages;
  try {
    db = new Database(data.path, { readwrite: true, create: false });
    for (const pragma of ["synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON", "wal_autocheckpoint = 0"])
      db.run("PRAGMA " + pragma);
  } catch {
    timer = setTimeout(() => end(), 1000); // No descriptor is free, or no memory: its owner tries again.
    return;
  }
  step();
};
`;

export class Checkpointer {
  readonly #path: string;
  readonly #pages: number;
  readonly #failed: (error: unknown) => void;
  #worker: Worker | null = null;

  /**
   * @param pages how many pages may stay in the log
   * @param failed called when a page could not be moved or synced
   */
  constructor(path: string, pages: number, failed: (error: unknown) => void) {
    this.#path = path;
    this.#pages = pages;
    this.#failed = failed;
  }

  /** Whether the thread is running. */
  get busy(): boolean {
    return this.#worker !== null;
  }

  start(): void {
    if (this.#worker) return;
    const url = URL.createObjectURL(new Blob([THREAD], { type: "application/javascript" }));
    const worker = new Worker(url, { ref: false });
    this.#worker = worker;
    const done = (error: unknown): void => {
      URL.revokeObjectURL(url);
      worker.terminate();
      if (this.#worker === worker) this.#worker = null;
      if (error) this.#failed(error);
    };
    worker.onmessage = ({ data }: MessageEvent<{ code: string; message: string } | undefined>) =>
      done(data && Object.assign(new Error(data.message), { code: data.code }));
    worker.onerror = () => done(undefined); // The thread could not be started. Nothing was moved or damaged.
    worker.postMessage({ path: this.#path, pages: this.#pages });
  }

  /** Stops the thread after its current step. */
  stop(): void {
    this.#worker?.postMessage("end");
    this.#worker = null;
  }
}
