/**
 * Chance that can be had again: tests that throw dice print their seed, and `SEED=n` plays the same decisions once more (the timing of
 * networks and processes stays its own).
 */

/** From the environment, or a new one. */
export const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Numbers from 0 up to 1. Mulberry32: small, and the same everywhere. */
export function chance(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
