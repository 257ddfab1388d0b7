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
import { samples } from "../web/openapi-schemas.ts";
import type { Media } from "./support/described.ts";
import { ask, connect, listen, openStream, start, startWith, until } from "./support/harness.ts";
import {
  describedServices,
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
import {
  accept,
  FORM,
  type Asking,
  holds,
  LINES,
  PROBLEM,
  requestOf,
  sample,
  STORY,
  tellScheduled,
  tried,
} from "./support/openapi-story.ts";

describedServices();

/** The statuses for which the service with a secret is asked. */
const isGuarded = (status: number): boolean => status === 401 || status === 403;

describe("the examples", () => {
  test("form one story, and match the real answers", async () => {
    const told: unknown[] = [];
    let first: string | undefined;
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
        if (operationId === "push" && status === 201) {
          tellEpoch(answer.text);
          first ??= answer.text;
        }
        if (status === 202) tellScheduled(answer.body.id as string);
        const given = JSON.parse(sample(JSON.stringify(answer.body))) as unknown;
        expect(given, step).toEqual(expected);
      }
      told.push(expected);
    }
    tellEpoch(first!); // The last push was to another channel.
    // The pushed event is where the answer says it is.
    expect(operations.get("readEvent")!.path.replace("{channel}", samples.channel).replace("{id}", samples.event)).toBe(
      `/events/${samples.channel}/${samples.event}`,
    );
  });

  test("are all in the story, except those of limits, internal errors, rate limits and slow bodies", () => {
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

  test("of event streams match their schemas, frame by frame", () => {
    const expected = {
      followEvents: ["Ready", "Event"],
      followReceipts: ["Ready", "Receipt", "Complete", "Settled"],
      watch: ["Overview", "Trouble", "Changes"],
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

  test("of requests match their schemas", () => {
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

/** Bodies that are no tags. */
const NO_TAGS = {
  413: [post(`"${"x".repeat(9_000)}"`)],
  415: [post("{}", "text/plain"), { headers: { "Content-Encoding": "gzip" } }],
  422: [post(JSON.stringify({ tags: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [n, "1"])) }))],
};

/** What provokes the statuses that are the asker's fault. */
const WRONG: Record<string, Record<number, readonly Asking[]>> = {
  push: {
    400: [
      post("{"),
      post(new Uint8Array([0x22, 0xff, 0x22])),
      post("{}\n{", LINES),
      { ...post("1"), parameters: { ttl: "soon" } },
      { ...post("1"), parameters: { key: "a b" } },
      { ...post("1"), parameters: { attempts: "twice" } },
      { ...post("1"), parameters: { where: "site:" } },
      { ...post("1"), headers: { Prefer: "wait=soon" } },
      { ...post("1"), headers: { "Idempotency-Key": "" } },
    ],
    413: [post("1\n".repeat(LINES_MAX + 1), LINES)],
    415: [post("1", "text/plain"), { ...post("1"), headers: { "Content-Encoding": "gzip" } }],
    422: [
      post(deep),
      { ...post("1"), parameters: { deadline: "0" } },
      { ...post("1"), parameters: { every: "0 0 30 2 *" } },
      { ...post("1"), parameters: { remind: "0.9" } },
      { ...post("1"), parameters: { attempts: "1" } },
      { ...post("1"), parameters: { where: "beta", to: "till-7" } },
      { ...post("1\n", LINES), parameters: { key: "k" } },
      { ...post("1"), headers: { Prefer: "wait=121" } },
      { ...post("1"), parameters: { to: Array.from({ length: TO_MAX + 1 }, (_, n) => n).join(",") } },
    ],
  },
  followEvents: {
    400: [bad({ since: "then" }), bad({ device: "a b" }), bad({ tags: "a b" }), { headers: { Upgrade: "websocket" } }],
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
  readAttention: { 400: [bad({ limit: "x" })], 422: [bad({ limit: "0" })] },
  listChannels: { 400: [bad({ limit: "x" })], 422: [bad({ limit: "1001" }), bad({ search: "x".repeat(129) })] },
  deleteChannel: { 400: [bad({ channel: "-" })], 404: [bad({ channel: "nowhere" })], 409: [{}] },
  listEvents: { 400: [bad({ after: "x" })], 404: [bad({ after: "0-1" })], 422: [bad({ limit: "0" })] },
  readEvent: { 400: [bad({ channel: "-" })], 404: [bad({ id: "0-1" }), bad({ id: "x" })] },
  pushEventAgain: {
    400: [bad({ channel: "-" }), bad({ attempts: "twice" }), { headers: { "Idempotency-Key": "" } }],
    404: [bad({ id: "0-1" }), bad({ id: "x" }), bad({ channel: "nowhere" })],
    415: [{ headers: { "Content-Encoding": "gzip" } }],
    422: [{}, bad({ ttl: "0" }), bad({ to: "till-7" }), { headers: { Prefer: "wait=121" } }],
  },
  withdrawEvent: { 400: [bad({ channel: "-" })], 404: [bad({ id: "0-1" }), bad({ id: "x" })] },
  listReceipts: {
    400: [bad({ status: "gone" })],
    404: [bad({ id: "0-1" })],
    422: [bad({ limit: "0" })],
  },
  listDevices: {
    400: [
      bad({ limit: "x" }),
      bad({ connected: "yes" }),
      bad({ sort: "age" }),
      bad({ where: "site:" }),
      bad({ sort: "seen", after: "till-7" }),
      bad({ sort: "pending", after: "s0.till-7" }),
    ],
    404: [bad({ channel: "nowhere" })],
    422: [bad({ limit: "0" }), bad({ search: "x".repeat(129) })],
  },
  readDevice: { 400: [bad({ device: "a b" })], 404: [bad({ device: "nobody" }), bad({ channel: "nowhere" })] },
  listDeviceReceipts: {
    400: [bad({ device: "a b" }), bad({ after: "x" }), bad({ limit: "x" })],
    404: [bad({ device: "nobody" }), bad({ channel: "nowhere" }), bad({ after: "0-1" })],
    422: [bad({ limit: "1001" })],
  },
  listScheduled: { 400: [bad({ limit: "x" })], 422: [bad({ limit: "0" })] },
  readScheduled: { 400: [bad({ channel: "-" })], 404: [bad({ id: "s-x" })] },
  cancelScheduled: { 400: [bad({ channel: "-" })], 404: [bad({ id: samples.scheduleId.replace("s-0", "s-1") })] },
  enrolDevice: { 400: [bad({ device: "a b" }), post('{"tags":{"a b":"1"}}'), post('{"tag":{}}')], ...NO_TAGS },
  tagDevice: { 400: [post("{")], 404: [{ ...post('{"tags":{}}'), ...bad({ device: "nobody" }) }], ...NO_TAGS },
  retireDevice: { 400: [bad({ device: "a b" })], 404: [bad({ device: "nobody" })] },
  listHooks: { 400: [bad({ channel: "-" })] },
  putHook: {
    400: [post("{"), post('{"url":"ftp://shop.example"}'), { ...post("{}"), ...bad({ name: "-" }) }],
    413: [post(`"${"x".repeat(HOOK_BYTES_MAX)}"`)],
    415: [post("{}", "text/plain")],
    422: [post('{"url":"http://10.0.0.1/"}')],
  },
  dropHook: { 400: [bad({ name: "-" })], 404: [bad({ name: "nobody" })] },
  testHook: {
    400: [bad({ name: "-" })],
    404: [bad({ name: "nobody" })],
    415: [{ headers: { "Content-Encoding": "gzip" } }],
  },
  retryHook: {
    400: [bad({ name: "-" })],
    404: [bad({ name: "nobody" })],
    415: [{ headers: { "Content-Encoding": "gzip" } }],
  },
};

/** What takes a body may wait for it in vain. */
const SLOW = ["push", "giveReceipts", "putHook", "enrolDevice", "tagDevice"];

/** Operations that one caller may do only so often. */
const LIMITED = ["push", "pushEventAgain", "giveReceipts", "followReceipts", "followEvents"];

/** Where each operation meets the engine. */
const BEHIND: Record<string, keyof Engine> = {
  push: "push",
  followEvents: "follow",
  giveReceipts: "feedback",
  followReceipts: "follow",
  readAttention: "attention",
  listEvents: "events",
  readEvent: "event",
  pushEventAgain: "again",
  withdrawEvent: "withdraw",
  listReceipts: "rows",
  enrolDevice: "enrol",
  tagDevice: "tag",
  retireDevice: "retire",
  deleteChannel: "removeChannel",
  ready: "ready",
};

/** The same for hooks. */
const BEHIND_HOOKS: Record<string, keyof Engine["hooks"]> = {
  listHooks: "list",
  putHook: "put",
  dropHook: "drop",
  retryHook: "retry",
  testHook: "test",
};

/** The same for scheduled pushes. */
const BEHIND_SCHEDULES: Record<string, keyof Engine["schedules"]> = {
  listScheduled: "list",
  readScheduled: "get",
  cancelScheduled: "cancel",
};

/** The same for lists of channels and devices. */
const BEHIND_DIRECTORY: Record<string, keyof Engine["directory"]> = {
  listChannels: "channels",
  listDevices: "devices",
  readDevice: "device",
  listDeviceReceipts: "history",
};

/** Each operation, with whose method it meets and which one. */
const BEHIND_ALL = (): [operationId: string, whose: object, method: string][] => [
  ...Object.entries(BEHIND).map(([id, method]): [string, object, string] => [id, pere.engine, method]),
  ...Object.entries(BEHIND_HOOKS).map(([id, method]): [string, object, string] => [id, pere.engine.hooks, method]),
  ...Object.entries(BEHIND_DIRECTORY).map(([id, method]): [string, object, string] => [
    id,
    pere.engine.directory,
    method,
  ]),
  ...Object.entries(BEHIND_SCHEDULES).map(([id, method]): [string, object, string] => [
    id,
    pere.engine.schedules,
    method,
  ]),
];

/** What is asked where only the answer counts. */
const usual = (operationId: string): Asking =>
  operationId === "push" || operationId === "giveReceipts" || operationId === "putHook"
    ? { type: JSON_TYPE, example: "one" }
    : operationId === "tagDevice"
      ? { type: JSON_TYPE, example: "example" }
      : operationId.startsWith("follow")
        ? { ...accept(JSON_TYPE), parameters: { wait: "0" } }
        : {};

describe("errors", () => {
  for (const [operationId, statuses] of Object.entries(WRONG))
    test(`${operationId} answers an invalid request as described`, async () => {
      for (const [status, askings] of Object.entries(statuses))
        for (const asking of askings) {
          const answer = await tried(operationId, asking);
          expect(`${answer.status} ${JSON.stringify(asking).slice(0, 200)}`).toBe(
            `${status} ${JSON.stringify(asking).slice(0, 200)}`,
          );
        }
    });

  test("without a token, with an expired one, and with an insufficient one, each operation answers as described", async () => {
    for (const [operationId, { operation }] of operations)
      for (const [status, token] of [[401], [401, "expired"], [403, "weak"]] as const) {
        const asking = { ...usual(operationId), ...(token ? { token } : {}) };
        if (status in operation.responses)
          expect((await tried(operationId, asking, guarded.url)).status, operationId).toBe(status);
      }
    for (const operationId of ["health", "ready"])
      expect((await tried(operationId, {}, guarded.url)).status, operationId).toBe(200);
  });

  test("an internal error, an absent store and a full disk are answered as described", async () => {
    const silent = spyOn(console, "error").mockImplementation(() => {});
    try {
      for (const [operationId, whose, method] of BEHIND_ALL())
        for (const [status, error] of [
          [500, new Error("boom")],
          [503, new PereError("away", "PERE is shutting down; push again in a moment")],
          [507, new PereError("full", "the disk is full; nothing was stored")],
        ] as const) {
          if (status === 507 && !replyOf(operationId, status)) continue; // It only reads.
          const behind = spyOn(whose as Engine, method as "ready").mockImplementation(() => {
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

  test("a body that arrives too slowly is answered as described", async () => {
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

  test("a caller over its limits is answered as described", async () => {
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

  test("every declared answer was observed", async () => {
    const seen = new Set(STORY.map(([operationId, , status]) => `${operationId} ${status}`));
    for (const [operationId, statuses] of Object.entries(WRONG))
      for (const status of Object.keys(statuses)) seen.add(`${operationId} ${status}`);
    for (const [operationId] of BEHIND_ALL())
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
    const calls: ((answer: Response) => void)[] = [];
    const receiver = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: () => new Promise<Response>((answer) => calls.push(answer)),
    });
    const url = `http://127.0.0.1:${receiver.port}/`;
    await tried("putHook", { ...post(JSON.stringify({ url })), ...bad({ name: "slow" }) });
    const testing = tried("testHook", bad({ name: "slow" }));
    await until(() => calls.length > 0);
    expect((await tried("testHook", bad({ name: "slow" }))).status).toBe(409);
    seen.add("testHook 409");
    calls[0]!(new Response());
    expect((await testing).body).toMatchObject({ status: 200, body: "" });
    await receiver.stop(true);
    expect((await tried("dropHook", bad({ name: "slow" }))).status).toBe(204);
    expect((await tried("dropHook", {})).status).toBe(204);
    seen.add("dropHook 204");
    await ask(`${pere.url}/devices/unwanted/till`, { method: "PUT" });
    await ask(`${pere.url}/devices/unwanted/till`, { method: "DELETE" });
    expect((await tried("deleteChannel", bad({ channel: "unwanted" }))).status).toBe(204);
    seen.add("deleteChannel 204");
    expect((await tried("cancelScheduled", {})).status).toBe(204);
    seen.add("cancelScheduled 204");
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

  test("another method gets 405 with the allowed ones, an unknown path 404, as the introduction says", async () => {
    const wrong = await ask(`${pere.url}/push/orders`);
    expect([wrong.status, wrong.headers.get("allow"), shapeOf("Problem", wrong.body)]).toEqual([405, "POST", ""]);
    const nothing = await ask(`${pere.url}/nothing`);
    expect([nothing.status, shapeOf("Problem", nothing.body)]).toEqual([404, ""]);
  });
});
