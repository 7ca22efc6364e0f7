// Elements, formats and requests. Data comes into the page as text alone: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "indeterminate") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; strings among the children become text. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
/** The same in SVG. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** New children for an element; the focus stays on what has the same data-key. */
export function swap(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset?.key : null;
  element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  if (focused) element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// --- formats -----------------------------------------------------------------------------------

let skew = 0; // the server's clock minus ours
export const setClock = (at) => {
  skew = at - Date.now() / 1000;
};
export const now = () => Date.now() / 1000 + skew;

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0005) return "0 ms";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}

export const number = (n) => (n === null || n === undefined || n < 0 ? "?" : n.toLocaleString("en-US"));
export function short(n) {
  if (n < 1000) return n >= 100 || Number.isInteger(n) ? String(Math.round(n)) : String(Math.round(n * 10) / 10);
  return n < 1e6 ? `${(n / 1e3).toFixed(n < 1e4 ? 1 : 0)}k` : `${(n / 1e6).toFixed(1)}M`;
}

const relative = (at) => {
  const away = now() - at;
  if (Math.abs(away) < 1) return "now";
  const whole = Math.abs(away) < 10 ? `${Math.round(Math.abs(away))} s` : span(Math.abs(away));
  return away > 0 ? `${whole} ago` : `in ${whole}`;
};
export const clock = (at) => new Date(at * 1000).toLocaleString("sv-SE");

/** A moment, seen from now; it moves on by itself. */
export const ago = (at) =>
  at === null || at === undefined
    ? h("span", { class: "quiet" }, "–")
    : h("time", { datetime: new Date(at * 1000).toISOString(), "data-at": at, title: clock(at) }, relative(at));
/** A length of time that still grows. */
export const since = (at) => h("time", { "data-since": at }, span(Math.max(0, now() - at)));

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-at]")) time.textContent = relative(Number(time.dataset.at));
  for (const time of document.querySelectorAll("time[data-since]"))
    time.textContent = span(Math.max(0, now() - Number(time.dataset.since)));
}, 1000);

/** A status as a badge; null: nobody has published the task. */
export const badge = (status) => h("span", { class: `badge ${status || "unknown"}` }, status || "unknown");
export const taskLink = (id, label, key) =>
  h(
    "a",
    { href: `#/tasks/${encodeURIComponent(id)}`, "data-key": key || `task-${id}`, class: label ? null : "id", title: id },
    label || (id.length > 16 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id),
  );
/** A view with what it is asked, as it stands behind the "#". */
export const address = (view, query) => {
  const given = new URLSearchParams(Object.entries(query || {}).filter(([, value]) => value)).toString();
  return `/${view}${given ? `?${given}` : ""}`;
};
export const link = (view, query, ...children) => h("a", { href: `#${address(view, query)}` }, ...children);

/** A JSON text, indented where it is one. */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// --- requests ----------------------------------------------------------------------------------

export class Problem extends Error {
  constructor(status, { code, cause, cure }) {
    super(cause);
    Object.assign(this, { status, code, cure });
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  } catch {
    throw new Problem(0, { code: "OFFLINE", cause: "The dashboard's server does not answer", cure: "Is krq web still running?" });
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(response.status, found.error || { code: "?", cause: `Status ${response.status}`, cure: "" });
  return found;
}

export const get = (path, query) => {
  const given = new URLSearchParams(
    Object.entries(query || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined),
  ).toString();
  return request(`/api/${path}${given ? `?${given}` : ""}`);
};
export const post = (path, body) =>
  request(`/api/${path}`, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", "x-krq-request": "1" },
  });

// --- small parts -------------------------------------------------------------------------------

/** A view that asks anew with each look, and draws an answer that is another than the one before. */
export function asking(node, ask, draw) {
  let shown = "";
  const view = {
    node,
    ready: false,
    async load() {
      const found = await ask(),
        state = JSON.stringify(found);
      view.ready = true;
      if (state === shown) return;
      shown = state;
      draw(found);
    },
  };
  return view;
}

/** A form that leads to a task by its id. */
export const search = (hint, action, view, page, properties) =>
  h(
    "form",
    {
      role: "search",
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        const id = event.target.find.value.trim();
        if (id) page.go(`/${view}/${encodeURIComponent(id)}`);
      },
    },
    h("input", { name: "find", type: "search", placeholder: hint, "aria-label": "Task id", maxlength: 128, ...properties }),
    h("button", null, action),
  );

/** What narrows a list, in its address: change(more) leads to another, input(name, hint) makes a field. */
export function filters(page, view, query) {
  const change = (more) => page.go(address(view, { ...query, ...more }));
  const input = (name, hint, properties) =>
    h("input", {
      name,
      value: query[name] || "",
      placeholder: hint,
      "aria-label": hint,
      maxlength: 255,
      ...properties,
      onchange: (event) => change({ [name]: event.target.value.trim() }),
    });
  return { change, input };
}

export function toast(text, kind = "good") {
  const box = h("div", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), kind === "bad" ? 9000 : 4000);
}

/** A question with two answers. */
export function ask(question, yes, danger = true) {
  return new Promise((answer) => {
    const close = (value) => {
      dialog.close();
      dialog.remove();
      answer(value);
    };
    const dialog = h(
      "dialog",
      { oncancel: () => close(false) },
      h("p", null, question),
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: () => close(false) }, "Leave it"),
        h("button", { type: "button", class: danger ? "danger" : "primary", onclick: () => close(true), "data-key": "yes" }, yes),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("[data-key=yes]").focus();
  });
}

export function copy(text) {
  return h(
    "button",
    {
      type: "button",
      class: "plain small",
      title: "Copy",
      "aria-label": `Copy ${text}`,
      onclick: () =>
        navigator.clipboard?.writeText(text).then(
          () => toast("Copied"),
          () => toast("The browser does not allow it", "bad"),
        ),
    },
    s(
      "svg",
      { viewBox: "0 0 16 16", width: 13, height: 13, class: "icon", "aria-hidden": "true" },
      s("rect", { x: 5.5, y: 5.5, width: 8, height: 9, rx: 2 }),
      s("path", { d: "M10.5 5.5v-2a2 2 0 0 0-2-2h-4a2 2 0 0 0-2 2v5a2 2 0 0 0 2 2h1" }),
    ),
  );
}

export const empty = (title, hint) => h("div", { class: "empty" }, h("b", null, title), hint ? h("p", null, hint) : null);
export const card = (title, ...children) => h("section", { class: "card" }, title ? h("h2", null, title) : null, ...children);

/** A table; columns: [title, class]; rows: {key, cells, href}. */
export function table(columns, rows, label) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { "aria-label": label, class: "stack" },
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          columns.map(([title, kind]) => h("th", { class: kind, scope: "col" }, title)),
        ),
      ),
      h(
        "tbody",
        null,
        rows.map(({ key, cells, kind }) =>
          h(
            "tr",
            { "data-row": key, class: kind },
            cells.map((cell, i) =>
              h("td", { class: columns[i][1], "data-label": typeof columns[i][0] === "string" ? columns[i][0] : "" }, cell),
            ),
          ),
        ),
      ),
    ),
  );
}

export function bar(share, kind = "") {
  const inner = h("i", { class: kind });
  inner.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  return h("span", { class: "bar" }, inner);
}
