/**
 * Shared parts of the operations in `openapi.ts`: the types of OpenAPI 3.1 that they need, common answers and parameters, and the text about
 * transports for both feeds.
 */
import {
  CHANNELS_MAX,
  EVENT_BYTES_MAX,
  NAME_CHARACTERS_MAX,
  PAGE_DEFAULT,
  PAGE_MAX,
  POLL_SECONDS_MAX,
} from "../engine/model.ts";
import { ref, samples, type Schema } from "./openapi-schemas.ts";

// ----------------------------------------------------------------------------------------------------------------------- types

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
  /** The API page fills this in, so set it only where that is harmless. */
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
  readonly requestBody?: { readonly required?: true; readonly content: Content };
  readonly responses: Replies;
  /** Empty: no token is needed. */
  readonly security?: readonly [];
}

/** Examples of one media type, by name, each with a summary. */
export const examples = (values: Record<string, readonly [summary: string, value: unknown]>): Record<string, Example> =>
  Object.fromEntries(Object.entries(values).map(([name, [summary, value]]) => [name, { summary, value }]));
export const one = (value: unknown): Record<string, Example> => ({ example: { value } });

export const json = (schema: string, shown: Record<string, Example>): Content => ({
  "application/json": { schema: ref(schema), examples: shown },
});
export const reply = (description: string, content: Content): Reply => ({ description, content });

// --------------------------------------------------------------------------------------------------------------------- errors

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

/** Shared error answers: `components.responses`. */
export const failures = {
  400: [
    "Malformed",
    problem(
      "Malformed input: a name, a number, the JSON or the UTF-8 is invalid, or a query option is repeated or unknown.",
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
        "The token is missing or invalid; the answer says why. Do not retry a feed without a new token.",
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
        "The token does not allow this. Do not retry a feed without a new token.",
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
      "The body took longer than 30 s plus the time its length needs at 10 kB/s. Send it again.",
      one(
        problemBody("slow", "Too slow", 408, {
          detail: "the request body arrived too slowly; send it again, in smaller parts on a slow connection",
        }),
      ),
    ),
  ],
  409: [
    "Conflict",
    problem(
      "It can't be done in this state; the answer says why.",
      one(
        problemBody("conflict", "Conflict", 409, {
          detail:
            "channel orders can't be deleted: it still has events that have not expired, 1 device, 1 hook, and 1 scheduled push",
        }),
      ),
    ),
  ],
  413: [
    "TooLarge",
    problem(
      "The body is too large or has too many items.",
      one(
        problemBody("tooLarge", "Too large", 413, {
          detail: `the request body is larger than ${EVENT_BYTES_MAX} bytes`,
        }),
      ),
    ),
  ],
  415: [
    "WrongType",
    problem(
      "The `Content-Type` is not supported here, the charset is not UTF-8, or there is a `Content-Encoding`.",
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
        "A caller (a token's `sub` or an address) has exceeded a limit per minute. Streams and sockets end with `busy` instead.",
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
      "A bug in PERE. The id in `detail` is also in the service's log.",
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
        "The store is away or PERE is shutting down. It is unknown whether the request was carried out; repeat it.",
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
        "The disk is full, and nothing was stored. Feeds and queries still work; writes work again when there is free space.",
        one(problemBody("full", "The disk is full", 507, { detail: "the disk is full; nothing was stored" })),
      ),
      headers: { "Retry-After": { $ref: "#/components/headers/Retry-After" } },
    },
  ],
} as const satisfies Record<number, readonly [string, Reply]>;

/** References to shared error answers. */
export const refusing = (...statuses: (keyof typeof failures)[]): Replies =>
  Object.fromEntries(statuses.map((status) => [status, { $ref: `#/components/responses/${failures[status][0]}` }]));

/** The same for operations that use the store, which can also fail with 500 and 503. */
export const failing = (...statuses: (keyof typeof failures)[]): Replies => refusing(...statuses, 500, 503);

// ----------------------------------------------------------------------------------------------------------------- parameters

export const scheduledId: Parameter = {
  name: "id",
  in: "path",
  required: true,
  description: "The id of the scheduled push.",
  schema: ref("ScheduleId"),
  example: samples.scheduleId,
};
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
  description: `The channel's name, or several names separated by commas, at most ${CHANNELS_MAX}.`,
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

/** The parameters of a page. @param key what `after` and `next` contain */
export const page = (key: string, schema: Schema): Parameter[] => [
  { name: "after", in: "query", description: `Start after this item: ${key}, from \`next\`.`, schema },
  {
    name: "limit",
    in: "query",
    description: "Maximum number of items.",
    schema: { type: "integer", minimum: 1, maximum: PAGE_MAX, default: PAGE_DEFAULT },
  },
];

/** Part of a name. @param name whose */
export const search = (name: string): Parameter => ({
  name: "search",
  in: "query",
  description: `Only items with this text in ${name}, in capitals or not.`,
  schema: { type: "string", maxLength: NAME_CHARACTERS_MAX },
});

export const deviceHere = (what: string): Parameter[] => [
  { name: "device", in: "query", description: what, schema: ref("Device") },
  { name: "device", in: "header", description: "The same; the query takes precedence.", schema: ref("Device") },
];

export const lastEvent: Parameter = {
  name: "Last-Event-ID",
  in: "header",
  description: "The event's id, for forms without the field `id`.",
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

/** The parameters for a feed's start. @param since the example value */
export const start = (since: "now" | "earliest"): Parameter[] => [
  {
    name: "Last-Event-ID",
    in: "header",
    description: "Continue after this position. EventSource sends it automatically when it reconnects.",
    schema: ref("Position"),
  },
  {
    name: "last-event-id",
    in: "query",
    description: "The same, for clients that can't set the header; the header takes precedence.",
    schema: ref("Position"),
  },
  {
    name: "lastEventId",
    in: "query",
    description:
      "The same, as EventSource polyfills add it when they reconnect; it takes precedence over `last-event-id`.",
    schema: ref("Position"),
  },
  {
    name: "since",
    in: "query",
    description:
      "Where to start without another position: `now`, `earliest`, or after a position. `latest`, for events only: first the newest event of each key that is addressed to the reader, answered or not, then all new ones. A device gets events from before its enrolment only if they name it, whatever the position.",
    schema: ref("Since"),
    ...(since === "now" ? {} : { example: since }),
  },
  {
    name: "wait",
    in: "query",
    description: "Long-poll only: how many seconds to wait if there is nothing yet.",
    schema: { ...seconds(0, POLL_SECONDS_MAX), default: 0 },
    example: 5,
  },
];

/** A feed's answers on all transports. The long-poll comes first: the API page can show it, unlike an endless stream. */
export const feedReplies = (batch: string, polled: unknown, streamed: string): Replies => ({
  101: { description: "The WebSocket is open." },
  200: {
    description: "For a long-poll, the new entries; otherwise an event stream, until one side closes it.",
    content: {
      ...json(batch, one(polled)),
      "text/event-stream": { schema: { type: "string" }, examples: one(streamed) },
    },
  },
  ...failing(400, 401, 403, 422, 429),
});

/** The description of the three transports, for both feeds. */
export const transports = (own: string): string => `
**Event stream** (the default; \`EventSource\`, \`curl -N\`). The first bytes are sent at once. A frame is

    id: <position>
    event: <type>        (if it has one)
    data: <JSON>

and a comment line keeps a quiet stream alive. The server's own events, which clients may ignore:

| event | data | when |
|---|---|---|
| \`pere.ready\` | \`Ready\` | first, with the position that the feed starts after as its \`id:\` |
| \`pere.gap\` | \`Gap\` | requested entries are no longer kept; entries are never skipped silently |
| \`pere.shared\` | \`Shared\` | the device is connected from several addresses: two machines may have the same name |
| \`pere.bye\` | \`Bye\` | last: why the server ends the stream; reconnect after \`retry:\` |

Temporary errors are sent as \`200\`, \`pere.bye\` and a close, because EventSource never reconnects after any other status. A stream is renewed about every
15 minutes.

**WebSocket** (\`Upgrade: websocket\`, subprotocol \`pere.v1\` or none). Text frames: the same JSON as in \`data:\`, and the server's own as
\`{"pere":"ready"|"gap"|"shared"|"bye", …}\`. It closes with 1012 or 1013 if reconnecting makes sense, and with 1008 if the device was retired or the token has expired. ${own}
To replace the token, send \`{"pere":"token","token":"…"}\`; the answer is \`{"pere":"token","expires":"…"}\`. A token that is invalid, allows less or belongs to
another device gets \`{"pere":"error","detail":"…"}\` and changes nothing.

**Long-poll** (\`Accept: application/json\`): answers as soon as there is an entry, or when \`wait\` is over, with \`gaps\` and \`shared\` if needed. Pass \`last\` back as
\`last-event-id\`.

On a feed of several channels the position contains one for each. It is opaque; pass it back unchanged.`;
