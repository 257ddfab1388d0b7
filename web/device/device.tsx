/**
 * The device page, for a phone or a till: one large status, events as cards to answer, and the device's name and settings.
 *
 * It loads nothing from other hosts, and shows publishers' data as text, never as markup. `state.ts` holds the state, this file renders it.
 */
import { useSignal } from "@preact/signals";
import { useEffect, useId, useLayoutEffect, useRef } from "preact/hooks";
import { show } from "../console/floor.ts";
import { prettyJson, some, span, timeText } from "../console/words.ts";
import { allow, install, keepPage, permission } from "./notices.ts";
import { Qr } from "./qr.tsx";
import { CHANNELS, DEVICE } from "./setup.ts";
import { type Card, cards, device, dismiss, isOpen, isStuck, notices, now, open, setup } from "./state.ts";
import { start, state, type State, status, take, TRANSPORTS } from "./state.ts";

/** The sign of each state, as a path in a box of 24, so that states differ by more than their colour. */
const SIGNS: Record<State, string> = {
  connecting: "M6 12h.01M12 12h.01M18 12h.01",
  connected: "M5 12.5 10 17.5 19 7",
  behind: "M12 6v6.5l4 2.5M12 3a9 9 0 1 0 .01 0",
  offline: "M6 6l12 12M18 6 6 18",
  elsewhere: "M4 4h11v11H4zM9 19h10V9",
};
const WORDS: Record<State, string> = {
  connecting: "Connecting",
  connected: "Connected",
  behind: "Behind",
  offline: "Offline",
  elsewhere: "In another tab",
};

function DevicePage() {
  const toAnswer = open.value.length;
  useEffect(() => {
    document.title = `${toAnswer > 0 ? `(${toAnswer}) ` : ""}${setup.channel} – PERE device`;
  }, [toAnswer]);
  return (
    <>
      <header>
        <BigState />
      </header>
      <main>
        <div id="notices" role="alert">
          {notices.value.map((text) => (
            <p key={text} class="notice">
              <span>{text}</span>{" "}
              <button type="button" class="plain" onClick={() => dismiss(text)}>
                Dismiss
              </button>
            </p>
          ))}
        </div>
        <h1>
          <span id="channel-name">{setup.channel}</span>
        </h1>
        <Summary />
        <Cards />
      </main>
      <aside aria-label="This device">
        <ThisDevice />
      </aside>
    </>
  );
}

function BigState() {
  const { state: how, why } = state.value;
  const transport = status.value?.transport;
  const error = how === "offline" && status.value?.state !== "closed" ? status.value?.error : null;
  return (
    <section id="state" data-state={how}>
      <svg viewBox="0 0 24 24" aria-hidden="true">
        <path d={SIGNS[how]} />
      </svg>
      <div>
        <p role="status">
          <strong id="state-word">{WORDS[how]}</strong> <span id="state-why">{why}</span>
        </p>
        <p class="by">
          {transport && (
            <>
              via <span id="transport">{TRANSPORTS[transport]}</span>
              {transport !== "sse" && ", because event streams don't get through"}
            </>
          )}
          {error && <>Last attempt: {error}</>}
          {status.value?.state === "closed" &&
            "Unsent receipts are kept here. Open the page with a valid link to send them."}
        </p>
      </div>
      {how === "elsewhere" && (
        <button type="button" onClick={take}>
          Use it here
        </button>
      )}
    </section>
  );
}

function Summary() {
  const parts = [some(cards.value.length, "event"), `${open.value.length} to answer`];
  if (isStuck.value) parts.push(`${some(status.value!.unsent, "receipt")} waiting to be sent`);
  return (
    <p id="summary" class="muted" role="status">
      {parts.join(" · ")}
    </p>
  );
}

// -------------------------------------------------------------------------------------------------------------------- cards

/** Open events first, then the others; both newest first. */
function Cards() {
  const shown = [...open.value, ...cards.value.filter((card) => !isOpen(card))];
  const list = useRef<HTMLOListElement>(null);
  /** After an answer, the focus moves to the next card and is not lost. */
  const goOn = (place: number): void => list.current?.querySelectorAll("article")[place]?.focus();
  if (shown.length === 0) return <Nothing />;
  return (
    <ol id="events" ref={list} aria-label="Events, unanswered ones first">
      {shown.map((card, place) => (
        <EventCard key={card.event.id} card={card} goOn={() => goOn(place)} />
      ))}
    </ol>
  );
}

function Nothing() {
  const { state: how } = state.value;
  return (
    <p id="nothing">
      {how === "elsewhere"
        ? "Its events are shown there."
        : how === "offline"
          ? "Unanswered events come back with the connection."
          : "No events yet. Events that are pushed to this channel appear here."}
    </p>
  );
}

/** The state of an event's receipt, which decides its colour, and its text. */
function receiptOf({ word, isSent, refusal }: Card): readonly [state: string, text: string] {
  if (refusal !== null) return ["rejected", `rejected: ${refusal}`];
  return isSent ? [word, word] : ["queued", `queued: ${word}`];
}

interface EventCardProps {
  readonly card: Card;
  /** Called after an answer if the focus was in the card. */
  readonly goOn: () => void;
}

function EventCard({ card, goOn }: EventCardProps) {
  const { event } = card;
  const title = useId();
  const article = useRef<HTMLElement>(null);
  const isToAnswer = isOpen(card);
  const hadFocus = useRef(false);
  useLayoutEffect(() => {
    if (hadFocus.current && !isToAnswer) goOn();
    hadFocus.current = false;
  }, [isToAnswer]);
  const [receipt, text] = receiptOf(card);
  return (
    <li id={`event-${event.id}`} data-receipt={receipt} data-open={isToAnswer}>
      <article ref={article} tabIndex={-1} aria-labelledby={title}>
        <header>
          <h2 id={title}>{event.type ?? "event"}</h2>
          <span class="receipt">{text}</span>
          <Facts card={card} />
        </header>
        <pre tabIndex={isToAnswer ? 0 : undefined} aria-label="Data">
          {prettyJson(event.text, !isToAnswer)}
        </pre>
        {isToAnswer && (
          <Answer
            title={title}
            answer={(word, note) => {
              hadFocus.current = article.current!.contains(document.activeElement);
              card.answer(word, note);
            }}
          />
        )}
      </article>
    </li>
  );
}

function Facts({ card }: { readonly card: Card }) {
  const { id, at, channel, deadline } = card.event;
  const leftSeconds = deadline === undefined ? 0 : (Date.parse(deadline) - now.value) / 1000;
  return (
    <p class="facts">
      <time dateTime={at}>{timeText(at)}</time>
      {setup.channel.includes(",") && <span>{channel}</span>}
      <code>{id}</code>
      {deadline !== undefined && isOpen(card) && (
        <span class={leftSeconds < 0 ? "late" : "due"}>
          {leftSeconds < 0 ? `overdue by ${span(-leftSeconds)}` : `due in ${span(leftSeconds)}`}
        </span>
      )}
    </p>
  );
}

function Answer({ title, answer }: { readonly title: string; readonly answer: Card["answer"] }) {
  const note = useSignal("");
  return (
    <p class="answer">
      <input
        maxLength={500}
        autocomplete="off"
        placeholder="Note"
        aria-label="Note"
        aria-describedby={title}
        value={note.value}
        onInput={({ currentTarget }) => (note.value = currentTarget.value)}
      />
      {(["done", "failed"] as const).map((word) => (
        <button
          key={word}
          type="button"
          class={word}
          aria-describedby={title}
          onClick={() => answer(word, note.value.trim())}
        >
          {word === "done" ? "Done" : "Failed"}
        </button>
      ))}
    </p>
  );
}

// -------------------------------------------------------------------------------------------------------------- who it is

function ThisDevice() {
  return (
    <>
      <h2>This device</h2>
      <figure>
        <Qr text={device.value} />
        <figcaption>
          <code id="device-name">{device.value}</code>
        </figcaption>
      </figure>
      <form id="settings" method="get">
        {setup.isInstalled && <input type="hidden" name="installed" />}
        <label>
          Channel
          <input
            name="channel"
            required
            autocomplete="off"
            spellcheck={false}
            pattern={CHANNELS}
            title="letters, digits and . _ : ~ -; several, comma separated"
            defaultValue={setup.channel}
          />
        </label>
        <label>
          Name
          <input
            key={device.value}
            name="device"
            required
            readOnly={setup.token !== null}
            autocomplete="off"
            spellcheck={false}
            pattern={DEVICE}
            title="1 to 128 letters, digits and . _ : ~ -"
            defaultValue={device.value}
          />
        </label>
        {setup.token !== null && <p class="muted small">The name comes from the token.</p>}
        <label>
          <input name="auto" type="checkbox" value="1" defaultChecked={setup.auto} /> Answer <em>done</em> automatically
        </label>
        <button>Apply</button>
      </form>
      <p class="offers">
        {permission.value === "default" && (
          <button type="button" class="plain" onClick={allow}>
            Notify me of new events
          </button>
        )}
        {install.value && (
          <button type="button" class="plain" onClick={install.value}>
            Install as an app
          </button>
        )}
      </p>
    </>
  );
}

show("device", () => {
  start();
  void keepPage();
  return <DevicePage />;
});
