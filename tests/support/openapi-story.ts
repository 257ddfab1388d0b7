/**
 * Requests with the examples of the OpenAPI document, answers held to all that is declared for them, and the story that the examples are: one step
 * after the other on a fresh service.
 */
import { expect } from "bun:test";
import { SAMPLE_EPOCH, samples } from "../../web/openapi-schemas.ts";
import { describedRequest, type Asking as Plain } from "./described.ts";
import { type Answer, ask } from "./harness.ts";
import { epoch, escape, expired, faults, JSON_TYPE, operations, pere, replyOf, shapeOf, weak } from "./openapi.ts";

export type Asking = Plain & { readonly token?: "weak" | "expired" };

/** The scheduled push of the story, as the service called it. */
let scheduled = samples.scheduleId;

export function tellScheduled(id: string): void {
  scheduled = id;
}

const real = (text: string): string => text.replaceAll(samples.scheduleId, scheduled).replaceAll(SAMPLE_EPOCH, epoch);

/** As the examples have it. */
export const sample = (text: string): string =>
  text
    .replaceAll(scheduled, samples.scheduleId)
    .replaceAll(epoch, SAMPLE_EPOCH)
    .replace(/"ms":\d+/g, '"ms":0')
    .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, "7f0c5a52-3d0c-4f5e-9a53-0a4b1c9a8e11");

/** The request that the document describes, with the examples that it gives. */
export function requestOf(operationId: string, { token, ...asking }: Asking, base = pere.url) {
  const headers = {
    ...asking.headers,
    ...(token ? { Authorization: `Bearer ${token === "weak" ? weak : expired}` } : {}),
  };
  const given = Object.entries(asking.parameters ?? {}).map(
    ([name, value]) => [name, value === null ? null : real(value)] as const,
  );
  return describedRequest(
    operations.get(operationId)!,
    { ...asking, headers, parameters: Object.fromEntries(given) },
    base,
    real,
  );
}

/** Holds an answer to what is declared for it. */
export function holds(operationId: string, answer: Answer): void {
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

export async function tried(operationId: string, asking: Asking, base = pere.url): Promise<Answer> {
  const { url, init } = requestOf(operationId, asking, base);
  const answer = await ask(url, init);
  holds(operationId, answer);
  return answer;
}

/** One step: an operation with examples of its own, the status it ends with, and the name of the example that the answer is. */
export type Step = readonly [operationId: string, asking: Asking, status: number, type: string, example: string];

export const PROBLEM = "application/problem+json";

export const FORM = "application/x-www-form-urlencoded";

export const LINES = "application/x-ndjson";

const MERGE_PATCH = "application/merge-patch+json";

export const accept = (type: string): Asking => ({ headers: { Accept: type } });

const keyed: Asking = { type: JSON_TYPE, example: "one", headers: { "Idempotency-Key": "a" } };

/** The third event of the story failed. */
const once: Asking = {
  parameters: { id: samples.eventBatch.events[2]!.id },
  headers: { "Idempotency-Key": "again" },
};

const weekdays: Asking = {
  type: JSON_TYPE,
  example: "one",
  parameters: { type: samples.type, every: "0 9 * * 1-5", tz: "Europe/Rome" },
};

export const STORY: readonly Step[] = [
  ["health", {}, 200, JSON_TYPE, "example"],
  ["ready", {}, 200, JSON_TYPE, "example"],
  ["enrolDevice", { type: JSON_TYPE, example: "example" }, 201, JSON_TYPE, "example"],
  ["enrolDevice", { type: JSON_TYPE, example: "example" }, 200, JSON_TYPE, "example"],
  ["tagDevice", { type: JSON_TYPE, example: "example" }, 200, JSON_TYPE, "example"],
  ["tagDevice", { type: MERGE_PATCH, example: "example" }, 200, JSON_TYPE, "example"],
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
  ["readAttention", {}, 200, JSON_TYPE, "example"],
  ["listChannels", {}, 200, JSON_TYPE, "example"],
  ["listEvents", {}, 200, JSON_TYPE, "example"],
  ["readEvent", {}, 200, JSON_TYPE, "example"],
  ["withdrawEvent", {}, 200, JSON_TYPE, "example"],
  ["withdrawEvent", { parameters: { note: "x".repeat(257) } }, 422, PROBLEM, "note"],
  ["listReceipts", accept(JSON_TYPE), 200, JSON_TYPE, "example"],
  ["listReceipts", accept("text/csv"), 200, "text/csv", "example"],
  ["listReceipts", accept(LINES), 200, LINES, "example"],
  ["push", weekdays, 202, JSON_TYPE, "example"],
  ["listScheduled", {}, 200, JSON_TYPE, "example"],
  ["readScheduled", {}, 200, JSON_TYPE, "example"],
  ["listDevices", {}, 200, JSON_TYPE, "example"],
  ["readDevice", {}, 200, JSON_TYPE, "example"],
  ["listDeviceReceipts", { parameters: { limit: "2" } }, 200, JSON_TYPE, "example"],
  ["putHook", { type: JSON_TYPE, example: "one" }, 201, JSON_TYPE, "example"],
  ["putHook", { type: JSON_TYPE, example: "one" }, 200, JSON_TYPE, "example"],
  ["retryHook", {}, 200, JSON_TYPE, "example"],
  ["testHook", {}, 200, JSON_TYPE, "example"],
  ["listHooks", {}, 200, JSON_TYPE, "example"],
  ["deleteChannel", {}, 409, PROBLEM, "example"],

  ["pushEventAgain", once, 201, JSON_TYPE, "example"],
  ["pushEventAgain", once, 200, JSON_TYPE, "example"],
  ["pushEventAgain", {}, 422, PROBLEM, "nobody"],
  [
    "push",
    { type: JSON_TYPE, body: "1", parameters: { channel: samples.mistyped, to: null } },
    201,
    JSON_TYPE,
    "nobody",
  ],

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
