// SPDX-License-Identifier: Apache-2.0
// How a report page looks. Colours are of the palette of Okabe and Ito and its shades: hues that stay apart for readers
// who do not see red or green.

#include "runtime/report/report_page_parts.hpp"

namespace cadre::page {

const char* const kStyle = R"css(
:root {
  --paper: #ffffff; --ground: #f1f3f6; --line: #d5dae1; --ink: #1b222c; --soft: #55606f; --accent: #0072b2;
  --share: 0%; --share-fill: #cfe3f3; --warn: #8a3b00;
  --attention: #e2a5c6; --attention-back: #b5608f; --experts: #3f93d6; --experts-back: #00527f;
  --router: #f0e442; --router-back: #b5a900; --dispatch: #e69f00; --dispatch-back: #a66f00;
  --combine: #9b86d6; --combine-back: #5f45a8; --weights: #009e73; --pipeline: #85cdf3; --reduction: #8a5a2b;
  --step: #8d96a3; --wait: #d55e00; --busy: #3f93d6; --idle: #8d96a3;
  --none: #ffffff; --l1: #4f9bcb; --l2: #92c5de; --l3: #d1e5f0; --l4: #f0f1f3; --l5: #fde0c5; --l6: #f8b878; --l7: #e5823a;
  --l8: #b8480a; --cell: #1b222c; --cell-ends: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181e; --ground: #1e242c; --line: #39424e; --ink: #e6eaf0; --soft: #a3aebd; --accent: #6cbcec;
    --share-fill: #24445c; --warn: #ffb27d;
    --experts: #5aa9e6; --experts-back: #1f6ba3; --wait: #f0752a; --reduction: #b98350; --busy: #4f9fde;
    --none: #14181e; --l1: #5497d6; --l2: #3a72a8; --l3: #2c4d6c; --l4: #2b3139; --l5: #5f452d; --l6: #96622c; --l7: #cf8230;
    --l8: #ffb061; --cell: #f3f5f8; --cell-ends: #14181e;
  }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
main { max-width: 1560px; margin: 0 auto; padding: 20px 24px 60px }
h1 { font-size: 26px; margin: 0 0 10px }
h1 small { font-size: 16px; font-weight: 400; color: var(--soft) }
h2 { font-size: 18px; margin: 0 0 6px }
section { margin-top: 34px; min-width: 0 }
p { margin: 0 0 10px; max-width: 110ch }
.note { color: var(--soft) }
.warning { color: var(--warn); font-weight: 600 }
dl { margin: 0 }
dd { margin: 0 }
.facts { display: flex; flex-wrap: wrap; gap: 2px 26px; font-size: 13px }
.facts div { display: flex; gap: 6px; min-width: 0 }
.facts dd { overflow-wrap: anywhere }
.facts dt { color: var(--soft); white-space: nowrap }
.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin-bottom: 12px }
.big div { background: var(--ground); border-radius: 6px; padding: 10px 16px }
.big dt { color: var(--soft) }
.big dd { font-size: 32px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums }
.big small { display: block; font-size: 13px; font-weight: 400; color: var(--soft) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: 4px 12px; text-align: left; border-bottom: 1px solid var(--line) }
th { background: var(--ground); font-weight: 600; vertical-align: bottom }
th small { display: block; min-height: 1.2em; font-weight: 400; color: var(--soft); white-space: nowrap }
.number { white-space: nowrap }
th.number { white-space: normal }
@media (max-width: 1100px) {
  table { font-size: 12.5px }
  th, td { padding: 4px 6px }
  td:not(.number) { min-width: 11ch; overflow-wrap: anywhere }
}
tbody tr:last-child td { border-bottom: 0 }
.number { text-align: right }
.bar { background: linear-gradient(to right, var(--share-fill) var(--share), transparent 0) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0 0 8px; padding: 0; list-style: none; font-size: 13px }
.legend li { display: flex; align-items: center; gap: 6px }
.legend.scale { gap: 2px 10px }
.swatch { width: 14px; height: 14px; border-radius: 2px; flex: none }
.controls { font-size: 13px; color: var(--soft) }
button { font: inherit; color: var(--ink); background: var(--ground); border: 1px solid var(--line); border-radius: 4px }
.beside { display: flex }
.beside > .labels { flex: none }
.beside > :last-child { flex: 1; min-width: 0 }
#timeline .beside { touch-action: pan-y }
svg { display: block }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums }
svg .strong { fill: var(--ink); font-weight: 600 }
svg .small { font-size: 10.5px }
.end { text-anchor: end }
.middle { text-anchor: middle }
.axis line, .lines line { stroke: var(--line) }
.ground { fill: var(--ground) }
.chart { max-width: 1000px }
.chart text { fill: var(--ink); font-size: 13px }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 16px }
figure { margin: 0; min-width: 0 }
figcaption { font-size: 13px; color: var(--soft) }
figcaption b { color: var(--ink) }
.lines { width: 100%; max-width: 500px }
.lines text { font-size: 11px }
.lines polyline { fill: none; stroke: var(--accent); stroke-width: 1.5 }
.lines circle { fill: var(--accent) }
.attention { fill: var(--attention); background: var(--attention) }
.attention.back { fill: var(--attention-back); background: var(--attention-back) }
.experts { fill: var(--experts); background: var(--experts) }
.experts.back { fill: var(--experts-back); background: var(--experts-back) }
.router { fill: var(--router); background: var(--router) }
.router.back { fill: var(--router-back); background: var(--router-back) }
.dispatch { fill: var(--dispatch); background: var(--dispatch) }
.dispatch.back { fill: var(--dispatch-back); background: var(--dispatch-back) }
.combine { fill: var(--combine); background: var(--combine) }
.combine.back { fill: var(--combine-back); background: var(--combine-back) }
.weights { fill: var(--weights); background: var(--weights) }
.pipeline { fill: var(--pipeline); background: var(--pipeline) }
.reduction { fill: var(--reduction); background: var(--reduction) }
.step { fill: var(--step); background: var(--step) }
.wait { fill: var(--wait); background: var(--wait) }
.busy { fill: var(--busy); background: var(--busy) }
.idle { fill: var(--idle); background: var(--idle) }
.load0 { fill: var(--none); background: var(--none); stroke: var(--warn) }
.load0 text { stroke: none }
.swatch.load0 { border: 1px solid var(--warn) }
.load1 { fill: var(--l1); background: var(--l1) }
.load2 { fill: var(--l2); background: var(--l2) }
.load3 { fill: var(--l3); background: var(--l3) }
.load4 { fill: var(--l4); background: var(--l4) }
.load5 { fill: var(--l5); background: var(--l5) }
.load6 { fill: var(--l6); background: var(--l6) }
.load7 { fill: var(--l7); background: var(--l7) }
.load8 { fill: var(--l8); background: var(--l8) }
.map g text { fill: var(--cell) }
.map .load8 text { fill: var(--cell-ends) }
.names text { fill: #ffffff; stroke: #14181e; stroke-width: 2.5px; paint-order: stroke; font-size: 11px; pointer-events: none }
#notes { margin: 0 0 10px; padding: 8px 14px 8px 30px; background: var(--ground); border-left: 4px solid var(--warn); max-width: 110ch }
details summary { cursor: pointer; color: var(--soft); font-size: 13px; margin: 8px 0 }
#tip { position: fixed; z-index: 1; pointer-events: none; padding: 4px 8px; border: 1px solid var(--line); font-size: 13px;
  border-radius: 4px; background: var(--paper); white-space: pre-line }
@media print { .controls, #tip { display: none } }
)css";

// What a report page does beyond showing: zoom and tooltips of the timeline; and, opened with ?check, a look at its own
// layout: every bar inside its drawing, ranks apart from each other, no text cut off, nothing wider than the page.
const char* const kScript = R"js(
'use strict';
(function timeline() {
  const plot = document.querySelector('#timeline .plot');
  if (!plot) return;
  const bars = plot.querySelector('.bars'), axis = plot.querySelector('.axis'), tip = document.getElementById('tip');
  const names = plot.querySelector('.names');
  const rects = [...bars.querySelectorAll('.compute')].map(rect => ({x: rect.x.baseVal.value, y: rect.y.baseVal.value,
    width: rect.width.baseVal.value, name: rect.dataset.phase}));
  const whole = bars.viewBox.baseVal.width, height = bars.viewBox.baseVal.height, ms = Number(plot.dataset.ms);
  const top = Number(plot.dataset.top), bottom = Number(plot.dataset.bottom);
  let left = 0, width = whole;

  function element(parent, name, attributes, text) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
  }
  function drawAxis() {
    const from = left / whole * ms, shown = width / whole * ms;
    const power = 10 ** Math.floor(Math.log10(shown / 10));
    const step = [1, 2, 5, 10].map(factor => factor * power).find(value => value >= shown / 10 * (1 - 1e-9));
    axis.replaceChildren();
    for (let i = Math.ceil(from / step - 1e-9); i * step <= (from + shown) * (1 + 1e-9); ++i) {
      const share = (i * step - from) / shown * 100, at = share + '%';
      element(axis, 'line', {x1: at, x2: at, y1: top - 4, y2: bottom});
      const style = share < 2 ? 'start' : share > 98 ? 'end' : 'middle';
      for (const y of [15, bottom + 15]) element(axis, 'text', {class: style, x: at, y: y}, String(+(i * step).toPrecision(9)));
    }
  }
  // The phase on each activity that has room for four letters of it, in the middle of what is in view.
  function drawNames() {
    const pixels = plot.getBoundingClientRect().width / width;
    names.replaceChildren();
    for (const rect of rects) {
      const from = Math.max(rect.x, left), to = Math.min(rect.x + rect.width, left + width);
      const room = (to - from) * pixels - 6, letters = Math.floor(room / 6.6);
      if (letters < Math.min(4, rect.name.length)) continue;
      const text = rect.name.length <= letters ? rect.name : rect.name.slice(0, letters - 1) + '…';
      element(names, 'text', {class: 'middle', x: ((from + to) / 2 - left) / width * 100 + '%', y: rect.y + 13,
        'data-room': room}, text);
    }
  }
  function show(newLeft, newWidth) {
    width = Math.min(whole, Math.max(whole / 2000, newWidth));
    left = Math.min(whole - width, Math.max(0, newLeft));
    bars.setAttribute('viewBox', [left, 0, width, height].join(' '));
    drawAxis();
    drawNames();
  }
  function zoom(factor, share) { show(left + width * share * (1 - factor), width * factor); }
  function shareOf(event) {
    const box = plot.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  }

  drawNames();
  addEventListener('resize', drawNames);
  const controls = document.querySelector('#timeline .controls');
  controls.hidden = false;
  controls.addEventListener('click', event => {
    const wanted = event.target.dataset.zoom;
    if (wanted === 'in') zoom(0.5, 0.5);
    if (wanted === 'out') zoom(2, 0.5);
    if (wanted === 'all') show(0, whole);
  });
  plot.parentElement.addEventListener('keydown', event => {
    const actions = {'+': () => zoom(0.5, 0.5), '-': () => zoom(2, 0.5), '0': () => show(0, whole),
      ArrowLeft: () => show(left - width / 8, width), ArrowRight: () => show(left + width / 8, width)};
    if (event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
  });
  plot.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, shareOf(event));
  }, {passive: false});
  plot.addEventListener('dblclick', event => zoom(0.5, shareOf(event)));
  let grabbed = null;
  plot.addEventListener('pointerdown', event => { grabbed = {at: shareOf(event), left: left}; });
  window.addEventListener('pointerup', () => { grabbed = null; });
  plot.addEventListener('pointerleave', () => { tip.hidden = true; });
  plot.addEventListener('pointermove', event => {
    if (grabbed && event.buttons) show(grabbed.left - (shareOf(event) - grabbed.at) * width, width);
    const data = event.target.dataset;
    tip.hidden = !data.phase;
    if (tip.hidden) return;
    const kind = {compute: '', wait: 'wait for ', flight: 'in flight: '}[event.target.classList[0]];
    const time = attribute => (event.target[attribute].baseVal.value / whole * ms).toFixed(3);
    const lines = ['rank ' + data.rank + ', ' + kind + data.phase, time('width') + ' ms from ' + time('x') + ' ms on'];
    if (data.layer !== undefined) lines.push('layer ' + data.layer);
    if (data.microBatch !== undefined) lines.push('micro-batch ' + data.microBatch);
    if (data.bytes !== undefined) lines.push(Number(data.bytes).toLocaleString('en') + ' bytes sent');
    tip.textContent = lines.join('\n');
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(0, Math.min(event.clientX + 14, room)) + 'px';
    tip.style.top = event.clientY + 14 + 'px';
  });
})();

(function selfCheck() {
  if (location.search !== '?check') return;
  const all = selector => [...document.querySelectorAll(selector)];
  const inside = (inner, outer, slack) => inner.left >= outer.left - slack && inner.right <= outer.right + slack &&
    inner.top >= outer.top - slack && inner.bottom <= outer.bottom + slack;
  const found = {bars: 0, outside: 0, empty: 0, overlapping: 0, textCut: 0, cellsCut: 0, scrolled: 0, ranks: 0,
    uncoloured: 0};
  const fills = new Set();
  const plot = document.querySelector('#timeline .plot');
  if (plot) use(plot);
  const frame = plot && plot.getBoundingClientRect();
  const reach = new Map();  // rank -> [top, bottom]
  for (const bar of all('#timeline .bars rect')) {
    const box = bar.getBoundingClientRect();
    ++found.bars;
    if (!inside(box, frame, 0.5)) ++found.outside;
    if (!(box.width > 0.001 && box.height > 1)) ++found.empty;
    const fill = getComputedStyle(bar).fill;
    fills.add(fill);
    if (fill === 'rgb(0, 0, 0)') ++found.uncoloured;
    const rows = reach.get(bar.dataset.rank) || [Infinity, -Infinity];
    reach.set(bar.dataset.rank, [Math.min(rows[0], box.top), Math.max(rows[1], box.bottom)]);
  }
  const rows = [...reach.values()].sort((a, b) => a[0] - b[0]);
  found.ranks = rows.length;
  found.fills = fills.size;
  for (let i = 1; i < rows.length; ++i) if (rows[i][0] < rows[i - 1][1]) ++found.overlapping;
  const texts = all('svg text');
  for (const text of texts) {
    let drawing = text.ownerSVGElement;
    while (drawing.ownerSVGElement) drawing = drawing.ownerSVGElement;
    if (!inside(text.getBoundingClientRect(), drawing.getBoundingClientRect(), 1)) ++found.textCut;
  }
  for (const cell of all('td, th, dd, dt, h1, h2, p, li')) if (cell.scrollWidth > cell.clientWidth + 1) ++found.cellsCut;
  for (const table of all('.scroll')) if (table.scrollWidth > table.clientWidth + 1) ++found.scrolled;
  found.texts = texts.length;
  found.pageWidth = document.documentElement.clientWidth;
  found.pageOverflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.paper = getComputedStyle(document.body).backgroundColor;
  document.getElementById('self-check').textContent = JSON.stringify(found);

  // Half the step from its middle on; what the first bar in view says; and back.
  function use(plot) {
    const press = zoom => document.querySelector('[data-zoom=' + zoom + ']').click();
    const bars = plot.querySelector('.bars'), first = plot.querySelector('.compute.experts'), tip = document.getElementById('tip');
    press('in');
    found.zoomed = bars.getAttribute('viewBox').split(' ').map(Number).slice(0, 3);
    found.zoomedAxis = [...plot.querySelectorAll('.axis text')].map(text => text.textContent).filter((_, i) => i % 2);
    first.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: 10, clientY: 10}));
    found.tip = tip.textContent;
    plot.dispatchEvent(new PointerEvent('pointerleave'));
    found.tipHidden = tip.hidden;
    for (let i = 0; i < 5; ++i) press('in');
    found.names = plot.querySelectorAll('.names text').length;
    found.namesCut = [...plot.querySelectorAll('.names text')].filter(text => !inside(text.getBoundingClientRect(),
      plot.getBoundingClientRect(), 1) || text.getComputedTextLength() > Number(text.dataset.room) + 6).length;
    press('all');
    found.experts = getComputedStyle(first).fill;
  }
})();
)js";

}  // namespace cadre::page
