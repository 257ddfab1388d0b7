/**
 * Which word of a device counts: the transitions between states, rounds and attempts. Every store follows these rules; `judge` is their text in
 * TypeScript.
 *
 * A word moves a device forward: pending → received → working → done or failed. From any of the first three a device may defer the event. When the
 * time of a deferral has come, the next round begins: until a word of that round, the state stays `deferred`, and every word counts as it would
 * from `pending`. Before that time only a final word counts. `missing` and `withdrawn` are the server's; a final word that still comes is late.
 */
import type { LateReason, ReceiptDraft, State, Status } from "./model.ts";
import { AFTER_SECONDS_DEFAULT } from "./model.ts";

/** The words that advance each state. For `deferred`: before the next round. */
export const ADVANCES: Readonly<Record<State, readonly Status[]>> = {
  pending: ["received", "working", "deferred", "done", "failed"],
  received: ["working", "deferred", "done", "failed"],
  working: ["deferred", "done", "failed"],
  deferred: ["done", "failed"],
  missing: ["done", "failed"],
  withdrawn: ["done", "failed"],
  done: [],
  failed: [],
};

/** Milliseconds until the second attempt; each further one takes twice as long, up to the maximum. */
export const BACKOFF_MS = 30_000;
export const BACKOFF_MS_MAX = 3_600_000;
/** Random variation of these times, so that devices that failed together do not try again together. */
export const BACKOFF_JITTER = 0.2;

/**
 * Milliseconds until an attempt that failed is repeated.
 * @param attempt which one failed, from 1
 * @param random from 0 up to 1
 */
export const backoffMs = (attempt: number, random: number): number =>
  Math.min(
    BACKOFF_MS_MAX,
    Math.round(BACKOFF_MS * 2 ** (attempt - 1) * (1 - BACKOFF_JITTER + 2 * BACKOFF_JITTER * random)),
  );

/** A device on an event. */
export interface Standing {
  readonly state: State;
  /** The round of its last word. */
  readonly round: number;
  /** Its failures so far. */
  readonly attempt: number;
  /** While it is deferred: when the next round begins, milliseconds since 1970. Else null. */
  readonly due: number | null;
}

/** A device that has said nothing yet. */
export const PENDING: Standing = { state: "pending", round: 1, attempt: 0, due: null };

/** Whether the next round has begun at this time. */
export const hasBegun = ({ state, due }: Standing, now: number): boolean =>
  state === "deferred" && due !== null && due <= now;

/** The round that has begun last. */
export const roundAt = (standing: Standing, now: number): number => standing.round + (hasBegun(standing, now) ? 1 : 0);

/** The part of a receipt that its judgement depends on. */
export type Word = Pick<ReceiptDraft, "status" | "after" | "round" | "retry">;

/** A word that counts: the device's next standing. */
export interface Step extends Standing {
  readonly state: Status;
}

/**
 * Judges a word.
 * @param attempts how often a device may try the event; null: once
 * @param now the server's time, milliseconds since 1970
 * @returns the next standing, or why there is none
 */
export function judge(
  standing: Standing,
  { status, after, round: answered, retry }: Word,
  attempts: number | null,
  now: number,
  random: () => number,
): Step | "duplicate" | "early" {
  const round = roundAt(standing, now);
  if (answered !== null && answered !== round) return answered > round ? "early" : "duplicate";
  const state = hasBegun(standing, now) ? "pending" : standing.state;
  const isEnded = state === "missing" || state === "withdrawn";
  const attempt = standing.attempt + (status === "failed" ? 1 : 0);
  const isRepeated = status === "failed" && attempts !== null && attempt < attempts && retry && !isEnded;
  const next = isRepeated ? "deferred" : status;
  if (!ADVANCES[state].includes(next)) return "duplicate";
  if (next !== "deferred") return { state: next, round, attempt, due: null };
  const afterMs =
    after !== null ? after * 1000 : isRepeated ? backoffMs(attempt, random()) : AFTER_SECONDS_DEFAULT * 1000;
  return { state: next, round, attempt, due: now + Math.round(afterMs) };
}

/** Why a final word is late, if it is, by the state that it ends. */
export const lateReason = (state: State, ended: LateReason | null): LateReason | null =>
  state === "missing" ? "missing" : state === "withdrawn" ? ended : null;
