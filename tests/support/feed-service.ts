/**
 * A service for the tests of a file about feeds, and channels on it that no other test uses.
 */
import { afterAll, beforeAll } from "bun:test";
import type { Service } from "../../index.ts";
import { type Answer, ask, start } from "./harness.ts";

export let pere: Service;

/** Starts it before the tests of the file that calls this, and stops it after them. */
export function feedService(): void {
  beforeAll(async () => void (pere = await start()));
  afterAll(() => pere.stop());
}

let count = 0;

/** A channel that no other test uses. */
export const fresh = (): string => `feed-${++count}`;

/** Where its feed is. */
export const feed = (channel: string, query = ""): string => `${pere.url}/feed/${channel}${query}`;

/** A long-poll of it. */
export const poll = (channel: string, query = "", headers: Record<string, string> = {}): Promise<Answer> =>
  ask(feed(channel, query), { headers: { Accept: "application/json", ...headers } });
