/**
 * What a device stores: the receipts in its outbox and the events that it has finished. Read back, each field is checked.
 */
import { isWord, type Receipt, type Word } from "./model.ts";
import { isObject, isText } from "./values.ts";

/** What one device remembers, as it is kept. */
export interface Kept {
  readonly version: 1;
  /** Finished events that the service has the receipts of, oldest first. */
  readonly settled: readonly (readonly [id: string, status: Word])[];
  readonly outbox: readonly Receipt[];
  /** Where an anonymous feed goes on; a named one is told by the service. */
  readonly last: string;
}

/** What was kept, as far as it is what a device keeps. */
export function keptOf(kept: unknown): Kept {
  const { settled, outbox, last } = isObject(kept) && kept.version === 1 ? kept : {};
  const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
  return {
    version: 1,
    settled: list(settled).filter(
      (one): one is [string, Word] => Array.isArray(one) && isText(one[0]) && isWord(one[1]),
    ),
    outbox: list(outbox).filter(
      (one): one is Receipt => isObject(one) && isText(one.event) && isText(one.channel) && isWord(one.status),
    ),
    last: typeof last === "string" ? last : "",
  };
}
