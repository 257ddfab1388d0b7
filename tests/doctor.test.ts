/**
 * The doctor and its patients: a real nginx that collects answers, packs them, cuts them off or knows no WebSockets; a clock that is wrong, tokens
 * that are not good; and proxies set up as docs/deployment.md says, at which it finds nothing.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { readRanges } from "../engine/addresses.ts";
import type { Service } from "../index.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, startRedis, type RedisServer } from "./support/redis-server.ts";
import { command } from "./support/commands.ts";
import { ask, SECRET, spawn, start, startOn, startWith, temporary, until } from "./support/harness.ts";
import { CADDY, type Front, NGINX, startCaddy, startNginx } from "./support/front.ts";

/** A test of a program that others made. With `CI=true` a missing one is a failure, not a reason. */
const testOf = (program: string | null, name: string) => (what: string, run: () => Promise<void>) =>
  program || process.env.CI === "true"
    ? test(what, run)
    : test.skip(`${what} (skipped: there is no ${name} on this machine)`, run);
const nginxTest = testOf(NGINX, "nginx");
const caddyTest = testOf(CADDY, "caddy");

const running: { end?(): Promise<void>; stop?(): Promise<void> }[] = [];
const also = async <Started extends Front | RedisServer | Service>(started: Promise<Started>): Promise<Started> => {
  const it = await started;
  running.unshift(it);
  return it;
};
afterEach(async () => {
  for (const it of running.splice(0)) await (it.end ?? it.stop)!();
});

/** What the doctor says of an address, and the code it ends with. */
async function doctor(
  url: string,
  token = "",
  seconds = 0,
  ...more: string[]
): Promise<{ code: number; said: string }> {
  const args = ["doctor", url, "--seconds", String(seconds), ...more];
  const { code, stdout, stderr } = await command(args, token ? { PERE_TOKEN: token } : {});
  return { code, said: stdout + stderr };
}

/** An nginx before a service, with these lines where it passes requests on. */
async function nginx(service: Service, lines: string): Promise<string> {
  const port = lastingPort();
  const text = `events {} http { server { listen 127.0.0.1:${port}; location / { proxy_pass ${service.url}; ${lines} } } }`;
  return (await also(startNginx(text, port))).url;
}
const UPGRADE = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;";

test("finds no fault at a service without a proxy, and leaves nothing behind", async () => {
  const { url } = await also(start());
  const { code, said } = await doctor(url, "", 1);
  expect(said).toContain("Nothing is wrong between here and there.");
  expect(code).toBe(0);
  for (const words of [
    "the service answers; the round trip takes",
    "a WebSocket opens",
    "the service's clock and this machine's agree",
    "by event stream",
    "by WebSocket",
    "receipts were recorded",
    "a quiet event stream stays open for 1 s",
    "a quiet WebSocket stays open for 1 s",
    "a response may take 1 s",
  ])
    expect(said).toContain(`${words}`);
  expect((await ask(`${url}/devices/pere-doctor`)).body.devices).toEqual([]);
});

describe("in front of the service", () => {
  nginxTest("an nginx that buffers is found", async () => {
    // As it comes, nginx speaks HTTP/1.0 behind itself, and then passes on full buffers only.
    const url = await nginx(await also(start()), "proxy_ignore_headers X-Accel-Buffering;");
    const { code, said } = await doctor(url);
    expect(said).toContain("fail  event streams are held back on the way");
    expect(said).toContain("proxy_buffering off");
    expect(code).toBe(1);
  });

  nginxTest("an nginx that compresses event streams is found", async () => {
    const packing = "gzip on; gzip_proxied any; gzip_types text/event-stream; gzip_min_length 0;";
    const url = await nginx(await also(start()), `${UPGRADE} ${packing} proxy_ignore_headers X-Accel-Buffering;`);
    const { code, said } = await doctor(url);
    expect(said).toContain("fail  event streams are");
    expect(code).toBe(1);
    // Where only the packing is in the way, that is what it says.
    const other = await nginx(await also(start()), `${UPGRADE} ${packing} proxy_buffering off;`);
    const { said: saidThen } = await doctor(other);
    expect(saidThen).toMatch(/event streams are compressed \(gzip\)/);
    expect(saidThen).toContain("gzip off");
  });

  nginxTest("an nginx that closes quiet connections is found", async () => {
    const url = await nginx(await also(start()), `${UPGRADE} proxy_read_timeout 1s;`);
    const { code, said } = await doctor(url, "", 4);
    expect(said).toMatch(/fail {2}a quiet event stream is closed after \d s/);
    expect(said).toMatch(/fail {2}a quiet WebSocket is closed after \d s/);
    expect(said).toMatch(/fail {2}a response that takes 4 s is cut off after \d s \(status 504\)/);
    expect(said).toContain("proxy_read_timeout 150s");
    expect(code).toBe(1);
  });

  nginxTest("an nginx without WebSockets is found", async () => {
    const url = await nginx(await also(start()), "proxy_http_version 1.1;");
    const { code, said } = await doctor(url);
    expect(said).toContain("fail  no WebSocket opens");
    expect(said).toContain("by event stream");
    expect(code).toBe(1);
  });
});

describe("of the service itself", () => {
  test("a wrong clock is found", async () => {
    const { url } = await also(start({ now: () => Date.now() + 60_000 }));
    const { code, said } = await doctor(url);
    expect(said).toMatch(/fail {2}the service's clock and this machine's differ by (60000|59\d\d\d) ms/);
    expect(code).toBe(1);
  });

  test.skipIf(noRedis !== null)(
    `a Redis with weak durability is found${noRedis === null ? "" : ` (skipped: ${noRedis})`}`,
    async () => {
      const redis = await also(startRedis({ appendonly: "yes", appendfsync: "everysec" }));
      const { url } = await also(startOn(redis.url));
      const { code, said } = await doctor(url);
      expect(said).toMatch(/warn {2}its store is Redis [\d.]+, durability: second/);
      expect(said).toContain("→ Set appendfsync always");
      expect(code).toBe(0);
    },
  );

  test("a missing, expired, insufficient or invalid token is found, and never repeated", async () => {
    const { url } = await also(startWith());
    const token = async (...args: string[]): Promise<string> =>
      (await command(["token", ...args], { PERE_JWT_SECRET: SECRET })).stdout.trim();
    for (const [held, words] of [
      ["", "a push is refused: 401"],
      [await token("--sub", "till", "--feed", "*"), "a push is refused: 403"],
      [await token("--sub", "till", "--push", "*"), "no event stream opens: status 403"],
    ] as const) {
      const { code, said } = await doctor(url, held);
      expect(said).toContain(words);
      expect(said).toContain("pere-doctor");
      expect(code).toBe(1);
      if (held !== "") expect(said).not.toContain(held);
    }
    expect(await doctor(url, "secret")).toEqual({
      code: 1,
      said: "PERE can't examine: PERE_TOKEN is not a token: set it to a JWT, which is three parts with dots between them\n",
    });
    expect((await doctor(url, await token("--sub", "auth0|5f7c", "--push", "*"))).said).toBe(
      "PERE can't examine: PERE_TOKEN can't follow a feed, because its sub is not a device's name: use a token with one\n",
    );
    expect((await doctor(url, await token("--sub", "*", "--feed", "*", "--push", "*"))).code).toBe(0);
    const good = await token("--sub", "till", "--feed", "*", "--push", "*", "--days", "0.5");
    const { code, said } = await doctor(url, good, 1);
    expect(said).toContain("warn  the token is for till and expires in 0.5 days");
    expect(said).toContain("Nothing is wrong");
    expect(code).toBe(0);
  });

  test("an address without a service, and one with something else, are found", async () => {
    const other = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("a shop") });
    for (const url of [`http://127.0.0.1:${lastingPort()}`, `http://127.0.0.1:${other.port}`]) {
      const { code, said } = await doctor(url);
      expect(said).toStartWith(`fail  no PERE answers at ${url}: `);
      expect(code).toBe(1);
    }
    await other.stop(true);
  });

  test("--help lists the options", async () => {
    const { code, stdout } = await command(["doctor", "--help"]);
    expect(code).toBe(0);
    for (const option of ["--seconds N", "--channel NAME", "PERE_TOKEN"]) expect(stdout).toContain(option);
  });

  test("wrong arguments are reported in one line", async () => {
    for (const args of [
      [],
      ["x"],
      ["ftp://a"],
      ["http://a", "http://b"],
      ["http://a", "--seconds", "x"],
      ["http://a", "-x"],
    ]) {
      const { code, stdout, stderr } = await command(["doctor", ...args]);
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^PERE can't examine: [^\n]+\n$/);
    }
  });
});

describe("the proxies of docs/deployment.md", () => {
  /** The block of the section in that language. */
  async function snippet(language: string): Promise<string> {
    const text = await Bun.file(join(import.meta.dir, "..", "docs", "deployment.md")).text();
    const section = text.slice(text.indexOf("\n## Behind a proxy\n"));
    const [, block] = new RegExp(`\\n\`\`\`${language}\\n(.*?)\\n\`\`\`\\n`, "s").exec(section)!;
    return block!;
  }
  /** As it stands there, but here. */
  const here = (text: string, changes: Readonly<Record<string, string>>): string =>
    Object.entries(changes).reduce((changed, [from, to]) => {
      expect(changed).toContain(from);
      return changed.replace(from, to);
    }, text);

  /** A service behind a proxy, with tokens as the document says, and a token for the doctor. */
  async function behind(): Promise<{ service: Service; token: string }> {
    const service = await also(startWith({ proxies: readRanges("127.0.0.1/32") }));
    const args = ["token", "--sub", "till", "--feed", "*", "--push", "*"];
    return { service, token: (await command(args, { PERE_JWT_SECRET: SECRET })).stdout.trim() };
  }

  nginxTest("nginx passes all checks, and logs no token", async () => {
    const { service, token } = await behind();
    const port = lastingPort();
    const log = join(temporary(), "access.log");
    const changes = {
      "listen 80;": `listen 127.0.0.1:${port};`,
      "http://127.0.0.1:4567": service.url,
      "/var/log/nginx/pere.log": log,
    };
    const { url } = await also(startNginx(`events {}\nhttp {\n${here(await snippet("nginx"), changes)}\n}`, port));
    const { code, said } = await doctor(url, token, 2);
    expect(said).toContain("Nothing is wrong between here and there.");
    expect(code).toBe(0);
    await fetch(`${url}/feed/orders?wait=0&token=secret`, { headers: { Accept: "application/json" } });
    // It writes a line when it is done with an answer, which is after us.
    const written = await until(async () => {
      const text = await Bun.file(log).text();
      return text.includes("GET /feed/orders 401") && text;
    }, "the line");
    expect(written).not.toContain("secret");
  });

  caddyTest("Caddy passes all checks", async () => {
    const { service, token } = await behind();
    const port = lastingPort();
    const changes = { "push.example.com": `http://127.0.0.1:${port}`, "127.0.0.1:4567": new URL(service.url).host };
    const { url } = await also(startCaddy(here(await snippet("caddyfile"), changes), port));
    const { code, said } = await doctor(url, token, 2);
    expect(said).toContain("Nothing is wrong between here and there.");
    expect(code).toBe(0);
    // It packs pages, and leaves event streams as they are.
    const page = await fetch(`${url}/weblistener.html`, { headers: { "Accept-Encoding": "gzip" } });
    expect(page.headers.get("content-encoding")).toBe("gzip");
    await page.text();
  });

  test("Traefik's is valid YAML with the required fields (Debian has no traefik to run it)", async () => {
    const { http } = Bun.YAML.parse(await snippet("yaml")) as {
      http: {
        routers: { pere: { rule: string; service: string } };
        services: {
          pere: { loadBalancer: { servers: { url: string }[]; responseForwarding: { flushInterval: string } } };
        };
      };
    };
    expect(http.routers.pere).toMatchObject({ service: "pere" });
    expect(http.services.pere.loadBalancer.responseForwarding.flushInterval).toBe("-1ms");
  });
});

test("health exits with 0 if the service is alive, with 1 if not", async () => {
  const PORT = String(lastingPort());
  const service = await spawn({ PERE_DB: ":memory:", PORT });
  for (const HOST of ["127.0.0.1", "0.0.0.0"]) expect((await command(["health"], { HOST, PORT })).code).toBe(0);
  await service.end("SIGTERM");
  expect((await command(["health"], { PORT })).code).toBe(1);
});
