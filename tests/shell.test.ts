/**
 * `clients/pere.sh` beside what the bad day asks of it: what goes into a receipt, several channels, where it goes on after an end, who is not let in,
 * and that its reader of long-polls agrees with JSON on texts that are meant to mislead it.
 */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { ask, push, SECRET, startWith, temporary, until } from "./support/harness.ts";
import { CLIENT, cleanup, Device, rowOf, service, SHELLS, shellTest } from "./support/shell.ts";

/** All that are here must be able to read it. */
const READERS = [...SHELLS, ["sh"], ["bash", "--posix"]].filter(([name]) => Bun.which(name!) !== null);

const device = (url: string, channels: string, command: string, env: Record<string, string> = {}): Device =>
  new Device([url, channels, "till-7", command], env);

const isFinal = ({ status }: { status: string }): boolean => status === "done" || status === "failed";

test("every shell that is here can read it", () => {
  for (const shell of READERS) {
    const { stderr, exitCode } = Bun.spawnSync([...shell, "-n", CLIENT], { env: process.env });
    expect([shell, stderr.toString(), exitCode]).toEqual([shell, "", 0]);
  }
});

shellTest("what the command printed last goes into the receipt, whatever it is", async () => {
  const { url } = await service();
  device(url, "orders", 'sh -c "$(cat | sed \'s/^"//; s/"$//\' | base64 -d)"');
  const expected: [string, string, unknown][] = [
    ["true", "done", null],
    ["echo printed; echo", "done", "printed"],
    ["echo one; echo 'two \"quoted\" \\\\ %s $HOME'", "done", 'two "quoted" \\ %s $HOME'],
    ["printf 'Gr\\303\\274\\377\\n'", "done", "Grü\ufffd"],
    ["i=0; while [ $i -lt 9000 ]; do printf x; i=$((i+1)); done", "done", "x".repeat(500)],
    ["exit 7", "failed", "exit status 7"],
    ["echo 'out of paper' >&2; exit 1", "failed", "out of paper"],
  ];
  const ids: string[] = [];
  for (const [command] of expected) ids.push(await push(url, "orders", Buffer.from(command).toString("base64")));
  for (const [index, [command, status, detail]] of expected.entries()) {
    await until(async () => isFinal(await rowOf(url, ids[index]!)), command);
    expect(await rowOf(url, ids[index]!)).toMatchObject({ status, detail });
  }
});

shellTest("several channels on one feed: each receipt goes to its own", async () => {
  const { url } = await service();
  const out = join(temporary(), "out");
  await ask(`${url}/devices/alarms/till-7`, { method: "PUT" });
  device(url, "orders,alarms", `printf '%s ' "$PERE_EVENT_CHANNEL" "$PERE_EVENT_TYPE" "$PERE_EVENT_ID" >>'${out}'`);
  const ids = { orders: await push(url, "orders", 1), alarms: await push(url, "alarms", 2, "?type=fire.1") };
  for (const [channel, id] of Object.entries(ids)) {
    await until(async () => isFinal(await rowOf(url, id, channel)), channel);
    expect(readFileSync(out, "utf8")).toContain(`${channel} ${channel === "alarms" ? "fire.1" : ""} ${id} `);
  }
});

shellTest("it goes on where it was, also after an end; SIGTERM ends it, and its curl", async () => {
  const { url, proxy } = await service();
  const state = join(temporary(), "state");
  const first = device(proxy.url, "orders", "cat", { PERE_STATE: state });
  const id = await push(url, "orders", 1);
  await until(async () => isFinal(await rowOf(url, id)), "done");
  await until(() => readFileSync(join(state, "position"), "utf8") === `${id}\n`, "the position");
  first.child.kill("SIGTERM");
  expect(await first.ended()).toBe(143);
  await until(() => proxy.seen.every(({ endedAt }) => endedAt !== null), "its lines to end");
  const before = proxy.seen.length;
  device(proxy.url, "orders", "cat", { PERE_STATE: state });
  await until(() => proxy.seen.length > before, "its return");
  expect(proxy.seen[before]!.head).toContain(`\r\nLast-Event-ID: ${id}`);
});

shellTest(
  "one who is not let in, and has no other token, says so and ends; a token is in nobody's list of processes",
  async () => {
    const pere = await startWith();
    cleanup.push(() => pere.stop());
    const token = (feed: string[]) => issueToken({ secret: SECRET }, { sub: "till-7", push: [], feed, days: 1 });
    for (const [given, status] of [
      ["", 401],
      ["nonsense", 401],
      [await token(["others"]), 403],
    ] as const) {
      const refused = device(pere.url, "orders", "cat", { PERE_TOKEN: given });
      expect(await refused.ended()).toBe(1);
      expect(refused.complained).toContain(`refused: status ${status}`);
    }
    const good = await token(["orders"]);
    const proxy = await BadProxy.to(pere.url);
    cleanup.push(() => proxy.stop());
    device(proxy.url, "orders", "cat", { PERE_TOKEN: good });
    await until(() => proxy.seen.some(({ answer }) => answer.includes("pere.ready")), "ready");
    // Only whether it is there: the list itself is nobody's business.
    const processes = Bun.which("ps") ? Bun.spawnSync(["ps", "-eo", "args"]).stdout.toString() : "";
    expect(processes.includes(good)).toBe(false);
  },
);

shellTest("its reader of long-polls agrees with JSON", async () => {
  const here = temporary();
  mkdirSync(join(here, "state"));
  // The reader alone, out of the program as it stands.
  const text = readFileSync(CLIENT, "utf8");
  const reader = /^messages_of\(\) \{\n[^]*?^\}\n/m.exec(text)![0];
  const data = [
    '"a \\" b \\\\"',
    '"\\\\\\""',
    '{"events":[{"id":"x"}],"last":"no","a":{"b":[[],{}]}}',
    '"]},{\\"id\\":\\"y\\",\\"last\\":\\"no\\""',
    '[1, 2,\r\n\t{"k" : [ ] } ]',
    '""',
    "{}",
    "-0.0e+10",
    '"\\ud83d\\ude00 é 😀"',
    JSON.stringify(Array.from({ length: 3_000 }, (_, n) => n)),
    JSON.stringify('\\"[{'.repeat(3_000)),
  ];
  const events = data.map((text, n) => `{"id":"e-${n}","channel":"orders","seq":${n},"data":${text}}`);
  const extras = ',"gaps":[{"channel":"orders","after":"a-1","from":"b-1"}],"complete":[{"event":"e-1","last":"no"}]';
  for (const count of [0, 1, events.length]) {
    const answer = `{"events":[${events.slice(0, count).join(",")}],"last":"k3-42.x-1"${extras}}`;
    expect(() => JSON.parse(answer) as unknown).not.toThrow();
    writeFileSync(join(here, "answer"), answer);
    const path = join(here, "answer");
    for (const shell of READERS) {
      const { stdout } = Bun.spawnSync([...shell, "-c", `${reader}\nmessages_of '${path}'`]);
      const messages = stdout.toString().split("\n\n").slice(0, -1);
      expect(messages.at(-1)).toBe("id: k3-42.x-1");
      expect(messages.slice(0, -1)).toEqual(
        events.slice(0, count).map((event) => `data: ${event.replace(/[\r\n]/g, " ")}`),
      );
    }
  }
});
