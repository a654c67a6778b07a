"""Look-alikes: whole where nothing was planted, and everything planted is noted."""
import pytest

from grefel.base.core import GrefelError
from grefel.base.images import load_image
from grefel.data.lookalikes import lookalike, LOOKALIKES


@pytest.mark.parametrize('name', LOOKALIKES)
def test_images_of_a_clean_copy_are_whole(tmp_path, name):
    planted = []
    lookalike(name, tmp_path, planted=planted)
    images = [f for f in tmp_path.rglob('*.*') if f.suffix in ('.jpg', '.png', '.tiff')]
    for f in images: assert load_image(f).mode == 'RGB'
    assert planted == [] and (images or name in ('fer2013', 'parquet'))


@pytest.mark.parametrize('name', LOOKALIKES)
def test_faults_are_planted_and_noted(tmp_path, name):
    planted = []
    lookalike(name, tmp_path/'clean')
    lookalike(name, tmp_path/'faulty', faults=True, planted=planted)
    clean, faulty = ({f.relative_to(tmp_path/k): f.read_bytes() for f in (tmp_path/k).rglob('*.*')}
                     for k in ('clean', 'faulty'))
    assert clean != faulty
    assert len(planted) > 3 and all(kind and where for kind, where in planted)


def test_a_copy_is_the_same_every_time(tmp_path):
    for k in 'ab': lookalike('rafdb', tmp_path/k)
    for f in (tmp_path/'a').rglob('*.*'):
        assert f.read_bytes() == (tmp_path/'b'/f.relative_to(tmp_path/'a')).read_bytes()


def test_unknown_layout(tmp_path):
    with pytest.raises(GrefelError, match='unknown layout'): lookalike('imagenet', tmp_path)
