/**
 * The page that shows the OpenAPI document, and the promise that it makes: what it shows can be tried. Every example that the document gives for a request is sent to a
 * running service in the document's order, and the story is told once more by the page's own buttons in a real browser; each is answered with a 2xx that is described. All of it comes
 * from the service, and nothing asks anybody else.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import { issueToken } from "../engine/auth/issue.ts";
import type { Service } from "../index.ts";
import { SAMPLE_EPOCH, samples } from "../web/openapi-schemas.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { type Asking, describedRequest, type Document, operationsOf, type Place } from "./support/described.ts";
import { ask, SECRET, start, startWith, until } from "./support/harness.ts";

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

/** The channel of the examples is in use, and no device has failed its event. */
const REFUSED: Readonly<Record<string, number>> = { deleteChannel: 409, pushEventAgain: 422 };

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
      const refusal = REFUSED[operationId];
      const isExpected = refusal === undefined ? response.ok : response.status === refusal;
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
  /** The page and the files that it loads. */
  const filesOf = async (path: string): Promise<string[]> => {
    const { text } = await ask(pere.url + path);
    return [
      path,
      ...[...text.matchAll(/ (?:href|src)="([^"]+)"/g)].map(([, name]) => new URL(name!, pere.url + path).pathname),
    ];
  };

  test("and all that it loads is served, with its media type, with and without a slash at its end", async () => {
    for (const path of ["/swagger", "/swagger/"]) {
      const types = await Promise.all(
        (await filesOf(path)).map(async (name) => {
          const { status, headers } = await ask(pere.url + name);
          return `${status} ${name.replace(/-[0-9a-z]{8}\./, ".")} ${headers.get("content-type")?.split(";")[0]}`;
        }),
      );
      expect(types.slice(0, 4)).toEqual([
        `200 ${path} text/html`,
        "200 /pages/icon.svg image/svg+xml",
        "200 /pages/api.css text/css",
        "200 /pages/api.js text/javascript",
      ]);
      for (const one of types.slice(4)) expect(one).toMatch(/^200 \/pages\/[\w-]+\.js text\/javascript$/);
    }
  });

  test("refers to no other host, and has no inline script", async () => {
    for (const path of await filesOf("/swagger")) {
      const { text } = await ask(pere.url + path);
      // Names of XML namespaces; nothing is loaded from there.
      const allowed = text.replace(/https?:\/\/www\.w3\.org/g, "").replace(/url\("?data:[^)]*\)/g, "");
      expect(allowed.match(/https?:\/\/[\w.-]+\.\w+|@import/g) ?? [], path).toEqual([]);
    }
    const { text } = await ask(`${pere.url}/swagger`);
    expect(text).toContain('<html lang="en">');
    expect(text).toMatch(/<title>[^<]{4,}<\/title>/);
    expect(text).toContain('name="viewport"');
    for (const [tag] of text.matchAll(/<script[^>]*>[^<]*/g))
      expect(tag).toMatch(/ src="(?![a-z]+:|\/\/)[^"]+"[^>]*>\s*$/);
    expect(text).not.toMatch(/<style| style=| on\w+=/);
  });

  test("knows all of Markdown that the document uses", async () => {
    const texts: string[] = [];
    JSON.stringify((await ask(`${pere.url}/swagger/json`)).body, (name, value: unknown) => {
      if ((name === "description" || name === "summary") && typeof value === "string") texts.push(value);
      return value;
    });
    expect(texts.length).toBeGreaterThan(100);
    for (const text of texts)
      expect(text.replace(/`[^`]+`|\*\*[^*]+\*\*|^ {4}.*$/gm, "")).not.toMatch(
        /^([#>]|[-*+] |\d+\. )|[*`]|!\[|<\w|\b_\w/m,
      );
  });

  test("replaces the sample epoch that the examples use", async () => {
    expect(await Bun.file("web/api/request.ts").text()).toContain(`/${SAMPLE_EPOCH}-\\d+/g`);
  });

  browserTest("shows every operation in a browser, runs the story, and contacts no other host", async () => {
    const complaints: string[] = [];
    await using view = openTab(390, 844, (what) => complaints.push(what));
    const page = <Value>(script: string): Promise<Value> => view.evaluate(script) as Promise<Value>;
    const shown = (selector: string): Promise<number> =>
      page(`document.querySelectorAll(${JSON.stringify(selector)}).length`);

    for (const path of ["/swagger", "/swagger/"]) {
      await view.navigate(pere.url + path);
      await until(async () => (await shown("details.operation")) === operations.size, `the operations at ${path}`);
    }
    // It fits a phone.
    expect(await page<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(390);

    // Its link to one operation opens it.
    await view.navigate(`${pere.url}/swagger#/Reading/readEvent`);
    await view.reload();
    await until(async () => (await shown("#readEvent[open] .send")) === 1, "the operation of the link");
    expect(await shown("details.operation[open]")).toBe(1);

    // An order is pushed, followed, answered, and read by the id that it was given.
    const execute = async (id: string): Promise<string> => {
      if ((await shown(`#${id}[open]`)) === 0) {
        await view.scrollTo(`#${id} > summary`);
        await view.click(`#${id} > summary`);
      }
      await until(async () => (await shown(`#${id} .send`)) === 1, `${id} open`);
      await view.scrollTo(`#${id} .send`);
      await view.click(`#${id} .send`);
      const answer = `document.querySelector("#${id} .outcome pre") && document.querySelector("#${id} .outcome").innerText`;
      return (await until(() => page<string>(answer), `an answer to ${id}`)) as string;
    };
    for (const [operationId, status, text] of [
      ["push", "201", '"seq": 1'],
      ["followEvents", "200", '"order": "A-1001"'],
      ["giveReceipts", "200", '"recorded": 1'],
      ["readEvent", "200", '"complete": true'],
      // A stream has no end: it is shown for a while.
      ["watch", "200", "event: pere.overview"],
    ] as const) {
      const answer = await execute(operationId);
      expect(answer, operationId).toStartWith(status);
      expect(answer, operationId).toContain(text);
    }
    expect(await page<string>("location.hash")).toBe("#/Reading/watch");
    expect(complaints).toEqual([]);

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

  browserTest(
    "takes a token, keeps it for the tab, and says what to do without one; the keyboard is enough",
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const guarded = cleanup.adopt(await startWith(), (service) => service.stop());
      await using view = openTab(1000, 900);
      const page = <Value>(script: string): Promise<Value> => view.evaluate(script) as Promise<Value>;
      await view.navigate(`${guarded.url}/swagger#/Reading/listChannels`);
      const outcome = "document.querySelector('#listChannels .outcome')?.innerText ?? ''";
      const send = async (): Promise<void> => {
        await until(() => page("document.querySelector('#listChannels .send') !== null"), "the form");
        await page("document.querySelector('#listChannels .send').focus()");
        await view.press("Enter");
      };
      await send();
      await until(async () => /^401[^]*Paste a token/.test(await page<string>(outcome)), "a refusal");
      const token = await issueToken(
        { secret: SECRET, now: Date.now },
        { sub: "office", push: ["*"], feed: [], days: 1 },
      );
      await page("document.querySelector('.token input').focus()");
      await view.type(token);
      await send();
      await until(async () => (await page<string>(outcome)).startsWith("200"), "an answer");
      // The command to copy does not contain it.
      expect(await page<string>("document.querySelector('#listChannels .outcome').textContent")).toContain("Bearer …");
      await view.reload();
      await send();
      await until(async () => (await page<string>(outcome)).startsWith("200"), "an answer after a reload");
      // A disclosure opens by keyboard.
      await page("document.querySelector('#push > summary').focus()");
      await view.press("Enter");
      await until(() => page("document.querySelector('#push').open"), "the operation");
    },
  );

  browserTest(
    "axe finds no fault, light and dark, on a desktop and on a phone, with operations and schemas open",
    async () => {
      const axe = await Bun.file("node_modules/axe-core/axe.min.js").text();
      for (const [width, height] of [
        [1280, 800],
        [390, 844],
      ] as const)
        for (const scheme of ["light", "dark"]) {
          await using view = openTab(width, height);
          await view.navigate(`${pere.url}/swagger#/Reading/readEvent`);
          await view.reload();
          await view.cdp("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
          await until(() => view.evaluate("document.querySelector('#readEvent .send') !== null"), "the operation");
          await view.evaluate("void document.querySelector('#readEvent .send').click()");
          await until(() => view.evaluate("document.querySelector('#readEvent .outcome pre') !== null"), "an answer");
          for (const kind of ["details.operation", "#push details.folded", "#push details.folded details.folded"])
            await view.evaluate(`new Promise((resolve) => {
            for (const one of document.querySelectorAll("${kind}")) one.open = true;
            setTimeout(resolve, 100);
          })`);
          await view.evaluate(`(() => {\n${axe}\n})()`);
          const faults = await view.evaluate(
            "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`))",
          );
          expect(faults, `${width} ${scheme}`).toEqual([]);
          expect(await view.evaluate("document.documentElement.scrollWidth")).toBeLessThanOrEqual(width);
          // What is pressed fits a thumb.
          const small = `[...document.querySelectorAll("button, summary, input, select")].filter((one) => one.offsetHeight > 0 && one.offsetHeight < 44).map((one) => one.outerHTML)`;
          expect(await view.evaluate(small)).toEqual([]);
        }
    },
  );
});
