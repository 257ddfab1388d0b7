/**
 * The tags of enrolled devices, and which devices a `where` fits. All functions except `of` and `fitting` run in a transaction.
 */
import { NO_TAGS, readWhere, type Tags, type Term } from "../tags.ts";
import type { SqliteFile } from "./file.ts";
import type { Channel } from "./schema.ts";

interface TagRow {
  readonly device: string;
  readonly name: string;
  readonly value: string;
}

export class TagRows {
  readonly #file: SqliteFile;

  constructor(file: SqliteFile) {
    this.#file = file;
  }

  /** The tags of those of these devices that have some. */
  of(channel: Channel, devices: readonly string[]): Map<string, Tags> {
    const found = new Map<string, Map<string, string>>();
    const rows = this.#file.all<TagRow>(
      "SELECT t.device, t.name, t.value FROM json_each(?2) d CROSS JOIN tags t ON t.channel = ?1 AND t.device = d.value ORDER BY t.device, t.name",
      channel.id,
      JSON.stringify(devices),
    );
    for (const { device, name, value } of rows) {
      const tags = found.get(device);
      if (tags) tags.set(name, value);
      else found.set(device, new Map([[name, value]]));
    }
    return found;
  }

  /** Replaces all tags of an enrolled device. */
  set(channel: Channel, device: string, tags: Tags): void {
    const before = this.of(channel, [device]).get(device) ?? NO_TAGS;
    for (const name of before.keys())
      if (!tags.has(name))
        this.#file.run("DELETE FROM tags WHERE channel = ?1 AND device = ?2 AND name = ?3", channel.id, device, name);
    for (const [name, value] of tags)
      if (before.get(name) !== value)
        this.#file.run("INSERT OR REPLACE INTO tags VALUES (?1, ?2, ?3, ?4)", channel.id, device, name, value);
  }

  /** The device is no longer enrolled. */
  drop(channel: Channel, device: string): void {
    this.#file.run("DELETE FROM tags WHERE channel = ?1 AND device = ?2", channel.id, device);
  }

  /** The enrolled devices that a `where` fits. */
  fitting(channel: Channel, where: string): string[] {
    const terms = readWhere(where);
    const first = terms.find(({ isNot }) => !isNot);
    let found = first ? this.#having(channel, first) : this.#all(channel);
    for (const term of terms) {
      if (term === first || found.length === 0) continue;
      const having = new Set(this.#having(channel, term));
      found = found.filter((device) => having.has(device) !== term.isNot);
    }
    return found;
  }

  #all(channel: Channel): string[] {
    return this.#names(
      `SELECT json_group_array(device) AS names FROM devices INDEXED BY enrolled WHERE channel = ?1 AND "left" IS NULL`,
      channel.id,
    );
  }

  /** The devices that have a tag, with one of the values of the term. A device has one value per name. */
  #having(channel: Channel, { name, values }: Term): string[] {
    const isOne = values === null ? "" : "AND value IN (SELECT value FROM json_each(?3))";
    return this.#names(
      `SELECT json_group_array(device) AS names FROM tags INDEXED BY tagged WHERE channel = ?1 AND name = ?2 ${isOne}`,
      channel.id,
      name,
      ...(values === null ? [] : [JSON.stringify(values)]),
    );
  }

  /** Very many, as one text: a row for each would take longer. */
  #names(sql: string, ...values: (string | number)[]): string[] {
    return JSON.parse(this.#file.get<{ names: string }>(sql, ...values)!.names) as string[];
  }
}
