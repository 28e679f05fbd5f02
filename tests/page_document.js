// A document for the script of the server's page: it keeps what is set, and refuses NaN.
"use strict";
const clean = value => { if (/NaN|undefined/.test(String(value))) throw new Error(`bad value: ${value}`); return value; };
class Node {
  constructor() { Object.assign(this, {attributes: {}, kids: [], dataset: {}, style: {}, found: {}, text: ""}); this.classList = {toggle() {}}; }
  setAttribute(name, value) { this.attributes[name] = clean(value); }
  append(...kids) { this.kids.push(...kids.map(clean)); }
  replaceChildren(...kids) { this.kids = kids; }
  addEventListener() {}
  querySelector(query) { return this.found[query] ||= new Node(); }
  get nextElementSibling() { return this.querySelector("next"); }
  get textContent() { return this.text + this.kids.map(kid => kid.textContent ?? kid).join("|"); }
  set textContent(text) { this.text = clean(text) ?? ""; this.kids = []; }
}
const ids = {range: Object.assign(new Node(), {value: "180"})};
const cards = ["ended", "latency", "cores", "queued"].map(name => Object.assign(new Node(), {dataset: {chart: name}}));
globalThis.window = {addEventListener() {}};
globalThis.document = {
  getElementById: id => ids[id] ||= new Node(), createElement: () => new Node(), createElementNS: () => new Node(),
  querySelectorAll: () => cards, body: new Node(), hidden: false,
};
globalThis.setInterval = () => {};
const now = JSON.parse(require("fs").readFileSync(0));
let status = 200;
globalThis.fetch = async () => ({status, ok: status === 200, json: async () => structuredClone(now)});
/* the page's script */
(async () => {
  const states = [];
  for (status of [200, 401, 500]) { await poll(); states.push(find("state").textContent); }
  const texts = Object.fromEntries(["model", "totals", "stages", "events"].map(id => [id, find(id).textContent]));
  console.log(JSON.stringify({...texts, state: states, charts: charts.map(chart => chart.box.attributes["aria-label"])}));
})();
