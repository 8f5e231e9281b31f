"""Probes of a trained network: scores under other statistics, corruptions against numpy, scipy and PIL, and costs."""

from __future__ import annotations

import colorsys
import copy
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch import Tensor, nn

from bnexp.nn import build_model
from bnexp.nn.norms import make_norm_factory
from bnexp.nn.statistics import measure_statistics
from bnexp.probes import corruptions, cost, robustness
from bnexp.probes.base import Ending, Row, undisturbed
from bnexp.probes.corruptions import CORRUPTIONS, SEVERITIES
from bnexp.probes.cost import CostProbe, saved_bytes, time_in_pairs
from bnexp.probes.evaluation import CHUNK, chunk_slices, evaluate, mixed_test_chunks
from bnexp.probes.robustness import FGSM_EPS, RobustnessProbe, loss_gradient, step_along
from bnexp.probes.sampling import SamplingProbe
from bnexp.probes.statistics import StatisticsProbe
from bnexp.seeding import seed_for

Images = tuple[Tensor, Tensor]
SHAPES = [(5, 1, 8, 8), (5, 3, 8, 8), (5, 1, 28, 28), (5, 3, 32, 32), (2, 3, 224, 224)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalize(x: Tensor) -> Tensor:
    return ((x.float() - 100) / 50).contiguous(memory_format=torch.channels_last)


def no_twin() -> nn.Module:
    raise AssertionError("this probe needs no twin")


def make_ending(model: nn.Module, train: Images, test: Images, **others: Any) -> Ending:
    fixed: dict[str, Any] = {"step": 7, "epoch": 2, "normalize": normalize, "seed_of": partial(seed_for, 0)}
    fixed |= {"twin": no_twin, "step_of": no_twin, "batch_size": 64, **others}
    return Ending(model=model, train_x=train[0], train_y=train[1], test_x=test[0], test_y=test[1], **fixed)


def make_network(kind: str, *, channels: int = 1, side: int = 8, name: str = "cnn") -> nn.Module:
    torch.manual_seed(0)  # torch's own initial values come from here
    return build_model(
        name,
        in_channels=channels,
        image_size=side,
        num_classes=3,
        depth=2,
        width=8,
        activation="relu",
        norm=make_norm_factory(kind),
        placement="before",
    )


def random_images(num: int, *, channels: int = 1, side: int = 8, seed: int = 0) -> Images:
    """Noise around a gradient, and labels of three classes."""
    g = generator(seed)
    ramp = torch.linspace(40, 200, side).view(1, 1, 1, side)
    x = ramp + 30 * torch.randn(num, channels, side, side, generator=g)
    return x.round().clamp(0, 255).to(torch.uint8), torch.randint(0, 3, (num,), generator=g)


class Brightness(nn.Module):
    """Two classes: an image is of class 1 if it is brighter than the norm's mean."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-3.0], [3.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x.mean((2, 3))))
        return logits


def dark_and_bright(num: int, *, seed: int, sort: bool = True) -> Images:
    """Class 0 around 60 and class 1 around 160, half each, sorted by class or mixed."""
    y = torch.arange(num) * 2 // num
    noise = 2 * torch.randn(num, 1, 8, 8, generator=generator(seed))
    x = (60 + 100 * y.view(-1, 1, 1, 1) + noise).round().to(torch.uint8)
    order = torch.arange(num) if sort else torch.randperm(num, generator=generator(seed + 1))
    return x[order], y[order]


def values(rows: list[Row], *columns: str) -> dict[tuple[Any, ...], float]:
    found = {tuple(row[column] for column in columns): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# ---- what the probes share


@pytest.mark.parametrize("num", [1, 5, 256, 257, 600, 10_000])
def test_chunks_are_of_near_equal_size(num: int) -> None:
    indices = [list(range(num)[chunk]) for chunk in chunk_slices(num)]
    assert list(chain.from_iterable(indices)) == list(range(num))
    sizes = [len(chunk) for chunk in indices]
    assert max(sizes) <= CHUNK
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num // 256)


def test_mixed_test_chunks_are_every_image_once_with_its_label_in_one_order() -> None:
    num = 700
    x = (torch.arange(num).view(-1, 1, 1, 1) % 250).expand(-1, 1, 8, 8).to(torch.uint8)
    y = torch.arange(num)
    ending = make_ending(make_network("none"), (x, y), (x, y))
    first, again = list(mixed_test_chunks(ending)), list(mixed_test_chunks(ending))
    assert [len(labels) for _, labels in first] == [233, 233, 234]
    labels = torch.cat([b for _, b in first])
    assert sorted(labels.tolist()) == list(range(num))
    assert labels.tolist() != list(range(num))
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert torch.equal(a[:, 0, 0, 0].long(), b % 250)
    few = torch.cat([b for _, b in mixed_test_chunks(ending, limit=300)])
    assert torch.equal(few, labels[:300])


def test_evaluate_is_accuracy_and_cross_entropy_by_hand() -> None:
    model, (x, y) = make_network("group"), random_images(300)
    ending = make_ending(model, (x, y), (x, y))
    with torch.no_grad():
        logits = model.double()(normalize(x).double()).numpy()
    model.float()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    accuracy, loss = evaluate(ending, mixed_test_chunks(ending))
    assert accuracy == (logits.argmax(1) == y.numpy()).mean()
    assert loss == pytest.approx(-np.log(chances[np.arange(300), y]).mean(), rel=1e-5)


# ---- statistics


def test_statistics_probe_tells_the_three_kinds_apart() -> None:
    model = Brightness(nn.BatchNorm1d(1, affine=False))
    # running statistics that call every image dark
    model.norm.running_mean = torch.tensor([10.0])
    # in training, bright images are three in four: the mean lies at 135, and at 110 in the test set
    train = dark_and_bright(400, seed=5)
    train = train[0][100:], train[1][100:]
    test = dark_and_bright(600, seed=6)
    train_mean = normalize(train[0]).double().numpy().mean((1, 2, 3))
    mean, std = train_mean.mean(), np.sqrt(train_mean.var() + 1e-5)

    rows = StatisticsProbe().measure(make_ending(model, train, test))
    found = values(rows, "quantity", "statistics")
    assert found.keys() == {
        (quantity, kind) for quantity in ("test_accuracy", "test_loss") for kind in ("running", "precise", "batch")
    }
    assert {(row["probe"], row["step"], row["epoch"], row["layer"]) for row in rows} == {("statistics", 7, 2, "")}
    assert found["test_accuracy", "running"] == 0.5
    assert found["test_accuracy", "precise"] == found["test_accuracy", "batch"] == 1.0

    z = (normalize(test[0]).double().numpy().mean((1, 2, 3)) - mean) / std
    loss = np.log1p(np.exp(-6 * z * (2 * test[1].numpy() - 1))).mean()
    assert found["test_loss", "precise"] == pytest.approx(loss, rel=1e-4)
    assert found["test_loss", "batch"] < 0.9 * found["test_loss", "precise"]


@pytest.mark.parametrize("probe", [StatisticsProbe(), RobustnessProbe()])
def test_batch_statistics_do_not_mind_a_test_set_sorted_by_class(probe: StatisticsProbe | RobustnessProbe) -> None:
    model = Brightness(nn.BatchNorm1d(1, affine=False)).eval()
    test_sorted = dark_and_bright(512, seed=8)
    test_mixed = dark_and_bright(512, seed=8, sort=False)

    # chunks of one class are no better than guessing: that is what the order of the probe is there for
    ending = make_ending(model, test_sorted, test_sorted)
    naive, _ = evaluate(ending, zip(*(t.split(256) for t in test_sorted), strict=True), statistics="batch")
    assert naive < 0.6

    for test in (test_sorted, test_mixed):
        rows = [row for row in probe.measure(make_ending(model, test, test)) if row.get("corruption", "none") == "none"]
        found = values(rows, "quantity", "statistics")
        assert found["test_accuracy", "batch"] > 0.99


def test_statistics_probe_of_a_network_without_running_ones_evaluates_once() -> None:
    model, test = make_network("layer"), random_images(300)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = values(StatisticsProbe().measure(make_ending(model, test, test)), "quantity", "statistics")
    assert sum(calls) == 300
    for quantity in ("test_accuracy", "test_loss"):
        assert len({found[quantity, kind] for kind in ("running", "precise", "batch")}) == 1


@pytest.mark.parametrize("probe", [StatisticsProbe(), RobustnessProbe()])
@pytest.mark.parametrize("kind", ["batch", "ghost", "group"])
def test_evaluating_probes_repeat_exactly_and_leave_the_network_alone(
    probe: StatisticsProbe | RobustnessProbe, kind: str
) -> None:
    model = make_network(kind)
    ending = make_ending(model, random_images(300, seed=1), random_images(290, seed=2))
    before, random = state(model), torch.get_rng_state()
    first = probe.measure(ending)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    with undisturbed(model):
        assert probe.measure(ending) == first


# ---- corruptions


def pixels(shape: tuple[int, ...]) -> Tensor:
    """Smooth images with noise that reach both ends of the range."""
    num, channels, side, _ = shape
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 5, side))[None, None, :, None] * np.cos(np.linspace(1, 4, side))[None, None, None, :]
    x = 128 + 110 * waves * rng.uniform(0.5, 1, (num, channels, 1, 1)) + 20 * rng.normal(size=shape)
    x = np.clip(x, 0, 255)
    x[:, :, 0, 0], x[:, :, 1, 1] = 0, 255
    return torch.from_numpy(x.round().astype(np.uint8))


def hwc(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy() if len(image) > 1 else image[0].numpy()


def by_scipy(x: Tensor, severity: int) -> np.ndarray:
    sigma = [0.4, 0.6, 0.7, 0.8, 1][severity - 1]
    return ndimage.gaussian_filter(
        x.double().numpy(), sigma=(0, 0, sigma, sigma), mode="nearest", truncate=4
    )  # scikit-image's defaults


def by_mean(x: Tensor, severity: int) -> np.ndarray:
    images = x.double().numpy()
    means = images.mean((2, 3), keepdims=True)
    return (images - means) * [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1] + means


def by_colorsys(x: Tensor, severity: int) -> np.ndarray:
    shift = [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1]
    out = np.empty(x.shape)
    for image, target in zip(x.double().numpy() / 255, out, strict=True):
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                colour = image[:, row, column]
                rgb = [float(v) for v in colour] * (3 // len(colour))
                h, s, v = colorsys.rgb_to_hsv(*rgb)
                target[:, row, column] = colorsys.hsv_to_rgb(h, s, min(1, v + shift))[: len(colour)]
    return 255 * out


REFERENCES = {"gaussian_blur": by_scipy, "contrast": by_mean, "brightness": by_colorsys}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("name", REFERENCES)
def test_corruption_matches_an_independent_one(name: str, shape: tuple[int, ...], severity: int) -> None:
    x = pixels(shape)
    got = CORRUPTIONS[name](x, severity, generator())
    # half a step of rounding
    np.testing.assert_allclose(got.numpy(), np.clip(REFERENCES[name](x, severity), 0, 255), rtol=0, atol=0.501)


# annex K of the JPEG standard, table K.1: how coarsely each frequency of brightness is kept at quality 50
LUMINANCE = """
    16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""


def frequencies(x: Tensor) -> np.ndarray:
    """Cosine transform of every block of 8×8, (N, blocks, 8, 8)."""
    num, _, side, _ = x.shape
    blocks = (x.double().numpy() - 128).reshape(num, side // 8, 8, side // 8, 8).swapaxes(2, 3).reshape(num, -1, 8, 8)
    return fft.dctn(blocks, axes=(2, 3), norm="ortho")


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [8, 32])
def test_jpeg_of_grey_images_rounds_frequencies_to_the_standards_table(side: int, severity: int) -> None:
    x = (pixels((5, 1, side, side)) / 4 + 96).to(torch.uint8)  # far from black and white, which would cut values off
    quality = [80, 65, 58, 50, 40][severity - 1]
    percent = 200 - 2 * quality if quality >= 50 else 5000 // quality  # libjpeg's scale of quality
    table = (np.array(LUMINANCE.split(), dtype=int).reshape(8, 8) * percent + 50) // 100
    got = frequencies(corruptions.jpeg(x, severity, generator()))
    slack = 4.001  # in the end 64 pixels are rounded by up to 1/2, against a basis whose values add up to at most 8
    assert np.abs(got - np.round(got / table) * table).max() < slack
    assert (np.abs(got - frequencies(x)) - table / 2).max() < slack


@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 3, 32, 32), (5, 1, 28, 28)])
def test_jpeg_is_torchvisions(shape: tuple[int, ...], severity: int) -> None:
    io = pytest.importorskip("torchvision.io")
    if not hasattr(io, "encode_jpeg"):
        pytest.skip("this torchvision has no JPEG any more")
    x = pixels(shape)
    want = torch.stack([io.decode_jpeg(io.encode_jpeg(i, [80, 65, 58, 50, 40][severity - 1])) for i in x])
    got = corruptions.jpeg(x, severity, generator())
    # the same standard; two builds of libjpeg may round differently
    assert (got.int() - want.int()).abs().max() <= 3
    assert (got == want).double().mean() > 0.9


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_moments_of_its_severity(severity: int) -> None:
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)  # no clamping within 5 standard deviations
    noise = corruptions.gaussian_noise(grey, severity, generator(4)).double().numpy() - 128
    std = 255 * [0.04, 0.06, 0.08, 0.09, 0.10][severity - 1]
    count = noise.size
    assert abs(noise.mean()) < 4 * std / count**0.5
    assert noise.std() == pytest.approx(np.sqrt(std**2 + 1 / 12), rel=4 / (2 * count) ** 0.5)  # with rounding's
    assert np.mean((noise / std) ** 4) == pytest.approx(3, abs=4 * (96 / count) ** 0.5)  # a normal's kurtosis
    neighbours = np.mean(noise[..., 1:] * noise[..., :-1]) / std**2
    assert abs(neighbours) < 4 / count**0.5


def test_gaussian_noise_is_its_generators() -> None:
    x = pixels((5, 3, 8, 8))
    first, again, other = (corruptions.gaussian_noise(x, 3, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_keeps_type_and_shape_and_grows_with_severity(name: str, shape: tuple[int, ...]) -> None:
    x = pixels(shape)
    before = x.clone()
    found = [CORRUPTIONS[name](x, severity, generator()) for severity in SEVERITIES]
    assert all(y.dtype == torch.uint8 and y.shape == x.shape for y in found)
    assert torch.equal(x, before)
    distances = [(y.double() - x.double()).square().mean().item() for y in found]
    assert distances[0] > 0
    assert all(a < b for a, b in pairwise(distances))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_at_the_ends_of_the_range_does_not_wrap_around(name: str) -> None:
    black, white = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    for severity in SEVERITIES:
        assert CORRUPTIONS[name](black, severity, generator()).max() < 128
        assert CORRUPTIONS[name](white, severity, generator()).min() > 128


# ---- robustness


def test_robustness_probe_has_every_condition_once() -> None:
    test = random_images(60, channels=3, side=8)
    conditions = {("none", 0)} | {(name, severity) for name in (*CORRUPTIONS, "fgsm") for severity in range(1, 6)}
    for kind, choices in (("batch", ("running", "batch")), ("group", ("running",)), ("none", ("running",))):
        rows = RobustnessProbe().measure(make_ending(make_network(kind, channels=3), test, test))
        assert {(row["probe"], row["quantity"]) for row in rows} == {("robustness", "test_accuracy")}
        found = values(rows, "corruption", "severity", "statistics")
        assert found.keys() == {(*condition, choice) for condition in conditions for choice in choices}
        assert all(0 <= value <= 1 for value in found.values())


def test_robustness_probe_scores_what_the_corruptions_make() -> None:
    """Brightness moves the mean: running statistics see bright images, adapted ones do not."""
    model = Brightness(nn.BatchNorm1d(1, affine=False)).eval()
    test = dark_and_bright(400, seed=3)
    model.norm.running_mean, model.norm.running_var = torch.tensor([0.09]), torch.tensor([1.0])  # 104.5 of 255
    found = values(RobustnessProbe().measure(make_ending(model, test, test)), "corruption", "severity", "statistics")
    shift = {severity: 255 * step for severity, step in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)}
    for severity, value in shift.items():
        assert found["brightness", severity, "running"] == (1.0 if 60 + value < 104.5 else 0.5)
        assert found["brightness", severity, "batch"] == 1.0
        assert found["contrast", severity, "running"] == 1.0  # each image keeps its own mean
        assert found["gaussian_noise", severity, "running"] == 1.0  # 64 pixels average it away
    assert found["none", 0, "running"] == found["none", 0, "batch"] == 1.0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_robustness_probe_seeds_each_condition_by_its_name(name: str) -> None:
    model, test = make_network("none", channels=3), random_images(200, channels=3)
    model.head.bias.data += torch.tensor([0.0, 0.02, -0.02])
    found = values(RobustnessProbe().measure(make_ending(model, test, test)), "corruption", "severity", "statistics")
    (x, y), *others = mixed_test_chunks(make_ending(model, test, test))
    assert not others
    for severity in (1, 5):
        corrupted = CORRUPTIONS[name](x, severity, generator(seed_for(0, "robustness", name, severity)))
        with torch.no_grad():
            want = (model(normalize(corrupted)).argmax(1) == y).double().mean().item()
        assert found[name, severity, "running"] == want


def test_robustness_probe_takes_a_fixed_2000_of_a_larger_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"contrast": corruptions.contrast})
    num = 2300
    x = torch.zeros(num, 1, 8, 8, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(num) // 100, torch.arange(num) % 100  # an image's number
    seen: list[list[int]] = [[]]

    class Reader(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raw = (images * 50 + 100).round()
            seen[-1] += (raw[:, 0, 0, 0] * 100 + raw[:, 0, 0, 1]).long().tolist()
            return images.flatten(1)[:, :2]

    for _ in range(2):
        RobustnessProbe().measure(make_ending(Reader(), (x, torch.zeros(num).long()), (x, torch.zeros(num).long())))
        seen.append([])
    first, again, _ = (numbers[:2000] for numbers in seen)  # the clean condition is the first
    assert len(set(first)) == 2000
    assert first == again
    assert max(first) > 2100  # not the first 2000 of the file
    assert len(seen[0]) == 2000 * (1 + 5 + 1 + 5)  # clean, contrast, the gradient, fgsm


# ---- FGSM


def test_fgsm_gradient_of_a_linear_network_is_the_textbooks() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, y = random_images(50)
    ending = make_ending(model, (x, y), (x, y))
    got = loss_gradient(ending, x, y)
    weight = model[1].weight.detach().double().numpy()
    flat = normalize(x).double().numpy().reshape(50, -1)
    logits = flat @ weight.T + model[1].bias.detach().double().numpy()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = (chances - np.eye(3)[y]) @ weight / 50  # the last by the normalization's scale
    np.testing.assert_allclose(got.numpy().reshape(50, -1), want, rtol=1e-3, atol=1e-7)

    found = values(RobustnessProbe().measure(ending), "corruption", "severity", "statistics")
    for severity, eps in zip(SEVERITIES, (1, 2, 4, 8, 16), strict=True):
        attacked = np.clip(x.numpy().reshape(50, -1) + eps * np.sign(want), 0, 255)
        predicted = (((attacked - 100) / 50) @ weight.T + model[1].bias.detach().numpy()).argmax(1)
        assert found["fgsm", severity, "running"] == (predicted == y.numpy()).mean()


@pytest.mark.parametrize("kind", ["batch", "none"])
def test_fgsm_moves_each_pixel_by_at_most_eps_and_raises_the_loss(kind: str) -> None:
    model, (x, y) = make_network(kind).eval(), random_images(80)
    ending = make_ending(model, (x, y), (x, y))
    sign = loss_gradient(ending, x, y).sign()
    loss = nn.CrossEntropyLoss()
    losses = [loss(model(normalize(x)), y).item()]
    for eps in FGSM_EPS:
        moved = step_along(x, sign, eps)
        assert moved.min() >= 0
        assert moved.max() <= 255
        assert (moved - x.float()).abs().max() == eps
        losses.append(loss(model(normalize(moved)), y).item())
    assert losses == sorted(losses)
    assert losses[0] < losses[-1] - 0.01


class Far(nn.Module):
    """Class 1 is what lies far from the norm's mean, on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x.mean((2, 3)))
        return torch.cat([torch.ones_like(z), z**2], 1)


def test_fgsm_follows_the_gradient_under_the_statistics_that_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Far()
    model.norm.running_mean = torch.tensor([-2.0])  # raw 0: every image is on the bright side
    x, bright = dark_and_bright(300, seed=9)
    test = x, torch.ones_like(bright)
    found: list[Tensor] = []

    def spy(ending: Ending, x: Tensor, y: Tensor) -> Tensor:
        gradient = loss_gradient(ending, x, y)
        found.append(torch.where(x > 110, 1.0, -1.0) * gradient.sign())
        return gradient

    monkeypatch.setattr(robustness, "loss_gradient", spy)
    ending = make_ending(model, test, test)
    RobustnessProbe().measure(ending)
    side = torch.cat([torch.where(chunk > 110, 1.0, -1.0) for chunk, _ in mixed_test_chunks(ending)])
    running, batch = torch.cat(found[:2]), torch.cat(found[2:])
    assert torch.equal(running, -side)  # darker, towards the mean, for all
    assert torch.equal(batch, -torch.ones_like(batch))  # towards the middle, from both sides


def test_fgsm_of_running_statistics_turns_what_is_within_eps_of_the_border() -> None:
    model = Brightness(nn.BatchNorm1d(1, affine=False)).eval()
    test = dark_and_bright(300, seed=9)
    # dark images lie at 60: with the border at 66 it takes eps 8. The batch's own border lies in the middle, at 110
    model.norm.running_mean, model.norm.running_var = torch.tensor([(66 - 100) / 50]), torch.tensor([1.0])
    found = values(RobustnessProbe().measure(make_ending(model, test, test)), "corruption", "severity", "statistics")
    assert [found["fgsm", severity, "running"] for severity in SEVERITIES] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert [found["fgsm", severity, "batch"] for severity in SEVERITIES] == [1.0] * 5


# ---- cost


def training_step(network: nn.Module, loss_of: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(network(x)).backward()
        optimizer.step()

    return step


def test_saved_bytes_are_those_counted_by_hand() -> None:
    num = 50
    x = torch.randn(num, 2, 6, generator=generator())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    # the input; relu's output, which relu and the second layer both keep; a sum keeps nothing
    want = 4 * num * (12 + 5)
    assert saved_bytes(plain, training_step(plain, torch.sum, x)) == want

    normed = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    # and the norm's input, its mean and its standard deviation
    want += 4 * num * 5 + 4 * (5 + 5)
    assert saved_bytes(normed, training_step(normed, torch.sum, x)) == want


def test_saved_bytes_count_nothing_without_a_backward_pass() -> None:
    network, x = nn.Linear(4, 4), torch.randn(3, 4)

    def step() -> None:
        with torch.no_grad():
            network(x)

    assert saved_bytes(network, step) == 0


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [(0.1, 0.05, 7), (0.001, 0.001, 30), (4.0, 1.0, 5)],  # a second is over; enough; never under five
)
def test_time_in_pairs_stops_in_time(first: float, second: float, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: list[str] = []

    def work(name: str, seconds: float) -> None:
        nonlocal now
        calls.append(name)
        now += seconds

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now

    monkeypatch.setattr(cost, "time", Clock)
    found = time_in_pairs(partial(work, "a", first), partial(work, "b", second), torch.device("cpu"))
    assert found[0] == pytest.approx([first] * pairs)
    assert found[1] == pytest.approx([second] * pairs)
    assert "".join(calls) == ("abba" * pairs)[: 2 * pairs]


def test_cost_probe_compares_with_one_twin() -> None:
    model = make_network("batch", side=28)
    x, y = random_images(32, side=28)
    twins: list[nn.Module] = []
    made: list[nn.Module] = []

    def twin() -> nn.Module:
        twins.append(make_network("none", side=28))
        return twins[-1]

    def step_of(network: nn.Module) -> Callable[[], None]:
        made.append(network)
        return training_step(network, partial(nn.functional.cross_entropy, target=y), normalize(x))

    before = state(model)
    with undisturbed(model):
        rows = CostProbe().measure(make_ending(model, (x, y), (x, y), twin=twin, step_of=step_of))
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert len(twins) == 1
    assert made[0] is model
    assert made[1] is twins[0]
    assert len(made) == 2
    found = values(rows, "quantity")
    assert [row["probe"] for row in rows] == ["cost"] * 5
    assert [name for (name,) in found] == [
        "step_seconds",
        "step_seconds_without_norm",
        "step_ratio",
        "saved_mib",
        "saved_mib_without_norm",
    ]
    assert min(found.values()) > 0
    # the stem halves 28 pixels, the pool the rest: a norm keeps its input, which without one nobody keeps
    maps = 4 * 32 * (8 * 14 * 14 + 16 * 7 * 7) / 2**20
    assert found["saved_mib",] - found["saved_mib_without_norm",] == pytest.approx(maps, rel=0.01)


def test_cost_ratio_is_the_median_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "time_in_pairs", lambda *_: ([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]))
    network, x = nn.Linear(4, 4), torch.ones(3, 4)
    ending = make_ending(
        network,
        random_images(3),
        random_images(3),
        twin=lambda: nn.Linear(4, 4),
        step_of=lambda model: training_step(model, torch.sum, x),
    )
    found = values(CostProbe().measure(ending), "quantity")
    assert found["step_seconds",] == 4.0
    assert found["step_seconds_without_norm",] == 4.0
    assert found["step_ratio",] == 2.0  # of 2, 3 and 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="peak memory is CUDA's")
def test_cost_probe_has_peak_memory_on_cuda() -> None:
    x = torch.randn(64, 1000, device="cuda")
    network = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000)).cuda()
    ending = make_ending(
        network,
        random_images(3),
        random_images(3),
        twin=lambda: nn.Sequential(nn.Linear(1000, 1000)).cuda(),
        step_of=lambda model: training_step(model, torch.sum, x),
    )
    found = values(CostProbe().measure(ending), "quantity")
    assert found["peak_mib",] > found["peak_mib_without_norm",] > 0


@pytest.mark.parametrize(("channels", "has_jpeg"), [(1, True), (2, False), (3, True), (4, False)])
def test_robustness_leaves_jpeg_out_where_images_are_neither_grey_nor_colour(channels: int, has_jpeg: bool) -> None:
    test = random_images(4, channels=channels)
    rows = RobustnessProbe().measure(make_ending(make_network("none", channels=channels), test, test))
    assert ("jpeg" in {row["corruption"] for row in rows}) == has_jpeg
    assert {"contrast", "fgsm"} <= {row["corruption"] for row in rows}


# statistics of batches against those of the training set


def sampled(model: nn.Module, train: Images, **others: Any) -> dict[tuple[str, str], float]:
    """(layer, quantity) -> value."""
    rows = SamplingProbe().measure(make_ending(model, train, random_images(10), **others))
    assert {(row["probe"], row["step"], row["epoch"]) for row in rows} <= {("sampling", 7, 2)}
    return {(row["layer"], row["quantity"]): row["value"] for row in rows}


def inputs_of_norms(model: nn.Module, x: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """What each norm is given in eval mode, float64, (N, C, H, W)."""
    seen: dict[str, np.ndarray[Any, Any]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach().double().numpy())
            )
    with torch.no_grad():
        model.eval()(x)
    return seen


@pytest.mark.parametrize(("kind", "group"), [("batch", 8), ("ghost", 2)])
def test_sampling_errors_are_those_of_numpy(kind: str, group: int) -> None:
    train = random_images(43, seed=3)
    model = build_model(
        "cnn", in_channels=1, image_size=8, num_classes=3, depth=2, width=4, activation="relu", placement="before",
        norm=make_norm_factory(kind, **({"ghost_size": group} if kind == "ghost" else {})),
    )  # fmt: skip
    found = sampled(model, train, batch_size=8)
    exact = copy.deepcopy(model)
    measure_statistics(exact, lambda: [normalize(train[0])])
    order = torch.randperm(43, generator=generator(seed_for(0, "sampling", "order")))[:40]  # whole batches of 8
    seen = inputs_of_norms(exact, normalize(train[0]))
    assert len(found) == 2 * len(seen) == 4
    for (layer, _), values in zip(sorted(found)[::2], seen.values(), strict=True):
        mean, std = values.mean((0, 2, 3)), np.sqrt(values.var((0, 2, 3)) + 1e-5)
        groups = values[order.numpy()].reshape(40 // group, group, *values.shape[1:])
        means, stds = groups.mean((1, 3, 4)), np.sqrt(groups.var((1, 3, 4)) + 1e-5)
        expected = np.sqrt((((means - mean) / std) ** 2).mean()), np.sqrt(((stds / std - 1) ** 2).mean())
        assert found[layer, "batch_mean_error"] == pytest.approx(expected[0], rel=1e-4)
        assert found[layer, "batch_std_error"] == pytest.approx(expected[1], rel=1e-4)


def test_sampling_error_of_independent_values_is_one_over_the_root_of_their_number() -> None:
    train = random_images(2048)
    train[0].copy_(torch.randint(0, 256, (2048, 1, 1, 1), generator=generator(5)).expand(-1, 1, 8, 8))
    model = Brightness(nn.BatchNorm1d(1))
    errors = {size: sampled(model, train, batch_size=size)["norm", "batch_mean_error"] for size in (4, 64)}
    assert errors[4] == pytest.approx(1 / 2, rel=0.15)
    assert errors[64] == pytest.approx(1 / 8, rel=0.35)


def test_sampling_of_the_whole_training_set_has_no_error_and_changes_nothing() -> None:
    train, model = random_images(16), make_network("batch")
    before = copy.deepcopy(model.state_dict())
    assert all(value == pytest.approx(0, abs=1e-4) for value in sampled(model, train, batch_size=16).values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sampled(model, train, batch_size=17) == {}
    assert sampled(make_network("none"), train, batch_size=4) == {}
