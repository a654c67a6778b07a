"""Asks one tool from PyPI about faces, inside that tool's own environment. benchmarks/tools.py
starts it with the tool's name. Each line that it is then told is JSON:

    [SIDE, FACES, ANSWERS]

FACES holds grey images of SIDE × SIDE bytes, one after the other; ANSWERS receives float32
probabilities, a row a face, in the tool's own order. It says `answered` and the milliseconds of
processor time of each call. Every tool does its own resizing, scaling and classifying; only its
search for faces is skipped, since these images are faces already.
"""
import json
import os
import sys
import time

for name in ('OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
    os.environ[name] = '1'
os.environ.update(CUDA_VISIBLE_DEVICES='', TF_CPP_MIN_LOG_LEVEL='3')

import numpy as np  # noqa: E402


def ask_fer():
    "fer: 64 px, -1 to 1; the quantised network that it uses unless told otherwise."
    import cv2
    from fer.fer import FER
    tool = FER()
    def ask(face):
        small = cv2.resize(face, (64, 64)).astype('float32')
        return tool._classify_emotions((small/255 - .5)[None]*2)[0]
    return ask


def ask_fer_keras():
    "fer with use_tflite=False: the same network in 32 bits."
    import cv2
    from fer.fer import FER
    tool = FER(use_tflite=False)
    def ask(face):
        small = cv2.resize(face, (64, 64)).astype('float32')
        return np.asarray(tool._classify_emotions((small/255 - .5)[None, ..., None]*2))[0]
    return ask


def ask_facex():
    "facex: 200 px of three channels, 0 to 1."
    from pathlib import Path
    import facex
    from facex.core import EmotionClassifier
    path = Path(facex.__file__).parent/'assets'/'model_optimized.tflite'
    tool = EmotionClassifier(str(path))
    return lambda face: list(tool.detect_emotion(face).values())


def ask_facemood():
    "facemood: 170 px of three channels, 0 to 1. Its one function reads a camera: done by hand."
    from pathlib import Path
    import tensorflow as tf
    from PIL import Image
    import facemood
    path = Path(facemood.__file__).parent/'model__version1.0.0__.h5'
    model = tf.keras.models.load_model(path, compile=False)
    run = tf.function(lambda x: model(x, training=False))
    def ask(face):
        colour = Image.fromarray(face).convert('RGB').resize((170, 170))
        return run(tf.constant((np.array(colour)/255)[None], tf.float32)).numpy()[0]
    return ask


def ask_facial_emotion_recognition():
    """facial-emotion-recognition: 48 px; it says the class of the largest exp(output).

    Its weights were stored on a GPU and it doesn't say otherwise, so we do."""
    import functools
    import torch
    torch.load = functools.partial(torch.load, map_location='cpu')
    from facial_emotion_recognition import EmotionRecognition
    torch.set_num_threads(1)
    tool = EmotionRecognition(device='cpu')
    @torch.inference_mode()
    def ask(face):
        values = torch.exp(tool.network(tool.transform(face)[None]))[0]
        return (values/values.sum()).numpy()
    return ask


def ask_what_the_face():
    "what-the-face-classification: 48 px, 0 to 1."
    import torch
    from PIL import Image
    from what_the_face_classification.inference import Image_classifier
    torch.set_num_threads(1)
    tool = Image_classifier()
    tool.net.eval()
    @torch.inference_mode()
    def ask(face):
        image = tool.transform(Image.fromarray(face)).float()
        return torch.softmax(tool.net(image), 1)[0].numpy()
    return ask


def answer(ask, side, faces, answers):
    "One job: milliseconds of each call."
    images = np.fromfile(faces, np.uint8).reshape(-1, side, side)
    found, spent = [], []
    for face in images:
        start = time.process_time()
        found.append(np.asarray(ask(face), np.float32))
        spent.append(round(1e3*(time.process_time() - start), 3))
    np.stack(found).tofile(answers)
    return spent


def main():
    ask = globals()['ask_' + sys.argv[1].replace('-', '_')]()
    for line in sys.stdin: print('answered', json.dumps(answer(ask, *json.loads(line))), flush=True)


if __name__ == '__main__': main()
