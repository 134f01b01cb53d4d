# SPDX-License-Identifier: GPL-2.0-or-later
"""The page in a real browser, where there is one (Debian package chromium)."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_page import LINE, made

from lab.report import page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here")

_WATCH = """<script>
const errors = []; addEventListener('error', e => errors.push(e.message));
addEventListener('load', () => setTimeout(() => {
  const boxes = [...document.querySelectorAll('.charts > div')].map(div => {
    const outer = div.getBoundingClientRect();
    const inner = div.querySelector('.main-svg').getBoundingClientRect();
    return inner.width <= outer.width + 1 && inner.width > 200;
  });
  const ink = document.querySelector('.js-plotly-plot .xtick text');
  const seen = {errors, boxes, wide: document.documentElement.scrollWidth > innerWidth,
    ink: getComputedStyle(ink).fill, text: getComputedStyle(document.body).color};
  const pre = document.createElement('pre'); pre.id = 'seen';
  pre.textContent = JSON.stringify(seen); document.body.append(pre);
}, 1500));
</script></head>"""


def browse(text: str, directory: Path, *options: str) -> dict[str, Any]:
    """Open a page and return what can be seen of it."""
    file = directory / "page.html"
    file.write_text(text.replace("</head>", _WATCH, 1), encoding="utf-8")
    assert CHROMIUM
    argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    argv += [f"--user-data-dir={directory / 'profile'}", *options, "--dump-dom", file.as_uri()]
    dom = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
    seen = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert seen, dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("--window-size=1200,2000",),
        ("--window-size=500,2000",),
        ("--window-size=1200,2000", "--blink-settings=preferredColorScheme=0"),
    ],
    ids=["wide", "narrow", "dark"],
)
def test_it_is_drawn(options: tuple[str, ...], tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,precopy", "--ram", "512M,1G", "--repeats", "2")
    done, _ = made(tmp_path, *words)
    text = page.of_bench(
        done, dict.fromkeys([run.run_directory for run in page.typical(done)], LINE)
    )
    seen = browse(text, tmp_path, *options)
    assert seen["errors"] == []
    assert seen["boxes"] == [True] * 11
    assert not seen["wide"]  # a wide table scrolls by itself
    assert seen["ink"] == seen["text"]  # dark on light, or light on dark
