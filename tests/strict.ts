/**
 * Documents that are held to the service. Their schemas let answers say more than they declare, because a later version may; what this version says must be declared, so
 * tests hold it to a stricter copy.
 */

/** The same schemas, with no member allowed that is not declared. @param value a document, or any part of one */
export function strictCopy(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(strictCopy);
  if (typeof value !== "object" || value === null) return value;
  const copy = Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, strictCopy(inner)]));
  return copy.type === "object" && copy.properties && copy.additionalProperties === undefined
    ? { ...copy, additionalProperties: false }
    : copy;
}
