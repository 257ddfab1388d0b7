/** The signs of the six states, and what they mean. */
import type { State } from "./api.ts";
import { MARKS, MEANING, STATES } from "./words.ts";

/** One state's sign: a shape and a colour. Its name is shown beside it. */
export const Mark = ({ state }: { readonly state: State }) => (
  <svg class="mark" data-state={state} viewBox="0 0 16 16" aria-hidden="true">
    <rect x="0.75" y="0.75" width="14.5" height="14.5" rx="3.5" />
    <path d={MARKS[state]} />
  </svg>
);

export const Legend = () => (
  <ul class="legend" aria-label="Signs">
    {STATES.map((state) => (
      <li key={state} title={MEANING[state]}>
        <Mark state={state} /> {state}
      </li>
    ))}
  </ul>
);
