/** Whether what the page shows is live; if not, why, and when the service was last heard. */
import { heardAt, link, sight, silence } from "./state.ts";
import { span } from "./words.ts";

const WORDS = {
  connecting: "connecting",
  live: "live",
  away: "store away",
  offline: "offline",
  refused: "no access",
  silent: "silent",
} as const;

export function LinkState() {
  const { state } = link.value;
  const isSilent = state === "live" && sight.value !== "current" && sight.value !== "nothing";
  const shown = isSilent ? "silent" : state;
  const why = "why" in link.value && state !== "refused" ? ` · ${link.value.why}` : "";
  return (
    <p class="link" data-state={shown}>
      <span class="dot" aria-hidden="true" /> {/* Announced when it changes; the seconds are not. */}
      <span role="status">
        {WORDS[shown]}
        <span class="muted">
          {why}
          {state === "offline" && "; trying again"}
        </span>
      </span>
      {shown !== "live" && shown !== "refused" && heardAt.value !== null && (
        <span class="muted"> · last heard {span(silence.value)} ago</span>
      )}
    </p>
  );
}
