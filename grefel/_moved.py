"""Where the modules of 0.1 are now. Whoever imports one by its former path is told; gone in 0.3."""
import sys

MOVED = dict(
    core='base.core', geometry='base.geometry', images='base.images', draw='base.draw',
    synth='base.synth', page='base.page', parts='base.resume',
    faces='base.alignment, use.finder, use.scenes', patch='method.patch', window='method.window',
    backbone='method.pyramid, method.geometry_maps, method.poster', extractor='method.fusion',
    anchors='method.anchors', reliability='method.balancing',
    model='method.model, method.files, method.inference', losses='method.losses',
    baselines='method.baselines', facenets='method.facenets', labels='data.labels',
    lookalikes='data.lookalikes', table='data.table', sources='data.sources',
    augment='data.augment, data.warp', landmarks='data.landmarks', check='data.check',
    convert='data.convert', shards='data.stream', noise='data.noise', metrics='measure.metrics',
    calibrate='measure.calibration', groups='measure.groups', answers='measure.answers',
    inspect_data='measure.inspect', plots='measure.plots',
    evaluate='measure.scores, measure.verdicts, measure.report', runs='train.runs',
    experiments='train.experiments', predict='use.predict, use.evaluator', export='use.onnx',
    annotate='use.media, use.journal, use.drawing, use.annotate',
    app='use.app, use.app_page, use.app_guard', cli='use.cli')

# modules of 0.1 whose names are parts now: where each name is; old=new where it was renamed
PARTS = dict(
    data=dict(
        faces='FaceData ferplus_twins=ferplus_duplicates load_faces row_faults',
        labels='RULES TARGETS VOTES apply_rule',
        table='Odd=Remark SOURCES=LAYOUTS SPLITS Source=Layout join_tables label_column '
              'made_splits make_table read_csv read_folder read_parquet read_table '
              'source=register_layout vectors',
        sources='read_affectnet read_affectnet_npy read_affwild2 read_expw read_fer2013 read_ferg '
                'read_ferplus read_jaffe read_rafdb read_synth'),
    train=dict(
        loader='FaceLoader face_dls', averaging='EMA', optimiser='Adam=AdamW',
        precision='BFloat16 Faster=CompileStep',
        learner='FaceLearner KeepOutputs LossPart TrainLoss grefel_learner',
        ingredients='Distil Mix PlaceAnchors SAM set_drop_path',
        warm_up='WarmUp=warm_up twins_loss=barlow_twins_loss'))


class _Former:
    "Finds nothing; says where a module of 0.1 is now."

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, module = name.partition('.')
        if package != 'grefel' or module not in MOVED: return None
        homes = ', '.join(f'grefel.{m.strip()}' for m in MOVED[module].split(','))
        raise ModuleNotFoundError(f'{name} has moved since 0.1: see {homes}', name=name)


def install():
    "Answer for former module paths, after Python's own finders have found nothing."
    there = {getattr(finder, '__name__', None) for finder in sys.meta_path}
    if '_Former' not in there: sys.meta_path.append(_Former)


def former_names(part):
    "A module's `__getattr__` that says where a name of 0.1 is now."
    homes = {}
    for module, names in PARTS[part].items():
        for name in names.split():
            old, _, new = name.partition('=')
            homes[old] = f'grefel.{part}.{module}.{new or old}'

    def look(name):
        if name in homes:
            raise ImportError(f'grefel.{part}.{name} has moved since 0.1: see {homes[name]}')
        raise AttributeError(f'module grefel.{part} has no attribute {name!r}')
    return look
