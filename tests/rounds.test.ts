/**
 * Deferred events, on the store in a file. On Redis the same cases run in `redis-rounds.test.ts`.
 */
import { afterAll, setDefaultTimeout } from "bun:test";
import { Fleet } from "./contract/fleet.ts";
import { roundCases } from "./contract/round-cases.ts";
import { start, temporary } from "./support/harness.ts";
import { rmSync } from "node:fs";
import { join } from "node:path";

setDefaultTimeout(30_000);

const folder = temporary();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let files = 0;
roundCases("SQLite", (options = {}) => {
  const db = join(folder, `${++files}.db`);
  return new Fleet((given) => start(given, db), 1, options).start();
});
