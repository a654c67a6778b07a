"""Batches: repeatable by seed, faces and what belongs to them in step, landmarks hidden."""
import pytest
import torch

from grefel.data.faces import FaceData
from grefel.train.loader import FaceLoader, face_dls


def first(faces, model, epoch=0, seed=3, **kw):
    loader = face_dls(faces, faces, model, bs=32, hide_landmarks=.5, seed=seed, **kw).train
    loader.batches.epoch = epoch
    return next(iter(loader))


def share_hidden(given): return given.isnan().flatten(1).any(1).float().mean().item()


def test_same_seed_and_epoch_give_the_same_batch(faces, plain):
    for a, b in zip(first(faces, plain), first(faces, plain)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('other', [dict(epoch=1), dict(seed=4)])
def test_another_epoch_or_seed_gives_other_images_and_hides_other_landmarks(faces, plain, other):
    # no augmentation and one row a class: what differs is order and hiding
    here, there = first(faces, plain), first(faces, plain, **other)
    assert not torch.equal(here[0], there[0])
    assert not torch.equal(here[1].isnan(), there[1].isnan())


def test_epochs_follow_one_another_without_being_told(faces, plain):
    loader = face_dls(faces, faces, plain, bs=32).train
    assert not torch.equal(next(iter(loader))[0], next(iter(loader))[0])


def test_no_landmarks_are_given_by_default_and_all_are_known(faces, plain):
    dls = face_dls(faces, faces, plain, bs=32)
    for loader in (dls.train, dls.valid):
        _, given, _, known = loader.one_batch()
        assert given.isnan().all() and not known.isnan().any()


@pytest.mark.parametrize('hide, low, high', [(0., 0, 0), (.5, .3, .7), (1., 1, 1)])
def test_share_of_hidden_landmarks(faces, plain, hide, low, high):
    dls = face_dls(faces, faces, plain, bs=96, hide_landmarks=hide)
    _, given, _, known = dls.train.one_batch()
    assert low <= share_hidden(given) <= high
    seen = ~given.isnan()
    assert torch.equal(given[seen], known[seen])
    assert share_hidden(dls.valid.one_batch()[1]) == 1  # in validation all are hidden


def test_a_face_keeps_its_landmarks_and_target_when_shuffled(faces, plain):
    loader = face_dls(faces, faces, plain, bs=32, augment='none').train
    whole = loader.transform(faces.images, faces.landmarks)[0]  # (n, 3, S, S)
    for images, _, targets, known in loader:
        same = (images[:, None] - whole[None]).flatten(2).abs().amax(2) < 1e-6  # (B, n)
        index = same.int().argmax(1)
        assert same.any(1).all()
        assert torch.equal(targets, faces.targets[index])
        torch.testing.assert_close(known, faces.landmarks[index])


def test_validation_goes_through_all_faces_in_order_and_as_they_are(faces, plain):
    some = faces.subset(range(70))
    loader = face_dls(some, some, plain, bs=32, augment='heavy').valid
    images, _, targets, known = map(torch.cat, zip(*loader))
    mean, std = (torch.tensor(plain.config[k])[:, None, None] for k in ('mean', 'std'))
    torch.testing.assert_close(images, (some.images/255 - mean)/std)
    assert torch.equal(targets, some.targets) and torch.equal(known, some.landmarks)
    assert loader.get_idxs() == list(range(70))


@pytest.mark.parametrize('n, bs, shuffle, sizes', [
    (70, 32, True, [32, 32]), (70, 32, False, [32, 32, 6]), (20, 32, True, [20])])
def test_training_drops_a_last_batch_that_is_not_full_unless_it_is_the_only_one(
        faces, plain, n, bs, shuffle, sizes):
    tfm = face_dls(faces, faces, plain).valid.transform
    loader = FaceLoader(faces.subset(range(n)), tfm, bs, shuffle)
    assert [len(b[0]) for b in loader] == sizes and len(loader) == len(sizes)


def test_faces_move_with_the_loader(faces, plain):
    loader = face_dls(faces, faces, plain, bs=4).train
    loader.to('meta')
    moved = loader.dataset
    assert {t.device.type for t in (moved.images, moved.landmarks, moved.targets)} == {'meta'}
    assert loader.batches.data is moved and loader.batches.device == 'meta'
    assert isinstance(moved, FaceData) and faces.images.device.type == 'cpu'


def test_a_new_loader_keeps_all_settings_but_those_named(faces, plain):
    loader = face_dls(faces, faces, plain, bs=16, hide_landmarks=.3, seed=7).train
    other = loader.new(faces.subset(range(40)), bs=8)
    assert (other.bs, other.batches.bs, len(other.dataset)) == (8, 8, 40)
    assert (other.hide, other.seed, other.shuffle) == (.3, 7, True)
    assert other.transform is loader.transform and other.batches.seed == 7


def test_show_batch_shows_at_most_what_it_was_asked(faces, plain):
    loader = face_dls(faces, faces, plain, bs=4).train
    assert [len(loader.show_batch(n).axes) for n in (3, 8)] == [3, 4]
