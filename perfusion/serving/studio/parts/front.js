// What is best: the settings measured against pictures of the thing, as a front between likeness and faith.
import { get, upload } from "/studio/api.js";
import { button, dropZone, failure, field, h } from "/studio/dom.js";
import { canvasOf } from "/studio/parts/over_picture.js";
import { named } from "/studio/parts/sweep_axis.js";
import { conceptOf } from "/studio/store.js";
import { t } from "/studio/texts.js";

const MOST = 10;
const SIDE = 512;
const [WIDTH, HEIGHT, MARGIN] = [420, 300, 44];
const SVG = "http://www.w3.org/2000/svg";

export class Front {
  /** `word()` gives the concept that is explored. */
  constructor(word) {
    this.word = word;
    this.lessons = [];
    this.photos = [];
    this.input = h("input", { type: "file", accept: "image/*,.heic,.heif", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", on: { change: () => this.add([...this.input.files]) } });
    this.use = h("input", { type: "checkbox", ".checked": true, on: { change: () => this.show() } });
    this.taught = h("label", { class: "check" }, this.use, t("front.taught"));
    this.list = h("ul", { class: "thumbs", "aria-label": t("front.photos") });
    this.wrong = h("div", {});
    this.seeds = h("select", {}, [1, 2, 3, 4].map((count) => h("option", { value: count, text: String(count) })));
    this.seeds.value = 2;
    this.seedField = field(t("front.seeds"), this.seeds, t("front.seeds.help"));
    this.element = h("details", { class: "more" }, h("summary", { text: t("front.title") }), h("div", { class: "stack" },
      h("p", { class: "help", text: t("front.help") }), this.taught, this.list, h("div", { class: "row" }, button(t("front.add"), { sign: "plus", on: () => this.input.click() }), this.input), this.wrong, this.seedField));
    dropZone(this.element, (files) => this.add(files));
    this.show();
  }

  async refresh() {
    this.lessons = await get("/api/trainings").catch(() => []);
    this.show();
  }

  get lesson() { return this.lessons.find(({ concept }) => concept && concept === conceptOf(this.word())?.name); }

  /** What the thing looks like, as fields of a form; null where nobody knows. */
  get subject() {
    if (this.photos.length) return { subject: this.photos.map(({ file }) => file) };
    return this.lesson && this.use.checked ? { training: this.lesson.id } : null;
  }

  get count() { return this.subject ? Number(this.seeds.value) : 1; }

  show() {
    this.taught.hidden = !this.lesson;
    this.seedField.hidden = !this.subject;
    this.list.hidden = !this.photos.length;
    this.list.replaceChildren(...this.photos.map((photo, place) => h("li", {}, photo.canvas, button(t("front.leave", { number: place + 1 }), { sign: "close", quiet: true, kind: "over-photo leave", on: () => { this.photos.splice(place, 1); this.show(); } }))));
  }

  async add(files) {
    this.wrong.replaceChildren();
    for (const file of files.slice(0, MOST - this.photos.length)) {
      try {
        const photo = await canvasOf(file);
        const scale = Math.min(1, SIDE / Math.max(photo.width, photo.height));
        const canvas = h("canvas", { width: Math.round(photo.width * scale), height: Math.round(photo.height * scale) });
        canvas.getContext("2d").drawImage(photo, 0, 0, canvas.width, canvas.height);
        const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
        this.photos.push({ canvas, file: new File([blob], "photo.png", { type: "image/png" }) });
      } catch (error) {
        this.wrong.append(failure(error.message));
      }
    }
    this.input.value = "";
    this.element.open = true;
    this.show();
  }

  /** Have a run's pictures measured: a point for each setting, which its cells get too. */
  async measure({ word, orders, cells, subject }) {
    const pictures = JSON.stringify(orders.flatMap((order) => order.pictures ?? []));
    const { points } = await upload("/api/fronts", { concept: word, pictures, ...subject });
    const alike = (settings, values) => Object.entries(settings).every(([name, value]) => Math.abs(values[name] - value) < 1e-6);
    for (const cell of cells) cell.point = points.find(({ settings }) => alike(cell.settings, settings));
    return points;
  }

  /** In a sentence, what is recommended. */
  sentence(points) {
    const best = points.find(({ recommended }) => recommended);
    return best ? t("front.best", { settings: named(this.varied(points, best.settings)) }) : t("front.none");
  }

  varied(points, settings) {
    const names = Object.keys(settings).filter((name) => new Set(points.map((point) => point.settings[name])).size > 1);
    return Object.fromEntries((names.length ? names : ["bias"]).map((name) => [name, settings[name]]));
  }

  /** Likeness over faith: a dot for each setting, the front as a line, the recommended one large. */
  plot(points, cells, choose) {
    const scale = (name, low, high) => {
      const values = points.map((point) => point[name]);
      const [least, most] = [Math.min(...values), Math.max(...values)];
      return (value) => low + (most > least ? (value - least) / (most - least) : 0.5) * (high - low);
    };
    const [x, y] = [scale("text", MARGIN + 14, WIDTH - 16), scale("image", HEIGHT - MARGIN - 14, 16)];
    const front = points.filter((point) => point.on_front).sort((one, other) => one.text - other.text);
    const shapes = [
      svg("path", { class: "plot-frame", d: `M${MARGIN} 6V${HEIGHT - MARGIN}H${WIDTH - 4}` }),
      svg("path", { class: "plot-front", d: front.map((point, place) => `${place ? "L" : "M"}${x(point.text)} ${y(point.image)}`).join("") }),
      ...points.map((point) => this.dot(point, points, [x(point.text), y(point.image)], cells.find((cell) => cell.point === point), choose)),
      label(t("front.text"), { x: (MARGIN + WIDTH) / 2, y: HEIGHT - 12, "text-anchor": "middle" }),
      label(t("front.image"), { x: 0, y: 0, transform: `translate(16 ${(HEIGHT - MARGIN) / 2}) rotate(-90)`, "text-anchor": "middle" }),
    ];
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": `${t("front.plot")} ${this.sentence(points)}` }, shapes);
    return h("figure", { class: "card front-plot" }, h("figcaption", {}, h("h2", { text: t("front.heading") }), h("p", { class: "muted", text: this.sentence(points) })), picture,
      h("p", { class: "help", text: t("front.read") }));
  }

  dot(point, points, [x, y], cell, choose) {
    const kind = point.recommended ? "best" : point.on_front ? "on" : "";
    const dot = svg("circle", { cx: x, cy: y, r: point.recommended ? 8 : 5, class: `plot-dot ${kind}` });
    dot.append(svg("title", {}, [document.createTextNode(named(this.varied(points, point.settings)))]));
    if (cell) dot.addEventListener("click", () => choose(cell));
    return dot;
  }
}

function svg(name, attributes, children = []) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const label = (words, attributes) => svg("text", { class: "plot-label", ...attributes }, [document.createTextNode(words)]);
