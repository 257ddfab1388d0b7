/**
 * A Redis that can't be reached for a reason that its operator can mend: a Cluster whose nodes announce addresses that lead nowhere from here, and a
 * certificate of a CA of one's own. Each is said with the address and with what to do.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { ask, spawn, temporary, until } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { type Cluster, startCluster } from "./support/redis-cluster-server.ts";
import { noRedis } from "./support/redis-server.ts";

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
const LIMIT_MS = 180_000;
const why = noRedis === null ? "" : ` (skipped: ${noRedis})`;

describe.skipIf(noRedis !== null)(`a Redis Cluster that announces unreachable addresses${why}`, () => {
  const begin = async (): Promise<Cluster> => {
    const cluster = await startCluster();
    closing.push(() => cluster.end());
    return cluster;
  };
  /** From now on a master says that it is at port 1, where nobody is; the others hear it from itself. */
  const announce = async (cluster: Cluster, nth: number, asked: number): Promise<void> => {
    const master = cluster.masters[nth]!;
    const { bus } = master as unknown as { bus: string };
    expect(await master.ask("CONFIG", "SET", "cluster-announce-bus-port", bus)).toBe("+OK");
    expect(await master.ask("CONFIG", "SET", "cluster-announce-port", "1")).toBe("+OK");
    await until(
      async () => (await cluster.masters[asked]!.ask("CLUSTER", "SLOTS")).includes(`:1\r\n$40\r\n${master.id}`),
      "the others to hear of it",
    );
  };

  test(
    "PERE reports which, in its log, at /ready and when a push is refused for it; other channels continue",
    async () => {
      const cluster = await begin();
      await announce(cluster, 1, 0);
      const [lost, kept] = await Promise.all(
        [1, 0].map(async (nth) => {
          for (let n = 0; ; n++) if ((await cluster.ownerOf(`{c${n}}`)).id === cluster.masters[nth]!.id) return `c${n}`;
        }),
      );
      const pere = await spawn({ REDIS_URL: [cluster.masters[0]!.url, cluster.masters[2]!.url].join(",") });
      closing.push(() => pere.end("SIGKILL"));
      let errors = "";
      void (async () => {
        const decoder = new TextDecoder();
        for await (const chunk of pere.child.stderr) errors += decoder.decode(chunk, { stream: true });
      })();
      const ready = await ask(`${pere.url}/ready`);
      expect(ready.body.advice.join()).toContain("2 of 3 answer, 127.0.0.1:1 does not");
      expect(ready.body.advice.join()).toContain("cluster-announce-ip");
      expect((await ask(`${pere.url}/push/${kept}`, { body: 1 })).status).toBe(201);
      const refused = await ask(`${pere.url}/push/${lost}`, { body: 1 });
      expect(refused.status).toBe(503);
      expect(refused.text).not.toContain("127.0.0.1");
      await until(
        () =>
          errors.split("\n").some((line) => line.includes("Redis can't be reached") && line.includes("127.0.0.1:1:")),
        () => `the log to name it; it has ${errors}`,
      );
    },
    LIMIT_MS,
  );

  test(
    "stops the start if none of them can be reached",
    async () => {
      const cluster = await begin();
      // A service may ask any of them, so each has to know it of all.
      for (const nth of [0, 1, 2]) for (const asked of [0, 1, 2]) await announce(cluster, nth, asked);
      const said = await spawn({ REDIS_URL: cluster.url }).then(
        () => "it started",
        (error: Error) => error.message,
      );
      expect(said).toMatch(/^PERE can't start: [^\n]*$/);
      expect(said).toContain("127.0.0.1:1");
    },
    LIMIT_MS,
  );
});

/** Certificates of a CA of the test's own, and a Redis that shows one. @returns its port and the CA's file; null: this Redis knows no TLS */
async function startTlsRedis(): Promise<{ port: number; ca: string } | null> {
  const folder = temporary();
  const at = (name: string): string => join(folder, name);
  const openssl = async (...args: string[]): Promise<void> => {
    const child = Bun.spawn(["openssl", ...args], { stdout: "ignore", stderr: "pipe" });
    if ((await child.exited) !== 0) throw new Error(await new Response(child.stderr).text());
  };
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  await openssl("req", "-x509", ...key, "-days", "2", "-keyout", at("ca-key"), "-out", at("ca.pem"), "-subj", "/CN=CA");
  await openssl("req", ...key, "-keyout", at("key.pem"), "-out", at("request"), "-subj", "/CN=redis");
  await Bun.write(at("names"), "subjectAltName=IP:127.0.0.1");
  const signed = [
    "-CA",
    at("ca.pem"),
    "-CAkey",
    at("ca-key"),
    "-CAcreateserial",
    "-days",
    "2",
    "-extfile",
    at("names"),
  ];
  await openssl("x509", "-req", "-in", at("request"), "-out", at("cert.pem"), ...signed);
  const port = lastingPort();
  const tls = ["--tls-port", String(port), "--tls-cert-file", at("cert.pem"), "--tls-key-file", at("key.pem")];
  const more = ["--tls-ca-cert-file", at("ca.pem"), "--tls-auth-clients", "no", "--save", "", "--dir", folder];
  const program = Bun.which("redis-server") ?? Bun.which("valkey-server")!;
  const child = Bun.spawn([program, "--port", "0", ...tls, ...more], { stdout: "pipe", stderr: "ignore" });
  closing.push(async () => {
    child.kill("SIGKILL");
    await child.exited;
  });
  let said = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    said += decoder.decode(chunk, { stream: true });
    if (said.includes("Ready to accept connections")) return { port, ca: at("ca.pem") };
  }
  if (/Bad directive|without TLS|FATAL CONFIG/i.test(said)) return null;
  throw new Error(said);
}

test.skipIf(noRedis !== null)(
  `a Redis with a certificate of a private CA is reached with NODE_EXTRA_CA_CERTS, which the error without it names${why}`,
  async () => {
    const redis = await startTlsRedis();
    if (redis === null) return; // Built without TLS.
    const env = { REDIS_URL: `rediss://127.0.0.1:${redis.port}` };
    const said = await spawn(env).then(
      () => "it started",
      (error: Error) => error.message,
    );
    expect(said).toMatch(/^PERE can't start: Redis can't be reached: [^\n]*$/);
    expect(said).toContain(`127.0.0.1:${redis.port}: `);
    expect(said).toContain("set NODE_EXTRA_CA_CERTS to a PEM file with the certificate of the CA that signed it");
    const pere = await spawn({ ...env, NODE_EXTRA_CA_CERTS: redis.ca });
    closing.push(() => pere.end("SIGKILL"));
    expect((await ask(`${pere.url}/push/orders`, { body: 1 })).status).toBe(201);
  },
  LIMIT_MS,
);
