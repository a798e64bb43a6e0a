// History: everything that was drawn here, the newest first, as far back as one scrolls.
import { get, patch, remove } from "/studio/api.js";
import { button, emptyState, failure, field, h, notify } from "/studio/dom.js";
import { showPicture } from "/studio/parts/viewer.js";
import { changed, news } from "/studio/store.js";
import { t } from "/studio/texts.js";

const PAGE = 48;
const PAUSE_MS = 250;

export function open(room, { go }) {
  const search = h("input", { type: "search", autocomplete: "off" });
  const only = h("input", { type: "checkbox" });
  const list = h("ul", { class: "gallery" });
  const end = h("div", { class: "gallery-end" });
  const count = h("p", { class: "unseen", role: "status" });
  let pictures = [];
  let complete = false;
  let loading = null;
  let timer = null;
  room.append(
    h("div", { class: "room-head" }, h("h1", { text: t("room.history") })),
    h("div", { class: "history-tools" }, field(t("history.search"), search), h("label", { class: "check" }, only, t("history.favourites"))), count, list, end,
  );
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(restart, PAUSE_MS); });
  only.addEventListener("change", restart);
  news.addEventListener("pictures", () => { if (room.isConnected) restart(); });
  const act = { remove: drop, ...Object.fromEntries(["use", "other"].map((action) => [action, (settings) => go("draw", { action, settings })])), ...Object.fromEntries(["like", "over"].map((action) => [action, (picture) => go("draw", { action, picture })])) };
  new IntersectionObserver((entries) => { if (entries.some(({ isIntersecting }) => isIntersecting) && pictures.length) more(); }, { rootMargin: "600px" }).observe(end);

  /** From the newest on, with the search as it is now. */
  function restart() {
    loading?.abort();
    loading = null;
    complete = false;
    return more(true);
  }

  async function more(first = false) {
    if (loading || (complete && !first)) return;
    const control = new AbortController();
    loading = control;
    const query = new URLSearchParams({ limit: PAGE });
    if (search.value.trim()) query.set("search", search.value.trim());
    if (only.checked) query.set("favourite", "true");
    if (!first && pictures.length) query.set("before", pictures.at(-1).created);
    try {
      const page = await get(`/api/pictures?${query}`, { signal: control.signal });
      if (loading !== control) return;
      complete = page.length < PAGE;
      if (first) pictures = [];
      pictures.push(...page);
      list.replaceChildren(...(first ? [] : [...list.children]), ...page.map(tile));
      showEnd();
    } catch (error) {
      if (error.name !== "AbortError") end.replaceChildren(failure(error.message), button(t("history.more"), { on: () => { loading = null; more(first); } }));
    } finally {
      if (loading === control) loading = null;
    }
  }

  function showEnd() {
    count.textContent = t("history.count", { count: pictures.length });
    const searching = search.value.trim() || only.checked;
    if (pictures.length) end.replaceChildren(...(complete ? [] : [button(t("history.more"), { on: () => more() })]));
    else if (searching) end.replaceChildren(emptyState("search", t("history.nothing"), t("history.nothing.words")));
    else end.replaceChildren(emptyState("history", t("history.none"), t("history.none.words"), button(t("history.draw"), { sign: "draw", kind: "primary", on: () => go("draw") })));
  }

  function tile(picture) {
    const { prompt } = picture;
    const heart = button(t("history.mark", { prompt }), { sign: "heart", quiet: true, kind: "fav heart", "aria-pressed": String(picture.favourite), on: () => mark(picture, heart) });
    return h("li", { "data-id": picture.id },
      h("button", { type: "button", class: "tile", "aria-label": prompt, title: prompt, on: { click: () => showPicture(picture, act) } }, h("img", { src: picture.url, alt: "", loading: "lazy", decoding: "async", width: picture.width, height: picture.height })), heart,
      picture.expires_soon && !picture.favourite ? h("span", { class: "tag warn expiring", title: t("history.expires"), text: t("history.expires") }) : null);
  }

  async function mark(picture, heart) {
    try {
      Object.assign(picture, await patch(picture.url, { favourite: !picture.favourite }));
      heart.setAttribute("aria-pressed", String(picture.favourite));
    } catch (error) {
      notify(error.message, { bad: true });
    }
  }

  async function drop(picture) {
    try {
      await remove(picture.url);
      await changed("pictures");
      notify(t("history.deleted"));
    } catch (error) {
      notify(error.message, { bad: true });
    }
  }

  return { enter: () => { restart(); } };
}
