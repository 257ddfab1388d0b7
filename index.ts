#!/usr/bin/env bun
/**
 * PERE: Pushed Events with return Receipt Engine.
 *
 *   events    ↓   POST /push/:channel       GET /feed/:channel        (devices)
 *   receipts  ↑   POST /feedback/:channel   GET /feedback/:channel    (publishers)
 *
 * Read it from top to bottom: the table of routes, then settings → store → engine → app → start and drain. The handlers are in `engine/http/`;
 * below it, `engine/` knows no HTTP. `web/openapi.ts` and `web/asyncapi.ts` describe the routes to others.
 */
import { uptime } from "node:os";
import { join } from "node:path";
import { staticPlugin } from "@elysiajs/static";
import { swagger } from "@elysiajs/swagger";
import type { Elysia } from "elysia";
import packageJson from "./package.json";
import { issueToken } from "./engine/auth/issue.ts";
import { NO_DEVICE, openAccess } from "./engine/auth/tokens.ts";
import { Clock } from "./engine/clock.ts";
import { Counters } from "./engine/counters.ts";
import { descriptors } from "./engine/descriptors.ts";
import { Engine, type EngineOptions, LIMITS } from "./engine/engine.ts";
import { Admission } from "./engine/http/admission.ts";
import { appOf, type AppOptions, mount, type Route } from "./engine/http/app.ts";
import { BODY_MS } from "./engine/http/body.ts";
import { readCertificate } from "./engine/http/certificate.ts";
import { deleteChannel, listChannels } from "./engine/http/channels.ts";
import type { Handler, Params, RouteContext } from "./engine/http/context.ts";
import {
  deviceHistory,
  enrolDevice,
  listDevices,
  readOneDevice,
  retireDevice,
  tagDevice,
} from "./engine/http/devices.ts";
import { feedback } from "./engine/http/feedback.ts";
import { followEvents, followReceipts } from "./engine/http/follow.ts";
import { dropHook, listHooks, putHook, retryHook, testHook } from "./engine/http/hooks.ts";
import { addressesOf, type Listener, listen } from "./engine/http/listener.ts";
import { health, ready, scrape } from "./engine/http/probes.ts";
import { push, pushAgain } from "./engine/http/push.ts";
import { RateLimiter } from "./engine/http/rate-limit.ts";
import { listEvents, readAttention, readEvent, receiptRows, withdrawEvent } from "./engine/http/reading.ts";
import { pathOf } from "./engine/http/request.ts";
import { cancelScheduled, listScheduled, readScheduled } from "./engine/http/scheduled.ts";
import { watch } from "./engine/http/watch.ts";
import type { Command } from "./engine/ops/commands.ts";
import { openLog } from "./engine/ops/logger.ts";
import type { Metrics } from "./engine/ops/metrics.ts";
import { readSettings, type Settings } from "./engine/ops/settings.ts";
import { freshSecret } from "./engine/sqlite/secret-file.ts";
import { SqliteStore } from "./engine/sqlite/store.ts";
import type { Store } from "./engine/store.ts";
import { asyncapi } from "./web/asyncapi.ts";
import { BUILT, SDK, SDK_TYPES } from "./web/build.ts";
import { document, operations } from "./web/openapi.ts";
import { documentOf, PAGE, pagesOf } from "./web/pages.ts";

// ------------------------------------------------------------------------------------------------------------------ pages

/** The folder of the pages and what they load, in the source tree and in the executable. */
const WEB = join(import.meta.dir, "web");
/** Files there that are not served as they are: those in folders other than `monitoring/`, and those that are bundled or have a route. */
const SOURCES = new RegExp(`^${RegExp.escape(WEB)}/(?!monitoring/).+/|\\.(ts|html)$`);
const built = pagesOf(WEB);

/** The console. A token in its URL moves into a cookie that scripts can't read, and the browser is redirected to the URL without it. */
async function home({ admission, basePath }: RouteContext, _params: Params, request: Request): Promise<Response> {
  const token = new URL(request.url).searchParams.get("token");
  if (token === null) return built("/", request);
  const headers: Record<string, string> = { Location: `${basePath}/`, "Cache-Control": "no-store", ...PAGE };
  const isSecure = request.url.startsWith("https:") || request.headers.get("x-forwarded-proto") === "https";
  const cookie = await admission.cookie(token, isSecure, `${basePath}/`);
  if (cookie !== null) headers["Set-Cookie"] = cookie;
  return new Response(null, { status: 303, headers });
}

/** A page or a script that has a route of its own. */
const page =
  (path: string): Handler =>
  (_context, _params, request) =>
    built(path, request);

// ----------------------------------------------------------------------------------------------------------------- routes

/** Left out of the OpenAPI document. */
const HIDDEN = { hide: true };

/** All routes: method, path, the right that a caller needs on the channel, handler, and description in the OpenAPI document. */
const ROUTES: readonly Route[] = [
  ["POST", "/push/:channel", "push", push, operations.push],
  ["GET", "/feed/:channel", "feed", followEvents, operations.feed],
  ["POST", "/feedback/:channel", "feed", feedback, operations.feedback],
  ["GET", "/feedback/:channel", "push", followReceipts, operations.receipts],

  ["GET", "/watch", "push", watch, operations.watch],
  ["GET", "/attention", "push", readAttention, operations.attention],
  ["GET", "/channels", "push", listChannels, operations.channels],
  ["DELETE", "/channels/:channel", "push", deleteChannel, operations.deleteChannel],
  ["GET", "/events/:channel", "push", listEvents, operations.events],
  ["GET", "/events/:channel/:id", "push", readEvent, operations.event],
  ["DELETE", "/events/:channel/:id", "push", withdrawEvent, operations.withdraw],
  ["POST", "/events/:channel/:id/again", "push", pushAgain, operations.again],
  ["GET", "/events/:channel/:id/receipts", "push", receiptRows, operations.rows],
  ["GET", "/scheduled/:channel", "push", listScheduled, operations.scheduled],
  ["GET", "/scheduled/:channel/:id", "push", readScheduled, operations.schedule],
  ["DELETE", "/scheduled/:channel/:id", "push", cancelScheduled, operations.cancel],

  ["GET", "/devices/:channel", "push", listDevices, operations.devices],
  ["GET", "/devices/:channel/:device", "push", readOneDevice, operations.device],
  ["GET", "/devices/:channel/:device/receipts", "push", deviceHistory, operations.history],
  ["PUT", "/devices/:channel/:device", "push", enrolDevice, operations.enrol],
  ["PATCH", "/devices/:channel/:device", "push", tagDevice, operations.tag],
  ["DELETE", "/devices/:channel/:device", "push", retireDevice, operations.retire],

  ["GET", "/hooks/:channel", "push", listHooks, operations.hooks],
  ["PUT", "/hooks/:channel/:name", "push", putHook, operations.putHook],
  ["DELETE", "/hooks/:channel/:name", "push", dropHook, operations.dropHook],
  ["POST", "/hooks/:channel/:name/retry", "push", retryHook, operations.retryHook],
  ["POST", "/hooks/:channel/:name/test", "push", testHook, operations.testHook],

  ["GET", "/health", null, health, operations.health],
  ["GET", "/ready", null, ready, operations.ready],
  ["GET", "/metrics", "push", scrape, operations.metrics],

  ["GET", "/", null, home, HIDDEN],
  ["GET", "/weblistener.html", null, page("/weblistener.html"), HIDDEN],
  ["GET", "/console-worker.js", null, page("/console-worker.js"), HIDDEN],
  ["GET", "/weblistener-worker.js", null, page("/weblistener-worker.js"), HIDDEN],
  ["GET", SDK, null, page(SDK), HIDDEN],
  ["GET", SDK_TYPES, null, page(SDK_TYPES), HIDDEN],
  ["GET", `${BUILT}:file`, null, (_context, params, request) => built(BUILT + params.file, request), HIDDEN],
];

/** The app with the routes, static files and the API page. @throws Error with the one line to print */
async function makeApp(options: AppOptions): Promise<Elysia> {
  const app = appOf(ROUTES, options);
  app.use(
    await staticPlugin({
      assets: WEB,
      prefix: "/",
      alwaysStatic: true,
      ignorePatterns: [SOURCES],
      directive: "no-cache",
      maxAge: null,
      headers: { "X-Content-Type-Options": "nosniff" },
    }),
  );
  // The plugin makes the document. Its page loads a script from another host, so our page replaces it, with and without a trailing slash.
  app.use(swagger({ documentation: document(packageJson.version, options.basePath) }));
  const plugin = app.routes.find(({ path }) => path === "/swagger/json")!.handler as (context: object) => unknown;
  const documents: Readonly<Record<string, (request: Request) => Promise<Response>>> = {
    "/swagger/json": documentOf(() => plugin({})),
    "/asyncapi.json": documentOf(() => asyncapi(packageJson.version, options.basePath)),
  };
  for (const [path, respond] of Object.entries(documents))
    app.get(path, ({ request }) => respond(request), { detail: HIDDEN });
  // One route answers both paths, whose relative addresses differ.
  const api = ({ request }: { readonly request: Request }): Promise<Response> =>
    built(pathOf(request).endsWith("/") ? "/swagger/" : "/swagger", request);
  for (const path of ["/swagger", "/swagger/"]) app.get(path, api, { detail: HIDDEN });
  if (options.basePath !== "") mount(app, options.basePath);
  return app;
}

// -------------------------------------------------------------------------------------------------------- start and drain

/** The log; opened again when the operator sets another level. */
let log = openLog();

/** A running service. */
export interface Service {
  readonly url: string;
  readonly engine: Engine;
  /** The path of the console with an all-rights token, if PERE made its own secret; else null. */
  link(): Promise<string | null>;
  /** Uses the certificate that is in the files now, for new connections. @throws Error when it can't be used; nothing changes then */
  renew(): void;
  /** Reads the key set for tokens again. @throws Error when it can't be used; nothing changes then */
  rekey(): Promise<void>;
  /** Refuses new pushes, closes every feed, makes everything acknowledged durable, and releases file and port. */
  stop(): Promise<void>;
}

/** Milliseconds after which the process ends in any case: supervisors kill it after ten seconds. Everything acknowledged is durable by then. */
const STOP_MS = 9_000;

/** What the token of the console link allows, and for how long. It is for a person, not a device. */
const LINK = { sub: NO_DEVICE, push: ["*"], feed: ["*"], days: 30 };

/** The secret that PERE makes for itself at its first start. @throws PereError away; then the store is closed */
const ownSecret = (store: Store): Promise<string> =>
  store.secret(freshSecret()).catch(async (error: unknown) => {
    await store.close();
    throw error;
  });

/** The Redis client is loaded only when needed. */
async function openRedis(urls: readonly string[], replicas: number, prefix: string): Promise<Store> {
  const { RedisStore } = await import("./engine/redis/store.ts");
  return RedisStore.open({ urls, replicas, prefix });
}

export interface ServiceOptions extends EngineOptions {
  /** Milliseconds that a body may take, on top of the time that its length needs. */
  readonly bodyMs?: number;
  /** The monotonic clock that `now` is checked against, in milliseconds. Without it a given `now` is trusted. */
  readonly steady?: () => number;
}

/** Starts PERE. @throws PereError or Error when the file or the port can't be opened */
export async function serve(settings: Settings, options: ServiceOptions = {}): Promise<Service> {
  const { db, redis, replicas, hooksAllowed, limits, basePath } = settings;
  const { now: wall = Date.now, random = Math.random, bodyMs = BODY_MS } = options;
  const steady = options.steady ?? (options.now ? wall : () => performance.now());
  const slept = options.now || options.steady ? {} : { uptime: () => 1000 * uptime() };
  const clock = new Clock({ wall, steady, ...slept, warn: (sentence) => log.warn(sentence) });
  const { now, stamp } = clock;
  // A wrong certificate or key stops the start before anything is opened.
  if (settings.tls) readCertificate(settings.tls);
  const given = typeof settings.access === "string" ? null : await openAccess({ ...settings.access, now, stamp });
  const counts = new Counters(settings.metricsChannels);
  const store =
    redis === null
      ? new SqliteStore({
          path: db,
          counts,
          warn: (sentence, cause) => log.warn(sentence, cause === undefined ? {} : { cause }),
        })
      : await openRedis(redis, replicas, settings.redisPrefix);
  const own = settings.access === "own" ? await ownSecret(store) : null;
  const access = own === null ? given : await openAccess({ secret: own, now, stamp });
  const report = (fault: unknown): void => void log.incident(fault);
  const all = { ...limits, ...options.limits };
  const engine = new Engine(store, {
    hooksAllowed,
    counts,
    report,
    ...options,
    now,
    clock,
    limits: { ...all, feeds: Math.min(all.feeds ?? LIMITS.feeds, descriptors().feeds) },
  });
  if (settings.log !== "info") log = openLog(settings.log);
  const { origins, proxies } = settings;
  const rates = new RateLimiter(settings.rates, redis, log.cause, settings.redisPrefix);
  const admission = new Admission({ access, origins, isLocal: settings.access === "local", rates, proxies, now });
  let scraped: Promise<Metrics> | undefined;
  const metrics = (): Promise<Metrics> =>
    (scraped ??= import("./engine/ops/metrics.ts").then(
      ({ Metrics }) => new Metrics({ engine, store, version: packageJson.version }),
    ));
  const [logsRequests, isTls] = [settings.log === "debug", settings.tls !== null];
  const served = { engine, admission, random, basePath, log, metrics, bodyMs, logsRequests, isTls };
  let listening: Listener;
  try {
    // One app per address, because an app knows one server. They share everything else.
    const addresses = await addressesOf(settings.host);
    const apps = await Promise.all(addresses.map(() => makeApp(served)));
    listening = listen(addresses, (opening, nth) => apps[nth]!.listen(opening).server!, settings);
  } catch (error) {
    await engine.drain();
    await engine.close();
    throw error;
  }
  const host = settings.host.includes(":") ? `[${settings.host}]` : settings.host;
  return {
    link: async () => (own === null ? null : `${basePath}/?token=${await issueToken({ secret: own, now }, LINK)}`),
    url: `http${settings.tls ? "s" : ""}://${host}:${listening.port}`,
    engine,
    renew: listening.renew,
    rekey: async () => access?.reload(),
    async stop() {
      await engine.drain();
      await listening.stop();
      (await scraped)?.stop();
      await Promise.all([rates.close(), engine.close()]);
    },
  };
}

/** Commands that run instead of the service; loaded only when needed. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  token: async () => (await import("./engine/ops/commands.ts")).commands.token,
  backup: async () => (await import("./engine/ops/commands.ts")).commands.backup,
  restore: async () => (await import("./engine/ops/commands.ts")).commands.restore,
  compact: async () => (await import("./engine/ops/commands.ts")).commands.compact,
  doctor: async () => (await import("./clients/doctor.ts")).doctor,
  health: async () => (await import("./clients/health.ts")).health,
  "--help": async () => (await import("./engine/ops/commands.ts")).commands.help,
};

/** How the error message names a command, where its own name does not fit. */
const VERBS: Readonly<Record<string, string>> = {
  token: "make a token",
  backup: "back up",
  doctor: "examine",
  health: "be reached",
  demo: "start the demo",
};

/** Signals that end PERE, after a drain. */
const ENDING = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGXCPU"] as const;
/** Signals that would end the process by default, and are ignored here. */
const IGNORED = ["SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGXFSZ"] as const;

/** The URL for programs on this machine: a service on all addresses also listens on loopback. */
const localUrl = ({ url }: Service): string => url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");

/** Runs beside the service, until it is called to end. */
type Companion = (service: Service) => Promise<() => Promise<void>>;

/**
 * Runs PERE until a signal ends it, and prints where it listens.
 * @param start starts the service @param accompany starts what ends before it @throws Error with the one line to print
 */
async function run(settings: Settings, start = serve, accompany?: Companion): Promise<void> {
  let service: Service | undefined;
  let endCompanion: (() => Promise<void>) | undefined;
  let isEnding = false;
  for (const signal of IGNORED) process.on(signal, () => log.debug(`${signal} is ignored`));
  process.on("SIGHUP", async () => {
    if (!service) return; // The start reads both anyway.
    for (const [what, read] of [
      ["the certificate", service.renew],
      ["the key set", service.rekey],
    ] as const)
      try {
        await read();
      } catch (error) {
        log.warn(`${what} was not reloaded`, { error: error as Error });
      }
  });
  for (const signal of ENDING)
    process.on(signal, () => {
      if (isEnding || !service) process.exit(isEnding ? 1 : 0); // Before the start has finished, nothing was acknowledged.
      isEnding = true;
      const stopped = Promise.resolve(endCompanion?.()).then(service.stop);
      void Promise.race([stopped, Bun.sleep(STOP_MS)]).then(() => process.exit(0));
    });
  service = await start(settings);
  console.log(`PERE listening on ${service.url}`);
  for (const name of settings.unknown) log.warn(`unknown setting ${name} is ignored`);
  const link = await service.link();
  if (link !== null)
    console.log(
      `No key is configured, so PERE made its own secret. Link with all rights, valid for ${LINK.days} days: ${localUrl(service)}${link}`,
    );
  service.engine.ready().then(
    ({ version, durability, advice }) => {
      console.log(`PERE keeps its logs in ${version}, durability: ${durability}`);
      for (const sentence of advice) console.log(sentence);
    },
    (error: Error) => log.warn("the store is away", { error }),
  );
  endCompanion = await accompany?.(service);
}

/** Events that the demo keeps per channel; it may run for days. */
const DEMO_KEPT = "1000";

/** Runs PERE in memory with a simulated fleet. No settings are read. @throws Error with the one line to print */
async function runDemo(args: readonly string[]): Promise<void> {
  const { guide, readDemo, startFleet } = await import("./clients/demo.ts");
  const { host, port, seed } = readDemo(args);
  const flags = [...(host === undefined ? [] : ["--host", host]), ...(port === undefined ? [] : ["--port", port])];
  const settings = readSettings(flags, { PERE_DB: ":memory:", PERE_KEEP_EVENTS: DEMO_KEPT });
  // The default port may be taken, such as by the real service; one that was asked for must be free.
  const start = (asked: Settings): Promise<Service> =>
    serve(asked).catch((error: Error) => {
      if (port !== undefined || (error.cause as { code?: string } | undefined)?.code !== "EADDRINUSE") throw error;
      return serve({ ...asked, port: 0 });
    });
  await run(settings, start, async (service) => {
    const url = localUrl(service);
    const link = await service.link();
    const token = link === null ? undefined : new URL(link, url).searchParams.get("token")!;
    for (const line of guide(url, link === null ? `${url}/` : url + link)) console.log(line);
    return startFleet({ url, token, seed });
  });
}

if (import.meta.main) {
  const [name = "", ...args] = process.argv.slice(2);
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  try {
    // Help must work with wrong settings too.
    const env = name === "--help" ? {} : process.env;
    if (load) process.exit(await (await load())(args, readSettings([], env)));
    await (name === "demo" ? runDemo(args) : run(readSettings(process.argv.slice(2), process.env)));
  } catch (error) {
    console.error(`PERE can't ${VERBS[name] ?? (load ? name : "start")}: ${(error as Error).message}`);
    process.exit(1);
  }
}
