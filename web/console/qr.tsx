/** A text as a QR code, drawn dark on light in both colour schemes, because scanners expect that. */
import qrcode from "qrcode-generator";

/** Width of the quiet zone in modules: ISO/IEC 18004 requires four. */
const QUIET = 4;

interface QrProps {
  readonly text: string;
  /** What it is, for people who can't see it. */
  readonly label: string;
}

export function Qr({ text, label }: QrProps) {
  const code = qrcode(0, "M");
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
