/**
 * The routes of webhooks: list, set, delete, test and retry those of a channel.
 */
import { readHookName } from "../hooks/hooks.ts";
import { HOOK_BYTES_MAX, PereError } from "../model.ts";
import { readChannel, readReceiptsJson, readText } from "../parsing.ts";
import { plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { contentType, refuseEncodedBody, queryOf } from "./request.ts";
import { json, jsonText } from "./response.ts";

export async function listHooks(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const hooks = await context.engine.hooks.list(await plainChannelOf(context, params, request));
  return jsonText(`{"hooks":[${hooks.join(",")}]}`);
}

export async function putHook(
  { engine, admission, bodyOf, right }: RouteContext,
  params: Params,
  request: Request,
): Promise<Response> {
  const channel = readChannel(params.channel);
  const name = readHookName(params.name);
  await admission.authorize(request, right, [channel]);
  queryOf(request);
  if (contentType(request) !== "application/json") throw new PereError("wrongType", "a hook takes application/json");
  const body = readReceiptsJson(readText(await bodyOf(request, HOOK_BYTES_MAX)));
  const { hook, created } = await engine.hooks.put(channel, name, body);
  return json(hook, created ? 201 : 200);
}

export async function dropHook(context: RouteContext, params: Params, request: Request): Promise<Response> {
  await context.engine.hooks.drop(await plainChannelOf(context, params, request), readHookName(params.name));
  return new Response(null, { status: 204 });
}

export async function retryHook(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  refuseEncodedBody(request);
  const retried = await context.engine.hooks.retry(channel, readHookName(params.name));
  return json({ retried });
}

export async function testHook(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await plainChannelOf(context, params, request);
  refuseEncodedBody(request);
  return json(await context.engine.hooks.test(channel, readHookName(params.name)));
}
