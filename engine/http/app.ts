/**
 * The Elysia app: a table of routes, and what is the same for all of them: `Host` and `Origin`, errors, the base path.
 */
import type { Server } from "bun";
import { Elysia } from "elysia";
import { DETAIL_BYTES_MAX, PereError, RECEIPTS_MAX } from "../model.ts";
import type { Right } from "../auth/rights.ts";
import { NO_HEADERS } from "./admission.ts";
import { bodyReader, discardBody } from "./body.ts";
import type { Handler, HandlerContext, Params } from "./context.ts";
import { problem, toResponse } from "./problem.ts";
import { health, ready } from "./probes.ts";
import { pathOf } from "./request.ts";
import type { SocketData } from "./transports.ts";

/** One route. `right` is what its caller needs on the channel; null: nothing. `detail` describes it in the API's document. */
export type Route = readonly [
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE",
  path: string,
  right: Right | null,
  handler: Handler,
  detail: object,
];

/** How the routes are served. */
export interface AppOptions extends Omit<HandlerContext, "bodyOf"> {
  /** Milliseconds that a body may take, on top of the time that its length needs. */
  readonly bodyMs: number;
  /** Whether each request is written to the log. */
  readonly logsRequests: boolean;
  /** Whether URLs begin with https. */
  readonly isTls: boolean;
}

/** Seconds that a connection may be idle between two requests: what Elysia sets. */
const IDLE_SECONDS = 30;

/** Probes are answered under any `Host`, or none. Without a `Host` a URL is a path. */
const PROBED = /^(?:https?:\/\/[^/]*)?\/(health|ready)(?:\?|$)/;

const PROBES: Readonly<Record<string, (context: HandlerContext) => Promise<Response>>> = { health, ready };

/** An app that serves these routes; not yet under the base path. */
export function appOf(routes: readonly Route[], { bodyMs, logsRequests, isTls, ...given }: AppOptions): Elysia {
  const { admission, log } = given;
  const app = new Elysia({
    normalize: false,
    // Elysia looks for the path after the 7th character of a URL, or with this option after the 11th. The 7th is too early for https://, the 11th is too
    // late for http:// with a short host. Bun itself finds paths that have a route, whatever is set here.
    handler: { standardHostname: isTls },
    serve: {
      reusePort: false,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER /* Each route has its own limit, with a problem document. */,
      development: false,
      error: (error) => toResponse(log, error), // For what Bun does by itself, such as a file of a page that can't be opened.
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
  if (logsRequests)
    app.onAfterResponse(({ request, responseValue }) => {
      const status = responseValue instanceof Response ? responseValue.status : null;
      log.debug("answered", { request: crypto.randomUUID(), method: request.method, url: request.url, status });
    });
  // Reads the body of a GET or DELETE, which its handler ignores.
  if (isTls) app.onAfterHandle(({ request }) => discardBody(request));
  // An answer that depends on something else too keeps that; Elysia adds headers only where there are none of that name.
  if (admission.variesByOrigin)
    app.onAfterHandle(({ responseValue }) => {
      if (responseValue instanceof Response && responseValue.headers.has("vary"))
        responseValue.headers.append("Vary", "Origin");
    });
  app
    .onRequest(({ request, set }) => {
      try {
        const allowed = admission.checkOrigin(request.headers);
        const answer = admission.preflight(request, allowed);
        if (answer) return new Response(null, { status: 204, headers: answer });
        if (allowed !== NO_HEADERS) Object.assign(set.headers, allowed);
      } catch (error) {
        // Load balancers and supervisors send no Host, or one of their own.
        const probe = request.method === "GET" || request.method === "HEAD" ? PROBED.exec(request.url)?.[1] : undefined;
        if (probe) return PROBES[probe]!(context).catch((fault: unknown) => toResponse(log, fault));
        // A browser hides this answer from the page that asked, and from its user.
        if (error instanceof PereError && error.code === "forbidden")
          log.cause("refused a request", {
            why: error.message,
            origin: request.headers.get("origin"),
            host: request.headers.get("host"),
          });
        return isTls ? discardBody(request).then(() => toResponse(log, error)) : toResponse(log, error);
      }
      return undefined;
    })
    .onError(async ({ code, error, request, path }) => {
      if (isTls) await discardBody(request);
      if (code !== "NOT_FOUND") return toResponse(log, error);
      const allowed = methodsAt(app.routes, path);
      if (allowed.length === 0) return problem(new PereError("unknown", `there is nothing at ${path}`));
      const response = problem(new PereError("wrongMethod", `${path} does not take ${request.method}`));
      response.headers.set("Allow", allowed.join(", "));
      return response;
    });
  for (const [method, path, right, handler, detail] of routes) {
    // The handler of an open route ignores the right.
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

/** Serves all routes under a base path too. @throws Error with the one line to print when the base path collides with a route */
export function mount(app: Elysia, basePath: string): void {
  const all = [...app.routes];
  const [, first] = basePath.split("/");
  if (all.some(({ path }) => path.split("/")[1] === first))
    throw new Error(`PERE_BASE_PATH must not begin with a path of PERE's own, as "${basePath}" does`);
  for (const { method, path, handler, hooks } of all) {
    const hidden = { ...(hooks as object), detail: { hide: true } };
    if (path !== "/") app.route(method, basePath + path, handler as () => unknown, hidden as object);
  }
  // Without the trailing slash, the relative URLs in the page would lead elsewhere.
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

/** The methods that routes accept at a path. */
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
