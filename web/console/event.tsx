/**
 * The page of one event: its data, its tally, the time to final receipts, its devices, and an export as CSV.
 *
 * When the stream reports a new tally, the event and its rows are read again, at most once a second.
 */
import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type Device, read, Refused, request, type Row, type State, type Tally, withLists } from "./api.ts";
import type { Board } from "./board-data.ts";
import { Mark } from "./marks.tsx";
import { linkTo } from "./router.ts";
import { now } from "./state.ts";
import {
  ago,
  count,
  exactJson,
  meaningOf,
  prettyJson,
  some,
  span,
  STATES,
  statesIn,
  statesOf,
  tallyText,
  timeText,
} from "./words.ts";

/** Rows that the distribution is computed from. */
const ROWS_MAX = 2_000;
/** Rows per request. */
const PAGE = 1_000;
/** Rows in the table; the export has all of them. */
const LISTED = 100;
/** Devices whose last sign of life is read. */
const SIGNS_MAX = 2_000;

/** Minimum interval between two reads. */
const AGAIN_MS = 1_000;
/** How long a browser may take to start saving a file. */
const SAVING_MS = 30_000;

/** The event as its publisher gets it, with the data as unchanged text. */
interface Shown {
  readonly id: string;
  readonly at: string;
  readonly type?: string;
  readonly deadline?: string;
  readonly expiresAt?: string;
  readonly remind?: number;
  readonly to?: readonly string[];
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts: Tally;
  readonly complete: boolean;
  readonly text: string;
}

async function readEvent(channel: string, id: string): Promise<Shown> {
  const text = await (await request(`/events/${channel}/${id}`)).text();
  // `data` is the last member; nothing before it can contain these characters.
  const start = text.indexOf(',"data":') + ',"data":'.length;
  const event = JSON.parse(text) as Omit<Shown, "text"> | null;
  if (typeof event?.audience?.addressed !== "number" || typeof event.receipts !== "object")
    throw new Error("the answer does not come from PERE");
  return { ...event, text: text.slice(start, -1) };
}

async function readRows(channel: string, id: string): Promise<{ rows: Row[]; isAll: boolean }> {
  const rows: Row[] = [];
  let after: string | null = "";
  while (after !== null && rows.length < ROWS_MAX) {
    const path: string = `/events/${channel}/${id}/receipts?after=${after}&limit=${PAGE}`;
    const text = await (await request(path)).text();
    const page = withLists<{ receipts: Row[]; next: string | null }>(exactJson(text), ["receipts"]);
    rows.push(...page.receipts);
    after = page.next;
  }
  return { rows, isAll: after === null };
}

/** The last sign of life of the first devices by name. */
async function readSigns(channel: string): Promise<Map<string, Device>> {
  const signs = new Map<string, Device>();
  let after: string | null = "";
  while (after !== null && signs.size < SIGNS_MAX) {
    const path: string = `/devices/${channel}?after=${after}&limit=${PAGE}`;
    const page: { devices: Device[]; next: string | null } = await read(path, "devices");
    for (const device of page.devices) signs.set(device.device, device);
    after = page.next;
  }
  return signs;
}

export function EventPage({
  channel,
  id,
  shown,
}: {
  readonly channel: string;
  readonly id: string;
  readonly shown: Board | null;
}) {
  const event = useSignal<Shown | null>(null);
  const rows = useSignal<{ rows: Row[]; isAll: boolean }>({ rows: [], isAll: true });
  const signs = useSignal<ReadonlyMap<string, Device>>(new Map());
  const trouble = useSignal("");
  const load = (): void => {
    Promise.all([readEvent(channel, id), readRows(channel, id), readSigns(channel)]).then(
      ([one, two, three]) => ([event.value, rows.value, signs.value, trouble.value] = [one, two, three, ""]),
      (error: Error) => (trouble.value = error instanceof Refused ? error.message : "the service can't be reached"),
    );
  };
  useEffect(load, [channel, id]);
  // Read again while the shown tally differs from the stream's, at most once a second.
  const readAt = useSignal(0);
  useSignalEffect(() => {
    void shown?.version.value;
    const told = shown?.line(id)?.head.receipts;
    if (!told || event.value === null || now.value - readAt.peek() < AGAIN_MS) return;
    if (JSON.stringify(told) === JSON.stringify(event.value.receipts)) return;
    readAt.value = now.value;
    load();
  });
  if (event.value === null) return <p class={trouble.value ? "trouble" : "empty"}>{trouble.value || "Loading…"}</p>;
  const { type, at, audience, receipts, text, deadline, expiresAt, remind, to, complete } = event.value;
  return (
    <article class="event">
      <p>
        <a href={linkTo(channel)}>← Board</a>
      </p>
      <header>
        <h2>{type ?? "Event"}</h2>
        <p class="muted">
          <code>{id}</code> · {timeText(at)} · {ago(at, now.value)}
        </p>
      </header>
      <div class="pair">
        <section aria-labelledby="stand">
          <h3 id="stand">Status of devices</h3>
          <Ring tally={receipts} addressed={audience.addressed} />
          <p class="muted">
            {complete ? "Complete. " : ""}Of {some(audience.addressed, "addressed device")}, {count(audience.connected)}{" "}
            connected now.
          </p>
        </section>
        <section aria-labelledby="took">
          <h3 id="took">Time to the final receipt</h3>
          <Distribution at={at} rows={rows.value.rows} />
          {!rows.value.isAll && <p class="muted">Of the first {count(ROWS_MAX)} devices by name.</p>}
        </section>
      </div>
      <section aria-labelledby="data">
        <h3 id="data">Data</h3>
        <pre tabIndex={0} aria-label="Data">
          {prettyJson(text)}
        </pre>
        <p class="muted">
          {deadline ? `Deadline ${timeText(deadline)}. ` : ""}
          {remind ? `Reminders every ${span(remind)}. ` : ""}
          {expiresAt ? `Expires ${timeText(expiresAt)}. ` : ""}
          {to ? `Sent to ${some(to.length, "named device")}. ` : ""}
        </p>
      </section>
      <Rows channel={channel} id={id} rows={rows.value.rows} signs={signs.value} />
    </article>
  );
}

/** The tally as a ring, and as a list of numbers. */
function Ring({ tally, addressed }: { readonly tally: Tally; readonly addressed: number }) {
  const around = 2 * Math.PI * 40;
  let before = 0;
  const parts = statesIn(tally).map((state) => {
    const part = { state, share: tally[state] / addressed, before };
    before += part.share;
    return part;
  });
  return (
    <div class="ring">
      <svg viewBox="0 0 100 100" role="img" aria-label={tallyText(tally, addressed)}>
        <circle cx="50" cy="50" r="40" class="track" />
        {parts.map(({ state, share, before }) => (
          <circle
            key={state}
            cx="50"
            cy="50"
            r="40"
            data-state={state}
            pathLength={around}
            stroke-dasharray={`${Math.max(0, share * around - (parts.length > 1 ? 1.5 : 0))} ${around}`}
            stroke-dashoffset={-before * around}
          />
        ))}
        <text x="50" y="49">
          {addressed === 0 ? "–" : `${Math.floor((100 * (tally.done + tally.failed)) / addressed)}%`}
        </text>
        <text x="50" y="63" class="small">
          final
        </text>
      </svg>
      <dl>
        {statesOf(tally).map((state) => (
          <div key={state} title={meaningOf(state)} class={tally[state] === 0 ? "none" : ""}>
            <dt>
              <Mark state={state} /> {state}
            </dt>
            <dd>{count(tally[state])}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

/** Upper bounds of the distribution's bars, in seconds. */
const BOUNDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120, 600, 3_600, Infinity];

/** The time from the push to final receipts. */
function Distribution({ at, rows }: { readonly at: string; readonly rows: readonly Row[] }) {
  const times = rows
    .filter((row) => (row.status === "done" || row.status === "failed") && row.at !== null)
    .map((row) => Math.max(0, (Date.parse(row.at!) - Date.parse(at)) / 1000))
    .sort((a, b) => a - b);
  if (times.length === 0) return <p class="empty small">No final receipt yet.</p>;
  const bars = BOUNDS.map(
    (bound, place) => times.filter((time) => time <= bound && time > (BOUNDS[place - 1] ?? -1)).length,
  );
  const filled = bars.flatMap((bar, place) => (bar > 0 ? [place] : []));
  const [first, last] = [filled[0]!, filled[filled.length - 1]!];
  const [from, to] = [Math.max(0, first - 1), Math.min(BOUNDS.length, last + 2)];
  const most = Math.max(...bars);
  const at50 = times[Math.ceil(times.length / 2) - 1]!;
  const at99 = times[Math.ceil(times.length * 0.99) - 1]!;
  return (
    <figure class="spread">
      <table aria-label="Devices by the time they took">
        <tbody>
          {bars.slice(from, to).map((bar, place) => {
            const bound = BOUNDS[from + place]!;
            return (
              <tr key={bound}>
                <th scope="row">
                  {bound === Infinity ? `over ${span(BOUNDS[BOUNDS.length - 2]!)}` : `≤ ${span(bound)}`}
                </th>
                <td>
                  <span class="bar" style={{ width: `${(100 * bar) / most}%` }} /> {bar > 0 ? count(bar) : ""}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
      <figcaption class="muted">
        Median {span(at50)}, 99th percentile {span(at99)}.
      </figcaption>
    </figure>
  );
}

interface RowsProps {
  readonly channel: string;
  readonly id: string;
  readonly rows: readonly Row[];
  readonly signs: ReadonlyMap<string, Device>;
}

/** The devices: at first those without a final receipt, or those that the user selects. */
function Rows({ channel, id, rows, signs }: RowsProps) {
  const only = useSignal<State | "open" | "all">("open");
  const isOpen = ({ status }: Row): boolean => status !== "done" && status !== "failed";
  const found = rows.filter(
    (row) => only.value === "all" || (only.value === "open" ? isOpen(row) : row.status === only.value),
  );
  const trouble = useSignal("");
  const save = (): void => {
    trouble.value = "";
    saveCsv(channel, id).catch((error: Error) => (trouble.value = error.message));
  };
  const choices = ["open", "all", ...STATES] as const;
  return (
    <section aria-labelledby="devices">
      <h3 id="devices">Devices</h3>
      <div class="tools">
        <label class="inline">
          Show{" "}
          <select value={only.value} onChange={({ currentTarget }) => (only.value = currentTarget.value as State)}>
            {choices.map((choice) => (
              <option key={choice} value={choice}>
                {choice === "open" ? "no final receipt" : choice}
              </option>
            ))}
          </select>
        </label>
        <button type="button" class="plain" onClick={save}>
          Export as CSV
        </button>
        <span class="trouble">{trouble}</span>
      </div>
      {found.length === 0 ? (
        <p class="empty small">{only.value === "open" ? "Every device has sent its final receipt." : "None."}</p>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-label="Devices and their receipts">
          <table>
            <thead>
              <tr>
                <th scope="col">Device</th>
                <th scope="col">Status</th>
                <th scope="col">At</th>
                <th scope="col">Detail</th>
                <th scope="col">Last sign of life</th>
              </tr>
            </thead>
            <tbody>
              {found.slice(0, LISTED).map((row) => (
                <tr key={row.device}>
                  <th scope="row">{row.device}</th>
                  <td class="nowrap">
                    <Mark state={row.status} /> {row.status}
                    {row.late ? ", late" : ""}
                  </td>
                  <td class="nowrap">{row.at === null ? "–" : timeText(row.at)}</td>
                  <td class="detail">{row.detail === null ? "–" : JSON.stringify(row.detail)}</td>
                  <td class="nowrap">
                    <Sign device={signs.get(row.device)} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {found.length > LISTED && (
        <p class="muted">
          The first {LISTED} of {count(found.length)}; the export has all of them.
        </p>
      )}
    </section>
  );
}

/** When a device was last heard from. */
export function Sign({ device }: { readonly device: Device | undefined }) {
  if (!device) return <>not enrolled</>;
  const seen = device.seenAt === null ? "never heard from" : ago(device.seenAt, now.value);
  return (
    <>
      <span class={device.connected ? "dot on" : "dot"} aria-hidden="true" /> {device.connected ? "connected, " : ""}
      <span title={device.seenAt ?? ""}>{seen}</span>
    </>
  );
}

/** Reads all rows as CSV and lets the browser save them as a file. @throws Refused */
async function saveCsv(channel: string, id: string): Promise<void> {
  const answer = await request(`/events/${channel}/${id}/receipts`, { headers: { Accept: "text/csv" } });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${channel}-${id}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), SAVING_MS);
}
