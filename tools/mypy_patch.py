"""A mypy plugin that knows fastcore's @patch: a function patched into a class is a method of it."""
import ast
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from mypy.nodes import ARG_NAMED_OPT, ARG_OPT, ARG_POS, ARG_STAR, ARG_STAR2, Argument, Var
from mypy.plugin import Plugin
from mypy.plugins.common import add_attribute_to_class, add_method_to_class
from mypy.types import AnyType, TypeOfAny

PACKAGE = Path(__file__).resolve().parent.parent/'grefel'


def _patched(node):
    "'method', 'property' or None: what @patch makes of a function."
    for deco in node.decorator_list:
        call = deco if isinstance(deco, ast.Call) else None
        if getattr(call.func if call else deco, 'id', None) != 'patch': continue
        as_prop = call and any(k.arg == 'as_prop' for k in call.keywords)
        return 'property' if as_prop else 'method'


@lru_cache
def patches():
    "Class name → [(kind, function)] over the whole package."
    found = defaultdict(list)
    for path in PACKAGE.rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if not function or not (kind := _patched(node)): continue
            named = node.args.args[0].annotation
            classes = named.elts if isinstance(named, ast.Tuple) else [named]
            for cls in classes: found[ast.unparse(cls)].append((kind, node))
    return found


def _assigned(node):
    "Names that a patched method gives to self."
    stored = (n for n in ast.walk(node)
              if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {n.attr for n in stored if getattr(n.value, 'id', None) == 'self'}


def _arguments(args):
    "A method's arguments after self, each of any type."
    anything = AnyType(TypeOfAny.explicit)
    given = args.args[1:]
    needed = len(given) - len(args.defaults)
    kinds = [(a, ARG_POS if i < needed else ARG_OPT) for i, a in enumerate(given)]
    if args.vararg: kinds.append((args.vararg, ARG_STAR))
    kinds += [(a, ARG_NAMED_OPT) for a in args.kwonlyargs]
    if args.kwarg: kinds.append((args.kwarg, ARG_STAR2))
    return [Argument(Var(a.arg, anything), anything, None, kind) for a, kind in kinds]


def _add(ctx):
    anything = AnyType(TypeOfAny.explicit)
    for kind, node in patches()[ctx.cls.name]:
        for name in _assigned(node) - set(ctx.cls.info.names):
            add_attribute_to_class(ctx.api, ctx.cls, name, anything)
        if node.name in ctx.cls.info.names: continue
        if kind == 'property': add_attribute_to_class(ctx.api, ctx.cls, node.name, anything)
        else: add_method_to_class(ctx.api, ctx.cls, node.name, _arguments(node.args), anything)


class PatchPlugin(Plugin):
    "Adds what @patch adds, before anything is checked."
    def get_customize_class_mro_hook(self, fullname):
        known = fullname.startswith('grefel.') and fullname.rpartition('.')[2] in patches()
        return _add if known else None


def plugin(version): return PatchPlugin
