/** A schema as a list of members. What it refers to is shown when it is opened, because schemas may contain themselves. */
import { useSignal } from "@preact/signals";
import { type Document, nameOf, resolve, type Schema } from "./openapi.ts";
import { Inline } from "./prose.tsx";

interface SchemaProps {
  readonly document: Document;
  readonly schema: Schema;
}

/** The limits of a value, in words. */
function limitsOf(schema: Schema): string[] {
  const { minimum, maximum, minLength, maxLength, minItems, maxItems, pattern, default: usual, format } = schema;
  const range = (from: number | undefined, to: number | undefined, what: string): string[] =>
    from !== undefined && to !== undefined
      ? [`${from} to ${to}${what}`]
      : from !== undefined
        ? [`at least ${from}${what}`]
        : to !== undefined
          ? [`at most ${to}${what}`]
          : [];
  return [
    ...(format === undefined ? [] : [format]),
    ...range(minimum, maximum, ""),
    ...range(minLength, maxLength, " characters"),
    ...range(minItems, maxItems, " items"),
    ...(pattern === undefined ? [] : [`like ${pattern}`]),
    ...(usual === undefined ? [] : [`default ${JSON.stringify(usual)}`]),
  ];
}

/** The type of a value, in a few words. */
export function typeText(schema: Schema): string {
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices) return choices.map(typeText).join(" | ");
  if (schema.items) return `${typeText(schema.items)}[]`;
  return [schema.type ?? (schema.properties ? "object" : "any")].flat().join(" | ");
}

/** The schemas that a type refers to, or that it contains. */
function partsOf(schema: Schema): Schema[] {
  if (schema.$ref || schema.properties) return [schema];
  if (schema.items) return partsOf(schema.items);
  return (schema.oneOf ?? schema.anyOf ?? schema.allOf ?? []).flatMap(partsOf);
}

export function SchemaView({ document, schema }: SchemaProps) {
  const shown = resolve(document, schema);
  const limits = limitsOf(shown);
  return (
    <div class="schema">
      {shown.description && (
        <p>
          <Inline text={shown.description} />
        </p>
      )}
      {limits.length > 0 && <p class="muted small">{limits.join(", ")}</p>}
      {shown.properties ? (
        <ul>
          {Object.entries(shown.properties).map(([name, member]) => (
            <li key={name}>
              <code>{name}</code> <span class="muted small">{typeText(member)}</span>
              {shown.required?.includes(name) === false && <span class="muted small"> (optional)</span>}
              {!member.$ref && <Meaning schema={member} />}
              {partsOf(member).map((part, nth) => (
                <Folded key={nth} document={document} schema={part} />
              ))}
            </li>
          ))}
        </ul>
      ) : (
        <>
          {!schema.$ref || <p class="muted small">{typeText(shown)}</p>}
          {partsOf(shown)
            .filter((part) => part !== shown)
            .map((part, nth) => (
              <Folded key={nth} document={document} schema={part} />
            ))}
        </>
      )}
    </div>
  );
}

function Meaning({ schema }: { readonly schema: Schema }) {
  const limits = limitsOf(schema);
  return (
    <>
      {limits.length > 0 && <span class="muted small"> {limits.join(", ")}</span>}
      {schema.description && (
        <p class="small">
          <Inline text={schema.description} />
        </p>
      )}
    </>
  );
}

/** A schema behind its name. */
export function Folded({ document, schema }: SchemaProps) {
  const isOpen = useSignal(false);
  return (
    <details class="folded" onToggle={({ currentTarget }) => (isOpen.value = currentTarget.open)}>
      <summary>{typeText(schema)}</summary>
      {isOpen.value && <SchemaView document={document} schema={schema} />}
    </details>
  );
}
