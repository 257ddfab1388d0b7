/**
 * The device page as tests use it: a tab in a real Chromium that is clicked with a real mouse, and what it shows, read from its document. What counts is
 * read from the service. `PERE_SCREENSHOTS=<folder>` keeps pictures.
 */
import { join } from "node:path";
import { openTab } from "./browser.ts";
import { ask, until } from "./harness.ts";

/** What the page shows of an event. */
interface Shown {
  readonly id: string;
  readonly title: string;
  /** What is to be read without opening the details. */
  readonly text: string;
  readonly data: string;
  readonly receipt: string;
  readonly buttons: boolean;
}

/** One tab on the device page. */
export class Page {
  readonly view: Bun.WebView;
  readonly complaints: string[] = [];

  constructor(width = 800, height = 900) {
    this.view = openTab(width, height, (what) => this.complaints.push(what));
  }

  /** Waits until the page is connected, and this is what it is and its address. */
  async becomes(device: string, address: string): Promise<void> {
    const read = (): Promise<string> =>
      this.read<string>(
        `[document.querySelector("#state").innerText, document.querySelector("#device-name").textContent, location.pathname + location.search].join(" ")`,
      ).catch(() => "");
    let now = "";
    await until(
      async () => (now = await read()).startsWith("Connected") && now.endsWith(` ${device} ${address}`),
      () => `${device} ${address}; it is ${now}`,
    );
  }

  /** Opens the page as a device and waits until it is connected. */
  async open(url: string, query: string): Promise<this> {
    await this.view.navigate(`${url}/weblistener.html?${query}`);
    await this.state("connected");
    return this;
  }

  state = (state: string): Promise<true> =>
    until(
      async () => (await this.read<string>("document.querySelector('#state')?.dataset.state ?? ''")) === state,
      state,
    );

  read = async <Value>(script: string): Promise<Value> => (await this.view.evaluate(script)) as Value;

  /** The cards to answer, top to bottom, and then those that were answered, newest first. */
  cards = (): Promise<Shown[]> =>
    this.read(`[...document.querySelectorAll("#events > li, #answered > ul > li")].map((item) => {
      const { receipt, word } = item.dataset;
      const outcome = item.querySelector(".outcome")?.textContent;
      return {
        id: item.id.slice("event-".length),
        title: item.querySelector("h2").textContent,
        text: item.querySelector(".message, .members, .items")?.innerText ?? "",
        data: item.querySelector(".more pre").textContent,
        receipt: receipt === "queued" ? "queued: " + (word ?? "received") : receipt === "rejected" ? outcome : receipt,
        buttons: item.querySelector(".answer") !== null,
      };
    })`);

  /** Waits until an event's card shows this of its receipt, and gives the card. */
  async shows(id: string, receipt: string): Promise<Shown> {
    let cards: Shown[] = [];
    const find = async (): Promise<Shown | undefined> =>
      (cards = await this.cards()).find((card) => card.id === id && card.receipt === receipt);
    return until(find, () => `${id} ${receipt}; the page shows ${JSON.stringify(cards)}`);
  }

  /** What something says; "" where it is not there. */
  text = (selector: string): Promise<string> =>
    this.read(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`);

  /** Waits until something says just this. */
  async says(selector: string, words: string): Promise<void> {
    let said = "";
    await until(
      async () => (said = await this.text(selector).catch(() => "")) === words,
      () => `${selector} to say "${words}"; it says "${said}"`,
    );
  }

  /** Waits until so much is to be done, and so many answers wait to be sent. */
  async toDo(count: number, kept = 0): Promise<void> {
    const isConnected = await this.read<boolean>(
      "/connected|behind/.test(document.querySelector('#state').dataset.state)",
    );
    await this.says("#to-do", count > 0 ? `${count} to do` : isConnected ? "Nothing to do" : "To do");
    await this.says("#kept", kept === 0 ? "" : `${kept} answer${kept === 1 ? "" : "s"} kept here, to be sent later`);
  }

  /** Clicks something in an event's card, as a person does, who needs a moment after a card has moved. */
  async click(id: string, what: string): Promise<void> {
    const card = `document.querySelector("#event-${id}")`;
    await until(() => this.read<boolean>(`performance.now() - Number(${card}.dataset.moved) > 400`), `${id} to rest`);
    await this.view.scrollTo(`#event-${id} ${what}`);
    await this.view.click(`#event-${id} ${what}`);
  }

  /** Says that it could not be done, and why. */
  async fail(id: string, why = ""): Promise<void> {
    await this.click(id, "button.failed");
    await until(() => this.read<boolean>(`document.activeElement.matches("#event-${id} input")`), "the field");
    if (why !== "") await this.view.type(why);
    await this.view.press("Enter");
  }

  async picture(name: string): Promise<void> {
    const folder = process.env.PERE_SCREENSHOTS;
    if (folder) await Bun.write(join(folder, `${name}.png`), await this.view.screenshot());
  }

  [Symbol.dispose](): void {
    this.view.close();
  }
}

/** Waits until the service's row of a device is this, and gives the row. */
export async function row(url: string, id: string, device: string, status: string): Promise<Record<string, unknown>> {
  let text = "";
  return until(
    async () => {
      const answer = await ask(`${url}/events/orders/${id}/receipts`);
      text = answer.text;
      const rows = answer.body.receipts as Record<string, unknown>[];
      return rows.find((row) => row.device === device && row.status === status);
    },
    () => `${device} ${status}; the rows are ${text}`,
  );
}
