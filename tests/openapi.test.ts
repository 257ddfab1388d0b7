/**
 * The OpenAPI document is valid, its paths are the routes that there are, and hooks are called with what it describes.
 *
 * How the service answers by it is held in `openapi-answers.test.ts`. The page that shows it has its own tests, in `swagger.test.ts`.
 */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Validator } from "@seriousme/openapi-schema-validator";
import { readRanges } from "../engine/addresses.ts";
import { readHookName } from "../engine/hooks/hooks.ts";
import { readChannel, readChannels, readDevice, readPosition, readPositions, readType } from "../engine/parsing.ts";
import packageJson from "../package.json";
import { SAMPLE_TIME_MS } from "../web/openapi-schemas.ts";
import { type Answer, ask, start, until } from "./support/harness.ts";
import { describedServices, document, JSON_TYPE, operations, replyOf, routes, shapeOf } from "./support/openapi.ts";

describedServices();

describe("the document", () => {
  test("is valid OpenAPI 3.1 and has PERE's version", async () => {
    const result = await new Validator().validate(structuredClone(document) as unknown as Record<string, unknown>);
    expect(result.errors ?? []).toEqual([]);
    expect(result.valid).toBe(true);
    expect(document.openapi).toBe("3.1.0");
    expect(document.info.version).toBe(packageJson.version);
  });

  test("describes every route, and nothing else", async () => {
    const documents = ["/swagger/json", "/asyncapi.json"];
    const device = ["/weblistener.html", "/weblistener-worker.js", "/console-worker.js"];
    const swagger = ["/swagger", "/swagger/"];
    const sdk = ["/pere.js", "/pere.d.ts"];
    const pages = ["/", "/pages/:file", ...device, ...sdk, ...swagger, ...documents];
    const files = (await Array.fromAsync(new Bun.Glob("**").scan(join(import.meta.dir, "..", "web")))).map(
      (name) => `/${name}`,
    );
    const served = routes
      .filter(({ path }) => !pages.includes(path) && !files.includes(path))
      .map(({ method, path }) => `${method} ${path.replace(/:(\w+)/g, "{$1}")}`);
    const described = [...operations.values()].map(({ method, path }) => `${method} ${path}`);
    expect(described.toSorted()).toEqual([...new Set(served)].toSorted());
    expect(described.length).toBeGreaterThan(20);
  });

  test("has each operation's purpose, and its errors if it takes input", () => {
    const tags = document.tags.map(({ name }) => name);
    for (const { path, operation } of operations.values()) {
      expect(operation.summary, path).toMatch(/^[A-Z].{9,59}$/);
      expect(tags, path).toContain(operation.tags[0]!);
      expect(operation.tags, path).toHaveLength(1);
      const names = operation.parameters?.map((parameter) => `${parameter.in} ${parameter.name}`) ?? [];
      expect(new Set(names).size, path).toBe(names.length);
      for (const parameter of operation.parameters ?? []) expect(parameter.description, path).not.toBe("");
      const statuses = Object.keys(operation.responses).map(Number);
      for (const status of statuses)
        expect(replyOf(operation.operationId, status)!.reply.description, `${path} ${status}`).toMatch(/^.{4,}/);
      const takes = names.length > 0 || operation.requestBody !== undefined || operation.responses["403"] !== undefined;
      expect(
        statuses.some((status) => status >= 400 && status < 500),
        path,
      ).toBe(takes);
    }
  });

  test("declares each place of a token, and requires one everywhere except at the probes", () => {
    expect(document.components.securitySchemes).toMatchObject({
      bearer: { type: "http", scheme: "bearer", bearerFormat: "JWT" },
      cookie: { type: "apiKey", in: "cookie", name: "pere_token" },
      query: { type: "apiKey", in: "query", name: "token" },
    });
    expect(document.security).toEqual([{ bearer: [] }, { cookie: [] }, { query: [] }]);
    for (const [operationId, { operation }] of operations) {
      const isOpen = operationId === "health" || operationId === "ready";
      expect(operation.security, operationId).toEqual(isOpen ? [] : undefined);
      expect("401" in operation.responses, operationId).toBe(!isOpen);
      // A list of all channels needs no right on one: it is shorter.
      expect("403" in operation.responses, operationId).toBe(!isOpen && operationId !== "listChannels");
    }
  });

  test("uses every schema that it has, and has every schema that it uses", () => {
    const prose = JSON.stringify(document);
    for (const name of Object.keys(document.components.schemas))
      // What is only inside event streams is referred to in prose.
      expect(prose.includes(`"#/components/schemas/${name}"`) || prose.includes(`\`${name}\``), name).toBe(true);
    for (const [, name] of prose.matchAll(/"#\/components\/schemas\/(\w+)"/g))
      expect(Object.keys(document.components.schemas)).toContain(name!);
  });

  test("has the patterns of names and ids that the service uses", () => {
    const long = (length: number): string => "a".repeat(length);
    const texts = ["orders", "A.b_c:d~e-f", "-a", ".a", "~", "a b", "a/b", "ü", "", "a\n", "pere.x", "pere", "Pere.x"]
      .concat(["open", "message", "error", "Error", "messages", "an.error"])
      .concat([64, 65, 128, 129].map(long))
      .concat(["a,b", "a,", ",a", "a,,b", "a, b", "a,-b"])
      .concat([16, 17].map((count) => Array.from({ length: count }, (_, n) => `c${n}`).join(",")))
      .concat(["k3x9-1", "k3x9-0", "k3x9-01", "K-1", "-1", "a-1.b-2", "a-1.", `${long(17)}-1`, `a-${"9".repeat(16)}`])
      .concat([16, 17].map((count) => Array.from({ length: count }, () => "a-1").join(".")));
    const readers = {
      Channel: readChannel,
      Channels: readChannels,
      Device: readDevice,
      HookName: readHookName,
      EventType: readType,
      EventId: (text: string) => readPosition(text, "id"),
      Position: (text: string) => readPositions(text, "last-event-id"),
    };
    for (const [name, read] of Object.entries(readers))
      for (const text of texts) {
        let taken = true;
        try {
          read(text);
        } catch {
          taken = false;
        }
        expect(`${name} ${JSON.stringify(text)} ${shapeOf(name, text) === ""}`).toBe(
          `${name} ${JSON.stringify(text)} ${taken}`,
        );
      }
  });
});

test("calls to hooks match the document", async () => {
  const bodies: { type: string }[] = [];
  const receiver = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      bodies.push((await request.json()) as { type: string });
      return new Response();
    },
  });
  let now = SAMPLE_TIME_MS;
  const own = await start({ now: () => now, hooksAllowed: readRanges("127.0.0.0/8") });
  const heard = (type: string): Promise<unknown> => until(() => bodies.some((body) => body.type === type), type);
  const on = ["receipt", "complete", "missing", "settled", "failed"];
  await ask(`${own.url}/hooks/c/h`, { method: "PUT", body: { url: `http://127.0.0.1:${receiver.port}/`, on } });
  const pushed = await ask(`${own.url}/push/c?to=a,b&type=x&deadline=60`, { body: "1" });
  const receipt = (device: string, status: string): Promise<Answer> =>
    ask(`${own.url}/feedback/c`, { body: { event: pushed.body.id as string, device, status } });
  await receipt("a", "done");
  await heard("pere.receipt");
  now += 61_000;
  await heard("pere.missing");
  await heard("pere.settled");
  await receipt("b", "failed");
  for (const type of ["pere.complete", "pere.failed"]) await heard(type);
  const state = bodies.find(({ type }) => type === "pere.complete")!;
  const complete = (await ask(`${own.url}/feedback/c?since=earliest`, { headers: { Accept: JSON_TYPE } })).body
    .complete[0];
  for (const body of [...bodies, { ...state, data: complete }, { ...state, type: "pere.settled", data: complete }])
    expect(shapeOf("HookCall", body)).toBe("");
  const gap = { channel: "c", after: "a-1", from: "a-3" };
  expect(shapeOf("HookCall", { ...state, type: "pere.gap", data: gap })).toBe("");
  expect(shapeOf("HookCall", { ...state, data: gap })).not.toBe("");
  await own.stop();
  await receiver.stop(true);
});
