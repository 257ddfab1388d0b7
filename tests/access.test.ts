/**
 * Tokens: the good ones, and forgeries of every kind that has a name.
 */
import { describe, expect, test } from "bun:test";
import { randomBytes, sign } from "node:crypto";
import fc from "fast-check";
import { exportJWK, exportSPKI, generateKeyPair, SignJWT } from "jose";
import { openAccess } from "../engine/auth/tokens.ts";
import { seed } from "./support/chance.ts";
import {
  access,
  ALGORITHMS,
  base64url,
  bySet,
  CLAIMS,
  file,
  forge,
  hmac,
  jwks,
  NOW,
  now,
  open,
  pairs,
  part,
  publicJwk,
  refusal,
  SECONDS,
  SECRET,
  signed,
  whyNot,
} from "./support/tokens.ts";

describe("a valid token", () => {
  test("grants a subject, an expiry and rights", async () => {
    const grant = await access.read(signed());
    expect(grant.subject).toBe("till-7");
    expect(grant.expires).toBe(NOW + 3_600_000);
    expect(grant.may("push", "shop.a")).toBe(true);
    expect(grant.may("feed", "shop.a")).toBe(false);
  });

  test("is signed with the secret or with any key of the set", async () => {
    for (const algorithm of ALGORITHMS)
      expect((await access.read(await bySet(algorithm))).subject, algorithm).toBe("till-7");
  });

  test("needs no kid if only one key fits", async () => {
    const token = await new SignJWT(CLAIMS).setProtectedHeader({ alg: "ES256" }).sign(pairs.ES256.privateKey);
    expect((await access.read(token)).subject).toBe("till-7");
  });

  test("may have header fields that PERE ignores", async () => {
    expect((await access.read(signed({}, { typ: "at+jwt", cty: "x", more: [1] }))).subject).toBe("till-7");
  });

  test("may have a duplicate claim: the last one counts, as RFC 7519 allows", async () => {
    const claims = JSON.stringify(CLAIMS);
    const twice = `${claims.slice(0, -1)},"sub":"till-8"}`;
    expect((await access.read(forge('{"alg":"none","alg":"HS256"}', twice, hmac(SECRET)))).subject).toBe("till-8");
    expect(await whyNot(access, forge('{"alg":"HS256","alg":"none"}', claims, hmac(SECRET)))).toContain("alg");
  });

  test("may have fractions of a second", async () => {
    expect((await access.read(signed({ exp: SECONDS + 0.5 }))).expires).toBe(NOW + 500);
  });

  test("is accepted with either s of an ECDSA signature: RFC 7518 requires neither", async () => {
    const token = await bySet("ES256");
    const [head, claims, signature] = token.split(".") as [string, string, string];
    const bytes = Buffer.from(signature, "base64url");
    const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
    const s = order - BigInt(`0x${bytes.subarray(32).toString("hex")}`);
    const twin = Buffer.concat([bytes.subarray(0, 32), Buffer.from(s.toString(16).padStart(64, "0"), "hex")]);
    expect((await access.read(`${head}.${claims}.${base64url(twin)}`)).subject).toBe("till-7");
  });
});

describe("a forged token is rejected", () => {
  test("without a signature, in every spelling of none", async () => {
    for (const alg of [
      "none",
      "None",
      "NONE",
      "nOnE",
      "none ",
      "",
      null,
      0,
      [],
      ["HS256"],
      { alg: "HS256" },
      undefined,
    ])
      for (const signature of ["", base64url(hmac(SECRET)(`${part({ alg })}.${part(CLAIMS)}`)), "AA"])
        await whyNot(access, `${part({ alg })}.${part(CLAIMS)}.${signature}`);
    await whyNot(access, `${part({ alg: "HS256" })}.${part(CLAIMS)}.`);
    await whyNot(access, `${part({ alg: "HS256" })}.${part(CLAIMS)}`);
  });

  test("signed as an HMAC with the text of a public key", async () => {
    const onlySet = await openAccess({ jwks: await file(jwks), now });
    for (const algorithm of ALGORITHMS) {
      const pem = await exportSPKI(pairs[algorithm].publicKey);
      const jwk = await publicJwk(algorithm);
      const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ""), "base64");
      const texts = [pem, pem.trimEnd(), JSON.stringify(jwk), JSON.stringify(jwks), der, String(jwk.n ?? jwk.x)];
      for (const text of texts)
        for (const kid of [undefined, algorithm]) {
          const token = forge({ alg: "HS256", kid }, CLAIMS, hmac(text));
          expect(await whyNot(access, token)).toContain("signature");
          expect(await whyNot(onlySet, token)).toContain("no secret");
        }
    }
  });

  test("signed with another key, or with another type of key than its kid's", async () => {
    expect(await whyNot(access, forge({ alg: "HS256" }, CLAIMS, hmac(`${SECRET}.`)))).toContain("signature");
    expect(await whyNot(access, forge({ alg: "HS256" }, CLAIMS, hmac("")))).toContain("signature");
    for (const alg of ALGORITHMS) {
      const { privateKey } = await generateKeyPair(alg);
      const token = await new SignJWT(CLAIMS).setProtectedHeader({ alg, kid: alg }).sign(privateKey);
      expect(await whyNot(access, token)).toContain("signature");
      for (const kid of ALGORITHMS.filter((other) => other !== alg))
        expect(await whyNot(access, await bySet(alg, {}, { kid }))).toContain("a key that PERE doesn't know");
    }
  });

  test("signed with an unsupported algorithm", async () => {
    expect(await whyNot(access, forge({ alg: "HS384" }, CLAIMS, hmac(SECRET, "sha384")))).toContain("alg");
    expect(await whyNot(access, forge({ alg: "HS512" }, CLAIMS, hmac(SECRET, "sha512")))).toContain("alg");
    for (const alg of [
      "PS256",
      "RS384",
      "RS512",
      "RS1",
      "ES384",
      "ES256K",
      "Ed25519",
      "Ed448",
      "dir",
      "hs256",
      "HS256 ",
    ])
      expect(await whyNot(access, forge({ alg, kid: "RS256" }, CLAIMS, hmac(SECRET)))).toContain("alg");
  });

  test("truncated, extended, or changed in any single character", async () => {
    for (const token of [signed(), await bySet("ES256"), await bySet("EdDSA")]) {
      for (let end = 0; end < token.length; end++) await whyNot(access, token.slice(0, end));
      for (let at = 0; at < token.length; at++) {
        const other = token[at] === "A" ? "B" : "A";
        await whyNot(access, token.slice(0, at) + other + token.slice(at + 1));
      }
    }
    const token = signed();
    for (const more of [".", "..", ".AA", "=", "==", "A", " ", "\n", "\t", "\0", "\r\nX: y", "%00", "é"]) {
      await whyNot(access, token + more);
      await whyNot(access, more + token);
      await whyNot(access, token.replace(".", `${more}.`));
    }
    await whyNot(access, token.replaceAll(".", ","));
    await whyNot(access, "");
  });

  test("with the claims of one token and the signature of another", async () => {
    const [head, , signature] = signed().split(".");
    await whyNot(access, `${head}.${part({ ...CLAIMS, sub: "root" })}.${signature}`);
  });

  test("with non-canonical base64", async () => {
    // 32 bytes leave two bits of the last character unused.
    const token = signed();
    const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const last = digits.indexOf(token.at(-1)!);
    expect(last % 4).toBe(0);
    for (const unused of [1, 2, 3]) {
      const twin = token.slice(0, -1) + digits[last + unused];
      expect(Buffer.from(twin.split(".")[2]!, "base64url")).toEqual(Buffer.from(token.split(".")[2]!, "base64url"));
      expect(await whyNot(access, twin)).toContain("not a signed JWT");
    }
    const padded = `${token}=`;
    expect(await whyNot(access, padded)).toContain("not a signed JWT");
    expect(await whyNot(access, `${token.slice(0, -4)} ${token.slice(-4)}`)).toContain("not a signed JWT");
  });

  test("with anything critical in its header", async () => {
    const heads = [["exp"], ["b64"], [], "exp", null, {}, ["http://example/x"], ["alg"]].map((crit) => ({ crit }));
    for (const head of heads) expect(await whyNot(access, signed({}, { ...head, b64: true }))).toContain("crit");
  });

  test("with claims that are signed without their encoding", async () => {
    const header = { alg: "HS256", b64: false, crit: ["b64"] };
    const raw = hmac(SECRET)(`${part(header)}.${JSON.stringify(CLAIMS)}`);
    expect(await whyNot(access, `${part(header)}.${part(CLAIMS)}.${base64url(raw)}`)).toContain("crit");
    const silent = hmac(SECRET)(`${part({ alg: "HS256", b64: false })}.${JSON.stringify(CLAIMS)}`);
    expect(
      await whyNot(access, `${part({ alg: "HS256", b64: false })}.${part(CLAIMS)}.${base64url(silent)}`),
    ).toContain("signature");
  });

  test("with a key in its header, which is neither used nor fetched", async () => {
    const asked: string[] = [];
    using server = Bun.serve({
      port: 0,
      fetch: ({ url }) => {
        asked.push(url);
        return Response.json({ keys: [] });
      },
    });
    const { privateKey, publicKey } = await generateKeyPair("RS256", { extractable: true });
    const jwk = await exportJWK(publicKey);
    const url = server.url.href;
    for (const kid of [undefined, "RS256", "mine"])
      for (const more of [{ jwk }, { jku: url }, { x5u: url }, { x5c: ["MIIB"] }, { x5t: "AA", jwk }]) {
        const header = { alg: "RS256", ...(kid === undefined ? {} : { kid }), ...more };
        await whyNot(access, await new SignJWT(CLAIMS).setProtectedHeader(header).sign(privateKey));
      }
    const own = { kty: "oct", k: base64url("mine") };
    await whyNot(access, forge({ alg: "HS256", jwk: own }, CLAIMS, hmac("mine")));
    expect(asked).toEqual([]);
  });

  test("whose kid is a path, a query, or not a string", async () => {
    const empty = [
      "../../../../dev/null",
      "/dev/null",
      "' UNION SELECT '' --",
      "__proto__",
      "",
      "x\0",
      "file:///dev/null",
    ];
    for (const kid of empty) {
      await whyNot(access, forge({ alg: "HS256", kid }, CLAIMS, hmac("")));
      await whyNot(access, forge({ alg: "RS256", kid }, CLAIMS, hmac("")));
    }
    for (const kid of [1, null, [], ["RS256"], {}, true]) {
      expect(await whyNot(access, forge({ alg: "RS256", kid }, CLAIMS, hmac("")))).toContain("kid");
      expect(await whyNot(access, forge({ alg: "HS256", kid }, CLAIMS, hmac(SECRET)))).toContain("kid");
    }
  });

  test("with an ECDSA signature in DER, or of nothing, or out of range", async () => {
    const input = (await bySet("ES256")).split(".").slice(0, 2).join(".");
    const jwk = await exportJWK(pairs.ES256.privateKey);
    const der = sign("sha256", Buffer.from(input), { key: jwk as never, format: "jwk" });
    const order = Buffer.from("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", "hex");
    const signatures = [
      der,
      Buffer.alloc(64),
      Buffer.concat([order, order]),
      Buffer.concat([Buffer.alloc(31), Buffer.of(1), Buffer.alloc(32)]),
      Buffer.alloc(64, 255),
      Buffer.alloc(63),
      Buffer.alloc(65),
      Buffer.alloc(1),
    ];
    for (const signature of signatures)
      expect(await whyNot(access, `${input}.${base64url(signature)}`)).toContain("signature");
    const plain = sign("sha256", Buffer.from(input), { key: jwk as never, format: "jwk", dsaEncoding: "ieee-p1363" });
    expect((await access.read(`${input}.${base64url(plain)}`)).subject).toBe("till-7");
  });

  test("with an EdDSA or RSA signature of zeroes", async () => {
    for (const [algorithm, bytes] of [
      ["EdDSA", 64],
      ["RS256", 256],
      ["RS256", 0x100 + 1],
      ["EdDSA", 63],
    ] as const) {
      const input = (await bySet(algorithm)).split(".").slice(0, 2).join(".");
      expect(await whyNot(access, `${input}.${base64url(new Uint8Array(bytes))}`)).toContain("signature");
    }
  });

  test("longer than 8 KiB, before it is parsed", async () => {
    const long = signed({ more: "x".repeat(8_192) });
    expect(await whyNot(access, long)).toContain("longer than 8192");
    expect(await whyNot(access, "e".repeat(50_000_000))).toContain("longer than 8192");
    expect((await access.read(signed({ more: "x".repeat(5_000) }))).subject).toBe("till-7");
  });

  test("whose parts are not JSON objects", async () => {
    for (const text of ["", "null", "[]", "7", '"x"', "{", "{}x", "\uFEFF{}", "[".repeat(5_000)]) {
      await whyNot(access, forge({ alg: "HS256" }, text, hmac(SECRET)));
      await whyNot(access, forge(text, CLAIMS, hmac(SECRET)));
    }
    const notUtf8 = `${part({ alg: "HS256" })}.${base64url(Buffer.of(0x7b, 0xff, 0x7d))}`;
    await whyNot(access, `${notUtf8}.${base64url(hmac(SECRET)(notUtf8))}`);
  });

  test("made of random text, and never with an internal error", async () => {
    const value = fc.oneof(fc.json(), fc.string(), fc.constantFrom('{"alg":"HS256"}', '{"alg":"ES256"}'));
    const run = async (header: string, claims: string, isSigned: boolean): Promise<void> => {
      const token = forge(header, claims, isSigned ? hmac(SECRET) : () => randomBytes(64));
      await whyNot(access, token);
    };
    await fc.assert(fc.asyncProperty(value, value, fc.boolean(), run), { seed, numRuns: 300 });
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: "binary" }), async (text) => void (await whyNot(access, text))),
      {
        seed,
        numRuns: 300,
      },
    );
  });

  test("and the reason contains neither the token nor the secret", async () => {
    const token = forge({ alg: "HS256" }, CLAIMS, hmac("x"));
    const { message } = await refusal(access.read(token));
    for (const text of [SECRET, ...token.split(".")]) expect(message).not.toContain(text);
    const short = await open({ secret: "too short" }).catch((error: Error) => error.message);
    expect(short).toBe("PERE_JWT_SECRET must have at least 32 bytes; it has 9");
  });
});
