/**
 * What the service sends, checked before it is believed: events, receipts, and the answers to receipts.
 */
import { foreign } from "./trouble.ts";
import { isCount, isObject, isText, partsOf } from "./values.ts";

/** What each log brings must have these members, as texts; and this one, whose text is kept beside it. */
const MEMBERS = {
  feed: { texts: ["id", "channel", "at"], value: "data" },
  feedback: { texts: ["id", "channel", "at", "event", "device", "status"], value: "detail" },
} as const;

/** What was pushed, or a receipt. @throws Blocked: it can be none of the service's */
export function entryOf(
  path: keyof typeof MEMBERS,
  text: string,
  value: unknown,
  channels: readonly string[],
): Record<string, unknown> {
  const { texts, value: member } = MEMBERS[path];
  if (!isObject(value) || !texts.every((name) => isText(value[name]))) throw foreign();
  if (!channels.includes(value.channel as string) || !(member in value)) throw foreign();
  return { ...value, text: partsOf(text).get(member) ?? "null" };
}

/** Whether an id, `<epoch>-<seq>`, comes after another one of its channel; what is of another life always does. */
export function isAhead(id: string, than = ""): boolean {
  const [[epoch, seq], [before, reached]] = [id.split("-"), than.split("-")];
  return epoch !== before || Number(seq) > Number(reached);
}

/** What the service answers to receipts. */
export interface ReceiptsAnswer {
  readonly rejected: readonly { index: number; reason: string }[];
}

/**
 * What the service answers to receipts. Each of them is accounted for, or it is no answer to these.
 * @param events what they are about @throws Blocked: it is another one's answer
 */
export function answerOf(value: unknown, events: readonly string[]): ReceiptsAnswer {
  if (!isObject(value) || !Array.isArray(value.rejected)) throw foreign();
  const { recorded, duplicate, rejected } = value;
  const isRight = rejected.every(
    (one) => isObject(one) && isCount(one.index) && one.event === events[one.index] && isText(one.reason),
  );
  if (!isRight || !isCount(recorded) || !isCount(duplicate)) throw foreign();
  if (recorded + duplicate + rejected.length !== events.length) throw foreign();
  return { rejected: rejected as ReceiptsAnswer["rejected"] };
}
