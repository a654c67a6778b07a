"""What a model says about faces, whatever form they come in and whatever its file asks for."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors import safe_open
from safetensors.torch import save_file

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.geometry import mirror_landmarks
from grefel.data.warp import to_grey
from grefel.measure.answers import (
    OUTPUTS, add_metadata, answer_settings, calibrate_weights, faces_in_words, flip_average,
    in_model_order, predict_data, tempered)
from grefel.measure.calibration import apply_temperature, logit_adjustment
from grefel.measure.metrics import nll_values
from grefel.method.files import load_model, save_model

COUNTS = [900, 700, 300, 300, 200, 10, 50, 10]
TRAINED = dict(data=dict(train=dict(per_class=COUNTS)))


def final(model, data, **kw):
    return predict_data(model, data, **kw)['final_probs']


def random_images(n=6, size=48):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_face_and_its_mirror_image_get_the_same_average(nano):
    x = random_images()
    a, b = flip_average(nano, x), flip_average(nano, x.flip(-1))
    torch.testing.assert_close(a['final_probs'], b['final_probs'])
    torch.testing.assert_close(a['landmarks'], mirror_landmarks(b['landmarks']))
    assert not torch.allclose(nano(x)['final_probs'], a['final_probs'], atol=1e-4)


@torch.no_grad()
def test_given_landmarks_are_mirrored_with_the_image(nano):
    x, points = random_images(), torch.rand(6, 68, 2)
    a, b = flip_average(nano, x, points), flip_average(nano, x.flip(-1), mirror_landmarks(points))
    torch.testing.assert_close(a['final_probs'], b['final_probs'])
    own = nano(x.flip(-1), mirror_landmarks(points))['final_probs']
    torch.testing.assert_close(a['final_probs'], (nano(x, points)['final_probs'] + own)/2)


@torch.no_grad()
def test_confidence_of_an_average_is_that_of_the_averaged_distribution(nano):
    x = random_images()
    a = flip_average(nano, x, out=nano(x))
    p = a['primary_probs']
    entropy = -(p*p.log()).sum(1)
    torch.testing.assert_close(a['primary_confidence'], 1 - entropy/np.log(8))


@torch.no_grad()
def test_logits_of_an_average_are_those_of_the_averaged_distribution(nano):
    a = flip_average(nano, random_images())
    named = [k.removesuffix('_logits') for k in a if k.endswith('_logits')]
    assert {'primary', 'anchor', 'attention', 'final'} <= set(named)
    for k in named: torch.testing.assert_close(a[f'{k}_logits'].softmax(-1), a[f'{k}_probs'])


def test_every_output_comes_for_every_face(nano, drawn):
    found = predict_data(nano, drawn)
    assert set(found) == set(OUTPUTS) and all(len(v) == 60 for v in found.values())
    assert all(v.dtype == np.float32 for v in found.values())


@pytest.mark.parametrize('form', [
    lambda d: dict(images=d.images), lambda d: dict(images=d.images.numpy()),
    lambda d: SimpleNamespace(images=d.images, labels=d.labels)])
def test_the_form_of_the_data_does_not_matter(nano, drawn, form):
    assert_array_equal(final(nano, form(drawn), bs=37), final(nano, drawn))


def test_given_landmarks_are_used_when_asked_for(nano, drawn):
    given = final(nano, drawn, landmarks='given')
    assert np.abs(given - final(nano, drawn)).max() > 1e-4
    bare = dict(images=drawn.images)                    # none are there: the model finds its own
    assert_allclose(final(nano, bare, landmarks='given'), final(nano, drawn), atol=1e-5)


def test_a_stored_temperature_is_applied_to_the_final_distribution_only(nano, drawn):
    plain = predict_data(nano, drawn)
    nano.metadata = dict(temperature=2.)
    sober = predict_data(nano, drawn)
    assert_allclose(sober['final_probs'], apply_temperature(plain['final_probs'], 2), atol=1e-6)
    assert np.abs(sober['final_probs'] - plain['final_probs']).max() > 0.01
    assert_array_equal(sober['primary_probs'], plain['primary_probs'])
    assert_array_equal(final(nano, drawn, temperature=1), plain['final_probs'])
    assert_allclose(final(nano, drawn, temperature=3), apply_temperature(plain['final_probs'], 3),
                    atol=1e-6)


def test_tempered_treats_both_distributions_alike(nano, drawn):
    plain = predict_data(nano, drawn)
    both = tempered(plain, 2.)
    for k in ('primary_probs', 'final_probs'):
        assert_array_equal(both[k], apply_temperature(plain[k], 2.))
    assert_array_equal(both['embedding'], plain['embedding'])


def test_a_flip_test_makes_mirrored_faces_equal_and_can_be_stored(nano, drawn):
    plain = final(nano, drawn)
    mirrored = dict(images=drawn.images.flip(-1))
    averaged = final(nano, drawn, flip_test=True)
    assert_allclose(final(nano, mirrored, flip_test=True), averaged, atol=1e-5)
    assert np.abs(averaged - plain).max() > 1e-4
    nano.metadata = dict(flip_test=True)
    assert_array_equal(final(nano, drawn), averaged)                    # as its file says …
    assert_array_equal(final(nano, drawn, flip_test=False), plain)      # … unless told otherwise


def test_a_flip_test_mirrors_given_landmarks_too(nano, drawn):
    mirrored = dict(images=drawn.images.flip(-1), landmarks=mirror_landmarks(drawn.landmarks))
    settings = dict(flip_test=True, landmarks='given')
    assert_allclose(final(nano, mirrored, **settings), final(nano, drawn, **settings), atol=1e-5)


def test_rare_classes_can_be_favoured_and_that_can_be_stored(nano, drawn):
    nano.metadata = TRAINED
    plain, rare = predict_data(nano, drawn), predict_data(nano, drawn, balanced=1)
    for k in ('primary_probs', 'correction_probs', 'final_probs'):
        assert_allclose(rare[k], logit_adjustment(plain[k], COUNTS), atol=1e-6)
    for k in ('embedding', 'primary_confidence'): assert_array_equal(rare[k], plain[k])
    nano.metadata = TRAINED | dict(balanced=1)
    assert_array_equal(final(nano, drawn), rare['final_probs'])
    assert_array_equal(final(nano, drawn, balanced=0), plain['final_probs'])


@pytest.mark.parametrize('balanced, why', [(1, 'do not say how often'), (3, 'between 0 and 1')])
def test_favouring_needs_shares_and_a_share(nano, drawn, balanced, why):
    with pytest.raises(GrefelError, match=why): predict_data(nano, drawn, balanced=balanced)


def test_weights_trained_on_grey_faces_see_grey_ones(nano):
    coloured = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8)
    seen = [dict(images=coloured), dict(images=to_grey(coloured))]
    nano.metadata = dict(grey=True)
    assert_array_equal(*(final(nano, d) for d in seen))
    nano.metadata = dict(grey=False)
    colour, grey = (final(nano, d) for d in seen)
    assert np.abs(colour - grey).max() > 1e-4


@pytest.mark.parametrize('data, kw, why', [
    (dict(labels=[1]), {}, 'no images'), (dict(images=torch.zeros(0, 1, 48, 48)), {}, 'no faces'),
    (dict(images=torch.zeros(1, 1, 48, 48)), dict(landmarks='guessed'), 'guessed')])
def test_what_cannot_be_predicted_is_refused(nano, data, kw, why):
    with pytest.raises(GrefelError, match=why): predict_data(nano, data, **kw)


def test_a_model_without_final_probs_is_refused(nano, drawn):
    nano.forward = lambda images, landmarks=None: dict(primary_probs=torch.ones(len(images), 8)/8)
    with pytest.raises(GrefelError, match='without final_probs'): predict_data(nano, drawn)


def test_progress_counts_faces_up_to_all_of_them(nano, drawn):
    heard = []
    predict_data(nano, drawn, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (60, 60) and heard == sorted(heard) and len(heard) > 3


def test_a_bar_is_shown_only_when_asked_for(nano, drawn, capsys):
    predict_data(nano, drawn)
    assert capsys.readouterr().err == ''
    predict_data(nano, drawn, progress=True)
    assert '60' in capsys.readouterr().err


def test_a_model_that_was_training_goes_on_training(nano, drawn):
    nano.train()
    one, two = final(nano, drawn), final(nano, drawn)
    assert nano.training
    assert_array_equal(one, two)                    # and nothing random was left on


def test_company_makes_no_difference_to_the_last_bit(drawn):
    model, images = load_model(), drawn.images[:30]
    def ask(x): return predict_data(model, dict(images=x))
    together, order = ask(images), np.random.default_rng(0).permutation(30)
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    amid, threads = ask(torch.cat([noise[:11], images, noise])), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threaded = ask(images)
        assert torch.get_num_threads() == 2                       # left as it was
    finally: torch.set_num_threads(threads)
    for k in OUTPUTS:
        assert_array_equal(ask(images[order])[k], together[k][order])
        assert_array_equal(amid[k][11:41], together[k])
        assert_array_equal(threaded[k], together[k])
        for size in (1, 2, 5, 17): assert_array_equal(ask(images[:size])[k], together[k][:size])
        assert_array_equal(ask(images[[7]*9])[k], together[k][[7]*9])


MIXED = dict(images=np.zeros((3, 1, 4, 4)), labels=[0, 1, 2], classes=('anger', 'fear', 'neutral'))


def test_labels_and_votes_follow_the_names_of_classes():
    votes = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    labels, own = in_model_order(MIXED | dict(votes=votes), ('neutral', 'fear', 'anger'))
    assert labels.tolist() == [2, 1, 0]
    assert own.tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert in_model_order(MIXED, EXPRESSIONS)[1] is None                # no votes
    assert in_model_order(MIXED | dict(votes=votes), EXPRESSIONS)[1] is None    # not of all classes


def test_two_more_columns_of_votes_are_left_out(drawn):
    votes = np.arange(30).reshape(3, 10)
    found = in_model_order(dict(images=drawn.images[:3], labels=[0, 1, 2], votes=votes),
                           EXPRESSIONS[:7])[1]
    assert_array_equal(found, votes[:, :7])


@pytest.mark.parametrize('data, classes, why', [
    (MIXED, ('anger', 'fear'), '1 of 3 faces show neutral'), (MIXED | dict(labels=[0]),
     EXPRESSIONS, '1 labels for 3'), (MIXED | dict(labels=[0, 1, 3]), EXPRESSIONS, '0 and 2')])
def test_labels_that_cannot_be_judged_are_named(data, classes, why):
    with pytest.raises(GrefelError, match=why): in_model_order(data, classes)


@pytest.mark.parametrize('notes, words', [
    (dict(source='/x/ferplus', rule='majority'), 'ferplus, valid split, majority rule'),
    (dict(source='jaffe', rule='label'), 'jaffe, valid split'),
    ({}, 'faces in memory, valid split')])
def test_faces_are_named_by_source_split_and_rule(notes, words):
    assert faces_in_words(dict(notes=notes, split='valid')) == words


@pytest.fixture
def file(nano, tmp_path):
    return save_model(nano, tmp_path/'a.safetensors', half=True, kept='yes')


def test_a_calibrated_copy_answers_tempered_and_keeps_its_tensors(file, drawn, tmp_path):
    notes = calibrate_weights(file, drawn, tmp_path/'b.safetensors')
    copy, raw = load_model(tmp_path/'b.safetensors'), final(load_model(file), drawn)
    assert {**notes, 'kept': 'yes'}.items() <= copy.metadata.items()
    assert notes['temperature'] != 1 and notes['risk_from'].startswith(faces_in_words(drawn))
    assert_allclose(final(copy, drawn), apply_temperature(raw, notes['temperature']), atol=1e-6)
    with safe_open(str(file), 'pt') as a, safe_open(str(tmp_path/'b.safetensors'), 'pt') as b:
        for k in a.keys():
            old, new = a.get_tensor(k), b.get_tensor(k)
            assert torch.equal(old, new) and old.dtype == new.dtype


def test_a_temperature_is_fitted_to_untempered_answers(file, drawn):
    add_metadata(file, file, temperature=3.)
    raw = final(load_model(file), drawn, temperature=1)
    labels = in_model_order(drawn, EXPRESSIONS)[0]
    before = calibrate_weights(file, drawn)['calibration']['nll'][0]
    assert before == pytest.approx(nll_values(raw, labels).mean())


def test_a_calibration_with_the_flip_is_another_one_and_noted(file, drawn, tmp_path):
    plain = calibrate_weights(file, drawn)
    flipped = calibrate_weights(file, drawn, tmp_path/'c.safetensors', flip_test=True)
    assert (plain['flip_test'], flipped['flip_test']) == (False, True)
    assert flipped['calibration']['nll'][0] != plain['calibration']['nll'][0]
    copy = load_model(tmp_path/'c.safetensors')
    assert answer_settings(copy) == dict(flip_test=True, balanced=0)


@pytest.mark.parametrize('flip_test, kept', [(False, dict(accuracy=.9)), (True, None)])
def test_metrics_of_other_settings_do_not_stay(file, drawn, tmp_path, flip_test, kept):
    add_metadata(file, file, validation=dict(accuracy=.9))
    calibrate_weights(file, drawn, tmp_path/'e.safetensors', flip_test=flip_test)
    with safe_open(str(tmp_path/'e.safetensors'), 'pt') as f:
        assert json.loads(f.metadata()['grefel'])['validation'] == kept


def test_nothing_is_noted_in_files_of_other_kinds(tmp_path):
    foreign = tmp_path/'foreign.safetensors'
    save_file({'w': torch.zeros(2)}, str(foreign))
    before = foreign.read_bytes()
    with pytest.raises(GrefelError, match='foreign.safetensors'):
        add_metadata(foreign, foreign, temperature=2.)
    assert foreign.read_bytes() == before
