/**
 * A real Redis under a simulated clock. Its commands, scripts and their order are its own; the way to it is ours.
 *
 * What a client sends arrives in one moment of the simulated time. Then the clock stands still until the real server has answered, and answers and
 * messages set out on their way back, each line in its own time. So lines may be late, break with commands or answers on them, or stall, and the
 * same seed gives the same history. `TIME` in a script is the simulated one.
 *
 * In the place of the package `redis` stands a client with the part of its face that PERE uses.
 */
import { createHash } from "node:crypto";
import { type Clock, Machine, START_MS } from "./clock.ts";
import type { Message, RealRedis, Value } from "./real-redis.ts";

/** Scripts ask for the time; it comes as their last argument. */
const TIMED = "local simulated = { tostring(table.remove(ARGV)), '0' }\n";
const timed = (text: string): string =>
  text.includes("redis.call('TIME')") ? TIMED + text.replaceAll("redis.call('TIME')", "simulated") : text;

/** The Redis of one world. */
export class SimulatedRedis {
  readonly clock: Clock;
  readonly real: RealRedis;
  readonly #chance: () => number;
  readonly clients = new Set<Client>();
  /** Of each delay: that it is a long one. */
  slow = 0.01;
  /** Of each batch of commands: that the connection breaks with it, before or behind the server. */
  cut = 0;
  isDown = false;
  stalledUntil = 0;
  readonly #scripts = new Map<string, string>();

  constructor(clock: Clock, real: RealRedis, chance: () => number) {
    this.clock = clock;
    this.real = real;
    this.#chance = chance;
  }

  chance(): number {
    return this.#chance();
  }

  delayMs(): number {
    const stalledMs = Math.max(0, this.stalledUntil - this.clock.now);
    return stalledMs + (this.#chance() < this.slow ? 50 + 600 * this.#chance() : 0.2 + 2 * this.#chance());
  }

  /** All connections break. */
  drop(): void {
    for (const client of [...this.clients]) client.broken(new Error("the connection to Redis broke"));
  }

  /** Carries out commands; the world stands still meanwhile. */
  execute(commands: readonly (readonly string[])[], then: (answers: readonly Value[]) => void): void {
    const time = String((START_MS + Math.floor(this.clock.now)) / 1000);
    const real = commands.map(([name, ...rest]) => {
      if (name === "SCRIPT") {
        this.#scripts.set(createHash("sha1").update(rest[1]!).digest("hex"), rest[1]!);
        return [name, "LOAD", timed(rest[1]!)];
      }
      if (name !== "EVALSHA" && name !== "EVAL") return [name!, ...rest];
      const text = name === "EVAL" ? rest[0]! : this.#scripts.get(rest[0]!);
      if (text === undefined) return [name, ...rest];
      const form = timed(text);
      if (form !== text) return ["EVAL", form, ...rest.slice(1), time];
      return [name, ...rest];
    });
    this.clock.held++;
    this.real.batch(real, (answers, messages) => {
      for (const { channel, text } of messages) this.clock.note(`redis publishes ${channel} ${text.slice(0, 80)}`);
      then(answers);
      for (const client of this.clients) client.publish(messages);
      this.clock.release();
    });
  }
}

interface Call {
  readonly command: readonly string[];
  readonly resolve: (value: Value) => void;
  readonly reject: (error: Error) => void;
}

/** Silence after which a connection is dead: `engine/redis/connection.ts` has it from the library. */
const SILENCE_MS = 2_000;
const PING_MS = 700;

/** The world's Redis, for clients that are made by the code under test. */
let world: SimulatedRedis | null = null;
export const setRedis = (redis: SimulatedRedis | null): void => void (world = redis);

/** What stands in the place of the library's client. */
class Client {
  isReady = false;
  readonly #redis: SimulatedRedis;
  readonly #machine: Machine | undefined;
  readonly #hearers = new Map<string, ((value: unknown) => void)[]>();
  #outgoing: Call[] = [];
  /** Sent and not answered, oldest first. */
  #pending: Call[] = [];
  /** What this connection is subscribed to, at the server. */
  readonly #subscribed = new Set<string>();
  readonly #listeners = new Map<string, (message: string, channel: string) => void>();
  #arrival = 0;
  #answerAt = 0;
  #heardAt = 0;
  #isOver = false;
  #ping: unknown;

  constructor() {
    this.#redis = world!;
    this.#machine = this.#redis.clock.here();
  }

  on(name: string, hear: (value: unknown) => void): this {
    this.#hearers.set(name, [...(this.#hearers.get(name) ?? []), hear]);
    return this;
  }

  #tell(name: string, value?: unknown): void {
    if (this.#machine?.isAlive === false) return;
    this.#redis.clock.as(this.#machine, () => {
      for (const hear of this.#hearers.get(name) ?? []) hear(value);
    });
  }

  connect(): Promise<void> {
    const { clock } = this.#redis;
    return new Promise((resolve, reject) => {
      clock.set(
        () => {
          if (this.#isOver) return;
          if (this.#redis.isDown) {
            const error = new Error("connect ECONNREFUSED");
            this.broken(error);
            return reject(error);
          }
          this.#redis.clients.add(this);
          this.isReady = true;
          this.#heardAt = clock.now;
          this.#ping = clock.every(() => this.#watch(), PING_MS, this.#machine);
          this.#tell("ready");
          resolve();
        },
        this.#redis.delayMs(),
        this.#machine,
      );
    });
  }

  #watch(): void {
    const { clock, stalledUntil } = this.#redis;
    if (stalledUntil <= clock.now && this.#pending.length === 0) this.#heardAt = clock.now;
    if (clock.now - this.#heardAt > SILENCE_MS) this.broken(new Error("the connection to Redis is silent"));
  }

  /** The connection is gone: what waits on it is told so. */
  broken(error: Error): void {
    if (this.#isOver) return;
    this.#end(error);
    this.#tell("error", error);
    this.#tell("terminated");
  }

  #end(error: Error): void {
    this.#isOver = true;
    this.isReady = false;
    this.#redis.clients.delete(this);
    this.#redis.clock.clear(this.#ping);
    if (this.#machine?.isAlive === false) return;
    for (const { reject } of [...this.#pending, ...this.#outgoing]) reject(error);
    this.#pending = this.#outgoing = [];
  }

  destroy(): void {
    if (!this.#isOver) this.#end(new Error("the client was destroyed"));
  }

  // --------------------------------------------------------------------------------------------------------------- commands

  sendCommand(command: readonly string[]): Promise<Value> {
    if (!this.isReady) return Promise.reject(new Error("the client is closed"));
    return new Promise((resolve, reject) => {
      if (this.#outgoing.push({ command, resolve, reject }) === 1)
        // All of one turn leave together.
        this.#redis.clock.set(() => this.#flush(), 0, this.#machine);
    });
  }

  async configGet(pattern: string): Promise<Record<string, string>> {
    const settings: Record<string, string> =
      pattern === "append*"
        ? { appendonly: "yes", appendfsync: "always" }
        : { maxmemory: "0", "maxmemory-policy": "noeviction" };
    return settings;
  }

  #flush(): void {
    const calls = this.#outgoing;
    this.#outgoing = [];
    if (calls.length === 0) return;
    const redis = this.#redis;
    const { clock } = redis;
    this.#pending.push(...calls);
    const fate = redis.chance();
    this.#arrival = Math.max(this.#arrival, clock.now + redis.delayMs());
    // It arrives whether or not its sender is still alive.
    clock.set(
      () => {
        if (redis.isDown) return;
        if (fate < redis.cut / 2) return this.broken(new Error("the connection to Redis broke"));
        // A connection that is gone takes with it what had not arrived.
        if (this.#isOver) return;
        redis.execute(
          calls.map(({ command }) => command),
          (answers) => {
            if (fate < redis.cut)
              return clock.set(() => this.broken(new Error("the connection to Redis broke")), 0, this.#machine);
            this.#answerAt = Math.max(this.#answerAt, clock.now + redis.delayMs());
            return clock.set(() => this.#answer(calls, answers), this.#answerAt - clock.now, this.#machine);
          },
        );
      },
      this.#arrival - clock.now,
      undefined,
    );
  }

  #answer(calls: readonly Call[], answers: readonly Value[]): void {
    if (this.#isOver) return;
    this.#heardAt = this.#redis.clock.now;
    this.#pending.splice(0, calls.length);
    calls.forEach(({ resolve, reject }, n) => {
      const answer = answers[n]!;
      if (answer instanceof Error) reject(answer);
      else resolve(answer);
    });
  }

  // ---------------------------------------------------------------------------------------------------------------- messages

  #change(keys: string | readonly string[], change: (key: string) => void): Promise<void> {
    if (!this.isReady) return Promise.reject(new Error("the client is closed"));
    return new Promise((resolve, reject) => {
      const redis = this.#redis;
      const { clock } = redis;
      const call: Call = { command: [], resolve: () => resolve(), reject };
      this.#pending.push(call);
      this.#arrival = Math.max(this.#arrival, clock.now + redis.delayMs());
      clock.set(
        () => {
          if (this.#isOver || redis.isDown) return;
          for (const key of typeof keys === "string" ? [keys] : keys) change(key);
          this.#answerAt = Math.max(this.#answerAt, clock.now + redis.delayMs());
          clock.set(() => this.#answer([call], [null]), this.#answerAt - clock.now, this.#machine);
        },
        this.#arrival - clock.now,
        undefined,
      );
    });
  }

  subscribe(keys: string | readonly string[], listener: (message: string, channel: string) => void): Promise<void> {
    return this.#change(keys, (key) => {
      this.#subscribed.add(key);
      this.#listeners.set(key, listener);
    });
  }

  unsubscribe(keys: string | readonly string[], _listener?: unknown): Promise<void> {
    return this.#change(keys, (key) => this.#subscribed.delete(key));
  }

  /** The server publishes; each line brings it in its own time. */
  publish(messages: readonly Message[]): void {
    const mine = messages.filter(({ channel }) => this.#subscribed.has(channel));
    if (mine.length === 0) return;
    const { clock } = this.#redis;
    this.#answerAt = Math.max(this.#answerAt, clock.now + this.#redis.delayMs());
    clock.set(
      () => {
        if (this.#isOver) return;
        this.#heardAt = clock.now;
        for (const { channel, text } of mine) this.#listeners.get(channel)?.(text, channel);
      },
      this.#answerAt - clock.now,
      this.#machine,
    );
  }
}

/** As the package's own. */
export const createClient = (): Client => new Client();
