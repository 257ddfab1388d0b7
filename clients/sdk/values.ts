/**
 * Checks of values from outside, and parts of JSON as text, in which numbers that JavaScript would round are as they were written.
 */

export const isText = (value: unknown): value is string => typeof value === "string" && value !== "";

export const isCount = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 0;

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Parses JSON. @returns undefined when it is not JSON */
export function jsonOf(text: string, parse: (text: string) => unknown = JSON.parse): unknown {
  try {
    return parse(text);
  } catch {
    return undefined;
  }
}

/** The members of a JSON object by name, or the elements of an array by index, each as its JSON text. @param json valid JSON */
export function partsOf(json: string): Map<string, string> {
  const parts = new Map<string, string>();
  let [depth, start, name] = [0, 0, ""];
  const end = (at: number): void => {
    const text = json.slice(start, at).trim();
    if (text !== "") parts.set(name === "" ? String(parts.size) : name, text);
    [start, name] = [at + 1, ""];
  };
  for (let at = 0; at < json.length; at++) {
    const mark = json[at];
    if (mark === '"')
      do at = endOf(json, at + 1);
      while (isEscaped(json, at));
    else if (mark === "{" || mark === "[") depth++ === 0 && (start = at + 1);
    else if (mark === "}" || mark === "]") --depth === 0 && end(at);
    else if (mark === "," && depth === 1) end(at);
    else if (mark === ":" && depth === 1 && name === "") {
      name = String(jsonOf(json.slice(start, at)));
      start = at + 1;
    }
  }
  return parts;
}

/** The position of the next quotation mark. */
function endOf(json: string, from: number): number {
  const at = json.indexOf('"', from);
  return at === -1 ? json.length : at;
}

/** Whether an odd number of backslashes comes before this position. */
function isEscaped(json: string, at: number): boolean {
  let before = at;
  while (json[before - 1] === "\\") before--;
  return at < json.length && (at - before) % 2 === 1;
}

/** The depth to which a JSON text is nested. */
export function depthOf(text: string): number {
  let [depth, deepest] = [0, 0];
  for (const [mark] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{}]/g)) {
    if (mark === "[" || mark === "{") deepest = Math.max(deepest, ++depth);
    else if (mark === "]" || mark === "}") depth--;
  }
  return deepest;
}
