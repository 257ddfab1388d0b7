/**
 * The push form: checks the text while it is typed, sends it unchanged, and shows the equivalent `curl` command.
 */
import { useSignal } from "@preact/signals";
import { addressOf, Refused, request, type Tally } from "./api.ts";
import { queryOf } from "./floor.ts";
import { linkTo } from "./router.ts";
import { count, shellWord, some, tallyText } from "./words.ts";

/** The options of a push as typed; empty ones are not sent. */
interface Options {
  readonly type: string;
  readonly to: string;
  readonly ttl: string;
  readonly deadline: string;
  readonly remind: string;
  readonly wait: string;
}

interface Field {
  readonly name: keyof Options;
  readonly label: string;
  readonly hint: string;
  readonly pattern: string;
}

const SECONDS = "[0-9]{1,12}(\\.[0-9]{1,6})?";
const FIELDS: readonly Field[] = [
  {
    name: "type",
    label: "Type",
    hint: "order.created",
    pattern: "(?!(?:open|message|error)$|pere\\.)[A-Za-z0-9._\\-]{1,64}",
  },
  { name: "to", label: "To", hint: "all devices", pattern: "[A-Za-z0-9._:~,\\-]+" },
  { name: "deadline", label: "Deadline, s", hint: "none", pattern: SECONDS },
  { name: "remind", label: "Remind every, s", hint: "never", pattern: SECONDS },
  { name: "ttl", label: "Expires after, s", hint: "never", pattern: SECONDS },
  { name: "wait", label: "Wait for receipts, s", hint: "no", pattern: SECONDS },
];

/** The answer to a push. */
interface Pushed {
  readonly id: string;
  readonly audience: { readonly addressed: number; readonly connected: number };
  readonly receipts?: Tally;
  readonly complete?: boolean;
}

/** Why a text is not JSON, with the place if it is known; "": it is JSON. */
function jsonFault(text: string): string {
  if (text.trim() === "") return "Type one JSON value: an object, an array, a string in quotes or a number.";
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

/** The path, query and headers of a push. @throws if an option can't be encoded: without it, it would be another push */
function pushOf(channel: string, { wait, ...options }: Options): { path: string; headers: Record<string, string> } {
  return {
    path: `/push/${channel}${queryOf(Object.entries(options).filter(([, value]) => value !== ""))}`,
    headers: { "Content-Type": "application/json", ...(wait === "" ? {} : { Prefer: `wait=${wait}` }) },
  };
}

function curlLine(channel: string, options: Options, text: string): string {
  try {
    const { path, headers } = pushOf(channel, options);
    const named = Object.entries(headers).map(([name, value]) => `  -H ${shellWord(`${name}: ${value}`)} \\\n`);
    return `curl -X POST ${shellWord(addressOf(path))} \\\n${named.join("")}  --data-raw ${shellWord(text)}`;
  } catch (error) {
    return `The command can't be shown: ${String(error)}`;
  }
}

/** Sends a push. @returns the answer, or a sentence if the outcome is unknown @throws Refused */
async function sent(path: string, init: RequestInit & { headers: Record<string, string> }): Promise<Pushed | string> {
  try {
    const answer = (await (await request(path, init)).json()) as Pushed | null;
    if (typeof answer?.id === "string" && typeof answer.audience?.addressed === "number") return answer;
  } catch (error) {
    if (error instanceof Refused) throw error;
  }
  return "PERE did not answer. The event may or may not have been stored; check the board before you push again.";
}

const NO_OPTIONS: Options = { type: "", to: "", ttl: "", deadline: "", remind: "", wait: "" };

export function PushPage({ channel }: { readonly channel: string }) {
  const text = useSignal('{"order": "A-1001", "table": 7}');
  const options = useSignal(NO_OPTIONS);
  const isSending = useSignal(false);
  const outcome = useSignal<Pushed | string | null>(null);
  const fault = jsonFault(text.value);
  const send = async (): Promise<void> => {
    isSending.value = true;
    outcome.value = null;
    try {
      const { path, headers } = pushOf(channel, options.value);
      outcome.value = await sent(path, { method: "POST", headers, body: text.value });
    } catch (error) {
      outcome.value = error instanceof Refused ? error.message : `Nothing was sent: ${String(error)}`;
    }
    isSending.value = false;
  };
  return (
    <form
      class="push"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <label for="push-data">Data, as JSON</label>
      <textarea
        id="push-data"
        rows={7}
        spellcheck={false}
        value={text.value}
        aria-invalid={fault === "" ? undefined : "true"}
        aria-describedby="push-fault"
        onInput={({ currentTarget }) => (text.value = currentTarget.value)}
      />
      <p id="push-fault" class={fault === "" ? "muted" : "trouble"} role="status">
        {fault === "" ? "Valid JSON; it is sent unchanged." : fault}
      </p>
      <div class="fields">
        {FIELDS.map(({ name, label, hint, pattern }) => (
          <label key={name}>
            {label}
            <input
              name={name}
              value={options.value[name]}
              placeholder={hint}
              pattern={pattern}
              autocomplete="off"
              spellcheck={false}
              onInput={({ currentTarget }) => (options.value = { ...options.value, [name]: currentTarget.value })}
            />
          </label>
        ))}
      </div>
      <p>
        <button disabled={fault !== "" || isSending.value} aria-busy={isSending.value}>
          {isSending.value ? (options.value.wait === "" ? "Pushing" : "Waiting for receipts") : `Push to ${channel}`}
        </button>
      </p>
      <div role="status">{outcome.value !== null && <Outcome channel={channel} outcome={outcome.value} />}</div>
      <details open>
        <summary>The same with curl</summary>
        <pre tabIndex={0} aria-label="curl command">
          {curlLine(channel, options.value, text.value)}
        </pre>
      </details>
    </form>
  );
}

function Outcome({ channel, outcome }: { readonly channel: string; readonly outcome: Pushed | string }) {
  if (typeof outcome === "string") return <p class="trouble">{outcome}</p>;
  const { id, audience, receipts } = outcome;
  return (
    <p class="well">
      Stored as <a href={linkTo(channel, "event", id)}>{id}</a>, addressed to {some(audience.addressed, "device")},{" "}
      {count(audience.connected)} connected.{receipts && ` ${tallyText(receipts, audience.addressed)}.`}{" "}
      <a href={linkTo(channel)}>See it on the board</a>
    </p>
  );
}
