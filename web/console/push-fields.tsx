/** The fields of the push form, and the push that is typed into them. */
import { type Signal, useSignal } from "@preact/signals";
import { addressedBy, type Audience } from "./device-picker.tsx";
import { Field, Segments } from "./fields.tsx";
import { type Draft, jsonFault } from "./push-draft.ts";
import type { When } from "./push-when.ts";

type OptionName = "where" | "type" | "key" | "attempts" | "remind" | "ttl" | "wait";

interface Option {
  readonly name: OptionName;
  readonly label: string;
  readonly hint: string;
  /** What it does, below the field. */
  readonly help?: string;
  /** The path by which the service names it, if it is another. */
  readonly path?: string;
}

const OPTIONS: readonly Option[] = [
  { name: "where", label: "Only devices with tags", hint: "site:rome|milan,!beta" },
  { name: "type", label: "Type", hint: "order.created" },
  {
    name: "key",
    label: "Key",
    hint: "config",
    help: "Replaces older events with the same key that are not complete.",
  },
  {
    name: "attempts",
    label: "Attempts",
    hint: "1",
    help: "So often a device may try; between two tries it waits, longer each time.",
  },
  { name: "remind", label: "Remind every, in seconds", hint: "never" },
  { name: "ttl", label: "Expires after, in seconds", hint: "never" },
  { name: "wait", label: "Wait for receipts, in seconds", hint: "no", path: "Prefer: wait" },
];

/** What the form knows while it is filled in. */
export interface Fields {
  readonly mode: Signal<"json" | "text">;
  readonly text: Signal<string>;
  readonly message: Signal<string>;
  readonly audience: Signal<Audience>;
  readonly deadline: Signal<string>;
  readonly options: Signal<Readonly<Record<OptionName, string>>>;
  readonly when: Signal<When>;
}

export function useFields(draft: Draft): Fields {
  const { text, to, deadline, where, type, key, attempts, remind, ttl, wait, when } = draft;
  return {
    mode: useSignal<"json" | "text">("json"),
    text: useSignal(text),
    message: useSignal(""),
    audience: useSignal<Audience>({ isAll: to === null, names: to ?? [], typed: "" }),
    deadline: useSignal(deadline),
    options: useSignal({ where, type, key, attempts, remind, ttl, wait }),
    when: useSignal(when),
  };
}

export const draftOf = ({ mode, text, message, audience, deadline, options, when }: Fields): Draft => ({
  ...options.value,
  when: when.value,
  text: mode.value === "json" ? text.value : JSON.stringify({ message: message.value }),
  to: addressedBy(audience.value),
  deadline: deadline.value,
});

/** Paths of faults that have a field. */
export const PLACED = [
  "to",
  "deadline",
  "body",
  "data",
  "at",
  "every",
  "tz",
  ...OPTIONS.map(({ name, path }) => path ?? name),
];

export function Data({ fields: { mode, text, message }, fault }: { readonly fields: Fields; readonly fault: string }) {
  const isJson = mode.value === "json";
  const change = (next: "json" | "text"): void => {
    if (next === "text") message.value = messageOf(text.value) ?? message.value;
    else if (message.value !== "") text.value = JSON.stringify({ message: message.value });
    mode.value = next;
  };
  return (
    <>
      <div class="labelled">
        <label for="push-data">{isJson ? "Data, as JSON" : "Message"}</label>
        <Segments
          label="What to type"
          name="mode"
          value={mode.value}
          choices={[
            ["json", "JSON"],
            ["text", "plain text"],
          ]}
          choose={(next) => change(next as "json" | "text")}
        />
      </div>
      <textarea
        id="push-data"
        rows={isJson ? 7 : 3}
        spellcheck={!isJson}
        value={isJson ? text.value : message.value}
        aria-invalid={fault === "" ? undefined : "true"}
        aria-describedby="push-fault"
        onInput={({ currentTarget }) => ((isJson ? text : message).value = currentTarget.value)}
      />
      <p id="push-fault" class={fault === "" ? "muted" : "fault"} role="status">
        {fault || (isJson ? "Valid JSON; it is sent unchanged." : 'Sent as {"message": …}.')}
      </p>
    </>
  );
}

/** The message in JSON that has nothing else; null: it is other JSON. */
function messageOf(text: string): string | null {
  if (jsonFault(text) !== "") return null;
  const value = JSON.parse(text) as { message?: unknown } | null;
  const isMessage = typeof value === "object" && value !== null && Object.keys(value).join() === "message";
  return isMessage && typeof value.message === "string" ? value.message : null;
}

const DEADLINES = [
  ["60", "1 min"],
  ["300", "5 min"],
  ["900", "15 min"],
  ["3600", "1 h"],
  ["", "none"],
] as const;
const OTHER = "other";

export function Deadline({ deadline, fault }: { readonly deadline: Signal<string>; readonly fault: string }) {
  const isOther = useSignal(!DEADLINES.some(([seconds]) => seconds === deadline.value));
  return (
    <div class="deadline">
      <p class="label" id="deadline-label">
        Deadline for the answers
      </p>
      <Segments
        label="Deadline for the answers"
        name="preset"
        value={isOther.value ? OTHER : deadline.value}
        choices={[...DEADLINES, [OTHER, "other"]]}
        choose={(value) => {
          isOther.value = value === OTHER;
          if (value !== OTHER) deadline.value = value;
        }}
      />
      {isOther.value && (
        <Field
          id="push-deadline"
          isNumber
          name="deadline"
          label="Seconds"
          hint="300"
          value={deadline.value}
          fault={fault}
          change={(value) => (deadline.value = value)}
        />
      )}
    </div>
  );
}

interface MoreProps {
  readonly options: Signal<Readonly<Record<OptionName, string>>>;
  readonly faultOf: (...paths: string[]) => string;
}

/** The options that few pushes need. It is open when one of them is used. */
export function More({ options, faultOf }: MoreProps) {
  const isUsed = Object.values(options.peek()).some((value) => value !== "");
  const hasFault = OPTIONS.some(({ name, path = name }) => faultOf(path) !== "");
  const isOpen = useSignal(isUsed);
  return (
    <details open={isOpen.value || hasFault} onToggle={({ currentTarget }) => (isOpen.value = currentTarget.open)}>
      <summary>More options</summary>
      <div class="fields">
        {OPTIONS.map(({ name, label, hint, help, path = name }) => (
          <Field
            key={name}
            id={`push-${name}`}
            isNumber={!["where", "type", "key"].includes(name)}
            name={name}
            label={label}
            hint={hint}
            help={help}
            value={options.value[name]}
            fault={faultOf(path)}
            change={(value) => (options.value = { ...options.peek(), [name]: value })}
          />
        ))}
      </div>
    </details>
  );
}
