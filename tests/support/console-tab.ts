/**
 * A tab of a real Chromium with the console in it. What the page shows is read from its document; of the board, which is a canvas, from the cell
 * in focus, as a screen reader has it, and from its pixels.
 */
import { openTab } from "./browser.ts";
import { until } from "./harness.ts";

/** One tab on the console. */
export class Tab {
  readonly view: Bun.WebView;
  readonly complaints: string[] = [];

  constructor(width = 1200, height = 900) {
    this.view = openTab(width, height, (what) => this.complaints.push(what));
  }

  /** Opens a place of the console anew, and waits until it is live. */
  async open(url: string, place = "/"): Promise<this> {
    await this.view.navigate("about:blank");
    await this.view.navigate(`${url}/#${place}`);
    await this.state("live");
    return this;
  }

  /** Goes to another place of the page that is open. */
  go = (place: string): Promise<unknown> => this.view.evaluate(`void (location.hash = ${JSON.stringify(place)})`);

  read = async <Value>(script: string): Promise<Value> => (await this.view.evaluate(script)) as Value;

  state = (state: string): Promise<true> =>
    until(
      () => this.read<boolean>(`document.querySelector(".link")?.dataset.state === ${JSON.stringify(state)}`),
      state,
    );

  /** What something says; "" where it is not there. */
  text = (selector: string): Promise<string> =>
    this.read(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`);

  /** Waits until something says this somewhere. */
  async says(selector: string, words: string): Promise<string> {
    let said = "";
    await until(
      async () => (said = await this.text(selector)).includes(words),
      () => `${selector} to say "${words}"; it says "${said}"`,
    );
    return said;
  }

  /** Waits for something, and clicks it as a person does. */
  async click(selector: string): Promise<void> {
    await until(() => this.read<boolean>(`document.querySelector(${JSON.stringify(selector)}) !== null`), selector);
    await this.view.scrollTo(selector);
    await this.view.click(selector);
  }

  /** Waits for a button, link or label that says this, and clicks it as a person does. */
  async choose(words: string, within = "body"): Promise<void> {
    const mark = `(() => {
      document.querySelector("[data-chosen]")?.removeAttribute("data-chosen");
      const all = document.querySelectorAll(${JSON.stringify(within)} + " :is(button, a, label, summary)");
      const said = (one) => one.getAttribute("aria-label") ?? one.textContent.replace(/\\s+/g, " ").trim();
      const found = [...all].find((one) => said(one) === ${JSON.stringify(words)} && !one.disabled);
      found?.setAttribute("data-chosen", "");
      return found !== undefined;
    })()`;
    await until(() => this.read<boolean>(mark), `something that says "${words}"`);
    await this.click("[data-chosen]");
  }

  /** Empties a field, and types into it. */
  async fill(selector: string, text: string): Promise<void> {
    await this.click(selector);
    await this.read(`document.querySelector(${JSON.stringify(selector)}).select()`);
    if (text === "") await this.view.press("Backspace");
    else await this.view.type(text);
  }

  /** Puts the board's focus on a row and a column, from 0 on, by keys. */
  async focus(row: number, column: number): Promise<void> {
    const columns = `Number(document.querySelector(".grid")?.ariaColCount ?? 0)`;
    await until(async () => (await this.read<number>(columns)) >= column + 2, "the board");
    await this.read(`document.querySelector(".grid").focus()`);
    await this.view.press("Home", { modifiers: ["Control"] });
    for (let n = 0; n < row; n++) await this.view.press("ArrowDown");
    for (let n = 0; n <= column; n++) await this.view.press("ArrowRight");
  }

  /** The colour of a cell beside its sign, where trouble is filled, and the page's colour of a state. */
  pixel = (row: number, column: number, state: string): Promise<readonly [string, string]> =>
    this.read(`(() => {
      const canvas = document.querySelector(".grid canvas");
      const context = canvas.getContext("2d");
      const names = 246, head = Number(canvas.dataset.head), size = 26;
      const [x, y] = [names + ${column} * size + 5, head + ${row} * size + 13];
      const hex = ([r, g, b]) => "#" + [r, g, b].map((part) => part.toString(16).padStart(2, "0")).join("");
      const ratio = devicePixelRatio;
      return [hex(context.getImageData(x * ratio, y * ratio, 1, 1).data),
        getComputedStyle(canvas).getPropertyValue("--" + ${JSON.stringify(state)}).trim()];
    })()`);

  /** Addresses that the page asked, and that are not the service's own. */
  strangers = (url: string): Promise<string[]> =>
    this.read(`performance.getEntriesByType("resource").map(({ name }) => name)
      .filter((name) => !name.startsWith(${JSON.stringify(url)}) && !/^(data|blob):/.test(name))`);

  [Symbol.dispose](): void {
    this.view.close();
  }
}
