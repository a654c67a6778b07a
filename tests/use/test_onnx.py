"""ONNX files agree with PyTorch, say all that a reader needs, or are not written."""
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from tests.test_wheel import LIGHT

from grefel.base.core import EXPRESSIONS, GrefelError, weights_file
from grefel.base.synth import synth_faces
from grefel.data.faces import load_faces
from grefel.measure.answers import add_metadata, predict_data, reliability_notes
from grefel.method.files import load_model, save_model
from grefel.method.model import GReFELModel, create_model
from grefel.use import onnx as module
from grefel.use.onnx import (
    describe, export_onnx, int8_loss, onnx_difference, onnx_graph, PlainOps, prepare_faces,
    quantise, read_description, scale_faces, store_halves)
from grefel.use.predict import Predictor

onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

SMALL = dict(embed_dim=16, num_heads=2, widths=(8, 8, 8, 8), depths=(1, 1, 1, 0),
             num_anchors_per_class=1)


@pytest.fixture(scope='module')
def model(): return load_model('nano')


@pytest.fixture(scope='module')
def faces(model): return prepare_faces(model.config, synth_faces(24, size=48, seed=1)['images'])


@pytest.fixture(scope='module')
def graph(model): return onnx_graph(model)


def copied(graph):
    "A graph that a test may change."
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


@pytest.fixture(scope='module')
def file(graph, model, tmp_path_factory):
    "The shipped model as `export_onnx` stores it."
    path = tmp_path_factory.mktemp('onnx')/'nano.onnx'
    path.write_bytes(describe(store_halves(copied(graph)), model).SerializeToString())
    return path


@pytest.fixture(scope='module')
def tiny():
    "A model that is unlike the shipped one in what an exporter or a reader could take for granted."
    torch.manual_seed(3)
    return create_model('nano', **SMALL, classes=EXPRESSIONS[::-1], mean=(0.2, 0.3, 0.4),
                        std=(0.6, 0.5, 0.4)).eval()


@pytest.fixture(scope='module')
def tiny_graph(tiny): return onnx_graph(tiny)


@pytest.fixture
def traced(tiny_graph, monkeypatch):
    "`export_onnx` gets the tiny model's graph without tracing it again."
    monkeypatch.setattr(module, 'onnx_graph', lambda *_: copied(tiny_graph))


def answers(file, images):
    "All outputs of an ONNX file, by name, without this library's help."
    session = runtime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {'images': np.asarray(images, np.float32)})))


# ---- The graph

def test_plain_operations_answer_like_the_fused_ones(model, faces):
    with torch.no_grad():
        usual = model(faces)
        with PlainOps(): plain = model(faces)
    for name in usual: torch.testing.assert_close(plain[name], usual[name], atol=1e-5, rtol=1e-5)


def test_every_output_has_an_open_batch_size(graph):
    shapes = [o.type.tensor_type.shape.dim[0].dim_param for o in graph.graph.output]
    assert shapes == ['batch']*len(shapes) and len(shapes) >= 14
    assert {'final_probs', 'landmarks', 'attention_0'} <= {o.name for o in graph.graph.output}


def test_no_average_rounds_up(graph):
    # what rounds up runs several times as long in ONNX Runtime; nano's maps have even sides
    averages = [node for node in graph.graph.node if node.op_type == 'AveragePool']
    assert averages
    assert not any(a.i for node in averages for a in node.attribute if a.name == 'ceil_mode')


def test_the_graph_holds_no_call_stacks_and_no_guards(graph):
    parts = (*graph.graph.node, *graph.graph.initializer, graph.graph, graph)
    assert not any(p.metadata_props or p.doc_string for p in parts)
    assert not {'IsNaN', 'Where', 'BatchNormalization'} & {n.op_type for n in graph.graph.node}


@pytest.mark.parametrize('n', [1, 2, 7])
def test_a_face_reads_the_same_alone_and_among_others(file, faces, n):
    among, alone = answers(file, faces[:n]), answers(file, faces[n - 1:n])
    for name in alone:
        assert len(among[name]) == n
        np.testing.assert_allclose(among[name][n - 1:], alone[name], atol=1e-5)


def test_halves_lose_nothing_and_save_space(graph, file):
    assert file.stat().st_size < 0.85*graph.ByteSize()
    whole = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    halves = [n for n in stored if n.endswith('.half')]
    assert halves
    for name in halves:
        exact = whole[name.removesuffix('.half')]
        assert np.array_equal(stored[name].astype(np.float32), exact) and exact.size >= 64


def test_export_stores_halves(model, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'onnx_graph', lambda *_: copied(graph))
    found = export_onnx(model, tmp_path/'nano.onnx')
    assert found['bytes'] == (tmp_path/'nano.onnx').stat().st_size < 0.85*graph.ByteSize()
    assert found['difference'] < 1e-4 and found['faces'].startswith('64 ')
    assert read_description(tmp_path/'nano.onnx')['config']['classes'] == list(model.classes)


def test_weights_that_float16_cannot_hold_stay_whole(tiny_graph):
    "Rounding them would cost accuracy, and weights fresh from training are not on float16's grid."
    stored = {t.name for t in store_halves(copied(tiny_graph)).graph.initializer}
    for tensor in tiny_graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        exact = values.dtype != np.float32 or np.array_equal(values.astype(np.float16), values)
        assert exact or tensor.name in stored


# ---- Agreement

def test_other_weights_are_noticed(file, faces):
    torch.manual_seed(0)
    assert max(onnx_difference(file, create_model('nano').eval(), faces[:3]).values()) > 1e-2


@pytest.mark.parametrize('at', [1, 3, 24])
def test_a_difference_in_one_face_is_noticed(file, model, faces, at):
    "Every batch counts, and every batch size: those of 1 and 2 faces come first, a rest last."
    class Wrong(torch.nn.Module):
        config = model.config
        seen = 0

        def forward(self, images, need_attention=False):
            self.seen += len(images)
            out = model(images, need_attention=need_attention)
            return out | dict(logits=out['logits'] + float(self.seen == at))
    worst = onnx_difference(file, Wrong(), faces)
    assert worst.pop('logits') == pytest.approx(1, abs=1e-3) and max(worst.values()) < 1e-4


def turned_around(values): return values[..., ::-1].copy()


def not_a_number(values): return np.full_like(values, np.nan)


@pytest.mark.parametrize('damage', [turned_around, not_a_number])
@pytest.mark.parametrize('int8', [False, True])
def test_a_file_that_disagrees_is_not_written(
        tiny, tiny_graph, tmp_path, monkeypatch, damage, int8):
    "One weight tensor is wrong, as a faulty exporter might leave it."
    graph = copied(tiny_graph)
    tensor = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    values = damage(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    monkeypatch.setattr(module, 'onnx_graph', lambda *_: graph)
    (tmp_path/'tiny.onnx').write_bytes(b'an earlier file')
    with pytest.raises(GrefelError, match='tiny.onnx: not written, .* differs from PyTorch by'):
        export_onnx(tiny, tmp_path/'tiny.onnx', int8=int8)
    assert (tmp_path/'tiny.onnx').read_bytes() == b'an earlier file'


def test_one_output_that_is_no_number_is_enough(tiny, traced, tmp_path, monkeypatch):
    worst = dict(logits=1e-6, distances=np.nan, final_probs=1e-6)
    monkeypatch.setattr(module, 'onnx_difference', lambda *_: worst)
    with pytest.raises(GrefelError, match='not written, distances differs from PyTorch by nan'):
        export_onnx(tiny, tmp_path/'tiny.onnx')
    assert not list(tmp_path.iterdir())


def test_the_tolerance_is_the_callers(tiny, traced, tmp_path):
    with pytest.raises(GrefelError, match='not written'):
        export_onnx(tiny, tmp_path/'tiny.onnx', tolerance=1e-12)
    assert not list(tmp_path.iterdir())


def test_another_configuration_agrees_as_well(tmp_path):
    "A patch pyramid, seven classes, no corrections, another opset, weights never rounded."
    other = GReFELModel(
        num_classes=7, img_size=28, embed_dim=16, num_heads=2, depth=1, token_grid=2, sources=(),
        patch_sizes=(14, 7, 7), widths=(16, 8, 8), geometry='none', name='tiny').eval()
    found = export_onnx(other, tmp_path/'sub'/'tiny.onnx', opset=20)
    assert found['difference'] < 1e-4 and 'anchor_probs' not in found['outputs']
    assert found['bytes'] == (tmp_path/'sub'/'tiny.onnx').stat().st_size
    assert onnx.load(found['out']).opset_import[0].version == 20
    config = read_description(found['out'])['config']
    assert config['classes'] == list(EXPRESSIONS[:7]) and config['img_size'] == 28


def test_the_file_that_ships_is_that_of_the_weights(model, faces):
    shipped = weights_file('nano').with_suffix('.onnx')
    note = read_description(shipped)
    assert note['metadata'] == json.loads(json.dumps(model.metadata))
    assert note['config']['classes'] == list(model.classes)
    assert max(onnx_difference(shipped, model, faces).values()) < 1e-4
    assert shipped.stat().st_size < 4e6


# ---- The description

def test_the_description_holds_classes_preprocessing_and_metadata(file, model):
    note = read_description(file)
    assert note['config'] == {k: json.loads(json.dumps(model.config[k]))
                              for k in ('name', 'classes', 'img_size', 'mean', 'std')}
    assert note['metadata'] == json.loads(json.dumps(model.metadata))
    assert read_description(file.read_bytes()) == note


def test_a_reader_goes_by_the_description(tiny, traced, tmp_path):
    "Classes, mean and deviation stand in the file alone; PyTorch's own weights file is the truth."
    export_onnx(tiny, tmp_path/'tiny.onnx')
    weights = save_model(tiny, tmp_path/'tiny.safetensors')
    face = synth_faces(1, size=48, seed=5)['images'][0]
    said = Predictor(tmp_path/'tiny.onnx', crop='whole')(face)[0]
    wanted = Predictor(weights, crop='whole')(face)[0]
    assert list(said.probabilities) == list(EXPRESSIONS[::-1])
    assert said.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert said.emotion == wanted.emotion


# ---- Sets and doubts

@pytest.fixture(scope='module')
def measured(model, graph, tmp_path_factory):
    "The shipped model, calibrated on drawn faces: as weights and as an ONNX file."
    folder = tmp_path_factory.mktemp('measured')
    drawn = synth_faces(60, size=48, seed=8)
    votes = 6*np.eye(8)[drawn['labels']] + 1
    found = predict_data(model, drawn)
    notes = reliability_notes(found, drawn['labels'].numpy(), drawn, votes)
    add_metadata('nano', folder/'w.safetensors', **notes)
    own = load_model(folder/'w.safetensors')
    (folder/'w.onnx').write_bytes(describe(copied(graph), own).SerializeToString())
    return folder/'w.safetensors', folder/'w.onnx'


@pytest.mark.parametrize('asked', [dict(), dict(coverage=.8, promise='annotators')])
def test_sets_and_doubts_come_with_the_file_and_are_those_of_pytorch(measured, asked):
    faces = [*synth_faces(6, size=48, seed=9)['images'][:, 0].numpy(), astronaut()]
    torch_says, onnx_says = (Predictor(file, **dict(coverage=.9) | asked)(faces)
                             for file in measured)
    for (a,), (b,) in zip(torch_says, onnx_says):
        assert a.set == b.set and a.reliable == b.reliable
        assert (a.ambiguity, a.familiarity) == pytest.approx((b.ambiguity, b.familiarity), abs=1e-3)
    told = [a for a, in torch_says]
    assert len({a.familiarity for a in told}) > 3 and max(len(a.set) for a in told) > 1


def test_the_light_install_answers_with_sets(measured, tmp_path):
    "What training needs is out of reach, as where only NumPy, Pillow and ONNX Runtime are there."
    Image.fromarray(astronaut()).save(tmp_path/'a.png')
    code = (LIGHT.split('from skimage')[0] + "found_spec = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda n, *a: None if n in BLOCKED else found_spec(n, *a)\n"
            "from grefel.use.cli import main\nsys.exit(main(sys.argv[1:]))")
    done = subprocess.run(
        [sys.executable, '-c', code, 'predict', tmp_path/'a.png', '--backend', 'onnx', '--weights',
         measured[1], '--coverage', '.9', '--json'], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert said['set'][0] == said['emotion'] and said['ambiguity'] is not None


def test_an_onnx_file_that_answers_no_number_is_refused(model, graph, faces, tmp_path):
    broken, file = copied(graph), tmp_path/'broken.onnx'
    tensor = max(broken.graph.initializer, key=lambda t: len(t.raw_data))
    values = not_a_number(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    file.write_bytes(describe(broken, model).SerializeToString())
    with pytest.raises(GrefelError, match='no number'):
        Predictor(file, detector='none')(np.full((48, 48), 90, np.uint8))
    data = Faces(images=synth_faces(2, size=48)['images'], labels=torch.zeros(2, dtype=torch.int64),
                 classes=model.classes)
    with pytest.raises(GrefelError, match='no number'): int8_loss(file, file, data)


class Faces(SimpleNamespace):
    "What `int8_loss` needs of a data set."
    def __len__(self): return len(self.labels)


def test_int8_loss_goes_by_the_description(tiny, tiny_graph, model, tmp_path):
    "Which classes there are, and how faces are prepared: only so are all of these answers right."
    file, images = tmp_path/'tiny.onnx', synth_faces(40, size=48, seed=6)['images']
    config = tiny.config | dict(classes=EXPRESSIONS, mean=(0., 0., 0.), std=(5., 5., 5.))
    other = SimpleNamespace(config=config, metadata={})
    file.write_bytes(describe(copied(tiny_graph), other).SerializeToString())
    with torch.inference_mode():
        prepared = [prepare_faces(c, images) for c in (config, tiny.config, model.config)]
        labels, *others = [tiny(faces)['final_probs'].argmax(1) for faces in prepared]
    assert all((labels != o).any() for o in others)            # preparing matters here
    data = Faces(images=images, labels=labels, classes=EXPRESSIONS)
    assert int8_loss(file, file, data, bs=7) == dict(
        n=40, accuracy=1, int8_accuracy=1, loss=0, agreement=1, moved=0)
    with pytest.raises(GrefelError, match='the faces have other classes'):
        int8_loss(file, file, Faces(images=images, labels=labels, classes=EXPRESSIONS[::-1]))


@pytest.mark.parametrize('bad', [b'no model', 'missing.onnx'])
def test_what_is_no_model_has_no_description(bad):
    with pytest.raises(GrefelError, match='no ONNX model'): read_description(bad)


def test_a_model_of_others_has_no_description(tmp_path):
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in 'xy']
    graph = onnx.helper.make_graph([node], 'other', value[:1], value[1:])
    opset = [onnx.helper.make_opsetid('', 18)]
    other = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    with pytest.raises(GrefelError, match='holds no grefel model'):
        read_description(other.SerializeToString())


# ---- 8 bits

@pytest.fixture(scope='module')
def small(graph, model, tmp_path_factory):
    path = tmp_path_factory.mktemp('int8')/'nano.onnx'
    path.write_bytes(describe(quantise(graph, scale_faces(model)), model).SerializeToString())
    return path


def test_8_bits_are_smaller_and_answer_nearly_the_same(file, small, model, faces):
    assert small.stat().st_size < file.stat().st_size/2
    assert read_description(small)['config']['classes'] == list(model.classes)
    loss = int8_loss(file, small, load_faces('synth', split='valid', n=300))
    assert loss['n'] == 300 and loss['agreement'] > 0.9 and 0 < loss['moved'] < 0.02
    for n in (1, 2, 7): assert answers(small, faces[:n])['final_probs'].shape == (n, 8)


def test_export_tells_what_8_bits_did(tiny, traced, tmp_path):
    found = export_onnx(tiny, tmp_path/'tiny.onnx', int8=True)
    assert 0 < found['int8_difference'] < 0.2 and 0.5 < found['agreement'] <= 1
    assert found['difference'] < 1e-4                          # before rounding


def test_scales_are_not_read_off_from_what_measures(tiny, traced, tmp_path):
    data = load_faces('synth', split='valid', n=10)
    with pytest.raises(GrefelError, match='not read off from valid images'):
        export_onnx(tiny, tmp_path/'a.onnx', int8=True, scales=data)
    assert not list(tmp_path.iterdir())
    train = load_faces('synth', split='train', n=10)
    assert scale_faces(tiny, train, n=4).shape == (4, 3, 48, 48)


# ---- What is refused

@pytest.mark.parametrize('weights, out, options, line', [
    ('nano', 'nano.bin', {}, 'nano.bin: the name of an ONNX file ends in .onnx'),
    ('huge', 'huge.onnx', {}, 'huge: no such weights file (shipped: nano, small)'),
    ('nano', 'nano.onnx', dict(opset=17), 'opset is 18 to 23, not 17'),
    ('nano', 'nano.onnx', dict(opset=24), 'opset is 18 to 23, not 24')])
def test_bad_arguments_are_told_in_a_line(tmp_path, monkeypatch, weights, out, options, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GrefelError) as told: export_onnx(weights, out, **options)
    assert str(told.value) == line and not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_cure(model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(GrefelError, match=r"need onnxscript: pip install 'grefel\[export\]'"):
        onnx_graph(model)
