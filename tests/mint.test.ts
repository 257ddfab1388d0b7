/**
 * Making tokens: such as this PERE takes, and no others.
 */
import { describe, expect, test } from "bun:test";
import { issueToken, readTokenDraft } from "../engine/auth/issue.ts";
import { SECRET, NOW, now, open, access } from "./support/tokens.ts";

describe("issuing tokens", () => {
  const draft = { sub: "till-7", push: ["orders", "shop.*"], feed: ["*"], days: 30 };

  test("issues a token that the same PERE accepts", async () => {
    const grant = await access.read(await issueToken({ secret: SECRET, now }, draft));
    expect(grant).toMatchObject({ subject: "till-7", expires: NOW + 30 * 86_400_000 });
    expect(grant.may("push", "shop.a")).toBe(true);
    expect(grant.may("push", "other")).toBe(false);
    expect(grant.may("feed", "other")).toBe(true);
    const strict = { secret: SECRET, audience: "pere", issuer: "me", now };
    await (await open(strict)).read(await issueToken(strict, draft));
  });

  test("issues none that PERE would reject", async () => {
    const wrong = [
      { sub: "" },
      { sub: "a b" },
      { push: ["shop*"] },
      { feed: [""] },
      { days: 0 },
      { days: NaN },
      { days: -1 },
      { days: 3_661 },
      { push: Array.from({ length: 100 }, (_, index) => `${"x".repeat(120)}${index}`) },
    ];
    for (const one of wrong)
      await expect(issueToken({ secret: SECRET, now }, { ...draft, ...one })).rejects.toThrow(/^[^\n]+$/);
    await expect(issueToken({ secret: "short", now }, draft)).rejects.toThrow("32 bytes");
    await expect(issueToken({ now }, draft)).rejects.toThrow("PERE_JWT_SECRET");
  });

  test("parses its arguments", () => {
    expect(readTokenDraft(["--push", "orders,shop.*", "--feed", "orders", "--sub", "till-7", "--days", "0.5"])).toEqual(
      {
        sub: "till-7",
        push: ["orders", "shop.*"],
        feed: ["orders"],
        days: 0.5,
      },
    );
    expect(readTokenDraft(["--feed=a", "--feed=b", "--sub=s"])).toEqual({
      sub: "s",
      push: [],
      feed: ["a", "b"],
      days: 30,
    });
    const wrong = [
      ["--push", "a"],
      ["--sub", "s"],
      ["--sub", "s", "--push"],
      ["--sub", "s", "--push", "a", "--days", "soon"],
      ["--sub", "s", "--push", "a", "--days", "1e9"],
      ["--sub", "s", "--push", "a", "--pull", "b"],
      ["--sub", "s", "--push", "a", "stray"],
    ];
    for (const argv of wrong) expect(() => readTokenDraft(argv), argv.join(" ")).toThrow(/^[^\n]+$/);
  });
});
