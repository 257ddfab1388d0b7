/** The `curl` command that does the same, to copy. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { addressOf } from "./api.ts";
import { Copy } from "./copy.tsx";

/** Whether the service asks for a token; null: not known yet. */
const asksForToken = signal<boolean | null>(null);

/** Asks without the browser's cookie, which a command in a shell does not have either. */
async function learnAboutTokens(): Promise<void> {
  if (asksForToken.peek() !== null) return;
  const answer = await fetch(addressOf("/channels?limit=1"), { credentials: "omit" }).catch(() => null);
  if (answer) asksForToken.value = answer.status === 401;
}

/** @param text the command; with `needsToken` it takes the token from a variable */
export function Curl({ text }: { readonly text: (needsToken: boolean) => string }) {
  useEffect(() => void learnAboutTokens(), []);
  const command = text(asksForToken.value === true);
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
