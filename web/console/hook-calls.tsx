/** The calls of a hook that failed: those that are tried again and those that were given up, each with its attempts. */
import { useSignal } from "@preact/signals";
import { request, troubleText } from "./api.ts";
import { type Attempt, type Delivery, type Hook, pathOf } from "./hook-data.ts";
import { notify } from "./notices.tsx";
import { now } from "./state.ts";
import { some, span, timeText } from "./words.ts";

/** Calls that are shown of each kind, the newest ones. */
const SHOWN = 10;

interface HookCallsProps {
  readonly channel: string;
  readonly hook: Hook;
  /** Reads the hooks again. */
  readonly again: () => void;
}

export function HookCalls({ channel, hook: { name, retrying, failed, lastDelivered = null }, again }: HookCallsProps) {
  const trouble = useSignal("");
  const left = retrying.length + failed.length;
  const send = (): void => {
    trouble.value = "";
    request(`${pathOf(channel, name)}/retry`, { method: "POST" }).then(
      () => (notify("well", `${some(left, "call")} of ${name} will be sent again now.`), again()),
      (error: unknown) => (trouble.value = troubleText(error)),
    );
  };
  const delivered =
    lastDelivered === null
      ? "No call has got through yet."
      : `Last call that got through: ${timeText(lastDelivered.at)}, status ${lastDelivered.status} after ${span(lastDelivered.ms / 1000)}.`;
  if (left === 0) return <p class="muted">{delivered} No failed calls.</p>;
  return (
    <>
      <p class="muted">{delivered}</p>
      <Calls title="Given up" deliveries={failed} />
      <Calls title="Tried again" deliveries={retrying} />
      <p class="trouble" role="alert">
        {trouble}
      </p>
      <button type="button" class="plain" onClick={send}>
        Send {left === 1 ? "it" : `all ${left}`} again now
      </button>
    </>
  );
}

function Calls({ title, deliveries }: { readonly title: string; readonly deliveries: readonly Delivery[] }) {
  if (deliveries.length === 0) return null;
  return (
    <>
      <h3>
        {title} <span class="muted">{some(deliveries.length, "call")}</span>
      </h3>
      {deliveries.length > SHOWN && <p class="muted small">The newest {SHOWN}.</p>}
      <ul class="calls">
        {deliveries.slice(-SHOWN).map((delivery) => (
          <li key={delivery.id}>
            <Call delivery={delivery} />
          </li>
        ))}
      </ul>
    </>
  );
}

/** The answer of an attempt, in words. */
const answerText = ({ status, error }: Pick<Attempt, "status" | "error">): string =>
  status === null ? (error ?? "no answer yet") : `status ${status}`;

function Call({ delivery }: { readonly delivery: Delivery }) {
  const { id, attempts, nextAt, tries = [], body = "" } = delivery;
  return (
    <details>
      <summary>
        {answerText(delivery)}{" "}
        <span class="muted">
          after {some(attempts, "attempt")}
          {nextAt !== null && `; next ${nextText(nextAt)}`} · <code>{id}</code>
        </span>
      </summary>
      <ol>
        {tries.map((attempt, place) => (
          <li key={place}>
            <span class="nowrap">{attempt.at === undefined ? "" : timeText(attempt.at)}</span>: {answerText(attempt)},
            after {span(attempt.ms / 1000)}
            {attempt.body && (
              <pre tabIndex={0} aria-label="Body of the answer">
                {attempt.body}
              </pre>
            )}
          </li>
        ))}
      </ol>
      {body !== "" && (
        <>
          <p>What PERE sends:</p>
          <pre tabIndex={0} aria-label="Body of the call">
            {body}
          </pre>
        </>
      )}
    </details>
  );
}

function nextText(nextAt: string): string {
  const seconds = (Date.parse(nextAt) - now.value) / 1000;
  return seconds > 0 ? `attempt in ${span(Math.ceil(seconds))}` : "attempt now";
}
