"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = (id) => { const at = byId(id); return at ? JSON.parse(at.textContent) : null; };
  const make = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const visible = (text) => text.replaceAll(" ", "\u2423").replaceAll("\n", "\u23ce") || "\u25cc";

  function browser(root, stages) {
    const PAGE = 10, names = ["prompt", "reasoning", "answer", "expected"];
    let page = 0;
    const bar = make("div", "controls"), list = make("div"), foot = make("div", "controls");
    const choice = (label, options) => {
      const box = make("label", "", label + " "), select = make("select");
      options.forEach(([value, text]) => { const o = make("option", "", text); o.value = value; select.append(o); });
      select.addEventListener("change", () => { page = 0; show(); });
      box.append(select); bar.append(box);
      return select;
    };
    const stage = choice("after", stages.map((one, i) => [i, one.stage]));
    const sets = [...new Set(stages.flatMap((one) => one.samples.map((s) => s[1])))].sort();
    const set = choice("set", [["", "all"], ...sets.map((name) => [name, name])]);
    const verdict = choice("answers", [["", "all"], ["right", "right"], ["wrong", "wrong"], ["cut", "cut"]]);
    const words = make("input");
    words.type = "search"; words.placeholder = "words"; words.setAttribute("aria-label", "words to search for");
    words.addEventListener("input", () => { page = 0; show(); });
    bar.append(words);
    const back = make("button", "", "\u2190 earlier"), more = make("button", "", "later \u2192"), where = make("span");
    where.setAttribute("role", "status");
    back.addEventListener("click", () => { page -= 1; show(); });
    more.addEventListener("click", () => { page += 1; show(); });
    foot.append(back, where, more);

    const wanted = (s) => (!set.value || s[1] === set.value)
      && (!verdict.value || (verdict.value === "cut" ? !s[8] : (verdict.value === "right") === s[7]))
      && s.some((value) => typeof value === "string" && value.toLowerCase().includes(words.value.toLowerCase()));
    const entry = (s) => {
      const [id, name, thinking] = s, box = make("article", "sample"), head = make("header"), fields = make("dl");
      head.append(make("span", s[7] ? "badge good" : "badge bad", s[7] ? "\u2713 right" : "\u2717 wrong"));
      if (!s[8]) head.append(make("span", "badge wait", "\u2702 cut before its end"));
      head.append(make("span", "", name + ", " + thinking + " mode, record " + id));
      names.forEach((field, i) => {
        const text = s[3 + i];
        if (field === "reasoning" && thinking === "fast" && !text) return;
        fields.append(make("dt", "", field), make("dd", text ? "" : "none", text || "none"));
      });
      box.append(head, fields);
      return box;
    };
    function show() {
      const found = stages[stage.value].samples.filter(wanted);
      page = Math.max(0, Math.min(page, Math.ceil(found.length / PAGE) - 1));
      const first = page * PAGE, part = found.slice(first, first + PAGE);
      list.replaceChildren(...part.map(entry));
      where.textContent = found.length ? (first + 1) + " to " + (first + part.length) + " of " + found.length : "none";
      back.disabled = page === 0; more.disabled = first + PAGE >= found.length;
    }
    root.append(bar, list, foot);
    if (root.dataset.note) root.append(make("p", "caption", root.dataset.note));
    root.hidden = false;
    byId("browser-static").hidden = true;
    show();
  }

  function teacher(sequences) {
    document.querySelectorAll(".tokens").forEach((row) => {
      const tokens = [...row.querySelectorAll(".tok")], panel = row.closest("article").querySelector(".panel");
      let at = -1;
      tokens.forEach((token) => token.removeAttribute("title"));
      panel.textContent = "No token chosen yet.";
      const show = (number) => {
        if (number < 0 || number >= tokens.length || number === at) return;
        if (at >= 0) tokens[at].classList.remove("chosen");
        at = number;
        tokens[at].classList.add("chosen");
        const [text, given, listed, rest] = sequences[row.dataset.sequence][at];
        const table = make("table"), body = make("tbody");
        const line = (name, p, here) => {
          const tr = make("tr", here ? "here" : ""), meter = make("i", "bar");
          meter.style.width = (100 * p).toFixed(1) + "%";
          const cell = make("td", "meter");
          cell.append(meter);
          tr.append(make("th", "", name), make("td", "number", (100 * p).toPrecision(3) + " %"), cell,
            make("td", "", here ? "\u2190 in the text" : ""));
          body.append(tr);
        };
        listed.forEach(([name, p, here]) => line(visible(name), p, here));
        line("all others", rest, given === null);
        table.append(body);
        panel.replaceChildren(make("p", "caption", "Teacher at token " + (at + 1) + ", " + visible(text)), table);
      };
      const of = (event) => tokens.indexOf(event.target.closest(".tok"));
      row.addEventListener("mouseover", (event) => show(of(event)));
      row.addEventListener("click", (event) => show(of(event)));
      row.addEventListener("focus", () => { if (at < 0) show(0); });
      row.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) { event.preventDefault(); show(at + step); }
      });
    });
  }

  const stages = data("browser-data"), sequences = data("teacher-data");
  if (stages && stages.length) browser(byId("browser"), stages);
  if (sequences) teacher(sequences);
})();
