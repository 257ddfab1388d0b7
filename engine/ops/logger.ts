/**
 * What PERE says about itself: one JSON object a line on standard error, with `level`, `time` and `msg`; standard output is for the first lines of
 * a start, which scripts wait for. `pino` writes the lines. Whatever is given to it, a line is one line, short enough for those who collect
 * them, and without tokens: each text in it passes `redact`, the ones inside of errors too.
 *
 * Whoever reads the log too slowly loses lines, and the service goes on; what was written until an orderly end is written out before it.
 *
 * This file never throws into what it was told of, and never writes what publishers push, which is others' business, save where
 * somebody tells it at `debug`.
 */
import pino from "pino";
import { redact } from "../auth/tokens.ts";

/** From this on lines are written. */
export type Level = "debug" | "info" | "warn" | "error";

/** What stands in a line beside its message: values of any kind, errors as people read them. */
export type Fields = Readonly<Record<string, unknown>>;

/** Standard error. */
const DESTINATION = 2;
/** One text in a line: an error with its causes and their stacks. */
const TEXT_CHARACTERS_MAX = 8 * 1024;
/** A line: collectors cut at 16 KiB (Docker) or more, and what is cut is no JSON. Longer ones keep the beginning of their message. */
const LINE_CHARACTERS_MAX = 16 * 1024;
/** Of that beginning; its characters take six when they are escaped. */
const BEGINNING_CHARACTERS_MAX = 2 * 1024;
/** Errors in a text, the causes of causes included; what one needs to know is in the first few. */
const ERRORS_MAX = 16;
/** Bytes not yet written, where the log is read slowly. */
const UNWRITTEN_BYTES_MAX = 1024 * 1024;
/** Causes are told once in this time, with how many there were: thousands are refused while a disk is full. */
export const QUIET_MS = 1_000;

/** An error that comes again within this time is one incident: a page that can't be read is asked for by every device that comes back. */
export const INCIDENT_MS = 60_000;

/** Where lines go that tests want to see. */
export interface Destination {
  write(line: string): void;
}

export interface Logger {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
  /** Tells of an error that is not explained to whom it happened; of the same one again only after `INCIDENT_MS`. @returns the id that the line has, for him to ask by */
  incident(error: unknown): string;
  /**
   * Tells why something was refused: the first time at once, then in each `QUIET_MS` the last one only, with the number of `others` that it stands
   * for.
   */
  cause(message: string, cause: unknown): void;
}

/** A text as it may be written. Tokens go before the cut, which could make one unrecognisable. */
function clean(text: string): string {
  const redacted = redact(text);
  const more = redacted.length - TEXT_CHARACTERS_MAX;
  return more > 0 ? `${redacted.slice(0, TEXT_CHARACTERS_MAX)}… (${more} more)` : redacted;
}

const cleaned = (_name: string, value: unknown): unknown => (typeof value === "string" ? clean(value) : value);

/** A line as it may be written: all texts in it cleaned, which can't be done to the JSON as it stands, and the whole cut by its fields. */
function cleanLine(line: string): string {
  const parsed = JSON.parse(line) as { level: Level; time: string; msg: string };
  const text = JSON.stringify(parsed, cleaned);
  if (text.length <= LINE_CHARACTERS_MAX) return `${text}\n`;
  const { level, time, msg } = parsed;
  return `${JSON.stringify({ level, time, msg: clean(msg).slice(0, BEGINNING_CHARACTERS_MAX), cut: text.length })}\n`;
}

/**
 * An error as people read it: with its code, its stack, and what caused it, each once. `Bun.inspect` would put the source beside it, which in an
 * executable is one line of a megabyte.
 */
function errorText(error: Error): string {
  const errors = new Set<unknown>([error]); // Whatever is added while it is gone through comes in its turn.
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

/** What an error says; null: it throws when it is looked at. */
function textOf(error: unknown): string | null {
  try {
    return error instanceof Error ? errorText(error) : Bun.inspect(error);
  } catch {
    return null;
  }
}

/** What JSON has a form for. */
const IN_JSON: readonly string[] = ["string", "number", "boolean", "object"];

/** A value as it can be written. */
function shown(value: unknown): unknown {
  if (value instanceof Error) return errorText(value);
  return IN_JSON.includes(typeof value) ? value : Bun.inspect(value);
}

const shownFields = (fields: Fields): Fields =>
  Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, shown(value)]));

/** Opens the log: standard error, unless a test brings something else. */
export function openLog(
  level: Level = "info",
  // Not synchronous: a write to a pipe that nobody reads would hold the whole service.
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
      // A value that throws when it is looked at: a getter, a proxy.
      lines[at]({ unreadable: Object.keys(fields) }, message);
    }
  };

  /** The newest cause that was not told, and the number of those before it. */
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
