/**
 * How the process is looked at from outside: whether it lives, whether it can serve, and its metrics.
 */
import { demand } from "../auth/rights.ts";
import { PereError } from "../model.ts";
import type { HandlerContext, Params, RouteContext } from "./context.ts";
import { queryOf } from "./request.ts";
import { json, PLAIN } from "./response.ts";

export const health = async (): Promise<Response> => json({ status: "ok" });

export async function ready({ engine }: HandlerContext): Promise<Response> {
  if (engine.draining) throw new PereError("away", "PERE is shutting down");
  const store = await engine.ready();
  return json({ status: "ready", ...store });
}

export async function scrape(
  { admission, right, metrics }: RouteContext,
  _params: Params,
  request: Request,
): Promise<Response> {
  demand(await admission.grant(request), right, "*");
  queryOf(request);
  const scraped = await metrics();
  return new Response(await scraped.text(), { headers: { ...PLAIN, "Content-Type": scraped.contentType } });
}
