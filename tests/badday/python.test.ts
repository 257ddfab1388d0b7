/**
 * The bad day of `clients/python/pere.py`, the program, which is the module's `listen` with a command for a handler.
 */
import { join } from "node:path";
import { badAnswersDay } from "./answers.ts";
import { badDay } from "./badday.ts";
import { type Client, startProgram } from "./client.ts";

const python = Bun.which("python3");

const client: Client = {
  name: "pere.py",
  missing: python === null ? "no python3 is installed" : null,
  hasSockets: false,
  start: ({ url, channels, device, tokenFile, state, record, patience }, said) =>
    startProgram(
      [
        python ?? "python3",
        join(import.meta.dir, "..", "..", "clients", "python", "pere.py"),
        ...["listen", url, channels, "--device", device, "--state", state],
        ...["--exec", `sh '${join(import.meta.dir, "worker.sh")}'`],
        ...["--first-byte", String(patience.firstByteMs / 1_000), "--silence", String(patience.silenceMs / 1_000)],
        ...["--return", String(patience.returnMs / 1_000)],
        ...(tokenFile === null ? [] : ["--token-file", tokenFile]),
      ],
      { PERE_RECORD: record },
      said,
    ),
};

badDay(client);
badAnswersDay(client);
