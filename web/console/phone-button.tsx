/** The button that opens "Connect a phone". What it opens is loaded when it is pressed. */
import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";

type Loaded = typeof import("./phone.tsx");

/** @param channel the channel that the phone will follow; null: its page asks for one */
export function ConnectPhone({ channel }: { readonly channel: string | null }) {
  const loaded = useSignal<Loaded | null>(null);
  const isOpen = useSignal(false);
  const isLost = useSignal(false);
  const button = useRef<HTMLButtonElement>(null);
  const open = async (): Promise<void> => {
    try {
      loaded.value ??= await import("./phone.tsx");
      isOpen.value = true;
      isLost.value = false;
    } catch {
      isLost.value = true; // The service is away.
    }
  };
  const close = (): void => {
    isOpen.value = false;
    button.current?.focus();
  };
  return (
    <>
      <button ref={button} type="button" class="plain connect-phone" onClick={open}>
        {isLost.value ? "Connect a phone: try again" : "Connect a phone"}
      </button>
      {isOpen.value && loaded.value && <loaded.value.PhoneDialog channel={channel} close={close} />}
    </>
  );
}
