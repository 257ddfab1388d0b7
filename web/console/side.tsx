/** The pages of the service and its channels, beside the page; on a phone a strip above it. */
import { type Signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { ChannelState } from "./api.ts";
import { attention, troubleOf, troubleSum, troubleText } from "./attention.ts";
import { readChannels } from "./channels.tsx";
import { isChannel, linkTo, linkToPage, type Page, type Route } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { overview } from "./state.ts";
import { count, some } from "./words.ts";

const PAGES: readonly (readonly [Page, string])[] = [
  ["attention", "Needs attention"],
  ["channels", "Channels"],
  ["service", "Service"],
];

export function Side({ current: { channel: current, page } }: { readonly current: Route }) {
  const wanted = useSignal("");
  const list = useRef<HTMLUListElement>(null);
  void attention.value; // Its numbers make items wider.
  const known = overview.value;
  const channels = (known?.channels ?? []).filter(({ channel }) => channel.includes(wanted.value));
  const found = useFound(wanted);
  // On a phone the list is a strip: the current channel is brought into view, without a move of the page, until the user scrolls it.
  const isScrolled = useRef(false);
  useEffect(() => void (isScrolled.current = false), [current, page]);
  useEffect(() => {
    const element = list.current;
    const chip = element?.querySelector<HTMLElement>("[aria-current]");
    if (!element || !chip || isScrolled.current || element.scrollWidth <= element.clientWidth) return;
    const [box, strip] = [chip.getBoundingClientRect(), element.getBoundingClientRect()];
    if (box.left >= strip.left && box.right <= strip.right) return;
    element.scrollLeft += box.left - strip.left - (strip.width - box.width) / 2;
  });
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
      <ul ref={list} onPointerDown={() => (isScrolled.current = true)} onWheel={() => (isScrolled.current = true)}>
        {PAGES.map(([name, label]) => (
          <li key={name}>
            <a href={linkToPage(name)} aria-current={current === null && page === name ? "page" : undefined}>
              <span class="name">{label}</span>
              {name === "attention" && <Troubled />}
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
        {found.value
          .filter((name) => !channels.some(({ channel }) => channel === name))
          .map((name) => (
            <li key={name}>
              <a href={linkTo(name)} aria-current={name === current ? "page" : undefined}>
                <span class="name">{name}</span>
              </a>
            </li>
          ))}
        {known?.more && (
          <li>
            <a href={linkToPage("channels", { search: wanted.value })}>
              <span class="name muted">All channels…</span>
            </a>
          </li>
        )}
        {wanted.value !== "" && channels.length + found.value.length === 0 && (
          <li class="muted">{isChannel(wanted.value) ? "Press Enter to open it." : "Not a valid channel name."}</li>
        )}
      </ul>
    </nav>
  );
}

/** Channels found by the service: the overview does not list all of them. */
const FOUND = 50;
/** A pause while typing, after which it is searched. */
const TYPED_MS = 200;

function useFound(wanted: Signal<string>): Signal<readonly string[]> {
  const found = useSignal<readonly string[]>([]);
  const isMore = useComputed(() => overview.value?.more ?? false);
  useSignalEffect(() => {
    const text = wanted.value;
    found.value = [];
    if (text === "" || !isMore.value) return;
    const control = new AbortController();
    const timer = setTimeout(() => {
      readChannels(text, "", FOUND, control.signal).then(
        ({ channels }) => (found.value = channels.map(({ channel }) => channel)),
        () => {}, // The page "Channels" says what is wrong.
      );
    }, TYPED_MS);
    return () => (clearTimeout(timer), control.abort());
  });
  return found;
}

/** How many devices are in trouble. */
function Troubled() {
  const devices = attention.value?.totals.devices ?? 0;
  return devices === 0 ? null : (
    <small class="badge" title={`${some(devices, "device")} in trouble`}>
      {count(devices)}
    </small>
  );
}

function SideItem({ item, isCurrent }: { readonly item: ChannelState; readonly isCurrent: boolean }) {
  const { channel, connected, devices, open } = item;
  const trouble = troubleOf(channel) ?? { failed: 0, missing: item.missing ?? 0, overdue: 0 };
  return (
    <li>
      <a href={linkTo(channel)} aria-current={isCurrent ? "page" : undefined}>
        <span class="name">{channel}</span>
        <small class="number" title={`${connected} of ${some(devices, "device")} connected`}>
          {count(connected)}/{count(devices)}
        </small>
        {troubleSum(trouble) > 0 ? (
          <small class="owes bad">{troubleText(trouble)}</small>
        ) : (
          open !== null && open > 0 && <small class="owes">{count(open)} open</small>
        )}
      </a>
    </li>
  );
}
