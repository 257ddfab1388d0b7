/**
 * The bad day: one suite that every client passes, whatever it is written in. Between it and the service stands a proxy that does what networks
 * do (`support/bad-proxy.ts`); it is killed, its token ends, its server is replaced. At the end of each case the books are compared:
 *
 * - nothing lost: every event that was addressed to the device was worked on, and had the publisher's data;
 * - once an id and round: none was worked on twice, also not by a client that was killed between work and receipt and started again; one that was
 *   deferred once more for each round; one that was withdrawn before it was begun not at all;
 * - every receipt given: the service has `done` or `failed` of each, as it went, and nothing of one that was withdrawn while it was worked on.
 *
 * Where a client is killed while it works, nobody can know how far the work was: then, and only then, it may be done again. That the rest
 * holds through a kill demands that a client keeps what became of an event before it gives the final receipt.
 */
import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { issueToken } from "../../engine/auth/issue.ts";
import type { Fate, Seen } from "../support/bad-proxy.ts";
import { chance, seed } from "../support/chance.ts";
import { SECRET } from "../support/harness.ts";
import { type Client, isSkipped } from "./client.ts";
import { Day, DEVICE, isFeed, isFinalWord, isOutcome, PATIENCE } from "./day.ts";

/** For a case, and for the ones before it that it waits for. */
export const LIMIT_MS = 720_000;
/** So many cases run at once, since they mostly wait. With many more a client that waits for a first byte would wait for the machine. */
const CASES_AT_ONCE = 4;

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

  async "events are deferred again and again, while lines are cut at random bytes"(client) {
    await using day = await Day.begin(client);
    console.log(`SEED=${seed}`);
    const random = chance(seed);
    const cuts = (count: number, bytesMax: number): Fate[] =>
      Array.from({ length: count }, () => ({ cut: Math.floor(random() * bytesMax) }));
    const [feeds, receipts] = [inTurn(cuts(5, 1_500)), inTurn(cuts(5, 600))];
    day.proxy.weather = (request) => (isFeed(request) ? feeds() : receipts());
    const deferred = new Map<string, number>();
    const defer = async (rounds: number): Promise<void> => {
      deferred.set(await day.push(`{"defer": ${rounds}, "n": ${day.pushed}}`), rounds);
    };
    for (const rounds of [1, 2, 1]) {
      await defer(rounds);
      await day.pushMany(1);
    }
    day.launch();
    await day.until(() => day.record.length >= 5, "some to be worked on");
    await defer(2);
    await day.settle([...deferred.keys()]);
    for (const [id, rounds] of deferred) expect([id, day.timesWorked(id)]).toEqual([id, rounds + 1]);
  },

  async "it is killed between a deferral and its receipt"(client) {
    await using day = await Day.begin(client);
    day.launch();
    await day.pushMany(1);
    await day.settle();
    day.proxy.weather = (request) => (isOutcome(request) ? "hold" : "pass");
    const before = day.proxy.seen.length;
    const id = await day.push('{"defer": 1}');
    await day.asked("its deferral", (request) => isOutcome(request) && request.body.includes(id), before);
    await day.kill();
    day.proxy.weather = () => "pass";
    await day.pushMany(1);
    day.launch();
    await day.settle([id]);
    expect(day.timesWorked(id)).toBe(2);
  },

  async "events are withdrawn: one that is worked on, one that waits, and one behind a line that is cut"(client) {
    await using day = await Day.begin(client);
    day.launch();
    for (const isHeldBack of [false, true]) {
      if (isHeldBack) {
        day.proxy.weather = ({ errand }) =>
          errand === "sse" ? "buffer" : errand === "socket" ? { status: 502 } : "pass";
        day.proxy.cut();
        await day.pushMany(1);
        await day.asked("a long-poll", ({ errand }) => errand === "poll");
        await day.settle();
      }
      const atWork = await day.push('{"stop": true}');
      await day.until(() => day.timesWorked(atWork) === 1, "it to be at work");
      const waits = await day.push('"it waits"');
      await day.pushMany(1);
      await day.withdraw(waits);
      await day.withdraw(atWork);
      await day.settle();
      expect(day.timesWorked(waits)).toBe(0);
    }
    day.proxy.weather = () => "pass";
    const last = await day.push('{"stop": true}');
    await day.until(() => day.timesWorked(last) === 1, "it to be at work");
    const weather = day.proxy.weather;
    day.proxy.weather = (request) => (isFeed(request) ? { status: 503 } : "pass");
    day.proxy.cut();
    const unseen = await day.push('"never to be seen"');
    await day.withdraw(unseen);
    await day.withdraw(last);
    day.proxy.weather = weather;
    await day.pushMany(1);
    await day.settle();
    expect(day.timesWorked(unseen)).toBe(0);
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
