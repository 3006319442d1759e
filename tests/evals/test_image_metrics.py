"""Distances of sets of images in numbers: closed forms, direct sums, cases by hand, and the published programs'
formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
from torchmetrics.image.kid import poly_mmd
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from evals.distances import feature_cache
from evals.distances.features import open_features
from evals.distances.frechet import FeatureSums, Gaussian, frechet_distance, frechet_floor, frechet_infinity
from evals.distances.kernel import kernel_distance, squared_mmd
from evals.distances.precision_recall import covered, precision_recall
from evals.distances.resizing import resize
from evals.metrics.image_quality import ImageSets, image_quality
from evals.metrics.image_tokenizer import psnr, ssim, tokenizer_quality
from liquid_train.files import package_path
from liquid_train.image_tokenizer.kinds.taming.network import TamingVQGAN
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.measurement.measurement import ModelHandle
from liquid_train.measurement.settings import FeaturesConfig
from tests.tiny_model import tiny, vq

# ------------------------------------------------------------------------------------------------ Frechet distance


def some(n: int, d: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(shift, 1, (n, d)) @ random.normal(size=(d, d)) / np.sqrt(d)


@pytest.mark.parametrize("d", [64, 512, 2048])
def test_frechet_distance_of_known_gaussians_is_the_closed_form(d):
    """Covariances that share their eigenvectors: the distance is that of the means plus the squared differences of the
    deviations."""
    random = np.random.default_rng(d)
    turn = np.linalg.qr(random.normal(size=(d, d)))[0]
    first, second = random.uniform(0.1, 3, d), random.uniform(0.1, 3, d)
    a = Gaussian(random.normal(size=d), (turn * first**2) @ turn.T)
    b = Gaussian(random.normal(size=d), (turn * second**2) @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(
        ((a.mean - b.mean) ** 2).sum() + ((first - second) ** 2).sum(), rel=1e-9
    )


def by_root(a: Gaussian, b: Gaussian) -> complex:
    """The definition, with scipy's root of the plain product."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return complex(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * np.trace(root))


def as_clean_fid(a: Gaussian, b: Gaussian, eps: float = 1e-6) -> float:
    """The same with what clean-fid and pytorch-fid add: eps on both diagonals where the root is not finite, the real
    part of it."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    if not np.isfinite(root).all():
        offset = eps * np.eye(len(a.mean))
        root = scipy.linalg.sqrtm((a.covariance + offset) @ (b.covariance + offset))
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * np.trace(root.real))


@pytest.mark.parametrize(("d", "n"), [(40, 250), (64, 1000), (256, 600)])
def test_frechet_distance_equals_scipy_s_root_clean_fid_s_and_torchmetrics_formulas(d, n):
    assert n > 2 * d
    a, b = Gaussian.of(some(n + 50, d)), Gaussian.of(some(n, d, seed=1, shift=0.1))
    root = by_root(a, b)
    assert abs(root.imag) < 1e-6
    assert frechet_distance(a, b) == pytest.approx(root.real, rel=1e-8) == frechet_distance(b, a)
    assert frechet_distance(a, b) == pytest.approx(as_clean_fid(a, b), rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    theirs = _compute_fid(*(torch.from_numpy(x) for x in (a.mean, a.covariance, b.mean, b.covariance)))
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-8)


class FlatPixels(torch.nn.Module):
    """As many features as numbers of a small image."""

    num_features = 3 * 6 * 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double() / 255


def test_the_number_is_that_of_torchmetrics_class_over_the_same_images():
    random = np.random.default_rng(0)
    real, generated = (random.integers(low, 256, (300, 3, 6, 6), dtype=np.uint8) for low in (0, 60))
    metric = FrechetInceptionDistance(feature=FlatPixels()).set_dtype(torch.float64)
    for start in range(0, 300, 100):
        metric.update(torch.from_numpy(real[start : start + 100]), real=True)
        metric.update(torch.from_numpy(generated[start : start + 100]), real=False)
    network = FlatPixels()
    sums = [
        sum(
            (FeatureSums.of(network(torch.from_numpy(part)).numpy()) for part in np.split(images, 3)[1:]),
            FeatureSums.of(network(torch.from_numpy(np.split(images, 3)[0])).numpy()),
        )
        for images in (real, generated)
    ]
    assert frechet_distance(sums[0].gaussian(), sums[1].gaussian()) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize("n", [100, 200, 255])
def test_a_covariance_without_full_rank_gives_the_closed_form_where_a_plain_root_need_not(n):
    """Two sets in the same n - 1 directions: the distance of Gaussians that share their eigenvectors, most of whose
    deviations are 0."""
    random = np.random.default_rng(n)
    turn = np.linalg.qr(random.normal(size=(256, 256)))[0]
    first, second = (np.where(np.arange(256) < n - 1, random.uniform(0.1, 3, 256), 0) for _ in range(2))
    a, b = Gaussian(np.zeros(256), (turn * first**2) @ turn.T), Gaussian(np.ones(256), (turn * second**2) @ turn.T)
    found = frechet_distance(a, b)
    assert isinstance(found, float) and found == pytest.approx(256 + ((first - second) ** 2).sum(), rel=1e-6)
    few, many = Gaussian.of(some(n, 256)), Gaussian.of(some(700, 256, seed=1))
    assert np.isfinite(frechet_distance(few, many)) and frechet_distance(few, many) > 0
    assert frechet_distance(few, many) == pytest.approx(as_clean_fid(few, many), rel=1e-3)


def test_fewer_images_than_features_give_a_finite_number_above_zero():
    few, fewer = (Gaussian.of(some(n, 256, seed=n)) for n in (100, 7))
    assert np.isfinite(frechet_distance(few, fewer)) and frechet_distance(few, fewer) > 0
    with pytest.raises(ValueError, match="at least 2 images"):
        Gaussian.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 images"):
        FeatureSums.of(np.zeros((1, 3))).gaussian()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sums_of_parts_are_those_of_the_whole(ranks):
    features = some(101, 12, shift=5.0).astype(np.float32)
    vectors = [FeatureSums.of(features[r::ranks]).as_vector() for r in range(ranks)]
    merged = FeatureSums.from_vector(np.sum(vectors, axis=0))
    whole = Gaussian.of(features)
    assert merged.count == 101
    np.testing.assert_allclose(merged.gaussian().mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.gaussian().covariance, whole.covariance, rtol=1e-9, atol=1e-12)
    interrupted = FeatureSums.of(features[:40]) + FeatureSums.of(features[40:])
    other = Gaussian.of(some(90, 12, seed=3))
    assert frechet_distance(interrupted.gaussian(), other) == pytest.approx(frechet_distance(whole, other), rel=1e-9)


def test_the_distance_at_infinitely_many_images_has_less_bias_and_the_floor_tells_the_bias():
    real = np.random.default_rng(0).normal(size=(6000, 16))
    reference = Gaussian.of(real[:3000])
    generated = real[3000:3200]  # of the very same distribution: the true distance is 0
    plain = frechet_distance(Gaussian.of(generated), reference)
    assert abs(frechet_infinity(generated, reference, seed=0, smallest=50)) < 0.4 * plain
    floor = frechet_floor(real, 200, seed=1)
    assert floor == pytest.approx(plain, rel=0.4)
    assert floor == frechet_floor(real, 200, seed=1) and frechet_floor(real[:300], 200, seed=1) is None


# ------------------------------------------------------------------------------------------------ kernel distance


def test_kernel_distance_equals_a_direct_double_loop_and_torchmetrics():
    a, b = some(9, 5), some(7, 5, seed=2, shift=0.5)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    within_b = sum(k(b[i], b[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    across = sum(k(x, y) for x in a for y in b) / 63
    assert squared_mmd(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)
    assert squared_mmd(a[:7], b) == pytest.approx(
        float(poly_mmd(torch.from_numpy(a[:7]), torch.from_numpy(b))), rel=1e-10
    )


def test_kernel_distance_over_subsets_is_seeded_and_near_the_whole():
    a, b = some(200, 8), some(150, 8, seed=2, shift=0.7)
    mean, deviation, size = kernel_distance(a, b, seed=0)
    assert (mean, deviation, size) == kernel_distance(a, b, seed=0) != kernel_distance(a, b, seed=1) and size == 75
    assert abs(mean - squared_mmd(a, b)) < deviation and deviation > 0
    assert kernel_distance(a, b, seed=0, subset_size=20)[2] == 20
    with pytest.raises(ValueError, match="at least 4 images"):
        kernel_distance(a[:3], b, seed=0)


# ------------------------------------------------------------------------------------------------ precision and recall


def test_precision_and_recall_by_hand():
    """On a line, one neighbour: spheres of 1 around 0 and 1, of 9 around 10."""
    real = np.array([[0.0], [1.0], [10.0]])
    assert covered(np.array([[-1.0], [-1.1], [2.0], [2.1], [19.0], [19.1]]), real[:2], 1).tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert covered(np.array([[2.1], [0.9], [19.0], [19.1]]), real, 1).tolist() == [True, True, True, False]
    generated = np.array([[0.5], [0.6]])  # spheres of 0.1
    precision, recall = precision_recall(generated, real, 1)
    assert precision.tolist() == [True, True] and recall.tolist() == [False, False, False]
    with pytest.raises(ValueError, match="more than 3 images"):
        covered(real, real)


def test_the_same_set_has_full_precision_and_recall():
    features = some(50, 6)
    precision, recall = precision_recall(features, features)
    assert precision.all() and recall.all()


# ------------------------------------------------------------------------------------------------ resizing


def test_resizing_is_that_of_the_published_programs():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 33, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    clean = [
        np.asarray(
            Image.fromarray(pixels[0, :, :, c].astype(np.float32)).resize((8, 8), Image.Resampling.BICUBIC)
        ).clip(0, 255)
        for c in range(3)
    ]
    np.testing.assert_array_equal(resize(pixels, 8, "clean")[0], np.stack(clean, axis=2))
    expected = F.interpolate(image, size=(8, 8), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(resize(pixels, 8, "legacy_pytorch"), expected.permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match="features.resize=sharp: one of clean"):
        resize(pixels, 8, "sharp")


def test_tensorflow_s_resizing_by_hand():
    row = np.array([0, 100, 200, 40], dtype=np.uint8)
    image = np.broadcast_to(row[None, None, :, None], (1, 4, 4, 3)).copy()
    # to 3: places 0, 4/3, 8/3; the filter sees two pixels only
    expected = [0, 100 + 100 / 3, 200 - 160 * 2 / 3]
    for c in range(3):
        np.testing.assert_allclose(resize(image, 3, "legacy_tensorflow")[0, 1, :, c], expected, rtol=1e-5)
    # to 8: every second pixel is an old one, the last is repeated
    np.testing.assert_allclose(
        resize(image, 8, "legacy_tensorflow")[0, 0, :, 0], [0, 50, 100, 150, 200, 120, 40, 40], rtol=1e-5
    )


def test_filters_differ_where_an_image_is_fine():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    spread = {mode: float(resize(stripes, 16, mode).std()) for mode in ("clean", "legacy_pytorch", "legacy_tensorflow")}
    assert spread["clean"] < 8  # grey at the borders' expense
    assert float(resize(stripes, 16, "legacy_tensorflow").mean()) == 255  # aliased: only the white ones are seen


# ------------------------------------------------------------------------------------------------ networks


class FakeLayers(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 1)


class FakeInception(torch.nn.Module):
    """Three features: each channel's mean of what the network is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = FakeLayers()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_inception_comes_from_torchscript_and_sees_pixels_between_minus_one_and_one(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(FakeInception()).save(str(path))
    network = open_features(FeaturesConfig("inception", str(path)), vq())
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    pixels[1], pixels[2, ..., 0] = 255, 128
    np.testing.assert_allclose(network(pixels), [[-1, -1, -1], [127 / 128] * 3, [0, -1, -1]], atol=1e-4)
    assert "clean, 299 pixels" in network.resize and len(network.weights) == 64
    (tmp_path / "broken.pt").write_bytes(b"no")
    for where, message in (("none.pt", "no such file"), ("broken.pt", "not TorchScript")):
        with pytest.raises(ValueError, match=message):
            open_features(FeaturesConfig("inception", str(tmp_path / where)), vq())


def test_a_tokenizer_without_encoder_is_refused():
    settings = VQSettings()
    decoder = TamingVQGAN.from_files(package_path(settings.config), package_path(settings.checkpoint), ("decoder",))
    with pytest.raises(ValueError, match="without its encoder"):
        open_features(FeaturesConfig(), decoder)


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_vision_models_come_from_a_folder(tmp_path, kind):
    torch.manual_seed(0)
    if kind == "clip":
        text = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
        }
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=12))
    else:
        model = Dinov2Model(Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        open_features(FeaturesConfig("hf", str(tmp_path)), vq())
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    network = open_features(FeaturesConfig("hf", str(tmp_path), "legacy_pytorch"), vq())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        if kind == "clip":
            expected = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
        else:
            expected = model(pixel_values=images).pooler_output
    np.testing.assert_allclose(network(pixels, batch_size=2), expected.numpy(), atol=1e-5)


def test_features_of_real_images_are_kept_by_content_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    tokenizer = vq()
    network, handle = open_features(FeaturesConfig(), tokenizer), ModelHandle(None, None, tokenizer, (), "")
    reference_features = partial(feature_cache.reference_features, handle, network)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(feature_cache, "LAST", {})
    first = reference_features(pixels, tmp_path)
    (path,) = tmp_path.glob("*.npy")
    feature_cache.LAST.clear()
    np.save(path, first + 1)
    # read, not made
    np.testing.assert_array_equal(reference_features(pixels, tmp_path), first + 1)
    feature_cache.LAST.clear()
    path.write_bytes(b"\x93NUMPY broken")
    np.testing.assert_array_equal(reference_features(pixels, tmp_path), first)
    reference_features(pixels[::-1], tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2 and len(feature_cache.LAST) == 1


# ------------------------------------------------------------------------------------------------ the metrics as a
# whole


@pytest.fixture(scope="module")
def handle(tmp_path_factory) -> ModelHandle:
    model, vocabulary = tiny(tmp_path_factory.mktemp("model"))
    return ModelHandle(model, vocabulary, vq(), (2, 2), "")


def test_image_quality_by_category_with_its_receipt_and_the_warning(handle):
    random = np.random.default_rng(0)
    generated, real = (random.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for n in (24, 60))
    kinds: list[str | None] = ["a", "b"]
    data = ImageSets(
        generated,
        real,
        ["p"] * 24,
        list(range(5, 29)),
        kinds * 12,
        [*kinds, None] * 20,
        {"guidance": 2.0},
        "noise",
        real[:5],
    )
    measured = image_quality(handle, data, FeaturesConfig())
    assert {
        "frechet_distance/a",
        "frechet_distance/b",
        "frechet_floor",
        "frechet_infinity",
        "kernel_deviation",
        "precision",
    } < measured.values.keys()
    distance = measured.values["frechet_distance"]
    assert distance.low is not None and distance.high is not None and distance.low < distance.high and distance.n == 24
    assert (
        measured.provenance.seeds == "5 to 28"
        and measured.provenance.feature_weights == handle.image_tokenizer.fingerprint
    )
    assert (
        "24 generated images for 64 features: the covariance has rank 23" in measured.warnings[0]
        and "60 real images" in measured.warnings[1]
    )
    again = image_quality(handle, data, FeaturesConfig())
    assert again.values == measured.values and again.provenance == measured.provenance


def test_only_inception_s_numbers_are_called_fid_and_kid(handle, tmp_path):
    torch.jit.script(FakeInception()).save(str(tmp_path / "inception.pt"))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    data = ImageSets(pixels[:8], pixels, ["p"] * 8, list(range(8)), ["a"] * 8, ["a"] * 20, {}, "noise")
    measured = image_quality(handle, data, FeaturesConfig("inception", str(tmp_path / "inception.pt")))
    assert set(measured.values) == {"fid", "fid_floor", "fid/a", "kid", "kid/a", "kid_deviation", "precision", "recall"}
    assert measured.warnings == []  # 8 images, 3 features


def test_the_image_tokenizer_s_losses(handle):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    measured = tokenizer_quality(handle, pixels, FeaturesConfig())
    v = {key: value.value for key, value in measured.values.items()}
    assert 3 < v["psnr"] < 20 and -1 <= v["ssim"] < 0.9 and v["reconstruction_frechet"] > 0
    assert (
        1 <= v["codebook_perplexity"] <= 12
        and 0 < v["codebook_used"] <= 12 / 1024
        and measured.values["codebook_used"].n == 12
    )


def test_psnr_and_ssim_by_hand():
    a = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(a, a + 10) == pytest.approx(10 * np.log10(255**2 / 100), rel=1e-6)
    assert psnr(a, a) == 100.0 and ssim(a, a) == pytest.approx(1.0)
    # flat images: only the means' term is left
    assert ssim(a, a + 10) == pytest.approx((2 * 100 * 110 + 2.55**2) / (100**2 + 110**2 + 2.55**2), rel=1e-6)
