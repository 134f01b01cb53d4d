# SPDX-License-Identifier: GPL-2.0-or-later
"""The page in a real browser, where there is one (Debian package chromium)."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_bench
import pytest
from test_page import LINE, SAMPLE

from lab.mechanisms import MECHANISMS
from lab.model import Result
from lab.report import page
from lab.results.figures import Bench

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here")

#: Looks at the page when it has been drawn, and leaves what it found for `browse`.
_WATCH = r"""<script>
const errors = []; addEventListener('error', e => errors.push(e.message));
const box = element => element.getBoundingClientRect();
const called = element => element.tagName + '.' + element.className + ': ' +
  element.textContent.trim().slice(0, 40);

// Of each chart: text that its frame cuts off, and texts that lie on top of each other.
function texts(chart) {
  const frame = box(chart.querySelector('.main-svg'));
  const shown = [...chart.querySelectorAll('.main-svg text')].filter(text =>
    text.textContent.trim() && box(text).width && getComputedStyle(text).visibility != 'hidden');
  const cut = shown.filter(text => box(text).left < frame.left - 1 ||
    box(text).right > frame.right + 1 || box(text).top < frame.top - 1 ||
    box(text).bottom > frame.bottom + 1).map(text => text.textContent);
  const over = [];
  shown.forEach((one, i) => shown.slice(i + 1).forEach(other => {
    const [a, b] = [box(one), box(other)];
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
      over.push(one.textContent + ' | ' + other.textContent);
  }));
  return {cut, over, number: shown.length};
}

// Words of an element itself that are not on one line.
function broken(element) {
  const found = [];
  for (const node of [...element.childNodes].filter(one => one.nodeType == Node.TEXT_NODE))
    for (const word of node.data.matchAll(/\b[a-z]{2,14}\b/gi)) {
      const range = document.createRange();
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(part => part.top));
      if (lines.size > 1) found.push(called(element) + ': ' + word[0]);
    }
  return found;
}

addEventListener('load', () => setTimeout(() => {
  const charts = [...document.querySelectorAll('.charts > div')];
  const all = [...document.body.querySelectorAll('*')].filter(element =>
    !element.closest('svg') && !['SCRIPT', 'STYLE'].includes(element.tagName) &&
    getComputedStyle(element).display != 'none');
  const ink = document.querySelector('.js-plotly-plot .xtick text');
  const seen = {
    errors,
    boxes: charts.map(div => {
      const inner = box(div.querySelector('.main-svg'));
      return inner.width <= box(div).width + 1 && inner.width > 200;
    }),
    plots: charts.map(div => div.querySelector('.js-plotly-plot')._fullLayout._size.w),
    texts: charts.map(texts),
    beyond: all.filter(element => box(element).left < -1 || box(element).right > innerWidth + 1)
      .map(called),
    // What only scrolling would show.
    hidden: all.filter(element => element.scrollWidth > element.clientWidth + 1 &&
      element.clientWidth && getComputedStyle(element).overflowX != 'visible').map(called),
    broken: all.flatMap(broken),
    wide: document.documentElement.scrollWidth > innerWidth,
    ink: getComputedStyle(ink).fill,
    text: getComputedStyle(document.body).color,
    paper: getComputedStyle(document.body).backgroundColor,
  };
  const pre = document.createElement('pre'); pre.id = 'seen';
  pre.textContent = JSON.stringify(seen); document.body.append(pre);
}, 1500));
</script></head>"""


def browse(text: str, directory: Path, *options: str) -> dict[str, Any]:
    """Open a page and return what can be seen of it."""
    file = directory / "page.html"
    file.write_text(text.replace("</head>", _WATCH, 1), encoding="utf-8")
    assert CHROMIUM
    argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    argv += ["--disable-background-networking", "--disable-sync", "--virtual-time-budget=20000"]
    argv += [f"--user-data-dir={directory / 'profile'}", *options, "--dump-dom", file.as_uri()]
    dom = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
    seen = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert seen, dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found


def bench(names: list[str], ram: tuple[int, ...], step: float) -> Bench:
    """Return a bench in which each mechanism is `step` times as slow as the one before."""
    runs = [
        made_bench.run(name, number, 4.2 * step**place * (1 + 0.2 * number), size)
        for size in ram
        for place, name in enumerate(names)
        for number in range(4)
    ]
    done = made_bench.of_runs(runs, names, ",".join(f"{size}M" for size in ram), repeats=3)
    again = [
        one.model_copy(
            update={
                "figures": one.figures.model_copy(
                    update={"memory_ratio": 1.9, "memory_pss_ratio": 1.95, "brownout_ms": 2620.0,
                            "huge_pages_kept": 0.98}
                )
            }
        )
        for one in done.runs
    ]  # fmt: skip
    return made_bench.of_runs(again, names, ",".join(f"{size}M" for size in ram), repeats=3)


def of_bench(done: Bench) -> str:
    names = [run.run_directory for run in page.typical(done)][:2]
    return page.of_bench(done, dict.fromkeys(names, LINE))


def everything() -> tuple[str, int]:
    names = [mechanism.name for mechanism in MECHANISMS]
    return of_bench(bench(names, (1024,), 1.9)), 4 + 2


def long_names() -> tuple[str, int]:
    label = "flip@10.0+tests/series/slower-by-200-milliseconds::10.2+tests/series/slow"
    return of_bench(bench(["flip:unsampled", label, "flip"], (512, 1024), 1.2)), 2 * 4 + 1 + 2


def an_upgrade() -> tuple[str, int]:
    result = Result.model_validate_json(SAMPLE.read_text(encoding="utf-8"))
    return page.of_run(result, LINE), 2


def a_long_upgrade() -> tuple[str, int]:
    """With STOP, RESUME and the end close together, far from the beginning."""
    result = Result.model_validate_json(SAMPLE.read_text(encoding="utf-8")).model_copy(
        update={"run_directory": "/srv/" + "very_long_name_of_a_directory_" * 6}
    )
    late = {"stop_ms": 59_990.0, "resume_ms": 59_995.0, "end_ms": 60_000.0}
    return page.of_run(result, LINE.model_copy(update=late)), 2


DARK = "--blink-settings=preferredColorScheme=0"


@pytest.mark.parametrize(
    ("what", "width", "dark"),
    [
        (everything, 1200, True),
        (everything, 500, False),
        (long_names, 1200, False),
        (long_names, 500, True),
        (an_upgrade, 1200, True),
        (an_upgrade, 500, False),
        (a_long_upgrade, 500, True),
    ],
)
def test_nothing_is_cut_off(
    what: Callable[[], tuple[str, int]], width: int, dark: bool, tmp_path: Path
) -> None:
    text, charts = what()
    seen = browse(text, tmp_path, f"--window-size={width},2000", *([DARK] if dark else []))
    assert seen["errors"] == []
    assert seen["boxes"] == [True] * charts
    assert min(seen["plots"]) > 180  # long labels leave room for what they are labels of
    assert [found["cut"] for found in seen["texts"]] == [[]] * charts
    assert [found["over"] for found in seen["texts"]] == [[]] * charts
    assert min(found["number"] for found in seen["texts"]) >= 5
    assert seen["beyond"] == []
    assert seen["hidden"] == []
    assert seen["broken"] == []
    assert not seen["wide"]
    assert seen["ink"] == seen["text"]  # dark on light, or light on dark
    assert seen["paper"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
