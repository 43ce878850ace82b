// Filters, colours, values under the pointer, and what stands behind a number. The page can be read without any of it.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);

function make(name, text = "") {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

// ---- colours

function themes() {
  const saved = { get: () => "", set: () => {} };
  try {
    const storage = window.localStorage;
    saved.get = () => storage.getItem("retbench-theme") || "";
    saved.set = (value) => storage.setItem("retbench-theme", value);
  } catch (error) {
    console.info("The choice of colours is not kept: " + error.message); // a browser may refuse it to a local file
  }
  const choose = (value) => {
    if (value) document.documentElement.dataset.theme = value;
    else delete document.documentElement.dataset.theme;
  };
  for (const button of all("input[name=theme]")) {
    button.checked = button.value === saved.get();
    button.addEventListener("change", () => {
      choose(button.value);
      saved.set(button.value);
    });
  }
  choose(saved.get());
  one(".theme").hidden = false;
}

// ---- filters

const FILTERS = ["system", "size", "machine"];

function filters() {
  const form = one("#filters form");
  const boxes = all("input[type=checkbox]", form);
  const parts = all("[data-system], [data-size], [data-machine]");
  const apply = () => {
    const chosen = {};
    for (const name of FILTERS) chosen[name] = new Set(boxes.filter((box) => box.name === name && box.checked).map((box) => box.value));
    for (const part of parts) {
      const off = FILTERS.some((name) => part.dataset[name] !== undefined && !chosen[name].has(part.dataset[name]));
      part.classList.toggle("off", off);
    }
    for (const table of all(".table")) {
      const rows = all("tbody tr", table);
      const empty = rows.length > 0 && rows.every((row) => row.classList.contains("off"));
      all(".nothing", table).forEach((note) => (note.hidden = !empty));
      all(".scroll", table).forEach((scroll) => (scroll.hidden = empty));
    }
    const off = boxes.filter((box) => !box.checked).length;
    one("#shown").textContent = off ? off + " hidden" : "";
    tip.hide();
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault(); // it would change the boxes only after this
    for (const box of boxes) box.checked = box.defaultChecked;
    apply();
  });
  one("#filters").hidden = boxes.length === 0;
}

// ---- values of figures

const NEAR = 30; // pixels from the pointer within which a value is shown

const tip = {
  box: one("#tip"),
  shown: null,
  hide() {
    if (this.shown) this.shown.classList.remove("at");
    this.shown = null;
    this.box.hidden = true;
  },
  show(point, plot) {
    if (point === this.shown) return;
    this.hide();
    this.shown = point;
    point.classList.add("at");
    const [name, x, y] = this.box.children;
    name.textContent = point.parentNode.dataset.label;
    x.textContent = [plot.dataset.x, point.dataset.x].filter(Boolean).join(": ");
    y.textContent = point.dataset.y;
    this.box.hidden = false;
    const at = middle(point);
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.min(Math.max(at.x - width / 2, 8), document.documentElement.clientWidth - width - 8);
    const above = at.y - height - 14;
    this.box.style.left = left + "px";
    this.box.style.top = (above > 60 ? above : at.y + 16) + "px";
  },
};

function middle(point) {
  const box = point.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

function visible(plot) {
  return all(".series:not(.off) > [data-y]", plot);
}

function figures() {
  for (const plot of all("svg.plot")) {
    plot.addEventListener("pointermove", (event) => {
      const distance = (point) => {
        const box = point.getBoundingClientRect();
        const x = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
        const y = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
        const centre = middle(point);
        return [Math.hypot(x, y), Math.hypot(centre.x - event.clientX, centre.y - event.clientY)];
      };
      const found = visible(plot).map((point) => [...distance(point), point]);
      const nearest = found.sort((a, b) => a[0] - b[0] || a[1] - b[1])[0]; // of those under the pointer the closest
      if (nearest && nearest[0] < NEAR) tip.show(nearest[2], plot);
      else tip.hide();
    });
    plot.addEventListener("pointerleave", () => tip.hide());
    plot.addEventListener("blur", () => tip.hide());
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const points = visible(plot);
      if (event.key === "Escape") tip.hide();
      if (!step || points.length === 0) return;
      event.preventDefault();
      const at = points.indexOf(tip.shown);
      const next = at < 0 ? (step > 0 ? 0 : points.length - 1) : (at + step + points.length) % points.length;
      tip.show(points[next], plot);
    });
  }
  addEventListener("scroll", () => tip.hide(), { passive: true });
}

// ---- what stands behind a number

function facts(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) if (value !== "") list.append(make("dt", name), make("dd", value));
  return list;
}

function behind() {
  const sources = JSON.parse(one("#sources").textContent);
  const dialog = one("#source");
  const body = one("#source-body");
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-source]");
    if (event.target === dialog) dialog.close();
    if (!button) return;
    const [command, environments, records, first, last, statuses] = sources[button.dataset.source];
    const code = make("pre");
    code.append(make("code", command));
    code.tabIndex = 0;
    const when = first === last ? first : first + " to " + last;
    body.replaceChildren(make("h3", "Command"), code, facts([["records", String(records)], ["status", statuses], ["measured", when]]));
    for (const number of environments) {
      const found = one("#environment-" + number);
      body.append(make("h3", "Environment " + one("#environment-" + number + " > summary").textContent));
      body.append(found.querySelector("dl").cloneNode(true));
    }
    one("#source-title").textContent = button.getAttribute("aria-label") || button.textContent;
    dialog.showModal();
  });
}

// ---- the rest

function contents() {
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const mark = (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link, id) => (id === entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    }
  };
  const observer = new IntersectionObserver(mark, { rootMargin: "-20% 0px -70%" });
  all("section[id]").forEach((section) => observer.observe(section));
  if (matchMedia("(max-width: 900px)").matches) all(".fold").forEach((fold) => (fold.open = false));
}

function printing() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("main details:not([open])");
    closed.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
}

themes();
filters();
figures();
behind();
contents();
printing();
