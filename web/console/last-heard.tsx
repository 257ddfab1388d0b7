/** When a device was last heard from. */
import type { Device } from "./api.ts";
import { now } from "./state.ts";
import { ago, timeText } from "./words.ts";

/** "connected", "last heard 3 min ago" or "never heard from". @param device undefined: it is not enrolled */
export function LastHeard({ device }: { readonly device: Pick<Device, "connected" | "seenAt"> | undefined }) {
  if (!device) return <>not enrolled</>;
  const { connected, seenAt } = device;
  return (
    <span title={seenAt === null ? undefined : `last heard from ${timeText(seenAt)}`}>
      <span class={connected ? "dot on" : "dot"} aria-hidden="true" />{" "}
      {connected ? "connected" : seenAt === null ? "never heard from" : `last heard ${ago(seenAt, now.value)}`}
    </span>
  );
}
