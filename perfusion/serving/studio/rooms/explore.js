// Explore: one concept drawn with many settings from one seed; the cell that looks best becomes its usual setting.
import { get, patch, post, remove } from "/studio/api.js";
import { button, dialog, emptyState, failure, field, h, notify } from "/studio/dom.js";
import { isOpen, jobs } from "/studio/parts/jobs.js";
import { Front } from "/studio/parts/front.js";
import { wordsOf } from "/studio/parts/prompt_field.js";
import { Axis, named } from "/studio/parts/sweep_axis.js";
import { changed, conceptOf, news, store } from "/studio/store.js";
import { t } from "/studio/texts.js";

const AT_ONCE = 8;
const ASK_MS = 700;
const SEEDS = 2 ** 32;

export function open(room, { go }) {
  const concept = h("select", {});
  const line = () => h("textarea", { rows: 2, autocomplete: "off", spellcheck: "false", on: { keydown: (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); draw(); } } } });
  const [prompt, second] = [line(), line()];
  const seed = h("input", { type: "number", min: 0, max: SEEDS - 1, placeholder: t("form.seed.chance") });
  const across = new Axis(t("explore.across"), "bias", 5);
  const down = new Axis(t("explore.down"), "start", 3);
  const front = new Front(() => concept.value);
  const wrong = h("div", {});
  const start = button(t("explore.go"), { sign: "explore", kind: "primary large", on: () => draw() });
  const stop = button(t("explore.stop"), { sign: "close", hidden: true, on: () => halt() });
  const status = h("p", { class: "muted", role: "status" });
  const grids = h("div", { class: "grids" }, emptyState("explore", t("explore.none"), t("explore.none.words")));
  const form = h("form", { class: "card explore-form", on: { submit: (event) => { event.preventDefault(); draw(); } } },
    field(t("explore.concept"), concept), field(t("explore.prompt"), prompt), field(t("explore.second"), second), across.element, down.element, field(t("explore.seed"), seed), front.element, wrong, start, h("div", { class: "row" }, stop, status));
  let run = null;
  room.append(h("div", { class: "room-head" }, h("div", {}, h("h1", { text: t("room.explore") }), h("p", { text: t("explore.words") }))), h("div", { class: "explore" }, form, grids));
  news.addEventListener("concepts", show);
  concept.addEventListener("change", () => { suggest(); front.show(); });
  show();

  function show() {
    const words = store.concepts.filter(({ fits }) => fits).map(({ word }) => word);
    const before = concept.value;
    concept.replaceChildren(...words.map((word) => h("option", { value: word, text: word })));
    if (words.includes(before)) concept.value = before;
    start.disabled = !words.length;
    wrong.replaceChildren(...(words.length || !store.device ? [] : [h("p", { class: "muted", text: t("explore.empty") }), button(t("concepts.teach"), { sign: "teach", on: () => go("teach") })]));
    suggest();
    front.show();
  }

  /** A prompt for the concept, unless there is one that names it. */
  function suggest() {
    const { value } = concept;
    if (value && !prompt.value.includes(value)) prompt.value = t("explore.example", { word: value });
  }

  async function draw() {
    halt();
    wrong.replaceChildren();
    const word = concept.value;
    const prompts = [prompt.value.trim(), second.value.trim()].filter(Boolean);
    const missing = prompts.length === 0 || prompts.some((text) => !wordsOf(text).includes(word));
    if (missing) {
      wrong.replaceChildren(failure(t("explore.missing", { word })));
      prompt.focus();
      return;
    }
    const chosen = seed.value === "" ? Math.floor(Math.random() * SEEDS) : Number(seed.value);
    const cells = prompts.flatMap((text) => down.values.flatMap((y) => across.values.map((x) => ({ prompt: text, settings: { ...x, ...y } }))));
    const plain = front.subject ? prompts.map((text) => ({ prompt: text, settings: { strength: 0 }, plain: true })) : [];
    run = { word, seed: chosen, count: front.count, subject: front.subject, prompts, cells, orders: [...cells, ...plain], ended: false };
    grids.replaceChildren(...prompts.map((text, place) => grid(run, text, place)));
    stop.hidden = false;
    await work(run);
    if (run?.subject && !run.ended) await measure(run);
  }

  /** Ask how alike and how faithful the pictures are, and mark the front and what is recommended. */
  async function measure(mine) {
    status.textContent = t("front.measuring");
    try {
      const points = await front.measure(mine);
      if (run !== mine) return;
      grids.append(front.plot(points, mine.cells, (cell) => choose(mine, cell)));
      for (const cell of mine.cells) if (cell.picture) mark(mine, cell);
      status.textContent = front.sentence(points);
    } catch (error) {
      status.textContent = "";
      wrong.replaceChildren(failure(error.message));
    }
  }

  /** Send the cells' orders, a few at once, and take their pictures until all are there. */
  async function work(mine) {
    while (!mine.ended) {
      try {
        await step(mine);
      } catch (error) {
        if (error.status !== 429 && error.status !== 0) {
          wrong.replaceChildren(failure(error.message));
          halt();
          return;
        }
      }
      const done = mine.orders.filter(({ picture, lost }) => picture || lost).length;
      status.textContent = t("explore.drawing", { done, total: mine.orders.length });
      if (done === mine.orders.length) break;
      await new Promise((resolve) => { setTimeout(resolve, ASK_MS); });
    }
    if (run === mine) stop.hidden = true;
  }

  async function step(mine) {
    const open = mine.orders.filter(({ id, picture, lost }) => id && !picture && !lost);
    for (const cell of mine.orders.filter(({ id }) => !id).slice(0, AT_ONCE - open.length)) {
      if (mine.ended) return;
      const job = await post("/api/jobs", { prompt: cell.prompt, seed: mine.seed, count: mine.count, concept_settings: { [mine.word]: cell.settings } });
      cell.id = job.id;
      jobs.hidden.add(job.id);
    }
    const states = new Map((await get("/api/jobs")).map((job) => [job.id, job]));
    for (const cell of mine.orders.filter(({ id, picture, lost }) => id && !picture && !lost)) {
      const job = states.get(cell.id);
      if (job && isOpen(job)) continue;
      cell.pictures = (job?.pictures ?? []).filter(Boolean);
      cell.picture = cell.pictures[0];
      cell.lost = !cell.picture;
      if (cell.picture && !cell.plain) fill(mine, cell);
    }
  }

  function halt() {
    if (!run) return;
    run.ended = true;
    stop.hidden = true;
    for (const { id, picture, lost } of run.orders) if (id && !picture && !lost) remove(`/api/jobs/${id}`).catch(() => {});
  }

  function grid(mine, text, place) {
    const rows = down.values.map((y, row) => h("tr", {}, down.name ? h("th", { scope: "row", text: named(y) }) : null, across.values.map((x, column) => {
      const cell = mine.cells[(place * down.values.length + row) * across.values.length + column];
      cell.button = h("button", { type: "button", class: "cell", disabled: true, "aria-label": t("explore.cell.waiting", { settings: named(cell.settings) }), on: { click: () => choose(mine, cell) } });
      return h("td", {}, cell.button);
    })));
    const head = h("tr", {}, down.name ? h("td", {}) : null, across.values.map((x) => h("th", { scope: "col", text: named(x) })));
    return h("figure", {}, h("div", { class: "grid-scroll", tabindex: "0", role: "region", "aria-label": text }, h("table", { class: "grid-table" }, h("caption", { class: "grid-title", text }), h("thead", {}, head), h("tbody", {}, rows))));
  }

  function fill(mine, cell) {
    cell.button.replaceChildren(h("img", { src: cell.picture, alt: "" }));
    cell.button.disabled = false;
    mark(mine, cell);
  }

  function mark(mine, cell) {
    const { on_front: onFront = false, recommended = false } = cell.point ?? {};
    const notes = [onFront ? t("front.on") : "", recommended ? t("front.recommended") : ""].filter(Boolean);
    cell.button.setAttribute("aria-label", [t("explore.cell", { settings: named(cell.settings) }), ...notes].join(", "));
    cell.button.classList.toggle("on-front", onFront);
    cell.button.classList.toggle("recommended", recommended);
    const usual = conceptOf(mine.word)?.settings ?? {};
    cell.button.classList.toggle("usual", Object.entries(cell.settings).every(([name, value]) => Math.abs(usual[name] - value) < 1e-6));
  }

  function choose(mine, cell) {
    const settings = named(cell.settings);
    const { body, close } = dialog(t("explore.default.title"));
    body.append(h("img", { class: "chosen", src: cell.picture, alt: settings }), h("p", { text: t("explore.default.words", { word: mine.word, settings }) }),
      h("div", { class: "row" }, button(t("explore.default.go"), { kind: "primary", on: async () => {
        try {
          await patch(`/api/concepts/${encodeURIComponent(conceptOf(mine.word).name)}`, { settings: cell.settings });
          close();
          await changed("concepts");
          for (const each of mine.cells) if (each.picture) mark(mine, each);
          notify(t("explore.default.done", { word: mine.word, settings }));
        } catch (error) {
          close();
          notify(error.message, { bad: true });
        }
      } }), button(t("act.use"), { sign: "draw", on: () => { close(); go("draw", { action: "use", settings: { prompt: cell.prompt, seed: mine.seed, concept_settings: { [mine.word]: cell.settings } } }); } })));
  }

  return {
    enter: () => front.refresh(),
    /** The concept that another room hands over. */
    take(word) {
      concept.value = word;
      prompt.value = t("explore.example", { word });
      front.show();
    },
  };
}
