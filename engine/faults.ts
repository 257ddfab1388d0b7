/**
 * What nobody expected: a mistake of PERE's own, in work that nobody waits for (a timer, a hook, a wake-up, a feed).
 *
 * A `PereError` is an answer and no fault, unless it is `inside`: the store is away, and is asked again. Everything else is told to the log, with an id, and ends
 * only what it happened to: one feed, one turn of a timer, never the rest of a list or the next turn.
 */
import { PereError } from "./model.ts";

/** Tells the log. Never throws. */
export type Report = (fault: unknown) => void;

/** Where nobody says otherwise. */
export const onConsole: Report = (fault) => console.error(fault);

const isMistake = (error: unknown): boolean =>
  error instanceof TypeError ||
  error instanceof RangeError ||
  error instanceof ReferenceError ||
  error instanceof SyntaxError;

/** Tells of an error where it is a fault, or where a fault is what the store was "away" for. */
export function unexpected(report: Report, error: unknown): void {
  if (!(error instanceof PereError) || error.code === "inside") report(error);
  else if (isMistake(error.cause)) report(error.cause);
}

/** Runs a step that must not keep others from theirs. False: it failed, and that was told. */
export function attempt(report: Report, step: () => void): boolean {
  try {
    step();
    return true;
  } catch (error) {
    unexpected(report, error);
    return false;
  }
}
