/**
 * The notice area: what was done, and what went wrong, in a sentence at the bottom of any page. Success goes by itself, trouble stays until it is
 * dismissed. Escape dismisses the newest.
 */
import { signal } from "@preact/signals";
import { useEscape } from "./router.ts";

/** How long a notice of success is shown. */
const WELL_MS = 8_000;
/** Older notices go. */
const NOTICES_MAX = 3;

interface Notice {
  readonly id: number;
  readonly kind: "well" | "trouble";
  readonly text: string;
  readonly link: { readonly href: string; readonly text: string } | null;
}

const notices = signal<readonly Notice[]>([]);
let last = 0;
const dismiss = (id: number): void => void (notices.value = notices.value.filter((one) => one.id !== id));

/** Shows a sentence. @param link where it leads, if anywhere */
export function notify(kind: Notice["kind"], text: string, link: Notice["link"] = null): void {
  const id = ++last;
  notices.value = [...notices.value.filter((one) => one.text !== text), { id, kind, text, link }].slice(-NOTICES_MAX);
  if (kind === "well") setTimeout(dismiss, WELL_MS, id);
}

export function Notices() {
  const shown = notices.value;
  const newest = shown[shown.length - 1];
  useEscape(newest ? () => dismiss(newest.id) : null);
  return (
    <div class="notices" role="status" aria-label="Notices">
      {shown.map(({ id, kind, text, link }) => (
        <p key={id} class={kind}>
          <span>
            {text} {link && <a href={link.href}>{link.text}</a>}
          </span>
          <button type="button" class="plain" onClick={() => dismiss(id)}>
            Dismiss
          </button>
        </p>
      ))}
    </div>
  );
}
