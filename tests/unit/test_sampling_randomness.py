"""Random numbers of samplers: the published generator, uniform, independent, and the same in any batch."""

import pytest
import torch

from model.sampling.randomness import GAMMA, MIX_1, MIX_2, Use, uniform

MASK_64 = 2**64 - 1


def mix(word):
    """SplitMix64's output function in Python's integers."""
    word = (word ^ (word >> 30)) * MIX_1 & MASK_64
    word = (word ^ (word >> 27)) * MIX_2 & MASK_64
    return word ^ (word >> 31)


def expected(seed, *indices):
    word = seed
    for index in indices:
        word = mix((word + (index + 1) * GAMMA) & MASK_64)
    return ((word >> 12) + 0.5) / 2**52


def test_the_generator_is_splitmix64():
    """First numbers of the reference implementation, `splitmix64.c`, from state 1234567."""
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [mix((1234567 + (i + 1) * GAMMA) & MASK_64) for i in range(5)] == first


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_numbers_equal_those_of_exact_integer_arithmetic(seed):
    samples, positions = torch.tensor([0, 5, 2**40]), torch.tensor([0, 1, 2047])
    numbers = uniform(seed, Use.TOKEN, samples[:, None], positions)
    for i, sample in enumerate(samples.tolist()):
        for j, position in enumerate(positions.tolist()):
            assert float(numbers[i, j]) == expected(seed, Use.TOKEN, sample, position)


def test_numbers_are_uniform_and_do_not_correlate():
    numbers = uniform(0, Use.REVEAL, torch.arange(300)[:, None], torch.arange(400))
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    statistic = ((counts - 1200) ** 2 / 1200).sum()
    assert 50 < statistic < 160  # 99 degrees of freedom
    others = [
        uniform(1, Use.REVEAL, torch.arange(300)[:, None], torch.arange(400)),
        numbers.roll(1, 0),
        numbers.roll(1, 1),
    ]
    others.append(uniform(0, Use.TOKEN, torch.arange(300)[:, None], torch.arange(400)))
    for other in others:
        correlation = torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4.5 / 120_000**0.5


def test_a_number_does_not_depend_on_the_others():
    whole = uniform(3, Use.TOKEN, torch.arange(8)[:, None, None], torch.arange(5)[:, None], torch.arange(7))
    assert uniform(3, Use.TOKEN, torch.tensor(6), torch.tensor(2), torch.tensor(4)) == whole[6, 2, 4]


def test_numbers_are_never_0_or_1():
    """The logarithms of the Gumbel noise stay finite for the smallest and the largest number."""
    extremes = (torch.tensor([0.0, 2.0**52 - 1], dtype=torch.float64) + 0.5) * 2.0**-52
    assert torch.isfinite(torch.log(-torch.log(extremes))).all()
