/**
 * The console, for publishers and operators: the channels, and the status of each event at each device, live over one stream.
 *
 * It uses the public API only, loads nothing from other hosts, and shows all data as text, never as markup. `state.ts` holds the state, the other
 * files render it.
 */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { ChannelState } from "./api.ts";
import { BoardPage } from "./board.tsx";
import { EventPage } from "./event.tsx";
import { show } from "./floor.ts";
import { DevicesPage, HooksPage } from "./lists.tsx";
import { OverviewPage } from "./overview.tsx";
import { PushPage } from "./push.tsx";
import { board, isChannel, link, linkTo, overview, paste, type Place, route, start } from "./state.ts";
import { count, some } from "./words.ts";

const LINK_WORDS = {
  connecting: "connecting",
  live: "live",
  away: "store away",
  offline: "offline",
  refused: "no access",
} as const;

function Console() {
  const { channel, place, item } = route.value;
  const title = channel ?? "Overview";
  const main = useRef<HTMLElement>(null);
  useEffect(() => {
    document.title = channel === null ? "PERE console" : `${channel} – PERE console`;
  }, [channel]);
  return (
    <>
      <a class="skip" href="#main" onClick={(click) => (click.preventDefault(), main.current?.focus())}>
        To the content
      </a>
      <header class="top">
        <a class="brand" href="#/">
          <img src="icon.svg" alt="" width="24" height="24" /> PERE
        </a>
        <LinkState />
        <nav aria-label="Other pages">
          <a href={`weblistener.html${channel === null ? "" : `?channel=${channel}`}`}>Open a device</a>
          <a href="swagger">API</a>
        </nav>
      </header>
      <div class="body">
        <Side current={channel} />
        <main ref={main} id="main" tabIndex={-1}>
          {link.value.state === "refused" ? (
            <TokenPage why={link.value.why} />
          ) : (
            <>
              <header class="title">
                <h1>{title}</h1>
                {channel !== null && <ChannelHead channel={channel} place={place} />}
              </header>
              <div key={`${channel} ${place} ${item}`}>
                {channel === null ? <OverviewPage /> : <ChannelPage channel={channel} place={place} item={item} />}
              </div>
            </>
          )}
        </main>
      </div>
    </>
  );
}

/** Whether the shown state is live; if not, why. */
function LinkState() {
  const { state } = link.value;
  const why = "why" in link.value ? link.value.why : "";
  return (
    <p class="link" data-state={state} role="status">
      <span class="dot" aria-hidden="true" /> {LINK_WORDS[state]}
      {state === "offline" && <span class="muted"> · {why}; trying again</span>}
      {state === "away" && <span class="muted"> · {why}</span>}
    </p>
  );
}

function Side({ current }: { readonly current: string | null }) {
  const wanted = useSignal("");
  const channels = (overview.value?.channels ?? []).filter(({ channel }) => channel.includes(wanted.value));
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
      <ul>
        <li>
          <a href="#/" aria-current={current === null ? "page" : undefined}>
            Overview
          </a>
        </li>
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

const PLACES: readonly (readonly [Place, string])[] = [
  ["board", "Board"],
  ["devices", "Devices"],
  ["push", "Push"],
  ["hooks", "Hooks"],
];

function ChannelHead({ channel, place }: { readonly channel: string; readonly place: Place }) {
  const item = overview.value?.channels.find((one) => one.channel === channel);
  return (
    <>
      <p class="muted facts">
        {item
          ? [
              `${some(item.devices, "device")}, ${count(item.connected)} connected`,
              some(item.events, "event"),
              ...(item.open ? [`${count(item.open)} open`] : []),
              ...(item.missing ? [`${count(item.missing)} missing`] : []),
            ].join(" · ")
          : overview.value && "no events or devices yet"}
      </p>
      <nav class="tabs" aria-label="Views of this channel">
        {PLACES.map(([name, label]) => {
          const isHere = name === place || (name === "board" && place === "event");
          return (
            <a key={name} href={linkTo(channel, name)} aria-current={isHere ? "page" : undefined}>
              {label}
            </a>
          );
        })}
      </nav>
    </>
  );
}

interface ChannelPageProps {
  readonly channel: string;
  readonly place: Place;
  readonly item: string | null;
}

function ChannelPage({ channel, place, item }: ChannelPageProps) {
  const shown = board.value?.channel === channel ? board.value : null;
  if (place === "devices") return <DevicesPage channel={channel} />;
  if (place === "push") return <PushPage channel={channel} />;
  if (place === "hooks") return <HooksPage channel={channel} />;
  if (place === "event" && item !== null) return <EventPage channel={channel} id={item} shown={shown} />;
  return shown ? <BoardPage shown={shown} /> : <p class="empty">Loading…</p>;
}

/** Characters that a header can carry. */
const TOKEN = /^[ -~]+$/;

/** Asks for a token, which stays in this page's memory. */
function TokenPage({ why }: { readonly why: string }) {
  const token = useSignal("");
  const isNone = useSignal(false);
  return (
    <section class="welcome">
      <h1>A token is required</h1>
      <p>
        The service answered: <em>{why}</em>. Paste a token with the right <code>push</code>, or open the link that PERE
        printed when it started.
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (TOKEN.test(token.value)) paste(token.value);
          else isNone.value = true;
        }}
      >
        <label>
          Token
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            value={token.value}
            onInput={({ currentTarget }) => (token.value = currentTarget.value.trim())}
          />
        </label>
        <button disabled={token.value === ""}>Use it</button>
        {isNone.value && (
          <p class="trouble" role="alert">
            This is not a token: it contains characters that no token has.
          </p>
        )}
        <p class="muted small">It is kept only in this tab's memory, until you reload or close the tab.</p>
      </form>
    </section>
  );
}

show("console", () => {
  start();
  return <Console />;
});
