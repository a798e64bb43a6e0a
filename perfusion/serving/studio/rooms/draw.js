// Draw: a prompt with concepts, their settings, where they stand, and the pictures as they come.
import { button, dropZone, failure, h, notify } from "/studio/dom.js";
import { Form } from "/studio/parts/form.js";
import { jobs } from "/studio/parts/jobs.js";
import { OverPicture } from "/studio/parts/over_picture.js";
import { formSettings, settingsOfFile } from "/studio/parts/picture_settings.js";
import { PlaceCanvas } from "/studio/parts/place_canvas.js";
import { PromptField, face, wordsOf } from "/studio/parts/prompt_field.js";
import { Stage } from "/studio/parts/stage.js";
import { kept, news, paint, store } from "/studio/store.js";
import { t } from "/studio/texts.js";

const LIKE_STRENGTH = 0.6;
const LIKE_COUNT = 4;

export function open(room) {
  const prompt = new PromptField(t("draw.prompt"), { placeholder: t("draw.example"), changed: () => update(), send: () => draw() });
  const form = new Form(() => update());
  const over = new OverPicture(() => {});
  const place = new PlaceCanvas(() => {});
  const wrong = h("div", {});
  const chips = h("div", { class: "chips", role: "group", "aria-label": t("draw.concepts") });
  const go = button(t("draw.go"), { kind: "primary large", sign: "draw", title: t("draw.go.help"), on: () => draw() });
  const placing = h("details", { class: "more" }, h("summary", { text: t("place.title") }), h("div", {}, place.element));
  const overing = h("details", { class: "more" }, h("summary", { text: t("over.title") }), h("div", {}, over.element));
  const stage = new Stage({ use, other, again, like, over: drawOver });

  const panel = h("form", { class: "card draw-panel", on: { submit: (event) => { event.preventDefault(); draw(); } } },
    prompt.element, chips, form.concepts, form.basic, placing, overing, form.more, wrong, h("div", { class: "draw-go" }, go));
  room.append(h("h1", { class: "unseen", text: t("room.draw") }), h("div", { class: "draw-columns" }, panel, stage.element));
  dropZone(room, ([file]) => takeFile(file));
  news.addEventListener("concepts", () => { showChips(); update(); });
  news.addEventListener("device", () => update());
  showChips();
  prompt.value = kept.read("prompt", "");
  jobs.refresh();
  stage.show();

  function update() {
    const words = wordsOf(prompt.value);
    form.showConcepts(prompt.value);
    place.show(words, ...form.shape);
    overing.hidden = form.bundle?.reads_pictures === false;
    placing.hidden = form.bundle?.regions === false;
    if (kept.read("prompt") === prompt.value) return;
    kept.write("prompt", prompt.value);
    wrong.replaceChildren();
    prompt.text.removeAttribute("aria-invalid");
  }

  function showChips() {
    const fitting = store.concepts.filter(({ fits }) => fits);
    chips.replaceChildren(...fitting.map((concept) => paint(h("button", {
      type: "button", class: "chip", title: t("draw.insert", { word: concept.word }), "aria-label": t("draw.insert", { word: concept.word }), on: { click: () => prompt.insert(concept.word) },
    }, face(concept), h("span", { text: concept.word })), concept.word)));
  }

  /** Order what the form says. */
  function draw() {
    const regions = place.placed.map(([word, box]) => ({ word, box }));
    return order({ prompt: prompt.value.trim(), ...form.fields(prompt.value), ...(regions.length ? { regions } : {}), ...over.fields() });
  }

  async function order(fields) {
    wrong.replaceChildren();
    if (!fields.prompt) return refuse(t("draw.empty"), "prompt");
    go.disabled = true;
    try {
      stage.choose(await jobs.submit(fields));
      if (matchMedia("(max-width: 760px)").matches) stage.element.scrollIntoView({ behavior: "smooth" });
    } catch (error) {
      refuse(error.message, error.field);
    } finally {
      go.disabled = false;
    }
  }

  function refuse(sentence, at) {
    wrong.replaceChildren(failure(sentence));
    if (at !== "prompt") return;
    prompt.text.setAttribute("aria-invalid", "true");
    prompt.text.focus();
  }

  /** The order that drew a picture, ready to be sent once more. */
  function orderOf(settings) {
    const { prompt: words, negative_prompt, width, height, num_inference_steps, guidance_scale, scheduler, seed, count, lock, gates, concept_settings, regions } = formSettings(settings);
    return { prompt: words, negative_prompt, width, height, num_inference_steps, guidance_scale, scheduler, seed, count, lock, gates, concept_settings, ...(regions.length ? { regions } : {}) };
  }

  function use(settings) {
    const values = formSettings(settings);
    prompt.value = values.prompt ?? "";
    form.use(values);
    place.boxes = Object.fromEntries(values.regions.map(({ word, box }) => [word, box]));
    placing.open ||= values.regions.length > 0;
    update();
    form.showConcepts(prompt.value, true);
    notify(t("draw.used"));
    scrollTo({ top: 0, behavior: "smooth" });
  }

  function other(settings) { return order({ ...orderOf(settings), seed: undefined }); }

  function again(settings) { return order(orderOf(settings)); }

  async function like({ url, settings }) {
    await over.take(url);
    const { image } = over.fields();
    over.clear();
    return order({ ...orderOf(settings), seed: undefined, count: LIKE_COUNT, image, image_strength: LIKE_STRENGTH });
  }

  async function drawOver({ url, settings }) {
    use(settings);
    await over.take(url);
    overing.open = true;
    overing.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  async function takeFile(file) {
    try {
      use(await settingsOfFile(file));
    } catch (error) {
      notify(error.message, { bad: true });
    }
  }

  return {
    enter: () => jobs.refresh(),
    /** What another room hands over: {action, ...}. */
    take({ action, picture, settings, word }) {
      if (action === "insert") prompt.insert(word);
      else if (action === "like" || action === "over") ({ like, over: drawOver })[action](picture);
      else ({ use, other, again })[action](settings);
    },
  };
}
