/** The token for requests that are tried. It stays as long as the tab, and is sent to this service only. */
import { signal } from "@preact/signals";

const KEY = "pere.api.token";

function stored(): string {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // The browser stores nothing for this page.
  }
}

export const token = signal(stored());

function change(text: string): void {
  token.value = text.trim();
  try {
    sessionStorage.setItem(KEY, token.value);
  } catch {
    // Then it lasts as long as the page.
  }
}

export function TokenField() {
  return (
    <div class="field token">
      <label>
        Token
        <input
          type="password"
          autocomplete="off"
          aria-describedby="token-hint"
          value={token.value}
          onInput={({ currentTarget }) => change(currentTarget.value)}
        />
      </label>
      <p id="token-hint" class="hint">
        Only where the service requires one, and the link that PERE printed was not opened in this browser. It is kept
        for this tab.
      </p>
    </div>
  );
}
