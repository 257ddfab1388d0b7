/**
 * The devices of an event: a filter with a button per state, which is also the legend, and one page of rows, which the service filters and pages.
 */
import { batch, type ReadonlySignal, useSignalEffect } from "@preact/signals";
import type { Device, Row, Tally } from "./api.ts";
import { PAGE, readDevices, readRows, type Shown as Event } from "./event-data.ts";
import { LastHeard } from "./last-heard.tsx";
import { Mark } from "./marks.tsx";
import { useReading } from "./readings.ts";
import { FIRST_PAGE, type PageOf, Pages, startOf } from "./pages.tsx";
import { linkTo, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { now } from "./state.ts";
import { answerText, owingStates, type States } from "./verdict.ts";
import { againText, ago, count, meaningOf, statesOf, timeText } from "./words.ts";

/** Seconds between two reads while the tally moves, and while it does not: for when devices were last heard from. */
const CHANGED_SECONDS = 1;
const UNCHANGED_SECONDS = 15;

/** What the filter shows: all, all that are not done, or one state. */
type Filter = "all" | "not done" | { readonly state: string };

interface Shown extends PageOf {
  readonly rows: readonly Row[];
  readonly devices: ReadonlyMap<string, Device>;
  /** The tally when the rows were asked for. */
  readonly tally: States;
}

interface EventDevicesProps {
  readonly channel: string;
  readonly event: ReadonlySignal<Event>;
  readonly tally: ReadonlySignal<States>;
}

const isSame = (a: States, b: States): boolean => JSON.stringify(a) === JSON.stringify(b);

const sumOf = (tally: States, states: readonly string[]): number =>
  states.reduce((total, state) => total + (tally[state] ?? 0), 0);

export function EventDevices({ channel, event, tally }: EventDevicesProps) {
  const { id, audience, withdrawn } = event.value;
  const { addressed } = audience;
  const isAllDone = sumOf(tally.peek(), owingStates(tally.peek())) === 0;
  const filter = useKept<Filter>("filter", isAllDone ? "all" : "not done");
  const starts = useKept("starts", FIRST_PAGE);
  const wantedStates = (): readonly string[] | null =>
    filter.value === "all" ? null : filter.value === "not done" ? owingStates(tally.peek()) : [filter.value.state];
  const reading = useReading<Shown>(
    async (signal) => {
      const [states, page, before] = [wantedStates(), starts.value, tally.peek()];
      const after = startOf(page);
      const { receipts: rows, next } = await readRows(channel, id, states, after, PAGE, signal);
      return { starts: page, rows, next, devices: await readDevices(channel, rows, after, signal), tally: before };
    },
    (shown) => (shown !== null && isSame(shown.tally, tally.value) ? UNCHANGED_SECONDS : CHANGED_SECONDS),
  );
  // Devices leave a page as they answer; an empty page goes back to the one before.
  useSignalEffect(() => {
    if (reading.answer.value?.rows.length === 0 && starts.peek().length > 1) starts.value = starts.peek().slice(0, -1);
  });
  const choose = (chosen: Filter): void =>
    batch(() => {
      filter.value = chosen;
      starts.value = FIRST_PAGE;
    });
  if (addressed === 0) return null;
  const shown = reading.answer.value;
  const states = filter.value === "all" ? Object.keys(tally.value) : (wantedStates() ?? []);
  return (
    <section aria-labelledby="devices">
      <h3 id="devices">Devices</h3>
      <Filters filter={filter.value} tally={tally.value} addressed={addressed} choose={choose} />
      {reading.trouble.value && <p class="trouble">{reading.trouble}</p>}
      {shown === null ? (
        !reading.trouble.value && <Skeleton rows={3} />
      ) : shown.rows.length === 0 ? (
        <p class="empty small">
          {filter.value !== "not done"
            ? "No device."
            : withdrawn
              ? "No device owes it any more."
              : "Every device is done."}
        </p>
      ) : (
        <ul class="names" aria-label="Devices and their answers">
          {shown.rows.map((row) => (
            <DeviceRow
              key={row.device}
              channel={channel}
              row={row}
              device={shown.devices.get(row.device)}
              withdrawnAt={withdrawn?.at}
            />
          ))}
        </ul>
      )}
      {shown !== null && (
        <Pages starts={starts} shown={shown} size={PAGE} rows={shown.rows.length} total={sumOf(tally.value, states)} />
      )}
    </section>
  );
}

interface FiltersProps {
  readonly filter: Filter;
  readonly tally: States;
  readonly addressed: number;
  readonly choose: (filter: Filter) => void;
}

/** The legend, whose signs and counts are the buttons of the filter. */
function Filters({ filter, tally, addressed, choose }: FiltersProps) {
  const states: readonly string[] = statesOf(tally as Tally);
  const chosen = typeof filter === "string" ? null : filter.state;
  return (
    <div class="filters" role="group" aria-label="Which devices to show">
      <button type="button" aria-pressed={filter === "not done"} onClick={() => choose("not done")}>
        not done <b>{count(sumOf(tally, owingStates(tally)))}</b>
      </button>
      {states.map((state) => (
        <button
          key={state}
          type="button"
          title={meaningOf(state)}
          aria-pressed={chosen === state}
          class={tally[state] === 0 ? "none" : ""}
          onClick={() => choose({ state })}
        >
          <Mark state={state} /> {state} <b>{count(tally[state]!)}</b>
        </button>
      ))}
      <button type="button" aria-pressed={filter === "all"} onClick={() => choose("all")}>
        all <b>{count(addressed)}</b>
      </button>
    </div>
  );
}

interface DeviceRowProps {
  readonly channel: string;
  readonly row: Row;
  /** undefined: it is not enrolled. */
  readonly device: Device | undefined;
  /** When the event was withdrawn; undefined: it was not. */
  readonly withdrawnAt: string | undefined;
}

function DeviceRow({ channel, row, device, withdrawnAt }: DeviceRowProps) {
  const { device: name, status, detail, at, late } = row;
  return (
    <li>
      <span class="name">{device ? <a href={linkTo(channel, "devices", name)}>{name}</a> : name}</span>
      <span class="state">
        <Mark state={status} /> {status}
        {late && <b class="late">late</b>}
      </span>
      <span class="reason">{[answerText(status, detail), againText(row, now.value)].filter(Boolean).join(" · ")}</span>
      <span class="when">
        {at === null ? (
          "no answer yet"
        ) : (
          <time dateTime={at} title={ago(at, now.value)}>
            {timeText(at)}
            {late && (withdrawnAt !== undefined && at >= withdrawnAt ? ", after it was over" : ", after the deadline")}
          </time>
        )}
      </span>
      <span class="heard">
        <LastHeard device={device} />
      </span>
    </li>
  );
}
