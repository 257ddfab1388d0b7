/** The pages of the service and its channels, beside the page; on a phone a strip above it. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { ChannelState } from "./api.ts";
import { isChannel, linkTo, linkToPage, type Page, type Route } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { overview } from "./state.ts";
import { count, some } from "./words.ts";

const PAGES: readonly (readonly [Page, string])[] = [["attention", "Overview"]];

export function Side({ current: { channel: current, page } }: { readonly current: Route }) {
  const wanted = useSignal("");
  const list = useRef<HTMLUListElement>(null);
  const known = overview.value;
  const channels = (known?.channels ?? []).filter(({ channel }) => channel.includes(wanted.value));
  const isThere = channels.some(({ channel }) => channel === current);
  // On a phone the list is a strip: the current channel is brought into view, without a move of the page.
  useEffect(() => {
    const element = list.current;
    const chip = element?.querySelector<HTMLElement>("[aria-current]");
    if (!element || !chip || element.scrollWidth <= element.clientWidth) return;
    element.scrollLeft = chip.offsetLeft - (element.clientWidth - chip.offsetWidth) / 2;
  }, [current, page, isThere]);
  return (
    <nav class="side" aria-label="Channels">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (!isChannel(wanted.value)) return;
          location.hash = linkTo(wanted.value);
          wanted.value = "";
        }}
      >
        <input
          type="search"
          aria-label="Find or open a channel"
          placeholder="Find a channel"
          autocomplete="off"
          spellcheck={false}
          value={wanted.value}
          onInput={({ currentTarget }) => (wanted.value = currentTarget.value.trim())}
        />
      </form>
      <ul ref={list}>
        {PAGES.map(([name, label]) => (
          <li key={name}>
            <a href={linkToPage(name)} aria-current={current === null && page === name ? "page" : undefined}>
              {label}
            </a>
          </li>
        ))}
        {known === null && (
          <li>
            <Skeleton rows={4} />
          </li>
        )}
        {channels.map((item) => (
          <SideItem key={item.channel} item={item} isCurrent={item.channel === current} />
        ))}
        {wanted.value !== "" && channels.length === 0 && (
          <li class="muted">{isChannel(wanted.value) ? "Press Enter to open it." : "Not a valid channel name."}</li>
        )}
      </ul>
    </nav>
  );
}

function SideItem({ item, isCurrent }: { readonly item: ChannelState; readonly isCurrent: boolean }) {
  const { channel, connected, devices, open, missing } = item;
  const owes = [open ? `${count(open)} open` : "", missing ? `${count(missing)} missing` : ""]
    .filter(Boolean)
    .join(" · ");
  return (
    <li>
      <a href={linkTo(channel)} aria-current={isCurrent ? "page" : undefined}>
        <span class="name">{channel}</span>
        <small class="number" title={`${connected} of ${some(devices, "device")} connected`}>
          {count(connected)}/{count(devices)}
        </small>
        {owes && <small class="owes">{owes}</small>}
      </a>
    </li>
  );
}
