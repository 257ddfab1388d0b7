/**
 * What a device remembers: the events that it has finished, and where an anonymous feed continues. It is stored together with the outbox.
 */
import { messageWithCauses } from "./errors.ts";
import { isWord, type Receipt, type Word } from "./model.ts";
import type { DeviceStorage } from "./storage.ts";
import { isObject, isText, jsonOf } from "./values.ts";

/** Finished events that are remembered after the service has their receipts. It does not send them again, so the newest are enough. */
const SETTLED_MAX = 2_000;

/** The stored form. */
interface StoredState {
  readonly version: 1;
  /** Finished events whose receipts the service has, oldest first. */
  readonly settled: readonly (readonly [id: string, status: Word])[];
  readonly outbox: readonly Receipt[];
  /** Where an anonymous feed continues. For a device, the service knows it. */
  readonly last: string;
}

/** Checks each field of a stored state. A wrong one is left out. */
function storedStateOf(value: unknown): StoredState {
  const { settled, outbox, last } = isObject(value) && value.version === 1 ? value : {};
  const list = (items: unknown): readonly unknown[] => (Array.isArray(items) ? items : []);
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

/** What is known of an event that has arrived: it waits or is being handled, or this was its final receipt. */
export type EventState = "open" | Pick<Receipt, "status" | "detail">;

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
  readonly #settled: string[] = [];
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
  }

  /** The service has the event's final receipt: it is remembered only for a while. */
  settle(event: string): void {
    this.#settled.push(event);
    if (this.#settled.length > SETTLED_MAX) this.#events.delete(this.#settled.shift()!);
  }

  /** Reads the stored state. @returns the stored receipts that are not in the outbox @throws Error when it can't be read: it must not be overwritten then */
  async load(): Promise<readonly Receipt[]> {
    if (!this.#storage) return [];
    let value: unknown;
    try {
      value = jsonOf((await this.#storage.get(this.name)) ?? "null");
    } catch (error) {
      throw new Error(`the stored state can't be read: ${messageWithCauses(error)}`, { cause: error });
    }
    const { settled, outbox, last } = storedStateOf(value);
    for (const [id, status] of settled) {
      if (this.#events.has(id)) continue;
      this.#events.set(id, { status });
      this.settle(id);
    }
    const present = new Set(this.#owner.receipts().map(({ event, status }) => `${event} ${status}`));
    const added = outbox.filter(({ event, status }) => !present.has(`${event} ${status}`));
    for (const { event, status, detail } of added)
      if (status === "done" || status === "failed") this.#events.set(event, { status, detail });
    this.last = last;
    return added;
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
      const settled = this.#settled.flatMap((id) => {
        const state = this.#events.get(id);
        return state && state !== "open" ? [[id, state.status] as const] : [];
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
