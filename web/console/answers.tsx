/**
 * The answers to an event over time: how many devices had given a final one, from the push on. Time is on a logarithmic scale, because most devices answer
 * within a second and the last ones after hours.
 *
 * The sentence below says the same to people who do not see the plot.
 */
import type { ReadonlySignal } from "@preact/signals";
import type { Row } from "./api.ts";
import { readAnswers, type Shown } from "./event-data.ts";
import { Skeleton } from "./skeleton.tsx";
import { useReading } from "./readings.ts";
import { now } from "./state.ts";
import { count, some, span } from "./words.ts";

/** Seconds between two reads while answers arrive. */
const CHANGED_SECONDS = 3;
/** Marks on the axis: seconds, and what they are called. */
const TICKS: readonly (readonly [seconds: number, label: string])[] = [
  [0.01, "10 ms"],
  [0.1, "0.1 s"],
  [1, "1 s"],
  [10, "10 s"],
  [60, "1 min"],
  [600, "10 min"],
  [3_600, "1 h"],
  [86_400, "1 day"],
  [604_800, "7 days"],
];
/** The plot's box, in units of its own; it is stretched to its place. */
const WIDTH = 1_000;
const HEIGHT = 100;

/** Seconds from the push to a device's final answer. */
interface Answer {
  readonly seconds: number;
  readonly status: "done" | "failed";
  readonly late: boolean;
}

const finalOf = ({ receipts }: Shown): number => (receipts.done ?? 0) + (receipts.failed ?? 0);

function answersOf(at: string, rows: readonly Row[]): Answer[] {
  return rows
    .flatMap(({ status, at: answeredAt, late }) =>
      (status === "done" || status === "failed") && answeredAt !== null
        ? [{ status, late, seconds: Math.max(0, (Date.parse(answeredAt) - Date.parse(at)) / 1000) }]
        : [],
    )
    .sort((a, b) => a.seconds - b.seconds);
}

export function Answers({ channel, event }: { readonly channel: string; readonly event: ReadonlySignal<Shown> }) {
  const reading = useReading(
    async (signal) => {
      const { id, at } = event.peek();
      const final = finalOf(event.peek());
      const { rows, isAll } = await readAnswers(channel, id, signal);
      return { answers: answersOf(at, rows), isAll, final };
    },
    (answer) => (answer?.final === finalOf(event.value) ? Infinity : CHANGED_SECONDS),
  );
  const { at, deadline, audience, withdrawn } = event.value;
  if (reading.answer.value === null)
    return reading.trouble.value ? <p class="trouble">{reading.trouble}</p> : <Skeleton rows={3} />;
  const { answers, isAll } = reading.answer.value;
  if (answers.length === 0) return <p class="empty small">No final answer yet.</p>;
  const due = deadline === undefined ? null : (Date.parse(deadline) - Date.parse(at)) / 1000;
  return (
    <figure class="answers">
      <Curve
        answers={answers}
        most={isAll ? audience.addressed : answers.length}
        due={due}
        elapsed={(now.value - Date.parse(at)) / 1000}
      />
      <figcaption class="muted">
        {answersText(answers, withdrawn !== undefined)}{" "}
        {!isAll && `Of the first ${count(answers.length)} devices by name that answered.`}
      </figcaption>
    </figure>
  );
}

/** "Half of the 31 answers came within 1.2 s, the last after 9 min. 2 came after the deadline." */
function answersText(answers: readonly Answer[], isWithdrawn: boolean): string {
  const last = answers[answers.length - 1]!.seconds;
  const late = answers.filter((answer) => answer.late).length;
  const first =
    answers.length === 1
      ? `The only answer came after ${span(last)}.`
      : `Half of the ${count(answers.length)} answers came within ${span(answers[Math.ceil(answers.length / 2) - 1]!.seconds)}, the last after ${span(last)}.`;
  return late === 0
    ? first
    : `${first} ${some(late, "answer")} came ${isWithdrawn ? "too late" : "after the deadline"}.`;
}

interface CurveProps {
  readonly answers: readonly Answer[];
  /** Devices at the top of the plot. */
  readonly most: number;
  /** Of the deadline, in seconds from the push; null: none. */
  readonly due: number | null;
  /** Seconds from the push until now. */
  readonly elapsed: number;
}

function Curve({ answers, most, due, elapsed }: CurveProps) {
  const lastAnswer = answers[answers.length - 1]!.seconds;
  const last = Math.max(lastAnswer, due ?? 0);
  const marks = TICKS.map(([seconds]) => seconds);
  const begin = marks.filter((seconds) => seconds <= answers[0]!.seconds).pop() ?? marks[0]!;
  const end = marks.find((seconds) => seconds >= last && seconds > begin) ?? last;
  const share = (seconds: number): number => Math.log(Math.max(seconds, begin) / begin) / Math.log(end / begin);
  /** The area below the count of those answers. */
  const area = (counts: (answer: Answer) => boolean): string => {
    let [path, sum] = [`M0 ${HEIGHT}`, 0];
    for (const answer of answers) {
      if (!counts(answer)) continue;
      path += `H${(share(answer.seconds) * WIDTH).toFixed(1)}V${(HEIGHT * (1 - ++sum / most)).toFixed(2)}`;
    }
    return `${path}H${(share(Math.min(Math.max(elapsed, lastAnswer), end)) * WIDTH).toFixed(1)}V${HEIGHT}Z`;
  };
  return (
    <div class="curve" aria-hidden="true">
      <span class="most">{count(most)}</span>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none">
        <path data-state="failed" d={area(() => true)} />
        <path data-state="done" d={area(({ status }) => status === "done")} />
      </svg>
      {due !== null && (
        <span class="due" style={{ left: `${share(due) * 100}%` }}>
          deadline
        </span>
      )}
      {TICKS.filter(([seconds]) => seconds >= begin && seconds <= end).map(([seconds, label]) => (
        <span
          key={seconds}
          class={`tick${seconds === begin ? " first" : seconds === end ? " last" : ""}`}
          style={{ left: `${share(seconds) * 100}%` }}
        >
          {label}
        </span>
      ))}
    </div>
  );
}
