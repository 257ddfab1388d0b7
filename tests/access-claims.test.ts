/**
 * Tokens: their time and their claims, what is remembered of them, where a token stands in a request, and that it doesn't stand in a log.
 */
import { describe, expect, test } from "bun:test";
import type { Grant } from "../engine/auth/rights.ts";
import { deviceOfGrant, redact, wwwAuthenticate } from "../engine/auth/tokens.ts";
import { tokenOf } from "../engine/http/request.ts";
import { PereError } from "../engine/model.ts";
import {
  access,
  ALGORITHMS,
  bySet,
  CLAIMS,
  file,
  forge,
  hmac,
  jwks,
  NOW,
  open,
  refusal,
  SECONDS,
  SECRET,
  signed,
  whyNot,
} from "./support/tokens.ts";

describe("the times of a token", () => {
  test("it is accepted until 30 seconds after its exp", async () => {
    expect((await access.read(signed({ exp: SECONDS - 29 }))).expires).toBe(NOW - 29_000);
    for (const exp of [SECONDS - 30, SECONDS - 31, 0, -1, -1e308])
      expect(await whyNot(access, signed({ exp }))).toBe("token: it has expired");
  });

  test("exp must be a number of seconds, before the year 10000", async () => {
    expect(await whyNot(access, signed({ exp: undefined }))).toBe("token: it has no exp");
    for (const exp of [String(SECONDS + 60), null, true, [SECONDS + 60], {}, ""])
      expect(await whyNot(access, signed({ exp }))).toContain("exp must be a number");
    for (const exp of [1e308, NOW, 253_402_300_800])
      expect(await whyNot(access, signed({ exp }))).toContain("in seconds");
    const claims = JSON.stringify(CLAIMS).replace(String(CLAIMS.exp), "1e999");
    expect(await whyNot(access, forge({ alg: "HS256" }, claims, hmac(SECRET)))).toContain("in seconds");
    expect((await access.read(signed({ exp: 253_402_300_799 }))).expires).toBe(Date.UTC(9999, 11, 31, 23, 59, 59));
  });

  test("nbf and iat must be in the past, with the same tolerance", async () => {
    for (const claim of ["nbf", "iat"]) {
      for (const value of [SECONDS + 30, SECONDS, 0, -5]) await access.read(signed({ [claim]: value }));
      for (const value of [SECONDS + 31, 1e308, "1", null, {}])
        expect(await whyNot(access, signed({ [claim]: value }))).toContain(`${claim} must be`);
    }
  });

  test("a cached token expires too", async () => {
    let time = NOW;
    const clocked = await open({ now: () => time });
    const token = signed({ exp: SECONDS + 10 });
    await clocked.read(token);
    time = NOW + 39_999;
    await clocked.read(token);
    time = NOW + 40_000;
    expect(await whyNot(clocked, token)).toContain("expired");
  });
});

describe("a token's claims", () => {
  test("sub names the bearer, and must be a device's name only if a device is needed", async () => {
    expect(await whyNot(access, signed({ sub: undefined }))).toBe("token: it has no sub");
    for (const sub of ["", 7, null, ["till-7"], {}])
      expect(await whyNot(access, signed({ sub }))).toBe("token: its sub must be a non-empty string");
    for (const sub of ["x".repeat(129), "a\r\nb", "a\0", "auth0|5f7c", "ä", " a", "a ", "a\n", "**"]) {
      const grant = await access.read(signed({ sub }));
      expect(grant.subject).toBe(sub);
      expect(() => deviceOfGrant(grant)).toThrow("token: its sub must be a device's name here");
    }
    expect(deviceOfGrant(await access.read(signed({ sub: "x".repeat(128) })))).toBe("x".repeat(128));
  });

  test("sub * names no device, and only tokens signed with the secret may use it", async () => {
    expect(deviceOfGrant(await access.read(signed({ sub: "*" })))).toBeNull();
    for (const algorithm of ALGORITHMS) {
      const grant = await access.read(await bySet(algorithm, { sub: "*" }));
      expect(grant.subject).toBe("*");
      expect(() => deviceOfGrant(grant)).toThrow("sub must be a device's name");
    }
  });

  test("aud and iss must match the settings", async () => {
    const strict = await open({ audience: "pere", issuer: "https://id.example" });
    const good = { aud: "pere", iss: "https://id.example" };
    await strict.read(signed(good));
    await strict.read(signed({ ...good, aud: ["other", "pere"] }));
    for (const aud of ["Pere", "pere ", "", [], ["other"], [["pere"]], { pere: 1 }, null])
      expect(await whyNot(strict, signed({ ...good, aud }))).toContain("aud");
    for (const iss of ["https://id.example/", "", null, ["https://id.example"]])
      expect(await whyNot(strict, signed({ ...good, iss }))).toContain("iss");
    expect(await whyNot(strict, signed({ iss: good.iss }))).toBe("token: it has no aud");
    expect(await whyNot(strict, signed({ aud: good.aud }))).toBe("token: it has no iss");
    await access.read(signed({ aud: "anything", iss: "anybody" }));
  });

  test("invalid patterns are rejected", async () => {
    const bad = [
      "",
      "**",
      "shop*",
      "*.shop",
      "shop.*.a",
      "shop.**",
      ".*",
      "*.*",
      "*.",
      "a b",
      "a,b",
      "ä",
      "shop:*",
      "-a",
      "a\n",
    ];
    for (const pattern of [...bad, "x".repeat(129), `${"x".repeat(128)}.*`, 7, null, ["orders"]])
      for (const right of ["push", "feed"])
        expect(await whyNot(access, signed({ pere: { [right]: ["orders", pattern] } }))).toContain(`pere.${right}`);
    expect(await whyNot(access, signed({ pere: { push: ["shop*"] } }))).toBe(
      'token: pere.push: "shop*" is not a channel, a prefix followed by .*, or * alone',
    );
    for (const list of ["orders", {}, 1, null, true]) await whyNot(access, signed({ pere: { push: list } }));
    for (const pere of ["push", [], null, 1, { pull: ["orders"] }, { push: [], Feed: [] }])
      expect(await whyNot(access, signed({ pere }))).toContain("pere");
    const many = Array.from({ length: 101 }, (_, index) => `c${index}`);
    expect(await whyNot(access, signed({ pere: { push: many } }))).toContain("more than 100");
    await access.read(signed({ pere: { push: many.slice(1) } }));
  });

  test("no rights in the token means no rights", async () => {
    for (const pere of [undefined, {}, { push: [], feed: [] }]) {
      const grant = await access.read(signed({ pere }));
      expect(grant.may("push", "orders")).toBe(false);
      expect(grant.may("feed", "orders")).toBe(false);
    }
  });
});

describe("the token cache", () => {
  test("a signature is verified once", async () => {
    const own = await open({ jwks: await file(jwks) });
    const token = await bySet("RS256");
    const first = await own.read(token);
    expect(await own.read(token)).toBe(first);
    expect(await own.read(await bySet("EdDSA"))).not.toBe(first);
  });

  test("its size is bounded, and the oldest token is dropped first", async () => {
    const own = await open();
    const more = "x".repeat(5_500);
    const tokens = Array.from({ length: 600 }, (_, index) => signed({ sub: `till-${index}`, more }));
    const grants: Grant[] = [];
    for (const token of tokens) grants.push(await own.read(token));
    expect(await own.read(tokens.at(-1)!)).toBe(grants.at(-1)!);
    expect(await own.read(tokens[0]!)).not.toBe(grants[0]!);
    expect((await own.read(tokens[0]!)).subject).toBe("till-0");
  });

  test("rejected tokens are not cached", async () => {
    const own = await open();
    const token = forge({ alg: "HS256" }, CLAIMS, hmac("x"));
    for (let count = 0; count < 3; count++) expect(await whyNot(own, token)).toContain("signature");
  });
});

describe("a request's token", () => {
  const find = (headers: Record<string, string>, query = ""): string | null =>
    tokenOf(new Headers(headers), new URLSearchParams(query));

  test("is read from one of four places", () => {
    expect(find({})).toBeNull();
    for (const scheme of ["Bearer", "bearer", "BEARER "])
      expect(find({ authorization: `${scheme} a.b.c` })).toBe("a.b.c");
    expect(find({ cookie: "x=1; pere_token=a.b.c; pere_tokens=z" })).toBe("a.b.c");
    expect(find({ "sec-websocket-protocol": "pere.v1, pere.token.a.b.c" })).toBe("a.b.c");
    expect(find({}, "device=x&token=a.b.c")).toBe("a.b.c");
    expect(find({}, "t%6Fken=a.b.c")).toBe("a.b.c");
  });

  test("other schemes and subprotocols are not tokens", () => {
    expect(find({ authorization: "Basic eDp5" })).toBeNull();
    expect(find({ authorization: "Bearers x" })).toBeNull();
    expect(find({ cookie: "xpere_token=a; pere_token=" })).toBeNull();
    expect(find({ "sec-websocket-protocol": "pere.v1, pere.tokens" })).toBeNull();
    expect(find({ cookie: "pere_token=a.b.c", authorization: "Basic eDp5" })).toBe("a.b.c");
  });

  test("an empty token is an invalid one, not a missing one", async () => {
    for (const token of [
      find({ authorization: "Bearer" }),
      find({}, "token="),
      find({ "sec-websocket-protocol": "pere.token." }),
    ]) {
      expect(token).toBe("");
      await whyNot(access, token!);
    }
  });

  test("the same token may be sent twice, but not two different ones", () => {
    expect(
      find({ authorization: "Bearer a", "sec-websocket-protocol": "pere.v1,pere.token.a" }, "token=a&token=a"),
    ).toBe("a");
    const two: [Record<string, string>, string][] = [
      [{ authorization: "Bearer a" }, "token=b"],
      [{ "sec-websocket-protocol": "pere.token.a, pere.token.b" }, ""],
      [{}, "token=a&token=b"],
      [{}, "token=a&token="],
    ];
    for (const [headers, query] of two) {
      let error: unknown;
      try {
        find(headers, query);
      } catch (thrown) {
        error = thrown;
      }
      expect(error).toMatchObject({ code: "malformed", message: "token: a request may carry one token, in one place" });
    }
  });

  test("an explicit token takes precedence over the cookie", () => {
    const cookie = "pere_token=c";
    expect(find({ cookie, authorization: "Bearer a" })).toBe("a");
    expect(find({ cookie }, "token=q")).toBe("q");
    expect(find({ cookie, "sec-websocket-protocol": "pere.token.w" })).toBe("w");
    expect(find({ cookie }, "token=")).toBe("");
  });

  test("WWW-Authenticate distinguishes a missing, an invalid and an insufficient token", async () => {
    expect(wwwAuthenticate(await refusal(access.read(null)))).toBe('Bearer realm="PERE"');
    expect(wwwAuthenticate(await refusal(access.read("x")))).toBe(
      'Bearer realm="PERE", error="invalid_token", error_description="token: it is not a signed JWT"',
    );
    const evil = wwwAuthenticate(await refusal(access.read(signed({ pere: { push: ['a"\r\nSet-Cookie: b=\\é'] } }))));
    expect(evil).toMatch(/^Bearer realm="PERE", error="invalid_token", error_description="[ !#-[\]-~]*"$/);
    expect(wwwAuthenticate(new PereError("forbidden", "no"))).toContain('error="insufficient_scope"');
    expect(wwwAuthenticate(new PereError("malformed", "no"))).toContain('error="invalid_request"');
  });
});

describe("a log", () => {
  test("contains no token, wherever it was in the URL", () => {
    const token = signed();
    const urls = [
      `/feed/orders?token=${token}`,
      `/feed/orders?device=a&token=${token}&since=now#x`,
      `token=${token}`,
      `http://h/?token=${token}#token=${token}`,
      `/x?%74%6f%6B%65n=${token}`,
      `/x?TOKEN=${token}`,
      `http://h/login?next=%2Ffeed%3Fdevice%3Da%26token%3D${token}`,
      `http://h/login?next=${encodeURIComponent(encodeURIComponent(`/feed?token=${token}`))}`,
      `/${token}`,
      `/x?jwt=${token}`,
    ];
    for (const url of urls) for (const one of token.split(".")) expect(redact(url)).not.toContain(one);
    expect(redact("/feed/a?device=d&token=simple&since=now")).toBe("/feed/a?device=d&token=…&since=now");
  });

  test("keeps the rest of the URL", () => {
    const plain = [
      "/",
      "/feed/orders?device=till-7&since=k3x9-42.a1-3",
      "/x?tokens=1&mytoken=2&token",
      "/events/shop.eu.orders.eyes",
    ];
    for (const url of plain) expect(redact(url)).toBe(url);
  });

  test("takes linear time for long URLs", () => {
    const evil = [
      "e",
      "ey",
      "eyJ.",
      "%65",
      "token",
      "&token=",
      "?token",
      "eyJhbGciOiJIUzI1.",
      "eyJhbGciOiJIUzI1NiJ9-",
      "%3Dey",
      "25",
      "%25",
    ];
    // A megabyte of each takes milliseconds; who begins anew at every place in it is busy for hours.
    for (const text of evil) expect(redact(text.repeat(1_000_000 / text.length))).toBeString();
  });
});
