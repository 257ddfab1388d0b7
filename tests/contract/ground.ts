/**
 * What the tests of the contract stand on: the store of the running test, and how it is talked to in short.
 */
import { afterEach, beforeEach } from "bun:test";
import type { EventDraft, ReceiptDraft, State, Status } from "../../engine/model.ts";
import type { Appended, Result, Store, Verdict, Withdrawn } from "../../engine/store.ts";
import { all, draft, followAll, hear, heardAll, reads, T, type Told, word } from "./calls.ts";

/** A store made for one test. */
export interface Opened {
  readonly store: Store;
  /** Lets go of the store and opens what it kept again. */
  readonly reopen?: () => Promise<Store>;
  /** Removes what the test left, after the store was closed. */
  readonly end?: () => Promise<void>;
}

export interface ContractOptions {
  /** Why nothing is kept when the store is closed; then reopening is skipped, with this reason. */
  readonly keepsNothing?: string;
  /** Random histories that are compared with the model. */
  readonly histories?: number;
}

/** What the tests of a contract stand on: the store of the running test, and how it is talked to in short. */
export type Ground = ReturnType<typeof layGround>;

export const FOLLOWED = ["orders", "others"];

/** Opens a store before each test of the surrounding `describe`, and closes it behind the test. */
export function layGround(open: () => Promise<Opened>, { keepsNothing, histories = 60 }: ContractOptions) {
  const ground = { opened: null as unknown as Opened, store: null as unknown as Store, wakes: [] as Told[] };

  beforeEach(async () => {
    ground.opened = await open();
    ground.store = ground.opened.store;
    ground.wakes = [];
    hear(ground.store, (told) => ground.wakes.push(told));
    await followAll(ground.store, FOLLOWED);
  });
  afterEach(async () => {
    await ground.store.close();
    await ground.opened.end?.();
  });

  const heard = (): Promise<void> => heardAll(ground.store, FOLLOWED, ground.wakes);
  const append = (data: unknown, more: Partial<EventDraft> = {}, now = T): Promise<Appended> =>
    ground.store.append("orders", [draft(data, more)], now);
  const enrol = async (...devices: string[]): Promise<void> => {
    for (const device of devices) await ground.store.enrol("orders", device, T);
  };
  /** Gives a receipt and tells all that came of it. */
  const tell = async (
    seq: number,
    device: string,
    status: Status,
    now = T,
    more: Partial<ReceiptDraft> = {},
  ): Promise<Verdict> => {
    const { epoch } = (await ground.store.heads("orders"))!;
    return (await ground.store.record("orders", [word(epoch, seq, device, status, more)], now, () => 0.5))[0]!;
  };
  const give = async (seq: number, device: string, status: Status, now = T): Promise<Result> =>
    (await tell(seq, device, status, now)).result;
  const withdraw = async (seq: number, note: string | null = null, now = T): Promise<Withdrawn> => {
    const { epoch } = (await ground.store.heads("orders"))!;
    return ground.store.withdraw("orders", { epoch, seq }, note, now);
  };
  /** The receipts log, in short. */
  const log = async (after = 0): Promise<[number, string, State][]> =>
    (await reads.receipts(ground.store, "orders", after, 10_000)).map(({ event, device, status }) => [
      event,
      device,
      status,
    ]);
  const namesOf = (count: number): string[] =>
    Array.from({ length: count }, (_, n) => `device-${String(n).padStart(6, "0")}`);
  const devicesOf = (channel: string, now = T) => all((after) => ground.store.devices(channel, after, 1_000, now));
  const pendingOf = async (device: string, now = T): Promise<number | undefined> =>
    (await devicesOf("orders", now)).find((enrolment) => enrolment.device === device)?.pending;

  return Object.assign(ground, {
    open,
    keepsNothing,
    histories,
    heard,
    append,
    enrol,
    give,
    tell,
    withdraw,
    log,
    namesOf,
    devicesOf,
    pendingOf,
  });
}
