/** Deletes a channel in which nothing is left. */
import { useSignal } from "@preact/signals";
import { request } from "./api.ts";
import { notify } from "./notices.tsx";
import { Question } from "./question.tsx";
import { linkToPage } from "./router.ts";
import { overview } from "./state.ts";

export function DeleteChannel({ channel }: { readonly channel: string }) {
  const isAsking = useSignal(false);
  const isListed = overview.value?.channels.some((one) => one.channel === channel) ?? false;
  // A channel that nobody used is not listed, and there is nothing to delete. The overview does not list very many channels.
  if (!isListed && !overview.value?.more) return null;
  return (
    <section class="foot" aria-labelledby="channel-delete">
      <h2 id="channel-delete">Delete the channel</h2>
      <p class="muted">
        Only a channel in which nothing is left can be deleted: no events, devices, hooks or scheduled pushes.
      </p>
      <button type="button" class="danger" onClick={() => (isAsking.value = true)}>
        Delete {channel}
      </button>
      {isAsking.value && (
        <Question
          title={`Delete the channel ${channel}?`}
          action="Delete it"
          run={() => request(`/channels/${channel}`, { method: "DELETE" })}
          closed={(isDone) => {
            isAsking.value = false;
            if (!isDone) return;
            notify("well", `The channel ${channel} was deleted.`);
            location.hash = linkToPage("channels");
          }}
        >
          <p>
            It leaves the list of channels, and the receipts of its expired events are deleted. If somebody pushes to
            this name or follows it, a new channel begins.
          </p>
        </Question>
      )}
    </section>
  );
}
