/**
 * The routes of scheduled pushes: list, read and cancel those of a channel. `push.ts` makes them.
 */
import { id, iso } from "../model.ts";
import type { Schedule } from "../store.ts";
import { channelOf, plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { PAGE_OPTIONS, pageOf, queryOf } from "./request.ts";
import { json, jsonText } from "./response.ts";

const about = ({ id: name, next, every, tz, last, error }: Schedule) => ({
  id: name,
  next: next === null ? null : iso(next),
  every,
  tz,
  last: last === null ? null : id(last.epoch, last.seq),
  ...(error === null ? {} : { error }),
});

export async function listScheduled(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const { after, limit } = pageOf(queryOf(request, PAGE_OPTIONS));
  const { items, next } = await context.engine.schedules.list(channel, after, limit);
  return json({ scheduled: items.map(about), next });
}

export async function readScheduled(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  const schedule = await context.engine.schedules.get(channel, params.id);
  const text = JSON.stringify({ ...about(schedule), options: schedule.options });
  // The publisher's own text, which is not parsed: numbers keep their digits.
  return jsonText(`${text.slice(0, -1)},"data":${schedule.data}}`);
}

export async function cancelScheduled(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  await context.engine.schedules.cancel(channel, params.id);
  return new Response(null, { status: 204 });
}
