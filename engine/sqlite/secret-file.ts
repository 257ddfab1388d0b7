/**
 * The secret that PERE makes for itself where no key is set: kept in a file beside its database, for its owner alone.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { destination } from "./links.ts";
import { PereError } from "../model.ts";
import { unwritable } from "./writable.ts";

/** A secret that nobody chose. */
export const freshSecret = (): string => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url");

const pathOf = (db: string): string => `${db}.secret`;

/** The secret beside a database; `fresh`, when there is none yet, and then it is kept. @throws PereError away */
export function keptSecret(db: string, fresh: string): string {
  let path = pathOf(db);
  try {
    path = destination(path);
    if (existsSync(path)) {
      if ((statSync(path).mode & 0o777) !== 0o600) chmodSync(path, 0o600);
      const kept = readFileSync(path, "utf8").trim();
      if (kept.length >= fresh.length) return kept;
      throw new Error("it holds no secret; without the file PERE makes another");
    }
    // All of it, or none.
    rmSync(`${path}.new`, { force: true });
    const file = openSync(`${path}.new`, "wx", 0o600);
    writeSync(file, `${fresh}\n`);
    fsyncSync(file);
    closeSync(file);
    renameSync(`${path}.new`, path);
    return fresh;
  } catch (error) {
    throw new PereError("away", `${path} can't be used: ${unwritable(path) ?? (error as Error).message}`, [], error);
  }
}

/** The secret beside a database, as it stands; null: there is none. @throws Error when it can't be read */
export function foundSecret(db: string): string | null {
  const path = pathOf(db);
  return existsSync(path) ? readFileSync(destination(path), "utf8").trim() : null;
}
