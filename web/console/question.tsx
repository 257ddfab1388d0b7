/** A question before something that can't be undone. Escape and "Cancel" leave everything as it is, and the focus goes back to where it was. */
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { troubleText } from "./api.ts";

interface QuestionProps {
  /** Names what it is about. */
  readonly title: string;
  /** What the button says that does it. */
  readonly action: string;
  /** What the other button says; "Cancel" would be unclear where something is cancelled. */
  readonly dismissal?: string;
  readonly run: () => Promise<unknown>;
  /** Called after the dialog was closed. @param isDone whether it was done */
  readonly closed: (isDone: boolean) => void;
  /** What follows from it. */
  readonly children: ComponentChildren;
}

export function Question({ title, action, dismissal = "Cancel", run, closed, children }: QuestionProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const isRunning = useSignal(false);
  const isDone = useSignal(false);
  const trouble = useSignal("");
  // Before it is painted: a key that is pressed at once is for the question.
  useLayoutEffect(() => dialog.current!.showModal(), []);
  const answer = async (): Promise<void> => {
    if (isRunning.peek()) return;
    [isRunning.value, trouble.value] = [true, ""];
    try {
      await run();
      isDone.value = true;
      dialog.current?.close();
    } catch (error) {
      trouble.value = troubleText(error);
    }
    isRunning.value = false;
  };
  return (
    <dialog ref={dialog} aria-labelledby="question" onClose={() => closed(isDone.value)}>
      <article>
        <h2 id="question">{title}</h2>
        {children}
        <p class="trouble" role="alert">
          {trouble}
        </p>
        <p class="row">
          <button type="button" class="plain" autofocus onClick={() => dialog.current?.close()}>
            {dismissal}
          </button>
          <button type="button" class="danger" aria-busy={isRunning.value} onClick={() => void answer()}>
            {action}
          </button>
        </p>
      </article>
    </dialog>
  );
}
