"""The private parts of Hydra that gradpath uses, in one place; ``tests/test_hydra.py`` reports
which of them have changed.
"""

import hydra

try:
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.utils import get_args_parser

    apply_overrides = ConfigLoaderImpl._apply_overrides_to_config
    """Sets the values of parsed overrides on a composed configuration, in place."""
    split_arguments = BasicSweeper.split_arguments
    """The points of a sweep, in batches."""
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"Hydra {hydra.__version__} is not one that gradpath runs with, 1.3.2 to before 1.4: {error}"
    ) from None

__all__ = ["Callbacks", "apply_overrides", "get_args_parser", "split_arguments"]
