"""A published file as an encoder."""

import pickle
from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import Tensor

from ..config import EncoderConfig, ImageConfig, Modality, PointStemConfig
from ..modeling import ImageBindEncoder
from .keys import from_official
from .sizes import config_from_official


def load_official(
    path: str | PathLike[str],
    modalities: Iterable[Modality | str] | None = None,
    heads: Mapping[Modality, int] | None = None,
    image: ImageConfig | None = None,
    point: PointStemConfig | None = None,
) -> ImageBindEncoder:
    """The encoder of a published file (e.g. imagebind_huge.pth) in eval mode, tensors mapped from the file.

    `modalities` leaves out trunks that are not needed; their weights are never read from disk. `heads`,
    `image` and `point` are as in `config_from_official`. Raises FileNotFoundError, ValueError for a file
    that is not a checkpoint, and what `config_from_official` and `from_official` raise.
    """
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a torch checkpoint of plain tensors; download it again") from error
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is not a state dict but holds something else; is it the encoder's file?")
    config = config_from_official(state_dict, heads, image, point)
    if modalities is not None:
        wanted = set(map(Modality, modalities))
        absent = sorted(wanted - set(config.trunks))
        if absent:
            raise ValueError(f"{path} has no {', '.join(absent)} trunk, only {', '.join(config.trunks)}")
        config = EncoderConfig(config.embedding_dim, {name: config.trunks[name] for name in wanted}, config.image)
    with torch.device("meta"):
        encoder = ImageBindEncoder(config)
    encoder.load_state_dict(from_official(state_dict, config), assign=True)
    return encoder.eval()
