"""The trade-off of a plan, in the terminal and as a page of its own."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from edgetune.plan import make_plan
from edgetune.plan.explain import print_plan
from edgetune.report import write_plan_page
from edgetune.schema import Plan
from tests.plan.conftest import make_profile

MODEL = "vit_nano_patch8_64"


def tight(photos: Path) -> Plan:
    """A plan whose cap on memory leaves some alternatives out."""
    profile = make_profile(watts=4.0)
    easy = make_plan(photos, model=MODEL, profile=profile, engine="torch")
    most = easy.predicted.peak_memory_most_bytes
    return make_plan(photos, model=MODEL, profile=profile, engine="torch", memory_bytes=most, energy_j=1e5)


def printed(plan: Plan) -> list[str]:
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=80, color_system=None))
    return out.getvalue().splitlines()


def test_the_terminal_draws_learning_and_marks_what_is_beyond_a_cap(photos: Path) -> None:
    plan = tight(photos)
    said = printed(plan)
    assert max(map(len, said)) <= 80
    start = next(index for index, line in enumerate(said) if line.startswith("Trade-off"))
    rows = said[start + 2 : start + 2 + len(plan.alternatives)]
    assert ["→" in row for row in rows] == [found.chosen for found in plan.alternatives]
    assert ["×" in row for row in rows] == [not found.within_caps for found in plan.alternatives]
    assert any("×" in row for row in rows)
    bars = [row.count("█") for row in rows]
    assert max(bars) == 5
    ranked = sorted(range(len(rows)), key=lambda index: plan.alternatives[index].learning)
    assert [bars[index] for index in ranked] == sorted(bars)


def test_the_page_has_a_chart_for_each_cap_and_a_row_for_each_alternative(photos: Path, tmp_path: Path) -> None:
    plan = tight(photos)
    write_plan_page(plan, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    for name in ("tradeoff-learning", "tradeoff-time", "tradeoff-energy"):
        assert f'"id":"{name}"' in page.replace('": "', '":"')
    assert "beyond a cap" in page
    section = page[page.index('id="tradeoff"') :]
    table = section[section.index("<tbody") : section.index("</tbody>")]
    assert len(re.findall("<tr", table)) == len(plan.alternatives)
    for warning in plan.warnings:
        assert warning.split(" (")[0][:40] in page
