/**
 * One world: a plan played from its beginning to its end, with everything that was said and heard kept for `promises.ts`.
 *
 * Devices, publishers and followers are the SDK's own code. At the end of the trouble all lines are good, every instance and device is up and the
 * clocks are right; after a while what was promised must have come true.
 */
import { RECENT_LIMITS, type RecentEventsLimits } from "../../engine/sqlite/recent-events.ts";
import { chance } from "../support/chance.ts";
import {
  type Listener,
  listen,
  publish,
  publishMany,
  receipts,
  type ReceiptMessage,
  type SocketLike,
} from "../../clients/sdk/index.ts";
import { backup, restore } from "../../engine/sqlite/backup.ts";
import type { HookCall } from "../../engine/hooks/call.ts";
import { begin, type Clock, Machine } from "./clock.ts";
import { type Disk, Instance, newFile, remove, Tripped } from "./instance.ts";
import { Network } from "./line.ts";
import { Witness } from "./witness.ts";
import { type DevicePlan, type Plan, type Step, TROUBLE_MS, type Way } from "./plan.ts";
import { brokenPromises } from "./promises.ts";
import type { RealRedis } from "./real-redis.ts";
import { setRedis, SimulatedRedis } from "./redis.ts";

/** After the trouble so much time is given, milliseconds. */
const PEACE_MS = 100_000;
/** Before that it is looked whether all has come true already. */
const LOOKS_MS = [12_000, 30_000, PEACE_MS] as const;

/** A push, as its publisher knows it. */
export interface Push {
  readonly channel: string;
  readonly marker: number;
  readonly startedAt: number;
  readonly deadline: number | null;
  readonly ttl: number | null;
  id: string | null;
  addressed: number;
  receipts: Readonly<Record<string, number>> | null;
  complete: boolean | null;
  answeredAt: number;
  error: string | null;
}

const TIMING = {
  firstByteMs: 5_000,
  silentMs: 20_000,
  againMs: 20_000,
  requestMs: 8_000,
  pauseMsMax: 3_000,
  gatherMs: 25,
  flushMs: 5_000,
};

const URL_ = "http://pere.sim";

/** In every second world, all events that can go through the journal do; it is small, or merged late. */
const recentOf = (seed: number): RecentEventsLimits =>
  seed % 2 === 0
    ? RECENT_LIMITS
    : { rowBytes: 300, rows: seed % 3 === 0 ? 4 : 100, mergeRows: seed % 3 === 2 ? 100 : 2, nearChannels: 0 };

export class World {
  readonly plan: Plan;
  readonly clock: Clock;
  readonly network: Network;
  readonly instances: Instance[];
  readonly redis: SimulatedRedis | null;
  readonly pushes: Push[] = [];
  readonly witness: Witness;
  /** What each follower was told, in order. */
  readonly told = new Map<string, ReceiptMessage[]>();
  readonly hooks: { channel: string; at: number }[] = [];
  /** Redis was flushed, saved, put back. */
  flushedAt: number | null = null;
  savedAt: number | null = null;
  putBackAt: number | null = null;
  readonly retired: { channel: string; device: string; at: number }[] = [];
  readonly #devices = new Map<
    string,
    { plan: DevicePlan; machine: Machine; listener: Listener | null; kept: Map<string, string> }
  >();
  readonly #tripped = new Set<Instance>();
  /** Calls that a hook's receiver did not take. */
  readonly #refused = new Set<string>();
  readonly #disk: Disk;
  readonly #chance: () => number;
  /** What an operator can put back: of Redis, of a file. */
  #saved: readonly (readonly [string, string])[] | null = null;
  #copy: string | null = null;
  readonly #followers = new Map<string, { machine: Machine; channel: string; way: Way; position: string }>();

  /** @param sabotage loses the first word that an event is complete, on its way to its first reader */
  constructor(plan: Plan, real: RealRedis | null, sabotage = false) {
    this.plan = plan;
    const clock = begin(plan.seed);
    this.clock = clock;
    this.witness = new Witness(clock);
    this.#chance = chance(plan.seed ^ 0x5bd1e995);
    this.network = new Network(clock, chance(plan.seed ^ 0x2545f491), { ...plan.weather });
    this.redis = plan.store === "redis" ? new SimulatedRedis(clock, real!, chance(plan.seed ^ 0x7f4a7c15)) : null;
    if (this.redis) this.redis.cut = plan.redisCut;
    setRedis(this.redis);
    this.#disk =
      plan.store === "redis"
        ? { kind: "redis" }
        : { kind: "sqlite", path: newFile(), durableBytes: 0, recent: recentOf(plan.seed) };
    const limits = { keptEvents: plan.keptEvents, trimMs: plan.trimMs, beatMs: 5_000, seenMs: 5_000 };
    const send = (_url: URL, _addresses: readonly string[], call: HookCall) => this.#called(call);
    this.instances = Array.from(
      { length: plan.instances },
      (_, n) => new Instance(`i${n}`, { clock, disk: this.#disk, limits, send }),
    );
    this.network.hosts = this.instances;
    this.network.loses = sabotage ? "pere.complete" : null;
    this.network.heard = (client, heard) => {
      if (this.#devices.has(client)) this.witness.hears(client, heard);
    };
    this.network.writing = (host, bytes) => this.#writing(host as Instance, bytes);
  }

  /** Plays it. */
  async play(): Promise<void> {
    const { clock, plan } = this;
    for (const instance of this.instances) instance.start();
    for (const device of plan.devices)
      this.#devices.set(device.name, {
        plan: device,
        machine: new Machine(device.name),
        listener: null,
        kept: new Map(),
      });
    for (const follower of plan.followers) {
      const host = this.instances[follower.pinned ?? -1];
      if (host) this.network.pinned.set(follower.name, host);
      const machine = new Machine(follower.name);
      this.told.set(follower.name, []);
      this.#followers.set(follower.name, { ...follower, machine, position: "earliest" });
      clock.set(() => void this.#follow(follower.name), 10, machine);
    }
    for (const step of plan.steps) clock.set(() => this.#step(step), 20 + step.at, undefined);
    clock.set(() => this.#heal(), TROUBLE_MS, undefined);
    // Most worlds have come to rest soon; some are watched to the end all the same.
    for (const peaceMs of plan.seed % 8 === 0 ? [PEACE_MS] : LOOKS_MS) {
      await clock.run(TROUBLE_MS + peaceMs, () => this.witness.wrong.length > 0);
      if (this.witness.wrong.length > 0) break;
      const broken = await this.#look();
      if (broken.length === 0) break;
      if (peaceMs === PEACE_MS) this.witness.wrong.push(...broken);
    }
    for (const error of clock.uncaught)
      this.witness.wrong.push(`thrown and not caught: ${(error as Error)?.stack ?? String(error)}`);
    for (const { incidents } of this.instances)
      for (const one of incidents) this.witness.wrong.push(`a fault inside: ${one}`);
  }

  /** Which promises are broken as things stand. */
  async #look(): Promise<readonly string[]> {
    const broken: string[] = [];
    let isOver = false;
    const look = async (): Promise<void> => {
      try {
        for (const channel of this.plan.channels) broken.push(...(await brokenPromises(this, channel)));
      } catch (error) {
        this.clock.uncaught.push(error);
      }
      isOver = true;
    };
    this.clock.set(() => void look(), 0, undefined);
    await this.clock.run(this.clock.now + 20_000, () => isOver);
    return isOver ? broken : ["looking: the store did not answer"];
  }

  /** Lets go of everything. */
  end(): void {
    for (const { machine } of this.#devices.values()) machine.isAlive = false;
    for (const instance of this.instances) instance.discard();
    setRedis(null);
    if (this.#disk.kind === "sqlite") remove(this.#disk.path);
    if (this.#copy !== null) remove(this.#copy);
  }

  // ------------------------------------------------------------------------------------------------------------------ steps

  #step(step: Step): void {
    this.clock.note(JSON.stringify(step));
    const instance = "instance" in step ? this.instances[step.instance]! : this.instances[0]!;
    switch (step.kind) {
      case "push":
        return void this.clock.as(new Machine(`p${step.marker}`), () => this.#push(step));
      case "say":
      case "look":
      case "enrol":
      case "retire":
      case "hook":
        return void this.#request(step);
      case "start":
        return this.#start(step.device);
      case "kill":
        return this.#kill(step.device);
      case "end":
        return this.#end(step.device);
      case "set clock":
        this.#devices.get(step.device)!.machine.skewMs = step.ms;
        return;
      case "follow again":
        return this.#followAgain(step.follower);
      case "cut":
        return this.network.cut(step.client);
      case "stall":
        return this.network.stall(step.client, step.ms);
      case "crash":
        this.network.crashed(instance);
        instance.crash();
        return void this.clock.set(() => instance.start(), step.ms, undefined);
      case "restart":
        return void instance.stop().then(() => {
          this.network.crashed(instance);
          this.clock.set(() => instance.start(), step.ms, undefined);
        });
      case "leap":
        instance.machine.skewMs += step.ms;
        return;
      case "trip":
        return void this.#tripped.add(instance);
      case "redis down":
        if (!this.redis) return;
        this.redis.isDown = true;
        this.redis.drop();
        return void this.clock.set(() => (this.redis!.isDown = false), step.ms, undefined);
      case "redis stall":
        if (this.redis) this.redis.stalledUntil = this.clock.now + step.ms;
        return;
      case "redis drop":
        return this.redis?.drop();
      case "flush":
        this.flushedAt = this.clock.now;
        this.witness.forgets();
        return this.redis?.execute([["FLUSHALL"]], () => {});
      case "save":
        this.savedAt = this.clock.now;
        return this.#save();
      case "put back":
        return this.#putBack();
    }
  }

  #save(): void {
    if (this.#disk.kind === "sqlite") {
      this.#copy = newFile();
      return void backup(this.#disk.path, this.#copy);
    }
    this.clock.held++;
    this.redis!.real.dump((kept) => {
      this.#saved = kept;
      this.clock.release();
    });
  }

  #putBack(): void {
    if (this.savedAt === null) return;
    this.putBackAt = this.clock.now;
    this.witness.forgets();
    if (this.#disk.kind === "sqlite") {
      const [instance] = this.instances;
      this.network.crashed(instance!);
      instance!.crash();
      remove(this.#disk.path);
      this.#disk.path = newFile();
      restore(this.#copy!, this.#disk.path);
      return instance!.start();
    }
    this.redis!.drop();
    this.clock.held++;
    this.redis!.real.restore(this.#saved!, () => this.clock.release());
  }

  #heal(): void {
    this.clock.note("all is well from now on");
    Object.assign(this.network.weather, { lost: 0, cut: 0, slow: 0 });
    this.#tripped.clear();
    if (this.redis) {
      Object.assign(this.redis, { cut: 0, slow: 0, isDown: false, stalledUntil: 0 });
    }
    for (const instance of this.instances) {
      instance.machine.skewMs = 0;
      instance.start();
    }
    for (const name of this.#devices.keys()) {
      this.network.stall(name, 0);
      this.#start(name);
    }
    for (const { name } of this.plan.followers) this.network.stall(name, 0);
  }

  // ---------------------------------------------------------------------------------------------------------------- clients

  /** What is between a client and the service lets one way through, or all. */
  #reach(client: string, way: Way) {
    const { network, clock } = this;
    const isAllowed = (headers: Headers): boolean =>
      way === "sse" || way === "any" || headers.get("accept") !== "text/event-stream";
    const WebSocket = way === "websocket" || way === "any" ? network.socket(client) : null;
    return {
      url: URL_,
      fetch: network.fetch(client, isAllowed),
      WebSocket: WebSocket as unknown as (new (url: string, protocols: string[]) => SocketLike) | null,
      random: clock.random,
      now: () => clock.wall(),
      timing: TIMING,
    };
  }

  #start(name: string): void {
    const device = this.#devices.get(name)!;
    if (device.listener) return;
    device.machine = new Machine(name);
    this.clock.note(`device ${name} starts`);
    this.clock.as(device.machine, () => this.#listen(device));
  }

  #listen(device: { plan: DevicePlan; machine: Machine; listener: Listener | null; kept: Map<string, string> }): void {
    const { plan, machine, kept } = device;
    const { name } = plan;
    device.listener = listen<{ marker: number }>({
      ...this.#reach(name, plan.way),
      channels: plan.channels,
      device: name,
      concurrency: plan.concurrency,
      storage: {
        get: (key) => kept.get(key),
        set: (key, text) => void (machine.isAlive && kept.set(key, text)),
      },
      onEvent: async ({ id }, { working }) => {
        if (plan.workMs > 0) {
          if (this.#chance() < 0.3) working();
          await this.clock.sleep(plan.workMs * this.#chance());
        }
        this.witness.says(id, name);
        if (this.#chance() < plan.failed) throw new Error("out of paper");
        return { by: name };
      },
      onReceipt: ({ event, status }) => machine.isAlive && this.witness.acknowledges(event, name, status),
      onGap: ({ channel, after, from }) => this.witness.gaps.push({ device: name, channel, after, from }),
    });
  }

  #kill(name: string): void {
    const device = this.#devices.get(name)!;
    if (!device.listener) return;
    device.machine.isAlive = false;
    device.listener = null;
    this.network.cut(name);
    this.clock.set(() => this.#start(name), 2_000, undefined);
  }

  /** Ends it in order, and starts it again. */
  #end(name: string): void {
    const device = this.#devices.get(name)!;
    const { listener, machine } = device;
    if (!listener) return;
    this.clock.as(machine, () => {
      void listener.close().then(() => {
        if (device.listener !== listener) return;
        device.listener = null;
        this.clock.set(() => this.#start(name), 500, undefined);
      });
    });
  }

  async #follow(name: string): Promise<void> {
    const follower = this.#followers.get(name)!;
    const { machine, channel, way, position } = follower;
    const told = this.told.get(name)!;
    const following = receipts({ ...this.#reach(name, way), channel, since: position });
    for await (const said of following) {
      if (!machine.isAlive) return;
      this.clock.note(`${name} is told ${JSON.stringify(said)}`);
      told.push(said);
      follower.position = following.position || "earliest";
    }
  }

  /** A publisher's program is killed, and goes on from the position that it wrote down. */
  #followAgain(name: string): void {
    const follower = this.#followers.get(name);
    if (!follower) return;
    follower.machine.isAlive = false;
    this.network.cut(name);
    follower.machine = new Machine(name);
    this.clock.set(() => void this.#follow(name), 1_000, follower.machine);
  }

  async #push({ channel, marker, count, options }: Extract<Step, { kind: "push" }>): Promise<void> {
    const { clock } = this;
    const { deadline = null, ttl = null } = options;
    const pushed = Array.from({ length: count }, (_, n): Push => {
      const answer = { id: null, addressed: 0, receipts: null, complete: null, answeredAt: 0, error: null };
      return { channel, marker: marker + n, startedAt: clock.now, deadline, ttl, ...answer };
    });
    this.pushes.push(...pushed);
    const { fetch, random, now, timing } = this.#reach("p0", "sse");
    const how = { fetch, random, now, timing, ...options, giveUpMs: 200_000, key: `key-${marker}` };
    const data = pushed.map((one) => ({ marker: one.marker }));
    try {
      const answers =
        count === 1
          ? [await publish(URL_, channel, data[0], how)]
          : await publishMany(URL_, channel, data, how).then(({ events, audience }) =>
              events.map((event) => ({ ...event, audience })),
            );
      answers.forEach(({ id, audience, receipts: tally = null, complete = null }, n) => {
        const { addressed } = audience;
        Object.assign(pushed[n]!, { id, addressed, receipts: tally, complete, answeredAt: clock.now });
        clock.note(`push ${marker + n} is ${id} ${JSON.stringify(tally)}`);
      });
    } catch (error) {
      for (const push of pushed) push.error = String(error);
    }
  }

  /** One request of somebody who tries until he is answered, as long as there is trouble. */
  async #request(step: Extract<Step, { kind: "say" | "look" | "enrol" | "retire" | "hook" }>): Promise<void> {
    const pushed = this.pushes.filter(({ channel, id }) => channel === step.channel && id !== null);
    const about = "back" in step ? pushed.at(-1 - step.back) : undefined;
    if ("back" in step && !about) return;
    const id = about?.id ?? "";
    const path = { say: "feedback", look: "events", enrol: "devices", retire: "devices", hook: "hooks" }[step.kind];
    const tail =
      step.kind === "say" ? "" : step.kind === "look" ? `/${id}` : step.kind === "hook" ? "/h" : `/${step.device}`;
    const method = { say: "POST", look: "GET", enrol: "PUT", retire: "DELETE", hook: "PUT" }[step.kind];
    const headers = { "Content-Type": "application/json" };
    const body =
      step.kind === "say"
        ? JSON.stringify({ event: id, device: step.device, status: step.status })
        : step.kind === "hook"
          ? JSON.stringify({ url: `http://hook.sim/${step.channel}`, secret: `whsec_${"A".repeat(43)}=` })
          : undefined;
    const isFinal = step.kind === "say" && (step.status === "done" || step.status === "failed");
    if (step.kind === "say" && isFinal) this.witness.says(id, step.device);
    for (let tries = 0; tries < 20; tries++) {
      const answer = await this.network
        .fetch("p0")(`${URL_}/${path}/${step.channel}${tail}`, { method, headers, ...(body ? { body } : {}) })
        .catch(() => null);
      if (answer && answer.status < 500) return this.#answered(step, id, answer.status, await answer.text());
      await this.clock.sleep(1_000);
    }
  }

  #answered(
    step: Extract<Step, { kind: "say" | "look" | "enrol" | "retire" | "hook" }>,
    id: string,
    status: number,
    text: string,
  ): void {
    if (step.kind === "say" && status === 200) this.witness.acknowledges(id, step.device, step.status);
    if (step.kind === "retire") this.retired.push({ channel: step.channel, device: step.device, at: this.clock.now });
    if (step.kind === "hook" && status < 300) this.hooks.push({ channel: step.channel, at: this.clock.now });
    if (step.kind !== "look" || status !== 200) return;
    const { audience, receipts: tally } = JSON.parse(text) as {
      audience: { addressed: number };
      receipts: Record<string, number>;
    };
    const counts = Object.values(tally);
    if (counts.some((count) => count < 0) || counts.reduce((a, b) => a + b, 0) !== audience.addressed)
      this.witness.wrong.push(`tally: of ${id} it does not add up: ${text}`);
  }

  // ------------------------------------------------------------------------------------------------------- what is seen on the way

  /** An internal fault: the transport throws in the place of a write. */
  #writing(host: Instance, bytes: Uint8Array | string): void {
    if (!this.#tripped.has(host)) return;
    const text = typeof bytes === "string" ? bytes : new TextDecoder().decode(bytes);
    if (!text.includes('"seq":')) return;
    this.#tripped.delete(host);
    this.clock.note("an internal fault");
    throw new Tripped("an internal fault, put in by the plan");
  }

  async #called({ id, url, body }: HookCall): Promise<{ status: number }> {
    await this.clock.sleep(5 + 50 * this.#chance());
    // Once each: the third try would come after five minutes.
    const isBad = this.clock.now < TROUBLE_MS && !this.#refused.has(id) && this.#chance() < 0.15;
    if (isBad) this.#refused.add(id);
    if (isBad && this.#chance() < 0.5) throw new Error("nobody listens");
    if (!isBad) this.witness.calls.push({ channel: new URL(url).pathname.slice(1), id, body });
    return { status: isBad ? 500 : 200 };
  }
}
