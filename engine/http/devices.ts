/**
 * The routes for devices: their list, one of them, what it was sent and said, and enrolling and retiring one.
 */
import type { ListedDevice } from "../directory.ts";
import { DEVICE_ORDERS, type DeviceOrder, type HistoryRow, id, iso, PereError } from "../model.ts";
import { readDevice, readPosition, readReceiptsJson, readText } from "../parsing.ts";
import { readTagPatch, readTags, readWhere, tagsJson } from "../tags.ts";
import { channelOf, plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { choiceOf, contentType, PAGE_OPTIONS, pageOf, queryOf, refuseEncodedBody, searchOf } from "./request.ts";
import { json, jsonText } from "./response.ts";

/** A request body with tags. */
const TAGS_BYTES_MAX = 8 * 1024;

const deviceJson = (device: ListedDevice) => ({
  ...device,
  tags: tagsJson(device.tags),
  enrolledAt: iso(device.enrolledAt),
  seenAt: device.seenAt === null ? null : iso(device.seenAt),
});

export async function listDevices(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const query = queryOf(request, ["search", "connected", "where", "sort", ...PAGE_OPTIONS]);
  const connected = choiceOf(query, "connected", ["true", "false"]);
  const where = query.get("where");
  const { devices, next } = await context.engine.directory.devices(channel, {
    search: searchOf(query),
    connected: connected === null ? null : connected === "true",
    where: where === undefined ? null : readWhere(where),
    sort: choiceOf<DeviceOrder>(query, "sort", DEVICE_ORDERS) ?? "name",
    ...pageOf(query),
  });
  return json({ devices: devices.map(deviceJson), next });
}

export async function readOneDevice(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  return json(deviceJson(await context.engine.directory.device(channel, readDevice(params.device))));
}

const timeJson = (ms: number | null): string => (ms === null ? "null" : `"${iso(ms)}"`);

const historyJson = (epoch: string, row: HistoryRow): string =>
  `{"event":"${id(epoch, row.seq)}","type":${row.type === null ? "null" : `"${row.type}"`},"pushedAt":"${iso(row.pushedAt)}",` +
  `"deadline":${timeJson(row.deadline)},"status":"${row.status}","detail":${row.detail ?? "null"},"at":${timeJson(row.at)},` +
  `"deviceAt":${timeJson(row.deviceAt)},"late":${row.late},"round":${row.round},"attempt":${row.attempt}` +
  `${row.due === undefined ? "" : `,"due":"${iso(row.due)}"`}}`;

export async function deviceHistory(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const device = readDevice(params.device);
  const { after, limit } = pageOf(queryOf(request, PAGE_OPTIONS));
  const position = after ? readPosition(after, "after") : null;
  const { epoch, rows, next } = await context.engine.directory.history(channel, device, position, limit);
  const texts = rows.map((row) => historyJson(epoch, row));
  return jsonText(`{"receipts":[${texts.join(",")}],"next":${JSON.stringify(next)}}`);
}

export async function enrolDevice(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  const device = readDevice(params.device);
  const body = await bodyOfTags(context, request, ["application/json"]);
  const given = body && "tags" in body ? readTags(body.tags) : null;
  if (given === null) {
    const enrolled = await context.engine.enrol(channel, device);
    return json({ channel, device, enrolled: true }, enrolled ? 201 : 200);
  }
  const { tags, isNew } = await context.engine.tag(channel, device, { isAll: true, tags: given }, true);
  return json({ channel, device, enrolled: true, tags: tagsJson(tags) }, isNew ? 201 : 200);
}

/** Changes some tags of an enrolled device (RFC 7396). */
export async function tagDevice(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  const device = readDevice(params.device);
  const body = await bodyOfTags(context, request, ["application/merge-patch+json", "application/json"]);
  if (!body || !("tags" in body)) throw malformed('must be a JSON object such as {"tags":{"site":"rome","beta":null}}');
  const { tags } = await context.engine.tag(channel, device, readTagPatch(body.tags), false);
  return json({ channel, device, enrolled: true, tags: tagsJson(tags) });
}

const malformed = (message: string): PereError =>
  new PereError("malformed", `body: ${message}`, [{ path: "body", message }]);

/** The JSON object in a body, which may have tags only; null: there is no body. @throws PereError */
async function bodyOfTags(
  { bodyOf }: RouteContext,
  request: Request,
  types: readonly string[],
): Promise<{ readonly tags?: unknown } | null> {
  refuseEncodedBody(request);
  const bytes = await bodyOf(request, TAGS_BYTES_MAX);
  if (bytes.length === 0) return null;
  if (!types.includes(contentType(request)))
    throw new PereError("wrongType", `tags come as ${types.join(" or ")}; without a body they stay as they are`);
  const body = readReceiptsJson(readText(bytes));
  if (typeof body !== "object" || body === null || Array.isArray(body))
    throw malformed('must be a JSON object such as {"tags":{"site":"rome"}}');
  const other = Object.keys(body).find((name) => name !== "tags");
  if (other !== undefined) throw malformed(`${JSON.stringify(other.slice(0, 40))} is unknown; it takes tags`);
  return body;
}

export async function retireDevice(context: RouteContext, params: Params, request: Request): Promise<Response> {
  await context.engine.retire(await plainChannelOf(context, params, request), readDevice(params.device));
  return new Response(null, { status: 204 });
}
