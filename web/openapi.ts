/**
 * How PERE is described to programs: one OpenAPI 3.1 operation for each route of `index.ts`, and the document around them.
 *
 * It says what this version does, and nothing that it will do. Limits are the engine's own constants; shapes and examples are in
 * `openapi-schemas.ts`, what many operations share in `openapi-parts.ts`. `tests/openapi-answers.test.ts` provokes every status that is declared here and holds every answer to its schema, so what
 * stands here and is not true ends as a failing test.
 *
 * Two things that OpenAPI has no words for are told in prose, and for programs in `asyncapi.ts`: what is inside an event stream, and that the URL of a
 * feed can be opened as a WebSocket.
 */
import type { ElysiaSwaggerConfig } from "@elysiajs/swagger";
import type { DocumentDecoration } from "elysia";
import {
  BODY_BYTES_MAX,
  DEADLINE_SECONDS_MAX,
  DEADLINE_SECONDS_MIN,
  JSON_DEPTH_MAX,
  KEY_CHARACTERS_MAX,
  KEY_MEMORY_MS,
  LINES_MAX,
  PAGE_DEFAULT,
  PAGE_MAX,
  RECEIPTS_MAX,
  REMIND_SECONDS_MAX,
  REMIND_SECONDS_MIN,
  TO_MAX,
  TTL_SECONDS_MAX,
  TTL_SECONDS_MIN,
  WAIT_SECONDS_MAX,
} from "../engine/model.ts";
import { HOOKS_MAX } from "../engine/store.ts";
import {
  channel,
  channels,
  device,
  deviceHere,
  event,
  examples,
  failing,
  failures,
  feedReplies,
  hookName,
  json,
  lastEvent,
  one,
  type Operation,
  page,
  problem,
  refusedBody,
  refusing,
  reply,
  seconds,
  start,
  transports,
} from "./openapi-parts.ts";
import { kib, ref, samples, schemas } from "./openapi-schemas.ts";

// ----------------------------------------------------------------------------------------------------------------- operations

const described = {
  push: {
    operationId: "push",
    summary: "Push events to a channel",
    tags: ["Events ↓"],
    description: `The body is the event's data; everything else about it is in the query. It is answered 2xx only after it is durable. After a 503 or a cut connection
it may or may not have been stored: repeat it with the same \`Idempotency-Key\`.

The event is addressed to the devices that are enrolled now, or to those in \`to\`. Devices get the body's own bytes: numbers, key order and
duplicate keys survive.

**What became of it** is in the answer with \`Prefer: wait=N\`: it comes when every addressed device has given a final receipt, or after N seconds, and says where they stand. Who
does not wait follows the receipts, or reads the event later.

**Many at once**: \`application/x-ndjson\`, one JSON value a line, at most ${LINES_MAX} lines and ${kib(BODY_BYTES_MAX)}; the options hold for all of them, and all are
stored or none is. The answer then is \`PushedMany\`, with no \`Location\`.

JSON nests at most ${JSON_DEPTH_MAX} levels.`,
    parameters: [
      channel,
      {
        name: "type",
        in: "query",
        description:
          "The event's name on event streams. `open`, `message` and `error` are 422: an EventSource fires these itself, and a listener could not tell the event from a broken connection.",
        schema: ref("EventType"),
        example: samples.type,
      },
      {
        name: "to",
        in: "query",
        description: `Device names, comma separated: only for these, at most ${TO_MAX}. They need not be enrolled.`,
        schema: { type: "array", items: ref("Device"), minItems: 1, maxItems: TO_MAX },
        style: "form",
        explode: false,
        example: [samples.device],
      },
      {
        name: "ttl",
        in: "query",
        description: "Seconds after which it is delivered to nobody.",
        schema: seconds(TTL_SECONDS_MIN, TTL_SECONDS_MAX),
        example: 3600,
      },
      {
        name: "deadline",
        in: "query",
        description:
          "Seconds by which every addressed device owes a final receipt. Who has given none by then is recorded as `missing`; a later one still counts, as `late`. Where retention drops the event before, they are missing then.",
        schema: seconds(DEADLINE_SECONDS_MIN, DEADLINE_SECONDS_MAX),
        example: 600,
      },
      {
        name: "remind",
        in: "query",
        description:
          "Seconds: at each such interval it is sent again to connected devices that have given no receipt at all, until the deadline or the ttl.",
        schema: seconds(REMIND_SECONDS_MIN, REMIND_SECONDS_MAX),
      },
      {
        name: "Prefer",
        in: "header",
        description: `\`wait=N\` (RFC 7240): answer when the event is complete, or after N seconds, at most ${WAIT_SECONDS_MAX}. Other preferences are left alone.`,
        schema: { type: "string" },
      },
      {
        name: "Idempotency-Key",
        in: "header",
        description:
          `Remembered for ${KEY_MEMORY_MS / 3600_000} h, per channel and per token subject: the same key, body and query options again answer the first event, with 200 and \`Idempotent-Replayed\`; ` +
          "the same key with another body or other options is 422. The order of the options does not matter, and neither does a `token` among them. Use a fresh UUID per event.",
        schema: { type: "string", minLength: 1, maxLength: KEY_CHARACTERS_MAX, pattern: "^[ -~]+$" },
      },
    ],
    requestBody: {
      required: true,
      content: {
        "application/json": { schema: ref("Data"), examples: examples({ one: ["One event", samples.order] }) },
        "application/x-ndjson": {
          schema: { type: "string" },
          examples: examples({ many: ["Two events, stored together", samples.orderLines] }),
        },
      },
    },
    responses: {
      200: {
        description: "The key was known: the events of the first time, and nothing new was stored.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Idempotent-Replayed": { $ref: "#/components/headers/Idempotent-Replayed" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: {
          "application/json": {
            schema: { anyOf: [ref("Pushed"), ref("PushedMany")] },
            examples: examples({
              one: ["One event", samples.pushed],
              waited: ["With `Prefer: wait=30`, and complete", samples.waited],
            }),
          },
        },
      },
      201: {
        description: "Stored, and on its way.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: {
          "application/json": {
            schema: { anyOf: [ref("Pushed"), ref("PushedMany")] },
            examples: examples({
              one: ["One event", samples.pushed],
              many: ["Many events", samples.pushedMany],
            }),
          },
        },
      },
      ...failing(400, 401, 403, 408, 413, 415, 429, 507),
      422: problem(
        "Well-formed, but out of bounds or not allowed; or the `Idempotency-Key` came with another body or other options before.",
        examples({
          key: [
            "The key came with something else",
            refusedBody("Idempotency-Key", "it came with another body or other options before"),
          ],
          type: ["A type of the server's own", refusedBody("type", "types that begin with pere. are reserved")],
        }),
      ),
    },
  },

  feed: {
    operationId: "followEvents",
    summary: "Follow a channel's events",
    tags: ["Events ↓"],
    description: `A device that opens a feed with its name is enrolled by that, and is given every event addressed to it that is still kept, unexpired, and has no final receipt from it, oldest
first; then what comes, in order, with no gap and no repeat. Without a name the feed is anonymous: it owes no receipts, and starts at \`since\`.
With \`Last-Event-ID\` any feed goes on from there. An event that was pushed with \`remind\` may come again, to a device that has said nothing of it; on an event stream without an
\`id:\`, for the place to resume at stays where it is.
${transports(
  "On a feed with a device, send one receipt or an array of them, without naming the device; the answer is " +
    '`{"pere":"receipts","recorded":n,"duplicate":n,"rejected":[…]}`, once they are durable, or `{"pere":"error","detail":"…"}`.',
)}`,
    parameters: [
      channels,
      { ...deviceHere("Who follows.")[0]!, example: samples.device },
      deviceHere("")[1]!,
      ...start("now"),
    ],
    responses: feedReplies("EventBatch", samples.eventBatch, samples.eventStream),
  },

  feedback: {
    operationId: "giveReceipts",
    summary: "Give receipts for events",
    tags: ["Receipts ↑"],
    description: `One receipt or an array of at most ${RECEIPTS_MAX}. It is answered 2xx only after they are durable; repeating a receipt is always harmless. A receipt for an event that is unknown, or was
not addressed to that device, is rejected; the others in the request count all the same.

A form is one receipt as the first PERE clients send it.`,
    parameters: [
      channel,
      ...deviceHere("Who speaks, where the receipts don't say it. They must not say otherwise."),
      lastEvent,
    ],
    requestBody: {
      required: true,
      content: {
        "application/json": {
          schema: ref("ReceiptDrafts"),
          examples: examples({
            one: ["One receipt", samples.receiptOne],
            many: ["Several, one of which can't be taken", samples.receiptMany],
          }),
        },
        "application/x-www-form-urlencoded": {
          schema: ref("OldReceipt"),
          examples: examples({ form: ["As the first PERE clients send it", samples.receiptForm] }),
        },
      },
    },
    responses: {
      200: reply(
        "What became of them; at least one was not rejected.",
        json(
          "Feedback",
          examples({
            one: ["One receipt", samples.feedbackOne],
            many: ["Several, one of which can't be taken", samples.feedbackMany],
          }),
        ),
      ),
      ...failing(400, 401, 403, 408, 413, 415, 429, 507),
      422: problem(
        "Every receipt was rejected, or the JSON nests too deep.",
        one(samples.allRejected),
        "FeedbackProblem",
      ),
    },
  },

  receipts: {
    operationId: "followReceipts",
    summary: "Follow a channel's receipts",
    tags: ["Receipts ↑"],
    description: `What devices say, as they say it, to the publisher, and who is \`missing\` at a deadline. With ids and resume of its own, exactly like a feed of events.

The receipt with which an event is complete is followed by \`pere.complete\` with \`Complete\`: on a socket as \`{"pere":"complete", …}\`, in a long-poll in
\`complete\` beside the events. It is an entry of its own in the log, with an id of its own: who is cut off before it is told it when he resumes, and
who resumes after it is not. Where the last device that owed a word was retired it comes by itself.
${transports("Nothing is to be sent on it.")}`,
    parameters: [channels, ...start("earliest")],
    responses: feedReplies("ReceiptBatch", samples.receiptBatch, samples.receiptStream),
  },

  watch: {
    operationId: "watch",
    summary: "Watch what goes on",
    tags: ["Reading"],
    description: `An event stream for those who look: the console is one. It says how things stand, and from then on what changes; data and details are not in it, they are read where they are looked at. It has
no positions, so there is nothing to resume: who comes back is told anew how things stand.

| event | data | |
|---|---|---|
| \`pere.overview\` | \`Overview\` | first, and about once a second where something changed: the channels that the token may push to, and what this instance did since it started |
| \`pere.changes\` | \`Changes\` | with \`channel\`: at most four times a second, what came there: events, receipts, and the tallies that they moved. The first has the channel's newest events |
| \`pere.away\` | \`Away\` | the store can't be read now; the next frame says that it can |
| \`pere.bye\` | \`Bye\` | last: why the server ends the stream; come back after \`retry:\` |

A comment line keeps a quiet stream alive. Where more came at once than anybody can look at, receipts are left out, the tallies of the newest events are all there, and \`more\` says so.`,
    parameters: [
      {
        name: "channel",
        in: "query",
        description: "The channel that is looked at closely; without it only the overview is shown.",
        schema: ref("Channel"),
        example: samples.channel,
      },
    ],
    responses: {
      200: reply("What goes on, until one side ends it.", {
        "text/event-stream": { schema: { type: "string" }, examples: one(samples.watchStream) },
      }),
      ...refusing(400, 401, 403),
    },
  },

  channels: {
    operationId: "listChannels",
    summary: "List the channels",
    tags: ["Reading"],
    description:
      "By name, all on which the token may push. A channel without an event, a device that was enrolled beforehand, or a hook is listed only while a device is connected.",
    parameters: page("a channel's name", ref("Channel")),
    responses: {
      200: reply("A page of channels.", json("ChannelPage", one(samples.channels))),
      ...failing(400, 401, 422),
    },
  },

  events: {
    operationId: "listEvents",
    summary: "List a channel's kept events",
    tags: ["Reading"],
    description: "Oldest first, each with where its devices stand.",
    parameters: [channel, ...page("an event's id", ref("EventId"))],
    responses: {
      200: reply("A page of events.", json("EventPage", one(samples.events))),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  event: {
    operationId: "readEvent",
    summary: "Read one event, and what became of it",
    tags: ["Reading"],
    description: "The event with its audience and where they stand: the `Location` that a push is answered with.",
    parameters: [channel, event],
    responses: { 200: reply("The event.", json("EventState", one(samples.state))), ...failing(400, 401, 403, 404) },
  },

  rows: {
    operationId: "listReceipts",
    summary: "List where each device stands on one event",
    tags: ["Reading"],
    description: `One row for each device that the event was addressed to, by name, also for those that have said nothing. With \`Accept: text/csv\` or
\`Accept: application/x-ndjson\` it is an export: all rows, unless \`limit\` is given.`,
    parameters: [
      channel,
      event,
      {
        name: "status",
        in: "query",
        description: "Only devices that stand here.",
        schema: ref("State"),
      },
      ...page("a device's name", ref("Device")).map((parameter) =>
        parameter.name === "limit"
          ? {
              ...parameter,
              description: `How many at most; without it ${PAGE_DEFAULT} in JSON, and all in an export.`,
              schema: { type: "integer", minimum: 1, maximum: PAGE_MAX },
            }
          : parameter,
      ),
    ],
    responses: {
      200: reply("The rows.", {
        ...json("ReceiptPage", one(samples.rows)),
        "text/csv": { schema: { type: "string" }, examples: one(samples.rowsCsv) },
        "application/x-ndjson": { schema: { type: "string" }, examples: one(samples.rowsLines) },
      }),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  devices: {
    operationId: "listDevices",
    summary: "List a channel's enrolled devices",
    tags: ["Devices"],
    description: "By name.",
    parameters: [channel, ...page("a device's name", ref("Device"))],
    responses: {
      200: reply("A page of devices.", json("DevicePage", one(samples.devices))),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  enrol: {
    operationId: "enrolDevice",
    summary: "Enrol a device",
    tags: ["Devices"],
    description:
      "From now on events are addressed to it, before it has ever been seen. A device that opens a feed with its name enrols itself.",
    parameters: [channel, device],
    responses: {
      200: reply("It was enrolled already.", json("Enrolled", one(samples.enrolled))),
      201: reply("It is enrolled now.", json("Enrolled", one(samples.enrolled))),
      ...failing(400, 401, 403, 415, 507),
    },
  },

  retire: {
    operationId: "retireDevice",
    summary: "Retire a device",
    tags: ["Devices"],
    description:
      "Later events are not addressed to it, and those without its final receipt no longer are; what is complete thereby is told as such. Its open feeds end, with `expired`.",
    parameters: [channel, device],
    responses: { 204: { description: "It is retired." }, ...failing(400, 401, 403, 404, 507) },
  },

  hooks: {
    operationId: "listHooks",
    summary: "List a channel's hooks",
    tags: ["Hooks"],
    description:
      "By name, each with the calls that are tried again and those that were given up. Secrets are not shown.",
    parameters: [channel],
    responses: { 200: reply("The hooks.", json("HookList", one(samples.hooks))), ...failing(400, 401, 403) },
  },

  putHook: {
    operationId: "putHook",
    summary: "Have a URL called when there are receipts",
    tags: ["Hooks"],
    description: `From now on the URL is called by POST with a \`HookCall\`, signed as [Standard Webhooks](https://www.standardwebhooks.com) says; their libraries verify it. A
new hook hears what comes after it was stored; one that is stored again goes on from where it was, and is no longer disabled. A channel has at most ${HOOKS_MAX}.

A 2xx answer within 15 seconds is success, anything else is not, a redirect included. A call that failed is tried again after 5 seconds, 5 minutes, 30 minutes, 2, 5 and 10 hours, with the same
\`webhook-id\` and body, beside what is new; never sooner than the answer's \`Retry-After\` asks, up to a day, which holds for new calls too; then it is given up, stays in the list, and can be sent again. Every receipt is sent at least once, after trouble perhaps twice, and then not
always in order. 410 disables the hook.

When the secret changes, \`webhook-signature\` has a signature by each, separated by a space: on calls from before the change for as long as they are tried, on new ones for a day.

Only public addresses are called, and those that the operator named in \`PERE_HOOKS_ALLOW\`; an IPv6 address that carries an IPv4 one, as with NAT64, is judged by that one. The example's host is nobody's, so that trying it out tells nobody
anything: as it is it is refused for having no address; put your own in its place.`,
    parameters: [channel, hookName],
    requestBody: {
      required: true,
      content: {
        "application/json": {
          schema: ref("HookDraft"),
          examples: examples({ one: ["With a secret of one's own; put your own URL there", samples.hookDraft] }),
        },
      },
    },
    responses: {
      200: reply("It was known, and is changed.", json("HookStored", one(samples.hook))),
      201: reply("It is stored.", json("HookStored", one(samples.hook))),
      ...failing(400, 401, 403, 408, 413, 415, 422, 507),
    },
  },

  dropHook: {
    operationId: "dropHook",
    summary: "Remove a hook",
    tags: ["Hooks"],
    description: "With everything that was still to be sent to it.",
    parameters: [channel, hookName],
    responses: { 204: { description: "It is gone." }, ...failing(400, 401, 403, 404, 507) },
  },

  retryHook: {
    operationId: "retryHook",
    summary: "Send again what was not delivered",
    tags: ["Hooks"],
    description:
      "What was given up begins its schedule anew, what waits for another try is sent now, and a disabled hook is enabled.",
    parameters: [channel, hookName],
    responses: {
      200: reply("They are being sent.", json("Retried", one(samples.retried))),
      ...failing(400, 401, 403, 404, 415, 507),
    },
  },

  health: {
    operationId: "health",
    summary: "Is the process alive?",
    tags: ["Operation"],
    description: "For a supervisor that restarts what does not answer. It does not look at the store.",
    security: [],
    responses: { 200: reply("It is.", json("Health", one(samples.health))) },
  },

  ready: {
    operationId: "ready",
    summary: "Can it serve?",
    tags: ["Operation"],
    description:
      "For a load balancer: the store takes changes and PERE is not shutting down. Says what a 2xx answer to a push is worth. 503, with the reason in `detail`, also while pushes and receipts are refused: a full disk (they get 507), a file that was removed or moved, a Redis that takes no changes.",
    security: [],
    responses: { 200: reply("It can.", json("Readiness", one(samples.readiness))), ...failing() },
  },

  metrics: {
    operationId: "metrics",
    summary: "What was done, in numbers",
    tags: ["Operation"],
    description:
      "For Prometheus and what speaks its text format. Where there are tokens, it takes one with `push` on `*`. No series has a device's name; a channel's, only where `PERE_METRICS_CHANNELS` names it.",
    responses: {
      200: {
        description: "All series of this instance.",
        content: { "text/plain": { schema: { type: "string" }, examples: one(samples.metrics) } },
      },
      ...refusing(400, 401, 403),
    },
  },
} satisfies Record<string, Operation>;

// Elysia's types know OpenAPI 3.0 only; what it does with an operation is to pass it on.

/** For each route of `index.ts`, what it gives to Elysia as `detail`. */
export const operations = described as unknown as Record<keyof typeof described, DocumentDecoration>;

// ------------------------------------------------------------------------------------------------------------------- document

const introduction = `Push events to devices over plain HTTP, and see what became of each.

A channel is two logs, each written by POST and followed by GET: by event stream, WebSocket or long-poll, at the same URL.

| | write | follow |
|---|---|---|
| events ↓ | \`POST /push/{channel}\` | \`GET /feed/{channel}\` (devices) |
| receipts ↑ | \`POST /feedback/{channel}\` | \`GET /feedback/{channel}\` (publishers) |

What comes on event streams and WebSockets, message by message, is told to programs at [/asyncapi.json](asyncapi.json), with the same schemas.

**Who may**: a token is a JWT, signed with the service's secret or a key of its key set. Its \`sub\` is the device that the bearer is, whatever else a request says, or any text where nothing is done as a device; \`exp\` is when it ends, and with it
every feed that was opened with it; \`pere\` is what it allows: \`{"push":["orders","shop.*"],"feed":["orders"]}\`. \`push\` on a channel is all that a publisher does there, \`feed\` is following it and giving receipts; on several
channels at once, the right is needed on each. \`*\` alone is every channel, a trailing \`.*\` every one that begins so. It stands in \`Authorization\`, in the cookie, in the query, or beside \`pere.v1\` in a WebSocket's subprotocols
as \`pere.token.<jwt>\`; once, not twice. A service without keys on a loopback address is for its own machine: there no token is looked at, and what came through a proxy is 403.

**Pages** of other origins are answered 403, also at a WebSocket's handshake, unless the service names their origin. A \`Host\` that can't be this service is 400 or 403, except at \`/health\` and \`/ready\`.

**Errors** are problem documents (RFC 9457). A query option that the operation does not have is 400, and so is one given twice; pages, \`/health\` and \`/ready\` ignore what they don't know. An unknown path is 404; a method that a path does not take is 405, with \`Allow\`.

**The examples** are one story, which can be tried from top to bottom: push an order, follow, give receipts, read what became of it. On the page at
\`/swagger\` their event ids stand for the last event that was pushed from it.`;

/** The document around the operations, for `@elysiajs/swagger`. @param version PERE's own; @param basePath where proxies lead to it, or empty */
export const document = (version: string, basePath: string): NonNullable<ElysiaSwaggerConfig["documentation"]> => {
  const body = {
    openapi: "3.1.0",
    info: {
      title: "PERE",
      version,
      summary: "Pushed Events with return Receipt Engine",
      description: introduction,
      license: { name: "MIT", identifier: "MIT" },
    },
    servers: [{ url: basePath || "/", description: "This service" }],
    tags: [
      { name: "Events ↓", description: "From publishers to devices" },
      { name: "Receipts ↑", description: "From devices to publishers" },
      { name: "Reading", description: "What is there, and what became of it" },
      { name: "Devices", description: "Who is enrolled" },
      { name: "Hooks", description: "Who is called when there are receipts" },
      { name: "Operation", description: "For those who run it" },
    ],
    security: [{ bearer: [] }, { cookie: [] }, { query: [] }],
    components: {
      schemas,
      responses: Object.fromEntries(Object.values(failures)),
      headers: {
        Location: {
          description: "Where the event and what became of it can be read; on a push of one event.",
          schema: { type: "string", format: "uri-reference" },
        },
        "Idempotent-Replayed": {
          description: "This answer was given before.",
          schema: { type: "string", const: "true" },
        },
        "Preference-Applied": {
          description:
            "The answer was given when the event was complete, or the time up. Absent where `Prefer: wait` was not asked for, or where too many wait already or the outcome can't be read now: then nobody waited, and the event is stored all the same. Where the channel's log is lost or put back meanwhile, the push is answered with 503.",
          schema: { type: "string", const: "wait" },
        },
        "Retry-After": { description: "Seconds.", schema: { type: "string", pattern: "^[0-9]+$" } },
        RateLimit: {
          description: "How a limit stands: what remains, and the seconds until all of it is there again.",
          schema: { type: "string", pattern: '^"[a-z]+";r=\\d+;t=\\d+$' },
        },
        "RateLimit-Policy": {
          description: "The limit: how many, in how many seconds.",
          schema: { type: "string", pattern: '^"[a-z]+";q=\\d+;w=\\d+$' },
        },
        "WWW-Authenticate": {
          description: "What was wrong with the token (RFC 6750, section 3); without a token only that one is needed.",
          schema: { type: "string", pattern: "^Bearer " },
        },
      },
      securitySchemes: {
        bearer: {
          type: "http",
          scheme: "bearer",
          bearerFormat: "JWT",
          description: "The token.",
        },
        cookie: {
          type: "apiKey",
          in: "cookie",
          name: "pere_token",
          description: "The same token, for browsers: `/?token=…` puts it there. It gives way to one in another place.",
        },
        query: {
          type: "apiKey",
          in: "query",
          name: "token",
          description: "The same token, where nothing else can be set, as with EventSource.",
        },
      },
    },
  };
  return body as unknown as NonNullable<ElysiaSwaggerConfig["documentation"]>;
};
