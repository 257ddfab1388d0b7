/**
 * A clock for promises about time: it counts the time that this process had to keep them. On a busy machine a process stands still for a while, and so
 * does this clock; a call that waits for something else takes as long by this clock as by any other.
 */

/** What needs Redis is answered within 3 s: contract. The rest is for what the answers cost; a call that waits twice is found all the same. */
export const ANSWER_MS = 5_500;
/** What is refused without a try is refused within this: less than a try takes. */
export const AT_ONCE_MS = 2_500;

const TICK_MS = 5;
/** The most that counts between two ticks: a tick that comes later than that was held up. */
const COUNTED_MS = 25;

let countedMs = 0;
let tickedAt = performance.now();

const sinceTick = (): number => Math.min(performance.now() - tickedAt, COUNTED_MS);

setInterval(() => {
  countedMs += sinceTick();
  tickedAt = performance.now();
}, TICK_MS).unref();

/** Milliseconds since some moment, without the time in which this process did not run. */
export const ownMs = (): number => countedMs + sinceTick();
