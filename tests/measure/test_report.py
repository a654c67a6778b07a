"""One call writes three files that agree with each other, and says where its numbers come from."""
import csv
import json
import re
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from grefel.base.core import GrefelError
from grefel.data.faces import load_faces
from grefel.measure import report as room
from grefel.measure.answers import predict_data
from grefel.measure.calibration import apply_temperature
from grefel.measure.report import _fitted_here, _seen, evaluate
from grefel.measure.scores import all_keys, explain_key
from tests.helpers import needs_ferplus


@pytest.fixture(scope='module')
def run(reader, grouped, tmp_path_factory):
    "The folder of a report, and what the call returned."
    out = tmp_path_factory.mktemp('report')
    (out/'history.csv').write_text('epoch,valid_loss,accuracy\n0,2.9,0.41\n1,2.3,0.58\n')
    m = evaluate(reader, grouped, out=out, history=out/'history.csv', title='A stand-in',
                 bootstrap=50)
    return SimpleNamespace(m=m, out=out, page=(out/'report.html').read_text())


def test_the_json_file_is_what_the_call_returned(run):
    assert json.loads((run.out/'metrics.json').read_text()) == run.m


def test_every_key_of_a_report_is_explained_on_its_page(run):
    for key in all_keys(run.m): assert explain_key(key) and f'{key}<' in run.page, key


def test_rows_of_predictions_add_up(run):
    rows = list(csv.DictReader((run.out/'predictions.csv').open()))
    assert len(rows) == run.m['n']
    assert np.mean([int(r['correct']) for r in rows]) == pytest.approx(run.m['accuracy'])
    assert sum(r['predicted'] != r['primary'] for r in rows) == run.m['changed'] > 0


def test_the_page_needs_nothing_else(run):
    links = set(re.findall(r'(?:src|href|srcset)="([^"]*)"', run.page))
    assert {k for k in links if not k.startswith(('data:image/png', '#'))} == {
        'metrics.json', 'predictions.csv'}
    assert '<script' not in run.page


def test_every_plot_is_described_and_every_table_named(run):
    assert run.page.count('<img ') == run.page.count(' alt="') > 20
    assert ' alt=""' not in run.page
    assert run.page.count('<table>') == run.page.count('<caption>') > 8


def test_the_page_shows_the_metrics_and_its_title(run):
    assert '<h1>A stand-in</h1>' in run.page
    for k in ('accuracy', 'accuracy_low', 'balanced_accuracy', 'accuracy_at_90'):
        assert f'{run.m[k]:.1%}' in run.page, k
    assert 'Training history' in run.page and 'Accuracy by eyes' in run.page


@pytest.mark.parametrize('rule, said', [('majority', ', labels by majority'), ('label', ''),
                                        (None, '')])
def test_a_rule_is_named_only_where_labels_were_made_by_one(run, monkeypatch, rule, said):
    monkeypatch.setattr(room, 'render_page', lambda title, about, *rest: about)
    for part in ('_class_plots', '_confidence_plots', '_other_plots', '_galleries'):
        monkeypatch.setattr(room, part, lambda *args: [])
    m = run.m | dict(rule=rule)
    about = room.report_html(m, None, dict(final_probs=None), None)
    assert about == (f"{m['n']} faces · {m['source']}, {m['split']} split{said} · "
                     f"model {m['model']}")


def test_nothing_is_left_open(run): assert plt.get_fignums() == []


def test_without_a_folder_nothing_is_written(reader, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(reader, drawn, bootstrap=0)['n'] == 60 and not list(tmp_path.iterdir())


@pytest.fixture
def quick_page(monkeypatch):
    "A page that takes no time, for tests that are not about what is on it."
    monkeypatch.setattr(room, 'report_html', lambda m, *args: f'page of {m["n"]}')


def test_the_report_is_written_last(reader, drawn, tmp_path, quick_page):
    order = []
    def note(file, text): order.append(file.name)
    with mock.patch.object(room, 'write_file', side_effect=note):
        evaluate(reader, drawn, out=tmp_path, bootstrap=0)
    assert order[-1] == 'report.html' and len(order) == 3


def test_a_full_disk_leaves_the_old_report_whole(reader, drawn, tmp_path, quick_page):
    evaluate(reader, drawn, out=tmp_path, bootstrap=0)
    full = OSError(28, 'No space left on device')
    with mock.patch('grefel.base.core.os.fsync', side_effect=full):
        with pytest.raises(Exception, match='No space left'):
            evaluate(reader, drawn.subset(range(9)), out=tmp_path, bootstrap=0)
    assert (tmp_path/'report.html').read_text() == 'page of 60'


def test_names_are_escaped_and_little_data_is_enough(reader, grouped, tmp_path):
    few = grouped.subset(range(9))
    few.names, few.notes, few.votes = ['<script>alert(1)</script>', *few.names[1:]], {}, None
    few.landmarks = torch.full((9, 68, 2), float('nan'))
    m = evaluate(reader, few, out=tmp_path, bootstrap=20, landmarks='given', bs=4)
    page = (tmp_path/'report.html').read_text()
    assert '<script' not in page and '&lt;script' in page
    assert 'kl_votes' not in m and m['source'] == 'faces in memory'


def test_groups_have_their_tables_and_nothing_else_asks_for_one(reader, grouped, drawn, tmp_path):
    def shown(faces):
        evaluate(reader, faces, out=tmp_path, bootstrap=0)
        return 'Groups by eyes' in (tmp_path/'report.html').read_text()
    assert shown(grouped.subset(range(60))) and not shown(drawn)


def test_one_face_is_a_set(reader, drawn, tmp_path):
    one = dict(images=drawn.images[:1], labels=drawn.labels[:1])
    assert evaluate(reader, one, out=tmp_path, bootstrap=5)['n'] == 1
    assert evaluate(reader, one, groups=(), bootstrap=5)['groups'] == {}


def test_a_missing_history_or_folder_is_named(reader, drawn, tmp_path, quick_page):
    with pytest.raises(GrefelError, match='none.csv'):
        evaluate(reader, drawn, history=tmp_path/'none.csv')
    (tmp_path/'a file').write_text('')
    with pytest.raises(GrefelError, match='a file'):
        evaluate(reader, drawn, out=tmp_path/'a file', bootstrap=0)


def test_progress_is_passed_on(reader, drawn):
    heard = []
    evaluate(reader, drawn, bootstrap=0, progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (60, 60)


def test_a_stored_temperature_tempers_both_distributions(nano, drawn):
    raw = evaluate(nano, drawn, bootstrap=0)
    nano.metadata = dict(temperature=0.25)
    m = evaluate(nano, drawn, bootstrap=0)
    probs = predict_data(nano, drawn, temperature=1)
    for prefix, name in (('', 'final'), ('primary_', 'primary')):
        sharp = apply_temperature(probs[f'{name}_probs'], 0.25).max(1).mean()
        assert m[f'{prefix}mean_confidence'] == pytest.approx(sharp, abs=1e-6)
    assert m['temperature'] == 0.25 and m['untempered_nll'] == pytest.approx(raw['nll'])


def test_only_validation_faces_are_crossfitted(reader):
    faces = {split: load_faces('synth', split=split, n=60) for split in ('train', 'valid', 'test')}
    have = {k: 'crossfit_ece' in evaluate(reader, d, bootstrap=0) for k, d in faces.items()}
    assert have == dict(train=False, valid=True, test=False)


def test_duplicates_stay_in_one_fold(reader, drawn, monkeypatch):
    def note(probs, labels, votes, groups, bootstrap):
        seen.extend(groups)
        return {}
    seen, faces = [], drawn.subset(list(range(30)) + [4])
    monkeypatch.setattr(room, 'crossfit', note)
    evaluate(reader, faces, bootstrap=0)
    assert seen[30] == seen[4] and len(set(seen)) == 30


def test_thresholds_belong_to_the_settings_they_were_calibrated_with(nano, drawn):
    nano.metadata = dict(temperature=2., risk=[[0.5, 0.1, 1.]])
    calibrated, other = (evaluate(nano, drawn, bootstrap=0, flip_test=f) for f in (False, True))
    assert calibrated['risk'][0]['threshold'] == 0.1 and calibrated['fitted_here']
    assert other['risk'] == [] and not other['fitted_here']
    assert (calibrated['flip_test'], other['flip_test']) == (False, True)


def faces(split, source='/x/ferplus', rule='majority'):
    return dict(split=split, notes=dict(source=source, rule=rule))


def model(**metadata): return SimpleNamespace(metadata=metadata)


@pytest.mark.parametrize('data, want', [
    (faces('train'), 'trained'), (faces('all'), 'trained'), (faces('valid'), 'chosen'),
    (faces('test'), 'no'), (faces('test', 'rafdb'), 'other'), (dict(split='train'), None)])
def test_weights_know_faces_by_the_name_of_their_source(data, want):
    assert _seen(model(recipe=dict(data='ferplus')), data) == want


@pytest.mark.parametrize('metadata, want', [
    ({}, None), (dict(recipe=dict(data=None)), None),
    (dict(recipe=dict(data='rafdb'), before=[dict(data='ferplus')]), 'trained'),
    (dict(recipe=dict(data='rafdb'), taught_by=[dict(data='ferplus')]), 'trained')])
def test_earlier_stages_and_teachers_count(metadata, want):
    assert _seen(model(**metadata), faces('train')) == want


@pytest.mark.parametrize('metadata, split, want', [
    ({}, 'valid', False), (dict(temperature=2), 'valid', True),
    (dict(temperature=2), 'test', False),
    (dict(risk=[[.1, .9, .5]]), 'valid', True),
    (dict(temperature=2, risk_from='ferplus, valid split, majority rule, 3 faces'), 'valid', True),
    (dict(temperature=2, risk_from='rafdb, valid split, 3 faces'), 'valid', False)])
def test_whether_a_temperature_was_fitted_on_these_faces(metadata, split, want):
    assert _fitted_here(model(**metadata), faces(split)) == want


@needs_ferplus
@pytest.mark.slow
def test_the_shipped_weights_do_on_ferplus_what_is_said_of_them():
    from grefel.method.files import load_model
    m = evaluate(load_model(), load_faces('ferplus', split='valid'), bootstrap=0)
    assert m['n'] == 3191 and 0.86 < m['accuracy'] < 0.9


# ---- Other data sets

def to(model, data, **kw): return evaluate(model, data, bootstrap=0, **kw)


def test_only_classes_that_occur_can_be_answers(reader, drawn):
    happy = drawn.subset(np.isin(drawn.labels.numpy(), [1, 2]))
    m = to(reader, happy, only_present=True)
    assert m['left_out'] == [c for c in reader.classes if c not in ('happiness', 'surprise')]
    assert np.array(m['confusion'])[:, [0, *range(3, 8)]].sum() == 0
    assert m['accuracy'] >= to(reader, happy)['accuracy']


@pytest.mark.parametrize('prior, wanted', [
    ('equal', [.25, .25, .5]), ('file', [.15, .3, .45]), (lambda p, present: [0, 1, 1], None)])
def test_probabilities_move_as_bayes_says(prior, wanted):
    probs = np.array([[.5, .25, .25]])
    about = dict(data=dict(train=dict(per_class=[60, 30, 15])))
    factors = room._factors(prior, probs, np.array([0, 1, 1, 2, 2, 2]), about, np.ones(3, bool))
    known = np.array([60, 30, 15])/105
    target = dict(equal=np.full(3, 1/3), file=np.array([1, 2, 3])/6).get(
        prior if isinstance(prior, str) else '', known*[0, 1, 1])
    moved = room._move(dict(final_probs=probs), factors)['final_probs'][0]
    expected = probs[0]*target/known
    np.testing.assert_allclose(moved, expected/expected.sum())


def test_without_a_wish_answers_stay_bit_by_bit(reader, drawn):
    found = dict(final_probs=predict_data(reader, drawn)['final_probs'])
    assert room._move(found, np.ones(8))['final_probs'] is found['final_probs']


@pytest.mark.parametrize('prior, said', [
    ('em', 'em_prior'), ('equal', 'do not say how often')])
def test_a_prior_that_cannot_be_is_told(reader, drawn, prior, said):
    with pytest.raises(GrefelError, match=said): to(reader, drawn, prior=prior)


def test_moved_answers_are_not_held_against_stored_promises(nano, drawn):
    nano.metadata = dict(risk=[[.1, .5, .5]], data=dict(train=dict(per_class=[1]*8)))
    assert to(nano, drawn)['risk'] and to(nano, drawn, prior='file')['risk'] == []
    assert 'crossfit_ece' in to(nano, drawn) and 'crossfit_ece' not in to(nano, drawn, prior='file')


def test_what_the_weights_know_of_their_training_is_compared(nano, drawn):
    nano.metadata = dict(validation=dict(ece=.02), data=dict(train=dict(per_class=[9]+[0]*7)))
    m = to(nano, drawn)
    assert m['stored_ece'] == .02 and 'strangers' not in m
    assert m['shares_apart'] == pytest.approx((drawn.labels.numpy() != 0).mean())
    nano.metadata = {}
    assert not {'shares_apart', 'strangers', 'stored_ece'} & set(to(nano, drawn))


def test_new_keys_are_explained(): assert all(explain_key(k) for k in (
    'shares_apart', 'strangers', 'stored_ece', 'left_out', 'prior'))
