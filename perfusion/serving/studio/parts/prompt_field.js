// The prompt: a text in which concepts are chips, and which offers them as soon as `<` is written.
import { announce, fresh, h } from "/studio/dom.js";
import { conceptOf, news, paint, store } from "/studio/store.js";
import { t } from "/studio/texts.js";

const WORD = /<[^<>\s]+>/g;

/** The concepts' words that a prompt names, each once; `<lora:name:weight>` is another spelling of one. */
export function wordsOf(prompt) {
  const words = (prompt.match(WORD) ?? []).map((word) => word.replace(/^<lora:([^:>]+).*>$/, "<$1>"));
  return [...new Set(words)].filter((word) => conceptOf(word));
}

/** A concept's picture, or its colour where it has none. */
export function face(concept) {
  const dot = paint(h("span", { class: "dot", "aria-hidden": "true" }), concept.word);
  if (!concept.picture) return dot;
  return h("img", { src: pictureOf(concept), alt: "", loading: "lazy", on: { error: (event) => event.target.replaceWith(dot) } });
}

export const pictureOf = (concept) => `/api/concepts/${encodeURIComponent(concept.name)}/picture?${(concept.sha256 ?? "").slice(0, 8)}`;

/** The field. `changed` is called with every change of its text. */
export class PromptField {
  constructor(words, { placeholder = "", changed = () => {}, send = () => {} } = {}) {
    const list = fresh("suggestions");
    this.text = h("textarea", {
      id: fresh("prompt"), rows: 3, placeholder, spellcheck: "false", autocomplete: "off",
      "aria-autocomplete": "list", "aria-controls": list, "aria-describedby": `${list}-help`,
    });
    this.back = h("div", { class: "prompt-back", "aria-hidden": "true" });
    this.list = h("ul", { class: "suggestions", id: list, role: "listbox", "aria-label": t("prompt.suggestions"), hidden: true });
    this.element = h(
      "div", { class: "field prompt" }, h("label", { for: this.text.id, text: words }),
      h("div", { class: "prompt-box" }, this.back, this.text), this.list,
      h("p", { class: "unseen", id: `${list}-help`, text: t("prompt.help") }),
    );
    this.changed = changed;
    this.send = send;
    this.offers = [];
    this.chosen = 0;
    this.text.addEventListener("input", () => { this.show(); this.offer(); this.changed(); });
    this.text.addEventListener("keydown", (event) => this.key(event));
    this.text.addEventListener("scroll", () => { this.back.scrollTop = this.text.scrollTop; });
    this.text.addEventListener("blur", () => setTimeout(() => this.hide(), 150));
    news.addEventListener("concepts", () => { this.show(); if (document.activeElement === this.text) this.offer(); });
  }

  get value() { return this.text.value; }

  set value(text) {
    this.text.value = text;
    this.show();
    this.changed();
  }

  /** Draw the chips behind the text. */
  show() {
    const text = this.text.value;
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(WORD)) {
      const word = match[0].replace(/^<lora:([^:>]+).*>$/, "<$1>");
      const known = conceptOf(word);
      parts.push(text.slice(end, match.index), known ? paint(h("mark", { text: match[0] }), word) : h("mark", { class: "unknown", text: match[0] }));
      end = match.index + match[0].length;
    }
    this.back.replaceChildren(...parts, `${text.slice(end)}\n`);
    this.back.scrollTop = this.text.scrollTop;
  }

  /** Put a concept's word where the writing is. */
  insert(word) {
    const { selectionStart: start, selectionEnd: end, value } = this.text;
    const open = this.opening();
    const begin = open >= 0 ? open : start;
    const before = begin > 0 && !/\s$/.test(value.slice(0, begin)) ? " " : "";
    const after = /^[\s,.]/.test(value.slice(end)) ? "" : " ";
    this.text.setRangeText(before + word + after, begin, end, "end");
    this.hide();
    this.show();
    this.changed();
    this.text.focus();
  }

  /** Where the `<` stands behind which something is being written; -1 where none does. */
  opening() {
    const before = this.text.value.slice(0, this.text.selectionStart);
    const open = before.lastIndexOf("<");
    return open >= 0 && !/[>\s]/.test(before.slice(open)) ? open : -1;
  }

  offer() {
    const open = this.opening();
    const begun = open < 0 ? "" : this.text.value.slice(open + 1, this.text.selectionStart).toLowerCase();
    this.offers = open < 0 ? [] : store.concepts.filter(({ word, superclass, fits }) => fits && `${word} ${superclass}`.toLowerCase().includes(begun));
    this.chosen = 0;
    this.list.replaceChildren(...this.offers.map((concept, place) => h(
      "li", { role: "option", id: `${this.list.id}-${place}`, on: { mousedown: (event) => { event.preventDefault(); this.insert(concept.word); } } },
      face(concept), h("span", {}, concept.word, h("small", { text: concept.superclass })),
    )));
    this.list.hidden = !this.offers.length;
    this.mark();
    if (this.offers.length) announce(t("prompt.offers", { count: this.offers.length }));
  }

  mark() {
    [...this.list.children].forEach((item, place) => item.setAttribute("aria-selected", place === this.chosen));
    this.list.children[this.chosen]?.scrollIntoView({ block: "nearest" });
    if (this.list.hidden) this.text.removeAttribute("aria-activedescendant");
    else this.text.setAttribute("aria-activedescendant", `${this.list.id}-${this.chosen}`);
  }

  hide() {
    this.offers = [];
    this.list.hidden = true;
    this.mark();
  }

  key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.hide();
      this.send();
    } else if (this.offers.length && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      this.chosen = (this.chosen + (event.key === "ArrowDown" ? 1 : this.offers.length - 1)) % this.offers.length;
      this.mark();
    } else if (this.offers.length && (event.key === "Enter" || event.key === "Tab")) {
      event.preventDefault();
      this.insert(this.offers[this.chosen].word);
    } else if (this.offers.length && event.key === "Escape") {
      event.preventDefault();
      this.hide();
    }
  }
}
