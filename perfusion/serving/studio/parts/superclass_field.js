// The word for what kind of thing it is, looked up while it is typed; what may be meant instead is offered.
import { get } from "/studio/api.js";
import { button, field, h } from "/studio/dom.js";
import { t } from "/studio/texts.js";

const PAUSE_MS = 350;

export class SuperclassField {
  /** `settled` is called when a word has been looked up. */
  constructor(settled) {
    this.settled = settled;
    this.answer = null;
    this.timer = null;
    this.input = h("input", { type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: t("teach.superclass.example"), required: true, maxlength: 60 });
    this.note = h("div", { class: "superclass-note", role: "status" });
    this.element = h("div", { class: "stack tight" }, field(t("teach.superclass"), this.input, t("teach.superclass.help")), this.note);
    this.input.addEventListener("input", () => { this.answer = null; this.askSoon(); });
    // Soon, not at once: an answer between a press on a button and its release would move the button away.
    this.input.addEventListener("change", () => this.askSoon());
  }

  askSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE_MS);
  }

  get value() { return this.input.value.trim(); }

  /** Whether the model is known to know the word. */
  get known() { return this.answer?.word === this.value && this.answer.known; }

  set value(word) {
    this.input.value = word;
    this.ask();
  }

  /** Look the word up, once; the sentence that keeps it from being used, or "". */
  async ask() {
    clearTimeout(this.timer);
    const word = this.value.replace(/\s+/g, " ");
    if (!word) return this.show(null);
    if (this.answer?.word === word) return this.fault;
    const answer = await get(`/api/superclass?word=${encodeURIComponent(word)}`).catch((error) => ({ word, known: error.status === 0, near: [], sentence: error.message }));
    return word === this.value.replace(/\s+/g, " ") ? this.show(answer) : this.fault;
  }

  get fault() { return this.answer && !this.answer.known ? this.answer.sentence : ""; }

  show(answer) {
    this.answer = answer;
    this.input.toggleAttribute("aria-invalid", Boolean(this.fault));
    if (this.fault) this.input.setAttribute("aria-invalid", "true");
    if (!answer) this.note.replaceChildren();
    else this.note.replaceChildren(...this.words(answer));
    this.settled();
    return this.fault;
  }

  words({ word, known, near, sentence }) {
    const offers = near.map((other) => button(other, { kind: "chip-button", "aria-label": t("teach.superclass.take", { word: other }), on: () => { this.value = other; this.input.focus(); } }));
    const said = sentence || (known ? t("teach.superclass.known", { word }) : "");
    return [
      h("p", { class: known ? (sentence ? "help" : "help good") : "help bad", text: said }),
      offers.length ? h("div", { class: "row" }, h("span", { class: "help", text: t("teach.superclass.near") }), offers) : "",
    ].filter(Boolean);
  }
}
