/** QR codes as a camera reads them. */
import jsQR from "jsqr";
import { until } from "./harness.ts";

/** What the code on a page says. @param read evaluates a script in the page */
export async function readQr(read: (script: string) => Promise<unknown>): Promise<string | undefined> {
  await until(async () => (await read("document.querySelector('.qr') !== null")) as boolean, "a code");
  const pixels = (await read(`new Promise((resolve) => {
    const code = document.querySelector(".qr").cloneNode(true);
    code.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const canvas = Object.assign(document.createElement("canvas"), { width: 600, height: 600 });
    const image = new Image(600, 600);
    image.onload = () => {
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0, 600, 600);
      resolve(context.getImageData(0, 0, 600, 600).data.reduce((text, value, n) => n % 4 ? text : text + (value > 127 ? 1 : 0), ""));
    };
    image.src = "data:image/svg+xml," + encodeURIComponent(code.outerHTML);
  })`)) as string;
  const image = Uint8ClampedArray.from(
    [...pixels].flatMap((bit) => [255 * Number(bit), 255 * Number(bit), 255 * Number(bit), 255]),
  );
  return jsQR(image, 600, 600)?.data;
}
