/** Descriptions: the part of Markdown that the service's document uses, which is paragraphs, tables, indented and inline code, bold text and links. */
import { HERE } from "./openapi.ts";

/** A text within a line. */
export function Inline({ text }: { readonly text: string }) {
  const parts = text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)\s]+\))/);
  return (
    <>
      {parts.map((part, nth) => {
        if (nth % 2 === 0) return part;
        if (part.startsWith("`")) return <code key={nth}>{part.slice(1, -1)}</code>;
        if (part.startsWith("*")) return <strong key={nth}>{part.slice(2, -2)}</strong>;
        const [, label = "", address = ""] = /^\[(.*)\]\((.*)\)$/.exec(part)!;
        return (
          <a key={nth} href={new URL(address, HERE).href}>
            {label}
          </a>
        );
      })}
    </>
  );
}

const cellsOf = (row: string): string[] =>
  row
    .split("|")
    .slice(1, -1)
    .map((cell) => cell.trim());

/** A text of several paragraphs and tables. */
export function Prose({ text }: { readonly text: string }) {
  return (
    <div class="prose">
      {text.split(/\n{2,}/).map((block, nth) => (
        <Block key={nth} text={block} />
      ))}
    </div>
  );
}

function Block({ text }: { readonly text: string }) {
  if (text.startsWith("|")) return <Table rows={text.split("\n").map(cellsOf)} />;
  if (text.startsWith("    ")) return <pre tabIndex={0}>{text.replace(/^ {4}/gm, "")}</pre>;
  return (
    <p>
      <Inline text={text} />
    </p>
  );
}

/** @param rows the first has the headings, the second only dashes */
function Table({ rows: [head = [], , ...rows] }: { readonly rows: readonly (readonly string[])[] }) {
  return (
    <div class="wide" tabIndex={0} role="group" aria-label={`Table: ${head.join(", ")}`}>
      <table>
        <thead>
          <tr>
            {head.map((cell, nth) => (
              <th key={nth} scope="col">
                <Inline text={cell} />
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, place) => (
            <tr key={place}>
              {row.map((cell, nth) => (
                <td key={nth}>
                  <Inline text={cell} />
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
