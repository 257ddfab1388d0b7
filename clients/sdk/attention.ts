/**
 * `readAttention`: who did not do it, in all channels that the token may push to.
 */
import type { Tally } from "./model.ts";
import { notFromPere, objectOf } from "./errors.ts";
import type { ReadOptions } from "./reading.ts";
import { GIVE_UP_MS, repeat } from "./retry.ts";
import { ServiceClient } from "./service-client.ts";
import { isCount, isObject, isText } from "./values.ts";

/** What devices did not do, on kept events. */
export interface Troubles {
  /** Events that devices failed. */
  readonly failed: number;
  /** Events that devices are missing on. */
  readonly missing: number;
  /** Events without a deadline that devices have owed a final receipt for more than an hour. */
  readonly overdue: number;
}

/** What needs attention; each list is worst first. Times are ISO 8601. */
export interface Attention {
  /** When this was read. */
  readonly at: string;
  /** Of everything that the token may see, also of what the lists leave out. */
  readonly totals: Troubles & { readonly devices: number };
  readonly devices: readonly (Troubles & {
    readonly channel: string;
    readonly device: string;
    /** When the oldest of these events was pushed. */
    readonly since: string;
    readonly connected: boolean;
    /** Its last sign of life. */
    readonly seenAt: string | null;
  })[];
  readonly events: readonly {
    readonly id: string;
    readonly channel: string;
    readonly at: string;
    readonly type: string | null;
    readonly deadline: string | null;
    readonly receipts: Tally;
  }[];
  readonly hooks: readonly {
    readonly channel: string;
    readonly name: string;
    /** How many calls it gave up. */
    readonly givenUp: number;
    /** Why it is disabled; null: it is not. */
    readonly disabled: string | null;
  }[];
  readonly channels: readonly (Troubles & {
    readonly channel: string;
    readonly devices: number;
    readonly since: string;
  })[];
}

export interface AttentionOptions extends ReadOptions {
  /** The longest that each list may be, 1 to 1,000. The default is 100. */
  readonly limit?: number | undefined;
}

/** Reads what needs attention. @throws PereError when the service refuses; Error when there was no answer */
export function readAttention(options: AttentionOptions): Promise<Attention> {
  const { limit, signal = null, giveUpMs = GIVE_UP_MS } = options;
  const service = new ServiceClient(options);
  const address = `${service.base}/attention${limit === undefined ? "" : `?limit=${encodeURIComponent(limit)}`}`;
  const attempt = async (): Promise<Attention> => {
    const answer = objectOf(await service.ask(address, {}, signal, service.timing.requestMs));
    if (!isAttention(answer)) throw notFromPere();
    return answer as unknown as Attention;
  };
  return repeat(service, attempt, giveUpMs, signal);
}

const isTroubles = (value: unknown): boolean =>
  isObject(value) && [value.failed, value.missing, value.overdue].every(isCount);

/** Whether this is the answer of a service. */
function isAttention({ at, totals, devices, events, hooks, channels }: Record<string, unknown>): boolean {
  const areAll = (list: unknown, test: (item: Record<string, unknown>) => boolean): boolean =>
    Array.isArray(list) && list.every((item: unknown) => isObject(item) && test(item));
  return (
    isText(at) &&
    isTroubles(totals) &&
    areAll(devices, (item) => isTroubles(item) && isText(item.channel) && isText(item.device)) &&
    areAll(events, (item) => isText(item.id) && isText(item.channel) && isObject(item.receipts)) &&
    areAll(hooks, (item) => isText(item.channel) && isText(item.name)) &&
    areAll(channels, (item) => isTroubles(item) && isText(item.channel) && isCount(item.devices))
  );
}
