/**
 * The documents say what is so: each command of README and docs/ runs against a real service and prints what the document shows, code in other languages can be
 * read, and links and names of files lead somewhere.
 *
 * Not run: `bun run NAME` and `bun install`, which build or would run these tests again (the script must exist), and `docker` (its syntax is checked).
 */
import { afterEach, describe, expect, test } from "bun:test";
import { chmodSync, existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { Webhook } from "standardwebhooks";
import packageJson from "../package.json";
import { readRanges } from "../engine/addresses.ts";
import type { Service } from "../index.ts";
import {
  anchorsOf,
  type Block,
  blocksOf,
  commandsOf,
  DOCUMENTS,
  follow,
  type Ids,
  isAsShown,
  ROOT,
} from "./support/documents.ts";
import { run, type Running, stepsOf, textOf, withIds, workplace } from "./support/documents.ts";
import { ask, give, push, SECRET, start, startWith, until } from "./support/harness.ts";
import { noRedis, startRedis } from "./support/redis-server.ts";

const LOOPBACK = readRanges("127.0.0.0/8");

const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

/** Started for one test. */
function also<Value extends { stop(): unknown }>(started: Value): Value {
  endings.push(() => started.stop());
  return started;
}

function background(running: Running): Running {
  endings.push(() => running.child.kill("SIGKILL"));
  return running;
}

const codeOf = async (document: string): Promise<Block[]> => blocksOf(await textOf(document));

describe("a document", () => {
  test("README has at most 200 lines, none over 160 characters", async () => {
    const lines = (await textOf("README.md")).trimEnd().split("\n");
    expect(lines.length).toBeLessThanOrEqual(200);
    expect(lines.filter((line) => [...line].length > 160)).toEqual([]);
  });

  test("links to files and headings that exist", async () => {
    const broken: string[] = [];
    for (const document of DOCUMENTS) {
      const text = await textOf(document);
      for (const [, link] of text.matchAll(/\]\((?!https?:|mailto:)([^)\s]+)\)/g)) {
        const [path, anchor] = link!.split("#") as [string, string?];
        const target = path === "" ? document : join(dirname(document), path);
        if (!existsSync(join(ROOT, target))) broken.push(`${document}: ${link}`);
        else if (anchor && !anchorsOf(await textOf(target)).has(anchor)) broken.push(`${document}: ${link}`);
      }
    }
    expect(broken).toEqual([]);
  });

  test("names files and scripts that exist", async () => {
    const wrong: string[] = [];
    for (const document of DOCUMENTS.filter((name) => name !== "CHANGELOG.md")) {
      const text = await textOf(document);
      for (const [path] of text.matchAll(/\b(?:engine|web|clients|tests|docs)\/[\w./-]*\w\/?/g))
        if (!existsSync(join(ROOT, path))) wrong.push(`${document}: ${path}`);
      for (const [, script] of text.matchAll(/\bbun run ([a-z]+)\b(?!\.)/g))
        if (!(script! in packageJson.scripts)) wrong.push(`${document}: bun run ${script}`);
    }
    expect(wrong).toEqual([]);
  });

  test("names functions that are in the files it names", async () => {
    const text = await textOf("docs/architecture.md");
    const named = [...text.matchAll(/(engine\/[\w/-]+\.ts) +(\w+\()\)/g)];
    expect(named.length).toBeGreaterThan(3);
    for (const [, path, name] of named) expect(await Bun.file(join(ROOT, path!)).text(), path).toContain(name!);
    // The way of an event and that of a receipt, file by file.
    const steps = [...text.matchAll(/^(\d) {2}(?:index|engine\/[\w/-]+)\.ts /gm)].map(([, number]) => Number(number));
    expect(steps).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8]);
    // Of a room, files are named without folder and ending.
    for (const [, room, files] of text.matchAll(/^- `(engine\/\w+\/)`: (.*?)(?=\n\S|\n\n)/gms))
      for (const [, name] of files!.matchAll(/`([\w-]+)`/g))
        expect(existsSync(join(ROOT, room!, `${name}.ts`)), `${room}${name}.ts`).toBe(true);
  });

  test("is reached from README", async () => {
    const text = await textOf("README.md");
    expect(DOCUMENTS.filter((name) => name !== "README.md" && !text.includes(`](${name})`))).toEqual([]);
  });
});

describe("code in a document is valid", () => {
  test("JSON, YAML and units", async () => {
    for (const document of DOCUMENTS)
      for (const { language, text, line } of await codeOf(document)) {
        const read = (): unknown =>
          language === "json"
            ? JSON.parse(text)
            : language === "yaml"
              ? Bun.YAML.parse(text)
              : language === "ini" && text.split("\n").some((part) => !/^(#.*|\[\w+\]|\w+=.*|)$/.test(part))
                ? expect.unreachable("not a unit")
                : null;
        expect(read, `${document}:${line}`).not.toThrow();
      }
  });

  test.skipIf(!Bun.which("python3"))("Python calls what the module has", async () => {
    const check = `import ast, sys; sys.path.insert(0, "clients/python"); import pere
for node in ast.walk(ast.parse(sys.stdin.read())):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pere": getattr(pere, node.attr)`;
    for (const document of DOCUMENTS)
      for (const { language, text } of await codeOf(document)) {
        if (language !== "python") continue;
        const child = Bun.spawn(["python3", "-c", check], { cwd: ROOT, stdin: Buffer.from(text), stderr: "pipe" });
        expect([await new Response(child.stderr).text(), await child.exited]).toEqual(["", 0]);
      }
  });

  test("shell commands have valid syntax", async () => {
    for (const document of DOCUMENTS)
      for (const { language, text } of await codeOf(document)) {
        if (language !== "sh") continue;
        const child = Bun.spawn(["bash", "-n"], {
          env: process.env,
          stdin: Buffer.from(text),
          stderr: "pipe",
        });
        expect([await new Response(child.stderr).text(), await child.exited]).toEqual(["", 0]);
      }
  });
});

describe("console blocks print the shown output", () => {
  /** Runs a document's console blocks, in order; frames in `text` blocks come on the stream that was opened last. */
  async function walk(document: string, { url }: Service, replace: (text: string) => string = (text) => text) {
    const ids: Ids = new Map();
    const folder = workplace();
    let stream: Running | null = null;
    let read = 0;
    const outputs: string[] = [];
    let steps = 0;
    for (const block of await codeOf(document)) {
      if (block.language === "text" && /^id: /.test(block.text) && stream) {
        const shown = block.text.split("\n").filter((line) => line !== "");
        read = await follow(stream, read, shown, ids);
      }
      if (block.language !== "console") continue;
      for (const { command, shown } of stepsOf(block)) {
        const running = run(replace(withIds(command, ids)).replaceAll("http://127.0.0.1:4567", url), folder);
        steps++;
        if (command.startsWith("curl -N")) {
          stream = background(running);
          read = await follow(stream, 0, shown, ids);
          continue;
        }
        expect(await running.ended()).toBe(0);
        outputs.push(running.output.text);
        const lines = running.output.text.trimEnd().split("\n");
        shown.forEach((line, index) => {
          const there = lines[index]?.trimEnd() ?? "";
          const isSo = isAsShown(there, replace(line), ids);
          if (!isSo) expect(`${document}: ${there}`).toBe(`${document}: ${replace(line)}`);
        });
        if (shown.length > 0) expect(lines).toHaveLength(shown.length);
      }
    }
    return { outputs, steps };
  }

  test("README", async () => {
    const { steps } = await walk("README.md", also(await start()));
    expect(steps).toBeGreaterThan(4);
  });

  test("docs/http-api.md", async () => {
    const { steps } = await walk("docs/http-api.md", also(await start()));
    expect(steps).toBeGreaterThan(4);
  });

  test("docs/recipes/escalate-alarm.md", async () => {
    expect((await walk("docs/recipes/escalate-alarm.md", also(await start()))).steps).toBe(1);
  });

  test("docs/hooks.md, whose receiver is called with a signature that the reference verifier accepts", async () => {
    const calls: { headers: Record<string, string>; text: string }[] = [];
    const receiver = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      async fetch(request) {
        calls.push({ headers: Object.fromEntries(request.headers), text: await request.text() });
        return new Response("ok");
      },
    });
    endings.push(() => receiver.stop(true));
    const service = also(await start({ hooksAllowed: LOOPBACK }));
    const here = (text: string): string => text.replaceAll("https://shop.example/", `${receiver.url}`);
    const { outputs } = await walk("docs/hooks.md", service, here);
    const { secret } = JSON.parse(outputs[0]!) as { secret: string };
    await ask(`${service.url}/devices/orders/till-7`, { method: "PUT" });
    const id = await push(service.url, "orders", { table: 7 });
    await give(service.url, "orders", id, "till-7", "done");
    await until(() => calls.length > 1, "the call behind the test");
    const bodies = calls.map(
      ({ text, headers }) => new Webhook(secret).verify(text, headers) as { type: string; data: { id?: string } },
    );
    expect(bodies.map(({ type, data }) => [type, data.id])).toEqual([
      ["pere.test", undefined],
      ["pere.complete", id],
    ]);
  });
});

describe("shell blocks run", () => {
  const LISTENS = /^PERE listening on (https?:\S+)$/m;
  const isService = (command: string): boolean => /\bbun run index\.ts( demo)?$/.test(command);
  const isLasting = (command: string): boolean =>
    /hostlistener|publisher|pere\.sh|pere\.py (listen|receipts)/.test(command);
  const isSkipped = (command: string): boolean => /^(docker |bun (install|run [a-z]+)\b(?!\.))/.test(command);

  /** Runs the shell blocks of a document against a service. @returns the commands that ran */
  async function runAll(
    document: string,
    service: Service | null,
    replace: (text: string) => string = (text) => text,
    folder = workplace(),
  ): Promise<string[]> {
    await Bun.write(join(folder, "print-order"), "#!/bin/sh\ntee -a printed\n");
    chmodSync(join(folder, "print-order"), 0o755);
    const ran: string[] = [];
    const env = { PERE_DB: join(folder, "pere.db"), PORT: "0" };
    let output = "";
    for (const block of (await codeOf(document)).filter(({ language }) => language === "sh")) {
      const lasting: (Running & { readonly shown: string })[] = [];
      const printed = (): number => Bun.file(join(folder, "printed")).size;
      const before = printed();
      for (const shown of commandsOf(block)) {
        if (isSkipped(shown)) continue;
        const command = replace(shown)
          .replaceAll("http://127.0.0.1:4567", service?.url ?? "")
          .replaceAll("PERE_TOKEN=…", `PERE_TOKEN=${output.trim()}`)
          .replaceAll("PERE_JWT_SECRET=…", `PERE_JWT_SECRET='${SECRET}'`)
          .replaceAll(/\bPORT=\d+/g, "PORT=0");
        const running = background(run(command, folder, env));
        ran.push(shown);
        if (isService(command)) {
          await until(
            () => LISTENS.test(running.output.text),
            () => `${shown}: ${running.output.text}`,
          );
          running.child.kill("SIGTERM");
        } else if (isLasting(command)) {
          lasting.push({ ...running, shown });
          // What is pushed next is for it.
          if (service && /listen|pere\.sh/.test(command))
            await until(
              async () =>
                ((await ask(`${service.url}/devices/orders`)).body.devices ?? []).some(
                  ({ connected }: { connected: boolean }) => connected,
                ),
              () => `${shown} to connect: ${running.output.text}`,
            );
          continue;
        }
        expect([shown, await running.ended(), running.output.text]).toEqual([shown, 0, expect.any(String)]);
        output = running.output.text;
      }
      // What goes on for as long as it is let has something to tell as soon as there are events.
      for (const running of lasting) {
        const hasWorked = (): boolean =>
          running.shown.includes("print-order") ? printed() > before : running.output.text !== "";
        await until(
          async () => {
            if (service) await push(service.url, "orders", { table: 9 });
            return hasWorked() || running.child.exitCode !== null;
          },
          () => `${running.shown} to do something: ${running.output.text}`,
        );
      }
      for (const running of lasting) {
        running.child.kill("SIGTERM");
        // 130 and 143: by the signal.
        expect([0, 130, 143], running.output.text).toContain(await running.ended());
      }
    }
    return ran;
  }

  test("README", async () => {
    expect(await runAll("README.md", null)).toEqual(["bun run index.ts"]);
  });

  test("docs/access.md: a listener connects with the issued token", async () => {
    const service = also(await startWith());
    const ran = runAll("docs/access.md", null, (text) => text.replace("http://shop.example:4567", service.url));
    expect(await ran).toHaveLength(2);
  });

  test("docs/console-and-device-page.md: the demo", async () => {
    expect(await runAll("docs/console-and-device-page.md", null)).toEqual(["bun run index.ts demo"]);
  });

  test("docs/deployment.md and docs/hooks.md", async () => {
    expect(await runAll("docs/deployment.md", null)).toHaveLength(2);
    expect(await runAll("docs/hooks.md", null)).toHaveLength(1);
  });

  test("docs/sdk-javascript.md: the listener and the publisher", async () => {
    expect(await runAll("docs/sdk-javascript.md", also(await start()))).toHaveLength(2);
  });

  test.skipIf(!Bun.which("python3"))("docs/python-and-shell.md: a push waits for the listener's receipt", async () => {
    const service = also(await start());
    expect(await runAll("docs/python-and-shell.md", service)).toHaveLength(6);
    const { events } = (await ask(`${service.url}/events/orders`)).body as { events: { data: { table: number } }[] };
    expect(events[0]).toMatchObject({ data: { table: 7 }, receipts: { done: 1 } });
  });

  test.skipIf(!Bun.which("python3"))(
    "docs/python-and-shell.md: the Python programs, plain and in asyncio",
    async () => {
      const blocks = (await codeOf("docs/python-and-shell.md")).filter(({ language }) => language === "python");
      expect(blocks).toHaveLength(6);
      // Those about deferrals and withdrawals are between the plain ones and those of asyncio.
      const [handler, office] = blocks.splice(2, 2) as [Block, Block];
      for (const prints of ["def print_order", "async def print_order"]) {
        const service = also(await start());
        const folder = workplace();
        const python = async (block: Block, before: string): Promise<Running> => {
          const script = `import asyncio, pere\n${before}\n${block.text}`.replaceAll(
            "http://127.0.0.1:4567",
            service.url,
          );
          await Bun.write(join(folder, `block-${block.line}.py`), script);
          const env = {
            PYTHONPATH: join(ROOT, "clients", "python"),
            PYTHONDONTWRITEBYTECODE: "1",
            PYTHONUNBUFFERED: "1",
          };
          return background(run(`python3 block-${block.line}.py`, folder, env));
        };
        const device = await python(blocks.shift()!, `${prints}(data): print("printed", data); return "well"`);
        await until(
          async () => ((await ask(`${service.url}/devices/orders`)).body.devices ?? []).length > 0,
          () => device.output.text,
        );
        const publisher = await python(blocks.shift()!, "");
        const output = () => `${device.output.text}${publisher.output.text}`;
        await until(() => /^True \{.*'done': 1/m.test(publisher.output.text), output, 30_000);
        // What is pushed from now on has receipts to show.
        await until(
          async () => (await push(service.url, "orders", 8), /'detail': 'well'/.test(publisher.output.text)),
          output,
        );
        expect(device.output.text).toStartWith("printed {'table': 7}\n");
        if (prints.startsWith("async")) continue;
        device.child.kill();
        await device.child.exited;
        const pages = await python(
          handler,
          "def printer_is_busy(): return False\ndef print_page(page):\n    print('page', page)\n    import time; time.sleep(0.05)",
        );
        const long = await push(
          service.url,
          "orders",
          { pages: Array.from({ length: 2_000 }, (_, page) => page) },
          "?to=till-7",
        );
        await until(
          () => /page 1\n/.test(pages.output.text),
          () => pages.output.text,
        );
        await ask(`${service.url}/events/orders/${long}?note=stop`, { method: "DELETE" });
        await until(
          () => pages.output.text.includes(`${long} withdrawn stop\n`),
          () => pages.output.text,
        );
        const scheduling = await python(office, `url = "${service.url}"`);
        await until(
          () => /^\['20\d\d-.*22:00:00\.000Z'\]|^\['20.*2[01]:00:00\.000Z'\]/m.test(scheduling.output.text),
          () => scheduling.output.text,
        );
        await until(async () => (await ask(`${service.url}/scheduled/kiosks`)).body.scheduled.length === 0);
      }
    },
  );

  test.skipIf(!Bun.which("openssl"))("docs/operations.md: a backup is made and restored, TLS is served", async () => {
    const folder = workplace();
    const db = join(folder, "pere.db");
    const service = await start({}, db);
    await push(service.url, "orders", { table: 7 });
    await service.stop();
    const made = [
      "openssl",
      ...`req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost`.split(" "),
    ];
    const files = ["-keyout", join(folder, "privkey.pem"), "-out", join(folder, "fullchain.pem")];
    expect(Bun.spawnSync([...made, ...files]).exitCode).toBe(0);
    const other = also(await start());
    const ran = await runAll(
      "docs/operations.md",
      null,
      (text) =>
        text
          .replace("/backups/", `${folder}/`)
          .replace(/^(?=.* restore )/, `PERE_DB=${folder}/restored.db `)
          .replace("https://push.example.com", `${other.url} --seconds 1`)
          .replace("HOST=0.0.0.0", "HOST=127.0.0.1"),
      folder,
    );
    expect(ran).toHaveLength(5);
    const restored = also(await start({}, join(folder, "restored.db")));
    expect((await ask(`${restored.url}/events/orders`)).body.events).toMatchObject([{ data: { table: 7 } }]);
  });

  test.skipIf(noRedis !== null)("docs/redis.md", async () => {
    const redis = await startRedis();
    endings.push(() => redis.end());
    const ran = runAll("docs/redis.md", null, (text) => text.replace("redis://127.0.0.1:6379", redis.url));
    expect(await ran).toHaveLength(2);
  });

  test("the shell blocks of all documents are run", async () => {
    const here = await Bun.file(import.meta.path).text();
    // Recipes' commands run in `recipes.test.ts`.
    for (const document of DOCUMENTS) {
      const blocks = await codeOf(document);
      const commands = blocks.filter(({ language }) => language === "sh").flatMap(commandsOf);
      if (commands.some((one) => !isSkipped(one)) && !/^CONTRIBUTING|^docs.recipes/.test(document))
        expect(here).toMatch(new RegExp(`runAll\\(\\s*"${document}"`));
      if (blocks.some(({ language }) => language === "console")) expect(here).toContain(`walk("${document}"`);
    }
  });
});
