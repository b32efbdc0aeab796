"""The report from synthetic run folders: what the page and the terminal say, and what they must never do."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import synthetic
from rich.console import Console
from synthetic import print_report, write_report

from pausebench.errors import BadInput, RunFailed
from pausebench.report.comparisons import check_instrument, primary_family, secondary_contrasts
from pausebench.report.figures import read_curve
from pausebench.report.scores import load_studies

SEEDS = (0, 1, 2)
VOID = {"meta", "br", "wbr", "input", "path", "use", "rect", "circle"}


def demo(runs: Path, score: synthetic.Score = synthetic.realistic, **plan: Any) -> Path:
    synthetic.write_study(runs, synthetic.demo_panels(SEEDS), score, **plan)
    return runs


def page_of(runs: Path, result: str | None = None) -> str:
    return write_report(runs, result).read_text(encoding="utf-8")


def terminal_of(runs: Path, result: str | None = None) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(runs, result, console)
    return console.export_text()


def planted(gain: float, deviation: float) -> synthetic.Score:
    """Every arm scores alike but PausePT_PauseFT on parity, which is better by `gain`; seeds differ by `deviation`."""

    def score(raw: dict[str, Any]) -> float:
        if raw["task"] == "relay":
            return synthetic.RELAY[raw["k"]]
        noise = random.Random(raw["name"]).gauss(0.0, deviation)
        ours = raw["task"] == "parity" and raw["variant"] == "PausePT_PauseFT"
        return 0.7 + noise + (gain if ours else 0.0)

    return score


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(demo(tmp_path_factory.mktemp("demo")))


class Tags(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def without_scripts(page: str) -> str:
    """The page less its scripts, which must be our own one and data in which nothing can end the element."""
    *data, own = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert own == files("pausebench.report").joinpath("templates", "browser.js").read_text(encoding="utf-8")
    assert all(json.loads(text) and not set(text) & set("<>&\u2028") for text in data)
    return re.sub(r'<script( type="application/json" id="predictions-\d+")?>.*?</script>', "", page, flags=re.DOTALL)


def test_a_planted_effect_is_found(tmp_path: Path) -> None:
    runs = demo(tmp_path, planted(0.2, 0.005))
    (contrast,) = primary_family(load_studies(runs)[0]).contrasts
    assert contrast.comparison.difference == pytest.approx(0.2, abs=0.02)
    assert "PausePT_PauseFT scores higher than StdPT_StdFT" in page_of(runs)
    assert "PausePT_PauseFT scores higher" in " ".join(terminal_of(runs).split())


def test_a_planted_loss_is_said_as_plainly(tmp_path: Path) -> None:
    assert "StdPT_StdFT scores higher than PausePT_PauseFT" in page_of(demo(tmp_path, planted(-0.2, 0.005)))


def test_a_planted_null_is_undecided_and_says_what_could_have_been_seen(tmp_path: Path) -> None:
    page = page_of(demo(tmp_path, planted(0.0, 0.05)))
    assert "3 seeds do not settle the sign" in page
    assert re.search(r"3 seeds could have shown a difference of 0\.\d+ or more", page)


def test_identical_arms_read_identical_and_nothing_is_nan(tmp_path: Path) -> None:
    runs = demo(tmp_path, planted(0.0, 0.0))
    page, terminal = page_of(runs), terminal_of(runs)
    assert "identical: PausePT_PauseFT and StdPT_StdFT have the same score in all 3 seeds" in page
    assert '<td class="n">identical</td>' in page
    assert not re.search(r"\bnan\b|\binf\b", (page + terminal).lower())


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    synthetic.write_study(tmp_path, synthetic.demo_panels((0,)), synthetic.realistic, seeds=(0,))
    page = page_of(tmp_path)
    assert "one seed has no interval" in page
    assert "one seed: none" in page


def test_missing_cells_are_listed_with_the_command_that_fills_them(tmp_path: Path) -> None:
    def score(raw: dict[str, Any]) -> float | None:
        return None if (raw["variant"], raw["seed"]) == ("StdPT_PauseFT", 1) else synthetic.realistic(raw)

    runs = demo(tmp_path, score)
    page, terminal = page_of(runs), terminal_of(runs)
    missing = load_studies(runs)[0].missing().name
    assert len(missing) == 9
    assert all(name in page for name in missing)
    assert "9 of 94 cells are missing" in page
    assert "pausebench reproduce result=demo" in page
    assert "finetune 36 of 40, evaluate 85 of 94" in page
    assert "9 of 94 cells are missing; next: pausebench reproduce result=demo" in terminal


def test_a_study_without_any_result_still_makes_a_page(tmp_path: Path) -> None:
    runs = demo(tmp_path, lambda raw: None)
    page = page_of(runs)
    parsed(page)
    assert "nothing can be said yet" in page
    assert "94 of 94 cells are missing" in page
    assert "missing" in terminal_of(runs)


def test_an_unreadable_result_is_missing_not_a_crash(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    torn, empty, *_ = load_studies(runs)[0].cells.name
    (runs / "evaluate" / torn / "result.json").write_text('{"value": 0.')
    (runs / "evaluate" / empty / "result.json").write_text('{"value": NaN}')
    page = page_of(runs)
    assert "result.json is unreadable" in page
    assert "result.json has no finite value" in page


@pytest.mark.parametrize(
    ("relay", "words"),
    [
        ({0: 0.2, 1: 0.43, 4: 0.81, 12: 0.97}, "must be at chance"),
        ({0: 0.124, 1: 0.13, 4: 0.81, 12: 0.97}, "stays at chance"),
        ({0: 0.124, 1: 0.43, 4: 0.9, 12: 0.6}, "falls from 0.900 at K=4 to 0.600 at K=12"),
        ({0: 0.1, 1: None, 4: None, 12: None}, "must be at chance"),
    ],
)
def test_a_failed_instrument_is_loud(tmp_path: Path, relay: dict[int, float | None], words: str) -> None:
    runs = demo(tmp_path, lambda raw: relay[raw["k"]] if raw["task"] == "relay" else synthetic.realistic(raw))
    page, terminal = page_of(runs), terminal_of(runs)
    assert 'class="box failed"' in page
    assert "everything below means nothing" in page
    assert words in page.replace("&gt;", ">")
    assert "Instrument check passed" not in page
    assert "INSTRUMENT CHECK FAILED" in terminal


def test_a_working_instrument_passes_and_an_unfinished_one_does_not(tmp_path: Path) -> None:
    assert check_instrument(load_studies(demo(tmp_path / "whole"))[0]).state == "passed"
    partial = {0: 0.124, 1: 0.43, 4: None, 12: None}
    runs = demo(
        tmp_path / "part", lambda raw: partial[raw["k"]] if raw["task"] == "relay" else synthetic.realistic(raw)
    )
    assert check_instrument(load_studies(runs)[0]).state == "incomplete"
    assert "Instrument check passed" not in page_of(runs)


def test_text_from_runs_is_escaped(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    runs = demo(tmp_path, title=attack, notes=[attack], unit=attack, command=attack)
    for path in runs.glob("evaluate/*/predictions.jsonl"):
        path.write_text(json.dumps({"prefix": attack, "target": attack, "prediction": attack}) + "\n")
    for path in runs.glob("finetune/*/manifest.json"):
        path.write_text(json.dumps({"versions": {attack: attack}, "device": attack}))
    cell = synthetic.cell("parity", "std", 0, 9, world=attack) | {"name": "elsewhere"}
    synthetic.write_run(runs, cell, 0.5, model=attack, finetune_run=None, pretrain_run=None)
    page = page_of(runs)
    parsed(page)
    assert "<script" not in without_scripts(page)
    assert page.count("&lt;script&gt;") > 5


def test_text_in_figures_is_escaped(tmp_path: Path) -> None:
    panels = synthetic.demo_panels(SEEDS)
    for panel in panels:
        panel["title"] = "<script>$x$</script>"
        for cell in panel["cells"]:
            cell["task"] = "<script>$y$" if cell["task"] == "parity" else cell["task"]
            cell["filler"] = "<script>$z$"
    for cell in {cell["name"]: cell for panel in panels for cell in panel["cells"]}.values():
        value = synthetic.RELAY[cell["k"]] if cell["task"] == "relay" else 0.5
        synthetic.write_run(tmp_path, cell | {"task": "parity"}, value)
    synthetic.write_study(tmp_path, panels, lambda raw: None)
    page = page_of(tmp_path)
    parsed(page)
    assert "<script" not in without_scripts(page)
    assert re.search(r"<text[^>]*>[^<]*8 x &lt;script&gt;\$z\$</text>", page)


def test_markup_in_names_does_not_reach_the_terminal(tmp_path: Path) -> None:
    assert "[red]plain[/red]" in terminal_of(demo(tmp_path, title="[red]plain[/red]"))


def test_the_page_asks_nothing_of_any_network(demo_page: str) -> None:
    tags = parsed(demo_page)
    links = [value for _, name, value in tags.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    exports = {f"demo/{name}" for name in ("table.csv", "comparisons.csv", "table.md", "table.tex")}
    assert {link for link in links if not link.startswith("#")} == exports
    assert not re.search(r"url\((?!#)|@import|https?://", re.sub(r'xmlns(:xlink)?="[^"]*"', "", demo_page))


def test_identifiers_are_unique_and_references_resolve(demo_page: str) -> None:
    found = re.findall(r'\bid="([^"]+)"', demo_page)
    assert len(found) == len(set(found))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', demo_page)) <= set(found)


def test_every_figure_is_an_image_with_words_and_numbers(demo_page: str) -> None:
    drawings = re.findall(r"<svg [^>]*>", demo_page)
    assert len(drawings) == 10
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', drawing) for drawing in drawings)
    assert all("viewBox" in drawing and "width=" not in drawing for drawing in drawings)
    assert demo_page.count("<summary>Numbers</summary>") == len(drawings)


def test_a_torn_metrics_line_survives(tmp_path: Path, demo_page: str) -> None:
    runs = demo(tmp_path)
    for path in runs.glob("finetune/*/metrics.jsonl"):
        with open(path, "a") as file:
            file.write('{"step": 3600, "lo')
    assert page_of(runs) == demo_page
    curve = next(runs.glob("finetune/*/metrics.jsonl")).parent
    assert max(read_curve(curve)) == 3500


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, demo_page: str) -> None:
    path = write_report(demo(tmp_path / "elsewhere"))
    first = path.read_bytes()
    assert first == demo_page.encode()
    assert write_report(tmp_path / "elsewhere").read_bytes() == first


def test_the_only_script_that_may_run_is_ours(demo_page: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", demo_page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in demo_page


def test_writing_leaves_the_page_and_a_folder_for_each_study(tmp_path: Path) -> None:
    report = write_report(demo(tmp_path)).parent
    assert {path.name for path in report.iterdir()} == {"index.html", "demo"}
    names = {path.name for path in (report / "demo").iterdir()}
    assert names == {"table.md", "table.csv", "table.tex", "comparisons.csv", "figures"}


def test_the_report_needs_neither_torch_nor_hydra(tmp_path: Path) -> None:
    demo(tmp_path)
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from pausebench.report.page import read_runs, write_page\n"
        "from pausebench.report.terminal import print_studies\n"
        f"runs = Path({str(tmp_path)!r}); studies, others = read_runs(runs, None)\n"
        "write_page(runs, studies, others); print_studies(runs, studies, others, Console())\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'pausebench.training'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("prepare", [lambda runs: None, lambda runs: (runs / "finetune" / "x").mkdir(parents=True)])
def test_nothing_to_report_is_bad_input_with_a_next_step(tmp_path: Path, prepare: Any) -> None:
    prepare(tmp_path)
    for report in (write_report, terminal_of):
        with pytest.raises(BadInput, match="next: pausebench reproduce result=demo"):
            report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_an_unknown_result_lists_the_known_ones(tmp_path: Path) -> None:
    demo(tmp_path)
    with pytest.raises(BadInput, match=r"study=table1 has no plan.*allowed here: demo"):
        write_report(tmp_path, "table1")


def test_a_broken_plan_is_named(tmp_path: Path) -> None:
    demo(tmp_path)
    (tmp_path / "reproduce" / "demo" / "plan.json").write_text('{"result": "demo"')
    with pytest.raises(BadInput, match=r"plan\.json is not a readable plan"):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    demo(tmp_path)
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(RunFailed, match="could not be written"):
        write_report(tmp_path)


def test_a_study_over_worlds_is_tested_with_the_seed_as_unit(tmp_path: Path) -> None:
    """Worlds differ by far more than the effect; averaged within a seed, only effect and seed noise remain."""
    worlds = {"count16": 0.95, "count20": 0.8, "count24": 0.6}
    seeds = range(6)
    cells = [cell for world in worlds for cell in synthetic.variants(seeds, ("parity",), world=world)]
    panel = {"id": "variants_causal", "kind": "variants", "title": "Causal prefix", "cells": cells}

    def score(raw: dict[str, Any]) -> float | None:
        if (raw["world"], raw["seed"], raw["variant"]) == ("count24", 5, "PausePT_PauseFT"):
            return None
        return (
            worlds[raw["world"]] - 0.1 + 0.05 * (raw["variant"] == "PausePT_PauseFT") + 0.002 * raw["seed"] * raw["k"]
        )

    primary = {"panel": "variants_causal", "task": "parity", "treatment": "PausePT_PauseFT", "control": "StdPT_StdFT"}
    synthetic.write_study(tmp_path, [panel], score, result="larger", seeds=seeds, primary=primary)
    study = load_studies(tmp_path)[0]
    (contrast,) = primary_family(study).contrasts
    assert contrast.comparison.n == 5
    assert contrast.comparison.difference == pytest.approx(0.05 + 0.016 * 2)
    secondary = secondary_contrasts(study)
    assert len(secondary) == 11
    assert sorted(c.setting.worlds for c in secondary if c.treatment.arm.variant == "PausePT_PauseFT") == [
        ("count16",), ("count20",), ("count24",),
    ]  # fmt: skip
    assert "averaged over count16, count20, count24 first" in page_of(tmp_path)


def test_the_family_neither_repeats_a_pair_nor_shrinks_when_runs_are_missing(tmp_path: Path) -> None:
    whole = secondary_contrasts(load_studies(demo(tmp_path / "whole"))[0])
    empty = secondary_contrasts(load_studies(demo(tmp_path / "empty", lambda raw: None))[0])
    pairs = [(c.treatment.names, c.control.names) for c in whole]
    assert len(pairs) == len(set(pairs)) == len(empty)
    # Variants: 2 more on parity, 3 on majority. K: 2 and 16 for both. M: 5 for both. Fillers: 2 on 4 models.
    assert len(whole) == 5 + 4 + 10 + 8
    (primary,) = primary_family(load_studies(tmp_path / "whole")[0]).contrasts
    assert (primary.treatment.names, primary.control.names) not in pairs


def test_the_control_is_the_one_without_pauses_whatever_the_order_of_the_plan(tmp_path: Path) -> None:
    panels = synthetic.demo_panels(SEEDS)
    for panel in panels:
        panel["cells"].reverse()
    synthetic.write_study(tmp_path, panels, synthetic.realistic)
    secondary = secondary_contrasts(load_studies(tmp_path)[0])
    assert {c.control.arm.label for c in secondary if c.setting.panel.id == "variants"} == {"StdPT_StdFT"}


def test_the_four_variants_stand_in_the_table_with_their_numbers(tmp_path: Path) -> None:
    page = page_of(demo(tmp_path, lambda raw: 0.5 + 0.1 * raw["seed"] + 0.01 * raw["k"]))
    row = re.search(r'<th scope="row">PausePT_PauseFT K=8</th>(.*?)</tr>', page, re.DOTALL)
    assert row is not None
    assert re.findall(r">([^<>]*[^<>\s])\s*</td>", row.group(1)) == [
        "0.680 ± 0.100", "3", "[0.432, 0.928]", "0.384 ± 0.120", "0.006", "0.680 ± 0.100",
    ]  # fmt: skip


def test_several_studies_and_runs_outside_any_plan(tmp_path: Path) -> None:
    demo(tmp_path)
    synthetic.write_study(tmp_path, [], synthetic.realistic, result="another", title="Another study", primary=None)
    for seed in SEEDS:
        synthetic.write_run(tmp_path, synthetic.cell("mod3", "std", 4, seed), 0.5 + 0.1 * seed)
    page = page_of(tmp_path)
    assert page.index("The paper in miniature") < page.index("Another study") < page.rindex("Other evaluated runs")
    assert "0.600 ± 0.100" in page
    assert "Other evaluated runs" in terminal_of(tmp_path)
    alone = page_of(tmp_path, "demo")
    assert "Another study" not in alone
    assert "Other evaluated runs" not in alone


def test_runs_without_any_plan_make_a_report_of_their_own(tmp_path: Path) -> None:
    synthetic.write_run(tmp_path, synthetic.cell("mod3", "std", 4, 0), 0.5)
    assert "mod3" in page_of(tmp_path)


def test_the_terminal_report_fits_eighty_columns(tmp_path: Path) -> None:
    runs = demo(tmp_path)
    lines = terminal_of(runs).splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("page: "))
    assert str(runs / "report" / "index.html") in lines[-1]
    text = "\n".join(lines)
    assert "instrument check passed" in text
    assert all(variant in text for variant in synthetic.VARIANTS)
    assert re.search(r"^  PausePT  0: 0\.\d{3}  2: 0\.\d{3}  8: .*  16: 0\.\d{3}$", text, re.MULTILINE)
    assert re.search(r"^  PausePT_PauseFT  0: 0\.\d{3}  2: .*  16: 0\.\d{3}$", text, re.MULTILINE)
    assert "nothing added: 0." in text
