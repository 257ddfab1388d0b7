/** A button that copies a text. */
import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";

/** How long the button says that it copied. */
const SAID_MS = 2_000;

/** Copies without the Clipboard API, which browsers have only on https and localhost. @returns whether it worked */
function copyBySelection(text: string, near: HTMLElement): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.readOnly = true;
  area.className = "unseen";
  near.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } finally {
    area.remove();
  }
}

export function Copy({ text }: { readonly text: string }) {
  const said = useSignal("");
  const place = useRef<HTMLSpanElement>(null);
  const copy = async (): Promise<void> => {
    try {
      // `clipboard` is missing on plain http.
      await (navigator.clipboard as Clipboard | undefined)!.writeText(text);
      said.value = "Copied";
    } catch {
      said.value = copyBySelection(text, place.current!) ? "Copied" : "Select the text and copy it by hand";
    }
    setTimeout(() => (said.value = ""), SAID_MS);
  };
  return (
    <span ref={place} class="copy">
      <button type="button" class="plain" onClick={() => void copy()}>
        Copy
      </button>
      <span role="status">{said}</span>
    </span>
  );
}
