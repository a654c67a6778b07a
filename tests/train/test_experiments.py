"""Tables of runs: descriptions, lines that stand until they mean something else, statistics."""
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from grefel.base.core import GrefelError
from grefel.measure.answers import predict_data
from grefel.measure.corruptions import CORRUPTIONS, robustness
from grefel.measure.metrics import vote_divergence
from grefel.measure.scores import measure
from grefel.method.files import load_model, weights_digest
from grefel.train import experiments
from grefel.train.experiments import (
    COLUMNS, FLIPS, METRICS, commit, difference_panels, differences, model_cost,
    paired_difference, processor, read_results, read_spec, recall_table, results_table, run_facts,
    run_row, run_table, spread_table, summary)
from grefel.train.runs import read_recipe, training_faces


@pytest.fixture
def spec(data, tmp_path):
    "The path of a description of two rows."
    def write(**changes):
        base = dict(data=data, size='plain', epochs=1, bs=32, model=dict(widths=[8, 8, 8, 8]))
        text = dict(question='Does a higher rate help?', base=base, seeds=[0, 1],
                    rows={'plain': {}, 'fast': dict(lr=1e-2, model=dict(drop_rate=0.))})
        path = tmp_path/'rates.json'
        path.write_text(json.dumps(text | changes))
        return path
    return write


# --- descriptions ---

def test_rows_change_the_base_and_their_dictionaries_are_joined(spec):
    found = read_spec(spec())
    assert found['name'] == 'rates' and list(found['recipes']) == ['plain', 'fast']
    assert found['recipes']['fast'].lr == 1e-2 != found['recipes']['plain'].lr
    assert found['recipes']['fast'].model == dict(widths=[8, 8, 8, 8], drop_rate=0.)
    assert found['recipes']['plain'].model == dict(widths=[8, 8, 8, 8])


def test_the_long_budget_changes_the_base_and_the_name(spec):
    path = spec(long=dict(epochs=20, model=dict(drop_rate=.3)))
    found = read_spec(path, long=True)
    assert found['name'] == 'rates_long'
    assert {r.epochs for r in found['recipes'].values()} == {20}
    assert found['recipes']['plain'].model['drop_rate'] == .3
    assert found['recipes']['fast'].model['drop_rate'] == 0.  # a row has the last word
    assert read_spec(path)['recipes']['plain'].epochs == 1


def test_under_the_long_budget_another_size_has_its_own_changes(spec):
    wide = dict(model=dict(widths=[16, 16, 16, 16], drop_rate=.3))
    path = spec(long=dict(size='small', epochs=20, sizes=dict(plain=wide)),
                rows={'grefel': {}, 'plain': dict(size='plain'),
                      'sure': dict(size='plain', model=dict(drop_rate=0.))})
    found = read_spec(path, long=True)['recipes']
    assert [r.size for r in found.values()] == ['small', 'plain', 'plain']
    assert found['grefel'].model == dict(widths=[8, 8, 8, 8])  # the base's, not another size's
    assert found['plain'].model == wide['model']
    assert found['sure'].model == dict(widths=[16, 16, 16, 16], drop_rate=0.)
    assert read_spec(path)['recipes']['plain'].model == dict(widths=[8, 8, 8, 8])


@pytest.mark.parametrize('long, words', [
    (dict(sizes=dict(vgg13={})), "long changes size 'vgg13', which no row names"),
    ('sixty', 'rates.json: ')])
def test_a_long_budget_that_can_not_be_meant_is_refused_in_one_line(spec, long, words):
    with pytest.raises(GrefelError, match=words): read_spec(spec(long=long), long=True)


@pytest.mark.parametrize('text, message', [
    ('{', 'not a readable description'), ('{"rows": {}}', 'lacks question, base, seeds'),
    ('[]', 'lacks rows'),
    ('{"question": "", "seeds": [0], "base": {}, "rows": {"a": {"epocs": 3}}}', 'epocs'),
    ('{"question": "", "seeds": [0], "base": {}, "rows": {"a": {"epochs": 0}}}', 'epochs is 0'),
    ('{"question": "", "seeds": [0], "base": {}, "rows": {"a": 3}}', 'bad.json: '),
    ('{"question": "", "seeds": [0], "base": {}, "rows": {"K = 1": {}, "K _ 1": {}}}',
     "rows 'K = 1' and 'K _ 1' would share a folder")])
def test_what_is_wrong_with_a_description_is_named(tmp_path, text, message):
    bad = tmp_path/'bad.json'
    bad.write_text(text)
    with pytest.raises(GrefelError, match=message): read_spec(bad)


def test_a_long_budget_has_to_be_there(spec):
    with pytest.raises(GrefelError, match='names no long budget'): read_spec(spec(), long=True)


def test_every_description_of_this_project_can_be_read():
    folder = Path(__file__).parents[2]/'nbs'/'8_experiments'
    if not folder.is_dir(): pytest.skip('an installed package has no experiments')
    paths = sorted(folder.glob('E*.json'))
    assert len(paths) > 5
    for path in paths:
        assert len(read_spec(path)['rows']) > 1, path
        if 'long' in json.loads(path.read_text()): read_spec(path, long=True)


# --- one run ---

def test_costs_are_counted():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(),
                              torch.nn.Linear(5*64, 7))
    net.config = dict(img_size=8)
    assert model_cost(net) == dict(params=3*5*9 + 5 + 320*7 + 7, macs=64*3*5*9 + 320*7)


def test_the_machine_has_a_name():
    assert processor().endswith(f'{torch.get_num_threads()} threads')
    assert commit() == '' or len(commit().rstrip('+')) == 12


def test_a_line_says_what_the_kept_weights_do(recipe, tmp_path):
    result = run_row(recipe(), tmp_path/'one')
    assert set(result) == set(COLUMNS) - {'row', 'seed', *FLIPS}
    model, faces = load_model(tmp_path/'one'), training_faces(recipe(), 'valid')
    expected = measure(predict_data(model, faces), faces.labels.numpy(), faces.classes, bootstrap=0)
    assert result['n'] == len(faces) == 96
    for name in ('accuracy', 'nll', 'ece'): assert result[name] == pytest.approx(expected[name])
    history = pd.read_csv(tmp_path/'one'/'history.csv')
    assert result['accuracy'] == pytest.approx(history.accuracy.max(), abs=1e-5)
    assert result['best_epoch'] == history.accuracy.idxmax()
    assert result['last_accuracy'] == history.accuracy.iloc[-1]
    assert sum(result['shots']) == 96 and result['anchors_used'] is None
    assert result['recipe'] == asdict(recipe())


def test_a_finished_line_is_not_run_again_and_another_recipe_is(recipe, tmp_path, monkeypatch):
    result = run_row(recipe(epochs=1), tmp_path/'one')
    trained = []
    def spying(*args, real=experiments.train): return trained.append(args[0]) or real(*args)
    monkeypatch.setattr(experiments, 'train', spying)
    assert run_row(recipe(epochs=1), tmp_path/'one') == result
    assert trained == []
    assert run_row(recipe(epochs=1, lr=.1), tmp_path/'two')['recipe']['lr'] == .1
    assert [r.lr for r in trained] == [.1]


def test_mirror_images_are_looked_at_if_the_recipe_says(recipe, tmp_path):
    flipped = recipe(epochs=1, flip_test=True)
    result = run_row(flipped, tmp_path/'one')
    faces = training_faces(flipped, 'valid')
    model = load_model(tmp_path/'one')
    nll = [measure(predict_data(model, faces, flip_test=flip), faces.labels.numpy(), faces.classes,
                   bootstrap=0)['nll'] for flip in (True, False)]
    assert result['nll'] == pytest.approx(nll[0], abs=1e-6) and abs(nll[0] - nll[1]) > 1e-5


def test_used_anchors_are_counted(data, tmp_path):
    nano = read_recipe(data=data, size='nano', img_size=32, epochs=1, limit=16, bs=8,
                       model=dict(num_anchors_per_class=3))
    assert 0 < run_row(nano, tmp_path/'one')['anchors_used'] <= 3


def test_label_noise_is_looked_for(recipe, tmp_path):
    pytest.importorskip('cleanlab', reason='cleanlab is not installed')
    result = run_row(recipe(epochs=1, targets='hard', noise='symmetric', noise_share=.25),
                     tmp_path/'one')
    assert all(0 <= result[name] <= 1 for name in FLIPS)


# --- tables of runs ---

def test_a_table_runs_what_is_missing_and_goes_on_after_a_failure(spec, tmp_path):
    # for real: each run is a process of its own
    path = spec(rows={'no such data': dict(data='nowhere.parquet'), 'plain': {}})
    said = []
    with pytest.raises(GrefelError, match='1 of 2 runs failed; the first: no such data, seed 0'):
        run_table(path, runs=tmp_path/'runs', seeds=[0], jobs=2, log=said.append)
    assert len(said) == 2 and 'nowhere.parquet' in said[0] and said[1].startswith('plain, seed 0: ')
    found = read_results(tmp_path/'rates.csv')
    assert found.row.tolist() == ['plain'] and list(found.columns) == list(COLUMNS)
    assert found.recipe[0] == asdict(read_spec(path)['recipes']['plain'])
    again = run_table(path, runs=tmp_path/'runs', seeds=[0], only=['plain'], log=said.append)
    assert len(said) == 2 and again.equals(found)
    with pytest.raises(GrefelError, match="has no row 'plan'; it has no such data, plain"):
        run_table(path, only=['plan'])


def test_two_trials_stand_beside_what_came_out(spec, tmp_path, monkeypatch):
    asked = []

    def shown(model, faces, which, *args, **how):
        asked.append([CORRUPTIONS[kind][1][severity - 1] for kind, severity in which])
        return robustness(model, faces, which, *args, **how)
    monkeypatch.setattr(experiments, 'robustness', shown)
    recipe = read_spec(spec())['recipes']['plain']
    result = run_row(recipe, tmp_path/'run')
    assert asked == [[10]]   # of 255
    faces = training_faces(recipe, 'valid')
    row, = robustness(load_model(tmp_path/'run'), faces, [('noise', 2)])
    assert result['noisy_accuracy'] == row['accuracy'] and result['augrc'] <= result['aurc']


def test_a_temperature_from_other_faces_votes_brings_answers_nearer_to_them():
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, [.6, .4], 200)
    labels = torch.zeros(200, dtype=int)   # a temperature fitted to them would do harm
    faces = SimpleNamespace(labels=labels,
                            images=torch.randint(0, 256, (200, 1, 4, 4), dtype=torch.uint8))
    sure = np.tile([[.99, .01]], (200, 1))
    raw = np.nanmean(vote_divergence(sure, votes)[0])
    assert experiments._tempered_kl(sure, faces, votes) < .2*raw
    assert experiments._tempered_kl(sure, faces, None) is None


class Started(list):
    "Runs that are started: (seed, rate, folder). Each ends at once with the same result."
    weights = None

    def process(self, command, input, **kw):
        recipe, folder, *_ = json.loads(input)
        self.append((recipe['seed'], recipe['lr'], Path(folder)))
        result = {name: .5 for name in METRICS} | dict(
            recipe=recipe, weights=self.weights, n=96, recalls=[.5], shots=[96], best_epoch=0,
            last_accuracy=.4, params=10, macs=10, seconds=1., images_per_s=96., commit='',
            machine='', torch='', date='2026-01-01')
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder)/'result.json').write_text(json.dumps(result))
        return SimpleNamespace(returncode=0)


@pytest.fixture
def started(monkeypatch):
    runs = Started()
    monkeypatch.setattr(experiments.subprocess, 'run', runs.process)
    return runs


def test_rows_are_run_seed_by_seed_each_in_its_folder(spec, started, tmp_path):
    found = run_table(spec(), runs=tmp_path/'runs', log=lambda line: None)
    assert [(seed, lr) for seed, lr, _ in started] == [(0, 1.5e-3), (0, 1e-2), (1, 1.5e-3),
                                                       (1, 1e-2)]
    folders = [folder.relative_to(tmp_path/'runs').as_posix() for *_, folder in started]
    assert folders == ['plain/seed0', 'fast/seed0', 'plain/seed1', 'fast/seed1']
    # the CSV is in the order of rows
    assert list(zip(found.row, found.seed)) == [('plain', 0), ('plain', 1), ('fast', 0),
                                                ('fast', 1)]


def test_a_row_that_changed_is_run_again_and_the_others_are_not(spec, started, tmp_path):
    how = dict(runs=tmp_path/'runs', seeds=[0], log=lambda line: None)
    run_table(spec(), **how)
    started.clear()
    found = run_table(spec(rows={'plain': {}, 'fast': dict(lr=.05)}), **how)
    assert [lr for _, lr, _ in started] == [.05]
    assert [r['lr'] for r in found.recipe] == [1.5e-3, .05]


@pytest.mark.parametrize('name, digest, again', [
    ('nano', 'its own', 0), ('nano', 'another', 1), ('gone', 'another', 0)])
def test_a_row_whose_weights_became_others_is_run_again(spec, started, tmp_path, name, digest,
                                                        again):
    own = weights_digest(load_model('nano'))
    started.weights = {name: own if digest == 'its own' else digest}
    how = dict(runs=tmp_path/'runs', seeds=[0], log=lambda line: None)
    for expected in (1, again):
        started.clear()
        run_table(spec(rows={'onward': dict(start=name, model={})}), **how)
        assert len(started) == expected


def test_a_result_stands_while_recipe_and_weights_do(tmp_path, monkeypatch):
    onward = read_recipe(start='nano', teacher='small')
    meant = {name: weights_digest(load_model(name)) for name in ('nano', 'small')}
    (tmp_path/'one').mkdir()
    def stands(result, recipe):
        (tmp_path/'one'/'result.json').write_text(json.dumps(result))
        class Trains(Exception): pass
        def train(*args): raise Trains
        monkeypatch.setattr(experiments, 'train', train)
        try: return run_row(recipe, tmp_path/'one') == result
        except Trains: return False
    kept = dict(recipe=asdict(onward))
    for weights, same in ((None, True), (meant, True), (meant | dict(small='another'), False),
                          (dict(gone='another'), True)):
        assert stands(kept | dict(weights=weights), onward) is same, weights
    assert not stands(kept, replace(onward, lr=.1))
    assert stands(kept, onward)  # a result of a version that kept no digests


def test_there_has_to_be_a_results_file(tmp_path):
    with pytest.raises(GrefelError, match='no such results file'): read_results(tmp_path/'x.csv')


# --- statistics ---

A, B = [.80, .82, .81, .83], [.80, .83, .83, .85]


@pytest.fixture
def table():
    return pd.DataFrame(dict(row=['a']*4 + ['b']*4, seed=[0, 1, 2, 3]*2, accuracy=A + B,
                             balanced_accuracy=.5, macro_f1=.5, ece=.1, seconds=60., params=10,
                             macs=100))


def test_means_and_deviations_over_seeds(table):
    found = summary(table, ['accuracy'])
    row = found.loc['b', ['seeds', 'accuracy', 'accuracy_sd', 'minutes']].tolist()
    assert row == pytest.approx([4, np.mean(B), np.std(B, ddof=1), 1.])
    assert math.isnan(summary(table[table.seed == 0], ['accuracy']).loc['a', 'accuracy_sd'])


def interval(b, a):
    found = stats.ttest_rel(b, a).confidence_interval()
    return [found.low, found.high]


def test_the_interval_of_a_difference_is_that_of_paired_seeds(table):
    d = paired_difference(table.sample(frac=1, random_state=0), 'b', 'a')
    assert [d['low'], d['high']] == pytest.approx(interval(B, A), abs=1e-12)
    assert (d['mean'], d['pairs']) == (pytest.approx(np.mean(B) - np.mean(A)), 4)


def test_a_constant_difference_has_an_interval_without_width(table):
    table.loc[table.row == 'b', 'accuracy'] = [a + .01 for a in A]
    d = paired_difference(table, 'b', 'a')
    assert [d['mean'], d['low'], d['high']] == pytest.approx([.01]*3, abs=1e-9)


def test_two_pairs_give_no_interval_and_seeds_without_a_partner_do_not_count(table):
    d = paired_difference(table[table.seed < 2], 'b', 'a')
    assert math.isnan(d['low']) and math.isnan(d['high']) and d['pairs'] == 2
    assert paired_difference(table.iloc[:-1], 'b', 'a')['pairs'] == 3
    with pytest.raises(GrefelError, match="no runs of 'c' and 'a' to compare"):
        paired_difference(table, 'c', 'a')


def test_what_runs_share_beside_the_seed_cancels_when_they_are_paired_by_it(table):
    # two kinds of noise, of which one is easier
    twice = pd.concat([table.assign(noise='x'),
                       table.assign(noise='y', accuracy=table.accuracy + .1)])
    d = paired_difference(twice, 'b', 'a', alike=('noise', 'seed'))
    assert [d['low'], d['high']] == pytest.approx(interval(B*2, A*2), abs=1e-12)
    assert (d['pairs'], d['mean']) == (8, pytest.approx(.0125))
    assert paired_difference(twice, 'b', 'a')['pairs'] == 4  # averaged over the noises


def test_tables_in_words(table):
    assert results_table(table).loc['b', 'accuracy'] == '82.8% ± 2.1'
    assert list(results_table(table).index) == ['b', 'a']  # best first
    assert list(results_table(table, by=None).index) == ['a', 'b']
    assert results_table(table).loc['a', ['ece', 'multiplications']].tolist() == ['0.100 ± 0.000',
                                                                                  '0 M']
    assert 'multiplications' not in results_table(table, costs=False)
    found = differences(table, 'a')
    assert found.loc['b', ['mean', 'pairs']].tolist() == [1.25, 4] and list(found.index) == ['b']
    assert differences(table, 'a', unit=1.).loc['b', 'mean'] == .0125


def test_panels_say_each_difference_in_its_unit(table):
    panels = difference_panels(table.assign(kl_votes=2*table.accuracy), 'a')
    assert {label: d['mean'].tolist() for label, d in panels.items()} == {
        'accuracy, points': [1.25], 'KL from the votes, nats': [.025]}


def test_spreads_are_in_deviations_of_the_base(table):
    found = spread_table(table, 'a')
    assert found['b'] == pytest.approx(.0125/np.std(A, ddof=1)) and abs(found['a']) < 1e-9


def test_recalls_are_means_over_seeds():
    runs = pd.DataFrame(dict(row=['a', 'a', 'b'], recalls=[[1., .5], [.5, None], [0., .25]]))
    found = recall_table(runs, ['x', 'y'])
    assert found.loc['a', 'x'] == .75 and math.isnan(found.loc['a', 'y'])
    assert found.loc['b'].tolist() == [0., .25]


def test_what_was_run_in_words(table):
    runs = table.assign(recipe=[dict(epochs=3)]*8, shots=[[40, 56]]*7 + [[40, 1000]], n=96,
                        commit='c', machine='m')
    facts = run_facts(runs)
    assert facts[['runs', 'seeds a row', 'epochs', 'validation faces']].tolist() == [8, '4', '3',
                                                                                    '96']
    assert facts['training faces'] == '96 or 1,040' and facts['training time'] == '0.1 h'


@pytest.mark.parametrize('home, told', [(None, None), (Path('data'), 'data')])
def test_a_process_of_its_own_is_told_where_data_lie_if_anybody_says_so(recipe, tmp_path,
                                                                        monkeypatch, home, told):
    given = []

    def run(command, input, **kw):
        given.append(json.loads(input))
        return SimpleNamespace(returncode=1, stderr='it was only asked')
    monkeypatch.setattr(experiments.subprocess, 'run', run)
    found = experiments._run_apart(recipe(), tmp_path/'one', 'cpu', home)
    assert found == dict(error='it was only asked') and given[0][3] == told
