/**
 * Loaded before any test (`bunfig.toml`): what tests and the programs that they start write for a while is written under one folder, which goes when
 * they are over.
 */
import { afterAll } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = mkdtempSync(join(tmpdir(), "pere-tests-"));
process.env.TMPDIR = folder;

afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 10 }));
