/**
 * Rights: what a token's `pere` claim allows on which channels.
 *
 * A right is a list of patterns: channels, beginnings followed by `.*`, or `*` alone. Whatever isn't understood is refused with a reason, so
 * that nobody believes in a right that doesn't work.
 *
 * This file knows no token, no key and no route.
 */
import { CHANNEL, PereError } from "../model.ts";

/** Patterns a right; what needs more is a pattern of its own. */
const PATTERNS_MAX = 100;

/** On a channel: `push` is all that a publisher does, `feed` is following it and giving receipts. */
export type Right = "push" | "feed";

/** What a token allows, to whom, and until when: milliseconds since 1970. */
export interface Grant {
  /** Whose token it is: a device's name, or any text where no device is meant; null: the bearer is whichever device it says. */
  readonly subject: string | null;
  /** The token's `exp` as it stands, without the tolerance; `Infinity` where nothing expires. */
  readonly expires: number;
  /** On this channel; null: on some channel or other. */
  may(right: Right, channel: string | null): boolean;
}

/** Everybody may everything: no key is configured. */
export const OPEN: Grant = { subject: null, expires: Infinity, may: () => true };

/** A list of patterns, made ready: every channel, or these names and what begins with one of these. */
interface Patterns {
  readonly every: boolean;
  readonly names: readonly string[];
  readonly beginnings: readonly string[];
}

const NO_PATTERNS: Patterns = { every: false, names: [], beginnings: [] };

const quoted = (text: string): string => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text);

/** A list of `*`, channels and `beginning.*`. @returns it made ready, or in one sentence why not */
function readPatterns(right: Right, list: unknown): Patterns | string {
  if (list === undefined) return NO_PATTERNS;
  if (!Array.isArray(list)) return `pere.${right} must be a list of channels`;
  if (list.length > PATTERNS_MAX) return `pere.${right} holds more than ${PATTERNS_MAX} patterns`;
  const names: string[] = [];
  const beginnings: string[] = [];
  let every = false;
  for (const pattern of list as unknown[]) {
    if (typeof pattern !== "string") return `pere.${right} must hold texts only`;
    if (pattern === "*") every = true;
    else if (CHANNEL.test(pattern)) names.push(pattern);
    else if (pattern.endsWith(".*") && CHANNEL.test(pattern.slice(0, -1))) beginnings.push(pattern.slice(0, -1));
    else return `pere.${right}: ${quoted(pattern)} is not a channel, a beginning followed by .*, or * alone`;
  }
  return { every, names, beginnings };
}

/** Compares no more characters than the patterns have. Null: there is any pattern. */
const matches = ({ every, names, beginnings }: Patterns, channel: string | null): boolean =>
  every ||
  (channel === null
    ? names.length + beginnings.length > 0
    : names.includes(channel) || beginnings.some((beginning) => channel.startsWith(beginning)));

/** The `pere` claim. @returns the question that a grant answers, or in one sentence why not */
export function readRights(claim: unknown): Grant["may"] | string {
  if (claim === undefined) return () => false;
  if (typeof claim !== "object" || claim === null || Array.isArray(claim)) return "pere must be an object";
  const { push: pushList, feed: feedList, ...others } = claim as Record<string, unknown>;
  const [other] = Object.keys(others);
  if (other !== undefined) return `pere.${quoted(other)} is not a right; there are push and feed`;
  const push = readPatterns("push", pushList);
  if (typeof push === "string") return push;
  const feed = readPatterns("feed", feedList);
  if (typeof feed === "string") return feed;
  return (right, channel) => matches(right === "push" ? push : feed, channel);
}

/** @throws PereError forbidden, unless the grant has the right on the channel; null: on any at all */
export function demand(grant: Grant, right: Right, channel: string | null): void {
  if (grant.may(right, channel)) return;
  const message = `gives no right to ${right} on ${channel ?? "any channel"}`;
  throw new PereError("forbidden", `this token ${message}`, [{ path: "token", message: `it ${message}` }]);
}
