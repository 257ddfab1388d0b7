/**
 * Key sets: what is taken and what is not, from a file and from a URL whose server changes, lies or is away.
 */
import { afterAll, describe, expect, spyOn, test } from "bun:test";
import { generateKeyPairSync } from "node:crypto";
import { join } from "node:path";
import { SignJWT, exportJWK, generateKeyPair } from "jose";
import { type Access, openAccess } from "../engine/auth/tokens.ts";
import { ask, connect, startWith, until } from "./support/harness.ts";
import {
  SECRET,
  NOW,
  SECONDS,
  now,
  CLAIMS,
  base64url,
  signed,
  refusal,
  whyNot,
  pairs,
  type Algorithm,
  ALGORITHMS,
  publicJwk,
  jwks,
  file,
  folder,
  bySet,
} from "./support/tokens.ts";

describe("a key set", () => {
  const openSet = async (content: unknown): Promise<string> =>
    openAccess({ jwks: await file(content), now }).then(
      () => "taken",
      (error: Error) => error.message,
    );

  test("must contain only public keys", async () => {
    for (const algorithm of ALGORITHMS) {
      const jwk = { ...(await exportJWK(pairs[algorithm].privateKey)), kid: "x" };
      expect(await openSet({ keys: [...jwks.keys, jwk] })).toBe(
        "PERE_JWKS can't be used: key 4 is a private or symmetric key; a key set that verifies tokens must contain only public keys",
      );
    }
    for (const jwk of [
      { kty: "oct", k: base64url(SECRET) },
      { kty: "oct" },
      { ...jwks.keys[0], k: "" },
      { kty: "X", d: 1 },
    ])
      expect(await openSet({ keys: [jwk] })).toContain("private or symmetric key");
  });

  test("must not contain a weak key", async () => {
    const { publicKey } = generateKeyPairSync("rsa", { modulusLength: 1024 });
    expect(await openSet({ keys: [publicKey.export({ format: "jwk" })] })).toBe(
      "PERE_JWKS can't be used: key 1 has 1024 bits, and RS256 needs 2048",
    );
  });

  test("must not contain an invalid key", async () => {
    const ec = await publicJwk("ES256");
    for (const jwk of [
      { ...ec, x: ec.y },
      { ...ec, x: undefined },
      { ...ec, x: "AA" },
      { kty: "OKP", crv: "Ed25519", x: "AA" },
    ])
      expect(await openSet({ keys: [jwk] })).toContain("key 1 is not a valid");
    expect(await openSet({ keys: [{ ...ec, kid: 7 }] })).toContain("kid");
    expect(await openSet({ keys: [ec, { ...ec }] })).toContain("key 2 has the same kid and type as another key");
  });

  test("may contain keys for other uses, which verify no token", async () => {
    const es384 = (await exportJWK((await generateKeyPair("ES384", { extractable: true })).publicKey)) as object;
    const others = [
      es384,
      { kty: "OKP", crv: "X25519", x: "AA" },
      { kty: "OKP", crv: "Ed448", x: "AA" },
      { kty: "AKP", alg: "ML-DSA-44", pub: "AA" },
      { kty: "new" },
      await publicJwk("RS256", { use: "enc" }),
      await publicJwk("RS256", { alg: "RSA-OAEP" }),
      await publicJwk("RS256", { alg: "PS256" }),
      await publicJwk("RS256", { key_ops: ["encrypt"] }),
      await publicJwk("RS256", { alg: "HS256" }),
      await publicJwk("ES256", { alg: "EdDSA" }),
    ];
    expect(await openSet({ keys: others })).toBe("PERE_JWKS can't be used: it has no EdDSA, ES256 or RS256 key");
    const mixed = await openAccess({ jwks: await file({ keys: [...others, await publicJwk("EdDSA")] }), now });
    await mixed.read(await bySet("EdDSA"));
    for (const algorithm of ["RS256", "ES256"] as const)
      expect(await whyNot(mixed, await bySet(algorithm))).toContain("a key that PERE doesn't know");
    for (const key of others.slice(5)) expect(key).toHaveProperty("kid");
  });

  test("with several keys of a type needs a kid in the token", async () => {
    const other = await exportJWK((await generateKeyPair("ES256", { extractable: true })).publicKey);
    const two = await openAccess({ jwks: await file({ keys: [...jwks.keys, { ...other, kid: "other" }] }), now });
    await two.read(await bySet("ES256"));
    const token = await new SignJWT(CLAIMS).setProtectedHeader({ alg: "ES256" }).sign(pairs.ES256.privateKey);
    expect(await whyNot(two, token)).toContain("several keys");
  });

  test("that is invalid stops the start with one line", async () => {
    const lines = await Promise.all(["", "x", "[]", "{}", '{"keys":{}}', '{"keys":[]}', '{"keys":[7]}'].map(openSet));
    lines.push(
      await openSet({ keys: Array.from({ length: 33 }, (_, index) => ({ ...jwks.keys[0], kid: `${index}` })) }),
    );
    expect(lines.at(-1)).toContain("more than 32");
    for (const line of lines) expect(line).toMatch(/^PERE_JWKS can't be used: [^\n]+$/);
    const missing = await openAccess({ jwks: join(folder, "none.json") }).catch((error: Error) => error.message);
    expect(missing).toBe(`PERE_JWKS: the file ${join(folder, "none.json")} can't be read`);
    expect(await openAccess({ jwks: "http://" }).catch((error: Error) => error.message)).toContain("not a URL");
    expect(await openAccess({}).catch((error: Error) => error.message)).toContain("PERE_JWT_SECRET or PERE_JWKS");
  });
});

describe("a key set behind a URL", () => {
  let answer: () => Response | Promise<Response> = () => Response.json(jwks);
  let asked = 0;
  const server = Bun.serve({
    port: 0,
    idleTimeout: 60,
    fetch: ({ url }) => {
      asked++;
      return url.endsWith("/elsewhere") ? Response.json(jwks) : answer();
    },
  });
  afterAll(() => server.stop(true));
  let time = NOW;

  /** A fresh access to what the server answers now. */
  async function openUrl(first: () => Response | Promise<Response>): Promise<Access> {
    answer = first;
    asked = 0;
    time = NOW;
    return openAccess({ jwks: server.url.href, now: () => time });
  }
  const only = async (algorithm: Algorithm): Promise<Response> => Response.json({ keys: [await publicJwk(algorithm)] });

  test("is fetched once, however many tokens arrive", async () => {
    const remote = await openUrl(() => Response.json(jwks));
    const tokens = await Promise.all(ALGORITHMS.map((algorithm) => bySet(algorithm)));
    await Promise.all([...tokens, ...tokens].map((token) => remote.read(token)));
    expect(asked).toBe(1);
  });

  test("is fetched at once for an unknown key, and then not for 30 seconds", async () => {
    const remote = await openUrl(() => only("EdDSA"));
    await remote.read(await bySet("EdDSA"));
    answer = () => Response.json(jwks);
    const token = await bySet("ES256");
    await Promise.all([remote.read(token), remote.read(token), remote.read(await bySet("RS256"))]);
    expect(asked).toBe(2);
    time += 12_300;
    // Meanwhile it may be a good one that is newer than the set.
    for (let count = 0; count < 50; count++) {
      const error = await refusal(remote.read(await bySet("ES256", {}, { kid: `new-${count}` })));
      expect(error).toMatchObject({ code: "away", retryAfterSeconds: 18 });
      expect(error.message).toContain("doesn't know");
    }
    expect(asked).toBe(2);
    time += 17_700;
    await whyNot(remote, await bySet("ES256", {}, { kid: "newest" }));
    expect(asked).toBe(3);
  });

  test("that may have a new key is waited for: 503 with Retry-After, and a feed is told to reconnect", async () => {
    asked = 0;
    answer = () => only("EdDSA");
    const pere = await startWith({ access: { jwks: server.url.href } });
    try {
      const fresh = { exp: Math.floor(Date.now() / 1000) + 3_600 };
      const stranger = await bySet("ES256", fresh, { kid: "stranger's" });
      const token = await bySet("ES256", { ...fresh, pere: { push: ["*"], feed: ["*"] } });
      const bearer = (text: string) => ({ Authorization: `Bearer ${text}` });
      expect((await ask(`${pere.url}/channels`, { headers: bearer(stranger) })).status).toBe(401);
      answer = () => Response.json(jwks);
      for (const [path, init] of [
        ["/channels", {}],
        ["/push/orders", { body: 1 }],
        ["/feed/orders?wait=0", { headers: { Accept: "application/json" } }],
      ] as const) {
        const more = "headers" in init ? init.headers : {};
        const { status, headers } = await ask(pere.url + path, { ...init, headers: { ...bearer(token), ...more } });
        expect(`${path} ${status}`).toBe(`${path} 503`);
        expect(Number(headers.get("retry-after"))).toBeWithin(1, 31);
      }
      for (const path of ["/feed/orders", "/feedback/orders", "/watch"]) {
        const stream = await fetch(pere.url + path, { headers: bearer(token) });
        expect([stream.status, stream.headers.get("content-type")]).toEqual([200, "text/event-stream"]);
        expect(await stream.text()).toMatch(/retry: \d{4,5}\nevent: pere.bye\ndata: {"reason":"busy"}\n\n$/);
      }
      const { closed, messages } = await connect(`${pere.url}/feed/orders?token=${token}`);
      expect((await closed).code).toBe(1013);
      expect(messages).toEqual([{ pere: "bye", reason: "busy" }]);
    } finally {
      await pere.stop();
    }
  });

  test("that removes a key ends that key's tokens, also cached ones", async () => {
    const remote = await openUrl(() => Response.json(jwks));
    const token = await bySet("ES256");
    await remote.read(token);
    answer = () => only("EdDSA");
    time += 10 * 60_000;
    await remote.read(token);
    await until(
      () =>
        remote.read(token).then(
          () => false,
          () => true,
        ),
      "the key to be gone",
    );
    expect(await whyNot(remote, token)).toContain("doesn't know");
    await remote.read(await bySet("EdDSA"));
  });

  test("that removes a key during a verification ends its tokens all the same", async () => {
    const remote = await openUrl(() => Response.json(jwks));
    const token = await bySet("ES256");
    const verify = crypto.subtle.verify.bind(crypto.subtle);
    const gate = Promise.withResolvers<void>();
    const held = spyOn(crypto.subtle, "verify").mockImplementation(async (...all: Parameters<typeof verify>) => {
      const isGood = await verify(...all);
      await gate.promise;
      return isGood;
    });
    try {
      const reading = remote.read(token);
      await until(() => held.mock.calls.length > 0, "the check to begin");
      answer = () => only("EdDSA");
      await whyNot(remote, await bySet("EdDSA", {}, { kid: "new" }));
      gate.resolve();
      await reading;
    } finally {
      held.mockRestore();
    }
    expect(await whyNot(remote, token)).toContain("doesn't know");
  });

  test("stays valid for an hour while its server is away; then tokens are neither accepted nor rejected", async () => {
    const remote = await openUrl(() => Response.json(jwks));
    const token = await bySet("ES256", { exp: SECONDS + 7_200 });
    await remote.read(token);
    answer = () => new Response("no", { status: 500 });
    time += 59 * 60_000;
    await remote.read(token);
    await remote.read(await bySet("EdDSA", { exp: SECONDS + 7_200 }));
    time += 60_000;
    expect((await refusal(remote.read(token))).code).toBe("away");
    answer = () => Response.json(jwks);
    time += 5_000;
    await remote.read(token);
  });

  test("that is invalid or missing makes tokens neither accepted nor rejected, and is fetched again soon", async () => {
    const many = { keys: Array(33).fill(jwks.keys[0]) };
    const answers: (() => Response | Promise<Response>)[] = [
      () => new Response("no", { status: 500 }),
      () => new Response("", { status: 204 }),
      () => Response.redirect(`${server.url.href}elsewhere`, 302),
      () => new Response("x".repeat(300_000)),
    ];
    for (const bad of answers) {
      const remote = await openUrl(bad);
      const token = await bySet("EdDSA");
      const before = asked;
      for (let count = 0; count < 5; count++) expect((await refusal(remote.read(token))).code).toBe("away");
      expect(asked).toBe(before);
      answer = () => Response.json(many);
      time += 5_000;
      expect((await refusal(remote.read(token))).code).toBe("away");
      answer = () => Response.json(jwks);
      time += 5_000;
      await remote.read(token);
      answer = bad;
      expect((await refusal(remote.read(await bySet("EdDSA", {}, { kid: "new" })))).code).toBe("away");
      await remote.read(token);
    }
  });

  test("stops the start if it is available but invalid", async () => {
    const secret = { keys: [{ ...(await exportJWK(pairs.ES256.privateKey)) }] };
    for (const bad of [() => new Response("<html>"), () => Response.json(secret), () => Response.json({ keys: [] })])
      await expect(openUrl(bad)).rejects.toThrow("PERE_JWKS can't be used");
  });

  test("that never answers, or never ends, is abandoned after 5 seconds, and the secret works meanwhile", async () => {
    const endless = (): Response =>
      new Response(
        new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode('{"keys":[')) }),
      );
    const hanging = Bun.serve({ port: 0, idleTimeout: 60, fetch: () => new Promise<Response>(() => {}) });
    const slow = Bun.serve({ port: 0, idleTimeout: 60, fetch: endless });
    try {
      const started = performance.now();
      const urls = [hanging.url.href, slow.url.href];
      const remotes = await Promise.all(urls.map((jwks) => openAccess({ secret: SECRET, jwks, now })));
      expect(performance.now() - started).toBeGreaterThan(4_000);
      for (const remote of remotes) {
        expect((await refusal(remote.read(await bySet("EdDSA")))).code).toBe("away");
        await remote.read(signed());
      }
    } finally {
      await Promise.all([hanging.stop(true), slow.stop(true)]);
    }
  });
});
