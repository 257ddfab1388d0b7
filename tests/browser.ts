/**
 * A real Chromium for tests of pages, driven by `Bun.WebView`. Where there is none, the tests that need it are skipped and say why;
 * with `CI=true` a missing one fails them.
 */
import { test } from "bun:test";

const LIMIT_MS = 60_000;
export const isInstalled = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"].some((name) =>
  Bun.which(name),
);
const skipped = !isInstalled && process.env.CI !== "true";

export const browserTest = (name: string, run: () => Promise<void>): void =>
  test.skipIf(skipped)(skipped ? `${name} (skipped: no Chromium is installed)` : name, run, LIMIT_MS);

/**
 * A tab of its own, in pixels. Close it at the end.
 * @param complained hears what the page reports as an error
 * @param flags more of the browser's, which count where it is not running yet
 */
export const openTab = (
  width: number,
  height: number,
  complained: (what: string) => void = () => {},
  flags: readonly string[] = [],
): Bun.WebView =>
  new Bun.WebView({
    width,
    height,
    console: (type: string, ...args: unknown[]) => void (type === "error" && complained(Bun.inspect(args))),
    backend: {
      type: "chrome",
      // No sandbox, since builds run as root; and not a word to anybody but the page's own server.
      argv: [
        "--no-sandbox",
        "--headless",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        ...flags,
      ],
    },
  });
