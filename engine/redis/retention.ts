/**
 * The list of channels in which retention has something to do, by when, shared by the instances on one Redis.
 *
 * In a Cluster the list and most channels are on different nodes, so it can't be changed in the same script as a channel. A push to a channel that kept
 * nothing adds it at once; so does a retirement. When a channel is trimmed, it is listed by the age of its oldest event. What gets lost in between, or
 * with the server, is added when all channels are trimmed: after a loss of the connection, and by each instance that takes over.
 */
import type { Redis } from "./connection.ts";
import type { SCRIPTS } from "./scripts.ts";

export class TrimmableChannels {
  readonly #link: Redis;
  readonly #key: string;
  readonly #scripts: typeof SCRIPTS;
  /** When the channels that were found last were to be trimmed. */
  #found = new Map<string, string>();
  #isUnverified = false;

  /** @param key of the list */
  constructor(link: Redis, key: string, scripts: typeof SCRIPTS) {
    this.#link = link;
    this.#key = key;
    this.#scripts = scripts;
  }

  /** The server may be in another state. */
  markUnverified(): void {
    this.#isUnverified = true;
  }

  /** Retention has something to do in a channel from now on. The change itself is stored; if this fails, it is found as described above. */
  async add(channel: string, now: number): Promise<void> {
    await this.#link.send("ZADD", this.#key, String(now), channel).catch(() => {});
  }

  /** Implements `Store.trimmable`. */
  async find(now: number, limit: number): Promise<readonly string[] | null> {
    if (this.#isUnverified) {
      this.#isUnverified = false;
      return null;
    }
    const found = (await this.#link.run(this.#scripts.trimmable, [this.#key], [now, limit])) as readonly string[];
    this.#found = new Map();
    for (let at = 0; at < found.length; at += 2) this.#found.set(found[at]!, found[at + 1]!);
    return [...this.#found.keys()];
  }

  /** A channel was trimmed. @param next when it has something to do next; null: not before another event, so that it leaves the list */
  async trimmed(channel: string, next: number | null): Promise<void> {
    const foundAt = this.#found.get(channel);
    if (next !== null) await this.#link.send("ZADD", this.#key, String(next), channel);
    else if (foundAt !== undefined) await this.#link.run(this.#scripts.unlist, [this.#key], [channel, foundAt]);
  }
}
