/**
 * The routes for channels: their list, and deleting one.
 */
import { yieldToEventLoop } from "../yield.ts";
import { plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { PAGE_OPTIONS, pageOf, queryOf, searchOf } from "./request.ts";
import { jsonText } from "./response.ts";

const LIST_BEGIN = Buffer.from('{"channels":[');
/** What a part of the list counts when the answer is put together. */
const PART_ROWS = 8;

export async function listChannels(
  { engine, admission, right }: RouteContext,
  _params: Params,
  request: Request,
): Promise<Response> {
  const grant = await admission.grant(request);
  const query = queryOf(request, ["search", ...PAGE_OPTIONS]);
  const { after, limit } = pageOf(query);
  const { parts, next } = await engine.directory.channels(
    after,
    query.has("limit") ? limit : null,
    grant.scope(right),
    searchOf(query),
  );
  // Very many channels are megabytes, which are copied twice.
  await yieldToEventLoop("read", PART_ROWS * parts.length);
  return jsonText(Buffer.concat([LIST_BEGIN, ...parts, Buffer.from(`],"next":${JSON.stringify(next)}}`)]));
}

export async function deleteChannel(context: RouteContext, params: Params, request: Request): Promise<Response> {
  await context.engine.removeChannel(await plainChannelOf(context, params, request));
  return new Response(null, { status: 204 });
}
