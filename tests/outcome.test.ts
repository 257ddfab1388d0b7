/** What becomes of an event, and how its publisher knows, on SQLite. */
import { join } from "node:path";
import { start, temporary } from "./harness.ts";
import { outcomes } from "./outcome-cases.ts";

outcomes("SQLite", 1, async () => {
  const path = join(temporary(), "pere.db");
  return (options) => start(options, path);
});
