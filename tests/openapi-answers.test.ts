/**
 * The service answers as its OpenAPI document says.
 *
 * - Its examples are one story. The story is played on a fresh service with a clock that stands still: what is sent is the document's own
 *   example, and what comes back is its own example again, letter by letter, but for what a service makes up (epochs, incidents).
 * - Every status that it declares is provoked, and every answer is held to the schema, the content type and the headers declared for it.
 */
import { describe, expect, spyOn, test } from "bun:test";
import { createParser } from "eventsource-parser";
import type { Engine } from "../engine/engine.ts";
import { HOOK_BYTES_MAX, LINES_MAX, PereError, RECEIPTS_MAX, TO_MAX } from "../engine/model.ts";
import { SAMPLE_EPOCH, samples } from "../web/openapi-schemas.ts";
import { describedRequest, type Media, type Asking as Plain } from "./support/described.ts";
import { type Answer, ask, connect, listen, openStream, start, startWith, until } from "./support/harness.ts";
import {
  describedServices,
  epoch,
  escape,
  expired,
  faults,
  guarded,
  JSON_TYPE,
  operations,
  pere,
  replyOf,
  shapeOf,
  tellEpoch,
  weak,
} from "./support/openapi.ts";

describedServices();

type Asking = Plain & { readonly token?: "weak" | "expired" };

const real = (text: string): string => text.replaceAll(SAMPLE_EPOCH, epoch);

/** As the examples have it. */
const sample = (text: string): string =>
  text
    .replaceAll(epoch, SAMPLE_EPOCH)
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, "7f0c5a52-3d0c-4f5e-9a53-0a4b1c9a8e11");

/** The request that the document describes, with the examples that it gives. */
function requestOf(operationId: string, { token, ...asking }: Asking, base = pere.url) {
  const headers = {
    ...asking.headers,
    ...(token ? { Authorization: `Bearer ${token === "weak" ? weak : expired}` } : {}),
  };
  return describedRequest(operations.get(operationId)!, { ...asking, headers }, base, real);
}

/** Holds an answer to what is declared for it. */
function holds(operationId: string, answer: Answer): void {
  const declared = replyOf(operationId, answer.status);
  expect(declared, `${operationId} answers ${answer.status}: ${answer.text}`).not.toBeNull();
  const { reply, pointer } = declared!;
  const type = (answer.headers.get("content-type") ?? "").split(";")[0]!;
  expect(Object.keys(reply.content ?? { "": null }), operationId).toContain(type);
  if (type.endsWith("json"))
    expect(faults(`${pointer}/content/${escape(type)}/schema`, answer.body), operationId).toBe("");
  if (type === "application/problem+json") {
    expect(shapeOf("Problem", pick(answer.body)), operationId).toBe("");
    expect(answer.body.status).toBe(answer.status);
  }
  for (const name of Object.keys(reply.headers ?? {}))
    if (name === "Preference-Applied")
      expect(answer.headers.get(name)).toBe(/"complete":/.test(answer.text) ? "wait" : null);
    else if (name !== "Location" || "seq" in answer.body) expect(answer.headers.get(name), name).not.toBeNull();
  if (answer.headers.has("retry-after")) expect(Object.keys(reply.headers ?? {})).toContain("Retry-After");
  if (answer.headers.has("preference-applied"))
    expect(Object.keys(reply.headers ?? {})).toContain("Preference-Applied");
  if (answer.headers.has("idempotent-replayed")) expect(answer.status).toBe(200);
}

/** A problem's own members, of an answer that may say more. */
const pick = ({ type, title, status, detail, errors }: Record<string, unknown>) =>
  JSON.parse(JSON.stringify({ type, title, status, detail, errors })) as unknown;

async function tried(operationId: string, asking: Asking, base = pere.url): Promise<Answer> {
  const { url, init } = requestOf(operationId, asking, base);
  const answer = await ask(url, init);
  holds(operationId, answer);
  return answer;
}

/** One step: an operation with examples of its own, the status it ends with, and the name of the example that the answer is. */
type Step = readonly [operationId: string, asking: Asking, status: number, type: string, example: string];

const PROBLEM = "application/problem+json";

const FORM = "application/x-www-form-urlencoded";

const LINES = "application/x-ndjson";

/** The statuses for which the service with a secret is asked. */
const isGuarded = (status: number): boolean => status === 401 || status === 403;

const accept = (type: string): Asking => ({ headers: { Accept: type } });

const keyed: Asking = { type: JSON_TYPE, example: "one", headers: { "Idempotency-Key": "a" } };

const STORY: readonly Step[] = [
  ["health", {}, 200, JSON_TYPE, "example"],
  ["ready", {}, 200, JSON_TYPE, "example"],
  ["enrolDevice", {}, 201, JSON_TYPE, "example"],
  ["enrolDevice", {}, 200, JSON_TYPE, "example"],
  ["push", keyed, 201, JSON_TYPE, "one"],
  ["push", keyed, 200, JSON_TYPE, "one"],
  ["push", { ...keyed, example: "", body: "1" }, 422, PROBLEM, "key"],
  ["push", { type: LINES, example: "many" }, 201, JSON_TYPE, "many"],
  ["followEvents", accept(JSON_TYPE), 200, JSON_TYPE, "example"],
  ["followEvents", accept("text/event-stream"), 200, "text/event-stream", "example"],
  ["giveReceipts", { type: JSON_TYPE, example: "one" }, 200, JSON_TYPE, "one"],
  ["giveReceipts", { type: JSON_TYPE, example: "many" }, 200, JSON_TYPE, "many"],
  ["giveReceipts", { type: FORM, example: "form" }, 200, JSON_TYPE, "one"],
  ["push", { ...keyed, headers: { ...keyed.headers, Prefer: "wait=60" } }, 200, JSON_TYPE, "waited"],
  ["followReceipts", accept(JSON_TYPE), 200, JSON_TYPE, "example"],
  ["followReceipts", accept("text/event-stream"), 200, "text/event-stream", "example"],
  ["watch", {}, 200, "text/event-stream", "example"],
  ["listChannels", {}, 200, JSON_TYPE, "example"],
  ["listEvents", {}, 200, JSON_TYPE, "example"],
  ["readEvent", {}, 200, JSON_TYPE, "example"],
  ["listReceipts", accept(JSON_TYPE), 200, JSON_TYPE, "example"],
  ["listReceipts", accept("text/csv"), 200, "text/csv", "example"],
  ["listReceipts", accept(LINES), 200, LINES, "example"],
  ["listDevices", {}, 200, JSON_TYPE, "example"],
  ["putHook", { type: JSON_TYPE, example: "one" }, 201, JSON_TYPE, "example"],
  ["putHook", { type: JSON_TYPE, example: "one" }, 200, JSON_TYPE, "example"],
  ["retryHook", {}, 200, JSON_TYPE, "example"],
  ["listHooks", {}, 200, JSON_TYPE, "example"],

  ["push", { type: JSON_TYPE, body: "1" }, 401, PROBLEM, "missing"],
  ["push", { type: JSON_TYPE, body: "1", token: "expired" }, 401, PROBLEM, "expired"],
  ["push", { type: JSON_TYPE, body: "1", token: "weak" }, 403, PROBLEM, "example"],
  ["push", { type: JSON_TYPE, body: "1", parameters: { type: "pere.x" } }, 422, PROBLEM, "type"],
  ["push", { type: JSON_TYPE, body: JSON.stringify("x".repeat(70_000)) }, 413, PROBLEM, "example"],
  ["push", { type: "text/plain", body: "1" }, 415, PROBLEM, "example"],
  ["listEvents", { parameters: { channel: "-x" } }, 400, PROBLEM, "channel"],
  ["listEvents", { parameters: { limit: "ten" } }, 400, PROBLEM, "limit"],
  ["listEvents", { parameters: { limit: "0" } }, 422, PROBLEM, "example"],
  ["listEvents", { parameters: { channel: "nowhere" } }, 404, PROBLEM, "example"],
  [
    "giveReceipts",
    { type: JSON_TYPE, body: '{"event":"0-99","device":"till-7","status":"done"}' },
    422,
    PROBLEM,
    "example",
  ],
];

describe("the examples", () => {
  test("are one story, and come true", async () => {
    const told: unknown[] = [];
    for (const [operationId, asking, status, type, example] of STORY) {
      const step = `${operationId} ${status} ${type} ${example}`;
      const expected = replyOf(operationId, status)!.reply.content![type]!.examples![example]!.value;
      if (type === "text/event-stream") {
        const { url, init } = requestOf(operationId, asking);
        const stream = await (operationId === "watch" ? openStream(url) : listen(url, init.headers));
        await until(() => sample(stream.raw).length >= String(expected).length);
        expect(sample(stream.raw), step).toBe(String(expected));
        stream.close();
      } else {
        const answer = await tried(operationId, asking, isGuarded(status) ? guarded.url : pere.url);
        expect(answer.status, `${step}: ${answer.text}`).toBe(status);
        if (operationId === "push" && status === 201) tellEpoch(answer.text);
        const given = JSON.parse(sample(JSON.stringify(answer.body))) as unknown;
        expect(given, step).toEqual(expected);
      }
      told.push(expected);
    }
    // The pushed event is where the answer says it is.
    expect(operations.get("readEvent")!.path.replace("{channel}", samples.channel).replace("{id}", samples.event)).toBe(
      `/events/${samples.channel}/${samples.event}`,
    );
  });

  test("are all in the story, save those of numbers, of trouble inside, of too much, and of bodies that do not come", () => {
    const key = (...parts: unknown[]): string => parts.join(" ");
    const inStory = new Set(
      STORY.map(([operationId, , status, type, example]) => key(replyOf(operationId, status)!.pointer, type, example)),
    );
    const requests = new Set(STORY.map(([operationId, asking]) => key(operationId, asking.type, asking.example)));
    const missing = new Set<string>();
    for (const [operationId, { operation }] of operations) {
      for (const [type, media] of Object.entries(operation.requestBody?.content ?? {}))
        for (const name of Object.keys(media.examples ?? {}))
          if (!requests.has(key(operationId, type, name))) missing.add(key(operationId, type, name));
      for (const status of Object.keys(operation.responses)) {
        const { reply, pointer } = replyOf(operationId, Number(status))!;
        for (const [type, media] of Object.entries(reply.content ?? {})) {
          expect(Object.keys(media.examples ?? {}), `${operationId} ${status}`).not.toEqual([]);
          for (const name of Object.keys(media.examples ?? {}))
            if (!inStory.has(key(pointer, type, name))) missing.add(key(pointer, type, name));
        }
      }
    }
    expect([...missing].toSorted()).toEqual([
      `/components/responses/Away ${PROBLEM} example`,
      `/components/responses/Full ${PROBLEM} example`,
      `/components/responses/Inside ${PROBLEM} example`,
      `/components/responses/TooMany ${PROBLEM} example`,
      `/components/responses/TooSlow ${PROBLEM} example`,
      "/paths/~1metrics/get/responses/200 text/plain example",
    ]);
  });

  test("of event streams hold what their schemas say, frame by frame", () => {
    const expected = {
      followEvents: ["Ready", "Event"],
      followReceipts: ["Ready", "Receipt", "Complete"],
      watch: ["Overview", "Changes"],
    };
    for (const [operationId, schemas] of Object.entries(expected)) {
      const text = replyOf(operationId, 200)!.reply.content!["text/event-stream"]!.examples!.example!.value;
      const seen: string[] = [];
      createParser({
        onEvent({ event, data }) {
          const own = /^pere\.(.)(.*)$/.exec(event ?? "");
          const name = own ? own[1]!.toUpperCase() + own[2]! : schemas[1]!;
          seen.push(name);
          expect(shapeOf(name, JSON.parse(data))).toBe("");
        },
      }).feed(String(text));
      expect(new Set(seen)).toEqual(new Set(schemas));
    }
  });

  test("of requests are what their schemas ask for", () => {
    let count = 0;
    for (const { path, method, operation } of operations.values()) {
      const pointer = `/paths/${escape(path)}/${method.toLowerCase()}`;
      for (const [type, media] of Object.entries(operation.requestBody?.content ?? {}))
        for (const { value } of Object.values(media.examples!)) {
          expect(faults(`${pointer}/requestBody/content/${escape(type)}/schema`, value)).toBe("");
          count++;
        }
      operation.parameters?.forEach(({ example }, index) => {
        if (example === undefined) return;
        expect(faults(`${pointer}/parameters/${index}/schema`, example)).toBe("");
        count++;
      });
    }
    expect(count).toBeGreaterThan(20);
  });
});

const bad = (parameters: Record<string, string>): Asking => ({ parameters });

const post = (body: string | Uint8Array, type = JSON_TYPE): Asking => ({ type, body });

const deep = `${"[".repeat(65)}${"]".repeat(65)}`;

/** What provokes the statuses that are the asker's fault. */
const WRONG: Record<string, Record<number, readonly Asking[]>> = {
  push: {
    400: [
      post("{"),
      post(new Uint8Array([0x22, 0xff, 0x22])),
      post("{}\n{", LINES),
      { ...post("1"), parameters: { ttl: "soon" } },
      { ...post("1"), headers: { Prefer: "wait=soon" } },
      { ...post("1"), headers: { "Idempotency-Key": "" } },
    ],
    413: [post("1\n".repeat(LINES_MAX + 1), LINES)],
    415: [post("1", "text/plain"), { ...post("1"), headers: { "Content-Encoding": "gzip" } }],
    422: [
      post(deep),
      { ...post("1"), parameters: { deadline: "0" } },
      { ...post("1"), parameters: { remind: "0.9" } },
      { ...post("1"), headers: { Prefer: "wait=121" } },
      { ...post("1"), parameters: { to: Array.from({ length: TO_MAX + 1 }, (_, n) => n).join(",") } },
    ],
  },
  followEvents: {
    400: [bad({ since: "then" }), bad({ device: "a b" }), { headers: { Upgrade: "websocket" } }],
    422: [
      bad({ channel: Array.from({ length: 17 }, (_, n) => `c${n}`).join(",") }),
      { ...accept(JSON_TYPE), ...bad({ wait: "61" }) },
    ],
  },
  followReceipts: { 400: [bad({ "last-event-id": "?" })], 422: [{ ...accept(JSON_TYPE), ...bad({ wait: "61" }) }] },
  giveReceipts: {
    400: [post("["), post("id=x&device=till-7&status=ok", FORM)],
    413: [post(JSON.stringify(Array.from({ length: RECEIPTS_MAX + 1 }, () => 1)))],
    415: [post("1", "text/plain")],
    422: [post("1"), post(deep), post("id=0-9&status=ok", FORM)],
  },
  watch: { 400: [bad({ channel: "-" })] },
  listChannels: { 400: [bad({ limit: "x" })], 422: [bad({ limit: "1001" })] },
  listEvents: { 400: [bad({ after: "x" })], 404: [bad({ after: "0-1" })], 422: [bad({ limit: "0" })] },
  readEvent: { 400: [bad({ channel: "-" })], 404: [bad({ id: "0-1" }), bad({ id: "x" })] },
  listReceipts: {
    400: [bad({ status: "gone" })],
    404: [bad({ id: "0-1" })],
    422: [bad({ limit: "0" })],
  },
  listDevices: { 400: [bad({ limit: "x" })], 404: [bad({ channel: "nowhere" })], 422: [bad({ limit: "0" })] },
  enrolDevice: { 400: [bad({ device: "a b" })], 415: [{ headers: { "Content-Encoding": "gzip" } }] },
  retireDevice: { 400: [bad({ device: "a b" })], 404: [bad({ device: "nobody" })] },
  listHooks: { 400: [bad({ channel: "-" })] },
  putHook: {
    400: [post("{"), post('{"url":"ftp://shop.example"}'), { ...post("{}"), ...bad({ name: "-" }) }],
    413: [post(`"${"x".repeat(HOOK_BYTES_MAX)}"`)],
    415: [post("{}", "text/plain")],
    422: [post('{"url":"http://10.0.0.1/"}')],
  },
  dropHook: { 400: [bad({ name: "-" })], 404: [bad({ name: "nobody" })] },
  retryHook: {
    400: [bad({ name: "-" })],
    404: [bad({ name: "nobody" })],
    415: [{ headers: { "Content-Encoding": "gzip" } }],
  },
};

/** What takes a body may wait for it in vain. */
const SLOW = ["push", "giveReceipts", "putHook"];

/** Operations that one caller may do only so often. */
const LIMITED = ["push", "giveReceipts", "followReceipts", "followEvents"];

/** Where each operation meets the engine. */
const BEHIND: Record<string, keyof Engine> = {
  push: "push",
  followEvents: "follow",
  giveReceipts: "feedback",
  followReceipts: "follow",
  listChannels: "channels",
  listEvents: "events",
  readEvent: "event",
  listReceipts: "rows",
  listDevices: "devices",
  enrolDevice: "enrol",
  retireDevice: "retire",
  ready: "ready",
};

/** The same for hooks. */
const BEHIND_HOOKS: Record<string, keyof Engine["hooks"]> = {
  listHooks: "list",
  putHook: "put",
  dropHook: "drop",
  retryHook: "retry",
};

/** What is asked where only the answer counts. */
const usual = (operationId: string): Asking =>
  operationId === "push" || operationId === "giveReceipts" || operationId === "putHook"
    ? { type: JSON_TYPE, example: "one" }
    : operationId.startsWith("follow")
      ? { ...accept(JSON_TYPE), parameters: { wait: "0" } }
      : {};

describe("what can go wrong", () => {
  for (const [operationId, statuses] of Object.entries(WRONG))
    test(`${operationId} answers as described when it is asked wrongly`, async () => {
      for (const [status, askings] of Object.entries(statuses))
        for (const asking of askings) {
          const answer = await tried(operationId, asking);
          expect(`${answer.status} ${JSON.stringify(asking).slice(0, 200)}`).toBe(
            `${status} ${JSON.stringify(asking).slice(0, 200)}`,
          );
        }
    });

  test("without a token, with one that has expired, and with one too weak, each operation answers as described", async () => {
    for (const [operationId, { operation }] of operations)
      for (const [status, token] of [[401], [401, "expired"], [403, "weak"]] as const) {
        const asking = { ...usual(operationId), ...(token ? { token } : {}) };
        if (status in operation.responses)
          expect((await tried(operationId, asking, guarded.url)).status, operationId).toBe(status);
      }
    for (const operationId of ["health", "ready"])
      expect((await tried(operationId, {}, guarded.url)).status, operationId).toBe(200);
  });

  test("a fault inside, a store that is away and a disk that is full are answered as described", async () => {
    const silent = spyOn(console, "error").mockImplementation(() => {});
    try {
      for (const [operationId, method] of Object.entries({ ...BEHIND, ...BEHIND_HOOKS }))
        for (const [status, error] of [
          [500, new Error("boom")],
          [503, new PereError("away", "PERE is shutting down; push again in a moment")],
          [507, new PereError("full", "the disk is full; nothing was stored")],
        ] as const) {
          if (status === 507 && !replyOf(operationId, status)) continue; // It only reads.
          const whose = operationId in BEHIND ? pere.engine : (pere.engine.hooks as unknown as Engine);
          const behind = spyOn(whose, method as "ready").mockImplementation(() => {
            throw error;
          });
          const answer = await tried(operationId, usual(operationId)).finally(() => behind.mockRestore());
          expect(answer.status, operationId).toBe(status);
          const [[, media]] = Object.entries(replyOf(operationId, status)!.reply.content!) as [[string, Media]];
          expect(JSON.parse(sample(answer.text)), operationId).toEqual(media.examples!.example!.value);
        }
    } finally {
      silent.mockRestore();
    }
  });

  test("a body that comes too slowly is answered as described", async () => {
    const hasty = await start({ bodyMs: 10 });
    for (const operationId of SLOW) {
      const { url, init } = requestOf(operationId, usual(operationId), hasty.url);
      const body = new ReadableStream({ pull: () => new Promise(() => {}) });
      const response = await fetch(url, { ...init, headers: { "Content-Type": JSON_TYPE }, body });
      const text = await response.text();
      expect([operationId, response.status]).toEqual([operationId, 408]);
      holds(operationId, { status: 408, headers: response.headers, text, body: JSON.parse(text) as unknown });
      const { example } = replyOf(operationId, 408)!.reply.content!["application/problem+json"]!.examples!;
      expect(JSON.parse(text)).toEqual(example!.value);
    }
    await hasty.stop();
  });

  test("who does too much is answered as described", async () => {
    const small = await startWith({ access: "open", rates: { push: 1, receipt: 1, feed: 1 } });
    for (const operationId of LIMITED) {
      const { url, init } = requestOf(operationId, usual(operationId), small.url);
      await ask(url, init);
      const answer = await ask(url, init);
      expect([operationId, answer.status]).toEqual([operationId, 429]);
      holds(operationId, answer);
      if (operationId !== "push") continue;
      const { example } = replyOf(operationId, 429)!.reply.content![PROBLEM]!.examples!;
      expect(answer.body).toEqual(example!.value);
    }
    await small.stop();
  });

  test("nothing is declared that was not seen to come", async () => {
    const seen = new Set(STORY.map(([operationId, , status]) => `${operationId} ${status}`));
    for (const [operationId, statuses] of Object.entries(WRONG))
      for (const status of Object.keys(statuses)) seen.add(`${operationId} ${status}`);
    for (const operationId of Object.keys({ ...BEHIND, ...BEHIND_HOOKS }))
      for (const status of [500, 503, 507])
        if (status !== 507 || replyOf(operationId, status)) seen.add(`${operationId} ${status}`);
    for (const operationId of SLOW) seen.add(`${operationId} 408`);
    for (const operationId of LIMITED) seen.add(`${operationId} 429`);

    // By the test above.
    for (const operationId of operations.keys())
      for (const status of [401, 403]) if (replyOf(operationId, status)) seen.add(`${operationId} ${status}`);

    const feed = await connect(`${pere.url}/feed/orders?device=till-7`, ["pere.v1"]);
    const { pere: ready, ...body } = feed.messages[0]!;
    expect([ready, shapeOf("Ready", body)]).toEqual(["ready", ""]);
    feed.socket.send(JSON.stringify({ event: "0-99", status: "done" }));
    const told = await until(() => feed.messages.find((message) => message.pere === "receipts"));
    const { pere: _, ...feedback } = told;
    expect(shapeOf("Feedback", feedback)).toBe("");
    seen.add("followEvents 101");
    expect((await tried("metrics", {})).status).toBe(200);
    seen.add("metrics 200");
    const twoTokens = await ask(`${guarded.url}/metrics?token=${expired}`, {
      headers: { Authorization: `Bearer ${weak}` },
    });
    holds("metrics", twoTokens);
    expect(twoTokens.status).toBe(400);
    seen.add("metrics 400");
    const gone = await tried("retireDevice", {});
    expect(gone.status).toBe(204);
    seen.add("retireDevice 204");
    expect((await tried("dropHook", {})).status).toBe(204);
    seen.add("dropHook 204");
    const bye = await until(() => feed.messages.find((message) => message.pere === "bye"));
    expect(shapeOf("Bye", { reason: bye.reason })).toBe("");
    expect((await feed.closed).code).toBe(1008);
    const receipts = await connect(`${pere.url}/feedback/orders`);
    expect(receipts.messages[0]!.pere).toBe("ready");
    receipts.socket.close();
    seen.add("followReceipts 101");

    const lost = await ask(`${pere.url}/feed/orders?last-event-id=0-7`, { headers: { Accept: JSON_TYPE } });
    holds("followEvents", lost);
    expect(lost.body.gaps).toHaveLength(1);

    const declared = [...operations].flatMap(([operationId, { operation }]) =>
      Object.keys(operation.responses).map((status) => `${operationId} ${status}`),
    );
    expect(declared.toSorted()).toEqual([...seen].toSorted());
  });

  test("another method is 405 with the ones there are, another path 404, as the introduction says", async () => {
    const wrong = await ask(`${pere.url}/push/orders`);
    expect([wrong.status, wrong.headers.get("allow"), shapeOf("Problem", wrong.body)]).toEqual([405, "POST", ""]);
    const nothing = await ask(`${pere.url}/nothing`);
    expect([nothing.status, shapeOf("Problem", nothing.body)]).toEqual([404, ""]);
  });
});
