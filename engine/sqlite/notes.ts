/**
 * Notes of the receipts log as stored: a JSON array of the kind, the tally and, for a withdrawal, how that was. Files of earlier versions have the two
 * counts of a complete event in columns of their own.
 */
import { type EventNote, freshTally, type Tally, type Withdrawal } from "../model.ts";

const FIELDS = [
  "addressed",
  "received",
  "working",
  "deferred",
  "missing",
  "done",
  "failed",
  "withdrawn",
] as const satisfies readonly (keyof Tally)[];

export const noteColumn = (note: EventNote): string =>
  JSON.stringify([
    note.kind,
    FIELDS.map((field) => note.tally[field]),
    note.tally.isOver ? 1 : 0,
    ...(note.kind === "withdrawn" ? [note.withdrawal] : []),
  ]);

/** @param done,failed the counts in a file of an earlier version */
export function readNote(text: string | null, done: number | null, failed: number | null): EventNote | null {
  if (text === null)
    return done === null || failed === null ? null : { kind: "complete", tally: finalTally(done, failed) };
  const [kind, counts, isOver, withdrawal] = JSON.parse(text) as [EventNote["kind"], number[], number, Withdrawal];
  const tally = {
    ...(Object.fromEntries(FIELDS.map((field, index) => [field, counts[index]!])) as Omit<Tally, "isOver">),
    isOver: isOver === 1,
  };
  return kind === "withdrawn" ? { kind, tally, withdrawal } : { kind, tally };
}

/** The tally of an event on which every device has a final word. */
const finalTally = (done: number, failed: number): Tally => ({ ...freshTally(done + failed), done, failed });
