// Teach: photos in, the part of each that is learned, a name; then the lesson's progress until it is a word.
import { connection, get, post, remove, upload } from "/studio/api.js";
import { button, dropZone, failure, field, h, icon, notify } from "/studio/dom.js";
import { canvasOf } from "/studio/parts/over_picture.js";
import { MaskFinder } from "/studio/parts/mask_finder.js";
import { Lesson, isOpen } from "/studio/parts/lesson.js";
import { PhotoCrop } from "/studio/parts/photo_crop.js";
import { SuperclassField } from "/studio/parts/superclass_field.js";
import { changed } from "/studio/store.js";
import { t } from "/studio/texts.js";

const MOST = 10;
const ASK_MS = 1500;
const NAME = /^[\p{L}\p{N}][\p{L}\p{N}._-]{0,59}$/u;

export function open(room, { go }) {
  const input = h("input", { type: "file", accept: "image/*,.heic,.heif", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", on: { change: () => add([...input.files]) } });
  const adder = h("button", { type: "button", class: "photo-add", on: { click: () => input.click() } }, icon("plus"), h("span", { text: t("teach.photos.add") }));
  const photos = h("ul", { class: "photos", "aria-label": t("teach.photos") });
  const note = h("p", { class: "help" });
  const wrong = h("div", {});
  const name = h("input", { type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false", placeholder: t("teach.name.example"), required: true, maxlength: 60 });
  const kind = new SuperclassField(() => look());
  const finding = new MaskFinder(() => crops, () => (kind.known ? kind.value : ""));
  const steps = h("input", { type: "number", min: 10, max: 5000, step: 10 });
  const start = button(t("teach.go"), { sign: "teach", kind: "primary large", type: "submit" });
  const nameField = field(t("teach.name"), name, t("teach.name.help", { name: t("teach.name.example") }));
  const form = h("form", { class: "card teach-form", novalidate: true, on: { submit: (event) => { event.preventDefault(); teach(); } } },
    nameField, kind.element,
    h("details", { class: "more" }, h("summary", { text: t("teach.options") }), h("div", {}, field(t("teach.steps"), steps, t("teach.steps.help")))), wrong, start);
  const list = h("ul", { class: "lessons" });
  const lessons = new Map();
  const crops = [];
  let timer = null;
  let count = 0;
  room.append(
    h("div", { class: "room-head" }, h("div", {}, h("h1", { text: t("room.teach") }), h("p", { text: t("teach.words") }))),
    h("div", { class: "teach" }, h("div", { class: "stack" }, photos, note, finding.element, input), h("div", { class: "stack" }, form, h("section", { class: "stack", "aria-label": t("teach.list") }, list))),
  );
  dropZone(room, add);
  name.addEventListener("input", () => { nameField.querySelector(".help").textContent = t("teach.name.help", { name: name.value.trim() || t("teach.name.example") }); });
  connection.addEventListener("online", ask);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  showPhotos();

  const look = () => finding.later();

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
        crops.push(new PhotoCrop(await canvasOf(file), count += 1, { leave, changed: look }));
      } catch (error) {
        wrong.append(failure(error.message));
      }
      showPhotos();
    }
    input.value = "";
    look();
  }

  function leave(crop) {
    crops.splice(crops.indexOf(crop), 1);
    showPhotos();
    look();
    adder.focus();
  }

  /** What is missing, with the element to mend it at; null where nothing is. */
  function fault() {
    if (!crops.length) return [t("teach.few"), adder];
    if (!NAME.test(name.value.trim())) return [t("teach.unnamed"), name];
    if (!kind.value) return [t("teach.unclassed"), kind.input];
    return null;
  }

  async function teach() {
    wrong.replaceChildren();
    const unknown = kind.value ? await kind.ask() : "";
    const missing = fault() ?? (unknown ? [unknown, kind.input] : null);
    if (missing) {
      wrong.replaceChildren(failure(missing[0]));
      missing[1].focus();
      return;
    }
    start.disabled = true;
    try {
      const pictures = await Promise.all(crops.map((crop, place) => crop.file(`${place + 1}.png`)));
      const word = name.value.trim();
      const masks = await finding.files();
      await upload("/api/trainings", { pictures, masks, superclass: kind.value, name: word, token: `<${word}>`, options: steps.value ? JSON.stringify({ steps: Number(steps.value) }) : undefined });
      crops.length = count = 0;
      showPhotos();
      look();
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
    const elements = states.map(({ id }) => lessons.get(id).element);
    if (!states.length) list.replaceChildren(h("li", { class: "muted", text: t("teach.none") }));
    else if (elements.some((element, place) => list.children[place] !== element)) list.replaceChildren(...elements); // else the focus stays
    if (!document.hidden && states.some(isOpen)) timer = setTimeout(ask, ASK_MS);
  }

  function show(state) {
    let lesson = lessons.get(state.id);
    if (!lesson) lessons.set(state.id, lesson = new Lesson({ draw: (word) => go("draw", { action: "insert", word }), stop, goOn, away }));
    const ended = lesson.facts && isOpen(lesson.facts) && !isOpen(state);
    lesson.show(state);
    if (ended && state.state === "done") changed("concepts").then(() => notify(t("concepts.added", { word: lesson.word })), () => {});
  }

  /** Do something to a lesson, say what went wrong, and look at all of them again. */
  async function act(deed) {
    try {
      await deed();
    } catch (error) {
      notify(error.message, { bad: true });
    }
    await ask();
  }

  const stop = ({ id }) => act(() => remove(`/api/trainings/${id}`));

  const goOn = ({ id }) => act(() => post(`/api/trainings/${id}/continue`, {}));

  /** The lesson goes, and its concept with it; the concept can come back. */
  const away = ({ id, concept, name: called }) => act(async () => {
    await remove(`/api/trainings/${id}`);
    if (!concept) return;
    const { undo } = await remove(`/api/concepts/${encodeURIComponent(concept)}`);
    await changed("concepts");
    notify(t("concepts.deleted", { word: `<${called}>` }), { action: { words: t("undo"), on: () => act(async () => { await post(`/api/concepts/undo/${undo}`); await changed("concepts"); }) } });
  });

  return { enter: ask };
}
