/**
 * The seam between the bad day and a client under test, which is a program or a page. It is started with a `Job` in whatever arguments or environment
 * it takes (`Client.start` translates), follows `channels` as `device`, and for each event
 *
 * 1. appends one line to the file `record`: the event's id, a space, and its data as JSON text on one line;
 * 2. where the data is an object with `"hold": true`, goes on working until there is a file `<record>.go`;
 * 3. where the data is an object with `"stop": true`, goes on working until it is told that the event was withdrawn, and gives no receipt then;
 * 4. where the data is an object with `"defer": n`, defers the event for a second in each of its first n rounds;
 * 5. where the data is an object with `"fail": true`, fails, with a message; else is done.
 *
 * It keeps what must survive it in `state` (a path of its own, nothing is there at first), reads its token from `tokenFile` whenever it needs a new
 * one, and takes `patience` for its own where it can. It runs until it is killed. For programs that run a command for each event
 * `worker.sh` is that command: data on its input, `PERE_EVENT_ID`, `PERE_ROUND` and `PERE_RECORD` in its environment.
 */

/** How long a client waits for what, instead of its own 5 s, 40 s and a minute. A client that knows whole seconds alone takes the next longer one. */
export interface Patience {
  /** For the first byte of an event stream, before it takes another way. */
  readonly firstByteMs: number;
  /** For a sign of life on an event stream. */
  readonly silenceMs: number;
  /** On another way, before it tries the event stream again. */
  readonly returnMs: number;
  /** The longest pause that it makes of its own. */
  readonly pauseMs: number;
}

/** What a client is to do. */
export interface Job {
  readonly url: string;
  /** Comma separated. */
  readonly channels: string;
  readonly device: string;
  /** A file that holds the newest token; null: no token is needed. */
  readonly tokenFile: string | null;
  readonly state: string;
  readonly record: string;
  readonly patience: Patience;
}

/** A client under test. */
export interface Client {
  readonly name: string;
  /** Why it can't be run here; null: it can. With `CI=true` it is run all the same, and fails. */
  readonly missing: string | null;
  /** Whether it speaks WebSocket. */
  readonly hasSockets: boolean;
  /** @param said hears what it prints */
  start(job: Job, said: (text: string) => void): Running;
}

/** A client that was started. */
export interface Running {
  readonly isRunning: boolean;
  /** Ends it at once, as a power cut does. */
  kill(): Promise<void>;
}

/** Starts a client that is a program. @param env what it finds in its environment beside the usual */
export function startProgram(
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  said: (text: string) => void,
): Running {
  const child = Bun.spawn([...argv], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  for (const stream of [child.stdout, child.stderr])
    void (async () => {
      for await (const text of stream.pipeThrough(new TextDecoderStream() as never)) said(text as string);
    })();
  return {
    get isRunning() {
      return child.exitCode === null && child.signalCode === null;
    },
    async kill() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** Whether a client is left out here. */
export const isSkipped = ({ missing }: Client): boolean => missing !== null && process.env.CI !== "true";
