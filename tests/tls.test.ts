/**
 * TLS and HTTP/2: a browser with twelve feeds over one connection, a WebSocket beside them, and a certificate that is replaced while all go on.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { appendFileSync, copyFileSync } from "node:fs";
import { connect as connectHttp2, constants } from "node:http2";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { readCertificate } from "../engine/http/certificate.ts";
import { command } from "./support/commands.ts";
import { ask, push, spawn, startWith, temporary, until } from "./support/harness.ts";
import { Proxy } from "./support/proxy.ts";

const folder = temporary();
const file = (name: string): string => join(folder, `${name}.pem`);

/** A certificate of one's own and its key. */
async function make(name: string): Promise<void> {
  const command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const where = ["-keyout", file(`${name}-key`), "-out", file(name)];
  const whose = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const child = Bun.spawn(["openssl", ...command, ...where, ...whose], { stdout: "ignore", stderr: "pipe" });
  if ((await child.exited) !== 0) throw new Error(await new Response(child.stderr).text());
}
beforeAll(() => Promise.all(["first", "second"].map(make)));
afterAll(closeBrowser);

/** Whose certificate is shown, and which protocol is chosen of these. */
function shake(url: string, offered: string[]): Promise<{ name: string; protocol: string | false | null }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ name: string; protocol: string | false | null }>();
  const { hostname, port } = new URL(url);
  const options = { host: hostname, port: Number(port), rejectUnauthorized: false, ALPNProtocols: offered };
  const socket = connectTls(options, () => {
    resolve({ name: String(socket.getPeerCertificate().subject.CN), protocol: socket.alpnProtocol });
    socket.destroy();
  });
  socket.on("error", reject);
  return promise;
}

// The certificates are the test's own, and nobody vouches for them.
const strict = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
beforeAll(() => void (process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"));
afterAll(() => {
  if (strict === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  else process.env.NODE_TLS_REJECT_UNAUTHORIZED = strict;
});

const TLS = { cert: file("first"), key: file("first-key") };

/** What the page of the test below knows. */
interface Page {
  readonly ready: number;
  readonly got: string[];
  readonly socket: { pere?: string; recorded?: number; data?: unknown }[];
  readonly pushed: number;
  readonly protocol: string;
}

browserTest(
  "a browser has twelve feeds over one connection, a WebSocket beside them, and pushes in between",
  async () => {
    const service = await startWith({ access: "open", tls: TLS });
    const proxy = await Proxy.to(Number(new URL(service.url).port));
    const url = `https://127.0.0.1:${proxy.port}`;
    const view = openTab(600, 400, () => {}, ["--ignore-certificate-errors"]);
    await view.navigate(`${url}/swagger`);
    await view.evaluate(`(() => {
    const page = (globalThis.page = { ready: 0, got: [], socket: [], pushed: 0 });
    page.feeds = Array.from({ length: 12 }, (_, n) => {
      const feed = new EventSource("/feed/orders?device=tab-" + n);
      feed.addEventListener("pere.ready", () => page.ready++);
      feed.onmessage = ({ data }) => page.got.push(n + " " + JSON.parse(data).data);
      return feed;
    });
    const socket = new WebSocket("wss://" + location.host + "/feed/orders?device=socket", ["pere.v1"]);
    socket.onmessage = ({ data }) => {
      const said = JSON.parse(data);
      page.socket.push(said);
      if (said.id) socket.send(JSON.stringify({ event: said.id, status: "done" }));
    };
  })()`);
    const page = async (): Promise<Page> =>
      JSON.parse(
        (await view.evaluate(`JSON.stringify({ ...globalThis.page, feeds: 0, protocol:
          performance.getEntriesByType("resource").find(({ name }) => name.endsWith("/push/orders"))?.nextHopProtocol ?? "" })`)) as string,
      ) as Page;
    await until(async () => {
      const { ready, socket } = await page();
      return ready === 12 && socket.some(({ pere }) => pere === "ready");
    }, "thirteen feeds");
    await view.evaluate(
      `fetch("/push/orders", { method: "POST", headers: { "Content-Type": "application/json" }, body: "7" })
      .then(async (response) => { await response.text(); page.pushed = response.status; })`,
    );
    await until(async () => (await page()).socket.some(({ recorded }) => recorded === 1), "the socket's receipt");
    const got = await until(async () => {
      const found = await page();
      return found.got.length >= 12 && found.protocol !== "" && found;
    }, "the event in every feed");
    expect(got.got.toSorted()).toEqual(Array.from({ length: 12 }, (_, n) => `${n} 7`).toSorted());
    expect([got.pushed, got.protocol]).toEqual([201, "h2"]);
    expect(service.engine.readers.transports).toEqual({ sse: 12, websocket: 1, poll: 0 });
    // One for pages, feeds and pushes, the WebSocket's own, and at times one that was opened ahead and is not used. Over HTTP/1.1 there would be
    // six, with six feeds that wait.
    expect(proxy.lines).toBeLessThan(5);
    view.close();
    await proxy.stop();
    await service.stop();
  },
);

test("a cancelled feed on a shared connection ends alone, and one that stops reading does not affect the others", async () => {
  const service = await startWith({ access: "open", tls: TLS });
  const session = connectHttp2(service.url, { rejectUnauthorized: false });
  const texts = ["", "", ""];
  const feeds = texts.map((_, n) => {
    const feed = session.request({ ":path": `/feed/orders?device=d${n}` });
    feed.setEncoding("utf8").on("data", (text: string) => (texts[n] += text));
    feed.on("error", () => {});
    return feed;
  });
  await until(() => texts.every((text) => text.includes("pere.ready")), "three feeds");
  feeds[0]!.close(constants.NGHTTP2_CANCEL);
  await until(() => service.engine.held.feeds === 2, "two feeds");
  feeds[1]!.pause();
  const long = "x".repeat(50_000);
  for (let n = 0; n < 40; n++) await push(service.url, "orders", long);
  const last = await push(service.url, "orders", "last");
  await until(() => texts[2]!.includes(last), "all of it at the reader");
  const { followers } = service.engine.readers;
  await until(() => followers - service.engine.held.live === 1, "one who is behind");
  feeds[1]!.resume();
  await until(() => texts[1]!.includes(last), "all of it at who read on");
  session.destroy();
  await service.stop();
});

test("on SIGHUP new connections get the replaced certificate; an invalid one changes nothing; open connections stay", async () => {
  const use = (cert: string, key = `${cert}-key`): void => {
    copyFileSync(file(cert), file("used"));
    copyFileSync(file(key), file("used-key"));
  };
  use("first");
  const service = await spawn({ PERE_DB: ":memory:", PERE_TLS_CERT: file("used"), PERE_TLS_KEY: file("used-key") });
  const { url } = service;
  expect(url).toStartWith("https://");
  expect(await shake(url, ["h2", "http/1.1"])).toEqual({ name: "first", protocol: "h2" });
  expect((await shake(url, ["http/1.1"])).protocol).toBe("http/1.1");
  const response = await fetch(`${url}/feed/orders?device=till-7`);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let told = "";
  const reads = async (text: string): Promise<void> => {
    while (!told.includes(text)) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`it ended: ${told}`);
      told += value;
    }
  };
  await reads("pere.ready");

  use("first", "second-key");
  service.child.kill("SIGHUP");
  const log = service.child.stderr.pipeThrough(new TextDecoderStream()).getReader();
  expect((await log.read()).value).toContain("PERE_TLS_KEY is not the key of PERE_TLS_CERT");
  expect((await shake(url, ["h2"])).name).toBe("first");

  // One that is written while it is read: its own part is whole, and what vouches for it is not.
  use("second");
  appendFileSync(file("used"), "-----BEGIN CERTIFICATE-----\nMIIB");
  service.child.kill("SIGHUP");
  expect((await log.read()).value).toContain("PERE_TLS_CERT can't be used");
  expect((await shake(url, ["h2"])).name).toBe("first");

  use("second");
  service.child.kill("SIGHUP");
  await until(async () => (await shake(url, ["h2"]).catch(() => null))?.name === "second", "the second certificate");
  const id = await push(url, "orders", 1);
  await reads(id);
  service.child.kill("SIGTERM");
  await reads('"drain"');
  expect(await service.child.exited).toBe(0);
});

test.each([
  ["first", "second-key", "PERE_TLS_KEY is not the key of PERE_TLS_CERT"],
  ["first-key", "first-key", "PERE_TLS_CERT does not contain a certificate"],
  ["first", "first", "PERE_TLS_KEY does not contain a private key"],
  ["nowhere", "first-key", "PERE_TLS_CERT can't be read"],
])("files %s and %s stop the start: %s", async (cert, key, message) => {
  expect(() => readCertificate({ cert: file(cert), key: file(key) })).toThrow(message);
});

test("unknown paths are answered as without TLS, by both protocols", async () => {
  const service = await startWith({ access: "open", tls: TLS });
  const session = connectHttp2(service.url, { rejectUnauthorized: false });
  const overHttp2 = async (path: string): Promise<{ status: number; detail: string; allow: string | undefined }> => {
    const { promise, resolve } = Promise.withResolvers<{ status: number; allow: string | undefined }>();
    const request = session.request({ ":path": path });
    request.on("response", (head) =>
      resolve({ status: Number(head[":status"]), allow: head.allow as string | undefined }),
    );
    let text = "";
    for await (const part of request.setEncoding("utf8")) text += part;
    return { ...(await promise), detail: (JSON.parse(text) as { detail: string }).detail };
  };
  for (const path of ["/nothing", "/push/orders"]) {
    const { status, headers, body } = await ask(`${service.url}${path}`);
    const allow = headers.get("allow") ?? undefined;
    expect([status, allow]).toEqual(path === "/nothing" ? [404, undefined] : [405, "POST"]);
    expect(await overHttp2(path)).toEqual({ status, allow, detail: body.detail });
    expect(body.detail).toContain(path === "/nothing" ? "at /nothing" : "/push/orders does not take GET");
  }
  session.destroy();
  await service.stop();
});

test("the link's cookie is Secure if the service has TLS", async () => {
  const service = await startWith({ access: "own", tls: TLS });
  const answer = await ask(`${service.url}${await service.link()}`);
  expect(answer.headers.get("set-cookie")).toContain("Secure");
  await service.stop();
});

test("the health check of a container supports TLS too", async () => {
  const env = { PERE_DB: ":memory:", PERE_TLS_CERT: TLS.cert, PERE_TLS_KEY: TLS.key };
  const service = await spawn(env);
  const { port } = new URL(service.url);
  expect((await command(["health"], { ...env, PORT: port })).code).toBe(0);
  expect((await command(["health"], { PORT: port })).code).toBe(1);
  await service.end("SIGTERM");
});
