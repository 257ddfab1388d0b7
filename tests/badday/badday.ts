/**
 * The bad day: one suite that every client passes, whatever it is written in. Between it and the service stands a proxy that does what networks
 * do (`support/bad-proxy.ts`); it is killed, its token ends, its server is replaced. At the end of each case the books are compared:
 *
 * - nothing lost: every event that was addressed to the device was worked on, and had the publisher's data;
 * - once an id: none was worked on twice, also not by a client that was killed between work and receipt and started again;
 * - every receipt given: the service has `done` or `failed` of each, as it went.
 *
 * Where a client is killed while it works, nobody can know how far the work was: then, and only then, it may be done again. That the rest
 * holds through a kill demands that a client keeps what became of an event before it gives the final receipt.
 *
 * The seam. A client under test is a program or a page. It is started with a `Job` in whatever arguments or environment it takes (`Client.start`
 * translates), follows `channels` as `device`, and for each event
 *
 * 1. appends one line to the file `record`: the event's id, a space, and its data as JSON text on one line;
 * 2. where the data is an object with `"hold": true`, goes on working until there is a file `<record>.go`;
 * 3. where the data is an object with `"fail": true`, fails, with a message; else is done.
 *
 * It keeps what must survive it in `state` (a path of its own, nothing is there at first), reads its token from `tokenFile` whenever it needs a new
 * one, and takes `patience` for its own where it can. It runs until it is killed. For programs that run a command for each event
 * `worker.sh` is that command: data on its input, `PERE_EVENT_ID` and `PERE_RECORD` in its environment.
 */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { issueToken } from "../../engine/auth/issue.ts";
import type { EngineOptions } from "../../engine/engine.ts";
import type { Service } from "../../index.ts";
import { BadProxy, type Errand, type Fate, type Seen } from "../support/bad-proxy.ts";
import { chance, seed } from "../support/chance.ts";
import { ask, SECRET, startWith, temporary, until } from "../support/harness.ts";

/** How long a client waits for what, instead of its own 5 s, 40 s and a minute. A client that knows whole seconds alone takes the next longer one. */
export interface Patience {
  /** For the first byte of an event stream, before it takes another way. */
  readonly firstByteMs: number;
  /** For a sign of life on an event stream. */
  readonly silenceMs: number;
  /** On another way, before it tries the event stream again. */
  readonly returnMs: number;
  /** The longest pause that it makes of its own. */
  readonly pauseMs: number;
}

/** What a client is to do. */
export interface Job {
  readonly url: string;
  /** Comma separated. */
  readonly channels: string;
  readonly device: string;
  /** A file that holds the newest token; null: no token is needed. */
  readonly tokenFile: string | null;
  readonly state: string;
  readonly record: string;
  readonly patience: Patience;
}

/** A client under test. */
export interface Client {
  readonly name: string;
  /** Why it can't be run here; null: it can. With `CI=true` it is run all the same, and fails. */
  readonly missing: string | null;
  /** Whether it speaks WebSocket. */
  readonly hasSockets: boolean;
  /** @param said hears what it prints */
  start(job: Job, said: (text: string) => void): Running;
}

/** A client that was started. */
export interface Running {
  readonly isRunning: boolean;
  /** Ends it at once, as a power cut does. */
  kill(): Promise<void>;
}

/** Starts a client that is a program. @param env what it finds in its environment beside the usual */
export function startProgram(
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  said: (text: string) => void,
): Running {
  const child = Bun.spawn([...argv], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  for (const stream of [child.stdout, child.stderr])
    void (async () => {
      for await (const text of stream.pipeThrough(new TextDecoderStream() as never)) said(text as string);
    })();
  return {
    get isRunning() {
      return child.exitCode === null && child.signalCode === null;
    },
    async kill() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

const DEVICE = "till-7";
const PATIENCE: Patience = { firstByteMs: 1_000, silenceMs: 3_000, returnMs: 250, pauseMs: 250 };
/** A case waits for several things, each with this patience. Pauses of a client that is cut off again and again may add up to half a minute. */
const WAIT_MS = 60_000;
/** So often it looks. Many cases share the machine, and what they wait for takes seconds. */
const LOOK_MS = 20;
/** For a case, and for the ones before it that it waits for. */
export const LIMIT_MS = 720_000;
/** So many cases run at once, since they mostly wait. With many more a client that waits for a first byte would wait for the machine. */
const CASES_AT_ONCE = 4;
/** A quiet feed's signs of life, as often as a silence of `PATIENCE.silenceMs` needs them. */
const BEAT_MS = 900;
/** Readers are told to come back after the shortest time that the service tells anybody. */
const OPTIONS: EngineOptions = { random: () => 0, limits: { beatMs: BEAT_MS } };
/** A service that takes everybody, also a page that came from elsewhere. */
const open = (): Promise<Service> => startWith({ access: "open", origins: "*" }, OPTIONS);
/** An end is seen here later than there, where the machine is busy, so that who waits seems to come early. Least of all is asked for a second. */
const EARLY_MS = 400;

/** What goes wrong in readers of lines and of JSON, if anything does. */
const AWKWARD = [
  '{"text":"\\"},{\\"id\\":\\"x-1\\",\\"data\\":"}',
  '{\n  "pretty": [1,\n 2], "deep": {"id": "x-1", "channel": "orders", "data": {"events": []}}\n}',
  '"Grüße, 😀, \\u2028 \\\\ \\\\\\" %s %d $(id) `id` \'"',
  '["id: 7", "data: 8", ":", "\\r\\n", "]}", "\\\\"]',
  "12345678901234567890",
  "null",
  '{"fail": true, "n": 1}',
] as const;

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

  /** Compares the books, when all receipts are in. @param again events that may have been worked on twice */
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
export const isFinalWord = ({ errand, body }: Seen): boolean => errand === "receipts" && /"(done|failed)"/.test(body);

/** The same for each request in turn, then clear skies. */
function inTurn(fates: readonly Fate[]): () => Fate {
  let next = 0;
  return () => fates[next++] ?? "pass";
}

/** What goes wrong, and what is demanded all the same. */
const CASES: Record<string, (client: Client) => Promise<void>> = {
  async "lines are cut at random bytes"(client) {
    await using day = await Day.begin(client);
    console.log(`SEED=${seed}`);
    const random = chance(seed);
    const cuts = (count: number, bytesMax: number): Fate[] =>
      Array.from({ length: count }, () => {
        const bytes = Math.floor(random() * bytesMax);
        return random() < 0.8 ? { cut: bytes } : { cutRequest: bytes };
      });
    const [feeds, receipts] = [inTurn(cuts(6, 1_500)), inTurn(cuts(5, 600))];
    day.proxy.weather = (request) => (isFeed(request) ? feeds() : receipts());
    for (const data of AWKWARD) await day.push(data);
    await day.pushMany(10);
    day.launch();
    await day.until(() => day.record.length >= 5, "some to be worked on");
    await day.pushMany(10);
    // A feed with nothing to say comes to no cut: one event more each time that the client has done what there is.
    await day.until(async () => {
      if (day.proxy.seen.filter(isFeed).length > 6) return true;
      if (day.record.length >= day.pushed) await day.pushMany(1);
      return false;
    }, "all the cuts");
    await day.pushMany(2);
    await day.settle();
  },

  async "event streams are held back until they end, and sockets refused"(client) {
    await using day = await Day.begin(client);
    day.proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : errand === "socket" ? { status: 502 } : "pass");
    await day.pushMany(2);
    day.launch();
    await day.asked("a long-poll", ({ errand }) => errand === "poll");
    for (const data of AWKWARD) await day.push(data);
    await day.settle();
    // And back, when it can.
    const before = day.proxy.seen.length;
    day.proxy.weather = () => "pass";
    await day.asked(
      "an event stream",
      ({ errand, answer }) => errand === "sse" && answer.includes("pere.ready"),
      before,
    );
    await day.pushMany(2);
    await day.settle();
    expect(day.proxy.seen.filter(isFeed).at(-1)!.errand).toBe("sse");
  },

  async "the line goes silent"(client) {
    await using day = await Day.begin(client);
    day.launch();
    await day.push("1");
    await day.settle();
    day.proxy.silence();
    await day.pushMany(2);
    await day.settle();
  },

  async "503, 429 and 502 are answered, some with a time to wait"(client) {
    await using day = await Day.begin(client);
    const trouble: Fate[] = [{ status: 503, retryAfter: 1 }, { status: 502 }, { status: 429, retryAfter: 2 }];
    const [feeds, receipts] = [inTurn(trouble), inTurn(trouble)];
    day.proxy.weather = (request) => (isFeed(request) ? feeds() : receipts());
    await day.pushMany(3);
    day.launch();
    await day.settle();
    // Of the answers that asked for time each was asked at least once.
    const heard = day.proxy.seen.filter(({ answer }) => /Retry-After/.test(answer));
    expect(heard.length).toBeGreaterThanOrEqual(4);
  },

  async "no receipt gets through, and the service sends the event again and again"(client) {
    await using day = await Day.begin(client);
    day.proxy.weather = ({ errand }) => (errand === "receipts" ? { status: 503 } : "pass");
    day.launch();
    await day.asked("a feed", ({ errand, answer }) => errand === "sse" && answer.includes("pere.ready"));
    const id = await day.push('"hello?"', "?remind=1");
    await day.asked("the event three times", ({ answer }) => answer.split(`data: {"id":"${id}"`).length > 3);
    day.proxy.weather = () => "pass";
    await day.pushMany(1);
    await day.settle();
  },

  async "every answer comes late"(client) {
    await using day = await Day.begin(client);
    day.proxy.weather = () => ({ delayMs: PATIENCE.firstByteMs * 1.5 });
    await day.pushMany(1);
    day.launch();
    await day.settle();
    day.proxy.weather = () => "pass";
    await day.pushMany(2);
    await day.settle();
  },

  async "another server with a new epoch takes the address over, while receipts are still to be given"(client) {
    await using day = await Day.begin(client);
    day.launch();
    await day.pushMany(3);
    await day.settle();
    day.proxy.weather = ({ errand }) => (errand === "receipts" ? { status: 503 } : "pass");
    const last = await day.push('"of the old life"');
    await day.until(() => day.timesWorked(last) > 0, "the last event of the old life to be worked on");
    await day.replace();
    await day.pushMany(2);
    day.proxy.weather = () => "pass";
    await day.asked("a feed of the new life", ({ errand, answer }) => errand === "sse" && answer.includes("pere.gap"));
    await day.pushMany(2);
    await day.settle();
  },

  async "the token ends in mid-feed, and the first new one is refused"(client) {
    await using day = await Day.begin(client, true);
    const token = async (seconds: number, secret = SECRET): Promise<string> => {
      const draft = { sub: DEVICE, push: [], feed: ["orders"], days: seconds / 86_400 };
      const text = await issueToken({ secret }, draft);
      writeFileSync(day.job.tokenFile!, `${text}\n`);
      return text;
    };
    await token(3);
    // Whoever takes his time finds one that has not ended.
    const renewing = setInterval(() => void token(3), 500);
    try {
      day.launch();
      const isOpen = ({ errand, answer }: Seen): boolean => errand === "sse" && answer.includes("pere.ready");
      await day.asked("a feed", isOpen);
      await day.push("1");
      await day.settle();
    } finally {
      clearInterval(renewing);
    }
    // It looks as good as the others, and isn't.
    const forged = await token(600, "another secret of thirty-two bytes");
    await day.asked("the forged token", (request) => isFeed(request) && carries(request, forged));
    const fresh = await token(600);
    await day.asked("the fresh token", (request) => isFeed(request) && carries(request, fresh));
    await day.pushMany(2);
    await day.settle();
  },

  async "it is killed between event and receipt"(client) {
    await using day = await Day.begin(client);
    day.launch();
    await day.pushMany(2);
    await day.settle();
    for (const data of ["1", '{"fail": true}']) {
      day.proxy.weather = (request) => (isFinalWord(request) ? "hold" : "pass");
      const before = day.proxy.seen.length;
      const id = await day.push(data);
      await day.asked("its final word", (request) => isFinalWord(request) && request.body.includes(id), before);
      await day.kill();
      day.proxy.weather = () => "pass";
      await day.pushMany(2);
      day.launch();
      await day.settle();
      expect(day.timesWorked(id)).toBe(1);
    }
  },

  async "it is killed while it works"(client) {
    await using day = await Day.begin(client);
    day.launch();
    await day.pushMany(2);
    const id = await day.push('{"hold": true}');
    await day.until(() => day.timesWorked(id) === 1, "it to be at work");
    await day.kill();
    await day.pushMany(2);
    day.launch();
    await day.until(() => day.timesWorked(id) === 2, "it to be at work again");
    writeFileSync(`${day.job.record}.go`, "");
    await day.settle([id]);
  },
};

/** The same, for those who speak WebSocket. */
const SOCKET_CASES: typeof CASES = {
  async "event streams are held back until they end"(client) {
    await using day = await Day.begin(client);
    day.proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
    await day.pushMany(2);
    day.launch();
    await day.asked("a socket", ({ errand }) => errand === "socket");
    for (const data of AWKWARD) await day.push(data);
    await day.settle();
    expect(day.proxy.seen.filter(({ errand }) => errand === "poll")).toEqual([]);
  },
};

/** In a header, a subprotocol or the query. */
const carries = ({ head }: Seen, token: string): boolean => head.includes(token);

/** Whether a client is left out here. */
export const isSkipped = ({ missing }: Client): boolean => missing !== null && process.env.CI !== "true";

let free = CASES_AT_ONCE;
const queue: (() => void)[] = [];

/** Runs a case when there is room for it. */
async function inTurnOf<Result>(run: () => Promise<Result>): Promise<Result> {
  if (free > 0) free--;
  else await new Promise<void>((resolve) => queue.push(resolve));
  try {
    return await run();
  } finally {
    const next = queue.shift();
    if (next) next();
    else free++;
  }
}

/** Runs the bad day for one client. @param isChosen which cases, by their names; all, where it isn't given */
export function badDay(client: Client, isChosen: (name: string) => boolean = () => true): void {
  const cases = Object.entries({ ...CASES, ...(client.hasSockets ? SOCKET_CASES : {}) });
  describe.concurrent(isSkipped(client) ? `${client.name} (skipped: ${client.missing})` : client.name, () => {
    for (const [name, run] of cases.filter(([name]) => isChosen(name)))
      test.skipIf(isSkipped(client))(name, () => inTurnOf(() => run(client)), LIMIT_MS);
  });
}
