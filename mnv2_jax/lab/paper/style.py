"""The page's style sheet: light, dark and paper."""

STYLE = """
:root {
  --ink: #1c2024; --faint: #5b6570; --page: #fff; --soft: #f4f6f8; --rule: #d5dbe1;
  --link: #00538a; --paper: #6a5a3a; --paper-back: #faf6ea; --here: #0b4f45; --here-back: #eaf5f2;
  --note: #b7791f;
  --c0: #0072b2; --c1: #d55e00; --c2: #00875f; --c3: #b5548f; --c4: #c27c00; --c5: #2a93cc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e7eb; --faint: #9aa5b1; --page: #14181c; --soft: #1d2329; --rule: #363f48;
    --link: #7cc0f2; --paper: #d8c69a; --paper-back: #26221a; --here: #8fd6c6;
    --here-back: #16251f; --note: #e0a84a;
    --c0: #4fb0ea; --c1: #ff8b3d; --c2: #35c795; --c3: #e48fc2; --c4: #f0b429; --c5: #8fd0f5;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1rem; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 0.4rem; }
h2 span { color: var(--link); margin-right: 0.35em; white-space: nowrap; }
p { margin: 0.7rem 0; max-width: 52rem; }
a { color: var(--link); }
code {
  font: 0.86em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--soft); padding: 0.1em 0.3em; border-radius: 4px; overflow-wrap: anywhere;
}
nav { background: var(--soft); border-radius: 8px; padding: 0.8rem 1.1rem; margin: 1.6rem 0; }
nav ol { list-style: none; margin: 0; padding: 0; columns: 21rem; column-gap: 2rem; }
nav li { break-inside: avoid; padding: 0.1rem 0; }
nav a { text-decoration: none; color: inherit; }
nav a:hover { text-decoration: underline; }
nav b { display: inline-block; min-width: 4.6rem; color: var(--link); }
section { border-top: 1px solid var(--rule); padding-top: 1.5rem; margin-top: 2.4rem; }
.command { margin: 0 0 1rem; color: var(--faint); }
figure { margin: 1.1rem 0 0.6rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit;
  fill: currentColor; }
img { display: block; width: 100%; max-width: 38rem; height: auto; border-radius: 6px; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--faint); font-size: 0.9rem; margin: 1.2rem 0 -0.5rem; }
th, td { padding: 0.28rem 0.75rem; text-align: left; border-bottom: 1px solid var(--rule); }
th { vertical-align: bottom; font-weight: 600; line-height: 1.3; border-bottom-width: 2px; }
td { white-space: nowrap; }
.number { text-align: right; }
.word { white-space: nowrap; }
.paper { color: var(--paper); background: var(--paper-back); }
.here { color: var(--here); background: var(--here-back); }
.key span { padding: 0.15rem 0.6rem; border-radius: 4px; margin-right: 0.4rem; font-size: 0.9rem; }
.note { border-left: 3px solid var(--note); padding: 0.1rem 0 0.1rem 0.9rem; }
.note::before { content: "Note. "; font-weight: 600; color: var(--note); }
.missing { border: 1px dashed var(--rule); border-radius: 6px; padding: 0.5rem 0.9rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); color: var(--faint);
  font-size: 0.88rem; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; }
  svg { min-width: 36rem; }
}
@media print {
  :root {
    --ink: #000; --faint: #444; --page: #fff; --soft: #f2f2f2; --rule: #bbb; --link: #000;
    --paper: #4d3f1f; --paper-back: #fff; --here: #000; --here-back: #f0f0f0; --note: #555;
    --c0: #0072b2; --c1: #d55e00; --c2: #00875f; --c3: #b5548f; --c4: #c27c00; --c5: #2a93cc;
  }
  @page { margin: 16mm 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  section { break-before: auto; margin-top: 1.4rem; }
  h2, .command, .caption, p:has(+ figure) { break-after: avoid; }
  figure, table, tr, .note, .missing { break-inside: avoid; }
  table:has(tr:nth-child(16)) { break-inside: auto; }
  thead { display: table-header-group; }
  table { font-size: 8pt; }
  td, th { padding: 0.15rem 0.4rem; }
  .table, figure { overflow: visible; }
  svg { min-width: 0; }
  img { max-width: 28rem; }
  td:not(:first-child) { white-space: normal; }
  nav { background: none; padding: 0; }
}
"""
