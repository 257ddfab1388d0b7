/** A channel's numbers, and the service's. Those that are no longer current say of when they are. */
import { useSignal, useSignalEffect } from "@preact/signals";
import type { ChannelState } from "./api.ts";
import { troubleOf, troubleSum, troubleText } from "./attention.ts";
import { readChannels } from "./channels.tsx";
import { Skeleton } from "./skeleton.tsx";
import { heardAt, link, now, overview, sight } from "./state.ts";
import { count, justBefore, some, timeText } from "./words.ts";

/** "At 16:09:01: " unless what follows is current. */
function asOf(at: string | null = null): string {
  if (at !== null) return `At ${timeText(at)}: `;
  if (sight.value === "current" || heardAt.value === null) return "";
  return `At ${timeText(new Date(heardAt.value).toISOString())}: `;
}

export function ChannelFacts({ channel }: { readonly channel: string }) {
  const known = overview.value;
  const listed = known?.channels.find((one) => one.channel === channel);
  const beyond = useBeyond(channel, known !== null && !listed && known.more);
  if (!known)
    return <p class="facts">{link.value.state === "offline" ? "Nothing is known yet." : <Skeleton words />}</p>;
  const item = listed ?? beyond;
  if (item === null) return <p class="facts">{known.more ? <Skeleton words /> : ""}</p>;
  if (!item) return <p class="facts muted">No events and no devices yet.</p>;
  const trouble = troubleOf(channel) ?? { failed: 0, missing: listed?.missing ?? 0, overdue: 0 };
  return (
    <p class="facts muted">
      {asOf()}
      {[
        `${some(item.devices, "device")}, ${count(item.connected)} connected`,
        some(item.events, "event"),
        ...(listed?.open ? [`${count(listed.open)} open`] : []),
      ].join(" · ")}
      {troubleSum(trouble) > 0 && (
        <>
          {" "}
          · <b class="bad">{troubleText(trouble)}</b>
        </>
      )}
    </p>
  );
}

/** How often a channel beyond the overview is read again. */
const AGAIN_MS = 3_000;

/** The numbers of a channel that the overview does not list; undefined: there is no such channel; null: not known yet, or not wanted. */
function useBeyond(
  channel: string,
  isWanted: boolean,
): Pick<ChannelState, "devices" | "connected" | "events"> | undefined | null {
  const found = useSignal<Pick<ChannelState, "devices" | "connected" | "events"> | undefined | null>(null);
  const wanted = useSignal(isWanted);
  wanted.value = isWanted;
  useSignalEffect(() => {
    if (!wanted.value) return;
    const control = new AbortController();
    let due = 0;
    const load = (): void => {
      due = Date.now() + AGAIN_MS;
      readChannels("", justBefore(channel), 1, control.signal).then(
        ({ channels }) => (found.value = channels.find((one) => one.channel === channel)),
        () => {}, // The stream reports what is wrong.
      );
    };
    load();
    const stop = now.subscribe((time) => time >= due && link.peek().state === "live" && load());
    return () => (stop(), control.abort());
  });
  return found.value;
}

/** The numbers of the whole service. */
export function ServiceFacts() {
  const totals = overview.value?.totals;
  if (!totals)
    return (
      <p class="facts">
        <Skeleton words />
      </p>
    );
  const { channels, devices, connected, at } = totals;
  return (
    <p class="facts muted">
      {asOf(at)}
      {some(channels, "channel")} · {some(devices, "device")}, {count(connected)} connected
    </p>
  );
}
