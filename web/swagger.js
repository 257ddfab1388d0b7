/**
 * Starts Swagger UI with this service's OpenAPI document.
 *
 * The examples use each other's event ids, but real ids can't be known in advance: each service chooses its own epochs. So the page remembers the id
 * of the last event that was pushed from it, and replaces the ids of the examples (`SAMPLE_EPOCH` in `openapi-schemas.ts`) by it. The page shows the
 * request that was really sent.
 */
const SAMPLE_ID = /k3x9q2vd-\d+/g;
let pushed = "";
/** The URL of the service: that of this script. The page is there as well, or one folder below. */
const here = document.currentScript.src;

function remember(response) {
  if (new URL(response.url, location.href).pathname.includes("/push/"))
    pushed = [...String(response.text).matchAll(/"id":"([0-9a-z]+-\d+)"/g)].pop()?.[1] ?? pushed;
  return response;
}

/** Until a media type is chosen, Swagger UI shows the JSON but sends a wildcard, which a feed would answer with an endless stream. */
function askForJson({ headers }) {
  if (headers?.accept === "*/*") headers.accept = "application/json";
}

/** How many milliseconds of an event stream are shown. It does not end by itself. */
const STREAM_SHOWN_MS = 2_000;

/** Sends a request; of an event stream, returns what arrives in that time. */
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
    // The time is over.
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
