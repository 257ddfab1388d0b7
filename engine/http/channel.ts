/**
 * The channel in a request's path, once its caller is authorized there.
 */
import { readChannel } from "../parsing.ts";
import type { Params, RouteContext } from "./context.ts";
import { queryOf } from "./request.ts";

/** @throws PereError */
export async function channelOf({ admission, right }: RouteContext, params: Params, request: Request): Promise<string> {
  const channel = readChannel(params.channel);
  await admission.authorize(request, right, [channel]);
  return channel;
}

/** The same for a request that takes no options. @throws PereError */
export async function plainChannelOf(context: RouteContext, params: Params, request: Request): Promise<string> {
  const channel = await channelOf(context, params, request);
  queryOf(request);
  return channel;
}
