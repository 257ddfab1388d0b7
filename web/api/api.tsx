/**
 * The API page: every operation of /swagger/json, described and ready to be tried. It loads nothing from other hosts.
 *
 * Swagger UI is nine times as large and has faults of accessibility that a style can't mend; this page knows only what the service's own document uses.
 */
import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { show } from "../console/floor.ts";
import { type Document, HERE, type Place, placesOf } from "./openapi.ts";
import { Prose } from "./prose.tsx";
import { OperationView } from "./operation.tsx";
import { TokenField } from "./token.tsx";

const loaded = signal<Document | string | null>(null);

async function load(): Promise<void> {
  try {
    const response = await fetch(`${HERE}swagger/json`);
    if (!response.ok) throw new Error(`status ${response.status}`);
    loaded.value = (await response.json()) as Document;
  } catch (error) {
    loaded.value = `The description of the API could not be loaded (${(error as Error).message}). Reload the page.`;
  }
}

/** The fragment of an operation's link. */
const fragmentOf = ({ operation }: Place): string =>
  `#/${encodeURIComponent(operation.tags[0]!)}/${operation.operationId}`;

function ApiPage() {
  const { value } = loaded;
  if (value === null) return <p class="loading">Loading the description of the API…</p>;
  if (typeof value === "string")
    return (
      <p class="loading" role="alert">
        {value}
      </p>
    );
  return <Description document={value} />;
}

function Description({ document }: { readonly document: Document }) {
  const places = placesOf(document);
  const groups = document.tags
    .map((tag) => ({ ...tag, places: places.filter(({ operation }) => operation.tags.includes(tag.name)) }))
    .filter((group) => group.places.length > 0);
  return (
    <>
      <a class="skip" href="#operations">
        Skip to the operations
      </a>
      <header>
        <h1>
          {document.info.title} HTTP API <small>{document.info.version}</small>
        </h1>
        <nav aria-label="Pages">
          <a href={HERE}>Console</a> <a href={`${HERE}weblistener.html`}>Device</a>{" "}
          <a href={`${HERE}swagger/json`}>OpenAPI</a> <a href={`${HERE}asyncapi.json`}>AsyncAPI</a>
        </nav>
      </header>
      <main>
        <TokenField />
        <Prose text={document.info.description} />
        <div id="operations" tabIndex={-1}>
          {groups.map((group) => (
            <section key={group.name} aria-label={group.name}>
              <h2>
                {group.name} <small>{group.description}</small>
              </h2>
              {group.places.map((place) => (
                <OperationDetails key={place.operation.operationId} document={document} place={place} />
              ))}
            </section>
          ))}
        </div>
      </main>
    </>
  );
}

/** The operation that the address names. */
const linked = signal(location.hash);
addEventListener("hashchange", () => (linked.value = location.hash));

interface OperationDetailsProps {
  readonly document: Document;
  readonly place: Place;
}

function OperationDetails({ document, place }: OperationDetailsProps) {
  const { method, path, operation } = place;
  const details = useRef<HTMLDetailsElement>(null);
  const isOpen = useRef(signal(false)).current;
  const fragment = fragmentOf(place);
  const isLinked = decodeURIComponent(linked.value) === decodeURIComponent(fragment);
  useEffect(() => {
    if (!isLinked) return;
    details.current!.open = true;
    details.current!.scrollIntoView();
  }, [isLinked]);
  return (
    <details
      ref={details}
      id={operation.operationId}
      class="operation"
      data-method={method}
      onToggle={({ currentTarget, target }) => {
        if (target !== currentTarget) return; // Of one inside.
        isOpen.value = currentTarget.open;
        if (currentTarget.open) history.replaceState(null, "", fragment);
      }}
    >
      <summary>
        <h3>
          <span class="method">{method}</span> <code>{path}</code> <span class="summary">{operation.summary}</span>
        </h3>
      </summary>
      {isOpen.value && <OperationView document={document} place={place} />}
    </details>
  );
}

show("api", () => {
  void load();
  return <ApiPage />;
});
