/**
 * Counts the rows that SQLite looks at and changes: each table is read through a view that counts what a statement looks at.
 */
import { Database } from "bun:sqlite";

/** Runs something; gives the largest piece of its work. */
export type Meter = (run: () => Promise<unknown>) => Promise<number>;

/** Rows counted in this turn, and in the turn with the most. */
const rows = { counted: 0, most: 0 };
const { prepare } = Database.prototype;
const TABLES =
  "channels|events|latest|targets|devices|receipts|tallies|audiences|keys|deadlines|leaving|attention|troubledEvents|troubledDevices|troubles|silences";
const readsFrom = new RegExp(`\\b(FROM|JOIN)\\s+(${TABLES})\\b`, "g");
const counted = new WeakSet<Database>();

/** Counts in all files that are opened from now on. @returns a function that ends it */
export function countRows(): () => void {
  Database.prototype.prepare = function (this: Database, sql: string, ...rest: unknown[]) {
    const plain = (text: string) => prepare.call(this, text, ...(rest as []));
    const isRead = /^\s*SELECT/.test(sql) && !sql.includes("sqlite_schema");
    if (!isRead) {
      const statement = plain(sql);
      const { run } = statement;
      statement.run = ((...values: never[]) => {
        const done = run.apply(statement, values);
        rows.counted += Math.max(0, done.changes);
        return done;
      }) as typeof run;
      return statement;
    }
    if (!counted.has(this)) {
      counted.add(this);
      this.function("look", () => (rows.counted++, 1));
      for (const table of TABLES.split("|"))
        // Without a schema, events are those of the view that shows the recent ones too.
        this.run(
          `CREATE TEMP VIEW counted_${table} AS SELECT * FROM ${table === "events" ? "" : "main."}${table} WHERE look()`,
        );
      this.run(
        `CREATE TEMP VIEW counted_enrolled AS SELECT * FROM main.devices INDEXED BY enrolled WHERE "left" IS NULL AND look()`,
      );
      this.run(
        "CREATE TEMP VIEW counted_troubled AS SELECT * FROM main.attention INDEXED BY troubledChannels WHERE failed + missing + overdue > 0 AND look()",
      );
    }
    return plain(
      sql
        .replaceAll("devices INDEXED BY enrolled", "counted_enrolled")
        .replace("attention a INDEXED BY troubledChannels", "counted_troubled a")
        .replace(readsFrom, "$1 counted_$2"),
    );
  } as typeof prepare;
  return () => void (Database.prototype.prepare = prepare);
}

export const rowMeter: Meter = async (run) => {
  rows.counted = rows.most = 0;
  let isOver = false;
  const turn = (): void => {
    rows.most = Math.max(rows.most, rows.counted);
    rows.counted = 0;
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  await run();
  isOver = true;
  turn();
  return rows.most;
};

/** All rows that something looks at and changes. */
export const rowsOfAll: Meter = async (run) => {
  rows.counted = 0;
  await run();
  return rows.counted;
};
