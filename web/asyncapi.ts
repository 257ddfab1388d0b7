/**
 * Feeds and sockets as programs read them: an AsyncAPI 3.0 document, message by message. OpenAPI can say that there is an event stream at a URL, and that it can be
 * opened as a WebSocket; it has no words for what comes on it. This document has nothing else: what is asked and answered over HTTP is in `openapi.ts`, whose
 * schemas, parameters and examples are used here as they are.
 *
 * A frame of an event stream is a message whose headers are its fields, `id` and `event`; a WebSocket has no such fields, so the server's own messages name themselves in
 * `pere`. "send" and "receive" are the service's, as AsyncAPI has it: what it sends, a device reads. `tests/asyncapi.test.ts` holds what a running service says to it, every
 * message and every example.
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

/** A schema with properties of its own. */
const described = (properties: Record<string, Schema>, required: readonly string[]): Schema => ({
  type: "object",
  properties,
  required,
});

/** A publisher's entry on an event stream: its position, its type when it has one, and what it says. @param payload an object with an id */
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

/** One of the server's own messages on a socket: what it says, with its name in `pere`. */
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
  "An event. Once more, as a reminder, it comes without `id`, for the place to resume at stays where it is.";
const RECEIPT = "A device's word on an event, or the server's own, `missing`.";
const READY = "First on every feed, with the position that it starts after.";
const GAP = "What was asked for is no longer kept; the feed goes on behind it.";
const SHARED =
  "The device has feeds open from several addresses, as two machines with one name have; told once to each of them.";
const BYE = "Last on a feed that the server ends, and why. Come back after `retry:`.";
const BYE_TEXT =
  "Last on a socket that the server closes, and why. 1012: come back; 1013: come back later; 1008: don't.";
const COMPLETE = "Every addressed device has given its final receipt on the event.";

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
  overviewFrame: ownFrame("overview", "How all channels stand, first and where it changed.", "Overview", "never", {
    payload: samples.overview,
  }),
  changesFrame: ownFrame("changes", "What came in the channel that is watched.", "Changes", "never", {
    payload: samples.changes,
  }),
  awayFrame: ownFrame("away", "The store can't be read now; the next frame says that it can.", "Away", "never", {
    payload: { detail: "the store can't be read now" },
  }),

  eventText: text("event", "An event.", "Event", firstEvent),
  receiptText: text("receipt", RECEIPT, "Receipt", firstReceipt),
  readyText: ownText("ready", READY, schemas.Ready, samples.ready, samples.readyToAnybody),
  gapText: ownText("gap", GAP, schemas.Gap, samples.gap),
  sharedText: ownText("shared", SHARED, schemas.Shared, samples.shared),
  byeText: ownText("bye", BYE_TEXT, schemas.Bye, bye),
  completeText: ownText("complete", COMPLETE, schemas.Complete, samples.complete!),
  receiptsText: ownText(
    "receipts",
    "What became of receipts, once they are durable.",
    schemas.Feedback,
    samples.feedbackOne,
  ),
  errorText: ownText(
    "error",
    "The last message can't be taken; nothing changed.",
    described({ detail: { type: "string", description: "Why, in one sentence." } }, ["detail"]),
    { detail: "token: it is not a signed JWT" },
  ),
  renewedText: ownText(
    "token",
    "The fresh token counts from now on.",
    described({ expires: { oneOf: [ref("Time"), { type: "null" }], description: "When it ends; `null`: never." } }, [
      "expires",
    ]),
    { expires: "2026-11-23T10:00:00.000Z" },
  ),

  receiptDrafts: text(
    "receipts",
    "One receipt or an array of them, as in `POST /feedback/{channel}`, without naming the device.",
    "ReceiptDrafts",
    receiptHere,
  ),
  freshToken: ownText(
    "token",
    "A fresh token in place of the one that the socket was opened with.",
    described({ token: { type: "string", description: "A JWT." } }, ["token"]),
    { token: "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx_Zmeo" },
  ),
} satisfies Record<string, Message>;
type Name = keyof typeof messages;

// --------------------------------------------------------------------------------------------------------------- channels

/** What a request may hold in one place, as one schema; the long-poll's own are left out. */
const asked = (parameters: readonly Parameter[], place: "query" | "header"): Schema =>
  described(
    Object.fromEntries(
      parameters
        .filter((parameter) => parameter.in === place && parameter.name !== "wait")
        .map(({ name, schema, description }) => [name, { ...schema, description }]),
    ),
    [],
  );

interface Way {
  readonly title: string;
  readonly address: string;
  readonly description: string;
  readonly transport: "http" | "ws";
  readonly parameters: readonly Parameter[];
  readonly sent: readonly Name[];
  /** What the service takes on it, and what it answers. */
  readonly taken?: Readonly<
    Record<string, { readonly summary: string; readonly message: Name; readonly answers: readonly Name[] }>
  >;
}

const FEED = "/feed/{channel}";
const FEEDBACK = "/feedback/{channel}";
const onFeed = [...deviceHere("Who follows. Where there are tokens, it is the token's `sub`."), ...start("now")];
const onFeedback = start("earliest");
const onWatch: Parameter[] = [
  { name: "channel", in: "query", description: "The channel that is looked at closely.", schema: ref("Channel") },
];
const renewToken = {
  summary: "A fresh token, before the first one ends",
  message: "freshToken",
  answers: ["renewedText", "errorText"],
} as const;

const ways = {
  eventStream: {
    title: "Events, as an event stream",
    address: FEED,
    description:
      "Server-Sent Events (WHATWG HTML, section 9.2). `data` is JSON. Trouble that passes is told with `200`, `pere.bye` and a close; a stream is renewed about every 15 minutes. Its last `id` goes back whole as `Last-Event-ID`.",
    transport: "http",
    parameters: onFeed,
    sent: ["readyFrame", "eventFrame", "gapFrame", "sharedFrame", "byeFrame"],
  },
  receiptStream: {
    title: "Receipts, as an event stream",
    address: FEEDBACK,
    description: "For publishers: what devices say, with ids and resume of its own.",
    transport: "http",
    parameters: onFeedback,
    sent: ["readyFrame", "receiptFrame", "completeFrame", "gapFrame", "byeFrame"],
  },
  watchStream: {
    title: "What goes on, as an event stream",
    address: "/watch",
    description:
      "For those who look, such as the console. It has no positions: who comes back is told anew how things stand.",
    transport: "http",
    parameters: onWatch,
    sent: ["overviewFrame", "changesFrame", "awayFrame", "byeFrame"],
  },
  eventSocket: {
    title: "Events down and receipts up, on a WebSocket",
    address: FEED,
    description:
      "Text frames, one JSON value each; subprotocol `pere.v1` or none. To resume, pass the last event's `id` as `last-event-id`; on several channels the last of each, joined by `.`.",
    transport: "ws",
    parameters: onFeed,
    sent: ["readyText", "eventText", "gapText", "sharedText", "byeText"],
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
    description: "For publishers: what devices say. Nothing but a fresh token is to be sent on it.",
    transport: "ws",
    parameters: onFeedback,
    sent: ["readyText", "receiptText", "completeText", "gapText", "byeText"],
    taken: { renewPublishersToken: renewToken },
  },
} satisfies Record<string, Way>;

/** Versions of AsyncAPI's bindings, each in its own count. */
const HTTP_BINDING = "0.3.0";
const WS_BINDING = "0.1.0";
const SERVERS = { http: "http", ws: "websocket" } as const;

/** A way as AsyncAPI's channel. */
function channelOf({ title, address, description, transport, parameters, sent, taken = {} }: Way) {
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

/** What the service does on a way: it sends, and on a socket it takes and answers. */
function operationsOf(key: string, { title, transport, parameters, sent, taken = {} }: Way): [string, object][] {
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

/** The schemas that a part refers to, and those that they refer to. */
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
  variables: { host: { default: "127.0.0.1:4567", description: "Where this service listens: its name and port." } },
  security: ["bearer", "cookie", "query"].map((name) => pointer(`components/securitySchemes/${name}`)),
});

/** The document that is served at `/asyncapi.json`. @param version PERE's own; @param basePath where proxies lead to it, or empty */
export function asyncapi(version: string, basePath: string): object {
  const body = {
    channels: Object.fromEntries(Object.entries(ways).map(([key, way]) => [key, channelOf(way)])),
    operations: Object.fromEntries(Object.entries(ways).flatMap(([key, way]) => operationsOf(key, way))),
  };
  return {
    asyncapi: "3.0.0",
    info: {
      title: "PERE, feeds and sockets",
      version,
      description:
        "What comes on PERE's event streams and WebSockets, and what a device may send. Pushing, giving receipts over HTTP, reading and the long-poll are in the OpenAPI document at `/swagger/json`.",
      license: { name: "MIT", url: "https://opensource.org/license/mit" },
    },
    defaultContentType: "application/json",
    servers: {
      http: server("http", basePath, "Event streams; with TLS by `https`."),
      websocket: server(
        "ws",
        basePath,
        "Sockets; with TLS by `wss`. A token may also stand beside `pere.v1` in the subprotocols, as `pere.token.<jwt>`.",
      ),
    },
    ...body,
    components: {
      messages,
      schemas: referred([messages, body]),
      parameters: {
        channel: {
          description: "The channel's name, or several, comma separated: one connection for all of them.",
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
          description: "The same token, where nothing else can be set, as with EventSource.",
        },
      },
    },
  };
}
