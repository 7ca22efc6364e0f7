// One task: where it stands, how it came there, what it was given and what came of it.

import logs from "./logs.js";
import { ago, ask, badge, bar, card, clock, copy, get, h, link, now, number, pretty, since, span, swap, table, taskLink } from "./dom.js";

const FINAL = ["success", "failed", "cancelled"];

export default function task(page, id) {
  const node = h("div", { class: "view" }),
    lines = logs(id),
    whole = h("div", { class: "view" }, node, lines.node);
  let shown = "",
    found = null;

  const acted = async (acting) => {
    await acting;
    view.rest = 0;
    await view.load().catch(page.report);
  };
  const retry = () => acted(page.act("tasks/retry", { ids: [id] }, "Sent again"));
  const cancel = async () => {
    if (
      await ask(
        `Cancel ${found.task.name}? ${found.task.status === "processing" ? "Its worker is told to stop it." : "It will not run."}`,
        "Cancel it",
      )
    )
      await acted(page.act("tasks/cancel", { ids: [id] }, "Cancelled"));
  };

  function buttons(one) {
    return h(
      "div",
      { class: "row actions" },
      found.in_workflow
        ? h("a", { class: "button", href: `#/workflows/${encodeURIComponent(id)}`, "data-key": "graph" }, "Workflow")
        : null,
      ["failed", "cancelled"].includes(one.status)
        ? h("button", { type: "button", class: "primary", onclick: retry, "data-key": "retry" }, "Retry")
        : null,
      FINAL.includes(one.status) ? null : h("button", { type: "button", class: "danger", onclick: cancel, "data-key": "cancel" }, "Cancel"),
    );
  }

  const attempts = (one) =>
    [
      one.attempt,
      one.failures && `after ${one.failures} ${one.failures === 1 ? "failure" : "failures"}`,
      one.deaths && `${one.deaths} died`,
      one.interruptions && `${one.interruptions} interrupted`,
    ]
      .filter(Boolean)
      .join(", ");

  function facts(one) {
    const rows = [
      ["Queue", link("tasks", { queue: one.queue }, one.queue)],
      ["Worker", one.worker ? link("tasks", { worker: one.worker }, one.worker) : null],
      ["Attempt", one.attempt ? attempts(one) : null],
      ["Kept back by", one.waits_for || null],
      ["Priority", one.priority || null],
      ["Sent", ago(one.sent)],
      ["Due", one.due ? ago(one.due) : null],
      ["Started", one.started ? ago(one.started) : null],
      ["Ended", one.finished ? ago(one.finished) : null],
      ["Waited", one.started && one.sent ? span(Math.max(0, one.started - one.sent)) : null],
      ["Took", one.started && one.finished ? span(one.finished - one.started) : one.status === "processing" ? since(one.started) : null],
      [
        "Progress",
        one.progress
          ? [bar(one.progress[0] / Math.max(1, one.progress[1]), "processing"), ` ${number(one.progress[0])} of ${number(one.progress[1])}`]
          : null,
      ],
    ];
    return h(
      "dl",
      { class: "facts" },
      rows.filter(([, value]) => value !== null).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
    );
  }

  /** What stands between `these` is code. */
  const words = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", null, part) : part));

  function reasons() {
    if (!found.reasons.length) return null;
    const title = found.task === null ? "Where it is" : found.task.status === "processing" ? "What it does" : "What it waits for";
    return h(
      "div",
      { class: "note" },
      h("b", null, title),
      h(
        "ul",
        { class: "list" },
        found.reasons.map((one) =>
          h(
            "li",
            null,
            words(one.text),
            one.id ? [" ", taskLink(one.id, "→", `reason-${one.id}`)] : null,
            one.since ? h("small", null, ` since ${clock(one.since)}, `, ago(one.since)) : null,
            one.until ? h("small", null, `${one.since ? ";" : ""} until ${clock(one.until)}, `, ago(one.until)) : null,
          ),
        ),
      ),
    );
  }

  const story = () =>
    card(
      "What happened",
      h(
        "ol",
        { class: "story" },
        found.past.map((one) =>
          h(
            "li",
            { class: one.kind },
            h("span", null, words(one.text)),
            one.at ? h("small", { title: clock(one.at) }, ago(one.at), " · ", clock(one.at).slice(11)) : null,
          ),
        ),
        h("li", { class: "future" }, h("b", null, "What comes next"), h("span", null, words(found.next))),
      ),
    );

  function given() {
    const { arguments: sent, task: one } = found;
    if (!sent)
      return h(
        "p",
        { class: "quiet" },
        one.status === "success" ? "The message went when the task had succeeded." : "The message is not known.",
      );
    const rows = [...sent.args.map((value, i) => [String(i + 1), value]), ...Object.entries(sent.kwargs)];
    const front = { prepend: `the results of ${sent.after} tasks, then`, list: `the list of ${sent.after} results, then` }[sent.inputs];
    return [
      front ? h("p", { class: "quiet" }, `It gets ${front}:`) : null,
      sent.cut ? h("p", { class: "quiet" }, "Cut short: they are large.") : null,
      rows.length
        ? h(
            "dl",
            { class: "facts code" },
            rows.map(([name, value]) => [h("dt", null, name), h("dd", null, h("pre", null, JSON.stringify(value, null, 1)))]),
          )
        : h("p", { class: "quiet" }, "None."),
    ];
  }

  function kin(title, list) {
    if (!list.length) return null;
    return card(
      title,
      h(
        "ul",
        { class: "list" },
        list
          .slice(0, 50)
          .map((one) =>
            h("li", null, badge(one.status), " ", taskLink(one.id, one.name || "not published", `kin-${one.id}`), " ", taskLink(one.id)),
          ),
      ),
      list.length > 50 ? h("p", { class: "quiet" }, `and ${list.length - 50} more`) : null,
    );
  }

  const head = (title, ...more) =>
    h(
      "div",
      { class: "row between head" },
      h(
        "div",
        null,
        h("p", { class: "crumbs" }, link("tasks", {}, "Tasks"), " / ", h("code", null, id), copy(id)),
        h("h1", null, title, " ", found.task && badge(found.task.status)),
      ),
      ...more,
    );

  function draw() {
    const { task: one, error, history } = found;
    if (one === null) {
      swap(node, head("Not known to Redis"), reasons(), story(), kin("Waiting for it", found.dependents));
      return;
    }
    swap(
      node,
      head(one.name || "?", buttons(one)),
      reasons(),
      h("div", { class: "halves" }, card("Facts", facts(one)), story()),
      error && one.status !== "success"
        ? card(
            one.status === "failed" ? "Error" : "Last error",
            h("p", { class: "bad strong" }, `${error.type}: ${error.message || ""}`),
            error.traceback ? h("pre", { class: "trace" }, error.traceback) : null,
          )
        : null,
      found.result !== null ? card("Result", h("pre", null, pretty(found.result))) : null,
      card("Arguments", given()),
      history.length
        ? card(
            "Attempts that did not succeed",
            table(
              [["Attempt", "n"], ["Outcome"], ["Worker"], ["Started", "n"], ["Took", "n"], ["Error"]],
              history.map((past) => ({
                key: String(past.attempt),
                cells: [
                  past.attempt,
                  h("span", { class: "badge failed" }, past.outcome),
                  past.worker,
                  ago(past.started),
                  past.started && past.finished ? span(past.finished - past.started) : "–",
                  h("span", { class: "cut wide" }, past.error ? `${past.error.type}: ${past.error.message || ""}` : past.cause),
                ],
              })),
              "Attempts",
            ),
          )
        : null,
      h("div", { class: "halves" }, kin("Waits for", found.after), kin("Waiting for it", found.dependents)),
    );
  }

  const view = {
    node: whole,
    ready: false,
    async load() {
      if (view.ready && (found.task === null || FINAL.includes(found.task.status)) && view.rest-- > 0) return;
      const [next] = await Promise.all([get("task", { id }), lines.load()]),
        state = JSON.stringify(next);
      if (!whole.contains(node)) swap(whole, node, lines.node); // what stood there was an error
      view.ready = true;
      // what has ended is looked at less often, the log least; lines may come a moment after the end
      view.rest = next.task === null ? 14 : now() - next.task.finished < 3 ? 0 : 4;
      if (state === shown) return;
      [shown, found] = [state, next];
      draw();
    },
    rest: 0,
  };
  return view;
}
