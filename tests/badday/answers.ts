/**
 * The bad answers of `support/bad-answers.ts`, given to a client of the bad day. Several of them run at once, since they mostly wait for their time to come
 * back; each has a service and a proxy of its own, and its share of the answers.
 */
import { expect, test } from "bun:test";
import { type Asked, BAD_ANSWERS, type BadAnswer } from "../support/bad-answers.ts";
import type { Fate } from "../support/bad-proxy.ts";
import { ask } from "../support/harness.ts";
import { LIMIT_MS } from "./badday.ts";
import { type Client, isSkipped } from "./client.ts";
import { Day, isFeed, isFinalWord } from "./day.ts";

/** Bad answers that are still to be given, in turn: each to one request, or to all that come within its time. */
class BadTurns {
  readonly #left: BadAnswer[];
  #now: BadAnswer | null = null;
  #endsAt = 0;

  constructor(rows: readonly BadAnswer[]) {
    this.#left = [...rows];
  }

  get isOver(): boolean {
    return this.#left.length === 0 && this.#endsAt <= performance.now();
  }

  /** The last one that was given. */
  get name(): string {
    return this.#now?.name ?? "none";
  }

  next(): Fate {
    if (this.#now !== null && performance.now() < this.#endsAt) return this.#now;
    const row = this.#left.shift();
    if (!row) return "pass";
    this.#now = row;
    this.#endsAt = performance.now() + row.forMs;
    return row;
  }
}

/** The bad answers to such requests. The many that fit every request are dealt: event streams get one half, long-polls the other. */
const badAnswersTo = (asked: Asked): BadAnswer[] =>
  BAD_ANSWERS.filter(
    ({ to }, index) =>
      to.includes(asked) &&
      (to.length === 1 || (asked !== "stream" && asked !== "poll") || index % 2 === (asked === "poll" ? 1 : 0)),
  );

/** Every `count`th, from the one at `index`. */
const share = <Item>(items: readonly Item[], index: number, count: number): Item[] =>
  items.filter((_, at) => at % count === index);

/** Bad answers to feeds, two in a row and then the service's own, and beside them to receipts, one and then the service's own. */
async function badAnswers(
  client: Client,
  errand: "sse" | "poll",
  feeds: readonly BadAnswer[],
  answers: readonly BadAnswer[],
) {
  await using day = await Day.begin(client);
  const receipts = new BadTurns(answers);
  let turns = new BadTurns([]);
  let isGood = false;
  let hasSockets = true;
  day.proxy.weather = (request) => {
    if (isFinalWord(request)) {
      isGood = !isGood && !receipts.isOver;
      return isGood ? receipts.next() : "pass";
    }
    if (request.errand === errand) return turns.next();
    if (request.errand === "socket" && !hasSockets) return { status: 502 };
    if (errand === "poll" && request.errand === "sse") return "buffer";
    // Other ways are open when the bad answers were given.
    return isFeed(request) && (errand === "poll" || !turns.isOver) ? { status: 502 } : "pass";
  };
  day.launch();
  const told = () => `the service's own answer after ${turns.name} and ${receipts.name}`;
  const passOne = async (): Promise<string> => {
    const id = await day.push(JSON.stringify({ order: day.pushed }));
    await day.until(() => day.timesWorked(id) > 0, told());
    return id;
  };
  await passOne();
  for (let at = 0; at < feeds.length; at += 2) {
    turns = new BadTurns(feeds.slice(at, at + 2));
    day.proxy.cut();
    await day.until(() => turns.isOver, `a request for ${feeds[at]!.name}`);
    await passOne();
  }
  // Receipts go by requests from here on, and one event after the other: a client may be quick with events while it waits with receipts.
  hasSockets = false;
  day.proxy.cut();
  while (!receipts.isOver) {
    const id = await passOne();
    await day.until(async () => (await ask(`${day.service.url}/events/orders/${id}`)).body.complete === true, told());
  }
  await day.settle();
  // Nothing was worked on that nobody pushed.
  expect(day.record).toHaveLength(day.pushed);
}

/**
 * Gives one client all of them.
 * @param counts by how many of it, at once: those with a slow wait have more of them
 * @param isChosen which, by their names; all, where it isn't given
 */
export function badAnswersDay(
  client: Client,
  counts = { streams: 4, polls: 2 },
  isChosen: (name: string) => boolean = () => true,
): void {
  test.skipIf(isSkipped(client))(
    `${client.name}: what answers is not the service, or not whole; it goes on, and believes none of it`,
    async () => {
      const rowsOf = (asked: Asked): BadAnswer[] => badAnswersTo(asked).filter(({ name }) => isChosen(name));
      const [streams, polls, receipts] = [rowsOf("stream"), rowsOf("poll"), rowsOf("receipts")];
      const shares = (count: number, run: (n: number) => Promise<void>) =>
        Array.from({ length: count }, (_, n) => run(n));
      // Where one fails the others are ended as well, so that none is left to come back to a port that is somebody else's then.
      const runs = await Promise.allSettled([
        ...shares(counts.streams, (n) =>
          badAnswers(client, "sse", share(streams, n, counts.streams), share(receipts, n, counts.streams)),
        ),
        ...shares(counts.polls, (n) => badAnswers(client, "poll", share(polls, n, counts.polls), [])),
      ]);
      for (const run of runs) if (run.status === "rejected") throw run.reason;
    },
    LIMIT_MS,
  );
}
