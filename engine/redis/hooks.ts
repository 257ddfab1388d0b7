/**
 * Hooks in Redis: their settings, their cursors in the receipts log, and the calls that are pending or were given up. Each hook is a hash and its
 * deliveries are another one, both in their channel's slot. A separate set lists the channels with hooks; outdated members are ignored.
 */
import { PereError } from "../model.ts";
import type { RedisAttention } from "./attention.ts";
import type { Keys } from "./keys.ts";
import type { Redis, Reply } from "./connection.ts";
import { HOOK_FIELDS, type Script, SCRIPTS } from "./scripts.ts";
import {
  type Delivered,
  type Delivery,
  FORMER_SECRETS_MAX,
  type Hook,
  type HookDraft,
  HOOKS_MAX,
  type HookKind,
  type Progress,
  readFormer,
} from "../store.ts";
import { yieldToEventLoop } from "../yield.ts";

/** Channels whose hooks are read at once, and what each of them counts: two or more calls. */
const READ_CHANNELS = 64;
const CHANNEL_ROWS = 32;

/** What deliveries stored by earlier versions don't have. */
const EARLIER: Pick<Delivery, "tries"> = { tries: [] };

/** Runs a script that may create its channel, with keys in addition to the channel's. */
type Make = (
  script: Script,
  channel: string,
  values: readonly (string | number)[],
  keys: readonly string[],
) => Promise<readonly Reply[]>;

function hookOf(channel: string, name: string, fields: readonly Reply[]): Hook {
  const [url, secret, kinds, createdAt, epoch, seq, disabled, revision, former, delivered] =
    fields as readonly string[];
  return {
    channel,
    name,
    url: url!,
    secret: secret!,
    former: readFormer(former ?? null),
    on: kinds!.split(",") as HookKind[],
    createdAt: Number(createdAt),
    cursor: { epoch: epoch!, seq: Number(seq) },
    disabled: disabled ?? null,
    lastDelivered: delivered == null ? null : (JSON.parse(delivered) as Delivered),
    revision: Number(revision),
  };
}

export class RedisHooks {
  readonly #link: Redis;
  readonly #hooked: string;
  readonly #keys: (channel: string) => Keys;
  readonly #make: Make;
  readonly #attention: RedisAttention;

  /** @param hooked key of the set of channels with hooks */
  constructor(link: Redis, hooked: string, keys: (channel: string) => Keys, attention: RedisAttention, make: Make) {
    this.#link = link;
    this.#attention = attention;
    this.#hooked = hooked;
    this.#keys = keys;
    this.#make = make;
  }

  /** @throws PereError refused: the channel has the maximum number of hooks */
  async put(channel: string, draft: HookDraft, fresh: string, now: number): Promise<{ hook: Hook; created: boolean }> {
    const { name, url, secret, on } = draft;
    const { hooks, hook } = this.#keys(channel);
    const values = [name, url, secret ?? "", on.join(","), fresh, now, HOOKS_MAX, FORMER_SECRETS_MAX];
    const [, [, created, fields]] = await Promise.all([
      this.#link.send("SADD", this.#hooked, channel),
      this.#make(SCRIPTS.putHook, channel, values, [hooks, hook(name)]),
    ]);
    if (created === -1) throw new PereError("refused", `a channel has at most ${HOOKS_MAX} hooks`);
    if (created !== 1) await this.#note(channel, name);
    return { hook: hookOf(channel, name, fields as readonly Reply[]), created: created === 1 };
  }

  async drop(channel: string, name: string): Promise<boolean> {
    const { hooks, hook, deliveries } = this.#keys(channel);
    const isDropped = (await this.#link.run(SCRIPTS.dropHook, [hooks, hook(name), deliveries(name)], [name])) === 1;
    await this.#attention.noteHook(channel, name, 0, null);
    return isDropped;
  }

  /** The hooks of a channel, by name; all hooks if `channel` is null. */
  async list(channel: string | null): Promise<Hook[]> {
    if (channel === null) return this.#all();
    const { hooks, hook } = this.#keys(channel);
    const names = await this.#members(hooks);
    const found = await Promise.all(names.map((name) => this.#link.send("HMGET", hook(name), ...HOOK_FIELDS)));
    return found.flatMap((fields, n) => {
      const [url] = fields as readonly Reply[];
      return url === null ? [] : [hookOf(channel, names[n]!, fields as readonly Reply[])];
    });
  }

  /** All hooks, read in steps. */
  async #all(): Promise<Hook[]> {
    const channels = await this.#members(this.#hooked);
    const found: Hook[] = [];
    for (let at = 0; at < channels.length; at += READ_CHANNELS) {
      await yieldToEventLoop("hooks", READ_CHANNELS * CHANNEL_ROWS);
      const some = await Promise.all(channels.slice(at, at + READ_CHANNELS).map((one) => this.list(one)));
      found.push(...some.flat());
    }
    return found;
  }

  async #members(key: string): Promise<string[]> {
    return [...((await this.#link.send("SMEMBERS", key)) as Iterable<string>)].sort();
  }

  /** Oldest first. */
  async deliveries(channel: string, name: string): Promise<Delivery[]> {
    const found = (await this.#link.send("HVALS", this.#keys(channel).deliveries(name))) as readonly string[];
    return found
      .map((text): Delivery => ({ ...EARLIER, ...(JSON.parse(text) as Delivery) }))
      .sort((a, b) => a.createdAt - b.createdAt || (a.id < b.id ? -1 : 1));
  }

  /** Lists a hook that is in trouble, or no longer. The change itself is stored; if Redis fails now, it is listed with its next change. */
  async #note(channel: string, name: string): Promise<void> {
    const found = await Promise.all([
      this.deliveries(channel, name),
      this.#link.send("HGET", this.#keys(channel).hook(name), "disabled"),
    ]).catch(() => null);
    if (found === null) return;
    const givenUp = found[0].filter(({ nextAt }) => nextAt === null).length;
    await this.#attention.noteHook(channel, name, givenUp, found[1] as string | null);
  }

  /** Implements `Store.progress`. */
  async progress(channel: string, name: string, fence: number | null, progress: Progress): Promise<boolean> {
    const { of = "", cursor, disabled, lastDelivered, keep = [], drop = [] } = progress;
    const { hook, deliveries } = this.#keys(channel);
    const reason = disabled === null ? "-" : (disabled ?? "");
    const delivered = lastDelivered ? JSON.stringify(lastDelivered) : "";
    const values = [of, fence ?? "", cursor?.epoch ?? "", cursor?.seq ?? "", reason, delivered, keep.length];
    values.push(...keep.flatMap((delivery) => [delivery.id, JSON.stringify(delivery)]), ...drop);
    const isKept = (await this.#link.run(SCRIPTS.progress, [hook(name), deliveries(name)], values)) === 1;
    const mayBeTrouble =
      fence === null || disabled !== undefined || drop.length > 0 || keep.some(({ nextAt }) => nextAt === null);
    if (isKept && mayBeTrouble) await this.#note(channel, name);
    return isKept;
  }
}
