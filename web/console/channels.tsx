/**
 * The page "Channels": all channels by name, with a search over all of them, a page at a time. Numbers of trouble come from what needs attention, and
 * open receipts from the overview where it has the channel.
 */
import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { read, withLists } from "./api.ts";
import { troubleOf, troubleSum, troubleText } from "./attention.ts";
import { linkTo, replaceQuery, route, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { link, now, overview } from "./state.ts";
import { count } from "./words.ts";

/** Rows per page. */
const PAGE = 100;
/** How often a page is read again. */
const AGAIN_MS = 3_000;

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

export const readChannels = async (
  search: string,
  after: string,
  limit: number,
  signal?: AbortSignal,
): Promise<Listed> => {
  const query = new URLSearchParams({ search, after, limit: String(limit) });
  for (const name of ["search", "after"]) if (query.get(name) === "") query.delete(name);
  return withLists<Listed>(await read(`/channels?${query}`, "channels", signal), ["channels"]);
};

export function ChannelsPage() {
  const search = useComputed(() => route.value.query.get("search") ?? "");
  /** The start of each page so far. */
  const starts = useKept<readonly string[]>("starts", [""]);
  const page = useSignal<{ readonly of: string; readonly listed: Listed } | null>(null);
  const trouble = useSignal("");
  const due = useSignal(0);
  const after = useComputed(() => starts.value[starts.value.length - 1] ?? "");
  useSignalEffect(() => {
    const [text, from] = [search.value, after.value];
    const control = new AbortController();
    const load = (): void => {
      due.value = Infinity;
      readChannels(text, from, PAGE, control.signal).then(
        (listed) => {
          [page.value, trouble.value] = [{ of: `${text} ${from}`, listed }, ""];
          due.value = Date.now() + AGAIN_MS;
        },
        (error: Error) => {
          if (control.signal.aborted) return;
          [trouble.value, due.value] = [error.message, Date.now() + AGAIN_MS];
        },
      );
    };
    load();
    const timer = setInterval(() => link.peek().state === "live" && now.peek() >= due.peek() && load(), 1_000);
    return () => (clearInterval(timer), control.abort());
  });
  const shown = page.value?.listed;
  // Until another page is there, this one is still shown.
  const isComing = page.value !== null && page.value.of !== `${search.value} ${after.value}`;
  return (
    <>
      <form class="tools" role="search" onSubmit={(event) => event.preventDefault()}>
        <input
          type="search"
          class="search"
          aria-label="Search all channels"
          placeholder="Search all channels"
          autocomplete="off"
          spellcheck={false}
          value={search.value}
          onInput={({ currentTarget }) => {
            starts.value = [""];
            replaceQuery({ search: currentTarget.value.trim() });
          }}
        />
      </form>
      {trouble.value && <p class="trouble">The channels could not be read: {trouble}. They are tried again.</p>}
      {shown === undefined ? (
        !trouble.value && <Skeleton />
      ) : shown.channels.length === 0 ? (
        <p class="empty small">
          {search.value === "" ? "No channels yet." : `No channel's name contains "${search.value}".`}
        </p>
      ) : (
        <Table rows={shown.channels} />
      )}
      <p class="tools">
        {starts.value.length > 1 && (
          <button type="button" class="plain" onClick={() => (starts.value = starts.value.slice(0, -1))}>
            Previous {PAGE}
          </button>
        )}
        {shown?.next != null && (
          <button
            type="button"
            class="plain"
            disabled={isComing}
            onClick={() => (starts.value = [...starts.value, shown.next!])}
          >
            Next {PAGE}
          </button>
        )}
      </p>
    </>
  );
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
