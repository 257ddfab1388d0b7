/**
 * Loaded before any test (`bunfig.toml`): makes tests independent of what happens to be set where they run.
 *
 * Variables that change what the service, its clients or `fetch` do are removed: with an HTTP proxy every request to 127.0.0.1 would go there, and
 * a shell complains of a locale that is not installed. A program that a test starts without `env` still gets them; give it `process.env`.
 *
 * A test may take `TEST_LIMIT_MS`. Bun's own 5 s are too short for a slow or busy machine, its configuration file has no setting for that, and
 * `setDefaultTimeout` counts for one file. So each test file gets that call as its first statement, on the first line, however it is run.
 */
import { plugin } from "bun";
import { TEST_LIMIT_MS } from "./limits.ts";

const CHANGES_PROGRAMS =
  /^(\w+_proxy|PERE_(?!SCREENSHOTS)\w+|HOST|PORT|REDIS_URL|(NO|FORCE)_COLOR|CLICOLOR\w*|NODE_OPTIONS|NODE_TLS_REJECT_UNAUTHORIZED|BASH_ENV|ENV|CDPATH|LANG|LANGUAGE|LC_\w+)$/i;
for (const name of Object.keys(process.env)) if (CHANGES_PROGRAMS.test(name)) delete process.env[name];

plugin({
  name: "test-limit",
  setup: (build) =>
    void build.onLoad({ filter: /\.test\.ts$/ }, async ({ path }) => ({
      contents: `import { setDefaultTimeout as limitTests } from "bun:test"; limitTests(${TEST_LIMIT_MS}); ${await Bun.file(path).text()}`,
      loader: "ts",
    })),
});
