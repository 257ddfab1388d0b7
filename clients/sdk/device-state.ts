/**
 * What a device remembers: the events that it has finished, and where an anonymous feed continues. It is stored together with the outbox.
 */
import { messageWithCauses } from "./errors.ts";
import { isOutcome, isWord, type Outcome, type Receipt, roundOf } from "./model.ts";
import type { DeviceStorage } from "./storage.ts";
import { isCount, isObject, isText, jsonOf } from "./values.ts";

/** Finished events that are remembered after the service has their receipts. It does not send them again, so the newest are enough. */
const SETTLED_MAX = 2_000;

/** What became of an event in a round: its last receipt. */
export interface Ended {
  readonly status: Outcome;
  readonly round: number;
  readonly detail?: unknown;
  readonly after?: number | undefined;
  readonly retry?: false | undefined;
}

/** The stored form. Fields that an earlier version does not know are left out by it, and have a default here. */
interface StoredState {
  readonly version: 1;
  /** Finished events whose receipts the service has, oldest first. The default of `round` is 1. */
  readonly settled: readonly (readonly [id: string, status: Outcome, round?: number])[];
  readonly outbox: readonly Receipt[];
  /** Where an anonymous feed continues. For a device, the service knows it. */
  readonly last: string;
}

const isRound = (value: unknown): boolean => value === undefined || (isCount(value) && value > 0);

/** Checks each field of a stored state. A wrong one is left out. */
function storedStateOf(value: unknown): StoredState {
  const { settled, outbox, last } = isObject(value) && value.version === 1 ? value : {};
  const list = (items: unknown): readonly unknown[] => (Array.isArray(items) ? items : []);
  return {
    version: 1,
    settled: list(settled).filter(
      (one): one is [string, Outcome] => Array.isArray(one) && isText(one[0]) && isOutcome(one[1]) && isRound(one[2]),
    ),
    outbox: list(outbox).filter(
      (one): one is Receipt =>
        isObject(one) && isText(one.event) && isText(one.channel) && isWord(one.status) && isRound(one.round),
    ),
    last: typeof last === "string" ? last : "",
  };
}

/** An event that waits or is being handled. */
export interface Open {
  readonly status: "open";
  /** The round that its receipts answer. */
  round: number;
  /** Aborted when the event is withdrawn. */
  readonly withdrawing: AbortController;
}

/** What is known of an event that has arrived. */
export type EventState = Open | Ended;

/** The device whose state it is. */
export interface StateOwner {
  /** Receipts that the service has not answered. */
  receipts(): readonly Receipt[];
  /** The position before which every event is finished; null: it need not be stored, or some are open. */
  position(): string | null;
  /** The state could not be stored. */
  failed(why: string): void;
}

export class DeviceState {
  /** The key in the storage. */
  name = "";
  /** Where an anonymous feed continues. */
  last = "";
  readonly #storage: DeviceStorage | undefined;
  readonly #owner: StateOwner;
  readonly #events = new Map<string, EventState>();
  /** Ids of finished events whose receipts the service has, oldest first. */
  readonly #settled = new Set<string>();
  #saving: Promise<void> | null = null;
  #isDirty = false;

  constructor(storage: DeviceStorage | undefined, owner: StateOwner) {
    this.#storage = storage;
    this.#owner = owner;
  }

  get(event: string): EventState | undefined {
    return this.#events.get(event);
  }

  set(event: string, state: EventState): void {
    this.#events.set(event, state);
  }

  /** The event is new when it comes again. */
  forget(event: string): void {
    this.#events.delete(event);
    this.#settled.delete(event);
  }

  /** The service has the receipt with which a round of the event ended: it is remembered only for a while. */
  settle(event: string, round: number | undefined): void {
    const state = this.#events.get(event);
    // A later round may be open, or have ended since.
    if (!state || state.status === "open" || (round !== undefined && round !== state.round)) return;
    this.#settled.delete(event);
    this.#settled.add(event);
    if (this.#settled.size > SETTLED_MAX) this.#drop();
  }

  #drop(): void {
    const [oldest] = this.#settled;
    this.#settled.delete(oldest!);
    if (this.#events.get(oldest!)?.status !== "open") this.#events.delete(oldest!);
  }

  /**
   * Reads the stored state. @param isFresh events that were finished before are to be handled again, so only the outbox counts
   * @returns the stored receipts that are not in the outbox @throws Error when it can't be read: it must not be overwritten then
   */
  async load(isFresh: boolean): Promise<readonly Receipt[]> {
    if (!this.#storage) return [];
    let value: unknown;
    try {
      value = jsonOf((await this.#storage.get(this.name)) ?? "null");
    } catch (error) {
      throw new Error(`the stored state can't be read: ${messageWithCauses(error)}`, { cause: error });
    }
    const { settled, outbox, last } = storedStateOf(value);
    const name = ({ event, status, round }: Receipt): string => `${event} ${status} ${round ?? 1}`;
    const present = new Set(this.#owner.receipts().map(name));
    const added = outbox.filter((receipt) => !present.has(name(receipt)));
    if (isFresh) return added;
    for (const [event, status, round = 1] of settled)
      if (this.#end(event, { status, round })) this.settle(event, round);
    for (const receipt of added) {
      const { event, status, detail, after, retry } = receipt;
      if (isOutcome(status)) this.#end(event, { status, detail, after, retry, round: roundOf(receipt) });
    }
    this.last = last;
    return added;
  }

  /** Notes a stored outcome. @returns false: as much is known already */
  #end(event: string, ended: Ended): boolean {
    const known = this.#events.get(event);
    // What is open here may have been finished by another tab.
    if (known && (known.status === "open" ? known.round > ended.round : known.round >= ended.round)) return false;
    this.#events.set(event, ended);
    return true;
  }

  /** Stores the state. Resolves when all of the state at the time of the call is stored, or could not be. */
  async save(): Promise<void> {
    if (!this.#storage) return;
    this.#isDirty = true;
    this.#saving ??= this.#saveAll(this.#storage);
    await this.#saving;
  }

  async #saveAll(storage: DeviceStorage): Promise<void> {
    // All changes of this turn of the event loop are written at once.
    await null;
    while (this.#isDirty) {
      this.#isDirty = false;
      this.last = this.#owner.position() ?? this.last;
      const settled = [...this.#settled].flatMap((id) => {
        const state = this.#events.get(id);
        if (!state || state.status === "open") return [];
        const { status, round } = state;
        return [round === 1 ? ([id, status] as const) : ([id, status, round] as const)];
      });
      const stored: StoredState = { version: 1, settled, outbox: this.#owner.receipts(), last: this.last };
      try {
        await storage.set(this.name, JSON.stringify(stored));
      } catch (error) {
        this.#owner.failed(`the state can't be stored: ${messageWithCauses(error)}`);
      }
    }
    this.#saving = null;
  }
}
