"""Numbers that are a pure function of (seed, stream, row, draw): SplitMix64's own outputs, uniform, independent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pausebench.counter_rng import GOLDEN_GAMMA, permuted, splitmix64, uniform

WORD = 1 << 64
INT64 = st.integers(-(2**63), 2**63 - 1)


def signed(word: int) -> int:
    return (word + WORD // 2) % WORD - WORD // 2


def splitmix64_in_python(state: int) -> int:
    """The reference generator in unsigned arithmetic: add the gamma, mix (Steele, Lea and Flood 2014, figure 16)."""
    z = (state + GOLDEN_GAMMA) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_splitmix64_gives_the_reference_generators_outputs_for_seed_1234567() -> None:
    states = torch.tensor([signed(1234567 + n * GOLDEN_GAMMA) for n in range(5)])
    assert [value % WORD for value in splitmix64(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(INT64, min_size=1, max_size=20))
@settings(max_examples=50)
def test_splitmix64_equals_unsigned_arithmetic_for_every_state(states: list[int]) -> None:
    outputs = splitmix64(torch.tensor(states)).tolist()
    assert [value % WORD for value in outputs] == [splitmix64_in_python(state % WORD) for state in states]


def test_numbers_fill_the_unit_interval_evenly() -> None:
    draws = uniform(0, "pause places", torch.arange(2000), 100).flatten()
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    for bins in (64, 1000):
        assert stats.chisquare((draws * bins).long().bincount(minlength=bins).numpy()).pvalue > 1e-3
    low_bits = (draws * 2**53).long() % 64  # the last bits are as even as the first
    assert stats.chisquare(low_bits.bincount(minlength=64).numpy()).pvalue > 1e-3


def test_numbers_follow_the_uniform_distribution_function() -> None:
    assert stats.kstest(uniform(3, "bits", torch.arange(500), 40).flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("neighbour", ["next row", "next draw", "next seed", "other stream"])
def test_neighbours_are_not_correlated(neighbour: str) -> None:
    rows, draws = torch.arange(1000), 50
    here = uniform(0, "bits", rows, draws)
    there = {
        "next row": uniform(0, "bits", rows + 1, draws),
        "next draw": uniform(0, "bits", rows, draws + 1)[:, 1:],
        "next seed": uniform(1, "bits", rows, draws),
        "other stream": uniform(0, "pause places", rows, draws),
    }[neighbour]
    assert abs(correlation(here, there)) < 4 / math.sqrt(here.numel())


@pytest.mark.parametrize("seeds", [(0, 1), (0, 2**31), (2**31, 2**31 + 1)])
def test_two_seeds_share_no_number(seeds: tuple[int, int]) -> None:
    first, second = (uniform(seed, "bits", torch.arange(1000), 20) for seed in seeds)
    assert not torch.isin(first, second).any()


def test_two_streams_share_no_number() -> None:
    first, second = (uniform(0, stream, torch.arange(1000), 20) for stream in ("document bits", "task bits"))
    assert not torch.isin(first, second).any()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=12), st.integers(0, 2**31), st.integers(1, 9))
@settings(max_examples=50)
def test_a_rows_numbers_do_not_depend_on_the_rows_drawn_with_it(rows: list[int], seed: int, draws: int) -> None:
    together = uniform(seed, "bits", torch.tensor(rows), draws)
    alone = [uniform(seed, "bits", torch.tensor([row]), draws)[0] for row in rows]
    assert torch.equal(together, torch.stack(alone))


def test_a_rows_first_numbers_do_not_depend_on_how_many_are_drawn() -> None:
    rows = torch.arange(7)
    assert torch.equal(uniform(5, "bits", rows, 30)[:, :4], uniform(5, "bits", rows, 4))


def permutation(size: int, seed: int = 0, epoch: int = 0, stream: str = "order") -> list[int]:
    numbers = torch.arange(size)
    places: list[int] = permuted(seed, stream, torch.full_like(numbers, epoch), numbers, size).tolist()
    return places


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 1000, 4097, 100_003])
def test_a_permutation_has_every_place_once(size: int) -> None:
    assert sorted(permutation(size, seed=size)) == list(range(size))


def test_a_permutation_is_another_for_every_epoch_seed_and_stream() -> None:
    orders = [permutation(500), permutation(500, epoch=1), permutation(500, seed=1), permutation(500, stream="other")]
    assert len({tuple(order) for order in orders}) == 4


def test_a_number_goes_to_the_same_place_alone_and_among_numbers_of_other_epochs() -> None:
    numbers, epochs = torch.arange(300) % 90, torch.arange(300) // 90
    together = permuted(5, "order", epochs, numbers, 90)
    for index in (0, 89, 90, 299):
        alone = permuted(5, "order", epochs[index : index + 1], numbers[index : index + 1], 90)
        assert int(alone) == int(together[index])


@pytest.mark.parametrize("size", [5, 16, 37])
def test_over_epochs_every_number_goes_to_every_place_equally_often_and_neighbours_part(size: int) -> None:
    epochs = torch.arange(4000).repeat_interleave(size)
    orders = permuted(0, "order", epochs, torch.arange(size).repeat(4000), size).view(4000, size)
    for number in (0, size // 2, size - 1):
        assert stats.chisquare(orders[:, number].bincount(minlength=size).numpy()).pvalue > 1e-4
    distance = (orders[:, 1] - orders[:, 0]) % size
    assert stats.chisquare(distance.bincount(minlength=size)[1:].numpy()).pvalue > 1e-4


def test_a_permutation_of_more_things_than_memory_holds_can_be_asked() -> None:
    numbers = torch.tensor([0, 1, 10**14 - 1])
    places = permuted(0, "order", torch.zeros_like(numbers), numbers, 10**14)
    assert len(set(places.tolist())) == 3 and bool(((places >= 0) & (places < 10**14)).all())
