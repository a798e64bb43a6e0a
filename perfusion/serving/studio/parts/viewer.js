// One picture large, with what it was drawn with and what can be done with it.
import { patch } from "/studio/api.js";
import { button, dialog, h, icon, notify } from "/studio/dom.js";
import { changed, conceptOf, paint } from "/studio/store.js";
import { t } from "/studio/texts.js";

const WORD = /(<[^<>\s]+>)/;

/** A prompt with its concepts as chips. */
export function promptText(prompt) {
  return h("p", { class: "prompt-text" }, prompt.split(WORD).map((part) => (conceptOf(part) ? paint(h("mark", { text: part }), part) : part)));
}

/** What a picture was drawn with, as a list of names and values. */
export function settingsList(settings) {
  const { bundle: _bundle, concepts, concept_settings: changes, ...rest } = settings;
  const rows = [
    ["size", rest.width && t("size", { width: rest.width, height: rest.height })], ["seed", rest.seed], ["steps", rest.num_inference_steps], ["guidance", rest.guidance_scale],
    ["scheduler", rest.scheduler && t(`scheduler.${rest.scheduler}`)], ["negative", rest.negative_prompt], ["base", rest.base], ["over", rest.image_strength],
    ...Object.entries(concepts ?? changes ?? {}).map(([word, values]) => [word, ["bias", "strength", "start", "temperature"].filter((name) => values?.[name] !== undefined).map((name) => `${t(`setting.${name}`)} ${Number(values[name]).toFixed(2)}`).join(" · ")]),
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value !== undefined && value !== null && value !== "").map(([name, value]) => h("div", {}, h("dt", { text: name.startsWith("<") ? name : t(`fact.${name}`) }), h("dd", { text: String(value) }))));
}

/** Open a picture {url, settings, favourite?}; `act` does what its buttons say. */
export function showPicture(picture, act) {
  const { settings } = picture;
  const { body, close } = dialog(t("picture.title"), { wide: true });
  const then = (action, what) => () => { close(); act[action](what); };
  const favourite = button(t("favourite"), { sign: "heart", kind: "fav", "aria-pressed": String(Boolean(picture.favourite)), on: async () => {
    try {
      const next = favourite.getAttribute("aria-pressed") !== "true";
      await patch(picture.url, { favourite: next });
      favourite.setAttribute("aria-pressed", String(next));
      changed("pictures");
    } catch (error) {
      notify(error.message, { bad: true });
    }
  } });
  body.classList.add("viewer");
  body.append(
    h("div", { class: "viewer-picture" }, h("img", { src: picture.url, alt: t("picture.alt", { prompt: settings.prompt ?? "" }), width: settings.width, height: settings.height })),
    h("div", { class: "stack" }, promptText(settings.prompt ?? ""), settingsList(settings),
      h("div", { class: "row" },
        button(t("act.use"), { sign: "settings", kind: "primary", on: then("use", settings) }), button(t("act.other"), { sign: "dice", on: then("other", settings) }), button(t("act.like"), { sign: "more", on: then("like", picture) }),
        button(t("act.over"), { sign: "brush", on: then("over", picture) }), favourite,
        h("a", { class: "button", href: picture.url, download: "" }, icon("download"), h("span", { text: t("download") })),
        act.remove ? button(t("delete"), { sign: "bin", kind: "danger", on: then("remove", picture) }) : null)),
  );
}
