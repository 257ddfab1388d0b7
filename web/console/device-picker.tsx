/**
 * The devices that a push addresses: all, or those that are named. Names are found among the enrolled devices, typed, or pasted as a list.
 *
 * The field for names is a combobox (WAI-ARIA, "combobox"): arrow keys choose a suggestion, Enter takes it, Backspace in the empty field removes the last
 * name. What was typed but not yet taken counts as named too.
 */
import { type Signal, useSignal, useSignalEffect } from "@preact/signals";
import { type Device, read } from "./api.ts";
import { queryOf } from "./floor.ts";
import { isDevice, namesOf } from "./push-draft.ts";
import { count, some } from "./words.ts";

const SUGGESTIONS = 12;
/** Pause in typing after which suggestions are read. */
const PAUSE_MS = 150;

/** Who is addressed, as typed. */
export interface Audience {
  readonly isAll: boolean;
  readonly names: readonly string[];
  /** Not yet taken as a name. */
  readonly typed: string;
}

/** All names, also one that is only typed; null: all devices. */
export const addressedBy = ({ isAll, names, typed }: Audience): readonly string[] | null =>
  isAll ? null : [...new Set([...names, ...namesOf(typed)])];

/** Why the names can't be used; "": they can. */
export function audienceFault(audience: Audience): string {
  const to = addressedBy(audience);
  if (to === null) return "";
  if (to.length === 0) return "Name at least one device, or choose all devices.";
  const wrong = to.find((name) => !isDevice(name));
  return wrong === undefined ? "" : `“${wrong}” is not a device's name: 1 to 128 of A–Z a–z 0–9 . _ : ~ - are allowed.`;
}

interface DevicePickerProps {
  readonly channel: string;
  /** Enrolled devices; undefined: not known. */
  readonly devices: number | undefined;
  readonly audience: Signal<Audience>;
  /** What is wrong with the names; "": nothing. */
  readonly fault: string;
}

export function DevicePicker({ channel, devices, audience, fault }: DevicePickerProps) {
  const { isAll, names } = audience.value;
  return (
    <fieldset class="audience">
      <legend>Devices</legend>
      <div class="segments">
        {[true, false].map((all) => (
          <label key={String(all)}>
            <input
              type="radio"
              name="audience"
              checked={isAll === all}
              onChange={() => (audience.value = { ...audience.peek(), isAll: all })}
            />
            <span>
              {all ? (devices === undefined ? "all devices" : `all ${some(devices, "device")}`) : "only these"}
            </span>
          </label>
        ))}
      </div>
      {!isAll && (
        <>
          {names.length > 0 && <Chips audience={audience} />}
          <Names channel={channel} audience={audience} fault={fault} />
        </>
      )}
    </fieldset>
  );
}

function Chips({ audience }: { readonly audience: Signal<Audience> }) {
  const { names } = audience.value;
  const keep = (kept: readonly string[]): void => {
    audience.value = { ...audience.peek(), names: kept };
    document.getElementById("push-to")?.focus();
  };
  return (
    <>
      <p class="muted small" role="status">
        {some(names.length, "device")} named.{" "}
        {names.length > 1 && (
          <button type="button" class="text" onClick={() => keep([])}>
            Remove all
          </button>
        )}
      </p>
      <ul class="chips" aria-label="Named devices">
        {names.map((name) => (
          <li key={name}>
            {name}
            <button
              type="button"
              aria-label={`Remove ${name}`}
              onClick={() => keep(names.filter((one) => one !== name))}
            >
              ×
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}

function Names({ channel, audience, fault }: Omit<DevicePickerProps, "devices">) {
  const isOpen = useSignal(false);
  /** The suggestion that Enter takes; -1: none. */
  const active = useSignal(-1);
  const found = useSuggestions(channel, audience, isOpen);
  const suggestions = isOpen.value ? found.value.filter(({ device }) => !audience.value.names.includes(device)) : [];
  /** Takes valid names; the others stay typed, so that they can be mended. */
  const take = (texts: readonly string[]): void => {
    const { names } = audience.peek();
    audience.value = {
      isAll: false,
      names: [...new Set([...names, ...texts.filter(isDevice)])],
      typed: texts.filter((text) => !isDevice(text)).join(" "),
    };
    active.value = -1;
  };
  const press = (event: KeyboardEvent): void => {
    const { typed, names } = audience.peek();
    const chosen = suggestions[active.value];
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (!isOpen.value) isOpen.value = true;
      else active.value = Math.min(Math.max(-1, active.value + step), suggestions.length - 1);
    } else if (event.key === "Escape" && isOpen.value) isOpen.value = false;
    else if (event.key === "Enter" && (chosen || typed.trim() !== "")) take(chosen ? [chosen.device] : namesOf(typed));
    else if (event.key === "Backspace" && typed === "" && names.length > 0)
      audience.value = { ...audience.peek(), names: names.slice(0, -1) };
    else return;
    event.preventDefault();
  };
  const typing = (text: string): void => {
    [isOpen.value, active.value] = [true, -1];
    const parts = text.split(/[\s,;]+/);
    // A separator ends a name; what comes after the last one is still being typed.
    if (parts.length === 1) audience.value = { ...audience.peek(), typed: text };
    else {
      const last = parts.pop()!;
      take(parts.filter((name) => name !== ""));
      const { typed } = audience.peek();
      audience.value = { ...audience.peek(), typed: [typed, last].filter(Boolean).join(" ") };
    }
  };
  return (
    <div class="combo">
      <label for="push-to">Names, or a pasted list of names</label>
      <input
        id="push-to"
        name="to"
        role="combobox"
        autocomplete="off"
        autocapitalize="none"
        spellcheck={false}
        placeholder="Search among the devices"
        aria-autocomplete="list"
        aria-expanded={suggestions.length > 0}
        aria-controls="push-to-list"
        aria-activedescendant={suggestions[active.value] && `push-to-${active.value}`}
        aria-invalid={fault === "" ? undefined : "true"}
        aria-describedby="push-to-fault"
        value={audience.value.typed}
        onInput={({ currentTarget }) => typing(currentTarget.value)}
        onPaste={(event) => {
          const pasted = namesOf(event.clipboardData?.getData("text") ?? "");
          if (pasted.length < 2) return;
          event.preventDefault();
          take([...namesOf(audience.peek().typed), ...pasted]);
        }}
        onFocus={() => (isOpen.value = true)}
        onBlur={() => (isOpen.value = false)}
        onKeyDown={press}
      />
      <ul
        id="push-to-list"
        class="suggestions"
        role="listbox"
        aria-label="Devices of the channel"
        hidden={suggestions.length === 0}
      >
        {suggestions.map(({ device, connected, pending }, place) => (
          <li
            key={device}
            id={`push-to-${place}`}
            role="option"
            aria-selected={place === active.value}
            onMouseDown={(event) => event.preventDefault()}
            onClick={() => take([device])}
          >
            {device}{" "}
            <small>
              {connected ? "connected" : "not connected"}
              {pending > 0 && `, owes ${count(pending)}`}
            </small>
          </li>
        ))}
      </ul>
      <p id="push-to-fault" class="fault" role="status">
        {fault}
      </p>
    </div>
  );
}

/** Enrolled devices whose names contain what is typed. Without an answer there are no suggestions; names can be typed all the same. */
function useSuggestions(
  channel: string,
  audience: Signal<Audience>,
  isOpen: Signal<boolean>,
): Signal<readonly Device[]> {
  const found = useSignal<readonly Device[]>([]);
  useSignalEffect(() => {
    const { typed } = audience.value;
    if (!isOpen.value) return;
    const control = new AbortController();
    const timer = setTimeout(() => {
      const options: [string, string][] = [["limit", String(SUGGESTIONS)]];
      if (typed !== "") options.push(["search", typed]);
      read<{ devices: Device[] }>(`/devices/${channel}${queryOf(options)}`, "devices", control.signal).then(
        ({ devices }) => void (control.signal.aborted || (found.value = devices)),
        () => void (found.value = []),
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      control.abort();
    };
  });
  return found;
}
