/**
 * Rights: what a token's `pere` claim allows on which channels.
 *
 * A right is a list of patterns: channels, prefixes followed by `.*`, or `*` alone. Anything else is rejected with a reason, so that a mistyped right
 * does not go unnoticed.
 *
 * This file knows no tokens, keys or routes.
 */
import { CHANNEL, PereError } from "../model.ts";
import type { ChannelScope } from "../store.ts";
import { readTags, type Tags } from "../tags.ts";

/** Patterns per right; use a common prefix for more channels. */
const PATTERNS_MAX = 100;

/** On a channel: `push` allows everything a publisher does; `feed` allows following it and sending receipts. */
export type Right = "push" | "feed";

/** What a token allows, to whom, and until when: milliseconds since 1970. */
export interface Grant {
  /** The token's subject: a device's name, or any text if no device is meant; null: the bearer may act as any device. */
  readonly subject: string | null;
  /** The token's `exp`, without the tolerance; `Infinity`: it does not expire. */
  readonly expires: number;
  /** The tags that a device gets when it opens a feed with this token; null: they stay as they are. */
  readonly tags: Tags | null;
  /** Whether it has the right on this channel; null: on any channel. */
  may(right: Right, channel: string | null): boolean;
  /** The channels that it has the right on; null: all. */
  scope(right: Right): ChannelScope | null;
}

/** No key is configured: everything is allowed. */
export const OPEN: Grant = { subject: null, expires: Infinity, tags: null, may: () => true, scope: () => null };

/** Parsed patterns: all channels, or these names and prefixes. */
interface Patterns extends ChannelScope {
  readonly every: boolean;
}

const NO_PATTERNS: Patterns = { every: false, names: [], prefixes: [] };

const quoted = (text: string): string => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text);

/** Parses a list of `*`, channels and `prefix.*`. @returns the parsed list, or a message that says what is wrong */
function readPatterns(right: Right, list: unknown): Patterns | string {
  if (list === undefined) return NO_PATTERNS;
  if (!Array.isArray(list)) return `pere.${right} must be a list of channels`;
  if (list.length > PATTERNS_MAX) return `pere.${right} has more than ${PATTERNS_MAX} patterns`;
  const names: string[] = [];
  const prefixes: string[] = [];
  let every = false;
  for (const pattern of list as unknown[]) {
    if (typeof pattern !== "string") return `pere.${right} must contain only strings`;
    if (pattern === "*") every = true;
    else if (CHANNEL.test(pattern)) names.push(pattern);
    else if (pattern.endsWith(".*") && CHANNEL.test(pattern.slice(0, -1))) prefixes.push(pattern.slice(0, -1));
    else return `pere.${right}: ${quoted(pattern)} is not a channel, a prefix followed by .*, or * alone`;
  }
  return { every, names, prefixes };
}

/** Compares no more characters than the patterns have. Null: whether there is any pattern. */
const matches = ({ every, names, prefixes }: Patterns, channel: string | null): boolean =>
  every ||
  (channel === null
    ? names.length + prefixes.length > 0
    : names.includes(channel) || prefixes.some((prefix) => channel.startsWith(prefix)));

const rightsOf = (push: Patterns, feed: Patterns): Pick<Grant, "may" | "scope"> => {
  const of = (right: Right): Patterns => (right === "push" ? push : feed);
  return {
    may: (right, channel) => matches(of(right), channel),
    scope: (right) => (of(right).every ? null : of(right)),
  };
};

/** Parses the `pere` claim. @returns what a grant has of it, or a message that says what is wrong */
export function readRights(claim: unknown): Pick<Grant, "may" | "scope" | "tags"> | string {
  if (claim === undefined) return { ...rightsOf(NO_PATTERNS, NO_PATTERNS), tags: null };
  if (typeof claim !== "object" || claim === null || Array.isArray(claim)) return "pere must be an object";
  const { push: pushList, feed: feedList, tags: tagList, ...others } = claim as Record<string, unknown>;
  const [other] = Object.keys(others);
  if (other !== undefined) return `pere.${quoted(other)} is unknown; pere has the rights push and feed, and tags`;
  const push = readPatterns("push", pushList);
  if (typeof push === "string") return push;
  const feed = readPatterns("feed", feedList);
  if (typeof feed === "string") return feed;
  try {
    return { ...rightsOf(push, feed), tags: tagList === undefined ? null : readTags(tagList, "pere.tags") };
  } catch (error) {
    if (error instanceof PereError) return error.message;
    throw error;
  }
}

/** @throws PereError forbidden: the grant does not have the right on the channel; null: on any channel */
export function demand(grant: Grant, right: Right, channel: string | null): void {
  if (grant.may(right, channel)) return;
  const message = `gives no right to ${right} on ${channel ?? "any channel"}`;
  throw new PereError("forbidden", `this token ${message}`, [{ path: "token", message: `it ${message}` }]);
}
