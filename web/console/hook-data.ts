/** A channel's hooks as the API lists them. */

/** One attempt of a call, or a test call: what the receiver answered. */
export interface Attempt {
  readonly at?: string;
  /** null: there was no answer. */
  readonly status: number | null;
  readonly error: string | null;
  readonly ms: number;
  /** The beginning of the answer's body; null: there was none. */
  readonly body: string | null;
}

export interface Delivery {
  readonly id: string;
  readonly attempts: number;
  /** null: given up. */
  readonly nextAt: string | null;
  readonly status: number | null;
  readonly error: string | null;
  /** The last attempts, newest last. */
  readonly tries?: readonly Attempt[];
  /** The beginning of what is sent. */
  readonly body?: string;
}

export interface Hook {
  readonly name: string;
  readonly url: string;
  readonly on: readonly string[];
  readonly disabled: string | null;
  /** Its last successful call; null: none yet. */
  readonly lastDelivered?: { readonly at: string; readonly status: number; readonly ms: number } | null;
  readonly retrying: readonly Delivery[];
  readonly failed: readonly Delivery[];
}

/** What a hook can be called for. */
export const KINDS = [
  ["receipt", "for each receipt of a device"],
  ["complete", "when every device has given its final receipt"],
  ["missing", "when the deadline passed and devices are missing"],
  ["failed", "when devices failed and do not try again"],
  ["settled", "when an event with a deadline is complete, or its deadline has passed"],
] as const;

export const pathOf = (channel: string, name: string): string => `/hooks/${channel}/${name}`;

/** @throws Error: it does not come from PERE */
export function isTested(answer: unknown): Attempt {
  const { status, ms } = (typeof answer === "object" && answer !== null ? answer : {}) as Partial<Attempt>;
  if ((typeof status === "number" || status === null) && typeof ms === "number") return answer as Attempt;
  throw new Error("the answer does not come from PERE");
}
