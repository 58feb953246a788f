"""Respaced timesteps against DeepFloyd IF's published lists."""

import pytest
import torch

from imagen_nodes.imagen_core.diffusion.lowres import augment
from imagen_nodes.imagen_core.diffusion.respacing import SECTIONS, timesteps
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule

LISTS = {
    "fast27": "999 800 799 600 599 500 400 399 377 355 333 311 288 266 244 222 200 199 177 155 133 "
    "111 88 66 44 22 0",
    "smart27": "999 976 952 928 905 882 858 857 810 762 715 714 572 429 428 286 285 238 190 143 142 "
    "118 95 71 47 24 0",
    "smart50": "999 988 977 966 955 944 933 922 911 900 899 879 859 840 820 800 799 766 733 700 699 "
    "650 600 599 500 499 400 399 350 300 299 266 233 200 199 179 159 140 120 100 99 88 77 66 55 44 33 "
    "22 11 0",
    "super27": "999 991 982 974 966 958 950 941 933 925 916 908 900 899 874 850 825 800 799 700 600 "
    "500 400 300 200 100 0",
    "super40": "999 992 985 978 971 964 957 949 942 935 928 921 914 907 900 899 879 859 840 820 800 "
    "799 766 733 700 699 650 600 599 500 499 400 399 300 299 200 199 100 99 0",
}


@pytest.mark.parametrize("name", LISTS)
def test_presets_are_the_published_lists(name):
    assert timesteps(name) == [int(number) for number in LISTS[name].split()]


def test_presets_have_as_many_steps_as_their_names_say():
    for name in SECTIONS:
        assert len(timesteps(name)) == int("".join(filter(str.isdigit, name)))


def test_other_spellings():
    assert timesteps(100)[:4] == [999, 989, 979, 969]
    assert timesteps(100)[-1] == 0
    assert timesteps("leading100")[:2] == [990, 980]
    assert timesteps("leading100")[-1] == 0
    assert len(timesteps("10,10,10,10,10,10,10,10,0,0")) == 80
    assert timesteps("10,10,10,10,10,10,10,10,0,0")[0] == 799
    assert timesteps([999, 500, 0]) == timesteps(" [999, 500, 0] ") == [999, 500, 0]
    assert timesteps("100") == timesteps(100)
    assert timesteps("ddim50") == list(range(980, -1, -20))
    assert timesteps(1) == [0]


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ("smart28", "expected a number, one of fast27"),
        ([0, 5], "must be strictly decreasing"),
        ([1000, 5], "must be strictly decreasing"),
        ([], "must be strictly decreasing"),
        ("[0, 5]", "must be strictly decreasing"),
        ("[]", "timesteps such as"),
        ("ddim999", "no whole stride"),
        ("leading0", "from 1 to 1000"),
        ("0,0", "at least 1"),
        (1001, "cannot give 1001"),
    ],
)
def test_bad_spacings_are_named(spacing, message):
    with pytest.raises(ValueError, match=message):
        timesteps(spacing)


def test_discrete_cosine_schedule_has_the_published_values():
    alpha_bar = DiscreteSchedule().table().sigmoid()
    assert alpha_bar[0].item() == pytest.approx(0.9999587, abs=1e-7)
    assert alpha_bar[250].item() == pytest.approx(0.8458880, abs=1e-7)
    assert alpha_bar[999].item() == pytest.approx(2.4288e-9, rel=1e-4)


def test_an_augmentation_level_is_its_timestep_exactly():
    """0.29 is just below 29 hundredths in float32; its timestep is 290 all the same."""
    schedule = DiscreteSchedule()
    for level in (0.25, 0.29, 0.57, 0.999):
        t = torch.tensor([level])
        assert torch.equal(
            schedule.logsnr(t)[0].double(), schedule.table()[round(level * 1000)].float().double()
        )
    found = augment(
        torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.tensor([0.29]).double(), schedule
    )
    assert found.timestep.item() == 290
    assert found.image[0, 0, 0, 0].item() == pytest.approx(
        (1 - schedule.table()[290].sigmoid()).sqrt().item()
    )


def test_discrete_schedule_finds_its_timesteps_again():
    schedule = DiscreteSchedule()
    t = torch.arange(1000, dtype=torch.float64) / 1000
    assert torch.allclose(schedule.t(schedule.logsnr(t + 1e-9)), t, atol=1e-9)
    sigmas = schedule.sigmas("smart50")
    found = (1000 * schedule.t(-2 * sigmas[:-1].log())).float()
    assert torch.equal(found, torch.tensor(timesteps("smart50"), dtype=torch.float32))
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
