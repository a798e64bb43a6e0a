// One training, from its photos to its word: how far it is, what it draws already, what came of it.
import { button, h } from "/studio/dom.js";
import { duration, t } from "/studio/texts.js";

const GRADES = { "learned": "good", "partly": "warn", "colours only": "warn", "not learned": "bad" };

export const isOpen = ({ state }) => state === "waiting" || state === "training";

export class Lesson {
  /** `act`: {draw(word), stop(facts), goOn(facts), away(facts)}. */
  constructor(act) {
    this.act = act;
    this.facts = null;
    this.title = h("h2", {});
    this.words = h("p", { class: "muted" });
    this.bar = h("div", {});
    this.progress = h("div", { class: "progress", role: "progressbar", "aria-label": t("job.progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar);
    this.samples = h("ul", { class: "samples", tabindex: "0", "aria-label": t("teach.samples") });
    this.verdict = h("p", { class: "verdict", hidden: true });
    this.sheet = h("div", { class: "sheet" });
    this.foot = h("div", { class: "row" });
    this.element = h("li", { class: "card lesson" }, h("div", {}, this.title, this.words), this.progress, this.samples, this.verdict, this.sheet, this.foot);
  }

  show(facts) {
    const before = this.facts;
    this.facts = facts;
    this.word = `<${facts.concept ?? facts.name}>`;
    this.title.textContent = facts.superclass ? `${this.word} · ${facts.superclass}` : this.word;
    this.words.textContent = this.stateWords();
    this.words.classList.toggle("failure", facts.state === "failed");
    const share = facts.total ? facts.step / facts.total : 0;
    this.progress.hidden = !isOpen(facts);
    this.bar.style.transform = `scaleX(${share})`;
    this.progress.setAttribute("aria-valuenow", Math.round(share * 100));
    this.showSamples();
    this.showVerdict();
    this.showSheet();
    if (before?.state !== facts.state) this.foot.replaceChildren(...this.actions());
  }

  stateWords() {
    const { state, step, total, loss, seconds_left: left, error } = this.facts;
    const words = t(`teach.state.${state}`);
    if (!isOpen(this.facts)) return error ? `${words}. ${error}` : words;
    if (state === "training" && !step) return `${words} · ${t("teach.prepares")}`;
    const parts = [words, step ? t("teach.step", { step, total }) : "", left ? t("job.left", { time: duration(left) }) : "", Number.isFinite(loss) ? t("teach.loss", { loss: loss.toFixed(4) }) : ""];
    if (state === "training" && step === total) parts[1] = t("teach.tries");
    return parts.filter(Boolean).join(" · ");
  }

  actions() {
    const { facts, act } = this;
    if (isOpen(facts)) return [button(t("teach.stop"), { sign: "close", on: () => act.stop(this.facts) })];
    const goes = button(t(facts.state === "done" ? "teach.on.longer" : "teach.on"), { sign: "again", on: () => act.goOn(this.facts) });
    const away = button(t("teach.away"), { sign: "bin", kind: "text danger", on: () => act.away(this.facts) });
    if (facts.state !== "done") return [goes, away];
    return [button(t("teach.draw", { word: this.word }), { sign: "draw", kind: "primary", on: () => act.draw(this.word) }), goes, away];
  }

  /** What it draws after so many steps, the newest last; those that are there stay. */
  showSamples() {
    const { samples = [] } = this.facts;
    const shown = new Set([...this.samples.children].map(({ dataset }) => Number(dataset.step)));
    for (const { step, url } of samples) {
      if (shown.has(step)) continue;
      this.samples.append(h("li", { "data-step": step }, h("img", { src: url, alt: t("teach.sample", { step }), loading: "lazy" }), h("span", { class: "help", text: String(step) })));
    }
    this.samples.hidden = !samples.length;
  }

  showVerdict() {
    const { grade, verdict } = this.facts;
    this.verdict.hidden = !verdict;
    const words = verdict?.startsWith(`${grade}: `) ? verdict.slice(grade.length + 2) : verdict; // the tag has said it
    if (verdict) this.verdict.replaceChildren(h("span", { class: `tag ${GRADES[grade] ?? ""}`, text: grade }), ` ${words}`);
  }

  /** The sheet that the training draws at its end. */
  showSheet() {
    const { sheet, step } = this.facts;
    if (!sheet || isOpen(this.facts)) return this.sheet.replaceChildren();
    const source = `${sheet}?${step}`;
    if (this.sheet.querySelector("img")?.getAttribute("src") === source) return undefined;
    return this.sheet.replaceChildren(h("a", { href: source, target: "_blank", rel: "noopener" }, h("img", { src: source, alt: t("teach.sheet", { word: this.word }), loading: "lazy" })));
  }
}
