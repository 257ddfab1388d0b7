/**
 * The secret that PERE creates when no key is configured: stored beside the database file, readable by its owner only.
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

/** A random secret. */
export const freshSecret = (): string => Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64url");

const pathOf = (db: string): string => `${db}.secret`;

/** The secret stored beside a database. If there is none yet, stores `fresh` and returns it. @throws PereError away */
export function keptSecret(db: string, fresh: string): string {
  let path = pathOf(db);
  try {
    path = destination(path);
    if (existsSync(path)) {
      if ((statSync(path).mode & 0o777) !== 0o600) chmodSync(path, 0o600);
      const kept = readFileSync(path, "utf8").trim();
      if (kept.length >= fresh.length) return kept;
      throw new Error("it does not hold a valid secret; remove the file, and PERE creates a new secret");
    }
    // Write the whole file or nothing.
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

/** The secret stored beside a database, or null. @throws Error: it can't be read */
export function foundSecret(db: string): string | null {
  const path = pathOf(db);
  return existsSync(path) ? readFileSync(destination(path), "utf8").trim() : null;
}
