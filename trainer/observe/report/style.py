"""The report's style sheet: one column on a phone, two panels a row on a desk, light and dark."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5d6771; --rule: #dfe3e7; --paper: #fff; --shade: #f5f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #98a2ac; --rule: #343b42; --paper: #14181b; --shade: #1c2226; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .2rem; }
p { margin: .2rem 0 1rem; max-width: 48rem; }
p, figcaption, th, dt, .soft { color: var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
.notice { border-left: 3px solid #e76300; padding: .3rem .8rem; background: var(--shade); }

.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.6rem 0; }
.facts div { flex: 1 1 9rem; max-width: 22rem; background: var(--shade); border-radius: .5rem; padding: .8rem 1rem; }
.facts dt { font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.facts dd small { display: block; line-height: 1.4; font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.6rem .35rem 0; text-align: right; white-space: nowrap; }
tr { border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; }
.long { display: inline-block; max-width: 18rem; white-space: normal; overflow-wrap: anywhere; text-align: inherit; }
thead th { font-weight: 500; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 400; color: var(--ink); }
td b { font-weight: 700; }

.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
svg { display: block; overflow: visible; width: 100%; height: auto; stroke-linejoin: round; }
.large svg { min-width: 30rem; }
.page svg { min-width: 44rem; }
.page { grid-column: 1 / -1; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; list-style: none; padding: 0; margin: 0 0 .6rem; }
.legend { font-size: .9rem; }
.legend li { overflow-wrap: anywhere; }
i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }

details { border-top: 1px solid var(--rule); padding: .6rem 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--shade); padding: 1rem; border-radius: .5rem; }
"""
