/**
 * The AsyncAPI 3.0 document: the messages on event streams and WebSockets, which OpenAPI can't describe. Requests and answers over HTTP are in
 * `openapi.ts`, whose schemas, parameters and examples are reused here.
 *
 * A frame of an event stream is a message whose headers are the fields `id` and `event`. A WebSocket has no such fields, so the server's own
 * messages have their name in `pere`. As defined by AsyncAPI, "send" and "receive" are from the service's point of view. `tests/asyncapi.test.ts`
 * checks every message and example against a running service.
 */
import { deviceHere, type Parameter, start } from "./openapi-parts.ts";
import { ref, samples, type Schema, schemas } from "./openapi-schemas.ts";

// --------------------------------------------------------------------------------------------------------------- messages

interface Message {
  readonly name: string;
  readonly summary: string;
  readonly headers?: Schema;
  readonly payload: Schema;
  readonly examples: readonly { readonly headers?: object; readonly payload: unknown }[];
}
interface Pointer {
  readonly $ref: string;
}
const pointer = (path: string): Pointer => ({ $ref: `#/${path}` });

/** An object schema. */
const described = (properties: Record<string, Schema>, required: readonly string[]): Schema => ({
  type: "object",
  properties,
  required,
});

/** A log entry on an event stream: its position, its type if any, and its data. @param payload an object with an id */
const entry = (
  name: string,
  summary: string,
  schema: string,
  payload: { readonly id: string; readonly type?: string },
): Message => ({
  name,
  summary,
  headers: described({ id: ref("Position"), event: ref("EventType") }, []),
  payload: ref(schema),
  examples: [{ headers: { id: payload.id, ...(payload.type ? { event: payload.type } : {}) }, payload }],
});

/** One of the server's own frames on an event stream. @param ids whether it has a position: always, never, or sometimes */
const ownFrame = (
  name: string,
  summary: string,
  schema: string,
  ids: "always" | "never" | "sometimes",
  ...examples: readonly { readonly id?: string; readonly payload: unknown }[]
): Message => {
  const event = { type: "string", const: `pere.${name}` };
  return {
    name: event.const,
    summary,
    headers: described(ids === "never" ? { event } : { id: ref("Position"), event }, [
      "event",
      ...(ids === "always" ? ["id"] : []),
    ]),
    payload: ref(schema),
    examples: examples.map(({ id, payload }) => ({
      headers: { ...(id === undefined ? {} : { id }), event: event.const },
      payload,
    })),
  };
};

/** One of the server's own messages on a socket, with its name in `pere`. */
const ownText = (name: string, summary: string, schema: Schema, ...examples: readonly object[]): Message => ({
  name,
  summary,
  payload: {
    ...schema,
    ...described({ pere: { type: "string", const: name }, ...(schema.properties as Record<string, Schema>) }, [
      "pere",
      ...(schema.required as string[]),
    ]),
  },
  examples: examples.map((example) => ({ payload: { pere: name, ...example } })),
});

const text = (name: string, summary: string, schema: string, payload: unknown): Message => ({
  name,
  summary,
  payload: ref(schema),
  examples: [{ payload }],
});

const [firstEvent, firstReceipt] = [samples.eventBatch.events[0]!, samples.receiptBatch.events[0]!];
const { device: _, ...receiptHere } = samples.receiptOne;
const origin = samples.ready.channels.orders;

const EVENT =
  "An event. A reminder of an event, or another round of it, has no `id`, because the position does not change.";
const RECEIPT = "A device's receipt for an event, or `missing`, set by the server.";
const READY = "The first message of every feed, with the position that it starts after.";
const GAP = "Requested entries are no longer kept; the feed continues after them.";
const SHARED =
  "The device has feeds open from several addresses; two machines may have the same name. Sent once to each feed.";
const BYE = "The last message of a feed that the server ends, with the reason. Reconnect after `retry:`.";
const BYE_TEXT =
  "The last message of a socket that the server closes, with the reason. 1012: reconnect; 1013: reconnect later; 1008: do not reconnect.";
const COMPLETE = "Every addressed device has sent its final receipt for the event, or the event was withdrawn.";
const SETTLED = "An event with a deadline is complete, or its deadline has passed.";
const WITHDRAWN = "An event was withdrawn. Sent to readers that may have got it.";
const WITHDRAWN_EVENT = "An event was withdrawn; `complete` follows.";

const readyFrames = [samples.ready, samples.readyToAnybody].map((payload) => ({ id: origin, payload }));
const bye = { reason: "drain" };

const messages = {
  eventFrame: entry("event", EVENT, "Event", firstEvent),
  receiptFrame: entry("receipt", RECEIPT, "Receipt", firstReceipt),
  readyFrame: ownFrame("ready", READY, "Ready", "always", ...readyFrames),
  gapFrame: ownFrame("gap", GAP, "Gap", "always", { id: origin, payload: samples.gap }),
  sharedFrame: ownFrame("shared", SHARED, "Shared", "never", { payload: samples.shared }),
  byeFrame: ownFrame("bye", BYE, "Bye", "never", { payload: bye }),
  completeFrame: ownFrame("complete", COMPLETE, "Complete", "always", {
    id: samples.complete!.id,
    payload: samples.complete,
  }),
  settledFrame: ownFrame("settled", SETTLED, "Settled", "always", {
    id: samples.settled!.id,
    payload: samples.settled,
  }),
  withdrawnFrame: ownFrame("withdrawn", WITHDRAWN, "Withdrawn", "always", {
    id: samples.withdrawn.id,
    payload: samples.withdrawn,
  }),
  withdrawnEventFrame: ownFrame("withdrawn", WITHDRAWN_EVENT, "WithdrawnEvent", "always", {
    id: samples.withdrawnEvent.id,
    payload: samples.withdrawnEvent,
  }),
  overviewFrame: ownFrame("overview", "The state of all channels, first and after changes.", "Overview", "never", {
    payload: samples.overview,
  }),
  troubleFrame: ownFrame(
    "trouble",
    "What needs attention, in numbers: first, and when something else needs it; `GET /attention` says what.",
    "Trouble",
    "never",
    { payload: samples.trouble },
  ),
  changesFrame: ownFrame("changes", "The changes in the watched channel.", "Changes", "never", {
    payload: samples.changes,
  }),
  awayFrame: ownFrame("away", "The store can't be read now; the next frame means that it is back.", "Away", "never", {
    payload: { detail: "the store can't be read now" },
  }),

  eventText: text("event", "An event.", "Event", firstEvent),
  receiptText: text("receipt", RECEIPT, "Receipt", firstReceipt),
  readyText: ownText("ready", READY, schemas.Ready, samples.ready, samples.readyToAnybody),
  gapText: ownText("gap", GAP, schemas.Gap, samples.gap),
  sharedText: ownText("shared", SHARED, schemas.Shared, samples.shared),
  byeText: ownText("bye", BYE_TEXT, schemas.Bye, bye),
  completeText: ownText("complete", COMPLETE, schemas.Complete, samples.complete!),
  settledText: ownText("settled", SETTLED, schemas.Settled, samples.settled!),
  withdrawnText: ownText("withdrawn", WITHDRAWN, schemas.Withdrawn, samples.withdrawn),
  withdrawnEventText: ownText("withdrawn", WITHDRAWN_EVENT, schemas.WithdrawnEvent, samples.withdrawnEvent),
  receiptsText: ownText(
    "receipts",
    "The result of receipts, once they are durable.",
    schemas.Feedback,
    samples.feedbackOne,
  ),
  errorText: ownText(
    "error",
    "The last message was rejected; nothing changed.",
    described({ detail: { type: "string", description: "Why, in one sentence." } }, ["detail"]),
    { detail: "token: it is not a signed JWT" },
  ),
  renewedText: ownText(
    "token",
    "The new token is used from now on.",
    described({ expires: { oneOf: [ref("Time"), { type: "null" }], description: "When it expires; `null`: never." } }, [
      "expires",
    ]),
    { expires: "2026-11-23T10:00:00.000Z" },
  ),

  receiptDrafts: text(
    "receipts",
    "One receipt or an array of receipts, as in `POST /feedback/{channel}`, without the device's name.",
    "ReceiptDrafts",
    receiptHere,
  ),
  freshToken: ownText(
    "token",
    "A new token that replaces the one the socket was opened with.",
    described({ token: { type: "string", description: "A JWT." } }, ["token"]),
    { token: "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo" },
  ),
} satisfies Record<string, Message>;
type Name = keyof typeof messages;

// --------------------------------------------------------------------------------------------------------------- channels

/** The query parameters or headers of a request as one schema, without those of the long-poll. */
const asked = (parameters: readonly Parameter[], place: "query" | "header"): Schema =>
  described(
    Object.fromEntries(
      parameters
        .filter((parameter) => parameter.in === place && parameter.name !== "wait")
        .map(({ name, schema, description }) => [name, { ...schema, description }]),
    ),
    [],
  );

interface ChannelSpec {
  readonly title: string;
  readonly address: string;
  readonly description: string;
  readonly transport: "http" | "ws";
  readonly parameters: readonly Parameter[];
  readonly sent: readonly Name[];
  /** Messages that the service accepts, and its answers. */
  readonly taken?: Readonly<
    Record<string, { readonly summary: string; readonly message: Name; readonly answers: readonly Name[] }>
  >;
}

const FEED = "/feed/{channel}";
const FEEDBACK = "/feedback/{channel}";
const onFeed = [
  ...deviceHere("The device that follows. If tokens are required, it is the token's `sub`."),
  ...start("now"),
];
const onFeedback = start("earliest");
const onWatch: Parameter[] = [
  { name: "channel", in: "query", description: "The channel to watch in detail.", schema: ref("Channel") },
];
const renewToken = {
  summary: "A new token, before the old one expires",
  message: "freshToken",
  answers: ["renewedText", "errorText"],
} as const;

const channelSpecs = {
  eventStream: {
    title: "Events, as an event stream",
    address: FEED,
    description:
      "Server-Sent Events (WHATWG HTML, section 9.2). `data` is JSON. Temporary errors are sent as `200`, `pere.bye` and a close. A stream is renewed about every 15 minutes. Pass its last `id` back unchanged as `Last-Event-ID`.",
    transport: "http",
    parameters: onFeed,
    sent: ["readyFrame", "eventFrame", "withdrawnFrame", "gapFrame", "sharedFrame", "byeFrame"],
  },
  receiptStream: {
    title: "Receipts, as an event stream",
    address: FEEDBACK,
    description: "For publishers: receipts of devices. The feed has its own ids and can be resumed.",
    transport: "http",
    parameters: onFeedback,
    sent: [
      "readyFrame",
      "receiptFrame",
      "completeFrame",
      "settledFrame",
      "withdrawnEventFrame",
      "gapFrame",
      "byeFrame",
    ],
  },
  watchStream: {
    title: "Activity, as an event stream",
    address: "/watch",
    description:
      "For dashboards such as the console. It has no positions: after a reconnect it sends the current state again.",
    transport: "http",
    parameters: onWatch,
    sent: ["overviewFrame", "troubleFrame", "changesFrame", "awayFrame", "byeFrame"],
  },
  eventSocket: {
    title: "Events down and receipts up, on a WebSocket",
    address: FEED,
    description:
      "Text frames, one JSON value each; subprotocol `pere.v1` or none. To resume, pass the last event's `id` as `last-event-id`; on several channels the last of each, joined by `.`.",
    transport: "ws",
    parameters: onFeed,
    sent: ["readyText", "eventText", "withdrawnText", "gapText", "sharedText", "byeText"],
    taken: {
      takeReceipts: {
        summary: "Receipts from the feed's device",
        message: "receiptDrafts",
        answers: ["receiptsText", "errorText"],
      },
      renewDevicesToken: renewToken,
    },
  },
  receiptSocket: {
    title: "Receipts, on a WebSocket",
    address: FEEDBACK,
    description: "For publishers: receipts of devices. Only send new tokens on it.",
    transport: "ws",
    parameters: onFeedback,
    sent: ["readyText", "receiptText", "completeText", "settledText", "withdrawnEventText", "gapText", "byeText"],
    taken: { renewPublishersToken: renewToken },
  },
} satisfies Record<string, ChannelSpec>;

/** Versions of AsyncAPI's bindings. */
const HTTP_BINDING = "0.3.0";
const WS_BINDING = "0.1.0";
const SERVERS = { http: "http", ws: "websocket" } as const;

/** Converts it to an AsyncAPI channel. */
function channelOf({ title, address, description, transport, parameters, sent, taken = {} }: ChannelSpec) {
  const names = [...sent, ...Object.values(taken).flatMap(({ message, answers }) => [message, ...answers])];
  const handshake = {
    method: "GET",
    query: asked(parameters, "query"),
    headers: asked(parameters, "header"),
    bindingVersion: WS_BINDING,
  };
  return {
    title,
    address,
    description,
    servers: [pointer(`servers/${SERVERS[transport]}`)],
    messages: Object.fromEntries(names.map((name) => [name, pointer(`components/messages/${name}`)])),
    ...(address.includes("{channel}") ? { parameters: { channel: pointer("components/parameters/channel") } } : {}),
    ...(transport === "ws" ? { bindings: { ws: handshake } } : {}),
  };
}

/** Its AsyncAPI operations: the service sends, and on a socket it also receives and answers. */
function operationsOf(
  key: string,
  { title, transport, parameters, sent, taken = {} }: ChannelSpec,
): [string, object][] {
  const channel = pointer(`channels/${key}`);
  const on = (names: readonly Name[]) => names.map((name) => pointer(`channels/${key}/messages/${name}`));
  const request = { method: "GET", query: asked(parameters, "query"), bindingVersion: HTTP_BINDING };
  const sending = {
    ...{ action: "send", channel, summary: title, messages: on(sent) },
    ...(transport === "http" ? { bindings: { http: request } } : {}),
  };
  return [
    [`send${key[0]!.toUpperCase()}${key.slice(1)}`, sending],
    ...Object.entries(taken).map(([name, { summary, message, answers }]): [string, object] => [
      name,
      { action: "receive", channel, summary, messages: on([message]), reply: { channel, messages: on(answers) } },
    ]),
  ];
}

// --------------------------------------------------------------------------------------------------------------- document

/** The schemas that a part refers to, directly or indirectly. */
function referred(part: unknown, found: Record<string, Schema> = {}): Record<string, Schema> {
  for (const [, name] of JSON.stringify(part).matchAll(/"#\/components\/schemas\/(\w+)"/g))
    if (!(name! in found)) referred((found[name!] = (schemas as Record<string, Schema>)[name!]!), found);
  return found;
}

const server = (protocol: string, basePath: string, description: string) => ({
  host: "{host}",
  ...(basePath === "" ? {} : { pathname: basePath }),
  protocol,
  description,
  variables: { host: { default: "127.0.0.1:4567", description: "The host name and port of this service." } },
  security: ["bearer", "cookie", "query"].map((name) => pointer(`components/securitySchemes/${name}`)),
});

/** The document that is served at `/asyncapi.json`. @param version PERE's own; @param basePath where proxies lead to it, or empty */
export function asyncapi(version: string, basePath: string): object {
  const body = {
    channels: Object.fromEntries(Object.entries(channelSpecs).map(([key, spec]) => [key, channelOf(spec)])),
    operations: Object.fromEntries(Object.entries(channelSpecs).flatMap(([key, spec]) => operationsOf(key, spec))),
  };
  return {
    asyncapi: "3.0.0",
    info: {
      title: "PERE, feeds and sockets",
      version,
      description:
        "The messages on PERE's event streams and WebSockets, in both directions. Pushes, receipts over HTTP, queries and long-polls are in the OpenAPI document at `/swagger/json`.",
      license: { name: "MIT", url: "https://opensource.org/license/mit" },
    },
    defaultContentType: "application/json",
    servers: {
      http: server("http", basePath, "Event streams; `https` with TLS."),
      websocket: server(
        "ws",
        basePath,
        "Sockets; `wss` with TLS. A token may also be sent beside `pere.v1` in the subprotocols, as `pere.token.<jwt>`.",
      ),
    },
    ...body,
    components: {
      messages,
      schemas: referred([messages, body]),
      parameters: {
        channel: {
          description: "The channel's name, or several names separated by commas.",
          examples: [samples.channel],
        },
      },
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", bearerFormat: "JWT", description: "The token." },
        cookie: { type: "httpApiKey", in: "cookie", name: "pere_token", description: "The same token, for browsers." },
        query: {
          type: "httpApiKey",
          in: "query",
          name: "token",
          description: "The same token, for clients that can't set headers, such as EventSource.",
        },
      },
    },
  };
}
