/**
 * Unexpected errors: bugs in PERE's own code, in work that no request waits for (a timer, a hook, a wake-up, a feed).
 *
 * A `PereError` is an answer and not a fault, unless its code is `inside`. Everything else is logged with an id. A fault ends only what it happened
 * to: one feed or one run of a timer, never the rest of a list or the next run.
 */
import { PereError } from "./model.ts";

/** Logs an error. Never throws. */
export type Report = (fault: unknown) => void;

/** The default report. */
export const onConsole: Report = (fault) => console.error(fault);

const isMistake = (error: unknown): boolean =>
  error instanceof TypeError ||
  error instanceof RangeError ||
  error instanceof ReferenceError ||
  error instanceof SyntaxError;

/** Reports an error if it is a fault, or if a fault caused its "away". */
export function unexpected(report: Report, error: unknown): void {
  if (!(error instanceof PereError) || error.code === "inside") report(error);
  else if (isMistake(error.cause)) report(error.cause);
}

/** Runs a step whose failure must not stop others. False: it failed and was reported. */
export function attempt(report: Report, step: () => void): boolean {
  try {
    step();
    return true;
  } catch (error) {
    unexpected(report, error);
    return false;
  }
}
