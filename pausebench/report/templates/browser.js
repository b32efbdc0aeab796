"use strict";
// Every text is set with textContent: what a model wrote is never read as markup.
for (const browser of document.querySelectorAll(".browser")) {
  const data = JSON.parse(document.getElementById(browser.dataset.source).textContent);
  const find = (name) => browser.querySelector("." + name);
  const group = find("group"), seed = find("seed"), differ = find("differ");
  let row = 0;

  const fill = (select, values) => {
    const before = select.value;
    select.replaceChildren(...values.map((value) => new Option(value, value)));
    if (values.includes(before)) select.value = before;
  };
  const pairsOf = (name) => data.pairs.filter((pair) => pair.group === name);
  const chosen = () => pairsOf(group.value).find((pair) => String(pair.seed) === seed.value);
  const shown = (pair) => {
    const rows = pair.answers.map((_, index) => index);
    return differ.checked ? rows.filter((index) => pair.answers[index][0] !== pair.answers[index][1]) : rows;
  };
  const show = () => {
    const pair = chosen(), rows = shown(pair);
    row = Math.max(0, Math.min(row, rows.length - 1));
    const of = pair.answers.length + (pair.total === null ? "" : " of " + pair.total);
    const what = differ.checked ? " where they differ, among the first " + of : ", the first " + of + " in the test set";
    find("place").textContent = rows.length ? "row " + (row + 1) + " of " + rows.length + what : "no row" + what;
    const index = rows[row], some = rows.length > 0;
    const [question, target] = some ? data.texts[pair.texts][index] : ["", ""];
    const [control, treatment, controlRight, treatmentRight] = some ? pair.answers[index] : ["", "", false, false];
    const mark = (right) => (some ? (right ? "\u2713 right" : "\u2717 wrong") : "");
    const texts = {
      question, target, control, treatment, "control-name": pair.control, "treatment-name": pair.treatment,
      "control-mark": mark(controlRight), "treatment-mark": mark(treatmentRight),
    };
    for (const [name, text] of Object.entries(texts)) find(name).textContent = text;
    find("previous").disabled = row <= 0;
    find("next").disabled = row >= rows.length - 1;
  };
  const restart = () => { row = 0; show(); };
  const step = (by) => { row += by; show(); };
  const regroup = () => { fill(seed, pairsOf(group.value).map((pair) => String(pair.seed))); restart(); };

  fill(group, [...new Set(data.pairs.map((pair) => pair.group))]);
  group.addEventListener("change", regroup);
  seed.addEventListener("change", restart);
  differ.addEventListener("change", restart);
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  browser.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target.tagName === "SELECT" || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(by);
  });
  regroup();
  browser.hidden = false;
}
