/** The form that adds a hook or changes one. A secret that PERE makes is shown once, when the hook was stored. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { type Fault, Refused, request, troubleText } from "./api.ts";
import { Copy } from "./copy.tsx";
import { Field } from "./fields.tsx";
import { type Hook, KINDS, pathOf } from "./hook-data.ts";
import { notify } from "./notices.tsx";

interface HookFormProps {
  readonly channel: string;
  /** null: a new one. */
  readonly hook: Hook | null;
  readonly close: () => void;
}

export function HookForm({ channel, hook, close }: HookFormProps) {
  const name = useSignal(hook?.name ?? "");
  const url = useSignal(hook?.url ?? "");
  const on = useSignal<readonly string[]>(hook?.on ?? ["complete", "missing"]);
  const secret = useSignal("");
  const made = useSignal<string | null>(null);
  const isSending = useSignal(false);
  const trouble = useSignal("");
  const faults = useSignal<readonly Fault[]>([]);
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => form.current?.querySelector("input")?.focus(), []);
  const faultOf = (path: string): string => faults.value.find((fault) => fault.path === path)?.message ?? "";
  const save = async (): Promise<void> => {
    if (isSending.peek()) return;
    [isSending.value, trouble.value, faults.value] = [true, "", []];
    const body = { url: url.value, on: on.value, ...(secret.value === "" ? {} : { secret: secret.value }) };
    try {
      if (name.value === "") throw fault("name", "Give the hook a name.");
      if (on.value.length === 0) throw fault("on", "Choose at least one kind of call.");
      const answer = await request(pathOf(channel, name.value), {
        method: "PUT",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
      });
      const stored = (await answer.json()) as { secret?: string };
      if (typeof stored.secret === "string") made.value = stored.secret;
      else {
        notify("well", `The hook ${name.value} was saved.`);
        close();
      }
    } catch (error) {
      if (error instanceof Refused)
        faults.value = error.faults.map(({ path, message }) => ({ path, message: troubleText(new Error(message)) }));
      const isPlaced = faults.value.some(({ path }) => ["name", "url", "on", "secret"].includes(path));
      trouble.value = isPlaced ? "" : troubleText(error);
    }
    isSending.value = false;
  };
  if (made.value !== null) return <Made name={name.value} secret={made.value} close={close} />;
  return (
    <form
      ref={form}
      class="hook"
      noValidate
      aria-label={hook === null ? "New hook" : `Change ${hook.name}`}
      onSubmit={(event) => {
        event.preventDefault();
        void save();
      }}
    >
      {hook === null ? (
        <Field
          id="hook-name"
          name="name"
          label="Name"
          hint="backoffice"
          value={name.value}
          fault={faultOf("name")}
          change={(text) => (name.value = text)}
        />
      ) : (
        <h2>{hook.name}</h2>
      )}
      <Field
        id="hook-url"
        name="url"
        label="URL"
        hint="https://shop.example/pere"
        value={url.value}
        fault={faultOf("url")}
        change={(text) => (url.value = text)}
      />
      <fieldset>
        <legend>When to call it</legend>
        {KINDS.map(([kind, meaning]) => (
          <label key={kind} class="inline">
            <input
              type="checkbox"
              checked={on.value.includes(kind)}
              onChange={({ currentTarget: { checked } }) =>
                (on.value = checked ? [...on.value, kind] : on.value.filter((one) => one !== kind))
              }
            />
            {kind} <span class="muted">{meaning}</span>
          </label>
        ))}
        <p class="fault" role="status">
          {faultOf("on")}
        </p>
      </fieldset>
      <Field
        id="hook-secret"
        name="secret"
        label="Secret that signs the calls"
        hint={hook === null ? "leave empty: PERE makes one" : "leave empty: it stays as it is"}
        value={secret.value}
        fault={faultOf("secret")}
        change={(text) => (secret.value = text)}
      />
      <p class="trouble" role="alert">
        {trouble}
      </p>
      <p class="row">
        <button aria-busy={isSending.value}>Save</button>
        <button type="button" class="plain" onClick={close}>
          Cancel
        </button>
      </p>
    </form>
  );
}

const fault = (path: string, message: string): Refused => new Refused(0, message, false, [{ path, message }]);

/** The secret, which the service shows only once. */
function Made({ name, secret, close }: { readonly name: string; readonly secret: string; readonly close: () => void }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  return (
    <section class="hook" aria-labelledby="hook-made">
      <h2 id="hook-made" ref={heading} tabIndex={-1}>
        The hook {name} was saved
      </h2>
      <p>Copy its secret now: it is not shown again. The receiver checks with it that a call comes from PERE.</p>
      <pre tabIndex={0} aria-label="Secret">
        {secret}
      </pre>
      <Copy text={secret} />
      <p class="row">
        <button type="button" onClick={close}>
          I have it
        </button>
      </p>
    </section>
  );
}
