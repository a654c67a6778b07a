"""Ambiguity and familiarity: by hand, against full covariances, on drawn faces, and as JSON."""
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from grefel.base.core import GrefelError
from grefel.measure.doubts import (
    ambiguity, ambiguity_in_words, anchor_distance, apply_doubts, disagreement, energy, entropy,
    familiarity, familiarity_in_words, fit_doubts, fit_gaussian, gaussian_distance,
    neighbour_distance, pixel_statistics, strangeness)


@pytest.fixture(scope='module')
def known(world):
    "Answers about 400 faces of a known world with images, embeddings and landmarks, and the fit."
    rng = np.random.default_rng(0)
    images = rng.integers(60, 200, (400, 1, 12, 12)).repeat(4, 2).repeat(4, 3).astype(np.uint8)
    shape = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 136))
    found = dict(final_probs=world.calm[:400], embedding=rng.normal(size=(400, 24)),
                 landmarks=(shape + .05*rng.normal(size=(400, 136))).reshape(400, 68, 2))
    return images, found, fit_doubts(found, images, world.votes[:400], source='a known world')


def half(found, rows):
    return {k: v[rows] for k, v in found.items()}


def test_entropies_and_disagreement_by_hand():
    assert_allclose(entropy([[1, 0], [.5, .5], [.25, .75]]), [0, .693147, .562335], atol=1e-6)
    a, b = np.array([[1., 0]]), np.array([[0., 1]])
    assert_allclose(disagreement(a, b), np.log(2))
    assert_allclose(disagreement(a, a, b), entropy([2/3, 1/3]))
    assert_allclose(disagreement(np.array([[.3, .7]])), 0, atol=1e-12)


def test_other_candidates_by_hand():
    assert_allclose(energy([[0, 0, 0], [5000, 0, 0]]), [-np.log(3), -5000])
    assert_allclose(anchor_distance(np.array([[[3., 2], [5, 4]]])), [2])
    known = np.array([[1., 0], [0, 2], [-3, 0]])
    assert_allclose(neighbour_distance([[5., 0]], known, 1), [0], atol=1e-12)
    assert_allclose(neighbour_distance([[5., 0]], known, 2), [1])
    assert_allclose(neighbour_distance([[5., 0]], known, 3), [2])


def test_a_gaussian_of_full_rank_is_mahalanobis():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7)) @ rng.normal(size=(7, 7))
    d = x - x.mean(0)
    want = np.einsum('ij,jk,ik->i', d, np.linalg.inv(np.cov(x.T)), d)
    assert_allclose(gaussian_distance(x, fit_gaussian(x, 7)), want, rtol=1e-6)


def test_storing_as_float32_changes_no_distance():
    # as of eight logits that sum to zero: a direction in which nothing varies
    x = 5*np.random.default_rng(0).normal(size=(400, 8))
    x -= x.mean(1, keepdims=True)
    exact = fit_gaussian(x, 16)
    stored = exact | {k: exact[k].astype('f4').astype(float) for k in ('mean', 'basis')}
    assert_allclose(gaussian_distance(x, stored), gaussian_distance(x, exact), rtol=.1, atol=.5)


def test_leaving_the_subspace_of_known_faces_is_strange():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    def faces(n): return 5*rng.normal(size=(n, 3)) @ directions[:3] + .1*rng.normal(size=(n, 30))
    known = fit_gaussian(faces(400), 3)
    assert gaussian_distance(faces(200), known).mean() == pytest.approx(30, rel=.1)
    inside, outside = 5*directions[:1], 5*directions[4:5]                   # equally far away
    assert gaussian_distance(outside, known) > 100*gaussian_distance(inside, known)


def test_few_faces_keep_few_directions_and_too_few_are_refused():
    x = np.random.default_rng(0).normal(size=(40, 30))
    assert len(fit_gaussian(x, 16)['basis']) == 4
    with pytest.raises(GrefelError, match='19 faces'): fit_gaussian(x[:19], 2)


def test_vectors_that_never_vary_are_described_too():
    x = np.ones((50, 6))
    assert np.isfinite(gaussian_distance(x, fit_gaussian(x, 3))).all()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('side', [48, 96, 224])
def test_pixel_statistics_take_bytes_and_shares_of_any_size(channels, side):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 1, 12, 12)).repeat(side//12 + 1, 2).repeat(side//12 + 1, 3)
    x = blocks[:, :, :side, :side].repeat(channels, 1).astype(np.uint8)
    found = pixel_statistics(x)
    assert found.shape == (4, 22) and np.isfinite(found).all()
    assert_allclose(found, pixel_statistics(x.astype(np.float32)/255), atol=1e-3)


@pytest.mark.parametrize('spoil', [
    lambda x: x + np.random.default_rng(1).normal(0, 20, x.shape),
    lambda x: (x + np.roll(x, 1, 2) + np.roll(x, 1, 3) + np.roll(x, 2, 3))/4,
    lambda x: x*.3, lambda x: 128 + (x - 128.)*.3], ids=['noise', 'blur', 'dark', 'contrast'])
def test_what_a_camera_does_to_pixels_is_strange(known, spoil):
    images, found, doubts = known
    faulty = np.clip(spoil(images.astype(float)), 0, 255).astype(np.uint8)
    clean, strange = (strangeness(found, x, doubts) for x in (images, faulty))
    assert np.median(strange['pixels']) > np.quantile(clean['pixels'], .95)
    assert_array_equal(strange['shape'], clean['shape'])
    assert np.median(familiarity(found, faulty, doubts)) < .1


def test_each_part_sees_its_own_strangers(known):
    images, found, doubts = known
    moved = found | dict(landmarks=found['landmarks'][:, ::-1])
    other = found | dict(embedding=found['embedding'] + 5)
    clean = strangeness(found, images, doubts)
    assert all(v.mean() == pytest.approx(1, rel=1e-4) for v in clean.values())
    for name, changed in dict(shape=moved, embedding=other).items():
        strange = strangeness(changed, images, doubts)
        assert {k for k in clean if not np.allclose(strange[k], clean[k])} == {name}
        assert np.median(strange[name]) > 2


def test_familiarity_is_the_share_of_faces_of_its_kind_that_are_stranger():
    rng = np.random.default_rng(1)
    images = rng.integers(60, 200, (2400, 1, 12, 12)).repeat(4, 2).repeat(4, 3).astype(np.uint8)
    probs = rng.dirichlet(np.ones(8), 2400)
    shape = rng.normal(size=(2400, 30)) @ rng.normal(size=(30, 136))
    found = dict(final_probs=probs, embedding=rng.normal(size=(2400, 24)),
                 landmarks=(shape + .05*rng.normal(size=(2400, 136))).reshape(2400, 68, 2))
    old, new = np.arange(200), np.arange(400, 2400)
    doubts = fit_doubts(half(found, old), images[old], labels=probs[old].argmax(1))
    f = familiarity(half(found, new), images[new], doubts)
    assert f.min() >= 0 and f.max() <= 1
    assert_allclose([(f < q).mean() for q in (.05, .25, .5, .75)], [.05, .25, .5, .75], atol=.1)
    assert .01 < (f < .05).mean() < .1


def test_duplicates_help_nobody_to_become_known():
    rng = np.random.default_rng(2)
    images = rng.integers(0, 255, (24, 1, 48, 48), np.uint8)[np.r_[:24, :24]]
    found = dict(final_probs=rng.dirichlet(np.ones(8), 48))
    with pytest.raises(GrefelError, match='24 different faces'):
        fit_doubts(found, images, labels=np.arange(48) % 8)


def test_ambiguity_is_what_people_say_otherwise(world):
    sharp = world.calm**2/(world.calm**2).sum(1, keepdims=True)
    rng = np.random.default_rng(0)
    found = dict(final_probs=sharp, embedding=rng.normal(size=(2000, 4)))
    doubts = fit_doubts(found, rng.integers(0, 255, (2000, 1, 48, 48), np.uint8), world.votes)
    assert doubts['crowd_temperature'] == pytest.approx(2, rel=.05)
    otherwise = 1 - world.truth[np.arange(2000), sharp.argmax(1)]
    assert_allclose(ambiguity(sharp, doubts), otherwise, atol=.03)


def test_what_is_stored_is_small_json_and_gives_the_same_answers(known):
    images, found, doubts = known
    text = json.dumps(doubts, allow_nan=False)
    assert len(text) < 40_000
    again = json.loads(text)
    for k, v in apply_doubts(found, images, doubts).items():
        assert_array_equal(v, apply_doubts(found, images, again)[k])
    one = half(found, [7])
    assert_allclose(apply_doubts(one, images[[7]], doubts)['familiarity'],
                    apply_doubts(found, images, doubts)['familiarity'][[7]], atol=1e-6)


def test_models_without_landmarks_or_embedding_are_judged_by_what_they_have(known, world):
    images, found, doubts = known
    bare = dict(final_probs=found['final_probs'])
    fitted = fit_doubts(bare, images, world.votes[:400])
    assert set(fitted['parts']) == {'pixels'}
    assert familiarity(bare, images, fitted).shape == (400,)
    with pytest.raises(GrefelError, match='needs shape'): familiarity(bare, images, doubts)
    with pytest.raises(GrefelError, match='grefel calibrate'): apply_doubts(found, images, None)


@pytest.mark.parametrize('share, words', [
    (0, 'hardly anybody'), (.12, 'one in eight'), (.25, 'a quarter'), (.33, 'a third'),
    (.5, 'about half'), (.8, 'most people')])
def test_ambiguity_in_words(share, words):
    assert words in ambiguity_in_words(share)


@pytest.mark.parametrize('share, words', [
    (1, 'like the faces'), (.1, 'like the faces'), (.06, '9 in 10'), (.03, '19 in 20'),
    (.012, '49 in 50'), (.006, '99 in 100'), (0, '199 in 200')])
def test_familiarity_in_words(share, words):
    assert words in familiarity_in_words(share)
