/**
 * The Elysia app: a table of routes, and what is the same for all of them: `Host` and `Origin`, errors, the base path.
 */
import type { Server } from "bun";
import { Elysia } from "elysia";
import { DETAIL_BYTES_MAX, PereError, RECEIPTS_MAX } from "../model.ts";
import type { Right } from "../auth/rights.ts";
import { NOTHING } from "./admission.ts";
import { bodyReader, takeIn } from "./body.ts";
import type { Handler, HandlerContext, Params } from "./context.ts";
import { problem, toResponse } from "./problem.ts";
import { health, ready } from "./probes.ts";
import { pathOf } from "./request.ts";
import type { SocketData } from "./transports.ts";

/** One route. `right` is what its caller needs on the channel; null: nothing. `detail` describes it in the API's document. */
export type Route = readonly [
  method: "GET" | "POST" | "PUT" | "DELETE",
  path: string,
  right: Right | null,
  handler: Handler,
  detail: object,
];

/** How the routes are served. */
export interface AppOptions extends Omit<HandlerContext, "bodyOf"> {
  /** What a body may take, milliseconds beside what its length needs. */
  readonly bodyMs: number;
  /** Each request is written to the log. */
  readonly isWatched: boolean;
  /** URLs begin with https. */
  readonly isTls: boolean;
}

/** Seconds that a connection may rest between two requests: what Elysia sets. */
const IDLE_SECONDS = 30;

/** Where the process is looked at: these answer whoever asks, whatever name they ask it by. Without a Host a URL is a path. */
const PROBED = /^(?:https?:\/\/[^/]*)?\/(health|ready)(?:\?|$)/;

const PROBES: Readonly<Record<string, (context: HandlerContext) => Promise<Response>>> = { health, ready };

/** An app that serves these routes; not yet under the base path. */
export function appOf(routes: readonly Route[], { bodyMs, isWatched, isTls, ...given }: AppOptions): Elysia {
  const { admission, log } = given;
  const app = new Elysia({
    normalize: false,
    // Elysia looks for a path behind the 7th character of a URL, or else behind the 11th: one is too early in https://, the other too late in
    // http:// with a short host. What has a route is found by Bun, whatever is said here.
    handler: { standardHostname: isTls },
    serve: {
      reusePort: false,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER /* Each route has its own, and says so. */,
      development: false,
      error: (error) => toResponse(log, error), // Of what Bun does by itself: a file of a page that can't be opened.
    },
    websocket: {
      maxPayloadLength: RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024),
      backpressureLimit: 1024 * 1024,
      closeOnBackpressureLimit: true,
      sendPings: true,
      idleTimeout: 60,
    },
  });
  const bodyOf = bodyReader(bodyMs, (request, isLeft) => app.server?.timeout(request, isLeft ? 0 : IDLE_SECONDS));
  const context: HandlerContext = { ...given, bodyOf };
  if (isWatched)
    app.onAfterResponse(({ request, responseValue }) => {
      const status = responseValue instanceof Response ? responseValue.status : null;
      log.debug("answered", { request: crypto.randomUUID(), method: request.method, url: request.url, status });
    });
  // What is answered without a look at the body, a GET or DELETE that brings one.
  if (isTls) app.onAfterHandle(({ request }) => takeIn(request));
  app
    .onRequest(({ request, set }) => {
      try {
        const allowed = admission.look(request.headers);
        const answer = admission.preflight(request, allowed);
        if (answer) return new Response(null, { status: 204, headers: answer });
        if (allowed !== NOTHING) Object.assign(set.headers, allowed);
      } catch (error) {
        // Balancers and supervisors name no host, or one of their own.
        const probe = request.method === "GET" || request.method === "HEAD" ? PROBED.exec(request.url)?.[1] : undefined;
        if (probe) return PROBES[probe]!(context).catch((fault: unknown) => toResponse(log, fault));
        return isTls ? takeIn(request).then(() => toResponse(log, error)) : toResponse(log, error);
      }
      return undefined;
    })
    .onError(async ({ code, error, request, path }) => {
      if (isTls) await takeIn(request);
      if (code !== "NOT_FOUND") return toResponse(log, error);
      const allowed = methodsAt(app.routes, path);
      if (allowed.length === 0) return problem(new PereError("unknown", `there is nothing at ${path}`));
      const response = problem(new PereError("wrongMethod", `${path} does not take ${request.method}`));
      response.headers.set("Allow", allowed.join(", "));
      return response;
    });
  for (const [method, path, right, handler, detail] of routes) {
    // A route that is open to everybody has a handler that looks at no right.
    const own = { ...context, right: right ?? "push" } as const;
    const body = method === "GET" ? {} : ({ parse: "none" } as const);
    app.route(
      method,
      path,
      ({ params, request, server }) => handler(own, params as Params, request, server as Server<SocketData>),
      { ...body, detail },
    );
  }
  return app;
}

/** Serves all routes under a path as well. @throws Error with the one line to print, where that is the path of one of them */
export function mount(app: Elysia, basePath: string): void {
  const all = [...app.routes];
  const [, first] = basePath.split("/");
  if (all.some(({ path }) => path.split("/")[1] === first))
    throw new Error(`PERE_BASE_PATH must not begin with a path of PERE's own, as "${basePath}" does`);
  for (const { method, path, handler, hooks } of all) {
    const hidden = { ...(hooks as object), detail: { hide: true } };
    if (path !== "/") app.route(method, basePath + path, handler as () => unknown, hidden as object);
  }
  // Without the slash what the page loads would be looked for beside it.
  app.get(
    `${basePath}/`,
    ({ request, ...context }) => {
      if (!pathOf(request).endsWith("/"))
        return new Response(null, {
          status: 308,
          headers: { Location: `${basePath}/${new URL(request.url).search}` },
        });
      const { handler } = all.find(({ path: one }) => one === "/")!;
      return (handler as unknown as (context: object) => Promise<Response>)({ request, ...context });
    },
    { detail: { hide: true } },
  );
}

/** The methods that some route takes at a path. */
function methodsAt(routes: readonly { method: string; path: string }[], path: string): string[] {
  const parts = path.split("/");
  return routes
    .filter((route) => {
      const pattern = route.path.split("/");
      return (
        pattern.length === parts.length &&
        pattern.every((part, n) => (part.startsWith(":") ? parts[n] !== "" : part === parts[n]))
      );
    })
    .map(({ method }) => method);
}
