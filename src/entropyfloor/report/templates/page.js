"use strict";
{
  const NEAREST = 12; // most arms whose values are shown at once
  const number = (x) => {
    const digits = Math.abs(x) >= 1000 ? { maximumFractionDigits: 1 } : { maximumSignificantDigits: 4 };
    return x.toLocaleString("en", digits).replace("-", "\u2212");
  };
  const interval = ({ y, low, high }, i) =>
    number(y[i]) + (low ? ` [${number(low[i])}, ${number(high[i])}]` : "");
  const hidden = new Set(); // arms that were toggled off, in every figure

  // Legends

  const buttons = [...document.querySelectorAll("button[data-arm]")];
  const toggle = (arm) => {
    hidden.delete(arm) || hidden.add(arm);
    const off = hidden.has(arm);
    for (const each of document.querySelectorAll(`[data-arm="${arm}"]`)) {
      if (each.tagName === "BUTTON") each.setAttribute("aria-pressed", String(!off));
      else each.classList.toggle("off", off);
    }
  };
  for (const button of buttons) {
    button.disabled = false;
    button.title = "Hide or show in every figure";
    button.addEventListener("click", () => toggle(button.dataset.arm));
  }
  for (const legend of document.querySelectorAll(".legend")) {
    legend.setAttribute("aria-label", "Agents in the figures: press one to hide or show it");
  }

  // Values at the pointer, and at the arrow keys

  const element = (name, text, parent, classes = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = classes;
    parent.append(made);
    return made;
  };

  class Reader {
    constructor(axes) {
      this.axes = axes;
      this.plot = axes.querySelector(".plot");
      ({ x: this.name, series: this.series } = JSON.parse(axes.querySelector("script").textContent));
      this.line = this.plot.querySelector("line.frame").cloneNode();
      this.line.setAttribute("class", "cursor");
      this.line.setAttribute("y1", "0");
      this.line.setAttribute("y2", "100%");
      this.box = element("div", "", axes, "values");
      this.box.hidden = true;
      axes.tabIndex = 0;
      axes.setAttribute("role", "slider");
      axes.setAttribute("aria-label", this.plot.getAttribute("aria-label"));
      axes.addEventListener("pointermove", (event) => this.follow(event));
      axes.addEventListener("pointerdown", (event) => this.follow(event));
      axes.addEventListener("pointerleave", () => this.close());
      axes.addEventListener("focus", () => axes.matches(":focus-visible") && this.step(0));
      axes.addEventListener("blur", () => this.close());
      axes.addEventListener("keydown", (event) => this.press(event));
      this.place = this.stops.length - 1;
      this.describe(this.place);
    }

    get shown() {
      return this.series.filter((each) => !hidden.has(String(each.arm)));
    }

    /** Positions that some visible series has, from the left, and the values of x there. */
    get stops() {
      const found = new Map(this.shown.flatMap((each) => each.across.map((at, i) => [at, each.x[i]])));
      return [...found].sort(([one], [other]) => one - other);
    }

    /** The nearest point of each visible series; those nearest to `down` if there are too many. */
    at(across, down) {
      const points = this.shown.map((each) => {
        const distances = each.across.map((at) => Math.abs(at - across));
        return { each, i: distances.indexOf(Math.min(...distances)) };
      });
      const away = ({ each, i }) => Math.abs(each.down[i] - down);
      const near = points.sort((one, other) => away(one) - away(other)).slice(0, NEAREST);
      return near.sort((one, other) => one.each.down[one.i] - other.each.down[other.i]);
    }

    words({ each }) {
      return `${each.label}${each.what === "mean" ? "" : `, ${each.what}`}`;
    }

    follow(event) {
      const { left, top, width, height } = this.plot.getBoundingClientRect();
      const across = (100 * (event.clientX - left)) / width;
      const stops = this.stops;
      if (!stops.length) return this.close();
      const nearest = stops.reduce((one, other) =>
        Math.abs(other[0] - across) < Math.abs(one[0] - across) ? other : one);
      this.show(nearest, (100 * (event.clientY - top)) / height);
    }

    press(event) {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
      if (event.key in steps) this.step(steps[event.key]);
      else if (event.key === "Home") this.step(-Infinity);
      else if (event.key === "End") this.step(Infinity);
      else if (event.key === "Escape") this.close();
      else return;
      event.preventDefault();
    }

    step(by) {
      const stops = this.stops;
      if (!stops.length) return;
      this.place = Math.min(stops.length - 1, Math.max(0, this.place + by));
      this.show(stops[this.place]);
      this.describe(this.place);
    }

    /** What a screen reader says. */
    describe(place) {
      const stops = this.stops;
      if (!stops[place]) return;
      const [across, x] = stops[place];
      const values = this.at(across, 50).map((point) => `${this.words(point)} ${interval(point.each, point.i)}`);
      this.axes.setAttribute("aria-valuemin", "0");
      this.axes.setAttribute("aria-valuemax", String(stops.length - 1));
      this.axes.setAttribute("aria-valuenow", String(place));
      this.axes.setAttribute("aria-valuetext", `${this.name} ${number(x)}: ${values.join("; ")}`);
    }

    show([across, x], down = 50) {
      this.close();
      this.line.setAttribute("x1", `${across}%`);
      this.line.setAttribute("x2", `${across}%`);
      this.plot.append(this.line);
      element("strong", `${this.name} ${number(x)}`, this.box);
      const list = element("dl", "", this.box);
      for (const point of this.at(across, down)) {
        const { each, i } = point;
        const other = each.across[i] === across ? "" : ` (at ${number(each.x[i])})`;
        element("span", this.words(point), element("dt", "", list, each.colour));
        element("dd", interval(each, i) + other, list);
        if (each.down[i] < 0 || each.down[i] > 100) continue; // it left the panel
        const dot = this.line.cloneNode();
        dot.setAttribute("class", `dot ${each.colour}`);
        for (const [name, value] of [["x1", each.across], ["x2", each.across], ["y1", each.down], ["y2", each.down]]) {
          dot.setAttribute(name, `${value[i]}%`);
        }
        this.plot.append(dot);
      }
      this.box.hidden = false;
      this.box.classList.toggle("right", across < 50);
    }

    close() {
      this.box.hidden = true;
      this.box.replaceChildren();
      for (const each of this.plot.querySelectorAll(".cursor, .dot")) each.remove();
    }
  }

  for (const axes of document.querySelectorAll("[data-plot]")) new Reader(axes);
}
