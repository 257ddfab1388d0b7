/** Lists that a page reads from the service: at once, again while the page is visible, and whenever the page asks. */
import { type Signal, useSignal, useSignalEffect } from "@preact/signals";
import { Refused, troubleText } from "./api.ts";
import { now } from "./state.ts";

export interface Reading<Answer> {
  /** The last answer; null: none yet. */
  readonly answer: Signal<Answer | null>;
  /** What went wrong with the last attempt, as a sentence; "": nothing. */
  readonly trouble: Signal<string>;
  /** Whether the last attempt was refused for good: there is nothing to wait for. */
  readonly isUnknown: Signal<boolean>;
  /** Reads now. */
  again(): void;
}

/**
 * Reads while the component is mounted.
 * @param read is called again at once when a signal that it reads synchronously changes; the request that is under way ends then
 * @param everySeconds how often it is read again; a function is asked each second, with the last answer
 */
export function useReading<Answer>(
  read: (signal: AbortSignal) => Promise<Answer>,
  everySeconds: number | ((answer: Answer | null) => number),
): Reading<Answer> {
  const answer = useSignal<Answer | null>(null);
  const trouble = useSignal("");
  const isUnknown = useSignal(false);
  const asked = useSignal(0);
  /** When the last attempt ended, in milliseconds since 1970; null: one is under way. */
  const endedAt = useSignal<number | null>(null);
  useSignalEffect(() => {
    void asked.value;
    const control = new AbortController();
    endedAt.value = null;
    const ended = (): void => void (endedAt.value = Date.now());
    read(control.signal).then(
      (found) => {
        if (control.signal.aborted) return;
        [answer.value, trouble.value, isUnknown.value] = [found, "", false];
        ended();
      },
      (error: unknown) => {
        if (control.signal.aborted) return;
        trouble.value = troubleText(error);
        isUnknown.value = error instanceof Refused && error.isOurs && error.status === 404;
        ended();
      },
    );
    return () => control.abort();
  });
  useSignalEffect(() => {
    const seconds = typeof everySeconds === "number" ? everySeconds : everySeconds(answer.value);
    const [time, at] = [now.value, endedAt.peek()];
    if (at === null || time - at < seconds * 1_000 || document.visibilityState === "hidden") return;
    asked.value = asked.peek() + 1;
  });
  return { answer, trouble, isUnknown, again: () => void (asked.value = asked.peek() + 1) };
}
