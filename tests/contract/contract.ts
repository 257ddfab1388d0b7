/**
 * What every store must do, written as promises: the sentences of `engine/store.ts`, each tried from outside, through the interface alone.
 *
 * Two kinds of tests hold a store. The first are sentences about one promise each, to be read: a file for each subject. The second is one
 * property: random calls, several in a turn, are given to the store and to a model that is obviously right (plain arrays and maps, every
 * audience a list of names, every count counted anew), and after each turn everything that can be read from the store is compared with
 * the model. When it fails, fast-check prints the seed and the shortest calls that show it.
 *
 * Time goes in as a parameter everywhere, so the clock is held and nothing here waits.
 */
import { describe, test } from "bun:test";
import fc from "fast-check";
import { attentionContract } from "./attention.ts";
import { audienceContract, devicesContract, joinContract } from "./audience.ts";
import { deadlineContract } from "./deadlines.ts";
import { channelContract, eventContract, numberedReadsContract, positionsContract } from "./events.ts";
import { type ContractOptions, type Ground, layGround, type Opened } from "./ground.ts";
import { historyContract } from "./history.ts";
import { hookContract } from "./hooks.ts";
import { idempotencyKeyContract } from "./idempotency.ts";
import { lifeContract, wakeContract } from "./life.ts";
import { compare } from "./compare.ts";
import { HISTORY } from "./histories.ts";
import { receiptContract, rowsContract } from "./receipts.ts";
import { removalContract } from "./removal.ts";
import { remindersContract } from "./reminders.ts";
import { retentionContract } from "./retention.ts";
import { retentionRunsContract } from "./retention-runs.ts";
import { retirementContract, retiringContract } from "./retirement.ts";
import { withdrawalContract } from "./withdrawals.ts";
import { roundsContract } from "./rounds.ts";
import { schedulesContract } from "./schedules.ts";
import { tagsContract } from "./tags.ts";

/** Registers what holds for every store, under this name. */
export function storeContract(name: string, open: () => Promise<Opened>, options: ContractOptions = {}): void {
  describe(name, () => {
    const ground = layGround(open, options);
    positionsContract(ground);
    numberedReadsContract(ground);
    channelContract(ground);
    eventContract(ground);
    audienceContract(ground);
    tagsContract(ground);
    retiringContract(ground);
    retirementContract(ground);
    receiptContract(ground);
    rowsContract(ground);
    joinContract(ground);
    devicesContract(ground);
    historyContract(ground);
    idempotencyKeyContract(ground);
    removalContract(ground);
    retentionContract(ground);
    retentionRunsContract(ground);
    deadlineContract(ground);
    remindersContract(ground);
    hookContract(ground);
    roundsContract(ground);
    schedulesContract(ground);
    withdrawalContract(ground);
    wakeContract(ground);
    lifeContract(ground);
    attentionContract(ground);
    modelContract(ground);
  });
}

export function modelContract(ground: Ground): void {
  const { histories, open } = ground;

  test("behaves like a naive model, call by call", async () => {
    await fc.assert(
      fc.asyncProperty(HISTORY, async (history) => {
        const fresh = await open();
        try {
          await compare(fresh.store, history);
        } finally {
          await fresh.store.close();
          await fresh.end?.();
        }
      }),
      { numRuns: histories },
    );
  }, 60_000);
}
