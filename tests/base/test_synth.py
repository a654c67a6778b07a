"Synthetic data sets: the truth is true by construction, and chance comes from seeds alone."
import pytest
import torch
from torch.testing import assert_close

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.draw import ACTION_UNITS, SCENE, TRAITS, action_units, draw_faces
from grefel.base.synth import (
    bayes_accuracy, expression_mix, expression_truth, noise_matrix, synth_faces, true_confusion)


@pytest.fixture(scope='module')
def prototypes(): return torch.stack([action_units(e) for e in EXPRESSIONS])


@pytest.fixture(scope='module')
def crowd(): return synth_faces(4000, size=8, seed=2, ambiguity=.8, labels_from='draw')


def drawn(n=4000, **kw): return synth_faces(n, size=8, seed=5, **kw)
def trait(d, name): return d['identity'][:, TRAITS.index(name)]
def scene(d, name): return d['scene'][:, SCENE.index(name)]


# ---- The truth

@pytest.mark.parametrize('i', range(8))
def test_every_blend_of_two_gives_its_weights_back(prototypes, i):
    w = torch.linspace(0, 1, 5)[:, None]
    for j in range(8):
        mix = (1 - w)*torch.eye(8)[i] + w*torch.eye(8)[j]
        assert_close(expression_mix(mix @ prototypes), mix, atol=1e-5, rtol=0)


def test_contempt_may_take_either_side_and_lips_may_part():
    for codes in ('R12 R14', 'L12 L14', 'L12 L14 25'):
        assert_close(expression_mix(action_units(codes)[None])[0], torch.eye(8)[7], atol=1e-5,
                     rtol=0)


def test_a_mix_sums_to_one_whatever_the_muscles():
    assert_close(expression_mix(torch.rand(50, len(ACTION_UNITS))).sum(1), torch.ones(50))


@pytest.mark.parametrize('sharpness', [2., 8.])
def test_the_truth_is_the_posterior_of_an_observer(sharpness):
    au = torch.rand(100, len(ACTION_UNITS))
    distance = (expression_mix(au)[:, None] - torch.eye(8)).double().square().sum(-1)
    density = torch.exp(-sharpness/2*distance)
    assert_close(expression_truth(au, sharpness).double(), density/density.sum(1, keepdim=True),
                 atol=1e-4, rtol=0)


def test_prototypes_are_nearly_certain_and_half_a_smile_is_a_tie(prototypes):
    assert expression_truth(prototypes).diagonal().min() > .99
    half = expression_truth(action_units('happiness', .5)[None])[0]
    assert_close(half[0], half[1])
    assert half[:2].sum() > .9


# ---- Label noise and the bound

def test_symmetric_noise_goes_to_all_others_alike():
    t = noise_matrix(.3)
    assert_close(t.diagonal(), torch.full((8,), .7))
    assert_close(t[~torch.eye(8, dtype=torch.bool)], torch.full((56,), .3/7))
    assert_close(noise_matrix(.5, 3).sum(1), torch.ones(3))
    assert_close(noise_matrix(), torch.eye(8))


@pytest.mark.parametrize('wrong', [
    torch.ones(8, 8), 1.2, -.1, torch.eye(7), torch.eye(8)*2 - 1/8])
def test_noise_that_is_no_probability_is_refused(wrong):
    with pytest.raises(GrefelError, match='label_noise'): noise_matrix(wrong)


def test_the_bound_on_accuracy():
    certain, torn = torch.eye(8), torch.full((8, 8), 1/8)
    assert bayes_accuracy(certain) == pytest.approx(1)
    assert bayes_accuracy(torn) == pytest.approx(1/8)
    assert bayes_accuracy(certain, .3) == pytest.approx(.7)


def test_the_best_answer_is_the_label_most_probably_written():
    truth = torch.tensor([[.6, .4, 0], [.1, .2, .7]])
    half = torch.tensor([[.5, .5, 0], [0, 1, 0], [0, 0, 1]])  # half of 0 is written down as 1
    assert_close(true_confusion(truth), torch.tensor([[.3, 0, .05], [.2, 0, .1], [0, 0, .35]]))
    flipped = true_confusion(truth, half)
    assert_close(flipped, torch.tensor([[0, .15, .025], [0, .35, .125], [0, 0, .35]]))
    assert bayes_accuracy(truth, half) == pytest.approx(.7)    # .5 for the largest truth


# ---- Data sets

def test_a_data_set_has_a_row_for_each_face():
    d = synth_faces(12, size=16)
    shapes = dict(images=(12, 1, 16, 16), landmarks=(12, 68, 2), truth=(12, 8), votes=(12, 8),
                  labels=(12,), clean_labels=(12,), action_units=(12, len(ACTION_UNITS)),
                  mix=(12, 8), identity=(12, len(TRAITS)), scene=(12, len(SCENE)), groups=(12,),
                  occluded=(12,))
    assert {k: tuple(v.shape) for k, v in d.items()} == shapes
    assert d['images'].dtype == torch.uint8 and d['occluded'].dtype == torch.bool


def test_the_same_seed_gives_the_same_bytes_for_any_chunk():
    first = synth_faces(40, seed=3)
    for chunk in (1, 7):
        again = synth_faces(40, seed=3, chunk=chunk)
        assert all(torch.equal(again[k], first[k]) for k in first)
    other = synth_faces(40, seed=4)
    assert not any(torch.equal(other[k], first[k]) for k in ('images', 'votes', 'identity'))


def test_pictures_are_drawn_from_what_is_told_with_the_seeds_own_noise():
    d = synth_faces(8, size=16, seed=3, noise=.1)
    images, landmarks = draw_faces(d['action_units'], d['identity'], d['scene'], 16, noise_seed=3)
    assert torch.equal(d['images'], images) and torch.equal(d['landmarks'], landmarks)


# A change of one argument leaves all of these alone, whatever chance decides elsewhere
@pytest.mark.parametrize('change, stays, moves', [
    (dict(label_noise=.5), 'images votes clean_labels truth', 'labels'),
    (dict(occlusion=1.), 'action_units identity landmarks votes labels', 'images occluded'),
    (dict(num_votes=3), 'images truth', 'votes'),
    (dict(sharpness=2.), 'images action_units', 'truth'),
    (dict(group='glasses'), 'action_units scene votes', 'groups identity'),
    (dict(group_penalty=1.), 'images scene groups', ''),
    (dict(pose=0.), 'action_units identity truth votes occluded', 'landmarks images'),
    (dict(light=0.), 'action_units landmarks votes', 'images'),
    (dict(noise=.1), 'action_units landmarks votes', 'images')])
def test_one_argument_changes_what_it_should_and_nothing_else(change, stays, moves):
    a, b = synth_faces(60, size=16, seed=3), synth_faces(60, size=16, seed=3, **change)
    for k in stays.split(): assert torch.equal(a[k], b[k]), k
    for k in moves.split(): assert not torch.equal(a[k], b[k]), k


def test_the_truth_follows_from_the_action_units_alone(crowd):
    assert torch.equal(crowd['truth'], expression_truth(crowd['action_units']))
    assert_close(crowd['mix'].sum(1), torch.ones(4000))


def test_votes_fall_as_the_truth_says(crowd):
    p, share = crowd['truth'].flatten(), crowd['votes'].flatten()/10
    assert (crowd['votes'].sum(1) == 10).all()
    for low in torch.arange(0, 1, .1):
        here = (p >= low) & (p < low + .1)
        error = (p[here].mean() - share[here].mean()).abs()
        assert error < 4*(.25/(10*here.sum()))**.5 + 1e-3, low


@pytest.mark.parametrize('label_noise', [0., .3])
def test_the_best_answer_is_right_as_often_as_the_bound_says(label_noise):
    d = synth_faces(4000, size=8, seed=2, ambiguity=.8, labels_from='draw', label_noise=label_noise)
    right = (d['truth'].argmax(1) == d['labels']).float().mean().item()
    assert abs(right - bayes_accuracy(d['truth'], label_noise)) < 3*(.25/4000)**.5


def test_the_majority_of_votes_is_the_clean_label():
    d = drawn(1000, ambiguity=.8)
    votes, clean = d['votes'], d['clean_labels']
    assert (votes.gather(1, clean[:, None])[:, 0] == votes.max(1).values).all()
    assert torch.equal(d['labels'], clean)
    tied = (votes == votes.max(1, keepdim=True).values).sum(1) > 1
    first = votes.argmax(1)[tied]
    assert .2 < (clean[tied] == first).float().mean() < .8  # ties are broken at random


def test_a_share_of_faces_is_ambiguous():
    for ambiguity in (0., .4, 1.):
        blended = (drawn(ambiguity=ambiguity)['mix'].max(1).values < .75).float().mean().item()
        assert blended == pytest.approx(ambiguity, abs=.03)


def test_noise_flips_as_many_labels_as_asked_for():
    d = drawn(ambiguity=0., label_noise=.3)
    assert (d['labels'] != d['clean_labels']).float().mean().item() == pytest.approx(.3, abs=.025)


def test_a_noise_matrix_flips_only_what_it_says():
    fear_as_surprise = torch.eye(8)
    fear_as_surprise[6] = torch.tensor([0, 0, .4, 0, 0, 0, .6, 0])
    d = drawn(label_noise=fear_as_surprise)
    flipped = d['labels'] != d['clean_labels']
    assert (d['clean_labels'][flipped] == 6).all() and (d['labels'][flipped] == 2).all()
    afraid = d['clean_labels'] == 6
    assert (flipped.sum()/afraid.sum()).item() == pytest.approx(.4, abs=.07)


def test_class_weights_give_the_imbalance_asked_for():
    counts = torch.tensor([8733., 7284, 3136, 3022, 2098, 116, 536, 0])
    d = drawn(ambiguity=0., class_weights=counts)
    shares = torch.bincount(d['mix'].argmax(1), minlength=8)/4000
    assert_close(shares, counts/counts.sum(), atol=.025, rtol=0)
    assert shares[7] == 0


def test_people_are_as_the_text_says():
    d = drawn()
    assert trait(d, 'glasses').mean().item() == pytest.approx(1/8, abs=.02)
    assert (trait(d, 'beard') > 0).float().mean().item() == pytest.approx(1/6, abs=.02)
    assert d['identity'][:, :15].abs().max() <= 2
    assert -2 <= trait(d, 'skin').min() and trait(d, 'skin').max() <= 1.5


def test_contempt_takes_both_sides_equally():
    d = drawn(ambiguity=0., class_weights=[0]*7 + [1])
    right = d['action_units'][:, list(ACTION_UNITS).index('R12')] > .5
    assert right.float().mean().item() == pytest.approx(.5, abs=.04)


def test_lips_part_mostly_in_smiles():
    parted = list(ACTION_UNITS).index('25')
    smiling, angry = ((drawn(ambiguity=0., class_weights=torch.eye(8)[c])['action_units'][:, parted]
                       > .2).float().mean() for c in (1, 4))
    assert smiling > 2*angry > 0


def test_a_plain_scene_is_plain():
    d = drawn(200, pose=0., light=0., noise=0., occlusion=0.)
    for name in SCENE:
        if name.startswith(('bar_', 'hand_')): continue
        assert scene(d, name).abs().max() == 0, name


def test_occluders_come_as_often_as_asked_for_and_one_at_a_time():
    d = drawn(occlusion=.4)
    bar, hand = scene(d, 'bar') > 0, scene(d, 'hand') > 0
    assert torch.equal(d['occluded'], bar | hand) and not (bar & hand).any()
    assert d['occluded'].float().mean().item() == pytest.approx(.4, abs=.03)
    assert bar.float().mean().item() == pytest.approx(.2, abs=.03)


@pytest.mark.parametrize('group', ['glasses', 'skin'])
def test_a_group_is_planted_where_it_says(group):
    d = drawn(group=group, group_share=.4)
    marked = d['groups'] == 1
    assert marked.float().mean().item() == pytest.approx(.4, abs=.03)
    value = trait(d, group)
    if group == 'glasses': assert torch.equal(value, marked.float())
    else: assert value[marked].max() < -1 < -.2 <= value[~marked].min()


def test_a_penalised_group_is_taken_worse_and_its_truth_stays():
    fair, hard = (drawn(group='glasses', group_penalty=p) for p in (0., 1.))
    marked = fair['groups'] == 1
    assert torch.equal(fair['truth'], hard['truth']) and torch.equal(fair['groups'], hard['groups'])
    assert torch.equal(fair['scene'][~marked], hard['scene'][~marked])
    assert_close(scene(hard, 'tilt')[marked], 1.7*scene(fair, 'tilt')[marked])
    assert_close(1 + scene(hard, 'contrast')[marked], .6*(1 + scene(fair, 'contrast')[marked]))
    assert scene(hard, 'blur')[marked].min() >= .33
    assert_close(scene(hard, 'noise')[marked], scene(fair, 'noise')[marked] + .03)


def test_no_group_marks_nobody(): assert drawn(50)['groups'].sum() == 0


@pytest.mark.parametrize('wrong, words', [
    (dict(class_weights=[1, 2]), 'eight numbers'), (dict(class_weights=[0]*8), 'not all zero'),
    (dict(class_weights=[-1] + [1]*7), 'none negative'), (dict(group='age'), 'glasses'),
    (dict(labels_from='me'), 'majority'), (dict(num_votes=0), 'at least one vote'),
    (dict(label_noise=2.), 'label_noise'), (dict(n=0), 'at least one face'),
    (dict(size=7), 'at least one face of 8 pixels')])
def test_arguments_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(GrefelError, match=words): synth_faces(**(dict(n=4) | wrong))
