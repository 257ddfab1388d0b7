/**
 * Moves a long write-ahead log into its file, in a thread of its own with a connection of its own.
 *
 * SQLite moves all that it can in one call, which takes seconds where a log has grown to hundreds of megabytes: after somebody read the file for
 * long, or after a kill. Pushes and feeds can't wait for that. SQLite lets one connection move while others read and write, so it is done beside
 * the work; what little is left then is moved by the file's owner between two commits.
 */

/**
 * What the thread runs: moves, waits while a reader or a full disk is in the way, and ends when less than `pages` are left or it is told to. It is
 * text, so that the executable needs no second file.
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
   * @param pages so many may be left in the log
   * @param failed told when a page could not be moved or synced
   */
  constructor(path: string, pages: number, failed: (error: unknown) => void) {
    this.#path = path;
    this.#pages = pages;
    this.#failed = failed;
  }

  /** Whether it is at work. */
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
    worker.onerror = () => done(undefined); // There was no thread to be had: nothing was moved, and nothing was harmed.
    worker.postMessage({ path: this.#path, pages: this.#pages });
  }

  /** Ends it as soon as what it moves now is moved. */
  stop(): void {
    this.#worker?.postMessage("end");
    this.#worker = null;
  }
}
