/**
 * Retention per channel, as configured: `orders.*:events=1000,seconds=86400;audit:seconds=31536000`.
 *
 * A rule is a pattern (a channel, a prefix followed by `.*`, or `*`) with a number of events, an age in seconds, or both. The first matching rule
 * applies. Where a rule sets no value, or no rule matches, the general settings apply.
 */
import { CHANNEL } from "./model.ts";

/** Upper limits: some years of a busy channel. */
export const KEPT_EVENTS_MAX = 100_000_000;
export const KEPT_SECONDS_MAX = 999_999_999;

/** Retention of the channels that match a pattern; null: the general setting. */
export interface KeepRule {
  readonly pattern: string;
  readonly events: number | null;
  readonly ms: number | null;
}

/** Whether a pattern (a channel, a prefix followed by `.*`, or `*`) matches this channel. */
export const fits = (pattern: string, channel: string): boolean =>
  pattern.endsWith("*") ? channel.startsWith(pattern.slice(0, -1)) : channel === pattern;

/** Parses `PERE_KEEP`. @throws Error with a one-line message */
export function readKeep(text: string): KeepRule[] {
  const rules: KeepRule[] = [];
  for (const part of text.split(";").map((one) => one.trim())) {
    if (part === "") continue;
    const rule = readRule(part);
    const before = rules.find(({ pattern }) => fits(pattern, rule.pattern)); // A prefix also matches longer prefixes.
    if (before) throw new Error(`PERE_KEEP: ${rule.pattern} never applies, because ${before.pattern} comes before it`);
    rules.push(rule);
  }
  return rules;
}

function readRule(part: string): KeepRule {
  const colon = part.lastIndexOf(":"); // A channel's name may contain colons.
  const pattern = part.slice(0, colon).trim();
  const isPattern = pattern === "*" || CHANNEL.test(pattern.endsWith(".*") ? pattern.slice(0, -1) : pattern);
  if (colon === -1 || !isPattern)
    throw new Error(
      `PERE_KEEP: "${part}" is not a rule; write rules like orders.*:events=1000,seconds=86400, separated by ;`,
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
