// SPDX-License-Identifier: Apache-2.0
// How a report page looks. Colours are of the palette of Okabe and Ito and its shades: hues that stay apart for readers
// who do not see red or green.
#include "runtime/observe/report_page_parts.hpp"

namespace cadre::page {

const char* const kStyle = R"css(
:root {
  --paper: #ffffff; --ground: #f1f3f6; --line: #d5dae1; --ink: #1b222c; --soft: #55606f; --accent: #0072b2;
  --share: 0%; --share-fill: #cfe3f3; --warn: #8a3b00;
  --attention: #e2a5c6; --attention-back: #b5608f; --experts: #3f93d6; --experts-back: #00527f;
  --routing: #f2b33a; --routing-back: #c07f00; --weights: #009e73; --pipeline: #85cdf3; --reduction: #8a5a2b;
  --step: #8d96a3; --wait: #d55e00; --busy: #3f93d6; --idle: #8d96a3;
  --l0: #2166ac; --l1: #4f9bcb; --l2: #92c5de; --l3: #d1e5f0; --l4: #f0f1f3; --l5: #fde0c5; --l6: #f8b878; --l7: #e5823a;
  --l8: #b8480a; --cell: #1b222c; --cell-ends: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181e; --ground: #1e242c; --line: #39424e; --ink: #e6eaf0; --soft: #a3aebd; --accent: #6cbcec;
    --share-fill: #24445c; --warn: #ffb27d;
    --experts: #5aa9e6; --experts-back: #1f6ba3; --wait: #f0752a; --reduction: #b98350; --busy: #4f9fde;
    --l0: #7fbdf5; --l1: #5497d6; --l2: #3a72a8; --l3: #2c4d6c; --l4: #2b3139; --l5: #5f452d; --l6: #96622c; --l7: #cf8230;
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
th, td { padding: 4px 12px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { background: var(--ground); font-weight: 600 }
th small { font-weight: 400; color: var(--soft) }
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
.routing { fill: var(--routing); background: var(--routing) }
.routing.back { fill: var(--routing-back); background: var(--routing-back) }
.weights { fill: var(--weights); background: var(--weights) }
.pipeline { fill: var(--pipeline); background: var(--pipeline) }
.reduction { fill: var(--reduction); background: var(--reduction) }
.step { fill: var(--step); background: var(--step) }
.wait { fill: var(--wait); background: var(--wait) }
.busy { fill: var(--busy); background: var(--busy) }
.idle { fill: var(--idle); background: var(--idle) }
.load0 { fill: var(--l0); background: var(--l0) }
.load1 { fill: var(--l1); background: var(--l1) }
.load2 { fill: var(--l2); background: var(--l2) }
.load3 { fill: var(--l3); background: var(--l3) }
.load4 { fill: var(--l4); background: var(--l4) }
.load5 { fill: var(--l5); background: var(--l5) }
.load6 { fill: var(--l6); background: var(--l6) }
.load7 { fill: var(--l7); background: var(--l7) }
.load8 { fill: var(--l8); background: var(--l8) }
.map g text { fill: var(--cell) }
.map .load0 text, .map .load8 text { fill: var(--cell-ends) }
#tip { position: fixed; z-index: 1; pointer-events: none; padding: 4px 8px; border: 1px solid var(--line); font-size: 13px;
  border-radius: 4px; background: var(--paper); white-space: pre-line }
@media print { .controls, #tip { display: none } }
)css";

}  // namespace cadre::page
