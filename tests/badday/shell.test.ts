/**
 * The bad day of `clients/pere.sh`: all of it by dash, which is Debian's `sh`; and by busybox, with nothing beside it but curl, as small devices have it,
 * what its `read`, `awk` and `sleep` decide.
 */
import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { badAnswersDay } from "./answers.ts";
import { badDay } from "./badday.ts";
import { type Client, startProgram } from "./client.ts";
import { temporary } from "../support/harness.ts";

const lack = (name: string): string | null => (Bun.which(name) === null ? `no ${name} is installed` : null);

/** Whole ones, since `sleep` knows no others. */
const seconds = (ms: number): string => String(Math.ceil(ms / 1_000));

/** @param path where its programs are */
const clientBy = (shell: string, path: string): Client => ({
  name: `pere.sh by ${shell}`,
  missing: lack(shell) ?? lack("curl"),
  hasSockets: false,
  start: ({ url, channels, device, tokenFile, state, record, patience }, said) =>
    startProgram(
      [
        shell === "busybox" ? "sh" : shell,
        join(import.meta.dir, "..", "..", "clients", "pere.sh"),
        ...[url, channels, device, `sh '${join(import.meta.dir, "worker.sh")}'`],
      ],
      {
        PATH: path,
        PERE_STATE: state,
        PERE_RECORD: record,
        PERE_FIRST_BYTE: seconds(patience.firstByteMs),
        PERE_SILENCE: seconds(patience.silenceMs),
        PERE_RETURN: seconds(patience.returnMs),
        ...(tokenFile === null ? {} : { PERE_TOKEN_FILE: tokenFile }),
      },
      said,
    ),
});

/** A folder with busybox's own programs, and curl. */
function onlyBusybox(): string {
  const folder = temporary();
  const [busybox, curl] = [Bun.which("busybox"), Bun.which("curl")];
  if (busybox === null || curl === null) return folder;
  Bun.spawnSync([busybox, "--install", "-s", folder]);
  symlinkSync(curl, join(folder, "curl"));
  return folder;
}

const dash = clientBy("dash", process.env.PATH ?? "");
badDay(dash);
badAnswersDay(dash, { streams: 6, polls: 6 });
badDay(clientBy("busybox", onlyBusybox()), (name) => /random bytes|held back|silent|killed|withdrawn/.test(name));
