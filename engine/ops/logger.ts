/**
 * PERE's log: one JSON object per line on standard error, with `level`, `time` and `msg`. Standard output is for the first lines of a start, which
 * scripts wait for. `pino` writes the lines. Every entry is one line, short enough for log collectors, and contains no tokens: every text in it
 * passes `redact`, including those inside errors.
 *
 * If the log is read too slowly, lines are lost and the service continues. On an orderly exit everything is written out first.
 *
 * Never throws into its caller, and never writes publishers' data, except what is logged at `debug`.
 */
import pino from "pino";
import { redact } from "../auth/tokens.ts";

/** The lowest level that is written. */
export type Level = "debug" | "info" | "warn" | "error";

/** The fields of a line besides its message: values of any kind, and errors. */
export type Fields = Readonly<Record<string, unknown>>;

/** Standard error. */
const DESTINATION = 2;
/** The text of an error with its causes and their stacks, in one line. */
const TEXT_CHARACTERS_MAX = 8 * 1024;
/**
 * Maximum line length: collectors cut lines at 16 KiB (Docker) or more, which breaks the JSON. Longer lines keep only the beginning of their message.
 */
const LINE_CHARACTERS_MAX = 16 * 1024;
/** Length of that beginning; an escaped character takes six. */
const BEGINNING_CHARACTERS_MAX = 2 * 1024;
/** Errors in one text, including causes; the first few are enough. */
const ERRORS_MAX = 16;
/** Limit of bytes not yet written if the log is read slowly. */
const UNWRITTEN_BYTES_MAX = 1024 * 1024;
/** Each cause is logged once in this time, with a count: while a disk is full, thousands of requests fail. */
export const QUIET_MS = 1_000;

/** The same error within this time is one incident: a page that can't be read is requested by every reconnecting device. */
export const INCIDENT_MS = 60_000;

/** Receives the lines in tests. */
export interface Destination {
  write(line: string): void;
}

export interface Logger {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
  /**
   * Logs an error whose cause is hidden from the caller; the same error again only after `INCIDENT_MS`. @returns the id in the log line, for the
   * caller to quote
   */
  incident(error: unknown): string;
  /** Logs why something was refused: the first time at once, then only the last one per `QUIET_MS`, with the number of `others`. */
  cause(message: string, cause: unknown): void;
}

/** A text without tokens, cut to its limit. Tokens are removed first, because a cut one might not be recognised. */
function clean(text: string): string {
  const redacted = redact(text);
  const more = redacted.length - TEXT_CHARACTERS_MAX;
  return more > 0 ? `${redacted.slice(0, TEXT_CHARACTERS_MAX)}… (${more} more)` : redacted;
}

const cleaned = (_name: string, value: unknown): unknown => (typeof value === "string" ? clean(value) : value);

/**
 * A line for the log: all texts in it are redacted, field by field, before it is turned into JSON, and fields are shortened if the line is too long.
 */
function cleanLine(line: string): string {
  const parsed = JSON.parse(line) as { level: Level; time: string; msg: string };
  const text = JSON.stringify(parsed, cleaned);
  if (text.length <= LINE_CHARACTERS_MAX) return `${text}\n`;
  const { level, time, msg } = parsed;
  return `${JSON.stringify({ level, time, msg: clean(msg).slice(0, BEGINNING_CHARACTERS_MAX), cut: text.length })}\n`;
}

/**
 * An error as text: its code, its stack and its causes, each once. `Bun.inspect` would add source code, which in an executable is a line of a
 * megabyte.
 */
function errorText(error: Error): string {
  const errors = new Set<unknown>([error]); // Errors added during the loop are visited too.
  const texts: string[] = [];
  for (const one of errors) {
    if (texts.length === ERRORS_MAX) break;
    if (!(one instanceof Error)) {
      texts.push(Bun.inspect(one));
      continue;
    }
    const code = "code" in one && typeof one.code === "string" ? ` [${one.code}]` : "";
    const frames = (one.stack ?? "").split("\n").filter((line) => /^ +at /.test(line));
    texts.push([`${one.name}${code}: ${one.message}`, ...frames].join("\n"));
    if (one.cause !== undefined) errors.add(one.cause);
    if (one instanceof AggregateError) for (const part of one.errors.slice(0, ERRORS_MAX)) errors.add(part);
  }
  return texts.join("\ncaused by ");
}

/** An error's text; null: reading it throws. */
function textOf(error: unknown): string | null {
  try {
    return error instanceof Error ? errorText(error) : Bun.inspect(error);
  } catch {
    return null;
  }
}

/** Values that JSON can represent. */
const IN_JSON: readonly string[] = ["string", "number", "boolean", "object"];

/** A value in a form that can be logged. */
function shown(value: unknown): unknown {
  if (value instanceof Error) return errorText(value);
  return IN_JSON.includes(typeof value) ? value : Bun.inspect(value);
}

const shownFields = (fields: Fields): Fields =>
  Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, shown(value)]));

/** Opens the log: standard error, or a test's destination. */
export function openLog(
  level: Level = "info",
  // Not synchronous: writing to a pipe that no one reads would block the service.
  destination: Destination = pino.destination({ dest: DESTINATION, sync: false, maxLength: UNWRITTEN_BYTES_MAX }),
): Logger {
  const lines = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (name) => ({ level: name }) },
      hooks: { streamWrite: cleanLine },
    },
    destination,
  );
  const write = (at: Level, message: string, fields: Fields = {}): void => {
    if (!lines.isLevelEnabled(at)) return;
    try {
      lines[at](shownFields(fields), message);
    } catch {
      // A value that throws when it is read: a getter, a proxy.
      lines[at]({ unreadable: Object.keys(fields) }, message);
    }
  };

  /** The newest cause that was not logged, and the number of those before it. */
  let untold: { readonly message: string; readonly cause: unknown; readonly others: number } | undefined;
  let quiet: Timer | undefined;
  const tell = (message: string, cause: unknown, others: number): void => {
    write("warn", message, others === 0 ? { cause } : { cause, others });
    untold = undefined;
    quiet = setTimeout(() => {
      quiet = undefined;
      if (untold) tell(untold.message, untold.cause, untold.others);
    }, QUIET_MS);
    quiet.unref();
  };

  let last: { text: string | null; incident: string; at: number } = { text: null, incident: "", at: 0 };

  return {
    debug: (message, fields) => write("debug", message, fields),
    info: (message, fields) => write("info", message, fields),
    warn: (message, fields) => write("warn", message, fields),
    error: (message, fields) => write("error", message, fields),
    incident(error) {
      const text = textOf(error);
      const at = performance.now();
      if (text !== null && text === last.text && at < last.at + INCIDENT_MS) return last.incident;
      const incident = crypto.randomUUID();
      last = { text, incident, at };
      write("error", "something went wrong in PERE", { incident, error });
      return incident;
    },
    cause(message, cause) {
      if (quiet) untold = { message, cause, others: untold ? untold.others + 1 : 0 };
      else tell(message, cause, 0);
    },
  };
}
