/**
 * A thread that copies pages from the write-ahead log into the database file, with a connection of its own.
 *
 * A checkpoint syncs the log, writes pages, and syncs the file. That takes seconds for a log of hundreds of megabytes, and two syncs of a slow disk
 * for a short one. Pushes and feeds can't wait that long. SQLite allows one connection to checkpoint while others read and write.
 */

/**
 * The thread's code. Each message is one checkpoint, or "end". The answer is the number of pages that are left in the log, null if nothing could be
 * moved now, or an error. It is a string, so that the executable needs no second file.
 */
const THREAD = `
const { Database } = require("bun:sqlite");
let db, path;
const open = () => {
  const opened = new Database(path, { readwrite: true, create: false });
  for (const pragma of ["synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON", "wal_autocheckpoint = 0"])
    opened.run("PRAGMA " + pragma);
  return opened;
};
const move = () => {
  try {
    db ??= open();
  } catch {
    return { left: null }; // No descriptor is free, or no memory: its owner tries again.
  }
  try {
    const { log, checkpointed } = db.query("PRAGMA wal_checkpoint(PASSIVE)").get();
    return { left: log - checkpointed };
  } catch (error) {
    if (/^SQLITE_(FULL|IOERR_WRITE|BUSY)/.test(error.code)) return { left: null };
    return { code: error.code, message: error.message };
  }
};
self.onmessage = ({ data }) => {
  if (data === "end") {
    db?.close();
    return postMessage({ left: null });
  }
  path = data;
  postMessage(move());
};
`;

type Answer = { readonly left: number | null } | { readonly code: string; readonly message: string };

export class Checkpointer {
  readonly #path: string;
  #worker: Worker | null = null;
  #url = "";
  #answer: PromiseWithResolvers<number | null> | null = null;

  constructor(path: string) {
    this.#path = path;
  }

  /**
   * Moves what no reader of an earlier state holds back. One call at a time.
   * @returns pages that are left in the log; null: nothing could be moved now, because the disk is full, or no thread or descriptor is free
   * @throws Error a page could not be moved or synced
   */
  move(): Promise<number | null> {
    if (!this.#worker) this.#start();
    return this.#ask(this.#path);
  }

  #ask(message: string): Promise<number | null> {
    this.#answer = Promise.withResolvers<number | null>();
    this.#worker!.postMessage(message);
    return this.#answer.promise;
  }

  #start(): void {
    this.#url = URL.createObjectURL(new Blob([THREAD], { type: "application/javascript" }));
    const worker = (this.#worker = new Worker(this.#url, { ref: false }));
    worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      if ("left" in data) this.#answer?.resolve(data.left);
      else this.#answer?.reject(Object.assign(new Error(data.message), { code: data.code }));
    };
    // The thread could not be started, or ended. Nothing was moved or damaged: the next call starts another.
    worker.onerror = () => {
      this.#dispose();
      this.#answer?.resolve(null);
    };
  }

  #dispose(): void {
    this.#worker?.terminate();
    this.#worker = null;
    URL.revokeObjectURL(this.#url);
  }

  /** Closes the thread's connection and ends the thread. Not while `move` runs. */
  async stop(): Promise<void> {
    if (!this.#worker) return;
    await this.#ask("end");
    this.#dispose();
  }
}
