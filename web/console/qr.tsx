/** A text as a QR code, drawn dark on light in both colour schemes, because scanners expect that. What makes it is loaded when the first one is shown. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

type Maker = typeof import("qrcode-generator");

/** Width of the quiet zone in modules: ISO/IEC 18004 requires four. */
const QUIET = 4;

interface QrProps {
  readonly text: string;
  /** What it is, for people who can't see it. */
  readonly label: string;
}

/** Its place is kept until it is there. If it can't be loaded, the place stays empty. */
export function Qr({ text, label }: QrProps) {
  const maker = useSignal<Maker | null>(null);
  useEffect(() => {
    import("qrcode-generator").then(
      (module) => void (maker.value = module.default),
      () => {},
    );
  }, []);
  return <div class="qr-place">{maker.value && <Code make={maker.value} text={text} label={label} />}</div>;
}

function Code({ make, text, label }: QrProps & { readonly make: Maker }) {
  const code = make(0, "M");
  code.addData(text);
  code.make();
  const size = code.getModuleCount();
  const places = Array.from({ length: size * size }, (_, n) => [Math.floor(n / size), n % size] as const);
  const dark = places.filter(([row, column]) => code.isDark(row, column));
  const extent = size + 2 * QUIET;
  return (
    <svg
      class="qr"
      viewBox={`${-QUIET} ${-QUIET} ${extent} ${extent}`}
      shape-rendering="crispEdges"
      role="img"
      aria-label={label}
    >
      <rect x={-QUIET} y={-QUIET} width={extent} height={extent} fill="#fff" />
      <path fill="#000" d={dark.map(([row, column]) => `M${column} ${row}h1v1h-1z`).join("")} />
    </svg>
  );
}
