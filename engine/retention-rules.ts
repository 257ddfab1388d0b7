/**
 * How much is kept of which channels, as the operator says it: `orders.*:events=1000,seconds=86400;audit:seconds=31536000`.
 *
 * A rule is a channel, a beginning followed by `.*`, or `*`, and what is kept of those: so many events, or as many seconds as they are
 * old, or both. The first rule that fits a channel holds; what it leaves open, and channels that none fits, are as everywhere.
 */
import { CHANNEL } from "./model.ts";

/** The most that may be kept: some years of a busy channel. */
export const KEPT_EVENTS_MAX = 100_000_000;
export const KEPT_SECONDS_MAX = 999_999_999;

/** What is kept of the channels that a pattern fits; null: as everywhere. */
export interface KeepRule {
  readonly pattern: string;
  readonly events: number | null;
  readonly ms: number | null;
}

/** Whether a pattern (a channel, a beginning followed by `.*`, or `*`) is for this channel. */
export const fits = (pattern: string, channel: string): boolean =>
  pattern.endsWith("*") ? channel.startsWith(pattern.slice(0, -1)) : channel === pattern;

/** Reads `PERE_KEEP`. @throws Error with the one line to print */
export function readKeep(text: string): KeepRule[] {
  const rules: KeepRule[] = [];
  for (const part of text.split(";").map((one) => one.trim())) {
    if (part === "") continue;
    const rule = readRule(part);
    const before = rules.find(({ pattern }) => fits(pattern, rule.pattern)); // A beginning fits those that go on from it, too.
    if (before) throw new Error(`PERE_KEEP: ${rule.pattern} never holds, for ${before.pattern} stands before it`);
    rules.push(rule);
  }
  return rules;
}

function readRule(part: string): KeepRule {
  const colon = part.lastIndexOf(":"); // A channel's name may hold some.
  const pattern = part.slice(0, colon).trim();
  const isPattern = pattern === "*" || CHANNEL.test(pattern.endsWith(".*") ? pattern.slice(0, -1) : pattern);
  if (colon === -1 || !isPattern)
    throw new Error(
      `PERE_KEEP must be rules like orders.*:events=1000,seconds=86400 with a ; between them, not "${part}"`,
    );
  const found = new Map<string, number>();
  for (const setting of part.slice(colon + 1).split(",")) {
    const [name = "", value = ""] = setting.split("=").map((side) => side.trim());
    const max = { events: KEPT_EVENTS_MAX, seconds: KEPT_SECONDS_MAX }[name];
    if (max === undefined || found.has(name))
      throw new Error(`PERE_KEEP: ${pattern} takes events=… and seconds=…, each once, not "${setting.trim()}"`);
    if (!/^\d{1,9}$/.test(value) || Number(value) < 1 || Number(value) > max)
      throw new Error(`PERE_KEEP: ${pattern}: ${name} must be a whole number from 1 to ${max}, not "${value}"`);
    found.set(name, Number(value));
  }
  const seconds = found.get("seconds");
  return { pattern, events: found.get("events") ?? null, ms: seconds === undefined ? null : seconds * 1000 };
}
