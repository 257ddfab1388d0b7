/**
 * Signals, as an operator, a supervisor or a terminal sends them: none ends the service but after a drain, and SIGHUP reads certificate and keys again.
 */
import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { connect as dial } from "node:net";
import { join } from "node:path";
import { SignJWT, exportJWK, generateKeyPair } from "jose";
import { ask, listen, openStream, type Process, spawn, temporary, until } from "./support/harness.ts";

const alive = async ({ url }: Process): Promise<boolean> => (await ask(`${url}/health`)).status === 200;

test("other signals are ignored: USR1, USR2, PIPE, HUP and similar ones", async () => {
  const pere = await spawn({ PERE_DB: join(temporary(), "pere.db") });
  const stream = await listen(`${pere.url}/feed/orders?device=till`);
  for (const signal of [
    "SIGUSR1",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGVTALRM",
    "SIGPROF",
    "SIGIO",
    "SIGHUP",
  ] as const) {
    pere.child.kill(signal);
    expect(`${signal} ${await alive(pere)}`).toBe(`${signal} true`);
  }
  expect((await ask(`${pere.url}/push/orders`, { body: 1 })).status).toBe(201);
  await stream.have(1);
  expect([stream.ended, pere.child.exitCode, pere.child.signalCode]).toEqual([false, null, null]);
  stream.close();
  expect(await pere.end("SIGTERM")).toBe(0);
});

test.each(["SIGTERM", "SIGINT", "SIGQUIT"] as const)(
  "%s drains: feeds are told, and the exit code is 0",
  async (signal) => {
    const pere = await spawn({ PERE_DB: join(temporary(), "pere.db") });
    const stream = await openStream(`${pere.url}/feed/orders?device=till`);
    await stream.own("ready");
    expect(await pere.end(signal)).toBe(0);
    expect(await stream.own("bye")).toEqual({ reason: "drain" });
  },
);

test("a second signal of any kind ends it at once", async () => {
  const pere = await spawn({ PERE_DB: ":memory:" });
  const { hostname, port } = new URL(pere.url);
  // A request that is under way is waited for.
  const slow = dial(Number(port), hostname).on("error", () => {});
  slow.write(
    "POST /push/orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n1",
  );
  await alive(pere);
  pere.child.kill("SIGTERM");
  pere.child.kill("SIGINT");
  expect(await pere.child.exited).toBe(1);
  slow.destroy();
});

test("SIGHUP reads a replaced key set, also without TLS; an unusable one changes nothing, and the log says so", async () => {
  const file = join(temporary(), "keys.json");
  const pairs = {
    old: await generateKeyPair("EdDSA", { extractable: true }),
    new: await generateKeyPair("EdDSA", { extractable: true }),
  };
  const write = async (...names: (keyof typeof pairs)[]): Promise<void> => {
    const keys = await Promise.all(names.map(async (kid) => ({ ...(await exportJWK(pairs[kid].publicKey)), kid })));
    writeFileSync(file, JSON.stringify({ keys }));
  };
  await write("old");
  const pere = await spawn({ PERE_DB: ":memory:", PERE_JWKS: file });
  let said = "";
  void (async () => {
    for await (const chunk of pere.child.stderr) said += new TextDecoder().decode(chunk);
  })();
  const statusWith = async (kid: keyof typeof pairs): Promise<number> => {
    const token = await new SignJWT({ pere: { push: ["*"] } })
      .setProtectedHeader({ alg: "EdDSA", kid })
      .setSubject("auth0|1")
      .setExpirationTime("1h")
      .sign(pairs[kid].privateKey);
    return (await ask(`${pere.url}/channels`, { headers: { Authorization: `Bearer ${token}` } })).status;
  };
  expect([await statusWith("old"), await statusWith("new")]).toEqual([200, 401]);
  await write("old", "new");
  pere.child.kill("SIGHUP");
  await until(async () => (await statusWith("new")) === 200, "the new key");
  writeFileSync(file, "{");
  pere.child.kill("SIGHUP");
  await until(
    () => said.includes("the key set was not reloaded"),
    () => said,
  );
  expect([await statusWith("old"), await statusWith("new")]).toEqual([200, 200]);
  await write("new");
  pere.child.kill("SIGHUP");
  await until(async () => (await statusWith("old")) === 401, "the old key's end");
  expect(await statusWith("new")).toBe(200);
  expect(await pere.end("SIGTERM")).toBe(0);
});
