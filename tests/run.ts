/**
 * `bun run test`: installs what the tests need, checks formatting and types, runs the tests, and ends with one line, `N passed, N failed`.
 *
 * It imports nothing but Bun, so that it runs in a fresh clone. Programs that some tests drive (a browser, strace, python3) are installed where that
 * is possible, as root on Debian and its kin; elsewhere the tests that need them say so and are skipped. With `CI=true` nothing is skipped.
 */
const root = `${import.meta.dir}/..`;
const bun = process.execPath;

/** Runs a command; its output goes out as it comes, and comes back as text. */
async function run(command: readonly string[]): Promise<{ code: number; said: string }> {
  const child = Bun.spawn([...command], {
    cwd: root,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  let said = "";
  const pass = async (from: ReadableStream<Uint8Array>, to: NodeJS.WriteStream): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of from) {
      said += decoder.decode(chunk, { stream: true });
      to.write(chunk);
    }
  };
  await Promise.all([pass(child.stdout, process.stdout), pass(child.stderr, process.stderr)]);
  return { code: await child.exited, said };
}

/** Debian's packages of the programs that tests drive. */
const PROGRAMS: Record<string, string> = {
  chromium: "chromium",
  strace: "strace",
  curl: "curl",
  "redis-server": "redis-server",
  nginx: "nginx",
  promtool: "prometheus",
  caddy: "caddy",
  cc: "gcc libc6-dev",
  python3: "python3",
  pip3: "python3-pip python3-venv",
  "systemd-analyze": "systemd",
  node: "nodejs",
  busybox: "busybox",
  openssl: "openssl",
};

async function installPrograms(): Promise<void> {
  const missing = Object.keys(PROGRAMS).filter((program) => !Bun.which(program));
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0 || !Bun.which("apt-get"))
    return console.log(`not installed here, so what needs them is skipped: ${missing.join(", ")}`);
  await run(["apt-get", "update", "-qq"]);
  await run([
    "apt-get",
    "install",
    "-y",
    "-qq",
    "--no-install-recommends",
    ...missing.flatMap((program) => PROGRAMS[program]!.split(" ")),
  ]);
}

/** What went well and what did not: each check counts as one test. */
let passed = 0;
let failed = 0;
const count = (well: boolean): void => void (well ? passed++ : failed++);

const installed = await run([bun, "install", "--frozen-lockfile"]);
if (installed.code !== 0) {
  console.log("0 passed, 1 failed");
  process.exit(1);
}
await installPrograms();
count((await run([bun, "fmt", "--no-script", "--check", "."])).code === 0);
count((await run([bun, "check", "--no-script"])).code === 0);

/**
 * Files at a time. Most tests wait for something to happen, so there are more of them than cores; but not many, since a test has services, browsers and
 * servers of its own.
 */
const AT_ONCE = Math.min(2 * navigator.hardwareConcurrency, 8);

// The slowest files begin first, so that none of them is left alone at the end. `bun run test --update-timings` measures all of them again.
const timings = `--timings=${import.meta.dir}/timings.json`;
const flags = [`--parallel=${AT_ONCE}`, timings];
const tests = await run([bun, "test", ...flags, ...process.argv.slice(2)]);
const figure = (word: string): number =>
  Number(new RegExp(`^\\s*(\\d+) ${word}$`, "m").exec(Bun.stripANSI(tests.said))?.[1] ?? 0);
passed += figure("pass");
failed += Math.max(figure("fail"), tests.code === 0 ? 0 : 1);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
