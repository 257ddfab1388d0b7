/**
 * The hooks of a channel: URLs that PERE calls. One can be added, changed, tested and deleted, and each call that failed shows its attempts.
 */
import { useSignal } from "@preact/signals";
import { read, request, troubleText } from "./api.ts";
import { HookForm } from "./hook-form.tsx";
import { HookCalls } from "./hook-calls.tsx";
import { type Attempt, type Hook, isTested, pathOf } from "./hook-data.ts";
import { notify } from "./notices.tsx";
import { Question } from "./question.tsx";
import { useReading } from "./readings.ts";
import { Skeleton } from "./skeleton.tsx";
import { some, span } from "./words.ts";

/** Seconds after which the hooks are read again. */
const AGAIN_SECONDS = 3;

export function HooksPage({ channel }: { readonly channel: string }) {
  const { answer, trouble, again } = useReading<{ readonly hooks: readonly Hook[] }>(
    (signal) => read(`/hooks/${channel}`, "hooks", signal),
    AGAIN_SECONDS,
  );
  /** The name of the hook in the form; "": a new one; null: the form is closed. */
  const edited = useSignal<string | null>(null);
  if (answer.value === null) return trouble.value ? <p class="trouble">{trouble}</p> : <Skeleton />;
  const { hooks } = answer.value;
  const close = (): void => {
    edited.value = null;
    again();
  };
  return (
    <section class="hooks" aria-label="Hooks">
      {trouble.value && <p class="trouble">What you see may be out of date. {trouble}</p>}
      {hooks.length === 0 && edited.value === null && (
        <p class="empty">
          No hooks. A hook is a URL that PERE calls when receipts arrive, when devices failed or are missing, or when an
          event is complete.
        </p>
      )}
      {hooks.map((hook) =>
        edited.value === hook.name ? (
          <HookForm key={hook.name} channel={channel} hook={hook} close={close} />
        ) : (
          <HookArticle
            key={hook.name}
            channel={channel}
            hook={hook}
            change={() => (edited.value = hook.name)}
            again={again}
          />
        ),
      )}
      {edited.value === "" ? (
        <HookForm channel={channel} hook={null} close={close} />
      ) : (
        <button type="button" class={hooks.length === 0 ? "" : "plain"} onClick={() => (edited.value = "")}>
          Add a hook
        </button>
      )}
    </section>
  );
}

interface HookArticleProps {
  readonly channel: string;
  readonly hook: Hook;
  readonly change: () => void;
  /** Reads the hooks again. */
  readonly again: () => void;
}

function HookArticle({ channel, hook, change, again }: HookArticleProps) {
  const isAsking = useSignal(false);
  const { name, url, on, disabled, retrying, failed } = hook;
  const left = retrying.length + failed.length;
  return (
    <article class="hook" aria-label={`Hook ${name}`}>
      <h2>{name}</h2>
      <p>
        <code>{url}</code> <span class="muted">called for {on.join(", ")}</span>
      </p>
      {disabled !== null && (
        <p class="trouble">
          It is not called any more: {disabled}. Save it again, or send its calls again, to enable it.
        </p>
      )}
      <HookTest channel={channel} name={name} />
      <HookCalls channel={channel} hook={hook} again={again} />
      <ul class="actions" aria-label={`Actions for ${name}`}>
        <li>
          <button type="button" class="plain" onClick={change}>
            Change
          </button>
        </li>
        <li>
          <button type="button" class="danger" onClick={() => (isAsking.value = true)}>
            Delete
          </button>
        </li>
      </ul>
      {isAsking.value && (
        <Question
          title={`Delete the hook ${name}?`}
          action={`Delete ${name}`}
          run={() => request(pathOf(channel, name), { method: "DELETE" })}
          closed={(isDone) => {
            isAsking.value = false;
            if (isDone) notify("well", `The hook ${name} was deleted.`);
            again();
          }}
        >
          <p>
            PERE no longer calls <code>{url}</code> for {channel}.{" "}
            {left > 0 && `${some(left, "call")} that did not get through will not be sent again. `}
            Its secret is lost.
          </p>
        </Question>
      )}
    </article>
  );
}

/** Calls the hook's URL once, and shows what it answered. */
function HookTest({ channel, name }: { readonly channel: string; readonly name: string }) {
  const isCalling = useSignal(false);
  const answer = useSignal<Attempt | null>(null);
  const trouble = useSignal("");
  const call = async (): Promise<void> => {
    if (isCalling.peek()) return;
    [isCalling.value, answer.value, trouble.value] = [true, null, ""];
    try {
      answer.value = isTested(await (await request(`${pathOf(channel, name)}/test`, { method: "POST" })).json());
    } catch (error) {
      trouble.value = troubleText(error);
    }
    isCalling.value = false;
  };
  const { status = null, error = null, ms = 0, body = null } = answer.value ?? {};
  return (
    <>
      <button type="button" class="plain" aria-busy={isCalling.value} onClick={() => void call()}>
        {isCalling.value ? "Calling" : "Make a test call"}
      </button>
      <div role="status">
        {trouble.value && <p class="trouble">{trouble}</p>}
        {answer.value !== null && (
          <p class={status !== null && status >= 200 && status < 300 ? "well" : "trouble"}>
            {status === null
              ? `It did not answer: ${error}.`
              : `It answered with status ${status} after ${span(ms / 1000)}.`}
          </p>
        )}
        {body !== null && body !== "" && (
          <pre tabIndex={0} aria-label="Body of the answer">
            {body}
          </pre>
        )}
      </div>
    </>
  );
}
