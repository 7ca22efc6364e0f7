// The frame: views by the address, one stream for all numbers, keys, theme, login.

import { Problem, ask, get, h, post, setClock, swap, toast } from "./dom.js";
import dead from "./dead.js";
import overview from "./overview.js";
import queues from "./queues.js";
import schedules from "./schedules.js";
import task from "./task.js";
import tasks from "./tasks.js";
import workers from "./workers.js";
import { workflow, workflows } from "./workflows.js";

const VIEWS = [
  ["", "Overview", overview],
  ["queues", "Queues", queues],
  ["tasks", "Tasks", tasks],
  ["workflows", "Workflows", workflows],
  ["workers", "Workers", workers],
  ["schedules", "Schedules", schedules],
  ["dead", "Dead letters", dead],
];
const KEYS = [
  ["1 – 7", "a view"],
  ["/", "search a task by its id"],
  ["j, k", "the next line, the one before"],
  ["Enter", "open it"],
  ["t", "light or dark"],
  ["?", "this"],
];
const PATIENCE = 400;

const byId = (id) => document.getElementById(id);
const state = { session: null, look: null, points: [], view: null, name: "", stream: null };

// --- what views get ----------------------------------------------------------------------------

const page = {
  get look() {
    return state.look;
  },
  get points() {
    return state.points;
  },
  get mayAct() {
    return state.session?.role === "act";
  },
  /** Do something that changes things; asks for a login where that is missing. Returns the answer, or null. */
  async act(path, body, said) {
    if (!page.mayAct && !(await login("Acting takes a login."))) return null;
    try {
      const found = await post(path, body);
      for (const one of (found.failed || []).slice(0, 3)) toast(`${one.cause}. ${one.cure}`, "bad");
      if (said && (!found.done || found.done.length)) toast(typeof said === "function" ? said(found) : said);
      else if (found.unchanged?.length) toast("It had ended already", "bad");
      refresh();
      return found;
    } catch (error) {
      if (error.status === 401) {
        await start();
      }
      report(error);
      return null;
    }
  },
  go: (path) => {
    location.hash = path;
  },
  report,
};

function report(error) {
  if (!(error instanceof Problem)) throw error;
  toast(`${error.message}. ${error.cure}`, "bad");
}

// --- views -------------------------------------------------------------------------------------

function parsed() {
  const [path, given] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  let id = "";
  try {
    id = decodeURIComponent(rest.join("/"));
  } catch {
    /* no such task */
  }
  return { name, id, query: Object.fromEntries(new URLSearchParams(given || "")) };
}

function show() {
  const { name, id, query } = parsed();
  if (location.hash === "#main") return;
  const known = VIEWS.find(([path]) => path === name);
  const make = !known ? null : id && name === "tasks" ? task : id && name === "workflows" ? workflow : known[2];
  state.view?.close?.();
  state.name = name;
  swap(byId("main"), h("div", { class: "view" }, h("p", { class: "quiet" }, make ? "Loading …" : "There is no such view.")));
  state.view = make ? make(page, id, query) : null;
  document.title = `${id ? `${id.slice(0, 20)} – ` : ""}${known ? known[1] : "?"} – KRQ`;
  for (const one of byId("nav").children) one.toggleAttribute("aria-current", one.dataset.view === name);
  byId("nav").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  if (!state.view) return;
  swap(byId("main"), state.view.node);
  if (state.look) state.view.update?.(state.look);
  refresh();
}

let asking = null;
async function refresh() {
  const { view } = state;
  if (!view?.load || asking === view || document.hidden) return;
  asking = view;
  try {
    await view.load();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) {
      await start();
      return;
    }
    if (state.view === view && !view.ready) {
      swap(view.node, h("div", { class: "empty" }, h("b", null, error.message), h("p", null, error.cure)));
    }
  } finally {
    if (asking === view) asking = null;
  }
}

// --- the stream --------------------------------------------------------------------------------

function listen() {
  state.stream?.close();
  const stream = (state.stream = new EventSource("/api/events"));
  const seen = (event) => {
    const look = JSON.parse(event.data);
    setClock(look.at);
    if (event.type === "overview") state.points = look.points;
    else
      for (const point of look.points)
        if (!state.points.length || point[0] > state.points[state.points.length - 1][0]) state.points.push(point);
    if (state.points.length > 900) state.points.splice(0, state.points.length - 900);
    state.look = look;
    pulse("live", "Live: numbers come once a second");
    banner(null);
    badges(look);
    state.view?.update?.(look);
    if (event.type === "look") refresh();
  };
  stream.addEventListener("overview", seen);
  stream.addEventListener("look", seen);
  stream.addEventListener("trouble", (event) => {
    const found = JSON.parse(event.data);
    pulse("off", found.cause);
    banner(`${found.cause}. ${found.cure}`);
  });
  stream.onerror = () => {
    pulse("off", "No connection");
    if (stream.readyState === EventSource.CLOSED) setTimeout(start, 3000);
  };
}

function pulse(kind, text) {
  byId("pulse").className = kind;
  byId("pulse").title = text;
  byId("pulse").lastElementChild.textContent = kind === "live" ? "live" : "offline";
}

function banner(text) {
  byId("banner").hidden = !text;
  byId("banner").textContent = text || "";
}

function badges(look) {
  const counts = { dead: look.totals.dead, workers: look.totals.workers };
  for (const [name, n] of Object.entries(counts)) {
    const place = byId("nav").querySelector(`[data-view="${name}"] span`);
    place.textContent = n || (name === "workers" ? "0" : "");
    place.className = (name === "dead" && n) || (name === "workers" && !n) ? "bad" : "";
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    state.stream?.close();
    state.stream = null;
  } else if (!state.stream && state.session && state.session.role !== "nobody") {
    listen();
  }
});

// --- login -------------------------------------------------------------------------------------

function login(why) {
  return new Promise((answer) => {
    const { by_token: token, by_password: password } = state.session;
    const trouble = h("p", { class: "bad", role: "alert" });
    const field = (name, label, type) =>
      h(
        "label",
        null,
        label,
        h("input", { name, type, autocomplete: type === "password" ? "current-password" : "username", required: !(token && password) }),
      );
    const close = (value) => {
      dialog.close();
      dialog.remove();
      answer(value);
    };
    const form = h(
      "form",
      {
        method: "dialog",
        onsubmit: async (event) => {
          event.preventDefault();
          try {
            await post("login", Object.fromEntries(new FormData(form)));
            close(true);
          } catch (error) {
            trouble.textContent = `${error.message}. ${error.cure}`;
          }
        },
      },
      h("h2", null, "Log in"),
      h("p", { class: "quiet" }, why),
      token ? field("token", "Token", "password") : null,
      token && password ? h("p", { class: "quiet" }, "or") : null,
      password ? [field("user", "User", "text"), field("password", "Password", "password")] : null,
      trouble,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: () => close(false) }, "Not now"),
        h("button", { class: "primary" }, "Log in"),
      ),
    );
    const dialog = h("dialog", { oncancel: () => close(false), "aria-label": "Log in" }, form);
    document.body.append(dialog);
    dialog.showModal();
  }).then(async (done) => {
    if (done) await start();
    return done && page.mayAct;
  });
}

// --- start -------------------------------------------------------------------------------------

async function start() {
  try {
    state.session = await get("session");
  } catch (error) {
    pulse("off", error.message);
    setTimeout(start, 3000);
    return;
  }
  const { session } = state;
  byId("namespace").textContent = session.namespace;
  byId("login").hidden = !session.guarded;
  byId("login").textContent = session.logged_in ? "Log out" : "Log in";
  document.body.dataset.role = session.role;
  if (session.role === "nobody") {
    state.stream?.close();
    swap(
      byId("main"),
      h(
        "div",
        { class: "empty" },
        h("b", null, "This dashboard is not public"),
        h("p", null, "Log in to look."),
        h("button", { class: "primary", type: "button", onclick: () => login("Looking takes a login.") }, "Log in"),
      ),
    );
    pulse("off", "Not logged in");
    return;
  }
  if (!state.stream || state.stream.readyState === EventSource.CLOSED) listen();
  show();
}

function theme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const next = dark ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("krq-theme", next);
  } catch {
    /* for this page alone */
  }
}

function help() {
  const dialog = h(
    "dialog",
    {
      "aria-label": "Keys",
      onclick: () => {
        dialog.close();
        dialog.remove();
      },
      oncancel: () => dialog.remove(),
    },
    h("h2", null, "Keys"),
    h(
      "dl",
      { class: "keys" },
      KEYS.map(([key, what]) => [h("dt", null, h("kbd", null, key)), h("dd", null, what)]),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

function step(by) {
  const lines = [...document.querySelectorAll("main tbody tr a[data-key], main .list a[data-key]")].filter(
    (one, i, all) => all.findIndex((other) => other.closest("tr, li") === one.closest("tr, li")) === i,
  );
  const at = lines.findIndex((one) => one.closest("tr, li").contains(document.activeElement));
  lines[Math.min(lines.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  const view = VIEWS[Number(event.key) - 1];
  if (view) page.go(`/${view[0]}`);
  else if (event.key === "/") {
    event.preventDefault();
    page.go("/tasks");
    setTimeout(() => document.getElementById("find")?.focus(), PATIENCE / 8);
  } else if (event.key === "t") theme();
  else if (event.key === "?") help();
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
});

swap(
  byId("nav"),
  VIEWS.map(([path, title], i) => h("a", { href: `#/${path}`, "data-view": path, title: `${title} (${i + 1})` }, title, h("span"))),
);
byId("theme").addEventListener("click", theme);
byId("login").addEventListener("click", async () => {
  if (!state.session.logged_in) {
    await login("The token, or user and password, that krq web was started with.");
    return;
  }
  if (await ask("Log out of this dashboard?", "Log out", false)) {
    await post("logout", {}).catch(report);
    state.stream?.close();
    await start();
  }
});
addEventListener("hashchange", show);
start();
