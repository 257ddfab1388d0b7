/**
 * The first page: who did not do it, right now. A sentence in numbers, then devices, events, channels and hooks, worst first. Each line leads to where
 * one can act.
 */
import type { ComponentChildren, VNode } from "preact";
import { AlertButton } from "./alerts.tsx";
import {
  attention,
  type Attention,
  attentionTrouble,
  listed,
  LISTED_MAX,
  type TroubledDevice,
  type TroubledEvent,
  troubleText,
  verdict,
} from "./attention.ts";
import { Mark } from "./marks.tsx";
import { linkTo, useKept } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { overview, sight } from "./state.ts";
import { ago, count, openOf, some, timeText } from "./words.ts";
import { Welcome } from "./welcome.tsx";

export function AttentionPage() {
  const known = attention.value;
  const channels = overview.value?.channels;
  if (known === null || !channels) return attentionTrouble.value ? <p class="trouble">{failedText()}</p> : <Skeleton />;
  const isWell = known.totals.devices + known.events.length + known.hooks.length === 0;
  if (isWell && channels.length === 0) return <Welcome />;
  return (
    <>
      <p class={isWell ? "verdict well" : "verdict"}>{verdict(known)}</p>
      <div class="looked muted">
        <p>
          {isWell && "Every device did what was asked, or still has time. "}
          {sight.value === "current" ? "Looked" : "Last looked"} at {timeText(known.at)}.{" "}
          {attentionTrouble.value && <span class="trouble">{failedText()}</span>}
        </p>
        <AlertButton />
      </div>
      <Lists known={known} />
    </>
  );
}

/** When the lists were true, by the service's clock: that of this device may be wrong. */
const readAt = (): number => Date.parse(attention.value?.at ?? "");

const failedText = (): string => `This could not be read: ${attentionTrouble.value}. It is tried again.`;

function Lists({ known: { totals, devices, events, channels, hooks } }: { readonly known: Attention }) {
  return (
    <>
      <List
        title="Devices"
        items={devices}
        of={totals.devices}
        show={(device) => <DeviceItem key={`${device.channel} ${device.device}`} device={device} />}
      />
      <List
        title="Events"
        items={events}
        show={(event) => <EventItem key={event.id + event.channel} event={event} />}
      />
      <List
        title="Channels"
        items={channels}
        show={(item) => (
          <Item key={item.channel} href={linkTo(item.channel, "board", "", { only: "trouble" })} name={item.channel}>
            <b>{troubleText(item)}</b>
            <span class="muted"> · {some(item.devices, "device")}</span>
          </Item>
        )}
      />
      <List
        title="Hooks"
        items={hooks}
        show={({ channel, name, givenUp, disabled }) => (
          <Item key={`${channel} ${name}`} href={linkTo(channel, "hooks")} name={name} of={channel}>
            {givenUp > 0 && <b>gave up {some(givenUp, "call")}</b>}
            {givenUp > 0 && disabled !== null && ", "}
            {disabled !== null && <b>disabled: {disabled}</b>}
          </Item>
        )}
      />
    </>
  );
}

/** Items that are shown at first; the user may ask for more. */
const AT_FIRST = 8;

interface ListProps<One> {
  readonly title: string;
  readonly items: readonly One[];
  /** How many there are, if it is known. */
  readonly of?: number;
  readonly show: (item: One) => VNode;
}

function List<One>({ title, items, of = items.length, show }: ListProps<One>) {
  const isAll = useKept(`all ${title}`, false);
  if (items.length === 0) return null;
  const id = `list-${title.split(" ")[0]!.toLowerCase()}`;
  const shown = isAll.value ? items : items.slice(0, AT_FIRST);
  // A full list may be a part of a longer one.
  const isPart = items.length === listed.value && listed.value < LISTED_MAX;
  const total = Math.max(of, items.length);
  return (
    <section aria-labelledby={id}>
      <h2 id={id}>
        {title}{" "}
        {total > shown.length && (
          <small class="muted">
            the worst {count(shown.length)} of {isPart && total === items.length ? "more than " : ""}
            {count(total)}
          </small>
        )}
      </h2>
      <ul class="worst">{shown.map(show)}</ul>
      {(shown.length < items.length || isPart) && (
        <p>
          <button
            type="button"
            class="plain"
            onClick={() => {
              if (isAll.value || items.length <= AT_FIRST) listed.value = LISTED_MAX;
              isAll.value = true;
            }}
          >
            Show more
          </button>
        </p>
      )}
    </section>
  );
}

interface ItemProps {
  readonly href: string;
  readonly name: string;
  /** The channel of what is named. */
  readonly of?: string;
  readonly children: ComponentChildren;
}

const Item = ({ href, name, of, children }: ItemProps) => (
  <li>
    <a href={href}>
      <span class="name">
        {name} {of !== undefined && <small class="muted">{of}</small>}
      </span>{" "}
      <span class="what">{children}</span>
    </a>
  </li>
);

function DeviceItem({ device }: { readonly device: TroubledDevice }) {
  const { channel, device: name, connected, seenAt, since } = device;
  const isKnown = sight.value === "current";
  return (
    <Item href={linkTo(channel, "devices", name)} name={name} of={channel}>
      <b>{troubleText(device)}</b>,{" "}
      {connected && isKnown ? (
        <>
          <span class="dot on" aria-hidden="true" /> connected
        </>
      ) : seenAt === null ? (
        "never heard"
      ) : (
        <span title={timeText(seenAt)}>last heard {ago(seenAt, readAt())}</span>
      )}
      <span class="muted"> · since {timeText(since)}</span>
    </Item>
  );
}

function EventItem({ event: { id, channel, at, type, deadline, receipts } }: { readonly event: TroubledEvent }) {
  const { failed = 0, missing = 0 } = receipts;
  const open = openOf(receipts);
  const addressed = Object.values(receipts).reduce((sum, number) => sum + number, 0);
  const isPast = deadline !== null && Date.parse(deadline) <= readAt();
  const parts = [
    missing > 0 ? `${count(missing)} missed` : "",
    failed > 0 ? `${count(failed)} failed` : "",
    deadline === null && open > 0 ? `${count(open)} owe an answer` : "",
  ].filter(Boolean);
  return (
    <Item href={linkTo(channel, "event", id)} name={`${type ?? "Event"} ${id.split("-").pop()}`} of={channel}>
      {missing > 0 ? <Mark state="missing" /> : failed > 0 ? <Mark state="failed" /> : null}{" "}
      <b>
        {parts.join(", ")} of {count(addressed)}
      </b>
      <span class="muted">
        {" "}
        ·{" "}
        {isPast
          ? `deadline was ${timeText(deadline)}`
          : deadline === null
            ? `pushed ${timeText(at)}, no deadline`
            : `deadline ${timeText(deadline)}`}
      </span>
    </Item>
  );
}
