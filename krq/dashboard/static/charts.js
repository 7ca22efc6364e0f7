// Charts by hand, in SVG: time runs to the right, the last five minutes, or what there is of them.

import { h, now, s, short } from "./dom.js";

const LEAST = 60,
  MOST = 300,
  GAP = 5;
const HEIGHT = 150,
  LEFT = 46,
  RIGHT = 8,
  TOP = 10,
  BOTTOM = 20;

function ceiling(most) {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((value) => value >= most);
}

/**
 * A chart of lines. series: [{name, kind, of: (point) => number or null, area}]. Returns {node, draw(points)}.
 */
export function chart(title, series, format = short) {
  const svg = s("svg", { role: "img", "aria-label": title, height: HEIGHT });
  const values = series.map(() => h("b", null, "–"));
  const legend = h(
    "div",
    { class: "legend" },
    series.map((one, i) => h("span", null, h("i", { class: `dot ${one.kind}` }), one.name, " ", values[i])),
  );
  const node = h("section", { class: "card chart" }, h("header", null, h("h2", null, title), legend), svg);
  let points = [],
    width = 0,
    pointer = null;

  const observer = new ResizeObserver(([entry]) => {
    const wide = Math.floor(entry.contentRect.width);
    if (wide !== width) {
      width = wide;
      paint();
    }
  });
  observer.observe(node);
  svg.addEventListener("pointermove", (event) => {
    pointer = event.clientX - svg.getBoundingClientRect().left;
    paint();
  });
  svg.addEventListener("pointerleave", () => {
    pointer = null;
    paint();
  });

  function paint() {
    const inner = svg.getBoundingClientRect().width || width - 32;
    if (inner < 60) return;
    const end = points.length ? points[points.length - 1][0] : now();
    const recent = points.filter((point) => point[0] >= end - MOST);
    // what was seen before a long pause is another story
    const fresh = recent.findLastIndex((point, i) => i > 0 && point[0] - recent[i - 1][0] > 30);
    const shown = recent.slice(Math.max(0, fresh));
    const window = Math.max(LEAST, Math.ceil((end - (shown[0]?.[0] ?? end)) / 30) * 30);
    const most = ceiling(Math.max(0, ...shown.flatMap((point) => series.map((one) => one.of(point) ?? 0))));
    const x = (at) => LEFT + (1 - (end - at) / window) * (inner - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
    const parts = [0, 0.5, 1].map((share) => [
      s("line", { class: "grid", x1: LEFT, x2: inner - RIGHT, y1: y(share * most), y2: y(share * most) }),
      s("text", { class: "tick", x: LEFT - 6, y: y(share * most) + 4, "text-anchor": "end" }, format(share * most)),
    ]);
    for (const [share, anchor] of [
      [1, "start"],
      [0.5, "middle"],
      [0, "end"],
    ]) {
      const back = share * window,
        label = back < 120 && back % 60 ? `−${back} s` : `−${back / 60} min`;
      parts.push(s("text", { class: "tick", x: x(end - back), y: HEIGHT - 5, "text-anchor": anchor }, back ? label : "now"));
    }
    for (const one of series) parts.push(...trace(one, shown, x, y));
    parts.push(...cursor(shown, x, y, inner));
    svg.replaceChildren(...parts.flat(9));
    const last = shown[shown.length - 1];
    series.forEach((one, i) => {
      const value = last && one.of(last);
      values[i].textContent = value === null || value === undefined ? "–" : format(value);
    });
  }

  function trace(one, shown, x, y) {
    const runs = [];
    let before = null;
    for (const point of shown) {
      const value = one.of(point);
      if (value === null || value === undefined) {
        before = null;
        continue;
      }
      if (before === null || point[0] - before > GAP) runs.push([]);
      runs[runs.length - 1].push([x(point[0]).toFixed(1), y(value).toFixed(1)]);
      before = point[0];
    }
    return runs.map((run) => {
      const line = run.map((at) => at.join(" ")).join("L");
      const area =
        one.area && run.length > 1
          ? s("path", {
              class: `area ${one.kind}`,
              d: `M${line}L${run[run.length - 1][0]} ${HEIGHT - BOTTOM}L${run[0][0]} ${HEIGHT - BOTTOM}Z`,
            })
          : [];
      return [
        area,
        run.length > 1
          ? s("path", { class: `line ${one.kind}`, d: `M${line}` })
          : s("circle", { class: `point ${one.kind}`, cx: run[0][0], cy: run[0][1], r: 2.5 }),
      ];
    });
  }

  function cursor(shown, x, y, inner) {
    if (pointer === null || !shown.length) return [];
    const near = shown.reduce((best, point) => (Math.abs(x(point[0]) - pointer) < Math.abs(x(best[0]) - pointer) ? point : best));
    const at = x(near[0]),
      right = at > inner / 2;
    const label = s(
      "text",
      { class: "told", x: right ? at - 8 : at + 8, y: TOP + 10, "text-anchor": right ? "end" : "start" },
      new Date(near[0] * 1000).toLocaleTimeString("sv-SE") +
        "  " +
        series.map((one) => `${one.name} ${one.of(near) === null ? "–" : format(one.of(near))}`).join("  "),
    );
    return [
      s("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
      ...series
        .filter((one) => one.of(near) !== null)
        .map((one) => s("circle", { class: `point ${one.kind}`, cx: at, cy: y(one.of(near)), r: 3.5 })),
      label,
    ];
  }

  return {
    node,
    draw(given) {
      points = given;
      paint();
    },
    close: () => observer.disconnect(),
  };
}
