/**
 * The push form: checks the text while it is typed, sends it unchanged, shows the equivalent `curl` command, and lists what this tab pushed lately.
 */
import { useComputed, useSignal } from "@preact/signals";
import { type Fault, Refused, troubleText } from "./api.ts";
import { Curl } from "./curl.tsx";
import { audienceFault, DevicePicker } from "./device-picker.tsx";
import {
  type Again,
  againOf,
  curlText,
  type Draft,
  jsonFault,
  NEW_DRAFT,
  type Pushed,
  type Recent,
  recents,
  type Scheduled,
  send,
  TO_MAX,
} from "./push-draft.ts";
import { Data, Deadline, draftOf, More, PLACED, useFields } from "./push-fields.tsx";
import { Later } from "./push-later.tsx";
import { HERE_ZONE, inZone, isScheduledId, whenFault } from "./push-when.ts";
import { Skeleton } from "./skeleton.tsx";
import { useReading } from "./readings.ts";
import { linkTo } from "./router.ts";
import { now, overview } from "./state.ts";
import { ago, count, prettyJson, some, tallyText } from "./words.ts";

/** The form, or what is read before it can be filled in. @param again the event to push again to those who did not do it */
export function PushPage({ channel, again }: { readonly channel: string; readonly again: string | null }) {
  const draft = useSignal<Draft>(NEW_DRAFT);
  /** Incremented to fill in the form anew. */
  const version = useSignal(0);
  const fill = (next: Draft): void => {
    draft.value = next;
    version.value++;
  };
  return (
    <div class="push">
      {again === null || version.value > 0 ? (
        <Form key={version.value} channel={channel} draft={draft.value} />
      ) : (
        <FormAgain channel={channel} id={again} />
      )}
      <Recents channel={channel} fill={fill} />
    </div>
  );
}

function FormAgain({ channel, id }: { readonly channel: string; readonly id: string }) {
  const reading = useReading<Again>(
    (signal) => againOf(channel, id, signal),
    (found) => (found === null ? 5 : Infinity),
  );
  const found = reading.answer.value;
  if (found === null)
    return reading.trouble.value ? (
      <p class="trouble" role="alert">
        The event can't be read, so it can't be pushed again. {reading.trouble}
      </p>
    ) : (
      <Skeleton />
    );
  const { draft, notDone } = found;
  return (
    <>
      <p>
        This pushes <a href={linkTo(channel, "event", id)}>an earlier event</a> again, with the same data and deadline.{" "}
        {notDone === 0
          ? "Meanwhile no device is left that did not do it."
          : `${some(notDone, "device")} did not do it${notDone > TO_MAX ? `; a push can name ${count(TO_MAX)}, so these are the first by name` : ""}.`}
      </p>
      <Form channel={channel} draft={draft} />
    </>
  );
}

/** What became of a push: the answer, or why there is none. */
export type Outcome = Pushed | Scheduled | { readonly trouble: string };

function Form({ channel, draft: first }: { readonly channel: string; readonly draft: Draft }) {
  const fields = useFields(first);
  const draft = useComputed(() => draftOf(fields));
  const isSending = useSignal(false);
  const outcome = useSignal<Outcome | null>(null);
  const faults = useSignal<readonly Fault[]>([]);
  const known = overview.value?.channels.find((one) => one.channel === channel);
  const fault = jsonFault(draft.value.text);
  const isLater = draft.value.when.kind !== "now";
  const faultOf = (...paths: string[]): string => faults.value.find(({ path }) => paths.includes(path))?.message ?? "";
  const submit = async (): Promise<void> => {
    if (isSending.peek()) return;
    outcome.value = null;
    const names = audienceFault(fields.audience.value);
    const time = whenFault(fields.when.value, fields.options.value.wait);
    faults.value = [...(names === "" ? [] : [{ path: "to", message: names }]), ...(time === null ? [] : [time])];
    if (faults.value.length > 0) return focusFault();
    isSending.value = true;
    try {
      outcome.value = (await send(channel, draft.value)) ?? { trouble: UNKNOWN };
    } catch (error) {
      if (error instanceof Refused) faults.value = error.faults.map(asSentence);
      const isPlaced = faults.value.some(({ path }) => PLACED.includes(path));
      outcome.value = {
        trouble: isPlaced
          ? "Nothing was pushed. See what is wrong above."
          : `Nothing was pushed. ${troubleText(error)}`,
      };
      if (isPlaced) focusFault();
    }
    isSending.value = false;
  };
  return (
    <form
      noValidate
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <Data fields={fields} fault={fault || faultOf("body", "data")} />
      <DevicePicker channel={channel} devices={known?.devices} audience={fields.audience} fault={faultOf("to")} />
      <Deadline deadline={fields.deadline} fault={faultOf("deadline")} />
      <Later when={fields.when} faultOf={faultOf} />
      <More options={fields.options} faultOf={faultOf} />
      <p>
        <button class="send" disabled={fault !== ""} aria-busy={isSending.value}>
          {isSending.value
            ? isLater || draft.value.wait === ""
              ? isLater
                ? "Scheduling"
                : "Pushing"
              : "Waiting for receipts"
            : isLater
              ? "Schedule this push"
              : buttonText(draft.value.to, known?.devices)}
        </button>
      </p>
      <div role="status">{outcome.value !== null && <OutcomeText channel={channel} outcome={outcome.value} />}</div>
      <Curl text={(needsToken) => curlText(channel, draft.value, needsToken)} />
    </form>
  );
}

export const UNKNOWN =
  "PERE did not answer. The event may or may not have been stored. Push it again: the same event is stored only once.";

const asSentence = ({ path, message }: Fault): Fault => ({ path, message: troubleText(new Error(message)) });

/** Puts the focus on the first field with a fault, when it has been rendered. */
const focusFault = (): void =>
  void requestAnimationFrame(() => document.querySelector<HTMLElement>(".push [aria-invalid=true]")?.focus());

const buttonText = (to: readonly string[] | null, devices: number | undefined): string =>
  to !== null
    ? `Push to ${some(to.length, "device")}`
    : devices === undefined
      ? "Push to all devices"
      : `Push to all ${some(devices, "device")}`;

export function OutcomeText({ channel, outcome }: { readonly channel: string; readonly outcome: Outcome }) {
  if ("trouble" in outcome) return <p class="trouble">{outcome.trouble}</p>;
  if ("next" in outcome)
    return (
      <p class="well">
        Scheduled: it is pushed {inZone(outcome.next, HERE_ZONE)}.{" "}
        <a href={linkTo(channel, "scheduled")}>See what is scheduled</a>
      </p>
    );
  const { id, audience, receipts, warnings = [] } = outcome;
  return (
    <>
      <p class="well">
        Stored as <a href={linkTo(channel, "event", id)}>{id}</a>, addressed to {some(audience.addressed, "device")},{" "}
        {count(audience.connected)} connected.{receipts && ` ${tallyText(receipts, audience.addressed)}.`}{" "}
        <a href={linkTo(channel)}>See it on the board</a>
      </p>
      {warnings.map((warning) => (
        <p key={warning} class="trouble">
          {warning}
        </p>
      ))}
    </>
  );
}

interface RecentsProps {
  readonly channel: string;
  readonly fill: (draft: Draft) => void;
}

/** What this tab pushed to the channel. */
function Recents({ channel, fill }: RecentsProps) {
  const pushed = recents.value.filter((one) => one.channel === channel);
  if (pushed.length === 0) return null;
  return (
    <section aria-labelledby="recents">
      <h2 id="recents">Pushed lately in this tab</h2>
      <ul class="recents">
        {pushed.map((one) => (
          <RecentRow key={one.id} recent={one} fill={fill} />
        ))}
      </ul>
    </section>
  );
}

function RecentRow({
  recent: { channel, id, at, draft },
  fill,
}: {
  readonly recent: Recent;
  readonly fill: RecentsProps["fill"];
}) {
  const again = (): void => {
    fill(draft);
    requestAnimationFrame(() => document.getElementById("push-data")?.focus());
  };
  return (
    <li>
      <a href={isScheduledId(id) ? linkTo(channel, "scheduled") : linkTo(channel, "event", id)}>
        {draft.type || "event"}
      </a>{" "}
      <span class="muted">
        {isScheduledId(id) && "scheduled "}
        {ago(at, now.value)}, to {draft.to === null ? "all devices" : some(draft.to.length, "device")}
      </span>
      <code class="preview">{prettyJson(draft.text, true).slice(0, 200)}</code>
      <button type="button" class="plain" onClick={again}>
        Push again<span class="unseen">: {draft.type || "event"}</span>
      </button>
    </li>
  );
}
