/** The devices of a channel: found by name, sorted, filtered and paged by the service. Below them, the channel itself can be deleted. */
import { batch, type Signal } from "@preact/signals";
import { type Device, read } from "./api.ts";
import { DeleteChannel } from "./channel-delete.tsx";
import { queryOf } from "./floor.ts";
import { LastHeard } from "./last-heard.tsx";
import { Skeleton } from "./skeleton.tsx";
import { useReading } from "./readings.ts";
import { FIRST_PAGE, type PageOf, Pages, startOf } from "./pages.tsx";
import { linkTo, useKept } from "./router.ts";
import { now } from "./state.ts";
import { ago, count, tagsText, timeText } from "./words.ts";

/** Rows per page. */
const PAGE = 100;
/** Seconds after which the list is read again. */
const AGAIN_SECONDS = 3;

interface DeviceList {
  readonly devices: readonly Device[];
  readonly next: string | null;
}
interface Found extends DeviceList, PageOf {
  /** Whether it may be without some of the channel's devices. */
  readonly isFiltered: boolean;
}

type Sort = "name" | "pending" | "seen";
const SORTS: readonly (readonly [Sort, string])[] = [
  ["name", "name"],
  ["pending", "most owed"],
  ["seen", "longest silent"],
];

/** What is looked for. */
interface Wanted {
  readonly search: string;
  readonly sort: Sort;
  readonly isConnectedOnly: boolean;
}

const EVERYTHING: Wanted = { search: "", sort: "name", isConnectedOnly: false };

function pathOf(channel: string, { search, sort, isConnectedOnly }: Wanted, after: string): string {
  const options: [string, string][] = [["limit", String(PAGE)]];
  if (after !== "") options.push(["after", after]);
  if (search !== "") options.push(["search", search]);
  if (sort !== "name") options.push(["sort", sort]);
  if (isConnectedOnly) options.push(["connected", "true"]);
  return `/devices/${channel}${queryOf(options)}`;
}

export function DevicesPage({ channel }: { readonly channel: string }) {
  const wanted = useKept("wanted", EVERYTHING);
  const starts = useKept("starts", FIRST_PAGE);
  const { answer, trouble } = useReading<Found>(async (signal) => {
    const page = starts.value;
    const isFiltered = wanted.value.search !== "" || wanted.value.isConnectedOnly;
    const path = pathOf(channel, wanted.value, startOf(page));
    return { ...(await read<DeviceList>(path, "devices", signal)), isFiltered, starts: page };
  }, AGAIN_SECONDS);
  const shown = answer.value;
  if (shown === null) return trouble.value ? <p class="trouble">{trouble}</p> : <Skeleton />;
  const isEmpty = shown.devices.length === 0 && shown.starts.length === 1;
  return (
    <>
      <section aria-label="Devices">
        {!(isEmpty && !shown.isFiltered) && <Tools wanted={wanted} changed={() => (starts.value = FIRST_PAGE)} />}
        {trouble.value && <p class="trouble">What you see may be out of date. {trouble}</p>}
        {!isEmpty ? (
          <DeviceTable channel={channel} devices={shown.devices} />
        ) : shown.isFiltered ? (
          <p class="empty small">No device fits.</p>
        ) : (
          <p class="empty">
            No devices yet. A device joins when it first follows the channel:{" "}
            <a href={`weblistener.html?channel=${channel}`}>open one in a browser</a>.
          </p>
        )}
        <Pages starts={starts} shown={shown} size={PAGE} rows={shown.devices.length} />
      </section>
      <DeleteChannel channel={channel} />
    </>
  );
}

interface ToolsProps {
  readonly wanted: Signal<Wanted>;
  /** Called after a change. */
  readonly changed: () => void;
}

function Tools({ wanted, changed }: ToolsProps) {
  const change = (some: Partial<Wanted>): void =>
    batch(() => {
      wanted.value = { ...wanted.peek(), ...some };
      changed();
    });
  const { search, sort, isConnectedOnly } = wanted.value;
  return (
    <div class="find">
      <input
        type="search"
        aria-label="Find a device"
        placeholder="Find a device"
        autocomplete="off"
        autocapitalize="none"
        spellcheck={false}
        value={search}
        onInput={({ currentTarget }) => change({ search: currentTarget.value.trim() })}
      />
      <label class="inline">
        Sort by{" "}
        <select value={sort} onChange={({ currentTarget }) => change({ sort: currentTarget.value as Sort })}>
          {SORTS.map(([value, label]) => (
            <option key={value} value={value}>
              {label}
            </option>
          ))}
        </select>
      </label>
      <label class="inline">
        <input
          type="checkbox"
          checked={isConnectedOnly}
          onChange={({ currentTarget }) => change({ isConnectedOnly: currentTarget.checked })}
        />
        Connected only
      </label>
    </div>
  );
}

function TagList({ tags }: Pick<Device, "tags">) {
  const text = tagsText(tags);
  return text === "" ? null : <div class="muted small">{text}</div>;
}

function DeviceTable({ channel, devices }: { readonly channel: string; readonly devices: readonly Device[] }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Devices of the channel">
      <table class="devices">
        <thead>
          <tr>
            <th scope="col">Device</th>
            <th scope="col">Last heard from</th>
            <th scope="col" class="number">
              Owes
            </th>
            <th scope="col" class="wide">
              Enrolled
            </th>
          </tr>
        </thead>
        <tbody>
          {devices.map((device) => (
            <tr key={device.device}>
              <th scope="row">
                <a href={linkTo(channel, "devices", device.device)}>{device.device}</a>
                <TagList tags={device.tags} />
              </th>
              <td>
                <LastHeard device={device} />
              </td>
              <td class="number">{count(device.pending)}</td>
              <td class="nowrap wide" title={timeText(device.enrolledAt)}>
                {ago(device.enrolledAt, now.value)}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
