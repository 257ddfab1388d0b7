/**
 * The page of one event: a verdict in a sentence, what can be done about it, the devices with their reasons, the answers over time, and the data.
 *
 * When the stream reports a new tally, the event is read again, at most once a second, and then what is shown of its rows. An event that the stream
 * does not report is read every few seconds until it is complete.
 */
import { useComputed, useSignal } from "@preact/signals";
import { Answers } from "./answers.tsx";
import { troubleText } from "./api.ts";
import type { Board } from "./board-data.ts";
import { readEvent, saveCsv, type Shown } from "./event-data.ts";
import { EventDevices } from "./event-devices.tsx";
import { SameKey } from "./event-key.tsx";
import { Withdraw, WithdrawnBy } from "./event-withdraw.tsx";
import { useReading } from "./readings.ts";
import { linkTo, useTitle } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { now } from "./state.ts";
import { leftOf, titleOf, verdictText } from "./verdict.ts";
import { ago, count, prettyJson, some, span, timeText } from "./words.ts";

/** Seconds after which a changed event is read again, and one that the stream does not report. */
const CHANGED_SECONDS = 1;
const UNREPORTED_SECONDS = 5;

interface EventPageProps {
  readonly channel: string;
  readonly id: string;
  readonly shown: Board | null;
}

export function EventPage({ channel, id, shown }: EventPageProps) {
  const reading = useReading(
    (signal) => readEvent(channel, id, signal),
    (event) => {
      void shown?.version.value;
      const told = shown?.line(id)?.head.receipts;
      if (event === null || (told && JSON.stringify(told) !== JSON.stringify(event.receipts))) return CHANGED_SECONDS;
      if (told && shown?.line(id)?.head.withdrawn !== null && event.withdrawn === undefined) return CHANGED_SECONDS;
      return told || event.complete ? Infinity : UNREPORTED_SECONDS;
    },
  );
  const event = reading.answer.value;
  if (event === null)
    return reading.trouble.value ? (
      <p class="trouble" role="alert">
        {reading.trouble} <a href={linkTo(channel)}>Back to the board</a>
      </p>
    ) : (
      <Skeleton />
    );
  return (
    <EventDetails
      channel={channel}
      event={event}
      board={shown}
      trouble={reading.trouble.value}
      again={() => reading.again()}
    />
  );
}

interface EventDetailsProps {
  readonly channel: string;
  readonly event: Shown;
  readonly board: Board | null;
  readonly trouble: string;
  /** Reads the event again. */
  readonly again: () => void;
}

function EventDetails({ channel, event, board, trouble, again }: EventDetailsProps) {
  const { id, at, type, audience, receipts, text, deadline, withdrawn } = event;
  const { addressed, connected } = audience;
  const shown = useSignal(event);
  shown.value = event;
  const tally = useComputed(() => shown.value.receipts);
  const title = titleOf(type, text, id);
  useTitle(title);
  return (
    <article class="event">
      <p class="back">
        <a href={linkTo(channel)}>← Board</a>
      </p>
      <header>
        <p class="about">
          {title}
          {type !== undefined && type !== title && <span class="muted"> · {type}</span>}
        </p>
        <h2 class="verdict">
          {verdictText({ addressed, receipts, deadline, type, withdrawn: withdrawn?.reason }, now.value)}
        </h2>
        {withdrawn && <WithdrawnBy channel={channel} withdrawn={withdrawn} />}
        <p class="muted">
          Pushed {timeText(at)}, {ago(at, now.value)}, to {some(addressed, "device")}; {count(connected)} of them{" "}
          {connected === 1 ? "is" : "are"} connected now. <code>{id}</code>
        </p>
      </header>
      {trouble && <p class="trouble">What you see may be out of date. {trouble}</p>}
      <Actions channel={channel} event={event} again={again} />
      <EventDevices channel={channel} event={shown} tally={tally} />
      <section aria-labelledby="answers">
        <h3 id="answers">Answers over time</h3>
        <Answers channel={channel} event={shown} />
      </section>
      <section aria-labelledby="data">
        <h3 id="data">Data</h3>
        <pre tabIndex={0} aria-label="Data">
          {prettyJson(text)}
        </pre>
        <Options channel={channel} event={event} />
      </section>
      {event.key !== undefined && <SameKey channel={channel} event={event} keyOf={event.key} board={board} />}
    </article>
  );
}

/** What can be done about an event. Each action is an item of the list. */
function Actions({ channel, event, again }: Pick<EventDetailsProps, "channel" | "event" | "again">) {
  const trouble = useSignal("");
  const left = leftOf(event.receipts);
  const save = (): void => {
    trouble.value = "";
    saveCsv(channel, event.id).catch((error: unknown) => (trouble.value = troubleText(error)));
  };
  return (
    <>
      <ul class="actions" aria-label="Actions">
        {left > 0 && (
          <li>
            <a class="button" href={linkTo(channel, "push", event.id)}>
              Push again to {left === 1 ? "this device" : `these ${count(left)}`}
            </a>
          </li>
        )}
        {!event.complete && (
          <li>
            <Withdraw channel={channel} event={event} done={again} />
          </li>
        )}
        <li>
          <button type="button" class="plain" onClick={save}>
            Export as CSV
          </button>
        </li>
      </ul>
      <p class="trouble" role="status">
        {trouble}
      </p>
    </>
  );
}

/** How the event was pushed. */
function Options({ channel, event }: Pick<EventDetailsProps, "channel" | "event">) {
  const { deadline, at, remind, expiresAt, to, attempts, scheduled, again } = event;
  const length = deadline === undefined ? 0 : (Date.parse(deadline) - Date.parse(at)) / 1000;
  const facts = [
    deadline === undefined ? "" : `Deadline ${timeText(deadline)}, ${span(length)} after the push.`,
    remind === undefined ? "" : `Reminders every ${span(remind)}.`,
    expiresAt === undefined ? "" : `Expires ${timeText(expiresAt)}.`,
    to === undefined ? "" : `Sent to ${some(to.length, "named device")}.`,
    attempts === undefined ? "" : `A device may try ${attempts} times.`,
  ].filter(Boolean);
  if (facts.length === 0 && scheduled === undefined && again === undefined) return null;
  return (
    <p class="muted">
      {facts.join(" ")}{" "}
      {again !== undefined && (
        <>
          It repeats <a href={linkTo(channel, "event", again)}>an earlier event</a>.{" "}
        </>
      )}
      {scheduled !== undefined && (
        <>
          Pushed by <a href={linkTo(channel, "scheduled")}>a scheduled push</a>.
        </>
      )}
    </p>
  );
}
