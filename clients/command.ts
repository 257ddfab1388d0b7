/**
 * Runs a command for an event, as `pere.sh` and `pere.py` do: the event's data is its standard input, its output the detail of the receipt. Status 0 is
 * `done`, 75 (`EX_TEMPFAIL`) `deferred`, and any other `failed`. Where it could not be run, or was ended from outside, nothing is known of the work: it runs
 * again.
 */
import { closeSync, fstatSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Deferred, Failed, type PushedEvent } from "./sdk/index.ts";

/** `EX_TEMPFAIL` in sysexits.h. */
const DEFERRED_STATUS = 75;
/** Statuses of a shell that could not run a command. */
const NOT_RUN_STATUSES = [126, 127];
/** HUP, INT, QUIT, KILL, PIPE, TERM: somebody else ended the command. A shell says 128 plus the number. */
const OUTSIDE_SIGNALS = [1, 2, 3, 9, 13, 15];
const SIGNALS: Record<string, number> = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGKILL: 9, SIGPIPE: 13, SIGTERM: 15 };
/** How much of its output is looked at, from its end. */
const OUTPUT_BYTES_MAX = 65_536;
/** The longest text of a failure. */
const TEXT_CHARACTERS_MAX = 600;
/** The pause before it runs again, from and to. */
const AGAIN_MS = [1_000, 30_000] as const;

/** How a command ended. */
interface Ended {
  readonly status: number;
  readonly output: string;
  readonly errors: string;
}

/** What a command says about another try, as the last line of its output. */
function wishOf(output: string): { rest: string; after?: number; retry?: false } {
  const at = output.lastIndexOf("\n") + 1;
  const [, after, retry] = /^PERE_(?:AFTER=([0-9]{1,9})|RETRY=(no))$/.exec(output.slice(at).trim()) ?? [];
  if (after === undefined && retry === undefined) return { rest: output };
  const rest = output.slice(0, at).trim();
  return after === undefined ? { rest, retry: false } : { rest, after: Number(after) };
}

/** Output as a detail: JSON if all of it or its last line is JSON, else the last line. @returns undefined when there is none */
function detailOf(output: string): unknown {
  const last = output.slice(output.lastIndexOf("\n") + 1).trim();
  for (const text of [output, last])
    try {
      return JSON.parse(text) as unknown;
    } catch {
      // The next one.
    }
  return last === "" ? undefined : last;
}

/** The end of a file, without surrounding whitespace. */
function endOf(file: number): string {
  const { size } = fstatSync(file);
  const bytes = Buffer.alloc(Math.min(size, OUTPUT_BYTES_MAX));
  return bytes
    .subarray(0, readSync(file, bytes, 0, bytes.length, size - bytes.length))
    .toString()
    .trim();
}

export class Command {
  readonly #command: string;
  readonly #report: (line: string) => void;
  readonly #running = new Map<string, Bun.Subprocess>();
  readonly #withdrawn = new Set<string>();

  /** @param report called with a line when the command is to run again */
  constructor(command: string, report: (line: string) => void) {
    this.#command = command;
    this.#report = report;
  }

  /** The event was withdrawn: its command is ended with TERM, if it runs. */
  withdraw(event: string): void {
    const child = this.#running.get(event);
    if (!child) return;
    this.#withdrawn.add(event);
    child.kill("SIGTERM");
  }

  /**
   * Runs it until its outcome is known. @param isEnding whether the program is ending: what fails then may have been interrupted
   * @returns the detail @throws Deferred, Failed, or Error when there is no outcome
   */
  async run(event: PushedEvent, signal: AbortSignal, isEnding: () => boolean): Promise<unknown> {
    for (let tries = 0; ; tries++) {
      const why = await this.#outcomeOf(event, isEnding);
      if ("detail" in why) return why.detail;
      if (signal.aborted) throw new Error(why.again);
      const pauseMs = Math.min(AGAIN_MS[1], AGAIN_MS[0] * 2 ** tries);
      this.#report(`${event.id} stays open: ${why.again}; running it again in ${pauseMs / 1000} s`);
      await Bun.sleep(pauseMs);
      if (signal.aborted) throw new Error(why.again);
    }
  }

  /** One run. @throws Deferred, Failed */
  async #outcomeOf(event: PushedEvent, isEnding: () => boolean): Promise<{ detail: unknown } | { again: string }> {
    let ended: Ended;
    try {
      ended = await this.#runOnce(event);
    } catch (error) {
      return { again: `the command could not be run: ${(error as Error).message}` };
    }
    const { status, output, errors } = ended;
    if (status === 0) return { detail: detailOf(output) };
    if (this.#withdrawn.delete(event.id)) return { again: "the event was withdrawn" };
    const { rest, after, retry } = wishOf(output);
    const text = errors.slice(-TEXT_CHARACTERS_MAX);
    if (status === DEFERRED_STATUS) throw new Deferred(after, detailOf(rest) ?? (text === "" ? undefined : text));
    if (NOT_RUN_STATUSES.includes(status))
      return { again: `the command could not be run: ${text || `status ${status}`}` };
    if (OUTSIDE_SIGNALS.includes(status - 128)) return { again: `the command was ended by signal ${status - 128}` };
    if (isEnding()) return { again: "the program was stopped while the command ran" };
    throw new Failed(text || rest.slice(-TEXT_CHARACTERS_MAX) || `exit status ${status}`, { after, retry });
  }

  /** Its output goes to files, so that it has ended when it has ended, even if it left processes running. @throws Error */
  async #runOnce({ id, channel, type = "", round = 1, text }: PushedEvent): Promise<Ended> {
    const folder = mkdtempSync(join(tmpdir(), "pere-"));
    const files = ["output", "errors"].map((name) => openSync(join(folder, name), "wx+", 0o600));
    const [output, errors] = files as [number, number];
    rmSync(folder, { recursive: true });
    try {
      const child = Bun.spawn(["/bin/sh", "-c", this.#command], {
        stdin: Buffer.from(text),
        stdout: output,
        stderr: errors,
        env: {
          ...process.env,
          ...{ PERE_EVENT_ID: id, PERE_EVENT_CHANNEL: channel, PERE_EVENT_TYPE: type, PERE_ROUND: String(round) },
        },
      });
      this.#running.set(id, child);
      await child.exited;
      const { exitCode, signalCode } = child;
      const status = exitCode ?? 128 + (SIGNALS[signalCode ?? ""] ?? 0);
      return { status, output: endOf(output), errors: endOf(errors) };
    } finally {
      this.#running.delete(id);
      for (const file of files) closeSync(file);
    }
  }
}
