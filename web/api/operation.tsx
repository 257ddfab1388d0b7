/** One operation: what it takes and answers, and a form that tries it. */
import { useSignal } from "@preact/signals";
import { useId, useMemo } from "preact/hooks";
import { prettyJson } from "../console/words.ts";
import { type Content, type Document, type Parameter, type Place } from "./openapi.ts";
import { type Reply, resolve, type Schema } from "./openapi.ts";
import { Inline, Prose } from "./prose.tsx";
import { type Answered, bodyText, curlOf, type Draft, prepare, type Prepared, send } from "./request.ts";
import { Folded } from "./schema.tsx";
import { token } from "./token.tsx";

interface OperationProps {
  readonly document: Document;
  readonly place: Place;
}

export function OperationView({ document, place }: OperationProps) {
  const { operation } = place;
  return (
    <div class="operation-body">
      {operation.description && <Prose text={operation.description} />}
      <TryForm document={document} place={place} />
      <h4>Answers</h4>
      <ul class="answers">
        {Object.entries(operation.responses).map(([status, reply]) => (
          <Answer key={status} document={document} status={status} reply={resolve<Reply>(document, reply)} />
        ))}
      </ul>
    </div>
  );
}

interface AnswerProps {
  readonly document: Document;
  readonly status: string;
  readonly reply: Reply;
}

function Answer({ document, status, reply }: AnswerProps) {
  return (
    <li>
      <strong>{status}</strong>{" "}
      <span>
        <Inline text={reply.description} />
      </span>
      {Object.entries(reply.content ?? {}).map(([type, media]) => (
        <div key={type} class="media">
          <code>{type}</code>
          {media.schema && <Folded document={document} schema={media.schema} />}
          {Object.entries(media.examples ?? {}).map(([name, { summary, value }]) => (
            <details key={name} class="folded">
              <summary>
                Example{summary && ": "}
                {summary && (
                  <span>
                    <Inline text={summary} />
                  </span>
                )}
              </summary>
              <pre tabIndex={0}>{bodyText(type, value)}</pre>
            </details>
          ))}
        </div>
      ))}
    </li>
  );
}

// ---------------------------------------------------------------------------------------------------------------- trying

const textOf = (example: unknown): string => (example === undefined ? "" : [example].flat().join(","));
const keyOf = ({ in: where, name }: Parameter): string => `${where} ${name}`;

/** The media types that a request may ask for; JSON first, because a stream has no end. */
function acceptsOf(document: Document, { operation }: Place): string[] {
  const [, reply] = Object.entries(operation.responses).find(([status]) => status.startsWith("2")) ?? [];
  const types = Object.keys((reply && resolve<Reply>(document, reply).content) ?? {});
  return types.sort((one, other) => Number(other === "application/json") - Number(one === "application/json"));
}

type Shown = { readonly request: Prepared } & ({ readonly answer: Answered } | { readonly error: string });

function TryForm({ document, place }: OperationProps) {
  const { operation } = place;
  const parameters = operation.parameters ?? [];
  const accepts = useMemo(() => acceptsOf(document, place), [place]);
  const values = useSignal<Readonly<Record<string, string>>>(
    Object.fromEntries(parameters.map((one) => [keyOf(one), textOf(one.example)])),
  );
  const accept = useSignal(accepts[0] ?? null);
  const body = useSignal<Draft["body"]>(null);
  const shown = useSignal<Shown | null>(null);
  const isBusy = useSignal(false);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    if (isBusy.value) return;
    isBusy.value = true;
    const filled = parameters.map((one) => [one.in, one.name, values.value[keyOf(one)] ?? ""] as const);
    const draft = {
      parameters: filled.filter(([, , value]) => value !== ""),
      accept: accept.value,
      body: body.value,
      token: token.value,
    };
    const request = prepare(place, draft);
    try {
      shown.value = { request, answer: await send(request) };
    } catch (error) {
      shown.value = { request, error: `The request was not answered: ${(error as Error).message}` };
    } finally {
      isBusy.value = false;
    }
  };
  return (
    <form class="try" onSubmit={submit} aria-label={`Try: ${operation.summary}`}>
      <h4>Try it</h4>
      {parameters.map((one) => (
        <Field
          key={keyOf(one)}
          parameter={one}
          schema={one.schema && resolve<Schema>(document, one.schema)}
          value={values.value[keyOf(one)]!}
          change={(value) => (values.value = { ...values.value, [keyOf(one)]: value })}
        />
      ))}
      {operation.requestBody && (
        <Body document={document} content={operation.requestBody.content} change={(value) => (body.value = value)} />
      )}
      {accepts.length > 1 && (
        <label>
          Answer as
          <select onChange={({ currentTarget }) => (accept.value = currentTarget.value)}>
            {accepts.map((type) => (
              <option key={type} value={type}>
                {type}
              </option>
            ))}
          </select>
        </label>
      )}
      <button class="send" aria-disabled={isBusy.value}>
        Send
      </button>
      <div class="outcome" role="status">
        {isBusy.value ? <p>Waiting for the answer…</p> : shown.value && <Outcome shown={shown.value} />}
      </div>
    </form>
  );
}

interface FieldProps {
  readonly parameter: Parameter;
  readonly schema: Schema | undefined;
  readonly value: string;
  readonly change: (value: string) => void;
}

function Field({ parameter: { name, in: where, required = false, description }, schema, value, change }: FieldProps) {
  const hint = useId();
  const common = { required, "aria-describedby": hint, value };
  return (
    <div class="field">
      <label>
        <code>{name}</code> <span class="muted small">{where === "path" ? "in the path" : where}</span>
        {schema?.enum ? (
          <select {...common} onChange={({ currentTarget }) => change(currentTarget.value)}>
            {!required && <option value="" />}
            {schema.enum.map((choice) => (
              <option key={String(choice)} value={String(choice)}>
                {String(choice)}
              </option>
            ))}
          </select>
        ) : (
          <input
            {...common}
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            onInput={({ currentTarget }) => change(currentTarget.value)}
          />
        )}
      </label>
      <p id={hint} class="hint">
        <Inline text={description ?? ""} />
      </p>
    </div>
  );
}

interface BodyProps {
  readonly document: Document;
  readonly content: Content;
  readonly change: (body: Draft["body"]) => void;
}

/** The request's body: an example, which can be edited. */
function Body({ document, content, change }: BodyProps) {
  const examples = Object.entries(content).flatMap(([type, { examples: given = {} }]) =>
    Object.entries(given).map(([name, { summary = name, value }]) => ({ type, summary, text: bodyText(type, value) })),
  );
  const nth = useSignal(0);
  const text = useSignal(examples[0]?.text ?? "");
  const { type = Object.keys(content)[0]! } = examples[nth.value] ?? {};
  useMemo(() => change({ type, text: text.value }), [type, text.value]);
  const schema = content[type]?.schema;
  return (
    <div class="field">
      {examples.length > 1 && (
        <label>
          Example
          <select
            value={nth.value}
            onChange={({ currentTarget }) => {
              nth.value = Number(currentTarget.value);
              text.value = examples[nth.value]!.text;
            }}
          >
            {examples.map(({ summary }, place) => (
              <option key={place} value={place}>
                {summary.replaceAll("`", "")}
              </option>
            ))}
          </select>
        </label>
      )}
      <label>
        Body <span class="muted small">{type}</span>
        <textarea
          rows={Math.min(12, text.value.split("\n").length + 1)}
          spellcheck={false}
          value={text.value}
          onInput={({ currentTarget }) => (text.value = currentTarget.value)}
        />
      </label>
      {schema && <Folded document={document} schema={schema} />}
    </div>
  );
}

function Outcome({ shown }: { readonly shown: Shown }) {
  return (
    <>
      {"error" in shown ? (
        <p class="trouble">{shown.error}</p>
      ) : (
        <>
          <p>
            <strong class={shown.answer.isOk ? "well" : "trouble"}>{shown.answer.status}</strong>{" "}
            <span class="muted small">
              after {shown.answer.milliseconds} ms{shown.answer.isCut && ", the first two seconds of the stream"}
            </span>
          </p>
          {shown.answer.status.startsWith("401") && <p>Paste a token at the top of the page.</p>}
          {shown.answer.text !== "" && (
            <pre tabIndex={0} aria-label="Answer">
              {shown.answer.isJson ? prettyJson(shown.answer.text) : shown.answer.text}
            </pre>
          )}
          <details class="folded">
            <summary>Headers</summary>
            <pre tabIndex={0}>{shown.answer.headers.map((pair) => pair.join(": ")).join("\n")}</pre>
          </details>
        </>
      )}
      <details class="folded">
        <summary>As curl</summary>
        <pre tabIndex={0}>{curlOf(shown.request)}</pre>
      </details>
    </>
  );
}
