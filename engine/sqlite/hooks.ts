/**
 * Hooks in a SQLite file: their settings, their cursors in the receipts log, and the calls that are pending or were given up. All functions that
 * write run in a transaction.
 */
import type { TroubledHook } from "../attention.ts";
import type { SqliteFile } from "./file.ts";
import { PereError } from "../model.ts";
import type { Channel } from "./schema.ts";
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
  type Try,
} from "../store.ts";
import { yieldToEventLoop } from "../yield.ts";

interface HookRow {
  /** The channel's. */
  id: number;
  channel: string;
  epoch: string;
  name: string;
  url: string;
  secret: string;
  former: string;
  kinds: string;
  createdAt: number;
  cursor: number;
  disabled: string | null;
  lastDelivered: string | null;
  revision: number;
}

/** Hooks per statement. */
const READ_HOOKS = 500;

const HOOKS = `SELECT h.channel AS id, c.name AS channel, c.epoch, h.name, h.url, h.secret, h.former, h.kinds, h.createdAt, h.cursor, h.disabled,
  h.lastDelivered, h.revision FROM hooks h JOIN channels c ON c.id = h.channel`;

const hookOf = ({ id: _, epoch, kinds, cursor, former, lastDelivered, ...row }: HookRow): Hook => ({
  ...row,
  lastDelivered: lastDelivered === null ? null : (JSON.parse(lastDelivered) as Delivered),
  former: readFormer(former),
  on: kinds.split(",") as HookKind[],
  cursor: { epoch, seq: cursor },
});

export class HookRows {
  readonly #file: SqliteFile;

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  /** The hooks of a channel, by name. */
  list(channel: string): Hook[] {
    return this.#file.all<HookRow>(`${HOOKS} WHERE c.name = ?1 ORDER BY h.name`, channel).map(hookOf);
  }

  /** All hooks, read in steps. */
  async all(): Promise<Hook[]> {
    const found: Hook[] = [];
    for (let [channel, name] = [0, ""]; ;) {
      await yieldToEventLoop("hooks", READ_HOOKS);
      const rows = this.#file.all<HookRow>(
        `${HOOKS} WHERE (h.channel, h.name) > (?1, ?2) ORDER BY h.channel, h.name LIMIT ?3`,
        channel,
        name,
        READ_HOOKS,
      );
      for (const row of rows) found.push(hookOf(row));
      const last = rows.at(-1);
      if (last) [channel, name] = [last.id, last.name];
      if (rows.length < READ_HOOKS) return found;
    }
  }

  /** The hooks that gave up calls or are disabled. */
  troubled(): TroubledHook[] {
    return this.#file.all<TroubledHook>(
      `SELECT c.name AS channel, h.name, h.disabled, (SELECT count(*) FROM deliveries d INDEXED BY givenUp
       WHERE d.channel = h.channel AND d.hook = h.name AND d.nextAt IS NULL) AS givenUp
       FROM (SELECT channel, hook AS name FROM deliveries INDEXED BY givenUp WHERE nextAt IS NULL
       UNION SELECT channel, name FROM hooks INDEXED BY disabledHooks WHERE disabled IS NOT NULL) t
       JOIN hooks h ON h.channel = t.channel AND h.name = t.name JOIN channels c ON c.id = h.channel`,
    );
  }

  #of(channel: Channel, name: string): Hook | undefined {
    return this.list(channel.name).find((hook) => hook.name === name);
  }

  /** @throws PereError refused: the channel has the maximum number of hooks */
  put(channel: Channel, draft: HookDraft, fresh: string, now: number): { hook: Hook; created: boolean } {
    const { name, url, secret, on } = draft;
    const known = this.#of(channel, name);
    if (known) {
      const isOther = secret !== null && secret !== known.secret;
      const former = isOther ? [{ secret: known.secret, until: now }, ...known.former] : known.former;
      this.#file.run(
        `UPDATE hooks SET url = ?3, secret = coalesce(?4, secret), kinds = ?5, former = ?6, disabled = NULL, revision = revision + 1
         WHERE channel = ?1 AND name = ?2`,
        channel.id,
        name,
        url,
        secret,
        on.join(","),
        former
          .slice(0, FORMER_SECRETS_MAX)
          .map((one) => `${one.secret}:${one.until}`)
          .join(" "),
      );
    } else {
      if (this.list(channel.name).length >= HOOKS_MAX)
        throw new PereError("refused", `a channel has at most ${HOOKS_MAX} hooks`);
      this.#file.run(
        "INSERT INTO hooks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL, 1, 0, '', NULL)",
        channel.id,
        name,
        url,
        secret ?? fresh,
        on.join(","),
        now,
        channel.receiptsHead,
      );
    }
    return { hook: this.#of(channel, name)!, created: !known };
  }

  drop(channel: Channel | null, name: string): boolean {
    if (!channel) return false;
    this.#file.run("DELETE FROM deliveries WHERE channel = ?1 AND hook = ?2", channel.id, name);
    return this.#file.run("DELETE FROM hooks WHERE channel = ?1 AND name = ?2", channel.id, name) === 1;
  }

  deliveries(channel: Channel, name: string): Delivery[] {
    return this.#file
      .all<Omit<Delivery, "tries"> & { tries: string }>(
        `SELECT id, body, createdAt, attempts, nextAt, status, error, tries FROM deliveries
         WHERE channel = ?1 AND hook = ?2 ORDER BY createdAt, id`,
        channel.id,
        name,
      )
      .map((row) => ({ ...row, tries: JSON.parse(row.tries) as Try[] }));
  }

  progress(channel: Channel | null, name: string, fence: number | null, progress: Progress): boolean {
    if (!channel) return false;
    const { of = null, cursor, disabled, lastDelivered, keep = [], drop = [] } = progress;
    const isKept = this.#file.run(
      `UPDATE hooks SET cursor = coalesce(?4, cursor), disabled = iif(?5, ?6, disabled), fence = max(fence, coalesce(?3, fence)),
       lastDelivered = coalesce(?8, lastDelivered),
       revision = revision + iif(?3 IS NULL, 1, 0)
       WHERE channel = ?1 AND name = ?2 AND (?3 IS NULL OR fence <= ?3) AND (?7 IS NULL OR createdAt = ?7)`,
      channel.id,
      name,
      fence,
      cursor?.seq ?? null,
      disabled === undefined ? 0 : 1,
      disabled ?? null,
      of,
      lastDelivered ? JSON.stringify(lastDelivered) : null,
    );
    if (isKept === 0) return false;
    for (const { id, body, createdAt, attempts, nextAt, status, error, tries } of keep)
      this.#file.run(
        "INSERT OR REPLACE INTO deliveries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        channel.id,
        name,
        id,
        body,
        createdAt,
        attempts,
        nextAt,
        status,
        error,
        JSON.stringify(tries),
      );
    for (const id of drop)
      this.#file.run("DELETE FROM deliveries WHERE channel = ?1 AND hook = ?2 AND id = ?3", channel.id, name, id);
    return true;
  }
}
