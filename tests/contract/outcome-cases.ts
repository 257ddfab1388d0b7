/**
 * What becomes of an event, and how its publisher knows: pushes that wait, deadlines, reminders, and the word that an event is complete. Each
 * subject has a file of its own.
 *
 * The services are real, and all is asked and heard over the wires. The clock is held: a test sets it forward and waits for what has to come of
 * that. What must not come is shown by something that comes after it. The cases don't know what the services keep their memory in: they are
 * given a way to start one, and where there are two the publisher is at one of them and the devices at the other.
 */
import { completionCases, tallyCases } from "./completion-cases.ts";
import { deadlineCases } from "./deadline-cases.ts";
import { Fleet, type Open, type Start } from "./fleet.ts";
import { reminderCases } from "./reminder-cases.ts";
import { waitingPushCases } from "./waiting-push-cases.ts";

/** All cases. @param count services at once @param fresh a new memory, with a way to start a service on it */
export function outcomes(name: string, count: 1 | 2, fresh: () => Promise<Start>): void {
  const open: Open = async (options = {}) => new Fleet(await fresh(), count, options).start();
  waitingPushCases(name, open);
  deadlineCases(name, open);
  reminderCases(name, open);
  completionCases(name, open);
  tallyCases(name, open);
}
