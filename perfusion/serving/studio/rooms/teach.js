// Teach: photos in, the part of each that is learned, a name; then the lesson's progress until it is a word.
import { connection, get, remove, upload } from "/studio/api.js";
import { button, dropZone, failure, field, h, icon, notify } from "/studio/dom.js";
import { canvasOf } from "/studio/parts/over_picture.js";
import { PhotoCrop } from "/studio/parts/photo_crop.js";
import { changed } from "/studio/store.js";
import { duration, t } from "/studio/texts.js";

const MOST = 10;
const ASK_MS = 1500;
const NAME = /^[\p{L}\p{N}][\p{L}\p{N}._-]{0,59}$/u;
const OPEN = new Set(["waiting", "training"]);

export function open(room, { go }) {
  const input = h("input", { type: "file", accept: "image/*,.heic,.heif", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", on: { change: () => add([...input.files]) } });
  const adder = h("button", { type: "button", class: "photo-add", on: { click: () => input.click() } }, icon("plus"), h("span", { text: t("teach.photos.add") }));
  const photos = h("ul", { class: "photos", "aria-label": t("teach.photos") });
  const note = h("p", { class: "help" });
  const wrong = h("div", {});
  const name = h("input", { type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: t("teach.name.example"), required: true, maxlength: 60 });
  const kind = h("input", { type: "text", autocomplete: "off", autocapitalize: "none", placeholder: t("teach.superclass.example"), required: true, maxlength: 60 });
  const steps = h("input", { type: "number", min: 10, max: 5000, step: 10 });
  const start = button(t("teach.go"), { sign: "teach", kind: "primary large", type: "submit" });
  const nameField = field(t("teach.name"), name, t("teach.name.help", { name: t("teach.name.example") }));
  const form = h("form", { class: "card teach-form", novalidate: true, on: { submit: (event) => { event.preventDefault(); teach(); } } },
    nameField, field(t("teach.superclass"), kind, t("teach.superclass.help")),
    h("details", { class: "more" }, h("summary", { text: t("teach.options") }), h("div", {}, field(t("teach.steps"), steps, t("teach.steps.help")))), wrong, start);
  const list = h("ul", { class: "lessons" });
  const lessons = new Map();
  const crops = [];
  let timer = null;
  room.append(
    h("div", { class: "room-head" }, h("div", {}, h("h1", { text: t("room.teach") }), h("p", { text: t("teach.words") }))),
    h("div", { class: "teach" }, h("div", { class: "stack" }, photos, note, input), h("div", { class: "stack" }, form, h("section", { class: "stack", "aria-label": t("teach.list") }, list))),
  );
  dropZone(room, add);
  name.addEventListener("input", () => { nameField.querySelector(".help").textContent = t("teach.name.help", { name: name.value.trim() || t("teach.name.example") }); });
  connection.addEventListener("online", ask);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  showPhotos();

  function showPhotos() {
    photos.classList.toggle("empty-photos", !crops.length);
    photos.replaceChildren(...crops.map(({ element }) => element), ...(crops.length < MOST ? [h("li", {}, adder)] : []));
    note.textContent = t(crops.length ? "teach.photo.note" : "teach.photos.help");
  }

  async function add(files) {
    wrong.replaceChildren();
    for (const file of files) {
      if (crops.length >= MOST) {
        wrong.append(failure(t("teach.many", { most: MOST })));
        break;
      }
      try {
        crops.push(new PhotoCrop(await canvasOf(file), crops.length + 1, leave));
      } catch (error) {
        wrong.append(failure(error.message));
      }
      showPhotos();
    }
    input.value = "";
  }

  function leave(crop) {
    crops.splice(crops.indexOf(crop), 1);
    showPhotos();
    adder.focus();
  }

  /** What is missing, with the element to mend it at; null where nothing is. */
  function fault() {
    if (!crops.length) return [t("teach.few"), adder];
    if (!NAME.test(name.value.trim())) return [t("teach.unnamed"), name];
    if (!kind.value.trim()) return [t("teach.unclassed"), kind];
    return null;
  }

  async function teach() {
    wrong.replaceChildren();
    const missing = fault();
    if (missing) {
      wrong.replaceChildren(failure(missing[0]));
      missing[1].focus();
      return;
    }
    start.disabled = true;
    try {
      const pictures = await Promise.all(crops.map((crop, place) => crop.file(`${place + 1}.png`)));
      const word = name.value.trim();
      await upload("/api/trainings", { pictures, superclass: kind.value.trim(), name: word, token: `<${word}>`, options: steps.value ? JSON.stringify({ steps: Number(steps.value) }) : undefined });
      crops.length = 0;
      showPhotos();
      name.value = "";
      await ask();
      list.scrollIntoView({ block: "nearest", behavior: "smooth" });
    } catch (error) {
      wrong.replaceChildren(failure(error.message));
    } finally {
      start.disabled = false;
    }
  }

  async function ask() {
    clearTimeout(timer);
    let states;
    try {
      states = await get("/api/trainings");
    } catch (error) {
      if (error.status) list.replaceChildren(h("li", { class: "muted", text: error.message }));
      return;
    }
    for (const state of states) show(state);
    const ids = new Set(states.map(({ id }) => id));
    for (const [id, lesson] of lessons) if (!ids.has(id)) { lesson.element.remove(); lessons.delete(id); }
    if (!states.length) list.replaceChildren(h("li", { class: "muted", text: t("teach.none") }));
    else list.replaceChildren(...states.map(({ id }) => lessons.get(id).element));
    if (!document.hidden && states.some(({ state }) => OPEN.has(state))) timer = setTimeout(ask, ASK_MS);
  }

  function show(state) {
    let lesson = lessons.get(state.id);
    if (!lesson) lessons.set(state.id, lesson = new Lesson(go, (id) => stop(id)));
    const ended = lesson.state && OPEN.has(lesson.state) && !OPEN.has(state.state);
    lesson.show(state);
    if (ended && state.state === "done") changed("concepts").then(() => notify(t("concepts.added", { word: lesson.word })), () => {});
  }

  async function stop(id) {
    try {
      await remove(`/api/trainings/${id}`);
    } catch (error) {
      notify(error.message, { bad: true });
    }
    await ask();
  }

  return { enter: ask };
}

/** One training, from its photos to its word. */
class Lesson {
  constructor(go, stop) {
    this.go = go;
    this.stop = stop;
    this.title = h("h2", {});
    this.words = h("p", { class: "muted" });
    this.bar = h("div", {});
    this.progress = h("div", { class: "progress", role: "progressbar", "aria-label": t("job.progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar);
    this.sheet = h("div", { class: "sheet" });
    this.foot = h("div", { class: "row" });
    this.element = h("li", { class: "card lesson" }, h("div", {}, this.title, this.words), this.progress, this.sheet, this.foot);
  }

  show(training) {
    const { id, state, step, total, loss, seconds_left: left, error, superclass } = training;
    const open = OPEN.has(state);
    this.word = `<${training.concept ?? training.name}>`;
    this.title.textContent = superclass ? `${this.word} · ${superclass}` : this.word;
    const parts = [t(`teach.state.${state}`)];
    if (open && step) parts.push(t("teach.step", { step, total }), left ? t("job.left", { time: duration(left) }) : null, Number.isFinite(loss) ? t("teach.loss", { loss: loss.toFixed(4) }) : null);
    this.words.textContent = error && !open ? `${parts[0]}. ${error}` : parts.filter(Boolean).join(" · ");
    this.words.classList.toggle("failure", state === "failed");
    this.progress.hidden = !open;
    const share = total ? step / total : 0;
    this.bar.style.transform = `scaleX(${share})`;
    this.progress.setAttribute("aria-valuenow", Math.round(share * 100));
    this.showSheet(training.sheet);
    if (state !== this.state) {
      this.foot.replaceChildren(state === "done" ? button(t("teach.draw", { word: this.word }), { sign: "draw", kind: "primary", on: () => this.go("draw", { action: "insert", word: this.word }) }) : "",
        open ? button(t("teach.stop"), { sign: "close", on: () => this.stop(id) }) : button(t("teach.away"), { sign: "bin", kind: "text", on: () => this.stop(id) }));
    }
    this.state = state;
  }

  /** The sheet that the training draws at its end. */
  showSheet(sheet) {
    if (sheet && !this.sheet.children.length) this.sheet.append(h("a", { href: sheet, target: "_blank", rel: "noopener" }, h("img", { src: sheet, alt: t("teach.sheet", { word: this.word }), loading: "lazy" })));
  }
}
