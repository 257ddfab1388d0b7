/**
 * What became of an event, in a sentence: how many did not do it, how many still owe an answer, and by when.
 *
 * A state that this page does not know is counted under its name.
 */
import { count, endingText, saidOf, span, STATES, wordsOf } from "./words.ts";

/** How many devices are in each state. */
export type States = Readonly<Record<string, number>>;

/** What a verdict is based on. */
export interface Standing {
  readonly addressed: number;
  readonly receipts: States;
  /** ISO time; undefined: none. */
  readonly deadline?: string | undefined;
  readonly type?: string | undefined;
  /** Why it was withdrawn; undefined: it was not. */
  readonly withdrawn?: string | undefined;
}

/** States in which a device may still answer in time. */
const OPEN: readonly string[] = STATES.filter((state) => wordsOf(state).kind === "open");
/** States of devices that did not do it. */
export const NOT_DONE: readonly string[] = STATES.filter((state) => wordsOf(state).kind === "trouble");
const COUNTED = ["done", ...NOT_DONE, ...OPEN];

/** Event types such as `label.print` whose last word is what a device has to do. */
const VERBS =
  /(?:^|[._-])(acknowledge|close|confirm|download|install|lock|open|play|print|restart|show|start|stop|sync|unlock|update)$/;

const sumOf = (receipts: States, states: readonly string[]): number =>
  states.reduce((total, state) => total + (receipts[state] ?? 0), 0);

/** How many devices did not do it: they failed, or the deadline passed. */
export const notDoneOf = (receipts: States): number => sumOf(receipts, NOT_DONE);

/** How many devices an event can be pushed again to, retired ones included. */
export const leftOf = (receipts: States): number => sumOf(receipts, ["failed", "missing", "withdrawn"]);

/** The states of devices that are not done and should be, unknown ones too. */
export const owingStates = (receipts: States): string[] =>
  Object.keys(receipts).filter((state) => !["done", "over"].includes(wordsOf(state).kind));

/** "9 of 40 did not print: 4 failed, 5 gave no answer in time." @param now milliseconds since 1970 */
export function verdictText(standing: Standing, now: number): string {
  const { addressed, receipts, deadline, type, withdrawn } = standing;
  if (addressed === 0) return "Addressed to no device.";
  if (withdrawn !== undefined) return withdrawnText(withdrawn, standing);
  const [notDone, open, done] = [notDoneOf(receipts), sumOf(receipts, OPEN), receipts.done ?? 0];
  const others = othersOf(receipts);
  const parts: string[] = [];
  if (notDone > 0) {
    const [failed, missing] = [receipts.failed ?? 0, receipts.missing ?? 0];
    const why = [
      failed > 0 ? `${count(failed)} failed` : "",
      missing > 0 ? `${count(missing)} gave no answer in time` : "",
    ];
    parts.push(
      `${count(notDone)} of ${count(addressed)} did not ${VERBS.exec(type ?? "")?.[1] ?? "finish"}: ${why.filter(Boolean).join(", ")}`,
    );
  } else if (done === addressed)
    return addressed === 1 ? "The device is done." : `All ${count(addressed)} devices are done.`;
  else parts.push(`${count(done)} of ${count(addressed)} done`);
  if (open > 0)
    parts.push(
      `${count(open)} still ${open === 1 ? "owes" : "owe"} an answer${deferredText(open, receipts.deferred ?? 0)}${deadlineText(deadline, now)}`,
    );
  return `${[...parts, ...others].join(", ")}.`;
}

/** ", 2 of them later": those that deferred it. */
const deferredText = (open: number, deferred: number): string =>
  deferred === 0 ? "" : deferred === open ? " later" : `, ${count(deferred)} of them later`;

/** States that a verdict has no words for. */
const othersOf = (receipts: States): string[] =>
  Object.keys(receipts)
    .filter((state) => !COUNTED.includes(state) && receipts[state]! > 0)
    .map((state) => `${count(receipts[state]!)} ${state}`);

/** "Withdrawn. 31 of 40 did it, 2 failed, 7 need not do it any more." */
function withdrawnText(reason: string, { addressed, receipts }: Standing): string {
  const { done = 0, failed = 0, missing = 0, withdrawn = 0 } = receipts;
  const parts = [
    done === 0 ? `None of ${count(addressed)} did it` : `${count(done)} of ${count(addressed)} did it`,
    failed > 0 ? `${count(failed)} failed` : "",
    missing > 0 ? `${count(missing)} gave no answer in time` : "",
    withdrawn > 0 ? `${count(withdrawn)} ${withdrawn === 1 ? "needs" : "need"} not do it any more` : "",
    ...othersOf({ ...receipts, withdrawn: 0 }),
  ];
  return `${endingText(reason)}. ${parts.filter(Boolean).join(", ")}.`;
}

function deadlineText(deadline: string | undefined, now: number): string {
  if (deadline === undefined) return ", no deadline";
  const seconds = (Date.parse(deadline) - now) / 1000;
  return seconds > 0 ? `, deadline in ${span(Math.ceil(seconds))}` : ", the deadline has passed";
}

/** What an event is about: a title or message in its data, else its type, else its number. */
export function titleOf(type: string | undefined, text: string, id: string): string {
  const named = /^\s*\{/.test(text) ? (JSON.parse(text) as { title?: unknown; message?: unknown }) : {};
  const title = [named.title, named.message].find((one) => typeof one === "string" && one.trim() !== "");
  if (title !== undefined) return String(title);
  return type ?? `Event ${id.slice(id.lastIndexOf("-") + 1)}`;
}

/** What a device said, and what else is known of its state: a reason with the other members of the detail, else the detail as JSON; "": nothing. */
export function answerText(status: string, detail: unknown): string {
  const said = saidOf(detail);
  if (said) return Object.keys(said.rest).length === 0 ? said.text : `${said.text} ${JSON.stringify(said.rest)}`;
  return status === "missing" ? "no answer before the deadline" : status === "failed" ? "gave no reason" : "";
}
