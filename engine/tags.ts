/**
 * Tags: what a publisher or a token says of a device, as names with values; and `where`, which addresses an event to the devices whose tags fit.
 *
 * `where` is a list of terms, comma separated, that must all hold: `name` (the device has the tag), `name:a|b` (it has one of these values), and either
 * with `!` before it (it is not so, also without the tag). Stores evaluate it with their own means; `fits` says what it means.
 */
import { PereError } from "./model.ts";

/** Tags per device. */
export const TAGS_MAX = 16;
/** Terms of a `where`, and values of a term: each is a look-up per device. */
export const TERMS_MAX = 32;
export const VALUES_MAX = 256;
/**
 * Devices that a `where` may fit, times lines of the batch: each is a row in one commit, which other requests wait for.
 */
export const WHERE_DEVICES_MAX = 100_000;

export const TAG = /^[A-Za-z0-9._~-]{1,64}$/;
/** What a name or a value may be, for messages. */
const FORM = "1 to 64 of A-Z a-z 0-9 . _ ~ -";
/** The value of a tag that is given as a name alone. */
const PLAIN_VALUE = "1";

/** A device's tags by name. A map, because `__proto__` is a name like any other. */
export type Tags = ReadonlyMap<string, string>;
export const NO_TAGS: Tags = new Map();

/** One term of a `where`. `values` null: any value. */
export interface Term {
  readonly name: string;
  readonly values: readonly string[] | null;
  readonly isNot: boolean;
}

const fault = (code: "malformed" | "refused", path: string, message: string): PereError =>
  new PereError(code, `${path}: ${message}`, [{ path, message }]);
const quoted = (value: unknown): string => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
};

/** @throws PereError malformed: it has no terms, or one of another form; refused: there are too many */
export function readWhere(text: string): Term[] {
  if (text === "") throw fault("malformed", "where", "is empty; give terms, for example site:rome|milan,!beta");
  const parts = text.split(",");
  if (parts.length > TERMS_MAX)
    throw fault("refused", "where", `has ${parts.length} terms; at most ${TERMS_MAX} are allowed`);
  return parts.map((part) => {
    const [, not, name, list] = /^(!?)([^:]*)(?::(.*))?$/.exec(part) ?? [];
    const values = list === undefined ? null : [...new Set(list.split("|"))];
    if (name === undefined || !TAG.test(name) || values?.some((value) => !TAG.test(value)))
      throw fault(
        "malformed",
        "where",
        `${quoted(part)} is not a term; a term is name or name:value|value, each ${FORM}, with ! before it for not`,
      );
    if (values && values.length > VALUES_MAX)
      throw fault("refused", "where", `${name} has ${values.length} values; at most ${VALUES_MAX} are allowed`);
    return { name, values, isNot: not === "!" };
  });
}

/** The error for a push that would store too many names. */
export const tooManyFit = (where: string, devices: number, lines: number): PereError =>
  fault(
    "refused",
    "where",
    lines === 1
      ? `${quoted(where)} fits ${devices} devices, at most ${WHERE_DEVICES_MAX} are allowed; use several channels`
      : `${quoted(where)} fits ${devices} devices; that times ${lines} lines must be at most ${WHERE_DEVICES_MAX}; send several requests`,
  );

/** Whether a device with these tags is addressed. */
export const fits = (terms: readonly Term[], tags: Tags): boolean =>
  terms.every(({ name, values, isNot }) => {
    const value = tags.get(name);
    return (value !== undefined && (values === null || values.includes(value))) !== isNot;
  });

function checked(path: string, name: string, value: unknown): string {
  if (!TAG.test(name)) throw fault("malformed", path, `${quoted(name)} is not a tag's name; a name is ${FORM}`);
  if (typeof value === "string" && TAG.test(value)) return value;
  throw fault("malformed", path, `${quoted(value)} is not a value of the tag ${name}; a value is a string of ${FORM}`);
}

/** @throws PereError refused: there are too many */
function limited(path: string, tags: Tags): Tags {
  if (tags.size <= TAGS_MAX) return tags;
  throw fault("refused", path, `a device has at most ${TAGS_MAX} tags, not ${tags.size}`);
}

/** Tags as in a feed's query: `site:rome,beta`; a name alone has the value `1`. Empty: none. @throws PereError malformed, refused */
export function readTagList(text: string): Tags {
  const tags = new Map<string, string>();
  for (const part of text === "" ? [] : text.split(",")) {
    const at = part.indexOf(":");
    const [name, value] = at === -1 ? [part, PLAIN_VALUE] : [part.slice(0, at), part.slice(at + 1)];
    if (tags.has(name)) throw fault("malformed", "tags", `the tag ${name} is given twice`);
    tags.set(name, checked("tags", name, value));
  }
  return limited("tags", tags);
}

/** Tags as in JSON: an object with strings. @throws PereError malformed, refused */
export function readTags(value: unknown, path = "tags"): Tags {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw fault("malformed", path, `must be an object, for example {"site":"rome"}, not ${quoted(value)}`);
  return limited(path, new Map(Object.entries(value).map(([name, one]) => [name, checked(path, name, one)])));
}

/** How a device's tags change: what it gets, null: the tag is removed. `isAll`: it has no others then. */
export interface TagChange {
  readonly isAll: boolean;
  readonly tags: ReadonlyMap<string, string | null>;
}

/** The error for a change after which a device would have too many tags. */
export const tooManyTags = (count: number): PereError =>
  fault("refused", "tags", `a device has at most ${TAGS_MAX} tags, not ${count}`);

/** The tags after a change. @throws PereError refused: there are too many */
export function changed(before: Tags, { isAll, tags }: TagChange): Tags {
  const after = new Map(isAll ? [] : before);
  for (const [name, value] of tags)
    if (value === null) after.delete(name);
    else after.set(name, value);
  if (after.size > TAGS_MAX) throw tooManyTags(after.size);
  return after;
}

/** A change of some tags (RFC 7396): null removes a tag, or all of them. @throws PereError malformed */
export function readTagPatch(value: unknown): TagChange {
  if (value === null) return { isAll: true, tags: NO_TAGS };
  if (typeof value !== "object" || Array.isArray(value))
    throw fault(
      "malformed",
      "tags",
      `must be an object, for example {"site":"rome","beta":null}, not ${quoted(value)}`,
    );
  const changes = Object.entries(value).map(
    ([name, one]) =>
      [name, one === null ? (checked("tags", name, PLAIN_VALUE), null) : checked("tags", name, one)] as const,
  );
  return { isAll: false, tags: new Map(changes) };
}

/** Tags as one text, by name: `model:x2,site:rome`; empty: none. */
export const tagsText = (tags: Tags): string =>
  [...tags]
    .map(([name, value]) => `${name}:${value}`)
    .sort()
    .join();

/** The tags in a text of `tagsText`. */
export const tagsOf = (text: string): Tags =>
  text === "" ? NO_TAGS : new Map(text.split(",").map((one) => one.split(":") as [string, string]));

/** Tags as in the API, by name. */
export const tagsJson = (tags: Tags): Record<string, string> =>
  Object.fromEntries([...tags].sort(([a], [b]) => (a < b ? -1 : 1)));
