"""grefel train on a table that isn't ours: its columns, its words, its separators."""
import json

import pytest
from PIL import Image

from grefel.base.core import EXPRESSIONS, GrefelError
from grefel.base.synth import synth_faces
from grefel.train.runs import read_recipe, training_faces
from grefel.use.cli import main

COLUMNS = 'image=file,label=mood,split=part'
CLASSES = ','.join(f'm{i}={e}' for i, e in enumerate(EXPRESSIONS))
TINY = ['--size', 'plain', '--set', 'model={"widths": [8, 8, 8, 8]}', '--epochs', '1', '--bs', '16',
        '--targets', 'hard']


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    place = tmp_path_factory.mktemp('own')
    faces = synth_faces(64, size=48, seed=2)
    (place/'x').mkdir()
    lines = ['file;mood;part']
    for i, (image, label) in enumerate(zip(faces['images'], faces['labels'].tolist())):
        Image.fromarray(image[0].numpy()).save(place/f'x/{i}.png')
        lines.append(f"x/{i}.png;m{label};{'train' if i < 48 else 'valid'}")
    (place/'list.csv').write_text('\n'.join(lines))
    return place/'list.csv', faces['labels']


def test_columns_and_classes_reach_the_run_and_travel_with_it(table, tmp_path, capsys):
    path, labels = table
    main(['train', '--data', str(path), '--columns', COLUMNS, '--classes', CLASSES,
          '--out', str(tmp_path/'run'), '--quiet', *TINY])
    assert 'Best epoch 1:' in capsys.readouterr().out
    kept = json.loads((tmp_path/'run/config.json').read_text())['recipe']
    assert kept['reading'] == dict(columns=COLUMNS, classes=CLASSES)
    faces = training_faces(read_recipe(**kept))
    assert faces.labels.tolist() == labels[:48].tolist()


def test_a_stream_says_what_to_do_with_them(table):
    recipe = read_recipe(data=str(table[0]), stream=True, reading=dict(columns=COLUMNS))
    with pytest.raises(GrefelError, match='run grefel data convert first'): training_faces(recipe)
