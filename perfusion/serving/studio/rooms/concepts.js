// Concepts: the library as cards. Files and picture cards are added by dropping them; what is deleted can come back.
import { patch, post, remove, upload } from "/studio/api.js";
import { button, dialog, dropZone, emptyState, failure, field, h, icon, notify } from "/studio/dom.js";
import { pictureOf } from "/studio/parts/prompt_field.js";
import { SETTINGS } from "/studio/parts/sliders.js";
import { changed, news, paint, store } from "/studio/store.js";
import { bytes, t } from "/studio/texts.js";

export function open(room, { go }) {
  const input = h("input", { type: "file", class: "unseen", tabindex: "-1", "aria-hidden": "true", accept: ".safetensors,.png", multiple: true, on: { change: () => add([...input.files]) } });
  const wrong = h("div", {});
  const list = h("div", {});
  room.append(
    h("div", { class: "room-head" }, h("div", {}, h("h1", { text: t("room.concepts") }), h("p", { text: t("concepts.words") })), button(t("concepts.add"), { sign: "plus", kind: "primary", on: () => input.click() }), input),
    wrong, list,
  );
  dropZone(room, add);
  news.addEventListener("concepts", show);
  show();

  function show() {
    if (!store.concepts.length) {
      list.replaceChildren(emptyState("concepts", t("concepts.none"), t("concepts.none.words"), button(t("concepts.teach"), { sign: "teach", on: () => go("teach") })));
      return;
    }
    list.replaceChildren(h("ul", { class: "cards" }, store.concepts.map(card)));
  }

  async function add(files) {
    wrong.replaceChildren();
    for (const file of files) {
      try {
        const { word } = await upload("/api/concepts", { file });
        notify(t("concepts.added", { word }));
      } catch (error) {
        wrong.append(failure(`${file.name}: ${error.message}`));
      }
    }
    input.value = "";
    await changed("concepts");
  }

  function card(concept) {
    const path = `/api/concepts/${encodeURIComponent(concept.name)}`;
    const actions = h("div", { class: "row" },
      concept.fits ? button(t("concepts.draw"), { sign: "draw", on: () => go("draw", { action: "insert", word: concept.word }) }) : null,
      concept.fits ? button(t("concepts.explore"), { sign: "explore", quiet: true, on: () => go("explore", concept.word) }) : null,
      link(`${path}/card`, t("concepts.card"), t("concepts.card.help")), link(`${path}/file`, t("concepts.file"), t("concepts.file.help")),
      concept.sample ? null : button(t("concepts.rename"), { sign: "edit", quiet: true, kind: "text", on: () => rename(concept) }),
      concept.sample ? null : button(t("delete"), { sign: "bin", quiet: true, kind: "text danger", on: () => drop(concept) }));
    const kind = concept.fits ? h("span", { class: "tag good", text: t("concepts.fits") }) : h("span", { class: "tag warn", text: t("concepts.other") });
    return h("li", { class: `card concept-card ${concept.fits ? "" : "misfit"}` }, faceOf(concept), h("div", { class: "concept-body" },
      h("div", {}, h("h2", { text: concept.word }), h("p", { class: "muted", text: t("concepts.facts", { superclass: concept.superclass ?? "", size: bytes(concept.bytes) }) })),
      h("div", { class: "row" }, kind, concept.sample ? h("span", { class: "tag", text: t("concepts.sample") }) : null),
      concept.fits ? h("p", { class: "help settings-line" }, SETTINGS.map((name) => h("span", { text: `${t(`setting.${name}`)} ${Number(concept.settings[name]).toFixed(2)}` }))) : h("p", { class: "help", text: concept.why_not ?? "" }),
      actions));
  }

  function rename(concept) {
    const { body, close } = dialog(t("concepts.rename.title", { word: concept.word }));
    const name = h("input", { value: concept.name, required: true, maxlength: "60", autocomplete: "off", spellcheck: "false" });
    const fault = h("div", {});
    const form = h("form", { class: "stack" }, field(t("concepts.name"), name, t("concepts.name.help")), fault, h("div", { class: "row" }, h("button", { class: "button primary", text: t("concepts.save") })));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const { word } = await patch(`/api/concepts/${encodeURIComponent(concept.name)}`, { name: name.value.trim() });
        close();
        await changed("concepts");
        notify(t("concepts.renamed", { word }));
      } catch (error) {
        fault.replaceChildren(failure(error.message));
      }
    });
    body.append(form);
    name.select();
  }

  async function drop(concept) {
    try {
      const { undo } = await remove(`/api/concepts/${encodeURIComponent(concept.name)}`);
      await changed("concepts");
      notify(t("concepts.deleted", { word: concept.word }), { action: { words: t("undo"), on: () => back(undo) } });
    } catch (error) {
      notify(error.message, { bad: true });
    }
  }

  async function back(undo) {
    try {
      await post(`/api/concepts/undo/${undo}`);
    } catch (error) {
      notify(error.message, { bad: true });
    }
    await changed("concepts");
  }

  return {};
}

function link(href, words, help) {
  return h("a", { class: "button text", href, download: "", title: help, "aria-label": `${words}: ${help}` }, icon("download"), h("span", { text: words }));
}

/** The concept's own picture, over its first letter until it is there. */
function faceOf(concept) {
  const letter = h("span", { class: "letter", "aria-hidden": "true", text: concept.name[0] });
  const face = paint(h("div", { class: "concept-face concept-colour" }, letter), concept.word);
  if (!concept.picture) return face;
  const image = h("img", { src: pictureOf(concept), alt: "", loading: "lazy", on: { load: () => letter.remove(), error: () => image.remove() } });
  face.append(image);
  return face;
}
