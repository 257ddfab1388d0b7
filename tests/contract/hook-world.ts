/**
 * What the cases of webhooks are played in: services on one memory, receivers that behave and that don't, and a clock that is held.
 */
import { expect, setSystemTime } from "bun:test";
import { Webhook } from "standardwebhooks";
import { readRanges } from "../../engine/addresses.ts";
import type { EngineOptions } from "../../engine/engine.ts";
import { makeSecret } from "../../engine/hooks/call.ts";
import type { Service } from "../../index.ts";
import { type Answer, ask, push, until } from "../support/harness.ts";

/** One memory. A service that is started in it finds what was left by the one before. */
export interface World {
  start(options?: EngineOptions): Promise<Service>;
  /** What a process of its own needs to know to find the memory. */
  readonly env: Record<string, string>;
}

export const LOOPBACK = readRanges("127.0.0.0/8");

export const SECOND = 1_000;

/** One call as it came. */
export interface Call {
  readonly id: string;
  readonly at: number;
  readonly text: string;
  readonly signatures: readonly string[];
  /** Looked at field by field; a wrong one fails the test. */
  readonly body: any;
}

type Behaviour = (call: Call, count: number) => Response | Promise<Response>;

export const well: Behaviour = () => new Response("ok");

export const failing: Behaviour = () => new Response("no", { status: 500 });

export const never: Behaviour = () => new Promise<Response>(() => {});

/** Where a publisher is called. It verifies whatever comes. */
export class Receiver {
  readonly calls: Call[] = [];
  readonly secret: string;
  readonly url: string;
  behaviour: Behaviour;
  /** What the reference verifier did not take. */
  readonly wrong: string[] = [];
  readonly #server: Bun.Server<undefined>;

  constructor(behaviour: Behaviour = well, secret = makeSecret(), port = 0) {
    this.behaviour = behaviour;
    this.secret = secret;
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port,
      idleTimeout: 0,
      fetch: (request) => this.#take(request),
    });
    this.url = `http://127.0.0.1:${this.#server.port}/hook`;
    opened.push(this);
  }

  async #take(request: Request): Promise<Response> {
    const text = await request.text();
    const headers = Object.fromEntries(request.headers);
    const at = Number(headers["webhook-timestamp"]) * SECOND;
    try {
      if (request.method !== "POST" || headers["content-type"] !== "application/json") throw new Error("not its form");
      setSystemTime(new Date(at)); // The verifier refuses what is older than five minutes; the service's clock may be held.
      new Webhook(this.secret).verify(text, headers);
    } catch (error) {
      this.wrong.push(String(error));
    } finally {
      setSystemTime();
    }
    const call = {
      id: headers["webhook-id"]!,
      at,
      text,
      signatures: headers["webhook-signature"]!.split(" "),
      body: JSON.parse(text),
    };
    this.calls.push(call);
    return this.behaviour(call, this.calls.length);
  }

  /** Waits until it was called so often. */
  async have(count: number): Promise<Call[]> {
    await until(
      () => this.calls.length >= count,
      () => `${count} calls; came: ${this.calls.map(({ text }) => text.slice(0, 300)).join("\n")}`,
    );
    return this.calls;
  }

  /** Its receipts as `device status`, in the order in which they came. */
  get receipts(): string[] {
    return this.calls
      .filter(({ body }) => body.type === "pere.receipt" || body.type === "pere.missing")
      .flatMap(
        ({ body }) => body.data.receipts.map((receipt: any) => `${receipt.device} ${receipt.status}`) as string[],
      );
  }

  /** Waits until each of these came at least once. However slow the machine is, the next call comes within the harness's patience. */
  async hear(receipts: readonly string[]): Promise<void> {
    const missing = (): string[] => {
      const heard = new Set(this.receipts);
      return receipts.filter((receipt) => !heard.has(receipt));
    };
    for (let left = missing(); left.length > 0; left = missing()) {
      const { length } = this.calls;
      await until(
        () => this.calls.length > length,
        () => `${left.length} receipts, as ${left[0]}; came: ${this.receipts.length} in ${length} calls`,
      );
    }
  }

  close(): Promise<void> {
    return this.#server.stop(true);
  }
}

/** A door that calls wait at. */
export function door() {
  const { promise, resolve } = Promise.withResolvers<Response>();
  return {
    behaviour: (() => promise.then((response) => response.clone())) as Behaviour,
    open: (response = new Response("ok")) => resolve(response),
  };
}

const opened: Receiver[] = [];

export const services: { stop(): Promise<unknown> }[] = [];

/** After each test: closes what it opened, and holds that every call was signed. */
export async function tidyUp(): Promise<void> {
  const wrong = opened.flatMap((receiver) => receiver.wrong);
  await Promise.all(opened.splice(0).map((receiver) => receiver.close()));
  await Promise.all(services.splice(0).map((service) => service.stop()));
  expect(wrong).toEqual([]);
}

export const hookUrl = (url: string, name = "h", channel = "c"): string => `${url}/hooks/${channel}/${name}`;

export const put = (url: string, body: unknown, name = "h", channel = "c"): Promise<Answer> =>
  ask(hookUrl(url, name, channel), { method: "PUT", body });

/** Has a receiver called. */
export async function hook(
  url: string,
  receiver: Receiver,
  more: object = {},
  name = "h",
  channel = "c",
): Promise<void> {
  const answer = await put(url, { url: receiver.url, secret: receiver.secret, ...more }, name, channel);
  if (answer.status !== 201 && answer.status !== 200) throw new Error(`put: ${answer.status} ${answer.text}`);
}

export const list = async (url: string, channel = "c"): Promise<any[]> =>
  (await ask(`${url}/hooks/${channel}`)).body.hooks;

/** The hook `h`, as listed. */
export const listed = async (url: string): Promise<any> => (await list(url)).find(({ name }) => name === "h");

/** Waits until the hook is through with so many entries of the receipts log. */
export const reached = (url: string, seq: number): Promise<unknown> =>
  until(
    async () => (await listed(url)).position.endsWith(`-${seq}`),
    () => `position ${seq}`,
  );

export const names = (count: number, from = 0): string[] => Array.from({ length: count }, (_, n) => `d${from + n}`);

/** One event to many devices, who all give one receipt, in one request. Gives what they said. */
export async function receive(
  url: string,
  devices: readonly string[],
  status = "received",
  channel = "c",
): Promise<string[]> {
  const event = await push(url, channel, 1, `?to=${devices.join(",")}`);
  const answer = await ask(`${url}/feedback/${channel}`, {
    body: devices.map((device) => ({ event, device, status })),
  });
  if (answer.body.recorded !== devices.length) throw new Error(`feedback: ${answer.status} ${answer.text}`);
  return devices.map((device) => `${device} ${status}`);
}

/** A clock that stands still until it is moved. */
export function heldClock() {
  const clock = { at: Date.UTC(2026, 10, 22, 10), now: () => clock.at };
  return clock;
}

export const begin = async (world: World, options: EngineOptions = {}): Promise<Service> => {
  const service = await world.start({ hooksAllowed: LOOPBACK, ...options });
  services.push(service);
  return service;
};
