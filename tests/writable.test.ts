/**
 * A folder or a file of another owner: the start is refused in one line that says which user may not write what, and whose it is.
 */
import { expect, test } from "bun:test";
import { chmodSync, chownSync, mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { command } from "./support/commands.ts";
import { temporary } from "./support/harness.ts";
import { asNobody, NOBODY, noNobody } from "./support/nobody.ts";

const asUser = noNobody === null || process.env.CI === "true" ? test : test.skip;
const why = noNobody === null ? "" : ` (skipped: ${noNobody})`;

/** A folder that everybody may enter. */
function shared(): string {
  const folder = join(temporary(), "data");
  mkdirSync(folder);
  for (const above of [tmpdir(), join(folder, "..")]) if ((statSync(above).mode & 0o5) !== 0o5) chmodSync(above, 0o755);
  chmodSync(folder, 0o755);
  return folder;
}

/** What somebody else's process says when it can't do its work; always one line. */
async function said(args: string[], db: string, more: Record<string, string> = {}): Promise<string> {
  const { code, stderr } = await command(args, { PERE_DB: db, PORT: "0", ...more }, asNobody);
  expect([code, stderr.trimEnd().includes("\n")]).toEqual([1, false]);
  return stderr;
}

asUser(`a start in a folder of another owner says which user may not write which folder${why}`, async () => {
  const folder = shared();
  const line = await said([], join(folder, "pere.db"));
  expect(line).toStartWith("PERE can't start: ");
  expect(line).toContain(`uid ${NOBODY}) may not write the folder ${folder}, which belongs to root (uid 0)`);
  expect(line).toContain(`chown ${NOBODY} ${folder}`);
  expect(readdirSync(folder)).toEqual([]);
});

asUser(`a file, its log, its lock or its secret of another owner is named${why}`, async () => {
  for (const end of ["", "-wal", "-shm", ".lock", ".secret"]) {
    const folder = shared();
    const db = join(folder, "pere.db");
    await new SqliteStore({ path: db }).close();
    for (const name of readdirSync(folder)) chownSync(join(folder, name), NOBODY, NOBODY);
    chownSync(folder, NOBODY, NOBODY);
    writeFileSync(`${db}${end}`, "", { flag: "a", mode: 0o600 });
    chmodSync(`${db}${end}`, 0o600);
    chownSync(`${db}${end}`, 0, 0);
    const line = await said([], db, end === ".secret" ? { HOST: "0.0.0.0" } : {});
    expect(line).toContain(`uid ${NOBODY}`);
    expect(line).toContain(`may not write the file ${db}${end}, which belongs to`);
  }
});

asUser(
  `a folder that may not be entered, one without the right to write, and one that is not there are told apart${why}`,
  async () => {
    const folder = shared();
    chmodSync(folder, 0o700);
    expect(await said([], join(folder, "pere.db"))).toContain(
      `uid ${NOBODY}) may not write the folder ${folder}, which belongs to root`,
    );
    chmodSync(folder, 0o500);
    chownSync(folder, NOBODY, NOBODY);
    expect(await said([], join(folder, "pere.db"))).toContain(`although it is its owner: chmod u+w ${folder}`);
    const missing = join(shared(), "missing");
    expect(await said([], join(missing, "pere.db"))).toContain(`there is no folder ${missing}`);
  },
);

asUser(`a backup into a folder of another owner says so${why}`, async () => {
  const db = join(shared(), "pere.db");
  await new SqliteStore({ path: db }).close();
  for (const name of ["", ".lock"]) chownSync(`${db}${name}`, NOBODY, NOBODY);
  chownSync(join(db, ".."), NOBODY, NOBODY);
  const folder = shared();
  expect(await said(["backup", join(folder, "backup.db")], db)).toContain(`may not write the folder ${folder}`);
});
