/**
 * What is shipped in containers. `compose.yaml` promises two instances behind a plain proxy: here it is read as YAML, and its proxy configuration runs in a real nginx in front of
 * two real instances on one Redis.
 */
import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import packageJson from "../package.json";
import { ask, connect, give, listen, push, startOn, temporary, until } from "./support/harness.ts";
import { type Front, NGINX, startNginx } from "./support/front.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";
import type { Service } from "../index.ts";

/** Why the proxy is not run, or null. */
const noProxy: string | null = noRedis ?? (NGINX ? null : "there is no nginx on this machine");

interface Compose {
  readonly services: Readonly<
    Record<
      string,
      {
        readonly image?: string;
        readonly build?: string;
        readonly command?: string;
        readonly environment?: Readonly<Record<string, string>>;
        readonly volumes?: readonly string[];
        readonly ports?: readonly string[];
        readonly healthcheck?: { readonly test: readonly string[] };
      }
    >
  >;
  readonly volumes: Readonly<Record<string, unknown>>;
  readonly configs: { readonly proxy: { readonly content: string } };
}

const ROOT = join(import.meta.dir, "..");
const compose = Bun.YAML.parse(await Bun.file(join(ROOT, "compose.yaml")).text()) as Compose;

/** As nginx gets it: Compose reads two dollar signs as one, and one as its own. */
function proxyConfig(): string {
  const { content } = compose.configs.proxy;
  expect(content.replaceAll("$$", "")).not.toContain("$");
  return content.replaceAll("$$", "$");
}

const running: { service?: Service; redis?: RedisServer; proxy?: Front }[] = [];
afterAll(async () => {
  for (const { proxy } of running) await proxy?.end();
  for (const { service } of running) await service?.stop();
  for (const { redis } of running) await redis?.end();
});

test("compose.yaml: a durable Redis, two instances, and nothing published but the proxy on loopback", () => {
  const { services } = compose;
  expect(services.redis!.command).toContain("--appendonly yes");
  expect(services.redis!.command).toContain("--appendfsync always");
  expect(services.redis!.volumes).toEqual(["redis:/data"]);
  expect(compose.volumes).toHaveProperty("redis");
  expect(services.redis!.healthcheck?.test).toContain("ping");
  for (const name of ["pere-1", "pere-2"]) {
    expect(services[name]!.build).toBe(".");
    expect(services[name]!.environment).toEqual({
      REDIS_URL: "redis://redis:6379",
      PERE_OPEN: "1",
      PERE_PROXIES: "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16",
    });
    expect(proxyConfig()).toContain(`server ${name}:4567 `);
  }
  expect(Object.entries(services).flatMap(([name, { ports = [] }]) => ports.map((port) => `${name} ${port}`))).toEqual([
    "proxy 127.0.0.1:4567:80",
  ]);
});

test("the image has this version's label and this Bun, and .dockerignore admits everything that it copies", async () => {
  const text = await Bun.file(join(ROOT, "Dockerfile")).text();
  const stages = text.split(/^FROM /m).slice(1);
  const given = (await Bun.file(join(ROOT, ".dockerignore")).text()).split("\n");
  expect(text).toContain(`ARG BUN=${packageJson.engines.bun.replace(">=", "")}\n`);
  for (const stage of stages.filter((stage) => /AS (executable|service)/.test(stage))) {
    expect(stage).toContain(`image.version="${packageJson.version}"`);
    expect(stage).toMatch(/\nUSER \d+:\d+\n/);
    expect(stage).toMatch(/\nHEALTHCHECK .* CMD \["/);
  }
  for (const [, sources] of text.matchAll(/^COPY (?!--from)(.*) \S+$/gm))
    for (const source of sources!.split(" ").filter((word) => !word.startsWith("--")))
      expect(given).toContain(`!${source}`);
});

test.skipIf(noProxy !== null)(
  `its proxy configuration, in a real nginx, passes events at once and supports WebSockets${noProxy === null ? "" : ` (skipped: ${noProxy})`}`,
  async () => {
    const redis = await startRedis();
    running.push({ redis });
    const services = [await startOn(redis.url), await startOn(redis.url)];
    running.push(...services.map((service) => ({ service })));
    const port = lastingPort();
    const log = join(temporary(), "access.log");
    let text = proxyConfig().replace("listen 80;", `listen 127.0.0.1:${port};`).replace("/dev/stdout", log);
    services.forEach(({ url }, n) => (text = text.replace(`pere-${n + 1}:4567`, new URL(url).host)));
    const proxy = await startNginx(text, port);
    running.push({ proxy });
    const { url } = proxy;

    // Events one by one, each given before the next is pushed: nothing waits in the proxy for more.
    const streams = await Promise.all(["a", "b"].map((device) => listen(`${url}/feed/yard?device=${device}`)));
    const { socket, messages } = await connect(`${url}/feed/yard?device=c`);
    for (let n = 1; n <= 3; n++) {
      const id = await push(url, "yard", { n });
      for (const stream of streams) expect((await stream.have(n)).at(-1)!.id).toBe(id);
      await until(() => messages.some((message) => message.id === id), `${id} on the WebSocket`);
    }
    // The two feeds went to different instances, and the proxy told neither of its tricks.
    await until(() => services.every(({ engine }) => engine.held.feeds > 0), "a feed at each instance");
    expect(streams[0]!.response.headers.get("content-encoding")).toBeNull();

    // Receipts, over both.
    const [first] = streams[0]!.ids as [string];
    expect((await give(url, "yard", first, "a", "done")).body.recorded).toBe(1);
    socket.send(JSON.stringify({ event: first, status: "done" }));
    const said = () => messages.find(({ pere }) => pere === "receipts");
    expect((await until(said, "the receipt's answer")).recorded).toBe(1);
    expect((await ask(`${url}/events/yard/${first}`)).body.receipts.done).toBe(2);

    // One instance goes; the proxy goes on with the other.
    await services[0]!.stop();
    for (let n = 0; n < 4; n++) expect((await fetch(`${url}/health`)).status).toBe(200);
    await push(url, "yard", { n: 4 });

    // What may hold a token is not written down.
    await fetch(`${url}/feed/yard?wait=0&token=secret`, { headers: { Accept: "application/json" } });
    socket.close();
    for (const stream of streams) stream.close();
    await until(async () => (await Bun.file(log).text()).includes("GET /feed/yard 200"));
    expect(await Bun.file(log).text()).not.toContain("secret");
  },
  180_000,
);
