/** The `curl` command that makes the same push, to copy. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { addressOf } from "./api.ts";
import { Copy } from "./copy.tsx";
import { curlText, type Draft } from "./push-draft.ts";

/** Whether the service asks for a token; null: not known yet. */
const asksForToken = signal<boolean | null>(null);

/** Asks without the browser's cookie, which a command in a shell does not have either. */
async function learnAboutTokens(): Promise<void> {
  if (asksForToken.peek() !== null) return;
  const answer = await fetch(addressOf("/channels?limit=1"), { credentials: "omit" }).catch(() => null);
  if (answer) asksForToken.value = answer.status === 401;
}

export function Curl({ channel, draft }: { readonly channel: string; readonly draft: Draft }) {
  useEffect(() => void learnAboutTokens(), []);
  const command = curlText(channel, draft, asksForToken.value === true);
  return (
    <details open>
      <summary>The same with curl</summary>
      <div class="copied">
        <pre tabIndex={0} aria-label="curl command">
          {command}
        </pre>
        <Copy text={command} />
      </div>
      {asksForToken.value === true && (
        <p class="muted small">
          The service asks for a token. Put one with the right <code>push</code> into the variable first:{" "}
          <code>PERE_TOKEN=…</code>
        </p>
      )}
    </details>
  );
}
