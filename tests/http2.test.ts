/**
 * HTTP/2 as clients in use speak it: a refusal reaches its sender although the body was not looked at, and how many feeds one connection carries.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { connect as connectHttp2 } from "node:http2";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { discardBody } from "../engine/http/body.ts";
import type { Service } from "../index.ts";
import { SECRET, startWith, temporary } from "./support/harness.ts";

const folder = temporary();
const [cert, key] = [join(folder, "certificate.pem"), join(folder, "key.pem")];
let pere: Service;
let token: string;

beforeAll(async () => {
  const command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const whose = ["-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"];
  const child = Bun.spawn(["openssl", ...command, ...whose], { stdout: "ignore", stderr: "pipe" });
  if ((await child.exited) !== 0) throw new Error(await new Response(child.stderr).text());
  pere = await startWith({ tls: { cert, key } });
  token = await issueToken({ secret: SECRET, now: Date.now }, { sub: "till", push: ["*"], feed: ["*"], days: 1 });
});
afterAll(() => pere.stop());

const CURL = Bun.which("curl");
/** What curl of Debian speaks HTTP/2 with. */
const hasHttp2 = CURL !== null && Bun.spawnSync([CURL, "--version"]).stdout.toString().includes("HTTP2");

/** Asks by curl, over a connection of its own. @returns the status, and curl's own number for what went wrong */
async function curl(args: readonly string[], path: string, body: string): Promise<string> {
  const said = Bun.spawn(
    [CURL!, "-sk", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %{exitcode}"].concat(
      ["-H", "Content-Type: application/json", "--data-binary", "@-", ...args],
      pere.url + path,
    ),
    { stdin: new Blob([body]), stdout: "pipe", stderr: "ignore" },
  );
  return new Response(said.stdout).text();
}

test.skipIf(!hasHttp2 && process.env.CI !== "true")(
  `a request that is answered before its body was read gets the answer${hasHttp2 ? "" : " (skipped: no curl with HTTP/2)"}`,
  async () => {
    const bearer = ["-H", `Authorization: Bearer ${token}`];
    const asked: [status: number, args: string[], path: string][] = [
      [401, ["-X", "POST"], "/push/orders"],
      [401, ["-X", "POST"], "/feedback/orders"],
      [401, ["-X", "PUT"], "/hooks/orders/h"],
      [404, ["-X", "POST"], "/nothing"],
      [405, ["-X", "PUT"], "/push/orders"],
      [403, ["-X", "POST", "-H", "Origin: https://evil.example"], "/push/orders"],
      [400, ["-X", "POST", ...bearer], "/push/orders?tll=1"],
      [415, ["-X", "POST", ...bearer, "-H", "Content-Type: text/plain"], "/push/orders"],
      [404, ["-X", "DELETE", ...bearer], "/devices/orders/nobody"],
    ];
    for (const [status, args, path] of asked) {
      // The fault was a matter of chance, one in three or more.
      const answers = await Promise.all(
        [2_000, 2_000, 60_000, 60_000, 2_000].map((n) => curl(args, path, '"'.padEnd(n))),
      );
      expect(`${args[1]} ${path}: ${answers.join()}`).toBe(
        `${args[1]} ${path}: ${answers.map(() => `2 ${status} 0`).join()}`,
      );
    }
    for (const n of [1, 2, 3]) {
      expect(await curl(["-X", "PUT", ...bearer], `/devices/orders/d${n}`, "{}".padEnd(2_000))).toBe("2 201 0");
      expect(await curl(["-X", "DELETE", ...bearer], `/devices/orders/d${n}`, "1".padEnd(2_000))).toBe("2 204 0");
    }
    expect(await curl(["-X", "POST", ...bearer], "/push/orders", '"'.padEnd(70_000, "x") + '"')).toBe("2 413 0");
  },
  180_000,
);

test("a body that does not arrive, or has no end, delays its refusal only for a moment", async () => {
  let pulled = 0;
  const bodies = [
    new ReadableStream({ pull: () => new Promise(() => {}) }),
    new ReadableStream({ pull: (out) => void (pulled++, out.enqueue(new Uint8Array(64 * 1024))) }),
    new ReadableStream({ pull: (out) => out.error(new Error("gone")) }),
  ];
  // The first two would hold it up for good.
  await Promise.all(bodies.map((body) => discardBody(new Request("http://x/", { method: "POST", body }))));
  expect(pulled).toBeLessThan(30);
});

test("one connection carries 256 feeds and requests, and the doctor says so", async () => {
  const session = connectHttp2(pere.url, { rejectUnauthorized: false });
  const settings = await new Promise<{ maxConcurrentStreams?: number }>((resolve) =>
    session.on("remoteSettings", resolve),
  );
  expect(settings.maxConcurrentStreams).toBe(256);
  session.destroy();

  const child = Bun.spawn(
    [process.execPath, "run", join(import.meta.dir, "..", "index.ts"), "doctor", pere.url, "--seconds", "1"],
    { env: { PATH: process.env.PATH, PERE_TOKEN: token, NODE_EXTRA_CA_CERTS: cert }, stdout: "pipe", stderr: "pipe" },
  );
  expect(await new Response(child.stdout).text()).toContain("one connection carries 256 feeds and requests at once");
}, 60_000);
