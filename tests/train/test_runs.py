"""Runs: what a recipe names reaches training, the right epoch is kept, a stop changes nothing."""
import json
import math
import re
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import Callback
from filelock import FileLock

from grefel.base.core import EXPRESSIONS, GrefelError, set_seed
from grefel.measure.answers import predict_data
from grefel.method.files import load_model, save_model, weights_digest
from grefel.method.model import create_model
from grefel.method.window import DropPath
from grefel.train import runs
from grefel.train.runs import (
    Recipe, average_weights, changed_data, changed_weights, finished, read_recipe, set_fields,
    stages, training_faces)
from grefel.use.cli import main

FORMER = json.loads((Path(__file__).parent/'run_0_1_0.json').read_text())


def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def weights(folder, name='last.safetensors'): return load_model(folder/name).state_dict()


def history(folder):
    "The rows of a run's history, without the seconds that they took."
    return pd.read_csv(folder/'history.csv').drop(columns='seconds')


# --- recipes ---

@pytest.mark.parametrize('name, value', [
    ('epochs', 0), ('epochs', 1.5), ('bs', '64'), ('bs', True), ('lr', math.nan), ('lr', math.inf),
    ('bs', None), ('lr', -1e-3), ('ema', 1.5), ('ema', 1), ('drop_path', 1), ('valid_share', 1),
    ('limit', -4), ('limit', 0), ('img_size', 0), ('seed', -1), ('hide_landmarks', 1.1),
    ('teacher_share', -.1), ('warm_up', -1), ('sam', math.inf), ('noise_share', 2)])
def test_numbers_that_cannot_be_meant_are_refused(name, value):
    with pytest.raises(GrefelError, match=f'^{name} is '): read_recipe(**{name: value})


@pytest.mark.parametrize('name, value', [
    ('hide_landmarks', 1), ('teacher_share', 0), ('ema', 0), ('limit', None), ('img_size', None),
    ('lr', np.float32(.5)), ('epochs', np.int64(3)), ('warm_up', 0)])
def test_limits_themselves_and_numpys_numbers_are_fine(name, value):
    assert getattr(read_recipe(**{name: value}), name) == value


def test_anchors_cannot_be_placed_after_the_end():
    with pytest.raises(GrefelError, match='place_anchors is 3; it must be below epochs, 3'):
        Recipe(place_anchors=3, epochs=3)
    Recipe(place_anchors=2, epochs=3)


def test_a_recipe_equals_what_a_file_gives_back():
    made = Recipe(data=Path('faces'), start=Path('w'), model=dict(widths=(8, 8)),
                  augment=dict(scale=(.9, 1.1)))
    assert made == Recipe(data='faces', start='w', model=dict(widths=[8, 8]),
                          augment=dict(scale=[.9, 1.1]))
    assert Recipe(**json.loads(json.dumps(asdict(made)))) == made


def test_what_goes_on_from_weights_learns_more_slowly_unless_told():
    assert (Recipe().lr, Recipe(start='nano').lr) == (1.5e-3, 3e-4)
    assert Recipe(start='nano', lr=.01).lr == read_recipe(start='nano', lr=.01).lr == .01
    assert Recipe(**asdict(Recipe(start='nano'))).lr == 3e-4


def test_a_file_of_an_older_version_lacks_fields_and_changes_come_on_top(tmp_path):
    (tmp_path/'config.json').write_text('{"recipe": {"data": "synth", "epochs": 2, "ema": 0.99}}')
    expected = Recipe(data='synth', epochs=2, ema=.99, lr=1e-3)
    assert read_recipe(tmp_path/'config.json', lr=1e-3) == expected


def test_a_file_of_an_older_version_names_the_weights_of_the_loss_otherwise(tmp_path):
    old = '{"recipe": {"loss": {"source": 0, "anchor": 0.001, "bounded": false}}}'
    (tmp_path/'config.json').write_text(old)
    today = Recipe(loss=dict(lambda_source=0, lambda_anchor=.001, bounded=False))
    assert read_recipe(tmp_path/'config.json') == today


@pytest.mark.parametrize('text, message', [
    ('{', 'not a readable recipe'), ('[]', 'not a readable recipe'), ('{}', 'holds no recipe'),
    ('{"recipe": 3}', 'holds no recipe'), ('{"recipe": {"epoch": 3}}', "unknown field 'epoch'")])
def test_a_file_that_holds_no_recipe_is_refused(tmp_path, text, message):
    (tmp_path/'config.json').write_text(text)
    with pytest.raises(GrefelError, match=message): read_recipe(tmp_path/'config.json')


# --- every field reaches training ---

def last_drop_path(learn): return [m for m in learn.model.modules() if isinstance(m, DropPath)][-1]


def train_set(learn): return learn.dls.train.dataset


# field: (value, what of the learner or the run shows it, what that must be)
PROBES = dict(
    epochs=(2, lambda learn: len(learn.recorder.values), 2),
    bs=(16, lambda learn: len(learn.dls.train.one_batch()[0]), 16),
    lr=(3e-3, lambda learn: .0025 < max(learn.recorder.hps['lr']) <= .003, True),
    wd=(.2, lambda learn: learn.opt.hypers[0]['wd'], .2),
    seed=(9, lambda learn: learn.dls.train.batches.seed, 9),
    targets=('hard', lambda learn: train_set(learn).targets.amax(1).min().item(), 1.),
    num_classes=(7, lambda learn: len(learn.model.classes), 7),
    augment=('none', lambda learn: learn.dls.train.transform.name, 'none'),
    hide_landmarks=(.3, lambda learn: learn.dls.train.hide, .3),
    ema=(.7, lambda learn: learn.ema.decay, .7),
    bf16=(True, lambda learn: type(learn.b_float16).__name__, 'BFloat16'),
    img_size=(24, lambda learn: learn.dls.train.one_batch()[0].shape[-1], 24),
    mixup=(.4, lambda learn: (learn.mix.mixup, learn.mix.cutmix), (.4, 0)),
    cutmix=(.6, lambda learn: (learn.mix.mixup, learn.mix.cutmix), (0, .6)),
    drop_path=(.2, lambda learn: round(last_drop_path(learn).rate, 6), .2),
    sam=(.07, lambda learn: learn.sam.rho, .07),
    flip_test=(True, lambda learn: learn.keep_outputs.flip, True),
    compile=(True, lambda learn: (learn.compile_step.compile, learn.compile_step.graph),
             (True, False)),
    graph=(True, lambda learn: (learn.compile_step.compile, learn.compile_step.graph),
           (False, True)),
    model=(dict(widths=[12, 8, 8, 8]), lambda learn: learn.model.config['widths'][0], 12),
    loss=(dict(label_smoothing=.1), lambda learn: learn.loss_func.loss.label_smoothing, .1),
    limit=(40, lambda learn: len(train_set(learn)), 40),
    stream=(True, lambda learn: type(train_set(learn)).__name__, 'ShardDataset'))

# these have a test of their own below
OTHERS = {'data', 'size', 'rule', 'train_rule', 'drop_duplicates', 'landmarks', 'valid_share',
          'noise', 'noise_share', 'noise_seed', 'balanced', 'class_weights', 'teacher',
          'teacher_clean', 'teacher_share', 'warm_up', 'place_anchors', 'start',
          'reading'}   # in test_commands_train


def test_every_field_of_a_recipe_is_tested():
    assert PROBES.keys() | OTHERS == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize('name', PROBES)
def test_a_field_reaches_training(recipe, run, monkeypatch, name):
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: f)  # a C++ compiler takes a minute
    value, probe, expected = PROBES[name]
    learn = run('one', recipe(**dict(epochs=1) | {name: value}))
    assert probe(learn) == expected
    if name not in ('epochs', 'compile', 'graph'):  # the probe can tell
        try: usual = probe(run('usual', recipe(epochs=1)))
        except AttributeError: usual = None
        assert usual != expected


@pytest.mark.parametrize('size, name', [('nano', 'grefel_nano'), ('plain', 'plain')])
def test_size_and_data_reach_training(run, data, size, name):
    learn = run('one', Recipe(data=data, size=size, img_size=32, epochs=1, limit=20, bs=8))
    assert learn.model.config['name'] == name
    assert Path(train_set(learn).notes['source']) == Path(data)


@pytest.mark.parametrize('how, name, expected', [
    (dict(balanced=.5), 'prior', lambda share: share**.5),
    (dict(balanced=1.), 'prior', lambda share: share),
    (dict(class_weights=.5), 'class_weights', lambda share: share**-.5),
    (dict(class_weights=1.), 'class_weights', lambda share: 1/share)])
def test_the_shares_of_the_training_targets_reach_the_loss(recipe, run, how, name, expected):
    learn = run('one', recipe(epochs=1, **how))
    torch.testing.assert_close(getattr(learn.loss_func.loss, name),
                               expected(train_set(learn).targets.mean(0)))
    others = {'prior', 'class_weights'} - {name}
    assert all(getattr(learn.loss_func.loss, other) is None for other in others)


def test_class_weights_change_what_is_learned(recipe, run):
    plain, weighed = (run(name, recipe(epochs=1, class_weights=gamma)).model.state_dict()
                      for name, gamma in (('plain', 0.), ('weighed', 1.)))
    assert not same(plain, weighed)


def test_teachers_reach_training_and_are_remembered(recipe, run, tmp_path):
    run('teacher', recipe(epochs=1))
    other = str(tmp_path/'teacher'/'last.safetensors')
    several = [str(tmp_path/'teacher'), other]
    learn = run('taught', recipe(epochs=1, teacher=several, teacher_share=.3))
    assert len(learn.distil.teachers) == 2 and learn.distil.share == .3
    metadata = load_model(tmp_path/'taught').metadata
    assert metadata['taught_by'] == [asdict(recipe(epochs=1))]*2
    assert metadata['weights'] == {name: weights_digest(load_model(name)) for name in several}
    assert len(run('one', recipe(epochs=1, teacher=other)).distil.teachers) == 1


def test_a_teacher_may_be_asked_about_the_clean_face_before_training(recipe, run, tmp_path):
    run('teacher', recipe(epochs=1))
    told = dict(epochs=1, teacher=str(tmp_path/'teacher'))
    learn = run('taught', recipe(**told, teacher_clean=True, teacher_share=.25))
    faces = train_set(run('alone', recipe(epochs=1)))
    said = torch.from_numpy(predict_data(load_model(tmp_path/'teacher'), faces, temperature=1,
                                         flip_test=True)['final_probs'])
    torch.testing.assert_close(train_set(learn).targets, .75*faces.targets + .25*said)
    with pytest.raises(AttributeError): learn.distil   # and not once more in every batch


def test_camera_faults_grow_with_the_epochs(recipe, run):
    learn = run('harder', recipe(epochs=2, augment='camera'))
    assert learn.dls.train.transform.faults.strength == 1.   # full from two fifths of them on
    assert learn.grow_faults.first < 1


def test_anchors_are_placed_when_the_recipe_says(run, data):
    nano = dict(data=data, size='nano', img_size=32, epochs=2, limit=24, bs=8)
    assert run('placed', Recipe(**nano, place_anchors=0)).place_anchors.at == 0
    with pytest.raises(AttributeError): run('not', Recipe(**nano)).place_anchors


def test_all_together_run_and_are_ordered(run, data, tmp_path):
    few = dict(data=data, size='nano', epochs=1, bs=16, limit=32, img_size=32)
    all_on = Recipe(**few, mixup=.4, cutmix=1., drop_path=.1, balanced=1., class_weights=.5,
                    sam=.05, flip_test=True, bf16=True, warm_up=1, teacher='nano',
                    place_anchors=0, loss=dict(label_smoothing=.05))
    learn = run('all', all_on)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert stages(load_model(tmp_path/'all').metadata) == [asdict(all_on)]


@pytest.mark.parametrize('how, message', [
    (dict(size='resnet18', model=dict(depth=2)), "resnet18: .*'depth'"),
    (dict(loss=dict(foo=1)), "loss: unexpected keyword argument 'foo'"),
    (dict(drop_path=.1, model=dict(widths=[8]*4, depths=[0]*4)), 'no branches'),
    (dict(start='nano'), 'weights of another architecture'),
    (dict(place_anchors=0), 'no anchors to place'),
    (dict(stream=True, limit=5), 'stream: takes the data as they are'),
    (dict(stream=True, noise='symmetric', targets='hard'), 'stream: takes the data as they are'),
    (dict(stream=True, warm_up=1), 'warm_up: needs faces in memory')])
def test_what_cannot_be_trained_is_refused_in_one_line(recipe, run, how, message):
    with pytest.raises(GrefelError, match=message) as caught: run('no', recipe(**how))
    assert '\n' not in str(caught.value)


# --- faces ---

@pytest.fixture
def voted(tmp_path):
    "Three faces a split: a clear one, one between two classes, one without a majority."
    votes = [[8, 2] + 8*[0], [5, 5] + 8*[0], [0, 4, 3, 3] + 6*[0]]
    def image(i): return b'P5 48 48 255\n' + np.random.RandomState(i).bytes(48*48)
    pd.DataFrame([dict(name=f'{split}{i}.png', split=split, image=image(i), votes=v)
                  for split in ('train', 'valid') for i, v in enumerate(votes)]
                 ).to_parquet(tmp_path/'voted.parquet')
    return str(tmp_path/'voted.parquet')


@pytest.mark.parametrize('how, kept', [
    (dict(), (3, 1)), (dict(train_rule=None), (1, 1)), (dict(train_rule='majority'), (1, 1)),
    (dict(rule='argmax', train_rule=None), (3, 3)),
    (dict(rule='argmax', train_rule='majority'), (1, 3)),
    (dict(drop_duplicates=True), (0, 1))])  # each training image is in validation as well
def test_which_faces_count(voted, how, kept):
    recipe = Recipe(data=voted, **dict(drop_duplicates=False) | how)
    def n(split):
        try: return len(training_faces(recipe, split))
        except GrefelError: return 0
    assert (n('train'), n('valid')) == kept


def test_label_noise_is_in_training_only(recipe):
    noisy = recipe(targets='hard', noise='symmetric', noise_share=.25)
    faces = training_faces(noisy)
    wrong = faces.labels != faces.extra['true_label']
    assert wrong.sum() == 24 and faces.notes['noise']['share'] == .25
    assert 'true_label' not in training_faces(noisy, 'valid').extra
    other = training_faces(replace(noisy, noise_seed=1))
    assert not torch.equal(other.labels != other.extra['true_label'], wrong)
    assert torch.equal(other.extra['true_label'], faces.extra['true_label'])


def test_a_share_of_training_faces_can_validate(tmp_path, data):
    table = pd.read_parquet(data)
    table[table.split == 'train'].to_parquet(tmp_path/'train.parquet')
    recipe = Recipe(data=str(tmp_path/'train.parquet'), valid_share=.25)
    sizes = [len(training_faces(recipe, split)) for split in ('train', 'valid')]
    assert sum(sizes) == 96 and 10 < sizes[1] < 40


def test_landmarks_of_a_file_take_the_place_of_the_datas_own(recipe, data, tmp_path):
    names = training_faces(recipe()).names
    pd.DataFrame(dict(name=names, landmarks=[np.full(136, .5, np.float32)]*96)
                 ).to_parquet(tmp_path/'points.parquet')
    found = training_faces(recipe(landmarks=str(tmp_path/'points.parquet')))
    assert (found.landmarks == .5).all()


# --- what is kept ---

class Scripted(Callback):
    "Validation accuracies as a test wants them, between fastai's own and what is kept of them."
    order = 60

    def __init__(self, *values): self.values = values

    def after_epoch(self):
        place = self.recorder.metric_names.index('accuracy')
        if len(self.recorder.log) > place:  # not in an epoch that is skipped
            self.recorder.log[place] = self.values[self.epoch]


@pytest.mark.parametrize('accuracies, best', [
    ([.2, .5, .3], 1), ([.5, .2, .4], 0), ([.1, .2, .3], 2), ([.4, .4, .4], 0), ([0., 0., .1], 2)])
def test_the_kept_weights_are_those_of_the_most_accurate_epoch(recipe, run, tmp_path, accuracies,
                                                               best):
    class Note(Callback):
        order, states = 61, []
        def after_epoch(self):
            self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})
    note = Note()
    note.states = []
    run('one', recipe(), cbs=[Scripted(*accuracies), note])
    kept = load_model(tmp_path/'one')
    assert (kept.metadata['epoch'], kept.metadata['valid']) == (
        best, dict(accuracy=accuracies[best]))
    assert same(kept.state_dict(), note.states[best])
    assert same(weights(tmp_path/'one'), note.states[-1])
    assert history(tmp_path/'one').accuracy.tolist() == accuracies


def test_the_best_epoch_is_remembered_over_a_stop(recipe, run, tmp_path):
    for cut in (1, None): run('one', recipe(), cut=cut, cbs=[Scripted(.2, .5, .3)])
    assert load_model(tmp_path/'one').metadata['epoch'] == 1


def test_a_run_leaves_its_recipe_its_faces_and_no_state(recipe, run, tmp_path):
    made = recipe(epochs=1)
    run('one', made)
    assert sorted(p.name for p in (tmp_path/'one').iterdir() if p.name != '.lock') == [
        'config.json', 'history.csv', 'last.safetensors', 'weights.safetensors']
    about = json.loads((tmp_path/'one'/'config.json').read_text())
    assert read_recipe(tmp_path/'one'/'config.json') == made
    assert about['data']['train']['n'] == sum(about['data']['train']['per_class']) == 96
    metadata = load_model(tmp_path/'one').metadata
    assert metadata['recipe'] == asdict(made)
    assert (metadata['grey'], metadata['face_size']) == (True, 32)


# --- the same again, and in two halves ---

RANDOM = dict(mixup=.4, cutmix=1., bf16=True, sam=.05, hide_landmarks=.5)


@pytest.mark.parametrize('how', [dict(), RANDOM, dict(ema=0.), dict(stream=True)])
def test_a_run_in_two_halves_is_the_same_run(recipe, run, tmp_path, how):
    run('whole', recipe(**how))
    for cut in (0, 2):  # and when all is trained, but its end not yet kept
        name = f'cut after {cut}'
        assert run(name, recipe(**how), cut=cut) is None
        assert (tmp_path/name/'last.pt').exists()
        set_seed(99 + cut)  # the second half starts in another state of the world
        run(name, recipe(**how))
        assert same(weights(tmp_path/name), weights(tmp_path/'whole')), name
        best = [weights(tmp_path/n, 'weights.safetensors') for n in (name, 'whole')]
        assert same(*best), name
        assert history(tmp_path/name).equals(history(tmp_path/'whole')), name
        assert not (tmp_path/name/'last.pt').exists()


def test_no_epoch_is_trained_twice(recipe, run):
    class Count(Callback):
        epochs = None
        def before_batch(self):
            if self.training: self.seen.append((self.epoch, self.iter))
    first, second = Count(), Count()
    first.seen, second.seen = [], []
    run('one', recipe(), cut=0, cbs=[first])
    run('one', recipe(), cbs=[second])
    assert first.seen + second.seen == [(epoch, i) for epoch in range(3) for i in range(3)]


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(recipe, run):
    once, twice, other = (run(name, recipe(epochs=1, **how)).model.state_dict()
                          for name, how in (('a', {}), ('b', {}), ('c', dict(seed=6))))
    assert same(once, twice) and not same(once, other)


def test_the_saved_state_holds_no_code_and_goes_to_the_device(recipe, run, monkeypatch):
    run('one', recipe(), cut=0)
    real, asked = torch.load, []
    monkeypatch.setattr(torch, 'load', lambda *a, **kw: asked.append(kw) or real(*a, **kw))
    run('one', recipe(), device=torch.device('cpu'))
    assert asked == [dict(weights_only=True, map_location=torch.device('cpu'))]


def test_a_state_that_cannot_be_read_is_refused_in_one_line(recipe, run, tmp_path):
    run('one', recipe(), cut=0)
    (tmp_path/'one'/'last.pt').write_bytes(b'half a file')
    with pytest.raises(GrefelError, match='cannot continue from it .* delete it to start anew'):
        run('one', recipe())


# --- runs of 0.1.0 ---

def test_a_run_of_0_1_0_goes_on(run, data, tmp_path):
    # its config.json as 0.1.0 wrote it; what last.pt holds is compared below
    config = FORMER['config'] | dict(recipe=FORMER['config']['recipe'] | dict(data=data))
    recipe = Recipe(**config['recipe'])
    run('whole', recipe)
    run('former', recipe, cut=0)
    (tmp_path/'former'/'config.json').write_text(json.dumps(config))
    run('former', recipe)
    assert same(weights(tmp_path/'former'), weights(tmp_path/'whole'))
    with pytest.raises(GrefelError, match='finished'): run('former', recipe)


def test_a_run_of_0_1_0_with_another_recipe_is_refused_in_one_line(run, data, tmp_path):
    config = FORMER['config'] | dict(recipe=FORMER['config']['recipe'] | dict(data=data))
    run('former', Recipe(**config['recipe']), cut=0)
    config['recipe'] |= dict(bf16=True)
    (tmp_path/'former'/'config.json').write_text(json.dumps(config))
    with pytest.raises(GrefelError, match='holds an unfinished run with other settings .bf16.'):
        run('former', Recipe(**config['recipe'] | dict(bf16=False)))


def test_the_state_of_an_older_optimiser_is_refused_in_one_line(recipe, run, tmp_path):
    run('one', recipe(), cut=0)
    path = tmp_path/'one'/'last.pt'
    state = torch.load(path, weights_only=True)
    torch.save(state | dict(opt=dict(state=[], hypers=[])), path)
    with pytest.raises(GrefelError, match='an older version wrote it.*delete it to start anew'):
        run('one', recipe())
    path.unlink()
    run('one', recipe())


# --- folders ---

def test_an_unfinished_run_of_another_recipe_is_not_continued(recipe, run, tmp_path):
    run('one', recipe(), cut=0)
    with pytest.raises(GrefelError, match='holds an unfinished run with other settings .lr, wd.'):
        run('one', recipe(lr=1e-2, wd=.1))
    assert len(history(tmp_path/'one')) == 1


def test_a_finished_run_is_not_overwritten(recipe, run, tmp_path):
    run('one', recipe(epochs=1))
    before = (tmp_path/'one'/'weights.safetensors').read_bytes()
    assert finished(tmp_path/'one', recipe(epochs=1)) and not finished(tmp_path/'no', recipe())
    with pytest.raises(GrefelError, match='holds this run, finished'): run('one', recipe(epochs=1))
    with pytest.raises(GrefelError, match='holds a finished run with other settings .lr.'):
        finished(tmp_path/'one', recipe(epochs=1, lr=.1))
    assert (tmp_path/'one'/'weights.safetensors').read_bytes() == before


def test_a_run_that_another_process_ended_while_faces_were_read(recipe, run, monkeypatch):
    real = runs.training_faces
    def ending(made, split, *args):
        if split == 'train':
            monkeypatch.setattr(runs, 'training_faces', real)
            run('one', made)
        return real(made, split, *args)
    monkeypatch.setattr(runs, 'training_faces', ending)
    with pytest.raises(GrefelError, match='holds this run, finished'): run('one', recipe(epochs=1))


def test_two_cannot_train_into_one_folder(recipe, run, tmp_path):
    (tmp_path/'one').mkdir()
    with FileLock(tmp_path/'one'/'.lock'):
        with pytest.raises(GrefelError, match='another training is writing there'):
            run('one', recipe())
    run('one', recipe(epochs=1))  # the lock is free again, and its file does no harm


def test_a_place_where_no_folder_can_be_is_refused(recipe, run, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(GrefelError, match='no training can be alone there'):
        run('file/run', recipe())


# --- the faces of a run ---

def change(path, split, how):
    "Write a table again, with some cells of a split changed."
    table = pd.read_parquet(path)
    rows = table.index[table.split == split]
    if how == 'labels':  # and the votes that they are counted from
        votes = table.votes.map(list)
        for i in rows[:5]: votes[i] = votes[i][1:] + votes[i][:1]
        table['votes'] = votes
        table.loc[rows[:5], 'label'] = 'fear'
    if how == 'names': table.loc[rows[0], 'name'] = 'another'
    if how == 'fewer': table = table.drop(rows[:3])
    table.to_parquet(path)


@pytest.fixture
def table(data, tmp_path):
    "A file of one's own, to be changed."
    return str(shutil.copy(data, tmp_path/'own.parquet'))


@pytest.mark.parametrize('how, split, cut, message', [
    ('labels', 'train', None, 'a finished run with other labels in train .* then, .* now'),
    ('labels', 'valid', 0, 'an unfinished run with other labels in valid .* then, .* now'),
    ('names', 'train', 0, r'an unfinished run with other faces in train \(96 then, 96 now'),
    ('fewer', 'valid', None, r'a finished run with other faces in valid \(96 then, 93 now')])
def test_a_run_knows_its_faces_and_says_what_changed(recipe, run, table, how, split, cut,
                                                     message):
    made = recipe(data=table, epochs=2, targets='hard')
    run('one', made, cut=cut)
    change(table, split, how)
    with pytest.raises(GrefelError, match='holds ' + message) as e: run('one', made)
    assert 'choose another folder, or delete this one' in str(e.value) and '\n' not in str(e.value)


def test_a_streamed_run_knows_its_labels(recipe, run, table, tmp_path):
    made = recipe(data=table, epochs=1, stream=True, targets='hard')
    run('one', made)
    assert finished(tmp_path/'one', made)
    change(table, 'train', 'labels')
    with pytest.raises(GrefelError, match='other labels in train'): finished(tmp_path/'one', made)


def test_votes_that_changed_without_a_label_are_seen(recipe, run, tmp_path):
    run('one', recipe(epochs=1))
    known = json.loads((tmp_path/'one'/'config.json').read_text())['data']
    faces = [training_faces(recipe(epochs=1), split) for split in ('train', 'valid')]
    assert changed_data(known, faces) == [] == changed_data(None, faces)
    other = replace(faces[0], targets=faces[0].targets.roll(1, 0))
    assert changed_data(known, [other, faces[1]]) == ['other labels in train']


def test_faces_that_are_gone_prove_nothing(recipe, run, table, tmp_path):
    made = recipe(data=table, epochs=1)
    run('one', made)
    Path(table).unlink()
    assert finished(tmp_path/'one', made)


def test_a_name_that_is_a_size_and_a_folder_is_refused_with_both_spellings(recipe, run, tmp_path,
                                                                           monkeypatch):
    monkeypatch.chdir(tmp_path)
    run('nano', recipe(epochs=1))
    with pytest.raises(GrefelError, match=r'\./nano.*shipped:nano'):
        run('one', recipe(epochs=1, start='nano'))
    learn = run('own', recipe(epochs=1, start='./nano', lr=0., ema=0.))
    for name, p in learn.model.named_parameters():
        assert torch.equal(p, weights(tmp_path/'nano', 'weights.safetensors')[name])


# --- any field by name ---

@pytest.mark.parametrize('pair, name, value', [
    ('epochs=3', 'epochs', 3), ('lr=1e-4', 'lr', 1e-4), ('ema=0', 'ema', 0.),
    ('bf16=yes', 'bf16', True), ('drop_duplicates=false', 'drop_duplicates', False),
    ('img_size=none', 'img_size', None), ('img_size=64', 'img_size', 64),
    ('data=123', 'data', '123'), ('data=a=b.csv', 'data', 'a=b.csv'),
    ('augment=heavy', 'augment', 'heavy'),
    ('augment={"scale": [0.9, 1]}', 'augment', dict(scale=[.9, 1])),
    ('teacher=nano', 'teacher', 'nano'),
    ('teacher=["nano", "small"]', 'teacher', ['nano', 'small']),
    ('model={"depth": 2}', 'model', dict(depth=2)),
    ('model.depth=2', 'model', dict(widths=[8], depth=2)),
    ('model.merge=mean', 'model', dict(widths=[8], merge='mean'))])
def test_a_text_becomes_what_the_field_holds(pair, name, value):
    made = set_fields(Recipe(model=dict(widths=[8])), [pair])
    assert getattr(made, name) == value and type(getattr(made, name)) is type(value)


def test_several_are_joined_and_the_last_one_wins():
    made = set_fields(Recipe(), ['model.depth=2', 'model.num_heads=2', 'lr=1', 'lr=2'])
    assert made == Recipe(model=dict(depth=2, num_heads=2), lr=2.)


@pytest.mark.parametrize('pair, message', [
    ('epoch=3', "unknown field 'epoch'; did you mean 'epochs'"),
    ('xyzzy=3', "unknown field 'xyzzy'$"),
    ('epochs', 'write it as key=value'), ('epochs=many', 'epochs is a whole number'),
    ('epochs=2.5', 'epochs is a whole number'), ('epochs=true', 'epochs is a whole number'),
    ('lr=fast', 'lr is a number'), ('lr=nan', 'lr is a number'),
    ('bf16=3', 'bf16 is true or false'), ('model=3', 'model is an object'),
    ('lr.x=3', 'lr has no parts'),
    ('limit=x', 'limit is a whole number or none'), ('ema=1', 'ema is 1')])
def test_what_no_field_holds_is_refused_in_one_line(pair, message):
    with pytest.raises(GrefelError, match=message) as caught: set_fields(Recipe(), [pair])
    assert '\n' not in str(caught.value)


def test_every_field_can_be_set():
    for f in fields(Recipe):
        value = getattr(Recipe(), f.name)
        text = json.dumps(value) if not isinstance(value, str) else value
        assert set_fields(Recipe(), [f'{f.name}={text}']) == Recipe()


def test_a_run_that_was_cut_after_its_last_epoch_ends_with_the_averaged_weights(recipe, run,
                                                                                tmp_path):
    run('whole', recipe())
    run('cut', recipe(), cut=2)
    run('cut', recipe())
    assert same(weights(tmp_path/'whole'), weights(tmp_path/'cut'))


# --- no numbers any more ---

class Explode(Callback):
    "Makes the loss of an epoch's second step infinite."
    order = 1

    def __init__(self, epoch): self.at = epoch

    def after_loss(self):
        if self.training and (self.epoch, self.iter) == (self.at, 1):
            self.learn.loss = self.loss*float('inf')


@pytest.mark.parametrize('epoch, kept', [(0, 'no epoch was finished, so nothing is kept'),
                                         (2, 'one/weights.safetensors keeps epoch 1')])
def test_a_run_stops_where_the_loss_ends_and_keeps_what_was_good(recipe, run, tmp_path, epoch,
                                                                 kept):
    with pytest.raises(GrefelError, match=f'^epoch {epoch}, step 1: the loss is not a finite '
                                          f'number; .*{kept}; try a smaller') as caught:
        run('one', recipe(), cbs=[Scripted(.2, .5, .3), Explode(epoch)])
    assert '\n' not in str(caught.value)
    left = {p.name for p in (tmp_path/'one').iterdir()}
    assert ('weights.safetensors' in left) == bool(epoch) and 'last.safetensors' not in left
    for name in left & {'weights.safetensors'}:
        assert all(v.isfinite().all() for v in weights(tmp_path/'one', name).values())
    run('one', recipe(), cbs=[Scripted(.2, .5, .3)])  # goes on from the last good epoch


def test_a_learning_rate_far_too_high_ends_in_that_line(run, data):
    with pytest.raises(GrefelError, match='is not a finite number; .*try a smaller learning rate'):
        run('one', Recipe(data=data, size='plain', model=dict(widths=[8]*4), lr=1e30, bs=8))


def test_a_metric_that_is_no_number_never_makes_the_best_epoch(recipe, run, tmp_path):
    run('one', recipe(), cbs=[Scripted(math.nan, .2, math.nan)])
    assert load_model(tmp_path/'one').metadata['epoch'] == 1


# --- going on from other weights ---

@pytest.fixture
def begun(recipe, run, tmp_path):
    run('once', recipe(epochs=1, img_size=24))
    return save_model(load_model(tmp_path/'once'/'last.safetensors'), tmp_path/'begin.safetensors')


def test_a_run_starts_where_other_weights_ended(recipe, run, begun, tmp_path):
    further = recipe(epochs=1, start=str(begun), lr=0., model={}, ema=0.)
    learn = run('further', further)
    assert learn.model.config['img_size'] == 24  # settings come along
    before = load_model(begun).state_dict()
    for name, p in learn.model.named_parameters(): assert torch.equal(p, before[name]), name
    assert stages(load_model(tmp_path/'further').metadata) == [
        asdict(recipe(epochs=1, img_size=24)), asdict(further)]


def test_the_recipe_changes_settings_that_come_along(recipe, run, begun):
    further = recipe(epochs=1, start=str(begun), img_size=32, model=dict(drop_rate=.3))
    config = run('further', further).model.config
    assert (config['img_size'], config['drop_rate']) == (32, .3)


def test_weights_of_other_classes_begin_by_name(recipe, run, tmp_path):
    "Reversed ones are reordered; an eighth class begins anew."
    torch.manual_seed(0)
    small = dict(widths=[8]*4, img_size=32)
    for name, classes in (('reversed', EXPRESSIONS[::-1]), ('seven', EXPRESSIONS[:7])):
        model = create_model('plain', num_classes=len(classes), classes=classes, **small).eval()
        path = save_model(model, tmp_path/f'{name}.safetensors')
        learn = run(name, recipe(epochs=1, start=str(path), lr=0., ema=0., model={}))
        assert learn.model.classes == EXPRESSIONS
        before, after = (dict(m.named_parameters()) for m in (model, learn.model))
        for k, v in before.items():
            if not k.startswith('head') or v.shape[0] != len(classes):
                assert torch.equal(v, after[k]), k
                continue
            for i, c in enumerate(classes):
                assert torch.equal(v[i], after[k][EXPRESSIONS.index(c)]), (k, c)


def test_weights_of_another_size_say_which(recipe, run):
    with pytest.raises(GrefelError, match="nano: weights of another .* 'plain'; use size 'nano'"):
        run('no', recipe(start='shipped:nano'))


def test_weights_that_became_others_under_their_name(recipe, run, begun, tmp_path):
    further = recipe(epochs=2, start=str(begun))
    run('cut', further, cut=0)
    run('done', further)
    assert changed_weights(load_model(tmp_path/'done').metadata['weights']) == []
    save_model(load_model(tmp_path/'done'), begun)
    assert changed_weights(load_model(tmp_path/'done').metadata['weights']) == [str(begun)]
    with pytest.raises(GrefelError, match="an unfinished run with other weights of"):
        run('cut', further)
    with pytest.raises(GrefelError, match="a finished run with other weights of"):
        finished(tmp_path/'done', further)
    begun.unlink()  # it cannot be read: nothing is proved
    assert finished(tmp_path/'done', further)
    assert changed_weights({str(begun): 'another'}) == [] == changed_weights(None)


def test_a_continued_run_keeps_what_its_first_epochs_began_from(recipe, run, begun, tmp_path):
    further = recipe(epochs=2, start=str(begun))
    run('cut', further, cut=0)
    config = tmp_path/'cut'/'config.json'
    about = json.loads(config.read_text())
    assert list(about['weights']) == [str(begun)]
    config.write_text(json.dumps(about | dict(weights=None)))  # a version that kept no digests
    run('cut', further)
    assert load_model(tmp_path/'cut'/'last.safetensors').metadata['weights'] is None


# --- means of weights ---

def test_a_mean_of_weights_is_their_mean_and_tells_of_its_parts(recipe, run, tmp_path):
    for name, seed in (('a', 1), ('b', 2)): run(name, recipe(epochs=1, seed=seed))
    files = [tmp_path/'a', tmp_path/'b', tmp_path/'b'/'last.safetensors']
    mean = load_model(average_weights(files, tmp_path/'mean.safetensors'))
    parts = [load_model(f).state_dict() for f in files]
    for k, v in mean.state_dict().items():
        expected = sum(p[k].float() for p in parts)/3
        torch.testing.assert_close(v.float(), expected, rtol=0,
                                   atol=1e-6 if v.is_floating_point() else 1)
        assert v.dtype == parts[0][k].dtype
    assert not same(mean.state_dict(), parts[0])
    stored = [part['stages'] for part in mean.metadata['averaged']]
    assert stored == [[asdict(recipe(epochs=1, seed=s))] for s in (1, 2, 2)]
    assert not {'valid', 'epoch', 'temperature'} & set(mean.metadata)
    run('onward', recipe(epochs=1, start=str(tmp_path/'mean.safetensors')))
    assert load_model(tmp_path/'onward').metadata['start_mean'] == mean.metadata['averaged']


def test_a_mean_needs_two_of_one_architecture(recipe, run, tmp_path):
    run('a', recipe(epochs=1))
    run('wide', recipe(epochs=1, model=dict(widths=[12, 8, 8, 8])))
    with pytest.raises(GrefelError, match='two or more'):
        average_weights([tmp_path/'a'], tmp_path/'x')
    with pytest.raises(GrefelError, match='another architecture than'):
        average_weights([tmp_path/'a', tmp_path/'wide'], tmp_path/'x')


# --- progress ---

def test_progress_tells_the_batches_done_also_after_a_stop(recipe, tmp_path):
    class Cut(Callback):
        order = 80
        def after_epoch(self): raise RuntimeError('cut')
    heard = []
    def report(*args): heard.append(args)
    with pytest.raises(RuntimeError):
        runs.train(recipe(), tmp_path/'one', progress=report, cbs=[Cut()])
    runs.train(recipe(), tmp_path/'one', progress=report)
    assert heard == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize('progress, said', [(None, False), (False, False), (True, True)])
def test_progress_is_silent_or_fastais_table(recipe, tmp_path, capsys, progress, said):
    runs.train(recipe(epochs=1), tmp_path/'one', progress=progress)
    assert ('accuracy' in capsys.readouterr().out) is said


# --- the command ---

@pytest.mark.parametrize('more, message', [
    (['--set', 'epoch=3'], "unknown field 'epoch'; did you mean 'epochs'"),
    (['--set', 'lr=1e30'], 'loss is not a finite number; .*try a smaller learning rate')])
def test_the_command_ends_with_1_and_one_line(data, tmp_path, capsys, more, message):
    small = ['--data', data, '--size', 'plain', '--epochs', '1', '--set', 'model.widths=[8,8,8,8]']
    assert main(['train', *small, '--out', str(tmp_path/'run'), '--quiet', *more]) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and '\n' not in said


def test_the_command_sets_any_field(data, tmp_path, capsys):
    out = tmp_path/'run'
    args = ['train', '--data', data, '--size', 'plain', '--epochs', '1', '--out', str(out),
            '--quiet', '--set', 'model.widths=[8,8,8,8]', '--set', 'mixup=0.2']
    assert main(args) == 0
    made = read_recipe(out/'config.json')
    assert (made.mixup, made.model) == (.2, dict(widths=[8]*4))
    capsys.readouterr()
    assert main(args) == 0 and 'finished before' in capsys.readouterr().out


# --- no memory any more ---

class Greedy(Callback):
    "Wants an exabyte in the second epoch."
    def before_batch(self):
        if self.epoch == 1: torch.empty(1 << 60)


def test_memory_that_runs_out_is_one_line_and_the_run_goes_on(recipe, run, tmp_path):
    with pytest.raises(GrefelError, match='not enough memory; take a smaller bs') as caught:
        run('one', recipe(), cbs=[Greedy()])
    assert '\n' not in str(caught.value)
    run('one', recipe())
    assert len(history(tmp_path/'one')) == 3


def test_memory_that_runs_out_while_loading_is_one_line(recipe, run, monkeypatch):
    monkeypatch.setattr(runs, 'load_faces', lambda *_, **__: np.empty(1 << 62, np.uint8))
    with pytest.raises(GrefelError, match='not enough memory'): run('one', recipe())
