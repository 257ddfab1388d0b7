/**
 * Pushes an event again to the devices that did not do it. The service knows which these are, however many. Whoever wants to change the data or the names
 * first gets the push form.
 */
import { useSignal } from "@preact/signals";
import { addressOf, Refused, request, troubleText } from "./api.ts";
import { Curl } from "./curl.tsx";
import { readEvent, type Shown } from "./event-data.ts";
import { queryOf } from "./floor.ts";
import { newKey, type Pushed } from "./push-draft.ts";
import { Deadline } from "./push-fields.tsx";
import { type Outcome, OutcomeText, PushPage, UNKNOWN } from "./push.tsx";
import { useReading } from "./readings.ts";
import { linkTo } from "./router.ts";
import { Skeleton } from "./skeleton.tsx";
import { leftOf } from "./verdict.ts";
import { count, prettyJson, shellWord, some } from "./words.ts";

interface PushAgainProps {
  readonly channel: string;
  readonly id: string;
}

export function PushAgainPage({ channel, id }: PushAgainProps) {
  const isChanging = useSignal(false);
  const reading = useReading<Shown>(
    (signal) => readEvent(channel, id, signal),
    (found) => (found === null ? 5 : Infinity),
  );
  if (isChanging.value) return <PushPage channel={channel} again={id} />;
  const event = reading.answer.value;
  if (event === null)
    return reading.trouble.value ? (
      <p class="trouble" role="alert">
        The event can't be read, so it can't be pushed again. {reading.trouble}
      </p>
    ) : (
      <Skeleton />
    );
  return <AgainForm channel={channel} event={event} change={() => void (isChanging.value = true)} />;
}

interface AgainFormProps {
  readonly channel: string;
  readonly event: Shown;
  readonly change: () => void;
}

const pathOf = (channel: string, id: string, deadline: string): string =>
  `/events/${channel}/${id}/again${queryOf(deadline === "" ? [] : [["deadline", deadline]])}`;

function AgainForm({ channel, event: { id, at, deadline: until, receipts, text, type }, change }: AgainFormProps) {
  const deadline = useSignal(until === undefined ? "" : String((Date.parse(until) - Date.parse(at)) / 1000));
  /** The same until the service has answered, so that the event is stored once. */
  const key = useSignal(newKey());
  const isSending = useSignal(false);
  const outcome = useSignal<Outcome | null>(null);
  const fault = useSignal("");
  const left = leftOf(receipts);
  const send = async (): Promise<void> => {
    if (isSending.peek()) return;
    [outcome.value, fault.value, isSending.value] = [null, "", true];
    try {
      const init = { method: "POST", headers: { "Idempotency-Key": key.peek() } };
      const answer = (await (await request(pathOf(channel, id, deadline.peek()), init)).json()) as Pushed | null;
      const isPushed = typeof answer?.id === "string" && typeof answer.audience?.addressed === "number";
      outcome.value = isPushed ? answer : { trouble: UNKNOWN };
      if (isPushed) key.value = newKey();
    } catch (error) {
      const placed = error instanceof Refused ? error.faults.find(({ path }) => path === "deadline") : undefined;
      fault.value = placed ? troubleText(new Error(placed.message)) : "";
      if (error instanceof Refused && error.isOurs && error.status < 500) key.value = newKey();
      outcome.value =
        error instanceof Refused
          ? { trouble: `Nothing was pushed. ${placed ? "See what is wrong above." : troubleText(error)}` }
          : { trouble: UNKNOWN };
    }
    isSending.value = false;
  };
  return (
    <div class="push">
      <p>
        This pushes <a href={linkTo(channel, "event", id)}>an earlier event</a> again, with the same data
        {type === undefined ? "" : " and type"}.{" "}
        {left === 0
          ? "No device is left that did not do it."
          : `${some(left, "device")} did not do it. Those that were retired since are left out.`}
      </p>
      <form
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <p class="label">{type ?? "Data"}</p>
        <pre tabIndex={0} aria-label="Data">
          {prettyJson(text)}
        </pre>
        <Deadline deadline={deadline} fault={fault.value} />
        <p>
          <button class="send" disabled={left === 0} aria-busy={isSending.value}>
            {isSending.value ? "Pushing" : `Push again to ${left === 1 ? "this device" : `these ${count(left)}`}`}
          </button>{" "}
          <button type="button" class="plain" onClick={change}>
            Change it first
          </button>
        </p>
        <div role="status">{outcome.value !== null && <OutcomeText channel={channel} outcome={outcome.value} />}</div>
        <Curl text={(needsToken) => curlText(channel, id, deadline.value, needsToken)} />
      </form>
    </div>
  );
}

function curlText(channel: string, id: string, deadline: string, needsToken: boolean): string {
  const lines = [
    `curl -X POST ${shellWord(addressOf(pathOf(channel, id, deadline)))}`,
    ...(needsToken ? ['  -H "Authorization: Bearer $PERE_TOKEN"'] : []),
  ];
  return lines.join(" \\\n");
}
