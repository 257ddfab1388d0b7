/** The page of one device: when it was last heard from, what it was sent and what it said about it, newest first; and how to retire it. */
import { useSignal } from "@preact/signals";
import { type Device, request, withLists } from "./api.ts";
import { readDevice } from "./event-data.ts";
import { queryOf } from "./floor.ts";
import { LastHeard } from "./last-heard.tsx";
import { Mark } from "./marks.tsx";
import { notify } from "./notices.tsx";
import { Question } from "./question.tsx";
import { Skeleton } from "./skeleton.tsx";
import { useReading } from "./readings.ts";
import { FIRST_PAGE, type PageOf, Pages, startOf } from "./pages.tsx";
import { linkTo, useKept, useTitle } from "./router.ts";
import { now } from "./state.ts";
import { answerText } from "./verdict.ts";
import { againText, ago, count, exactJson, some, timeText } from "./words.ts";

/** Rows per page. */
const PAGE = 50;
/** Seconds after which the page is read again. */
const AGAIN_SECONDS = 3;

/** The device's status on one event. */
interface Said {
  readonly event: string;
  readonly type: string | null;
  readonly pushedAt: string;
  readonly deadline: string | null;
  readonly status: string;
  readonly detail: unknown;
  readonly at: string | null;
  readonly late: boolean;
  readonly round: number;
  readonly attempt: number;
  readonly due?: string;
}
interface History {
  readonly receipts: readonly Said[];
  readonly next: string | null;
}

async function readHistory(channel: string, name: string, after: string, signal: AbortSignal): Promise<History> {
  const options: [string, string][] = [["limit", String(PAGE)]];
  if (after !== "") options.push(["after", after]);
  const answer = await request(`/devices/${channel}/${name}/receipts${queryOf(options)}`, { signal });
  return withLists<History>(exactJson(await answer.text()), ["receipts"]);
}

export function DevicePage({ channel, name }: { readonly channel: string; readonly name: string }) {
  useTitle(name);
  const { answer, trouble } = useReading(
    // Wrapped, so that a device that is not enrolled is an answer too.
    async (signal) => ({ device: await readDevice(channel, name, signal) }),
    AGAIN_SECONDS,
  );
  if (answer.value === null) return trouble.value ? <p class="trouble">{trouble}</p> : <Skeleton />;
  const { device } = answer.value;
  return (
    <article class="event">
      <p class="back">
        <a href={linkTo(channel, "devices")}>← Devices</a>
      </p>
      <h2>{name}</h2>
      {trouble.value && <p class="trouble">What you see may be out of date. {trouble}</p>}
      {device === null ? (
        <p>This device is not enrolled in {channel}: it was retired, or never joined.</p>
      ) : (
        <Facts channel={channel} device={device} />
      )}
      <HistoryList channel={channel} name={name} />
    </article>
  );
}

/** Whether several machines may have the name: one alone can have an IPv4 and an IPv6 address. */
const isShared = (addresses: readonly string[]): boolean => {
  const six = addresses.filter((address) => address.includes(":")).length;
  return six > 1 || addresses.length - six > 1;
};

function Facts({ channel, device }: { readonly channel: string; readonly device: Device }) {
  const { device: name, pending, enrolledAt, addresses = [] } = device;
  const isAsking = useSignal(false);
  return (
    <>
      <p>
        <LastHeard device={device} />. {pending === 0 ? "It owes no answer" : `It owes ${some(pending, "answer")}`}.{" "}
        <span class="muted" title={timeText(enrolledAt)}>
          Enrolled {ago(enrolledAt, now.value)}.
        </span>
      </p>
      {isShared(addresses) && (
        <p class="trouble">
          It is connected from {count(addresses.length)} addresses at once: {addresses.join(", ")}. Two machines may
          have the same name.
        </p>
      )}
      <ul class="actions" aria-label="Actions">
        <li>
          <button type="button" class="danger" onClick={() => (isAsking.value = true)}>
            Retire this device
          </button>
        </li>
      </ul>
      {isAsking.value && (
        <Question
          title={`Retire ${name}?`}
          action={`Retire ${name}`}
          run={() => request(`/devices/${channel}/${name}`, { method: "DELETE" })}
          closed={(isDone) => {
            isAsking.value = false;
            if (!isDone) return;
            notify("well", `${name} was retired from ${channel}.`);
            location.hash = linkTo(channel, "devices");
          }}
        >
          <p>
            New events in {channel} are no longer for it.{" "}
            {pending > 0 && `Nobody waits any more for the ${some(pending, "answer")} that it owes. `}
            What it has answered stays.
          </p>
          <p>If it follows the channel again, it joins again, and gets only what is pushed from then on.</p>
        </Question>
      )}
    </>
  );
}

function HistoryList({ channel, name }: { readonly channel: string; readonly name: string }) {
  const starts = useKept("starts", FIRST_PAGE);
  const { answer, trouble, isUnknown } = useReading<History & PageOf>(async (signal) => {
    const page = starts.value;
    return { ...(await readHistory(channel, name, startOf(page), signal)), starts: page };
  }, AGAIN_SECONDS);
  const shown = answer.value;
  if (isUnknown.value) return null;
  return (
    <section aria-labelledby="history">
      <h3 id="history">What it was sent, and what it said</h3>
      {trouble.value && <p class="trouble">{trouble}</p>}
      {shown === null ? (
        !trouble.value && <Skeleton rows={3} />
      ) : shown.receipts.length === 0 ? (
        <p class="empty small">No kept event was for this device.</p>
      ) : (
        <ul class="names" aria-label="Events for this device and its answers">
          {shown.receipts.map((said) => (
            <SaidRow key={said.event} channel={channel} said={said} />
          ))}
        </ul>
      )}
      {shown !== null && <Pages starts={starts} shown={shown} size={PAGE} rows={shown.receipts.length} />}
    </section>
  );
}

function SaidRow({ channel, said }: { readonly channel: string; readonly said: Said }) {
  const { event, type, pushedAt, deadline, status, detail, at, late } = said;
  return (
    <li>
      <span class="name">
        <a href={linkTo(channel, "event", event)}>{type ?? `event ${event.slice(event.lastIndexOf("-") + 1)}`}</a>
      </span>
      <span class="state">
        <Mark state={status} /> {status}
        {late && <b class="late">late</b>}
      </span>
      <span class="reason">{[answerText(status, detail), againText(said, now.value)].filter(Boolean).join(" · ")}</span>
      <span class="when" title={ago(pushedAt, now.value)}>
        sent {timeText(pushedAt)}
      </span>
      <span class="heard">
        {status === "missing" && deadline !== null
          ? `deadline was ${timeText(deadline)}`
          : at === null
            ? "no answer yet"
            : `${status === "withdrawn" ? "taken back" : "answered"} ${timeText(at)}`}
      </span>
    </li>
  );
}
