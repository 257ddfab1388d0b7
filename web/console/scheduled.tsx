/**
 * What is scheduled in a channel: what is pushed, when next in the browser's zone and in its own, what became of it last, and how to cancel it.
 *
 * The service lists schedules without their data. That of the visible ones is read once each: it never changes.
 */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { read, request, troubleText } from "./api.ts";
import { Mark } from "./marks.tsx";
import { notify } from "./notices.tsx";
import { everyText, HERE_ZONE, inZone } from "./push-when.ts";
import { Question } from "./question.tsx";
import { useReading } from "./readings.ts";
import { linkTo } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { now } from "./state.ts";
import { titleOf } from "./verdict.ts";
import { count, prettyJson, some, span } from "./words.ts";

/** Schedules that are read, of at most so many to come and those that are done; and those that are shown at first. */
const LISTED = 1_000;
const SHOWN = 30;
/** Seconds after which the list is read again. */
const AGAIN_SECONDS = 3;

interface Schedule {
  readonly id: string;
  /** ISO time; null: it is done. */
  readonly next: string | null;
  readonly every: string | null;
  readonly tz: string;
  /** The last event's id. */
  readonly last: string | null;
  /** Why its last push failed. */
  readonly error?: string;
}

/** What is pushed. */
interface Content {
  readonly options: Readonly<Record<string, string>>;
  readonly text: string;
}

const contents = new Map<string, Content>();

async function readContent(channel: string, id: string): Promise<Content> {
  const known = contents.get(id);
  if (known) return known;
  const text = await (await request(`/scheduled/${channel}/${id}`)).text();
  // `data` is the last member; nothing before it can contain these characters.
  const start = text.indexOf(',"data":') + ',"data":'.length;
  const { options = {} } = JSON.parse(text) as { options?: Content["options"] };
  const content = { options, text: text.slice(start, -1) };
  contents.set(id, content);
  return content;
}

const dueFirst = (a: Schedule, b: Schedule): number =>
  (a.next === null ? Infinity : Date.parse(a.next)) - (b.next === null ? Infinity : Date.parse(b.next)) || 0;

export function ScheduledPage({ channel }: { readonly channel: string }) {
  const reading = useReading(
    (signal) =>
      read<{ scheduled: Schedule[]; next: string | null }>(
        `/scheduled/${channel}?limit=${LISTED}`,
        "scheduled",
        signal,
      ),
    AGAIN_SECONDS,
  );
  const shown = useSignal(SHOWN);
  const cancelling = useSignal<Schedule | null>(null);
  const found = reading.answer.value;
  if (found === null)
    return reading.trouble.value ? (
      <p class="trouble" role="alert">
        {reading.trouble}
      </p>
    ) : (
      <Skeleton />
    );
  const list = [...found.scheduled].sort(dueFirst);
  const toCome = list.filter(({ next }) => next !== null).length;
  return (
    <section class="scheduled" aria-labelledby="scheduled">
      <h2 id="scheduled">
        {toCome === 0 ? "Nothing is scheduled" : `${some(toCome, "scheduled push").replace("pushs", "pushes")}`}
      </h2>
      {reading.trouble.value && <p class="trouble">What you see may be out of date. {reading.trouble}</p>}
      <p>
        <a class="button" href={linkTo(channel, "push")}>
          Schedule a push
        </a>
      </p>
      {list.length > 0 && (
        <ul class="schedules" aria-label="Scheduled pushes, the next one first">
          {list.slice(0, shown.value).map((schedule) => (
            <Item
              key={schedule.id}
              channel={channel}
              schedule={schedule}
              cancel={() => (cancelling.value = schedule)}
            />
          ))}
        </ul>
      )}
      {list.length > shown.value && (
        <p>
          <button type="button" class="plain" onClick={() => (shown.value += SHOWN)}>
            Show more
          </button>
        </p>
      )}
      {found.next !== null && <p class="muted">These are the first {count(LISTED)} by id; there are more.</p>}
      {cancelling.value !== null && (
        <Cancel
          channel={channel}
          schedule={cancelling.value}
          closed={(isDone) => {
            cancelling.value = null;
            if (!isDone) return;
            notify("well", "The scheduled push was cancelled.");
            reading.again();
            document.getElementById("main")?.focus();
          }}
        />
      )}
    </section>
  );
}

interface ItemProps {
  readonly channel: string;
  readonly schedule: Schedule;
  readonly cancel: () => void;
}

function Item({ channel, schedule, cancel }: ItemProps) {
  const { id, next, every, last, error } = schedule;
  const content = useSignal<Content | null>(contents.get(id) ?? null);
  const trouble = useSignal("");
  useEffect(() => {
    readContent(channel, id).then(
      (found) => (content.value = found),
      (why: unknown) => (trouble.value = troubleText(why)),
    );
  }, [id]);
  const { options = {}, text = "" } = content.value ?? {};
  return (
    <li>
      <div>
        <p class="name">
          {content.value === null ? id : titleOf(options.type, text, "").trim()}{" "}
          <span class="muted">{whatText(options)}</span>
        </p>
        <p>
          <When schedule={schedule} />
        </p>
        <p class="muted">
          {last === null ? (
            next === null ? (
              "Not pushed."
            ) : (
              "Not pushed yet."
            )
          ) : (
            <>
              {every === null ? "Pushed as " : "Last pushed as "}
              <a href={linkTo(channel, "event", last)}>{last}</a>.
            </>
          )}
        </p>
        {error !== undefined && (
          <p class="trouble">
            <Mark state="failed" /> The last push failed: {error}.
          </p>
        )}
        {trouble.value && <p class="trouble">{trouble}</p>}
        {content.value !== null && <code class="preview">{prettyJson(text, true).slice(0, 200)}</code>}
      </div>
      {next !== null && (
        <button
          type="button"
          class="danger"
          aria-label={`Cancel: ${titleOf(options.type, text || "null", "").trim()}`}
          onClick={cancel}
        >
          Cancel
        </button>
      )}
    </li>
  );
}

/** How it is pushed, apart from when. */
function whatText({ to, where, key, deadline, attempts }: Content["options"]): string {
  const facts = [
    where !== undefined
      ? `to devices with ${where}`
      : to === undefined
        ? "to all devices"
        : `to ${some(to.split(",").length, "device")}`,
    key === undefined ? "" : `key ${key}`,
    deadline === undefined ? "" : `deadline ${span(Number(deadline))}`,
    attempts === undefined ? "" : `${attempts} attempts`,
  ];
  return facts.filter(Boolean).join(", ");
}

/** "Next Tue 1 Dec 08:00, in 3 h; this is Tue 1 Dec 09:00 Europe/Vienna. Every weekday at 09:00, Europe/Vienna" */
function When({ schedule: { next, every, tz } }: { readonly schedule: Schedule }) {
  const seconds = next === null ? 0 : (Date.parse(next) - now.value) / 1000;
  const there = every !== null && next !== null && tz !== HERE_ZONE ? `; this is ${inZone(next, tz)}` : "";
  const rule = every === null ? "" : everyText(every);
  return (
    <>
      {next === null ? (
        "Done"
      ) : (
        <>
          {every === null ? "At" : "Next"} <b>{inZone(next, HERE_ZONE)}</b>,{" "}
          {seconds > 0 ? `in ${span(Math.ceil(seconds))}` : "due now"}
          {there}
        </>
      )}
      {every !== null && (
        <>
          <br />
          {rule === every ? `Cron ${every}` : rule.charAt(0).toUpperCase() + rule.slice(1)}, {tz}
        </>
      )}
    </>
  );
}

interface CancelProps {
  readonly channel: string;
  readonly schedule: Schedule;
  readonly closed: (isDone: boolean) => void;
}

function Cancel({ channel, schedule: { id, next, every, last }, closed }: CancelProps) {
  return (
    <Question
      title="Cancel this scheduled push?"
      action="Cancel the push"
      dismissal="Keep it"
      run={() => request(`/scheduled/${channel}/${id}`, { method: "DELETE" })}
      closed={closed}
    >
      <p>
        {every === null
          ? `What was to be pushed ${next === null ? "" : inZone(next, HERE_ZONE)} is not pushed.`
          : `It is no longer pushed ${everyText(every) === every ? `by the cron expression ${every}` : everyText(every)}.`}{" "}
        {last !== null && "Events that it has pushed stay as they are."}
      </p>
    </Question>
  );
}
