"""Moments of classes: mixtures are exact, batches add up, packing loses what it says, files are of one network."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.common.errors import DataError, ModelError
from fedcaptor.common.moments import ClassMoments, Moments, Scatter, mixture


def rows(seed, count, channels, steepness=0.0, mean=3.0):
    """Observations whose principal directions have variances falling as (1 + i)^-steepness."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    spread = (1.0 + np.arange(channels)) ** (-steepness / 2)
    return rng.standard_normal((count, channels)) * spread @ basis.T + mean * rng.standard_normal(channels)


def exact(sample):
    return Moments.of(Scatter.of(sample), share=1, dtype=np.float64)


def test_two_classes_by_hand():
    one, other = Scatter.of(np.array([[0.0], [2.0]])), Scatter.of(np.array([[10.0], [10.0]]))
    classes = [Moments.of(one), Moments.of(other)]
    assert mixture(classes, np.array([1.0, 0.0])) == pytest.approx(1)
    # Means 1 and 10: 3/4·1 + 1/4·0 within, 3/4·1/4·9² between.
    assert mixture(classes, np.array([3.0, 1.0])).item() == pytest.approx(0.75 + 81 * 3 / 16)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 10**6))
def test_a_mixture_has_the_covariance_of_its_sample(counts, seed):
    samples = [rows(seed + c, count, 5) for c, count in enumerate(counts)]
    found = mixture([exact(s) for s in samples], np.array(counts, float))
    np.testing.assert_allclose(found, np.cov(np.concatenate(samples), rowvar=False, ddof=0), atol=1e-6)


def test_a_class_without_weight_does_not_count():
    samples = [rows(c, 20, 4) for c in range(3)]
    classes = [*(exact(s) for s in samples), Moments.unseen(4)]
    alone = mixture(classes, np.array([0, 0.4, 0, 0]))
    np.testing.assert_allclose(alone, np.cov(samples[1], rowvar=False, ddof=0), atol=1e-6)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(0, 10**6))
def test_batches_add_up(sizes, seed):
    sample = rows(seed, sum(sizes), 4, mean=100)
    parts = [Scatter.of(part) for part in np.split(sample, np.cumsum(sizes)[:-1])]
    together, whole = sum(parts[1:], parts[0]), Scatter.of(sample)
    assert together.count == whole.count
    np.testing.assert_allclose(together.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(together.squares, whole.squares, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("share", [0.9, 0.99, 0.995])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])  # variances far outside half precision
def test_packing_loses_what_it_says(share, unit):
    scatter = Scatter.of(rows(1, 400, 64, steepness=3) * unit)
    full = scatter.squares / scatter.count
    packed = Moments.of(scatter, share)
    variances = np.linalg.eigvalsh(full)[::-1]
    least = int(np.searchsorted(np.cumsum(variances), share * variances.sum())) + 1
    assert least <= packed.rank <= least + 1  # the first, cheaper factorisation may cost one
    assert packed.rank < 31
    found = packed.covariance()
    assert np.linalg.norm(found - full) <= (1 - share + 1e-3) * np.trace(full)
    np.testing.assert_allclose(found.diagonal(), full.diagonal(), rtol=5e-3)
    assert np.linalg.eigvalsh(found).min() >= -1e-3 * variances[0]


def test_an_even_spectrum_is_kept_as_a_triangle():
    scatter = Scatter.of(rows(2, 500, 16))
    packed = Moments.of(scatter)
    assert packed.rank == -1
    assert packed.values.nbytes == 16 * 17 // 2 * 2
    full = scatter.squares / scatter.count
    np.testing.assert_allclose(packed.covariance(), full, atol=1e-3 * full.max())


def test_few_observations_need_few_columns():
    scatter = Scatter.of(rows(3, 5, 40))
    packed = Moments.of(scatter, share=1)
    assert packed.rank == 4
    full = scatter.squares / scatter.count
    np.testing.assert_allclose(packed.covariance(), full, atol=2e-3 * full.max())


def test_dead_channels_have_no_covariance():
    packed = Moments.of(Scatter.of(np.full((6, 8), 2.0)))
    assert packed.rank == 0
    assert not packed.covariance().any()


def some_moments(digest="a" * 64):
    gradients = [Moments.of(Scatter.of(rows(c, 60, 4, 3))) for c in range(3)]
    inputs = [Moments.of(Scatter.of(rows(c, 40, 24, 3))) for c in range(2)]
    return ClassMoments(
        digest, np.array([15, 15, 15]), {("a", "b.0"): [*inputs, Moments.unseen(24)]}, {"b.0": gradients}
    )


def test_sensitivity_is_that_of_centred_logits_when_gradients_do_not_depend_on_the_image():
    logits = np.random.default_rng(0).standard_normal((4, 5))  # gradient of each logit at 5 outputs
    gradients = [Moments.of(Scatter.of(np.tile(g, (20, 1)))) for g in logits]
    moments = ClassMoments("", np.full(4, 10), {}, {"last": gradients})  # two positions an image
    centred = logits[[0, 2, 3]] - logits[[0, 2, 3]].mean(0)
    np.testing.assert_allclose(
        moments.sensitivity("last", np.array([3, 0, 2])), 2 * centred.T @ centred, rtol=1e-5, atol=1e-6
    )


def test_one_needed_class_still_has_a_sensitivity():
    assert np.trace(some_moments().sensitivity("b.0", np.array([1]))) > 0


def test_errors_name_the_class_and_the_remedy():
    moments = some_moments()
    with pytest.raises(DataError, match="class 2 has 0 reference images"):
        moments.covariance("a", "b.0", np.array([0.5, 0, 0.5]))
    with pytest.raises(DataError, match="0 classes have a weight"):
        moments.covariance("a", "b.0", np.zeros(3))


def test_a_file_gives_the_same_moments(tmp_path):
    moments, path, usage = some_moments(), tmp_path / "new" / "moments.safetensors", np.array([0.3, 0.7, 0])
    assert {m.rank for m in moments.inputs["a", "b.0"][:2]} != {-1}  # both ways to store are in the file
    assert {m.rank for m in moments.gradients["b.0"]} == {-1}
    moments.save(path)
    loaded = ClassMoments.load(path, moments.digest)
    np.testing.assert_array_equal(loaded.covariance("a", "b.0", usage), moments.covariance("a", "b.0", usage))
    np.testing.assert_array_equal(loaded.sensitivity("b.0", [0, 2]), moments.sensitivity("b.0", [0, 2]))
    assert loaded.inputs["a", "b.0"][2].count == 0
    assert loaded.nbytes == moments.nbytes
    assert 0 < path.stat().st_size - moments.nbytes < 2500
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_of_other_networks_and_other_files_are_refused(tmp_path):
    path = tmp_path / "moments.safetensors"
    some_moments().save(path)
    with pytest.raises(ModelError, match=r"moments of network aaaaaaaaaaaa, this one is bbbbbbbbbbbb: gather them"):
        ClassMoments.load(path, "b" * 64)
    with pytest.raises(ModelError, match="gather them again"):
        ClassMoments.load(tmp_path / "absent.safetensors", "a" * 64)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="gather them again"):
        ClassMoments.load(path, "a" * 64)
