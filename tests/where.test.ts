/**
 * Tags and events with `where`, on the store in a file. On Redis the same cases run in `redis-where.test.ts`.
 */
import { afterAll, setDefaultTimeout } from "bun:test";
import { Fleet } from "./contract/fleet.ts";
import { whereCases } from "./contract/where-cases.ts";
import { start, temporary } from "./support/harness.ts";
import { rmSync } from "node:fs";
import { join } from "node:path";

setDefaultTimeout(30_000);

const folder = temporary();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let files = 0;
whereCases("SQLite", (options = {}) => {
  const db = join(folder, `${++files}.db`);
  return new Fleet((given) => start(given, db), 1, options).start();
});
