/**
 * What the operations of `openapi.ts` are made of: the types of OpenAPI 3.1 that they need, answers and parameters that many of them share,
 * and the prose that both feeds have in common.
 */
import { CHANNELS_MAX, EVENT_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX, POLL_SECONDS_MAX } from "../engine/model.ts";
import { ref, samples, type Schema } from "./openapi-schemas.ts";

// ------------------------------------------------------------------------------------------------- what operations are made of

export interface Example {
  readonly summary?: string;
  readonly value: unknown;
}
export interface Media {
  readonly schema: Schema;
  readonly examples?: Readonly<Record<string, Example>>;
}
export type Content = Readonly<Record<string, Media>>;
export interface Parameter {
  readonly name: string;
  readonly in: "path" | "query" | "header";
  readonly description: string;
  readonly schema: Schema;
  readonly required?: boolean;
  /** Filled in when somebody tries the operation; so only where it does no harm. */
  readonly example?: unknown;
  readonly style?: "form";
  readonly explode?: boolean;
}
export interface Reference {
  readonly $ref: string;
}
export interface Reply {
  readonly description: string;
  readonly headers?: Readonly<Record<string, Reference>>;
  readonly content?: Content;
}
export type Replies = Readonly<Record<number, Reply | Reference>>;
export interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly description: string;
  readonly tags: readonly [string];
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly required: true; readonly content: Content };
  readonly responses: Replies;
  /** Empty where no token is needed. */
  readonly security?: readonly [];
}

/** Examples of one media type: each by its name, with a line about it. */
export const examples = (values: Record<string, readonly [summary: string, value: unknown]>): Record<string, Example> =>
  Object.fromEntries(Object.entries(values).map(([name, [summary, value]]) => [name, { summary, value }]));
export const one = (value: unknown): Record<string, Example> => ({ example: { value } });

export const json = (schema: string, shown: Record<string, Example>): Content => ({
  "application/json": { schema: ref(schema), examples: shown },
});
export const reply = (description: string, content: Content): Reply => ({ description, content });

// ------------------------------------------------------------------------------------------------------------ what goes wrong

export const problem = (description: string, shown: Record<string, Example>, schema = "Problem"): Reply => ({
  description,
  content: { "application/problem+json": { schema: ref(schema), examples: shown } },
});
export const problemBody = (code: string, title: string, status: number, more: object) => ({
  type: `urn:pere:${code}`,
  title,
  status,
  ...more,
});
export const refusedBody = (path: string, message: string) =>
  problemBody("refused", "Refused", 422, { detail: `${path}: ${message}`, errors: [{ path, message }] });

/** The answers that many operations share: `components.responses`. */
export const failures = {
  400: [
    "Malformed",
    problem(
      "Something has not the form that it must have: a name, a number, the JSON, the UTF-8; or an option was given twice, or does not exist here.",
      examples({
        channel: ["A name", problemBody("malformed", "Malformed request", 400, samples.malformedChannel)],
        limit: ["A number", problemBody("malformed", "Malformed request", 400, samples.malformedLimit)],
      }),
    ),
  ],
  401: [
    "Unauthorized",
    {
      ...problem(
        "No token, or not a good one, and why. On a feed that is final: there is nothing to come back for without another one.",
        examples({
          missing: ["No token", problemBody("unauthorized", "Unauthorized", 401, { detail: "a token is needed here" })],
          expired: [
            "A token that has expired",
            problemBody("unauthorized", "Unauthorized", 401, {
              detail: "token: it has expired",
              errors: [{ path: "token", message: "it has expired" }],
            }),
          ],
        }),
      ),
      headers: { "WWW-Authenticate": { $ref: "#/components/headers/WWW-Authenticate" } },
    },
  ],
  403: [
    "Forbidden",
    {
      ...problem(
        "The token does not allow this here. On a feed that is final, too.",
        one(
          problemBody("forbidden", "Forbidden", 403, {
            detail: "this token gives no right to push on orders",
            errors: [{ path: "token", message: "it gives no right to push on orders" }],
          }),
        ),
      ),
      headers: { "WWW-Authenticate": { $ref: "#/components/headers/WWW-Authenticate" } },
    },
  ],
  404: [
    "Unknown",
    problem(
      "There is no such channel, event, device or hook, or the event is no longer kept.",
      one(problemBody("unknown", "Not found", 404, { detail: "channel nowhere has never been used" })),
    ),
  ],
  408: [
    "TooSlow",
    problem(
      "The body took longer than 30 s and what its length needs at 10 kB/s. Send it again.",
      one(
        problemBody("slow", "Too slow", 408, {
          detail: "the request body arrived too slowly; send it again, in smaller parts on a slow connection",
        }),
      ),
    ),
  ],
  413: [
    "TooLarge",
    problem(
      "The body is too large, or holds too many.",
      one(problemBody("tooLarge", "Too large", 413, { detail: `the body is larger than ${EVENT_BYTES_MAX} bytes` })),
    ),
  ],
  415: [
    "WrongType",
    problem(
      "The `Content-Type` is none of those that are taken here, the charset is not UTF-8, or there is a `Content-Encoding`.",
      one(
        problemBody("wrongType", "Wrong content type", 415, {
          detail: "push takes application/json, or application/x-ndjson for many events at once",
        }),
      ),
    ),
  ],
  422: [
    "Refused",
    problem(
      "Well-formed, but out of bounds or not allowed.",
      one(refusedBody("limit", `must be from 1 to ${PAGE_MAX}`)),
    ),
  ],
  429: [
    "TooMany",
    {
      ...problem(
        "One caller, a token's `sub` or an address, has done too much within a minute. A stream and a socket are told `busy` instead.",
        one(
          problemBody("tooMany", "Too many requests", 429, {
            detail: "more than 1 events pushed in 60 s; try again in 60 s",
          }),
        ),
      ),
      headers: {
        "Retry-After": { $ref: "#/components/headers/Retry-After" },
        RateLimit: { $ref: "#/components/headers/RateLimit" },
        "RateLimit-Policy": { $ref: "#/components/headers/RateLimit-Policy" },
      },
    },
  ],
  500: [
    "Inside",
    problem(
      "A fault in PERE. The id in it finds the rest in the service's log.",
      one(
        problemBody("inside", "Internal error", 500, {
          detail: "something went wrong in PERE; the log has it as 7f0c5a52-3d0c-4f5e-9a53-0a4b1c9a8e11",
        }),
      ),
    ),
  ],
  503: [
    "Away",
    {
      ...problem(
        "The store is away or PERE is shutting down. Whether it was stored can't be known; asking again is right.",
        one(
          problemBody("away", "Not available now", 503, {
            detail: "PERE is shutting down; push again in a moment",
          }),
        ),
      ),
      headers: { "Retry-After": { $ref: "#/components/headers/Retry-After" } },
    },
  ],
  507: [
    "Full",
    {
      ...problem(
        "The disk is full, and nothing was stored. Feeds and reading go on; when there is room again, so does this.",
        one(problemBody("full", "The disk is full", 507, { detail: "the disk is full; nothing was stored" })),
      ),
      headers: { "Retry-After": { $ref: "#/components/headers/Retry-After" } },
    },
  ],
} as const satisfies Record<number, readonly [string, Reply]>;

/** References to shared answers. */
export const refusing = (...statuses: (keyof typeof failures)[]): Replies =>
  Object.fromEntries(statuses.map((status) => [status, { $ref: `#/components/responses/${failures[status][0]}` }]));

/** The same for an operation that is answered after the store was: it can also end as 500 and 503. */
export const failing = (...statuses: (keyof typeof failures)[]): Replies => refusing(...statuses, 500, 503);

// ----------------------------------------------------------------------------------------------------------------- parameters

export const channel: Parameter = {
  name: "channel",
  in: "path",
  required: true,
  description: "The channel's name.",
  schema: ref("Channel"),
  example: samples.channel,
};
export const channels: Parameter = {
  ...channel,
  description: `The channel's name, or several, comma separated: one connection, at most ${CHANNELS_MAX} channels.`,
  schema: ref("Channels"),
};
export const event: Parameter = {
  name: "id",
  in: "path",
  required: true,
  description: "The event's id.",
  schema: ref("EventId"),
  example: samples.event,
};
export const device: Parameter = {
  name: "device",
  in: "path",
  required: true,
  description: "The device's name.",
  schema: ref("Device"),
  example: samples.device,
};

export const hookName: Parameter = {
  name: "name",
  in: "path",
  required: true,
  description: "The hook's name.",
  schema: ref("HookName"),
  example: samples.hookName,
};

/** A page of a list. @param key what `after` takes, and `next` gives */
export const page = (key: string, schema: Schema): Parameter[] => [
  { name: "after", in: "query", description: `Begin after this one: ${key}, as \`next\` gave it.`, schema },
  {
    name: "limit",
    in: "query",
    description: "How many at most.",
    schema: { type: "integer", minimum: 1, maximum: PAGE_MAX, default: PAGE_DEFAULT },
  },
];

export const deviceHere = (what: string): Parameter[] => [
  { name: "device", in: "query", description: what, schema: ref("Device") },
  { name: "device", in: "header", description: "The same; the query wins.", schema: ref("Device") },
];

export const lastEvent: Parameter = {
  name: "Last-Event-ID",
  in: "header",
  description: "The event's id, for a form without the field `id`.",
  schema: ref("EventId"),
};

/** A number of seconds in a query. */
export const seconds = (minimum: number, maximum: number): Schema => ({
  type: "number",
  minimum,
  maximum,
  multipleOf: 0.000001,
  description: "Seconds in plain decimal notation, with at most 6 decimals.",
});

/** Where a feed starts. @param since what to fill in when it is tried */
export const start = (since: "now" | "earliest"): Parameter[] => [
  {
    name: "Last-Event-ID",
    in: "header",
    description: "Go on after this position. EventSource sends it by itself when it reconnects.",
    schema: ref("Position"),
  },
  {
    name: "last-event-id",
    in: "query",
    description: "The same, for clients that can't set the header; the header wins.",
    schema: ref("Position"),
  },
  {
    name: "lastEventId",
    in: "query",
    description: "The same again, as EventSource polyfills add it when they reconnect; it wins over `last-event-id`.",
    schema: ref("Position"),
  },
  {
    name: "since",
    in: "query",
    description:
      "Where to start when nothing else says it: `now`, `earliest`, or after a position. No place of a device's feed reaches behind its enrolment: of what was pushed before, it gets only what names it.",
    schema: ref("Since"),
    ...(since === "now" ? {} : { example: since }),
  },
  {
    name: "wait",
    in: "query",
    description: "Long-poll only: how many seconds the answer may take to come when there is nothing yet.",
    schema: { ...seconds(0, POLL_SECONDS_MAX), default: 0 },
    example: 5,
  },
];

/** What a feed answers, by whichever transport. The long-poll stands first: this page can show it, and an endless stream it can't. */
export const feedReplies = (batch: string, polled: unknown, streamed: string): Replies => ({
  101: { description: "The WebSocket is open." },
  200: {
    description: "What came, for a long-poll; else an event stream, which goes on until one side ends it.",
    content: {
      ...json(batch, one(polled)),
      "text/event-stream": { schema: { type: "string" }, examples: one(streamed) },
    },
  },
  ...failing(400, 401, 403, 422, 429),
});

/** The same URL by three transports: prose for both feeds. */
export const transports = (own: string): string => `
**Event stream** (the default; \`EventSource\`, \`curl -N\`). The first bytes come at once. A frame is

    id: <position>
    event: <type>        (when it has one)
    data: <JSON>

and a comment line keeps a quiet stream alive. The server's own events, which a client may ignore:

| event | data | |
|---|---|---|
| \`pere.ready\` | \`Ready\` | first, with the position that the feed starts after as its \`id:\` |
| \`pere.gap\` | \`Gap\` | what was asked for is no longer kept; nothing is ever skipped in silence |
| \`pere.shared\` | \`Shared\` | the device is open from several addresses at once: two machines have its name, perhaps |
| \`pere.bye\` | \`Bye\` | last: why the server ends the stream; come back after \`retry:\` |

Trouble that passes is told as \`200\`, \`pere.bye\` and a close, because EventSource stops for ever at any other status. A stream is renewed about every
15 minutes.

**WebSocket** (\`Upgrade: websocket\`, subprotocol \`pere.v1\` or none). Text frames: the same JSON as in \`data:\`, and the server's own as
\`{"pere":"ready"|"gap"|"shared"|"bye", …}\`. It closes with 1012 or 1013 when coming back makes sense, with 1008 when the device was retired or the token has expired. ${own}
A fresh token in place of the one that it was opened with is \`{"pere":"token","token":"…"}\`, and is answered \`{"pere":"token","expires":"…"}\`; one that is not good, allows less or is
another device's is answered \`{"pere":"error","detail":"…"}\` and changes nothing.

**Long-poll** (\`Accept: application/json\`): answers as soon as there is something, or when \`wait\` is over; with \`gaps\` and \`shared\` where there is something to say. Pass \`last\` back as
\`last-event-id\`.

On a feed of several channels the position holds a place in each. It is opaque, and goes back whole.`;
