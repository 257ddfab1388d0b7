/**
 * Nothing lost, shown: three instances on one Redis, of which one is killed or stopped every few seconds and comes back on its port;
 * eight writers and twenty devices that move about between them as they like, and repeat what was not answered.
 *
 * At the end the books are compared: what writers were told is stored, what each device was given, what each device was told is
 * recorded, and what every instance says of all that. `SEED=n bun test tests/redis-fleet.test.ts` plays the same decisions again.
 */
import { afterAll, expect, test } from "bun:test";
import { createParser } from "eventsource-parser";
import { chance, seed } from "./support/chance.ts";
import { type Answer, ask, type Process, spawn } from "./support/harness.ts";
import { lastingPort } from "./support/ports.ts";
import { noRedis, type RedisServer, startRedis } from "./support/redis-server.ts";

const DURATION_MS = 30_000;
const INSTANCES = 3;
const WRITERS = 8;
const DEVICES = 20;
const CHANNELS = ["north", "south"] as const;
/** Between one instance's end and the next one's, and how long an instance is away. */
const PEACE_MS = [1_500, 3_500] as const;
const AWAY_MS = [200, 2_500] as const;
/** So many ends at least: else it was no rough time. */
const ENDS_MIN = 5;
/** How long a device stays on a feed. */
const STAY_MS = [100, 6_000] as const;
/** A writer's rest between pushes: together some hundred events a second. */
const REST_MS = [20, 110] as const;
/** A request that is not answered by then is repeated: longer than the service's own 3 s. */
const ANSWER_MS = 5_000;
/** Some ask again at once, so that the same request is under way at two instances. */
const IMPATIENT = 0.1;
const IMPATIENT_MS = 8;
/** How long after the last trouble everything must have arrived, on a machine that is busy with other tests. */
const SETTLE_MS = 120_000;
const RECEIPTS_AT_ONCE = 10;

type Random = () => number;
const between = (random: Random, [low, high]: readonly [number, number]): number => low + random() * (high - low);
const pick = <Value>(random: Random, values: readonly Value[]): Value => values[Math.floor(random() * values.length)]!;

/** What went against the contract, each in one sentence. */
const faults: string[] = [];
/** A few are enough to see what it is. */
const fault = (text: string): void => void (faults.length < 20 && faults.push(text));

// ------------------------------------------------------------------------------------------------------------- instances

interface Instance {
  readonly url: string;
  process: Process;
}

interface Ended {
  SIGKILL: number;
  SIGTERM: number;
}

let redis: RedisServer | undefined;
const children = new Set<Process>();
const killAll = (): void => {
  for (const { child } of children) child.kill("SIGKILL");
};
process.once("exit", killAll);
afterAll(async () => {
  process.off("exit", killAll);
  killAll();
  await redis?.end();
});

async function startInstance(port: string): Promise<Process> {
  const started = await spawn({ REDIS_URL: redis!.url, PORT: port });
  children.add(started);
  return started;
}

/** Ends an instance every few seconds and starts it again, until told to stop; then all are up. Counts in `ended` how often it did which. */
async function disturb(instances: readonly Instance[], random: Random, ended: Ended, isOver: () => boolean) {
  const returning: Promise<void>[] = [];
  const away = new Set<Instance>();
  while (!isOver()) {
    await Bun.sleep(between(random, PEACE_MS));
    const instance = pick(random, instances);
    const signal = random() < 0.5 ? "SIGKILL" : "SIGTERM";
    const awayMs = between(random, AWAY_MS);
    if (away.has(instance) || isOver()) continue;
    away.add(instance);
    ended[signal]++;
    returning.push(
      (async () => {
        const { process: old } = instance;
        const code = await old.end(signal);
        children.delete(old);
        if (signal === "SIGTERM" && code !== 0) fault(`a stopped instance ended with ${code}, not 0`);
        await Bun.sleep(awayMs);
        instance.process = await startInstance(new URL(instance.url).port);
        away.delete(instance);
      })(),
    );
  }
  await Promise.all(returning);
}

/** Asks any instance until one answers. What is neither an answer nor passing trouble is a fault. */
async function insist(random: Random, urls: readonly string[], path: string, init: Parameters<typeof ask>[1]) {
  for (;;) {
    let answer: Answer | null = null;
    const patienceMs = random() < IMPATIENT ? random() * IMPATIENT_MS : ANSWER_MS;
    try {
      answer = await Promise.race([
        ask(pick(random, urls) + path, init),
        Bun.sleep(patienceMs).then(() => Promise.reject(new Error("no answer"))),
      ]);
    } catch {
      // Refused, cut, or not answered: it may or may not have been done.
    }
    if (answer && answer.status !== 503) return answer;
    if (patienceMs === ANSWER_MS) await Bun.sleep(20 + random() * 80);
  }
}

// --------------------------------------------------------------------------------------------------------------- writers

interface Stored {
  readonly id: string;
  readonly seq: number;
  readonly channel: string;
  readonly writer: number;
  readonly number: number;
}

/** Pushes one after the other, some in batches, each until it is answered. Gives what it was told is stored. */
async function write(writer: number, urls: readonly string[], random: Random, isOver: () => boolean) {
  const stored: Stored[] = [];
  let replayed = 0;
  for (let number = 0; !isOver();) {
    const channel = pick(random, CHANNELS);
    const count = random() < 0.1 ? 2 + Math.floor(random() * 4) : 1;
    const data = Array.from({ length: count }, (_, n) => JSON.stringify({ writer, number: number + n }));
    const answer = await insist(random, urls, `/push/${channel}`, {
      body: data.join("\n"),
      type: count === 1 ? "application/json" : "application/x-ndjson",
      headers: { "Idempotency-Key": `${seed}-${writer}-${number}` },
    });
    if (answer.status !== 201 && answer.status !== 200) {
      fault(`a push was answered ${answer.status} ${answer.text}`);
      return { stored, replayed };
    }
    if (answer.headers.get("idempotent-replayed") === "true") replayed++;
    const events = (count === 1 ? [answer.body] : answer.body.events) as readonly { id: string; seq: number }[];
    if (events.length !== count) fault(`${count} events were pushed and ${events.length} answered`);
    if (answer.body.audience.addressed !== DEVICES) fault(`a push was addressed to ${answer.body.audience.addressed}`);
    for (const { id, seq } of events) stored.push({ id, seq, channel, writer, number: number++ });
    await Bun.sleep(between(random, REST_MS));
  }
  return { stored, replayed };
}

// ------------------------------------------------------------------------------------------------------------- followers

/** What any log's entry says of itself. */
interface Entry {
  readonly id: string;
  readonly channel: string;
  readonly seq: number;
}

/** A reader that goes from one instance to another, by its own choice or because it must, and resumes where it was. */
class Follower<Item extends { id: string; channel: string }> {
  /** All that came, each once, in the order in which it came first. */
  readonly seen = new Map<string, Item>();
  connections = 0;
  ready = false;
  /** Has been told to end. */
  over = false;
  readonly #urls: readonly string[];
  readonly #path: string;
  readonly #random: Random;
  readonly #name: string;
  readonly #onFirst: (item: Item) => void;
  /** What goes back as `Last-Event-ID`. */
  #position = "";
  /** The newest `seq` of each channel since this cursor began. */
  #cursor = new Map<string, number>();
  #abort = new AbortController();

  constructor(
    name: string,
    path: string,
    urls: readonly string[],
    random: Random,
    onFirst: (item: Item) => void = () => {},
  ) {
    [this.#name, this.#path, this.#urls, this.#random, this.#onFirst] = [name, path, urls, random, onFirst];
  }

  /** @param forgets how often it comes back without knowing where it was */
  async run(forgets: number): Promise<void> {
    while (!this.over) {
      if (this.#position === "" || this.#random() < forgets) {
        this.#position = "";
        this.#cursor = new Map();
      }
      const abort = (this.#abort = new AbortController());
      const stay = setTimeout(() => abort.abort(), between(this.#random, STAY_MS));
      try {
        await this.#read(pick(this.#random, this.#urls), abort.signal);
      } catch {
        // Cut, by us or by an instance's end.
      }
      clearTimeout(stay);
      await Bun.sleep(5 + this.#random() * 60);
    }
  }

  async #read(url: string, signal: AbortSignal): Promise<void> {
    const response = await fetch(url + this.#path, {
      headers: {
        Accept: "text/event-stream",
        ...(this.#position === "" ? {} : { "Last-Event-ID": this.#position }),
      },
      signal,
    });
    if (response.status !== 200) return fault(`${this.#name}: a feed was answered ${response.status}`);
    this.connections++;
    const parser = createParser({
      onEvent: ({ id, event, data }) => {
        if (event === "pere.ready") this.ready = true;
        if (event === "pere.gap") fault(`${this.#name} was told of a gap, but nothing was lost: ${data}`);
        if (!event?.startsWith("pere.")) this.#take(JSON.parse(data) as Item);
        if (id) this.#position = id;
      },
    });
    const decoder = new TextDecoder();
    for await (const chunk of response.body!) {
      if (signal.aborted) return;
      parser.feed(decoder.decode(chunk, { stream: true }));
    }
  }

  #take(item: Item): void {
    const { id, channel } = item;
    const seq = Number(id.slice(id.lastIndexOf("-") + 1));
    const before = this.#cursor.get(channel);
    if (before !== undefined && seq <= before)
      fault(`${this.#name} was given ${channel} ${id} after ${before} at one cursor`);
    this.#cursor.set(channel, seq);
    if (this.seen.has(id)) return;
    this.seen.set(id, item);
    this.#onFirst(item);
  }

  /** What came of one channel, in the order in which it came first. */
  of(channel: string): Item[] {
    return [...this.seen.values()].filter((item) => item.channel === channel);
  }

  end(): void {
    this.over = true;
    this.#abort.abort();
  }
}

type DeviceEvent = Entry & { readonly data: { readonly writer: number; readonly number: number } };
type ToldReceipt = Omit<Entry, "seq"> & { readonly event: string; readonly device: string; readonly status: string };

/** A device: it follows, and gives receipts to any instance until they are answered. */
class Device {
  readonly name: string;
  readonly feed: Follower<DeviceEvent>;
  /** The last word on each event that was answered with 200. */
  readonly acknowledged = new Map<string, string>();
  repeated = 0;
  readonly #urls: readonly string[];
  readonly #random: Random;
  readonly #owed: { channel: string; event: string; status: string }[] = [];

  constructor(name: string, urls: readonly string[], state: number) {
    this.name = name;
    this.#urls = urls;
    this.#random = chance(state);
    const verdicts = chance(state + 1);
    this.feed = new Follower(
      name,
      `/feed/${CHANNELS.join(",")}?device=${name}`,
      urls,
      chance(state + 2),
      ({ channel, id }) => {
        const dice = verdicts();
        if (dice < 0.6) this.#owed.push({ channel, event: id, status: "received" });
        if (dice < 0.4) this.#owed.push({ channel, event: id, status: "done" });
        else if (dice > 0.6 && dice < 0.8) this.#owed.push({ channel, event: id, status: "done" });
        else if (dice > 0.9) this.#owed.push({ channel, event: id, status: "failed" });
      },
    );
  }

  get owes(): number {
    return this.#owed.length;
  }

  /** Until the feed is over and nothing is owed. */
  async giveReceipts(): Promise<void> {
    for (;;) {
      const channel = this.#owed[0]?.channel;
      if (channel === undefined) {
        if (this.feed.over) return;
        await Bun.sleep(10);
        continue;
      }
      const most = 1 + Math.floor(this.#random() * RECEIPTS_AT_ONCE);
      const end = this.#owed.findIndex((owed, index) => owed.channel !== channel || index === most);
      const some = this.#owed.slice(0, end === -1 ? most : end);
      const body = some.map(({ event, status }) => ({ event, device: this.name, status }));
      const answer = await insist(this.#random, this.#urls, `/feedback/${channel}`, { body });
      const { recorded, duplicate } = answer.body as { recorded?: number; duplicate?: number };
      if (answer.status !== 200 || (recorded ?? 0) + (duplicate ?? 0) !== some.length)
        fault(`${this.name}: ${some.length} receipts were answered ${answer.status} ${answer.text}`);
      else for (const { event, status } of some) this.acknowledged.set(event, status);
      this.repeated += duplicate ?? 0;
      this.#owed.splice(0, some.length);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- the books

interface Booked extends Entry {
  readonly audience: { readonly addressed: number };
  readonly receipts: Readonly<Record<string, number>>;
}

/** All events of a channel with their tallies, as an instance tells them. */
async function booked(url: string, channel: string): Promise<Booked[]> {
  const found: Booked[] = [];
  for (let after: string | null = ""; after !== null;) {
    const { body } = await ask(`${url}/events/${channel}?limit=500${after === "" ? "" : `&after=${after}`}`);
    // How many are connected is right within seconds, not at once, so it is left out.
    for (const { id, channel: name, seq, audience, receipts } of body.events as readonly Booked[])
      found.push({ id, channel: name, seq, audience: { addressed: audience.addressed }, receipts });
    after = body.next as string | null;
  }
  return found;
}

/** How many of each. */
function count(words: Iterable<string>): Record<string, number> {
  const counts: Record<string, number> = {
    pending: 0,
    received: 0,
    working: 0,
    deferred: 0,
    done: 0,
    failed: 0,
    missing: 0,
    withdrawn: 0,
  };
  for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
  return counts;
}

/** Waits for what the end of all trouble must bring. */
async function settled(condition: () => boolean, what: () => string): Promise<void> {
  for (const end = performance.now() + SETTLE_MS; !condition(); await Bun.sleep(20))
    if (performance.now() > end) throw new Error(`${what()}\n${faults.join("\n")}`);
}

const skipped = noRedis === null ? "" : `; skipped: ${noRedis}`;
test.skipIf(noRedis !== null)(
  `instances start and stop, and nothing is lost, duplicated or out of order (SEED=${seed}${skipped})`,
  async () => {
    redis = await startRedis({ appendonly: "yes", appendfsync: "always" });
    const instances: Instance[] = [];
    for (let n = 0; n < INSTANCES; n++) {
      const started = await startInstance(String(lastingPort()));
      instances.push({ url: started.url, process: started });
    }
    const urls = instances.map(({ url }) => url);

    const devices = Array.from({ length: DEVICES }, (_, n) => new Device(`device-${n}`, urls, seed + 1_000 + 3 * n));
    const watchers = CHANNELS.map(
      (channel, n) =>
        new Follower<ToldReceipt>(
          `watcher of ${channel}`,
          `/feedback/${channel}?since=earliest`,
          urls,
          chance(seed + 500 + n),
        ),
    );
    const following = [...devices.map(({ feed }) => feed.run(0.05)), ...watchers.map((watcher) => watcher.run(0))];
    const giving = devices.map((device) => device.giveReceipts());
    await settled(
      () => devices.every(({ feed }) => feed.ready),
      () => "not every device has a feed",
    );

    const end = performance.now() + DURATION_MS;
    // However slow the machine is: it goes on until it was as rough as it is meant to be.
    const ended: Ended = { SIGKILL: 0, SIGTERM: 0 };
    const isOver = (): boolean => performance.now() > end && ended.SIGKILL + ended.SIGTERM >= ENDS_MIN;
    const [, ...written] = await Promise.all([
      disturb(instances, chance(seed), ended, isOver),
      ...Array.from({ length: WRITERS }, (_, n) => write(n, urls, chance(seed + 1 + n), isOver)),
    ]);
    const stored = written.flatMap((one) => one.stored);
    const logs = new Map(
      CHANNELS.map((channel) => [
        channel,
        stored.filter((event) => event.channel === channel).sort((a, b) => a.seq - b.seq),
      ]),
    );

    // Every acknowledged event comes to every device, and what they say of it is answered.
    await settled(
      () => devices.every(({ feed, owes }) => feed.seen.size >= stored.length && owes === 0),
      () =>
        devices
          .filter(({ feed, owes }) => feed.seen.size < stored.length || owes > 0)
          .map(({ name, feed, owes }) => {
            const lost = stored.filter(({ id }) => !feed.seen.has(id)).map(({ id, channel }) => `${channel} ${id}`);
            return `${name} lacks ${lost.length} of ${stored.length} events (${lost.slice(0, 3)}), owes ${owes} receipts`;
          })
          .join("\n"),
    );
    expect(faults).toEqual([]);
    const pushed = new Set(stored.map(({ id }) => id));
    // And nothing that nobody was told of: no push was stored twice.
    for (const { feed } of devices)
      expect([...feed.seen.keys()].filter((id) => !pushed.has(id)).slice(0, 5)).toEqual([]);
    const toldBy = (watcher: Follower<ToldReceipt>) =>
      new Set([...watcher.seen.values()].map(({ event, device, status }) => `${event} ${device} ${status}`));
    const channelOf = new Map(stored.map(({ id, channel }) => [id, channel]));
    const words = devices.flatMap(({ name, acknowledged }) =>
      [...acknowledged].map(([event, status]) => ({
        channel: channelOf.get(event)!,
        text: `${event} ${name} ${status}`,
      })),
    );
    const untold = () => {
      const told = new Map(CHANNELS.map((channel, n) => [channel as string, toldBy(watchers[n]!)]));
      return words.filter(({ channel, text }) => !told.get(channel)!.has(text));
    };
    for (const until = performance.now() + SETTLE_MS; untold().length > 0 && performance.now() < until;)
      await Bun.sleep(200);
    expect(untold()).toEqual([]);

    for (const { feed } of devices) feed.end();
    for (const watcher of watchers) watcher.end();
    await Promise.all([...following, ...giving]);
    expect(faults).toEqual([]);

    for (const channel of CHANNELS) {
      const log = logs.get(channel)!;
      // Each push once, one place in the log to each, and a writer's own order kept.
      expect(log.map(({ seq }) => seq)).toEqual(log.map((_, index) => index + 1));
      for (let writer = 0; writer < WRITERS; writer++) {
        const numbers = log.filter((event) => event.writer === writer).map(({ number }) => number);
        expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
      }
      // Every device the same, in the same order, and with the data that was pushed.
      const expected = log.map(({ id, writer, number }) => `${id} ${writer} ${number}`);
      for (const { feed } of devices)
        expect(feed.of(channel).map(({ id, data }) => `${id} ${data.writer} ${data.number}`)).toEqual(expected);
      // No receipt was told twice.
      const { seen } = watchers[CHANNELS.indexOf(channel)]!;
      expect(toldBy(watchers[CHANNELS.indexOf(channel)]!).size).toBe(seen.size);
      // Every instance has the same books, and they are what devices were told.
      const [book, ...others] = await Promise.all(urls.map((url) => booked(url, channel)));
      for (const other of others) expect(other).toEqual(book!);
      expect(book!.map(({ id }) => id)).toEqual(log.map(({ id }) => id));
      for (let from = 0; from < book!.length; from += 16)
        await Promise.all(
          book!.slice(from, from + 16).map(async ({ id, audience, receipts }) => {
            const said = devices.map(({ name, acknowledged }) => `${name} ${acknowledged.get(id) ?? "pending"}`);
            expect(audience.addressed).toBe(DEVICES);
            expect(receipts).toEqual(count(said.map((word) => word.split(" ")[1]!)));
            const { body } = await ask(`${pick(Math.random, urls)}/events/${channel}/${id}/receipts`);
            const rows = body.receipts as readonly { device: string; status: string }[];
            expect(rows.map(({ device, status }) => `${device} ${status}`).sort()).toEqual(said.sort());
          }),
        );
    }

    const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);
    console.log(
      `SEED=${seed}: ${stored.length} events, ${stored.length * DEVICES} deliveries, ${words.length} last words; ` +
        `${ended.SIGKILL} instances killed, ${ended.SIGTERM} stopped, ${sum(devices.map(({ feed }) => feed.connections))} feeds; ` +
        `${sum(written.map(({ replayed }) => replayed))} pushes and ${sum(devices.map(({ repeated }) => repeated))} receipts ` +
        "were stored before their repetition",
    );
  },
  DURATION_MS + 3 * SETTLE_MS,
);
