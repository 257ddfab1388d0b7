/**
 * "Connect a phone": the address of the device page as a QR code. The phone that scans it is a device, under a new name.
 *
 * A token of the console never goes into the code: it may push, and a phone only follows and answers. Where the service demands tokens, this page says how
 * to make one for the phone.
 */
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { queryOf } from "./floor.ts";
import { Qr } from "./qr.tsx";
import { shellWord } from "./words.ts";

const DEVICE = "[A-Za-z0-9._:~\\-]{1,128}";
const CHANNELS = "[A-Za-z0-9][A-Za-z0-9._:~,\\-]{0,2079}";
const matches = (pattern: string, text: string): boolean => new RegExp(`^(${pattern})$`).test(text);

/** A name that no other phone has: there are a million. */
function newName(): string {
  const letters = "abcdefghjkmnpqrstuvwxyz23456789";
  const random = crypto.getRandomValues(new Uint8Array(4));
  return `phone-${[...random].map((byte) => letters[byte % letters.length]).join("")}`;
}

const isLoopback = (host: string): boolean => /^(localhost|127(\.\d+){3}|\[::1\])$/.test(host);

/** Whether the service demands tokens: asked without the console's own. Null: not known. */
async function demandsTokens(): Promise<boolean | null> {
  try {
    const { status } = await fetch("channels?limit=1", { credentials: "omit" });
    return status === 401 ? true : status < 300 ? false : null;
  } catch {
    return null;
  }
}

/** Why a token is not for a phone; "": it is. @returns the name in the token too */
function readToken(token: string): { readonly fault: string; readonly device: string | null } {
  if (token === "") return { fault: "", device: null };
  try {
    const [, claims = ""] = token.split(".");
    const { sub, pere } = JSON.parse(atob(claims.replace(/-/g, "+").replace(/_/g, "/"))) as {
      sub?: unknown;
      pere?: { push?: unknown[] };
    };
    if ((pere?.push?.length ?? 0) > 0)
      return { fault: "This token allows pushing. Make one for the phone, with --feed only.", device: null };
    return typeof sub === "string" && sub !== "*"
      ? { fault: "", device: sub }
      : { fault: "This token names no device. Make one with --sub and the phone's name.", device: null };
  } catch {
    return { fault: "This is not a token: a token has three parts, with dots between them.", device: null };
  }
}

interface PhoneDialogProps {
  readonly channel: string | null;
  readonly close: () => void;
}

export function PhoneDialog({ channel, close }: PhoneDialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    dialog.current!.showModal();
  }, []);
  return (
    <dialog ref={dialog} class="phone" aria-labelledby="phone-title" onClose={close}>
      <article>
        <h2 id="phone-title">Connect a phone</h2>
        {isLoopback(location.hostname) ? <OnLoopback /> : <Code channel={channel ?? "orders"} />}
        <form method="dialog">
          <button class="plain">Close</button>
        </form>
      </article>
    </dialog>
  );
}

/** A phone can't reach this service. */
function OnLoopback() {
  return (
    <>
      <p>
        <code>{location.host}</code> is this computer, as seen by itself; a phone can't reach it. Start PERE for the
        network:
      </p>
      <pre>HOST=0.0.0.0 bun run index.ts</pre>
      <p>
        It then demands tokens, and prints a link to this page. Open that link with this computer's address in your
        network in place of <code>{location.hostname}</code>, such as <code>192.168.1.20</code>, and come back here: the
        phone scans a code.
      </p>
    </>
  );
}

function Code({ channel: shown }: { readonly channel: string }) {
  const channel = useSignal(shown);
  const name = useSignal(newName());
  const token = useSignal("");
  const isGuarded = useSignal<boolean | null>(null);
  useEffect(() => void demandsTokens().then((demands) => (isGuarded.value = demands)), []);
  const { fault, device } = readToken(token.value);
  const named = device ?? name.value;
  const isReady =
    matches(CHANNELS, channel.value) && matches(DEVICE, named) && fault === "" && !(isGuarded.value && device === null);
  const options = [
    ["channel", channel.value],
    ["device", named],
    ...(device === null ? [] : [["token", token.value]]),
  ] as [string, string][];
  const address = isReady ? new URL(`weblistener.html${queryOf(options)}`, location.href).href : null;
  return (
    <>
      <div class="phone-code" aria-live="polite">
        {address === null ? (
          <p class="muted">
            {fault ||
              (isGuarded.value ? "The code appears when there is a token for the phone." : "A name is missing.")}
          </p>
        ) : (
          <>
            <Qr text={address} label={`QR code of the address ${device === null ? address : "with the token"}`} />
            <p>
              Scan this with the phone's camera. It opens a page that is the device <strong>{named}</strong> on{" "}
              <strong>{channel.value}</strong>, and stays one as long as it is open.
            </p>
            <a href={address}>Or open it here</a>
          </>
        )}
      </div>
      <label>
        Channel
        <input
          pattern={CHANNELS}
          autocomplete="off"
          spellcheck={false}
          value={channel.value}
          onInput={({ currentTarget }) => (channel.value = currentTarget.value.trim())}
        />
      </label>
      <label>
        Name of the phone
        <input
          pattern={DEVICE}
          autocomplete="off"
          spellcheck={false}
          readOnly={device !== null}
          value={named}
          onInput={({ currentTarget }) => (name.value = currentTarget.value.trim())}
        />
      </label>
      {isGuarded.value && (
        <>
          <p>
            This service demands tokens, and this page can't make one. Whoever runs the service makes one for the phone:
          </p>
          <pre>{`bun run index.ts token --sub ${shellWord(name.value || "NAME")} --feed ${shellWord(channel.value || "CHANNEL")} --days 30`}</pre>
          <label>
            Token for the phone
            <input
              type="password"
              autocomplete="off"
              value={token.value}
              onInput={({ currentTarget }) => (token.value = currentTarget.value.trim())}
            />
          </label>
          <p class="muted small">The code contains the token: whoever photographs it is that device.</p>
        </>
      )}
    </>
  );
}
