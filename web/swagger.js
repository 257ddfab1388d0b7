/**
 * Starts Swagger UI on this service's own description.
 *
 * The examples tell one story, and an event's id in them can't be known beforehand: its first half is made up by each service. So the page
 * remembers the id of the last event that was pushed from it, and sends that wherever an example has its own (`SAMPLE_EPOCH` of
 * `openapi-schemas.ts`). The request that is shown is the one that was sent.
 */
const SAMPLE_ID = /k3x9q2vd-\d+/g;
let pushed = "";

function remember(response) {
  if (new URL(response.url, location.href).pathname.startsWith("/push/"))
    pushed = [...String(response.text).matchAll(/"id":"([0-9a-z]+-\d+)"/g)].at(-1)?.[1] ?? pushed;
  return response;
}

/** Swagger UI shows the JSON and asks for anything, until a type is chosen; a feed answers that with a stream, which never ends. */
function askForJson({ headers }) {
  if (headers?.accept === "*/*") headers.accept = "application/json";
}

function prepare(request) {
  askForJson(request);
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
  url: "/swagger/json",
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
