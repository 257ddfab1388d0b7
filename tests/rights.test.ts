/**
 * Rights: what the `pere` claim of a token allows, against a naive reading.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Grant, OPEN, demand } from "../engine/auth/rights.ts";
import { seed } from "./support/chance.ts";
import { signed, refusal, access } from "./support/tokens.ts";

describe("a right", () => {
  const grantOf = (push: readonly string[], feed: readonly string[] = []): Promise<Grant> =>
    access.read(signed({ pere: { push, feed } }));

  test("applies to every channel, one channel, or all with a prefix", async () => {
    const table: readonly (readonly [string, readonly string[], readonly string[]])[] = [
      ["*", ["orders", "shop.a"], []],
      ["orders", ["orders"], ["order", "orders2", "orders.a", "Orders"]],
      [
        "shop.*",
        ["shop.a", "shop.a.b", "shop..", "shop."],
        ["shop", "shopping", "shop:a", "Shop.a", "a.shop.b", "shop-a"],
      ],
      ["shop.a.*", ["shop.a.b"], ["shop.a", "shop.b", "shop.ab.c"]],
      ["a~b:c.*", ["a~b:c.d"], ["a~b:cd"]],
    ];
    for (const [pattern, yes, no] of table) {
      const grant = await grantOf([pattern]);
      for (const channel of yes) expect(grant.may("push", channel), `${pattern} ${channel}`).toBe(true);
      for (const channel of no) expect(grant.may("push", channel), `${pattern} ${channel}`).toBe(false);
      for (const channel of [...yes, ...no]) expect(grant.may("feed", channel), `feed ${channel}`).toBe(false);
    }
  });

  test("is the same as in a naive implementation", async () => {
    const letter = fc.constantFrom("a", "b", ".", "-", ":", "~");
    const channel = fc
      .tuple(fc.constantFrom("a", "b"), fc.string({ unit: letter, maxLength: 6 }))
      .map((two) => two.join(""));
    const pattern = fc.oneof(
      channel,
      channel.map((name) => `${name}.*`),
      fc.constant("*"),
    );
    const patterns = fc.array(fc.oneof({ arbitrary: pattern, weight: 9 }), { maxLength: 5 });
    const naive = (list: readonly string[], name: string): boolean =>
      list.some((one) =>
        new RegExp(
          `^${one.replace(/[.~:-]/g, "\\$&").replace(one === "*" ? "*" : "\\.*", one === "*" ? ".*" : "\\..*")}$`,
        ).test(name),
      );
    const run = async (push: string[], feed: string[], names: string[]): Promise<void> => {
      const grant = await grantOf(push, feed);
      for (const one of push) expect(grant.may("push", one.replace("*", "x")), one).toBe(true);
      for (const name of names) {
        expect(grant.may("push", name), `${push} ${name}`).toBe(naive(push, name));
        expect(grant.may("feed", name), `${feed} ${name}`).toBe(naive(feed, name));
      }
    };
    const names = fc.array(channel, { minLength: 5, maxLength: 20 });
    await fc.assert(fc.asyncProperty(patterns, patterns, names, run), { seed, numRuns: 300 });
  });

  // Some milliseconds; who tries every way through the dots is never done.
  test("is checked in time linear in the patterns", async () => {
    const evil = Array.from({ length: 45 }, (_, index) => `${"a.".repeat(48)}${index}.*`);
    const grant = await grantOf(evil);
    const name = "a.".repeat(64);
    for (let round = 0; round < 10_000; round++) expect(grant.may("push", name)).toBe(false);
  });

  test("that is missing is reported as forbidden, with the right that is needed", async () => {
    const grant = await grantOf(["orders"]);
    demand(grant, "push", "orders");
    const error = await refusal((async () => demand(grant, "feed", "orders"))());
    expect(error).toMatchObject({ code: "forbidden", message: "this token gives no right to feed on orders" });
  });

  test("is granted to everyone if no key is configured", () => {
    expect(OPEN).toMatchObject({ subject: null, expires: Infinity });
    demand(OPEN, "push", "orders");
    demand(OPEN, "feed", "orders");
  });
});
