"""Corruptions: the same images for every model, harder with severity, scored as they say."""
import csv

import numpy as np
import pytest
import torch

from grefel.base.core import GrefelError
from grefel.base.synth import synth_faces
from grefel.data.faces import load_faces
from grefel.measure.corruptions import (
    conditions, corrupt, CORRUPTIONS, plot_robustness, robustness, SEVERITIES, write_robustness)
from grefel.method.files import load_model


@pytest.fixture(scope='module')
def images(): return synth_faces(24, size=48, seed=3, noise=0., occlusion=0.)['images']


@pytest.fixture(scope='module')
def few(): return load_faces('synth', split='valid', n=60)


def distance(a, b): return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_each_kind_grows_with_its_severity(images, kind):
    harm = [distance(corrupt(images, kind, s), images) for s in SEVERITIES]
    assert harm[0] > .1 and all(b > a for a, b in zip(harm, harm[1:]))


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_the_same_call_gives_the_same_images(images, kind):
    a, b = corrupt(images, kind, 3), corrupt(images, kind, 3)
    assert a.dtype == torch.uint8 and a.shape == images.shape and torch.equal(a, b)


@pytest.mark.parametrize('kind', ['noise', 'shot', 'cover', 'shifted', 'shake', 'uneven', 'turned'])
def test_another_seed_gives_other_faults(images, kind):
    assert not torch.equal(corrupt(images, kind, 3), corrupt(images, kind, 3, seed=1))


def test_large_sets_are_done_in_parts_without_a_seam(images):
    still = 'defocus'   # nothing random in it
    assert torch.equal(corrupt(images, still, 4, chunk=5), corrupt(images, still, 4))


def test_noise_is_as_strong_as_its_table_says():
    grey = torch.full((1, 1, 300, 300), 128, dtype=torch.uint8)
    for severity, sigma in zip(SEVERITIES, CORRUPTIONS['noise'][1]):
        spread = corrupt(grey, 'noise', severity).float().std().item()
        assert spread == pytest.approx(sigma, rel=.03)


@pytest.mark.parametrize('kind, severity, words', [
    ('fog', 1, "unknown corruption 'fog'; known: noise, shot"),
    ('noise', 0, 'severity is 0; it must be 1 to 5'), ('noise', 6, 'severity is 6')])
def test_what_there_is_not_is_refused_in_one_line(images, kind, severity, words):
    with pytest.raises(GrefelError, match=words): corrupt(images, kind, severity)


def test_rows_agree_with_answers_counted_by_hand(few):
    model = load_model('nano')
    clean, noisy = robustness(model, few, conditions(('noise',), (5,)))
    assert (clean['kind'], clean['severity'], noisy['kind'], noisy['severity']) == (
        'clean', 0, 'noise', 5)
    from grefel.measure.answers import predict_data
    probs = predict_data(model, dict(images=corrupt(few.images, 'noise', 5)))['final_probs']
    said, labels = probs.argmax(1), np.asarray(few.labels)
    assert noisy['n'] == len(labels)
    assert noisy['accuracy'] == pytest.approx((said == labels).mean())
    assert noisy['mean_confidence'] == pytest.approx(probs.max(1).mean(), abs=1e-6)
    assert noisy['most'] == pytest.approx(max((said == c).mean() for c in range(8)))


def test_table_and_plots_hold_what_was_measured(few, tmp_path):
    rows = robustness(load_model('nano'), few, conditions(('noise', 'jpeg'), (1, 5)))
    table, image = write_robustness(rows, tmp_path)
    with open(table, newline='') as f: read = list(csv.DictReader(f))
    assert [(r['kind'], int(r['severity'])) for r in read] == [
        ('clean', 0), ('noise', 1), ('noise', 5), ('jpeg', 1), ('jpeg', 5)]
    assert float(read[2]['accuracy']) == pytest.approx(rows[2]['accuracy'], abs=1e-6)
    assert image.read_text().lstrip().startswith('<?xml')
    axes = [ax for ax in plot_robustness(rows).axes if ax.get_title()]
    assert [ax.get_title() for ax in axes] == ['noise', 'jpeg']
    assert list(axes[0].lines[1].get_ydata()) == [rows[i]['accuracy'] for i in (0, 1, 2)]


def test_progress_counts_conditions_up_to_all_of_them(few):
    heard, which = [], conditions(('noise', 'jpeg'), (1,))
    robustness(load_model('nano'), few.subset(range(4)), which,
               progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (3, 3) and {done for done, _ in heard} >= {1, 2, 3}
