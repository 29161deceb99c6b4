"use strict";
// The class table (sort, search, filter, pages) and the dots of the scatter charts, from the JSON that the page carries.
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const table = document.getElementById("class-rows"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const search = document.getElementById("search"), group = document.getElementById("group"), count = document.getElementById("count");
  const previous = document.getElementById("previous"), next = document.getElementById("next"), clear = document.getElementById("clear");
  const tip = document.getElementById("tip"), said = document.getElementById("said");
  const PAGE = 50, columns = data.columns, rows = columns[0].values.map((_, c) => c);
  const lower = columns[0].values.map((name) => name.toLowerCase());
  let order = rows, only = null, page = 0, sorted = null;

  // How a value is written: hits of n pictures as per cent, "n/a" without pictures.
  const percent = (hits, n) => (n ? ((100 * hits) / n).toFixed(1) : "n/a");
  const written = (column, c) => (column.of === undefined ? String(column.values[c]) : percent(column.values[c], columns[column.of].values[c]));
  const worth = (column, c) => {
    if (column.of === undefined) return column.values[c];
    const n = columns[column.of].values[c];
    return n ? column.values[c] / n : null;
  };

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const kept = order.filter((c) => (only !== null ? c === only : lower[c].includes(wanted) && (!group.value || columns[1].values[c] === group.value)));
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    page = Math.min(page, pages - 1);
    const shown = kept.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...shown.map((c) => {
      const row = document.createElement("tr");
      row.dataset.c = c;
      columns.forEach((column, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        if (column.text) cell.className = "text";
        cell.textContent = written(column, c);
        row.append(cell);
      });
      return row;
    }));
    const first = kept.length ? page * PAGE + 1 : 0;
    count.textContent = `${kept.length} of ${rows.length} classes` + (pages > 1 ? `, ${first} to ${first + shown.length - 1} shown` : "");
    previous.disabled = page === 0;
    next.disabled = page >= pages - 1;
    clear.hidden = only === null && !search.value && !group.value;
  }

  function sort(i) {
    const head = heads[i], falling = head.getAttribute("aria-sort") === "ascending" || (head.getAttribute("aria-sort") === "none" && i > 1);
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const keys = rows.map((c) => worth(columns[i], c)), sign = falling ? -1 : 1;
    const words = new Intl.Collator(undefined, { numeric: true });
    order = rows.slice().sort((a, b) => {
      if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b; // n/a always last
      return sign * (columns[i].text ? words.compare(keys[a], keys[b]) : keys[a] - keys[b]) || a - b;
    });
    page = 0;
    draw();
  }

  function choose(c) {
    only = c;
    search.value = columns[0].values[c];
    group.value = "";
    page = 0;
    draw();
    document.getElementById("class-table").scrollIntoView();
    count.focus({ preventScroll: true });
  }

  const describe = (c, r) => [
    columns[0].values[c],
    `${columns[2].values[c].toLocaleString("en")} training pictures (${columns[1].values[c]})`,
    ...data.runs[r].columns.map((i) => `${columns[i].short}: ${written(columns[i], c)} %`),
    `n = ${columns[columns[data.runs[r].columns[0]].of].values[c]}`,
  ];

  function show(dot, c, r) {
    const box = dot.getBoundingClientRect(), lines = describe(c, r);
    tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    tip.hidden = false;
    const left = Math.min(box.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${window.scrollX + Math.max(8, left)}px`;
    tip.style.top = `${window.scrollY + Math.max(8, box.top - tip.offsetHeight - 6)}px`;
    return lines.join(", ");
  }
  const hide = () => { tip.hidden = true; };

  document.querySelectorAll(".dots").forEach((group_of_dots, r) => {
    const dots = [...group_of_dots.children], place = new Map(dots.map((dot, i) => [dot, i]));
    let here = -1;
    const go = (i) => {
      if (here >= 0) dots[here].classList.remove("here");
      here = Math.max(0, Math.min(dots.length - 1, i));
      dots[here].classList.add("here");
      said.textContent = show(dots[here], data.runs[r].dots[here], r);
    };
    group_of_dots.addEventListener("pointerover", (event) => { if (place.has(event.target)) show(event.target, data.runs[r].dots[place.get(event.target)], r); });
    group_of_dots.addEventListener("pointerout", hide);
    group_of_dots.addEventListener("click", (event) => { if (place.has(event.target)) { hide(); choose(data.runs[r].dots[place.get(event.target)]); } });
    group_of_dots.addEventListener("focus", () => { if (group_of_dots.matches(":focus-visible")) go(Math.max(here, 0)); });
    group_of_dots.addEventListener("blur", () => { hide(); if (here >= 0) dots[here].classList.remove("here"); });
    group_of_dots.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 20, PageUp: -20, Home: -dots.length, End: dots.length }[event.key];
      if (step !== undefined) { event.preventDefault(); go(here + step); }
      if (event.key === "Enter" && here >= 0) { event.preventDefault(); hide(); choose(data.runs[r].dots[here]); }
      if (event.key === "Escape") hide();
    });
  });

  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => sort(i)));
  search.addEventListener("input", () => { only = null; page = 0; draw(); });
  group.addEventListener("change", () => { only = null; page = 0; draw(); });
  clear.addEventListener("click", () => { only = null; search.value = ""; group.value = ""; page = 0; draw(); search.focus(); });
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  document.querySelectorAll(".needs-script").forEach((part) => { part.hidden = false; });
  draw();
})();
