/**
 * One case of the bad day: a service, the bad network before it, the client, and the books that are compared at its end.
 */
import { expect } from "bun:test";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../../engine/auth/issue.ts";
import type { EngineOptions } from "../../engine/engine.ts";
import type { Service } from "../../index.ts";
import { BadProxy, type Errand, type Seen } from "../support/bad-proxy.ts";
import { ask, SECRET, startWith, temporary, until } from "../support/harness.ts";
import type { Client, Job, Patience, Running } from "./client.ts";

export const DEVICE = "till-7";
export const PATIENCE: Patience = { firstByteMs: 1_000, silenceMs: 3_000, returnMs: 250, pauseMs: 250 };
/** A case waits for several things, each with this patience. Pauses of a client that is cut off again and again may add up to half a minute. */
const WAIT_MS = 60_000;
/** So often it looks. Many cases share the machine, and what they wait for takes seconds. */
const LOOK_MS = 20;
/** A quiet feed's signs of life, as often as a silence of `PATIENCE.silenceMs` needs them. */
const BEAT_MS = 900;
/** Readers are told to come back after the shortest time that the service tells anybody. */
const OPTIONS: EngineOptions = { random: () => 0, limits: { beatMs: BEAT_MS } };
/** A service that takes everybody, also a page that came from elsewhere. */
const open = (): Promise<Service> => startWith({ access: "open", origins: "*" }, OPTIONS);
/** Timers count whole milliseconds, and round them. */
const EARLY_MS = 10;

/** One case: a service, the bad network before it, the client, and the books. */
export class Day implements AsyncDisposable {
  readonly proxy: BadProxy;
  readonly job: Job;
  service: Service;
  said = "";
  readonly #client: Client;
  /** A token with all rights, for the books. */
  readonly #office: Record<string, string>;
  #running: Running | undefined;
  /** How many requests there had been when the client was last started. */
  #launchedAt = 0;
  /** What was pushed to the service that there is now: data by id. */
  #pushed = new Map<string, string>();
  readonly #withdrawn = new Set<string>();

  private constructor(client: Client, service: Service, proxy: BadProxy, office: string | null) {
    this.#client = client;
    this.service = service;
    this.proxy = proxy;
    this.#office = office === null ? {} : { Authorization: `Bearer ${office}` };
    const folder = temporary();
    this.job = {
      url: proxy.url,
      channels: "orders",
      device: DEVICE,
      tokenFile: office === null ? null : join(folder, "token"),
      state: join(folder, "state"),
      record: join(folder, "record"),
      patience: PATIENCE,
    };
  }

  /** The device is enrolled, the client not yet started. @param secured tokens are asked for */
  static async begin(client: Client, secured = false): Promise<Day> {
    const service = await (secured ? startWith({ origins: "*" }, OPTIONS) : open());
    const office = secured
      ? await issueToken({ secret: SECRET }, { sub: "office", push: ["*"], feed: [], days: 1 })
      : null;
    const day = new Day(client, service, await BadProxy.to(service.url), office);
    await day.#enrol();
    return day;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    writeFileSync(`${this.job.record}.go`, "");
    await this.kill();
    await this.proxy.stop();
    await this.service.stop();
    rmSync(join(this.job.record, ".."), { recursive: true, force: true });
  }

  async #enrol(): Promise<void> {
    const url = `${this.service.url}/devices/orders/${DEVICE}`;
    expect((await ask(url, { method: "PUT", headers: this.#office })).status).toBe(201);
  }

  launch(): void {
    this.#launchedAt = this.proxy.seen.length;
    this.#running = this.#client.start(this.job, (text) => void (this.said += text));
  }

  /** Ends the client at once, as a power cut does. */
  async kill(): Promise<void> {
    await this.#running?.kill();
  }

  async push(data: string, query = ""): Promise<string> {
    const { body, status } = await ask(`${this.service.url}/push/orders${query}`, {
      body: data,
      headers: this.#office,
    });
    expect(status).toBe(201);
    this.#pushed.set(body.id as string, data);
    return body.id as string;
  }

  /** Withdraws an event. */
  async withdraw(id: string): Promise<void> {
    const { status } = await ask(`${this.service.url}/events/orders/${id}`, {
      method: "DELETE",
      headers: this.#office,
    });
    expect(status).toBe(200);
    this.#withdrawn.add(id);
  }

  /** Pushes so many plain events. */
  async pushMany(count: number): Promise<void> {
    for (let n = 0; n < count; n++) await this.push(JSON.stringify({ order: this.#pushed.size }));
  }

  /** Another service with nothing in it takes the address over. */
  async replace(): Promise<void> {
    const old = this.service;
    this.service = await open();
    this.#pushed.clear();
    await this.#enrol();
    this.proxy.target = Number(new URL(this.service.url).port);
    await old.stop();
    this.proxy.cut();
  }

  /** What was worked on, in its order: ids and data. */
  get record(): { id: string; data: string }[] {
    if (!existsSync(this.job.record)) return [];
    const lines = readFileSync(this.job.record, "utf8").split("\n").slice(0, -1);
    return lines.map((line) => ({ id: line.slice(0, line.indexOf(" ")), data: line.slice(line.indexOf(" ") + 1) }));
  }

  /** Whether the client that was started last still runs. */
  get isRunning(): boolean {
    return this.#running?.isRunning === true;
  }

  /** How many events were pushed to the service that there is now. */
  get pushed(): number {
    return this.#pushed.size;
  }

  timesWorked(id: string): number {
    return this.record.filter((line) => line.id === id).length;
  }

  /** Waits for a condition; what came instead is told with the client's last words. */
  until = <Value>(condition: () => Value | Promise<Value>, what: string): Promise<unknown> =>
    until(condition, () => `${what}\n${this.#told()}`, WAIT_MS, LOOK_MS);

  /** Waits for a request after the first `from` ones. */
  asked = (what: string, isIt: (request: Seen) => boolean, from = 0): Promise<unknown> =>
    this.until(() => this.proxy.seen.slice(from).some(isIt), what);

  #told(): string {
    const requests = this.proxy.seen.slice(-12).map(({ errand, target, answer }) => {
      return `  ${errand} ${target} → ${answer.slice(0, 12)} … ${JSON.stringify(answer.slice(-100))}`;
    });
    return `the client said: ${this.said.slice(-2_000)}\nits last requests:\n${requests.join("\n")}`;
  }

  /** Compares the books, when all receipts are in. @param again events that may have been worked on more than once */
  async settle(again: readonly string[] = []): Promise<void> {
    const states = async () =>
      (await ask(`${this.service.url}/events/orders?limit=1000`, { headers: this.#office })).body.events as {
        id: string;
        receipts: Record<string, number>;
        complete: boolean;
      }[];
    const owing = async () => (await states()).filter(({ complete }) => !complete).length;
    // However slow the machine is, it goes on: the next one comes in time.
    for (let left = await owing(); left > 0; left = await owing())
      await this.until(async () => (await owing()) < left, `final receipts: ${left} are owed`);
    const events = await states();
    expect(events.map(({ id }) => id)).toEqual([...this.#pushed.keys()]);
    const worked = new Map(this.record.map(({ id, data }) => [id, data]));
    for (const { id, receipts } of events) {
      const data: unknown = JSON.parse(this.#pushed.get(id)!);
      if (this.#withdrawn.has(id)) {
        expect([id, receipts.withdrawn]).toEqual([id, 1]);
        continue;
      }
      const found = worked.get(id) ?? JSON.stringify(`never worked on, and has ${JSON.stringify(receipts)}`);
      expect(JSON.parse(found)).toEqual(data);
      const isFailing = typeof data === "object" && data !== null && "fail" in data;
      expect([id, receipts.done, receipts.failed]).toEqual(isFailing ? [id, 0, 1] : [id, 1, 0]);
      if (isFailing) await this.#expectMessage(id);
    }
    const repeated = this.record.map(({ id }) => id).filter((id, index, ids) => ids.indexOf(id) !== index);
    expect(repeated.filter((id) => !again.includes(id))).toEqual([]);
    expect(this.isRunning).toBe(true);
    this.#expectPatience();
  }

  /** A failure says why. */
  async #expectMessage(id: string): Promise<void> {
    const rows = await ask(`${this.service.url}/events/orders/${id}/receipts`, { headers: this.#office });
    expect(JSON.stringify(rows.body.receipts[0].detail)).toContain("asked to fail");
  }

  /** Nobody came back earlier than he was told to, by `Retry-After` or by an event stream's `retry:`. */
  #expectPatience(): void {
    for (const errands of [["sse", "socket", "poll"], ["receipts"]] as Errand[][]) {
      const requests = this.proxy.seen.slice(this.#launchedAt).filter(({ errand }) => errands.includes(errand));
      requests.forEach((request, index) => {
        const next = requests[index + 1];
        if (!next || request.endedAt === null) return;
        const later = /^HTTP\/1\.1 (?:429|503) [^]*?\r\nRetry-After: (\d+)\r/i.exec(request.answer)?.[1];
        // More than an hour is asked for by bad answers alone.
        if (later !== undefined && Number(later) <= 3_600)
          expect(next.at - request.at).toBeGreaterThanOrEqual(Number(later) * 1_000 - EARLY_MS);
        const retry = [...request.answer.matchAll(/^retry: (\d+)\n(?:.+\n)*\n/gm)].at(-1)?.[1];
        if (retry !== undefined && Number(retry) <= 3_600_000 && next.errand === "sse")
          expect(next.at - request.endedAt).toBeGreaterThanOrEqual(Number(retry) - EARLY_MS);
      });
    }
  }
}

export const isFeed = ({ errand }: Seen): boolean => errand === "sse" || errand === "socket" || errand === "poll";
/** Whether it has the receipt with which a round ends. */
export const isOutcome = ({ errand, body }: Seen): boolean =>
  errand === "receipts" && /"(deferred|done|failed)"/.test(body);
export const isFinalWord = ({ errand, body }: Seen): boolean => errand === "receipts" && /"(done|failed)"/.test(body);
