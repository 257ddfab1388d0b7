/**
 * The OpenAPI document as tests read it: its operations, and the requests that they describe, with the examples that they give.
 */
export interface Media {
  readonly schema: object;
  readonly examples?: Record<string, { readonly value: unknown }>;
}
export interface Reply {
  readonly $ref?: string;
  readonly description: string;
  readonly headers?: Record<string, object>;
  readonly content?: Record<string, Media>;
}
export interface Parameter {
  readonly name: string;
  readonly in: string;
  readonly description: string;
  readonly example?: unknown;
}
export interface Operation {
  readonly operationId: string;
  readonly security?: readonly object[];
  readonly summary: string;
  readonly tags: string[];
  readonly parameters?: Parameter[];
  readonly requestBody?: { readonly content: Record<string, Media> };
  readonly responses: Record<string, Reply>;
}
export interface Document {
  readonly openapi: string;
  readonly info: { readonly version: string };
  readonly tags: { readonly name: string }[];
  readonly paths: Record<string, Record<string, Operation>>;
  readonly security: readonly object[];
  readonly components: {
    readonly responses: Record<string, Reply>;
    readonly schemas: Record<string, object>;
    readonly securitySchemes: Record<string, object>;
  };
}

/** An operation, and where it is. */
export interface Place {
  readonly path: string;
  readonly method: string;
  readonly operation: Operation;
}

/** Every operation by its id, in the document's order. */
export const operationsOf = ({ paths }: Document): Map<string, Place> =>
  new Map(
    Object.entries(paths).flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]) => [
        operation.operationId,
        { path, method: method.toUpperCase(), operation },
      ]),
    ),
  );

export interface Asking {
  /** Of the request's body: its media type, and the name of an example or a body of one's own. */
  readonly type?: string;
  readonly example?: string;
  readonly body?: string | Uint8Array;
  /** In place of the parameters' examples; null leaves one out. */
  readonly parameters?: Record<string, string | null>;
  readonly headers?: Record<string, string>;
}

/** The request that an operation describes. @param real puts what a service made up in the place of what examples have */
export function describedRequest(
  { path, method, operation }: Place,
  asking: Asking,
  base: string,
  real: (text: string) => string,
) {
  const query = new URLSearchParams();
  const headers: Record<string, string> = { ...asking.headers };
  let where = path;
  for (const { name, in: place, example } of operation.parameters ?? []) {
    const given = asking.parameters?.[name];
    const value = given === undefined && example !== undefined ? real([example].flat().join(",")) : (given ?? null);
    if (place === "path") where = where.replace(`{${name}}`, encodeURIComponent(value!));
    else if (value !== null && place === "query") query.set(name, value);
    else if (value !== null && name.toLowerCase() !== "device") headers[name] = value;
  }
  let body = asking.body;
  if (asking.example) {
    const { value } = operation.requestBody!.content[asking.type!]!.examples![asking.example]!;
    body = real(
      asking.type === "application/x-www-form-urlencoded"
        ? String(new URLSearchParams(value as Record<string, string>))
        : asking.type === "application/x-ndjson"
          ? String(value)
          : JSON.stringify(value),
    );
  }
  const url = `${base}${where}${query.size > 0 ? `?${query}` : ""}`;
  return { url, init: { method, headers, ...(body === undefined ? {} : { body, type: asking.type ?? "" }) } };
}

/**
 * The same schemas, with no member allowed that is not declared. Answers may say more in a later version; what this one says must be declared.
 * @param value a document, or any part of one
 */
export function strictCopy(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(strictCopy);
  if (typeof value !== "object" || value === null) return value;
  const copy = Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, strictCopy(inner)]));
  return copy.type === "object" && copy.properties && copy.additionalProperties === undefined
    ? { ...copy, additionalProperties: false }
    : copy;
}
