#!/usr/bin/env bun
/**
 * A publisher: it pushes events and shows, for each event, how many of its devices have answered, and what.
 *
 *   bun clients/publisher.ts [--wait=seconds] [--deadline=seconds] [--remind=seconds] [--key=key] [--attempts=number] [--json] [url] [channel]
 *   bun clients/publisher.ts [--at=time | --every=cron [--tz=zone]] [url] [channel]
 *   bun clients/publisher.ts --withdraw=id [--note=text] [url] [channel]
 *   printf '{"table": 7}\\ntwo coffees\\n' | bun clients/publisher.ts
 *
 * On a terminal it pushes one event per second until it is interrupted. Otherwise it pushes the lines of its input: a line of JSON as it is, any other
 * line as a JSON string. It then ends when every event is complete, or ten seconds after the last line, with status 1 if an event is not complete.
 * If it can't reach the service within the first ten seconds, it ends with status 1. Later it reconnects until it is ended.
 * If the service requires a token, set `PERE_TOKEN`; it needs the right to push on the channel.
 * With `--at` and `--every` it pushes nothing now: it schedules each line of its input, or one event on a terminal, and ends. With `--withdraw` it takes an
 * event back, prints its state, and ends; with `--scheduled` it lists what is scheduled, and with `--cancel` it cancels that.
 * With `--wait` it pushes the next event when the previous one is complete, or after so many seconds. Each event gets `--deadline` and `--remind`.
 * On a wide terminal it shows a table with one bar per event, otherwise one line per change, and with `--json` one object per change. If nothing more can
 * be printed, it pushes nothing more. INT and TERM end it when the current push was answered; a second signal ends it at once.
 *
 * The SDK, `clients/sdk/`, does all that a publisher must do. This is an example of the rest. Note that it follows receipts before it pushes the first
 * event, so that it misses none.
 */
import { fstatSync } from "node:fs";
import { createInterface } from "node:readline";
import { cancelScheduled, PereError, publish, readScheduled, receipts, schedule, withdraw } from "./sdk/index.ts";
import type { PublishOptions, Receipts, ScheduleOptions } from "./sdk/index.ts";
import { fail as failAs, proxyOf, nameOf, onEnd, Printer, readArgs, secondsOf, wholeOf } from "./program.ts";
import { UsageError, withText } from "./program.ts";
import {
  addAnswer,
  type Answers,
  Board,
  isComplete,
  type Pushed,
  STATUSES,
  TABLE_COLUMNS,
  withdrawFrom,
} from "./board.ts";

const USAGE = `bun clients/publisher.ts [url] [channel] [options]

Pushes each line of its input as an event, or one event per second if its input is a terminal, and shows the receipts.

  url                 the address of PERE (default: http://127.0.0.1:4567)
  channel             the channel (default: orders)
  --wait=seconds      wait up to this long for an event to be complete before the next one
  --deadline=seconds  the time within which each device must send its final receipt
  --remind=seconds    the interval at which devices that have not answered are reminded
  --key=key           what the events are about: each withdraws the older ones with this key that are not complete
  --attempts=number   how often a device may try, 2 to 20
  --at=time           push at this time, ISO 8601 with an offset, such as 2027-01-01T00:00:00Z
  --every=cron        push at each time of a cron expression with five fields
  --tz=zone           the IANA time zone of --every (default: UTC)
  --scheduled         list the pushes for later
  --cancel=id         cancel a push for later
  --withdraw=id       take an event back
  --note=text         with --withdraw: what to tell the people at the devices
  --json              print one JSON object per line
  --help              print this

Environment: PERE_TOKEN is a token with the right to push. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used.`;

/** The interval between events that it makes itself. */
const EVERY_MS = 1_000;
/** The time limit for receipts after the last line, and for the service at the start. */
const PATIENCE_MS = 10_000;
/** It prints that it is connecting if that takes longer than this. */
const TRYING_MS = 1_000;
/** At the end, the time limit for the answer to the last push, and then for its receipts. */
const FLUSH_MS = 5_000;
const RECEIPTS_MS = 500;
function jsonOf(line: string): string {
  try {
    JSON.parse(line);
    return line;
  } catch {
    return JSON.stringify(line);
  }
}

/** The JSON texts to push: the lines of the input, or one per second without end. */
async function* texts(isGiven: boolean): AsyncGenerator<string> {
  if (isGiven) {
    for await (const line of createInterface({ input: process.stdin })) if (line.trim() !== "") yield jsonOf(line);
    return;
  }
  for (let order = 1; ; order++) {
    yield JSON.stringify({ order, table: 1 + Math.floor(Math.random() * 20) });
    await Bun.sleep(EVERY_MS);
  }
}

interface Options extends Pick<PublishOptions, "wait" | "deadline" | "remind" | "eventKey" | "attempts"> {
  readonly url: string;
  readonly channel: string;
  readonly isJson: boolean;
}

const fail = (error: unknown): never =>
  failAs("publisher", error instanceof PereError ? new Error(`${error.message} (status ${error.status})`) : error);

/** Follows the receipts. @throws UsageError when an option is invalid */
function follow(options: Parameters<typeof receipts>[0]): Receipts {
  try {
    return receipts(options);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

const retriesWith = (token: string | undefined) => ({
  token,
  giveUpMs: Number.POSITIVE_INFINITY,
  onTrouble: (why: string) => console.error(`push: ${why}; trying again`),
});

async function run({ url, channel, isJson, ...options }: Options): Promise<void> {
  // A terminal and /dev/null are character devices; a pipe or a file is input.
  const isGiven = !fstatSync(0).isCharacterDevice();
  const token = process.env.PERE_TOKEN || undefined;
  const pushed = new Map<string, Pushed>();
  /** What arrived before the answer to the push. */
  const early = new Map<string, Answers>();
  let changed = Promise.withResolvers<void>();
  /** The current push; and whether the program is ending. */
  let currentPush: Promise<unknown> | null = null;
  let isEnding = false;
  const end = async (finish: () => never): Promise<void> => {
    isEnding = true;
    let isAnswered = currentPush === null;
    const answered = currentPush?.then(
      () => (isAnswered = true),
      () => {},
    );
    await Promise.race([answered, Bun.sleep(FLUSH_MS)]);
    if (!isAnswered) console.error("publisher: the last push was not answered; the event may have been stored");
    // Receipts may arrive a little after the answer to the push.
    const until = performance.now() + RECEIPTS_MS;
    while (answered && ![...pushed.values()].every(isComplete) && performance.now() < until) await Bun.sleep(20);
    finish();
  };
  const printer = new Printer((why) => void end(() => fail(new Error(`${why}; nothing more is pushed`))));
  const board = new Board(
    process.stdout.isTTY && process.stdout.columns >= TABLE_COLUMNS,
    (text) => void printer.print(text),
  );
  const show = (event: Pushed, warnings?: readonly string[]): void =>
    isJson ? undefined : board.update(event, warnings);
  let warned = "";
  const print = (name: string, json: string): void => void (isJson && printer.print(`{"${name}":${json}}\n`));

  /** The last error before the service was reached; undefined from then on, when errors are printed at once. */
  let connectError: string | undefined = "no answer";
  const onTrouble = (why: string): void => {
    if (connectError === undefined) console.error(`feedback: ${why}; reconnecting`);
    else connectError = why;
  };
  const feed = follow({
    url,
    channel,
    token,
    onTrouble,
    // A WebSocket would bypass the proxy.
    ...(URL.canParse(url) && proxyOf(url) !== null ? { WebSocket: null } : {}),
  });
  const note = (event: string, change: (answers: Answers) => void): void => {
    const known = pushed.get(event);
    const answers = known ?? early.get(event) ?? { statuses: new Map(), withdrawn: null };
    change(answers);
    if (!known) return void early.set(event, answers);
    show(known);
    changed.resolve();
  };
  const listen = async (): Promise<void> => {
    for await (const message of feed) {
      if (message.kind === "withdrawn")
        note(message.event, (answers) => withdrawFrom(answers, message.receipts.withdrawn));
      if (message.kind !== "receipt") print(message.kind, JSON.stringify(message));
      else {
        note(message.event, (answers) => addAnswer(answers, message));
        const { detail: _, text, ...about } = message;
        print(message.kind, withText(about, "detail", text));
      }
    }
  };

  const finish = (): never => {
    const complete = [...pushed.values()].filter(isComplete).length;
    const text = isJson
      ? `{"end":${JSON.stringify({ pushed: pushed.size, complete })}}`
      : `${pushed.size} pushed, ${complete} complete`;
    void printer
      .print(`${text}\n`)
      .then(() => process.exit(!isGiven || complete === pushed.size ? 0 : 1))
      .catch(() => {}); // The printer ends the program.
    return undefined as never;
  };
  onEnd(() => void end(finish));
  const late = setTimeout(() => fail(new Error(`${url} can't be reached: ${connectError}`)), PATIENCE_MS);
  const trying = setTimeout(
    () => console.error(`publisher: connecting to ${url}: ${connectError}; trying again`),
    TRYING_MS,
  );
  await feed.ready;
  clearTimeout(late);
  clearTimeout(trying);
  connectError = undefined;
  listen().catch(fail);
  const retries = retriesWith(token);
  for await (const text of texts(isGiven)) {
    if (isEnding) return;
    const push = publish(url, channel, text, { ...options, ...retries, isJson: true });
    currentPush = push;
    const answer = await push;
    currentPush = null;
    const { statuses = new Map(), withdrawn = null } = early.get(answer.id) ?? {};
    const event = { id: answer.id, addressed: answer.audience.addressed, statuses, withdrawn };
    early.clear();
    pushed.set(event.id, event);
    // A warning that every push has is shown once.
    const warnings = (answer.warnings ?? []).filter((warning) => warning !== warned);
    warned = warnings.at(-1) ?? warned;
    show(event, warnings);
    print("pushed", JSON.stringify(answer));
  }
  if (isEnding) return;
  const endsAt = performance.now() + PATIENCE_MS;
  for (let left = PATIENCE_MS; left > 0 && ![...pushed.values()].every(isComplete); left = endsAt - performance.now()) {
    changed = Promise.withResolvers();
    await Promise.race([changed.promise, Bun.sleep(left)]);
  }
  finish();
}

type Times = Pick<ScheduleOptions, "at" | "every" | "tz">;

/** Schedules the lines of the input, or one event on a terminal. */
async function runLater({ url, channel, isJson, ...options }: Options, times: Times, print: Print): Promise<void> {
  const isGiven = !fstatSync(0).isCharacterDevice();
  const how = { ...options, ...times, ...retriesWith(process.env.PERE_TOKEN || undefined), isJson: true };
  for await (const text of texts(isGiven)) {
    const made = await schedule(url, channel, text, how as ScheduleOptions);
    await print(isJson ? JSON.stringify({ scheduled: made }) : `${made.id}: next at ${made.next ?? "no time"}`);
    if (!isGiven) return;
  }
}

type Print = (line: string) => Promise<void>;

/** What is asked for instead of pushes. */
async function runOther({ url, channel, isJson }: Options, values: Values, print: Print): Promise<void> {
  const options = { url, channel, token: process.env.PERE_TOKEN || undefined };
  const { scheduled = false, cancel, withdraw: event, note } = values;
  if (scheduled)
    for await (const push of readScheduled(options)) {
      const { id, next, every, tz } = push;
      const how = every === null ? "once" : `${every} (${tz})`;
      await print(isJson ? JSON.stringify({ scheduled: push }) : `${id}: ${next ?? "done"}, ${how}`);
    }
  if (cancel !== undefined) {
    await cancelScheduled({ ...options, id: cancel });
    await print(isJson ? JSON.stringify({ cancelled: cancel }) : `${cancel} was cancelled`);
  }
  if (event !== undefined) {
    const state = await withdraw(url, channel, event, { token: options.token, note });
    const { receipts: tally } = state;
    const counts = STATUSES.filter((status) => tally[status] > 0).map((status) => `${tally[status]} ${status}`);
    const was = state.withdrawn ? "withdrawn" : "complete before, and stays as it is";
    await print(
      isJson ? JSON.stringify({ withdrawn: state }) : `${event} is ${was}: ${counts.join(", ") || "no devices"}`,
    );
  }
}

interface Values {
  readonly scheduled?: boolean | undefined;
  readonly cancel?: string | undefined;
  readonly withdraw?: string | undefined;
  readonly note?: string | undefined;
}

/** Reads the arguments and runs. */
async function main(): Promise<void> {
  const [text, flag] = [{ type: "string" }, { type: "boolean" }] as const;
  const options = {
    ...{ wait: text, deadline: text, remind: text, key: text, attempts: text, json: flag },
    ...{ at: text, every: text, tz: text, scheduled: flag, cancel: text, withdraw: text, note: text },
  } as const;
  const { values, positionals } = readArgs(options, 2, USAGE);
  const [url = "http://127.0.0.1:4567", channel] = positionals;
  const { wait, at, every, tz, key, attempts } = values;
  if (at !== undefined && every !== undefined) throw new UsageError("give either --at or --every");
  if (tz !== undefined && every === undefined) throw new UsageError("--tz needs --every");
  const isLater = at !== undefined || every !== undefined;
  if (isLater && wait !== undefined)
    throw new UsageError("--wait is for what is pushed now; leave it out, or --at and --every");
  if (values.note !== undefined && values.withdraw === undefined) throw new UsageError("--note needs --withdraw");
  const asked: Options = {
    url,
    channel: nameOf("channel", channel) ?? "orders",
    wait: secondsOf("wait", wait),
    deadline: secondsOf("deadline", values.deadline),
    remind: secondsOf("remind", values.remind),
    eventKey: key,
    attempts: attempts === undefined ? undefined : wholeOf("attempts", attempts, 2, 20),
    isJson: values.json === true,
  };
  const { scheduled, cancel, withdraw: event } = values;
  const isOther = scheduled === true || cancel !== undefined || event !== undefined;
  if (!isLater && !isOther) return run(asked);
  const printer = new Printer((why) => fail(new Error(why)));
  const print: Print = (line) => printer.print(`${line}\n`);
  if (isOther) await runOther(asked, values, print);
  else await runLater(asked, { at, every, tz } as Times, print);
}

if (import.meta.main) await main().catch(fail);
