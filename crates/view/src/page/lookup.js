"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const say = data.say;
  const body = document.body;
  body.classList.add("script");

  // Everything that stands for an id, and for a place in the sentence.
  const byId = new Map(), byPlace = new Map();
  const put = (map, key, element) => map.get(key)?.push(element) ?? map.set(key, [element]);
  for (const element of document.querySelectorAll("[data-id]")) {
    put(byId, element.dataset.id, element);
    if (element.dataset.i !== undefined) put(byPlace, element.dataset.i, element);
  }
  const chips = [...document.querySelectorAll(".chip")];
  const what = document.getElementById("what"), cell = document.getElementById("cell"), values = document.getElementById("values");
  const fill = (text, parts) => text.replace(/\{(\w+)\}/g, (_, name) => parts[name]);
  let lit = [], shown, pinned = -1, walked = -1;

  function show(i) {
    if (i === shown) return;
    for (const element of lit) element.classList.remove("on", "now");
    lit = [];
    shown = i;
    cell.textContent = "";
    values.replaceChildren();
    what.parentElement.classList.toggle("full", i >= 0);
    if (i < 0) { what.textContent = say.hint; return; }
    const piece = data.pieces[i], id = String(piece.id);
    lit = [...byId.get(id)];
    for (const element of lit) element.classList.add("on");
    for (const element of byPlace.get(String(i))) element.classList.add("now");
    const same = data.pieces.flatMap((other, j) => (other.id === piece.id ? [j] : []));
    what.textContent = fill(say.piece, { i, text: piece.label, bytes: piece.bytes, id })
      + (same.length > 1 ? " " + fill(say.same, { count: same.length, places: same.slice(0, 12).join(", ") + (same.length > 12 ? ", …" : "") }) : "");
    values.append(...data.rows[id].map((value, j) => {
      const item = document.createElement("li"), name = document.createElement("span");
      name.textContent = data.columns[j];
      item.append(name, String(value));
      return item;
    }));
  }
  // Without a pointer on anything: the piece that was chosen, or the one where the keyboard is.
  const rest = () => show(pinned >= 0 ? pinned : chips.indexOf(document.activeElement));

  function place(target) {
    const element = target.closest?.("[data-id]");
    if (!element) return -1;
    if (element.dataset.i !== undefined) return Number(element.dataset.i);
    return data.pieces.findIndex((piece) => String(piece.id) === element.dataset.id);
  }
  function value(event) {
    const strip = event.target.closest?.(".strip");
    values.querySelector(".now")?.classList.remove("now");
    cell.textContent = "";
    if (!strip || !(shown >= 0)) return;
    const box = strip.getBoundingClientRect();
    const j = Math.min(data.columns.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * data.columns.length)));
    const item = values.children[j];
    item.classList.add("now");
    values.scrollTop = item.offsetTop - values.offsetTop - 20;
    cell.textContent = fill(say.cell, { row: data.pieces[shown].id, column: data.columns[j], value: data.rows[data.pieces[shown].id][j] });
  }
  const parts = [document.querySelector(".chips"), document.querySelector(".stage")];
  for (const part of parts) {
    part.addEventListener("pointerover", (event) => { const i = place(event.target); if (i >= 0) show(i); });
    part.addEventListener("pointermove", value);
    part.addEventListener("pointerleave", rest);
    part.addEventListener("click", (event) => {
      const i = place(event.target);
      if (i < 0) return;
      chips[pinned]?.setAttribute("aria-pressed", "false");
      pinned = pinned === i ? -1 : i;
      chips[pinned]?.setAttribute("aria-pressed", "true");
      show(i);
      value(event);
    });
  }

  // One stop of the Tab key for all pieces; arrows walk them.
  function walk(i, focus) {
    if (walked >= 0) chips[walked].tabIndex = -1;
    walked = i;
    chips[i].tabIndex = 0;
    if (focus) chips[i].focus();
  }
  for (const chip of chips) { chip.tabIndex = -1; chip.setAttribute("aria-pressed", "false"); }
  if (chips.length) walk(0, false);
  parts[0].addEventListener("focusin", (event) => { const i = chips.indexOf(event.target); if (i >= 0) { walk(i, false); show(i); } });
  parts[0].addEventListener("focusout", () => setTimeout(rest));
  parts[0].addEventListener("keydown", (event) => {
    const last = chips.length - 1;
    const to = { ArrowRight: Math.min(walked + 1, last), ArrowDown: Math.min(walked + 1, last), ArrowLeft: Math.max(walked - 1, 0), ArrowUp: Math.max(walked - 1, 0), Home: 0, End: last }[event.key];
    if (to !== undefined && chips.includes(event.target)) { event.preventDefault(); walk(to, true); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    chips[pinned]?.setAttribute("aria-pressed", "false");
    pinned = -1;
    show(-1);
  });

  // The steps of the lesson; #step=3 opens the page at one.
  const slider = document.getElementById("step"), told = [...document.querySelectorAll(".told li")], count = told.length;
  function step(n) {
    n = Math.min(count, Math.max(1, n || count));
    slider.value = n;
    slider.setAttribute("aria-valuetext", told[n - 1].querySelector("b").textContent);
    body.dataset.step = n;
    told.forEach((item, i) => item.classList.toggle("now", i === n - 1));
    document.getElementById("count").textContent = n + " / " + count;
  }
  slider.addEventListener("input", () => step(Number(slider.value)));
  document.getElementById("back").addEventListener("click", () => step(Number(slider.value) - 1));
  document.getElementById("forth").addEventListener("click", () => step(Number(slider.value) + 1));
  step(Number(/^#step=(\d)$/.exec(location.hash)?.[1]));
  show(-1);
})();
