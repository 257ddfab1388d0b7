/**
 * One budget of work per turn of the event loop, shared by everything that can take long.
 *
 * Code that never leaves the current turn (file reads, rows that are already in memory) would delay every request behind it; `await` alone continues
 * in the same turn. So long work is done in steps, and asks before each of them. As long as the turn has budget left and nobody waits, a step begins
 * at once. Otherwise it waits for a later turn. Each turn serves the kinds of work in rotation, and within a kind whoever waits longest. So ten
 * thousand readers together hold up a request no longer than one of them does.
 *
 * A budget is counted in rows: an entry that is read, encoded or written, a row that is looked at. A limit in milliseconds ends a turn whose rows
 * cost more than usual.
 */

/** Kinds of work that take turns. */
export type WorkKind =
  "open" | "deliver" | "catch-up" | "read" | "watch" | "wait" | "hooks" | "remind" | "beat" | "count";

/** Rows per turn: some milliseconds. */
export const TURN_ROWS = 2_048;
/** How long the work of one turn may take. */
const TURN_MS = 5;
/** A write to a connection counts as much as this many rows. */
export const WRITE_ROWS = 16;
/** Opening a feed counts so much twice: until its device is enrolled, and after that. */
export const OPEN_ROWS = 64;

/** Work that waits for a turn. Returns how many rows it took. `isFirst`: nothing else was done in this turn. */
type Step = (isFirst: boolean) => number;

/** Waiting steps, by kind, in the order in which the kinds are served. */
const waiting = new Map<WorkKind, Step[]>();
let count = 0;
/** What is left of the running turn's budget. */
let rowsLeft = 0;
let until = 0;
/** The next turn renews the budget. */
let isArmed = false;

function arm(): void {
  rowsLeft = TURN_ROWS;
  until = performance.now() + TURN_MS;
  isArmed = true;
  setImmediate(turn);
}

const isSpent = (): boolean => rowsLeft <= 0 || performance.now() >= until;

function turn(): void {
  isArmed = false;
  if (count === 0) return;
  arm();
  for (let isFirst = true; count > 0 && (isFirst || !isSpent()); isFirst = false) {
    const [kind, steps] = waiting.entries().next().value!;
    waiting.delete(kind);
    const step = steps.shift()!;
    if (steps.length > 0) waiting.set(kind, steps); // Behind the other kinds.
    count--;
    rowsLeft -= step(isFirst);
  }
}

function enqueue(kind: WorkKind, step: Step, isAgain = false): void {
  const steps = waiting.get(kind);
  if (!steps) waiting.set(kind, [step]);
  else if (isAgain) steps.unshift(step);
  else steps.push(step);
  count++;
  if (!isArmed) arm();
}

/** Runs a step in a later turn. @param step must not throw; returns how many rows it took */
export function inLaterTurn(kind: WorkKind, step: Step): void {
  enqueue(kind, step);
}

/** Returns at once while the turn has budget left and nobody waits; otherwise in a later turn. @param rows what the next step takes, at most */
export async function yieldToEventLoop(kind: WorkKind, rows: number): Promise<void> {
  if (!isArmed) arm();
  if (count === 0 && !isSpent()) {
    rowsLeft -= rows;
    return;
  }
  for (let isAgain = false; ; isAgain = true) {
    const isFirst = await new Promise<boolean>((resolve) =>
      enqueue(
        kind,
        (first) => {
          resolve(first);
          return rows;
        },
        isAgain,
      ),
    );
    // Several steps were let in together. Those before this one may have used up the turn.
    if (isFirst || performance.now() < until) return;
  }
}
