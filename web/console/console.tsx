/**
 * The console, for publishers and operators: what needs attention, the channels, and the status of each event at each device, live over one stream.
 *
 * It uses the public API only, loads nothing from other hosts, and shows all data as text, never as markup. This file is the frame: the top, the
 * channels beside it, and the page that the URL names. `router.ts` has the location, `state.ts` the state; the other files render it.
 */
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { hasToken } from "./api.ts";
import { BoardPage } from "./board.tsx";
import { show } from "./floor.ts";
import { record } from "./history.ts";
import { lazy } from "./lazy.tsx";
import { LinkState } from "./link.tsx";
import { Notices } from "./notices.tsx";
import { ConnectPhone } from "./phone-button.tsx";
import { AttentionPage } from "./attention.tsx";
import { attention, followAttention } from "./attention.ts";
import { ChannelFacts, ServiceFacts } from "./facts.tsx";
import { followAlerts } from "./alerts.tsx";
import { ChannelsPage } from "./channels.tsx";
import { ServicePage } from "./service.tsx";
import {
  arrival,
  followEscape,
  followHistory,
  linkTo,
  ownTitle,
  type Page,
  type Place,
  type Route,
  route,
  settle,
} from "./router.ts";
import { Side } from "./side.tsx";
import { Skeleton } from "./skeleton.tsx";
import { board, link, paste, sight, start } from "./state.ts";
import { count } from "./words.ts";

const PAGE_TITLES: Record<Page, string> = {
  attention: "Needs attention",
  channels: "Channels",
  service: "Service",
};
const PLACE_TITLES: Record<Place, string> = {
  board: "Board",
  devices: "Devices",
  push: "Push",
  scheduled: "Scheduled",
  hooks: "Hooks",
  event: "Event",
};

/** The document's title: each page has its own. */
function titleOf({ channel, page, place, item }: Route, own: string | null): string {
  const troubled = attention.value?.totals.devices ?? 0;
  const number = channel === null && page === "attention" && troubled > 0 ? `(${count(troubled)}) ` : "";
  if (channel === null) return `${number}${own ?? PAGE_TITLES[page]} – PERE console`;
  const what = own ?? (item === null ? PLACE_TITLES[place] : `${PLACE_TITLES[place]}: ${item}`);
  return `${what} – ${channel} – PERE console`;
}

function Console() {
  const { channel, page, place, item } = route.value;
  const main = useRef<HTMLElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const isRefused = link.value.state === "refused";
  const title = isRefused ? "Access token – PERE console" : titleOf(route.value, ownTitle.value);
  useEffect(() => void (document.title = title), [title]);
  const key = `${channel} ${page} ${place} ${item}`;
  useLayoutEffect(() => (arrival.peek() === null ? undefined : settle(heading.current)), [key]);
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
          {hasToken() && !isRefused && (
            <button type="button" class="plain" onClick={() => paste(null)}>
              Forget the token
            </button>
          )}
          {!isRefused && <ConnectPhone channel={channel} />}
          <a href={`weblistener.html${channel === null ? "" : `?channel=${channel}`}`}>Open a device</a>
          <a href="swagger">API</a>
        </nav>
      </header>
      <div class="body" data-sight={isRefused ? "current" : sight.value}>
        <Side current={route.value} />
        <main ref={main} id="main" tabIndex={-1}>
          {link.value.state === "refused" ? (
            <TokenPage why={link.value.why} />
          ) : (
            <>
              <header class="title">
                <h1 ref={heading} tabIndex={-1}>
                  {channel ?? PAGE_TITLES[page]}
                </h1>
                {channel === null ? <ServiceFacts /> : <ChannelHead channel={channel} place={place} />}
              </header>
              <div key={key}>{channel === null ? <ServiceWidePage /> : <ChannelPage channel={channel} />}</div>
            </>
          )}
        </main>
      </div>
      <Notices />
    </>
  );
}

const TABS: readonly (readonly [Place, string])[] = [
  ["board", "Board"],
  ["devices", "Devices"],
  ["push", "Push"],
  ["scheduled", "Scheduled"],
  ["hooks", "Hooks"],
];

function ChannelHead({ channel, place }: { readonly channel: string; readonly place: Place }) {
  return (
    <>
      <ChannelFacts key={channel} channel={channel} />
      <nav class="tabs" aria-label="Views of this channel">
        {TABS.map(([name, label]) => {
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

function ServiceWidePage() {
  const { page } = route.value;
  if (page === "channels") return <ChannelsPage />;
  return page === "service" ? <ServicePage /> : <AttentionPage />;
}

const EventPage = lazy(async () => (await import("./event.tsx")).EventPage);
const DevicesPage = lazy(async () => (await import("./devices.tsx")).DevicesPage);
const DevicePage = lazy(async () => (await import("./device.tsx")).DevicePage);
const PushPage = lazy(async () => (await import("./push.tsx")).PushPage);
const PushAgainPage = lazy(async () => (await import("./push-again.tsx")).PushAgainPage);
const ScheduledPage = lazy(async () => (await import("./scheduled.tsx")).ScheduledPage);
const HooksPage = lazy(async () => (await import("./hooks.tsx")).HooksPage);

function ChannelPage({ channel }: { readonly channel: string }) {
  const { place, item } = route.value;
  const shown = board.value?.channel === channel ? board.value : null;
  if (place === "devices" && item !== null) return <DevicePage channel={channel} name={item} />;
  if (place === "devices") return <DevicesPage channel={channel} />;
  if (place === "push" && item !== null) return <PushAgainPage key={item} channel={channel} id={item} />;
  if (place === "push") return <PushPage channel={channel} again={null} />;
  if (place === "scheduled") return <ScheduledPage channel={channel} />;
  if (place === "hooks") return <HooksPage channel={channel} />;
  if (place === "event" && item !== null) return <EventPage channel={channel} id={item} shown={shown} />;
  return shown ? <BoardPage shown={shown} /> : <Skeleton />;
}

/** Characters that a header can carry. */
const TOKEN = /^[ -~]+$/;

/** Asks for a token, which stays with this tab. */
function TokenPage({ why }: { readonly why: string }) {
  const token = useSignal("");
  const isNone = useSignal(false);
  return (
    <section class="welcome">
      <h1>A token is required</h1>
      <p>
        The service answered: <em>{why}</em>. Paste a token with the right <code>push</code>. Whoever runs this service
        makes one with <code>bun run index.ts token</code>.
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
        <p class="muted small">
          It stays in this tab, also when you reload, until you close the tab or forget it here.
        </p>
      </form>
    </section>
  );
}

show("console", () => {
  followHistory();
  followEscape();
  start();
  record();
  followAttention();
  followAlerts();
  return <Console />;
});
