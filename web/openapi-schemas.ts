/**
 * The JSON Schemas (2020-12, as used by OpenAPI 3.1) of all requests and answers, and the examples: a channel `orders`, a till that prints what it
 * gets, and the three orders of one morning.
 *
 * The examples are real. `tests/openapi-answers.test.ts` starts a service, sends every request example in order and compares every answer example with the
 * actual answer, character by character. Two services differ only in the epoch, the first half of an id. The examples use `SAMPLE_EPOCH`, and
 * `swagger.js` replaces it by a real id when an example is tried.
 *
 * Schemas of answers allow additional members: a later version may add some.
 */
import {
  CHANNEL,
  CHANNELS_MAX,
  DEVICE,
  POSITION as positionPattern,
  DETAIL_BYTES_MAX,
  EVENT_BYTES_MAX,
  EVENT_SOURCE_TYPES,
  iso,
  LINES_MAX,
  AFTER_SECONDS_DEFAULT,
  AFTER_SECONDS_MAX,
  AFTER_SECONDS_MIN,
  ATTEMPTS_MAX,
  ATTEMPTS_MIN,
  END_REASONS,
  EVENT_KEY,
  LATE_REASONS,
  NOTE_CHARACTERS_MAX,
  RECEIPTS_MAX,
  type State,
  STATUSES,
  TO_MAX,
} from "../engine/model.ts";
import { DEFAULT_HOOK_KINDS, HOOK_KINDS, HOOKS_MAX, TRIES_MAX } from "../engine/store.ts";
import { TAG, TAGS_MAX } from "../engine/tags.ts";

/** A JSON Schema. */
export interface Schema {
  readonly [keyword: string]: unknown;
}

/** A schema of this file, by its name. */
export const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` });

/** Bytes in words. */
export const kib = (bytes: number): string =>
  bytes % 1024 ** 2 === 0 ? `${bytes / 1024 ** 2} MiB` : `${bytes / 1024} KiB`;

// --------------------------------------------------------------------------------------------------------------- schemas

const object = (properties: Record<string, Schema>, optional: readonly string[] = [], more: Schema = {}): Schema => ({
  type: "object",
  properties,
  required: Object.keys(properties).filter((name) => !optional.includes(name)),
  ...more,
});
const array = (items: Schema, more: Schema = {}): Schema => ({ type: "array", items, ...more });
const orNull = (name: string): Schema => ({ oneOf: [ref(name), { type: "null" }] });
const count = (description: string): Schema => ({ type: "integer", minimum: 0, description });
const orNullCount: Schema = { type: ["integer", "null"], minimum: 0 };
const next = (what: string): Schema => ({
  type: ["string", "null"],
  description: `What to pass as \`after\` for the next page: ${what}. \`null\`: this was the last page.`,
});
const anyJson = (description: string): Schema => ({ description });

const CHANNEL_NAME = CHANNEL.source.slice(1, -1);
const POSITION = positionPattern.source.slice(1, -1);
const POSITIONS = `${POSITION}(\\.${POSITION}){0,${CHANNELS_MAX - 1}}`;

/** All states, in the order in which a tally shows them. */
const STATES: readonly State[] = [
  ...(["pending", "received", "working", "deferred"] as const),
  ...(["done", "failed", "missing", "withdrawn"] as const),
];

const problem = {
  type: {
    type: "string",
    format: "uri",
    description: "The kind of problem: `urn:pere:` and one word.",
    examples: ["urn:pere:malformed"],
  },
  title: { type: "string", description: "The kind of problem, for people." },
  status: { type: "integer", minimum: 400, maximum: 599, description: "The HTTP status." },
  detail: { type: "string", description: "What went wrong this time, in a sentence." },
  errors: array(ref("Fault"), { description: "The invalid fields, if any." }),
};
const feedback = {
  recorded: count("Receipts that advanced their device's status on their event."),
  duplicate: count(
    "Receipts that changed nothing: repeated, or behind an earlier one. Senders can treat them as recorded.",
  ),
  rejected: array(ref("Rejection"), { description: "Rejected receipts. Do not send them again." }),
  late: array(ref("LateReceipt"), {
    description: "Final receipts that came late, also if they only repeat one that did. Absent if there are none.",
  }),
};
const eventHead = {
  id: ref("EventId"),
  channel: ref("Channel"),
  seq: ref("Seq"),
  at: ref("Time"),
  type: ref("EventType"),
};
const deadlineTime = { ...ref("Time"), description: "When every addressed device owes a final receipt." };
const eventKey = { ...ref("EventKey"), description: "The key under which a later event supersedes it, if any." };
const tagsNow = { ...ref("Tags"), description: "The tags that the device has now; none once it is retired." };
/** Why an event was withdrawn. */
const ending = {
  reason: {
    type: "string",
    enum: END_REASONS,
    description: "`withdrawn`: its publisher took it back. `superseded`: a newer event has its key.",
  },
  by: { ...ref("EventId"), description: "The event that superseded it." },
  note: {
    type: "string",
    maxLength: NOTE_CHARACTERS_MAX,
    description: "What its publisher says about it, for people.",
  },
};
const againOf = { ...ref("EventId"), description: "The event that was pushed again as this one, if any." };
const scheduledFor = { ...ref("ScheduleId"), description: "The scheduled push that it was pushed for, if any." };
const scheduled = {
  id: ref("ScheduleId"),
  next: { ...orNull("Time"), description: "When it is due next; `null`: it is done." },
  every: { type: ["string", "null"], description: "Its cron expression; `null`: it is pushed once." },
  tz: { type: ["string", "null"], description: "The time zone of the expression." },
  last: { ...orNull("EventId"), description: "The event that was pushed for it last." },
  error: { type: "string", description: "Why nothing was pushed when it was last due." },
};
const warnings = array(
  { type: "string" },
  {
    minItems: 1,
    description:
      "Only if something may be wrong, in sentences: named devices that are not enrolled, the first ten by name, or that nobody was addressed.",
  },
);
/** Additional members of the answer to a push that waits. */
const outcome = {
  receipts: { ...ref("Tally"), description: "Only with `Prefer: wait`." },
  complete: {
    type: "boolean",
    description:
      "Only with `Prefer: wait`. `true`: every addressed device sent its final receipt before this answer, or the event was withdrawn.",
  },
};
const receiptBody = {
  detail: anyJson("The device's detail, any JSON; `null` if it sent none."),
  at: ref("Time"),
  deviceAt: orNull("Time"),
  late: { type: "boolean", description: "It arrived after the event's deadline, or after the event was withdrawn." },
  round: {
    type: "integer",
    minimum: 1,
    description: "How often the event was sent to the device: grows each time that a deferral ends.",
  },
  attempt: count("The device's failures so far."),
};
const due = {
  due: { ...ref("Time"), description: "When a deferred event is sent again. Absent once its next round has begun." },
};
const batch = (items: Schema, more: Record<string, Schema> = {}): Schema =>
  object(
    {
      events: array(items, { description: "Oldest first; empty if nothing arrived in time." }),
      last: ref("Position"),
      gaps: array(ref("Gap"), { description: "Only if requested entries are no longer kept." }),
      ...more,
    },
    ["gaps", ...Object.keys(more)],
  );

const troubles = {
  failed: count("Events that devices failed."),
  missing: count("Events that devices are missing on."),
  overdue: count("Events without a deadline that devices have owed a final receipt for too long."),
};

const hook = {
  channel: ref("Channel"),
  name: ref("HookName"),
  url: { type: "string", format: "uri" },
  on: array(ref("HookKind")),
  createdAt: ref("Time"),
  disabled: { type: ["string", "null"], description: "Why the hook is disabled, in a sentence." },
};
const hookCall = (types: readonly string[], data: Schema, description: string): Schema =>
  object({ type: { type: "string", enum: types }, timestamp: ref("Time"), data }, [], { description });

/** `components.schemas` of the document. */
export const schemas = {
  Channel: {
    type: "string",
    pattern: CHANNEL.source,
    description: "A channel's name. A channel is created by its first use.",
  },
  Device: {
    type: "string",
    pattern: DEVICE.source,
    description: "A device's name: a UUID, a serial number, an IMEI or a MAC address all fit.",
  },
  Tags: {
    type: "object",
    propertyNames: { pattern: TAG.source },
    additionalProperties: { type: "string", pattern: TAG.source },
    maxProperties: TAGS_MAX,
    description: "A device's tags: names with values.",
  },
  TagBody: object({ tags: ref("Tags") }, ["tags"], { additionalProperties: false }),
  TagPatch: object(
    {
      tags: {
        type: ["object", "null"],
        propertyNames: { pattern: TAG.source },
        additionalProperties: { type: ["string", "null"], pattern: TAG.source },
        description: "Tags with their new values; `null` removes a tag. `null` instead of the object removes all.",
      },
    },
    [],
    { additionalProperties: false },
  ),
  Where: {
    type: "string",
    minLength: 1,
    description: "Terms on a device's tags, separated by commas, that must all hold: `site:rome|milan,!beta`.",
  },
  Channels: {
    type: "string",
    pattern: `^${CHANNEL_NAME}(,${CHANNEL_NAME}){0,${CHANNELS_MAX - 1}}$`,
    description: `A channel's name, or several separated by commas; at most ${CHANNELS_MAX}.`,
  },
  EventType: {
    type: "string",
    pattern: `^(?!pere\\.|(?:${EVENT_SOURCE_TYPES.join("|")})$)[A-Za-z0-9._-]{1,64}$`,
    description:
      "The event's name on event streams. The prefix `pere.` is reserved for the server; `open`, `message` and `error` are reserved by EventSource.",
  },
  EventId: {
    type: "string",
    pattern: `^${POSITION}$`,
    description: "The id of an event or a receipt. Opaque; valid in one channel only.",
  },
  Position: {
    type: "string",
    pattern: `^${POSITIONS}$`,
    description: "How far a feed was read, one id per channel. Opaque; pass it back unchanged as `Last-Event-ID`.",
  },
  Since: {
    type: "string",
    pattern: `^(now|earliest|latest|${POSITIONS})$`,
    default: "now",
    description:
      "`now`, `earliest`, or a position. On a feed of events also `latest`: the newest event of each key first.",
  },
  EventKey: {
    type: "string",
    pattern: EVENT_KEY.source,
    description: "What an event is about, for example `config`: a later event with the same key supersedes it.",
  },
  Seq: {
    type: "integer",
    minimum: 1,
    description: "Grows by exactly 1 with each event of the channel, and with each withdrawal.",
  },
  Time: { type: "string", format: "date-time", description: "ISO 8601, UTC, milliseconds." },
  Data: anyJson(`The event's data: one JSON value of any kind, at most ${kib(EVENT_BYTES_MAX)} as text.`),

  ReceiptStatus: {
    type: "string",
    enum: STATUSES,
    description:
      "A status only advances. `deferred`: not now; send the event again after `after` seconds. `done` and `failed` are final, and the first final status stays.",
  },
  State: {
    type: "string",
    enum: STATES,
    description:
      "A device's status on an event: that of its last receipt; `pending` before the first; `missing` if the deadline passed without its final one; `withdrawn` if the event was withdrawn without its final one.",
  },

  Audience: object({
    addressed: count("Addressed devices: those enrolled when the event was pushed, or those in `to`."),
    connected: count("How many of them have a feed open now."),
  }),
  Tally: object(
    Object.fromEntries(STATES.map((state) => [state, count(`Devices with the status \`${state}\`.`)])),
    [],
    {
      description:
        "The number of addressed devices with each status; adds up to `addressed`. `missing`: the deadline passed without their final receipt. `withdrawn`: the event was withdrawn without it.",
    },
  ),

  Pushed: object({ ...eventHead, audience: ref("Audience"), warnings, ...outcome }, [
    "type",
    "warnings",
    ...Object.keys(outcome),
  ]),
  PushedMany: object(
    {
      events: array(
        object({ id: ref("EventId"), seq: ref("Seq"), at: ref("Time"), ...outcome }, Object.keys(outcome)),
        {
          maxItems: LINES_MAX,
        },
      ),
      audience: ref("Audience"),
      warnings,
    },
    ["warnings"],
  ),
  PushedLater: object(
    { id: ref("ScheduleId"), channel: ref("Channel"), next: { ...orNull("Time"), description: "When it is due." } },
    [],
    { description: "The answer to a push with `at` or `every`." },
  ),
  ScheduleId: { type: "string", pattern: "^s-[0-9a-z]{17}$", description: "The id of a scheduled push." },
  Scheduled: object(scheduled, ["error"], { description: "A scheduled push." }),
  ScheduledPush: object(
    {
      ...scheduled,
      options: {
        type: "object",
        additionalProperties: { type: "string" },
        description: "The query options of the push, by name, as they were given; without `at`, `every` and `tz`.",
      },
      data: ref("Data"),
    },
    ["error"],
    { description: "A scheduled push with its event." },
  ),
  ScheduledPage: object({ scheduled: array(ref("Scheduled")), next: next("an id") }),
  Event: object(
    {
      ...eventHead,
      deadline: deadlineTime,
      scheduled: scheduledFor,
      again: againOf,
      key: eventKey,
      round: {
        type: "integer",
        minimum: 2,
        description: "Only if the device deferred the event: how often it was sent. Receipts should repeat it.",
      },
      data: ref("Data"),
    },
    ["type", "deadline", "scheduled", "again", "key", "round"],
    {
      description: "An event as devices get it.",
    },
  ),
  EventState: object(
    {
      ...eventHead,
      deadline: deadlineTime,
      scheduled: scheduledFor,
      again: againOf,
      expiresAt: ref("Time"),
      key: eventKey,
      remind: { type: "number", description: "Seconds between reminders, if any." },
      attempts: {
        type: "integer",
        minimum: ATTEMPTS_MIN,
        maximum: ATTEMPTS_MAX,
        description: "How often a device may try, if more than once.",
      },
      to: array(ref("Device"), {
        maxItems: TO_MAX,
        description: `The devices that the event names, if any; absent if they are more than ${TO_MAX}, as they can be if it was pushed again.`,
      }),
      where: { ...ref("Where"), description: "Which devices it is for, if it was pushed with `where`." },
      withdrawn: object({ at: ref("Time"), ...ending }, ["by", "note"], {
        description: "How the event was withdrawn, if it was.",
      }),
      audience: ref("Audience"),
      receipts: ref("Tally"),
      complete: {
        type: "boolean",
        description: "Every addressed device has sent its final receipt, or the event was withdrawn.",
      },
      settled: { type: "boolean", description: "It is complete, or its deadline has passed." },
      data: ref("Data"),
    },
    ["type", "deadline", "scheduled", "again", "key", "expiresAt", "remind", "attempts", "to", "where", "withdrawn"],
    { description: "An event as its publisher gets it." },
  ),
  EventBatch: batch(ref("Event"), {
    withdrawn: array(ref("Withdrawn"), { description: "Events that were withdrawn, if any." }),
    shared: ref("Shared"),
  }),
  Withdrawn: object(
    {
      ...{ id: ref("EventId"), channel: ref("Channel"), seq: ref("Seq"), at: ref("Time") },
      withdrawn: { ...ref("EventId"), description: "The event that was withdrawn." },
      ...ending,
    },
    ["by", "note"],
    {
      description:
        "`pere.withdrawn` on a feed of events: an event was withdrawn. It goes to devices that may have got the event. It is an entry of the log with an id of its own, but not an event: no receipt is owed for it.",
    },
  ),

  Ready: object(
    {
      device: orNull("Device"),
      channels: {
        type: "object",
        additionalProperties: ref("EventId"),
        description: "The position that each channel starts after.",
      },
    },
    [],
    { description: "`pere.ready`: first on every feed." },
  ),
  Gap: object({ channel: ref("Channel"), after: ref("EventId"), from: ref("EventId") }, [], {
    description:
      "`pere.gap`: the requested entries after `after` and before `from` are no longer kept, or never existed in this log.",
  }),
  Shared: object(
    {
      device: ref("Device"),
      addresses: array(
        { type: "string" },
        {
          description: "The addresses it is connected from: IPv4 addresses, and IPv6 networks such as `2001:db8::/64`.",
        },
      ),
    },
    [],
    {
      description:
        "`pere.shared`: the device has feeds open from several addresses at once; two machines may have the same name. Sent once to each of its feeds.",
    },
  ),
  Bye: object(
    {
      reason: {
        type: "string",
        enum: ["drain", "renew", "expired", "busy"],
        description:
          "`drain`: PERE is shutting down. `renew`: the stream is due for renewal; reconnect. `expired`: the device was retired. " +
          "`busy`: a temporary problem.",
      },
    },
    [],
    { description: "`pere.bye`: last on a feed that the server ends." },
  ),

  ReceiptDraft: object(
    {
      event: ref("EventId"),
      device: ref("Device"),
      status: ref("ReceiptStatus"),
      detail: anyJson(`Any JSON of at most ${kib(DETAIL_BYTES_MAX)}, for the publisher.`),
      at: { ...ref("Time"), description: "By the device's clock; stored in addition to the server's time." },
      after: {
        type: "number",
        minimum: AFTER_SECONDS_MIN,
        maximum: AFTER_SECONDS_MAX,
        description: `Only with \`deferred\` and \`failed\`: seconds until the event is sent again. By default ${AFTER_SECONDS_DEFAULT} for \`deferred\`; for a \`failed\` with attempts left 30 seconds, doubled each time, at most an hour.`,
      },
      round: {
        type: "integer",
        minimum: 1,
        description: "The round that the event came with, 1 if it had none. By default the current one.",
      },
      retry: {
        type: "boolean",
        default: true,
        description: "Only with `failed`: `false` makes it final although there are attempts left.",
      },
    },
    ["device", "detail", "at", "after", "round", "retry"],
    {
      description:
        "A device's receipt for an event. `device` may be omitted if the query or the header `device` names it.",
    },
  ),
  ReceiptDrafts: {
    oneOf: [ref("ReceiptDraft"), array(ref("ReceiptDraft"), { maxItems: RECEIPTS_MAX })],
    description: `One receipt, or an array of at most ${RECEIPTS_MAX}.`,
  },
  OldReceipt: object(
    {
      id: { ...ref("EventId"), description: "The event's id; may be in the header `Last-Event-ID` instead." },
      device: { ...ref("Device"), description: "May be in the query or in the header `device` instead." },
      status: {
        type: "string",
        description:
          "One of the five statuses. `ok` and `rx ok` count as `done`; any other text counts as `received` and is kept in `detail`.",
      },
    },
    ["id", "device", "status"],
    { description: "A receipt in the format of the first PERE clients." },
  ),
  Rejection: object({
    index: count("Its index in the request, from 0."),
    event: { type: ["string", "null"], description: "The event it named." },
    reason: { type: "string", description: "Why, in a sentence." },
  }),
  LateReceipt: object({
    index: count("Its index in the request, from 0."),
    event: ref("EventId"),
    reason: {
      type: "string",
      enum: LATE_REASONS,
      description: "`missing`: the deadline had passed. The others: the event was withdrawn for this reason.",
    },
  }),
  Feedback: object(feedback, ["late"]),
  FeedbackProblem: object({ ...problem, ...feedback }, ["errors", ...Object.keys(feedback)], {
    description: "A problem; if every receipt was rejected, with the members of `Feedback`.",
  }),
  Receipt: object(
    {
      id: ref("EventId"),
      event: ref("EventId"),
      channel: ref("Channel"),
      device: ref("Device"),
      status: {
        type: "string",
        enum: [...STATUSES, "missing"],
        description:
          "`missing` is set by the server at the deadline. `deferred` is also a `failed` that will be tried again.",
      },
      ...receiptBody,
    },
    [],
    { description: "A receipt as publishers get it. `id` is its id in the log of receipts." },
  ),
  Complete: object(
    {
      id: ref("EventId"),
      event: ref("EventId"),
      channel: ref("Channel"),
      at: ref("Time"),
      receipts: ref("Tally"),
      complete: { type: "boolean", const: true },
    },
    ["id"],
    {
      description:
        "`pere.complete`: every addressed device has sent its final receipt for this event, or it was withdrawn. `id` is its id in the log of receipts: a reader that resumes after it does not get it again. A hook's call has none.",
    },
  ),
  Settled: object(
    {
      ...{ id: ref("EventId"), event: ref("EventId"), channel: ref("Channel"), at: ref("Time") },
      ...{ receipts: ref("Tally"), complete: { type: "boolean", description: "It is complete." } },
    },
    [],
    {
      description:
        "`pere.settled`: an event with a deadline is complete, or its deadline has passed. Sent once, after `pere.complete` or the last `missing`.",
    },
  ),
  WithdrawnEvent: object(
    {
      ...{ id: ref("EventId"), event: ref("EventId"), channel: ref("Channel"), at: ref("Time") },
      ...ending,
      receipts: ref("Tally"),
    },
    ["by", "note"],
    {
      description:
        "`pere.withdrawn` on a feed of receipts: an event was withdrawn, and with it all devices without a final receipt that are not missing. `pere.complete` follows.",
    },
  ),
  ReceiptBatch: batch(ref("Receipt"), {
    complete: array(ref("Complete"), { description: "Events that became complete, if any." }),
    settled: array(ref("Settled"), { description: "Events that became settled, if any." }),
    withdrawn: array(ref("WithdrawnEvent"), { description: "Events that were withdrawn, if any." }),
  }),

  ChannelState: object({
    channel: ref("Channel"),
    events: count("Kept events."),
    devices: count("Enrolled devices."),
    connected: count("Devices with a feed open now."),
    last: orNull("EventId"),
  }),
  ChannelPage: object({ channels: array(ref("ChannelState")), next: next("a channel's name") }),
  Overview: object(
    {
      channels: array(
        object({
          channel: ref("Channel"),
          events: count("Kept events."),
          devices: count("Enrolled devices."),
          connected: count("Devices with a feed open now."),
          last: orNull("EventId"),
          open: {
            ...orNullCount,
            description:
              "Final receipts still owed for its newest events, without `missing` ones; `null` until they are counted.",
          },
          missing: { ...orNullCount, description: "Devices with the status `missing` on its newest events." },
        }),
      ),
      more: { type: "boolean", description: "There are more channels; `GET /channels` lists all of them." },
      totals: {
        oneOf: [
          object({
            channels: count("All channels that the token may see."),
            devices: count("Their enrolled devices; one in two channels counts twice."),
            connected: count("How many of them have a feed open."),
            at: {
              ...orNull("Time"),
              description:
                "When they were counted; `null`: now. While there are more channels than are listed, they are counted every few seconds.",
            },
          }),
          { type: "null" },
        ],
        description: "Totals of all channels; `null`: they are being counted.",
      },
      counts: object({
        pushes: count("Stored events."),
        deliveries: count("Events written to followers, once per follower."),
        receipts: object(
          Object.fromEntries(
            STATUSES.map((status) => [status, count(`Receipts that advanced a device to \`${status}\`.`)]),
          ),
        ),
        latency: {
          oneOf: [
            object({
              p50: { type: "number", description: "Seconds." },
              p99: { type: "number", description: "Seconds." },
            }),
            { type: "null" },
          ],
          description: "From a push to its final receipts, over about the last ten seconds; `null`: there were none.",
        },
      }),
    },
    [],
    {
      description:
        "`pere.overview`: the channels, by name, and this instance's counters since it started. Instances that share a store have separate counters.",
    },
  ),
  Changes: object(
    {
      channel: ref("Channel"),
      reset: {
        type: "boolean",
        description: "Discard what was shown of this channel before; this is its current state.",
      },
      more: {
        type: "boolean",
        description: "There are more changes than these: reload single devices and older events that you show.",
      },
      events: array(
        object({
          id: ref("EventId"),
          seq: count("Its number in the channel."),
          at: ref("Time"),
          type: orNull("EventType"),
          deadline: orNull("Time"),
          key: orNull("EventKey"),
          withdrawn: {
            oneOf: [{ type: "string", enum: END_REASONS }, { type: "null" }],
            description: "Why it was withdrawn; `null`: it was not.",
          },
          addressed: count("Number of addressed devices."),
          receipts: ref("Tally"),
          complete: {
            type: "boolean",
            description: "Every addressed device has sent its final receipt, or the event was withdrawn.",
          },
        }),
        { description: "New events, oldest first." },
      ),
      withdrawn: array(ref("EventId"), { description: "Events that were withdrawn." }),
      tallies: array(object({ id: ref("EventId"), receipts: ref("Tally") }), {
        description: "The current tallies of older events.",
      }),
      receipts: array(
        object({
          event: ref("EventId"),
          device: ref("Device"),
          status: ref("State"),
          at: ref("Time"),
          late: { type: "boolean", description: "It arrived after the deadline, or after the event was withdrawn." },
          round: { type: "integer", minimum: 1, description: "How often the event was sent to the device." },
        }),
        { description: "New receipts, oldest first." },
      ),
    },
    [],
    { description: "`pere.changes`: the changes in a channel." },
  ),
  Away: object({ detail: { type: "string" } }, [], { description: "`pere.away`: the store can't be read now." }),
  Trouble: object({ totals: ref("TroubleTotals") }, [], {
    description:
      "`pere.trouble`: what needs attention in the channels that the token may push to, in numbers. It is also sent if the numbers stay the same and something else needs attention.",
  }),
  TroubleTotals: object({ devices: count("Devices in trouble."), ...troubles }),
  Attention: object({
    at: { ...ref("Time"), description: "When this was read." },
    totals: ref("TroubleTotals"),
    devices: array(
      object({
        channel: ref("Channel"),
        device: ref("Device"),
        ...troubles,
        since: { ...ref("Time"), description: "When the oldest of these events was pushed." },
        connected: { type: "boolean", description: "It has a feed open now." },
        seenAt: { ...orNull("Time"), description: "Its last sign of life." },
      }),
      { description: "Devices in trouble, worst first. A device that is in several channels has an item for each." },
    ),
    events: array(
      object({
        id: ref("EventId"),
        channel: ref("Channel"),
        at: ref("Time"),
        type: orNull("EventType"),
        deadline: orNull("Time"),
        receipts: ref("Tally"),
      }),
      { description: "Events with devices in trouble, worst first." },
    ),
    hooks: array(
      object({
        channel: ref("Channel"),
        name: ref("HookName"),
        givenUp: count("Calls that were given up."),
        disabled: { type: ["string", "null"], description: "Why the hook is disabled, in a sentence." },
      }),
      { description: "Hooks that gave up calls or are disabled, worst first." },
    ),
    channels: array(
      object({
        channel: ref("Channel"),
        devices: count("Devices in trouble."),
        ...troubles,
        since: { ...ref("Time"), description: "When the oldest of these events was pushed." },
      }),
      { description: "Channels with devices in trouble, worst first." },
    ),
  }),
  EventPage: object({ events: array(ref("EventState")), next: next("an event's id") }),
  ReceiptRow: object(
    { device: ref("Device"), status: ref("State"), ...receiptBody, ...due, at: orNull("Time"), tags: tagsNow },
    ["due"],
    {
      description: "An addressed device's status on an event. While it is `pending`, there are no other members.",
    },
  ),
  ReceiptPage: object({ receipts: array(ref("ReceiptRow")), next: next("a device's name") }),
  DeviceState: object({
    device: ref("Device"),
    enrolledAt: ref("Time"),
    connected: { type: "boolean", description: "It has a feed open now." },
    addresses: array(
      { type: "string" },
      {
        description:
          "The addresses of its open feeds: IPv4 addresses, and IPv6 networks such as `2001:db8::/64`. Several of one kind probably mean two machines with the same name.",
      },
    ),
    seenAt: { ...orNull("Time"), description: "Its last sign of life." },
    pending: count("Kept, unexpired events that it owes a final receipt for."),
    tags: tagsNow,
  }),
  DevicePage: object({
    devices: array(ref("DeviceState")),
    next: next("a device's name, or opaque in another order"),
  }),
  DeviceReceipt: object(
    {
      event: ref("EventId"),
      type: orNull("EventType"),
      pushedAt: ref("Time"),
      deadline: orNull("Time"),
      status: ref("State"),
      ...receiptBody,
      ...due,
      at: orNull("Time"),
    },
    ["due"],
    { description: "A device's status on an event that is addressed to it. While it is `pending`, `at` is `null`." },
  ),
  DeviceReceiptPage: object({ receipts: array(ref("DeviceReceipt")), next: next("an event's id") }),
  Enrolled: object(
    {
      ...{ channel: ref("Channel"), device: ref("Device"), enrolled: { type: "boolean", const: true } },
      tags: { ...ref("Tags"), description: "Its tags, if the request set some." },
    },
    ["tags"],
  ),

  HookName: {
    type: "string",
    pattern: CHANNEL.source,
    description: "A hook's name in its channel.",
  },
  HookKind: {
    type: "string",
    enum: HOOK_KINDS,
    description:
      "What a hook is called for. `receipt`: what devices say. `complete`: an event is complete. `missing`: devices missed a deadline. `settled`: an event with a deadline is complete, or its deadline has passed. `failed`: devices failed for good, in time or late; a hook for `receipt` has these too.",
  },
  HookDraft: object(
    {
      url: {
        type: "string",
        format: "uri",
        maxLength: 2048,
        description: "The URL to call: http or https, without user name and password.",
      },
      secret: {
        type: ["string", "null"],
        pattern: "^whsec_[A-Za-z0-9+/]{32,86}={0,2}$",
        description:
          "`whsec_` and the base64 of 24 to 64 bytes. Without it a new hook gets a generated one, and an existing hook keeps its own.",
      },
      on: array(ref("HookKind"), {
        minItems: 1,
        description: `What it is called for; by default ${DEFAULT_HOOK_KINDS.map((kind) => `\`${kind}\``).join(", ")}.`,
      }),
    },
    ["secret", "on"],
    { additionalProperties: false },
  ),
  HookStored: object(
    {
      ...hook,
      secret: { type: "string", description: "Only if it was just generated. It is not shown again." },
    },
    ["secret"],
  ),
  HookState: object({
    ...hook,
    position: { ...ref("EventId"), description: "The last entry of the receipts log that was processed." },
    lastDelivered: {
      oneOf: [
        object({ at: ref("Time"), status: { type: "integer" }, ms: count("How many milliseconds the call took.") }),
        { type: "null" },
      ],
      description: "Its last successful call; `null`: none yet.",
    },
    retrying: array(ref("Delivery"), { description: "Calls that failed and are retried." }),
    failed: array(ref("Delivery"), { description: "Calls that were given up." }),
  }),
  HookList: object({ hooks: array(ref("HookState"), { maxItems: HOOKS_MAX }) }),
  Delivery: object({
    id: { type: "string", description: "The `webhook-id`, the same for every attempt." },
    createdAt: ref("Time"),
    attempts: count("Number of attempts."),
    nextAt: { ...orNull("Time"), description: "The next attempt; `null`: it was given up." },
    status: { type: ["integer", "null"], description: "The HTTP status of the last attempt." },
    error: { type: ["string", "null"], description: "Why the last attempt failed, in a sentence." },
    tries: array(ref("HookTry"), {
      maxItems: TRIES_MAX,
      description: `The last attempts, newest last, at most ${TRIES_MAX}. Attempts by earlier versions are not among them.`,
    }),
    body: { type: "string", description: "The first 1,024 characters of its body." },
  }),
  HookTry: object(
    {
      at: ref("Time"),
      status: { type: ["integer", "null"], description: "The HTTP status; `null`: there was no answer." },
      error: { type: "string", description: "Why it failed, in a sentence." },
      ms: count("How many milliseconds it took."),
      body: {
        type: ["string", "null"],
        description: "The first 256 characters of the answer's body; `null`: there was no answer.",
      },
    },
    [],
    { description: "A failed attempt." },
  ),
  HookTested: object({
    status: { type: ["integer", "null"], description: "The HTTP status; `null`: there was no answer." },
    ms: count("How many milliseconds the call took."),
    body: {
      type: ["string", "null"],
      description: "The beginning of the answer's body, at most 1 KiB, as text; `null`: there was no answer.",
    },
    error: { type: ["string", "null"], description: "Why there was no answer, in a sentence." },
  }),
  Retried: object({ retried: count("Number of calls that are retried.") }),
  HookCall: {
    description: "The body of a call to a hook's URL.",
    oneOf: [
      hookCall(
        ["pere.receipt", "pere.missing", "pere.failed"],
        object({ channel: ref("Channel"), receipts: array(ref("Receipt"), { minItems: 1, maxItems: 100 }) }),
        "New receipts, missing devices, or final failures.",
      ),
      hookCall(
        ["pere.complete"],
        { oneOf: [ref("EventState"), ref("Complete")] },
        "An event is complete: its state, or only the tally if it is no longer kept.",
      ),
      hookCall(
        ["pere.settled"],
        { oneOf: [ref("EventState"), ref("Settled")] },
        "An event with a deadline is complete, or its deadline has passed: its state, or only the tally if it is no longer kept.",
      ),
      hookCall(
        ["pere.test"],
        object({ channel: ref("Channel"), hook: ref("HookName") }),
        "A publisher tests the hook.",
      ),
      hookCall(["pere.gap"], ref("Gap"), "Receipts that the hook was not called for are no longer kept."),
    ],
  },

  Health: object({ status: { type: "string", const: "ok" } }),
  Readiness: object({
    status: { type: "string", const: "ready" },
    store: { type: "string", description: "The store." },
    version: { type: "string", description: "Name and version of the database." },
    durability: {
      type: "string",
      enum: ["fsync", "second", "memory"],
      description:
        "What a 2xx answer guarantees: the data survives a power cut (`fsync`); all but about the last second does (`second`); or it does not even survive a restart (`memory`).",
    },
    advice: array({ type: "string" }, { description: "For the operator: what to change, and what happens otherwise." }),
  }),

  Fault: object({
    path: {
      type: "string",
      description: "The query parameter, header, path parameter, `body` or line that is invalid.",
    },
    message: { type: "string", description: "Why." },
  }),
  Problem: object(problem, ["errors"], { description: "What went wrong (RFC 9457)." }),
} satisfies Record<string, Schema>;

// -------------------------------------------------------------------------------------------------------------- examples

/** The epoch of all ids in the examples. `swagger.js` knows it too. */
export const SAMPLE_EPOCH = "k3x9q2vd";
/** The time of all examples, milliseconds since 1970. */
export const SAMPLE_TIME_MS = Date.UTC(2026, 10, 22, 10);

const id = (seq: number): string => `${SAMPLE_EPOCH}-${seq}`;
const at = iso(SAMPLE_TIME_MS);
const expiresAt = iso(SAMPLE_TIME_MS + 3600_000);
const deadline = iso(SAMPLE_TIME_MS + 600_000);
const deviceAt = iso(SAMPLE_TIME_MS - 1500);
const orders = [
  { order: "A-1001", table: 7, total: 12.5 },
  { order: "A-1002", table: 3, total: 48 },
  { order: "A-1003", table: 7, total: 9.9 },
];
const channel = "orders";
const device = "till-7";
const type = "order.created";

const events = orders.map((data, n) => ({ id: id(n + 1), channel, seq: n + 1, at, type, deadline, data }));
const receipt = (seq: number, event: number, status: string, detail: unknown, deviceTime: string | null = null) => ({
  id: id(seq),
  event: id(event),
  channel,
  device,
  status,
  detail,
  at,
  deviceAt: deviceTime,
  late: false,
  round: 1,
  attempt: status === "failed" ? 1 : 0,
});
const receipts = [
  receipt(1, 1, "done", { printed: true }, deviceAt),
  receipt(4, 2, "working", null),
  receipt(5, 3, "failed", "no paper"),
  receipt(8, 2, "done", "rx ok"),
];
const row = {
  device,
  status: "done",
  detail: { printed: true },
  at,
  deviceAt,
  late: false,
  round: 1,
  attempt: 0,
  tags: { site: "rome" },
};
const history = (event: number, said: object, attempt: number) => ({
  ...{ event: id(event), type, pushedAt: at, deadline },
  ...said,
  ...{ at, deviceAt: null, late: false, round: 1, attempt },
});
const tally = {
  ...{ pending: 0, received: 0, working: 0, deferred: 0 },
  ...{ done: 1, failed: 0, missing: 0, withdrawn: 0 },
};
const completed = (seq: number, event: number, receipts: object) => ({
  ...{ id: id(seq), event: id(event), channel, at, receipts, complete: true },
});
/** The `pere.complete` entry that follows each receipt, before `pere.settled`; null: none. */
const completes = [
  completed(2, 1, tally),
  null,
  completed(6, 3, { ...tally, done: 0, failed: 1 }),
  completed(9, 2, tally),
];
const settled = [
  completed(3, 1, tally),
  null,
  completed(7, 3, { ...tally, done: 0, failed: 1 }),
  completed(10, 2, tally),
];
const states = orders.map((data, n) => ({
  ...{ id: id(n + 1), channel, seq: n + 1, at, type, deadline, expiresAt, to: [device] },
  audience: { addressed: 1, connected: 0 },
  receipts: n === 2 ? { ...tally, done: 0, failed: 1 } : tally,
  complete: true,
  settled: true,
  data,
}));
/** On a channel without events. */
const readyFor = (reader: string | null) => ({ device: reader, channels: { [channel]: id(0) } });
const stream = (
  reader: string | null,
  entries: readonly { id: string; type?: string }[],
  more: readonly ({ id: string } | null)[] = [],
  last: readonly ({ id: string } | null)[] = [],
): string =>
  [
    `retry: 2500\nid: ${id(0)}\nevent: pere.ready\ndata: ${JSON.stringify(readyFor(reader))}`,
    ...entries.flatMap((entry, n) => [
      `id: ${entry.id}\n${entry.type ? `event: ${entry.type}\n` : ""}data: ${JSON.stringify(entry)}`,
      ...(more[n] ? [`id: ${more[n].id}\nevent: pere.complete\ndata: ${JSON.stringify(more[n])}`] : []),
      ...(last[n] ? [`id: ${last[n].id}\nevent: pere.settled\ndata: ${JSON.stringify(last[n])}`] : []),
    ]),
  ].join("\n\n") + "\n\n";
/** The state after all examples were sent: each order is answered. */
const overview = {
  channels: [{ channel, events: 3, devices: 1, connected: 0, last: id(3), open: 0, missing: 0 }],
  more: false,
  totals: { channels: 1, devices: 1, connected: 0, at: null },
  counts: {
    pushes: 3,
    deliveries: 6,
    receipts: { received: 0, working: 1, deferred: 0, done: 2, failed: 1 },
    latency: null,
  },
};
const troubleTotals = { devices: 1, failed: 1, missing: 0, overdue: 0 };
const changes = {
  ...{ channel, reset: true, more: false },
  events: states.map(({ seq, receipts, complete }) => ({
    ...{ id: id(seq), seq, at, type, deadline, key: null, withdrawn: null, addressed: 1, receipts, complete },
  })),
  ...{ withdrawn: [], tallies: [], receipts: [] },
};
const mistyped = "oders";
const scheduleId = "s-0mi9q2vd4k3x9q2vd";
/** The example's time is a Sunday. */
const nextMonday = iso(Date.UTC(2026, 10, 23, 8));
const schedule = { id: scheduleId, next: nextMonday, every: "0 9 * * 1-5", tz: "Europe/Rome", last: null };
const hookName = "shop";
/** A public secret, for the example only. */
const hookDraft = {
  url: "https://shop.example/pere",
  secret: "whsec_ZXZlcnlib2R5IGtub3dzIHRoaXMgb25l",
  on: ["receipt", "complete"],
};
const hookShown = { channel, name: hookName, url: hookDraft.url, on: hookDraft.on, createdAt: at, disabled: null };
const fault = (path: string, message: string) => ({ detail: `${path}: ${message}`, errors: [{ path, message }] });

const unknownEvent = "there is no such event in this channel, or it is no longer kept";

/** The examples; together they tell the story at the top of this file. */
export const samples = {
  channel,
  device,
  type,
  event: id(1),
  order: orders[0],
  orderLines: orders
    .slice(1)
    .map((order) => `${JSON.stringify(order)}\n`)
    .join(""),
  pushed: { id: id(1), channel, seq: 1, at, type, audience: { addressed: 1, connected: 0 } },
  scheduleId,
  pushedLater: { id: scheduleId, channel, next: nextMonday },
  scheduled: { scheduled: [schedule], next: null },
  scheduledPush: {
    ...schedule,
    options: { type, to: device, ttl: "3600", deadline: "600" },
    data: orders[0],
  },
  pushedAgain: { id: id(4), channel, seq: 4, at, type, audience: { addressed: 1, connected: 0 } },
  mistyped,
  pushedToNobody: {
    ...{ id: id(1), channel: mistyped, seq: 1, at, type, audience: { addressed: 0, connected: 0 } },
    warnings: [
      `No device is enrolled in channel ${mistyped}, so the event went to nobody. The channel had no events before: check its name.`,
    ],
  },
  pushedMany: { events: [2, 3].map((seq) => ({ id: id(seq), seq, at })), audience: { addressed: 1, connected: 0 } },
  waited: {
    ...{ id: id(1), channel, seq: 1, at, type, audience: { addressed: 1, connected: 0 } },
    ...{ receipts: tally, complete: true },
  },
  ready: readyFor(device),
  readyToAnybody: readyFor(null),
  gap: { channel, after: "h7w2m5c1-7", from: id(1) },
  complete: completes[0],
  overview,
  changes,
  eventBatch: { events, last: id(3) },
  eventStream: stream(device, events),
  receiptOne: { event: id(1), device, status: "done", detail: { printed: true }, at: deviceAt },
  receiptMany: [
    { event: id(2), device, status: "working" },
    { event: id(3), device, status: "failed", detail: "no paper" },
    { event: id(3), device: "truck-3", status: "done" },
  ],
  receiptForm: { id: id(2), device, status: "rx ok" },
  feedbackOne: { recorded: 1, duplicate: 0, rejected: [] },
  feedbackMany: {
    recorded: 2,
    duplicate: 0,
    rejected: [{ index: 2, event: id(3), reason: "the event was not addressed to this device" }],
  },
  receiptBatch: {
    ...{ events: receipts, last: id(10) },
    complete: completes.filter((said) => said !== null),
    settled: settled.filter((said) => said !== null),
  },
  receiptStream: stream(null, receipts, completes, settled),
  withdrawn: {
    ...{ id: id(3), channel, seq: 3, at, withdrawn: id(2) },
    ...{ reason: "withdrawn", note: "ordered twice" },
  },
  withdrawnEvent: {
    ...{ id: id(4), event: id(2), channel, at, reason: "withdrawn", note: "ordered twice" },
    receipts: { ...tally, done: 0, withdrawn: 1 },
  },
  settled: settled[0],
  trouble: { totals: troubleTotals },
  attention: {
    at,
    totals: troubleTotals,
    devices: [{ channel, device, failed: 1, missing: 0, overdue: 0, since: at, connected: false, seenAt: at }],
    events: [{ id: id(3), channel, at, type, deadline, receipts: states[2]!.receipts }],
    hooks: [],
    channels: [{ channel, devices: 1, failed: 1, missing: 0, overdue: 0, since: at }],
  },
  channels: { channels: [{ channel, events: 3, devices: 1, connected: 0, last: id(3) }], next: null },
  watchStream:
    `retry: 2500\nevent: pere.overview\ndata: ${JSON.stringify(overview)}\n\n` +
    `event: pere.trouble\ndata: ${JSON.stringify({ totals: troubleTotals })}\n\n` +
    `event: pere.changes\ndata: ${JSON.stringify(changes)}\n\n`,
  events: { events: states, next: null },
  state: states[0],
  rows: { receipts: [row], next: null },
  rowsCsv: `device,status,detail,at,deviceAt,late,round,attempt,due,tags\r\n${device},done,"{""printed"":true}",${at},${deviceAt},false,1,0,,site:rome\r\n`,
  rowsLines: `${JSON.stringify(row)}\n`,
  shared: { device, addresses: ["127.0.0.1", "192.0.2.8"] },
  devices: {
    devices: [
      { device, enrolledAt: at, connected: false, addresses: [], seenAt: at, pending: 0, tags: { site: "rome" } },
    ],
    next: null,
  },
  history: {
    receipts: [
      history(3, { status: "failed", detail: "no paper" }, 1),
      history(2, { status: "done", detail: "rx ok" }, 0),
    ],
    next: id(2),
  },
  enrolled: { channel, device, enrolled: true, tags: { beta: "1", site: "milan" } },
  tagBody: { tags: { site: "milan", beta: "1" } },
  tagPatch: { tags: { site: "rome", beta: null } },
  tagged: { channel, device, enrolled: true, tags: { site: "rome" } },
  hookName,
  hookDraft,
  hook: hookShown,
  hooks: { hooks: [{ ...hookShown, position: id(10), lastDelivered: null, retrying: [], failed: [] }] },
  tested: { status: null, ms: 0, body: null, error: "the connection was refused" },
  retried: { retried: 0 },
  health: { status: "ok" },
  metrics: "# HELP pere_pushes_total Events stored\n# TYPE pere_pushes_total counter\npere_pushes_total 1\n",
  readiness: { status: "ready", store: "sqlite", version: "SQLite 3.54.1", durability: "fsync", advice: [] },
  allRejected: {
    ...{ type: "urn:pere:refused", title: "Refused", status: 422, detail: unknownEvent, recorded: 0, duplicate: 0 },
    rejected: [{ index: 0, event: "0-99", reason: unknownEvent }],
  },
  malformedChannel: fault(
    "channel",
    "a channel's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ - and begins with a letter or digit",
  ),
  malformedLimit: fault("limit", "must be a whole number"),
};
