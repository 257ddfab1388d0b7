/**
 * A service without tokens is for its own machine: a proxy that brings others to it gets nothing, unless the operator said that everybody may.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { networkInterfaces } from "node:os";
import { closeAll, closing, handshake, JSON_ONLY, start } from "./support/callers.ts";
import { command } from "./support/commands.ts";
import { NGINX, startNginx } from "./support/front.ts";
import { ask, spawn } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";

afterEach(closeAll);

/** What proxies, CDNs and tunnels add. */
const FIELDS = [
  ["Forwarded", "for=192.0.2.60;proto=http"],
  ["X-Forwarded-For", "192.0.2.1"],
  ["x-forwarded-for", ""],
  ["X-Forwarded-Proto", "https"],
  ["X-Forwarded-Host", "push.example.com"],
  ["X-Forwarded-Prefix", "/pere"],
  ["X-Forwarded-Whatever", "1"],
  ["X-Real-IP", "192.0.2.1"],
  ["Via", "1.1 push.example.com"],
  ["CF-Connecting-IP", "192.0.2.1"],
  ["CF-Connecting-IPv6", "2001:db8::1"],
  ["CF-Ray", "230b030023ae2822-SJC"],
  ["CDN-Loop", "cloudflare"],
  ["True-Client-IP", "192.0.2.1"],
  ["Fastly-Client-IP", "192.0.2.1"],
  ["Fly-Client-IP", "192.0.2.1"],
  ["X-Client-IP", "192.0.2.1"],
  ["X-Cluster-Client-IP", "192.0.2.1"],
  ["X-Azure-ClientIP", "192.0.2.1"],
  ["CloudFront-Viewer-Address", "192.0.2.1:443"],
  ["X-Envoy-External-Address", "192.0.2.1"],
  ["X-Original-Forwarded-For", "192.0.2.1"],
] as const;

describe("without tokens, on loopback, a request that came through a proxy", () => {
  test("is refused on every transport, with a message that names the header field and advises tokens", async () => {
    const pere = await start({ access: "local" });
    for (const [name, value] of FIELDS) {
      const headers = { [name]: value };
      for (const [path, init] of [
        ["/push/orders", { body: 1 }],
        ["/feed/orders?device=d&wait=0", { headers: JSON_ONLY }],
        ["/feed/orders?device=d", {}],
        ["/feedback/orders", { body: [] }],
        ["/devices/orders/d", { method: "PUT" }],
        ["/channels", {}],
        ["/watch", {}],
        ["/metrics", {}],
        ["/swagger/json", {}],
        ["/", {}],
      ] as const) {
        const more = "headers" in init ? init.headers : {};
        const { status, body } = await ask(pere.url + path, { ...init, headers: { ...headers, ...more } });
        expect(`${name} ${path} ${status}`).toBe(`${name} ${path} 403`);
        expect(body.detail).toStartWith(`${name.toLowerCase()}: this service has no tokens`);
        expect(body.detail.indexOf("PERE_JWT_SECRET")).toBeLessThan(body.detail.indexOf("PERE_OPEN=1"));
        expect(body.detail).toContain("PERE_JWT_SECRET");
      }
      expect(await handshake(pere.url, "/feed/orders?device=d", headers)).toBe(403);
    }
    expect((await ask(`${pere.url}/channels`)).body.channels).toEqual([]);
  });

  test("is distinguished from requests of local programs", async () => {
    const pere = await start({ access: "local" });
    for (const name of ["traceparent", "baggage", "X-Amzn-Trace-Id", "X-Request-Id", "X-Requested-With", "Device"])
      expect((await ask(`${pere.url}/push/orders`, { body: 1, headers: { [name]: "a" } })).status).toBe(201);
  });

  test("is served with tokens, and with PERE_OPEN=1", async () => {
    for (const access of ["open", { secret: "another secret of thirty-two bytes" }] as const) {
      const pere = await start({ access });
      for (const [name, value] of FIELDS) {
        const headers = { [name]: value, Host: "push.example.com" };
        const { status } = await ask(`${pere.url}/push/orders`, { body: 1, headers });
        expect(`${name} ${status}`).toBe(`${name} ${access === "open" ? 201 : 401}`);
      }
    }
  });

  test("is refused by a PERE with default settings, and accepted with PERE_OPEN=1", async () => {
    for (const [env, status] of [
      [{}, 403],
      [{ PERE_OPEN: "1" }, 201],
    ] as const) {
      const { url, end } = await spawn({ PERE_DB: ":memory:", ...env });
      for (const headers of [{ "X-Forwarded-For": "192.0.2.1" }, { Host: "push.example.com" }] as Record<
        string,
        string
      >[])
        expect((await ask(`${url}/push/orders`, { body: 1, headers })).status).toBe(status);
      expect((await ask(`${url}/push/orders`, { body: 1 })).status).toBe(201);
      await end("SIGTERM");
    }
  });

  test("settings with origins or proxies on other machines stop the start", async () => {
    for (const env of [
      { PERE_ORIGINS: "https://push.example.com" },
      { PERE_ORIGINS: "*" },
      { PERE_PROXIES: "127.0.0.1/32" },
    ] as Record<string, string>[]) {
      const said = await spawn({ PERE_DB: ":memory:", ...env }).then(
        () => "it started",
        (error: Error) => error.message,
      );
      expect(said).toStartWith("PERE can't start: PERE_");
      expect(said).toContain("PERE_JWT_SECRET");
      expect(said.split("\n")).toHaveLength(1);
    }
  });
});

/** An address of this machine that is not loopback. */
const address = Object.values(networkInterfaces())
  .flat()
  .find((one) => one?.family === "IPv4" && !one.internal)?.address;
const missing = address === undefined ? "this machine has no address beside loopback" : null;
const noFront = missing ?? (NGINX ? null : "there is no nginx on this machine");

describe("the doctor", () => {
  const doctor = async (url: string, env: Record<string, string> = {}) => {
    const { code, stdout, stderr } = await command(["doctor", url, "--seconds", "0"], env);
    return { code, said: stdout + stderr };
  };

  test.skipIf(missing !== null)(
    `reports an address beyond loopback that answers without a token${missing ? ` (skipped: ${missing})` : ""}`,
    async () => {
      const open = await start({ host: "0.0.0.0", access: "open" });
      const { port } = new URL(open.url);
      const { code, said } = await doctor(`http://${address}:${port}`);
      expect(said).toContain(`fail  the service answers without a token at ${address}: anyone`);
      expect(said).toContain("PERE_JWT_SECRET");
      expect(code).toBe(1);
      expect((await doctor(`http://127.0.0.1:${port}`)).code).toBe(0);
      const closed = await start({ host: "0.0.0.0" });
      expect((await doctor(`http://${address}:${new URL(closed.url).port}`)).said).toContain(
        "ok    the service asks for a token",
      );
    },
    180_000,
  );

  test.skipIf(noFront !== null && process.env.CI !== "true")(
    `finds a proxy that hides its clients${noFront ? ` (skipped: ${noFront})` : ""}`,
    async () => {
      const pere = await start({ access: "local" });
      const front = async (lines: string): Promise<string> => {
        const port = lastingPort();
        const text = `events {} http { server { listen ${port}; location / { proxy_pass ${pere.url}; ${lines} } } }`;
        const { end } = await startNginx(text, port);
        closing.push(end);
        return `http://${address}:${port}`;
      };
      // As it comes nginx sends the service's own name and no field of its own: nothing tells such a request from one of this machine.
      const hiding = await front("");
      expect((await ask(`${hiding}/push/orders`, { body: 1 })).status).toBe(201);
      const { code, said } = await doctor(hiding);
      expect(said).toContain(`fail  the service answers without a token at ${address}`);
      expect(code).toBe(1);
      const honest = await front("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;");
      expect((await ask(`${honest}/push/orders`, { body: 1 })).status).toBe(403);
      const then = await doctor(honest);
      expect(then.said).toContain("fail  a push is refused: 403: x-forwarded-for: this service has no tokens");
      expect(then.said).toContain("set up tokens before you put it behind a proxy");
      expect(then.code).toBe(1);
    },
    180_000,
  );
});
