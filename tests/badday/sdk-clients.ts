/**
 * The SDK's clients as `client.ts` wants them: on Bun, on Node, where it runs as the package has it (without types, with a WebSocket given to it), and in
 * a page in Chromium.
 */
import { afterAll, beforeAll } from "bun:test";
import { join } from "node:path";
import { type Client, startProgram } from "./client.ts";
import { startPage } from "./browser.ts";
import { closeBrowser, isInstalled } from "../support/browser.ts";
import { temporary } from "../support/harness.ts";

const PROGRAM = join(import.meta.dir, "sdk.ts");
const folder = temporary();
const node = Bun.which("node");

/** Makes what they run, and ends the browser when all is over; for a file that runs them. */
export function built(): void {
  afterAll(closeBrowser);
  beforeAll(async () => {
    const { success, logs } = await Bun.build({
      entrypoints: [PROGRAM],
      target: "node",
      outdir: folder,
      naming: "device.mjs",
    });
    if (!success) throw new AggregateError(logs, "the program for Node can't be built");
  });
}

export const clients: readonly Client[] = [
  {
    name: "the SDK on Bun",
    missing: null,
    hasSockets: true,
    start: (job, said) => startProgram([process.execPath, PROGRAM], { JOB: JSON.stringify(job) }, said),
  },
  {
    name: "the SDK on Node",
    missing: node === null ? "no node is installed" : null,
    hasSockets: true,
    start: (job, said) =>
      startProgram([node ?? "node", join(folder, "device.mjs")], { JOB: JSON.stringify(job) }, said),
  },
  {
    name: "the SDK in Chromium",
    missing: isInstalled ? null : "no Chromium is installed",
    hasSockets: true,
    start: startPage,
  },
];
