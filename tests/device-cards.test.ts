/**
 * The cards of the device page, as somebody has them who serves at tables: what they say, in which order, and how they are answered, by finger and by
 * keyboard.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import fc from "fast-check";
import { clockText, contentOf, lineOf, type Part, partOf, roughly, wordsOf } from "../web/device/content.ts";
import type { PushedEvent } from "../clients/sdk/index.ts";
import { browserTest, closeBrowser } from "./support/browser.ts";
import { Page, row } from "./support/device-page.ts";
import { ask, push, start, until } from "./support/harness.ts";

afterAll(closeBrowser);

const event = (text: string, type?: string): PushedEvent => ({
  id: "k-1",
  channel: "orders",
  seq: 1,
  at: "2026-11-22T10:00:00.000Z",
  ...(type === undefined ? {} : { type }),
  data: null,
  text,
});

describe("what a card says", () => {
  test.each([
    ['{"title":"Table 7","message":"two coffees","id":3}', undefined, ["Table 7", "two coffees", ""]],
    ['{"title":"Table 7","body":"two coffees"}', "order.created", ["Table 7", "two coffees", ""]],
    ['{"message":"two coffees"}', "order.created", ["Order created", "two coffees", ""]],
    ['{"title":"Table 7","items":["tea","cake"]}', undefined, ["Table 7", null, "Items: tea, cake"]],
    ['{"table":7,"isPaid":false,"note":null}', undefined, ["Message", null, "Table: 7, Is paid: no, Note: –"]],
    ['{"title":{"a":1},"message":""}', undefined, ["Message", null, "Title: A: 1, Message: "]],
    ['"two coffees"', undefined, ["two coffees", null, ""]],
    ['"two coffees"', "order", ["Order", "two coffees", ""]],
    ['"a\\nb"', undefined, ["Message", "a\nb", ""]],
    ['""', undefined, ["Message", "", ""]],
    ["12.50", undefined, ["12.50", null, ""]],
    ["[1,[2]]", "list", ["List", null, "1, 2"]],
    ["{}", undefined, ["Message", null, ""]],
  ] as const)("%s of type %s", (text, type, [title, message, rest]) => {
    const content = contentOf(event(text, type));
    expect([content.title, content.message]).toEqual([title, message]);
    expect(lineOf({ ...content, message: null })).toBe(rest);
  });

  test("numbers keep their digits, and a member that occurs twice is there twice", () => {
    const text = '{"n":12345678901234567890,"big":1e400,"n":12.50}';
    expect(lineOf(contentOf(event(text)))).toBe("N: 12345678901234567890, Big: 1e400, N: 12.50");
  });

  /** What a part says, as JavaScript would have it. */
  const valueOf = (part: Part): unknown =>
    part.kind === "text"
      ? part.text
      : part.kind === "list"
        ? part.items.map(valueOf)
        : Object.fromEntries(part.members.map(([name, value]) => [name, valueOf(value)]));
  const asTexts = (value: unknown): unknown =>
    Array.isArray(value)
      ? value.map(asTexts)
      : typeof value === "object" && value !== null
        ? Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, asTexts(inner)]))
        : (({ true: "yes", false: "no", null: "–" } as Record<string, string>)[
            typeof value === "string" ? "" : `${value as null}`
          ] ?? (typeof value === "string" ? value : JSON.stringify(value)));

  test("any JSON is read as JSON.parse reads it, with or without spaces", () => {
    fc.assert(
      fc.property(fc.jsonValue({ noUnicodeString: false }), fc.constantFrom(0, 1, 2), (value, spaces) => {
        const text = JSON.stringify(value, null, spaces);
        expect(valueOf(partOf(text))).toEqual(asTexts(JSON.parse(text)));
      }),
    );
  });

  test("names in code become words", () => {
    for (const [name, words] of [
      ["orderNumber", "Order number"],
      ["order_number", "Order number"],
      ["order.created", "Order created"],
      ["Table", "Table"],
      ["VAT", "VAT"],
      ["priceInEUR", "Price in EUR"],
      ["größe", "größe"],
      ["two words", "two words"],
      ["", ""],
    ] as const)
      expect(wordsOf(name)).toBe(words);
  });

  test("times are rough", () => {
    expect([0, 3.6, 59.9, 60, 3_599, 3_600, 172_799, 172_800].map(roughly)).toEqual([
      "1 s",
      "3 s",
      "59 s",
      "1 min",
      "59 min",
      "1 h",
      "47 h",
      "2 days",
    ]);
    const now = Date.parse("2026-11-22T12:00:00");
    expect(clockText(Date.parse("2026-11-22T09:05:00"), now)).toBe("09:05");
    expect(clockText(Date.parse("2026-11-20T09:05:00"), now)).toBe("20 Nov, 09:05");
  });
});

browserTest("the most urgent card is on top, and no word on the page is an engineer's", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(390, 844).open(pere.url, "device=till-1");
  const named = (title: string, query = ""): Promise<string> =>
    push(pere.url, "orders", { title, message: `for ${title}` }, query);
  const soon = await named("soon", "?deadline=600&type=order.created");
  const someTime = await named("some time");
  const later = await named("later", "?deadline=7200");
  const overdue = await named("overdue", "?deadline=0.2");
  const alsoOverdue = await named("also overdue", "?deadline=0.3");
  const last = await named("last");
  await page.shows(last, "received");
  await page.says("#state-why", "2 late");
  expect((await page.cards()).map(({ id }) => id)).toEqual([overdue, alsoOverdue, soon, later, someTime, last]);
  expect((await page.cards())[0]).toMatchObject({ title: "overdue", text: "for overdue" });
  expect(await page.text(`#event-${soon} .due`)).toMatch(/^in (9|10) min$/);
  expect(await page.text(`#event-${later} .due`)).toMatch(/^in [12] h$/);
  const seen = await page.read<string>("document.body.innerText");
  expect(seen).not.toMatch(/receipt|event|payload|json|server-sent|socket|poll|\bfailed\b|\{|\}/i);
  expect(seen).not.toContain(soon);
  // Everything is behind "Details".
  await page.click(soon, "details > summary");
  const details = await page.read<string>(`document.querySelector("#event-${soon} details").innerText`);
  for (const word of [soon, "orders", "order.created", '"title": "soon"']) expect(details).toContain(word);
});

browserTest(
  "the card goes when it is answered, the next one takes no double tap, and what was done is listed",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await start(), (service) => service.stop());
    using page = await new Page(390, 844).open(pere.url, "device=till-1");
    const ids = [
      await push(pere.url, "orders", "tea"),
      await push(pere.url, "orders", "cake"),
      await push(pere.url, "orders", "soup"),
    ];
    await page.shows(ids[2]!, "received");
    await page.toDo(3);
    // Two taps at one place in one turn: the second falls on the card that has come there.
    await page.read(`(() => {
    for (let n = 0; n < 2; n++) document.querySelector("#events button.done").click();
    return new Promise((resolve) => requestAnimationFrame(() => {
      document.querySelector("#events button.done").click();
      requestAnimationFrame(resolve);
    }));
  })()`);
    await page.shows(ids[0]!, "done");
    await page.toDo(2);
    expect(await page.text("#announcement")).toBe("Done: tea");
    await row(pere.url, ids[0]!, "till-1", "done");
    await page.fail(ids[1]!, "none left");
    await page.shows(ids[1]!, "failed");
    expect(await row(pere.url, ids[1]!, "till-1", "failed")).toMatchObject({ detail: "none left" });
    await page.view.click("#answered > summary");
    const listed = await page.read<string>("document.querySelector('#answered').innerText");
    expect(listed.replace(/\s+/g, " ")).toMatch(
      /^Done lately \(2\) cake not done, \d\d:\d\d Details tea done, \d\d:\d\d Details$/,
    );
    await page.click(ids[2]!, "button.done");
    await page.toDo(0);
    await row(pere.url, ids[2]!, "till-1", "done");
  },
);

browserTest("a card that comes above another takes no tap that was meant for that one", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(390, 844).open(pere.url, "device=till-1");
  const calm = await push(pere.url, "orders", "calm");
  await page.shows(calm, "received");
  // The finger comes down at the moment in which the urgent one appears.
  await page.read(`void (globalThis.tapped = new Promise((resolve) => new MutationObserver((_, observer) => {
    if (document.querySelectorAll("#events > li").length < 2) return;
    observer.disconnect();
    for (const button of document.querySelectorAll("#events button.done")) button.click();
    resolve();
  }).observe(document.querySelector("#events"), { childList: true })))`);
  const urgent = await push(pere.url, "orders", "urgent", "?deadline=60");
  await page.read("tapped");
  expect((await page.cards()).map(({ id, receipt }) => [id, receipt.replace("queued: ", "")])).toEqual([
    [urgent, "received"],
    [calm, "received"],
  ]);
  await page.click(urgent, "button.done");
  await row(pere.url, urgent, "till-1", "done");
});

browserTest("the keyboard is enough: done, could not, back, and the focus is never lost", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  using page = await new Page(1_000, 800).open(pere.url, "device=till-1");
  const ids = [await push(pere.url, "orders", "tea"), await push(pere.url, "orders", "cake")];
  await page.shows(ids[1]!, "received");
  const focused = (): Promise<string> =>
    page.read(
      "(document.activeElement.closest('li')?.id.slice(6) ?? '') + ' ' + document.activeElement.textContent.trim()",
    );
  const focus = (id: string, what: string): Promise<unknown> =>
    page.read(`void document.querySelector("#event-${id} ${what}").focus()`);
  await focus(ids[0]!, "button.failed");
  await page.view.press("Enter");
  await until(() => page.read<boolean>("document.activeElement.tagName === 'INPUT'"), "the field");
  await page.view.press("Escape");
  await until(
    async () => (await page.cards())[0]!.buttons && (await page.text(`#event-${ids[0]} button.done`)) === "Done",
    "the buttons",
  );
  await page.shows(ids[0]!, "received");
  await focus(ids[0]!, "button.done");
  await page.view.press("Enter");
  await page.shows(ids[0]!, "done");
  expect(await focused()).toStartWith(ids[1]!);
  expect(await page.read<string>("document.activeElement.tagName")).toBe("ARTICLE");
  await until(
    () => page.read<boolean>(`performance.now() - document.querySelector("#event-${ids[1]}").dataset.moved > 400`),
    "it to rest",
  );
  await page.view.press("Tab");
  expect(await focused()).toBe(`${ids[1]} Done`);
  await page.view.press("Enter");
  await page.toDo(0);
  expect(await page.read<string>("document.activeElement.id")).toBe("to-do");
});

browserTest("axe finds no fault in a card, its question and its details, and what is tapped fits a thumb", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const axe = await Bun.file(join(import.meta.dir, "..", "node_modules", "axe-core", "axe.min.js")).text();
  for (const [width, height] of [
    [1_280, 800],
    [390, 844],
  ] as const)
    for (const scheme of ["light", "dark"]) {
      using page = new Page(width, height);
      await page.view.navigate("about:blank");
      await page.view.cdp("Emulation.setEmulatedMedia", {
        features: [{ name: "prefers-color-scheme", value: scheme }],
      });
      await page.open(pere.url, `device=${scheme}-${width}`);
      const body = {
        table: 7,
        items: ["tea", { dish: "cake", count: 2 }],
        anUnusuallyLongNameOfAMemberThatGoesOn: "x".repeat(200),
      };
      const { id } = (await ask(`${pere.url}/push/orders?deadline=0.1`, { body })).body as { id: string };
      const asked = await push(pere.url, "orders", { title: "Table 7", message: "two coffees" }, "?deadline=600");
      const done = await push(pere.url, "orders", { title: "Table 8" });
      await page.shows(done, "received");
      await page.click(done, "button.done");
      await page.shows(done, "done");
      await page.click(asked, "button.failed");
      await page.read("document.querySelectorAll('details').forEach((one) => (one.open = true))");
      await page.shows(id, "received");
      await page.picture(`cards-${width}-${scheme}`);
      await page.read(`(() => {\n${axe}\n})()`);
      const faults = "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes[0].html))";
      expect(await page.read<string[]>(faults), `${width} ${scheme}`).toEqual([]);
      const small = `[...document.querySelectorAll("button, summary, input:not([type=checkbox])")]
        .filter((one) => one.offsetHeight > 0 && one.offsetHeight < 44).map((one) => one.outerHTML)`;
      expect(await page.read<string[]>(small)).toEqual([]);
      expect(await page.read<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
      expect(page.complaints).toEqual([]);
    }
});
