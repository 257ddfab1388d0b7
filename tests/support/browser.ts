/**
 * A real Chromium for tests of pages, driven by `Bun.WebView`. Where there is none, the tests that need it are skipped and say why;
 * with `CI=true` a missing one fails them.
 */
import { test } from "bun:test";
import { lstatSync, readlinkSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { temporary, until } from "./harness.ts";

const LIMIT_MS = 180_000;
export const isInstalled = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"].some((name) =>
  Bun.which(name),
);
const skipped = !isInstalled && process.env.CI !== "true";

export const browserTest = (name: string, run: () => Promise<void>): void =>
  test.skipIf(skipped)(skipped ? `${name} (skipped: no Chromium is installed)` : name, run, LIMIT_MS);

/** What the browser remembers, for as long as the tests run. */
const profile = temporary();

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
    dataStore: { directory: profile },
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

/**
 * Ends the browser, and with it what it keeps outside of its profile: the folder of a socket. For a file's end. It is waited for, since the next file's
 * browser finds the profile taken by one that is still about to go.
 */
export async function closeBrowser(): Promise<void> {
  const socket = join(profile, "SingletonSocket");
  const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  const folder = isThere(socket) ? dirname(readlinkSync(socket)) : null;
  const lock = join(profile, "SingletonLock");
  // The lock leads to the name of the machine and the number of the process.
  const process = isThere(lock) ? `/proc/${readlinkSync(lock).split("-").at(-1)}/exe` : null;
  Bun.WebView.closeAll();
  if (process !== null) await until(() => !isThere(process), "the browser to end");
  if (folder !== null) rmSync(folder, { recursive: true, force: true });
  for (const path of [socket, lock]) rmSync(path, { force: true });
}
