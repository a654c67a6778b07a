from .._moved import former_names

__getattr__ = former_names('train')
