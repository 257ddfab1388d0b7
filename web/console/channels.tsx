/**
 * The page "Channels": all channels by name, with a search over all of them, a page at a time. Numbers of trouble come from what needs attention, and
 * open receipts from the overview where it has the channel.
 */
import { batch } from "@preact/signals";
import { read, withLists } from "./api.ts";
import { troubleOf, troubleSum, troubleText } from "./attention.ts";
import { queryOf } from "./floor.ts";
import { FIRST_PAGE, type PageOf, Pages, startOf } from "./pages.tsx";
import { useReading } from "./readings.ts";
import { linkTo, replaceQuery, route, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { overview } from "./state.ts";
import { count } from "./words.ts";

/** Rows per page. */
const PAGE = 100;
/** Seconds after which a page is read again. */
const AGAIN_SECONDS = 3;

interface Row {
  readonly channel: string;
  readonly events: number;
  readonly devices: number;
  readonly connected: number;
}
interface Listed {
  readonly channels: readonly Row[];
  readonly next: string | null;
}

/** Channels by name. @param search a part of their names. @param after the name before the first one */
export async function readChannels(
  search: string,
  after: string,
  limit: number,
  signal?: AbortSignal,
): Promise<Listed> {
  const options: [string, string][] = [["limit", String(limit)]];
  if (after !== "") options.push(["after", after]);
  if (search !== "") options.push(["search", search]);
  return withLists<Listed>(await read(`/channels${queryOf(options)}`, "channels", signal), ["channels"]);
}

const searched = (): string => route.value.query.get("search") ?? "";

export function ChannelsPage() {
  const starts = useKept("starts", FIRST_PAGE);
  const { answer, trouble } = useReading<Listed & PageOf>(async (signal) => {
    const page = starts.value;
    return { ...(await readChannels(searched(), startOf(page), PAGE, signal)), starts: page };
  }, AGAIN_SECONDS);
  const shown = answer.value;
  const search = (text: string): void =>
    batch(() => {
      starts.value = FIRST_PAGE;
      replaceQuery({ search: text.trim() });
    });
  return (
    <section aria-label="Channels">
      <div class="find">
        <input
          type="search"
          aria-label="Search all channels"
          placeholder="Search all channels"
          autocomplete="off"
          autocapitalize="none"
          spellcheck={false}
          value={searched()}
          onInput={({ currentTarget }) => search(currentTarget.value)}
        />
      </div>
      {trouble.value && <p class="trouble">What you see may be out of date. {trouble}</p>}
      {shown === null ? (
        !trouble.value && <Skeleton />
      ) : shown.channels.length === 0 ? (
        <p class="empty small">{searched() === "" ? "No channels yet." : "No channel fits."}</p>
      ) : (
        <>
          <Table rows={shown.channels} />
          <Pages starts={starts} shown={shown} size={PAGE} rows={shown.channels.length} {...totalOf()} />
        </>
      )}
    </section>
  );
}

/** How many channels there are, if it is known of those that are searched. */
function totalOf(): { readonly total?: number } {
  const total = overview.value?.totals?.channels;
  return total === undefined || searched() !== "" ? {} : { total };
}

function Table({ rows }: { readonly rows: readonly Row[] }) {
  const open = new Map((overview.value?.channels ?? []).map((one) => [one.channel, one.open] as const));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Channels">
      <table class="channels">
        <thead>
          <tr>
            <th scope="col">Channel</th>
            <th scope="col">Trouble</th>
            <th scope="col" class="number">
              Connected
            </th>
            <th scope="col" class="number">
              Events
            </th>
            <th scope="col" class="number">
              Open
            </th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ channel, connected, devices, events }) => {
            const trouble = troubleOf(channel);
            return (
              <tr key={channel}>
                <th scope="row">
                  <a href={linkTo(channel)}>{channel}</a>
                </th>
                <td class={trouble && troubleSum(trouble) > 0 ? "nowrap bad" : "muted"}>
                  {trouble === null ? "…" : trouble ? troubleText(trouble) : "–"}
                </td>
                <td class="number">
                  {count(connected)}/{count(devices)}
                </td>
                <td class="number">{count(events)}</td>
                <td class="number">{open.get(channel) == null ? "–" : count(open.get(channel)!)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
