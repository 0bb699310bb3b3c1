"""A rule between settings and data: validation during training needs a validation split. Imports no torch."""

from data_pipeline.dataset.blend import Blend
from data_pipeline.manifest import VALIDATION
from pretrain.config.settings import Settings
from pretrain.errors import ConfigError, Problem


def require_validation_split(settings: Settings, blend: Blend) -> None:
    """Raise ConfigError when `eval.every` is set and no corpus has a validation split."""
    if settings.eval.every is None or any(VALIDATION in corpus.manifest.splits for corpus in blend.corpora):
        return
    text = f"{blend.path} has no validation split; set eval.every=null, or prepare the data with a --validation-fraction above 0"
    raise ConfigError([Problem("eval.every", settings.eval.every, text)])
