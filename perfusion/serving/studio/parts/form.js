// The settings of a drawing beside its prompt: size, number, seed, steps, guidance, scheduler, concepts' settings.
import { get } from "/studio/api.js";
import { button, field, h } from "/studio/dom.js";
import { wordsOf, face } from "/studio/parts/prompt_field.js";
import { conceptSliders } from "/studio/parts/sliders.js";
import { conceptOf, news, paint, store } from "/studio/store.js";
import { t } from "/studio/texts.js";

const SHAPES = [["square", 1, 1], ["portrait", 3, 4], ["landscape", 4, 3], ["tall", 9, 16], ["wide", 16, 9]];
const MOST_COUNT = 8;

const select = (options) => h("select", {}, options.map(([value, words]) => h("option", { value, text: words })));
const number = (options) => h("input", { type: "number", inputmode: "decimal", ...options });

/** The form. `changed` is called whenever it has; `words()` gives the prompt's concepts. */
export class Form {
  constructor(changed) {
    this.changed = changed;
    this.settings = {};
    this.size = select([]);
    this.width = number({ min: 8, max: 4096, step: 8 });
    this.height = number({ min: 8, max: 4096, step: 8 });
    this.count = select(Array.from({ length: MOST_COUNT }, (_, place) => [place + 1, String(place + 1)]));
    this.seed = number({ min: 0, max: 4294967295, step: 1, placeholder: t("form.seed.chance") });
    this.steps = number({ min: 1, max: 1000, step: 1 });
    this.guidance = number({ min: 0, max: 50, step: "any" });
    this.scheduler = select([]);
    this.negative = h("textarea", { rows: 2, placeholder: t("form.negative.example") });
    this.lock = select(["", "local", "global"].map((value) => [value, t(`form.lock.${value || "own"}`)]));
    this.gates = select(["similarity", "coordinates"].map((value) => [value, t(`form.gates.${value}`)]));
    this.other = h("div", { class: "fields", hidden: true }, field(t("form.width"), this.width), field(t("form.height"), this.height));
    this.plan = h("p", { class: "help", role: "status" });
    this.concepts = h("div", { class: "concept-settings" });
    this.size.addEventListener("change", () => this.chooseSize());
    for (const input of [this.width, this.height, this.count]) input.addEventListener("change", () => this.ask());
    news.addEventListener("device", () => this.fit());
    if (store.device) this.fit();
    const seed = h("div", { class: "seed" }, field(t("form.seed"), this.seed), button(t("form.seed.clear"), { sign: "dice", quiet: true, on: () => { this.seed.value = ""; this.seed.focus(); } }));
    this.basic = h("div", { class: "stack" }, h("div", { class: "fields basic" }, field(t("form.size"), this.size), field(t("form.count"), this.count), seed), this.other, this.plan);
    this.more = h("details", { class: "more" }, h("summary", { text: t("form.more") }), h("div", {},
      field(t("form.negative"), this.negative),
      h("div", { class: "fields" }, field(t("form.steps"), this.steps), field(t("form.guidance"), this.guidance), field(t("form.scheduler"), this.scheduler)),
      field(t("form.lock"), this.lock, t("form.lock.help")), field(t("form.gates"), this.gates, t("form.gates.help"))));
  }

  /** Take over what the bundle can. */
  fit() {
    const { bundle } = store.device;
    const chosen = this.bundle ? this.size.value : `${bundle.width}x${bundle.height}`;
    this.bundle = bundle;
    const area = bundle.width * bundle.height;
    const grain = Math.max(bundle.size_step ?? 8, area >= 256 * 256 ? 64 : 16);
    const sizes = SHAPES.map(([name, across, down]) => {
      const unit = Math.sqrt(area / (across * down));
      const round = (side) => Math.max(grain, Math.round(side / grain) * grain);
      const [width, height] = name === "square" ? [bundle.width, bundle.height] : [round(across * unit), round(down * unit)];
      return [`${width}x${height}`, t("form.size.words", { width, height, shape: t(`form.shape.${name}`) })];
    });
    this.size.replaceChildren(...[...sizes, ["other", t("form.size.other")]].map(([value, words]) => h("option", { value, text: words })));
    this.size.value = chosen;
    this.steps.placeholder = bundle.num_inference_steps;
    this.guidance.placeholder = bundle.guidance_scale;
    const schedulers = [["", t("form.scheduler.own", { name: bundle.scheduler })], ...bundle.schedulers.map((name) => [name, t(`scheduler.${name}`)])];
    const scheduler = this.scheduler.value;
    this.scheduler.replaceChildren(...schedulers.map(([value, words]) => h("option", { value, text: words })));
    this.scheduler.value = scheduler;
    if (!this.width.value) [this.width.value, this.height.value] = [bundle.width, bundle.height];
    if (this.early) {
      const settings = this.early;
      this.early = null;
      this.use(settings);
    }
  }

  get shape() {
    if (!this.bundle) return [];
    if (this.size.value === "other") return [Number(this.width.value), Number(this.height.value)];
    return this.size.value.split("x").map(Number);
  }

  chooseSize() {
    this.other.hidden = this.size.value !== "other";
    if (this.other.hidden) [this.width.value, this.height.value] = this.shape;
    this.ask();
  }

  /** Ask whether the size fits into the memory, before it is drawn. */
  async ask() {
    this.changed();
    const [width, height] = this.shape;
    if (!width || !height) return;
    const plan = await get(`/api/plan?width=${width}&height=${height}`).catch((error) => ({ fits: ![400, 413].includes(error.status), sentence: error.message }));
    // Answers may come in another order than they were asked for: one of an earlier size says nothing of this one.
    if (this.shape.join() !== [width, height].join()) return;
    this.plan.textContent = plan.fits ? "" : plan.sentence;
    this.plan.classList.toggle("failure", !plan.fits);
  }

  /** Show sliders for the concepts of the prompt. */
  showConcepts(prompt, closed = false) {
    const words = wordsOf(prompt);
    const shown = [...this.concepts.children].map((element) => element.dataset.word);
    if (!closed && words.join() === shown.join()) return;
    this.concepts.replaceChildren(...words.map((word) => this.conceptPanel(conceptOf(word))));
  }

  conceptPanel(concept) {
    const { word } = concept;
    const note = h("span", { class: "tag" });
    const show = (changes) => {
      this.settings[word] = changes;
      const count = Object.keys(changes).length;
      note.textContent = count ? t("concept.changed", { count }) : t("concept.unchanged");
    };
    const { elements, reset } = conceptSliders(this.settings[word] ?? {}, concept.settings, show);
    const panel = h("details", { class: "concept-panel concept-colour", "data-word": word },
      h("summary", {}, face(concept), h("span", { class: "name", text: word }), note),
      h("div", { class: "stack" }, elements, h("div", {}, button(t("concept.reset"), { sign: "again", kind: "text", on: reset }))));
    return paint(panel, word);
  }

  /** The order, without its prompt. */
  fields(prompt) {
    const [width, height] = this.shape;
    const words = wordsOf(prompt);
    const chosen = Object.entries(this.settings).filter(([word, changes]) => words.includes(word) && Object.keys(changes).length);
    const filled = (input) => (input.value === "" ? undefined : Number(input.value));
    return {
      negative_prompt: this.negative.value.trim() || undefined, width, height, num_inference_steps: filled(this.steps), guidance_scale: filled(this.guidance),
      scheduler: this.scheduler.value || undefined, seed: filled(this.seed), count: Number(this.count.value), lock: this.lock.value || undefined,
      gates: this.gates.value === "similarity" ? undefined : this.gates.value, concept_settings: chosen.length ? Object.fromEntries(chosen) : undefined,
    };
  }

  /** Fill the form from settings of a picture. */
  use(settings) {
    const { width, height } = settings;
    if (!this.bundle) this.early = settings; // sizes and schedulers are not there to be chosen yet: once more when they are
    if (width && height) {
      this.size.value = `${width}x${height}`;
      if (!this.size.value) this.size.value = "other";
      [this.width.value, this.height.value] = [width, height];
      this.other.hidden = this.size.value !== "other";
    }
    const bundle = this.bundle ?? {};
    this.steps.value = settings.num_inference_steps === bundle.num_inference_steps ? "" : settings.num_inference_steps ?? "";
    this.guidance.value = settings.guidance_scale === bundle.guidance_scale ? "" : settings.guidance_scale ?? "";
    this.scheduler.value = settings.scheduler === bundle.scheduler ? "" : settings.scheduler ?? "";
    this.seed.value = settings.seed ?? "";
    this.count.value = String(settings.count ?? 1);
    this.negative.value = settings.negative_prompt ?? "";
    this.lock.value = settings.lock ?? "";
    this.gates.value = settings.gates ?? "similarity";
    this.settings = structuredClone(settings.concept_settings ?? {});
    if (this.negative.value || this.steps.value || this.guidance.value || this.scheduler.value) this.more.open = true;
  }
}
