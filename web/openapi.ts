/**
 * The OpenAPI 3.1 document: one operation per route of `index.ts`.
 *
 * It describes this version only. Limits are the engine's constants; schemas and examples are in `openapi-schemas.ts`, shared parts in
 * `openapi-parts.ts`. `tests/openapi-answers.test.ts` triggers every status that is declared here and validates every answer against its schema.
 *
 * OpenAPI can't describe the content of an event stream, nor that the URL of a feed can be opened as a WebSocket. The descriptions explain both in
 * prose, and `asyncapi.ts` describes them for programs.
 */
import type { ElysiaSwaggerConfig } from "@elysiajs/swagger";
import type { DocumentDecoration } from "elysia";
import {
  ATTEMPTS_MAX,
  ATTEMPTS_MIN,
  BODY_BYTES_MAX,
  DEADLINE_SECONDS_MAX,
  DEADLINE_SECONDS_MIN,
  DEVICE_ORDERS,
  JSON_DEPTH_MAX,
  KEY_CHARACTERS_MAX,
  KEY_MEMORY_MS,
  LINES_MAX,
  NOTE_CHARACTERS_MAX,
  PAGE_DEFAULT,
  PAGE_MAX,
  RECEIPTS_MAX,
  REMIND_SECONDS_MAX,
  REMIND_SECONDS_MIN,
  TARGETS_MAX,
  TO_MAX,
  TTL_SECONDS_MAX,
  TTL_SECONDS_MIN,
  WAIT_SECONDS_MAX,
} from "../engine/model.ts";
import { TERMS_MAX, VALUES_MAX, WHERE_DEVICES_MAX } from "../engine/tags.ts";
import { OVERDUE_MS } from "../engine/attention.ts";
import { HOOKS_MAX, SCHEDULES_MAX } from "../engine/store.ts";
import {
  type Parameter,
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
  problemBody,
  refusedBody,
  refusing,
  reply,
  scheduledId,
  search,
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
    description: `The body is the event's data; all options are in the query. A 2xx answer means that the event is durable. After a 503 or a broken connection
the event may or may not have been stored: repeat the request with the same \`Idempotency-Key\`.

The event is addressed to the devices that are enrolled now, to those of them whose tags fit \`where\`, or to those in \`to\`. Devices get the body's unchanged bytes, including numbers, key order and
duplicate keys.

**Waiting for receipts**: with \`Prefer: wait=N\` the answer is sent when every addressed device has sent a final receipt, or after N seconds, and contains the tally. Without it,
follow the receipts or read the event later.

**Another try**: a device may defer an event, and gets it again when the time has come. With \`attempts\` a device that failed gets it again too, until it
has failed that often.

**Later**: with \`at\` or \`every\` the event is not pushed now, and the answer is 202 with the id of a scheduled push. Each due time is pushed exactly once. A
channel has at most ${SCHEDULES_MAX} scheduled pushes to come.

**Many events**: \`application/x-ndjson\`, one JSON value per line, at most ${LINES_MAX} lines and ${kib(BODY_BYTES_MAX)}. The options apply to all of them, and either all are
stored or none. The answer is then \`PushedMany\`, without \`Location\`.

JSON may nest at most ${JSON_DEPTH_MAX} levels.`,
    parameters: [
      channel,
      {
        name: "type",
        in: "query",
        description:
          "The event's name on event streams. `open`, `message` and `error` are rejected with 422: EventSource fires these itself, so a listener could not distinguish the event from a broken connection.",
        schema: ref("EventType"),
        example: samples.type,
      },
      {
        name: "to",
        in: "query",
        description: `Device names, separated by commas, at most ${TO_MAX}: the event is for these devices only. They need not be enrolled.`,
        schema: { type: "array", items: ref("Device"), minItems: 1, maxItems: TO_MAX },
        style: "form",
        explode: false,
        example: [samples.device],
      },
      {
        name: "where",
        in: "query",
        description: `The event is for the enrolled devices whose tags fit now; what becomes of their tags later changes nothing. Terms, separated by commas, must all hold: \`site\` (the device has the tag), \`site:rome|milan\` (it has one of these values), and with \`!\` before it not so, also without the tag. At most ${TERMS_MAX} terms with ${VALUES_MAX} values each. Not with \`to\`. It may fit at most ${WHERE_DEVICES_MAX} devices, with NDJSON times the number of lines.`,
        schema: ref("Where"),
      },
      {
        name: "ttl",
        in: "query",
        description: "Seconds after which the event is no longer delivered.",
        schema: seconds(TTL_SECONDS_MIN, TTL_SECONDS_MAX),
        example: 3600,
      },
      {
        name: "deadline",
        in: "query",
        description:
          "Seconds until every addressed device owes a final receipt. Devices without one are then recorded as `missing`; a later receipt still counts, marked `late`. If retention drops the event before its deadline, they are recorded as missing at that moment.",
        schema: seconds(DEADLINE_SECONDS_MIN, DEADLINE_SECONDS_MAX),
        example: 600,
      },
      {
        name: "remind",
        in: "query",
        description:
          "Interval in seconds at which the event is sent again to connected devices that have sent no receipt for it, until the deadline or the ttl.",
        schema: seconds(REMIND_SECONDS_MIN, REMIND_SECONDS_MAX),
      },
      {
        name: "key",
        in: "query",
        description:
          "What the event is about. The older events of the channel with the same key that are not complete are withdrawn in the same step, as `superseded`, whoever they were addressed to. Not with NDJSON.",
        schema: ref("EventKey"),
      },
      {
        name: "attempts",
        in: "query",
        description: `How often a device may try. A \`failed\` before the last attempt is recorded as \`deferred\`, and the event is sent to the device again: after the receipt's \`after\`, else after 30 seconds, doubled each time.`,
        schema: { type: "integer", minimum: ATTEMPTS_MIN, maximum: ATTEMPTS_MAX },
      },
      {
        name: "at",
        in: "query",
        description:
          "A time with its zone: nothing is pushed now, but then. The event gets its number and its audience when it is due. A time that has passed is due at once. Not with `every`, `Prefer: wait` or NDJSON.",
        schema: { type: "string", format: "date-time" },
      },
      {
        name: "every",
        in: "query",
        description:
          "A cron expression of five fields (minute, hour, day of the month, month, day of the week), for example `0 9 * * 1-5`: pushed at each of these times, beginning with the next. Times that pass while PERE is down are made up for by one push.",
        schema: { type: "string" },
      },
      {
        name: "tz",
        in: "query",
        description:
          "The time zone of `every`, for example `Europe/Rome`; UTC by default. Where its clock goes forward, a time that does not exist is due at the jump; where it goes back, a time that comes twice is due once. If the hour is `*`, the expression counts elapsed time.",
        schema: { type: "string" },
      },
      {
        name: "Prefer",
        in: "header",
        description: `\`wait=N\` (RFC 7240): answer when the event is complete, or after N seconds, at most ${WAIT_SECONDS_MAX}. Other preferences are ignored.`,
        schema: { type: "string" },
      },
      {
        name: "Idempotency-Key",
        in: "header",
        description:
          `Remembered for ${KEY_MEMORY_MS / 3600_000} h, per channel and per token subject: repeating the same key, body and query options returns the first event, with 200 and \`Idempotent-Replayed\`; ` +
          "the same key with another body or other options is rejected with 422. The order of the options and a `token` among them do not matter. Use a new UUID per event.",
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
        description: "The key was known: the events of the first request. Nothing new was stored.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Idempotent-Replayed": { $ref: "#/components/headers/Idempotent-Replayed" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: {
          "application/json": {
            schema: { anyOf: [ref("Pushed"), ref("PushedMany"), ref("PushedLater")] },
            examples: examples({
              one: ["One event", samples.pushed],
              waited: ["With `Prefer: wait=30`, and complete", samples.waited],
            }),
          },
        },
      },
      201: {
        description: "Stored; delivery has begun.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: {
          "application/json": {
            schema: { anyOf: [ref("Pushed"), ref("PushedMany")] },
            examples: examples({
              one: ["One event", samples.pushed],
              nobody: ["With a warning", samples.pushedToNobody],
              many: ["Many events", samples.pushedMany],
            }),
          },
        },
      },
      202: {
        description: "Stored; it will be pushed when it is due.",
        headers: { Location: { $ref: "#/components/headers/Location" } },
        content: json("PushedLater", one(samples.pushedLater)),
      },
      ...failing(400, 401, 403, 408, 413, 415, 429, 507),
      422: problem(
        "Well-formed, but out of bounds or not allowed; or the `Idempotency-Key` was used with another body or other options before.",
        examples({
          key: [
            "The key was used with another request",
            refusedBody("Idempotency-Key", "it came with another body or other options before"),
          ],
          type: ["A reserved type", refusedBody("type", "types that begin with pere. are reserved")],
        }),
      ),
    },
  },

  feed: {
    operationId: "followEvents",
    summary: "Follow a channel's events",
    tags: ["Events ↓"],
    description: `Opening a feed with a device's name enrols the device. It gets every event addressed to it that is still kept, has not expired, and has no final receipt from it, oldest
first, and then new events in order, without gaps or repeats. Without a name the feed is anonymous: it owes no receipts and starts at \`since\`.
With \`Last-Event-ID\` a feed continues from that position. An event pushed with \`remind\` may be sent again to a device that has sent no receipt for it; on an event stream a reminder has
no \`id:\`, because the position does not change.

An event that the device deferred comes again when the time has come, with its \`round\` and, on an event stream, without an \`id:\`. It comes again on every new feed until the device has
given a receipt for that round.

If an event is withdrawn, the reader that may have got it is told: \`pere.withdrawn\` with \`Withdrawn\` on an event stream, \`{"pere":"withdrawn", …}\` on a socket, \`withdrawn\` beside
the events of a long-poll. Who has not got the event gets neither.

With \`since=latest\` a feed without \`Last-Event-ID\` begins with the newest event of each \`key\` that is addressed to the reader, answered or not, and continues with all new events.
${transports(
  "On a feed with a device, send one receipt or an array of receipts without the device's name. The answer is " +
    '`{"pere":"receipts","recorded":n,"duplicate":n,"rejected":[…]}`, once they are durable, or `{"pere":"error","detail":"…"}`.',
)}`,
    parameters: [
      channels,
      { ...deviceHere("The device that follows.")[0]!, example: samples.device },
      deviceHere("")[1]!,
      ...start("now"),
      {
        name: "tags",
        in: "query",
        description:
          "The device's tags from here on, as `site:rome,beta`; a name alone has the value `1`. They replace all that it has; empty removes them. Only where there are no tokens: with a token, tags come from its claim `pere.tags`, and this option is rejected.",
        schema: { type: "string" },
      },
    ],
    responses: feedReplies("EventBatch", samples.eventBatch, samples.eventStream),
  },

  feedback: {
    operationId: "giveReceipts",
    summary: "Give receipts for events",
    tags: ["Receipts ↑"],
    description: `One receipt or an array of at most ${RECEIPTS_MAX}. A 2xx answer means that they are durable; repeating a receipt is always safe. A receipt for an unknown event, or for one that is not
addressed to the device, is rejected; the other receipts in the request still count.

A form is one receipt in the format of the first PERE clients.`,
    parameters: [
      channel,
      ...deviceHere("The device, if the receipts don't name it. They must not name another one."),
      lastEvent,
    ],
    requestBody: {
      required: true,
      content: {
        "application/json": {
          schema: ref("ReceiptDrafts"),
          examples: examples({
            one: ["One receipt", samples.receiptOne],
            many: ["Several, one of which is rejected", samples.receiptMany],
          }),
        },
        "application/x-www-form-urlencoded": {
          schema: ref("OldReceipt"),
          examples: examples({ form: ["The format of the first PERE clients", samples.receiptForm] }),
        },
      },
    },
    responses: {
      200: reply(
        "The result; at least one receipt was not rejected.",
        json(
          "Feedback",
          examples({
            one: ["One receipt", samples.feedbackOne],
            many: ["Several, one of which is rejected", samples.feedbackMany],
          }),
        ),
      ),
      ...failing(400, 401, 403, 408, 413, 415, 429, 507),
      422: problem(
        "Every receipt was rejected, or the JSON nests too deeply.",
        one(samples.allRejected),
        "FeedbackProblem",
      ),
    },
  },

  receipts: {
    operationId: "followReceipts",
    summary: "Follow a channel's receipts",
    tags: ["Receipts ↑"],
    description: `Receipts of devices as they arrive, and devices that are \`missing\` at a deadline. A feed of receipts has its own ids and resumes like a feed of events.

When an event becomes complete, its last receipt is followed by \`pere.complete\` with \`Complete\`: on a socket as \`{"pere":"complete", …}\`, in a long-poll in
\`complete\` beside the events. It is a separate log entry with its own id, so it is neither lost nor repeated when a follower resumes.
If an event becomes complete because a device was retired, it is sent without a receipt. Two more entries of this kind: \`pere.settled\` with \`Settled\`, for an event with a deadline that
is complete or whose deadline has passed, and \`pere.withdrawn\` with \`WithdrawnEvent\`, before the \`pere.complete\` of an event that was withdrawn.
${transports("Do not send receipts on it.")}`,
    parameters: [channels, ...start("earliest")],
    responses: feedReplies("ReceiptBatch", samples.receiptBatch, samples.receiptStream),
  },

  watch: {
    operationId: "watch",
    summary: "Watch activity",
    tags: ["Reading"],
    description: `An event stream for dashboards such as the console. It sends the current state and then the changes. Events' data and receipts' details are not included; read them when needed. It has
no positions, so it can't be resumed: after a reconnect it sends the current state again.

| event | data | when |
|---|---|---|
| \`pere.overview\` | \`Overview\` | first, and about once a second if something changed: the channels that the token may push to, and this instance's counters since it started |
| \`pere.trouble\` | \`Trouble\` | first, and at most once a second if something else needs attention: read \`/attention\` again |
| \`pere.changes\` | \`Changes\` | with \`channel\`, at most four times a second: new events, receipts and changed tallies. The first one has the channel's newest events |
| \`pere.away\` | \`Away\` | the store can't be read now; the next frame means that it is back |
| \`pere.bye\` | \`Bye\` | last: why the server ends the stream; reconnect after \`retry:\` |

A comment line keeps a quiet stream alive. If too much arrives at once, receipts are left out, the tallies of all newest events are sent, and \`more\` is set.`,
    parameters: [
      {
        name: "channel",
        in: "query",
        description: "The channel to watch in detail; without it only the overview is sent.",
        schema: ref("Channel"),
        example: samples.channel,
      },
    ],
    responses: {
      200: reply("The stream, until one side closes it.", {
        "text/event-stream": { schema: { type: "string" }, examples: one(samples.watchStream) },
      }),
      ...refusing(400, 401, 403),
    },
  },

  attention: {
    operationId: "readAttention",
    summary: "See who did not do it",
    tags: ["Reading"],
    description: `What needs attention in all channels that the token may push to: devices, events, hooks and channels, each list worst first. Only kept events count. Empty lists mean
that nothing is wrong.

\`failed\` and \`missing\` are the statuses of devices on events. \`overdue\` is a device that was addressed and has sent no final receipt for an event without a deadline that is older than
${OVERDUE_MS / 60_000} minutes. A device that was retired is left out.

Worst means: most of the three together, then the oldest, then by name. The totals cover everything that the token may see, whatever the \`limit\`.`,
    parameters: [
      {
        name: "limit",
        in: "query",
        description: "Maximum number of items in each list.",
        schema: { type: "integer", minimum: 1, maximum: PAGE_MAX, default: PAGE_DEFAULT },
      },
    ],
    responses: {
      200: reply("What needs attention now.", json("Attention", one(samples.attention))),
      ...failing(400, 401, 403, 422),
    },
  },

  channels: {
    operationId: "listChannels",
    summary: "List the channels",
    tags: ["Reading"],
    description:
      "All channels that the token may push to, by name. A channel without events, hooks or devices enrolled through the API is listed only while a device is connected.",
    parameters: [search("the channel's name"), ...page("a channel's name", ref("Channel"))],
    responses: {
      200: reply("A page of channels.", json("ChannelPage", one(samples.channels))),
      ...failing(400, 401, 422),
    },
  },

  deleteChannel: {
    operationId: "deleteChannel",
    summary: "Delete an empty channel",
    tags: ["Reading"],
    description:
      "A channel without devices, hooks, scheduled pushes to come and unexpired events: retire its devices, remove its hooks and cancel its scheduled pushes first. What is left of it is deleted with it: expired events, receipts, idempotency keys. Its followers are told of a gap. A later event creates the channel again; its ids never match earlier ones.",
    parameters: [channel],
    responses: { 204: { description: "The channel is deleted." }, ...failing(400, 401, 403, 404, 409, 507) },
  },

  events: {
    operationId: "listEvents",
    summary: "List a channel's kept events",
    tags: ["Reading"],
    description: "Oldest first or newest first, each with its tally.",
    parameters: [
      channel,
      {
        name: "order",
        in: "query",
        description: "Oldest first (`asc`) or newest first (`desc`). `after` continues in this order.",
        schema: { type: "string", enum: ["asc", "desc"], default: "asc" },
      },
      ...page("an event's id", ref("EventId")),
    ],
    responses: {
      200: reply("A page of events.", json("EventPage", one(samples.events))),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  event: {
    operationId: "readEvent",
    summary: "Read one event with its tally",
    tags: ["Reading"],
    description: "The event with its audience and tally. A push returns this URL as `Location`.",
    parameters: [channel, event],
    responses: { 200: reply("The event.", json("EventState", one(samples.state))), ...failing(400, 401, 403, 404) },
  },

  withdraw: {
    operationId: "withdrawEvent",
    summary: "Withdraw an event",
    tags: ["Events ↓"],
    description: `From the 2xx answer on, nobody is sent the event. Devices that may have it are told. Every device without a final receipt that is not missing is \`withdrawn\`; a final receipt that
still comes is recorded as late. A push that waits for the event is answered, and its deadline and reminders end. An event that is complete or was withdrawn before stays as it is.`,
    parameters: [
      channel,
      event,
      {
        name: "note",
        in: "query",
        description: `A note for people, at most ${NOTE_CHARACTERS_MAX} characters: devices get it with the withdrawal.`,
        schema: { type: "string", maxLength: NOTE_CHARACTERS_MAX },
      },
    ],
    responses: {
      200: reply("The event's state.", json("EventState", one(samples.state))),
      ...failing(400, 401, 403, 404, 507),
      422: problem(
        "The note is too long, or the id is not that of an event.",
        examples({
          note: ["A note that is too long", refusedBody("note", `at most ${NOTE_CHARACTERS_MAX} characters`)],
        }),
      ),
    },
  },

  again: {
    operationId: "pushEventAgain",
    summary: "Push an event again to those who did not do it",
    tags: ["Events ↓"],
    description: `Pushes the event's data and type as a new event to the devices that failed it, are missing on it or had it withdrawn, and answers as a push does. Retired devices are
left out. The new event has the id of this one in \`again\`. Options are those of a push, without \`type\` and without any that says to whom or when; none is taken over from the event.
At most ${TARGETS_MAX} devices can be pushed to again.`,
    get parameters(): Parameter[] {
      const left = ["channel", "type", "to", "at", "every", "tz"];
      return [channel, event, ...described.push.parameters.filter(({ name }) => !left.includes(name))];
    },
    responses: {
      200: {
        description: "The key was known: the event of the first request. Nothing new was stored.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Idempotent-Replayed": { $ref: "#/components/headers/Idempotent-Replayed" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: json("Pushed", one(samples.pushedAgain)),
      },
      201: {
        description: "Stored; delivery has begun.",
        headers: {
          Location: { $ref: "#/components/headers/Location" },
          "Preference-Applied": { $ref: "#/components/headers/Preference-Applied" },
        },
        content: json("Pushed", one(samples.pushedAgain)),
      },
      ...failing(400, 401, 403, 404, 415, 429, 507),
      422: problem(
        "No device is left, or too many; an option that can't be given here, or that is out of bounds; the id is not that of an event; or the `Idempotency-Key` was used with another request.",
        examples({
          nobody: [
            "Nobody is left",
            problemBody("refused", "Refused", 422, {
              detail: `event ${samples.event} can't be pushed again: no device failed it, is missing on it or had it withdrawn, apart from retired ones`,
            }),
          ],
        }),
      ),
    },
  },

  rows: {
    operationId: "listReceipts",
    summary: "List each device's status on one event",
    tags: ["Reading"],
    description: `One row per addressed device, by name, including devices that have sent no receipt. With \`Accept: text/csv\` or
\`Accept: application/x-ndjson\` it is an export of all rows, unless \`limit\` is given.`,
    parameters: [
      channel,
      event,
      {
        name: "status",
        in: "query",
        description: "Only devices with this status, or with one of several, separated by commas.",
        schema: { type: "array", items: ref("State"), minItems: 1 },
        style: "form",
        explode: false,
      },
      ...page("a device's name", ref("Device")).map((parameter) =>
        parameter.name === "limit"
          ? {
              ...parameter,
              description: `Maximum number of rows; by default ${PAGE_DEFAULT} in JSON, and all in an export.`,
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
    description: `By name, or in another order. A \`search\`, \`connected\` and \`where\` look at every device of the channel, \`sort=seen\` too; \`sort=pending\` also counts what each of them owes. So each page of
these costs as much as the channel is large: for a channel of very many devices read pages by name. In another order than by name \`next\` is a place in that order: a
device that moves across it between two pages is missed or repeated.`,
    parameters: [
      channel,
      search("a device's name"),
      {
        name: "connected",
        in: "query",
        description: "Only devices that have a feed open now (`true`), or that have none (`false`).",
        schema: { type: "string", enum: ["true", "false"] },
      },
      {
        name: "where",
        in: "query",
        description: "Only devices whose tags fit now: those that a push with this `where` would address.",
        schema: ref("Where"),
      },
      {
        name: "sort",
        in: "query",
        description:
          "By name; by the number of receipts they owe, most first (`pending`); or by their last sign of life, the oldest first, before them those that never gave one (`seen`).",
        schema: { type: "string", enum: DEVICE_ORDERS, default: "name" },
      },
      ...page("a device's name, or opaque in another order", { type: "string" }),
    ],
    responses: {
      200: reply("A page of devices.", json("DevicePage", one(samples.devices))),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  device: {
    operationId: "readDevice",
    summary: "Read one enrolled device",
    tags: ["Devices"],
    description: "The same as in the list.",
    parameters: [channel, device],
    responses: {
      200: reply("The device.", json("DeviceState", one(samples.devices.devices[0]))),
      ...failing(400, 401, 403, 404),
    },
  },

  history: {
    operationId: "listDeviceReceipts",
    summary: "List what a device was sent and said",
    tags: ["Devices"],
    description: `One row per kept event that is addressed to the device, newest first, including events that it has sent no receipt for. A device that is not enrolled has rows where an event names it,
or where it gave a final receipt before it left. 404 if it is not enrolled and has none.`,
    parameters: [channel, device, ...page("an event's id", ref("EventId"))],
    responses: {
      200: reply("A page of rows.", json("DeviceReceiptPage", one(samples.history))),
      ...failing(400, 401, 403, 404, 422),
    },
  },

  enrol: {
    operationId: "enrolDevice",
    summary: "Enrol a device",
    tags: ["Devices"],
    description:
      "From now on events are addressed to the device, even before it connects. A device that opens a feed with its name enrols itself. Given tags replace all that it has; without a body they stay as they are.",
    parameters: [channel, device],
    requestBody: { content: json("TagBody", one(samples.tagBody)) },
    responses: {
      200: reply("It was enrolled already.", json("Enrolled", one(samples.enrolled))),
      201: reply("It is enrolled now.", json("Enrolled", one(samples.enrolled))),
      ...failing(400, 401, 403, 408, 413, 415, 422, 507),
    },
  },

  tag: {
    operationId: "tagDevice",
    summary: "Change some of a device's tags",
    tags: ["Devices"],
    description:
      "A merge patch (RFC 7396): tags that are named get a new value, or are removed with `null`; the others stay. The device must be enrolled. Tags end when it is retired.",
    parameters: [channel, device],
    requestBody: {
      required: true,
      content: {
        "application/merge-patch+json": { schema: ref("TagPatch"), examples: one(samples.tagPatch) },
        "application/json": { schema: ref("TagPatch"), examples: one(samples.tagPatch) },
      },
    },
    responses: {
      200: reply("Its tags now.", json("Enrolled", one(samples.tagged))),
      ...failing(400, 401, 403, 404, 408, 413, 415, 422, 507),
    },
  },

  retire: {
    operationId: "retireDevice",
    summary: "Retire a device",
    tags: ["Devices"],
    description:
      "Later events are not addressed to the device, and neither are those without its final receipt any more. Events that become complete as a result are reported as complete. Its open feeds end with `expired`.",
    parameters: [channel, device],
    responses: { 204: { description: "It is retired." }, ...failing(400, 401, 403, 404, 507) },
  },

  scheduled: {
    operationId: "listScheduled",
    summary: "List a channel's scheduled pushes",
    tags: ["Events ↓"],
    description: "Oldest first. One that was pushed at its only time is listed for 7 days more.",
    parameters: [channel, ...page("the id of a scheduled push", ref("ScheduleId"))],
    responses: {
      200: reply("The scheduled pushes.", json("ScheduledPage", one(samples.scheduled))),
      ...failing(400, 401, 403, 422),
    },
  },

  schedule: {
    operationId: "readScheduled",
    summary: "Read a scheduled push",
    tags: ["Events ↓"],
    description: "With the event's data and its options.",
    parameters: [channel, scheduledId],
    responses: {
      200: reply("The scheduled push.", json("ScheduledPush", one(samples.scheduledPush))),
      ...failing(400, 401, 403, 404),
    },
  },

  cancel: {
    operationId: "cancelScheduled",
    summary: "Cancel a scheduled push",
    tags: ["Events ↓"],
    description: "After the answer nothing more is pushed for it. What it has pushed stays.",
    parameters: [channel, scheduledId],
    responses: { 204: { description: "It is cancelled." }, ...failing(400, 401, 403, 404, 507) },
  },

  hooks: {
    operationId: "listHooks",
    summary: "List a channel's hooks",
    tags: ["Hooks"],
    description:
      "By name, each with its last successful call and its pending and given-up calls. Secrets are not shown.",
    parameters: [channel],
    responses: { 200: reply("The hooks.", json("HookList", one(samples.hooks))), ...failing(400, 401, 403) },
  },

  putHook: {
    operationId: "putHook",
    summary: "Create or change a hook",
    tags: ["Hooks"],
    description: `From now on PERE calls the URL by POST with a \`HookCall\`, signed as described by [Standard Webhooks](https://www.standardwebhooks.com), whose libraries can verify it. A
new hook starts with receipts recorded after it was stored; a changed one continues from its position and is enabled again. A channel has at most ${HOOKS_MAX} hooks.

A 2xx answer within 15 seconds is success; anything else, including a redirect, is a failure. A failed call is retried after 5 seconds, 5 minutes, 30 minutes, 2, 5 and 10 hours, with the same
\`webhook-id\` and body, independently of new calls. An answer's \`Retry-After\` delays retries and new calls, up to a day. After the last attempt the call is given up; it stays in the list and can be retried. Every receipt is sent at least once; after failures it may be sent twice, and out of
order. 410 disables the hook.

When the secret changes, \`webhook-signature\` has one signature per secret, separated by a space: on calls from before the change as long as they are retried, on new ones for a day.

PERE only calls public addresses and those listed in \`PERE_HOOKS_ALLOW\`; a NAT64 address is checked by the IPv4 address in it. The example's host has no address, so that trying it out contacts nobody:
it is refused as it is. Replace it with your own.`,
    parameters: [channel, hookName],
    requestBody: {
      required: true,
      content: {
        "application/json": {
          schema: ref("HookDraft"),
          examples: examples({ one: ["With your own secret; replace the URL with your own", samples.hookDraft] }),
        },
      },
    },
    responses: {
      200: reply("The hook existed and was changed.", json("HookStored", one(samples.hook))),
      201: reply("The hook was created.", json("HookStored", one(samples.hook))),
      ...failing(400, 401, 403, 408, 413, 415, 422, 507),
    },
  },

  dropHook: {
    operationId: "dropHook",
    summary: "Remove a hook",
    tags: ["Hooks"],
    description: "Its pending calls are removed too.",
    parameters: [channel, hookName],
    responses: { 204: { description: "The hook was removed." }, ...failing(400, 401, 403, 404, 507) },
  },

  retryHook: {
    operationId: "retryHook",
    summary: "Retry undelivered calls",
    tags: ["Hooks"],
    description:
      "Given-up calls restart their schedule, pending calls are retried now, and a disabled hook is enabled.",
    parameters: [channel, hookName],
    responses: {
      200: reply("They are being sent.", json("Retried", one(samples.retried))),
      ...failing(400, 401, 403, 404, 415, 507),
    },
  },

  testHook: {
    operationId: "testHook",
    summary: "Call a hook's URL once, as a test",
    tags: ["Hooks"],
    description:
      "One call with the body type `pere.test`, signed and limited as others are, made now and not repeated; also if the hook is disabled. Answers when the receiver has answered, or after 15 seconds. It changes nothing: it is not counted, and a 410 does not disable the hook.",
    parameters: [channel, hookName],
    responses: {
      200: reply("The call was made, or could not be made: `error` says why.", json("HookTested", one(samples.tested))),
      ...failing(400, 401, 403, 404, 409, 415),
    },
  },

  health: {
    operationId: "health",
    summary: "Is the process alive?",
    tags: ["Operation"],
    description: "For a supervisor that restarts an unresponsive process. Does not check the store.",
    security: [],
    responses: { 200: reply("The process is alive.", json("Health", one(samples.health))) },
  },

  ready: {
    operationId: "ready",
    summary: "Can it serve?",
    tags: ["Operation"],
    description:
      "For a load balancer: the store accepts changes and PERE is not shutting down. The answer says how durable a 2xx answer to a push is. 503, with the reason in `detail`, also while pushes and receipts are refused: a full disk (they get 507), a file that was removed or moved, a Redis that refuses writes.",
    security: [],
    responses: { 200: reply("It can serve requests.", json("Readiness", one(samples.readiness))), ...failing() },
  },

  metrics: {
    operationId: "metrics",
    summary: "Read the metrics",
    tags: ["Operation"],
    description:
      "In the text format of Prometheus. If tokens are required, the token needs `push` on `*`. No series is labelled by device; channels are labelled only if `PERE_METRICS_CHANNELS` names them.",
    responses: {
      200: {
        description: "All series of this instance.",
        content: { "text/plain": { schema: { type: "string" }, examples: one(samples.metrics) } },
      },
      ...refusing(400, 401, 403),
    },
  },
} satisfies Record<string, Operation>;

// Elysia's types know OpenAPI 3.0 only, but it passes operations on unchanged.

/** The `detail` option for each route of `index.ts`. */
export const operations = described as unknown as Record<keyof typeof described, DocumentDecoration>;

// ------------------------------------------------------------------------------------------------------------------- document

const introduction = `Push events to devices over plain HTTP, and see each device's receipt.

A channel is two logs, each written by POST and followed by GET: by event stream, WebSocket or long-poll, at the same URL.

| log | write | follow |
|---|---|---|
| events ↓ | \`POST /push/{channel}\` | \`GET /feed/{channel}\` (devices) |
| receipts ↑ | \`POST /feedback/{channel}\` | \`GET /feedback/{channel}\` (publishers) |

[/asyncapi.json](asyncapi.json) describes the messages on event streams and WebSockets, with the same schemas.

**Tokens**: a token is a JWT, signed with the service's secret or a key of its key set. Its \`sub\` is the bearer's device, which a request can't override, or any text if the bearer is not a device. \`exp\` is when the token expires; feeds
opened with it end then. \`pere\` is what it allows: \`{"push":["orders","shop.*"],"feed":["orders"]}\`. \`push\` on a channel allows everything a publisher does; \`feed\` allows following it and sending receipts. A request for several
channels needs the right on each. \`*\` alone matches every channel, a trailing \`.*\` every channel with that prefix. Send the token in \`Authorization\`, in the cookie, in the query, or beside \`pere.v1\` in a WebSocket's subprotocols
as \`pere.token.<jwt>\`, in one place only. A service without keys on a loopback address is for its own machine: it ignores tokens and answers requests through a proxy with 403.

**Browsers**: requests from pages of other origins get 403, including WebSocket handshakes, unless their origin is configured. A \`Host\` that can't be this service gets 400 or 403, except at \`/health\` and \`/ready\`.

**Errors** are problem documents (RFC 9457). An unknown or repeated query option gets 400; pages, \`/health\` and \`/ready\` ignore unknown options. An unknown path gets 404; a method that the path does not support gets 405, with \`Allow\`.

**The examples** can be tried from top to bottom: push an order, follow, send receipts, read the result. On the page at
\`/swagger\` their event ids are replaced by the id of the last event pushed from it.`;

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
      { name: "Reading", description: "Channels, events and their receipts" },
      { name: "Devices", description: "Enrolled devices" },
      { name: "Hooks", description: "URLs that are called when there are receipts" },
      { name: "Operation", description: "For operators" },
    ],
    security: [{ bearer: [] }, { cookie: [] }, { query: [] }],
    components: {
      schemas,
      responses: Object.fromEntries(Object.values(failures)),
      headers: {
        Location: {
          description: "The URL of the event and its receipts; on a push of a single event.",
          schema: { type: "string", format: "uri-reference" },
        },
        "Idempotent-Replayed": {
          description: "A repeated answer to a known `Idempotency-Key`.",
          schema: { type: "string", const: "true" },
        },
        "Preference-Applied": {
          description:
            "The answer was sent when the event was complete or the time was over. Absent without `Prefer: wait`, or if too many pushes are waiting or the tally can't be read now: then the answer was sent without waiting, and the event is stored. If the channel's log is lost or restored meanwhile, the answer is 503.",
          schema: { type: "string", const: "wait" },
        },
        "Retry-After": { description: "Seconds.", schema: { type: "string", pattern: "^[0-9]+$" } },
        RateLimit: {
          description: "The state of a limit: what remains, and the seconds until it is reset.",
          schema: { type: "string", pattern: '^"[a-z]+";r=\\d+;t=\\d+$' },
        },
        "RateLimit-Policy": {
          description: "The limit: how many per number of seconds.",
          schema: { type: "string", pattern: '^"[a-z]+";q=\\d+;w=\\d+$' },
        },
        "WWW-Authenticate": {
          description:
            "What was wrong with the token (RFC 6750, section 3); without a token, only that one is required.",
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
          description:
            "The same token, for browsers: `/?token=…` puts it there. A token in another place takes precedence.",
        },
        query: {
          type: "apiKey",
          in: "query",
          name: "token",
          description: "The same token, for clients that can't set headers, such as EventSource.",
        },
      },
    },
  };
  return body as unknown as NonNullable<ElysiaSwaggerConfig["documentation"]>;
};
