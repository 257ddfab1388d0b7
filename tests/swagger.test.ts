/**
 * The page that shows the OpenAPI document, and the promise that it makes: what it shows can be tried. Every example that the document gives for a request is sent to a
 * running service in the document's order, and the story is told once more by the page's own buttons in a real browser; each is answered with a 2xx that is described. All of it comes
 * from the service, and nothing asks anybody else.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import type { Service } from "../index.ts";
import { SAMPLE_EPOCH, samples } from "../web/openapi-schemas.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { type Asking, describedRequest, type Document, operationsOf, type Place } from "./support/described.ts";
import { ask, start, until } from "./support/harness.ts";

let pere: Service;
let operations: Map<string, Place>;

/** A service as people run it, save that it finds a host where the example's hook leads: to nobody. */
const startThere = (): Promise<Service> =>
  start({ hooksAllowed: readRanges("127.0.0.0/8"), hookCall: { resolve: async () => ["127.0.0.1"] } });

beforeAll(async () => {
  pere = await startThere();
  operations = operationsOf((await ask(`${pere.url}/swagger/json`)).body as Document);
});
afterAll(() => pere.stop());
afterAll(closeBrowser);

/** The operations in the order in which they can be tried: what takes something away comes last. */
const inOrder = (): [string, Place][] =>
  [...operations].toSorted(([, a], [, b]) => Number(a.method === "DELETE") - Number(b.method === "DELETE"));

/** Everything that the document says how to ask: each example of a body, and each kind of answer. */
const askingsOf = ({ operation }: Place): Asking[] => {
  const bodies = Object.entries(operation.requestBody?.content ?? {}).flatMap(([type, { examples = {} }]) =>
    Object.keys(examples).map((example) => ({ type, example })),
  );
  const answers = Object.keys((operation.responses["200"] as { content?: object } | undefined)?.content ?? {});
  return bodies.length > 0 ? bodies : answers.length > 0 ? answers.map((Accept) => ({ headers: { Accept } })) : [{}];
};

test("every example request, sent to a running service in the document's order, gets a described 2xx", async () => {
  await using cleanup = new AsyncDisposableStack();
  const own = cleanup.adopt(await startThere(), (service) => service.stop());
  const tried: string[] = [];
  let pushed = "";
  const later = await ask(`${own.url}/push/${samples.channel}?at=2999-01-01T00:00:00Z`, { body: "1" });
  const scheduled = later.body.id as string;
  for (const [operationId, place] of inOrder())
    for (const asking of askingsOf(place)) {
      const real = (text: string): string =>
        text.replace(samples.scheduleId, scheduled).replace(new RegExp(`${SAMPLE_EPOCH}-\\d+`, "g"), pushed);
      const { url, init } = describedRequest(place, asking, own.url, real);
      const { type, ...rest } = init as typeof init & { type?: string };
      const headers = { ...rest.headers, ...(type ? { "Content-Type": type } : {}) };
      const response = await fetch(url, { ...rest, headers } as RequestInit);
      const what = `${operationId} ${JSON.stringify(asking)}: ${response.status}`;
      // The channel of the examples is in use.
      const isExpected = operationId === "deleteChannel" ? response.status === 409 : response.ok;
      expect(isExpected && response.status in place.operation.responses, what).toBe(true);
      if (response.headers.get("content-type") === "text/event-stream") await response.body!.cancel();
      else if (operationId === "push") pushed = [...(await response.text()).matchAll(/"id":"([^"]+)"/g)].at(-1)![1]!;
      else await response.text();
      tried.push(operationId);
    }
  expect(new Set(tried)).toEqual(new Set(operations.keys()));
  expect(tried.length).toBeGreaterThan(operations.size);
});

// -------------------------------------------------------------------------------------------------------------------- the page

describe("the page", () => {
  const files = [
    "/swagger",
    "/swagger/",
    "/swagger.js",
    "/swagger.css",
    "/icon.svg",
    "/swagger/ui.js",
    "/swagger/ui.css",
  ];

  test("and all that it loads is served, with its media type", async () => {
    const types = await Promise.all(
      files.map(async (path) => {
        const { status, headers } = await ask(pere.url + path);
        return `${status} ${path} ${headers.get("content-type")?.split(";")[0]}`;
      }),
    );
    expect(types).toEqual([
      "200 /swagger text/html",
      "200 /swagger/ text/html",
      "200 /swagger.js text/javascript",
      "200 /swagger.css text/css",
      "200 /icon.svg image/svg+xml",
      "200 /swagger/ui.js text/javascript",
      "200 /swagger/ui.css text/css",
    ]);
  });

  test("refers to no other host, and has no inline script", async () => {
    for (const path of files.filter((name) => !name.endsWith("ui.js"))) {
      const { text } = await ask(pere.url + path);
      const allowed = text.replaceAll("http://www.w3.org/2000/svg", "").replace(/url\("?data:[^)]*\)/g, "");
      expect(allowed.match(/(https?:)?\/\/[\w.-]+\.\w+|@import/g) ?? [], path).toEqual([]);
    }
    const { text } = await ask(`${pere.url}/swagger`);
    expect(text).toContain('<html lang="en">');
    expect(text).toMatch(/<title>[^<]{4,}<\/title>/);
    expect(text).toContain('name="viewport"');
    for (const [tag] of text.matchAll(/<script[^>]*>[^<]*/g))
      expect(tag).toMatch(/ src="(?![a-z]+:|\/\/)[^"]+"[^>]*>\s*$/);
    expect(text).not.toMatch(/<style| style=| on\w+=/);
    expect(text).toContain("default-src 'none'");
  });

  test("replaces the sample epoch that the examples use", async () => {
    expect((await ask(`${pere.url}/swagger.js`)).text).toContain(`/${SAMPLE_EPOCH}-\\d+/g`);
  });

  browserTest("shows every operation in a browser, runs the story, and contacts no other host", async () => {
    await using view = openTab(390, 844);
    const page = <Value>(script: string): Promise<Value> => view.evaluate(script) as Promise<Value>;
    const shown = (selector: string): Promise<number> =>
      page(`document.querySelectorAll(${JSON.stringify(selector)}).length`);

    for (const path of ["/swagger", "/swagger/"]) {
      await view.navigate(pere.url + path);
      await until(async () => (await shown(".opblock")) === operations.size, `the operations at ${path}`);
    }
    // It fits a phone.
    expect(await page<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(390);

    // Its link to one operation opens it.
    await view.navigate(`${pere.url}/swagger#/Reading/readEvent`);
    await view.reload();
    await until(async () => (await shown("#operations-Reading-readEvent.is-open")) === 1, "the operation of the link");

    // An order is pushed, followed, answered, and read by the id that it was given.
    const execute = async (id: string): Promise<string> => {
      const block = `document.getElementById(${JSON.stringify(id)})`;
      await page(
        `${block}.classList.contains("is-open") || ${block}.querySelector(".opblock-summary-control").click()`,
      );
      await until(() => page(`${block}.querySelector("button.execute") !== null`), `${id} open`);
      await page(`${block}.querySelector("button.execute").click()`);
      const answer = `${block}.querySelector(".live-responses-table .response")?.innerText ?? ""`;
      return (await until(() => page<string>(answer), `an answer to ${id}`)) as string;
    };
    const idOf = (operationId: string): Promise<string> =>
      page(`[...document.querySelectorAll(".opblock")].find(({ id }) => id.endsWith("-${operationId}"))?.id ?? ""`);
    for (const [operationId, status, text] of [
      ["push", "201", '"seq": 1'],
      ["followEvents", "200", '"order": "A-1001"'],
      ["giveReceipts", "200", '"recorded": 1'],
      ["readEvent", "200", '"complete": true'],
      // A stream has no end: it is shown for a while.
      ["watch", "200", "event: pere.overview"],
    ] as const) {
      const answer = await execute(await idOf(operationId));
      expect(answer, operationId).toStartWith(status);
      expect(answer, operationId).toContain(text);
    }

    // The page's policy had nothing to refuse.
    const refused = `new Promise((resolve) => {
      const observer = new ReportingObserver((reports) => resolve(reports.map(({ body }) => body.blockedURL)), { types: ["csp-violation"], buffered: true });
      observer.observe();
      setTimeout(() => resolve([]), 100);
    })`;
    expect(await page<string[]>(refused)).toEqual([]);

    // Nothing came from, or went to, anybody else.
    const asked = await page<string[]>("performance.getEntriesByType('resource').map(({ name }) => name)");
    expect(asked.length).toBeGreaterThan(4);
    expect(asked.filter((url) => !url.startsWith(`${pere.url}/`) && !url.startsWith("data:"))).toEqual([]);
  });
});
