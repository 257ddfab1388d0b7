/**
 * The routes for devices: their list, one of them, what it was sent and said, and enrolling and retiring one.
 */
import type { ListedDevice } from "../directory.ts";
import { DEVICE_ORDERS, type DeviceOrder, type HistoryRow, id, iso } from "../model.ts";
import { readDevice, readPosition } from "../parsing.ts";
import { channelOf, plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { choiceOf, PAGE_OPTIONS, pageOf, queryOf, refuseEncodedBody, searchOf } from "./request.ts";
import { json, jsonText } from "./response.ts";

const deviceJson = (device: ListedDevice) => ({
  ...device,
  enrolledAt: iso(device.enrolledAt),
  seenAt: device.seenAt === null ? null : iso(device.seenAt),
});

export async function listDevices(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const query = queryOf(request, ["search", "connected", "sort", ...PAGE_OPTIONS]);
  const connected = choiceOf(query, "connected", ["true", "false"]);
  const { devices, next } = await context.engine.directory.devices(channel, {
    search: searchOf(query),
    connected: connected === null ? null : connected === "true",
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
  `"deviceAt":${timeJson(row.deviceAt)},"late":${row.late},"round":${row.round},"attempt":${row.attempt}}`;

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
  refuseEncodedBody(request);
  const enrolled = await context.engine.enrol(channel, device);
  return json({ channel, device, enrolled: true }, enrolled ? 201 : 200);
}

export async function retireDevice(context: RouteContext, params: Params, request: Request): Promise<Response> {
  await context.engine.retire(await plainChannelOf(context, params, request), readDevice(params.device));
  return new Response(null, { status: 204 });
}
