/** How an event is taken back, and what its page says when it was. */
import { useSignal } from "@preact/signals";
import { request } from "./api.ts";
import type { Shown, Withdrawal } from "./event-data.ts";
import { queryOf } from "./floor.ts";
import { notify } from "./notices.tsx";
import { Question } from "./question.tsx";
import { linkTo } from "./router.ts";
import { now } from "./state.ts";
import { ago, openOf, some, timeText } from "./words.ts";
import type { Tally } from "./api.ts";

/** Characters of a note; the service's limit. */
const NOTE_MAX = 256;

interface WithdrawProps {
  readonly channel: string;
  readonly event: Shown;
  /** Called when it was withdrawn. */
  readonly done: () => void;
}

/** The button, and the question before it is done. */
export function Withdraw({ channel, event: { id, receipts, key }, done }: WithdrawProps) {
  const isAsking = useSignal(false);
  const note = useSignal("");
  const open = openOf(receipts as Tally);
  const withdraw = (): Promise<unknown> => {
    const query = queryOf(note.value.trim() === "" ? [] : [["note", note.value.trim()]]);
    return request(`/events/${channel}/${id}${query}`, { method: "DELETE" });
  };
  return (
    <>
      <button type="button" class="danger" onClick={() => (isAsking.value = true)}>
        Withdraw
      </button>
      {isAsking.value && (
        <Question
          title="Withdraw this event?"
          action="Withdraw it"
          run={withdraw}
          closed={(isDone) => {
            isAsking.value = false;
            if (!isDone) return;
            notify("well", "The event was withdrawn.");
            done();
          }}
        >
          <p>
            {open === 0
              ? "No device waits for it any more."
              : `${some(open, "device")} that ${open === 1 ? "has" : "have"} not finished it need${open === 1 ? "s" : ""} not do it any more.`}{" "}
            Nobody is sent it from now on; devices that have it are told, and show your note.
          </p>
          <p>
            Answers that still arrive are recorded as late. What devices have done stays done, and a withdrawal can't be
            taken back. {key !== undefined && `Other events with the key ${key} stay as they are.`}
          </p>
          <label>
            Why? People at the devices read this.
            <input
              name="note"
              maxLength={NOTE_MAX}
              autocomplete="off"
              placeholder="printed twice"
              value={note.value}
              onInput={({ currentTarget }) => (note.value = currentTarget.value)}
            />
          </label>
        </Question>
      )}
    </>
  );
}

/** When and why an event was withdrawn, and the event that replaced it. */
export function WithdrawnBy({ channel, withdrawn }: { readonly channel: string; readonly withdrawn: Withdrawal }) {
  const { at, by, note } = withdrawn;
  return (
    <p class="ended">
      {by === undefined ? "Taken back" : "Replaced"} {timeText(at)}, {ago(at, now.value)}
      {note === undefined ? "." : `: “${note}”`}
      {by !== undefined && (
        <>
          {" "}
          <a href={linkTo(channel, "event", by)}>See the newer event</a>
        </>
      )}
    </p>
  );
}
