/**
 * Whether an event names a device. Events are shared by all followers of a log, and an event that is pushed again may name very many devices: then each
 * follower looks into one set, which is made once.
 */

/** Shorter lists are searched. */
const SET_NAMES_MIN = 16;

const sets = new WeakMap<readonly string[], ReadonlySet<string>>();

export function names(to: readonly string[], device: string): boolean {
  if (to.length < SET_NAMES_MIN) return to.includes(device);
  let set = sets.get(to);
  if (!set) sets.set(to, (set = new Set(to)));
  return set.has(device);
}
