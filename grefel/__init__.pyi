__all__ = [
    "EXPRESSIONS",
    "Face",
    "FaceData",
    "GReFELEvaluator",
    "GReFELLoss",
    "GReFELModel",
    "GeometryAwareAnchors",
    "GrefelError",
    "MultiScaleFeatureExtractor",
    "Predictor",
    "Recipe",
    "ReliabilityBalancing",
    "annotate",
    "calibrate_weights",
    "check_data",
    "convert",
    "create_dummy_data",
    "create_model",
    "evaluate",
    "export_onnx",
    "face_dls",
    "grefel_learner",
    "inspect_data",
    "load_faces",
    "load_image",
    "load_model",
    "read_table",
    "run_app",
    "save_model",
    "synth_faces",
]

from .base.core import EXPRESSIONS, GrefelError
from .base.images import load_image
from .base.synth import synth_faces
from .data.check import check_data
from .data.convert import convert
from .data.faces import FaceData, load_faces
from .data.table import read_table
from .measure.answers import calibrate_weights
from .measure.inspect import inspect_data
from .measure.report import evaluate
from .method.anchors import GeometryAwareAnchors
from .method.balancing import ReliabilityBalancing
from .method.files import load_model, save_model
from .method.fusion import MultiScaleFeatureExtractor
from .method.losses import GReFELLoss
from .method.model import GReFELModel, create_dummy_data, create_model
from .train.learner import grefel_learner
from .train.loader import face_dls
from .train.runs import Recipe
from .use.annotate import annotate
from .use.app import run_app
from .use.evaluator import GReFELEvaluator
from .use.onnx import export_onnx
from .use.predict import Face, Predictor

__version__: str
