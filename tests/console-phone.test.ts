/**
 * "Connect a phone" in the console: a code that a camera reads, and the phone that has opened its address. The service has a name that is not this
 * computer's own, as a phone would call it.
 */
import { afterAll, expect } from "bun:test";
import { join } from "node:path";
import { issueToken } from "../engine/auth/issue.ts";
import { browserTest, closeBrowser, openTab } from "./support/browser.ts";
import { Page } from "./support/device-page.ts";
import { ask, push, SECRET, start, startWith, until } from "./support/harness.ts";
import { readQr } from "./support/qr.ts";

afterAll(closeBrowser);

const NAME = "pere.example";
/** The service's address as a phone calls it. */
const outside = ({ url }: { readonly url: string }): string => url.replace("127.0.0.1", NAME);

/** The console in a browser that finds the name here. */
async function openConsole(url: string, width = 1_200, height = 800) {
  const complaints: string[] = [];
  const view = openTab(width, height, (what) => complaints.push(what), [`--host-resolver-rules=MAP ${NAME} 127.0.0.1`]);
  await view.navigate(url);
  const read = <Value>(script: string): Promise<Value> => view.evaluate(script) as Promise<Value>;
  const text = (selector: string): Promise<string> => read(`document.querySelector("${selector}")?.innerText ?? ""`);
  await until(() => read<boolean>("document.querySelector('.connect-phone') !== null"), "the console");
  const open = async (): Promise<void> => {
    await view.click(".connect-phone");
    await until(() => read<boolean>("document.querySelector('dialog.phone[open]') !== null"), "the dialog");
  };
  return { view, read, text, open, complaints, [Symbol.dispose]: () => view.close() };
}

const AXE = join(import.meta.dir, "..", "node_modules", "axe-core", "axe.min.js");

browserTest("a phone that scans the code is a device of the channel, and gives its answer", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith({ access: "open" }), (service) => service.stop());
  await ask(`${pere.url}/devices/kitchen/oven`, { method: "PUT" });
  using console = await openConsole(`${outside(pere)}/#/kitchen`);
  await console.open();
  await until(() => console.read<boolean>("document.querySelector('.qr') !== null"), "the code");
  const address = (await readQr(console.read))!;
  expect(address).toMatch(
    new RegExp(`^http://${NAME}:\\d+/weblistener\\.html\\?channel=kitchen&device=phone-[a-z2-9]{4}$`),
  );
  const device = new URL(address).searchParams.get("device")!;
  expect(await console.text(".phone-code")).toContain(device);
  using phone = new Page(390, 844);
  await phone.view.navigate(address);
  await phone.becomes(device, `/weblistener.html?channel=kitchen&device=${device}`);
  const id = await push(pere.url, "kitchen", { title: "Table 7" });
  await phone.shows(id, "received");
  await phone.click(id, "button.done");
  await phone.toDo(0);
  await until(
    async () => (await ask(`${pere.url}/events/kitchen/${id}`)).body.receipts.done === 1,
    "the answer of the phone",
  );
  // Another phone gets another name; Escape closes, and the focus is where it was.
  await console.view.press("Escape");
  await until(() => console.read<boolean>("document.querySelector('dialog') === null"), "no dialog");
  expect(await console.read<string>("document.activeElement.textContent")).toBe("Connect a phone");
  await console.open();
  await until(() => console.read<boolean>("document.querySelector('.qr') !== null"), "the code");
  const other = new URL((await readQr(console.read))!).searchParams.get("device");
  expect(other).not.toBe(device);
  expect(console.complaints).toEqual([]);
});

browserTest("where tokens are needed it says how to make one for the phone, and takes none that may push", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await startWith(), (service) => service.stop());
  const token = (sub: string, pushes: readonly string[], feed: readonly string[]): Promise<string> =>
    issueToken({ secret: SECRET }, { sub, push: [...pushes], feed: [...feed], days: 1 });
  const office = await token("office", ["*"], []);
  using console = await openConsole(`${outside(pere)}/?token=${office}`);
  await console.open();
  const command = /bun run index\.ts token --sub phone-[a-z2-9]{4} --feed orders --days 30/;
  await until(async () => command.test(await console.text(".phone")), "the command");
  expect(await console.read<number>("document.querySelectorAll('.qr').length")).toBe(0);
  const paste = async (text: string): Promise<void> => {
    await console.read(`(() => {
      const field = document.querySelector(".phone [type=password]");
      field.value = ${JSON.stringify(text)};
      field.dispatchEvent(new Event("input", { bubbles: true }));
    })()`);
  };
  for (const [text, why] of [
    [office, "This token allows pushing."],
    ["nonsense", "This is not a token"],
    [await token("*", [], ["orders"]), "This token names no device."],
  ] as const) {
    await paste(text);
    await until(async () => (await console.text(".phone-code")).includes(why), why);
    expect(await console.read<number>("document.querySelectorAll('.qr').length")).toBe(0);
  }
  await paste(await token("waiter-3", [], ["orders"]));
  await until(() => console.read<boolean>("document.querySelector('.qr') !== null"), "the code");
  const address = (await readQr(console.read))!;
  using phone = new Page(390, 844);
  await phone.view.navigate("about:blank");
  await phone.view.cdp("Network.clearBrowserCookies");
  await phone.view.navigate(address);
  await phone.becomes("waiter-3", "/weblistener.html?channel=orders&device=waiter-3");
  const headers = { Authorization: `Bearer ${office}` };
  const { id } = (await ask(`${pere.url}/push/orders`, { body: 1, headers })).body as { id: string };
  await phone.shows(id, "received");
});

browserTest("on loopback it says how to start PERE for the network; axe finds no fault, light and dark", async () => {
  await using cleanup = new AsyncDisposableStack();
  const pere = cleanup.adopt(await start(), (service) => service.stop());
  const open = cleanup.adopt(await startWith({ access: "open" }), (service) => service.stop());
  const axe = await Bun.file(AXE).text();
  for (const scheme of ["light", "dark"])
    for (const [url, words] of [
      [pere.url, "HOST=0.0.0.0 bun run index.ts"],
      [outside(open), "Scan this with the phone's camera."],
    ] as const) {
      using console = await openConsole(`${url}/`);
      await console.view.cdp("Emulation.setEmulatedMedia", {
        features: [{ name: "prefers-color-scheme", value: scheme }],
      });
      await console.open();
      await until(async () => (await console.text(".phone")).includes(words), words);
      await console.read(`(() => {\n${axe}\n})()`);
      const faults = "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes[0].html))";
      expect(await console.read<string[]>(faults), `${scheme} ${url}`).toEqual([]);
      const folder = process.env.PERE_SCREENSHOTS;
      if (folder)
        await Bun.write(join(folder, `phone-${scheme}-${words.slice(0, 4)}.png`), await console.view.screenshot());
      expect(console.complaints).toEqual([]);
    }
});
