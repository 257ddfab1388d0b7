/**
 * Loaded into a service under measurement before its own code: measures how long its event loop is away, and tells the generator when asked.
 *
 * On a machine with other work a turn is long because the process was not given a core. So the CPU time of a turn is told, too.
 */

/** A timer that is later than this was held up. */
const TICK_MS = 1;

/** In milliseconds, by the clock and of CPU, all threads together. They may be of different turns. */
export interface LongestTurn {
  readonly ms: number;
  readonly cpuMs: number;
}

let before = performance.now();
let usage = process.cpuUsage();
let longest = { ms: 0, cpuMs: 0 };
const timer = setInterval(() => {
  const now = performance.now();
  const used = process.cpuUsage();
  const cpuMs = (used.user + used.system - usage.user - usage.system) / 1000;
  longest = { ms: Math.max(longest.ms, now - before - TICK_MS), cpuMs: Math.max(longest.cpuMs, cpuMs) };
  before = now;
  usage = used;
}, TICK_MS);
timer.unref();

/** Any message: answers with the longest turn since the last one. */
process.on("message", () => {
  process.send!(longest);
  longest = { ms: 0, cpuMs: 0 };
});
