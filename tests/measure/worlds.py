"""Predictions whose truth is known, and a stand-in for a model."""
import numpy as np
import torch
from torch import nn

from grefel.data.augment import make_transform
from grefel.method.balancing import balance


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z/z.sum(-1, keepdims=True)


def known_world(n, temperature=1., spread=3., classes=8, seed=2):
    "Predictions, labels, and the true distributions that the labels were sampled from."
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, classes))
    truth = softmax(logits)
    labels = (truth.cumsum(1) > rng.random((n, 1))*truth.sum(1, keepdims=True)).argmax(1)
    return softmax(logits/temperature), labels, truth


class Reader(nn.Module):
    "Two linear readers of pixels, merged by reliability balancing: a model fitted in a moment."

    def __init__(self, faces, size=32, sharp=9.):
        super().__init__()
        self.config = dict(name='reader', img_size=size, mean=[0.5]*3, std=[0.25]*3,
                           classes=list(faces.classes))
        self.classes, self.sharp = faces.classes, sharp
        x = make_transform('none', size, 0.5, 0.25)(faces.images)[0]
        self.weights = nn.ParameterList([self.solve(f, faces.targets) for f in self.features(x)])

    def solve(self, f, targets):
        return torch.linalg.solve(f.T @ f + 200*torch.eye(f.shape[1]), f.T @ (targets - 1/8))

    def features(self, x):
        grey = x.mean(1, keepdim=True)
        grey = grey - grey.mean((2, 3), keepdim=True)
        return grey.flatten(1), nn.functional.avg_pool2d(grey, 4, 2).flatten(1)

    def forward(self, images, landmarks=None):
        p, t = (torch.softmax(self.sharp*f @ w, -1)
                for f, w in zip(self.features(images), self.weights))
        final, correction = balance(p, [t])
        return dict(primary_probs=p, correction_probs=correction, final_probs=final)
