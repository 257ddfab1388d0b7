/**
 * Starts Swagger UI on this service's own description.
 *
 * The examples tell one story, and an event's id in them can't be known beforehand: its first half is made up by each service. So the page
 * remembers the id of the last event that was pushed from it, and sends that wherever an example has its own (`SAMPLE_EPOCH` of
 * `openapi-schemas.ts`). The request that is shown is the one that was sent.
 */
const SAMPLE_ID = /k3x9q2vd-\d+/g;
let pushed = "";
/** Where this script is, and with it the service: the page is there as well, or one folder below. */
const here = document.currentScript.src;

function remember(response) {
  if (new URL(response.url, location.href).pathname.includes("/push/"))
    pushed = [...String(response.text).matchAll(/"id":"([0-9a-z]+-\d+)"/g)].pop()?.[1] ?? pushed;
  return response;
}

/** Swagger UI shows the JSON and asks for anything, until a type is chosen; a feed answers that with a stream, which never ends. */
function askForJson({ headers }) {
  if (headers?.accept === "*/*") headers.accept = "application/json";
}

/** Milliseconds of an event stream that are shown. It has no end to wait for. */
const STREAM_SHOWN_MS = 2_000;

/** Fetches what was asked for; of an event stream, what comes in a while. */
async function fetchShown(url, request) {
  const leaving = new AbortController();
  const response = await fetch(url, { ...request, signal: leaving.signal });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  setTimeout(() => leaving.abort(), STREAM_SHOWN_MS);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read())
      text += decoder.decode(part.value, { stream: true });
  } catch {
    // That was long enough.
  }
  return new Response(text, { status: response.status, headers: response.headers });
}

function prepare(request) {
  askForJson(request);
  request.userFetch = fetchShown;
  if (pushed === "") return request;
  request.url = request.url.replace(SAMPLE_ID, pushed);
  if (typeof request.body === "string") request.body = request.body.replace(SAMPLE_ID, pushed);
  return request;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

window.SwaggerUIBundle({
  url: new URL("swagger/json", here).href,
  dom_id: "#operations",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  validatorUrl: null,
  requestInterceptor: prepare,
  responseInterceptor: remember,
});
