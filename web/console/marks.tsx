/** The signs of the states, and what they mean. */
import { markOf, meaningOf, wordsOf } from "./words.ts";

/** One state's sign: a shape and a colour. Its name is shown beside it. */
export const Mark = ({ state }: { readonly state: string }) => (
  <svg class="mark" data-state={state} data-kind={wordsOf(state).kind} viewBox="0 0 16 16" aria-hidden="true">
    <rect x="0.75" y="0.75" width="14.5" height="14.5" rx="3.5" />
    <path d={markOf(state)} />
  </svg>
);

export const Legend = ({ states }: { readonly states: readonly string[] }) => (
  <ul class="legend" aria-label="Signs">
    {states.map((state) => (
      <li key={state} title={meaningOf(state)}>
        <Mark state={state} /> {state}
      </li>
    ))}
  </ul>
);
