/**
 * How far a device has come on an event, for tests in which nothing is deferred or withdrawn.
 */
import type { State } from "../../engine/model.ts";

const ORDER: readonly State[] = ["pending", "received", "working", "missing"];

/** Grows with each word that counts; `done` and `failed` are equal. */
export const progress = (state: State): number => (ORDER.includes(state) ? ORDER.indexOf(state) : ORDER.length);
