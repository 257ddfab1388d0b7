/**
 * The device page, for a phone or a till: one large status, what is to be done as cards with buttons, and the device's name and settings. Whoever stands
 * in front of it knows nothing of events and receipts; what engineers want to know is behind "Details".
 *
 * It loads nothing from other hosts, and shows publishers' data as text, never as markup. `state.ts` holds the state, this file renders it.
 */
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useId, useLayoutEffect, useRef } from "preact/hooks";
import { show } from "../console/floor.ts";
import { Qr } from "../console/qr.tsx";
import { prettyJson, some, timeText } from "../console/words.ts";
import { clockText, type Part, roughly, wordsOf } from "./content.ts";
import { allow, install, keepPage, permission } from "./notices.ts";
import { CHANNELS, DEVICE } from "./setup.ts";
import { choicesOf } from "./later.ts";
import { announcement, answered, type Card, device, dismiss, farewells, kept, later, notices } from "./state.ts";
import { now, open, setup, start, state, type State, status, take, TRANSPORTS } from "./state.ts";

/** The sign of each state, as a path in a box of 24, so that states differ by more than their colour. */
const SIGNS: Record<State, string> = {
  connecting: "M6 12h.01M12 12h.01M18 12h.01",
  connected: "M5 12.5 10 17.5 19 7",
  behind: "M12 6v6.5l4 2.5M12 3a9 9 0 1 0 .01 0",
  offline: "M6 6l12 12M18 6 6 18",
  elsewhere: "M4 4h11v11H4zM9 19h10V9",
};

function DevicePage() {
  const toDo = open.value.length;
  const isKnown = state.value.state === "connected" || state.value.state === "behind";
  useEffect(() => {
    document.title = `${toDo > 0 ? `(${toDo}) ` : ""}${setup.channel} – PERE device`;
  }, [toDo]);
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
        <div id="farewells" role="status">
          {farewells.value.map(([id, text]) => (
            <p key={id}>{text}</p>
          ))}
        </div>
        <h1 id="to-do" tabIndex={-1}>
          {toDo > 0 ? `${toDo} to do` : isKnown ? "Nothing to do" : "To do"}
        </h1>
        <p id="kept" class="muted" role="status">
          {kept.value > 0 && `${some(kept.value, "answer")} kept here, to be sent later`}
        </p>
        <Cards />
        <Later />
        <Answered />
      </main>
      <aside aria-label="This device">
        <ThisDevice />
      </aside>
      <p class="unseen" role="status" id="announcement">
        {announcement.value}
      </p>
    </>
  );
}

function BigState() {
  const { state: how, word, why } = state.value;
  return (
    <section id="state" data-state={how}>
      <svg viewBox="0 0 24 24" aria-hidden="true">
        <path d={SIGNS[how]} />
      </svg>
      <p role="status">
        <strong id="state-word">{word}</strong> <span id="state-why">{why}</span>
      </p>
      {how === "elsewhere" && (
        <button type="button" onClick={take}>
          Use it here
        </button>
      )}
    </section>
  );
}

// -------------------------------------------------------------------------------------------------------------------- cards

/**
 * Milliseconds in which a card that has just moved takes no answer: a double tap on one, or a tap while another one appears, would answer the card that
 * has come under the finger.
 */
const SETTLE_MS = 350;

/** When each card came to its place, by the page's clock. A card at the end of the list has moved nothing. */
function useMoves(ids: readonly string[]): ReadonlyMap<string, number> {
  const places = useRef<ReadonlyMap<string, number>>(new Map());
  const moves = useRef(new Map<string, number>());
  const before = places.current;
  const isKnownBehind = (place: number): boolean => ids.slice(place + 1).some((id) => before.has(id));
  for (const [place, id] of ids.entries())
    if (before.has(id) ? before.get(id) !== place : isKnownBehind(place)) moves.current.set(id, performance.now());
  places.current = new Map(ids.map((id, place) => [id, place]));
  for (const id of moves.current.keys()) if (!places.current.has(id)) moves.current.delete(id);
  return moves.current;
}

function Cards() {
  const shown = open.value;
  const moves = useMoves(shown.map(({ event }) => event.id));
  const list = useRef<HTMLOListElement>(null);
  /** After an answer, the focus moves to the next card, or to the heading, and is not lost. */
  const goOn = (place: number): void => {
    const left = list.current?.querySelectorAll("article") ?? [];
    (left[Math.min(place, left.length - 1)] ?? document.getElementById("to-do"))?.focus();
  };
  const focused = useRef<number | null>(null);
  // A card that was withdrawn goes by itself; the focus that was in it must not get lost either.
  const active = document.activeElement?.closest("#events > li")?.id;
  const before = useRef<readonly string[]>([]);
  const ids = shown.map(({ event }) => `event-${event.id}`);
  if (active !== undefined && !ids.includes(active)) focused.current ??= Math.max(0, before.current.indexOf(active));
  before.current = ids;
  useLayoutEffect(() => {
    if (focused.current !== null) goOn(focused.current);
    focused.current = null;
  }, [shown]);
  if (shown.length === 0) return <Nothing />;
  return (
    <ol id="events" ref={list} aria-label="To do, most urgent first">
      {shown.map((card, place) => (
        <EventCard
          key={card.event.id}
          card={card}
          movedAt={moves.get(card.event.id) ?? -SETTLE_MS}
          answered={(hadFocus) => (focused.current = hadFocus ? place : null)}
        />
      ))}
    </ol>
  );
}

function Nothing() {
  const { state: how } = state.value;
  return (
    <p id="nothing">
      {how === "elsewhere"
        ? "What is to be done is shown there."
        : how === "offline"
          ? "What is to be done comes back with the connection."
          : how === "connecting"
            ? ""
            : `New messages for ${device.value} appear here by themselves.`}
    </p>
  );
}

interface EventCardProps {
  readonly card: Card;
  readonly movedAt: number;
  /** Called when it is answered. */
  readonly answered: (hadFocus: boolean) => void;
}

function EventCard({ card, movedAt, answered: told }: EventCardProps) {
  const { event, content } = card;
  const title = useId();
  const article = useRef<HTMLElement>(null);
  const act = (run: () => void): void => {
    if (performance.now() - movedAt < SETTLE_MS) return;
    told(article.current!.contains(document.activeElement));
    run();
  };
  // Only a change renders the card again, and not each second.
  const isLate = useComputed(() => event.deadline !== undefined && Date.parse(event.deadline) < now.value).value;
  return (
    <li
      id={`event-${event.id}`}
      data-receipt={card.isSent ? "received" : "queued"}
      data-late={isLate}
      data-moved={movedAt}
    >
      <article ref={article} tabIndex={-1} aria-labelledby={title}>
        <header>
          <h2 id={title}>{content.title}</h2>
          <Due card={card} />
        </header>
        {content.message !== null && <p class="message">{content.message}</p>}
        {content.rest && <PartView part={content.rest} />}
        <Answer
          title={title}
          deadline={event.deadline}
          answer={(word, reason) => act(() => card.answer(word, reason))}
          putOff={(seconds) => act(() => card.putOff(seconds))}
        />
        <Details card={card} />
      </article>
    </li>
  );
}

function Due({ card }: { readonly card: Card }) {
  const { at, channel, deadline, round } = card.event;
  const leftSeconds = deadline === undefined ? 0 : (Date.parse(deadline) - now.value) / 1000;
  return (
    <p class="facts">
      {deadline !== undefined && (
        <span class={leftSeconds < 0 ? "late" : "due"}>
          {leftSeconds < 0 ? `${roughly(-leftSeconds)} late` : `in ${roughly(leftSeconds)}`}
        </span>
      )}{" "}
      {round !== undefined && <span class="again">again</span>}{" "}
      <time dateTime={at}>sent {clockText(Date.parse(at), now.value)}</time>
      {setup.channel.includes(",") && <span> {channel}</span>}
    </p>
  );
}

/** Lines of a list, or members, that a card shows; all of them are in the details. */
const LINES_MAX = 20;

/** The data as names and values. */
function PartView({ part }: { readonly part: Part }) {
  if (part.kind === "text") return <>{part.text}</>;
  const [all, shown] =
    part.kind === "list"
      ? [part.items.length, part.items.slice(0, LINES_MAX)]
      : [part.members.length, part.members.slice(0, LINES_MAX)];
  const more = all > shown.length && <p class="muted">and {all - shown.length} more, see the details</p>;
  if (part.kind === "list")
    return (
      <>
        <ul class="items">
          {(shown as Part[]).map((item, nth) => (
            <li key={nth}>
              <PartView part={item} />
            </li>
          ))}
        </ul>
        {more}
      </>
    );
  return (
    <>
      <dl class="members">
        {(shown as [string, Part][]).map(([name, value], nth) => (
          <div key={nth}>
            <dt>{wordsOf(name)}</dt>
            <dd>
              <PartView part={value} />
            </dd>
          </div>
        ))}
      </dl>
      {more}
    </>
  );
}

interface AnswerProps {
  readonly title: string;
  readonly deadline: string | undefined;
  readonly answer: Card["answer"];
  readonly putOff: Card["putOff"];
}

/** The answers to choose from. Who could not do it is asked why, and who puts it off until when. */
function Answer({ title, deadline, answer, putOff }: AnswerProps) {
  const isAsked = useSignal(false);
  const isPuttingOff = useSignal(false);
  const canPutOff = useComputed(() => choicesOf(deadline, now.value).length > 0).value;
  const row = useRef<HTMLParagraphElement>(null);
  const back = (): void => {
    isPuttingOff.value = false;
    requestAnimationFrame(() => row.current?.querySelector<HTMLElement>(".later")?.focus());
  };
  const reason = useSignal("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (isAsked.value) field.current?.focus();
  }, [isAsked.value]);
  if (isPuttingOff.value && canPutOff) return <PutOff title={title} deadline={deadline} putOff={putOff} back={back} />;
  if (!isAsked.value)
    return (
      <p class="answer" ref={row}>
        <button type="button" class="done" aria-describedby={title} onClick={() => answer("done", "")}>
          Done
        </button>
        <button type="button" class="failed" aria-describedby={title} onClick={() => (isAsked.value = true)}>
          Could not do it
        </button>
        {canPutOff && (
          <button type="button" class="later" aria-describedby={title} onClick={() => (isPuttingOff.value = true)}>
            Not now
          </button>
        )}
      </p>
    );
  return (
    <form
      class="answer reason"
      onSubmit={(event) => {
        event.preventDefault();
        answer("failed", reason.value.trim());
      }}
    >
      <label>
        Why not?
        <input
          ref={field}
          maxLength={500}
          autocomplete="off"
          aria-describedby={title}
          value={reason.value}
          onInput={({ currentTarget }) => (reason.value = currentTarget.value)}
          onKeyDown={({ key }) => key === "Escape" && (isAsked.value = false)}
        />
      </label>
      <button class="failed send" aria-describedby={title}>
        Send
      </button>
      <button type="button" class="plain" onClick={() => (isAsked.value = false)}>
        Back
      </button>
    </form>
  );
}

interface PutOffProps {
  readonly title: string;
  readonly deadline: string | undefined;
  readonly putOff: Card["putOff"];
  readonly back: () => void;
}

/** When it is to come back. */
function PutOff({ title, deadline, putOff, back }: PutOffProps) {
  const first = useRef<HTMLButtonElement>(null);
  useEffect(() => first.current?.focus(), []);
  return (
    <div
      class="answer put-off"
      role="group"
      aria-label="When to show it again"
      onKeyDown={({ key }) => key === "Escape" && back()}
    >
      <p>Show it again in</p>
      {choicesOf(deadline, now.value).map(({ label, seconds }, place) => (
        <button
          key={place}
          ref={place === 0 ? first : null}
          type="button"
          class="later"
          aria-describedby={title}
          onClick={() => putOff(seconds)}
        >
          {label}
        </button>
      ))}
      <button type="button" class="plain" onClick={back}>
        Back
      </button>
    </div>
  );
}

/** All that engineers want to know. */
function Details({ card: { event } }: { readonly card: Card }) {
  return (
    <details class="more">
      <summary>Details</summary>
      <p class="muted small">
        <code>{event.id}</code> · {event.channel}
        {event.type && ` · ${event.type}`}
        {event.key && ` · key ${event.key}`}
        {event.round && ` · round ${event.round}`} · {timeText(event.at)}
        {event.deadline && ` · due ${timeText(event.deadline)}`}
      </p>
      <pre tabIndex={0} aria-label="Data">
        {prettyJson(event.text)}
      </pre>
    </details>
  );
}

// -------------------------------------------------------------------------------------------------------- what was put off

function Later() {
  if (later.value.length === 0) return null;
  return (
    <section id="later" aria-labelledby="later-heading">
      <h2 id="later-heading">Later</h2>
      <ul>
        {later.value.map(({ id, title, until, isSent }) => (
          <li key={id} data-event={id}>
            <span>{title}</span>{" "}
            <span class="muted">
              {until > now.value
                ? `comes back at ${clockText(until, now.value)}, in ${roughly((until - now.value) / 1000)}`
                : "comes back now"}
              {!isSent && ", not sent yet"}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

// ---------------------------------------------------------------------------------------------------------- what was done

/** The state of an answer, which decides its colour, and its text. */
function outcomeOf({ word, isSent, refusal, ending }: Card): readonly [state: string, text: string] {
  if (refusal !== null) return ["rejected", `not recorded: ${refusal}`];
  const text = word === "done" ? "done" : "not done";
  if (!isSent) return ["queued", `${text}, not sent yet`];
  return [word, ending === null ? text : `${text}; meanwhile it ${ending}`];
}

function Answered() {
  if (answered.value.length === 0) return null;
  return (
    <details id="answered">
      <summary>Done lately ({answered.value.length})</summary>
      <ul>
        {answered.value.map((card) => {
          const [outcome, text] = outcomeOf(card);
          return (
            <li key={card.event.id} id={`event-${card.event.id}`} data-receipt={outcome} data-word={card.word}>
              <h2>{card.content.title}</h2>{" "}
              <span class="small">
                <span class="outcome">{text}</span>
                {card.answeredAt !== null && `, ${clockText(card.answeredAt, now.value)}`}
              </span>
              <Details card={card} />
            </li>
          );
        })}
      </ul>
    </details>
  );
}

// -------------------------------------------------------------------------------------------------------------- who it is

function ThisDevice() {
  return (
    <>
      <h2>This device</h2>
      <figure>
        <Qr text={device.value} label={`The name as a QR code: ${device.value}`} />
        <figcaption>
          <code id="device-name">{device.value}</code>
        </figcaption>
      </figure>
      <details id="setup">
        <summary>Settings</summary>
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
            <input name="auto" type="checkbox" value="1" defaultChecked={setup.auto} /> Answer <em>Done</em> by itself
          </label>
          <button>Apply</button>
        </form>
      </details>
      <Connection />
      <p class="offers">
        {permission.value === "default" && (
          <button type="button" class="plain" onClick={allow}>
            Notify me of new messages
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

/** What engineers want to know of the connection. */
function Connection() {
  const { value } = status;
  const transport = value?.transport;
  const error = state.value.state === "offline" && value?.state !== "closed" ? value?.error : null;
  return (
    <details id="connection">
      <summary>Connection</summary>
      <p class="muted small">
        Channel <span id="channel-name">{setup.channel}</span>
        {transport && (
          <>
            , by <span id="transport">{TRANSPORTS[transport]}</span>
            {transport !== "sse" && ", because event streams don't get through"}
          </>
        )}
        {error && `. Last attempt: ${error}`}
      </p>
    </details>
  );
}

show("device", () => {
  start();
  void keepPage();
  return <DevicePage />;
});
