"""The evaluator answers as its predictor does, and counts what helped and what hurt."""
import json
import math

import numpy as np
import pytest
from skimage.data import astronaut

from grefel.base.core import GrefelError
from grefel.data.faces import load_faces
from grefel.measure.answers import predict_data, stored_temperature, tempered
from grefel.measure.report import evaluate
from grefel.use.evaluator import GReFELEvaluator

HOWS = [dict(flip_test=True, balanced=0.), dict(flip_test=False, balanced=.6)]


@pytest.fixture(scope='module')
def faces(): return load_faces('synth', 'valid', n=60)


@pytest.fixture(scope='module')
def evaluator(): return GReFELEvaluator()


def numbers(metrics):
    return {k: v for k, v in metrics.items() if isinstance(v, float) and 'seconds' not in k}


# One image

def test_one_image_gives_the_record_of_its_largest_face(evaluator):
    answer = evaluator.predict_single_image(astronaut())
    face, = evaluator.predictor(astronaut())
    assert answer == face.as_dict() | dict(faces=1)
    json.dumps(answer)


def test_where_no_face_is_found_there_are_none(evaluator):
    answer = evaluator.predict_single_image(np.full((200, 200, 3), 128, np.uint8))
    assert (answer['faces'], answer['face_found']) == (0, False)


# Changes

PAIR = dict(primary_probs=np.array([[.8, .2], [.6, .4], [.3, .7]]),
            final_probs=np.array([[.9, .1], [.4, .6], [.6, .4]]))


def test_without_labels_the_share_of_changed_answers_is_told(evaluator):
    found = evaluator.analyze_reliability_balancing(PAIR)
    assert found == dict(n=3, changed=2, change_rate=pytest.approx(2/3))
    with_labels = evaluator.analyze_reliability_balancing(PAIR, labels=[0, 1, 1])
    assert with_labels['change_rate'] == found['change_rate'] and with_labels['helped'] == 1


@pytest.mark.parametrize('lacking', ['primary_probs', 'final_probs'])
def test_what_a_dict_lacks_is_named(evaluator, lacking):
    with pytest.raises(GrefelError, match=f'{lacking}: missing'):
        evaluator.analyze_reliability_balancing({k: v for k, v in PAIR.items() if k != lacking})


# A data set

@pytest.mark.parametrize('how', HOWS)
def test_a_data_set_is_scored_in_the_predictors_way(evaluator, faces, how):
    model = evaluator.predictor.model
    found = numbers(GReFELEvaluator(model, **how).evaluate(faces, bootstrap=20))
    want = numbers(evaluate(model, faces, bootstrap=20, **how))
    usual = numbers(evaluate(model, faces, bootstrap=20))
    assert found.keys() == want.keys() and found == pytest.approx(want, nan_ok=True)
    assert found['ece'] != pytest.approx(usual['ece'], abs=1e-6)   # so the way does matter here


def test_what_you_ask_for_in_the_call_goes_before(evaluator, faces):
    model = evaluator.predictor.model
    found = GReFELEvaluator(model, flip_test=True).evaluate(faces, bootstrap=20, flip_test=False)
    want = evaluate(model, faces, bootstrap=20, flip_test=False)
    assert found['ece'] == pytest.approx(want['ece'])


def test_a_source_is_read_in_the_models_classes(monkeypatch, evaluator):
    heard = {}

    def load(*args, **kw):
        heard.update(args=args, **kw)
        return load_faces('synth', 'valid', n=20)
    monkeypatch.setattr('grefel.data.faces.load_faces', load)
    evaluator.evaluate('ferplus', 'test', bootstrap=5)
    assert heard == dict(args=('ferplus', 'test'), num_classes=8)


def test_a_report_is_written_where_asked(evaluator, faces, tmp_path):
    evaluator.evaluate(faces, out=tmp_path/'report', bootstrap=5)
    names = {p.name for p in (tmp_path/'report').iterdir()}
    assert {'report.html', 'metrics.json', 'predictions.csv'} <= names


def test_onnx_answers_images_but_scores_no_data_sets(faces):
    onnx = GReFELEvaluator(backend='onnx')
    assert onnx.predict_single_image(astronaut())['emotion'] == 'happiness'
    for ask in (onnx.evaluate, onnx.analyze_reliability_balancing):
        with pytest.raises(GrefelError, match="need 'torch'"): ask(faces)


# What balancing changed

A, B = [.8, .2], [.3, .7]


def test_helped_hurt_and_neutral_are_told_apart(evaluator):
    "Different numbers of each, so that none can stand for another."
    #          helped   hurt     neutral        unchanged
    primary = [A]*3 + [B]*2 + [[.5, .3, .2]] + [A]
    final   = [B]*3 + [A]*2 + [[.3, .5, .2]] + [A]
    labels  = [1]*3 + [1]*2 + [2]            + [0]
    primary, final = ([p + [0]*(3 - len(p)) for p in probs] for probs in (primary, final))
    data = dict(primary_probs=np.array(primary), final_probs=np.array(final))
    for report in (evaluator.analyze_reliability_balancing(data, labels=labels),
                   evaluator.analyze_reliability_balancing(data | dict(labels=labels))):
        counts = [report[k] for k in ('n', 'changed', 'helped', 'hurt', 'neutral')]
        assert counts == [7, 6, 3, 2, 1]
        assert report['change_rate'] == pytest.approx(6/7)


@pytest.mark.parametrize('how', HOWS)
def test_a_data_set_is_analyzed_in_the_predictors_way(evaluator, faces, how):
    model = evaluator.predictor.model
    found = GReFELEvaluator(model, **how).analyze_reliability_balancing(faces)
    answers = tempered(predict_data(model, faces, temperature=1, **how), stored_temperature(model))
    before, after = (answers[f'{k}_probs'].argmax(1) for k in ('primary', 'final'))
    labels = np.asarray(faces.labels)
    helped, hurt = (before != labels) & (after == labels), (before == labels) & (after != labels)
    counts = [(before != after).sum(), helped.sum(), hurt.sum()]
    assert [found[k] for k in ('changed', 'helped', 'hurt')] == counts
    assert found['primary_accuracy'] == pytest.approx((before == labels).mean())


def test_the_way_of_answering_changes_what_is_analyzed(evaluator, faces):
    "Or the test above could not tell."
    model, keys = evaluator.predictor.model, ('primary_accuracy', 'changed', 'helped', 'hurt')
    usual = evaluator.analyze_reliability_balancing(faces)
    for how in HOWS:
        other = GReFELEvaluator(model, **how).analyze_reliability_balancing(faces)
        assert any(usual[k] != other[k] for k in keys)


# Is it surer when it is right?

@pytest.mark.parametrize('confidences, right, separation', [
    ([.9, .8, .3, .2], [1, 1, 0, 0], 1.),      # every right answer is surer
    ([.2, .3, .8, .9], [1, 1, 0, 0], 0.),
    ([.5]*4, [1, 1, 0, 0], .5),                # ties count half
    ([.9, .4, .6, .1], [1, 1, 0, 0], .75),     # three of four pairs
    ([.9, .4], [1, 1], math.nan),
])
def test_separation_is_the_share_of_pairs_in_order(evaluator, confidences, right, separation):
    labels = [1]*len(right)
    found = evaluator.analyze_confidence_distribution(confidences, right, labels, plot=False)
    assert found['separation'] == pytest.approx(separation, nan_ok=True)
    assert (found['n'], found['figure']) == (len(right), None)


def test_the_summary_of_confidences(evaluator):
    found = evaluator.analyze_confidence_distribution([.9, .7, .4], list('aba'), list('abb'))
    assert found['accuracy'] == pytest.approx(2/3)
    assert found['mean_confidence_right'] == pytest.approx(.8)
    assert found['mean_confidence_wrong'] == pytest.approx(.4)
    assert found['gap'] == pytest.approx(0)   # as sure as it is right
    assert found['figure'].axes


@pytest.mark.parametrize('confidences, predictions', [
    ([.5], [1, 2]), ([[.5, .5]], [1, 2]), ([], [])])
def test_what_does_not_fit_together_is_refused(evaluator, confidences, predictions):
    with pytest.raises(GrefelError, match='do not fit'):
        evaluator.analyze_confidence_distribution(confidences, predictions, predictions)


@pytest.mark.parametrize('name', [
    'plot_confusion', 'plot_classwise', 'plot_history', 'plot_confidence'])
def test_the_plots_are_those_of_the_measure_part(monkeypatch, name):
    monkeypatch.setattr(f'grefel.measure.plots.{name}', lambda *args, **kw: (args, kw))
    assert getattr(GReFELEvaluator, name)(1, b=2) == ((1,), dict(b=2))


# Other data sets

def test_faces_come_in_the_models_classes_and_others_are_counted(monkeypatch, faces):
    from types import SimpleNamespace
    from grefel.use.evaluator import faces_for
    monkeypatch.setattr('grefel.data.faces.load_faces', lambda *args, **kw: faces)
    wanted = ('surprise', 'happiness')
    found = faces_for(SimpleNamespace(classes=wanted), 'anything')
    own = [faces.classes[k] for k in faces.labels.tolist()]
    assert found.classes == wanted and len(found) == sum(c in wanted for c in own)
    assert found.notes['other_classes'] == {
        c: own.count(c) for c in dict.fromkeys(own) if c not in wanted}


def test_a_model_with_names_of_its_own_reads_labels_by_them(monkeypatch, faces):
    from types import SimpleNamespace
    from grefel.use.evaluator import faces_for
    asked = {}
    def load(*args, **kw):
        asked.update(kw)
        return faces
    monkeypatch.setattr('grefel.data.faces.load_faces', load)
    with pytest.raises(GrefelError): faces_for(SimpleNamespace(classes=('calm', 'tense')), 'x')
    assert asked['classes'] == ('calm', 'tense')


def test_em_by_name_moves_answers(evaluator, faces):
    plain, moved = (evaluator.evaluate(faces, bootstrap=0, prior=p) for p in (None, 'em'))
    assert moved['prior'] == 'em' and 'prior' not in plain and moved['nll'] != plain['nll']
