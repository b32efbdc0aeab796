"""What the report finds in studies whose truth is known: false positives of a null, power for planted effects.

    python tests/benchmarks/planted_effects.py [draws] [null | stuck]

Writes run folders, reads them as `pausebench report` does and counts the comparisons that it calls higher or lower:
nine tasks with one K (a family of 9) and with three (27), 3, 5 and 6 seeds, seed deviations of 0.5, 1 and 2.5 points,
differences of 0, 1, 5 and 20 points in all tasks, and of 5 and 20 in one of the nine. 500 draws each by default.
Prints Markdown tables. With `null` only the studies without any difference, for which more draws are affordable; with
`stuck` these, and every second run at random is 20 points lower in all arms alike, so that scores are not normal.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from random import Random

from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from planted import TASKS, Design, Tally, read_families, write_draw, write_plans

DEVIATIONS = (0.005, 0.01, 0.025)
SEEDS = (3, 5, 6)
FAMILIES = ((10,), (10, 25, 50))
EFFECTS = (0.01, 0.05, 0.2)
EFFECTS_OF_ONE = (0.05, 0.2)


def percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}"


def bounded(count: int, total: int) -> str:
    """Per cent with the exact 95 % binomial interval."""
    low, high = binomtest(count, total).proportion_ci()
    return f"{percent(count, total)} [{100 * low:.1f}, {100 * high:.1f}]"


def run(draws: int, effects: tuple[float, ...], stuck: float) -> dict[float, list[Tally]]:
    """{deviation: the designs' tallies}."""
    tallies = {}
    for deviation in DEVIATIONS:
        designs = [Design(seeds, ks) for ks, seeds in itertools.product(FAMILIES, SEEDS)]
        designs += [
            Design(seeds, ks, effect, affected)
            for ks, seeds, effect, affected in itertools.product(FAMILIES, SEEDS, effects, (len(TASKS), 1))
            if affected > 1 or effect in EFFECTS_OF_ONE
        ]
        tallies[deviation] = [Tally(design) for design in designs]
        random = Random(f"planted {deviation}")
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder)
            write_plans(runs, designs)
            for draw in range(draws):
                write_draw(runs, designs, deviation, random, stuck)
                families = read_families(runs)
                for tally in tallies[deviation]:
                    tally.add(families[tally.design.name])
                if draw % 50 == 49:
                    print(f"deviation {deviation}: {draw + 1} of {draws}", file=sys.stderr)
    return tallies


def rows(
    tallies: dict[float, list[Tally]], planted: bool, affected: int = len(TASKS)
) -> list[tuple[int, float, float, list[Tally]]]:
    """(family, effect, deviation, one tally a number of seeds), in the order of the tables."""
    effects = EFFECTS if planted else (0.0,)
    table = []
    for ks, effect, deviation in itertools.product(FAMILIES, effects, DEVIATIONS):
        cells = [
            tally
            for tally in tallies[deviation]
            if (tally.design.ks, tally.design.effect, tally.design.affected) == (ks, effect, affected)
        ]
        if cells:
            table.append((len(ks) * len(TASKS), effect, deviation, cells))
    return table


def main(draws: int, null_only: bool, stuck: float) -> None:
    tallies = run(draws, () if null_only else EFFECTS, stuck)
    heads = " | ".join(f"{seeds} seeds" for seeds in SEEDS)
    print(f"No difference anywhere: families with any false positive, % [95 % binomial interval], {draws} draws\n")
    print(f"| family | seed deviation, points | {heads} |\n|{'---|' * 5}")
    for family, _, deviation, cells in rows(tallies, planted=False):
        shown = " | ".join(bounded(cell.false_families, cell.draws) for cell in cells)
        print(f"| {family} | {100 * deviation:g} | {shown} |")
    pooled = [cell for *_, cells in rows(tallies, planted=False) for cell in cells]
    total = sum(cell.false_families for cell in pooled)
    print(f"\nAll of these together: {percent(total, sum(cell.draws for cell in pooled))} %")
    if null_only:
        return
    print("\nA difference in all nine tasks: share of the family found, % / chance to find at least one, %\n")
    print(f"| family | difference, points | seed deviation, points | {heads} |\n|{'---|' * 6}")
    for family, effect, deviation, cells in rows(tallies, planted=True):
        shown = " | ".join(f"{percent(c.found, c.planted)} / {percent(c.found_any, c.draws)}" for c in cells)
        print(f"| {family} | {100 * effect:g} | {100 * deviation:g} | {shown} |")
    print("\nA difference in one task, none in the other eight: families with any false positive among the eight, %")
    print("[95 % binomial interval] / share of the one task's comparisons found, %\n")
    print(f"| family | difference, points | seed deviation, points | {heads} |\n|{'---|' * 6}")
    for family, effect, deviation, cells in rows(tallies, planted=True, affected=1):
        shown = " | ".join(f"{bounded(c.false_families, c.draws)} / {percent(c.found, c.planted)}" for c in cells)
        print(f"| {family} | {100 * effect:g} | {100 * deviation:g} | {shown} |")
    wrong = sum(cell.wrong_sign for cells in tallies.values() for cell in cells)
    total = sum(cell.planted for cells in tallies.values() for cell in cells)
    print(f"\nPlanted differences settled with the wrong sign: {wrong} of {total}.")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    number = int(next((word for word in arguments if word.isdigit()), 500))
    main(number, "null" in arguments or "stuck" in arguments, 0.2 if "stuck" in arguments else 0.0)
