/**
 * How long tests wait. On success nobody waits for any of these: they end what would never end, so they are long enough for a slow machine that does
 * other things as well.
 */

/** The longest that a test waits for one thing. */
export const PATIENCE_MS = 30_000;

/** The longest that one test takes, unless it says otherwise: less than the 60 s of a poll that should have been answered before. */
export const TEST_LIMIT_MS = 55_000;
