/**
 * What handlers get: the context that all routes share, and the types of a handler.
 */
import type { Server } from "bun";
import type { Right } from "../auth/rights.ts";
import type { Engine } from "../engine.ts";
import type { Admission } from "./admission.ts";
import type { BodyReader } from "./body.ts";
import type { ErrorLog } from "./problem.ts";
import type { SocketData } from "./transports.ts";

/** Metrics in the format of Prometheus. */
export interface Scrape {
  readonly contentType: string;
  text(): Promise<string>;
}

/** What all requests are served with. */
export interface HandlerContext {
  readonly engine: Engine;
  readonly admission: Admission;
  readonly bodyOf: BodyReader;
  /** From 0 up to 1; spreads the reconnects of readers. */
  readonly random: () => number;
  /** Goes before the paths in answers. */
  readonly basePath: string;
  readonly log: ErrorLog;
  /** Made for the first scrape. */
  readonly metrics: () => Promise<Scrape>;
}

/** The same for one route: with the right that its caller needs on the channels of the path. */
export interface RouteContext extends HandlerContext {
  readonly right: Right;
}

/** The parameters in a route's path, percent-decoded. */
export type Params = Readonly<Record<"channel" | "device" | "id" | "name" | "file", string>>;

/** Answers a request; undefined: it has become a WebSocket. @throws PereError */
export type Handler = (
  context: RouteContext,
  params: Params,
  request: Request,
  server: Server<SocketData>,
) => Promise<Response | undefined> | Response | undefined;
