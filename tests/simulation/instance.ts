/**
 * One instance of PERE: its real engine, store and handlers, on a machine that can crash. Left out are the sockets of the operating system and
 * Elysia's routing: requests come as `Request`, and the handlers behind the routes answer them.
 */
import { copyFileSync, existsSync, fstatSync, rmSync, statSync, truncateSync } from "node:fs";
import type { Server } from "bun";
import { bodyReader, BODY_MS } from "../../engine/http/body.ts";
import { Clock as HeldClock } from "../../engine/clock.ts";
import { Counters } from "../../engine/counters.ts";
import { feedback } from "../../engine/http/feedback.ts";
import { followEvents, followReceipts } from "../../engine/http/follow.ts";
import { putHook } from "../../engine/http/hooks.ts";
import { toResponse } from "../../engine/http/problem.ts";
import { push } from "../../engine/http/push.ts";
import type { HandlerContext, Params } from "../../engine/http/context.ts";
import { openLog } from "../../engine/ops/logger.ts";
import { Admission } from "../../engine/http/admission.ts";
import { Engine, type Limits } from "../../engine/engine.ts";
import type { Send } from "../../engine/hooks/call.ts";
import { PereError } from "../../engine/model.ts";
import { RateLimiter } from "../../engine/http/rate-limit.ts";
import { RedisStore } from "../../engine/redis/store.ts";
import type { RecentEventsLimits } from "../../engine/sqlite/recent-events.ts";
import { SqliteStore } from "../../engine/sqlite/store.ts";
import type { Store } from "../../engine/store.ts";
import type { SocketData } from "../../engine/http/transports.ts";
import { type Clock, Machine, PlainResponse } from "./clock.ts";
import type { Host, SocketHandlers } from "./pipe.ts";

/** Where instances keep what they know. */
export type Disk =
  | { readonly kind: "redis" }
  /** `durableBytes`: the write-ahead log up to there survives a power cut. */
  | { readonly kind: "sqlite"; path: string; durableBytes: number; readonly recent: RecentEventsLimits };

export interface InstanceOptions {
  readonly clock: Clock;
  readonly disk: Disk;
  readonly limits: Partial<Limits>;
  readonly send: Send;
}

/** Files of worlds, in memory. */
let files = 0;
export const newFile = (): string => `/dev/shm/pere-simulation-${process.pid}-${files++}.db`;

/** The longest that a sync takes, milliseconds of the world. */
const SYNC_MS = 10;

/** Copies a file as it is found after a power cut. */
function surviving(path: string, durableBytes: number): string {
  const to = newFile();
  for (const end of ["", "-wal"]) if (existsSync(path + end)) copyFileSync(path + end, to + end);
  if (existsSync(`${to}-wal`)) truncateSync(`${to}-wal`, Math.min(durableBytes, statSync(`${to}-wal`).size));
  return to;
}

export function remove(path: string): void {
  for (const end of ["", "-wal", "-shm", ".lock"]) rmSync(path + end, { force: true });
}

/** Nobody reads these; one for all instances, as each takes megabytes. */
const counts = new Counters();

/** A fault that a plan put in: the service is to survive it. */
export class Tripped extends Error {}

/** One for all instances. */
const log = openLog();

const OPEN = { push: 0, receipt: 0, feed: 0 } as const;

export class Instance implements Host {
  readonly name: string;
  machine: Machine;
  readonly #options: InstanceOptions;
  #engine: Engine | null = null;
  #store: Store | null = null;
  #parts: HandlerContext | null = null;
  #lives = 0;
  /** Each ends a running sync. */
  readonly #syncing = new Set<() => void>();
  /** When it was up, milliseconds of the world. */
  readonly lives: { from: number; to: number }[] = [];
  /** Faults that nobody put in. */
  readonly incidents: string[] = [];

  constructor(name: string, options: InstanceOptions) {
    this.name = name;
    this.#options = options;
    this.machine = new Machine(name);
    this.machine.isAlive = false;
  }

  get isUp(): boolean {
    return this.#engine !== null && !this.#engine.draining;
  }

  /** What time it is by its own reckoning, milliseconds since 1970. */
  now: () => number = () => 0;

  get store(): Store {
    return this.#store!;
  }

  /** Starts it; on Redis that may take a while. */
  start(): void {
    if (this.machine.isAlive) return;
    const { clock } = this.#options;
    const { skewMs } = this.machine;
    this.machine = new Machine(`${this.name}.${++this.#lives}`);
    this.machine.skewMs = skewMs;
    clock.note(`${this.machine.name} starts`);
    clock.as(this.machine, () => void this.#start());
  }

  async #start(): Promise<void> {
    const { clock, disk, limits, send } = this.#options;
    let store: Store;
    for (;;)
      try {
        store =
          disk.kind === "sqlite"
            ? new SqliteStore({ path: disk.path, recent: disk.recent, counts, sync: (file) => this.#sync(file, disk) })
            : await RedisStore.open({ urls: ["redis://simulated"] });
        if (disk.kind === "sqlite") disk.durableBytes = statSync(`${disk.path}-wal`).size;
        break;
      } catch {
        await clock.sleep(500); // As whoever looks after the process starts it again.
      }
    const random = clock.random;
    const { machine } = this;
    const held = new HeldClock({ wall: () => clock.wall(machine), steady: () => clock.now, warn: () => {} });
    const { now } = held;
    this.now = now;
    this.#store = store;
    this.#engine = new Engine(store, {
      limits,
      random,
      counts,
      now,
      clock: held,
      hooksAllowed: [],
      report: (error) => {
        if (!(error instanceof Tripped))
          this.incidents.push(error instanceof Error ? (error.stack ?? "") : String(error));
      },
      hookCall: { resolve: async () => ["93.184.216.34"], send },
    });
    const rates = new RateLimiter(OPEN, null);
    const admission = new Admission({ access: null, origins: [], isLocal: false, rates, proxies: [], now });
    this.lives.push({ from: clock.now, to: Number.POSITIVE_INFINITY });
    const metrics = () => Promise.reject(new Error("nobody scrapes here"));
    const bodyOf = bodyReader(BODY_MS, () => {});
    this.#parts = { engine: this.#engine, admission, random, bodyOf, basePath: "", log, metrics };
  }

  #sync(file: number, disk: Disk & { kind: "sqlite" }): Promise<void> {
    const { size } = fstatSync(file);
    return new Promise((resolve) => {
      this.#syncing.add(resolve);
      setTimeout(() => {
        disk.durableBytes = Math.max(disk.durableBytes, size);
        this.#syncing.delete(resolve);
        resolve();
      }, this.#options.clock.random() * SYNC_MS);
    });
  }

  /** A power cut: what was not durable is gone, and nothing of it runs any more. */
  crash(): void {
    if (!this.machine.isAlive) return;
    const { clock, disk } = this.#options;
    clock.note(`${this.machine.name} crashes`);
    this.machine.isAlive = false;
    if (this.#engine) this.lives.at(-1)!.to = clock.now;
    this.#engine = this.#parts = null;
    if (disk.kind === "sqlite" && this.#store) {
      const old = disk.path;
      disk.path = surviving(old, disk.durableBytes);
      for (const end of this.#syncing) end(); // Nothing of it runs any more, but its files have to be closed.
      this.#syncing.clear();
      void this.#store.close();
      remove(old);
    }
    this.#store = null;
  }

  /** An orderly end. */
  async stop(): Promise<void> {
    const [engine, store] = [this.#engine, this.#store];
    if (!engine || !store) return;
    this.#options.clock.note(`${this.machine.name} stops`);
    this.lives.at(-1)!.to = this.#options.clock.now;
    await engine.drain();
    await engine.close();
    this.machine.isAlive = false;
    this.#engine = this.#parts = this.#store = null;
  }

  /** The end of its world. */
  discard(): void {
    this.machine.isAlive = false;
    if (this.#options.disk.kind === "sqlite") void this.#store?.close();
  }

  // --------------------------------------------------------------------------------------------------------------- requests

  async handle(request: Request, accept: (data: SocketHandlers) => void): Promise<PlainResponse | undefined> {
    const parts = this.#parts;
    if (!parts) return new PlainResponse("", { status: 503 });
    const server = {
      timeout() {},
      requestIP: () => ({ address: "192.0.2.1" }),
      upgrade(_request: Request, { data }: { data: SocketData }) {
        accept(data as unknown as SocketHandlers);
        return true;
      },
    } as unknown as Server<SocketData>;
    try {
      return (await this.#route(parts, request, server)) as unknown as PlainResponse | undefined;
    } catch (error) {
      if (!(error instanceof PereError || error instanceof Tripped))
        this.incidents.push(error instanceof Error ? (error.stack ?? "") : String(error));
      // Without a cause, so that nothing is logged: thousands of worlds have trouble all the time.
      const told =
        error instanceof PereError
          ? new PereError(error.code, error.message, error.faults)
          : new PereError("inside", "something went wrong in PERE");
      return toResponse(log, told) as unknown as PlainResponse;
    }
  }

  #route(parts: HandlerContext, request: Request, server: Server<SocketData>): Promise<Response | undefined> {
    const [, verb, channel = "", name = ""] = new URL(request.url).pathname.split("/").map(decodeURIComponent);
    const { engine } = parts;
    const params = { channel, name } as Params;
    const publisher = { ...parts, right: "push" } as const;
    const device = { ...parts, right: "feed" } as const;
    const made = (status: number): Response => new Response("{}", { status });
    switch (`${request.method} ${verb}`) {
      case "POST push":
        return push(publisher, params, request, server);
      case "GET feed":
        return followEvents(device, params, request, server);
      case "GET feedback":
        return followReceipts(publisher, params, request, server);
      case "POST feedback":
        return feedback(device, params, request, server);
      case "PUT devices":
        return engine.enrol(channel, name).then((isNew) => made(isNew ? 201 : 200));
      case "DELETE devices":
        return engine.retire(channel, name).then(() => made(204));
      case "PUT hooks":
        return putHook(publisher, params, request);
      case "GET events":
        return engine.event(channel, name).then((text) => new Response(text));
    }
    throw new PereError("unknown", `there is nothing at ${request.url}`);
  }
}
