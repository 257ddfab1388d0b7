/**
 * Asks for the console's stream before the console itself is there: on a slow line the first state comes nearly half a second earlier. `api.ts` takes the
 * answer over, if it is for what the page shows. With a pasted token nothing is asked here.
 */

/** A request that is under way. */
export interface Early {
  readonly path: string;
  readonly answer: Promise<Response>;
  readonly end: AbortController;
}

function begin(): Early | null {
  try {
    if (sessionStorage.getItem("pere.token") !== null) return null;
  } catch {
    // Then there is no token.
  }
  // A path of the console that is no channel begins with a tilde.
  const [, channel] = /^#\/([A-Za-z0-9][\w.:~-]{0,127})(?:[/?]|$)/.exec(location.hash) ?? [];
  const path = `/watch${channel === undefined ? "" : `?channel=${channel}`}`;
  const end = new AbortController();
  const answer = fetch(path.slice(1), { cache: "no-store", signal: end.signal });
  answer.catch(() => {}); // Who takes it over is told.
  return { path, answer, end };
}

const place = globalThis as { pereEarly?: Early | null };
if (place.pereEarly === undefined) place.pereEarly = begin();
