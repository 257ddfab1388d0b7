/**
 * The first items of very many in an order, in memory for about twice as many.
 */
export class First<Item> {
  readonly #count: number;
  readonly #compare: (a: Item, b: Item) => number;
  #kept: Item[] = [];
  /** Items behind this one are not among the first; undefined: there are too few yet. */
  #last: Item | undefined;

  /** @param count how many are wanted, at least 1 @param compare as for `Array.sort` */
  constructor(count: number, compare: (a: Item, b: Item) => number) {
    this.#count = count;
    this.#compare = compare;
  }

  add(item: Item): void {
    if (this.#last !== undefined && this.#compare(item, this.#last) >= 0) return;
    this.#kept.push(item);
    if (this.#kept.length >= 2 * this.#count) this.#cut();
  }

  #cut(): void {
    this.#kept = this.#kept.sort(this.#compare).slice(0, this.#count);
    if (this.#kept.length === this.#count) this.#last = this.#kept.at(-1);
  }

  /** The first items, in order. */
  items(): readonly Item[] {
    this.#cut();
    return this.#kept;
  }
}
