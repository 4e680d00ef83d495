// SPDX-License-Identifier: Apache-2.0
// What a report page does beyond showing: zoom and tooltips of the timeline; and, opened with ?check, a look at its own
// layout: every bar inside its drawing, ranks apart from each other, no text cut off, nothing wider than the page.
#include "runtime/observe/report_page_parts.hpp"

namespace cadre::page {

const char* const kScript = R"js(
'use strict';
(function timeline() {
  const plot = document.querySelector('#timeline .plot');
  if (!plot) return;
  const bars = plot.querySelector('.bars'), axis = plot.querySelector('.axis'), tip = document.getElementById('tip');
  const whole = bars.viewBox.baseVal.width, height = bars.viewBox.baseVal.height, ms = Number(plot.dataset.ms);
  const top = Number(plot.dataset.top), bottom = Number(plot.dataset.bottom);
  let left = 0, width = whole;

  function element(name, attributes, text) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    axis.append(made);
  }
  function drawAxis() {
    const from = left / whole * ms, shown = width / whole * ms;
    const power = 10 ** Math.floor(Math.log10(shown / 10));
    const step = [1, 2, 5, 10].map(factor => factor * power).find(value => value >= shown / 10 * (1 - 1e-9));
    axis.replaceChildren();
    for (let i = Math.ceil(from / step - 1e-9); i * step <= (from + shown) * (1 + 1e-9); ++i) {
      const share = (i * step - from) / shown * 100, at = share + '%';
      element('line', {x1: at, x2: at, y1: top - 4, y2: bottom});
      const style = share < 2 ? 'start' : share > 98 ? 'end' : 'middle';
      for (const y of [15, bottom + 15]) element('text', {class: style, x: at, y: y}, String(+(i * step).toPrecision(9)));
    }
  }
  function show(newLeft, newWidth) {
    width = Math.min(whole, Math.max(whole / 2000, newWidth));
    left = Math.min(whole - width, Math.max(0, newLeft));
    bars.setAttribute('viewBox', [left, 0, width, height].join(' '));
    drawAxis();
  }
  function zoom(factor, share) { show(left + width * share * (1 - factor), width * factor); }
  function shareOf(event) {
    const box = plot.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  }

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
  const found = {bars: 0, outside: 0, empty: 0, overlapping: 0, textCut: 0, cellsCut: 0, ranks: 0, uncoloured: 0};
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
    press('all');
    found.experts = getComputedStyle(first).fill;
  }
})();
)js";

}  // namespace cadre::page
