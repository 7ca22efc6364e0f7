// A graph in layers, left to right: what waits stands right of what it waits for.

import { h, s, taskLink } from "./dom.js";

const WIDE = 190,
  HIGH = 46,
  ACROSS = 70,
  BETWEEN = 16;
const MANY = 6;

/** Members that look alike (same name, same edges) become one node, when there are more than a few. */
function folded(nodes, edges, children) {
  const before = new Map(nodes.map((node) => [node.id, []])),
    behind = new Map(nodes.map((node) => [node.id, []]));
  for (const [from, to] of edges) {
    behind.get(from)?.push(to);
    before.get(to)?.push(from);
  }
  const alike = new Map();
  for (const node of nodes) {
    const key = JSON.stringify([node.name, before.get(node.id).sort(), behind.get(node.id).sort()]);
    if (!alike.has(key)) alike.set(key, []);
    alike.get(key).push(node);
  }
  const place = new Map(),
    found = [];
  for (const group of alike.values()) {
    const parts = group.length > MANY ? [group] : group.map((node) => [node]);
    for (const part of parts) {
      for (const node of part) place.set(node.id, found.length);
      found.push({ members: part, before: new Set(), behind: new Set(), children: new Set(), layer: 0, order: 0 });
    }
  }
  for (const [from, to] of edges) {
    const a = place.get(from),
      b = place.get(to);
    if (a === undefined || b === undefined || a === b) continue;
    found[a].behind.add(b);
    found[b].before.add(a);
  }
  for (const [parent, child] of children) {
    const a = place.get(parent),
      b = place.get(child);
    if (a === b || found[a].behind.has(b)) continue;
    found[a].behind.add(b);
    found[b].before.add(a);
    found[a].children.add(b);
  }
  return found;
}

function layered(found) {
  const open = found.map((node) => node.before.size);
  const ready = found.map((_, i) => i).filter((i) => !open[i]);
  while (ready.length) {
    const i = ready.pop();
    for (const j of found[i].behind) {
      found[j].layer = Math.max(found[j].layer, found[i].layer + 1);
      if (--open[j] === 0) ready.push(j);
    }
  }
  const layers = [];
  found.forEach((node, i) => (layers[node.layer] ||= []).push(i));
  const settle = (layer, near) => {
    const middle = (i) => {
      const of = [...found[i][near]];
      return of.length ? of.reduce((sum, j) => sum + found[j].order, 0) / of.length : found[i].order;
    };
    const weights = new Map(layer.map((i) => [i, middle(i)]));
    layer.sort((a, b) => weights.get(a) - weights.get(b));
    layer.forEach((i, order) => {
      found[i].order = order - layer.length / 2;
    });
  };
  layers.forEach((layer) =>
    layer.forEach((i, order) => {
      found[i].order = order - layer.length / 2;
    }),
  );
  for (let sweep = 0; sweep < 4; sweep++) {
    layers.forEach((layer) => settle(layer, "before"));
    [...layers].reverse().forEach((layer) => settle(layer, "behind"));
  }
  return layers;
}

const STATES = ["success", "processing", "queued", "scheduled", "waiting", "cancelled", "failed", "unknown"];

/** The picture of {nodes, edges, children, id} as an element; who was sent by a running task hangs on a dashed line. */
export function picture({ nodes, edges, children, id }) {
  const found = folded(nodes, edges, children),
    layers = layered(found);
  const most = Math.max(...layers.map((layer) => layer.length));
  const height = most * (HIGH + BETWEEN) + BETWEEN,
    width = layers.length * (WIDE + ACROSS) - ACROSS + 24;
  layers.forEach((layer, across) =>
    layer.forEach((i, down) => {
      found[i].x = 12 + across * (WIDE + ACROSS);
      found[i].y = height / 2 + (down - layer.length / 2) * (HIGH + BETWEEN) + BETWEEN / 2;
    }),
  );
  const lines = found.flatMap((node) =>
    [...node.behind].map((j) => {
      const x1 = node.x + WIDE,
        y1 = node.y + HIGH / 2,
        x2 = found[j].x,
        y2 = found[j].y + HIGH / 2,
        bend = Math.max(30, (x2 - x1) / 2);
      return s("path", {
        class: node.children.has(j) ? "edge child" : "edge",
        d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2 - 5} ${y2}`,
        "marker-end": "url(#arrow)",
      });
    }),
  );
  const svg = s(
    "svg",
    { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `A graph of ${nodes.length} tasks` },
    s(
      "defs",
      null,
      s(
        "marker",
        { id: "arrow", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
        s("path", { class: "head", d: "M0 0L8 4L0 8Z" }),
      ),
    ),
    lines,
    found.map((node) => drawn(node, id)),
  );
  return h("div", { class: "scroll graphs" }, svg);
}

function drawn(node, id) {
  const [first] = node.members,
    many = node.members.length > 1;
  const counts = STATES.map((state) => [state, node.members.filter((one) => (one.status || "unknown") === state).length]).filter(
    ([, n]) => n,
  );
  const worst = many
    ? counts.length === 1
      ? counts[0][0]
      : counts.some(([state]) => state === "failed")
        ? "failed"
        : "processing"
    : first.status || "unknown";
  let at = 0;
  const box = [
    many ? s("rect", { class: "node under", x: node.x + 4, y: node.y + 4, width: WIDE, height: HIGH, rx: 8 }) : [],
    s("rect", {
      class: `node ${worst}${node.members.some((one) => one.id === id) ? " here" : ""}`,
      x: node.x,
      y: node.y,
      width: WIDE,
      height: HIGH,
      rx: 8,
    }),
    counts.map(([state, n]) => {
      const part = s("rect", {
        class: `share ${state}`,
        x: node.x + 10 + at * (WIDE - 20),
        y: node.y + HIGH - 7,
        width: ((WIDE - 20) * n) / node.members.length,
        height: 3,
      });
      at += n / node.members.length;
      return part;
    }),
    s("text", { class: "name", x: node.x + 10, y: node.y + 18 }, cut(first.name || "not published", 24)),
    s(
      "text",
      { class: "state", x: node.x + 10, y: node.y + 33 },
      many
        ? `× ${node.members.length}: ${counts.map(([state, n]) => `${n} ${state}`).join(", ")}`.slice(0, 34)
        : `${first.status || "unknown"} · ${cut(first.id, 14)}`,
    ),
    s("title", null, `${first.name} ${many ? `× ${node.members.length}` : first.id}`),
  ];
  return s("a", { href: taskLink(first.id).getAttribute("href"), "aria-label": `${first.name || "task"}, ${worst}` }, box);
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 7)}…${text.slice(-6)}` : text);
